"""Several processes, one result: examples are shared out, sums are added up.

In: the environment that `torchrun` or `accelerate launch` sets. Out: this process's rank and share of the batches, and
accumulators summed onto rank 0. One process needs none of it and pays nothing. Left out: starting processes, and models
divided over devices (transformers' `device_map`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
import torch.distributed as dist

from spin_llm.errors import SpinError
from spin_llm.scores.passes import Batch

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among `world` of them."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, batches: Sequence[Batch], todo: Iterable[int]) -> list[int]:
        """The numbers of this rank's batches, in order: longest first, each goes to the rank with the fewest tokens."""
        loads = [0] * self.world
        mine: list[int] = []
        for number in sorted(todo, key=lambda number: (-batches[number].tokens, number)):
            least = loads.index(min(loads))
            loads[least] += batches[number].tokens
            if least == self.rank:
                mine.append(number)
        return sorted(mine)

    def sum_to_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Add up each tensor over the ranks, in place, on rank 0; the other ranks' are undefined afterwards."""
        if self.world > 1:
            with dead_rank_explained():
                for tensor in tensors:
                    dist.reduce(tensor, dst=0)

    def agree(self, value: bool) -> bool:
        """Rank 0's value, on every rank."""
        return self.gather_numbers([int(value)])[0] == [1] if self.world > 1 else value

    def agree_on(self, partitions: tuple[tuple[T, ...], ...]) -> tuple[tuple[T, ...], ...]:
        """The partition of the rank that needs most passes: each has measured its own memory."""
        sizes = max(self.gather_numbers([len(partition) for partition in partitions]), key=len)
        everything = iter([item for partition in partitions for item in partition])
        return tuple(tuple(islice(everything, size)) for size in sizes)

    def gather_numbers(self, numbers: list[int]) -> list[list[int]]:
        """Every rank's list, on every rank."""
        if self.world == 1:
            return [numbers]
        lists: list[list[int]] = [[] for _ in range(self.world)]
        with dead_rank_explained():
            dist.all_gather_object(lists, numbers)
        return lists

    def wait(self) -> None:
        if self.world > 1:
            with dead_rank_explained():
                dist.barrier()


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Join the process group that the launcher announced (gloo on CPUs, NCCL on GPUs) and leave it at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    joined = not dist.is_initialized()
    if joined:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        if joined:
            dist.destroy_process_group()


@contextmanager
def dead_rank_explained() -> Iterator[None]:
    """A collective fails when another process is gone: say that instead of a socket's words."""
    try:
        yield
    except RuntimeError as error:
        raise SpinError(
            f"Another process of this job is gone ({str(error).splitlines()[0][:120]}).",
            cause="it ran out of memory, or was killed; its own message is above.",
            change="start the same command again, with as many processes as you like: it continues.",
        ) from error
