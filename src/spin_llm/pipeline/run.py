"""The whole job in one resumable folder: score, select, patch, evaluate, report.

In: `RunSettings` and a folder. Out: the run folder (run.json, scores/, patch.safetensors,
generations.jsonl, verdicts.jsonl, results.json, report.html, report.md, figures/). Each stage writes a file when it is
complete and is skipped when that file is there, so a killed run continues and ends with the same patch and results.
Left out: parsing options and printing (cli/).
"""

from __future__ import annotations

from pathlib import Path

from spin_llm.data import resolve_template
from spin_llm.errors import SpinError
from spin_llm.files import read_typed
from spin_llm.models import mlp_coverage
from spin_llm.ownership import owned
from spin_llm.pipeline.context import Run
from spin_llm.pipeline.evaluate_stage import evaluate_stage
from spin_llm.pipeline.resuming import Opened
from spin_llm.pipeline.score_stage import opened_folder, score_stage
from spin_llm.pipeline.select_stage import select_stage, stability_stage
from spin_llm.progress import SILENT, Console
from spin_llm.records import PATCH, RESULTS
from spin_llm.report import write_report
from spin_llm.results.file import Results, read_results
from spin_llm.results.searched import SearchRecord
from spin_llm.settings import SEARCHED, STAGES, RunSettings


def run(
    settings: RunSettings | str, folder: str | Path, *, overwrite: bool = False, console: Console = SILENT
) -> Results:
    """Do everything; returns what results.json holds. A model alone is run with the command's defaults.

    Raises SpinError on bad input, before anything of the user's is touched.
    """
    with owned(folder) as folder:
        work = Run.of(settings, folder, console)
        opened = opened_folder(work, stages=STAGES, overwrite=overwrite)
        if not (overwrite or opened.stale) and (folder / RESULTS).is_file() and (folder / PATCH).is_file():
            console.say(f"{folder} is complete; writing its report again")
            write_report(folder)
            return read_results(folder)
        edit_stages(work, opened)
        if work.settings.resamples:
            try:
                stability_stage(work, work.settings.resamples, work.settings.seed)
            except SpinError as error:
                if work.settings.rule != SEARCHED:  # else the ratio was not the user's choice: the run goes on
                    raise
                console.say(f"stability is left out: {error}")
        results = evaluate_stage(work)
        report = write_report(folder)
    console.say(f"report {report}")
    return results


def sweep(
    settings: RunSettings | str, folder: str | Path, *, overwrite: bool = False, console: Console = SILENT
) -> SearchRecord:
    """Score and search alone: what search.json holds. `run` with the same settings goes on from there."""
    work = Run.of(settings, Path(folder), console)
    work.settle_rule()
    if not work.settings.searches:
        raise SpinError(
            f"With the rule {work.settings.rule} there is nothing to search.",
            cause="--rule or --ratio was given; or the data have no aware and unaware responses.",
            change="leave out --rule and --ratio, or use `spin-llm run`.",
        )
    with owned(folder):
        edit_stages(work, opened_folder(work, stages=STAGES[:-1], overwrite=overwrite))
        return read_typed(work.folder / "search.json", SearchRecord)


def edit_stages(work: Run, opened: Opened) -> None:
    """From the model to its scores and its patch."""
    settings, loaded = work.settings, work.model
    template = resolve_template(loaded.tokenizer, settings.template)
    work.console.say(
        f"{settings.model}: {sum(p.numel() for p in loaded.model.parameters()) / 1e6:,.0f}M parameters, "
        f"{str(loaded.dtype).removeprefix('torch.')} on {loaded.device}, template {template}; "
        f"{mlp_coverage(loaded.model):.0%} of the MLP weights can be edited"
    )
    work.begin(opened)
    score_stage(work)
    select_stage(work)
