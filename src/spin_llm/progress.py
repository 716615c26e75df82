"""How long work says how far it is.

In: a title and a total. Out: a context manager that gives a function to call with the amount newly done. The library is
silent by default; the command passes progress bars. Left out: how a bar looks (cli/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

Advance = Callable[[int], None]


@contextmanager
def no_bar(title: str, total: int) -> Iterator[Advance]:
    yield lambda done: None


@dataclass(frozen=True)
class Console:
    """Where a stage talks to: `say` takes one line, `bar(title, total)` is a context manager around long work."""

    say: Callable[[str], None] = lambda line: None
    bar: Callable[[str, int], AbstractContextManager[Advance]] = no_bar


SILENT = Console()


Say = Callable[[str], None]
