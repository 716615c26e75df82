"""Everything that can be known is checked before a model is loaded.

In: the settings of a command, the folder of its model. Out: a SpinError now, and not after an hour: for a judge that is
not there or judges none of what is asked, a server that does not answer, layers that the model does not have, a
template that it lacks, packages that are not installed, a disk that is too small. Left out: data and questions, which
are read at this time too (inputs.py), the output folder (resuming.py), and what only a loaded model shows.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from spin_llm.errors import SpinError
from spin_llm.evaluate.tasks import check_tasks, named_tasks
from spin_llm.files import read_json
from spin_llm.judges.named import load_judge, parse_judge, read_quality, refuse_model_under_edit
from spin_llm.judges.verdict import judged_axes
from spin_llm.models import Checkpoint, resolve
from spin_llm.models.disk.identity import TEMPLATE_FILES
from spin_llm.models.structure import KINDS
from spin_llm.progress import SILENT, Console
from spin_llm.settings import OWN, RunSettings

LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
KEPT_BYTES = 12  # of an entry of a score file: an int64 index and a float32 value


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


def check_model(settings: RunSettings, checkpoint: Checkpoint, folder: Path, console: Console = SILENT) -> None:
    """What the model's folder tells without loading it."""
    check_layers(settings, checkpoint.folder)
    check_template(settings, checkpoint.folder)
    check_space(settings, checkpoint, folder)


def check_layers(settings: RunSettings, model: Path) -> None:
    """SpinError when `--layers` are none of the model's, by its config.json."""
    path = model / "config.json"
    config = read_json(path) if path.is_file() else {}
    parts = [part for part in (config, config.get("text_config") if isinstance(config, dict) else None) if part]
    counts = [
        part[key] for part in parts if isinstance(part, dict) for key in LAYER_KEYS if isinstance(part.get(key), int)
    ]
    if settings.layers and counts and settings.layers[0] >= counts[-1]:
        first, last = settings.layers
        raise SpinError(f"--layers {first}-{last} names no layer.", change=f"the last layer is {counts[-1] - 1}.")


def check_template(settings: RunSettings, model: Path) -> None:
    """SpinError when `--template chat` is asked of a model whose folder has no chat template."""
    if settings.template != "chat":
        return
    if any(path for pattern in TEMPLATE_FILES for path in model.glob(pattern)):
        return
    path = model / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    if not (isinstance(config, dict) and config.get("chat_template")):
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
