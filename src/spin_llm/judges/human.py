"""A human as the judge: answers out to a spreadsheet, labels back from it.

In: rows of generations.jsonl or of own/answers.jsonl, or a filled sheet. Out: a blind sheet (csv: one row for each
distinct axis, prompt and answer, models hidden, order shuffled), or the verdicts that its labels are. Every row carries
a hash of what was judged, so that a text that a spreadsheet changed, or a row of another run, is found. Cells that a
spreadsheet would take for a formula get an apostrophe in front, and so does every cell that begins with one: taking one
away gives the text back.
Left out: several raters (give each a sheet, and judge with each).
"""

from __future__ import annotations

import csv
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spin_llm.data.rows import read_rows
from spin_llm.errors import SpinError
from spin_llm.files import sha256_file, sha256_json
from spin_llm.judges.rubric import rubric_of
from spin_llm.judges.verdict import Qualities, Texts, Verdict, head_label, unanswered
from spin_llm.outputs import writing
from spin_llm.progress import Advance, unseen
from spin_llm.results.rows import AnyAnswer

COLUMNS = ("id", "axis", "asked", "prompt", "answer", "label", "instructions")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def row_id(axis: str, prompt: str, answer: str) -> str:
    """What was judged, as 16 hex digits; kinds of line ends, blank space at the ends and zero bytes (no csv holds them)
    do not count."""
    texts = (text.replace("\0", "") for text in (prompt, answer))
    return sha256_json([axis, *("\n".join(text.split("\r\n")).strip() for text in texts)])[:16]


def neutral(text: str) -> str:
    """The text as a cell that no spreadsheet takes for a formula.

    >>> neutral("=1+1"), neutral("'quoted'"), neutral("plain")
    ("'=1+1", "''quoted'", 'plain')
    """
    return "'" + text if text.startswith(FORMULA) else text


def restored(cell: str) -> str:
    """The text that `neutral` made this cell of."""
    return cell.removeprefix("'")


def write_sheet(path: Path, rows: Sequence[AnyAnswer], *, label: str = "aware", seed: int = 0) -> int:
    """Write a sheet to label for `label` (on over-refusal: refused); returns its number of rows. The order is a
    function of the answers and the seed, not of the models that gave them. SpinError when there is nothing to judge."""
    judged = sorted({(row.axis, row.prompt, row.answer) for row in rows if not unanswered(row)})
    if not judged:
        raise SpinError("There is no answer to judge.", cause="a file of generations without answers.")
    random.Random(seed).shuffle(judged)
    with writing(path) as part, part.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for axis, prompt, answer in judged:
            asked = head_label(axis, label)
            instructions = f"label 1 for Yes, 0 for No, nothing if you cannot tell: {rubric_of(axis, label)}"
            cells = (row_id(axis, prompt, answer), axis, asked, prompt, answer, "", instructions)
            writer.writerow(neutral(cell.replace("\0", "")) for cell in cells)
    return len(judged)


@dataclass(frozen=True)
class HumanJudge:
    """The labels of a sheet: by row id 1, 0, or None where the human gave none. What a human says is read as it is; an
    answer that is not in the sheet has no verdict."""

    name: str
    label: str
    axes: Collection[str]
    labels: Mapping[str, int | None]
    quality: Qualities = field(default_factory=dict)
    human: bool = True
    fingerprint: str = ""

    def __call__(self, axis: str, prompts: Texts, answers: Texts, progress: Advance = unseen) -> list[Verdict]:
        progress(len(answers))
        return [self.verdict(row_id(axis, *pair)) for pair in zip(prompts, answers, strict=True)]

    def verdict(self, key: str) -> Verdict:
        label = self.labels.get(key)
        cause = None if label is not None else "left blank in the sheet" if key in self.labels else "not in the sheet"
        return Verdict(None, label, cause=cause)


def read_sheet(path: Path) -> HumanJudge:
    """The judge that a filled sheet is. Raises SpinError that names the line: no sheet, a label other than 0, 1 or
    nothing, a text that was changed, two labels for one row."""
    labels: dict[str, int | None] = {}
    asked: dict[str, str] = {}
    for row in read_rows(path):
        cells = {name: restored(str(row.values.get(name) or "")) for name in COLUMNS}
        if missing := [name for name in COLUMNS[:-1] if name not in row.values]:
            raise SpinError(
                f"{path} is not a sheet to label: it has no column {', '.join(missing)}.",
                cause="another file, or one saved with semicolons.",
                change="save it as csv with commas, with the columns that `spin-llm judge sheet` wrote.",
            )
        label = cells["label"].strip()
        if label not in ("", "0", "1"):
            raise SpinError(f"{path}, {row.where}: the label is {label!r}.", change="give 1, 0 or nothing.")
        key = row_id(cells["axis"], cells["prompt"], cells["answer"])
        if key != cells["id"]:
            raise SpinError(
                f"{path}, {row.where}: the text is not the one that the sheet was made with.",
                cause="a cell was edited, cut short or moved to another row.",
                change="take axis, prompt, answer and id of that row from the sheet as it was written.",
            )
        value = int(label) if label else None
        if labels.get(key, value) != value:
            raise SpinError(f"{path}, {row.where}: the same answer has another label further up.")
        labels[key] = value
        asked[cells["axis"]] = cells["asked"]
    kinds = {kind for kind in asked.values() if kind != "refused"} or {"aware"}
    if len(kinds) > 1:
        raise SpinError(f"{path} asks for {' and '.join(sorted(kinds))}.", cause="rows of two sheets in one.")
    return HumanJudge(f"human:{path.name} {sha256_file(path)[:8]}", kinds.pop(), list(asked), labels)
