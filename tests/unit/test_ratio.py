"""The choice of the ratio: brute force on a tiny model, the table, and what happens when nothing is allowed."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict
from typing import Any

import pytest
import tiny
import torch
from tiny import score_concept, select

from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel
from spin_llm.models.losses import mean_loss
from spin_llm.results.edited import Recipe
from spin_llm.scores import Scores, ScoreSet, count
from spin_llm.search import ratio as ratio_module
from spin_llm.search.ratio import GRID, choose_ratio

KEEP = 0.05
OPTIONS: dict[str, Any] = {"recipe": Recipe("coupled", 1e-4)}
KEYS = ("ratio", "candidates", "both", "weights", "perplexity", "increase", "allowed", "pairs", "chosen")


@pytest.fixture(scope="module")
def loaded(tiny_model) -> LoadedModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def scores(loaded: LoadedModel) -> tuple[dict[str, Scores], dict[str, Scores]]:
    a, b, c = (score_concept(loaded, tiny.examples(seed), keep=KEEP) for seed in (1, 2, 3))
    return {"fairness": a, "privacy": b}, {"general": c}


@pytest.fixture(scope="module")
def general():
    return tiny.examples(9)


def brute_force(loaded: LoadedModel, scores, general) -> dict[float, tuple[int, float]]:
    """Ratio -> (weights, relative rise of perplexity), by zeroing the weights of a copy of the model."""
    base = math.exp(mean_loss(loaded, general))
    rises = {}
    for ratio in (ratio for ratio in GRID if ratio <= KEEP):
        selection = select(*scores, ratio=ratio, allow_empty=True)
        model = copy.deepcopy(loaded.model)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, indices in selection.indices.items():
                parameters[name].view(-1)[indices] = 0
        edited = LoadedModel(loaded.name, model, loaded.tokenizer, loaded.checkpoint)
        rises[ratio] = (selection.weights, math.exp(mean_loss(edited, general)) / base - 1)
    return rises


@pytest.fixture(scope="module")
def rises(loaded: LoadedModel, scores, general) -> dict[float, tuple[int, float]]:
    found = brute_force(loaded, scores, general)
    assert sum(weights > 0 for weights, _ in found.values()) >= 3, "the model has several ratios to choose from"
    return found


def test_the_grid():
    assert list(GRID) == sorted(GRID)
    assert {1e-7, 5e-7, 2e-5, 5e-4, 1e-2, 5e-2} <= set(GRID)
    assert count(GRID[-1], 100) == round(GRID[-1] * 100), "decimal, not the nearest float above"


@pytest.mark.parametrize("place", range(3))
def test_the_largest_allowed_ratio_is_chosen(loaded: LoadedModel, scores, general, rises, place: int):
    """The limit is put just above the rise of each of three ratios in turn."""
    effective = [ratio for ratio, (weights, _) in rises.items() if weights]
    limit = max(rises[effective[-1 - place]][1], 0.0) + 1e-9
    expected = max(ratio for ratio in effective if rises[ratio][1] <= limit)
    before = copy.deepcopy(loaded.model.state_dict())
    ratio, table = choose_ratio(loaded, ScoreSet(*scores), general, **OPTIONS, max_increase=limit)
    assert ratio == expected
    table = [asdict(row) for row in table]
    after = loaded.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "every trial was taken back"
    assert [row["ratio"] for row in table] == [ratio for ratio in GRID if ratio <= KEEP]
    assert all(set(row) == set(KEYS) for row in table)
    assert [row["ratio"] for row in table if row["chosen"]] == [ratio]
    for row in table:
        weights, rise = rises[row["ratio"]]
        assert row["weights"] == weights <= row["both"] <= row["candidates"]
        if row["ratio"] >= ratio and weights and row["pairs"] < len(general):
            assert row["pairs"] == ratio_module.SCREEN_PAIRS, "hopeless on the first pairs"
            assert not row["allowed"]
            assert rise > limit
        elif row["ratio"] >= ratio and weights:
            assert row["increase"] == pytest.approx(rise, rel=1e-4, abs=1e-7)
            assert row["allowed"] == (row["ratio"] == ratio)
        else:
            assert (row["perplexity"], row["increase"], row["allowed"]) == (None, None, False), "not run"


def test_only_ratios_that_the_scores_keep_are_tried(loaded: LoadedModel, general):
    kept = {name: score_concept(loaded, tiny.examples(1), keep=0.01) for name in ("fairness", "privacy")}
    ratio, table = choose_ratio(loaded, ScoreSet(kept), general, **OPTIONS, max_increase=math.inf)
    assert ratio == table[-1].ratio == 0.01


def test_no_allowed_ratio_shows_the_table(loaded: LoadedModel, scores, general, rises, monkeypatch):
    monkeypatch.setattr(ratio_module, "SCREEN_PAIRS", len(general))
    effective = {ratio for ratio, (weights, rise) in rises.items() if weights and rise > 0}
    assert effective
    with pytest.raises(SpinError, match="No ratio on the grid") as caught:
        choose_ratio(loaded, ScoreSet(*scores), general, **OPTIONS, max_increase=-0.99)
    assert "--max-perplexity-increase" in caught.value.change
    for ratio in effective:
        assert f"{ratio:.0e}" in caught.value.what
        assert f"{rises[ratio][1]:+.2%}" in caught.value.what


def test_nothing_selected_at_any_ratio(loaded: LoadedModel, scores, general):
    concepts, _ = scores
    with pytest.raises(SpinError, match="No ratio on the grid") as caught:
        choose_ratio(loaded, ScoreSet(concepts, {"same": concepts["fairness"]}), general, **OPTIONS)
    assert "select nothing" in caught.value.cause
