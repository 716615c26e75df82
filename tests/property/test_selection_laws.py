"""Laws of top sets and rules, drawn by hypothesis: scores with many ties, any number of concepts, any ratio."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny import select

from spin_llm.errors import SpinError
from spin_llm.scores import MatrixScores, Scores, ScoreSet, ScoresInfo, count, top_entries
from spin_llm.selection import Selection, alone, overlap, random_like, same_magnitude_like

SIZES = {"model.layers.0.mlp.up_proj.weight": (4, 6), "model.layers.1.mlp.up_proj.weight": (7, 5)}
KEEP = 0.6
Dense = dict[str, torch.Tensor]

# few distinct values: ties are the awkward case
values = st.one_of(st.integers(0, 4).map(float), st.floats(0, 10, width=32))
ratios = st.decimals("0.02", "0.59", places=2).map(float)


@st.composite
def dense_scores(draw: Any) -> Dense:
    return {
        name: torch.tensor(draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))).view(rows, columns)
        for name, (rows, columns) in SIZES.items()
    }


def kept(dense: Dense) -> Scores:
    matrices = {
        name: MatrixScores(*top_entries(scores, max(1, count(KEEP, scores.numel()))), SIZES[name], layer, "mlp")
        for layer, (name, scores) in enumerate(dense.items())
    }
    return Scores(matrices, ScoresInfo(keep=KEEP, model="0123", target="mlp"))


def full_sort(scores: torch.Tensor, k: int) -> list[int]:
    flat = scores.flatten().tolist()
    return sorted(range(len(flat)), key=lambda index: (-flat[index], index))[:k]


def chosen(concepts: list[Dense], protected: list[Dense], **options: Any) -> Selection:
    return select(
        {f"concept {i}": kept(dense) for i, dense in enumerate(concepts)},
        {f"protected {i}": kept(dense) for i, dense in enumerate(protected)},
        allow_empty=True,
        **options,
    )


def entries(selection: Selection, name: str) -> list[int]:
    return selection.indices.get(name, torch.empty(0, dtype=torch.int64)).tolist()


several = st.lists(dense_scores(), min_size=1, max_size=3)
some = st.lists(dense_scores(), max_size=2)


@given(dense_scores(), st.integers(1, 40))
def test_top_entries_equal_a_full_sort(dense: Dense, k: int):
    for scores in dense.values():
        indices, found = top_entries(scores, k)
        assert indices.tolist() == full_sort(scores, k)
        assert torch.equal(found, scores.flatten()[indices])


@given(dense_scores(), st.integers(1, 40), st.integers(1, 40))
def test_top_sets_are_nested(dense: Dense, one: int, other: int):
    low, high = sorted((one, other))
    for scores in dense.values():
        assert top_entries(scores, high)[0].tolist()[:low] == top_entries(scores, low)[0].tolist()


@given(st.decimals(0, 1, places=9).filter(lambda ratio: 0 < ratio < 1), st.integers(1, 10**9))
def test_counts_are_the_floor_of_the_decimal_product(ratio: Decimal, size: int):
    assert count(float(ratio), size) == int(ratio * size)


@given(several, some, ratios, ratios)
def test_coupled_is_in_every_top_set_and_in_no_protected_one(
    concepts: list[Dense], protected: list[Dense], ratio: float, protect_ratio: float
):
    selection = chosen(concepts, protected, ratio=ratio, protect_ratio=protect_ratio)
    candidates = shared = 0
    for name, (rows, columns) in SIZES.items():
        k, guarded = count(ratio, rows * columns), count(protect_ratio, rows * columns)
        tops = [set(full_sort(dense[name], k)) for dense in concepts]
        safe = set().union(*(full_sort(dense[name], guarded) for dense in protected))
        found = entries(selection, name)
        assert found == sorted(set.intersection(*tops) - safe)
        candidates += k
        shared += len(set.intersection(*tops))
    assert (selection.candidates, selection.shared) == (candidates, shared)
    assert all(indices.numel() and indices.dtype == torch.int64 for indices in selection.indices.values())


@given(several, some, ratios, st.sampled_from([0.25, 2.0, 1024.0]), st.sampled_from(["coupled", "released"]))
def test_scaling_the_scores_of_a_concept_changes_nothing(
    concepts: list[Dense], protected: list[Dense], ratio: float, factor: float, rule: str
):
    """By powers of two, which scale float32 without rounding; tiny numbers aside, which would underflow."""
    assume(all(((s == 0) | (s > 1e-30)).all() for dense in concepts + protected for s in dense.values()))
    scaled = [{name: scores * factor for name, scores in concepts[0].items()}, *concepts[1:]]
    guarded = [{name: scores * factor for name, scores in dense.items()} for dense in protected]
    one, other = chosen(concepts, protected, ratio=ratio, rule=rule), chosen(scaled, guarded, ratio=ratio, rule=rule)
    assert {name: entries(one, name) for name in SIZES} == {name: entries(other, name) for name in SIZES}


@given(several, some, ratios, st.randoms())
def test_coupled_does_not_depend_on_the_order_of_the_concepts(
    concepts: list[Dense], protected: list[Dense], ratio: float, random: Any
):
    shuffled = random.sample(concepts, len(concepts))
    one, other = chosen(concepts, protected, ratio=ratio), chosen(shuffled, protected[::-1], ratio=ratio)
    assert {name: entries(one, name) for name in SIZES} == {name: entries(other, name) for name in SIZES}


@given(several, some, ratios)
def test_more_protection_never_selects_more(concepts: list[Dense], protected: list[Dense], ratio: float):
    for name in SIZES:
        guarded = chosen(concepts, protected, ratio=ratio, protect_ratio=0.5)
        less = chosen(concepts, protected, ratio=ratio, protect_ratio=0.1)
        none = chosen(concepts, [], ratio=ratio)
        assert set(entries(guarded, name)) <= set(entries(less, name)) <= set(entries(none, name))


def released_by_hand(fairness: list[int], privacy: list[int], general: list[int]) -> list[int]:
    """The published logic, word for word: masks over two *sorted* lists, ANDed although position k differs."""
    first, second = sorted(fairness), sorted(privacy)
    first_mask = [index not in general for index in first]
    second_mask = [index not in general for index in second]
    both = [one and other for one, other in zip(first_mask, second_mask, strict=True)]
    return [index for index, keep in zip(first, both, strict=True) if keep]


@given(dense_scores(), dense_scores(), dense_scores(), ratios, ratios)
def test_released_is_the_published_bug(
    fairness: Dense, privacy: Dense, general: Dense, ratio: float, protect_ratio: float
):
    selection = chosen([fairness, privacy], [general], ratio=ratio, protect_ratio=protect_ratio, rule="released")
    for name, (rows, columns) in SIZES.items():
        k, guarded = count(ratio, rows * columns), count(protect_ratio, rows * columns)
        tops = (full_sort(fairness[name], k), full_sort(privacy[name], k), full_sort(general[name], guarded))
        assert entries(selection, name) == released_by_hand(*tops)


def test_released_and_coupled_differ():
    torch.manual_seed(0)
    fairness, privacy, general = ({name: torch.rand(shape) for name, shape in SIZES.items()} for _ in range(3))
    one, other = (chosen([fairness, privacy], [general], ratio=0.5, rule=rule) for rule in ("coupled", "released"))
    assert one.weights
    assert other.weights
    assert any(entries(one, name) != entries(other, name) for name in SIZES)


@given(several, some, ratios, st.integers(0, 2**31), st.sampled_from(["coupled", "released"]))
def test_random_weights_are_as_many_unique_and_seeded(
    concepts: list[Dense], protected: list[Dense], ratio: float, seed: int, rule: str
):
    selection = chosen(concepts, protected, ratio=ratio, rule=rule)
    control, again = random_like(selection, seed), random_like(selection, seed)
    assert control.weights == selection.weights
    assert set(control.indices) == set(selection.indices)
    for name, indices in control.indices.items():
        assert indices.numel() == selection.indices[name].numel()
        assert (indices.diff() > 0).all()
        assert indices[0] >= 0
        assert indices[-1] < SIZES[name][0] * SIZES[name][1]
        assert torch.equal(indices, again.indices[name])


@given(several, some, ratios, st.none() | ratios, st.sampled_from(["coupled", "released"]))
def test_the_ratio_that_an_empty_selection_names_selects_something(
    concepts: list[Dense], protected: list[Dense], ratio: float, protect_ratio: float | None, rule: str
):
    given_scores = [{str(i): kept(d) for i, d in enumerate(side)} for side in (concepts, protected)]
    concept_scores, protected_scores = given_scores[0], {f"protected {k}": v for k, v in given_scores[1].items()}
    options: dict[str, Any] = {"rule": rule, "protect_ratio": protect_ratio}
    try:
        assert select(concept_scores, protected_scores, ratio=ratio, **options).weights
    except SpinError as error:
        words = error.change.removesuffix(".").split()
        if rule == "released":  # its positions say nothing about another ratio before it is tried
            assert words == ["take", "a", "larger", "ratio"]
            return
        named = math.inf if words[-1] == "any" else float(words[-1])  # "no kept ratio selects any"
        for k in range(1, 22):
            for size in (rows * columns for rows, columns in SIZES.values()):
                fraction = k / size + 1e-9  # just enough for k entries
                if fraction <= KEEP and fraction < named - 2e-4:  # it is rounded up to four digits
                    assert chosen(concepts, protected, ratio=fraction, **options).weights == 0
        if named < 1:
            assert select(concept_scores, protected_scores, ratio=named, **options).weights
            assert named != ratio


@given(several, some, ratios, ratios)
def test_the_regions_of_the_overlap_divide_the_union_of_the_top_sets(
    concepts: list[Dense], protected: list[Dense], ratio: float, protect_ratio: float
):
    named = {f"c{i}": kept(dense) for i, dense in enumerate(concepts)}
    spared = {f"p{i}": kept(dense) for i, dense in enumerate(protected)}
    selection = select(named, spared, ratio=ratio, protect_ratio=protect_ratio, allow_empty=True)
    found = overlap(selection, ScoreSet(named, spared))
    names = [*named, *spared]
    assert (found.concepts, found.protect) == (list(named), list(spared))
    assert len(found.regions) == 2 ** len(names) - 1
    sets = {}
    for name, dense, part in zip(names, concepts + protected, [ratio] * len(named) + [protect_ratio] * 9, strict=False):
        sizes = {matrix: count(part, rows * columns) for matrix, (rows, columns) in SIZES.items()}
        sets[name] = {(m, index) for m, scores in dense.items() for index in full_sort(scores, sizes[m])}
    assert sum(found.regions.values()) == len(set().union(*sets.values()))
    for region, size in found.regions.items():
        inside = region.split("&")
        outside = set().union(*(sets[name] for name in names if name not in inside))
        assert size == len(set.intersection(*(sets[name] for name in inside)) - outside)
    assert found.regions["&".join(named)] == selection.weights, "in every concept's and in no protected one"


@given(several, some, ratios, st.integers(0, 2**31))
def test_controls_of_the_edit_s_size(concepts: list[Dense], protected: list[Dense], ratio: float, seed: int):
    named = {f"c{i}": kept(dense) for i, dense in enumerate(concepts)}
    spared = {f"p{i}": kept(dense) for i, dense in enumerate(protected)}
    selection = select(named, spared, ratio=ratio, allow_empty=True)
    by_magnitude = same_magnitude_like(selection, lambda name: concepts[0][name], seed)
    for name, chosen in selection.indices.items():
        size = SIZES[name][0] * SIZES[name][1]
        like = entries(by_magnitude, name)
        assert len(like) == len(set(like)) == min(len(chosen), size - len(chosen))
        assert like == sorted(like)
        assert not set(like) & set(chosen.tolist())
        assert all(0 <= index < size for index in like)
    for i, concept in enumerate(named):
        own = alone(selection, concept, ScoreSet(named, spared))
        assert set(own.indices) <= set(selection.indices)
        for name, chosen in selection.indices.items():
            size = SIZES[name][0] * SIZES[name][1]
            others = [*protected, *concepts[:i], *concepts[i + 1 :]]
            safe = set().union(*(full_sort(dense[name], count(ratio, size)) for dense in others))
            ranked = [index for index in full_sort(concepts[i][name], count(KEEP, size)) if index not in safe]
            assert entries(own, name) == sorted(ranked[: len(chosen)])
            assert len(concepts) == 1 or not set(entries(own, name)) & set(chosen.tolist())
    if len(concepts) == 1:
        same = alone(selection, "c0", ScoreSet(named, spared))
        assert all(torch.equal(same.indices[name], chosen) for name, chosen in selection.indices.items())
