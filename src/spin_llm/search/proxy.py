"""What an edit does, without a single generated answer: margins on held-back pairs, perplexity and KL on general ones.

In: a loaded model, aware and unaware responses to one concept's prompts that nothing was scored on, general pairs. Out:
per concept the change of the margin, in nats per response token,

    margin = mean over unaware responses of the mean loss of their tokens - the same over aware responses

with an interval over the responses, and the relative change of perplexity. What the unedited model does is taken once.
A cheap stand-in for awareness, to search with: that a model thinks more of aware responses is not yet that it gives
them. Left out: the answers (evaluate/comparison.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from spin_llm.data import Example
from spin_llm.evaluate.likelihood import divergences
from spin_llm.models import LoadedModel
from spin_llm.models.losses import length_sorted_batches, response_logits, response_losses
from spin_llm.results.searched import Gain, Proxy
from spin_llm.scores import Sides
from spin_llm.stats.paired import Floats

BATCH_TOKENS = 4096
KL_PAIRS = 16  # of the general pairs: their logits are kept


Losses = dict[str, tuple[Floats, Floats]]  # (aware, unaware) mean loss of each response, by concept


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
