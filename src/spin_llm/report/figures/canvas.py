"""Pictures as bytes.

In: a matplotlib figure. Out: its bytes as PNG, as SVG, and as SVG for a page that has a light and a dark side (no
background, ink as `currentColor`). The object interface with the Agg and SVG canvases, no pyplot: nothing global
changes, and equal input gives equal bytes (fixed hash salt, no date). Left out: what is drawn (the modules beside).
"""

from __future__ import annotations

import io
import re
import warnings
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1d2126"  # replaced by currentColor in the page; nothing else may have this colour
ACCENT = "#2f79b5"  # legible on white and on near-black
CONTROL = "#8b929b"
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
