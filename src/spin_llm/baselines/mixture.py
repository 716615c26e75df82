"""Which pairs a baseline is trained on: samples of one or more data sets in given proportions.

In: the settings' sources and shares. Out: the pairs by name of data set, and how each is named in a record. Left out:
their order in training, which changes with the epoch (loop.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spin_llm.data import Pair, load_pairs, rows_sha256, sample
from spin_llm.data.rows import read_rows
from spin_llm.data.sources import ReadRows
from spin_llm.errors import SpinError
from spin_llm.progress import SILENT, Console
from spin_llm.results.rows import BaselineData
from spin_llm.settings.training import MOST_EXAMPLES, BaselineSettings

Mixture = dict[str, tuple[Pair, ...]]


def read_mixture(settings: BaselineSettings, console: Console = SILENT, rows: ReadRows = read_rows) -> Mixture:
    """Sample every data set; `rows` reads a file.

    Raises SpinError: a source that cannot be read, fewer rows than asked for, or a share that is not one pair.
    """
    read = {
        name: load_pairs(
            source,
            concept=name,
            responses=settings.responses,
            data_dir=settings.data_dir,
            prompt_column=settings.prompt_column,
            response_column=settings.response_column,
            rows=rows,
        )
        for name, source in settings.data
    }
    for name, found in read.items():
        if found.left_out:
            console.say(f"left out of the pairs of {name}: {'; '.join(found.left_out)}")
    available = {name: found.pairs for name, found in read.items()}
    sizes = {name: len(pairs) for name, pairs in available.items()}
    counts = pair_counts(settings.examples or most_pairs(settings.shares, sizes), settings.shares)
    if empty := [name for name, count in counts.items() if not count]:
        raise SpinError(
            f"The share of {', '.join(empty)} is less than one training pair.",
            cause="a small --examples, or little data beside a small share.",
            change="give more --examples, another --mix, or more data.",
        )
    return {name: sample(pairs, counts[name], settings.seed, f"{name} data") for name, pairs in available.items()}


def pair_counts(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """`total` pairs divided by `shares` (which sum to 1), rounded by largest remainders, so that the counts sum up."""
    exact = {name: round(total * share, 9) for name, share in shares.items()}  # 0.29 * 100 is 28.999999999999996
    counts = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def most_pairs(shares: Mapping[str, float], sizes: Mapping[str, int]) -> int:
    """The largest total, at most MOST_EXAMPLES, that the data sets can give in these shares."""
    total = MOST_EXAMPLES
    while any(count > sizes[name] for name, count in pair_counts(total, shares).items()):
        total -= 1
    return total


def mixture_record(settings: BaselineSettings, mixture: Mapping[str, Sequence[Pair]]) -> list[BaselineData]:
    """Name, source, share, size and SHA-256 of the pairs of each data set."""
    return [
        BaselineData(name, source, settings.shares[name], len(mixture[name]), rows_sha256(mixture[name]))
        for name, source in settings.data
    ]
