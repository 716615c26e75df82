"""How good the judge is, as a table: its measured quality on every axis, and how far other judges agree with it.

In: `judge` of results.json. Out: rows of texts. What was not measured shows as a dash.
Left out: measuring it (the evaluate stage), and the one-line form (report/summary.py).
"""

from __future__ import annotations

from typing import Any

from spin_llm.report.summary import applying, auc_interval, judged_axes, unmeasured_text
from spin_llm.report.words import NOTHING, axis_label, has_interval, is_finite, number

QUALITY_COLUMNS = (
    "axis", "AUC", "95% interval", "n", "accuracy", "sensitivity", "specificity", "Brier score",
    "calibration error", "rate labelled / judged", "measurable",
)  # fmt: skip
CELLS = ("found", "missed", "false_alarms", "rejected")  # of a confusion table, as results.json names them


def quality_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row an axis that the judge decides, in the order of `QUALITY_COLUMNS`, and then the answers measured on."""
    found = {axis: applying(results, axis) for axis in judged_axes(results)}
    return [_quality_row(axis, one or {"source": unmeasured_text(results, axis)}) for axis, one in found.items()]


def _quality_row(axis: str, measured: dict[str, Any]) -> tuple[str, ...]:
    labelled = measured.get("positive_rate") or []
    return (
        axis_label(axis),
        _decimal(measured.get("auc")),
        _interval(auc_interval(measured)),
        str(measured.get("n", NOTHING)),
        _decimal(measured.get("accuracy")),
        _hits(measured.get("sensitivity")),
        _hits(measured.get("specificity")),
        _decimal(measured.get("brier"), 3),
        _decimal(measured.get("calibration_error"), 3),
        " / ".join(number(rate) for rate in labelled) or NOTHING,
        "yes" if measured.get("measurable") else "no",
        str(measured.get("source") or ""),
    )


def confusion_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """(axis, facet, found, missed, false alarms, rejected) on labelled answers: an axis's total, then its facets."""
    quality = {axis: applying(results, axis) or {} for axis in judged_axes(results)}
    return [
        (axis_label(axis), facet, *(str(counts[cell]) for cell in CELLS))
        for axis in judged_axes(results)
        if quality[axis].get("confusion")
        for facet, counts in {"all": quality[axis]["confusion"], **quality[axis].get("facets", {})}.items()
    ]


def agreement_rows(agreement: dict[str, dict[str, dict[str, Any]]]) -> list[tuple[str, ...]]:
    """(other judge, axis, n, Cohen's kappa, its 95% interval) of every pair that both judged."""
    return [
        (judge, axis_label(axis), str(found["n"]), _decimal(found["kappa"]), _interval(found.get("ci95")))
        for judge, axes in agreement.items()
        for axis, found in axes.items()
    ]


def _decimal(value: float | None, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if is_finite(value) else NOTHING


def _interval(interval: list[float] | None) -> str:
    if not has_interval(interval):
        return NOTHING
    assert interval is not None
    return f"{interval[0]:.2f} to {interval[1]:.2f}"


def _hits(value: Any) -> str:
    """[hits, of] as `0.78 (7 of 9)`."""
    if not isinstance(value, list) or len(value) != 2 or not value[1]:
        return NOTHING
    return f"{value[0] / value[1]:.2f} ({value[0]} of {value[1]})"
