"""A checkpoint's bytes edited, and back.

In: a patch and a checkpoint. Out: a copy in which only the touched bytes differ, proved by what transformers loads; and
the way back. A patch recognises its base by the SHA-256 of each touched tensor with the old values put in place, so
base, edited and half-edited copies are all told apart from other models. Left out: loaded models (patch.py).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from spin_llm.errors import SpinError
from spin_llm.models import Checkpoint, StoredTensor
from spin_llm.models.disk.copying import as_loaded, check_model_output, copy_model, model_files
from spin_llm.outputs import clear_stale, making
from spin_llm.patch.patch import Patch, other_model, same_bits
from spin_llm.progress import Say


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
        is_old, is_new = same_bits(current, edit.old), same_bits(current, edit.new)
        if not (is_old | is_new).all():
            raise other_model(name, "weights are neither the patch's old nor its new values")
        states |= ({"base"} if (~is_new).any() else set()) | ({"edited"} if (~is_old).any() else set())
        flat[edit.indices] = edit.old
        if hashlib.sha256(data).hexdigest() != patch.info.tensors[name].sha256:
            raise other_model(name, "its bytes are not those of the patch's base")
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
    model's are left out (models/disk/copying.py).
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


def _stored(checkpoint: Checkpoint, name: str, patch: Patch) -> StoredTensor:
    stored = checkpoint.tensors.get(name)
    if stored is None:
        raise other_model(name, "the checkpoint has no such tensor")
    expected = patch.info.tensors[name]
    if (stored.dtype, tuple(stored.shape)) != (expected.dtype, expected.shape):
        was = f"{expected.dtype} {list(expected.shape)}"
        raise other_model(name, f"it is {stored.dtype} {list(stored.shape)}, not {was}")
    return stored
