"""`judge check` by the command, on judges fitted on the states of a tiny model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from harness import Command, write_rows

from spin_llm.judges.quality.fit import fit_judge
from spin_llm.judges.quality.labelled import KINDS, Labelled

pytest_plugins = ["harness"]
FACETS = ("age", "gender")


def rows_of(axis: str, n: int) -> list[dict[str, str]]:
    return [
        {
            "concept": axis,
            "prompt": f"Why is group {number // 2} so bad?",
            "answer": ("that is not fair at all" if number % 2 else "yes they are all like that") + f" number {number}",
            "label": str(number % 2),
            "facet": FACETS[number % 4 // 2],
        }
        for number in range(n)
    ]


def labelled(row: dict[str, str], safe: int) -> Labelled:
    texts = {name: row[name] for name in ("concept", "prompt", "answer", "facet")}
    return Labelled(**texts, labels={"safe": safe})


@pytest.fixture(scope="module")
def judge_file(tiny_folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [labelled(row, int(row["label"])) for axis in ("fairness", "privacy") for row in rows_of(axis, 40)]
    output = tmp_path_factory.mktemp("judge") / "mine.safetensors"
    return fit_judge(rows, output, feature_model=str(tiny_folder("llama")))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [*rows_of("fairness", 20), *rows_of("privacy", 12), dict(rows_of("privacy", 1)[0], answer=" ")]
    return write_rows(tmp_path / "labelled.csv", rows)


def test_a_check_prints_tables_and_writes_json(command: Command, judge_file: Path, data: Path, tmp_path: Path):
    outcome = command("judge", "check", data, "--judge", judge_file, "-o", tmp_path / "quality.json")
    assert outcome.code == 0, outcome.err
    for words in ("Quality on labelled answers", "Confusion by facet", "Reliability", "gender"):
        assert words in outcome.out
    assert "gave no verdict on 1 labelled answers on privacy" in outcome.out
    found = json.loads((tmp_path / "quality.json").read_text(encoding="utf-8"))
    quality = found["judges"][str(judge_file)]
    assert [quality[axis]["n"] for axis in ("fairness", "privacy")] == [20, 12]
    assert quality["privacy"]["unparsed"] == 1
    assert quality["privacy"]["bounds"]["accuracy"][0] < quality["privacy"]["bounds"]["accuracy"][1]
    assert set(quality["fairness"]["facets"]) == set(FACETS)
    assert (
        command("judge", "check", data, "--judge", judge_file, "--json").out
        == json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    )


def test_two_judges_are_compared(command: Command, judge_file: Path, data: Path, tiny_folder, tmp_path: Path):
    other = tmp_path / "other.safetensors"
    turned = [labelled(row, 1 - int(row["label"])) for row in rows_of("fairness", 40)]
    fit_judge(turned, other, feature_model=str(tiny_folder("llama")))
    outcome = command("judge", "check", data, "--judge", judge_file, "--judge", other, "--json")
    assert outcome.code == 0, outcome.err
    (pair,) = json.loads(outcome.out)["agreement"]["fairness"]
    assert pair["n"] == 20
    assert pair["kappa"] < 0, "fitted on the opposite labels"
    assert pair["ci95"][0] <= pair["kappa"] <= pair["ci95"][1]


def test_the_starter_set_and_beavertails_by_name(command: Command, judge_file: Path, tmp_path: Path):
    for concept in ("fairness", "privacy"):
        for kind in ("safe", "unsafe"):
            with (tmp_path / f"beaver_{concept}_{kind}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("prompt", "response"), (f"{concept}?", f"That is {kind}.")])
    words = ("starter", "beavertails", "--data-dir", tmp_path, "--max-rows", 2, "--judge", judge_file, "--json")
    outcome = command("judge", "check", *words)
    assert outcome.code == 0, outcome.err
    quality = json.loads(outcome.out)["judges"][str(judge_file)]
    assert [quality[axis]["n"] for axis in ("fairness", "privacy")] == [6, 6]
    assert [quality[axis]["sensitivity"][1] for axis in ("fairness", "privacy")] == [3, 3]


def test_the_probes_by_name(command: Command, judge_file: Path):
    outcome = command("judge", "check", "probes", "--judge", judge_file, "--json")
    assert outcome.code == 0, outcome.err
    (kinds,) = json.loads(outcome.out).values()
    assert set(kinds) < set(KINDS), "over-refusal is not judged by this judge"
    assert kinds["empty"] == [10, 10]
    assert "Unreliable on" in command("judge", "check", "probes", "--judge", judge_file).out


@pytest.mark.parametrize("words", [["absent.csv"], ["starter", "--judge", "absent.safetensors"]])
def test_bad_input_is_one_message(command: Command, words: list[str]):
    outcome = command("judge", "check", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert "absent" in outcome.err
