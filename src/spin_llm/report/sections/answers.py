"""What the answers are like: their style, the phrases listed and shifted, and rates by facet on a common scale.

In: `style`, `phrases` and `facets` of results.json. Out: rows of texts, lines of a chart. Absent parts come out empty.
Left out: finding phrases (evaluate/phrases.py); the axes (table.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from spin_llm.report.sections.board import Line, Scale, line_of, scale_of
from spin_llm.report.sections.table import Row, make_row
from spin_llm.report.words import axis_label, value_text
from spin_llm.results.file import PhrasesRecord
from spin_llm.results.measured import AxisResult, FacetRates


@dataclass(frozen=True)
class Phrases:
    """One axis: `found` on the `n` questions that both models answer."""

    label: str
    n: int
    found: PhrasesRecord


@dataclass(frozen=True)
class Facet:
    axis: str
    facet: str
    n: int
    base: str
    edited: str
    line: Line


def style_rows(style: Mapping[str, Mapping[str, AxisResult]]) -> list[Row]:
    """One row for each kind of style and axis: length, repetition, cautionary phrases."""
    return [
        make_row(kind, result, None, f"{axis_label(kind)}, {axis.replace('_', '-')}")
        for axis, kinds in style.items()
        for kind, result in kinds.items()
    ]


def phrase_parts(phrases: Mapping[str, PhrasesRecord], axes: Mapping[str, AxisResult]) -> list[Phrases]:
    """Both lists of every axis; older runs do not say of how many questions: of the axis, 0 where it is not there."""
    sizes = {axis: result.n for axis, result in axes.items()}
    return [
        Phrases(axis_label(axis), sizes.get(axis, 0) if found.n is None else found.n, found)
        for axis, found in phrases.items()
    ]


def facet_lines(facets: Mapping[str, Mapping[str, FacetRates]]) -> list[Facet]:
    """Every facet in the order of results.json; old runs have no intervals, and no difference but base and edited."""
    filled = {
        (axis, facet): replace(rates, delta=_difference(rates))
        for axis, by_facet in facets.items()
        for facet, rates in by_facet.items()
    }
    scale = scale_of(filled.values()) if filled else Scale(-1, 1)
    return [
        Facet(
            axis=axis_label(axis),
            facet=facet,
            n=rates.n,
            base=value_text(rates, "base", axis),
            edited=value_text(rates, "edited", axis),
            line=line_of("edit", axis, rates, scale, control=False),
        )
        for (axis, facet), rates in filled.items()
    ]


def _difference(rates: FacetRates) -> float | None:
    if rates.delta is not None or rates.base is None or rates.edited is None:
        return rates.delta
    return rates.edited - rates.base
