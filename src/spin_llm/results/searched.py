"""What a search tried and picked, by type.

In: nothing. Out: frozen dataclasses of search.json and its journal. Left out: the search (search/).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from spin_llm.results.edited import Recipe
from spin_llm.results.measured import Count, Number


@dataclass(frozen=True)
class Gain:
    """The change of one concept's margin in nats per response token, its standard error over the responses, and the
    change of the aware responses' own loss (a gain that only makes unaware responses worse shows here)."""

    gain: Number
    error: Number
    aware: Number

    def low(self, z: float) -> float:
        return self.gain - z * self.error


@dataclass(frozen=True)
class Proxy:
    """What one edit does: gains by concept, relative increase of perplexity, KL(base || edited) in nats per token."""

    gains: dict[str, Gain]
    increase: Number
    kl: Number


@dataclass(frozen=True)
class Trial:
    """One recipe: how many weights it selects, and what they do.

    `proxy` is None when it selects none, when the kept scores do not decide it, or when it is hopeless: then
    `increase` is that on the first pairs.
    """

    number: Count
    recipe: Recipe
    weights: Count
    why: str
    increase: Number | None
    proxy: Proxy | None

    def gain(self, concept: str) -> float:
        """Minus infinity where it was not measured."""
        return self.proxy.gains[concept].gain if self.proxy else -math.inf


@dataclass(frozen=True)
class JournalRow(Trial):
    """One row of a search's journal: a trial, and the parameters that stand for its recipe."""

    parameters: dict[str, str | Number] = field(default_factory=dict)

    @property
    def trial(self) -> Trial:
        return Trial(self.number, self.recipe, self.weights, self.why, self.increase, self.proxy)


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

    trials: Annotated[list[Trial], Meta(min_length=1)]
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

    @property
    def recipe(self) -> Recipe:
        """The picked one."""
        return next(trial.recipe for trial in self.trials if trial.number == self.pick)

    def __post_init__(self) -> None:
        if self.pick not in {trial.number for trial in self.trials}:
            raise ValueError(f"the pick {self.pick} is none of the trials")
        if len({frozenset(trial.proxy.gains) for trial in self.trials if trial.proxy}) > 1:
            raise ValueError("the trials differ in their concepts")
