"""What fits: memory measured on a small batch, matrices divided into passes, the plan in words before anything runs.

In: a loaded model, the batches of all concepts, the targeted matrices, the accumulators wanted, a budget in bytes. Out:
partitions of the matrices, each of which is scored in one pass over the examples, with predicted peak memory, disk and
time. Left out: running it (concept.py).
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import psutil
import torch

from spin_llm.errors import SpinError
from spin_llm.models import LoadedModel, Matrix
from spin_llm.progress import Pace
from spin_llm.scores.accumulate import slow_sums
from spin_llm.scores.importance import Totals, new_totals
from spin_llm.scores.passes import Batch, scoring
from spin_llm.scores.storage import KEEP, keep_top

DEFAULT_SHARE = 0.8  # of the free memory
PROBE_EXAMPLES = 4
Place = TypeVar("Place", bound=Hashable)  # a device, or what stands for one
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True)
class Plan:
    """`partitions` of the matrices, one pass each; bytes of process (or device) memory and of disk; seconds; why
    the sums are not the compiled ones, where they could be."""

    partitions: tuple[tuple[Matrix, ...], ...]
    resident: int
    batch: int
    accumulators: int
    finishing: int
    disk: int
    seconds: float
    device: torch.device
    slow: str = ""

    @property
    def peak(self) -> int:
        """Predicted peak memory: what is resident, the accumulators, and the larger of a batch and the finishing
        step."""
        return self.resident + self.accumulators + max(self.batch, self.finishing)

    def text(self) -> str:
        passes = len(self.partitions)
        return (
            f"plan: {passes} {'pass' if passes == 1 else 'passes'} for {sum(map(len, self.partitions))} matrices; peak "
            f"{in_words(self.peak)} on {self.device.type} ({in_words(self.resident)} model and libraries, "
            f"{in_words(self.accumulators)} accumulators, {in_words(max(self.batch, self.finishing))} per batch); "
            f"{in_words(self.disk)} of disk; about {self.seconds:,.0f} s"
            + (f" (longer by far than with the compiled sums: {self.slow})" if self.slow else "")
        )


def parse_bytes(text: str) -> int:
    """`8g`, `500M`, `2.5 GiB` or a number of bytes.

    Raises SpinError on anything else.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?)(i?b)?\s*", text.lower())
    try:
        value = float(match.group(1)) * UNITS[match.group(2)] if match else 0.0
    except ValueError:
        value = 0.0
    if value <= 0:
        raise SpinError(f"--memory-budget {text!r} is not a size.", change="give for example 8g or 500m.")
    return int(value)


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken on the device, or in RAM, which the ranks of a machine share."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def matrix_bytes(matrix: Matrix, kinds: Sequence[str]) -> int:
    """Bytes of one matrix's accumulators (float32; `inputs` is a vector)."""
    inputs = matrix.weight.shape[0 if matrix.transposed else 1]
    return 4 * sum(inputs if kind == "inputs" else matrix.weight.numel() for kind in kinds)


def make_plan(
    loaded: LoadedModel,
    batches: Sequence[Batch],
    matrices: Sequence[Matrix],
    kinds: Sequence[str],
    *,
    statistics: int,
    budget: int | None = None,
    checkpoints: bool = False,
    sets: int = 1,
) -> Plan:
    """Divide the matrices so that the accumulators of one pass fit `budget` bytes beside what one batch takes.

    `budget` is the memory to take beyond what is resident already; None means most of what is free. The batches are
    those of so many `sets`. Raises SpinError, naming the smallest budget, when a single matrix does not fit.
    """
    device = loaded.device
    resident, batch, seconds = measure(loaded, batches, matrices, kinds)
    finishing = finishing_bytes(matrices, statistics)
    places = {matrix.name: matrix.weight.device for matrix in matrices}
    rooms = {
        place: (int(free_memory(place) * DEFAULT_SHARE) if budget is None else budget) - max(batch, finishing)
        for place in set(places.values())
    }
    sizes = {matrix.name: matrix_bytes(matrix, kinds) for matrix in matrices}
    for matrix in matrices:
        if sizes[matrix.name] > (room := rooms[places[matrix.name]]):
            raise SpinError(
                f"The memory budget of {in_words(room + max(batch, finishing))} is too small to score {matrix.name}.",
                change=f"give --memory-budget {(max(sizes.values()) + max(batch, finishing)) // 2**20 + 1}m or more, "
                "or a smaller --max-length.",
            )
    passes = fewest_passes(matrices, sizes, places, rooms)
    if len(passes) > 1:  # a pass keeps the inputs of its own matrices alone; the first one's graph is the deepest
        resident, batch, _ = measure(loaded, batches, passes[0], kinds)
    slow = slow_sums(device, loaded.dtype)
    fullest = max(sum(sizes[matrix.name] for matrix in part) for part in passes)
    disk = 2 * fullest if checkpoints else 0  # a checkpoint is complete before the one before it goes
    time = seconds * relative_time(passes) + sets * finishing_seconds(matrices, statistics)
    return Plan(passes, resident, batch, fullest, finishing, disk, time, device, slow)


def finishing_bytes(matrices: Sequence[Matrix], statistics: int) -> int:
    """Bytes that making scores of one matrix's sums takes at most: dense statistics, and what the top-K takes."""
    return 4 * max(matrix.weight.numel() for matrix in matrices) * (statistics + 3)


def finishing_seconds(matrices: Sequence[Matrix], statistics: int) -> float:
    """Seconds in which the sums of one set become scores of which the top is kept, by those for the smallest matrix:
    as much as for a dozen examples of a billion weights."""
    smallest = min(matrices, key=lambda matrix: matrix.weight.numel())
    sums = torch.rand(smallest.weight.shape, device=smallest.weight.device)
    start = perf_counter()
    dense = {str(number): (sums * smallest.weight.float()).abs() for number in range(statistics)}
    keep_top(dense, "0", smallest, KEEP)
    each = (perf_counter() - start) / smallest.weight.numel()
    return each * sum(matrix.weight.numel() for matrix in matrices)


def fewest_passes(
    matrices: Sequence[Matrix], sizes: Mapping[str, int], places: Mapping[str, Place], rooms: Mapping[Place, int]
) -> tuple[tuple[Matrix, ...], ...]:
    """The matrices in passes whose accumulators (bytes by name) fit the room of their places: one pass after the other
    from the lowest up, so that later ones need no gradients far below, unless filling gaps needs fewer passes."""
    found = []
    for order, gaps in ((matrices, False), (matrices, True), (sorted(matrices, key=lambda m: -sizes[m.name]), True)):
        passes: list[list[Matrix]] = []
        filled: list[Counter[Place]] = []
        for matrix in order:
            size, device = sizes[matrix.name], places[matrix.name]
            open_ones = range(0 if gaps else max(0, len(passes) - 1), len(passes))
            place = next((n for n in open_ones if filled[n][device] + size <= rooms[device]), len(passes))
            if place == len(passes):
                passes.append([])
                filled.append(Counter())
            passes[place].append(matrix)
            filled[place][device] += size
        found.append(passes)
    depth = {matrix.name: number for number, matrix in enumerate(matrices)}
    return tuple(tuple(sorted(part, key=lambda matrix: depth[matrix.name])) for part in min(found, key=len))


def relative_time(passes: Sequence[Sequence[Matrix]]) -> float:
    """Time of these passes, 1.0 being one pass over all matrices: forward, gradients of activations and gradients of
    weights take a third each, and a pass has no gradients below its lowest layer."""
    everything = [matrix for part in passes for matrix in part]
    whole = sum(matrix.weight.numel() for matrix in everything)
    time = 0.0
    for part in passes:
        lowest = min(matrix.layer for matrix in part)
        below = sum(matrix.weight.numel() for matrix in everything if matrix.layer < lowest)
        time += 2 - below / whole + sum(matrix.weight.numel() for matrix in part) / whole
    return time / 3


def measure(
    loaded: LoadedModel, batches: Sequence[Batch], matrices: Sequence[Matrix], kinds: Sequence[str]
) -> tuple[int, int, float]:
    """(bytes resident, bytes that the largest batch takes on top, seconds for one pass over all batches).

    A few of the largest batch's examples are run, one and then more, with one accumulator for each shape; what their
    peaks and times differ by goes on with the tokens, padding included.
    """
    largest = max(batches, key=lambda batch: batch.tokens)
    pieces = [
        Batch(largest.examples[:: max(1, len(largest.examples) // few)][:few], largest.aware, 0.0)
        for few in (1, PROBE_EXAMPLES, len(largest.examples))
        if few <= len(largest.examples)
    ]
    scratch: dict[torch.Size, Totals] = {}
    totals = {
        m.name: scratch.setdefault(m.weight.shape, new_totals(kinds, m.weight, transposed=m.transposed))
        for m in matrices
    }
    peaks: dict[int, int] = {}
    with scoring(loaded, matrices, totals) as add:
        add(pieces[0])  # loads kernels, and reads weights that were only mapped from their file
        give_back_freed_memory()  # what an earlier measurement left would be used again and not be seen
        resident = memory_now(loaded.device)

        def run(piece: Batch) -> None:
            with peak_memory(loaded.device) as peak:
                add(piece)
                peaks[piece.tokens] = peak()

        pace = Pace.of(run, ((piece.tokens, piece) for piece in pieces))
    (few, least), *_, (many, most) = *peaks.items(), *peaks.items()
    slope = max(0, most - least) / max(1, many - few)
    on_top = most - resident + int(slope * (largest.tokens - many))
    resident -= sum(4 * total.numel() for parts in scratch.values() for total in parts.values())
    return resident, on_top, pace(*(batch.tokens for batch in batches))


def give_back_freed_memory() -> None:
    """Return to the system what the C library keeps of freed memory (glibc; elsewhere nothing happens)."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def memory_now(device: torch.device) -> int:
    """Bytes that this process holds: in RAM, or of the device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Give a function that tells the largest `memory_now` since the block began (Linux and CUDA; elsewhere since the
    process began, which is too much at worst)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: int(torch.cuda.max_memory_allocated(device))
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    yield _high_water


def _high_water() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return usage if sys.platform == "darwin" else usage * 1024


def in_words(count: float) -> str:
    """Bytes, as people write them."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
