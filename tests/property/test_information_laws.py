"""Mutual information of Gaussians: the chain rule behind the paper's theorem, its conditions, and the estimator."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spin_llm.analysis.dependence import (
    Floats,
    neighbour_information,
    principal_components,
    projected_information,
)
from spin_llm.errors import SpinError
from spin_llm.results.paper import Measures, Projected

SIZES = (2, 1, 2, 1)
seeds = st.integers(0, 10**6)


def gaussian_information(covariance: Floats, a: Sequence[int], b: Sequence[int], given: Sequence[int] = ()) -> float:
    """I[A; B | C] in nats of the Gaussian with this covariance; a, b and `given` are the places of A, B and C.

    1/2 ln( det S_AC det S_BC / (det S_ABC det S_C) ). Raises SpinError where a part is a function of the others: the
    information is then infinite, or undefined.
    """

    def log_det(places: Sequence[int]) -> float:
        sign, value = np.linalg.slogdet(covariance[np.ix_(places, places)])
        if sign <= 0 or not np.isfinite(value):
            raise SpinError("The covariance is singular: one part is a function of the others.")
        return float(value)

    a, b, given = list(a), list(b), list(given)
    return 0.5 * (log_det(a + given) + log_det(b + given) - log_det(a + b + given) - (log_det(given) if given else 0.0))


def theorem_terms(covariance: Floats, sizes: Sequence[int]) -> dict[str, float]:
    """Both sides of Theorem 1 and the terms between them, in nats; `sizes`: dimensions of X, Z1, Y, Z2, in this order.

    `whole` = `kept` + `x_z2` + `z1_y` + `z1_z2`; the theorem asks for the last of them to be above 0.
    """
    ends = np.cumsum([0, *sizes])
    x, z1, y, z2 = (list(range(start, end)) for start, end in pairwise(ends))
    return {
        "whole": gaussian_information(covariance, x + z1, y + z2),
        "kept": gaussian_information(covariance, x, y),
        "x_z2": gaussian_information(covariance, x, z2, y),
        "z1_y": gaussian_information(covariance, z1, y, x),
        "z1_z2": gaussian_information(covariance, z1, z2, x + y),
    }


def covariance(seed: int, size: int = 6) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(size, size + 3))
    return root @ root.T


def coupled(**correlations: float) -> np.ndarray:
    """X, Z1, Y, Z2 of one dimension each with unit variance; `x_y=0.3` correlates X with Y."""
    names = ("x", "z1", "y", "z2")
    made = np.eye(4)
    for pair, value in correlations.items():
        i, j = (names.index(name) for name in pair.split("_"))
        made[i, j] = made[j, i] = value
    return made


@given(st.floats(-0.99, 0.99))
def test_two_numbers_have_the_known_information(correlation: float):
    found = gaussian_information(np.array([[1, correlation], [correlation, 1]]), [0], [1])
    assert found == pytest.approx(-0.5 * np.log(1 - correlation**2), abs=1e-12)


def test_information_is_the_mean_log_ratio_of_densities():
    """The definition E[ln p(x, y) / (p(x) p(y))], by simulation."""
    from scipy.stats import multivariate_normal as normal

    S = covariance(3, 4)
    points = np.random.default_rng(0).multivariate_normal(np.zeros(4), S, size=100_000)
    joint = normal(np.zeros(4), S).logpdf(points)
    apart = normal(np.zeros(2), S[:2, :2]).logpdf(points[:, :2]) + normal(np.zeros(2), S[2:, 2:]).logpdf(points[:, 2:])
    assert gaussian_information(S, [0, 1], [2, 3]) == pytest.approx((joint - apart).mean(), abs=0.02)


@given(seeds)
def test_the_theorem_is_the_chain_rule(seed: int):
    terms = theorem_terms(covariance(seed), SIZES)
    parts = terms["kept"] + terms["x_z2"] + terms["z1_y"] + terms["z1_z2"]
    assert terms["whole"] == pytest.approx(parts, abs=1e-8)
    assert min(terms.values()) > -1e-9
    if terms["z1_z2"] > 1e-6:
        assert terms["kept"] < terms["whole"]


def test_the_condition_suffices_and_is_not_needed():
    suffices = theorem_terms(coupled(x_y=0.3, z1_z2=0.5), (1, 1, 1, 1))
    assert suffices["z1_z2"] > 0.1
    assert suffices["kept"] < suffices["whole"]
    without = theorem_terms(coupled(x_y=0.3), (1, 1, 1, 1))  # nothing coupled: nothing lost
    assert without["whole"] == pytest.approx(without["kept"], abs=1e-12)
    other = theorem_terms(coupled(x_y=0.3, z1_y=0.5), (1, 1, 1, 1))  # Z1 tells of Y, Z2 of nothing
    assert other["z1_z2"] == pytest.approx(0, abs=1e-12)
    assert other["kept"] < other["whole"]


def test_what_is_left_can_become_more_dependent_when_it_is_changed():
    """Not the theorem's case: Y is a signal and Z2 noise on it; changing Y by what Z2 knows raises the information."""
    signal, noise = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    X, Y, cleaned = signal + 0.1 * np.array([0, 0, 1.0]), signal + noise, signal
    before, after = (np.cov(np.stack([X, other]) @ basis()) for other in (Y, cleaned))
    assert gaussian_information(after, [0], [1]) > gaussian_information(before, [0], [1])


def basis() -> np.ndarray:
    """Three uncorrelated unit columns as samples, (3, n)."""
    return np.random.default_rng(0).normal(size=(3, 5000))


def test_without_noise_between_them_the_information_is_infinite():
    with pytest.raises(SpinError, match="singular"):
        gaussian_information(np.ones((2, 2)), [0], [1])


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_the_second_opinion_agrees_with_the_known_answer(correlation: float):
    points = np.random.default_rng(1).multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], size=1500)
    found = neighbour_information(points[:, :1], points[:, 1:])
    assert found.shape == (1, 1)
    assert found[0, 0] == pytest.approx(-0.5 * np.log(1 - correlation**2), abs=0.06)


def test_components_are_white_and_those_without_variance_left_out():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, 2)) @ generator.normal(size=(2, 7)) + 5
    found = principal_components(x, 4)
    assert found.shape == (50, 2)
    assert np.allclose(np.cov(found.T, ddof=0), np.eye(2))
    assert principal_components(np.full((50, 7), 0.1)).shape == (50, 0)


def test_projections_find_dependence_and_do_not_invent_it():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(100, 6)), generator.normal(size=(100, 5))
    x[:, 0] *= 5
    y[:, 0] = x[:, 0] ** 2  # uncorrelated, and dependent
    few = Measures(opinions=19)
    found = projected_information(x, y, few)
    assert found.p == 1 / 20
    assert found.information > 2 * found.independent
    other = projected_information(x, generator.normal(size=(100, 5)), few)
    assert other.p > 0.05
    assert other.information == pytest.approx(other.independent, abs=0.03)
    flat = projected_information(np.ones((100, 6)), y, few)
    assert flat == Projected(None, None, 1.0)
