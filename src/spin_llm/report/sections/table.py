"""The results table, shared by the page, the Markdown and the terminal.

In: results.json. Out: one `Row` an axis and, under it, one a control, with the numbers formatted and worded.
Left out: how a row looks; minus signs stay ASCII so that any terminal can print them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from spin_llm.report.words import (
    ANSWERS,
    NOTHING,
    Verdict,
    axis_label,
    interval_text,
    is_weak,
    missing_text,
    number,
    p_text,
    shown_axes,
    smallest_seen,
    value_text,
    verdict,
    verdict_sentence,
)
from spin_llm.results.file import Results
from spin_llm.results.measured import ANSWERED, AxisResult, Number

COLUMNS = ("axis", "n", "base", "edited", "difference", "95% interval", "p", "Holm p", "reading")


@dataclass(frozen=True)
class Row:
    """One line of the table. `control` names the control whose values stand in `edited`; None for the edit itself."""

    axis: str
    control: str | None
    label: str
    metric: str
    n: int
    base: str
    edited: str
    difference: str
    interval: str
    p: str
    p_holm: str
    reading: str
    verdict: Verdict
    note: str
    result: AxisResult  # the numbers behind the words, as in results.json

    @property
    def short(self) -> str:
        """The verdict in a few words, with what could not have been seen where nothing was."""
        if self.axis == "kl":
            return ""
        if self.axis == ANSWERED:
            return ANSWERS.get(self.verdict, self.verdict)
        if self.verdict == "not measurable":
            return self.reading
        weak = ", weak" if self.verdict in ("improved", "worse") and is_weak(self.result) else ""
        smallest = smallest_seen(self.result, self.axis) if self.verdict == "unchanged" else ""
        return self.verdict + weak + (f" (< {smallest} unseen)" if smallest else "")

    @property
    def cells(self) -> tuple[str, ...]:
        """The texts of the row, in the order of `COLUMNS`."""
        return (
            self.label,
            str(self.n),
            self.base,
            self.edited,
            self.difference,
            self.interval,
            self.p,
            self.p_holm,
            self.reading,
        )


def table_rows(results: Results) -> list[Row]:
    """The rows in the order of `axes`: each axis, then the same axis of every control."""
    rows = []
    named = [results.axes, *(control.axes for control in results.controls.values())]
    shown = {axis for axes in named for axis in shown_axes(axes)}
    for axis, result in results.axes.items():
        if axis not in shown:
            continue
        rows.append(make_row(axis, result, None, axis_label(axis)))
        for name, control in results.controls.items():
            if axis in control.axes:
                label = f"control: {name} ({control.weights:,} weights)"
                rows.append(make_row(axis, control.axes[axis], name, label))
    return rows


def missing_lines(results: Results) -> list[str]:
    """A line for every axis with answers that have no verdict, or questions that have no answer."""
    told = {axis: missing_text(result, axis) for axis, result in results.axes.items()}
    return [f"{axis_label(axis)}: {text}" for axis, text in told.items() if text]


def task_rows(capabilities: Mapping[str, AxisResult]) -> list[Row]:
    """One row for each lm-eval task; its metric says what the numbers are."""
    return [make_row(result.metric, result, None, axis_label(task)) for task, result in capabilities.items()]


def make_row(axis: str, result: AxisResult, control: str | None, label: str) -> Row:
    """One axis entry of results.json as a row."""
    reading = verdict_sentence(result if control is None else replace(result, mde=None), axis)
    note = result.note or ""
    return Row(
        axis=axis,
        control=control,
        label=label,
        metric=result.metric,
        n=result.n,
        base=value_text(result, "base", axis),
        edited=value_text(result, "edited", axis),
        difference=value_text(result, "delta", axis),
        interval=interval_text(result.ci95, axis),
        p=p_text(result.p),
        p_holm=p_text(result.p_holm),
        reading=reading,
        verdict=verdict(result),
        note="; ".join(part for part in ("" if note in reading else note, missing_text(result, axis)) if part),
        result=result,
    )


def method_text(rows: Sequence[Row]) -> str:
    """How the intervals and p of these rows were made, as each result carries it; "" where older ones do not say."""
    told = []
    for kind, name in (("Interval", "interval_method"), ("p", "test")):
        found: dict[str, list[str]] = {}
        for row in rows:
            if row.control is None and (method := getattr(row.result, name)):
                found.setdefault(method, []).append(row.label)
        told += [f"{kind}: " + "; ".join(f"{how} ({', '.join(of)})" for how, of in found.items())] if found else []
    return "".join(f" {line}." for line in told)


def corrected_rows(axes: Mapping[str, AxisResult]) -> list[tuple[str, ...]]:
    """(axis, raw, corrected, raw difference, its interval, corrected one, its interval, sensitivity, specificity, note)
    of every axis whose rates could be corrected for the judge's errors."""
    rows = []
    for axis, result in axes.items():
        fixed = result.corrected
        if not fixed:
            continue
        values = (f"{_share(side.base, axis)} to {_share(side.edited, axis)}" for side in (result, fixed))
        differences = (
            text
            for side in (result, fixed)
            for text in (number(side.delta, axis, signed=True), interval_text(side.ci95, axis))
        )
        errors = map(_rate, (fixed.sensitivity, fixed.specificity))
        rows.append((axis_label(axis), *values, *differences, *errors, fixed.note or ""))
    return rows


def _share(value: float | None, axis: str) -> str:
    """A rate as a share: a corrected one may lie a little outside [0, 1]."""
    return number(min(max(value, 0.0), 1.0) if value is not None else None, axis)


def _rate(value: Number | list[Number] | None) -> str:
    """A rate given as a fraction or as [hits, of]."""
    if isinstance(value, list):
        return " of ".join(f"{part:.0f}" for part in value)
    return NOTHING if value is None else f"{value:.2f}"
