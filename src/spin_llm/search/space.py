"""Recipes as parameters, and where a search opens.

In: what a bench allows (rules, layers, concepts). Out: the opening recipes, Optuna's distributions, and the way between
a recipe and its parameters. Left out: trying them (trials.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from spin_llm.results.recipe import PENALTY, Recipe
from spin_llm.selection import KNOWN

RULES = ("coupled", "coupled-signed", "signed")  # those that are searched
OPENING = (  # rule, ratio, penalty
    *(("signed", ratio, PENALTY) for ratio in (5e-5, 1e-4, 2e-5)),
    *(("signed", ratio, 3.0) for ratio in (1e-4, 2e-4)),  # the same margin at less perplexity, from more weights
    *(("signed", ratio, PENALTY) for ratio in (2e-4, 1e-5)),
    *(("coupled-signed", ratio, PENALTY) for ratio in (1e-4, 1e-5, 1e-3)),
    *(("coupled", ratio, PENALTY) for ratio in (1e-5, 1e-4)),
)
SMALLEST, LARGEST = 1e-6, 2e-3  # ratios that are searched
SCALES = (0.0, 0.25, 0.5, 0.75)
BALANCES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of two concepts: the first's fraction, the other's being 1
PENALTIES = (1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Space:
    """What bounds the recipes: the fraction `keep` of each matrix that the scores hold, the number of decoder `layers`,
    how much `wider` ratios are than for matrices of 100,000 weights and more, and the names of the concepts."""

    keep: float
    layers: int
    wider: float
    concepts: tuple[str, ...] = ()

    @property
    def ratios(self) -> tuple[float, float]:
        """The smallest and the largest ratio that is searched."""
        largest = min(self.keep, LARGEST * self.wider)
        return min(SMALLEST * self.wider, largest / 2), largest


def opening(usual: Recipe, space: Space) -> list[Recipe]:
    """The recipes that every search starts with: each rule over its useful range, with the target of `usual`.

    `signed` chooses over the whole model and spares the general set's whole kept top, the others as in the paper.
    """
    made = []
    for rule, small, penalty in OPENING:
        ratio = small * space.wider
        if ratio > space.keep or usual.granularity not in KNOWN[rule].granularities:
            continue
        recipe = replace(usual, rule=rule, ratio=ratio, penalty=penalty)
        if KNOWN[rule].weighs:
            recipe = replace(recipe, granularity="model", protect_ratio=space.keep)
        made.append(recipe)
    return made


def distributions(space: Space, usual: Recipe) -> dict[str, Any]:
    """What is searched, with its bounds."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    by_row = usual.granularity == "row"
    rules = tuple(rule for rule in RULES if usual.granularity in KNOWN[rule].granularities)
    targets = ("all", "mlp", "attention") if usual.target == "all" else (usual.target,)
    return {
        "rule": CategoricalDistribution(rules),
        "target": CategoricalDistribution(targets),
        "balance": CategoricalDistribution(BALANCES if len(space.concepts) == 2 else (1.0,)),
        "ratio": FloatDistribution(*space.ratios, log=True),
        "protect": CategoricalDistribution(("as many", "all kept")),
        "granularity": CategoricalDistribution(("row",) if by_row else ("matrix", "layer", "model")),
        "penalty": CategoricalDistribution(PENALTIES),
        "scale": CategoricalDistribution(SCALES),
        "first": IntDistribution(0, space.layers - 1),
        "last": IntDistribution(0, space.layers - 1),
    }


def parameters(recipe: Recipe, space: Space) -> dict[str, Any]:
    """A recipe of the opening as parameters, within the bounds that are searched."""
    low, high = space.ratios
    return {
        "rule": recipe.rule,
        "ratio": min(max(recipe.ratio, low), high),
        "protect": "all kept" if recipe.protect_ratio == space.keep else "as many",
        "granularity": recipe.granularity,
        "penalty": recipe.penalty,
        "target": recipe.target,
        "balance": 1.0,
        "scale": recipe.scale if recipe.scale in SCALES else 0.0,
        "first": 0,
        "last": space.layers - 1,
    }


def recipe_from(chosen: Mapping[str, Any], usual: Recipe, space: Space) -> Recipe:
    """The recipe that these parameters stand for; layers that the user gave are not searched."""
    first, last = sorted((chosen["first"], chosen["last"]))
    everything = (first, last) == (0, space.layers - 1)
    return replace(
        usual,
        **{name: chosen[name] for name in ("rule", "ratio", "granularity", "scale", "target")},
        fractions=((space.concepts[0], chosen["balance"]),) if chosen["balance"] != 1 else (),
        protect_ratio=space.keep if chosen["protect"] == "all kept" else None,
        penalty=chosen["penalty"] if KNOWN[chosen["rule"]].weighs else PENALTY,
        layers=usual.layers if everything or usual.layers else (first, last),
    )


def described(recipe: Recipe) -> dict[str, str]:
    """A recipe's settings in a few classes each."""
    span = "all" if recipe.layers is None else "some"
    protected = "as many" if recipe.protect_ratio is None else "all kept"
    return {
        **{"rule": recipe.rule, "protected": protected, "granularity": recipe.granularity},
        **{"target": recipe.target, "balance": f"{dict(recipe.fractions) or 1}"},
        **{"penalty": f"{recipe.penalty:g}" if KNOWN[recipe.rule].weighs else "none"},
        **{"scale": f"{recipe.scale:g}", "layers": span},
    }
