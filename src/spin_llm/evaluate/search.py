"""Searching for an edit: many recipes by a cheap proxy, the few best by their answers, one picked by a written rule.

In: a loaded model, stored scores, held-back pairs, and later the verdicts on the survivors' answers to search
questions. Out: trials, survivors, the pick and why. The recipes of `opening` come first, then Optuna's multi-objective
TPE goes on from what they gave (gain of each concept's margin up, perplexity down). Every trial goes into a journal at
once, so a killed search continues with the trial that it was at, and ends with the same pick. The rule of the pick:

    allowed      perplexity rises by at most the allowed fraction
    share_D      gain on the concept D / the largest gain on D of any allowed trial
    pick         the largest smallest share over the concepts; of equal ones the fewest weights

first with gains of the margin, then, where answers were judged, with gains of the awareness rate, among survivors that
refuse at most 2 points more, are coherent at most 5 points less and answer at most 2 points less of the questions. Left
out: the final numbers, which are taken on other prompts (pipeline/data.py).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scipy.special import ndtri

from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.evaluate.proxy import (
    Contrast,
    Gain,
    Proxy,
    Reference,
    measure_proxy,
    measure_reference,
    relative_increase,
    summed_losses,
)
from spin_llm.evaluate.statistics import ALPHA
from spin_llm.files import read_progress, sync_append
from spin_llm.models import LoadedModel
from spin_llm.patch import Patch, memory_patch
from spin_llm.progress import SILENT, Console
from spin_llm.scores import Scores
from spin_llm.selection import Recipe, recipe_of
from spin_llm.selection.signed import PENALTY
from spin_llm.settings import BY_MARGIN, SIGNED
from spin_llm.stored import JournalRow

SCREEN_PAIRS = 8  # a recipe that is hopeless on the first general pairs is not measured on all of them
HOPELESS, HOPELESS_MARGIN = 3.0, 0.02  # hopeless: 3 times the allowed increase, and 2% on top
MAX_REFUSAL, MAX_INCOHERENCE, MAX_SILENCE = 0.02, 0.05, 0.02  # rates; of the pick among survivors
OPENING = (  # rule, ratio, penalty
    *((BY_MARGIN, ratio, PENALTY) for ratio in (5e-5, 1e-4, 2e-5)),
    *((BY_MARGIN, ratio, 3.0) for ratio in (1e-4, 2e-4)),  # the same margin at less perplexity, from more weights
    *((BY_MARGIN, ratio, PENALTY) for ratio in (2e-4, 1e-5)),
    *((SIGNED, ratio, PENALTY) for ratio in (1e-4, 1e-5, 1e-3)),
    *(("coupled", ratio, PENALTY) for ratio in (1e-5, 1e-4)),
)
SMALLEST, LARGEST = 1e-6, 2e-3  # ratios that are searched
SCALES = (0.0, 0.25, 0.5, 0.75)
BALANCES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of two concepts: the first's fraction, the other's being 1
PENALTIES = (1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Trial:
    """One recipe: how many weights it selects, and what they do.

    `proxy` is None when it selects none, when the kept scores do not decide it, or when it is hopeless: then
    `increase` is that on the first pairs.
    """

    number: int
    recipe: Recipe
    weights: int
    increase: float | None
    proxy: Proxy | None
    why: str = ""

    def gain(self, concept: str) -> float:
        return self.proxy.gains[concept].gain if self.proxy else -math.inf

    def as_json(self) -> dict[str, Any]:
        """As it stands in the journal and in results.json."""
        proxy = self.proxy.as_json() if self.proxy else None
        row = {"number": self.number, "recipe": self.recipe.as_json(), "weights": self.weights, "why": self.why}
        return row | {"increase": self.increase, "proxy": proxy}


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


@dataclass(frozen=True)
class Bench:
    """What every recipe is tried on: a model, its scores, held-back responses by concept, general pairs."""

    loaded: LoadedModel
    concepts: Mapping[str, Scores]
    protected: Mapping[str, Scores]
    contrasts: Mapping[str, Contrast]
    general: Sequence[Example]
    max_increase: float

    @property
    def space(self) -> Space:
        scores = [*self.concepts.values(), *self.protected.values()]
        places = [place for part in scores for place in part.matrices.values()]
        wider = max(1.0, 1e5 / min(place.size for place in places))
        keep = min(part.metadata["keep"] for part in scores)
        return Space(keep, 1 + max(place.layer for place in places), wider, tuple(self.concepts))


def opening(usual: Recipe, space: Space) -> list[Recipe]:
    """The recipes that every search starts with: each rule over its useful range, with the target of `usual`.

    `signed` chooses over the whole model and spares the general set's whole kept top, the others as in the paper.
    """
    by_row, keep = usual.granularity == "row", space.keep
    made = []
    for rule, small, penalty in OPENING:
        ratio = small * space.wider
        if ratio > keep or (rule == BY_MARGIN and by_row):
            continue
        more: dict[str, Any] = {"granularity": "model", "protect_ratio": keep} if rule == BY_MARGIN else {}
        made.append(replace(usual, rule=rule, ratio=ratio, penalty=penalty, **more))
    return made


def search(
    bench: Bench, usual: Recipe, *, trials: int, journal: Path, seed: int = 0, console: Console = SILENT
) -> list[Trial]:
    """Try `trials` recipes around `usual`; those in `journal` are read.

    Raises SpinError on a journal of another kind.
    """
    start = opening(usual, bench.space)
    study = Study(list(bench.concepts), bench.space, usual)
    done: list[Trial] = []
    for row in read_progress(journal, JournalRow):
        done.append(trial_of(row))
        concepts = list(row["proxy"]["gains"] if row["proxy"] else bench.concepts)
        if concepts != list(bench.concepts) or set(row["parameters"]) != set(study.distributions):
            raise SpinError(
                f"{journal} is of a search with other concepts or settings.",
                cause="it was made with other data, or by another version.",
                change="start anew with --overwrite.",
            )
        study.tell(row["parameters"], objectives(done[-1], list(bench.concepts)))
    base = None
    journal.parent.mkdir(parents=True, exist_ok=True)
    with console.bar("trying edits", trials) as advance:
        advance(min(len(done), trials))
        for number in range(len(done), trials):
            base = base or measure_reference(bench.loaded, bench.contrasts, bench.general)
            chosen = parameters(start[number], bench.space) if number < len(start) else study.ask(1000 * seed + number)
            trial = attempt(bench, number, recipe_from(chosen, usual, bench.space), base)
            sync_append(journal, [{**trial.as_json(), "parameters": chosen}])
            study.tell(chosen, objectives(trial, list(bench.concepts)))
            done.append(trial)
            advance(1)
    return done[:trials]


def attempt(bench: Bench, number: int, recipe: Recipe, base: Reference) -> Trial:
    """Select, suppress in memory, measure, restore."""
    try:
        selection = recipe.select(bench.concepts, bench.protected, allow_empty=True)
    except SpinError as error:
        return Trial(number, recipe, 0, None, None, error.what)
    if not selection.weights:
        return Trial(number, recipe, 0, None, None, "selects no weight")
    patch = memory_patch(bench.loaded.model, selection, scale=recipe.scale)
    with edited_model(bench.loaded, patch) as edited:
        screen = bench.general[:SCREEN_PAIRS]
        first = relative_increase(summed_losses(edited, screen), base.general[:SCREEN_PAIRS], screen)
        if not first <= HOPELESS * bench.max_increase + HOPELESS_MARGIN:  # also when it is not a number
            return Trial(number, recipe, selection.weights, first, None, "ruins the model")
        proxy = measure_proxy(edited, bench.contrasts, bench.general, base)
    return Trial(number, recipe, selection.weights, proxy.increase, proxy)


@contextmanager
def edited_model(loaded: LoadedModel, patch: Patch) -> Iterator[LoadedModel]:
    """The loaded model with the patch in it."""
    with patch.applied(loaded.model):
        yield loaded


def objectives(trial: Trial, concepts: Sequence[str]) -> list[float]:
    """What Optuna is told: the gains and the increase of perplexity. A recipe that does nothing gains nothing at no
    cost; one that ruins the model gains nothing at its cost, 100% at most."""
    gains = [trial.gain(concept) if trial.proxy else 0.0 for concept in concepts]
    return [*gains, min(trial.increase or 0.0, 1.0)]


def trial_of(row: Mapping[str, Any]) -> Trial:
    """A trial from its JSON."""
    proxy = row["proxy"]
    if proxy is not None:
        gains = {name: Gain(gain["gain"], gain["error"], gain["aware"]) for name, gain in proxy["gains"].items()}
        proxy = Proxy(gains, proxy["increase"], proxy["kl"])
    return Trial(row["number"], recipe_of(row["recipe"]), row["weights"], row["increase"], proxy, row["why"])


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


def distributions(space: Space, usual: Recipe) -> dict[str, Any]:
    """What is searched, with its bounds."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    by_row = usual.granularity == "row"
    rules = ("coupled", SIGNED) if by_row else ("coupled", SIGNED, BY_MARGIN)
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
        penalty=chosen["penalty"] if chosen["rule"] == BY_MARGIN else PENALTY,
        layers=usual.layers if everything or usual.layers else (first, last),
    )


def allowed(trials: Sequence[Trial], max_increase: float) -> list[Trial]:
    return [trial for trial in trials if trial.proxy and trial.proxy.increase <= max_increase]


def shares(gains: Sequence[Mapping[str, float]]) -> list[float]:
    """The smallest share over the concepts of each row of `gains`: its gain by the largest one; where nothing gains
    on a concept, the smallest gain itself decides (it is at most 0). Without a concept all are 0."""
    most = {concept: max(row[concept] for row in gains) for concept in gains[0]} if gains else {}
    return [
        min(
            (row[concept] / most[concept] if most[concept] > 0 else min(row[concept], 0.0) for concept in most),
            default=0.0,
        )
        for row in gains
    ]


def ranked(trials: Sequence[Trial], concepts: Sequence[str], max_increase: float) -> list[Trial]:
    """The allowed trials, the best by the rule of the pick first; the same edit found twice counts once."""
    fit = allowed(trials, max_increase)
    share = shares([{concept: trial.gain(concept) for concept in concepts} for trial in fit])
    order = sorted(range(len(fit)), key=lambda place: (-share[place], fit[place].weights, fit[place].number))
    unique: dict[tuple[Any, ...], Trial] = {}
    for place in order:
        trial = fit[place]
        unique.setdefault((trial.weights, *(trial.gain(concept) for concept in concepts)), trial)
    return list(unique.values())


def survivors(order: Sequence[Trial], most: int) -> list[Trial]:
    """The `most` trials whose answers are judged, in the order of `order` (the best first): the best; then, going down,
    the best of those that move the model at most half as far as the last one taken (KL on general pairs), for
    answers can fall apart at a perplexity that looks unharmed; then the best of each rule, then the rest."""
    ladder: list[Trial] = []
    for trial in order:
        if trial.proxy and (not ladder or trial.proxy.kl <= (ladder[-1].proxy or trial.proxy).kl / 2):
            ladder.append(trial)
    rules = list({trial.recipe.rule: trial for trial in reversed(order)}.values())
    wanted = {trial.number: trial for trial in (*ladder, *(t for t in order if t in rules), *order)}
    return sorted(list(wanted.values())[:most], key=order.index)


def threshold(trials: int) -> float:
    """The z that a gain must exceed to count as found: one-sided 2.5% over all trials (Bonferroni)."""
    return float(-ndtri(ALPHA / 2 / max(trials, 1)))


def is_found(trial: Trial, trials: int) -> bool:
    """Whether every gain of the best of so many trials is more than chance."""
    return trial.proxy is not None and all(gain.low(threshold(trials)) > 0 for gain in trial.proxy.gains.values())


def front(trials: Sequence[Trial], concepts: Sequence[str]) -> list[int]:
    """The numbers of the trials that no other beats in every gain and in perplexity."""

    def point(trial: Trial) -> tuple[float, ...]:
        return (*(trial.gain(concept) for concept in concepts), -(trial.increase or 0.0))

    measured = [trial for trial in trials if trial.proxy]
    points = [point(trial) for trial in measured]
    return [
        trial.number
        for trial, own in zip(measured, points, strict=True)
        if not any(other != own and all(a >= b for a, b in zip(other, own, strict=True)) for other in points)
    ]


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


def described(recipe: Recipe) -> dict[str, str]:
    """A recipe's settings in a few classes each."""
    span = "all" if recipe.layers is None else "some"
    protected = "as many" if recipe.protect_ratio is None else "all kept"
    return {
        **{"rule": recipe.rule, "protected": protected, "granularity": recipe.granularity},
        **{"target": recipe.target, "balance": f"{dict(recipe.fractions) or 1}"},
        **{"penalty": f"{recipe.penalty:g}" if recipe.rule == BY_MARGIN else "none"},
        **{"scale": f"{recipe.scale:g}", "layers": span},
    }
