"""NAME=SOURCE: what a source's text says, and what a bare half of it stands for.

In: texts as the command takes them, (name, source) pairs, or dicts. Out: pairs; a SpinError that says which text is no
source, or which name was nearly meant. Left out: reading what a source leads to (data/).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spin_llm.errors import SpinError
from spin_llm.settings.checks import flag_of, several
from spin_llm.settings.words import CONCEPTS, COVERED, SHIPPED, Sources


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
