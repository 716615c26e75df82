"""Verdicts kept while a judge works.

In: a judge that is a model's words, a file. Out: the same judge, asked in portions, whose verdicts are appended to the
file by the hash of everything that decides them: a judging that was killed goes on, and a verdict is had once.
Left out: the judges.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from spin_llm.errors import SpinError
from spin_llm.files import read_progress, sha256_json, sync_append
from spin_llm.judges.verdict import Judge, Qualities, Verdict
from spin_llm.progress import SILENT, Advance, Console
from spin_llm.results.rows import VerdictDone

PORTION = 128  # prompts between two writes of the verdicts' file


def judged_axes(judge: Judge, axes: Collection[str], console: Console = SILENT) -> list[str]:
    """The axes that the judge can judge, and a line about those that it cannot.

    Raises SpinError when none is left.
    """
    left_out = [axis for axis in axes if axis not in judge.axes]
    if left_out:
        console.say(f"the judge {judge.name} does not judge {', '.join(left_out)}: left out")
    kept = [axis for axis in axes if axis in judge.axes]
    if not kept:
        raise SpinError(
            f"The judge {judge.name} judges none of {', '.join(axes)}.", change=f"it judges {', '.join(judge.axes)}."
        )
    return kept


@dataclass
class RememberingJudge:
    """A judge whose verdicts are kept in a file as they come, PORTION by PORTION, and are not asked for again."""

    judge: Judge
    path: Path

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.known = {row.pop("key"): Verdict(**row) for row in read_progress(self.path, VerdictDone)}

    @property
    def name(self) -> str:
        return self.judge.name

    @property
    def label(self) -> str:
        return self.judge.label

    @property
    def axes(self) -> Collection[str]:
        return self.judge.axes

    @property
    def fingerprint(self) -> str:
        return self.judge.fingerprint

    def __call__(
        self, axis: str, prompts: Sequence[str], answers: Sequence[str], progress: Advance = lambda done: None
    ) -> list[Verdict]:
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
            sync_append(self.path, ({"key": key, **asdict(verdict)} for key, verdict in verdicts.items()))
            self.known |= verdicts
        return [self.known[key] for key in keys]

    def quality(self) -> Qualities:
        return self.judge.quality()


def remembering(judge: Judge, path: Path) -> Judge:
    """The judge with its verdicts kept in `path`, where it has a `fingerprint`; any other judge as it is."""
    return RememberingJudge(judge, path) if judge.fingerprint else judge
