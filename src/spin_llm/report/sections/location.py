"""Where the edit sits, what the sets of weights share, and what would be chosen from other examples.

In: `edit`, `overlap` and `stability` of results.json. Out: a `Place`, a layers x matrices table of counts with its
totals, and its heat map; an `Overlap`, three sets drawn as a Venn diagram of equal circles (the numbers count, not the
areas), any other number as an upset plot; sentences. Absent parts come out empty. Left out: choosing and resampling.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spin_llm.report.canvas import ACCENT, CONTROL, INK, bare, name_lines, new_figure, picture_text, styled
from spin_llm.results.edited import Edit, Regions, Stability, matrix_column

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANNOTATED_LAYERS = 40  # above this a number does not fit into a cell
# Centres of the three circles, radius 1, and where the number of each region stands.
CENTRES = ((-0.55, 0.4), (0.55, 0.4), (0.0, -0.55))
PLACES = {
    (0,): (-0.98, 0.62), (1,): (0.98, 0.62), (2,): (0.0, -1.12),
    (0, 1): (0.0, 0.86), (0, 2): (-0.6, -0.27), (1, 2): (0.6, -0.27), (0, 1, 2): (0.0, 0.1),
}  # fmt: skip
NAMES = ((-0.9, 1.5, "right"), (0.9, 1.5, "left"), (0.0, -1.72, "center"))
REGIONS = 24  # columns of an upset plot; the rest is in the table


@dataclass(frozen=True)
class Kind:
    """All matrices of one name over the layers. `share` is the edited fraction of their entries."""

    name: str
    matrices: int
    weights: int
    share: float


@dataclass(frozen=True)
class Place:
    """`counts[layer][column]` edited weights; `layers` and `columns` name the two axes."""

    layers: list[int]
    columns: list[str]
    counts: list[list[int]]
    kinds: list[Kind]


def edit_place(edit: Edit) -> Place:
    """Count the edited weights per layer and matrix; layers up to the last one named, those without an edit as 0."""
    weights: Counter[tuple[int, str]] = Counter()
    by_kind: dict[str, list[str]] = {}
    for name, count in edit.per_matrix.items():
        layer = edit.layers[name]
        column = matrix_column(name, layer)
        weights[layer, column] += count
        by_kind.setdefault(column, []).append(name)
    layers = list(range(max(layer for layer, _ in weights) + 1)) if weights else []
    columns = list(by_kind)
    kinds = []
    for column, names in by_kind.items():
        edited = sum(edit.per_matrix[name] for name in names)
        entries = sum(math.prod(edit.shapes[name]) for name in names)
        kinds.append(Kind(column, len(names), edited, edited / max(entries, 1)))
    return Place(layers, columns, [[weights[layer, column] for column in columns] for layer in layers], kinds)


@dataclass(frozen=True)
class Overlap:
    """Top sets and how they meet: `regions` as (names of the sets, weights in exactly these), largest first; and how
    many `weights` the edit has, which another rule than `coupled`, or a choice of layers, takes of them."""

    names: list[str]
    concepts: list[str]
    protect: list[str]
    regions: list[tuple[frozenset[str], int]]
    weights: int | None = None

    @property
    def taken(self) -> str:
        """The size of the edited region; where the edit has other weights than all of it, how many."""
        size = self.size(self.edited)
        return f"{size:,}" + (f"\n{self.weights:,} edited" if self.weights not in (None, size) else "")

    @property
    def edited(self) -> frozenset[str]:
        """The region that the rule `coupled` takes: in every concept's set and in no protected one."""
        return frozenset(self.concepts)

    def size(self, names: frozenset[str]) -> int:
        return sum(size for region, size in self.regions if region == names)

    def total(self, name: str) -> int:
        return sum(size for region, size in self.regions if name in region)

    def label(self, region: frozenset[str]) -> str:
        return " and ".join(name for name in self.names if name in region)


def overlap_part(overlap: Regions | None, weights: int | None = None) -> Overlap | None:
    """The exclusive regions of the top sets, `A&B` being what is in A and in B and in no other set."""
    if not overlap or not overlap.regions:
        return None
    regions = [(frozenset(key.split("&")), size) for key, size in overlap.regions.items()]
    ordered = sorted(regions, key=lambda region: (-region[1], len(region[0]), sorted(region[0])))
    return Overlap([*overlap.concepts, *overlap.protect], overlap.concepts, overlap.protect, ordered, weights)


def stability_text(stability: Stability | None) -> list[str]:
    """Whether resampled scoring data would have chosen the same weights, in words."""
    if not stability:
        return []
    jaccard, size = stability.jaccard, stability.size
    return [
        f"The selection was repeated on {stability.resamples} resamples of the scoring data. A repeated set shares "
        f"{jaccard.mean:.2f} of its union with the edited set (Jaccard index, 1 is identical; "
        f"{jaccard.low:.2f} to {jaccard.high:.2f}) and holds {size.mean:,.0f} weights "
        f"({size.low:,.0f} to {size.high:,.0f}); the edit has {stability.weights:,}.",
        f"{stability.in_half:,} weights are chosen in at least half of the repetitions, "
        f"{stability.in_most:,} in at least 95% of them.",
    ]


@styled()
def draw_place(place: Place) -> Figure:
    """Heat map: one column a layer, one row a matrix, the number of edited weights as the depth of one colour."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    # from transparent to opaque, so that the same picture works on a light and on a dark page
    colours = LinearSegmentedColormap.from_list("edited", [(*to_rgb(ACCENT), 0.0), (*to_rgb(ACCENT), 1.0)])
    counts = [list(column) for column in zip(*place.counts, strict=True)]  # matrices x layers
    most = max(max(row) for row in counts)
    figure = new_figure(9.4, 0.95 + 0.34 * len(place.columns))
    axes = figure.add_subplot()
    axes.pcolormesh(counts, cmap=colours, vmin=0, vmax=max(most, 1), edgecolors=f"{CONTROL}40", linewidth=0.5)
    axes.invert_yaxis()
    axes.set_yticks([row + 0.5 for row in range(len(place.columns))], place.columns)
    step = 1 if len(place.layers) <= ANNOTATED_LAYERS else 5
    named = place.layers[::step]
    axes.set_xticks([layer + 0.5 for layer in named], [str(layer) for layer in named])
    axes.set_xlabel("decoder layer")
    bare(axes)
    for row, values in enumerate(counts if step == 1 else []):
        for layer, count in enumerate(values):
            if count:
                ink = "white" if count > 0.6 * most else INK
                text = str(count) if count < 1000 else f"{count / 1000:.0f}k"
                axes.text(layer + 0.5, row + 0.5, text, ha="center", va="center", fontsize=6.5, color=ink)
    return figure


def draw_overlap(overlap: Overlap) -> Figure:
    return draw_venn(overlap) if len(overlap.names) == 3 else draw_upset(overlap)


@styled()
def draw_venn(overlap: Overlap) -> Figure:
    """Three circles with the number of weights in each of the seven regions, the edited one filled."""
    from matplotlib.patches import Circle, Polygon

    figure = new_figure(6.2, 4.2)
    axes = figure.add_subplot()
    inside = [number for number, name in enumerate(overlap.names) if name in overlap.concepts]
    axes.add_patch(Polygon(region_outline(inside), facecolor=ACCENT, alpha=0.45, edgecolor="none"))
    for number, (centre, name) in enumerate(zip(CENTRES, overlap.names, strict=True)):
        protected = name in overlap.protect
        colour, style = (CONTROL, "--") if protected else (ACCENT, "-")
        axes.add_patch(Circle(centre, 1.0, facecolor="none", edgecolor=colour, linewidth=1.6, linestyle=style))
        x, y, side = NAMES[number]
        title = f"{picture_text(name, 24)}{' (protected)' if protected else ''}\n{overlap.total(name):,} weights"
        axes.text(x, y, title, ha=side, va="center", fontsize=9)
    for members, (x, y) in PLACES.items():
        region = frozenset(overlap.names[member] for member in members)
        text = overlap.taken if region == overlap.edited else f"{overlap.size(region):,}"
        axes.text(
            x,
            y,
            text,
            ha="center",
            va="center",
            fontsize=10,
            fontweight="bold" if list(members) == inside else "normal",
        )
    axes.set_xlim(-2.4, 2.4)
    axes.set_ylim(-1.95, 1.75)
    axes.set_aspect("equal")
    axes.set_axis_off()
    return figure


def region_outline(inside: Sequence[int], steps: int = 720) -> list[tuple[float, float]]:
    """The outline of the region in the circles `inside` and in no other: points of all circles on its border, in order
    of their angle from its number's place (the regions are star-shaped from there)."""
    points = []
    for number, (x, y) in enumerate(CENTRES):
        for step in range(steps):
            angle = 2 * math.pi * step / steps
            point = (x + math.cos(angle), y + math.sin(angle))
            others = [other for other in range(len(CENTRES)) if other != number]
            if all((math.dist(point, CENTRES[other]) <= 1) == (other in inside) for other in others):
                points.append(point)
    middle = PLACES[tuple(inside)]
    return sorted(points, key=lambda point: math.atan2(point[1] - middle[1], point[0] - middle[0]))


@styled()
def draw_upset(overlap: Overlap) -> Figure:
    """Regions as bars, largest first; under each the sets it lies in."""
    regions = overlap.regions[:REGIONS]
    sizes = [size for _, size in regions]
    figure = new_figure(max(5.0, 1.8 + 0.42 * len(regions)), 2.6 + 0.3 * len(overlap.names))
    grid = {"height_ratios": [2.2, 0.3 * len(overlap.names)]}
    top, bottom = figure.subplots(2, 1, sharex=True, gridspec_kw=grid)
    colours = [ACCENT if region == overlap.edited else CONTROL for region, _ in regions]
    top.bar(range(len(regions)), sizes, color=colours, width=0.6)
    top.set_ylim(0, 1.25 * max(*sizes, 1))
    for place, (region, size) in enumerate(regions):
        text = overlap.taken if region == overlap.edited else f"{size:,}"
        top.text(place, size, text, ha="center", va="bottom", fontsize=7)
    top.set_ylabel("weights", fontsize=8)
    for place, (region, _) in enumerate(regions):
        rows = [row for row, name in enumerate(overlap.names) if name in region]
        bottom.plot([place, place], [min(rows), max(rows)], color=colours[place], linewidth=1.2)
        for row in range(len(overlap.names)):
            face = colours[place] if row in rows else "none"
            bottom.plot(place, row, "o", markersize=6, color=CONTROL, markerfacecolor=face, markeredgewidth=0.6)
    name_lines(bottom, [picture_text(name, 24) for name in overlap.names], len(overlap.names), 9)
    bottom.set_xticks([])
    top.set_yticks([])
    bare(top)
    bare(bottom)
    return figure
