"""How good a judge is, measured on labelled answers.

In: probabilities or a judge, and labelled rows (judge_fit.py says what a row is). Out: AUC with its 95% interval over
prompts, accuracy and positive rate at the threshold, Brier score, n, and whether the AUC suffices (MEASURABLE_AUC).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from spin_llm.errors import SpinError
from spin_llm.evaluate.judge import MEASURABLE_AUC, Judge, head_label

Rows = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]
RESAMPLES = 2000


def quality_of(probability: Floats, threshold: float, y: NDArray[Any], groups: NDArray[Any]) -> dict[str, Any]:
    """AUC with its bootstrap interval over prompts, accuracy and positive rate at the threshold, Brier score, n.

    `measurable` is whether the AUC reaches MEASURABLE_AUC. With one class only there is no AUC (None).
    """
    said = probability >= threshold
    auc, interval = auc_interval(probability, y, groups)
    return {
        "auc": auc,
        "auc_ci95": interval,
        "accuracy": float((said == (y == 1)).mean()),
        "positive_rate": [float(y.mean()), float(said.mean())],
        "brier": float(((probability - y) ** 2).mean()),
        "n": len(y),
        "measurable": auc is not None and auc >= MEASURABLE_AUC,
    }


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
    ranks = rankdata(score)[positive].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def check_judge(judge: Judge, rows: Rows) -> dict[str, Any]:
    """{axis: quality} of any judge on labelled rows, for the label that it gives; unparsed verdicts are counted."""
    found: dict[str, Any] = {}
    for axis in dict.fromkeys(row["concept"] for row in rows):
        label = head_label(axis, judge.label)
        mine = [row for row in rows if row["concept"] == axis and label in row]
        verdicts = judge(axis, [row["prompt"] for row in mine], [row["answer"] for row in mine])
        parsed = [(row, v) for row, v in zip(mine, verdicts, strict=True) if v.probability is not None]
        if not parsed:
            continue
        y, groups = (np.array([row[key] for row, _ in parsed]) for key in (label, "prompt"))
        said = np.array([v.verdict for _, v in parsed])
        quality = quality_of(np.array([v.probability for _, v in parsed]), 0.5, y, groups)
        quality |= {"accuracy": float((said == y).mean()), "positive_rate": [float(y.mean()), float(said.mean())]}
        found[axis] = {"label": label, **quality, "unparsed": len(mine) - len(parsed)}
    if not found:
        raise SpinError(
            f"No row is labelled for {judge.label}.", change=f"give rows with a column {judge.label} or label."
        )
    return found
