"""Verdicts beside labels, or beside another judge's: AUC, calibration, confusion, kappa, with intervals over prompts.

In: probabilities or verdicts, labels in 0/1, the prompts they are of. Out: AUC with its 95% interval (bootstrap over
prompts), and whether that suffices for a reading; accuracy, sensitivity and specificity at a threshold; Brier score,
expected calibration error, a reliability table; bounds of what missing verdicts could have been; Cohen's kappa, 1 for
full agreement, 0 for what two independent raters of these rates would reach, no value (None) where both give every
answer the same verdict. Left out: what was judged, and by whom (judges/quality/); more than two raters at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from spin_llm.results.judged import Bin, Confusion, JudgeQuality, Kappa
from spin_llm.results.measured import Interval
from spin_llm.stats.paired import Floats, resampled_sums

Bits = NDArray[Any]  # 0 and 1, of any type
RESAMPLES = 2000  # of an AUC
BINS = 10
LEAST_AUC, LEAST_BOUND = 0.75, 0.65  # of the rule of judges/quality/reading.py
Z = 1.959964  # of a 95% interval


def quality_of(probability: Floats, threshold: float, y: Bits, groups: NDArray[Any]) -> JudgeQuality:
    """The quality of probabilities (n,) beside labels `y`: `ranked`, Brier score, calibration error."""
    return replace(
        ranked(probability, (probability >= threshold).astype(int), y, groups),
        brier=float(((probability - y) ** 2).mean()),
        calibration_error=calibration_error(reliability(probability, y)),
    )


def ranked(score: Floats, said: Bits, y: Bits, groups: NDArray[Any]) -> JudgeQuality:
    """AUC of `score` (n,) with its bootstrap interval over prompts; what verdicts `said` in 0/1 are worth beside `y`.

    With one class only there is no AUC (None). `measurable`: by AUC and lower bound (judges/quality/reading.py).
    """
    auc, interval = auc_interval(score, y, groups)
    prompts = (len(set(groups[y == 1].tolist())), len(set(groups[y == 0].tolist())))
    bound, cells = lower_bound(auc, interval, prompts), confusion(said, y)
    return JudgeQuality(
        auc=auc,
        auc_ci95=interval,
        prompts=prompts,
        auc_bound=bound,
        measurable=suffices(auc, bound),
        accuracy=cells.accuracy,
        positive_rate=(float(y.mean()), float(said.mean())),
        sensitivity=cells.sensitivity,
        specificity=cells.specificity,
        n=len(y),
    )


def confusion(said: Bits, y: Bits) -> Confusion:
    """The four counts of verdicts `said` in 0/1 beside labels `y` (n,)."""
    return Confusion(
        *(int(((said == judged) & (y == label)).sum()) for judged, label in ((1, 1), (0, 1), (1, 0), (0, 0)))
    )


def auc_interval(score: Floats, y: Bits, groups: NDArray[Any]) -> tuple[float | None, Interval | None]:
    """(AUC, 95% percentile interval), prompts resampled with all their answers."""
    if len(set(y.tolist())) < 2:
        return None, None
    names, member = np.unique(groups, return_inverse=True)
    rows_of = [np.flatnonzero(member == group) for group in range(len(names))]
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(RESAMPLES):
        places = np.concatenate([rows_of[group] for group in rng.integers(len(names), size=len(names))])
        if 0 < y[places].mean() < 1:
            samples.append(area(score[places], y[places] == 1))
    low, high = np.quantile(samples, (0.025, 0.975))
    return area(score, y == 1), (float(low), float(high))


def area(score: Floats, positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a positive row scores above a negative one, ties counting half."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    ranks = stats.rankdata(score)[positive].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def reliability(probability: Floats, y: Bits) -> list[Bin]:
    """Ten bins of equal width that hold any row: bounds, n, mean probability, share of positive labels."""
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    return [
        {
            "from": int(bin_) / BINS,
            "to": (int(bin_) + 1) / BINS,
            "n": int((place == bin_).sum()),
            "probability": float(probability[place == bin_].mean()),
            "labelled": float(y[place == bin_].mean()),
        }
        for bin_ in np.unique(place)
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: the mean distance of probability and share of positives over the bins, by n."""
    total = sum(found["n"] for found in bins)
    return float(sum(found["n"] * abs(found["probability"] - found["labelled"]) for found in bins) / total)


def bounds(said: Bits, y: Bits, unparsed_y: Bits) -> dict[str, tuple[float | None, float | None]]:
    """(worst, best) accuracy, sensitivity and specificity: every unparsed verdict wrong, every one right."""
    worst, best = (
        confusion(np.concatenate([said, lost]), np.concatenate([y, unparsed_y]))
        for lost in (1 - unparsed_y, unparsed_y)
    )
    return {
        "accuracy": (worst.accuracy, best.accuracy),
        "sensitivity": (share(worst.sensitivity), share(best.sensitivity)),
        "specificity": (share(worst.specificity), share(best.specificity)),
    }


def share(counts: Sequence[int]) -> float | None:
    return counts[0] / counts[1] if counts[1] else None


def share_interval(counts: Sequence[int]) -> Interval | None:
    """95% Jeffreys interval of counts[0] / counts[1] (Brown, Cai and DasGupta 2001); answers taken as independent."""
    hits, total = counts
    if not total:
        return None
    ends = stats.beta.ppf((0.025, 0.975), hits + 0.5, total - hits + 0.5)
    return 0.0 if not hits else float(ends[0]), 1.0 if hits == total else float(ends[1])


def lower_bound(auc: float | None, interval: Sequence[float] | None, prompts: Sequence[int]) -> float | None:
    """The bound of the rule above; `prompts` are those with positive and with negative labels. None without an AUC.

    >>> round(lower_bound(1.0, [1.0, 1.0], [10, 90]), 2)
    0.72
    """
    least = min(prompts)
    if auc is None or interval is None or not least:
        return None
    spread = Z * math.sqrt(auc * (1 - auc) / least + (Z / (2 * least)) ** 2)
    return min(interval[0], (auc + Z**2 / (2 * least) - spread) / (1 + Z**2 / least))


def suffices(auc: float | None, bound: float | None) -> bool:
    """Whether verdicts of a judge so measured are read."""
    return auc is not None and bound is not None and auc >= LEAST_AUC and bound >= LEAST_BOUND


def kappa_of(counts: Floats) -> Floats:
    """(..., 4) counts of (1, 1), (1, 0), (0, 1), (0, 0) -> (...) kappa; nan where chance alone gives full agreement."""
    shares = counts / counts.sum(-1, keepdims=True)
    agreed = shares[..., 0] + shares[..., 3]
    one, other = shares[..., 0] + shares[..., 1], shares[..., 0] + shares[..., 2]
    by_chance = one * other + (1 - one) * (1 - other)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(by_chance < 1, (agreed - by_chance) / (1 - by_chance), np.nan))


def agreement(one: Floats, other: Floats, prompts: Sequence[str], *, seed: int = 0) -> Kappa:
    """Kappa of two columns of 0/1 verdicts (n,).

    The percentile interval leaves out resamples without a kappa; with a single prompt, or no kappa, there is none.
    """
    kinds = np.stack([one * other, one * (1 - other), (1 - one) * other, (1 - one) * (1 - other)], 1)
    names, member = np.unique(np.array(prompts), return_inverse=True)
    by_prompt = np.zeros((len(names), 4))
    np.add.at(by_prompt, member, kinds)
    kappa = float(kappa_of(by_prompt.sum(0))) if len(one) else np.nan
    interval = None
    if np.isfinite(kappa) and len(names) > 1:
        low, high = np.nanquantile(kappa_of(resampled_sums(by_prompt, seed)), (0.025, 0.975))
        interval = float(low), float(high)
    return Kappa(
        kappa=kappa if np.isfinite(kappa) else None,
        ci95=interval,
        agree=float((one == other).mean()) if len(one) else None,
        n=len(one),
    )


def pairwise(verdicts: Mapping[str, Sequence[int | None]], prompts: Sequence[str]) -> list[Kappa]:
    """`agreement` of every two judges on the answers that both have a verdict for; `between` names the two."""
    return [
        replace(shared(verdicts[first], verdicts[second], prompts), between=(first, second))
        for first, second in combinations(verdicts, 2)
    ]


def shared(one: Sequence[int | None], other: Sequence[int | None], prompts: Sequence[str]) -> Kappa:
    """`agreement` on the rows where neither is None."""
    rows = [(a, b, prompt) for a, b, prompt in zip(one, other, prompts, strict=True) if a is not None and b is not None]
    first, second = (np.array([row[side] for row in rows], dtype=np.float64) for side in (0, 1))
    return agreement(first, second, [prompt for _, _, prompt in rows])
