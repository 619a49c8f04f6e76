"""Nearest neighbors between sets of features, and the metrics that count them: precision, recall, density, coverage.

All distances are Euclidean, between rows of ``[n, f]`` arrays. The device computes blocks of
``|a|^2 + |b|^2 - 2 a'b`` in float32, in bounded memory, and *only to decide which pairs can matter*: with the rounding
error bounded by ``gamma (|a|^2 + |b|^2)`` (Higham 2002, section 3.1) a lower bound of each distance tells which points
can be nearest, and pairs too close to a radius to tell are set aside. The distances of those few pairs are computed
in float64 from differences on the host. So distances are exact to float64 rounding (``nearest`` states the limit),
those of equal rows are 0, equal pairs give bitwise equal distances, and ``<`` and ``<=`` mean what they say on data
with duplicates and ties.

A point never counts as its own neighbor: the radius ``r_k(x)`` is the distance to the k-th nearest *other* row, as in
every public implementation. The implementations differ in the comparison with it, which shows on duplicates only:

- precision and recall: ``<=``, as their authors' code and torch-fidelity;
- density and coverage: ``<``, as their authors' package ``prdc`` (which uses ``<`` for precision and recall too).

``strict`` chooses. Everything here moves strongly with ``n``, ``m`` and ``k``: they are part of a value's name.
"""

import functools
import hashlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from bpgan.metrics.arrays import check_sets

Features = Float[np.ndarray, "n f"]

_TILE = 2**22  # pairs on the device at a time: 16 MiB of float32, which caches hold
_CHUNK = 2**20  # float64 numbers on the host at a time
_SPARE = 4  # candidates beyond k: nearly always enough to prove that no other point is nearer
_UNIT = 2.0**-24  # rounding of float32
_FLOOR = 1e-30  # covers underflow; rows are scaled to norms <= 1
_FAR = 1e30  # half the squared norm of a row that pads


def nearest(
    queries: Features, points: Features, k: int, *, exclude_self: bool = False
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """The ``k`` points nearest to each query, by increasing distance.

    Of points at equal distance the one with the lower index comes first; which of those that tie for the last place
    is returned is not specified. Queries for which float32 cannot prove the result (more than ``k + 4`` points within
    its rounding of the k-th: duplicates, or distances far below the norms) are searched again in float64 on the host;
    there squared distances are right to 1e-15 f of the squared norms about the mean, which matters where more than
    ``k + 4`` points are that close together without being equal.

    Args:
      queries, points: ``[q, f]`` and ``[n, f]``, any real type.
      k: neighbors, from 1 to the number of points.
      exclude_self: the queries are the points, and row ``i`` is not a neighbor of row ``i`` (equal rows are).

    Returns:
      Distances, f64[q, k], and indices of points, int64[q, k].

    Raises:
      ValueError: if a set is not a finite matrix with at least one row and one column, the columns differ in number, k
        is out of range, or ``exclude_self`` is asked of sets of different length.
    """
    queries, points = check_sets(queries, points)
    q, n = len(queries), len(points)
    if exclude_self and q != n:
        raise ValueError(f"exclude_self needs queries that are the points, not {q} and {n} rows")
    if not 1 <= k <= n - exclude_self:
        raise ValueError(f"k must be from 1 to {n - exclude_self} for {n} points, not {k}")

    count = min(k + exclude_self + _SPARE, n)
    group = math.isqrt(n // count)  # makes the two selections of _candidates equally long
    a, b = _scaled(queries, points, -n % group)
    # A lower bound of |a - b|^2 is |a|^2 - 2 gain, gain = a'b - |b|^2 / 2, with both squares shrunk. The gains are
    # one matrix product: adding a row of numbers afterwards would take as long as the product of 64 features.
    shrunk = 1 - 2 * _gamma(queries.shape[1])
    a.rows[:, -1] = 1
    b.rows[:n, -1] = -(shrunk * b.squares + _FLOOR) / 2
    b.rows[n:, -1] = -_FAR
    against = jax.device_put(b.rows)
    gains, index = np.empty((q, count)), np.empty((q, count), np.int64)
    for rows, block in _blocks(n, a.rows):
        found = _candidates(block, against, count, group)
        gains[rows], index[rows] = (np.asarray(v)[: rows.stop - rows.start] for v in found)
    distances, index = _sorted(queries, points, index, k, exclude_self)

    # Whatever is no candidate is at least as far as the lower bound of the last one.
    reach = np.sqrt(np.maximum(shrunk * a.squares - 2 * gains[:, -1], 0)) * a.scale
    unproven = np.flatnonzero((reach < distances[:, -1]) & (count < n))
    for at, candidates in _candidates_on_host(queries, points, unproven, count, exclude_self):
        distances[at], index[at] = _sorted(queries, points, candidates, k, exclude_self, at)
    return distances, index


def ball_counts(
    queries: Features, points: Features, radii: Float[np.ndarray, " n"], *, strict: bool
) -> tuple[Int[np.ndarray, " q"], Int[np.ndarray, " n"]]:
    """How many of the balls around ``points`` hold each query, and how many queries each ball holds.

    Query ``i`` is in ball ``j`` if ``|queries_i - points_j| <= radii_j``, or ``<`` if ``strict``.

    Args:
      queries, points: ``[q, f]`` and ``[n, f]``, any real type.
      radii: one per point, at least 0; those that ``nearest`` returns can be compared exactly.
      strict: whether the boundary is outside.

    Returns:
      Counts per query, int64[q], and per ball, int64[n].

    Raises:
      ValueError: if a set is not a finite matrix with at least one row and one column, the columns differ in number, or
        the radii are not one non-negative number per point.
    """
    queries, points = check_sets(queries, points)
    radii = np.asarray(radii, np.float64)
    if radii.shape != (len(points),) or not (radii >= 0).all():
        raise ValueError(f"radii must be one number >= 0 for each of {len(points)} points")

    a, b = _scaled(queries, points)
    squares = np.minimum(radii / a.scale, 4) ** 2  # no two rows are further apart than 2
    # The comparisons are made with 1e-6 to spare: rounding of the radii to float32.
    limits = (squares * (1 - 1e-6)).astype(np.float32), (squares * (1 + 1e-6)).astype(np.float32)
    against = jax.device_put((b.rows, b.squares.astype(np.float32), *limits))
    q_first, p_first = _first_equal(queries), _first_equal(points)
    per_query, per_ball = np.zeros(len(queries), np.int64), np.zeros(len(points), np.int64)
    for rows, x, x_squares in _blocks(len(points), a.rows, a.squares.astype(np.float32)):
        size = rows.stop - rows.start
        held, holds, unsure = (np.asarray(v) for v in _inside(x, x_squares, *against, size))
        per_query[rows] += held[:size]
        per_ball += holds
        i, j = np.divmod(np.flatnonzero(unsure), len(points))
        i += rows.start
        # Of sets that have collapsed to a few points nearly all pairs come here, but only a few different ones.
        pairs, which = np.unique(q_first[i] * len(points) + p_first[j], return_inverse=True)
        distances = _distances(queries, pairs // len(points), points, pairs % len(points))[which]
        inside = distances < radii[j] if strict else distances <= radii[j]
        per_query += np.bincount(i[inside], minlength=len(queries))
        per_ball += np.bincount(j[inside], minlength=len(points))
    return per_query, per_ball


class PrecisionRecall(NamedTuple):
    """``precision``: share of fakes in the reals' manifold; ``recall``: share of reals in the fakes' manifold."""

    precision: float
    recall: float


def precision_recall(
    real: Features, fake: Features, *, k: int = 3, strict: bool = False
) -> PrecisionRecall:
    """Improved precision and recall: coverage of each set by the union of the other's k-nearest-neighbor balls.

    ``precision = mean_j 1[exists i: |f_j - x_i| <= r_k(x_i)]``; recall is the same with the sets exchanged.
    Kynkaanniemi et al. 2019, arXiv:1904.06991 (VGG16 features, 50,000 of each, k = 3). Both are in [0, 1]; for equal
    distributions they are equal in expectation (for n = m), not 1. An outlier among the reals has a large ball, which
    raises precision; copies of reals have precision 1.

    Args:
      real, fake: features ``[n, f]`` and ``[m, f]``; more than k rows each. torch-fidelity 0.4 takes them in the order
        fake, real.
      k: the neighbor that sets the radius.
      strict: compare with ``<``, as ``prdc``, instead of ``<=``.

    Raises:
      ValueError: as ``nearest``.
    """
    real, fake = check_sets(real, fake)
    held_by_real, _ = ball_counts(fake, real, _radii(real, k), strict=strict)
    held_by_fake, _ = ball_counts(real, fake, _radii(fake, k), strict=strict)
    return PrecisionRecall(float(np.mean(held_by_real > 0)), float(np.mean(held_by_fake > 0)))


class DensityCoverage(NamedTuple):
    """``density``: mean number of reals' balls around a fake, over k; ``coverage``: share of them that hold a fake."""

    density: float
    coverage: float


def density_coverage(
    real: Features, fake: Features, *, k: int = 5, strict: bool = True
) -> DensityCoverage:
    """Density and coverage: precision and recall made robust to outliers, both from the balls of the reals.

    ``density = 1/(k m) sum_j sum_i 1[|f_j - x_i| < r_k(x_i)]``, ``coverage = mean_i 1[min_j |f_j - x_i| < r_k(x_i)]``.
    Naeem et al. 2020, arXiv:2002.09797 (k = 5, 10,000 of each). For equal distributions the expected density is
    ``k n / (k n) = 1`` up to the ``(n - 1)`` of leaving the point itself out, and the expected coverage is
    ``expected_coverage(n, m, k)``. Density can exceed 1 (fakes where reals are dense); coverage is at most 1.

    Args:
      real, fake: features ``[n, f]`` and ``[m, f]``; more than k reals.
      k: the neighbor that sets the radius.
      strict: compare with ``<``, as the authors' ``prdc``; False for ``<=``.

    Raises:
      ValueError: as ``nearest``.
    """
    real, fake = check_sets(real, fake)
    per_fake, per_real = ball_counts(fake, real, _radii(real, k), strict=strict)
    return DensityCoverage(float(per_fake.mean() / k), float(np.mean(per_real > 0)))


def expected_coverage(n: int, m: int, k: int = 5) -> float:
    """The expected coverage of ``n`` reals by ``m`` fakes of the same continuous distribution.

    ``1 - prod_{l=0}^{k-1} (n - 1 - l) / (n + m - 1 - l)``: the chance that of the ``n + m - 1`` other points the ``k``
    nearest are not all real. It tends to ``1 - 2^-k`` for n = m: 0.969 for k = 5. Naeem et al. 2020, arXiv:2002.09797.

    Raises:
      ValueError: unless ``1 <= k < n`` and ``m >= 1``.
    """
    if not (1 <= k < n and m >= 1):
        raise ValueError(f"1 <= k < n and m >= 1 are needed, not n = {n}, m = {m}, k = {k}")
    return 1 - math.prod((n - 1 - i) / (n + m - 1 - i) for i in range(k))


def _radii(points: Features, k: int) -> Float[np.ndarray, " n"]:
    """The distance from each point to its k-th nearest other point."""
    return nearest(points, points, k, exclude_self=True)[0][:, -1]


# --- Exact distances, on the host ---------------------------------------------------------------------------------


def _distances(x, i, y, j) -> Float[np.ndarray, " p"]:
    """``|x_i - y_j|`` of paired indices ``i[p], j[p]``, in float64; the same bits for the same two rows, always."""
    out = np.empty(len(i))
    step = max(1, _CHUNK // x.shape[1])
    for s in range(0, len(i), step):
        difference = np.subtract(x[i[s : s + step]], y[j[s : s + step]], dtype=np.float64)
        out[s : s + step] = np.einsum("pf,pf->p", difference, difference)
    return np.sqrt(out, out=out)


def _first_equal(x: Features) -> Int[np.ndarray, " n"]:
    """For each row the first row with the same bytes."""
    first = {}
    digests = (hashlib.blake2b(row, digest_size=16).digest() for row in np.ascontiguousarray(x))
    return np.array([first.setdefault(digest, i) for i, digest in enumerate(digests)])


def _sorted(queries, points, index, k: int, exclude_self: bool, at=None):
    """The ``k`` nearest of the candidates ``index[r, c]`` of the queries ``at[r]`` (all): distances and indices."""
    r, c = index.shape
    at = np.arange(r) if at is None else at
    i, j = np.repeat(at, c), index.ravel()
    distances = _distances(queries, i, points, j)
    if exclude_self:
        distances[i == j] = (
            np.inf
        )  # a query is among its own candidates if there are as many as points
    distances = distances.reshape(r, c)
    order = np.lexsort((index, distances))[:, :k]
    return np.take_along_axis(distances, order, 1), np.take_along_axis(index, order, 1)


def _candidates_on_host(queries, points, which, count: int, exclude_self: bool) -> Iterator:
    """Blocks of ``which`` queries with the ``count`` points nearest to each in float64, unsorted."""
    mean = points.mean(axis=0, dtype=np.float64)
    n, f = points.shape
    size, step = max(1, 8 * _CHUNK // n), max(1, 8 * _CHUNK // f)
    for s in range(0, len(which), size):
        at = which[s : s + size]
        a = queries[at] - mean
        squares = np.empty((len(at), n))
        for t in range(0, n, step):
            b = points[t : t + step] - mean
            squares[:, t : t + step] = np.einsum("pf,pf->p", b, b) - 2 * a @ b.T
        if exclude_self:
            squares[np.arange(len(at)), at] = np.inf
        yield at, np.argpartition(squares, count - 1, axis=1)[:, :count]


# --- The filter, on the device ------------------------------------------------------------------------------------


class _Scaled(NamedTuple):
    """Centered rows as float32 with norms of at most 1, their squared norms in float64, and the unit of length."""

    rows: np.ndarray
    squares: np.ndarray
    scale: float


def _scaled(queries: Features, points: Features, padding: int = 0) -> tuple[_Scaled, _Scaled]:
    """Both sets about the mean of the points, where squared norms are small and cancellation costs least.

    ``padding`` rows of zeros follow the points, and a column of zeros the features: the caller may fill them.
    """
    mean = points.mean(axis=0, dtype=np.float64)
    step = max(1, _CHUNK // len(mean))

    def chunks(x):
        for s in range(0, len(x), step):
            yield slice(s, min(s + step, len(x))), x[s : s + step] - mean

    def squares(x):
        return np.concatenate([np.einsum("nf,nf->n", c, c) for _, c in chunks(x)])

    p_squares = squares(points)
    q_squares = p_squares if queries is points else squares(queries)
    top = math.sqrt(max(p_squares.max(), q_squares.max()))
    # A power of two, so that scaling does not round; all rows may equal the mean.
    scale = 2.0 ** math.ceil(math.log2(top)) if top > 0 else 1.0

    def scaled(x, squares, padding):
        rows = np.zeros((len(x) + padding, len(mean) + 1), np.float32)
        for where, centered in chunks(x):
            np.multiply(centered, 1 / scale, out=rows[where, :-1], casting="same_kind")
        return _Scaled(rows, squares / scale**2, scale)

    return scaled(queries, q_squares, 0), scaled(points, p_squares, padding)


def _gamma(f: int) -> float:
    """``e`` such that squared distances of ``f`` features from float32 rows are right to ``e (|a|^2 + |b|^2)``.

    An inner product in any order of summation is right to ``f u / (1 - f u)`` of ``|a| |b| <= (|a|^2 + |b|^2) / 2``;
    16 more units cover the rounding of the rows, of the squares, and of what is done with them.
    """
    return (f + 16) * _UNIT / (1 - (f + 16) * _UNIT)


def _blocks(n: int, *arrays: np.ndarray) -> Iterator:
    """Blocks of rows of the arrays for ``n`` points, all padded to one length, so that one program serves all."""
    length = len(arrays[0])
    limit = max(1, _TILE // n)
    size = math.ceil(length / math.ceil(length / limit))
    for start in range(0, length, size):
        rows = slice(start, min(start + size, length))
        missing = size - (rows.stop - rows.start)
        yield rows, *(_padded(x[rows], missing) for x in arrays)


def _padded(x: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(x, [(0, rows)] + [(0, 0)] * (x.ndim - 1)) if rows else x


def _products(a, b):
    # Without a precision, GPUs and TPUs multiply float32 with 8 to 11 bits.
    return jnp.dot(a, b.T, precision=lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _candidates(queries, points, count: int, group: int):
    """The ``count`` largest products of each query with the points: values and indices of points.

    They lie in the ``count`` groups of consecutive points with the largest maxima; a maximum is much cheaper than a
    selection.
    """
    gains = _products(queries, points).reshape(len(queries), -1, group)
    _, groups = lax.top_k(jnp.max(gains, axis=2), count)
    members = jnp.take_along_axis(gains, groups[:, :, None], axis=1).reshape(len(queries), -1)
    values, places = lax.top_k(members, count)
    return values, jnp.take_along_axis(groups, places // group, axis=1) * group + places % group


@jax.jit
def _inside(queries, q_squares, points, p_squares, inner, outer, size):
    """Of the first ``size`` queries: balls that surely hold each, queries surely in each ball, and pairs to decide."""
    norms = q_squares[:, None] + p_squares[None, :]
    squares = norms - 2 * _products(queries, points)
    margin = _gamma(queries.shape[1]) * norms + _FLOOR
    counted = jnp.arange(len(queries))[:, None] < size
    inside = counted & (squares + margin < inner[None, :])
    unsure = counted & ~inside & (squares - margin <= outer[None, :])
    return jnp.sum(inside, axis=1), jnp.sum(inside, axis=0), unsure
