"""transformers without its bars and advice.

In: nothing. Out: a context in which it prints nothing. Left out: loading (loading.py).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[list[str]]:
    """No progress bars, warnings or advice inside: this command prints its own. Yields the warnings, filled at the end.

    Left out: what is for programmers (deprecations), and the report of a load's keys, which `refuse_misfits` words.
    """
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    lines: list[str] = []
    heard: list[str] = []
    logger = logging.getLogger("transformers")
    before = logger.handlers[:]
    logger.handlers = [_Heard(lines)]
    theirs.set_verbosity_warning()
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield heard
    finally:
        logger.handlers = before
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
        lines += [_one_line(str(one.message)) for one in caught if not issubclass(one.category, UNHEARD)]
        heard += [line for line in dict.fromkeys(lines) if "LOAD REPORT" not in line]


UNHEARD = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)


class _Heard(logging.Handler):
    """Keeps warnings as single lines."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(_one_line(record.getMessage()))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:299]}…"
