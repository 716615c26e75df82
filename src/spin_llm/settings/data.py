"""Which model reads which data, what is scored by what, on what machine: what scores, and so all after them, depend on.

In: values from the command line or Python; sources as texts, (name, source) pairs, or a dict. Out: `ModelSettings`,
`DataSettings`, `ScoreSettings` and `MachineSettings`, checked. Left out: reading (data/), and the questions (edit.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from spin_llm.settings.checks import FRACTION, check, invalid, no_choice, pairs_of, parse_options, put, require, several
from spin_llm.settings.words import CONCEPTS, OWN, STATISTICS, Dtype, Granularity, Responses, Selector, Sources, Target

LONGEST_NAME = 200


@dataclass(frozen=True)
class ModelSettings:
    """Model"""

    model: str
    """Hub id, local folder, .gguf file, or smollm2-135m (embedded)."""
    dtype: Dtype = "auto"
    """Compute type."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models that you trust."""
    seed: int = 0
    """Seed of every sample."""

    def __post_init__(self) -> None:
        check(self, ModelSettings, seed=0)


@dataclass(frozen=True)
class DataSettings:
    """Data"""

    concepts: Sources = None  # type: ignore[assignment] # the shipped ones
    """NAME=SOURCE of (prompt, response) pairs that show the concept, or a shipped NAME."""
    protect: Sources = None  # type: ignore[assignment]
    """NAME=SOURCE of pairs whose important weights are spared, and whose rest measures perplexity."""
    data_dir: str | None = None
    """Folder with beavertails, salad and alpaca-cleaned; they become the default data."""
    prompt_column: str | None = None
    """Name of the prompt column, when it is not a usual one."""
    response_column: str | None = None
    """Name of the response column, when it is not a usual one."""
    responses: Responses = "aware"
    """Which responses locate the weights; own: the model's own answers to the prompts, as the judge divides them, whose
    errors the edit may learn (docs/beyond.md)."""
    own_judge: str | None = None
    """Who divides the own answers of --responses own (default: --judge): one that does not report on the edit."""
    examples: int = 128
    """Examples for each concept and protected set (default: 128; 64 with --effort quick)."""
    template: str = "auto"
    """Tokens of an example: auto, chat, raw, released, or the name of one of the model's chat templates."""
    template_options: Sources = ()
    """NAME=VALUE for the model's chat template, the value in JSON or plain; repeat it."""
    thinking: bool = False
    """Ask the model for reasoning, which is kept and not judged (default: off)."""
    date: str | None = None
    """Date that the chat template prints, as 2026-01-31 (default: the day that the run began)."""
    max_length: int = 1024
    """Most tokens of an example; longer prompts lose their start."""

    def __post_init__(self) -> None:
        put(self, concepts=pairs_of("concepts", self.concepts, CONCEPTS, self.data_dir))
        put(self, protect=pairs_of("protect", self.protect, ("general",), self.data_dir))
        put(self, template_options=parse_options(self.template_options))
        check(self, DataSettings, examples=1, max_length=2)
        if self.own_judge and self.responses != OWN:
            raise invalid("responses", self.responses, "own: --own-judge divides the model's own answers")
        names = [name for name, _ in self.template_options]
        if wrong := [name for name in names if not name.isidentifier() or names.count(name) > 1]:
            raise invalid("template_options", wrong[0], "NAME=VALUE, each name once")
        try:
            date.fromisoformat(self.date or "2000-01-01")
        except ValueError:
            raise invalid("date", self.date, "a date as 2026-01-31") from None
        check_names("concepts", self.concepts)
        check_names("protect", self.protect)
        if OWN in dict((*self.concepts, *self.protect)):
            raise invalid("concepts", OWN, "another name: own are the model's own answers")
        if both := dict(self.concepts).keys() & dict(self.protect).keys():
            raise invalid("protect", ", ".join(sorted(both)), "a protected set another name than a concept's")

    @property
    def given_responses(self) -> str:
        """Which responses of the data are read: aware, or unaware."""
        return "unaware" if self.responses == "unaware" else "aware"

    @property
    def asks_own(self) -> bool:
        """Whether the model's own answers are asked for to be scored."""
        return bool(self.concepts) and self.responses == OWN


def check_names(option: str, pairs: Sources) -> None:
    """SpinError for sources with one name, or with a name that cannot be a file's."""
    names = [name for name, _ in pairs]
    if long := [name for name in names if len(name.encode()) > LONGEST_NAME]:
        raise invalid(option, long[0], f"a name of at most {LONGEST_NAME} bytes: files are named after it")
    if len(set(names)) != len(names):
        raise invalid(option, ", ".join(names), "each name once")


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
        require(self, FRACTION, lambda keep: 0 < keep < 1, "keep")
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
