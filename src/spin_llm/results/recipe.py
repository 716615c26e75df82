"""How an edit is made: rule, ratios, target, layers, granularity and strength, as one value that can be recorded.

In: the settings of one edit. Out: `Recipe`, which goes into patch metadata, search journals and back. Left out:
selecting by it (selection/), and which recipe is a good one (search/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

PENALTY = 2.0
Layers = tuple[int, int]  # the first and the last


@dataclass(frozen=True)
class Recipe:
    """The options of `select`, and `scale`: what the selected weights are multiplied by."""

    rule: str
    ratio: float
    protect_ratio: float | None = None
    target: str = "mlp"
    granularity: str = "matrix"
    layers: Layers | None = None
    at_least: int | None = None
    penalty: float = PENALTY
    fractions: tuple[tuple[str, float], ...] = ()
    scale: float = 0.0

    @property
    def spares(self) -> float:
        """The ratio of the protected sets' top sets."""
        return self.ratio if self.protect_ratio is None else self.protect_ratio

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

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


def recipe_of(record: Mapping[str, Any]) -> Recipe:
    """A recipe from JSON, or from a patch's metadata, which has more; what older ones lack has its default."""
    known = {field.name: record[field.name] for field in fields(Recipe) if field.name in record}
    layers = known.get("layers")
    fractions = tuple((name, part) for name, part in known.get("fractions", ()))
    return Recipe(**{**known, "layers": tuple(layers) if layers else None, "fractions": fractions})
