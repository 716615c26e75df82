"""Fitting and checking judges on labelled answers.

In: rows {"concept", "prompt", "answer", one column per label in 0/1, or "labels" by rater}. Out: a judge file (linear
heads, safetensors with JSON metadata), or a judge's measured quality. A head is an L2-regularised logistic regression
on standardised features. Its calibration (Platt) and threshold come from cross-validated log-odds, folds grouped by
prompt; the threshold makes the rate of positive verdicts equal to the rate of positive labels. Optional columns:
`split` = "test" keeps a row out of the fit and measures the judge on it; `family` (of the model that answered, as
`spin-llm doctor` names it) and `questions` (their source) say where that measurement holds, and each pair of them gets
one of its own (reading.py); `weight` below 1 marks supporting rows (of
another source), which help to fit and are left out of folds, calibration and threshold.
Left out: choosing features (benchmarks/judge.py), and the judging itself (local.py).
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from spin_llm.errors import SpinError
from spin_llm.files import UNSEALED, seal_safetensors, sha256_json
from spin_llm.judges.local import FORMAT, Head, load_local
from spin_llm.judges.quality.check import Rows, group_of
from spin_llm.judges.quality.probes import probes_for, run_probes
from spin_llm.judges.reader import ANSWER_TOKENS, CLOSING, FeatureReader
from spin_llm.judges.verdict import DEFAULT_LABEL, LABELS
from spin_llm.models import load
from spin_llm.outputs import writing
from spin_llm.progress import SILENT, Console
from spin_llm.results.file import written
from spin_llm.results.judged import JudgeQuality
from spin_llm.stats.classification import quality_of

Floats = NDArray[np.float64]

FOLDS = 5
MINIMUM_ROWS = 20
UNFITTED = ("facet", "family", "questions")  # columns that decide nothing of a fit
INVERSE_PENALTY = 3.0
DEPTHS = (16 / 30, 20 / 30)  # of the feature model's layers: the middle ones know best what was said


def fit_judge(
    rows: Rows,
    output: str | Path,
    *,
    feature_model: str = "smollm2-135m",
    elsewhere: Mapping[str, Rows] | None = None,
    source: str = "",
    console: Console = SILENT,
) -> Path:
    """Fit every head that the rows allow and write the judge file.

    `elsewhere`: further sets by name to measure on, never fitted on. Without `test` rows the quality is the
    cross-validated one, and says so. Raises SpinError when no head has enough rows of both classes.
    """
    reader = read_with(feature_model)
    sets = {"": rows, **(elsewhere or {})}
    sets = {name: [row for row in some if row["answer"].strip()] for name, some in sets.items()}
    features = {name: read_features(reader, some, name, console) for name, some in sets.items()}
    heads = fit_heads(features, sets, source)
    saved = save_judge(output, heads, sets[""], feature_model, reader, reader.layers)
    return record_probes(saved)


def read_with(feature_model: str, depths: Sequence[float] = DEPTHS) -> FeatureReader:
    """The reader of a feature model, at the layers that lie at `depths` of it."""
    loaded = load(feature_model)
    depth = loaded.model.config.get_text_config().num_hidden_layers
    return FeatureReader(loaded, sorted({max(1, round(depth * part)) for part in depths}))


def fit_heads(
    features: Mapping[str, NDArray[np.float32]], sets: Mapping[str, Rows], source: str = ""
) -> dict[tuple[str, str], Head]:
    """{(axis, label): head} fitted on the set "" and measured on its test rows and on the other sets."""
    heads: dict[tuple[str, str], Head] = {}
    for axis in dict.fromkeys([*CLOSING, *sorted({row["concept"] for row in sets[""]})]):
        for label in LABELS:
            picked = {name: pick(features[name], some, axis, label) for name, some in sets.items()}
            if not fittable(picked[""][1], label):
                continue
            head = fit_head(*picked.pop(""), label, source)
            others = [one for name, part in picked.items() if part[1] for one in measure(head, *part, label, name)]
            heads[axis, label] = replace(head, measured=[*head.measured, *written(others)])
    if not heads:
        raise SpinError(
            "No head of the judge could be fitted.",
            cause=f"a head needs {MINIMUM_ROWS} rows, and {FOLDS} prompts with either label among them.",
            change="label more answers; both labels must occur.",
        )
    return heads


def pick(
    features: NDArray[np.float32], rows: Rows, axis: str, label: str
) -> tuple[NDArray[np.float32], list[Mapping[str, Any]]]:
    """The part of a set that is labelled with `label` on `axis`."""
    here = [row["concept"] == axis and label in row for row in rows]
    return features[here], [row for row, keep in zip(rows, here, strict=True) if keep]


def measure(head: Head, features: NDArray[np.float32], rows: Rows, label: str, source: str) -> list[JudgeQuality]:
    """The head's quality on labelled rows, one measurement for each family and question source."""
    return by_group(head.probabilities(features), head.threshold, rows, label, source)


def by_group(probability: Floats, threshold: float, rows: Rows, label: str, source: str) -> list[JudgeQuality]:
    y, prompts = (np.array([row[key] for row in rows]) for key in (label, "prompt"))
    found = []
    for family, questions in dict.fromkeys(map(group_of, rows)):
        here = np.array([group_of(row) == (family, questions) for row in rows])
        one = quality_of(probability[here], threshold, y[here], prompts[here])
        found.append(replace(one, family=family, questions=questions, source=source))
    return found


def fittable(rows: Rows, label: str) -> bool:
    """Enough rows of the fit part, and both classes under enough prompts for the folds."""
    prompts = [{row["prompt"] for row in rows if own(row) and row[label] == value} for value in (0, 1)]
    return sum(map(own, rows)) >= MINIMUM_ROWS and min(map(len, prompts)) >= FOLDS


def own(row: Mapping[str, Any]) -> bool:
    """Whether a row is of the kind that the judge is for: in the fit part and not merely supporting."""
    return row.get("split") != "test" and row.get("weight", 1) >= 1


def read_features(reader: FeatureReader, rows: Rows, name: str, console: Console) -> NDArray[np.float32]:
    """(rows, d) features in the rows' order."""
    found: dict[int, NDArray[np.float32]] = {}
    with console.bar(f"features{name and f', {name}'}", len(rows)) as advance:
        for axis in dict.fromkeys(row["concept"] for row in rows):
            places = [place for place, row in enumerate(rows) if row["concept"] == axis]
            prompts, answers = ([rows[place][key] for place in places] for key in ("prompt", "answer"))
            found.update(zip(places, reader(axis, prompts, answers, advance), strict=True))
    return np.stack([found[place] for place in range(len(rows))])


def fit_head(features: NDArray[np.float32], rows: Rows, label: str, source: str = "") -> Head:
    """One calibrated head with its measurements. `features` (n, d) beside `rows` (n)."""
    y = np.array([row[label] for row in rows])
    groups = np.array([row["prompt"] for row in rows])
    main = np.array([own(row) for row in rows])
    fit = np.array([row.get("split") != "test" for row in rows])
    mean, spread = features[main].mean(0, dtype=np.float64), features[main].std(0, dtype=np.float64) + 1e-3
    scale = 1 / (spread * math.sqrt(features.shape[1]))
    x = (features - mean) * scale
    weights = np.array([row.get("weight", 1.0) for row in rows])

    held_out = cross_validated(x[fit], y[fit], groups[fit], weights[fit], main[fit])
    slope, offset = calibration(held_out, y[main])
    model = regression(x[fit], y[fit], weights[fit], main[fit])
    weight = (slope * model.coef_[0] * scale).astype(np.float32)
    bias = float(slope * (model.intercept_[0] - model.coef_[0] @ (mean * scale)) + offset)
    own_probability = 1 / (1 + np.exp(-(slope * held_out + offset)))
    head = Head(weight, bias, threshold_at_rate(own_probability, y[main]))
    test = ~fit
    if test.any() and 0 < y[test].mean() < 1:
        kept = [row for row, out in zip(rows, test, strict=True) if out]
        found = measure(head, features[test], kept, label, source or "the rows kept for testing")
        return replace(head, measured=written(found))
    fitted, source = [row for row, own_row in zip(rows, main, strict=True) if own_row], "cross-validation on the rows"
    measured = by_group(own_probability, head.threshold, fitted, label, f"{source} it was fitted on")
    return replace(head, measured=written(measured))


def regression(x: Floats, y: NDArray[Any], weights: Floats, main: NDArray[np.bool_]) -> Any:
    """L2 logistic regression. Both classes of the main rows carry equal weight; supporting rows their own beside it."""
    from sklearn.linear_model import LogisticRegression

    rate = y[main].mean()
    balanced = np.where(main, np.where(y == 1, 0.5 / rate, 0.5 / (1 - rate)), weights)
    return LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(x, y, sample_weight=balanced)


def cross_validated(
    x: Floats, y: NDArray[Any], groups: NDArray[Any], weights: Floats, main: NDArray[np.bool_]
) -> Floats:
    """Held-out log-odds of the main rows (m,), mean of two rounds of grouped, stratified folds."""
    from sklearn.model_selection import StratifiedGroupKFold

    places = np.flatnonzero(main)
    total = np.zeros(len(places))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a rare class may miss a fold
        for seed in (0, 1):
            folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
            for _, held in folds.split(places, y[places], groups[places]):
                out = np.isin(groups, groups[places[held]])
                model = regression(x[~out], y[~out], weights[~out], main[~out])
                total[held] += model.decision_function(x[places[held]]) / 2
    return total


def calibration(logits: Floats, y: NDArray[Any]) -> tuple[float, float]:
    """(slope, offset) of Platt scaling; the slope is never negative."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=10.0).fit(logits[:, None], y)
    return max(float(model.coef_[0, 0]), 1e-3), float(model.intercept_[0])


def threshold_at_rate(probability: Floats, y: NDArray[Any]) -> float:
    """The threshold that calls as many rows positive as are labelled positive: half-way between two of them."""
    ordered = np.sort(probability)[::-1]
    positives = int(y.sum())
    return float((ordered[positives - 1] + ordered[min(positives, len(ordered) - 1)]) / 2)


def save_judge(
    path: str | Path,
    heads: Mapping[tuple[str, str], Head],
    rows: Rows,
    feature_model: str,
    reader: FeatureReader,
    layers: Sequence[int],
) -> Path:
    """Write a judge file: one weight vector per head, everything else as JSON in the metadata."""
    labels = [label for _, label in heads]
    about = {
        "feature_model": feature_model,
        "fingerprint": reader.fingerprint,
        "weights": reader.weights,
        "layers": list(layers),
        "answer_tokens": ANSWER_TOKENS,
        "fit_data": sha256_json(
            [{key: row[key] for key in row if key not in UNFITTED} for row in rows if row.get("split") != "test"]
        ),
        "default_label": DEFAULT_LABEL if DEFAULT_LABEL in labels else labels[0],
        "heads": [head_record(*key, head) for key, head in heads.items()],
    }
    return write_judge(Path(path), {f"{axis}.{label}": head.weight for (axis, label), head in heads.items()}, about)


def head_record(axis: str, label: str, head: Head) -> dict[str, Any]:
    """What a judge file says of a head beside its weights."""
    known = {"axis": axis, "label": label, "bias": head.bias, "threshold": head.threshold}
    return {**known, "measured": [dict(one) for one in head.measured]}


def write_judge(path: Path, weights: Mapping[str, NDArray[np.float32]], about: Mapping[str, Any]) -> Path:
    metadata = {"format": FORMAT, "judge": json.dumps(about, sort_keys=True), **UNSEALED}
    with writing(path) as part:
        save_file(dict(weights), part, metadata=metadata)
        seal_safetensors(part)
    return path


def record_probes(path: Path) -> Path:
    """Ask the judge in a file the probes, and write the outcome by label into the file (robustness.limits)."""
    with safe_open(path, "np") as file:
        about = json.loads(file.metadata()["judge"])
    labels = [label for label in dict.fromkeys(head["label"] for head in about["heads"]) if probes_for(label)]
    about["probes"] = {label: run_probes(load_local(str(path), label=label)) for label in labels}
    return write_judge(path, load_file(path), about)
