"""Which model reads which data, and how: everything that its scores, and so everything after them, depend on.

In: values from the command line or Python; sources as texts, (name, source) pairs, or a dict. Out: `ModelSettings` and
`DataSettings`, checked. Left out: reading (data/), and the questions (evaluation.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from spin_llm.settings.checks import check, invalid, put
from spin_llm.settings.sources import as_pairs, default_sources, pairs_of, parse_options
from spin_llm.settings.words import CONCEPTS, OWN, Dtype, Responses, Sources

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
        given = [as_pairs(self.concepts), as_pairs(self.protect)]
        default = {} if None not in given else default_sources(self.data_dir)
        put(self, concepts=pairs_of("concepts", self.concepts, CONCEPTS, default.get("concepts", "")))
        put(self, protect=pairs_of("protect", self.protect, ("general",), default.get("protect", "")))
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
