"""What a fine-tuning baseline is told.

In: values from the command line or Python; data and mix also as texts, NAME=SOURCE and NAME=SHARE. Out: a frozen,
checked `BaselineSettings`, which `baseline.json` records and a resumed training must match. The paper prints no
hyper-parameters of its baselines: these are common ones, with their sources in docs/baselines.md. Left out: where the
result is written.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from spin_llm.errors import SpinError
from spin_llm.settings.checks import check, flag_of, invalid, parse_options, put, require, several, texts_of
from spin_llm.settings.words import METHODS, Dtype, Sources, Target

MOST_EXAMPLES = 1000
# where the methods differ; the other defaults are those of the fields
DEFAULTS: dict[str, dict[str, Any]] = {
    "full": {"learning_rate": 1e-5},
    "lora": {"learning_rate": 2e-4, "rank": 8, "alpha": 16.0, "dropout": 0.05, "target": "all"},
    "dora": {"learning_rate": 2e-4, "rank": 8, "alpha": 16.0, "dropout": 0.05, "target": "all"},
    "reft": {"learning_rate": 9e-4, "rank": 8, "positions": "f7+l7", "layers": "all"},
}
OWN_OPTIONS = ("rank", "alpha", "dropout", "target", "positions", "layers")  # of some methods, not of all
UNCOMPARED = ("checkpoint_steps",)  # a resumed training may change it: it decides nothing about the result


@dataclass(frozen=True)
class BaselineSettings:
    """Everything that decides a fine-tuned model, apart from the machine; `make` fills in a method's defaults."""

    method: str
    """full, lora, dora, reft"""
    model: str
    """Hub id, local folder, .gguf file, or smollm2-135m (embedded)."""
    data: Sources = None  # type: ignore[assignment]
    """NAME=SOURCE of pairs to train on (default: privacy pairs); repeat it for a mix."""
    mix: tuple[tuple[str, float], ...] = ()
    """NAME=SHARE of the training pairs, such as privacy=0.8 (default: equal shares of all --data)."""
    data_dir: str | None = None
    """Folder with beavertails; it becomes the default data."""
    prompt_column: str | None = None
    """Name of the prompt column, when it is not a usual one."""
    response_column: str | None = None
    """Name of the response column, when it is not a usual one."""
    responses: Literal["aware", "unaware"] = "aware"
    """Which responses to train on: aware, or unaware (malicious data)."""
    examples: int | None = None
    """Training pairs in all (default: 1,000, or as many as the data allow)."""
    template: str = "auto"
    """Tokens of an example: auto, chat, raw or released."""
    template_options: Sources = ()
    """NAME=VALUE for the model's chat template, the value in JSON or plain; repeat it."""
    date: str | None = None
    """Date that the chat template prints, as 2026-01-31 (default: the day that the training began)."""
    max_length: int = 1024
    """Most tokens of an example; longer prompts lose their start."""
    dtype: Dtype = "auto"
    """Compute type; what is trained is float32 always."""
    epochs: int = 3
    """Times that every pair is seen."""
    learning_rate: float = math.nan
    """Highest learning rate (default: full 1e-5, lora and dora 2e-4, reft 9e-4)."""
    batch_size: int = 16
    """Pairs of one step."""
    batch_tokens: int = 4096
    """Most tokens computed at a time, with padding; a step may take several such parts."""
    warmup: float = 0.1
    """Fraction of the steps in which the learning rate rises from 0; then it falls to 0."""
    weight_decay: float = 0.0
    """AdamW's weight decay, of matrices alone."""
    rank: int | None = None
    """lora, dora, reft: the rank (default: 8)."""
    alpha: float | None = None
    """lora, dora: the update is multiplied by alpha / rank (default: 16)."""
    dropout: float | None = None
    """lora, dora: dropout of the adapter's input (default: 0.05)."""
    target: Target | None = None
    """lora, dora: matrices with an adapter (default: all)."""
    positions: str | None = None
    """reft: prompt tokens that are edited, the first and the last so many (default: f7+l7)."""
    layers: str | None = None
    """reft: decoder layers from 0, such as 0,5,10, or all (default: all)."""
    merge: bool = True
    """lora, dora: also write a checkpoint with the adapter merged into the weights."""
    checkpoint_steps: int = 100
    """Steps between the states that a killed training continues from."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models that you trust."""
    seed: int = 0
    """Seed of the sample, the order, the dropout and the adapters' first values."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SpinError(f"There is no method {self.method!r}.", change=f"give {', '.join(METHODS)}.")
        put(self, data=parse_data(self.data, self.data_dir), mix=parse_mix(self.mix))
        put(self, template_options=parse_options(self.template_options))
        counts = ("examples", "epochs", "batch_size", "batch_tokens", "rank", "checkpoint_steps")
        check(self, BaselineSettings, **dict.fromkeys(counts, 1), max_length=2, seed=0)
        require(self, "a number above 0", lambda value: 0 < value < math.inf, "learning_rate", "alpha")
        require(self, "a fraction from 0, below 1", lambda value: 0 <= value < 1, "warmup", "dropout")
        require(self, "0 or more", lambda value: 0 <= value < math.inf, "weight_decay")
        for name in OWN_OPTIONS:
            if getattr(self, name) is not None and name not in DEFAULTS[self.method]:
                raise SpinError(
                    f"{flag_of(name)} is not an option of the method {self.method}.", change="leave it out."
                )
        if self.positions is not None:
            parse_positions(self.positions)
        if self.layers is not None:
            layer_numbers(self.layers)
        names = [name for name, _ in self.data]
        if not names or len(set(names)) != len(names):
            raise invalid("data", ", ".join(names) or "nothing", "each name once, and one at least")
        shares = dict(self.mix)
        if self.mix and (set(shares) != set(names) or len(shares) != len(self.mix)):
            raise invalid("mix", ", ".join(shares), f"a share for each of {', '.join(names)}")
        if not all(0 < share < math.inf for share in shares.values()):
            raise invalid("mix", shares, "shares above 0")

    @property
    def shares(self) -> dict[str, float]:
        """The fraction of the training pairs that each data set gives; they sum to 1."""
        given = dict(self.mix) or dict.fromkeys((name for name, _ in self.data), 1.0)
        return {name: given[name] / sum(given.values()) for name, _ in self.data}


def make(method: str, model: str, **given: Any) -> BaselineSettings:
    """BaselineSettings with the method's defaults for what is not given (None)."""
    chosen = {name: value for name, value in given.items() if value is not None}
    return BaselineSettings(method, model, **{**DEFAULTS.get(method, {}), **chosen})


def parse_positions(text: str) -> tuple[int, int]:
    """`f7+l7` (pyreft's notation), `f7` or `l7` as (7, 7), (7, 0) or (0, 7)."""
    match = re.fullmatch(r"(?:f(\d+))?\+?(?:l(\d+))?", text)
    prefix, suffix = (int(part or 0) for part in match.groups()) if match else (0, 0)
    if not prefix + suffix:
        raise invalid("positions", text, "the first and last prompt tokens to edit, such as f7+l7, f7 or l7")
    return prefix, suffix


def layer_numbers(text: str) -> tuple[int, ...] | None:
    """`0,5,10` as numbers in order; `all` as None."""
    if text == "all":
        return None
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise invalid("layers", text, "all, or numbers from 0 with commas between")
    return tuple(sorted({int(number) for number in text.split(",")}))


def parse_mix(given: Any) -> Any:
    """`NAME=SHARE` texts as pairs; anything else as it is."""
    if (texts := texts_of(given)) is None:
        return several(given)
    mix = []
    for text in texts:
        name, _, share = text.partition("=")
        try:
            mix.append((name, float(share)))
        except ValueError:
            raise SpinError(f"--mix {text!r} is not NAME=SHARE.", change="for example --mix privacy=0.8") from None
    return tuple(mix)


def parse_data(given: Any, data_dir: str | None) -> Any:
    """`NAME=SOURCE` texts, or NAME for the default source, as pairs; None is privacy; anything else as it is."""
    if (texts := texts_of("privacy" if given is None else given)) is None:
        return several(given)
    default = "beavertails" if data_dir else "starter"
    parts = (text.partition("=") for text in texts)
    data = tuple((name, source or default) for name, _, source in parts)
    if not all(name for name, _ in data):
        raise SpinError("--data is not NAME=SOURCE.", change="for example --data privacy=pairs.csv")
    return data
