"""How an edit is made: rule, ratios, target, layers, granularity and strength, as one value that can be recorded.

In: the settings of one edit. Out: `Recipe`, which goes into patch metadata, search journals and back. Left out:
selecting by it (selection/), and which recipe is a good one (search/).
"""

from __future__ import annotations

from dataclasses import dataclass

from spin_llm.results.measured import Layer, Name, Number, Positive, Share

PENALTY = 2.0
Layers = tuple[Layer, Layer]  # the first and the last


@dataclass(frozen=True)
class Recipe:
    """What `select` is told, and `scale`: what the selected weights are multiplied by."""

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
