"""Base and edited answers to the same prompt, and which ten of a concept are shown first.

In: rows of generations.jsonl and verdicts.jsonl. Out: `Transcript`s per axis, the chosen ones apart from the others.
The choice is a rule, so that nobody picks: up to half of the places for verdicts that got better, up to half for those
that got worse, then unchanged ones, then whatever is left; inside each group by the SHA-256 of the id, which is as
good as random and always the same. Left out: answers of controls, which stay in generations.jsonl.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from spin_llm.report.wording import axis_label, is_finite

SHOWN = 10
CHANGES = {"gain": "verdict improved", "loss": "verdict got worse", "same": "same verdict", "unparsed": "no verdict"}


@dataclass(frozen=True)
class Transcript:
    """One prompt with both answers, as text ready to be shown (and escaped). `change` is a key of `CHANGES`."""

    id: str
    axis: str
    change: str
    title: str
    mark: str
    prompt: str
    base_verdict: str
    base_answer: str
    base_length: str
    edited_verdict: str
    edited_answer: str
    edited_length: str


@dataclass(frozen=True)
class AxisTranscripts:
    axis: str
    label: str
    shown: list[Transcript]
    others: list[Transcript]

    def count(self, change: str) -> int:
        return sum(transcript.change == change for transcript in self.shown + self.others)


def pair_transcripts(
    generations: Iterable[dict[str, Any]], verdicts: Iterable[dict[str, Any]], results: dict[str, Any]
) -> list[AxisTranscripts]:
    """Pair base with edited answers by axis and id, with the verdicts of the run's judge; choose what is shown."""
    answers = {(row["axis"], row["id"], row["model"]): row for row in generations}
    judged = _verdicts_of_main_judge(verdicts, results["judge"]["name"])
    by_axis: dict[str, list[Transcript]] = {}
    for (axis, identifier, model), base in answers.items():
        edited = answers.get((axis, identifier, "edited"))
        if model == "base" and edited is not None:
            marks = [judged.get((axis, identifier, name)) for name in ("base", "edited")]
            by_axis.setdefault(axis, []).append(_transcript(base, edited, marks, results))
    return [AxisTranscripts(axis, axis_label(axis), *choose(found)) for axis, found in by_axis.items()]


def choose(transcripts: list[Transcript], places: int = SHOWN) -> tuple[list[Transcript], list[Transcript]]:
    """Split into (shown, others) by the rule of the module's docstring."""
    order = sorted(transcripts, key=lambda transcript: hashlib.sha256(transcript.id.encode()).hexdigest())
    gains = [transcript for transcript in order if transcript.change == "gain"]
    losses = [transcript for transcript in order if transcript.change == "loss"]
    rest = [transcript for transcript in order if transcript.change not in ("gain", "loss")]
    half = places // 2
    shown = (gains[:half] + losses[:half] + rest + gains[half:] + losses[half:])[:places]
    chosen = {transcript.id for transcript in shown}
    return shown, [transcript for transcript in transcripts if transcript.id not in chosen]


def _verdicts_of_main_judge(rows: Iterable[dict[str, Any]], judge: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """One verdict an answer: the run's judge where it spoke, else the first judge in the file (the refusal rule)."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["axis"], row["id"], row["model"])
        if key not in found or (row["judge"] == judge and found[key]["judge"] != judge):
            found[key] = row
    return found


def _transcript(
    base: dict[str, Any], edited: dict[str, Any], marks: list[dict[str, Any] | None], results: dict[str, Any]
) -> Transcript:
    axis = base["axis"]
    yes, no = verdict_words(axis, results["judge"].get("label", ""))
    change = _change(marks, results["axes"].get(axis, {}).get("better", "higher"))
    facet = base.get("facet")
    return Transcript(
        id=base["id"],
        axis=axis,
        change=change,
        title=base["id"] + (f" · {facet}" if facet else ""),
        mark=CHANGES[change],
        prompt=base["prompt"],
        base_verdict=_verdict_text(marks[0], yes, no),
        base_answer=base["answer"],
        base_length=_length(base),
        edited_verdict=_verdict_text(marks[1], yes, no),
        edited_answer=edited["answer"],
        edited_length=_length(edited),
    )


def verdict_words(axis: str, label: str) -> tuple[str, str]:
    """The words for verdict 1 and 0: refused or answered; otherwise the judge's label when it is one of the two."""
    if axis == "over_refusal":
        return "refused", "answered"
    word = label if label in ("aware", "safe") else "aware"
    return word, f"not {word}"


def _change(marks: list[dict[str, Any] | None], better: str) -> str:
    base, edited = (mark["verdict"] if mark else None for mark in marks)
    if base is None or edited is None:
        return "unparsed"
    if base == edited:
        return "same"
    return "gain" if (edited > base) == (better == "higher") else "loss"


def _verdict_text(mark: dict[str, Any] | None, yes: str, no: str) -> str:
    if mark is None:
        return "not judged"
    if mark["verdict"] is None:
        return "unparsed"
    probability = f" · P({yes}) = {mark['probability']:.2f}" if is_finite(mark["probability"]) else ""
    return (yes if mark["verdict"] == 1 else no) + probability


def _length(row: dict[str, Any]) -> str:
    return f"{row['tokens']} tokens" + ("" if row["finished"] else ", cut")
