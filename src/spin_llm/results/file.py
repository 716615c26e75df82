"""results.json whole: its type, read, written and described by a JSON Schema (2020-12) that is made from the type.

In: a results.json, or `Results`. Out: the other of the two; SpinError with the first thing that is wrong, and where.
Keys that this version does not know are ignored, parts that older versions did not write are optional, NaN is refused.
Results of version 0.1.0, which took missing verdicts as 0 and did not say on whose answers its judge was measured, get
bounds and the reason not to read them (`as_today`). Left out: whether the numbers agree with one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from spin_llm.files import read_typed, write_json
from spin_llm.results import measured
from spin_llm.results.edited import Edit, RatioTried, Regions, Stability
from spin_llm.results.judged import JudgeSummary
from spin_llm.results.measured import AxisResult, Bounds, Control, Count, FacetRates, Interval, Number, Share, says
from spin_llm.results.searched import SearchRecord

RESULTS = "results.json"
AGAIN = "do the run or comparison again with --overwrite."
SCHEMA = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True, kw_only=True)
class PhraseCount:
    """A phrase of the paper's list, and how many answers contain it; the interval is of the difference of the shares,
    and p of the exact McNemar test."""

    phrase: str
    base: Count
    edited: Count
    n: Count | None = None
    ci95: Interval | None = None
    p: Share | None = None

    @property
    def always(self) -> tuple[str, ...]:
        return ("ci95", "p") if self.n is not None else ()


@dataclass(frozen=True, kw_only=True)
class PhraseShift:
    """A phrase that became more or less frequent, with its log-odds-ratio and z."""

    phrase: str
    base: Count
    edited: Count
    log_odds: Number | None = None
    z: Number


@dataclass(frozen=True, kw_only=True)
class PhrasesRecord:
    """What the answers to the `n` questions show that both models answer; `tried`: phrases compared, `threshold`: the
    |z| that Bonferroni asks of one among them, at 5%."""

    listed: list[PhraseCount] = field(default_factory=list)
    shifted: Annotated[list[PhraseShift], Meta(max_length=1000)] = field(default_factory=list)
    tried: Count | None = None
    threshold: Number | None = None
    n: Count | None = None
    no_reading: str = ""

    always = ("listed", "shifted", "threshold")


@dataclass(frozen=True)
class Warned:
    """What must be said of the base model first."""

    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a run, or a comparison of two models, measured. `base` and `edited` answer the same prompts, and every
    difference is paired."""

    edit: Edit = field(default_factory=Edit)
    axes: dict[str, AxisResult]
    controls: dict[str, Control]
    facets: Annotated[dict[str, dict[str, FacetRates]], says("by axis and facet of the question")] = field(
        default_factory=dict
    )
    style: Annotated[dict[str, dict[str, AxisResult]], says("by axis of the question")] = field(default_factory=dict)
    phrases: Annotated[dict[str, PhrasesRecord], says("by axis of the question")] = field(default_factory=dict)
    judge: JudgeSummary
    warnings: list[Warned] = field(default_factory=list)
    files: Annotated[dict[str, str], says("SHA-256 of the files that this was measured on")] = field(
        default_factory=dict
    )
    ratio_table: list[RatioTried] = field(default_factory=list)
    overlap: Regions | None = None
    search: SearchRecord | None = None
    controls_left_out: Annotated[dict[str, str], says("why a control that was asked for is not there")] = field(
        default_factory=dict
    )
    stability: Stability | None = None
    capabilities: Annotated[dict[str, AxisResult], says("by lm-eval task")] = field(default_factory=dict)
    made_from: Annotated[dict[str, str], says("SHA-256 of what run.json says of settings, model and data")] = field(
        default_factory=dict
    )

    always = ("edit", "facets", "style", "phrases", "warnings", "files", "ratio_table")


def results_schema() -> dict[str, object]:
    """The JSON Schema of results.json; the descriptions are the docstrings of the types."""
    about = {"$schema": SCHEMA, "$id": "urn:spin-llm:results:1", "title": "results.json of spin-llm"}
    return {**about, **msgspec.json.schema(Results)}


def read_results(folder: Path) -> Results:
    """results.json of a run folder. SpinError, which names the place, where something is missing or of a wrong type."""
    return read_typed(folder / RESULTS, Results, change=AGAIN)


def write_results(folder: Path, results: Results) -> None:
    """Write results.json. Raises ValueError for NaN and infinities, which are not JSON."""
    write_json(folder / RESULTS, written(results))


def written(value: Any) -> Any:
    """A typed value as JSON has it: a field that has its default is left out, unless its class names it in `always`."""
    if is_dataclass(value):
        kept = getattr(value, "always", ())
        named = ((one, getattr(value, one.name)) for one in fields(value))
        return {one.name: written(got) for one, got in named if one.name in kept or got != default_of(one)}
    if isinstance(value, Mapping):
        return {key: written(part) for key, part in value.items()}
    return [written(part) for part in value] if isinstance(value, list | tuple) else value


def default_of(one: Field[Any]) -> Any:
    """The default of a field; MISSING, which nothing equals, where it has none."""
    return one.default_factory() if one.default_factory is not MISSING else one.default


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
    if max(base, edited) <= measured.MOST_MISSING and abs(base - edited) <= measured.MOST_APART and len(told) == 1:
        return replace(result, bounds=bounds)
    why = f"{lacking[0]} base and {lacking[1]} edited answers of {result.n} have no verdict; this run took them as 0"
    return replace(result, bounds=bounds, no_reading=why, ci95=None, p=None, p_holm=None, mde=None, corrected=None)


def of_unknown_answers(judge: JudgeSummary, axis: str, result: AxisResult) -> AxisResult:
    """An axis. In a run of version 0.1.0 the judge's quality was that of answers which the run does not name, and holds
    for no others: no reading."""
    if judge.answers or axis in (*measured.CAPABILITY_AXES, measured.ANSWERED) or not result.measurable:
        return result
    note = "measured on answers that this older run does not name"
    return replace(result, measurable=False, note=note, p=None, p_holm=None, mde=None, corrected=None)
