"""The rule of the pick: which trials survive by their margins, and which survivor is best by its answers.

In: trials; survivors, questions in two halves, judges. Out: which are allowed, their shares, their order, the survivors
and the front; what each survivor answered, the better half, the pick among them:

    allowed      perplexity rises by at most the allowed fraction
    share_D      gain on the concept D / the largest gain on D of any allowed trial
    pick         the largest smallest share over the concepts; of equal ones the fewest weights

Gains are of margins, then of awareness rates among those that refuse at most 2 points more, are coherent at most 5
points less and answer at most 2 points less of the questions. On an axis where the judge was not measured
(judges/quality/reading.py) verdicts decide nothing: a concept goes by its margin, over-refusal and coherence limit
nothing, and it is said. Verdicts that are missing count for nothing where they are few, and against the edit where they
forbid a reading (evaluate/axes.py). Left out: the record (find.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from scipy.special import ndtri

from spin_llm.evaluate.answers import Evaluation
from spin_llm.evaluate.comparison import evaluate
from spin_llm.evaluate.likelihood import View
from spin_llm.judges.verdict import Judge
from spin_llm.patch.patch import memory_patch
from spin_llm.progress import Console
from spin_llm.results.measured import ANSWERED, BASE, EDITED, AxisResult
from spin_llm.results.searched import Rates, SurvivorRecord, Trial
from spin_llm.search.trials import Bench
from spin_llm.selection import select
from spin_llm.stats.paired import ALPHA

MAX_REFUSAL, MAX_INCOHERENCE, MAX_SILENCE = 0.02, 0.05, 0.02  # rates
LIMITS = {  # axis: (its name, the sign of what is worse, by how much it may be)
    "over_refusal": ("over-refusal", 1, MAX_REFUSAL),
    "coherence": ("coherence", -1, MAX_INCOHERENCE),
    ANSWERED: ("questions answered", -1, MAX_SILENCE),
}


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


@dataclass(frozen=True)
class Answered:
    """Rates of one survivor on the search questions by axis, over the rungs that it reached.

    `unread`: the axes on which missing verdicts were counted against it; `unmeasured`: those on which verdicts decide
    nothing, with the reason.
    """

    trial: Trial
    rates: dict[str, Rates]
    unread: frozenset[str] = frozenset()
    unmeasured: Mapping[str, str] = field(default_factory=dict)

    @property
    def deciding(self) -> list[str]:
        """The axes whose rates count."""
        return [axis for axis in self.rates if axis not in self.unmeasured]

    def gain(self, axis: str) -> float:
        rates = self.rates[axis]
        return rates.edited - rates.base if rates.n else 0.0

    @property
    def excess(self) -> float:
        """By how much (a rate) it refuses, falls apart and is silent more than the pick may; 0 within the limits."""
        beyond = (sign * self.gain(axis) - most for axis, (_, sign, most) in LIMITS.items() if axis in self.deciding)
        return sum(max(0.0, rate - 1e-9) for rate in beyond)

    @property
    def sound(self) -> bool:
        """Whether it refuses, falls apart and is silent no more than the pick may."""
        return self.excess == 0

    def after(self, axes: Mapping[str, AxisResult]) -> Answered:
        """With what it answered in one more rung, as results.json has it."""
        unread = self.unread | {axis for axis, result in axes.items() if result.no_reading}
        notes = {axis: result.note or "" for axis, result in axes.items() if not result.measurable}
        return Answered(self.trial, added(self.rates, axes), unread, {**self.unmeasured, **notes})

    def point(self, concepts: Sequence[str]) -> tuple[float, ...]:
        """How good it is on every concept, on over-refusal and on perplexity."""
        gains = (self.gain(concept) for concept in concepts if concept in self.deciding)
        refusal = self.gain("over_refusal") if "over_refusal" in self.deciding else 0.0
        return (*gains, -refusal, -(self.trial.increase or 0.0))

    def record(self, rows: Sequence[Answered], concepts: Sequence[str]) -> SurvivorRecord:
        """Beside the survivors of the last rung."""
        front = unbeaten(self.point(concepts), [row.point(concepts) for row in rows])
        return SurvivorRecord(self.trial.number, self.rates, self.sound, front, sorted(self.unread))


def answer(
    bench: Bench,
    trials: Sequence[Trial],
    questions: Evaluation,
    folder: Path,
    judges: tuple[Judge, Judge | None],
    console: Console,
) -> tuple[list[Answered], list[Answered]]:
    """Successive halving by the verdicts of (judge, judge of coherence): (those of the second rung, those that the
    first one dropped)."""
    judge, coherence = judges
    first, second = (
        {axis: asked[rung::2] for axis, asked in questions.questions.items() if len(asked) > rung} for rung in (0, 1)
    )
    rows, dropped = [Answered(trial, {}) for trial in trials], []
    for rung, asked in (("1", first), ("2", second)):
        if rung == "2":
            every, rows = rows, better_half(rows, bench.concepts)
            dropped = [row for row in every if row not in rows]
        if not asked:
            break
        views: dict[str, View] = {BASE: lambda: nullcontext(bench.loaded)}
        for place, row in enumerate(rows):
            patch = memory_patch(bench.loaded, select(bench.scores, row.trial.recipe))
            views[EDITED if place == 0 else f"edit-{row.trial.number}"] = partial(patch.applied, bench.loaded)
        part = replace(questions, questions=asked, general=())
        console.say(f"search, rung {rung}: {len(rows)} edits answer {sum(map(len, asked.values()))} questions")
        measured = evaluate(views, part, judge, folder / f"rung-{rung}", coherence=coherence, console=console)
        tables = [measured.axes, *(control.axes for control in measured.controls.values())]
        rows = [row.after(axes) for row, axes in zip(rows, tables, strict=True)]
    return rows, dropped


def added(rates: Mapping[str, Rates], axes: Mapping[str, AxisResult]) -> dict[str, Rates]:
    """The rates of two sets of questions taken together."""
    found = {}
    for axis, result in axes.items():
        old, new = rates.get(axis, Rates(0, 0.0, 0.0)), least(result)
        total = old.n + new.n
        base, edited = ((old.n * a + new.n * b) / total for a, b in ((old.base, new.base), (old.edited, new.edited)))
        found[axis] = Rates(total, base, edited)
    return found


def least(result: AxisResult) -> Rates:
    """The rates of one axis of results.json; where it has no reading, with every missing verdict against the edit: a
    model that falls silent gains nothing."""
    if result.no_reading and result.bounds and result.asked:
        worst = (1, 0) if result.better == "higher" else (0, 1)
        return Rates(result.asked, result.bounds.base[worst[0]], result.bounds.edited[worst[1]])
    return Rates(result.n, result.base or 0.0, result.edited or 0.0)


def unmeasured_in(rows: Sequence[Answered]) -> dict[str, str]:
    """The axes on which verdicts decide nothing, with the reason."""
    return {axis: why for row in rows for axis, why in row.unmeasured.items()}


def unmeasured_text(unmeasured: Mapping[str, str], concepts: Sequence[str]) -> str:
    """What is said of the axes on which verdicts decide nothing; "" where there are none."""
    by_reason: dict[str, list[str]] = {}
    for axis, why in unmeasured.items():
        by_reason.setdefault(why, []).append(axis)
    told = "; ".join(f"{', '.join(axes)} ({why})" for why, axes in by_reason.items())
    instead = ", where margins stand in for them" if set(unmeasured) & set(concepts) else ""
    return f" Verdicts decided nothing on {told}{instead}." if told else ""


def within(rows: Sequence[Answered]) -> str:
    """`within the limits on over-refusal and coherence`: those that count for the rows."""
    *first, last = [name for axis, (name, *_) in LIMITS.items() if any(axis in row.deciding for row in rows)] or [
        "cost"
    ]
    return f"within the limits on {', '.join(first)}{' and ' if first else ''}{last}"


def better_half(rows: Sequence[Answered], concepts: Sequence[str]) -> list[Answered]:
    """The better half by the rule of the pick, at least one, the sound ones before the others. A concept whose answers
    were not judged, or whose verdicts decide nothing, goes by its margin; where that is so of all, the rows' own order
    is kept, which is that of the margins."""
    judged = {concept for row in rows for concept in concepts if concept in row.deciding}
    gains = [{c: row.gain(c) if c in row.deciding else row.trial.gain(c) for c in concepts if judged} for row in rows]
    share = shares(gains)
    order = sorted(range(len(rows)), key=lambda place: (not rows[place].sound, -share[place], place))
    return [rows[place] for place in order[: (len(rows) + 1) // 2]]


def pick_answered(rows: Sequence[Answered], dropped: Sequence[Answered], concepts: Sequence[str]) -> tuple[Trial, str]:
    """(the pick among the survivors of the last rung, the reason in words); where none is within the limits, of all
    that answered the one that exceeds them least."""
    sound = [row for row in rows if row.sound]
    unread = sorted(frozenset().union(*(row.unread for row in (*rows, *dropped))))
    missing = f" Missing verdicts on {', '.join(unread)} were counted against the edits." if unread else ""
    missing += unmeasured_text(unmeasured_in((*rows, *dropped)), concepts)
    if not sound:
        nearest = min((*rows, *dropped), key=lambda row: row.excess)
        return nearest.trial, (
            f"No survivor stayed {within(rows)}: the one that exceeds them least is taken (by "
            f"{100 * nearest.excess:.1f} points).{missing}"
        )
    best = better_half(sound, concepts)[0]
    gains = ", ".join(
        f"{concept} {100 * best.gain(concept):+.1f} points" for concept in concepts if concept in best.deciding
    )
    edits = "one edit" if len(rows) == 1 else f"{len(rows)} edits"
    if not gains:
        others = [concept for concept in concepts if concept not in best.rates]
        unjudged = f"The judge does not judge {', '.join(others)}. " if others else ""
        return best.trial, (
            f"{unjudged}Of {edits} in the last rung, {len(sound)} within the limits on what was judged, it is the "
            f"first by the margins.{missing}"
        )
    return best.trial, (
        f"Of {edits} in the last rung, {len(sound)} {within(rows)}, it has the largest smallest share of what any "
        f"gained ({gains} on the search questions).{missing}"
    )
