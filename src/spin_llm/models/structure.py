"""Which weight matrices of a model can be edited, found by structure.

In: a transformers causal language model. Out: for each editable linear module, and for each expert's matrix in a fused
parameter, its name, layer, kind (`attention` or `mlp`) and storage layout. The decoder stack is the module list that
repeats the largest number of parameters; every linear module inside is classified by the modules it sits in.
Embeddings, heads and routers are left alone, and so are linear modules that are neither attention nor MLP by their
place (convolutions, per-layer inputs, state-space blocks): `unknown_modules` names them. Experts that transformers
fuses in one 3-D parameter (experts, rows, in) are taken apart into the checkpoint's matrices again:
`model.layers.0.mlp.experts.3.up_proj.weight` is the lower half of expert 3 of `gate_up_proj` in Qwen3-MoE, for
instance. Left out: norms and biases; parameters stored (experts, in, rows) and experts that are fused in the checkpoint
too (GPT-OSS, Llama 4), which cannot be edited and count against the printed coverage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spin_llm.errors import SpinError

TARGETS = ("mlp", "attention", "all")
ROUTER_WORDS = ("router", "shared_expert_gate")
KINDS = {  # by words in the name or the class of a module, in the order in which they count
    "attention": ("attention", "attn"),
    "mlp": ("mlp", "feedforward", "feed_forward", "ffn", "ff", "fc1", "fc2", "expert", "moe"),
    "router": ROUTER_WORDS,
}


@dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` of one expert of a module's fused parameter: one matrix of the checkpoint."""

    parameter: str
    expert: int
    start: int
    stop: int


@dataclass(frozen=True)
class Matrix:
    """One editable weight matrix: `name` in the checkpoint, the `module`, decoder `layer`, `kind`, whether it is stored
    (in, out), whether its input is an expert's share of the tokens, and which `part` of a fused parameter it is."""

    name: str
    module: nn.Module
    layer: int
    kind: str
    transposed: bool
    routed: bool = False
    part: Part | None = None

    @property
    def weight(self) -> torch.Tensor:
        """As stored, a view: (out, in), or (in, out) when `transposed` (GPT-2's Conv1D)."""
        return self.factor if self.part is None else self.factor[self.part.start : self.part.stop]

    @property
    def factor(self) -> torch.Tensor:
        """What the forward pass multiplies with: the weight, or all rows of its expert in a fused parameter."""
        part = self.part
        weight = self.module.weight if part is None else getattr(self.module, part.parameter)[part.expert]
        assert isinstance(weight, torch.Tensor)
        return weight


def editable_matrices(model: Any, target: str = "mlp") -> list[Matrix]:
    """The targeted matrices, in layer order. Raises SpinError for an unknown target, or a model that has no such
    matrix."""
    if target not in TARGETS:
        raise SpinError(f"Unknown target {target!r}.", change=f"--target takes one of {', '.join(TARGETS)}.")
    matrices = [matrix for matrix in _all_matrices(model) if target in ("all", matrix.kind)]
    if not matrices:
        what = f"{type(model).__name__} has no {target} matrix that can be edited."
        cause, change = "experts fused in a form that this version does not take apart.", ""
        if unknown := unknown_modules(model):
            what = f"{what} {unknown_text(unknown)}"
            cause = "a layout that this version does not know (a state-space or recurrent block, for instance)."
            change = "report the architecture; nothing was edited."
        if other := min((matrix.kind for matrix in _all_matrices(model)), default=""):
            change = f"give --target {other}: its {other} matrices can be edited."
        raise SpinError(what, cause=cause, change=change)
    return matrices


def unknown_modules(model: Any) -> list[str]:
    """The linear modules of the decoder that are neither attention, MLP nor router by their place."""
    prefix, layers = decoder_layers(model)
    heads = _heads(model)
    return [
        f"{prefix}.{index}.{path}"
        for index, layer in enumerate(layers)
        for path, module in layer.named_modules()
        if _is_linear(module) and id(module) not in heads and _kind(layer, path) == "unknown"
    ]


def unknown_text(unknown: list[str]) -> str:
    """One sentence on such modules, by their names without the layer."""
    kinds = list(dict.fromkeys(re.sub(r"^.*?\.\d+\.", "", name) for name in unknown))
    shown = ", ".join(kinds[:4]) + (", ..." if len(kinds) > 4 else "")
    return f"{len(unknown)} linear modules are neither attention nor MLP by their place and are left alone: {shown}."


def _heads(model: Any) -> set[int]:
    return {id(head) for head in (model.get_input_embeddings(), model.get_output_embeddings()) if head is not None}


def mlp_coverage(model: Any) -> float:
    """Fraction of the decoder's MLP weights (matrices and fused expert tensors, routers and biases aside) that can be
    edited."""
    total = 0
    for layer in decoder_layers(model)[1]:
        for path, parameter in layer.named_parameters():
            module, _, name = path.rpartition(".")
            if parameter.ndim >= 2 and "bias" not in name and _kind(layer, module) == "mlp":
                total += parameter.numel()
    covered = sum(matrix.weight.numel() for matrix in _all_matrices(model) if matrix.kind == "mlp")
    return covered / total if total else 0.0


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """(name, module list) of the decoder stack: among lists of equal-class blocks, the one with most matrix weights."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module)]
    stacks = [module for module in lists if not any(_is_linear(child) for child in module)]
    if not stacks:
        seen = ", ".join(f"{name}: {type(child).__name__}" for name, child in model.named_children())
        raise SpinError(
            f"No stack of decoder layers was found in {type(model).__name__} (it holds {seen}).",
            cause="an architecture without a list of repeated blocks.",
        )
    best = max(stacks, key=lambda stack: sum(p.numel() for p in stack.parameters() if p.ndim >= 2))
    return next(name for name, module in model.named_modules() if module is best), best


def _all_matrices(model: Any) -> Iterator[Matrix]:
    prefix, layers = decoder_layers(model)
    heads = _heads(model)
    for index, layer in enumerate(layers):
        for path, module in layer.named_modules():
            for name, part in fused_parts(model, f"{prefix}.{index}.{path}", module):
                yield Matrix(name, module, index, _kind(layer, path), False, True, part)
            if not _is_linear(module) or id(module) in heads:
                continue
            kind = _kind(layer, path)
            if kind in ("attention", "mlp"):
                transposed = type(module).__name__ == "Conv1D"
                routed = _is_repeated(layer, path)
                yield Matrix(f"{prefix}.{index}.{path}.weight", module, index, kind, transposed, routed)


def _is_linear(module: nn.Module) -> bool:
    """Plain linear maps with a floating-point 2-D weight: nn.Linear and its subclasses, and GPT-2's Conv1D."""
    linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    return linear and isinstance(module.weight, torch.Tensor) and module.weight.is_floating_point()


def _is_repeated(layer: nn.Module, path: str) -> bool:
    """Whether a module sits in a list inside the layer, as experts do."""
    parts = path.split(".")
    ancestors = (layer.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts)))
    return any(isinstance(module, nn.ModuleList | nn.ModuleDict) for module in ancestors)


def _kind(layer: nn.Module, path: str) -> str:
    """`attention`, `mlp`, `router` or `unknown`, from the names and classes on the way from the layer down to the
    module. The outermost word decides: an `mlp` inside `self_attn` would be attention's. A module called just `gate`
    beside experts is a router."""
    parent = module = layer
    names: list[str] = []
    for part in path.split("."):
        parent, module = module, getattr(module, part)
        names.append(f"{part} {type(module).__name__}".lower())
    last = path.rpartition(".")[2]
    if last in ROUTER_WORDS or "router" in names[-1].split()[1] or (last == "gate" and hasattr(parent, "experts")):
        return "router"
    kinds = (kind for name in names for kind, words in KINDS.items() if any(word in name for word in words))
    return next(kinds, "unknown")


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
