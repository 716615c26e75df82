"""Conversations in a cell of a data file.

In: a cell: a list (or its JSON text) of {role, content} or of ShareGPT's {from, value}, content as text or as text
parts; or hh-rlhf's text, "\\n\\nHuman: ...\\n\\nAssistant: ...". Out: its turns; the prompt is all before the last
assistant turn, the response is that turn. What cannot be read as it is meant (a tool's turn, an image, a turn without
text) is a ValueError that says so. Left out: tools, images, which columns hold conversations (columns.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatbot", "chatgpt"), "assistant"),
}
UNWRITTEN = re.compile("[\0\ud800-\udfff]")  # NUL, and half of a surrogate pair, which JSON may escape
SPOKEN = re.compile(r"(?:\A\s*|\r?\n\s*\r?\n)(Human|Assistant):")


class Turn(NamedTuple):
    role: str  # system, user or assistant
    content: str


Turns = tuple[Turn, ...]


def conversation(cell: Any) -> Turns | None:
    """The turns of a cell; None when it is no conversation, and then perhaps a text. Raises ValueError."""
    if isinstance(cell, str):
        if cell.startswith("\n\nHuman:") or (cell.lstrip().startswith("Human:") and "\n\nAssistant:" in cell):
            return spoken(cell)
        if not cell.lstrip().startswith("["):
            return None
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            if re.match(r"\s*\[\s*\{\s*['\"](role|from|content|value)['\"]\s*:", cell):
                raise ValueError("a conversation that is not JSON (a list as Python prints it?)") from None
            return None
    if isinstance(cell, dict) and ("role" in cell or "from" in cell):
        cell = [cell]
    if not isinstance(cell, list) or not cell or not all(isinstance(turn, dict) for turn in cell):
        return None
    if not any("role" in turn or "from" in turn for turn in cell):
        return None
    turns = [read_turn(turn) for turn in cell]
    return tuple(turn for turn in turns if turn.content or turn.role != "system")


def spoken(text: str) -> Turns:
    """The turns of hh-rlhf's text; an empty last turn of the assistant asks for the answer and is none."""
    parts = SPOKEN.split(text)[1:]
    turns = [Turn(ROLES[role.lower()], said.strip()) for role, said in zip(parts[::2], parts[1::2], strict=True)]
    if turns[-1] == ("assistant", ""):
        turns.pop()
    if not all(is_text(turn.content) for turn in turns):
        raise ValueError("a turn without text")
    return tuple(turns)


def read_turn(turn: Mapping[str, object]) -> Turn:
    """One turn; only a system's may be empty. Raises ValueError."""
    name = turn.get("role") or turn.get("from")
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise ValueError(f"a turn of the role {str(name)[:30]!a}")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise ValueError("a turn that calls a tool")
    content = next((turn[key] for key in ("content", "value", "text") if turn.get(key) is not None), "")
    text = joined(content)
    if not is_text(text) and (role != "system" or text.strip()):
        raise ValueError(f"a turn of the {role} without text")
    return Turn(role, text if text.strip() else "")


def joined(content: Any) -> str:
    """A content as one text: text parts are joined by line breaks. Raises ValueError for other parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise ValueError(f"a turn whose content is of type {type(content).__name__}")
    parts = [part if isinstance(part, dict) else {"text": part} for part in content]
    if not all(isinstance(p.get("text"), str) and p.get("type", "text") in ("text", "input_text") for p in parts):
        raise ValueError("a turn with a part that is no text")
    return "\n".join(part["text"] for part in parts)


def earlier(history: Any) -> Turns:
    """The turns of a `history` column: (question, answer) pairs, or a conversation. Raises ValueError."""
    turns = conversation(history) if history else ()
    if turns is not None:
        return turns
    if isinstance(history, str):
        with suppress(ValueError, RecursionError):
            history = json.loads(history)
    pairs: list[Any] = history if isinstance(history, list) else [None]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 and all(map(is_text, pair)) for pair in pairs):
        raise ValueError("a history that is no list of (question, answer) pairs")
    return tuple(Turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True))


def is_text(value: Any) -> bool:
    """Whether a value is text that says something, can be encoded and has no NUL."""
    return isinstance(value, str) and bool(value.strip()) and not UNWRITTEN.search(value)


def with_answer(turns: Turns) -> tuple[Turns, str]:
    """(what comes before the answer, the answer); "" when the conversation does not end with the assistant's turn."""
    return (turns[:-1], turns[-1].content) if turns and turns[-1].role == "assistant" else (turns, "")


def plain(turns: Sequence[Turn]) -> str:
    """The turns as one text, as a prompt without a chat template and as people read it: each begins with its role
    ("User: "), a blank line between them; one turn of the user alone is its text."""
    if [turn.role for turn in turns] == ["user"]:
        return turns[0].content
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in turns)
