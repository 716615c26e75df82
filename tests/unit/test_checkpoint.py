"""A checkpoint as bytes: tensors where the header says they are, in one file or in shards; fingerprints; bad files."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import TinyFolder
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.modeling_utils import _get_resolved_checkpoint_files

from spin_llm.errors import SpinError
from spin_llm.models import Checkpoint, load
from spin_llm.models.disk.checkpoint import weight_files
from spin_llm.models.disk.headers import read_header


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


def test_a_header_says_what_the_safetensors_library_says(tmp_path: Path):
    """Names, shapes and types of every kind of tensor: the library is the oracle, and metadata is none of them."""
    kinds = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    shapes = ((), (0,), (3,), (2, 1), (2, 3, 4))
    tensors = {
        f"{kind}.{'x'.join(map(str, shape))}": torch.zeros(shape, dtype=getattr(torch, kind))
        for kind in kinds
        for shape in shapes
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt", "float32.3": "no tensor"})
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        expected = {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    assert {name: (one.dtype, one.shape) for name, one in read_header(path).items()} == expected
    assert len(expected) == len(tensors)


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


# What is read is what transformers loads


def by_transformers(folder: Path) -> list[Path]:
    """The files that transformers' own loader resolves."""
    named = json.loads((folder / "config.json").read_text()).get("transformers_weights")
    found, _ = _get_resolved_checkpoint_files(str(folder), None, None, None, None, False, named)
    return [Path(file) for file in found]


def of_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def stray(name: str) -> Callable[[Path], object]:
    return lambda folder: save_file({"model.norm.weight": torch.zeros(32)}, folder / name, metadata={"format": "pt"})


def into_a_subfolder(folder: Path) -> None:
    (folder / "parts").mkdir()
    for shard in folder.glob("model-*.safetensors"):
        shard.rename(folder / "parts" / shard.name)
    change_index(
        folder, lambda index: index.update(weight_map={k: f"parts/{v}" for k, v in index["weight_map"].items()})
    )


def renamed(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    of_config(folder, transformers_weights="other.safetensors")


CLEAR: dict[str, tuple[str, Callable[[Path], object]]] = {
    "one file": ("1GB", lambda folder: None),
    "shards": ("20KB", lambda folder: None),
    "shards in a subfolder": ("20KB", into_a_subfolder),
    "a name in the configuration": ("1GB", renamed),
    "a variant": ("1GB", stray("model.fp16.safetensors")),
    "a variant's index": (
        "20KB",
        lambda folder: shutil.copy(
            folder / "model.safetensors.index.json", folder / "model.safetensors.index.fp16.json"
        ),
    ),
    "another format": ("20KB", stray("consolidated.safetensors")),
    "an index whose files are gone": (
        "1GB",
        lambda folder: (folder / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "gone.safetensors"}}'
        ),
    ),
    "an index of the one file": (
        "1GB",
        lambda folder: (folder / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "model.safetensors"}}'
        ),
    ),
    "pickles": ("1GB", lambda folder: (folder / "pytorch_model.bin").write_bytes(b"no")),
    "a tensor that is in none of the files": (
        "20KB",
        lambda folder: change_index(
            folder, lambda index: index["weight_map"].update(tied="model-00001-of-00007.safetensors")
        ),
    ),
}


@pytest.mark.parametrize("layout", CLEAR)
def test_the_files_are_those_that_transformers_loads(layout: str, tiny_folder: TinyFolder, tmp_path: Path):
    shard, change = CLEAR[layout]
    folder = Path(shutil.copytree(tiny_folder("llama", max_shard_size=shard), tmp_path / "model"))
    change(folder)
    assert weight_files(folder) == by_transformers(folder)
    loaded = load(str(folder), dtype="float32")
    for name, parameter in loaded.model.named_parameters():
        stored = loaded.checkpoint.tensors[loaded.checkpoint.stored_name(name)]
        assert torch.equal(torch.frombuffer(stored.read(), dtype=torch.float32).view(stored.shape), parameter)


def second_copy(folder: Path) -> None:
    """A tensor that is in two shards, with other values in the second."""
    first, last = (sorted(folder.glob("model-*.safetensors"))[place] for place in (0, -1))
    name = next(iter(load_file(first)))
    save_file({**load_file(last), name: load_file(first)[name] + 1}, last, metadata={"format": "pt"})


def exchanged(folder: Path) -> None:
    """An index that puts a tensor into a shard that does not hold it."""

    def change(index: dict[str, Any]) -> None:
        places = index["weight_map"]
        name = next(name for name, place in places.items() if list(places.values()).count(place) > 1)
        places[name] = next(place for place in places.values() if place != places[name])

    change_index(folder, change)


UNCLEAR: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "one file and shards": (
        "20KB",
        stray("model.safetensors"),
        r"model\.safetensors and model\.safetensors\.index\.json",
    ),
    "a name and one file": (
        "1GB",
        lambda folder: (
            stray("other.safetensors")(folder),
            of_config(folder, transformers_weights="other.safetensors"),
        ),
        r"other\.safetensors and model\.safetensors",
    ),
    "a tensor in two shards": ("20KB", second_copy, r"00001-of-.*00007-of-.*both hold the tensor"),
    "an index that contradicts its shards": ("20KB", exchanged, r"by the index"),
    "an adapter": ("1GB", lambda folder: (folder / "adapter_config.json").write_text("{}"), r"adapter_config\.json"),
    "a distributed training": ("1GB", stray("shard-00001-model-00001-of-00002.safetensors"), "shard-"),
}


@pytest.mark.parametrize("layout", UNCLEAR)
def test_a_folder_in_which_it_is_unclear_what_is_loaded_is_refused(
    layout: str, tiny_folder: TinyFolder, tmp_path: Path
):
    shard, change, words = UNCLEAR[layout]
    folder = Path(shutil.copytree(tiny_folder("llama", max_shard_size=shard), tmp_path / "model"))
    change(folder)
    with pytest.raises(SpinError, match=f"It is not clear which weights(.|\n)*{words}"):
        load(str(folder))


def test_weights_that_transformers_would_not_load_are_not_read(tiny_folder: TinyFolder, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / "extra.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"transformers would unpickle this")
    with pytest.raises(SpinError, match=r"holds no safetensors weights(.|\n)*not extra\.safetensors"):
        load(str(folder))


# Names that leave the folder, and other damage


OUTSIDE = ("../victim/model.safetensors", "parts/../../victim/model.safetensors", "..\\victim\\x", "C:\\x", "/dev/zero")
NAMES = (*OUTSIDE, "", ".", "..", "./model.safetensors", "a//b", "a\0b", "a\nb", "x" * 300, 1, None, [], {}, True)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:20])
def test_a_name_that_is_no_file_of_the_folder_is_refused(name: Any, tiny_folder: TinyFolder, tmp_path: Path):
    """In the index and in the configuration; the file that is named is there and stays as it is."""
    victim = Path(shutil.copytree(tiny_folder("llama"), tmp_path / "victim"))
    before = tiny.folder_bytes(victim)
    for number, shard in enumerate(("20KB", "1GB")):
        folder = Path(shutil.copytree(tiny_folder("llama", max_shard_size=shard), tmp_path / str(number)))
        if shard == "20KB":
            change_index(folder, lambda index: index["weight_map"].update(a=name))
        elif name is not None:  # null: it names none
            of_config(folder, transformers_weights=name)
        else:
            continue
        with pytest.raises(SpinError, match=r"not a file of that folder|cannot be read"):
            load(str(folder))
    absolute = str(tmp_path / "victim" / "model.safetensors")
    change_index(tmp_path / "0", lambda index: index.update(weight_map={"a": absolute}))
    with pytest.raises(SpinError, match="not a file of that folder"):
        _ = Checkpoint(tmp_path / "0").tensors
    assert tiny.folder_bytes(victim) == before


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS: dict[str, bytes] = {
    "negative offsets": json.dumps({"a": {**ENTRY, "data_offsets": [-4, 0]}}).encode(),
    "offsets beyond the end": json.dumps({"a": {**ENTRY, "shape": [99], "data_offsets": [0, 396]}}).encode(),
    "offsets that overlap": json.dumps({"a": ENTRY, "b": ENTRY}).encode(),
    "a hole": json.dumps({"a": {**ENTRY, "shape": [0], "data_offsets": [0, 0]}}).encode(),
    "a negative shape": json.dumps({"a": {**ENTRY, "shape": [-1]}}).encode(),
    "a shape of another length": json.dumps({"a": {**ENTRY, "shape": [2]}}).encode(),
    "a shape beyond all memory": json.dumps({"a": {**ENTRY, "shape": [2**62, 2**62]}}).encode(),
    "an unknown type": json.dumps({"a": {**ENTRY, "dtype": "Q4"}}).encode(),
    "a name twice": b'{"a":%s,"a":%s}' % ((json.dumps({**ENTRY, "data_offsets": [4, 8]}).encode(),) * 2),
    "an entry that is a list": json.dumps({"a": ["F32", [1], [0, 4]]}).encode(),
    "deep nesting": b"[" * 5000,
    "fractions": json.dumps({"a": {**ENTRY, "shape": [1.0]}}).encode(),
}


@pytest.mark.parametrize("damage", HEADERS)
def test_a_damaged_header_is_one_message(damage: str, tmp_path: Path):
    header = HEADERS[damage]
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    with pytest.raises(SpinError, match=r"model\.safetensors"):
        _ = Checkpoint(tmp_path).tensors


def test_odd_names_of_tensors_are_names(tmp_path: Path):
    names = ("", "../up", "a\nb", "a.indices", "é" * 300)
    checkpoint = write(tmp_path, {name: torch.full((2,), float(place)) for place, name in enumerate(names)})
    found = {
        name: torch.frombuffer(stored.read(), dtype=torch.float32)[0] for name, stored in checkpoint.tensors.items()
    }
    assert found == {name: place for place, name in enumerate(names)}


def test_an_absent_folder(tmp_path: Path):
    with pytest.raises(SpinError, match="holds no safetensors weights"):
        _ = Checkpoint(tmp_path / "absent").tensors


def test_tiny_models_are_functions_of_their_seed():
    one, same, other = tiny.build("llama"), tiny.build("llama"), tiny.build("llama", seed=1)
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(left, right) for left, right, _ in pairs)
    assert not any(torch.equal(left, right) for left, _, right in pairs)
