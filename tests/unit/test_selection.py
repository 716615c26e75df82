"""Selection by hand-made scores: what each rule picks, and every setting that cannot be right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tiny import select

from spin_llm.errors import SpinError
from spin_llm.results.edited import Recipe
from spin_llm.scores import MatrixScores, Scores, ScoresInfo, top_entries
from spin_llm.selection import random_like

UP, QUERY = "model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"


def ranked(
    *orders: list[int], keep: float = 1.0, size: int = 10, names: tuple[str, ...] = (UP,), **more: Any
) -> Scores:
    """Scores of `size` entries a matrix whose top entries are `orders`, first the largest; the others follow."""
    matrices = {}
    for name, order in zip(names, orders, strict=True):
        rest = [index for index in range(size) if index not in order]
        indices = torch.tensor((order + rest)[: max(1, int(keep * size))])
        values = torch.arange(len(indices), 0, -1).float()
        matrices[name] = MatrixScores(indices, values, (1, size), 0, "attention" if "attn" in name else "mlp")
    return Scores(matrices, ScoresInfo(**{"keep": keep, "model": "0123", "target": "all", **more}))


FAIRNESS, PRIVACY, GENERAL = ranked([7, 2, 9, 4]), ranked([4, 9, 1, 2]), ranked([9, 8, 0, 3])


def pick(concepts: Mapping[str, Scores] | None = None, protected: Mapping[str, Scores] | None = None, **options: Any):
    concepts = {"fairness": FAIRNESS, "privacy": PRIVACY} if concepts is None else concepts
    protected = {"general": GENERAL} if protected is None else protected
    return select(concepts, protected, **{"ratio": 0.4, **options})


def test_coupled_is_the_rule_of_the_paper():
    chosen = pick()
    assert {name: indices.tolist() for name, indices in chosen.indices.items()} == {UP: [2, 4]}
    assert (chosen.weights, chosen.candidates, chosen.shared, chosen.targeted_weights) == (2, 4, 3, 10)
    assert chosen.recipe == Recipe("coupled", 0.4, protect_ratio=0.4)


def test_nothing_protected():
    assert pick(protected={}).indices[UP].tolist() == [2, 4, 9]


def test_a_protect_ratio_of_its_own():
    assert pick(protect_ratio=0.1).indices[UP].tolist() == [2, 4]
    assert pick(protect_ratio=0.01).indices[UP].tolist() == [2, 4, 9]
    assert pick({"fairness": FAIRNESS}, protect_ratio=0.9, ratio=0.2).indices[UP].tolist() == [7]


def test_one_concept_alone():
    assert pick({"fairness": FAIRNESS}).indices[UP].tolist() == [2, 4, 7]


def test_released_is_by_position():
    """Sorted lists [2 4 7 9] and [1 2 4 9]; protected 9 masks the last position of both."""
    assert pick(rule="released").indices[UP].tolist() == [2, 4, 7]
    shifted = {"fairness": FAIRNESS, "privacy": ranked([9, 8, 1, 2])}  # sorted [1 2 8 9], masked at the last two
    assert pick(shifted, rule="released").indices[UP].tolist() == [2, 4]
    assert pick(shifted).indices[UP].tolist() == [2]


def test_targets_choose_matrices_of_scores_made_for_all():
    both = ranked([1], [3], names=(UP, QUERY))
    for target, expected in (("mlp", {UP: [1]}), ("attention", {QUERY: [3]}), ("all", {UP: [1], QUERY: [3]})):
        chosen = pick({"fairness": both}, {}, ratio=0.1, target=target)
        assert {name: indices.tolist() for name, indices in chosen.indices.items()} == expected
        assert set(chosen.places) == set(expected)
        assert chosen.targeted_weights == 10 * len(expected)
    with pytest.raises(SpinError, match=r"hold no attention matrix(.|\n)*--target attention"):
        pick(target="attention")


def test_each_matrix_has_its_own_top_set():
    both = ranked([1, 2], [3, 4], names=(UP, QUERY))
    other = ranked([2, 5], [7, 8], names=(UP, QUERY))
    chosen = pick({"fairness": both, "privacy": other}, {}, ratio=0.2, target="all")
    assert {name: indices.tolist() for name, indices in chosen.indices.items()} == {UP: [2]}


# Settings that cannot be right


@pytest.mark.parametrize("option", ["ratio", "protect_ratio"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_a_ratio_out_of_range(option: str, value: float):
    with pytest.raises(SpinError, match=f"--{option.replace('_', '-')} .* is out of range"):
        pick(**{option: value})


def test_an_unknown_rule():
    with pytest.raises(SpinError, match=r"'paper'(.|\n)*coupled, coupled-signed, released"):
        pick(rule="paper")


def test_no_concept():
    with pytest.raises(SpinError, match="no concept"):
        pick({})


def test_a_ratio_above_what_is_kept():
    kept = ranked([7, 2], keep=0.2)
    with pytest.raises(SpinError, match=r"'fairness' keep the top 0\.2 of each(.|\n)*--keep 0\.4"):
        pick({"fairness": kept})
    with pytest.raises(SpinError, match="'general' keep the top"):
        pick(protected={"general": kept})
    assert pick(protected={"general": kept}, protect_ratio=0.2).weights > 0


def test_what_is_kept_is_checked_also_where_a_concept_is_protected():
    kept = ranked([7, 2], keep=0.2)
    with pytest.raises(SpinError, match="'fairness' keep the top"):
        pick({"fairness": kept}, {"as a cost": kept}, protect_ratio=0.2)


def test_a_protected_set_has_a_name_of_its_own():
    with pytest.raises(SpinError, match="'fairness' is a concept, and protected too"):
        pick(protected={"fairness": FAIRNESS})


@pytest.mark.parametrize(("key", "value"), [("model", "4567"), ("target", "mlp")])
def test_scores_that_do_not_belong_together(key: str, value: str):
    with pytest.raises(SpinError, match=f"their {key} differs"):
        pick(protected={"general": ranked([1], **{key: value})})


def test_nothing_selected_because_the_ratio_is_too_small_for_the_matrices():
    concepts = {"fairness": ranked([7, 2, 4]), "privacy": ranked([2, 4, 7])}
    with pytest.raises(SpinError, match=r"selects no weight(.|\n)*floor\(0\.05 x 10 weights\) is 0(.|\n)* is 0\.2\.$"):
        pick(concepts, ratio=0.05)
    assert pick(concepts, ratio=0.2).weights > 0
    assert pick(concepts, ratio=0.05, allow_empty=True).weights == 0


def test_nothing_selected_because_the_sets_are_disjoint():
    concepts = {"fairness": ranked([1, 2, 3], keep=0.3), "privacy": ranked([4, 5, 6], keep=0.3)}
    with pytest.raises(SpinError, match=r"no weight is in every concept's top set(.|\n)*no kept ratio selects any"):
        pick(concepts, {}, ratio=0.3)


def test_the_named_ratio_is_within_what_the_protected_scores_keep():
    """The protected set's ratio follows --ratio; a ratio that its file does not hold would be refused."""
    concepts = {"fairness": ranked([1, 2, 3]), "privacy": ranked([4, 5, 3])}
    with pytest.raises(SpinError, match="no kept ratio selects any"):
        pick(concepts, {"general": ranked([9, 8], keep=0.2)}, ratio=0.2)
    with pytest.raises(SpinError, match=r"is 0\.3\.$"):
        pick(concepts, {"general": ranked([9, 8], keep=0.2)}, ratio=0.2, protect_ratio=0.1)


# The control


def test_random_weights_like_a_selection():
    both = ranked([1, 2, 3], [4, 5, 6], names=(UP, QUERY))
    chosen = pick({"fairness": both}, {}, ratio=0.3, target="all")
    one, same, other = random_like(chosen, 0), random_like(chosen, 0), random_like(chosen, 1)
    assert (one.recipe.rule, one.weights, one.targeted_weights) == ("random", chosen.weights, chosen.targeted_weights)
    assert all(torch.equal(one.indices[name], same.indices[name]) for name in one.indices)
    assert any(not torch.equal(one.indices[name], other.indices[name]) for name in one.indices)


def test_top_entries_of_equal_scores_are_the_first():
    assert top_entries(torch.ones(3, 4), 5)[0].tolist() == [0, 1, 2, 3, 4]
    assert top_entries(torch.ones(2, 2), 9)[0].tolist() == [0, 1, 2, 3]
