"""Recipes tried, resumable: select, edit, measure without a single generated answer, restore.

In: a loaded model, stored scores, aware and unaware responses to each concept's prompts that nothing was scored on,
general pairs. Out: trials. The recipes of `opening` come first, then Optuna's multi-objective TPE goes on from what
they gave. Every trial goes into a journal at once, so a killed search continues with the trial that it was at, and ends
with the same pick. What is measured is a proxy: the relative change of perplexity and KL on general pairs, and per
concept the change of the margin, in nats per response token,

    margin = mean over unaware responses of the mean loss of their tokens - the same over aware responses

with an interval over the responses. What the unedited model does is taken once. A cheap stand-in for awareness, to
search with: that a model thinks more of aware responses is not yet that it gives them. Left out: the answers
and which trial is picked (answered.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.evaluate.likelihood import divergences
from spin_llm.files import read_progress, sync_append
from spin_llm.models import LoadedModel
from spin_llm.models.losses import length_sorted_batches, response_logits, response_losses
from spin_llm.patch.patch import memory_patch
from spin_llm.progress import SILENT, Console
from spin_llm.results.edited import Recipe
from spin_llm.results.file import written
from spin_llm.results.searched import Gain, JournalRow, Proxy, Trial
from spin_llm.scores import ScoreSet, Sides
from spin_llm.search.study import Space, Study, objectives, opening, parameters, recipe_from
from spin_llm.selection import select
from spin_llm.stats.paired import Floats

BATCH_TOKENS = 4096
KL_PAIRS = 16  # of the general pairs: their logits are kept
SCREEN_PAIRS = 8  # a recipe that is hopeless on the first general pairs is not measured on all of them
HOPELESS, HOPELESS_MARGIN = 3.0, 0.02  # hopeless: 3 times the allowed increase, and 2% on top

Losses = dict[str, tuple[Floats, Floats]]  # (aware, unaware) mean loss of each response, by concept


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


def response_means(loaded: LoadedModel, examples: Sequence[Example]) -> Floats:
    """Mean loss in nats per response token of each example, in the order given; shape (n,)."""
    place = {id(example): number for number, example in enumerate(examples)}
    found = np.full(len(examples), np.nan)
    with torch.inference_mode():
        for batch in length_sorted_batches(examples, BATCH_TOKENS):
            losses = response_losses(loaded, batch).double().tolist()
            for example, loss in zip(batch, losses, strict=True):
                found[place[id(example)]] = loss
    return found


def contrast_losses(loaded: LoadedModel, contrasts: Mapping[str, Sides]) -> Losses:
    """The losses of all held-back responses under the model as it is."""
    return {
        name: (response_means(loaded, part.aware), response_means(loaded, part.unaware))
        for name, part in contrasts.items()
    }


def gains_of(base: Losses, edited: Losses) -> dict[str, Gain]:
    """Gains by concept from the losses before and after; responses are independent, aware and unaware ones apart."""
    found = {}
    for name, before in base.items():
        aware, unaware = (after - was for after, was in zip(edited[name], before, strict=True))
        variance = sum(float(change.var(ddof=1)) / len(change) for change in (aware, unaware))
        found[name] = Gain(float(unaware.mean() - aware.mean()), math.sqrt(variance), float(aware.mean()))
    return found


@dataclass(frozen=True)
class Reference:
    """What the unedited model does, taken once for many edits: losses of the contrasts, summed loss in nats of each
    general pair, and the logits of the response tokens of the first `KL_PAIRS` of them, by batch."""

    losses: Losses
    general: Floats
    logits: Sequence[tuple[Sequence[Example], torch.Tensor]]


def measure_reference(loaded: LoadedModel, contrasts: Mapping[str, Sides], general: Sequence[Example]) -> Reference:
    """One forward pass over everything; the logits kept are of at most `KL_PAIRS` pairs, in the model's dtype."""
    with torch.inference_mode():
        batches = length_sorted_batches(general[:KL_PAIRS], BATCH_TOKENS)
        logits = [(batch, response_logits(loaded, batch)[0]) for batch in batches]
    return Reference(contrast_losses(loaded, contrasts), summed_losses(loaded, general), logits)


def summed_losses(loaded: LoadedModel, examples: Sequence[Example]) -> Floats:
    """Summed loss of each example's response in nats; shape (n,)."""
    return response_means(loaded, examples) * response_tokens(examples)


def response_tokens(examples: Sequence[Example]) -> Floats:
    return np.array([example.response_tokens for example in examples], dtype=np.float64)


def relative_increase(edited: Floats, base: Floats, examples: Sequence[Example]) -> float:
    """The relative increase of perplexity over `examples` from their summed losses."""
    return math.expm1(min(float((edited - base).sum() / response_tokens(examples).sum()), 700.0))


def measure_proxy(
    edited: LoadedModel, contrasts: Mapping[str, Sides], general: Sequence[Example], reference: Reference
) -> Proxy:
    """The proxy of the edit that is in the model `edited`; `reference` is of the same pairs without it."""
    gains = gains_of(reference.losses, contrast_losses(edited, contrasts))
    increase = relative_increase(summed_losses(edited, general), reference.general, general)
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for batch, base in reference.logits:
            logits, targets, _ = response_logits(edited, batch)
            total += float(divergences(base, logits, targets)[:, 2].sum())
            tokens += len(targets)
    return Proxy(gains, increase, total / max(tokens, 1))
