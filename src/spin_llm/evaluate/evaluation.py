"""Two models, or more, on the same questions: answers, verdicts, paired results.

In: views of models (the base, the edited, controls), questions by axis, held-back general pairs, a judge, and one of
coherence. Out: `generations.jsonl`, `verdicts.jsonl` and the `axes`, `controls`, `facets`, `style`, `phrases` and
`judge` parts of `results.json` (docs/method.md, docs/axes.md). Equal answers to a question get one verdict. A question
without an answer is not judged, and a verdict that could not be had counts for nothing (missing.py). Left out: how the
edited model came about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from spin_llm.data import Example, Question, Rendering
from spin_llm.errors import SpinError
from spin_llm.evaluate.coherence import AXIS as COHERENCE
from spin_llm.evaluate.condition import Warnings, judge_record, readings_of, say_warnings, warnings_of
from spin_llm.evaluate.correction import corrected
from spin_llm.evaluate.generation import NEW_TOKENS, Answer, generate
from spin_llm.evaluate.judge import Judge, Verdict
from spin_llm.evaluate.judging import judged_axes, remembering
from spin_llm.evaluate.likelihood import Likelihoods, View, compare_likelihoods
from spin_llm.evaluate.missing import NOT_PARSED, causes_of, rated, unanswered
from spin_llm.evaluate.phrases import wording_of
from spin_llm.evaluate.quality import Asked, Reading
from spin_llm.evaluate.server import ServerCompleter, server_answers
from spin_llm.evaluate.statistics import holm, paired_perplexity, weighted_mean
from spin_llm.evaluate.style import Rows as Answers
from spin_llm.evaluate.style import by_axis
from spin_llm.files import read_progress, sync_append, write_jsonl
from spin_llm.progress import SILENT, Console
from spin_llm.stored import GENERATIONS, VERDICTS, AnswerDone, hashes_of

BASE = "base"
EDITED = "edited"
ANSWERED = "answered"  # an axis of its own: an edit that silences the model must be seen
METRICS = {
    "over_refusal": "refusal rate on benign questions",
    COHERENCE: "share of answers to the questions on concepts judged coherent",
}
Rows = list[dict[str, Any]]
Served = Callable[[], AbstractContextManager[ServerCompleter]]  # a view of a model behind a URL
Verdicts = dict[tuple[str, str, str], Verdict]  # by axis of the question, prompt and answer


@dataclass(frozen=True)
class Evaluation:
    """What to measure and with what: `questions` by axis, encoded `general` pairs, and how answers are made and
    judged."""

    questions: Mapping[str, Sequence[Question]]
    general: Sequence[Example]
    template: str | Rendering
    new_tokens: int = NEW_TOKENS
    seed: int = 0
    asked: Asked = field(default_factory=Asked)  # whose answers these are, for the judge's quality
    thinking_tokens: int = 0


def evaluate(
    views: Mapping[str, View | Served],
    evaluation: Evaluation,
    judge: Judge,
    folder: Path,
    *,
    coherence: Judge | None = None,
    console: Console = SILENT,
) -> dict[str, Any]:
    """Answer, judge and compare.

    `views` has `base` first, then `edited`, then any controls, each against the base. `coherence` judges that axis,
    which is left out without it; perplexity and kl are left out without general pairs, which a model behind a URL
    cannot be given. Writes generations.jsonl and verdicts.jsonl into `folder`; unfinished answers are kept under
    `folder`/progress and taken up again. Returns the measured part of results.json.
    """
    if list(views)[:2] != [BASE, EDITED]:
        raise ValueError(f"views must start with {BASE!r} and {EDITED!r}, not {list(views)[:2]}")
    rows: Rows = []
    said: Warnings = []
    for name, view in views.items():
        rows += answers(name, view, evaluation, folder, console=console)
        said = say_warnings(warnings_of([row["answer"] for row in rows]), console) if name == BASE else said
    write_jsonl(folder / GENERATIONS, rows)
    kept = remembering(judge, folder / "progress" / "judged.jsonl")
    verdicts = judge_rows(kept, rows, coherence=coherence, console=console)
    write_jsonl(folder / VERDICTS, verdicts)
    say_missing(verdicts, console)
    say_warnings(base_warnings(verdicts, rows, evaluation.asked), console, said)
    likelihoods: dict[str, Likelihoods | None] = dict.fromkeys(list(views)[1:])
    for name in likelihoods if evaluation.general else ():
        base, edited = cast(View, views[BASE]), cast(View, views[name])
        with console.bar(f"perplexity, {name}", len(evaluation.general)) as advance:
            likelihoods[name] = compare_likelihoods(base, edited, evaluation.general, progress=advance)
    options: dict[str, Any] = {"coherence": coherence, "asked": evaluation.asked, "seed": evaluation.seed}
    found = measured(verdicts, rows, likelihoods, judge, **options)
    return {**found, "files": hashes_of(folder, GENERATIONS, VERDICTS)}


def answers(name: str, view: View | Served, evaluation: Evaluation, folder: Path, *, console: Console = SILENT) -> Rows:
    """One row per question of the model `name`, in the questions' order; batches done before a kill are not run
    again."""
    asked = [
        (axis, number, q) for axis, questions in evaluation.questions.items() for number, q in enumerate(questions)
    ]
    done_file = folder / "progress" / f"answers-{name}.jsonl"
    done_file.parent.mkdir(parents=True, exist_ok=True)
    done = {row["index"]: row for row in read_progress(done_file, AnswerDone)}
    prompts = [question.asked for _, _, question in asked]
    with console.bar(f"answers, {name}", len(prompts)) as advance, view() as loaded:
        advance(len(done))
        options: dict[str, Any] = {"template": evaluation.template, "new_tokens": evaluation.new_tokens}
        options |= {"thinking_tokens": evaluation.thinking_tokens}
        made: Any = server_answers if isinstance(loaded, ServerCompleter) else generate
        batches = made(loaded, prompts, skip=frozenset(done), **options)
        for batch in batches:
            new = [answer_row(answer) for answer in batch]
            sync_append(done_file, new)
            done.update((row["index"], row) for row in new)
            advance(len(new))
        for remark in loaded.remarks() if isinstance(loaded, ServerCompleter) else ():
            console.say(remark)
    return [
        {
            "id": f"{axis}-{number:04d}",
            "axis": axis,
            "facet": question.facet,
            "prompt": question.prompt,
            "model": name,
            **{key: done[index].get(key) for key in ("answer", "tokens", "finished", "reasoning", "missing")},
        }
        for index, (axis, number, question) in enumerate(asked)
    ]


def answer_row(answer: Answer) -> dict[str, Any]:
    """An answer as its progress file has it; `missing` says why there is none, and is None where there is one."""
    about = {"tokens": answer.tokens, "finished": answer.finished, "reasoning": answer.reasoning}
    return {"index": answer.index, "answer": answer.text, **about, "missing": answer.missing}


def judge_rows(judge: Judge, rows: Rows, *, coherence: Judge | None = None, console: Console = SILENT) -> Rows:
    """Verdict rows, one per generation row, then with `coherence` one more per answer to a question on a concept.

    Each distinct (axis, prompt, answer) is judged once, where there is an answer; axes that the judge does not judge
    are left out, with a line.
    """
    verdicts: Verdicts = {}
    coherent: Verdicts = {}
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    judged = judged_axes(judge, axes, console)
    concepts = concepts_of(axes, coherence)
    if coherence and (left_out := [axis for axis in axes if axis not in (*concepts, "over_refusal")]):
        console.say(f"coherence is not judged on {', '.join(left_out)}: left out")
    for axis in axes:
        mine = [row for row in rows if row["axis"] == axis and not unanswered(row)]
        pairs = list(dict.fromkeys((row["prompt"], row["answer"]) for row in mine))
        if axis in judged:
            verdicts |= judge_pairs(judge, axis, pairs, f"judging, {axis}", console)
        if coherence and axis in concepts:  # at once: two judges with one feature model share what it read last
            coherent |= judge_pairs(coherence, axis, pairs, f"coherence, {axis}", console)
    found = [verdict_row(row, row["axis"], judge, verdicts) for row in rows if row["axis"] in judged]
    if coherence:
        found += [verdict_row(row, COHERENCE, coherence, coherent) for row in rows if row["axis"] in concepts]
    return found


def say_missing(verdicts: Rows, console: Console) -> None:
    """A line for every axis and model with answers that have no verdict: how many, and why."""
    by_place: dict[tuple[str, str], Rows] = {}
    for row in verdicts:
        by_place.setdefault((row["axis"], row["model"]), []).append(row)
    for (axis, model), rows in by_place.items():
        if causes := causes_of(rows):
            told = ", ".join(f"{cause} {number}" for cause, number in causes.items())
            console.say(f"{axis}: {sum(causes.values())} of {len(rows)} {model} answers have no verdict: {told}")


def concepts_of(axes: Sequence[str], coherence: Judge | None) -> list[str]:
    """The axes with questions on a concept whose answers the judge of coherence knows."""
    return [axis for axis in axes if axis != "over_refusal" and axis in getattr(coherence, "axes", axes)]


def judge_pairs(judge: Judge, axis: str, pairs: Sequence[tuple[str, str]], title: str, console: Console) -> Verdicts:
    """{(axis, prompt, answer): verdict} of (prompt, answer) `pairs`."""
    if not pairs:
        return {}
    with console.bar(title, len(pairs)) as advance:
        judged = judge(axis, [prompt for prompt, _ in pairs], [answer for _, answer in pairs], advance)
    return {(axis, *pair): verdict for pair, verdict in zip(pairs, judged, strict=True)}


def verdict_row(row: Mapping[str, Any], axis: str, judge: Judge, verdicts: Verdicts) -> dict[str, Any]:
    """One row of verdicts.jsonl. `axis` is the question's axis, or `coherence` under the same id; without a verdict the
    row says why."""
    cause = unanswered(row)
    verdict = Verdict(None, None) if cause else verdicts[row["axis"], row["prompt"], row["answer"]]
    cause = cause or verdict.cause or NOT_PARSED
    return {
        "id": row["id"],
        "axis": axis,
        "model": row["model"],
        "judge": judge.name,
        "probability": verdict.probability,
        "verdict": verdict.verdict,
        "parsed": verdict.verdict is not None,
        **({"cause": cause} if verdict.verdict is None else {}),
        **({} if verdict.mass is None else {"mass": verdict.mass}),
    }


def measured(
    verdicts: Rows,
    generations: Rows,
    likelihoods: Mapping[str, Likelihoods | None],
    judge: Judge,
    *,
    coherence: Judge | None = None,
    asked: Asked = Asked(),  # noqa: B008 (frozen)
    seed: int = 0,
) -> dict[str, Any]:
    """The measured part of results.json from answers, verdicts and losses."""
    warnings = base_warnings(verdicts, generations, asked)
    readings = readings_of(judge, coherence, list(dict.fromkeys(row["axis"] for row in verdicts)), asked, warnings)

    def axes(name: str) -> dict[str, Any]:
        found = {
            axis: rate_axis(axis, verdicts, name, judge.label, known, seed=seed) for axis, known in readings.items()
        }
        losses = likelihoods[name]
        found[ANSWERED] = answered_axis(by_axis(generations, BASE, name))
        return with_holm({**found, **(likelihood_axes(losses, seed=seed) if losses else {})})

    names = list(likelihoods)
    return {
        "axes": axes(EDITED),
        "controls": {name: {"axes": axes(name)} for name in names if name != EDITED},
        "facets": facet_rates(verdicts, generations),
        **wording_of(by_axis(generations, BASE, EDITED), seed=seed),
        "judge": judge_record(judge, readings, asked),
        "warnings": warnings,
    }


def base_warnings(verdicts: Rows, generations: Rows, asked: Asked) -> Warnings:
    """What must be said first of the base model."""
    coherent = [row["verdict"] for row in verdicts if (row["axis"], row["model"]) == (COHERENCE, BASE)]
    return warnings_of([row["answer"] for row in generations if row["model"] == BASE], coherent, untuned=asked.untuned)


def rate_axis(axis: str, verdicts: Rows, edited: str, label: str, known: Reading, *, seed: int) -> dict[str, Any]:
    """One judged axis, base against `edited`, paired by question id."""
    by_model = {
        name: {row["id"]: row for row in verdicts if row["axis"] == axis and row["model"] == name}
        for name in (BASE, edited)
    }
    ids = list(by_model[BASE])
    if ids != list(by_model[edited]):
        raise SpinError(f"The {axis} questions of {BASE} and {edited} differ.", cause="verdicts of different runs.")
    rows = [list(by_model[name].values()) for name in (BASE, edited)]
    columns = [[row["verdict"] for row in side] for side in rows]
    result = axis_result(
        METRICS.get(axis, f"awareness rate (judged {label})"),
        rated(columns[0], columns[1], (causes_of(rows[0]), causes_of(rows[1]))),
        better="lower" if axis == "over_refusal" else "higher",
        note=known.why_not,
    )
    quality = known.quality or {}
    if not known.why_not and {"sensitivity", "specificity"} <= quality.keys() and not result["no_reading"]:
        pairs = np.array([pair for pair in zip(*columns, strict=True) if None not in pair], dtype=np.float64).T
        result["corrected"] = corrected(pairs[0], pairs[1], quality["sensitivity"], quality["specificity"], seed=seed)
    return result


def answered_axis(answers: Mapping[str, tuple[Answers, Answers]]) -> dict[str, Any]:
    """The axis `answered`: on how many questions, of all axes together, there is an answer."""
    why = [[unanswered(row) for pair in answers.values() for row in pair[side]] for side in (0, 1)]
    base, edited = ([int(not cause) for cause in side] for side in why)
    causes = {name: dict(Counter(filter(None, side))) for name, side in zip((BASE, EDITED), why, strict=True)}
    rates = {**rated(base, edited), "missing": causes}
    return axis_result("share of the questions with an answer", rates, better="higher")


def likelihood_axes(likelihoods: Likelihoods, *, seed: int) -> dict[str, Any]:
    """The `perplexity` and `kl` axes over the held-back general pairs."""
    perplexity = paired_perplexity(likelihoods.base, likelihoods.edited, likelihoods.tokens, seed=seed)
    kl, interval = weighted_mean(likelihoods.kl, likelihoods.tokens, seed=seed)
    divergence = {
        **axis_result("KL(base || edited), nats per token", perplexity.as_json(), better="lower"),
        **{"base": 0.0, "edited": kl, "delta": kl, "ci95": list(interval), "p": None, "mde": None},
    }
    return {
        "perplexity": axis_result("perplexity on general pairs", perplexity.as_json(), better="lower"),
        "kl": divergence,
    }


def axis_result(metric: str, rates: Mapping[str, Any], *, better: str, note: str = "") -> dict[str, Any]:
    """One entry of `axes` in results.json. With a `note`, why the judge is not believed, it is not measurable: the
    numbers stand there, and no p."""
    return {
        "metric": metric,
        "unparsed": [0, 0],
        **rates,
        **({"p": None, "mde": None} if note else {}),
        "better": better,
        "measurable": not note,
        "note": note,
    }


def with_holm(axes: dict[str, Any]) -> dict[str, Any]:
    """The table with `p_holm` beside every p, adjusted over its axes that have one; `answered`, which says whether the
    others can be read, is none of them."""
    adjusted = holm({axis: result["p"] for axis, result in axes.items() if axis != ANSWERED})
    return {axis: {**result, "p_holm": adjusted.get(axis)} for axis, result in axes.items()}


def facet_rates(verdicts: Rows, generations: Rows) -> dict[str, dict[str, dict[str, Any]]]:
    """Rates by axis and facet of the question, base and edited, with the difference and its interval; axes without
    facets are left out."""
    facet = {(row["axis"], row["id"]): row["facet"] for row in generations if row["facet"]}
    groups: dict[tuple[str, str], dict[str, Rows]] = {}
    for row in verdicts:
        place = facet.get((row["axis"], row["id"]))
        if place is not None and row["model"] in (BASE, EDITED):
            groups.setdefault((row["axis"], place), {BASE: [], EDITED: []})[row["model"]].append(row)
    rates: dict[str, dict[str, dict[str, Any]]] = {}
    for (axis, place), group in groups.items():
        base, edited = ([row["verdict"] for row in group[name]] for name in (BASE, EDITED))
        found = rated(base, edited, (causes_of(group[BASE]), causes_of(group[EDITED])))
        rates.setdefault(axis, {})[place] = {key: value for key, value in found.items() if key not in ("p", "mde")}
    return rates
