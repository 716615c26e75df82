"""A model as files: from a name to a checkpoint folder, what it holds, and what identifies it."""

from __future__ import annotations

from spin_llm.models.disk.checkpoint import Checkpoint
from spin_llm.models.disk.embedded import EMBEDDED
from spin_llm.models.disk.header import StoredTensor
from spin_llm.models.disk.resolve import resolve

__all__ = ["EMBEDDED", "Checkpoint", "StoredTensor", "resolve"]
