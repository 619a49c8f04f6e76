"""The Fréchet distance between the Gaussians fitted to two sets of features, its bias, and its limit.

``FD = |mu_1 - mu_2|^2 + Tr S_1 + Tr S_2 - 2 Tr (S_1 S_2)^(1/2)`` with means ``mu`` and unbiased covariances ``S``
(Dowson & Landau 1982). It is the FID (Heusel et al. 2017, arXiv:1706.08500) if, and only if, the features are those
of the Inception network's third pooling layer with the published weights and preprocessing.

The trace of the matrix square root is computed from *roots*: for any ``A A' = S_1`` and ``B B' = S_2``,
``Tr (S_1 S_2)^(1/2)`` is the nuclear norm of ``A' B``. A root is a pivoted Cholesky factor, which drops what is below
the rounding of the covariance, or, of fewer rows than features, the centered rows themselves. All in float64 on the
host: in float32 the covariances of real features lose up to 0.1 of the distance.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bpgan.metrics.arrays import check_matrix, check_pair

_BLOCK = 4096  # rows turned to float64 at a time

Features = Float[np.ndarray, "n f"]


class Gaussian(NamedTuple):
    """The moments of a set of features: all that the Fréchet distance sees of it.

    Attributes:
      mean: f64[f].
      cov: f64[f, f], the unbiased covariance (divided by ``n - 1``); zero if ``n`` is 1.
      n: rows.
    """

    mean: Float[np.ndarray, " f"]
    cov: Float[np.ndarray, "f f"]
    n: int


def gaussian(features: Features) -> Gaussian:
    """Mean and unbiased covariance of ``features[n, f]``, any real type, ``n >= 1``, in float64.

    Raises:
      ValueError: unless ``features`` is a finite matrix with at least one row and one column.
    """
    features = check_matrix(features, "features")
    n, f = features.shape
    mean = features.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((f, f))
    for start in range(0, n, _BLOCK):
        centered = features[start : start + _BLOCK] - mean
        scatter += centered.T @ centered
    return Gaussian(mean, scatter / max(n - 1, 1), n)


def merge(a: Gaussian, b: Gaussian) -> Gaussian:
    """The moments of two sets put together: ``functools.reduce(merge, map(gaussian, batches))`` streams.

    ``(n - 1) S = (n_a - 1) S_a + (n_b - 1) S_b + n_a n_b / n (mu_a - mu_b)(mu_a - mu_b)'`` (Chan, Golub & LeVeque
    1979); agrees with ``gaussian`` of all rows to rounding.
    """
    n = a.n + b.n
    shift = b.mean - a.mean
    scatter = (a.n - 1) * a.cov + (b.n - 1) * b.cov + a.n * b.n / n * np.outer(shift, shift)
    return Gaussian(a.mean + b.n / n * shift, scatter / (n - 1), n)


def frechet_distance(x: Features, y: Features) -> float:
    """The Fréchet distance between the features ``x[n, f]`` and ``y[m, f]``.

    Symmetric, in squared units of the features, and biased upwards by about ``frechet_bias``: compare values only at
    equal ``n`` and ``m``. With ``n <= f`` or ``m <= f`` the covariance is singular and is never formed: the result is
    exact, without the loss of digits that square roots of singular matrices suffer. What rounding leaves below zero
    (at most about 1e-10 of the trace) is clipped to zero.

    Raises:
      ValueError: unless both are finite matrices with as many columns and at least two rows each.
    """
    x, y = check_pair(x, y)
    difference = x.mean(axis=0, dtype=np.float64) - y.mean(axis=0, dtype=np.float64)
    return _distance(difference, _root_of_rows(x), _root_of_rows(y))


def frechet_distance_gaussians(x: Gaussian, y: Gaussian) -> float:
    """The Fréchet distance from the moments of two sets, as ``gaussian`` or ``merge`` return them.

    Of full-rank covariances the same as ``frechet_distance``; of singular ones (``n <= f``, dead features) right to
    1e-7 of the trace, for their null space is known to rounding only.

    Raises:
      ValueError: if the numbers of features differ, a moment is not finite, or a set has fewer than two rows.
    """
    if x.mean.shape != y.mean.shape:
        raise ValueError(f"as many features are needed, not {x.mean.size} and {y.mean.size}")
    for g in (x, y):
        if g.cov.shape != g.mean.shape * 2:
            raise ValueError(f"{g.mean.size} features need a square covariance, not {g.cov.shape}")
        if g.n < 2:
            raise ValueError(f"a covariance needs at least 2 rows, not {g.n}")
        if not (np.isfinite(g.mean).all() and np.isfinite(g.cov).all()):
            raise ValueError("the mean and the covariance must be finite")
    return _distance(x.mean - y.mean, _root(x.cov), _root(y.cov))


def frechet_bias(cov: Float[np.ndarray, "f f"], n: float, m: float) -> float:
    """The expected Fréchet distance between two sets of ``n`` and ``m`` rows from one Gaussian of covariance ``cov``.

    ``(1/n + 1/m) (sum_i l_i + 1/2 sum_ij l_i l_j (1 + [i = j]) / (l_i + l_j))`` with the eigenvalues ``l`` of
    ``cov``: exact to the order 1/n, so for ``n`` and ``m`` well above the number of features. Print it as the floor
    beside every distance. For the identity of size d it is ``(1/n + 1/m) (d + d (d + 1) / 4)``.
    ``m=math.inf`` stands for known moments.

    Raises:
      ValueError: if ``cov`` is not a finite square matrix or ``n`` or ``m`` is not positive.
    """
    cov = check_matrix(cov, "cov").astype(np.float64)
    if cov.shape[0] != cov.shape[1]:
        raise ValueError(f"cov must be square, not {cov.shape}")
    if not (n > 0 and m > 0):
        raise ValueError(f"n and m must be positive, not {n} and {m}")
    eigenvalues = np.clip(np.linalg.eigvalsh(cov), 0, None)
    eigenvalues = eigenvalues[eigenvalues > 0]
    pairs = np.outer(eigenvalues, eigenvalues) / np.add.outer(eigenvalues, eigenvalues)
    of_means, of_covariances = eigenvalues.sum(), (pairs.sum() + np.trace(pairs)) / 2
    return float((1 / n + 1 / m) * (of_means + of_covariances))


class FrechetInfinity(NamedTuple):
    """The Fréchet distance extrapolated to infinitely many generated samples.

    Attributes:
      value: the intercept of the linear fit; it may be negative.
      standard_error: of the intercept, from the residuals of the fit alone. The subsets come from one set of
        samples, so it says how well the line fits and not how much other samples would change the value.
    """

    value: float
    standard_error: float


def frechet_infinity(
    x: Features,
    y: Features,
    *,
    seed: int,
    points: int = 15,
    progress: Callable[[int, int], None] | None = None,
) -> FrechetInfinity:
    """FD of ``x[n, f]`` to ever larger random subsets of ``y[m, f]``, fitted by a line in 1/N and read at 1/N = 0.

    Chong & Forsyth 2020 (arXiv:1911.07023). ``x``, the reference, is used whole, so what remains is the bias of its
    own finite size, ``frechet_bias(cov, len(x), math.inf)``. The sizes are equally spaced from 5,000 to ``m``; with
    fewer than 50,000 rows they start at the larger of ``m / 10`` and twice the features, for the law in 1/N holds
    only above the number of features, but at most at ``m / 2``.

    Args:
      x: the reference, ``n >= 2`` rows.
      y: the generated samples, ``m >= 40`` rows.
      seed: of the subsets, drawn without replacement and independently of each other.
      points: subsets, at least 3.
      progress: called with (subsets done, points).

    Raises:
      ValueError: on anything else.
    """
    x, y = check_pair(x, y)
    m, f = y.shape
    if m < 40 or points < 3:
        raise ValueError(
            f"needs at least 40 rows of y and 3 points, not {m} rows and {points} points"
        )
    sizes = np.linspace(min(5000, max(m / 10, min(2 * f, m / 2))), m, points).astype(int)
    rng = np.random.default_rng(seed)
    mean, root = x.mean(axis=0, dtype=np.float64), _root_of_rows(x)
    distances = np.empty(points)
    for i, size in enumerate(sizes):
        subset = y[rng.choice(m, size, replace=False)]
        difference = mean - subset.mean(axis=0, dtype=np.float64)
        distances[i] = _distance(difference, root, _root_of_rows(subset))
        if progress:
            progress(i + 1, points)
    (_, intercept), covariance = np.polyfit(1 / sizes, distances, 1, cov=True)
    return FrechetInfinity(float(intercept), math.sqrt(covariance[1, 1]))


def _distance(difference: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """FD from the difference of the means and roots ``a[f, r]``, ``b[f, s]`` of the covariances."""
    traces = np.vdot(a, a) + np.vdot(b, b)  # Tr A A' is the sum of squares
    return max(float(difference @ difference + traces - 2 * _nuclear_norm(a.T @ b)), 0.0)


def _nuclear_norm(c: np.ndarray) -> float:
    """The sum of the singular values.

    As square roots of the eigenvalues ``l`` of the smaller Gram matrix, three times faster than a singular value
    decomposition, unless small ones have lost their digits: an error ``e`` of ``l`` is one of ``e / (2 sqrt l)`` here.
    """
    eigenvalues = np.linalg.eigvalsh(c @ c.T if c.shape[0] <= c.shape[1] else c.T @ c)
    rounding = 1e-15 * max(eigenvalues[-1], np.finfo(float).tiny) if eigenvalues.size else 0.0
    roots = np.sqrt(np.maximum(eigenvalues, rounding))
    if np.sum(rounding / roots) / 2 <= 1e-10 * roots.sum():
        return np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return np.linalg.svd(c, compute_uv=False).sum()


def _root_of_rows(features: np.ndarray) -> np.ndarray:
    """``A[f, r]`` with ``A A'`` the covariance of the rows and ``r <= f``."""
    n, f = features.shape
    if n > f:
        return _root(gaussian(features).cov)
    return (features - features.mean(axis=0, dtype=np.float64)).T / math.sqrt(n - 1)


def _root(cov: np.ndarray) -> np.ndarray:
    """``A[f, r]`` with ``A A' = cov`` up to rounding: the Cholesky factor with pivoting, which finds the rank ``r``."""
    from scipy.linalg import get_lapack_funcs

    (pstrf,) = get_lapack_funcs(("pstrf",), dtype=np.float64)
    factor, order, rank, _ = pstrf(cov, lower=1)
    root = np.zeros((len(cov), rank))
    root[order - 1] = np.tril(factor)[:, :rank]
    return root
