"""The rule `signed`: what suppressing a weight does to every concept's margin, and what it costs, from kept scores.

In: the concepts' margins and importances, the protected sets' importances at the same entries. Out: flat indices per
matrix, sorted. For the entries that are among the largest margins of at least M concepts (M: all of them, unless told):

    gain(i)  = the M-th largest, over the concepts D, of margin_D(i) / mean margin of D's kept entries
    cost(i)  = the sum over the protected P of importance_P(i) / its mean over the candidates
    score(i) = gain(i) / (cost(i) + 0.2) ** penalty

The edit takes the largest scores. The gain is a first-order change in nats (scores/importance.py), the cost
the mean size of the first-order change of the general loss; the quotient is what a budget of the second buys of the
first (docs/method.md). The means are units of measure, which selecting again from resampled examples keeps (`Means`).
Left out: top sets by importance (coupled.py), which look at sizes and not at signs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from spin_llm.errors import SpinError
from spin_llm.results.edited import PENALTY, Recipe
from spin_llm.scores import CANDIDATES, MatrixScores, Scores, ScoreSet, ScoresInfo, count
from spin_llm.scores.storage import candidate_entries, largest_margins
from spin_llm.selection.rules.rule import Ranked, Rankings, Rule
from spin_llm.selection.tops import Tops, at_entries, outside, sorted_tops, top_sets

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

    Values = Float[torch.Tensor, " n"]

FLOOR = 0.2  # of the mean cost: entries that cost nothing measurable are not infinitely good


@dataclass(frozen=True)
class Means:
    """What margins and importances are divided by: a concept's mean kept margin in nats per response token, a protected
    set's mean importance over the candidates; by name. A mean of 0 is 1."""

    margin: Mapping[str, float]
    importance: Mapping[str, float]


def means_of(scores: ScoreSet, entries: Tops) -> Means:
    """The means over what the concepts keep in the matrices of `entries`, negative margins as 0, and over the `entries`
    themselves."""
    margin = {
        concept: torch.cat([largest_margins(concept, part, name)[1].clamp_min(0) for name in entries])
        for concept, part in scores.concepts.items()
    }
    importance = {
        name: torch.cat([stored_importance(name, part.matrices[matrix], wanted) for matrix, wanted in entries.items()])
        for name, part in scores.protected.items()
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


def stored_importance(concept: str, matrix: MatrixScores, wanted: Int64[torch.Tensor, " n"]) -> Values:
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


def signed(gain: Values, cost: Values, penalty: float = PENALTY) -> Values:
    """score(i)."""
    return gain / (cost + FLOOR) ** penalty


def protected_tops(scores: ScoreSet, names: Sequence[str], recipe: Recipe) -> Tops:
    """What is spared, by matrix, whatever the rule chooses over: the protected sets' top sets of each matrix."""
    tops = [top_sets(part, names, recipe.spares) for part in scores.protected.values()]
    return {name: torch.cat([top[name] for top in tops]) for name in names} if tops else {}


@dataclass(frozen=True)
class Held:
    """What stays as it is on all examples where examples are resampled: the means, and by protected set and matrix the
    smallest importance in its top set (infinite where that is empty)."""

    means: Means
    least: Mapping[str, Mapping[str, float]]

    def spared(self, scores: ScoreSet) -> Tops:
        """The entries whose resampled importance for a protected set is one of its top set on all examples."""
        found: Tops = {}
        for concept, smallest in self.least.items():
            for name, least in smallest.items():
                matrix = scores.protected[concept].matrices[name]
                inside = matrix.indices[(matrix.values >= least) & (matrix.values > 0)]
                found[name] = torch.cat([found.get(name, inside[:0]), inside])
        return found


def held(scores: ScoreSet, names: Sequence[str], recipe: Recipe) -> Held:
    """Of the scores of all examples."""
    entries = without(candidate_entries(scores.concepts, names, recipe.at_least), protected_tops(scores, names, recipe))
    least: dict[str, dict[str, float]] = {}
    for concept, part in scores.protected.items():
        for name in names:
            most = count(recipe.spares, part.matrices[name].size)
            value = float(part.matrices[name].values[most - 1]) if most else torch.inf
            least.setdefault(concept, {})[name] = value
    return Held(means_of(scores, entries), least)


def without(entries: Tops, spared: Mapping[str, torch.Tensor]) -> Tops:
    """The `entries` that are not `spared`; matrices that are not named there keep theirs."""
    return {name: outside(found, [spared[name]] if name in spared else []) for name, found in entries.items()}


def rankings(
    scores: ScoreSet, names: Sequence[str], recipe: Recipe, *, held: Held | None = None, spare: bool = True
) -> Rankings:
    """score(i) of every candidate that is not protected, as scores are kept: largest first, ties by the lower index.
    Their `keep` is the fraction of the weights that are candidates.

    The means are those of the candidates themselves, or `held`. Raises SpinError on scores without margins.
    """
    at_least, spared = recipe.at_least, {}
    if spare:
        spared = held.spared(scores) if held else protected_tops(scores, names, recipe)
    entries = without(candidate_entries(scores.concepts, names, at_least), spared)
    means = held.means if held else means_of(scores, entries)
    gain = gains(scores.concepts, entries, means.margin, at_least, dict(recipe.fractions))
    cost = costs(scores.protected, entries, means.importance)
    places = scores.first.matrices
    matrices = {}
    for name, wanted in entries.items():
        score, place = signed(gain[name], cost[name], recipe.penalty), places[name]
        order = score.argsort(descending=True, stable=True)
        matrices[name] = MatrixScores(wanted[order], score[order], place.shape, place.layer, place.kind)
    keep = sum(map(len, entries.values())) / sum(places[name].size for name in names)
    return {"signed": (Scores(matrices, ScoresInfo(keep=keep)), recipe.ratio)}


def counts(ranked: Ranked) -> tuple[int, int]:
    """(the first concept's kept margins, the candidates that are not protected)."""
    kept = sum(len(largest_margins("", ranked.scores.first, name)[0]) for name in ranked.names)
    return kept, sum(len(matrix.indices) for matrix in ranked.rankings["signed"][0].matrices.values())


def apart(scores: ScoreSet, names: Sequence[str], recipe: Recipe, concept: str) -> Tops:
    """One concept's positive kept margins, without what others keep and the protected top sets of each matrix."""
    spared = [top_sets(part, names, recipe.spares) for part in scores.protected.values()]
    others = {name: part for name, part in scores.concepts.items() if name != concept}
    found: Tops = {}
    for name in names:
        own, margins = largest_margins(concept, scores.concepts[concept], name)
        kept = [top[name] for top in spared]
        kept += [largest_margins(other, part, name)[0] for other, part in others.items()]
        found[name] = outside(own[margins > 0], kept)
    return found


SIGNED = Rule(
    "signed",
    rankings,
    lambda ranked: sorted_tops(ranked.tops["signed"]),
    counts,
    apart,
    held,
    granularities=("model", "layer", "matrix"),
    spares_own=True,
    weighs=True,
)
