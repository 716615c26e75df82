"""What the edit did: base, edited and controls on the same questions.

In: a `Run` with scores and a patch. Out: answers, verdicts and results.json, with the
controls and the lm-eval tasks that were asked for. Left out: the questions put and judged (evaluate/), and the report.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from spin_llm.errors import SpinError
from spin_llm.evaluate.answers import Evaluation, Served
from spin_llm.evaluate.comparison import evaluate
from spin_llm.evaluate.likelihood import View
from spin_llm.evaluate.tasks import measure_capabilities, named_tasks
from spin_llm.files import read_typed, write_jsonl
from spin_llm.models import Checkpoint
from spin_llm.patch.patch import Patch
from spin_llm.pipeline.context import UNMEASURED, Run
from spin_llm.pipeline.folder import write_run_results
from spin_llm.pipeline.select_stage import patch_of
from spin_llm.progress import Console
from spin_llm.results.edited import Edit, Stability
from spin_llm.results.file import Results
from spin_llm.results.judged import OwnAnswers
from spin_llm.results.measured import BASE, EDITED, AxisResult
from spin_llm.results.rows import Answer, hashes_of, read_rows
from spin_llm.results.searched import SearchRecord
from spin_llm.scores import ScoreSet
from spin_llm.selection import KNOWN, Selection, control_selection, overlap, select
from spin_llm.settings import OWN, RunSettings


def evaluate_stage(run: Run) -> Results:
    """Answers, verdicts, results.json."""
    settings, folder, scores, patch = run.settings, run.folder, run.scores, run.patch
    recipe = patch.info.recipe
    selection = select(scores, recipe)
    controls, left_out = control_patches(settings, run.model.checkpoint, scores, selection, patch, run.console)
    patches = {EDITED: patch, **controls}
    views: dict[str, View] = {BASE: lambda: nullcontext(run.model)}
    views |= {name: partial(other.applied, run.model) for name, other in patches.items()}
    measured = evaluate_judged(run, views, run.evaluation)
    run.dismiss_judges()  # what follows needs none
    others = {
        name: replace(control, weights=patches[name].weights, shared=weights_in_common(patches[name], patch))
        for name, control in measured.controls.items()
    }
    rule, edit = KNOWN[recipe.rule], edit_summary(patch)
    if settings.asks_own:
        path, name = folder / OWN / UNMEASURED, settings.dividing_judge
        unmeasured = read_typed(path, dict[str, str]) if path.is_file() else {}
        edit = replace(edit, own_answers=OwnAnswers(name, name == settings.judge, unmeasured))
    search, stable = folder / "search.json", folder / "stability.json"
    results = replace(
        measured,
        edit=edit,
        controls=others,
        ratio_table=list(patch.info.ratio_table),
        files=measured.files | hashes_of(folder, "patch.safetensors"),
        overlap=None if rule.weighs else overlap(selection, rule.spared(scores)),
        search=read_typed(search, SearchRecord) if search.is_file() else None,
        controls_left_out=left_out,
        stability=read_typed(stable, Stability) if stable.is_file() else None,
        capabilities=capability_results(settings, views, folder, run.console),
    )
    results = write_run_results(folder, results)
    shutil.rmtree(folder / "progress", ignore_errors=True)
    return results


def control_patches(
    settings: RunSettings,
    checkpoint: Checkpoint,
    scores: ScoreSet,
    selection: Selection,
    patch: Patch,
    console: Console,
) -> tuple[dict[str, Patch], dict[str, str]]:
    """(the controls asked for, why others are left out): those that select nothing, or what the edit selects."""

    def stored(matrix: str) -> torch.Tensor:
        tensor = checkpoint.tensors[checkpoint.stored_name(matrix)]
        return torch.frombuffer(tensor.read(), dtype=tensor.torch_dtype)

    made: dict[str, Patch] = {}
    left_out: dict[str, str] = {}
    for name in settings.wanted_controls:
        try:
            control = control_selection(name, selection, scores, stored, seed=settings.seed)
            made[name] = patch_of(settings, checkpoint, control, scores)
        except SpinError as error:
            left_out[name] = error.what
            continue
        shared = weights_in_common(made[name], patch)
        if shared == made[name].weights == patch.weights:
            del made[name]
            left_out[name] = "It is the edit itself."
        else:
            console.say(f"control {name}: {made[name].weights:,} weights, {shared:,} of them in the edit")
    for name, why in left_out.items():
        console.say(f"control {name} is left out: {why}")
    if made:
        console.say(f"controls: {len(made)} more models answer the questions, beside base and edited")
    return made, left_out


def weights_in_common(one: Patch, other: Patch) -> int:
    return sum(
        int(torch.isin(edit.indices, other.edits[name].indices).sum())
        for name, edit in one.edits.items()
        if name in other.edits
    )


def evaluate_judged(run: Run, views: Mapping[str, View | Served], evaluation: Evaluation) -> Results:
    """`evaluate` with the judges of a run, in its folder. The answers of a finished evaluation, which asked the same
    questions (resuming.py deletes other answers), are given back to it: a judge or a control may be new."""
    judge, coherence, path = run.judge, run.coherence, run.folder / "generations.jsonl"
    prompts = [question.prompt for asked in evaluation.questions.values() for question in asked]
    by_model: dict[str, list[Answer]] = {}
    for row in read_rows(path, Answer) if path.is_file() else ():
        by_model.setdefault(row.model, []).append(row)
    for name, rows in by_model.items():
        progress = run.folder / "progress" / f"answers-{name}.jsonl"
        if [row.prompt for row in rows] == prompts and not progress.exists():
            kept = ("answer", "tokens", "finished", "reasoning", "missing")
            write_jsonl(
                progress,
                ({"index": index, **{key: getattr(row, key) for key in kept}} for index, row in enumerate(rows)),
            )
    return evaluate(views, evaluation, judge, run.folder, coherence=coherence, console=run.console)


def edit_summary(patch: Patch) -> Edit:
    """The `edit` part of results.json."""
    info, places = patch.info, patch.info.places
    told = ("rule", "ratio", "protect_ratio", "target", "scale", "candidates", "shared")
    return Edit(
        **{key: getattr(info, key) for key in told},
        weights=patch.weights,
        matrices=len(patch.edits),
        share=patch.weights / info.targeted_weights if info.targeted_weights else None,
        per_matrix={name: edit.indices.numel() for name, edit in patch.edits.items()},
        shapes={name: list(place.shape) for name, place in places.items()},
        layers={name: place.layer for name, place in places.items()},
        kinds={name: place.kind for name, place in places.items()},
    )


def capability_results(
    settings: RunSettings, views: Mapping[str, View], folder: Path, console: Console
) -> dict[str, AxisResult]:
    """The `capabilities` of results.json; {} when no task was asked for."""
    if not settings.capabilities:
        return {}
    return measure_capabilities(
        views[BASE],
        views[EDITED],
        named_tasks(settings.capabilities),
        folder,
        task_folder=settings.capability_tasks,
        limit=settings.capabilities_limit,
        seed=settings.seed,
        console=console,
    )
