"""How good a judge was where, by type.

In: nothing. Out: frozen dataclasses of the `judge` part of results.json. Left out: measuring it (judges/quality/).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from spin_llm.results.measured import Count, Interval, Name, Number, Pair


@dataclass(frozen=True)
class Confusion:
    found: Count
    missed: Count
    false_alarms: Count
    rejected: Count


@dataclass(frozen=True)
class JudgeQuality:
    auc: Number | None
    measurable: bool
    accuracy: Number | None
    n: Count
    auc_ci95: Interval | None = None
    source: str | None = None
    brier: Number | None = None
    calibration_error: Number | None = None
    positive_rate: tuple[Number | None, Number | None] | None = None
    sensitivity: Pair | None = None
    specificity: Pair | None = None
    confusion: Confusion | None = None
    facets: dict[str, Confusion] = field(default_factory=dict)
    auc_bound: Number | None = None
    prompts: Pair | None = None
    family: str | None = None
    questions: str | None = None
    model: str | None = None
    given: bool = False
    human: bool = False
    groups: list[JudgeQuality] = field(default_factory=list)  # by family and question source: files of `judge check`


@dataclass(frozen=True)
class Kappa:
    n: Count
    kappa: Number | None
    ci95: Interval | None = None


@dataclass(frozen=True)
class AnswersOf:
    """Whose answers were judged, to questions of which source by axis; "" where it is not known."""

    family: str
    questions: dict[str, str]


@dataclass(frozen=True)
class JudgeSummary:
    name: Name
    quality: dict[str, JudgeQuality]
    label: str | None = None
    limits: list[str] = field(default_factory=list)
    agreement: dict[str, dict[str, Kappa]] = field(default_factory=dict)
    answers: AnswersOf | None = None
    elsewhere: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class OwnAnswers:
    """Who divided the model's own answers, and where that judge was not measured."""

    judge: str
    reports: bool
    unmeasured: dict[str, str] = field(default_factory=dict)
