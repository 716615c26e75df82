"""The scoreboard of the first screen: every axis with its interval, its controls, and the judge's quality beside it.

In: results.json. Out: two `Group`s of `Entry`s (what the edit is for; what it costs in capability), each entry with a
`Line` for the edit and for every control, placed on a scale that all lines of one unit share.
Left out: how it looks; the places are fractions of the width, which the page draws.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spin_llm.report.sections.table import Row, table_rows, task_rows
from spin_llm.report.summary import applying, auc_text, judged_axes
from spin_llm.report.words import interval_text, missing_text, number, p_words, points, unit_of, unseen, value_text
from spin_llm.results.file import Results
from spin_llm.results.measured import ANSWERED, CAPABILITY_AXES, AxisResult, FacetRates

MARGIN = 0.06  # of the scale, on either side


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
        difference=value_text(result, "delta", axis),
        interval=interval_text(result.ci95, axis),
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
        by_unit.setdefault(unit_of(row.axis), []).append(row.result)
    scales = {unit: scale_of(of) for unit, of in by_unit.items()}
    judged = {axis: f"judge {auc_text(applying(results, axis))}" for axis in judged_axes(results)}

    def group(title: str, entries: list[list[Row]]) -> Group:
        return Group(title, [make_entry(of, scales[unit_of(of[0].axis)], judged.get(of[0].axis, "")) for of in entries])

    groups = group("What the edit is for, and what it must not do", first), group("Cost in capability", cost)
    return [one for one in groups if one.entries]


def make_entry(rows: list[Row], scale: Scale, judge: str) -> Entry:
    """One axis with its lines, the edit's first; what is known of its judge stands among the facts."""
    row = rows[0]
    axis, result, unchanged = row.axis, row.result, row.verdict == "unchanged"
    facts = [p_words(result), unseen(result, axis) if unchanged else "", corrected_text(result, axis), judge]
    facts += [missing_text(result, axis), *(result.no_reading.split("; ")[1:])]
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
    difference = number(fixed.delta, axis, signed=True)
    return f"corrected for the judge's errors {difference} ({interval_text(fixed.ci95, axis)}{points(axis)})"
