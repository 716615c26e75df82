"""An edit on top of another, and back; a patch made for a fine-tuned model from its base's scores; many languages."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from harness import Command, Setting, files_of, pairs, write_rows

from spin_llm.models import load
from spin_llm.patch.file import load_patch

pytest_plugins = ["harness"]


@pytest.fixture
def scored(setting: Setting, command: Command, tmp_path: Path) -> Path:
    outcome = command("score", *setting.score, "-o", tmp_path / "scored")
    assert outcome.code == 0, outcome.err
    return tmp_path / "scored"


def test_two_edits_and_back(setting: Setting, scored: Path, command: Command, tmp_path: Path):
    """MODEL + A, then scored and edited again: + B; taken back in the opposite order, byte for byte."""
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert command("select", scored, "--ratio", "0.05", "-o", a).code == 0
    assert command("apply", setting.model, a, "-o", tmp_path / "once").code == 0
    again = command("score", tmp_path / "once", *setting.score[1:], "-o", tmp_path / "rescored")
    assert again.code == 0, again.err
    assert command("select", tmp_path / "rescored", "--ratio", "0.08", "-o", b).code == 0
    assert command("apply", tmp_path / "once", b, "-o", tmp_path / "twice").code == 0
    first, second = load_patch(a), load_patch(b)
    for name, edit in second.edits.items():
        if name in first.edits:
            assert not torch.isin(edit.indices, first.edits[name].indices).any(), "what is 0 already is no edit"
    wrong = command("revert", tmp_path / "twice", a, "-o", tmp_path / "wrong")
    assert wrong.code == 2, "the second edit lies on top"
    assert command("revert", tmp_path / "twice", b, "-o", tmp_path / "back-once").code == 0
    assert command("revert", tmp_path / "back-once", a, "-o", tmp_path / "back").code == 0
    before, after = files_of(setting.model), files_of(tmp_path / "back")
    assert {name: after[name] for name in before} == before


def test_a_patch_for_a_fine_tuned_model(setting: Setting, scored: Path, command: Command, tmp_path: Path):
    """The base's scores choose; the old values are the fine-tuned model's."""
    loaded = load(str(setting.model), dtype="float32")
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1.01)
    loaded.model.save_pretrained(tmp_path / "tuned")
    loaded.tokenizer.save_pretrained(tmp_path / "tuned")
    own, other = tmp_path / "own.safetensors", tmp_path / "other.safetensors"
    assert command("select", scored, "--ratio", "0.05", "-o", own).code == 0
    made = command("select", scored, "--ratio", "0.05", "-o", other, "--for", tmp_path / "tuned")
    assert made.code == 0, made.err
    one, two = load_patch(own), load_patch(other)
    for name, edit in one.edits.items():
        assert torch.equal(edit.indices, two.edits[name].indices)
        torch.testing.assert_close(two.edits[name].old, edit.old * 1.01)
    assert command("verify", tmp_path / "tuned", other).out.strip() == "base"
    assert command("verify", setting.model, other).code == 2
    assert command("apply", tmp_path / "tuned", other, "-o", tmp_path / "edited").code == 0
    assert command("verify", tmp_path / "edited", other).out.strip() == "edited"


def test_scores_do_not_fit_another_shape(scored: Path, command: Command, tmp_path: Path):
    other = tiny.save("qwen3_moe", tmp_path / "moe")
    outcome = command("select", scored, "--ratio", "0.05", "-o", tmp_path / "x.safetensors", "--for", other)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "x.safetensors").exists()


def test_languages_are_concepts(setting: Setting, command: Command, tmp_path: Path):
    """Two languages of a concept and one of another: what at least two need has no fewer weights than what all need."""
    names = ("fairness-en", "fairness-de", "privacy")
    third = write_rows(tmp_path / "third.csv", pairs("consent", 6))
    files = (setting.path("fairness"), setting.path("privacy"), third)
    words = [word for name, file in zip(names, files, strict=True) for word in ("--concept", f"{name}={file}")]
    rest = setting.score[setting.score.index("--protect") :]
    outcome = command("score", setting.model, *words, *rest, "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    sizes = []
    for least in ("1", "2", "3"):
        patch = tmp_path / f"{least}.safetensors"
        made = command("select", tmp_path / "run", "--ratio", "0.05", "--at-least", least, "-o", patch)
        assert made.code == 0, made.err
        sizes.append(load_patch(patch).weights)
    assert sizes[0] > sizes[1] > sizes[2] > 0
