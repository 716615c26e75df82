"""A run folder has one owner and one truth: locks, what may change and what is then made again, what is refused, and
models and data that lie elsewhere than they did."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import Command, Setting, environment, files_of, finished, process, write_rows
from harness import pairs as rows

from spin_llm import pipeline
from spin_llm.errors import SpinError
from spin_llm.ownership import LOCK, OWNER, owned
from spin_llm.scores import Scoring

pytest_plugins = ["harness"]
FIXED = ("--rule", "coupled", "--ratio", "0.05", "--protect-ratio", "0.001", "-q")
HOLD = """
import sys
from spin_llm.ownership import owned
with owned(sys.argv[1]):
    print("READY", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def whole(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to the end; tests copy it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    made = finished(process("run", *setting.run, *FIXED, "-o", folder))
    assert made.code == 0, made.err
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "scores").iterdir()}


# One owner


@pytest.fixture
def held(run: Path):
    """The run folder, while another process works in it."""
    words = [sys.executable, "-c", HOLD, str(run)]
    pipe = subprocess.PIPE
    other = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment())
    assert other.stdout is not None
    assert other.stdout.readline() == "READY\n"
    yield run, other
    other.communicate("")


def test_every_command_that_writes_is_refused_while_another_works(held, setting: Setting, command: Command):
    folder, other = held
    before = files_of(folder)
    commands = (
        ("run", *setting.run, *FIXED, "-o", folder),
        ("run", *setting.run, *FIXED, "-o", folder, "--overwrite"),
        ("sweep", setting.model, "-o", folder, "--overwrite"),
        ("score", *setting.score, "-o", folder, "--overwrite"),
        ("select", folder, "--ratio", "0.1", "--overwrite"),
        ("eval", setting.model, "--patch", folder / "patch.safetensors", "-o", folder, "--overwrite"),
        ("stability", folder, "--resamples", "2", "--overwrite"),
        ("judge", "score", folder / "generations.jsonl", "-o", folder / "again.jsonl"),
        ("report", folder),
        ("baseline", "full", setting.model, "--data", setting.path("privacy"), "-o", folder, "--overwrite"),
        ("paper", "ratio", setting.model, "-o", folder),
    )
    for words in commands:
        outcome = command(*words)
        assert outcome.code == 2, words
        assert f"is in use: -c, process {other.pid} on " in outcome.err, (words, outcome.err)
        assert str(folder / LOCK) in outcome.err
    assert files_of(folder) == before


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_dead_owner_is_no_owner(how: str, held, setting: Setting, command: Command):
    folder, other = held
    getattr(other, how)()
    other.wait()
    assert (folder / LOCK).exists(), "what a killed process leaves"
    assert command("report", folder).code == 0
    assert not (folder / LOCK).exists()
    assert not (folder / OWNER).exists()


def test_a_folder_with_a_dead_lock_alone_is_empty(setting: Setting, command: Command, tmp_path: Path):
    folder = tmp_path / "new"
    folder.mkdir()
    for name in (LOCK, OWNER):
        (folder / name).write_text("{}")
    assert command("score", *setting.score, "-q", "-o", folder).code == 0


def test_nothing_is_left_where_nothing_was_written(tmp_path: Path):
    deep = tmp_path / "a" / "b"
    with owned(deep), owned(deep):  # a stage inside a run
        assert (deep / LOCK).exists()
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(SpinError, match="own"), owned(tmp_path / "mine"):
        raise SpinError("own")
    assert list((tmp_path / "mine").iterdir()) == []
    with owned(deep):
        (deep / "file").write_text("x")
    assert [path.name for path in deep.iterdir()] == ["file"]


# What may change


def test_later_settings_change_and_the_scores_stay(run: Path, setting: Setting, command: Command, tmp_path: Path):
    """With another edit, other questions and another control a run is what it is in a folder of its own."""
    scores = stamps(run)
    asked = ("--new-tokens", "5", "--control", "random")
    other = ("--rule", "coupled", "--ratio", "0.08", "--protect-ratio", "0.001", *asked)
    outcome = command("run", *setting.run, *other, "-o", run)
    assert outcome.code == 0, outcome.err
    assert "the scores stay; made again from the stage edit on: " in outcome.err
    assert "ratio: 0.05 there, 0.08 now" in outcome.err
    assert stamps(run) == scores
    fresh = tmp_path / "fresh"
    assert command("run", *setting.run, *other, "-o", fresh, "-q").code == 0
    one, two = files_of(run), files_of(fresh)
    assert set(one) == set(two)
    for name in one:
        if name not in ("run.json", "report.html", "report.md"):  # these name the time or the folder
            assert one[name] == two[name], name


def test_another_control_asks_the_base_no_more(
    run: Path, setting: Setting, command: Command, monkeypatch: pytest.MonkeyPatch
):
    from spin_llm.evaluate import answers as evaluation

    asked: list[int] = []
    real = evaluation.generate

    def counting(loaded: object, prompts: list[str], **options: Any) -> Any:
        asked.append(len(prompts) - len(options["skip"]))
        return real(loaded, prompts, **options)

    monkeypatch.setattr(evaluation, "generate", counting)
    before = files_of(run)
    outcome = command("run", *setting.run, *FIXED[:-1], "--control", "random", "-o", run)
    assert outcome.code == 0, outcome.err
    assert "made again from the stage extras on: controls: () there, ('random',) now" in outcome.err
    assert asked == [0, 0, 12]
    after = files_of(run)
    assert after["patch.safetensors"] == before["patch.safetensors"]
    assert after["generations.jsonl"].startswith(before["generations.jsonl"])


def test_score_and_sweep_leave_what_they_have_no_say_in(run: Path, setting: Setting, command: Command):
    before = files_of(run)
    outcome = command("score", *setting.score, "-o", run, "-q")
    assert outcome.code == 0, outcome.err
    assert files_of(run) == before


def test_a_rule_that_needs_margins_scores_again(command: Command, setting: Setting, tmp_path: Path, run: Path):
    """Scores of the rule `coupled` have none; data of one kind say so instead."""
    outcome = command("run", *setting.run, "--rule", "signed", "--ratio", "0.05", "-o", run, "-q")
    assert outcome.code == 2
    assert "one kind" in outcome.err
    assert (run / "results.json").is_file()


def test_a_run_that_finished_no_scores_binds_nothing(setting: Setting, command: Command, tmp_path: Path):
    """The mended command of a failed one is taken."""
    folder = tmp_path / "o"
    failed = command("run", *setting.run, *FIXED, "-o", folder, "--memory-budget", "1k")
    assert failed.code == 2
    assert command("run", *setting.run, *FIXED, "--examples", "3", "-o", folder).code == 0


def test_scores_bind(run: Path, setting: Setting, command: Command):
    before = files_of(run)
    for words in (("--seed", "3"), ("--target", "attention"), ("--examples", "3"), ("--granularity", "layer")):
        outcome = command("run", *setting.run, *FIXED, *words, "-o", run)
        assert outcome.code == 2, words
        assert "other settings" in outcome.err
        assert words[0].strip("-") in outcome.err
    assert files_of(run) == before


def test_a_patch_of_select_takes_the_place_of_what_was_measured(run: Path, setting: Setting, command: Command):
    outcome = command("select", run, "--ratio", "0.02", "--protect-ratio", "0.001", "--overwrite")
    assert outcome.code == 0, outcome.err
    assert "what was measured with the one before is deleted" in outcome.err
    assert not (run / "results.json").exists()
    assert not (run / "report.html").exists()
    refused = command("run", *setting.run, *FIXED, "-o", run)
    assert refused.code == 2
    assert "was not made by this run" in refused.err
    (run / "patch.safetensors").unlink()
    assert command("run", *setting.run, *FIXED, "-o", run).code == 0


def test_a_patch_that_select_made_as_the_run_would_is_the_run_s(setting: Setting, command: Command, tmp_path: Path):
    folder = tmp_path / "o"
    assert command("score", *setting.score, "-o", folder, "-q").code == 0
    words = ("--ratio", "0.05", "--protect-ratio", "0.001")
    assert command("select", folder, *words).code == 0
    other = command("run", *setting.run, "--rule", "coupled", *words, "--layers", "0-1", "-q", "-o", folder)
    assert other.code == 2, "the same rule and ratio, but another edit"
    assert "was not made by this run" in other.err
    assert command("run", *setting.run, "--rule", "coupled", *words, "-q", "-o", folder).code == 0


def test_a_judge_s_file_counts_by_its_content(run: Path, setting: Setting, command: Command, tmp_path: Path):
    sheet = tmp_path / "sheet.csv"
    assert command("judge", "sheet", run / "generations.jsonl", "-o", sheet).code == 0
    words = ("run", *setting.run, *FIXED[:-1], "--judge", f"human:{sheet}", "-o", run)
    assert command(*words).code == 0
    assert "is complete" in command(*words).err
    sheet.write_text(sheet.read_text(encoding="utf-8-sig").replace(",,", ",1,"), encoding="utf-8")
    again = command(*words)
    assert "the file of --judge changed" in again.err
    assert again.code == 0, again.err


# Model and data


def elsewhere(setting: Setting, place: Path) -> list[str]:
    """The words of a run whose model and data are below `place`, named from there."""
    shutil.copytree(setting.model, place / "model")
    for path in setting.data.iterdir():
        shutil.copy(path, place)
    words = [str(Path(w).relative_to(setting.data)) if w.startswith(str(setting.data)) else w for w in setting.run]
    return ["model", *[w.replace(f"={setting.data}/", "=") for w in words[1:]]]


def test_a_run_is_found_from_anywhere(
    setting: Setting, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place, other = tmp_path / "here", tmp_path / "there"
    place.mkdir()
    other.mkdir()
    words = elsewhere(setting, place)
    monkeypatch.chdir(place)
    assert command("run", *words, *FIXED, "-o", "run").code == 0
    folder = place / "run"
    before = files_of(folder)
    monkeypatch.chdir(other)
    assert command("select", folder, "--ratio", "0.02", "--protect-ratio", "0.001", "-o", "p.safetensors").code == 0
    assert command("stability", folder, "--resamples", "2").code == 0
    full = [str(place / "model"), *[w.replace("=", f"={place}/") if w.endswith(".csv") else w for w in words[1:]]]
    assert command("run", *full, *FIXED, "-o", folder).code == 0
    after = files_of(folder)
    assert {name for name in after if after[name] != before.get(name)} <= {
        *("stability.json", "results.json", "report.html", "report.md")
    }
    (place / "model").rename(other / "moved")
    lost = command("stability", folder, "--resamples", "2")
    assert lost.code == 2
    assert f"is not at {place / 'model'} any more" in lost.err
    assert "--for" in lost.err
    again = ("stability", folder, "--resamples", "3", "--overwrite", "--for", other / "moved")
    assert command(*again).code == 0
    assert command("run", str(other / "moved"), *full[1:], *FIXED, "-o", folder).code == 0


def test_data_that_moved_are_the_same_and_data_that_changed_are_not(
    run: Path, setting: Setting, command: Command, tmp_path: Path
):
    moved = tmp_path / "privacy-2.csv"
    shutil.copy(setting.path("privacy"), moved)
    words = [w.replace(setting.path("privacy"), str(moved)) for w in setting.run]
    assert command("run", *words, *FIXED, "-o", run).code == 0
    write_rows(moved, rows("private", 6))
    changed = command("run", *words, *FIXED, "-o", run)
    assert changed.code == 2
    assert "The data changed since" in changed.err
    assert "privacy (concept)" in changed.err


def test_a_comparison_goes_on_with_the_same_models_alone(run: Path, setting: Setting, command: Command, tmp_path: Path):
    base, edited = tmp_path / "base", tmp_path / "edited"
    shutil.copytree(setting.model, base)
    assert command("apply", base, run / "patch.safetensors", "-o", edited).code == 0
    asked = [w for w in setting.run[setting.run.index("--protect") :] if w not in ("--keep", "0.1")]
    words = ("eval", edited, "--baseline", base, *asked[: asked.index("--max-perplexity-increase")], "-q", "-o")
    assert command(*words, tmp_path / "c").code == 0
    record = json.loads((tmp_path / "c" / "run.json").read_text())
    assert record["compared"]["baseline_model"]["parts"]["template"] == record["model"]["parts"]["template"]
    (base / "generation_config.json").write_text('{"eos_token_id": 9}')
    refused = command(*words, tmp_path / "c")
    assert refused.code == 2
    assert "generation settings" in refused.err
    assert "of the baseline" in refused.err


# One truth


def test_results_belong_to_the_record_and_the_patch_beside_them(run: Path, whole: Path, command: Command):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "settings": {**record["settings"], "new_tokens": 9}}))
    outcome = command("report", run)
    assert outcome.code == 2
    assert "does not belong to the run.json beside it" in outcome.err
    shutil.copy(whole / "run.json", run)
    assert command("report", run).code == 0
    assert (
        command("select", run, "--ratio", "0.02", "--protect-ratio", "0.001", "-o", run / "other.safetensors").code == 0
    )
    (run / "other.safetensors").rename(run / "patch.safetensors")
    for words in (("report", run), ("stability", run, "--resamples", "2")):
        outcome = command(*words)
        assert outcome.code == 2
        assert "patch.safetensors" in outcome.err


def test_a_record_of_the_first_version_is_read(run: Path, setting: Setting, command: Command):
    """Its fingerprint was a sample; it has no parts, no machine's name, and its results do not say whose they are."""
    from spin_llm.models import Checkpoint

    record = json.loads((run / "run.json").read_text())
    model = {key: value for key, value in record["model"].items() if key != "parts"}
    model["fingerprint"] = Checkpoint(setting.model).sampled_fingerprint
    old = {**record, "model": model, "machine": {"platform": "x", "processor": "y"}}
    (run / "run.json").write_text(json.dumps({key: value for key, value in old.items() if key != "files"}))
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({k: v for k, v in results.items() if k != "made_from"}))
    assert command("report", run).code == 0
    assert command("run", *setting.run, *FIXED, "-o", run).code == 0
    assert command("select", run, "--ratio", "0.02", "-o", run / "p.safetensors").code == 0
    model["fingerprint"] = "0" * 64
    (run / "run.json").write_text(json.dumps({**old, "model": model}))
    refused = command("run", *setting.run, *FIXED, "-o", run)
    assert refused.code == 2
    assert "the weights" in refused.err


@pytest.mark.parametrize(
    "damage",
    [
        "", "[]", "null", "{", '{"settings": 3}', "[" * 20_000,
        '{"command": "c", "settings": {"seed": "x"}, "model": {"name": "m"}, "data": []}',
        '{"command": "c", "settings": {"concepts": [["a"]]}, "model": {"name": "m"}, "data": []}',
        '{"command": "c", "settings": {"concepts": 7}, "model": {"name": "m"}, "data": []}',
        '{"command": "c", "settings": {"ratio": 1e999}, "model": {"name": "m"}, "data": []}',
        '{"command": 1, "settings": {}, "model": {"name": "m"}, "data": []}',
        '{"command": "c", "settings": {}, "model": [], "data": []}',
        '{"command": "c", "settings": {}, "model": {"name": "m"}, "data": [1]}',
    ],
)  # fmt: skip
def test_any_damage_of_the_record_is_one_message(damage: str, run: Path, setting: Setting, command: Command):
    (run / "run.json").write_text(damage)
    for words in (
        ("report", run),
        ("select", run, "--ratio", "0.1", "-o", run / "p"),
        ("stability", run, "--resamples", "2"),
        ("run", *setting.run, *FIXED, "-o", run),
    ):
        outcome = command(*words)
        assert outcome.code == 2, (words, outcome)
        assert outcome.err.startswith("spin-llm: "), outcome.err


def test_the_machine_is_recorded_and_told(run: Path, setting: Setting, command: Command):
    record = json.loads((run / "run.json").read_text())
    machine = record["machine"]
    assert machine["cpu"]
    assert machine["threads"] >= 1
    assert f"Computed on {machine['cpu']}" in (run / "report.html").read_text(encoding="utf-8")
    assert machine["cpu"] in (run / "report.md").read_text(encoding="utf-8")
    (run / "run.json").write_text(json.dumps({**record, "machine": {**machine, "cpu": "Abacus 3"}}))
    for name in ("results.json", "generations.jsonl"):
        (run / name).unlink()
    outcome = command("run", *setting.run, *FIXED[:-1], "-o", run)
    assert outcome.code == 0, outcome.err
    assert "this run began on Abacus 3" in outcome.err


# Before the model is loaded


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--judge", "locla"), "no judge 'locla'"),
        (("--judge", "absent.safetensors"), "no judge"),
        (("--judge", "human:absent.csv"), "absent.csv"),
        (("--judge", "rubric:no-such-model"), "no-such-model"),
        (("--judge", "rubric:m@http://127.0.0.1:9/v1"), "127.0.0.1:9"),
        (("--judge", "wildguard:absent-folder"), "absent-folder"),
        (("--judge-quality", "absent.json", "--judge", "rubric:m@http://127.0.0.1:9/v1"), "absent.json"),
        (("--layers", "100-200"), "names no layer"),
        (("--template", "chat"), "no chat template"),
        (("--capabilities", "boolq", "--capability-tasks", "absent"), "absent"),
    ],
)
def test_what_can_be_known_is_told_before_the_model_is_loaded(
    words: tuple[str, ...],
    what: str,
    setting: Setting,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from spin_llm.pipeline import context

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(context, "load", never)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    outcome = command("run", *setting.run, *FIXED, *words, "-o", tmp_path / "o")
    if "--capabilities" in words and "lm-eval" in outcome.err:
        what = "lm-eval"
    assert outcome.code == 2, outcome
    assert what in outcome.err
    assert not (tmp_path / "o").exists()


def test_what_other_commands_can_know_is_told_before_their_work(
    run: Path, setting: Setting, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder
):
    from spin_llm.evaluate import answers as evaluation
    from spin_llm.evaluate import answers as rejudge
    from spin_llm.paper.arms import Work

    def never(*_: object, **__: object) -> None:
        raise AssertionError("work is done")

    monkeypatch.setattr(evaluation, "generate", never)
    monkeypatch.setattr(rejudge, "load_judge", never)
    monkeypatch.setattr(Work, "model", property(never))
    (tmp_path / "file").write_text("x")
    other = tiny_folder("llama", seed=5)
    asked = [w for w in setting.run[setting.run.index("--protect") :] if w not in ("--keep", "0.1")]
    asked = asked[: asked.index("--max-perplexity-increase")]
    for words, what in (
        (("eval", other, "--patch", run / "patch.safetensors", *asked, "-o", tmp_path / "e"), "weights differ"),
        (("eval", setting.model, "--baseline", tmp_path / "absent", *asked, "-o", tmp_path / "e"), "absent"),
        (("judge", "score", run / "generations.jsonl", "-o", tmp_path / "file" / "v.jsonl"), "cannot be written"),
        (("select", run, "--ratio", "0.02", "-o", tmp_path / "file" / "p.safetensors"), "cannot be written"),
        (("paper", "ratio", setting.model, "--judge", "locla", "-o", tmp_path / "p"), "no judge 'locla'"),
    ):
        outcome = command(*words)
        assert outcome.code == 2, (words, outcome)
        assert what in outcome.err, (words, outcome.err)


def test_rows_that_are_left_out_are_left_out_again(setting: Setting, command: Command, tmp_path: Path):
    """What is compared is what was read; what was used is beside it."""
    long = write_rows(tmp_path / "long.csv", [*rows("privacy", 6), {"prompt": "word " * 3000, "response": "no " * 900}])
    words = [word.replace(setting.path("privacy"), str(long)) for word in setting.run]
    words[words.index("--examples") + 1] = "6"
    words = ["run", *words, *FIXED[:-1], "--skip-long", "--seed", "2", "-o", str(tmp_path / "o")]
    first = command(*words)
    assert first.code == 0, first.err
    again = command(*words)
    assert again.code == 0, again.err
    assert "is complete" in again.err
    record = json.loads((tmp_path / "o" / "run.json").read_text())
    used = {row["name"]: row for row in record["data"] if row["role"] == "concept"}
    assert used["privacy"]["left_out"]
    assert used["privacy"]["read_sha256"] != used["privacy"]["sha256"]


def test_a_full_disk_is_told_before_the_model_is_loaded(
    setting: Setting, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from spin_llm.pipeline import folder

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    outcome = command("run", *setting.run, *FIXED, "-o", tmp_path / "o")
    assert outcome.code == 2
    assert "score files need" in outcome.err
    assert not (tmp_path / "o").exists()


# Python


def test_python_has_the_command_s_defaults_and_takes_what_people_have(
    setting: Setting, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    import spin_llm
    from spin_llm.cli import main as cli

    seen: list[object] = []

    def note(settings: object, *_: object, **__: object) -> None:
        seen.append(settings)
        raise SpinError("seen")

    monkeypatch.setattr("spin_llm.pipeline.run", note)
    for words in ((), ("--effort", "quick"), ("--concept", "privacy=a.csv")):
        command("run", "model", *words)
    options: tuple[dict[str, object], ...] = ({}, {"effort": "quick"}, {"concepts": ["privacy=a.csv"]})
    assert seen == [spin_llm.RunSettings("model", **one) for one in options]
    assert spin_llm.__version__
    assert cli  # imported as the command does
    monkeypatch.undo()
    folder = str(tmp_path / "python")
    sources = {name: Path(setting.path(name)) for name in ("fairness", "privacy")}
    made = pipeline.score(
        spin_llm.RunSettings(
            setting.model, concepts=sources, protect={"general": setting.path("general")}, examples=4, keep=0.1,
            dtype="float32", template="raw", ratio="auto", rule="coupled", layers=[0, 1], controls="random",
        ),
        folder,
    )  # fmt: skip
    assert [path.name for path in made] == ["fairness.safetensors", "privacy.safetensors", "general.safetensors"]
    loaded = spin_llm.load(str(setting.model), dtype="float32")
    pairs = spin_llm.load_pairs(setting.path("privacy")).pairs
    texts = [(pair.prompt, pair.response) for pair in pairs]
    one, two = (spin_llm.score_concept(loaded, given, how=Scoring(keep=0.1)) for given in (pairs, texts))
    assert {name: m.indices.tolist() for name, m in one.matrices.items()} == {
        name: m.indices.tolist() for name, m in two.matrices.items()
    }
