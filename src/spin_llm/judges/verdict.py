"""What a judge is, what it says, and verdicts kept while a judge works.

In: a judge, a file. Out: the protocol of judges, their verdict, the names of heads and labels; a judge that is a
model's words, asked in portions, whose verdicts are appended to the file by the hash of everything that decides them:
a judging that was killed goes on, and a verdict is had once. Left out: every judge.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from unicodedata import category

from spin_llm.errors import SpinError
from spin_llm.files import read_progress, sha256_json, sync_append
from spin_llm.progress import SILENT, Advance, Console, unseen
from spin_llm.results.judged import JudgeQuality
from spin_llm.results.rows import AnyAnswer, VerdictDone

DEFAULT_LABEL = "aware"
LABELS = ("safe", "aware", "refused", "coherent")
COHERENCE = "coherence"  # an axis of its own, of the label `coherent` on the questions on concepts
EMPTY, NOT_PARSED = "empty answer", "verdict not parsed"
PORTION = 128  # prompts between two writes of the verdicts' file
Texts = Sequence[str]
Qualities = Mapping[str, Sequence[JudgeQuality]]  # by axis


@dataclass(frozen=True)
class Verdict:
    """`probability` of the positive label; `verdict` 1 = aware or safe (concepts), refused (over_refusal).

    Both are None when there was nothing to judge (an empty answer) or the judge's words are not a verdict; some judges
    give a verdict without a probability. `mass`: the total probability of the words that the verdict was read from,
    where it was read so. `cause`: why there is none, where the judge knows.
    """

    probability: float | None
    verdict: int | None
    mass: float | None = None
    cause: str | None = None


class Judge(Protocol):
    """Anything that gives one verdict an answer, on its `axes`. `label` says what a verdict of 1 means on a concept;
    `fingerprint` is of everything that decides a verdict, where verdicts are slow and worth keeping, else "";
    `quality`: by axis its measurements, each of answers of one family to questions of one source."""

    @property
    def name(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def axes(self) -> Collection[str]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def quality(self) -> Qualities: ...

    def __call__(self, axis: str, prompts: Texts, answers: Texts, progress: Advance = ...) -> list[Verdict]: ...


class RememberingJudge:
    """A judge whose verdicts are kept in a file as they come, PORTION by PORTION, and are not asked for again."""

    def __init__(self, judge: Judge, path: Path) -> None:
        self.judge, self.path = judge, path
        self.name, self.label, self.axes, self.quality = judge.name, judge.label, judge.axes, judge.quality
        path.parent.mkdir(parents=True, exist_ok=True)
        self.known = {
            row.key: Verdict(row.probability, row.verdict, row.mass, row.cause)
            for row in read_progress(path, VerdictDone)
        }

    @property
    def fingerprint(self) -> str:
        return self.judge.fingerprint

    def __call__(self, axis: str, prompts: Texts, answers: Texts, progress: Advance = unseen) -> list[Verdict]:
        fingerprint = self.fingerprint
        keys = [sha256_json([fingerprint, axis, *pair]) for pair in zip(prompts, answers, strict=True)]
        new = [place for place, key in enumerate(keys) if key not in self.known]
        new.sort(key=lambda place: len(prompts[place]) + len(answers[place]))  # like lengths batch well
        progress(len(keys) - len(new))
        for start in range(0, len(new), PORTION):
            places = new[start : start + PORTION]
            asked, answered = ([texts[place] for place in places] for texts in (prompts, answers))
            judged = self.judge(axis, asked, answered, progress)
            verdicts = {keys[place]: verdict for place, verdict in zip(places, judged, strict=True)}
            sync_append(self.path, ({"key": key, **vars(verdict)} for key, verdict in verdicts.items()))
            self.known |= verdicts
        return [self.known[key] for key in keys]


def remembering(judge: Judge, path: Path) -> Judge:
    """The judge with its verdicts kept in `path`, where it has a `fingerprint`; any other judge as it is."""
    return RememberingJudge(judge, path) if judge.fingerprint else judge


def judged_axes(judge: Judge, axes: Collection[str], console: Console = SILENT) -> list[str]:
    """The axes that the judge can judge, and a line about those that it cannot. SpinError when none is left."""
    kept = [axis for axis in axes if axis in judge.axes]
    if left_out := [axis for axis in axes if axis not in kept]:
        console.say(f"the judge {judge.name} does not judge {', '.join(left_out)}: left out")
    if not kept:
        raise SpinError(
            f"The judge {judge.name} judges none of {', '.join(axes)}.", change=f"it judges {', '.join(judge.axes)}."
        )
    return kept


def has_content(answer: str) -> bool:
    """Whether there is anything to judge: a letter, digit or symbol of any script, and not bare punctuation."""
    return any(category(character)[0] in "LNS" for character in answer)


def head_label(axis: str, label: str) -> str:
    """The label that a judge of `label` gives on `axis`: over-refusal has its own."""
    return "refused" if axis == "over_refusal" and label != "coherent" else label


def unanswered(row: AnyAnswer) -> str:
    """Why a row of generations.jsonl holds no answer; "" when it does. Older runs do not say why."""
    return row.missing or ("" if has_content(row.answer) else EMPTY)
