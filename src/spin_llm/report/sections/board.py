"""The scoreboard of the first screen: every axis with its interval, its controls, and the judge's quality beside it.

In: results.json. Out: two `Group`s of `Entry`s (what the edit is for; what it costs in capability), each entry with a
`Line` for the edit and for every control, placed on a scale that all lines of one unit share.
Left out: how it looks; the places are fractions of the width, which the page draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from spin_llm.report.summary import applying, auc_text, judged_axes
from spin_llm.report.words import (
    POINTS,
    Verdict,
    axis_label,
    interval_text,
    is_weak,
    missing_text,
    number,
    p_words,
    shown_axes,
    unit_of,
    unseen,
    value_text,
    verdict,
)
from spin_llm.results.file import Results
from spin_llm.results.measured import ANSWERED, CAPABILITY_AXES, AxisResult, FacetRates

MARGIN = 0.06  # of the scale, on either side
EDIT = "the edit"
Named = Sequence[tuple[str, AxisResult]]  # the edit's result and its controls'


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

    axis: str
    label: str
    verdict: Verdict
    weak: bool
    metric: str
    values: str
    n: int
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


def line_of(name: str, axis: str, result: AxisResult | FacetRates, scale: Scale, *, control: bool) -> Line:
    low, high = map(scale.place, result.ci95) if result.ci95 else (None, None)
    dot = dot_of(result)
    return Line(
        name=name,
        control=control,
        difference=value_text(result, "delta", axis),
        interval=interval_text(result.ci95, axis),
        zero=scale.place(0.0),
        dot=None if dot is None else scale.place(dot),
        low=low,
        high=high,
    )


def make_board(results: Results) -> list[Group]:
    """The groups that have entries."""
    main = {axis: _together(results, axis) for axis in judged_axes(results)}
    if any(ANSWERED in shown_axes({ANSWERED: one}) for _, one in answered(results)):
        main[ANSWERED] = answered(results)
    capability = {axis: _together(results, axis) for axis in results.axes if axis in CAPABILITY_AXES}
    tasks = {axis: [(EDIT, result)] for axis, result in results.capabilities.items()}
    scales = _scales({**main, **capability, **{f"task {axis}": lines for axis, lines in tasks.items()}})
    first = [
        make_entry(
            axis, lines, scales[unit_of(axis)], "" if axis == ANSWERED else f"judge {auc_text(applying(results, axis))}"
        )
        for axis, lines in main.items()
    ]
    cost = [make_entry(axis, lines, scales[unit_of(axis)]) for axis, lines in capability.items()]
    cost += [make_entry(lines[0][1].metric, lines, scales[unit_of(lines[0][1].metric)], label=axis_label(task))
             for task, lines in tasks.items()]  # fmt: skip
    groups = [Group("What the edit is for, and what it must not do", first), Group("Cost in capability", cost)]
    return [group for group in groups if group.entries]


def answered(results: Results) -> Named:
    """The lines of the axis `answered`; none in older runs."""
    return _together(results, ANSWERED) if ANSWERED in results.axes else []


def _together(results: Results, axis: str) -> Named:
    """(name, result) of the edit and then of every control that has the axis."""
    controls = results.controls.items()
    return [
        (EDIT, results.axes[axis]),
        *((name, control.axes[axis]) for name, control in controls if axis in control.axes),
    ]


def _scales(lines: Mapping[str, Named]) -> dict[str, Scale]:
    """One scale a unit, so that lengths can be compared by eye."""
    by_unit: dict[str, list[AxisResult]] = {}
    for axis, named in lines.items():
        unit = unit_of(named[0][1].metric if axis.startswith("task ") else axis)
        by_unit.setdefault(unit, []).extend(result for _, result in named)
    return {unit: scale_of(results) for unit, results in by_unit.items()}


def make_entry(axis: str, lines: Named, scale: Scale, *more: str, label: str = "") -> Entry:
    """One axis with its lines, the edit's first. `more`: facts that stand after those that the result gives."""
    result = lines[0][1]
    found = verdict(result)
    facts = [p_words(result), unseen(result, axis) if found == "unchanged" else "", corrected_text(result, axis), *more]
    facts += [missing_text(result, axis), *(result.no_reading.split("; ")[1:])]
    band = None
    if found == "unchanged" and (mde := result.mde) is not None:
        low, high = (min(max(scale.place(side * mde), 0.0), 1.0) for side in (-1, 1))
        band = (low, high)
    return Entry(
        axis=axis,
        label=label or axis_label(axis),
        verdict=found,
        weak=found in ("improved", "worse") and axis != "kl" and is_weak(result),
        metric=result.metric,
        values=f"{value_text(result, 'base', axis)} → {value_text(result, 'edited', axis)}",
        n=result.n,
        facts=[fact for fact in facts if fact],
        lines=[line_of(name, axis, one, scale, control=name != EDIT) for name, one in lines],
        unseen_band=band,
    )


def corrected_text(result: AxisResult, axis: str) -> str:
    """The difference corrected for the judge's errors, in a few words; "" where it is not known."""
    fixed = result.corrected
    if not fixed or fixed.delta is None:
        return ""
    difference = number(fixed.delta, axis, signed=True)
    points = " pp" if unit_of(axis) == POINTS else ""
    return f"corrected for the judge's errors {difference} ({interval_text(fixed.ci95, axis)}{points})"
