"""Selection: which weights to suppress, the controls beside them, and whether other data would choose the same."""

from spin_llm.selection.controls import alone, control_selection, random_like, same_magnitude_like
from spin_llm.selection.overlap import overlap
from spin_llm.selection.recipe import Recipe, recipe_of
from spin_llm.selection.resampled import MULTIPLE, Job, candidates, resampled_selections
from spin_llm.selection.rules import (
    GRANULARITIES,
    RULES,
    Layers,
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
    "MULTIPLE",
    "RULES",
    "Job",
    "Layers",
    "Recipe",
    "Selection",
    "Tops",
    "alone",
    "candidate_entries",
    "candidates",
    "choose",
    "control_selection",
    "intersection",
    "overlap",
    "random_like",
    "recipe_of",
    "resampled_selections",
    "same_magnitude_like",
    "select",
    "spared_by",
    "targeted",
    "top_sets",
]
