"""One recipe and what it did.

In: a recipe, its proxy. Out: the trial, and back from a row of the journal. Left out: making it (trials.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spin_llm.results.recipe import Recipe, recipe_of
from spin_llm.search.proxy import Gain, Proxy


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


def trial_of(row: Mapping[str, Any]) -> Trial:
    """A trial from its JSON."""
    proxy = row["proxy"]
    if proxy is not None:
        gains = {name: Gain(gain["gain"], gain["error"], gain["aware"]) for name, gain in proxy["gains"].items()}
        proxy = Proxy(gains, proxy["increase"], proxy["kl"])
    return Trial(row["number"], recipe_of(row["recipe"]), row["weights"], row["increase"], proxy, row["why"])
