"""Where the edit sits.

In: the place of the edit. Out: a heat map as a matplotlib figure. Left out: the numbers (report/sections/location.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spin_llm.report.figures.canvas import ACCENT, CONTROL, INK, STYLE, bare, new_figure
from spin_llm.report.sections.location import Place

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANNOTATED_LAYERS = 40  # above this a number does not fit into a cell


def draw_place(place: Place) -> Figure:
    """Heat map: one column a layer, one row a matrix, the number of edited weights as the depth of one colour."""
    from matplotlib import rc_context
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    # from transparent to opaque, so that the same picture works on a light and on a dark page
    colours = LinearSegmentedColormap.from_list("edited", [(*to_rgb(ACCENT), 0.0), (*to_rgb(ACCENT), 1.0)])
    counts = [list(column) for column in zip(*place.counts, strict=True)]  # matrices x layers
    most = max(max(row) for row in counts)
    with rc_context(STYLE):
        figure = new_figure(9.4, 0.95 + 0.34 * len(place.columns))
        axes = figure.add_subplot()
        axes.pcolormesh(counts, cmap=colours, vmin=0, vmax=max(most, 1), edgecolors=f"{CONTROL}40", linewidth=0.5)
        axes.invert_yaxis()
        axes.set_yticks([row + 0.5 for row in range(len(place.columns))], place.columns)
        step = 1 if len(place.layers) <= ANNOTATED_LAYERS else 5
        axes.set_xticks([layer + 0.5 for layer in place.layers[::step]], [str(layer) for layer in place.layers[::step]])
        axes.set_xlabel("decoder layer")
        bare(axes)
        if len(place.layers) <= ANNOTATED_LAYERS:
            for row, values in enumerate(counts):
                for layer, count in enumerate(values):
                    if count:
                        ink = "white" if count > 0.6 * most else INK
                        text = str(count) if count < 1000 else f"{count / 1000:.0f}k"
                        axes.text(layer + 0.5, row + 0.5, text, ha="center", va="center", fontsize=6.5, color=ink)
    return figure
