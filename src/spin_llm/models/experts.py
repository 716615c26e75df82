"""Experts that transformers fuses in one 3-D parameter, taken apart into the checkpoint's matrices again.

In: a loaded mixture-of-experts model. Out: which rows of which expert of a fused parameter (experts, rows, in) are
which tensor of the checkpoint: `model.layers.0.mlp.experts.3.up_proj.weight` is the lower half of expert 3 of
`gate_up_proj` in Qwen3-MoE, for instance. Left out: experts as linear modules, which structure.py finds like any other;
parameters stored (experts, in, rows) and experts that are fused in the checkpoint too (GPT-OSS, Llama 4), which cannot
be edited.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` of one expert of a module's fused parameter: one matrix of the checkpoint."""

    parameter: str
    expert: int
    start: int
    stop: int


def fused_parts(model: Any, path: str, module: nn.Module) -> Iterator[tuple[str, Part]]:
    """(name in the checkpoint, part) of each matrix fused in the parameters of `module`, which the model has at `path`.

    Nothing for modules whose eager forward pass is not known to be one linear map per expert.
    """
    if getattr(module, "is_transposed", None) is not False:  # what transformers' use_experts_implementation sets
        return
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.ndim == 3 and parameter.is_floating_point():
            for stored_name, place in _stored_places(model, f"{path}.{name}", parameter):
                yield stored_name, Part(name, *place)


def fused_weights(model: Any) -> dict[str, torch.Tensor]:
    """Every matrix fused in the model's parameters by its name in the checkpoint: views of the parameters."""
    return {
        name: getattr(module, part.parameter)[part.expert, part.start : part.stop]
        for path, module in model.named_modules()
        for name, part in fused_parts(model, path, module)
    }


def _stored_places(model: Any, name: str, parameter: torch.Tensor) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """(name, (expert, first row, row after the last)) of each tensor as which transformers would save a parameter.

    What it would do to the weights is read off numbers put in their place, two columns of them, so that a transposed or
    divided row is noticed; a tensor that is not some whole rows of one expert is left out.
    """
    from transformers.core_model_loading import revert_weight_conversion

    experts, rows = parameter.shape[:2]
    numbers = torch.arange(experts * rows * 2).view(experts, rows, 2)
    for stored_name, stored in revert_weight_conversion(model, {name: numbers}).items():
        expert, start = divmod(int(stored.flatten()[0]) // 2, rows)
        stop = start + len(stored)
        if torch.equal(stored, numbers[expert, start:stop]):
            yield stored_name, (expert, start, stop)


@contextmanager
def eager_experts(model: Any) -> Iterator[None]:
    """Inside, experts are computed one after the other, each by linear maps with its slice of the fused parameters."""
    before = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)
