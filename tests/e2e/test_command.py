"""What each command does on a tiny model: its files, their bytes, its output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import Command, Outcome, Setting, files_of, finished, process

pytest_plugins = ["harness"]
AXES = ["fairness", "privacy", "over_refusal", "coherence", "answered", "perplexity", "kl"]


def succeeds(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err
    return outcome


@pytest.fixture(scope="module")
def complete(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A run with a control, in a process of its own, uninterrupted."""
    folder = tmp_path_factory.mktemp("runs") / "complete"
    outcome = finished(process("run", *setting.run, "-o", folder, "--control", "random", "--control", "released"))
    return folder, succeeds(outcome)


def test_a_run_writes_its_folder_and_prints_table_and_paths(complete: tuple[Path, Outcome]):
    folder, outcome = complete
    assert {path.name for path in folder.iterdir()} == {
        *("run.json", "scores", "patch.safetensors", "generations.jsonl", "verdicts.jsonl", "results.json"),
        *("report.html", "report.md", "figures"),
    }
    assert not list(folder.rglob("*.part"))
    for name in ("patch.safetensors", "report.html", "report.md"):
        assert f"{folder / name}\n" in outcome.out
    for word in ("axis", "base", "edited", "difference", "95% interval", "p"):
        assert word in outcome.out
    for words in ("scoring fairness", "answers, base", "choosing the ratio", "perplexity, edited"):
        assert words in outcome.err
    results = json.loads((folder / "results.json").read_text())
    assert list(results["axes"]) == AXES
    assert list(results["controls"]) == ["random", "released"]
    assert results["edit"]["weights"] == results["controls"]["random"]["weights"] > 0
    assert results["edit"]["weights"] == sum(results["edit"]["per_matrix"].values())
    assert sum(row["chosen"] for row in results["ratio_table"]) == 1
    assert set(results["edit"]["per_matrix"]) <= set(results["edit"]["shapes"]) == set(results["edit"]["layers"])
    record = json.loads((folder / "run.json").read_text())
    assert {"command", "settings", "versions", "model", "data", "started"} <= set(record)
    assert all(len(row["sha256"]) == 64 and row["examples"] > 0 for row in record["data"])


def test_a_complete_run_is_not_run_again(complete: tuple[Path, Outcome], setting: Setting, command: Command):
    folder, _ = complete
    before = files_of(folder)
    controls = ("--control", "random", "--control", "released")
    outcome = succeeds(command("run", *setting.run, "-o", folder, *controls, "--json", "--quiet"))
    assert json.loads(outcome.out) == json.loads(before["results.json"])
    assert outcome.err == ""
    assert files_of(folder) == before


def test_the_same_run_elsewhere_gives_the_same_bytes(
    complete: tuple[Path, Outcome], setting: Setting, command: Command, tmp_path: Path
):
    folder, _ = complete
    succeeds(command("run", *setting.run, "-o", tmp_path / "again", "--control", "random", "--control", "released"))
    one, other = files_of(folder), files_of(tmp_path / "again")
    assert set(one) == set(other)
    for name in one:
        if name not in ("run.json", "report.html", "report.md"):  # these name the time or the folder
            assert one[name] == other[name], name


def test_other_settings_need_another_folder_or_overwrite(setting: Setting, command: Command, tmp_path: Path):
    folder = tmp_path / "run"
    succeeds(command("run", *setting.run, "-o", folder, "-q"))
    (folder / "mine.txt").write_text("keep me")
    before = files_of(folder)
    outcome = command("run", *setting.run, "-o", folder, "-q", "--seed", "1")
    assert outcome.code == 2
    assert "other settings (seed: 0 there, 1 now)" in outcome.err
    assert "--overwrite" in outcome.err
    wrong_model = command("run", tmp_path / "absent", *setting.run[1:], "-o", folder, "-q", "--overwrite")
    assert wrong_model.code == 2
    assert files_of(folder) == before, "a mistake deletes nothing, also with --overwrite"
    succeeds(command("run", *setting.run, "-o", folder, "-q", "--seed", "1", "--overwrite"))
    after = files_of(folder)
    assert after["mine.txt"] == b"keep me"
    assert after["patch.safetensors"] != before["patch.safetensors"]
    assert json.loads(after["run.json"])["settings"]["seed"] == 1


def test_a_mistake_in_the_model_s_name_leaves_nothing_behind(setting: Setting, command: Command, tmp_path: Path):
    folder = tmp_path / "run"
    assert command("run", "smolm2-135m", *setting.run[1:], "-o", folder, "-q").code == 2
    assert not folder.exists()
    succeeds(command("score", *setting.score, "-o", folder, "-q"))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_score_select_apply_verify_revert(name: str, setting: Setting, tiny_folder, command: Command, tmp_path: Path):
    """The chain by files alone: apart from the touched bytes everything stays, and the way back is exact."""
    model = tiny_folder(name)
    base = files_of(model)
    run, patch, edited, back = (tmp_path / part for part in ("run", "mine/p.safetensors", "edited", "back"))
    scored = succeeds(command("score", model, *setting.score[1:], "-o", run, "--json", "-q"))
    assert [Path(path).name for path in json.loads(scored.out)["scores"]] == [
        f"{part}.safetensors" for part in ("fairness", "privacy", "general")
    ]
    assert scored.err == ""
    words = ("--ratio", "0.1", "--protect-ratio", "0.01")
    selected = json.loads(succeeds(command("select", run, *words, "-o", patch, "--json")).out)
    assert selected["patch"] == str(patch)
    assert selected["weights"] > 0
    first = patch.read_bytes()
    assert command("select", run, *words, "-o", patch).code == 2, "a patch is not overwritten"
    succeeds(command("select", run, *words, "-o", patch, "--overwrite"))
    assert patch.read_bytes() == first

    assert json.loads(succeeds(command("verify", model, patch, "--json")).out) == {"state": "base"}
    applied = json.loads(succeeds(command("apply", model, patch, "-o", edited, "--json")).out)
    assert applied == {"model": str(edited), "weights": selected["weights"]}
    assert succeeds(command("verify", edited, patch)).out == "edited\n"
    assert files_of(model) == base, "the base is only read"
    changed = files_of(edited)
    assert [file for file in base if changed[file] != base[file]] == ["model.safetensors"]
    assert set(changed) == set(base)
    old, new = base["model.safetensors"], changed["model.safetensors"]
    assert len(old) == len(new)
    differing = {at // 4 for at, (a, b) in enumerate(zip(old, new, strict=True)) if a != b}
    assert 0 < len(differing) <= selected["weights"] + 1, "four bytes a weight, at the header's offset"

    assert command("apply", model, patch, "-o", edited).code == 2, "an output is not overwritten"
    succeeds(command("apply", edited, patch, "-o", edited.with_name("twice")))
    assert files_of(edited.with_name("twice")) == changed, "applying twice is applying once"
    succeeds(command("revert", edited, patch, "-o", back))
    assert files_of(back) == base
    assert succeeds(command("verify", back, patch)).out == "base\n"


def test_eval_with_a_patch_and_against_a_baseline(
    complete: tuple[Path, Outcome], setting: Setting, command: Command, tmp_path: Path
):
    folder, _ = complete
    patch, edited, out = folder / "patch.safetensors", tmp_path / "edited", tmp_path / "eval"
    words = [word for word in setting.run[setting.run.index("--protect") :] if word not in ("--keep", "0.1")]
    words = words[: words.index("--max-perplexity-increase")]
    with_patch = succeeds(command("eval", setting.model, *words, "--patch", patch, "-o", out, "--json", "-q"))
    expected = json.loads((folder / "results.json").read_text())["axes"]
    assert json.loads(with_patch.out)["axes"] == expected
    assert with_patch.err == ""
    succeeds(command("apply", setting.model, patch, "-o", edited))
    against = succeeds(
        command("eval", edited, *words, "--baseline", setting.model, "-o", tmp_path / "two", "--json", "-q")
    )
    assert json.loads(against.out)["axes"] == expected
    succeeds(command("report", folder, out, tmp_path / "two", "-o", tmp_path / "compare.html"))
    assert "bases" not in (tmp_path / "compare.md").read_text(), "one base, under a patch and beside an edited copy"
    other = command("eval", setting.model, *words, "--baseline", edited, "-o", out, "-q")
    assert other.code == 2, "answers of another patch or baseline are not taken up"
    assert "other settings" in other.err
    neither = command("eval", setting.model, *words, "-o", tmp_path / "none", "-q")
    assert neither.code == 2
    assert "--baseline MODEL or --patch PATCH" in neither.err


def test_a_patch_from_select_is_not_taken_for_the_run_s_own(setting: Setting, command: Command, tmp_path: Path):
    run = tmp_path / "run"
    succeeds(command("score", *setting.score, "-o", run, "-q"))
    succeeds(command("select", run, "--ratio", "0.1", "--protect-ratio", "0.01"))
    outcome = command("run", *setting.score, "-o", run, "-q")
    assert outcome.code == 2
    assert "was not made by this run" in outcome.err


def test_report_writes_the_report_again(complete: tuple[Path, Outcome], command: Command):
    folder, _ = complete
    before = files_of(folder)
    (folder / "report.html").unlink()
    assert succeeds(command("report", folder)).out == f"{folder / 'report.html'}\n"
    assert files_of(folder) == before


def test_quiet_prints_paths_alone(setting: Setting, command: Command, tmp_path: Path):
    outcome = succeeds(command("run", *setting.run, "-o", tmp_path / "run", "--quiet"))
    assert outcome.err == ""
    assert [Path(line).name for line in outcome.out.splitlines()] == [
        *("patch.safetensors", "report.html", "report.md", "results.json"),
    ]


def test_json_is_all_that_is_on_stdout(setting: Setting, command: Command, tmp_path: Path):
    outcome = succeeds(command("run", *setting.run, "-o", tmp_path / "run", "--json"))
    assert list(json.loads(outcome.out)["axes"]) == AXES
    assert "scoring fairness" in outcome.err


@pytest.mark.real_model
def test_a_run_with_the_shipped_judge(setting: Setting, tmp_path: Path):
    """The whole command as users have it: the judge reads the answers with the embedded model, in the cache."""
    outcome = succeeds(finished(process("run", *setting.run, "-o", tmp_path / "run", made_up_judge=False), timeout=600))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["judge"]["quality"] == {}, "it was measured on no model of this family"
    assert "AUC" not in outcome.out
    for axis in ("fairness", "privacy", "over_refusal"):
        result = results["axes"][axis]
        assert result["n"] + max(result["unparsed"]) == 4
        assert not result["measurable"]
        assert result["note"] == "not measured on answers like these"
    said = " ".join(outcome.out.split())
    assert "No reading on fairness awareness and privacy awareness: not measured on answers like these" in said
    verdicts = [json.loads(line) for line in (tmp_path / "run" / "verdicts.jsonl").read_text().splitlines()]
    assert all(0 <= row["probability"] <= 1 for row in verdicts if row["parsed"])
