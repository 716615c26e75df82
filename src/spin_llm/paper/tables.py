"""An experiment's results as the paper shows them: a table in Markdown, a figure, the printed numbers beside ours.

In: an experiment's spec and its arms' results. Out: Markdown text and a matplotlib figure. Differences have 95%
intervals over the questions; the printed numbers have none, and come from 7B models and another judge: they are shown
where the model is one of the paper's, and never compared otherwise. Left out: whether a claim of the paper holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_llm.paper.specs import Experiment
from spin_llm.report.figures import ACCENT, CONTROL, INK, STYLE, bare, new_figure
from spin_llm.report.searched import gain_text
from spin_llm.report.wording import axis_label, has_interval, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTHING = "–"
Results = Sequence[Mapping[str, Any]]


@cache
def printed() -> dict[str, Any]:
    """The numbers that the paper prints."""
    return dict(json.loads(Path(__file__).with_name("printed.json").read_text(encoding="utf-8")))


def printed_rows(experiment: Experiment, model: str) -> dict[str, list[float]]:
    """The paper's numbers for this model by arm; {} for a model that is not the paper's."""
    table = printed().get(experiment.printed or "", {})
    name = Path(model).name
    return dict(table.get(name, {})) if isinstance(table, dict) else {}


def cell(axis: str, result: Mapping[str, Any] | None, *, base: bool) -> str:
    """`29.4% (-0.4, -3.2 to +2.4)`: the value, and the difference to the base with its interval."""
    if result is None:
        return NOTHING
    value = number(result["edited"], axis)
    if base or not has_interval(result["ci95"]):
        return value
    low, high = (number(end, axis, signed=True, unit=False) for end in result["ci95"])
    return f"{value} ({number(result['delta'], axis, signed=True, unit=False)}, {low} to {high})"


def markdown(experiment: Experiment, results: Results, model: str, differs: Sequence[str]) -> str:
    """The table, the paper's numbers, and what differs."""
    lines = [f"## {experiment.title}", ""]
    if experiment.shows:
        lines += [f"The paper: {experiment.shows}.", ""]
    body = {"answers": answer_table, "tasks": answer_table, "margins": margin_table, "information": information_table}
    lines += (
        phrase_table(results) if experiment.name == "phrases" else body[experiment.kind](experiment, results, model)
    )
    silent = [row for row in results if row["about"].get("why")]
    lines += [f"{row['name']}: {row['about']['why']}" for row in silent]
    return "\n".join([*lines, "", "What differs from the paper: " + "; ".join(differs) + ".", ""])


def answer_table(experiment: Experiment, results: Results, model: str) -> list[str]:
    axes = list(dict.fromkeys(axis for row in results for axis in row.get("axes", {})))
    if experiment.kind == "answers":
        axes = [axis for axis in experiment.axes if axis in axes]
    paper = printed_rows(experiment, model)
    columns = printed().get(experiment.printed or "", {}).get("columns", []) if paper else []
    head = ["", "weights", *(f"{axis_label(axis)}" for axis in axes), *(f"paper: {name}" for name in columns)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    below = {arm.name for arm in experiment.arms if arm.below}
    ordered = [row for row in results if row["name"] not in below]
    for row in (*ordered, *(row for row in results if row["name"] in below)):
        cells = [cell(axis, row.get("axes", {}).get(axis), base=row["kind"] == "base") for axis in axes]
        told = [f"{value:.1%}" if value <= 1 else f"{value:g}" for value in paper.get(row["name"], [])]
        name = f"*{row['name']}* (not the paper's)" if row["name"] in below else row["name"]
        weights = f"{row['about']['weights']:,}"
        lines.append("| " + " | ".join([name, weights, *cells, *(told or [NOTHING] * len(columns))]) + " |")
    n = {
        axis_label(axis): row["axes"][axis]["n"] for row in results[:1] for axis in axes if axis in row.get("axes", {})
    }
    sizes = ", ".join(f"{name} {count}" for name, count in n.items())
    return [*lines, "", f"In brackets: difference to the first row, 95% interval over paired prompts. n: {sizes}."]


def phrase_table(results: Results) -> list[str]:
    """How many answers hold each phrase of the paper's lists, before and after."""
    lines = []
    for row in results:
        for axis, found in row.get("phrases", {}).items():
            if row["kind"] == "base" or not found.get("listed"):
                continue
            lines += [
                f"{axis_label(axis)}, answers that hold the phrase:",
                "",
                "| phrase | origin | SPIN |",
                "| --- | --- | --- |",
            ]
            lines += [f"| {one['phrase']} | {one['base']} | {one['edited']} |" for one in found["listed"]]
            lines.append("")
    return lines


def margin_table(experiment: Experiment, results: Results, model: str) -> list[str]:
    """Gains of the margins on held-back pairs: for concepts that no judge here knows."""
    concepts = list(dict.fromkeys(name for row in results for name in row.get("gains", {})))
    lines = ["| | weights | perplexity | " + " | ".join(concepts) + " |", "|" + " --- |" * (3 + len(concepts))]
    for row in results:
        found = [row.get("gains", {}).get(name) for name in concepts]
        gains = [gain_text(gain) for gain in found if gain]
        increase = f"{row['increase']:+.2%}" if "increase" in row else NOTHING
        cells = gains or [NOTHING] * len(concepts)
        lines.append(f"| {row['name']} | {row['about']['weights']:,} | {increase} | " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        "Change of the aware-unaware margin on pairs that nothing was scored on, nats per token, 95% interval.",
    ]


def information_table(experiment: Experiment, results: Results, model: str) -> list[str]:
    """The change of the dependence by layer: HSIC (unbiased) and CKA (debiased), with bands; and where the weights
    are."""
    row = next((row for row in results if row.get("information")), None)
    if row is None:
        return ["Nothing was measured."]
    lines: list[str] = []
    for title, report in row["information"].items():
        for place, layers in report["places"].items():
            head = [
                "layer",
                "HSIC before",
                "after",
                "p before",
                "p after",
                "CKA before",
                "after",
                "change of CKA, 95% band",
            ]
            lines += [
                f"{title}, {place.replace('_', ' ')}, {report['pairs']} pairs:",
                "",
                "| " + " | ".join(head) + " |",
            ]
            lines += ["|" + " --- |" * len(head)]
            for layer in layers:
                before, after, change = layer["before"], layer["after"], layer["change"]["cka"]
                values = [small(part[key]) for key in ("hsic", "p", "cka") for part in (before, after)]
                band = f" ({small(change['band'][0])} to {small(change['band'][1])})" if change["band"] else ""
                lines.append(f"| {layer['layer']} | " + " | ".join([*values, small(change["value"]) + band]) + " |")
            lines.append("")
    return lines


def small(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def figure(experiment: Experiment, results: Results) -> Figure | None:
    """Every arm's difference to the base on the two concepts and on perplexity, with intervals; None without any."""
    from matplotlib import rc_context

    axes = [
        axis for axis in ("fairness", "privacy", "over_refusal", "coherence", "perplexity") if axis in experiment.axes
    ]
    rows = [row for row in results if row["kind"] != "base" and row.get("axes")]
    if not rows or experiment.kind != "answers" or not axes:
        return None
    with rc_context(STYLE):
        picture = new_figure(2.1 * len(axes) + 1.6, 0.9 + 0.24 * len(rows))
        panels = picture.subplots(1, len(axes), sharey=True, squeeze=False)[0]
        for panel, axis in zip(panels, axes, strict=True):
            scale = 1.0 if axis == "perplexity" else 100.0
            for place, row in enumerate(rows):
                result = row["axes"].get(axis)
                if result is None or not has_interval(result["ci95"]):
                    continue
                colour = ACCENT if row["kind"] == "edit" else CONTROL
                panel.plot([scale * end for end in result["ci95"]], [place, place], color=colour, linewidth=1.4)
                panel.plot(scale * result["delta"], place, "o", color=colour, markersize=4.5)
            panel.axvline(0, color=INK, linewidth=0.7)
            panel.set_title(axis_label(axis), fontsize=8.5, loc="left")
            panel.tick_params(labelsize=7.5)
            if axis == "perplexity":
                panel.set_xscale("symlog", linthresh=1.0)
            bare(panel)
        panels[0].set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return picture
