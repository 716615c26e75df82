"""The schema of results.json, made from the types: it and the reader accept what is written, with and without optional
parts, and refuse the same damage; what is read is written again as it was."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spin_llm.errors import SpinError
from spin_llm.files import write_json
from spin_llm.results.file import read_results, results_schema, write_results, written

INTERVAL = [-0.1, 0.2]
ENTRY = {
    **{"metric": "tokens per answer", "n": 30, "base": 0.1, "edited": 0.2, "delta": 0.1, "ci95": INTERVAL, "p": 0.03},
    **{"mde": 0.2, "better": "higher", "measurable": True, "note": ""},
}
AXIS = {**ENTRY, "unparsed": [0, 1]}
OPTIONAL = ("mde", "unparsed", "note")  # what some version, or some table, does not write
OLD = {key: value for key, value in AXIS.items() if key != "mde"}
COST = {**AXIS, "better": "lower"}
QUALITY = {
    **{"accuracy": 0.94, "auc": 0.92, "auc_ci95": [0.83, 1.0], "brier": 0.04, "measurable": True, "n": 128},
    **{"positive_rate": [0.07, 0.09], "source": "labelled answers", "elsewhere": {"other answers": {"auc": 0.7}}},
}
EDIT = {
    **{"rule": "coupled", "ratio": 5e-06, "protect_ratio": 5e-06, "target": "mlp", "scale": 0.0, "candidates": 360},
    **{"shared": 299, "weights": 3, "matrices": 2, "share": 5.7e-07, "per_matrix": {"a.weight": 1, "b.weight": 2}},
    **{"shapes": {"a.weight": [576, 1536], "b.weight": [1536, 576]}, "layers": {"a.weight": 0, "b.weight": 1}},
    "kinds": {"a.weight": "down_proj", "b.weight": "up_proj"},
}
TRIAL = {
    **{"allowed": False, "both": 0, "candidates": 0, "chosen": False, "increase": None, "perplexity": None},
    **{"ratio": 1e-07, "weights": 0},
}
# What the first version wrote: a run of the embedded model, shortened.
FIRST = {
    "edit": EDIT,
    "axes": {
        **{"fairness": OLD, "privacy": OLD, "over_refusal": {**OLD, "better": "lower"}},
        **{"perplexity": {**OLD, "better": "lower"}, "kl": {**OLD, "better": "lower", "p": None, "base": 0.0}},
    },
    "controls": {},
    "facets": {"fairness": {"age": {"n": 12, "base": 0.1, "edited": 0.2}}},
    "judge": {"name": "local", "label": "aware", "quality": {"fairness": QUALITY}},
    "ratio_table": [TRIAL],
}
CORRECTED = {
    **{"base": 0.1, "edited": 0.2, "delta": 0.1, "ci95": INTERVAL, "sensitivity": 0.9, "specificity": 0.8},
    "note": "as far as the judge errs here as there",
}
FULL: dict[str, Any] = {
    **FIRST,
    "axes": {
        "fairness": {**AXIS, "p_holm": 0.06, "corrected": CORRECTED},
        "privacy": {**AXIS, "corrected": {**CORRECTED, "base": None, "edited": None, "delta": None, "ci95": None}},
        **{"over_refusal": COST, "coherence": AXIS, "perplexity": COST, "kl": {**COST, "p": None, "mde": None}},
    },
    "controls": {"random": {"weights": 3, "shared": 0, "axes": {"fairness": AXIS, "perplexity": COST, "kl": COST}}},
    "controls_left_out": {"unprotected": "it selects what the edit selects"},
    "facets": {"fairness": {"age": {"n": 12, "base": 0.1, "edited": 0.2, "delta": 0.1, "ci95": INTERVAL}}},
    "style": {"fairness": {"length": {**ENTRY, "better": None}, "repetition": ENTRY, "cautionary": ENTRY}},
    "phrases": {
        "fairness": {
            "listed": [{"phrase": "I'm sorry", "base": 1, "edited": 4, "n": 12, "ci95": INTERVAL, "p": 0.25}],
            "shifted": [{"phrase": "respect", "base": 1, "edited": 9, "log_odds": 1.2, "z": 2.1}],
            **{"tried": 1188, "threshold": 4.1},
        }
    },
    "capabilities": {"boolq": {**ENTRY, "metric": "acc"}},
    "overlap": {"concepts": ["fairness"], "protect": ["general"], "regions": {"fairness": 5, "fairness&general": 2}},
    "stability": {
        **{"resamples": 100, "seed": 0, "weights": 44, "in_half": 30, "in_most": 11, "others_in_half": 2},
        "jaccard": {"mean": 0.6, "low": 0.5, "high": 0.7},
        "size": {"mean": 44.0, "low": 40, "high": 50},
    },
    "judge": {
        **{"name": "local", "label": "aware", "limits": ["an empty answer has no verdict"]},
        "quality": {"fairness": {**QUALITY, "sensitivity": [8, 9], "specificity": [110, 119]}},
        "agreement": {"wildguard": {"fairness": {"kappa": 0.7, "ci95": [0.5, 0.9], "n": 100}}},
    },
}


def test_the_schema_is_one_and_says_what_the_fields_are():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(results_schema())
    assert results_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    axis = results_schema()["$defs"]["AxisResult"]["properties"]
    assert axis["delta"]["description"] == "edited - base"
    assert axis["p"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 1}


def stored(folder: Path, results: dict[str, Any]) -> Path:
    write_json(folder / "results.json", results)
    return folder


@pytest.mark.parametrize("results", [FIRST, FULL, {**FIRST, "edit": {}}], ids=["first version", "full", "no patch"])
def test_what_is_written_is_accepted_and_written_again_as_it_was(results: dict[str, Any], tmp_path: Path):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(results, results_schema(), jsonschema.Draft202012Validator)
    again = written(read_results(stored(tmp_path, results)))
    added = {"style", "phrases", "warnings", "files"} - results.keys()
    assert {**results, **dict.fromkeys(added)}.keys() == again.keys()
    for part in {"edit", "facets", "ratio_table", "style", "phrases", "overlap"} & results.keys():
        assert json.loads(json.dumps(again[part])) == results[part], part
    axis = json.loads(json.dumps(again["axes"]["fairness"]))
    assert axis == {"p_holm": None, "mde": None, **results["axes"]["fairness"]}
    assert again["judge"]["quality"]["fairness"]["auc"] == QUALITY["auc"]


def test_a_key_that_is_not_known_is_ignored(tmp_path: Path):
    later = {**FULL, "styles": {}, "axes": {**FULL["axes"], "fairness": {**AXIS, "p_homl": 0.1}}}
    assert read_results(stored(tmp_path, later)).axes["fairness"].p_holm is None


def test_a_number_that_is_none_is_not_written(tmp_path: Path):
    results = read_results(stored(tmp_path, FULL))
    axes = {**results.axes, "kl": replace(results.axes["kl"], base=math.nan)}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path, replace(results, axes=axes))


WRONG = [
    *((f"no {name}", (name,), None) for name in ("axes", "controls", "judge")),
    *((f"no {name} of an axis", ("axes", "privacy", name), None) for name in AXIS if name not in OPTIONAL),
    ("a concept without its numbers", ("axes", "toxicity"), {}),
    ("an interval of one", ("axes", "fairness", "ci95"), [0.1]),
    ("a p above 1", ("axes", "fairness", "p"), 1.5),
    ("an n below nothing", ("axes", "fairness", "n"), -1),
    ("a rate in words", ("axes", "fairness", "base"), "10%"),
    ("another direction", ("axes", "fairness", "better"), "up"),
    ("an edit of no weights", ("edit", "weights"), 0),
    ("a control without its size", ("controls", "random", "weights"), None),
    ("1001 shifts", ("phrases", "fairness", "shifted"), FULL["phrases"]["fairness"]["shifted"] * 1001),
    ("a capability without a metric", ("capabilities", "boolq", "metric"), None),
    ("quality without an AUC", ("judge", "quality", "fairness", "auc"), None),
    ("a negative region", ("overlap", "regions", "fairness"), -1),
    ("stability without a size", ("stability", "size"), None),
]


@pytest.mark.parametrize(("place", "value"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_is_wrong_is_refused_with_its_place(place: tuple[str, ...], value: Any, tmp_path: Path):
    jsonschema = pytest.importorskip("jsonschema")
    broken = copy.deepcopy(FULL)
    within = broken
    for key in place[:-1]:
        within = within[key]
    if value is None:
        del within[place[-1]]
    else:
        within[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, results_schema(), jsonschema.Draft202012Validator)
    with pytest.raises(SpinError, match=r"results\.json cannot be read") as caught:
        read_results(stored(tmp_path, broken))
    where = (f"`{place[-1]}`",) if value is None else ("$",)
    assert all(part in caught.value.what for part in where)


def test_half_an_edit_is_refused(tmp_path: Path):
    half = {key: value for key, value in EDIT.items() if key != "target"}
    with pytest.raises(SpinError, match=r"an edit has weights, matrices and target - at `\$.edit`"):
        read_results(stored(tmp_path, {**FULL, "edit": half}))
