"""What the sets of weights share, and what would be chosen from other examples.

In: `overlap` and `stability` of results.json. Out: rows of texts. Absent parts come out empty. Left out: the place of
the edit (location.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

OPTIONAL: dict[str, Any] = {
    "edit": {}, "ratio_table": [], "facets": {}, "style": {}, "phrases": {}, "capabilities": {}, "overlap": None,
    "stability": None, "search": None,
}  # fmt: skip


OPTIONAL_OF_EDIT: dict[str, Any] = dict.fromkeys(
    ("rule", "ratio", "protect_ratio", "target", "scale", "weights", "matrices", "share", "candidates", "shared")
)


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


def overlap_part(overlap: dict[str, Any] | None, weights: int | None = None) -> Overlap | None:
    """The exclusive regions of the top sets, `A&B` being what is in A and in B and in no other set."""
    if not overlap or not overlap.get("regions"):
        return None
    regions = [(frozenset(key.split("&")), size) for key, size in overlap["regions"].items()]
    concepts, protect = list(overlap["concepts"]), list(overlap["protect"])
    ordered = sorted(regions, key=lambda region: (-region[1], len(region[0]), sorted(region[0])))
    return Overlap([*concepts, *protect], concepts, protect, ordered, weights)


def stability_text(stability: dict[str, Any] | None) -> list[str]:
    """Whether resampled scoring data would have chosen the same weights, in words."""
    if not stability:
        return []
    jaccard, size, weights = stability["jaccard"], stability["size"], stability["weights"]
    return [
        f"The selection was repeated on {stability['resamples']} resamples of the scoring data. A repeated set shares "
        f"{jaccard['mean']:.2f} of its union with the edited set (Jaccard index, 1 is identical; "
        f"{jaccard['low']:.2f} to {jaccard['high']:.2f}) and holds {size['mean']:,.0f} weights "
        f"({size['low']:,.0f} to {size['high']:,.0f}); the edit has {weights:,}.",
        f"{stability['in_half']:,} weights are chosen in at least half of the repetitions, "
        f"{stability['in_most']:,} in at least 95% of them.",
    ]
