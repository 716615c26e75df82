"""Two models, or more, on the same questions: answered, judged, compared.

In: views of models (the base, the edited, controls), questions by axis, held-back general pairs, a judge, and one of
coherence. Out: `generations.jsonl`, `verdicts.jsonl` and the `axes`, `controls`, `facets`, `style`, `phrases` and
`judge` parts of `results.json` (docs/method.md, docs/axes.md). Left out: how the edited model came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from spin_llm.evaluate.answers import Evaluation, Served, answers, judge_rows, say_missing
from spin_llm.evaluate.axes import answered_axis, facet_rates, likelihood_axes, rate_axis, with_holm
from spin_llm.evaluate.condition import Warnings, judge_record, readings_of, say_warnings, warnings_of
from spin_llm.evaluate.likelihood import Likelihoods, View, compare_likelihoods
from spin_llm.evaluate.wording import by_axis, wording_of
from spin_llm.files import write_jsonl
from spin_llm.judges.quality.reading import Asked
from spin_llm.judges.verdict import COHERENCE, Judge, remembering
from spin_llm.progress import SILENT, Console
from spin_llm.results.file import Results, written
from spin_llm.results.measured import ANSWERED, BASE, EDITED, AxisResult, Control
from spin_llm.results.rows import GENERATIONS, VERDICTS, Answer, VerdictRow, hashes_of


def evaluate(
    views: Mapping[str, View | Served],
    evaluation: Evaluation,
    judge: Judge,
    folder: Path,
    *,
    coherence: Judge | None = None,
    console: Console = SILENT,
) -> Results:
    """Answer, judge and compare.

    `views` has `base` first, then `edited`, then any controls, each against the base. `coherence` judges that axis,
    which is left out without it; perplexity and kl are left out without general pairs, which a model behind a URL
    cannot be given. Writes generations.jsonl and verdicts.jsonl into `folder`; unfinished answers are kept under
    `folder`/progress and taken up again. Returns the measured part of results.json; how many weights a control has is
    not known here (0).
    """
    if list(views)[:2] != [BASE, EDITED]:
        raise ValueError(f"views must start with {BASE!r} and {EDITED!r}, not {list(views)[:2]}")
    rows: list[Answer] = []
    said: Warnings = []
    for name, view in views.items():
        rows += answers(name, view, evaluation, folder, console=console)
        said = say_warnings(warnings_of([row.answer for row in rows]), console) if name == BASE else said
    write_jsonl(folder / GENERATIONS, map(vars, rows))
    kept = remembering(judge, folder / "progress" / "judged.jsonl")
    verdicts = judge_rows(kept, rows, coherence=coherence, console=console)
    write_jsonl(folder / VERDICTS, map(written, verdicts))
    say_missing(verdicts, console)
    say_warnings(base_warnings(verdicts, rows, evaluation.asked), console, said)
    likelihoods: dict[str, Likelihoods | None] = dict.fromkeys(list(views)[1:])
    for name in likelihoods if evaluation.general else ():
        base, edited = cast(View, views[BASE]), cast(View, views[name])
        with console.bar(f"perplexity, {name}", len(evaluation.general)) as advance:
            likelihoods[name] = compare_likelihoods(base, edited, evaluation.general, progress=advance)
    asked, seed = evaluation.asked, evaluation.seed
    found = measured(verdicts, rows, likelihoods, judge, coherence=coherence, asked=asked, seed=seed)
    return replace(found, files=hashes_of(folder, GENERATIONS, VERDICTS))


def measured(
    verdicts: Sequence[VerdictRow],
    generations: Sequence[Answer],
    likelihoods: Mapping[str, Likelihoods | None],
    judge: Judge,
    *,
    coherence: Judge | None = None,
    asked: Asked = Asked(),  # noqa: B008 (frozen)
    seed: int = 0,
) -> Results:
    """The measured part of results.json from answers, verdicts and losses."""
    warnings = base_warnings(verdicts, generations, asked)
    readings = readings_of(judge, coherence, list(dict.fromkeys(row.axis for row in verdicts)), asked, warnings)

    def axes(name: str) -> dict[str, AxisResult]:
        found = {axis: rate_axis(axis, verdicts, name, judge.label, one, seed=seed) for axis, one in readings.items()}
        losses = likelihoods[name]
        found[ANSWERED] = answered_axis(by_axis(generations, BASE, name))
        return with_holm({**found, **(likelihood_axes(losses, seed=seed) if losses else {})})

    style, phrases = wording_of(by_axis(generations, BASE, EDITED), seed=seed)
    return Results(
        axes=axes(EDITED),
        controls={name: Control(weights=0, axes=axes(name)) for name in likelihoods if name != EDITED},
        facets=facet_rates(verdicts, generations),
        style=style,
        phrases=phrases,
        judge=judge_record(judge, readings, asked),
        warnings=warnings,
    )


def base_warnings(verdicts: Sequence[VerdictRow], generations: Sequence[Answer], asked: Asked) -> Warnings:
    """What must be said first of the base model."""
    coherent = [row.verdict for row in verdicts if (row.axis, row.model) == (COHERENCE, BASE)]
    return warnings_of([row.answer for row in generations if row.model == BASE], coherent, untuned=asked.untuned)
