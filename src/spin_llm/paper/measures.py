"""What is measured on an arm beside its answers: lm-eval tasks, margins of its own concepts, dependence of
representations, and where its weights lie.

In: the work and an arm. Out: the arm's row: its name, what it is, what was found; read when it is there. Left out:
answers and verdicts (arms.py).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from spin_llm import pipeline
from spin_llm.data import rendering_of
from spin_llm.errors import SpinError
from spin_llm.files import read_checked, write_json
from spin_llm.paper.arms import ANEW, Work, make_selection, make_view, selects_nothing
from spin_llm.paper.experiments import Arm
from spin_llm.paper.selections import location_results
from spin_llm.results.file import written
from spin_llm.results.paper import ArmRecord
from spin_llm.results.recipe import Recipe
from spin_llm.scores import ScoreSet
from spin_llm.search.proxy import measure_proxy, measure_reference
from spin_llm.selection import Selection, random_like

TASKS = ("paper",)


def task_results(work: Work, arm: Arm) -> dict[str, Any]:
    """The arm's lm-eval tasks against the base's; SpinError when lm-eval or the data of a task are not there."""
    file = work.folder / "arms" / f"{work.key(arm)}-tasks.json"
    if file.is_file():
        return {**read_checked(file, ArmRecord, change=ANEW), "name": arm.name}
    settings = replace(work.settings, capabilities=work.settings.capabilities or TASKS)
    pipeline.check_capabilities(settings)
    view, about = make_view(work, arm)
    found: dict[str, Any] = {"name": arm.name, "kind": arm.kind, "about": about}
    if view is not None:
        limit = settings.capabilities_limit or work.limit
        views = {"base": make_view(work, Arm("origin"))[0], "edited": view}
        folder = work.folder / "arms" / f"{work.key(arm)}-tasks"
        settings = replace(settings, capabilities_limit=limit)
        found["axes"] = written(pipeline.capability_results(settings, views, folder, work.console))  # type: ignore[arg-type]
    write_json(file, found)
    return found


def margin_results(work: Work, arm: Arm) -> dict[str, Any]:
    """What an edit does to the margins of its own concepts on held-back pairs."""
    file = work.folder / "arms" / f"{work.key(arm)}-margins.json"
    if file.is_file():
        return {**read_checked(file, ArmRecord, change=ANEW), "name": arm.name}
    view, about = make_view(work, arm)
    found: dict[str, Any] = {"name": arm.name, "kind": arm.kind, "about": about}
    if arm.kind == "base":
        return found
    if view is not None:
        settings = replace(work.settings_of(arm), rule="auto", ratio=None)
        bench = pipeline.bench_of(work.told(settings), ScoreSet({}))
        base = measure_reference(work.model, bench.contrasts, bench.general)
        with view() as edited:
            found |= asdict(measure_proxy(edited, bench.contrasts, bench.general, base))
    write_json(file, found)
    return found


def information_results(work: Work, arm: Arm) -> dict[str, Any]:
    """HSIC and CKA between the concepts' representations, before and after the edit; and where its weights lie."""
    found: dict[str, Any] = {"name": arm.name, "kind": arm.kind, "about": {"weights": 0}}
    if arm.kind == "base":
        return found
    file = work.folder / "arms" / f"{work.key(arm)}-information.json"
    places = work.folder / "arms" / f"{work.key(arm)}-location.json"  # written last
    if not places.is_file():
        try:
            recipe, selection, scores = make_selection(work, arm)
        except SpinError as error:
            if not selects_nothing(error):
                raise
            write_json(file, {**found, "about": {"weights": 0, "why": error.what.splitlines()[0]}})
            write_json(places, {})
        else:
            if not file.is_file():
                report = dependence_results(work, arm, recipe, selection)
                write_json(file, {**found, "about": {"weights": selection.weights}, "information": report})
            write_json(places, location_results(work, arm, recipe, selection, scores))
    return {**read_checked(file, ArmRecord, change=ANEW), "location": read_checked(places, dict), "name": arm.name}


def dependence_results(work: Work, arm: Arm, recipe: Recipe, selection: Selection) -> dict[str, Any]:
    """`information_report`s by title: of the edit on both kinds of pairs, and of as many random weights."""
    from spin_llm.analysis import Measures, information_report

    pairs = dict(list(work.fitted.concepts.items())[:2])
    control = random_like(selection, work.settings.seed)
    measures = Measures(seed=work.settings.seed)
    return {
        f"{name}, {pairing} pairs": information_report(
            work.model,
            pairs,
            chosen,
            pairing=pairing,
            scale=recipe.scale,
            template=rendering_of(work.settings),
            measures=measures,
            console=work.console,
        )
        for name, chosen, pairing in (
            (arm.name, selection, "shuffled"),
            (arm.name, selection, "framed"),
            ("random", control, "framed"),
        )
    }
