"""What this tool wrote, read back: rows of answers and verdicts, results, progress.

In: a file of a run folder, whole or damaged. Out: its content by type; SpinError that names file and place where it is
of another. Keys that this version does not know are ignored. Answers and verdicts are held against the hashes that
results.json keeps of them. Left out: run.json (pipeline/folder.py) and tensors (patch/file.py, scores/storage.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

from msgspec import Meta

from spin_llm.errors import SpinError
from spin_llm.files import read_typed_lines, sha256_file
from spin_llm.results.file import RESULTS, read_results
from spin_llm.results.judged import JudgeQuality, Kappa
from spin_llm.results.measured import Count, Name, Number, Pair, Share

GENERATIONS, VERDICTS = "generations.jsonl", "verdicts.jsonl"
EDITED = "the file was cut short, or edited."
AGAIN = "restore the file, or do the run or comparison again with --overwrite."
Bit = Annotated[int, Meta(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class ToJudge:
    """What is judged of a row of generations.jsonl: another program's rows need not hold more. `missing`: why there is
    no answer."""

    id: Name
    axis: Name
    prompt: str
    model: Name
    answer: str
    missing: str | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One row of generations.jsonl: what a model said, how it came to say that (a server may not count `tokens`), and
    why there is no answer (`missing`)."""

    id: Name
    axis: Name
    facet: str | None = None
    prompt: str
    model: Name
    answer: str
    tokens: Count | None
    finished: bool
    reasoning: str | None = None
    missing: str | None = None


@dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """One row of verdicts.jsonl; `mass` as in judges/verdict.py, `cause`: why there is no verdict."""

    id: Name
    axis: Name
    model: Name
    judge: Name
    probability: Share | None
    verdict: Bit | None
    parsed: bool | None = None
    cause: str | None = None
    mass: Number | None = None


@dataclass(frozen=True)
class VerdictDone:
    """A row of a verdicts' progress file."""

    key: Name
    probability: Share | None
    verdict: Bit | None
    mass: Number | None = None
    cause: str | None = None


@dataclass(frozen=True)
class OwnAnswer:
    """One row of own/answers.jsonl."""

    concept: Name
    prompt: str
    answer: str
    aware: bool | None

    missing: ClassVar[None] = None

    @property
    def axis(self) -> str:
        return self.concept


AnyAnswer = ToJudge | Answer | OwnAnswer
Row = TypeVar("Row", ToJudge, Answer, VerdictRow)


@dataclass(frozen=True)
class DocumentRow:
    """One row of capabilities.jsonl."""

    task: Name
    document: Name
    model: Name
    metric: Name
    value: Number | list[Number]
    better: Literal["higher", "lower"]

    def __post_init__(self) -> None:
        if isinstance(self.value, list) and len(self.value) != 2:
            raise ValueError("a value is a number, or a log-likelihood and a number of words")


@dataclass(frozen=True)
class JudgeFile:
    """What `judge check -o` writes: quality by judge and axis, and kappa of every two judges by axis."""

    judges: dict[str, dict[str, JudgeQuality]]
    agreement: dict[str, list[Kappa]] = field(default_factory=dict)

    always = ("agreement",)


@dataclass(frozen=True)
class JudgeHead:
    axis: Name
    label: Name
    bias: Number
    threshold: Number
    quality: JudgeQuality | None = None  # of version 0.1.0
    measured: list[JudgeQuality] | None = None

    def __post_init__(self) -> None:
        if self.quality is None and self.measured is None:
            raise ValueError("a head says how good it is")

    @property
    def known(self) -> list[JudgeQuality]:
        """Its measurements; a head of version 0.1.0 has a single one, of answers that it does not name."""
        return self.measured if self.measured is not None else [self.quality] if self.quality else []


@dataclass(frozen=True)
class JudgeAbout:
    """The metadata of a judge file."""

    feature_model: Name
    fingerprint: Name
    layers: Annotated[list[Annotated[int, Meta(ge=1, le=10_000)]], Meta(min_length=1)]
    heads: Annotated[list[JudgeHead], Meta(min_length=1)]
    default_label: Name
    weights: str = ""
    probes: dict[str, dict[str, Pair]] = field(default_factory=dict)
    answer_tokens: Count = 0
    fit_data: str = ""

    always = ("weights", "probes", "answer_tokens", "fit_data")


@dataclass(frozen=True)
class BaselineData:
    """One data set of a mixture."""

    name: str
    source: str
    share: Number
    examples: Count
    sha256: str


@dataclass(frozen=True)
class BaselineModel:
    """The model that was fine-tuned; without `parts` of version 0.1.0, whose fingerprint saw a sample of the
    weights."""

    name: str = ""
    fingerprint: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    template: str | None = None
    dtype: str | None = None


@dataclass(frozen=True, kw_only=True)
class BaselineRecord:
    """baseline.json."""

    settings: dict[str, object]
    data: list[BaselineData]
    model: BaselineModel
    versions: dict[str, str] = field(default_factory=dict)
    response_tokens: Count | None = None
    truncated_prompts: Count | None = None
    trained_parameters: Count | None = None
    losses: list[Number]
    result: str | None
    files: list[Name]

    def __post_init__(self) -> None:
        names = [*self.files, *([self.result] if self.result not in (None, ".") else [])]
        if wrong := [name for name in names if name in ("", "..", ".") or "/" in name or "\\" in name or "\0" in name]:
            raise ValueError(f"{wrong[0]!r} is no name of a file in the folder")


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of a generations.jsonl (`Answer`, or as far as a judge needs them: `ToJudge`) or of a verdicts.jsonl: no
    answer twice, the same questions of every model, on every axis and by every judge. SpinError also when the results
    beside it were measured on other bytes of it; older results do not say."""
    results = path.with_name(RESULTS)
    known = read_results(path.parent).files if results.is_file() and path.is_file() else {}
    if path.name in known and sha256_file(path) != known[path.name]:
        raise SpinError(
            f"{path} was changed after {results} was measured on it.",
            cause=EDITED,
            change=f"{AGAIN.removesuffix('.')}; or copy it into another folder to use it by itself.",
        )
    rows = read_typed_lines(path, kind, change=AGAIN)
    asked: dict[tuple[str, str], dict[str, set[str]]] = {}
    for row in rows:
        ids = asked.setdefault((row.axis, getattr(row, "judge", "")), {}).setdefault(row.model, set())
        if row.id in ids:
            raise SpinError(f"{path} has {row.id} of {row.model} twice.", cause=EDITED, change=AGAIN)
        ids.add(row.id)
    for (axis, _), models in asked.items():
        if len({frozenset(ids) for ids in models.values()}) > 1:
            counts = ", ".join(f"{len(ids)} of {model}" for model, ids in models.items())
            raise SpinError(
                f"{path} has not the same questions of every model on {axis} ({counts}).", cause=EDITED, change=AGAIN
            )
    return rows


def read_for_sheet(path: Path) -> Sequence[AnyAnswer]:
    """Answers to label: of a generations.jsonl, or of a run's own/answers.jsonl."""
    return read_typed_lines(path, OwnAnswer) if path.name == "answers.jsonl" else read_rows(path, ToJudge)


def hashes_of(folder: Path, *names: str) -> dict[str, str]:
    """SHA-256 by name, as `files` of results.json keeps them."""
    return {name: sha256_file(folder / name) for name in names if (folder / name).is_file()}
