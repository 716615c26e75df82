"""The scoring pass: mean over examples of |W * dL/dW| for every targeted matrix, one forward and backward per batch.

In: a loaded model, encoded examples, the targeted matrices. Out: one float32 tensor per matrix, shaped as stored,

    importance I(i, j) = mean over examples s of | W(i, j) * dL(s)/dW(i, j) |                    (paper, section 3.2)

with L(s) the mean negative log-likelihood, in nats per response token, of the response of example s given its prompt.
The absolute value is taken per example: dL(s)/dW = g_s^T x_s, with x_s (tokens, in) the module's input and g_s (tokens,
out) the gradient at its output, is formed for one example at a time inside the backward pass, its absolute value is
added to a float32 accumulator, and it is gone. |W| is multiplied in at the end: it is the same for all examples.

Examples are padded on the right without an attention mask: in a causal model no real token sees the padding, and no
loss reaches it, so a batch gives exactly the per-example statistic. Only response tokens get logits. No parameter gets
a `.grad`. Left out: fused expert tensors, several processes, accumulators larger than memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel, Matrix

BATCH_TOKENS = 1536
Progress = Callable[[int], None]


def importance(
    loaded: LoadedModel,
    examples: Sequence[Example],
    matrices: Sequence[Matrix],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = lambda examples_done: None,
) -> dict[str, torch.Tensor]:
    """Mean over `examples` of |W * dL/dW| for each matrix.

    Returns float32 tensors by parameter name, shaped as the parameter is stored, in nats per response token. The
    model's gradient flags, hooks and train/eval mode are as before afterwards, also after an exception. Raises
    SpinError when an example's loss or a score is not finite, or there is no example.
    """
    if not examples:
        raise SpinError("There is no example to score.")
    sums = {matrix.name: torch.zeros(matrix.weight.shape, device=matrix.weight.device) for matrix in matrices}
    lengths: list[int] = []  # of the batch in flight; the hooks read it

    def add(matrix: Matrix, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        add_absolute_gradients(sums[matrix.name], inputs, gradients, lengths, transposed=matrix.transposed)

    with scoring_mode(loaded.model), ExitStack() as hooks:
        for matrix in matrices:
            hooks.enter_context(gradient_hook(matrix, add))
        for batch in length_sorted_batches(examples, batch_tokens):
            lengths[:] = [len(example.input_ids) for example in batch]
            losses = response_losses(loaded, batch)
            if not torch.isfinite(losses).all():
                bad = batch[int((~torch.isfinite(losses)).nonzero()[0])]
                raise SpinError(
                    f"The loss is not finite on the example {bad.prompt[:80]!r}.",
                    cause="overflow in the compute dtype, or damaged weights.",
                    change="use --dtype float32.",
                )
            losses.sum().backward()
            progress(len(batch))
    with torch.no_grad():
        for matrix in matrices:
            scores = sums[matrix.name].mul_(matrix.weight.float().abs()).div_(len(examples))
            if not torch.isfinite(scores).all():
                raise SpinError(
                    f"The scores of {matrix.name} are not finite.",
                    cause="a gradient that overflows in the compute dtype, or damaged weights.",
                    change="use --dtype float32.",
                )
    return sums


def add_absolute_gradients(
    total: torch.Tensor, inputs: torch.Tensor, gradients: torch.Tensor, lengths: Sequence[int], *, transposed: bool
) -> None:
    """Total += sum over examples s of |g_s^T x_s|, in place.

    `inputs` (examples, tokens, in), `gradients` (examples, tokens, out), `total` float32 (out, in), or (in, out) when
    `transposed`; `lengths` counts the real tokens of each example. One buffer of the compute dtype is reused.
    """
    left, right = (inputs, gradients) if transposed else (gradients, inputs)
    buffer = torch.empty(total.shape, dtype=inputs.dtype, device=total.device)
    for index, length in enumerate(lengths):
        torch.mm(left[index, :length].t(), right[index, :length], out=buffer)
        total.add_(buffer.abs_())


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
    return -nn.functional.cross_entropy(logits.float(), targets, reduction="none"), owner


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
    with head_input_narrowed(loaded.model, predicts):
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


@contextmanager
def gradient_hook(matrix: Matrix, add: Callable[[Matrix, torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    """Inside, each backward pass calls `add(matrix, input, gradient at the output)` for the matrix's module.

    An output that needs no gradient has nothing targeted below it: it becomes the leaf where the backward pass ends.
    """

    def forward(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        if not output.requires_grad:
            output.requires_grad_(True)
        inputs = args[0].detach()
        output.register_hook(lambda gradient: add(matrix, inputs, gradient))

    handle = matrix.module.register_forward_hook(forward)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def scoring_mode(model: Any) -> Iterator[None]:
    """Eval mode, gradients enabled, no parameter asking for one; all as before afterwards."""
    training = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval()
    for parameter in flags:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


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
