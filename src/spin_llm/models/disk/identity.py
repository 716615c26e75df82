"""What makes a model the model that it is: hashes of its weights and of the files beside them.

In: a checkpoint folder, its tensors, for an adapter its base. Out: `Identity`, one hash each of weights, configuration,
tokenizer, chat template and generation settings. All bytes of the weights count, one tensor after another, so that
another division into files changes nothing; their hash is remembered in the cache folder by path, size, times and
inode of the files, and costs nothing the second time. JSON counts by its content, without what a library writes of
itself. Left out: what a server does not show.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_llm.errors import SpinError
from spin_llm.files import cache_folder, read_bytes, read_typed, sha256_json, write_json

if TYPE_CHECKING:
    from spin_llm.models.disk.headers import StoredTensor

BLOCK = 1 << 22  # bytes
SMALL = 64 << 20  # bytes: hashed in a moment, and not worth remembering
LARGE = 1 << 18  # bytes
SETTLED = 2.0  # seconds: a file changed since then may change again within one tick of its clock
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("vocab.txt", "merges.txt", "*.model", "*.tiktoken"),
)
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")
OF_GENERATION = ("eos_token_id", "bos_token_id", "pad_token_id")  # of config.json: how answers are made, not the model
OF_LIBRARIES = ("transformers_version", "_name_or_path", "_from_model_config", "_commit_hash", "name_or_path")
NAMES = {
    "weights": "the weights",
    "config": "the model's configuration",
    "tokenizer": "the tokenizer",
    "template": "the chat template",
    "generation": "the generation settings (end tokens and defaults)",
}


@dataclass(frozen=True)
class Identity:
    """SHA-256 of each part of a model."""

    weights: str
    config: str
    tokenizer: str
    template: str
    generation: str

    def changed(self, before: Mapping[str, str]) -> list[str]:
        """The parts, in words, that differ from those recorded `before`; a part that was not recorded does not."""
        now = asdict(self)
        return [words for name, words in NAMES.items() if before.get(name, now[name]) != now[name]]


def identity_of(folder: Path, tensors: Mapping[str, StoredTensor], base: tuple[Path, Identity] | None) -> Identity:
    """The identity of a checkpoint folder; of an adapter's with its `base` (folder and identity), from which comes
    what the adapter has not of its own."""
    config = without(json_of(folder / "config.json"), OF_GENERATION)
    code = [digests(folder, ("*.py", "adapter_config.json", "reft_config.json"))]
    tokenizer = digests(folder, TOKENIZER_FILES)
    template = [digests(folder, TEMPLATE_FILES), part_of(folder / "tokenizer_config.json", ("chat_template",))]
    ends = [part_of(folder / "config.json", OF_GENERATION), digests(folder, ("generation_config.json",))]
    own = {"weights": remembered_weights(folder, tensors), "config": sha256_json([config, code])}
    own |= {"tokenizer": sha256_json(tokenizer), "template": sha256_json(template), "generation": sha256_json(ends)}
    if base is None:
        return Identity(**own)
    under = base[1]
    joined = {name: sha256_json([own[name], getattr(under, name)]) for name in ("weights", "config")}
    has = {"tokenizer": bool(tokenizer), "template": bool(any(template) or tokenizer), "generation": any(ends)}
    return Identity(**joined, **{name: own[name] if there else getattr(under, name) for name, there in has.items()})


@dataclass(frozen=True)
class _Remembered:
    files: dict[str, list[int]]
    weights: str


def remembered_weights(folder: Path, tensors: Mapping[str, StoredTensor]) -> str:
    """`weights_sha256`, read from the cache where the files are as they were."""
    try:
        files = sorted({tensor.file for tensor in tensors.values()})
        stats = [(file, file.stat()) for file in files]
    except OSError as error:
        raise SpinError(f"{folder} could not be read: {error.strerror}.") from None
    seen = {
        os.path.abspath(file): [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino]  # noqa: PTH100 - links stay links
        for file, s in stats
    }
    place = cache_folder() / "fingerprints" / f"{sha256_json(sorted(seen))[:24]}.json"
    with suppress(SpinError):  # absent or damaged: hash again
        before = read_typed(place, _Remembered)
        if before.files == seen:
            return before.weights
    found = weights_sha256(tensors)
    newest = max((max(s.st_mtime, s.st_ctime) for _, s in stats), default=0.0)
    if sum(s.st_size for _, s in stats) > SMALL and newest < time.time() - SETTLED:
        with suppress(SpinError, OSError):  # no cache: it is hashed again the next time
            write_json(place, {"files": seen, "weights": found})
    return found


def weights_sha256(tensors: Mapping[str, StoredTensor]) -> str:
    """SHA-256 over the names, types, shapes and all bytes of the tensors, in the order of their names."""
    placed = sorted(tensors.items(), key=lambda item: (item[1].file, item[1].start))
    return sha256_json({name: [one.dtype, list(one.shape), tensor_sha256(one)] for name, one in placed})


def tensor_sha256(tensor: StoredTensor, most: int | None = None) -> str:
    """SHA-256 of a tensor's bytes, or of `most` bytes from their middle."""
    left = tensor.length if most is None else min(most, tensor.length)
    digest = hashlib.sha256()
    try:
        with tensor.file.open("rb") as file:
            file.seek(tensor.start + (tensor.length - left) // 2)
            while left and (block := file.read(min(BLOCK, left))):
                digest.update(block)
                left -= len(block)
    except OSError as error:
        raise SpinError(f"{tensor.file} could not be read: {error.strerror}.") from None
    return digest.hexdigest()


def digests(folder: Path, patterns: Iterable[str]) -> dict[str, str]:
    """SHA-256 by name of the files that are there; of JSON by its content, the chat template left out."""
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    return {str(file.relative_to(folder)): file_sha256(file) for file in files}


def file_sha256(file: Path) -> str:
    small = file.suffix == ".json" and file.stat().st_size < LARGE  # a vocabulary is not parsed for its hash
    content = json_of(file) if small else None
    if isinstance(content, dict):
        left_out = () if file.name == "chat_template.json" else ("chat_template",)
        return sha256_json(without(content, left_out))
    return hashlib.sha256(read_bytes(file)).hexdigest()


def json_of(file: Path) -> Any:
    """The content of a JSON file; None where there is none, or where it is not JSON (its bytes count then)."""
    if file.is_file():
        with suppress(ValueError, RecursionError):
            return json.loads(read_bytes(file))
    return None


def part_of(file: Path, keys: Iterable[str]) -> dict[str, object]:
    """The values of `keys` in a JSON file; {} when it has none of them."""
    content = json_of(file)
    return {key: content[key] for key in keys if key in content} if isinstance(content, dict) else {}


def without(content: Any, keys: Iterable[str]) -> Any:
    """JSON without `keys` and without what libraries write of themselves, at its top."""
    if not isinstance(content, dict):
        return content
    return {key: value for key, value in content.items() if key not in (*keys, *OF_LIBRARIES)}
