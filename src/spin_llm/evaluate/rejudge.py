"""Stored answers judged again, without generating: generations.jsonl -> verdict rows.

In: a file of generations, a `--judge` text. Out: a file of verdict rows. Verdicts of a judge that is a model's words
are kept beside the output while it works (OUTPUT.progress), so that a killed judging goes on. Left out: rates and
intervals.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from spin_llm.evaluate.evaluation import judge_rows, say_missing
from spin_llm.evaluate.judging import load_judge, remembering
from spin_llm.files import write_jsonl
from spin_llm.ownership import owned
from spin_llm.progress import SILENT, Console
from spin_llm.record import is_run
from spin_llm.stored import read_to_judge


def judge_again(
    generations: Path, judge: str, output: Path, *, trust_remote_code: bool = False, console: Console = SILENT
) -> Path:
    """Write the verdict rows of every axis that the judge judges into `output`; say how many have no verdict, and why.

    Raises SpinError when there are none.
    """
    rows = read_to_judge(generations)
    with owned(output.parent) if is_run(output.parent) else nullcontext():
        progress = output.with_name(output.name + ".progress")
        kept = remembering(load_judge(judge, trust_remote_code=trust_remote_code), progress)
        verdicts = judge_rows(kept, rows, console=console)
        write_jsonl(output, verdicts)
        say_missing(verdicts, console)
        progress.unlink(missing_ok=True)
    return output
