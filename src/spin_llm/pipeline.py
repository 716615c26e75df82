"""The whole job in one resumable folder: score, select, patch, evaluate, report.

In: `RunSettings` and a folder. Out: the run folder (run.json, scores/, patch.safetensors,
generations.jsonl, verdicts.jsonl, results.json, report.html, report.md, figures/). Each stage writes a file when it is
complete and is skipped when that file is there, so a killed run continues and ends with the same patch and results.
Left out: parsing options and printing (cli.py).
"""

from __future__ import annotations

import platform
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from spin_llm.data import (
    Example,
    Pair,
    Question,
    encode_all,
    load_pairs,
    load_questions,
    resolve_template,
    rows_sha256,
    sample,
    split_sample,
)
from spin_llm.errors import SpinError
from spin_llm.evaluate import BASE, EDITED, Evaluation, choose_ratio, evaluate, load_judge
from spin_llm.evaluate.likelihood import View
from spin_llm.files import read_json, sha256_file, write_json
from spin_llm.models import Checkpoint, LoadedModel, editable_matrices, load, mlp_coverage
from spin_llm.patch import Patch, load_patch, make_patch, save_patch
from spin_llm.progress import SILENT, Console
from spin_llm.report import write_report
from spin_llm.scores import (
    STATISTICS,
    Ranks,
    Scores,
    accumulators,
    load_scores,
    make_batches,
    make_plan,
    parse_bytes,
    save_scores,
    score_concept,
)
from spin_llm.scores import ranks as joined_ranks
from spin_llm.selection import Selection, random_like, select
from spin_llm.settings import RunSettings, flag_of, scope_of

ALONE = Ranks()
GENERAL_PAIRS = 64  # at most, for choosing the ratio, and as many others for the final perplexity
PACKAGES = ("spin-llm", "torch", "transformers", "safetensors", "numpy", "scipy", "scikit-learn")
ARTEFACTS = (
    *("scores", "patch.safetensors", "progress", "generations.jsonl", "verdicts.jsonl"),
    *("results.json", "report.html", "report.md", "figures", "run.json"),
)


@dataclass(frozen=True)
class RunData:
    """What a run reads, sampled: pairs by concept and by protected set, general pairs to choose and to report on,
    questions by axis."""

    concepts: Mapping[str, Sequence[Pair]]
    protect: Mapping[str, Sequence[Pair]]
    choose: Sequence[Pair]
    final: Sequence[Pair]
    questions: Mapping[str, Sequence[Question]]
    unaware: Mapping[str, Sequence[Pair]]

    def record(self, settings: RunSettings) -> list[dict[str, Any]]:
        """Role, name, source, size and SHA-256 of everything used, for run.json."""
        named = {"concept": settings.concepts, "protect": settings.protect, "questions": settings.questions}
        groups: dict[str, Mapping[str, Any]] = {
            "concept": self.concepts,
            "protect": self.protect,
            "questions": self.questions,
        }
        rows = [
            {"role": role, "name": name, "source": source, "examples": len(groups[role][name])}
            | {"sha256": rows_sha256(groups[role][name])}
            for role, pairs in named.items()
            for name, source in pairs
        ]
        for role, pairs in (("choose the ratio", self.choose), ("perplexity", self.final)):
            rows.append({"role": role, "name": "general", "source": "held-back rows of the protected sets"})
            rows[-1] |= {"examples": len(pairs), "sha256": rows_sha256(pairs)}
        return rows


def run(settings: RunSettings, folder: Path, *, overwrite: bool = False, console: Console = SILENT) -> dict[str, Any]:
    """Do everything; returns what results.json holds.

    Raises SpinError on bad input, before anything of the user's is touched.
    """
    data = read_data(settings, console)
    check_folder(settings, folder, overwrite=overwrite)
    if not overwrite and (folder / "results.json").is_file() and (folder / "patch.safetensors").is_file():
        console.say(f"{folder} is complete; writing its report again")
        write_report(folder)
        return dict(read_json(folder / "results.json"))
    loaded = load_model(settings, console)
    template = resolve_template(loaded.tokenizer, settings.template)
    console.say(
        f"{settings.model}: {sum(p.numel() for p in loaded.model.parameters()) / 1e6:,.0f}M parameters, "
        f"{str(loaded.dtype).removeprefix('torch.')} on {loaded.device}, template {template}; "
        f"{mlp_coverage(loaded.model):.0%} of the MLP weights can be edited"
    )
    write_record(settings, folder, loaded, data, template, overwrite=overwrite)
    scores = score_stage(settings, folder, loaded, data, console)
    patch = select_stage(settings, folder, loaded, data, scores, console)
    results = evaluate_stage(settings, folder, loaded, data, scores, patch, console)
    report = write_report(folder)
    console.say(f"report {report}")
    return results


def load_model(settings: RunSettings, console: Console = SILENT) -> LoadedModel:
    """The model of these settings."""
    return load(
        settings.model,
        dtype=settings.dtype,
        device_map=settings.device_map,
        trust_remote_code=settings.trust_remote_code,
        say=console.say,
    )


def read_data(settings: RunSettings, console: Console = SILENT) -> RunData:
    """Load and sample every source.

    General pairs that nothing is scored on are halved: one half chooses the ratio, one reports.
    """
    columns = {"prompt_column": settings.prompt_column, "response_column": settings.response_column}
    options: dict[str, Any] = {"data_dir": settings.data_dir, **columns}
    concepts, unaware = {}, {}
    for name, source in settings.concepts:
        pairs = load_pairs(source, concept=name, responses=settings.responses, **options).pairs
        concepts[name] = sample(pairs, settings.examples, settings.seed, f"the concept {name}")
        if "margin" in settings.wanted_statistics:
            others = load_pairs(source, concept=name, responses="unaware", **options).pairs
            unaware[name] = sample(others, settings.examples, settings.seed, f"the concept {name}, unaware")
            if unaware[name] == concepts[name]:
                raise SpinError(
                    f"The margin needs aware and unaware responses, and {source} has one kind for {name}.",
                    change="give data with the columns prompt, aware and unaware, or another rule.",
                )
    protect, rest = {}, []
    for name, source in settings.protect:
        pairs = load_pairs(source, concept=name, **options).pairs
        protect[name], left = split_sample(pairs, settings.examples, settings.seed, f"the protected set {name}")
        rest += list(left)
    if len(rest) < 16:
        console.say("too few general pairs are left beside the scored ones: perplexity is taken on the starter set's")
        rest = list(load_pairs("starter", concept="general").pairs)
        used = {pair.prompt for pairs in protect.values() for pair in pairs}
        rest = [pair for pair in rest if pair.prompt not in used]
    kept = sample(rest, min(len(rest), 2 * GENERAL_PAIRS), settings.seed)
    questions = {}
    for axis, source in settings.questions:
        asked = load_questions(
            source, concept=axis, data_dir=settings.data_dir, prompt_column=settings.prompt_column
        ).questions
        questions[axis] = sample(asked, min(len(asked), settings.max_questions or len(asked)), settings.seed)
    return RunData(concepts, protect, kept[::2], kept[1::2], questions, unaware)


def check_folder(
    settings: RunSettings, folder: Path, *, overwrite: bool = False, compared: Mapping[str, str] | None = None
) -> None:
    """Make sure that `folder` is new, empty, or a run with the same settings (which is then resumed).

    A folder that holds scores alone may be taken up with other settings of what comes after them. With `overwrite` any
    run may be there. SpinError otherwise; nothing is written.
    """
    if not is_run(folder):
        if folder.is_file() or (folder.is_dir() and any(path.suffix != ".part" for path in folder.iterdir())):
            raise SpinError(
                f"The output {folder} exists and is not a run.", change="choose another folder with --output."
            )
        return
    if overwrite:
        return
    record = read_json(folder / "run.json")
    before = {**record["settings"], **record.get("compared", {})}
    now = {**_listed(settings.as_json()), **(compared or {})}
    changed = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in {**now, **before}
        if before.get(key) != now.get(key) and scope_of(key) in compared_scopes(folder)
    ]
    if changed:
        raise SpinError(
            f"{folder} holds a run with other settings ({'; '.join(changed[:4])}).",
            change="choose another folder with --output, or --overwrite to start that one anew.",
        )


def compared_scopes(folder: Path) -> tuple[str, ...]:
    """Which settings a resumed run must share with what is in the folder."""
    return ("all", "after scores") if (folder / "patch.safetensors").exists() else ("all",)


def delete_artefacts(folder: Path) -> None:
    """Delete what a run wrote, and nothing else; its record goes last, so that the folder stays a run until then."""
    for name in ARTEFACTS:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file()


def _listed(value: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back: tuples are lists."""

    def lists(item: Any) -> Any:
        return [lists(part) for part in item] if isinstance(item, list | tuple) else item

    return {key: lists(item) for key, item in value.items()}


def write_record(
    settings: RunSettings,
    folder: Path,
    loaded: LoadedModel,
    data: RunData,
    template: str,
    *,
    overwrite: bool = False,
    compared: Mapping[str, str] | None = None,
) -> None:
    """run.json: enough to replay the run.

    It is the first file of a run, written when model and data are known to be good. A resumed run must read the same
    data and model, and keeps its record; `overwrite` deletes the artefacts of an earlier run.
    """
    model = {
        "name": settings.model,
        "path": str(loaded.checkpoint.folder),
        "fingerprint": loaded.checkpoint.fingerprint,
    }
    model |= {"dtype": str(loaded.dtype).removeprefix("torch."), "device": str(loaded.device), "template": template}
    used = data.record(settings)
    if is_run(folder) and not overwrite:
        before = read_json(folder / "run.json")
        scores_alone = "after scores" not in compared_scopes(folder)
        roles = ("concept", "protect") if scores_alone else tuple(row["role"] for row in used)
        same_data = [row for row in before["data"] if row["role"] in roles] == [r for r in used if r["role"] in roles]
        if before["model"]["fingerprint"] != model["fingerprint"] or not same_data:
            raise SpinError(
                f"The model or the data changed since the run in {folder} began.",
                change="restore them, or start anew with --overwrite.",
            )
        if not scores_alone or (before["settings"] == _listed(settings.as_json()) and before["data"] == used):
            return
    else:
        delete_artefacts(folder)
    record = {
        "command": replay_command(settings, compared or {}),
        "settings": settings.as_json(),
        **({"compared": dict(compared)} if compared else {}),
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
        "machine": {"platform": platform.platform(), "processor": platform.machine()},
        "model": model,
        "data": used,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(folder / "run.json", record)


def version_of(package: str) -> str:
    """The installed version; a source tree on the path has none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def replay_command(settings: RunSettings, compared: Mapping[str, str] | None = None) -> str:
    """The command line that does this run, or this comparison, again."""
    words = ["spin-llm", "eval" if compared else "run", settings.model]
    words += [
        word
        for name, value in (compared or {}).items()
        if name in ("baseline", "patch")
        for word in (f"--{name}", value)
    ]
    defaults = RunSettings("")
    for name, value in settings.as_json().items():
        if name == "model" or value == getattr(defaults, name):
            continue
        if value is True:
            words.append(flag_of(name))
        elif isinstance(value, tuple):
            words += [
                part for item in value for part in (flag_of(name), item if isinstance(item, str) else "=".join(item))
            ]
        else:
            words += [flag_of(name), str(value)]
    return shlex.join(words)


def score_stage(
    settings: RunSettings, folder: Path, loaded: LoadedModel, data: RunData, console: Console, ranks: Ranks = ALONE
) -> dict[str, dict[str, Scores]]:
    """Score every concept and protected set into scores/NAME.safetensors; those that are there are read."""
    files = {name: folder / "scores" / f"{name}.safetensors" for name in (*data.concepts, *data.protect)}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        score_missing(settings, folder, loaded, data, {name: files[name] for name in missing}, console, ranks)
    return {
        "concepts": {name: load_scores(files[name]) for name in data.concepts},
        "protect": {name: load_scores(files[name]) for name in data.protect},
    }


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
    if settings.target != "attention" and (coverage := mlp_coverage(loaded.model)) < 1:
        console.say(f"only {coverage:.0%} of the MLP weights are scored; the others are experts fused in another form")
    plan = make_plan(
        loaded,
        [batch for name in files for batch in make_batches(aware[name], unaware[name], matrices=matrices)],
        matrices,
        accumulators(statistics),
        statistics=len(statistics),
        budget=parse_bytes(settings.memory_budget) if settings.memory_budget else None,
        checkpoints=True,
    )
    console.say(plan.text())
    for name, path in files.items():
        about = {"concept": name, "data_sha256": rows_sha256(pairs[name]), "seed": settings.seed}
        if truncated := sum(example.truncated > 0 for example in aware[name]):
            console.say(f"{name}: {truncated} prompts too long for --max-length or the model lost their start")
        total = len(plan.partitions) * (len(aware[name]) + len(unaware[name])) // ranks.world
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


def encode(settings: RunSettings, loaded: LoadedModel, pairs: Sequence[Pair]) -> list[Example]:
    """Examples of at most --max-length tokens, and no more than the model can see."""
    length = min(settings.max_length, loaded.context)
    return encode_all(loaded.tokenizer, pairs, template=settings.template, max_length=length)


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
        return _patch_of_run(settings, path)
    ratio = settings.ratio
    table: list[dict[str, Any]] = []
    if ratio is None:
        ratio, table = choose_ratio(
            loaded,
            scores["concepts"],
            scores["protect"],
            encode(settings, loaded, data.choose),
            rule=settings.rule,
            protect_ratio=settings.protect_ratio,
            target=settings.target,
            granularity=settings.granularity,
            scale=settings.scale,
            max_increase=settings.max_perplexity_increase,
            console=console,
        )
    selection = make_selection(settings, scores, ratio)
    patch = patch_of(settings, loaded.checkpoint, selection, scores, table)
    save_patch(path, patch)
    console.say(f"{patch.weights:,} weights in {len(patch.edits)} matrices, ratio {ratio:g}; patch {path}")
    return load_patch(path)  # as a resumed run reads it


def _patch_of_run(settings: RunSettings, path: Path) -> Patch:
    """The patch that this run wrote; SpinError when it is another one, put there by `spin-llm select` for instance."""
    patch = load_patch(path)
    about = patch.metadata
    chosen_by_run = bool(about["ratio_table"]) if settings.ratio is None else about["ratio"] == settings.ratio
    if not chosen_by_run or any(about[name] != getattr(settings, name) for name in ("rule", "target", "scale")):
        raise SpinError(
            f"{path} was not made by this run (rule {about['rule']}, ratio {about['ratio']:g}).",
            cause="`spin-llm select` wrote it there.",
            change="move it away; or compare it with `spin-llm eval MODEL --patch`.",
        )
    return patch


def make_selection(
    settings: RunSettings, scores: Mapping[str, Mapping[str, Scores]], ratio: float, rule: str | None = None
) -> Selection:
    return select(
        scores["concepts"],
        scores["protect"],
        rule=rule or settings.rule,
        ratio=ratio,
        protect_ratio=settings.protect_ratio,
        target=settings.target,
        granularity=settings.granularity,
    )


def patch_of(
    settings: RunSettings,
    checkpoint: Checkpoint,
    selection: Selection,
    scores: Mapping[str, Mapping[str, Scores]],
    table: Sequence[Mapping[str, Any]] = (),
) -> Patch:
    """A patch whose metadata says where it is from and where its weights lie."""
    everything = {**scores["concepts"], **scores["protect"]}
    about = {
        "base_model": settings.model,
        "data_sha256": {name: part.metadata["data_sha256"] for name, part in everything.items()},
        "candidates": selection.candidates,
        "shared": selection.shared,
        "targeted_weights": selection.targeted_weights,
        "ratio_table": list(table),
        "places": {
            checkpoint.stored_name(name): {"shape": list(place.shape), "layer": place.layer, "kind": place.kind}
            for name, place in selection.places.items()
        },
    }
    return make_patch(checkpoint, selection, scale=settings.scale, about=about)


def evaluate_stage(
    settings: RunSettings,
    folder: Path,
    loaded: LoadedModel,
    data: RunData,
    scores: Mapping[str, Mapping[str, Scores]],
    patch: Patch,
    console: Console,
) -> dict[str, Any]:
    """Answers, verdicts, results.json."""
    patches = {EDITED: patch, **control_patches(settings, loaded, scores, patch)}
    views: dict[str, View] = {BASE: lambda: nullcontext(loaded)}
    views |= {name: patched_view(loaded, other) for name, other in patches.items()}
    evaluation = Evaluation(
        data.questions, encode(settings, loaded, data.final), settings.template, settings.new_tokens, settings.seed
    )
    measured = evaluate(views, evaluation, load_judge(settings.judge), folder, console=console)
    for name, control in measured["controls"].items():
        measured["controls"][name] = {"weights": patches[name].weights, **control}
    results = {"edit": edit_summary(patch), **measured, "ratio_table": patch.metadata["ratio_table"]}
    write_json(folder / "results.json", results)
    shutil.rmtree(folder / "progress", ignore_errors=True)
    return results


def control_patches(
    settings: RunSettings, loaded: LoadedModel, scores: Mapping[str, Mapping[str, Scores]], patch: Patch
) -> dict[str, Patch]:
    """The controls asked for, at the ratio of the patch."""
    ratio = patch.metadata["ratio"]
    chosen: dict[str, Selection] = {}
    for control in settings.controls:
        if control == "random":
            chosen[control] = random_like(make_selection(settings, scores, ratio), settings.seed)
        else:
            chosen[control] = make_selection(settings, scores, ratio, control)
    return {name: patch_of(settings, loaded.checkpoint, selection, scores) for name, selection in chosen.items()}


def patched_view(loaded: LoadedModel, patch: Patch) -> View:
    """A view of the loaded model with the patch in it while it is looked at."""

    @contextmanager
    def view() -> Any:
        with patch.applied(loaded.model):
            yield loaded

    return view


def edit_summary(patch: Patch) -> dict[str, Any]:
    """The `edit` part of results.json."""
    about = patch.metadata
    places = about.get("places", {})
    return {
        **{
            key: about.get(key) for key in ("rule", "ratio", "protect_ratio", "target", "scale", "candidates", "shared")
        },
        "weights": patch.weights,
        "matrices": len(patch.edits),
        "share": patch.weights / about["targeted_weights"] if about.get("targeted_weights") else None,
        "per_matrix": {name: edit.indices.numel() for name, edit in patch.edits.items()},
        "shapes": {name: place["shape"] for name, place in places.items()},
        "layers": {name: place["layer"] for name, place in places.items()},
        "kinds": {name: place["kind"] for name, place in places.items()},
    }


def score(settings: RunSettings, folder: Path, *, overwrite: bool = False, console: Console = SILENT) -> list[Path]:
    """Only the scores: the score files written, in a folder that `select_from_folder` and `run` take up.

    Under `torchrun` or `accelerate launch` the examples are shared out over the processes; the first one writes.
    """
    with joined_ranks() as ranks:
        console = console if ranks.first else SILENT
        data = read_data(settings, console)
        check_folder(settings, folder, overwrite=overwrite)
        loaded = load_model(settings, console)
        template = resolve_template(loaded.tokenizer, settings.template)
        ranks.wait()
        if ranks.first:
            write_record(settings, folder, loaded, data, template, overwrite=overwrite)
        ranks.wait()
        score_stage(settings, folder, loaded, data, console, ranks)
    if not ranks.first:
        return []
    return [folder / "scores" / f"{name}.safetensors" for name in (*data.concepts, *data.protect)]


def select_from_folder(
    folder: Path,
    output: Path,
    *,
    rule: str,
    ratio: float,
    protect_ratio: float | None,
    target: str,
    scale: float,
    overwrite: bool = False,
) -> Patch:
    """A patch from the scores of a run folder.

    The checkpoint is read for the old values of the touched tensors alone.
    """
    if output.exists() and not overwrite:
        raise SpinError(f"{output} exists.", change="choose another --output, or --overwrite.")
    if not is_run(folder):
        raise SpinError(f"{folder} is not a run folder: it has no run.json.", change="run `spin-llm score` first.")
    record = read_json(folder / "run.json")
    known = {name: value for name, value in record["settings"].items() if name in RunSettings.__dataclass_fields__}
    chosen = {"rule": rule, "ratio": ratio, "protect_ratio": protect_ratio, "target": target, "scale": scale}
    settings = settings_from_json({**known, **chosen})
    scores = {
        role: {name: load_scores(folder / "scores" / f"{name}.safetensors") for name, _ in getattr(settings, role)}
        for role in ("concepts", "protect")
    }
    checkpoint = Checkpoint(Path(record["model"]["path"]))
    patch = patch_of(settings, checkpoint, make_selection(settings, scores, ratio), scores)
    save_patch(output, patch)
    return patch


def settings_from_json(value: Mapping[str, Any]) -> RunSettings:
    """RunSettings as run.json records them."""
    pairs = {name: tuple(tuple(pair) for pair in value[name]) for name in ("concepts", "protect", "questions")}
    return RunSettings(
        **{**value, **pairs, "controls": tuple(value["controls"]), "statistics": tuple(value["statistics"])}
    )


def evaluate_models(
    settings: RunSettings,
    folder: Path,
    *,
    baseline: str | None,
    patch_file: Path | None,
    overwrite: bool = False,
    console: Console = SILENT,
) -> dict[str, Any]:
    """Compare settings.model (edited) with `baseline`, or settings.model (base) with the same model under a patch."""
    if (baseline is None) == (patch_file is None):
        raise SpinError("eval compares two models.", change="give --baseline MODEL or --patch PATCH, one of them.")
    patch = load_patch(patch_file) if patch_file else None
    compared = {"baseline": str(baseline)}
    if patch_file:
        compared = {"patch": str(patch_file), "patch_sha256": sha256_file(patch_file)}
    settings = replace(settings, concepts=())  # nothing is scored
    data = read_data(settings, console)
    check_folder(settings, folder, overwrite=overwrite, compared=compared)
    options: dict[str, Any] = {
        "dtype": settings.dtype,
        "trust_remote_code": settings.trust_remote_code,
        "say": console.say,
    }
    loaded = load(settings.model, **options)
    template = resolve_template(loaded.tokenizer, settings.template)
    write_record(settings, folder, loaded, data, template, overwrite=overwrite, compared=compared)
    if patch:
        views: dict[str, View] = {BASE: lambda: nullcontext(loaded), EDITED: patched_view(loaded, patch)}
    else:
        base = load(str(baseline), **options)
        views = {BASE: lambda: nullcontext(base), EDITED: lambda: nullcontext(loaded)}
    evaluation = Evaluation(
        data.questions, encode(settings, loaded, data.final), settings.template, settings.new_tokens, settings.seed
    )
    measured = evaluate(views, evaluation, load_judge(settings.judge), folder, console=console)
    results = {"edit": edit_summary(patch) if patch else {}, **measured, "ratio_table": []}
    write_json(folder / "results.json", results)
    write_report(folder)
    return results
