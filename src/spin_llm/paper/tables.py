"""An experiment's results as the paper shows them: tables and sentences, the printed numbers beside ours.

In: an experiment's spec and its arms' results. Out: `Part`s, tables and sentences that a page can show (conduct.py).
Differences have 95% intervals over the questions; the printed numbers have none, and come from 7B models and another
judge: they are shown where the model is one of the paper's, and never compared otherwise. Left out: whether a claim of
the paper holds; figures (figures.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import msgspec

from spin_llm.files import read_json
from spin_llm.report import words
from spin_llm.report.sections.search import gain_text
from spin_llm.results.file import PhraseCount, with_bounds
from spin_llm.results.measured import ANSWERED, AxisResult
from spin_llm.results.paper import ArmRecord, BesideChance, Experiment, LayerRecord, LocationRecord, SideRecord

Results = Sequence[ArmRecord]
MOST = 5  # recurring dimensions that are named


@dataclass(frozen=True)
class Table:
    """Texts; the first cell of a row is its name, the first `words` columns are no numbers."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


Part = Table | str


@dataclass(frozen=True)
class Printed:
    """A table of the paper: its columns, and by model and arm their numbers."""

    columns: tuple[str, ...]
    models: dict[str, dict[str, tuple[float, ...]]]


@cache
def printed() -> dict[str, Printed]:
    """The numbers that the paper prints, by table."""
    return msgspec.convert(read_json(Path(__file__).with_name("printed.json"))["tables"], dict[str, Printed])


def printed_rows(experiment: Experiment, model: str) -> dict[str, tuple[float, ...]]:
    """The paper's numbers for this model by arm; {} for a model that is not the paper's."""
    models = printed()[experiment.printed].models if experiment.printed in printed() else {}
    return next((rows for name, rows in models.items() if plain_name(name) == plain_name(Path(model).name)), {})


def plain_name(model: str) -> str:
    """A model's name as the paper and the hub share it: `Llama-2-7b-chat-hf` is the paper's Llama2-7B-Chat.

    >>> plain_name("Llama-2-7b-chat-hf") == plain_name("Llama2-7B-Chat")
    True
    """
    return re.sub(r"[^a-z0-9]", "", model.casefold().removesuffix("-hf"))


def cell(axis: str, result: AxisResult | None, *, base: bool) -> str:
    """`29.4% (-0.4, -3.2 to +2.4)`: the value, and the difference to the base with its interval; `0.0 to 100.0%, no
    reading` where too many verdicts are missing, or the judge was not measured on such answers."""
    if result is None:
        return words.NOTHING
    value = words.value_text(result, "edited", axis)
    if result.no_reading:
        return value if base else f"{value}, no reading"
    if base or result.ci95 is None:
        return value
    delta = words.number(result.delta, axis, signed=True, unit=False)
    unread = "" if result.measurable else ", no reading"
    return f"{value} ({delta}, {words.interval_text(result.ci95, axis)}){unread}"


def parts_of(experiment: Experiment, results: Results, model: str) -> list[Part]:
    """What the paper shows, our tables, and why arms have no numbers."""
    parts: list[Part] = [f"The paper: {experiment.shows}."] if experiment.shows else []
    if experiment.name == "phrases":
        parts += phrase_tables(results)
    elif experiment.kind == "margins":
        parts += margin_table(results)
    elif experiment.kind == "information":
        parts += information_tables(results)
    else:
        parts += answer_table(experiment, results, model)
    return [*parts, *(f"{row.name}: {row.about.why}" for row in results if row.about.why)]


def answer_table(experiment: Experiment, results: Results, model: str) -> list[Part]:
    results = [replace(row, axes={axis: with_bounds(result) for axis, result in row.axes.items()}) for row in results]
    axes = list(dict.fromkeys(axis for row in results for axis in words.shown_axes(row.axes)))
    if experiment.kind == "answers":
        axes = [axis for axis in (*experiment.axes, ANSWERED) if axis in axes]
    paper = printed_rows(experiment, model)
    columns = printed()[experiment.printed].columns if paper and experiment.printed else ()
    head = ("", "weights", *map(words.axis_label, axes), *(f"paper: {name}" for name in columns))
    below = {arm.name for arm in experiment.arms if arm.below}
    rows = []
    for row in sorted(results, key=lambda row: row.name in below):
        cells = [cell(axis, row.axes.get(axis), base=row.kind == "base") for axis in axes]
        told = [f"{value:.1%}" if value <= 1 else f"{value:g}" for value in paper.get(row.name, ())]
        name = f"{row.name}, not the paper's" if row.name in below else row.name
        rows.append((name, f"{row.about.weights:,}", *cells, *(told or [words.NOTHING] * len(columns))))
    sizes = ", ".join(
        f"{words.axis_label(axis)} {row.axes[axis].n}" for row in results[:1] for axis in axes if axis in row.axes
    )
    unread = [
        f"{row.name}, {words.axis_label(axis).lower()}: {text}."
        for row in results
        for axis in axes
        if axis in row.axes and (text := words.missing_text(row.axes[axis], axis))
    ]
    unread += [f"No reading on {names}: {why}." for why, names in unmeasured(results, axes).items()]
    note = "Beside or below each value: the difference to the first row, and its 95% interval over paired prompts."
    return [Table("", head, tuple(rows)), note + (f" n: {sizes}." if sizes else ""), *unread]


def unmeasured(results: Results, axes: Sequence[str]) -> dict[str, str]:
    """Why the judge is not believed, with the axes on which it is not."""
    found: dict[str, list[str]] = {}
    for axis in axes:
        notes = {row.axes[axis].note for row in results if axis in row.axes}
        for note in sorted(filter(None, notes)):
            found.setdefault(note, []).append(words.axis_label(axis).lower())
    return {note: ", ".join(names) for note, names in found.items()}


def phrase_tables(results: Results) -> list[Part]:
    """How many answers hold each phrase of the paper's lists, before and after; first, how many hold any of them."""
    tables: list[Part] = []
    for row in results:
        for axis, found in row.phrases.items():
            if row.kind == "base" or not found.listed:
                continue
            whole = row.style[axis]["cautionary"]
            base, edited = (round((rate or 0.0) * whole.n) for rate in (whole.base, whole.edited))
            any_of_them = PhraseCount(
                phrase="any of them", base=base, edited=edited, n=whole.n, ci95=whole.ci95, p=whole.p
            )
            caption = f"{words.axis_label(axis)}, answers that hold the phrase, of {whole.n}"
            head = ("phrase", "origin", row.name, "difference in points, 95% interval", "p")
            said = [one for one in found.listed if one.base or one.edited]
            tables.append(Table(caption, head, tuple(map(phrase_row, (any_of_them, *said)))))
            if silent := [one.phrase for one in found.listed if one not in said]:
                tables.append(f"In no answer: {', '.join(silent)}.")
    note = "Intervals over paired questions; exact McNemar p; no correction over the phrases of a list."
    return [*tables, note] if tables else ["No answers were compared."]


def phrase_row(one: PhraseCount) -> tuple[str, ...]:
    delta = words.number((one.edited - one.base) / one.n if one.n else None, "cautionary", signed=True, unit=False)
    told = f"{delta} ({words.interval_text(one.ci95, 'cautionary')})"
    return (one.phrase, str(one.base), str(one.edited), told, words.p_text(one.p))


def margin_table(results: Results) -> list[Part]:
    """Gains of the margins on held-back pairs: for concepts that no judge here knows."""
    concepts = list(dict.fromkeys(name for row in results for name in row.gains))
    rows = []
    for row in results:
        gains = [gain_text(row.gains[name]) if name in row.gains else words.NOTHING for name in concepts]
        increase = words.NOTHING if row.increase is None else f"{row.increase:+.2%}"
        rows.append((row.name, f"{row.about.weights:,}", increase, *gains))
    note = "Change of the aware-unaware margin on pairs that nothing was scored on, nats per token, 95% interval."
    return [Table("", ("", "weights", "perplexity", *concepts), tuple(rows)), note]


def information_tables(results: Results) -> list[Part]:
    """The change of the dependence by layer: HSIC (unbiased) and CKA (debiased), with bands, and the nearest-neighbour
    information of leading components; then where the weights are."""
    row = next((row for row in results if row.information), None)
    if row is None or row.information is None:
        return ["Nothing was measured."]
    head = ("layer", "HSIC before", "after", "p before", "p after", "CKA before", "after", "change of CKA, 95% band")
    nearest = ("KSG before (by chance)", "after (by chance)")
    parts: list[Part] = []
    for title, report in row.information.items():
        for place, layers in report.places.items():
            caption = f"{title}, {place.replace('_', ' ')}, {report.pairs} pairs"
            opinion = nearest if layers[0].before.projected else ()
            parts += [Table(caption, (*head, *opinion), tuple(map(layer_row, layers))), sensitivity_text(layers)]
    return [*parts, *(location_tables(row.name, row.location) if row.location and row.location.selections else [])]


def layer_row(layer: LayerRecord) -> tuple[str, ...]:
    both, change = layer.both, layer.change["cka"]
    values = [small(getattr(part, measure)) for measure in ("hsic", "p", "cka") for part in both]
    band = f" ({small(change.band[0])} to {small(change.band[1])})" if change.band else ""
    opinions = (part.projected for part in both if part.projected)
    nearest = (f"{small(one.information)} ({small(one.independent)})" for one in opinions)
    return (str(layer.layer), *values, small(change.value) + band, *nearest)


def sensitivity_text(layers: Sequence[LayerRecord]) -> str:
    """Whether the change of CKA hangs on the bandwidth."""
    multipliers = [one.multiplier for one in layers[0].before.sensitivity]
    known = kept = 0
    for layer in layers:
        pairs = zip(*(one.sensitivity for one in layer.both), strict=True)
        values = [(before.cka, after.cka) for before, after in pairs]
        both = [(before, after) for before, after in values if before is not None and after is not None]
        if len(both) < len(values):
            continue
        signs = {after > before for before, after in both}
        known, kept = known + 1, kept + (len(signs) == 1)
    told = ", ".join(f"{multiplier:g}" for multiplier in multipliers)
    return f"At {told} times the median bandwidth the change of CKA has one sign in {kept} of {known} layers."


def location_tables(name: str, report: LocationRecord) -> list[Part]:
    """Where the selection `name` lies, and how far others agree with it."""
    own = report.selections[name]
    kinds = own.matrices
    ginis = f"over layers {gini_text(own.gini_layers)}, over matrices {gini_text(own.gini_matrices)}"
    layers = tuple(
        (str(layer), *(f"{counts[layer]:,}" for counts in kinds.values()), f"{total:,}")
        for layer, total in enumerate(own.layers)
    )
    dimensions = tuple(
        dimension_row(kind, side, found) for kind, sides in own.dimensions.items() for side, found in sides.items()
    )
    head = (
        "matrix",
        "side",
        "used",
        "Gini (by chance)",
        "most layers on one (by chance)",
        "dimension: layers, weights",
    )
    return [
        Table(f"{name}, weights by layer and matrix", ("layer", *kinds, "all"), layers),
        f"Gini coefficient of {name}'s weights {ginis}: 0 is evenly spread; by chance, as many weights at random.",
        Table(f"{name}, dimensions that recur over the layers", head, dimensions, words=2),
        "That a dimension recurs means something on the residual stream's side alone: inputs of gate and up, outputs "
        "of down, in most models.",
        agreement_table(name, report),
    ]


def dimension_row(kind: str, side: str, found: SideRecord) -> tuple[str, ...]:
    most = "; ".join(f"{one.dimension}: {one.layers}, {one.weights}" for one in found.most[:MOST])
    shared = f"{found.layers_sharing} ({small(found.layers_sharing_by_chance)})"
    return (kind, side, f"{found.used:,} of {found.size:,}", gini_text(found.gini), shared, most or words.NOTHING)


def agreement_table(name: str, report: LocationRecord) -> Table:
    """Jaccard indices with the selection `name`, one row for each other selection."""
    agreement, names = report.agreement, report.agreement.names
    first = names.index(name)
    rows = []
    for other, what in report.about.items():
        place = names.index(other) if other in names else None
        levels = [
            small(level[first][place]) if place is not None else words.NOTHING
            for level in (agreement.weights, agreement.chance, agreement.output, agreement.input)
        ]
        weights = f"{report.selections[other].weights:,}" if place is not None else words.NOTHING
        rows.append((other, what, weights, *levels))
    head = ("selection", "what it is", "weights", "Jaccard of weights", "by chance", "of output", "of input dimensions")
    return Table(f"Agreement with {name} (Jaccard index: 1 is the same, 0 nothing shared)", head, tuple(rows), words=2)


def gini_text(gini: BesideChance) -> str:
    return f"{small(gini.value)} ({small(gini.by_chance)})"


def small(value: float | None) -> str:
    return words.NOTHING if value is None else f"{value:.3g}"
