"""Data sources: what the user names becomes prompts and responses.

In: `starter` (shipped with the package), a name known from the paper (`beavertails`, `salad`, `alpaca-cleaned`: from
the folder `data_dir` when given, else from the hub), the path of a file, or a hub data set `owner/name`. Out: a
PairSet or QuestionSet with the SHA-256 of its rows and what was left out of it, and seeded samples of them. The known
sets are licensed for non-commercial use and are never shipped. Left out: the labels of the known sets beyond the choice
of concept; deduplication (BeaverTails repeats prompts).
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from spin_llm import files
from spin_llm.data.columns import Pair, Wanted, read_pairs
from spin_llm.data.hub import KNOWN, hub_files, known_pairs
from spin_llm.data.rows import SUFFIXES, ReadRows, Row, data_suffix, read_rows
from spin_llm.data.turns import Turns
from spin_llm.errors import SpinError
from spin_llm.settings import SHIPPED

Item = TypeVar("Item")
STARTER_PAIRS = {name: name for name in (*SHIPPED, "general")}
STARTER_QUESTIONS = {**{name: f"{name}_questions" for name in SHIPPED}, "over_refusal": "over_refusal"}


@dataclass(frozen=True)
class Question:
    """As Pair, without a response."""

    prompt: str
    facet: str | None = None
    turns: Turns = ()
    where: str = field(default="", compare=False)

    @property
    def asked(self) -> str | Turns:
        """What is put to the model."""
        return self.turns or self.prompt


@dataclass(frozen=True)
class PairSet:
    """`name` is a label to print, `source` what the user gave; `left_out` says, one text a reason, how many rows were
    not taken and why."""

    name: str
    source: str
    pairs: tuple[Pair, ...]
    sha256: str
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuestionSet:
    """As PairSet, with prompts alone."""

    name: str
    source: str
    questions: tuple[Question, ...]
    sha256: str
    left_out: tuple[str, ...] = ()


def load_pairs(
    source: str | Path,
    *,
    concept: str | None = None,
    responses: str = "aware",
    data_dir: str | Path | None = None,
    prompt_column: str | None = None,
    response_column: str | None = None,
    rows: ReadRows = read_rows,
) -> PairSet:
    """Load (prompt, response) pairs; `responses` is "aware" or "unaware" where the source has both. Raises SpinError
    for a source that is unknown, absent, unreachable, malformed, empty, or lacks columns or texts."""
    if responses not in ("aware", "unaware"):
        raise SpinError(f"responses is {responses!r}.", change="give aware or unaware.")
    wanted = Wanted(responses, concept, prompt_column, response_column)
    name, pairs, left_out = _load(str(source), wanted, data_dir, rows)
    return PairSet(name, str(source), tuple(pairs), rows_sha256(pairs), tuple(left_out))


def load_questions(
    source: str | Path,
    *,
    concept: str | None,
    data_dir: str | Path | None = None,
    prompt_column: str | None = None,
    rows: ReadRows = read_rows,
) -> QuestionSet:
    """Load prompts to generate answers to (concept: a concept, or over_refusal). Raises as load_pairs does."""
    name, pairs, left_out = _load(str(source), Wanted(None, concept, prompt_column), data_dir, rows)
    questions = tuple(_question(pair) for pair in pairs)
    return QuestionSet(name, str(source), questions, rows_sha256(questions), tuple(left_out))


def load_prompts(
    source: str | Path,
    *,
    concept: str,
    data_dir: str | Path | None = None,
    prompt_column: str | None = None,
    rows: ReadRows = read_rows,
) -> tuple[Question, ...]:
    """The distinct prompts of a source of pairs, whatever their responses; a file may have prompts alone. Raises as
    load_pairs does."""
    kinds = ("aware", "unaware") if str(source) in ("starter", *KNOWN) else (None,)
    wanted = [Wanted(kind, concept, prompt_column) for kind in kinds]
    pairs = [pair for each in wanted for pair in _load(str(source), each, data_dir, rows)[1]]
    return tuple({pair.prompt: _question(pair) for pair in pairs}.values())


def _question(pair: Pair) -> Question:
    return Question(pair.prompt, pair.facet, pair.turns, pair.where)


def rows_sha256(rows: Sequence[Pair] | Sequence[Question]) -> str:
    """SHA-256 of the rows in order, whatever file or format they came from."""

    def texts(row: Pair | Question) -> tuple[Any, ...]:
        said = (row.prompt, row.response, row.facet) if isinstance(row, Pair) else (row.prompt, row.facet)
        return (*said, row.turns) if row.turns else said  # as before there were turns

    return files.sha256_json([texts(row) for row in rows])


def sample(items: Sequence[Item], examples: int | None, seed: int, name: str = "the data") -> tuple[Item, ...]:
    """Draw `examples` items without replacement, kept in their order; None, or as many as there are, uses all."""
    return split_sample(items, examples, seed, name)[0]


def split_sample(
    items: Sequence[Item], examples: int | None, seed: int, name: str = "the data"
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """`sample`, and the items that it left, in their order."""
    if examples is None:
        return tuple(items), ()
    if examples < 1:
        raise SpinError(f"{examples} examples were asked for.", change="give --examples 1 or more.")
    if examples > len(items):
        raise SpinError(
            f"{examples} examples were asked for, but {name} has {len(items)} rows.",
            cause="a small file, or a larger --examples than it can serve.",
            change=f"give --examples {len(items)} or fewer, or more data.",
        )
    drawn = set(random.Random(seed).sample(range(len(items)), examples))
    chosen = tuple(item for place, item in enumerate(items) if place in drawn)
    return chosen, tuple(item for place, item in enumerate(items) if place not in drawn)


def _load(
    source: str, wanted: Wanted, data_dir: str | Path | None, rows_of: ReadRows
) -> tuple[str, list[Pair], list[str]]:
    """(name to print, pairs, what was left out)."""
    path, there = _place(source)
    if source == "starter":
        return _starter(wanted.concept, wanted.responses, rows_of)
    if source in KNOWN:
        return known_pairs(source, wanted, Path(data_dir).expanduser() if data_dir else None, rows_of)
    if source and (there or data_suffix(path) or path.is_absolute() or source.startswith((".", "~"))):
        return path.name, *read_pairs(rows_of(path), str(path), wanted)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        rows = (Row(f"{file.name}, {row.where}", row.values) for file in hub_files(source) for row in rows_of(file))
        return source, *read_pairs(rows, source, wanted)
    close = difflib.get_close_matches(source.lower(), ["starter", *KNOWN], n=2)
    raise SpinError(
        f"There is no data source {source!r}." + (f" Did you mean {' or '.join(close)}?" if close else ""),
        cause="a mistyped name, or a file that is not there.",
        change=f"give starter, {', '.join(KNOWN)}, the path of a data file ({', '.join(SUFFIXES)}), or a hub data set "
        "OWNER/NAME.",
    )


def _place(source: str) -> tuple[Path, bool]:
    """(the path that a source may be, whether something is there)."""
    try:
        path = Path(source).expanduser()
        return path, path.exists()
    except (RuntimeError, OSError, ValueError):  # no home of that user, a name too long or with a zero byte
        return Path(source), False


def _starter(concept: str | None, responses: str | None, rows_of: ReadRows) -> tuple[str, list[Pair], list[str]]:
    stems = STARTER_QUESTIONS if responses is None else STARTER_PAIRS
    concept = "general" if concept is None and responses is not None else concept
    if concept not in stems:
        raise SpinError(
            f"The starter data have no {'questions' if responses is None else 'pairs'} for the concept {concept!r}.",
            cause="the starter data cover few concepts.",
            change=f"use one of {', '.join(stems)}, or give your own data as the source.",
        )
    resource = resources.files("spin_llm.data").joinpath("starter", f"{stems[concept]}.jsonl")
    with resources.as_file(resource) as path:
        return f"starter/{concept}", *read_pairs(rows_of(path), f"starter/{path.name}", Wanted(responses))
