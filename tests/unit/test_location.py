"""Where weights live: counts, recurring dimensions, concentration against chance, agreement between selections."""

from __future__ import annotations

import json
from itertools import islice, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import select

from spin_llm.analysis.location import agreement, by_statistic, gini, location_report, selection_grid
from spin_llm.errors import SpinError
from spin_llm.paper.measures import others
from spin_llm.results.edited import Recipe
from spin_llm.results.file import written
from spin_llm.results.paper import Arm
from spin_llm.scores import MatrixScores, Scores, ScoreSet, ScoresInfo
from spin_llm.scores.storage import keep_top
from spin_llm.selection import Selection, random_like
from spin_llm.selection import select as selection_of

UP, DOWN = ((f"model.layers.{{}}.mlp.{name}.weight", shape) for name, shape in (("up", (6, 4)), ("down", (4, 6))))
LAYERS = 5


def chosen(entries: dict[tuple[int, str], list[tuple[int, int]]], rule: str = "coupled") -> Selection:
    """A selection of (row, column) entries by (layer, "up" or "down")."""
    empty = torch.empty(0, dtype=torch.int64)
    places = {
        name.format(layer): MatrixScores(empty, empty.float(), shape, layer, "mlp")
        for layer in range(LAYERS)
        for name, shape in (UP, DOWN)
    }
    indices = {}
    for (layer, kind), cells in entries.items():
        name, shape = UP if kind == "up" else DOWN
        indices[name.format(layer)] = torch.tensor(sorted(row * shape[1] + column for row, column in cells))
    return Selection(indices, Recipe(rule, 0.1, protect_ratio=0.1), places)


def report(selections: dict[str, Selection], **options: Any) -> Any:
    """`location_report` as JSON has it."""
    return written(location_report(selections, **options))


# input dimension 2 of `up` in layers 0, 1 and 3; output dimension 2 of `down` in layer 4
EDIT = chosen({(0, "up"): [(0, 2), (5, 2)], (1, "up"): [(3, 2)], (3, "up"): [(1, 2), (1, 0)], (4, "down"): [(2, 1)]})


def test_counts_by_layer_and_matrix():
    found = report({"edit": EDIT})["selections"]["edit"]
    assert (found["weights"], found["of"], found["rule"], found["ratio"]) == (6, 240, "coupled", 0.1)
    assert found["layers"] == [2, 1, 0, 2, 1]
    assert found["matrices"] == {"mlp.up": [2, 1, 0, 2, 0], "mlp.down": [0, 0, 0, 0, 1]}
    assert found["gini_layers"]["value"] == pytest.approx(gini(np.array([2, 1, 0, 2, 1])))
    assert found["gini_matrices"]["value"] == pytest.approx(gini(np.array([2, 1, 0, 2, 1, 0, 0, 0, 0, 0])))


def test_dimensions_that_recur():
    up = report({"edit": EDIT}, most=2)["selections"]["edit"]["dimensions"]["mlp.up"]
    assert (up["input"]["size"], up["output"]["size"]) == (4, 6)
    assert (up["input"]["used"], up["output"]["used"]) == (2, 4)
    assert up["input"]["most"] == [
        {"dimension": 2, "layers": 3, "weights": 4},
        {"dimension": 0, "layers": 1, "weights": 1},
    ]
    assert (up["input"]["layers_sharing"], up["output"]["layers_sharing"]) == (3, 1)
    assert up["input"]["layers_sharing_by_chance"] < 3
    assert up["input"]["gini"]["value"] > up["input"]["gini"]["by_chance"]


def test_transposed_storage_swaps_the_sides():
    plain, swapped = (
        report({"edit": EDIT, "other": chosen({(0, "up"): [(0, 1)]})}, transposed=transposed)
        for transposed in (False, True)
    )
    assert (
        plain["selections"]["edit"]["dimensions"]["mlp.up"]["input"]["most"]
        == swapped["selections"]["edit"]["dimensions"]["mlp.up"]["output"]["most"]
    )
    assert plain["agreement"]["output"] == swapped["agreement"]["input"]
    assert plain["agreement"]["output"] != plain["agreement"]["input"]


def test_experts_of_a_layer_are_added_up_and_layers_may_differ_in_size():
    empty = torch.empty(0, dtype=torch.int64)
    shapes = {(0, 0): (3, 4), (0, 1): (3, 4), (1, 0): (5, 4)}
    names = {at: f"model.layers.{at[0]}.mlp.experts.{at[1]}.up.weight" for at in shapes}
    places = {names[at]: MatrixScores(empty, empty.float(), shape, at[0], "mlp") for at, shape in shapes.items()}
    indices = {name: torch.tensor([1, 9]) for name in names.values()}  # entries (0, 1) and (2, 1)
    selection = Selection(indices, Recipe("coupled", 0.1, protect_ratio=0.1), places)
    found = report({"edit": selection})["selections"]["edit"]
    assert found["matrices"] == {"mlp.experts.*.up": [4, 2]}
    sides = found["dimensions"]["mlp.experts.*.up"]
    assert sides["input"]["most"] == [{"dimension": 1, "layers": 2, "weights": 6}]
    assert (sides["output"]["size"], sides["output"]["used"]) == (5, 2)


def test_random_weights_are_as_concentrated_as_chance():
    cells = list(product(range(6), range(4)))
    many = chosen({(layer, "up"): cells[:12] for layer in range(LAYERS)})
    found = report({"random": random_like(many, 3)}, draws=400)["selections"]["random"]
    for side in ("input", "output"):
        measured = found["dimensions"]["mlp.up"][side]["gini"]
        assert measured["value"] == pytest.approx(measured["by_chance"], abs=0.15)
    assert found["gini_matrices"]["value"] > found["gini_matrices"]["by_chance"]  # `up` alone was chosen


def test_agreement_by_weights_and_by_dimensions():
    other = chosen({(0, "up"): [(0, 2), (4, 2)], (4, "down"): [(0, 1)]})
    found = written(agreement({"edit": EDIT, "other": other, "none": chosen({})}))
    assert found["names"] == ["edit", "other", "none"]
    # one weight shared of 6 + 3; outputs 5 and 3 with one shared; inputs 1 + 1 + 2 + 1 and 1 + 1, two shared
    assert found["weights"][0][1] == 1 / 8
    assert found["output"][0][1] == 1 / 7
    assert found["input"][0][1] == 2 / 5
    assert found["chance"][0][1] == pytest.approx((2 * 2 / 24 + 1 / 24) / (9 - 5 / 24))
    assert found["chance"][0][0] is None
    assert (found["weights"][0][0], found["weights"][0][2], found["weights"][2][2]) == (1, 0, None)


def test_the_report_is_json_and_takes_an_empty_selection():
    found = json.loads(json.dumps(report({"none": chosen({})}), allow_nan=False))["selections"]["none"]
    assert found["gini_layers"] == {"value": None, "by_chance": None}
    assert found["dimensions"]["mlp.up"]["input"]["most"] == []


def scores(seed: int) -> Scores:
    generator = np.random.default_rng(seed)
    values = torch.from_numpy(np.sort(generator.random(240).astype(np.float32))[::-1].copy())
    matrix = MatrixScores(torch.from_numpy(generator.permutation(240)), values, (20, 12), 0, "mlp")
    return Scores({"model.layers.0.mlp.up.weight": matrix}, ScoresInfo(keep=1.0, model="m", target="mlp"))


def test_a_grid_of_rules_and_ratios():
    concepts, protected = {"fairness": scores(0), "privacy": scores(1)}, {"general": scores(2)}
    recipes = [Recipe(rule, ratio) for rule in ("coupled", "released") for ratio in (0.001, 0.3, 0.5)]
    grid = selection_grid(ScoreSet(concepts, protected), recipes)
    assert list(grid) == [f"{rule}@{ratio}" for rule in ("coupled", "released") for ratio in ("0.001", "0.3", "0.5")]
    assert grid["coupled@0.001"].weights == 0
    alone = select(concepts, protected, ratio=0.3)
    assert all(torch.equal(grid["coupled@0.3"].indices[name], alone.indices[name]) for name in alone.indices)
    jaccard = report(grid)["agreement"]["weights"]
    assert 0 <= jaccard[2][5] < 1  # coupled against released


@pytest.mark.parametrize(("given", "protect_ratio"), [(None, None), (0.2, None), (0.05, 0.05)])
def test_other_ratios_protect_as_the_edit_does(given: float | None, protect_ratio: float | None):
    """A protect ratio that follows the ratio does so at another one too, also where the patch names it."""
    made = ScoreSet({"fairness": scores(0), "privacy": scores(1)}, {"general": scores(2)})
    recipe = Recipe("coupled", 0.2, protect_ratio=given)
    work, edit = SimpleNamespace(settings=SimpleNamespace(seed=0)), selection_of(made, recipe)
    rows = islice(others(work, Arm("SPIN", "edit"), edit, made), 4)  # type: ignore[arg-type]
    found = {name: selection for name, selection, _ in rows}["2 x the ratio"]
    wanted = select(made.concepts, made.protected, ratio=0.4, protect_ratio=protect_ratio)
    assert found is not None
    assert wanted.weights > 0
    assert {name: kept.tolist() for name, kept in found.indices.items()} == {
        name: kept.tolist() for name, kept in wanted.indices.items()
    }


def test_one_score_file_serves_several_selectors():
    dense = {name: torch.from_numpy(np.random.default_rng(seed).random((20, 12))) for seed, name in enumerate("ab")}
    matrix = SimpleNamespace(weight=torch.zeros(20, 12), layer=0, kind="mlp")
    first, second = (
        Scores({"w": keep_top(dense, selector, matrix, 0.1)}, ScoresInfo(selector=selector, statistics=("a", "b")))
        for selector in "ab"
    )
    found = by_statistic(first, "b")
    assert found.info == second.info
    assert torch.equal(found.matrices["w"].indices, second.matrices["w"].indices)
    assert torch.equal(found.matrices["w"].values, second.matrices["w"].values)
    assert set(found.matrices["w"].others) == {"a"}
    back = by_statistic(found, "a").matrices["w"]
    assert torch.equal(back.indices, first.matrices["w"].indices)
    assert by_statistic(first, "a") is first
    with pytest.raises(SpinError, match="hold no 'wanda'"):
        by_statistic(first, "wanda")


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12))
def test_gini_is_half_the_mean_difference_over_the_mean(counts: list[int]):
    values = np.array(counts)
    found = gini(values)
    if not values.sum():
        assert found is None
        return
    differences = np.abs(values[:, None] - values[None]).mean()
    assert found == pytest.approx(differences / 2 / values.mean())
    assert 0 <= found <= 1 - 1 / len(values) + 1e-12
