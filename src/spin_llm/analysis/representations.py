"""Representations of two concepts: which examples make a pair, and the hidden states of a model for them.

In: (prompt, response) pairs of two concepts, a loaded model. Out: two lists of equal length whose i-th members are a
pair; per layer, the hidden state at the last prompt token and the mean over the
response tokens. Layer 0 is the embedding, layer l the output of decoder layer l; of most models transformers gives the
last one after the final norm. What each pairing can and cannot show is in docs/information.md. Left out: measuring
dependence (dependence.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from spin_llm.data import Example, Pair, plain
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel
from spin_llm.models.losses import length_sorted_batches

PLACES = ("last_prompt", "mean_response")
FRAMINGS = {
    "fairness": "Think about whether this treats every group of people fairly.\n\n{prompt}",
    "privacy": "Think about whether this respects the privacy of every person.\n\n{prompt}",
}


@dataclass(frozen=True)
class Representations:
    """Hidden states of n examples, in their order, float32 on the CPU: `last_prompt` and `mean_response`, each
    (layers + 1, n, d)."""

    last_prompt: torch.Tensor
    mean_response: torch.Tensor


def shuffled_pairs(first: Sequence[Pair], second: Sequence[Pair], *, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """The paper's comparison: the i-th example of one concept with the i-th of the other, each shuffled by `seed` and
    cut to the shorter. These pairs are independent by construction, whatever the model is."""
    draw = random.Random(seed)
    n = min(len(first), len(second))
    return draw.sample(list(first), len(first))[:n], draw.sample(list(second), len(second))[:n]


def framed_pairs(
    pairs: Sequence[Pair], concepts: Sequence[str], *, framings: Mapping[str, str] = FRAMINGS
) -> tuple[list[Pair], list[Pair]]:
    """The same prompt and response under both concepts: each prompt put into the framing of one, and of the other.

    Raises SpinError for a concept without a framing, and for a framing without `{prompt}`.
    """
    for concept in concepts:
        if "{prompt}" not in framings.get(concept, ""):
            raise SpinError(
                f"There is no framing of the concept {concept!r}.",
                cause="only fairness and privacy have one of their own; a framing is a text that holds {prompt}.",
                change="give framings for both concepts.",
            )
    first, second = ([_framed(pair, framings[concept]) for pair in pairs] for concept in concepts)
    return first, second


def _framed(pair: Pair, framing: str) -> Pair:
    """The pair with its prompt in a framing; of a conversation the last turn of the user."""
    if not pair.turns:
        return replace(pair, prompt=framing.replace("{prompt}", pair.prompt))
    last = max(place for place, turn in enumerate(pair.turns) if turn.role == "user")
    said = pair.turns[last]._replace(content=framing.replace("{prompt}", pair.turns[last].content))
    turns = (*pair.turns[:last], said, *pair.turns[last + 1 :])
    return replace(pair, prompt=plain(turns), turns=turns)


def representations(
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    batch_tokens: int = 4096,
    progress: Callable[[int], None] = lambda examples_done: None,
) -> Representations:
    """One forward pass over the decoder, without the head.

    Padded on the right without a mask: in a causal model no real token sees the padding (models/losses.py). Raises
    SpinError when a hidden state is not finite.
    """
    order = sorted(range(len(examples)), key=lambda place: len(examples[place].input_ids), reverse=True)  # as batches
    parts: list[torch.Tensor] = []
    decoder = loaded.model.get_decoder() if hasattr(loaded.model, "get_decoder") else loaded.model
    with torch.inference_mode():
        for batch in length_sorted_batches(examples, batch_tokens):
            ids, last, response = _batch(batch)
            found = decoder(input_ids=ids.to(loaded.device), use_cache=False, output_hidden_states=True).hidden_states
            parts.append(torch.stack([_two_places(states, last, response) for states in found], dim=1))
            progress(len(batch))
    together = torch.cat(parts, dim=2)
    if not together.isfinite().all():
        raise SpinError("A hidden state is not finite.", change="use --dtype float32.")
    ordered = torch.empty_like(together)
    ordered[:, :, order] = together
    return Representations(ordered[0], ordered[1])


def _batch(batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids (b, t), place of the last prompt token (b,), weights (b, t) whose sum over a row is the response's mean)."""
    width = max(len(example.input_ids) for example in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    weights = torch.zeros(len(batch), width)
    last = torch.tensor([len(example.input_ids) - example.response_tokens - 1 for example in batch])
    for row, example in enumerate(batch):
        length = len(example.input_ids)
        ids[row, :length] = torch.tensor(example.input_ids)
        weights[row, length - example.response_tokens : length] = 1 / example.response_tokens
    return ids, last, weights


def _two_places(states: torch.Tensor, last: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(2, b, d) on the CPU: hidden states (b, t, d) at the last prompt token, and averaged over the response."""
    wide = states.float()
    at_last = wide[torch.arange(len(last), device=wide.device), last.to(wide.device)]
    mean = torch.einsum("bt,btd->bd", weights.to(wide.device), wide)
    return torch.stack([at_last, mean]).cpu()
