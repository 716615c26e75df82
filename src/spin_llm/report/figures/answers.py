"""What answers show: which phrases moved, the rates by facet, and what a larger ratio does.

In: the phrases and facets of the page (report/sections/), the ratio table of results.json. Out: matplotlib figures.
Left out: the wording (report/words.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spin_llm.report.figures.canvas import ACCENT, CONTROL, INK, STYLE, bare, new_figure, picture_text
from spin_llm.report.sections.phrases import Phrases
from spin_llm.report.words import POINTS, axis_label, has_interval, is_finite, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINEAR = 0.1  # below this relative increase of perplexity the axis is linear


CHANCE = 1.96  # |z| that one phrase reaches by chance in 5% of cases


def draw_dose(ratio_table: Sequence[dict[str, Any]], limit: float | None) -> Figure | None:
    """Edited weights and the increase of perplexity over the ratio; None when fewer than two ratios were measured."""
    from matplotlib import rc_context

    selected = [row for row in ratio_table if row["weights"]]
    tried = [row for row in selected if is_finite(row["increase"])]
    if len(tried) < 2:
        return None
    with rc_context(STYLE):
        figure = new_figure(9.4, 2.9)
        left, right = figure.subplots(1, 2)
        _dots(left, selected, [row["weights"] for row in selected])
        left.set_yscale("log")
        left.set_title("edited weights", fontsize=9, loc="left")
        increases = [100 * row["increase"] for row in tried]
        _dots(right, tried, increases)
        if max(map(abs, increases)) > 100:
            right.set_yscale("symlog", linthresh=100 * LINEAR)
        right.set_title("increase of perplexity, percent", fontsize=9, loc="left")
        right.axhline(0, color=INK, linewidth=0.7)
        if limit is not None:
            right.axhline(100 * limit, color=ACCENT, linewidth=0.9, linestyle=":")
            right.annotate("limit", (0, 100 * limit), xycoords=("axes fraction", "data"), fontsize=7.5, va="bottom")
        left.yaxis.set_major_formatter("{x:,.0f}")
        right.yaxis.set_major_formatter("{x:,.0f}" if max(map(abs, increases)) > 10 else "{x:.1f}")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlabel("ratio", fontsize=8)
            axes.tick_params(labelsize=8)
            axes.grid(color=CONTROL, alpha=0.25, linewidth=0.5)
            axes.minorticks_off()
            bare(axes)
    return figure


def _dots(axes: Axes, rows: Sequence[dict[str, Any]], values: Sequence[float]) -> None:
    """One dot a ratio: large and filled for the chosen one, hollow for those that are not allowed."""
    ratios = [row["ratio"] for row in rows]
    axes.plot(ratios, values, color=CONTROL, linewidth=0.8)
    for row, ratio, value in zip(rows, ratios, values, strict=True):
        face = ACCENT if row["chosen"] or row["allowed"] else "none"
        axes.plot(ratio, value, "o", color=ACCENT, markersize=8 if row["chosen"] else 4.5, markerfacecolor=face)


def draw_phrases(parts: Sequence[Phrases]) -> Figure | None:
    """z of the phrases that moved most, one panel an axis; None when none did."""
    from matplotlib import rc_context

    parts = [part for part in parts if part.shifted]
    if not parts:
        return None
    longest = max(len(part.shifted) for part in parts)
    with rc_context(STYLE):
        figure = new_figure(9.4, 0.9 + 0.19 * longest)
        panels = figure.subplots(1, len(parts), squeeze=False)[0]
        for axes, part in zip(panels, parts, strict=True):
            rows = sorted(part.shifted, key=lambda shift: -(shift.z or 0.0))
            values = [shift.z or 0.0 for shift in rows]
            chance = part.threshold or CHANCE
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


def draw_facets(facets: dict[str, dict[str, dict[str, Any]]]) -> Figure | None:
    """The difference of every facet with its interval, one panel an axis; None without intervals."""
    from matplotlib import rc_context

    kept = {
        axis: {facet: values for facet, values in by_facet.items() if has_interval(values.get("ci95"))}
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
            for place, values in enumerate(by_facet.values()):
                axes.plot([scale * end for end in values["ci95"]], [place, place], color=ACCENT, linewidth=1.4)
                axes.plot(scale * values["delta"], place, "o", color=ACCENT, markersize=4.5)
            axes.axvline(0, color=INK, linewidth=0.7)
            names = [f"{picture_text(facet, 24)} ({values['n']})" for facet, values in by_facet.items()]
            axes.set_yticks(range(len(names)), names, fontsize=7.5)
            axes.set_ylim(longest - 0.5, -0.5)
            axes.set_title(axis_label(axis), fontsize=9, loc="left")
            axes.set_xlabel(f"difference in {unit_of(axis)}", fontsize=7.5)
            axes.tick_params(axis="x", labelsize=7.5)
            axes.grid(axis="x", color=CONTROL, alpha=0.25, linewidth=0.5)
            bare(axes)
    return figure
