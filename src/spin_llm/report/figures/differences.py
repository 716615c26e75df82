"""The differences on every axis.

In: the rows of the table. Out: a matplotlib figure. Left out: the wording (report/words.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spin_llm.report.figures.canvas import ACCENT, CONTROL, INK, STYLE, bare, new_figure, picture_text
from spin_llm.report.sections.table import Row
from spin_llm.report.words import CAPABILITY_AXES, POINTS, axis_label, has_interval, is_finite, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_differences(rows: list[Row]) -> Figure:
    """Dot plot: the difference of every axis and control with its 95% interval; one panel for each unit."""
    from matplotlib import rc_context

    panels = [[row for row in rows if row.axis not in CAPABILITY_AXES]]
    panels += [[row for row in rows if row.axis == axis] for axis in CAPABILITY_AXES]
    panels = [panel for panel in panels if any(is_finite(row.result["delta"]) for row in panel)]
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
        if not is_finite(row.result["delta"]) or row.verdict == "no reading":
            continue
        colour = ACCENT if row.control is None and row.verdict != "not measurable" else CONTROL
        if has_interval(row.result["ci95"]):
            ends = [scale * end for end in row.result["ci95"]]
            axes.plot(ends, [place, place], color=colour, linewidth=1.8 if row.control is None else 1.1)
        filled = colour if row.control is None and row.verdict != "not measurable" else "none"
        size = 6.5 if row.control is None else 4.5
        axes.plot(scale * row.result["delta"], place, "o", color=colour, markerfacecolor=filled, markersize=size)
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
