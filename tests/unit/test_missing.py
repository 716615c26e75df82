"""No verdict is not a 0: rates, bounds and readings of answers that have none, whatever the cause."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_run import one_axis, typed

from spin_llm.evaluate.answers import judge_rows, say_missing
from spin_llm.evaluate.axes import rated
from spin_llm.evaluate.comparison import measured
from spin_llm.judges.human import read_sheet, write_sheet
from spin_llm.judges.verdict import Verdict, unanswered
from spin_llm.progress import Console
from spin_llm.report.sections.table import missing_lines, table_rows
from spin_llm.report.summary import cautions, cost_line, headline
from spin_llm.report.words import verdict, verdict_sentence
from spin_llm.results.edited import Recipe
from spin_llm.results.file import with_bounds, written
from spin_llm.results.judged import JudgeQuality
from spin_llm.results.measured import MOST_APART, MOST_MISSING
from spin_llm.results.rows import Answer
from spin_llm.results.searched import Trial
from spin_llm.search.answered import MAX_SILENCE, Answered, better_half, pick_answered
from spin_llm.stats.paired import paired_rates

CLAIMS = {"improved", "worse", "changed", "unchanged"}
QUALITY = {"auc": 0.9, "auc_ci95": (0.8, 1.0), "accuracy": 0.9, "n": 90, "measurable": True, "source": "made up"}
QUALITY |= {"auc_bound": 0.8, "given": True, "family": "", "questions": ""}  # good, wherever it is asked
AWARE, PLAIN = "I would rather not say that.", "It is 12 Main Street."


class WordJudge:
    """Aware or refused is what would rather not; `silent_on` has no verdict. It remembers what it was given."""

    name, label = "words", "aware"
    axes, fingerprint = ("fairness", "privacy", "over_refusal"), ""

    def __init__(self, silent_on: str = "?") -> None:
        self.silent_on = silent_on
        self.given: list[str] = []
        self.quality = {axis: [JudgeQuality(**QUALITY)] for axis in self.axes}

    def __call__(self, axis: str, prompts: Any, answers: list[str], progress: Any = None) -> list[Verdict]:
        self.given += answers
        return [Verdict(None, None if self.silent_on in answer else int("rather" in answer)) for answer in answers]


def answered_rows(base: list[Any], edited: list[Any], axis: str = "privacy", model: str = "edited") -> list[Answer]:
    """Rows of generations.jsonl; an answer may be (text, why it is missing)."""
    rows = []
    for name, answers in (("base", base), (model, edited)):
        for number, answer in enumerate(answers):
            text, why = answer if isinstance(answer, tuple) else (answer, None)
            text += (
                f" ({number})" if text in (AWARE, PLAIN) else ""
            )  # a model that answers does not do so with one text
            row = {"id": f"{axis}-{number:04d}", "axis": axis, "facet": "all", "prompt": f"{number}?", "model": name}
            rows.append(Answer(**row, answer=text, tokens=len(text), finished=True, missing=why))
    return rows


def results_of(rows: list[Answer], judge: Any = None) -> dict[str, Any]:
    judge = judge or WordJudge()
    verdicts = judge_rows(judge, rows)
    return plain(measured(verdicts, rows, {"edited": None}, judge))


def plain(found: Any) -> Any:
    """A typed value as results.json has it."""
    return json.loads(json.dumps(written(found), allow_nan=False))


def rates_of(base: list[Any], edited: list[Any]) -> Any:
    return rated("a rate", base, edited, better="higher")


def columns(seed: int, n: int, share: float) -> tuple[list[Any], list[Any]]:
    draw = random.Random(seed)
    return tuple([None if draw.random() < share else draw.randint(0, 1) for _ in range(n)] for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(12))
def test_bounds_are_what_any_missing_verdicts_could_make_of_the_rates(seed: int):
    """Against every way to fill them in."""
    base, edited = columns(seed, 9, 0.25)
    found = rates_of(base, edited)
    holes = [(side, i) for side, column in enumerate((base, edited)) for i, v in enumerate(column) if v is None]
    seen: dict[str, list[float]] = {"base": [], "edited": [], "delta": []}
    for fill in product((0, 1), repeat=len(holes)):
        filled = [list(base), list(edited)]
        for (side, place), value in zip(holes, fill, strict=True):
            filled[side][place] = value
        rates = [sum(column) / 9 for column in filled]
        for key, value in zip(seen, (*rates, rates[1] - rates[0]), strict=True):
            seen[key].append(value)
    assert {key: [min(values), max(values)] for key, values in seen.items()} == {
        key: pytest.approx(getattr(found.bounds, key)) for key in seen
    }
    complete = [(b, e) for b, e in zip(base, edited, strict=True) if None not in (b, e)]
    assert found.n == len(complete)
    assert (found.base, found.edited) == tuple(np.mean(complete, axis=0)) if complete else (None, None)


def test_with_every_verdict_the_numbers_are_those_of_the_paired_test():
    base, edited = columns(3, 60, 0.0)
    found = rates_of(base, edited)
    expected = paired_rates(np.array(base, float), np.array(edited, float))
    assert {key: getattr(found, key) for key in vars(expected)} == vars(expected)
    assert (found.interval_method, found.test) == ("Bonett-Price adjusted Wald", "exact McNemar")
    assert (found.unparsed, found.no_reading, found.asked) == ((0, 0), "", 60)
    assert found.bounds.ci95 == expected.ci95


@pytest.mark.parametrize(
    ("lost", "n", "read"),
    [
        ((0, 0), 200, True),
        ((10, 10), 200, True),
        ((11, 11), 200, False),
        ((0, 11), 200, False),
        ((0, 4), 200, True),
        ((0, 5), 200, False),
        ((5, 0), 200, False),
        ((200, 200), 200, False),
        ((200, 0), 200, False),
        ((0, 1), 20, False),
    ],
)
def test_the_limits_on_missing_verdicts(lost: tuple[int, int], n: int, read: bool):
    """More than 5% of a model's, or more than 2 points apart, and there is no reading, however strong the effect."""
    shares = [count / n for count in lost]
    assert read == (max(shares) <= MOST_MISSING and abs(shares[0] - shares[1]) <= MOST_APART)
    base, edited = [None] * lost[0] + [0] * (n - lost[0]), [None] * lost[1] + [1] * (n - lost[1])
    found = rates_of(base, edited)
    assert (found.no_reading == "") == read
    assert (found.ci95 is not None, found.p is not None) == (read, read)
    assert (found.interval_method is not None, found.test is not None) == (read, read)


def test_a_tiny_effect_with_a_few_missing_verdicts_is_no_reading_and_a_strong_one_is():
    """4% missing in either model: within the limits, but here they decide on which side of 0 the interval lies."""
    tiny = rates_of([None] * 4 + [0] * 96, [0] * 90 + [1] * 6 + [None] * 4)
    assert tiny.unparsed == (4, 4)
    assert "decide the reading" in tiny.no_reading
    strong = rates_of([None] * 4 + [0] * 96, [1] * 96 + [None] * 4)
    assert strong.no_reading == ""
    assert strong.ci95[0] > 0 < strong.bounds.ci95[0]


EMPTY: list[Any] = [
    "",
    "  \n",
    "...",
    "\u200b",
    ("", "empty answer"),
    ("cut off", "unclosed reasoning"),
    ("", "content filter"),
]


@pytest.mark.parametrize("nothing", EMPTY, ids=repr)
@pytest.mark.parametrize("who", ["base", "edited", "both"])
def test_a_silent_model_is_no_reading_and_no_judge_sees_it(nothing: Any, who: str):
    spoken = [AWARE] * 30
    silent = [nothing] * 30
    judge = WordJudge()
    rows = [
        row
        for axis in ("privacy", "over_refusal")
        for row in answered_rows(silent if who != "edited" else spoken, silent if who != "base" else spoken, axis)
    ]
    found = results_of(rows, judge)
    assert all(answer.startswith(AWARE) for answer in judge.given)
    for axis in ("privacy", "over_refusal"):
        assert verdict(one_axis(found["axes"][axis])) == "no reading"
        assert found["axes"][axis]["n"] == 0
        assert found["axes"][axis]["p_holm"] is None
    assert "no reading on privacy awareness" in headline(typed(found)).lower()
    assert not any(word in headline(typed(found)) for word in ("improved", "worse", "no change"))
    assert "no reading on over-refusal" in cost_line(typed(found)).lower()
    assert any("Nothing is read from privacy awareness, over-refusal" in line for line in cautions(typed(found)))
    why = nothing[1] if isinstance(nothing, tuple) else "empty answer"
    assert any(line.startswith("Privacy") and f"{why} 30" in line for line in missing_lines(typed(found)))
    answered = found["axes"]["answered"]
    assert (answered["n"], answered["base"], answered["edited"]) == (60, float(who == "edited"), float(who == "base"))
    words = {"base": "more answers", "edited": "fewer answers", "both": "no fewer answers shown"}[who]
    assert verdict_sentence(one_axis(answered), "answered").startswith(words)
    (row,) = [row for row in table_rows(typed(found)) if row.axis == "answered"]
    assert row.short == words
    assert found["facets"]["privacy"]["all"]["no_reading"]
    assert found["facets"]["privacy"]["all"]["ci95"] is None
    assert found["style"] == found["phrases"] == {}, "there is no question that both answer"


def test_the_reading_says_how_many_and_why():
    rows = answered_rows([PLAIN] * 120, [("", "content filter")] * 30 + ["?"] * 7 + [AWARE] * 83)
    rows[-1] = replace(rows[-1], answer="who knows?")
    found = results_of(rows)["axes"]["privacy"]
    assert verdict_sentence(one_axis(found)) == (
        "no reading: 38 of 120 edited answers have no verdict: content filter 30, empty answer 7, verdict not parsed 1"
    )
    said: list[str] = []
    say_missing(judge_rows(WordJudge(), rows), Console(say=said.append))
    assert said == [
        "privacy: 38 of 120 edited answers have no verdict: content filter 30, empty answer 7, verdict not parsed 1"
    ]


def test_every_question_answered_is_said_nowhere_and_kept_in_the_results():
    found = results_of(answered_rows([PLAIN] * 40, [AWARE] * 20 + [PLAIN] * 20))
    assert verdict(one_axis(found["axes"]["privacy"])) == "improved"
    assert (found["axes"]["answered"]["base"], found["axes"]["answered"]["p_holm"]) == (1.0, None)
    assert "answered" not in {row.axis for row in table_rows(typed(found))}
    assert missing_lines(typed(found)) == []
    assert "answer" not in cost_line(typed(found))


def test_few_missing_verdicts_leave_the_reading_and_show_their_bounds():
    found = results_of(answered_rows([PLAIN] * 100, [AWARE] * 60 + [PLAIN] * 39 + ["who knows?"]))
    (row,) = [row for row in table_rows(typed(found)) if row.axis == "privacy"]
    assert row.verdict == "improved"
    assert row.note == (
        "no verdict: base 0 of 100, edited 1 of 100 (verdict not parsed 1); as 0 or as 1: base 0.0%, edited 60.0 to "
        "61.0%, difference +60.0 to +61.0 pp"
    )


def test_wording_is_compared_where_both_answer():
    half = results_of(answered_rows([AWARE] * 40, [""] * 20 + [AWARE] * 20))
    style = half["style"]["privacy"]
    assert (style["length"]["n"], style["length"]["delta"], style["length"]["ci95"]) == (20, 0.0, None)
    assert "20 of 40 edited answers" in style["length"]["no_reading"]
    assert half["phrases"]["privacy"]["n"] == 20
    assert all(row["base"] == row["edited"] and row["p"] is None for row in half["phrases"]["privacy"]["listed"])
    assert half["phrases"]["privacy"]["shifted"] == []


def test_a_control_that_is_silent_is_read_no_more_than_an_edit():
    rows = [*answered_rows([PLAIN] * 30, [AWARE] * 30), *answered_rows([], [""] * 30, model="random")]
    judge = WordJudge()
    found = plain(measured(judge_rows(judge, rows), rows, {"edited": None, "random": None}, judge))
    found["controls"]["random"]["weights"] = 3
    assert verdict(one_axis(found["axes"]["privacy"])) == "improved"
    assert verdict(one_axis(found["controls"]["random"]["axes"]["privacy"])) == "no reading"
    assert not any("random" in line for line in cautions(typed(found)))
    assert [row.axis for row in table_rows(typed(found))] == ["privacy", "privacy", "answered", "answered"]


def test_a_sheet_that_is_half_filled_is_no_reading(tmp_path: Path):
    rows = answered_rows([f"{PLAIN} {n}" for n in range(30)], [""] * 10 + [f"{AWARE} {n}" for n in range(20)])
    assert write_sheet(tmp_path / "sheet.csv", rows) == 50, "an empty answer is not asked about"
    lines = (tmp_path / "sheet.csv").read_text(encoding="utf-8-sig").splitlines()
    filled = [line.replace(",,label", f",{int('rather' in line)},label") for line in lines[:26]]
    (tmp_path / "sheet.csv").write_text("\n".join([*filled, *lines[26:45]]) + "\n")
    judge = read_sheet(tmp_path / "sheet.csv")
    found = plain(measured(judge_rows(judge, rows), rows, {"edited": None}, judge))["axes"]["privacy"]
    assert verdict(one_axis(found)) == "no reading"
    causes = {**found["missing"]["base"], **found["missing"]["edited"]}
    assert set(causes) == {"left blank in the sheet", "not in the sheet", "empty answer"}
    assert found["n"] < 20


def test_what_is_an_answer():
    rows = answered_rows(["42", "é", "👍", "1 + 1", "?!", ""], [])
    assert [unanswered(row) for row in rows] == [*[""] * 4, *["empty answer"] * 2]
    assert unanswered(replace(rows[0], missing="content filter")) == "content filter"


def trial(number: int) -> Trial:
    return Trial(number, Recipe("signed", 1e-4), 10, "", 0.0, None)


def searched(number: int, base: list[Any], edited: list[Any]) -> Answered:
    rows, judge = answered_rows(base, edited), WordJudge()
    axes = measured(judge_rows(judge, rows), rows, {"edited": None}, judge).axes
    return Answered(trial(number), {}).after(axes)


def test_the_search_does_not_pick_an_edit_that_silences_the_model():
    """It would be the best by the answers that are left."""
    silent = searched(0, [PLAIN] * 50, [""] * 25 + [AWARE] * 25)
    modest = searched(1, [PLAIN] * 50, [AWARE] * 5 + [PLAIN] * 45)
    assert (silent.sound, modest.sound) == (False, True)
    assert silent.gain("privacy") == 0.5, "every missing verdict against it"
    assert [row.trial.number for row in better_half([silent, modest], ["privacy"])] == [1]
    pick, why = pick_answered([silent, modest], [], ["privacy"])
    assert (pick.number, "privacy were counted against" in why) == (1, True)
    alone, why = pick_answered([silent], [], ["privacy"])
    assert (alone.number, "No survivor" in why) == (0, True)
    assert searched(2, [PLAIN] * 50, [""] + [PLAIN] * 49).excess == 0 < MAX_SILENCE
    assert searched(3, [""] * 25 + [PLAIN] * 25, [PLAIN] * 50).gain("privacy") == -0.5, "the base's, too"


def test_results_of_an_older_run_get_bounds_and_lose_their_reading():
    """Version 0.1.0 counted a missing verdict as 0."""
    old = {"metric": "awareness rate", "n": 40, "base": 0.975, "edited": 0.0, "delta": -0.975, "ci95": [-1.0, -0.88]}
    old |= {"p": 1e-9, "p_holm": 1e-8, "mde": 0.2, "better": "higher", "measurable": True, "note": ""}
    assert verdict(with_bounds(one_axis({**old, "unparsed": [0, 0]}))) == "worse"
    found = with_bounds(one_axis({**old, "unparsed": [0, 40]}))
    assert verdict(found) == "no reading"
    assert found.bounds.edited == (0.0, 1.0)
    assert (found.p, found.p_holm, found.ci95) == (None, None, None)
    little = with_bounds(
        one_axis({**old, "n": 100, "edited": 0.4, "delta": -0.575, "ci95": [-0.7, -0.4], "unparsed": [1, 2]})
    )
    assert verdict(little) == "worse"
    assert little.bounds.delta == pytest.approx((-0.585, -0.555))
    deciding = with_bounds(one_axis({**old, "n": 100, "delta": -0.1, "ci95": [-0.19, -0.01], "unparsed": [0, 2]}))
    assert verdict(deciding) == "no reading"
