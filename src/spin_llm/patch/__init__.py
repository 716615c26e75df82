"""A patch: which stored numbers change, from what to what; on a loaded model and on a checkpoint's bytes."""

from __future__ import annotations

from spin_llm.patch.file import (
    apply_checkpoint,
    find_patch,
    load_patch,
    make_patch,
    patch_state,
    revert_checkpoint,
    save_patch,
)
from spin_llm.patch.patch import Patch, PatchInfo, TensorEdit, memory_patch

__all__ = [
    "Patch",
    "PatchInfo",
    "TensorEdit",
    "apply_checkpoint",
    "find_patch",
    "load_patch",
    "make_patch",
    "memory_patch",
    "patch_state",
    "revert_checkpoint",
    "save_patch",
]
