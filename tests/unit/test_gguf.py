"""GGUF files: a whole model is read bit for bit; every file that lacks or holds more, is another thing, or is damaged
is refused in words, and nothing of it is cached."""

from __future__ import annotations

import json
import random
import resource
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
import torch

from spin_llm.errors import SpinError
from spin_llm.models import cache_folder, load, resolve
from spin_llm.models.disk.gguf import Llama3Rope
from spin_llm.models.disk.headers import read_gguf_header
from spin_llm.models.disk.resolve import converter

PARTS = {
    **{"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"},
    **{"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"},
    **{"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
Tensors = dict[str, np.ndarray]


def place(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem not in TOP:
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{PARTS[rest]}.weight"
    return f"{TOP[stem]}.weight"


@pytest.fixture(scope="module")
def whole() -> tuple[dict[str, Any], Tensors]:
    """Metadata and tensors of the tiny Llama, as llama.cpp writes them."""
    core = json.loads(tiny.tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(core["vocab"], key=core["vocab"].get)
    tokens += [f"<|spare_{number}|>" for number in range(tiny.VOCABULARY - len(tokens))]
    sizes = {"block_count": 3, "context_length": 256, "embedding_length": 32, "feed_forward_length": 48}
    sizes |= {"attention.head_count": 4, "attention.head_count_kv": 2, "vocab_size": tiny.VOCABULARY}
    metadata: dict[str, Any] = {"general.architecture": "llama", "general.type": "model"}
    metadata |= {f"llama.{name}": size for name, size in sizes.items()}
    metadata |= {"llama.attention.layer_norm_rms_epsilon": 1e-6, "llama.rope.freq_base": 10_000.0}
    metadata |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens}
    metadata |= {"tokenizer.ggml.merges": [" ".join(pair) for pair in core["merges"]]}
    metadata |= {"tokenizer.ggml.token_type": [3 if i < 3 else 1 for i in range(tiny.VOCABULARY)]}
    metadata |= {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1}
    return metadata, {place(name): tensor.numpy() for name, tensor in tiny.build("llama").state_dict().items()}


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    """A GGUF file; integers as uint32, floats as float32; a value None leaves a key out."""
    writer = gguf.GGUFWriter(str(path), metadata["general.architecture"] or "")
    for key, value in metadata.items():
        if key == "general.architecture" or value is None:
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](key, value)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPIN_LLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached() -> list[str]:
    return sorted(path.name for path in cache_folder().glob("*") if path.name not in (".lock", "fingerprints"))


@pytest.mark.parametrize("name", ["small.gguf", "LARGE.GGUF", "sha256-0123"])
def test_a_whole_file_is_the_model(name: str, whole: tuple[dict[str, Any], Tensors], tmp_path: Path):
    """llama.cpp stores query and key weights with the halves of each head interleaved: only these are not compared."""
    loaded = load(str(write(tmp_path / name, *whole)), dtype="float32")
    for parameter, tensor in loaded.model.state_dict().items():
        if "q_proj" not in parameter and "k_proj" not in parameter:
            assert torch.equal(tensor, torch.from_numpy(whole[1][place(parameter)])), parameter
    assert [converter() in entry for entry in cached()] == [True]


def test_a_conversion_by_another_version_is_not_used(
    whole: tuple[dict[str, Any], Tensors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = str(write(tmp_path / "model.gguf", *whole))
    first = resolve(file)
    module = __import__(resolve.__module__, fromlist=["version"])
    monkeypatch.setattr(module, "version", lambda package: f"{package}-next")
    assert resolve(file) not in (first, None)
    assert len(cached()) == 2


Change = Callable[[dict[str, Any], Tensors], None]


def without(*names: str) -> Change:
    def change(metadata: dict[str, Any], tensors: Tensors) -> None:
        for name in [one for one in tensors if any(part in one for part in names)]:
            del tensors[name]

    return change


def setting(**values: Any) -> Change:
    return lambda metadata, tensors: metadata.update({key.replace("__", "."): value for key, value in values.items()})


def adding(name: str, *shape: int) -> Change:
    return lambda metadata, tensors: tensors.update({name: np.full(shape, 2.0, np.float32)})


def renaming(old: str, new: str) -> Change:
    return lambda metadata, tensors: tensors.update({new: tensors.pop(old)})


def a_nan(metadata: dict[str, Any], tensors: Tensors) -> None:
    name = "blk.1.ffn_up.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][3, 4] = np.nan


def only_a_lora(metadata: dict[str, Any], tensors: Tensors) -> None:
    tensors.clear()
    tensors.update({f"blk.0.attn_q.weight.lora_{x}": np.zeros((4, 32), np.float32) for x in "ab"})


WRONG: dict[str, tuple[Change, str]] = {
    "a tensor missing": (without("blk.1.ffn_up"), r"lacks .*blk\.1\.ffn_up\.weight"),
    "a norm missing": (without("output_norm"), r"lacks .*output_norm"),
    "the last layer missing": (without("blk.2."), r"announces 3 layers and holds 2 \(blk\.2"),
    "a middle layer missing": (without("blk.1."), r"announces 3 layers and holds 2 \(blk\.1"),
    "more layers than announced": (setting(llama__block_count=2), r"announces 2 layers and holds 3"),
    "countless layers": (setting(llama__block_count=2**32 - 1), r"announces 4294967295 layers and holds 3"),
    "another width": (setting(llama__feed_forward_length=2**31), "lacks tensors of its model"),
    "another head count": (setting(**{"llama.attention.head_count_kv": 4}), "lacks tensors of its model"),
    "biases without a place": (adding("blk.0.attn_q.bias", 32), r"no place.*blk\.0\.attn_q\.bias"),
    "a tensor of no layer": (adding("classifier.weight", 4, 32), r"no place.*classifier"),
    "a tensor under another name": (renaming("blk.0.ffn_up.weight", "blk.0.ffn_upp.weight"), r"lacks 1 .*mlp\.up_proj"),
    "NaN": (a_nan, r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"),
    "part of a split": (setting(**{"split.no": 1, "split.count": 3}), r"part 2 of 3(.|\n)*gguf-split --merge"),
    "a LoRA by its type": (setting(general__type="adapter"), "is a LoRA adapter"),
    "a LoRA by its tensors": (only_a_lora, "is a LoRA adapter"),
    "a projector": (setting(general__type="mmproj"), "projector of a multimodal model"),
    "no tensors": (without("."), "holds no tensors"),
    "no merges": (setting(tokenizer__ggml__merges=None), r"lacks tokenizer\.ggml\.merges"),
    "no tokens": (setting(tokenizer__ggml__tokens=None), r"lacks tokenizer\.ggml\.tokens"),
    "an embedding model": (setting(llama__pooling_type=1), "embedding or encoder model"),
    "not causal": (setting(llama__attention__causal=False), "embedding or encoder model"),
    "other rotary factors": (adding("rope_freqs.weight", 4), r"rope_freqs\.weight in a way that is not Llama 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_no_whole_model(name: str, whole: tuple[dict[str, Any], Tensors], tmp_path: Path):
    change, message = WRONG[name]
    metadata, tensors = dict(whole[0]), dict(whole[1])
    change(metadata, tensors)
    with pytest.raises(SpinError, match=message):
        load(str(write(tmp_path / "model.gguf", metadata, tensors)), dtype="float32")
    assert cached() == []


def test_an_architecture_that_cannot_be_read(whole: tuple[dict[str, Any], Tensors], tmp_path: Path):
    metadata = {key.replace("llama.", "newer."): value for key, value in whole[0].items()}
    file = write(tmp_path / "model.gguf", {**metadata, "general.architecture": "newer"}, whole[1])
    with pytest.raises(SpinError, match=r"architecture 'newer'(.|\n)*update transformers"):
        resolve(str(file))
    assert cached() == []


def test_a_folder_that_holds_one(whole: tuple[dict[str, Any], Tensors], tmp_path: Path):
    (tmp_path / "folder").mkdir()
    file = write(tmp_path / "folder" / "inside.gguf", *whole)
    with pytest.raises(SpinError, match=rf"give {file}"):
        resolve(str(tmp_path / "folder"))


def test_the_rotary_scaling_of_llama_3_is_kept(whole: tuple[dict[str, Any], Tensors], tmp_path: Path):
    """transformers' own frequencies for this configuration are the plain ones divided by the factors of the file."""
    metadata = {**whole[0], "llama.rope.freq_base": 500_000.0}
    factors = Llama3Rope(500_000.0, 8.0).factors(8)
    assert factors[0] == 1
    assert factors[-1] == 8
    file = write(tmp_path / "model.gguf", metadata, {**whole[1], "rope_freqs.weight": factors.numpy()})
    model = load(str(file), dtype="float32").model
    plain = 500_000.0 ** (-torch.arange(0, 8, 2) / 8)
    assert model.config.rope_parameters["rope_type"] == "llama3"
    assert torch.allclose(model.model.rotary_emb.inv_freq, plain / factors)


def header(*parts: bytes, version: int = 3, tensors: int = 0, pairs: int = 0) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, pairs) + b"".join(parts)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str = "t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HOSTILE = {
    "empty": b"",
    "magic alone": b"GGUF",
    "another kind of file": b"PK\x03\x04" + bytes(100),
    "version 1": header(version=1),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64),
    "countless tensors": header(tensors=2**63),
    "countless values": header(pairs=2**62),
    "a long text": header(struct.pack("<Q", 2**62), pairs=1),
    "a long array": header(pair("k", 9, struct.pack("<IQ", 0, 2**62)), pairs=1),
    "many texts": header(pair("k", 9, struct.pack("<IQ", 8, 2**40)), pairs=1),
    "nested arrays": header(pair("k", 9, struct.pack("<IQIQ", 9, 1, 9, 1)), pairs=1),
    "an unknown type": header(pair("k", 99, b""), pairs=1),
    "no text": header(struct.pack("<Q", 2) + b"\xff\xfe", bytes(40), pairs=1),
    "a key twice": header(pair("k", 0, b"a"), pair("k", 0, b"a"), pairs=2),
    "an odd alignment": header(pair("general.alignment", 4, struct.pack("<I", 33)), pairs=1),
    "no alignment": header(pair("general.alignment", 4, bytes(4)), pairs=1),
    "many dimensions": header(text("t") + struct.pack("<I", 2**31), tensors=1),
    "an empty tensor": header(tensor(shape=(0,)), bytes(64), tensors=1),
    "a huge tensor": header(tensor(shape=(2**40, 2**20)), bytes(64), tensors=1),
    "an overflowing tensor": header(tensor(shape=(2**63, 2**63)), bytes(64), tensors=1),
    "an unknown tensor type": header(tensor(kind=777), bytes(256), tensors=1),
    "a tensor after the end": header(tensor(offset=2**62), bytes(256), tensors=1),
    "half a block": header(tensor(shape=(31,), kind=2), bytes(256), tensors=1),
    "a name twice": header(tensor(), tensor(offset=128), bytes(512), tensors=2),
    "one in another": header(tensor("a"), tensor("b", offset=64), bytes(512), tensors=2),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_one_message(name: str, tmp_path: Path):
    file = tmp_path / "bad.gguf"
    file.write_bytes(HOSTILE[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SpinError, match=r"bad\.gguf could not be read as a GGUF file"):
        resolve(str(file))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "KiB"
    assert cached() == []


def test_mutants_are_read_or_refused(whole: tuple[dict[str, Any], Tensors], tmp_path: Path):
    """No header makes the reader raise anything but SpinError."""
    data = write(tmp_path / "model.gguf", *whole).read_bytes()
    assert len(read_gguf_header(tmp_path / "model.gguf").tensors) == len(whole[1])
    table = data.index(b"token_embd.weight")
    draw, file, refused = random.Random(0), tmp_path / "mutant.gguf", 0
    for _ in range(300):
        mutant = bytearray(data)
        for _ in range(draw.choice((1, 2, 8))):
            start = draw.choice((draw.randrange(200), draw.randrange(table - 100, table + 1500)))
            mutant[start : start + 8] = draw.choice((draw.randbytes(8), bytes(8), b"\xff" * 8, draw.randbytes(1)))
        file.write_bytes(mutant if draw.random() < 0.8 else mutant[: draw.randrange(len(mutant))])
        try:
            read_gguf_header(file)
        except SpinError:
            refused += 1
    assert refused > 100
