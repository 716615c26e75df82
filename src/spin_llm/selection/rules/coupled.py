"""The rules that compare top sets: `coupled` (paper, section 3.3), `coupled-signed` and `released`.

In: every set's kept importances. Out: `Rule` values, and the smallest ratio at which `coupled` selects anything. For a
matrix, with N_D(r) the top set of a concept D (tops.py):

    coupled = (intersection over the concepts D of N_D(r)) minus (union over the protected P of N_P(r_protect))

With M of N concepts asked for, the intersection is over any M of them. `coupled-signed` keeps of the coupled weights
those whose suppression raises every margin (scores/importance.py). `released` reproduces the published code's index
bug. Left out: top sets (tops.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_CEILING, Context, Decimal
from typing import TYPE_CHECKING, Any

import torch

from spin_llm.errors import SpinError
from spin_llm.results.edited import Recipe
from spin_llm.scores import Scores, ScoreSet, count
from spin_llm.selection.rules.rule import Ranked, Rankings, Rule
from spin_llm.selection.tops import Tops, at_entries, outside, top_sets

if TYPE_CHECKING:
    from spin_llm.selection.tops import Entries

    Sets = Sequence[Entries]  # each unique and unsorted, by concept or protected set

UNRANKED = torch.iinfo(torch.int64).max


def coupled(tops: Sets, protected: Sets, at_least: int | None = None) -> Entries:
    """Entries in the top sets of at least `at_least` concepts (None: of all) and in no protected one, sorted."""
    return outside(intersection(tops, at_least), protected)


def intersection(tops: Sets, at_least: int | None = None) -> Entries:
    """Sorted entries that are in at least `at_least` of `tops` (None: in all)."""
    entries, times = torch.cat(list(tops)).unique(return_counts=True)  # type: ignore[no-untyped-call]
    shared: Entries = entries[times >= (len(tops) if at_least is None else at_least)]
    return shared


def released(tops: Sets, protected: Sets, at_least: int | None = None) -> Entries:
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


def favourable(chosen: Entries, name: str, concepts: Mapping[str, Scores], at_least: int | None = None) -> Entries:
    """Of the entries `chosen` of one matrix, those whose suppression raises the aware-unaware margin of at least
    `at_least` concepts (None: of all) to first order.

    A concept that does not keep an entry does not count for it.
    """
    raised = torch.zeros(len(chosen), dtype=torch.int64)
    for concept, scores in concepts.items():
        matrix = scores.matrices[name]
        place = f"margin@{scores.info.selector}"
        if place not in matrix.at:
            raise SpinError(
                f"The scores of {concept!r} hold no margin, which the rule 'coupled-signed' needs.",
                change="score again with --statistics margin.",
            )
        raised += at_entries(matrix.indices, matrix.at[place], chosen, -torch.inf) > 0
    return chosen[raised >= (len(concepts) if at_least is None else at_least)]


def by_set(scores: ScoreSet, names: Sequence[str], recipe: Recipe, *, held: Any = None, spare: bool = True) -> Rankings:
    """Every set's scores. A concept's ratio is times its fraction, at most what its score file keeps."""
    fractions = dict(recipe.fractions)
    wanted = {name: (part, recipe.ratio * fractions.get(name, 1.0)) for name, part in scores.concepts.items()}
    concepts = {name: (part, min(ratio, part.info.keep)) for name, (part, ratio) in wanted.items()}
    return concepts | {name: (part, recipe.spares) for name, part in scores.protected.items()}


def chosen_by(
    rule: Callable[[Sets, Sets, int | None], Entries], *, by_margin: bool = False
) -> Callable[[Ranked], Tops]:
    """Choose matrix by matrix, of what is chosen with `by_margin` only what is favourable."""

    def choose(ranked: Ranked) -> Tops:
        scores, at_least = ranked.scores, ranked.recipe.at_least
        found: Tops = {}
        for name in ranked.names:
            tops, spared = ([ranked.tops[s][name] for s in side] for side in (scores.concepts, scores.protected))
            indices = rule(tops, spared, at_least)
            if by_margin:
                indices = favourable(indices, name, scores.concepts, at_least)
            if indices.numel():
                found[name] = indices
        return found

    return choose


def counts(ranked: Ranked) -> tuple[int, int]:
    """(the first concept's top sets, what the concepts' top sets share)."""
    tops = [ranked.tops[concept] for concept in ranked.scores.concepts]
    shared = (intersection([top[name] for top in tops], ranked.recipe.at_least).numel() for name in ranked.names)
    return sum(tops[0][name].numel() for name in ranked.names), sum(shared)


def apart(scores: ScoreSet, names: Sequence[str], recipe: Recipe, concept: str) -> Tops:
    """All that is kept of one concept, without the other concepts' and the protected top sets."""
    sides = [(part, recipe.spares) for part in scores.protected.values()]
    sides += [(part, recipe.ratio) for name, part in scores.concepts.items() if name != concept]
    spared = [top_sets(part, names, ratio, recipe.granularity) for part, ratio in sides]
    kept = scores.concepts[concept].matrices
    return {name: outside(kept[name].indices, [top[name] for top in spared]) for name in names}


def favourable_apart(scores: ScoreSet, names: Sequence[str], recipe: Recipe, concept: str) -> Tops:
    own = {concept: scores.concepts[concept]}
    return {name: favourable(found, name, own) for name, found in apart(scores, names, recipe, concept).items()}


def smallest_ratio(scores: ScoreSet, names: Sequence[str], recipe: Recipe) -> float | None:
    """The smallest ratio at which `coupled` selects a weight by matrix, rounded up to four digits; None when no kept
    ratio does.

    An entry is in the top sets of M concepts from its M-th smallest rank on, and spared where a protected set ranks it
    no lower than that. A `protect_ratio` of None follows the ratio, and then the protected scores limit it too.
    """
    protect_ratio = recipe.protect_ratio
    limiting = [*scores.concepts.values(), *(scores.protected.values() if protect_ratio is None else ())]
    smallest = min(part.info.keep for part in limiting)
    found = None
    for name in names:
        size = scores.first.matrices[name].size
        tops = [part.matrices[name].indices for part in scores.concepts.values()]
        entries: torch.Tensor = torch.cat(tops).unique()  # type: ignore[no-untyped-call]
        ranks = torch.stack([ranks_of(top, entries) for top in tops]).sort(0).values
        needed = ranks[(recipe.at_least or len(tops)) - 1]
        guards = [ranks_of(part.matrices[name].indices, entries) for part in scores.protected.values()]
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


COUPLED = Rule("coupled", by_set, chosen_by(coupled), counts, apart, smallest=smallest_ratio)
COUPLED_SIGNED = Rule("coupled-signed", by_set, chosen_by(coupled, by_margin=True), counts, favourable_apart)
RELEASED = Rule("released", by_set, chosen_by(released), counts, apart, granularities=("matrix",))
