"""How the edit is made: by a rule and a ratio, or by a search and what it may spend.

In: values from the command line or Python; layers also as 4-20, a ratio also as `auto`. Out: `EditSettings` and
`SearchSettings`, checked. Left out: what a rule needs of the scores (run.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from spin_llm.errors import SpinError
from spin_llm.settings.checks import check, invalid, put, several
from spin_llm.settings.words import EFFORTS, Effort, EffortName, RuleOrAuto


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
        for name, value in (("ratio", self.ratio), ("protect_ratio", self.protect_ratio)):
            if value is not None and not 0 < value < 1:
                raise invalid(name, value, "a fraction above 0 and below 1" + (", or auto" if name == "ratio" else ""))
        if not self.max_perplexity_increase >= 0:  # also catches NaN
            raise invalid("max_perplexity_increase", self.max_perplexity_increase, "0 or more")
        if not math.isfinite(self.scale):
            raise invalid("scale", self.scale, "a finite factor")


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


def parse_layers(text: str) -> tuple[int, ...]:
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
