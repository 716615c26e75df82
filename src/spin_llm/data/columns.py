"""Prompts and responses among the columns of a data file.

In: rows (rows.py), and what is asked of them. Out: pairs, and what was left out, counted. Columns are found by their
usual names, in any case of letters, or named by the user:

- response: of a pair of columns for both kinds (aware and unaware, chosen and rejected, safe and unsafe) the one asked
  for; else the only column with a usual name; several are refused. A column for one kind is never read as the other.
- prompt: a conversation holds its own, with all turns before the answer (turns.py); else the only column with a usual
  name; `instruction` and others are joined with `input` and `context`; `system` and `history` come before.
- a column that calls a response safe or unsafe (`is_safe`, `label`, ...) decides: aware are the safe ones alone,
  unaware the unsafe ones alone; one that does not say which is an error. `concept` decides likewise (labels.py).

A row without its text is an error, never dropped. Left out: judging the texts; other columns than these and `facet`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spin_llm.data.labels import Labels, flag
from spin_llm.data.rows import Row, repeated, shown
from spin_llm.data.turns import Turn, Turns, conversation, earlier, is_text, plain, with_answer
from spin_llm.errors import SpinError

PROMPT_COLUMNS = ("prompt", "question", "questions", "instruction", "query", "input")
JOINED_COLUMNS = ("input", "context")  # what a prompt column is joined with; `input` with `instruction` alone
CONVERSATIONS = ("messages", "conversations", "conversation", "dialog", "dialogue")
RESPONSE_COLUMNS = ("response", "answer", "output", "completion", *CONVERSATIONS)
KINDS = (("aware", "unaware"), ("chosen", "rejected"), ("safe", "unsafe"))
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")


@dataclass(frozen=True)
class Wanted:
    """What is asked of a source of data: `responses` is "aware", "unaware", or None for prompts alone; of the rows that
    name a concept those of `concept`; the columns that the user named."""

    responses: str | None
    concept: str | None = None
    prompt_column: str | None = None
    response_column: str | None = None


@dataclass(frozen=True)
class Pair:
    """`turns` are those before the response, where they are more than one of the user: a chat template is given them,
    and `prompt` is their plain text (turns.py). `where` names the row in its file."""

    prompt: str
    response: str
    facet: str | None = None
    turns: Turns = ()
    where: str = field(default="", compare=False)

    @property
    def asked(self) -> str | Turns:
        """What is put to the model."""
        return self.turns or self.prompt


class Columns(NamedTuple):
    """Lower-case names; several `responses` have a label each; `named`: the user named the prompt column."""

    prompt: str | None
    responses: tuple[str, ...]
    named: bool


def read_pairs(rows: Iterable[Row], origin: str, wanted: Wanted) -> tuple[list[Pair], list[str]]:
    """(pairs, what was left out and why) of all rows; the response is "" where prompts alone are wanted. Raises
    SpinError naming `origin`: columns not found or not clear; rows without a prompt or response (which, and how many);
    labels that do not say what they mean; nothing left."""
    pairs: list[Pair] = []
    bad: list[str] = []
    columns: Columns | None = None
    labels = Labels(origin, wanted.responses, wanted.concept)
    for row in rows:
        values = _lower(row, origin)
        columns = columns or find_columns(values, origin, wanted)
        for response in columns.responses or (None,):
            if not labels.keep(values, response, row.where):
                continue
            try:
                pairs.append(_pair(values, columns, response, f"{origin}, {row.where}"))
            except ValueError as problem:
                bad.append(f"{row.where} has {problem}")
    if bad:
        raise SpinError(
            f"{origin}: {len(bad)} of {len(bad) + len(pairs)} rows have no prompt or no response: "
            f"{'; '.join(bad[:3])}{'; ...' if len(bad) > 3 else ''}.",
            cause="empty cells, or columns that hold something else than the prompt and the response.",
            change="fill or remove those rows, or name the columns with --prompt-column and --response-column.",
        )
    return pairs, labels.left_out(bool(pairs))


def _pair(values: Mapping[str, object], columns: Columns, column: str | None, where: str) -> Pair:
    """One pair of a row. Raises ValueError, which says what the row has instead."""
    before: Turns = ()
    response = ""
    if column is not None:
        turns = conversation(values.get(column))
        before, response = ((), text_of(values.get(column))) if turns is None else with_answer(turns)
    if not any(turn.role == "user" for turn in before) or (columns.named and columns.prompt != column):
        asked = _prompt(values, columns, column)
        before = asked if columns.named else (*asked, *before)
    if column is not None and not is_text(response):
        raise ValueError(_lacks("response", column, values))
    before = _with_system((*earlier(values.get("history")), *before), values)
    facet = values.get("facet")
    alone = [turn.role for turn in before] == ["user"]
    return Pair(plain(before), response, None if facet in (None, "") else str(facet), () if alone else before, where)


def _prompt(values: Mapping[str, object], columns: Columns, response: str | None) -> Turns:
    """The turns of the prompt column. Raises ValueError when there are none."""
    column = columns.prompt or ""
    cell = values.get(column)
    turns = conversation(cell)
    if turns is not None:
        before, answer = with_answer(turns)
        if answer and response is not None:
            raise ValueError(f"a conversation in column {column!r} that ends with an answer")
        if not any(turn.role == "user" for turn in before):
            raise ValueError(f"no prompt in column {column!r} (no turn of the user before the answer)")
        return before
    if not (text := text_of(cell)):
        raise ValueError(_lacks("prompt", column or response or "", values))
    joined = () if columns.named else JOINED_COLUMNS if column == "instruction" else JOINED_COLUMNS[1:]
    for name in joined:
        if not isinstance(values.get(name), str | None):
            raise ValueError(f"no text in column {name!r}")
        text = join_input(text, values.get(name))
    return (Turn("user", text),)


def _with_system(turns: Turns, values: Mapping[str, object]) -> Turns:
    """The turns with the text of a system column before them. Raises ValueError when they have another one."""
    text = next((values[name] for name in SYSTEM_COLUMNS if values.get(name) not in (None, "")), "")
    if not isinstance(text, str) or (text.strip() and not is_text(text)):
        raise ValueError("a system column that holds no text")
    own = turns[0].content if turns[0].role == "system" else text
    if text.strip() and own != text:
        raise ValueError("a system column beside another system message")
    return (Turn("system", text), *turns) if text.strip() and turns[0].role != "system" else turns


def find_columns(first: Mapping[str, object], origin: str, wanted: Wanted) -> Columns:
    """Choose the columns by the first row (lower-case names): the user's, else those of the module's rules."""
    names, prompt = list(first), wanted.prompt_column
    found: tuple[str, ...] = ()
    if wanted.responses is not None and wanted.response_column:
        found = (_named(names, wanted.response_column, origin, "response"),)
    elif wanted.responses is not None:  # a column of prompts is none of responses, but a conversation is both
        free = [name for name in names if name in CONVERSATIONS or prompt is None or name != prompt.lower()]
        found = _responses(first, free, wanted.responses, origin)
    if prompt is not None:
        return Columns(_named(names, prompt, origin, "prompt"), found, True)
    if found and _is_conversation(first[found[0]]):
        usual = [name for name in PROMPT_COLUMNS if name in names and name not in found]
        return Columns(usual[0] if len(usual) == 1 else None, found, False)
    return Columns(_prompt_column(first, found, origin), found, False)


def _responses(first: Mapping[str, object], names: Collection[str], responses: str, origin: str) -> tuple[str, ...]:
    """The columns of the responses of one kind."""
    place = ("aware", "unaware").index(responses)
    for pair in KINDS:
        flags = pair == KINDS[2] and any(flag(first.get(kind)) is not None for kind in pair)
        if set(pair) <= set(names) and not flags:
            return (pair[place],)
    found = [name for name in (*KINDS[0], *KINDS[1], *RESPONSE_COLUMNS) if name in names]
    numbered = tuple(name for name in names if re.fullmatch(r"response_\d+", name) and f"is_{name}_safe" in names)
    if numbered and not found:
        return numbered
    if len(found) == 1 and found[0] in [pair[1 - place] for pair in KINDS]:  # those of the other kind
        found = []
    return (_only(found, names, (*RESPONSE_COLUMNS, *(pair[place] for pair in KINDS)), origin, "response"),)


def _prompt_column(first: Mapping[str, object], responses: tuple[str, ...], origin: str) -> str:
    """The column of the prompt: a conversation, or the only usual one."""
    names = [name for name in first if name not in responses]
    conversations = [name for name in (*CONVERSATIONS, "chosen", "aware") if name in names]
    if not responses and (holding := [name for name in conversations if _is_conversation(first[name])]):
        return holding[0]
    found = [name for name in PROMPT_COLUMNS if name in names and (name != "input" or "instruction" not in names)]
    return _only(found, list(first), (*PROMPT_COLUMNS, *CONVERSATIONS), origin, "prompt")


def _is_conversation(cell: Any) -> bool:
    try:
        return conversation(cell) is not None
    except ValueError:  # one that cannot be read; its row is named later
        return True


def _named(names: list[str], wanted: str, origin: str, role: str) -> str:
    if wanted.lower() not in names:
        raise SpinError(
            f"{origin} has no column {wanted!r}; its columns are: {shown(names)}.",
            cause=f"--{role}-column names a column that is not there.",
            change=f"give one of these names with --{role}-column.",
        )
    return wanted.lower()


def _only(found: list[str], names: Collection[str], usual: Iterable[str], origin: str, role: str) -> str:
    """The column found; SpinError where there are several or none, which tells of those of the file and the usual."""
    if len(found) == 1:
        return found[0]
    if found:
        raise SpinError(
            f"{origin} has several columns that could be the {role}: {', '.join(found)}.",
            cause="only pairs of columns (aware and unaware, chosen and rejected) say by their names which is which.",
            change=f"name one with --{role}-column, or remove the others.",
        )
    what = f"{origin} has no column for the {role}; its columns are: {shown(names)}."
    if len(names) == 1 and any(mark in next(iter(names)) for mark in ";\t|,"):
        change = "save the file with commas between the fields, or tabs in a .tsv file."
        raise SpinError(what, cause="the fields are not separated as the suffix says.", change=change)
    raise SpinError(what, cause=f"none is named {', '.join(usual)}.", change=f"name it with --{role}-column.")


def _lower(row: Row, origin: str) -> dict[str, object]:
    values = {name.strip().lower(): value for name, value in row.values.items()}
    if len(values) < len(row.values):
        twice = repeated(name.strip().lower() for name in row.values)
        raise SpinError(
            f"{origin}, {row.where}: two columns differ only in the case of letters: {shown(twice)}.",
            change="rename one of them.",
        )
    return values


def _lacks(role: str, column: str, values: Mapping[str, object]) -> str:
    value = values.get(column)
    found = f"found {type(value).__name__}"
    if value is None or (isinstance(value, str) and not value.strip()):
        found = "empty"
    elif isinstance(value, str | int | float | bool):  # of others the text may be as deep and as long as the file
        found = f"{found} {str(value)[:40]!a}"
    return f"no {role} in column {column!r} ({found})"


def text_of(value: Any) -> str:
    """The value where it is a text, else ""."""
    return value if is_text(value) else ""


def join_input(instruction: str, extra: Any) -> str:
    """An Alpaca instruction and its input, parted by a blank line."""
    text = text_of(extra)
    return f"{instruction}\n\n{text}" if text else instruction
