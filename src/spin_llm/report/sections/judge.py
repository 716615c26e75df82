"""How good the judge is, as a table: its measured quality on every axis, and how far other judges agree with it.

In: `judge` of results.json. Out: rows of texts. What was not measured shows as a dash.
Left out: measuring it (the evaluate stage), and the one-line form (report/summary.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from spin_llm.report.summary import applying, auc_interval, judged_axes, unmeasured_text
from spin_llm.report.words import NOTHING, axis_label, number
from spin_llm.results.file import Results
from spin_llm.results.judged import Kappa
from spin_llm.results.measured import Interval, Pair

QUALITY_COLUMNS = (
    "axis", "AUC", "95% interval", "n", "accuracy", "sensitivity", "specificity", "Brier score",
    "calibration error", "rate labelled / judged", "measurable",
)  # fmt: skip


def quality_rows(results: Results) -> Iterator[tuple[str, ...]]:
    """One row an axis that the judge decides, in the order of `QUALITY_COLUMNS`, and then the answers measured on."""
    for axis in judged_axes(results):
        measured = applying(results, axis)
        if not measured:
            unknown = [NOTHING] * (len(QUALITY_COLUMNS) - 2)
            yield axis_label(axis), *unknown, "no", unmeasured_text(results, axis)
            continue
        yield (
            axis_label(axis),
            _decimal(measured.auc),
            _interval(auc_interval(measured)),
            str(measured.n),
            _decimal(measured.accuracy),
            _hits(measured.sensitivity),
            _hits(measured.specificity),
            _decimal(measured.brier, 3),
            _decimal(measured.calibration_error, 3),
            " / ".join(number(rate) for rate in measured.positive_rate or ()) or NOTHING,
            "yes" if measured.measurable else "no",
            measured.source or "",
        )


def confusion_rows(results: Results) -> list[tuple[str, ...]]:
    """(axis, facet, found, missed, false alarms, rejected) on labelled answers: an axis's total, then its facets."""
    return [
        (axis_label(axis), facet, *map(str, (one.found, one.missed, one.false_alarms, one.rejected)))
        for axis in judged_axes(results)
        if (measured := applying(results, axis)) and measured.confusion
        for facet, one in {"all": measured.confusion, **measured.facets}.items()
    ]


def agreement_rows(agreement: Mapping[str, Mapping[str, Kappa]]) -> list[tuple[str, ...]]:
    """(other judge, axis, n, Cohen's kappa, its 95% interval) of every pair that both judged."""
    return [
        (judge, axis_label(axis), str(found.n), _decimal(found.kappa), _interval(found.ci95))
        for judge, axes in agreement.items()
        for axis, found in axes.items()
    ]


def _decimal(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _interval(interval: Interval | None) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else NOTHING


def _hits(value: Pair | None) -> str:
    """(hits, of) as `0.78 (7 of 9)`."""
    return f"{value[0] / value[1]:.2f} ({value[0]} of {value[1]})" if value and value[1] else NOTHING
