"""`python tests/fuzz [--mutants N] [--processes P] [READER ...]`: every reader on N mutants, and a table.

In: how many mutants a reader (10,000), in how many processes (2), which readers (all). Out: a line a reader when it is
done, and its faults under it; exit code 1 when there is one. FUZZ_SEED makes other mutants.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from limits import Tally, fuzz, summary
from readers import readers


def whole(name: str, mutants: int) -> tuple[str, Tally, float]:
    """One reader in a folder of its own, in portions, so that a worker's memory does not grow over all of them."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        reader, tally = readers(Path(folder))[name], Tally()
        for first in range(0, mutants, 1000):
            tally.add(fuzz(reader, range(first, min(first + 1000, mutants))))
    return name, tally, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Damaged files against every reader.")
    parser.add_argument("readers", nargs="*")
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = given.readers or list(readers(Path(folder)))
    columns = ("reader", "mutants", "accepted", "refused", "faults", "slowest s", "peak MiB", "wall s")
    print(f"{columns[0]:<20}" + "".join(f"{column:>11}" for column in columns[1:]), flush=True)
    bad = 0
    with ProcessPoolExecutor(given.processes, mp_context=get_context("fork")) as pool:
        for done in as_completed([pool.submit(whole, name, given.mutants) for name in names]):
            name, tally, wall = done.result()
            cells = (tally.mutants, tally.accepted, tally.refused, len(tally.faults), tally.slowest, tally.peak / 2**20)
            numbers = (*(f"{cell:>11,}" for cell in cells[:4]), *(f"{cell:>11,.2f}" for cell in (*cells[4:], wall)))
            print(f"{name:<20}" + "".join(numbers), flush=True)
            for line in summary(tally.faults):
                print(f"    {line}", flush=True)
            bad += len(tally.faults)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
