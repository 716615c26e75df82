"""The headers of model files: which bytes are which tensor.

In: a safetensors or a GGUF file. Out: its tensors by name with dtype, shape and place; of a GGUF file its metadata too.
A safetensors header is checked by the library that transformers reads it with. A GGUF header is read here, with bounds,
before any library sees the file: counts, lengths and offsets are held against the file's size and against more than any
model has, so that a hostile file costs neither memory nor time. Left out: which files a model is read from
(checkpoint.py); the values of GGUF arrays, and what a GGUF header means (gguf.py).

The layout of GGUF (github.com/ggml-org/ggml, docs/gguf.md): magic, version, counts, metadata, tensor table, aligned
data.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from spin_llm.errors import SpinError
from spin_llm.files import decoded

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MOST_ELEMENTS = 3_000_000  # of all arrays: the largest vocabularies with merges, scores and types have 1.5 million
MOST_BYTES = 2**28  # of all strings
MOST_TENSORS = 100_000
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `file`, byte `start` and `length` in it, `dtype` (the code of safetensors, or of GGUF) and
    `shape` (rows first, as in PyTorch)."""

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


@dataclass(frozen=True)
class Array:
    count: int


Value = str | int | float | bool | Array


@dataclass(frozen=True)
class GgufHeader:
    """`metadata` by key: of an array, `Array` (its values are not kept); the tensors by name, as they lie."""

    metadata: dict[str, Value]
    tensors: dict[str, StoredTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def blocks(self) -> set[int]:
        """The numbers N of tensors `blk.N.…`."""
        numbers = (name.split(".")[1:2] for name in self.tensors if name.startswith("blk."))
        return {int(number[0]) for number in numbers if number and number[0].isdecimal()}


class _DamageError(Exception):
    """The header ends, or holds a number, where it cannot."""


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a GGUF file; SpinError when it is none, is damaged, or its tensors do not lie in the file."""
    try:
        with path.open("rb") as file:
            return _Reader(path, file).header()
    except OSError as error:
        raise SpinError(f"{path} could not be read: {error.strerror}.") from None
    except (_DamageError, struct.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
        found = str(error) if isinstance(error, _DamageError) else "it ends early or holds what is no text"
        raise SpinError(
            f"{path} could not be read as a GGUF file: {found}.",
            cause="a download or copy that was cut, a damaged file, or another kind of file.",
            change="fetch the file again; its size and SHA-256 are on the page that it came from.",
        ) from None


class _Reader:
    """Reads forward; every length is held against what is left of the file and of the bounds above."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.size = path, file, path.stat().st_size
        self.elements, self.text = 0, 0

    def header(self) -> GgufHeader:
        if self.file.read(4) != b"GGUF":
            raise _DamageError("it does not begin with GGUF")
        version = self.number("<I")
        if version not in (2, 3):
            order = " (big-endian)" if version & 0xFFFF == 0 and version else ""
            raise _DamageError(f"it has version {version}{order}, where 2 and 3 are known")
        tensors, pairs = self.number("<Q"), self.number("<Q")
        if tensors > MOST_TENSORS or pairs > MOST_TENSORS:
            raise _DamageError(f"it announces {tensors:,} tensors and {pairs:,} metadata values")
        metadata: dict[str, Value] = {}
        for _ in range(pairs):
            key = self.string()
            if key in metadata:
                raise _DamageError(f"it has {key[:60]!r} twice")
            metadata[key] = self.value()
        table = [self.tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
            raise _DamageError(f"its alignment is {str(alignment)[:20]}")
        start = -(-self.file.tell() // alignment) * alignment
        return GgufHeader(metadata, self.placed(table, start))

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.file.read(struct.calcsize(code)))[0]

    def string(self) -> str:
        return self.file.read(self.text_length()).decode("utf-8")

    def text_length(self) -> int:
        length: int = self.number("<Q")
        self.text += length
        if length > self.size - self.file.tell() or self.text > MOST_BYTES:
            raise _DamageError(f"it holds a text of {length:,} bytes")
        return length

    def value(self) -> Value:
        kind = self.number("<I")
        if kind in SCALARS:
            scalar: int | float | bool = self.number(SCALARS[kind])
            return scalar
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise _DamageError(f"it holds a value of the unknown type {kind}")
        kind, count = self.number("<I"), self.number("<Q")
        self.elements += count
        if kind not in SCALARS and kind != STRING:
            raise _DamageError(f"it holds an array of the unknown type {kind}")
        width = struct.calcsize(SCALARS.get(kind, "<Q"))  # of a text at least its length
        if self.elements > MOST_ELEMENTS or count * width > self.size - self.file.tell():
            raise _DamageError(f"it holds an array of {count:,} values")
        if kind == STRING:
            for _ in range(count):
                self.file.seek(self.text_length(), 1)
        else:
            self.file.seek(count * width, 1)
        return Array(count)

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self.string(), self.number("<I")
        if len(name) > 200 or not 1 <= dimensions <= 4:
            raise _DamageError(f"the tensor {name[:60]!r} has {dimensions} dimensions")
        shape = tuple(self.number("<Q") for _ in range(dimensions))
        if 0 in shape:
            raise _DamageError(f"the tensor {name!r} is empty")
        return name, shape[::-1], self.number("<I"), self.number("<Q")

    def placed(self, table: list[tuple[str, tuple[int, ...], int, int]], start: int) -> dict[str, StoredTensor]:
        """The tensors with the bytes that they take, which must lie in the file and apart."""
        from gguf import GGML_QUANT_SIZES

        sizes = {int(kind): (kind.name, *size) for kind, size in GGML_QUANT_SIZES.items()}
        found: dict[str, StoredTensor] = {}
        end = start
        for name, shape, kind, offset in sorted(table, key=lambda row: row[3]):
            if kind not in sizes:
                raise _DamageError(f"the tensor {name!r} has the unknown type {kind}")
            dtype, values, width = sizes[kind]
            if shape[-1] % values:
                raise _DamageError(f"the tensor {name!r} has rows of {shape[-1]} values, in blocks of {values}")
            length = math.prod(shape) // values * width
            if start + offset + length > self.size:
                raise _DamageError(
                    f"the tensor {name!r} ends {start + offset + length - self.size:,} bytes after the file"
                )
            if name in found or start + offset < end:
                raise _DamageError(f"the tensor {name!r} is there twice or lies in another one")
            end = start + offset + length
            found[name] = StoredTensor(self.path, start + offset, length, dtype, shape)
        return found
