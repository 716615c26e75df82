"""Models: from a name to a checkpoint folder, to a loaded model, to the matrices that can be edited."""

from spin_llm.models.checkpoint import Checkpoint, StoredTensor
from spin_llm.models.loading import LoadedModel, load, pick_dtype
from spin_llm.models.resolve import EMBEDDED, cache_folder, resolve
from spin_llm.models.structure import TARGETS, Matrix, editable_matrices, mlp_coverage, unknown_modules, unknown_text

__all__ = [
    "EMBEDDED",
    "TARGETS",
    "Checkpoint",
    "LoadedModel",
    "Matrix",
    "StoredTensor",
    "cache_folder",
    "editable_matrices",
    "load",
    "mlp_coverage",
    "pick_dtype",
    "resolve",
    "unknown_modules",
    "unknown_text",
]
