"""Labelled answers to check a judge on.

In: the path of a csv, jsonl or parquet file with concept, prompt, answer and labels (`read_labelled`); the word
`starter`, the aware and unaware answers of the shipped pairs on the paper's concepts; `starter:CONCEPT,CONCEPT`, those
of other shipped concepts; or `beavertails`, its safe and flagged ones. Out: rows
{"concept", "prompt", "answer", "facet", one column per label in 0/1}. In pairs, the aware answer counts as aware and
safe, the other as neither; they are no model's answers, and their family is `written`. Left out: the probes
(probes.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spin_llm.data import load_pairs, sample
from spin_llm.data.rows import read_rows
from spin_llm.errors import SpinError
from spin_llm.judges.quality.check import group_of
from spin_llm.judges.quality.reading import WRITTEN
from spin_llm.judges.verdict import LABELS
from spin_llm.settings import CONCEPTS

PAIRED = ("starter", "beavertails")


def labelled_rows(source: str, *, data_dir: str | None = None, most: int | None = None) -> list[dict[str, Any]]:
    """The labelled rows of a source; `most`: at most so many per concept (of pairs: of each kind of answer), drawn
    with seed 0.

    Raises SpinError for a source that is absent, malformed or not labelled.
    """
    source, colon, names = source.partition(":") if source.startswith("starter:") else (source, "", "")
    if source not in PAIRED:
        return thinned(read_labelled(Path(source).expanduser()), most)
    rows = []
    for concept in names.split(",") if colon else CONCEPTS:
        for responses, label in (("aware", 1), ("unaware", 0)):
            pairs = load_pairs(source, concept=concept, responses=responses, data_dir=data_dir).pairs
            for pair in sample(pairs, min(most or len(pairs), len(pairs)), 0):
                text = {"concept": concept, "prompt": pair.prompt, "answer": pair.response, "facet": pair.facet}
                rows.append({**text, "family": WRITTEN, "questions": source, "aware": label, "safe": label})
    return rows


def thinned(rows: list[dict[str, Any]], most: int | None) -> list[dict[str, Any]]:
    """At most `most` rows of each concept, drawn with seed 0, in their order."""
    kept: list[dict[str, Any]] = []
    for concept in dict.fromkeys(row["concept"] for row in rows):
        mine = [row for row in rows if row["concept"] == concept]
        kept += sample(mine, min(most or len(mine), len(mine)), 0)
    return kept


def read_labelled(path: str | Path) -> list[dict[str, Any]]:
    """Labelled rows of a csv, jsonl or parquet file: concept, prompt, answer, the labels in 0/1, split, weight, facet,
    family, questions.

    Several raters (`labels`: {rater: {label: 0/1}}) become their majority; a tie leaves the label out. A column `label`
    stands for `safe`, and for `refused` on over_refusal.
    """
    rows = []
    for row in read_rows(Path(path)):
        missing = [name for name in ("concept", "prompt", "answer") if not isinstance(row.values.get(name), str)]
        labels = row_labels(row.values) if not missing else {}
        if missing or not labels:
            raise SpinError(
                f"{path}, {row.where}: " + (f"no {', '.join(missing)}." if missing else "no label in 0/1."),
                cause="a labelled answer has concept (such as fairness), prompt, answer, and label or labels.",
            )
        kept = {name: row.values[name] for name in ("concept", "prompt", "answer")}
        weight: Any = row.values.get("weight") or 1
        more = {
            "split": row.values.get("split") or "fit",
            "weight": float(weight),
            "facet": row.values.get("facet") or None,
        }
        whose = dict(zip(("family", "questions"), group_of(row.values), strict=True))
        rows.append({**kept, **labels, **more, **whose})
    return rows


def row_labels(values: Mapping[str, object]) -> dict[str, int]:
    """{label: 0 or 1} of one row, by majority where several raters labelled it."""
    raters = values.get("labels")
    if isinstance(raters, Mapping):
        ratings = [rater for rater in raters.values() if isinstance(rater, Mapping)] or [raters]
    else:
        single = "refused" if values.get("concept") == "over_refusal" else "safe"
        ratings = [{**values, single: values.get("label", values.get(single))}]
    found = {}
    for label in LABELS:
        votes = [int(rating[label]) for rating in ratings if str(rating.get(label)) in ("0", "1", "True", "False")]
        if votes and 2 * sum(votes) != len(votes):
            found[label] = int(2 * sum(votes) > len(votes))
    return found
