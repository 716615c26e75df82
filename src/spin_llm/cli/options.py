"""Options from settings: every field is an option, the text under it its help, its group a panel.

In: groups of settings, or names of single fields. Out: a decorator that makes a command of a function that takes the
settings. Left out: where values come from besides the command line (config.py).
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from spin_llm.cli.terminal import slug
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
