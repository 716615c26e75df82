"""The one exception type for users' mistakes.

In: what happened, the likely cause, what to change. Out: one readable message; the command prints it and exits with
code 2; texts of others, made fit to be printed. Left out: our own invariants, which are `assert`s, and programming
errors, which keep their traceback.
"""

from __future__ import annotations

import re

# Characters that a terminal or a reader obeys instead of showing: controls but line ends and tabs, and those that turn
# the direction of writing around.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
MOST = 3000  # characters of a part, the middle is left out: a damaged file may hold names of any length


class SpinError(Exception):
    """A mistake the user can mend; `str()` gives one message: what happened, likely cause, what to change."""

    def __init__(self, what: str, *, cause: str = "", change: str = "") -> None:
        what, cause, change = (
            text if len(text) <= MOST else f"{text[: MOST // 2]} … {text[-MOST // 2 :]}"
            for text in (what, cause, change)
        )
        self.what, self.cause, self.change = what, cause, change
        parts = (what, cause and f"Likely cause: {cause}", change and f"To change it: {change}")
        super().__init__("\n".join(filter(None, parts)))


def visible(text: str) -> str:
    """The text with characters that would be obeyed instead of shown as their numbers: `<U+001B>`."""
    return OBEYED.sub(lambda found: f"<U+{ord(found[0]):04X}>", text)
