"""What is asked of base and edited model, who judges it, and what is measured beside the judged axes.

In: values from the command line or Python. Out: `AnswerSettings`, `JudgeSettings` and `ExtraSettings`, checked; each
is what one stage of a run first depends on. Left out: default questions, which follow the concepts (run.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from spin_llm.settings.checks import check, invalid, put, several
from spin_llm.settings.data import check_names
from spin_llm.settings.words import Sources


@dataclass(frozen=True)
class AnswerSettings:
    """Questions and answers"""

    questions: Sources = None  # type: ignore[assignment] # of the concepts
    """NAME=SOURCE of prompts to answer and judge (a concept's name, over_refusal), or a shipped NAME."""
    max_questions: int | None = None
    """At most this many questions for each axis (default: all)."""
    new_tokens: int = 64
    """Tokens of an answer."""
    thinking_tokens: int | None = None
    """Tokens of reasoning, beside those of the answer; turns --thinking on (default: 1024 with it)."""

    def __post_init__(self) -> None:
        put(self, questions=several(self.questions))
        check(self, AnswerSettings, max_questions=1, new_tokens=1, thinking_tokens=1)
        check_names("questions", self.questions)


@dataclass(frozen=True)
class JudgeSettings:
    """Judge"""

    judge: str = "local"
    """local, FILE.safetensors (judge fit), a guard's name or hub id, GUARD:MODEL, rubric:MODEL (all also with @URL) or
    human:FILE.csv; docs/judges.md."""
    judge_quality: str | None = None
    """Quality of --judge on answers like these: a file of `spin-llm judge check DATA --judge ... -o FILE.json`."""

    def __post_init__(self) -> None:
        check(self, JudgeSettings)


@dataclass(frozen=True)
class ExtraSettings:
    """Controls, stability and tasks"""

    controls: tuple[str, ...] = ()
    """Also measure these other edits: random, same-magnitude, CONCEPT-alone, unprotected, released; all (of these); or
    another rule."""
    resamples: int = 0
    """Select again from this many bootstrap resamples of the scored examples, to see whether the selection holds."""
    capabilities: tuple[str, ...] = ()
    """Also measure these lm-eval tasks: names with commas between, or paper for the paper's Table 2."""
    capability_tasks: str | None = None
    """Folder with more lm-eval tasks, as YAML files."""
    capabilities_limit: int | None = None
    """At most this many documents of each lm-eval task (default: all)."""

    def __post_init__(self) -> None:
        put(self, controls=several(self.controls), capabilities=several(self.capabilities))
        check(self, ExtraSettings, resamples=0, capabilities_limit=1)
        names = (name.strip() for name in ",".join(self.capabilities).split(","))
        put(self, capabilities=tuple(dict.fromkeys(filter(None, names))))
        if self.resamples == 1:
            raise invalid("resamples", 1, "0, or 2 or more")
