"""How the edit was found: the edits tried, the survivors and the pick, for a page.

In: the `search` part of results.json. Out: rows of texts. Absent parts come out empty. Left out: the rule of the pick
itself (docs/search.md); the page repeats the reason that the search recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spin_llm.report.words import NOTHING, axis_label, increase_text, number
from spin_llm.results.measured import ANSWERED
from spin_llm.results.searched import Gain, Rates, SearchRecord, Trial


@dataclass(frozen=True)
class Tried:
    """One edit: texts for a table; `gains` in the order of the concepts."""

    number: int
    recipe: str
    weights: int
    increase: str
    kl: str
    gains: list[str]
    front: bool
    picked: bool


@dataclass(frozen=True)
class Survivor:
    """Rates on the search questions, base and edited, in the order of the axes."""

    number: int
    rates: list[str]
    sound: bool
    picked: bool


@dataclass(frozen=True)
class Search:
    concepts: list[str]
    axes: list[str]
    tried: list[Tried]
    survivors: list[Survivor]
    importance: list[tuple[str, str]]
    found: bool
    why: str
    limit: str
    scored: str


def search_part(search: SearchRecord | None) -> Search | None:
    """The search as texts, the trials in their order; None when nothing was searched."""
    if not search:
        return None
    concepts = concepts_of(search)
    rated = [(axis, rate) for row in search.survivors for axis, rate in row.rates.items()]
    silent = any(axis == ANSWERED and min(rate.base, rate.edited) < 1 for axis, rate in rated)
    axes = list(dict.fromkeys(axis for axis, _ in rated if silent or axis != ANSWERED))
    return Search(
        concepts=[axis_label(concept) for concept in concepts],
        axes=[axis_label(axis) for axis in axes],
        tried=[tried(row, search, concepts) for row in search.trials],
        survivors=[
            Survivor(
                row.number,
                [rate_text(row.rates.get(axis), axis) for axis in axes],
                row.sound,
                row.number == search.pick,
            )
            for row in search.survivors
        ],
        importance=[(name, f"{share:.0%}") for name, share in search.importance.items()],
        found=search.found,
        why=search.why,
        limit=f"{search.max_increase:.1%}",
        scored="the model's own answers" if search.responses == "own" else "the responses of the data",
    )


def concepts_of(search: SearchRecord) -> list[str]:
    """The concepts that gains were measured for."""
    return next((list(row.proxy.gains) for row in search.trials if row.proxy), [])


def tried(row: Trial, search: SearchRecord, concepts: Sequence[str]) -> Tried:
    proxy = row.proxy
    gains = [gain_text(proxy.gains[concept]) if proxy else row.why or NOTHING for concept in concepts]
    return Tried(
        number=row.number,
        recipe=row.recipe.words(),
        weights=row.weights,
        increase=increase_text(row.increase),
        kl=f"{proxy.kl:.4f}" if proxy else NOTHING,
        gains=gains,
        front=row.number in search.front,
        picked=row.number == search.pick,
    )


def gain_text(gain: Gain) -> str:
    """A gain of the margin with its 95% interval, in nats per token."""
    half = 1.96 * gain.error
    return f"{gain.gain:+.3f} ({gain.gain - half:+.3f} to {gain.gain + half:+.3f})"


def rate_text(rate: Rates | None, axis: str) -> str:
    return f"{number(rate.base, axis)} → {number(rate.edited, axis)}" if rate else NOTHING


def text_lines(search: SearchRecord) -> list[str]:
    """The search as aligned text: every edit, the survivors' rates, the pick and why."""
    part = search_part(search)
    assert part is not None
    widths = [max(len(name), 26) for name in part.concepts]
    gains = "  ".join(f"{name:>{width}}" for name, width in zip(part.concepts, widths, strict=True))
    lines = [f"{'edit':>6} {'weights':>9} {'perplexity':>11} {'KL':>8}  {gains}  recipe"]
    for row in part.tried:
        cells = "  ".join(f"{gain:>{width}}" for gain, width in zip(row.gains, widths, strict=True))
        mark = "*" if row.picked else "+" if row.front else " "
        lines.append(f"{row.number:>5}{mark} {row.weights:>9,} {row.increase:>11} {row.kl:>8}  {cells}  {row.recipe}")
    if part.survivors:
        lines.append("search questions, base → edited: " + ", ".join(part.axes))
        for one in part.survivors:
            mark, beyond = "*" if one.picked else " ", "" if one.sound else " (beyond the limits)"
            lines.append(f"{one.number:>5}{mark} {', '.join(one.rates)}{beyond}")
    return [*lines, f"* picked, + on the front. {part.why}"]
