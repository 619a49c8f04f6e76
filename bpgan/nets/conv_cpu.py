"""How XLA:CPU computes the convolutions of ``conv.py``: several forms of each, and by which shape one is taken.

XLA:CPU has a fast path for plain NHWC/HWIO convolutions, also inside a loop, and for matrix products. Where a shape
makes the plain convolution slow, another form computes the same sums:

- **Products**: a 1x1 convolution is one matrix product.
- **Taps**: few channels on one side, such as those of an image. Into few channels, or from few responses, one product
  makes what each tap adds, and shifted copies are summed; out of few channels, shifted copies times the kernel are.
- **Winograd**: many channels at some size, by ``winograd.py``.
- **Blocks**: strided convolutions of many channels are faster for a few examples at a time. So is a kernel gradient,
  the sum of those of the blocks: the plain convolution makes examples its input channels and the responses its kernel,
  and loses most of its speed where that kernel leaves the cache.

The form is a function of shapes and types alone, never of a clock: bits do not depend on what a machine measures. All
were found by ``benchmarks/conv_forms.py``. Types narrower than float32 take the plain convolution, because the other
forms would round partial sums. Winograd's form, which rounds more than the others, is left out where the precision
asked for is "highest": ``--matmul_precision=highest``, or ``jax.default_matmul_precision("highest")`` around the
operation.

The arguments are those of the primitives in ``conv.py``.
"""

import functools
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bpgan.nets import winograd

Pair = tuple[int, int]

_NHWC = ("NHWC", "HWIO", "NHWC")

_FEW = 48
"""Taps times channels of a side that has few."""
_TAPS_TO = 32
"""Channels that shifted copies of few channels are summed into; the plain convolution is as fast for more."""
_NARROW = 32
"""Channels of responses that leave vector units idle as the outputs of a kernel gradient's convolution."""
_BLOCK = 1600
"""Responses of a block of a kernel gradient: examples times pixels."""
_WHOLE = 3200
"""Responses up to which a kernel gradient is as fast without blocks, or faster."""
_STRIDED = 64, 800
"""Channels from which a strided convolution is faster in blocks of examples, and results of a block."""
_MANY = 128
"""Channels on both sides from which Winograd's form is the faster, ..."""
_PIXELS = 14 * 14
"""... and pixels of the result, ..."""
_TILES = 256, 512
"""... in blocks of so many 2x2 squares: of a convolution, and of a kernel gradient."""


def conv(x: Array, w: Array, *, strides: Pair, padding: Any, size: Any, precision: Any) -> Array:
    """``y[p] = sum_i x[s p + i - lo] w[i]``."""
    kh, kw, c, o = w.shape
    if _is_wide(x):
        if _is_pointwise((kh, kw), strides, padding):
            return lax.dot_general(x, w[0, 0], (((3,), (0,)), ((), ())), precision=precision)
        if kh * kw * c <= _FEW and o <= _TAPS_TO:
            return _from_few(x, w, strides=strides, padding=padding, size=size)
        if kh * kw * o <= _FEW and strides == (1, 1):
            turned = [
                (k - 1 - lo, k - 1 - hi) for k, (lo, hi) in zip((kh, kw), padding, strict=True)
            ]
            return _to_few(
                x, _turn(w), strides=strides, padding=turned, size=size, precision=precision
            )
        if _suits_winograd((kh, kw), strides, (c, o), size, precision):
            u = winograd.kernel_tiles(w)
            form = partial(winograd.conv, u=u, padding=padding, size=size, precision=precision)
            return _of_blocks(form, x, _fit(_TILES[0], size, 4))
        if strides != (1, 1) and c >= _STRIDED[0]:
            form = partial(_plain, w=w, strides=strides, padding=padding, precision=precision)
            return _of_blocks(form, x, _fit(_STRIDED[1], size))
    return _plain(x, w, strides, padding, precision)


def input_grad(
    g: Array, w: Array, *, strides: Pair, padding: Any, size: Any, precision: Any
) -> Array:
    """``x[h] = sum_{s p + i = h + lo} g[p] w[i]``: for stride 1, the convolution by the turned kernel."""
    kh, kw, c, _ = w.shape
    if strides == (1, 1):
        pads = [
            (k - 1 - lo, n + lo - p)
            for k, (lo, _), n, p in zip((kh, kw), padding, size, g.shape[1:3], strict=True)
        ]
        return conv(g, _turn(w), strides=strides, padding=pads, size=size, precision=precision)
    if _is_wide(g) and kh * kw * c <= _FEW:
        return _to_few(g, w, strides=strides, padding=padding, size=size, precision=precision)
    form = dilated_input_grad if c < 8 else _by_phases  # few channels cost more to interleave
    return form(g, w, strides=strides, padding=padding, size=size, precision=precision)


def dilated_input_grad(
    g: Array, w: Array, *, strides: Pair, padding: Any, size: Any, precision: Any
) -> Array:
    """``input_grad`` as the convolution of g, with zeros between its pixels, by the turned kernel."""
    pads = [
        (k - 1 - lo, n + lo - s * (p - 1) - 1)
        for k, s, (lo, _), n, p in zip(
            w.shape[:2], strides, padding, size, g.shape[1:3], strict=True
        )
    ]
    return _plain(g, _turn(w), (1, 1), pads, precision, lhs_dilation=strides)


def weight_grad(
    x: Array, g: Array, *, strides: Pair, padding: Any, size: Any, precision: Any
) -> Array:
    """``w[i] = sum_p x[s p + i - lo] g[p]``."""
    (kh, kw), c, o = size, x.shape[3], g.shape[3]
    if not _is_wide(x):
        return _traded(x, g, strides, padding, size, precision)
    if _is_pointwise(size, strides, padding):
        summed = (0, 1, 2)
        w = lax.dot_general(x, g, ((summed, summed), ((), ())), precision=precision)
        return w[None, None]
    if kh * kw * c <= _FEW:
        return _columns_by(x, g, strides, padding, size, precision)
    if strides == (1, 1) and o < c and o <= _NARROW:  # x and g in each other's place
        turned = tuple(
            (k - 1 - lo, n + lo - p)
            for k, (lo, _), n, p in zip(size, padding, x.shape[1:3], g.shape[1:3], strict=True)
        )
        given: Any = dict(strides=strides, padding=turned, size=size, precision=precision)
        return _turn(weight_grad(g, x, **given))
    pixels = (g.shape[1], g.shape[2])
    if _suits_winograd(size, strides, (c, o), pixels, precision):
        form = partial(winograd.weight_grad, padding=padding, precision=precision)
        return winograd.of_kernel_tiles(_sum_of_blocks(form, x, g, _fit(_TILES[1], pixels, 4)))
    form = partial(_traded, strides=strides, padding=padding, size=size, precision=precision)
    whole = x.shape[0] * pixels[0] * pixels[1] <= _WHOLE
    return form(x, g) if whole else _sum_of_blocks(form, x, g, _fit(_BLOCK, pixels))


def _is_wide(x: Array) -> bool:
    return jnp.finfo(x.dtype).bits >= 32


def _is_pointwise(size: Any, strides: Pair, padding: Any) -> bool:
    return (*size, *strides, *padding[0], *padding[1]) == (1, 1, 1, 1, 0, 0, 0, 0)


def _suits_winograd(kernel: Any, strides: Pair, channels: Pair, size: Pair, precision: Any) -> bool:
    if (*kernel, *strides) != (3, 3, 1, 1) or precision in ("highest", "float32"):
        return False
    return min(channels) >= _MANY and size[0] * size[1] >= _PIXELS


def _turn(w: Array) -> Array:
    """The kernel of the adjoint: turned by 180 degrees, in and out exchanged."""
    return w[::-1, ::-1].transpose(0, 1, 3, 2)


def _plain(
    x: Array, w: Array, strides: Pair, padding: Any, precision: Any, **dilation: Any
) -> Array:
    return lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=_NHWC, precision=precision, **dilation
    )


def _pad(x: Array, axis: int, low: int, length: int, inner: int = 0) -> Array:
    """So many zeros before, ``inner`` between, and as many after as make up the length; negative ones cut off."""
    high = length - low - (x.shape[axis] - 1) * (inner + 1) - 1
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (low, high, inner)
    return lax.pad(x, jnp.zeros((), x.dtype), pads)


def _windows(
    x: Array, axes: Pair, *, strides: Pair, padding: Any, kernel: Any, size: Any
) -> list[list[Array]]:
    """What each tap of a kernel sees: ``[i][j]`` is x at ``(s p + i - lo, s q + j - lo)`` for all p, q."""
    for axis, s, (lo, _), k, n in zip(axes, strides, padding, kernel, size, strict=True):
        x = _pad(x, axis, lo, s * (n - 1) + k)

    def window(x: Array, axis: int, start: int, n: int, s: int) -> Array:
        return lax.slice_in_dim(x, start, start + s * (n - 1) + 1, s, axis)

    rows = [window(x, axes[0], i, size[0], strides[0]) for i in range(kernel[0])]
    return [
        [window(row, axes[1], j, size[1], strides[1]) for j in range(kernel[1])] for row in rows
    ]


def _from_few(x: Array, w: Array, *, strides: Pair, padding: Any, size: Pair) -> Array:
    """A convolution as a sum over taps and input channels, which XLA fuses into one loop over the output."""
    kernel = w.shape[:2]
    windows = _windows(x, (1, 2), strides=strides, padding=padding, kernel=kernel, size=size)
    terms = [
        window[..., k : k + 1] * w[i : i + 1, j : j + 1, k : k + 1]
        for i, row in enumerate(windows)
        for j, window in enumerate(row)
        for k in range(w.shape[2])
    ]
    return _sum(terms)


def _to_few(g: Array, w: Array, *, strides: Pair, padding: Any, size: Any, precision: Any) -> Array:
    """An input gradient: a product makes what every tap adds to x, and it is added where it belongs."""
    kh, kw, c, o = w.shape
    b, p, q, _ = g.shape
    added = lax.dot_general(
        w.reshape(-1, o), g.reshape(-1, o), (((1,), (1,)), ((), ())), precision=precision
    ).reshape(kh, kw, c, b, p, q)
    (top, _), (left, _) = padding
    rows = [
        _sum([_pad(added[i, j], 3, j - left, size[1], strides[1] - 1) for j in range(kw)])
        for i in range(kh)
    ]
    x = _sum([_pad(row, 2, i - top, size[0], strides[0] - 1) for i, row in enumerate(rows)])
    return x.transpose(1, 2, 3, 0)


def columns(
    x: Array, pixels: Any, *, strides: Pair, padding: Any, size: Pair, precision: Any = None
) -> Array:
    """``[i, t]``, what each tap and channel of a kernel sees of x at the places t = (n, p, q) of the responses.

    The kernel gradient is ``columns @ g[t, o]``.
    """
    del precision  # of the product
    seen = _windows(
        x.transpose(3, 0, 1, 2), (2, 3), strides=strides, padding=padding, kernel=size, size=pixels
    )
    stacked = jnp.stack([window for row in seen for window in row])
    return stacked.reshape(size[0] * size[1] * x.shape[3], -1)


def _columns_by(
    x: Array, g: Array, strides: Pair, padding: Any, kernel: Pair, precision: Any
) -> Array:
    """A kernel gradient: what each tap sees of few channels, times the responses, in one product."""
    c, o = x.shape[3], g.shape[3]
    seen = columns(x, g.shape[1:3], strides=strides, padding=padding, size=kernel)
    return jnp.dot(seen, g.reshape(-1, o), precision=precision).reshape(*kernel, c, o)


def _by_phases(
    g: Array, w: Array, *, strides: Pair, padding: Any, size: Any, precision: Any
) -> Array:
    """A strided input gradient by sub-pixels.

    With ``h + lo = s m + a`` only the taps ``i = s u + a`` meet the response ``p = m - u``. So the
    ``s * s`` phases ``a`` of x are the output channels of one stride-1 convolution of g,
    interleaved afterwards; unlike in the dilated form no zero is multiplied. A kernel size that s
    does not divide is filled up with zeros.
    """
    (kh, kw, c, o), (sh, sw) = w.shape, strides
    uh, uw = -(-kh // sh), -(-kw // sw)  # taps per phase
    w = jnp.pad(w, ((0, uh * sh - kh), (0, uw * sw - kw), (0, 0), (0, 0)))
    phases = w.reshape(uh, sh, uw, sw, c, o)[::-1, :, ::-1]
    phases = phases.transpose(0, 2, 5, 1, 3, 4).reshape(uh, uw, o, sh * sw * c)
    pads, crops = [], []
    for k, s, (lo, _), n, p in zip((kh, kw), strides, padding, size, g.shape[1:3], strict=True):
        first, last = lo // s, (lo + n - 1) // s  # the coarse rows m that x needs
        pads.append((-(-k // s) - 1 - first, last - (p - 1)))
        crops.append(slice(lo - s * first, lo - s * first + n))
    x = _plain(g, phases, (1, 1), pads, precision)
    b, mh, mw, _ = x.shape
    x = x.reshape(b, mh, mw, sh, sw, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, mh * sh, mw * sw, c)[:, crops[0], crops[1]]


def _traded(x: Array, g: Array, strides: Pair, padding: Any, size: Any, precision: Any) -> Array:
    """A kernel gradient as a plain convolution: batch and channels trade places, g is the kernel."""
    pads = [
        (lo, s * (length - 1) + k - lo - n)  # so that the result has exactly k rows
        for k, s, (lo, _), n, length in zip(
            size, strides, padding, x.shape[1:3], g.shape[1:3], strict=True
        )
    ]
    w = _plain(
        x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), (1, 1), pads, precision,
        rhs_dilation=strides,
    )  # fmt: skip
    return w.transpose(1, 2, 0, 3)


def _fit(limit: int, size: Pair, pixels: int = 1) -> int:
    """How many examples have at most so many squares of ``pixels``; at least one."""
    return max(limit * pixels // (size[0] * size[1]), 1)


def _split(b: int, most: int) -> Pair:
    """Examples of the first block and of every other, at most ``most``.

    All are equal where b has a divisor of half that size or more; else the first may be smaller.
    """
    most = min(most, b)
    divisor = max(n for n in range(1, most + 1) if b % n == 0)
    block = divisor if 2 * divisor >= most else most
    return b % block or block, block


def _of_blocks(form: Callable[[Array], Array], x: Array, most: int) -> Array:
    """A form of blocks of examples, joined."""
    first, block = _split(x.shape[0], most)
    if first == x.shape[0]:
        return form(x)
    if first < block:
        return lax.concatenate([form(x[:first]), _of_blocks(form, x[first:], most)], 0)
    y = lax.map(form, x.reshape(-1, block, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


def _sum_of_blocks(form: Callable[[Array, Array], Array], x: Array, g: Array, most: int) -> Array:
    """The sum of a form of blocks of examples."""
    first, block = _split(x.shape[0], most)

    def add(i: Any, total: Array) -> Array:
        start = first + i * block
        part = [lax.dynamic_slice_in_dim(t, start, block) for t in (x, g)]
        return total + form(*part)

    blocks = (x.shape[0] - first) // block
    return lax.fori_loop(0, blocks, add, form(x[:first], g[:first]))


def _sum(terms: list[Array]) -> Array:
    """In the order given, without the zero that ``sum`` begins with."""
    return functools.reduce(operator.add, terms)
