"""Paired statistics: base and edited on the same prompts.

In: one number per prompt for each of two models. Out: the difference with its 95% interval, a two-sided p, and the
smallest difference that such a comparison finds four times in five. Pairs, not models, are compared, so the shared
difficulty of a prompt cancels. Rates have the adjusted Wald interval of Bonett and Price (2012) and the exact McNemar
test; means and perplexity a BCa bootstrap over pairs (Efron 1987) and Wilcoxon's signed-rank test. Left out: the
judge's errors (correction.py). Coverage as measured, and why rates have no bootstrap interval: docs/statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr, ndtri

from spin_llm.errors import SpinError
from spin_llm.results.measured import Interval

Floats = NDArray[np.float64]
RESAMPLES = 10_000
CHUNK = 2_000_000  # indices drawn at a time: about 64 MB with three columns
ALPHA, POWER = 0.05, 0.8
Z95 = float(ndtri(1 - ALPHA / 2))
DETECTABLE = Z95 + float(ndtri(POWER))  # 2.80 standard errors
BONETT_PRICE, BCA = "Bonett-Price adjusted Wald", "BCa bootstrap"
MCNEMAR, WILCOXON = "exact McNemar", "Wilcoxon signed-rank"


@dataclass(frozen=True)
class Paired:
    """`base` and `edited` over `n` pairs, `delta` = edited - base with its 95% interval `ci95`, and a two-sided `p`.

    `mde`: the minimum detectable |delta| at 80% power and alpha 0.05; None where no difference is large enough.
    `interval_method` and `test` name what gave the interval and the p.
    """

    n: int
    base: float
    edited: float
    delta: float
    ci95: Interval
    p: float
    mde: float | None
    interval_method: str
    test: str


def paired_rates(base: Floats, edited: Floats) -> Paired:
    """Two columns of 0/1 verdicts (n,), compared by the pairs that changed. Raises SpinError when there is no pair."""
    n = _pairs(base)
    gained, lost = changed(base, edited)
    rates, interval = (float(base.mean()), float(edited.mean())), rate_interval(gained, lost, n)
    p, mde = mcnemar(base, edited), detectable_rate(gained + lost, n)
    return Paired(n, *rates, (gained - lost) / n, interval, p, mde, BONETT_PRICE, MCNEMAR)


def changed(base: Floats, edited: Floats) -> tuple[int, int]:
    """(pairs gained, 0 -> 1; pairs lost, 1 -> 0)."""
    return int(((base == 0) & (edited == 1)).sum()), int(((base == 1) & (edited == 0)).sum())


def rate_interval(gained: int, lost: int, n: int) -> Interval:
    """95% interval of (gained - lost) / n: Wald's with one pair added to the gained and one to the lost.

    Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data",
    Journal of Educational and Behavioral Statistics 37 (2012). It has a width when no pair changed, too.
    """
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = Z95 * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def mcnemar(base: Floats, edited: Floats) -> float:
    """Exact two-sided McNemar p: a binomial test on the pairs whose verdict changed; 1.0 when none did."""
    gained, lost = changed(base, edited)
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


@lru_cache(maxsize=1024)
def detectable_rate(discordant: int, n: int) -> float | None:
    """The smallest |difference| of rates (to 0.0001) that the exact McNemar test finds in 80% of studies of n pairs.

    By search over the test's exact power, the share of discordant pairs held at the one observed, or, where the
    difference is larger than that, at the difference (every changed pair in one direction; so with no discordant
    pair observed the answer is the least that it can be). None when n is too small for any.
    """

    def found(delta: float) -> bool:
        return mcnemar_power(n, max(discordant / n, delta), delta) >= POWER

    low, high = 0.0, 1.0
    if not found(high):
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def mcnemar_power(n: int, share: float, delta: float) -> float:
    """Probability of p <= 0.05 in n pairs, of which each is discordant with probability `share` > 0, and gained rather
    than lost with probability (1 + delta / share) / 2."""
    number = np.arange(n + 1)
    weight = stats.binom.pmf(number, n, share)
    number, weight = number[weight > 1e-12], weight[weight > 1e-12]
    # the largest count of the rarer direction that is significant among so many discordant pairs; -1: none is
    rare = stats.binom.ppf(ALPHA / 2, number, 0.5)
    rare = np.where(stats.binom.cdf(rare, number, 0.5) > ALPHA / 2, rare - 1, rare)
    gain = min(1.0, (1 + delta / share) / 2)
    tails = stats.binom.cdf(rare, number, gain) + stats.binom.sf(number - rare - 1, number, gain)
    return float(weight @ tails)


def paired_perplexity(base: Floats, edited: Floats, tokens: Floats, *, seed: int = 0) -> Paired:
    """Perplexity exp(sum of losses / sum of tokens) of two models over the same pairs.

    `base`, `edited`: summed negative log-likelihoods in nats (n,); `tokens`: response tokens (n,). The interval
    resamples pairs; p is the Wilcoxon signed-rank test on the per-pair losses per token; `mde` is 2.8 bootstrap
    standard errors.
    """

    def difference(sums: Floats) -> Floats:
        return np.exp(sums[..., 1] / sums[..., 2]) - np.exp(sums[..., 0] / sums[..., 2])

    interval, error = bootstrap(np.column_stack([base, edited, tokens]), difference, seed)
    ppl_base, ppl_edited = (math.exp(x.sum() / tokens.sum()) for x in (base, edited))
    p, mde = wilcoxon((edited - base) / tokens), DETECTABLE * error or None
    return Paired(len(base), ppl_base, ppl_edited, ppl_edited - ppl_base, interval, p, mde, BCA, WILCOXON)


def paired_means(base: Floats, edited: Floats, *, seed: int = 0) -> Paired:
    """Two columns of any numbers (n,): bootstrap interval of the difference in mean, Wilcoxon signed-rank p."""
    delta = edited - base
    interval, error = bootstrap(np.column_stack([delta, np.ones(len(delta))]), _ratio, seed)
    means = float(base.mean()), float(edited.mean()), float(delta.mean())
    return Paired(len(base), *means, interval, wilcoxon(delta), DETECTABLE * error or None, BCA, WILCOXON)


def weighted_mean(values: Floats, weights: Floats, *, seed: int = 0) -> tuple[float, Interval]:
    """Sum(values) / sum(weights) with its bootstrap interval: a per-token mean over examples of unequal length."""
    interval, _ = bootstrap(np.column_stack([values, weights]), _ratio, seed)
    return float(values.sum() / weights.sum()), interval


def wilcoxon(delta: Floats) -> float:
    """Two-sided signed-rank p of the differences; 1.0 when every one is 0."""
    return float(stats.wilcoxon(delta).pvalue) if delta.any() else 1.0


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's step-down adjustment (1979) over the entries that have a p: the k-th smallest of m times m - k + 1, never
    below the one before it. Keeps the chance of any false positive among them at most at the level."""
    adjusted: dict[str, float | None] = dict.fromkeys(p_values)
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    reached = 0.0
    for place, (p, name) in enumerate(known):
        reached = max(reached, min(1.0, p * (len(known) - place)))
        adjusted[name] = reached
    return adjusted


def bootstrap(columns: Floats, statistic: Callable[[Floats], Floats], seed: int) -> tuple[Interval, float]:
    """(95% BCa interval, standard error) of a function of column sums, rows resampled.

    `columns` (n, k); `statistic` maps sums (..., k) to (...). A single row has no spread: (point, point) and 0.
    Raises SpinError when there is no row.
    """
    n = _pairs(columns)
    total = columns.sum(0)
    point = float(statistic(total))
    if n == 1:
        return (point, point), 0.0
    resampled = statistic(resampled_sums(columns, seed))
    return bca_interval(point, resampled, statistic(total - columns)), float(resampled.std(ddof=1))


def resampled_sums(columns: Floats, seed: int) -> Floats:
    """(RESAMPLES, k) sums of `columns` (n, k) over n rows drawn with replacement, a few resamples at a time."""
    rng, n = np.random.default_rng(seed), len(columns)
    step = max(1, CHUNK // n)
    sizes = [min(step, RESAMPLES - start) for start in range(0, RESAMPLES, step)]
    return np.concatenate([columns[rng.integers(n, size=(size, n))].sum(1) for size in sizes])


def bca_interval(point: float, resampled: Floats, left_out: Floats) -> Interval:
    """95% bias-corrected and accelerated interval from the resampled statistic and its leave-one-out values (n,).

    Resampling understates the spread of few rows: the normal quantile gives way to sqrt(n / (n - 1)) times Student's
    (Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69, 2015). The percentile
    interval where BCa is undefined: all resamples on one side of the point, equal leave-one-outs, or too few rows for
    their skewness.
    """
    n = len(left_out)
    quantiles = math.sqrt(n / (n - 1)) * stats.t.ppf((ALPHA / 2, 1 - ALPHA / 2), n - 1)
    # bias: how far the point is from the median of its resamples; acceleration: the skewness of the influences
    bias = ndtri(((resampled < point).mean() + (resampled <= point).mean()) / 2)
    influence = left_out.mean() - left_out
    spread = float((influence**2).sum() ** 1.5)
    acceleration = (influence**3).sum() / (6 * spread) if spread > 0 else math.inf
    stretch = 1 - acceleration * (bias + quantiles)
    if math.isfinite(bias) and math.isfinite(acceleration) and (stretch > 0).all():
        quantiles = bias + (bias + quantiles) / stretch
    low, high = np.quantile(resampled, ndtr(quantiles))
    return float(low), float(high)


def _ratio(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / sums[..., 1])


def _pairs(column: Floats) -> int:
    if not len(column):
        raise SpinError("There is nothing to compare.", cause="not one prompt was answered by both models.")
    return len(column)
