"""What an edit costs in capability: perplexity and divergence on general pairs.

In: two views of a model (base and edited) and encoded general pairs. Out: per pair, the summed loss under each and the
summed KL divergence of the edited from the base next-token distribution, over the response tokens, in nats. Left out:
benchmark tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from spin_llm.data import Example
from spin_llm.models import LoadedModel
from spin_llm.models.losses import WIDE_BYTES, length_sorted_batches, response_logits
from spin_llm.progress import Advance, unseen
from spin_llm.stats.paired import Floats

View = Callable[[], AbstractContextManager[LoadedModel]]


@dataclass(frozen=True)
class Likelihoods:
    """Per pair (n,): `base` and `edited` summed loss in nats, summed `kl` in nats, number of response `tokens`."""

    base: Floats
    edited: Floats
    kl: Floats
    tokens: Floats


def compare_likelihoods(
    base: View, edited: View, examples: Sequence[Example], *, batch_tokens: int = 2048, progress: Advance = unseen
) -> Likelihoods:
    """One forward pass of each model per batch. KL(base || edited) is taken over the whole vocabulary, in float32."""
    rows: list[torch.Tensor] = []
    with torch.inference_mode():
        for batch in length_sorted_batches(examples, batch_tokens):
            with base() as loaded:
                logits, targets, owner = response_logits(loaded, batch)
            with edited() as loaded:
                other = response_logits(loaded, batch)[0].to(logits.device)
            per_token = divergences(logits, other, targets)
            rows.append(torch.zeros(len(batch), 4, dtype=torch.float64).index_add(0, owner.cpu(), per_token.cpu()))
            progress(len(batch))
    base_loss, edited_loss, kl, tokens = torch.cat(rows).numpy().T
    return Likelihoods(base_loss, edited_loss, kl, tokens)


def divergences(base: torch.Tensor, edited: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Loss under `base`, loss under `edited`, KL(base || edited) in nats, and 1, of each row; (rows, 4), float64.

    `base` and `edited` are logits (rows, vocabulary), widened to float32 a few rows at a time, which stay in the cache:
    all rows at once take several float32 copies of all logits, and four times as long on a CPU.
    """
    found = torch.ones(len(base), 4, dtype=torch.float64, device=base.device)
    size = max(1, WIDE_BYTES // (4 * base.shape[-1]))
    for start in range(0, len(base), size):
        rows = slice(start, start + size)
        log_p, log_q = (logits[rows].to(torch.float32, copy=True) for logits in (base, edited))
        for place, logs in enumerate((log_p, log_q)):
            logs.sub_(logs.logsumexp(-1, keepdim=True))
            found[rows, place] = -logs.gather(1, targets[rows, None])[:, 0].double()
        difference = log_q.sub_(log_p)
        found[rows, 2] = -(log_p.exp_().mul_(difference)).sum(-1).clamp_max(0).double()
    return found
