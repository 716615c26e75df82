"""What a model says of responses: logits, likelihoods and losses of their tokens, batch by batch.

In: a loaded model and encoded examples. Out: logits at response positions only, log-likelihoods in nats, and L(s), the
mean negative log-likelihood in nats per response token. Examples are padded on the right without an attention mask: in
a causal model no real token sees the padding, so a batch gives exactly what single examples give. Left out: gradients
(scores/passes.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel
from spin_llm.models.reft import prompt_lengths

WIDE_BYTES = 2**23  # of float32 logits at a time
SHORT = 256  # tokens


def length_sorted_batches(examples: Sequence[Example], batch_tokens: int) -> Iterator[list[Example]]:
    """Batches of examples of like length, at most `batch_tokens` tokens each with padding (one example at least)."""
    batch: list[Example] = []
    for example in sorted(examples, key=lambda example: len(example.input_ids), reverse=True):
        if batch and len(batch[0].input_ids) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def response_losses(loaded: LoadedModel, batch: Sequence[Example]) -> torch.Tensor:
    """L(s) of each example: mean negative log-likelihood in nats per response token.

    Shape (examples,), float32.
    """
    log_likelihoods, owner = response_log_likelihoods(loaded, batch)
    counts = torch.tensor([example.response_tokens for example in batch], device=owner.device)
    sums = torch.zeros(len(batch), device=owner.device).index_add(0, owner, -log_likelihoods)
    return sums / counts


def response_log_likelihoods(loaded: LoadedModel, batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-likelihood in nats of each response token, index of the example it belongs to), both flat, in example
    order."""
    logits, targets, owner = response_logits(loaded, batch)
    log_likelihoods: torch.Tensor = LogLikelihoods.apply(logits, targets)
    return log_likelihoods, owner


class LogLikelihoods(torch.autograd.Function):
    """log softmax(logits)[target] in nats of each row of `logits` (rows, vocabulary), float32.

    As `-cross_entropy(logits.float(), targets)`, which holds several float32 copies of all logits; here a few rows at a
    time are widened, in a buffer that stays in the cache, and the gradient is written in the logits' own dtype: half
    the time on a CPU, and a third of the memory.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        normalisers = torch.empty(len(logits), 1, device=logits.device)
        at_target = torch.empty_like(normalisers)
        for rows, wide in widened(logits):
            torch.logsumexp(wide, -1, keepdim=True, out=normalisers[rows])
            torch.gather(wide, 1, targets[rows, None], out=at_target[rows])
        ctx.save_for_backward(logits, targets, normalisers)
        return (at_target - normalisers)[:, 0]

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        # d log p(t) / d logit(v) = 1[v = t] - p(v)
        logits, targets, normalisers = ctx.saved_tensors
        scale = upstream[0].float()[:, None]
        gradient = torch.empty_like(logits)
        for rows, wide in widened(logits):
            wide.sub_(normalisers[rows]).exp_().mul_(-scale[rows])
            gradient[rows] = wide.scatter_add_(1, targets[rows, None], scale[rows])
        return gradient, None


def widened(logits: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """(rows, their logits in float32), a few rows at a time, in one buffer that may be overwritten."""
    size = max(1, WIDE_BYTES // (4 * logits.shape[-1]))
    buffer = torch.empty(min(size, len(logits)), logits.shape[-1], device=logits.device)
    for start in range(0, len(logits), size):
        rows = slice(start, min(start + size, len(logits)))
        yield rows, buffer[: rows.stop - rows.start].copy_(logits[rows])


@contextmanager
def fast_attention(loaded: LoadedModel, width: int) -> Iterator[None]:
    """Inside, short sequences in bfloat16 on a CPU are attended to by matrix products.

    torch's fused attention takes 3.5 times as long there, forward and backward, at 80 tokens and 1.8 times at 320
    (measured on Zen 4, torch 2.13); it is the better one in float32, and from some 600 tokens on. The products' memory
    is linear in the tokens of a batch times their length.
    """
    before = loaded.model.config._attn_implementation
    if loaded.device.type != "cpu" or loaded.dtype != torch.bfloat16 or width > SHORT or before != "sdpa":
        yield
        return
    loaded.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        loaded.model.set_attn_implementation(before)


def response_logits(loaded: LoadedModel, batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logits (response tokens, vocabulary), their target tokens, the example each belongs to), over the whole batch.

    The head runs on the positions that predict response tokens only: a hook narrows its input, so that whatever the
    model does to logits afterwards (soft-capping, scaling) still happens.
    """
    width = max(len(example.input_ids) for example in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    predicts = torch.zeros(len(batch), width, dtype=torch.bool)
    targets: list[int] = []
    for row, example in enumerate(batch):
        length, response = len(example.input_ids), example.response_tokens
        ids[row, :length] = torch.tensor(example.input_ids)
        predicts[row, length - response - 1 : length - 1] = True
        targets += example.input_ids[length - response :]
    device = loaded.device
    ids, predicts = ids.to(device), predicts.to(device)
    prompts = [len(example.input_ids) - example.response_tokens for example in batch]
    with head_input_narrowed(loaded.model, predicts), prompt_lengths(loaded.model, prompts):
        logits = loaded.model(input_ids=ids, use_cache=False).logits[0]
    return logits, torch.tensor(targets, device=logits.device), predicts.nonzero()[:, 0]


@contextmanager
def head_input_narrowed(model: Any, positions: torch.Tensor) -> Iterator[None]:
    """Inside, the output head sees the hidden states at `positions` (batch, tokens; bool) only, as one row."""

    def narrow(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0][positions.to(args[0].device)][None], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        handle.remove()


def mean_loss(loaded: LoadedModel, examples: Sequence[Example], *, batch_tokens: int = 4096) -> float:
    """Mean negative log-likelihood over all response tokens of `examples`, in nats per token (its exponential is the
    perplexity)."""
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for batch in length_sorted_batches(examples, batch_tokens):
            log_likelihoods, _ = response_log_likelihoods(loaded, batch)
            total -= float(log_likelihoods.double().sum())
            tokens += log_likelihoods.numel()
    loss = total / tokens
    if not math.isfinite(loss):
        raise SpinError("The loss on the general pairs is not finite.", change="use --dtype float32.")
    return loss
