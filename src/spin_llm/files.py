"""Files that are complete or absent, and their hashes.

In: paths and contents. Out: files written as `NAME.part` and renamed when complete, SHA-256 digests, JSON and JSON
lines. A full disk becomes one clear error and leaves nothing half-written. Left out: what the files mean; pickles,
always.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from spin_llm.errors import SpinError

Decoded = TypeVar("Decoded")


def cache_folder() -> Path:
    """$SPIN_LLM_CACHE, else the platform's cache folder for spin-llm."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("SPIN_LLM_CACHE") or user_cache_dir("spin-llm", appauthor=False))


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Give a `.part` path to write to; rename it to `path` on success, delete it on failure.

    Raises SpinError when the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.chmod(_plain_mode())  # the safetensors library writes files that only their owner can read
        part.replace(path)
    except BaseException as error:  # noqa: BLE001 - also on Ctrl+C nothing half-written stays
        part.unlink(missing_ok=True)
        raise disk_error(error, path) or error from None


def _plain_mode() -> int:
    """The permissions that an ordinary new file gets."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def disk_error(error: BaseException, path: Path) -> SpinError | None:
    """The SpinError to raise for an operating-system error while writing `path`; None for any other error."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full or any(words in str(error) for words in ("No space left", "File too large")):
        return SpinError(
            f"The disk is full: {path} could not be written.",
            cause="no space left on the device that holds it, or a limit on size; what was complete before is kept.",
            change="free some space, or choose another folder with --output, and run the same command again.",
        )
    if isinstance(error, PermissionError):
        return SpinError(f"No permission to write {path}.", change="choose another folder with --output.")
    return None


def write_text(path: str | Path, text: str) -> None:
    with writing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON.

    NaN and infinities are refused (ValueError): they are not JSON.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read one JSON file; SpinError when it is absent or not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpinError(f"There is no file {path}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpinError(f"{path} is not valid JSON: {error}") from None


def read_typed(path: str | Path, kind: type[Decoded], *, change: str = "") -> Decoded:
    """One JSON file decoded as `kind` (a dataclass, a dict of types, ...): keys that `kind` does not know are ignored.

    Raises SpinError, which names the file and the place in it, when it is absent, no JSON, or of another type; `change`
    says how to get a good one.
    """
    return decoded(read_bytes(path), kind, f"{path}", change=change)


def read_typed_lines(path: str | Path, kind: type[Decoded], *, change: str = "") -> list[Decoded]:
    """JSON lines, each decoded as `kind`; blank lines are passed over. Raises SpinError, which names the line."""
    lines = enumerate(read_bytes(path).split(b"\n"), 1)
    return [decoded(line, kind, f"{path}, line {number}", change=change) for number, line in lines if line.strip()]


def decoded(data: bytes | str, kind: type[Decoded], where: str, *, change: str = "") -> Decoded:
    """JSON `data` as `kind`; SpinError that begins with `where` for any damage."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        cause = "the file is damaged, was edited by hand, or was written by another version or another program."
        raise SpinError(f"{where} cannot be read: {error}.", cause=cause, change=change) from None


def read_bytes(path: str | Path) -> bytes:
    """A file's bytes; SpinError when it is absent, a folder, or may not be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise SpinError(f"There is no file {path}.") from None
    except OSError as error:
        raise SpinError(f"{path} could not be read: {error.strerror}.") from None


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line.strip()]
    except FileNotFoundError:
        raise SpinError(f"There is no file {path}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpinError(f"{path} is not valid JSON lines: {error}") from None


def read_progress(path: Path) -> list[dict[str, Any]]:
    """The rows of a progress file (`sync_append`), [] when it is absent; a last line that a kill cut short is dropped
    from the file."""
    if not path.exists():
        return []
    text = path.read_bytes()
    end = text.rfind(b"\n") + 1
    if end != len(text):
        with path.open("r+b") as file:
            file.truncate(end)
    return read_jsonl(path)


def sort_safetensors_metadata(path: Path) -> None:
    """Put the `__metadata__` of a safetensors file in the order of its keys, in place.

    The safetensors library writes it in an order that changes from process to process; equal input is to give equal
    bytes.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the same keys and values"
        file.seek(8)
        file.write(text.ljust(size))


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sync_append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a JSON-lines progress file and force them to disk, so that a kill loses at most the last call."""
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise disk_error(error, path) or error from None
