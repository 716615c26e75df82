"""The figures of the experiments, where the paper has one: differences by arm, dependence by layer, awareness over
the number of examples and over the ratio.

In: an experiment's spec and its arms' results. Out: a matplotlib figure, or None where nothing can be drawn. What is
ours or an edit has the accent's colour, what it is compared with grey. Left out: bytes (report/canvas.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from spin_llm.report.canvas import (
    ACCENT,
    CONTROL,
    INK,
    bare,
    draw_interval,
    factor_of,
    name_lines,
    new_figure,
    picture_text,
    styled,
)
from spin_llm.report.words import axis_label
from spin_llm.results.measured import AxisResult
from spin_llm.results.paper import ArmRecord, Experiment, LayerRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Sequence[ArmRecord]
DRAWN = ("fairness", "privacy", "over_refusal", "coherence", "perplexity")
CURVES = ("fairness", "privacy", "perplexity")
MARKS = ("o", "s", "^", "D")
Point = tuple[float, AxisResult]  # x, and the result of an axis


@styled()
def figure(experiment: Experiment, results: Results) -> Figure | None:
    """The experiment's figure; None where its results hold nothing to draw."""
    if experiment.kind == "information":
        return draw_dependence(results)
    if experiment.kind != "answers" or not set(experiment.axes) & set(DRAWN):
        return None
    if experiment.name == "few-shot":
        return draw_curves(experiment, results, "examples", "training pairs, or examples of a concept")
    if experiment.name == "ratio":
        return draw_curves(experiment, results, "ratio", "ratio")
    return draw_differences(experiment, results)


def draw_differences(experiment: Experiment, results: Results) -> Figure | None:
    """Every arm's difference to the base on each axis, with intervals; None without any."""
    axes = [axis for axis in DRAWN if axis in experiment.axes]
    rows = [row for row in results if row.kind != "base" and row.axes]
    if not rows:
        return None
    picture = new_figure(2.1 * len(axes) + 1.6, 0.9 + 0.24 * len(rows))
    panels = picture.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        for place, row in enumerate(rows):
            if (result := row.axes.get(axis)) and result.ci95:
                draw_interval(panel, place, result, axis, ACCENT if row.kind == "edit" else CONTROL)
        panel.axvline(0, color=INK, linewidth=0.7)
        panel.set_title(axis_label(axis), fontsize=8.5, loc="left")
        if axis == "perplexity":
            panel.set_xscale("symlog", linthresh=1.0)
            panel.set_xticks(symlog_ticks(*panel.get_xlim()))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.minorticks_off()
        bare(panel, 7.5)
    name_lines(panels[0], [picture_text(row.name) for row in rows], len(rows), 8)
    picture.supxlabel("difference to the base: percentage points; perplexity as it is", fontsize=7.5)
    return picture


def draw_curves(
    experiment: Experiment, results: Results, option: Literal["examples", "ratio"], label: str
) -> Figure | None:
    """Awareness and perplexity over an option of the arms, one line for each method, with the interval of the
    difference to the base, whose value is the dashed line; arms without weights are left out."""
    curves = curves_of(experiment, results, option)
    if not any(curves.values()):
        return None
    picture = new_figure(9.4, 2.9)
    panels = picture.subplots(1, len(CURVES))
    for panel, axis in zip(panels, CURVES, strict=True):
        for number, (name, points) in enumerate(curves.items()):
            colour = ACCENT if name == "SPIN" else CONTROL
            draw_curve(panel, axis, points, name, colour, MARKS[number % len(MARKS)])
        highest = [result.edited or 0.0 for points in curves.values() for _, result in points.get(axis, [])]
        bases = [points[axis][0][1].base or 0.0 for points in curves.values() if points.get(axis)]
        if bases:
            panel.axhline(factor_of(axis) * bases[0], color=INK, linewidth=0.8, linestyle="--", label="origin")
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        if axis == "perplexity" and bases and max(highest) > 10 * bases[0]:
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter("{x:g}")
        panel.set_title(axis_label(axis) + ("" if axis == "perplexity" else ", percent"), fontsize=8.5, loc="left")
        panel.set_xlabel(label, fontsize=8)
        panel.minorticks_off()
        bare(panel, 7.5)
        if option == "examples":
            ticks = sorted({x for points in curves.values() for found in points.values() for x, _ in found})
            panel.set_xticks(ticks, [f"{x:g}" for x in ticks])
    if len(curves) > 1:
        panels[0].legend(fontsize=7.5, frameon=False)
    return picture


def curves_of(
    experiment: Experiment, results: Results, option: Literal["examples", "ratio"]
) -> dict[str, dict[str, list[Point]]]:
    """{method: {axis: points by rising x}} of the arms that were measured."""
    places = {arm.name: arm.options.get(option) for arm in experiment.arms}
    measured = [(x, row) for row in results if row.axes and (x := places.get(row.name)) is not None]
    method = {row.name: row.name.partition(",")[0] if option == "examples" else "SPIN" for row in results}
    curves: dict[str, dict[str, list[Point]]] = {method[row.name]: {} for _, row in measured}
    for x, row in sorted(measured, key=lambda one: one[0]):
        for axis in CURVES:
            found = row.axes.get(axis)
            if found is not None and found.edited is not None and not found.no_reading:
                curves[method[row.name]].setdefault(axis, []).append((x, found))
    return {name: points for name, points in curves.items() if points}


def draw_curve(
    panel: Axes, axis: str, points: Mapping[str, Sequence[Point]], name: str, colour: str, mark: str
) -> None:
    found = points.get(axis, [])
    scale = factor_of(axis)
    places = [x for x, _ in found]
    style = {"color": colour, "linewidth": 1.2, "markersize": 4, "marker": mark}
    panel.plot(places, [scale * (result.edited or 0.0) for _, result in found], label=name, **style)  # type: ignore[arg-type]
    for x, result in found:
        if result.ci95:
            ends = [scale * ((result.base or 0.0) + end) for end in result.ci95]
            panel.plot([x, x], ends, color=colour, linewidth=0.9, alpha=0.7)


def symlog_ticks(low: float, high: float) -> list[float]:
    """0 and at most three powers of ten on either side that lie between the ends, the largest ones first.

    >>> symlog_ticks(-0.5, 5000)
    [0.0, 1.0, 100.0, 1000.0]
    """
    ticks = [0.0]
    for sign, end in ((-1.0, -low), (1.0, high)):
        powers = [10.0**power for power in range(7) if 10.0**power <= end]
        ticks += [sign * power for power in dict.fromkeys([*powers[:1], *powers[-2:]])]
    return sorted(ticks)


def draw_dependence(results: Results) -> Figure | None:
    """HSIC and CKA by layer before (grey) and after (accent) with their bands: one row for each pairing, at the last
    prompt token and over the response."""
    found = next((row.information for row in results if row.information), None)
    if found is None:
        return None
    picture = new_figure(9.4, 0.7 + 1.7 * len(found))
    panels = picture.subplots(len(found), 4, sharex=True, squeeze=False)
    for line, (title, report) in zip(panels, found.items(), strict=True):
        columns = [(place, measure) for place in report.places for measure in ("hsic", "cka")]
        for panel, (place, measure) in zip(line, columns, strict=True):
            for state, colour in (("before", CONTROL), ("after", ACCENT)):
                draw_layers(panel, report.places[place], state, measure, colour)
            panel.set_title(f"{measure.upper()}, {place.replace('_', ' ')}", fontsize=8, loc="left")
            bare(panel, 7)
        line[0].set_ylabel(picture_text(title).replace(", ", ",\n"), fontsize=8)
    panels[0][0].legend(fontsize=7, frameon=False)
    for panel in panels[-1]:
        panel.set_xlabel("layer", fontsize=8)
    return picture


def draw_layers(panel: Axes, layers: Sequence[LayerRecord], state: str, measure: str, colour: str) -> None:
    states = [(layer.layer, getattr(layer, state)) for layer in layers]
    rows = [(place, getattr(one, measure), getattr(one, f"{measure}_band")) for place, one in states]
    rows = [row for row in rows if row[1] is not None]
    panel.plot([row[0] for row in rows], [row[1] for row in rows], color=colour, linewidth=1.2, label=state)
    banded = [(place, band) for place, _, band in rows if band]
    lows, highs = ([band[end] for _, band in banded] for end in (0, 1))
    panel.fill_between([place for place, _ in banded], lows, highs, color=colour, alpha=0.18, linewidth=0)
