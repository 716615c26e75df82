"""A patch: which stored numbers change, from what to what; on a loaded model and on a checkpoint's bytes.

In: a selection and a checkpoint (or a patch file and a model). Out: `patch.safetensors` with, per tensor,
`NAME.indices` (sorted flat int64), `NAME.old` and `NAME.new` in the checkpoint's dtype, and metadata that ties it to
its base; a context manager that edits a loaded model and restores it bit for bit; a copy of a checkpoint in which only
the touched bytes differ, and the way back. A patch recognises its base by the SHA-256 of each touched tensor with the
old values put in place, so base, edited and half-edited copies are all told apart from other models. Left out: how the
weights were chosen (selection/).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from spin_llm.errors import SpinError
from spin_llm.files import UNSEALED, check_seal, clear_stale, decoded, making, seal_safetensors, writing
from spin_llm.models import Checkpoint, StoredTensor
from spin_llm.models.checkpoint import DTYPES
from spin_llm.models.copying import as_loaded, check_model_output, copy_model, model_files
from spin_llm.models.experts import fused_weights
from spin_llm.models.resolve import Say
from spin_llm.selection import Selection

FORMAT = "spin-llm patch 1"
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class TensorEdit:
    """One tensor's edit: flat `indices` (int64, sorted), `old` and `new` values in the checkpoint's dtype."""

    indices: torch.Tensor
    old: torch.Tensor
    new: torch.Tensor


@dataclass(frozen=True)
class Patch:
    """Edits by tensor name as in the checkpoint, and `metadata`: base model, fingerprints of the touched tensors, rule,
    settings."""

    edits: Mapping[str, TensorEdit]
    metadata: Mapping[str, Any]

    @property
    def weights(self) -> int:
        return sum(edit.indices.numel() for edit in self.edits.values())

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """The loaded model with this patch in it; its weights are restored bit for bit on leaving, also after an
        exception.

        The model may be in another dtype than the checkpoint. Raises SpinError when the touched weights are neither the
        patch's old nor its new values (another model, or another edit underneath).
        """
        saved: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        try:
            with torch.no_grad():
                weights = loaded_weights(model)
                for name, edit in self.edits.items():
                    flat = _named(weights, name).data.view(-1)
                    indices = edit.indices.to(flat.device)
                    if int(indices[0]) < 0 or int(indices[-1]) >= flat.numel():
                        raise _other_model(name, "the tensor is smaller")
                    current = flat[indices]
                    old, new = (values.to(flat.device, flat.dtype) for values in (edit.old, edit.new))
                    if not (_same_bits(current, old) | _same_bits(current, new)).all():
                        raise _other_model(name, "weights differ from the patch's base")
                    saved.append((flat, indices, current))
                    flat[indices] = new
            yield model
        finally:
            with torch.no_grad():
                for flat, indices, values in reversed(saved):
                    flat[indices] = values


def make_patch(
    checkpoint: Checkpoint, selection: Selection, *, scale: float = 0.0, about: Mapping[str, Any] | None = None
) -> Patch:
    """The patch that multiplies the selected weights by `scale` (0 suppresses them, as in the paper).

    Entries that would not change (weights that are 0 already) are left out; SpinError when none is left, or when a
    value is NaN or infinite.
    """
    edits, fingerprints = {}, {}
    for name, indices in selection.indices.items():
        stored_as = checkpoint.stored_name(name)
        stored = checkpoint.tensors[stored_as]
        data = stored.read()
        flat = torch.frombuffer(data, dtype=stored.torch_dtype)
        if not indices.numel() or int(indices.min()) < 0 or int(indices.max()) >= flat.numel():
            raise SpinError(f"The selection does not fit the tensor {name} of {checkpoint.folder}.")
        old = flat[indices]
        new = (old.double() * scale).to(old.dtype) if scale else torch.zeros_like(old)
        changed = ~_same_bits(old, new)
        if changed.any():
            edits[stored_as] = TensorEdit(indices[changed], old[changed], new[changed])
            _refuse_no_numbers(edits[stored_as], f"The edit of {stored_as} of {checkpoint.folder}")
            fingerprints[stored_as] = stored.fingerprint(hashlib.sha256(data).hexdigest())
    if not edits:
        raise SpinError(
            "The edit changes no weight at all.", cause="all selected weights are 0 already, or the scale is 1."
        )
    metadata = {
        "base_fingerprint": checkpoint.fingerprint,
        "tensors": fingerprints,
        "rule": selection.rule,
        "ratio": selection.ratio,
        "protect_ratio": selection.protect_ratio,
        "target": selection.target,
        "scale": scale,
        "weights": sum(edit.indices.numel() for edit in edits.values()),
        **(about or {}),
    }
    return Patch(edits, metadata)


def memory_patch(model: Any, selection: Selection, *, scale: float = 0.0) -> Patch:
    """A patch of a loaded model for the moment: without checkpoint and fingerprints, it is not for saving."""
    weights = loaded_weights(model)
    edits = {}
    for name, indices in selection.indices.items():
        flat = _named(weights, name).detach().flatten()
        old = flat[indices.to(flat.device)].cpu()
        new = (old.double() * scale).to(old.dtype) if scale else torch.zeros_like(old)
        edits[name] = TensorEdit(indices, old, new)
    return Patch(edits, {})


def save_patch(path: str | Path, patch: Patch) -> None:
    """Write the patch; the file appears when it is complete."""
    tensors = {}
    for name, edit in patch.edits.items():
        tensors.update({f"{name}.indices": edit.indices, f"{name}.old": edit.old, f"{name}.new": edit.new})
    metadata = {"format": FORMAT, "patch": json.dumps(dict(patch.metadata), sort_keys=True), **UNSEALED}
    with writing(path) as part:
        save_file(tensors, part, metadata=metadata)
        seal_safetensors(part)


@dataclass(frozen=True)
class _Fingerprint:
    """What a patch's metadata says of a tensor of its base."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str


@dataclass(frozen=True)
class _About:
    """What is read from a patch's metadata by name."""

    tensors: dict[str, _Fingerprint]
    rule: str = ""
    ratio: float | None = None
    target: str = ""
    scale: float = 0.0
    ratio_table: tuple[dict[str, Any], ...] = ()


def load_patch(path: str | Path, *, finite: bool = True) -> Patch:
    """Read a patch file, or that of a run folder; SpinError when it is absent, damaged, of another kind, or
    inconsistent.

    Its seal is checked where it has one (patches of version 0.1.0 have none), and always that what it says can be done:
    indices within the tensor, in order, as many values of the tensor's dtype, all of them numbers unless `finite` is
    false.
    """
    path = find_patch(path)
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise SpinError(f"{path} is not a patch of this version (format {header.get('format')!r}).")
            check_seal(path, header, ("format", "patch"))
            about = decoded(header.get("patch", ""), _About, f"The metadata of {path}")
            names = sorted(f"{name}.{part}" for name in about.tensors for part in ("indices", "new", "old"))
            if sorted(file.keys()) != names or not names:
                raise SpinError(f"{path} is damaged: it does not hold the tensors that it names.")
            edits = {
                name: TensorEdit(*(file.get_tensor(f"{name}.{part}") for part in ("indices", "old", "new")))
                for name in about.tensors
            }
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a shape beyond what torch can hold
        raise SpinError(
            f"{path} is not a readable patch: {error}",
            cause="the file is truncated or damaged.",
            change="copy it again, or make it again with `spin-llm select`.",
        ) from None
    for name, edit in edits.items():
        if not _consistent(edit, about.tensors[name]):
            raise SpinError(f"{path} is damaged: the edit of {name} is inconsistent.")
        if finite:
            _refuse_no_numbers(edit, f"{path}: {name}")
    return Patch(edits, json.loads(header["patch"]))


def find_patch(path: str | Path) -> Path:
    """The patch file that is meant by `path`: itself, or the one in a run folder. SpinError when there is none."""
    path = Path(path)
    found = path / "patch.safetensors" if path.is_dir() else path
    if not found.is_file():
        raise SpinError(
            f"There is no patch file {found}.", change="give a patch.safetensors, or a run folder with one."
        )
    return found


def _consistent(edit: TensorEdit, fingerprint: _Fingerprint) -> bool:
    """Sorted unique indices within the tensor, and as many old and new values, in its dtype."""
    indices, size = edit.indices, math.prod(fingerprint.shape)
    typed = indices.dtype == torch.int64 and edit.old.dtype == edit.new.dtype == DTYPES.get(fingerprint.dtype)
    if not typed or indices.ndim != 1 or not indices.numel() or not indices.shape == edit.old.shape == edit.new.shape:
        return False
    within = bool((indices >= 0).all()) and int(indices.max()) < size  # first: differences may wrap around
    return within and bool((indices.diff() > 0).all()) and all(n > 0 for n in fingerprint.shape)


def _refuse_no_numbers(edit: TensorEdit, where: str) -> None:
    if not (edit.old.isfinite().all() and edit.new.isfinite().all()):
        raise SpinError(
            f"{where}: a value is NaN or infinite.",
            cause="a damaged file or checkpoint, or a scale too large for the weights' dtype.",
        )


def patch_state(checkpoint: Checkpoint, patch: Patch) -> str:
    """`base`, `edited` or `mixed`: what the checkpoint's touched weights are.

    SpinError when it is neither (another model).
    """
    states = set()
    for name, edit in patch.edits.items():
        stored = _stored(checkpoint, name, patch)
        data = stored.read()
        flat = torch.frombuffer(data, dtype=stored.torch_dtype)
        current = flat[edit.indices]
        is_old, is_new = _same_bits(current, edit.old), _same_bits(current, edit.new)
        if not (is_old | is_new).all():
            raise _other_model(name, "weights are neither the patch's old nor its new values")
        states |= ({"base"} if (~is_new).any() else set()) | ({"edited"} if (~is_old).any() else set())
        flat[edit.indices] = edit.old
        if hashlib.sha256(data).hexdigest() != patch.metadata["tensors"][name]["sha256"]:
            raise _other_model(name, "its bytes are not those of the patch's base")
    return "mixed" if len(states) > 1 else states.pop()


def apply_checkpoint(
    checkpoint: Checkpoint,
    patch: Patch,
    output: str | Path,
    *,
    overwrite: bool = False,
    say: Say = lambda message: None,
) -> Path:
    """Copy the model's files to `output` and rewrite only the touched bytes; every other byte of every file stays.

    What transformers then loads from the copy must be the edit; `output` appears only when that holds. Files beside the
    model's are left out (models/copying.py).
    """
    return _rewritten_copy(checkpoint, patch, output, "new", overwrite, say)


def revert_checkpoint(
    checkpoint: Checkpoint,
    patch: Patch,
    output: str | Path,
    *,
    overwrite: bool = False,
    say: Say = lambda message: None,
) -> Path:
    """The way back: a copy with the old values, byte for byte the patch's base."""
    return _rewritten_copy(checkpoint, patch, output, "old", overwrite, say)


def _rewritten_copy(
    checkpoint: Checkpoint, patch: Patch, output: str | Path, values: str, overwrite: bool, say: Say
) -> Path:
    files = model_files(checkpoint.folder)
    for message in clear_stale(Path(output).absolute().parent):
        say(message)
    place = check_model_output(output, checkpoint.folder, files, overwrite=overwrite)
    patch_state(checkpoint, patch)
    with making(place) as part:
        copy_model(checkpoint.folder, files, part)
        copied = Checkpoint(part).tensors
        for name, edit in patch.edits.items():
            _rewrite(copied[name], edit.indices, getattr(edit, values))
        _prove(part, patch, values)
    return Path(output)


def _prove(folder: Path, patch: Patch, values: str) -> None:
    """SpinError when the edit is not what transformers loads from `folder`: the values at the indices by its loader,
    and all the other bytes of the touched tensors by their digests."""
    read = as_loaded(folder)
    for name, edit in patch.edits.items():
        if not _same_bits(read(name).flatten()[edit.indices], getattr(edit, values)).all():
            raise SpinError(
                f"transformers does not load the written values of {name}.",
                cause="it reads other files of this folder, or the disk does not keep what is written.",
            )
    state = patch_state(Checkpoint(folder), patch)
    assert state == {"new": "edited", "old": "base"}[values], state


def _rewrite(stored: StoredTensor, indices: torch.Tensor, values: torch.Tensor) -> None:
    width = values.element_size()
    raw = values.view(torch.uint8).numpy().tobytes()
    with stored.file.open("r+b") as file:
        for position, index in enumerate(indices.tolist()):
            file.seek(stored.start + index * width)
            file.write(raw[position * width : (position + 1) * width])


def _stored(checkpoint: Checkpoint, name: str, patch: Patch) -> StoredTensor:
    stored = checkpoint.tensors.get(name)
    if stored is None:
        raise _other_model(name, "the checkpoint has no such tensor")
    expected = patch.metadata["tensors"][name]
    if [stored.dtype, list(stored.shape)] != [expected["dtype"], expected["shape"]]:
        raise _other_model(
            name, f"it is {stored.dtype} {list(stored.shape)}, not {expected['dtype']} {expected['shape']}"
        )
    return stored


def loaded_parameter(model: Any, name: str) -> torch.Tensor:
    """The loaded model's parameter for a checkpoint's tensor name (base-model prefixes may differ), or the part of a
    parameter in which experts are fused: a view."""
    return _named(loaded_weights(model), name)


def loaded_weights(model: Any) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **fused_weights(model)}


def _named(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    if name in weights:
        return weights[name]
    matches = [key for key in weights if key.endswith("." + name) or name.endswith("." + key)]
    if len(matches) != 1:
        raise _other_model(name, "the model has no such parameter")
    return weights[matches[0]]


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    bits = BITS[left.element_size()]
    return left.view(bits) == right.view(bits)


def _other_model(name: str, what: str) -> SpinError:
    return SpinError(
        f"The patch does not fit this model: {name}: {what}.",
        cause="it was made for another model, another version or another dtype of it.",
        change="apply it to the model that its metadata name, or score this model.",
    )
