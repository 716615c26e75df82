"""`spin-llm paper EXPERIMENT MODEL`: a plan, the arms, a table and a figure; `all` in one report.

In: the name of an experiment, settings, a folder. Out: EXPERIMENT.json, one for each experiment that was run or could
not be, EXPERIMENT.md and EXPERIMENT.svg where it has a figure in the folder, and paper.md and paper.html, which loads
nothing, of all that are there. Left out: the specs (experiments.py), the tables (tables.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from spin_llm import pipeline
from spin_llm.data import resolve_template
from spin_llm.errors import SpinError
from spin_llm.files import read_typed, write_json, write_text
from spin_llm.ownership import owned
from spin_llm.paper.arms import Work
from spin_llm.paper.estimate import planned
from spin_llm.paper.experiments import PAPER_RATIO, experiments
from spin_llm.paper.figures import figure
from spin_llm.paper.measures import measure
from spin_llm.paper.tables import Part, parts_of
from spin_llm.progress import SILENT, Console, Forecast
from spin_llm.report.canvas import inline_svg, svg_text, write_png
from spin_llm.report.render import render_markdown, render_page
from spin_llm.results.file import written
from spin_llm.results.paper import ArmRecord, Experiment, ExperimentRecord
from spin_llm.settings import RunSettings


def run_paper(
    name: str,
    settings: RunSettings,
    folder: Path,
    *,
    limit: int | None = None,
    models: Sequence[str] = (),
    epochs: int | None = None,
    ratio: float | None = None,
    console: Console = SILENT,
) -> list[Path]:
    """One experiment, or `all`; the files written. `limit` is the most questions, examples and training pairs; `models`
    are the further ones of `sizes`; `epochs` are those of the fine-tuning baselines (None: their default); `ratio` is
    SPIN's (None: the largest that the limit on perplexity allows).

    Raises SpinError for an unknown name, and for an experiment that cannot be run: `all` first runs the others."""
    known = experiments(limit, ratio)
    if name not in (*known, "all"):
        raise SpinError(f"There is no experiment {name!r}.", change=f"give {', '.join(known)}, or all.")
    wanted = [known[name]] if name != "all" else list(known.values())
    settings = shared_settings(settings, limit)
    with owned(folder) as folder:
        work = Work(with_date(settings, folder), folder, console, limit=limit, epochs=epochs)
        pipeline.check_settings(replace(work.settings, capabilities=()), [settings.model, *models])  # tasks: one alone
        _ = work.scored_checkpoint  # an error now for an adapter
        text, seconds_left = planned(wanted, work)
        console.say(text)
        forecast, left = Forecast(seconds_left(), console.say), [seconds_left()]

        def done() -> None:
            left.append(seconds_left())
            forecast.advance(left[-2] - left[-1])

        try:
            failed = run_experiments(wanted, work, models, done, go_on=name == "all")
        finally:  # what is done is told, also when the rest raises or is cut off
            if folder.is_dir():
                pages = write_pages(list(known.values()), folder, settings.model)
    if failed:
        raise SpinError(
            f"Not run: {', '.join(failed)}. {'The rest is done' if len(failed) < len(wanted) else 'None was run'}: "
            f"{pages[-1]}.",
            cause=next(iter(failed.values())).splitlines()[0],
            change="mend what each section of the report says, and give the same command: what is done is kept.",
        )
    return [*(folder / f"{experiment.name}.md" for experiment in wanted), *pages]


def with_date(settings: RunSettings, folder: Path) -> RunSettings:
    """The settings with the date that chat templates print, which is that of the folder's first call."""
    path = folder / "date.json"
    before = read_typed(path, str) if path.is_file() else None
    if before and settings.date not in (None, before):
        raise SpinError(
            f"{folder} was begun with --date {before}.", change="give that one, or another folder with --output."
        )
    day = before or settings.date or date.today().isoformat()
    if before is None:
        write_json(path, day)
    return replace(settings, date=day)


def shared_settings(settings: RunSettings, limit: int | None) -> RunSettings:
    """What every arm has in common: the rule `auto`, so that its search questions are left out for all arms."""
    settings = replace(settings, rule="auto", ratio=None)
    if limit is None:
        return settings
    few = min(settings.examples, limit)
    return replace(
        settings,
        examples=few,
        max_questions=min(limit, settings.max_questions or limit),
        trials=min(12, limit),
        survivors=min(2, limit),
    )


def run_experiments(
    wanted: Sequence[Experiment], work: Work, models: Sequence[str], done: Callable[[], None], *, go_on: bool
) -> dict[str, str]:
    """Measure and write each experiment; with `go_on`, {name: why} of those that cannot be run, which would raise.
    `done` is called after each arm."""
    failed = {}
    for experiment in wanted:
        work.console.say(f"{experiment.name}: {experiment.title}")
        try:
            write_experiment(experiment, work, models, done)
        except SpinError as error:
            if not go_on:
                raise
            failed[experiment.name] = str(error)
            write_failure(work.folder, experiment, str(error))
            work.console.say(f"{experiment.name} is not run: {error.what.splitlines()[0]}")
    return failed


def write_experiment(experiment: Experiment, work: Work, models: Sequence[str], done: Callable[[], None]) -> None:
    """Measure what is missing; write the experiment's files. `sizes` has the arms of every model; one model alone is no
    comparison of sizes, which its table says."""
    results = []
    for model in (work.settings.model, *(models if experiment.name == "sizes" else ())):
        part = work if model == work.settings.model else work.told(replace(work.settings, model=model))
        _ = part.scored_checkpoint  # an error now for an adapter
        for arm in experiment.arms:
            row = measure(part, arm, experiment.kind)
            results.append(replace(row, name=f"{Path(model).name}, {arm.name}") if experiment.name == "sizes" else row)
            done()
    ratios = {arm.options["ratio"] for arm in experiment.arms if "ratio" in arm.options}
    write_record(work.folder, experiment, results, work.settings.model, differences(work, ratios))


def differences(work: Work, ratios: Collection[float | None]) -> list[str]:
    """What is not as in the paper, from the settings and the ratios of SPIN's arms (None: chosen by perplexity)."""
    settings = work.settings
    found = [f"model {Path(settings.model).name}", f"judge {settings.judge} (the paper: MD-Judge-v0.1)"]
    sources = sorted({source for _, source in (*settings.concepts, *settings.questions)})
    found.append(f"data {', '.join(sources)}, questions that the search of auto used left out")
    if work.limit:
        found.append(f"a small version: at most {work.limit} questions, examples and training pairs")
    template = resolve_template(work.model.tokenizer, settings.template)
    if template == "chat":
        found.append("prompts in the model's chat template (the paper: raw; --template released)")
    elif template == "raw":
        found.append("the first token of a response is kept (the paper's code drops it; --template released)")
    if None in ratios:
        most = f"{settings.max_perplexity_increase:.0%}"
        found.append(
            f"ratio chosen by perplexity, at most {most} more (the paper: 5e-7, no weight at all in small matrices)"
        )
    elif len(ratios) == 1 and PAPER_RATIO not in ratios:
        found.append(f"ratio {next(iter(ratios)):g} (the paper: 5e-7)")
    found.append("hyper-parameters of the fine-tuning baselines are common ones, the paper prints none")
    return found


@dataclass(frozen=True)
class Section:
    """One experiment of the report. `state`: `done`, `failed` (why it was not run stands in `parts`) or `absent`."""

    name: str
    title: str
    state: str = "absent"
    parts: Sequence[Part] = ("Not run.",)
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
        write_png(base.with_suffix(".png"), drawn)
        write_text(base.with_suffix(".svg"), svg_text(drawn, experiment.name))
    record = ExperimentRecord(experiment, list(results), model, list(differs))
    write_json(base.with_suffix(".json"), written(record))  # last: what it stands for is whole


def write_failure(folder: Path, experiment: Experiment, why: str) -> None:
    """Why the experiment could not be run, beside what an earlier run of it found."""
    file = folder / f"{experiment.name}.json"
    before = read_typed(file, ExperimentRecord) if file.is_file() else ExperimentRecord(experiment)
    write_json(file, written(replace(before, not_run=why)))


def write_pages(known: Sequence[Experiment], folder: Path, model: str) -> list[Path]:
    """EXPERIMENT.md of all that are there, paper.md and paper.html, in the paper's order; the files of the whole."""
    sections = [section_of(experiment, folder, model) for experiment in known]
    title = f"The paper's experiments on {Path(model).name}"
    pictures = {one.name: inline_svg(one.picture, one.title) for one in sections if one.picture}
    lists = [section.differs for section in sections if section.differs]  # of every experiment that has results
    context = {
        "title": title,
        "model": Path(model).name,
        "sections": sections,
        "done": [section.title for section in sections if section.state == "done"],
        "shared": [text for text in lists[0] if all(text in other for other in lists)] if lists else [],
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
    spec, again = record.experiment, " again" if record.results else ""
    failed = [f"Not run{again}: {record.not_run}"] if record.not_run else []
    if not record.results:
        return Section(experiment.name, experiment.title, "failed", failed)
    parts = [*failed, *parts_of(spec, record.results, record.model or model)]
    picture = drawn.read_text(encoding="utf-8") if drawn.is_file() else None
    return Section(spec.name, spec.title, "failed" if failed else "done", parts, record.differs, picture)
