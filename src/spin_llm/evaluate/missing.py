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
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from spin_llm.judges.verdict import MOST_APART, MOST_MISSING, NOT_PARSED, unanswered
from spin_llm.stats.paired import Interval, paired_rates, rate_interval

NO_CLAIM: dict[str, Any] = {"ci95": None, "p": None, "mde": None}
Column = Sequence[int | None]
Causes = tuple[Mapping[str, int], Mapping[str, int]]  # of base and edited: cause -> how many


def causes_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many of the rows of verdicts.jsonl have no verdict, by cause, the most frequent first."""
    lacking = Counter(row.get("cause") or NOT_PARSED for row in rows if row["verdict"] is None)
    return dict(lacking.most_common())


def rated(base: Column, edited: Column, causes: Causes = ({}, {})) -> dict[str, Any]:
    """The numbers of two columns of verdicts (n,), as they stand in results.json.

    n complete pairs of `asked` questions, base, edited, delta, ci95, p, mde; `unparsed` and `missing`: how many have no
    verdict, and why, `bounds`, and `no_reading`: why nothing may be read ("" when something may). Without a reading
    there is no interval and no p; without a complete pair there are no rates either.
    """
    asked = len(base)
    pairs = [(b, e) for b, e in zip(base, edited, strict=True) if b is not None and e is not None]
    lacking = [sum(verdict is None for verdict in column) for column in (base, edited)]
    corners = [corner(base, edited, *fills) for fills in product((0, 1), repeat=2)]
    intervals = [interval for _, interval in corners]
    numbers: dict[str, Any] = {"n": 0, **dict.fromkeys(("base", "edited", "delta")), **NO_CLAIM}
    why = reason(causes, lacking, asked) if beyond(lacking, asked) else ""
    if pairs:
        numbers = paired_rates(*np.array(pairs, dtype=np.float64).T).as_json()
        if not why and {side(numbers["ci95"])} != set(map(side, intervals)):
            why = reason(causes, lacking, asked) + "; taken as 0 or as 1 they decide the reading"
    differences = [difference for difference, _ in corners]
    rates = [
        [sum(verdict or 0 for verdict in column) / asked, sum(verdict != 0 for verdict in column) / asked]
        for column in (base, edited)
    ]
    return {
        **(numbers | NO_CLAIM if why else numbers),
        "asked": asked,
        "unparsed": lacking,
        "missing": dict(zip(("base", "edited"), map(dict, causes), strict=True)),
        "bounds": {
            **dict(zip(("base", "edited"), rates, strict=True)),
            "delta": [min(differences), max(differences)],
            "ci95": [min(low for low, _ in intervals), max(high for _, high in intervals)],
        },
        "no_reading": why,
    }


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
    total: Counter[str] = Counter()
    for part in causes:
        total.update(part)
    told = ", ".join(f"{cause} {number}" for cause, number in total.most_common())
    return f"{' and '.join(who)} answers have no verdict" + (f": {told}" if told else "")


def unread(base: Sequence[Mapping[str, Any]], edited: Sequence[Mapping[str, Any]]) -> str:
    """Why nothing is read from the wording of these rows of generations.jsonl: too many hold no answer; "" when enough
    do."""
    causes = (Counter(filter(None, map(unanswered, base))), Counter(filter(None, map(unanswered, edited))))
    lacking = [part.total() for part in causes]
    return reason(causes, lacking, len(base)) if beyond(lacking, len(base)) else ""


def without_claim(entry: Mapping[str, Any], why: str) -> dict[str, Any]:
    """An entry of results.json from which nothing is read, for the reason `why`; as it is without one."""
    return {**entry, **NO_CLAIM, "no_reading": why} if why else dict(entry)
