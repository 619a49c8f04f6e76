"""JAX's own random numbers, computed on a CPU in one pass over them.

Threefry-2x32 (Salmon et al. 2011, doi:10.1145/2063384.2063405) is 20 rounds of additions, rotations and exclusive ors.
On a CPU, JAX compiles them as a loop that passes over all numbers in each of its turns, which compiles quickly and runs
slowly: in the article's GAN, drawing the latents took as long as a tenth of all matrix products. The rounds are written
out here, so that XLA makes one vectorized pass of them. Every number is bit for bit that of ``jax.random``.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import define_prng_impl, threefry_prng_impl
from jaxtyping import Array, UInt

from bpgan.types import PRNG

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)

Words = UInt[Array, "*shape"]


def unroll(key: PRNG) -> PRNG:
    """The same key, whose substreams and numbers are computed in one pass.

    A key of another generator, which JAX can be set to, is returned as it is. So are all keys where JAX is set to the
    older way of counting, ``jax_threefry_partitionable=False``.
    """
    partitionable = jax.config.values["jax_threefry_partitionable"]
    if jax.random.key_impl(key) != "threefry2x32" or not partitionable:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_UNROLLED)


def encrypt(key: UInt[Array, "2"], high: Words, low: Words) -> tuple[Words, Words]:
    """The 20 rounds on counters ``(high, low)``, elementwise: two words for each."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    x, y = high + keys[0], low + keys[1]
    for i in range(5):
        for r in _ROTATIONS[i % 2]:
            x = x + y
            y = (y << np.uint32(r)) | (y >> np.uint32(32 - r))
            y = x ^ y
        x = x + keys[(i + 1) % 3]
        y = y + keys[(i + 2) % 3] + np.uint32(i + 1)
    return x, y


def _count(key: UInt[Array, "2"], shape: tuple[int, ...]) -> tuple[Words, Words]:
    """Both words of each place of an array, counted in rows."""
    low = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return encrypt(key, jnp.zeros_like(low), low)


def _bits(key: UInt[Array, "2"], width: int, shape: tuple[int, ...]) -> Words:
    if width != 32 or math.prod(shape) >= 2**32:
        return threefry_prng_impl.random_bits(key, width, shape)
    x, y = _count(key, shape)
    return x ^ y


def _split(key: UInt[Array, "2"], shape: tuple[int, ...]) -> UInt[Array, "*shape 2"]:
    return jnp.stack(_count(key, shape), axis=-1)


def _fold_in(key: UInt[Array, "2"], data: Any) -> UInt[Array, "2"]:
    return jnp.stack(encrypt(key, jnp.zeros((), jnp.uint32), data.astype(jnp.uint32)))


_UNROLLED = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=_split,
    random_bits=_bits,
    fold_in=_fold_in,
    name="threefry2x32_unrolled",
    tag="fryu",
)
