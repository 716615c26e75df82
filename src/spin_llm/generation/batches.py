"""Greedy answers of a loaded model, in batches that are fixed before the first one runs.

In: a loaded model, questions (or prompts as token ids), how many new tokens. Out: one answer per question, handed over
batch by batch, less the reasoning before it; or why there is none. The batches depend on the questions alone, so a run
that was killed continues with the same batches and ends with the same answers. Left out: decoding one batch
(decoding.py); models behind a URL (server.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from spin_llm.data import Rendering, Turn, render_prompt
from spin_llm.data.examples import TAIL
from spin_llm.data.reasoning import CHANNEL, divided, opens
from spin_llm.errors import SpinError
from spin_llm.generation.decoding import Row, decode
from spin_llm.models import LoadedModel
from spin_llm.results.measured import Count

NEW_TOKENS = 64
BATCH_TOKENS = 12_288
BATCH_PROMPTS = 96
ANSWER_MARK = "Yz3"
UNCLOSED, EMPTY = "unclosed reasoning", "empty answer"  # why there is no answer


@dataclass(frozen=True)
class Answer:
    """`index` of the question, the decoded `answer`, its length in `tokens` (None where a server does not say), whether
    the model ended it itself (`finished`), the `reasoning` before it, and why there is no answer (`missing`); a row of
    an answers' progress file."""

    index: Count
    answer: str
    tokens: Count | None
    finished: bool
    reasoning: str | None = ""
    missing: str | None = None


@dataclass(frozen=True)
class Continuation:
    """`index` of the prompt, the new `tokens` without the one that ended them (`finished`: there was one), and the
    likeliest alternatives of the first, (token, log-probability in nats)."""

    index: int
    tokens: list[int]
    finished: bool
    first: list[tuple[int, float]]


def plan_batches(lengths: Sequence[int], new_tokens: int) -> list[list[int]]:
    """Indices of the prompts in batches of like length, at most BATCH_TOKENS tokens each with padding and answers."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        room = BATCH_TOKENS // (lengths[index] + new_tokens)
        if not batches or len(batches[-1]) + 1 > max(1, min(room, BATCH_PROMPTS)):
            batches.append([])
        batches[-1].append(index)
    return batches


def generate(
    loaded: LoadedModel,
    prompts: Sequence[str | Sequence[Turn]],
    *,
    template: str | Rendering,
    new_tokens: int = NEW_TOKENS,
    thinking_tokens: int = 0,
    skip: frozenset[int] = frozenset(),
) -> Iterator[list[Answer]]:
    """Greedy continuations of `prompts`, one list per batch: at most `thinking_tokens` of reasoning, and `new_tokens`
    of answer.

    Batches whose prompts are all in `skip` are not run.
    """
    if not prompts:
        raise SpinError("There is no question to answer.")
    encoded = [render_prompt(loaded.tokenizer, prompt, template) for prompt in prompts]
    for batch in continuations(loaded, encoded, new_tokens + thinking_tokens, skip=skip):
        yield [answer_of(loaded, encoded[made.index], made, new_tokens, thinking_tokens) for made in batch]


def answer_of(
    loaded: LoadedModel, prompt: Sequence[int], made: Continuation, new_tokens: int, thinking_tokens: int = 0
) -> Answer:
    """A continuation of `prompt` as an answer. Reasoning is looked for before special tokens are dropped; with
    `thinking_tokens`, more of it than these counts as unclosed, and the answer is cut to `new_tokens`."""
    decode = loaded.tokenizer.decode
    tokens, finished = made.tokens[:new_tokens], made.finished and len(made.tokens) <= new_tokens
    parts = divided(decode(made.tokens), opens(decode(prompt[-TAIL:])))
    if parts is None:
        text = decode(tokens, skip_special_tokens=True).strip()
        return Answer(made.index, text, len(tokens), finished, "", None if text else EMPTY)
    plain: list[int] = loaded.tokenizer(parts.answer, add_special_tokens=False, verbose=False)["input_ids"]
    if not parts.closed or (thinking_tokens and len(made.tokens) - len(plain) > thinking_tokens):
        return Answer(made.index, "", 0, False, parts.reasoning, UNCLOSED)
    text = decode(plain[:new_tokens], skip_special_tokens=True).strip()
    finished = made.finished and len(plain) <= new_tokens
    return Answer(made.index, text, len(plain[:new_tokens]), finished, parts.reasoning, None if text else EMPTY)


def continuations(
    loaded: LoadedModel,
    encoded: Sequence[list[int]],
    new_tokens: int,
    *,
    alternatives: int = 0,
    skip: frozenset[int] = frozenset(),
) -> Iterator[list[Continuation]]:
    """Greedy continuations of prompts as token ids, one list per batch; batches that are all in `skip` are not run.

    Raises SpinError when a prompt and its new tokens exceed the model's context.
    """
    longest = max(map(len, encoded), default=0)
    if longest + new_tokens > loaded.context:
        raise SpinError(
            f"A prompt of {longest} tokens and {new_tokens} new ones exceed the context of {loaded.context} tokens.",
            change="leave out long prompts, or lower --new-tokens or --thinking-tokens.",
        )
    ends = end_tokens(loaded)
    for batch in plan_batches([len(ids) for ids in encoded], new_tokens):
        if not skip.issuperset(batch):
            rows = decode(loaded, [encoded[index] for index in batch], new_tokens, ends, alternatives)
            yield [_continuation(index, row, ends) for index, row in zip(batch, rows, strict=True)]


def end_tokens(loaded: LoadedModel) -> list[int]:
    """The token ids that end an answer: those of the generation config, the config, the tokenizer, and the one that the
    chat template writes after an answer.

    Checkpoints often name one of them in one place only. Ids outside the vocabulary, which no answer can hold, are left
    out.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    configs = (getattr(model, "generation_config", None), model.config, model.config.get_text_config())
    named = [getattr(config, "eos_token_id", None) for config in configs]
    ends: list[int] = []
    for value in (*named, tokenizer.eos_token_id, ends_of_turn(tokenizer)):
        for end in value if isinstance(value, list | tuple | set) else [value]:
            if isinstance(end, int) and not isinstance(end, bool) and 0 <= end < vocabulary(loaded) and end not in ends:
                ends.append(end)
    return ends


def vocabulary(loaded: LoadedModel) -> int:
    """How many tokens the model can write: rows of its head, else of its embedding."""
    head = loaded.model.get_output_embeddings() or loaded.model.get_input_embeddings()
    return int(head.weight.shape[0])


def ends_of_turn(tokenizer: Any) -> list[int]:
    """The added token that each chat template writes right after an answer, whether content is a text or a list of
    parts; none without one, or where a template cannot render two turns."""
    from jinja2 import TemplateError

    found = getattr(tokenizer, "chat_template", None) or {}
    ends: list[int] = []
    for source in found.values() if isinstance(found, dict) else [found]:
        for as_parts in (False, True):
            said = [("user", "Xq7"), ("assistant", ANSWER_MARK)]
            turns = [{"role": r, "content": [{"type": "text", "text": c}] if as_parts else c} for r, c in said]
            try:
                text = str(tokenizer.apply_chat_template(turns, chat_template=source, tokenize=False))
            except (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError):
                continue  # a template that fails on the questions themselves is told of where they are rendered
            after = text.rpartition(ANSWER_MARK)[2].lstrip() if ANSWER_MARK in text else ""
            if CHANNEL in source and after.startswith("<|end|>"):
                continue  # it ends the channel of the reasoning too, and the answer is yet to come
            ids = list(tokenizer(after, add_special_tokens=False)["input_ids"])[:1]
            ends += [end for end in ids if end in tokenizer.added_tokens_decoder and end != tokenizer.bos_token_id]
    return ends


def _continuation(index: int, row: Row, ends: Sequence[int]) -> Continuation:
    finished = row.tokens[-1] in ends
    return Continuation(index, row.tokens[:-1] if finished else row.tokens, finished, row.first)
