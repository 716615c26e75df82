"""Score files: the top of each matrix's scores, enough to select any ratio, rule or target later without the model.

In: dense float32 scores by matrix name. Out: `CONCEPT.safetensors` with `NAME.indices` (int64, flat, into the matrix as
stored) and `NAME.values` (float32), the K largest entries of each matrix, largest first, ties by lower index; the
metadata says how they were made. Of scores: the margins that a concept keeps, and which entries several concepts share.
Left out: dense scores, which never reach the disk; what entries gain and cost (selection/).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from spin_llm.data import Example, Rendering
from spin_llm.errors import SpinError
from spin_llm.files import UNSEALED, check_seal, decoded, seal_safetensors
from spin_llm.models import Matrix
from spin_llm.outputs import writing
from spin_llm.results.measured import Count, Layer, Share

FORMAT = "spin-llm scores 1"
Side = Annotated[int, Meta(ge=1, le=2**31)]  # of a matrix: flat indices fit into 63 bits
KEEP = 0.01
SAMPLED = 64  # one in so many entries is looked at to guess the smallest one that is kept
CANDIDATES = "candidates"  # entries kept because other sets chose them, not for their own score


@dataclass(frozen=True)
class Kept:
    """The largest entries of one statistic of one matrix: flat `indices` (int64) and `values` (float32), largest
    first."""

    indices: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class MatrixScores:
    """The kept entries of one matrix by the selector, and where the matrix is.

    `others` holds the kept entries of further statistics, and `at["S@T"]` the values of statistic S at the kept entries
    of statistic T, in T's order.
    """

    indices: torch.Tensor
    values: torch.Tensor
    shape: tuple[int, int]
    layer: int
    kind: str
    others: Mapping[str, Kept] = field(default_factory=dict)
    at: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class ScoresInfo:
    """How scores were made, as the file's metadata say: by which statistic, of what, how much of each matrix is kept.
    `silent` names matrices that no token reached; parts of a scoring under way have a `key`. None is left out of the
    file."""

    selector: str | None = None
    statistics: tuple[str, ...] = ()
    granularity: str = "matrix"
    loss: str | None = None
    reduction: str | None = None
    examples: Count | None = None
    unaware_examples: Count | None = None
    tokens: Count | None = None
    response_tokens: Count | None = None
    truncated_tokens: Count | None = None
    dtype: str | None = None
    model: str | None = None
    target: str | None = None
    keep: Share = 0.0
    silent: tuple[str, ...] = ()
    concept: str | None = None
    data_sha256: str | None = None
    seed: int | None = None
    template: str | None = None
    key: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Scores:
    """One concept's kept scores by matrix name, and how they were made."""

    matrices: Mapping[str, MatrixScores]
    info: ScoresInfo

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        return {name: matrix.shape for name, matrix in self.matrices.items()}


class Sides(NamedTuple):
    """Encoded responses of one set, by kind."""

    aware: Sequence[Example]
    unaware: Sequence[Example] = ()


@dataclass(frozen=True)
class HeldBack:
    """Examples that nothing was scored on: (aware, unaware) responses by concept, and general ones; the template that
    they are in."""

    contrasts: Mapping[str, tuple[Sequence[Example], Sequence[Example]]] = field(default_factory=dict)
    general: Sequence[Example] = ()
    template: str | Rendering = "auto"


@dataclass(frozen=True)
class ScoreSet:
    """The scores of the concepts and of what is protected, by name; a protected set has another name than a concept.
    `held` is there to search with."""

    concepts: Mapping[str, Scores]
    protected: Mapping[str, Scores] = field(default_factory=dict)
    held: HeldBack = field(default_factory=HeldBack)

    def __post_init__(self) -> None:
        if both := self.concepts.keys() & self.protected.keys():
            raise SpinError(f"{min(both)!r} is a concept, and protected too.", change="name what is protected apart.")

    @property
    def everything(self) -> dict[str, Scores]:
        return {**self.concepts, **self.protected}

    @property
    def first(self) -> Scores:
        return next(iter(self.concepts.values()))

    @property
    def keep(self) -> float:
        """The fraction of each matrix that every set keeps."""
        return min(part.info.keep for part in self.everything.values())


def count(ratio: float, size: int) -> int:
    """Floor(ratio * size), exact for decimal ratios (0.29 of 100 is 29; the float product is 28.999...)."""
    return int(Fraction(repr(float(ratio))) * size)


def top_entries(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(flat indices int64, values float32) of the k largest entries, largest first, ties by lower index, on the CPU."""
    flat = scores.flatten()
    threshold = torch.topk(flat[::SAMPLED], min(int(1.2 * k / SAMPLED) + 16, len(flat[::SAMPLED]))).values[-1]
    indices = (flat >= threshold).nonzero()[:, 0]
    if not k <= indices.numel() <= 2 * k:  # few entries, or many alike: the sample does not tell
        threshold = torch.topk(flat, min(k, flat.numel())).values[-1]
        above = (flat > threshold).nonzero()[:, 0]
        equal = (flat == threshold).nonzero()[: k - above.numel(), 0]
        indices = torch.cat([above, equal]).sort().values
    values = flat[indices]
    order = torch.argsort(values, descending=True, stable=True)[:k]
    return indices[order].cpu(), values[order].float().cpu()


def top_of_rows(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest entries of each row (ties by lower index), over all rows largest first."""
    columns = scores.shape[1]
    rows = [top_entries(row, k) for row in scores]
    indices = torch.cat([found + number * columns for number, (found, _) in enumerate(rows)])
    values = torch.cat([found for _, found in rows])
    order = torch.argsort(indices)
    order = order[torch.argsort(values[order], descending=True, stable=True)]
    return indices[order], values[order]


def keep_top(
    dense: Mapping[str, torch.Tensor],
    selector: str,
    matrix: Matrix,
    keep: float,
    granularity: str = "matrix",
    *,
    candidates: torch.Tensor | None = None,
) -> MatrixScores:
    """The top `keep` of each statistic of one matrix (of each row, by `row` granularity; one entry at least), and every
    statistic's values at the kept entries of the others.

    `candidates` (flat indices, int64) are entries that other sets chose: they are kept under the name `candidates`.
    """
    tops = {}
    for name, scores in dense.items():
        if granularity == "row":
            tops[name] = Kept(*top_of_rows(scores, max(1, count(keep, scores.shape[1]))))
        else:
            tops[name] = Kept(*top_entries(scores, max(1, count(keep, scores.numel()))))
    if candidates is not None:
        chosen = dense[selector].flatten()[candidates.to(dense[selector].device)]
        tops[CANDIDATES] = Kept(candidates, chosen.float().cpu())
    at = {
        f"{name}@{place}": scores.flatten()[top.indices.to(scores.device)].cpu()
        for name, scores in dense.items()
        for place, top in tops.items()
        if name != place and (name, place) != (selector, CANDIDATES)
    }
    main = tops.pop(selector)
    rows, columns = matrix.weight.shape
    return MatrixScores(main.indices, main.values, (rows, columns), matrix.layer, matrix.kind, tops, at)


def save_scores(path: str | Path, scores: Scores) -> None:
    """Write one concept's kept scores; the file appears when it is complete."""
    tensors: dict[str, torch.Tensor] = {}
    places: dict[str, dict[str, Any]] = {}
    for name, matrix in scores.matrices.items():
        tensors |= {f"{name}.indices": matrix.indices, f"{name}.values": matrix.values}
        for statistic, kept in matrix.others.items():
            tensors |= {f"{name}.{statistic}.indices": kept.indices, f"{name}.{statistic}.values": kept.values}
        tensors |= {f"{name}.{place}": values for place, values in matrix.at.items()}
        places[name] = {"shape": list(matrix.shape), "layer": matrix.layer, "kind": matrix.kind}
        places[name] |= {"others": list(matrix.others), "at": list(matrix.at)}
    metadata = {"format": FORMAT, "matrices": json.dumps(places), "scoring": json.dumps(scores.info.as_json())}
    with writing(path) as part:
        save_file(tensors, part, metadata={**metadata, **UNSEALED})
        seal_safetensors(part)


@dataclass(frozen=True)
class _Place:
    """What a score file's metadata says of one matrix."""

    shape: tuple[Side, Side]
    layer: Layer
    kind: str
    others: tuple[str, ...] = ()
    at: tuple[str, ...] = ()


def load_scores(path: str | Path) -> Scores:
    """Read a score file; SpinError when it is absent, damaged or of another kind. Its seal is checked where it has one
    (files of version 0.1.0 have none), and what it says of its matrices always."""
    path = Path(path)
    if not path.is_file():
        raise SpinError(f"There is no score file {path}.", change="run `spin-llm score` first.")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise SpinError(f"{path} is not a score file of this version (format {header.get('format')!r}).")
            check_seal(path, header, ("format", "matrices", "scoring"))
            places = decoded(header.get("matrices", ""), dict[str, _Place], f"The metadata of {path}")
            info = decoded(header.get("scoring", ""), ScoresInfo, f"The metadata of {path}")
            matrices = {name: _matrix(name, place, file.get_tensor) for name, place in places.items()}
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a shape beyond what torch can hold
        raise SpinError(f"{path} is not a readable score file: {error}", cause="it is truncated.") from None
    if wrong := [name for name, matrix in matrices.items() if not _consistent(matrix)]:
        raise SpinError(f"{path} is damaged: the scores of {wrong[0]} are inconsistent.")
    return Scores(matrices, info)


def _matrix(name: str, place: _Place, read: Callable[[str], torch.Tensor]) -> MatrixScores:
    others = {key: Kept(read(f"{name}.{key}.indices"), read(f"{name}.{key}.values")) for key in place.others}
    at = {key: read(f"{name}.{key}") for key in place.at}
    indices, values = read(f"{name}.indices"), read(f"{name}.values")
    return MatrixScores(indices, values, place.shape, place.layer, place.kind, others, at)


def _consistent(matrix: MatrixScores) -> bool:
    """Indices within the matrix, as many values, and all of those numbers."""
    main = Kept(matrix.indices, matrix.values)
    at = [Kept(matrix.others.get(key.rpartition("@")[2], main).indices, values) for key, values in matrix.at.items()]
    return min(matrix.shape) > 0 and all(
        kept.indices.dtype == torch.int64
        and kept.indices.ndim == 1
        and kept.indices.shape == kept.values.shape
        and bool(((kept.indices >= 0) & (kept.indices < matrix.size)).all())
        and kept.values.is_floating_point()
        and not bool(kept.values.isnan().any())
        for kept in (main, *matrix.others.values(), *at)
    )


def candidate_entries(
    concepts: Mapping[str, Scores], names: Sequence[str], at_least: int | None = None
) -> dict[str, torch.Tensor]:
    """The entries with a positive margin that is among the kept ones of at least `at_least` concepts (None: of all):
    sorted flat indices by matrix."""
    least = len(concepts) if at_least is None else at_least
    found: dict[str, torch.Tensor] = {}
    for name in names:
        kept = [largest_margins(concept, scores, name) for concept, scores in concepts.items()]
        entries, times = torch.cat([indices[values > 0] for indices, values in kept]).unique(return_counts=True)
        found[name] = entries[times >= least]
    return found


def largest_margins(concept: str, scores: Scores, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(flat indices, margins) of one matrix's largest margins, largest first; SpinError when none were stored."""
    matrix = scores.matrices[name]
    if scores.info.selector == "margin":
        return matrix.indices, matrix.values
    if "margin" not in matrix.others:
        raise SpinError(
            f"The scores of {concept!r} hold no margin, which the rule 'signed' needs.",
            change="score again with --statistics margin, from data with aware and unaware responses.",
        )
    return matrix.others["margin"].indices, matrix.others["margin"].values
