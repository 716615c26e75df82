"""What a rule is.

In: nothing. Out: `Rule`, one frozen value for each (coupled.py, signed.py), and `Ranked`, what it chooses from. A rule
takes top sets of its rankings and makes of them one set of weights. Left out: checking what is asked (select.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from spin_llm.results.edited import Recipe
from spin_llm.scores import Scores, ScoreSet
from spin_llm.selection.tops import GRANULARITIES, Tops, top_sets
from spin_llm.settings import BY_MARGIN, OWN

Rankings = Mapping[str, tuple[Scores, float]]  # what a rule takes a top set of, and the ratio, by name


class Rank(Protocol):
    """The rankings of the matrices `names`. `held` is what stays as it is on all examples where the scores are of
    resampled ones; entries that are protected are left out, or with `spare` false are not."""

    def __call__(
        self, scores: ScoreSet, names: Sequence[str], recipe: Recipe, *, held: Any = None, spare: bool = True
    ) -> Rankings: ...


@dataclass(frozen=True)
class Ranked:
    """What a rule chooses from: the rankings that it made of `scores` for the matrices `names`, and their top sets."""

    scores: ScoreSet
    names: Sequence[str]
    recipe: Recipe
    rankings: Rankings
    tops: Mapping[str, Tops]


@dataclass(frozen=True)
class Rule:
    """One way to choose weights. All flat indices are int64, by matrix name.

    `choose` gives the chosen entries of `Ranked`, sorted, matrices without any left out; `counts` (the candidates, how
    many of them all concepts share); `apart(scores, names, recipe, concept)` one concept's entries that are no other
    concept's and not protected, largest first; `held` what resampling keeps; `smallest` the smallest ratio at which a
    weight is chosen by matrix. `spares_own`: whether what the model's own aware answers need (OWN) is protected; other
    rules look for its top set. `weighs`: whether gains are weighed against what they cost by the recipe's penalty;
    other rules compare top sets.
    """

    name: str
    rankings: Rank
    choose: Callable[[Ranked], Tops]
    counts: Callable[[Ranked], tuple[int, int]]
    apart: Callable[[ScoreSet, Sequence[str], Recipe, str], Tops]
    held: Callable[[ScoreSet, Sequence[str], Recipe], Any] = lambda scores, names, recipe: None
    smallest: Callable[[ScoreSet, Sequence[str], Recipe], float | None] | None = None
    granularities: tuple[str, ...] = GRANULARITIES
    spares_own: bool = False
    weighs: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The statistics that the concepts' scores must hold."""
        return ("margin",) if self.name in BY_MARGIN else ()

    def spared(self, scores: ScoreSet) -> ScoreSet:
        """The scores with those protected sets alone that this rule spares."""
        protected = {name: part for name, part in scores.protected.items() if self.spares_own or name != OWN}
        return ScoreSet(scores.concepts, protected)

    def ranked(
        self, scores: ScoreSet, names: Sequence[str], recipe: Recipe, *, held: Any = None, decided: bool = True
    ) -> Ranked:
        """The rankings and their top sets; SpinError when the kept scores do not decide a top set, unless `decided` is
        False: then, and of gains that are weighed, it is the top of what is kept."""
        rankings = self.rankings(scores, names, recipe, held=held)
        decided = decided and not self.weighs
        tops = {
            name: top_sets(part, names, ratio, recipe.granularity, decided=decided)
            for name, (part, ratio) in rankings.items()
        }
        return Ranked(scores, names, recipe, rankings, tops)
