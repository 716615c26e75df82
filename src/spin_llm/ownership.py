"""One owner for a folder that is written into: a second process is refused while the first one works there.

In: a folder. Out: a context in which this process alone writes there, or a SpinError that names the other one. The lock
is the operating system's (filelock), so that it is gone with its process, however that ends; two hidden files, the lock
and who holds it, are deleted at the end, and mean nothing when a kill leaves them. Left out: readers, who need no lock:
files appear when they are complete.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from spin_llm.errors import SpinError
from spin_llm.files import read_typed
from spin_llm.outputs import absent, check_output, clear_stale, is_temporary, remove_empty

LOCK, OWNER = ".spin-llm.lock", ".spin-llm.owner"
_held: dict[Path, int] = {}  # folders of this process, by the thread that works in them


@dataclass(frozen=True)
class Owner:
    """Who works in a folder: process, machine, command, and since when."""

    pid: int
    host: str
    command: str
    since: str


@contextmanager
def owned(folder: str | Path) -> Iterator[Path]:
    """Inside, this process alone writes into `folder`, which is made where it is not there, and is gone again where
    nothing was written. Inside it may be called again for the same folder.

    Raises SpinError when another process works there, or when the folder cannot be made or written to.
    """
    check_output(folder)
    folder = Path(folder)
    made = absent(folder)
    key, lock = folder.resolve(), FileLock(folder / LOCK)
    if _held.get(key) == threading.get_ident():
        yield folder
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise occupied(folder) from None
    except (OSError, NotImplementedError) as error:
        remove_empty(made)
        raise SpinError(
            f"The output {folder} cannot be written to: {getattr(error, 'strerror', None) or error}.",
            cause="a disk that is full or read-only, no permission, or a file system without locks.",
            change="choose another folder with --output.",
        ) from None
    _held[key] = threading.get_ident()
    try:
        with suppress(OSError):  # who holds it is for the message alone
            program, now = Path(sys.argv[0]), datetime.now(UTC).isoformat(timespec="seconds")
            words = " ".join(["spin-llm", *sys.argv[1:2]]) if program.stem == "spin-llm" else program.name
            me = Owner(os.getpid(), socket.gethostname(), words, now)
            (folder / OWNER).write_text(json.dumps(asdict(me)), encoding="utf-8")
        for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
            clear_stale(place)  # of killed processes
        yield folder
    finally:
        del _held[key]
        for name in (OWNER, LOCK):
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        lock.release()
        remove_empty(made)


def is_vacant(folder: Path) -> bool:
    """Whether a folder is absent, or holds nothing but what a killed process of ours leaves at its very start."""
    return not folder.is_dir() or all(path.name in (LOCK, OWNER) or is_temporary(path) for path in folder.iterdir())


def occupied(folder: Path) -> SpinError:
    """The error for a folder in which another process works."""
    who, cause = "another process", "one output given to two commands, or an earlier one that still runs."
    with suppress(SpinError):  # it may not have written its name yet
        owner = read_typed(folder / OWNER, Owner)
        who = f"{owner.command}, process {owner.pid} on {owner.host}, since {owner.since}"
        if owner.host == socket.gethostname() and not psutil.pid_exists(owner.pid):
            cause = "that process is gone, but one that it started, or another container, still holds the lock."
    wait = "wait until it is done, or stop it; or give another --output. If nothing works there any more, as after the "
    wait += f"crash of another machine, delete {folder / LOCK}."
    return SpinError(f"{folder} is in use: {who}.", cause=cause, change=wait)
