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
Direction = Literal["higher", "lower", None]  # which is good; None: neither
Name = Annotated[str, Meta(min_length=1, max_length=100_000)]
# No union holds a bounded number beside a tuple: msgspec 0.22 reads the bounds from the wrong place, and crashes.
Interval = tuple[Number, Number]
Pair = tuple[Count, Count]
BASE, EDITED = "base", "edited"  # the two models, as every file names them
ANSWERED = "answered"  # an axis of its own, that no judge decides: an edit that silences the model must be seen
CAPABILITY_AXES = ("perplexity", "kl")  # from likelihoods, without a judge
MOST_MISSING, MOST_APART = 0.05, 0.02  # verdicts, of the questions asked, for a reading


def says(text: str) -> Meta:
    """What a field says, for the JSON Schema."""
    return Meta(description=text)


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """The rates corrected for the judge's errors; None where a correction is impossible."""

    base: Number | None
    edited: Number | None
    delta: Number | None
    ci95: Interval | None
    sensitivity: Number | list[Number] | None = None  # a rate, or [hits, of]
    specificity: Number | list[Number] | None = None
    note: str | None = None

    always = ("sensitivity", "specificity")


@dataclass(frozen=True)
class Causes:
    """Why there is no verdict, how often; on the axis `answered` why there is no answer."""

    base: dict[str, Count]
    edited: dict[str, Count]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """[least, most] with every missing verdict taken as 0 or as 1; ci95: from the lowest to the highest end."""

    base: Interval
    edited: Interval
    delta: Interval
    ci95: Interval | None = None

    always = ("ci95",)


@dataclass(frozen=True, kw_only=True)
class AxisResult:
    """One number of base and edited on the same prompts: of `axes`, `style` and `capabilities` of results.json; rates
    as fractions. Style and capabilities have no `unparsed` and no `p_holm`; what nothing was asked for (likelihoods,
    too) has no `asked`, `missing`, `bounds`."""

    metric: str
    unparsed: Annotated[Pair | None, says("answers without a verdict, base and edited (runs of 0.1.0: taken as 0)")] = (
        None
    )
    n: Annotated[Count, says("prompts on which both models have a verdict, pairs, or documents")]
    base: Number | None
    edited: Number | None
    delta: Annotated[Number | None, says("edited - base")]
    ci95: Annotated[Interval | None, says("95% interval of delta; null where nothing may be read")]
    p: Share | None
    mde: Annotated[Number | None, says("minimum detectable |delta| at 80% power and alpha 0.05")] = None
    interval_method: Annotated[str | None, says("how ci95 was made; older runs do not say")] = None
    test: Annotated[str | None, says("what p is of; older runs do not say")] = None
    asked: Annotated[Count | None, says("prompts asked")] = None
    missing: Causes | None = None
    bounds: Bounds | None = None
    no_reading: Annotated[str, says("why nothing may be read from these numbers; empty when something may")] = ""
    better: Annotated[Direction, says("which direction is good; null: neither")]
    measurable: bool
    note: Annotated[str | None, says("why the judge is not believed")] = ""
    corrected: Corrected | None = None
    p_holm: Annotated[Share | None, says("p adjusted by Holm over the table's axes that have one")] = None

    def __post_init__(self) -> None:
        known = {value is not None for value in (self.base, self.edited, self.delta)}
        if len(known) > 1 or (self.ci95 and not all(known)):
            raise ValueError("base, edited and delta are numbers, or none of them and no interval")
        if self.ci95 and not self.n:
            raise ValueError("an interval over nothing")

    @property
    def always(self) -> tuple[str, ...]:
        holm = ("p_holm",) if self.unparsed is not None else ()
        return ("note", "mde", *holm, *(("no_reading",) if self.asked is not None else ()))


@dataclass(frozen=True, kw_only=True)
class Control:
    """Another edit beside this one, against the same base; `shared`: weights that the edit has too."""

    weights: Count
    shared: Count | None = None
    axes: dict[str, AxisResult]


@dataclass(frozen=True, kw_only=True)
class FacetRates:
    """Rates of one facet of an axis's questions, as in AxisResult."""

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

    @property
    def always(self) -> tuple[str, ...]:
        return ("delta", "ci95", "no_reading") if self.asked is not None else ()
