"""A checkpoint on disk as bytes: which safetensors file holds which tensor, and where.

In: a folder with `*.safetensors` (sharded or not). Out: the files that transformers loads from it, a map from tensor
name to file, dtype, shape and byte range, the raw bytes of any one tensor, and digests. Reading is by offset, so memory
does not grow with the model. A folder in which it is not clear what is loaded is refused. Left out: pickled checkpoints
(`*.bin`), which are never read, and what the tensors mean.

The safetensors layout: 8 bytes little-endian header length N, N bytes of JSON, then the tensors' bytes.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from spin_llm.errors import SpinError
from spin_llm.files import read_json, read_typed, sha256_json
from spin_llm.models.disk.headers import StoredTensor, read_header
from spin_llm.models.disk.identity import Identity, identity_of, tensor_sha256

INDEX = "model.safetensors.index.json"
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds a model in safetensors files; an adapter's folder with the folder of its `base`."""

    folder: Path
    base: Path | None = None

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every stored tensor by name, over all files; SpinError when two files hold one tensor, or when the index
        names another file for it than the one that holds it."""
        found: dict[str, StoredTensor] = {}
        for file in weight_files(self.folder):
            for name, stored in read_header(file).items():
                if name in found:
                    places = f"{found[name].file.name} and {stored.file.name}"
                    raise _ambiguous(self.folder, f"{places} both hold the tensor {name}")
                found[name] = stored
        index = weight_index(self.folder)
        for name, place in weight_map(index).items() if index else ():
            if name in found and found[name].file != self.folder / place:  # a tied tensor may be in none
                where = f"{place}, by the index, and {found[name].file.name}"
                raise _ambiguous(self.folder, f"{where}, in truth, hold the tensor {name}")
        return found

    @cached_property
    def identity(self) -> Identity:
        """Hashes of weights, configuration, tokenizer, chat template and generation settings."""
        base = (self.base, Checkpoint(self.base).identity) if self.base else None
        return identity_of(self.folder, self.tensors, base)

    @property
    def fingerprint(self) -> str:
        """One digest of the identity."""
        return sha256_json(asdict(self.identity))

    @cached_property
    def sampled_fingerprint(self) -> str:
        """What version 0.1.0 called the fingerprint: names, shapes and dtypes of all tensors, and 4 KiB from the middle
        of each. Judge files and older records carry it; a light edit of a model mostly has the same, which is how a
        judge is told to be the model under edit."""
        return sha256_json({name: [t.dtype, list(t.shape), tensor_sha256(t, 4096)] for name, t in self.tensors.items()})

    def stored_name(self, name: str) -> str:
        """The name under which the file stores a loaded model's parameter `name` (base-model prefixes may differ)."""
        if name in self.tensors:
            return name
        matches = [key for key in self.tensors if key.endswith("." + name) or name.endswith("." + key)]
        if len(matches) != 1:
            raise SpinError(
                f"The checkpoint {self.folder} stores no tensor for the parameter {name}.",
                cause="transformers renames or fuses this architecture's weights when it loads them.",
                change="save the model once with transformers' save_pretrained and use that folder.",
            )
        return matches[0]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads from a model folder, in its order; of an adapter's folder, the
    adapter's. The rule of transformers: the file or index that config.json names as `transformers_weights`, else
    model.safetensors, else all files of model.safetensors.index.json. SpinError when there is none of these, when files
    are absent or lie outside the folder, and when there are two: no matter which is loaded here, another program, or
    another version of this one, may load the other."""
    adapter = adapter_file(folder)
    if adapter and adapter.is_file():
        return [adapter]
    roots = [] if adapter else _roots(folder)
    if not roots:
        raise _no_weights(folder)
    first, *others = roots
    files = _files_of(folder, first)
    if missing := [name for name in files if not (folder / name).is_file()]:
        what = f"{folder} lacks {', '.join(missing)}, named by its index {first}."
        raise SpinError(what, cause="an incomplete download.")
    for root in others:
        if more := [name for name in _files_of(folder, root) if name not in files and (folder / name).is_file()]:
            raise _ambiguous(folder, f"{first} and {root}{f' (with {more[0]})' * (root not in more)} are two sets")
    if any(DISTRIBUTED.fullmatch(file.name) for file in folder.iterdir()):
        raise _ambiguous(folder, "files of a distributed training (shard-*-model-*.safetensors) lie beside the model's")
    if (folder / "adapter_config.json").is_file():
        why = "adapter_config.json lies beside the model, and transformers would put that adapter on"
        raise _ambiguous(folder, why)
    return [folder / name for name in files]


def weight_index(folder: Path) -> Path | None:
    """The index by which transformers reads a model folder; None where it reads a single file."""
    root = next(iter(_roots(folder)), "")
    return folder / root if root.endswith(".json") and adapter_file(folder) is None else None


@dataclass(frozen=True)
class _Index:
    weight_map: dict[str, str]


def weight_map(index: Path) -> dict[str, str]:
    return read_typed(index, _Index, change="fetch the checkpoint again.").weight_map


def _roots(folder: Path) -> list[str]:
    """Where transformers looks for weights, in its order, of what is there: single files, and indexes (.json)."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if not isinstance(config, dict):
        raise SpinError(f"config.json of {folder} is not a model's: it holds no object.", cause="a damaged download.")
    named = config.get("transformers_weights")
    if named is not None:
        _refuse_outside(folder, named, "config.json")
        if not named.endswith((".safetensors", ".safetensors.index.json")) or not (folder / named).is_file():
            raise SpinError(f"config.json of {folder} names weights that are not there or never read: {named}.")
    names = [*([named] if named else []), "model.safetensors", INDEX]
    return [name for name in dict.fromkeys(names) if (folder / name).is_file()]


def _files_of(folder: Path, root: str) -> list[str]:
    """The weight files, as paths from the folder, of a single file or an index."""
    if not root.endswith(".json"):
        return [root]
    files = sorted(set(weight_map(folder / root).values()))
    for name in files:
        _refuse_outside(folder, name, root)
    if not files:
        raise SpinError(f"{folder / root} names no files: its weight_map is empty.", cause="a damaged download.")
    return files


def _refuse_outside(folder: Path, name: Any, source: str) -> None:
    """SpinError when a name would lead out of the folder, or is no name of a file."""
    parts = re.split(r"[/\\]", str(name))
    if (
        not isinstance(name, str)
        or not name.isprintable()
        or ":" in parts[0]
        or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
    ):
        raise SpinError(
            f"{source} of {folder} names {name!r}, which is not a file of that folder.",
            cause="a damaged checkpoint, or one that was made to reach other files.",
            change="do not use it, or fetch it again from where you trust it.",
        )


def adapter_file(folder: Path) -> Path | None:
    """The weights of a folder that is an adapter and no model. A configuration of the base model may lie beside them,
    as some trainers write it, but none of its weights."""
    names = {"adapter_config.json": "adapter_model.safetensors", "reft_config.json": "reft.safetensors"}
    found = next((folder / file for config, file in names.items() if (folder / config).is_file()), None)
    if found is None or not (folder / "config.json").is_file():
        return found
    others = [file for pattern in ("*.safetensors", "pytorch_model*.bin", INDEX) for file in folder.glob(pattern)]
    return found if found.is_file() and others == [found] else None


def _no_weights(folder: Path) -> SpinError:
    files = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    pickled = [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
    other = [name for name in files if name.endswith(".safetensors")]
    cause = f"it holds pickled weights ({', '.join(pickled[:3])}), which are never read." if pickled else ""
    if other:
        cause = f"transformers loads model.safetensors or what {INDEX} names, and not {', '.join(other[:3])}."
    return SpinError(
        f"{folder} holds no safetensors weights that transformers would load.",
        cause=cause,
        change="convert the model with transformers' save_pretrained.",
    )


def _ambiguous(folder: Path, why: str) -> SpinError:
    return SpinError(
        f"It is not clear which weights of {folder} are loaded: {why}.",
        cause="files of two models, or of two ways of saving one, in one folder.",
        change="keep the set that you mean in a folder of its own.",
    )
