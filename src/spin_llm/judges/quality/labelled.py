"""Labelled answers to check a judge on.

In: the path of a csv, jsonl or parquet file with concept, prompt, answer and labels (`read_labelled`); the word
`starter`, the aware and unaware answers of the shipped pairs on the paper's concepts; `starter:CONCEPT,CONCEPT`, those
of other shipped concepts; or `beavertails`, its safe and flagged ones. Out: `Labelled` rows. In pairs, the aware answer
counts as aware and safe, the other as neither; they are no model's answers, and their family is `written`. Left out:
the probes (probes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from spin_llm.data import load_pairs, sample
from spin_llm.data.rows import read_rows
from spin_llm.errors import SpinError
from spin_llm.judges.quality.reading import WRITTEN
from spin_llm.judges.verdict import LABELS, Texts
from spin_llm.settings import CONCEPTS

PAIRED = ("starter", "beavertails")
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Case:
    """An answer to judge."""

    concept: str
    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Labelled(Case):
    """One labelled answer: `labels` {label: 0 or 1}; `split` test keeps it out of a fit; a `weight` below 1 marks one
    of another source, which supports a fit; `family` of the model that answered and source of its `questions`, "" where
    that is not said."""

    labels: Mapping[str, int]
    split: str | None = None
    weight: float = 1.0
    facet: str | None = None
    family: str = ""
    questions: str = ""

    @property
    def group(self) -> tuple[str, str]:
        return self.family, self.questions


def by_concept(rows: Sequence[Case], ask: Callable[[str, Texts, Texts], Iterable[Found]]) -> list[Found]:
    """What `ask(concept, prompts, answers)` gives for each row, in the rows' order."""
    found: dict[int, Found] = {}
    for concept in dict.fromkeys(row.concept for row in rows):
        mine = {place: row for place, row in enumerate(rows) if row.concept == concept}
        prompts, answers = [row.prompt for row in mine.values()], [row.answer for row in mine.values()]
        found.update(zip(mine, ask(concept, prompts, answers), strict=True))
    return [found[place] for place in range(len(rows))]


def labelled_rows(source: str, *, data_dir: str | None = None, most: int | None = None) -> list[Labelled]:
    """The labelled rows of a source; `most`: at most so many per concept (of pairs: of each kind of answer), drawn
    with seed 0.

    Raises SpinError for a source that is absent, malformed or not labelled.
    """
    source, colon, names = source.partition(":") if source.startswith("starter:") else (source, "", "")
    if source not in PAIRED:
        read = read_labelled(Path(source).expanduser())
        parts = [[row for row in read if row.concept == concept] for concept in dict.fromkeys(r.concept for r in read)]
        return [row for part in parts for row in sample(part, min(most or len(part), len(part)), 0)]
    rows = []
    for concept in names.split(",") if colon else CONCEPTS:
        for responses, label in (("aware", 1), ("unaware", 0)):
            pairs = load_pairs(source, concept=concept, responses=responses, data_dir=data_dir).pairs
            for pair in sample(pairs, min(most or len(pairs), len(pairs)), 0):
                rows.append(
                    Labelled(
                        concept=concept,
                        prompt=pair.prompt,
                        answer=pair.response,
                        labels={"aware": label, "safe": label},
                        facet=pair.facet,
                        family=WRITTEN,
                        questions=source,
                    )
                )
    return rows


def read_labelled(path: str | Path) -> list[Labelled]:
    """Labelled rows of a csv, jsonl or parquet file: concept, prompt, answer, the labels in 0/1, split, weight, facet,
    family, questions.

    Several raters (`labels`: {rater: {label: 0/1}}) become their majority; a tie leaves the label out. A column `label`
    stands for `safe`, and for `refused` on over_refusal.
    """
    rows = []
    for row in read_rows(Path(path)):
        values = row.values
        missing = [name for name in ("concept", "prompt", "answer") if not isinstance(values.get(name), str)]
        labels = row_labels(values) if not missing else {}
        if missing or not labels:
            raise SpinError(
                f"{path}, {row.where}: " + (f"no {', '.join(missing)}." if missing else "no label in 0/1."),
                cause="a labelled answer has concept (such as fairness), prompt, answer, and label or labels.",
            )
        texts = {name: str(values.get(name) or "") for name in ("concept", "prompt", "answer", "family", "questions")}
        split, facet = str(values.get("split") or "fit"), str(values.get("facet") or "") or None
        weight = float(cast(float, values.get("weight") or 1))
        rows.append(Labelled(**texts, labels=labels, split=split, weight=weight, facet=facet))
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
