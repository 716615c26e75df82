"""How good a judge is, measured on labelled answers.

In: probabilities or judges, and labelled rows (labelled.py says what a row is). Out: AUC with its 95% interval over
prompts; accuracy, sensitivity, specificity and a confusion table per facet at the threshold; calibration (Brier score,
expected calibration error, reliability table); agreement with the labels and between judges; and whether that
suffices for a reading (quality.py). Verdicts that could not be had are counted, and bound what they could have been.
All of it once for all rows, and once for each model family and question source among them.
Left out: robustness to odd answers (robustness.py); how the numbers look on a terminal (check_table.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from spin_llm.errors import SpinError
from spin_llm.evaluate.agreement import pairwise, shared
from spin_llm.evaluate.judge import Judge, Verdict, head_label
from spin_llm.evaluate.missing import MOST_MISSING, unanswered
from spin_llm.evaluate.quality import lower_bound, suffices
from spin_llm.progress import SILENT, Console

Rows = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]
RESAMPLES = 2000
BINS = 10


def quality_of(probability: Floats, threshold: float, y: NDArray[Any], groups: NDArray[Any]) -> dict[str, Any]:
    """AUC with its bootstrap interval over prompts; at the threshold accuracy, positive rate [labelled, judged],
    sensitivity [found, positives] and specificity [rejected, negatives]; Brier score, calibration error, n.

    `prompts` with either label, the lower bound of the AUC (`auc_bound`), and whether it is `measurable` by that
    (quality.py). With one class only there is no AUC (None).
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


def verdicts_of(judge: Judge, rows: Rows, *, title: str = "judging", console: Console = SILENT) -> list[Verdict]:
    """The judge's verdicts in the rows' order; none where it does not judge a row's axis."""
    known = getattr(judge, "axes", None)
    found: dict[int, Verdict] = {}
    for axis in dict.fromkeys(row["concept"] for row in rows):
        places = [place for place, row in enumerate(rows) if row["concept"] == axis]
        if known is None or axis in known:
            prompts, answers = ([rows[place][key] for place in places] for key in ("prompt", "answer"))
            with console.bar(f"{title}, {axis}", len(places)) as advance:
                found.update(zip(places, judge(axis, prompts, answers, advance), strict=True))
    return [found.get(place, Verdict(None, None)) for place in range(len(rows))]


def check_judges(judges: Mapping[str, Judge], rows: Rows, *, console: Console = SILENT) -> dict[str, Any]:
    """{"judges": {name: {axis: quality}}, "agreement": {axis: [kappa of two judges, ...]}} on labelled rows.

    Raises SpinError when no row has a label that any of the judges gives.
    """
    verdicts = {name: verdicts_of(judge, rows, title=name, console=console) for name, judge in judges.items()}
    measured = {name: measure(judge.label, rows, verdicts[name]) for name, judge in judges.items()}
    if not any(measured.values()):
        labels = ", ".join(dict.fromkeys(judge.label for judge in judges.values()))
        raise SpinError(f"No row is labelled for {labels}.", change=f"give rows with a column {labels} or label.")
    agreed = {}
    for axis in dict.fromkeys(row["concept"] for row in rows):
        mine = [place for place, row in enumerate(rows) if row["concept"] == axis]
        said = {name: [found[place].verdict for place in mine] for name, found in verdicts.items()}
        agreed[axis] = pairwise(said, [rows[place]["prompt"] for place in mine])
    return {"judges": measured, "agreement": agreed}


def measure(label: str, rows: Rows, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """{axis: quality} of one judge's verdicts on the rows that are labelled with what it judges."""
    found: dict[str, Any] = {}
    for axis in dict.fromkeys(row["concept"] for row in rows):
        key = head_label(axis, label)
        mine = [(row, v) for row, v in zip(rows, verdicts, strict=True) if row["concept"] == axis and key in row]
        if any(verdict.verdict is not None for _, verdict in mine):
            groups = dict.fromkeys(group_of(row) for row, _ in mine)
            parts = [(group, [one for one in mine if group_of(one[0]) == group]) for group in groups]
            found[axis] = {"label": key, **measure_axis(key, mine)}
            found[axis]["groups"] = [
                {"family": family, "questions": questions, **measure_axis(key, part)}
                for (family, questions), part in parts
                if any(verdict.verdict is not None for _, verdict in part)
            ]
    return found


def group_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """(model family, question source) of a labelled row; "" where it does not say."""
    return str(row.get("family") or ""), str(row.get("questions") or "")


def measure_axis(label: str, judged: Sequence[tuple[Mapping[str, Any], Verdict]]) -> dict[str, Any]:
    """The quality of one axis. A judge without probabilities has no calibration, and the AUC of its verdicts; one that
    has no verdict on more than MOST_MISSING of the labelled answers is not measurable by the others."""
    parsed = [(row, verdict) for row, verdict in judged if verdict.verdict is not None]
    lost = np.array([row[label] for row, verdict in judged if verdict.verdict is None], dtype=int)
    y, groups = (np.array([row[key] for row, _ in parsed]) for key in (label, "prompt"))
    said = np.array([verdict.verdict for _, verdict in parsed])
    known = [verdict.probability for _, verdict in parsed if verdict.probability is not None]
    quality: dict[str, Any] = {"brier": None, "calibration_error": None, "reliability": []}
    if len(known) == len(parsed):
        probability = np.array(known)
        table = reliability(probability, y)
        quality = {"brier": float(((probability - y) ** 2).mean()), "calibration_error": calibration_error(table)}
        quality |= {"reliability": table}
    score = np.array(known) if len(known) == len(parsed) else said.astype(np.float64)
    facets = np.array([row.get("facet") or "" for row, _ in parsed])
    worth = at_threshold(said, y)
    ranked = auc_part(score, y, groups)
    silent = sum(verdict.verdict is None and not unanswered(row) for row, verdict in judged)
    return {
        **ranked,
        "measurable": ranked["measurable"] and silent <= MOST_MISSING * len(judged),
        **worth,
        **{f"{name}_ci95": share_interval(worth[name]) for name in SHARES},
        **quality,
        "confusion": confusion(said, y),
        "facets": {facet: confusion(said[facets == facet], y[facets == facet]) for facet in sorted({*facets} - {""})},
        "labels": shared(said.tolist(), y.tolist(), groups.tolist()),
        "unparsed": len(lost),
        "bounds": bounds(said, y, lost),
    }
