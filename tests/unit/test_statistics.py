"""Paired statistics: against hand-made values and scipy, in simulation, and on columns with nothing in them."""

from __future__ import annotations

import math
from math import comb

import numpy as np
import pytest
from scipy import stats

from spin_llm.errors import SpinError
from spin_llm.stats.correction import corrected
from spin_llm.stats.paired import (
    detectable_rate,
    holm,
    mcnemar,
    paired_means,
    paired_perplexity,
    paired_rates,
    weighted_mean,
)


def columns(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """0/1 verdicts of base and edited with the given numbers of pairs of each kind."""
    base = np.array([1.0] * both + [0.0] * gained + [1.0] * lost + [0.0] * neither)
    edited = np.array([1.0] * both + [1.0] * gained + [0.0] * lost + [0.0] * neither)
    return base, edited


def test_rates_of_known_columns():
    result = paired_rates(*columns(both=30, gained=20, lost=5, neither=45))
    assert (result.n, result.base, result.edited) == (100, 0.35, 0.5)
    assert result.delta == pytest.approx(0.15)
    assert result.ci95[0] < 0.15 < result.ci95[1]
    # the sampling variance of a paired difference: (gained + lost - (gained - lost)^2 / n) / n^2
    half = 1.96 * math.sqrt((25 - 15**2 / 100) / 100**2)
    assert result.ci95 == pytest.approx((0.15 - half, 0.15 + half), abs=0.025)


@pytest.mark.parametrize(("gained", "lost"), [(0, 1), (1, 0), (5, 0), (8, 2), (7, 7), (12, 30), (0, 40)])
def test_mcnemar_is_the_exact_binomial_test_of_the_changed_pairs(gained: int, lost: int):
    n, k = gained + lost, min(gained, lost)
    by_hand = min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)
    assert mcnemar(*columns(9, gained, lost, 4)) == pytest.approx(by_hand, rel=1e-12)


def test_mcnemar_sees_only_changed_pairs():
    assert mcnemar(*columns(0, 8, 2, 0)) == mcnemar(*columns(500, 8, 2, 500))
    assert mcnemar(*columns(10, 0, 0, 10)) == 1.0
    assert mcnemar(*columns(3, 8, 2, 3)) == mcnemar(*columns(3, 2, 8, 3)), "two-sided"


def test_swapping_base_and_edited_turns_the_difference_round():
    base, edited = columns(20, 15, 6, 30)
    there, back = paired_rates(base, edited), paired_rates(edited, base)
    assert there.delta == pytest.approx(-back.delta)
    assert there.p == back.p
    assert there.ci95 == pytest.approx((-back.ci95[1], -back.ci95[0]), abs=0.02)


def test_the_order_of_the_pairs_does_not_matter():
    base, edited = columns(20, 15, 6, 30)
    order = np.random.default_rng(1).permutation(len(base))
    one, other = paired_rates(base, edited), paired_rates(base[order], edited[order])
    assert (one.n, one.base, one.edited, one.p) == (other.n, other.base, other.edited, other.p)
    assert one.delta == pytest.approx(other.delta)
    assert one.ci95 == pytest.approx(other.ci95, abs=0.02), "up to the draw of the bootstrap"


def test_the_pairing_matters():
    base, edited = columns(40, 10, 0, 50)
    apart = np.random.default_rng(0).permutation(edited)
    paired, shuffled = paired_rates(base, edited), paired_rates(base, apart)
    assert paired.delta == pytest.approx(shuffled.delta)
    assert paired.ci95[1] - paired.ci95[0] < shuffled.ci95[1] - shuffled.ci95[0]
    assert paired.p < 0.01 < shuffled.p


def test_the_same_seed_gives_the_same_interval():
    losses = np.random.default_rng(0).gamma(4, 10, (2, 40))
    one, same, other = (paired_perplexity(*losses, np.full(40, 20.0), seed=seed) for seed in (3, 3, 4))
    assert one == same
    assert one.ci95 != other.ci95


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("n", [1, 2, 50, 150])
def test_columns_without_any_variation(value: float, n: int):
    """Nothing changed among n prompts: that is evidence of no change, and weaker the smaller n is."""
    result = paired_rates(np.full(n, value), np.full(n, value))
    assert (result.n, result.base, result.edited, result.delta, result.p) == (n, value, value, 0.0, 1.0)
    low, high = result.ci95
    assert low == pytest.approx(-high)
    # sqrt(2 / (n + 2)) / sqrt(n + 2) times 1.96, by hand
    assert high == pytest.approx(min(1.0, 1.959964 * math.sqrt(2) / (n + 2)))


def test_every_pair_gained():
    result = paired_rates(np.zeros(20), np.ones(20))
    assert (result.delta, result.p) == (1.0, pytest.approx(2 * 0.5**20))
    assert 0.7 < result.ci95[0] < result.ci95[1] == 1.0


def test_one_discordant_pair():
    result = paired_rates(*columns(both=10, gained=1, lost=0, neither=89))
    assert (result.delta, result.p) == (0.01, 1.0)
    assert result.ci95[0] < 0 < 0.01 < result.ci95[1]


def test_nothing_to_compare_is_an_error():
    none = np.array([])
    for compare in (paired_rates, paired_means, lambda a, b: paired_perplexity(a, b, a)):
        with pytest.raises(SpinError, match="nothing to compare"):
            compare(none, none)


def test_one_pair():
    result = paired_rates(np.array([0.0]), np.array([1.0]))
    assert (result.n, result.delta, result.p, result.mde) == (1, 1.0, 1.0, None)
    assert result.ci95[0] < 0 < result.ci95[1] == 1.0
    one = paired_perplexity(np.array([4.0]), np.array([6.0]), np.array([2.0]))
    assert (one.base, one.edited) == pytest.approx((math.exp(2), math.exp(3)))
    assert one.ci95 == pytest.approx((one.delta, one.delta))
    assert one.p == 1.0


def test_two_pairs_give_a_finite_interval():
    low, high = paired_rates(np.array([0.0, 0.0]), np.array([1.0, 0.0])).ci95
    assert -1.0 <= low < 0.0 < 0.5 < high <= 1.0
    low, high = paired_means(np.array([3.0, 4.0]), np.array([5.0, 4.0])).ci95
    assert 0.0 <= low <= 1.0 <= high <= 2.0


def test_perplexity_weighs_tokens_not_pairs():
    base, edited, tokens = np.array([2.0, 90.0]), np.array([4.0, 90.0]), np.array([1.0, 99.0])
    result = paired_perplexity(base, edited, tokens)
    assert result.base == pytest.approx(math.exp(92 / 100))
    assert result.edited == pytest.approx(math.exp(94 / 100))
    assert result.delta == pytest.approx(result.edited - result.base)


def test_perplexity_of_an_unchanged_model():
    losses, tokens = np.array([3.0, 5.0, 8.0]), np.array([2.0, 4.0, 5.0])
    result = paired_perplexity(losses, losses.copy(), tokens)
    assert (result.delta, result.ci95, result.p) == (0.0, (0.0, 0.0), 1.0)


def test_a_uniform_rise_of_the_loss_is_seen_through_the_spread_of_the_pairs():
    draw = np.random.default_rng(0)
    tokens = draw.integers(5, 80, 64).astype(float)
    base = tokens * draw.gamma(4, 0.5, 64)
    edited = base + tokens * draw.normal(0.02, 0.01, 64)
    result = paired_perplexity(base, edited, tokens)
    assert 0 < result.ci95[0] < result.delta < result.ci95[1]
    assert result.delta / result.base == pytest.approx(math.exp(0.02) - 1, rel=0.3)
    assert result.p == pytest.approx(float(stats.wilcoxon(edited / tokens, base / tokens).pvalue), rel=1e-3)
    order = draw.permutation(64)
    shuffled = paired_perplexity(base[order], edited[order], tokens[order])
    assert shuffled.delta == pytest.approx(result.delta)
    assert shuffled.p == pytest.approx(result.p)
    assert shuffled.ci95 == pytest.approx(result.ci95, rel=0.1)


def test_weighted_mean():
    mean, (low, high) = weighted_mean(np.array([2.0, 3.0, 10.0]), np.array([2.0, 3.0, 5.0]))
    assert mean == 1.5
    assert 1.0 <= low <= 1.5 <= high <= 2.0
    assert weighted_mean(np.array([3.0]), np.array([2.0])) == (1.5, (1.5, 1.5))
    assert weighted_mean(np.zeros(9), np.arange(1.0, 10.0)) == (0.0, (0.0, 0.0))


def test_differences_of_means():
    draw = np.random.default_rng(0)
    base = draw.gamma(3, 10, 60)
    result = paired_means(base, base + draw.normal(2, 3, 60))
    assert 0 < result.ci95[0] < result.delta < result.ci95[1]
    assert result.delta == pytest.approx(result.edited - result.base)
    half = 1.96 * 3 / math.sqrt(60)
    assert (result.ci95[1] - result.ci95[0]) / 2 == pytest.approx(half, rel=0.25)
    assert result.mde == pytest.approx(2.8 * 3 / math.sqrt(60), rel=0.25)
    same = paired_means(base, base)
    assert (same.delta, same.ci95, same.p, same.mde) == (0.0, (0.0, 0.0), 1.0, None)


def test_the_detectable_difference_of_rates():
    """Against the normal approximation of Connor (1987): n = ((z_a sqrt(s) + z_b sqrt(s - d^2)) / d)^2."""
    for n, discordant in ((150, 15), (300, 30), (5000, 500)):
        found, share = detectable_rate(discordant, n), discordant / n
        needed = ((1.96 * share**0.5 + 0.8416 * (share - found**2) ** 0.5) / found) ** 2
        assert n * 0.9 <= needed <= n * 1.02, "the exact test needs a little more"
    assert detectable_rate(30, 300) < detectable_rate(60, 300) < detectable_rate(60, 150)
    assert detectable_rate(0, 5) is None, "five pairs cannot be significant"
    assert detectable_rate(0, 6) == pytest.approx(0.8 ** (1 / 6), abs=1e-3), "all six have to change"
    assert 0.04 < detectable_rate(0, 150) < 0.06, "with no change seen, the least that it can be"


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": None}
    )
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": None}) == {"a": None}


def test_correction_by_hand():
    base, edited = columns(both=20, gained=20, lost=0, neither=60)
    found = corrected(base, edited, [80, 100], [90, 100])
    # (0.2 + 0.9 - 1) / 0.7 and (0.4 + 0.9 - 1) / 0.7
    assert (found.base, found.edited) == pytest.approx((0.1 / 0.7, 0.3 / 0.7))
    assert found.delta == pytest.approx(0.2 / 0.7)
    assert (found.sensitivity, found.specificity) == (0.8, 0.9)
    assert found.ci95[0] < found.delta < found.ci95[1]
    assert "equally often" in found.note


def test_a_perfect_judge_needs_no_correction():
    base, edited = columns(both=20, gained=20, lost=5, neither=55)
    found = corrected(base, edited, [100_000, 100_000], [100_000, 100_000])
    plain = paired_rates(base, edited)
    assert (found.base, found.edited, found.delta) == pytest.approx((plain.base, plain.edited, plain.delta))
    assert found.ci95 == pytest.approx(plain.ci95, abs=0.01)


def test_the_corrected_interval_carries_the_judges_uncertainty():
    base, edited = columns(both=20, gained=30, lost=5, neither=45)
    widths = []
    for scale in (1, 10, 1000):
        low, high = corrected(base, edited, [7 * scale, 10 * scale], [9 * scale, 10 * scale]).ci95
        widths.append(high - low)
    assert widths[0] > 1.2 * widths[1] > 1.2 * widths[2]


@pytest.mark.parametrize(
    ("sensitivity", "specificity", "why"),
    [
        ([5, 10], [5, 10], "0.00"),
        ([3, 4], [3, 4], "may be as little"),
        ([0, 50], [2, 50], "no correction"),
        ([0, 0], [9, 10], "no labelled"),
    ],
)
def test_no_correction_by_a_judge_that_may_be_guessing(sensitivity: list[int], specificity: list[int], why: str):
    found = corrected(*columns(20, 20, 5, 55), sensitivity, specificity)
    assert [found.base, found.edited, found.delta, found.ci95] == [None] * 4
    assert why in found.note


def test_a_corrected_rate_outside_0_to_1_is_kept_and_said():
    found = corrected(np.zeros(50), np.repeat([1.0, 0.0], 25), [90, 100], [80, 100])
    assert found.base < 0
    assert "base" in found.note.split("clipping:")[1]
