"""Write the report of a run folder.

In: `run.json`, `results.json`, `generations.jsonl`, `verdicts.jsonl`. Out: `report.html`, `report.md`, `figures/`.
Parts that a run does not have (older ones have few) are left out of the report.
Left out: the time of writing, so that equal input gives equal bytes; how templates are filled in (render.py).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spin_llm.errors import SpinError
from spin_llm.files import write_text
from spin_llm.records import RunRecord, check_belongs, read_record
from spin_llm.report import summary
from spin_llm.report.canvas import inline_svg, on_white, svg_text, write_png
from spin_llm.report.render import HERE, render_markdown, render_page
from spin_llm.report.sections import answers, location, search, table, transcripts
from spin_llm.report.words import MINIMUM_N, axis_label, verdict
from spin_llm.results.edited import Edit
from spin_llm.results.file import Results, as_today, read_results, written
from spin_llm.results.judged import NOT_MEASURABLE
from spin_llm.results.rows import Answer, VerdictRow, read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INPUTS = ("run.json", "results.json", "generations.jsonl", "verdicts.jsonl")
STATIC = 2  # transcripts an axis that are there without JavaScript
LIMITS = (HERE / "limits.txt").read_text(encoding="utf-8").splitlines()  # of every run
DESCRIPTIONS = {  # of the pictures in the page, which draws the others itself
    "edited-weights": "Heat map of the number of edited weights in each matrix of each decoder layer",
    "overlap": "Diagram of how many weights the top sets share",
    "dose-response": "Edited weights and perplexity over the ratio",
    "search": "Scatter plots of the edits tried: gain and perplexity, gain and number of weights",
    "phrases": "Dot plot of the phrases whose frequency changed most",
}
BELOW = "the same numbers are in the table below"


def write_report(run_folder: Path) -> Path:
    """Write report.html, report.md and figures/ into `run_folder`; return the path of report.html.

    Raises SpinError when a file of the run is absent or lacks what the report needs.
    """
    folder = Path(run_folder)
    run = read_run(folder)
    context, drawn = sections(run, read_pairs(folder, run.results)), draw(run)
    vectors: dict[str, str] = {}
    for name, figure in drawn.items():
        write_png(folder / "figures" / f"{name}.png", figure)
        vectors[name] = svg_text(figure, name)
        write_text(folder / "figures" / f"{name}.svg", on_white(vectors[name]))
    context["drawn"] = list(drawn)
    write_text(folder / "report.md", render_markdown("run.md.j2", context))
    pictures = {
        name: inline_svg(vectors[name], f"{told}; {BELOW}") for name, told in DESCRIPTIONS.items() if name in drawn
    }
    write_text(folder / "report.html", render_page("run.html.j2", context, script="script.js", svg=pictures))
    return folder / "report.html"


def draw(run: Run) -> dict[str, Figure]:
    """The pictures that this run has something for, by name."""
    results, limit = run.results, run.record.settings.get("max_perplexity_increase")
    overlap = location.overlap_part(results.overlap, results.edit.weights)
    place, rows = location.edit_place(results.edit), table.table_rows(results)
    drawn = {
        "edited-weights": location.draw_place(place) if place.layers else None,
        "differences": table.draw_differences(rows) if rows else None,
        "overlap": location.draw_overlap(overlap) if overlap else None,
        "dose-response": search.draw_dose(results.ratio_table, limit if isinstance(limit, int | float) else None),
        "search": search.draw_search(results.search),
        "phrases": answers.draw_phrases(answers.phrase_parts(results.phrases, results.axes)),
        "facets": answers.draw_facets(results.facets),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


@dataclass(frozen=True)
class Run:
    """A run folder's run.json and results.json."""

    name: str
    record: RunRecord
    results: Results


def read_run(folder: Path, needed: Sequence[str] = INPUTS, name: str = "") -> Run:
    """The run of a folder that has the files `needed`; SpinError otherwise, or when a file is damaged."""
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise SpinError(
            f"{folder} has no {' and no '.join(missing)}.",
            cause="the run did not get as far as its evaluation, or this is not a run folder.",
            change="run the command that made it again (it resumes), or name another folder.",
        )
    results = read_results(folder)
    record = read_record(folder)
    check_belongs(folder, results.made_from, results.files)
    return Run(name, record, as_today(results))


def read_pairs(folder: Path, results: Results) -> list[transcripts.AxisTranscripts]:
    """The answers of a run folder with their verdicts."""
    said, judged = read_rows(folder / INPUTS[2], Answer), read_rows(folder / INPUTS[3], VerdictRow)
    return transcripts.pair_transcripts(said, judged, results)


def sections(run: Run, pairs: list[transcripts.AxisTranscripts]) -> dict[str, object]:
    """What both templates say, less which pictures there are."""
    record, results = run.record, run.results
    return {
        "run": record,
        "model": written(record.model),
        "results": results,
        "edit": results.edit if results.edit != Edit() else None,
        "headline": summary.headline(results),
        "cost_line": summary.cost_line(results),
        "cautions": summary.cautions(results),
        "board": table.make_board(results),
        "rows": table.table_rows(results),
        "columns": table.COLUMNS,
        "capabilities": table.task_rows(results.capabilities),
        "style": table.style_rows(results.style),
        "method_text": table.method_text,
        "corrected": list(table.corrected_rows(results.axes)),
        "judge_lines": summary.judge_lines(results),
        "quality": list(summary.quality_rows(results)),
        "quality_columns": summary.QUALITY_COLUMNS,
        "confusion": summary.confusion_rows(results),
        "agreement": summary.agreement_rows(results.judge.agreement),
        "place": location.edit_place(results.edit),
        "overlap": location.overlap_part(results.overlap, results.edit.weights),
        "search": results.search,
        "searched": search,
        "stability": location.stability_text(results.stability),
        "phrases": answers.phrase_parts(results.phrases, results.axes),
        "facets": answers.facet_lines(results.facets),
        "transcripts": pairs,
        "others": transcripts.script_data(pairs),
        "settings": {name: plain(value) for name, value in record.settings.items()},
        "command": record.command if isinstance(record.command, str) else shlex.join(record.command),
        "limits": limits(results),
        "unmeasurable": {
            axis: result.note or NOT_MEASURABLE for axis, result in results.axes.items() if not result.measurable
        },
        "axis_label": axis_label,
        "places": transcripts.SHOWN,
        "static": STATIC,
    }


def limits(results: Results) -> list[str]:
    """What this run cannot say: what holds for every run first, then what follows from these results."""
    few = [axis_label(axis) for axis, result in results.axes.items() if verdict(result) == "not enough data"]
    blind = [axis_label(axis) for axis, result in results.axes.items() if not result.measurable]
    return [
        *LIMITS,
        *([f"Fewer than {MINIMUM_N} prompts, and so no reading: {', '.join(few)}."] if few else []),
        *([f"The judge was not shown to tell good answers from bad ones on: {', '.join(blind)}."] if blind else []),
        *summary.cautions(results),
    ]


def plain(value: object) -> str:
    """A setting as text: strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
