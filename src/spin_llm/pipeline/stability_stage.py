"""Whether other scoring data would have chosen a run's weights.

In: a run with scores and a patch: its settings, model and data in a run under way, or its folder alone. Out:
stability.json; of a finished run also the `stability` part of results.json and the report. Left out: the resampling
itself (analysis/stability.py).
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from spin_llm.analysis.stability import Job, measure_stability
from spin_llm.errors import SpinError
from spin_llm.files import read_typed, write_json
from spin_llm.models import checkpoint_of
from spin_llm.ownership import owned
from spin_llm.pipeline.context import Run, encode
from spin_llm.pipeline.folder import write_run_results
from spin_llm.pipeline.resuming import data_changes, refuse_bound
from spin_llm.pipeline.select_stage import recorded_checkpoint
from spin_llm.progress import SILENT, Console
from spin_llm.records import PATCH, RECORD, RESULTS, check_belongs, is_run, read_record
from spin_llm.report import write_report
from spin_llm.results.edited import StabilityRecord
from spin_llm.results.file import read_results, written
from spin_llm.scores import Sides, parse_bytes
from spin_llm.selection import KNOWN, select


def stability_stage(run: Run, resamples: int, seed: int, *, anew: bool = False) -> StabilityRecord:
    """Select again from resampled scoring data into stability.json; unless `anew`, read it when it is there, made with
    the same `resamples` and `seed`."""
    path, settings = run.folder / "stability.json", run.settings
    if path.is_file() and not anew:
        before = read_typed(path, StabilityRecord)
        if (before.resamples, before.seed) == (resamples, seed):
            return before
    data, scores, recipe = run.inputs, run.scores, run.patch.info.recipe
    rule = KNOWN[recipe.rule]
    spared = rule.spared(scores)
    unaware = data.unaware if "margin" in rule.needs else {}
    examples = {
        name: Sides(encode(settings, run.model, pairs), encode(settings, run.model, unaware.get(name, ())))
        for name, pairs in {**data.concepts, **data.protect}.items()
        if name in spared.everything
    }
    result = measure_stability(
        run.model,
        examples,
        Job(select(scores, recipe), spared),
        resamples=resamples,
        seed=seed,
        budget=parse_bytes(settings.memory_budget) if settings.memory_budget else None,
        folder=run.folder / "progress" / "stability",
        console=run.console,
    )
    write_json(path, written(result))
    shutil.rmtree(run.folder / "progress" / "stability")
    with suppress(OSError):  # a run that is not finished keeps other things there
        (run.folder / "progress").rmdir()
    return result


def stability(
    folder: str | Path,
    *,
    resamples: int,
    seed: int | None = None,
    model: str | None = None,
    overwrite: bool = False,
    console: Console = SILENT,
) -> StabilityRecord:
    """Whether other scoring data would have chosen a run's weights: what stability.json holds.

    Data and model are read as run.json records them, and must be the same; `model` says where the model is now. Where
    the run has results, their `stability` part and the report are written again. `seed` None is the run's own.
    """
    folder = Path(folder)
    if not is_run(folder) or not (folder / PATCH).is_file():
        raise SpinError(f"{folder} is not a run with a patch.", change="finish `spin-llm run` in that folder first.")
    with owned(folder):
        record = read_record(folder)
        settings = record.told(folder / RECORD)
        seed = settings.seed if seed is None else seed
        path = folder / "stability.json"
        before = read_typed(path, StabilityRecord) if path.is_file() and not overwrite else None
        if before and (before.resamples, before.seed) != (resamples, seed):
            raise SpinError(
                f"{path} has {before.resamples} resamples, seed {before.seed}.",
                change="give --overwrite to replace it.",
            )
        results = read_results(folder) if (folder / RESULTS).is_file() else None
        if results is not None:
            check_belongs(folder, results.made_from, results.files)
        given = checkpoint_of(model, say=console.say) if model else None
        place = recorded_checkpoint(record, folder, given).folder
        settings = replace(settings, model=str(place), dtype=record.model.dtype or "auto")  # type: ignore[arg-type]
        if not settings.asks_own:  # whose prompts are those that no question has
            settings = replace(settings, questions=())
        run = Run(settings, folder, console)
        _ = run.patch  # an error now where another command wrote it
        scored = [row for row in run.read.record(settings) if row.role in ("concept", "protect")]
        was = replace(record, data=[row for row in record.data if row.role in ("concept", "protect")])
        refuse_bound(folder, data_changes(was, scored, settings))
        result = stability_stage(run, resamples, seed, anew=overwrite)
        if results is not None:
            write_run_results(folder, replace(results, stability=result.summary))
            write_report(folder)
    return result
