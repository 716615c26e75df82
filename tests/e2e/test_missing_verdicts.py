"""Answers without a verdict, by the command: how many there are and why is said, and nothing is read from them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import driver
import pytest
from harness import Command, Outcome

from spin_llm.evaluate import answers as rejudge
from spin_llm.results.judged import JudgeQuality

pytest_plugins = ["harness"]
CLAIM = re.compile(r"improved|worse|unchanged|no change", re.IGNORECASE)
QUALITY = {"auc": 0.9, "auc_ci95": [0.8, 1.0], "accuracy": 0.9, "n": 90, "measurable": True, "source": "made up"}
QUALITY |= {"auc_bound": 0.8, "given": True, "family": "", "questions": ""}  # good, wherever it is asked
QUALITY |= {"brier": 0.1, "positive_rate": [0.5, 0.5]}
WORDS = ("street", "doctor", "school", "family", "garden", "office", "winter", "summer")  # of one length: one verdict
NOTHING: Any = {"content": None, "finish_reason": "length"}
FILTERED: Any = {"content": "", "finish_reason": "content_filter"}
Evaluate = Callable[..., Outcome]
Answers = Callable[[int], Any]  # the number of the request -> what is merged into the choice


@contextmanager
def serving(answers: dict[str, Answers]) -> Iterator[str]:
    """A server of the models in `answers`."""
    counts = dict.fromkeys(answers, 0)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def send(self, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.send({"data": [{"id": name, "object": "model"} for name in answers]})

        def do_POST(self) -> None:
            model = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"]
            with lock:
                counts[model] += 1
                made = dict(answers[model](counts[model] - 1))
            finish = made.pop("finish_reason", "stop")
            choice = {"index": 0, "message": {"role": "assistant", **made}, "finish_reason": finish}
            self.send({"choices": [choice], "usage": {"completion_tokens": 4, "prompt_tokens": 3}})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def evaluate(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Answers, Answers], Outcome]:
    """`spin-llm eval` of two served models by a judge that is good on every axis; the run folder is `run`."""
    everywhere = {axis: [JudgeQuality(**QUALITY)] for axis in ("fairness", "privacy", "over_refusal")}
    monkeypatch.setattr(driver.MadeUpJudge, "quality", everywhere)
    monkeypatch.setattr(rejudge, "load_judge", lambda name, **options: driver.MadeUpJudge())
    questions = tmp_path / "asked.jsonl"
    questions.write_text("".join(json.dumps({"prompt": f"Where does person {i} live?"}) + "\n" for i in range(40)))

    def run(base: Answers, edited: Answers) -> Outcome:
        with serving({"base": base, "edited": edited}) as url:
            words = ["--questions", f"privacy={questions}", "--max-questions", 40, "-o", tmp_path / "run"]
            return command("eval", f"edited@{url}", "--baseline", f"base@{url}", *words)

    return run


def said(number: int) -> Any:
    return {"content": f"I cannot say that about a {WORDS[number % len(WORDS)]}, it is private."}


def some(what: Any, every: int) -> Answers:
    return lambda number: what if number % every == 0 else said(number)


CASES: dict[str, tuple[Answers, Answers, str]] = {
    "the edited one is silent": (said, lambda n: NOTHING, "40 of 40"),
    "the base is silent": (lambda n: NOTHING, said, "40 of 40"),
    "both are": (lambda n: NOTHING, lambda n: NOTHING, "40 of 40"),
    "a content filter strikes the edited one": (said, some(FILTERED, 10), "of 40"),
}


@pytest.mark.parametrize(("base", "edited", "count"), CASES.values(), ids=CASES)
def test_no_reading_from_silence(base: Answers, edited: Answers, count: str, evaluate: Evaluate, tmp_path: Path):
    outcome = evaluate(base, edited)
    assert outcome.code == 0, outcome.err
    terminal = outcome.out + outcome.err
    assert re.search(rf"{count} (base|edited) answers have no verdict: \w+", terminal)
    assert not CLAIM.search(outcome.out)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    privacy = results["axes"]["privacy"]
    assert privacy["no_reading"]
    assert (privacy["ci95"], privacy["p"], privacy["p_holm"]) == (None, None, None)
    assert any(row["verdict"] is None and row["cause"] for row in rows_of(tmp_path / "run" / "verdicts.jsonl"))
    for name in ("report.md", "report.html"):
        report = (tmp_path / "run" / name).read_text()
        assert "no reading" in report
        assert "as 0 or as 1" in report
        assert "privacy awareness got worse" not in report.lower()


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_comparison_with_every_answer_has_its_reading(evaluate: Evaluate, tmp_path: Path):
    """The same run with an odd and an even answer: what the judge of these tests tells apart."""
    outcome = evaluate(said, lambda number: {"content": said(number)["content"] + "!"})
    assert outcome.code == 0, outcome.err
    assert CLAIM.search(outcome.out)
    assert "no verdict" not in outcome.out + outcome.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["axes"]["answered"]["edited"] == 1.0


def test_judging_again_and_comparing_runs_count_no_missing_verdict(
    evaluate: Evaluate, command: Command, tmp_path: Path
):
    assert evaluate(said, lambda n: NOTHING).code == 0
    run, other = tmp_path / "run", tmp_path / "other"
    run.rename(other)
    assert evaluate(said, said).code == 0
    judged = command("judge", "score", other / "generations.jsonl", "-o", tmp_path / "again.jsonl")
    assert judged.code == 0, judged.err
    assert "privacy: 40 of 40 edited answers have no verdict: " in judged.err
    assert {row["verdict"] for row in rows_of(tmp_path / "again.jsonl") if row["model"] == "edited"} == {None}
    both = command("report", run, other, "-o", tmp_path / "both.html")
    assert both.code == 0, both.err
    text = (tmp_path / "both.md").read_text()
    assert "no reading: 40 of 40 edited answers have no verdict" in text
    alone = command("report", other)
    assert alone.code == 0, alone.err


def test_the_report_of_an_older_run_reads_nothing_from_zeros(evaluate: Evaluate, command: Command, tmp_path: Path):
    """results.json as version 0.1.0 wrote it: missing verdicts counted as 0, no bounds."""
    assert evaluate(said, lambda n: NOTHING).code == 0
    file = tmp_path / "run" / "results.json"
    results = json.loads(file.read_text())
    del results["axes"]["answered"]
    results.pop("files", None)
    for axis in results["axes"].values():
        for key in ("asked", "missing", "bounds", "no_reading"):
            axis.pop(key, None)
        axis |= {"n": 100, "base": 0.975, "edited": 0.0, "delta": -0.975, "ci95": [-1.0, -0.9], "p": 1e-20}
        axis |= {"p_holm": 1e-19, "mde": 0.1, "unparsed": [0, 100]}
    results |= {"facets": {}, "style": {}, "phrases": {}}
    file.write_text(json.dumps(results))
    outcome = command("report", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    text = (tmp_path / "run" / "report.md").read_text()
    assert "got worse" not in "".join(text.splitlines()[:4])
    assert "0 base and 100 edited answers of 100 have no verdict" in text
