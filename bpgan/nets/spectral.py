"""Spectral norm: kernels divided by their largest singular values, those of a network all at once.

Miyato et al. 2018, arXiv:1802.05957, Alg. 1: ``sigma(W) = u^T W v`` with ``v`` along ``W^T u`` and ``u`` along ``W v``,
one such iteration an update, from the u of the last one. Near convergence it is the largest singular value of
``W[out, rest]``, the kernel's last axis against all others; of a convolution it is that of the reshaped kernel, not the
norm of the operator. u and v are constants to differentiation, W is not: ``d sigma / d W = u v^T``. A kernel of zeros
stays as it is, and so does its u.

A layer calls ``spectral_norm`` and keeps its u. By itself it would iterate by itself, some twenty small kernels of a
GPU for every layer; ``linen_net`` calls ``normalize`` on all layers of a network before it is applied, and they find
there what they are to use.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Float

COLLECTION = "spectral"
"""Where a layer keeps its ``u[out]``."""
_READY = "normed"  # where it finds its kernel, already divided

_SPARE = 2**22
"""Zeros that a stack of matrices may have: to read them costs a GPU about as much as to launch another stack."""

Matrix = Float[Array, "rest out"]


def _scale(x: Array, axis: int | None = None) -> Array:
    """The power of two that brings the greatest number of x, along an axis or of all, to between 2 and 4; of zeros, 1.

    Squares of the product stay in the range of floats, so that no epsilon is needed, which would be a scale of its own.
    A constant to differentiation, and exact, so that it changes no digit of a quotient.
    """
    top = jnp.max(jnp.abs(lax.stop_gradient(x)), axis, keepdims=True)
    return jnp.where(top > 0, 4 * jnp.frexp(top)[0] / jnp.where(top > 0, top, 1), 1)


def unit(x: Array, axis: int | None = None) -> Array:
    """``x / |x|`` along an axis, or of all of x, whatever its size; zeros have no direction and stay."""
    x = x * _scale(x, axis)
    square = jnp.sum(jnp.square(x), axis, keepdims=True)
    return x * lax.rsqrt(jnp.where(square > 0, square, 1))


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _matrix(kernel: Array) -> Matrix:
    return kernel.reshape(-1, kernel.shape[-1])  # W^T


def _iterate(matrix: Matrix, u: Array) -> tuple[Array, Array]:
    """``v`` along ``W^T u``, then ``u`` along ``W v``."""
    v = unit(_product(matrix, u))
    new = unit(_product(v, matrix))
    return v, jnp.where(jnp.any(new != 0), new, u)


def _measure(matrix: Matrix, kept: Array, *, train: bool) -> tuple[Array, Array, Array]:
    """``sigma, v, u``. In training u is that after the iteration, otherwise ``sigma = |W^T u|`` with the u kept."""
    u = unit(kept)  # an average over steps is shorter
    v, new = _iterate(matrix, u)
    if train:
        u = new
    return _product(v, _product(matrix, u)), v, u


def measure_each(matrices: list[Matrix], kept: list[Array], *, train: bool) -> list[Any]:
    """One after the other, as a CPU is fastest at."""
    return [_measure(matrix, u, train=train) for matrix, u in zip(matrices, kept, strict=True)]


def measure_stacked(matrices: list[Matrix], kept: list[Array], *, train: bool) -> list[Any]:
    """As many at a time as fit into one stack, filled up with zeros, which change no product and no norm."""
    found: list[Any] = [None] * len(matrices)
    for group in stacks([m.shape for m in matrices], [m.dtype for m in matrices]):
        rows, columns = (max(matrices[i].shape[axis] for i in group) for axis in (0, 1))
        stack, us = [], []
        for i in group:
            r, c = matrices[i].shape
            stack.append(jnp.pad(matrices[i], ((0, rows - r), (0, columns - c))))
            us.append(jnp.pad(kept[i], (0, columns - c)))
        sigma, v, u = jax.vmap(partial(_measure, train=train))(jnp.stack(stack), jnp.stack(us))
        for n, i in enumerate(group):
            r, c = matrices[i].shape
            found[i] = sigma[n], v[n, :r], u[n, :c]
    return found


def stacks(shapes: Sequence[tuple[int, ...]], dtypes: Sequence[Any]) -> list[list[int]]:
    """Which matrices share a stack: the largest first, each in the first stack that it does not fill with zeros."""
    found: list[list[int]] = []
    for i in sorted(range(len(shapes)), key=lambda i: -shapes[i][0] * shapes[i][1]):
        for group in found:
            members = [shapes[j] for j in (*group, i)]
            padded = len(members) * max(r for r, _ in members) * max(c for _, c in members)
            if dtypes[group[0]] == dtypes[i] and padded - sum(r * c for r, c in members) <= _SPARE:
                group.append(i)
                break
        else:
            found.append([i])
    return found


@jax.custom_jvp
def _of(matrix: Matrix, sigma: Array, v: Array, u: Array) -> Array:
    """The ``sigma`` that is known already, as a function of the matrix: ``d sigma / d W = u v^T``."""
    del matrix, v, u
    return sigma


@_of.defjvp
def _of_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    _, sigma, v, u = primals
    return sigma, _product(v, _product(tangents[0], u))


def divide(
    kernels: Sequence[Array], kept: Sequence[Array], *, train: bool
) -> tuple[list[Array], list[Array]]:
    """``W / sigma(W)`` of each kernel, and the u after it.

    Args:
      kernels: of any shapes ``[..., out]``.
      kept: u of each, ``[out]``.
      train: whether the iteration starts from the u kept and leaves the new one; otherwise ``sigma = |W^T u|`` with
        the u kept, which stays.
    """
    matrices = [_matrix(kernel) for kernel in kernels]
    found = lax.platform_dependent(
        lax.stop_gradient(matrices),
        lax.stop_gradient(list(kept)),
        cpu=partial(measure_each, train=train),
        default=partial(measure_stacked, train=train),
    )
    divided, us = [], []
    for kernel, matrix, before, (sigma, v, u) in zip(kernels, matrices, kept, found, strict=True):
        sigma = _of(matrix, sigma, v, u)
        scale = _scale(sigma)  # for the derivative, which has the square of sigma
        divided.append(kernel * scale / jnp.where(sigma == 0, 1, sigma * scale))
        us.append(u if train else before)
    return divided, us


def spectral_norm(module: nn.Module, kernel: Array, *, train: bool) -> Array:
    """``W / sigma(W)`` of the kernel of a layer.

    Args:
      module: the layer, which keeps ``u[out]`` in its collection ``"spectral"``, at the start one iteration from a
        normal vector.
      kernel: its only parameter of two axes or more, perhaps times a number; then what ``normalize`` has made of that
        is taken. Otherwise it is divided here.
      train: as in ``divide``.
    """
    if module.has_variable(_READY, "kernel"):
        return module.get_variable(_READY, "kernel")

    def start() -> Array:
        # Of a kernel of low rank, such as that of a single channel, a random u may see nothing; one iteration mends it.
        matrix = lax.stop_gradient(_matrix(kernel))
        u = jax.random.normal(module.make_rng("params"), matrix.shape[1:], kernel.dtype)
        return _iterate(matrix, unit(u))[1]

    kept = module.variable(COLLECTION, "u", start)
    (divided,), (kept_now,) = divide([kernel], [kept.value], train=train)
    if train:
        kept.value = kept_now
    return divided


def normalize(variables: Mapping[str, Any], *, train: bool) -> tuple[dict[str, Any], Any]:
    """The kernels of all layers with spectral norm, divided at once.

    Args:
      variables: of a Linen module.
      train: as in ``divide``.

    Returns:
      The variables with a further collection, from which ``spectral_norm`` takes its results; and what ``updated``
      takes.
    """
    kept: dict[Any, Any] = flatten_dict(variables.get(COLLECTION, {}))
    params: dict[Any, Any] = flatten_dict(variables.get("params", {})) if kept else {}
    kernels: dict[Any, Any] = {}
    for path, parameter in params.items():
        if (*path[:-1], "u") in kept and parameter.ndim > 1:
            kernels.setdefault(path[:-1], []).append(parameter)
    # A layer of two kernels is not one of this package: it says itself what it divides.
    kernels = {path: found[0] for path, found in kernels.items() if len(found) == 1}
    if not kernels:
        return dict(variables), {}
    us = [kept[(*path, "u")] for path in kernels]
    divided, us = divide(list(kernels.values()), us, train=train)
    ready = {(*path, "kernel"): kernel for path, kernel in zip(kernels, divided, strict=True)}
    after = {(*path, "u"): u for path, u in zip(kernels, us, strict=True)}
    return {**variables, _READY: unflatten_dict(ready)}, after


def updated(collections: Mapping[str, Any], after: Mapping[Any, Array]) -> dict[str, Any]:
    """The mutable collections with every u as ``normalize`` left it."""
    if not after:
        return dict(collections)
    kept = {**flatten_dict(collections[COLLECTION]), **after}
    return {**collections, COLLECTION: unflatten_dict(kept)}
