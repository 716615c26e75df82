"""Labelled answers to check a judge on.

In: the path of a csv, jsonl or parquet file with concept, prompt, answer and labels (judge_fit.read_labelled); the word
`starter`, the aware and unaware answers of the shipped pairs on the paper's concepts; `starter:CONCEPT,CONCEPT`, those
of other shipped concepts; or `beavertails`, its safe and flagged ones. Out: rows
{"concept", "prompt", "answer", "facet", one column per label in 0/1}. In pairs, the aware answer counts as aware and
safe, the other as neither; they are no model's answers, and their family is `written`. Left out: the probes
(robustness.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spin_llm.data import load_pairs, sample
from spin_llm.evaluate.judge_fit import read_labelled
from spin_llm.evaluate.quality import WRITTEN
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
