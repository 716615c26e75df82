"""Rates by facet, on a common scale.

In: `facets` of results.json. Out: lines of a chart. Absent parts come out empty. Left out: the axes (table.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spin_llm.report.sections.board import Line, Scale, line_of, scale_of
from spin_llm.report.words import axis_label, is_finite, value_text


@dataclass(frozen=True)
class Facet:
    axis: str
    facet: str
    n: int
    base: str
    edited: str
    line: Line


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
