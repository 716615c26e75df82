"""Outputs that have their name only when they are complete, and names of this process's own until then.

In: the path of a file or folder to make. Out: a hidden temporary path beside it, `.spin-llm-MACHINE-PID-START-RANDOM`,
that gets the name on success and goes on failure, also on Ctrl+C; what a killed process left is recognised by its name
and ended by the next one; and one message for a place that cannot be written, before any work. Nothing is deleted that
no process of this program made. Left out: what the outputs hold (files.py, models/disk/copying.py).
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spin_llm.errors import SpinError

TEMPORARY = re.compile(r"\.spin-llm-([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{16}\.(part|old)")
GIVEN: set[Path] = set()  # names that this process gave and that are not ended yet
NAMED = {  # errors of the operating system that are about the place itself
    errno.ENAMETOOLONG: "its name is too long",
    errno.ENOTDIR: "it lies under a file",
    errno.EEXIST: "it lies under a file, or a file has its name",
    errno.EISDIR: "a folder has its name",
    errno.ELOOP: "it leads through a circle of links",
    errno.EROFS: "the file system is read-only",
    errno.EBUSY: "it is in use, as a mounted folder is",
}


# Names


def temporary(path: Path) -> Path:
    """A new name beside `path` that nobody else gives, and that says which process made it."""
    import psutil

    started = int(psutil.Process().create_time())
    part = path.with_name(f".spin-llm-{_machine()}-{os.getpid()}-{started}-{secrets.token_hex(8)}.part")
    GIVEN.add(part)
    return part


def is_temporary(path: Path) -> bool:
    """Whether a process of this program gave this name to something unfinished."""
    return TEMPORARY.fullmatch(path.name) is not None


def _machine() -> str:
    """Where process numbers mean the same: the machine, and on Linux the container."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _is_dead(name: str) -> bool:
    """Whether the process that made a temporary name is known to have ended."""
    import psutil

    match = TEMPORARY.fullmatch(name)
    if match is None or match[1] != _machine():
        return False
    try:
        process = psutil.Process(int(match[2]))
        return abs(process.create_time() - int(match[3])) > 2 or process.status() == psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return True
    except psutil.Error:
        return False


def clear_stale(folder: Path) -> list[str]:
    """End what killed processes left in `folder`: unfinished outputs are deleted, a folder that was set aside for one
    that never came gets its name back. What to tell the user of it."""
    told: list[str] = []
    with suppress(OSError):  # a folder that cannot be listed has nothing to clear
        names = [entry.name for entry in os.scandir(folder) if entry.name.startswith(".spin-llm-")]
        for name in sorted({Path(name).with_suffix(".part").name for name in names if _is_dead(name)}):
            told += _settle(folder / name)
    return told


def _settle(part: Path) -> list[str]:
    """End what was begun under a temporary name, wherever it stopped.

    While the `.part` is there, the new folder has not got its name: an old one that was set aside (in the `.old` beside
    it, under its own name) goes back. Without the `.part` the new one is in its place, and the old one is deleted.
    """
    aside = part.with_suffix(".old")
    unfinished, told = os.path.lexists(part), []
    for old in list(aside.iterdir()) if aside.is_dir() else []:
        place = aside.with_name(old.name)
        if not unfinished:
            shutil.rmtree(old, ignore_errors=True)
        elif os.path.lexists(place):
            return [f"{old} is what {place} was before an interrupted command; {place} is something else now"]
        else:
            old.rename(place)
            told = [f"{place} is back as it was before an interrupted command"]
    with suppress(OSError):
        if part.is_dir() and not part.is_symlink():  # never through a link
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
    with suppress(OSError):
        aside.rmdir()
    GIVEN.discard(part)
    return told


def end_all() -> None:
    """End what this process has begun and not ended, for when it leaves: a Ctrl+C may have come while something was
    ended. A fork's own names alone are its own."""
    for part in sorted(GIVEN):
        match = TEMPORARY.fullmatch(part.name)
        if match and match[2] == str(os.getpid()):
            _settle(part)


atexit.register(end_all)


# Making


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write a file to; it becomes `path` on success and goes on failure. Links are followed.

    Raises SpinError when the disk is full or the place cannot be written to.
    """
    with _placing(Path(path)) as (part, target):
        if target.exists() and not target.is_file():
            raise SpinError(f"{path} is no file to write to: something else has this name.")
        yield part
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o666 & ~mask)  # as of any new file: the safetensors library's only their owner can read
        part.replace(target)


@contextmanager
def making(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes `path` on success and goes on failure. Links are followed.

    A folder that has the name already is set aside then, and deleted when the new one has its name: whoever calls this
    has made sure that it may be. A kill leaves the old one, the new one, or what `clear_stale` puts back.
    """
    with _placing(Path(path)) as (part, target):
        part.mkdir()
        yield part
        if target.is_dir() and any(target.iterdir()):
            aside = part.with_suffix(".old")
            aside.mkdir()
            target.rename(aside / target.name)
        part.rename(target)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Give a new folder in `folder`, which is deleted afterwards with what is still in it."""
    with _placing(folder / "scratch") as (part, _):
        part.mkdir()
        yield part


@contextmanager
def _placing(path: Path) -> Iterator[tuple[Path, Path]]:
    """(temporary path, target with links followed) in a parent that exists; afterwards nothing temporary is left, and
    after a failure no parent that was made for it."""
    made: list[Path] = []
    try:
        target = Path(os.path.realpath(path))
        made = absent(target.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_stale(target.parent)
        part = temporary(target)
        try:
            yield part, target
        finally:
            _settle(part)
    except BaseException as error:  # noqa: BLE001 - also on Ctrl+C nothing half-written stays
        remove_empty(made)
        raise disk_error(error, path) or error from None


def absent(folder: Path) -> list[Path]:
    """Those of a folder and its parents that are not there yet, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty(made: list[Path]) -> None:
    """Remove those of the folders `made`, the innermost first, that nothing was written into."""
    for path in made:
        with suppress(OSError):
            path.rmdir()


# Whether it can be made


def check_output(path: str | Path, *, file: bool = False, space: int = 0) -> Path:
    """The folder (or `file`) that can be made or written at `path`, absolute and with links followed; nothing is left.

    SpinError in words for every other place: under a file, a dangling link, a name too long, read-only, without `space`
    bytes free. To be called before any work.
    """
    try:
        place = Path(os.path.realpath(path))
        if Path(path).is_symlink() and not place.exists():
            raise SpinError(f"The output {path} is a link to {place}, which does not exist.", change=ELSEWHERE)
        if place.exists() and not (place.is_file() if file else place.is_dir()):
            kind = "folder" if place.is_dir() else "file" if place.is_file() else "device or the like"
            raise SpinError(f"The output {path} is a {kind}.", change=ELSEWHERE)
        base = next(one for one in (place, *place.parents) if os.path.lexists(one) and not (file and one == place))
        if not base.is_dir():
            raise _no_place(path, f"{base} is a file")
        probe = temporary(base / "probe")
        try:
            probe.mkdir()
            (probe / place.relative_to(base)).mkdir(parents=True, exist_ok=True)
        finally:
            _settle(probe)
        if space > (free := shutil.disk_usage(base).free):
            what = f"The disk is too full for {path}: {space:,} bytes are needed, {free:,} are free."
            raise SpinError(what, change="free some space, or choose another folder with --output.")
    except ValueError:  # a name with a NUL
        raise SpinError(f"The output {str(path)!r} is no name for a file or folder.", change=ELSEWHERE) from None
    except OSError as error:
        raise disk_error(error, Path(path)) or _no_place(path, str(error.strerror)) from None
    return place


ELSEWHERE = "choose another place with --output."


def _no_place(path: str | Path, why: str) -> SpinError:
    return SpinError(f"{path} cannot be written: {why}.", change=ELSEWHERE)


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
    if isinstance(error, OSError) and error.errno in NAMED:
        return _no_place(path, NAMED[error.errno])
    return None
