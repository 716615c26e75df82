"""Selection: which weights to suppress, and the controls beside them."""

from __future__ import annotations

from spin_llm.selection.controls import alone, control_selection, random_like, same_magnitude_like
from spin_llm.selection.rules import KNOWN, Rule
from spin_llm.selection.rules.coupled import intersection
from spin_llm.selection.select import Selection, overlap, select
from spin_llm.selection.tops import GRANULARITIES, Tops, targeted, top_sets

__all__ = ["KNOWN", "Rule", "alone", "control_selection", "intersection", "random_like", "same_magnitude_like"]
__all__ += ["GRANULARITIES", "Selection", "Tops", "overlap", "select", "targeted", "top_sets"]
