"""Sizes, partitions and shares: what a plan divides and says, without a model; measured memory is made up here."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.models import Matrix
from spin_llm.scores import Ranks, parse_bytes, plan
from spin_llm.scores.importance import new_totals
from spin_llm.scores.passes import Batch
from spin_llm.scores.plan import make_plan, matrix_bytes

MIB = 2**20
RESIDENT, BATCH, SECONDS = 300 * MIB, 5 * MIB, 7.0
FINISHING = 0.25  # of a set
KINDS = ("absolute", "signed", "inputs")


@dataclass(frozen=True)
class NoModel:
    device = torch.device("cpu")
    dtype = torch.float32


def matrices(*shapes: tuple[int, int], transposed: bool = False) -> list[Matrix]:
    made = []
    for number, (rows, columns) in enumerate(shapes):
        module = torch.nn.Linear(columns, rows, bias=False, device="meta")
        made.append(Matrix(f"matrix {number}", module, number, "mlp", transposed))
    return made


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "measure", lambda *_: (RESIDENT, BATCH, SECONDS))
    monkeypatch.setattr(plan, "finishing_seconds", lambda *_: FINISHING)


def planned(of: list[Matrix], budget: int | None, **options: Any) -> plan.Plan:
    return make_plan(NoModel(), [], of, KINDS, statistics=2, budget=budget, **options)  # type: ignore[arg-type]


# Sizes as people write them


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8g", 8 * 2**30),
        ("500M", 500 * MIB),
        ("2.5 GiB", int(2.5 * 2**30)),
        ("1t", 2**40),
        ("64kb", 64 * 2**10),
        (" 12345 ", 12345),
        ("1024b", 1024),
        (".5g", 2**29),
    ],
)
def test_sizes(text: str, size: int):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "g", "8 gallons", "-1g", "0", "0.0m", "1.2.3g", ".", "1e9", "8g 8g", "nan", "inf"]
)
def test_what_is_not_a_size(text: str):
    with pytest.raises(SpinError, match=r"is not a size(.|\n)*8g or 500m"):
        parse_bytes(text)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_bytes_of_a_matrix_are_those_of_its_accumulators(transposed: bool):
    (matrix,) = matrices((30, 70), transposed=transposed)
    for kinds in ((), ("inputs",), ("absolute",), KINDS, ("absolute", "squared", "signed", "inputs")):
        totals = new_totals(kinds, torch.empty(30, 70), transposed=transposed)
        assert matrix_bytes(matrix, kinds) == sum(total.numel() * total.element_size() for total in totals.values())


# Partitions

SHAPES = ((1000, 2000), (1000, 2000), (2000, 1000), (500, 2000), (1000, 2000), (2000, 1000))


@pytest.mark.parametrize(("share", "passes", "time"), [(1.0, 1, 1.0), (0.5, 2, 1.5), (0.25, 4, 2.5)])
def test_a_smaller_budget_makes_more_passes(share: float, passes: int, time: float):
    of = matrices(*[(1000, 2000)] * 8)
    each = matrix_bytes(of[0], KINDS)
    finishing = 4 * 1000 * 2000 * 5
    made = planned(of, finishing + int(8 * each * share))
    assert [len(partition) for partition in made.partitions] == [8 // passes] * passes
    assert made.accumulators == 8 * each // passes
    assert made.seconds == pytest.approx(
        SECONDS * time + FINISHING
    )  # a forward pass each, no gradients below the lowest matrix
    assert made.peak == RESIDENT + made.accumulators + finishing


@given(budget=st.integers(60 * MIB, 200 * MIB))
def test_partitions_hold_every_matrix_once_within_the_budget_and_in_no_pass_more_than_needed(budget: int):
    of = matrices(*SHAPES)
    made = planned(of, budget)
    names = [matrix.name for matrix in of]
    assert sorted(matrix.name for partition in made.partitions for matrix in partition) == names
    assert all(list(part) == sorted(part, key=lambda matrix: matrix.layer) for part in made.partitions)
    sizes = [sum(matrix_bytes(matrix, KINDS) for matrix in partition) for partition in made.partitions]
    assert made.accumulators == max(sizes)
    assert made.peak - made.resident <= budget
    room = budget - max(made.batch, made.finishing)
    assert len(sizes) == fewest([matrix_bytes(matrix, KINDS) for matrix in of], room)


def fewest(sizes: list[int], room: int) -> int:
    """By trying every way of sharing them out."""

    def fit(passes: int) -> bool:
        ways = itertools.product(range(passes), repeat=len(sizes))
        return any(
            all(sum(s for s, p in zip(sizes, way, strict=True) if p == n) <= room for n in range(passes))
            for way in ways
        )

    return next(passes for passes in range(1, len(sizes) + 1) if fit(passes))


def test_every_set_is_finished():
    of = matrices((100, 200))
    once, thrice = (planned(of, 2**30, sets=sets).seconds for sets in (1, 3))
    assert thrice - once == pytest.approx(2 * FINISHING)


def test_finishing_is_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    small, large = (torch.nn.Linear(64, rows, bias=False) for rows in (64, 640))
    of = [Matrix(str(n), module, n, "mlp", False) for n, module in enumerate((small, large))]
    assert plan.finishing_seconds(of, 2) > 0


def test_gaps_are_filled_where_that_saves_a_pass():
    of = matrices((1000, 3000), (1000, 2000), (1000, 3000), (1000, 2000))  # in order: three passes
    finishing = 4 * 1000 * 3000 * 5
    made = planned(of, finishing + sum(matrix_bytes(matrix, KINDS) for matrix in of) // 2)
    assert [[matrix.layer for matrix in part] for part in made.partitions] == [[0, 1], [2, 3]]
    made = planned(matrices((1000, 2000), (1000, 2000), (1000, 3000), (1000, 3000)), made.accumulators + finishing)
    assert [[matrix.layer for matrix in part] for part in made.partitions] == [[0, 2], [1, 3]]


def test_every_device_has_its_own_room():
    """A model over two devices: a pass fills both."""
    of = matrices(*[(1000, 2000)] * 4)
    places = {matrix.name: f"device {matrix.layer // 2}" for matrix in of}
    made = plan.fewest_passes(of, dict.fromkeys(places, 8), places, dict.fromkeys(places.values(), 8))
    assert [[matrix.layer for matrix in part] for part in made] == [[0, 2], [1, 3]]


def test_too_small_a_budget_names_one_that_works():
    of = matrices(*SHAPES)
    with pytest.raises(SpinError, match="too small to score matrix 0") as refusal:
        planned(of, 10 * MIB)
    named = re.search(r"--memory-budget (\w+) or more", str(refusal.value))
    assert named
    enough = parse_bytes(named[1])
    assert planned(of, enough).partitions
    with pytest.raises(SpinError, match="too small"):
        planned(of, int(enough * 0.8))


def test_without_a_budget_it_is_most_of_what_is_free(monkeypatch: pytest.MonkeyPatch):
    of = matrices(*SHAPES)
    monkeypatch.setattr(plan, "free_memory", lambda device: 2**40)
    assert len(planned(of, None).partitions) == 1
    monkeypatch.setattr(plan, "free_memory", lambda device: 100 * MIB)
    assert [p.partitions for p in (planned(of, None), planned(of, 80 * MIB))] == [planned(of, 80 * MIB).partitions] * 2


def test_the_plan_in_words():
    of = matrices(*[(1024, 2048)] * 4)
    one, two = planned(of, 2**30, checkpoints=True), planned(of, (40 + 33) * MIB, checkpoints=True)
    assert one.text() == (
        "plan: 1 pass for 4 matrices; peak 404 MiB on cpu (300 MiB model and libraries, 64 MiB accumulators, "
        "40 MiB per batch); 128 MiB of disk; about 7 s"
    )
    assert two.text() == (
        "plan: 2 passes for 4 matrices; peak 372 MiB on cpu (300 MiB model and libraries, 32 MiB accumulators, "
        "40 MiB per batch); 64 MiB of disk; about 11 s"
    )
    assert "; 0 MiB of disk;" in planned(of, 2**30).text()


# Shares of the ranks


def batches(tokens: list[int]) -> list[Batch]:
    return [Batch((Example((3,) * count, 1, 0, ""),), True, 1.0) for count in tokens]


@given(st.lists(st.integers(2, 1536), max_size=40), st.integers(1, 6), st.data())
def test_shares_are_a_partition_and_balanced(tokens: list[int], world: int, data: st.DataObject):
    todo = data.draw(st.lists(st.integers(0, len(tokens) - 1), unique=True) if tokens else st.just([]))
    shares = [Ranks(rank, world).share(batches(tokens), todo) for rank in range(world)]
    assert sorted(number for share in shares for number in share) == sorted(todo)
    assert all(share == sorted(share) for share in shares)
    loads = [sum(tokens[number] for number in share) for share in shares]
    assert max(loads) - min(loads) <= max((tokens[number] for number in todo), default=0)


def test_one_process_has_everything():
    assert Ranks().share(batches([5, 9, 7]), iter([2, 0, 1])) == [0, 1, 2]
    assert Ranks().first
    assert not Ranks(1, 2).first
    assert Ranks().gather_numbers([3, 1]) == [[3, 1]]
    assert Ranks().agree(True)
    assert not Ranks().agree(False)
