"""Arms made: scores and patches, fine-tuned models, each once however many experiments ask for it.

In: the settings that all arms share, a work folder. Out: for an arm a view of its model and what it is. Everything has
a name made of the content that decides it, so a step that is done is not repeated, in this experiment or another, and a
run that is cut off goes on. Left out: which arms there are (experiments.py), what is measured on them (measures.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from spin_llm import pipeline
from spin_llm.errors import SpinError
from spin_llm.evaluate.likelihood import View
from spin_llm.files import sha256_file, sha256_json
from spin_llm.models import load
from spin_llm.patch.file import load_patch, save_patch
from spin_llm.patch.patch import Patch
from spin_llm.pipeline.context import Run, score_file
from spin_llm.results.paper import AboutArm, Arm
from spin_llm.scores import ScoreSet
from spin_llm.selection import Selection, select
from spin_llm.settings import RunSettings, scope_of
from spin_llm.settings import training as baselines

Made = TypeVar("Made")


@dataclass(eq=False)
class Work(Run):
    """What all arms share: settings (model, questions, judge), the loaded base, a folder, how small, and epochs."""

    limit: int | None = None
    epochs: int | None = None

    def settings_of(self, arm: Arm) -> RunSettings:
        """The settings of an edit: the arm's options over the shared ones."""
        return replace(self.settings, **arm.options)  # type: ignore[misc, arg-type]  # texts, as a command gives

    def scored(self, settings: RunSettings) -> Work:
        """The run of the scores that these settings give, in the folder that edits from the same scores share."""
        return self.told(settings, score_folder(self, settings))

    def key(self, arm: Arm) -> str:
        """A name that says what decides the arm's answers: a word for people, then a hash of the rest. Arms of the same
        content have the same key, whatever an experiment calls them; what is at its default counts for nothing."""
        word, decided = "base", {"model": self.model.checkpoint.fingerprint, **decisive(self.settings)}
        if arm.kind == "edit":
            word = arm.options.get("rule", self.settings.rule)
            decided["edit"] = decisive(self.settings_of(arm))
        if arm.kind == "train":
            word = arm.options["method"]
            options = {name: value for name, value in arm.options.items() if (name, value) != ("mix", 1.0)}
            decided["train"] = {**({"epochs": self.epochs} if self.epochs else {}), **options}
        return f"{word}-{sha256_json(decided)[:12]}"


def decisive(settings: RunSettings) -> dict[str, object]:
    """What decides a result and is not at its default, the date aside, which a folder has one of."""
    defaults = asdict(RunSettings(""))
    sources = (*settings.concepts, *settings.protect, *settings.questions)
    content = {source: sha256_file(source) for _, source in sources if Path(source).is_file()}
    return {
        name: value
        for name, value in asdict(settings).items()
        if scope_of(name) != "volatile" and value != defaults[name] and name not in ("model", "date")
    } | ({"content": content} if content else {})


def make_view(work: Work, arm: Arm) -> tuple[View | None, AboutArm]:
    """(the arm's model while it is looked at, what it is); None when the edit selects nothing: said, not hidden."""
    if arm.kind == "base":
        return lambda: nullcontext(work.model), AboutArm(0)
    if arm.kind == "train":
        return trained_view(work, arm)
    patch = unless_empty(make_edit, work, arm)
    if isinstance(patch, AboutArm):
        return None, patch
    info = patch.info
    about = AboutArm(patch.weights, None, info.rule, info.ratio, info.granularity, info.penalty, info.scale)
    return partial(patch.applied, work.model), about


def unless_empty(make: Callable[[Work, Arm], Made], work: Work, arm: Arm) -> Made | AboutArm:
    """What is made of an edit; of one without any weights why it has none: a result, which its row tells."""
    try:
        return make(work, arm)
    except SpinError as error:
        if "selects no weight" in error.what or "No ratio on the grid" in error.what:
            return AboutArm(0, error.what.splitlines()[0])
        raise


def make_edit(work: Work, arm: Arm) -> Patch:
    """The patch of an edit; read when it is there."""
    path = edit_file(work, arm)
    if not path.is_file():
        selection, scores = make_selection(work, arm)
        save_patch(path, pipeline.patch_of(work.settings_of(arm), work.model.checkpoint, selection, scores))
    return load_patch(path)


def edit_file(work: Work, arm: Arm) -> Path:
    return work.folder / "edits" / work.key(arm) / "patch.safetensors"


def score_folder(work: Work, settings: RunSettings) -> Path:
    """The run folder of the scores that these settings give; edits from the same scores share it."""
    decided = {name: value for name, value in decisive(settings).items() if scope_of(name) == "all"}
    decided |= {"model": work.model.checkpoint.fingerprint, "statistics": settings.wanted_statistics}
    return work.folder / "scores" / sha256_json(decided)[:12]


def make_scores(run: Run) -> ScoreSet:
    """The scores of a run; read when they are there."""
    files = {name: score_file(run.folder, name) for name in (*run.inputs.concepts, *run.inputs.protect)}
    if not all(file.is_file() for file in files.values()):
        pipeline.score_missing(run, files)
    return run.scores


def make_selection(work: Work, arm: Arm) -> tuple[Selection, ScoreSet]:
    """(selection, scores by role) of an edit, from scores that arms with the same data share."""
    run = work.scored(work.settings_of(arm))
    scores, done = make_scores(run), edit_file(work, arm)
    recipe = load_patch(done).info.recipe if done.is_file() else pipeline.find_recipe(run, scores, done.parent)[0]
    return select(scores, recipe), scores


def trained_view(work: Work, arm: Arm) -> tuple[View, AboutArm]:
    """A fine-tuned model, trained when it is not there, loaded while it is looked at."""
    from spin_llm.baselines.train import train_baseline

    settings, share, sources = work.settings, arm.options.get("mix", 1.0), dict(work.settings.concepts)
    shares = {name: part for name, part in (("privacy", share), ("fairness", 1 - share)) if part > 0}
    chosen = baselines.make(
        arm.options["method"],
        settings.model,
        data=tuple((name, sources[name]) for name in shares),
        mix=tuple(shares.items()) if len(shares) > 1 else (),
        data_dir=settings.data_dir,
        responses=arm.options.get("responses"),
        examples=arm.options["examples"],
        template=settings.template,
        template_options=settings.template_options,
        date=settings.date,
        epochs=work.epochs,
        seed=settings.seed,
    )
    folder = work.folder / "trained" / work.key(arm)
    record = train_baseline(chosen, folder, console=work.console, rows=work.shelf.rows)
    # once for answers and losses, and gone with the view
    model = cache(partial(load, str(folder / str(record.result)), dtype=str(work.model.dtype).removeprefix("torch.")))
    return lambda: nullcontext(model()), AboutArm(record.trained_parameters or 0, loss=record.losses[-1])
