"""Laws of HSIC and CKA: symmetry, invariances, textbook sums, what independence gives, p-values and bands."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from spin_llm.analysis.dependence import (
    band,
    centred,
    cka,
    gaussian_kernel,
    half_samples,
    hsic_biased,
    hsic_of_independent,
    hsic_unbiased,
    linear_kernel,
    median_bandwidth,
    permutation_p,
    resampled,
    sensitivity,
    squared_distances,
    u_centred,
)
from spin_llm.results.paper import Measures

sizes = st.integers(4, 12)
seeds = st.integers(0, 10**6)


def kernel(x: np.ndarray, multiplier: float = 1.0) -> np.ndarray:
    distances = squared_distances(x)
    return gaussian_kernel(distances, multiplier * median_bandwidth(distances))


def draw(n: int, seed: int, dependence: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """n pairs, x of 3 and y of 2 dimensions, sharing `dependence` of their first coordinate."""
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, 3)), generator.normal(size=(n, 2))
    y[:, 0] = dependence * x[:, 0] + np.sqrt(1 - dependence**2) * y[:, 0]
    return x, y


def textbook_biased(K: np.ndarray, L: np.ndarray) -> float:
    """Gretton et al. 2007, equation 3: three sums over all indices."""
    n = len(K)
    every = range(n)
    first = sum(K[i, j] * L[i, j] for i in every for j in every) / n**2
    second = sum(K[i, j] for i in every for j in every) * sum(L[i, j] for i in every for j in every) / n**4
    third = sum(K[i, j] * L[i, q] for i in every for j in every for q in every) / n**3
    return float(first + second - 2 * third)


def textbook_unbiased(K: np.ndarray, L: np.ndarray) -> float:
    """Song et al. 2012: the same three terms, over indices that all differ."""
    n = len(K)
    every = range(n)
    first = sum(K[i, j] * L[i, j] for i, j in permutations(every, 2)) / (n * (n - 1))
    four = n * (n - 1) * (n - 2) * (n - 3)
    second = sum(K[i, j] * L[q, r] for i, j, q, r in permutations(every, 4)) / four
    third = sum(K[i, j] * L[i, q] for i, j, q in permutations(every, 3)) / (n * (n - 1) * (n - 2))
    return float(first + second - 2 * third)


def song_equation_5(K: np.ndarray, L: np.ndarray) -> float:
    n, one = len(K), np.ones(len(K))
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    terms = (
        np.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ K @ L @ one)
    )
    return float(terms / (n * (n - 3)))


@settings(max_examples=15, deadline=None)
@given(st.integers(4, 8), seeds)
def test_estimators_agree_with_textbook_loops(n: int, seed: int):
    x, y = draw(n, seed, 0.5)
    for K, L in ((kernel(x), kernel(y)), (linear_kernel(x), linear_kernel(y))):
        assert hsic_biased(K, L) == pytest.approx(textbook_biased(K, L), rel=1e-9, abs=1e-12)
        assert hsic_unbiased(K, L) == pytest.approx(textbook_unbiased(K, L), rel=1e-9, abs=1e-12)
        assert hsic_unbiased(K, L) == pytest.approx(song_equation_5(K, L), rel=1e-9, abs=1e-12)


@settings(max_examples=10, deadline=None)
@given(st.integers(4, 5), seeds)
def test_the_biased_estimate_of_independent_pairs_is_the_mean_over_all_pairings(n: int, seed: int):
    x, y = draw(n, seed, 0.9)
    K, L = linear_kernel(x), kernel(y)
    every = [hsic_biased(K, L[np.ix_(order, order)]) for order in permutations(range(n))]
    assert hsic_of_independent(K, L) == pytest.approx(np.mean(every), rel=1e-9)


@given(sizes, seeds)
def test_symmetry_and_ranges(n: int, seed: int):
    x, y = draw(n, seed, 0.9)
    K, L = kernel(x), kernel(y)
    for measure in (hsic_biased, hsic_unbiased, cka, hsic_of_independent):
        assert measure(K, L) == pytest.approx(measure(L, K), rel=1e-9, abs=1e-15)
    assert hsic_biased(K, L) >= 0
    assert 0 <= cka(K, L, debiased=False) <= 1
    assert -1 <= cka(K, L) <= 1
    assert cka(K, K) == pytest.approx(1)
    assert cka(K, K, debiased=False) == pytest.approx(1)


@given(st.integers(8, 12), seeds, st.floats(0.01, 100), st.floats(-50, 50))
def test_nothing_changes_under_scaling_shift_rotation_or_the_order_of_pairs(
    n: int, seed: int, scale: float, shift: float
):
    x, y = draw(n, seed, 0.7)
    generator = np.random.default_rng(seed + 1)
    rotation = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    order = generator.permutation(n)
    moved = (scale * (x @ rotation) + shift)[order]
    for measure in (hsic_biased, hsic_unbiased, cka):
        assert measure(kernel(x), kernel(y)) == pytest.approx(measure(kernel(moved), kernel(y[order])), abs=1e-7)
    before, after = (cka(linear_kernel(a), linear_kernel(b)) for a, b in ((x, y), (moved, y[order])))
    assert before == pytest.approx(after, abs=1e-6)


@given(sizes, seeds)
def test_centred_matrices_sum_to_zero(n: int, seed: int):
    K = kernel(draw(n, seed)[0])
    for matrix in (centred(K), u_centred(K)):
        assert np.allclose(matrix.sum(0), 0)
        assert np.allclose(matrix, matrix.T)
    assert np.all(np.diag(u_centred(K)) == 0)


def test_independence_gives_zero_on_average_without_bias_and_dependence_does_not():
    values = np.array([[f(kernel(x), kernel(y)) for f in (hsic_unbiased, hsic_biased, hsic_of_independent)]
                       for x, y in (draw(20, seed) for seed in range(600))])  # fmt: skip
    unbiased, biased, expected = values.T
    error = unbiased.std() / np.sqrt(len(values))
    assert abs(unbiased.mean()) < 4 * error
    assert biased.mean() > 50 * error  # the bias that `hsic_of_independent` states
    assert abs((biased - expected).mean()) < 4 * (biased - expected).std() / np.sqrt(len(values))
    x, y = draw(200, 0, 0.9)
    assert hsic_unbiased(kernel(x), kernel(y)) > 50 * error


def test_the_biased_estimate_falls_with_the_spread_of_samples_that_share_nothing():
    """At one bandwidth, halving x lowers biased HSIC by its bias; the unbiased one has nothing to lose."""
    both = [(draw(64, seed), draw(64, seed + 1000)) for seed in range(100)]
    falls = np.array([
        [f(fixed(x), fixed(y)) - f(fixed(x / 2), fixed(y)) for f in (hsic_biased, hsic_unbiased)]
        for (x, _), (_, y) in both
    ])  # fmt: skip
    errors = falls.std(0) / np.sqrt(len(falls))
    assert falls[:, 0].mean() > 20 * errors[0]
    assert abs(falls[:, 1].mean()) < 4 * errors[1]


def test_p_values_are_uniform_when_pairs_are_independent_and_small_when_not():
    p = [permutation_p(kernel(x), kernel(y), permutations=99, seed=s) for s in range(400) for x, y in [draw(12, s)]]
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert abs(np.mean(np.array(p) <= 0.05) - 0.05) < 0.035
    x, y = draw(60, 1, 0.9)
    assert permutation_p(kernel(x), kernel(y), permutations=199, seed=0) == 1 / 200


def test_a_permuted_matrix_is_the_kernel_of_permuted_pairs():
    """p by the definition, one pairing at a time."""
    x, y = draw(9, 4, 0.5)
    K, L = kernel(x), kernel(y)
    orders = np.random.default_rng(7).permuted(np.tile(np.arange(9), (50, 1)), axis=1)
    larger = sum(hsic_unbiased(K, kernel(y[order])) >= hsic_unbiased(K, L) - 1e-15 for order in orders)
    assert permutation_p(K, L, permutations=50, seed=7) == (1 + larger) / 51


def test_a_constant_sample_depends_on_nothing():
    y = draw(10, 0)[1]
    for flat in (kernel(np.full((10, 3), 0.1)), linear_kernel(np.full((10, 3), 0.1))):
        assert (hsic_biased(flat, kernel(y)), hsic_unbiased(flat, kernel(y))) == (0, 0)
        assert cka(flat, kernel(y)) is None
        assert permutation_p(flat, kernel(y), permutations=19) == 1


def test_halves_average_to_the_whole_and_copies_do_not():
    x, y = draw(16, 3)
    K, L = kernel(x), kernel(y)
    halves, _ = resampled(K, L, half_samples(16, 20_000, 0))
    error = halves.std() / np.sqrt(len(halves))
    assert abs(halves.mean() - hsic_unbiased(K, L)) < 4 * error
    copies = np.random.default_rng(0).integers(16, size=(2000, 16))
    bootstrap, _ = resampled(K, L, copies)
    assert bootstrap.mean() - hsic_unbiased(K, L) > 20 * error  # why pairs are not drawn with replacement


def test_bands_cover_the_truth():
    truth = np.mean([hsic_unbiased(fixed(x), fixed(y)) for x, y in (draw(400, 10_000 + s, 0.7) for s in range(30))])
    covered = 0
    for seed in range(200):
        x, y = draw(64, seed, 0.7)
        K, L = fixed(x), fixed(y)
        low, high = band(hsic_unbiased(K, L), resampled(K, L, half_samples(64, 200, seed))[0])
        covered += low <= truth <= high
    assert 0.88 <= covered / 200 <= 0.995


def fixed(x: np.ndarray) -> np.ndarray:
    return gaussian_kernel(squared_distances(x), 1.5)


def test_sensitivity_holds_the_median_heuristic():
    x, y = draw(20, 0, 0.8)
    rows = sensitivity(squared_distances(x), squared_distances(y), Measures(permutations=19))
    assert [row.multiplier for row in rows] == list(Measures.multipliers)
    assert rows[2].hsic == pytest.approx(hsic_unbiased(kernel(x), kernel(y)))
    assert len({row.hsic for row in rows}) == len(Measures.multipliers)
