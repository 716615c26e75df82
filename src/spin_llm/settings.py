"""What a run is told: every option once, with its default and its help.

In: values from the command line or Python. Out: a frozen, validated `RunSettings`, which `run.json` records and a
resumed run must match. Left out: where the run is written, and how it looks on the terminal.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from spin_llm.errors import SpinError

CONCEPTS = ("fairness", "privacy")
SHIPPED = (*CONCEPTS, "truthfulness", "helpfulness")  # concepts with a starter set, a rubric and a closing phrase
MEASURES = ("coherence", "perplexity", "kl")  # axes that results.json has beside the judged ones
COVERED = {"beavertails": CONCEPTS, "salad": CONCEPTS, "alpaca-cleaned": ("general",)}  # roles of the paper's data
CONTROLS = ("random", "same-magnitude", "unprotected", "released")  # and NAME-alone for every concept
SIGNED = "coupled-signed"  # a rule, and as other rules a control that `all` leaves out
BY_MARGIN = "signed"  # the rule that starts from the margins
RULES = ("coupled", SIGNED, BY_MARGIN, "released")
LONGEST_NAME = 200
SEARCHED = "auto"  # instead of a rule: the search decides
SELECTORS = ("taylor", "wanda", "magnitude", "gradient", "sparsegpt", "random")
STATISTICS = (*SELECTORS, "fisher", "margin")
OWN = "own"  # responses: the model's own answers
RESPONSES = ("aware", "unaware", OWN)
STAGES = ("edit", "answers", "verdicts", "extras")  # of a run, after its scores
THINKING_TOKENS = 1024
Sources = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Effort:
    """What a run with the rule `auto` spends: examples of each set, held-back pairs of each kind to try recipes on,
    recipes tried, those whose answers are judged, search questions of each axis, and final questions of each axis
    (None: all that are left)."""

    examples: int
    pairs: int
    trials: int
    survivors: int
    search_questions: int
    final_questions: int | None


EFFORTS = {
    "quick": Effort(64, 16, 10, 3, 20, 60),
    "standard": Effort(128, 32, 32, 6, 80, None),
    "thorough": Effort(128, 32, 120, 12, 160, None),
}


def _option(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


def _after_scores(default: Any, help_text: str, stage: str = "answers") -> Any:
    """A setting that scores do not depend on, and the first of the later STAGES that does: a run may be taken up with
    another value, from that stage on."""
    assert stage in STAGES
    return field(default=default, metadata={"help": help_text, "scope": stage})


def _volatile(default: Any, help_text: str) -> Any:
    """A setting that decides how, not what, is computed: a resumed run may change it."""
    return field(default=default, metadata={"help": help_text, "scope": "volatile"})


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides a run's patch and results, apart from the machine.

    Sources may be given as the command takes them (texts), as (name, source) pairs, or as a dict; None is the default
    of the command, () nothing.
    """

    model: str
    concepts: Sources = _option(
        None, "NAME=SOURCE of (prompt, response) pairs that show the concept, or a shipped NAME."
    )
    protect: Sources = _option(
        None, "NAME=SOURCE of pairs whose important weights are spared, and whose rest measures perplexity."
    )
    questions: Sources = _after_scores(
        None, "NAME=SOURCE of prompts to answer and judge (a concept's name, over_refusal), or a shipped NAME."
    )
    data_dir: str | None = _option(
        None, "Folder with beavertails, salad and alpaca-cleaned; they become the default data."
    )
    prompt_column: str | None = _option(None, "Name of the prompt column, when it is not a usual one.")
    response_column: str | None = _option(None, "Name of the response column, when it is not a usual one.")
    responses: str = _option(
        "aware",
        "Which responses locate the weights: aware, unaware, or own: the model's own answers to the prompts, as the "
        "judge divides them, whose errors the edit may learn (docs/beyond.md).",
    )
    own_judge: str | None = _option(
        None, "Who divides the own answers of --responses own (default: --judge): one that does not report on the edit."
    )
    examples: int = _option(None, "Examples for each concept and protected set.")
    max_questions: int | None = _after_scores(None, "At most this many questions for each axis (default: all).")
    template: str = _option(
        "auto", "Tokens of an example: auto, chat, raw, released, or the name of one of the model's chat templates."
    )
    template_options: Sources = _option(
        (), "NAME=VALUE for the model's chat template, the value in JSON or plain; repeat it."
    )
    thinking: bool = _option(False, "Ask the model for reasoning, which is kept and not judged (default: off).")
    thinking_tokens: int | None = _after_scores(
        None, "Tokens of reasoning, beside those of the answer; turns --thinking on (default: 1024 with it)."
    )
    date: str | None = _option(
        None, "Date that the chat template prints, as 2026-01-31 (default: the day that the run began)."
    )
    max_length: int = _option(1024, "Most tokens of an example; longer prompts lose their start.")
    skip_long: bool = _volatile(
        False, "Leave out pairs and questions that are too long, instead of ending with an error."
    )
    new_tokens: int = _after_scores(64, "Tokens of an answer.")
    dtype: str = _option("auto", "Compute type: auto, float32 or bfloat16.")
    target: str = _option("mlp", "Which matrices: mlp, attention or all.")
    selector: str = _option(
        "taylor", "Importance by: taylor (the paper), wanda, magnitude, gradient, sparsegpt or random."
    )
    statistics: tuple[str, ...] = _option((), "Also store these statistics: margin, fisher, or another selector.")
    granularity: str = _option("matrix", "What a ratio is a fraction of: matrix (the paper), row, layer or model.")
    effort: str = _after_scores(
        "standard", "What a run with --rule auto spends: quick, standard or thorough (docs/search.md).", "edit"
    )
    rule: str = _after_scores(
        SEARCHED,
        "auto (searched; with a --ratio: coupled), coupled (the paper's), coupled-signed (of these, the favourable), "
        "signed (by what suppression does to the margins) or released (the published code's).",
        "edit",
    )
    ratio: float | None = _after_scores(
        None, "Fraction of each matrix in a top set, or auto: the largest within --max-perplexity-increase.", "edit"
    )
    layers: tuple[int, ...] = _after_scores(
        (), "The first and the last decoder layer to edit, as 4-20 (default: all).", "edit"
    )
    at_least: int | None = _after_scores(
        None, "A weight must be important for at least this many of the concepts (default: all).", "edit"
    )
    trials: int | None = _after_scores(None, "For --rule auto: edits to try (default: by --effort).", "edit")
    survivors: int | None = _after_scores(
        None, "For --rule auto: edits whose answers to the search questions are judged (default: by --effort).", "edit"
    )
    protect_ratio: float | None = _after_scores(
        None, "Fraction of each matrix that is protected (default: the ratio).", "edit"
    )
    max_perplexity_increase: float = _after_scores(
        0.01,
        "For --rule auto and --ratio auto: allowed relative rise of perplexity on held-back general pairs.",
        "edit",
    )
    keep: float = _option(0.01, "Fraction of each matrix kept in the score files; no ratio can be larger.")
    scale: float = _after_scores(0.0, "What the selected weights are multiplied by; 0 suppresses them.", "edit")
    controls: tuple[str, ...] = _after_scores(
        (),
        "Also measure these other edits: random, same-magnitude, CONCEPT-alone, unprotected, released; all (of these); "
        "or another rule.",
        "extras",
    )
    resamples: int = _after_scores(
        0,
        "Select again from this many bootstrap resamples of the scored examples, to see whether the selection holds.",
        "extras",
    )
    capabilities: tuple[str, ...] = _after_scores(
        (), "Also measure these lm-eval tasks: names with commas between, or paper for the paper's Table 2.", "extras"
    )
    capability_tasks: str | None = _after_scores(None, "Folder with more lm-eval tasks, as YAML files.", "extras")
    capabilities_limit: int | None = _after_scores(
        None, "At most this many documents of each lm-eval task (default: all).", "extras"
    )
    judge: str = _after_scores(
        "local",
        "local, FILE.safetensors (judge fit), a guard's name or hub id, GUARD:MODEL, rubric:MODEL (all also with @URL)"
        " or human:FILE.csv; docs/judges.md.",
        "verdicts",
    )
    judge_quality: str | None = _after_scores(
        None,
        "Quality of --judge on answers like these: a file of `spin-llm judge check DATA --judge ... -o FILE.json`.",
        "verdicts",
    )
    trust_remote_code: bool = _option(
        False, "Run Python code that comes with the model. Only for models that you trust."
    )
    memory_budget: str | None = _volatile(None, "Memory for scoring, such as 8g (default: most of what is free).")
    device_map: str | None = _volatile(None, "auto spreads the model over all devices.")
    seed: int = _option(0, "Seed of every sample.")

    def __post_init__(self) -> None:
        for name, value in as_meant(self).items():
            object.__setattr__(self, name, value)
        check_types(self)
        self._check_template()
        least_allowed = {"examples": 1, "max_length": 2, "new_tokens": 1, "seed": 0, "resamples": 0}
        for name, least in least_allowed.items():
            if getattr(self, name) < least:
                raise _invalid(name, getattr(self, name), f"{least} or more")
        for name in ("max_questions", "capabilities_limit", "at_least", "trials"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise _invalid(name, getattr(self, name), "1 or more")
        if self.survivors is not None and self.survivors < 0:
            raise _invalid("survivors", self.survivors, "0 or more")
        if self.at_least is not None and self.concepts and self.at_least > len(self.concepts):
            raise _invalid("at_least", self.at_least, f"at most {len(self.concepts)}, the number of concepts")
        if self.layers and not (len(self.layers) == 2 and 0 <= self.layers[0] <= self.layers[1]):
            raise _invalid("layers", self.layers, "the first and the last layer, as 4-20")
        if self.rule == SEARCHED and self.ratio is not None:  # a ratio says that nothing is to be searched
            object.__setattr__(self, "rule", "coupled")
        for name in ("ratio", "protect_ratio", "keep"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise _invalid(name, value, "a fraction above 0 and below 1" + (", or auto" if name == "ratio" else ""))
            if value is not None and value > self.keep:
                raise _invalid(name, value, f"at most --keep, {self.keep:g}")
        for option in ("concepts", "protect", "questions"):
            if long := [name for name, _ in getattr(self, option) if len(name.encode()) > LONGEST_NAME]:
                raise _invalid(option, long[0], f"a name of at most {LONGEST_NAME} bytes: files are named after it")
        if self.resamples == 1:
            raise _invalid("resamples", 1, "0, or 2 or more")
        if not self.max_perplexity_increase >= 0:  # also catches NaN
            raise _invalid("max_perplexity_increase", self.max_perplexity_increase, "0 or more")
        if not math.isfinite(self.scale):
            raise _invalid("scale", self.scale, "a finite factor")
        choices: dict[str, tuple[str, ...]] = {"responses": RESPONSES}
        choices |= {"dtype": ("auto", "float32", "bfloat16"), "target": ("mlp", "attention", "all")}
        choices |= {
            "rule": (SEARCHED, *RULES),
            "effort": tuple(EFFORTS),
            "granularity": ("matrix", "row", "layer", "model"),
        }
        choices |= {"selector": SELECTORS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise _no_choice(name, getattr(self, name), allowed)
        if self.own_judge and self.responses != OWN:
            raise _invalid("responses", self.responses, "own: --own-judge divides the model's own answers")
        if "margin" in self.wanted_statistics and self.responses == "unaware":
            raise _invalid("responses", "unaware", "aware: the margin compares aware with unaware responses")
        for statistic in self.statistics:
            if statistic not in STATISTICS:
                raise _no_choice("statistics", statistic, STATISTICS)
        for control in self.controls:
            if control not in (*self.all_controls, "all", *RULES):
                raise _no_choice("controls", control, tuple(dict.fromkeys((*self.all_controls, "all", *RULES))))
        own = [name for name, _ in self.concepts]
        known = tuple(dict.fromkeys((*SHIPPED, *own, "over_refusal")))
        fitted = self.judge.endswith(".safetensors")  # may judge concepts of the user's own, also without --concept
        for axis, _ in self.questions:
            if axis in MEASURES or not (fitted or axis in known):
                raise _no_choice("questions", axis, known, "the shipped concepts, and those of --concept")
        for name in ("concepts", "protect", "questions"):
            names = [key for key, _ in getattr(self, name)]
            if len(set(names)) != len(names):
                raise _invalid(name, ", ".join(names), "each name once")
        if OWN in dict((*self.concepts, *self.protect)):
            raise _invalid("concepts", OWN, "another name: own are the model's own answers")
        if both := {name for name, _ in self.concepts} & {name for name, _ in self.protect}:
            raise _invalid("protect", ", ".join(sorted(both)), "a protected set another name than a concept's")

    def _check_template(self) -> None:
        if self.thinking_tokens is not None and self.thinking_tokens < 1:
            raise _invalid("thinking_tokens", self.thinking_tokens, "1 or more")
        if self.thinking_tokens is not None:
            object.__setattr__(self, "thinking", True)
        elif self.thinking:
            object.__setattr__(self, "thinking_tokens", THINKING_TOKENS)
        names = [name for name, _ in self.template_options]
        if wrong := [name for name in names if not name.isidentifier() or names.count(name) > 1]:
            raise _invalid("template_options", wrong[0], "NAME=VALUE, each name once")
        try:
            date.fromisoformat(self.date or "2000-01-01")
        except ValueError:
            raise _invalid("date", self.date, "a date as 2026-01-31") from None

    @property
    def given_responses(self) -> str:
        """Which responses of the data are read: aware, or unaware."""
        return "unaware" if self.responses == "unaware" else "aware"

    @property
    def asks_own(self) -> bool:
        """Whether the model's own answers are asked for to be scored."""
        return bool(self.concepts) and self.responses == OWN

    @property
    def dividing_judge(self) -> str:
        """The name of the judge that divides own answers."""
        return self.own_judge or self.judge

    @property
    def wanted_statistics(self) -> tuple[str, ...]:
        """The selector, then what was asked for, then what the rule or a control needs."""
        rules = {self.rule, *self.controls}
        if self.responses == "unaware":
            rules -= {SEARCHED}  # there is no margin to search by: the paper's rule takes its place
        by_margin = rules & {SEARCHED, SIGNED, BY_MARGIN}
        needed = ("margin",) if by_margin else ()
        return tuple(dict.fromkeys((self.selector, *self.statistics, *needed)))

    @property
    def all_controls(self) -> tuple[str, ...]:
        return (*CONTROLS[:2], *(f"{name}-alone" for name, _ in self.concepts), *CONTROLS[2:])

    @property
    def wanted_controls(self) -> tuple[str, ...]:
        """The controls asked for, each once; `all` stands for every one but `coupled-signed`."""
        return tuple(
            dict.fromkeys(
                name for asked in self.controls for name in (self.all_controls if asked == "all" else (asked,))
            )
        )

    @property
    def budget(self) -> Effort:
        """What --effort stands for, with --trials and --survivors in its place where they were given."""
        effort = EFFORTS[self.effort]
        given = {"trials": self.trials, "survivors": self.survivors}
        return replace(effort, **{name: value for name, value in given.items() if value is not None})

    @property
    def searches_answers(self) -> bool:
        """Whether questions are set aside to search with."""
        return self.searches and self.budget.survivors > 0 and self.budget.search_questions > 0

    @property
    def searches(self) -> bool:
        """Whether an edit is searched; without concepts (`eval`) there is none to find."""
        return self.rule == SEARCHED and bool(self.concepts)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def as_meant(settings: RunSettings) -> dict[str, Any]:
    """Settings as they are recorded, from what people give: sources in any form, lists, paths, `auto`, one text where
    several may be; defaults that depend on other settings filled in."""
    meant: dict[str, Any] = {name: getattr(settings, name) for name in RunSettings.__dataclass_fields__}
    meant |= {name: str(value) for name, value in meant.items() if isinstance(value, Path)}
    roles = ("concepts", "protect", "questions")
    default = {} if all(as_pairs(meant[role]) is not None for role in roles) else default_sources(meant["data_dir"])
    meant["concepts"] = pairs_of("concepts", meant["concepts"], CONCEPTS, default.get("concepts", ""))
    meant["protect"] = pairs_of("protect", meant["protect"], ("general",), default.get("protect", ""))
    meant["questions"] = questions_of(meant["questions"], meant["concepts"], default.get("questions", ""))
    meant |= {name: several(meant[name]) for name in ("statistics", "controls", "capabilities")}
    meant["template_options"] = parse_options(meant["template_options"])
    if all(isinstance(name, str) for name in meant["capabilities"]):
        names = [name.strip() for name in ",".join(meant["capabilities"]).split(",")]
        meant["capabilities"] = tuple(dict.fromkeys(filter(None, names)))
    layers = meant["layers"]
    meant["layers"] = parse_layers(layers) if isinstance(layers, str) else several(layers)
    meant["ratio"] = None if meant["ratio"] == "auto" else meant["ratio"]
    if meant["examples"] is None:
        meant["examples"] = EFFORTS[meant["effort"] if meant["effort"] in (*EFFORTS,) else "standard"].examples
    return meant


def parse_options(given: Any) -> Any:
    """(name, value) pairs of what was given for a chat template: NAME=VALUE texts, pairs, or a dict of any values."""
    if isinstance(given, Mapping):
        return tuple((name, value if isinstance(value, str) else json.dumps(value)) for name, value in given.items())
    texts = several(given)
    if not isinstance(texts, tuple) or not all(isinstance(text, str) for text in texts):
        return as_pairs(given) if as_pairs(given) is not None else given
    for text in texts:
        if "=" not in text:
            change = "give for example --template-option enable_thinking=false."
            raise SpinError(f"--template-option {text!r} is not NAME=VALUE.", change=change)
    return tuple((name.strip(), value) for name, _, value in (text.partition("=") for text in texts))


def several(given: Any) -> Any:
    """A tuple of what may be one text, several, or none; anything else as it is, for `check_types` to refuse."""
    if given is None:
        return ()
    if isinstance(given, str | Path):
        return (str(given),)
    return tuple(given) if isinstance(given, list | tuple | set | frozenset) else given


def as_pairs(given: Any) -> Sources | None:
    """A dict, or a list of (name, source) pairs, as pairs; None for anything else."""
    items = tuple(given.items()) if isinstance(given, Mapping) else several(given)
    if given is None or not isinstance(items, tuple) or not all(isinstance(item, list | tuple) for item in items):
        return None
    return tuple(tuple(str(p) if isinstance(p, Path) else p for p in item) for item in items)  # type: ignore[misc]


def pairs_of(name: str, given: Any, names: Sequence[str], default: str, beside: Sequence[str] = ()) -> Any:
    """(name, source) pairs of what was given: None, texts as the command takes them, pairs, or a dict."""
    texts, pairs = several(given), as_pairs(given)
    if pairs is not None:
        return pairs
    if not isinstance(texts, tuple) or not all(isinstance(text, str | Path) for text in texts):
        return given  # for `check_types` to refuse
    return sources(flag_of(name), [str(text) for text in texts], names, default, beside)


def questions_of(given: Any, concepts: Any, default: str) -> Any:
    """The pairs of `questions`; where they were not given as such, over-refusal is always among them, with the starter
    questions where the source has none."""
    named = [item[0] for item in as_pairs(concepts) or () if item]
    axes = default_axes(named)
    own = [name for name in named if set(axes) & set(named) and name not in axes]
    pairs = pairs_of("questions", given, axes, default, own)
    if as_pairs(given) is not None or as_pairs(pairs) is None:
        return pairs
    found = dict(pairs)
    if found.setdefault("over_refusal", "starter") in ("salad", "beavertails"):
        found["over_refusal"] = "starter"
    return tuple(found.items())


@cache
def _types() -> dict[str, Any]:
    return get_type_hints(RunSettings)


def check_types(settings: RunSettings) -> None:
    """SpinError for a value of another type than the setting's."""
    for name, kind in _types().items():
        try:
            msgspec.convert(getattr(settings, name), kind)
        except msgspec.ValidationError as error:
            raise SpinError(
                f"{flag_of(name)} {getattr(settings, name)!r} is of the wrong type: {error}.",
                change="`spin-llm run --help` says what each option takes.",
            ) from None


def parse_layers(text: str) -> tuple[int, ...]:
    """`4-20`, or one number."""
    first, _, last = text.partition("-")
    try:
        return (int(first), int(last or first))
    except ValueError:
        raise SpinError(f"--layers {text!r} is not FIRST-LAST.", change="give for example --layers 4-20.") from None


def flag_of(name: str) -> str:
    """The command's option for one setting; those that may be repeated are in the singular."""
    singular = {"concepts": "concept", "controls": "control", "template_options": "template-option"}
    return f"--{singular.get(name, name).replace('_', '-')}"


def _invalid(name: str, value: object, allowed: str) -> SpinError:
    return SpinError(f"{flag_of(name)} {value} is out of range.", change=f"give {allowed}.")


def _no_choice(name: str, value: object, allowed: Sequence[str], what: str = "") -> SpinError:
    near = difflib.get_close_matches(str(value).lower(), allowed, n=1)
    return SpinError(
        f"{flag_of(name)} {value} is not a choice." + (f" Did you mean {near[0]}?" if near else ""),
        change=f"give one of {', '.join(allowed)}" + (f" ({what})." if what else "."),
    )


def help_of(name: str) -> str:
    """The help text of one setting."""
    return next(str(f.metadata["help"]) for f in fields(RunSettings) if f.name == name)


def scope_of(name: str) -> str:
    """`all`, `after scores` or `volatile`: which of a run's files depend on a setting."""
    return next((str(f.metadata.get("scope", "all")) for f in fields(RunSettings) if f.name == name), "all")


def default_of(name: str) -> Any:
    """The default of one setting."""
    return getattr(_usual(), name)


@cache
def _usual() -> RunSettings:
    return RunSettings("")


def sources(
    option: str, given: Sequence[str], names: Sequence[str], default: str, beside: Sequence[str] = ()
) -> Sources:
    """`NAME=SOURCE` texts as pairs.

    A SOURCE alone serves every name of `names`, a shipped NAME alone gets its default. Names that nothing was given for
    get `default`, unless two concepts were named, or one that is not among `names`: then there are only these. Names of
    `beside` may be given without that. Raises SpinError for a name that is given twice, that is none, or that is nearly
    a known one.
        >>> sources("--concept", ["privacy=my.csv"], ("fairness", "privacy"), "starter")
        (('fairness', 'starter'), ('privacy', 'my.csv'))
        >>> sources("--concept", ["toxicity=my.csv"], ("fairness", "privacy"), "starter")
        (('toxicity', 'my.csv'),)
    """
    known = tuple(dict.fromkeys((*names, *beside, *SHIPPED)))
    bare = [text for text in given if text in (*names, *SHIPPED)]
    alone = [text for text in given if "=" not in text and text not in bare]
    named = [*bare, *(text.partition("=")[0] for text in given if "=" in text)]
    for text in given:
        _check_source(option, text, known, names[0])
    if twice := [name for name in dict.fromkeys(named) if named.count(name) > 1]:
        raise SpinError(f"{option} {', '.join(twice)} is given twice.", change="give each name once.")
    if len(alone) > 1:
        raise SpinError(
            f"{option} {', '.join(alone)}: each of these sources would serve {' and '.join(names)}.",
            change=f"say which serves which, for example {option} {names[0]}={alone[0]}.",
        )
    concepts = set(named) - {"over_refusal"} - set(beside)
    only = option != "--protect" and not alone
    only = only and bool(set(bare) - {"over_refusal"} or len(concepts) > 1 or concepts - set(names))
    start = alone[0] if alone else None
    chosen = {} if only else {name: start or default_source(name, default) for name in names}
    for text in given:
        name, equals, source = text.partition("=")
        if text in bare:
            chosen[text] = default_source(text, default)
        elif equals:
            chosen[name] = source
    return tuple(chosen.items())


def _check_source(option: str, text: str, known: Sequence[str], example: str) -> None:
    """SpinError for a text that is no NAME=SOURCE, whose NAME could not name a file, or is nearly one of `known`."""
    name, equals, source = text.partition("=")
    if equals and not (name and source):
        raise SpinError(f"{option} {text!r} is not NAME=SOURCE.", change=f"for example {option} {example}=data.csv")
    if equals and not re.fullmatch(r"\w[\w .-]*", name):
        raise SpinError(
            f"{option} {text!r}: {name!r} is no name.",
            cause="a name has letters, digits, spaces, dots, - and _; or this is the path of a file with = in it.",
            change=f"for example {option} {example}={source if equals else text}",
        )
    if (equals or re.fullmatch(r"[\w -]+", text)) and (near := nearly(name, known)):  # else a path
        way = f"give {option} {near}{equals}{source}"
        raise SpinError(
            f"There is no {option.removeprefix('--')} {name!r}. Did you mean {near}?",
            cause="a mistyped name.",
            change=f"{way}; for one of your own, take a name less like it."
            if equals
            else f"{way}, or ./{name} for a file.",
        )


def nearly(name: str, known: Sequence[str]) -> str | None:
    """The known name that `name` was meant to be: in other letters, or mistyped; not one that goes on after it, as
    `fairness-en` does."""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    if name in known:
        return None
    for each in known:
        if plain == each:
            return each
        if plain.startswith(each) and not plain[len(each)].isalpha():
            return None
    return next(iter(difflib.get_close_matches(plain, known, n=1, cutoff=0.85)), None)


def default_source(name: str, default: str) -> str:
    """The default, or the starter set where the default is a data set of the paper without this name."""
    return default if name in COVERED.get(default, (name,)) else "starter"


def default_sources(data_dir: str | None) -> dict[str, str]:
    """The default source of each role: the shipped starter set, or the paper's data when a folder with them is
    given."""
    if data_dir is None:
        return {"concepts": "starter", "protect": "starter", "questions": "starter"}
    if not Path(data_dir).expanduser().is_dir():
        raise SpinError(f"--data-dir {data_dir} is not a folder.")
    return {"concepts": "beavertails", "protect": "alpaca-cleaned", "questions": "salad"}


def default_axes(concepts: Sequence[str]) -> tuple[str, ...]:
    """The axes to ask questions on: the shipped ones among the scored concepts, or the paper's, and over-refusal."""
    return (*([name for name in concepts if name in SHIPPED] or CONCEPTS), "over_refusal")
