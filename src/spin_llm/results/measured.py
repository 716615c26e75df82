"""A number of base and edited, by type, and the bounds of all numbers.

In: nothing. Out: frozen dataclasses of `axes`, `style`, `capabilities`, `controls` and `facets` of results.json. Every
number is finite and within bounds, and so is what is made of it. Left out: reading (file.py, rows.py).
"""

from __future__ import annotations

from dataclasses import dataclass
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
