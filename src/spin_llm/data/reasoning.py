"""What a model thinks before it answers, by the markers that it was trained to write.

In: a text, special tokens included. Out: its reasoning and its answer, and whether the reasoning came to its end; how
an open block is closed. Known: <think> (Qwen3, DeepSeek-R1, SmolLM3 and most others, also with other names and
brackets), [THINK] (Magistral), the channels of gpt-oss, also as a server leaves them when it drops special tokens.
Left out: switches of templates (chat.py); reasoning that nothing marks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PAIRS = {
    **{f"<{name}>": f"</{name}>" for name in ("think", "thinking", "thought", "reasoning", "reflection", "analysis")},
    **{f"<{name}:think>": f"</{name}:think>" for name in ("seed", "mm")},
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|channel>thought": "<channel|>",
    "◁think▷": "◁/think▷",
}
# Words that any answer may hold: reasoning only where the text begins with them.
PHRASES = ("Here is my thought process:", "Here is my response:")
_MARKER = re.compile("|".join(re.escape(marker) for pair in PAIRS.items() for marker in pair), re.IGNORECASE)
_OPENING = {opening.lower(): closing for opening, closing in PAIRS.items()}
CHANNEL, MESSAGE = "<|channel|>", "<|message|>"
CHANNEL_START = "<|start|>assistant"
_ENDS = re.compile(r"<\|(?:end|start|channel|return|call)\|>")
# gpt-oss without its special tokens: "analysisThe user asks ... assistantfinalI cannot share that."
_BARE = re.compile(r"\s*analysis(?=[A-Z])(?P<thought>.*?)(?:assistantfinal(?P<answer>.*))?$", re.DOTALL)


@dataclass(frozen=True)
class Divided:
    """A text as `reasoning` and `answer`; not `closed`, it ended within the reasoning, and there is no answer."""

    reasoning: str
    answer: str
    closed: bool = True


def divided(text: str, opened: bool = False) -> Divided | None:
    """A text divided by its markers; None where it has none. `opened`: the prompt already opened the reasoning.

    A closing marker without its opening ends reasoning that began with the text.
        >>> divided("<think>May I?</think>No.")
        Divided(reasoning='May I?', answer='No.', closed=True)
    """
    if CHANNEL in text:
        return _channels(text)
    if bare := _BARE.match(text):
        return Divided(bare["thought"].strip(), (bare["answer"] or "").strip(), bare["answer"] is not None)
    if text.lstrip().startswith(PHRASES[0]):
        before, closing, after = text.lstrip().removeprefix(PHRASES[0]).partition(PHRASES[1])
        return Divided(before.strip(), after.strip(), bool(closing))
    thought: list[str] = []
    said: list[str] = []
    inside, place = opened, 0
    for marker in _MARKER.finditer(text):
        piece = text[place : marker.start()]
        if marker[0].lower() in _OPENING:
            (thought if inside else said).append(piece)
            inside = True
        else:
            thought, said = ([*thought, piece], said) if inside else ([*thought, *said, piece], [])
            inside = False
        place = marker.end()
    if not place and not opened:
        return None
    if inside:
        return Divided("".join([*said, *thought, text[place:]]).strip(), "", closed=False)
    return Divided("".join(thought).strip(), "".join([*said, text[place:]]).strip())


def _channels(text: str) -> Divided:
    """`<|channel|>NAME<|message|>TEXT<|end|>` again and again: the final channel is the answer."""
    thought: list[str] = []
    final: list[str] = []
    for part in text.split(CHANNEL)[1:]:
        name, _, body = part.partition(MESSAGE)
        (final if name.strip().startswith("final") else thought).append(_ENDS.split(body)[0])
    return Divided("".join(thought).strip(), "".join(final).strip(), closed=bool(final))


def closing_of(prompt_end: str) -> str:
    """What closes the block of reasoning that the end of a prompt opens, empty; "" where it opens none."""
    end = prompt_end.rstrip()
    if end.endswith(CHANNEL_START):
        return f"{CHANNEL}final{MESSAGE}"
    found = [closing for opening, closing in _OPENING.items() if end.lower().endswith(opening)]
    return f"\n{found[0]}\n\n" if found else ""


def opens(prompt_end: str) -> bool:
    """Whether the answer begins within reasoning that the prompt opened."""
    return bool(closing_of(prompt_end)) and not prompt_end.rstrip().endswith(CHANNEL_START)
