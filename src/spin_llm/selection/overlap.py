"""How far the top sets of the concepts and of the protected sets overlap: the regions of their Venn diagram.

In: top sets by set and matrix. Out: the `overlap` part of results.json, with the number of weights in each exclusive
region, summed over the matrices. Left out: drawing it (report).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch

from spin_llm.results.edited import Regions
from spin_llm.scores import ScoreSet
from spin_llm.selection.select import Selection
from spin_llm.selection.tops import Tops, top_sets


def regions(sets: Mapping[str, Tops]) -> dict[str, int]:
    """Sizes of the exclusive regions: `A&B` counts the entries in the sets A and B and in no other.

    Every set has the same matrices, each with unique flat indices. All 2^n - 1 regions are named, in the sets' order.
    """
    sizes = torch.zeros(2 ** len(sets), dtype=torch.int64)
    for matrix in next(iter(sets.values())):
        tops = [top[matrix] for top in sets.values()]
        entries, place = torch.unique(torch.cat(tops), return_inverse=True)
        # the bits of an entry's code say which sets it is in
        bits = torch.cat([torch.full_like(top, 2**number) for number, top in enumerate(tops)])
        codes = torch.zeros_like(entries).index_add_(0, place, bits)
        sizes += torch.bincount(codes, minlength=len(sizes))
    members = [group for size in range(1, len(sets) + 1) for group in combinations(range(len(sets)), size)]
    names = list(sets)
    return {
        "&".join(names[number] for number in group): int(sizes[sum(2**number for number in group)]) for group in members
    }


def overlap(selection: Selection, scores: ScoreSet) -> Regions:
    """The regions of the top sets that `selection` was made from: names of the concepts and protected sets, sizes."""
    recipe = selection.recipe
    sets = {
        name: top_sets(part, list(selection.places), ratio, recipe.granularity)
        for side, ratio in ((scores.concepts, recipe.ratio), (scores.protected, recipe.spares))
        for name, part in side.items()
    }
    return Regions(list(scores.concepts), list(scores.protected), regions(sets))
