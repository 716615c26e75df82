"""What a judge or a question is put to: prompts -> completions, by a model in this process or behind a URL.

In: prompts (chat messages, or raw text taken as it is). Out: greedy completions, with the alternatives of their first
token where they are asked for. Left out: sampling; the client of a server (server.py); batching and decoding
(batches.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from spin_llm.data import Rendering, render_messages
from spin_llm.errors import SpinError
from spin_llm.generation.batches import Continuation, answer_of, continuations
from spin_llm.models import LoadedModel, load
from spin_llm.progress import Advance, unseen

Message = Mapping[str, str]
Prompt = str | Sequence[Message]


@dataclass(frozen=True)
class Completion:
    """What the model wrote: `text` without special tokens and reasoning, its length in `tokens` (None where a server
    does not say), whether the model ended it itself (`finished`), its `reasoning`, and why there is no text
    (`missing`).

    `first`: the likeliest alternatives of the first new token, text -> log-probability in nats; empty when none were
    asked for or the server gives none. Alternatives of equal text are added up.
    """

    text: str
    tokens: int | None
    finished: bool
    first: Mapping[str, float] = field(default_factory=dict)
    reasoning: str = ""
    missing: str | None = None


class Completer(Protocol):
    """Anything that completes prompts greedily. `fingerprint` says which model, for caches of what it wrote."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def __call__(
        self, prompts: Sequence[Prompt], *, new_tokens: int, alternatives: int = 0, progress: Advance = ...
    ) -> list[Completion]:
        """One completion a prompt, in their order. Messages ({"role", "content"}) go through the model's chat template
        with the generation prompt; a text is taken as it is: special tokens in it are parsed, none is added."""
        ...


def local_completer(
    model: str, *, dtype: str = "auto", trust_remote_code: bool = False, date: str | None = None
) -> LocalCompleter:
    """A completer of `model` (as `spin_llm.models.load` takes it), loaded now. SpinError when it cannot be loaded."""
    return LocalCompleter(load(model, dtype=dtype, trust_remote_code=trust_remote_code), date)


@dataclass(frozen=True)
class LocalCompleter:
    """A loaded model as a completer; `date` is what its chat template prints."""

    loaded: LoadedModel
    date: str | None = None

    @property
    def name(self) -> str:
        return self.loaded.name

    @property
    def fingerprint(self) -> str:
        return f"{self.loaded.checkpoint.fingerprint} {str(self.loaded.dtype).removeprefix('torch.')}"

    def __call__(
        self, prompts: Sequence[Prompt], *, new_tokens: int, alternatives: int = 0, progress: Advance = unseen
    ) -> list[Completion]:
        """A prompt that does not fit the context beside others that do gets an empty completion, so that one long
        answer to judge does not end a run: it has no verdict. Raises SpinError when none fits, or one has no tokens."""
        encoded = [self.encode(prompt) for prompt in prompts]
        room = self.loaded.context - new_tokens
        places = [place for place, ids in enumerate(encoded) if len(ids) <= room] or list(range(len(encoded)))
        found: dict[int, Completion] = {}
        fitting = [encoded[place] for place in places]
        for batch in continuations(self.loaded, fitting, new_tokens, alternatives=alternatives):
            found.update((places[c.index], self._completion(fitting[c.index], c, new_tokens)) for c in batch)
            progress(len(batch))
        progress(len(encoded) - len(places))
        return [found.get(index, Completion("", 0, False)) for index in range(len(prompts))]

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of one prompt."""
        if not isinstance(prompt, str):
            return render_messages(self.loaded.tokenizer, prompt, Rendering("chat", date=self.date))
        ids: list[int] = self.loaded.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        if not ids:
            raise SpinError("A prompt is empty: nothing to complete.")
        return ids

    def _completion(self, prompt: list[int], made: Continuation, new_tokens: int) -> Completion:
        decode: Any = self.loaded.tokenizer.decode
        first = added_up((decode([token]), log_probability) for token, log_probability in made.first)
        answer = answer_of(self.loaded, prompt, made, new_tokens)
        if not answer.reasoning and answer.missing is None:  # with the white space around it
            return Completion(decode(made.tokens, skip_special_tokens=True), len(made.tokens), made.finished, first)
        return Completion(answer.answer, answer.tokens, answer.finished, first, answer.reasoning or "", answer.missing)


def added_up(alternatives: Iterable[tuple[str, float]]) -> dict[str, float]:
    """(text, log-probability) pairs as a mapping; the probabilities of equal texts are added up."""
    texts: dict[str, float] = {}
    for text, value in alternatives:
        if text in texts:  # log(exp(a) + exp(b)) = max + log(1 + exp(min - max))
            value = max(value, texts[text]) + math.log1p(math.exp(-abs(value - texts[text])))
        texts[text] = value
    return texts
