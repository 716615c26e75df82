"""Write the report of a run folder.

In: `run.json`, `results.json`, `generations.jsonl`, `verdicts.jsonl`. Out: `report.html`, `report.md`, `figures/`.
The page loads nothing: style, script, pictures and data are inside it, and its content security policy says so (the
only script that may run is ours, by hash). Answers are untrusted text: both templates escape every expression.
Left out: the time of writing, so that equal input gives equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_llm.errors import SpinError
from spin_llm.files import read_json, read_jsonl, write_text, writing
from spin_llm.report import figures
from spin_llm.report.place import edit_place
from spin_llm.report.table import COLUMNS, table_rows
from spin_llm.report.transcripts import SHOWN, Transcript, pair_transcripts
from spin_llm.report.wording import (
    MINIMUM_N,
    NOT_MEASURABLE,
    axis_label,
    cautions,
    cost_line,
    headline,
    increase_text,
    judge_lines,
    number,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
INPUTS = ("run.json", "results.json", "generations.jsonl", "verdicts.jsonl")
REQUIRED = {"results.json": ("axes", "judge", "controls"), "run.json": ("command", "settings", "model", "data")}
AXIS_KEYS = ("metric", "n", "base", "edited", "delta", "ci95", "p", "better", "measurable")
LIMITS = (
    "Awareness here is what a model writes: whether an open-ended answer treats a question on fairness or privacy with "
    "care, as the judge sees it. It is not group fairness (parity of decisions between groups) and not differential "
    "privacy (a bound on what training data leak); an edited model may fail at both.",
    "No guarantee follows: the numbers describe these prompts, this decoding and this judge, and say nothing of "
    "attacks, other languages or longer conversations.",
    "A judge is a model with errors of its own. They blur both sides alike only if its errors do not depend on the "
    "edit, which nobody has shown; quality measured on other answers need not hold on these.",
    "Greedy or seeded answers of one run: the intervals cover the choice of prompts, not another choice of scoring "
    "data, another seed or another model.",
    "Perplexity and KL do not see everything: an answer can lose coherence without moving them.",
)
DESCRIPTIONS = {
    "edited-weights": "Heat map of the number of edited weights in each matrix of each decoder layer",
    "differences": "Dot plot of the difference between edited and base on every axis, with 95% intervals",
}


def write_report(run_folder: Path) -> Path:
    """Write report.html, report.md and figures/ into `run_folder`; return the path of report.html.

    Raises SpinError when a file of the run is absent or lacks what the report needs.
    """
    folder = Path(run_folder)
    run, results, generations, verdicts = read_run(folder)
    rows, place = table_rows(results), edit_place(results["edit"])
    drawn: dict[str, Figure] = {}
    if place.layers:
        drawn["edited-weights"] = figures.draw_place(place)
    if rows:
        drawn["differences"] = figures.draw_differences(rows)
    for name, figure in drawn.items():
        with writing(folder / "figures" / f"{name}.png") as part:
            part.write_bytes(figures.png_bytes(figure))
        write_text(folder / "figures" / f"{name}.svg", figures.svg_text(figure, name))
    context = {
        **sections(run, results),
        "rows": rows,
        "columns": COLUMNS,
        "place": place,
        "transcripts": pair_transcripts(generations, verdicts, results),
        "pictures": {name: figures.inline_svg(figure, name, DESCRIPTIONS[name]) for name, figure in drawn.items()},
    }
    write_text(folder / "report.md", render_markdown(context))
    write_text(folder / "report.html", render_html(context))
    return folder / "report.html"


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """(run, results, generations, verdicts) of a run folder, checked for what the report needs."""
    missing = [name for name in INPUTS if not (folder / name).is_file()]
    if missing:
        raise SpinError(
            f"{folder} has no {' and no '.join(missing)}.",
            cause="the run did not get as far as its evaluation, or this is not a run folder.",
            change="run the command that made it again (it resumes), or name another folder.",
        )
    found = {name: read_json(folder / name) for name in REQUIRED}
    for name, keys in REQUIRED.items():
        lacking = [key for key in keys if key not in found[name]]
        if name == "results.json" and not lacking:
            tables = [found[name], *found[name]["controls"].values()]
            axes = [(axis, result) for table in tables for axis, result in table["axes"].items()]
            lacking = [f"{key} of {axis}" for axis, result in axes for key in AXIS_KEYS if key not in result]
        if lacking:
            raise SpinError(
                f"{folder / name} lacks {', '.join(lacking)}.",
                cause="it was written by another version of spin-llm, or changed by hand.",
                change="evaluate the run again.",
            )
    results = {"edit": {}, "ratio_table": [], "facets": {}, **found["results.json"]}
    return found["run.json"], results, read_jsonl(folder / INPUTS[2]), read_jsonl(folder / INPUTS[3])


def sections(run: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """What both templates say, apart from table, place and transcripts."""
    command = run["command"]
    return {
        "run": run,
        "results": results,
        "edit": results["edit"],
        "headline": headline(results),
        "cost_line": cost_line(results),
        "cautions": cautions(results),
        "judge_lines": judge_lines(results),
        "facets": facet_rows(results["facets"]),
        "settings": {name: plain(value) for name, value in run["settings"].items()},
        "versions": run.get("versions", {}),
        "command": command if isinstance(command, str) else shlex.join(command),
        "limits": limits(results),
        "unmeasurable": [axis for axis, result in results["axes"].items() if not result["measurable"]],
        "not_measurable": NOT_MEASURABLE,
        "places": SHOWN,
        "perplexity": lambda value: number(value, "perplexity"),
        "increase": increase_text,
    }


def limits(results: dict[str, Any]) -> list[str]:
    """What this run cannot say: what holds for every run first, then what follows from these results."""
    few = [axis_label(axis) for axis, result in results["axes"].items() if result["n"] < MINIMUM_N]
    blind = [axis_label(axis) for axis, result in results["axes"].items() if not result["measurable"]]
    return [
        *LIMITS,
        *([f"Fewer than {MINIMUM_N} prompts, and so no reading: {', '.join(few)}."] if few else []),
        *([f"The judge was not shown to tell good answers from bad ones on: {', '.join(blind)}."] if blind else []),
        *cautions(results),
    ]


def facet_rows(facets: dict[str, dict[str, dict[str, Any]]]) -> list[tuple[str, str, int, str, str, str]]:
    """(axis label, facet, n, base, edited, difference) of every facet, in the order of results.json."""
    return [
        (
            axis_label(axis),
            facet,
            values["n"],
            number(values["base"], axis),
            number(values["edited"], axis),
            number(_difference(values), axis, signed=True),
        )
        for axis, by_facet in facets.items()
        for facet, values in by_facet.items()
    ]


def _difference(values: dict[str, Any]) -> float | None:
    if values["base"] is None or values["edited"] is None:
        return None
    return float(values["edited"] - values["base"])


def plain(value: Any) -> str:
    """A setting as text: strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def share_text(share: float | None) -> str:
    """A small fraction in percent with two significant digits, never in powers of ten: 0.0000113 -> 0.0011%."""
    if not share:
        return "0%"
    text = f"{100 * share:.12f}"
    digits = len(text) - len(text.lstrip("0."))
    return (f"{100 * share:.1f}" if share >= 0.01 else text[: digits + 2].rstrip(".")) + "%"


def render_html(context: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(share=share_text, minus=lambda text: re.sub(r"(?<!\w)-(?=\d)", "−", str(text)))
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    others = [asdict(transcript) for group in context["transcripts"] for transcript in group.others]
    return environment.get_template("template.html.j2").render(
        {**context, "pictures": {name: Markup(svg) for name, svg in context["pictures"].items()}},
        style=Markup(style),
        script=Markup(script),
        script_hash=digest,
        others=others,
        blank={field.name: "" for field in fields(Transcript)},
        zip=zip,
    )


def render_markdown(context: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=False,  # HTML's rules are not Markdown's: `finalize` escapes every expression instead
        finalize=escape_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["share"] = share_text
    return environment.get_template("template.md.j2").render(context)


def escape_markdown(value: Any) -> str:
    """Text that Markdown shows as it is, also inside a table cell: no mark-up, no HTML, no line ends."""
    text = html.escape(str(value), quote=False)
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    return re.sub(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", "<br>", text)
