"""Commands that rewrite a model are killed at random moments and at every change that they make: nothing is lost.

A bounded part of what `python tests/kills.py` does.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import kills
import pytest
import tiny

from spin_llm.models import Checkpoint
from spin_llm.outputs import clear_stale, is_temporary
from spin_llm.patch.file import apply_checkpoint, make_patch, save_patch


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_killed_at_random_moments(verb: str, tmp_path: Path):
    kills.import_all()
    figures = kills.kill_rewriting(verb, tmp_path, 6, seed=1)
    assert figures.faults == []
    assert figures.kills > 0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "baseline"])
def test_killed_and_gone_on_with(command: str, tmp_path: Path):
    """The bytes of a command that nobody killed; `paper` and a search by `make kills`."""
    resumed = kills.WORK[command](tmp_path, 2, 1)
    assert resumed.faults == []
    assert resumed.kills >= 2


def test_killed_at_every_change_while_replacing_a_model(tmp_path: Path):
    """Always the old or the new model under the name, at the latest after the next command; both are seen."""
    kills.import_all()
    model, output = tiny.save("llama", tmp_path / "model"), tmp_path / "place" / "output"
    patch = make_patch(Checkpoint(model), tiny.mlp_selection(tiny.build("llama")))
    save_patch(tmp_path / "patch.safetensors", patch)
    new = tiny.folder_bytes(apply_checkpoint(Checkpoint(model), patch, tmp_path / "whole"))
    old = tiny.folder_bytes(tiny.save("gpt2", tmp_path / "old"))
    words, seen = ["apply", model, tmp_path / "patch.safetensors", "-o", output, "--overwrite"], []
    for number in range(1, 60):
        shutil.rmtree(output.parent, ignore_errors=True)
        shutil.copytree(tmp_path / "old", output)
        code = kills.killed(words, tmp_path / "log", kills.signal.SIGKILL, 0, stop_at=number)
        assert code in (0, -9), (tmp_path / "log").read_text()
        assert all(path == output or is_temporary(path) for path in output.parent.iterdir())
        clear_stale(output.parent)
        assert [path.name for path in output.parent.iterdir()] == ["output"]
        seen.append(tiny.folder_bytes(output))
        assert seen[-1] in (old, new), number
        if code == 0:
            break
    assert code == 0, "more changes than were tried"
    assert len(seen) > 10
    assert seen[0] == old
    assert seen[-1] == seen[-2] == new  # the last but one was killed while it deleted the old model
