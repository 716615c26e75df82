"""run.json: what a run was told, which model and data it read, on what machine.

In: a run folder. Out: `RunRecord`, decoded by type, so that any damage is one message; the digest of what decides
results, by which results.json says which run.json (and which patch) it belongs to. Left out: writing it
(pipeline/folder.py).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path

import msgspec

from spin_llm.errors import SpinError
from spin_llm.files import read_typed, sha256_file, sha256_json
from spin_llm.settings import RunSettings, scope_of

PACKAGES = ("spin-llm", "torch", "transformers", "safetensors", "numpy", "scipy", "scikit-learn", "optuna")
RECORD, RESULTS, PATCH = "run.json", "results.json", "patch.safetensors"
ANEW = "give --overwrite to start anew, or choose another folder."


@dataclass(frozen=True)
class ModelRecord:
    """The model: its name as it was given, folder and parts (models/disk/identity.py); or URL and what its server says.
    `parts` is empty in records of 0.1.0, whose fingerprint saw 4 KiB of each tensor."""

    name: str
    path: str | None = None
    fingerprint: str | None = None
    parts: dict[str, str] = field(default_factory=dict)
    dtype: str | None = None
    device: str | None = None
    url: str | None = None
    served: dict[str, object] | None = None
    template: str | None = None
    family: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DataRecord:
    """One source: what it was for, and the hash of the rows that were used, and of those that were read where some were
    left out as too long; which rows were not taken, and why."""

    role: str
    name: str
    source: str
    examples: int
    sha256: str
    left_out: list[str] = field(default_factory=list)
    read_sha256: str = ""

    always = ("examples",)


@dataclass(frozen=True)
class Machine:
    """Where the numbers were computed: another CPU, or another number of threads, sums in another order."""

    platform: str = ""
    processor: str = ""
    cpu: str = ""
    cores: int | None = None
    threads: int | None = None
    instructions: str = ""
    gpu: str | None = None

    always = ("platform", "processor", "cpu", "cores", "threads", "instructions", "gpu")

    def words(self) -> str:
        """CPU, threads and GPU for people; "" where they were not recorded."""
        threads = f"{self.threads} {'thread' if self.threads == 1 else 'threads'}" if self.threads else ""
        return ", ".join(part for part in (self.cpu, self.instructions, threads, self.gpu) if part)


@dataclass(frozen=True)
class OtherModel:
    """Another model of this process, by its content."""

    fingerprint: str | None = None
    parts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Compared:
    """What `eval` compares the model with: another one, or itself under a patch; where that lies, and what it is."""

    baseline: str | None = None
    patch: str | None = None
    patch_sha256: str | None = None
    baseline_model: OtherModel | None = None
    baseline_served: dict[str, object] | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """run.json; what older versions did not write has a default."""

    command: str | list[str]
    settings: dict[str, object]
    compared: Compared = field(default_factory=Compared)
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: Machine = field(default_factory=Machine)
    model: ModelRecord
    data: list[DataRecord]
    started: str = ""

    always = ("files",)

    def told(self, where: Path) -> RunSettings:
        """The settings; what a record of another version lacks has its default. `where` is for the error."""
        known = {name: value for name, value in self.settings.items() if name in RunSettings.__dataclass_fields__}
        return settings_from_json(known, where)


def settings_from_json(value: Mapping[str, object], where: Path | str = RECORD) -> RunSettings:
    """RunSettings as run.json records them; SpinError for values of other types."""
    try:
        return msgspec.convert(dict(value), RunSettings)
    except msgspec.ValidationError as error:
        cause = "the file is damaged, was edited by hand, or was written by another version."
        raise SpinError(f"The settings in {where} cannot be read: {error}.", cause=cause, change=ANEW) from None


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The versions of Python and of packages; a source tree on the path has none."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in packages}}


def version_of(package: str) -> str:
    """The installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def is_run(folder: Path) -> bool:
    return (folder / RECORD).is_file()


def read_record(folder: Path) -> RunRecord:
    """The record of a run folder; SpinError when there is none, or when it is damaged."""
    if not is_run(folder):
        raise SpinError(f"{folder} is not a run folder: it has no {RECORD}.", change="run `spin-llm score` first.")
    return read_typed(folder / RECORD, RunRecord, change=ANEW)


def digest(record: RunRecord) -> str:
    """Of what decides results: settings, model and data by their contents, not by where they lie."""
    left_out = ("model", "data_dir", "concepts", "protect", "questions")  # by identity and by hash
    settings = {
        name: value for name, value in record.settings.items() if name not in left_out and scope_of(name) != "volatile"
    }
    data = [[row.role, row.name, row.examples, row.sha256] for row in record.data]
    model = [record.model.fingerprint, record.model.url, record.model.served]
    told = asdict(replace(record.compared, patch=None, baseline=None))
    compared = {name: value for name, value in told.items() if value is not None}
    return sha256_json([settings, model, data, compared, record.files])


def made_from(folder: Path) -> dict[str, str]:
    """What results of this folder carry: the digest of its run.json."""
    return {RECORD: digest(read_record(folder))}


def check_belongs(folder: Path, carried: Mapping[str, str], files: Mapping[str, str]) -> None:
    """SpinError when the results (`carried`: their `made_from`, and their `files`) do not belong to the run.json, or to
    the patch, beside them. Those of 0.1.0, and of other programs, do not say what they belong to."""
    other = [RECORD] if carried and carried != made_from(folder) else []
    patch = folder / PATCH
    if PATCH in files and (not patch.is_file() or sha256_file(patch) != files[PATCH]):
        other.append(PATCH)
    if other:
        raise SpinError(
            f"{folder / RESULTS} does not belong to the {' and the '.join(other)} beside it.",
            cause="a file was copied there, edited or replaced after the results were made.",
            change=f"put the right {other[0]} back; or move {RESULTS} away and give the command of the run again.",
        )
