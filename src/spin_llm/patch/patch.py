"""A patch: which stored numbers change, from what to what; on a loaded model and off again.

In: edits of tensors by name (flat indices, old and new values), a loaded model. Out: a context manager that edits the
model and restores it bit for bit. Left out: how the weights were chosen (selection/), files and checkpoints
(file.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel
from spin_llm.models.structure import fused_weights
from spin_llm.results.edited import RatioTried, Recipe
from spin_llm.results.measured import Count, Layer
from spin_llm.selection import Selection

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

    Values = Float[torch.Tensor, " weights"]

Model = TypeVar("Model")
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class TensorEdit:
    """One tensor's edit: flat `indices` (sorted), `old` and `new` values in the checkpoint's dtype."""

    indices: Int64[torch.Tensor, " weights"]
    old: Values
    new: Values


@dataclass(frozen=True)
class Fingerprint:
    """A tensor of the base, and the digest of its stored bytes."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str


@dataclass(frozen=True)
class Place:
    """Where a targeted matrix is."""

    shape: tuple[Count, Count]
    layer: Layer
    kind: str


@dataclass(frozen=True)
class PatchInfo(Recipe):
    """The recipe, what was made by it and of what: a patch file's metadata. `tensors` are the touched ones, `places`
    all that were targeted; `weights` change, of so many `targeted_weights`."""

    base_fingerprint: str = ""
    tensors: Mapping[str, Fingerprint] = field(default_factory=dict)
    weights: Count = 0
    base_model: str | None = None
    data_sha256: Mapping[str, str | None] = field(default_factory=dict)
    candidates: Count | None = None
    shared: Count | None = None
    targeted_weights: Count | None = None
    ratio_table: tuple[RatioTried, ...] = ()
    searched: bool = False
    places: Mapping[str, Place] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return Recipe(**{part.name: getattr(self, part.name) for part in fields(Recipe)})


@dataclass(frozen=True)
class Patch:
    """Edits by tensor name as in the checkpoint, and what is known of them."""

    edits: Mapping[str, TensorEdit]
    info: PatchInfo

    @property
    def weights(self) -> int:
        return sum(edit.indices.numel() for edit in self.edits.values())

    @contextmanager
    def applied(self, model: Model) -> Iterator[Model]:
        """The model (a `LoadedModel`, or transformers' own) with this patch in it; its weights are restored bit for bit
        on leaving, also after an exception.

        The model may be in another dtype than the checkpoint. Raises SpinError when the touched weights are neither the
        patch's old nor its new values (another model, or another edit underneath).
        """
        saved: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        try:
            with torch.no_grad():
                weights = loaded_weights(model)
                for name, edit in self.edits.items():
                    flat = named_weight(weights, name).data.view(-1)
                    indices = edit.indices.to(flat.device)
                    if int(indices[0]) < 0 or int(indices[-1]) >= flat.numel():
                        raise other_model(name, "the tensor is smaller")
                    current = flat[indices]
                    old, new = (values.to(flat.device, flat.dtype) for values in (edit.old, edit.new))
                    if not (same_bits(current, old) | same_bits(current, new)).all():
                        raise other_model(name, "weights differ from the patch's base")
                    saved.append((flat, indices, current))
                    flat[indices] = new
            yield model
        finally:
            with torch.no_grad():
                for flat, indices, values in reversed(saved):
                    flat[indices] = values


def memory_patch(model: object, selection: Selection, *, scale: float | None = None) -> Patch:
    """A patch of a loaded model for the moment: without checkpoint and fingerprints, it is not for saving. `scale` None
    is the recipe's."""
    scale = selection.recipe.scale if scale is None else scale
    weights = loaded_weights(model)
    edits = {}
    for name, indices in selection.indices.items():
        flat = named_weight(weights, name).detach().flatten()
        old = flat[indices.to(flat.device)].cpu()
        edits[name] = TensorEdit(indices, old, scaled(old, scale))
    return Patch(edits, PatchInfo(**vars(selection.recipe)))


def scaled(values: Values, scale: float) -> Values:
    """The values times `scale`, in their dtype; a plain 0 for 0, whatever the sign was."""
    return (values.double() * scale).to(values.dtype) if scale else torch.zeros_like(values)


def loaded_weights(model: Any) -> dict[str, torch.Tensor]:
    """The parameters of a model by name, and the parts of those in which experts are fused: views."""
    model = model.model if isinstance(model, LoadedModel) else model
    return {**dict(model.named_parameters()), **fused_weights(model)}


def named_weight(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The one that a checkpoint's tensor name means: base-model prefixes may differ."""
    if name in weights:
        return weights[name]
    matches = [key for key in weights if key.endswith("." + name) or name.endswith("." + key)]
    if len(matches) != 1:
        raise other_model(name, "the model has no such parameter")
    return weights[matches[0]]


def same_bits(left: Values, right: Values) -> Bool[torch.Tensor, " weights"]:
    bits = BITS[left.element_size()]
    return left.view(bits) == right.view(bits)


def other_model(name: str, what: str) -> SpinError:
    return SpinError(
        f"The patch does not fit this model: {name}: {what}.",
        cause="it was made for another model, another version or another dtype of it.",
        change="apply it to the model that its metadata name, or score this model.",
    )
