"""A patch of a checkpoint: made, written, read; a checkpoint's bytes edited by it, and back.

In: a selection and a checkpoint, or a patch file. Out: `patch.safetensors` with, per tensor, `NAME.indices` (sorted
flat int64), `NAME.old` and `NAME.new` in the checkpoint's dtype, and metadata that ties it to its base; a copy of the
checkpoint in which only the touched bytes differ, proved by what transformers loads; and the way back. A patch
recognises its base by the SHA-256 of each touched tensor with the old values put in place, so base, edited and
half-edited copies are all told apart from other models. Left out: the loaded model (patch.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from spin_llm.errors import SpinError
from spin_llm.files import UNSEALED, check_seal, decoded, seal_safetensors
from spin_llm.models import Checkpoint, LoadedModel, StoredTensor
from spin_llm.models.disk.copying import as_loaded, check_model_output, copy_model, model_files
from spin_llm.models.disk.headers import DTYPES
from spin_llm.outputs import clear_stale, making, writing
from spin_llm.patch.patch import Fingerprint, Patch, PatchInfo, Place, TensorEdit, other_model, same_bits, scaled
from spin_llm.progress import Say
from spin_llm.selection import Selection

FORMAT = "spin-llm patch 1"


def make_patch(model: Checkpoint | LoadedModel, selection: Selection, *, scale: float | None = None) -> Patch:
    """The patch that multiplies the selected weights by `scale` (0 suppresses them, as in the paper; None: as the
    recipe says).

    Entries that would not change (weights that are 0 already) are left out; SpinError when none is left, or when a
    value is NaN or infinite.
    """
    checkpoint = model if isinstance(model, Checkpoint) else model.checkpoint
    scale = selection.recipe.scale if scale is None else scale
    edits, fingerprints = {}, {}
    for name, indices in selection.indices.items():
        stored_as = checkpoint.stored_name(name)
        stored = checkpoint.tensors[stored_as]
        data = stored.read()
        flat = torch.frombuffer(data, dtype=stored.torch_dtype)
        if not indices.numel() or int(indices.min()) < 0 or int(indices.max()) >= flat.numel():
            raise SpinError(f"The selection does not fit the tensor {name} of {checkpoint.folder}.")
        old = flat[indices]
        new = scaled(old, scale)
        changed = ~same_bits(old, new)
        if changed.any():
            edits[stored_as] = TensorEdit(indices[changed], old[changed], new[changed])
            _refuse_no_numbers(edits[stored_as], f"The edit of {stored_as} of {checkpoint.folder}")
            digest = hashlib.sha256(data).hexdigest()
            fingerprints[stored_as] = Fingerprint(stored.shape, stored.dtype, digest)
    if not edits:
        raise SpinError(
            "The edit changes no weight at all.", cause="all selected weights are 0 already, or the scale is 1."
        )
    places = {
        checkpoint.stored_name(name): Place(place.shape, place.layer, place.kind)
        for name, place in selection.places.items()
    }
    info = PatchInfo(
        **{**vars(selection.recipe), "scale": scale},
        base_fingerprint=checkpoint.fingerprint,
        tensors=fingerprints,
        weights=sum(edit.indices.numel() for edit in edits.values()),
        candidates=selection.candidates,
        shared=selection.shared,
        targeted_weights=selection.targeted_weights,
        places=places,
    )
    return Patch(edits, info)


def save_patch(path: str | Path, patch: Patch) -> None:
    """Write the patch; the file appears when it is complete."""
    tensors = {}
    for name, edit in patch.edits.items():
        tensors.update({f"{name}.indices": edit.indices, f"{name}.old": edit.old, f"{name}.new": edit.new})
    metadata = {"format": FORMAT, "patch": json.dumps(asdict(patch.info), sort_keys=True), **UNSEALED}
    with writing(path) as part:
        save_file(tensors, part, metadata=metadata)
        seal_safetensors(part)


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
            info = decoded(header.get("patch", ""), PatchInfo, f"The metadata of {path}")
            names = sorted(f"{name}.{part}" for name in info.tensors for part in ("indices", "new", "old"))
            if sorted(file.keys()) != names or not names:
                raise SpinError(f"{path} is damaged: it does not hold the tensors that it names.")
            edits = {
                name: TensorEdit(*(file.get_tensor(f"{name}.{part}") for part in ("indices", "old", "new")))
                for name in info.tensors
            }
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a shape beyond what torch can hold
        raise SpinError(
            f"{path} is not a readable patch: {error}",
            cause="the file is truncated or damaged.",
            change="copy it again, or make it again with `spin-llm select`.",
        ) from None
    for name, edit in edits.items():
        if not _consistent(edit, info.tensors[name]):
            raise SpinError(f"{path} is damaged: the edit of {name} is inconsistent.")
        if finite:
            _refuse_no_numbers(edit, f"{path}: {name}")
    return Patch(edits, info)


def find_patch(path: str | Path) -> Path:
    """The patch file that is meant by `path`: itself, or the one in a run folder. SpinError when there is none."""
    path = Path(path)
    found = path / "patch.safetensors" if path.is_dir() else path
    if not found.is_file():
        raise SpinError(
            f"There is no patch file {found}.", change="give a patch.safetensors, or a run folder with one."
        )
    return found


def _consistent(edit: TensorEdit, fingerprint: Fingerprint) -> bool:
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


def check_same_shapes(checkpoint: Checkpoint, selection: Selection, scored: str) -> None:
    """SpinError when a matrix of the selection is not in the checkpoint, or has another shape there."""
    for name in selection.indices:
        place = selection.places[name]
        stored = checkpoint.tensors.get(checkpoint.stored_name(name))
        if stored is None or math.prod(stored.shape) != place.size:
            raise SpinError(
                f"{checkpoint.folder} is not of the same shape as {scored}: {name} differs.",
                change="give a model that was fine-tuned from the scored one; or score this model.",
            )


def patch_state(checkpoint: Checkpoint, patch: Patch) -> str:
    """`base`, `edited` or `mixed`: what the checkpoint's touched weights are.

    SpinError when it is neither (another model).
    """
    states = set()
    for name, edit in patch.edits.items():
        stored, expected = checkpoint.tensors.get(name), patch.info.tensors[name]
        if stored is None:
            raise other_model(name, "the checkpoint has no such tensor")
        if (stored.dtype, stored.shape) != (expected.dtype, expected.shape):
            was = f"{expected.dtype} {list(expected.shape)}"
            raise other_model(name, f"it is {stored.dtype} {list(stored.shape)}, not {was}")
        data = stored.read()
        flat = torch.frombuffer(data, dtype=stored.torch_dtype)
        current = flat[edit.indices]
        is_old, is_new = same_bits(current, edit.old), same_bits(current, edit.new)
        if not (is_old | is_new).all():
            raise other_model(name, "weights are neither the patch's old nor its new values")
        states |= ({"base"} if (~is_new).any() else set()) | ({"edited"} if (~is_old).any() else set())
        flat[edit.indices] = edit.old
        if hashlib.sha256(data).hexdigest() != expected.sha256:
            raise other_model(name, "its bytes are not those of the patch's base")
    return "mixed" if len(states) > 1 else states.pop()


def apply_checkpoint(
    checkpoint: Checkpoint,
    patch: Patch,
    output: str | Path,
    *,
    values: str = "new",
    overwrite: bool = False,
    say: Say = lambda message: None,
) -> Path:
    """Copy the model's files to `output` and rewrite only the touched bytes, by the patch's `new` or `old` values;
    every other byte of every file stays.

    What transformers then loads from the copy must be the edit; `output` appears only when that holds. Files beside the
    model's are left out (models/disk/copying.py).
    """
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


# The way back: a copy with the old values, byte for byte the patch's base.
revert_checkpoint = partial(apply_checkpoint, values="old")


def _prove(folder: Path, patch: Patch, values: str) -> None:
    """SpinError when the edit is not what transformers loads from `folder`: the values at the indices by its loader,
    and all the other bytes of the touched tensors by their digests."""
    read = as_loaded(folder)
    for name, edit in patch.edits.items():
        if not same_bits(read(name).flatten()[edit.indices], getattr(edit, values)).all():
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
