"""Files that are complete or absent, and their hashes.

In: paths and contents. Out: files written under a name of this process's own and renamed when complete (outputs.py),
SHA-256 digests, JSON and JSON lines, seals of safetensors files. A full disk becomes one clear error and leaves nothing
half-written. Left out: what the files mean; pickles, always.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from spin_llm.errors import SpinError
from spin_llm.outputs import disk_error, writing

Decoded = TypeVar("Decoded")
SEAL = "sha256"
UNSEALED = {SEAL: "0" * 64}  # the metadata with which a safetensors file is saved that is then sealed


def cache_folder() -> Path:
    """$SPIN_LLM_CACHE, else the platform's cache folder for spin-llm."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("SPIN_LLM_CACHE") or user_cache_dir("spin-llm", appauthor=False))


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
    try:
        return json.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
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


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder of that name; a text that cannot name one (too long, a zero byte) names none."""
    try:
        return Path(path).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):
        return False


def read_bytes(path: str | Path) -> bytes:
    """A file's bytes; SpinError when it is absent, a folder, or may not be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise SpinError(f"There is no file {path}.") from None
    except OSError as error:
        raise SpinError(f"{path} could not be read: {error.strerror}.") from None


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, object]]) -> None:
    write_text(path, jsonl(rows))


def jsonl(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as JSON lines; ValueError for NaN and infinities."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def read_progress(path: Path, kind: type[Decoded]) -> list[Decoded]:
    """The rows of a progress file (`sync_append`), each decoded as `kind`, [] when it is absent; a last line that a
    kill cut short is dropped from the file."""
    if not path.exists():
        return []
    text = path.read_bytes()
    end = text.rfind(b"\n") + 1
    if end != len(text):
        with path.open("r+b") as file:
            file.truncate(end)
    return read_typed_lines(path, kind, change="delete that file: what it holds is made again.")


def seal_safetensors(path: Path) -> None:
    """Give a safetensors file that was saved with the metadata `**UNSEALED` the hash of its content, in place, and put
    its `__metadata__` in the order of its keys.

    The hash is over the header (names, dtypes, shapes, offsets, metadata) and all the tensors' bytes in the order of
    the file. The safetensors library writes the metadata in an order that changes from process to process; equal input
    is to give equal bytes.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the same keys and values"
        assert header["__metadata__"].items() >= UNSEALED.items()
        text = text.ljust(size)
        digest = _sealed_digest(text, file)
        file.seek(8)
        file.write(text.replace(UNSEALED[SEAL].encode(), digest.encode(), 1))


def check_seal(path: Path, metadata: Mapping[str, str], known: Iterable[str]) -> bool:
    """Whether a safetensors file with this `metadata` has a seal, which then holds; SpinError when it does not, or when
    the metadata has keys other than those `known` (a seal whose name was damaged)."""
    if SEAL not in metadata:
        if odd := sorted({*metadata} - {*known}):
            raise SpinError(f"{path} is damaged, or not of this program: its metadata has the key {odd[0]!r}.")
        return False
    with path.open("rb") as file:
        text = file.read(int.from_bytes(file.read(8), "little"))
        digest = _sealed_digest(text.replace(metadata[SEAL].encode(), UNSEALED[SEAL].encode(), 1), file)
    if digest != metadata[SEAL]:
        raise SpinError(
            f"{path} is damaged: its content is not what was written.",
            cause="a faulty disk or copy, or a file that was edited.",
            change="copy it again, or make it again.",
        )
    return True


def _sealed_digest(header: bytes, tensors: BufferedIOBase) -> str:
    return hashlib.file_digest(tensors, lambda: hashlib.sha256(header)).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, read in blocks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sync_append(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Append rows to a JSON-lines progress file and force them to disk, so that a kill loses at most the last call."""
    text = jsonl(rows)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise disk_error(error, path) or error from None
