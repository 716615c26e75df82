"""`judge check`: how good a judge is, measured on labelled answers, and the tables of text that show it.

In: sources of labelled answers (labelled.py), or the word `probes`, and judges. Out: what
stats/classification.py makes of a judge's verdicts beside the labels, per facet too; agreement with the labels and
between judges; whether that suffices for a reading (reading.py); tables with remarks to print under them. Verdicts that
could not be had are counted, and bound what they could have been. All of it once for all rows, and once for each model
family and question source among them. Left out: drawing (cli/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from spin_llm.errors import SpinError
from spin_llm.judges.quality.labelled import (
    KINDS,
    PASSING,
    Labelled,
    Outcome,
    by_concept,
    labelled_rows,
    limits_of,
    run_probes,
)
from spin_llm.judges.quality.reading import WRITTEN, answers_words
from spin_llm.judges.verdict import Judge, Texts, Verdict, has_content, head_label
from spin_llm.progress import SILENT, Console
from spin_llm.results.file import written
from spin_llm.results.judged import JudgeQuality
from spin_llm.results.measured import MOST_MISSING
from spin_llm.results.rows import JudgeFile
from spin_llm.stats.classification import (
    LEAST_AUC,
    LEAST_BOUND,
    bounds,
    calibration_error,
    confusion,
    pairwise,
    ranked,
    reliability,
    share_interval,
    shared,
)

NOTHING = "–"
QUALITY = (
    *("judge", "axis", "label", "n", "positives", "AUC", "accuracy", "sensitivity", "specificity"),
    *("Brier", "calibration error", "kappa with labels", "unparsed"),
)
GROUPS = ("judge", "axis", "answers", "n", "prompts, either label", "AUC", "lower bound", "read there")
FACETS = ("judge", "axis", "facet", "found", "missed", "false alarms", "rejected", "accuracy")
BINS = ("judge", "axis", "probability", "n", "mean probability", "labelled positive")
AGREEMENT = ("axis", "judge", "judge", "kappa", "equal verdicts", "n")
PROBED = ("judge", "kind", "what", "right", "")
Rows = Sequence[Labelled]


class Table(NamedTuple):
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def check(
    sources: Sequence[str],
    judges: Mapping[str, Judge],
    *,
    data_dir: str | None = None,
    most: int | None = None,
    console: Console = SILENT,
) -> tuple[Mapping[str, object], list[Table], list[str]]:
    """(measures, tables, remarks) of judges on labelled answers, or on the probes when the one source is `probes`."""
    if list(sources) == ["probes"]:
        outcomes = {name: run_probes(judge) for name, judge in judges.items()}
        lines = [f"{name}: {line}" for name, kinds in outcomes.items() for line in limits_of(kinds)]
        return outcomes, [probe_table(outcomes)], lines
    rows = [row for source in sources for row in labelled_rows(source, data_dir=data_dir, most=most)]
    found = check_judges(judges, rows, console=console)
    return written(found), check_tables(found), remarks(found)


def verdicts_of(judge: Judge, rows: Rows, title: str, console: Console) -> list[Verdict]:
    """The judge's verdicts in the rows' order; none where it does not judge a row's axis."""

    def ask(axis: str, prompts: Texts, answers: Texts) -> list[Verdict]:
        if axis not in judge.axes:
            return [Verdict(None, None)] * len(prompts)
        with console.bar(f"{title}, {axis}", len(prompts)) as advance:
            return judge(axis, prompts, answers, advance)

    return by_concept(rows, ask)


def check_judges(judges: Mapping[str, Judge], rows: Rows, *, console: Console = SILENT) -> JudgeFile:
    """Every judge's quality by axis, kappa of every two, on labelled rows. SpinError when no row has a label of any."""
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


def check_tables(found: JudgeFile) -> list[Table]:
    """Quality, confusion by facet, reliability, agreement; empty tables are left out."""
    measured = [(name, axis, q) for name, axes in found.judges.items() for axis, q in axes.items()]
    facets = [
        (name, axis, facet, *map(str, vars(counts).values()), number(counts.accuracy))
        for name, axis, q in measured
        for facet, counts in q.facets.items()
    ]
    bins = [
        (name, axis, f"{at['from']:.1f} to {at['to']:.1f}", str(at["n"]), *numbers)
        for name, axis, q in measured
        for at in q.reliability or ()
        for numbers in [map(number, (at["probability"], at["labelled"]))]
    ]
    agreed = [
        (axis, *(pair.between or ()), spread(pair.kappa, pair.ci95), number(pair.agree), str(pair.n))
        for axis, pairs in found.agreement.items()
        for pair in pairs
    ]
    groups = [group_row(name, axis, part) for name, axis, q in measured for part in q.groups]
    tables = [
        Table("Quality on labelled answers, [95% interval]", QUALITY, [quality_row(*one) for one in measured]),
        Table("Where it was measured, and whether it is read there", GROUPS, groups),
        Table("Confusion by facet", FACETS, facets),
        Table("Reliability", BINS, bins),
        Table("Agreement between judges", AGREEMENT, agreed),
    ]
    return [table for table in tables if table.rows]


def quality_row(name: str, axis: str, quality: JudgeQuality) -> tuple[str, ...]:
    parts = ((quality.sensitivity, quality.sensitivity_ci95), (quality.specificity, quality.specificity_ci95))
    shares = [f"{counts[0]}/{counts[1]} {spread(None, interval)}".strip() for counts, interval in parts if counts]
    positives = quality.sensitivity[1] if quality.sensitivity else 0
    kappa = quality.labels
    return (
        *(name, axis, quality.label or "", str(quality.n), str(positives)),
        *(spread(quality.auc, quality.auc_ci95), number(quality.accuracy), *shares),
        *(number(quality.brier), number(quality.calibration_error)),
        *(spread(kappa.kappa, kappa.ci95) if kappa else NOTHING, str(quality.unparsed)),
    )


def group_row(name: str, axis: str, part: JudgeQuality) -> tuple[str, ...]:
    """One model family and question source of the labelled answers."""
    prompts = " and ".join(map(str, part.prompts or ()))
    read = "no model's" if part.family == WRITTEN else "yes" if part.measurable else "no"
    auc = (spread(part.auc, part.auc_ci95), number(part.auc_bound))
    return (name, axis, answers_words(part), str(part.n), prompts, *auc, read)


def remarks(found: JudgeFile) -> list[str]:
    """What the tables alone would let a reader miss: axes that are not measurable, and unparsed verdicts."""
    lines = []
    for name, axes in found.judges.items():
        for axis, quality in axes.items():
            if not quality.measurable:
                lines.append(
                    f"{axis} is not measurable with {name}: the AUC is below {LEAST_AUC}, or may be below "
                    f"{LEAST_BOUND} with so few prompts of the rarer label, or there is no verdict on more than "
                    f"{MOST_MISSING:.0%} of the answers."
                )
            if quality.unparsed and quality.bounds:
                low, high = quality.bounds["accuracy"]
                lines.append(
                    f"{name} gave no verdict on {quality.unparsed} labelled answers on {axis}; no number above "
                    f"includes them: with all of them wrong or all right the accuracy is {low:.2f} to {high:.2f}."
                )
    return lines


def probe_table(found: Mapping[str, Outcome]) -> Table:
    """Outcome of the probes by judge; kinds below PASSING are marked."""
    rows = [
        (name, kind, KINDS[kind], f"{right}/{of}", "" if right >= PASSING * of else "fails")
        for name, kinds in found.items()
        for kind, (right, of) in kinds.items()
    ]
    return Table("Odd answers, judged rightly", PROBED, rows)


def number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def spread(value: float | None, interval: Sequence[float] | None) -> str:
    """`0.92 [0.83, 1.00]`, or as much of it as there is."""
    ends = f"[{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
    return " ".join(part for part in (number(value) if value is not None or not ends else "", ends) if part)
