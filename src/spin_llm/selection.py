"""Which weights to suppress, from kept scores alone; no model needed.

In: the concepts' scores and the protected sets' scores. Out: flat indices per matrix, sorted. The rule of the paper
(section 3.3), for a matrix of n entries:

    N_D(r)  = the floor(r * n) entries with the largest importance on D
    coupled = (intersection over the concepts D of N_D(r)) minus (union over the protected P of N_P(r_protect))

Granularity is the matrix: each matrix has its own top set. `released` reproduces the published code's index bug,
`random_like` makes the control. Left out: what is done to the chosen weights (patch.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal

import torch

from spin_llm.errors import SpinError
from spin_llm.scores import MatrixScores, Scores, count

Rule = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Selection:
    """Chosen weights: sorted flat `indices` (int64) by matrix name, empty matrices left out, and how many were
    considered."""

    indices: dict[str, torch.Tensor]
    rule: str
    ratio: float
    protect_ratio: float
    target: str
    candidates: int
    shared: int
    targeted_weights: int
    places: dict[str, MatrixScores]

    @property
    def weights(self) -> int:
        return sum(indices.numel() for indices in self.indices.values())


def coupled(tops: Sequence[torch.Tensor], protected: Sequence[torch.Tensor]) -> torch.Tensor:
    """Entries in every concept's top set and in no protected one, sorted.

    Each argument: unsorted unique flat indices (int64).
    """
    chosen = intersection(tops)
    for top in protected:
        chosen = chosen[~torch.isin(chosen, top)]
    return chosen


def released(tops: Sequence[torch.Tensor], protected: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the published code does (docs/method.md, Selection): a mask "not protected" over each concept's *sorted*
    top list, the masks ANDed by position although position k is another weight in each list, applied to the first
    concept's list."""
    lists = [top.sort().values for top in tops]
    keep = torch.ones_like(lists[0], dtype=torch.bool)
    for entries in lists:
        for top in protected:
            keep &= ~torch.isin(entries, top)
    return lists[0][keep]


def intersection(tops: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sorted entries that are in all of `tops`."""
    shared = tops[0]
    for top in tops[1:]:
        shared = shared[torch.isin(shared, top)]
    return shared.sort().values


RULES: dict[str, Rule] = {"coupled": coupled, "released": released}


def select(
    concepts: Mapping[str, Scores],
    protected: Mapping[str, Scores],
    *,
    rule: str = "coupled",
    ratio: float,
    protect_ratio: float | None = None,
    target: str = "mlp",
    allow_empty: bool = False,
) -> Selection:
    """Apply a rule to every targeted matrix.

    `protect_ratio` None means the same as `ratio`. Raises SpinError for an unknown rule, a ratio outside (0, 1) or
    above what the score files keep, score files that do not belong together, and (unless `allow_empty`) a selection
    without a single weight, naming the smallest ratio that selects one.
    """
    given_protect_ratio = protect_ratio
    protect_ratio = ratio if protect_ratio is None else protect_ratio
    _check(concepts, protected, rule, ratio, protect_ratio)
    first = next(iter(concepts.values()))
    names = [name for name, place in first.matrices.items() if target in ("all", place.kind)]
    if not names:
        raise SpinError(f"The scores hold no {target} matrix.", change=f"score again with --target {target}.")
    indices: dict[str, torch.Tensor] = {}
    candidates = shared = 0
    for name in names:
        tops = [_top(scores, name, ratio) for scores in concepts.values()]
        chosen = RULES[rule](tops, [_top(scores, name, protect_ratio) for scores in protected.values()])
        candidates += tops[0].numel()
        shared += intersection(tops).numel()
        if chosen.numel():
            indices[name] = chosen
    if not indices and not allow_empty:
        raise _nothing_selected(concepts, protected, names, rule, ratio, given_protect_ratio)
    places = {name: first.matrices[name] for name in names}
    targeted = sum(place.size for place in places.values())
    return Selection(indices, rule, ratio, protect_ratio, target, candidates, shared, targeted, places)


def random_like(selection: Selection, seed: int) -> Selection:
    """The control: as many weights per matrix as `selection` has, drawn at random without replacement."""
    generator = torch.Generator().manual_seed(seed)
    indices = {
        name: torch.randperm(selection.places[name].size, generator=generator)[: chosen.numel()].sort().values
        for name, chosen in selection.indices.items()
    }
    return Selection(
        indices,
        "random",
        selection.ratio,
        selection.protect_ratio,
        selection.target,
        selection.candidates,
        selection.shared,
        selection.targeted_weights,
        selection.places,
    )


def _top(scores: Scores, name: str, ratio: float) -> torch.Tensor:
    matrix = scores.matrices[name]
    return matrix.indices[: count(ratio, matrix.size)]


def _check(
    concepts: Mapping[str, Scores], protected: Mapping[str, Scores], rule: str, ratio: float, protect_ratio: float
) -> None:
    if rule not in RULES:
        raise SpinError(f"Unknown rule {rule!r}.", change=f"--rule takes one of {', '.join(RULES)}.")
    if not concepts:
        raise SpinError("There is no concept to select for.")
    for option, value in (("--ratio", ratio), ("--protect-ratio", protect_ratio)):
        if not 0 < value < 1:
            raise SpinError(f"{option} {value} is out of range.", change=f"{option} is a fraction above 0 and below 1.")
    needs = [(name, scores, ratio) for name, scores in concepts.items()]
    needs += [(name, scores, protect_ratio) for name, scores in protected.items()]
    for name, scores, needed in needs:
        if needed > scores.metadata["keep"]:
            raise SpinError(
                f"The scores of {name!r} keep the top {scores.metadata['keep']:g} of each matrix; "
                f"a ratio of {needed:g} needs more.",
                change=f"score again with --keep {needed:g}, or take a smaller ratio.",
            )
    for key in ("model", "target"):
        if len({scores.metadata[key] for _, scores, _ in needs}) > 1:
            raise SpinError(f"The score files do not belong together: their {key} differs.", change="score them again.")


def _nothing_selected(
    concepts: Mapping[str, Scores],
    protected: Mapping[str, Scores],
    names: Sequence[str],
    rule: str,
    ratio: float,
    protect_ratio: float | None,
) -> SpinError:
    smallest = smallest_ratio(concepts, protected, names, rule, protect_ratio)
    sizes = [next(iter(concepts.values())).matrices[name].size for name in names]
    candidates = max(count(ratio, size) for size in sizes)
    cause = (
        f"floor({ratio:g} x {max(sizes):,} weights) is 0 in every matrix."
        if candidates == 0
        else "no weight is in every concept's top set and outside the protected one."
    )
    change = (
        f"the smallest ratio that selects anything here is {smallest:g}." if smallest else "no kept ratio selects any."
    )
    return SpinError(f"The rule {rule!r} at ratio {ratio:g} selects no weight at all.", cause=cause, change=change)


def smallest_ratio(
    concepts: Mapping[str, Scores],
    protected: Mapping[str, Scores],
    names: Sequence[str],
    rule: str,
    protect_ratio: float | None,
) -> float | None:
    """The smallest ratio at which `rule` selects a weight, rounded up to four digits; None when no kept ratio does.

    A top set of k entries of n changes only at ratios k / n, so the smallest k of each matrix is enough. A
    `protect_ratio` of None follows the ratio, and then the protected scores limit it too.
    """
    limiting = [*concepts.values(), *(protected.values() if protect_ratio is None else ())]
    keep = min(scores.metadata["keep"] for scores in limiting)
    smallest: list[float] = []
    for name in names:
        tops = [scores.matrices[name].indices for scores in concepts.values()]
        spared = [scores.matrices[name].indices for scores in protected.values()]
        size = next(iter(concepts.values())).matrices[name].size
        for ratio in (_round_up(k, size) for k in range(1, count(keep, size) + 1)):
            if ratio >= 1 or ratio > min([keep, *smallest]):
                break
            k, guarded = count(ratio, size), count(protect_ratio or ratio, size)
            if RULES[rule]([top[:k] for top in tops], [top[:guarded] for top in spared]).numel():
                smallest.append(ratio)
                break
    return min(smallest) if smallest else None


def _round_up(k: int, size: int) -> float:
    """The smallest decimal of four digits at or above k / size, so that the message can be typed back."""
    return float(Context(prec=4, rounding=ROUND_CEILING).divide(Decimal(k), Decimal(size)))
