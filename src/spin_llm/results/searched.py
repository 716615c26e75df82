"""What a search tried and picked, by type.

In: nothing. Out: frozen dataclasses of search.json and its journal. Left out: the search (search/).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from spin_llm.results.measured import Count, Layer, Name, Number, Positive


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

    always = ("protect_ratio", "target", "penalty", "layers", "at_least", "fractions")


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
    sound: bool  # within the limits on over-refusal, coherence and questions answered
    front: bool | None = None  # no survivor is as good on concepts, refusal and perplexity
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

    always = ("questions", "unmeasured")

    def __post_init__(self) -> None:
        if self.pick not in {trial.number for trial in self.trials}:
            raise ValueError(f"the pick {self.pick} is none of the trials")
        if len({frozenset(trial.proxy.gains) for trial in self.trials if trial.proxy}) > 1:
            raise ValueError("the trials differ in their concepts")
