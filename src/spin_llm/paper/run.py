"""`spin-llm paper EXPERIMENT MODEL`: a plan, the arms, a table and a figure; `all` in one report.

In: the name of an experiment, settings, a folder. Out: EXPERIMENT.json, EXPERIMENT.md and a figure in the folder, and
paper.md of all that are there. Left out: the specs (specs.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from spin_llm import pipeline
from spin_llm.errors import SpinError
from spin_llm.evaluate.proxy import measure_proxy, measure_reference
from spin_llm.files import read_json, write_json, write_text, writing
from spin_llm.paper.arms import Work, arm_results, make_selection, make_view
from spin_llm.paper.specs import Arm, Experiment, experiments
from spin_llm.paper.tables import figure, markdown
from spin_llm.progress import SILENT, Console
from spin_llm.report.figures import png_bytes
from spin_llm.selection import random_like
from spin_llm.settings import RunSettings

TASKS = ("paper",)
PAPER_RATIO = 5e-7


def run_paper(
    name: str,
    settings: RunSettings,
    folder: Path,
    *,
    limit: int | None = None,
    models: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
    ratio: float | None = None,
    console: Console = SILENT,
) -> list[Path]:
    """One experiment, or `all`; the files written. `limit` is the most questions, examples and training pairs; `models`
    are the further ones of `sizes`; `training` options of the fine-tuning baselines; `ratio` is SPIN's (None: the
    largest that the limit on perplexity allows). SpinError for an unknown name."""
    known = experiments(limit, ratio)
    if name not in (*known, "all"):
        raise SpinError(f"There is no experiment {name!r}.", change=f"give {', '.join(known)}, or all.")
    wanted = [known[name]] if name != "all" else list(known.values())
    settings = shared_settings(settings, limit)
    work = Work(settings, pipeline.load_model(settings, console), folder, limit, dict(training or {}), console)
    console.say(plan_text(wanted, work))
    written = []
    for experiment in wanted:
        console.say(f"{experiment.name}: {experiment.title}")
        written += write_experiment(experiment, work, models)
    written.append(write_all(list(known.values()), folder, settings))
    return written


def shared_settings(settings: RunSettings, limit: int | None) -> RunSettings:
    """What every arm has in common: the rule `auto`, so that its search questions are left out for all arms."""
    settings = replace(settings, rule="auto", ratio=None)
    if limit is None:
        return settings
    few = min(settings.examples, limit)
    return replace(
        settings,
        examples=few,
        max_questions=min(limit, settings.max_questions or limit),
        trials=min(12, limit),
        survivors=min(2, limit),
    )


def plan_text(wanted: Sequence[Experiment], work: Work) -> str:
    """How many arms there are, how many are done, and what the rest asks for."""
    arms = {work.key(arm): arm for experiment in wanted for arm in experiment.arms}
    missing = [arm for key, arm in arms.items() if not (work.folder / "arms" / f"{key}.json").is_file()]
    trained = sum(arm.kind == "train" for arm in missing)
    return (
        f"plan: {len(wanted)} experiments, {len(arms)} models, {len(arms) - len(missing)} of them done; to do: "
        f"{trained} to fine-tune, {sum(arm.kind == 'edit' for arm in missing)} to edit, {len(missing)} to answer "
        f"{sum(map(len, pipeline.read_data(work.settings).questions.values()))} questions"
    )


def write_experiment(experiment: Experiment, work: Work, models: Sequence[str]) -> list[Path]:
    """Measure what is missing; write the experiment's files."""
    if experiment.name == "sizes":
        results = sizes(experiment, work, models)
    else:
        measure = {"answers": arm_results, "tasks": task_results, "margins": margin_results}
        measure["information"] = information_results
        results = [measure[experiment.kind](work, arm) for arm in experiment.arms]
    ratio = next((arm.options["ratio"] for arm in experiment.arms if arm.name == "SPIN"), None)
    text = markdown(experiment, results, work.settings.model, differences(work.settings, ratio))
    base = work.folder / experiment.name
    write_json(base.with_suffix(".json"), {"experiment": asdict(experiment), "results": results})
    drawn = figure(experiment, results)
    if drawn is not None:
        with writing(base.with_suffix(".png")) as part:
            part.write_bytes(png_bytes(drawn))
        text += f"\n![{experiment.title}]({experiment.name}.png)\n"
    write_text(base.with_suffix(".md"), text)
    return [base.with_suffix(".md")]


def sizes(experiment: Experiment, work: Work, models: Sequence[str]) -> list[dict[str, Any]]:
    """Base and SPIN of every model; one model alone is no comparison of sizes, which its table says."""
    rows = []
    for model in (work.settings.model, *models):
        other = replace(work.settings, model=model)
        loaded = work.loaded if model == work.settings.model else pipeline.load_model(other, work.console)
        part = replace(work, settings=other, loaded=loaded)
        rows += [{**arm_results(part, arm), "name": f"{Path(model).name}, {arm.name}"} for arm in experiment.arms]
    return rows


def task_results(work: Work, arm: Arm) -> dict[str, Any]:
    """The arm's lm-eval tasks against the base's."""
    file = work.folder / "arms" / f"{work.key(arm)}-tasks.json"
    if file.is_file():
        return {**read_json(file), "name": arm.name}
    view, about = make_view(work, arm)
    found: dict[str, Any] = {"name": arm.name, "kind": arm.kind, "about": about}
    if view is not None:
        settings = replace(work.settings, capabilities=work.settings.capabilities or TASKS)
        limit = settings.capabilities_limit or work.limit
        views = {"base": make_view(work, Arm("origin"))[0], "edited": view}
        folder = work.folder / "arms" / f"{work.key(arm)}-tasks"
        settings = replace(settings, capabilities_limit=limit)
        found["axes"] = pipeline.capability_results(settings, views, folder, work.console)["capabilities"]  # type: ignore[arg-type]
    write_json(file, found)
    return found


def margin_results(work: Work, arm: Arm) -> dict[str, Any]:
    """What an edit does to the margins of its own concepts on held-back pairs."""
    view, about = make_view(work, arm)
    found: dict[str, Any] = {"name": arm.name, "kind": arm.kind, "about": about}
    if view is None or arm.kind == "base":
        return found
    settings = replace(work.settings_of(arm), rule="auto", ratio=None)
    data = pipeline.read_data(settings)
    bench = pipeline.bench_of(settings, work.loaded, data, {"concepts": {}, "protect": {}})
    base = measure_reference(work.loaded, bench.contrasts, bench.general)
    with view() as edited:
        return {**found, **measure_proxy(edited, bench.contrasts, bench.general, base).as_json()}


def information_results(work: Work, arm: Arm) -> dict[str, Any]:
    """HSIC and CKA between the concepts' representations, before and after the edit."""
    found: dict[str, Any] = {"name": arm.name, "kind": arm.kind, "about": {"weights": 0}}
    if arm.kind == "base":
        return found
    from spin_llm.analysis import Measures, information_report, location_report

    file = work.folder / "arms" / f"{work.key(arm)}-information.json"
    if file.is_file():
        return {**read_json(file), "name": arm.name}
    data = pipeline.read_data(work.settings)
    pairs = {name: data.concepts[name] for name in list(data.concepts)[:2]}
    recipe, selection, _ = make_selection(work, arm)
    control = random_like(selection, work.settings.seed)
    measures = Measures(opinions=0, seed=work.settings.seed)
    options: dict[str, Any] = {"scale": recipe.scale, "template": work.settings.template, "measures": measures}
    report = {
        f"{name}, {pairing} pairs": information_report(
            work.loaded, pairs, chosen, pairing=pairing, **options, console=work.console
        )
        for name, chosen, pairing in (
            (arm.name, selection, "shuffled"),
            (arm.name, selection, "framed"),
            ("random", control, "framed"),
        )
    }
    found |= {"about": {"weights": selection.weights}, "information": report}
    found["location"] = location_report({arm.name: selection, "random": control})
    write_json(file, found)
    return found


def differences(settings: RunSettings, ratio: float | None) -> list[str]:
    """What is not as in the paper, from the settings and SPIN's ratio."""
    found = [f"model {Path(settings.model).name}", f"judge {settings.judge} (the paper: MD-Judge-v0.1)"]
    sources = sorted({source for _, source in (*settings.concepts, *settings.questions)})
    found.append(f"data {', '.join(sources)}, questions that the search of `auto` used left out")
    if settings.template != "released":
        found.append("prompts in the model's chat template (the paper: raw; --template released)")
    if ratio is None:
        most = f"{settings.max_perplexity_increase:.0%}"
        found.append(
            f"ratio chosen by perplexity, at most {most} more (the paper: 5e-7, no weight at all in small matrices)"
        )
    elif ratio != PAPER_RATIO:
        found.append(f"ratio {ratio:g} (the paper: 5e-7)")
    found.append("hyper-parameters of the fine-tuning baselines are common ones, the paper prints none")
    return found


def write_all(known: Sequence[Experiment], folder: Path, settings: RunSettings) -> Path:
    """paper.md: every experiment that is there, in the paper's order."""
    parts = [f"# The paper's experiments on {Path(settings.model).name}", ""]
    for experiment in known:
        file = folder / f"{experiment.name}.md"
        parts.append(file.read_text(encoding="utf-8") if file.is_file() else f"## {experiment.title}\n\nNot run.\n")
    write_text(folder / "paper.md", "\n".join(parts))
    return folder / "paper.md"
