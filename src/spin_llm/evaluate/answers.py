"""A model's answers to the questions, resumable, and the verdicts on them, while they are made and again later.

In: a view of a model (or of one behind a URL), questions by axis; a judge, one of coherence. Out: rows of
generations.jsonl (batches that were done before a kill are taken from `progress/`) and of verdicts.jsonl: equal answers
to a question get one verdict, a question without an answer is not judged. Left out: what verdicts amount to (axes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spin_llm.data import Example, Question, Rendering
from spin_llm.evaluate.axes import causes_of
from spin_llm.evaluate.likelihood import View
from spin_llm.files import read_progress, sync_append, write_jsonl
from spin_llm.generation.batches import NEW_TOKENS, generate
from spin_llm.generation.batches import Answer as Made
from spin_llm.generation.server import ServerCompleter, server_answers
from spin_llm.judges.named import load_judge
from spin_llm.judges.quality.reading import Asked
from spin_llm.judges.verdict import COHERENCE, NOT_PARSED, Judge, Verdict, judged_axes, remembering, unanswered
from spin_llm.ownership import owned
from spin_llm.progress import SILENT, Console
from spin_llm.records import is_run
from spin_llm.results.file import written
from spin_llm.results.rows import Answer, ToJudge, VerdictRow, read_rows

Served = Callable[[], AbstractContextManager[ServerCompleter]]  # a view of a model behind a URL
Rows = Sequence[ToJudge] | Sequence[Answer]
Verdicts = dict[tuple[str, str, str], Verdict]  # by axis of the question, prompt and answer


@dataclass(frozen=True)
class Evaluation:
    """What to measure and with what: `questions` by axis, encoded `general` pairs, how answers are made and judged."""

    questions: Mapping[str, Sequence[Question]]
    general: Sequence[Example]
    template: str | Rendering
    new_tokens: int = NEW_TOKENS
    seed: int = 0
    asked: Asked = field(default_factory=Asked)  # whose answers these are, for the judge's quality
    thinking_tokens: int = 0


def answers(
    name: str, view: View | Served, evaluation: Evaluation, folder: Path, *, console: Console = SILENT
) -> list[Answer]:
    """One row per question, in the questions' order; batches done before a kill are not run again."""
    asked = [(axis, place, one) for axis, these in evaluation.questions.items() for place, one in enumerate(these)]
    done_file = folder / "progress" / f"answers-{name}.jsonl"
    done_file.parent.mkdir(parents=True, exist_ok=True)
    done = {answer.index: answer for answer in read_progress(done_file, Made)}
    with console.bar(f"answers, {name}", len(asked)) as advance, view() as loaded:
        advance(len(done))
        made: Any = server_answers if isinstance(loaded, ServerCompleter) else generate
        for batch in made(
            loaded,
            [question.asked for _, _, question in asked],
            template=evaluation.template,
            new_tokens=evaluation.new_tokens,
            thinking_tokens=evaluation.thinking_tokens,
            skip=frozenset(done),
        ):
            sync_append(done_file, map(vars, batch))
            done.update((answer.index, answer) for answer in batch)
            advance(len(batch))
        for remark in loaded.remarks() if isinstance(loaded, ServerCompleter) else ():
            console.say(remark)
    return [
        Answer(
            id=f"{axis}-{number:04d}",
            axis=axis,
            facet=question.facet,
            prompt=question.prompt,
            model=name,
            **{key: value for key, value in vars(done[index]).items() if key != "index"},
        )
        for index, (axis, number, question) in enumerate(asked)
    ]


def judge_rows(
    judge: Judge, rows: Rows, *, coherence: Judge | None = None, console: Console = SILENT
) -> list[VerdictRow]:
    """Verdict rows, one per generation row, then with `coherence` one more per answer to a question on a concept. Each
    distinct (axis, prompt, answer) is judged once, where there is an answer; axes that the judge does not judge are
    left out, with a line."""
    verdicts: Verdicts = {}
    coherent: Verdicts = {}
    axes = list(dict.fromkeys(row.axis for row in rows))
    judged = judged_axes(judge, axes, console)
    concepts = [axis for axis in axes if axis != "over_refusal"] if coherence else []
    if coherence and (left_out := [axis for axis in concepts if axis not in coherence.axes]):
        concepts = [axis for axis in concepts if axis not in left_out]
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
    """One row of verdicts.jsonl; without a verdict it says why. `axis`: the question's, or `coherence` under its id."""
    why = unanswered(row)
    said = Verdict(None, None, cause=why) if why else verdicts[row.axis, row.prompt, row.answer]
    return VerdictRow(
        id=row.id,
        axis=axis,
        model=row.model,
        judge=judge.name,
        probability=said.probability,
        verdict=said.verdict,
        parsed=said.verdict is not None,
        cause=said.cause or NOT_PARSED if said.verdict is None else None,
        mass=said.mass,
    )


def judge_again(
    generations: Path, judge: str, output: Path, *, trust_remote_code: bool = False, console: Console = SILENT
) -> Path:
    """Write the verdict rows of every axis that the judge judges into `output`; say how many have no verdict, and why.
    SpinError when there are none."""
    rows = read_rows(generations, ToJudge)
    with owned(output.parent) if is_run(output.parent) else nullcontext():
        progress = output.with_name(output.name + ".progress")
        kept = remembering(load_judge(judge, trust_remote_code=trust_remote_code), progress)
        verdicts = judge_rows(kept, rows, console=console)
        write_jsonl(output, map(written, verdicts))
        say_missing(verdicts, console)
        progress.unlink(missing_ok=True)
    return output
