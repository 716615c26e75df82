"""From scores to a patch: the recipe given or searched, the selection, and what the patch says of itself.

In: `RunSettings`, a folder with scores, the loaded model or its checkpoint. Out: patch.safetensors, search.json of a
search; or another patch of the same scores. Left out: the rules (selection/), the search (evaluate/pick.py), and
the edit of a model (patch.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spin_llm.errors import SpinError
from spin_llm.evaluate import Evaluation, choose_ratio
from spin_llm.evaluate.coherence import load_coherence_judge
from spin_llm.evaluate.pick import find_edit
from spin_llm.evaluate.proxy import Contrast
from spin_llm.evaluate.quality import asked_of
from spin_llm.evaluate.search import Bench
from spin_llm.files import read_checked, read_json, write_json
from spin_llm.models import Checkpoint, LoadedModel, resolve
from spin_llm.patch import Patch, load_patch, make_patch, save_patch
from spin_llm.pipeline.data import RunData
from spin_llm.pipeline.folder import is_run, settings_of_record
from spin_llm.pipeline.loading import encode, judge_of
from spin_llm.pipeline.scoring import stored_scores
from spin_llm.progress import Console
from spin_llm.scores import Scores
from spin_llm.selection import Recipe, Selection, recipe_of
from spin_llm.settings import OWN, SEARCHED, RunSettings
from spin_llm.stored import SearchRecord


def select_stage(
    settings: RunSettings,
    folder: Path,
    loaded: LoadedModel,
    data: RunData,
    scores: Mapping[str, Mapping[str, Scores]],
    console: Console,
) -> Patch:
    """Choose the ratio where it is to be chosen, select, and write patch.safetensors; read it when it is there."""
    path = folder / "patch.safetensors"
    if path.is_file():
        return patch_of_run(settings, path)
    table: list[dict[str, Any]] = []
    if settings.rule == SEARCHED:
        recipe = search_stage(settings, folder, loaded, data, scores, console)
    elif settings.ratio is None:
        ratio, table = choose_ratio(
            loaded,
            scores["concepts"],
            scores["protect"],
            encode(settings, loaded, data.choose),
            recipe=usual_recipe(settings, settings.rule, 0.5),
            max_increase=settings.max_perplexity_increase,
            console=console,
        )
        recipe = usual_recipe(settings, settings.rule, ratio)
    else:
        recipe = usual_recipe(settings, settings.rule, settings.ratio)
    selection = recipe.select(scores["concepts"], scores["protect"])
    patch = patch_of(settings, loaded.checkpoint, selection, scores, recipe, table)
    save_patch(path, patch)
    console.say(f"{patch.weights:,} weights in {len(patch.edits)} matrices, ratio {recipe.ratio:g}; patch {path}")
    return load_patch(path)  # as a resumed run reads it


def usual_recipe(settings: RunSettings, rule: str, ratio: float) -> Recipe:
    """The recipe that these settings give, with this rule and ratio."""
    return Recipe(
        rule,
        ratio,
        protect_ratio=settings.protect_ratio,
        target=settings.target,
        granularity=settings.granularity,
        layers=(settings.layers[0], settings.layers[1]) if settings.layers else None,
        at_least=settings.at_least,
        scale=settings.scale,
    )


def search_stage(
    settings: RunSettings,
    folder: Path,
    loaded: LoadedModel,
    data: RunData,
    scores: Mapping[str, Mapping[str, Scores]],
    console: Console,
) -> Recipe:
    """Search an edit into search.json; the pick of an earlier search is read."""
    path = folder / "search.json"
    if path.is_file():
        record = read_checked(path, SearchRecord)
        return recipe_of(next(row["recipe"] for row in record["trials"] if row["number"] == record["pick"]))
    bench = bench_of(settings, loaded, data, scores)
    asked = asked_of([loaded], settings.questions)
    questions = Evaluation(data.search, (), settings.template, settings.new_tokens, settings.seed, asked)
    recipe, record = find_edit(
        bench,
        usual_recipe(settings, "coupled", min(settings.keep, 1e-4)),
        folder / "search",
        effort=settings.budget,
        questions=questions if settings.searches_answers else None,
        judges=lambda: (judge_of(settings, loaded), load_coherence_judge()),
        seed=settings.seed,
        console=console,
    )
    responses = OWN if OWN in data.protect else settings.given_responses
    write_json(path, {"effort": settings.effort, "responses": responses, **record})
    return recipe


def bench_of(
    settings: RunSettings, loaded: LoadedModel, data: RunData, scores: Mapping[str, Mapping[str, Scores]]
) -> Bench:
    """What edits are tried on."""
    contrasts = {
        name: Contrast(encode(settings, loaded, aware), encode(settings, loaded, unaware))
        for name, (aware, unaware) in data.contrasts.items()
    }
    general = encode(settings, loaded, data.choose[: 2 * settings.budget.pairs])
    return Bench(loaded, scores["concepts"], scores["protect"], contrasts, general, settings.max_perplexity_increase)


def patch_of_run(settings: RunSettings, path: Path) -> Patch:
    """The patch that this run wrote; SpinError when it is another one, put there by `spin-llm select` for instance."""
    patch = load_patch(path)
    about = patch.metadata
    same = ["target"] if settings.rule == SEARCHED else ["rule", "target", "scale"]
    if settings.rule == SEARCHED:
        by_run = bool(about.get("searched"))
    else:
        by_run = bool(about["ratio_table"]) if settings.ratio is None else about["ratio"] == settings.ratio
    if not by_run or any(about[name] != getattr(settings, name) for name in same):
        raise SpinError(
            f"{path} was not made by this run (rule {about['rule']}, ratio {about['ratio']:g}).",
            cause="`spin-llm select` wrote it there.",
            change="move it away; or compare it with `spin-llm eval MODEL --patch`.",
        )
    return patch


def patch_of(
    settings: RunSettings,
    checkpoint: Checkpoint,
    selection: Selection,
    scores: Mapping[str, Mapping[str, Scores]],
    recipe: Recipe,
    table: Sequence[Mapping[str, Any]] = (),
) -> Patch:
    """A patch whose metadata says where it is from, by which recipe, and where its weights lie."""
    everything = {**scores["concepts"], **scores["protect"]}
    about = {
        "base_model": settings.model,
        "data_sha256": {name: part.metadata["data_sha256"] for name, part in everything.items()},
        "candidates": selection.candidates,
        "shared": selection.shared,
        "targeted_weights": selection.targeted_weights,
        "ratio_table": list(table),
        "searched": settings.rule == SEARCHED,
        "granularity": recipe.granularity,
        "layers": recipe.layers,
        "at_least": recipe.at_least,
        "penalty": recipe.penalty,
        "fractions": recipe.fractions,
        "places": {
            checkpoint.stored_name(name): {"shape": list(place.shape), "layer": place.layer, "kind": place.kind}
            for name, place in selection.places.items()
        },
    }
    return make_patch(checkpoint, selection, scale=recipe.scale, about=about)


def select_from_folder(
    folder: Path, output: Path, recipe: Recipe, *, model: str | None = None, overwrite: bool = False
) -> Patch:
    """A patch from the scores of a run folder, for its model, or for another `model` of the same shapes (a fine-tuned
    one).

    The checkpoint is read for the old values of the touched tensors alone.
    """
    if output.exists() and not overwrite:
        raise SpinError(f"{output} exists.", change="choose another --output, or --overwrite.")
    if not is_run(folder):
        raise SpinError(f"{folder} is not a run folder: it has no run.json.", change="run `spin-llm score` first.")
    record = read_json(folder / "run.json")
    settings = settings_of_record(record)
    scores = stored_scores(settings, folder)
    recipe = replace(recipe, granularity=recipe.granularity or settings.granularity)
    checkpoint = Checkpoint(resolve(model) if model else Path(record["model"]["path"]))
    selection = recipe.select(scores["concepts"], scores["protect"])
    if model:
        check_same_shapes(checkpoint, selection, record["model"]["name"])
        settings = replace(settings, model=model)
    patch = patch_of(replace(settings, rule=recipe.rule, ratio=recipe.ratio), checkpoint, selection, scores, recipe)
    save_patch(output, patch)
    return patch


def check_same_shapes(checkpoint: Checkpoint, selection: Selection, scored: str) -> None:
    """SpinError when a matrix of the selection is not in the checkpoint, or has another shape there."""
    for name in selection.indices:
        place = selection.places[name]
        stored = checkpoint.tensors.get(checkpoint.stored_name(name))
        if stored is None or math.prod(stored.shape) != place.size:
            raise SpinError(
                f"{checkpoint.folder} is not of the same shape as {scored}: {name} differs.",
                change="give a model that was fine-tuned from the scored one; or score this model.",
            )
