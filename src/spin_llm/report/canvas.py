"""Pictures as bytes.

In: a matplotlib figure. Out: its bytes as PNG, as SVG, and as SVG for a page that has a light and a dark side (no
background, ink as `currentColor`). The object interface with the Agg and SVG canvases, no pyplot: nothing global
changes, and equal input gives equal bytes (fixed hash salt, no date). Left out: what is drawn (sections/).
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spin_llm.outputs import writing
from spin_llm.report.words import POINTS, unit_of
from spin_llm.results.measured import AxisResult, FacetRates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1d2126"  # replaced by currentColor in the page; nothing else may have this colour
ACCENT = "#2f79b5"  # legible on white and on near-black
CONTROL = "#8b929b"
STYLE: dict[Any, Any] = {  # matplotlib types its keys, one by one
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


@contextmanager
def styled() -> Iterator[None]:
    """Our style, inside or, as a decorator, in a function that draws."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of `width` x `height` inches that belongs to no pyplot state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def picture_text(text: str, longest: int = 40) -> str:
    """A name from outside as a picture can hold it: printable, on one line, not too long."""
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def bare(axes: Axes, size: float = 9, axis: Literal["x", "both"] = "both", *, grid: bool = False) -> None:
    """No ticks and no frame; the numbers of an axis in a font of `size`, and a `grid` that hardly shows."""
    axes.tick_params(axis=axis, labelsize=size)
    if grid:
        axes.grid(axis=axis, color=CONTROL, alpha=0.25, linewidth=0.5)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def draw_interval(
    axes: Axes,
    place: float,
    result: AxisResult | FacetRates,
    axis: str,
    colour: str,
    *,
    sizes: tuple[float, float] = (1.4, 4.5),
    filled: bool = True,
) -> None:
    """A difference on `axis` as a dot with its interval, on the line `place`; `sizes`: of the line and the dot."""
    (width, dot), scale = sizes, factor_of(axis)
    if result.ci95:
        axes.plot([scale * end for end in result.ci95], [place, place], color=colour, linewidth=width)
    face = colour if filled else "none"
    axes.plot(scale * (result.delta or 0.0), place, "o", color=colour, markerfacecolor=face, markersize=dot)


def factor_of(axis: str) -> float:
    """Rates are drawn in percent."""
    return 100.0 if unit_of(axis) == POINTS else 1.0


def name_lines(axes: Axes, names: Sequence[str], lines: int, size: float) -> None:
    """The names of the lines 0, 1, ... from above, with room for `lines` of them."""
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_ylim(lines - 0.5, -0.5)


def write_png(path: Path, figure: Figure) -> None:
    """As PNG; the panels are placed once, for PNG and SVG alike, and rounded, since the solver's last digits vary."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a phrase in a script that the font lacks shows as boxes
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes in figure.axes:
            left, bottom, width, height = (round(float(side), 3) for side in axes.get_position().bounds)
            axes.set_position((left, bottom, width, height))
        with writing(path) as part:
            figure.savefig(part, format="png", dpi=180, facecolor="white", metadata={"Software": None})


def svg_text(figure: Figure, salt: str) -> str:
    """The figure as SVG without a background; `salt` makes its element ids, and differs between figures of one page."""
    from matplotlib import rc_context

    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
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
