"""The parts of results.json that a run may have or not, made ready for a page.

In: `facets`, `style`, `phrases`, `overlap`, `stability`, `capabilities` of results.json. Out: rows of texts, and facet
lines on a common scale. Absent parts come out empty.
Left out: the axes themselves (table.py, board.py) and the place of the edit (place.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spin_llm.report.board import Line, Scale, line_of, scale_of
from spin_llm.report.table import Row, make_row
from spin_llm.report.wording import axis_label, is_finite, value_text

OPTIONAL: dict[str, Any] = {
    "edit": {}, "ratio_table": [], "facets": {}, "style": {}, "phrases": {}, "capabilities": {}, "overlap": None,
    "stability": None, "search": None,
}  # fmt: skip


OPTIONAL_OF_EDIT: dict[str, Any] = dict.fromkeys(
    ("rule", "ratio", "protect_ratio", "target", "scale", "weights", "matrices", "share", "candidates", "shared")
)


@dataclass(frozen=True)
class Facet:
    axis: str
    facet: str
    n: int
    base: str
    edited: str
    line: Line


@dataclass(frozen=True)
class Shift:
    """A phrase with the number of answers that contain it."""

    phrase: str
    base: int
    edited: int
    z: float | None = None

    @property
    def z_text(self) -> str:
        return "–" if self.z is None else f"{self.z:+.1f}"


@dataclass(frozen=True)
class Phrases:
    """`listed`: known cautionary phrases; `shifted`: those the answers themselves show, by log-odds."""

    axis: str
    label: str
    n: int
    listed: list[Shift]
    shifted: list[Shift]
    tried: int | None
    threshold: float | None


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


def facet_lines(facets: dict[str, dict[str, dict[str, Any]]]) -> list[Facet]:
    """Every facet in the order of results.json; old runs have no intervals, and no difference but base and edited."""
    filled = {
        (axis, facet): {"delta": _difference(values), "ci95": None, **values}
        for axis, by_facet in facets.items()
        for facet, values in by_facet.items()
    }
    scale = scale_of(filled.values()) if filled else Scale(-1, 1)
    return [
        Facet(
            axis=axis_label(axis),
            facet=facet,
            n=values["n"],
            base=value_text(values, "base", axis),
            edited=value_text(values, "edited", axis),
            line=line_of("edit", axis, values, scale, control=False),
        )
        for (axis, facet), values in filled.items()
    ]


def _difference(values: dict[str, Any]) -> float | None:
    if not (is_finite(values["base"]) and is_finite(values["edited"])):
        return None
    return float(values["edited"] - values["base"])


def style_rows(style: dict[str, dict[str, dict[str, Any]]]) -> list[Row]:
    """One row for each kind of style and axis: length, repetition, cautionary phrases."""
    return [
        make_row(kind, result, None, f"{axis_label(kind)}, {axis.replace('_', '-')}")
        for axis, kinds in style.items()
        for kind, result in kinds.items()
    ]


def phrase_parts(phrases: dict[str, dict[str, Any]], axes: dict[str, dict[str, Any]]) -> list[Phrases]:
    """Both lists of every axis; `n` is the number of questions that both models answer (older runs: of the axis), 0
    where the axis is not there."""
    return [
        Phrases(
            axis=axis,
            label=axis_label(axis),
            n=found.get("n", axes.get(axis, {}).get("n", 0)),
            listed=[Shift(row["phrase"], row["base"], row["edited"]) for row in found.get("listed", [])],
            shifted=[Shift(row["phrase"], row["base"], row["edited"], row["z"]) for row in found.get("shifted", [])],
            tried=found.get("tried"),
            threshold=found.get("threshold"),
        )
        for axis, found in phrases.items()
    ]


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
