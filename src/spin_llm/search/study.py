"""Optuna, told again from the journal.

In: the trials of a journal. Out: the next parameters to try, the same after a kill; which parameters mattered. Left
out: what a trial is made of (trials.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from spin_llm.results.recipe import Recipe
from spin_llm.results.searched import Trial
from spin_llm.search.space import SMALLEST, Space, described, distributions


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
        directions: list[Any] = [*("maximize" for _ in concepts), "minimize"]
        self.study = optuna.create_study(directions=directions)
        self.distributions = distributions(space, usual)

    def ask(self, seed: int) -> dict[str, Any]:
        """The parameters to try next."""
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's notes on what is experimental
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1)
            study = optuna.create_study(directions=self.study.directions, sampler=sampler)
            study.add_trials(self.study.get_trials(deepcopy=False))
            return dict(study.ask(self.distributions).params)

    def tell(self, chosen: Mapping[str, Any], values: Sequence[float]) -> None:
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
    spread = {"ratio": optuna.distributions.FloatDistribution(SMALLEST / 10, 1.0, log=True)}
    kinds = {
        name: optuna.distributions.CategoricalDistribution(sorted({described(t.recipe)[name] for t in measured}))
        for name in ("rule", "target", "protected", "granularity", "penalty", "balance", "scale", "layers")
    }
    kinds = {name: kind for name, kind in kinds.items() if len(kind.choices) > 1}
    for trial in measured:
        values = described(trial.recipe)
        params = {"ratio": trial.recipe.ratio, **{name: values[name] for name in kinds}}
        value = min(trial.gain(concept) for concept in concepts)
        made = optuna.trial.create_trial(params=params, distributions={**spread, **kinds}, value=value)
        study.add_trial(made)
    found = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    return {name: float(value) for name, value in found.items()}
