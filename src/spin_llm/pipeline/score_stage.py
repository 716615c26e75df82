"""The scores of a run: every concept and protected set into scores/NAME.safetensors.

In: a `Run`. Out: the score files; before them, where the settings ask for it, the model's own answers in the folder
own/, as the pairs that are scored. What is there is not made again. Left out: the scoring of one set (scores/).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from spin_llm.data import rows_sha256
from spin_llm.errors import SpinError
from spin_llm.models import editable_matrices
from spin_llm.ownership import owned
from spin_llm.pipeline.checking import check_model, check_settings, free_space
from spin_llm.pipeline.context import Run, encode, score_file
from spin_llm.pipeline.estimate import plan_sets
from spin_llm.pipeline.folder import located, model_record
from spin_llm.pipeline.resuming import open_folder
from spin_llm.progress import SILENT, Advance, Console, Forecast
from spin_llm.records import RECORD, read_record
from spin_llm.scores import Passes, Plan, Ranks, Scoring, load_scores, save_scores, score_concept
from spin_llm.scores import ranks as joined_ranks
from spin_llm.scores.importance import formed
from spin_llm.scores.margins import candidate_entries
from spin_llm.settings import RunSettings

ALONE = Ranks()


def score(
    settings: RunSettings | str, folder: str | Path, *, overwrite: bool = False, console: Console = SILENT
) -> list[Path]:
    """Only the scores: the score files written, in a folder that `select_from_folder` and `run` take up.

    Under `torchrun` or `accelerate launch` the examples are shared out over the processes; the first one writes.
    """
    folder = Path(folder)
    with joined_ranks() as ranks, owned(folder) if ranks.first else nullcontext():
        run = Run.of(settings, folder, console if ranks.first else SILENT)
        run.scores_alone = True
        check_settings(run.settings, [run.settings.model])
        run.settle_rule()
        rows = run.read.record(located(run.settings))
        if ranks.first:
            check_model(run.settings, run.scored_checkpoint, folder)
        opened = open_folder(
            run.settings, folder, run.scored_checkpoint, rows, stages=(), overwrite=overwrite, console=run.console
        )
        run.settings = opened.settings
        record = run.fitted.record(located(run.settings))
        ranks.wait()
        if ranks.first:
            opened.write(model_record(run.settings, run.model), record, run.console)
            _ = run.inputs  # own answers too: the others read what the first one wrote
        ranks.wait()
        if not ranks.first:  # midnight may lie between them
            run.settings = replace(run.settings, date=read_record(folder).told(folder / RECORD).date)
        score_stage(run, ranks)
    return [score_file(folder, name) for name in (*run.inputs.concepts, *run.inputs.protect)] if ranks.first else []


def score_stage(run: Run, ranks: Ranks = ALONE) -> None:
    """Score every concept and protected set into scores/NAME.safetensors, unless they are there."""
    data, by_margin = run.inputs, "margin" in run.settings.wanted_statistics
    files = {name: score_file(run.folder, name) for name in (*data.concepts, *data.protect)}
    missing = {name: path for name, path in files.items() if not path.is_file()}
    if by_margin:  # of scores made for a rule that needs none
        lacking = [name for name in data.concepts if name not in missing and not has_margin(files[name])]
        if lacking:
            run.console.say(f"scored again, since the rule or a control needs their margins: {', '.join(lacking)}")
        missing |= {name: files[name] for name in lacking}
    if by_margin and set(missing) & set(data.concepts):
        missing = {**missing, **{name: files[name] for name in data.protect}}  # they keep what the concepts chose
    if missing:
        score_missing(run, missing, ranks)


def has_margin(path: Path) -> bool:
    """Whether a score file has the statistic `margin`."""
    return "margin" in load_scores(path).info.statistics


def score_missing(run: Run, files: Mapping[str, Path], ranks: Ranks = ALONE) -> None:
    """Plan once for all sets, then score them one after the other into their files."""
    settings, loaded, data, console = run.settings, run.model, run.inputs, run.console
    statistics = settings.wanted_statistics
    pairs = {name: {**data.concepts, **data.protect}[name] for name in files}
    aware = {name: encode(settings, loaded, rows) for name, rows in pairs.items()}
    unaware = {name: encode(settings, loaded, data.unaware.get(name, ())) for name in files}
    matrices = editable_matrices(loaded.model, settings.target)
    for matrix in matrices:
        loaded.checkpoint.stored_name(matrix.name)  # an error now, not when all is scored
    plan, seconds = plan_sets(run, matrices, aware, unaware)
    forecast = Forecast(seconds, console.say)
    each = plan.seconds / max(
        1, len(plan.partitions) * sum(len(rows) for part in (aware, unaware) for rows in part.values())
    )
    if ranks.first:
        check_disk(plan, run.folder)
    for name, path in files.items():
        if truncated := sum(example.truncated > 0 for example in aware[name]):
            console.say(f"{name}: {truncated} prompts too long for --max-length or the model lost their start")
        total = len(plan.partitions) * (len(aware[name]) + len(unaware[name])) // ranks.world
        candidates = None
        if name in data.protect and "margin" in statistics:
            scored = {concept: load_scores(score_file(run.folder, concept)) for concept in data.concepts}
            candidates = candidate_entries(scored, [matrix.name for matrix in matrices], settings.at_least)
        with console.bar(f"scoring {name}", total) as shown:

            def advance(done: int, shown: Advance = shown) -> None:
                shown(done)
                forecast.advance(done * ranks.world * each)

            scores = score_concept(
                loaded,
                aware[name],
                unaware[name],
                Scoring(
                    formed(statistics, unaware[name]),
                    settings.target,
                    settings.keep,
                    settings.granularity,
                    settings.seed,
                ),
                candidates=candidates,
                passes=Passes(plan, run.folder / "progress" / name, ranks, advance),
            )
        if ranks.first:
            if silent := scores.info.silent:
                console.say(
                    f"{name}: nothing reached {len(silent)} matrices (experts without a token): {silent[0]}, ..."
                )
            about = replace(scores.info, concept=name, seed=settings.seed, template=settings.template)
            save_scores(path, replace(scores, info=replace(about, data_sha256=rows_sha256(pairs[name]))))
            shutil.rmtree(run.folder / "progress" / name, ignore_errors=True)
        ranks.wait()


def check_disk(plan: Plan, folder: Path) -> None:
    """SpinError when the progress of the scoring would not fit on the disk of the run's folder."""
    if plan.disk > (free := free_space(folder)):
        raise SpinError(
            f"Scoring needs {plan.disk / 2**30:.1f} GiB of disk for its progress, and {folder} has {free / 2**30:.1f}.",
            change="free some space, or choose another folder with --output.",
        )
