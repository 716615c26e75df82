"""What the benchmarks share: examples of a wanted length, timing in interleaved rounds, the machine, results on disk.

In: settings, functions to time. Out: `{"median", "least", "most", "rounds"}` of seconds, and JSON files in results/.
Left out: what is measured (scoring.py, precision.py).
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from spin_llm.data import Example, encode_all, load_pairs
from spin_llm.files import read_json, write_json
from spin_llm.models import LoadedModel
from spin_llm.records import versions

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("spin-llm", "torch", "transformers", "numpy")
Timing = dict[str, Any]


def examples_of_about(loaded: LoadedModel, tokens: int, count: int, concept: str = "fairness") -> list[Example]:
    """`count` pairs of the starter set without a chat template, those nearest to `tokens` tokens; longer prompts lose
    their start."""
    pairs = load_pairs("starter", concept=concept).pairs
    encoded = encode_all(loaded.tokenizer, pairs, template="raw", max_length=10**6)
    fitting = [example for example in encoded if example.response_tokens < tokens]
    nearest = sorted(fitting, key=lambda example: abs(len(example.input_ids) - tokens))[:count]
    if len(nearest) < count:
        raise SystemExit(f"The starter set has {len(nearest)} pairs for {tokens} tokens; {count} were asked for.")
    return [replace(example, input_ids=example.input_ids[-tokens:]) for example in nearest]


def examples_of_exactly(loaded: LoadedModel, tokens: int, count: int) -> list[Example]:
    """`count` sequences of exactly `tokens` tokens, cut from the starter set's texts one after the other; the last 0.7
    of each is its response, as in that set."""
    pairs = load_pairs("starter", concept="fairness").pairs
    encoded = encode_all(loaded.tokenizer, pairs, template="raw", max_length=10**6)
    stream = [token for example in encoded for token in example.input_ids]
    stream *= count * tokens // len(stream) + 1
    return [
        Example(tuple(stream[n * tokens : (n + 1) * tokens]), round(0.7 * tokens), 0, f"piece {n}")
        for n in range(count)
    ]


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Seconds of each run, one round after the other (A B C, A B C, ...), so that a slow spell meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: timing(values) for name, values in seconds.items()}


def timing(seconds: Sequence[float], per: float = 1.0) -> Timing:
    """Median and range of `seconds` / `per`."""
    values = [value / per for value in seconds]
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "rounds": values}


def divided(measured: Timing, per: float) -> Timing:
    return timing(measured["rounds"], per)


def machine(threads: int) -> dict[str, Any]:
    """What a number is worth nothing without."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "versions": versions(PACKAGES),
        "bfloat16_instructions": bool(torch.cpu._is_avx512_bf16_supported()),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def store(path: Path, section: str, result: Mapping[str, Any]) -> None:
    """Put one section into a results file; the others stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = read_json(path) if path.is_file() else {}
    write_json(path, {**before, section: dict(result)})


def recorded(settings: Any) -> dict[str, Any]:
    """A benchmark's settings (a dataclass) for its results, without where these go."""
    return {key: value for key, value in asdict(settings).items() if key != "output"}


def span(measured: Timing, digits: int = 3) -> str:
    """`median (least-most)`."""
    return f"{measured['median']:.{digits}f} ({measured['least']:.{digits}f}-{measured['most']:.{digits}f})"


def mebibytes(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"
