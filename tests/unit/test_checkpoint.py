"""A checkpoint as bytes: tensors where the header says they are, in one file or in shards; fingerprints; bad files."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import tiny
import torch
from conftest import TinyFolder
from safetensors.torch import load_file, save_file

from spin_llm.errors import SpinError
from spin_llm.models import Checkpoint


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint(folder)


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_are_read_by_their_bytes(dtype: torch.dtype, shard: str, tiny_folder: TinyFolder):
    folder = tiny_folder("llama", dtype=dtype, max_shard_size=shard)
    checkpoint = Checkpoint(folder)
    expected = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert set(checkpoint.tensors) == set(expected)
    assert len({stored.file for stored in checkpoint.tensors.values()}) > (1 if shard == "20KB" else 0)
    for name, stored in checkpoint.tensors.items():
        assert stored.torch_dtype == dtype
        assert torch.equal(torch.frombuffer(stored.read(), dtype=dtype).view(stored.shape), expected[name])


def test_tensors_of_several_dtypes_and_of_no_dimension(tmp_path: Path):
    tensors = {
        "double": torch.arange(6, dtype=torch.float64).view(2, 3),
        "half": torch.tensor([1.5, -0.0], dtype=torch.float16),
        "scalar": torch.tensor(3.0),
    }
    checkpoint = write(tmp_path, tensors)
    for name, tensor in tensors.items():
        stored = checkpoint.tensors[name]
        assert (stored.shape, stored.torch_dtype) == (tuple(tensor.shape), tensor.dtype)
        assert bytes(stored.read()) == tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def test_integer_tensors_are_listed_but_not_edited(tmp_path: Path):
    checkpoint = write(tmp_path, {"packed": torch.zeros(4, dtype=torch.int32)})
    with pytest.raises(SpinError, match=r"stored as I32 cannot be edited(.|\n)*quantised"):
        _ = checkpoint.tensors["packed"].torch_dtype


def test_the_fingerprint_tells_models_apart_and_not_layouts_on_disk(tiny_folder: TinyFolder, tmp_path: Path):
    whole = Checkpoint(tiny_folder("llama")).fingerprint
    assert whole == Checkpoint(tiny_folder("llama", max_shard_size="20KB")).fingerprint
    assert (
        Checkpoint(tiny_folder("llama", chat=True)).identity.weights
        == Checkpoint(tiny_folder("llama")).identity.weights
    )
    others = [
        tiny_folder("llama", seed=1),
        tiny_folder("llama", dtype=torch.bfloat16),
        tiny_folder("qwen2"),
        tiny_folder("gpt2"),
    ]
    assert len({whole, *(Checkpoint(folder).fingerprint for folder in others)}) == 5
    one = write(tmp_path / "one", {"a": torch.zeros(2, 3)}).fingerprint
    assert one != write(tmp_path / "two", {"a": torch.zeros(3, 2)}).fingerprint
    assert one != write(tmp_path / "three", {"b": torch.zeros(2, 3)}).fingerprint
    assert one != write(tmp_path / "four", {"a": torch.ones(2, 3)}).fingerprint


def test_stored_names_may_lack_or_have_a_prefix(tmp_path: Path):
    checkpoint = write(tmp_path, {"h.0.mlp.weight": torch.zeros(1), "model.norm.weight": torch.zeros(1)})
    assert checkpoint.stored_name("h.0.mlp.weight") == "h.0.mlp.weight"
    assert checkpoint.stored_name("transformer.h.0.mlp.weight") == "h.0.mlp.weight"
    assert checkpoint.stored_name("norm.weight") == "model.norm.weight"
    for unknown in ("h.1.mlp.weight", "weight", "0.mlp.weights"):
        if unknown == "weight":
            with pytest.raises(SpinError, match="stores no tensor for the parameter weight"):
                checkpoint.stored_name(unknown)  # two candidates
        else:
            with pytest.raises(SpinError, match="save_pretrained"):
                checkpoint.stored_name(unknown)


def test_other_safetensors_beside_the_weights_are_not_read(tiny_folder: TinyFolder, tmp_path: Path):
    for shard in ("1GB", "20KB"):
        folder = Path(shutil.copytree(tiny_folder("llama", max_shard_size=shard), tmp_path / shard))
        before = Checkpoint(folder).fingerprint
        save_file({"lora": torch.zeros(2)}, folder / "adapter_model.safetensors")
        assert Checkpoint(folder).fingerprint == before


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        struct.pack("<Q", 10**9) + b"{}",
        struct.pack("<Q", 4) + b"nojs",
        struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 11) + b'{"a": {}   ',
        struct.pack("<Q", 9) + b'{"a": {}}',
    ],
)
def test_a_file_that_is_no_safetensors(data: bytes, tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(SpinError, match=r"model\.safetensors is not a readable safetensors file"):
        _ = Checkpoint(tmp_path).tensors


def test_a_truncated_file(tiny_folder: TinyFolder, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    with pytest.raises(SpinError, match=r"model\.safetensors is not a readable safetensors file(.|\n)*truncated"):
        _ = Checkpoint(folder).tensors
    file.write_bytes(data)
    last = max(Checkpoint(folder).tensors.values(), key=lambda stored: stored.start)
    file.write_bytes(data[:-100])  # it loses its end while it is used
    with pytest.raises(SpinError, match="ends before its last tensor"):
        last.read()


def test_an_index_that_is_not_json(tiny_folder: TinyFolder, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_folder("llama", max_shard_size="20KB"), tmp_path / "model"))
    for text in ("{", json.dumps({"no": "map"})):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(SpinError, match=r"model\.safetensors\.index\.json"):
            _ = Checkpoint(folder).tensors


def test_an_absent_folder(tmp_path: Path):
    with pytest.raises(SpinError, match="holds no safetensors weights"):
        _ = Checkpoint(tmp_path / "absent").tensors


def test_tiny_models_are_functions_of_their_seed():
    one, same, other = tiny.build("llama"), tiny.build("llama"), tiny.build("llama", seed=1)
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(left, right) for left, right, _ in pairs)
    assert not any(torch.equal(left, right) for left, _, right in pairs)
