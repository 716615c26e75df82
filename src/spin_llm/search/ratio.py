"""Choosing the ratio against a capability constraint (the paper's published 5e-7 selects nothing on a
small model, and twice the best ratio ruins one).

In: scores, a loaded model, general pairs that nothing was scored on. Out: the largest ratio of a grid whose perplexity
rises by at most the allowed fraction, and the table of what was tried. Left out: awareness; the choice never looks at
the questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel
from spin_llm.models.losses import mean_loss
from spin_llm.patch.patch import memory_patch
from spin_llm.progress import SILENT, Console
from spin_llm.results.edited import RatioTried, Recipe
from spin_llm.scores import ScoreSet
from spin_llm.selection import Selection, select
from spin_llm.settings.edit import EditSettings

GRID = tuple(float(f"{step}e-{power}") for power in range(7, 1, -1) for step in (1, 2, 5))
SCREEN_PAIRS = 8  # a ratio that is hopeless on the first pairs is not measured on all of them
HOPELESS, HOPELESS_MARGIN = 5.0, 0.05  # hopeless: an increase of more than 5 times the allowed one, and 5% on top


def choose_ratio(
    loaded: LoadedModel,
    scores: ScoreSet,
    examples: Sequence[Example],
    *,
    recipe: Recipe,
    max_increase: float = EditSettings.max_perplexity_increase,
    console: Console = SILENT,
) -> tuple[float, list[RatioTried]]:
    """(the largest allowed ratio of `recipe`, whose own is not looked at; the table by rising ratio).

    Ratios are tried from the largest down, until one is allowed; hopeless ones are measured on a few pairs. Raises
    SpinError, with the table in the message, when no ratio that selects anything is allowed.
    """
    ratios = [ratio for ratio in GRID if ratio <= scores.keep]
    selections = [select(scores, replace(recipe, ratio=ratio), allow_empty=True) for ratio in ratios]
    screen = examples[:SCREEN_PAIRS]
    base, base_screen = _perplexity(loaded, examples), _perplexity(loaded, screen)
    trials: list[RatioTried] = []
    chosen: float | None = None
    with console.bar("choosing the ratio", sum(selection.weights > 0 for selection in selections)) as advance:
        for selection in reversed(selections):
            trial = _trial(selection, None, base, max_increase, 0)
            if selection.weights and chosen is None:
                with memory_patch(loaded, selection).applied(loaded):
                    hopeless = HOPELESS * max_increase + HOPELESS_MARGIN
                    trial = _trial(selection, _perplexity(loaded, screen), base_screen, hopeless, len(screen))
                    if trial.allowed:
                        trial = _trial(selection, _perplexity(loaded, examples), base, max_increase, len(examples))
            if trial.allowed and chosen is None:
                chosen = selection.recipe.ratio
            trials.insert(0, trial)
            advance(1 if selection.weights else 0)
    if chosen is None:
        raise SpinError(
            f"No ratio on the grid keeps the perplexity increase within {max_increase:.1%}.\n{table_text(trials)}",
            cause="the smallest edit that the scores allow already costs more, or the ratios select nothing.",
            change="raise --max-perplexity-increase, or give a --ratio yourself.",
        )
    return chosen, [replace(trial, chosen=trial.ratio == chosen) for trial in trials]


def _perplexity(loaded: LoadedModel, examples: Sequence[Example]) -> float:
    return math.exp(min(mean_loss(loaded, examples), 700.0))


def _trial(selection: Selection, perplexity: float | None, base: float, max_increase: float, pairs: int) -> RatioTried:
    increase = None if perplexity is None else perplexity / base - 1
    allowed = increase is not None and increase <= max_increase
    return RatioTried(
        ratio=selection.recipe.ratio,
        candidates=selection.candidates,
        both=selection.shared,
        weights=selection.weights,
        perplexity=perplexity,
        increase=increase,
        allowed=allowed,
        pairs=pairs,
        chosen=False,
    )


def table_text(trials: Sequence[RatioTried]) -> str:
    """The trials as aligned text."""
    lines = [f"{'ratio':>8} {'candidates':>11} {'in all':>8} {'selected':>9} {'perplexity':>11} {'increase':>9}"]
    for trial in trials:
        perplexity = "-" if trial.perplexity is None else f"{trial.perplexity:.4g}"
        increase = "-" if trial.increase is None else f"{trial.increase:+.2%}"
        counts = f"{trial.candidates:>11,} {trial.both:>8,} {trial.weights:>9,}"
        lines.append(f"{trial.ratio:>8.0e} {counts} {perplexity:>11} {increase:>9}")
    return "\n".join(lines)
