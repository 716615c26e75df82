"""What is summed over examples, and what is made of the sums.

In: a weight, and the sums over examples (accumulate.py) or inputs that reached it. Out: float32 accumulators, each
allocated only when a statistic needs it, and dense scores made of them. For a matrix W, G_s = dL(s)/dW and X the inputs
that it saw:

    taylor (importance)   mean_s |W * G_s|                     the paper's score (section 3.2)
    gradient              mean_s |G_s|
    fisher                mean_s G_s^2                          diagonal empirical Fisher information
    margin                mean_aware W*G_s - mean_unaware W*G_s  first-order change of (loss of the unaware responses -
                                                              loss of the aware ones) when the weight is suppressed
    wanda                 |W| * ||X_j||_2                        Sun et al. 2024, over all tokens
    sparsegpt             W^2 * (mean X_j^2 + damping)           Frantar & Alistarh 2023, the Hessian's diagonal alone
    magnitude             |W|
    random                uniform, seeded by the matrix's name

Left out: SparseGPT's full inverse Hessian, which is quadratic in the input width.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from spin_llm.scores.accumulate import Totals

SPARSEGPT_DAMPING = 0.01  # of the mean diagonal, as in the paper's code


@dataclass(frozen=True)
class Counts:
    """How much went into the sums: examples with aware and with unaware responses, and tokens that reached the
    matrix."""

    examples: int
    unaware: int
    tokens: int
    seed: int


@dataclass(frozen=True)
class Statistic:
    """A score: the accumulators that it `needs` and `finish(weight, totals, counts, name)`, float32, shaped as
    `weight`."""

    needs: tuple[str, ...]
    finish: Callable[[torch.Tensor, Totals, Counts, str], torch.Tensor]
    unaware: bool = False


def _random(weight: torch.Tensor, totals: Totals, counts: Counts, name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{counts.seed} {name}".encode()))  # it looks at 32 bits
    return torch.rand(weight.shape, generator=generator).to(weight.device)


def _sparsegpt(weight: torch.Tensor, totals: Totals, counts: Counts, name: str) -> torch.Tensor:
    diagonal = totals["inputs"] / max(counts.tokens, 1)
    return weight.square() * (diagonal + SPARSEGPT_DAMPING * diagonal.mean())


STATISTICS: dict[str, Statistic] = {
    "taylor": Statistic(("absolute",), lambda w, t, c, name: t["absolute"].mul_(w.abs()).div_(c.examples)),
    "gradient": Statistic(("absolute",), lambda w, t, c, name: t["absolute"] / c.examples),
    "fisher": Statistic(("squared",), lambda w, t, c, name: t["squared"].div_(c.examples)),
    "margin": Statistic(("signed",), lambda w, t, c, name: t["signed"].mul_(w), unaware=True),
    "wanda": Statistic(("inputs",), lambda w, t, c, name: w.abs() * t["inputs"].sqrt()),
    "sparsegpt": Statistic(("inputs",), _sparsegpt),
    "magnitude": Statistic((), lambda w, t, c, name: w.abs()),
    "random": Statistic((), _random),
}
SELECTORS = ("taylor", "wanda", "magnitude", "gradient", "sparsegpt", "random")


def accumulators(names: Iterable[str]) -> tuple[str, ...]:
    """The accumulators that these statistics need, each once."""
    return tuple(dict.fromkeys(need for name in names for need in STATISTICS[name].needs))


def formed(names: Iterable[str], unaware: Sequence[object]) -> tuple[str, ...]:
    """Those of these statistics that can be formed: without unaware responses not those that look at them."""
    return tuple(name for name in names if unaware or not STATISTICS[name].unaware)


def new_totals(kinds: Sequence[str], weight: torch.Tensor, *, transposed: bool) -> Totals:
    """Zeroed float32 accumulators on the weight's device: shaped as the weight, `inputs` broadcastable along its
    inputs."""
    inputs = (weight.shape[0], 1) if transposed else (1, weight.shape[1])
    shapes = {kind: inputs if kind == "inputs" else tuple(weight.shape) for kind in kinds}
    return {kind: torch.zeros(shape, device=weight.device) for kind, shape in shapes.items()}


def add_inputs(totals: Totals, inputs: torch.Tensor) -> None:
    """Add the squared inputs (tokens, in) of one example, summed over its tokens."""
    total = totals["inputs"]
    total.add_(inputs.float().square().sum(0).view(total.shape))


def finish(
    names: Sequence[str], weight: torch.Tensor, totals: Totals, counts: Counts, name: str
) -> Mapping[str, torch.Tensor]:
    """Dense scores of one matrix by statistic.

    Those that consume their accumulator in place come last.
    """
    wide = weight.detach().float()
    order = sorted(names, key=lambda statistic: statistic in ("taylor", "margin", "fisher"))
    return {statistic: STATISTICS[statistic].finish(wide, totals, counts, name) for statistic in order}
