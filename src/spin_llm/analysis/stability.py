"""Would other scoring data have chosen the same weights? The rule, applied again to resampled examples.

In: a loaded model, the encoded examples of every concept and protected set, their scores, the selection made of them.
Out: `StabilityRecord`. A second pass over the examples keeps each one's importances at candidate entries
(scores/per_example.py), as many as fit the memory; a set that is done is kept in a folder until the end, so a killed
pass goes on with the next set. Each of B resamples draws, for every set by itself, as many examples as it has, with
replacement, and the rule selects again at the same ratios:

    Jaccard(A, B) = |A and B| / |A or B|      of the selection with each resample's, and between random halves

What a rule takes tops of are its rankings: every set's scores, or for `signed` the one score that it makes of them. The
candidates are the entries in the top of any ranking at `multiple` times its ratio. That is an approximation: other
entries cannot be selected from a resample. `edge` says when it could matter.

What `signed` needs of entries that are no candidates stays as it is on all examples: the means that it divides by, the
smallest margin that a concept keeps of a matrix, the smallest importance in a matrix's protected top set. They are
means over, and quantiles of, many entries, which single examples hardly move; means over the candidates alone would be
of entries that were chosen for their scores. A factor that is common to the concepts changes no order of gains. Left
out: what was read (pipeline/inputs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from spin_llm.errors import SpinError
from spin_llm.files import sha256_json
from spin_llm.models import LoadedModel, editable_matrices
from spin_llm.progress import SILENT, Console
from spin_llm.results.edited import Edge, Frequency, Recipe, Spread, StabilityRecord
from spin_llm.scores import PerExample, Scores, ScoreSet, Sides, gather, reweighted
from spin_llm.scores.per_example import gathered_bytes, load_per_example, save_per_example
from spin_llm.scores.plan import DEFAULT_SHARE, free_memory
from spin_llm.selection import KNOWN, Rule, Selection, Tops, top_sets
from spin_llm.selection.rules.rule import Ranked, Rankings

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

    def wide_top(self, ranking: str, multiple: float) -> Tops:
        """The top of a ranking at `multiple` times its ratio, or all that was kept where that is less."""
        scores, ratio = self.rankings[ranking]
        wide = min(ratio * multiple, scores.info.keep)
        return top_sets(scores, self.names, wide, self.recipe.granularity, decided=False)

    def candidates(self, multiple: float) -> Tops:
        """Entries in the wide top of any ranking: sorted flat indices; matrices without any left out."""
        tops = [self.wide_top(ranking, multiple) for ranking in self.rankings]
        found = {name: torch.cat([top[name] for top in tops]).unique() for name in self.names}
        return {name: indices for name, indices in found.items() if indices.numel()}


def measure_stability(
    loaded: LoadedModel,
    examples: Mapping[str, Sides],
    job: Job,
    *,
    resamples: int,
    seed: int = 0,
    budget: int | None = None,
    folder: Path | None = None,
    console: Console = SILENT,
) -> StabilityRecord:
    """Score every set again, example by example, and select from `resamples` bootstrap resamples.

    `job` comes without importances. `budget` is in bytes of RAM (None: most of what is free). Sets that are done are
    kept in `folder`. Raises SpinError when a set has one example, or one unaware one, when its scores cannot be
    resampled, and when twice the top sets do not fit.
    """
    for name, part in examples.items():
        if 1 in map(len, part):
            raise SpinError(
                f"The set {name!r} has one example of a kind: nothing can be resampled.", change="score more of them."
            )
    multiple, entries = fitting_candidates(job, examples, budget)
    console.say(
        f"stability: {sum(map(len, entries.values())):,} candidates (the top sets at {multiple:g} times the ratio), "
        f"{_bytes_of(entries, examples) / 2**20:,.0f} MiB"
    )
    matrices = editable_matrices(loaded.model, job.scores.first.info.target or "mlp")
    found: dict[str, PerExample] = {}
    for name, scores in job.scores.everything.items():
        sides = examples[name]
        key = sha256_json(
            [
                *(name, multiple, loaded.checkpoint.fingerprint, str(loaded.dtype), scores.info.as_json()),
                [example.input_ids for side in sides for example in side],
                {matrix: indices.tolist() for matrix, indices in entries.items()},
            ]
        )
        file = folder / f"{name}.safetensors" if folder else None
        before = load_per_example(file, key) if file else None
        with console.bar(f"scoring again, {name}", sum(map(len, sides))) as advance:
            if before:
                advance(sum(map(len, sides)))
            by = str(scores.info.selector)
            found[name] = before or gather(loaded, matrices, entries, *sides, selector=by, progress=advance)
        if file and not before:
            save_per_example(file, found[name], key)
    job = replace(job, per_example=found, multiple=multiple)
    with console.bar("selecting again", resamples) as advance:
        return resampled_selections(job, resamples=resamples, seed=seed, progress=advance)


def fitting_candidates(job: Job, examples: Mapping[str, Sides], budget: int | None = None) -> tuple[float, Tops]:
    """(multiple, candidates): the largest of MULTIPLE, half of it, ... whose importances fit the budget, and what the
    score files keep. SpinError below 2."""
    budget = int(free_memory(torch.device("cpu")) * DEFAULT_SHARE) if budget is None else budget
    kept = min(scores.info.keep / ratio for scores, ratio in job.rankings.values())
    multiple = min(MULTIPLE, kept)
    needed = 0
    while multiple >= 2:
        entries = job.candidates(multiple)
        needed = _bytes_of(entries, examples)
        if needed <= budget:
            return multiple, entries
        multiple /= 2
    if kept < 2:
        raise SpinError(
            f"The score files keep {kept:.3g} times the ratio of a set, and candidates need twice the ratio.",
            change="score again with a larger --keep.",
        )
    raise SpinError(
        f"The importances of each example need {needed / 2**20:,.0f} MiB, and {budget / 2**20:,.0f} MiB may be taken.",
        change="raise --memory-budget, or choose a smaller --ratio.",
    )


def _bytes_of(entries: Tops, examples: Mapping[str, Sides]) -> int:
    total = sum(map(len, entries.values()))
    return sum(gathered_bytes(total, len(part.aware), len(part.unaware)) for part in examples.values())


def select_again(job: Job, counts: Counts) -> tuple[Tops, Ranked]:
    """The weights chosen with each example counted so often, and what they were chosen from."""
    concepts, protected = (
        {name: reweighted(old, job.per_example[name], *counts[name]) for name, old in side.items()}
        for side in (job.scores.concepts, job.scores.protected)
    )
    again = ScoreSet(concepts, protected)
    ranked = job.rule.ranked(again, job.names, job.recipe, held=job.held, decided=False)
    return job.rule.choose(ranked), ranked


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
    (own, ranked), limits = select_again(job, all_examples(job)), _limits(job)
    everyone: list[torch.Tensor] = []
    edges: list[tuple[float, float]] = []
    split: list[float] = []
    shared = dict.fromkeys(ranked.tops, 0.0)
    for _ in range(resamples):
        chosen, drawn = select_again(job, bootstrap(job, generator))
        everyone.append(_ids(job, chosen))
        for name, top in ranked.tops.items():
            shared[name] += jaccard(_ids(job, top), _ids(job, drawn.tops[name]))
        edges.append(_edge(job, drawn, limits))
        one, other = (_ids(job, select_again(job, counts)[0]) for counts in halves(job, generator))
        split.append(jaccard(one, other))
        progress(1)
    hits = torch.stack([torch.isin(original, ids) for ids in everyone]).sum(0)
    shares = (hits / resamples).split([len(chosen) for chosen in job.selection.indices.values()])
    entries, times = torch.cat(everyone).unique(return_counts=True)
    return StabilityRecord(
        resamples=resamples,
        seed=seed,
        weights=len(original),
        jaccard=_spread([jaccard(original, ids) for ids in everyone]),
        size=_spread([len(ids) for ids in everyone]),
        in_half=int((hits * 2 >= resamples).sum()),
        in_most=int((hits * 100 >= MOST * resamples).sum()),
        others_in_half=int((~torch.isin(entries[times * 2 >= resamples], original)).sum()),
        split_half=_spread(split),
        top_sets={name: total / resamples for name, total in shared.items()},
        reproduced=jaccard(original, _ids(job, own)),
        multiple=job.multiple,
        edge=Edge(*(sum(side) / resamples for side in zip(*edges, strict=True))),
        frequency={
            name: Frequency(chosen.tolist(), [round(float(value), 4) for value in values])
            for (name, chosen), values in zip(job.selection.indices.items(), shares, strict=True)
        },
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
    return {
        name: (
            _smallest(job, scores, job.wide_top(name, job.multiple)),
            _ids(job, job.wide_top(name, job.multiple / 2)),
        )
        for name, (scores, _) in job.rankings.items()
    }


def _edge(job: Job, drawn: Ranked, limits: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    """How near a resample came to what is not a candidate: (fraction of the top sets whose smallest score is no larger
    than the limit of their unit; fraction of their entries that were not in the better half of the candidates)."""
    reached = units = outer = entries = 0
    for name, (level, inner) in limits.items():
        threshold = _smallest(job, drawn.rankings[name][0], drawn.tops[name])
        filled = threshold.isfinite()
        units += int(filled.sum())
        reached += int((threshold <= level)[filled].sum())
        top = _ids(job, drawn.tops[name])
        entries += len(top)
        outer += int((~torch.isin(top, inner)).sum())
    return reached / max(units, 1), outer / max(entries, 1)


def _smallest(job: Job, scores: Scores, tops: Tops) -> torch.Tensor:
    """The smallest score of a top set in each unit that has a top set of its own; infinite where it has no entry."""
    granularity, found, units = job.recipe.granularity, [], []
    first = 0
    for number, (name, place) in enumerate(job.selection.places.items()):
        matrix = scores.matrices[name]
        inside = torch.isin(matrix.indices, tops[name])
        rows = first + matrix.indices[inside] // place.shape[1]
        alone = {"matrix": number, "layer": place.layer, "model": 0}
        found.append(matrix.values[inside])
        units.append(torch.full_like(rows, alone[granularity]) if granularity != "row" else rows)
        first += place.shape[0]
    layers = 1 + max(place.layer for place in job.selection.places.values())
    size = {"row": first, "matrix": len(tops), "layer": layers, "model": 1}[granularity]
    return torch.full((size,), torch.inf).scatter_reduce(0, torch.cat(units), torch.cat(found), "amin")


def _spread(values: Sequence[float]) -> Spread:
    """Mean, and the 2.5% and 97.5% quantiles."""
    numbers = torch.tensor(values, dtype=torch.float64)
    low, high = numbers.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Spread(float(numbers.mean()), low, high)
