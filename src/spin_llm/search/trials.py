"""Recipes tried, resumable: select, edit, measure by the proxy, restore.

In: a loaded model, stored scores, held-back pairs. Out: trials. The recipes of `opening` come first, then Optuna's
multi-objective TPE goes on from what they gave (gain of each concept's margin up, perplexity down). Every trial goes
into a journal at once, so a killed search continues with the trial that it was at, and ends with the same pick. Left
out: which is picked (ranking.py, find.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.files import read_progress, sync_append
from spin_llm.models import LoadedModel
from spin_llm.patch.patch import memory_patch
from spin_llm.progress import SILENT, Console
from spin_llm.results.file import written
from spin_llm.results.recipe import Recipe
from spin_llm.results.searched import JournalRow, Trial
from spin_llm.scores import ScoreSet, Sides
from spin_llm.search.proxy import (
    Reference,
    measure_proxy,
    measure_reference,
    relative_increase,
    summed_losses,
)
from spin_llm.search.study import Space, Study, objectives, opening, parameters, recipe_from
from spin_llm.selection import select

SCREEN_PAIRS = 8  # a recipe that is hopeless on the first general pairs is not measured on all of them
HOPELESS, HOPELESS_MARGIN = 3.0, 0.02  # hopeless: 3 times the allowed increase, and 2% on top


@dataclass(frozen=True)
class Bench:
    """What every recipe is tried on: a model, its scores, held-back responses by concept, general pairs."""

    loaded: LoadedModel
    scores: ScoreSet
    contrasts: Mapping[str, Sides]
    general: Sequence[Example]
    max_increase: float

    @property
    def space(self) -> Space:
        places = [place for part in self.scores.everything.values() for place in part.matrices.values()]
        wider = max(1.0, 1e5 / min(place.size for place in places))
        return Space(self.scores.keep, 1 + max(place.layer for place in places), wider, tuple(self.concepts))

    @property
    def concepts(self) -> list[str]:
        return list(self.scores.concepts)


def try_recipes(
    bench: Bench, usual: Recipe, *, trials: int, journal: Path, seed: int = 0, console: Console = SILENT
) -> list[Trial]:
    """Try `trials` recipes around `usual`; those in `journal` are read.

    Raises SpinError on a journal of another kind.
    """
    start = opening(usual, bench.space)
    study = Study(bench.concepts, bench.space, usual)
    done: list[Trial] = []
    for row in read_progress(journal, JournalRow):
        done.append(row.trial)
        concepts = list(row.proxy.gains if row.proxy else bench.concepts)
        if concepts != bench.concepts or set(row.parameters) != set(study.distributions):
            raise SpinError(
                f"{journal} is of a search with other concepts or settings.",
                cause="it was made with other data, or by another version.",
                change="start anew with --overwrite.",
            )
        study.tell(row.parameters, objectives(done[-1], bench.concepts))
    base = None
    journal.parent.mkdir(parents=True, exist_ok=True)
    with console.bar("trying edits", trials) as advance:
        advance(min(len(done), trials))
        for number in range(len(done), trials):
            base = base or measure_reference(bench.loaded, bench.contrasts, bench.general)
            chosen = parameters(start[number], bench.space) if number < len(start) else study.ask(1000 * seed + number)
            trial = attempt(bench, number, recipe_from(chosen, usual, bench.space), base)
            sync_append(journal, [{**written(trial), "parameters": chosen}])
            study.tell(chosen, objectives(trial, bench.concepts))
            done.append(trial)
            advance(1)
    return done[:trials]


def attempt(bench: Bench, number: int, recipe: Recipe, base: Reference) -> Trial:
    """Select, suppress in memory, measure, restore."""
    try:
        selection = select(bench.scores, recipe, allow_empty=True)
    except SpinError as error:
        return Trial(number, recipe, 0, error.what, None, None)
    if not selection.weights:
        return Trial(number, recipe, 0, "selects no weight", None, None)
    with memory_patch(bench.loaded, selection).applied(bench.loaded) as edited:
        screen = bench.general[:SCREEN_PAIRS]
        first = relative_increase(summed_losses(edited, screen), base.general[:SCREEN_PAIRS], screen)
        if not first <= HOPELESS * bench.max_increase + HOPELESS_MARGIN:  # also when it is not a number
            return Trial(number, recipe, selection.weights, "ruins the model", first, None)
        proxy = measure_proxy(edited, bench.contrasts, bench.general, base)
    return Trial(number, recipe, selection.weights, "", proxy.increase, proxy)
