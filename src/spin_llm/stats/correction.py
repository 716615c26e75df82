"""Rates corrected for the judge's errors (Rogan and Gladen 1978), with an interval that carries the judge's own.

In: 0/1 verdicts of base and edited on the same prompts, and the judge's sensitivity and specificity as counts on
labelled answers. Out: the rates that labels would have shown. With sensitivity se and specificity sp,

    corrected rate = (judged rate + sp - 1) / (se + sp - 1),    corrected difference = judged difference / (se + sp - 1)

Assumption, untestable without labels of the edited model: the judge errs as often on edited answers as on base ones,
and on these as on the labelled ones. An edit that moves the style may break it. Left out: measuring se and sp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from spin_llm.results.measured import Corrected
from spin_llm.stats.paired import RESAMPLES, Floats, changed

MINIMUM_YOUDEN = 0.1  # se + sp - 1 at its lower 95% bound; dividing by less would blow every error up tenfold
ASSUMPTION = "assumes that the judge errs equally often on base and edited answers"


def corrected(
    base: Floats, edited: Floats, sensitivity: Sequence[int], specificity: Sequence[int], *, seed: int = 0
) -> Corrected:
    """The `corrected` part of an axis: base, edited, delta, ci95 (of delta), sensitivity, specificity, note.

    `base`, `edited`: 0/1 verdicts (n,). `sensitivity`: [positives found, positives], `specificity`: [negatives found,
    negatives]. Rates may lie outside [0, 1] (clip them to show them; the note says so). All four numbers are None, and
    the note says why, when the judge cannot be told from one that guesses. The interval takes sensitivity and
    specificity from their Jeffreys posteriors, and the pairs from a Dirichlet posterior that adds, as rate_interval
    does, one gained and one lost pair.
    """
    hits, positives = sensitivity
    rejected, negatives = specificity
    none = Corrected(base=None, edited=None, delta=None, ci95=None)
    if not positives or not negatives:
        return replace(none, note="no labelled answers of both kinds")
    se, sp = hits / positives, rejected / negatives
    rng = np.random.default_rng(seed)
    youden = rng.beta(hits + 0.5, positives - hits + 0.5, RESAMPLES) - 1
    youden += rng.beta(rejected + 0.5, negatives - rejected + 0.5, RESAMPLES)
    lowest = float(np.quantile(youden, 0.025))
    if lowest < MINIMUM_YOUDEN:
        why = f"sensitivity + specificity - 1 is {se + sp - 1:.2f}, and may be as little as {max(lowest, 0.0):.2f}"
        why += f" ({positives} positives and {negatives} negatives labelled)"
        return replace(none, sensitivity=se, specificity=sp, note=f"no correction: {why}")
    rates = [(float(column.mean()) + sp - 1) / (se + sp - 1) for column in (base, edited)]
    gained, lost = changed(base, edited)
    both = int(((base == 1) & (edited == 1)).sum())
    neither = len(base) - both - gained - lost
    drawn = rng.dirichlet([gained + 1, lost + 1, both + 0.5, neither + 0.5], RESAMPLES)  # the four kinds of pairs
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / youden, (0.025, 0.975))
    outside = [name for name, rate in zip(("base", "edited"), rates, strict=True) if not 0 <= rate <= 1]
    note = ASSUMPTION + (f"; outside 0 to 1 before clipping: {' and '.join(outside)}" if outside else "")
    return Corrected(
        base=rates[0],
        edited=rates[1],
        delta=rates[1] - rates[0],
        ci95=(float(low), float(high)),
        sensitivity=se,
        specificity=sp,
        note=note,
    )
