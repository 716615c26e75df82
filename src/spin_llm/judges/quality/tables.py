"""`judge check`: what the judges' measures are, and the tables of text that show them.

In: sources of labelled answers, or the word `probes`, and judges. Out: the measures (check.py, probes.py),
and tables (a title, column names, rows of strings) with remarks to print under them. Left out: drawing (cli/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from spin_llm.judges.quality.check import check_judges
from spin_llm.judges.quality.labelled import labelled_rows
from spin_llm.judges.quality.probes import KINDS, PASSING, Outcome, limits_of, run_probes
from spin_llm.judges.quality.reading import WRITTEN, answers_words
from spin_llm.judges.verdict import Judge
from spin_llm.progress import SILENT, Console
from spin_llm.results.file import written
from spin_llm.results.judged import JudgeQuality
from spin_llm.results.measured import MOST_MISSING
from spin_llm.results.rows import JudgeFile
from spin_llm.stats.classification import LEAST_AUC, LEAST_BOUND

NOTHING = "–"


class Table(NamedTuple):
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


QUALITY = (
    *("judge", "axis", "label", "n", "positives", "AUC", "accuracy", "sensitivity", "specificity"),
    *("Brier", "calibration error", "kappa with labels", "unparsed"),
)
GROUPS = ("judge", "axis", "answers", "n", "prompts, either label", "AUC", "lower bound", "read there")
FACETS = ("judge", "axis", "facet", "found", "missed", "false alarms", "rejected", "accuracy")
BINS = ("judge", "axis", "probability", "n", "mean probability", "labelled positive")
AGREEMENT = ("axis", "judge", "judge", "kappa", "equal verdicts", "n")


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
        return outcomes, probe_tables(outcomes), probe_remarks(outcomes)
    rows = [row for source in sources for row in labelled_rows(source, data_dir=data_dir, most=most)]
    found = check_judges(judges, rows, console=console)
    return written(found), check_tables(found), remarks(found)


def check_tables(found: JudgeFile) -> list[Table]:
    """Quality, confusion by facet, reliability, agreement; empty tables are left out."""
    measured = [(name, axis, q) for name, axes in found.judges.items() for axis, q in axes.items()]
    parts = [(name, axis, part) for name, axis, q in measured for part in q.groups]
    tables = [
        Table("Quality on labelled answers, [95% interval]", QUALITY, [quality_row(*one) for one in measured]),
        Table("Where it was measured, and whether it is read there", GROUPS, [group_row(*part) for part in parts]),
        Table(
            "Confusion by facet",
            FACETS,
            [
                (name, axis, facet, *map(str, vars(counts).values()), number(counts.accuracy))
                for name, axis, q in measured
                for facet, counts in q.facets.items()
            ],
        ),
        Table(
            "Reliability",
            BINS,
            [
                (name, axis, f"{at['from']:.1f} to {at['to']:.1f}", str(at["n"]), *numbers)
                for name, axis, q in measured
                for at in q.reliability or ()
                for numbers in [map(number, (at["probability"], at["labelled"]))]
            ],
        ),
        Table(
            "Agreement between judges",
            AGREEMENT,
            [
                (axis, *(pair.between or ()), spread(pair.kappa, pair.ci95), number(pair.agree), str(pair.n))
                for axis, pairs in found.agreement.items()
                for pair in pairs
            ],
        ),
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
    bound = (number(part.auc_bound), read)
    return (name, axis, answers_words(part), str(part.n), prompts, spread(part.auc, part.auc_ci95), *bound)


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


def probe_tables(found: Mapping[str, Outcome]) -> list[Table]:
    """Outcome of the probes: {judge: {kind: [right, of]}}; kinds below PASSING are marked."""
    rows = [
        (name, kind, KINDS[kind], f"{right}/{of}", "" if right >= PASSING * of else "fails")
        for name, kinds in found.items()
        for kind, (right, of) in kinds.items()
    ]
    return [Table("Odd answers, judged rightly", ("judge", "kind", "what", "right", ""), rows)]


def probe_remarks(found: Mapping[str, Outcome]) -> list[str]:
    return [f"{name}: {line}" for name, kinds in found.items() for line in limits_of(kinds)]


def number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def spread(value: float | None, interval: Sequence[float] | None) -> str:
    """`0.92 [0.83, 1.00]`, or as much of it as there is."""
    ends = f"[{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
    return " ".join(part for part in (number(value) if value is not None or not ends else "", ends) if part)
