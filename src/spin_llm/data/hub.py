"""Data sets of the hub: any by its repository, those of the paper by name.

In: a repository id `owner/name`; or a name (`beavertails`, `salad`, `alpaca-cleaned`), a concept, and a folder or the
hub. Out: the paths of a repository's data files in the hub's cache, of the training split when there is one; or the
pairs of a concept. A folder may hold files prepared as prompt/response tables (beaver*_CONCEPT_safe*, salad_CONCEPT*,
alpaca_cleaned*) or the hub's own file. "Safe" BeaverTails pairs carry no harm category, so the aware pairs of a concept
are the safe answers to prompts of which another answer was flagged with the concept's category. Left out: the
`datasets` library, loading scripts (they run remote code), revisions other than the newest; the paper's removal of
safety items from Alpaca-cleaned, which is not published as a rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from spin_llm.data.columns import Pair, Wanted, join_input, read_pairs, text_of
from spin_llm.data.rows import SUFFIXES, ReadRows, Row, data_suffix, read_rows
from spin_llm.errors import SpinError
from spin_llm.hub_errors import hub_error

ELSEWHERE = (
    "download its files where the hub can be reached and give the path of a file as the source (for beavertails, salad "
    "and alpaca-cleaned: the folder, with --data-dir), or use the source starter."
)
SALAD_COLUMNS = ("1-category", "2-category", "3-category")


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


def beavertails(rows: Iterable[Row], category: str, responses: str) -> Iterable[Pair]:
    flagged: set[str] = set()
    kept: list[Pair] = []
    for where, values in rows:
        prompt, categories = text_of(values["prompt"]), values["category"]
        has_category = isinstance(categories, dict) and bool(categories.get(category))
        if has_category:
            flagged.add(prompt)
        if values["is_safe"] if responses == "aware" else has_category and not values["is_safe"]:
            kept.append(Pair(prompt, text_of(values["response"]), where=where))
    return (pair for pair in kept if pair.prompt in flagged)


def salad(rows: Iterable[Row], category: str, _responses: str) -> Iterable[Pair]:
    for where, values in rows:
        levels = [str(values[column]) for column in SALAD_COLUMNS]
        if any(category in level.lower() for level in levels):
            yield Pair(text_of(values["question"]), "", levels[-1], where=where)


def alpaca_cleaned(rows: Iterable[Row], _category: str, _responses: str) -> Iterable[Pair]:
    for where, values in rows:
        instruction = text_of(values["instruction"])
        prompt = instruction and join_input(instruction, values["input"])
        yield Pair(prompt, text_of(values["output"]), where=where)


@dataclass(frozen=True)
class Known:
    repository: str
    hub_file: str  # pattern inside the repository
    prepared: str  # pattern of prepared tables, CONCEPT and LABEL (safe, unsafe) filled in
    columns: tuple[str, ...]  # of the hub's file
    concepts: Mapping[str, str]  # what the set calls the category of each; {} when it has none
    select: Callable[[Iterable[Row], str, str], Iterable[Pair]]  # the pairs of a category, aware or unaware
    has_responses: bool = True


KNOWN = {
    "beavertails": Known(
        "PKU-Alignment/BeaverTails",
        "round0/330k/train.jsonl.gz",
        "beaver*_CONCEPT_LABEL*",
        ("prompt", "response", "category", "is_safe"),
        {"fairness": "discrimination,stereotype,injustice", "privacy": "privacy_violation"},
        beavertails,
    ),
    "salad": Known(
        "OpenSafetyLab/Salad-Data",
        "*base_set*.json*",
        "salad_CONCEPT*",
        ("question", *SALAD_COLUMNS),
        {"fairness": "unfair representation", "privacy": "privacy infringement"},
        salad,
        has_responses=False,
    ),
    "alpaca-cleaned": Known(
        "yahma/alpaca-cleaned",
        "alpaca_data_cleaned.json",
        "alpaca_cleaned*",
        ("instruction", "input", "output"),
        {},
        alpaca_cleaned,
    ),
}


def known_pairs(
    name: str, wanted: Wanted, data_dir: Path | None, rows_of: ReadRows
) -> tuple[str, list[Pair], list[str]]:
    """(name to print, pairs, what was left out) of a set, from `data_dir`, or from the hub when it is None."""
    known, concept = KNOWN[name], wanted.concept
    if wanted.responses and not known.has_responses:
        raise SpinError(
            f"{name} has questions and no responses.",
            cause="it was given where pairs of prompt and response are needed.",
            change="use it for evaluation questions, and beavertails or starter for pairs.",
        )
    label = wanted.responses or "aware"
    prepared = _prepared_file(name, known, concept, label, data_dir) if data_dir else None
    if prepared:
        return f"{name}/{prepared.name}", *read_pairs(rows_of(prepared), str(prepared), wanted)
    if known.concepts and concept not in known.concepts:
        raise SpinError(
            f"{name} has no rows for the concept {concept!r}.",
            cause="only the concepts of the paper are known in this data set.",
            change=f"use one of {', '.join(known.concepts)}, or give your own file as the source.",
        )
    pairs, left_out = _select(known, _hub_file(name, known, data_dir), concept or "", label)
    parts = [name, concept if known.concepts else None, label if known.concepts and known.has_responses else None]
    return "/".join(part for part in parts if part), pairs, left_out


def _prepared_file(name: str, known: Known, concept: str | None, label: str, folder: Path) -> Path | None:
    """The one table in `folder` prepared for this concept and these answers, if there is one."""
    if not folder.is_dir():
        raise SpinError(
            f"The data folder {folder} {'is a file' if folder.exists() else 'does not exist'}.",
            cause="a mistyped path.",
            change="give the folder that holds the data with --data-dir, or leave it out to read from the hub.",
        )
    answers = {"aware": "safe", "unaware": "unsafe"}[label]
    pattern = known.prepared.replace("CONCEPT", (concept or "CONCEPT").lower()).replace("LABEL", answers)
    matches = [path for path in _data_files(folder) if fnmatch(path.name.lower(), pattern)]
    if len(matches) > 1:
        raise SpinError(
            f"{len(matches)} files in {folder} match {name} ({pattern}): {', '.join(path.name for path in matches)}.",
            cause="several versions of one data set lie in the folder.",
            change="give the path of the one to use as the source, or another --data-dir.",
        )
    return matches[0] if matches else None


def _hub_file(name: str, known: Known, folder: Path | None) -> Path:
    """The hub's own file, from `folder` (under its name, or its path in the repository) or from the hub."""
    if folder is None:
        return download(known.repository, [known.hub_file])[0]
    nested = folder / known.hub_file
    if nested.is_file():
        return nested
    seen = _data_files(folder)
    if found := [path for path in seen if fnmatch(path.name, known.hub_file.rsplit("/", 1)[-1])]:
        return found[0]
    raise SpinError(
        f"No file in {folder} is {name}: none is named {known.prepared} (with a suffix that is read), or is "
        f"{known.hub_file} of {known.repository}.",
        cause=f"it holds {', '.join(path.name for path in seen[:8]) or 'no data files'}.",
        change="give another --data-dir, the path of a file as the source, or leave --data-dir out to use the hub.",
    )


def _data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and data_suffix(path))


def _select(known: Known, path: Path, concept: str, label: str) -> tuple[list[Pair], list[str]]:
    """(the pairs of a concept with text, what was left out) of the hub's own file."""

    def checked(rows: Iterable[Row]) -> Iterable[Row]:
        for row in rows:
            if missing := [column for column in known.columns if column not in row.values]:
                raise SpinError(
                    f"{path}, {row.where} has no column {', '.join(missing)}; it has {', '.join(row.values)}.",
                    cause=f"it is not the file {known.hub_file} of {known.repository}, or that data set has changed.",
                    change="give your own file as the source, and name its columns with --prompt-column and "
                    "--response-column.",
                )
            if not isinstance(row.values["category"] if "category" in known.columns else {}, dict):
                raise SpinError(f"{path}, {row.where}: the column category is no object of true and false.")
            yield Row(f"{path}, {row.where}", row.values)

    rows = checked(read_rows(path))
    selected = list(known.select(rows, known.concepts.get(concept, ""), label))
    whole = [pair for pair in selected if pair.prompt and (pair.response or not known.has_responses)]
    if not whole:
        raise SpinError(
            f"{path} has no rows for the concept {concept!r} ({label} answers).",
            cause=f"the categories of {known.repository} have changed, or the file is a part of it.",
            change="give your own file as the source.",
        )
    lacking = len(selected) - len(whole)
    return whole, [f"{lacking} {'row' if lacking == 1 else 'rows'} without text"] if lacking else []
