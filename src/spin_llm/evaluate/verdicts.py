"""Answers judged: rows of generations to rows of verdicts, while they are made and again later.

In: rows of answers, a judge, one of coherence. Out: verdict rows. Equal answers to a question get one verdict, a
question without an answer is not judged. Left out: what verdicts amount to (axes.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from spin_llm.evaluate.axes import causes_of
from spin_llm.files import write_jsonl
from spin_llm.judges.named import load_judge
from spin_llm.judges.verdict import COHERENCE, NOT_PARSED, Judge, Verdict, judged_axes, remembering, unanswered
from spin_llm.ownership import owned
from spin_llm.progress import SILENT, Console
from spin_llm.records import is_run
from spin_llm.results.file import written
from spin_llm.results.rows import Answer, ToJudge, VerdictRow, read_rows

Rows = Sequence[ToJudge] | Sequence[Answer]
Verdicts = dict[tuple[str, str, str], Verdict]  # by axis of the question, prompt and answer


def judge_rows(
    judge: Judge, rows: Rows, *, coherence: Judge | None = None, console: Console = SILENT
) -> list[VerdictRow]:
    """Verdict rows, one per generation row, then with `coherence` one more per answer to a question on a concept.

    Each distinct (axis, prompt, answer) is judged once, where there is an answer; axes that the judge does not judge
    are left out, with a line.
    """
    verdicts: Verdicts = {}
    coherent: Verdicts = {}
    axes = list(dict.fromkeys(row.axis for row in rows))
    judged = judged_axes(judge, axes, console)
    concepts = [axis for axis in axes if coherence and axis != "over_refusal" and axis in coherence.axes]
    if coherence and (left_out := [axis for axis in axes if axis not in (*concepts, "over_refusal")]):
        console.say(f"coherence is not judged on {', '.join(left_out)}: left out")
    for axis in axes:
        mine = (row for row in rows if row.axis == axis and not unanswered(row))
        pairs = list(dict.fromkeys((row.prompt, row.answer) for row in mine))
        if axis in judged:
            verdicts |= judge_pairs(judge, axis, pairs, f"judging, {axis}", console)
        if coherence and axis in concepts:  # at once: two judges with one feature model share what it read last
            coherent |= judge_pairs(coherence, axis, pairs, f"coherence, {axis}", console)
    found = [verdict_row(row, row.axis, judge, verdicts) for row in rows if row.axis in judged]
    if coherence:
        found += [verdict_row(row, COHERENCE, coherence, coherent) for row in rows if row.axis in concepts]
    return found


def say_missing(verdicts: Sequence[VerdictRow], console: Console) -> None:
    """A line for every axis and model with answers that have no verdict: how many, and why."""
    by_place: dict[tuple[str, str], list[VerdictRow]] = {}
    for row in verdicts:
        by_place.setdefault((row.axis, row.model), []).append(row)
    for (axis, model), rows in by_place.items():
        if causes := causes_of(rows).base:
            told = ", ".join(f"{cause} {number}" for cause, number in causes.items())
            console.say(f"{axis}: {sum(causes.values())} of {len(rows)} {model} answers have no verdict: {told}")


def judge_pairs(judge: Judge, axis: str, pairs: Sequence[tuple[str, str]], title: str, console: Console) -> Verdicts:
    """{(axis, prompt, answer): verdict} of (prompt, answer) `pairs`."""
    if not pairs:
        return {}
    with console.bar(title, len(pairs)) as advance:
        judged = judge(axis, [prompt for prompt, _ in pairs], [answer for _, answer in pairs], advance)
    return {(axis, *pair): verdict for pair, verdict in zip(pairs, judged, strict=True)}


def verdict_row(row: ToJudge | Answer, axis: str, judge: Judge, verdicts: Verdicts) -> VerdictRow:
    """One row of verdicts.jsonl. `axis` is the question's axis, or `coherence` under the same id; without a verdict the
    row says why."""
    why = unanswered(row)
    said = Verdict(None, None) if why else verdicts[row.axis, row.prompt, row.answer]
    cause = why or said.cause or NOT_PARSED
    return VerdictRow(
        id=row.id,
        axis=axis,
        model=row.model,
        judge=judge.name,
        probability=said.probability,
        verdict=said.verdict,
        parsed=said.verdict is not None,
        cause=cause if said.verdict is None else None,
        mass=said.mass,
    )


def judge_again(
    generations: Path, judge: str, output: Path, *, trust_remote_code: bool = False, console: Console = SILENT
) -> Path:
    """Write the verdict rows of every axis that the judge judges into `output`; say how many have no verdict, and why.

    Raises SpinError when there are none.
    """
    rows = read_rows(generations, ToJudge)
    with owned(output.parent) if is_run(output.parent) else nullcontext():
        progress = output.with_name(output.name + ".progress")
        kept = remembering(load_judge(judge, trust_remote_code=trust_remote_code), progress)
        verdicts = judge_rows(kept, rows, console=console)
        write_jsonl(output, map(written, verdicts))
        say_missing(verdicts, console)
        progress.unlink(missing_ok=True)
    return output
