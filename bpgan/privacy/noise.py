"""Normal numbers for the noise of a private release, as fast as a CPU makes them.

One block of Threefry, two words of 32 bits, makes two independent normal numbers (Box & Muller 1958,
doi:10.1214/aoms/1177706645). With u in (0, 1) of the first word and an angle of the second,

    sqrt(-2 ln u) (cos a, sin a)

is normal in the plane, and its two coordinates are independent. The angle is that of one quadrant, from the lower 30
bits of its word; the upper two are the signs. Of a quadrant that is turned by 45 degrees, with b in [-pi/4, pi/4),

    cos a = (cos b - sin b) / sqrt(2),     sin a = (cos b + sin b) / sqrt(2),

so that sine and cosine are short polynomials, and with that of the logarithm everything is one vectorized loop.
``jax.random.normal`` takes the inverse error function of 23 random bits, which takes several times as long and ends at
5.4 standard deviations. The numbers here reach 6.7, so more of the tail is there that the accountant reckons with.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt

from bpgan import threefry
from bpgan.types import PRNG

# Polynomials of least greatest error, with the constant first.
_LOG = (
    -1.0, 0.49999973, -0.33334509, 0.25003171, -0.19949846, 0.16538067, -0.14985572, 0.14528419, -0.08835845,
)  # fmt: skip
"""``-ln(1 + f) / f`` for 1 + f from sqrt(1/2) to sqrt(2), of which the error of the logarithm is 4e-8."""
_SIN = 1.0, -0.16666637, 0.0083315847, -0.00019462117
"""``sin(b) / b`` in ``b^2``, up to b = pi/4; of the sine the error is 7e-8, ..."""
_COS = 1.0, -0.49999857, 0.041655026, -0.0013585909
"""... and that of ``cos(b)`` 1.2e-7."""
_ROOT_HALF = 0x3F3504F3
"""The bits of sqrt(1/2) in float32."""

Words = UInt[Array, "*shape"]
Floats = Float[Array, "*shape"]


def normal(key: PRNG, n: int) -> Float[Array, " n"]:
    """Normal numbers, float32, from the counters 0, 1, ... of a key of Threefry; the bits are the same in any program.

    No other numbers may be drawn with the key. They are independent: no block of Threefry is taken twice.
    """
    words = jax.random.key_data(key)
    half = -(-n // 4)  # of the pairs

    def make(start: Words) -> tuple[Floats, Floats]:
        low = start + lax.iota(jnp.uint32, half)
        return pair(*threefry.encrypt(words, jnp.zeros_like(low), low))

    # As a complex number, a pair is one result of one loop; for two results, XLA:CPU would go through everything twice.
    # The loop over both halves keeps it from being computed again by each of those who read it.
    starts = jnp.arange(2, dtype=jnp.uint32) * np.uint32(half)
    pairs = lax.map(lambda start: lax.complex(*make(start)), starts).reshape(-1)
    return jnp.concatenate([pairs.real, pairs.imag])[:n]


def pair(x: Words, y: Words) -> tuple[Floats, Floats]:
    """Two independent normal numbers of two words. All words are allowed."""
    radius, (sin, cos) = _root_of_log(x), _of_quadrant(y)
    return _sign(radius * (cos - sin), y), _sign(radius * (cos + sin), y << np.uint32(1))


def _root_of_log(x: Words) -> Floats:
    """``sqrt(-ln u)`` of ``u = (x + 1/2) / 2^32``, rounded to float32, which keeps the small u apart: the long tail."""
    bits = lax.bitcast_convert_type(x.astype(jnp.float32) + np.float32(0.5), jnp.int32)
    exponent = lax.shift_right_arithmetic(bits - np.int32(_ROOT_HALF), np.int32(23))
    fraction = lax.bitcast_convert_type(bits - (exponent << np.int32(23)), jnp.float32)
    f = fraction - np.float32(1)  # x + 1/2 is (1 + f) 2^exponent
    rest = (np.int32(32) - exponent).astype(jnp.float32) * np.float32(math.log(2))
    return jnp.sqrt(rest + f * _polynomial(_LOG, f))


def _of_quadrant(y: Words) -> tuple[Floats, Floats]:
    """``sin b`` and ``cos b`` of the angle ``b = 2 pi y / 2^32`` of the lower 30 bits, as a signed number."""
    signed = lax.bitcast_convert_type(y << np.uint32(2), jnp.int32)
    b = signed.astype(jnp.float32) * np.float32(2 * math.pi / 2**34)
    return b * _polynomial(_SIN, b * b), _polynomial(_COS, b * b)


def _sign(x: Floats, word: Words) -> Floats:
    """The sign turned where the word's upper bit is set."""
    bits = lax.bitcast_convert_type(x, jnp.uint32) ^ (word & np.uint32(1 << 31))
    return lax.bitcast_convert_type(bits, jnp.float32)


def _polynomial(coefficients: tuple[float, ...], x: Floats) -> Floats:
    """By Horner's rule."""
    *rest, last = map(np.float32, coefficients)
    value = jnp.full_like(x, last)
    for c in reversed(rest):
        value = value * x + c
    return value
