"""How the edit is made, what is asked of base and edited model, who judges it, and what else is measured.

In: values from the command line or Python; layers also as 4-20, a ratio also as `auto`. Out: `EditSettings`,
`SearchSettings`, `AnswerSettings`, `JudgeSettings` and `ExtraSettings`, checked; each is what one stage of a run first
depends on. Left out: what a rule needs of the scores, and default questions, which follow the concepts (run.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from spin_llm.errors import SpinError
from spin_llm.settings.checks import FRACTION, check, invalid, put, require, several
from spin_llm.settings.data import check_names
from spin_llm.settings.words import EFFORTS, Effort, EffortName, RuleOrAuto, Sources


@dataclass(frozen=True)
class EditSettings:
    """The edit"""

    rule: RuleOrAuto = "auto"
    """auto (searched; with a --ratio: coupled), coupled (the paper's), coupled-signed (of these, the favourable),
    signed (by what suppression does to the margins) or released (the published code's)."""
    ratio: float | None = None
    """Fraction of each matrix in a top set, or auto: the largest within --max-perplexity-increase (default: auto)."""
    protect_ratio: float | None = None
    """Fraction of each matrix that is protected (default: the ratio)."""
    layers: tuple[int, ...] = ()
    """The first and the last decoder layer to edit, as 4-20 (default: all)."""
    at_least: int | None = None
    """A weight must be important for at least this many of the concepts (default: all)."""
    max_perplexity_increase: float = 0.01
    """For --rule auto and --ratio auto: allowed relative rise of perplexity on held-back general pairs."""
    scale: float = 0.0
    """What the selected weights are multiplied by; 0 suppresses them."""

    def __post_init__(self) -> None:
        put(self, layers=parse_layers(self.layers) if isinstance(self.layers, str) else several(self.layers))
        put(self, ratio=parse_ratio(self.ratio) if isinstance(self.ratio, str) else self.ratio)
        check(self, EditSettings, at_least=1)
        if self.rule == "auto" and self.ratio is not None:  # a ratio says that nothing is to be searched
            put(self, rule="coupled")
        if self.layers and not (len(self.layers) == 2 and 0 <= self.layers[0] <= self.layers[1]):
            raise invalid("layers", self.layers, "the first and the last layer, as 4-20")
        require(self, f"{FRACTION}, or auto", lambda ratio: 0 < ratio < 1, "ratio")
        require(self, FRACTION, lambda ratio: 0 < ratio < 1, "protect_ratio")
        require(self, "0 or more", lambda value: value >= 0, "max_perplexity_increase")  # NaN neither
        require(self, "a finite factor", math.isfinite, "scale")


@dataclass(frozen=True)
class SearchSettings:
    """Search"""

    effort: EffortName = "standard"
    """What a run with --rule auto spends (docs/search.md)."""
    trials: int | None = None
    """For --rule auto: edits to try (default: by --effort)."""
    survivors: int | None = None
    """For --rule auto: edits whose answers to the search questions are judged (default: by --effort)."""

    def __post_init__(self) -> None:
        check(self, SearchSettings, trials=1, survivors=0)

    @property
    def budget(self) -> Effort:
        """What --effort stands for, with --trials and --survivors in its place where they were given."""
        given = {"trials": self.trials, "survivors": self.survivors}
        return replace(EFFORTS[self.effort], **{name: value for name, value in given.items() if value is not None})


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
        require(self, "0, or 2 or more", lambda number: number != 1, "resamples")


def parse_layers(text: str) -> tuple[int, int]:
    """`4-20`, or one number."""
    first, _, last = text.partition("-")
    try:
        return (int(first), int(last or first))
    except ValueError:
        raise SpinError(f"--layers {text!r} is not FIRST-LAST.", change="give for example --layers 4-20.") from None


def parse_ratio(text: str) -> float | None:
    """`auto` (None) or a fraction."""
    try:
        return None if text == "auto" else float(text)
    except ValueError:
        raise SpinError(f"--ratio {text!r} is not a number.", change="give a fraction such as 1e-4, or auto.") from None
