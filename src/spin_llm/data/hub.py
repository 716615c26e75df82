"""Files of a hub data set.

In: a repository id `owner/name` and patterns. Out: the paths of its data files in the hub's cache; the training split
when there is one. Left out: the `datasets` library, loading scripts (they run remote code), revisions other than the
newest.
"""

from __future__ import annotations

import re
from pathlib import Path

from spin_llm.data.rows import SUFFIXES, data_suffix
from spin_llm.errors import SpinError
from spin_llm.hub_errors import hub_error

ELSEWHERE = (
    "download its files where the hub can be reached and give the path of a file as the source (for beavertails, salad "
    "and alpaca-cleaned: the folder, with --data-dir), or use the source starter."
)


def hub_files(repository: str) -> list[Path]:
    """Data files of the training split, else of the whole set; several are the shards of one table, in order."""
    paths = download(repository, [f"*train*{suffix}" for suffix in SUFFIXES], required=False)
    paths = paths or download(repository, [f"*{suffix}" for suffix in SUFFIXES])
    tables = {re.sub(r"-\d{5}-of-\d{5}.*(?=\.\w+$)", "", str(path)) for path in paths}
    if len(tables) > 1:
        shown = ", ".join(path.name for path in paths[:6]) + (", ..." if len(paths) > 6 else "")
        raise SpinError(
            f"The hub data set {repository} has {len(tables)} tables: {shown}.",
            cause="several splits or configurations, and no way to tell which one is meant.",
            change=f"give the path of one of them as the source (they are in {paths[0].parent}).",
        )
    return paths


def download(repository: str, patterns: list[str], required: bool = True) -> list[Path]:
    """Paths of the files that match, from the hub or its cache. Raises SpinError when the hub cannot be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    ignored = ["*dataset_info*.json"]
    try:
        folder = snapshot_download(repository, repo_type="dataset", allow_patterns=patterns, ignore_patterns=ignored)
    except Exception as error:  # the hub's client hands through the errors of its HTTP library
        raise hub_error("data set", repository, error, ELSEWHERE) from error
    names = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
    fitting = filter_repo_objects(filter(data_suffix, names), allow_patterns=patterns, ignore_patterns=ignored)
    found = sorted(Path(folder, name) for name in fitting)
    if required and not found:
        raise SpinError(
            f"The hub data set {repository} has no file that matches {', '.join(patterns)}.",
            cause="it keeps its data in another format, or under other names.",
            change=f"download it, save it as one of {', '.join(SUFFIXES)}, and give the path of that file.",
        )
    return found
