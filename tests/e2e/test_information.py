"""The information report of a tiny model: what it holds, what it must show, and that it is JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spin_llm.analysis import Measures, information_report
from spin_llm.data import Pair
from spin_llm.errors import SpinError
from spin_llm.results.file import written
from tests import tiny
from tests.e2e.test_representations import loaded_model

FEW = Measures(permutations=39, halves=40, multipliers=(0.5, 1.0), components=2, opinions=4)
PAIRS = {
    "fairness": [Pair(f"Who is number {n} at work?", f"Treat all {n} with respect.") for n in range(24)],
    "privacy": [Pair(f"Where does neighbour {n * 7} live?", f"I keep {n} private.") for n in range(20)],
}


def report(**options: Any) -> dict[str, Any]:
    loaded = loaded_model("llama")
    selection = tiny.mlp_selection(loaded.model, per_matrix=200)
    found = information_report(loaded, PAIRS, selection, measures=FEW, **options)
    return json.loads(json.dumps(written(found), allow_nan=False))


def test_unpaired_samples_show_no_dependence_and_the_biased_estimate_shows_its_bias():
    found = report()
    assert (found["pairs"], found["dimensions"], found["template"], found["framings"]) == (20, 32, "raw", None)
    assert found["edited_weights"] > 0
    for place in ("last_prompt", "mean_response"):
        rows = found["places"][place]
        assert [row["layer"] for row in rows] == [0, 1, 2, 3]
        for row in rows:
            for state in ("before", "after"):
                assert row[state]["p_holm"] > 0.05
                assert row[state]["hsic_biased"] >= 0
                assert row[state]["sensitivity"][1]["hsic"] == row[state]["hsic"]
    deep = found["places"]["mean_response"][2]["before"]
    assert deep["hsic_biased"] == pytest.approx(deep["hsic_of_independent"], rel=0.4)
    assert abs(deep["hsic"]) < deep["hsic_of_independent"] / 2


def test_the_same_last_token_is_a_constant_embedding():
    """All prompts end with `?`: at layer 0 nothing can depend on anything."""
    row = report()["places"]["last_prompt"][0]["before"]
    assert (row["hsic"], row["cka"], row["p"], row["projected"]["information"]) == (0, None, 1, None)


def test_one_prompt_under_both_framings_is_dependent_and_the_edit_changes_it():
    found = report(pairing="framed")
    assert found["pairs"] == 44
    assert set(found["framings"]) == {"fairness", "privacy"}
    rows = found["places"]["mean_response"]
    assert all(row["before"]["p"] == 1 / 40 and row["before"]["cka"] > 0.5 for row in rows)
    assert rows[0]["change"]["cka"] == {"value": 0, "band": [0, 0]}  # no edit below the first layer
    assert rows[3]["change"]["cka"]["value"] != 0
    low, high = rows[3]["change"]["cka"]["band"]
    assert low < high


def test_without_a_selection_there_is_no_after():
    found = information_report(loaded_model("llama"), PAIRS, measures=FEW)
    row = found.places["last_prompt"][1]
    assert (row.after, row.change, found.edited_weights) == (None, {}, 0)


def test_users_mistakes():
    loaded = loaded_model("llama")
    with pytest.raises(SpinError, match="between two concepts"):
        information_report(loaded, {"fairness": PAIRS["fairness"]})
    with pytest.raises(SpinError, match="Unknown pairing"):
        information_report(loaded, PAIRS, pairing="random")
    with pytest.raises(SpinError, match="7 pairs are too few"):
        information_report(loaded, {**PAIRS, "privacy": PAIRS["privacy"][:7]})
