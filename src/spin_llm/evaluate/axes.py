"""From verdicts and losses to axes with intervals.

In: verdict rows of base and edited, likelihoods. Out: one result per axis, with its interval, p value and bounds
(docs/method.md, docs/axes.md). A verdict that could not be had counts for nothing (missing.py). Left out: answering
and judging.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np

from spin_llm.errors import SpinError
from spin_llm.evaluate.answers import BASE, EDITED
from spin_llm.evaluate.likelihood import Likelihoods
from spin_llm.evaluate.missing import causes_of, compared, rated, silent
from spin_llm.judges.quality.reading import Reading
from spin_llm.judges.verdict import COHERENCE, unanswered
from spin_llm.results.measured import ANSWERED as ANSWERED
from spin_llm.results.measured import AxisResult, FacetRates
from spin_llm.results.rows import Answer, VerdictRow
from spin_llm.stats.correction import corrected
from spin_llm.stats.paired import holm, paired_perplexity, weighted_mean

METRICS = {
    "over_refusal": "refusal rate on benign questions",
    COHERENCE: "share of answers to the questions on concepts judged coherent",
}


def rate_axis(
    axis: str, verdicts: Sequence[VerdictRow], edited: str, label: str, known: Reading, *, seed: int
) -> AxisResult:
    """One judged axis, base against `edited`, paired by question id."""
    rows = [[row for row in verdicts if (row.axis, row.model) == (axis, name)] for name in (BASE, edited)]
    if [row.id for row in rows[0]] != [row.id for row in rows[1]]:
        raise SpinError(f"The {axis} questions of {BASE} and {edited} differ.", cause="verdicts of different runs.")
    columns = [[row.verdict for row in side] for side in rows]
    result = rated(
        METRICS.get(axis, f"awareness rate (judged {label})"),
        columns[0],
        columns[1],
        causes_of(*rows),
        better="lower" if axis == "over_refusal" else "higher",
        note=known.why_not,
    )
    quality = known.quality
    if known.why_not or result.no_reading or not (quality and quality.sensitivity and quality.specificity):
        return result
    pairs = np.array([pair for pair in zip(*columns, strict=True) if None not in pair], dtype=np.float64).T
    more = corrected(pairs[0], pairs[1], quality.sensitivity, quality.specificity, seed=seed)
    return replace(result, corrected=more)


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
    """Rates by axis and facet of the question, base and edited, with the difference and its interval; axes without
    facets are left out."""
    facet = {(row.axis, row.id): row.facet for row in generations if row.facet}
    groups: dict[tuple[str, str], dict[str, list[VerdictRow]]] = {}
    for row in verdicts:
        place = facet.get((row.axis, row.id))
        if place is not None and row.model in (BASE, EDITED):
            groups.setdefault((row.axis, place), {BASE: [], EDITED: []})[row.model].append(row)
    rates: dict[str, dict[str, FacetRates]] = {}
    for (axis, place), group in groups.items():
        base, edited = ([row.verdict for row in group[name]] for name in (BASE, EDITED))
        found = rated("", base, edited, causes_of(group[BASE], group[EDITED]), better=None)
        rates.setdefault(axis, {})[place] = FacetRates(
            **{one.name: getattr(found, one.name) for one in fields(FacetRates)}
        )
    return rates
