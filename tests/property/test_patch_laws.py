"""Laws of patches, drawn by hypothesis: random bits (NaN, infinities, subnormals, both zeros) in three dtypes, one file
or two, random weights, any scale."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from spin_llm.errors import SpinError
from spin_llm.models import Checkpoint
from spin_llm.patch.file import apply_checkpoint, load_patch, make_patch, patch_state, revert_checkpoint, save_patch
from spin_llm.patch.patch import Patch
from spin_llm.results.edited import Recipe
from spin_llm.scores import MatrixScores
from spin_llm.selection import Selection

SHAPES = {"first.weight": (3, 4), "second.weight": (5, 2), "third.weight": (1, 6)}
DTYPES = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
scales = st.sampled_from([0.0, 0.5, -1.0, 2.0]) | st.floats(-4, 4)


@dataclass(frozen=True)
class Case:
    tensors: dict[str, torch.Tensor]
    selection: Selection
    scale: float
    sharded: bool


class Model(nn.Module):
    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            child = nn.Module()
            child.weight = nn.Parameter(tensor.clone(), requires_grad=False)
            self.add_module(name.removesuffix(".weight"), child)


def drawn_bits(draw: Any, count: int, dtype: torch.dtype) -> torch.Tensor:
    width = DTYPES[dtype]
    limits = torch.iinfo(width)
    special = st.sampled_from([0, limits.min])  # the two zeros
    drawn = draw(st.lists(special | st.integers(limits.min, limits.max), min_size=count, max_size=count))
    return torch.tensor(drawn, dtype=width).view(dtype)


@st.composite
def cases(draw: Any) -> Case:
    dtype = draw(st.sampled_from(list(DTYPES)))
    tensors = {
        name: drawn_bits(draw, rows * columns, dtype).view(rows, columns) for name, (rows, columns) in SHAPES.items()
    }
    indices = {}
    for name in draw(st.sets(st.sampled_from(list(SHAPES)), min_size=1)):
        chosen = draw(st.sets(st.integers(0, tensors[name].numel() - 1), min_size=1))
        indices[name] = torch.tensor(sorted(chosen))
    empty = torch.empty(0, dtype=torch.int64)
    places = {name: MatrixScores(empty, empty.float(), shape, 0, "mlp") for name, shape in SHAPES.items()}
    selection = Selection(indices, Recipe("coupled", 0.1, protect_ratio=0.1), places)
    return Case(tensors, selection, draw(scales), draw(st.booleans()))


def write(case: Case, folder: Path) -> Checkpoint:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    if case.sharded:
        files = {name: f"model-{i}.safetensors" for i, name in enumerate(case.tensors)}
        for name, file in files.items():
            save_file({name: case.tensors[name]}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    else:
        save_file(case.tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Checkpoint(folder)


def patch_of(case: Case, checkpoint: Checkpoint) -> Patch:
    try:
        return make_patch(checkpoint, case.selection, scale=case.scale)
    except SpinError:  # every selected weight is what it would become
        assume(False)
        raise


def bits(tensors: Any) -> dict[str, bytes]:
    return {name: t.detach().contiguous().view(torch.uint8).numpy().tobytes() for name, t in tensors.items()}


@given(cases())
def test_apply_then_revert_on_a_model_is_identity(case: Case):
    with tempfile.TemporaryDirectory() as temporary:
        patch = patch_of(case, write(case, Path(temporary) / "base"))
    model = Model(case.tensors)
    before = bits(dict(model.named_parameters()))
    with patch.applied(model):
        once = bits(dict(model.named_parameters()))
        with patch.applied(model):
            assert bits(dict(model.named_parameters())) == once
        assert bits(dict(model.named_parameters())) == once
    assert once != before
    assert bits(dict(model.named_parameters())) == before


@given(cases())
def test_apply_then_revert_on_disk_is_identity_and_touches_the_selected_weights_only(case: Case):
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        base = write(case, root / "base")
        patch = patch_of(case, base)
        edited = Checkpoint(apply_checkpoint(base, patch, root / "edited"))
        again = apply_checkpoint(edited, patch, root / "again")
        back = revert_checkpoint(edited, patch, root / "back")
        assert tiny.folder_bytes(back) == tiny.folder_bytes(base.folder) != tiny.folder_bytes(edited.folder)
        assert tiny.folder_bytes(again) == tiny.folder_bytes(edited.folder)
        assert [patch_state(checkpoint, patch) for checkpoint in (base, edited)] == ["base", "edited"]
        for name, tensor in case.tensors.items():
            width = DTYPES[tensor.dtype]
            now = torch.frombuffer(edited.tensors[name].read(), dtype=width)
            changed = (now != tensor.view(width).flatten()).nonzero()[:, 0].tolist()
            expected = patch.edits[name].indices.tolist() if name in patch.edits else []
            assert changed == expected
            assert set(changed) <= set(case.selection.indices.get(name, torch.empty(0)).tolist())


@given(cases())
def test_new_values_are_the_scaled_old_ones(case: Case):
    with tempfile.TemporaryDirectory() as temporary:
        patch = patch_of(case, write(case, Path(temporary) / "base"))
    for name, edit in patch.edits.items():
        assert torch.equal(
            edit.old.view(DTYPES[edit.old.dtype]),
            case.tensors[name].flatten()[edit.indices].view(DTYPES[edit.old.dtype]),
        )
        expected = (edit.old.double() * case.scale).to(edit.old.dtype) if case.scale else torch.zeros_like(edit.old)
        assert torch.equal(edit.new.nan_to_num(), expected.nan_to_num())


@given(cases())
def test_a_patch_survives_its_file(case: Case):
    with tempfile.TemporaryDirectory() as temporary:
        patch = patch_of(case, write(case, Path(temporary) / "base"))
        save_patch(Path(temporary) / "patch", patch)
        found = load_patch(Path(temporary) / "patch")
    assert found.info == patch.info
    for part in ("indices", "old", "new"):
        one, other = ({n: getattr(edit, part) for n, edit in p.edits.items()} for p in (found, patch))
        assert bits(one) == bits(other)


@given(cases(), st.data())
def test_a_base_with_one_other_bit_in_a_touched_tensor_is_refused(case: Case, data: st.DataObject):
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        base = write(case, root / "base")
        patch = patch_of(case, base)
        name = data.draw(st.sampled_from(sorted(patch.edits)))
        stored = base.tensors[name]
        place = stored.start + data.draw(st.integers(0, stored.length - 1))
        content = bytearray(stored.file.read_bytes())
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        stored.file.write_bytes(content)
        other = Checkpoint(base.folder)
        index = (place - stored.start) // patch.edits[name].old.element_size()
        if index in patch.edits[name].indices.tolist():
            now = torch.frombuffer(other.tensors[name].read(), dtype=torch.uint8)
            width = patch.edits[name].old.element_size()
            where = patch.edits[name].indices.tolist().index(index)
            new = patch.edits[name].new[where : where + 1].view(torch.uint8)
            assume(not torch.equal(now[index * width : (index + 1) * width], new))  # that is the edit itself
        with pytest.raises(SpinError, match="does not fit this model"):
            apply_checkpoint(other, patch, root / "out")
        assert not (root / "out").exists()
