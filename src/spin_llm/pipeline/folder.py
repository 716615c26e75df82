"""What a run says of itself, and what can be known of it before a model is loaded.

In: `RunSettings`, a folder, the model (before and after it is loaded), the data that were read. Out: run.json, which
replays the run; results that say which run.json and patch they were made from; a SpinError now, and not after an hour,
for a judge that is not there or judges none of what is asked, a server that does not answer, layers that the model does
not have, a template that it lacks, packages that are not installed, a disk that is too small. Left out: data and
questions, which are read at this time too (inputs.py), the output folder (resuming.py), what only a loaded model shows.
"""

from __future__ import annotations

import math
import os
import platform
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from spin_llm import records
from spin_llm.data import resolve_template
from spin_llm.data.hub import KNOWN
from spin_llm.errors import SpinError
from spin_llm.evaluate.tasks import check_tasks, named_tasks
from spin_llm.files import read_json, sha256_file
from spin_llm.judges.named import load_judge, parse_judge, read_quality, refuse_model_under_edit
from spin_llm.judges.quality.reading import family_of
from spin_llm.judges.verdict import judged_axes
from spin_llm.models import Checkpoint, LoadedModel
from spin_llm.models.disk.identity import TEMPLATE_FILES
from spin_llm.models.disk.resolve import resolve
from spin_llm.models.structure import KINDS
from spin_llm.records import Compared, Machine, ModelRecord
from spin_llm.results.file import Results, write_results
from spin_llm.settings import OWN, RunSettings, flag_of
from spin_llm.settings.checks import default_source

SOURCES = ("concepts", "protect", "questions")
FILES = ("judge", "own_judge", "judge_quality")  # settings that may name a file, whose content counts
NOTHING = Compared()
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
KEPT_BYTES = 12  # of an entry of a score file: an int64 index and a float32 value


def there(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """The paths in the folder that the names, or patterns, stand for."""
    return (path for name in names for path in sorted(folder.glob(name)))


def located(settings: RunSettings) -> RunSettings:
    """The settings as a record keeps them: files and folders by their whole path, to be found from anywhere."""
    named = ("model", "data_dir", "capability_tasks", "judge_quality")
    changed = {name: whole_path(getattr(settings, name)) for name in named}
    for name in ("judge", "own_judge"):
        kind, colon, rest = (getattr(settings, name) or "").partition(":")
        changed[name] = f"{kind}:{whole_path(rest)}" if colon else whole_path(getattr(settings, name))
    for role in SOURCES:
        changed[role] = tuple(
            (name, source if source in ("starter", *KNOWN) else whole_path(source))
            for name, source in getattr(settings, role)
        )
    return replace(settings, **changed)


def whole_path(text: Any) -> Any:
    """The absolute path of what is there; any other text, and None, as it is."""
    return os.path.abspath(Path(text).expanduser()) if text and Path(text).expanduser().exists() else text  # noqa: PTH100


def files_of(settings: RunSettings) -> dict[str, str]:
    """SHA-256 of the files that settings name, such as a judge's or a human's sheet, by setting."""
    named = {name: Path((getattr(settings, name) or "").removeprefix("human:")).expanduser() for name in FILES}
    return {name: sha256_file(path) for name, path in named.items() if path.is_file()}


def model_record(settings: RunSettings, loaded: LoadedModel) -> ModelRecord:
    """What run.json says of a model in this process."""
    return ModelRecord(
        settings.model,
        os.path.abspath(loaded.checkpoint.folder),  # noqa: PTH100 - links stay links
        loaded.checkpoint.fingerprint,
        asdict(loaded.checkpoint.identity),
        str(loaded.dtype).removeprefix("torch."),
        str(loaded.device),
        template=resolve_template(loaded.tokenizer, settings.template),
        family=family_of(loaded.model.config, loaded.tokenizer),
        notes=list(loaded.notes),
    )


def this_machine() -> Machine:
    """The CPU by what it calls itself, its cores, the threads that torch takes, and the GPU where there is one."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines() if about.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return Machine(
        platform=platform.platform(),
        processor=platform.machine(),
        cpu=(names or [platform.processor() or platform.machine()])[0],
        cores=psutil.cpu_count(logical=False),
        threads=torch.get_num_threads(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )


def write_run_results(folder: Path, results: Results) -> Results:
    """The results, which say what they were made from, written to results.json."""
    results = replace(results, made_from=records.made_from(folder))
    write_results(folder, results)
    return results


def replay_command(settings: RunSettings, compared: Compared = NOTHING) -> str:
    """The command line that does this run, or this comparison, again."""
    words = ["spin-llm", "run" if compared == NOTHING else "eval", settings.model]
    for flag, other in (("--baseline", compared.baseline), ("--patch", compared.patch)):
        words += [flag, other] if other else []
    defaults, usual = RunSettings(""), "beavertails" if settings.data_dir else "starter"
    for name, value in vars(settings).items():
        if name == "model" or (value == getattr(defaults, name) and name not in SOURCES):
            continue
        if value is True:
            words.append(flag_of(name))
        elif name == "layers":
            words += [flag_of(name), "-".join(map(str, value))]
        elif isinstance(value, tuple):
            items = [item if isinstance(item, str) else "=".join(item) for item in value]
            if name == "concepts" and len(value) == 1 and value[0][1] == default_source(value[0][0], usual):
                items = [value[0][0]]  # a bare name alone: NAME=SOURCE would bring the other one's default
            words += [word for item in items for word in (flag_of(name), item)]
        else:
            words += [flag_of(name), str(value)]
    return shlex.join(words)


def check_settings(settings: RunSettings, models: Sequence[str]) -> None:
    """What needs no model folder: names, files, servers, packages. `models` are those under evaluation."""
    refuse_model_under_edit(settings.judge, models)
    check_judge(settings.judge, [axis for axis, _ in settings.questions], settings)
    if settings.asks_own:
        refuse_model_under_edit(settings.dividing_judge, models)
        check_judge(settings.dividing_judge, [], settings)
    check_capabilities(settings)


def check_capabilities(settings: RunSettings) -> None:
    """The lm-eval tasks asked for can be run."""
    if settings.capabilities:
        check_tasks(named_tasks(settings.capabilities), settings.capability_tasks)


def check_judge(text: str, axes: Sequence[str], settings: RunSettings) -> None:
    """SpinError when the judge that a text names is not there, or judges none of `axes`.

    A model of its own is found, and fetched where it is a hub's, but not loaded.
    """
    named = parse_judge(text)
    quality = settings.judge_quality if text == settings.judge else None
    if named.kind in ("guard", "rubric") and named.url is None:
        resolve(named.model, trust_remote_code=settings.trust_remote_code)
        if quality:
            read_quality(Path(quality), text)
        known = list(named.guard.categories) if named.guard else None
        if axes and known is not None and not set(axes) & set(known):
            raise SpinError(
                f"The judge {text} judges none of {', '.join(axes)}.", change=f"it judges {', '.join(known)}."
            )
        return
    judge = load_judge(text, quality=quality, trust_remote_code=settings.trust_remote_code)
    if axes:
        judged_axes(judge, axes)


def table_of(file: Path) -> dict[str, object]:
    """What a JSON file says by name; {} where it is not there, or says something else."""
    found = read_json(file) if file.is_file() else None
    return found if isinstance(found, dict) else {}


def check_layers(settings: RunSettings, model: Path) -> None:
    """SpinError when `--layers` are none of the model's, by its config.json."""
    config = table_of(model / "config.json")
    text = config.get("text_config")
    parts = [config, text] if isinstance(text, dict) else [config]
    counts = [value for part in parts for key in LAYER_KEYS if isinstance(value := part.get(key), int)]
    if settings.layers and counts and settings.layers[0] >= counts[-1]:
        first, last = settings.layers
        raise SpinError(f"--layers {first}-{last} names no layer.", change=f"the last layer is {counts[-1] - 1}.")


def check_template(settings: RunSettings, model: Path) -> None:
    """SpinError when `--template chat` is asked of a model whose folder has no chat template."""
    if settings.template != "chat":
        return
    if any(there(model, TEMPLATE_FILES)):
        return
    if not table_of(model / "tokenizer_config.json").get("chat_template"):
        raise SpinError(
            "--template chat was asked for, but the tokenizer has no chat template.",
            cause="a base model, or a model folder without its chat template.",
            change="give --template raw or auto.",
        )


def check_space(settings: RunSettings, checkpoint: Checkpoint, folder: Path) -> None:
    """SpinError when the score files that are missing cannot fit on the disk of the output folder."""
    names = {**KINDS, "all": (*KINDS["mlp"], *KINDS["attention"])}[settings.target]
    weights = sum(
        math.prod(tensor.shape)
        for name, tensor in checkpoint.tensors.items()
        if len(tensor.shape) > 1 and any(word in name for word in names)
    )
    sets = [name for name, _ in (*settings.concepts, *settings.protect)] + ([OWN] if settings.asks_own else [])
    missing = [name for name in sets if not (folder / "scores" / f"{name}.safetensors").is_file()]
    needed = int(settings.keep * weights) * KEPT_BYTES * len(missing)
    free = free_space(folder)
    if needed > free:
        raise SpinError(
            f"The score files need about {needed / 2**30:.1f} GiB, and {folder} has {free / 2**30:.1f} GiB of disk.",
            change="free some space; choose another folder with --output; or give a smaller --keep.",
        )


def free_space(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, which need not be there yet."""
    places = (folder.absolute(), *folder.absolute().parents)
    return shutil.disk_usage(next(place for place in places if place.is_dir())).free
