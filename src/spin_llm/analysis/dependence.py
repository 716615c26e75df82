"""How far two samples of vectors depend on each other: HSIC and CKA, with a test, a band and a sensitivity; and mutual
information by nearest neighbours.

In: kernel matrices K and L (n, n), float64, of n pairs (x_i, y_i); or the samples themselves. Out: numbers. With
H = 1 - 11'/n and U(K) the centring that ignores the diagonal (Szekely and Rizzo 2014, equation 2.1):

    HSIC, biased     <HKH, HLH> / n^2             Gretton et al. 2005, with n for n - 1 (Gretton et al. 2007)
    HSIC, unbiased   <U(K), U(L)> / (n (n - 3))   equal to Song et al. 2012, equation 5
    CKA              HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), of either estimator (Kornblith et al. 2019)

Each is an inner product of two centred matrices, so pairs are permuted by permuting one of them. What follows from all
this, and from the paper's theorem, and what does not: docs/information.md. Left out: which representations are
compared and what makes two of them a pair (layers.py); mutual information in many dimensions, which no estimator gives
from a hundred examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

from spin_llm.results.paper import AtBandwidth, Measures, Projected

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Sample = Float[Floats, "n d"]
    Kernel = Float[Floats, "n n"]
    Kernels = Float[Floats, "... n n"]
LEAST = 8  # pairs: half of them still have an unbiased estimate
CHUNK = 4_000_000  # matrix entries gathered at a time: 32 MB
SPREAD = 1e-9  # a component this much narrower than the sample's norm is rounding noise
FLAT = 1e-12  # a centred kernel this much smaller than the kernel is rounding noise of a constant


def squared_distances(x: Sample) -> Kernel:
    """Squared Euclidean distances between the rows of x."""
    return np.asarray(squareform(pdist(np.asarray(x, np.float64), "sqeuclidean")), np.float64)


def median_bandwidth(distances: Kernel) -> float:
    """The median distance between two different points, from squared `distances`; 1 where all points agree.

    The median heuristic (Gretton et al. 2005, 2012), for the sigma of `gaussian_kernel`.
    """
    above = distances[np.triu_indices(len(distances), 1)]
    apart = above[above > 0]
    return float(np.sqrt(np.median(apart))) if apart.size else 1.0


def gaussian_kernel(distances: Kernel, bandwidth: float) -> Kernel:
    """exp(-d^2 / (2 sigma^2)) from squared `distances`, sigma = `bandwidth`."""
    return np.exp(distances / (-2 * bandwidth**2))


def linear_kernel(x: Sample) -> Kernel:
    """<x_i, x_j> of the rows of x; with it HSIC sees linear dependence alone."""
    wide = np.asarray(x, np.float64)
    return wide @ wide.T


def centred(K: Kernels) -> Kernels:
    """HKH of kernel matrices: rows and columns sum to 0. A constant kernel gives exactly 0."""
    rows = K.mean(-1, keepdims=True)
    return _without_noise(K - rows - rows.swapaxes(-1, -2) + K.mean((-2, -1), keepdims=True), K)


def u_centred(K: Kernels) -> Kernels:
    """U(K) of kernel matrices, n > 3: diagonal 0, rows and columns sum to 0."""
    n = K.shape[-1]
    off = K * ~np.eye(n, dtype=bool)
    rows = off.sum(-1, keepdims=True)
    full = off - (rows + rows.swapaxes(-1, -2)) / (n - 2) + off.sum((-2, -1), keepdims=True) / ((n - 1) * (n - 2))
    return _without_noise(full * ~np.eye(n, dtype=bool), off)


def _without_noise(centred_kernel: Floats, K: Floats) -> Floats:
    noise = np.abs(centred_kernel).max((-2, -1)) <= FLAT * np.abs(K).max((-2, -1))
    return np.where(noise[..., None, None], 0.0, centred_kernel)


def inner(A: Kernels, B: Kernels) -> Float[Floats, ...]:
    """<A, B>: the sum of the products of all entries, over the last two axes."""
    return np.einsum("...ij,...ij->...", A, B)


def hsic_biased(K: Kernel, L: Kernel) -> float:
    """At least 0; on independent pairs `hsic_of_independent` on average, not 0."""
    return float(inner(centred(K), centred(L))) / len(K) ** 2


def hsic_of_independent(K: Kernel, L: Kernel) -> float:
    """The mean of `hsic_biased` over all n! ways to pair the same two samples: tr(HKH) tr(HLH) / (n^2 (n - 1)).

    What the biased estimator shows where there is nothing to show; it moves with the spread of either sample alone.
    """
    n = len(K)
    return float(np.trace(centred(K)) * np.trace(centred(L))) / (n**2 * (n - 1))


def hsic_unbiased(K: Kernel, L: Kernel) -> float:
    """0 on average on independent pairs, and so at times below 0."""
    n = len(K)
    return float(inner(u_centred(K), u_centred(L))) / (n * (n - 3))


def cka(K: Kernel, L: Kernel, *, debiased: bool = True) -> float | None:
    """Normalised HSIC: biased in [0, 1]; debiased in [-1, 1] and near 0 on independent pairs. None where a sample is
    constant."""
    centre = u_centred if debiased else centred
    value = float(_cosine(centre(K), centre(L)))
    return None if math.isnan(value) else value


def _cosine(A: Floats, B: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(inner(A, B) / np.sqrt(inner(A, A) * inner(B, B)), -1, 1)


def permutation_p(K: Kernel, L: Kernel, *, permutations: int = 999, seed: int = 0) -> float:
    """One-sided p of the hypothesis that x and y are independent: the share of random pairings, the observed one
    counted, whose unbiased HSIC is as large. Exact for exchangeable pairs (Phipson and Smyth 2010)."""
    A, B = u_centred(K), u_centred(L)
    observed = inner(A, B)
    slack = 1e-12 * math.sqrt(float(inner(A, A) * inner(B, B)))  # ties, summed in another order
    draw = np.random.default_rng(seed)
    larger = 0
    for size in _chunks(permutations, len(K)):
        order = draw.permuted(np.tile(np.arange(len(K)), (size, 1)), axis=1)
        larger += int((inner(A, _taken(B, order)) >= observed - slack).sum())
    return (1 + larger) / (1 + permutations)


def half_samples(n: int, count: int, seed: int) -> Int[Indices, "count n//2"]:
    """Places of pairs drawn without replacement."""
    draw = np.random.default_rng(seed)
    return draw.permuted(np.tile(np.arange(n), (count, 1)), axis=1)[:, : n // 2]


def resampled(
    K: Kernel, L: Kernel, halves: Int[Indices, "count m"]
) -> tuple[Float[Floats, " count"], Float[Floats, " count"]]:
    """(unbiased HSIC, debiased CKA) of each half sample of pairs; CKA is nan where a half is constant.

    A bootstrap draws pairs twice, and the copies lie on each other at k = 1 off the diagonal: the unbiased estimator is
    then biased upwards. Halves hold no copies, and over all of them the estimator averages to its value on the whole
    sample; the deviation of a half of n from the whole varies as the whole does from the truth, so nothing is rescaled
    (Politis and Romano 1994, with the factor 1 - 1/2 for drawing from a finite sample).
    """
    m = halves.shape[1]
    hsic, similarity = [], []
    place = 0
    for size in _chunks(len(halves), m):
        A, B = (u_centred(_taken(kernel, halves[place : place + size])) for kernel in (K, L))
        hsic.append(inner(A, B) / (m * (m - 3)))
        similarity.append(_cosine(A, B))
        place += size
    return np.concatenate(hsic), np.concatenate(similarity)


def band(value: float | None, samples: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """The interval that reflects the halves' deviations from `value` about it; None where there is no value.

    Halves of (edited - base), taken at the same places, give the band of a change.
    """
    if value is None or np.isnan(samples).any():
        return None
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(2 * value - high), float(2 * value - low)


def sensitivity(x_distances: Kernel, y_distances: Kernel, measures: Measures) -> list[AtBandwidth]:
    """Unbiased HSIC, debiased CKA and p at multiples of both median bandwidths, from squared distances."""
    rows = []
    for multiplier in measures.multipliers:
        K, L = (gaussian_kernel(d, multiplier * median_bandwidth(d)) for d in (x_distances, y_distances))
        p = permutation_p(K, L, permutations=measures.permutations, seed=measures.seed)
        rows.append(AtBandwidth(multiplier, hsic_unbiased(K, L), cka(K, L), p))
    return rows


def _taken(K: Floats, places: Indices) -> Floats:
    """(count, m, m): K at the same places (count, m) of rows and columns."""
    return K[places[:, :, None], places[:, None, :]]


def _chunks(total: int, n: int) -> Iterator[int]:
    """Sizes that add up to `total`, each of few enough (n, n) matrices."""
    size = max(1, CHUNK // n**2)
    yield from (min(size, total - start) for start in range(0, total, size))


def principal_components(x: Sample, components: int = Measures.components) -> Float[Floats, "n components"]:
    """Projections of the rows of x on their leading principal components, each of unit
    variance; components without variance are left out."""
    wide = np.asarray(x, np.float64)
    U, S, _ = np.linalg.svd(wide - wide.mean(0), full_matrices=False)
    wide_enough = S[:components] > SPREAD * np.linalg.norm(wide)
    return np.asarray(U[:, :components][:, wide_enough] * np.sqrt(len(wide)), np.float64)


def neighbour_information(x: Floats, y: Floats, *, neighbours: int = Measures.neighbours, seed: int = 0) -> Floats:
    """(p, q) mutual information in nats of each column of x (n, p) with each of y (n, q), never below 0.

    The first estimator of Kraskov, Stoegbauer and Grassberger (2004), as scikit-learn has it
    (`mutual_info_regression`, which adds noise of 1e-10 standard deviations against ties). Cutting at 0 leaves it above
    0 on independent columns.
    """
    from sklearn.feature_selection import mutual_info_regression

    columns = [mutual_info_regression(x, column, n_neighbors=neighbours, random_state=seed) for column in y.T]
    return np.stack(columns, axis=1)


def projected_information(x: Sample, y: Float[Floats, "n e"], measures: Measures) -> Projected:
    """The second opinion on x and y: `information`, the mean over all pairs of leading principal
    components, in nats; its mean over random pairings as `independent`; and a one-sided permutation `p`.

    None, None and 1 where a sample has no spread. It is no estimate of the vectors' mutual information: it sees pairs
    of directions only.
    """
    left, right = (principal_components(side, measures.components) for side in (x, y))
    if not left.shape[1] or not right.shape[1]:
        return Projected(None, None, 1.0)

    def mean(order: Indices) -> float:
        found = neighbour_information(left, right[order], neighbours=measures.neighbours, seed=measures.seed)
        return float(found.mean())

    draw = np.random.default_rng(measures.seed)
    observed = mean(np.arange(len(right)))
    others = np.array([mean(draw.permutation(len(right))) for _ in range(measures.opinions)])
    p = (1 + int((others >= observed).sum())) / (1 + len(others))
    return Projected(observed, float(others.mean()) if len(others) else None, p)
