"""A model's own files, a copy of them, and what transformers reads from it.

In: a checkpoint folder. Out: which of its files make the model, a copy of these as plain files (links are followed, so
that nothing outside the copy is written through one), and any tensor as transformers' loader finds it. A model is the
weights that are loaded, their index, every other file of the folder itself that is neither hidden, nor weights, nor the
state of a training, and the folder of chat templates. Left out: everything else, by name, for the user to be told; and
which bytes are changed (patch/file.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from spin_llm.errors import SpinError
from spin_llm.files import read_json
from spin_llm.models.disk.checkpoint import weight_files, weight_index
from spin_llm.outputs import check_output

TEMPLATES = "additional_chat_templates"
WEIGHTS = (  # of any format, and optimizers' and generators' states
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".onnx_data"),
    *(".ot", ".npz", ".npy", ".pkl", ".pickle", ".tflite", ".nemo", ".pdparams", ".tar", ".zip", ".part", ".lock"),
    ".index.json",
)
TRAINING = ("trainer_state.json", "zero_to_fp32.py", "latest")


@dataclass(frozen=True)
class ModelFiles:
    """Paths from the folder: the model's, and what lies beside it (folders end with a slash)."""

    kept: tuple[Path, ...]
    left_out: tuple[str, ...]


def model_files(folder: Path) -> ModelFiles:
    """What makes the model in `folder`. SpinError when a link that belongs to it leads nowhere."""
    index = weight_index(folder)
    weights = [file.relative_to(folder) for file in (*weight_files(folder), *([index] if index else []))]
    kept, left_out = set(weights), []
    for entry in sorted(folder.iterdir()):
        name = entry.name
        if name == TEMPLATES and entry.is_dir():
            kept |= {path.relative_to(folder) for path in entry.glob("*.jinja") if path.is_file()}
        elif entry.is_dir() and not any(path.parts[0] == name for path in weights):
            left_out.append(f"{name}/")
        elif not entry.is_dir() and Path(name) not in kept:
            if _belongs(name) and entry.is_file():
                kept.add(Path(name))
            elif _belongs(name) and entry.is_symlink():
                raise SpinError(
                    f"{entry} is a link that leads nowhere.",
                    cause="an incomplete download, or a folder copied without what it links to.",
                    change="fetch the model again, or delete the link if the model does not need it.",
                )
            else:  # not the model's; or a pipe, a socket, a device
                left_out.append(name)
    return ModelFiles(tuple(sorted(kept)), tuple(left_out))


def _belongs(name: str) -> bool:
    """Whether a file of this name, beside the weights that are loaded, is of the model."""
    other = name.startswith((".", "events.out.tfevents")) or name in TRAINING
    return not other and not name.lower().endswith(WEIGHTS)


def copy_model(folder: Path, files: ModelFiles, target: Path) -> None:
    """Copy the model's files into the empty folder `target`, as plain files."""
    for path in files.kept:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(folder / path, target / path)
        except OSError as error:
            if error.filename == str(folder / path):
                raise SpinError(f"{folder / path} could not be read: {error.strerror}.") from None
            raise


def check_model_output(output: str | Path, folder: Path, files: ModelFiles, *, overwrite: bool) -> Path:
    """The place of a copy of the model in `folder`, absolute and with links followed. SpinError in words when it cannot
    be made there, or when something is there that is not to be replaced: with `overwrite` a model's folder is, unless
    it holds more than a model, this model, or the working directory."""
    place = check_output(output)
    here, change = folder.resolve(), "choose another --output."
    if place == here:
        raise SpinError("The output is the model's own folder.", change=change)
    if place.is_dir() and (Path.cwd().is_relative_to(place) or place.is_mount()):
        what = "a mounted folder" if place.is_mount() else "the folder that you are in"
        inside = "give the name of a folder in it that does not exist yet."
        raise SpinError(f"The output {output} is {what}, which cannot be put in place whole.", change=inside)
    if place.is_dir() and any(place.iterdir()):
        if not (overwrite and (place / "config.json").is_file()):
            what = f"The output {output} exists."
            raise SpinError(what, change="choose another --output; --overwrite replaces a model folder only.")
        if any((here / path).resolve().is_relative_to(place) for path in files.kept):
            raise SpinError(f"The output {output} holds the model that is to be copied.", change=change)
        if more := [name for name in _more_than_a_model(place) if Path(name) not in files.kept]:
            what = f"The output {output} holds more than a model: {', '.join(more[:6])}."
            raise SpinError(what, change=f"move that away, or {change}")
    check_output(place.parent, space=sum((folder / path).stat().st_size for path in files.kept))
    return place


def _more_than_a_model(folder: Path) -> list[str]:
    """Entries of a model's folder that no copy of a model would have, and that are not its weights."""

    def is_weights(path: Path) -> bool:
        return path.name.startswith("model") and path.name.endswith((".safetensors", ".safetensors.index.json"))

    def of_a_model(entry: Path) -> bool:
        if entry.is_file():
            return is_weights(entry) or _belongs(entry.name)
        return entry.name == TEMPLATES or (entry.is_dir() and all(map(is_weights, entry.iterdir())))

    return [entry.name for entry in sorted(folder.iterdir()) if not of_a_model(entry)]


def as_loaded(folder: Path) -> Callable[[str], torch.Tensor]:
    """What reads a tensor by its name as transformers does when it loads the model in `folder`: from the files that its
    loader resolves, and where several hold the name, from the last. Raises SpinError when this version of transformers
    cannot be asked which files it loads."""
    try:
        from transformers.modeling_utils import _get_resolved_checkpoint_files as resolved

        files, _ = resolved(
            pretrained_model_name_or_path=str(folder),
            variant=None,
            gguf_file=None,
            use_safetensors=None,
            user_agent=None,
            is_remote_code=False,
            transformers_explicit_filename=read_json(folder / "config.json").get("transformers_weights"),
        )
    except (ImportError, TypeError) as error:
        raise SpinError(
            f"This version of transformers cannot be asked which files of {folder} it loads: {error}",
            change="use another version of transformers; 5.24 can.",
        ) from None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise SpinError(f"transformers cannot load what is in {folder}: {error!r}.", cause="a damaged index.") from None
    holders: dict[str, str] = {}
    for file in files or ():
        with safe_open(file, "pt") as opened:
            holders.update(dict.fromkeys(opened.keys(), file))

    def read(name: str) -> torch.Tensor:
        with safe_open(holders[name], "pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
        return tensor

    return read
