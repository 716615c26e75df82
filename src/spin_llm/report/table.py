"""The results table, shared by the page, the Markdown and the terminal.

In: results.json. Out: one `Row` an axis and, under it, one a control, with the numbers formatted and worded.
Left out: how a row looks; minus signs stay ASCII so that any terminal can print them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spin_llm.report.wording import (
    Verdict,
    axis_label,
    interval_text,
    number,
    p_text,
    verdict,
    verdict_sentence,
)

COLUMNS = ("axis", "n", "base", "edited", "difference", "95% interval", "p", "reading")


@dataclass(frozen=True)
class Row:
    """One line of the table. `control` names the control whose values stand in `edited`; None for the edit itself."""

    axis: str
    control: str | None
    label: str
    metric: str
    n: int
    base: str
    edited: str
    difference: str
    interval: str
    p: str
    reading: str
    verdict: Verdict
    note: str
    result: dict[str, Any]  # the numbers behind the words, as in results.json

    @property
    def cells(self) -> tuple[str, ...]:
        """The texts of the row, in the order of `COLUMNS`."""
        return (
            self.label,
            str(self.n),
            self.base,
            self.edited,
            self.difference,
            self.interval,
            self.p,
            self.reading,
        )


def table_rows(results: dict[str, Any]) -> list[Row]:
    """The rows in the order of results["axes"]: each axis, then the same axis of every control."""
    rows = []
    for axis, result in results["axes"].items():
        rows.append(_row(axis, result, None, axis_label(axis)))
        for name, control in results["controls"].items():
            if axis in control["axes"]:
                label = f"control: {name} ({control['weights']:,} weights)"
                rows.append(_row(axis, control["axes"][axis], name, label))
    return rows


def _row(axis: str, result: dict[str, Any], control: str | None, label: str) -> Row:
    return Row(
        axis=axis,
        control=control,
        label=label,
        metric=result["metric"],
        n=result["n"],
        base=number(result["base"], axis),
        edited=number(result["edited"], axis),
        difference=number(result["delta"], axis, signed=True),
        interval=interval_text(result["ci95"], axis),
        p=p_text(result["p"]),
        reading=verdict_sentence(result, axis),
        verdict=verdict(result),
        note=_note(result),
        result=result,
    )


def _note(result: dict[str, Any]) -> str:
    unparsed = result.get("unparsed") or [0, 0]
    parts = [result.get("note") or ""]
    if any(unparsed):
        parts.append(f"unparsed verdicts: {unparsed[0]} base, {unparsed[1]} edited")
    return "; ".join(part for part in parts if part)
