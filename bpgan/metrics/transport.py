"""The cheapest maps between distributions, where they are known: what a generator that moves its latents may reach.

Of all maps T that take latents z to the data, one has the least mean of ``|T(z) - z|^2``, the squared Wasserstein
distance W2^2; it is the gradient of a convex function (Brenier 1991). In one dimension it is the increasing map,
between Gaussians it is linear, and between as many points of either kind it is an assignment.
"""

import numpy as np
from jaxtyping import Float


def normal_quantiles(n: int) -> Float[np.ndarray, " n"]:
    """The middles of n equally likely parts of N(0, 1), in order."""
    from scipy.special import ndtri

    return ndtri((np.arange(n) + 0.5) / n)


def monotone_map(
    z: Float[np.ndarray, " n"], centers: Float[np.ndarray, " k"], std: float
) -> Float[np.ndarray, " n"]:
    """``F^-1(Phi(z))``: the increasing map of N(0, 1) to equally likely ``N(center, std^2)`` on a line.

    Phi and F are the distribution functions. F is inverted by bisection, to rounding.
    """
    from scipy.special import ndtr

    share = ndtr(np.asarray(z, np.float64))
    centers = np.asarray(centers, np.float64)
    low = np.full(share.shape, centers.min() - 40 * std)
    high = np.full(share.shape, centers.max() + 40 * std)
    for _ in range(200):
        middle = (low + high) / 2
        below = ndtr((middle[..., None] - centers) / std).mean(-1) < share
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def gaussian_map(
    source: Float[np.ndarray, "d d"], target: Float[np.ndarray, "d d"]
) -> Float[np.ndarray, "d d"]:
    """``A = S^(-1/2) (S^(1/2) T S^(1/2))^(1/2) S^(-1/2)``: the cheapest linear map with ``A S A' = T`` is ``z -> A z``.

    Args:
      source, target: S and T, covariances of full rank.
    """
    root = _root(source)
    inverse = np.linalg.inv(root)
    return inverse @ _root(root @ target @ root) @ inverse


def _root(matrix: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T


def squared_distance(x: Float[np.ndarray, "n ..."], z: Float[np.ndarray, "n ..."]) -> float:
    """``mean_i |x_i - z_i|^2``, summed over the numbers of a sample: what a map with ``x = G(z)`` costs."""
    x, z = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (x, z))
    return float(np.square(x - z).sum(1).mean())


def assigned_distance(x: Float[np.ndarray, "n ..."], z: Float[np.ndarray, "n ..."]) -> float:
    """``squared_distance`` after the best assignment of the x to the z: no map with these outputs costs less.

    Of points drawn from two distributions it tends to W2^2, slowly in many dimensions. The time grows with ``n^3``:
    a second or so for 2000.
    """
    from scipy.optimize import linear_sum_assignment

    x, z = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (x, z))
    squared = np.square(x).sum(1)[:, None] + np.square(z).sum(1) - 2 * x @ z.T
    rows, columns = linear_sum_assignment(squared)
    return float(squared[rows, columns].mean())
