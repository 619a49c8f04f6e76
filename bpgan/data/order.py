"""The order of the data: a seeded permutation per epoch that can be evaluated at any position.

Storing or recomputing a permutation of all examples at every step would cost more than a small network's step; so the
permutation is a *function*: a Feistel network over the smallest square that holds the indices, with cycle walking
(Luby & Rackoff 1988; Black & Rogaway 2002). Evaluating it costs a few integer operations per example.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, UInt

from bpgan.types import Source, UserError, stream

_ROUNDS = 8


def _mix(x: UInt[Array, " b"]) -> UInt[Array, " b"]:
    """A bijective 32-bit hash with full avalanche (the finaliser of MurmurHash3, Appleby 2011)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def epoch_order(
    round_keys: UInt[Array, " r"],
    epoch: UInt[Array, " b"],
    index: UInt[Array, " b"],
    length: int,
) -> UInt[Array, " b"]:
    """The example at place ``index`` of the shuffled epoch ``epoch``.

    For fixed ``round_keys`` and ``epoch`` this is a bijection of ``range(length)``.

    Args:
      round_keys: uint32, one per Feistel round; the seed of the order.
      epoch, index: uint32, elementwise; ``index < length``.
      length: examples per epoch, at least 1.
    """
    side = math.isqrt(length - 1) + 1
    tweak = _mix(epoch + jnp.uint32(0x9E3779B9))

    def permute(i):
        left, right = i // side, i % side
        for r in range(round_keys.shape[0]):
            f = _mix(_mix(right + round_keys[r]) ^ tweak)
            left, right = right, (left + f % side) % side
        return left * side + right

    # Cycle walking: places outside the range are permuted again until they fall inside. Fewer than 2/sqrt(length) of
    # the places are outside, so this is nearly always a single pass.
    return lax.while_loop(
        lambda i: jnp.any(i >= length),
        lambda i: jnp.where(i >= length, permute(i), i),
        permute(index),
    )


def _position(step: Int[Array, ""], length: int, batch_size: int):
    """Epoch and place of each row of batch ``step``, without overflow for any int32 step."""
    step = step.astype(jnp.uint32)
    rows = (step % length) * batch_size + jnp.arange(batch_size, dtype=jnp.uint32)
    return (step // length) * batch_size + rows // length, rows % length


def in_memory(
    x: np.ndarray, y: np.ndarray, *, seed: int, batch_size: int, dtype: Any = jnp.float32
) -> Source:
    """A source over arrays that stay on the device.

    Row ``j`` of batch ``t`` is place ``t * batch_size + j`` of the endless sequence of shuffled epochs, so each epoch
    shows every example exactly once; a batch may straddle two epochs.

    Args:
      x: examples ``[n, ...]``; uint8 images are stored as they are and become ``x / 127.5 - 1`` in the batch.
      y: labels ``[n]``.
      seed: of the order.
      batch_size: rows of the global batch.
      dtype: of the examples in a batch.

    Raises:
      ValueError: if there are no examples.
      UserError: if ``n * batch_size`` exceeds 2^32.
    """
    length = len(x)
    if length == 0 or len(y) != length:
        raise ValueError(f"need as many labels as examples and at least one: {len(x)}, {len(y)}")
    if length * batch_size >= 2**32:
        raise UserError(
            f"--batch_size={batch_size}: must be at most {(2**32 - 1) // length} for {length} examples"
        )
    key = stream(jax.random.key(seed), "data")
    data = {"x": x, "y": y, "order": jax.random.bits(key, (_ROUNDS,), jnp.uint32)}

    def batch_at(data, step):
        epoch, place = _position(step, length, batch_size)
        rows = epoch_order(data["order"], epoch, place, length)
        batch = jnp.take(data["x"], rows, axis=0, mode="clip")
        if batch.dtype == jnp.uint8:
            batch = batch.astype(dtype) / 127.5 - 1
        return {
            "x": batch.astype(dtype),
            "y": jnp.take(data["y"], rows, axis=0, mode="clip"),
        }

    return Source(data, batch_at, length, batch_size)
