"""Selection: which weights to suppress, and the controls beside them."""

from __future__ import annotations

from spin_llm.selection.controls import alone, control_selection, random_like, same_magnitude_like
from spin_llm.selection.overlap import overlap
from spin_llm.selection.rules import (
    GRANULARITIES,
    RULES,
    Selection,
    choose,
    intersection,
    select,
    spared_by,
    targeted,
    top_sets,
)
from spin_llm.selection.signed import Tops, candidate_entries

__all__ = [
    "GRANULARITIES",
    "RULES",
    "Selection",
    "Tops",
    "alone",
    "candidate_entries",
    "choose",
    "control_selection",
    "intersection",
    "overlap",
    "random_like",
    "same_magnitude_like",
    "select",
    "spared_by",
    "targeted",
    "top_sets",
]
