"""Answers without a verdict: why there is none, and what may still be read from the others.

In: rows of generations.jsonl, and verdicts (1, 0, None) of two models on the same questions. Out: the rates over
complete pairs (the questions on which both models have a verdict) with what the missing verdicts could make of them:

    rate          ones / asked                  to  (ones + missing) / asked
    difference    lowest edited - highest base  to  highest edited - lowest base

and no reading where more than MOST_MISSING of the verdicts of a model are missing, where the two shares differ by more
than MOST_APART, or where an interval with every missing verdict as 0, or as 1, leads to another conclusion than that of
the complete pairs. Left out: guessing missing verdicts from others; a model that stops answering is not like one that
goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from spin_llm.judges.verdict import NOT_PARSED, unanswered
from spin_llm.results.measured import MOST_APART, MOST_MISSING, AxisResult, Bounds, Causes, Direction
from spin_llm.results.rows import Answer, VerdictRow
from spin_llm.stats.paired import Interval, Paired, paired_rates, rate_interval

Column = Sequence[int | None]
NONE = Causes({}, {})


def causes_of(base: Sequence[VerdictRow], edited: Sequence[VerdictRow] = ()) -> Causes:
    """How many of the rows of verdicts.jsonl have no verdict, by cause, the most frequent first."""
    lacking = (Counter(row.cause or NOT_PARSED for row in rows if row.verdict is None) for rows in (base, edited))
    return Causes(*(dict(part.most_common()) for part in lacking))


def compared(metric: str, paired: Paired, better: Direction) -> AxisResult:
    """What a paired comparison found, as results.json has it."""
    return AxisResult(metric=metric, **vars(paired), better=better, measurable=True)


def rated(
    metric: str, base: Column, edited: Column, causes: Causes = NONE, *, better: Direction, note: str = ""
) -> AxisResult:
    """The rates of two columns of verdicts (n,), over the complete pairs, of `asked` questions.

    `unparsed` and `missing` say how many have no verdict, and why, and `no_reading` why nothing may be read ("" when
    something may). Without a reading there is no interval and no p; without a complete pair there are no rates either.
    With a `note`, why the judge is not believed, it is not measurable: the numbers stand there, and no p.
    """
    asked = len(base)
    pairs = [(b, e) for b, e in zip(base, edited, strict=True) if b is not None and e is not None]
    lacking = (sum(verdict is None for verdict in base), sum(verdict is None for verdict in edited))
    corners = [corner(base, edited, *fills) for fills in product((0, 1), repeat=2)]
    why = reason(causes, lacking, asked) if beyond(lacking, asked) else ""
    none = dict.fromkeys(("base", "edited", "delta", "ci95", "p"))
    found = AxisResult(metric=metric, n=0, better=better, measurable=True, **none)  # type: ignore[arg-type]
    if pairs:
        found = compared(metric, paired_rates(*np.array(pairs, dtype=np.float64).T), better)
        if not why and {side(found.ci95 or (0, 0))} != {side(interval) for _, interval in corners}:
            why = reason(causes, lacking, asked) + "; taken as 0 or as 1 they decide the reading"
    found = replace(found, asked=asked, unparsed=lacking, missing=causes, bounds=bounds(base, edited, corners))
    found = without_claim(found, why)
    return replace(found, measurable=False, note=note, p=None, mde=None, test=None) if note else found


def bounds(base: Column, edited: Column, corners: Sequence[tuple[float, Interval]]) -> Bounds:
    """What the missing verdicts could make of the rates, their difference and its interval."""
    rates = [
        (sum(verdict or 0 for verdict in column) / len(column), sum(verdict != 0 for verdict in column) / len(column))
        for column in (base, edited)
    ]
    differences = [difference for difference, _ in corners]
    lows, highs = zip(*(interval for _, interval in corners), strict=True)
    return Bounds(
        base=rates[0],
        edited=rates[1],
        delta=(min(differences), max(differences)),
        ci95=(min(lows), max(highs)),
    )


def corner(base: Column, edited: Column, base_fill: int, edited_fill: int) -> tuple[float, Interval]:
    """(difference of the rates, its interval) with every missing verdict of a model taken as one value."""
    filled = [
        (base_fill if b is None else b, edited_fill if e is None else e) for b, e in zip(base, edited, strict=True)
    ]
    gained, lost = filled.count((0, 1)), filled.count((1, 0))
    return (gained - lost) / len(filled), rate_interval(gained, lost, len(filled))


def side(interval: Sequence[float]) -> int:
    """On which side of 0 an interval lies: 1, -1, or 0 where it includes 0."""
    low, high = interval
    return int(low > 0) - int(high < 0)


def beyond(lacking: Sequence[int], asked: int) -> bool:
    """Whether so many verdicts of base and edited are missing that nothing may be read from the others."""
    shares = [number / asked for number in lacking]
    return max(shares) > MOST_MISSING or abs(shares[0] - shares[1]) > MOST_APART + 1e-12


def reason(causes: Causes, lacking: Sequence[int], asked: int) -> str:
    """`37 of 120 edited answers have no verdict: empty answer 30, verdict not parsed 7`."""
    who = [f"{number} of {asked} {name}" for number, name in zip(lacking, ("base", "edited"), strict=True) if number]
    total = Counter(causes.base) + Counter(causes.edited)
    told = ", ".join(f"{cause} {number}" for cause, number in total.most_common())
    return f"{' and '.join(who)} answers have no verdict" + (f": {told}" if told else "")


def silent(base: Sequence[Answer], edited: Sequence[Answer]) -> Causes:
    """How many of the rows of generations.jsonl hold no answer, by cause."""
    return Causes(*(dict(Counter(filter(None, map(unanswered, rows)))) for rows in (base, edited)))


def unread(base: Sequence[Answer], edited: Sequence[Answer]) -> str:
    """Why nothing is read from the wording of these rows: too many hold no answer; "" when enough do."""
    causes = silent(base, edited)
    lacking = [sum(part.values()) for part in (causes.base, causes.edited)]
    return reason(causes, lacking, len(base)) if beyond(lacking, len(base)) else ""


def without_claim(found: AxisResult, why: str) -> AxisResult:
    """A result from which nothing is read, for the reason `why`; as it is without one."""
    if not why:
        return found
    return replace(found, ci95=None, p=None, mde=None, interval_method=None, test=None, no_reading=why)
