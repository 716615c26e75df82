"""Patches on tiny models: in memory and on disk, there and back, and everything that must be refused or cleaned up."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import TinyFolder, TinyModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spin_llm.errors import SpinError
from spin_llm.models import Checkpoint, LoadedModel, load
from spin_llm.models.disk.copying import model_files
from spin_llm.outputs import temporary
from spin_llm.patch import file as patch_file
from spin_llm.patch.file import apply_checkpoint, load_patch, make_patch, patch_state, revert_checkpoint, save_patch
from spin_llm.patch.patch import Patch, TensorEdit, loaded_weights

EVERY = [*tiny.DENSE, *tiny.MOE]
UP = "model.layers.0.mlp.up_proj.weight"


def patch_of(loaded: LoadedModel, *, scale: float = 0.0, **options: Any) -> Patch:
    return make_patch(loaded.checkpoint, tiny.mlp_selection(loaded.model, **options), scale=scale)


def bits(model: Any) -> dict[str, bytes]:
    """By name in the checkpoint: experts' matrices stand for the parameters in which they are fused."""
    weights = {name: weight.detach() for name, weight in loaded_weights(model).items() if weight.ndim < 3}
    assert sum(weight.numel() for weight in weights.values()) == sum(p.numel() for p in model.parameters())
    return {name: weight.contiguous().view(torch.uint8).numpy().tobytes() for name, weight in weights.items()}


def stored_bits(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: bytes(stored.read()) for name, stored in checkpoint.tensors.items()}


def assert_only_touched(base: Checkpoint, edited: Checkpoint, patch: Patch) -> None:
    """The two folders hold the same files, whose bytes differ exactly where the patch says."""
    before, after = tiny.folder_bytes(base.folder), tiny.folder_bytes(edited.folder)
    assert before.keys() == after.keys()
    allowed: dict[str, set[int]] = {}
    for name, edit in patch.edits.items():
        stored, width = base.tensors[name], edit.old.element_size()
        starts = (stored.start + int(index) * width for index in edit.indices)
        allowed.setdefault(stored.file.name, set()).update(s + i for s in starts for i in range(width))
        flat = torch.frombuffer(edited.tensors[name].read(), dtype=edit.new.dtype)
        assert torch.equal(flat[edit.indices].view(torch.uint8), edit.new.view(torch.uint8))
    assert any(before[name] != after[name] for name in before)
    for name, data in before.items():
        assert len(data) == len(after[name])
        differing = {i for i, (left, right) in enumerate(zip(data, after[name], strict=True)) if left != right}
        assert differing <= allowed.get(name, set()), name


# The file


def test_a_saved_patch_is_read_as_it_was(tiny_model: TinyModel, tmp_path: Path):
    patch = patch_of(tiny_model("llama"))
    save_patch(tmp_path / "patch.safetensors", patch)
    found = load_patch(tmp_path / "patch.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["patch.safetensors"]
    assert found.info == patch.info
    assert set(found.edits) == set(patch.edits)
    for name, edit in found.edits.items():
        expected = patch.edits[name]
        assert all(
            torch.equal(getattr(edit, part), getattr(expected, part)) and getattr(edit, part).dtype == kind
            for part, kind in (("indices", torch.int64), ("old", torch.float32), ("new", torch.float32))
        )


def test_the_file_holds_what_the_contract_says(tiny_model: TinyModel, tmp_path: Path):
    loaded = tiny_model("llama", dtype="float32", seed=3)
    selection = tiny.mlp_selection(loaded.model)
    patch = make_patch(loaded.checkpoint, selection)
    save_patch(tmp_path / "patch.safetensors", patch)
    with safe_open(tmp_path / "patch.safetensors", "pt") as file:
        assert sorted(file.keys()) == sorted(
            f"{n}.{part}" for n in selection.indices for part in ("indices", "new", "old")
        )
        metadata = json.loads(file.metadata()["patch"])
    assert metadata["base_fingerprint"] == loaded.checkpoint.fingerprint
    assert metadata["weights"] == selection.weights == patch.weights
    assert metadata["places"].keys() == selection.places.keys()
    assert {key: metadata[key] for key in ("rule", "ratio", "protect_ratio", "target", "scale")} == {
        "rule": "coupled",
        "ratio": 0.01,
        "protect_ratio": 0.01,
        "target": "all",
        "scale": 0.0,
    }
    for name in selection.indices:
        fingerprint = metadata["tensors"][name]
        assert fingerprint["shape"] == list(loaded.checkpoint.tensors[name].shape)
        assert fingerprint["dtype"] == "F32"
        assert len(fingerprint["sha256"]) == 64


def test_the_same_selection_gives_the_same_bytes(tiny_model: TinyModel, tmp_path: Path):
    for name in ("one", "two"):
        save_patch(tmp_path / name, patch_of(tiny_model("llama")))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_a_truncated_patch(kept: int, tiny_model: TinyModel, tmp_path: Path):
    path = tmp_path / "patch.safetensors"
    save_patch(path, patch_of(tiny_model("llama")))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SpinError, match=r"not a readable patch(.|\n)*truncated or damaged"):
        load_patch(path)


def test_an_absent_patch(tmp_path: Path):
    with pytest.raises(SpinError, match="no patch file"):
        load_patch(tmp_path / "patch.safetensors")


def test_a_file_of_another_kind(tmp_path: Path, tiny_folder: TinyFolder):
    with pytest.raises(SpinError, match="not a patch of this version"):
        load_patch(tiny_folder("llama") / "model.safetensors")


DAMAGES: dict[str, Callable[[TensorEdit], TensorEdit]] = {
    "unsorted": lambda edit: TensorEdit(edit.indices.flip(0), edit.old, edit.new),
    "doubled": lambda edit: TensorEdit(edit.indices * 0, edit.old, edit.new),
    "negative": lambda edit: TensorEdit(edit.indices - 10**6, edit.old, edit.new),
    "beyond": lambda edit: TensorEdit(edit.indices + 10**6, edit.old, edit.new),
    "lengths": lambda edit: TensorEdit(edit.indices, edit.old[:-1].clone(), edit.new),
    "empty": lambda edit: TensorEdit(edit.indices[:0].clone(), edit.old[:0].clone(), edit.new[:0].clone()),
    "dtypes": lambda edit: TensorEdit(edit.indices, edit.old.bfloat16(), edit.new.bfloat16()),
    "fractions": lambda edit: TensorEdit(edit.indices.float(), edit.old, edit.new),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_inconsistent_patch(damage: str, tiny_model: TinyModel, tmp_path: Path):
    patch = patch_of(tiny_model("llama"))
    save_patch(tmp_path / "a", Patch({**patch.edits, UP: DAMAGES[damage](patch.edits[UP])}, patch.info))
    with pytest.raises(SpinError, match=f"is damaged: the edit of {UP} is inconsistent"):
        load_patch(tmp_path / "a")


def resaved(path: Path, patch: Patch) -> Path:
    """A patch as version 0.1.0 wrote it: without a seal."""
    tensors = {f"{name}.{part}": getattr(edit, part).clone() for name, edit in patch.edits.items() for part in PARTS}
    save_file(tensors, path, metadata={"format": patch_file.FORMAT, "patch": json.dumps(asdict(patch.info))})
    return path


PARTS = ("indices", "old", "new")


def test_any_change_of_the_file_is_seen(tiny_model: TinyModel, tmp_path: Path):
    """One byte at a time: in the header, in the metadata, in the indices and values; and bytes left out or put in."""
    path = tmp_path / "patch.safetensors"
    save_patch(path, patch_of(tiny_model("llama")))
    whole = path.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    assert load_patch(path).weights > 0
    for place in [*range(0, size, 23), *range(size, len(whole), 41), *range(len(whole) - 8, len(whole))]:
        for change in (bytes([whole[place] ^ 1]), b"", bytes([whole[place], 0])):
            path.write_bytes(whole[:place] + change + whole[place + 1 :])
            with pytest.raises(SpinError, match=r"patch\.safetensors"):
                load_patch(path)


def test_a_seal_whose_name_is_damaged_is_no_older_patch(tiny_model: TinyModel, tmp_path: Path):
    path = tmp_path / "patch.safetensors"
    save_patch(path, patch_of(tiny_model("llama")))
    path.write_bytes(path.read_bytes().replace(b'"sha256":"', b'"sha257":"', 1))
    with pytest.raises(SpinError, match="damaged"):
        load_patch(path)


def test_a_patch_of_version_0_1_0_is_read(tiny_model: TinyModel, tmp_path: Path):
    patch = patch_of(tiny_model("llama"))
    found = load_patch(resaved(tmp_path / "old.safetensors", patch))
    assert found.info == patch.info
    assert all(torch.equal(found.edits[name].new, edit.new) for name, edit in patch.edits.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["old", "new"])
def test_values_that_are_no_numbers_are_refused_unless_asked_for(
    part: str, value: float, tiny_model: TinyModel, tmp_path: Path
):
    patch = patch_of(tiny_model("llama"))
    values = getattr(patch.edits[UP], part).clone()
    values[-1] = value
    patch.edits[UP] = replace(patch.edits[UP], **{part: values})  # type: ignore[index]
    for path in (resaved(tmp_path / "old", patch), tmp_path / "new"):
        if path.name == "new":
            save_patch(path, patch)
        with pytest.raises(SpinError, match=rf"{UP}(.|\n)*NaN or infinite"):
            load_patch(path)
        assert not getattr(load_patch(path, finite=False).edits[UP], part).isfinite().all()


@pytest.mark.parametrize("index", [-(2**63), -1, 48 * 32, 2**62, 2**63 - 1])
@pytest.mark.parametrize("place", [0, 3, -1])
def test_an_index_beyond_either_end(index: int, place: int, tiny_model: TinyModel, tmp_path: Path):
    patch = patch_of(tiny_model("llama"))
    indices = patch.edits[UP].indices.clone()
    indices[place] = index
    patch.edits[UP] = replace(patch.edits[UP], indices=indices)  # type: ignore[index]
    with pytest.raises(SpinError, match=f"the edit of {UP} is inconsistent"):
        load_patch(resaved(tmp_path / "a", patch))


METADATA: list[Any] = [
    *([], None, 1, {}, {"tensors": []}, {"tensors": {}}, {"tensors": {"a": 1}}, {"tensors": {"a": {}}}),
    *({"tensors": {"a": {"shape": shape, "dtype": "F32", "sha256": ""}}} for shape in (None, [-1], [0], [1.5], "1")),
    *({"tensors": {"a": {"shape": [1], "dtype": dtype, "sha256": ""}}} for dtype in (None, "I64", "Q")),
    *({"tensors": {name: {"shape": [1], "dtype": "F32", "sha256": ""}}} for name in ("b", "", "a.old")),
    {"tensors": {"a": {"shape": [1], "dtype": "F32", "sha256": ""}}, "ratio": "high"},
]


@pytest.mark.parametrize("metadata", METADATA, ids=lambda value: json.dumps(value)[:60])
def test_metadata_of_another_form(metadata: Any, tmp_path: Path):
    tensors = {"a.indices": torch.tensor([0]), "a.old": torch.ones(1), "a.new": torch.zeros(1)}
    form = {"format": patch_file.FORMAT, "patch": json.dumps(metadata)}
    save_file(tensors, tmp_path / "a", metadata=form)
    with pytest.raises(SpinError, match=str(tmp_path / "a")):
        load_patch(tmp_path / "a")


def test_tensors_that_the_metadata_do_not_name(tiny_model: TinyModel, tmp_path: Path):
    patch = patch_of(tiny_model("llama"))
    more = Patch({**patch.edits, "unsaid": patch.edits[UP]}, patch.info)
    with pytest.raises(SpinError, match="does not hold the tensors that it names"):
        load_patch(resaved(tmp_path / "a", more))


def test_the_patch_of_a_run_folder(tiny_model: TinyModel, tmp_path: Path):
    patch = patch_of(tiny_model("llama"))
    save_patch(tmp_path / "patch.safetensors", patch)
    assert set(load_patch(tmp_path).edits) == set(patch.edits)
    (tmp_path / "other").mkdir()
    with pytest.raises(SpinError, match=r"no patch file .*patch\.safetensors"):
        load_patch(tmp_path / "other")


# Which numbers change


def test_suppression_and_scaling(tiny_model: TinyModel):
    loaded = tiny_model("llama")
    suppressed, halved = patch_of(loaded), patch_of(loaded, scale=0.5)
    for name, edit in suppressed.edits.items():
        assert torch.equal(edit.old, tiny.loaded_parameter(loaded.model, name).flatten()[edit.indices])
        assert torch.equal(edit.new.view(torch.int32), torch.zeros(7, dtype=torch.int32))
        assert torch.equal(halved.edits[name].new, edit.old * 0.5)
        assert torch.equal(halved.edits[name].indices, edit.indices)
    assert halved.info.scale == 0.5
    with halved.applied(loaded.model) as model:
        for name, edit in halved.edits.items():
            assert torch.equal(tiny.loaded_parameter(model, name).flatten()[edit.indices], edit.new)


def with_values(folder: Path, values: dict[int, float], dtype: torch.dtype = torch.float32) -> Path:
    """Set weights of `UP` in the folder's checkpoint."""
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    for index, value in values.items():
        tensors[UP].view(-1)[index] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def copy(tiny_folder: TinyFolder, tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may change."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))


def selecting(indices: list[int], loaded: LoadedModel) -> Any:
    selection = tiny.mlp_selection(loaded.model)
    selection.indices.clear()
    selection.indices[UP] = torch.tensor(indices)
    return selection


def test_weights_that_are_zero_already_are_left_out(copy: Path):
    loaded = load(str(with_values(copy, {3: 0.0, 5: 0.0})), dtype="float32")
    patch = make_patch(loaded.checkpoint, selecting([2, 3, 5, 8], loaded))
    assert patch.edits[UP].indices.tolist() == [2, 8]
    assert patch.weights == patch.info.weights == 2
    with pytest.raises(SpinError, match=r"changes no weight at all(.|\n)*0 already"):
        make_patch(loaded.checkpoint, selecting([3, 5], loaded))
    with pytest.raises(SpinError, match="changes no weight at all"):
        make_patch(loaded.checkpoint, selecting([2, 8], loaded), scale=1.0)


def test_weights_that_are_no_numbers_are_not_selected(copy: Path):
    loaded = load(str(copy), dtype="float32")
    with_values(copy, {3: float("nan"), 5: float("inf")})
    for index in (3, 5):
        with pytest.raises(SpinError, match=rf"{UP}(.|\n)*NaN or infinite"):
            make_patch(Checkpoint(copy), selecting([index], loaded))
    with pytest.raises(SpinError, match="NaN or infinite"):
        make_patch(Checkpoint(copy), selecting([2], loaded), scale=1e300)
    assert make_patch(Checkpoint(copy), selecting([2], loaded)).weights == 1


def test_negative_zero_is_suppressed_to_zero_and_comes_back(copy: Path, tmp_path: Path):
    loaded = load(str(with_values(copy, {3: -0.0})), dtype="float32")
    patch = make_patch(loaded.checkpoint, selecting([3], loaded))
    assert torch.signbit(patch.edits[UP].old).all()
    assert not torch.signbit(patch.edits[UP].new).any()
    before = bits(loaded.model)
    with patch.applied(loaded.model):
        assert bits(loaded.model) != before
    assert bits(loaded.model) == before
    edited = Checkpoint(apply_checkpoint(loaded.checkpoint, patch, tmp_path / "edited"))
    assert patch_state(edited, patch) == "edited"
    base = revert_checkpoint(edited, patch, tmp_path / "back")
    assert tiny.folder_bytes(base) == tiny.folder_bytes(copy)


def test_scaling_in_double_precision_rounds_once(copy: Path):
    loaded = load(str(with_values(copy, {3: 1 / 3}, torch.float64)), dtype="float32")
    patch = make_patch(loaded.checkpoint, selecting([3], loaded), scale=0.3)
    assert patch.edits[UP].new.item() == 1 / 3 * 0.3
    with pytest.raises(SpinError, match="changes no weight at all"):
        make_patch(loaded.checkpoint, selecting([3], loaded), scale=1.0)


def test_a_selection_that_does_not_fit(tiny_model: TinyModel):
    loaded = tiny_model("llama")
    with pytest.raises(SpinError, match="does not fit the tensor"):
        make_patch(loaded.checkpoint, selecting([10**6], loaded))
    with pytest.raises(SpinError, match=r"stores no tensor for the parameter transformer\.h\.0"):
        make_patch(loaded.checkpoint, tiny.mlp_selection(tiny_model("gpt2").model))


# On a loaded model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", EVERY)
def test_applied_changes_the_model_and_restores_every_bit(name: str, dtype: str, tiny_model: TinyModel):
    """Also with a bfloat16 model over a float32 checkpoint."""
    loaded = tiny_model(name, dtype=dtype)
    patch = patch_of(loaded, per_matrix=40)
    ids = torch.tensor([tiny.examples()[7].input_ids])
    before = bits(loaded.model)
    with torch.no_grad():
        logits = loaded.model(ids).logits
        with patch.applied(loaded.model) as model:
            assert model is loaded.model
            inside = bits(model)
            assert not torch.equal(model(ids).logits, logits)
        assert torch.equal(loaded.model(ids).logits, logits)
    assert bits(loaded.model) == before
    assert {name for name in before if before[name] != inside[name]} == set(patch.edits)


def test_applied_restores_after_exceptions(tiny_model: TinyModel):
    loaded = tiny_model("llama")
    patch, before = patch_of(loaded), bits(loaded.model)
    for kind in (ValueError, KeyboardInterrupt):
        with pytest.raises(kind), patch.applied(loaded.model):
            raise kind
        assert bits(loaded.model) == before


def test_applied_restores_what_was_there_although_weights_were_changed_inside(tiny_model: TinyModel):
    loaded = tiny_model("llama")
    patch, before = patch_of(loaded), bits(loaded.model)
    with patch.applied(loaded.model) as model, torch.no_grad():
        for name, edit in patch.edits.items():
            tiny.loaded_parameter(model, name).view(-1)[edit.indices] = 7.0
    assert bits(loaded.model) == before


def test_applying_twice_is_applying_once(tiny_model: TinyModel):
    loaded = tiny_model("llama")
    patch, before = patch_of(loaded), bits(loaded.model)
    with patch.applied(loaded.model):
        once = bits(loaded.model)
        with patch.applied(loaded.model):
            assert bits(loaded.model) == once
        assert bits(loaded.model) == once
    assert bits(loaded.model) == before


def test_nested_patches_of_other_weights(tiny_model: TinyModel):
    loaded = tiny_model("llama")
    one = make_patch(loaded.checkpoint, selecting([1, 5], loaded))
    other = make_patch(loaded.checkpoint, selecting([2, 7], loaded))
    before = bits(loaded.model)
    with one.applied(loaded.model):
        outer = bits(loaded.model)
        with other.applied(loaded.model):
            zeros = (tiny.loaded_parameter(loaded.model, UP).view(-1)[:8] == 0).nonzero()[:, 0].tolist()
            assert zeros == [1, 2, 5, 7]
        assert bits(loaded.model) == outer
    assert bits(loaded.model) == before


def test_another_edit_of_the_same_weights_is_refused(tiny_model: TinyModel):
    loaded = tiny_model("llama")
    halved, before = patch_of(loaded, scale=0.5), bits(loaded.model)
    with patch_of(loaded, scale=0.25).applied(loaded.model):
        inside = bits(loaded.model)
        with pytest.raises(SpinError, match="weights differ from the patch's base"), halved.applied(loaded.model):
            pass
        assert bits(loaded.model) == inside
    assert bits(loaded.model) == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"name": "llama", "seed": 1}, "weights differ"),
        ({"name": "gpt2"}, "the model has no such parameter"),
        ({"name": "qwen3_moe"}, "weights differ|no such parameter|smaller"),
    ],
)
def test_a_patch_for_another_loaded_model(other: dict[str, Any], message: str, tiny_model: TinyModel):
    patch, loaded = patch_of(tiny_model("llama")), tiny_model(**other)
    before = bits(loaded.model)
    with pytest.raises(SpinError, match=rf"does not fit this model(.|\n)*({message})"), patch.applied(loaded.model):
        pass
    assert bits(loaded.model) == before


def test_a_model_that_differs_in_its_last_tensor_alone_is_left_as_it_was(tiny_model: TinyModel):
    """The tensors edited before the mismatch was seen are restored."""
    loaded = tiny_model("llama")
    patch = patch_of(loaded)
    last = list(patch.edits)[-1]
    with torch.no_grad():
        tiny.loaded_parameter(loaded.model, last).view(-1)[patch.edits[last].indices[-1]] += 1
    before = bits(loaded.model)
    with pytest.raises(SpinError, match=last), patch.applied(loaded.model):
        pass
    assert bits(loaded.model) == before


# On disk


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
@pytest.mark.parametrize("name", EVERY)
def test_only_the_touched_bytes_differ_and_revert_gives_the_same_folder(
    name: str, shard: str, tiny_model: TinyModel, tmp_path: Path
):
    loaded = tiny_model(name, max_shard_size=shard)
    patch = patch_of(loaded)
    base = loaded.checkpoint
    before = tiny.folder_bytes(base.folder)
    assert len([file for file in before if file.endswith(".safetensors")]) > (2 if shard == "20KB" else 0)
    edited = Checkpoint(apply_checkpoint(base, patch, tmp_path / "edited"))
    assert_only_touched(base, edited, patch)
    assert (patch_state(base, patch), patch_state(edited, patch)) == ("base", "edited")
    assert tiny.folder_bytes(revert_checkpoint(edited, patch, tmp_path / "back")) == before
    assert tiny.folder_bytes(base.folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "edited"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints(dtype: torch.dtype, tiny_model: TinyModel, tmp_path: Path):
    loaded = tiny_model("llama", dtype="float32")
    folder = tiny.save("llama", tmp_path / "half", dtype=dtype)
    checkpoint = Checkpoint(folder)
    patch = make_patch(checkpoint, tiny.mlp_selection(loaded.model), scale=0.3)
    assert {edit.old.dtype for edit in patch.edits.values()} == {dtype}
    edited = Checkpoint(apply_checkpoint(checkpoint, patch, tmp_path / "edited"))
    assert_only_touched(checkpoint, edited, patch)
    for dtype_loaded in ("float32", "bfloat16"):
        model = load(str(folder), dtype=dtype_loaded).model
        from_disk = load(str(edited.folder), dtype=dtype_loaded).model
        before = bits(model)
        with patch.applied(model):
            assert bits(model) == bits(from_disk)
        assert bits(model) == before


@pytest.mark.parametrize("name", EVERY)
def test_the_edited_checkpoint_loads_as_the_edited_model(name: str, tiny_model: TinyModel, tmp_path: Path):
    loaded = tiny_model(name)
    patch = patch_of(loaded)
    edited = load(str(apply_checkpoint(loaded.checkpoint, patch, tmp_path / "edited")), dtype="float32")
    assert bits(edited.model) != bits(loaded.model)
    with patch.applied(loaded.model):
        assert bits(edited.model) == bits(loaded.model)
    with patch.applied(edited.model):  # already there: nothing changes, nothing is refused
        pass
    assert patch_state(edited.checkpoint, patch) == "edited"


def test_applying_and_reverting_on_disk_twice_is_once(tiny_model: TinyModel, tmp_path: Path):
    base, patch = tiny_model("llama").checkpoint, patch_of(tiny_model("llama"))
    once = Checkpoint(apply_checkpoint(base, patch, tmp_path / "once"))
    twice = apply_checkpoint(once, patch, tmp_path / "twice")
    assert tiny.folder_bytes(twice) == tiny.folder_bytes(once.folder)
    assert tiny.folder_bytes(revert_checkpoint(base, patch, tmp_path / "back")) == tiny.folder_bytes(base.folder)


def test_a_half_edited_copy_is_mixed_and_can_be_finished_or_reverted(copy: Path, tmp_path: Path):
    loaded = load(str(copy), dtype="float32")
    patch, before = make_patch(loaded.checkpoint, selecting([2, 3, 5], loaded)), tiny.folder_bytes(copy)
    half = Path(shutil.copytree(copy, tmp_path / "half"))
    patch_file._rewrite(Checkpoint(half).tensors[UP], torch.tensor([3]), torch.zeros(1))
    assert patch_state(Checkpoint(half), patch) == "mixed"
    assert patch_state(Checkpoint(apply_checkpoint(Checkpoint(half), patch, tmp_path / "edited")), patch) == "edited"
    assert tiny.folder_bytes(revert_checkpoint(Checkpoint(half), patch, tmp_path / "back")) == before


def test_touched_weights_with_a_third_value_are_refused(copy: Path, tmp_path: Path):
    loaded = load(str(copy), dtype="float32")
    patch = make_patch(loaded.checkpoint, selecting([2, 3, 5], loaded))
    patch_file._rewrite(Checkpoint(copy).tensors[UP], torch.tensor([3]), torch.tensor([0.125]))
    for action in (apply_checkpoint, revert_checkpoint):
        with pytest.raises(SpinError, match="does not fit this model"):
            action(Checkpoint(copy), patch, tmp_path / "out")
    with pytest.raises(SpinError, match="does not fit this model"):
        patch_state(Checkpoint(copy), patch)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_weight_beside_the_touched_ones_that_differs_is_refused(copy: Path):
    loaded = load(str(copy), dtype="float32")
    patch = make_patch(loaded.checkpoint, selecting([2, 3, 5], loaded))
    patch_file._rewrite(Checkpoint(copy).tensors[UP], torch.tensor([4]), torch.tensor([0.125]))
    with pytest.raises(SpinError, match="its bytes are not those of the patch's base"):
        patch_state(Checkpoint(copy), patch)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"name": "llama", "seed": 1}, "neither the patch's old nor its new values"),
        ({"name": "gpt2"}, "the checkpoint has no such tensor"),
        ({"name": "llama", "dtype": torch.bfloat16}, r"it is BF16 \[48, 32\], not F32 \[48, 32\]"),
    ],
)
def test_a_patch_for_another_checkpoint(
    other: dict[str, Any], message: str, tiny_folder: TinyFolder, tiny_model: TinyModel, tmp_path: Path
):
    patch = patch_of(tiny_model("llama"))
    for action in (apply_checkpoint, revert_checkpoint):
        with pytest.raises(SpinError, match=message):
            action(Checkpoint(tiny_folder(**other)), patch, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_the_base_model_prefix(tiny_folder: TinyFolder, tmp_path: Path):
    """GPT-2's own files say `h.0.mlp`, the causal model `transformer.h.0.mlp`."""
    from transformers import AutoModel

    AutoModel.from_pretrained(tiny_folder("gpt2")).save_pretrained(tmp_path / "bare")
    tiny.tokenizer().save_pretrained(tmp_path / "bare")
    loaded = load(str(tmp_path / "bare"), dtype="float32")
    patch = patch_of(loaded)
    assert all(name.startswith("h.") for name in patch.edits)
    edited = load(str(apply_checkpoint(loaded.checkpoint, patch, tmp_path / "edited")), dtype="float32")
    before = bits(loaded.model)
    with patch.applied(loaded.model):
        assert bits(loaded.model) == bits(edited.model) != before
    assert bits(loaded.model) == before


def test_other_files_and_what_links_lead_to_are_kept(copy: Path, tmp_path: Path):
    """As in the hub's cache: the weights are a link to a file that must not be written."""
    (copy / "NOTICE").write_bytes(b"\x00\xff")
    blob = tmp_path / "blob"
    (copy / "model.safetensors").rename(blob)
    blob.chmod(0o444)
    (copy / "model.safetensors").symlink_to(blob)
    before = blob.read_bytes()
    loaded = load(str(copy), dtype="float32")
    patch = patch_of(loaded)
    edited = Checkpoint(apply_checkpoint(loaded.checkpoint, patch, tmp_path / "edited"))
    assert_only_touched(loaded.checkpoint, edited, patch)
    assert not (edited.folder / "model.safetensors").is_symlink()
    assert (edited.folder / "NOTICE").read_bytes() == b"\x00\xff"
    assert blob.read_bytes() == before


# The output folder


def test_an_output_that_exists_is_kept(tiny_model: TinyModel, tmp_path: Path):
    base, patch = tiny_model("llama").checkpoint, patch_of(tiny_model("llama"))
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "precious.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for output in (notes, tmp_path / "file"):
        for overwrite in (False, True):
            with pytest.raises(SpinError, match="exists"):
                apply_checkpoint(base, patch, output, overwrite=overwrite)
    assert tiny.folder_bytes(tmp_path) == {"notes/precious.txt": b"mine", "file": b"mine"}


def test_overwrite_replaces_a_model_folder_only_when_asked(tiny_model: TinyModel, tmp_path: Path):
    base, patch = tiny_model("llama").checkpoint, patch_of(tiny_model("llama"))
    output = tiny.save("gpt2", tmp_path / "out")
    before = tiny.folder_bytes(output)
    with pytest.raises(SpinError, match=r"exists(.|\n)*--overwrite replaces a model folder only"):
        apply_checkpoint(base, patch, output)
    assert tiny.folder_bytes(output) == before
    apply_checkpoint(base, patch, output, overwrite=True)
    assert patch_state(Checkpoint(output), patch) == "edited"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_output_folder_and_missing_parents_are_fine(tiny_model: TinyModel, tmp_path: Path):
    base, patch = tiny_model("llama").checkpoint, patch_of(tiny_model("llama"))
    (tmp_path / "empty").mkdir()
    for output in (tmp_path / "empty", tmp_path / "some" / "where"):
        assert patch_state(Checkpoint(apply_checkpoint(base, patch, output)), patch) == "edited"


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_output_is_never_the_models_own_folder(overwrite: bool, copy: Path):
    loaded = load(str(copy), dtype="float32")
    patch, before = patch_of(loaded), tiny.folder_bytes(copy)
    for output in (copy, copy / ".." / copy.name):
        with pytest.raises(SpinError, match=r"exists|own folder"):
            apply_checkpoint(loaded.checkpoint, patch, output, overwrite=overwrite)
    assert tiny.folder_bytes(copy) == before


def test_what_is_beside_the_model_is_left_out_and_told(copy: Path, tmp_path: Path):
    """Other weights, states of trainings, caches, repositories: by kind; what the model needs is copied."""
    beside = [".git/", ".cache/", "checkpoint-100/", "runs/", "original/", "onnx/", "empty/"]
    beside += ["pytorch_model.bin", "optimizer.pt", "rng_state_0.pth", "model.Q4_K_M.GGUF", "consolidated.safetensors"]
    beside += [
        "model.fp16.safetensors",
        "pytorch_model.bin.index.json",
        "trainer_state.json",
        ".gitattributes",
        "old.part",
    ]
    needed = [
        "LICENSE",
        "tokenizer.model",
        "vocab.txt",
        "modeling_own.py",
        "README.md",
        "additional_chat_templates/a.jinja",
    ]
    for name in beside:
        if name.endswith("/"):
            (copy / name).mkdir()
        if name != "empty/":
            (copy / name / "in" if name.endswith("/") else copy / name).write_bytes(b"x")
    (copy / "additional_chat_templates").mkdir()
    for name in needed:
        (copy / name).write_bytes(b"x")
    (copy / "linked").symlink_to(tmp_path)
    os.mkfifo(copy / "pipe")
    patch = patch_of(load(str(copy), dtype="float32"))
    edited = apply_checkpoint(Checkpoint(copy), patch, tmp_path / "edited")
    assert sorted(model_files(copy).left_out) == sorted([*beside, "linked/", "pipe"])
    found = tiny.folder_bytes(edited)
    assert {*needed, "model.safetensors", "config.json", "tokenizer.json"} <= set(found)
    assert not [name for name in found if name.partition("/")[0] in {name.rstrip("/") for name in beside}]


@pytest.mark.parametrize("name", ["tokenizer.json", "notes.txt"])
def test_a_link_that_leads_nowhere_is_refused_when_it_would_be_copied(name: str, copy: Path, tmp_path: Path):
    patch = patch_of(load(str(copy), dtype="float32"))
    (copy / ".hidden").symlink_to("nowhere")
    (copy / "old.bin").symlink_to("nowhere")
    apply_checkpoint(Checkpoint(copy), patch, tmp_path / "edited")
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to("nowhere")
    with pytest.raises(SpinError, match=f"{name} is a link that leads nowhere"):
        apply_checkpoint(Checkpoint(copy), patch, tmp_path / "again")


def test_overwrite_never_deletes_more_than_a_model(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not what lies beside an old model, not the model that is copied, not the folder that one is in."""
    patch = patch_of(load(str(copy), dtype="float32"))
    for name in (".git/config", "data/rows.csv", "patch.safetensors", "optimizer.pt", "runs/a/run.json"):
        output = tiny.save("gpt2", tmp_path / name.replace("/", "-") / "out")
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("mine")
        before = tiny.folder_bytes(output)
        with pytest.raises(SpinError, match=rf"holds more than a model: {name.partition('/')[0]}"):
            apply_checkpoint(Checkpoint(copy), patch, output, overwrite=True)
        assert tiny.folder_bytes(output) == before
    outer = tiny.save("gpt2", tmp_path / "outer")
    inner = Path(shutil.copytree(copy, outer / "inner"))
    linked = tiny.save("gpt2", tmp_path / "linked")
    shutil.copytree(copy, tmp_path / "by-link")
    (tmp_path / "by-link" / "model.safetensors").rename(linked / "blob")
    (tmp_path / "by-link" / "model.safetensors").symlink_to(linked / "blob")
    for model, output in ((inner, outer), (tmp_path / "by-link", linked)):
        before = tiny.folder_bytes(output)
        with pytest.raises(SpinError, match="holds the model that is to be copied"):
            apply_checkpoint(Checkpoint(model), patch, output, overwrite=True)
        assert tiny.folder_bytes(output) == before
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for where in (".", "", "../here", str(tmp_path / "here")):
        with pytest.raises(SpinError, match="the folder that you are in"):
            apply_checkpoint(Checkpoint(copy), patch, where)


def test_an_output_that_is_a_link_is_followed(copy: Path, tmp_path: Path):
    patch = patch_of(load(str(copy), dtype="float32"))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for overwrite in (False, True):
        apply_checkpoint(Checkpoint(copy), patch, tmp_path / "link", overwrite=overwrite)
        assert (tmp_path / "link").is_symlink()
        assert patch_state(Checkpoint(tmp_path / "real"), patch) == "edited"
    with pytest.raises(SpinError, match="own folder"):
        apply_checkpoint(Checkpoint(tmp_path / "real"), patch, tmp_path / "link", overwrite=True)


def test_the_proof_is_what_transformers_loads(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An edit of files that its loader does not read, however that came, is no edit."""
    patch = patch_of(load(str(copy), dtype="float32"))
    unread = Path(shutil.copytree(copy, tmp_path / "unread")) / "model.safetensors"
    monkeypatch.setattr("transformers.modeling_utils._get_resolved_checkpoint_files", lambda **_: ([str(unread)], None))
    with pytest.raises(SpinError, match="transformers does not load the written values"):
        apply_checkpoint(Checkpoint(copy), patch, tmp_path / "edited")
    monkeypatch.delattr("transformers.modeling_utils._get_resolved_checkpoint_files")
    with pytest.raises(SpinError, match="cannot be asked which files"):
        apply_checkpoint(Checkpoint(copy), patch, tmp_path / "edited")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "unread"]


def test_a_model_that_was_set_aside_comes_back_with_the_next_command(copy: Path, tmp_path: Path):
    """As after a kill between the two renames of --overwrite: whichever command looks next."""
    part = temporary(tmp_path / "model")
    dead = tmp_path / part.name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-")
    dead.mkdir()
    aside = dead.with_suffix(".old")
    aside.mkdir()
    copy.rename(aside / copy.name)
    told: list[str] = []
    assert load(str(copy), dtype="float32", say=told.append).checkpoint.folder == copy
    assert [line for line in told if f"{copy} is back" in line]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# A disk that fills up


def no_space(*args: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def half_then_no_space(source: str, target: str, **options: Any) -> None:
    Path(target).write_bytes(b"half of it")
    no_space()


@pytest.mark.parametrize(
    ("where", "name", "failure"),
    [(shutil, "copyfile", half_then_no_space), (patch_file, "_rewrite", no_space)],
    ids=["while copying", "while patch_file"],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_nothing_and_takes_nothing(
    where: Any,
    name: str,
    failure: Callable[..., None],
    overwrite: bool,
    tiny_model: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    base, patch = tiny_model("llama").checkpoint, patch_of(tiny_model("llama"))
    output = tiny.save("gpt2", tmp_path / "out") if overwrite else tmp_path / "out"
    before = tiny.folder_bytes(tmp_path)
    monkeypatch.setattr(where, name, failure)
    with pytest.raises(SpinError, match="disk is full"):
        apply_checkpoint(base, patch, output, overwrite=overwrite)
    assert tiny.folder_bytes(tmp_path) == before
    assert output.exists() == overwrite


def test_an_interrupt_leaves_nothing(tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base, patch = tiny_model("llama").checkpoint, patch_of(tiny_model("llama"))

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(patch_file, "_rewrite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        apply_checkpoint(base, patch, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_saving_a_patch(tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    patch = patch_of(tiny_model("llama"))
    monkeypatch.setattr(patch_file, "save_file", no_space)
    with pytest.raises(SpinError, match="disk is full"):
        save_patch(tmp_path / "patch.safetensors", patch)
    assert list(tmp_path.iterdir()) == []
