"""Where the edit sits, what the sets of weights share, and what would be chosen from other examples.

In: `edit`, `overlap` and `stability` of results.json. Out: a `Place`, a layers x matrices table of counts with its
totals; an `Overlap`; sentences. Absent parts come out empty. Left out: the pictures (figures/location.py).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from spin_llm.results.edited import Edit, Regions, Stability, matrix_column


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


def edit_place(edit: Edit) -> Place:
    """Count the edited weights per layer and matrix; layers up to the last one named, those without an edit as 0."""
    weights: Counter[tuple[int, str]] = Counter()
    by_kind: dict[str, list[str]] = {}
    for name, count in edit.per_matrix.items():
        layer = edit.layers[name]
        column = matrix_column(name, layer)
        weights[layer, column] += count
        by_kind.setdefault(column, []).append(name)
    layers = list(range(max(layer for layer, _ in weights) + 1)) if weights else []
    columns = list(by_kind)
    kinds = []
    for column, names in by_kind.items():
        edited = sum(edit.per_matrix[name] for name in names)
        entries = sum(math.prod(edit.shapes[name]) for name in names)
        kinds.append(Kind(column, len(names), edited, edited / max(entries, 1)))
    return Place(layers, columns, [[weights[layer, column] for column in columns] for layer in layers], kinds)


@dataclass(frozen=True)
class Overlap:
    """Top sets and how they meet: `regions` as (names of the sets, weights in exactly these), largest first; and how
    many `weights` the edit has, which another rule than `coupled`, or a choice of layers, takes of them."""

    names: list[str]
    concepts: list[str]
    protect: list[str]
    regions: list[tuple[frozenset[str], int]]
    weights: int | None = None

    @property
    def taken(self) -> str:
        """The size of the edited region; where the edit has other weights than all of it, how many."""
        size = self.size(self.edited)
        return f"{size:,}" + (f"\n{self.weights:,} edited" if self.weights not in (None, size) else "")

    @property
    def edited(self) -> frozenset[str]:
        """The region that the rule `coupled` takes: in every concept's set and in no protected one."""
        return frozenset(self.concepts)

    def size(self, names: frozenset[str]) -> int:
        return sum(size for region, size in self.regions if region == names)

    def total(self, name: str) -> int:
        return sum(size for region, size in self.regions if name in region)

    def label(self, region: frozenset[str]) -> str:
        return " and ".join(name for name in self.names if name in region)


def overlap_part(overlap: Regions | None, weights: int | None = None) -> Overlap | None:
    """The exclusive regions of the top sets, `A&B` being what is in A and in B and in no other set."""
    if not overlap or not overlap.regions:
        return None
    regions = [(frozenset(key.split("&")), size) for key, size in overlap.regions.items()]
    ordered = sorted(regions, key=lambda region: (-region[1], len(region[0]), sorted(region[0])))
    return Overlap([*overlap.concepts, *overlap.protect], overlap.concepts, overlap.protect, ordered, weights)


def stability_text(stability: Stability | None) -> list[str]:
    """Whether resampled scoring data would have chosen the same weights, in words."""
    if not stability:
        return []
    jaccard, size = stability.jaccard, stability.size
    return [
        f"The selection was repeated on {stability.resamples} resamples of the scoring data. A repeated set shares "
        f"{jaccard.mean:.2f} of its union with the edited set (Jaccard index, 1 is identical; "
        f"{jaccard.low:.2f} to {jaccard.high:.2f}) and holds {size.mean:,.0f} weights "
        f"({size.low:,.0f} to {size.high:,.0f}); the edit has {stability.weights:,}.",
        f"{stability.in_half:,} weights are chosen in at least half of the repetitions, "
        f"{stability.in_most:,} in at least 95% of them.",
    ]
