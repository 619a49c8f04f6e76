"""Differentiable augmentation of what D sees, for training on few images.

An augmentation is ``(x[b, h, w, c] in [-1, 1], key, p) -> x``: every operation is applied to each example with
probability p, by a draw of its own; p = 0 changes no bit. D sees reals and fakes through the same one in both players'
updates, so that G learns the images and not the augmentation.

Two families, by names in a policy such as ``color,translation,cutout`` or ``bgc``:

===============  ===================================================================================================
``color``        brightness U(-1/2, 1/2) of the range, saturation U(0, 2), contrast U(1/2, 3/2)
``translation``  by up to 1/8 of each side, zeros (mid grey) outside
``cutout``       a square of half the side, zero
``blit``         x-flip, rotation by 90 degrees (square images), shift by up to 1/8, reflected
``geom``         scale and stretch log-normal(0.2 ln 2), rotation, shift N(0, 1/8), bilinear, reflected
``affine_color`` brightness N(0, 0.2), contrast log-normal(0.5 ln 2), luma flip, hue, saturation log-normal(ln 2)
===============  ===================================================================================================

The first three are DiffAugment (Zhao et al. 2020, arXiv:2006.10738). The others are ADA's pipeline up to its filters
and noise (Karras et al. 2020, arXiv:2006.06676, App. B), ``bgc``, ``bg`` and ``b`` their names there; geometry is
resampled once, bilinearly, in the place of the paper's wavelet filters, which blurs a little. A grey image has
brightness and contrast only.

Shifts and warps are products with matrices of interpolation, so that their derivatives are products, too: those of
indexing are scatters, slow on CPU and of no fixed order on GPU.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpgan.types import PRNG, Images

Transform = Callable[[Images, PRNG, Any], Images]


class Augment(NamedTuple):
    """An augmentation in a training step.

    Attributes:
      apply: ``(x, key, p) -> x``.
      p: probability, a number or a function of the step; where it adapts, the number to start from.
      target: None, or the mean sign of D's logits on reals that p is steered to; 0.6 in the paper.
      images: after how many images p could have gone from 0 to 1.
      maximum: of an adaptive p. Above 0.8 augmentations may leak into the samples (Karras et al. 2020, Fig. 4).
    """

    apply: Transform
    p: Any = 1.0
    target: float | None = None
    images: int = 500_000
    maximum: float = 0.8


def adapt(p: Array, sign: Array, batch: int, augment: Any) -> Array:
    """``p + sign(r - target) batch / images`` in [0, maximum], with the mean sign r of D's logits on reals.

    Karras et al. 2020, arXiv:2006.06676, Sec. 3.1, once every update in the place of every fourth.
    """
    step = jnp.sign(sign - augment.target).astype(p.dtype) * (batch / augment.images)
    return jnp.clip(p + step, 0.0, augment.maximum)


def _chosen(key: PRNG, p: Any, x: Images) -> Array:
    """Which examples, broadcastable to x."""
    return jax.random.bernoulli(key, p, (x.shape[0],)).reshape(-1, 1, 1, 1)


def _uniform(key: PRNG, x: Images, low: float, high: float) -> Array:
    return jax.random.uniform(key, (x.shape[0], 1, 1, 1), x.dtype, low, high)


def color(x: Images, key: PRNG, p: Any) -> Images:
    """DiffAugment's colours: ``x + u``, then the distance to the grey of a pixel, then to the mean, scaled."""
    keys = jax.random.split(key, 6)
    x = jnp.where(_chosen(keys[0], p, x), x + _uniform(keys[1], x, -0.5, 0.5) * 2, x)
    grey = jnp.mean(x, axis=3, keepdims=True)
    x = jnp.where(_chosen(keys[2], p, x), grey + _uniform(keys[3], x, 0.0, 2.0) * (x - grey), x)
    mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    return jnp.where(_chosen(keys[4], p, x), mean + _uniform(keys[5], x, 0.5, 1.5) * (x - mean), x)


def _along(x: Images, axis: int, matrix: Float[Array, "b i j"]) -> Images:
    """Each example's rows (axis 1) or columns (axis 2) multiplied by its matrix."""
    name = "bij,bjwc->biwc" if axis == 1 else "bij,bhjc->bhic"
    return jnp.einsum(name, matrix, x, precision=jax.lax.Precision.HIGHEST)


def _picked(source: Array, n: int, dtype: Any) -> Float[Array, "b i j"]:
    """0-1 matrices that take ``out[i] = in[source[i]]``; 0 where source is outside."""
    return jax.nn.one_hot(source, n, dtype=dtype)


def _reflected(source: Array, n: int) -> Array:
    """Positions reflected into [0, n - 1], the border pixel not repeated, any number of times."""
    period = max(2 * (n - 1), 1)
    source = jnp.mod(source, period)
    return jnp.where(source > n - 1, period - source, source)


def _shifts(key: PRNG, x: Images, axis: int, share: float) -> Array:
    """Source positions ``[b, n]`` of a shift by up to a share of the side."""
    n = x.shape[axis]
    most = int(n * share + 0.5)
    shift = jax.random.randint(key, (x.shape[0], 1), -most, most + 1)
    return jnp.arange(n).reshape(1, n) + shift


def translation(x: Images, key: PRNG, p: Any) -> Images:
    """DiffAugment's: whole pixels, up to 1/8 of each side, 0 outside."""
    keys = jax.random.split(key, 3)
    y = x
    for axis in (1, 2):
        source = _shifts(keys[axis], x, axis, 1 / 8)
        y = _along(y, axis, _picked(source, x.shape[axis], x.dtype))
    return jnp.where(_chosen(keys[0], p, x), y, x)


def cutout(x: Images, key: PRNG, p: Any) -> Images:
    """DiffAugment's: a rectangle of half of each side is 0; its centre is anywhere, so it may be cut."""
    keys = jax.random.split(key, 3)
    inside: Any = _chosen(keys[0], p, x)
    for axis in (1, 2):
        n = x.shape[axis]
        size = int(n * 0.5 + 0.5)
        start = jax.random.randint(keys[axis], (x.shape[0], 1), 0, n + 1 - size % 2) - size // 2
        position = jnp.arange(n).reshape(1, n)
        within = (position >= start) & (position < start + size)
        inside = inside & within.reshape(-1, *((n, 1, 1) if axis == 1 else (1, n, 1)))
    return jnp.where(inside, jnp.zeros((), x.dtype), x)


def blit(x: Images, key: PRNG, p: Any) -> Images:
    """ADA's pixel blitting: whole pixels change places, none is changed."""
    keys = jax.random.split(key, 7)
    mirrored = _chosen(keys[0], p, x) & _chosen(keys[6], 0.5, x)
    x = jnp.where(mirrored, x[:, :, ::-1], x)
    if x.shape[1] == x.shape[2]:
        turns = jax.random.randint(keys[1], (x.shape[0], 1, 1, 1), 0, 4)
        turns = jnp.where(_chosen(keys[2], p, x), turns, 0)
        # A quarter turn is a transposition and a flip; two, both flips.
        x = jnp.where(turns % 2 == 1, x.swapaxes(1, 2)[:, ::-1], x)
        x = jnp.where(turns // 2 == 1, x[:, ::-1, ::-1], x)
    y = x
    for axis in (1, 2):
        n = x.shape[axis]
        source = _reflected(_shifts(keys[3 + axis], x, axis, 1 / 8), n)
        y = _along(y, axis, _picked(source, n, x.dtype))
    return jnp.where(_chosen(keys[3], p, x), y, x)


def _tents(position: Array, n: int) -> Float[Array, "b p n"]:
    """Weights of linear interpolation at the positions ``[b, p]``, reflected at the borders."""
    position = _reflected(position, n)[..., None]
    return jax.nn.relu(1 - jnp.abs(position - jnp.arange(n, dtype=position.dtype).reshape(1, 1, n)))


def warp(x: Images, matrix: Float[Array, "b 2 3"]) -> Images:
    """``out[i, j] = in[m (i, j, 1)]``, interpolated bilinearly; (i, j) in pixels from the centre, reflected outside.

    All four neighbours of a pixel come from two products with tent functions, ``h w (h + 1) w c`` multiplications to an
    image: little beside a convolutional network, and its derivative is of the same kind.
    """
    _, h, w, c = x.shape
    i, j = jnp.meshgrid(
        *(jnp.arange(n, dtype=x.dtype) - (n - 1) / 2 for n in (h, w)), indexing="ij"
    )
    grid = jnp.stack([i.ravel(), j.ravel(), jnp.ones(h * w, x.dtype)])
    exact = jax.lax.Precision.HIGHEST
    source = jnp.einsum("bkl,lp->bkp", matrix, grid, precision=exact)
    across = jnp.einsum("bpj,bijc->bpic", _tents(source[:, 1] + (w - 1) / 2, w), x, precision=exact)
    y = jnp.einsum("bpi,bpic->bpc", _tents(source[:, 0] + (h - 1) / 2, h), across, precision=exact)
    return y.reshape(-1, h, w, c)


def _linear(a: Any, b: Any, c: Any, d: Any, n: int, dtype: Any) -> Float[Array, "n 2 2"]:
    """``[[a, b], [c, d]]`` of numbers or ``[n]``."""
    entries = [jnp.broadcast_to(jnp.asarray(v, dtype), (n,)) for v in (a, b, c, d)]
    return jnp.stack(entries, 1).reshape(n, 2, 2)


def geom(x: Images, key: PRNG, p: Any) -> Images:
    """ADA's geometric transformations, composed into one ``warp``.

    Rotations before and after the stretch have probability ``1 - sqrt(1 - p)`` each, so that one happens with p.
    """
    n, dtype = x.shape[0], x.dtype
    keys = iter(jax.random.split(key, 10))

    def drawn(values: Array, chance: Any, neutral: float) -> Array:
        return jnp.where(jax.random.bernoulli(next(keys), chance, (n,)), values, neutral)

    def rotation() -> Array:
        angle = jax.random.uniform(next(keys), (n,), dtype, -math.pi, math.pi)
        angle = drawn(angle, 1 - jnp.sqrt(1 - jnp.asarray(p, dtype)), 0.0)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return _linear(cos, -sin, sin, cos, n, dtype)

    def scale() -> Array:
        return drawn(jnp.exp2(0.2 * jax.random.normal(next(keys), (n,), dtype)), p, 1.0)

    size, first, stretch, second = scale(), rotation(), scale(), rotation()
    chosen = jax.random.bernoulli(next(keys), p, (n, 1, 1))
    sides = jnp.asarray(x.shape[1:3], dtype).reshape(1, 2, 1)
    shift = 0.125 * sides * jax.random.normal(next(keys), (n, 2, 1), dtype)
    parts = [
        _linear(size, 0, 0, size, n, dtype),
        first,
        _linear(stretch, 0, 0, 1 / stretch, n, dtype),
        second,
    ]
    matrix = parts[0]
    for part in parts[1:]:
        matrix = jnp.matmul(matrix, part, precision=jax.lax.Precision.HIGHEST)
    matrix = jnp.concatenate([matrix, jnp.where(chosen, shift, 0.0)], 2)
    still = jnp.concatenate([jnp.eye(2, dtype=dtype), jnp.zeros((2, 1), dtype)], 1)
    moved = jnp.any(matrix != still[None], axis=(1, 2)).reshape(-1, 1, 1, 1)
    return jnp.where(moved, warp(x, matrix), x)


_LUMA = 1 / math.sqrt(3)  # of the unit vector along grey


def affine_color(x: Images, key: PRNG, p: Any) -> Images:
    """ADA's colours, an affine map of each pixel's channels. Images that are not RGB: brightness and contrast only."""
    n, dtype, channels = x.shape[0], x.dtype, x.shape[3]
    keys = jax.random.split(key, 10)

    def drawn(i: int, values: Array, neutral: float) -> Array:
        chosen = jax.random.bernoulli(keys[2 * i], p, (n,))
        return jnp.where(chosen, values, neutral).reshape(-1, 1, 1, 1)

    normal = [jax.random.normal(keys[2 * i + 1], (n,), dtype) for i in (0, 1)]
    x = x + drawn(0, 0.2 * normal[0], 0.0)
    x = x * drawn(1, jnp.exp2(0.5 * normal[1]), 1.0)
    if channels != 3:
        return x
    grey = jnp.mean(x, axis=3, keepdims=True)
    flip = drawn(2, jax.random.bernoulli(keys[5], 0.5, (n,)).astype(dtype), 0.0)
    # Each of the three keeps either the grey part or the colour part of a pixel, and an image that is not chosen.
    angle = drawn(3, jax.random.uniform(keys[7], (n,), dtype, -math.pi, math.pi), 0.0)
    saturation = drawn(4, jnp.exp2(jax.random.normal(keys[9], (n,), dtype)), 1.0)
    colour = x - grey
    turned = jnp.cos(angle) * colour + jnp.sin(angle) * _LUMA * (
        jnp.roll(colour, 1, axis=3) - jnp.roll(colour, -1, axis=3)
    )
    same = (flip == 0) & (angle == 0) & (saturation == 1)
    return jnp.where(same, x, (1 - 2 * flip) * grey + saturation * turned)


OPERATIONS: dict[str, Transform] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
    "blit": blit,
    "geom": geom,
    "affine_color": affine_color,
}
"""Every augmentation by name."""

_ADA = {"b": ("blit",), "bg": ("blit", "geom"), "bgc": ("blit", "geom", "affine_color")}


def policy(text: str) -> Transform:
    """Names separated by commas, or ``b``, ``bg``, ``bgc``, as one augmentation: in their order, by keys of their own.

    Raises:
      ValueError: an unknown name.
    """
    names = _ADA.get(text) or tuple(text.split(","))
    if unknown := [name for name in names if name not in OPERATIONS]:
        allowed = ", ".join([*_ADA, *OPERATIONS])
        raise ValueError(f"{unknown[0]!r} is not an augmentation; must be among {allowed}")

    def apply(x: Images, key: PRNG, p: Any) -> Images:
        for name, own in zip(names, jax.random.split(key, len(names)), strict=True):
            x = OPERATIONS[name](x, own, p)
        return x

    return apply
