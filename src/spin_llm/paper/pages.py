"""One report of all experiments in a folder: paper.html, which loads nothing, and paper.md, beside EXPERIMENT.md.

In: EXPERIMENT.json, one for each experiment that was run or could not be, and EXPERIMENT.svg where it has a figure.
Out: the pages. Left out: measuring; which experiments there are (experiments.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spin_llm.files import read_typed, write_json, write_text
from spin_llm.outputs import writing
from spin_llm.paper.figures import figure
from spin_llm.paper.tables import Part, parts_of
from spin_llm.report.canvas import inline_svg, png_bytes, svg_text
from spin_llm.report.render import render_markdown, render_page
from spin_llm.results.file import written
from spin_llm.results.paper import ArmRecord, Experiment, ExperimentRecord

NOT_RUN = "Not run."


@dataclass(frozen=True)
class Section:
    """One experiment of the report. `state`: `done`, `failed` (why it was not run stands in `parts`) or `absent`."""

    name: str
    title: str
    state: str = "absent"
    parts: Sequence[Part] = (NOT_RUN,)
    differs: Sequence[str] = ()
    picture: str | None = None


def write_record(
    folder: Path, experiment: Experiment, results: Sequence[ArmRecord], model: str, differs: Sequence[str]
) -> None:
    """The figure as EXPERIMENT.png and .svg, then EXPERIMENT.json, which says that the experiment is done."""
    base = folder / experiment.name
    drawn = figure(experiment, results)
    if drawn is None:
        for suffix in (".png", ".svg"):  # of an earlier run of other settings
            base.with_suffix(suffix).unlink(missing_ok=True)
    else:
        with writing(base.with_suffix(".png")) as part:
            part.write_bytes(png_bytes(drawn))
        write_text(base.with_suffix(".svg"), svg_text(drawn, experiment.name))
    record = ExperimentRecord(experiment, list(results), model, list(differs))
    write_json(base.with_suffix(".json"), written(record))  # last: what it stands for is whole


def write_failure(folder: Path, experiment: Experiment, why: str) -> None:
    """Why the experiment could not be run, beside what an earlier run of it found."""
    file = folder / f"{experiment.name}.json"
    before = read_typed(file, ExperimentRecord) if file.is_file() else ExperimentRecord(experiment)
    write_json(file, written(replace(before, not_run=why)))


def write_pages(known: Sequence[Experiment], folder: Path, model: str) -> list[Path]:
    """EXPERIMENT.md of every experiment that is there, paper.md and paper.html, in the paper's order; the files of the
    whole."""
    sections = [section_of(experiment, folder, model) for experiment in known]
    title = f"The paper's experiments on {Path(model).name}"
    pictures = {one.name: inline_svg(one.picture, one.title) for one in sections if one.picture}
    context = {
        "title": title,
        "model": Path(model).name,
        "sections": sections,
        "done": [section.title for section in sections if section.state == "done"],
        "shared": shared_differences(sections),
    }
    for section in sections:
        if section.state != "absent":
            text = render_markdown("paper.md.j2", {"title": "", "sections": [section]})
            write_text(folder / f"{section.name}.md", text)
    write_text(folder / "paper.md", render_markdown("paper.md.j2", context))
    write_text(folder / "paper.html", render_page("paper.html.j2", context, svg=pictures))
    return [folder / "paper.md", folder / "paper.html"]


def section_of(experiment: Experiment, folder: Path, model: str) -> Section:
    """What the folder holds of an experiment, as it was when it was run."""
    file, drawn = folder / f"{experiment.name}.json", folder / f"{experiment.name}.svg"
    if not file.is_file():
        return Section(experiment.name, experiment.title)
    record = read_typed(file, ExperimentRecord, change="delete it, and run the experiment again.")
    spec = record.experiment
    if not record.results:
        failed = [f"Not run: {record.not_run}"] if record.not_run else []
        return Section(experiment.name, experiment.title, "failed", failed)
    failed = [f"Not run again: {record.not_run}"] if record.not_run else []
    parts = [*failed, *parts_of(spec, record.results, record.model or model)]
    picture = drawn.read_text(encoding="utf-8") if drawn.is_file() else None
    return Section(spec.name, spec.title, "failed" if failed else "done", parts, record.differs, picture)


def shared_differences(sections: Sequence[Section]) -> list[str]:
    """What differs from the paper in every experiment that has results."""
    lists = [section.differs for section in sections if section.differs]
    return [text for text in lists[0] if all(text in other for other in lists)] if lists else []
