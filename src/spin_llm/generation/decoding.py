"""Greedy decoding of one batch by transformers' `generate`.

In: a loaded model, prompts as token ids. Out: for each prompt the new tokens, and the likeliest alternatives of the
first. Left out: sampling; which prompts share a batch (batches.py); a decoding loop of our own, which measured no
faster in the same batches (LOG.md, 2026-11-24).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from spin_llm.models import LoadedModel
from spin_llm.models.reft import generating


@dataclass(frozen=True)
class Row:
    """What follows one prompt: the new `tokens`, the ending one included, and (token, log-probability in nats) of the
    likeliest alternatives of the first, best first."""

    tokens: list[int]
    first: list[tuple[int, float]] = field(default_factory=list)


def decode(
    loaded: LoadedModel, prompts: Sequence[list[int]], new_tokens: int, ends: Sequence[int], alternatives: int = 0
) -> list[Row]:
    """Greedy continuations of the batch `prompts`, each of `new_tokens` tokens, or fewer where one of `ends` comes."""
    from transformers import GenerationConfig

    first: list[list[tuple[int, float]]] = []

    def see_first(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if not first:
            first.extend(likeliest(logits, alternatives))
        return logits

    ids, mask = left_padded(prompts, loaded.device)
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, pad_token_id=0, eos_token_id=list(ends) or None
    )
    with (
        torch.inference_mode(),
        contiguous_head(loaded.model),
        plain_generation(loaded.model),
        generating(loaded.model),
    ):
        rows = loaded.model.generate(
            input_ids=ids, attention_mask=mask, generation_config=greedy, logits_processor=[see_first]
        )[:, ids.shape[1] :].tolist()
    stops = [next((place for place, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [Row(row[: stop + 1], best) for row, stop, best in zip(rows, stops, first, strict=True)]


def left_padded(prompts: Sequence[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids, mask), both (prompts, longest): padding is 0, at the left, and masked."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def likeliest(logits: torch.Tensor, alternatives: int) -> list[list[tuple[int, float]]]:
    """(token, log-probability in nats) of the largest `alternatives` of each row of logits (rows, vocabulary)."""
    if not alternatives:
        return [[] for _ in logits]
    best = logits.float().log_softmax(-1).topk(min(alternatives, logits.shape[-1]), dim=-1)
    return [
        list(zip(tokens, values, strict=True))
        for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@contextmanager
def plain_generation(model: Any) -> Iterator[None]:
    """Without the checkpoint's own sampling settings (temperature, repetition penalty), which `generate` would mix
    in."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def contiguous_head(model: Any) -> Iterator[None]:
    """The head gets a contiguous input: for the slice of the prompts' last position, torch would multiply by a copy of
    the whole head for each prompt, which is half of the time of a batch of 96 on a CPU."""

    def contiguous(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0].contiguous(), *args[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(contiguous)
    try:
        yield
    finally:
        hook.remove()
