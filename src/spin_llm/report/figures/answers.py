"""What answers show: the difference on every axis and in every facet, and which phrases moved.

In: the rows of the table and the phrases of the page (report/sections/), `facets` of results.json. Out: matplotlib
figures. Left out: the wording (report/words.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spin_llm.report.figures.canvas import ACCENT, CONTROL, INK, STYLE, bare, new_figure, picture_text
from spin_llm.report.sections.answers import Phrases
from spin_llm.report.sections.table import Row
from spin_llm.report.words import POINTS, axis_label, unit_of
from spin_llm.results.measured import CAPABILITY_AXES, FacetRates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHANCE = 1.96  # |z| that one phrase reaches by chance in 5% of cases


def draw_differences(rows: list[Row]) -> Figure:
    """Dot plot: the difference of every axis and control with its 95% interval; one panel for each unit."""
    from matplotlib import rc_context

    panels = [[row for row in rows if row.axis not in CAPABILITY_AXES]]
    panels += [[row for row in rows if row.axis == axis] for axis in CAPABILITY_AXES]
    panels = [panel for panel in panels if any(row.result.delta is not None for row in panel)]
    lines = sum(len(panel) for panel in panels)
    with rc_context(STYLE):
        figure = new_figure(9.4, 0.62 * len(panels) + 0.3 * lines)
        spaces = figure.add_gridspec(len(panels), 1, height_ratios=[len(panel) + 0.4 for panel in panels])
        for place, panel in enumerate(panels):
            _draw_panel(figure.add_subplot(spaces[place]), panel)
    return figure


def _draw_panel(axes: Axes, rows: list[Row]) -> None:
    scale = 100.0 if unit_of(rows[0].axis) == POINTS else 1.0
    for place, row in enumerate(rows):
        if row.result.delta is None or row.verdict == "no reading":
            continue
        colour = ACCENT if row.control is None and row.verdict != "not measurable" else CONTROL
        if row.result.ci95:
            ends = [scale * end for end in row.result.ci95]
            axes.plot(ends, [place, place], color=colour, linewidth=1.8 if row.control is None else 1.1)
        filled = colour if row.control is None and row.verdict != "not measurable" else "none"
        size = 6.5 if row.control is None else 4.5
        axes.plot(scale * row.result.delta, place, "o", color=colour, markerfacecolor=filled, markersize=size)
    axes.axvline(0, color=INK, linewidth=0.7)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [_line_name(row) for row in rows])
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_fontsize(9 if row.control is None else 7.5)
    axes.set_xlabel(_unit(rows[0].axis), fontsize=8)
    axes.grid(axis="x", color=CONTROL, alpha=0.25, linewidth=0.5)
    axes.tick_params(axis="x", labelsize=8)
    bare(axes)


def _line_name(row: Row) -> str:
    if row.control is not None:
        return f"control {picture_text(row.control)}"
    return axis_label(row.axis) + (f"\n({row.verdict})" if row.verdict in ("not measurable", "no reading") else "")


def _unit(axis: str) -> str:
    unit = unit_of(axis)
    return unit if axis == "kl" else f"difference in {unit}"


def draw_phrases(parts: Sequence[Phrases]) -> Figure | None:
    """z of the phrases that moved most, one panel an axis; None when none did."""
    from matplotlib import rc_context

    parts = [part for part in parts if part.found.shifted]
    if not parts:
        return None
    longest = max(len(part.found.shifted) for part in parts)
    with rc_context(STYLE):
        figure = new_figure(9.4, 0.9 + 0.19 * longest)
        panels = figure.subplots(1, len(parts), squeeze=False)[0]
        for axes, part in zip(panels, parts, strict=True):
            rows = sorted(part.found.shifted, key=lambda shift: -shift.z)
            values = [shift.z for shift in rows]
            chance = part.found.threshold or CHANCE
            axes.axvspan(-chance, chance, color=CONTROL, alpha=0.15, linewidth=0)
            axes.hlines(range(len(rows)), 0, values, color=ACCENT, linewidth=1.2)
            axes.plot(values, range(len(rows)), "o", color=ACCENT, markersize=4)
            axes.axvline(0, color=INK, linewidth=0.7)
            axes.set_yticks(range(len(rows)), [picture_text(shift.phrase, 28) for shift in rows], fontsize=7)
            axes.set_ylim(longest - 0.5, -0.5)
            axes.set_title(part.label, fontsize=9, loc="left")
            axes.set_xlabel("rarer  ←  z  →  more frequent", fontsize=7.5)
            axes.tick_params(axis="x", labelsize=7.5)
            bare(axes)
    return figure


def draw_facets(facets: Mapping[str, Mapping[str, FacetRates]]) -> Figure | None:
    """The difference of every facet with its interval, one panel an axis; None without intervals."""
    from matplotlib import rc_context

    kept = {
        axis: {facet: (rates, rates.ci95) for facet, rates in by_facet.items() if rates.ci95}
        for axis, by_facet in facets.items()
    }
    kept = {axis: by_facet for axis, by_facet in kept.items() if by_facet}
    if not kept:
        return None
    longest = max(map(len, kept.values()))
    with rc_context(STYLE):
        figure = new_figure(9.4, 0.9 + 0.22 * longest)
        panels = figure.subplots(1, len(kept), squeeze=False)[0]
        for axes, (axis, by_facet) in zip(panels, kept.items(), strict=True):
            scale = 100.0 if unit_of(axis) == POINTS else 1.0
            for place, (rates, interval) in enumerate(by_facet.values()):
                axes.plot([scale * end for end in interval], [place, place], color=ACCENT, linewidth=1.4)
                axes.plot(scale * (rates.delta or 0.0), place, "o", color=ACCENT, markersize=4.5)
            axes.axvline(0, color=INK, linewidth=0.7)
            names = [f"{picture_text(facet, 24)} ({rates.n})" for facet, (rates, _) in by_facet.items()]
            axes.set_yticks(range(len(names)), names, fontsize=7.5)
            axes.set_ylim(longest - 0.5, -0.5)
            axes.set_title(axis_label(axis), fontsize=9, loc="left")
            axes.set_xlabel(f"difference in {unit_of(axis)}", fontsize=7.5)
            axes.tick_params(axis="x", labelsize=7.5)
            axes.grid(axis="x", color=CONTROL, alpha=0.25, linewidth=0.5)
            bare(axes)
    return figure
