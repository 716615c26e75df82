"""How long work says how far it is.

In: a title and a total; pieces of work to time. Out: a context manager that gives a function to call with the amount
newly done; lines for a log, at least one a minute; how long the whole takes; an estimate held against the clock. The
library is silent by default; the command passes progress bars. Left out: how a bar looks (cli/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from threading import Event, Thread
from time import monotonic, perf_counter
from typing import TypeVar

Piece = TypeVar("Piece")
Advance = Callable[[int], None]
Say = Callable[[str], None]
EVERY = 55.0  # seconds between the lines of a log
AT_ONCE = 1.0  # seconds in which what an earlier run did is counted again
PATIENCE = 3.0  # seconds; a piece of work that took longer is not followed by a larger one to time
OFF = 1.5  # an estimate that is off by this factor is corrected


def unseen(done: int) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class Console:
    """Where a stage talks to: `say` takes one line, `bar(title, total)` is a context manager around long work."""

    say: Say = lambda line: None
    bar: Callable[[str, int], AbstractContextManager[Advance]] = lambda title, total: nullcontext(unseen)


SILENT = Console()


@dataclass
class Pulse:
    """How far one piece of work is, for a log. `found` was done before it began."""

    title: str
    total: int
    clock: Callable[[], float] = monotonic
    done: int = 0
    found: int = 0
    start: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.clock()

    def advance(self, done: int) -> None:
        self.done += done
        if self.clock() - self.start < AT_ONCE:
            self.found = self.done

    def line(self) -> str:
        """Done, total, rate, and the time left at this rate."""
        seconds, new = self.clock() - self.start, self.done - self.found
        so_far = f"{self.title}: {self.done} of {self.total}"
        if new <= 0:
            return f"{so_far}, {duration(seconds)} so far"
        left = max(0, self.total - self.done) * seconds / new
        return f"{so_far}, {60 * new / seconds:.3g} a minute, about {duration(left)} left"


@contextmanager
def told(pulse: Pulse, say: Say, ended: Event | None = None) -> Iterator[Advance]:
    """Say a piece of work's line every minute while it lasts, also where nothing of it gets done."""
    ended = ended or Event()

    def tell() -> None:
        with suppress(OSError):  # a reader that left hears no more
            while not ended.wait(EVERY):
                say(pulse.line())

    thread = Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield pulse.advance
    finally:
        ended.set()
        thread.join()


@dataclass(frozen=True)
class Pace:
    """Seconds that a piece of work takes by its size: `start`, and `each` for a unit.

    What does not grow with a piece (weights that are read, threads that wait for each other) is most of a small one:
    by its seconds for a unit alone a large one would seem to take many times as long as it does.
    """

    start: float
    each: float

    def __call__(self, *sizes: float) -> float:
        """The seconds of pieces of such sizes."""
        return len(sizes) * self.start + self.each * sum(sizes)

    @classmethod
    def through(cls, small: tuple[float, float], large: tuple[float, float]) -> Pace:
        """The line through two timed pieces (size, seconds), of which neither part is negative."""
        (few, short), (many, long) = small, large
        each = min(max(0.0, (long - short) / (many - few) if many > few else 0.0), long / many)
        return cls(long - each * many, each) if each else cls(0.0, long / many)

    @classmethod
    def of(
        cls, run: Callable[[Piece], object], pieces: Iterable[tuple[float, Piece]], patience: float = PATIENCE
    ) -> Pace:
        """`run` timed on pieces (size, piece) of growing size; the first one runs once before, unmeasured."""
        timed: list[tuple[float, float]] = []
        for size, piece in pieces:
            for _ in range(1 if timed else 2):
                start = perf_counter()
                run(piece)
                seconds = perf_counter() - start
            timed.append((size, seconds))
            if seconds > patience and len(timed) > 1:  # of one piece alone nothing is known of a larger one
                break
        return cls.through(timed[0], timed[-1])


@dataclass
class Forecast:
    """A plan of `planned` seconds held against the clock: said again when it is off by much. `found` was done before
    it began, `finished` since then, both in planned seconds."""

    planned: float
    say: Say
    clock: Callable[[], float] = monotonic
    found: float = 0.0
    finished: float = 0.0
    seconds: float = 0.0
    factor: float = 1.0
    last: float = field(init=False)

    def __post_init__(self) -> None:
        self.last = self.clock()

    def watching(self, console: Console, each: Mapping[str, float]) -> Console:
        """A console whose bars advance this plan too; `each`: seconds of a unit by the first words of a title."""

        @contextmanager
        def bar(title: str, total: int) -> Iterator[Advance]:
            seconds = each.get(title.partition(",")[0], 0.0)
            with console.bar(title, total) as shown:

                def advance(done: int) -> None:
                    shown(done)
                    if seconds:
                        self.advance(done * seconds)

                yield advance

        return Console(console.say, bar)

    def advance(self, planned: float) -> None:
        """Work is done for which so many seconds were planned; what took next to none was there."""
        now = self.clock()
        took, self.last = now - self.last, now
        if took * 100 < planned:
            self.found += planned
            return
        self.finished += planned
        self.seconds += took
        if self.seconds < EVERY or self.finished <= 0:
            return
        factor = self.seconds / self.finished
        if max(factor / self.factor, self.factor / factor) >= OFF:
            self.factor = factor
            left = max(0.0, self.planned - self.found - self.finished) * factor
            self.say(
                f"the plan is corrected: about {duration(left)} left, it takes {factor:.1f} times as long as planned"
            )


def duration(seconds: float) -> str:
    """A time for people: seconds below two minutes, then minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"
