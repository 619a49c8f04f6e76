"""Winograd's F(2x2, 3x3) for XLA:CPU: 3x3 convolutions of stride 1 by 16 products in place of 36.

Lavin and Gray 2016, arXiv:1509.09308. Each square of 2x2 results sees a tile d of 4x4 pixels and is

    y = A^T [(G w G^T) * (B^T d B)] A,

where the product ``*`` of 4x4 numbers sums over channels: 16 matrix products for all tiles of some examples. The
kernel gradient is the derivative of that, ``w = G^T [(B^T d B) * (A y A^T)] G``.

The transforms are sums and halvings. Products of sums round more than sums of products: errors are about 1e-6 of the
largest result in float32, a few times those of the plain form.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

_B = np.array([[1, 0, 0, 0], [0, 1, -1, 1], [-1, 1, 1, 0], [0, 0, 0, -1]])
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_A = np.array([[1, 0], [1, 1], [1, -1], [0, -1]])

Pair = tuple[int, int]


def kernel_tiles(w: Array) -> Array:
    """``G w G^T``: ``[3, 3, c, o] -> [16, c, o]``."""
    return _both(_G, w).reshape(16, *w.shape[2:])


def conv(x: Array, u: Array, *, padding: Any, size: Any, precision: Any) -> Array:
    """The convolution of stride 1 by the kernel whose tiles are u.

    Args:
      x: ``[b, h, w, c]``.
      u: ``[16, c, o]``, of ``kernel_tiles``.
      padding: zeros before the two spatial axes of x, and any after; size says how many.
      size: of the result ``[b, *size, o]``.
    """
    b, o = x.shape[0], u.shape[2]
    p, q = (-(-n // 2) for n in size)
    v = _image_tiles(x, (p, q), padding)
    y = lax.dot_general(v, u, (((2,), (1,)), ((0,), (0,))), precision=precision)
    y = _parts(_A.T, y.reshape(4, 4, b, p, q, o))
    y = jnp.stack([jnp.stack(row, 3) for row in y], 2)
    return y.reshape(b, 2 * p, 2 * q, o)[:, : size[0], : size[1]]


def weight_grad(x: Array, g: Array, *, padding: Any, precision: Any) -> Array:
    """``[16, c, o]`` from images and responses: the gradient of the kernel tiles."""
    b, p, q, o = g.shape
    p, q = -(-p // 2), -(-q // 2)
    g = jnp.pad(g, ((0, 0), (0, 2 * p - g.shape[1]), (0, 2 * q - g.shape[2]), (0, 0)))
    g = g.reshape(b, p, 2, q, 2, o).transpose(2, 4, 0, 1, 3, 5)
    tiles = _stack(_parts(_A, g)).reshape(16, -1, o)
    v = _image_tiles(x, (p, q), padding)
    return lax.dot_general(v, tiles, (((1,), (1,)), ((0,), (0,))), precision=precision)


def of_kernel_tiles(u: Array) -> Array:
    """``G^T u G``: ``[16, c, o] -> [3, 3, c, o]``, the adjoint of ``kernel_tiles``."""
    return _both(_G.T, u.reshape(4, 4, *u.shape[1:]))


def _image_tiles(x: Array, tiles: Pair, padding: Any) -> Array:
    """``B^T d B`` for the overlapping 4x4 tiles d of x: ``[16, b * tiles, c]``."""
    zero = jnp.zeros((), x.dtype)
    pads = [
        (lo, 2 * n + 2 - lo - length, 0)
        for n, (lo, _), length in zip(tiles, padding, x.shape[1:3], strict=True)
    ]
    x = lax.pad(x, zero, ((0, 0, 0), *pads, (0, 0, 0)))
    b, _, _, c = x.shape
    p, q = tiles

    def pixel(i: int, j: int) -> Array:
        """Pixel i, j of every tile."""
        end = (b, i + 2 * p - 1, j + 2 * q - 1, c)
        return lax.slice(x, (0, i, j, 0), end, (1, 2, 2, 1))

    pixels = [[pixel(i, j) for j in range(4)] for i in range(4)]
    return _stack(_parts(_B.T, pixels)).reshape(16, -1, c)


def _both(m: np.ndarray, t: Array) -> Array:
    """``m t m^T`` over the first two axes of t."""
    return _stack(_parts(m, t))


def _stack(t: Sequence[Sequence[Array]]) -> Array:
    return jnp.stack([jnp.stack(row) for row in t])


def _parts(m: np.ndarray, t: Any) -> list[list[Array]]:
    """``m t m^T`` of a matrix t of arrays, by sums of a few of them."""
    n = range(m.shape[1])
    halves = [[_combine(row, [t[i][j] for i in n]) for j in n] for row in m]  # m t
    return [[_combine(row, half) for row in m] for half in halves]


def _combine(factors: np.ndarray, terms: Sequence[Array]) -> Array:
    """The sum of arrays times factors; zeros are left out, and ones not multiplied."""
    scaled = [
        term if factor == 1 else float(factor) * term
        for factor, term in zip(factors, terms, strict=True)
        if factor
    ]
    return functools.reduce(operator.add, scaled)
