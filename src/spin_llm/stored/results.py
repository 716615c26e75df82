"""What results.json, search.json and stability.json hold, by type.

In: nothing. Out: frozen dataclasses that decode those files. Parts that older versions did not write are optional;
every number is finite and within bounds, and so is what is made of it. Left out: reading (reading.py); whether the
numbers agree with one another; results.schema.json, which describes results.json in full.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

# Numbers beyond these are damage: they are no counts of anything here, and would overflow in what is made of them.
Count = Annotated[int, Meta(ge=0, le=10**15)]
Positive = Annotated[int, Meta(ge=1, le=10**15)]
Layer = Annotated[int, Meta(ge=0, le=10_000)]  # a table of the report has a line for each
Number = Annotated[float, Meta(ge=-1e100, le=1e100)]
Share = Annotated[float, Meta(ge=0, le=1)]
Name = Annotated[str, Meta(min_length=1, max_length=100_000)]
# No union holds a bounded number beside a tuple: msgspec 0.22 reads the bounds from the wrong place, and crashes.
Interval = tuple[Number, Number]
Pair = tuple[Count, Count]


@dataclass(frozen=True)
class Corrected:
    base: Number | None
    edited: Number | None
    delta: Number | None
    ci95: Interval | None
    sensitivity: Number | list[Number] | None = None  # a rate, or [hits, of]
    specificity: Number | list[Number] | None = None
    note: str | None = None


@dataclass(frozen=True)
class Causes:
    """Why there is no verdict, how often."""

    base: dict[str, Count]
    edited: dict[str, Count]


@dataclass(frozen=True)
class Bounds:
    """[least, most] with every missing verdict taken as 0 or as 1."""

    base: Interval
    edited: Interval
    delta: Interval
    ci95: Interval | None = None


@dataclass(frozen=True)
class AxisResult:
    """One number of base and edited: of `axes`, `style` and `capabilities` of results.json."""

    metric: str
    n: Count
    base: Number | None
    edited: Number | None
    delta: Number | None
    ci95: Interval | None
    p: Share | None
    better: Literal["higher", "lower", None]
    measurable: bool
    note: str | None = ""
    unparsed: Pair | None = None
    p_holm: Share | None = None
    mde: Number | None = None
    asked: Count | None = None
    missing: Causes | None = None
    bounds: Bounds | None = None
    no_reading: str = ""
    corrected: Corrected | None = None

    def __post_init__(self) -> None:
        known = {value is not None for value in (self.base, self.edited, self.delta)}
        if len(known) > 1 or (self.ci95 and not all(known)):
            raise ValueError("base, edited and delta are numbers, or none of them and no interval")
        if self.ci95 and not self.n:
            raise ValueError("an interval over nothing")


@dataclass(frozen=True)
class Control:
    weights: Count
    axes: dict[str, AxisResult]


@dataclass(frozen=True)
class FacetRates:
    n: Count
    base: Number | None
    edited: Number | None
    delta: Number | None = None
    ci95: Interval | None = None
    asked: Count | None = None
    unparsed: Pair | None = None
    missing: Causes | None = None
    bounds: Bounds | None = None
    no_reading: str = ""


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


@dataclass(frozen=True)
class Edit:
    """{} when two models were compared without a patch."""

    rule: str | None = None
    ratio: Number | None = None
    protect_ratio: Number | None = None
    target: str | None = None
    scale: Number | None = None
    weights: Count | None = None
    matrices: Count | None = None
    share: Number | None = None
    candidates: Count | None = None
    shared: Count | None = None
    per_matrix: dict[str, Count] = field(default_factory=dict)
    shapes: dict[str, list[Count]] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    own_answers: OwnAnswers | None = None

    def __post_init__(self) -> None:
        if self.per_matrix and (self.weights is None or self.matrices is None or self.target is None):
            raise ValueError("an edit has weights, matrices and target")
        if lacking := self.per_matrix.keys() - (self.shapes.keys() & self.layers.keys()):
            raise ValueError(f"{min(lacking)} has no shape or no layer")


@dataclass(frozen=True)
class RatioTried:
    ratio: Annotated[float, Meta(gt=0, le=1)]
    weights: Count
    perplexity: Number | None
    increase: Number | None
    allowed: bool
    chosen: bool
    both: Count | None = None
    candidates: Count | None = None


@dataclass(frozen=True)
class Gained:
    gain: Number
    error: Number
    aware: Number


@dataclass(frozen=True)
class ProxyRecord:
    gains: dict[str, Gained]
    increase: Number
    kl: Number


@dataclass(frozen=True)
class RecipeRecord:
    rule: Name
    ratio: Annotated[float, Meta(ge=0, le=1)]
    granularity: Name
    scale: Number
    protect_ratio: Annotated[float, Meta(ge=0, le=1)] | None = None
    target: Name = "mlp"
    penalty: Number = 2.0
    layers: tuple[Layer, Layer] | None = None
    at_least: Positive | None = None
    fractions: list[tuple[Name, Number]] = field(default_factory=list)


@dataclass(frozen=True)
class TrialRecord:
    number: Count
    recipe: RecipeRecord
    weights: Count
    why: str
    increase: Number | None
    proxy: ProxyRecord | None


@dataclass(frozen=True)
class JournalRow(TrialRecord):
    """One row of a search's journal."""

    parameters: dict[str, str | Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Rates:
    n: Count
    base: Number
    edited: Number


@dataclass(frozen=True)
class SurvivorRecord:
    number: Count
    rates: dict[str, Rates]
    sound: bool
    unread: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SearchRecord:
    """search.json; `search` of results.json."""

    trials: Annotated[list[TrialRecord], Meta(min_length=1)]
    front: list[Count]
    survivors: list[SurvivorRecord]
    importance: dict[str, Number]
    max_increase: Annotated[float, Meta(ge=0, le=1e100)]
    pick: Count
    found: bool
    why: str
    effort: str
    questions: dict[str, Count] = field(default_factory=dict)
    responses: str | None = None
    unmeasured: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pick not in {trial.number for trial in self.trials}:
            raise ValueError(f"the pick {self.pick} is none of the trials")
        if len({frozenset(trial.proxy.gains) for trial in self.trials if trial.proxy}) > 1:
            raise ValueError("the trials differ in their concepts")


@dataclass(frozen=True)
class Spread:
    mean: Number
    low: Number
    high: Number


@dataclass(frozen=True)
class Stability:
    """`stability` of results.json."""

    resamples: Count
    weights: Count
    jaccard: Spread
    size: Spread
    in_half: Count
    in_most: Count


@dataclass(frozen=True)
class StabilityRecord(Stability):
    """stability.json."""

    seed: Count = 0


@dataclass(frozen=True)
class Regions:
    concepts: list[Name]
    protect: list[Name]
    regions: dict[str, Count]

    def __post_init__(self) -> None:
        names = [*self.concepts, *self.protect]
        if not self.concepts or len(set(names)) < len(names):
            raise ValueError("the sets of an overlap have one name each, and one is a concept's")


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
