"""Verdicts beside labels: AUC, calibration, confusion, with intervals over prompts.

In: probabilities or verdicts, labels in 0/1, the prompts they are of. Out: AUC with its 95% interval (bootstrap over
prompts); accuracy, sensitivity and specificity at a threshold; Brier score, expected calibration error, a reliability
table; bounds of what missing verdicts could have been. Left out: what was judged, and by whom (judges/quality/).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


RESAMPLES = 2000


BINS = 10


def quality_of(probability: Floats, threshold: float, y: NDArray[Any], groups: NDArray[Any]) -> dict[str, Any]:
    """AUC with its bootstrap interval over prompts; at the threshold accuracy, positive rate [labelled, judged],
    sensitivity [found, positives] and specificity [rejected, negatives]; Brier score, calibration error, n.

    `prompts` with either label, the lower bound of the AUC (`auc_bound`), and whether it is `measurable` by that
    (judges/quality/reading.py). With one class only there is no AUC (None).
    """
    return {
        **auc_part(probability, y, groups),
        **at_threshold((probability >= threshold).astype(int), y),
        "brier": float(((probability - y) ** 2).mean()),
        "calibration_error": calibration_error(reliability(probability, y)),
    }


def auc_part(score: Floats, y: NDArray[Any], groups: NDArray[Any]) -> dict[str, Any]:
    auc, interval = auc_interval(score, y, groups)
    prompts = [len(set(groups[y == label].tolist())) for label in (1, 0)]
    bound = lower_bound(auc, interval, prompts)
    known = {"auc": auc, "auc_ci95": interval, "prompts": prompts, "auc_bound": bound}
    return {**known, "measurable": suffices(auc, bound)}


def at_threshold(said: NDArray[Any], y: NDArray[Any]) -> dict[str, Any]:
    """What verdicts `said` in 0/1 are worth beside labels `y` (n,)."""
    counts = confusion(said, y)
    return {
        "accuracy": float((said == y).mean()),
        "positive_rate": [float(y.mean()), float(said.mean())],
        "sensitivity": [counts["found"], counts["found"] + counts["missed"]],
        "specificity": [counts["rejected"], counts["rejected"] + counts["false_alarms"]],
        "n": len(y),
    }


def confusion(said: NDArray[Any], y: NDArray[Any]) -> dict[str, int]:
    """The four counts: positives found and missed, false alarms among the negatives, and negatives rejected."""
    cells = {"found": (1, 1), "missed": (0, 1), "false_alarms": (1, 0), "rejected": (0, 0)}
    return {name: int(((said == judged) & (y == label)).sum()) for name, (judged, label) in cells.items()}


def auc_interval(score: Floats, y: NDArray[Any], groups: NDArray[Any]) -> tuple[float | None, list[float] | None]:
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
    return area(score, y == 1), [float(low), float(high)]


def area(score: Floats, positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a positive row scores above a negative one, ties counting half."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    ranks = stats.rankdata(score)[positive].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def reliability(probability: Floats, y: NDArray[Any]) -> list[dict[str, Any]]:
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


def calibration_error(bins: Sequence[Mapping[str, Any]]) -> float:
    """Expected calibration error: the mean distance of probability and share of positives over the bins, by n."""
    total = sum(found["n"] for found in bins)
    return float(sum(found["n"] * abs(found["probability"] - found["labelled"]) for found in bins) / total)


def bounds(said: NDArray[Any], y: NDArray[Any], unparsed_y: NDArray[Any]) -> dict[str, list[float | None]]:
    """[worst, best] accuracy, sensitivity and specificity: every unparsed verdict wrong, every one right."""
    ends = []
    for lost in (1 - unparsed_y, unparsed_y):
        worth = at_threshold(np.concatenate([said, lost]), np.concatenate([y, unparsed_y]))
        ends.append({"accuracy": worth["accuracy"], **{name: share(worth[name]) for name in SHARES}})
    return {name: [end[name] for end in ends] for name in ends[0]}


SHARES = ("sensitivity", "specificity")


def share(counts: Sequence[int]) -> float | None:
    return counts[0] / counts[1] if counts[1] else None


def share_interval(counts: Sequence[int]) -> list[float] | None:
    """95% Jeffreys interval of counts[0] / counts[1] (Brown, Cai and DasGupta 2001); answers taken as independent."""
    hits, total = counts
    if not total:
        return None
    ends = stats.beta.ppf((0.025, 0.975), hits + 0.5, total - hits + 0.5)
    return [0.0 if not hits else float(ends[0]), 1.0 if hits == total else float(ends[1])]


LEAST_AUC, LEAST_BOUND = 0.75, 0.65


Z = 1.959964  # of a 95% interval


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
