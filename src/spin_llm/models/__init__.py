"""Models: loaded for scoring or generating, and the matrices that can be edited; models as files are in disk/."""

from __future__ import annotations

from spin_llm.models.disk.checkpoint import Checkpoint
from spin_llm.models.disk.headers import StoredTensor
from spin_llm.models.disk.resolve import EMBEDDED, cache_folder, resolve
from spin_llm.models.loading import LoadedModel, checkpoint_of, load, pick_dtype
from spin_llm.models.structure import Matrix, editable_matrices, mlp_coverage, unknown_modules, unknown_text

__all__ = ["EMBEDDED", "Checkpoint", "StoredTensor", "cache_folder", "resolve"]
__all__ += ["LoadedModel", "checkpoint_of", "load", "pick_dtype"]
__all__ += ["Matrix", "editable_matrices", "mlp_coverage", "unknown_modules", "unknown_text"]
