"""A checkpoint on disk as bytes: which safetensors file holds which tensor, and where.

In: a folder with `*.safetensors` (sharded or not). Out: a map from tensor name to file, dtype, shape and byte range,
the raw bytes of any one tensor, and digests. Reading is by offset, so memory does not grow with the model. Left out:
pickled checkpoints (`*.bin`), which are never read, and what the tensors mean.

The safetensors layout: 8 bytes little-endian header length N, N bytes of JSON, then the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from spin_llm.errors import SpinError
from spin_llm.files import read_json, sha256_json
from spin_llm.models.identity import Identity, identity_of

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `file`, byte `start` and `length` in it, `dtype` (safetensors code) and `shape`."""

    file: Path
    start: int
    length: int
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> bytearray:
        """The tensor's bytes as stored."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            data = bytearray(file.read(self.length))
        if len(data) != self.length:
            raise SpinError(
                f"{self.file} ends before its last tensor.",
                cause="an interrupted download or copy.",
                change="fetch the checkpoint again.",
            )
        return data

    @property
    def torch_dtype(self) -> torch.dtype:
        """SpinError for the quantised and integer types, whose stored numbers are not weights."""
        if self.dtype not in DTYPES:
            raise SpinError(
                f"Weights stored as {self.dtype} cannot be edited.",
                cause="a quantised checkpoint.",
                change="use the float16, bfloat16 or float32 checkpoint that it was made from.",
            )
        return DTYPES[self.dtype]

    def fingerprint(self, sha256: str) -> dict[str, Any]:
        """Shape, dtype and the digest of the stored bytes, as a patch records them."""
        return {"shape": list(self.shape), "dtype": self.dtype, "sha256": sha256}


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """(header, offset of the first tensor byte) of one safetensors file; SpinError when it is not one."""
    broken = SpinError(
        f"{path} is not a readable safetensors file.",
        cause="it is truncated, or another kind of file.",
        change="fetch or make the file again.",
    )
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > path.stat().st_size:
                raise broken
            header = json.loads(file.read(size))
    except (struct.error, ValueError):
        raise broken from None
    except OSError as error:
        raise SpinError(f"{path} could not be read: {error.strerror}.") from None
    if not isinstance(header, dict):
        raise broken
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    if not all(isinstance(entry, dict) and entry.keys() >= {"data_offsets", "dtype", "shape"} for entry in entries):
        raise broken
    return header, 8 + size


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds a model in safetensors files; an adapter's folder with the folder of its `base`."""

    folder: Path
    base: Path | None = None

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every stored tensor by name, over all files."""
        found: dict[str, StoredTensor] = {}
        for file in weight_files(self.folder):
            header, base = read_header(file)
            for name, entry in header.items():
                if name != "__metadata__":
                    start, end = entry["data_offsets"]
                    found[name] = StoredTensor(file, base + start, end - start, entry["dtype"], tuple(entry["shape"]))
        return found

    @cached_property
    def identity(self) -> Identity:
        """Hashes of weights, configuration, tokenizer, chat template and generation settings."""
        base = (self.base, Checkpoint(self.base).identity) if self.base else None
        return identity_of(self.folder, self.tensors, base)

    @property
    def fingerprint(self) -> str:
        """One digest of the identity."""
        return self.identity.digest

    @cached_property
    def sampled_fingerprint(self) -> str:
        """What version 0.1.0 called the fingerprint: names, shapes and dtypes of all tensors, and 4 KiB from the middle
        of each. Judge files and older records carry it; a light edit of a model mostly has the same, which is how a
        judge is told to be the model under edit."""
        return sha256_json({name: [t.dtype, list(t.shape), _sample_digest(t)] for name, t in self.tensors.items()})

    def stored_name(self, name: str) -> str:
        """The name under which the file stores a loaded model's parameter `name` (base-model prefixes may differ)."""
        if name in self.tensors:
            return name
        matches = [key for key in self.tensors if key.endswith("." + name) or name.endswith("." + key)]
        if len(matches) != 1:
            raise SpinError(
                f"The checkpoint {self.folder} stores no tensor for the parameter {name}.",
                cause="transformers renames or fuses this architecture's weights when it loads them.",
                change="save the model once with transformers' save_pretrained and use that folder.",
            )
        return matches[0]


def _sample_digest(tensor: StoredTensor) -> str:
    span = min(4096, tensor.length)
    with tensor.file.open("rb") as file:
        file.seek(tensor.start + (tensor.length - span) // 2)
        return hashlib.sha256(file.read(span)).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, by its index where it has one (adapters and other extras are not read)."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = read_json(index)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict):
            raise SpinError(f"{index} names no files: it has no weight_map.", cause="a damaged download.")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise SpinError(
                f"{folder} lacks {', '.join(missing)}, named by its index.", cause="an incomplete download."
            )
        return files
    files = [folder / "model.safetensors"] if (folder / "model.safetensors").is_file() else []
    files = files or sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        raise SpinError(
            f"{folder} holds no safetensors weights.",
            cause=f"it holds pickled weights ({', '.join(pickled)}), which are never read." if pickled else "",
            change="convert the model with transformers' save_pretrained(safe_serialization=True).",
        )
    return files
