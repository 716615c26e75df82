"""`spin-llm baseline`, and `eval` of what it leaves, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import Command, Setting

pytest_plugins = ("harness",)
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.mark.parametrize("method", ["lora", "reft"])
def test_baseline_then_eval(method: str, command: Command, setting: Setting, tmp_path: Path):
    out, run = tmp_path / "tuned", tmp_path / "run"
    words = ["--data", f"privacy={setting.path('privacy')}", "--data", f"fairness={setting.path('fairness')}"]
    words += ["--mix", "privacy=0.75", "--mix", "fairness=0.25", "--examples", "8", "--batch-size", "4"]
    words += ["--template", "raw", "--dtype", "float32", "--learning-rate", "0.03", "--rank", "4", "-o", out]
    outcome = command("baseline", method, setting.model, *words)
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == str(out)
    record = json.loads((out / "baseline.json").read_text())
    assert [row["examples"] for row in record["data"]] == [6, 2]
    assert len(record["losses"]) == 6
    asked = (f"{name}={setting.path('questions')}" for name in ("fairness", "privacy", "over_refusal"))
    questions = [word for source in asked for word in ("--questions", source)]
    compared = command(
        *("eval", out, "--baseline", setting.model, "--max-questions", "4", "--new-tokens", "4", "--template", "raw"),
        *("--dtype", "float32", "--examples", "4", "--protect", f"general={setting.path('general')}", *questions),
        *("-o", run),
    )
    assert compared.code == 0, compared.err
    results = json.loads((run / "results.json").read_text())
    assert results["axes"]["perplexity"]["edited"] != results["axes"]["perplexity"]["base"]
    again = command("baseline", method, setting.model, *words)
    assert again.code == 0
    assert "is complete" in again.err
    assert command("baseline", "prefix", setting.model, "-o", tmp_path / "x").code == 2
    if method == "reft":
        scored = command("score", out, *setting.score[1:], "-o", tmp_path / "scores")
        assert scored.code == 2
        assert "is an adapter" in scored.err
