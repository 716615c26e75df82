"""One concept, scored: from encoded examples to the kept scores, in as many passes and processes as it takes.

In: a loaded model, examples, which statistics, a plan. Out: `Scores`. Progress is kept on disk every so often (at most
3% of the time) when a folder for it is given, so a killed job continues and ends with the same bytes; the number of
processes may change in between. Left out: reading data (data/) and choosing weights (selection/).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from spin_llm.data import Example, Pair, Rendering, encode_all
from spin_llm.errors import SpinError
from spin_llm.files import sha256_json
from spin_llm.models import LoadedModel, Matrix, editable_matrices
from spin_llm.outputs import writing
from spin_llm.scores.distributed import Ranks
from spin_llm.scores.importance import STATISTICS, Counts, Totals, accumulators, new_totals
from spin_llm.scores.passes import Batch, Progress, dense_scores, make_batches, scoring
from spin_llm.scores.plan import Plan
from spin_llm.scores.storage import KEEP, MatrixScores, Scores, ScoresInfo, keep_top, load_scores, save_scores

Row = Example | Pair | tuple[str, str]
CHECKPOINT_SHARE = 0.025  # of the time, at most
NOTHING = torch.empty(0, dtype=torch.int64)
DISK_BYTES_PER_SECOND = 200e6  # a first guess, before the first checkpoint is timed


@dataclass(frozen=True)
class Scoring:
    """How to score: the statistics, of which the first selects; which matrices (mlp, attention or all); the fraction
    `keep` of each that is kept, of each row by `row` granularity; the seed of random scores; and where pairs are given,
    the `template` that makes tokens of them, at most `max_length` for each."""

    statistics: tuple[str, ...] = ("taylor",)
    target: str = "mlp"
    keep: float = KEEP
    granularity: str = "matrix"
    seed: int = 0
    template: str | Rendering = "auto"
    max_length: int = 1024


@dataclass(frozen=True)
class Passes:
    """How the work is done: the passes that a plan divides the matrices into (None: one), the `folder` in which
    progress is kept, the processes that share the examples, and who is told of the examples done."""

    plan: Plan | None = None
    folder: Path | None = None
    ranks: Ranks = field(default_factory=Ranks)
    progress: Progress = lambda examples_done: None


def as_examples(loaded: LoadedModel, rows: Sequence[Row], template: str | Rendering, max_length: int) -> list[Example]:
    """Examples as they are; pairs, and (prompt, response) texts, as this model's tokens."""
    examples = [row for row in rows if isinstance(row, Example)]
    if len(examples) == len(rows):
        return examples
    pairs = [row if isinstance(row, Pair) else Pair(*row) for row in rows if not isinstance(row, Example)]
    if examples:
        raise SpinError("Examples and pairs are mixed.", change="give pairs alone, or examples alone.")
    return encode_all(loaded.tokenizer, pairs, template=template, max_length=min(max_length, loaded.context))


def score_concept(
    loaded: LoadedModel,
    aware: Sequence[Row],
    unaware: Sequence[Row] = (),
    how: Scoring = Scoring(),
    *,
    candidates: Mapping[str, torch.Tensor] | None = None,
    passes: Passes = Passes(),
) -> Scores:
    """Score every targeted matrix by importances in nats per response token, and keep the top of each.

    `aware` and `unaware` responses of one concept are examples, pairs, or (prompt, response) texts; only the statistic
    `margin` looks at unaware ones. `candidates` (flat indices by matrix name) are kept too, whatever their scores: the
    entries that concepts chose, of which a protected set has to say what they cost. Every rank returns the same; the
    matrices are complete on rank 0 alone. Raises SpinError without an example, and for scores that are not finite.
    """
    aware, unaware = (as_examples(loaded, rows, how.template, how.max_length) for rows in (aware, unaware))
    if not aware:
        raise SpinError("There is no example to score.")
    counts = Counts(len(aware), len(unaware), sum(len(example.input_ids) for example in aware), how.seed)
    plan = passes.plan
    partitions = plan.partitions if plan else (tuple(editable_matrices(loaded.model, how.target)),)
    others = unaware if any(STATISTICS[name].unaware for name in how.statistics) else ()
    batches = make_batches(aware, others, matrices=[matrix for partition in partitions for matrix in partition])
    job = _Job(loaded, batches, counts, how, candidates, passes)
    kept: dict[str, MatrixScores] = {}
    silent: tuple[str, ...] = ()
    partitions = passes.ranks.agree_on(partitions)
    for number, partition in enumerate(partitions):
        part = job.part(partition, number if len(partitions) > 1 else None)
        kept.update(part.matrices)
        silent += part.info.silent
        passes.ranks.wait()
    order = [matrix.name for matrix in editable_matrices(loaded.model, how.target)]  # not that of the passes
    info = ScoresInfo(
        how.statistics[0],
        tuple(how.statistics),
        how.granularity,
        loss="mean negative log-likelihood, nats per response token",
        reduction="mean over examples of the per-example statistic, float32",
        examples=len(aware),
        unaware_examples=len(unaware),
        tokens=counts.tokens,
        response_tokens=sum(example.response_tokens for example in aware),
        truncated_tokens=sum(example.truncated for example in aware),
        dtype=str(loaded.dtype).removeprefix("torch."),
        model=loaded.checkpoint.fingerprint,
        target=how.target,
        keep=how.keep,
        silent=tuple(name for name in order if name in silent),
    )
    return Scores({name: kept[name] for name in order if name in kept}, info)


@dataclass(frozen=True)
class _Job:
    """One concept's batches, and everything that decides what is made of them."""

    loaded: LoadedModel
    batches: Sequence[Batch]
    counts: Counts
    how: Scoring
    candidates: Mapping[str, torch.Tensor] | None
    passes: Passes

    def part(self, partition: Sequence[Matrix], number: int | None) -> Scores:
        """The kept scores of the matrices of one pass, on rank 0; a `number` is that of one of several passes: what is
        finished of it is kept in the folder, and read from there."""
        passes, key = self.passes, self.key(partition)
        file = passes.folder / f"sums-{number or 0}.safetensors" if passes.folder else None
        finished = passes.folder / f"kept-{number}.safetensors" if passes.folder and number is not None else None
        if finished and finished.is_file() and (before := load_scores(finished)).info.key == key:
            passes.progress(sum(len(batch.examples) for batch in self.batches))
            return before
        kinds = accumulators(self.how.statistics)
        totals = sum_batches(self.loaded, partition, self.batches, kinds, file, key, passes)
        if not passes.ranks.first:
            return Scores({}, ScoresInfo())
        silent = tuple(matrix.name for matrix in partition if _is_silent(totals[matrix.name]))
        kept = {matrix.name: self.kept(matrix, totals.pop(matrix.name)) for matrix in partition}
        scores = Scores(kept, ScoresInfo(key=key, silent=silent))
        if finished and file:
            save_scores(finished, scores)
            file.unlink(missing_ok=True)
        return scores

    def key(self, partition: Sequence[Matrix]) -> str:
        """One digest of what a pass does; what is kept of it under another one is another job's."""
        how, loaded = self.how, self.loaded
        chosen = {n: sha256(indices.numpy().tobytes()).hexdigest() for n, indices in (self.candidates or {}).items()}
        rows = [
            (batch.aware, example.input_ids, example.response_tokens)
            for batch in self.batches
            for example in batch.examples
        ]
        told = [how.statistics, how.keep, how.granularity, how.seed, str(loaded.dtype), loaded.checkpoint.fingerprint]
        names = [matrix.name for matrix in partition]
        return sha256_json([*told, self.candidates is not None, chosen, rows, len(self.batches), names])

    def kept(self, matrix: Matrix, totals: Totals) -> MatrixScores:
        dense = dense_scores(self.how.statistics, matrix, totals, self.counts)
        chosen = None if self.candidates is None else self.candidates.get(matrix.name, NOTHING)
        return keep_top(dense, self.how.statistics[0], matrix, self.how.keep, self.how.granularity, candidates=chosen)


def _is_silent(totals: Totals) -> bool:
    """Whether nothing ever reached the matrix: an expert that saw no token."""
    return bool(totals) and all(not total.any() for total in totals.values())


def sum_batches(
    loaded: LoadedModel,
    matrices: Sequence[Matrix],
    batches: Sequence[Batch],
    kinds: Sequence[str],
    file: Path | None,
    key: str,
    passes: Passes,
) -> dict[str, Totals]:
    """The accumulators of `matrices` over all batches and ranks (complete on rank 0), from `file` on where it is
    there."""
    ranks, progress = passes.ranks, passes.progress
    totals = {matrix.name: new_totals(kinds, matrix.weight, transposed=matrix.transposed) for matrix in matrices}
    done = _restore(file, key, totals, ranks)
    progress(sum(len(batches[number].examples) for number in done))
    mine = ranks.share(batches, (number for number in range(len(batches)) if number not in done))
    steps = max(len(numbers) for numbers in ranks.gather_numbers(mine))
    cost = sum(total.numel() * 4 for parts in totals.values() for total in parts.values()) / DISK_BYTES_PER_SECOND
    last = time.monotonic()
    finished: list[int] = []
    with scoring(loaded, matrices, totals) as add:
        for step in range(steps):
            if step < len(mine):
                add(batches[mine[step]])
                finished.append(mine[step])
                progress(len(batches[mine[step]].examples))
            due = file is not None and step + 1 < steps and time.monotonic() - last > cost / CHECKPOINT_SHARE
            if file is not None and ranks.agree(due):
                start = time.monotonic()
                _checkpoint(file, key, totals, done.union(*ranks.gather_numbers(finished)), ranks)
                last = time.monotonic()
                cost = last - start
    ranks.sum_to_first(total for parts in totals.values() for total in parts.values())
    return totals


def _checkpoint(file: Path, key: str, totals: Mapping[str, Totals], done: set[int], ranks: Ranks) -> None:
    """Write the sums over all ranks so far.

    Each tensor is copied first: a rank's own sums go on unchanged.
    """
    sums = {}
    for name, parts in totals.items():
        for kind, total in parts.items():
            copy = total.clone() if ranks.world > 1 else total
            ranks.sum_to_first([copy])
            if ranks.first:
                sums[f"{name}|{kind}"] = copy
    if ranks.first:
        with writing(file) as part:
            save_file(sums, part, metadata={"key": key, "done": " ".join(map(str, sorted(done)))})
    ranks.wait()


def _restore(file: Path | None, key: str, totals: Mapping[str, Totals], ranks: Ranks) -> set[int]:
    """Read a checkpoint into rank 0's totals; the numbers of the batches that are in it, on every rank.

    Another job's, or a damaged one, is ignored.
    """
    done: list[int] = []
    if file is not None and file.is_file() and ranks.first:
        with suppress(SafetensorError), safe_open(file, "pt") as opened:
            header = opened.metadata() or {}
            if header.get("key") == key:
                for name, parts in totals.items():
                    for kind, total in parts.items():
                        total.copy_(opened.get_tensor(f"{name}|{kind}"))
                done = [int(number) for number in header["done"].split()]
    return set(ranks.gather_numbers(done)[0])
