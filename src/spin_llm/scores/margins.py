"""The margins that a concept keeps, and which entries several concepts share.

In: kept scores. Out: flat indices (int64) by matrix name. Left out: what the entries gain and cost (selection/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from spin_llm.errors import SpinError
from spin_llm.scores.storage import Scores


def candidate_entries(
    concepts: Mapping[str, Scores], names: Sequence[str], at_least: int | None = None
) -> dict[str, torch.Tensor]:
    """The entries with a positive margin that is among the kept ones of at least `at_least` concepts (None: of all):
    sorted flat indices by matrix."""
    least = len(concepts) if at_least is None else at_least
    found: dict[str, torch.Tensor] = {}
    for name in names:
        kept = [largest_margins(concept, scores, name) for concept, scores in concepts.items()]
        entries, times = torch.cat([indices[values > 0] for indices, values in kept]).unique(return_counts=True)
        found[name] = entries[times >= least]
    return found


def largest_margins(concept: str, scores: Scores, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(flat indices, margins) of one matrix's largest margins, largest first; SpinError when none were stored."""
    matrix = scores.matrices[name]
    if scores.info.selector == "margin":
        return matrix.indices, matrix.values
    if "margin" not in matrix.others:
        raise SpinError(
            f"The scores of {concept!r} hold no margin, which the rule 'signed' needs.",
            change="score again with --statistics margin, from data with aware and unaware responses.",
        )
    return matrix.others["margin"].indices, matrix.others["margin"].values
