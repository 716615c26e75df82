"""Greedy answers of a loaded model, in batches that are fixed before the first one runs.

In: a loaded model, questions, how many new tokens. Out: one answer per question, handed over batch by batch. The
batches depend on the questions alone, so a run that was killed continues with the same batches and ends with the same
answers. Left out: sampling, and models behind a URL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from spin_llm.data import render_prompt
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel

NEW_TOKENS = 64
BATCH_TOKENS = 12_288
BATCH_PROMPTS = 96


@dataclass(frozen=True)
class Answer:
    """`index` of the question, the decoded `text`, its length in `tokens`, and whether the model ended it itself
    (`finished`)."""

    index: int
    text: str
    tokens: int
    finished: bool


def plan_batches(lengths: Sequence[int], new_tokens: int) -> list[list[int]]:
    """Indices of the prompts in batches of like length, at most BATCH_TOKENS tokens each with padding and answers."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        room = BATCH_TOKENS // (lengths[index] + new_tokens)
        if not batches or len(batches[-1]) + 1 > max(1, min(room, BATCH_PROMPTS)):
            batches.append([])
        batches[-1].append(index)
    return batches


def generate(
    loaded: LoadedModel,
    prompts: Sequence[str],
    *,
    template: str,
    new_tokens: int = NEW_TOKENS,
    skip: frozenset[int] = frozenset(),
) -> Iterator[list[Answer]]:
    """Greedy continuations of `prompts`, one list per batch.

    Batches whose prompts are all in `skip` are not run.
    """
    if not prompts:
        raise SpinError("There is no question to answer.")
    encoded = [render_prompt(loaded.tokenizer, prompt, template) for prompt in prompts]
    longest = max(map(len, encoded))
    if longest + new_tokens > loaded.context:
        raise SpinError(
            f"A prompt of {longest} tokens and {new_tokens} new ones exceed the context of {loaded.context} tokens.",
            change="leave out long prompts, or lower --new-tokens.",
        )
    ends = end_tokens(loaded)
    for batch in plan_batches([len(ids) for ids in encoded], new_tokens):
        if not skip.issuperset(batch):
            rows = _generate_batch(loaded.model, [encoded[index] for index in batch], new_tokens, ends, loaded.device)
            yield [_answer(loaded, index, row, ends) for index, row in zip(batch, rows, strict=True)]


def end_tokens(loaded: LoadedModel) -> list[int]:
    """The token ids that end an answer: the generation config's, else the tokenizer's."""
    ends = loaded.model.generation_config.eos_token_id
    ends = ends if ends is not None else loaded.tokenizer.eos_token_id
    return [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [int(ends)]


def _generate_batch(
    model: Any, prompts: list[list[int]], new_tokens: int, ends: list[int], device: torch.device
) -> list[list[int]]:
    from transformers import GenerationConfig

    width = max(map(len, prompts))
    pad = ends[0] if ends else 0
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, pad_token_id=pad, eos_token_id=ends or None, use_cache=True
    )
    with torch.inference_mode(), plain_generation(model):
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)
    rows: list[list[int]] = output[:, width:].tolist()
    return rows


@contextmanager
def plain_generation(model: Any) -> Iterator[None]:
    """Without the checkpoint's own sampling settings (temperature, repetition penalty), which `generate` would mix in.

    The head gets a contiguous input: for the slice that `generate` takes of the prompts' last position, torch would
    multiply by a copy of the whole head for each prompt, which is half of the time of a batch of 96 on a CPU.
    """
    from transformers import GenerationConfig

    def contiguous(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0].contiguous(), *args[1:])

    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    hook = model.get_output_embeddings().register_forward_pre_hook(contiguous)
    try:
        yield
    finally:
        hook.remove()
        model.generation_config = own


def _answer(loaded: LoadedModel, index: int, row: list[int], ends: list[int]) -> Answer:
    stop = next((position for position, token in enumerate(row) if token in ends), None)
    tokens = row if stop is None else row[:stop]
    text = loaded.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return Answer(index, text, len(tokens), stop is not None)
