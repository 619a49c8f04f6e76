"""The order of the data: a seeded permutation per epoch that can be evaluated at any position.

Storing or recomputing a permutation of all examples at every step would cost more than a small network's step; so the
permutation is a *function*: a Feistel network over the places of a rectangle (Luby & Rackoff 1988; Black & Rogaway
2002). Evaluating it costs a few integer operations per example, and no loop, for which a GPU would wait for the host in
every step. The device and the host compute it with the same uint32 arithmetic, so where the data lie cannot change
their order.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt

from bpgan.types import stream

_ROUNDS = 8


def round_keys(seed: int) -> UInt[Array, " r"]:
    """The keys of the Feistel rounds: all that the order depends on besides the number of examples."""
    return jax.random.bits(stream(jax.random.key(seed), "data"), (_ROUNDS,), jnp.uint32)


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
    return _permute(index, round_keys, epoch, length)


def rows_at(
    round_keys: UInt[Array, " r"], step: Int[Array, ""], length: int, batch_size: int
) -> UInt[Array, " b"]:
    """The examples of batch ``step``, traceable; exact for any int32 step if ``length * batch_size < 2^32``.

    Row ``j`` is place ``step * batch_size + j`` of the endless sequence of shuffled epochs.
    """
    step = step.astype(jnp.uint32)
    place = (step % length) * batch_size + jnp.arange(batch_size, dtype=jnp.uint32)
    epoch = (step // length) * batch_size + place // length
    return epoch_order(round_keys, epoch, place % length, length)


def rows_on_host(round_keys: np.ndarray, places: np.ndarray, length: int) -> np.ndarray:
    """The examples at int64 ``places`` (any shape) of the same endless sequence, on the host."""
    epoch = (places // length).astype(np.uint32)
    rows = _permute((places % length).astype(np.uint32), round_keys, epoch, length)
    return np.asarray(rows)


def _permute(i, round_keys, epoch, length: int):
    """A bijection of ``range(length)`` for each epoch, on uint32 arrays of NumPy or JAX.

    The places of a rectangle are shuffled by a Feistel network. Where some are left over, all are rotated by a random
    number after every two rounds, so that those left over come into the rectangle.
    """
    numpy = np if isinstance(i, np.ndarray) else jnp
    rows, columns = _rectangle(length)
    inside = rows * columns
    tweak = _mix(epoch + np.uint32(0x9E3779B9))
    for r in range(0, _ROUNDS, 2):
        row, column = i // columns, i % columns
        row = (row + _mix(_mix(column + round_keys[r]) ^ tweak) % rows) % rows
        column = (column + _mix(_mix(row + round_keys[r + 1]) ^ tweak) % columns) % columns
        shuffled = row * columns + column
        if inside == length:
            i = shuffled
        else:
            i = numpy.where(i < inside, shuffled, i)
            shift = _mix(tweak + round_keys[r]) % length
            i = numpy.where(i < length - shift, i + shift, i - (length - shift))  # in uint32
    return i


def _rectangle(length: int) -> tuple[int, int]:
    """Rows and columns of the nearly square rectangle that leaves fewer than a row of ``length`` places over."""
    rows = max(math.isqrt(length), min(length, 2))
    return rows, length // rows


def _mix(x):
    """A bijective 32-bit hash with full avalanche (the finalizer of MurmurHash3, Appleby 2011)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
