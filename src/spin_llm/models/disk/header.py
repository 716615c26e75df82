"""A safetensors file's header: which bytes are which tensor.

In: a file. Out: its tensors by name with dtype, shape and place, checked against the file's length. Left out: which
files a model is read from (checkpoint.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from spin_llm.errors import SpinError
from spin_llm.files import decoded

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

    def fingerprint(self, sha256: str) -> dict[str, object]:
        """Shape, dtype and the digest of the stored bytes, as a patch records them."""
        return {"shape": list(self.shape), "dtype": self.dtype, "sha256": sha256}


@dataclass(frozen=True)
class _Entry:
    """What a safetensors header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name; SpinError when the library that transformers reads it with does not
    take it: an end before the last tensor, offsets that overlap or leave holes, shapes that are not the lengths'."""
    try:
        with safe_open(path, "pt"), path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = decoded(file.read(size), dict[str, msgspec.Raw], f"The header of {path}")
    except (SafetensorError, OSError) as error:
        raise SpinError(
            f"{path} is not a readable safetensors file: {error}.",
            cause="it is truncated, or another kind of file.",
            change="fetch or make the file again.",
        ) from None
    header.pop("__metadata__", None)
    tensors = {}
    for name, raw in header.items():
        entry = decoded(bytes(raw), _Entry, f"The header of {path}")
        start, stop = entry.data_offsets
        tensors[name] = StoredTensor(path, 8 + size + start, stop - start, entry.dtype, entry.shape)
    return tensors
