"""Where chosen weights live: layers, matrices, dimensions that recur, how concentrated they are, and whether other
seeds, data, ratios or rules choose the same.

In: selections by name (from score files, without the model). Out: `LocationRecord`. A matrix has output and input
dimensions: the rows and columns as torch's Linear stores it. The Gini coefficient of m counts is 0 where all are equal
and 1 - 1/m where one holds everything; few weights over many dimensions have a high one by chance alone, so each stands
beside the mean of as many weights put at random. Left out: drawing; why weights lie where they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import compress

import numpy as np
import torch
from numpy.typing import NDArray

from spin_llm.errors import SpinError
from spin_llm.results.edited import Recipe, matrix_column
from spin_llm.results.paper import Agreement, BesideChance, LocationRecord, Recurring, SelectionPlace, SideRecord
from spin_llm.scores import MatrixScores, Scores, ScoreSet
from spin_llm.scores.storage import Kept
from spin_llm.selection import Selection, select

Counts = NDArray[np.int64]


def location_report(
    selections: Mapping[str, Selection], *, draws: int = 50, most: int = 10, transposed: bool = False, seed: int = 0
) -> LocationRecord:
    """Where each selection's weights are, and how far each two selections agree.

    `draws` random placements stand beside each Gini; `most` dimensions are named per matrix and side. `transposed`: the
    matrices are stored (in, out), as GPT-2's.
    """
    return LocationRecord(
        selections={name: _location(one, draws, most, transposed, seed) for name, one in selections.items()},
        agreement=agreement(selections, transposed=transposed),
    )


def selection_grid(scores: ScoreSet, recipes: Iterable[Recipe]) -> dict[str, Selection]:
    """`RULE@RATIO` -> what a recipe selects, which may be nothing. Raises as `select` does."""
    return {f"{recipe.rule}@{recipe.ratio:g}": select(scores, recipe, allow_empty=True) for recipe in recipes}


def by_statistic(scores: Scores, statistic: str) -> Scores:
    """The scores as if `statistic` had been the selector, from what the file keeps of it beside the selector.

    Raises SpinError when the file does not hold it.
    """
    selector, held = str(scores.info.selector), scores.info.statistics
    if statistic == selector:
        return scores
    if statistic not in held:
        raise SpinError(
            f"The scores hold no {statistic!r}, only {', '.join(held)}.",
            change=f"score again with --statistics {statistic}.",
        )
    matrices = {}
    for name, matrix in scores.matrices.items():
        kept = matrix.others[statistic]
        others = {**matrix.others, selector: Kept(matrix.indices, matrix.values)}
        del others[statistic]
        matrices[name] = replace(matrix, indices=kept.indices, values=kept.values, others=others)
    return Scores(matrices, replace(scores.info, selector=statistic))


def gini(counts: Counts) -> float | None:
    """Gini coefficient of counts (m,), the zeros among them included; None where all are 0.

    Half the mean absolute difference between two of them, over their mean (Dorfman 1979, equation 9).
    """
    total, m = counts.sum(), len(counts)
    if not total:
        return None
    ranks = np.arange(1, m + 1)
    return float((2 * ranks - m - 1) @ np.sort(counts) / (m * total))


def agreement(selections: Mapping[str, Selection], *, transposed: bool = False) -> Agreement:
    """Jaccard coefficients |A and B| / |A or B| of each two selections: of `weights`, and of the `output` and the
    `input` dimensions (of a matrix) that hold any; None for two empty ones.

    `chance`: of the weights, had each selection its number in each matrix at random (ratio of expected sizes).
    """
    chosen = list(selections.values())

    def compared(of: Callable[[torch.Tensor, int], torch.Tensor]) -> list[list[float | None]]:
        sets = [{name: of(found, s.places[name].shape[1]) for name, found in s.indices.items()} for s in chosen]
        return [[_jaccard(a, b) for b in sets] for a in sets]

    rows = compared(lambda indices, columns: (indices // columns).unique())
    columns = compared(lambda indices, columns: (indices % columns).unique())
    output, inputs = (columns, rows) if transposed else (rows, columns)
    chance = [[None if a is b else _chance(a, b) for b in chosen] for a in chosen]
    return Agreement(list(selections), compared(lambda indices, columns: indices), output, inputs, chance)


def _jaccard(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> float | None:
    shared = sum(int(torch.isin(left[name], right[name]).sum()) for name in left.keys() & right.keys())
    union = sum(map(len, left.values())) + sum(map(len, right.values())) - shared
    return shared / union if union else None


def _chance(left: Selection, right: Selection) -> float | None:
    shared = sum(
        len(left.indices[name]) * len(right.indices[name]) / left.places[name].size
        for name in sorted(left.indices.keys() & right.indices.keys())  # sums in one order
    )
    union = left.weights + right.weights - shared
    return shared / union if union else None


def _location(selection: Selection, draws: int, most: int, transposed: bool, seed: int) -> SelectionPlace:
    """One selection's part of the report."""
    draw = np.random.default_rng(seed)
    places = selection.places
    counts = np.array([len(selection.indices.get(name, ())) for name in places])
    sizes = np.array([place.size for place in places.values()])
    random = draw.multinomial(int(counts.sum()), sizes / sizes.sum(), size=draws)
    layer_of = np.array([place.layer for place in places.values()])
    columns = np.array([matrix_column(name, place.layer) for name, place in places.items()])
    layers, members = int(layer_of.max()) + 1, {column: columns == column for column in dict.fromkeys(columns.tolist())}
    return SelectionPlace(
        weights=selection.weights,
        of=int(sizes.sum()),
        rule=selection.recipe.rule,
        ratio=selection.recipe.ratio,
        layers=_sums(layer_of, counts, layers).tolist(),
        matrices={column: _sums(layer_of[own], counts[own], layers).tolist() for column, own in members.items()},
        gini_layers=_beside_chance(*(_sums(layer_of, row, layers) for row in (counts, *random))),
        gini_matrices=_beside_chance(counts, *random),
        dimensions={
            column: _dimensions(selection, list(compress(places, own)), draw, draws, most, transposed)
            for column, own in members.items()
        },
    )


def _dimensions(
    selection: Selection, members: Sequence[str], draw: np.random.Generator, draws: int, most: int, transposed: bool
) -> dict[str, SideRecord]:
    """Of the matrices of one name over the layers, by side: size, dimensions in use, Gini of the weights per dimension,
    the most layers that share a dimension, and the dimensions `most` often shared. Chance: as many weights per matrix,
    at random."""
    places = {name: selection.places[name] for name in members}
    chosen = {name: selection.indices[name].numpy() for name in members if name in selection.indices}
    tables = [_tables(places, chosen)]
    for _ in range(draws):
        placed = {name: draw.integers(places[name].size, size=len(found)) for name, found in chosen.items()}
        tables.append(_tables(places, placed))
    sides = ("input", "output") if transposed else ("output", "input")
    return {side: _side(of_side, most) for side, of_side in zip(sides, zip(*tables, strict=True), strict=True)}


def _tables(places: Mapping[str, MatrixScores], chosen: Mapping[str, Counts]) -> tuple[Counts, Counts]:
    """Weights by (layer, row) and by (layer, column); matrices of one layer (experts) are added up, and where layers
    differ in size the largest counts."""
    rows, columns = (max(place.shape[axis] for place in places.values()) for axis in (0, 1))
    layers = max(place.layer for place in places.values()) + 1
    by_row, by_column = np.zeros((layers, rows), np.int64), np.zeros((layers, columns), np.int64)
    for name, indices in chosen.items():
        place = places[name]
        by_row[place.layer] += np.bincount(indices // place.shape[1], minlength=rows)
        by_column[place.layer] += np.bincount(indices % place.shape[1], minlength=columns)
    return by_row, by_column


def _side(tables: Sequence[Counts], most: int) -> SideRecord:
    """From weights by (layer, dimension): the observed table first, random ones after it."""
    observed = tables[0]
    weights, layers = observed.sum(0), (observed > 0).sum(0)
    order = [place for place in np.lexsort((-weights, -layers))[:most] if weights[place]]
    return SideRecord(
        size=len(weights),
        used=int((weights > 0).sum()),
        gini=_beside_chance(*(table.sum(0) for table in tables)),
        layers_sharing=int(layers.max()),
        layers_sharing_by_chance=_mean([int((table > 0).sum(0).max()) for table in tables[1:]]),
        most=[Recurring(int(place), int(layers[place]), int(weights[place])) for place in order],
    )


def _beside_chance(observed: Counts, *random: Counts) -> BesideChance:
    by_chance = [value for counts in random if (value := gini(counts)) is not None]
    return BesideChance(gini(observed), _mean(by_chance))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _sums(groups: Counts, counts: Counts, size: int) -> Counts:
    """(size,): the counts of each group added up."""
    return np.bincount(groups, weights=counts, minlength=size).astype(np.int64)
