"""What is loaded and read, counted: the model, each judge and each file once, in a run and in all of a paper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import driver
import pytest
from harness import Command, contrast_words

from spin_llm.data import rows
from spin_llm.paper import conduct
from spin_llm.paper.experiments import experiments
from spin_llm.pipeline import context
from spin_llm.results.paper import Experiment

pytest_plugins = ["harness"]
LIMITS = "--template raw --dtype float32 --keep 0.1 --new-tokens 4 --max-perplexity-increase 0.3"


@pytest.fixture
def words(tiny_folder, tmp_path: Path) -> list[str]:
    return [str(tiny_folder("llama")), *contrast_words(tmp_path), *LIMITS.split()]


@pytest.fixture
def counts(command: Command, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each model, judge and file was asked for; the judges are made up."""
    found: Counter[str] = Counter()

    def counted(make: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(name: object = "coherence", *args: object, **options: object) -> Any:
            found[f"{kind} {Path(str(name)).name}"] += 1
            return make(name, *args, **options)

        return call

    judge = driver.MadeUpJudge()
    monkeypatch.setattr(context, "load", counted(context.load, "model"))
    monkeypatch.setattr(context, "checkpoint_of", counted(context.checkpoint_of, "checkpoint"))
    monkeypatch.setattr(context, "load_judge", counted(lambda name, **options: judge, "judge"))
    monkeypatch.setattr(context, "load_coherence_judge", counted(lambda name: judge, "judge"))
    monkeypatch.setattr(rows, "_text_lines", counted(rows._text_lines, "file"))
    return found


def check_once(counts: Counter[str], model: str) -> None:
    wanted = {f"{kind} {Path(model).name}" for kind in ("model", "checkpoint")} | {"judge local", "judge coherence"}
    wanted |= {f"file {name}.csv" for name in ("fairness", "privacy", "general", "questions")}
    assert wanted <= counts.keys()
    assert {name for name, times in counts.items() if times > 1} == set()


def test_a_run_that_searches_loads_and_reads_once(
    words: list[str], command: Command, counts: Counter[str], tmp_path: Path
):
    limits = ("--examples", "12", "--trials", "4", "--survivors", "2", "--resamples", "2")
    outcome = command("run", *words, *limits, "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    check_once(counts, words[0])


def test_all_of_a_paper_loads_and_reads_once(
    words: list[str], command: Command, counts: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def some(*given: Any) -> dict[str, Experiment]:
        return {name: found for name, found in experiments(*given).items() if name in ("modules", "phrases")}

    monkeypatch.setattr(conduct, "experiments", some)
    outcome = command("paper", "all", *words, "--limit", "8", "-o", tmp_path / "paper")
    assert outcome.code == 0, outcome.err
    check_once(counts, words[0])
