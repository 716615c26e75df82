"""What scoring is compared with: the paper's released algorithm, and a plain training pass.

In: a loaded model and examples. Out: the released algorithm's sums by matrix name; the plain pass leaves nothing. Both
take one example at a time, compute the logits of all positions, and let autograd write `.grad`, as the released code
does. Left out: its file formats and its selection (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from spin_llm.data import Example
from spin_llm.models import LoadedModel, editable_matrices


def released(
    loaded: LoadedModel, examples: Sequence[Example], layers: Sequence[int] | None = None
) -> dict[str, torch.Tensor]:
    """Sum over examples of |dL/dW|, in the weights' dtype: for each layer, a forward and backward pass over all
    examples with only this layer's MLP weights asking for a gradient; `layers` None takes all."""
    matrices = editable_matrices(loaded.model, "mlp")
    sums: dict[str, torch.Tensor] = {}
    for layer in sorted({matrix.layer for matrix in matrices}) if layers is None else layers:
        here = [matrix for matrix in matrices if matrix.layer == layer]
        with asking([matrix.weight for matrix in here]):
            for matrix in here:
                sums[matrix.name] = torch.zeros_like(matrix.weight)
            for example in examples:
                loss(loaded, example).backward()
                for matrix in here:
                    gradient = matrix.weight.grad
                    assert gradient is not None
                    sums[matrix.name] += gradient.abs()
                    matrix.weight.grad = None
    return sums


def plain(loaded: LoadedModel, examples: Sequence[Example]) -> None:
    """A training pass without its optimiser: every parameter asks for a gradient, one example after the other."""
    parameters = list(loaded.model.parameters())
    with asking(parameters):
        for example in examples:
            loss(loaded, example).backward()
            for parameter in parameters:
                parameter.grad = None


def loss(loaded: LoadedModel, example: Example) -> torch.Tensor:
    """L(s) as transformers forms it: logits of all positions in float32, prompt positions ignored."""
    ids = torch.tensor([example.input_ids], device=loaded.device)
    labels = ids.clone()
    labels[:, : -example.response_tokens] = -100
    value: torch.Tensor = loaded.model(input_ids=ids, labels=labels, use_cache=False).loss
    return value


@contextmanager
def asking(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """Inside, `parameters` ask for a gradient; afterwards they do not, and have none."""
    parameters = list(parameters)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
