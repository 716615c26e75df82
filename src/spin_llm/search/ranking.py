"""The rule of the pick.

In: trials. Out: which are allowed, their shares, their order, the survivors and the front:

    allowed      perplexity rises by at most the allowed fraction
    share_D      gain on the concept D / the largest gain on D of any allowed trial
    pick         the largest smallest share over the concepts; of equal ones the fewest weights

Left out: what the gains are of: margins, then awareness rates (answered.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from scipy.special import ndtri

from spin_llm.results.searched import Trial
from spin_llm.stats.paired import ALPHA

MAX_REFUSAL, MAX_INCOHERENCE, MAX_SILENCE = 0.02, 0.05, 0.02  # rates; of the pick among survivors


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
    unique: dict[tuple[float, ...], Trial] = {}
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
    points = {
        trial.number: (*(trial.gain(concept) for concept in concepts), -(trial.increase or 0.0))
        for trial in trials
        if trial.proxy
    }
    return [number for number, point in points.items() if unbeaten(point, points.values())]


def unbeaten(own: Sequence[float], points: Iterable[Sequence[float]]) -> bool:
    """Whether no other of the points is as good in everything and better in something."""
    return not any(other != own and all(a >= b for a, b in zip(other, own, strict=True)) for other in points)
