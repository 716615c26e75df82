"""Recipes as parameters: where a search opens, and Optuna over them, told again from the journal.

In: what a bench allows (rules, layers, concepts), the trials of a journal. Out: the opening recipes; the next
parameters to try, the same after a kill, and the way between a recipe and its parameters; which of them mattered. Left
out: trying them (trials.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict, cast

from spin_llm.results.edited import PENALTY, Recipe
from spin_llm.results.searched import Trial
from spin_llm.selection import KNOWN

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

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


class Parameters(TypedDict):
    """What Optuna chooses: a recipe, its layers by the first and the last, what is spared by `protect`."""

    rule: str
    ratio: float
    protect: str
    granularity: str
    penalty: float
    target: str
    balance: float
    scale: float
    first: int
    last: int


def distributions(space: Space, usual: Recipe) -> dict[str, BaseDistribution]:
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


def parameters(recipe: Recipe, space: Space) -> Parameters:
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


def recipe_from(chosen: Parameters, usual: Recipe, space: Space) -> Recipe:
    """The recipe that these parameters stand for; layers that the user gave are not searched."""
    first, last = sorted((chosen["first"], chosen["last"]))
    everything = (first, last) == (0, space.layers - 1)
    return replace(
        usual,
        rule=chosen["rule"],
        ratio=chosen["ratio"],
        granularity=chosen["granularity"],
        scale=chosen["scale"],
        target=chosen["target"],
        fractions=((space.concepts[0], chosen["balance"]),) if chosen["balance"] != 1 else (),
        protect_ratio=space.keep if chosen["protect"] == "all kept" else None,
        penalty=chosen["penalty"] if KNOWN[chosen["rule"]].weighs else PENALTY,
        layers=usual.layers if everything or usual.layers else (first, last),
    )


def objectives(trial: Trial, concepts: Sequence[str]) -> list[float]:
    """What Optuna is told: the gains and the increase of perplexity. A recipe that does nothing gains nothing at no
    cost; one that ruins the model gains nothing at its cost, 100% at most."""
    gains = [trial.gain(concept) if trial.proxy else 0.0 for concept in concepts]
    return [*gains, min(trial.increase or 0.0, 1.0)]


class Study:
    """Optuna's multi-objective TPE over recipes: every concept's gain up, the increase of perplexity down.

    It is kept in memory and told again from the journal, so that a search that was cut off goes on as it would have;
    for the same reason each question has its own seed. Trials of the opening are TPE's first ones.
    """

    def __init__(self, concepts: Sequence[str], space: Space, usual: Recipe):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        self.study = optuna.create_study(directions=[*(up for _ in concepts), down])
        self.distributions = distributions(space, usual)

    def ask(self, seed: int) -> Parameters:
        """The parameters to try next."""
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's notes on what is experimental
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1)
            study = optuna.create_study(directions=self.study.directions, sampler=sampler)
            study.add_trials(self.study.get_trials(deepcopy=False))
            return cast(Parameters, study.ask(self.distributions).params)

    def tell(self, chosen: Mapping[str, object], values: Sequence[float]) -> None:
        """What a trial gave."""
        import optuna

        made = optuna.trial.create_trial(params=dict(chosen), distributions=self.distributions, values=list(values))
        self.study.add_trial(made)


def settings_importance(trials: Sequence[Trial], concepts: Sequence[str]) -> dict[str, float]:
    """How much each setting explains of the smallest gain among the measured trials (fANOVA, Hutter et al. 2014, of the
    trials' random forest): shares that sum to 1; {} with fewer than 12 measured trials."""
    measured = [trial for trial in trials if trial.proxy]
    if len(measured) < 12:
        return {}
    import optuna

    study = optuna.create_study(direction="maximize")
    classes = [described(trial.recipe) for trial in measured]
    choices = {name: sorted({one[name] for one in classes}) for name in classes[0]}
    kinds = {name: optuna.distributions.CategoricalDistribution(of) for name, of in choices.items() if len(of) > 1}
    spread = {"ratio": optuna.distributions.FloatDistribution(SMALLEST / 10, 1.0, log=True), **kinds}
    for trial, one in zip(measured, classes, strict=True):
        params = {"ratio": trial.recipe.ratio, **{name: one[name] for name in kinds}}
        value = min(trial.gain(concept) for concept in concepts)
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spread, value=value))
    found = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    return {name: float(value) for name, value in found.items()}


def described(recipe: Recipe) -> dict[str, str]:
    """A recipe's settings in a few classes each."""
    return {
        "rule": recipe.rule,
        "target": recipe.target,
        "protected": "as many" if recipe.protect_ratio is None else "all kept",
        "granularity": recipe.granularity,
        "penalty": f"{recipe.penalty:g}" if KNOWN[recipe.rule].weighs else "none",
        "balance": f"{dict(recipe.fractions) or 1}",
        "scale": f"{recipe.scale:g}",
        "layers": "all" if recipe.layers is None else "some",
    }
