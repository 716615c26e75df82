"""The scores of a run: every concept and protected set into scores/NAME.safetensors.

In: `RunSettings`, a folder, the loaded model, what was read. Out: the score files; before them, where the settings ask
for it, the model's own answers in the folder own/, as the pairs that are scored. What is there is read, not made
again. Left out: the scoring of one set (scores/), and how own answers become pairs (evaluate/own.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from spin_llm.data import rows_sha256
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel, editable_matrices
from spin_llm.ownership import owned
from spin_llm.pipeline.checking import check_model, check_settings, free_space
from spin_llm.pipeline.context import encode, fitting, load_model, scored_checkpoint
from spin_llm.pipeline.estimate import plan_sets
from spin_llm.pipeline.folder import located, model_record
from spin_llm.pipeline.inputs import RunData, read_data, with_rule
from spin_llm.pipeline.own_stage import with_own_answers
from spin_llm.pipeline.resuming import open_folder
from spin_llm.progress import SILENT, Console
from spin_llm.records import RECORD, read_record
from spin_llm.scores import STATISTICS, Ranks, ScoreSet, load_scores, save_scores, score_concept
from spin_llm.scores import ranks as joined_ranks
from spin_llm.selection import candidate_entries
from spin_llm.settings import OWN, RunSettings

ALONE = Ranks()


def score(
    settings: RunSettings, folder: str | Path, *, overwrite: bool = False, console: Console = SILENT
) -> list[Path]:
    """Only the scores: the score files written, in a folder that `select_from_folder` and `run` take up.

    Under `torchrun` or `accelerate launch` the examples are shared out over the processes; the first one writes.
    """
    folder = Path(folder)
    with joined_ranks() as ranks, owned(folder) if ranks.first else nullcontext():
        console = console if ranks.first else SILENT
        check_settings(settings, [settings.model])
        settings = with_rule(settings, console)
        data = read_data(settings, console, search=False)
        checkpoint = scored_checkpoint(settings, console)
        if ranks.first:
            check_model(settings, checkpoint, folder)
        rows = data.record(located(settings))
        opened = open_folder(settings, folder, checkpoint, rows, stages=(), overwrite=overwrite, console=console)
        settings = opened.settings
        loaded = load_model(settings, console)
        scored = fitting(settings, replace(data, choose=(), final=(), questions={}), loaded, console=console)
        data = replace(scored, choose=data.choose, final=data.final, questions=data.questions)  # what comes later
        ranks.wait()
        if ranks.first:
            opened.write(model_record(settings, loaded), data.record(located(settings)), console)
            with_own_answers(settings, folder, loaded, data, console)  # the others read what the first one wrote
        ranks.wait()
        if not ranks.first:  # midnight may lie between them
            settings = replace(settings, date=read_record(folder).told(folder / RECORD).date)
        data = with_own_answers(settings, folder, loaded, data, SILENT)
        score_stage(settings, folder, loaded, data, console, ranks)
    if not ranks.first:
        return []
    return [score_file(folder, name) for name in (*data.concepts, *data.protect)]


def score_stage(
    settings: RunSettings, folder: Path, loaded: LoadedModel, data: RunData, console: Console, ranks: Ranks = ALONE
) -> ScoreSet:
    """Score every concept and protected set into scores/NAME.safetensors; those that are there are read."""
    files = {name: score_file(folder, name) for name in (*data.concepts, *data.protect)}
    missing = {name: path for name, path in files.items() if not path.is_file()}
    if "margin" in settings.wanted_statistics:  # of scores made for a rule that needs none
        lacking = [name for name in data.concepts if name not in missing and not has_margin(files[name])]
        if lacking:
            console.say(f"scored again, since the rule or a control needs their margins: {', '.join(lacking)}")
        missing |= {name: files[name] for name in lacking}
    if "margin" in settings.wanted_statistics and set(missing) & set(data.concepts):
        missing = {**missing, **{name: files[name] for name in data.protect}}  # they keep what the concepts chose
    if missing:
        score_missing(settings, folder, loaded, data, missing, console, ranks)
    return stored_scores(settings, folder)


def has_margin(path: Path) -> bool:
    """Whether a score file has the statistic `margin`."""
    return "margin" in load_scores(path).metadata["statistics"]


def score_file(folder: Path, name: str) -> Path:
    return folder / "scores" / f"{name}.safetensors"


def stored_scores(settings: RunSettings, folder: Path) -> ScoreSet:
    """The score files of a run; OWN is protected where it was scored."""
    protected = [name for name, _ in settings.protect] + ([OWN] if score_file(folder, OWN).is_file() else [])
    sides = ([name for name, _ in settings.concepts], protected)
    return ScoreSet(*({name: load_scores(score_file(folder, name)) for name in side} for side in sides))


def score_missing(
    settings: RunSettings,
    folder: Path,
    loaded: LoadedModel,
    data: RunData,
    files: Mapping[str, Path],
    console: Console,
    ranks: Ranks,
) -> None:
    """Plan once for all sets, then score them one after the other, the model loaded once."""
    statistics = settings.wanted_statistics
    pairs = {name: {**data.concepts, **data.protect}[name] for name in files}
    aware = {name: encode(settings, loaded, rows) for name, rows in pairs.items()}
    unaware = {name: encode(settings, loaded, data.unaware.get(name, ())) for name in files}
    matrices = editable_matrices(loaded.model, settings.target)
    for matrix in matrices:
        loaded.checkpoint.stored_name(matrix.name)  # an error now, not when all is scored
    plan = plan_sets(settings, loaded, data, matrices, aware, unaware, console)
    if ranks.first and plan.disk > (free := free_space(folder)):
        raise SpinError(
            f"Scoring needs {plan.disk / 2**30:.1f} GiB of disk for its progress, and {folder} has {free / 2**30:.1f}.",
            change="free some space, or choose another folder with --output.",
        )
    for name, path in files.items():
        about = {"concept": name, "data_sha256": rows_sha256(pairs[name]), "seed": settings.seed}
        if truncated := sum(example.truncated > 0 for example in aware[name]):
            console.say(f"{name}: {truncated} prompts too long for --max-length or the model lost their start")
        total = len(plan.partitions) * (len(aware[name]) + len(unaware[name])) // ranks.world
        candidates = None
        if name in data.protect and "margin" in statistics:
            scored = {concept: load_scores(score_file(folder, concept)) for concept in data.concepts}
            candidates = candidate_entries(scored, [matrix.name for matrix in matrices], settings.at_least)
        with console.bar(f"scoring {name}", total) as advance:
            scores = score_concept(
                loaded,
                aware[name],
                unaware[name],
                target=settings.target,
                plan=plan,
                statistics=[s for s in statistics if unaware[name] or not STATISTICS[s].unaware],
                keep=settings.keep,
                granularity=settings.granularity,
                seed=settings.seed,
                candidates=candidates,
                about={**about, "template": settings.template},
                progress_folder=folder / "progress" / name,
                ranks=ranks,
                progress=advance,
            )
        if ranks.first:
            if silent := scores.metadata["silent"]:
                console.say(
                    f"{name}: nothing reached {len(silent)} matrices (experts without a token): {silent[0]}, ..."
                )
            save_scores(path, scores)
            shutil.rmtree(folder / "progress" / name, ignore_errors=True)
        ranks.wait()
