"""Top sets: the largest scores of each matrix, row, layer, or of the whole model.

In: kept scores, a ratio. Out: flat indices by matrix name, and how far such sets overlap. For a matrix of n entries, or
another unit of that many:

    N_D(r) = the floor(r * n) entries with the largest importance on D        (paper, section 3.3)

Left out: what a rule makes of them (rules/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import torch

from spin_llm.errors import SpinError
from spin_llm.results.edited import Layers
from spin_llm.scores import MatrixScores, Scores, ScoreSet, count

if TYPE_CHECKING:
    from jaxtyping import Int64, Shaped

    Entries = Int64[torch.Tensor, " _"]  # flat indices of one matrix

Tops = dict[str, torch.Tensor]  # flat indices (int64) by matrix name
GRANULARITIES = ("matrix", "row", "layer", "model")


def targeted(scores: ScoreSet, target: str, layers: Layers | None = None) -> list[str]:
    """The names of the targeted matrices, of all layers or of `layers`; SpinError when the scores hold none."""
    matrices = scores.first.matrices
    names = [name for name, place in matrices.items() if target in ("all", place.kind)]
    if names and layers is not None:
        last = max(matrices[name].layer for name in names)
        names = [name for name in names if layers[0] <= matrices[name].layer <= layers[1]]
        if not names:
            raise SpinError(f"--layers {layers[0]}-{layers[1]} names no layer.", change=f"the last layer is {last}.")
    if not names:
        raise SpinError(f"The scores hold no {target} matrix.", change=f"score again with --target {target}.")
    return names


def top_sets(
    scores: Scores, names: Sequence[str], ratio: float, granularity: str = "matrix", *, decided: bool = True
) -> Tops:
    """Each matrix's part of the top set: flat indices (int64), largest first within a matrix.

    The top set is the floor(ratio * n) largest entries of each matrix, of each row of a matrix as stored, of all
    matrices of a layer together, or of the whole model; n counts the entries of that unit. Raises SpinError when the
    kept entries do not decide it, unless `decided` is False: then it is the top of the kept entries.
    """
    matrices = {name: scores.matrices[name] for name in names}
    if granularity == "matrix":
        return {name: matrix.indices[: count(ratio, matrix.size)] for name, matrix in matrices.items()}
    if granularity == "row":
        return {name: _top_of_rows(matrix, ratio) for name, matrix in matrices.items()}
    units: dict[int, list[str]] = {}
    for name, matrix in matrices.items():
        units.setdefault(matrix.layer if granularity == "layer" else 0, []).append(name)
    tops: Tops = {}
    for unit in units.values():
        tops |= _top_together({name: matrices[name] for name in unit}, ratio, decided)
    return {name: tops[name] for name in names}


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


def sorted_tops(tops: Tops) -> Tops:
    """The same entries, sorted; matrices without any left out."""
    return {name: top.sort().values for name, top in tops.items() if top.numel()}


def at_entries(
    indices: Entries, values: Shaped[torch.Tensor, " _"], wanted: Int64[torch.Tensor, " n"], absent: float
) -> Shaped[torch.Tensor, " n"]:
    """`values` of the entries `wanted` (sorted or not), `absent` where an entry is not among `indices`."""
    if not len(indices):
        return torch.full(wanted.shape, absent)
    order = indices.argsort()
    place = torch.searchsorted(indices[order], wanted).clamp_max(len(indices) - 1)
    found = order[place]
    return torch.where(indices[found] == wanted, values[found], absent)


def outside(entries: Entries, spared: Sequence[Entries]) -> Entries:
    """The `entries` that are in none of `spared`, in their order."""
    for others in spared:
        entries = entries[~torch.isin(entries, others)]
    return entries


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
