"""What the files of the paper's experiments hold, by type.

In: nothing. Out: frozen dataclasses that decode an arm's files and EXPERIMENT.json. Left out: the insides of
`information` and `location`, long tables that one part of the paper's report reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from spin_llm.results.file import PhrasesRecord
from spin_llm.results.judged import JudgeSummary
from spin_llm.results.measured import AxisResult, Count, Number
from spin_llm.results.searched import Gain


@dataclass(frozen=True)
class AboutArm:
    weights: Count
    why: str | None = None


@dataclass(frozen=True)
class ArmRecord:
    """What was measured on one model of the paper's experiments; `information` and `location` are read by tables that
    say what they lack (paper/tables.py)."""

    name: str
    kind: Literal["base", "edit", "train"]
    about: AboutArm
    axes: dict[str, AxisResult] = field(default_factory=dict)
    style: dict[str, dict[str, AxisResult]] = field(default_factory=dict)
    phrases: dict[str, PhrasesRecord] = field(default_factory=dict)
    judge: JudgeSummary | None = None
    gains: dict[str, Gain] = field(default_factory=dict)
    increase: Number | None = None
    kl: Number | None = None
    information: dict[str, Any] | None = None
    location: dict[str, Any] | None = None


@dataclass(frozen=True)
class ArmSpec:
    name: str
    kind: Literal["base", "edit", "train"]
    options: dict[str, Any]
    below: bool


@dataclass(frozen=True)
class ExperimentSpec:
    name: str
    title: str
    arms: list[ArmSpec]
    kind: Literal["answers", "tasks", "information", "margins"]
    axes: list[str]
    printed: str | None
    shows: str


@dataclass(frozen=True)
class ExperimentRecord:
    """EXPERIMENT.json of the paper's report."""

    experiment: ExperimentSpec
    results: list[ArmRecord] | None = None
    model: str = ""
    differs: list[str] = field(default_factory=list)
    not_run: str | None = None
