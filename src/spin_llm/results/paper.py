"""What the files of the paper's experiments hold, by type.

In: nothing. Out: frozen dataclasses that decode an arm's files and EXPERIMENT.json. Left out: of `information` and
`location`, what no table shows (analysis/ says what else is there).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from spin_llm.results.file import PhrasesRecord
from spin_llm.results.judged import JudgeSummary
from spin_llm.results.measured import AxisResult, Count, Interval, Layer, Number
from spin_llm.results.searched import Gain


@dataclass(frozen=True)
class AtBandwidth:
    multiplier: Number
    cka: Number | None


@dataclass(frozen=True)
class Projected:
    """Nearest-neighbour information of leading components, and of independent ones."""

    information: Number | None
    independent: Number | None


@dataclass(frozen=True)
class Dependence:
    """How dependent two concepts' representations are at one layer."""

    hsic: Number | None
    p: Number | None
    cka: Number | None
    sensitivity: list[AtBandwidth] = field(default_factory=list)
    hsic_band: Interval | None = None
    cka_band: Interval | None = None
    projected: Projected | None = None


@dataclass(frozen=True)
class Shift:
    value: Number | None
    band: Interval | None


@dataclass(frozen=True)
class LayerRecord:
    layer: Layer
    before: Dependence
    after: Dependence
    change: dict[str, Shift] = field(default_factory=dict)


@dataclass(frozen=True)
class DependenceRecord:
    """By place in the text, layer by layer."""

    pairs: Count
    places: dict[str, list[LayerRecord]]


@dataclass(frozen=True)
class BesideChance:
    value: Number | None
    by_chance: Number | None


@dataclass(frozen=True)
class Recurring:
    dimension: Count
    layers: Count
    weights: Count


@dataclass(frozen=True)
class SideRecord:
    """The dimensions of one side of a kind of matrix."""

    size: Count
    used: Count
    gini: BesideChance
    layers_sharing: Count
    layers_sharing_by_chance: Number | None
    most: list[Recurring]


@dataclass(frozen=True)
class SelectionPlace:
    """Where a selection lies: weights by layer, by matrix and layer, and by matrix and side."""

    weights: Count
    layers: list[Count]
    matrices: dict[str, list[Count]]
    gini_layers: BesideChance
    gini_matrices: BesideChance
    dimensions: dict[str, dict[str, SideRecord]]


@dataclass(frozen=True)
class Agreement:
    """Jaccard indices of each two of `names`."""

    names: list[str] = field(default_factory=list)
    weights: list[list[Number | None]] = field(default_factory=list)
    chance: list[list[Number | None]] = field(default_factory=list)
    output: list[list[Number | None]] = field(default_factory=list)
    input: list[list[Number | None]] = field(default_factory=list)


@dataclass(frozen=True)
class LocationRecord:
    """{} where nothing was selected; `about`: what each selection is, also those that could not be made."""

    about: dict[str, str] = field(default_factory=dict)
    selections: dict[str, SelectionPlace] = field(default_factory=dict)
    agreement: Agreement = field(default_factory=Agreement)


@dataclass(frozen=True)
class AboutArm:
    weights: Count
    why: str | None = None


@dataclass(frozen=True)
class ArmRecord:
    """What was measured on one model of the paper's experiments; `information` by title of the pairs and the edit."""

    name: str
    kind: Literal["base", "edit", "train"]
    about: AboutArm
    axes: dict[str, AxisResult] = field(default_factory=dict)
    style: dict[str, dict[str, AxisResult]] = field(default_factory=dict)
    phrases: dict[str, PhrasesRecord] = field(default_factory=dict)
    judge: JudgeSummary | None = None
    gains: dict[str, Gain] = field(default_factory=dict)
    increase: Number | None = None
    kl: Number | None = None
    information: dict[str, DependenceRecord] | None = None
    location: LocationRecord | None = None


@dataclass(frozen=True)
class ArmSpec:
    name: str
    kind: Literal["base", "edit", "train"]
    options: dict[str, Any]
    below: bool


@dataclass(frozen=True)
class ExperimentSpec:
    name: str
    title: str
    arms: list[ArmSpec]
    kind: Literal["answers", "tasks", "information", "margins"]
    axes: list[str]
    printed: str | None
    shows: str


@dataclass(frozen=True)
class ExperimentRecord:
    """EXPERIMENT.json of the paper's report."""

    experiment: ExperimentSpec
    results: list[ArmRecord] | None = None
    model: str = ""
    differs: list[str] = field(default_factory=list)
    not_run: str | None = None
