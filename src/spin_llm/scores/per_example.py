"""What each example says of a few entries: the importances of which a score is the mean, kept one by one.

In: a loaded model, the examples of one set, flat indices of candidate entries by matrix. Out: per example and candidate

    I_s(i, j) = | W(i, j) * dL(s)/dW(i, j) |        float32, (examples, candidates) for each matrix, in RAM

and, where the rule looks at margins, the signed product of aware and unaware examples too; and scores of any weighting
of the examples, such as a bootstrap resample, as if they had been scored. Only the candidates' gradients are formed, a
sum over tokens each, so a pass costs little more than forwards and backwards. Left out: which entries are candidates,
and what is selected from resampled scores (analysis/stability.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel, Matrix
from spin_llm.outputs import writing
from spin_llm.scores.passes import Batch, Progress, backward_passes, factors, make_batches
from spin_llm.scores.storage import CANDIDATES, Kept, MatrixScores, Scores

CHUNK = 2**22  # products of one example formed at a time
# what |dL/dW| is multiplied by, in the statistics that are means over examples
MEANS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"taylor": torch.abs, "gradient": torch.ones_like}

Gathered = dict[str, torch.Tensor]


@dataclass(frozen=True)
class PerExample:
    """One set's importances at the candidates, by matrix name: `indices` (candidates,) sorted flat int64, `importance`
    (examples, candidates) float32, and `signed` W * dL/dW (aware, then unaware examples; candidates), or nothing.

    Examples are in the order of their batches.
    """

    indices: Gathered
    importance: Gathered
    signed: Gathered = field(default_factory=dict)

    @property
    def examples(self) -> int:
        return len(next(iter(self.importance.values())))

    @property
    def unaware(self) -> int:
        return len(next(iter(self.signed.values()))) - self.examples if self.signed else 0


def gathered_bytes(entries: int, aware: int, unaware: int) -> int:
    """Bytes of a set's `PerExample`; `unaware` is 0 where no margin is wanted."""
    return 4 * entries * (aware + (aware + unaware if unaware else 0))


def gather(
    loaded: LoadedModel,
    matrices: Sequence[Matrix],
    candidates: Mapping[str, torch.Tensor],
    aware: Sequence[Example],
    unaware: Sequence[Example] = (),
    *,
    selector: str = "taylor",
    progress: Progress = lambda examples_done: None,
) -> PerExample:
    """Importances of each aware example at the `candidates` (by matrix name); with `unaware`, signed products too.

    `matrices` are all that were scored: they decide the batches. Gradients are summed in float32, as by the compiled
    sums of the scoring pass (torch's operators round them to the compute dtype). Raises SpinError for a `selector` that
    is no mean over examples.
    """
    if selector not in MEANS:
        raise SpinError(
            f"Scores by {selector!r} are no mean over examples of something that each example has by itself.",
            change=f"resample scores by {' or '.join(MEANS)}.",
        )
    wanted = [matrix for matrix in matrices if matrix.name in candidates]
    places = {m.name: torch.unravel_index(candidates[m.name].to(m.weight.device), m.weight.shape) for m in wanted}
    found = {m.name: torch.zeros(len(aware) + len(unaware), len(candidates[m.name])) for m in wanted}
    first = 0

    def look(matrix: Matrix, batch: Batch, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        left, right = factors(batch, inputs, gradients, transposed=matrix.transposed)
        lengths = [len(e.input_ids) if len(left) > 1 else left.shape[1] for e in batch.examples]
        rows = [gradient_at(left[s, :n], right[s, :n], *places[matrix.name]) for s, n in enumerate(lengths)]
        found[matrix.name][first : first + len(rows)] = torch.stack(rows).cpu()

    with backward_passes(loaded, wanted, look) as run:
        for batch in make_batches(aware, unaware, matrices=matrices):
            run(batch)
            first += len(batch.examples)
            progress(len(batch.examples))
    weights = {m.name: m.weight.flatten()[candidates[m.name].to(m.weight.device)].float().cpu() for m in wanted}
    factor = {name: MEANS[selector](weight) for name, weight in weights.items()}
    signed = {name: gradients * weights[name] for name, gradients in found.items()} if unaware else {}
    importance = {name: gradients[: len(aware)].abs_() * factor[name] for name, gradients in found.items()}
    return PerExample({name: candidates[name] for name in found}, importance, signed)


def gradient_at(left: torch.Tensor, right: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(left^T right)[rows, columns] of `left` (tokens, rows) and `right` (tokens, columns), summed in float32; shape
    (entries,)."""
    size = max(1, CHUNK // max(1, len(left)))
    parts = [
        (left[:, rows[start : start + size]].float() * right[:, columns[start : start + size]].float()).sum(0)
        for start in range(0, len(rows), size)
    ]
    return torch.cat(parts)


def reweighted(scores: Scores, per_example: PerExample, aware: torch.Tensor, unaware: torch.Tensor) -> Scores:
    """The scores with example s counted `aware[s]` times, unaware ones `unaware[s]` times, at the candidates alone.

    Counts are non-negative float32, shapes (examples,) and (unaware examples,). Matrices, shapes and info are those
    of `scores`; matrices without a candidate are empty. Of the margins are kept those that the file of `scores` would
    keep: at least the smallest that it does, since how many are larger elsewhere is not known here. What a protected
    set's file says of entries that others chose, this says of all candidates.
    """
    place = f"margin@{scores.info.selector}"
    matrices = {}
    for name, matrix in scores.matrices.items():
        indices, values, others, at = matrix.indices[:0], matrix.values[:0], {}, {}
        for kept in matrix.others.keys() & {"margin", CANDIDATES}:
            others[kept] = Kept(indices, values)
        if name in per_example.indices:
            mean = (aware / aware.sum()) @ per_example.importance[name]
            if CANDIDATES in others:
                others[CANDIDATES] = Kept(per_example.indices[name], mean)
            order = mean.argsort(descending=True, stable=True)  # candidates are sorted: ties by the lower index
            indices, values = per_example.indices[name][order], mean[order]
            if per_example.signed:
                share = torch.cat([aware / aware.sum(), -unaware / unaware.sum()])
                margin = share @ per_example.signed[name]
                at = {place: margin[order]}
                if "margin" in others:
                    others["margin"] = _still_kept(matrix.others["margin"], per_example.indices[name], margin)
        matrices[name] = MatrixScores(indices, values, matrix.shape, matrix.layer, matrix.kind, others, at)
    return replace(scores, matrices=matrices)


def _still_kept(before: Kept, indices: torch.Tensor, margin: torch.Tensor) -> Kept:
    """The entries whose `margin` is no smaller than all that was kept `before`, largest first."""
    order = margin.argsort(descending=True, stable=True)
    order = order[margin[order] >= before.values[-1]]
    return Kept(indices[order], margin[order])


def save_per_example(path: Path, per_example: PerExample, key: str) -> None:
    """Write one set's importances, for a pass over several sets that is interrupted."""
    tensors = {f"{name}|{part}": tensor for part, found in vars(per_example).items() for name, tensor in found.items()}
    with writing(path) as file:
        save_file(tensors, file, metadata={"key": key})


def load_per_example(path: Path, key: str) -> PerExample | None:
    """What `save_per_example` wrote under this key; None when it is absent, damaged, or another job's."""
    if not path.is_file():
        return None
    parts: dict[str, Gathered] = {"indices": {}, "importance": {}, "signed": {}}
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            for stored in file.keys():  # noqa: SIM118 - not a dict
                name, _, part = stored.rpartition("|")
                parts[part][name] = file.get_tensor(stored)
    except SafetensorError:
        return None
    return PerExample(**parts)
