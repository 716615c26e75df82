"""Arms made: scores and patches, fine-tuned models, their answers and verdicts, each once however many experiments
ask for it.

In: the settings that all arms share, a work folder. Out: for an arm a view of its model and what it is; its axes
against the base. Everything has a name made of the content that decides it, so a step that is done is not repeated,
in this experiment or another, and a run that is cut off goes on. Left out: which arms there are (experiments.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from spin_llm import pipeline
from spin_llm.errors import SpinError
from spin_llm.evaluate.answers import BASE, EDITED, answers
from spin_llm.evaluate.comparison import measured
from spin_llm.evaluate.likelihood import View, compare_likelihoods
from spin_llm.evaluate.verdicts import judge_rows, say_missing
from spin_llm.files import read_checked, sha256_file, sha256_json, write_json, write_jsonl
from spin_llm.judges.verdict import remembering
from spin_llm.models import LoadedModel, load
from spin_llm.paper.experiments import Arm
from spin_llm.patch.file import load_patch, save_patch
from spin_llm.patch.patch import Patch
from spin_llm.pipeline.context import Run, score_file
from spin_llm.results.file import written
from spin_llm.results.paper import ArmRecord
from spin_llm.results.recipe import Recipe
from spin_llm.results.rows import VerdictRow, read_rows
from spin_llm.scores import ScoreSet
from spin_llm.selection import Selection, select
from spin_llm.settings import RunSettings, scope_of
from spin_llm.settings import training as baselines

ANEW = "delete that file: what it holds is made again."


@dataclass(eq=False)
class Work(Run):
    """What all arms share: settings (the model, questions, judge), the loaded base, a folder, how small, and what
    fine-tuning is told."""

    limit: int | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def settings_of(self, arm: Arm) -> RunSettings:
        """The settings of an edit: the arm's options over the shared ones."""
        return replace(self.settings, **arm.options)

    def scored(self, settings: RunSettings) -> Work:
        """The run of the scores that these settings give, in the folder that edits from the same scores share."""
        return self.told(settings, score_folder(self, settings))

    def key(self, arm: Arm) -> str:
        """A name that says what decides the arm's answers: a word for people, then a hash of the rest. Arms of the same
        content have the same key, whatever an experiment calls them; what is at its default counts for nothing."""
        decided: dict[str, Any] = {"model": self.model.checkpoint.fingerprint, **decisive(self.settings)}
        if arm.kind == "base":
            return f"base-{sha256_json(decided)[:12]}"
        if arm.kind == "edit":
            decided |= {"edit": decisive(self.settings_of(arm))}
            word = arm.options.get("rule", self.settings.rule)
        else:
            options = {name: value for name, value in arm.options.items() if (name, value) != ("mix", 1.0)}
            decided |= {"train": {**self.training, **options}}
            word = arm.options["method"]
        return f"{word}-{sha256_json(decided)[:12]}"


def decisive(settings: RunSettings) -> dict[str, Any]:
    """What decides a result and is not at its default, the date aside, which a folder has one of."""
    defaults = RunSettings("").as_json()
    sources = (*settings.concepts, *settings.protect, *settings.questions)
    content = {source: sha256_file(source) for _, source in sources if Path(source).is_file()}
    return {
        name: value
        for name, value in settings.as_json().items()
        if scope_of(name) != "volatile" and value != defaults[name] and name not in ("model", "date")
    } | ({"content": content} if content else {})


def make_view(work: Work, arm: Arm) -> tuple[View | None, dict[str, Any]]:
    """(the arm's model while it is looked at, what it is); None when the edit selects nothing: said, not hidden."""
    if arm.kind == "base":
        return lambda: nullcontext(work.model), {"weights": 0}
    if arm.kind == "train":
        return trained_view(work, arm)
    try:
        patch = make_edit(work, arm)
    except SpinError as error:
        if not selects_nothing(error):
            raise
        return None, {"weights": 0, "why": error.what.splitlines()[0]}
    about = {name: getattr(patch.info, name) for name in ("rule", "ratio", "granularity", "penalty", "scale")}
    return pipeline.patched_view(work.model, patch), {"weights": patch.weights, **about}


def make_edit(work: Work, arm: Arm) -> Patch:
    """The patch of an edit; read when it is there."""
    path = work.folder / "edits" / work.key(arm) / "patch.safetensors"
    if not path.is_file():
        _, selection, scores = make_selection(work, arm)
        patch = pipeline.patch_of(work.settings_of(arm), work.model.checkpoint, selection, scores)
        save_patch(path, patch)
    return load_patch(path)


def selects_nothing(error: SpinError) -> bool:
    """Whether an error says that an edit has no weights: a result, which its row tells."""
    return "selects no weight" in error.what or "No ratio on the grid" in error.what


def score_folder(work: Work, settings: RunSettings) -> Path:
    """The run folder of the scores that these settings give; edits from the same scores share it."""
    decided: dict[str, Any] = {"model": work.model.checkpoint.fingerprint}
    decided |= {name: value for name, value in decisive(settings).items() if scope_of(name) == "all"}
    return work.folder / "scores" / sha256_json({**decided, "statistics": settings.wanted_statistics})[:12]


def make_scores(run: Run) -> ScoreSet:
    """The scores of a run; read when they are there."""
    files = {name: score_file(run.folder, name) for name in (*run.inputs.concepts, *run.inputs.protect)}
    if not all(file.is_file() for file in files.values()):
        pipeline.score_missing(run, files)
    return run.scores


def make_selection(work: Work, arm: Arm) -> tuple[Recipe, Selection, ScoreSet]:
    """(recipe, selection, scores by role) of an edit, from scores that arms with the same data share."""
    run = work.scored(work.settings_of(arm))
    scores = make_scores(run)
    done = work.folder / "edits" / work.key(arm) / "patch.safetensors"
    if done.is_file():
        recipe = load_patch(done).info.recipe
    else:
        recipe, _ = pipeline.find_recipe(run, scores, done.parent)
    return recipe, select(scores, recipe), scores


def trained_view(work: Work, arm: Arm) -> tuple[View, dict[str, Any]]:
    """A fine-tuned model, trained when it is not there, loaded while it is looked at."""
    from spin_llm.baselines.train import train_baseline

    options = {**work.training, **arm.options}
    sources = dict(work.settings.concepts)
    share = options.pop("mix", 1.0)
    names = [name for name, part in (("privacy", share), ("fairness", 1 - share)) if part > 0]
    chosen = baselines.make(
        options.pop("method"),
        work.settings.model,
        data=tuple((name, sources[name]) for name in names),
        mix=(("privacy", share), ("fairness", 1 - share)) if len(names) > 1 else (),
        data_dir=work.settings.data_dir,
        template=work.settings.template,
        template_options=work.settings.template_options,
        date=work.settings.date,
        seed=work.settings.seed,
        **{
            name: value
            for name, value in options.items()
            if name in {f.name for f in fields(baselines.BaselineSettings)}
        },
    )
    folder = work.folder / "trained" / work.key(arm)
    record = train_baseline(chosen, folder, console=work.console)

    @cache
    def model() -> LoadedModel:  # once for answers and losses, and gone with the view
        return load(str(folder / str(record.result)), dtype=str(work.model.dtype).removeprefix("torch."))

    return lambda: nullcontext(model()), {
        "weights": record.trained_parameters,
        "loss": record.losses[-1] if record.losses else None,
    }


def arm_results(work: Work, arm: Arm) -> dict[str, Any]:
    """What the arm is, and its axes, style and phrases against the base on the same questions; from disk when done."""
    file = work.folder / "arms" / f"{work.key(arm)}.json"
    if file.is_file():
        return {**read_checked(file, ArmRecord, change=ANEW), "name": arm.name}
    view, about = make_view(work, arm)
    found: dict[str, Any] = {"name": arm.name, "kind": arm.kind, "about": about}
    if view is not None:
        found |= compare(work, arm, view)
    write_json(file, found)
    return found


def compare(work: Work, arm: Arm, view: View) -> dict[str, Any]:
    """Answers, verdicts and losses of an arm beside the base's, which are answered and judged once for all arms; an
    answer that the arm did not change keeps its verdict."""
    asked = work.evaluation
    bare = Arm("origin")
    base = answers(work.key(bare), lambda: nullcontext(work.model), asked, work.folder, console=work.console)
    other = base if arm.kind == "base" else answers(work.key(arm), view, asked, work.folder, console=work.console)
    rows = [replace(row, model=name) for name, part in ((BASE, base), (EDITED, other)) for row in part]
    judge, coherence = work.judge, work.coherence
    kept = remembering(judge, work.folder / "progress" / "judged.jsonl")
    file = work.folder / "progress" / f"verdicts-{work.key(bare)}.jsonl"
    if not file.is_file():
        judged = judge_rows(kept, rows[: len(base)], coherence=coherence, console=work.console)
        write_jsonl(file, map(written, judged))
    told = {(row.axis, row.id): row for row in read_rows(file, VerdictRow)}
    given = attrgetter("answer", "missing")  # what decides the verdict on a row
    changed = [row for row, before in zip(rows[len(base) :], base, strict=True) if given(row) != given(before)]
    known = {axis for axis, _ in told}
    judges = any(row.axis in known for row in changed)
    anew = judge_rows(kept, changed, coherence=coherence, console=work.console) if judges else []
    verdicts = [*told.values(), *(told | {(row.axis, row.id): row for row in anew}).values()]
    verdicts = [replace(row, model=BASE if place < len(told) else EDITED) for place, row in enumerate(verdicts)]
    say_missing(verdicts, work.console)
    losses = compare_likelihoods(lambda: nullcontext(work.model), view, asked.general)
    found = measured(
        verdicts, rows, {EDITED: losses}, judge, coherence=coherence, asked=asked.asked, seed=work.settings.seed
    )
    return {name: written(getattr(found, name)) for name in ("axes", "style", "phrases", "judge")}
