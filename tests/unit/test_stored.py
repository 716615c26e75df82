"""Artefacts read back: any damage is one message that names the file, and what changed after the results is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from full_run import make_full_run

from spin_llm.errors import SpinError
from spin_llm.files import read_json, read_typed_lines, write_json, write_jsonl
from spin_llm.report.page import read_pairs, read_run, sections
from spin_llm.results.file import read_results
from spin_llm.results.rows import Answer, OwnAnswer, VerdictRow, hashes_of, read_for_sheet, read_rows

ROWS = ("generations.jsonl", "verdicts.jsonl")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 3 questions an axis that knows the hashes of its files."""
    folder = make_full_run(
        tmp_path / "run", sizes=dict.fromkeys(("fairness", "privacy", "over_refusal"), 3), controls=("random",)
    )
    write_json(folder / "results.json", {**read_json(folder / "results.json"), "files": hashes_of(folder, *ROWS)})
    return folder


def read_whole(folder: Path) -> None:
    read_pairs(folder, read_run(folder).results)


def forget_hashes(run: Path) -> None:
    write_json(run / "results.json", {**read_json(run / "results.json"), "files": {}})


CHANGES: dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = {
    "cut short": lambda rows: rows[:-2],
    "a row twice": lambda rows: [*rows, rows[0]],
    "models swapped": lambda rows: [
        row | {"model": {"base": "edited", "edited": "base"}.get(row["model"], row["model"])} for row in rows
    ],
    "reordered": lambda rows: rows[::-1],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ROWS)
def test_rows_that_are_not_those_of_the_results_are_refused(run: Path, name: str, change: str) -> None:
    read_whole(run)
    write_jsonl(run / name, CHANGES[change](read_typed_lines(run / name, dict)))
    with pytest.raises(SpinError, match=rf"{name} was changed after .*results.json"):
        read_whole(run)


@pytest.mark.parametrize("change", ["cut short", "a row twice"])
@pytest.mark.parametrize("name", ROWS)
def test_an_older_run_is_read_and_its_incomplete_rows_are_refused(run: Path, name: str, change: str) -> None:
    forget_hashes(run)
    read_whole(run)
    write_jsonl(run / name, CHANGES[change](read_typed_lines(run / name, dict)))
    with pytest.raises(SpinError, match=name):
        read_whole(run)


def test_answers_away_from_their_results_are_read_as_they_are(run: Path, tmp_path: Path) -> None:
    rows = read_typed_lines(run / ROWS[0], dict)
    write_jsonl(tmp_path / "elsewhere" / ROWS[0], rows[::-1])
    assert read_rows(tmp_path / "elsewhere" / ROWS[0], Answer) == [Answer(**row) for row in rows[::-1]]
    assert read_rows(run / ROWS[1], VerdictRow) == [VerdictRow(**row) for row in read_typed_lines(run / ROWS[1], dict)]


def test_own_answers_make_a_sheet(tmp_path: Path) -> None:
    row = {"concept": "privacy", "prompt": "Where?", "answer": "I will not say.", "aware": None}
    write_jsonl(tmp_path / "answers.jsonl", [row])
    assert read_for_sheet(tmp_path / "answers.jsonl") == [OwnAnswer(**row)]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value; of lists and long tables the first ones."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    inside = list(items)[:20]
    return [path, *(place for key, part in inside for place in places(part, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The value with `new` at the place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("new", [None, "text", 10**400, -1e308, [[]], {"a": {}}, True], ids=repr)
def test_what_the_reader_of_results_lets_through_can_be_shown(run: Path, new: Any) -> None:
    """At every place of results.json: read and worded, or refused by name."""
    results = read_json(run / "results.json")
    refused = 0
    for place in places(results):
        (run / "results.json").write_text(json.dumps(changed(results, place, new)))
        try:
            sections(read_run(run), [])
        except SpinError as error:
            assert "results.json" in str(error)  # noqa: PT017 - success is right too
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("text", ["", "[]", "{", "NaN", "[" * 100_000, '{"a":' * 100_000, "\udc80", '"\\ud800"'])
@pytest.mark.parametrize("name", ["results.json", *ROWS])
def test_what_is_no_json_is_one_message(run: Path, name: str, text: str) -> None:
    (run / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    forget = name != "results.json"
    if forget:
        forget_hashes(run)
    if name != "results.json" and not text:
        return
    with pytest.raises(SpinError, match=name):
        read_results(run) if name == "results.json" else read_rows(run / name, Answer)
