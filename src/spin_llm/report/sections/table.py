"""The results table, shared by the page, the Markdown and the terminal, and the picture of the same.

In: results.json. Out: one `Row` an axis and, under it, one a control, with the numbers formatted and worded; a dot plot
of the differences. Left out: how a row looks; minus signs stay ASCII so that any terminal can print them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spin_llm.report.canvas import (
    ACCENT,
    CONTROL,
    INK,
    bare,
    draw_interval,
    name_lines,
    new_figure,
    picture_text,
    styled,
)
from spin_llm.report.words import (
    ANSWERS,
    NOTHING,
    POINTS,
    Verdict,
    axis_label,
    interval_text,
    is_weak,
    missing_text,
    number,
    p_text,
    shown_axes,
    smallest_seen,
    unit_of,
    value_text,
    verdict,
    verdict_sentence,
)
from spin_llm.results.file import Results
from spin_llm.results.measured import ANSWERED, CAPABILITY_AXES, AxisResult, Number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("axis", "n", "base", "edited", "difference", "95% interval", "p", "Holm p", "reading")


@dataclass(frozen=True)
class Row:
    """One line of the table: an axis of results.json. `control` names the control whose values stand in `edited`; None
    for the edit itself."""

    axis: str
    control: str | None
    label: str
    result: AxisResult

    @property
    def verdict(self) -> Verdict:
        return verdict(self.result)

    @property
    def weak(self) -> bool:
        return self.verdict in ("improved", "worse") and self.axis != "kl" and is_weak(self.result)

    @property
    def reading(self) -> str:
        return verdict_sentence(self.result if self.control is None else replace(self.result, mde=None), self.axis)

    @property
    def note(self) -> str:
        """What the reading does not say."""
        why = self.result.note or ""
        parts = ("" if why in self.reading else why, missing_text(self.result, self.axis))
        return "; ".join(part for part in parts if part)

    @property
    def short(self) -> str:
        """The verdict in a few words, with what could not have been seen where nothing was."""
        if self.axis == "kl":
            return ""
        if self.axis == ANSWERED:
            return ANSWERS.get(self.verdict, self.verdict)
        if self.verdict == "not measurable":
            return self.reading
        smallest = smallest_seen(self.result, self.axis) if self.verdict == "unchanged" else ""
        return self.verdict + (", weak" if self.weak else "") + (f" (< {smallest} unseen)" if smallest else "")

    @property
    def cells(self) -> tuple[str, ...]:
        """The texts of the row, in the order of `COLUMNS`."""
        values = (value_text(self.result, side, self.axis) for side in ("base", "edited", "delta"))
        ps = (p_text(self.result.p), p_text(self.result.p_holm))
        return self.label, str(self.result.n), *values, interval_text(self.result.ci95, self.axis), *ps, self.reading


def table_rows(results: Results) -> list[Row]:
    """The rows in the order of `axes`: each axis, then the same axis of every control."""
    rows = []
    named = [results.axes, *(control.axes for control in results.controls.values())]
    shown = {axis for axes in named for axis in shown_axes(axes)}
    for axis, result in results.axes.items():
        if axis not in shown:
            continue
        rows.append(Row(axis, None, axis_label(axis), result))
        for name, control in results.controls.items():
            if axis in control.axes:
                label = f"control: {name} ({control.weights:,} weights)"
                rows.append(Row(axis, name, label, control.axes[axis]))
    return rows


def task_rows(capabilities: Mapping[str, AxisResult]) -> list[Row]:
    """One row for each lm-eval task; its metric says what the numbers are."""
    return [Row(result.metric, None, axis_label(task), result) for task, result in capabilities.items()]


def style_rows(style: Mapping[str, Mapping[str, AxisResult]]) -> list[Row]:
    """One row for each kind of style and axis: length, repetition, cautionary phrases."""
    return [
        Row(kind, None, f"{axis_label(kind)}, {axis.replace('_', '-')}", result)
        for axis, kinds in style.items()
        for kind, result in kinds.items()
    ]


def missing_lines(results: Results) -> list[str]:
    """A line for every axis with answers that have no verdict, or questions that have no answer."""
    told = {axis: missing_text(result, axis) for axis, result in results.axes.items()}
    return [f"{axis_label(axis)}: {text}" for axis, text in told.items() if text]


def method_text(rows: Sequence[Row]) -> str:
    """How the intervals and p of these rows were made, as each result carries it; "" where older ones do not say."""
    told = ""
    for kind, name in (("Interval", "interval_method"), ("p", "test")):
        found: dict[str, list[str]] = {}
        for row in rows:
            if row.control is None and (method := getattr(row.result, name)):
                found.setdefault(method, []).append(row.label)
        methods = "; ".join(f"{how} ({', '.join(of)})" for how, of in found.items())
        told += f" {kind}: {methods}." if found else ""
    return told


def corrected_rows(axes: Mapping[str, AxisResult]) -> Iterator[tuple[str, ...]]:
    """(axis, raw, corrected, raw difference, its interval, corrected one, its interval, sensitivity, specificity, note)
    of every axis whose rates could be corrected for the judge's errors."""
    for axis, result in axes.items():
        if fixed := result.corrected:
            values = (f"{_share(side.base, axis)} to {_share(side.edited, axis)}" for side in (result, fixed))
            differences = (
                text
                for side in (result, fixed)
                for text in (number(side.delta, axis, signed=True), interval_text(side.ci95, axis))
            )
            errors = map(_rate, (fixed.sensitivity, fixed.specificity))
            yield axis_label(axis), *values, *differences, *errors, fixed.note or ""


def _share(value: float | None, axis: str) -> str:
    """A rate as a share: a corrected one may lie a little outside [0, 1]."""
    return number(min(max(value, 0.0), 1.0) if value is not None else None, axis)


def _rate(value: Number | list[Number] | None) -> str:
    """A rate given as a fraction or as [hits, of]."""
    if isinstance(value, list):
        return " of ".join(f"{part:.0f}" for part in value)
    return NOTHING if value is None else f"{value:.2f}"


@styled
def draw_differences(rows: Sequence[Row]) -> Figure:
    """Dot plot: the difference of every axis and control with its 95% interval; one panel for each unit."""
    panels = [[row for row in rows if row.axis not in CAPABILITY_AXES]]
    panels += [[row for row in rows if row.axis == axis] for axis in CAPABILITY_AXES]
    panels = [panel for panel in panels if any(row.result.delta is not None for row in panel)]
    figure = new_figure(9.4, 0.62 * len(panels) + 0.3 * sum(map(len, panels)))
    spaces = figure.add_gridspec(len(panels), 1, height_ratios=[len(panel) + 0.4 for panel in panels])
    for place, panel in enumerate(panels):
        _draw_panel(figure.add_subplot(spaces[place]), panel)
    return figure


def _draw_panel(axes: Axes, rows: list[Row]) -> None:
    axis, unit = rows[0].axis, unit_of(rows[0].axis)
    for place, row in enumerate(rows):
        if row.result.delta is None or row.verdict == "no reading":
            continue
        read = row.control is None and row.verdict != "not measurable"
        sizes = (1.8, 6.5) if row.control is None else (1.1, 4.5)
        scale = 100.0 if unit == POINTS else 1.0
        draw_interval(axes, place, row.result, scale, ACCENT if read else CONTROL, sizes=sizes, filled=read)
    axes.axvline(0, color=INK, linewidth=0.7)
    name_lines(axes, [_line_name(row) for row in rows], len(rows), 9)
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_fontsize(9 if row.control is None else 7.5)
    axes.set_xlabel(unit if axis == "kl" else f"difference in {unit}", fontsize=8)
    bare(axes, 8, "x", grid=True)


def _line_name(row: Row) -> str:
    if row.control is not None:
        return f"control {picture_text(row.control)}"
    return axis_label(row.axis) + (f"\n({row.verdict})" if row.verdict in ("not measurable", "no reading") else "")
