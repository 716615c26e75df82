"""Why something could not be fetched from the Hugging Face hub, in words.

In: what the hub's client raised, with the errors that it was raised from. Out: one SpinError that names the cause
(gated, missing, refused, too many requests, offline, no network, a proxy, a full disk, a cut download) and the way out.
Left out: fetching (models/disk/resolve.py, data/hub.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from spin_llm.errors import SpinError
from spin_llm.outputs import disk_error

CUT = "RemoteProtocol|Consistency check|IncompleteRead|incomplete|ReadError|ReadTimeout"  # in a file's middle
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def hub_error(kind: str, repository: str, error: Exception, elsewhere: str) -> SpinError:
    """The error of a failed download of a `kind` (model, data set) in words; `elsewhere` says what to give instead."""
    from huggingface_hub import constants

    chain = list(_causes(error))
    for one in chain:
        if full := disk_error(one, Path(constants.HF_HUB_CACHE)):
            return SpinError(full.what, cause=full.cause, change="free some space, or set HF_HOME to another disk.")
    names = {base.__name__ for one in chain for base in type(one).__mro__}
    status = next((code for one in chain if (code := getattr(getattr(one, "response", None), "status_code", None))), 0)
    page = f"huggingface.co/{'datasets/' if kind == 'data set' else ''}{repository}"
    cause, change = "", ""
    if "GatedRepoError" in names:
        why, cause = "it is gated.", "its licence was not accepted, or no token was sent."
        change = f"accept the licence on {page}, then `hf auth login` (or set HF_TOKEN)."
    elif "DisabledRepoError" in names:
        why, change = "the hub disabled it.", elsewhere
    elif names & {"RepositoryNotFoundError", "RevisionNotFoundError"}:
        beside = f" {Path(repository).absolute()} is no local folder either." if kind == "model" else ""
        why = f"the hub has no such {kind}.{beside}"
        cause = "a misspelt name, a private repository without a token, or a mistyped path."
        change = f"check {page}; for a private one `hf auth login`; or {elsewhere}"
    elif status == 401:
        why, change = "the hub refused the token.", "`hf auth login` with a token that is valid, or unset HF_TOKEN."
    elif status == 429:
        why, cause = "too many requests (HTTP 429).", "the hub limits requests from this address."
        change = "try again later, or log in."
    elif status:
        why, cause = f"the hub answered HTTP {status}.", "a fault of the hub."
        change = f"try again later; or {elsewhere}"
    elif "HFValidationError" in names:
        why, change = "this is no name of a repository.", f"give owner/name, or {elsewhere}"
    elif constants.HF_HUB_OFFLINE or "OfflineModeIsEnabled" in names:
        why, cause = "offline mode.", "HF_HUB_OFFLINE is set, and the hub's cache on this machine does not hold it."
        change = f"unset HF_HUB_OFFLINE; or {elsewhere}"
    else:
        last = str(chain[-1]).strip().splitlines() or [type(chain[-1]).__name__]
        proxy = next((f" through the proxy of {name}" for name in PROXIES if os.environ.get(name)), "")
        why, cause = last[0][:200], f"no network, or {constants.ENDPOINT} cannot be reached{proxy}."
        if any(re.search(CUT, f"{type(one).__name__} {one}") for one in chain):
            cause = "the connection was interrupted in the middle of a file."
        change = f"check the network and run the command again (what was fetched is kept); or {elsewhere}"
    return SpinError(f"The {kind} {repository!r} could not be fetched: {why}", cause=cause, change=change)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from, the first one last."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
