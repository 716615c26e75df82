"""The header of a GGUF file, read with bounds before any library sees the file.

In: a path. Out: its metadata and where each tensor lies. Counts, lengths and offsets are held against the file's size
and against more than any model has, so that a hostile file costs neither memory nor time. Left out: the values of
arrays, and what the header means (gguf.py).

The layout (github.com/ggml-org/ggml, docs/gguf.md): magic, version, counts, metadata, tensor table, aligned data.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from spin_llm.errors import SpinError

MOST_ELEMENTS = 3_000_000  # of all arrays: the largest vocabularies with merges, scores and types have 1.5 million
MOST_BYTES = 2**28  # of all strings
MOST_TENSORS = 100_000
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """`shape` is rows first, as in PyTorch; `start` and `length` are bytes of the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    length: int


@dataclass(frozen=True)
class Array:
    kind: int
    count: int


Value = str | int | float | bool | Array


@dataclass(frozen=True)
class GgufHeader:
    """`metadata` by key: of an array, `Array` (its values are not kept)."""

    metadata: dict[str, Value]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def blocks(self) -> set[int]:
        """The numbers N of tensors `blk.N.…`."""
        numbers = (tensor.name.split(".")[1:2] for tensor in self.tensors if tensor.name.startswith("blk."))
        return {int(number[0]) for number in numbers if number and number[0].isdecimal()}


class _DamageError(Exception):
    """The header ends, or holds a number, where it cannot."""


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a GGUF file; SpinError when it is none, is damaged, or its tensors do not lie in the file."""
    try:
        with path.open("rb") as file:
            return _Reader(file, path.stat().st_size).header()
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

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
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
        return GgufHeader(metadata, tuple(self.placed(table, start)))

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
        return Array(kind, count)

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self.string(), self.number("<I")
        if len(name) > 200 or not 1 <= dimensions <= 4:
            raise _DamageError(f"the tensor {name[:60]!r} has {dimensions} dimensions")
        shape = tuple(self.number("<Q") for _ in range(dimensions))
        if 0 in shape:
            raise _DamageError(f"the tensor {name!r} is empty")
        return name, shape[::-1], self.number("<I"), self.number("<Q")

    def placed(self, table: list[tuple[str, tuple[int, ...], int, int]], start: int) -> Iterator[GgufTensor]:
        """The tensors with the bytes that they take, which must lie in the file and apart."""
        from gguf import GGML_QUANT_SIZES

        sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
        names: set[str] = set()
        end = start
        for name, shape, kind, offset in sorted(table, key=lambda row: row[3]):
            if kind not in sizes:
                raise _DamageError(f"the tensor {name!r} has the unknown type {kind}")
            values, width = sizes[kind]
            if shape[-1] % values:
                raise _DamageError(f"the tensor {name!r} has rows of {shape[-1]} values, in blocks of {values}")
            length = math.prod(shape) // values * width
            if start + offset + length > self.size:
                raise _DamageError(
                    f"the tensor {name!r} ends {start + offset + length - self.size:,} bytes after the file"
                )
            if name in names or start + offset < end:
                raise _DamageError(f"the tensor {name!r} is there twice or lies in another one")
            names.add(name)
            end = start + offset + length
            yield GgufTensor(name, shape, kind, start + offset, length)
