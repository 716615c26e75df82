"""The command with small batches, a checkpoint after each, and a place where it kills itself.

In: the command line, or `--trials JSON`: [words, environment] of several attempts, each in forks of this process, so
that the imports are paid once. In the environment: RANKS, how many processes; STOP_AT, the number of the event (from 1)
at which the process sends itself SIGKILL; STOP_RANK, which of several processes does; BUDGET_OF_RANK_1, a memory budget
that differs. Out: what the command does; of trials a JSON list of lists of exit codes (99: another rank than the first
wrote a file). An event is the start of a batch or the rename of a finished file, which is left half-written then.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

BATCH_TOKENS = 120


def prepare() -> None:
    """Small batches, a checkpoint after each, and the stop."""
    from spin_llm.scores import concept as scoring
    from spin_llm.scores import passes as engine
    from spin_llm.scores import sets as planning

    batches = functools.partial(engine.make_batches, batch_tokens=BATCH_TOKENS)
    scoring.make_batches = planning.make_batches = batches  # type: ignore[assignment,attr-defined]
    scoring.CHECKPOINT_SHARE = float("inf")
    stop_at, events = int(os.environ.get("STOP_AT", "0")), 0
    losses, replace = engine.response_losses, Path.replace

    def event() -> bool:
        nonlocal events
        events += 1
        return events == stop_at and os.environ.get("STOP_RANK", "0") == os.environ.get("RANK", "0")

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def stopping_losses(*args: Any) -> Any:
        if event():
            stop()
        return losses(*args)

    def stopping_replace(self: Path, target: Path) -> Path:
        if os.environ.get("RANK", "0") != "0":
            os._exit(99)
        if self.suffix == ".part" and event():
            content = self.read_bytes()
            self.write_bytes(content[: len(content) // 2])
            stop()
        return replace(self, target)

    engine.response_losses, Path.replace = stopping_losses, stopping_replace  # type: ignore[assignment,method-assign]


def command(words: list[str]) -> None:
    from spin_llm.cli import main as cli

    prepare()
    sys.argv = ["spin-llm", *words]
    cli.main()


def trial(words: list[str], environment: dict[str, str]) -> list[int]:
    """Exit codes of the command's processes; negative: the signal that ended one."""
    ranks = int(environment.get("RANKS", "1"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    children = [start(words, {**environment, **place, "RANK": str(rank)}) for rank in range(ranks)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def start(words: list[str], environment: dict[str, str]) -> int:
    """The command in a fork; its number."""
    if child := os.fork():
        return child
    code = 1
    if environment["RANK"] == "1" and "BUDGET_OF_RANK_1" in environment:
        words = [*words, "--memory-budget", environment["BUDGET_OF_RANK_1"]]
    try:
        os.environ.update(environment)
        os.dup2(2, 1)
        command(words)
        code = 0
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    finally:
        os._exit(code)


def import_all() -> None:
    """What the command imports on its way, tiny llamas' classes included."""
    import accelerate  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    import spin_llm.cli.main
    import spin_llm.pipeline  # noqa: F401


def main() -> None:
    if sys.argv[1] != "--trials":
        command(sys.argv[1:])
        return
    import_all()
    print(json.dumps([trial(words, environment) for words, environment in json.loads(sys.argv[2])]))


if __name__ == "__main__":
    main()
