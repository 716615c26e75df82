"""Mutants in a process with limits: how many a reader accepts and refuses, and what it does otherwise.

In: a `Reader`, numbers of mutants. Out: `Tally`. Each mutant is one use in a forked process that may take CPU_SECONDS
of CPU time and MEMORY more bytes of address space than it began with. A success and a SpinError are right; any other
exception, time or memory used up, and a process that dies are faults, of which the number of the mutant and the error
are kept.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from readers import Reader, draw_for

from spin_llm.errors import SpinError

CPU_SECONDS, SILENT_SECONDS = 10.0, 300.0
MEMORY = 2 * 2**30
LONGEST_MESSAGE = 4000  # characters


@dataclass
class Tally:
    mutants: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    peak: int = 0  # bytes of resident memory beyond those at the start
    faults: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.mutants += other.mutants
        self.accepted += other.accepted
        self.refused += other.refused
        self.slowest, self.peak = max(self.slowest, other.slowest), max(self.peak, other.peak)
        self.faults += other.faults


class TooLong(BaseException):
    """The CPU time of a mutant is used up."""


def _too_long(number: int, frame: object) -> None:
    raise TooLong


def one_use(reader: Reader, original: bytes, number: int, seconds: float) -> str:
    """`accepted`, `refused`, or what went wrong."""
    draw = draw_for(reader.name, number)
    mutant = reader.mutate(original, draw)
    reader.file.write_bytes(mutant)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        reader.use()
    except SpinError as error:
        return "refused" if len(str(error)) < LONGEST_MESSAGE else f"a message of {len(str(error)):,} characters"
    except TooLong:
        return f"more than {seconds:g} s"
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        last = traceback.extract_tb(error.__traceback__)[-1]
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/spin_llm/" in frame.filename]
        place = own[-1] if own else last
        return f"{type(error).__name__}: {str(error)[:100]!r} at {Path(place.filename).name}:{place.lineno}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "accepted"


def _work(reader: Reader, original: bytes, numbers: list[int], seconds: float, results: Any) -> None:
    """In a forked process: use the mutants one by one, and tell of each before and after."""
    signal.signal(signal.SIGPROF, _too_long)
    torch.set_num_threads(1)  # the pool of threads of OpenMP does not live through a fork
    warnings.simplefilter("ignore")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        for number in numbers:
            began = time.process_time()
            outcome = one_use(reader, original, number, seconds)
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024
            results.send((number, outcome, time.process_time() - began, peak))
    results.close()
    os._exit(0)  # nothing of the parent's is flushed or torn down here


def fuzz(reader: Reader, numbers: Iterable[int], seconds: float = CPU_SECONDS) -> Tally:
    """Use these mutants; a process that dies or falls silent is a fault of the one it was at, and another goes on."""
    original, tally, left = reader.file.read_bytes(), Tally(), list(numbers)
    fork = multiprocessing.get_context("fork")
    try:
        while left:
            receive, send = fork.Pipe(duplex=False)
            worker = fork.Process(target=_work, args=(reader, original, left, seconds, send))
            worker.start()
            send.close()
            done = 0
            try:
                while receive.poll(SILENT_SECONDS):
                    number, outcome, took, peak = receive.recv()
                    assert number == left[done]
                    done += 1
                    tally.add(told(number, outcome, took, peak))
                worker.kill()
                tally.add(told(left[done], f"silent for {SILENT_SECONDS:g} s", SILENT_SECONDS, 0))
                done += 1
            except EOFError:
                worker.join()
                if done < len(left):
                    tally.add(told(left[done], f"the process died ({worker.exitcode})", 0.0, 0))
                    done += 1
            worker.join()
            receive.close()
            left = left[done:]
    finally:
        reader.file.write_bytes(original)
    return tally


def told(number: int, outcome: str, seconds: float, peak: int) -> Tally:
    fault = [] if outcome in ("accepted", "refused") else [(number, outcome)]
    return Tally(1, int(outcome == "accepted"), int(outcome == "refused"), seconds, peak, fault)


def summary(faults: list[tuple[int, str]]) -> list[str]:
    """Each kind of fault once, with its count and the number of its first mutant."""
    counts = Counter(text for _, text in faults)
    first = {text: number for number, text in reversed(faults)}
    return [f"{count} x {text} (mutant {first[text]})" for text, count in counts.most_common()]
