"""One concept, scored: from encoded examples to the kept scores, in as many passes and processes as it takes.

In: a loaded model, examples, which statistics, a plan. Out: `Scores`. Progress is kept on disk every so often (at most
3% of the time) when a folder for it is given, so a killed job continues and ends with the same bytes; the number of
processes may change in between. Left out: reading data (data/) and choosing weights (selection/).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from spin_llm.data import Example, Pair, encode_all
from spin_llm.errors import SpinError
from spin_llm.files import sha256_json
from spin_llm.models import LoadedModel, Matrix, editable_matrices
from spin_llm.outputs import writing
from spin_llm.scores.distributed import Ranks
from spin_llm.scores.importance import STATISTICS, Counts, Totals, accumulators, new_totals
from spin_llm.scores.passes import Batch, Progress, dense_scores, make_batches, scoring
from spin_llm.scores.plan import Plan
from spin_llm.scores.storage import KEEP, MatrixScores, Scores, keep_top, load_scores, save_scores

CHECKPOINT_SHARE = 0.025  # of the time, at most
NOTHING = torch.empty(0, dtype=torch.int64)
DISK_BYTES_PER_SECOND = 200e6  # a first guess, before the first checkpoint is timed


def statistics_of(selector: str, extra: Sequence[str]) -> tuple[str, ...]:
    """The statistics to form: the selector first, then the others, each once."""
    return tuple(dict.fromkeys((selector, *extra)))


def as_examples(
    loaded: LoadedModel, rows: Sequence[Example | Pair | tuple[str, str]], template: str, max_length: int
) -> list[Example]:
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
    aware: Sequence[Example | Pair | tuple[str, str]],
    unaware: Sequence[Example | Pair | tuple[str, str]] = (),
    *,
    template: str = "auto",
    max_length: int = 1024,
    target: str = "mlp",
    plan: Plan | None = None,
    statistics: Sequence[str] = ("taylor",),
    keep: float = KEEP,
    granularity: str = "matrix",
    seed: int = 0,
    candidates: Mapping[str, torch.Tensor] | None = None,
    about: Mapping[str, Any] | None = None,
    progress_folder: Path | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 - immutable
    progress: Progress = lambda examples_done: None,
) -> Scores:
    """Score every targeted matrix and keep the top `keep` (a fraction) of each, by the first of `statistics`.

    Pairs, or (prompt, response) texts, are encoded with `template`, at most `max_length` tokens each. `plan` divides
    the matrices into passes (plan.py); None takes all at once.

    `candidates` (flat indices by matrix name) are kept too, whatever their scores: the entries that concepts chose, of
    which a protected set has to say what they cost. `unaware` are the same concept's unaware responses; only `margin`
    looks at them. Every rank returns the same; the matrices are complete on rank 0 alone. `about` is added to the
    metadata.
    """
    aware, unaware = (as_examples(loaded, rows, template, max_length) for rows in (aware, unaware))
    if not aware:
        raise SpinError("There is no example to score.")
    counts = Counts(len(aware), len(unaware), sum(len(example.input_ids) for example in aware), seed)
    partitions = plan.partitions if plan else (tuple(editable_matrices(loaded.model, target)),)
    matrices = [matrix for partition in partitions for matrix in partition]
    partitions = ranks.agree_on(partitions)
    others = unaware if any(STATISTICS[name].unaware for name in statistics) else ()
    batches = make_batches(aware, others, matrices=matrices)
    rows = [
        (batch.aware, example.input_ids, example.response_tokens) for batch in batches for example in batch.examples
    ]
    job: tuple[Any, ...] = (
        *(dict(about or {}), statistics, keep, granularity, seed),
        *(str(loaded.dtype), loaded.checkpoint.fingerprint),
    )
    if candidates is not None:
        job = (*job, {name: sha256(indices.numpy().tobytes()).hexdigest() for name, indices in candidates.items()})
    kept: dict[str, MatrixScores] = {}
    silent: list[str] = []
    for number, partition in enumerate(partitions):
        key = sha256_json([*job, rows, len(batches), [matrix.name for matrix in partition]])
        finished = progress_folder / f"kept-{number}.safetensors" if progress_folder else None
        if finished and finished.is_file() and (before := load_scores(finished)).metadata["key"] == key:
            kept.update(before.matrices)
            silent += before.metadata["silent"]
            progress(sum(len(batch.examples) for batch in batches))
            continue
        file = progress_folder / f"sums-{number}.safetensors" if progress_folder else None
        totals = sum_batches(loaded, partition, batches, accumulators(statistics), file, key, ranks, progress)
        if ranks.first:
            quiet = [matrix.name for matrix in partition if _is_silent(totals[matrix.name])]
            part = {
                matrix.name: keep_top(
                    dense_scores(statistics, matrix, totals.pop(matrix.name), counts),
                    statistics[0],
                    matrix,
                    keep,
                    granularity,
                    candidates=None if candidates is None else candidates.get(matrix.name, NOTHING),
                )
                for matrix in partition
            }
            if finished and file and len(partitions) > 1:
                save_scores(finished, Scores(part, {"key": key, "silent": quiet}))
                file.unlink(missing_ok=True)
            kept.update(part)
            silent += quiet
        del totals
        ranks.wait()
    metadata = {
        "selector": statistics[0],
        "statistics": list(statistics),
        "granularity": granularity,
        "loss": "mean negative log-likelihood, nats per response token",
        "reduction": "mean over examples of the per-example statistic, float32",
        "examples": len(aware),
        "unaware_examples": len(unaware),
        "tokens": counts.tokens,
        "response_tokens": sum(example.response_tokens for example in aware),
        "truncated_tokens": sum(example.truncated for example in aware),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "model": loaded.checkpoint.fingerprint,
        "target": target,
        "keep": keep,
        "silent": silent,
        **(about or {}),
    }
    return Scores(kept, metadata)


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
    ranks: Ranks,
    progress: Progress,
) -> dict[str, Totals]:
    """The accumulators of `matrices` over all batches and ranks (complete on rank 0), from `file` on where it is
    there."""
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
