"""A model behind an OpenAI-compatible URL (vLLM, llama.cpp, ...) that completes prompts and answers questions.

In: a URL, a model id, prompts. Out: greedy completions (temperature 0), several requests at a time, handed over as they
come. Chat messages go to /chat/completions, raw text to /completions. Left out: HTTP, retries, the key (endpoint.py);
streaming; starting a server; likelihoods of given texts, which these servers do not give.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Event
from typing import Any
from urllib.parse import urlsplit

from spin_llm.data import Turn, as_messages, as_text
from spin_llm.errors import SpinError
from spin_llm.evaluate.completion import Completion, Prompt, added_up
from spin_llm.evaluate.endpoint import Server, short
from spin_llm.evaluate.generation import Answer
from spin_llm.files import sha256_json
from spin_llm.progress import Advance

MOST_ALTERNATIVES = 20  # what OpenAI, vLLM and llama-cpp-python allow
# Some servers penalise repetition unless told otherwise: llama-cpp-python by its own default, vLLM by the checkpoint's.
DIALECTS = {"repeat_penalty": 1.0, "repetition_penalty": 1.0}


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
    template: str,
    new_tokens: int,
    skip: frozenset[int] = frozenset(),
) -> Iterator[list[Answer]]:
    """Answers as `generation.generate` gives them, one at a time, as they come; questions in `skip` are not asked.

    `template` chat: through the server's chat template; raw: the question alone, to which the server adds what its
    tokenizer adds.
    """
    if not prompts:
        raise SpinError("There is no question to answer.")
    asked: dict[int, Prompt] = {
        index: as_messages(prompt) if template == "chat" else as_text(prompt)
        for index, prompt in enumerate(prompts)
        if index not in skip
    }
    for index, made in completer.as_they_come(asked, new_tokens=new_tokens, special_tokens=True):
        yield [Answer(index, made.text.strip(), made.tokens, made.finished)]


@dataclass(frozen=True)
class ServerCompleter:
    """A server's model as a completer; `about` is what the server says of it."""

    server: Server
    model: str
    about: Mapping[str, Any]
    concurrency: int

    @property
    def name(self) -> str:
        return f"{self.model}@{self.server.url}"

    @property
    def fingerprint(self) -> str:
        """Of URL, id and what the server says of the model; its weights are out of sight."""
        return f"server {sha256_json([self.server.url, self.model, self.about])}"

    def record(self) -> dict[str, Any]:
        """What run.json says of it."""
        return {"name": self.model, "url": self.server.url, "served": dict(self.about)}

    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        new_tokens: int,
        alternatives: int = 0,
        progress: Advance = lambda done: None,
    ) -> list[Completion]:
        """As `completion.Completer`; at most 20 alternatives.

        Raises SpinError when the server refuses a request, or stays unreachable or busy.
        """
        found: dict[int, Completion] = {}
        for index, made in self.as_they_come(
            dict(enumerate(prompts)), new_tokens=new_tokens, alternatives=alternatives
        ):
            found[index] = made
            progress(1)
        return [found[index] for index in range(len(prompts))]

    def as_they_come(
        self,
        prompts: Mapping[int, Prompt],
        *,
        new_tokens: int,
        alternatives: int = 0,
        special_tokens: bool = False,
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
        """One request; another where the server refuses the words that OpenAI's own dialect lacks."""
        wanted = min(alternatives, MOST_ALTERNATIVES)
        body: dict[str, Any] = {"model": self.model, "max_tokens": new_tokens, "temperature": 0}
        if isinstance(prompt, str):
            body |= {"prompt": prompt} | ({"logprobs": wanted} if wanted else {})
            dialects = {**DIALECTS, **({} if special_tokens else {"add_special_tokens": False})}
            path = "/completions"
        else:
            body |= {"messages": [dict(message) for message in prompt]}
            body |= {"logprobs": True, "top_logprobs": wanted} if wanted else {}
            dialects, path = {**DIALECTS}, "/chat/completions"
        try:
            answer = self.server.ask(path, body | dialects, leaving)
        except SpinError as refusal:
            if not any(name in refusal.what for name in dialects):
                raise
            answer = self.server.ask(path, body, leaving)
        try:
            return read_completion(answer)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise SpinError(
                f"{self.server.url}{path} answered without a field that is needed ({type(error).__name__}: {error}): "
                f"{short(json.dumps(answer, ensure_ascii=False))}",
                cause="a server that is not OpenAI-compatible.",
            ) from None


def read_completion(answer: Any) -> Completion:
    """The completion in a server's answer, of either dialect; KeyError, IndexError, TypeError or AttributeError when it
    is not there."""
    choice = answer["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    tokens, reason = answer["usage"]["completion_tokens"], choice["finish_reason"]
    if not isinstance(text, str | None) or not isinstance(tokens, int):
        raise TypeError("text or token count of another type")
    return Completion(text or "", tokens, reason == "stop", first_alternatives(choice.get("logprobs")))


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
