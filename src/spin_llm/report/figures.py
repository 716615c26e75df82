"""Pictures as bytes, and the two that every report has: where the edit sits, and the differences on every axis.

In: the place of the edit, the rows of the table. Out: matplotlib figures, and their bytes as PNG, as SVG, and as SVG
for a page that has a light and a dark side (no background, ink as `currentColor`).
The object interface with the Agg and SVG canvases, no pyplot: nothing global changes, and equal input gives equal
bytes (fixed hash salt, no date). Left out: pictures of parts that a run may lack (charts.py).
"""

from __future__ import annotations

import io
import re
import warnings
from html import escape
from typing import TYPE_CHECKING, Any

from spin_llm.report.place import Place
from spin_llm.report.table import Row
from spin_llm.report.wording import CAPABILITY_AXES, POINTS, axis_label, has_interval, is_finite, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1d2126"  # replaced by currentColor in the page; nothing else may have this colour
ACCENT = "#2f79b5"  # legible on white and on near-black
CONTROL = "#8b929b"
ANNOTATED_LAYERS = 40  # above this a number does not fit into a cell
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with dollar signs is a name
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
}


def new_figure(width: float, height: float) -> Figure:
    """A figure of `width` x `height` inches that belongs to no pyplot state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


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


def draw_differences(rows: list[Row]) -> Figure:
    """Dot plot: the difference of every axis and control with its 95% interval; one panel for each unit."""
    from matplotlib import rc_context

    panels = [[row for row in rows if row.axis not in CAPABILITY_AXES]]
    panels += [[row for row in rows if row.axis == axis] for axis in CAPABILITY_AXES]
    panels = [panel for panel in panels if any(is_finite(row.result["delta"]) for row in panel)]
    lines = sum(len(panel) for panel in panels)
    with rc_context(STYLE):
        figure = new_figure(9.4, 0.62 * len(panels) + 0.3 * lines)
        spaces = figure.add_gridspec(len(panels), 1, height_ratios=[len(panel) + 0.4 for panel in panels])
        for place, panel in enumerate(panels):
            _draw_panel(figure.add_subplot(spaces[place]), panel)
    return figure


def _draw_panel(axes: Axes, rows: list[Row]) -> None:
    scale = 100.0 if unit_of(rows[0].axis) == POINTS else 1.0
    for place, row in enumerate(rows):
        if not is_finite(row.result["delta"]) or row.verdict == "no reading":
            continue
        colour = ACCENT if row.control is None and row.verdict != "not measurable" else CONTROL
        if has_interval(row.result["ci95"]):
            ends = [scale * end for end in row.result["ci95"]]
            axes.plot(ends, [place, place], color=colour, linewidth=1.8 if row.control is None else 1.1)
        filled = colour if row.control is None and row.verdict != "not measurable" else "none"
        size = 6.5 if row.control is None else 4.5
        axes.plot(scale * row.result["delta"], place, "o", color=colour, markerfacecolor=filled, markersize=size)
    axes.axvline(0, color=INK, linewidth=0.7)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [_line_name(row) for row in rows])
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_fontsize(9 if row.control is None else 7.5)
    axes.set_xlabel(_unit(rows[0].axis), fontsize=8)
    axes.grid(axis="x", color=CONTROL, alpha=0.25, linewidth=0.5)
    axes.tick_params(axis="x", labelsize=8)
    bare(axes)


def _line_name(row: Row) -> str:
    if row.control is not None:
        return f"control {picture_text(row.control)}"
    return axis_label(row.axis) + (f"\n({row.verdict})" if row.verdict in ("not measurable", "no reading") else "")


def _unit(axis: str) -> str:
    unit = unit_of(axis)
    return unit if axis == "kl" else f"difference in {unit}"


def picture_text(text: str, longest: int = 40) -> str:
    """A name from outside as a picture can hold it: printable, on one line, not too long."""
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def bare(axes: Axes) -> None:
    """No ticks and no frame."""
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def lay_out(figure: Figure) -> None:
    """Place the panels once, for PNG and SVG alike; rounded, since the solver's last digits vary."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(float(side), 3) for side in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))


def png_bytes(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        lay_out(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a phrase in a script that the font lacks shows as boxes
        figure.savefig(buffer, format="png", dpi=180, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def svg_text(figure: Figure, salt: str) -> str:
    """The figure as SVG without a background; `salt` makes its element ids, and differs between figures of one page."""
    from matplotlib import rc_context

    nothing: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    buffer = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="svg", facecolor="none", metadata=nothing)
    return re.sub(r"[ \t]+$", "", buffer.getvalue(), flags=re.MULTILINE)


def on_white(svg: str) -> str:
    """The SVG with a white background, as a file of its own."""
    return re.sub(r"(<svg [^>]*>)", r'\1\n <rect width="100%" height="100%" fill="white"/>', svg, count=1)


def inline_svg(svg: str, description: str) -> str:
    """The SVG to be put into a page: no prologue or namespaces, ink as `currentColor`, a name for screen readers."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # matplotlib's `*` rule would reach the whole page
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # figure_1, axes_1, ... repeat from figure to figure
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1)
