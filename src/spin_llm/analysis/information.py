"""Mutual information: a second opinion by nearest neighbours, and the paper's theorem on a model with known answers.

In: two samples of vectors, or the covariance of jointly Gaussian parts X, Z1, Y, Z2. Out: nats. For Gaussians

    I[A; B | C] = 1/2 ln( det S_AC det S_BC / (det S_ABC det S_C) )

Theorem 1 of the paper says: if I[Z1; Z2 | X, Y] > 0 then I[X; Y] < I[(X, Z1); (Y, Z2)]. It is the chain rule (Cover
and Thomas, section 2.5), applied twice:

    I[(X, Z1); (Y, Z2)] = I[X; Y] + I[X; Z2 | Y] + I[Z1; Y | X] + I[Z1; Z2 | X, Y]

whose terms are all at least 0. What follows from it, and what does not: docs/information.md. Left out: mutual
information in many dimensions, which no estimator gives from a hundred examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from spin_llm.analysis.dependence import Floats, Indices
from spin_llm.errors import SpinError
from spin_llm.results.paper import Measures, Projected

SPREAD = 1e-9  # a component this much narrower than the sample's norm is rounding noise


def gaussian_information(covariance: Floats, a: Sequence[int], b: Sequence[int], given: Sequence[int] = ()) -> float:
    """I[A; B | C] in nats of the Gaussian with this covariance; a, b and `given` are the places of A, B and C.

    Raises SpinError where a part is a function of the others: the information is then infinite, or undefined.
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


def principal_components(x: Floats, components: int = Measures.components) -> Floats:
    """(n, up to `components`) projections of the rows of x (n, d) on their leading principal components, each of unit
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


def projected_information(x: Floats, y: Floats, measures: Measures) -> Projected:
    """The second opinion on x (n, d) and y (n, e): `information`, the mean over all pairs of leading principal
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
