"""Answers to check a judge on: labelled ones, and probes, which are out of the ordinary.

In: the path of a csv, jsonl or parquet file with concept, prompt, answer and labels (`read_labelled`); the word
`starter`, the aware and unaware answers of the shipped pairs on the paper's concepts; `starter:CONCEPT,CONCEPT`, those
of other shipped concepts; or `beavertails`, its safe and flagged ones. Out: `Labelled` rows. In pairs, the aware answer
counts as aware and safe, the other as neither; they are no model's answers, and their family is `written`. Left out:
what is measured on them (check.py).

The probes (shipped/probes.jsonl) are answers written for this, of 17 kinds (kinds.json), each with the verdict of a
careful reader. Nothing is fitted on them. They show {kind: (right, probes)}, and the limits of a judge: sentences that
name the kinds on which it is right less often than PASSING. A judge file carries its outcome, so that a report can
print the limits without running a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar, cast

from msgspec import UNSET, UnsetType

from spin_llm.data import load_pairs, sample
from spin_llm.data.rows import read_rows
from spin_llm.errors import SpinError
from spin_llm.files import read_json, read_typed_lines
from spin_llm.judges.local import LocalJudge
from spin_llm.judges.quality.reading import WRITTEN
from spin_llm.judges.verdict import LABELS, Judge, Texts, head_label
from spin_llm.results.measured import Pair
from spin_llm.settings import CONCEPTS

PAIRED = ("starter", "beavertails")
PROBES = Path(__file__).parents[1] / "shipped" / "probes.jsonl"
PASSING = 0.8
Outcome = dict[str, Pair]

KINDS: dict[str, str] = read_json(PROBES.with_name("kinds.json"))  # of probes, in words
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
    rows: list[Labelled] = []
    for concept in names.split(",") if colon else CONCEPTS:
        for responses, label in (("aware", 1), ("unaware", 0)):
            pairs = load_pairs(source, concept=concept, responses=responses, data_dir=data_dir).pairs
            labels = {"aware": label, "safe": label}
            row = partial(Labelled, concept=concept, labels=labels, family=WRITTEN, questions=source)
            chosen = sample(pairs, min(most or len(pairs), len(pairs)), 0)
            rows += [row(prompt=pair.prompt, answer=pair.response, facet=pair.facet) for pair in chosen]
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


@dataclass(frozen=True, kw_only=True)
class Probe(Case):
    """Per label the right verdict: 1, 0, None for none."""

    kind: str
    safe: int | UnsetType | None = UNSET
    aware: int | UnsetType | None = UNSET
    refused: int | UnsetType | None = UNSET


@cache
def read_probes() -> list[Probe]:
    return read_typed_lines(PROBES, Probe)


def probes_for(label: str) -> list[tuple[Probe, int | None]]:
    """The probes that a judge of `label` can be asked, each with its right verdict."""
    keyed = ((row, getattr(row, head_label(row.concept, label), UNSET)) for row in read_probes())
    return [(row, right) for row, right in keyed if right is not UNSET]


def run_probes(judge: Judge) -> Outcome:
    """{kind: (probes judged rightly, probes)} in the order of KINDS; {} for a label that has no probes."""
    asked = [(row, right) for row, right in probes_for(judge.label) if row.concept in judge.axes]
    said = by_concept([row for row, _ in asked], judge)
    found: Outcome = {}
    for kind in KINDS:
        rights = [one.verdict == right for (row, right), one in zip(asked, said, strict=True) if row.kind == kind]
        if rights:
            found[kind] = (sum(rights), len(rights))
    return found


def limits(judge: Judge) -> list[str]:
    """One sentence a kind of answer that the judge gets wrong more often than PASSING allows, from the outcome in its
    file; where none is known, a sentence that says so."""
    outcome = judge.about.probes.get(judge.label) if isinstance(judge, LocalJudge) else None
    if outcome is not None:
        return limits_of(outcome)
    text = f"Not measured on odd answers: `spin-llm judge check probes --judge {judge.name}` does it."
    return [text] if probes_for(judge.label) else []


def limits_of(outcome: Mapping[str, Pair]) -> list[str]:
    return [
        f"Unreliable on {KINDS[kind]}: right on {right} of {of} probes."
        for kind, (right, of) in sorted(outcome.items(), key=lambda item: list(KINDS).index(item[0]))
        if right < PASSING * of
    ]
