"""Controls: other edits of like size, which a gain has to be compared with.

In: the selection of the edit, the scores, the stored weights. Out: selections. `random_like` asks whether any weights
would do, `same_magnitude_like` whether large weights would, `alone` whether weights that are important for one concept
and not for the others would. These have as many weights in the same matrices as the edit, so that neither the
size nor the place explains a difference. `unprotected` and the other rules are at the edit's ratio, of their own size.
Left out: what a control does to the model (evaluate).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from spin_llm.scores import ScoreSet
from spin_llm.selection.rules import KNOWN
from spin_llm.selection.select import Selection, select
from spin_llm.selection.tops import Tops, sorted_tops

NEAREST = 16  # a weight of like magnitude is drawn from this many
Stored = Callable[[str], torch.Tensor]


def control_selection(
    control: str, selection: Selection, scores: ScoreSet, stored: Stored, *, seed: int = 0
) -> Selection:
    """The control of that name beside the edit's `selection`: `random`, `same-magnitude`, `NAME-alone` for a concept,
    `unprotected` (the edit's rule with nothing protected), or another rule.

    `stored(NAME)` gives a matrix's values. Raises SpinError when a rule selects nothing, or does not apply.
    """
    recipe = selection.recipe
    if control == "random":
        return random_like(selection, seed)
    if control == "same-magnitude":
        return same_magnitude_like(selection, stored, seed)
    if control == "unprotected":
        return select(ScoreSet(scores.concepts), recipe)
    if control in KNOWN:
        if KNOWN[recipe.rule].weighs:  # the others are defined by matrix, and protect as much as they choose from
            recipe = replace(recipe, granularity="matrix", protect_ratio=None)
        return select(scores, replace(recipe, rule=control))
    return alone(selection, control.removesuffix("-alone"), scores)


def random_like(selection: Selection, seed: int) -> Selection:
    """As many weights per matrix as `selection` has, drawn at random without replacement."""
    generator = torch.Generator().manual_seed(seed)
    indices = {
        name: torch.randperm(selection.places[name].size, generator=generator)[: chosen.numel()].sort().values
        for name, chosen in selection.indices.items()
    }
    return made(selection, indices, "random")


def same_magnitude_like(selection: Selection, stored: Stored, seed: int) -> Selection:
    """For each weight of `selection` another one of its matrix with almost the same |w|.

    `stored(NAME)` gives a matrix's values, in any shape. Weights are ranked by |w|, equal ones in random order; each
    selected weight, in random order, gets one of the `NEAREST` nearest in rank that are neither selected nor taken.
    Where a matrix has too few others, the control has fewer weights.
    """
    generator = torch.Generator().manual_seed(seed)
    indices = {
        name: found
        for name, chosen in selection.indices.items()
        if (found := _like_magnitudes(stored(name).flatten().float().abs(), chosen, generator)).numel()
    }
    return made(selection, indices, "same-magnitude")


def _like_magnitudes(magnitudes: torch.Tensor, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    shuffled = torch.randperm(len(magnitudes), generator=generator)
    order = shuffled[magnitudes[shuffled].argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    free = torch.ones(len(order), dtype=torch.bool)  # by rank
    free[rank[chosen]] = False
    found = []
    for place in rank[chosen[torch.randperm(len(chosen), generator=generator)]].tolist():
        nearest = _nearest_free(free, place)
        if len(nearest):
            taken = nearest[int(torch.randint(len(nearest), (1,), generator=generator))]
            free[taken] = False
            found.append(order[taken])
    return torch.stack(found).sort().values if found else chosen[:0]


def _nearest_free(free: torch.Tensor, place: int) -> torch.Tensor:
    """The at most NEAREST free ranks nearest to `place`; of two as near, the lower first."""
    reach = NEAREST
    while True:
        low = max(0, place - reach)
        ranks = free[low : place + reach + 1].nonzero()[:, 0] + low
        if len(ranks) >= NEAREST or reach >= len(free):
            return ranks[(ranks - place).abs().argsort(stable=True)[:NEAREST]]
        reach *= 2


def alone(selection: Selection, concept: str, scores: ScoreSet) -> Selection:
    """One concept alone: its most important weights that are in no other concept's top set and not protected, in each
    matrix as many as `selection` has there.

    The rule with one concept at the edit's ratio selects more weights than the edit does, and the most important of
    them are mostly the coupled ones (measured: docs/controls.md): neither would tell coupling from importance for one
    concept. `coupled-signed` takes only weights that are favourable to the concept; `signed` the concept's largest
    margins that are not among those that another concept keeps.
    """
    recipe = selection.recipe
    own = KNOWN[recipe.rule].apart(scores, list(selection.places), recipe, concept)
    taken = {name: own[name][: chosen.numel()] for name, chosen in selection.indices.items()}
    return made(selection, sorted_tops(taken), f"{concept}-alone")


def made(selection: Selection, indices: Tops, name: str) -> Selection:
    """Other `indices` in the place of the selection's, and the name of what chose them."""
    return replace(selection, indices=indices, recipe=replace(selection.recipe, rule=name))
