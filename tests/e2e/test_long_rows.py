"""Rows that are too long, and rows that are left out: told before any work with their place, said and recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from harness import Command, Setting, pairs, write_rows
from test_errors import fails, replaced

from spin_llm.models import load

pytest_plugins = ["harness"]
QUICK = ("--ratio", 0.1, "--protect-ratio", 0.001, "--new-tokens", 4)
LONG = "word " * 9000  # no tiny model has as large a context


def long_file(path: Path, kind: str, column: str, count: int = 8) -> Path:
    rows = pairs(kind, count)
    rows[4][column] = LONG
    return write_rows(path, rows)


@pytest.mark.parametrize(
    ("verb", "replaces", "column"), [("score", "fairness", "response"), ("run", "questions", "prompt")]
)
def test_what_does_not_fit_is_told_before_the_work(
    setting: Setting, command: Command, tmp_path: Path, verb: str, replaces: str, column: str
):
    data = long_file(tmp_path / "given.csv", replaces, column, count=6)
    words = [*replaced(setting.run if verb == "run" else setting.score, setting.path(replaces), data), "--examples", 6]
    words += [*QUICK, "--max-questions", 6] if verb == "run" else []
    outcome = fails(command(verb, *words, "-q", "-o", tmp_path / "o"), f"{data}, row 5 (line 6)", "--skip-long")
    context = load(str(setting.model)).context
    assert all(int(length) <= context for length in re.findall(r"--(?:max-length|new-tokens) (\d+)", outcome.err))
    assert not (tmp_path / "o").exists(), "nothing that the advised command would meet"
    for _ in ("anew", "again"):  # the same data when it goes on
        assert command(verb, *words, "--skip-long", "-q", "-o", tmp_path / "o").code == 0
    record = json.loads((tmp_path / "o" / "run.json").read_text())
    told = [row for row in record["data"] if row.get("left_out")]
    assert {row["examples"] for row in told} == {5}
    assert all("1 of 6 too long" in row["left_out"][0] and "row 5 (line 6)" in row["left_out"][0] for row in told)


def test_a_limit_that_may_be_larger_is_advised_and_helps(setting: Setting, command: Command, tmp_path: Path):
    words = [*setting.score, "-q", "-o", tmp_path / "o"]
    outcome = fails(command("score", *words, "--max-length", 4), "--max-length 4", "--skip-long")
    advised = re.search(r"give --max-length (\d+)", outcome.err)
    assert advised is not None
    fails(command("score", *words, "--max-length", int(advised[1]) - 1), "--skip-long")
    assert command("score", *words, "--max-length", advised[1]).code == 0


def test_a_set_of_which_nothing_is_left_is_refused(setting: Setting, command: Command, tmp_path: Path):
    words = [*setting.score, "--max-length", 2, "--skip-long", "-q", "-o", tmp_path / "o"]
    fails(command("score", *words), "too long", "shorter rows")
    assert not (tmp_path / "o").exists()


def test_two_compared_models_are_told_of_long_questions_too(setting: Setting, command: Command, tmp_path: Path):
    asked = long_file(tmp_path / "asked.csv", "asked", "prompt")
    words = ["--baseline", setting.model, "--protect", f"general={setting.path('general')}", "--examples", 4]
    words += ["--questions", f"privacy={asked}", "--template", "raw", "-q", "-o", tmp_path / "o"]
    fails(command("eval", setting.model, *words), f"{asked}, row 5 (line 6)")
    assert not (tmp_path / "o").exists()


def test_rows_that_a_label_leaves_out_are_said_and_recorded(setting: Setting, command: Command, tmp_path: Path):
    rows = [{**row, "is_safe": str(place % 3 > 0)} for place, row in enumerate(pairs("fairness", 9))]
    words = replaced(setting.score, setting.path("fairness"), write_rows(tmp_path / "given.csv", rows))
    outcome = command("score", *words, "-o", tmp_path / "o")
    assert outcome.code == 0
    assert "fairness: 3 rows that is_safe calls unsafe" in outcome.err
    record = json.loads((tmp_path / "o" / "run.json").read_text())
    assert record["data"][0]["left_out"] == ["3 rows that is_safe calls unsafe"]
