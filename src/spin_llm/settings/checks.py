"""What every group of settings reads and checks in the same way: types, words, bounds, NAME=SOURCE; and the refusals.

In: a group of settings; texts as the command takes them, (name, source) pairs, or dicts. Out: nothing, or pairs; a
SpinError that names the option, the value and what is allowed, or which name was nearly meant. Left out: checks of one
group, or of several together (the groups, run.py); reading what a source leads to (data/).
"""

from __future__ import annotations

import difflib
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from spin_llm.errors import SpinError
from spin_llm.settings.words import CONCEPTS, COVERED, SHIPPED, Sources

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


def parse_options(given: Any) -> Any:
    """(name, value) pairs of what was given for a chat template: NAME=VALUE texts, pairs, or a dict of any values."""
    if isinstance(given, Mapping):
        return tuple((name, value if isinstance(value, str) else json.dumps(value)) for name, value in given.items())
    if (texts := texts_of(given)) is None:
        return as_pairs(given) if as_pairs(given) is not None else given
    for text in texts:
        if "=" not in text:
            change = "give for example --template-option enable_thinking=false."
            raise SpinError(f"--template-option {text!r} is not NAME=VALUE.", change=change)
    return tuple((name.strip(), value) for name, _, value in (text.partition("=") for text in texts))


def texts_of(given: Any) -> tuple[str, ...] | None:
    """What was given as one text, several or none; None for anything else."""
    texts = several(given)
    is_texts = isinstance(texts, tuple) and all(isinstance(text, str | Path) for text in texts)
    return tuple(map(str, texts)) if is_texts else None


def as_pairs(given: Any) -> Sources | None:
    """A dict, or a list of (name, source) pairs, as pairs; None for anything else."""
    items = tuple(given.items()) if isinstance(given, Mapping) else several(given)
    if given is None or not isinstance(items, tuple) or not all(isinstance(item, list | tuple) for item in items):
        return None
    return tuple(tuple(str(p) if isinstance(p, Path) else p for p in item) for item in items)  # type: ignore[misc]


def pairs_of(name: str, given: Any, names: Sequence[str], data_dir: str | None, beside: Sequence[str] = ()) -> Any:
    """(name, source) pairs of what was given: None, texts as the command takes them, pairs, or a dict."""
    texts, pairs = texts_of(given), as_pairs(given)
    if pairs is not None or texts is None:
        return given if pairs is None else pairs  # for `check` to refuse
    return sources(flag_of(name), texts, names, default_sources(data_dir)[name], beside)


def questions_of(given: Any, concepts: Any, data_dir: str | None = None) -> Any:
    """The pairs of `questions`; where they were not given as such, over-refusal is always among them, with the starter
    questions where the source has none."""
    named = [item[0] for item in as_pairs(concepts) or () if item]
    axes = default_axes(named)
    own = [name for name in named if set(axes) & set(named) and name not in axes]
    pairs = pairs_of("questions", given, axes, data_dir, own)
    if as_pairs(given) is not None or as_pairs(pairs) is None:
        return pairs
    found = dict(pairs)
    if found.setdefault("over_refusal", "starter") in ("salad", "beavertails"):
        found["over_refusal"] = "starter"
    return tuple(found.items())


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
