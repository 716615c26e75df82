"""The search: the rule of the pick, survivors, the front, what counts as found, and a journal that goes on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spin_llm.data import Question
from spin_llm.errors import SpinError
from spin_llm.results.edited import Recipe
from spin_llm.results.file import written
from spin_llm.results.measured import AxisResult
from spin_llm.results.searched import Gain, Proxy, Rates, Trial
from spin_llm.scores import MatrixScores, Scores, ScoreSet, ScoresInfo
from spin_llm.search import answered as ranking
from spin_llm.search import study
from spin_llm.search import trials as searching
from spin_llm.search.answered import Answered, added, better_half, pick_answered, ranked, survivors
from spin_llm.search.find import split_questions
from spin_llm.search.study import Space, opening
from spin_llm.search.trials import Bench
from spin_llm.search.trials import try_recipes as search

CONCEPTS = ("fairness", "privacy")
USUAL = Recipe("coupled", 1e-4)
SPACE = Space(0.01, 30, 1.0)


def trial(
    number: int, fairness: float, privacy: float, increase: float = 0.0, *, rule: str = "signed", **more: Any
) -> Trial:
    options = {"weights": 100, "kl": 0.01, "error": 0.001, **more}
    gains = {"fairness": fairness, "privacy": privacy}
    proxy = Proxy({n: Gain(g, options["error"], 0.0) for n, g in gains.items()}, increase, options["kl"])
    return Trial(number, replace(USUAL, rule=rule), options["weights"], "", increase, proxy)


def test_the_largest_smallest_share_is_picked():
    """Best gains 0.4 and 0.8: shares (1, 0.25), (0.5, 0.75), (0.25, 1)."""
    trials = [trial(0, 0.4, 0.2), trial(1, 0.2, 0.6), trial(2, 0.1, 0.8)]
    assert [t.number for t in ranked(trials, CONCEPTS, 0.01)] == [1, 0, 2]


def test_what_costs_too_much_has_no_say():
    trials = [trial(0, 0.1, 0.1), trial(1, 9.0, 9.0, 0.011), Trial(2, USUAL, 5, "ruins the model", 3.0, None)]
    assert [t.number for t in ranked(trials, CONCEPTS, 0.01)] == [0]
    assert ranked(trials, CONCEPTS, -1.0) == []


def test_a_loss_on_one_concept_is_worse_than_no_gain():
    trials = [trial(0, 1.0, -0.5), trial(1, 0.0, 0.0, weights=3), trial(2, 0.9, -0.1)]
    assert [t.number for t in ranked(trials, CONCEPTS, 0.01)] == [1, 2, 0]


def test_the_same_edit_counts_once_and_fewer_weights_win_ties():
    trials = [trial(0, 0.1, 0.1, weights=50), trial(1, 0.1, 0.1, weights=20), trial(2, 0.1, 0.1, weights=20)]
    assert [t.number for t in ranked(trials, CONCEPTS, 0.01)] == [1, 0]


def test_survivors_go_down_in_steps_and_hold_every_rule():
    order = [
        trial(0, 0.9, 0.9, kl=0.08), trial(1, 0.8, 0.8, kl=0.07), trial(2, 0.7, 0.7, kl=0.03),
        trial(3, 0.6, 0.6, kl=0.02), trial(4, 0.5, 0.5, kl=0.01), trial(5, 0.4, 0.4, kl=0.05, rule="coupled"),
    ]  # fmt: skip
    assert [t.number for t in survivors(order, 3)] == [0, 2, 4]
    assert [t.number for t in survivors(order, 4)] == [0, 2, 4, 5]
    assert [t.number for t in survivors(order, 5)] == [0, 1, 2, 4, 5]
    assert survivors(order, 99) == order


def test_the_front_is_what_no_other_beats():
    trials = [trial(0, 0.5, 0.1), trial(1, 0.1, 0.5), trial(2, 0.1, 0.1, -0.1), trial(3, 0.1, 0.1), trial(4, 0.5, 0.1)]
    assert ranking.front(trials, CONCEPTS) == [0, 1, 2, 4]


def test_found_is_judged_by_all_that_was_tried():
    """z 2.5 is found among one trial (threshold 1.96), not among twelve (2.87)."""
    one = trial(0, 0.25, 0.9, error=0.1)
    assert ranking.threshold(1) == pytest.approx(1.959964, abs=1e-6)
    assert ranking.is_found(one, 1)
    assert not ranking.is_found(one, 12)
    assert not ranking.is_found(trial(0, 0.9, -0.1), 1), "every concept must gain"


def test_among_nothing_but_noise_little_is_found():
    """12 unrelated edits that do nothing, two concepts: found in at most 2.5% of searches."""
    import numpy as np

    draw = np.random.default_rng(0)
    found = 0
    for _ in range(400):
        trials = [trial(n, *draw.normal(0, 0.1, 2), error=0.1) for n in range(12)]
        found += ranking.is_found(ranked(trials, CONCEPTS, 1.0)[0], 12)
    assert found <= 0.025 * 400


def test_the_opening_fits_the_scores_and_the_target():
    usual = replace(USUAL, target="all", at_least=1)
    made = opening(usual, SPACE)
    assert {recipe.rule for recipe in made} == {"coupled", "coupled-signed", "signed"}
    assert all(recipe.ratio <= 0.01 and recipe.target == "all" and recipe.at_least == 1 for recipe in made)
    assert all(recipe.protect_ratio == (0.01 if recipe.rule == "signed" else None) for recipe in made)
    assert all(recipe.ratio <= 5e-5 for recipe in opening(usual, replace(SPACE, keep=5e-5)))
    assert {recipe.rule for recipe in opening(replace(usual, granularity="row"), SPACE)} == {
        "coupled",
        "coupled-signed",
    }


def answered(number: int, fairness: float, privacy: float, refusal: float = 0.0, coherence: float = 0.0) -> Answered:
    rates = {"fairness": Rates(50, 0.2, 0.2 + fairness), "privacy": Rates(50, 0.4, 0.4 + privacy)}
    rates |= {"over_refusal": Rates(50, 0.1, 0.1 + refusal), "coherence": Rates(100, 0.8, 0.8 + coherence)}
    return Answered(trial(number, 0.1, 0.1), rates)


def test_the_pick_neither_refuses_nor_falls_apart():
    rows = [answered(0, 0.5, 0.5, refusal=0.03), answered(1, 0.4, 0.4, coherence=-0.06), answered(2, 0.1, 0.1)]
    assert [row.sound for row in rows] == [False, False, True]
    pick, why = pick_answered(rows, [], CONCEPTS)
    assert pick.number == 2
    assert "+10.0 points" in why
    assert answered(0, 0, 0, refusal=0.02, coherence=-0.05).sound, "the limits themselves are allowed"
    pick, why = pick_answered([answered(0, 0.5, 0.5, refusal=0.3)], rows[1:2], CONCEPTS)
    assert pick.number == 1, "the one that exceeds the limits least, also when an earlier rung dropped it"
    assert "No survivor" in why
    assert "by 1.0 points" in why


def test_where_the_judge_is_not_measured_the_margin_decides_and_nothing_limits():
    """The judge sees fairness rise most in edit 0, whose margin is smallest, and privacy as much everywhere."""
    why = {"fairness": "not measured on answers like these", "over_refusal": "not measured on answers like these"}

    def row(number: int, judged: float, margin: float, **more: float) -> Answered:
        return replace(answered(number, judged, 0.1, **more), trial=trial(number, margin, 0.1), unmeasured=why)

    rows = [row(0, 0.5, 0.1, refusal=0.5), row(1, 0.0, 0.3, refusal=0.5), row(2, 0.4, 0.2)]
    assert all(one.sound for one in rows), "over-refusal that nobody measured limits nothing"
    pick, words = pick_answered(rows, [], CONCEPTS)
    assert pick.number == 1
    assert "Verdicts decided nothing on fairness, over_refusal (not measured on answers like these)" in words
    assert "margins" in words
    assert "fairness +" not in words, "no gain by a judge that nobody measured"
    assert "over-refusal" not in words.partition("it has")[0], "no limit that was not looked at"
    blind = [replace(one, unmeasured=dict.fromkeys(one.rates, "judge not measured")) for one in rows]
    assert [one.trial.number for one in better_half(blind, CONCEPTS)] == [0, 1], "the order of the margins' ranking"
    assert "first by the margins" in pick_answered(blind, [], CONCEPTS)[1]


def test_the_better_half_is_sound_first():
    rows = [answered(0, 0.5, 0.5, refusal=0.3), answered(1, 0.1, 0.1), answered(2, 0.2, 0.2)]
    assert [row.trial.number for row in better_half(rows, CONCEPTS)] == [2, 1]


def test_without_a_judge_of_the_concepts_the_margins_decide_among_the_sound():
    rates = {"over_refusal": Rates(50, 0.1, 0.1)}
    refusing = Answered(trial(4, 0.3, 0.3), {"over_refusal": Rates(50, 0.1, 0.3)})
    rows = [refusing, Answered(trial(5, 0.2, 0.2), rates), Answered(trial(6, 0.1, 0.1), rates)]
    assert [row.trial.number for row in better_half(rows, CONCEPTS)] == [5, 6]
    pick, why = pick_answered(rows, [], CONCEPTS)
    assert pick.number == 5
    assert "does not judge fairness, privacy" in why
    assert "2 within the limits" in why
    assert not refusing.record(rows, CONCEPTS).front


def test_rungs_are_added_by_their_questions():
    axes = {
        "fairness": AxisResult(
            metric="rate", n=30, base=0.0, edited=1.0, delta=1.0, ci95=None, p=None, better="higher", measurable=True
        )
    }
    assert added({"fairness": Rates(10, 1.0, 0.0)}, axes) == {"fairness": Rates(40, 0.25, 0.75)}
    assert added({}, axes) == {"fairness": Rates(30, 0.0, 1.0)}


@pytest.mark.parametrize(("size", "most"), [(100, 20), (10, 20), (3, 1), (1, 5), (2, 5)])
def test_search_questions_are_never_reported_on(size: int, most: int):
    asked = [Question(f"q{n % max(1, size - 2)}", None) for n in range(size)]
    search_part, final = split_questions(asked, most, seed=3)
    assert not {q.prompt for q in search_part} & {q.prompt for q in final}
    assert sorted([*search_part, *final], key=lambda q: q.prompt) == sorted(asked, key=lambda q: q.prompt)
    assert len({q.prompt for q in search_part}) <= min(most, size // 2)
    assert final


@pytest.fixture
def bench() -> Bench:
    import torch

    matrix = MatrixScores(torch.arange(3), torch.ones(3), (1000, 1000), 4, "mlp")
    scores = Scores({"a": matrix}, ScoresInfo(keep=0.01))
    return Bench(None, ScoreSet(dict.fromkeys(CONCEPTS, scores), {"general": scores}), {}, [], 0.01)  # type: ignore[arg-type]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Trials without a model: the gain of a recipe is a function of it. The numbers of those that were run."""
    seen: list[int] = []

    def attempt(bench: Bench, number: int, recipe: Recipe, base: Any) -> Trial:
        seen.append(number)
        gain = -abs(math.log10(recipe.ratio) + 4.3) + (recipe.rule == "signed")
        found = trial(number, gain, gain / 2, recipe.ratio)
        return replace(found, recipe=recipe)

    monkeypatch.setattr(searching, "attempt", attempt)
    monkeypatch.setattr(searching, "measure_reference", lambda *_: object())
    return seen


def test_a_search_that_was_cut_off_goes_on_as_it_would_have(bench: Bench, made_up: list[int], tmp_path: Path):
    whole = search(bench, USUAL, trials=20, journal=tmp_path / "a" / "journal.log", seed=1)
    assert made_up == list(range(20))
    for part in (5, 14, 20):
        halves = search(bench, USUAL, trials=part, journal=tmp_path / "b" / "journal.log", seed=1)
        assert halves == whole[:part]
    assert made_up == [*range(20), *range(20)], "nothing was done twice"
    assert len({t.recipe for t in whole}) > 12, "it does not repeat itself"
    assert any(t.recipe.layers for t in whole), "layers are searched"


def test_what_is_searched_follows_the_user(bench: Bench, made_up: list[int], tmp_path: Path):
    """With the target `all` the part is searched too; layers that were given are kept; concepts are weighted."""
    usual = replace(USUAL, target="all", layers=(1, 3))
    found = search(bench, usual, trials=40, journal=tmp_path / "journal.jsonl", seed=5)
    assert {t.recipe.target for t in found} == {"all", "mlp", "attention"}
    assert {t.recipe.layers for t in found} == {(1, 3)}
    assert len({t.recipe.fractions for t in found}) > 2


def test_survivors_that_no_other_beats():
    rows = [answered(0, 0.2, 0.1), answered(1, 0.1, 0.2), answered(2, 0.1, 0.1), answered(3, 0.1, 0.1, refusal=-0.1)]
    assert [row.record(rows, CONCEPTS).front for row in rows] == [True, True, False, True]


def test_a_trial_that_a_kill_cut_off_is_done_again(bench: Bench, made_up: list[int], tmp_path: Path, monkeypatch):
    whole = search(bench, USUAL, trials=16, journal=tmp_path / "a.log", seed=2)
    attempt = searching.attempt

    def killed(bench: Bench, number: int, recipe: Recipe, base: Any) -> Trial:
        if number == 13:
            raise KeyboardInterrupt
        return attempt(bench, number, recipe, base)

    monkeypatch.setattr(searching, "attempt", killed)
    with pytest.raises(KeyboardInterrupt):
        search(bench, USUAL, trials=16, journal=tmp_path / "b.log", seed=2)
    monkeypatch.setattr(searching, "attempt", attempt)
    assert search(bench, USUAL, trials=16, journal=tmp_path / "b.log", seed=2) == whole


def test_trials_and_recipes_survive_json():
    import json

    for one in (trial(3, 0.1, 0.2), Trial(2, replace(USUAL, layers=(1, 4), at_least=2), 5, "ruins", 3.0, None)):
        assert msgspec.json.decode(json.dumps(written(one)), type=Trial) == one
    assert msgspec.convert({"rule": "coupled", "ratio": 1e-4, "weights": 3}, Recipe) == USUAL


def test_a_journal_of_another_search_is_refused(bench: Bench, made_up: list[int], tmp_path: Path):
    search(bench, USUAL, trials=1, journal=tmp_path / "journal.log")
    kept = bench.scores.concepts
    three = replace(bench, scores=ScoreSet({**kept, "third": kept["privacy"]}, bench.scores.protected))
    with pytest.raises(SpinError, match="other concepts"):
        search(three, USUAL, trials=1, journal=tmp_path / "journal.log")


def test_the_importance_of_settings_sums_to_one():
    trials = [
        replace(trial(n, g, g), recipe=Recipe(rule, 10.0 ** -(3 + n % 3)))
        for n, (rule, g) in enumerate((("signed", 0.3), ("coupled", 0.01)) * 10)
    ]
    found = study.settings_importance(trials, CONCEPTS)
    assert sum(found.values()) == pytest.approx(1.0)
    assert max(found, key=found.__getitem__) == "rule"
    assert study.settings_importance(trials[:5], CONCEPTS) == {}
