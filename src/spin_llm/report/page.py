"""Write the report of a run folder.

In: `run.json`, `results.json`, `generations.jsonl`, `verdicts.jsonl`. Out: `report.html`, `report.md`, `figures/`.
Parts that a run does not have (older ones have few) are left out of the report.
Left out: the time of writing, so that equal input gives equal bytes; how templates are filled in (render.py).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_llm.errors import SpinError
from spin_llm.files import read_json, write_text
from spin_llm.outputs import writing
from spin_llm.records import check_belongs, machine_words, read_record
from spin_llm.report.figures.answers import draw_dose, draw_facets, draw_phrases
from spin_llm.report.figures.canvas import inline_svg, on_white, png_bytes, svg_text
from spin_llm.report.figures.differences import draw_differences
from spin_llm.report.figures.location import draw_place
from spin_llm.report.figures.overlap import draw_overlap
from spin_llm.report.figures.search import draw_search
from spin_llm.report.render import render_markdown, render_page
from spin_llm.report.sections.board import make_board
from spin_llm.report.sections.facets import facet_lines
from spin_llm.report.sections.judge import QUALITY_COLUMNS, agreement_rows, confusion_rows, quality_rows
from spin_llm.report.sections.location import Place, edit_place
from spin_llm.report.sections.overlap import OPTIONAL, OPTIONAL_OF_EDIT, overlap_part, stability_text
from spin_llm.report.sections.phrases import phrase_parts, style_rows
from spin_llm.report.sections.search import search_part
from spin_llm.report.sections.table import COLUMNS, corrected_rows, table_rows, task_rows
from spin_llm.report.sections.transcripts import SHOWN, pair_transcripts, script_data
from spin_llm.report.summary import cautions, cost_line, headline, judge_lines
from spin_llm.report.words import (
    ANSWERED,
    CAPABILITY_AXES,
    MINIMUM_N,
    NOT_MEASURABLE,
    axis_label,
    has_interval,
    increase_text,
    number,
    verdict,
)
from spin_llm.results.file import read_results_json as read_stored
from spin_llm.results.rows import read_answers, read_verdicts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INPUTS = ("run.json", "results.json", "generations.jsonl", "verdicts.jsonl")
MOST_MISSING, MOST_APART = 0.05, 0.02  # of verdicts that older runs took as 0, as evaluate/missing.py has them
STATIC = 2  # transcripts an axis that are there without JavaScript
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
    "edited-weights": "Heat map of the number of edited weights in each matrix of each decoder layer; the same numbers "
    "are in the table below",
    "differences": "Dot plot of the difference between edited and base on every axis, with 95% intervals",
    "overlap": "Diagram of how many weights the top sets share; the same numbers are in the table below",
    "dose-response": "Edited weights and perplexity over the ratio; the same numbers are in the table below",
    "search": "Scatter plots of the edits tried: gain and perplexity, gain and number of weights; the same numbers are "
    "in the table below",
    "phrases": "Dot plot of the phrases whose frequency changed most; the same numbers are in the table below",
    "facets": "Dot plot of the difference in each facet, with 95% intervals",
}
IN_PAGE = ("edited-weights", "overlap", "dose-response", "search", "phrases")  # the page draws the others itself


def write_report(run_folder: Path) -> Path:
    """Write report.html, report.md and figures/ into `run_folder`; return the path of report.html.

    Raises SpinError when a file of the run is absent or lacks what the report needs.
    """
    folder = Path(run_folder)
    run, results, generations, verdicts = read_run(folder)
    place = edit_place(results["edit"])
    drawn = draw(run, results, place)
    vectors: dict[str, str] = {}
    for name, figure in drawn.items():
        with writing(folder / "figures" / f"{name}.png") as part:
            part.write_bytes(png_bytes(figure))
        vectors[name] = svg_text(figure, name)
        write_text(folder / "figures" / f"{name}.svg", on_white(vectors[name]))
    transcripts = pair_transcripts(generations, verdicts, results)
    context = {
        **sections(run, results),
        "place": place,
        "transcripts": transcripts,
        "others": script_data(transcripts),
        "drawn": list(drawn),
    }
    write_text(folder / "report.md", render_markdown("run.md.j2", context))
    pictures = {name: inline_svg(vectors[name], DESCRIPTIONS[name]) for name in IN_PAGE if name in drawn}
    write_text(folder / "report.html", render_page("run.html.j2", context, script="script.js", svg=pictures))
    return folder / "report.html"


def draw(run: dict[str, Any], results: dict[str, Any], place: Place) -> dict[str, Figure]:
    """The pictures that this run has something for, by name."""
    overlap = overlap_part(results["overlap"], results["edit"].get("weights"))
    rows = table_rows(results)
    drawn = {
        "edited-weights": draw_place(place) if place.layers else None,
        "differences": draw_differences(rows) if rows else None,
        "overlap": draw_overlap(overlap) if overlap else None,
        "dose-response": draw_dose(results["ratio_table"], run["settings"].get("max_perplexity_increase")),
        "search": draw_search(results["search"]),
        "phrases": draw_phrases(phrase_parts(results["phrases"], results["axes"])),
        "facets": draw_facets(results["facets"]),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """(run, results, generations, verdicts) of a run folder, checked for what the report needs."""
    run, results = read_results(folder, INPUTS)
    return run, results, read_answers(folder / INPUTS[2]), read_verdicts(folder / INPUTS[3])


def with_bounds(result: dict[str, Any]) -> dict[str, Any]:
    """An axis of results.json. One of version 0.1.0, which counted missing verdicts as 0, gets bounds, and a reason not
    to be read where they are more than 5% of a model's, differ by more than 2 points or decide the conclusion."""
    lacking, interval = result.get("unparsed") or [0, 0], result["ci95"]
    if "bounds" in result or not any(lacking) or not has_interval(interval):
        return result
    base, edited = (count / result["n"] for count in lacking)
    ends = [interval[0] - base, interval[1] + edited]
    told = {
        (low > 0) - (high < 0)
        for low, high in (interval, (ends[0], interval[1] - base), (interval[0] + edited, ends[1]))
    }
    bounds = {
        "base": [result["base"], result["base"] + base],
        "edited": [result["edited"], result["edited"] + edited],
        **{"delta": [result["delta"] - base, result["delta"] + edited], "ci95": ends},
    }
    if max(base, edited) <= MOST_MISSING and abs(base - edited) <= MOST_APART and len(told) == 1:
        return {**result, "bounds": bounds}
    why = f"{lacking[0]} base and {lacking[1]} edited answers of {result['n']} have no verdict; this run took them as 0"
    return {**result, "bounds": bounds, "no_reading": why, **dict.fromkeys(("ci95", "p", "p_holm", "mde", "corrected"))}


def read_results(folder: Path, needed: tuple[str, ...] = INPUTS[:2]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(run, results) of a run folder that has the files `needed`; the optional parts of results filled in as empty."""
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise SpinError(
            f"{folder} has no {' and no '.join(missing)}.",
            cause="the run did not get as far as its evaluation, or this is not a run folder.",
            change="run the command that made it again (it resumes), or name another folder.",
        )
    results = read_stored(folder)
    read_record(folder)  # damage is one message
    run = {"started": "", **read_json(folder / "run.json")}
    check_belongs(folder, results.get("made_from") or {}, results.get("files") or {})
    results = {**OPTIONAL, **results}
    results["judge"] = {"label": "", **results["judge"]}
    results["edit"] = {**OPTIONAL_OF_EDIT, **results["edit"]} if results["edit"] else {}
    results["ratio_table"] = [{"both": None, "candidates": None, **row} for row in results["ratio_table"]]
    for table in (results, *results["controls"].values()):
        table["axes"] = {
            axis: of_unknown_answers(results["judge"], axis, with_bounds(result))
            for axis, result in table["axes"].items()
        }
    return run, results


def of_unknown_answers(judge: Mapping[str, Any], axis: str, result: dict[str, Any]) -> dict[str, Any]:
    """An axis of results.json. In a run of version 0.1.0 the judge's quality was that of answers which the run does not
    name, and holds for no others: no reading."""
    judged = axis not in (*CAPABILITY_AXES, ANSWERED)
    if "answers" in judge or not judged or not result["measurable"]:
        return result
    note = "measured on answers that this older run does not name"
    return {**result, "measurable": False, "note": note, **dict.fromkeys(("p", "p_holm", "mde", "corrected"))}


def sections(run: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """What both templates say, apart from place and transcripts."""
    command = run["command"]
    return {
        "run": run,
        "results": results,
        "edit": results["edit"],
        "headline": headline(results),
        "cost_line": cost_line(results),
        "cautions": cautions(results),
        "board": make_board(results),
        "rows": table_rows(results),
        "columns": COLUMNS,
        "capabilities": task_rows(results["capabilities"]),
        "corrected": corrected_rows(results["axes"]),
        "judge_lines": judge_lines(results),
        "quality": quality_rows(results),
        "quality_columns": QUALITY_COLUMNS,
        "confusion": confusion_rows(results),
        "agreement": agreement_rows(results["judge"].get("agreement", {})),
        "judge_limits": results["judge"].get("limits", []),
        "overlap": overlap_part(results["overlap"], results["edit"].get("weights")),
        "search": search_part(results["search"]),
        "stability": stability_text(results["stability"]),
        "style": style_rows(results["style"]),
        "phrases": phrase_parts(results["phrases"], results["axes"]),
        "facets": facet_lines(results["facets"]),
        "settings": {name: plain(value) for name, value in run["settings"].items()},
        "versions": run.get("versions", {}),
        "machine": machine_words(run),
        "command": command if isinstance(command, str) else shlex.join(command),
        "limits": limits(results),
        "unmeasurable": {
            axis: result["note"] or NOT_MEASURABLE
            for axis, result in results["axes"].items()
            if not result["measurable"]
        },
        "places": SHOWN,
        "static": STATIC,
        "perplexity": lambda value: number(value, "perplexity"),
        "increase": increase_text,
    }


def limits(results: dict[str, Any]) -> list[str]:
    """What this run cannot say: what holds for every run first, then what follows from these results."""
    few = [axis_label(axis) for axis, result in results["axes"].items() if verdict(result) == "not enough data"]
    blind = [axis_label(axis) for axis, result in results["axes"].items() if not result["measurable"]]
    return [
        *LIMITS,
        *([f"Fewer than {MINIMUM_N} prompts, and so no reading: {', '.join(few)}."] if few else []),
        *([f"The judge was not shown to tell good answers from bad ones on: {', '.join(blind)}."] if blind else []),
        *cautions(results),
    ]


def plain(value: Any) -> str:
    """A setting as text: strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
