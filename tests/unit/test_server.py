"""The client of an OpenAI-compatible server, against servers that misbehave: no answer is lost."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spin_llm.data import Question
from spin_llm.errors import SpinError
from spin_llm.evaluate.answers import Evaluation, answers
from spin_llm.generation.batches import Answer
from spin_llm.generation.completion import Completion
from spin_llm.generation.endpoint import Server, _PassingError, retry_after
from spin_llm.generation.server import (
    ServerCompleter,
    first_alternatives,
    read_completion,
    served,
    server_answers,
    server_completer,
)

MODELS = {"data": [{"id": "tiny", "object": "model", "created": 1, "owned_by": "me", "permission": [{"id": "x"}]}]}


def reply(body: dict[str, Any]) -> dict[str, Any]:
    """What a good server says: the last words of the prompt in capitals, the dialect of the path."""
    usage = {"prompt_tokens": 3, "completion_tokens": body["max_tokens"] - 1}
    if "messages" in body:
        text = body["messages"][-1]["content"].upper()
        top = [{"token": "Yes", "logprob": -0.1}, {"token": "No", "logprob": -2.5}][: body.get("top_logprobs", 0)]
        logprobs = {"content": [{"token": "Yes", "logprob": -0.1, "top_logprobs": top}]} if top else None
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": logprobs}
    else:
        top = dict([("safe", -0.2), ("unsafe", -1.7)][: body.get("logprobs") or 0])
        choice = {"text": body["prompt"].upper(), "finish_reason": "length"}
        choice["logprobs"] = {"tokens": ["safe"], "top_logprobs": [top]} if top else None
    return {"choices": [choice], "usage": usage}


@dataclass
class FakeServer:
    """`trouble(number of the request from 0, its body)` gives (status, headers, body as bytes) or None for a good
    answer; `asked` has the path, headers and body of every POST."""

    url: str = ""
    trouble: Callable[[int, dict[str, Any]], tuple[int, dict[str, str], bytes] | None] = lambda number, body: None
    models: tuple[int, Any] = (200, MODELS)
    seconds: float = 0.0
    asked: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    together: int = 0
    most_together: int = 0


@contextmanager
def serving(**options: Any) -> Iterator[FakeServer]:
    fake, lock = FakeServer(**options), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None: ...

        def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            status, body = fake.models
            self.send(status, {}, json.dumps(body).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(fake.asked)
                fake.asked.append((self.path, dict(self.headers), body))
                fake.together += 1
                fake.most_together = max(fake.most_together, fake.together)
            time.sleep(fake.seconds)
            trouble = fake.trouble(number, body)
            with lock:
                fake.together -= 1
            if trouble and trouble[0] == 0:  # hang up
                self.close_connection = True
                self.connection.close()
                return
            self.send(*(trouble or (200, {}, json.dumps(reply(body)).encode())))

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.handle_error = lambda *arguments: None  # type: ignore[method-assign]
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{httpd.server_port}"
    try:
        yield fake
    finally:
        httpd.shutdown()
        httpd.server_close()


def completer(fake: FakeServer, **options: Any) -> ServerCompleter:
    return server_completer(fake.url, "tiny", **{"pause": 0.001, **options})


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_messages_and_raw_text_go_to_their_own_places():
    with serving() as fake:
        made = completer(fake)([chat("hello"), "[INST] x"], new_tokens=5, alternatives=2)
    assert made == [
        Completion("HELLO", 4, True, {"Yes": -0.1, "No": -2.5}),
        Completion("[INST] X", 4, False, {"safe": -0.2, "unsafe": -1.7}),
    ]
    by_path = {path: body for path, _, body in fake.asked}
    common = {"model": "tiny", "max_tokens": 5, "temperature": 0, "repeat_penalty": 1, "repetition_penalty": 1}
    chat_body = {"messages": chat("hello"), "logprobs": True, "top_logprobs": 2}
    chat_body |= {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}
    assert by_path["/v1/chat/completions"] == {**common, **chat_body}
    assert by_path["/v1/completions"] == {**common, "prompt": "[INST] x", "logprobs": 2, "add_special_tokens": False}


def test_without_alternatives_none_are_asked_for():
    with serving() as fake:
        assert [made.first for made in completer(fake)([chat("a"), "b"], new_tokens=2)] == [{}, {}]
    assert not any("logprobs" in body or "top_logprobs" in body for _, _, body in fake.asked)


def test_no_more_alternatives_are_asked_for_than_servers_allow():
    with serving() as fake:
        completer(fake)([chat("a")], new_tokens=1, alternatives=100)
    assert fake.asked[0][2]["top_logprobs"] == 20


def test_results_are_in_the_order_asked_and_requests_run_together():
    texts = [f"prompt {number}" for number in range(24)]
    seen: list[int] = []
    with serving(seconds=0.02) as fake:
        made = completer(fake, concurrency=4)([chat(text) for text in texts], new_tokens=2, progress=seen.append)
    assert [one.text for one in made] == [text.upper() for text in texts]
    assert 2 <= fake.most_together <= 4
    assert sum(seen) == 24


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_or_failing_server_is_asked_again(status: int):
    def trouble(number: int, body: dict[str, Any]) -> Any:
        return (status, {}, b'{"error": {"message": "wait"}}') if number < 3 else None

    with serving(trouble=trouble) as fake:
        made = completer(fake, concurrency=1)([chat("a"), chat("b")], new_tokens=2)
    assert [one.text for one in made] == ["A", "B"]
    assert len(fake.asked) == 5


def test_the_pauses_grow_are_jittered_and_obey_the_server(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    leaving: Any = SimpleNamespace(wait=pauses.append)

    def once(self: Server, path: str, body: Any) -> Any:
        raise _PassingError("answered 429: wait", {2: 7.0, 3: 1e9}.get(len(pauses)), True)

    monkeypatch.setattr(Server, "_once", once)
    with pytest.raises(SpinError, match="5 times"):
        Server("http://nowhere", timeout=1, attempts=5, pause=1).ask("/completions", {}, leaving)
    assert 0.5 <= pauses[0] <= 1 <= pauses[1] <= 2
    assert pauses[2:] == [7.0, 600.0]


def test_retry_after():
    assert retry_after("3") == 3
    assert retry_after("-3") == 0
    assert retry_after(None) is None
    assert retry_after("soon") is None
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Wed, 21 Oct 2115 07:28:00 GMT") > 1e9


def test_a_server_that_fails_for_ever_is_an_error_with_its_words():
    with (
        serving(trouble=lambda number, body: (500, {}, b'{"detail": "out of\\nmemory"}')) as fake,
        pytest.raises(SpinError, match="answered 500: out of memory, 3 times") as caught,
    ):
        completer(fake, attempts=3, concurrency=1)([chat("a")], new_tokens=2)
    assert len(fake.asked) == 3
    assert "overloaded" in caught.value.cause


def test_a_refusal_is_not_tried_again_and_keeps_the_server_s_words():
    words = b'{"error": {"message": "max_tokens is too large: 99999"}}'
    with (
        serving(trouble=lambda number, body: (400, {}, words)) as fake,
        pytest.raises(SpinError, match="refused with 400: max_tokens is too large: 99999"),
    ):
        completer(fake, concurrency=1)([chat("a")], new_tokens=2)
    assert len(fake.asked) == 1


def test_a_server_that_knows_openai_s_own_words_alone():
    def trouble(number: int, body: dict[str, Any]) -> Any:
        words = b'{"error": {"message": "Unrecognized request argument supplied: repeat_penalty"}}'
        return (400, {}, words) if "repeat_penalty" in body else None

    with serving(trouble=trouble) as fake:
        assert [made.text for made in completer(fake)([chat("a"), "b"], new_tokens=2)] == ["A", "B"]
    assert len(fake.asked) <= 4


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    words = b'{"error": {"message": "Incorrect key sk-secret"}}'
    with serving(trouble=lambda number, body: (401, {}, words)) as fake:
        made = completer(fake)
        with pytest.raises(SpinError, match="set OPENAI_API_KEY") as caught:
            made([chat("a")], new_tokens=2)
    assert fake.asked[0][1]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in f"{caught.value}{made!r}{made.fingerprint}{made.record()}"


def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as fake:
        completer(fake)([chat("a")], new_tokens=2)
    assert "Authorization" not in fake.asked[0][1]


def test_a_redirect_is_not_followed_with_the_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving() as other, serving() as fake:
        elsewhere = {"Location": f"{other.url}/v1/chat/completions"}
        fake.trouble = lambda number, body: (302, elsewhere, b"moved")
        with pytest.raises(SpinError, match="refused with 302"):
            completer(fake)([chat("a")], new_tokens=2)
    assert not other.asked


def test_what_is_not_json():
    with (
        serving(trouble=lambda number, body: (200, {}, b"<html>Welcome</html>")) as fake,
        pytest.raises(SpinError, match="did not answer with JSON: <html>Welcome</html>"),
    ):
        completer(fake)([chat("a")], new_tokens=2)


def test_a_connection_that_is_closed_is_opened_again():
    with serving(trouble=lambda number, body: (0, {}, b"") if number < 2 else None) as fake:
        assert completer(fake, concurrency=1)([chat("a")], new_tokens=2)[0].text == "A"
    assert len(fake.asked) == 3


def test_a_connection_that_is_always_closed():
    with (
        serving(trouble=lambda number, body: (0, {}, b"")) as fake,
        pytest.raises(SpinError, match=r"could not be reached .*, 2 times") as caught,
    ):
        completer(fake, attempts=2, concurrency=1)([chat("a")], new_tokens=2)
    assert "stopped" in caught.value.cause


def test_a_slow_server_is_given_up_after_the_timeout():
    with serving(seconds=0.3) as fake, pytest.raises(SpinError, match=r"could not be reached .*timed out"):
        completer(fake, timeout=0.05, attempts=1)([chat("a")], new_tokens=2)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": []},
        {"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": 1}},
        {"choices": [{"text": 3, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}},
        [],
        None,
        {"choices": [{"text": "a", "finish_reason": "stop", "logprobs": [1]}], "usage": {"completion_tokens": 1}},
    ],
)
def test_an_answer_without_what_was_asked_for(answer: Any):
    with (
        serving(trouble=lambda number, body: (200, {}, json.dumps(answer).encode())) as fake,
        pytest.raises(SpinError, match=r"without a field that is needed|cannot be read") as caught,
    ):
        completer(fake)(["a"], new_tokens=2)
    assert "/v1/completions" in caught.value.what


def read(message: Any, finish: str | None = "stop", usage: Any = None) -> Completion:
    choice = {"message": {"role": "assistant", **message}, "finish_reason": finish}
    return read_completion(json.dumps({"choices": [choice], "usage": usage}).encode(), "the server")


def test_an_answer_cut_within_its_thinking_is_none():
    for message in ({"content": None, "reasoning_content": "Hm"}, {"content": "", "reasoning": "Hm"}):
        made = read(message, "length", {"completion_tokens": 8})
        assert made == Completion("", 0, False, {}, "Hm", "unclosed reasoning")
    made = read({"content": "<think>Hm"}, "length")
    assert (made.text, made.reasoning, made.missing) == ("", "Hm", "unclosed reasoning")


def test_reasoning_is_not_the_answer():
    for message in (
        {"content": "<think>\nHm\n</think>\n\nNo."},
        {"content": "Hm</think>No."},  # the template opened it
        {"content": "\nNo.", "reasoning_content": "Hm"},
        {"content": "No.", "reasoning": "Hm"},
        {"content": "analysisHmassistantfinalNo."},  # gpt-oss, without its special tokens
    ):
        made = read(message, "stop", {"completion_tokens": 10})
        assert (made.text.strip(), made.reasoning, made.missing, made.finished) == ("No.", "Hm", None, True)
        assert made.tokens is not None
        assert 0 < made.tokens < 10
    details = {"completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 7}}
    assert read({"content": "No.", "reasoning": "Hm"}, "stop", details).tokens == 3


@pytest.mark.parametrize(("finish", "missing"), [("length", "unclosed reasoning"), ("stop", None)])
def test_a_cut_answer_of_a_model_asked_to_reason_is_none_without_a_mark(finish: str, missing: str | None):
    """The server's template opened the reasoning, and its end never came."""

    def trouble(number: int, body: dict[str, Any]) -> Any:
        choice = {"message": {"content": "Okay, they ask"}, "finish_reason": finish}
        return 200, {}, json.dumps({"choices": [choice]}).encode()

    with serving(trouble=trouble) as fake:
        options: dict[str, Any] = {"template": "chat", "new_tokens": 3}
        (asked,) = (
            one for batch in server_answers(completer(fake), ["a"], thinking_tokens=9, **options) for one in batch
        )
        (plain,) = (one for batch in server_answers(completer(fake), ["a"], **options) for one in batch)
    assert (asked.missing, plain.missing, plain.answer) == (missing, None, "Okay, they ask")
    assert asked.answer + asked.reasoning == "Okay, they ask"


def test_content_in_parts_refusals_and_filters():
    for content in ([{"type": "text", "text": "N"}, "o."], {"type": "text", "text": "No."}, "No."):
        assert read({"content": content}).text == "No."
    assert read({"content": None, "refusal": "I cannot."}).text == "I cannot."
    assert read({"content": "Half of", "refusal": None}, "content_filter").missing == "content filter"
    assert read({"content": None}).missing == read({"content": []}).missing == "empty answer"


@pytest.mark.parametrize("usage", [None, {}, {"completion_tokens": None}, {"completion_tokens": -1}, [], "8"])
def test_a_server_that_does_not_count(usage: Any):
    assert read({"content": "No."}, "stop", usage) == Completion("No.", None, True)


def refusing(*keys: str, status: int = 400, form: Any = None) -> Any:
    def trouble(number: int, body: dict[str, Any]) -> Any:
        for key in keys:
            if key in body:
                made = form(key) if form else {"error": {"message": f"Unsupported parameter: '{key}'.", "param": key}}
                return status, {}, json.dumps(made).encode()
        body.setdefault("max_tokens", body.get("max_completion_tokens"))
        return None

    return trouble


def test_refused_words_are_left_out_once_and_for_all():
    with serving(trouble=refusing("temperature", "max_tokens", "repeat_penalty", "chat_template_kwargs")) as fake:
        made = completer(fake, concurrency=1)
        assert [one.text for one in made([chat("a"), chat("b"), chat("c")], new_tokens=3)] == ["A", "B", "C"]
    assert len(fake.asked) == 4 + 3
    last = fake.asked[-1][2]
    assert last["max_completion_tokens"] == 3
    assert not {"temperature", "repeat_penalty", "chat_template_kwargs"} & last.keys()
    assert "not greedy" in made.remarks()[0]


@pytest.mark.parametrize(
    "form",
    [
        lambda key: {"detail": [{"type": "extra_forbidden", "loc": ["body", key], "msg": "Extra inputs"}]},
        lambda key: {"error": f"unknown field `{key}`"},
        lambda key: [{"message": f"{key} is unexpected"}],
        lambda key: {"error": {"message": "not supported with this model", "param": key, "code": None}},
        lambda key: f"Unrecognized request argument supplied: {key}",
    ],
)
def test_a_refusal_names_its_word_in_any_form(form: Any):
    with serving(trouble=refusing("logprobs", "max_tokens", status=422, form=form)) as fake:
        assert completer(fake)([chat("a")], new_tokens=2, alternatives=2)[0].text == "A"
    assert not {"logprobs", "top_logprobs"} & fake.asked[-1][2].keys()


def test_template_options_that_a_server_does_not_take_are_an_error():
    from spin_llm.data import Rendering

    asked = Rendering("chat", (("date_string", "1 May"), ("size", "3")), thinking=True)
    with serving() as fake:
        assert len(list(server_answers(completer(fake), ["a"], template=asked, new_tokens=3))) == 1
        told = {"enable_thinking": True, "thinking": True, "date_string": "1 May", "size": 3}
        assert fake.asked[0][2]["chat_template_kwargs"] == told
        fake.trouble = refusing("chat_template_kwargs")
        with pytest.raises(SpinError, match=r"chat_template_kwargs(.|\n)*--template-option"):
            list(server_answers(completer(fake), ["a"], template=asked, new_tokens=3))


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b'{"error": {"message": "no key"}}', "no key(.|\n)*OPENAI_API_KEY"),
        (403, b"<html><title>Forbidden</title><body><h1>Forbidden</h1></body></html>", r"403: Forbidden(.|\n)*may not"),
        (404, b'{"error": null}', "404(.|\n)*not served"),
        (429, b'{"error": {"message": {"deep": [1]}}}', "429(.|\n)*limit"),
        (500, b"", "500: nothing(.|\n)*failing"),
        (400, b"[" * 5000, "400"),
        (200, b'{"error": {"message": "overloaded"}}', "an error: overloaded"),
    ],
)
def test_what_is_wrong_is_named(status: int, body: bytes, words: str):
    with (
        serving(trouble=lambda number, asked: (status, {}, body)) as fake,
        pytest.raises(SpinError, match=words) as caught,
    ):
        completer(fake, attempts=1)([chat("a")], new_tokens=2)
    assert "<" not in str(caught.value)


def test_no_proxy_stands_before_this_machine(monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://me:sk-secret@127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "intranet.example")
    with serving() as fake:
        assert completer(fake)([chat("a")], new_tokens=2)[0].text == "A"
    for host in ("127.9.9.9", "localhost", "[::1]", "0.0.0.0", "a.localhost", "intranet.example"):
        assert Server(f"http://{host}:8000/v1", 1, 1, 0.001).proxy is None
    with pytest.raises(SpinError, match=r"could not be reached(.|\n)*proxy 127.0.0.1:9 \(http_proxy\)") as caught:
        server_completer("http://models.invalid/v1", "tiny")
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "logprobs", [None, {}, {"content": None}, {"content": []}, {"top_logprobs": None}, {"top_logprobs": [None]}]
)
def test_a_server_without_alternatives(logprobs: Any):
    assert first_alternatives(logprobs) == {}


def test_alternatives_of_equal_text_are_added_up():
    half = {"token": "�", "logprob": math.log(0.25)}
    found = first_alternatives({"content": [{"top_logprobs": [half, half, {"token": "a", "logprob": -3.0}]}]})
    assert found == pytest.approx({"�": math.log(0.5), "a": -3.0})


def test_nobody_at_the_url():
    with serving() as fake:
        pass
    start = time.monotonic()
    with pytest.raises(SpinError, match="could not be reached") as caught:
        server_completer(fake.url, "tiny", pause=60)
    assert time.monotonic() - start < 30, "the first contact is not tried again"
    assert "http://localhost:8000/v1" in caught.value.change


def test_a_model_that_the_server_does_not_have():
    with serving() as fake, pytest.raises(SpinError, match=r"has no model 'large'; it has 'tiny'"):
        server_completer(fake.url, "large")


def test_a_server_that_lists_no_models_is_taken_at_its_word():
    with serving(models=(404, {"detail": "Not Found"})) as fake:
        made = completer(fake)
        assert made.about == {}
        assert made([chat("a")], new_tokens=2)[0].text == "A"


def test_name_fingerprint_and_record():
    with serving() as fake:
        one = completer(fake)
        fake.models = (200, {"data": [{**MODELS["data"][0], "created": 2, "permission": []}]})
        again = completer(fake)
        fake.models = (200, {"data": [{**MODELS["data"][0], "root": "another"}]})
        other = completer(fake)
    assert one.name == f"tiny@{fake.url}/v1"
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert one.record() == {
        "name": "tiny",
        "url": f"{fake.url}/v1",
        "served": {"id": "tiny", "object": "model", "owned_by": "me"},
    }


def test_the_url_may_end_anywhere_before_the_endpoint():
    with serving() as fake:
        assert server_completer(f"{fake.url}/v1/", "tiny").server.url == f"{fake.url}/v1"
        assert server_completer(f"{fake.url}/", "tiny").server.url == f"{fake.url}/v1"


def test_model_at_url():
    assert served("a/b@http://host:8000/v1") == ("a/b", "http://host:8000/v1")
    assert served("a/b@https://host") == ("a/b", "https://host")
    assert served("a/b") is None
    assert served("me@home/model") is None
    for url in ("https://me:sk-secret@host/v1", "https://host/v1?key=sk-secret"):
        with pytest.raises(SpinError, match="holds a user") as caught:
            served(f"a@{url}")
        assert "sk-secret" not in str(caught.value)


def test_answers_in_chat_and_raw():
    with serving() as fake:
        made = completer(fake)
        for template, path in (("chat", "/v1/chat/completions"), ("raw", "/v1/completions")):
            fake.asked.clear()
            found = [
                answer
                for batch in server_answers(made, [" a ", "b"], template=template, new_tokens=3, skip=frozenset([1]))
                for answer in batch
            ]
            assert found == [Answer(0, "A", 2, template == "chat")]
            assert [asked[0] for asked in fake.asked] == [path]
            assert "add_special_tokens" not in fake.asked[0][2], "the server adds its tokenizer's own"
    with pytest.raises(SpinError, match="no question"):
        list(server_answers(made, [], template="chat", new_tokens=3))


def test_answers_survive_a_failure_and_the_rest_is_asked_for_later(tmp_path: Path):
    """The first ten come; then the server fails; the same call asks for the others alone."""
    from contextlib import nullcontext

    def trouble(number: int, body: dict[str, Any]) -> Any:
        return (500, {}, b"down") if number >= 10 else None

    questions = {"fairness": [Question(f"question {number}", "") for number in range(25)]}
    evaluation = Evaluation(questions, (), "chat", 4)
    with serving(trouble=trouble) as fake:
        made = completer(fake, concurrency=2, attempts=1)
        with pytest.raises(SpinError, match="answered 500: down"):
            answers("base", lambda: nullcontext(made), evaluation, tmp_path)
        kept = (tmp_path / "progress" / "answers-base.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(kept) == 10
        fake.trouble = lambda number, body: None
        fake.asked.clear()
        rows = answers("base", lambda: nullcontext(made), evaluation, tmp_path)
    assert len(fake.asked) == 15
    assert [row.answer for row in rows] == [f"QUESTION {number}" for number in range(25)]
    assert [row.id for row in rows] == [f"fairness-{number:04d}" for number in range(25)]
