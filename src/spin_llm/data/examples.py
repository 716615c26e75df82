"""Pairs as tokens.

In: a tokenizer of transformers and pairs (sources.py). Out: Examples, whose last `response_tokens` tokens bear the
loss. Templates: `chat` = the chat template over one user message with the generation prompt, then the response as it
is, without special tokens; `raw` = the prompt with the tokenizer's own special tokens (less an appended EOS), then a
space and the left-stripped response without special tokens; `released` = what the paper's released code does
(docs/method.md): the raw prompt, and the response tokenised with special tokens and cut of its first
token, whatever that is. Too long examples lose tokens at the left of the prompt, counted in `truncated`. Left out:
batching and padding; an end-of-turn token after the response.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spin_llm.data.sources import Pair
from spin_llm.data.turns import Turn, plain
from spin_llm.errors import SpinError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = ("auto", "chat", "raw", "released")


@dataclass(frozen=True)
class Example:
    """One sequence; `truncated` counts the prompt tokens that were cut."""

    input_ids: tuple[int, ...]
    response_tokens: int
    truncated: int
    prompt: str


def resolve_template(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """ "chat", "raw" or "released"; "auto" is chat where the tokenizer has a chat template, else raw."""
    if template not in TEMPLATES:
        raise SpinError(f"There is no template {template!r}.", change=f"give --template {'|'.join(TEMPLATES)}.")
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    if template == "chat" and not has_chat:
        raise SpinError(
            "--template chat was asked for, but the tokenizer has no chat template.",
            cause="a base model, or a model folder without its chat template.",
            change="give --template raw or auto.",
        )
    if template == "auto":
        return "chat" if has_chat else "raw"
    return template


def encode_all(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[Pair], *, template: str, max_length: int
) -> list[Example]:
    """`encode` for each pair, in order."""
    template = resolve_template(tokenizer, template)
    return [encode(tokenizer, pair, template=template, max_length=max_length) for pair in pairs]


def encode(tokenizer: PreTrainedTokenizerBase, pair: Pair, *, template: str, max_length: int) -> Example:
    """Tokens of one pair, at most `max_length`: the prompt is cut at its left, the response never.

    Raises SpinError: a prompt or response without tokens, or a response longer than max_length - 1 tokens.
    """
    template = resolve_template(tokenizer, template)
    prompt = render_prompt(tokenizer, pair.asked, template)
    response = _render_response(tokenizer, pair.response, template)
    shown = f"the example with the prompt {_short(pair.prompt)}" + (f" ({pair.where})" if pair.where else "")
    if not prompt:
        raise SpinError(
            f"The prompt of {shown} gives no tokens.",
            cause="an empty prompt and a tokenizer without BOS: nothing would predict the response's first token.",
            change="remove the example, or give --template chat where the model has a chat template.",
        )
    if not response:
        raise SpinError(
            f"The response of {shown} gives no tokens with the template {template}: {_short(pair.response)}.",
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


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Turn], template: str) -> list[int]:
    """Token ids of a prompt up to where the response starts; the same for scoring and for generation.

    The chat template gets all turns of a conversation; without one it is its plain text (turns.py), and the name of
    whose turn it is.
    """
    template = resolve_template(tokenizer, template)
    if template == "chat":
        return render_messages(tokenizer, as_messages(prompt))
    prompt = as_text(prompt)
    ids = _token_ids(tokenizer, prompt, special=True)
    if template == "released":
        return ids
    return _one_bos(tokenizer, ids[:-1] if ids and _appends_eos(tokenizer) else ids)


def as_messages(prompt: str | Sequence[Turn]) -> list[dict[str, str]]:
    """A prompt as chat messages: a text is one of the user."""
    turns = [Turn("user", prompt)] if isinstance(prompt, str) else prompt
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def as_text(prompt: str | Sequence[Turn]) -> str:
    """A prompt as text for a model without a chat template."""
    return prompt if isinstance(prompt, str) else f"{plain(prompt)}\n\nAssistant:"


def render_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of chat messages ({"role", "content"}) with the generation prompt.

    Raises SpinError when the tokenizer has no chat template, or it fails on these messages.
    """
    from jinja2 import TemplateError

    resolve_template(tokenizer, "chat")
    try:
        encoding: Any = tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, tokenize=True, return_dict=True
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise SpinError(
            f"The model's chat template fails on messages of these roles: {roles}: {error}",
            cause="a template that asks for other roles or extra values.",
            change="give --template raw.",
        ) from None
    return _one_bos(tokenizer, list(encoding["input_ids"]))


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


def _appends_eos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer ends a text with EOS of its own; asked of a text that cannot end with EOS itself."""
    eos = tokenizer.eos_token_id
    return eos is not None and _token_ids(tokenizer, "a", special=True)[-1:] == [eos]


def _one_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Drop a second BOS: the prompt's text, or the chat template, may write one of its own."""
    bos = tokenizer.bos_token_id
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
