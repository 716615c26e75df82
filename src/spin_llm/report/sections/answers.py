"""What the answers are like: the phrases listed and shifted, and rates by facet on a common scale, with their pictures.

In: `phrases` and `facets` of results.json. Out: rows of texts, lines of a chart; matplotlib figures. Absent parts come
out empty. Left out: finding phrases (evaluate/wording.py); the axes, and their style (table.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spin_llm.report import canvas
from spin_llm.report.sections.table import Line, line_of, scale_of
from spin_llm.report.words import axis_label, unit_of, value_text
from spin_llm.results.file import PhrasesRecord
from spin_llm.results.measured import AxisResult, FacetRates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANCE = 1.96  # |z| that one phrase reaches by chance in 5% of cases
Phrases = tuple[str, PhrasesRecord]  # an axis's label, and what was found on the questions that both models answer


@dataclass(frozen=True)
class Facet:
    axis: str
    facet: str
    n: int
    base: str
    edited: str
    line: Line


def phrase_parts(phrases: Mapping[str, PhrasesRecord], axes: Mapping[str, AxisResult]) -> list[Phrases]:
    """Both lists of every axis; older runs do not say of how many questions: of the axis, 0 where it is not there."""
    sizes = {axis: result.n for axis, result in axes.items()}
    return [
        (axis_label(axis), replace(found, n=sizes.get(axis, 0)) if found.n is None else found)
        for axis, found in phrases.items()
    ]


def facet_lines(facets: Mapping[str, Mapping[str, FacetRates]]) -> list[Facet]:
    """Every facet in the order of results.json; old runs have no intervals, and no difference but base and edited."""
    filled = [
        (axis, facet, replace(rates, delta=_difference(rates)))
        for axis, by_facet in facets.items()
        for facet, rates in by_facet.items()
    ]
    scale = scale_of(rates for *_, rates in filled)
    return [
        Facet(
            axis_label(axis),
            facet,
            rates.n,
            value_text(rates, "base", axis),
            value_text(rates, "edited", axis),
            line_of("edit", axis, rates, scale),
        )
        for axis, facet, rates in filled
    ]


def _difference(rates: FacetRates) -> float | None:
    if rates.delta is not None or rates.base is None or rates.edited is None:
        return rates.delta
    return rates.edited - rates.base


@canvas.styled()
def draw_phrases(phrases: Sequence[Phrases]) -> Figure | None:
    """z of the phrases that moved most, one panel an axis; None when none did."""
    parts = [(label, found) for label, found in phrases if found.shifted]
    if not parts:
        return None
    longest = max(len(found.shifted) for _, found in parts)
    figure = canvas.new_figure(9.4, 0.9 + 0.19 * longest)
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, (label, found) in zip(panels, parts, strict=True):
        rows = sorted(found.shifted, key=lambda shift: -shift.z)
        values = [shift.z for shift in rows]
        chance = found.threshold or CHANCE
        axes.axvspan(-chance, chance, color=canvas.CONTROL, alpha=0.15, linewidth=0)
        axes.hlines(range(len(rows)), 0, values, color=canvas.ACCENT, linewidth=1.2)
        axes.plot(values, range(len(rows)), "o", color=canvas.ACCENT, markersize=4)
        axes.axvline(0, color=canvas.INK, linewidth=0.7)
        canvas.name_lines(axes, [canvas.picture_text(shift.phrase, 28) for shift in rows], longest, 7)
        axes.set_title(label, fontsize=9, loc="left")
        axes.set_xlabel("rarer  ←  z  →  more frequent", fontsize=7.5)
        canvas.bare(axes, 7.5, "x")
    return figure


@canvas.styled()
def draw_facets(facets: Mapping[str, Mapping[str, FacetRates]]) -> Figure | None:
    """The difference of every facet with its interval, one panel an axis; None without intervals."""
    kept = {axis: {name: rates for name, rates in found.items() if rates.ci95} for axis, found in facets.items()}
    kept = {axis: by_facet for axis, by_facet in kept.items() if by_facet}
    if not kept:
        return None
    longest = max(map(len, kept.values()))
    figure = canvas.new_figure(9.4, 0.9 + 0.22 * longest)
    panels = figure.subplots(1, len(kept), squeeze=False)[0]
    for axes, (axis, by_facet) in zip(panels, kept.items(), strict=True):
        for place, rates in enumerate(by_facet.values()):
            canvas.draw_interval(axes, place, rates, axis, canvas.ACCENT)
        axes.axvline(0, color=canvas.INK, linewidth=0.7)
        names = [f"{canvas.picture_text(facet, 24)} ({rates.n})" for facet, rates in by_facet.items()]
        canvas.name_lines(axes, names, longest, 7.5)
        axes.set_title(axis_label(axis), fontsize=9, loc="left")
        axes.set_xlabel(f"difference in {unit_of(axis)}", fontsize=7.5)
        canvas.bare(axes, 7.5, "x", grid=True)
    return figure
