"""How an edit is made (`Recipe`, which goes into patch metadata, search journals and back), and where it sits, by type.

In: nothing. Out: frozen dataclasses; also of `edit`, `ratio_table`, `overlap` and `stability` of results.json. Left
out: making the edit (selection/, patch/), and which recipe is a good one (search/).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Annotated

from msgspec import Meta

from spin_llm.results.judged import OwnAnswers
from spin_llm.results.measured import Count, Layer, Name, Number, Positive, Share

PENALTY = 2.0
Layers = tuple[Layer, Layer]  # the first and the last


@dataclass(frozen=True)
class Recipe:
    """How an edit is made, as one value that can be recorded: what `select` is told, and `scale`: what the selected
    weights are multiplied by."""

    rule: Name
    ratio: Share
    protect_ratio: Share | None = None
    target: Name = "mlp"
    granularity: Name = "matrix"
    layers: Layers | None = None
    at_least: Positive | None = None
    penalty: Number = PENALTY
    fractions: tuple[tuple[Name, Number], ...] = ()
    scale: Number = 0.0

    always = ("protect_ratio", "target", "granularity", "layers", "at_least", "penalty", "fractions", "scale")

    @property
    def spares(self) -> float:
        """The ratio of the protected sets' top sets."""
        return self.ratio if self.protect_ratio is None else self.protect_ratio

    def words(self) -> str:
        """One line for people, what is as usual left out."""
        parts = [self.rule, f"ratio {self.ratio:.3g} by {self.granularity}"]
        if self.protect_ratio is not None:
            parts.append(f"protected {self.protect_ratio:.3g}")
        if self.layers is not None:
            parts.append(f"layers {self.layers[0]} to {self.layers[1]}")
        if self.at_least is not None:
            parts.append(f"at least {self.at_least} concepts")
        parts += [f"penalty {self.penalty:g}"] if self.penalty != PENALTY else []
        parts += [f"{name} x {part:.3g}" for name, part in self.fractions if part != 1]
        parts += [f"scale {self.scale:g}"] if self.scale else []
        return ", ".join([*parts, self.target])


@dataclass(frozen=True)
class Edit:
    """What was chosen, by which rule, and where it lies; {} when two models were compared without a patch."""

    rule: str | None = None
    ratio: Number | None = None
    protect_ratio: Number | None = None
    target: str | None = None
    scale: Number | None = None
    weights: Positive | None = None
    matrices: Positive | None = None
    share: Number | None = None
    candidates: Count | None = None
    shared: Count | None = None
    per_matrix: dict[str, Count] = field(default_factory=dict)
    shapes: dict[str, list[Count]] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    own_answers: OwnAnswers | None = None

    @property
    def always(self) -> tuple[str, ...]:
        fields = ("rule", "ratio", "protect_ratio", "target", "scale", "candidates", "shared", "share")
        return (*fields, "per_matrix", "shapes", "layers", "kinds") if self.weights is not None else ()

    def __post_init__(self) -> None:
        if self.per_matrix and (self.weights is None or self.matrices is None or self.target is None):
            raise ValueError("an edit has weights, matrices and target")
        if lacking := self.per_matrix.keys() - (self.shapes.keys() & self.layers.keys()):
            raise ValueError(f"{min(lacking)} has no shape or no layer")


@dataclass(frozen=True)
class RatioTried:
    """One ratio that was tried."""

    ratio: Annotated[float, Meta(gt=0, le=1)]
    weights: Count
    perplexity: Number | None
    increase: Number | None
    allowed: bool
    chosen: bool
    both: Count | None = None
    candidates: Count | None = None
    pairs: Count | None = None  # that perplexity is over

    always = ("both", "candidates")


@dataclass(frozen=True)
class Spread:
    mean: Number
    low: Number
    high: Number


@dataclass(frozen=True, kw_only=True)
class Stability:
    """`stability` of results.json."""

    resamples: Count
    seed: Count = 0
    weights: Count
    jaccard: Spread
    size: Spread
    in_half: Count
    in_most: Count
    others_in_half: Count | None = None
    split_half: Spread | None = None

    always = ("seed",)


@dataclass(frozen=True)
class Edge:
    """How near the resamples came to what is no candidate (analysis/stability.py)."""

    threshold: Share
    outer: Share


@dataclass(frozen=True)
class Frequency:
    """In which fraction of the resamples each weight of one matrix was selected, by its flat index."""

    indices: list[Count]
    frequency: list[Share]


@dataclass(frozen=True, kw_only=True)
class StabilityRecord(Stability):
    """stability.json; `top_sets`: the mean Jaccard index of each ranking's top set, `reproduced` that of the selection
    made of all examples again, `multiple` the candidates' (of the ratio), `examples` by set."""

    top_sets: dict[str, Share]
    reproduced: Share
    multiple: Number
    edge: Edge
    frequency: dict[str, Frequency]
    rule: str
    ratio: Share
    protect_ratio: Share | None
    granularity: str
    examples: dict[str, Count]

    @property
    def summary(self) -> Stability:
        """The `stability` part of results.json."""
        return Stability(**{one.name: getattr(self, one.name) for one in fields(Stability)})


@dataclass(frozen=True)
class Regions:
    """The top sets at the edit's ratios; a region A&B has the entries in A and B and in no other set."""

    concepts: list[Name]
    protect: list[Name]
    regions: dict[str, Count]

    def __post_init__(self) -> None:
        names = [*self.concepts, *self.protect]
        if not self.concepts or len(set(names)) < len(names):
            raise ValueError("the sets of an overlap have one name each, and one is a concept's")


def matrix_column(name: str, layer: int) -> str:
    """What a matrix is called in every layer; those that repeat inside one (experts) under one name.

    >>> matrix_column("model.layers.3.mlp.experts.12.up_proj.weight", 3)
    'mlp.experts.*.up_proj'
    """
    return re.sub(r"\.\d+(?=\.|$)", ".*", name.split(f".{layer}.", 1)[-1].removesuffix(".weight"))
