"""The smallest ratio that selects anything.

In: kept scores. Out: a ratio that can be typed back. Left out: the selection at it (select.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_CEILING, Context, Decimal

import torch

from spin_llm.results.recipe import Recipe
from spin_llm.scores import ScoreSet, count
from spin_llm.selection.tops import at_entries

UNRANKED = torch.iinfo(torch.int64).max


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
