"""The rule `signed`: what suppressing a weight does to every concept's margin, and what it costs, from kept scores.

In: the concepts' margins and importances, the protected sets' importances at the same entries. Out: flat indices per
matrix, sorted. For the entries that are among the largest margins of at least M concepts (M: all of them, unless told):

    gain(i)  = the M-th largest, over the concepts D, of margin_D(i) / mean margin of D's kept entries
    cost(i)  = the sum over the protected P of importance_P(i) / its mean over the candidates
    score(i) = gain(i) / (cost(i) + 0.2) ** penalty

The edit takes the largest scores (rules.py). The gain is a first-order change in nats (scores/importance.py), the cost
the mean size of the first-order change of the general loss; the quotient is what a budget of the second buys of the
first (docs/method.md). The means are units of measure, which selecting again from resampled examples keeps (`Means`).
Left out: top sets by importance (rules.py), which look at sizes and not at signs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from spin_llm.errors import SpinError
from spin_llm.results.recipe import PENALTY
from spin_llm.scores import CANDIDATES, MatrixScores, Scores

Tops = dict[str, torch.Tensor]  # flat indices (int64) by matrix name
FLOOR = 0.2  # of the mean cost: entries that cost nothing measurable are not infinitely good


@dataclass(frozen=True)
class Means:
    """What margins and importances are divided by: a concept's mean kept margin in nats per response token, a protected
    set's mean importance over the candidates; by name. A mean of 0 is 1."""

    margin: Mapping[str, float]
    importance: Mapping[str, float]


def candidate_entries(concepts: Mapping[str, Scores], names: Sequence[str], at_least: int | None = None) -> Tops:
    """The entries with a positive margin that is among the kept ones of at least `at_least` concepts (None: of all):
    sorted flat indices by matrix."""
    least = len(concepts) if at_least is None else at_least
    found: Tops = {}
    for name in names:
        kept = [largest_margins(concept, scores, name) for concept, scores in concepts.items()]
        entries, times = torch.cat([indices[values > 0] for indices, values in kept]).unique(return_counts=True)
        found[name] = entries[times >= least]
    return found


def largest_margins(concept: str, scores: Scores, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(flat indices, margins) of one matrix's largest margins, largest first; SpinError when none were stored."""
    matrix = scores.matrices[name]
    if scores.metadata["selector"] == "margin":
        return matrix.indices, matrix.values
    if "margin" not in matrix.others:
        raise SpinError(
            f"The scores of {concept!r} hold no margin, which the rule 'signed' needs.",
            change="score again with --statistics margin, from data with aware and unaware responses.",
        )
    return matrix.others["margin"].indices, matrix.others["margin"].values


def means_of(concepts: Mapping[str, Scores], protected: Mapping[str, Scores], entries: Tops) -> Means:
    """The means over what the concepts keep in the matrices of `entries`, negative margins as 0, and over the `entries`
    themselves."""
    margin = {
        concept: torch.cat([largest_margins(concept, scores, name)[1].clamp_min(0) for name in entries])
        for concept, scores in concepts.items()
    }
    importance = {
        name: torch.cat(
            [stored_importance(name, scores.matrices[matrix], wanted) for matrix, wanted in entries.items()]
        )
        for name, scores in protected.items()
    }

    def mean(values: torch.Tensor) -> float:
        return (float(values.mean()) if len(values) else 0.0) or 1.0

    return Means(*({name: mean(values) for name, values in part.items()} for part in (margin, importance)))


def gains(
    concepts: Mapping[str, Scores],
    entries: Tops,
    means: Mapping[str, float],
    at_least: int | None = None,
    fractions: Mapping[str, float] | None = None,
) -> dict[str, torch.Tensor]:
    """gain(i) of the `entries`, in their order, by matrix, margins times the `fractions` of their concepts.

    Concepts that do not keep an entry count as minus infinity (their margin there is below what they keep).
    """
    rank = (len(concepts) if at_least is None else at_least) - 1
    scale = {concept: means[concept] / (fractions or {}).get(concept, 1.0) for concept in concepts}
    found = {}
    for name, wanted in entries.items():
        columns = []
        for concept, scores in concepts.items():
            indices, values = largest_margins(concept, scores, name)
            columns.append(at_entries(indices, values / scale[concept], wanted, -torch.inf))
        found[name] = torch.stack(columns).sort(0, descending=True).values[rank]
    return found


def costs(protected: Mapping[str, Scores], entries: Tops, means: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """cost(i) of the `entries`, in their order, by matrix; 0 everywhere without a protected set.

    Raises SpinError when a protected set's importance there was not stored.
    """
    total = {name: torch.zeros(len(wanted)) for name, wanted in entries.items()}
    for concept, scores in protected.items():
        for name, wanted in entries.items():
            total[name] = total[name] + stored_importance(concept, scores.matrices[name], wanted) / means[concept]
    return total


def stored_importance(concept: str, matrix: MatrixScores, wanted: torch.Tensor) -> torch.Tensor:
    """A protected set's importance at the entries `wanted`, all of which its score file must hold."""
    kept = matrix.others.get(CANDIDATES)
    found = at_entries(kept.indices, kept.values, wanted, torch.nan) if kept else torch.full(wanted.shape, torch.nan)
    if found.isnan().any():
        raise SpinError(
            f"The scores of {concept!r} do not say what the candidates of the rule 'signed' cost.",
            cause="they were made before the concepts' margins were, or without them.",
            change="score again with --statistics margin.",
        )
    return found


def at_entries(indices: torch.Tensor, values: torch.Tensor, wanted: torch.Tensor, absent: float) -> torch.Tensor:
    """`values` of the entries `wanted` (sorted or not), `absent` where an entry is not among `indices`."""
    if not len(indices):
        return torch.full(wanted.shape, absent)
    order = indices.argsort()
    place = torch.searchsorted(indices[order], wanted).clamp_max(len(indices) - 1)
    found = order[place]
    return torch.where(indices[found] == wanted, values[found], absent)


def signed(gain: torch.Tensor, cost: torch.Tensor, penalty: float = PENALTY) -> torch.Tensor:
    """score(i), shape as `gain` and `cost` (n,)."""
    return gain / (cost + FLOOR) ** penalty


def outside(entries: Tops, spared: Mapping[str, torch.Tensor]) -> Tops:
    """The `entries` that are not `spared`; matrices that are not named there keep theirs."""
    return {
        name: found[~torch.isin(found, spared[name])] if name in spared else found for name, found in entries.items()
    }


def signed_scores(
    concepts: Mapping[str, Scores],
    protected: Mapping[str, Scores],
    names: Sequence[str],
    *,
    penalty: float = PENALTY,
    at_least: int | None = None,
    spared: Mapping[str, torch.Tensor] | None = None,
    fractions: Mapping[str, float] | None = None,
    means: Means | None = None,
) -> Scores:
    """score(i) of every candidate outside `spared`, as scores are kept: largest first, ties by the lower index. Their
    `keep` is the fraction of the weights that are candidates.

    `means` None are those of the candidates themselves. Raises SpinError on scores without margins.
    """
    entries = outside(candidate_entries(concepts, names, at_least), spared or {})
    means = means or means_of(concepts, protected, entries)
    gain = gains(concepts, entries, means.margin, at_least, fractions)
    cost = costs(protected, entries, means.importance)
    places = next(iter(concepts.values())).matrices
    matrices = {}
    for name, wanted in entries.items():
        score, place = signed(gain[name], cost[name], penalty), places[name]
        order = score.argsort(descending=True, stable=True)
        matrices[name] = MatrixScores(wanted[order], score[order], place.shape, place.layer, place.kind)
    keep = sum(map(len, entries.values())) / sum(places[name].size for name in names)
    return Scores(matrices, {"keep": keep})
