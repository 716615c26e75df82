"""A model repository of the Hugging Face hub, fetched: what the model needs, and no second copy of its weights.

In: a repository id `owner/name`. Out: its snapshot folder in the hub's cache, with configuration, tokenizer, templates,
the safetensors files that its index names, and its Python code where that is trusted. What goes wrong is told by its
cause (hub_errors.py). Left out: other revisions than the newest, and what is in the folder (resolve.py).
"""

from __future__ import annotations

import re
from pathlib import Path

from spin_llm.errors import SpinError
from spin_llm.files import read_json
from spin_llm.hub_errors import hub_error

SMALL = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.vocab", "*.bpe", "*.spm")
BELOW = ("additional_chat_templates/*.jinja",)  # of subfolders nothing else is needed: they hold other formats
CODE = ("*.py",)
INDEX = "model.safetensors.index.json"
ELSEWHERE = "give a local folder, a .gguf file, or 'smollm2-135m'."
ADAPTERS = ("adapter_model.safetensors", "reft.safetensors")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_repository(name: str) -> bool:
    return REPOSITORY.fullmatch(name) is not None and ".." not in name and "--" not in name


def fetch_model(repository: str, *, trust_remote_code: bool = False) -> Path:
    """The snapshot folder of a model or adapter; SpinError that tells why it could not be fetched."""
    from huggingface_hub import snapshot_download

    ignored = [f"*/{pattern}" for pattern in SMALL]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(SMALL), ignore_patterns=ignored))
        wanted = [*weights_named(folder), *BELOW, *(CODE if trust_remote_code and _needs_code(folder) else ())]
        return Path(snapshot_download(repository, revision=_revision(folder), allow_patterns=wanted))
    except SpinError:
        raise
    except Exception as error:  # the hub's client hands through the errors of its HTTP library
        raise hub_error("model", repository, error, ELSEWHERE) from error


def _needs_code(folder: Path) -> bool:
    """Whether the model, or its tokenizer, is built by Python code of the repository."""
    files = [folder / name for name in ("config.json", "tokenizer_config.json") if (folder / name).is_file()]
    return any("auto_map" in content for content in map(read_json, files) if isinstance(content, dict))


def _revision(folder: Path) -> str | None:
    """The commit of a snapshot folder, by which its other files are fetched."""
    return folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None


def weights_named(folder: Path) -> list[str]:
    """The weight files that the small files of a snapshot ask for."""
    if (folder / INDEX).is_file():
        content = read_json(folder / INDEX)
        named = content.get("weight_map") if isinstance(content, dict) else None
        names = {name for name in named.values() if isinstance(name, str)} if isinstance(named, dict) else set()
        return sorted(re.sub(r"([*?\[])", r"[\1]", name) for name in names)
    return ["model.safetensors", *ADAPTERS]


def what_it_holds(repository: str) -> str:
    """In words, what a repository without safetensors weights and configuration has instead; "" where none can be told.

    Asked only when a model could not be used.
    """
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(repository)
    except Exception:  # noqa: BLE001 - a guess at the cause of another error, which is told either way
        return ""
    for ending, words in ((".gguf", "GGUF files"), (".bin", "pickled weights"), (".pth", "pickled weights")):
        found = sorted(name for name in names if name.lower().endswith(ending))
        if found:
            return f"{words} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
    return ""
