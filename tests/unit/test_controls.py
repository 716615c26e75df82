"""Controls and the overlap of top sets by hand-made scores; resampled selections of hand-made importances."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_selection import FAIRNESS, GENERAL, PRIVACY, QUERY, UP, pick, ranked
from tiny import select

from spin_llm.analysis.stability import Job, jaccard, resampled_selections, select_again
from spin_llm.errors import SpinError
from spin_llm.results.edited import Edge, Frequency, Recipe, Spread
from spin_llm.scores import MatrixScores, PerExample, Scores, ScoreSet, ScoresInfo
from spin_llm.selection import alone, control_selection, overlap, same_magnitude_like
from spin_llm.selection import select as selection_of
from spin_llm.settings import RunSettings

CONCEPTS, PROTECTED = {"fairness": FAIRNESS, "privacy": PRIVACY}, {"general": GENERAL}
SCORES = ScoreSet(CONCEPTS, PROTECTED)


def stored(values: list[float]) -> Any:
    return lambda name: torch.tensor(values)


def control(name: str, values: list[float] | None = None, seed: int = 0, **options: Any) -> list[int]:
    """The entries of one control beside the selection [2, 4] of tests/unit/test_selection.py."""
    edit = pick()
    edit = replace(edit, recipe=replace(edit.recipe, **options))
    made = control_selection(name, edit, SCORES, stored(values or [1.0] * 10), seed=seed)
    return made.indices[UP].tolist()


def test_one_concept_alone_has_the_edit_s_size_and_spares_the_protected():
    """Fairness ranks 7 2 9 4 | 0 1 3 5 6 8, privacy 4 9 1 2 | 0 3 5 ...; 9, 8, 0, 3 are protected."""
    assert control("fairness-alone") == [5, 7]
    assert control("privacy-alone") == [1, 5]
    made = alone(pick(protect_ratio=0.01), "privacy", ScoreSet(CONCEPTS))
    assert made.indices[UP].tolist() == [0, 1, 3], "three weights, and nothing is protected"
    assert (made.recipe.rule, made.recipe.ratio) == ("privacy-alone", 0.4)
    single = pick({"fairness": FAIRNESS})
    assert alone(single, "fairness", ScoreSet({"fairness": FAIRNESS}, PROTECTED)).indices[UP].tolist() == [2, 4, 7], (
        "the edit"
    )


def test_one_concept_alone_by_the_signed_rule_takes_favourable_weights():
    margins = torch.tensor([-1.0, 1, 1, -1, 1, 1, 1, 1, 1, 1])
    signed = {}
    for name, scores in CONCEPTS.items():
        matrix = scores.matrices[UP]
        with_margin = MatrixScores(
            matrix.indices, matrix.values, matrix.shape, 0, "mlp", {}, {"margin@taylor": margins[matrix.indices]}
        )
        signed[name] = Scores({UP: with_margin}, replace(scores.info, selector="taylor"))
    selection = select(signed, {}, rule="coupled-signed", ratio=0.4)
    assert selection.indices[UP].tolist() == [2, 4, 9]
    assert alone(selection, "fairness", ScoreSet(signed)).indices[UP].tolist() == [5, 6, 7], (
        "0 and 3 are not favourable"
    )
    edit = select(signed, {}, ratio=0.4)
    beside = control_selection("coupled-signed", edit, ScoreSet(signed), stored([1.0] * 10))
    assert beside.indices[UP].tolist() == [2, 4, 9]
    assert beside.recipe.rule == "coupled-signed"


def test_the_signed_control_asks_for_the_margin_and_is_not_one_of_all():
    assert RunSettings("m", rule="coupled", controls=("coupled-signed",)).wanted_statistics == ("taylor", "margin")
    assert RunSettings("m").wanted_statistics == ("taylor", "margin"), "a search needs it"
    everything = RunSettings("m", rule="coupled", controls=("all",))
    assert everything.wanted_statistics == ("taylor",)
    assert "coupled-signed" not in everything.wanted_controls
    unsigned = {name: Scores(part.matrices, replace(part.info, selector="taylor")) for name, part in CONCEPTS.items()}
    with pytest.raises(SpinError, match="hold no margin"):
        control_selection("coupled-signed", pick(), ScoreSet(unsigned), stored([1.0] * 10))


def test_a_concept_with_too_few_unprotected_weights_gives_fewer():
    few = {"fairness": ranked([7, 2], keep=0.2)}
    selection = pick({"fairness": ranked([7, 2, 4])}, {}, ratio=0.3)
    assert selection.weights == 3
    assert alone(selection, "fairness", ScoreSet(few)).indices[UP].tolist() == [2, 7]


def test_unprotected_and_released_are_rules_at_the_edit_s_ratio():
    assert control("unprotected") == [2, 4, 9]
    assert control("released") == pick(rule="released").indices[UP].tolist() == [2, 4, 7]
    with pytest.raises(SpinError, match="matrix by matrix"):
        control("released", granularity="model")


def test_weights_of_the_same_magnitude():
    """Signs aside, the weights 2 and 4 have the neighbours 5 and 6 in magnitude."""
    values = [0.0, 0.1, 5.0, 0.2, 9.0, -5.01, -9.01, 0.3, 0.4, 0.5]
    both = {tuple(control("same-magnitude", values, seed=seed)) for seed in range(40)}
    assert all(len(entries) == 2 and not {2, 4} & set(entries) for entries in both)
    assert len(both) > 5, "drawn from the nearest sixteen"
    big = torch.arange(1000.0)
    selection = select({"fairness": ranked([500, 900], size=1000)}, {}, ratio=0.002)
    found = same_magnitude_like(selection, lambda name: -big, 0).indices[UP]
    assert len(found) == 2
    assert (found - torch.tensor([500, 900])).abs().max() <= 8
    again = same_magnitude_like(selection, lambda name: -big.view(10, 100), 0).indices[UP]
    assert torch.equal(found, again)


def test_equal_magnitudes_are_drawn_from_the_whole_matrix():
    """Weights of a quantised checkpoint take few values; a neighbour in the file is not a neighbour in magnitude."""
    selection = select({"fairness": ranked([500], size=1000)}, {}, ratio=0.001)
    found = [int(same_magnitude_like(selection, stored([1.0] * 1000), seed).indices[UP]) for seed in range(20)]
    assert max(found) - min(found) > 300


def test_a_matrix_without_enough_other_weights():
    selection = pick({"fairness": ranked([1, 2, 3, 4, 5, 6, 7])}, {}, ratio=0.7)
    assert same_magnitude_like(selection, stored([1.0] * 10), 0).indices[UP].tolist() == [0, 8, 9]
    everything = select({"fairness": ranked([1, 2, 3], keep=0.9)}, {}, ratio=0.9)
    assert same_magnitude_like(everything, stored([1.0] * 10), 0).weights == 1


def test_the_overlap_by_hand():
    """Tops [2 4 7 9], [1 2 4 9], [0 3 8 9]."""
    found = overlap(pick(), SCORES)
    assert (found.concepts, found.protect) == (["fairness", "privacy"], ["general"])
    assert found.regions == {
        **{"fairness": 1, "privacy": 1, "general": 3},
        **{"fairness&privacy": 2, "fairness&general": 0, "privacy&general": 0, "fairness&privacy&general": 1},
    }
    both = {"fairness": ranked([1], [3], names=(UP, QUERY)), "privacy": ranked([1], [4], names=(UP, QUERY))}
    two = select(both, {}, ratio=0.1, target="all")
    assert overlap(two, ScoreSet(both)).regions == {"fairness": 1, "privacy": 1, "fairness&privacy": 1}
    assert overlap(pick(protect_ratio=0.1), SCORES).regions["general"] == 0


# Names of controls


def test_the_names_of_controls_are_those_of_the_concepts():
    sources = (("fairness", "a.csv"), ("tact", "b.csv"))
    everything = RunSettings("m", concepts=sources, controls=("random", "all"))
    names = ("random", "same-magnitude", "fairness-alone", "tact-alone", "unprotected", "released")
    assert everything.wanted_controls == names
    assert RunSettings("m", concepts=sources, controls=("tact-alone",)).wanted_controls == ("tact-alone",)
    for wrong in ("privacy-alone", "-alone", "none"):
        with pytest.raises(SpinError, match=f"--control {wrong} is not a choice(.|\n)*fairness-alone, tact-alone"):
            RunSettings("m", concepts=sources, controls=(wrong,))


def test_one_resample_has_no_spread():
    with pytest.raises(SpinError, match="--resamples 1 is out of range"):
        RunSettings("m", resamples=1)


# Resampled selections


def job(importance: dict[str, list[list[float]]], ratio: float = 0.2, multiple: float = 5.0) -> Job:
    """Sets over ten entries of one matrix: the mean importances are their scores; `general` is protected."""
    scores, parts = {}, {}
    for name, rows in importance.items():
        values = torch.tensor(rows)
        mean = values.mean(0)
        order = mean.argsort(descending=True, stable=True)
        matrix = MatrixScores(order, mean[order], (2, 5), 0, "mlp")
        scores[name] = Scores({UP: matrix}, ScoresInfo(keep=1.0, model="0", target="mlp", selector="taylor"))
        parts[name] = PerExample({UP: torch.arange(10)}, {UP: values})
    concepts = {name: part for name, part in scores.items() if name != "general"}
    protected = {name: part for name, part in scores.items() if name == "general"}
    made = ScoreSet(concepts, protected)
    return Job(selection_of(made, Recipe("coupled", ratio)), made, parts, multiple)


STEADY = [[float(10 - entry) for entry in range(10)]] * 8


def test_examples_that_agree_make_a_stable_selection():
    found = resampled_selections(job({"fairness": STEADY, "privacy": STEADY}), resamples=20, seed=0)
    assert found.jaccard == found.split_half == Spread(1.0, 1.0, 1.0)
    assert found.size == Spread(2.0, 2.0, 2.0)
    assert (found.in_half, found.in_most, found.others_in_half, found.reproduced) == (2, 2, 0, 1.0)
    assert found.frequency == {UP: Frequency([0, 1], [1.0, 1.0])}
    assert found.top_sets == {"fairness": 1.0, "privacy": 1.0}
    assert found.edge == Edge(0.0, 0.0)


def test_a_weight_that_one_example_makes_important_is_selected_when_that_example_is_drawn():
    """1 - (1 - 1/8)^8 = 0.66 of the resamples; in a half where it is not, the halves select differently."""
    rows = [[9.0, 0.0, 5.0] + [0.0] * 7 for _ in range(8)]
    rows[3] = [9.0, 100.0, 5.0] + [0.0] * 7
    found = resampled_selections(job({"fairness": rows}), resamples=2000, seed=1)
    [first, second] = found.frequency[UP].frequency
    assert first == 1.0
    assert second == pytest.approx(1 - (7 / 8) ** 8, abs=0.04)
    assert found.jaccard.mean == pytest.approx(second + (1 - second) / 3, abs=1e-3)
    assert found.split_half.mean == pytest.approx(1 / 3)
    assert (found.in_half, found.in_most) == (2, 1)


def test_the_protected_set_is_resampled_too():
    """Entry 0 is protected by one example of eight alone: without it both weights are selected."""
    spared = [[0.0] * 8 + [1.0, 1.0] for _ in range(8)]
    spared[2][0] = 100.0
    found = resampled_selections(job({"fairness": STEADY, "general": spared}), resamples=1000, seed=0)
    assert found.frequency == {UP: Frequency([1], [1.0])}
    assert found.size.mean == pytest.approx(1 + (7 / 8) ** 8, abs=0.05)
    assert found.others_in_half == 0


def test_the_edge_says_when_too_few_candidates_were_kept():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(8, 10, generator=generator).tolist()
    wide, narrow = (resampled_selections(job({"a": noise}, multiple=m), resamples=50, seed=0) for m in (5.0, 1.0))
    assert wide.edge.outer < narrow.edge.outer
    assert wide.edge.threshold < narrow.edge.threshold


def test_an_empty_resampled_selection_counts_as_different():
    """Two halves, each with its own most important entry; together they have both."""
    rows = [[9.0, 0.0] + [0.0] * 8, [0.0, 9.0] + [0.0] * 8]
    other = [[9.0, 0.0] + [0.0] * 8] * 2
    made = job({"a": rows, "b": other}, ratio=0.1)
    only_second = {name: (torch.tensor([0.0, 1.0]), torch.ones(0)) for name in ("a", "b")}
    assert select_again(made, only_second)[0] == {}
    found = resampled_selections(made, resamples=60, seed=0)
    assert found.jaccard.low == 0.0
    assert found.size.low == 0.0


def test_jaccard():
    one, other, empty = torch.tensor([1, 2, 3]), torch.tensor([3, 4]), torch.tensor([], dtype=torch.int64)
    assert jaccard(one, other) == 0.25
    assert jaccard(one, one) == jaccard(empty, empty) == 1.0
    assert jaccard(one, empty) == 0.0
