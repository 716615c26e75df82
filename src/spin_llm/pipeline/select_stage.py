"""From scores to a patch: the recipe given or searched, the selection, what the patch says of itself, and whether other
scoring data would have chosen its weights.

In: a `Run` with scores; or its folder alone and a checkpoint. Out: patch.safetensors, search.json of a search; or
another patch of the same scores; stability.json, of a finished run also the `stability` part of results.json and the
report. Left out: the rules (selection/), the search (search/find.py), the edit of a model (patch/), the resampling
itself (analysis/stability.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from spin_llm.analysis.stability import Job, measure_stability
from spin_llm.errors import SpinError
from spin_llm.files import is_folder, read_typed, write_json
from spin_llm.judges.quality.reading import asked_of
from spin_llm.models import Checkpoint, checkpoint_of, resolve
from spin_llm.outputs import check_output
from spin_llm.ownership import owned
from spin_llm.patch.file import check_same_shapes, make_patch, save_patch
from spin_llm.patch.patch import Patch
from spin_llm.pipeline import resuming
from spin_llm.pipeline.context import Run, asking, encode, stored_scores
from spin_llm.pipeline.folder import there, write_run_results
from spin_llm.pipeline.resuming import delete_artefacts, made_after, model_changes, usual_recipe
from spin_llm.pipeline.score_stage import encoded_sets
from spin_llm.progress import SILENT, Console
from spin_llm.records import PATCH, RECORD, RESULTS, RunRecord, check_belongs, is_run, read_record
from spin_llm.report import write_report
from spin_llm.results.edited import RatioTried, Recipe, StabilityRecord
from spin_llm.results.file import read_results, written
from spin_llm.results.searched import SearchRecord
from spin_llm.scores import ScoreSet, Sides, parse_bytes
from spin_llm.search.find import find_edit
from spin_llm.search.ratio import choose_ratio
from spin_llm.search.trials import Bench
from spin_llm.selection import KNOWN, Selection, select
from spin_llm.settings import OWN, SEARCHED, RunSettings


def select_stage(run: Run) -> None:
    """Choose the ratio where it is to be chosen, select, and write patch.safetensors, unless it is there."""
    path = run.folder / PATCH
    if path.is_file():
        _ = run.patch  # an error now where another command wrote it
        return
    recipe, table = find_recipe(run, run.scores, run.folder)
    selection = select(run.scores, recipe)
    patch = patch_of(run.settings, run.model.checkpoint, selection, run.scores, table)
    save_patch(path, patch)
    run.console.say(f"{patch.weights:,} weights in {len(patch.edits)} matrices, ratio {recipe.ratio:g}; patch {path}")


def find_recipe(run: Run, scores: ScoreSet, folder: Path) -> tuple[Recipe, list[RatioTried]]:
    """(the recipe that is given, searched in `folder`, or at the largest ratio that the limit on perplexity allows; the
    ratios tried)."""
    settings = run.settings
    if settings.rule == SEARCHED:
        return search_stage(run, scores, folder), []
    if settings.ratio is not None:
        return usual_recipe(settings, settings.rule, settings.ratio), []
    ratio, table = choose_ratio(
        run.model,
        scores,
        encode(settings, run.model, run.inputs.choose),
        recipe=usual_recipe(settings, settings.rule, 0.5),
        max_increase=settings.max_perplexity_increase,
        console=run.console,
    )
    return usual_recipe(settings, settings.rule, ratio), table


def search_stage(run: Run, scores: ScoreSet, folder: Path) -> Recipe:
    """Search an edit into search.json; the pick of an earlier search is read."""
    settings, path = run.settings, folder / "search.json"
    if path.is_file():
        return read_typed(path, SearchRecord).recipe
    questions = asking(settings, run.inputs.search, asked=asked_of([run.model], settings.questions))
    record = find_edit(
        bench_of(run, scores),
        usual_recipe(settings, "coupled", min(settings.keep, 1e-4)),
        folder / "search",
        effort=settings.budget,
        questions=questions if settings.searches_answers else None,
        judges=lambda: (run.judge, run.coherence),
        seed=settings.seed,
        console=run.console,
    )
    responses = OWN if OWN in run.inputs.protect else settings.given_responses
    record = replace(record, effort=settings.effort, responses=responses)
    write_json(path, written(record))
    for rung in (folder / "search").glob("rung-*"):  # what a killed search would have gone on from
        shutil.rmtree(rung / "progress", ignore_errors=True)
    return record.recipe


def bench_of(run: Run, scores: ScoreSet) -> Bench:
    """What edits are tried on."""
    settings, loaded = run.settings, run.model
    contrasts = {
        name: Sides(encode(settings, loaded, aware), encode(settings, loaded, unaware))
        for name, (aware, unaware) in run.inputs.contrasts.items()
    }
    general = encode(settings, loaded, run.inputs.choose[: 2 * settings.budget.pairs])
    return Bench(loaded, scores, contrasts, general, settings.max_perplexity_increase)


def patch_of(
    settings: RunSettings,
    checkpoint: Checkpoint,
    selection: Selection,
    scores: ScoreSet,
    table: Sequence[RatioTried] = (),
) -> Patch:
    """A patch that says which model and data it is from, and how its recipe was found."""
    patch = make_patch(checkpoint, selection)
    info = replace(
        patch.info,
        base_model=settings.model,
        data_sha256={name: part.info.data_sha256 for name, part in scores.everything.items()},
        ratio_table=tuple(table),
        searched=settings.rule == SEARCHED,
    )
    return replace(patch, info=info)


def select_from_folder(
    folder: str | Path,
    output: str | Path,
    recipe: Recipe,
    *,
    model: str | None = None,
    overwrite: bool = False,
    console: Console = SILENT,
) -> Patch:
    """A patch from the scores of a run folder, for its model, or for another `model` of the same shapes (a fine-tuned
    one).

    The checkpoint is read for the old values of the touched tensors alone. Where the patch takes the place of the
    run's, what was measured with that one is deleted.
    """
    folder, output = Path(folder), Path(output)
    record = read_record(folder)
    settings = record.told(folder / RECORD)
    own = output.resolve() == (folder / PATCH).resolve()
    with owned(folder) if own else nullcontext():
        if check_output(output, file=True).exists() and not overwrite:
            raise SpinError(f"{output} exists.", change="choose another --output, or --overwrite.")
        scores = stored_scores(settings, folder)
        recipe = replace(recipe, granularity=recipe.granularity or settings.granularity)
        checkpoint = Checkpoint(resolve(model)) if model else recorded_checkpoint(record, folder)
        selection = select(scores, recipe)
        if model:
            check_same_shapes(checkpoint, selection, record.model.name)
        settings = replace(settings, model=model or record.model.name, rule=recipe.rule, ratio=recipe.ratio)  # type: ignore[arg-type] # a recipe names a known rule
        patch = patch_of(settings, checkpoint, selection, scores)
        if own and any(there(folder, made_after("answers"))):
            console.say("another patch: what was measured with the one before is deleted")
            delete_artefacts(folder, "answers")
        save_patch(output, patch)
    return patch


def recorded_checkpoint(record: RunRecord, folder: Path, given: Checkpoint | None = None) -> Checkpoint:
    """The model of a run as its record knows it, or where it is `given`; SpinError when it is not there, or another one
    now."""
    path, name = Path(record.model.path or ""), record.model.name
    if given is None and (not record.model.path or not is_folder(path)):
        raise SpinError(
            f"The model of {folder}, {name}, is not at {record.model.path or 'any path'} any more.",
            cause="its folder was moved or deleted since.",
            change="move it back; or say where it is: `spin-llm select --for MODEL`, `spin-llm stability --for MODEL`, "
            f"or `spin-llm run MODEL -o {folder}`, which also writes it down.",
        )
    checkpoint = given or Checkpoint(path)
    if changed := [change.words for change in model_changes(record, checkpoint, SILENT)]:
        raise SpinError(
            f"The model changed since the run in {folder} began: {', '.join(changed)}.",
            change=f"restore {checkpoint.folder}; or score it again in another folder.",
        )
    return checkpoint


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
    read = data if "margin" in rule.needs else replace(data, unaware={})
    names = [name for name in (*data.concepts, *data.protect) if name in spared.everything]
    result = measure_stability(
        run.model,
        encoded_sets(settings, run.model, read, names),
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
        resuming.refuse_bound(folder, resuming.data_changes(was, scored, settings))
        result = stability_stage(run, resamples, seed, anew=overwrite)
        if results is not None:
            write_run_results(folder, replace(results, stability=result.summary))
            write_report(folder)
    return result
