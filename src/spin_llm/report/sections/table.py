"""The results table, shared by the page, the Markdown and the terminal.

In: results.json. Out: one `Row` an axis and, under it, one a control, with the numbers formatted and worded.
Left out: how a row looks; minus signs stay ASCII so that any terminal can print them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spin_llm.report.words import (
    ANSWERED,
    ANSWERS,
    NOTHING,
    Verdict,
    axis_label,
    interval_text,
    is_finite,
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
    result: dict[str, Any]  # the numbers behind the words, as in results.json

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


def table_rows(results: dict[str, Any]) -> list[Row]:
    """The rows in the order of results["axes"]: each axis, then the same axis of every control."""
    rows = []
    named = [results["axes"], *(control["axes"] for control in results["controls"].values())]
    shown = {axis for axes in named for axis in shown_axes(axes)}
    for axis, result in results["axes"].items():
        if axis not in shown:
            continue
        rows.append(make_row(axis, result, None, axis_label(axis)))
        for name, control in results["controls"].items():
            if axis in control["axes"]:
                label = f"control: {name} ({control['weights']:,} weights)"
                rows.append(make_row(axis, control["axes"][axis], name, label))
    return rows


def missing_lines(results: dict[str, Any]) -> list[str]:
    """A line for every axis with answers that have no verdict, or questions that have no answer."""
    told = {axis: missing_text(result, axis) for axis, result in results["axes"].items()}
    return [f"{axis_label(axis)}: {text}" for axis, text in told.items() if text]


def task_rows(capabilities: dict[str, dict[str, Any]]) -> list[Row]:
    """One row for each lm-eval task; its metric says what the numbers are."""
    return [make_row(result["metric"], result, None, axis_label(task)) for task, result in capabilities.items()]


def make_row(axis: str, result: dict[str, Any], control: str | None, label: str) -> Row:
    """One axis entry of results.json as a row."""
    reading = verdict_sentence(result if control is None else {**result, "mde": None}, axis)
    note = result.get("note") or ""
    return Row(
        axis=axis,
        control=control,
        label=label,
        metric=result["metric"],
        n=result["n"],
        base=value_text(result, "base", axis),
        edited=value_text(result, "edited", axis),
        difference=value_text(result, "delta", axis),
        interval=interval_text(result["ci95"], axis),
        p=p_text(result["p"]),
        p_holm=p_text(result.get("p_holm")),
        reading=reading,
        verdict=verdict(result),
        note="; ".join(part for part in ("" if note in reading else note, missing_text(result, axis)) if part),
        result=result,
    )


def corrected_rows(axes: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """(axis, raw, corrected, raw difference, its interval, corrected one, its interval, sensitivity, specificity, note)
    of every axis whose rates could be corrected for the judge's errors."""
    rows = []
    for axis, result in axes.items():
        fixed = result.get("corrected")
        if not fixed:
            continue
        values = (f"{_share(side['base'], axis)} to {_share(side['edited'], axis)}" for side in (result, fixed))
        differences = (
            text
            for side in (result, fixed)
            for text in (number(side["delta"], axis, signed=True), interval_text(side["ci95"], axis))
        )
        errors = (_rate(fixed.get(name)) for name in ("sensitivity", "specificity"))
        rows.append((axis_label(axis), *values, *differences, *errors, fixed.get("note") or ""))
    return rows


def _share(value: float | None, axis: str) -> str:
    """A rate as a share: a corrected one may lie a little outside [0, 1]."""
    return number(min(max(value, 0.0), 1.0) if value is not None else None, axis)


def _rate(value: Any) -> str:
    """A rate given as a fraction or as [hits, of]."""
    if isinstance(value, list) and len(value) == 2:
        return f"{value[0]} of {value[1]}"
    return f"{value:.2f}" if isinstance(value, float | int) and is_finite(value) else NOTHING
