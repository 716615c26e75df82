"""Pictures of the parts of a run: how the top sets overlap, what a larger ratio does, which phrases moved, facets.

In: the parts as parts.py gives them, the ratio table of results.json. Out: matplotlib figures.
Three sets are drawn as a Venn diagram of equal circles (the numbers count, not the areas), any other number as an upset
plot. Left out: turning figures into bytes (figures.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spin_llm.report.figures import ACCENT, CONTROL, INK, STYLE, bare, new_figure, picture_text
from spin_llm.report.parts import Overlap, Phrases
from spin_llm.report.wording import POINTS, axis_label, has_interval, is_finite, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Centres of the three circles, radius 1, and where the number of each region stands.
CENTRES = ((-0.55, 0.4), (0.55, 0.4), (0.0, -0.55))
PLACES = {
    (0,): (-0.98, 0.62), (1,): (0.98, 0.62), (2,): (0.0, -1.12),
    (0, 1): (0.0, 0.86), (0, 2): (-0.6, -0.27), (1, 2): (0.6, -0.27), (0, 1, 2): (0.0, 0.1),
}  # fmt: skip
NAMES = ((-0.9, 1.5, "right"), (0.9, 1.5, "left"), (0.0, -1.72, "center"))
REGIONS = 24  # columns of an upset plot; the rest is in the table
LINEAR = 0.1  # below this relative increase of perplexity the axis is linear
CHANCE = 1.96  # |z| that one phrase reaches by chance in 5% of cases


def draw_overlap(overlap: Overlap) -> Figure:
    return draw_venn(overlap) if len(overlap.names) == 3 else draw_upset(overlap)


def draw_venn(overlap: Overlap) -> Figure:
    """Three circles with the number of weights in each of the seven regions, the edited one filled."""
    from matplotlib import rc_context
    from matplotlib.patches import Circle, Polygon

    with rc_context(STYLE):
        figure = new_figure(6.2, 4.2)
        axes = figure.add_subplot()
        inside = [number for number, name in enumerate(overlap.names) if name in overlap.concepts]
        axes.add_patch(Polygon(region_outline(inside), facecolor=ACCENT, alpha=0.45, edgecolor="none"))
        for number, (centre, name) in enumerate(zip(CENTRES, overlap.names, strict=True)):
            protected = name in overlap.protect
            colour, style = (CONTROL, "--") if protected else (ACCENT, "-")
            axes.add_patch(Circle(centre, 1.0, facecolor="none", edgecolor=colour, linewidth=1.6, linestyle=style))
            x, y, side = NAMES[number]
            title = f"{picture_text(name, 24)}{' (protected)' if protected else ''}\n{overlap.total(name):,} weights"
            axes.text(x, y, title, ha=side, va="center", fontsize=9)
        for members, (x, y) in PLACES.items():
            region = frozenset(overlap.names[member] for member in members)
            text = overlap.taken if region == overlap.edited else f"{overlap.size(region):,}"
            axes.text(x, y, text, ha="center", va="center", fontsize=10, fontweight=_weight(members, inside))
        axes.set_xlim(-2.4, 2.4)
        axes.set_ylim(-1.95, 1.75)
        axes.set_aspect("equal")
        axes.set_axis_off()
    return figure


def _weight(members: Sequence[int], inside: Sequence[int]) -> str:
    return "bold" if list(members) == list(inside) else "normal"


def region_outline(inside: Sequence[int], steps: int = 720) -> list[tuple[float, float]]:
    """The outline of the region in the circles `inside` and in no other: points of all circles on its border, in order
    of their angle from its number's place (the regions are star-shaped from there)."""
    points = []
    for number, (x, y) in enumerate(CENTRES):
        for step in range(steps):
            angle = 2 * math.pi * step / steps
            point = (x + math.cos(angle), y + math.sin(angle))
            others = [other for other in range(len(CENTRES)) if other != number]
            if all((math.dist(point, CENTRES[other]) <= 1) == (other in inside) for other in others):
                points.append(point)
    middle = PLACES[tuple(inside)]
    return sorted(points, key=lambda point: math.atan2(point[1] - middle[1], point[0] - middle[0]))


def draw_upset(overlap: Overlap) -> Figure:
    """Regions as bars, largest first; under each the sets it lies in."""
    from matplotlib import rc_context

    regions = overlap.regions[:REGIONS]
    sizes = [size for _, size in regions]
    with rc_context(STYLE):
        figure = new_figure(max(5.0, 1.8 + 0.42 * len(regions)), 2.6 + 0.3 * len(overlap.names))
        grid = {"height_ratios": [2.2, 0.3 * len(overlap.names)]}
        top, bottom = figure.subplots(2, 1, sharex=True, gridspec_kw=grid)
        colours = [ACCENT if region == overlap.edited else CONTROL for region, _ in regions]
        top.bar(range(len(regions)), sizes, color=colours, width=0.6)
        top.set_ylim(0, 1.25 * max(*sizes, 1))
        for place, (region, size) in enumerate(regions):
            text = overlap.taken if region == overlap.edited else f"{size:,}"
            top.text(place, size, text, ha="center", va="bottom", fontsize=7)
        top.set_ylabel("weights", fontsize=8)
        for place, (region, _) in enumerate(regions):
            rows = [row for row, name in enumerate(overlap.names) if name in region]
            bottom.plot([place, place], [min(rows), max(rows)], color=colours[place], linewidth=1.2)
            for row in range(len(overlap.names)):
                face = colours[place] if row in rows else "none"
                bottom.plot(place, row, "o", markersize=6, color=CONTROL, markerfacecolor=face, markeredgewidth=0.6)
        bottom.set_yticks(range(len(overlap.names)), [picture_text(name, 24) for name in overlap.names])
        bottom.set_ylim(len(overlap.names) - 0.5, -0.5)
        bottom.set_xticks([])
        top.set_yticks([])
        bare(top)
        bare(bottom)
    return figure


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
