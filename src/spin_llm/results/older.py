"""Results of version 0.1.0, read as today's are.

In: results as they were stored. Out: the same; where version 0.1.0 took missing verdicts as 0, or did not say on whose
answers its judge was measured, with bounds and the reason not to read them. Left out: other differences, which have a
default (file.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from spin_llm.results.file import Results
from spin_llm.results.judged import JudgeSummary
from spin_llm.results.measured import ANSWERED, CAPABILITY_AXES, MOST_APART, MOST_MISSING, AxisResult, Bounds


def as_today(results: Results) -> Results:
    """The results with what today's say of their axes and of those of their controls."""

    def told(axes: Mapping[str, AxisResult]) -> dict[str, AxisResult]:
        return {axis: of_unknown_answers(results.judge, axis, with_bounds(result)) for axis, result in axes.items()}

    controls = {name: replace(control, axes=told(control.axes)) for name, control in results.controls.items()}
    return replace(results, axes=told(results.axes), controls=controls)


def with_bounds(result: AxisResult) -> AxisResult:
    """An axis. One of version 0.1.0, which counted missing verdicts as 0, gets bounds, and a reason not to be read
    where they are more than 5% of a model's, differ by more than 2 points or decide the conclusion."""
    lacking = result.unparsed or (0, 0)
    if result.bounds or not any(lacking) or result.ci95 is None:
        return result
    values = (result.base, result.edited, result.delta)
    before, after, delta = (value or 0.0 for value in values)  # none lacks beside an interval
    base, edited = (count / result.n for count in lacking)
    low, high = result.ci95
    ends = (low - base, high + edited)
    spans = ((low, high), (ends[0], high - base), (low + edited, ends[1]))
    told = {(first > 0) - (last < 0) for first, last in spans}
    bounds = Bounds(
        base=(before, before + base), edited=(after, after + edited), delta=(delta - base, delta + edited), ci95=ends
    )
    if max(base, edited) <= MOST_MISSING and abs(base - edited) <= MOST_APART and len(told) == 1:
        return replace(result, bounds=bounds)
    why = f"{lacking[0]} base and {lacking[1]} edited answers of {result.n} have no verdict; this run took them as 0"
    return replace(result, bounds=bounds, no_reading=why, ci95=None, p=None, p_holm=None, mde=None, corrected=None)


def of_unknown_answers(judge: JudgeSummary, axis: str, result: AxisResult) -> AxisResult:
    """An axis. In a run of version 0.1.0 the judge's quality was that of answers which the run does not name, and holds
    for no others: no reading."""
    if judge.answers or axis in (*CAPABILITY_AXES, ANSWERED) or not result.measurable:
        return result
    note = "measured on answers that this older run does not name"
    return replace(result, measurable=False, note=note, p=None, p_holm=None, mde=None, corrected=None)
