"""What the files of the paper's experiments hold, by type.

In: nothing. Out: frozen dataclasses of an arm's files and EXPERIMENT.json. Left out: how each number is measured
(analysis/).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypedDict

from spin_llm.results.file import PhrasesRecord
from spin_llm.results.judged import JudgeSummary
from spin_llm.results.measured import AxisResult, Count, Interval, Layer, Number, Share
from spin_llm.results.searched import Gain
from spin_llm.settings import CONCEPTS


@dataclass(frozen=True)
class AtBandwidth:
    """Dependence at a multiple of the median bandwidths."""

    multiplier: Number
    hsic: Number
    cka: Number | None
    p: Share


@dataclass(frozen=True)
class Projected:
    """Nearest-neighbour information of leading components, and of independent ones."""

    information: Number | None
    independent: Number | None
    p: Share


@dataclass(frozen=True)
class Dependence:
    """How dependent two concepts' representations are at one layer; p_holm: Holm's adjustment of p over the layers."""

    bandwidths: list[Number]
    hsic_biased: Number
    hsic_of_independent: Number
    hsic: Number
    hsic_band: Interval | None
    p: Share
    cka_biased: Number | None
    cka: Number | None
    cka_band: Interval | None
    cka_linear: Number | None
    sensitivity: list[AtBandwidth]
    projected: Projected | None
    p_holm: Share | None = None


@dataclass(frozen=True)
class Shift:
    """Edited - base."""

    value: Number | None
    band: Interval | None


@dataclass(frozen=True)
class LayerRecord:
    """One layer before an edit, and after it where there is one."""

    layer: Layer
    before: Dependence
    after: Dependence | None = None
    change: dict[str, Shift] = field(default_factory=dict)

    always = ("after", "change")

    @property
    def both(self) -> tuple[Dependence, Dependence]:
        """Before and after; there is an edit."""
        assert self.after is not None
        return self.before, self.after


@dataclass(frozen=True)
class Measures:
    """What is computed per layer: random pairings for p, half samples for bands, `multipliers` of the median
    bandwidth, and the nearest-neighbour opinion on `components` principal components (`opinions` random pairings; no
    second opinion where 0)."""

    permutations: Count = 999
    halves: Count = 500
    multipliers: tuple[Number, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    components: Count = 3
    neighbours: Count = 3
    opinions: Count = 39
    seed: Count = 0

    always = ("permutations", "halves", "multipliers", "components", "neighbours", "opinions", "seed")


@dataclass(frozen=True)
class DependenceRecord:
    """By place in the text, layer by layer; `framings` by concept where the pairing is `framed`."""

    concepts: list[str]
    pairing: str
    framings: dict[str, str] | None
    template: str
    pairs: Count
    dimensions: Count
    edited_weights: Count
    scale: Number
    measures: Measures
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
    of: Count
    rule: str
    ratio: Share
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
    output: list[list[Number | None]] = field(default_factory=list)
    input: list[list[Number | None]] = field(default_factory=list)
    chance: list[list[Number | None]] = field(default_factory=list)


@dataclass(frozen=True)
class LocationRecord:
    """{} where nothing was selected; `about`: what each selection is, also those that could not be made."""

    about: dict[str, str] = field(default_factory=dict)
    selections: dict[str, SelectionPlace] = field(default_factory=dict)
    agreement: Agreement = field(default_factory=Agreement)


@dataclass(frozen=True)
class AboutArm:
    """How many weights differ from the base's; of no edit why, of an edit what made it, of a training its last loss."""

    weights: Count
    why: str | None = None
    rule: str | None = None
    ratio: Share | None = None
    granularity: str | None = None
    penalty: Number | None = None
    scale: Number | None = None
    loss: Number | None = None


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


class ArmOptions(TypedDict, total=False):
    """What an edit changes of RunSettings, or what a training is told of BaselineSettings; `mix`: the share of privacy
    pairs."""

    rule: str
    ratio: Number | None
    target: str
    selector: str
    examples: Count
    responses: str
    seed: int
    concepts: tuple[tuple[str, str], ...]
    method: str
    mix: Share


@dataclass(frozen=True)
class Arm:
    """One model of an experiment; `below`: under the line, not the paper's."""

    name: str
    kind: Literal["base", "edit", "train"] = "base"
    options: ArmOptions = field(default_factory=ArmOptions)
    below: bool = False

    always = ("kind", "options", "below")


@dataclass(frozen=True)
class Experiment:
    """One table or figure of the paper. `kind` says what is measured on the arms: answers, lm-eval tasks, dependence of
    representations, or margins alone (concepts without a judge)."""

    name: str
    title: str
    arms: tuple[Arm, ...]
    kind: Literal["answers", "tasks", "information", "margins"] = "answers"
    axes: tuple[str, ...] = (*CONCEPTS, "over_refusal", "coherence", "perplexity")
    printed: str | None = None
    shows: str = ""

    always = ("kind", "axes", "printed", "shows")


@dataclass(frozen=True)
class ExperimentRecord:
    """EXPERIMENT.json of the paper's report; `not_run`: why it could not be run (again)."""

    experiment: Experiment
    results: list[ArmRecord] | None = None
    model: str = ""
    differs: list[str] = field(default_factory=list)
    not_run: str | None = None
