"""The paper's tables from results: what is read off them, and that nothing is made up where nothing was measured."""

from __future__ import annotations

import pytest

from spin_llm.evaluate.wording import phrase_shifts, style_of
from spin_llm.paper.tables import Table, phrase_tables, sensitivity_text
from spin_llm.results.paper import AboutArm, ArmRecord, AtBandwidth, Dependence, LayerRecord
from spin_llm.results.rows import Answer

ORIGIN = ArmRecord("origin", "base", AboutArm(0))


def answered(texts: list[str]) -> list[Answer]:
    said = {"axis": "privacy", "prompt": "Why?", "model": "base", "finished": True}
    return [Answer(id=str(i), answer=text, tokens=len(text.split()), **said) for i, text in enumerate(texts)]


def test_phrases_have_differences_over_paired_questions():
    base, edited = ["Fine."] * 18 + ["I'm sorry."] * 2, ["I'm sorry, no."] * 8 + ["Fine."] * 12
    style = {"privacy": style_of("privacy", answered(base), answered(edited))}
    row = ArmRecord("SPIN", "edit", AboutArm(5), phrases=phrase_shifts({"privacy": (base, edited)}), style=style)
    table, silent, note = phrase_tables([ORIGIN, row])
    assert isinstance(table, Table)
    assert "of 20" in table.caption
    rows = {cells[0]: cells[1:] for cells in table.rows}
    assert rows["any of them"] == rows["I'm sorry"], "no answer holds another phrase"
    assert rows["I'm sorry"][:2] == ("2", "8")
    assert rows["I'm sorry"][2].startswith("+30.0 (")
    assert rows["I'm sorry"][3] == "0.109", "exact McNemar of 8 gained and 2 lost"
    assert "I cannot" not in rows
    assert "I cannot" in str(silent), "a phrase in no answer has no difference"
    assert "no correction" in str(note)


def test_phrases_of_nothing_say_so():
    assert phrase_tables([ORIGIN]) == ["No answers were compared."]


def layer(before: list[float | None], after: list[float | None]) -> LayerRecord:
    def state(values: list[float | None]) -> Dependence:
        widths = [AtBandwidth(m, 0.0, v, 1.0) for m, v in zip((0.5, 1.0), values, strict=True)]
        return Dependence([], 0.0, 0.0, 0.0, None, 1.0, None, None, None, None, widths, None)

    return LayerRecord(0, state(before), state(after), {})


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ([layer([0.1, 0.2], [0.2, 0.3])], "1 of 1"),
        ([layer([0.1, 0.2], [0.2, 0.1])], "0 of 1"),
        ([layer([None, 0.2], [0.2, 0.1]), layer([0.3, 0.2], [0.2, 0.1])], "1 of 1"),
    ],
    ids=["the same sign", "turned", "a layer without CKA is left out"],
)
def test_the_sign_of_a_change_over_bandwidths(layers: list[LayerRecord], told: str):
    assert told in sensitivity_text(layers)
    assert "0.5, 1 times" in sensitivity_text(layers)
