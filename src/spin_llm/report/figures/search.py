"""The edits that a search tried.

In: the search section of the page. Out: a matplotlib figure. Left out: the rule of the pick (docs/search.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spin_llm.report.figures.canvas import ACCENT, CONTROL, INK, STYLE, bare, new_figure, picture_text
from spin_llm.report.sections.search import concepts_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = {"signed": "o", "coupled-signed": "s", "coupled": "^"}


def draw_search(search: Mapping[str, Any] | None) -> Figure | None:
    """Left: smallest gain over the concepts against perplexity, the front joined; right: gain of each concept over the
    number of weights. None when fewer than two edits were measured."""
    from matplotlib import rc_context

    rows = [row for row in (search or {}).get("trials", ()) if row["proxy"]]
    if not search or len(rows) < 2:
        return None
    concepts = concepts_of(search)
    limit = 100 * search["max_increase"]
    with rc_context(STYLE):
        figure = new_figure(9.4, 3.4)
        left, right = figure.subplots(1, 2)
        for row in rows:
            least = min(row["proxy"]["gains"][concept]["gain"] for concept in concepts)
            rule, picked = row["recipe"]["rule"], row["number"] == search["pick"]
            fit = 100 * row["proxy"]["increase"] <= limit
            left.plot(
                100 * row["proxy"]["increase"],
                least,
                MARKERS.get(rule, "D"),
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
        used = dict.fromkeys(row["recipe"]["rule"] for row in rows)
        for rule in used:
            left.plot([], [], MARKERS.get(rule, "D"), color=INK, markerfacecolor="none", label=picture_text(rule, 24))
        left.legend(fontsize=7.5, frameon=False)
        for number_, concept in enumerate(concepts):
            gains = [row["proxy"]["gains"][concept]["gain"] for row in rows]
            weights = [row["weights"] for row in rows]
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
