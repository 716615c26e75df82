"""results.json whole: its type, read and checked, and its JSON Schema (2020-12), which is shipped with the package.

In: a results.json. Out: its content; or SpinError with the first thing that is wrong, and where. Parts that older
versions did not write are optional. Left out: whether the numbers agree with one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from spin_llm.errors import SpinError
from spin_llm.files import read_checked, read_json
from spin_llm.results.edited import Edit, RatioTried, Regions, Stability
from spin_llm.results.judged import JudgeSummary
from spin_llm.results.measured import AxisResult, Control, Count, FacetRates, Number
from spin_llm.results.searched import SearchRecord

RESULTS = "results.json"
SCHEMA = Path(__file__).parents[1] / "results.schema.json"


def results_schema() -> dict[str, Any]:
    return dict(read_json(SCHEMA))


def check_results(results: Mapping[str, Any]) -> None:
    """Raise SpinError where `results` departs from the schema; needs the package jsonschema."""
    try:
        import jsonschema
    except ImportError:
        raise SpinError(
            "Checking results needs the package jsonschema.", change="install it: pip install jsonschema."
        ) from None
    checker = jsonschema.Draft202012Validator(results_schema())
    wrong = jsonschema.exceptions.best_match(checker.iter_errors(results))
    if wrong is not None:
        raise SpinError(
            f"results.json is not as its schema says at {wrong.json_path}: {wrong.message}",
            cause="it was written by another version of spin-llm, or changed by hand.",
        )


@dataclass(frozen=True)
class PhraseCount:
    phrase: str
    base: Count
    edited: Count
    z: Number | None = None


@dataclass(frozen=True)
class PhraseShift(PhraseCount):
    def __post_init__(self) -> None:
        if self.z is None:
            raise ValueError("a phrase that shifted has its z")


@dataclass(frozen=True)
class PhrasesRecord:
    listed: list[PhraseCount] = field(default_factory=list)
    shifted: Annotated[list[PhraseShift], Meta(max_length=1000)] = field(default_factory=list)
    tried: Count | None = None
    threshold: Number | None = None
    n: Count | None = None
    no_reading: str = ""


@dataclass(frozen=True)
class Warned:
    """What must be said of the base model first."""

    kind: str
    text: str


@dataclass(frozen=True)
class Results:
    """results.json; results.schema.json describes it in full."""

    axes: dict[str, AxisResult]
    controls: dict[str, Control]
    judge: JudgeSummary
    edit: Edit = field(default_factory=Edit)
    ratio_table: list[RatioTried] = field(default_factory=list)
    facets: dict[str, dict[str, FacetRates]] = field(default_factory=dict)
    style: dict[str, dict[str, AxisResult]] = field(default_factory=dict)
    phrases: dict[str, PhrasesRecord] = field(default_factory=dict)
    capabilities: dict[str, AxisResult] = field(default_factory=dict)
    overlap: Regions | None = None
    stability: Stability | None = None
    search: SearchRecord | None = None
    controls_left_out: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    warnings: list[Warned] = field(default_factory=list)


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of a run folder."""
    return dict(read_checked(folder / RESULTS, Results, change="do the run or comparison again with --overwrite."))
