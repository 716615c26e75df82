"""results.json of whole runs: the shipped schema, the axes that answers are measured on, lm-eval tasks on request."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import Command, Setting, check_results

from spin_llm.files import read_typed_lines

pytest_plugins = ["harness"]


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    """A folder with the lm-eval task `odd` on local data."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps({"question": f"Is {i} odd?", "answer": i % 2}) + "\n" for i in range(8)))
    task = {
        **{"task": "odd", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}},
        **{"test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}"},
        **{"doc_to_target": "answer", "doc_to_choice": ["no", "yes"]},
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "odd.yaml").write_text(yaml.safe_dump(task))
    return folder


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_a_run_s_results_are_as_the_schema_says(command: Command, setting: Setting, tmp_path: Path):
    folder = tmp_path / "run"
    outcome = command("run", *setting.run, "-o", folder, "--control", "random", "--resamples", "2")
    assert outcome.code == 0, outcome.err
    results = results_of(folder)
    check_results(folder)
    judged = ["fairness", "privacy", "over_refusal", "coherence"]
    assert list(results["axes"]) == [*judged, "answered", "perplexity", "kl"]
    assert "coherence" in results["controls"]["random"]["axes"]
    assert results["axes"]["coherence"]["n"] == 8, "four questions on either concept"
    assert set(results["style"]) == set(results["phrases"]) == {"fairness", "privacy", "over_refusal"}
    assert "capabilities" not in results
    verdicts, answers = (read_typed_lines(folder / f"{name}.jsonl", dict) for name in ("verdicts", "generations"))
    coherence = [row for row in verdicts if row["axis"] == "coherence"]
    assert len(verdicts) - len(coherence) == len(answers)
    assert {(row["id"], row["model"]) for row in coherence} == {
        (row["id"], row["model"]) for row in answers if row["axis"] != "over_refusal"
    }
    assert results["style"]["privacy"]["length"]["base"] == pytest.approx(
        sum(row["tokens"] for row in answers if row["axis"] == "privacy" and row["model"] == "base") / 4
    )


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_two_models_with_a_local_task(
    command: Command, setting: Setting, tiny_folder, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # lists the machine, for seconds
    other, folder = tiny_folder("llama", seed=3), tmp_path / "eval"
    after_model = setting.run[setting.run.index("--protect") :]
    words = [word for word in after_model if word not in ("--keep", "0.1", "--max-perplexity-increase", "9")]
    asked = ["--capabilities", "odd", "--capability-tasks", task_folder, "--capabilities-limit", "6"]
    outcome = command("eval", other, "--baseline", setting.model, *words, *asked, "-o", folder, "--quiet")
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    results = results_of(folder)
    check_results(folder)
    assert results["capabilities"]["odd"]["n"] == 6
    assert results["capabilities"]["odd"]["metric"] == "acc"
    assert len(read_typed_lines(folder / "capabilities.jsonl", dict)) == 12
    assert "coherence" in results["axes"]
    asked[1] = "od"
    unknown = command("eval", other, "--baseline", setting.model, *words, *asked, "-o", tmp_path / "no")
    assert unknown.code == 2
    assert "no task 'od'" in unknown.err
    assert not (tmp_path / "no").exists()
