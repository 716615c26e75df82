"""How much of what is selected survives a coarser number format.

    python benchmarks/precision.py [--examples 128] [--model smollm2-135m]

In: a model, the starter set's pairs (two concepts and the protected one). Three ways to score them: float32; bfloat16
compute with float32 sums (what `--dtype auto` does where bfloat16 is fast); bfloat16 compute with bfloat16 sums (the
released way). Out: the Jaccard index of the coupled sets and of each top set, by ratio, and results/precision.json.
Left out: what the differences do to behaviour.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, store

from spin_llm.data import encode_all, load_pairs, sample
from spin_llm.errors import SpinError
from spin_llm.models import editable_matrices, load
from spin_llm.results.edited import Recipe
from spin_llm.scores import Scores, ScoreSet, count, make_batches
from spin_llm.scores.accumulate import by_operators
from spin_llm.scores.importance import Counts, new_totals
from spin_llm.scores.passes import dense_scores, scoring
from spin_llm.scores.storage import ScoresInfo, keep_top
from spin_llm.selection import select, top_sets

WAYS = {
    "float32": ("float32", torch.float32),
    "bfloat16, float32 sums": ("bfloat16", torch.float32),
    "bfloat16, bfloat16 sums": ("bfloat16", torch.bfloat16),
}
CONCEPTS, PROTECTED = ("fairness", "privacy"), ("general",)
RATIOS = (1e-5, 1e-4, 1e-3)
KEPT = 1e-2
Sets = Mapping[str, torch.Tensor]


def scored(model: str, dtype: str, sums: torch.dtype, examples: int, max_length: int = 1024) -> dict[str, Scores]:
    """The kept scores of every set, summed in the type `sums`."""
    loaded = load(model, dtype=dtype)
    matrices = editable_matrices(loaded.model, "mlp")
    found = {}
    for name in (*CONCEPTS, *PROTECTED):
        pairs = sample(load_pairs("starter", concept=name).pairs, examples, 0)
        encoded = encode_all(loaded.tokenizer, pairs, template="auto", max_length=max_length)
        totals = {m.name: new_totals(("absolute",), m.weight, transposed=m.transposed) for m in matrices}
        for parts in totals.values():
            parts["absolute"] = parts["absolute"].to(sums)
        with scoring(loaded, matrices, totals, by_operators) as add:
            for batch in make_batches(encoded):
                add(batch)
        counts = Counts(examples, 0, 0, 0)
        kept = {}
        for matrix in matrices:
            wide = {kind: total.float() for kind, total in totals.pop(matrix.name).items()}
            kept[matrix.name] = keep_top(dense_scores(("taylor",), matrix, wide, counts), "taylor", matrix, KEPT)
        about = ScoresInfo("taylor", keep=KEPT, model=loaded.checkpoint.fingerprint, target="mlp")
        found[name] = Scores(kept, about)
    return found


def jaccard(one: Sets, other: Sets) -> float | None:
    """Entries in both over entries in either, over all matrices (indices unique); None when both are empty."""
    both = sum(int(torch.isin(one[name], other[name]).sum()) for name in one.keys() & other.keys())
    either = sum(indices.numel() for sets in (one, other) for indices in sets.values()) - both
    return both / either if either else None


def coupled(scores: Mapping[str, Scores], ratio: float) -> Sets:
    """The coupled set; empty when the rule finds none."""
    concepts, protected = ({name: scores[name] for name in names} for names in (CONCEPTS, PROTECTED))
    return select(ScoreSet(concepts, protected), Recipe("coupled", ratio), allow_empty=True).indices


def compared(one: Mapping[str, Scores], other: Mapping[str, Scores], ratios: Sequence[float]) -> dict[str, Any]:
    """By ratio: the coupled sets' sizes and agreement, and the agreement of each top set."""
    names = list(one[CONCEPTS[0]].matrices)
    rows = {}
    for ratio in ratios:
        left, right = coupled(one, ratio), coupled(other, ratio)
        tops = {name: jaccard(*(top_sets(scores[name], names, ratio) for scores in (one, other))) for name in one}
        sizes = [sum(indices.numel() for indices in side.values()) for side in (left, right)]
        rows[f"{ratio:g}"] = {"coupled": jaccard(left, right), "coupled_weights": sizes, "top": tops}
    return rows


def precision(model: str, examples: int, ratios: Sequence[float] = RATIOS) -> dict[str, Any]:
    """Every pair of WAYS, compared and printed."""
    scores = {}
    for way, (dtype, sums) in WAYS.items():
        scores[way] = scored(model, dtype, sums, examples)
        gc.collect()
    sizes = [matrix.size for matrix in scores["float32"][CONCEPTS[0]].matrices.values()]
    usable = [ratio for ratio in ratios if count(ratio, max(sizes))]
    if not usable:
        raise SpinError(f"Every ratio of {ratios} is less than one weight of the largest matrix.")
    results = {}
    print(f"{'ratio':>8} {'coupled weights':>18} {'Jaccard':>8}   Jaccard of the top sets")
    for one, other in combinations(WAYS, 2):
        results[f"{one} | {other}"] = rows = compared(scores[one], scores[other], usable)
        print(f"{one} against {other}")
        for ratio, row in rows.items():
            sizes_text = " and ".join(f"{size:,}" for size in row["coupled_weights"])
            tops = ", ".join(f"{name} {_number(value)}" for name, value in row["top"].items())
            print(f"{ratio:>8} {sizes_text:>18} {_number(row['coupled']):>8}   {tops}")
    return results


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--examples", type=int, default=128, help="of each set")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--output", type=Path, default=RESULTS / "precision.json")
    given = parser.parse_args(arguments)
    made = machine(torch.get_num_threads())
    agreement = precision(given.model, given.examples, given.ratios)
    about = {"model": given.model, "examples_of_each_set": given.examples}
    store(given.output, "agreement", {"made": made, **about, "jaccard": agreement})
    print(given.output)


if __name__ == "__main__":
    main()
