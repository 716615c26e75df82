"""A model repository of the Hugging Face hub, fetched: what the model needs, and no second copy of its weights.

In: a repository id `owner/name`. Out: its snapshot folder in the hub's cache, with configuration, tokenizer, templates,
the safetensors files that its index names, and its Python code where that is trusted. What goes wrong is told by its
cause (`hub_error`). Left out: other revisions than the newest, and what is in the folder (resolve.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from spin_llm.errors import SpinError
from spin_llm.files import disk_error, read_json

SMALL = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.vocab", "*.bpe", "*.spm")
BELOW = ("additional_chat_templates/*.jinja",)  # of subfolders nothing else is needed: they hold other formats
CODE = ("*.py",)
INDEX = "model.safetensors.index.json"
ADAPTERS = ("adapter_model.safetensors", "reft.safetensors")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_repository(name: str) -> bool:
    return REPOSITORY.fullmatch(name) is not None and ".." not in name and "--" not in name


def fetch_model(repository: str, *, trust_remote_code: bool = False) -> Path:
    """The snapshot folder of a model or adapter; SpinError that tells why it could not be fetched."""
    from huggingface_hub import snapshot_download

    ignored = [f"*/{pattern}" for pattern in SMALL]
    small = [*SMALL, *(CODE if trust_remote_code else ())]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=small, ignore_patterns=ignored))
        wanted = [*weights_named(folder), *BELOW]
        return Path(snapshot_download(repository, revision=_revision(folder), allow_patterns=wanted))
    except SpinError:
        raise
    except Exception as error:  # the hub's client hands through the errors of its HTTP library
        raise hub_error(repository, error) from error


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


def hub_error(repository: str, error: Exception, kind: str = "model") -> SpinError:
    """The error of a failed download in words: what happened, why, and the way out."""
    from huggingface_hub import constants

    what = f"The {kind} {repository!r} could not be fetched"
    chain = list(_causes(error))
    names = {name for one in chain for name in (base.__name__ for base in type(one).__mro__)}
    status = next((code for one in chain if (code := getattr(getattr(one, "response", None), "status_code", None))), 0)
    page = f"huggingface.co/{'datasets/' if kind == 'data set' else ''}{repository}"
    local = "give a local folder" + (", a .gguf file, or 'smollm2-135m'." if kind == "model" else " or file.")
    for one in chain:
        if full := disk_error(one, Path(constants.HF_HUB_CACHE)):
            return SpinError(full.what, cause=full.cause, change="free some space, or set HF_HOME to another disk.")
    if "GatedRepoError" in names:
        change = f"accept the licence on {page}, then `hf auth login` (or set HF_TOKEN)."
        return SpinError(
            f"{what}: it is gated.", cause="its licence was not accepted, or no token was sent.", change=change
        )
    if "DisabledRepoError" in names:
        return SpinError(f"{what}: the hub disabled it.", change=local)
    if names & {"RepositoryNotFoundError", "RevisionNotFoundError"}:
        beside = f" {Path(repository).absolute()} is no local folder either."
        return SpinError(
            f"{what}: the hub has no such {kind}.{beside if kind == 'model' else ''}",
            cause="a misspelt name, a private repository without a token, or a mistyped path.",
            change=f"check {page}; for a private one `hf auth login`; or {local}",
        )
    if status == 401:
        change = "`hf auth login` with a token that is valid, or unset HF_TOKEN."
        return SpinError(f"{what}: the hub refused the token.", change=change)
    if status == 429:
        what = f"{what}: too many requests (HTTP 429)."
        return SpinError(what, cause="the hub limits requests from this address.", change="try again later, or log in.")
    if status:
        change = f"try again later; or {local}"
        return SpinError(f"{what}: the hub answered HTTP {status}.", cause="a fault of the hub.", change=change)
    if "HFValidationError" in names:
        return SpinError(f"{what}: this is no name of a repository.", change=f"give owner/name, or {local}")
    if constants.HF_HUB_OFFLINE or "OfflineModeIsEnabled" in names:
        cause = "HF_HUB_OFFLINE is set, and the hub's cache on this machine does not hold it."
        return SpinError(f"{what}: offline mode.", cause=cause, change=f"unset HF_HUB_OFFLINE; or {local}")
    proxy = next(
        (name for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy") if os.environ.get(name)), ""
    )
    last = str(chain[-1]).strip().splitlines() or [type(chain[-1]).__name__]
    cause = f"no network, or {constants.ENDPOINT} cannot be reached" + (
        f" through the proxy of {proxy}" if proxy else ""
    )
    if _was_cut(chain):
        cause = "the connection was interrupted in the middle of a file"
    return SpinError(
        f"{what}: {last[0][:200]}",
        cause=f"{cause}.",
        change=f"check the network and run the command again (what was fetched is kept); or {local}",
    )


def _was_cut(chain: list[BaseException]) -> bool:
    words = " ".join(f"{type(one).__name__} {one}" for one in chain)
    return (
        re.search("RemoteProtocol|Consistency check|IncompleteRead|incomplete|ReadError|ReadTimeout", words) is not None
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from, the first one last."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
