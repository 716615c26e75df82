"""Paired statistics: base and edited on the same prompts.

In: one number per prompt for each of two models. Out: the difference with a bootstrap interval and a p-value. Pairs,
not models, are resampled, so the shared difficulty of a prompt cancels. Left out: corrections over several axes.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
RESAMPLES = 10_000


@dataclass(frozen=True)
class Paired:
    """`base` and `edited` over `n` pairs, `delta` = edited - base with its 95% interval `ci95`, and a two-sided `p`."""

    n: int
    base: float
    edited: float
    delta: float
    ci95: tuple[float, float]
    p: float


def paired_rates(base: Floats, edited: Floats, *, seed: int = 0) -> Paired:
    """Two columns of 0/1 verdicts (n,): bootstrap interval of the difference in rate, exact McNemar p."""
    delta = edited - base
    interval = _interval((delta,), lambda d, axis=-1: d.mean(axis=axis), seed)
    return Paired(
        len(base), float(base.mean()), float(edited.mean()), float(delta.mean()), interval, mcnemar(base, edited)
    )


def mcnemar(base: Floats, edited: Floats) -> float:
    """Exact two-sided McNemar p: a binomial test on the pairs whose verdict changed.

    1.0 when none did.
    """
    gained, lost = int(((base == 0) & (edited == 1)).sum()), int(((base == 1) & (edited == 0)).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def paired_perplexity(base: Floats, edited: Floats, tokens: Floats, *, seed: int = 0) -> Paired:
    """Perplexity exp(sum of losses / sum of tokens) of two models over the same pairs.

    `base`, `edited`: summed negative log-likelihoods in nats (n,); `tokens`: response tokens (n,). The interval
    resamples pairs; p is the Wilcoxon signed-rank test on the per-pair losses per token.
    """

    def difference(b: Floats, e: Floats, t: Floats, axis: int = -1) -> Floats:
        count = t.sum(axis=axis)
        return np.asarray(np.exp(e.sum(axis=axis) / count) - np.exp(b.sum(axis=axis) / count))

    interval = _interval((base, edited, tokens), difference, seed)
    p = float(stats.wilcoxon((edited - base) / tokens).pvalue) if (base != edited).any() else 1.0
    ppl_base, ppl_edited = (math.exp(x.sum() / tokens.sum()) for x in (base, edited))
    return Paired(len(base), ppl_base, ppl_edited, ppl_edited - ppl_base, interval, p)


def weighted_mean(values: Floats, weights: Floats, *, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Sum(values) / sum(weights) with its bootstrap interval: a per-token mean over examples of unequal length."""

    def ratio(v: Floats, w: Floats, axis: int = -1) -> Floats:
        return np.asarray(v.sum(axis=axis) / w.sum(axis=axis))

    return float(values.sum() / weights.sum()), _interval((values, weights), ratio, seed)


def _interval(samples: tuple[Floats, ...], statistic: object, seed: int) -> tuple[float, float]:
    """95% paired bootstrap interval: BCa, or percentile where BCa is undefined (hardly any variation)."""
    point = float(statistic(*samples))  # type: ignore[operator]
    if len(samples[0]) < 2:
        return (-math.inf, math.inf) if len(samples[0]) == 0 else (point, point)
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = stats.bootstrap(
                samples,
                statistic,
                paired=True,
                vectorized=True,
                n_resamples=RESAMPLES,
                batch=1000,
                method=method,
                rng=np.random.default_rng(seed),
            )
        low, high = map(float, result.confidence_interval)
        if math.isfinite(low) and math.isfinite(high):
            return low, high
    return point, point
