"""Greedy decoding of one batch by transformers' `generate`.

In: a loaded model, prompts as token ids. Out: for each prompt the new tokens, and the likeliest alternatives of the
first. What prompts begin with in common is computed once, and who is done leaves the batch. Left out: sampling; which
prompts share a batch (batches.py); packed weights, compiled steps, static caches (LOG.md, 2026-11-28: speed).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from spin_llm.models import LoadedModel
from spin_llm.models.reft import generating

STRIDE = 8  # new tokens between two looks at which answers are done
PREFILL = 24  # prompts whose states are computed together
GROUPED = "sdpa_grouped"


@dataclass(frozen=True)
class Row:
    """What follows one prompt: the new `tokens`, the ending one included, and (token, log-probability in nats) of the
    likeliest alternatives of the first, best first."""

    tokens: list[int]
    first: list[tuple[int, float]] = field(default_factory=list)


def decode(
    loaded: LoadedModel, prompts: Sequence[list[int]], new_tokens: int, ends: Sequence[int], alternatives: int = 0
) -> list[Row]:
    """Greedy continuations of the batch `prompts`, each of `new_tokens` tokens, or fewer where one of `ends` comes.

    Where the model's states can be kept between calls, prompts that are done leave the batch every STRIDE tokens.
    """
    from transformers import GenerationConfig

    first: list[list[tuple[int, float]]] = []

    def see_first(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if not first:
            first.extend(likeliest(logits, alternatives))
        return logits

    model, going = loaded.model, list(range(len(prompts)))
    made: list[list[int]] = [[] for _ in prompts]
    with (
        torch.inference_mode(),
        contiguous_head(model),
        grouped_heads(model),
        plain_generation(model),
        generating(model),
    ):
        keeps = min(map(len, prompts)) > 1 and keeps_states(model, max(map(len, prompts)) + new_tokens)
        ids, mask, kept = prefilled(model, prompts) if keeps else (*padded(prompts, loaded.device), {})
        while going:
            stride = min(STRIDE if keeps else new_tokens, new_tokens - len(made[going[0]]))
            greedy = GenerationConfig(
                do_sample=False, max_new_tokens=stride, pad_token_id=0, eos_token_id=list(ends) or None
            )
            ids = model.generate(
                input_ids=ids, attention_mask=mask, generation_config=greedy, logits_processor=[see_first], **kept
            )
            for row, tokens in zip(going, ids[:, mask.shape[1] :].tolist(), strict=True):
                stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
                made[row] += tokens[: stop + 1]
            mask = pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
            stay = [n for n, row in enumerate(going) if made[row][-1] not in ends and len(made[row]) < new_tokens]
            if 0 < len(stay) < len(going):
                ids, mask = ids[stay], mask[stay]
                for cache in kept.values():
                    cache.batch_select_indices(torch.tensor(stay, device=ids.device))
            going = [going[n] for n in stay]
    return [Row(tokens, best) for tokens, best in zip(made, first, strict=True)]


def keeps_states(model: Any, tokens: int) -> bool:
    """Whether what the model keeps of `tokens` is keys and values alone, of positions that it is told: then padding
    may stand anywhere among them."""
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "window_size")]
    return (
        config is model.config
        and set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}
        and all(window is None or (isinstance(window, int) and tokens <= window) for window in windows)
        and "position_ids" in inspect.signature(model.forward).parameters
        and model._supports_default_dynamic_cache()
        and not hasattr(model, "reft")  # its places are those of whole prompts
    )


def prefilled(model: Any, prompts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """(token ids, mask), both (prompts, longest), and the states of all but the last token of each of them, by the
    model's name for these: of their common beginning computed once, of the rest for PREFILL prompts at a time."""
    from transformers import DynamicCache

    word = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    width, shared, device = max(map(len, prompts)), alike(prompts), next(model.parameters()).device

    def add(cache: Any, ids: torch.Tensor, mask: torch.Tensor) -> None:
        if ids.shape[1]:
            places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            model.base_model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True, **{word: cache})

    parts, states, beginning = [], [], DynamicCache()
    add(beginning, *padded([prompts[0][:shared]], device))
    for start in range(0, len(prompts), PREFILL):
        some = prompts[start : start + PREFILL]
        ids, mask = padded(some, device, shared)
        cache: Any = deepcopy(beginning)
        cache.batch_repeat_interleave(len(some))
        add(cache, ids[:, shared:-1], mask[:, :-1])
        gap = width - ids.shape[1]
        parts.append((pad(ids, (gap, 0)), pad(mask, (gap, 0))))
        states.append([[pad(kept, (0, 0, gap, 0)) for kept in (layer.keys, layer.values)] for layer in cache.layers])
    for layer, every in zip(cache.layers, zip(*states, strict=True), strict=True):
        layer.keys, layer.values = (torch.cat(kept) for kept in zip(*every, strict=True))
    ids, mask = (torch.cat(part) for part in zip(*parts, strict=True))
    return ids, mask, {word: cache}


def alike(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with in common, not counting the last of any."""
    places = enumerate(zip(*prompts, strict=False))
    return min(next((n for n, tokens in places if len(set(tokens)) > 1), 2**62), min(map(len, prompts)) - 1)


def padded(prompts: Sequence[list[int]], device: torch.device, shared: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids, mask), both (prompts, longest): padding is 0, masked, and comes after the first `shared` tokens."""
    gaps = [[0] * (max(map(len, prompts)) - len(prompt)) for prompt in prompts]
    ids = [prompt[:shared] + gap + prompt[shared:] for prompt, gap in zip(prompts, gaps, strict=True)]
    mask = [[1] * shared + gap + [1] * (len(ids[0]) - shared - len(gap)) for gap in gaps]
    return torch.tensor(ids, device=device, dtype=torch.long), torch.tensor(mask, device=device)


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
def grouped_heads(model: Any) -> Iterator[None]:
    """On a CPU, the heads that share keys and values ask for them together, as one head with several queries: for one
    new token transformers copies keys and values for every head, and torch's kernel takes 18 times as long."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
    ) -> Any:
        (rows, heads, tokens, size), shared = (
            query.shape,
            key.shape[1],
        )  # query, key, value: (rows, heads, tokens, size)
        if tokens > 1 or (mask is not None and mask.shape[1] > 1):
            return sdpa_attention_forward(module, query, key, value, mask, **options)
        mask = None if mask is None else mask.expand(-1, -1, heads // shared, -1)
        grouped = query.reshape(rows, shared, heads // shared, size)
        states = scaled_dot_product_attention(grouped, key, value, mask, scale=options.get("scaling"))
        return states.reshape(rows, 1, heads, states.shape[-1]), None

    usual = model.config._attn_implementation
    if usual != "sdpa" or next(model.parameters()).device.type != "cpu":
        yield
        return
    AttentionInterface.register(GROUPED, attend)
    AttentionMaskInterface.register(GROUPED, AttentionMaskInterface()["sdpa"])
    model.set_attn_implementation(GROUPED)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


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
