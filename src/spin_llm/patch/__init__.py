"""A patch: which stored numbers change, from what to what; on a loaded model and on a checkpoint's bytes."""

from __future__ import annotations

from spin_llm.patch.checkpoint import apply_checkpoint, patch_state, revert_checkpoint
from spin_llm.patch.file import find_patch, load_patch, make_patch, save_patch
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
