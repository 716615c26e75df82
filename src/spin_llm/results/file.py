"""results.json whole: its type, read, written and described by a JSON Schema (2020-12) that is made from the type.

In: a results.json, or `Results`. Out: the other of the two; SpinError with the first thing that is wrong, and where.
Keys that this version does not know are ignored, parts that older versions did not write are optional, NaN is refused.
Left out: whether the numbers agree with one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from spin_llm.files import read_typed, write_json
from spin_llm.results.edited import Edit, RatioTried, Regions, Stability
from spin_llm.results.judged import JudgeSummary
from spin_llm.results.measured import AxisResult, Control, Count, FacetRates, Interval, Number, Share, told
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
    facets: Annotated[dict[str, dict[str, FacetRates]], told("by axis and facet of the question")] = field(
        default_factory=dict
    )
    style: Annotated[dict[str, dict[str, AxisResult]], told("by axis of the question")] = field(default_factory=dict)
    phrases: Annotated[dict[str, PhrasesRecord], told("by axis of the question")] = field(default_factory=dict)
    judge: JudgeSummary
    warnings: list[Warned] = field(default_factory=list)
    files: Annotated[dict[str, str], told("SHA-256 of the files that this was measured on")] = field(
        default_factory=dict
    )
    ratio_table: list[RatioTried] = field(default_factory=list)
    overlap: Regions | None = None
    search: SearchRecord | None = None
    controls_left_out: Annotated[dict[str, str], told("why a control that was asked for is not there")] = field(
        default_factory=dict
    )
    stability: Stability | None = None
    capabilities: Annotated[dict[str, AxisResult], told("by lm-eval task")] = field(default_factory=dict)
    made_from: Annotated[dict[str, str], told("SHA-256 of what run.json says of settings, model and data")] = field(
        default_factory=dict
    )

    always = ("edit", "facets", "style", "phrases", "warnings", "files", "ratio_table")


def results_schema() -> dict[str, Any]:
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
