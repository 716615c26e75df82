"""How good a judge is, measured on labelled answers.

In: judges, and labelled rows (labelled.py says what a row is). Out: what stats/classification.py makes of its verdicts
beside the labels, per facet too; agreement with the labels and between judges; and whether that suffices for a reading
(reading.py). Verdicts that could not be had are counted, and bound what they could have been. All of it once for all
rows, and once for each model family and question source among them.
Left out: robustness to odd answers (probes.py); how the numbers look on a terminal (tables.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from spin_llm.errors import SpinError
from spin_llm.judges.quality.labelled import Labelled, by_concept
from spin_llm.judges.verdict import Judge, Texts, Verdict, has_content, head_label
from spin_llm.progress import SILENT, Console
from spin_llm.results.judged import JudgeQuality
from spin_llm.results.measured import MOST_MISSING
from spin_llm.results.rows import JudgeFile
from spin_llm.stats.classification import (
    bounds,
    calibration_error,
    confusion,
    pairwise,
    ranked,
    reliability,
    share_interval,
    shared,
)

Rows = Sequence[Labelled]


def verdicts_of(judge: Judge, rows: Rows, title: str, console: Console) -> list[Verdict]:
    """The judge's verdicts in the rows' order; none where it does not judge a row's axis."""

    def ask(axis: str, prompts: Texts, answers: Texts) -> list[Verdict]:
        if axis not in judge.axes:
            return [Verdict(None, None)] * len(prompts)
        with console.bar(f"{title}, {axis}", len(prompts)) as advance:
            return judge(axis, prompts, answers, advance)

    return by_concept(rows, ask)


def check_judges(judges: Mapping[str, Judge], rows: Rows, *, console: Console = SILENT) -> JudgeFile:
    """The quality of every judge by axis, and kappa of every two of them, on labelled rows. SpinError when no row has a
    label that any of the judges gives."""
    verdicts = {name: verdicts_of(judge, rows, name, console) for name, judge in judges.items()}
    measured = {name: measure(judge.label, rows, verdicts[name]) for name, judge in judges.items()}
    if not any(measured.values()):
        labels = ", ".join(dict.fromkeys(judge.label for judge in judges.values()))
        raise SpinError(f"No row is labelled for {labels}.", change=f"give rows with a column {labels} or label.")
    agreed = {}
    for axis in dict.fromkeys(row.concept for row in rows):
        mine = [place for place, row in enumerate(rows) if row.concept == axis]
        said = {name: [found[place].verdict for place in mine] for name, found in verdicts.items()}
        agreed[axis] = pairwise(said, [rows[place].prompt for place in mine])
    return JudgeFile(measured, agreed)


def measure(label: str, rows: Rows, verdicts: Sequence[Verdict]) -> dict[str, JudgeQuality]:
    """{axis: quality} of one judge's verdicts on the rows that are labelled with what it judges."""
    found: dict[str, JudgeQuality] = {}
    for axis in dict.fromkeys(row.concept for row in rows):
        key = head_label(axis, label)
        mine = [(row, v) for row, v in zip(rows, verdicts, strict=True) if row.concept == axis and key in row.labels]
        if any(verdict.verdict is not None for _, verdict in mine):
            groups = dict.fromkeys(row.group for row, _ in mine)
            parts = [(group, [one for one in mine if one[0].group == group]) for group in groups]
            among = [
                replace(measure_axis(key, part), family=family, questions=questions)
                for (family, questions), part in parts
                if any(verdict.verdict is not None for _, verdict in part)
            ]
            found[axis] = replace(measure_axis(key, mine), label=key, groups=among)
    return found


def measure_axis(label: str, judged: Sequence[tuple[Labelled, Verdict]]) -> JudgeQuality:
    """The quality of one axis. A judge without probabilities has no calibration, and the AUC of its verdicts; one that
    has no verdict on more than MOST_MISSING of the labelled answers is not measurable by the others."""
    parsed = [(row, verdict) for row, verdict in judged if verdict.verdict is not None]
    lost = np.array([row.labels[label] for row, verdict in judged if verdict.verdict is None], dtype=int)
    y, groups = np.array([row.labels[label] for row, _ in parsed]), np.array([row.prompt for row, _ in parsed])
    said = np.array([verdict.verdict for _, verdict in parsed])
    known = [verdict.probability for _, verdict in parsed if verdict.probability is not None]
    facets = np.array([row.facet or "" for row, _ in parsed])
    silent = sum(verdict.verdict is None and has_content(row.answer) for row, verdict in judged)
    sure = len(known) == len(parsed)
    score = np.array(known) if sure else said.astype(np.float64)
    table = reliability(score, y) if sure else []
    worth = ranked(score, said, y, groups)
    return replace(
        worth,
        measurable=worth.measurable and silent <= MOST_MISSING * len(judged),
        sensitivity_ci95=share_interval(worth.sensitivity or (0, 0)),
        specificity_ci95=share_interval(worth.specificity or (0, 0)),
        brier=float(((score - y) ** 2).mean()) if sure else None,
        calibration_error=calibration_error(table) if sure else None,
        reliability=table,
        confusion=confusion(said, y),
        facets={facet: confusion(said[facets == facet], y[facets == facet]) for facet in sorted({*facets} - {""})},
        labels=shared(said.tolist(), y.tolist(), groups.tolist()),
        unparsed=len(lost),
        bounds=bounds(said, y, lost),
    )
