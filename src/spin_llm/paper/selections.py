"""What SPIN's edit is inside the model: how far it makes the concepts' representations depend less on each other, where
its weights live, and whether other ratios, rules, selectors, responses, examples or seeds choose the same.

In: the work, SPIN's selection and scores. Out: the reports of analysis/layers.py on the dependence of the concepts'
representations; what each other selection is, the report of analysis/location.py over all of them, SPIN first. Every
one is at SPIN's ratio unless it says another; scores that other experiments stored are used again. A selection of
nothing is a row that says why. Left out: wording.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from spin_llm.analysis import information_report, location_report
from spin_llm.data import rendering_of
from spin_llm.models import editable_matrices
from spin_llm.paper.arms import Work, make_scores
from spin_llm.paper.experiments import SELECTORS, SPIN_SHOTS
from spin_llm.pipeline.inputs import RunData
from spin_llm.results.paper import Arm, ArmOptions, DependenceRecord, LocationRecord, Measures
from spin_llm.scores import ScoreSet
from spin_llm.selection import Selection, random_like, select

FACTORS = (0.5, 2, 10)  # of SPIN's ratio


def located(arm: Arm, work: Work) -> list[Arm]:
    """The edits to compare with SPIN that need scores of their own: `arm` with one option changed."""
    shots = [number for number in SPIN_SHOTS if number < work.settings.examples]
    changes: dict[str, ArmOptions] = {
        **{f"selector {name}": {"selector": name} for name in SELECTORS if name != work.settings.selector},
        "unaware responses": {"responses": "unaware"},
        **{f"{number} examples": {"examples": number} for number in shots},
        f"seed {work.settings.seed + 1}": {"seed": work.settings.seed + 1},
    }
    return [replace(arm, name=name, options={**arm.options, **change}) for name, change in changes.items()]


def dependence(work: Work, arm: Arm, selection: Selection) -> dict[str, DependenceRecord]:
    """`information_report`s by title: of the edit on both kinds of pairs, and of as many random weights."""
    control = random_like(selection, work.settings.seed)
    return {
        f"{name}, {pairing} pairs": information_report(
            work.model,
            dict(list(work.fitted.concepts.items())[:2]),
            chosen,
            pairing=pairing,
            template=rendering_of(work.settings),
            measures=Measures(seed=work.settings.seed),
            console=work.console,
        )
        for name, chosen, pairing in (
            (arm.name, selection, "shuffled"),
            (arm.name, selection, "framed"),
            ("random", control, "framed"),
        )
    }


def location(work: Work, arm: Arm, selection: Selection, scores: ScoreSet) -> LocationRecord:
    """`location_report` of SPIN's and the other selections; what each is, or why it is empty."""
    selections, about = {arm.name: selection}, {arm.name: f"{selection.recipe.rule}, the edit"}
    for name, other, what in others(work, arm, selection, scores):
        about[name] = what
        if other is not None:
            selections[name] = other
            about[name] += "" if other.weights else ": selects nothing"
    transposed = any(matrix.transposed for matrix in editable_matrices(work.model.model, selection.recipe.target))
    report = location_report(selections, draws=0, transposed=transposed)
    own = location_report({arm.name: selection}, transposed=transposed, seed=work.settings.seed)  # chance is for SPIN's
    return replace(report, about=about, selections={**report.selections, **own.selections})


def others(work: Work, arm: Arm, selection: Selection, scores: ScoreSet) -> Iterator[tuple[str, Selection | None, str]]:
    """(name, selection or None where the scores do not reach so far, what it is)."""
    chosen, recipe = partial(select, allow_empty=True), selection.recipe
    yield "random", random_like(selection, work.settings.seed), "as many weights in each matrix, at random"
    yield "released", chosen(scores, replace(recipe, rule="released")), "the published code's rule"
    # a selection names what is protected also where that follows the ratio
    protect_ratio = None if recipe.protect_ratio == recipe.ratio else recipe.protect_ratio
    for factor in FACTORS:
        ratio = factor * recipe.ratio
        name, kept = f"{factor:g} x the ratio", ratio <= scores.keep
        why = "" if kept else f": not kept, the scores hold the top {scores.keep:g}"
        found = chosen(scores, replace(recipe, ratio=ratio, protect_ratio=protect_ratio)) if kept else None
        yield name, found, f"ratio {ratio:.3g}{why}"
    own = work.scored(work.settings_of(arm)).inputs
    for other in located(arm, work):
        run = work.scored(work.settings_of(other))
        yield other.name, chosen(make_scores(run), recipe), as_told(other.name, own, run.inputs)


def as_told(name: str, own: RunData, data: RunData) -> str:
    """What differs from SPIN's scores; of other examples, how many are SPIN's too."""
    if name.startswith("selector"):
        return "another importance score"
    if name.startswith("unaware"):
        return "the same prompts with malicious responses"
    rows, mine = (
        [(part, pair) for part, pairs in {**one.concepts, **one.protect}.items() for pair in pairs]
        for one in (data, own)
    )
    return f"{len(rows)} examples in all, {sum(row in mine for row in rows)} of them SPIN's"
