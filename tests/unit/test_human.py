"""The sheet for a human: blind, safe to open, and read back exactly or not at all."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spin_llm.errors import SpinError
from spin_llm.judges.human import COLUMNS, FORMULA, neutral, read_sheet, restored, row_id, write_sheet
from spin_llm.results.rows import OwnAnswer, ToJudge

ROWS = [
    ToJudge(id=f"{axis}-{number}", axis=axis, prompt=prompt, model=model, answer=answer)
    for axis, number, prompt in (
        ("fairness", 0, "Why?"),
        ("privacy", 0, 'Who, "Ann"?\nSay.'),
        ("over_refusal", 0, "=1+1"),
    )
    for model, answer in (("base", f"I say {axis}."), ("edited", '=HYPERLINK("x")'), ("random", f"I say {axis}."))
]


def sheet_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def rewrite(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def labelled(path: Path, label_of: Any) -> Path:
    write_sheet(path, ROWS)
    return rewrite(path, [{**row, "label": label_of(number, row)} for number, row in enumerate(sheet_rows(path))])


def test_the_sheet_is_blind_shuffled_and_has_each_answer_once(tmp_path: Path):
    assert write_sheet(tmp_path / "sheet.csv", ROWS) == 6
    text = (tmp_path / "sheet.csv").read_text(encoding="utf-8-sig")
    assert not any(word in text for word in ("base", "edited", "random", "fairness-0"))
    rows = sheet_rows(tmp_path / "sheet.csv")
    assert tuple(rows[0]) == COLUMNS
    assert all(row["label"] == "" and len(row["id"]) == 16 for row in rows)
    assert {(row["axis"], row["asked"]) for row in rows} == {
        *(("fairness", "aware"), ("privacy", "aware"), ("over_refusal", "refused"))
    }
    assert all("label 1 for Yes" in row["instructions"] for row in rows)
    write_sheet(tmp_path / "again.csv", ROWS[::-1])
    assert sheet_rows(tmp_path / "again.csv") == rows, "a function of the answers and the seed alone"
    write_sheet(tmp_path / "other.csv", ROWS, seed=1)
    assert [row["id"] for row in sheet_rows(tmp_path / "other.csv")] != [row["id"] for row in rows]


def test_no_cell_can_be_taken_for_a_formula(tmp_path: Path):
    write_sheet(tmp_path / "sheet.csv", ROWS)
    cells = [cell for row in sheet_rows(tmp_path / "sheet.csv") for cell in row.values()]
    assert not [cell for cell in cells if cell.startswith(FORMULA[:-1])]
    assert '\'=HYPERLINK("x")' in cells


@given(st.text())
def test_neutralising_is_undone_exactly(text: str):
    cell = neutral(text)
    assert not cell.startswith(FORMULA[:-1])
    assert restored(cell) == text


def test_the_labels_come_back(tmp_path: Path):
    path = labelled(tmp_path / "sheet.csv", lambda number, row: str(int("say" in row["answer"])))
    judge = read_sheet(path)
    assert (judge.label, sorted(judge.axes)) == ("aware", ["fairness", "over_refusal", "privacy"])
    assert judge.name.startswith("human:sheet.csv ")
    for row in ROWS:
        (verdict,) = judge(row.axis, [row.prompt], [row.answer])
        assert verdict.verdict == int("say" in row.answer)
        assert verdict.probability is None
    (unknown,) = judge("privacy", ["Who?"], ["Somebody else's answer."])
    assert unknown.verdict is None


def test_rows_left_empty_have_no_verdict(tmp_path: Path):
    judge = read_sheet(labelled(tmp_path / "sheet.csv", lambda number, row: " 1 " if number else ""))
    verdicts = [judge(row.axis, [row.prompt], [row.answer])[0].verdict for row in ROWS]
    assert set(verdicts) == {1, None}


def test_line_ends_of_another_system_do_no_harm(tmp_path: Path):
    path = labelled(tmp_path / "sheet.csv", lambda number, row: "1")
    rewrite(path, [{key: cell.replace("\n", "\r\n") for key, cell in row.items()} for row in sheet_rows(path)])
    privacy = next(row for row in ROWS if row.axis == "privacy")
    assert read_sheet(path)("privacy", [privacy.prompt], [privacy.answer])[0].verdict == 1
    assert row_id("privacy", "a\r\nb", " c ") == row_id("privacy", "a\nb", "c") != row_id("fairness", "a\nb", "c")


@pytest.mark.parametrize("label", ["yes", "2", "1.5", "01", "?"])
def test_other_labels_are_named_with_their_line(tmp_path: Path, label: str):
    path = labelled(tmp_path / "sheet.csv", lambda number, row: label if number == 2 else "1")
    with pytest.raises(SpinError, match=rf"row 3 \(line \d+\): the label is '{label}'".replace("?'", r"\?'")):
        read_sheet(path)


def test_a_changed_text_is_found(tmp_path: Path):
    path = labelled(tmp_path / "sheet.csv", lambda number, row: "1")
    rows = sheet_rows(path)
    rows[1]["answer"] += " Really."
    with pytest.raises(SpinError, match=r"row 2 \(line \d+\): the text is not the one"):
        read_sheet(rewrite(path, rows))


def test_two_labels_for_one_answer_and_other_files_are_refused(tmp_path: Path):
    path = labelled(tmp_path / "sheet.csv", lambda number, row: "1")
    rows = sheet_rows(path)
    with pytest.raises(SpinError, match="another label further up"):
        read_sheet(rewrite(path, [*rows, {**rows[0], "label": "0"}]))
    with pytest.raises(SpinError, match="no column id, axis"):
        read_sheet(rewrite(tmp_path / "other.csv", [{"prompt": "a", "answer": "b", "label": "1"}]))
    with pytest.raises(SpinError, match="There is no data file"):
        read_sheet(tmp_path / "absent.csv")
    with pytest.raises(SpinError, match="no answer to judge"):
        write_sheet(tmp_path / "empty.csv", [replace(ROWS[0], answer=" ")])


def test_a_sheet_for_another_label_says_so(tmp_path: Path):
    write_sheet(tmp_path / "safe.csv", ROWS, label="safe")
    assert read_sheet(tmp_path / "safe.csv").label == "safe"
    rows = sheet_rows(tmp_path / "safe.csv")
    only = [row for row in rows if row["axis"] == "fairness"]
    write_sheet(tmp_path / "aware.csv", ROWS)
    other = [row for row in sheet_rows(tmp_path / "aware.csv") if row["axis"] == "privacy"]
    with pytest.raises(SpinError, match="aware and safe"):
        read_sheet(rewrite(tmp_path / "mixed.csv", only + other))


def test_a_zero_byte_in_an_answer_does_not_make_the_sheet_unreadable(tmp_path: Path):
    row = OwnAnswer("privacy", "Where?", "At\0 home.", None)
    write_sheet(tmp_path / "sheet.csv", [row])
    assert b"\0" not in (tmp_path / "sheet.csv").read_bytes()
    judge = read_sheet(tmp_path / "sheet.csv")
    assert row_id("privacy", "Where?", "At\0 home.") in judge.labels
