"""Why something could not be fetched from the Hugging Face hub, in words.

In: what the hub's client raised, with the errors that it was raised from. Out: one SpinError that names the cause
(gated, missing, refused, too many requests, offline, no network, a proxy, a full disk, a cut download) and the way out.
Left out: fetching (models/disk/fetching.py, data/hub.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from spin_llm.errors import SpinError
from spin_llm.outputs import disk_error


def hub_error(kind: str, repository: str, error: Exception, elsewhere: str) -> SpinError:
    """The error of a failed download of a `kind` (model, data set) in words; `elsewhere` says what to give instead."""
    from huggingface_hub import constants

    what = f"The {kind} {repository!r} could not be fetched"
    chain = list(_causes(error))
    names = {name for one in chain for name in (base.__name__ for base in type(one).__mro__)}
    status = next((code for one in chain if (code := getattr(getattr(one, "response", None), "status_code", None))), 0)
    page = f"huggingface.co/{'datasets/' if kind == 'data set' else ''}{repository}"
    for one in chain:
        if full := disk_error(one, Path(constants.HF_HUB_CACHE)):
            return SpinError(full.what, cause=full.cause, change="free some space, or set HF_HOME to another disk.")
    if "GatedRepoError" in names:
        change = f"accept the licence on {page}, then `hf auth login` (or set HF_TOKEN)."
        return SpinError(
            f"{what}: it is gated.", cause="its licence was not accepted, or no token was sent.", change=change
        )
    if "DisabledRepoError" in names:
        return SpinError(f"{what}: the hub disabled it.", change=elsewhere)
    if names & {"RepositoryNotFoundError", "RevisionNotFoundError"}:
        beside = f" {Path(repository).absolute()} is no local folder either."
        return SpinError(
            f"{what}: the hub has no such {kind}.{beside if kind == 'model' else ''}",
            cause="a misspelt name, a private repository without a token, or a mistyped path.",
            change=f"check {page}; for a private one `hf auth login`; or {elsewhere}",
        )
    if status == 401:
        change = "`hf auth login` with a token that is valid, or unset HF_TOKEN."
        return SpinError(f"{what}: the hub refused the token.", change=change)
    if status == 429:
        what = f"{what}: too many requests (HTTP 429)."
        return SpinError(what, cause="the hub limits requests from this address.", change="try again later, or log in.")
    if status:
        change = f"try again later; or {elsewhere}"
        return SpinError(f"{what}: the hub answered HTTP {status}.", cause="a fault of the hub.", change=change)
    if "HFValidationError" in names:
        return SpinError(f"{what}: this is no name of a repository.", change=f"give owner/name, or {elsewhere}")
    if constants.HF_HUB_OFFLINE or "OfflineModeIsEnabled" in names:
        cause = "HF_HUB_OFFLINE is set, and the hub's cache on this machine does not hold it."
        return SpinError(f"{what}: offline mode.", cause=cause, change=f"unset HF_HUB_OFFLINE; or {elsewhere}")
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
        change=f"check the network and run the command again (what was fetched is kept); or {elsewhere}",
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
