"""Options from settings: every field is an option, the text under it its help, its group a panel; and their values.

In: groups of settings, or names of single fields. Out: a decorator that makes a command of a function that takes the
settings. Values that were not typed come from the environment (`SPIN_LLM_*`, an option's name in capitals; several
values as words of a shell), then from --config: a TOML file whose keys are the options' names, or a run's run.json; as
if they had been typed, and it is remembered which came from where. Left out: what the values mean (settings/).
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from cyclopts import App, Group, Parameter, Token
from cyclopts.argument import Argument, ArgumentCollection
from cyclopts.validators import Number

from spin_llm.cli.terminal import slug
from spin_llm.errors import SpinError
from spin_llm.settings import GROUPS, RunSettings, flag_of
from spin_llm.settings.checks import choices_of, types_of

PANELS = {group: Group(str(group.__doc__), sort_key=place) for place, group in enumerate(GROUPS)}
TRAINING = Group("Training", sort_key=0)  # of the options that are of no stage
OUTPUT = Group("Output", sort_key=len(GROUPS))
MODEL = "Hub id, local folder, .gguf file, or smollm2-135m (embedded)."

Model = Annotated[str, Parameter(help=MODEL)]
_flag = partial(Parameter, group=OUTPUT, show_default=False)
Overwrite = Annotated[bool, _flag(help="Replace what an earlier run wrote there.")]
Json = Annotated[bool, _flag("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, _flag(("--quiet", "-q"), help="No progress, no table: where the result is, alone.")]
Config = Annotated[
    Path | None,
    Parameter(help="A TOML file with values for these options, by their names; or a run's run.json.", group=OUTPUT),
]


def at_least(least: int, text: str) -> Parameter:
    """A number that is not below the least."""
    return Parameter(help=text, validator=Number(gte=least))


def writes(where: str) -> Parameter:
    """-o, which says `where` the result is written."""
    return Parameter(("--output", "-o"), help=where, group=OUTPUT)


@dataclass(frozen=True)
class Output:
    """Where a command writes its folder, and what it prints."""

    output: Annotated[
        Path | None, writes("The folder to write (default: runs/MODEL, with -eval or a method after it).")
    ] = None
    overwrite: Overwrite = False
    as_json: Json = False
    quiet: Quiet = False

    def folder(self, model: str, after: str = "") -> Path:
        """The folder for a model."""
        return self.output or Path("runs") / f"{slug(model)}{after}"


Out = Annotated[Output, Parameter("*")]
PLAIN = Output()


@cache
def helps(group: type) -> dict[str, str]:
    """The text under each field of a group, and of those that it is made of."""
    tree = ast.parse(Path(str(sys.modules[group.__module__].__file__)).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == group.__name__)
    found = {name: text for base in group.__mro__[1:-1] for name, text in helps(base).items()}
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return found


@cache
def option_of(group: type, field: Field[Any]) -> inspect.Parameter:
    """A field as a parameter of a command. Words and numbers that may be words stay texts, for the settings to read."""
    hint = types_of(group)[field.name]
    kinds = {*(get_args(hint) or (hint,))}
    taken: Any = next((kind for kind in (bool, int, float) if kind in kinds), str)
    if choices_of(hint):
        taken = hint
    elif get_origin(hint) is tuple and field.name != "layers":
        taken = list[str]
    elif field.name in ("ratio", "layers"):
        taken = str
    ranges = "FIRST-LAST" if group in PANELS else "LAYER,..."  # of an edit, or of reft
    default = field.default
    text = helps(group)[field.name]
    shown = isinstance(default, str | float | int) and default is not False and "(default:" not in text
    about = Parameter(
        None if field.default is MISSING else flag_of(field.name),
        help=text,
        group=PANELS.get(group, TRAINING),
        metavar={"template_options": "NAME=VALUE", "layers": ranges}.get(field.name),
        converter=(lambda _, tokens: tokens[-1].value) if choices_of(hint) else None,
        negative=f"--no-{field.name}" if default is True else (),
        show_default=shown,
    )
    if field.default is MISSING:
        return inspect.Parameter(field.name, inspect.Parameter.POSITIONAL_ONLY, annotation=Annotated[str, about])
    given = {"default": default if shown else None, "annotation": Annotated[taken, about]}
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, **given)


def options_of(*parts: type | str, without: str = "") -> dict[str, inspect.Parameter]:
    """The options of groups, and of single fields by their names, but for those `without`."""
    singles = [part for part in parts if isinstance(part, str)]
    whole = [part for part in parts if not isinstance(part, str)]
    groups = [group for group in GROUPS if group in whole or set(singles) & set(group.__annotations__)] or whole
    return {
        field.name: option_of(group, field)
        for group in groups
        for field in fields(group)
        if (group in whole or field.name in singles) and field.name not in without.split()
    }


def from_settings(
    *parts: type | str, without: str = "", make: Callable[..., Any] = RunSettings
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function whose first argument, after its own positional ones, is what `make` makes of the
    options that were given."""

    def command_of(function: Callable[..., None]) -> Callable[..., None]:
        options = options_of(*parts, without=without)
        own = list(inspect.signature(function, eval_str=True).parameters.values())
        first = [one for one in own if one.kind is one.POSITIONAL_ONLY]
        others = [one for one in own if one.kind is one.KEYWORD_ONLY]

        def command(*positional: Any, **given: Any) -> None:
            given.pop("config", None)
            named = [name for name, option in options.items() if option.kind is option.POSITIONAL_ONLY]
            values = dict(zip(named, positional[len(first) :], strict=True))
            values |= {name: given.pop(name) for name in options if name in given}
            function(*positional[: len(first)], make(**values), **given)

        config = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config)
        every = sorted([*first, *options.values(), *others, config], key=lambda one: one.kind)
        command.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        command.__name__, command.__doc__ = function.__name__.rstrip("_"), function.__doc__
        return command

    return command_of


class Sources:
    """Fills options, and remembers which were not typed: `origins`, by flag."""

    def __init__(self) -> None:
        self.origins: dict[str, str] = {}

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        self.origins = {}
        options = {name: argument for argument in arguments for name in argument.names if argument.parse}
        file = options.pop("--config", None)
        for name, argument in options.items():
            key = f"SPIN_LLM_{name.lstrip('-').replace('-', '_').upper()}"
            if name.startswith("--") and key in os.environ:
                several = get_origin(argument.hint) is list
                texts = shlex.split(os.environ[key]) if several else [os.environ[key]]
                self.fill(argument, texts, "the environment", key)
        if file and file.tokens:
            self.read(Path(file.tokens[-1].value), f"spin-llm {' '.join(commands)}", options)

    def fill(self, argument: Argument, texts: Iterable[str | Token], where: str, key: str) -> None:
        """Give an option values, unless an earlier source has."""
        if not argument.tokens:
            for index, text in enumerate(texts):
                token = text if isinstance(text, Token) else Token(value=text)
                argument.append(token.evolve(keyword=key, source=where, index=index))
            self.origins |= dict.fromkeys(argument.names, f"{key} in {where}")

    def read(self, path: Path, command: str, options: dict[str, Argument]) -> None:
        """Fill from a file; SpinError for what cannot be read, and for a key that is no option of the command."""
        table, of_a_run = read_table(path)
        names = {name.lstrip("-").lower(): argument for name, argument in options.items()}
        for key, value in table.items():
            argument = names.get(flag_of(key).removeprefix("--"))
            if argument:
                self.fill(argument, texts_of(key, value, argument, path), str(path), key)
            elif not of_a_run:  # whose other stages have settings too
                near = difflib.get_close_matches(key.replace("_", "-"), names, n=1)
                raise SpinError(
                    f"{path}: {key} is not an option of `{command}`." + (f" Did you mean {near[0]}?" if near else ""),
                    change=f"`{command} --help` lists the options.",
                )

    def origin(self, message: str) -> str:
        """Where the value came from that a message begins with, as words in its end; "" for one that was typed."""
        origin = self.origins.get(message.split(maxsplit=1)[0]) if message.startswith("-") else None
        return f"\nIt is set by {origin}." if origin else ""


def read_table(path: Path) -> tuple[dict[str, Any], bool]:
    """(keys and values, whether the file is a run's run.json)."""
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise SpinError(f"--config {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise SpinError(f"--config {path} is not {kind}: {error}.") from None
    if isinstance(table, dict) and isinstance(table.get("settings"), dict):
        compared = table.get("compared", {})
        return {**table["settings"], **{name: compared.get(name) for name in ("baseline", "patch")}}, True
    if not isinstance(table, dict):
        raise SpinError(f"--config {path} holds no keys.", change="give a TOML file, or a run's run.json.")
    return table, False


def texts_of(key: str, value: Any, argument: Argument, path: Path) -> list[str | Token]:
    """A value as it would be typed; pairs, as run.json has them, as they are: nothing is to be added to them."""
    if value is None:
        return []
    if key == "layers" and isinstance(value, list):
        return ["-".join(map(str, value))] if value else []
    if isinstance(value, list) and get_origin(argument.hint) is not list:
        raise SpinError(f"{path}: {key} takes one value.", change="give it without [ ].")
    if isinstance(value, list) and all(isinstance(one, list) for one in value):
        return [Token(implicit_value=[tuple(one) for one in value])]
    if isinstance(value, dict):
        return [f"{name}={plain(one)}" for name, one in value.items()]
    return [plain(one) for one in (value if isinstance(value, list) else [value])]


def plain(value: Any) -> str:
    """One value as a text; other than texts as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
