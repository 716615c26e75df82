"""Two models, or more, on the same questions: answered, judged, compared; and whether the base answers at all.

In: views of models (the base, the edited, controls), questions by axis, held-back general pairs, a judge, and one of
coherence. Out: `generations.jsonl`, `verdicts.jsonl` and the `axes`, `controls`, `facets`, `style`, `phrases`, `judge`
and `warnings` parts of `results.json` (docs/method.md, docs/axes.md).

A base model without a chat template, or one whose answers are mostly broken, gives warnings, each {"kind", "text"},
that come before anything else is said, and the reason why nothing is read from such answers ("no change" in them is not
a finding). Signals, cheapest first: no chat template; answers that say little over and over, or the same to nearly
every question; a coherence rate whose 95% interval (Wilson's) lies below one half, by the judge of coherence, measured
on such answers or not (to be wrong costs a reading). Left out: how the edited model came about; empty answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from scipy import stats

from spin_llm.evaluate.answers import Evaluation, Served, answers, judge_rows, say_missing
from spin_llm.evaluate.axes import answered_axis, facet_rates, likelihood_axes, rate_axis, with_holm
from spin_llm.evaluate.likelihood import Likelihoods, View, compare_likelihoods
from spin_llm.evaluate.wording import by_axis, wording_of, words
from spin_llm.files import write_jsonl
from spin_llm.judges.quality.labelled import limits
from spin_llm.judges.quality.reading import Asked, Reading, answers_words, coherence_reading, reading
from spin_llm.judges.verdict import COHERENCE, Judge, remembering
from spin_llm.progress import SILENT, Console
from spin_llm.results.file import Results, Warned, written
from spin_llm.results.judged import AnswersOf, JudgeSummary
from spin_llm.results.measured import ANSWERED, BASE, EDITED, AxisResult, Control
from spin_llm.results.rows import GENERATIONS, VERDICTS, Answer, VerdictRow, hashes_of

MOSTLY = 0.5
NEARLY_ALL = 0.8  # of the answers being one: a model may refuse much in one set phrase, but not benign questions too
ENOUGH = 8  # answers, to say that they are all one
GRAM, LEAST_DISTINCT, LEAST_LETTERS = 4, 1 / 3, 40
NO_TEMPLATE, BROKEN, ONE_ANSWER = "no chat template", "incoherent answers", "one answer"
UNTUNED = "a base model: it has no chat template"
INCOHERENT = "the base's answers are mostly incoherent"
Warnings = list[Warned]


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


def warn_untuned(name: str) -> str:
    """What is said of a model without a chat template, before anything is done with it."""
    return (
        f"{name} has no chat template: it is a base model, or its folder lacks the template. It continues a text "
        "rather than answers it, and what is said of its answers means little"
    )


def warnings_of(answers: Sequence[str], coherent: Sequence[int | None] = (), *, untuned: bool = False) -> Warnings:
    """What must be said first of a model: of its `answers` (one a question, over all axes), of verdicts on the
    coherence of some of them, and of whether it has no chat template."""
    found = []
    if untuned:
        text = "No chat template: this is a base model, which continues a text rather than answers a question."
        found.append(Warned(NO_TEMPLATE, text))
    said = [answer for answer in answers if answer.strip()]
    repeating = sum(map(repeats, said))
    if said and repeating > MOSTLY * len(said):
        text = f"{repeating} of {len(said)} answers of the base model say little over and over: they are not answers."
        found.append(Warned(BROKEN, text))
    if len(said) >= ENOUGH:
        common, times = Counter(answer.strip() for answer in said).most_common(1)[0]
        if times >= NEARLY_ALL * len(said):
            shortened = common if len(common) <= 60 else common[:57] + "..."
            text = f"The base model gives one answer to {times} of {len(said)} questions: {shortened!r}."
            found.append(Warned(ONE_ANSWER, text))
    judged = [verdict for verdict in coherent if verdict is not None]
    if judged and stats.binomtest(sum(judged), len(judged)).proportion_ci(method="wilson").high < MOSTLY:
        text = (
            f"Most answers of the base model are incoherent: the judge of coherence calls {sum(judged)} of "
            f"{len(judged)} coherent."
        )
        found.append(Warned(BROKEN, text))
    return found


def why_unreadable(warnings: Sequence[Warned], coherence_read: bool) -> str:
    """Why verdicts on such answers are not read; "" when they are. A model without a chat template whose answers are
    not found broken by a judge that was measured on such answers (`coherence_read`) is read."""
    kinds = {one.kind for one in warnings}
    if BROKEN in kinds or ONE_ANSWER in kinds:
        return INCOHERENT if BROKEN in kinds else "the base gives one answer to nearly all questions"
    return UNTUNED if NO_TEMPLATE in kinds and not coherence_read else ""


def repeats(answer: str) -> bool:
    """Whether an answer says little over and over: a third or less of its pieces of four characters are distinct, or
    it is one word five times and more."""
    text = " ".join(answer.split())
    if len(text) >= LEAST_LETTERS:
        grams = [text[start : start + GRAM] for start in range(len(text) - GRAM + 1)]
        return len(set(grams)) <= LEAST_DISTINCT * len(grams)
    return len(words(text)) >= 5 and len(set(words(text))) == 1


def say_warnings(warnings: Warnings, console: Console, said: Warnings | None = None) -> Warnings:
    """Say each warning that was not `said` yet, and give all."""
    for warning in warnings:
        if warning not in (said or []):
            console.say(f"warning: {warning.text}")
    return warnings


def readings_of(
    judge: Judge, coherence: Judge | None, axes: Sequence[str], asked: Asked, warnings: Warnings
) -> dict[str, Reading]:
    """By axis the judge's quality on answers like these, and why its verdicts are not read."""
    found = {axis: reading(judge, axis, asked) for axis in axes if axis != COHERENCE}
    broken = why_unreadable(warnings, bool(coherence and not coherence_reading(coherence, asked).why_not))
    found = {axis: replace(one, why_not=one.why_not or broken) for axis, one in found.items()}
    return {**found, **({COHERENCE: coherence_reading(coherence, asked)} if coherence and COHERENCE in axes else {})}


def judge_record(judge: Judge, readings: Mapping[str, Reading], asked: Asked) -> JudgeSummary:
    """The `judge` part of results.json: its quality where it applies, and where else it was measured."""
    return JudgeSummary(
        name=judge.name,
        label=judge.label,
        limits=limits(judge),
        quality={axis: found.quality for axis, found in readings.items() if found.quality},
        answers=AnswersOf(asked.family, dict(asked.sources)),
        elsewhere={
            axis: places
            for axis, found in readings.items()
            if not found.quality and (places := list(dict.fromkeys(map(answers_words, judge.quality.get(axis, ())))))
        },
    )
