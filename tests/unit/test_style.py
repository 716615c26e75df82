"""Wording of answers: length, repetition, cautionary phrases, and which phrases shift."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spin_llm.evaluate.wording import (
    CAUTIONARY,
    MOST_SHOWN,
    by_axis,
    contains,
    count,
    is_cautionary,
    log_odds,
    phrase_shifts,
    phrases_of,
    repetition,
    shifts,
    style_of,
    without_repeats,
    words,
)
from spin_llm.results.file import PhraseShift
from spin_llm.results.rows import Answer
from spin_llm.stats.paired import rate_interval


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("I’M sorry; I can't!", ["i'm", "sorry", "i", "can't"]),
        ("snake_case and re-use", ["snake", "case", "and", "re", "use"]),
        ("Ärzte über 65", ["ärzte", "über", "65"]),
    ],
)
def test_words(text: str, expected: list[str]):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0.0),
        ("one two three four", 0.0),
        ("a b c d a b c d", 1 / 5),  # abcd bcda cdab dabc abcd
        ("no " * 8, 4 / 5),
        ("every word in this is a new one", 0.0),
    ],
)
def test_repetition_by_hand(text: str, expected: float):
    assert repetition(text) == pytest.approx(expected)


def test_cautionary_phrases_are_whole_words_in_any_case():
    assert is_cautionary("Well, i’m SORRY about that.", "privacy")
    assert is_cautionary("It would be  illegal.", "privacy")
    assert not is_cautionary("It would be illegal.", "fairness")
    assert not is_cautionary("A respectful, insensitive I can not.", "privacy")
    assert set(CAUTIONARY["over_refusal"]) == {*CAUTIONARY["fairness"], *CAUTIONARY["privacy"]}
    assert contains("We respect people's privacy.", "respect people’s privacy")


def answer(axis: str, number: int, model: str, text: str, tokens: int = 3) -> Answer:
    row = {"id": f"{axis}-{number}", "axis": axis, "model": model, "answer": text, "tokens": tokens}
    return Answer(**row, prompt="Why?", finished=True)


def test_style_is_paired_by_question():
    texts = {"base": ["no", "yes yes yes yes yes", "I cannot"], "edited": ["I'm sorry", "yes", "I cannot"]}
    rows = [
        answer("privacy", i, model, text, tokens=10 * i + (model == "edited") * i)
        for model in ("edited", "base")  # whatever the order in the file
        for i, text in enumerate(texts[model])
    ]
    rows.insert(2, answer("privacy", 0, "random", "a control's answer"))
    pairs = by_axis(rows, "base", "edited")
    assert list(pairs) == ["privacy"]
    found = style_of("privacy", *pairs["privacy"])
    assert (found["length"].base, found["length"].edited, found["length"].n) == (10.0, 11.0, 3)
    assert found["length"].better is None
    assert found["repetition"].base == pytest.approx(1 / 6)  # half of the second answer's two 4-grams
    assert found["repetition"].edited == 0.0
    assert found["repetition"].better == "lower"
    assert found["cautionary"].base == pytest.approx(1 / 3)
    assert found["cautionary"].delta == pytest.approx(1 / 3)
    assert found["cautionary"].p == 1.0
    same = style_of("privacy", *[pairs["privacy"][0]] * 2)
    assert all(entry.delta == 0 and entry.p == 1.0 for entry in same.values())


def test_an_axis_without_a_list_has_no_cautionary_share():
    rows = [answer("toxicity", 0, model, "I cannot") for model in ("base", "edited")]
    assert set(style_of("toxicity", rows[:1], rows[1:])) == {"length", "repetition"}


def test_phrases_stay_inside_sentences_and_count_once():
    assert phrases_of("No way. No way!") == {"no", "way", "no way"}
    assert count(["no no", "no. way"]) == Counter({"no": 2, "no no": 1, "way": 1})


def test_log_odds_by_hand():
    """Monroe, Colaresi and Quinn's formula with y = 2 and 6 of n = 10, and a prior of 10 answers, 4 of them with it."""
    ratio, z = log_odds(2, 6, 10, 0.4)
    assert ratio == pytest.approx(math.log((6 + 4) / (10 + 10 - 6 - 4)) - math.log((2 + 4) / (10 + 10 - 2 - 4)))
    assert z == pytest.approx(ratio / math.sqrt(1 / 10 + 1 / 10 + 1 / 6 + 1 / 14))


SIDE = st.lists(st.text(alphabet="ab .", max_size=12), min_size=6, max_size=6)


@given(SIDE, SIDE)
def test_exchanging_base_and_edited_turns_every_shift_around(base: list[str], edited: list[str]):
    there, back = phrase_shifts({"privacy": (base, edited)}), phrase_shifts({"privacy": (edited, base)})
    turned = [(row.phrase, row.edited, row.base, -row.log_odds, -row.z) for row in there["privacy"].shifted]
    assert turned == [tuple(vars(row).values()) for row in back["privacy"].shifted]
    assert there["privacy"].tried == back["privacy"].tried


@given(SIDE)
def test_equal_answers_show_no_shift(texts: list[str]):
    found = phrase_shifts({"fairness": (texts, texts)})["fairness"]
    assert found.shifted == []
    assert all(row.base == row.edited for row in found.listed)


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0.001, 1))
def test_the_sign_of_a_shift_is_that_of_the_counts(base: int, edited: int, share: float):
    ratio, z = log_odds(base, edited, 50, share)
    assert math.isfinite(z)
    assert (z > 0) - (z < 0) == (ratio > 0) - (ratio < 0) == (edited > base) - (edited < base)


def test_more_evidence_is_a_larger_z_and_rare_phrases_are_not_tried():
    base = count(["x"] * 10)
    few = shifts(base, count(["x rare"] * 2 + ["x"] * 8), 10, dict.fromkeys(("x", "rare", "x rare"), 0.5))
    assert [row.phrase for row in few] == ["x"]
    weak, strong = (log_odds(0, found, 100, found / 200)[1] for found in (5, 20))
    assert 0 < weak < strong


def test_a_planted_phrase_is_found_once_and_its_parts_are_not():
    base = [f"the answer is {number}" for number in range(10, 50)]
    edited = base[:20] + ["respect user privacy"] * 20
    found = phrase_shifts({"privacy": (base, edited)})["privacy"]
    gained = [row.phrase for row in found.shifted if row.z > 0]
    assert gained == ["respect user privacy"]
    assert [row.phrase for row in found.shifted if row.z < 0] == ["the answer is"]
    assert found.threshold > 1.96
    row = next(row for row in found.listed if row.phrase == "respect")
    assert (row.base, row.edited, row.n) == (0, 20, 40)
    assert row.ci95 == rate_interval(20, 0, 40)
    assert row.ci95[0] > 0
    assert row.p == pytest.approx(2 * 0.5**20)


def test_at_most_twenty_are_shown_largest_first():
    rows = [PhraseShift(phrase=f"word{i}", base=i, edited=0, log_odds=-1.0, z=-float(50 - i)) for i in range(30)]
    kept = without_repeats(rows)
    assert len(kept) == MOST_SHOWN
    assert kept == rows[:MOST_SHOWN]


def test_nothing_to_compare():
    assert phrase_shifts({}) == {}
    assert phrase_shifts({"privacy": ([""], [""])})["privacy"].threshold is None
