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
from collections.abc import Iterable
from dataclasses import dataclass

from spin_llm.report.words import axis_label
from spin_llm.results.file import Results
from spin_llm.results.measured import BASE, EDITED
from spin_llm.results.rows import Answer, VerdictRow

SHOWN = 10
CHANGES = {"gain": "verdict improved", "loss": "verdict got worse", "same": "same verdict", "unparsed": "no verdict"}
NOT_JUDGED = -1  # beside 1, 0, and None for a verdict that could not be had
COHERENT = {1: " · coherent", 0: " · not coherent", None: " · no verdict on coherence", NOT_JUDGED: ""}


@dataclass(frozen=True)
class Side:
    """One model's answer, the judge's verdict on it, and that on its coherence; `change` is against the base, a key of
    `CHANGES`, "" for the base itself."""

    answer: str
    tokens: int | None
    finished: bool
    verdict: int | None
    probability: float | None
    change: str
    coherent: int | None

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
        said = {1: self.yes, 0: self.no, None: "no verdict", NOT_JUDGED: "not judged"}[side.verdict]
        if side.verdict in (0, 1) and side.probability is not None:
            said += f" · P({self.yes}) = {side.probability:.2f}"
        return said + COHERENT[side.coherent]


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
        if BASE not in answers or EDITED not in answers:
            continue
        lower = axis in results.axes and results.axes[axis].better == "lower"
        sides: dict[str, Side] = {}
        for name in _base_first(answers):
            row, mark = answers[name], judged.get((axis, identifier, name))
            whole = judged.get(("coherence", identifier, name))
            verdict, probability = (mark.verdict, mark.probability) if mark else (NOT_JUDGED, None)
            change = _change(sides[BASE].verdict, verdict, lower) if name != BASE else ""
            coherent = whole.verdict if whole else NOT_JUDGED
            sides[name] = Side(readable(row.answer), row.tokens, row.finished, verdict, probability, change, coherent)
        first = answers[BASE]
        one = Transcript(identifier, axis, readable(first.facet or ""), readable(first.prompt), sides)
        by_axis.setdefault(axis, []).append(one)
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


def script_data(groups: list[AxisTranscripts]) -> dict[str, object]:
    """What the page's script reads, compact: the names of `models`, the words of `axes` and `changes`, and `items`,
    those shown first, one axis after the other. An item's `axis` is a number; its sides are _script_sides."""
    ordered = [(number, one) for number, group in enumerate(groups) for one in group.shown]
    ordered += [(number, one) for number, group in enumerate(groups) for one in group.others]
    models = _base_first(dict.fromkeys(name for _, one in ordered for name in one.sides))
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


def _script_sides(sides: dict[str, Side], models: list[str]) -> list[list[str | float | None] | int]:
    """A side is [answer, tokens, finished, verdict, probability, change, coherent], or 0 for a model that did not
    answer; an answer equal to an earlier one of its prompt is the number of that one."""
    found: list[list[str | float | None] | int] = []
    place_of: dict[str, int] = {}
    for place, model in enumerate(models):
        side = sides.get(model)
        if side is None:
            found.append(0)
            continue
        answer = place_of.setdefault(side.answer, place)
        probability = None if side.probability is None else round(side.probability, 2)
        text = side.answer if answer == place else answer
        found.append([text, side.tokens, int(side.finished), side.verdict, probability, side.change, side.coherent])
    return found


def _base_first(models: Iterable[str]) -> list[str]:
    return sorted(models, key=lambda name: (name != BASE, name != EDITED))


def _verdicts_of_main_judge(rows: Iterable[VerdictRow], judge: str) -> dict[tuple[str, str, str], VerdictRow]:
    """One verdict an answer: the run's judge where it spoke, else the first judge in the file (the refusal rule)."""
    found: dict[tuple[str, str, str], VerdictRow] = {}
    for row in rows:
        key = (row.axis, row.id, row.model)
        if key not in found or (row.judge == judge and found[key].judge != judge):
            found[key] = row
    return found


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


def _change(before: int | None, after: int | None, lower: bool) -> str:
    if not {before, after} <= {0, 1}:
        return "unparsed"
    if before == after:
        return "same"
    return "gain" if (before == 0) != lower else "loss"
