"""Fitting judges on labelled answers.

In: labelled rows (labelled.py). Out: a judge file (linear heads, safetensors with JSON metadata). A head is an
L2-regularised logistic regression on standardised features. Its calibration (Platt) and threshold come from
cross-validated log-odds, folds grouped by prompt; the threshold makes the rate of positive verdicts equal to the rate
of positive labels. `split` = "test" keeps a row out of the fit and measures the judge on it; its `family` (as
`spin-llm doctor` names it) and `questions` say where that measurement holds, and each pair of them gets one of its own
(reading.py). Supporting rows (`weight` below 1) help to fit and are left out of folds, calibration and threshold.
Left out: choosing features (benchmarks/judge.py), and the judging itself (local.py).
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from spin_llm.errors import SpinError
from spin_llm.files import UNSEALED, seal_safetensors, sha256_json
from spin_llm.judges.local import ANSWER_TOKENS, CLOSING, FORMAT, FeatureReader, Head, LocalJudge
from spin_llm.judges.quality.labelled import Labelled, by_concept, probes_for, run_probes
from spin_llm.judges.verdict import DEFAULT_LABEL, LABELS
from spin_llm.models import load
from spin_llm.outputs import writing
from spin_llm.progress import SILENT, Console
from spin_llm.results.file import written
from spin_llm.results.judged import JudgeQuality
from spin_llm.results.rows import JudgeAbout, JudgeHead
from spin_llm.stats.classification import quality_of

Rows = Sequence[Labelled]
Floats = NDArray[np.float64]
Features = NDArray[np.float32]

FOLDS = 5
MINIMUM_ROWS = 20
INVERSE_PENALTY = 3.0
DEPTHS = (16 / 30, 20 / 30)  # of the feature model's layers: the middle ones know best what was said


def fit_judge(
    rows: Rows,
    output: str | Path,
    *,
    feature_model: str = "smollm2-135m",
    elsewhere: Mapping[str, Rows] | None = None,
    console: Console = SILENT,
) -> Path:
    """Fit every head that the rows allow and write the judge file.

    `elsewhere`: further sets by name to measure on, never fitted on. Without `test` rows the quality is the
    cross-validated one, and says so. Raises SpinError when no head has enough rows of both classes.
    """
    reader = read_with(feature_model)
    given = {"": rows, **(elsewhere or {})}
    sets = {name: [row for row in some if row.answer.strip()] for name, some in given.items()}
    features = {name: read_features(reader, some, name, console) for name, some in sets.items()}
    return save_judge(Path(output), fit_heads(features, sets), sets[""], feature_model, reader, reader.layers)


def read_with(feature_model: str, depths: Sequence[float] = DEPTHS) -> FeatureReader:
    """The reader of a feature model, at the layers that lie at `depths` of it."""
    loaded = load(feature_model)
    depth = loaded.model.config.get_text_config().num_hidden_layers
    return FeatureReader(loaded, sorted({max(1, round(depth * part)) for part in depths}))


def fit_heads(
    features: Mapping[str, Features], sets: Mapping[str, Rows], source: str = ""
) -> dict[tuple[str, str], Head]:
    """{(axis, label): head} fitted on the set "" and measured on its test rows and on the other sets."""
    heads: dict[tuple[str, str], Head] = {}
    for axis in dict.fromkeys([*CLOSING, *sorted({row.concept for row in sets[""]})]):
        for label in LABELS:
            picked = {name: pick(features[name], some, axis, label) for name, some in sets.items()}
            if not fittable(picked[""][1], label):
                continue
            head = fit_head(*picked.pop(""), label, source)
            found = [*head.measured]
            for name, (read, some) in picked.items():
                found += by_group(head.probabilities(read), head.threshold, some, label, name)
            heads[axis, label] = replace(head, measured=found)
    if not heads:
        raise SpinError(
            "No head of the judge could be fitted.",
            cause=f"a head needs {MINIMUM_ROWS} rows, and {FOLDS} prompts with either label among them.",
            change="label more answers; both labels must occur.",
        )
    return heads


def pick(features: Features, rows: Rows, axis: str, label: str) -> tuple[Features, Rows]:
    """The part of a set that is labelled with `label` on `axis`."""
    here = [row.concept == axis and label in row.labels for row in rows]
    return features[here], list(compress(rows, here))


def by_group(probability: Floats, threshold: float, rows: Rows, label: str, source: str) -> list[JudgeQuality]:
    """A head's quality on labelled rows, one measurement for each family and question source."""
    y, prompts = labels_and_prompts(rows, label)
    found = []
    for family, questions in dict.fromkeys(row.group for row in rows):
        here = np.array([row.group == (family, questions) for row in rows])
        one = quality_of(probability[here], threshold, y[here], prompts[here])
        found.append(replace(one, family=family, questions=questions, source=source))
    return found


def fittable(rows: Rows, label: str) -> bool:
    """Enough rows of the fit part, and both classes under enough prompts for the folds."""
    prompts = [{row.prompt for row in rows if own(row) and row.labels[label] == value} for value in (0, 1)]
    return sum(map(own, rows)) >= MINIMUM_ROWS and min(map(len, prompts)) >= FOLDS


def labels_and_prompts(rows: Rows, label: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """(labels in 0/1, prompts) of the rows (n,)."""
    return np.array([row.labels[label] for row in rows]), np.array([row.prompt for row in rows])


def own(row: Labelled) -> bool:
    """Whether a row is of the kind that the judge is for: in the fit part and not merely supporting."""
    return row.split != "test" and row.weight >= 1


def read_features(reader: FeatureReader, rows: Rows, name: str, console: Console) -> Features:
    """(rows, d) features in the rows' order."""
    with console.bar(f"features{name and f', {name}'}", len(rows)) as advance:
        return np.stack(by_concept(rows, lambda axis, asked, said: reader(axis, asked, said, advance)))


def fit_head(features: Features, rows: Rows, label: str, source: str = "") -> Head:
    """One calibrated head with its measurements. `features` (n, d) beside `rows` (n)."""
    from sklearn.linear_model import LogisticRegression

    fit = np.array([row.split != "test" for row in rows])
    known, tested = list(compress(rows, fit)), list(compress(rows, ~fit))
    y, groups = labels_and_prompts(known, label)
    main, weights = np.array([own(row) for row in known]), np.array([row.weight for row in known])
    read = features[fit]
    mean, spread = read[main].mean(0, dtype=np.float64), read[main].std(0, dtype=np.float64) + 1e-3
    scale = 1 / (spread * math.sqrt(features.shape[1]))
    x = (read - mean) * scale

    held_out = cross_validated(x, y, groups, weights, main)
    platt = LogisticRegression(C=10.0).fit(held_out[:, None], y[main])
    slope, offset = max(float(platt.coef_[0, 0]), 1e-3), float(platt.intercept_[0])
    model = regression(x, y, weights, main)
    weight = (slope * model.coef_[0] * scale).astype(np.float32)
    bias = float(slope * (model.intercept_[0] - model.coef_[0] @ (mean * scale)) + offset)
    probability = 1 / (1 + np.exp(-(slope * held_out + offset)))
    head = Head(weight, bias, threshold_at_rate(probability, y[main]))
    if len({row.labels[label] for row in tested}) == 2:
        probability, judged, source = head.probabilities(features[~fit]), tested, source or "the rows kept for testing"
    else:
        judged, source = list(compress(known, main)), "cross-validation on the rows it was fitted on"
    return replace(head, measured=by_group(probability, head.threshold, judged, label, source))


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


def threshold_at_rate(probability: Floats, y: NDArray[Any]) -> float:
    """The threshold that calls as many rows positive as are labelled positive: half-way between two of them."""
    ordered = np.sort(probability)[::-1]
    positives = int(y.sum())
    return float((ordered[positives - 1] + ordered[min(positives, len(ordered) - 1)]) / 2)


def save_judge(
    path: Path,
    heads: Mapping[tuple[str, str], Head],
    rows: Rows,
    feature_model: str,
    reader: FeatureReader,
    layers: Sequence[int],
) -> Path:
    """Write a judge file: one weight vector a head, all else as JSON in the metadata, the outcome of the probes too."""
    labels = list(dict.fromkeys(label for _, label in heads))
    fitted = [
        {"concept": row.concept, "prompt": row.prompt, "answer": row.answer, **row.labels}
        | ({"split": row.split, "weight": row.weight} if row.split else {})
        for row in rows
        if row.split != "test"
    ]
    about = JudgeAbout(
        feature_model=feature_model,
        fingerprint=reader.fingerprint,
        weights=reader.weights,
        layers=list(layers),
        answer_tokens=ANSWER_TOKENS,
        fit_data=sha256_json(fitted),
        default_label=DEFAULT_LABEL if DEFAULT_LABEL in labels else labels[0],
        heads=[],
    )
    probed = [LocalJudge(path.stem, label, heads, about) for label in labels if probes_for(label)]
    return write_judge(path, heads, replace(about, probes={judge.label: run_probes(judge) for judge in probed}))


def write_judge(path: Path, heads: Mapping[tuple[str, str], Head], about: JudgeAbout) -> Path:
    """Write `heads` and what a judge file says beside them."""
    told = [
        JudgeHead(axis, label, head.bias, head.threshold, measured=list(head.measured))
        for (axis, label), head in heads.items()
    ]
    words = json.dumps(written(replace(about, heads=told)), sort_keys=True)
    with writing(path) as part:
        weights = {f"{axis}.{label}": head.weight for (axis, label), head in heads.items()}
        save_file(weights, part, metadata={"format": FORMAT, "judge": words, **UNSEALED})
        seal_safetensors(part)
    return path
