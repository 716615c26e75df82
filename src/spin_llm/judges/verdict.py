"""What a judge is, and what it says.

In: nothing. Out: the protocol of judges, their verdict, and the names of heads and labels. Left out: every judge.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from unicodedata import category

from spin_llm.progress import Advance

DEFAULT_LABEL = "aware"
LABELS = ("safe", "aware", "refused", "coherent")
EMPTY, NOT_PARSED = "empty answer", "verdict not parsed"
Qualities = Mapping[str, Sequence[Mapping[str, object]]]  # by axis, as results/judged.JudgeQuality has one


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
    `fingerprint` is of everything that decides a verdict, where verdicts are slow and worth keeping, else ""."""

    @property
    def name(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def axes(self) -> Collection[str]: ...

    @property
    def fingerprint(self) -> str: ...

    def __call__(
        self, axis: str, prompts: Sequence[str], answers: Sequence[str], progress: Advance = ...
    ) -> list[Verdict]: ...

    def quality(self) -> Qualities:
        """By axis the measurements of this judge: a list of qualities (quality/check.py), each of answers of one
        `family` to `questions` of one source (quality/reading.py)."""
        ...


def has_content(answer: str) -> bool:
    """Whether there is anything to judge: a letter, digit or symbol of any script, and not bare punctuation."""
    return any(category(character)[0] in "LNS" for character in answer)


def head_label(axis: str, label: str) -> str:
    """The label that a judge of `label` gives on `axis`: over-refusal has its own."""
    return "refused" if axis == "over_refusal" and label != "coherent" else label


def unanswered(row: Mapping[str, object]) -> str:
    """Why a row of generations.jsonl holds no answer; "" when it does. Older runs do not say why."""
    return str(row.get("missing") or ("" if has_content(str(row["answer"])) else EMPTY))
