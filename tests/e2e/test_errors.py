"""Bad input: one message that says what, why and how, exit code 2, nothing on stdout, nothing written."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

import pytest
import tiny
from harness import Command, Outcome, Setting, files_of, finished, pairs, process, write_rows
from safetensors import SafetensorError

from spin_llm import outputs

pytest_plugins = ["harness"]
FULL = Path("/dev/full")


def fails(outcome: Outcome, *words: str) -> Outcome:
    assert outcome.code == 2, (outcome.code, outcome.err)
    assert outcome.out == ""
    assert outcome.err.startswith("spin-llm: ")
    assert outcome.err.count("spin-llm: ") == 1, "one message"
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err
    return outcome


def replaced(words: list[str], old: str, new: object) -> list[str]:
    return [word.replace(old, str(new)) for word in words]


def test_an_unknown_model(setting: Setting, command: Command, tmp_path: Path):
    fails(command("run", "smolm2-135m", *setting.run[1:], "-q", "-o", tmp_path / "o"), "smollm2-135m")
    outcome = finished(
        process("score", "nobody/nothing", *setting.score[1:], "-q", "-o", tmp_path / "o", made_up_judge=False)
    )
    fails(outcome, "'nobody/nothing' could not be fetched", "offline")
    assert not (tmp_path / "o").exists()


def test_a_folder_that_is_no_model(setting: Setting, command: Command, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("x")
    fails(
        command("run", tmp_path / "folder", *setting.run[1:], "-q", "-o", tmp_path / "o"), "is not a model", "notes.txt"
    )
    shutil.copytree(setting.model, tmp_path / "half", ignore=shutil.ignore_patterns("*.safetensors"))
    fails(command("run", tmp_path / "half", *setting.run[1:], "-q", "-o", tmp_path / "o"), "no safetensors weights")
    shutil.copytree(setting.model, tmp_path / "cut")
    whole = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    fails(command("run", tmp_path / "cut", *setting.run[1:], "-q", "-o", tmp_path / "o"), "cut")
    assert not (tmp_path / "o").exists()


BAD_DATA = {
    "columns": (b"ask,reply\nWhy?,So.\n", ["no column", "ask, reply", "--response-column"]),
    "empty": (b"", ["holds no rows"]),
    "header": (b"prompt,response\n", ["holds no rows"]),
    "no-response": (b"prompt,response\nWhy?,So.\nWho?,\n", ["row 2 (line 3) has no response", "1 of 2 rows"]),
    "too-few": (b"prompt,response\nWhy?,So.\nWho?,I.\n", ["4 examples were asked for", "has 2 rows", "--examples 2"]),
    "latin-1": ("prompt,response\nOù ?,Là.\n".encode("latin-1"), ["is not UTF-8", "0xf9 at offset 17"]),
    "ragged": (b"prompt,response\nWhy?,So, or not.\n", ["row 1 (line 2)", "3 fields"]),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data(kind: str, setting: Setting, command: Command, tmp_path: Path):
    content, words = BAD_DATA[kind]
    bad = tmp_path / "bad.csv"
    bad.write_bytes(content)
    fails(
        command("run", *replaced(setting.run, setting.path("privacy"), bad), "-q", "-o", tmp_path / "o"),
        *words,
        "To change it:",
    )
    assert not (tmp_path / "o").exists(), "nothing is written before the data are known to be good"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--ratio", "1.5", "--ratio 1.5 is out of range"),
        ("--ratio", "0", "--ratio 0.0 is out of range"),
        ("--ratio", "0.5", "at most --keep, 0.1"),
        ("--ratio", "much", "'much' is not a number"),
        ("--protect-ratio", "-1", "--protect-ratio -1.0 is out of range"),
        ("--examples", "0", "--examples 0 is out of range"),
        ("--rule", "odd", "--rule odd is not a choice"),
        ("--rule", "couple", "Did you mean coupled?"),
        ("--control", "placebo", "--control placebo"),
        ("--questions", "toxicity=x.csv", "toxicity"),
        ("--concept", "privacy=", "NAME=SOURCE"),
        ("--template", "chat", "no chat template"),
        ("--data-dir", "nowhere", "is not a folder"),
    ],
)
def test_a_value_out_of_range(option: str, value: str, words: str, setting: Setting, command: Command, tmp_path: Path):
    fails(command("run", *setting.run, option, value, "-q", "-o", tmp_path / "o"), words)
    assert not (tmp_path / "o").exists()


def test_an_edit_without_weights(setting: Setting, command: Command, tmp_path: Path):
    """floor(ratio x size) is 0 in every matrix: an error that names the smallest ratio that selects a weight."""
    outcome = fails(command("run", *setting.run, "--ratio", "1e-6", "-q", "-o", tmp_path / "o"), "selects no weight")
    assert "is 0 in every matrix" in outcome.err
    smallest = outcome.err.split("selects anything here is ")[1].strip().rstrip(".")
    below = f"{float(smallest) * 0.99:.6g}"
    assert command("select", tmp_path / "o", "--ratio", smallest, "--json").code == 0
    fails(
        command("select", tmp_path / "o", "--ratio", below, "-o", tmp_path / "below"),
        f"selects anything here is {smallest}",
    )
    unchanged = command("select", tmp_path / "o", "--ratio", smallest, "--scale", "1", "-o", tmp_path / "same")
    fails(unchanged, "changes no weight at all")
    assert not (tmp_path / "same").exists()


def test_no_ratio_is_cheap_enough(setting: Setting, command: Command, tmp_path: Path):
    """A model is made whose every edit costs: the table of the ratios is in the message."""
    same = replaced(setting.run, f"general={setting.path('general')}", f"general={setting.path('fairness')}")
    same = replaced(same, f"privacy={setting.path('privacy')}", f"privacy={setting.path('fairness')}")
    outcome = command("run", *same, "--examples", "6", "-q", "-o", tmp_path / "o")
    fails(outcome, "No ratio on the grid", "candidates", "1e-02", "--max-perplexity-increase")


@pytest.fixture
def patch(setting: Setting, command: Command, tmp_path: Path) -> Path:
    assert command("score", *setting.score, "-q", "-o", tmp_path / "scores").code == 0
    words = ("--ratio", "0.1", "--protect-ratio", "0.01", "-o", tmp_path / "p.safetensors")
    assert command("select", tmp_path / "scores", *words).code == 0
    return tmp_path / "p.safetensors"


def test_a_patch_for_another_model(setting: Setting, tiny_folder, command: Command, patch: Path, tmp_path: Path):
    other_weights, other_kind = tiny_folder("llama", seed=5), tiny_folder("gpt2")
    for model in (other_weights, other_kind):
        fails(command("apply", model, patch, "-o", tmp_path / "o"), "does not fit this model")
        fails(command("verify", model, patch), "does not fit this model")
        fails(command("revert", model, patch, "-o", tmp_path / "o"), "does not fit this model")
    words = setting.run[setting.run.index("--protect") : setting.run.index("--keep")]
    fails(
        command("eval", other_weights, *words, "--patch", patch, "-q", "-o", tmp_path / "e"), "does not fit this model"
    )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_patch(share: float, setting: Setting, command: Command, patch: Path, tmp_path: Path):
    content = patch.read_bytes()
    patch.write_bytes(content[: int(len(content) * share)])
    fails(command("apply", setting.model, patch, "-o", tmp_path / "o"), "is not a readable patch", "select")
    fails(command("verify", setting.model, tmp_path / "none.safetensors"), "no patch file")


def test_an_output_that_exists(setting: Setting, command: Command, patch: Path, tmp_path: Path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "me.jpg").write_bytes(b"me")
    for words in (["run", *setting.run, "-q"], ["score", *setting.score, "-q"]):
        fails(command(*words, "-o", folder), "exists and is not a run", "--output")
        fails(command(*words, "-o", folder, "--overwrite"), "exists and is not a run")
        fails(command(*words, "-o", folder / "me.jpg"), "is a file")
    fails(command("apply", setting.model, patch, "-o", folder, "--overwrite"), "exists")
    fails(command("apply", setting.model, patch, "-o", setting.model, "--overwrite"), "own folder")
    assert files_of(folder) == {"me.jpg": b"me"}
    empty = tmp_path / "empty"
    empty.mkdir()
    assert command("score", *setting.score, "-q", "-o", empty).code == 0


def test_data_that_changed_since_the_run_began(setting: Setting, command: Command, tmp_path: Path):
    changing = write_rows(tmp_path / "changing.csv", pairs("privacy", 4))
    words = replaced(setting.score, setting.path("privacy"), changing)
    assert command("score", *words, "-q", "-o", tmp_path / "o").code == 0
    write_rows(changing, pairs("private", 4))
    fails(command("run", *words, "-q", "-o", tmp_path / "o"), "The data changed since", "privacy")
    model = tmp_path / "model"
    words = replaced(setting.score, str(setting.model), tiny.save("llama", model))
    assert command("score", *words, "-q", "-o", tmp_path / "m").code == 0
    tiny.save("llama", model, seed=3)
    fails(command("run", *words, "-q", "-o", tmp_path / "m"), "The model changed since", "the weights")


@pytest.mark.skipif(not FULL.exists(), reason="/dev/full, a device without space, is Linux's")
@pytest.mark.parametrize("name", ["patch.safetensors", "generations.jsonl", "results.json", "report.html", "an answer"])
def test_a_full_disk(name: str, setting: Setting, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """One file of the run meets a device without space: one message; with space again, the same command ends well."""
    folder = tmp_path / "o"
    words = ["run", *setting.run, "-q", "-o", folder]
    assert command(*words).code == 0
    whole = files_of(folder)
    for path in ("patch.safetensors", "results.json", "generations.jsonl", "verdicts.jsonl"):
        (folder / path).unlink()
    with monkeypatch.context() as full:
        if name == "an answer":
            full.setattr(os, "fsync", no_space)
        elif name == "patch.safetensors":  # its library writes to a file of its own and renames it
            full.setattr("spin_llm.patch.file.save_file", no_space_for_safetensors)
        else:
            full.setattr(outputs, "temporary", lambda path: linked_to_full(path, name))
        fails(command(*words), "The disk is full", "run the same command again")
    assert not list(folder.rglob("*.part"))
    assert command(*words).code == 0
    assert files_of(folder) == whole


def linked_to_full(path: Path, name: str) -> Path:
    """A temporary name, which for the file of this `name` is a link to a device without space."""
    temporary = NEW_NAME(path)
    if path.name == name:
        temporary.symlink_to(FULL)
    return temporary


NEW_NAME = outputs.temporary


def no_space(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_for_safetensors(tensors: object, path: Path, metadata: object) -> None:
    path.write_bytes(b"half")
    raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX's")
def test_a_file_size_limit_while_scoring_and_applying(setting: Setting, patch: Path, tmp_path: Path):
    """The kernel refuses writes beyond 8 KiB, more than run.json has: no half file stays under its name."""
    code = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)); "
    code += "sys.argv[0] = 'spin-llm'; runpy.run_module('spin_llm.cli', run_name='__main__')"
    score = process("score", *setting.score, "-q", "-o", tmp_path / "s", interpreter=("-c", code))
    apply = process("apply", setting.model, patch, "-o", tmp_path / "a", interpreter=("-c", code))
    fails(finished(score), "The disk is full")
    fails(finished(apply), "The disk is full")
    assert not list((tmp_path / "s").rglob("*.safetensors"))
    assert not (tmp_path / "a").exists()
    assert not list(tmp_path.glob("*.part"))
