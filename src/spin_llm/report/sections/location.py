"""Where the edit sits: edited weights per layer and matrix.

In: `edit` of results.json. Out: a `Place`, a layers x matrices table of counts with its totals.
Matrices that repeat inside a layer (experts) are added up under one name with `*` for their number.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """All matrices of one name over the layers. `share` is the edited fraction of their entries."""

    name: str
    matrices: int
    weights: int
    share: float


@dataclass(frozen=True)
class Place:
    """`counts[layer][column]` edited weights; `layers` and `columns` name the two axes."""

    layers: list[int]
    columns: list[str]
    counts: list[list[int]]
    kinds: list[Kind]

    @property
    def row_totals(self) -> list[int]:
        return [sum(row) for row in self.counts]


def edit_place(edit: dict[str, Any]) -> Place:
    """Count the edited weights per layer and matrix; layers up to the last one named, those without an edit as 0."""
    per_matrix: dict[str, int] = edit.get("per_matrix", {})
    weights: Counter[tuple[int, str]] = Counter()
    by_kind: dict[str, list[str]] = {}
    for name, count in per_matrix.items():
        layer = edit["layers"][name]
        column = matrix_column(name, layer)
        weights[layer, column] += count
        by_kind.setdefault(column, []).append(name)
    layers = list(range(max(layer for layer, _ in weights) + 1)) if weights else []
    columns = list(by_kind)
    kinds = []
    for column, names in by_kind.items():
        edited = sum(per_matrix[name] for name in names)
        entries = sum(math.prod(edit["shapes"][name]) for name in names)
        kinds.append(Kind(column, len(names), edited, edited / max(entries, 1)))
    return Place(layers, columns, [[weights[layer, column] for column in columns] for layer in layers], kinds)


def matrix_column(name: str, layer: int) -> str:
    """`model.layers.3.mlp.up_proj.weight` in layer 3 -> `mlp.up_proj`."""
    tail = name.split(f".{layer}.", 1)[-1].removesuffix(".weight")
    return re.sub(r"\.\d+(?=\.|$)", ".*", tail)
