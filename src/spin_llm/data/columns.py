"""Prompts and responses among the columns of a data file.

In: rows (rows.py). Out: records (prompt, response, facet), one for each row. Columns are found by their usual names,
in any case of letters, or named by the user; `instruction` is joined with `input`; a conversation (a list of {role,
content}, or its JSON text) gives its last user turn and the assistant turn after it. A row without its text is an
error, never dropped. Left out: judging the texts; columns other than `facet`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from spin_llm.data.rows import Row
from spin_llm.errors import SpinError

PROMPT_COLUMNS = ("prompt", "question", "questions", "instruction", "query", "input", "messages")
RESPONSE_COLUMNS = ("response", "answer", "output", "completion", "chosen", "aware", "messages")


class Record(NamedTuple):
    prompt: str
    response: str
    facet: str | None


class Columns(NamedTuple):
    """Lower-case names. `response` is None when only prompts are wanted."""

    prompt: str
    response: str | None
    join_input: bool


def read_records(
    rows: Iterable[Row],
    origin: str,
    *,
    responses: str | None,
    prompt_column: str | None = None,
    response_column: str | None = None,
) -> list[Record]:
    """Records of all rows; `responses` is "aware", "unaware", or None for prompts alone (their response is "").

    Raises SpinError naming `origin`: columns not found; rows without a prompt or response (which, and how many).
    """
    records: list[Record] = []
    bad: list[str] = []
    columns: Columns | None = None
    for row in rows:
        values = _lower(row, origin)
        columns = columns or find_columns(row.values, origin, responses, prompt_column, response_column)
        prompt = prompt_text(values.get(columns.prompt))
        if columns.join_input and prompt:
            prompt = join_input(prompt, values.get("input"))
        response = response_text(values.get(columns.response)) if columns.response else ""
        if not prompt:
            bad.append(_lacks(row.where, "prompt", columns.prompt, values))
        elif columns.response and not response:
            bad.append(_lacks(row.where, "response", columns.response, values))
        else:
            facet = values.get("facet")
            records.append(Record(prompt, response, None if facet is None or facet == "" else str(facet)))
    if bad:
        shown = "; ".join(bad[:3]) + ("; ..." if len(bad) > 3 else "")
        raise SpinError(
            f"{origin}: {len(bad)} of {len(bad) + len(records)} rows have no prompt or no response: {shown}.",
            cause="empty cells, or columns that hold something else than the prompt and the response.",
            change="fill or remove those rows, or name the columns with --prompt-column and --response-column.",
        )
    return records


def find_columns(
    seen: Iterable[str],
    origin: str,
    responses: str | None,
    prompt_column: str | None = None,
    response_column: str | None = None,
) -> Columns:
    """Choose the columns: the user's first, else the first of the usual names that is there."""
    names = [name.lower() for name in seen]
    response = None
    if responses is not None:
        usual = [name for name in RESPONSE_COLUMNS if name != "aware" or responses == "aware"]
        if responses == "unaware":
            usual.append("unaware")
        if {"aware", "unaware"} <= set(names):
            usual = [responses]
        response = _choose(names, _without(usual, prompt_column), response_column, origin, "response")
    # A response from a conversation goes with the prompt of the same conversation.
    usual_prompts = ["messages"] if response == "messages" else _without(PROMPT_COLUMNS, response)
    prompt = _choose(names, usual_prompts, prompt_column, origin, "prompt")
    return Columns(prompt, response, join_input=prompt == "instruction" and prompt_column is None)


def _without(usual: Iterable[str], taken: str | None) -> list[str]:
    """The usual names but the one taken for the other role; a conversation serves both."""
    return [name for name in usual if name == "messages" or taken is None or name != taken.lower()]


def _choose(names: list[str], usual: list[str], wanted: str | None, origin: str, role: str) -> str:
    if wanted is not None:
        if wanted.lower() not in names:
            raise SpinError(
                f"{origin} has no column {wanted!r}; its columns are: {', '.join(names)}.",
                cause=f"--{role}-column names a column that is not there.",
                change=f"give one of these names with --{role}-column.",
            )
        return wanted.lower()
    for name in usual:
        if name in names:
            return name
    raise _not_found(names, usual, origin, role)


def _not_found(names: list[str], usual: list[str], origin: str, role: str) -> SpinError:
    one_field = len(names) == 1 and any(mark in names[0] for mark in ";\t|")
    return SpinError(
        f"{origin} has no column for the {role}; its columns are: {', '.join(names)}.",
        cause="the fields are not separated by commas." if one_field else f"none is named {', '.join(usual)}.",
        change="save the file with commas between the fields." if one_field else f"name it with --{role}-column.",
    )


def _lower(row: Row, origin: str) -> dict[str, Any]:
    values = {name.lower(): value for name, value in row.values.items()}
    if len(values) < len(row.values):
        raise SpinError(
            f"{origin}, {row.where}: two columns differ only in the case of letters: {', '.join(row.values)}.",
            change="rename one of them.",
        )
    return values


def _lacks(where: str, role: str, column: str, values: dict[str, Any]) -> str:
    value = values.get(column)
    empty = value is None or (isinstance(value, str) and not value.strip())
    found = "empty" if empty else f"found {type(value).__name__} {str(value)[:40]!a}"
    return f"{where} has no {role} in column {column!r} ({found})"


def prompt_text(value: Any) -> str:
    """The text of a prompt, or the last user turn of a conversation; "" when there is none."""
    turns = _conversation(value)
    if turns is None:
        return _text(value)
    return _text(next((turn.get("content") for turn in reversed(turns) if turn.get("role") == "user"), None))


def response_text(value: Any) -> str:
    """The text of a response, or the first assistant turn after the last user turn; "" when there is none."""
    turns = _conversation(value)
    if turns is None:
        return _text(value)
    last_user = max((place for place, turn in enumerate(turns) if turn.get("role") == "user"), default=-1)
    after = turns[last_user + 1 :]
    return _text(next((turn.get("content") for turn in after if turn.get("role") == "assistant"), None))


def join_input(instruction: str, extra: Any) -> str:
    """An Alpaca instruction and its input, parted by a blank line."""
    text = _text(extra)
    return f"{instruction}\n\n{text}" if text else instruction


def _text(value: Any) -> str:
    """The value when it is text that says something and can be encoded, else ""."""
    if not isinstance(value, str) or not value.strip():
        return ""
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair, from a JSON escape
        return ""
    return value


def _conversation(value: Any) -> list[dict[str, Any]] | None:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            return None
    if isinstance(value, list) and value and all(isinstance(turn, dict) and "role" in turn for turn in value):
        return value
    return None
