"""Gradient checking: any gradient against central differences."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float


class GradientCheck(NamedTuple):
    """What ``check_gradients`` found.

    Attributes:
      max_relative_error: the largest ``|analytic - numeric| / max(|analytic|, |numeric|)`` of all
        directions. Derivatives below a hundredth of the largest are measured against that
        hundredth, because the rounding of a difference has the size of the large ones.
      analytic, numeric: float64 ``[m]``, the derivatives along each of the directions.
    """

    max_relative_error: float
    analytic: np.ndarray
    numeric: np.ndarray


def check_gradients(
    fn: Callable[..., Float[Array, ""]],
    *args: Any,
    gradient: Callable[..., Any] | None = None,
    directions: int | None = None,
    step: float | None = None,
    seed: int = 0,
) -> GradientCheck:
    """Compares a gradient with central differences ``(fn(x + h e) - fn(x - h e)) / 2h``.

    Args:
      fn: scalar function of ``args``, traceable by JAX and deterministic.
      *args: pytrees of floating-point arrays (close over others), away from kinks such as relu's.
      gradient: ``gradient(*args)`` -> one gradient per argument, a tuple. Default: ``jax.grad`` of
        ``fn``, which runs hand-written rules where ``fn`` has them.
      directions: number of random unit directions ``e``. Default: every coordinate if there are at
        most 512, otherwise 16 random directions.
      step: ``h = step * max(1, |<x, e>|)``. Default: the cube root of the machine epsilon, where
        truncation ``h^2`` balances rounding ``eps / h``; a right gradient then has an error of
        about 1e-9 in float64 and 1e-3 in float32.
      seed: of the directions.

    Raises:
      ValueError: ``fn`` is not scalar, or the gradient differs from ``args`` in tree or shapes.

    A right and a wrong gradient of ``sum tanh(w)``:

    >>> def loss(w):
    ...     return jnp.sum(jnp.tanh(w))
    >>> def wrong(w):
    ...     return (1 - jnp.tanh(w),)
    >>> w = jnp.array([-0.5, 0.2, 1.0])
    >>> check_gradients(loss, w).max_relative_error < 1e-3
    True
    >>> check_gradients(loss, w, gradient=wrong).max_relative_error > 0.1
    True
    """
    gradients = (gradient or jax.grad(fn, argnums=tuple(range(len(args)))))(*args)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (tuple(gradients), args)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"gradient has shapes {shapes[0]}, the arguments have {shapes[1]}")
    x, unravel = ravel_pytree(args)
    if directions is None and x.size <= 512:
        e = np.eye(x.size)
    else:
        e = np.random.default_rng(seed).normal(size=(directions or 16, x.size))
        e /= np.linalg.norm(e, axis=1, keepdims=True)
    e = e.astype(x.dtype)
    relative_step = float(jnp.finfo(x.dtype).eps) ** (1 / 3) if step is None else step

    def difference(e):
        h = relative_step * jnp.maximum(1.0, jnp.abs(jnp.dot(x, e)))
        ahead, behind = fn(*unravel(x + h * e)), fn(*unravel(x - h * e))
        if ahead.shape:
            raise ValueError(f"fn must return a scalar, not an array of shape {ahead.shape}")
        return (ahead - behind) / (2 * h)

    numeric = np.asarray(lax.map(difference, e), np.float64)
    analytic = e @ np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradients)], dtype=float)
    size = np.maximum(np.abs(analytic), np.abs(numeric))
    size = np.maximum(size, 0.01 * np.max(size))
    # 0 / 0 is agreement. A NaN stays one, and so fails every comparison with a tolerance.
    error = np.abs(analytic - numeric) / np.where(size == 0, 1.0, size)
    return GradientCheck(float(np.max(error)), analytic, numeric)
