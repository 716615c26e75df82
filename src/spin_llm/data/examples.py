"""Pairs as tokens, and what of pairs and questions does not fit, found before any work.

In: a tokenizer of transformers and pairs (columns.py). Out: Examples, whose last `response_tokens` tokens bear the
loss. Templates: `chat` = the chat template over one user message with the generation prompt, then the response as it
is, without special tokens; `raw` = the prompt with the tokenizer's own special tokens (less an appended EOS), then a
space and the left-stripped response without special tokens; `released` = what the paper's released code does
(docs/method.md): the raw prompt, and the response tokenised with special tokens and cut of its first
token, whatever that is. Where a chat prompt ends inside a block of reasoning, the block is closed, empty, before the
response, which is an answer. Too long examples lose tokens at the left of the prompt, counted in `truncated`. For
all responses and questions that do not fit there is one SpinError with each one's row and advice that can help. Left
out: what a chat template writes (chat.py); batching and padding; an end-of-turn token after the response; leaving what
is too long out of a run (pipeline/context.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spin_llm.data.chat import Message, Rendering, as_rendering, chat_text, holds, refuse_lost, resolve_template
from spin_llm.data.reasoning import closing_of
from spin_llm.data.sources import Pair, Question
from spin_llm.data.turns import Turn, plain
from spin_llm.errors import SpinError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOUNDLESS = 2**62
SHOWN = 3  # of what does not fit, in a message
TAIL = 24  # tokens at a prompt's end that show whether it opens a block of reasoning


@dataclass(frozen=True)
class Example:
    """One sequence; `truncated` counts the prompt tokens that were cut."""

    input_ids: tuple[int, ...]
    response_tokens: int
    truncated: int
    prompt: str


def encode_all(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[Pair], *, template: str | Rendering, max_length: int
) -> list[Example]:
    """`encode` for each pair, in order."""
    return [encode(tokenizer, pair, template=template, max_length=max_length) for pair in pairs]


def encode(tokenizer: PreTrainedTokenizerBase, pair: Pair, *, template: str | Rendering, max_length: int) -> Example:
    """Tokens of one pair, at most `max_length`: the prompt is cut at its left, the response never. Raises SpinError: a
    prompt or response without tokens, or a response longer than max_length - 1 tokens."""
    name = resolve_template(tokenizer, template)
    prompt = render_prompt(tokenizer, pair.asked, template)
    if closing := closing_of(_text(tokenizer, prompt[-TAIL:])) if name not in ("raw", "released") else "":
        prompt = prompt + _token_ids(tokenizer, closing, special=False)
    response = _render_response(tokenizer, pair.response, name)
    shown = f"the example with the prompt {_short(pair.prompt)}" + (f" ({pair.where})" if pair.where else "")
    if not prompt:
        raise SpinError(
            f"The prompt of {shown} gives no tokens.",
            cause="an empty prompt and a tokenizer without BOS: nothing would predict the response's first token.",
            change="remove the example, or give --template chat where the model has a chat template.",
        )
    if not response:
        raise SpinError(
            f"The response of {shown} gives no tokens with the template {name}: {_short(pair.response)}.",
            cause="a blank response, or one whose only token the template `released` drops.",
            change="remove the example, or give another --template.",
        )
    if len(response) > max_length - 1:
        raise SpinError(
            f"The response of {shown} has {len(response)} tokens; with --max-length {max_length} at most "
            f"{max(max_length - 1, 0)} fit beside one prompt token.",
            cause="a long response; responses are never cut, since they bear the loss.",
            change=f"give --max-length {len(response) + 1} or more, or remove the example.",
        )
    truncated = max(0, len(prompt) + len(response) - max_length)
    return Example(tuple(prompt[truncated:] + response), len(response), truncated, pair.prompt)


def check_options(tokenizer: PreTrainedTokenizerBase, template: Rendering) -> None:
    """SpinError for options that the chat template does not read, or where there is none."""
    if template.options:
        render_prompt(tokenizer, "Why?", template)


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Turn], template: str | Rendering
) -> list[int]:
    """Token ids of a prompt up to where the response starts; the same for scoring and for generation. The chat template
    gets all turns of a conversation; without one it is its plain text (turns.py), and the name of whose turn it is."""
    name = resolve_template(tokenizer, template)
    if name not in ("raw", "released"):
        return render_messages(tokenizer, as_messages(prompt), template)
    if as_rendering(template).options:
        raise SpinError(
            f"--template-option is for chat templates, and the template is {name}.",
            change="leave it out, or give --template chat.",
        )
    prompt = as_text(prompt)
    ids = _token_ids(tokenizer, prompt, special=True)
    if name == "released":
        return ids
    eos = tokenizer.eos_token_id  # which some tokenizers append: also to a text that cannot end with it itself
    if ids and eos is not None and _token_ids(tokenizer, "a", special=True)[-1:] == [eos]:
        ids = ids[:-1]
    return _one_bos(tokenizer, ids)


def as_messages(prompt: str | Sequence[Turn]) -> list[dict[str, str]]:
    """A prompt as chat messages: a text is one of the user."""
    turns = [Turn("user", prompt)] if isinstance(prompt, str) else prompt
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def as_text(prompt: str | Sequence[Turn]) -> str:
    """A prompt as text for a model without a chat template."""
    return prompt if isinstance(prompt, str) else f"{plain(prompt)}\n\nAssistant:"


def render_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str | Rendering = "chat"
) -> list[int]:
    """Token ids of chat messages ({"role", "content"}) with the generation prompt. Raises SpinError when the tokenizer
    has no chat template, it fails on these messages, or their text is not in what it makes, or not in the tokens."""
    ids = _token_ids(tokenizer, chat_text(tokenizer, messages, template), special=False)
    text = _text(tokenizer, ids)
    for message in messages:
        # a tokenizer that lower-cases, or has no token for a character, does so in the message alone too
        if not holds(text, message["content"]):
            alone = _text(tokenizer, _token_ids(tokenizer, message["content"], special=False))
            refuse_lost(text, [{**message, "content": alone}])
    return _one_bos(tokenizer, ids)


def _render_response(tokenizer: PreTrainedTokenizerBase, response: str, template: str) -> list[int]:
    if not response.strip():
        return []
    if template == "released":
        return _token_ids(tokenizer, response, special=True)[1:]
    text = response if template == "chat" else " " + response.lstrip()
    return _token_ids(tokenizer, text, special=False)


def _token_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    # verbose=False: no warning about the model's length, which truncation takes care of
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids))


def _one_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Drop a second BOS: the prompt's text, or the chat template, may write one of its own."""
    bos = tokenizer.bos_token_id
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


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
    """The pairs whose response, and the questions whose prompt, takes more than `room` tokens. Raises SpinError, which
    names the row, for what cannot be rendered."""
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
    if longs:
        needed, room = max(long.tokens for long in longs) + 1, min(max_length, context) - 1
        limit = f"the model's context of {context}" if context <= max_length else f"--max-length {max_length}"
        way = f"give --max-length {needed} or more" if needed <= context else ""
        fit = f"Within {limit}, {room} fit beside one token of the prompt."
        cause = "long responses, which are never cut, since they bear the loss."
        raise _too_long(longs, "response", fit, cause, [way, others, "shorten those rows"])


def refuse_long_questions(longs: Sequence[Long], *, new_tokens: int, context: int, others: str = "") -> None:
    """SpinError when there are any; `others` is a further way out."""
    if longs:
        left, room = context - max(long.tokens for long in longs), max(context - new_tokens, 0)
        way = f"give --new-tokens {left} or fewer" if left > 0 else ""
        fit = f"In the model's context of {context}, {room} fit beside {new_tokens} of an answer."
        raise _too_long(longs, "question", fit, "", [way, others, "shorten those questions"])


def _too_long(longs: Sequence[Long], kind: str, fit: str, cause: str, ways: list[str]) -> SpinError:
    shown = "; ".join(f"{long.where}: {long.tokens} tokens" for long in longs[:SHOWN])
    number = f"A {kind} is" if len(longs) == 1 else f"{len(longs)} {kind}s are"
    what = f"{number} too long ({shown}{'; ...' if len(longs) > SHOWN else ''}). {fit}"
    return SpinError(what, cause=cause, change=f"{', or '.join(filter(None, ways))} or take them out of the file.")
