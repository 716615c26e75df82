"""What the answers are worded like: listed and shifted phrases, and the style of answers.

In: `style` and `phrases` of results.json. Out: rows of texts. Absent parts come out empty. Left out: finding them
(evaluate/phrases.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spin_llm.report.sections.table import Row, make_row
from spin_llm.report.words import axis_label


@dataclass(frozen=True)
class Shift:
    """A phrase with the number of answers that contain it."""

    phrase: str
    base: int
    edited: int
    z: float | None = None

    @property
    def z_text(self) -> str:
        return "–" if self.z is None else f"{self.z:+.1f}"


@dataclass(frozen=True)
class Phrases:
    """`listed`: known cautionary phrases; `shifted`: those the answers themselves show, by log-odds."""

    axis: str
    label: str
    n: int
    listed: list[Shift]
    shifted: list[Shift]
    tried: int | None
    threshold: float | None


def style_rows(style: dict[str, dict[str, dict[str, Any]]]) -> list[Row]:
    """One row for each kind of style and axis: length, repetition, cautionary phrases."""
    return [
        make_row(kind, result, None, f"{axis_label(kind)}, {axis.replace('_', '-')}")
        for axis, kinds in style.items()
        for kind, result in kinds.items()
    ]


def phrase_parts(phrases: dict[str, dict[str, Any]], axes: dict[str, dict[str, Any]]) -> list[Phrases]:
    """Both lists of every axis; `n` is the number of questions that both models answer (older runs: of the axis), 0
    where the axis is not there."""
    return [
        Phrases(
            axis=axis,
            label=axis_label(axis),
            n=found.get("n", axes.get(axis, {}).get("n", 0)),
            listed=[Shift(row["phrase"], row["base"], row["edited"]) for row in found.get("listed", [])],
            shifted=[Shift(row["phrase"], row["base"], row["edited"], row["z"]) for row in found.get("shifted", [])],
            tried=found.get("tried"),
            threshold=found.get("threshold"),
        )
        for axis, found in phrases.items()
    ]
