"""Columns that say of a response whether it is safe, or of a row which concept it is about.

In: rows' values in their order. Out: whether each is kept: as aware the safe ones alone, as unaware the unsafe ones
alone, and the rows of the concept asked for; how many were not. A label that is empty, missing in some rows, or does
not tell safe from unsafe (a `label` of 0 and 1: which is safe?) is refused, since the kinds would be mixed. Left out:
columns of words that say nothing of safety in any row, such as a `label` with topics.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from spin_llm.errors import SpinError
from spin_llm.settings import SHIPPED

FLAGS = {  # column -> what true says: safe?
    **dict.fromkeys(("is_safe", "safe", "is_response_safe", "response_is_safe", "response_safe"), True),
    **dict.fromkeys(("is_unsafe", "unsafe", "is_harmful", "harmful", "is_toxic", "toxic", "is_response_unsafe"), False),
}
WORDED = (
    *("label", "safety", "safety_label", "response_label", "response_harm_label", "response_safety_label"),
    "verdict",
)
YES, NO = ("true", "yes", "1", "1.0", "y", "t"), ("false", "no", "0", "0.0", "n", "f")
SAFE = ("safe", "aware", "harmless", "unharmful", "notharmful", "nonharmful", "nontoxic", "nottoxic", "benign")
UNSAFE = ("unsafe", "unaware", "harmful", "toxic", "notsafe", "nonsafe", "malicious")
PAIRED = ("unaware", "rejected", "unsafe")  # of a pair of columns: a label of the row is about the other one


class Labels:
    """What the label columns of one file say, row by row."""

    def __init__(self, origin: str, responses: str | None, concept: str | None) -> None:
        self.origin, self.responses, self.concept = origin, responses, concept
        self.dropped: Counter[str] = Counter()
        self.silent: set[str] = set()  # worded columns with a word that says nothing of safety
        self.telling = ""  # the first column that told safe from unsafe
        self.missing = ""  # the first row without any label
        self.other: Counter[str] = Counter()  # rows by the concept that they name

    def keep(self, values: Mapping[str, object], response: str | None, where: str) -> bool:
        """Whether the row's `response` is of the kind asked for. Raises SpinError for a label that does not say."""
        return self._of_concept(values) and (response is None or self._of_kind(values, response, where))

    def _of_concept(self, values: Mapping[str, object]) -> bool:
        named = values.get("concept")
        if self.concept is None or not isinstance(named, str):
            return True
        if named.strip().lower() not in {*SHIPPED, "over_refusal"} - {self.concept.lower()}:
            return True
        self.other[f"about {named.strip().lower()}"] += 1
        return False

    def _of_kind(self, values: Mapping[str, object], response: str, where: str) -> bool:
        """Without any label a row is kept; rows with and without a label are not mixed."""
        column, safe = self._safe(values, response, where)
        if column is None:
            self.missing = self.missing or where
            return True
        self.telling = self.telling or column
        if safe == (self.responses == "aware"):
            return True
        self.dropped[f"that {column} calls {'safe' if safe else 'unsafe'}"] += 1
        return False

    def _safe(self, values: Mapping[str, object], response: str, where: str) -> tuple[str | None, bool]:
        """(the column that says it, whether the response is safe) of one row; (None, ...) when none does."""
        own = {f"is_{response}_safe": True, f"{response}_is_safe": True, f"{response}_safe": True}
        flags = own if response in PAIRED or own.keys() & values.keys() else FLAGS
        skipped = {response, *(("safe", "unsafe") if response in ("safe", "unsafe") else ())}
        told: dict[str, bool] = {}
        for name in flags.keys() & values.keys() - skipped:
            if (said := flag(values[name])) is None:
                raise self._unclear(name, values[name], where)
            told[name] = said == flags[name]
        for name in [name for name in WORDED if flags is FLAGS and name in values and name != response]:
            value = values[name]
            word = re.sub(r"[\s_-]", "", value.lower()) if isinstance(value, str) else None
            if word in SAFE or word in UNSAFE:
                told[name] = word in SAFE
            elif word is None or word in (*YES, *NO, ""):
                if name not in self.silent:
                    raise self._unclear(name, value, where)
            else:
                self.silent.add(name)
        if len(set(told.values())) > 1:
            raise self._unclear(" and ".join(sorted(told)), "both", where)
        return next(iter(sorted(told.items())), (None, True))

    def _unclear(self, column: str, value: Any, where: str) -> SpinError:
        said = str(value)[:40] if isinstance(value, str | int | float | bool) else type(value).__name__
        return SpinError(
            f"{self.origin}, {where}: the column {column!r} says {said!a}, which does not tell whether the response is "
            "safe.",
            cause="a label that is empty, or whose numbers could mean either.",
            change="write safe or unsafe there, or true and false in a column is_safe; or remove the column.",
        )

    def left_out(self, some: bool) -> list[str]:
        """What was left out, as texts; `some`: whether anything is left. Raises SpinError when nothing is, and when
        labels say it of some rows only."""
        if self.telling and self.missing:
            raise SpinError(
                f"{self.origin}: the column {self.telling!r} says of some rows whether they are safe, and not of "
                f"{self.missing}.",
                change=f"fill in the column {self.telling!r} in every row, or remove it.",
            )
        counts = {**self.dropped, **self.other}
        texts = [f"{count} {'row' if count == 1 else 'rows'} {why}" for why, count in counts.items()]
        if not some and texts:
            raise SpinError(
                f"{self.origin} has no {self.responses or 'rows'}{' responses' if self.responses else ''} for "
                f"{self.concept or 'this use'}: left out are {', '.join(texts)}.",
                cause="a label or concept column says that these rows are something else than what was asked for.",
                change="give other data, or mend or remove that column.",
            )
        return texts


def flag(value: Any) -> bool | None:
    """True or false as files write it; None for anything else."""
    text = str(value).strip().lower() if isinstance(value, str | int | float) else ""
    return True if text in YES else False if text in NO else None
