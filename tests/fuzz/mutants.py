"""Damaged copies of a file: its bytes, its JSON, its rows, the header of a safetensors file.

In: a file's bytes, a random generator. Out: other bytes. What is drawn depends on the generator alone, so that a mutant
is found again by its reader and number. Left out: what a reader makes of them (readers.py).
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable
from copy import deepcopy
from typing import Any

DEEP = "\x00deep\x00"  # stands for lists 100,000 deep, which json cannot write
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3.5, -0.0, 10**30, -(10**30), 2**63, -(2**63), 10**400, 10**12),
    *(1e308, -1e308, 1e-320, float("nan"), float("inf"), float("-inf"), "", "x" * 100_000, "\ud800", "\x00", "nan"),
    *("../../victim/model.safetensors", "/dev/zero", "https://example.org/x", "base", "aware", "fairness", "I64"),
    *([], {}, [None], [[]], {"a": None}, {"": {}}, [1, 2], ["a", "b"], list(range(2000)), DEEP),
)
Mutator = Callable[[bytes, random.Random], bytes]


def of_bytes(data: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, cut out, put in, repeated or moved."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at, length = draw.randrange(len(found) + 1), draw.choice((1, 1, 2, 8, 64, 512))
        kind = draw.randrange(8)
        if kind == 0:
            del found[at : at + length]
        elif kind == 1:
            found[at:at] = draw.randbytes(length)
        elif kind == 2:
            found[at:at] = found[at : at + length] * draw.choice((1, 2, 100))
        elif kind == 3:
            del found[at:]
        elif kind == 4 and at < len(found):
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 5:
            found[at : at + length] = bytes(length)
        elif kind == 6:
            found[at : at + 8] = struct.pack("<q", draw.choice((-1, 2**62, -(2**63), 0, 255, 2**32)))
        else:
            found[at : at + length] = b"\xff" * length
    return bytes(found)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON value."""
    found, left = [], [value]
    while left:
        one = left.pop()
        items = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        for key, part in items:
            found.append((one, key))
            left.append(part)
    return found


def of_value(value: Any, draw: random.Random) -> Any:
    """The value with one place, or a few, damaged: keys gone or renamed, other types, doubled and swapped parts."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        inside = places(value)
        if not inside:
            return deepcopy(draw.choice(VALUES))
        container, key = draw.choice(inside)
        kind, part = draw.randrange(8), container[key]
        if kind == 0 or (kind == 1 and isinstance(container, list)):
            del container[key]
        elif kind == 1:
            container[draw.choice(("", f"{key} ", str(key).upper(), "metric", "x" * 1000))] = container.pop(key)
        elif kind == 2 and isinstance(container, list):
            container.insert(key, deepcopy(part))
        elif kind == 3:
            other, at = draw.choice(inside)
            container[key] = json.loads(json.dumps(other[at])) if at in range(len(other)) or at in other else None
        elif kind == 4 and isinstance(part, int | float) and not isinstance(part, bool):
            container[key] = draw.choice((-part, part + 1, part * 3, str(part), [part], part * 10**6, {"": part}))
        elif kind == 5 and isinstance(part, str):
            container[key] = draw.choice((part[:-1], part * 50, part.upper(), [part], {part: part}, part + "\u202e"))
        else:
            container[key] = deepcopy(draw.choice(VALUES))
    return value


def written(value: Any, **options: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, **options)
    text = text.replace(json.dumps(DEEP, ensure_ascii=False), "[" * 100_000 + "]" * 100_000)
    return text.encode("utf-8", "surrogatepass")


def of_json(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.25:
        return of_bytes(data, draw)
    return written(of_value(json.loads(data), draw))


def of_rows(data: bytes, draw: random.Random) -> bytes:
    """JSON lines with rows damaged, gone, doubled, in another order, or their models swapped."""
    if draw.random() < 0.25:
        return of_bytes(data, draw)
    rows = [json.loads(line) for line in data.splitlines()]
    kind, at = draw.randrange(8), draw.randrange(len(rows))
    if kind == 0:
        del rows[at:]
    elif kind == 1:
        del rows[at]
    elif kind == 2:
        rows.insert(draw.randrange(len(rows)), rows[at])
    elif kind == 3:
        draw.shuffle(rows)
    elif kind == 4:
        swapped = {"base": "edited", "edited": "base"}
        rows = [row | {"model": swapped.get(row.get("model"), "base")} for row in rows]
    else:
        rows[at] = of_value(rows[at], draw)
    return b"".join(written(row) + b"\n" for row in rows)


def of_safetensors(data: bytes, draw: random.Random) -> bytes:
    """Header or tensors damaged; half of the time sealed anew, so that what is under the seal is met, too."""
    size = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + size]), data[8 + size :]
    kind = draw.randrange(8)
    if kind == 0:
        return of_bytes(data, draw)
    if kind == 1:
        return struct.pack("<Q", draw.choice((0, 1, size - 1, size + 1, 2**20, 2**31, 2**62, 2**63))) + data[8:]
    if kind in (2, 3):
        tensors = of_bytes(tensors, draw)
    elif kind in (4, 5):
        about = {name: text for name, text in header["__metadata__"].items() if text[:1] in "{["}
        name = draw.choice(list(about) or [""])
        if name:
            value = of_value(json.loads(about[name]), draw)
            header["__metadata__"][name] = written(value).decode("utf-8", "replace")
    else:
        of_value(header, draw)
    return sealed(header, tensors) if draw.random() < 0.75 else packed(header, tensors)


def packed(header: Any, tensors: bytes) -> bytes:
    text = written(header, separators=(",", ":"))
    return struct.pack("<Q", len(text)) + text + tensors


def sealed(header: Any, tensors: bytes) -> bytes:
    """The file with a seal that fits, as files.py makes them, where it had one."""
    about = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(about, dict) or not isinstance(about.get("sha256"), str):
        return packed(header, tensors)
    about["sha256"] = "0" * 64
    data = packed(header, tensors)
    digest = hashlib.sha256(data[8:]).hexdigest()
    return data[:8] + data[8:].replace(b"0" * 64, digest.encode(), 1)


def of_text(data: bytes, draw: random.Random) -> bytes:
    """A csv or tsv file: bytes, and cells that csv knows in particular."""
    if draw.random() < 0.5:
        return of_bytes(data, draw)
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    cells = lines[at].split(b",")
    cells[draw.randrange(len(cells))] = draw.choice(
        (b"", b'"', b'"""', b'"a\nb"', b"\x00", b"\xff\xfe", b"x" * 200_000, b",,,,", b"\r", b"prompt", b"1e400", b"=1")
    )
    lines[at] = b",".join(cells)
    return b"\n".join(lines)
