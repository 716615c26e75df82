"""The command with a made-up judge, and with a point at which it stops: run by the tests in processes of their own.

In: the command line, and in the environment STOP_AT (the name of a file) and STOP_HOW (`kill`: the
process kills itself there; `wait`: it says READY and waits to be interrupted). Out: what the command does. A write is a
rename of a finished file or an append to a progress file; the process stops in the middle of it, half of it on disk.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from spin_llm import files
from spin_llm.evaluate import answers as evaluation
from spin_llm.judges.named import load_judge
from spin_llm.judges.verdict import Verdict
from spin_llm.settings import SHIPPED


class Every(tuple[str, ...]):
    """These axes, and any other that a test asks for."""

    def __contains__(self, axis: object) -> bool:
        return True


class MadeUpJudge:
    """Verdicts by the length of the answer, for tests that need some judge."""

    name, label = "made-up", "aware"
    axes, fingerprint = Every((*SHIPPED, "over_refusal")), ""
    quality: ClassVar[dict[str, Any]] = {}

    def __call__(
        self, axis: str, prompts: Sequence[str], answers: Sequence[str], progress: Callable[[int], None]
    ) -> list[Verdict]:
        progress(len(prompts))
        return [Verdict(0.25 + 0.5 * (len(answer) % 2), len(answer) % 2) for answer in answers]


def use_made_up_judge(replace: Callable[[object, str, object], None]) -> None:
    """Put it in the place of the models that judge wherever the pipeline loads them, by `replace(module, name, value)`;
    a human's sheet is read."""
    from spin_llm.pipeline import context

    def made_up(name: str, **options: Any) -> Any:
        return load_judge(name, **options) if name.startswith("human:") else MadeUpJudge()

    replace(context, "load_judge", made_up)
    replace(context, "load_coherence_judge", MadeUpJudge)


def stop_at(place: int | str, stop: Callable[[], None]) -> Callable[[], None]:
    """Call `stop` in the middle of a write, by its number from 1 or by its file's name; returns what undoes this."""
    writes = 0
    replace, append = Path.replace, files.sync_append

    def count(path: Path) -> bool:
        nonlocal writes
        writes += path.suffix != ".svg"  # figures hold no results
        return place in (writes, path.name)

    def stopping_replace(self: Path, target: Path) -> Path:
        if self.suffix == ".part" and count(target):
            content = self.read_bytes()
            self.write_bytes(content[: len(content) // 2])
            stop()
        return replace(self, target)

    def stopping_append(path: Path, rows: list[dict[str, Any]]) -> None:
        if count(path):
            append(path, rows)
            content = path.read_bytes()
            path.write_bytes(content[: len(content) - 10])
            stop()
        append(path, rows)

    Path.replace, evaluation.sync_append = stopping_replace, stopping_append  # type: ignore[assignment,method-assign]

    def undo() -> None:
        Path.replace, evaluation.sync_append = replace, append  # type: ignore[method-assign]

    return undo


def wait() -> None:
    print("READY", flush=True)
    for _ in range(600):  # a signal that comes just before a sleep is seen after it
        time.sleep(0.1)


def main() -> None:
    from spin_llm.cli import main as cli

    use_made_up_judge(setattr)
    if "STOP_AT" in os.environ:
        stops = {"kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "wait": wait}
        stop_at(os.environ["STOP_AT"], stops[os.environ["STOP_HOW"]])
    sys.argv[0] = "spin-llm"
    cli.main()


if __name__ == "__main__":
    main()
