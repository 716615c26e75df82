"""The results: the table that page, Markdown and terminal share, the scoreboard of the first screen, and a picture.

In: results.json. Out: one `Row` an axis and, under it, one a control, with the numbers formatted and worded; two
`Group`s of `Entry`s (what the edit is for; what it costs in capability), each entry with a `Line` for the edit and for
every control, placed on a scale that all lines of one unit share, as fractions of the width that the page draws; a dot
plot of the differences. Left out: how a row looks; minus signs stay ASCII so that any terminal can print them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spin_llm.report import canvas, words
from spin_llm.report.summary import applying, auc_text, judged_axes
from spin_llm.report.words import Verdict
from spin_llm.results.file import Results
from spin_llm.results.measured import ANSWERED, CAPABILITY_AXES, AxisResult, FacetRates, Number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("axis", "n", "base", "edited", "difference", "95% interval", "p", "Holm p", "reading")
MARGIN = 0.06  # of the scale, on either side


@dataclass(frozen=True)
class Row:
    """One line of the table: an axis of results.json; `control` names whose values are `edited`, None: the edit's."""

    axis: str
    control: str | None
    label: str
    result: AxisResult

    @property
    def verdict(self) -> Verdict:
        return words.verdict(self.result)

    @property
    def weak(self) -> bool:
        return self.verdict in ("improved", "worse") and self.axis != "kl" and words.is_weak(self.result)

    @property
    def reading(self) -> str:
        return words.verdict_sentence(
            self.result if self.control is None else replace(self.result, mde=None), self.axis
        )

    @property
    def note(self) -> str:
        """What the reading does not say."""
        why = self.result.note or ""
        parts = ("" if why in self.reading else why, words.missing_text(self.result, self.axis))
        return "; ".join(part for part in parts if part)

    @property
    def short(self) -> str:
        """The verdict in a few words, with what could not have been seen where nothing was."""
        if self.axis == "kl":
            return ""
        if self.axis == ANSWERED:
            return words.ANSWERS.get(self.verdict, self.verdict)
        if self.verdict == "not measurable":
            return self.reading
        smallest = words.smallest_seen(self.result, self.axis) if self.verdict == "unchanged" else ""
        return self.verdict + (", weak" if self.weak else "") + (f" (< {smallest} unseen)" if smallest else "")

    @property
    def cells(self) -> tuple[str, ...]:
        """The texts of the row, in the order of `COLUMNS`."""
        values = (words.value_text(self.result, side, self.axis) for side in ("base", "edited", "delta"))
        ps = (words.p_text(self.result.p), words.p_text(self.result.p_holm))
        return (
            self.label,
            str(self.result.n),
            *values,
            words.interval_text(self.result.ci95, self.axis),
            *ps,
            self.reading,
        )


def table_rows(results: Results) -> list[Row]:
    """The rows in the order of `axes`: each axis, then the same axis of every control."""
    rows = []
    named = [results.axes, *(control.axes for control in results.controls.values())]
    shown = {axis for axes in named for axis in words.shown_axes(axes)}
    for axis, result in results.axes.items():
        if axis not in shown:
            continue
        rows.append(Row(axis, None, words.axis_label(axis), result))
        for name, control in results.controls.items():
            if axis in control.axes:
                label = f"control: {name} ({control.weights:,} weights)"
                rows.append(Row(axis, name, label, control.axes[axis]))
    return rows


def task_rows(capabilities: Mapping[str, AxisResult]) -> list[Row]:
    """One row for each lm-eval task; its metric says what the numbers are."""
    return [Row(result.metric, None, words.axis_label(task), result) for task, result in capabilities.items()]


def style_rows(style: Mapping[str, Mapping[str, AxisResult]]) -> list[Row]:
    """One row for each kind of style and axis: length, repetition, cautionary phrases."""
    return [
        Row(kind, None, f"{words.axis_label(kind)}, {axis.replace('_', '-')}", result)
        for axis, kinds in style.items()
        for kind, result in kinds.items()
    ]


def missing_lines(results: Results) -> list[str]:
    """A line for every axis with answers that have no verdict, or questions that have no answer."""
    told = {axis: words.missing_text(result, axis) for axis, result in results.axes.items()}
    return [f"{words.axis_label(axis)}: {text}" for axis, text in told.items() if text]


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
                for text in (words.number(side.delta, axis, signed=True), words.interval_text(side.ci95, axis))
            )
            errors = map(_rate, (fixed.sensitivity, fixed.specificity))
            yield words.axis_label(axis), *values, *differences, *errors, fixed.note or ""


def _share(value: float | None, axis: str) -> str:
    """A rate as a share: a corrected one may lie a little outside [0, 1]."""
    return words.number(min(max(value, 0.0), 1.0) if value is not None else None, axis)


def _rate(value: Number | list[Number] | None) -> str:
    """A rate given as a fraction or as [hits, of]."""
    if isinstance(value, list):
        return " of ".join(f"{part:.0f}" for part in value)
    return words.NOTHING if value is None else f"{value:.2f}"


@dataclass(frozen=True)
class Line:
    """A difference with its interval; `dot`, `low`, `high`, `zero` are places in [0, 1], None where there is none."""

    name: str
    control: bool
    difference: str
    interval: str
    zero: float
    dot: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Entry:
    """One axis. `unseen_band`: the places between which a change could not have been seen reliably."""

    row: Row
    facts: list[str]
    lines: list[Line]
    unseen_band: tuple[float, float] | None


@dataclass(frozen=True)
class Group:
    title: str
    entries: list[Entry]


@dataclass(frozen=True)
class Scale:
    """From a value to its place in [0, 1]."""

    low: float
    high: float

    def place(self, value: float) -> float:
        return round((value - self.low) / (self.high - self.low), 4)


def scale_of(results: Iterable[AxisResult | FacetRates]) -> Scale:
    """A scale that holds 0 and every difference with its interval."""
    values = [0.0]
    for result in results:
        dot = dot_of(result)
        values += [*(result.ci95 or ()), *([] if dot is None else [dot])]
    low, high = min(values), max(values)
    margin = MARGIN * (high - low) or 1.0
    return Scale(low - margin, high + margin)


def dot_of(result: AxisResult | FacetRates) -> float | None:
    """The difference to draw: none where missing verdicts forbid a reading."""
    return None if result.no_reading else result.delta


def line_of(name: str, axis: str, result: AxisResult | FacetRates, scale: Scale, *, control: bool = False) -> Line:
    low, high = map(scale.place, result.ci95) if result.ci95 else (None, None)
    dot = dot_of(result)
    return Line(
        name=name,
        control=control,
        difference=words.value_text(result, "delta", axis),
        interval=words.interval_text(result.ci95, axis),
        zero=scale.place(0.0),
        dot=None if dot is None else scale.place(dot),
        low=low,
        high=high,
    )


def make_board(results: Results) -> list[Group]:
    """The groups that have entries; one scale a unit, so that lengths can be compared by eye."""
    together: dict[str, list[Row]] = {}
    for row in table_rows(results):
        together.setdefault(row.axis, []).append(row)
    first = [together[axis] for axis in (*judged_axes(results), ANSWERED) if axis in together]
    cost = [rows for axis, rows in together.items() if axis in CAPABILITY_AXES]
    cost += [[row] for row in task_rows(results.capabilities)]
    by_unit: dict[str, list[AxisResult]] = {}
    for row in (row for rows in (*first, *cost) for row in rows):
        by_unit.setdefault(words.unit_of(row.axis), []).append(row.result)
    scales = {unit: scale_of(of) for unit, of in by_unit.items()}
    judged = {axis: f"judge {auc_text(applying(results, axis))}" for axis in judged_axes(results)}

    def group(title: str, entries: list[list[Row]]) -> Group:
        return Group(
            title, [make_entry(of, scales[words.unit_of(of[0].axis)], judged.get(of[0].axis, "")) for of in entries]
        )

    groups = group("What the edit is for, and what it must not do", first), group("Cost in capability", cost)
    return [one for one in groups if one.entries]


def make_entry(rows: list[Row], scale: Scale, judge: str) -> Entry:
    """One axis with its lines, the edit's first; what is known of its judge stands among the facts."""
    row = rows[0]
    axis, result, unchanged = row.axis, row.result, row.verdict == "unchanged"
    facts = [
        words.p_words(result),
        words.unseen(result, axis) if unchanged else "",
        corrected_text(result, axis),
        judge,
    ]
    facts += [words.missing_text(result, axis), *(result.no_reading.split("; ")[1:])]
    band = None
    if unchanged and (mde := result.mde) is not None:
        low, high = (min(max(scale.place(side * mde), 0.0), 1.0) for side in (-1, 1))
        band = (low, high)
    named = [(one, one.control or "the edit") for one in rows]
    lines = [line_of(name, axis, one.result, scale, control=one.control is not None) for one, name in named]
    return Entry(row, [fact for fact in facts if fact], lines, band)


def corrected_text(result: AxisResult, axis: str) -> str:
    """The difference corrected for the judge's errors, in a few words; "" where it is not known."""
    fixed = result.corrected
    if not fixed or fixed.delta is None:
        return ""
    difference = words.number(fixed.delta, axis, signed=True)
    return (
        f"corrected for the judge's errors {difference} ({words.interval_text(fixed.ci95, axis)}{words.points(axis)})"
    )


@canvas.styled()
def draw_differences(rows: Sequence[Row]) -> Figure:
    """Dot plot: the difference of every axis and control with its 95% interval; one panel for each unit."""
    panels = [[row for row in rows if row.axis not in CAPABILITY_AXES]]
    panels += [[row for row in rows if row.axis == axis] for axis in CAPABILITY_AXES]
    panels = [panel for panel in panels if any(row.result.delta is not None for row in panel)]
    figure = canvas.new_figure(9.4, 0.62 * len(panels) + 0.3 * sum(map(len, panels)))
    spaces = figure.add_gridspec(len(panels), 1, height_ratios=[len(panel) + 0.4 for panel in panels])
    for place, panel in enumerate(panels):
        _draw_panel(figure.add_subplot(spaces[place]), panel)
    return figure


def _draw_panel(axes: Axes, rows: list[Row]) -> None:
    axis, unit = rows[0].axis, words.unit_of(rows[0].axis)
    for place, row in enumerate(rows):
        if row.result.delta is None or row.verdict == "no reading":
            continue
        read = row.control is None and row.verdict != "not measurable"
        sizes = (1.8, 6.5) if row.control is None else (1.1, 4.5)
        canvas.draw_interval(
            axes, place, row.result, axis, canvas.ACCENT if read else canvas.CONTROL, sizes=sizes, filled=read
        )
    axes.axvline(0, color=canvas.INK, linewidth=0.7)
    canvas.name_lines(axes, [_line_name(row) for row in rows], len(rows), 9)
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_fontsize(9 if row.control is None else 7.5)
    axes.set_xlabel(unit if axis == "kl" else f"difference in {unit}", fontsize=8)
    canvas.bare(axes, 8, "x", grid=True)


def _line_name(row: Row) -> str:
    if row.control is not None:
        return f"control {canvas.picture_text(row.control)}"
    return words.axis_label(row.axis) + (
        f"\n({row.verdict})" if row.verdict in ("not measurable", "no reading") else ""
    )
