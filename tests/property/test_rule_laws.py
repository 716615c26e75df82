"""The laws of every rule: the same for each of them, on the same scores."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_signed_laws import KEEP, NAMES, made

from spin_llm.errors import SpinError
from spin_llm.results.edited import Recipe
from spin_llm.scores import Scores, ScoreSet, count
from spin_llm.scores.storage import Kept
from spin_llm.selection import Selection, select
from spin_llm.selection.rules import KNOWN

EVERY_RULE = pytest.mark.parametrize("rule", KNOWN)
SIZE = 60
drawn = given(seed=st.integers(0, 10_000), ratio=st.sampled_from([0.05, 0.2, 0.5]), spare=st.sampled_from([0.02, 0.2]))


def scores_of(seed: int) -> ScoreSet:
    return ScoreSet(*made(seed))


def chosen(scores: ScoreSet, rule: str, ratio: float, spare: float, **options: object) -> Selection:
    recipe = replace(Recipe(rule, ratio, protect_ratio=spare, target="mlp"), **options)
    return select(scores, recipe, allow_empty=True)


def entries(selection: Selection) -> dict[str, list[int]]:
    return {name: indices.tolist() for name, indices in selection.indices.items()}


def scaled(scores: Scores, factor: float) -> Scores:
    """All scores of a concept times a power of two, which rounds nothing."""
    matrices = {
        name: replace(
            matrix,
            values=matrix.values * factor,
            others={key: Kept(kept.indices, kept.values * factor) for key, kept in matrix.others.items()},
            at={key: values * factor for key, values in matrix.at.items()},
        )
        for name, matrix in scores.matrices.items()
    }
    return replace(scores, matrices=matrices)


@EVERY_RULE
@drawn
def test_it_chooses_each_weight_once_in_order_and_no_more_than_it_may(rule: str, seed: int, ratio: float, spare: float):
    found = chosen(scores_of(seed), rule, ratio, spare)
    assert set(found.indices) <= set(NAMES) == set(found.places)
    for indices in found.indices.values():
        assert indices.dtype == torch.int64
        assert 0 < indices.numel() <= count(ratio, SIZE), "a matrix without a weight is left out"
        assert (indices.diff() > 0).all()
        assert 0 <= int(indices[0]) <= int(indices[-1]) < SIZE
    assert found.recipe.rule == rule
    assert found.weights <= found.targeted_weights == SIZE * len(NAMES)


@EVERY_RULE
@drawn
def test_it_depends_on_the_scores_alone(rule: str, seed: int, ratio: float, spare: float):
    """Not on when it is asked, on the names of the concepts, or on the unit in which one of them is scored."""
    scores = scores_of(seed)
    found = entries(chosen(scores, rule, ratio, spare))
    assert entries(chosen(scores_of(seed), rule, ratio, spare)) == found
    named = ScoreSet({f"another {name}": part for name, part in scores.concepts.items()}, scores.protected)
    assert entries(chosen(named, rule, ratio, spare)) == found
    first, *others = scores.concepts
    louder = {first: scaled(scores.concepts[first], 8.0), **{name: scores.concepts[name] for name in others}}
    assert entries(chosen(ScoreSet(louder, scores.protected), rule, ratio, spare)) == found


@EVERY_RULE
@drawn
def test_of_some_layers_it_chooses_there_alone(rule: str, seed: int, ratio: float, spare: float):
    found = chosen(scores_of(seed), rule, ratio, spare, layers=(1, 1))
    assert set(found.places) == {NAMES[1]}
    assert set(found.indices) <= {NAMES[1]}


@EVERY_RULE
@pytest.mark.parametrize("ratio", [0.0, 1.0, KEEP + 0.1])
def test_a_ratio_out_of_range_or_above_what_is_kept_is_refused(rule: str, ratio: float):
    with pytest.raises(SpinError, match=r"out of range|needs more"):
        chosen(scores_of(0), rule, ratio, 0.02)


@EVERY_RULE
def test_nothing_chosen_is_an_error_unless_it_is_allowed(rule: str):
    recipe = Recipe(rule, 1 / (2 * SIZE), protect_ratio=0.02, target="mlp")
    assert select(scores_of(0), recipe, allow_empty=True).indices == {}
    with pytest.raises(SpinError, match="selects no weight at all"):
        select(scores_of(0), recipe)


@EVERY_RULE
def test_it_does_not_choose_without_a_concept_or_by_an_unknown_granularity(rule: str):
    scores = scores_of(0)
    with pytest.raises(SpinError, match="no concept"):
        chosen(ScoreSet({}, scores.protected), rule, 0.2, 0.02)
    with pytest.raises(SpinError, match="Unknown granularity"):
        chosen(scores, rule, 0.2, 0.02, granularity="head")
