"""A run that is stopped, however and wherever, continues and ends with the same bytes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from driver import stop_at
from harness import Command, Setting, files_of, finished, process

pytest_plugins = ["harness"]
RESULTS = ("patch.safetensors", "results.json", "generations.jsonl", "verdicts.jsonl")


class Stopped(BaseException):
    """Stands for Ctrl+C at an exact place."""


def result_bytes(folder: Path) -> dict[str, bytes]:
    assert not list(folder.rglob("*.part"))
    return {name: (folder / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="module")
def words(setting: Setting) -> list[str]:
    return ["run", *setting.run, "--control", "random", "-q"]


@pytest.fixture
def whole(words: list[str], command: Command, tmp_path: Path) -> dict[str, bytes]:
    """The results of the run that nobody interrupts."""
    assert command(*words, "-o", tmp_path / "whole").code == 0
    return result_bytes(tmp_path / "whole")


def stop() -> None:
    raise Stopped


@pytest.mark.slow
def test_stopped_at_every_write_in_turn(words: list[str], command: Command, whole: dict[str, bytes], tmp_path: Path):
    """Each attempt gets one write further than the first of the former attempts; the last one gets through."""
    folder, attempts = tmp_path / "o", 0
    for number in [1, *[2] * 80]:  # the first write of an attempt repeats the one that was stopped
        undo = stop_at(number, stop)
        try:
            outcome = command(*words, "-o", folder)
        except Stopped:
            attempts += 1
            continue
        finally:
            undo()
        assert outcome.code == 0
        break
    assert attempts >= 10, "record, three scores, patch, three answers, generations, verdicts, results"
    assert command(*words, "-o", folder).code == 0
    assert result_bytes(folder) == whole
    assert not (folder / "progress").exists()


@pytest.mark.slow
def test_killed_again_and_again(words: list[str], command: Command, whole: dict[str, bytes], tmp_path: Path):
    """kill -9 in the middle of a score file, then of a file of answers; then run to the end."""
    folder = tmp_path / "o"
    for name in ("privacy.safetensors", "answers-edited.jsonl"):
        outcome = finished(process(*words, "-o", folder, STOP_AT=name, STOP_HOW="kill"))
        assert outcome.code == -signal.SIGKILL, outcome.err
        assert not (folder / "results.json").exists()
    assert command(*words, "-o", folder).code == 0
    assert {name: (folder / name).read_bytes() for name in RESULTS} == whole


@pytest.mark.slow
def test_interrupted_in_the_middle_of_the_answers(
    words: list[str], command: Command, whole: dict[str, bytes], tmp_path: Path
):
    folder = tmp_path / "o"
    running = process(*words, "-o", folder, STOP_AT="answers-edited.jsonl", STOP_HOW="wait")
    assert running.stdout is not None
    assert running.stdout.readline() == "READY\n"
    running.send_signal(signal.SIGINT)
    outcome = finished(running)
    assert outcome.code == 130
    assert outcome.err == "spin-llm: interrupted; the same command continues where it stopped.\n"
    assert list((folder / "progress").iterdir())
    assert json.loads((folder / "run.json").read_text())["settings"]["seed"] == 0
    assert command(*words, "-o", folder).code == 0
    assert result_bytes(folder) == whole


def test_scores_that_are_there_are_not_made_again(words: list[str], command: Command, tmp_path: Path):
    folder = tmp_path / "o"
    undo = stop_at("general.safetensors", stop)
    with pytest.raises(Stopped):
        command(*words, "-o", folder)
    undo()
    made = {name: (folder / "scores" / name).stat().st_mtime_ns for name in files_of(folder / "scores")}
    assert set(made) == {"fairness.safetensors", "privacy.safetensors"}
    assert command(*words, "-o", folder).code == 0
    assert {name: (folder / "scores" / name).stat().st_mtime_ns for name in made} == made


@pytest.mark.parametrize("place", ["__del__", "weakref"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_is_not_lost_where_python_cannot_raise(name: str, place: str):
    """In a destructor or a callback of the collector, exceptions are only reported: the signal comes again."""
    code = f"""
import os, signal, sys, time, weakref
from spin_llm.cli import main as cli

def signalled(*_):
    os.kill(os.getpid(), signal.{name})
    for _ in range(1000): pass

class Dying:
    if {place!r} == "__del__":
        __del__ = signalled

def work():
    dying = Dying()
    reference = weakref.ref(dying, signalled if {place!r} == "weakref" else None)
    del dying
    end = time.monotonic() + 20
    while time.monotonic() < end: pass
    return 0

cli._exit_code = work
cli.main()
"""
    outcome = finished(process(interpreter=("-c", code)), timeout=60)
    assert outcome.code == 128 + getattr(signal, name)
    assert outcome.err == "spin-llm: interrupted; the same command continues where it stopped.\n"
