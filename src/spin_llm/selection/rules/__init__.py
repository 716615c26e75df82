"""The rules by name: which weights a recipe chooses. One more rule is one more file and its name here."""

from __future__ import annotations

from spin_llm.selection.rules.coupled import COUPLED, COUPLED_SIGNED, RELEASED
from spin_llm.selection.rules.rule import Rule
from spin_llm.selection.rules.signed import SIGNED

KNOWN: dict[str, Rule] = {rule.name: rule for rule in (COUPLED, COUPLED_SIGNED, RELEASED, SIGNED)}
