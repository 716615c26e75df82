"""What an edit costs in capability: perplexity and divergence on general pairs.

In: two views of a model (base and edited) and encoded general pairs. Out: per pair, the summed loss under each and the
summed KL divergence of the edited from the base next-token distribution, over the response tokens, in nats. Left out:
benchmark tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from spin_llm.data import Example
from spin_llm.evaluate.statistics import Floats
from spin_llm.models import LoadedModel
from spin_llm.scores.losses import length_sorted_batches, response_logits

View = Callable[[], AbstractContextManager[LoadedModel]]


@dataclass(frozen=True)
class Likelihoods:
    """Per pair (n,): `base` and `edited` summed loss in nats, summed `kl` in nats, and the number of response
    `tokens`."""

    base: Floats
    edited: Floats
    kl: Floats
    tokens: Floats


def compare_likelihoods(
    base: View,
    edited: View,
    examples: Sequence[Example],
    *,
    batch_tokens: int = 2048,
    progress: Callable[[int], None] = lambda examples_done: None,
) -> Likelihoods:
    """One forward pass of each model per batch.

    KL(base || edited) is taken over the whole vocabulary, in float32.
    """
    rows: list[tuple[float, float, float, float]] = []
    with torch.inference_mode():
        for batch in length_sorted_batches(examples, batch_tokens):
            with base() as loaded:
                logits, targets, owner = response_logits(loaded, batch)
                log_p = logits.float().log_softmax(-1)
            with edited() as loaded:
                log_q = response_logits(loaded, batch)[0].to(log_p.device).float().log_softmax(-1)
            per_token = torch.stack(
                [
                    -log_p.gather(1, targets[:, None])[:, 0],
                    -log_q.gather(1, targets[:, None])[:, 0],
                    (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0),
                    torch.ones(len(targets), device=targets.device),
                ],
                dim=1,
            ).double()
            sums = torch.zeros(len(batch), 4, dtype=torch.float64, device=targets.device).index_add(0, owner, per_token)
            rows += [tuple(row) for row in sums.tolist()]
            progress(len(batch))
    base_loss, edited_loss, kl, tokens = np.asarray(rows, dtype=np.float64).T
    return Likelihoods(base_loss, edited_loss, kl, tokens)
