"""How a generator maps the space of its latents: paths through it, how fast samples change on them, and its Jacobian.

``G`` is any function ``z[n, ...] -> x[n, ...]`` that takes each row by itself, as every generator of bpgan does when it
draws samples. Derivatives are exact (``jax.jvp``): a difference of two samples a small step apart is lost in the
rounding of float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from bpgan.types import PRNG, UserError, counted

Function = Callable[[Any], Any]
Path = Callable[..., Any]
"""``path(a[n, ...], b[n, ...], t) -> z[n, ...]``, a at t = 0 and b at t = 1; ``t`` is a number or one for each row."""

_STRAIGHT = 4.5e-4  # sines of angles whose cosine is, in absolute value, above 1 - 1e-7
_DENSE = 1 << 27  # numbers of the largest Jacobian that is held at once: 512 MiB
_BLOCK = 16  # directions that are pushed through G at once


# Paths --------------------------------------------------------------------------------------------------------------


def _namespace(*arrays: Any) -> Any:
    """NumPy of NumPy's arrays, which keeps their float64, and jax.numpy where one is JAX's."""
    return jnp if any(isinstance(x, jax.Array) for x in arrays) else np


def _by_row(t: Any, like: Any) -> Any:
    """``t`` so that it broadcasts against rows: a number as it is, of ``[n]`` one for each row."""
    return t if np.ndim(t) == 0 else t.reshape(-1, *[1] * (like.ndim - 1))


def _check_ends(a: Any, b: Any, t: Any) -> None:
    if a.shape != b.shape or a.ndim < 2:
        reason = f"must be [n, ...] with one shape, not {list(a.shape)} and {list(b.shape)}"
        raise UserError(f"the ends of a path {reason}")
    if np.ndim(t) and np.shape(t) != (len(a),):
        raise UserError(f"is {list(np.shape(t))}, must be [{len(a)}] or a number", argument="t")


def lerp(a: Float[Any, "n ..."], b: Float[Any, "n ..."], t: Any) -> Any:
    """The point at t of the straight line from a to b: ``(1 - t) a + t b``, for each row.

    Halfway between independent normal latents it is shorter than they are by the factor ``sqrt(1/2)``, where a
    generator was not trained.
    """
    _check_ends(a, b, t)
    t = _by_row(t, a)
    return (1 - t) * a + t * b


def slerp(a: Float[Any, "n ..."], b: Float[Any, "n ..."], t: Any) -> Any:
    """The point at t of the arc from a to b: ``sin((1-t) w) / sin w  a + sin(t w) / sin w  b``, w the angle between.

    Normal latents in many dimensions lie near a sphere, and so does this path, which a straight line does not (White
    2016, arXiv:1609.04468; Shoemake 1985, doi:10.1145/325334.325242). The rows are divided by their lengths only to
    find the angle. Where it is 0 or half a turn (a cosine within 1e-7 of 1 or -1), or one of the rows is 0, the
    straight line is taken.

    Args:
      a, b: the ends; of NumPy's arrays the result is NumPy's, in their precision, else it is JAX's and differentiable.
      t: one number, or one for each row.

    Raises:
      UserError: if the shapes do not fit.

    >>> slerp(np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]]), 0.5).round(4)
    array([[0.7071, 1.4142]])
    """
    _check_ends(a, b, t)
    xp, t = _namespace(a, b, t), _by_row(t, a)

    def length(x: Any) -> Any:
        return xp.sqrt(xp.sum(xp.square(x), axis=tuple(range(1, a.ndim)), keepdims=True))

    sizes = length(a), length(b)
    zero = (sizes[0] == 0) | (sizes[1] == 0)
    u, v = (x / xp.where(zero, 1, size) for x, size in zip((a, b), sizes, strict=True))
    # An arc cosine would lose half of the digits of small angles.
    angle = 2 * xp.arctan2(length(u - v), length(u + v))
    straight = zero | (xp.sin(angle) < _STRAIGHT)
    angle = xp.where(straight, 1, angle)
    first, second = (xp.sin(part * angle) / xp.sin(angle) for part in (1 - t, t))
    return xp.where(straight, 1 - t, first) * a + xp.where(straight, t, second) * b


class PathLength(NamedTuple):
    """How fast samples change along paths.

    Attributes:
      mean: of ``each``: the perceptual path length.
      standard_error: of the mean.
      each: ``[n]``, the squared speed of each path at its point.
    """

    mean: float
    standard_error: float
    each: Float[np.ndarray, " n"]

    @classmethod
    def of(cls, each: Any) -> "PathLength":
        """Of the squared speeds of all paths, which may have been computed in parts."""
        each = np.asarray(each, np.float64)
        return cls(float(each.mean()), float(each.std(ddof=1)) / math.sqrt(len(each)), each)


def path_length(
    G: Function,
    features: Function | None,
    z0: Float[Any, "n ..."],
    z1: Float[Any, "n ..."],
    t: Float[Any, " n"],
    path: Path = slerp,
) -> PathLength:
    """The perceptual path length, ``E |d/dt features(G(path(z0, z1, t)))|^2``, of infinitely small steps.

    Karras et al. 2019, arXiv:1812.04948, Sec. 4.1, whose ``E d(G(z(t)), G(z(t + e))) / e^2`` with ``e = 1e-4`` it is
    the limit of, for a distance d that is the squared one of features. In float32 their difference is rounding: here
    one ``jax.jvp`` gives the speed itself. Of ``G(z) = W z``, normal latents, straight lines and pixels it is
    ``2 |W|_F^2``.

    Args:
      G: ``z[n, ...] -> x[n, ...]``.
      features: ``x[n, ...] -> f[n, ...]``; None: the pixels.
      z0, z1: the ends of the paths.
      t: where on each path; uniform in [0, 1] for the paper's.
      path: ``slerp`` for normal latents, ``lerp`` for styles.

    Raises:
      UserError: if the shapes do not fit, or for fewer than two paths.
    """
    z0, z1, t = map(jnp.asarray, (z0, z1, t))
    if t.ndim != 1 or len(t) < 2:
        raise UserError(f"is {list(t.shape)}, must be [n], at least 2", argument="t")
    _check_ends(z0, z1, t)

    @jax.jit
    def speeds(z0: Array, z1: Array, t: Array) -> Array:
        def seen(t: Array) -> Array:
            x = G(path(z0, z1, t))
            return features(x) if features else x

        _, speed = jax.jvp(seen, (t,), (jnp.ones_like(t),))
        return jnp.sum(jnp.square(speed.reshape(len(t), -1)), axis=1)

    return PathLength.of(speeds(z0, z1, t))


# The Jacobian -------------------------------------------------------------------------------------------------------


class Products(NamedTuple):
    """The products of a Jacobian ``J`` and of its transpose, of which no entry is ever held.

    Attributes:
      push: ``v -> J v``. pull: ``u -> J' u``.
    """

    push: Function
    pull: Function

    @classmethod
    def of(cls, f: Function, at: Any) -> "Products":
        """Those of a function at a point."""
        _, push = jax.linearize(f, at)
        transposed = jax.linear_transpose(push, at)
        return cls(push, lambda u: transposed(u)[0])

    def square(self, v: Any) -> Any:
        """``J' J v``."""
        return self.pull(self.push(v))


class Krylov(NamedTuple):
    """What ``krylov`` finds: the operator in the basis is tridiagonal, with ``diagonal`` and ``beside``.

    Attributes:
      diagonal: ``[m, r]``. beside: ``[m, r]``, the last of which leads out of the basis. basis: ``[m, r, d]``.
    """

    diagonal: Any
    beside: Any
    basis: Any

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Approximate eigenvalues ``[r, m]``, the largest first, and unit eigenvectors ``[r, m, d]``; on the host."""
        diagonal, beside, basis = (np.asarray(each, np.float64) for each in self)
        matrix = np.zeros((diagonal.shape[1], len(diagonal), len(diagonal)))
        i = np.arange(len(diagonal))
        matrix[:, i, i] = diagonal.T
        matrix[:, i[1:], i[:-1]] = matrix[:, i[:-1], i[1:]] = beside[:-1].T
        values, vectors = np.linalg.eigh(matrix)
        vectors = np.einsum("rmk,mrd->rkd", vectors, basis)[:, ::-1]
        return values[:, ::-1], vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def krylov(
    multiply: Function, shape: tuple[int, int], iterations: int, key: PRNG, dtype: Any = None
) -> Krylov:
    """Lanczos's basis of symmetric operators, one for each row: ``multiply(v[r, d]) -> [r, d]``.

    Lanczos 1950. Each new vector is orthogonalized twice against all before it ("twice is enough": Giraud et al. 2005).
    Where a Krylov space is exhausted, it goes on from a random vector outside it, so that with as many iterations as
    dimensions all eigenvalues are found, with their multiplicities.

    Args:
      multiply: the operators. shape: ``(r, d)``, of v.
      iterations: ``m``, at most d.
      key: of the random starts. dtype: of v.
    """
    rows, dimensions = shape
    starts = jax.random.normal(key, (iterations, rows, dimensions), dtype or jnp.float32)
    einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    rounding = 10 * math.sqrt(dimensions) * float(jnp.finfo(starts.dtype).eps)

    def unit(v: Array, norm: Array) -> Array:
        return v / jnp.where(norm == 0, 1, norm)[:, None]

    def outside(v: Array, basis: Array) -> Array:
        for _ in range(2):  # the vectors still to come are zero
            v = v - einsum("mr,mrd->rd", einsum("mrd,rd->mr", basis, v), basis)
        return v

    def extend(carry: Any, step: Any) -> tuple[Any, Any]:
        basis, largest = carry
        i, start = step
        v = multiply(basis[i])
        diagonal = einsum("rd,rd->r", basis[i], v)
        largest = jnp.maximum(
            largest, jnp.linalg.norm(v, axis=-1)
        )  # a lower bound of the operator's norm
        v = outside(v, basis)
        beside = jnp.linalg.norm(v, axis=-1)
        exhausted = beside <= rounding * largest
        fresh = outside(start, basis)
        v = jnp.where(
            exhausted[:, None], unit(fresh, jnp.linalg.norm(fresh, axis=-1)), unit(v, beside)
        )
        basis = basis.at[i + 1].set(v, mode="drop")  # the last one leads out of it
        return (basis, largest), (diagonal, jnp.where(exhausted, 0, beside))

    first = unit(starts[0], jnp.linalg.norm(starts[0], axis=-1))
    basis = jnp.zeros_like(starts).at[0].set(first)
    steps = jnp.arange(iterations), jnp.roll(starts, -1, axis=0)
    nothing = jnp.zeros(rows, starts.dtype)
    (basis, _), (diagonal, beside) = lax.scan(extend, (basis, nothing), steps)
    return Krylov(diagonal, beside, basis)


def enough(k: int, dimensions: int, iterations: int | None = None) -> int:
    """Iterations that find k eigenvectors; the default is ``4 k + 32``, at most all dimensions.

    Raises:
      UserError: for more directions than dimensions, or fewer iterations than directions.
    """
    if not 1 <= k <= dimensions:
        reason = f"must be from 1 to {dimensions}, the dimensions of `z`"
        raise UserError(reason, argument="k", value=k)
    if iterations is not None and iterations < k:
        raise UserError(f"must be at least `k={k}`", argument="iterations", value=iterations)
    return min(dimensions, 4 * k + 32 if iterations is None else iterations)


class Spectrum(NamedTuple):
    """The singular values of ``dG/dz`` at n points, and how many directions they say that samples move in.

    Attributes:
      values: ``[n, k]``, the largest first: how far a sample moves for a unit step.
      dimension: ``[n]``, the participation ratio ``(sum s^2)^2 / sum s^4`` of all of them: d if they are equal, 1 if
        one is far above the others.
      count: ``[n]``, how many of ``values`` are above ``threshold`` times the largest.
      condition: ``[n]``, the largest over the smallest of all; NaN where only the top ones are known.
      threshold: of ``count``.
    """

    values: Float[np.ndarray, "n k"]
    dimension: Float[np.ndarray, " n"]
    count: np.ndarray
    condition: Float[np.ndarray, " n"]
    threshold: float


def jacobian_spectrum(
    G: Function,
    z: Float[Any, "n ..."],
    k: int | None = None,
    key: PRNG | None = None,
    *,
    threshold: float = 0.01,
    iterations: int | None = None,
) -> Spectrum:
    """The singular values of ``dG/dz`` at each point, the local dimension and the condition number.

    Args:
      G: ``z[n, ...] -> x[n, ...]``, each row by itself.
      z: the points.
      k: None: all singular values, of the Jacobian itself, ``[n, x, z]`` numbers. Else the top k by Lanczos, for large
        networks: no Jacobian is held, and the sums of ``dimension`` are exact by one product with J and one with its
        transpose for each dimension of z.
      key: of Lanczos's start.
      threshold: of ``count``, as a share of the largest.
      iterations: of Lanczos; by default ``4 k + 32``.

    Raises:
      UserError: if k is above the dimensions, or the Jacobian is too large to be held.
    """
    z = jnp.asarray(z)
    n, dimensions = len(z), math.prod(z.shape[1:])
    if k is None:
        values = _all_values(G, z)
        squares = np.square(values)
        dimension = _ratio(squares.sum(1), np.square(squares).sum(1))
        with np.errstate(divide="ignore", invalid="ignore"):
            condition = values[:, 0] / values[:, -1]
    else:
        steps = enough(k, dimensions, iterations)

        @jax.jit
        def run(z: Array, key: PRNG) -> tuple[Krylov, Array, Array]:
            products = _by_point(G, z)
            found = krylov(products.square, (n, dimensions), steps, key, z.dtype)
            return found, *_sums(products, jnp.zeros((n, dimensions), z.dtype))

        found, once, twice = run(z, jax.random.key(0) if key is None else key)
        values = np.sqrt(np.maximum(found.ritz()[0][:, :k], 0))
        dimension = _ratio(*(np.asarray(each, np.float64) for each in (once, twice)))
        condition = np.full(n, np.nan)
    count = (values > threshold * values[:, :1]).sum(1)
    return Spectrum(values, dimension, count, condition, threshold)


def _ratio(once: np.ndarray, twice: np.ndarray) -> np.ndarray:
    """The participation ratio; 0 where nothing moves."""
    return np.divide(once**2, twice, out=np.zeros_like(twice), where=twice > 0)


def _by_point(G: Function, z: Any) -> Products:
    """Products of the Jacobians of all points at once, ``[n, d] -> [n, x]`` and back."""
    flat = jnp.zeros((len(z), math.prod(z.shape[1:])), z.dtype)
    return Products.of(lambda v: G(z + v.reshape(z.shape)).reshape(len(z), -1), flat)


def each_dimension(f: Function, like: Array) -> Any:
    """``f(e)`` of every unit vector, repeated to the shape of ``like[..., d]``, stacked; a few at once."""
    units = jnp.eye(like.shape[-1], dtype=like.dtype)
    return lax.map(lambda e: f(jnp.broadcast_to(e, like.shape)), units, batch_size=_BLOCK)


def _sums(products: Products, like: Array) -> tuple[Array, Array]:
    """``sum s^2 = |J|_F^2`` and ``sum s^4 = |J' J|_F^2`` of each point."""

    def columns(e: Array) -> tuple[Array, Array]:
        pushed = products.push(e)
        return jnp.sum(jnp.square(pushed), 1), jnp.sum(jnp.square(products.pull(pushed)), 1)

    once, twice = each_dimension(columns, like)
    return once.sum(0), twice.sum(0)


def _all_values(G: Function, z: Any) -> np.ndarray:
    """All singular values of each point's Jacobian, in float64 from its entries."""
    n, dimensions = len(z), math.prod(z.shape[1:])
    size = dimensions * math.prod(jax.eval_shape(G, z).shape)
    if size > _DENSE:
        reason = f"is needed: the Jacobians have {counted(size, 'number')}, at most {_DENSE:,}"
        raise UserError(reason, argument="k")

    @jax.jit
    def jacobians(z: Array) -> Array:
        push = _by_point(G, z).push
        return each_dimension(push, jnp.zeros((n, dimensions), z.dtype))

    found = np.asarray(jacobians(z), np.float64).transpose(1, 2, 0)  # [n, x, d]
    values = np.linalg.svd(found, compute_uv=False)
    return np.pad(values, ((0, 0), (0, dimensions - values.shape[1])))
