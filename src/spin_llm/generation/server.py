"""A model behind an OpenAI-compatible URL (vLLM, llama.cpp, ...) that completes prompts and answers questions.

In: a URL, a model id, prompts. Out: greedy completions (temperature 0), several requests at a time, handed over as they
come. Chat messages go to /chat/completions, raw text to /completions. Left out: HTTP, retries, the key (endpoint.py);
streaming; starting a server; likelihoods of given texts, which these servers do not give.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any
from urllib.parse import urlsplit

from spin_llm.data import Turn, as_messages, as_text
from spin_llm.data.chat import Rendering, as_rendering, option_value
from spin_llm.data.reasoning import divided
from spin_llm.errors import SpinError
from spin_llm.files import decoded, sha256_json
from spin_llm.generation.batches import EMPTY, UNCLOSED, Answer
from spin_llm.generation.completion import Completion, Prompt, added_up
from spin_llm.generation.endpoint import RefusedError, Server, error_words, short
from spin_llm.progress import Advance, unseen

MOST_ALTERNATIVES = 20  # what OpenAI, vLLM and llama-cpp-python allow
# Some servers penalise repetition unless told otherwise: llama-cpp-python by its own default, vLLM by the checkpoint's.
DIALECTS = {"repeat_penalty": 1.0, "repetition_penalty": 1.0}
SWITCHES = ("enable_thinking", "thinking")  # variables of chat templates, which vLLM, SGLang and llama.cpp hand on
# What a request can do without when a server refuses it, and what it is called by another name then.
DISPENSABLE = {*DIALECTS, "temperature", "logprobs", "top_logprobs", "chat_template_kwargs", "add_special_tokens"}
ALSO_CALLED = {"max_tokens": "max_completion_tokens"}
UNKNOWN = re.compile(
    r"max_completion_tokens|un(?:supported|recogni[sz]ed|known|expected)|"
    r"not (?:supported|permitted|allowed|recogni[sz]ed)|\bextra\b|deprecated|does not support",
    re.IGNORECASE,
)
ENDED = ("stop", "eos", "eos_token", "stop_sequence", "end_turn")


def served(model: str) -> tuple[str, str] | None:
    """(model id, URL) of `MODEL@URL`; None for a model that is not behind a URL.

    SpinError when the URL holds a user, password or query: it would be written into the run's record.
    """
    before, at, rest = model.partition("@http")
    if not at:
        return None
    parts = urlsplit("http" + rest)
    if parts.username is not None or parts.query:
        raise SpinError(
            "The URL of a model holds a user, a password or a query.",
            cause="a key in the URL; it would be written into the run's record.",
            change="give the key in the environment variable OPENAI_API_KEY, and the bare URL.",
        )
    return before, parts.geturl()


def server_completer(
    url: str, model: str, *, concurrency: int = 8, timeout: float = 600.0, attempts: int = 6, pause: float = 0.5
) -> ServerCompleter:
    """A completer of the server's `model`. The server is asked for its models now.

    `url` ends where /chat/completions begins; /v1 is added to a URL without a path. A request may take `timeout`
    seconds and is tried `attempts` times; the first pause is of up to `pause` seconds and each further one doubles.
    Raises SpinError when the server cannot be reached or does not have the model.
    """
    base = url.rstrip("/") + ("" if urlsplit(url).path.strip("/") else "/v1")
    server = Server(base, timeout, attempts, pause)
    return ServerCompleter(server, model, server.card(model), concurrency)


def server_answers(
    completer: ServerCompleter,
    prompts: Sequence[str | Sequence[Turn]],
    *,
    template: str | Rendering,
    new_tokens: int,
    thinking_tokens: int = 0,
    skip: frozenset[int] = frozenset(),
) -> Iterator[list[Answer]]:
    """Answers as `generation.generate` gives them, one at a time, as they come; questions in `skip` are not asked.

    `template` chat: through the server's chat template; raw: the question alone, to which the server adds what its
    tokenizer adds. Reasoning and answer share the tokens of both: a server does not tell them apart while it writes.
    """
    if not prompts:
        raise SpinError("There is no question to answer.")
    rendering = as_rendering(template)
    asked: dict[int, Prompt] = {
        index: as_messages(prompt) if rendering.name == "chat" else as_text(prompt)
        for index, prompt in enumerate(prompts)
        if index not in skip
    }
    completer = replace(completer, rendering=rendering)
    for index, made in completer.as_they_come(asked, new_tokens=new_tokens + thinking_tokens, special_tokens=True):
        text = made.text.strip()
        missing = made.missing or (None if text else EMPTY)
        if (
            thinking_tokens and text and not (made.finished or made.reasoning)
        ):  # asked to reason, and no mark says it is done
            made, text, missing = replace(made, reasoning=text), "", UNCLOSED
        yield [Answer(index, text, made.tokens, made.finished, made.reasoning, missing)]


@dataclass(frozen=True)
class ServerCompleter:
    """A server's model as a completer; `about` is what the server says of it, `rendering` what its chat template is
    told, `refused` the words of a request that it turned out not to take."""

    server: Server
    model: str
    about: Mapping[str, object]
    concurrency: int
    rendering: Rendering = Rendering("chat")
    refused: set[str] = field(default_factory=set, compare=False)

    @property
    def name(self) -> str:
        return f"{self.model}@{self.server.url}"

    @property
    def fingerprint(self) -> str:
        """Of URL, id and what the server says of the model; its weights are out of sight."""
        return f"server {sha256_json([self.server.url, self.model, self.about])}"

    def record(self) -> dict[str, object]:
        """What run.json says of it."""
        return {"name": self.model, "url": self.server.url, "served": dict(self.about)}

    def __call__(
        self, prompts: Sequence[Prompt], *, new_tokens: int, alternatives: int = 0, progress: Advance = unseen
    ) -> list[Completion]:
        """As `completion.Completer`; at most 20 alternatives.

        Raises SpinError when the server refuses a request, or stays unreachable or busy.
        """
        asked, found = dict(enumerate(prompts)), dict[int, Completion]()
        for index, made in self.as_they_come(asked, new_tokens=new_tokens, alternatives=alternatives):
            found[index] = made
            progress(1)
        return [found[index] for index in range(len(prompts))]

    def as_they_come(
        self, prompts: Mapping[int, Prompt], *, new_tokens: int, alternatives: int = 0, special_tokens: bool = False
    ) -> Iterator[tuple[int, Completion]]:
        """(key, completion) of each prompt as soon as it is there; after a failure, those under way and then the
        error. `special_tokens`: to raw text the server adds its tokenizer's own."""
        leaving = Event()
        pool = ThreadPoolExecutor(self.concurrency)
        pending = {
            pool.submit(self.complete, prompt, new_tokens, alternatives, special_tokens, leaving): key
            for key, prompt in prompts.items()
        }
        failure: BaseException | None = None
        try:
            for future in as_completed(pending):
                if future.cancelled():
                    continue
                if error := future.exception():
                    failure = failure or error
                    _cancel(pending)
                else:
                    yield pending[future], future.result()
        finally:
            leaving.set()
            _cancel(pending)
            pool.shutdown(wait=False)
        if failure:
            raise failure

    def complete(
        self, prompt: Prompt, new_tokens: int, alternatives: int, special_tokens: bool, leaving: Event
    ) -> Completion:
        """One request; again without each word that the server refuses, which is left out from then on."""
        path = "/completions" if isinstance(prompt, str) else "/chat/completions"
        whole = self.request(prompt, new_tokens, alternatives, special_tokens)
        while True:
            body = {ALSO_CALLED[key] if key in self.refused and key in ALSO_CALLED else key: value
                    for key, value in whole.items() if key not in self.refused or key in ALSO_CALLED}  # fmt: skip
            try:
                return read_completion(self.server.ask(path, body, leaving), f"{self.server.url}{path}")
            except RefusedError as refusal:
                named = refused_words(refusal, body)
                if "chat_template_kwargs" in named and self.rendering.options:
                    raise SpinError(
                        f"{refusal.what}",
                        cause="a server that tells its chat template nothing: --template-option cannot reach it.",
                        change="leave --template-option out, or set it where the server is started.",
                    ) from None
                if not named:
                    raise
                self.refused.update(named)

    def request(self, prompt: Prompt, new_tokens: int, alternatives: int, special_tokens: bool) -> dict[str, object]:
        """The body of a request to a server that takes everything."""
        wanted = min(alternatives, MOST_ALTERNATIVES)
        body: dict[str, object] = {"model": self.model, "max_tokens": new_tokens, "temperature": 0, **DIALECTS}
        if isinstance(prompt, str):
            body |= {"prompt": prompt} | ({"logprobs": wanted} if wanted else {})
            return body | ({} if special_tokens else {"add_special_tokens": False})
        switches = dict.fromkeys(SWITCHES, self.rendering.thinking)
        options = {name: option_value(text) for name, text in self.rendering.options}
        body |= {"messages": [dict(message) for message in prompt], "chat_template_kwargs": {**switches, **options}}
        return body | ({"logprobs": True, "top_logprobs": wanted} if wanted else {})

    def remarks(self) -> list[str]:
        """What a reader should know of how the server was asked."""
        if "temperature" not in self.refused:
            return []
        return [f"{self.name} refuses temperature 0: it was left out, and the answers are drawn, not greedy"]


def refused_words(refusal: RefusedError, body: Mapping[str, object]) -> set[str]:
    """The words of the request that a refusal names and that can be left out, or called otherwise."""
    named = {key for key in body if re.search(rf"(?<![A-Za-z0-9_]){key}(?![A-Za-z0-9_])", refusal.said)}
    found = named & DISPENSABLE
    if found & {"logprobs", "top_logprobs"}:  # one is nothing without the other
        found |= {"logprobs", "top_logprobs"} & body.keys()
    if "max_tokens" in named and UNKNOWN.search(refusal.said):  # and not because it is too large
        found.add("max_tokens")
    return found


@dataclass(frozen=True)
class Part:
    """A part of a message's content."""

    text: str | None = None


Content = str | list[Part | str] | Part | None


@dataclass(frozen=True)
class Message:
    """What a chat server's model says; servers call reasoning by either name."""

    content: Content = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True)
class Choice:
    message: Message | None = None
    text: Content = None
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


@dataclass(frozen=True)
class ServerAnswer:
    """What comes back from either path, in as much of it as is read."""

    choices: list[Choice] | None = None
    usage: Any = None
    error: Any = None


def read_completion(data: bytes, where: str) -> Completion:
    """The completion in a server's answer, of either dialect. Raises SpinError when it is not there."""
    made = decoded(data, ServerAnswer, f"The answer of {where}", change="use a server that is OpenAI-compatible.")
    choice = made.choices[0] if made.choices else Choice()
    if choice.message is None and choice.text is None:
        said = f"an error: {error_words({'error': made.error})}" if made.error else "without a field that is needed"
        raise SpinError(
            f"{where} answered {said}: {short(data.decode('utf-8', 'replace'))}",
            cause="a failure of the server's." if made.error else "a server that is not OpenAI-compatible.",
        )
    message = choice.message or Message(choice.text)
    text, reasoning = content_text(message.content) or message.refusal or "", message.reasoning_content
    reasoning, missing = reasoning or message.reasoning or "", None
    if parts := divided(text):
        reasoning, text = f"{reasoning}\n{parts.reasoning}".strip(), parts.answer
        missing = None if parts.closed else UNCLOSED
    if choice.finish_reason == "content_filter":
        text, missing = "", "content filter"
    elif not text.strip() and not missing:
        missing = UNCLOSED if reasoning and choice.finish_reason == "length" else EMPTY
    try:
        first = first_alternatives(choice.logprobs)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise SpinError(
            f"{where} gave log-probabilities of another form ({type(error).__name__}: {error}): "
            f"{short(json.dumps(choice.logprobs))}",
            cause="a server that is not OpenAI-compatible.",
        ) from None
    finished = choice.finish_reason in ENDED and missing != UNCLOSED
    return Completion(text, token_count(made.usage, text, reasoning), finished, first, reasoning, missing)


def content_text(content: Content) -> str:
    """The text of a message's content, also where it comes in parts."""
    parts = content if isinstance(content, list) else [content]
    return "".join(part if isinstance(part, str) else part.text or "" for part in parts if part is not None)


def token_count(usage: Any, text: str, reasoning: str) -> int | None:
    """Tokens of the answer without its reasoning: told, or by their share of the text; None where none are counted."""
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if not isinstance(tokens, int) or tokens < 0:
        return None
    details = usage.get("completion_tokens_details")
    thought = details.get("reasoning_tokens") if isinstance(details, dict) else None
    if isinstance(thought, int) and 0 < thought <= tokens:
        return tokens - thought
    return round(tokens * len(text) / (len(text) + len(reasoning))) if reasoning else tokens


def first_alternatives(logprobs: Any) -> dict[str, float]:
    """The first token's alternatives; empty where the server gives none.

    Chat: {"content": [{"top_logprobs": [{"token", "logprob"}]}]}; raw text: {"top_logprobs": [{token: logprob}]}.
    """
    if not logprobs:
        return {}
    if content := logprobs.get("content"):
        return added_up((entry["token"], entry["logprob"]) for entry in content[0]["top_logprobs"])
    if top := logprobs.get("top_logprobs"):
        return dict(top[0] or {})
    return {}


def _cancel(futures: Mapping[Future[Completion], int]) -> None:
    for future in futures:
        future.cancel()
