"""What a run is expected to take: answers, reading and verdicts counted, and their rates measured on a tiny model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
from conftest import TinyModel

from spin_llm.data import Pair, Question
from spin_llm.pipeline import estimate
from spin_llm.pipeline.estimate import Rates, expected, left_out, measured_rates, units
from spin_llm.pipeline.inputs import RunData
from spin_llm.settings import RunSettings

RATES = Rates(scored=0.3, token=0.1, answer=2.0, verdict=0.5)
PAIRS = [Pair(f"Why {n}?", "So.") for n in range(40)]
QUESTIONS = [Question(f"Why {n}?") for n in range(30)]
DATA = RunData({}, {}, PAIRS, PAIRS[:8], {"fairness": QUESTIONS}, {}, {}, {}, {})


def test_a_run_at_a_given_ratio_answers_judges_and_reads():
    settings = RunSettings("m", rule="coupled", ratio=1e-4, controls=("random",))
    seconds = expected(settings, DATA, RATES, 7.0, 20)
    assert seconds == {
        "scoring": 7.0,
        "search": 0.0,
        "answers": 30 * 3 * 2.0,  # base, edited, control
        "verdicts": 30 * 3 * 0.5,
        "perplexity": pytest.approx(2 * 2 * 8 * 20 * 0.1),  # edited and control, each beside the base
    }
    each = units(settings, DATA, RATES, seconds)
    assert each["perplexity"] * 2 * 8 == pytest.approx(seconds["perplexity"])
    assert each["answers"] == 2.0


def test_a_search_is_trials_and_answers_of_survivors():
    settings = RunSettings("m", effort="quick")
    data = replace(DATA, contrasts={"fairness": (PAIRS[:16], PAIRS[:12])}, search={"fairness": QUESTIONS[:20]})
    seconds = expected(settings, data, RATES, 0.0, 20)
    assert seconds["search"] == pytest.approx(
        (1 + 10) * (32 + 16 + 28) * 20 * 0.1
    )  # general, KL, aware and unaware pairs
    asked = 10 * (1 + 3) + 10 * (1 + 1.5)  # two rungs: base and three survivors, base and the better half
    assert seconds["answers"] == pytest.approx(2.0 * (asked + 30 * 2))


def test_a_ratio_that_is_chosen_reads_the_general_pairs():
    settings = RunSettings("m", rule="coupled")
    assert expected(settings, DATA, RATES, 0.0, 20)["search"] == pytest.approx(estimate.RATIOS_TRIED * 40 * 20 * 0.1)


def test_what_is_left_out_is_said():
    assert left_out(RunSettings("m")) == ""
    settings = RunSettings("m", judge="rubric:other", capabilities=("arc_easy",), resamples=10)
    assert left_out(settings) == "; not in it: lm-eval tasks, resamples, the verdicts of rubric:other"
    assert expected(settings, DATA, RATES, 0.0, 20)["verdicts"] == 0.0


def test_rates_are_measured_on_the_model(tiny_model: TinyModel):
    loaded, settings = tiny_model("llama"), RunSettings("m", template="raw", new_tokens=16)
    rates = measured_rates(settings, loaded, tiny.examples(1), {"fairness": QUESTIONS[:3]})
    assert rates.token > 0
    assert rates.scored == estimate.WITH_GRADIENTS * rates.token
    assert 0 < rates.answer < 10
    assert measured_rates(settings, loaded, tiny.examples(1), {}, scored=0.25).scored == 0.25
