"""What every group of settings checks in the same way, and the words of its refusals.

In: a group of settings. Out: nothing, or a SpinError that names the option, the value and what is allowed. Left out:
checks of one group, or of several together (the groups, run.py).
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from spin_llm.errors import SpinError

FRACTION = "a fraction above 0 and below 1"


def flag_of(name: str) -> str:
    """The command's option for one setting; those that may be repeated are in the singular."""
    singular = {"concepts": "concept", "controls": "control", "template_options": "template-option"}
    return f"--{singular.get(name, name).replace('_', '-')}"


def invalid(name: str, value: object, allowed: str) -> SpinError:
    """The error for a value of the right type that is out of range."""
    return SpinError(f"{flag_of(name)} {value} is out of range.", change=f"give {allowed}.")


def require(settings: object, allowed: str, good: Callable[[Any], bool], *names: str) -> None:
    """SpinError for a field of these names whose value, where it has one, is not good; `allowed` says what is."""
    for name in names:
        if (value := getattr(settings, name)) is not None and not good(value):
            raise invalid(name, value, allowed)


def no_choice(name: str, value: object, allowed: Sequence[str], what: str = "") -> SpinError:
    """The error for a word that is none of those allowed."""
    near = difflib.get_close_matches(str(value).lower(), allowed, n=1)
    return SpinError(
        f"{flag_of(name)} {value} is not a choice." + (f" Did you mean {near[0]}?" if near else ""),
        change=f"give one of {', '.join(allowed)}" + (f" ({what})." if what else "."),
    )


def put(settings: object, **values: Any) -> None:
    """Set fields of a frozen group, while it is made."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)


def several(given: Any) -> Any:
    """A tuple of what may be one text, several, or none; anything else as it is, for `check` to refuse."""
    if given is None:
        return ()
    if isinstance(given, str | Path):
        return (str(given),)
    return tuple(given) if isinstance(given, list | tuple | set | frozenset) else given


types_of = cache(get_type_hints)  # the fields of a group of settings and their types


def check(settings: object, group: type, **least: int) -> None:
    """SpinError for a value of another type than the group's field, a word that is not among its choices, or a number
    below the `least` of its name. Paths become texts."""
    import msgspec  # here: no help needs it

    for name, kind in types_of(group).items():
        value = getattr(settings, name)
        if isinstance(value, Path):
            value = str(value)
            put(settings, **{name: value})
        if (allowed := choices_of(kind)) and isinstance(value, str) and value not in allowed:
            raise no_choice(name, value, allowed)
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise SpinError(
                f"{flag_of(name)} {value!r} is of the wrong type: {error}.",
                change="`spin-llm run --help` says what each option takes.",
            ) from None
    for name, lowest in least.items():
        require(settings, f"{lowest} or more", partial(operator.le, lowest), name)


def choices_of(kind: Any) -> tuple[str, ...]:
    """The words of a Literal, also of one that may be None; () for other types."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next((get_args(part) for part in get_args(kind) if get_origin(part) is Literal), ())
