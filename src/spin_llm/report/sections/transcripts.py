"""Answers of all models to the same prompt, with their verdicts, in the order in which they are shown.

In: rows of generations.jsonl and verdicts.jsonl. Out: `Transcript`s per axis, those chosen by rule first; the compact
data from which the page's script builds cards. The choice is a rule, so that nobody picks: up to half of the places for
verdicts that got better, up to half for those that got worse, then unchanged ones, then whatever is left; inside each
group by the SHA-256 of the id, which is as good as random and always the same.
Left out: verdicts of other judges than the run's (they stay in verdicts.jsonl), and the marking of differences, which
the script does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spin_llm.report.words import axis_label
from spin_llm.results.file import Results
from spin_llm.results.measured import BASE, EDITED
from spin_llm.results.rows import Answer, VerdictRow

SHOWN = 10
CHANGES = {"gain": "verdict improved", "loss": "verdict got worse", "same": "same verdict", "unparsed": "no verdict"}
COHERENT = {1: " · coherent", 0: " · not coherent", None: " · no verdict on coherence", -1: ""}


@dataclass(frozen=True)
class Side:
    """One model's answer. `verdict` is 1 or 0, None when it could not be had; `judged` is False without any."""

    answer: str
    tokens: int | None
    finished: bool
    judged: bool
    verdict: int | None
    probability: float | None
    change: str  # against the base, a key of `CHANGES`; "" for the base itself
    coherent: int | None = -1  # whether the answer was judged coherent; None: no verdict, -1: not judged

    @property
    def length(self) -> str:
        counted = "tokens not counted" if self.tokens is None else f"{self.tokens} tokens"
        return counted + ("" if self.finished else ", cut")


@dataclass(frozen=True)
class Transcript:
    """One prompt with the answer of every model, `base` first."""

    id: str
    axis: str
    facet: str
    prompt: str
    sides: dict[str, Side]

    @property
    def change(self) -> str:
        return self.sides[EDITED].change


@dataclass(frozen=True)
class AxisTranscripts:
    """`yes` and `no` are the words for verdict 1 and 0."""

    axis: str
    label: str
    yes: str
    no: str
    shown: list[Transcript]
    others: list[Transcript]

    def count(self, change: str) -> int:
        return sum(transcript.change == change for transcript in self.shown + self.others)

    def verdict_text(self, side: Side) -> str:
        also = COHERENT[side.coherent]
        if not side.judged:
            return "not judged" + also
        if side.verdict is None:
            return "no verdict" + also
        probability = f" · P({self.yes}) = {side.probability:.2f}" if side.probability is not None else ""
        return (self.yes if side.verdict == 1 else self.no) + probability + also


def pair_transcripts(
    generations: Iterable[Answer], verdicts: Iterable[VerdictRow], results: Results
) -> list[AxisTranscripts]:
    """Put the answers to a prompt together, with the verdicts of the run's judge; prompts that base and edited both
    answered, those chosen by rule apart."""
    judged = _verdicts_of_main_judge(verdicts, results.judge.name)
    prompts: dict[tuple[str, str], dict[str, Answer]] = {}
    for row in generations:
        prompts.setdefault((row.axis, row.id), {})[row.model] = row
    by_axis: dict[str, list[Transcript]] = {}
    for (axis, identifier), answers in prompts.items():
        if BASE in answers and EDITED in answers:
            lower = axis in results.axes and results.axes[axis].better == "lower"
            marks = {name: judged.get((axis, identifier, name)) for name in answers}
            whole = {name: judged.get(("coherence", identifier, name)) for name in answers}
            coherent = {name: mark.verdict if mark else -1 for name, mark in whole.items()}
            by_axis.setdefault(axis, []).append(_transcript(answers, marks, coherent, lower))
    label = results.judge.label or ""
    return [
        AxisTranscripts(axis, axis_label(axis), *verdict_words(axis, label), *choose(found))
        for axis, found in by_axis.items()
    ]


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


def script_data(groups: list[AxisTranscripts]) -> dict[str, Any]:
    """What the page's script reads, compact: names once, and an answer equal to an earlier one of its prompt as the
    number of that one.

    `items` are {id, axis (number), facet, prompt, sides}; a side is [answer, tokens, finished, verdict, probability,
    change, coherent], or 0 for a model that did not answer; a verdict is 1, 0, null (none) or -1 (not judged).
    Those shown first come first, one axis after the other.
    """
    models = list(dict.fromkeys(name for group in groups for one in group.shown + group.others for name in one.sides))
    models.sort(key=lambda name: (name != BASE, name != EDITED))
    numbered = list(enumerate(groups))
    ordered = [(number, one) for number, group in numbered for one in group.shown]
    ordered += [(number, one) for number, group in numbered for one in group.others]
    return {
        "models": models,
        "axes": [{"axis": group.axis, "label": group.label, "yes": group.yes, "no": group.no} for group in groups],
        "changes": CHANGES,
        "items": [
            {
                "id": one.id,
                "axis": number,
                "facet": one.facet,
                "prompt": one.prompt,
                "sides": _script_sides(one.sides, models),
            }
            for number, one in ordered
        ],
    }


def _script_sides(sides: dict[str, Side], models: list[str]) -> list[Any]:
    found: list[Any] = []
    place_of: dict[str, int] = {}
    for place, model in enumerate(models):
        side = sides.get(model)
        if side is None:
            found.append(0)
            continue
        answer = place_of.setdefault(side.answer, place)
        verdict = side.verdict if side.judged else -1
        probability = None if side.probability is None else round(side.probability, 2)
        text = side.answer if answer == place else answer
        found.append([text, side.tokens, int(side.finished), verdict, probability, side.change, side.coherent])
    return found


def _verdicts_of_main_judge(rows: Iterable[VerdictRow], judge: str) -> dict[tuple[str, str, str], VerdictRow]:
    """One verdict an answer: the run's judge where it spoke, else the first judge in the file (the refusal rule)."""
    found: dict[tuple[str, str, str], VerdictRow] = {}
    for row in rows:
        key = (row.axis, row.id, row.model)
        if key not in found or (row.judge == judge and found[key].judge != judge):
            found[key] = row
    return found


def _transcript(
    answers: Mapping[str, Answer],
    marks: Mapping[str, VerdictRow | None],
    coherent: Mapping[str, int | None],
    lower: bool,
) -> Transcript:
    first = answers[BASE]
    return Transcript(
        id=first.id,
        axis=first.axis,
        facet=readable(first.facet or ""),
        prompt=readable(first.prompt),
        sides={
            name: _side(
                answers[name],
                marks[name],
                "" if name == BASE else _change(marks[BASE], marks[name], lower),
                coherent[name],
            )
            for name in sorted(answers, key=lambda name: (name != BASE, name != EDITED))
        },
    )


def _side(row: Answer, mark: VerdictRow | None, change: str, coherent: int | None) -> Side:
    verdict, probability = (mark.verdict, mark.probability) if mark else (None, None)
    judged = mark is not None
    return Side(readable(row.answer), row.tokens, row.finished, judged, verdict, probability, change, coherent)


def readable(text: str) -> str:
    """Text that can be written as UTF-8: halves of surrogate pairs, which JSON may hold, become U+FFFD."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def verdict_words(axis: str, label: str) -> tuple[str, str]:
    """The words for verdict 1 and 0: refused or answered; otherwise the judge's label when it is one of the two."""
    if axis == "over_refusal":
        return "refused", "answered"
    if axis == "coherence":
        return "coherent", "not coherent"
    word = label if label in ("aware", "safe") else "aware"
    return word, f"not {word}"


def _change(base: VerdictRow | None, other: VerdictRow | None, lower: bool) -> str:
    before, after = (mark.verdict if mark else None for mark in (base, other))
    if before is None or after is None:
        return "unparsed"
    if before == after:
        return "same"
    return "gain" if (after > before) != lower else "loss"
