"""The rule `signed`: what suppressing a weight does to every concept's margin, and what it costs, from kept scores.

In: the concepts' margins and importances, the protected sets' importances at the same entries. Out: flat indices per
matrix, sorted. For the entries that are among the largest margins of at least M concepts (M: all of them, unless told):

    gain(i)  = the M-th largest, over the concepts D, of margin_D(i) / mean margin of D's kept entries
    cost(i)  = the sum over the protected P of importance_P(i) / its mean over the candidates
    score(i) = gain(i) / (cost(i) + 0.2) ** penalty

The edit takes the largest scores. The gain is a first-order change in nats (scores/statistics.py), the cost the mean
size of the first-order change of the general loss; the quotient is what a budget of the second buys of the first
(docs/method.md). Left out: top sets (rules.py), which look at sizes and not at signs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from spin_llm.errors import SpinError
from spin_llm.scores import CANDIDATES, MatrixScores, Scores, count

Tops = dict[str, torch.Tensor]  # flat indices (int64) by matrix name
PENALTY = 2.0
FLOOR = 0.2  # of the mean cost: entries that cost nothing measurable are not infinitely good


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


def gains(
    concepts: Mapping[str, Scores],
    entries: Tops,
    at_least: int | None = None,
    fractions: Mapping[str, float] | None = None,
) -> dict[str, torch.Tensor]:
    """gain(i) of the `entries`, in their order, by matrix, margins times the `fractions` of their concepts.

    Concepts that do not keep an entry count as minus infinity (their margin there is below what they keep).
    """
    rank = (len(concepts) if at_least is None else at_least) - 1
    scale = {}
    for concept, scores in concepts.items():
        kept = torch.cat([largest_margins(concept, scores, name)[1].clamp_min(0) for name in entries])
        scale[concept] = (float(kept.mean()) or 1.0) / (fractions or {}).get(concept, 1.0)
    found = {}
    for name, wanted in entries.items():
        columns = []
        for concept, scores in concepts.items():
            indices, values = largest_margins(concept, scores, name)
            columns.append(at_entries(indices, values / scale[concept], wanted, -torch.inf))
        found[name] = torch.stack(columns).sort(0, descending=True).values[rank]
    return found


def costs(protected: Mapping[str, Scores], entries: Tops) -> dict[str, torch.Tensor]:
    """cost(i) of the `entries`, in their order, by matrix; 0 everywhere without a protected set.

    Raises SpinError when a protected set's importance there was not stored.
    """
    total = {name: torch.zeros(len(wanted)) for name, wanted in entries.items()}
    for concept, scores in protected.items():
        values = {name: stored_importance(concept, scores.matrices[name], wanted) for name, wanted in entries.items()}
        mean = float(torch.cat(list(values.values())).mean()) if any(map(len, values.values())) else 0.0
        total = {name: total[name] + part / (mean or 1.0) for name, part in values.items()}
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


def choose_signed(
    concepts: Mapping[str, Scores],
    protected: Mapping[str, Scores],
    names: Sequence[str],
    *,
    ratio: float,
    granularity: str = "model",
    penalty: float = PENALTY,
    at_least: int | None = None,
    spared: Mapping[str, torch.Tensor] | None = None,
    fractions: Mapping[str, float] | None = None,
) -> tuple[Tops, int]:
    """(the entries outside `spared` with the largest scores: floor(ratio * n) of each unit of n weights, sorted,
    matrices without any left out; how many candidates there were).

    The unit is the matrix, the layer or the whole model. Raises SpinError for `row`, and on scores without margins.
    """
    if granularity == "row":
        raise SpinError(
            "The rule 'signed' does not choose by row.", change="give --granularity model, layer or matrix."
        )
    entries = candidate_entries(concepts, names, at_least)
    if spared:
        entries = {name: found[~torch.isin(found, spared[name])] for name, found in entries.items()}
    gain, cost = gains(concepts, entries, at_least, fractions), costs(protected, entries)
    scores = {name: signed(gain[name], cost[name], penalty) for name in names}
    places = next(iter(concepts.values())).matrices
    unit: dict[str, Callable[[str], object]] = {"matrix": lambda name: name, "layer": lambda name: places[name].layer}
    units: dict[object, list[str]] = {}
    for name in names:
        units.setdefault(unit.get(granularity, lambda name: 0)(name), []).append(name)
    chosen: Tops = {}
    for members in units.values():
        most = count(ratio, sum(places[name].size for name in members))
        values = torch.cat([scores[name] for name in members])
        taken = torch.zeros(len(values), dtype=torch.bool)
        taken[values.argsort(descending=True, stable=True)[:most]] = True
        parts = taken.split([len(scores[name]) for name in members])
        chosen |= {name: entries[name][part] for name, part in zip(members, parts, strict=True) if part.any()}
    return {name: chosen[name] for name in names if name in chosen}, sum(map(len, entries.values()))
