"""A run folder that version 0.1.0 wrote (tests/data/version-0.1.0, a tiny llama) is reported, resumed, compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from harness import Command
from test_goldens import answered_in_full

pytest_plugins = ["harness"]
OLD = Path(__file__).resolve().parents[1] / "data" / "version-0.1.0"
WORDS = (
    *("run", "model", "--concept", "fairness=fairness.csv", "--concept", "privacy=privacy.csv"),
    *("--protect", "general=general.csv", "--questions", "questions.csv", "--examples", "12", "--template", "raw"),
    *("--dtype", "float32", "--keep", "0.05", "--new-tokens", "4", "--max-perplexity-increase", "0.2", "--trials", "6"),
    *("--survivors", "2", "--control", "random", "--resamples", "4", "-o", "run"),
)


@pytest.fixture
def place(tiny_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder with its data and its model, as the current directory: its paths are relative."""
    shutil.copytree(OLD, tmp_path / "old")
    shutil.copytree(tiny_folder("llama"), tmp_path / "old" / "model")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def test_its_report_is_written(place: Path, command: Command):
    outcome = command("report", "run")
    assert outcome.code == 0, outcome.err
    page = (place / "run" / "report.html").read_text()
    assert "How the edit was found" in page
    assert f"{results(place / 'run')['edit']['weights']}" in page


def test_its_scores_and_answers_are_gone_on_with(place: Path, command: Command):
    """What a kill would have left away is made again, from the scores and answers that are there."""
    before = results(place / "run")
    scores = {file.name: file.read_bytes() for file in (place / "run" / "scores").iterdir()}
    for name in ("results.json", "verdicts.jsonl", "generations.jsonl", "stability.json"):
        (place / "run" / name).unlink()
    outcome = command(*WORDS)
    assert outcome.code == 0, outcome.err
    assert {file.name: file.read_bytes() for file in (place / "run" / "scores").iterdir()} == scores
    after = results(place / "run")
    assert after["edit"]["weights"] == before["edit"]["weights"]
    for axis in answered_in_full(place / "run"):
        row = before["axes"][axis]
        for key in ("n", "base", "edited"):
            assert after["axes"][axis][key] == pytest.approx(row[key], rel=1e-3), (axis, key)


def test_it_is_complete_for_the_same_command(place: Path, command: Command):
    before = (place / "run" / "patch.safetensors").read_bytes()
    outcome = command(*WORDS)
    assert outcome.code == 0, outcome.err
    assert "is complete" in outcome.err
    assert (place / "run" / "patch.safetensors").read_bytes() == before


def test_its_patch_is_applied_and_reverted(place: Path, command: Command):
    assert command("apply", "model", "run/patch.safetensors", "-o", "edited").code == 0
    assert command("revert", "edited", "run/patch.safetensors", "-o", "back").code == 0
    assert (place / "back" / "model.safetensors").read_bytes() == (place / "model" / "model.safetensors").read_bytes()
    assert (place / "edited" / "model.safetensors").read_bytes() != (place / "model" / "model.safetensors").read_bytes()


def test_it_is_compared_with_another(place: Path, command: Command):
    assert command(*WORDS[:-1], "again", "--seed", "1").code == 0
    outcome = command("report", "run", "again", "-o", "compared.html")
    assert outcome.code == 0, outcome.err
    assert "again" in (place / "compared.html").read_text()
