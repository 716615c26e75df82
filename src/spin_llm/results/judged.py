"""How good a judge was where, by type.

In: nothing. Out: frozen dataclasses of the `judge` part of results.json. Left out: measuring it (judges/quality/).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, TypedDict

from spin_llm.results.measured import Count, Interval, Name, Number, Pair, says

NOT_LIKE_THESE = "not measured on answers like these"
NOT_MEASURABLE = "not measurable with this judge"
Bin = TypedDict("Bin", {"from": Number, "to": Number, "n": Count, "probability": Number, "labelled": Number})


@dataclass(frozen=True)
class Confusion:
    """Positives found and missed, false alarms among the negatives, negatives rejected."""

    found: Count
    missed: Count
    false_alarms: Count
    rejected: Count

    @property
    def accuracy(self) -> float:
        return (self.found + self.rejected) / (self.found + self.missed + self.false_alarms + self.rejected)

    @property
    def sensitivity(self) -> Pair:
        return self.found, self.found + self.missed

    @property
    def specificity(self) -> Pair:
        return self.rejected, self.rejected + self.false_alarms


@dataclass(frozen=True, kw_only=True)
class Kappa:
    """Cohen's kappa of two judges, or of a judge and the labels; `agree`: the share of equal verdicts."""

    between: tuple[str, str] | None = None
    kappa: Number | None
    ci95: Interval | None = None
    agree: Number | None = None
    n: Count

    always = ("ci95", "agree")


@dataclass(frozen=True, kw_only=True)
class JudgeQuality:
    """How good a judge is on labelled answers of a model family to questions of a source."""

    label: str | None = None
    family: Annotated[str | None, says("of the model that answered; empty: not named")] = None
    questions: Annotated[str | None, says("the source of the questions; empty: not named")] = None
    auc: Number | None
    auc_ci95: Interval | None = None
    prompts: Annotated[Pair | None, says("[prompts with a positive label, with a negative one]")] = None
    auc_bound: Annotated[Number | None, says("lower bound of the AUC, for the few prompts of the rarer label too")] = (
        None
    )
    measurable: Annotated[bool, says("whether it suffices for a reading")]
    accuracy: Number | None
    positive_rate: Annotated[tuple[Number | None, Number | None] | None, says("[labelled, judged]")] = None
    sensitivity: Annotated[Pair | None, says("[found, positives]")] = None
    specificity: Annotated[Pair | None, says("[rejected, negatives]")] = None
    n: Count
    sensitivity_ci95: Interval | None = None
    specificity_ci95: Interval | None = None
    brier: Number | None = None
    calibration_error: Number | None = None
    reliability: list[Bin] | None = None
    confusion: Confusion | None = None
    facets: dict[str, Confusion] = field(default_factory=dict)
    labels: Kappa | None = None
    unparsed: Count | None = None
    bounds: dict[str, tuple[Number | None, Number | None]] | None = None
    source: str | None = None
    model: str | None = None
    given: Annotated[bool, says("by the user, with --judge-quality")] = False
    human: Annotated[bool, says("a human read the answers")] = False
    groups: list[JudgeQuality] = field(default_factory=list)  # by family and question source: files of `judge check`
    by_concept: dict[str, JudgeQuality] = field(default_factory=dict)  # of coherence: the heads of its concepts

    @property
    def always(self) -> tuple[str, ...]:
        ranked = ("auc_bound",) if self.prompts is not None else ()
        checked = ("brier", "calibration_error", "facets", "sensitivity_ci95", "specificity_ci95")
        return ("auc_ci95", *ranked, *(checked if self.reliability is not None else ()))


@dataclass(frozen=True)
class AnswersOf:
    """Whose answers were judged, to questions of which source by axis; "" where it is not known."""

    family: str
    questions: dict[str, str]


@dataclass(frozen=True)
class JudgeSummary:
    """The judge, and by axis its quality on answers like these: an axis without one is not read. `elsewhere`: on which
    other answers it was measured. `label`: what a verdict of 1 means on a concept."""

    name: Name
    quality: dict[str, JudgeQuality]
    label: str | None = None
    limits: list[str] = field(default_factory=list)
    agreement: dict[str, dict[str, Kappa]] = field(default_factory=dict)
    answers: AnswersOf | None = None
    elsewhere: dict[str, list[str]] = field(default_factory=dict)

    always = ("label", "limits", "elsewhere")


@dataclass(frozen=True)
class OwnAnswers:
    """Who divided the model's own answers, and where that judge was not measured."""

    judge: str
    reports: bool
    unmeasured: dict[str, str] = field(default_factory=dict)
