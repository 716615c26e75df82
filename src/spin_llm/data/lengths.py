"""Pairs and questions that do not fit, found before any work.

In: a tokenizer, pairs or questions, the room there is. Out: those that do not fit, with what they take; for all of them
one SpinError with each one's row and advice that can help. Every prompt and response is rendered as scoring and
answering will, so that any other error of theirs comes now too, with its row. Left out: leaving them out of a run
(pipeline/context.py); long prompts of pairs, which are cut at their left (examples.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spin_llm.data.chat import Rendering
from spin_llm.data.examples import encode, render_prompt
from spin_llm.data.sources import Pair, Question
from spin_llm.errors import SpinError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOUNDLESS = 2**62
SHOWN = 3


@dataclass(frozen=True)
class Long:
    """A pair or question whose response or prompt takes `tokens`."""

    item: Pair | Question
    tokens: int

    @property
    def where(self) -> str:
        return self.item.where or repr(self.item.prompt[:60])


def too_long(
    tokenizer: PreTrainedTokenizerBase, items: Iterable[Pair | Question], *, template: str | Rendering, room: int
) -> list[Long]:
    """The pairs whose response, and the questions whose prompt, takes more than `room` tokens.

    Raises SpinError, which names the row, for what cannot be rendered.
    """
    longs = []
    for item in items:
        try:
            if isinstance(item, Pair):
                tokens = encode(tokenizer, item, template=template, max_length=BOUNDLESS).response_tokens
            else:
                tokens = len(render_prompt(tokenizer, item.asked, template))
        except SpinError as error:
            if not item.where or item.where in error.what:
                raise
            raise SpinError(f"{item.where}: {error.what}", cause=error.cause, change=error.change) from None
        if tokens > room:
            longs.append(Long(item, tokens))
    return longs


def refuse_long_pairs(longs: Sequence[Long], *, max_length: int, context: int, others: str = "") -> None:
    """SpinError when there are any; `others` is a further way out."""
    if not longs:
        return
    needed = max(long.tokens for long in longs) + 1
    limit = min(max_length, context)
    ways = [f"give --max-length {needed} or more"] if needed <= context else []
    ways += [*filter(None, [others]), "shorten those rows or take them out of the file"]
    limit_of = f"the model's context of {context}" if context <= max_length else f"--max-length {max_length}"
    raise SpinError(
        f"{_listed(longs, 'response')}. Within {limit_of}, {limit - 1} fit beside one token of the prompt.",
        cause="long responses, which are never cut, since they bear the loss.",
        change=", or ".join(ways) + ".",
    )


def refuse_long_questions(longs: Sequence[Long], *, new_tokens: int, context: int, others: str = "") -> None:
    """SpinError when there are any; `others` is a further way out."""
    if not longs:
        return
    left = context - max(long.tokens for long in longs)
    ways = [f"give --new-tokens {left} or fewer"] if left > 0 else []
    ways += [*filter(None, [others]), "shorten those questions or take them out of the file"]
    raise SpinError(
        f"{_listed(longs, 'question')}. In the model's context of {context}, {max(context - new_tokens, 0)} fit beside "
        f"{new_tokens} of an answer.",
        change=", or ".join(ways) + ".",
    )


def _listed(longs: Sequence[Long], kind: str) -> str:
    shown = "; ".join(f"{long.where}: {long.tokens} tokens" for long in longs[:SHOWN])
    number = f"A {kind} is" if len(longs) == 1 else f"{len(longs)} {kind}s are"
    return f"{number} too long ({shown}{'; ...' if len(longs) > SHOWN else ''})"
