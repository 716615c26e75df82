"""What is in the output folder, and what of it can stay: decided before a model is loaded.

In: the settings of a command, its output folder, the identity of the model, the data that were read. Out: `Opened`,
which says from which stage on things have to be made again, and writes run.json once the model is loaded; a SpinError
before anything of the user's is touched where another run, or another thing, is in the folder. Scores bind: with other
settings of what they depend on, another model or other data the folder is refused. What comes after them may change,
and is then made again; a run that finished no scores binds nothing. Left out: making it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

from spin_llm import records
from spin_llm.errors import SpinError
from spin_llm.files import write_json
from spin_llm.models import Checkpoint
from spin_llm.models.disk.identity import NAMES
from spin_llm.patch.file import load_patch
from spin_llm.patch.patch import Patch
from spin_llm.pipeline.folder import SOURCES, files_of, located, replay_command, there, this_machine
from spin_llm.progress import SILENT, Console
from spin_llm.records import PATCH, RECORD, RESULTS, Compared, DataRecord, ModelRecord, OtherModel, RunRecord
from spin_llm.results.edited import Recipe
from spin_llm.results.file import written
from spin_llm.settings import SEARCHED, STAGES, RunSettings, flag_of, scope_of

NOT_COMPARED = ("model", "data_dir", "prompt_column", "response_column")  # by what they lead to: hashes
OWN_DECIDED = ("questions", "max_questions", "new_tokens", "judge", "effort", "survivors", "trials")
ROLES = {"concept": "all", "protect": "all", "own answers": "all", "questions": "answers", "perplexity": "verdicts"}
BINDING = ("scores/*.safetensors", "own/answers.jsonl", PATCH, "generations.jsonl", RESULTS)
SCORED = ("own", "scores", "progress")
MADE: dict[str, tuple[str, ...]] = {  # by stage: what has to be made again when it, or one before it, changes
    "edit": (PATCH, "search.json", "search", "stability.json", "progress/stability"),
    "answers": ("generations.jsonl", "progress/answers-*"),
    "verdicts": ("verdicts.jsonl",),
    "extras": ("capabilities.jsonl", "progress/capabilities-*", "report.html", "report.md", "figures", RESULTS),
}


def made_after(stage: str) -> tuple[str, ...]:
    """What a stage and those after it made, the last first."""
    return tuple(name for later in reversed(STAGES[STAGES.index(stage) :]) for name in MADE[later])


def delete_artefacts(folder: Path, stage: str = "all") -> None:
    """Delete what a run wrote from `stage` on, and nothing else. The last goes first; the record of everything goes at
    the end, so that the folder stays a run until then."""
    everything = (*made_after(STAGES[0]), *SCORED, RECORD)
    for path in there(folder, everything if stage == "all" else made_after(stage)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Change:
    """What is not as recorded: the first stage that depends on it, `all` for the scores themselves."""

    stage: str
    kind: str  # settings, model or data
    words: str


@dataclass(frozen=True)
class Opened:
    """An output folder that may be taken up: with which settings, from which stage on ("": all of it stays)."""

    folder: Path
    settings: RunSettings
    before: RunRecord | None
    stale: str
    changed: bool
    data: Sequence[DataRecord]
    compared: Compared

    def write(self, model: ModelRecord, data: Sequence[DataRecord], console: Console = SILENT) -> None:
        """Delete what has to be made again, and write run.json where it is not there or says other things. `data` are
        what is left of what was read when the rows that do not fit the model are gone."""
        read = {(row.role, row.name): row.sha256 for row in self.data}
        was = [read[row.role, row.name] for row in data]
        rows = [row if sha == row.sha256 else replace(row, read_sha256=sha) for row, sha in zip(data, was, strict=True)]
        settings, before = located(self.settings), self.before
        record = RunRecord(
            command=replay_command(settings, self.compared),
            settings=asdict(settings),
            compared=self.compared,
            files=files_of(settings),
            versions=records.versions(),
            machine=this_machine(),
            model=model,
            data=rows,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if self.stale:
            delete_artefacts(self.folder, self.stale)
        if before is not None and self.stale != "all":
            began, now = before.machine.words(), record.machine.words()
            if began and began != now:
                console.say(f"this run began on {began}; here is {now}: numbers may differ in their last digits")
            if not self.changed and (before.model.path, before.model.parts) == (model.path, model.parts):
                return
            if self.changed:
                record = replace(record, machine=before.machine, started=before.started or record.started)
            else:  # the model lies elsewhere; what an older record lacks is added
                told = {**before.settings, "model": record.settings["model"]}
                record = replace(before, model=model, settings=told, files=before.files or record.files)
        write_json(self.folder / RECORD, written(record))


def with_date(settings: RunSettings) -> RunSettings:
    """The settings with the date that chat templates print: the one given, or today."""
    return replace(settings, date=settings.date or date.today().isoformat())


def settings_changes(told: RunSettings, now: RunSettings, files: Mapping[str, str]) -> Iterator[Change]:
    """Settings, and files that they name, that are not as recorded; sources by their names, since their rows are
    compared as data."""
    recorded = located(told)
    for name in RunSettings.__dataclass_fields__:
        if name in NOT_COMPARED or scope_of(name) == "volatile":
            continue
        values = [getattr(one, name) for one in (recorded, now)]
        old, new = ([key for key, _ in value] if name in SOURCES else value for value in values)
        if old != new:
            yield Change(stage_of(name, told, now), "settings", f"{name}: {old!r} there, {new!r} now")
    for name, content in files_of(now).items():
        if files.get(name, content) != content:
            yield Change(stage_of(name, told, now), "settings", f"the file of {flag_of(name)} changed")


def compared_changes(before: Compared, now: Compared) -> Iterator[Change]:
    """What a comparison was with, where it is not as recorded: by hashes where they are there on both sides, else by
    its text."""
    by_hash = {"baseline": "baseline_model", "patch": "patch_sha256", "patch_sha256": "", "baseline_served": ""}
    for name, proof in by_hash.items():
        one, other = getattr(before, name), getattr(now, name)
        if one != other and not (proof and getattr(before, proof) and getattr(now, proof)):
            yield Change("all", "settings", f"{name}: {one!r} there, {other!r} now")
    one, other = before.baseline_model or OtherModel(), now.baseline_model or OtherModel()
    for part, content in other.parts.items():
        if one.parts.get(part, content) != content:
            yield Change("all", "model", f"{NAMES[part]} of the baseline")


def stage_of(name: str, *settings: RunSettings) -> str:
    """The first stage that depends on a setting. A search judges answers too; the model's own answers, which are
    scored, depend on what else is asked, and on who judges."""
    scope = scope_of(name)
    if any(one.asks_own for one in settings) and name in OWN_DECIDED:
        return "all"
    return "edit" if scope in ("answers", "verdicts") and any(one.searches_answers for one in settings) else scope


def model_changes(before: RunRecord, model: Checkpoint | ModelRecord, console: Console) -> list[Change]:
    """The parts of the model that are not as recorded."""
    was = before.model
    if isinstance(model, ModelRecord):
        same = (was.url, was.served) == (model.url, model.served)
        return [] if same else [Change("all", "model", "the model behind the URL")]
    if was.fingerprint is None:
        return [Change("all", "model", "a model behind a URL there, one of this process now")]
    if was.parts:
        return [Change("all", "model", part) for part in model.identity.changed(was.parts)]
    console.say("run.json is of version 0.1.0, whose fingerprint saw a sample of the weights and no other file")
    return [] if was.fingerprint == model.sampled_fingerprint else [Change("all", "model", NAMES["weights"])]


def data_changes(before: RunRecord, data: Sequence[DataRecord], told: RunSettings) -> Iterator[Change]:
    """Rows that are not those recorded, by role and name."""
    was = {(row.role, row.name): row.read_sha256 or row.sha256 for row in before.data}
    now = {(row.role, row.name): row.sha256 for row in data}
    for role, name in dict.fromkeys((*was, *now)):
        if was.get((role, name)) != now.get((role, name)):
            searched = role == "questions" and told.searches_answers
            yield Change("edit" if searched else ROLES.get(role, "edit"), "data", f"{name} ({role})")


def refuse_bound(folder: Path, changes: Iterable[Change]) -> None:
    """SpinError when something in the folder depends on what changed."""
    changes = [change for change in changes if change.stage == "all"]
    if not changes or not any(there(folder, BINDING)):
        return
    words = {
        kind: [change.words for change in changes if change.kind == kind] for kind in ("settings", "model", "data")
    }
    if words["settings"]:
        raise SpinError(
            f"{folder} holds a run with other settings ({'; '.join(words['settings'][:4])}).",
            change="choose another folder with --output, or --overwrite to start that one anew.",
        )
    kind = "model" if words["model"] else "data"
    raise SpinError(
        f"The {kind} changed since the run in {folder} began: {', '.join(words[kind][:6])}.",
        cause="a file was edited or replaced, or another one is meant.",
        change="restore it; or choose another folder with --output, or --overwrite to start that one anew.",
    )


def with_patch(folder: Path, stale: str, told: RunSettings, now: RunSettings) -> str:
    """The first stage to make again, now that there may be a patch of another command: one that these settings would
    make stays; SpinError for one that neither they nor the settings of the run would."""
    path = folder / PATCH
    if not path.is_file() or (stale == "edit" and made_by(told, load_patch(path))):
        return stale
    own_patch(now, path)
    if stale != "edit":
        return stale
    return "answers" if any(there(folder, made_after("answers"))) else ""


def own_patch(settings: RunSettings, path: Path) -> Patch:
    """The patch that a run with these settings made; SpinError when it is another one."""
    patch = load_patch(path)
    if not made_by(settings, patch):
        raise SpinError(
            f"{path} was not made by this run (rule {patch.info.rule}, ratio {patch.info.ratio:g}).",
            cause="`spin-llm select` wrote it there.",
            change="move it away; or compare it with `spin-llm eval MODEL --patch`.",
        )
    return patch


def made_by(settings: RunSettings, patch: Patch) -> bool:
    """Whether a run with these settings made the patch, as far as its metadata tell."""
    info, recipe = patch.info, patch.info.recipe
    if settings.rule == SEARCHED or info.searched:
        return settings.rule == SEARCHED and info.searched and info.target == settings.target
    if settings.ratio is None and not info.ratio_table:
        return False
    usual = usual_recipe(settings, settings.rule, settings.ratio or recipe.ratio)
    same = replace(recipe, protect_ratio=recipe.spares, penalty=usual.penalty, fractions=usual.fractions)
    return same == replace(usual, protect_ratio=usual.spares)


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
