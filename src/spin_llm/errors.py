"""The one exception type for users' mistakes.

In: what happened, the likely cause, what to change. Out: one readable message; the command prints it and exits with
code 2. Left out: our own invariants, which are `assert`s, and programming errors, which keep their traceback.
"""

from __future__ import annotations


class SpinError(Exception):
    """A mistake the user can mend.

    `str()` gives one message: what happened, likely cause, what to change.
    """

    def __init__(self, what: str, *, cause: str = "", change: str = "") -> None:
        self.what, self.cause, self.change = what, cause, change
        parts = [what]
        if cause:
            parts.append(f"Likely cause: {cause}")
        if change:
            parts.append(f"To change it: {change}")
        super().__init__("\n".join(parts))
