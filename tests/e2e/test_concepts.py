"""Other concepts than the paper's, by name, by file, and more than two of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import driver
import pytest
from conftest import TinyFolder
from harness import Command, Setting, pairs, write_rows

from spin_llm.judges.local import load_local
from spin_llm.judges.quality.fit import fit_judge
from spin_llm.judges.quality.labelled import labelled_rows

pytest_plugins = ["harness"]
QUICK = ("--examples", 4, "--template", "raw", "--keep", 0.3, "--dtype", "float32", "--ratio", 0.3, "--new-tokens", 4)
ASKED = ("--max-questions", 4, "-q")


def results_of(command: Command, folder: Path, *words: object) -> dict[str, Any]:
    outcome = command("run", *words, *QUICK, *ASKED, "-o", folder)
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_truthfulness_and_helpfulness_by_name(setting: Setting, command: Command, tmp_path: Path):
    named = ("--concept", "truthfulness", "--concept", "helpfulness")
    results = results_of(command, tmp_path / "run", setting.model, *named, "--control", "truthfulness-alone")
    axes = ["truthfulness", "helpfulness", "over_refusal", "coherence", "answered", "perplexity", "kl"]
    assert list(results["axes"]) == axes
    assert results["edit"]["weights"] > 0
    assert list(results["controls"]) == ["truthfulness-alone"]
    assert list(results["facets"]["truthfulness"])
    report = (tmp_path / "run" / "report.md").read_text()
    assert [word in report for word in ("Truthfulness", "Helpfulness", "Fairness awareness")] == [True, True, False]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [row["name"] for row in record["data"] if row["role"] == "concept"] == ["truthfulness", "helpfulness"]
    again = command(*record["command"].split()[1:], "-o", tmp_path / "run", "--json", "-q")
    assert (again.code, json.loads(again.out)) == (0, results), again.err


def test_a_search_for_concepts_that_the_judge_does_not_know(
    setting: Setting, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As with the shipped judge, which has no head for them: the margins decide, and that is said."""
    monkeypatch.setattr(driver.MadeUpJudge, "axes", ("fairness", "privacy", "over_refusal"), raising=False)
    named = ("--concept", "truthfulness", "--concept", "helpfulness", "--effort", "quick", "--trials", 6)
    words = (*named, "--survivors", 2, "--max-perplexity-increase", 5, *QUICK[:-4], "--new-tokens", 4)
    outcome = command("sweep", setting.model, *words, "--max-questions", 8, "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "does not judge truthfulness, helpfulness" in outcome.err
    search = json.loads((tmp_path / "run" / "search.json").read_text())
    assert "first by the margins" in search["why"] or "exceeds them least" in search["why"]
    assert {axis for row in search["survivors"] for axis in row["rates"]} == {"over_refusal", "answered"}


def test_more_concepts_leave_fewer_weights_and_more_protection_too(setting: Setting, command: Command, tmp_path: Path):
    two = ("--concept", f"fairness={setting.path('fairness')}", "--concept", f"privacy={setting.path('privacy')}")
    three = (*two, "--concept", "truthfulness")
    general = ("--protect", f"general={setting.path('general')}")
    more = (*general, "--protect", f"other={write_rows(tmp_path / 'other.csv', pairs('other', 30))}")
    sizes = {}
    for name, words in {"two": (*two, *general), "three": (*three, *general), "both": (*three, *more)}.items():
        results = results_of(command, tmp_path / name, setting.model, *words)
        sizes[name] = results["edit"]["weights"]
    assert 0 < sizes["both"] < sizes["three"] < sizes["two"]
    assert list(results["axes"])[:3] == ["fairness", "privacy", "truthfulness"]


def test_a_concept_of_the_users_own_with_questions(setting: Setting, command: Command, tmp_path: Path):
    words = []
    for name in ("toxicity", "safety"):
        words += ["--concept", f"{name}={write_rows(tmp_path / f'{name}.csv', pairs(name, 6))}"]
        words += ["--questions", f"{name}={setting.path('questions')}"]
    results = results_of(command, tmp_path / "run", setting.model, *words, "--protect", "general")
    assert list(results["axes"]) == ["toxicity", "safety", "over_refusal", "coherence", "answered", "perplexity", "kl"]


@pytest.mark.parametrize("concept", ["truthfulness", "helpfulness"])
def test_scores_of_one_shipped_concept(setting: Setting, command: Command, tmp_path: Path, concept: str):
    outcome = command("score", setting.model, "--concept", concept, *QUICK[:-4], "-o", tmp_path / "scores", "-q")
    assert outcome.code == 0, outcome.err


def test_a_judge_is_fitted_on_the_shipped_pairs_of_these_concepts(tiny_folder: TinyFolder, tmp_path: Path):
    rows = labelled_rows("starter:truthfulness,helpfulness", most=15)
    rows += [replace(row, concept="a concept of one's own") for row in rows if row.concept == "helpfulness"]
    judge = load_local(str(fit_judge(rows, tmp_path / "judge.safetensors", feature_model=str(tiny_folder("llama")))))
    assert judge.axes == ["truthfulness", "helpfulness", "a concept of one's own"]
    verdicts = judge("truthfulness", ["Why is the Sun green?"] * 2, ["It isn't.", ""])
    assert verdicts[0].verdict in (0, 1)
    assert verdicts[1].verdict is None
