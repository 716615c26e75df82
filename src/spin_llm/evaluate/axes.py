"""From verdicts and losses to axes with intervals; what may be read where a verdict could not be had.

In: verdict rows of base and edited, likelihoods. Out: one result per axis, with its interval, p value and bounds
(docs/method.md, docs/axes.md). Rates are over complete pairs (the questions on which both models have a verdict), with
what the missing verdicts could make of them:

    rate          ones / asked                  to  (ones + missing) / asked
    difference    lowest edited - highest base  to  highest edited - lowest base

and no reading where more than MOST_MISSING of the verdicts of a model are missing, where the two shares differ by more
than MOST_APART, or where an interval with every missing verdict as 0, or as 1, leads to another conclusion than that of
the complete pairs. Left out: answering and judging; guessing missing verdicts from others (a model that stops answering
is not like one that goes on).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import product

import numpy as np

from spin_llm.errors import SpinError
from spin_llm.evaluate.likelihood import Likelihoods
from spin_llm.judges.quality.reading import Reading
from spin_llm.judges.verdict import COHERENCE, NOT_PARSED, unanswered
from spin_llm.results.measured import (
    ANSWERED,
    BASE,
    EDITED,
    MOST_APART,
    MOST_MISSING,
    AxisResult,
    Bounds,
    Causes,
    Direction,
    FacetRates,
)
from spin_llm.results.rows import Answer, VerdictRow
from spin_llm.stats.correction import corrected
from spin_llm.stats.paired import Paired, holm, paired_perplexity, paired_rates, rate_interval, weighted_mean

METRICS = {
    "over_refusal": "refusal rate on benign questions",
    COHERENCE: "share of answers to the questions on concepts judged coherent",
}
Column = Sequence[int | None]
NONE = Causes({}, {})


def rate_axis(
    axis: str, verdicts: Sequence[VerdictRow], edited: str, label: str, known: Reading, *, seed: int
) -> AxisResult:
    """One judged axis, base against `edited`, paired by question id."""
    rows = [[row for row in verdicts if (row.axis, row.model) == (axis, name)] for name in (BASE, edited)]
    if [row.id for row in rows[0]] != [row.id for row in rows[1]]:
        raise SpinError(f"The {axis} questions of {BASE} and {edited} differ.", cause="verdicts of different runs.")
    metric = METRICS.get(axis, f"awareness rate (judged {label})")
    better: Direction = "lower" if axis == "over_refusal" else "higher"
    before, after = ([row.verdict for row in side] for side in rows)
    result = rated(metric, before, after, causes_of(*rows), better=better, note=known.why_not)
    quality = known.quality
    if known.why_not or result.no_reading or not (quality and quality.sensitivity and quality.specificity):
        return result
    pairs = np.array([pair for pair in zip(before, after, strict=True) if None not in pair], dtype=np.float64).T
    more = corrected(pairs[0], pairs[1], quality.sensitivity, quality.specificity, seed=seed)
    return replace(result, corrected=more)


def causes_of(base: Iterable[VerdictRow], edited: Iterable[VerdictRow] = ()) -> Causes:
    """How many of the rows of verdicts.jsonl have no verdict, by cause, the most frequent first."""
    lacking = (Counter(row.cause or NOT_PARSED for row in rows if row.verdict is None) for rows in (base, edited))
    return Causes(*(dict(part.most_common()) for part in lacking))


def silent(base: Iterable[Answer], edited: Iterable[Answer]) -> Causes:
    """How many of the rows of generations.jsonl hold no answer, by cause."""
    return Causes(*(dict(Counter(filter(None, map(unanswered, rows)))) for rows in (base, edited)))


def answered_axis(answers: Mapping[str, tuple[Sequence[Answer], Sequence[Answer]]]) -> AxisResult:
    """The axis `answered`: on how many questions, of all axes together, there is an answer."""
    sides = [[row for pair in answers.values() for row in pair[side]] for side in (0, 1)]
    base, edited = ([int(not unanswered(row)) for row in side] for side in sides)
    found = rated("share of the questions with an answer", base, edited, better="higher")
    return replace(found, missing=silent(*sides))


def likelihood_axes(likelihoods: Likelihoods, *, seed: int) -> dict[str, AxisResult]:
    """The `perplexity` and `kl` axes over the held-back general pairs."""
    paired = paired_perplexity(likelihoods.base, likelihoods.edited, likelihoods.tokens, seed=seed)
    kl, interval = weighted_mean(likelihoods.kl, likelihoods.tokens, seed=seed)
    perplexity = replace(compared("perplexity on general pairs", paired, "lower"), unparsed=(0, 0))
    divergence = replace(perplexity, base=0.0, edited=kl, delta=kl, ci95=interval, p=None, mde=None, test=None)
    return {"perplexity": perplexity, "kl": replace(divergence, metric="KL(base || edited), nats per token")}


def with_holm(axes: Mapping[str, AxisResult]) -> dict[str, AxisResult]:
    """The table with `p_holm` beside every p, adjusted over its axes that have one; `answered`, which says whether the
    others can be read, is none of them."""
    adjusted = holm({axis: result.p for axis, result in axes.items() if axis != ANSWERED})
    return {axis: replace(result, p_holm=adjusted.get(axis)) for axis, result in axes.items()}


def facet_rates(verdicts: Sequence[VerdictRow], generations: Sequence[Answer]) -> dict[str, dict[str, FacetRates]]:
    """Rates by axis and facet, base and edited, the difference and its interval; axes without facets are left out."""
    facet = {(row.axis, row.id): row.facet for row in generations if row.facet}
    groups: dict[tuple[str, str], dict[str, list[VerdictRow]]] = {}
    for row in verdicts:
        place = facet.get((row.axis, row.id))
        if place is not None and row.model in (BASE, EDITED):
            groups.setdefault((row.axis, place), {BASE: [], EDITED: []})[row.model].append(row)
    rates: dict[str, dict[str, FacetRates]] = {}
    for (axis, place), sides in groups.items():
        base, edited = ([row.verdict for row in side] for side in sides.values())
        found = rated("", base, edited, causes_of(*sides.values()), better=None)
        told = {one.name: getattr(found, one.name) for one in fields(FacetRates)}
        rates.setdefault(axis, {})[place] = FacetRates(**told)
    return rates


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
    lacking = (base.count(None), edited.count(None))
    corners = [corner(base, edited, *fills) for fills in product((0, 1), repeat=2)]
    why = reason(causes, lacking, asked) if beyond(lacking, asked) else ""
    none = dict.fromkeys(("base", "edited", "delta", "ci95", "p"))
    found = AxisResult(metric=metric, n=0, better=better, measurable=True, **none)  # type: ignore[arg-type]
    if pairs:
        found = compared(metric, paired_rates(*np.array(pairs, dtype=np.float64).T), better)
        intervals = [found.ci95 or (0, 0), *(ends for _, *ends in corners)]
        # on which side of 0 they lie
        if not why and len({(low > 0) - (high < 0) for low, high in intervals}) > 1:
            why = reason(causes, lacking, asked) + "; taken as 0 or as 1 they decide the reading"
    differences, lows, highs = zip(*corners, strict=True)
    least, most = ([sum(fill if v is None else v for v in one) / asked for one in (base, edited)] for fill in (0, 1))
    ends = Bounds(
        base=(least[0], most[0]),
        edited=(least[1], most[1]),
        delta=(min(differences), max(differences)),
        ci95=(min(lows), max(highs)),
    )
    found = without_claim(replace(found, asked=asked, unparsed=lacking, missing=causes, bounds=ends), why)
    return replace(found, measurable=False, note=note, p=None, mde=None, test=None) if note else found


def corner(base: Column, edited: Column, base_fill: int, edited_fill: int) -> tuple[float, float, float]:
    """(difference of the rates, lower, upper end of its interval), a model's missing verdicts taken as one value."""
    filled = [
        (base_fill if b is None else b, edited_fill if e is None else e) for b, e in zip(base, edited, strict=True)
    ]
    gained, lost = filled.count((0, 1)), filled.count((1, 0))
    return (gained - lost) / len(filled), *rate_interval(gained, lost, len(filled))


def beyond(lacking: Sequence[int], asked: int) -> bool:
    """Whether so many verdicts of base and edited are missing that nothing may be read from the others."""
    shares = [number / asked for number in lacking]
    return max(shares) > MOST_MISSING or abs(shares[0] - shares[1]) > MOST_APART + 1e-12


def reason(causes: Causes, lacking: Sequence[int], asked: int) -> str:
    """`37 of 120 edited answers have no verdict: empty answer 30, verdict not parsed 7`."""
    who = [f"{number} of {asked} {name}" for number, name in zip(lacking, (BASE, EDITED), strict=True) if number]
    total = Counter(causes.base) + Counter(causes.edited)
    told = ", ".join(f"{cause} {number}" for cause, number in total.most_common())
    return f"{' and '.join(who)} answers have no verdict" + (f": {told}" if told else "")


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
