"""The run folder: run.json, which replays the run, and the artefacts of each stage.

In: `RunSettings`, a folder, the model (before and after it is loaded), the data that were read. Out: run.json; results
that say which run.json and patch they were made from; files deleted stage by stage. Left out: what may be resumed and
what has to be made again (resuming.py), and reading run.json (records.py).
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from spin_llm.data import resolve_template
from spin_llm.data.hub import KNOWN
from spin_llm.files import sha256_file
from spin_llm.judges.quality.reading import family_of
from spin_llm.models import LoadedModel
from spin_llm.records import (
    PATCH,
    RECORD,
    RESULTS,
    Compared,
    DataRecord,
    Machine,
    ModelRecord,
    RunRecord,
    made_from,
    versions,
)
from spin_llm.results.file import Results, write_results
from spin_llm.settings import STAGES, RunSettings, flag_of
from spin_llm.settings.sources import default_source

SOURCES = ("concepts", "protect", "questions")
FILES = ("judge", "own_judge", "judge_quality")  # settings that may name a file, whose content counts
NOTHING = Compared()
SCORED = ("own", "scores", "progress")
MADE: dict[str, tuple[str, ...]] = {  # by stage: what has to be made again when it, or one before it, changes
    "edit": (PATCH, "search.json", "search", "stability.json", "progress/stability"),
    "answers": ("generations.jsonl", "progress/answers-*"),
    "verdicts": ("verdicts.jsonl",),
    "extras": ("capabilities.jsonl", "progress/capabilities-*", "report.html", "report.md", "figures", RESULTS),
}


def made_after(stage: str) -> tuple[str, ...]:
    """What a stage and those after it made, the last first."""
    return tuple(name for later in reversed(STAGES[STAGES.index(stage) :]) for name in MADE[later])


def there(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """The paths in the folder that the names, or patterns, stand for."""
    return (path for name in names for path in sorted(folder.glob(name)))


def delete_artefacts(folder: Path, stage: str = "all") -> None:
    """Delete what a run wrote from `stage` on, and nothing else. The last goes first; the record of everything goes at
    the end, so that the folder stays a run until then."""
    everything = (*made_after(STAGES[0]), *SCORED, RECORD)
    for path in there(folder, everything if stage == "all" else made_after(stage)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def located(settings: RunSettings) -> RunSettings:
    """The settings as a record keeps them: files and folders by their whole path, to be found from anywhere."""
    named = ("model", "data_dir", "capability_tasks", "judge_quality")
    changed = {name: whole_path(getattr(settings, name)) for name in named}
    for name in ("judge", "own_judge"):
        kind, colon, rest = (getattr(settings, name) or "").partition(":")
        changed[name] = f"{kind}:{whole_path(rest)}" if colon else whole_path(getattr(settings, name))
    for role in SOURCES:
        changed[role] = tuple(
            (name, source if source in ("starter", *KNOWN) else whole_path(source))
            for name, source in getattr(settings, role)
        )
    return replace(settings, **changed)


def whole_path(text: Any) -> Any:
    """The absolute path of what is there; any other text, and None, as it is."""
    return os.path.abspath(Path(text).expanduser()) if text and Path(text).expanduser().exists() else text  # noqa: PTH100


def files_of(settings: RunSettings) -> dict[str, str]:
    """SHA-256 of the files that settings name, such as a judge's or a human's sheet, by setting."""
    named = {name: Path((getattr(settings, name) or "").removeprefix("human:")).expanduser() for name in FILES}
    return {name: sha256_file(path) for name, path in named.items() if path.is_file()}


def model_record(settings: RunSettings, loaded: LoadedModel) -> ModelRecord:
    """What run.json says of a model in this process."""
    return ModelRecord(
        settings.model,
        os.path.abspath(loaded.checkpoint.folder),  # noqa: PTH100 - links stay links
        loaded.checkpoint.fingerprint,
        asdict(loaded.checkpoint.identity),
        str(loaded.dtype).removeprefix("torch."),
        str(loaded.device),
        template=resolve_template(loaded.tokenizer, settings.template),
        family=family_of(loaded.model.config, loaded.tokenizer),
        notes=list(loaded.notes),
    )


def new_record(settings: RunSettings, model: ModelRecord, data: list[DataRecord], compared: Compared) -> RunRecord:
    """run.json: enough to replay the run."""
    return RunRecord(
        command=replay_command(settings, compared),
        settings=settings.as_json(),
        compared=compared,
        files=files_of(settings),
        versions=versions(),
        machine=this_machine(),
        model=model,
        data=data,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def this_machine() -> Machine:
    """The CPU by its name, its cores, the threads that torch takes, and the GPU where there is one."""
    return Machine(
        platform=platform.platform(),
        processor=platform.machine(),
        cpu=cpu_name(),
        cores=psutil.cpu_count(logical=False),
        threads=torch.get_num_threads(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )


def cpu_name() -> str:
    """What the CPU calls itself."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines() if about.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def write_run_results(folder: Path, results: Results) -> Results:
    """The results, which say what they were made from, written to results.json."""
    results = replace(results, made_from=made_from(folder))
    write_results(folder, results)
    return results


def replay_command(settings: RunSettings, compared: Compared = NOTHING) -> str:
    """The command line that does this run, or this comparison, again."""
    words = ["spin-llm", "run" if compared == NOTHING else "eval", settings.model]
    for flag, other in (("--baseline", compared.baseline), ("--patch", compared.patch)):
        words += [flag, other] if other else []
    defaults, usual = RunSettings(""), "beavertails" if settings.data_dir else "starter"
    for name, value in vars(settings).items():
        if name == "model" or (value == getattr(defaults, name) and name not in SOURCES):
            continue
        if value is True:
            words.append(flag_of(name))
        elif name == "layers":
            words += [flag_of(name), "-".join(map(str, value))]
        elif isinstance(value, tuple):
            items = [item if isinstance(item, str) else "=".join(item) for item in value]
            if name == "concepts" and len(value) == 1 and value[0][1] == default_source(value[0][0], usual):
                items = [value[0][0]]  # a bare name alone: NAME=SOURCE would bring the other one's default
            words += [word for item in items for word in (flag_of(name), item)]
        else:
            words += [flag_of(name), str(value)]
    return shlex.join(words)
