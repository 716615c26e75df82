"""The rule `signed` against a dense textbook version, M of N concepts, and what is said when scores lack a part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import select

from spin_llm.errors import SpinError
from spin_llm.results.edited import PENALTY, Recipe
from spin_llm.scores import CANDIDATES, MatrixScores, Scores, ScoreSet, ScoresInfo, count
from spin_llm.scores.storage import Kept, candidate_entries, top_entries
from spin_llm.selection import control_selection, intersection
from spin_llm.selection import select as selection_of
from spin_llm.selection.rules.signed import FLOOR

NAMES = ("a", "b")
SHAPE = (6, 10)
KEEP = 0.5


def concept(margins: dict[str, torch.Tensor], importance: dict[str, torch.Tensor], keep: float = KEEP) -> Scores:
    """Scores as score_concept keeps them: the top by importance and by margin, each with the other's values."""
    matrices = {}
    for layer, name in enumerate(NAMES):
        k = count(keep, margins[name].numel())
        main, margin = top_entries(importance[name], k), top_entries(margins[name], k)
        at = {"margin@taylor": margins[name].flatten()[main[0]], "taylor@margin": importance[name].flatten()[margin[0]]}
        matrices[name] = MatrixScores(*main, SHAPE, layer, "mlp", {"margin": Kept(*margin)}, at)
    return Scores(matrices, ScoresInfo(selector="taylor", keep=keep, model="m", target="mlp"))


def protected(importance: dict[str, torch.Tensor], candidates: dict[str, torch.Tensor] | None) -> Scores:
    matrices = {}
    for layer, name in enumerate(NAMES):
        main = top_entries(importance[name], count(KEEP, importance[name].numel()))
        others = {}
        if candidates is not None:
            others[CANDIDATES] = Kept(candidates[name], importance[name].flatten()[candidates[name]])
        matrices[name] = MatrixScores(*main, SHAPE, layer, "mlp", others)
    return Scores(matrices, ScoresInfo(selector="taylor", keep=KEEP, model="m", target="mlp"))


def drawn(seed: int, concepts: int) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    margins = [{name: torch.randn(SHAPE, generator=generator) for name in NAMES} for _ in range(concepts)]
    return margins, {name: torch.rand(SHAPE, generator=generator) + 0.01 for name in NAMES}


def made(seed: int, concepts: int = 2, at_least: int | None = None) -> tuple[dict[str, Scores], dict[str, Scores]]:
    margins, cost = drawn(seed, concepts)
    scores = {f"c{n}": concept(part, {name: part[name].abs() for name in NAMES}) for n, part in enumerate(margins)}
    return scores, {"general": protected(cost, candidate_entries(scores, NAMES, at_least))}


def textbook(
    seed: int, concepts: int, at_least: int, ratio: float, spare: float, granularity: str
) -> dict[str, set[int]]:
    """The formula of the module's docstring, entry by entry, from dense tensors."""
    margins, cost = drawn(seed, concepts)
    k = count(KEEP, 60)
    kept = [
        {name: {int(i): float(part[name].flatten()[i]) for i in top_entries(part[name], k)[0]} for name in NAMES}
        for part in margins
    ]
    scale = [np.mean([max(value, 0.0) for name in NAMES for value in part[name].values()]) for part in kept]
    spared = {name: set(top_entries(cost[name], count(spare, 60))[0].tolist()) for name in NAMES}
    gain = {}
    for name in NAMES:
        for entry in range(60):
            values = [part[name][entry] / s for part, s in zip(kept, scale, strict=True) if entry in part[name]]
            values = sorted((value for value in values if value > 0), reverse=True)
            if len(values) >= at_least and entry not in spared[name]:
                gain[name, entry] = values[at_least - 1]
    mean = np.mean([float(cost[name].flatten()[entry]) for name, entry in gain]) if gain else 1.0
    score = {
        (name, entry): value / (float(cost[name].flatten()[entry]) / mean + FLOOR) ** PENALTY
        for (name, entry), value in gain.items()
    }
    units = [NAMES] if granularity == "model" else [(name,) for name in NAMES]
    chosen: dict[str, set[int]] = {}
    for unit in units:
        inside = sorted((key for key in score if key[0] in unit), key=lambda key: -score[key])
        for name, entry in inside[: count(ratio, 60 * len(unit))]:
            chosen.setdefault(name, set()).add(entry)
    return chosen


@given(
    seed=st.integers(0, 10_000),
    concepts=st.integers(1, 4),
    least=st.integers(1, 4),
    ratio=st.sampled_from([0.02, 0.05, 0.2, 0.5]),
    spare=st.sampled_from([0.02, 0.2, 0.5]),
    granularity=st.sampled_from(["matrix", "layer", "model"]),
)
def test_the_rule_is_its_formula(seed: int, concepts: int, least: int, ratio: float, spare: float, granularity: str):
    least = min(least, concepts)
    scores, general = made(seed, concepts, least)
    options = {"rule": "signed", "granularity": granularity, "at_least": least, "allow_empty": True}
    found = select(scores, general, ratio=ratio, protect_ratio=spare, **options)
    wanted = textbook(seed, concepts, least, ratio, spare, granularity)
    assert {name: set(indices.tolist()) for name, indices in found.indices.items()} == wanted
    assert all((indices.diff() > 0).all() for indices in found.indices.values()), "sorted, and none twice"


def test_a_higher_penalty_chooses_cheaper_entries():
    scores, general = made(3)
    _, cost = drawn(3, 2)

    def mean_cost(penalty: float) -> float:
        options = {"rule": "signed", "ratio": 0.1, "protect_ratio": 0.01, "granularity": "model", "penalty": penalty}
        chosen = select(scores, general, **options).indices
        return float(torch.cat([cost[name].flatten()[indices] for name, indices in chosen.items()]).mean())

    assert mean_cost(8.0) < mean_cost(1.0) < mean_cost(0.0)


def test_without_margins_or_their_costs_it_says_so():
    scores, general = made(1)
    bare = {name: replace(matrix, others={}) for name, matrix in scores["c0"].matrices.items()}
    with pytest.raises(SpinError, match="hold no margin"):
        select({**scores, "c0": replace(scores["c0"], matrices=bare)}, general, rule="signed", ratio=0.1)
    _, cost = drawn(1, 2)
    with pytest.raises(SpinError, match="do not say what the candidates"):
        select(scores, {"general": protected(cost, None)}, rule="signed", ratio=0.1, protect_ratio=0.02)
    with pytest.raises(SpinError, match="by row"):
        select(scores, general, rule="signed", ratio=0.1, granularity="row")


@given(
    sets=st.lists(st.lists(st.integers(0, 30), unique=True, max_size=20), min_size=1, max_size=5),
    least=st.integers(1, 5),
)
def test_at_least_m_of_n(sets: list[list[int]], least: int):
    least = min(least, len(sets))
    tops = [torch.tensor(part, dtype=torch.int64) for part in sets]
    wanted = sorted(entry for entry in range(31) if sum(entry in part for part in sets) >= least)
    assert intersection(tops, least).tolist() == wanted
    assert intersection(tops).tolist() == sorted(set.intersection(*map(set, sets)))


@pytest.mark.parametrize("rule", ["coupled", "coupled-signed", "signed"])
def test_fewer_concepts_asked_for_choose_no_fewer_weights(rule: str):
    scores, _ = made(5, concepts=3, at_least=1)
    options = {"rule": rule, "ratio": 0.3, "allow_empty": True}
    sizes = [select(scores, {}, at_least=least, **options).weights for least in (1, 2, 3)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2]
    assert select(scores, {}, **options).weights == sizes[2], "all of them, unless told"


def test_more_concepts_than_there_are():
    scores, general = made(1)
    with pytest.raises(SpinError, match="at-least 3"):
        select(scores, general, ratio=0.1, at_least=3)


def test_layers():
    scores, general = made(2)
    second = select(scores, general, rule="signed", ratio=0.2, layers=(1, 1))
    assert set(second.indices) == {"b"}
    assert second.targeted_weights == 60
    with pytest.raises(SpinError, match="names no layer"):
        select(scores, general, rule="signed", ratio=0.2, layers=(2, 5))


@pytest.mark.parametrize("rule", ["coupled", "signed"])
def test_a_concept_with_a_larger_fraction_has_more_say(rule: str):
    """`coupled` with a fraction is the intersection of top sets of two ratios; `signed` weighs the margin."""
    scores, general = made(7)
    plain = select(scores, {}, rule="coupled", ratio=0.2)
    both = {
        name: intersection([scores["c0"].matrices[name].indices[:24], scores["c1"].matrices[name].indices[:12]])
        for name in NAMES
    }
    found = select(scores, {}, rule="coupled", ratio=0.2, fractions={"c0": 2.0})
    assert {name: indices.tolist() for name, indices in found.indices.items()} == {
        n: i.tolist() for n, i in both.items()
    }
    assert found.weights >= plain.weights
    if rule == "signed":
        one, other = (
            select(scores, general, rule="signed", ratio=0.1, protect_ratio=0.02, fractions={"c1": part}).indices
            for part in (1.0, 100.0)
        )
        mean = [
            float(torch.cat([drawn(7, 2)[0][0][name].flatten()[i] for name, i in chosen.items()]).mean())
            for chosen in (one, other)
        ]
        assert mean[1] > mean[0], "with the other concept easily satisfied, the first decides"


def test_every_control_stands_beside_a_signed_edit():
    """Chosen over the model, with all that is kept protected: the controls that go by matrix still apply."""
    scores, general = made(11, concepts=2)
    recipe = Recipe("signed", 0.1, protect_ratio=0.02, granularity="model")
    made_of = ScoreSet(scores, general)
    selection = selection_of(made_of, recipe)
    assert selection.weights == 12

    def control(name: str):
        return control_selection(name, selection, made_of, lambda matrix: drawn(11, 2)[0][0][matrix])

    chosen = {name: set(indices.tolist()) for name, indices in selection.indices.items()}
    for name in ("random", "same-magnitude"):
        assert control(name).weights == 12
    for concept_name in scores:
        alone = control(f"{concept_name}-alone")
        assert alone.weights
        for matrix, indices in alone.indices.items():
            assert not set(indices.tolist()) & chosen[matrix], "none of the edit's weights"
            own = scores[concept_name].matrices[matrix].others["margin"].indices
            assert set(indices.tolist()) <= set(own.tolist())
    assert control("unprotected").weights == 12
    for rule in ("coupled", "released"):
        beside = control(rule)
        assert beside.indices.keys() <= set(NAMES)
        assert (beside.recipe.rule, beside.recipe.protect_ratio) == (rule, 0.1)
