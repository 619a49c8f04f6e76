"""Images twice as large and half as large, by the filters of the architectures; and images as patches.

============  ======================  ======================  =======================
filter        twice as large          half as large           edges
============  ======================  ======================  =======================
[1, 1]        ``nearest2``            ``downsample2``         each pixel by itself
[1, 3, 3, 1]  ``upsample2``           ``downsample1331``      repeated
[1, 2, 1]     ``upsample121``         ``downsample121``       zero outside
============  ======================  ======================  =======================

All are sums of shifted copies; none is a convolution, an indexing or a product with a dense matrix. ``upsample2`` is a
primitive: its adjoint has a form of its own on a CPU.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad
from jaxtyping import Array, Float

from bpgan.nets import primitives
from bpgan.types import Images


def nearest2(x: Images) -> Images:
    """``[b, h, w, c] -> [b, 2h, 2w, c]``: every pixel becomes a 2x2 square."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x.reshape(b, h, 1, w, 1, c), (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


def downsample2(x: Images) -> Images:
    """``[b, 2h, 2w, c] -> [b, h, w, c]``: the mean of each 2x2 square."""
    b, h, w, c = x.shape
    if h % 2 or w % 2:
        raise ValueError(f"downsample2: {h}x{w} cannot be halved")
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def _upsample2(x: Array) -> Array:
    for axis in (1, 2):
        n = x.shape[axis]
        # Not jnp.pad(mode="edge"), whose derivative is ten times slower on CPU.
        first, last = (lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, n - 1))
        before = lax.concatenate([first, lax.slice_in_dim(x, 0, n - 1, axis=axis)], axis)
        after = lax.concatenate([lax.slice_in_dim(x, 1, n, axis=axis), last], axis)
        pairs = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    return x


def _upsample2_adjoint(y: Array) -> Array:
    b, h, w, c = y.shape
    x = jax.ShapeDtypeStruct((b, h // 2, w // 2, c), y.dtype)
    return jax.linear_transpose(_upsample2, x)(y)[0]


def _upsample2_again(x: Array) -> Array:
    b, h, w, c = x.shape
    y = jax.ShapeDtypeStruct((b, 2 * h, 2 * w, c), x.dtype)
    return jax.linear_transpose(_upsample2_adjoint, y)(x)[0]


def _cpu_upsample2_adjoint(y: Array) -> Array:
    """``x[i] = (y[2i-1] + 3 y[2i] + 3 y[2i+1] + y[2i+2]) / 4`` per axis, the edges repeated."""
    for axis in (1, 2):
        y = _blur_half(y, axis, 0.25, 0.75)
    return y


# Closed under transposition, so that on a CPU derivatives of every order are one of two forms: the adjoint that
# autodiff finds, sums of padded pieces, takes XLA:CPU more than twice as long. Other platforms get what autodiff finds,
# which for the transpose of the adjoint is not what ``_upsample2`` says.
_upsample2_p = primitives.define("upsample2", _upsample2, _upsample2)
_upsample2_adjoint_p = primitives.define(
    "upsample2_adjoint", _upsample2_adjoint, _cpu_upsample2_adjoint
)
_upsample2_again_p = primitives.define("upsample2_again", _upsample2_again, _upsample2)
ad.deflinear2(_upsample2_p, lambda y, x: [_upsample2_adjoint_p.bind(y)])
ad.deflinear2(_upsample2_adjoint_p, lambda x, y: [_upsample2_again_p.bind(x)])
ad.deflinear2(_upsample2_again_p, lambda y, x: [_upsample2_adjoint_p.bind(y)])


def upsample2(x: Images) -> Images:
    """``[b, h, w, c] -> [b, 2h, 2w, c]``, bilinear with half-pixel centers.

    Each output pixel lies a quarter of a pixel off an input pixel, so per axis
    ``y[2i] = (x[i-1] + 3 x[i]) / 4``, ``y[2i+1] = (3 x[i] + x[i+1]) / 4``, the edge repeated. The
    same as ``jax.image.resize(x, ..., "bilinear")``, which multiplies by dense ``[h, 2h]``
    matrices.
    """
    return _upsample2_p.bind(x)


def _blur_half(x: Array, axis: int, outer: float, inner: float) -> Array:
    """``y[i] = outer (x[2i-1] + x[2i+2]) + inner (x[2i] + x[2i+1])`` along an axis, the edges repeated."""
    n = x.shape[axis] // 2
    pairs = x.reshape(*x.shape[:axis], n, 2, *x.shape[axis + 1 :])
    even, odd = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    first, last = (
        lax.slice_in_dim(even, 0, 1, axis=axis),
        lax.slice_in_dim(odd, n - 1, n, axis=axis),
    )
    before = lax.concatenate([first, lax.slice_in_dim(odd, 0, n - 1, axis=axis)], axis)
    after = lax.concatenate([lax.slice_in_dim(even, 1, n, axis=axis), last], axis)
    return outer * (before + after) + inner * (even + odd)


def downsample1331(x: Images) -> Images:
    """``[b, 2h, 2w, c] -> [b, h, w, c]``, a quarter of the adjoint of ``upsample2``.

    Per axis ``y[i] = (x[2i-1] + 3 x[2i] + 3 x[2i+1] + x[2i+2]) / 8``, the edges repeated.
    """
    for axis in (1, 2):
        x = _blur_half(x, axis, 0.125, 0.375)
    return x


def _filter2(x: Images, axis: int) -> Images:
    """``y[2i] = (x[i-1] + x[i]) / 2, y[2i+1] = x[i]`` along an axis: zeros between, then [1, 2, 1] / 2."""
    n = x.shape[axis]
    pad = [(0, 0, 0)] * x.ndim
    pad[axis] = (1, -1, 0)
    before = lax.pad(x, jnp.zeros((), x.dtype), pad)
    pairs = jnp.stack([0.5 * before + 0.5 * x, x], axis=axis + 1)
    return pairs.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])


def _filter_half(x: Images, axis: int) -> Images:
    """``y[i] = (x[2i-1] + 2 x[2i] + x[2i+1]) / 4`` along an axis, with zero outside."""
    n = x.shape[axis] // 2
    pairs = x.reshape(*x.shape[:axis], n, 2, *x.shape[axis + 1 :])
    even, odd = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    pad = [(0, 0, 0)] * x.ndim
    pad[axis] = (1, -1, 0)
    return 0.25 * lax.pad(odd, jnp.zeros((), x.dtype), pad) + 0.5 * even + 0.25 * odd


def upsample121(x: Images) -> Images:
    """``[b, h, w, c] -> [b, 2h, 2w, c]`` by the filter [1, 2, 1], zero outside."""
    return _filter2(_filter2(x, 1), 2)


def downsample121(x: Images) -> Images:
    """``[b, 2h, 2w, c] -> [b, h, w, c]`` by the filter [1, 2, 1], zero outside."""
    return _filter_half(_filter_half(x, 1), 2)


def resize(x: Images, size: tuple[int, ...]) -> Images:
    """``[b, h, w, c] -> [b, *size, c]``, bilinear with half-pixel centers, smoothed before if it gets smaller."""
    if x.shape[1:3] == tuple(size):
        return x
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear")


def patchify(x: Images, patch: int) -> Float[Array, "b t f"]:
    """``x[b, (h p), (w q), c] -> tokens[b, (h w), (p q c)]``, patches row by row.

    Raises:
      ValueError: the side of a patch does not divide the size of the image.
    """
    b, height, width, c = x.shape
    h, w = patches_of((height, width), patch)
    x = x.reshape(b, h, patch, w, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * w, patch * patch * c)


def unpatchify(tokens: Float[Array, "b t f"], shape: tuple[int, int, int], patch: int) -> Images:
    """The inverse of ``patchify`` for images of ``shape[h, w, c]``."""
    h, w = patches_of(shape[:2], patch)
    x = tokens.reshape(-1, h, w, patch, patch, shape[2]).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, *shape)


def patches_of(size: Sequence[int], patch: int) -> tuple[int, int]:
    """Rows and columns of the patches of an image of ``size[h, w]``. Raises ValueError as ``patchify``."""
    height, width = size
    if height % patch or width % patch:
        raise ValueError(f"patch={patch}: must divide the image size {height}x{width}")
    return height // patch, width // patch
