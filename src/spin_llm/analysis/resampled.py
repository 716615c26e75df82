"""Would other scoring data have chosen the same weights? The rule, applied again to resampled examples.

In: each set's importances per example at candidate entries (scores/per_example.py), the scores, the selection made of
them. Out: the numbers of stability.json. Each of B resamples draws, for every concept and protected set by itself, as
many examples as it has, with replacement, and the rule selects again at the same ratios:

    Jaccard(A, B) = |A and B| / |A or B|      of the selection with each resample's, and between random halves

What a rule takes tops of are its rankings: every set's scores, or for `signed` the one score that it makes of them. The
candidates are the entries in the top of any ranking at `multiple` times its ratio. That is an approximation: other
entries cannot be selected from a resample. `edge` says when it could matter.

What `signed` needs of entries that are no candidates stays as it is on all examples: the means that it divides by, the
smallest margin that a concept keeps of a matrix, the smallest importance in a matrix's protected top set. They are
means over, and quantiles of, many entries, which single examples hardly move; means over the candidates alone would be
of entries that were chosen for their scores. A factor that is common to the concepts changes no order of gains. Left
out: the second pass over the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from spin_llm.results.edited import Edge, Frequency, Spread, StabilityRecord
from spin_llm.results.recipe import Recipe
from spin_llm.scores import MatrixScores, Scores, ScoreSet
from spin_llm.scores.per_example import PerExample, reweighted
from spin_llm.selection import KNOWN, Rule, Selection, Tops, top_sets
from spin_llm.selection.rules.rule import Rankings

MULTIPLE = 8.0  # of the ratio, for candidates
MOST = 95  # percent of the resamples
Counts = dict[str, tuple[torch.Tensor, torch.Tensor]]  # how often each aware and each unaware example of a set counts


@dataclass(frozen=True)
class Job:
    """A selection, what it was made from (what the rule spares alone), and the importances per example of every concept
    and protected set."""

    selection: Selection
    scores: ScoreSet
    per_example: Mapping[str, PerExample] = field(default_factory=dict)
    multiple: float = MULTIPLE

    @property
    def names(self) -> list[str]:
        return list(self.selection.places)

    @property
    def recipe(self) -> Recipe:
        return self.selection.recipe

    @property
    def rule(self) -> Rule:
        return KNOWN[self.recipe.rule]

    @cached_property
    def held(self) -> Any:
        """What the rule keeps of all examples."""
        return self.rule.held(self.scores, self.names, self.recipe)

    @cached_property
    def rankings(self) -> Rankings:
        """Those of all examples; `signed` has its candidates among what it spares too, as a resample may not."""
        return self.rule.rankings(self.scores, self.names, self.recipe, held=self.held, spare=False)


@dataclass(frozen=True)
class Draw:
    """What one weighting of the examples gives: the chosen weights, and every ranking's top set and scores."""

    chosen: Tops
    tops: Mapping[str, Tops]
    rankings: Rankings


def candidates(
    rankings: Mapping[str, tuple[Scores, float]], names: Sequence[str], granularity: str, multiple: float
) -> Tops:
    """Entries in the top of any (scores, ratio) at `multiple` times the ratio, or of all that was kept where that is
    less: sorted flat indices by matrix name; matrices without any left out."""
    tops = [_wide_top(scores, ratio * multiple, names, granularity) for scores, ratio in rankings.values()]
    found = {name: torch.cat([top[name] for top in tops]).unique() for name in names}
    return {name: indices for name, indices in found.items() if indices.numel()}


def _wide_top(scores: Scores, ratio: float, names: Sequence[str], granularity: str) -> Tops:
    return top_sets(scores, names, min(ratio, scores.info.keep), granularity, decided=False)


def select_again(job: Job, counts: Counts) -> Draw:
    """The selection with each example counted so often."""
    concepts, protected = (
        {name: reweighted(old, job.per_example[name], *counts[name]) for name, old in side.items()}
        for side in (job.scores.concepts, job.scores.protected)
    )
    again = ScoreSet(concepts, protected)
    ranked = job.rule.ranked(again, job.names, job.recipe, held=job.held, decided=False)
    return Draw(job.rule.choose(ranked), ranked.tops, ranked.rankings)


def all_examples(job: Job) -> Counts:
    """Every example once: the selection itself."""
    return {name: (torch.ones(part.examples), torch.ones(part.unaware)) for name, part in job.per_example.items()}


def bootstrap(job: Job, generator: torch.Generator) -> Counts:
    """As many examples of each set as there are, with replacement."""

    def drawn(size: int) -> torch.Tensor:
        return torch.randint(size, (size,), generator=generator).bincount(minlength=size).float()

    return {
        name: (drawn(part.examples), drawn(part.unaware) if part.unaware else torch.ones(0))
        for name, part in job.per_example.items()
    }


def halves(job: Job, generator: torch.Generator) -> tuple[Counts, Counts]:
    """Each set's examples in two random halves."""

    def half(size: int) -> torch.Tensor:
        return (torch.randperm(size, generator=generator) < size // 2).float()

    one = {name: (half(part.examples), half(part.unaware)) for name, part in job.per_example.items()}
    return one, {name: (1 - aware, 1 - unaware) for name, (aware, unaware) in one.items()}


def resampled_selections(
    job: Job, *, resamples: int, seed: int, progress: Callable[[int], None] = lambda done: None
) -> StabilityRecord:
    """Select `resamples` times from bootstrap resamples, and as often from two halves. Sets need two examples each.

    `frequency` is in the order of the patch; `reproduced` is 1 but for rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    original, recipe = _ids(job, job.selection.indices), job.recipe
    own, limits = select_again(job, all_examples(job)), _limits(job)
    everyone: list[torch.Tensor] = []
    edges: list[tuple[float, float]] = []
    split: list[float] = []
    shared = dict.fromkeys(own.tops, 0.0)
    for _ in range(resamples):
        draw = select_again(job, bootstrap(job, generator))
        everyone.append(_ids(job, draw.chosen))
        for name, top in own.tops.items():
            shared[name] += jaccard(_ids(job, top), _ids(job, draw.tops[name]))
        edges.append(_edge(job, draw, limits))
        one, other = (_ids(job, select_again(job, counts).chosen) for counts in halves(job, generator))
        split.append(jaccard(one, other))
        progress(1)
    hits = torch.stack([torch.isin(original, ids) for ids in everyone]).sum(0)
    chosen, times = torch.cat(everyone).unique(return_counts=True)
    return StabilityRecord(
        resamples=resamples,
        seed=seed,
        weights=len(original),
        jaccard=_spread([jaccard(original, ids) for ids in everyone]),
        size=_spread([len(ids) for ids in everyone]),
        in_half=int((hits * 2 >= resamples).sum()),
        in_most=int((hits * 100 >= MOST * resamples).sum()),
        others_in_half=int((~torch.isin(chosen[times * 2 >= resamples], original)).sum()),
        split_half=_spread(split),
        top_sets={name: total / resamples for name, total in shared.items()},
        reproduced=jaccard(original, _ids(job, own.chosen)),
        multiple=job.multiple,
        edge=Edge(*(sum(side) / resamples for side in zip(*edges, strict=True))),
        frequency=_by_matrix(job.selection.indices, hits / resamples),
        rule=recipe.rule,
        ratio=recipe.ratio,
        protect_ratio=recipe.protect_ratio,
        granularity=recipe.granularity,
        examples={name: part.examples for name, part in job.per_example.items()},
    )


def jaccard(one: torch.Tensor, other: torch.Tensor) -> float:
    """|A and B| / |A or B| of two lists of unique numbers; two empty ones are equal: 1."""
    both = int(torch.isin(one, other).sum())
    either = len(one) + len(other) - both
    return both / either if either else 1.0


def _ids(job: Job, tops: Tops) -> torch.Tensor:
    """One number for each entry over all matrices."""
    offset, ids = 0, []
    for name, place in job.selection.places.items():
        if name in tops:
            ids.append(tops[name] + offset)
        offset += place.size
    return torch.cat(ids) if ids else torch.empty(0, dtype=torch.int64)


def _limits(job: Job) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By ranking: the smallest score of its own candidates in each unit, on all examples; the better half of them."""
    limits = {}
    for name, (scores, ratio) in job.rankings.items():
        wide = _wide_top(scores, ratio * job.multiple, job.names, job.recipe.granularity)
        inner = _wide_top(scores, ratio * job.multiple / 2, job.names, job.recipe.granularity)
        limits[name] = (_smallest(job, scores, wide), _ids(job, inner))
    return limits


def _edge(job: Job, draw: Draw, limits: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    """How near a resample came to what is not a candidate: (fraction of the top sets whose smallest score is no larger
    than the limit of their unit; fraction of their entries that were not in the better half of the candidates)."""
    reached = units = outer = entries = 0
    for name, (level, inner) in limits.items():
        threshold = _smallest(job, draw.rankings[name][0], draw.tops[name])
        filled = threshold.isfinite()
        units += int(filled.sum())
        reached += int((threshold <= level)[filled].sum())
        top = _ids(job, draw.tops[name])
        entries += len(top)
        outer += int((~torch.isin(top, inner)).sum())
    return reached / max(units, 1), outer / max(entries, 1)


def _smallest(job: Job, scores: Scores, tops: Tops) -> torch.Tensor:
    """The smallest score of a top set in each unit that has a top set of its own; infinite where it has no entry."""
    found, units = [], []
    first = 0
    for number, (name, place) in enumerate(job.selection.places.items()):
        matrix = scores.matrices[name]
        inside = torch.isin(matrix.indices, tops[name])
        found.append(matrix.values[inside])
        units.append(_unit(job.recipe.granularity, place, number, first, matrix.indices[inside]))
        first += place.shape[0]
    unit = torch.cat(units)
    layers = 1 + max(place.layer for place in job.selection.places.values())
    size = {"row": first, "matrix": len(tops), "model": 1, "layer": layers}[job.recipe.granularity]
    return torch.full((size,), torch.inf).scatter_reduce(0, unit, torch.cat(found), "amin")


def _unit(granularity: str, place: MatrixScores, number: int, first_row: int, indices: torch.Tensor) -> torch.Tensor:
    """The number of the unit of each entry of the matrix `number`, whose first row is `first_row` over all matrices."""
    if granularity == "row":
        return first_row + indices // place.shape[1]
    return torch.full_like(indices, {"matrix": number, "layer": place.layer, "model": 0}[granularity])


def _by_matrix(indices: Tops, frequency: torch.Tensor) -> dict[str, Frequency]:
    parts = frequency.split([len(part) for part in indices.values()])
    return {
        name: Frequency(part.tolist(), [round(float(value), 4) for value in values])
        for (name, part), values in zip(indices.items(), parts, strict=True)
    }


def _spread(values: Sequence[float]) -> Spread:
    """Mean, and the 2.5% and 97.5% quantiles."""
    numbers = torch.tensor(values, dtype=torch.float64)
    low, high = numbers.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Spread(float(numbers.mean()), low, high)
