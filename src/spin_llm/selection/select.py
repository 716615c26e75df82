"""Which weights to suppress, from kept scores alone; no model needed.

In: the scores of the concepts and of what is protected, a recipe. Out: `Selection`: flat indices by matrix, sorted. The
rules are in rules/. Left out: controls (controls.py), and what is done to the chosen weights (patch/).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from spin_llm.errors import SpinError
from spin_llm.results.edited import Recipe, Regions
from spin_llm.scores import MatrixScores, Scores, ScoreSet, count
from spin_llm.selection.rules import KNOWN, Rule
from spin_llm.selection.tops import GRANULARITIES, regions, targeted, top_sets


@dataclass(frozen=True)
class Selection:
    """Chosen weights: sorted flat `indices` (int64) by matrix name, empty matrices left out; the `recipe` that chose
    them, its `protect_ratio` a number; all matrices that were targeted; how many `candidates` there were, and how many
    of them all concepts `shared`."""

    indices: dict[str, torch.Tensor]
    recipe: Recipe
    places: dict[str, MatrixScores]
    candidates: int = 0
    shared: int = 0

    @property
    def weights(self) -> int:
        return sum(indices.numel() for indices in self.indices.values())

    @property
    def targeted_weights(self) -> int:
        return sum(place.size for place in self.places.values())


def select(scores: ScoreSet, recipe: Recipe, *, allow_empty: bool = False) -> Selection:
    """Apply a recipe to every targeted matrix, or to those of its layers from the first to the last of two.

    A `protect_ratio` of None means the same as `ratio`; an `at_least` of None all concepts. `fractions` (by concept, 1
    where not named) multiply a concept's ratio, at most to what its score file keeps; for `signed` its margin. Raises
    SpinError for an unknown rule, a ratio outside (0, 1) or above what the score files keep, score files that do not
    belong together, and (unless `allow_empty`) a selection without a single weight, naming the smallest ratio that
    selects one.
    """
    rule = _rule(recipe)
    scores = rule.spared(scores)
    _check(scores, recipe)
    names = targeted(scores, recipe.target, recipe.layers)
    made = replace(recipe, protect_ratio=recipe.spares)
    ranked = rule.ranked(scores, names, made)
    indices = rule.choose(ranked)
    if not indices and not allow_empty:
        raise _nothing_selected(rule, scores, names, recipe)
    return Selection(indices, made, {name: scores.first.matrices[name] for name in names}, *rule.counts(ranked))


def overlap(selection: Selection, scores: ScoreSet) -> Regions:
    """The regions of the top sets that `selection` was made from: names of the concepts and protected sets, sizes."""
    recipe = selection.recipe
    sets = {
        name: top_sets(part, list(selection.places), ratio, recipe.granularity)
        for side, ratio in ((scores.concepts, recipe.ratio), (scores.protected, recipe.spares))
        for name, part in side.items()
    }
    return Regions(list(scores.concepts), list(scores.protected), regions(sets))


def _rule(recipe: Recipe) -> Rule:
    """SpinError for a rule that there is not, or a granularity by which it does not choose."""
    asked, rule = recipe.granularity, KNOWN.get(recipe.rule)
    if asked not in GRANULARITIES:
        raise SpinError(f"Unknown granularity {asked!r}.", change=f"give {', '.join(GRANULARITIES)}.")
    if rule is None:
        raise SpinError(f"Unknown rule {recipe.rule!r}.", change=f"--rule takes one of {', '.join(KNOWN)}.")
    if asked not in rule.granularities:
        *first, last = rule.granularities
        what = f"does not choose by {asked}" if first else f"is defined {last} by {last}"
        allowed = f"{', '.join(first)} or {last}" if first else last
        raise SpinError(f"The rule {rule.name!r} {what}.", change=f"give --granularity {allowed}.")
    return rule


def _check(scores: ScoreSet, recipe: Recipe) -> None:
    """SpinError for what the scores cannot answer, whatever the rule."""
    if not scores.concepts:
        raise SpinError("There is no concept to select for.")
    for option, value in (("--ratio", recipe.ratio), ("--protect-ratio", recipe.spares)):
        if not 0 < value < 1:
            raise SpinError(f"{option} {value} is out of range.", change=f"{option} is a fraction above 0 and below 1.")
    for side, ratio in ((scores.concepts, recipe.ratio), (scores.protected, recipe.spares)):
        for name, part in side.items():
            _check_kept(name, part, ratio, recipe.granularity)
    parts = list(scores.everything.values())
    for key in ("model", "target", "selector"):
        if len({getattr(part.info, key) for part in parts}) > 1:
            raise SpinError(f"The score files do not belong together: their {key} differs.", change="score them again.")
    if any(part.shapes != parts[0].shapes for part in parts):
        raise SpinError("The score files do not belong together: their matrices differ.", change="score them again.")
    if recipe.at_least is not None and not 1 <= recipe.at_least <= (most := len(scores.concepts)):
        raise SpinError(f"--at-least {recipe.at_least} is out of range.", change=f"give 1 to {most}, the concepts.")


def _check_kept(name: str, scores: Scores, needed: float, granularity: str) -> None:
    kept, kept_by = scores.info.keep, scores.info.granularity
    if needed > kept:
        raise SpinError(
            f"The scores of {name!r} keep the top {kept:g} of each matrix; a ratio of {needed:g} needs more.",
            change=f"score again with --keep {needed:g}, or take a smaller ratio.",
        )
    if (kept_by == "row") != (granularity == "row"):
        raise SpinError(
            f"The scores of {name!r} were kept by {kept_by}; a selection by {granularity} needs others.",
            change=f"score again with --granularity {granularity}.",
        )


def _nothing_selected(rule: Rule, scores: ScoreSet, names: Sequence[str], recipe: Recipe) -> SpinError:
    what, ratio = f"The rule {rule.name!r} at ratio {recipe.ratio:g}", recipe.ratio
    if recipe.granularity != "matrix" or rule.needs:
        return SpinError(f"{what} by {recipe.granularity} selects no weight at all.")
    sizes = [scores.first.matrices[name].size for name in names]
    none = f"floor({ratio:g} x {max(sizes):,} weights) is 0 in every matrix."
    apart = "no weight is in every concept's top set and outside the protected one."
    cause = none if max(count(ratio, size) for size in sizes) == 0 else apart
    change = "take a larger ratio."
    if rule.smallest:
        smallest = rule.smallest(scores, names, recipe)
        change = f"the smallest ratio that selects anything here is {smallest:g}." if smallest else ""
    return SpinError(f"{what} selects no weight at all.", cause=cause, change=change or "no kept ratio selects any.")
