"""Whether other scoring data would have chosen the same weights: the second pass over the scored examples.

In: a loaded model, the encoded examples of every concept and protected set, their scores, the selection. Out: the
content of stability.json. The pass keeps each example's importances at candidate entries (scores/per_example.py); how
many candidates is limited by memory. A set that is done is kept in a folder until the end, so a killed pass goes on
with the next set. Left out: the resampling itself (analysis/resampled.py), and what was read (pipeline/inputs.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from spin_llm.analysis.resampled import MULTIPLE, Job, candidates, resampled_selections
from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.files import sha256_json
from spin_llm.models import LoadedModel, editable_matrices
from spin_llm.progress import SILENT, Console
from spin_llm.results.edited import StabilityRecord
from spin_llm.scores import PerExample, gather, gathered_bytes, load_per_example, save_per_example
from spin_llm.scores.plan import DEFAULT_SHARE, free_memory
from spin_llm.selection import Tops


@dataclass(frozen=True)
class ScoredExamples:
    """The encoded examples of one set; `unaware` where the rule looks at the margin."""

    aware: Sequence[Example]
    unaware: Sequence[Example] = ()


def measure_stability(
    loaded: LoadedModel,
    examples: Mapping[str, ScoredExamples],
    job: Job,
    *,
    resamples: int,
    seed: int = 0,
    budget: int | None = None,
    folder: Path | None = None,
    console: Console = SILENT,
) -> StabilityRecord:
    """Score every set again, example by example, and select from `resamples` bootstrap resamples.

    `job` comes without importances. `budget` is in bytes of RAM (None: most of what is free). Sets that are done are
    kept in `folder`. Raises SpinError when a set has one example, or one unaware one, when its scores cannot be
    resampled, and when twice the top sets do not fit.
    """
    for name, part in examples.items():
        if 1 in (len(part.aware), len(part.unaware)):
            raise SpinError(
                f"The set {name!r} has one example of a kind: nothing can be resampled.", change="score more of them."
            )
    multiple, entries = fitting_candidates(job, examples, budget)
    console.say(
        f"stability: {sum(map(len, entries.values())):,} candidates (the top sets at {multiple:g} times the ratio), "
        f"{_bytes_of(entries, examples) / 2**20:,.0f} MiB"
    )
    matrices = editable_matrices(loaded.model, job.scores.first.info.target or "mlp")
    found: dict[str, PerExample] = {}
    for name, scores in job.scores.everything.items():
        sides = (examples[name].aware, examples[name].unaware)
        key = sha256_json(
            [
                *(name, multiple, loaded.checkpoint.fingerprint, str(loaded.dtype), scores.info.as_json()),
                [example.input_ids for side in sides for example in side],
                {matrix: indices.tolist() for matrix, indices in entries.items()},
            ]
        )
        file = folder / f"{name}.safetensors" if folder else None
        before = load_per_example(file, key) if file else None
        with console.bar(f"scoring again, {name}", sum(map(len, sides))) as advance:
            if before:
                advance(sum(map(len, sides)))
            by = str(scores.info.selector)
            found[name] = before or gather(loaded, matrices, entries, *sides, selector=by, progress=advance)
        if file and not before:
            save_per_example(file, found[name], key)
    job = replace(job, per_example=found, multiple=multiple)
    with console.bar("selecting again", resamples) as advance:
        return resampled_selections(job, resamples=resamples, seed=seed, progress=advance)


def fitting_candidates(
    job: Job, examples: Mapping[str, ScoredExamples], budget: int | None = None
) -> tuple[float, Tops]:
    """(multiple, candidates): the largest of MULTIPLE, half of it, ... whose importances fit the budget, and what the
    score files keep. SpinError below 2."""
    budget = int(free_memory(torch.device("cpu")) * DEFAULT_SHARE) if budget is None else budget
    kept = min(scores.info.keep / ratio for scores, ratio in job.rankings.values())
    multiple = min(MULTIPLE, kept)
    needed = 0
    while multiple >= 2:
        entries = candidates(job.rankings, job.names, job.recipe.granularity, multiple)
        needed = _bytes_of(entries, examples)
        if needed <= budget:
            return multiple, entries
        multiple /= 2
    if kept < 2:
        raise SpinError(
            f"The score files keep {kept:.3g} times the ratio of a set, and candidates need twice the ratio.",
            change="score again with a larger --keep.",
        )
    raise SpinError(
        f"The importances of each example need {needed / 2**20:,.0f} MiB, and {budget / 2**20:,.0f} MiB may be taken.",
        change="raise --memory-budget, or choose a smaller --ratio.",
    )


def _bytes_of(entries: Tops, examples: Mapping[str, ScoredExamples]) -> int:
    total = sum(map(len, entries.values()))
    return sum(gathered_bytes(total, len(part.aware), len(part.unaware)) for part in examples.values())
