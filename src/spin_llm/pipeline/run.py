"""The whole job in one resumable folder: score, select, patch, evaluate, report.

In: `RunSettings` and a folder. Out: the run folder (run.json, scores/, patch.safetensors,
generations.jsonl, verdicts.jsonl, results.json, report.html, report.md, figures/). Each stage writes a file when it is
complete and is skipped when that file is there, so a killed run continues and ends with the same patch and results.
Left out: parsing options and printing (cli/).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spin_llm.data import resolve_template
from spin_llm.errors import SpinError
from spin_llm.files import read_checked
from spin_llm.models import LoadedModel, mlp_coverage
from spin_llm.ownership import owned
from spin_llm.patch.patch import Patch
from spin_llm.pipeline.checking import check_model, check_settings
from spin_llm.pipeline.context import fitting, load_model, scored_checkpoint
from spin_llm.pipeline.evaluate_stage import evaluate_stage
from spin_llm.pipeline.folder import located, model_record
from spin_llm.pipeline.inputs import RunData, read_data, with_rule
from spin_llm.pipeline.own_stage import with_own_answers
from spin_llm.pipeline.resuming import Opened, open_folder
from spin_llm.pipeline.score_stage import score_stage
from spin_llm.pipeline.select_stage import select_stage
from spin_llm.pipeline.stability_stage import stability_stage
from spin_llm.progress import SILENT, Console
from spin_llm.records import PATCH, RESULTS
from spin_llm.report import write_report
from spin_llm.results.file import read_results_json
from spin_llm.results.searched import SearchRecord
from spin_llm.scores import ScoreSet
from spin_llm.settings import SEARCHED, STAGES, RunSettings


def run(
    settings: RunSettings, folder: str | Path, *, overwrite: bool = False, console: Console = SILENT
) -> dict[str, Any]:
    """Do everything; returns what results.json holds.

    Raises SpinError on bad input, before anything of the user's is touched.
    """
    with owned(folder) as folder:
        data, opened = prepared(settings, folder, console, stages=STAGES, overwrite=overwrite)
        settings = opened.settings
        if not (overwrite or opened.stale) and (folder / RESULTS).is_file() and (folder / PATCH).is_file():
            console.say(f"{folder} is complete; writing its report again")
            write_report(folder)
            return read_results_json(folder)
        loaded, data, scores, patch = edit_stages(opened, data, console)
        if settings.resamples:
            options: dict[str, Any] = {"resamples": settings.resamples, "seed": settings.seed}
            try:
                stability_stage(settings, folder, loaded, data, scores, patch, console, **options)
            except SpinError as error:
                if settings.rule != SEARCHED:  # else the ratio was not the user's choice: the run goes on
                    raise
                console.say(f"stability is left out: {error}")
        results = evaluate_stage(settings, folder, loaded, data, scores, patch, console)
        report = write_report(folder)
    console.say(f"report {report}")
    return results


def sweep(
    settings: RunSettings, folder: str | Path, *, overwrite: bool = False, console: Console = SILENT
) -> dict[str, Any]:
    """Score and search alone: what search.json holds. `run` with the same settings goes on from there."""
    settings = with_rule(settings, console)
    if not settings.searches:
        raise SpinError(
            f"With the rule {settings.rule} there is nothing to search.",
            cause="--rule or --ratio was given; or the data have no aware and unaware responses.",
            change="leave out --rule and --ratio, or use `spin-llm run`.",
        )
    with owned(folder) as folder:
        data, opened = prepared(settings, folder, console, stages=STAGES[:-1], overwrite=overwrite)
        edit_stages(opened, data, console)
        return dict(read_checked(folder / "search.json", SearchRecord))


def prepared(
    settings: RunSettings, folder: Path, console: Console, *, stages: Sequence[str], overwrite: bool
) -> tuple[RunData, Opened]:
    """The data of a run, and what may be done with its folder; all that can be is checked, and nothing is written."""
    check_settings(settings, [settings.model])
    settings = with_rule(settings, console)
    data = read_data(settings, console)
    checkpoint = scored_checkpoint(settings, console)
    check_model(settings, checkpoint, folder)
    rows = data.record(located(settings))
    return data, open_folder(settings, folder, checkpoint, rows, stages=stages, overwrite=overwrite, console=console)


def edit_stages(opened: Opened, data: RunData, console: Console) -> tuple[LoadedModel, RunData, ScoreSet, Patch]:
    """From the model to its patch: (model, the data that were scored, scores, patch)."""
    settings, folder = opened.settings, opened.folder
    loaded = load_model(settings, console)
    template = resolve_template(loaded.tokenizer, settings.template)
    console.say(
        f"{settings.model}: {sum(p.numel() for p in loaded.model.parameters()) / 1e6:,.0f}M parameters, "
        f"{str(loaded.dtype).removeprefix('torch.')} on {loaded.device}, template {template}; "
        f"{mlp_coverage(loaded.model):.0%} of the MLP weights can be edited"
    )
    data = fitting(settings, data, loaded, console=console)
    opened.write(model_record(settings, loaded), data.record(located(settings)), console)
    data = with_own_answers(settings, folder, loaded, data, console)
    scores = score_stage(settings, folder, loaded, data, console)
    return loaded, data, scores, select_stage(settings, folder, loaded, data, scores, console)
