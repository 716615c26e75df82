"""Which weights to suppress, from kept scores alone; no model needed.

In: the concepts' scores and the protected sets' scores. Out: flat indices per matrix, sorted. The rule of the paper
(section 3.3), for a matrix of n entries:

    N_D(r)  = the floor(r * n) entries with the largest importance on D
    coupled = (intersection over the concepts D of N_D(r)) minus (union over the protected P of N_P(r_protect))

Each matrix has its own top set, unless another granularity is asked for; with M of N concepts asked for, the
intersection is over any M of them. `coupled-signed` keeps of the coupled weights those whose suppression raises every
margin (scores/importance.py), `signed` starts from the margins (signed.py). `released` reproduces the published code's
index bug. Left out: controls (controls.py), and what is done to the chosen weights (patch/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

import torch

from spin_llm.errors import SpinError
from spin_llm.results.recipe import PENALTY, Layers, Recipe
from spin_llm.scores import MatrixScores, Scores, count
from spin_llm.selection.signed import Tops, at_entries, largest_margins, signed_scores
from spin_llm.settings import BY_MARGIN, OWN, SIGNED

Rule = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor], int | None], torch.Tensor]


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


def coupled(
    tops: Sequence[torch.Tensor], protected: Sequence[torch.Tensor], at_least: int | None = None
) -> torch.Tensor:
    """Entries in the top sets of at least `at_least` concepts (None: of all) and in no protected one, sorted.

    Each of `tops` and `protected`: unsorted unique flat indices (int64).
    """
    chosen = intersection(tops, at_least)
    for top in protected:
        chosen = chosen[~torch.isin(chosen, top)]
    return chosen


def released(
    tops: Sequence[torch.Tensor], protected: Sequence[torch.Tensor], at_least: int | None = None
) -> torch.Tensor:
    """What the published code does (docs/method.md, Selection): a mask "not protected" over each concept's *sorted* top
    list, the masks ANDed by position although position k is another weight in each list, applied to the first concept's
    list. There is no M of N."""
    if at_least not in (None, len(tops)):
        raise SpinError("The rule 'released' is for all concepts.", change="leave out --at-least.")
    lists = [top.sort().values for top in tops]
    keep = torch.ones_like(lists[0], dtype=torch.bool)
    for entries in lists:
        for top in protected:
            keep &= ~torch.isin(entries, top)
    return lists[0][keep]


def intersection(tops: Sequence[torch.Tensor], at_least: int | None = None) -> torch.Tensor:
    """Sorted entries that are in at least `at_least` of `tops` (None: in all)."""
    entries, times = torch.cat(list(tops)).unique(return_counts=True)
    return entries[times >= (len(tops) if at_least is None else at_least)]


RULES: dict[str, Rule] = {"coupled": coupled, SIGNED: coupled, "released": released}
GRANULARITIES = ("matrix", "row", "layer", "model")
UNRANKED = torch.iinfo(torch.int64).max


def top_sets(
    scores: Scores, names: Sequence[str], ratio: float, granularity: str = "matrix", *, decided: bool = True
) -> Tops:
    """Each matrix's part of the top set: flat indices (int64), largest first within a matrix.

    The top set is the floor(ratio * n) largest entries of each matrix, of each row of a matrix as stored, of all
    matrices of a layer together, or of the whole model; n counts the entries of that unit. Raises SpinError when the
    kept entries do not decide it, unless `decided` is False: then it is the top of the kept entries.
    """
    if granularity in ("matrix", "row"):
        of_matrix = _top_of_matrix if granularity == "matrix" else _top_of_rows
        return {name: of_matrix(scores.matrices[name], ratio) for name in names}
    units: dict[int, list[str]] = {}
    for name in names:
        units.setdefault(scores.matrices[name].layer if granularity == "layer" else 0, []).append(name)
    tops: Tops = {}
    for unit in units.values():
        tops.update(_top_together({name: scores.matrices[name] for name in unit}, ratio, decided))
    return {name: tops[name] for name in names}


def _top_of_matrix(matrix: MatrixScores, ratio: float) -> torch.Tensor:
    return matrix.indices[: count(ratio, matrix.size)]


def _top_of_rows(matrix: MatrixScores, ratio: float) -> torch.Tensor:
    """The kept entries whose rank within their row, counted from 0, is below floor(ratio * columns)."""
    rows = matrix.indices // matrix.shape[1]
    order = torch.argsort(rows, stable=True)
    starts = torch.searchsorted(rows[order], rows[order])
    rank = torch.empty_like(rows)
    rank[order] = torch.arange(len(rows)) - starts
    return matrix.indices[rank < count(ratio, matrix.shape[1])]


def _top_together(matrices: Mapping[str, MatrixScores], ratio: float, decided: bool) -> Tops:
    """The largest entries over several matrices; ties by the matrices' order, then the lower index."""
    k = count(ratio, sum(matrix.size for matrix in matrices.values()))
    values = torch.cat([matrix.values for matrix in matrices.values()])
    owner = torch.cat([torch.full((len(m.values),), number) for number, m in enumerate(matrices.values())])
    chosen = owner[torch.argsort(values, descending=True, stable=True)[:k]]
    taken = torch.bincount(chosen, minlength=len(matrices)).tolist()
    for (name, matrix), number in zip(matrices.items(), taken, strict=True):
        if decided and number == len(matrix.indices) < matrix.size:
            raise SpinError(
                f"The kept scores of {name} do not decide the top set of several matrices at ratio {ratio:g}.",
                cause="all that was kept of it is in the top set, and more of it may be.",
                change="score again with a larger --keep, or take a smaller ratio.",
            )
    return {name: m.indices[:number] for (name, m), number in zip(matrices.items(), taken, strict=True)}


def favourable(
    chosen: torch.Tensor, name: str, concepts: Mapping[str, Scores], at_least: int | None = None
) -> torch.Tensor:
    """Of the entries `chosen` of one matrix, those whose suppression raises the aware-unaware margin of at least
    `at_least` concepts (None: of all) to first order.

    A concept that does not keep an entry does not count for it.
    """
    raised = torch.zeros(len(chosen), dtype=torch.int64)
    for concept, scores in concepts.items():
        matrix = scores.matrices[name]
        place = f"margin@{scores.metadata['selector']}"
        if place not in matrix.at:
            raise SpinError(
                f"The scores of {concept!r} hold no margin, which the rule 'coupled-signed' needs.",
                change="score again with --statistics margin.",
            )
        raised += at_entries(matrix.indices, matrix.at[place], chosen, -torch.inf) > 0
    return chosen[raised >= (len(concepts) if at_least is None else at_least)]


def spared_by(rule: str, protected: Mapping[str, Scores]) -> dict[str, Scores]:
    """The protected sets that a rule spares: for `signed` all of them; for others not OWN, what the model's own aware
    answers need, whose top set is what those rules look for."""
    return {name: scores for name, scores in protected.items() if rule == BY_MARGIN or name != OWN}


def select(
    concepts: Mapping[str, Scores],
    protected: Mapping[str, Scores],
    *,
    rule: str = "coupled",
    ratio: float,
    protect_ratio: float | None = None,
    target: str = "mlp",
    granularity: str = "matrix",
    layers: Layers | None = None,
    at_least: int | None = None,
    penalty: float = PENALTY,
    fractions: Mapping[str, float] | None = None,
    allow_empty: bool = False,
) -> Selection:
    """Apply a rule to every targeted matrix, or to those of the `layers` from the first to the last of two.

    `protect_ratio` None means the same as `ratio`; `at_least` None means all concepts; `penalty` is for
    `signed`. `fractions` (by concept, 1 where not named) multiply a concept's ratio, at most to what its score file
    keeps; for `signed` they multiply its margin. Raises SpinError for an unknown rule, a ratio outside (0, 1) or
    above what the score files keep, score files that do not belong together, and (unless `allow_empty`) a selection
    without a single weight, naming the smallest ratio that selects one.
    """
    protected = spared_by(rule, protected)
    given_protect_ratio = protect_ratio
    protect_ratio = ratio if protect_ratio is None else protect_ratio
    _check(concepts, protected, rule, ratio, protect_ratio, granularity)
    if at_least is not None and not 1 <= at_least <= len(concepts):
        raise SpinError(f"--at-least {at_least} is out of range.", change=f"give 1 to {len(concepts)}, the concepts.")
    names = targeted(concepts, target, layers)
    first = next(iter(concepts.values()))
    places = {name: first.matrices[name] for name in names}
    weights = sum(place.size for place in places.values())
    if rule == BY_MARGIN:
        spared = spared_entries(protected, names, protect_ratio)
        options: dict[str, Any] = {"penalty": penalty, "at_least": at_least, "fractions": fractions}
        scored = signed_scores(concepts, protected, names, spared=spared, **options)
        indices = sorted_tops(top_sets(scored, names, ratio, granularity, decided=False))
        if not indices and not allow_empty:
            raise SpinError(f"The rule {rule!r} at ratio {ratio:g} by {granularity} selects no weight at all.")
        kept = sum(len(largest_margins("", first, name)[0]) for name in names)
        shared = sum(len(matrix.indices) for matrix in scored.matrices.values())
        return Selection(indices, rule, ratio, protect_ratio, target, kept, shared, weights, places)
    protected_tops = [top_sets(scores, names, protect_ratio, granularity) for scores in protected.values()]
    ratios = concept_ratios(concepts, ratio, fractions or {})
    concept_tops = [top_sets(scores, names, ratios[name], granularity) for name, scores in concepts.items()]
    indices = choose(rule, concept_tops, protected_tops, concepts, at_least)
    candidates = sum(concept_tops[0][name].numel() for name in names)
    shared = sum(intersection([top[name] for top in concept_tops], at_least).numel() for name in names)
    if not indices and not allow_empty:
        if granularity != "matrix" or rule == SIGNED:
            raise SpinError(f"The rule {rule!r} at ratio {ratio:g} by {granularity} selects no weight at all.")
        raise _nothing_selected(concepts, protected, names, rule, ratio, given_protect_ratio, at_least)
    return Selection(indices, rule, ratio, protect_ratio, target, candidates, shared, weights, places)


def select_by(
    recipe: Recipe,
    concepts: Mapping[str, Scores],
    protected: Mapping[str, Scores],
    *,
    allow_empty: bool = False,
) -> Selection:
    """`select` with the options of `recipe`; raises as it does."""
    options = {name: value for name, value in asdict(recipe).items() if name not in ("scale", "fractions")}
    return select(concepts, protected, **options, fractions=dict(recipe.fractions), allow_empty=allow_empty)


def concept_ratios(concepts: Mapping[str, Scores], ratio: float, fractions: Mapping[str, float]) -> dict[str, float]:
    """The ratio of each concept's top set: times its fraction, at most what its score file keeps."""
    return {name: min(ratio * fractions.get(name, 1.0), s.metadata["keep"]) for name, s in concepts.items()}


def spared_entries(protected: Mapping[str, Scores], names: Sequence[str], protect_ratio: float) -> Tops:
    """What `signed` spares, by matrix, whatever it chooses over: the protected sets' top sets of each matrix."""
    tops = [top_sets(scores, names, protect_ratio) for scores in protected.values()]
    return {name: torch.cat([top[name] for top in tops]) for name in names} if tops else {}


def sorted_tops(tops: Tops) -> Tops:
    """The same entries, sorted; matrices without any left out."""
    return {name: top.sort().values for name, top in tops.items() if top.numel()}


def targeted(scores: Mapping[str, Scores], target: str, layers: Layers | None = None) -> list[str]:
    """The names of the targeted matrices, of all layers or of `layers`; SpinError when the scores hold none."""
    matrices = next(iter(scores.values())).matrices
    names = [name for name, place in matrices.items() if target in ("all", place.kind)]
    if names and layers is not None:
        last = max(matrices[name].layer for name in names)
        names = [name for name in names if layers[0] <= matrices[name].layer <= layers[1]]
        if not names:
            raise SpinError(f"--layers {layers[0]}-{layers[1]} names no layer.", change=f"the last layer is {last}.")
    if not names:
        raise SpinError(f"The scores hold no {target} matrix.", change=f"score again with --target {target}.")
    return names


def choose(
    rule: str,
    tops: Sequence[Tops],
    protected: Sequence[Tops],
    concepts: Mapping[str, Scores],
    at_least: int | None = None,
) -> Tops:
    """What a rule makes of the top sets of the concepts and of the protected sets: sorted indices by matrix name,
    matrices without any left out. `coupled-signed` looks at the margins of `concepts`."""
    chosen: Tops = {}
    for name in tops[0]:
        indices = RULES[rule]([top[name] for top in tops], [top[name] for top in protected], at_least)
        if rule == SIGNED:
            indices = favourable(indices, name, concepts, at_least)
        if indices.numel():
            chosen[name] = indices
    return chosen


def _check(
    concepts: Mapping[str, Scores],
    protected: Mapping[str, Scores],
    rule: str,
    ratio: float,
    protect_ratio: float,
    granularity: str,
) -> None:
    if granularity not in GRANULARITIES:
        raise SpinError(f"Unknown granularity {granularity!r}.", change=f"give {', '.join(GRANULARITIES)}.")
    if rule == "released" and granularity != "matrix":
        raise SpinError("The rule 'released' is defined matrix by matrix.", change="give --granularity matrix.")
    if rule == BY_MARGIN and granularity == "row":
        raise SpinError(
            f"The rule {rule!r} does not choose by row.", change="give --granularity model, layer or matrix."
        )
    if rule not in (*RULES, BY_MARGIN):
        raise SpinError(f"Unknown rule {rule!r}.", change=f"--rule takes one of {', '.join((*RULES, BY_MARGIN))}.")
    if not concepts:
        raise SpinError("There is no concept to select for.")
    for option, value in (("--ratio", ratio), ("--protect-ratio", protect_ratio)):
        if not 0 < value < 1:
            raise SpinError(f"{option} {value} is out of range.", change=f"{option} is a fraction above 0 and below 1.")
    needs = [(name, scores, ratio) for name, scores in concepts.items()]
    needs += [(name, scores, protect_ratio) for name, scores in protected.items()]
    for name, scores, needed in needs:
        kept = scores.metadata.get("keep") or 0.0
        if needed > kept:
            raise SpinError(
                f"The scores of {name!r} keep the top {kept:g} of each matrix; a ratio of {needed:g} needs more.",
                change=f"score again with --keep {needed:g}, or take a smaller ratio.",
            )
        kept_by = scores.metadata.get("granularity", "matrix")
        if (kept_by == "row") != (granularity == "row"):
            raise SpinError(
                f"The scores of {name!r} were kept by {kept_by}; a selection by {granularity} needs others.",
                change=f"score again with --granularity {granularity}.",
            )
    for key in ("model", "target", "selector"):
        if len({scores.metadata.get(key) for _, scores, _ in needs}) > 1:
            raise SpinError(f"The score files do not belong together: their {key} differs.", change="score them again.")
    if any(shapes(scores) != shapes(needs[0][1]) for _, scores, _ in needs):
        raise SpinError("The score files do not belong together: their matrices differ.", change="score them again.")


def shapes(scores: Scores) -> dict[str, tuple[int, int]]:
    return {name: place.shape for name, place in scores.matrices.items()}


def _nothing_selected(
    concepts: Mapping[str, Scores],
    protected: Mapping[str, Scores],
    names: Sequence[str],
    rule: str,
    ratio: float,
    protect_ratio: float | None,
    at_least: int | None,
) -> SpinError:
    sizes = [next(iter(concepts.values())).matrices[name].size for name in names]
    candidates = max(count(ratio, size) for size in sizes)
    cause = (
        f"floor({ratio:g} x {max(sizes):,} weights) is 0 in every matrix."
        if candidates == 0
        else "no weight is in every concept's top set and outside the protected one."
    )
    change = "take a larger ratio."
    if rule != "released":  # whose positions say nothing about a larger ratio before it is tried
        smallest = smallest_ratio(concepts, protected, names, protect_ratio, at_least)
        change = "no kept ratio selects any."
        if smallest:
            change = f"the smallest ratio that selects anything here is {smallest:g}."
    return SpinError(f"The rule {rule!r} at ratio {ratio:g} selects no weight at all.", cause=cause, change=change)


def smallest_ratio(
    concepts: Mapping[str, Scores],
    protected: Mapping[str, Scores],
    names: Sequence[str],
    protect_ratio: float | None,
    at_least: int | None = None,
) -> float | None:
    """The smallest ratio at which `coupled` selects a weight by matrix, rounded up to four digits; None when no kept
    ratio does.

    An entry is in the top sets of M concepts from its M-th smallest rank on, and spared where a protected set ranks it
    no lower than that. A `protect_ratio` of None follows the ratio, and then the protected scores limit it too.
    """
    limiting = [*concepts.values(), *(protected.values() if protect_ratio is None else ())]
    smallest = min(scores.metadata["keep"] for scores in limiting)
    found = None
    for name in names:
        size = next(iter(concepts.values())).matrices[name].size
        tops = [scores.matrices[name].indices for scores in concepts.values()]
        entries = torch.cat(tops).unique()
        ranks = torch.stack([ranks_of(top, entries) for top in tops]).sort(0).values
        needed = ranks[(at_least or len(tops)) - 1]
        guards = [ranks_of(scores.matrices[name].indices, entries) for scores in protected.values()]
        guard = torch.stack(guards).amin(0) if guards else torch.full_like(needed, UNRANKED)
        reached = (needed < UNRANKED) & (guard > (needed if protect_ratio is None else count(protect_ratio, size)))
        for rank, guarded in sorted(zip(needed[reached].tolist(), guard[reached].tolist(), strict=True)):
            ratio = _round_up(rank, size)
            if ratio >= 1 or ratio > smallest:
                break
            if guarded > count(protect_ratio or ratio, size):
                found = smallest = ratio
                break
    return found


def ranks_of(top: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """The ranks, from 1, of `entries` in `top`, largest first; UNRANKED where they are not in it."""
    return at_entries(top, torch.arange(1, len(top) + 1), entries, UNRANKED)


def _round_up(k: int, size: int) -> float:
    """The smallest decimal of four digits at or above k / size, so that the message can be typed back."""
    return float(Context(prec=4, rounding=ROUND_CEILING).divide(Decimal(k), Decimal(size)))
