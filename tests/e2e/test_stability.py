"""`run --control all --resamples N` and `stability RUN` on a tiny model: what they write, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from harness import Command, Outcome, Setting, files_of, finished, process, write_rows

pytest_plugins = ["harness"]
CONTROLS = ["random", "same-magnitude", "fairness-alone", "privacy-alone", "unprotected", "released"]


@pytest.fixture(scope="module")
def complete(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("runs") / "complete"
    words = ("--control", "all", "--resamples", "9", "--ratio", "0.02", "--max-questions", "2")
    outcome = finished(process("run", *setting.run, *words, "-o", folder), timeout=600)
    assert outcome.code == 0, outcome.err
    return folder, outcome


def test_one_flag_runs_every_control(complete: tuple[Path, Outcome]):
    folder, outcome = complete
    results = json.loads((folder / "results.json").read_text())
    weights = results["edit"]["weights"]
    left_out = results.get("controls_left_out", {})
    assert sorted([*results["controls"], *left_out]) == sorted(CONTROLS)
    assert {"random", "same-magnitude", "unprotected"} <= set(results["controls"])
    for name in ("random", "same-magnitude", "fairness-alone", "privacy-alone"):
        assert results["controls"].get(name, {"weights": weights})["weights"] == weights
    assert results["controls"]["same-magnitude"]["shared"] == 0
    assert results["controls"]["unprotected"]["shared"] == weights < results["controls"]["unprotected"]["weights"]
    assert all(set(control["axes"]) == set(results["axes"]) for control in results["controls"].values())
    for name in results["controls"]:
        assert f"control {name}: " in outcome.err
        assert f"answers, {name}" in outcome.err
    assert f"controls: {len(results['controls'])} more models" in outcome.err


def test_the_signed_rule_stands_beside_the_edit(setting: Setting, tmp_path: Path):
    """It takes the margin along while scoring, and its weights are some of the edit's."""
    own = {f"{name}={setting.path(name)}": f"{name}=starter" for name in ("fairness", "privacy")}
    words = [*(own.get(word, word) for word in setting.run), "--examples", "6"]
    options = ("--control", "coupled-signed", "--ratio", "0.02", "--max-questions", "2", "-o", tmp_path / "o")
    outcome = finished(process("run", *words, *options), timeout=600)
    assert outcome.code == 0, outcome.err
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    signed = results["controls"]["coupled-signed"]
    assert 0 < signed["weights"] == signed["shared"] < results["edit"]["weights"]


def test_the_overlap_counts_what_the_edit_was_made_of(complete: tuple[Path, Outcome]):
    results = json.loads((complete[0] / "results.json").read_text())
    regions = results["overlap"]["regions"]
    assert regions["fairness&privacy"] == results["edit"]["weights"]
    assert regions["fairness&privacy"] + regions["fairness&privacy&general"] == results["edit"]["shared"]
    fairness = sum(size for region, size in regions.items() if "fairness" in region.split("&"))
    assert fairness == results["edit"]["candidates"]


def test_the_run_s_stability_is_what_the_command_measures(complete: tuple[Path, Outcome], command: Command, tmp_path):
    folder, _ = complete
    before = json.loads((folder / "stability.json").read_text())
    part = json.loads((folder / "results.json").read_text())["stability"]
    assert part == {name: before[name] for name in part}
    assert {"resamples", "weights", "jaccard", "size", "in_half", "in_most"} <= set(part)
    assert (before["resamples"], before["seed"], before["reproduced"]) == (9, 0, 1.0)
    assert not (folder / "progress").exists()
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    (again / "stability.json").unlink()
    outcome = command("stability", again, "--resamples", "9")
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith(f"{again / 'stability.json'}\n")
    assert "over 9 resamples" in outcome.out
    assert not (again / "progress").exists()
    one, other = files_of(folder), files_of(again)
    assert set(one) == set(other)
    assert one["stability.json"] == other["stability.json"]
    assert json.loads(one["results.json"]) == json.loads(other["results.json"])

    refused = command("stability", again, "--resamples", "5", "-q")
    assert refused.code == 2
    assert "has 9 resamples, seed 0" in refused.err
    changed = command("stability", again, "--resamples", "5", "--seed", "1", "--overwrite", "--json", "-q")
    assert changed.code == 0, changed.err
    assert json.loads(changed.out) == json.loads((again / "stability.json").read_text())
    results = json.loads((again / "results.json").read_text())
    assert results["stability"]["resamples"] == 5
    assert results["axes"] == json.loads(one["results.json"])["axes"]


def test_stability_needs_a_run_its_data_and_its_model(setting: Setting, command: Command, tmp_path: Path):
    assert "is not a run with a patch" in command("stability", tmp_path, "-q").err
    data = tmp_path / "data"
    shutil.copytree(setting.data, data)
    moved = Setting(setting.model, data)
    folder = tmp_path / "run"
    assert command("run", *moved.run, "--ratio", "0.02", "-o", folder, "-q").code == 0
    write_rows(data / "privacy.csv", [{"prompt": f"New {i}?", "response": f"Yes, {i}."} for i in range(6)])
    before = files_of(folder)
    outcome = command("stability", folder, "-q")
    assert outcome.code == 2
    assert "changed since the run" in outcome.err
    assert files_of(folder) == before
