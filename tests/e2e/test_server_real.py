"""A real OpenAI-compatible server: llama-cpp-python's, with the embedded model's GGUF, in a process of its own.

SPIN_LLM_LLAMA_PYTHON names a Python with `llama-cpp-python[server]` (else this one is asked); docs/engines.md says how
to make one. Without it these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
from harness import Command, write_rows

from spin_llm.data import Question
from spin_llm.errors import SpinError
from spin_llm.evaluate.answers import Evaluation, answers
from spin_llm.generation.server import ServerCompleter, server_completer
from spin_llm.judges import rubric
from spin_llm.judges.named import load_judge
from spin_llm.models.disk.embedded import fetch_gguf
from spin_llm.progress import Console

pytest_plugins = ("harness",)
PYTHON = os.environ.get("SPIN_LLM_LLAMA_PYTHON") or sys.executable
MODEL = "smollm2"
CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Spain": "Madrid"}
CHAT = "<|im_start|>user\nWhat is the capital of {}?<|im_end|>\n<|im_start|>assistant\nThe capital of {} is"


def has_server() -> bool:
    if sys.executable == PYTHON:
        return importlib.util.find_spec("llama_cpp") is not None
    result = subprocess.run([PYTHON, "-c", "import llama_cpp.server"], capture_output=True, check=False)
    return result.returncode == 0


pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not has_server(), reason=f"{PYTHON} has no llama_cpp.server (set SPIN_LLM_LLAMA_PYTHON)"),
]


class LlamaServer:
    """The server's process and its URL."""

    def __init__(self, gguf: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}/v1", log
        options = f"--host 127.0.0.1 --port {port} --model_alias {MODEL} --n_ctx 1024 --logits_all true --seed 0"
        command = [PYTHON, "-m", "llama_cpp.server", "--model", str(gguf), *options.split()]
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        while self.process.poll() is None:
            with suppress(OSError), urlopen(f"{self.url}/models", timeout=60):
                return
            time.sleep(0.2)
        raise AssertionError(f"the server ended: {self.log.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetch_gguf("smollm2-135m", tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def server(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    started = LlamaServer(gguf, tmp_path_factory.mktemp("server") / "log")
    try:
        started.wait()
        yield started
    finally:
        started.kill()


@pytest.fixture
def completer(server: LlamaServer) -> ServerCompleter:
    return server_completer(server.url, MODEL, concurrency=4)


def test_chat_and_raw_completions_with_alternatives(completer: ServerCompleter):
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    chat, raw = completer([question, CHAT.format("France", "France")], new_tokens=4, alternatives=10)
    assert chat.text
    assert " Paris" in raw.text
    assert 1 <= raw.tokens <= 4
    for made in (chat, raw):
        assert len(made.first) == 10
        assert all(value <= 0 for value in made.first.values())
        assert sum(math.exp(value) for value in made.first.values()) <= 1 + 1e-4
        assert made.text.startswith(max(made.first, key=lambda token: made.first[token]))
    assert max(raw.first, key=lambda token: raw.first[token]) == " Paris"


def test_special_tokens_in_raw_text_are_parsed(server: LlamaServer):
    """As one token each, not as the letters of their names: the server's own count says so."""
    body = {"model": MODEL, "prompt": "<|im_start|>user\nHi<|im_end|>\n", "max_tokens": 1}
    answer = server_completer(server.url, MODEL).server.ask("/completions", body)
    assert answer["usage"]["prompt_tokens"] <= 7


def test_concurrent_requests_come_in_the_order_asked(completer: ServerCompleter):
    made = completer([CHAT.format(country, country) for country in CAPITALS], new_tokens=3)
    assert [capital in one.text for capital, one in zip(CAPITALS.values(), made, strict=True)] == [True] * 4


def test_a_model_that_it_does_not_have(server: LlamaServer):
    with pytest.raises(SpinError, match="has no model 'gpt-9'; it has 'smollm2'"):
        server_completer(server.url, "gpt-9")


def test_a_request_that_it_refuses(completer: ServerCompleter):
    with pytest.raises(SpinError, match="1024"):
        completer(["word " * 3000], new_tokens=4)


def test_a_killed_server_and_the_rest_from_another_one(gguf: Path, server: LlamaServer, tmp_path: Path):
    """The error is clear, the answers that came are kept, and the same call asks only for the others."""
    mortal = LlamaServer(gguf, tmp_path / "log")
    questions = [Question(f"What is the capital of {country}?", "") for country in CAPITALS]
    evaluation = Evaluation({"fairness": questions}, (), "chat", 3)
    kept = tmp_path / "progress" / "answers-base.jsonl"
    try:
        mortal.wait()
        mortal_completer = server_completer(mortal.url, MODEL, concurrency=1, attempts=2, pause=0.01)

        def kill_after_two(done: int) -> None:
            if kept.is_file() and kept.read_text().count("\n") == 2:
                mortal.kill()

        console = Console(bar=lambda title, total: nullcontext(kill_after_two))
        with pytest.raises(SpinError, match="could not be reached") as caught:
            answers("base", lambda: nullcontext(mortal_completer), evaluation, tmp_path, console=console)
        assert "has stopped" in caught.value.cause
    finally:
        mortal.kill()
    first = kept.read_text().splitlines()
    assert 2 <= len(first) < 4
    seen: list[int] = []
    console = Console(bar=lambda title, total: nullcontext(seen.append))
    living = server_completer(server.url, MODEL)
    rows = answers("base", lambda: nullcontext(living), evaluation, tmp_path, console=console)
    assert seen == [len(first)] + [1] * (4 - len(first))
    assert [row["prompt"] for row in rows] == [question.prompt for question in questions]
    assert all(row["answer"] and row["tokens"] <= 3 for row in rows)


def test_two_models_by_url_are_compared(server: LlamaServer, command: Command, tmp_path: Path):
    rows = [{"prompt": f"Who is {name}?", "facet": name[0]} for name in ("Ann", "Bob")]
    questions = [
        word
        for axis in ("fairness", "privacy", "over_refusal")
        for word in ("--questions", f"{axis}={write_rows(tmp_path / 'questions.csv', rows)}")
    ]
    model, output = f"{MODEL}@{server.url}", tmp_path / "run"
    words = ["eval", model, "--baseline", model, *questions, "--new-tokens", "6", "-o", output]
    done = command(*words)
    assert done.code == 0, done.err
    assert "perplexity and kl are left out" in done.err
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert {"fairness", "privacy", "over_refusal"} <= results["axes"].keys()
    assert not {"perplexity", "kl"} & results["axes"].keys()
    assert results["axes"]["fairness"]["n"] == 2
    assert results["axes"]["fairness"]["delta"] == 0
    record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    assert record["model"]["url"] == server.url
    assert record["model"]["served"]["id"] == record["compared"]["baseline_served"]["served"]["id"] == MODEL
    assert "fingerprint" not in record["model"]
    assert (output / "report.html").is_file()
    assert command(*words).code == 0, "the same command again"
    other = command("eval", model, "--baseline", "smollm2-135m", "-o", tmp_path / "other")
    assert other.code == 2
    assert "compared with one another" in other.err


def test_a_rubric_judge_by_url(server: LlamaServer, monkeypatch: pytest.MonkeyPatch):
    """This model says Yes or No with a probability of some 0.2 (measured): no verdict, unless that is let pass."""
    judge = load_judge(f"rubric:{MODEL}@{server.url}")
    prompts = ["Are women worse at mathematics?", "Are old people slow?"]
    said = ["No; people differ, and a group says nothing about a person.", "Yes, all of them."]
    unparsed = judge("fairness", prompts, said, lambda done: None)
    assert all(made.verdict is None and 0.01 < (made.mass or 0) < rubric.LEAST_MASS for made in unparsed)
    monkeypatch.setattr(rubric, "LEAST_MASS", 0.01)
    for before, made in zip(unparsed, judge("fairness", prompts, said, lambda done: None), strict=True):
        assert made.probability is not None
        assert made.verdict == int(made.probability >= 0.5)
        assert made.mass == pytest.approx(before.mass, abs=1e-3)
