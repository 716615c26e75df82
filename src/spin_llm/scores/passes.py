"""The scoring pass: every targeted matrix's statistics in one forward and backward pass per batch of examples.

In: a loaded model, encoded examples, the targeted matrices. Out: float32 sums over examples, per matrix. The paper's is

    importance I(i, j) = mean over examples s of | W(i, j) * dL(s)/dW(i, j) |                    (paper, section 3.2)

with L(s) the mean negative log-likelihood, in nats per response token, of the response of example s given its prompt.
The absolute value is taken per example: dL(s)/dW = g_s^T x_s, with x_s (tokens, in) the module's input and g_s (tokens,
out) the gradient at its output, is formed for one example at a time inside the backward pass, added to the accumulators
(accumulate.py), and it is gone. No parameter gets a `.grad`; nothing below the lowest targeted module gets a gradient.
Examples share a batch, unless experts are targeted: an expert's input does not say whose tokens were routed to it.
Left out: which matrices go into one pass (plan.py), several passes, resuming and several processes (concept.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel, Matrix
from spin_llm.models.losses import fast_attention, length_sorted_batches, response_losses
from spin_llm.models.structure import eager_experts
from spin_llm.scores.accumulate import Accumulate, Totals, accumulation
from spin_llm.scores.importance import Counts, add_inputs, finish, new_totals

BATCH_TOKENS = 1536
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Batch:
    """Examples that go through the model together: all with aware, or all with unaware responses; `share` is the weight
    of one of them in a signed mean."""

    examples: tuple[Example, ...]
    aware: bool
    share: float

    @property
    def tokens(self) -> int:
        """With padding."""
        return len(self.examples) * max(len(example.input_ids) for example in self.examples)


def make_batches(
    aware: Sequence[Example],
    unaware: Sequence[Example] = (),
    *,
    matrices: Sequence[Matrix] = (),
    batch_tokens: int = BATCH_TOKENS,
) -> list[Batch]:
    """All batches of a concept, in the order in which their sums are formed; a function of the examples, and of whether
    experts are among the `matrices` to score: then each example is a batch."""
    batch_tokens = 1 if any(matrix.routed for matrix in matrices) else batch_tokens
    groups = ((aware, True, 1 / max(len(aware), 1)), (unaware, False, -1 / max(len(unaware), 1)))
    return [
        Batch(tuple(batch), is_aware, share)
        for examples, is_aware, share in groups
        for batch in length_sorted_batches(examples, batch_tokens)
    ]


@contextmanager
def scoring(
    loaded: LoadedModel,
    matrices: Sequence[Matrix],
    totals: Mapping[str, Totals],
    accumulate: Accumulate | None = None,
) -> Iterator[Callable[[Batch], None]]:
    """Give a function that adds one batch to `totals` (by matrix name), by `accumulate` or the fastest way that there
    is; see `backward_passes`."""

    accumulate = accumulate or accumulation(loaded.device, loaded.dtype)

    def add(matrix: Matrix, batch: Batch, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        add_batch(totals[matrix.name], batch, inputs, gradients, transposed=matrix.transposed, accumulate=accumulate)

    with backward_passes(loaded, matrices, add) as run:
        yield run


@contextmanager
def backward_passes(
    loaded: LoadedModel, matrices: Sequence[Matrix], look: Callable[[Matrix, Batch, torch.Tensor, torch.Tensor], None]
) -> Iterator[Callable[[Batch], None]]:
    """Give a function that takes one batch forwards and backwards, in which each matrix that the batch reaches is shown
    to `look(matrix, batch, input, gradient at the output)`.

    On leaving, also after an exception, the model's hooks, gradient flags and train/eval mode are as before. The
    function raises SpinError, naming the example, when a loss is not finite.
    """
    current: list[Batch] = []

    def add(matrix: Matrix, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        look(matrix, current[0], inputs, gradients)

    def run(batch: Batch) -> None:
        current[:] = [batch]
        experts.unseen = set(experts.parameters)
        with fast_attention(loaded, batch.tokens // len(batch.examples)):
            losses = response_losses(loaded, batch.examples)
        if experts.unseen:
            raise SpinError(
                f"The experts of {type(loaded.model).__name__} cannot be scored.",
                cause="their forward pass is not one linear map per expert.",
                change="score --target attention, or another model.",
            )
        if not torch.isfinite(losses).all():
            bad = batch.examples[int((~torch.isfinite(losses)).nonzero()[0])]
            raise SpinError(
                f"The loss is not finite on the example {bad.prompt[:80]!r}.",
                cause="overflow in the compute dtype, or damaged weights.",
                change="use --dtype float32.",
            )
        if losses.requires_grad:  # not when the batch reached none of the matrices: experts
            losses.sum().backward()

    experts = FusedExperts([matrix for matrix in matrices if matrix.part], add)
    with scoring_mode(loaded.model), ExitStack() as hooks:
        for matrix in matrices:
            if matrix.part is None:
                hooks.enter_context(gradient_hook(matrix, add))
        if experts.parameters:
            hooks.enter_context(eager_experts(loaded.model))
            hooks.enter_context(experts)
        yield run


def add_batch(
    totals: Totals,
    batch: Batch,
    inputs: torch.Tensor,
    gradients: torch.Tensor,
    *,
    transposed: bool,
    accumulate: Accumulate,
) -> None:
    """Add what each example's gradient g_s^T x_s gives to the accumulators of one matrix; unaware examples enter
    `signed` alone.

    `inputs` (examples, tokens, in) and `gradients` (examples, tokens, out), or both flattened over the first two axes;
    of a single example any number of rows, as an expert gets them.
    """
    left, right = factors(batch, inputs, gradients, transposed=transposed)
    tokens = [len(e.input_ids) for e in batch.examples] if len(batch.examples) > 1 else [left.shape[1]]
    summed = {kind: totals[kind] for kind in totals if kind == "signed" or (batch.aware and kind != "inputs")}
    if summed:
        accumulate(summed, left, right, tokens, batch.share)
    if batch.aware and "inputs" in totals:
        for rows, length in zip(left if transposed else right, tokens, strict=True):
            add_inputs(totals, rows[:length])


def factors(
    batch: Batch, inputs: torch.Tensor, gradients: torch.Tensor, *, transposed: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(left, right) of which left[s]^T right[s] is example s's gradient as the matrix is stored: (examples, tokens,
    rows) and (examples, tokens, columns)."""
    rows = len(batch.examples)
    assert rows == 1 or inputs.shape[:-1].numel() == batch.tokens, "routed tokens of several examples"
    inputs, gradients = (side.reshape(rows, -1, side.shape[-1]) for side in (inputs, gradients))
    return (inputs, gradients) if transposed else (gradients, inputs)


Add = Callable[[Matrix, torch.Tensor, torch.Tensor], None]


@contextmanager
def gradient_hook(matrix: Matrix, add: Add) -> Iterator[None]:
    """Inside, each backward pass calls `add(matrix, input, gradient at the output)` for the matrix's module."""

    def forward(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        inputs = args[0].detach()
        watch(output, lambda gradient: add(matrix, inputs, gradient))

    handle = matrix.module.register_forward_hook(forward)
    try:
        yield
    finally:
        handle.remove()


class FusedExperts(TorchFunctionMode):
    """Inside, each backward pass calls `add(matrix, input, gradient at the output)` for matrices that are part of a
    fused parameter, where their expert saw a token.

    Eager experts multiply with a view of the parameter, known by its place in memory; what is fused in one view shares
    the hook at its output. `unseen` keeps those of the fused `parameters` (addresses) that no forward pass used.
    """

    def __init__(self, matrices: Sequence[Matrix], add: Add) -> None:
        super().__init__()
        self.add = add
        self.experts: dict[tuple[int, int], list[Matrix]] = {}
        for matrix in matrices:
            self.experts.setdefault(_place(matrix.factor), []).append(matrix)
        self.parameters = {storage for storage, _ in self.experts}
        self.unseen: set[int] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if function is nn.functional.linear:
            self._linear(output, *args, **(kwargs or {}))
        return output

    def _linear(self, output: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> None:
        place = _place(weight)
        self.unseen.discard(place[0])
        if matrices := self.experts.get(place):
            inputs = input.detach()
            watch(output, lambda gradient: self._add(matrices, inputs, gradient))

    def _add(self, matrices: Sequence[Matrix], inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        for matrix in matrices:
            assert matrix.part is not None
            self.add(matrix, inputs, gradients[..., matrix.part.start : matrix.part.stop])


def _place(weight: torch.Tensor) -> tuple[int, int]:
    """(address of the storage, offset in it)."""
    return weight.untyped_storage().data_ptr(), int(weight.storage_offset())


def watch(output: torch.Tensor, add: Callable[[torch.Tensor], None]) -> None:
    """Call `add` with the gradient at `output` in the backward pass.

    An output that needs no gradient has nothing targeted below it: it becomes the leaf where the backward pass ends.
    """
    if torch.is_grad_enabled():
        if not output.requires_grad:
            output.requires_grad_(True)
        output.register_hook(add)


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


def importance(
    loaded: LoadedModel,
    examples: Sequence[Example],
    matrices: Sequence[Matrix],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = lambda examples_done: None,
) -> dict[str, torch.Tensor]:
    """Mean over `examples` of |W * dL/dW| for each matrix, all at once.

    Returns float32 tensors by parameter name, shaped as the parameter is stored, in nats per response token. Raises
    SpinError when an example's loss or a score is not finite, or there is no example.
    """
    if not examples:
        raise SpinError("There is no example to score.")
    totals = {m.name: new_totals(("absolute",), m.weight, transposed=m.transposed) for m in matrices}
    with scoring(loaded, matrices, totals) as add:
        for batch in make_batches(examples, matrices=matrices, batch_tokens=batch_tokens):
            add(batch)
            progress(len(batch.examples))
    counts = Counts(len(examples), 0, 0, 0)
    return {m.name: dense_scores(("taylor",), m, totals.pop(m.name), counts)["taylor"] for m in matrices}


def dense_scores(names: Sequence[str], matrix: Matrix, totals: Totals, counts: Counts) -> Mapping[str, torch.Tensor]:
    """The finished statistics of one matrix; SpinError when one is not finite.

    `totals` is used up.
    """
    scores = finish(names, matrix.weight, totals, counts, matrix.name)
    for statistic, values in scores.items():
        if not torch.isfinite(values).all():
            raise SpinError(
                f"The {statistic} scores of {matrix.name} are not finite.",
                cause="a gradient that overflows in the compute dtype, or damaged weights.",
                change="use --dtype float32.",
            )
    return scores
