"""The scores of a run: every concept and protected set into scores/NAME.safetensors.

In: a `Run`. Out: the score files; before them, where the settings ask for it, the model's own answers in the folder
own/, as the pairs that are scored. What is there is not made again. Left out: the scoring of one set (scores/); how
long the rest takes (estimate.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

from spin_llm.data import rows_sha256
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel, editable_matrices, mlp_coverage, unknown_modules, unknown_text
from spin_llm.ownership import owned
from spin_llm.pipeline.context import Run, encode, score_file
from spin_llm.pipeline.estimate import expected, left_out, measured_rates, units
from spin_llm.pipeline.folder import check_layers, check_settings, check_space, check_template, free_space
from spin_llm.pipeline.inputs import RunData
from spin_llm.pipeline.resuming import Opened
from spin_llm.progress import SILENT, Console, Forecast
from spin_llm.records import RECORD, read_record
from spin_llm.scores import Passes, Plan, Ranks, Scoring, Sides, candidate_entries, load_scores, save_scores
from spin_llm.scores import ranks as joined_ranks
from spin_llm.scores.sets import Entries, plan_sets, score_sets
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
        opened = opened_folder(run, stages=(), overwrite=overwrite)
        _ = run.fitted
        ranks.wait()
        if ranks.first:
            run.begin(opened)
            _ = run.inputs  # own answers too: the others read what the first one wrote
        ranks.wait()
        if not ranks.first:  # midnight may lie between them
            run.settings = replace(run.settings, date=read_record(folder).told(folder / RECORD).date)
        score_stage(run, ranks)
    return [score_file(folder, name) for name in (*run.inputs.concepts, *run.inputs.protect)] if ranks.first else []


def opened_folder(work: Run, *, stages: Sequence[str], overwrite: bool) -> Opened:
    """What may be done with the folder of a run, whose settings are final then; all that can be is checked, and nothing
    is written."""
    check_settings(work.settings, [work.settings.model])
    work.settle_rule()
    _ = work.read  # an error now
    checkpoint = work.scored_checkpoint
    check_layers(work.settings, checkpoint.folder)
    check_template(work.settings, checkpoint.folder)
    check_space(work.settings, checkpoint, work.folder)
    return work.opened(work.checkpoint, stages=stages, overwrite=overwrite)


def score_stage(run: Run, ranks: Ranks = ALONE) -> None:
    """Score every concept and protected set into scores/NAME.safetensors, unless they are there."""
    data, by_margin = run.inputs, "margin" in run.settings.wanted_statistics
    files = {name: score_file(run.folder, name) for name in (*data.concepts, *data.protect)}
    missing = {name: path for name, path in files.items() if not path.is_file()}
    if by_margin:  # of scores made for a rule that needs none
        there = [name for name in data.concepts if name not in missing]
        stored = {name: load_scores(files[name]) for name in there} if missing else run.scores.concepts
        lacking = [name for name in there if "margin" not in stored[name].info.statistics]
        if lacking:
            run.console.say(f"scored again, since the rule or a control needs their margins: {', '.join(lacking)}")
        missing |= {name: files[name] for name in lacking}
    if by_margin and set(missing) & set(data.concepts):
        missing = {**missing, **{name: files[name] for name in data.protect}}  # they keep what the concepts chose
    if missing:
        vars(run).pop("scores", None)  # what was read before
        score_missing(run, missing, ranks, whole=not run.scores_alone)


def score_missing(run: Run, files: Mapping[str, Path], ranks: Ranks = ALONE, *, whole: bool = False) -> None:
    """Plan once for all sets, and with `whole` for the rest of the run, then score them one after the other into their
    files."""
    settings, loaded, data, console = run.settings, run.model, run.inputs, run.console
    sets = encoded_sets(settings, loaded, data, files)
    for name, (aware, _) in sets.items():
        if truncated := sum(example.truncated > 0 for example in aware):
            console.say(f"{name}: {truncated} prompts too long for --max-length or the model lost their start")
    names = [matrix.name for matrix in editable_matrices(loaded.model, settings.target)]
    for name in names:
        loaded.checkpoint.stored_name(name)  # an error now, not when all is scored
    plan = planned(run, sets)
    forecast = forecast_of(run, plan, sets) if whole else Forecast(plan.seconds, console.say)
    each = plan.seconds / max(1, len(plan.partitions) * sum(len(side) for sides in sets.values() for side in sides))
    if ranks.first and plan.disk > (free := free_space(run.folder)):
        raise SpinError(
            f"Scoring needs {plan.disk / 2**30:.1f} GiB of disk for its progress, and {run.folder} has "
            f"{free / 2**30:.1f}.",
            change="free some space, or choose another folder with --output.",
        )

    @cache
    def by_margins() -> Entries:
        scored = {concept: load_scores(score_file(run.folder, concept)) for concept in data.concepts}
        return candidate_entries(scored, names, settings.at_least)

    def chosen(name: str) -> Entries | None:
        return by_margins() if name in data.protect and "margin" in settings.wanted_statistics else None

    progress = run.folder / "progress"
    passes = Passes(plan, progress, ranks, lambda done: forecast.advance(done * ranks.world * each))
    for name, scores in score_sets(loaded, sets, scoring_of(settings), passes, chosen, console):
        if ranks.first:
            if silent := scores.info.silent:
                console.say(
                    f"{name}: nothing reached {len(silent)} matrices (experts without a token): {silent[0]}, ..."
                )
            about = replace(scores.info, seed=settings.seed, template=settings.template)
            rows = {**data.concepts, **data.protect}[name]
            save_scores(files[name], replace(scores, info=replace(about, data_sha256=rows_sha256(rows))))
            shutil.rmtree(progress / name, ignore_errors=True)
        ranks.wait()


def encoded_sets(settings: RunSettings, loaded: LoadedModel, data: RunData, names: Iterable[str]) -> dict[str, Sides]:
    """Examples of concepts and protected sets."""
    kinds = ({**data.concepts, **data.protect}, data.unaware)
    return {name: Sides(*(encode(settings, loaded, pairs.get(name, ())) for pairs in kinds)) for name in names}


def scoring_of(settings: RunSettings) -> Scoring:
    """How these settings score."""
    return Scoring(settings.wanted_statistics, settings.target, settings.keep, settings.granularity, settings.seed)


def planned(run: Run, sets: Mapping[str, Sides]) -> Plan:
    """One plan for all sets to be scored, said before the work begins."""
    settings, loaded, say = run.settings, run.model, run.console.say
    if settings.target != "attention" and (coverage := mlp_coverage(loaded.model)) < 1:
        say(f"only {coverage:.0%} of the MLP weights are scored; the others are experts fused in another form")
    if unknown := unknown_modules(loaded.model):
        say(unknown_text(unknown))
    plan = plan_sets(loaded, sets, scoring_of(settings), settings.memory_budget, checkpoints=True)
    say(plan.text())
    return plan


def forecast_of(run: Run, plan: Plan, sets: Mapping[str, Sides]) -> Forecast:
    """How long the scoring and all that the run does after it will take, said; from now on the bars of the run's
    console advance it, and it is corrected when it is off."""
    settings, data, console = run.settings, run.inputs, run.console
    examples = [example for sides in sets.values() for rows in sides for example in rows]
    pair = sum(len(example.input_ids) for example in examples) / max(1, len(examples))
    rates = measured_rates(settings, run.model, examples, data.questions)
    seconds = expected(settings, data, rates, plan.seconds, pair)
    parts = ", ".join(f"{name} {value / 60:.1f}" for name, value in seconds.items() if value)
    about = f"effort {settings.effort}" if settings.searches else "the run"
    console.say(f"{about}: about {sum(seconds.values()) / 60:.0f} minutes ({parts}){left_out(settings)}")
    forecast = Forecast(sum(seconds.values()), console.say)
    run.console = forecast.watching(console, units(settings, data, rates, seconds))
    return forecast
