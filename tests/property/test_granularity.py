"""Top sets by matrix, row, layer and model against a full sort of the dense scores, drawn by hypothesis: few distinct
values, so that ties are common, and little is kept, so that it often does not decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from tiny import select

from spin_llm.errors import SpinError
from spin_llm.models import Matrix
from spin_llm.scores import Scores, ScoresInfo, count, load_scores, save_scores
from spin_llm.scores.storage import keep_top
from spin_llm.selection import GRANULARITIES, top_sets

# (rows, columns) and layer of each matrix
PLACES = {"a": ((3, 5), 0), "b": ((4, 3), 0), "c": ((2, 6), 1), "d": ((1, 7), 1), "e": ((5, 1), 2)}
Dense = dict[str, torch.Tensor]

values = st.one_of(st.integers(0, 3).map(float), st.floats(-5, 5, width=32))
FEW = settings(max_examples=30)
fractions = st.integers(1, 99).map(lambda percent: percent / 100)


@st.composite
def dense_scores(draw: Any) -> Dense:
    return {
        name: torch.tensor(draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))).view(rows, columns)
        for name, ((rows, columns), _) in PLACES.items()
    }


def kept(dense: Dense, keep: float, granularity: str) -> Scores:
    matrices = {}
    for name, ((rows, columns), layer) in PLACES.items():
        module = torch.nn.Linear(columns, rows, bias=False)
        matrix = Matrix(name, module, layer, "mlp", False)
        matrices[name] = keep_top({"taylor": dense[name]}, "taylor", matrix, keep, granularity)
    about = {"keep": keep, "granularity": granularity, "model": "0123", "target": "mlp", "selector": "taylor"}
    return Scores(matrices, ScoresInfo(**about))


def units(granularity: str) -> list[list[tuple[str, int]]]:
    """Groups of (matrix, flat index): each has a top set of its own."""
    groups: dict[Any, list[tuple[str, int]]] = {}
    for name, ((rows, columns), layer) in PLACES.items():
        for index in range(rows * columns):
            key = {"matrix": name, "row": (name, index // columns), "layer": layer, "model": 0}[granularity]
            groups.setdefault(key, []).append((name, index))
    return list(groups.values())


def brute(dense: Dense, ratio: float, granularity: str) -> dict[str, list[int]]:
    """The top set by matrix, sorted: a full sort of each unit, ties by the order of matrices, then of indices."""
    tops: dict[str, list[int]] = {name: [] for name in PLACES}
    for unit in units(granularity):
        order = sorted(range(len(unit)), key=lambda n: (-float(dense[unit[n][0]].flatten()[unit[n][1]]), n))
        for number in order[: count(ratio, len(unit))]:
            tops[unit[number][0]].append(unit[number][1])
    return {name: sorted(indices) for name, indices in tops.items()}


def undecided(tops: dict[str, list[int]], scores: Scores, granularity: str) -> bool:
    """Whether a matrix that is not kept whole has all that is kept of it in a top set of several matrices."""
    if granularity in ("matrix", "row"):
        return False
    return any(len(tops[name]) >= len(m.indices) and len(m.indices) < m.size for name, m in scores.matrices.items())


@pytest.mark.parametrize("granularity", GRANULARITIES)
@FEW
@given(dense=dense_scores(), one=fractions, other=fractions)
def test_top_sets_are_those_of_a_full_sort_or_an_error(granularity: str, dense: Dense, one: float, other: float):
    ratio, keep = sorted((one, other))
    scores = kept(dense, keep, granularity)
    expected = brute(dense, ratio, granularity)
    if undecided(expected, scores, granularity):
        event("undecided")
        with pytest.raises(SpinError, match=r"do not decide(.|\n)*--keep"):
            top_sets(scores, list(PLACES), ratio, granularity)
        return
    event("decided")
    found = top_sets(scores, list(PLACES), ratio, granularity)
    assert {name: sorted(indices.tolist()) for name, indices in found.items()} == expected


@pytest.mark.parametrize("granularity", GRANULARITIES)
@FEW
@given(several=st.lists(dense_scores(), min_size=1, max_size=3), protected=dense_scores(), ratio=fractions)
def test_the_rule_on_top_sets_of_any_granularity(
    granularity: str, several: Sequence[Dense], protected: Dense, ratio: float
):
    """Everything is kept (0.99 leaves one entry of each row out), so that ratios of half are decided."""
    ratio, keep = ratio / 2, 0.99
    concepts = {f"concept {number}": kept(dense, keep, granularity) for number, dense in enumerate(several)}
    spared = {"general": kept(protected, keep, granularity)}
    tops = [brute(dense, ratio, granularity) for dense in several]
    guarded = brute(protected, ratio, granularity)
    everything = [(top, scores) for top, scores in zip(tops, concepts.values(), strict=True)]
    if any(undecided(top, scores, granularity) for top, scores in [*everything, (guarded, spared["general"])]):
        return
    found = select(concepts, spared, ratio=ratio, granularity=granularity, allow_empty=True)
    wanted = {name: sorted(set.intersection(*(set(top[name]) for top in tops)) - set(guarded[name])) for name in PLACES}
    assert {name: chosen.tolist() for name, chosen in found.indices.items()} == {n: w for n, w in wanted.items() if w}
    assert found.candidates == sum(len(indices) for indices in tops[0].values())


@FEW
@given(dense=dense_scores(), keep=fractions)
def test_rows_are_kept_row_by_row(dense: Dense, keep: float):
    for name, matrix in kept(dense, keep, "row").matrices.items():
        columns = matrix.shape[1]
        each = max(1, count(keep, columns))
        assert torch.bincount(matrix.indices // columns, minlength=matrix.shape[0]).tolist() == [each] * matrix.shape[0]
        assert torch.equal(matrix.values, dense[name].flatten()[matrix.indices])
        pairs = list(zip((-matrix.values).tolist(), matrix.indices.tolist(), strict=True))
        assert pairs == sorted(pairs), "largest first, ties by lower index"


def test_scores_kept_by_row_and_by_matrix_are_not_mixed(tmp_path):
    torch.manual_seed(0)
    dense = {name: torch.rand(shape) for name, (shape, _) in PLACES.items()}
    for kept_by, asked in (("row", "matrix"), ("matrix", "row"), ("row", "model"), ("layer", "row")):
        save_scores(tmp_path / "a.safetensors", kept(dense, 0.5, kept_by))
        with pytest.raises(SpinError, match=f"kept by {kept_by}; a selection by {asked}"):
            select({"a": load_scores(tmp_path / "a.safetensors")}, {}, ratio=0.2, granularity=asked)
    for kept_by, asked in (("matrix", "layer"), ("layer", "model"), ("model", "matrix")):
        select({"a": kept(dense, 0.9, kept_by)}, {}, ratio=0.1, granularity=asked)  # 0.9 decides every top set


def test_unknown_granularities_and_the_released_rule():
    scores = kept({name: torch.rand(shape) for name, (shape, _) in PLACES.items()}, 0.5, "matrix")
    with pytest.raises(SpinError, match=r"'column'(.|\n)*matrix, row, layer, model"):
        select({"a": scores}, {}, ratio=0.1, granularity="column")
    with pytest.raises(SpinError, match=r"matrix by matrix(.|\n)*--granularity matrix"):
        select({"a": scores}, {}, rule="released", ratio=0.1, granularity="layer")
