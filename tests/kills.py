"""Kill a command at random moments, again and again, and look at what it leaves.

In: `python tests/kills.py apply --kills 200 --seed 0`. Out: one line of figures for each kind of work, and a line for
each fault; exit code 0 without one. A kill is the signal KILL, TERM or INT, in turn, to a fork of this process that
runs the command (the imports are paid once), at a moment drawn over the time that the command takes, or (every fourth)
KILL at the start of a change to a folder, by its number. After each one the output must be the old one, the new one, or
absent where there was none, every byte of it, at the latest when the next command has looked; TERM and INT leave
nothing else either. In the end the command runs to its end. Left out: power cuts.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tiny

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CHANGES = 40  # more than an `apply` makes with --overwrite; the numbers are gone through in turn
PADDING = 4 << 20  # bytes: a file of the model's that takes a moment to copy


@dataclass
class Figures:
    """What was seen: how often the command was killed, and what was left by kind; `faults` in words."""

    kills: int = 0
    left: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def started(words: Sequence[object], log: Path, *, stop_at: int = 0) -> int:
    """The command in a fork of this process, its output into `log`; the number of the process. With `stop_at` it kills
    itself at its change of that number, from 1."""
    if child := os.fork():
        return child
    code = 1
    try:
        if stop_at:
            stop_at_change(stop_at)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        import torch
        from tqdm import tqdm

        from spin_llm.cli import main as cli

        torch.set_num_threads(1)  # OpenMP's pool of threads does not live through a fork
        tqdm.set_lock(threading.RLock())  # its own lock is shared by all forks, and stays taken when one is killed
        sys.argv = ["spin-llm", *map(str, words)]
        cli.main()
        code = 0
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    finally:
        os._exit(code)


def stop_at_change(number: int) -> None:
    """KILL this process at the start of its `number`th rename, new folder, copy or deletion of a folder."""
    changes = 0

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **options: Any) -> Any:
            nonlocal changes
            changes += 1
            if changes == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **options)

        return counting

    for place, name in ((Path, "rename"), (Path, "mkdir"), (Path, "rmdir"), (shutil, "copyfile"), (shutil, "rmtree")):
        setattr(place, name, counted(getattr(place, name)))


def run(words: Sequence[object], log: Path) -> tuple[int, float]:
    """(exit code, seconds) of the command when nobody kills it."""
    begun = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(started(words, log), 0)[1])
    return code, time.monotonic() - begun


def killed(words: Sequence[object], log: Path, number: signal.Signals, delay: float, *, stop_at: int = 0) -> int:
    """The exit code of the command that gets the signal after `delay` seconds; negative: the signal that ended it. With
    `stop_at` it ends itself there instead."""
    child = started(words, log, stop_at=stop_at)
    if not stop_at:
        time.sleep(delay)
        os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_rewriting(verb: str, folder: Path, kills: int, seed: int) -> Figures:
    """`apply` or `revert`, to a new folder and over an old one in turn."""
    from spin_llm.models import Checkpoint
    from spin_llm.outputs import clear_stale
    from spin_llm.patch.file import apply_checkpoint, make_patch, save_patch

    model = tiny.save("llama", folder / "model", max_shard_size="20KB")
    (model / "NOTICE").write_bytes(b"x" * PADDING)
    patch = make_patch(Checkpoint(model), tiny.mlp_selection(tiny.build("llama")))
    save_patch(folder / "patch.safetensors", patch)
    if verb == "revert":
        model = apply_checkpoint(Checkpoint(model), patch, folder / "edited")
    log, figures, draw = folder / "log", Figures(), random.Random(seed)
    output = folder / "place" / "output"
    words = [verb, model, folder / "patch.safetensors", "-o", output]
    took = []
    for _ in range(3):
        code, seconds = run(words, log)
        assert code == 0, log.read_text()
        took.append(seconds)
        new = tiny.folder_bytes(output)
        shutil.rmtree(output)
    old = tiny.folder_bytes(tiny.save("gpt2", folder / "old"))
    for number in range(kills):
        before = old if number % 2 else {}
        shutil.rmtree(folder / "place", ignore_errors=True)
        (folder / "place").mkdir()
        if before:
            shutil.copytree(folder / "old", output)
        how = SIGNALS[number % 3]
        stop_at = number // 4 % CHANGES + 1 if number % 4 == 3 else 0
        how = signal.SIGKILL if stop_at else how
        moment = draw.uniform(0, min(took))
        code = killed([*words, *(["--overwrite"] * bool(before))], log, how, moment, stop_at=stop_at)
        figures.kills += code != 0
        left = sorted(path.name for path in (folder / "place").iterdir() if path != output)
        where = f"kill {number} by {how.name}, exit code {code}"
        if left and how != signal.SIGKILL:
            figures.faults.append(f"{where}: {left} left")
        figures.left[f"{len(left)} temporary"] += 1
        told = clear_stale(folder / "place")
        figures.left["put back"] += len(told)
        found = tiny.folder_bytes(output) if output.exists() else {}
        figures.left["new" if found == new else "old" if found else "absent"] += 1
        if found not in (before, new) or (code == 0 and found != new):
            figures.faults.append(f"{where}: the output is neither the old nor the new one")
        if more := [path.name for path in (folder / "place").iterdir() if path != output]:
            figures.faults.append(f"{where}: {more} left for good")
    shutil.rmtree(folder / "place")
    if run(words, log)[0] or tiny.folder_bytes(output) != new:
        figures.faults.append("the command that nobody killed ended with other bytes")
    if "Traceback" in (text := log.read_text()):
        figures.faults.append(text[text.index("Traceback") :][:2000])
    return figures


def resuming(command: str, folder: Path, kills: int, seed: int) -> Figures:
    from resumed import kill_resumed

    return kill_resumed(command, folder, kills, seed)


WORK: dict[str, Callable[[Path, int, int], Figures]] = {
    "apply": lambda folder, kills, seed: kill_rewriting("apply", folder, kills, seed),
    "revert": lambda folder, kills, seed: kill_rewriting("revert", folder, kills, seed),
    **{name: partial(resuming, name) for name in ("run", "search", "baseline", "paper")},
}


def import_all() -> None:
    """What the commands import on their way, so that the forks need not."""
    import transformers.modeling_utils  # noqa: F401

    import spin_llm.cli.main
    import spin_llm.patch.patch  # noqa: F401


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="+", choices=list(WORK))
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    import_all()
    faults = 0
    for name in asked.work:
        with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
            figures = WORK[name](Path(temporary), asked.kills, asked.seed)
        left = ", ".join(f"{count} {what}" for what, count in sorted(figures.left.items()))
        print(f"{name}: {figures.kills} of {asked.kills} killed before their end; {left}; {len(figures.faults)} faults")
        print("".join(f"FAULT {fault}\n" for fault in figures.faults), end="")
        faults += len(figures.faults)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
