"""Which matrices are scored, by what, and how much of it is kept; and on what of the machine.

In: values from the command line or Python. Out: `ScoreSettings` and `MachineSettings`, checked. Left out: which data
are scored (data.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from spin_llm.settings.checks import check, invalid, no_choice, put, several
from spin_llm.settings.words import STATISTICS, Granularity, Selector, Target


@dataclass(frozen=True)
class ScoreSettings:
    """Scores"""

    target: Target = "mlp"
    """Which matrices."""
    selector: Selector = "taylor"
    """What importance is measured by; taylor is the paper's."""
    statistics: tuple[str, ...] = ()
    """Also store these statistics: margin, fisher, or another selector."""
    granularity: Granularity = "matrix"
    """What a ratio is a fraction of; matrix is the paper's."""
    keep: float = 0.01
    """Fraction of each matrix kept in the score files; no ratio can be larger."""

    def __post_init__(self) -> None:
        put(self, statistics=several(self.statistics))
        check(self, ScoreSettings)
        if not 0 < self.keep < 1:
            raise invalid("keep", self.keep, "a fraction above 0 and below 1")
        for statistic in self.statistics:
            if statistic not in STATISTICS:
                raise no_choice("statistics", statistic, STATISTICS)


@dataclass(frozen=True)
class MachineSettings:
    """Machine"""

    memory_budget: str | None = None
    """Memory for scoring, such as 8g (default: most of what is free)."""
    device_map: str | None = None
    """auto spreads the model over all devices."""
    skip_long: bool = False
    """Leave out pairs and questions that are too long, instead of ending with an error."""

    def __post_init__(self) -> None:
        check(self, MachineSettings)
