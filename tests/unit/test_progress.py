"""What a log is told of long work, and when a plan is corrected: by a clock of the tests' own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event

import pytest

from spin_llm import progress
from spin_llm.progress import EVERY, Console, Forecast, Pace, Pulse, told


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Waits(Event):
    """An event for which time passes while it is waited for: each wait does the next thing, the last one ends."""

    def __init__(self, clock: Clock, between: Sequence[Callable[[], object]]) -> None:
        super().__init__()
        self.clock, self.between, self.over = clock, list(between), Event()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        assert timeout <= 60, "at least a line a minute"
        if not self.between:
            self.over.set()
            return True
        self.clock.now += timeout
        self.between.pop(0)()
        return False


def test_a_log_shows_life_every_minute():
    clock, lines = Clock(), list[str]()
    pulse = Pulse("scoring fairness", 100, clock)
    waits = Waits(clock, [lambda: None, lambda: pulse.advance(10), lambda: pulse.advance(10)])
    with told(pulse, lines.append, waits):
        waits.over.wait()
    assert lines == [
        "scoring fairness: 0 of 100, 55 s so far",
        f"scoring fairness: 10 of 100, {600 / (2 * EVERY):.3g} a minute, about 16 min left",
        f"scoring fairness: 20 of 100, {1200 / (3 * EVERY):.3g} a minute, about 11 min left",
    ]


def test_what_an_earlier_run_did_is_no_rate():
    clock = Clock()
    pulse = Pulse("answers, base", 100, clock)
    pulse.advance(80)
    clock.now += 60
    assert pulse.line() == "answers, base: 80 of 100, 60 s so far"
    pulse.advance(10)
    assert pulse.line() == "answers, base: 90 of 100, 10 a minute, about 60 s left"


@pytest.mark.parametrize(("pace", "said"), [(1.0, 0), (1.3, 0), (3.0, 1), (0.25, 1)])
def test_a_plan_that_is_off_is_corrected_once(pace: float, said: int):
    clock, lines = Clock(), list[str]()
    forecast = Forecast(6000, lines.append, clock)
    for _ in range(200):
        clock.now += 30 * pace
        forecast.advance(30)
    assert len(lines) == said
    assert all(f"{pace:.1f} times as long as planned" in line for line in lines)


def test_a_plan_that_goes_on_counts_what_is_new():
    clock, lines = Clock(), list[str]()
    forecast = Forecast(1000, lines.append, clock)
    forecast.advance(500)  # it was there
    clock.now += 200
    forecast.advance(100)
    assert lines == ["the plan is corrected: about 13 min left, it takes 2.0 times as long as planned"]


# Paces


def test_what_does_not_grow_with_a_piece_is_not_multiplied():
    pace = Pace.through((80, 24.2), (320, 24.8))
    assert pace(1520) == pytest.approx(27.8)
    assert pace(1520, 1520) == pytest.approx(2 * 27.8)


@pytest.mark.parametrize(
    ("small", "large", "whole"),
    [
        ((80, 3.0), (320, 2.0), 2.0 * 1520 / 320),  # noise alone: by the larger piece
        ((80, 0.1), (320, 8.0), 8.0 * 1520 / 320),  # nothing takes less than no time to begin
        ((80, 2.0), (80, 2.0), 2.0 * 1520 / 80),  # one piece is all there is
    ],
)
def test_no_part_of_a_pace_is_negative(small: tuple[float, float], large: tuple[float, float], whole: float):
    pace = Pace.through(small, large)
    assert min(pace.start, pace.each) >= 0
    assert pace(1520) == pytest.approx(whole)


def test_pieces_are_timed_until_one_takes_long(monkeypatch: pytest.MonkeyPatch):
    clock, ran = Clock(), list[int]()
    monkeypatch.setattr(progress, "perf_counter", clock)

    def run(size: int) -> None:
        clock.now += 10 + 1 + size / 100 if not ran else 1 + size / 100  # the first one loads what it needs
        ran.append(size)

    pace = Pace.of(run, [(size, size) for size in (100, 400, 1000)], patience=4.0)
    assert ran == [100, 100, 400]
    assert (pace.start, pace.each) == pytest.approx((1.0, 0.01))
    ran.clear()
    assert Pace.of(run, [(100, 100), (200, 200)], patience=0.1)(1000) == pytest.approx(11.0), "never by one piece alone"


def test_bars_advance_the_plan():
    clock, said = Clock(), list[str]()
    forecast = Forecast(1000.0, said.append, clock)
    console = forecast.watching(Console(said.append), {"answers": 10.0})
    with console.bar("answers, base", 100) as advance:
        clock.now += 300
        advance(10)
    with console.bar("selecting again", 5) as advance:
        clock.now += 1
        advance(5)
    assert said == ["the plan is corrected: about 45 min left, it takes 3.0 times as long as planned"]
