"""Cohen's kappa: how far two judges, or a judge and the labels, agree beyond chance.

In: two columns of 0/1 verdicts on the same answers, and the answers' prompts. Out: kappa with its 95% bootstrap
interval, whole prompts resampled. Kappa is 1 for full agreement, 0 for what two independent raters of these rates would
reach, and has no value (None) when both give every answer the same verdict. Left out: more than two raters at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from spin_llm.results.judged import Kappa
from spin_llm.results.measured import Interval
from spin_llm.stats.paired import resampled_sums

Floats = NDArray[np.float64]
Verdicts = Mapping[str, Sequence[int | None]]


def kappa_of(counts: Floats) -> Floats:
    """(..., 4) counts of (1, 1), (1, 0), (0, 1), (0, 0) -> (...) kappa; nan where chance alone gives full agreement."""
    shares = counts / counts.sum(-1, keepdims=True)
    agreed = shares[..., 0] + shares[..., 3]
    one, other = shares[..., 0] + shares[..., 1], shares[..., 0] + shares[..., 2]
    by_chance = one * other + (1 - one) * (1 - other)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(by_chance < 1, (agreed - by_chance) / (1 - by_chance), np.nan))


def agreement(one: Floats, other: Floats, prompts: Sequence[str], *, seed: int = 0) -> Kappa:
    """Kappa of two columns of 0/1 verdicts (n,).

    The percentile interval leaves out resamples without a kappa; with a single prompt, or no kappa, there is none.
    """
    kinds = np.stack([one * other, one * (1 - other), (1 - one) * other, (1 - one) * (1 - other)], 1)
    names, member = np.unique(np.array(prompts), return_inverse=True)
    by_prompt = np.zeros((len(names), 4))
    np.add.at(by_prompt, member, kinds)
    kappa = float(kappa_of(by_prompt.sum(0))) if len(one) else np.nan
    interval: Interval | None = None
    if np.isfinite(kappa) and len(names) > 1:
        low, high = np.nanquantile(kappa_of(resampled_sums(by_prompt, seed)), (0.025, 0.975))
        interval = float(low), float(high)
    return Kappa(
        kappa=kappa if np.isfinite(kappa) else None,
        ci95=interval,
        agree=float((one == other).mean()) if len(one) else None,
        n=len(one),
    )


def pairwise(verdicts: Verdicts, prompts: Sequence[str]) -> list[Kappa]:
    """`agreement` of every two judges on the answers that both have a verdict for; `between` names the two."""
    return [
        replace(shared(verdicts[first], verdicts[second], prompts), between=(first, second))
        for first, second in combinations(verdicts, 2)
    ]


def shared(one: Sequence[int | None], other: Sequence[int | None], prompts: Sequence[str]) -> Kappa:
    """`agreement` on the rows where neither is None."""
    rows = [(a, b, prompt) for a, b, prompt in zip(one, other, prompts, strict=True) if a is not None and b is not None]
    first, second = (np.array([row[side] for row in rows], dtype=np.float64) for side in (0, 1))
    return agreement(first, second, [prompt for _, _, prompt in rows])
