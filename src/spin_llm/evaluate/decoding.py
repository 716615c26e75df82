"""Greedy decoding of one batch: the answers of transformers' `generate`, sooner.

In: a loaded model, prompts as token ids. Out: for each prompt the new tokens, and the likeliest alternatives of the
first. What it saves over `generate`: the tokens that all prompts begin with (a chat template's system message, a
judge's rubric) are read once, and rows that have ended leave the batch. Models that keep more than keys and values
(state spaces, linear attention) or take no positions go through `generate` itself. Left out: sampling; which prompts
share a batch (generation.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from spin_llm.models import LoadedModel

SHORTEST_PREFIX = 8  # tokens; below, reading it apart saves nothing


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
    with torch.inference_mode(), contiguous_head(loaded.model):
        if keeps_keys_and_values_alone(loaded.model):
            return _decode(loaded, prompts, new_tokens, ends, alternatives)
        return _decode_by_transformers(loaded, prompts, new_tokens, ends, alternatives)


def keeps_keys_and_values_alone(model: Any) -> bool:
    """Whether rows of the model's cache can be laid out and dropped here."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    taken = inspect.signature(model.forward).parameters
    if not {"position_ids", "logits_to_keep", "past_key_values"} <= set(taken):
        return False
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _decode(
    loaded: LoadedModel, prompts: Sequence[list[int]], new_tokens: int, ends: Sequence[int], alternatives: int
) -> list[Row]:
    ids, mask = left_padded(prompts, loaded.device)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache, known = prefix_cache(loaded, prompts, ids.shape[1])
    ids, positions = ids[:, known:], positions[:, known:]
    rows: list[Row] = []
    live: list[Row] = []
    while True:
        logits = loaded.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if not rows:
            live = rows = [Row([], first) for first in likeliest(logits, alternatives)]
        chosen = logits.argmax(-1)
        for row, token in zip(live, chosen.tolist(), strict=True):
            row.tokens.append(token)
        keep = [place for place, row in enumerate(live) if row.tokens[-1] not in ends]
        if not keep or len(live[0].tokens) == new_tokens:
            return rows
        positions = positions[:, -1:] + 1
        if len(keep) < len(live):
            live = [live[place] for place in keep]
            places = torch.tensor(keep, device=loaded.device)
            cache.batch_select_indices(places)
            chosen, mask, positions = chosen[places], mask[places], positions[places]
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)


def left_padded(prompts: Sequence[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids, mask), both (prompts, longest): padding is 0, at the left, and masked."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def prefix_cache(loaded: LoadedModel, prompts: Sequence[list[int]], width: int) -> tuple[Any, int]:
    """A cache of the first columns of the prompts, left-padded to `width`, and the number of these columns.

    As many columns as all prompts have tokens in common: each row then has padding and a part of the common tokens
    there, whose keys and values come from reading these once.
    """
    from transformers import DynamicCache

    # Without the config every layer keeps all columns, those with a sliding window too; the masks see to the window.
    cache = DynamicCache()
    known = shared_prefix(prompts)
    if len(prompts) == 1 or known < SHORTEST_PREFIX:
        return cache, 0
    once = DynamicCache()
    ids = torch.tensor([prompts[0][:known]], device=loaded.device)
    loaded.model(input_ids=ids, past_key_values=once, use_cache=True, logits_to_keep=1)
    padding = torch.tensor([width - len(prompt) for prompt in prompts])
    token = (torch.arange(known) - padding[:, None]).clamp_min(0)  # (prompts, columns): which one lies there
    layers: Any = once.layers
    for index, layer in enumerate(layers):
        keys, values = (
            states[0].index_select(1, token.flatten().to(states.device)).unflatten(1, token.shape).transpose(0, 1)
            for states in (layer.keys, layer.values)
        )  # (heads, tokens, size) -> (prompts, heads, columns, size)
        cache.update(keys.contiguous(), values.contiguous(), index)
    return cache, known


def shared_prefix(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with, less where one would have none left."""
    first, last = min(prompts), max(prompts)  # in the order of their tokens: these two differ the soonest
    most = min(map(len, prompts)) - 1
    return next((place for place in range(most) if first[place] != last[place]), most)


def likeliest(logits: torch.Tensor, alternatives: int) -> list[list[tuple[int, float]]]:
    """(token, log-probability in nats) of the largest `alternatives` of each row of logits (rows, vocabulary)."""
    if not alternatives:
        return [[] for _ in logits]
    best = logits.float().log_softmax(-1).topk(min(alternatives, logits.shape[-1]), dim=-1)
    return [
        list(zip(tokens, values, strict=True))
        for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _decode_by_transformers(
    loaded: LoadedModel, prompts: Sequence[list[int]], new_tokens: int, ends: Sequence[int], alternatives: int
) -> list[Row]:
    from transformers import GenerationConfig

    ids, mask = left_padded(prompts, loaded.device)

    def generated(tokens: int, **options: Any) -> Any:
        greedy = GenerationConfig(
            do_sample=False, max_new_tokens=tokens, pad_token_id=0, eos_token_id=list(ends) or None, **options
        )
        with plain_generation(loaded.model):
            return loaded.model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)

    rows = generated(new_tokens)[:, ids.shape[1] :].tolist()
    first: list[list[tuple[int, float]]] = [[] for _ in rows]
    if alternatives:
        first = likeliest(generated(1, return_dict_in_generate=True, output_logits=True).logits[0], alternatives)
    stops = [next((place for place, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [Row(row[: stop + 1], best) for row, stop, best in zip(rows, stops, first, strict=True)]


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
