"""The run folder: run.json, which replays the run, and what may be resumed, kept or deleted.

In: `RunSettings`, a folder, the record of the model, the data that were read. Out: run.json; the settings that one
holds; a SpinError before anything of the user's is touched where another run, or another thing, is in the folder.
Left out: the artefacts of the stages, which each stage writes.
"""

from __future__ import annotations

import platform
import shlex
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from spin_llm.data import resolve_template
from spin_llm.errors import SpinError
from spin_llm.evaluate.quality import family_of
from spin_llm.files import is_temporary, read_json, write_json
from spin_llm.models import LoadedModel
from spin_llm.pipeline.data import RunData
from spin_llm.settings import RunSettings, flag_of, scope_of

PACKAGES = ("spin-llm", "torch", "transformers", "safetensors", "numpy", "scipy", "scikit-learn", "optuna")
ARTEFACTS = (
    *("own", "scores", "patch.safetensors", "search.json", "search", "progress", "generations.jsonl", "verdicts.jsonl"),
    *("capabilities.jsonl", "stability.json", "results.json", "report.html", "report.md", "figures", "run.json"),
)


def check_folder(
    settings: RunSettings, folder: Path, *, overwrite: bool = False, compared: Mapping[str, Any] | None = None
) -> None:
    """Make sure that `folder` is new, empty, or a run with the same settings (which is then resumed).

    A folder that holds scores alone may be taken up with other settings of what comes after them. With `overwrite` any
    run may be there. SpinError otherwise; nothing is written.
    """
    if not is_run(folder):
        if folder.is_file() or (folder.is_dir() and not all(map(is_temporary, folder.iterdir()))):
            raise SpinError(
                f"The output {folder} exists and is not a run.", change="choose another folder with --output."
            )
        return
    if overwrite:
        return
    record = read_json(folder / "run.json")
    before = {**_listed(RunSettings("").as_json()), **record["settings"], **record.get("compared", {})}
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
    model: Mapping[str, Any],
    data: RunData,
    *,
    overwrite: bool = False,
    compared: Mapping[str, Any] | None = None,
) -> None:
    """run.json: enough to replay the run.

    It is the first file of a run, written when model and data are known to be good. A resumed run must read the same
    data and model, and keeps its record; `overwrite` deletes the artefacts of an earlier run.
    """
    used = data.record(settings)
    if is_run(folder) and not overwrite:
        before = read_json(folder / "run.json")
        scores_alone = "after scores" not in compared_scopes(folder)
        roles = ("concept", "protect") if scores_alone else tuple(row["role"] for row in used)
        check_same_inputs(folder, before, model, used, roles)
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
        "model": dict(model),
        "data": used,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(folder / "run.json", record)


def model_record(settings: RunSettings, loaded: LoadedModel) -> dict[str, Any]:
    """What run.json says of a model in this process."""
    return {
        "name": settings.model,
        "path": str(loaded.checkpoint.folder),
        "fingerprint": loaded.checkpoint.fingerprint,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "template": resolve_template(loaded.tokenizer, settings.template),
        "family": family_of(loaded.model.config, loaded.tokenizer),
        **({"notes": list(loaded.notes)} if loaded.notes else {}),
    }


def check_same_inputs(
    folder: Path,
    record: Mapping[str, Any],
    model: Mapping[str, Any],
    used: Sequence[Mapping[str, Any]],
    roles: Sequence[str],
) -> None:
    """SpinError when the model, or the data used in these roles, are not those that the run's record names."""
    same_data = [row for row in record["data"] if row["role"] in roles] == [row for row in used if row["role"] in roles]
    same_model = all(record["model"].get(key) == model.get(key) for key in ("fingerprint", "url", "served"))
    if not same_model or not same_data:
        raise SpinError(
            f"The model or the data changed since the run in {folder} began.",
            change="restore them, or start anew with --overwrite.",
        )


def version_of(package: str) -> str:
    """The installed version; a source tree on the path has none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def replay_command(settings: RunSettings, compared: Mapping[str, Any] | None = None) -> str:
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
        elif name == "layers":
            words += [flag_of(name), "-".join(map(str, value))]
        elif isinstance(value, tuple):
            words += [
                part for item in value for part in (flag_of(name), item if isinstance(item, str) else "=".join(item))
            ]
        else:
            words += [flag_of(name), str(value)]
    return shlex.join(words)


def settings_of_record(record: Mapping[str, Any]) -> RunSettings:
    """The settings of a run.json, also of another version's: what it lacks has its default."""
    known = {name: value for name, value in record["settings"].items() if name in RunSettings.__dataclass_fields__}
    return settings_from_json(known)


def settings_from_json(value: Mapping[str, Any]) -> RunSettings:
    """RunSettings as run.json records them."""
    pairs = {name: tuple(tuple(pair) for pair in value[name]) for name in ("concepts", "protect", "questions")}
    lists = ("controls", "statistics", "capabilities", "layers")
    return RunSettings(
        **{**value, **pairs, **{name: tuple(value[name]) for name in lists if name in value}},
    )
