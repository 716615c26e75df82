"""How the edit was found: the edits tried, the survivors and the pick, as texts and as a picture; and what a larger
ratio does.

In: `search` and `ratio_table` of results.json. Out: texts of single cells for a page, aligned lines for a terminal;
matplotlib figures. Left out: the rule of the pick itself (docs/search.md); the page repeats the reason that the search
recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spin_llm.report.canvas import ACCENT, CONTROL, INK, bare, new_figure, picture_text, styled
from spin_llm.report.words import NOTHING, axis_label, increase_text, number
from spin_llm.results.edited import RatioTried
from spin_llm.results.measured import ANSWERED
from spin_llm.results.searched import Gain, SearchRecord, SurvivorRecord, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINEAR = 0.1  # below this relative increase of perplexity the axis is linear
MARKERS = {"signed": "o", "coupled-signed": "s", "coupled": "^"}


def concepts_of(search: SearchRecord) -> list[str]:
    """The concepts that gains were measured for."""
    return next((list(row.proxy.gains) for row in search.trials if row.proxy), [])


def rated_axes(search: SearchRecord) -> list[str]:
    """The axes that survivors were rated on; `answered` only where a question has no answer."""
    rated = [(axis, rate) for row in search.survivors for axis, rate in row.rates.items()]
    silent = any(axis == ANSWERED and min(rate.base, rate.edited) < 1 for axis, rate in rated)
    return list(dict.fromkeys(axis for axis, _ in rated if silent or axis != ANSWERED))


def trial_cells(search: SearchRecord, row: Trial) -> list[str]:
    """Increase of perplexity, KL, and the gain of every concept."""
    if not row.proxy:
        return [increase_text(row.increase), NOTHING, *[row.why or NOTHING] * len(concepts_of(search))]
    gains = (gain_text(row.proxy.gains[concept]) for concept in concepts_of(search))
    return [increase_text(row.increase), f"{row.proxy.kl:.4f}", *gains]


def survivor_cells(search: SearchRecord, row: SurvivorRecord) -> list[str]:
    """Base and edited rate on the search questions, in the order of `rated_axes`."""
    rates = [(axis, row.rates.get(axis)) for axis in rated_axes(search)]
    return [f"{number(rate.base, axis)} → {number(rate.edited, axis)}" if rate else NOTHING for axis, rate in rates]


def gain_text(gain: Gain) -> str:
    """A gain of the margin with its 95% interval, in nats per token."""
    half = 1.96 * gain.error
    return f"{gain.gain:+.3f} ({gain.gain - half:+.3f} to {gain.gain + half:+.3f})"


def text_lines(search: SearchRecord) -> list[str]:
    """The search as aligned text: every edit, the survivors' rates, the pick and why."""
    names = [axis_label(concept) for concept in concepts_of(search)]
    widths = [max(len(name), 26) for name in names]

    def aligned(texts: Sequence[str]) -> str:
        return "  ".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))

    lines = [f"{'edit':>6} {'weights':>9} {'perplexity':>11} {'KL':>8}  {aligned(names)}  recipe"]
    for row in search.trials:
        increase, kl, *gains = trial_cells(search, row)
        mark = "*" if row.number == search.pick else "+" if row.number in search.front else " "
        numbers = f"{row.number:>5}{mark} {row.weights:>9,} {increase:>11} {kl:>8}"
        lines.append(f"{numbers}  {aligned(gains)}  {row.recipe.words()}")
    if search.survivors:
        lines.append("search questions, base → edited: " + ", ".join(map(axis_label, rated_axes(search))))
        for one in search.survivors:
            mark, beyond = "*" if one.number == search.pick else " ", "" if one.sound else " (beyond the limits)"
            lines.append(f"{one.number:>5}{mark} {', '.join(survivor_cells(search, one))}{beyond}")
    return [*lines, f"* picked, + on the front. {search.why}"]


@styled()
def draw_search(search: SearchRecord | None) -> Figure | None:
    """Left: smallest gain over the concepts against perplexity, the front joined; right: gain of each concept over the
    number of weights. None when fewer than two edits were measured."""
    rows = [(row, row.proxy) for row in search.trials if row.proxy] if search else []
    if not search or len(rows) < 2:
        return None
    concepts, limit = concepts_of(search), 100 * search.max_increase
    figure = new_figure(9.4, 3.4)
    left, right = figure.subplots(1, 2)
    for row, proxy in rows:
        picked, fit = row.number == search.pick, 100 * proxy.increase <= limit
        left.plot(
            100 * proxy.increase,
            min(proxy.gains[concept].gain for concept in concepts),
            MARKERS.get(row.recipe.rule, "D"),
            color=ACCENT if fit else CONTROL,
            markersize=10 if picked else 5,
            markerfacecolor=ACCENT if picked else "none",
        )
    left.axvline(limit, color=ACCENT, linewidth=0.9, linestyle=":")
    left.axhline(0, color=INK, linewidth=0.6)
    left.set_xscale("symlog", linthresh=max(2 * limit, 1.0))
    for rule in dict.fromkeys(row.recipe.rule for row, _ in rows):
        left.plot([], [], MARKERS.get(rule, "D"), color=INK, markerfacecolor="none", label=picture_text(rule, 24))
    for place, concept in enumerate(concepts):
        gains = [proxy.gains[concept].gain for _, proxy in rows]
        colour, label = (ACCENT, CONTROL)[place % 2], picture_text(concept, 24)
        right.plot(
            [row.weights for row, _ in rows], gains, "os^D"[place % 4], color=colour, markersize=4.5, label=label
        )
    right.axhline(0, color=INK, linewidth=0.6)
    right.set_xscale("log")
    for axes, numbers, across, title in (
        (left, "{x:g}", "increase of perplexity, percent", "smallest gain over the concepts, nats per token"),
        (right, "{x:,.0f}", "edited weights", "gain of each concept, nats per token"),
    ):
        axes.legend(fontsize=7.5, frameon=False)
        _dress(axes, numbers, across, title)
    return figure


@styled()
def draw_dose(ratio_table: Sequence[RatioTried], limit: float | None) -> Figure | None:
    """Edited weights and the increase of perplexity over the ratio; None when fewer than two ratios were measured."""
    selected = [row for row in ratio_table if row.weights]
    tried = [row for row in selected if row.increase is not None]
    if len(tried) < 2:
        return None
    figure = new_figure(9.4, 2.9)
    left, right = figure.subplots(1, 2)
    _dots(left, selected, [row.weights for row in selected])
    left.set_yscale("log")
    increases = [100 * (row.increase or 0.0) for row in tried]
    most = max(map(abs, increases))
    _dots(right, tried, increases)
    if most > 100:
        right.set_yscale("symlog", linthresh=100 * LINEAR)
    right.axhline(0, color=INK, linewidth=0.7)
    if limit is not None:
        right.axhline(100 * limit, color=ACCENT, linewidth=0.9, linestyle=":")
        right.annotate("limit", (0, 100 * limit), xycoords=("axes fraction", "data"), fontsize=7.5, va="bottom")
    left.yaxis.set_major_formatter("{x:,.0f}")
    right.yaxis.set_major_formatter("{x:,.0f}" if most > 10 else "{x:.1f}")
    for axes, title in ((left, "edited weights"), (right, "increase of perplexity, percent")):
        axes.set_xscale("log")
        _dress(axes, "{x:g}", "ratio", title)
    return figure


def _dress(axes: Axes, numbers: str, across: str, title: str) -> None:
    """Titles, and numbers of the horizontal axis in the format `numbers`."""
    axes.xaxis.set_major_formatter(numbers)
    axes.set_xlabel(across, fontsize=8)
    axes.set_title(title, fontsize=9, loc="left")
    axes.minorticks_off()
    bare(axes, 8, grid=True)


def _dots(axes: Axes, rows: Sequence[RatioTried], values: Sequence[float]) -> None:
    """One dot a ratio: large and filled for the chosen one, hollow for those that are not allowed."""
    axes.plot([row.ratio for row in rows], values, color=CONTROL, linewidth=0.8)
    for row, value in zip(rows, values, strict=True):
        face = ACCENT if row.chosen or row.allowed else "none"
        axes.plot(row.ratio, value, "o", color=ACCENT, markersize=8 if row.chosen else 4.5, markerfacecolor=face)
