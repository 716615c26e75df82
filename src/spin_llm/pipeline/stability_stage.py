"""Whether other scoring data would have chosen a run's weights.

In: a run with scores and a patch: its settings, model and data in a run under way, or its folder alone. Out:
stability.json; of a finished run also the `stability` part of results.json and the report. Left out: the resampling
itself (analysis/stability.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec import convert

from spin_llm.analysis.resampled import Job
from spin_llm.analysis.stability import ScoredExamples, measure_stability, stability_summary
from spin_llm.errors import SpinError
from spin_llm.files import read_checked, write_json
from spin_llm.models import LoadedModel
from spin_llm.ownership import owned
from spin_llm.patch.patch import Patch
from spin_llm.pipeline.context import checkpoint_of, encode, fitting, load_model
from spin_llm.pipeline.folder import write_results
from spin_llm.pipeline.inputs import RunData, read_data
from spin_llm.pipeline.own_stage import with_own_answers
from spin_llm.pipeline.resuming import data_changes, refuse_bound
from spin_llm.pipeline.score_stage import stored_scores
from spin_llm.pipeline.select_stage import patch_of_run, recorded_checkpoint
from spin_llm.progress import SILENT, Console
from spin_llm.records import PATCH, RECORD, RESULTS, RunRecord, check_belongs, is_run, read_record
from spin_llm.report import write_report
from spin_llm.results.edited import Stability, StabilityRecord
from spin_llm.results.file import read_results
from spin_llm.results.recipe import recipe_of
from spin_llm.scores import ScoreSet, parse_bytes
from spin_llm.selection import KNOWN, select
from spin_llm.settings import RunSettings


def stability_stage(
    settings: RunSettings,
    folder: Path,
    loaded: LoadedModel,
    data: RunData,
    scores: ScoreSet,
    patch: Patch,
    console: Console,
    *,
    resamples: int,
    seed: int,
    anew: bool = False,
) -> dict[str, Any]:
    """Select again from resampled scoring data into stability.json; unless `anew`, read it when it is there, made with
    the same `resamples` and `seed`."""
    path = folder / "stability.json"
    if path.is_file() and not anew:
        before = dict(read_checked(path, StabilityRecord))
        if (before["resamples"], before["seed"]) == (resamples, seed):
            return before
    recipe = recipe_of(patch.metadata)
    rule = KNOWN[recipe.rule]
    spared = rule.spared(scores)
    unaware = data.unaware if "margin" in rule.needs else {}
    examples = {
        name: ScoredExamples(encode(settings, loaded, pairs), encode(settings, loaded, unaware.get(name, ())))
        for name, pairs in {**data.concepts, **data.protect}.items()
        if name in spared.everything
    }
    result = measure_stability(
        loaded,
        examples,
        Job(select(scores, recipe), spared),
        target=settings.target,
        resamples=resamples,
        seed=seed,
        budget=parse_bytes(settings.memory_budget) if settings.memory_budget else None,
        folder=folder / "progress" / "stability",
        console=console,
    )
    write_json(path, result)
    shutil.rmtree(folder / "progress" / "stability")
    with suppress(OSError):  # a run that is not finished keeps other things there
        (folder / "progress").rmdir()
    return result


def stability(
    folder: str | Path,
    *,
    resamples: int,
    seed: int | None = None,
    model: str | None = None,
    overwrite: bool = False,
    console: Console = SILENT,
) -> dict[str, Any]:
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
        refuse_other_resamples(folder / "stability.json", resamples, seed, overwrite=overwrite)
        results = read_results(folder) if (folder / RESULTS).is_file() else None
        if results is not None:
            check_belongs(folder, results.made_from, results.files)
        given = checkpoint_of(model, console) if model else None
        place = recorded_checkpoint(record, folder, given).folder
        settings = replace(settings, model=str(place), dtype=record.model.dtype or "auto")  # type: ignore[arg-type]
        if not settings.asks_own:  # whose prompts are those that no question has
            settings = replace(settings, questions=())
        patch = patch_of_run(settings, folder / PATCH)
        data = read_data(settings, console)
        refuse_other_data(record, data.record(settings), folder)
        loaded = load_model(settings, console)
        data = fitting(settings, data, loaded)
        data = with_own_answers(settings, folder, loaded, data, console)
        scores = stored_scores(settings, folder)
        options: dict[str, Any] = {"resamples": resamples, "seed": seed, "anew": overwrite}
        result = stability_stage(settings, folder, loaded, data, scores, patch, console, **options)
        if results is not None:
            write_results(folder, replace(results, stability=convert(stability_summary(result), Stability)))
            write_report(folder)
    return result


def refuse_other_resamples(path: Path, resamples: int, seed: int, *, overwrite: bool) -> None:
    """SpinError when a stability.json is there that was made with other numbers."""
    if not path.is_file() or overwrite:
        return
    before = read_checked(path, StabilityRecord)
    if (before["resamples"], before["seed"]) != (resamples, seed):
        raise SpinError(
            f"{path} has {before['resamples']} resamples, seed {before['seed']}.",
            change="give --overwrite to replace it.",
        )


def refuse_other_data(record: RunRecord, data: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """SpinError when what was scored is not what is read now."""
    scored = [row for row in data if row["role"] in ("concept", "protect")]
    was = replace(record, data=[row for row in record.data if row.role in ("concept", "protect")])
    refuse_bound(folder, data_changes(was, scored, record.told(folder / RECORD)))
