"""What the tests of the command share: the command, in this process or in its own, a tiny model, data files.

The test modules name this as their plugin, for its fixtures. It holds no assertions: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import driver
import pytest

from spin_llm.results.file import read_results, results_schema, written

SOURCE = Path(__file__).resolve().parents[2] / "src"
DRIVER = Path(__file__).with_name("driver.py")
WORDS = (
    "address",
    "gender",
    "work",
    "neighbour",
    "doctor",
    "salary",
    "school",
    "phone",
    "age",
    "faith",
    "child",
    "city",
)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def check_results(folder: Path) -> None:
    """results.json is as its schema says, and the types know all that is in it."""
    jsonschema = pytest.importorskip("jsonschema")
    found = json.loads((folder / "results.json").read_text())
    jsonschema.validate(found, results_schema(), jsonschema.Draft202012Validator)
    if json.loads(json.dumps(written(read_results(folder)))) != found:
        raise ValueError(f"{folder / 'results.json'} has parts that the types do not know")


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **more}


def process(
    *words: object, made_up_judge: bool = True, interpreter: tuple[str, ...] = (), **more: str
) -> subprocess.Popen[str]:
    """The command in a process of its own, with `more` in its environment; `interpreter`: how Python starts it."""
    start = [sys.executable, *(interpreter or ([str(DRIVER)] if made_up_judge else ["-m", "spin_llm.cli"]))]
    pipe = subprocess.PIPE
    return subprocess.Popen([*start, *map(str, words)], stdout=pipe, stderr=pipe, text=True, env=environment(**more))


def finished(running: subprocess.Popen[str], timeout: float = 120) -> Outcome:
    out, err = running.communicate(timeout=timeout)
    return Outcome(running.returncode, out, err)


@dataclass(frozen=True)
class Setting:
    """A tiny model and data files, and the words of a `score` and a `run` with them."""

    model: Path
    data: Path

    def path(self, name: str) -> str:
        return str(self.data / f"{name}.csv")

    @property
    def sources(self) -> list[str]:
        concepts = [f"{name}={self.path(name)}" for name in ("fairness", "privacy")]
        words = [word for source in concepts for word in ("--concept", source)]
        return [*words, "--protect", f"general={self.path('general')}", "--examples", "4", "--template", "raw"]

    @property
    def score(self) -> list[str]:
        return [str(self.model), *self.sources, "--keep", "0.1", "--dtype", "float32"]

    @property
    def run(self) -> list[str]:
        questions = f"fairness={self.path('questions')} privacy={self.path('questions')}".split()
        words = [word for source in questions for word in ("--questions", source)]
        words += ["--questions", f"over_refusal={self.path('questions')}"]
        return [*self.score, *words, "--max-questions", "4", "--new-tokens", "4", "--max-perplexity-increase", "9"]


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def pairs(name: str, count: int) -> list[dict[str, str]]:
    words = [WORDS[(i * 7 + len(name)) % len(WORDS)] for i in range(count)]
    return [
        {"prompt": f"{name} {i}: {word}?", "response": f"About {word} I say {i % 3}."} for i, word in enumerate(words)
    ]


def contrast_words(folder: Path, *, questions: int = 2, facets: bool = False) -> list[str]:
    """Data files with aware and unaware responses in `folder`, `questions` for each of WORDS, and the options that name
    them."""
    for name in ("fairness", "privacy"):
        rows = [
            {
                "prompt": f"{name} {i}: {WORDS[i % len(WORDS)]}?",
                "aware": f"I would rather not say {i % 5}.",
                "unaware": f"Sure, {WORDS[i % 7]} is {i % 3}.",
            }
            for i in range(24)
        ]
        write_rows(folder / f"{name}.csv", rows)
    general = [{"prompt": f"Tell of {word} {i}.", "response": f"{word} {i}."} for i in range(4) for word in WORDS]
    write_rows(folder / "general.csv", general)
    asked = [
        {"prompt": f"Who is {word} {i}?", **({"facet": word[0]} if facets else {})}
        for i in range(questions)
        for word in WORDS
    ]
    write_rows(folder / "questions.csv", asked)
    return [
        *(word for name in ("fairness", "privacy") for word in ("--concept", f"{name}={folder / name}.csv")),
        *("--protect", f"general={folder / 'general.csv'}", "--questions", str(folder / "questions.csv")),
    ]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """`command("run", ...)` in this process, by the entry point, with the made-up judge."""
    from spin_llm.cli import main as cli

    driver.use_made_up_judge(monkeypatch.setattr)

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["spin-llm", *map(str, words)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        code = 0
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            try:
                cli.main()
            except SystemExit as leaving:
                code = int(leaving.code or 0)
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def setting(tiny_folder, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    data = tmp_path_factory.mktemp("data")
    for name, count in (("fairness", 6), ("privacy", 6), ("general", 24)):
        write_rows(data / f"{name}.csv", pairs(name, count))
    write_rows(data / "questions.csv", [{"prompt": f"Who is {word}?", "facet": word[0]} for word in WORDS[:6]])
    return Setting(tiny_folder("llama"), data)
