"""How the edit was found: the edits that a search tried, and what a larger ratio does.

In: `search` and `ratio_table` of results.json. Out: matplotlib figures. Left out: the rule of the pick
(docs/search.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spin_llm.report.figures.canvas import ACCENT, CONTROL, INK, STYLE, bare, new_figure, picture_text
from spin_llm.report.sections.search import concepts_of
from spin_llm.results.edited import RatioTried
from spin_llm.results.searched import SearchRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINEAR = 0.1  # below this relative increase of perplexity the axis is linear
MARKERS = {"signed": "o", "coupled-signed": "s", "coupled": "^"}


def draw_search(search: SearchRecord | None) -> Figure | None:
    """Left: smallest gain over the concepts against perplexity, the front joined; right: gain of each concept over the
    number of weights. None when fewer than two edits were measured."""
    from matplotlib import rc_context

    rows = [(row, row.proxy) for row in search.trials if row.proxy] if search else []
    if not search or len(rows) < 2:
        return None
    concepts = concepts_of(search)
    limit = 100 * search.max_increase
    with rc_context(STYLE):
        figure = new_figure(9.4, 3.4)
        left, right = figure.subplots(1, 2)
        for row, proxy in rows:
            least = min(proxy.gains[concept].gain for concept in concepts)
            picked, fit = row.number == search.pick, 100 * proxy.increase <= limit
            left.plot(
                100 * proxy.increase,
                least,
                MARKERS.get(row.recipe.rule, "D"),
                color=ACCENT if fit else CONTROL,
                markersize=10 if picked else 5,
                markerfacecolor=ACCENT if picked else "none",
            )
        left.axvline(limit, color=ACCENT, linewidth=0.9, linestyle=":")
        left.axhline(0, color=INK, linewidth=0.6)
        left.set_xscale("symlog", linthresh=max(2 * limit, 1.0))
        left.xaxis.set_major_formatter("{x:g}")
        left.set_xlabel("increase of perplexity, percent", fontsize=8)
        left.set_title("smallest gain over the concepts, nats per token", fontsize=9, loc="left")
        for rule in dict.fromkeys(row.recipe.rule for row, _ in rows):
            left.plot([], [], MARKERS.get(rule, "D"), color=INK, markerfacecolor="none", label=picture_text(rule, 24))
        left.legend(fontsize=7.5, frameon=False)
        for number_, concept in enumerate(concepts):
            gains = [proxy.gains[concept].gain for _, proxy in rows]
            weights = [row.weights for row, _ in rows]
            colour = (ACCENT, CONTROL)[number_ % 2]
            right.plot(
                weights, gains, "os^D"[number_ % 4], color=colour, markersize=4.5, label=picture_text(concept, 24)
            )
        right.axhline(0, color=INK, linewidth=0.6)
        right.set_xscale("log")
        right.xaxis.set_major_formatter("{x:,.0f}")
        right.set_xlabel("edited weights", fontsize=8)
        right.set_title("gain of each concept, nats per token", fontsize=9, loc="left")
        right.legend(fontsize=7.5, frameon=False)
        for axes in (left, right):
            axes.tick_params(labelsize=8)
            axes.grid(color=CONTROL, alpha=0.25, linewidth=0.5)
            axes.minorticks_off()
            bare(axes)
    return figure


def draw_dose(ratio_table: Sequence[RatioTried], limit: float | None) -> Figure | None:
    """Edited weights and the increase of perplexity over the ratio; None when fewer than two ratios were measured."""
    from matplotlib import rc_context

    selected = [row for row in ratio_table if row.weights]
    tried = [row for row in selected if row.increase is not None]
    if len(tried) < 2:
        return None
    with rc_context(STYLE):
        figure = new_figure(9.4, 2.9)
        left, right = figure.subplots(1, 2)
        _dots(left, selected, [row.weights for row in selected])
        left.set_yscale("log")
        left.set_title("edited weights", fontsize=9, loc="left")
        increases = [100 * (row.increase or 0.0) for row in tried]
        _dots(right, tried, increases)
        if max(map(abs, increases)) > 100:
            right.set_yscale("symlog", linthresh=100 * LINEAR)
        right.set_title("increase of perplexity, percent", fontsize=9, loc="left")
        right.axhline(0, color=INK, linewidth=0.7)
        if limit is not None:
            right.axhline(100 * limit, color=ACCENT, linewidth=0.9, linestyle=":")
            right.annotate("limit", (0, 100 * limit), xycoords=("axes fraction", "data"), fontsize=7.5, va="bottom")
        left.yaxis.set_major_formatter("{x:,.0f}")
        right.yaxis.set_major_formatter("{x:,.0f}" if max(map(abs, increases)) > 10 else "{x:.1f}")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlabel("ratio", fontsize=8)
            axes.tick_params(labelsize=8)
            axes.grid(color=CONTROL, alpha=0.25, linewidth=0.5)
            axes.minorticks_off()
            bare(axes)
    return figure


def _dots(axes: Axes, rows: Sequence[RatioTried], values: Sequence[float]) -> None:
    """One dot a ratio: large and filled for the chosen one, hollow for those that are not allowed."""
    ratios = [row.ratio for row in rows]
    axes.plot(ratios, values, color=CONTROL, linewidth=0.8)
    for row, ratio, value in zip(rows, ratios, values, strict=True):
        face = ACCENT if row.chosen or row.allowed else "none"
        axes.plot(ratio, value, "o", color=ACCENT, markersize=8 if row.chosen else 4.5, markerfacecolor=face)
