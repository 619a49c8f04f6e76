"""What transformers are made of: places as sines, rotations of queries and keys, attention, the two sublayers.

``self_attention``, ``perceptron``, ``embedded`` and ``modulation`` are called inside the ``@nn.compact`` method of a
module, where their layers belong.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bpgan.nets.layers import Dense, rms_norm, storage_dtype

_ROPE_BASE = 100.0  # for grids of some ten places; 10000, that of texts, would hardly turn half of the numbers

Tokens = Float[Array, "b t f"]
Rows = Float[Array, "b f"]


def waves(place: Float[Array, "..."], width: int) -> Float[Array, "... f"]:
    """Sines and then cosines of ``place * 10000^(-i / (width / 2))``, i = 0, 1, ... (Vaswani et al. 2017, Sec. 3.5).

    Args:
      place: any numbers, such as the place of a token or a time.
      width: of the result, even.
    """
    frequency = jnp.exp(-math.log(1e4) * jnp.arange(0, width, 2) / width)
    angle = place[..., None] * frequency.reshape((1,) * place.ndim + (-1,))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def time_waves(time: Float[Array, " b"], scale: float) -> Rows:
    """``waves`` of ``scale * time``, 256 of them, in float32 or wider."""
    return waves(scale * time.astype(storage_dtype(time.dtype)), 256)


def embedded(name: str, features: int, x: Rows, **layer: Any) -> Rows:
    """``dense(SiLU(dense(x)))``, layers ``NAME_in`` and ``NAME_out``: how a time or latents enter a condition."""
    hidden = Dense(features, name=f"{name}_in", **layer)(x)
    return Dense(features, name=f"{name}_out", **layer)(jax.nn.silu(hidden))


def modulation(
    x: Array, condition: Rows, parts: int, *, name: str = "modulation", dtype: Any = jnp.float32
) -> list[Array]:
    """So many ``[b, 1, ..., f]`` for ``x[b, ..., f]``: a dense layer of ``SiLU(condition)``, zero at the start."""
    zero = jax.nn.initializers.zeros
    layer = Dense(parts * x.shape[-1], kernel_init=zero, dtype=dtype, name=name)
    both = jnp.expand_dims(layer(jax.nn.silu(condition)), range(1, x.ndim - 1))
    return jnp.split(both, parts, axis=-1)


def positions(length: int, width: int) -> Float[Array, "t f"]:
    """``waves`` of the places of a sequence, with wavelengths from 2 pi to 20000 pi."""
    return waves(jnp.arange(length), width)


def grid_positions(height: int, width: int, features: int) -> Float[Array, "t f"]:
    """``waves`` of the row in the first half of the features, of the column in the second; tokens row by row.

    Peebles & Xie 2023, arXiv:2212.09748, whose first half is the column's.

    Args:
      features: a multiple of 4.
    """
    rows, columns = (positions(length, features // 2) for length in (height, width))
    rows = jnp.repeat(rows, width, axis=0)
    return jnp.concatenate([rows, jnp.tile(columns, (height, 1))], axis=1)


def grid_angles(height: int, width: int, features: int) -> Float[Array, "t r"]:
    """Angles of ``rotate`` for the tokens of a grid, row by row: the row turns the first half of the pairs, the column
    the second.

    Axial rotary embedding (Heo et al. 2024, arXiv:2403.13298): the frequencies of an axis are ``100^(-i / n)``,
    ``n = features / 4``.

    Args:
      features: of a head, a multiple of 4; it has ``features / 2`` pairs.
    """
    count = features // 4
    frequency = (_ROPE_BASE ** (-jnp.arange(count) / count)).reshape(1, 1, -1)
    rows = jnp.arange(height).reshape(-1, 1, 1) * frequency
    columns = jnp.arange(width).reshape(1, -1, 1) * frequency
    both = [jnp.broadcast_to(angle, (height, width, count)) for angle in (rows, columns)]
    return jnp.concatenate(both, axis=-1).reshape(height * width, -1)


def rotate(x: Float[Array, "b h t f"], angles: Float[Array, "t r"]) -> Float[Array, "b h t f"]:
    """Each pair ``(x_i, x_(i + f/2))`` of a token turned by its angle.

    Rotary embedding (Su et al. 2021, arXiv:2104.09864): the product of a query and a key that are turned depends on
    their places by the difference alone, and norms stay. Computed in float32 or wider.
    """
    wide = x.astype(storage_dtype(x.dtype))
    cos, sin = (f(angles)[None, None].astype(wide.dtype) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(wide, 2, axis=-1)
    turned = [first * cos - second * sin, first * sin + second * cos]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def attend(
    query: Float[Array, "b h t f"],
    key: Float[Array, "b h t f"],
    value: Float[Array, "b h t f"],
    seen: Bool[Array, "b t"] | None = None,
) -> Float[Array, "b h t f"]:
    """``softmax(query key^T / sqrt(f)) value`` over the places that are seen; None: all are.

    A text of which nothing is seen attends to all places alike, so that its numbers are finite. It is made of products
    and a softmax, so that it can be differentiated as often as a gradient penalty or a derivative along a flow asks.
    """
    scores = jnp.einsum("bhqf,bhkf->bhqk", query, key) / math.sqrt(query.shape[-1])
    scores = scores.astype(storage_dtype(scores.dtype))
    if seen is not None:
        scores = jnp.where(seen[:, None, None, :], scores, -1e9)
    return jnp.einsum("bhqk,bhkf->bhqf", jax.nn.softmax(scores).astype(value.dtype), value)


def tokenwise(name: str, features: int, x: Tokens, **layer: Any) -> Tokens:
    """A ``Dense`` layer of every token; called as the sublayers are.

    Args:
      layer: fields of ``Dense``.
    """
    b, t, width = x.shape
    return Dense(features, name=name, **layer)(x.reshape(b * t, width)).reshape(b, t, features)


def self_attention(
    x: Tokens,
    heads: int,
    *,
    seen: Bool[Array, "b t"] | None = None,
    angles: Float[Array, "t r"] | None = None,
    qk_norm: bool = False,
    **layer: Any,
) -> Tokens:
    """``outputs(attend(q, k, v))`` of ``q, k, v = inputs(x)``, with layers ``inputs`` and ``outputs``.

    Args:
      heads: of the attention; they divide the width of x.
      seen: as in ``attend``.
      angles: by which queries and keys are turned; None: they are not.
      qk_norm: whether queries and keys are divided by their root mean square first, which bounds the scores by the
        square root of a head's width (Henry et al. 2020, arXiv:2010.04245); narrow types need it.
      layer: fields of ``Dense``.
    """
    b, t, width = x.shape
    parts = tokenwise("inputs", 3 * width, x, **layer).reshape(b, t, 3, heads, width // heads)
    query, key, value = (jnp.swapaxes(parts[:, :, i], 1, 2) for i in range(3))
    if qk_norm:
        query, key = rms_norm(query), rms_norm(key)
    if angles is not None:
        query, key = rotate(query, angles), rotate(key, angles)
    found = jnp.swapaxes(attend(query, key, value, seen), 1, 2).reshape(b, t, width)
    return tokenwise("outputs", width, found, **layer)


def perceptron(x: Tokens, hidden: int, *, approximate: bool = False, **layer: Any) -> Tokens:
    """``back(gelu(hidden(x)))`` of every token, with layers ``hidden`` and ``back``.

    Args:
      hidden: width between the layers.
      approximate: whether GELU is the form with tanh.
      layer: fields of ``Dense``.
    """
    h = jax.nn.gelu(tokenwise("hidden", hidden, x, **layer), approximate=approximate)
    return tokenwise("back", x.shape[-1], h, **layer)
