"""Two models, or more, on the same questions: answers, verdicts, paired results.

In: views of models (the base, the edited, controls), questions by axis, held-back general pairs, a judge. Out:
`generations.jsonl`, `verdicts.jsonl` and the `axes`, `controls`, `facets` and `judge` parts of `results.json`
(docs/method.md). Equal answers to a question get one verdict. A verdict that could not be had counts as not aware (not
refused), and is counted beside the rate. Left out: how the edited model came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spin_llm.data import Example, Question
from spin_llm.errors import SpinError
from spin_llm.evaluate.generation import NEW_TOKENS, generate
from spin_llm.evaluate.judge import Judge, Verdict
from spin_llm.evaluate.likelihood import Likelihoods, View, compare_likelihoods
from spin_llm.evaluate.statistics import Paired, paired_perplexity, paired_rates, weighted_mean
from spin_llm.files import read_jsonl, sync_append, write_jsonl
from spin_llm.progress import SILENT, Console

BASE = "base"
EDITED = "edited"
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Evaluation:
    """What to measure and with what: `questions` by axis, encoded `general` pairs, and how answers are made and
    judged."""

    questions: Mapping[str, Sequence[Question]]
    general: Sequence[Example]
    template: str
    new_tokens: int = NEW_TOKENS
    seed: int = 0


def evaluate(
    views: Mapping[str, View], evaluation: Evaluation, judge: Judge, folder: Path, *, console: Console = SILENT
) -> dict[str, Any]:
    """Answer, judge and compare.

    `views` has `base` first, then `edited`, then any controls, each against the base.     Writes generations.jsonl and
    verdicts.jsonl into `folder`; unfinished answers are kept under `folder`/progress and     taken up again. Returns
    the measured part of results.json.
    """
    if list(views)[:2] != [BASE, EDITED]:
        raise ValueError(f"views must start with {BASE!r} and {EDITED!r}, not {list(views)[:2]}")
    rows = [row for name, view in views.items() for row in answers(name, view, evaluation, folder, console=console)]
    write_jsonl(folder / "generations.jsonl", rows)
    verdicts = judge_rows(judge, rows, console=console)
    write_jsonl(folder / "verdicts.jsonl", verdicts)
    likelihoods = {}
    for name in list(views)[1:]:
        with console.bar(f"perplexity, {name}", len(evaluation.general)) as advance:
            likelihoods[name] = compare_likelihoods(views[BASE], views[name], evaluation.general, progress=advance)
    return measured(verdicts, rows, likelihoods, judge, seed=evaluation.seed)


def answers(name: str, view: View, evaluation: Evaluation, folder: Path, *, console: Console = SILENT) -> Rows:
    """One row per question of the model `name`, in the questions' order; batches done before a kill are not run
    again."""
    asked = [
        (axis, number, q) for axis, questions in evaluation.questions.items() for number, q in enumerate(questions)
    ]
    done_file = folder / "progress" / f"answers-{name}.jsonl"
    done_file.parent.mkdir(parents=True, exist_ok=True)
    done = {row["index"]: row for row in _complete_lines(done_file)}
    prompts = [question.prompt for _, _, question in asked]
    with console.bar(f"answers, {name}", len(prompts)) as advance, view() as loaded:
        advance(len(done))
        batches = generate(
            loaded, prompts, template=evaluation.template, new_tokens=evaluation.new_tokens, skip=frozenset(done)
        )
        for batch in batches:
            new = [{"index": a.index, "answer": a.text, "tokens": a.tokens, "finished": a.finished} for a in batch]
            sync_append(done_file, new)
            done.update((row["index"], row) for row in new)
            advance(len(new))
    return [
        {
            "id": f"{axis}-{number:04d}",
            "axis": axis,
            "facet": question.facet,
            "prompt": question.prompt,
            "model": name,
            **{key: done[index][key] for key in ("answer", "tokens", "finished")},
        }
        for index, (axis, number, question) in enumerate(asked)
    ]


def _complete_lines(path: Path) -> Rows:
    """The rows of a progress file; a last line that a kill cut short is dropped from the file."""
    if not path.exists():
        return []
    text = path.read_bytes()
    end = text.rfind(b"\n") + 1
    if end != len(text):
        with path.open("r+b") as file:
            file.truncate(end)
    return read_jsonl(path)


def judge_rows(judge: Judge, rows: Rows, *, console: Console = SILENT) -> Rows:
    """Verdict rows, one per generation row.

    Each distinct (axis, prompt, answer) is judged once.
    """
    verdicts: dict[tuple[str, str, str], Verdict] = {}
    for axis in dict.fromkeys(row["axis"] for row in rows):
        pairs = list(dict.fromkeys((row["prompt"], row["answer"]) for row in rows if row["axis"] == axis))
        with console.bar(f"judging, {axis}", len(pairs)) as advance:
            judged = judge(axis, [prompt for prompt, _ in pairs], [answer for _, answer in pairs], advance)
        verdicts.update(((axis, *pair), verdict) for pair, verdict in zip(pairs, judged, strict=True))
    return [
        {
            "id": row["id"],
            "axis": row["axis"],
            "model": row["model"],
            "judge": judge.name,
            "probability": verdict.probability,
            "verdict": verdict.verdict,
            "parsed": verdict.verdict is not None,
        }
        for row in rows
        for verdict in [verdicts[row["axis"], row["prompt"], row["answer"]]]
    ]


def measured(
    verdicts: Rows, generations: Rows, likelihoods: Mapping[str, Likelihoods], judge: Judge, *, seed: int = 0
) -> dict[str, Any]:
    """The measured part of results.json from verdicts and losses: `axes`, `controls`, `facets`, `judge`."""
    quality = judge.quality()

    def axes(name: str) -> dict[str, Any]:
        rated = {
            axis: rate_axis(axis, verdicts, name, judge.label, quality.get(axis), seed=seed)
            for axis in dict.fromkeys(row["axis"] for row in verdicts)
        }
        return {**rated, **likelihood_axes(likelihoods[name], seed=seed)}

    names = list(likelihoods)
    return {
        "axes": axes(EDITED),
        "controls": {name: {"axes": axes(name)} for name in names if name != EDITED},
        "facets": facet_rates(verdicts, generations),
        "judge": {"name": judge.name, "label": judge.label, "quality": quality},
    }


def rate_axis(
    axis: str, verdicts: Rows, edited: str, label: str, quality: Mapping[str, Any] | None, *, seed: int
) -> dict[str, Any]:
    """One judged axis, base against `edited`, paired by question id."""
    by_model = {
        name: {row["id"]: row["verdict"] for row in verdicts if row["axis"] == axis and row["model"] == name}
        for name in (BASE, edited)
    }
    ids = list(by_model[BASE])
    if ids != list(by_model[edited]):
        raise SpinError(f"The {axis} questions of {BASE} and {edited} differ.", cause="verdicts of different runs.")
    columns = [np.array([by_model[name][key] == 1 for key in ids], dtype=np.float64) for name in (BASE, edited)]
    unparsed = [sum(by_model[name][key] is None for key in ids) for name in (BASE, edited)]
    wrong_way = axis == "over_refusal"
    metric = "refusal rate on benign questions" if wrong_way else f"awareness rate (judged {label})"
    return axis_result(
        metric,
        paired_rates(*columns, seed=seed),
        better="lower" if wrong_way else "higher",
        unparsed=unparsed,
        measurable=bool(quality and quality["measurable"]),
    )


def likelihood_axes(likelihoods: Likelihoods, *, seed: int) -> dict[str, Any]:
    """The `perplexity` and `kl` axes over the held-back general pairs."""
    perplexity = paired_perplexity(likelihoods.base, likelihoods.edited, likelihoods.tokens, seed=seed)
    kl, interval = weighted_mean(likelihoods.kl, likelihoods.tokens, seed=seed)
    divergence = {
        **axis_result("KL(base || edited), nats per token", perplexity, better="lower"),
        **{"base": 0.0, "edited": kl, "delta": kl, "ci95": list(interval), "p": None},
    }
    return {"perplexity": axis_result("perplexity on general pairs", perplexity, better="lower"), "kl": divergence}


def axis_result(
    metric: str, paired: Paired, *, better: str, unparsed: Sequence[int] = (0, 0), measurable: bool = True
) -> dict[str, Any]:
    """One entry of `axes` in results.json."""
    return {
        "metric": metric,
        "n": paired.n,
        "base": paired.base,
        "edited": paired.edited,
        "delta": paired.delta,
        "ci95": list(paired.ci95),
        "p": paired.p,
        "unparsed": list(unparsed),
        "better": better,
        "measurable": measurable,
        "note": "" if measurable else "not measurable with this judge",
    }


def facet_rates(verdicts: Rows, generations: Rows) -> dict[str, dict[str, dict[str, float]]]:
    """Rates by axis and facet of the question, base and edited; axes without facets are left out."""
    facet = {(row["axis"], row["id"]): row["facet"] for row in generations if row["facet"]}
    groups: dict[tuple[str, str], dict[str, list[int]]] = {}
    for row in verdicts:
        place = facet.get((row["axis"], row["id"]))
        if place is not None and row["model"] in (BASE, EDITED):
            group = groups.setdefault((row["axis"], place), {BASE: [], EDITED: []})
            group[row["model"]].append(int(row["verdict"] == 1))
    rates: dict[str, dict[str, dict[str, float]]] = {}
    for (axis, place), group in groups.items():
        means = {name: float(np.mean(values)) for name, values in group.items()}
        rates.setdefault(axis, {})[place] = {"n": len(group[BASE]), **means}
    return rates
