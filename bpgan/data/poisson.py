"""Batches for training with differential privacy: every record is in every batch by a coin of its own.

Poisson subsampling: record i is in the batch of step t with probability q, independently of all other records and
steps. Accounting for a shuffled order in its place would claim more privacy than there is (Chua et al. 2024,
arXiv:2403.17673). Inclusion is a pure function of ``(secret, t, i)``: a resumed run sees the same batches, and whoever
has the secret can ask later which records were in which batch.

A batch has a fixed number of rows, of which a mask says which hold a record. There are so many that in the whole run
no batch is full, but with probability 1e-9. That probability belongs to the delta of the guarantee, and a batch that
has too few rows says so: the run must then end.
"""

import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpgan import threefry
from bpgan.data.datasets import Dataset
from bpgan.data.sources import (
    Feed,
    parse_feed,
    read_ahead,
    resolve_feed,
    scaled,
    window_steps,
)
from bpgan.types import Source, UserError, counted

FAILURE = 1e-9
"""The probability that any batch of a run has too few rows is at most this."""

SECRET = jax.ShapeDtypeStruct((2,), jnp.uint32)
"""In the place of a secret key that is not known yet: steps can be traced with it and not run."""


def included(secret: Any, step: Any, length: int, q: float) -> Any:
    """Which records are in the batch of a step, bool ``[length]``.

    ``bits_i < floor(q 2^32)``, where the bits are those of ``jax.random.bits`` with the key
    ``fold_in(stream(secret, "inclusion"), step)``: a record's inclusion depends neither on how many others there are
    nor on the machine.

    Args:
      secret: a key of JAX, or its two words, uint32. Of NumPy words it is computed by NumPy.
      step: a whole number or a traced int32.
      length: how many records there are.
      q: probability; what is used is ``floor(q 2^32) / 2^32``, which is not greater.
    """
    words = _words(secret)
    numpy = _module_of(words)
    threshold = int(q * 2**32)
    if threshold >= 2**32:
        return numpy.ones(length, bool)
    key = _fold_in(_fold_in(words, zlib.crc32(b"inclusion")), step)
    place = numpy.arange(length, dtype=np.uint32)
    high, low = threefry.encrypt(key, numpy.zeros_like(place), place)
    return (high ^ low) < np.uint32(threshold)


def _words(secret: Any) -> Any:
    if isinstance(secret, jax.Array) and jnp.issubdtype(secret.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(secret)
    return secret


def _module_of(x: Any) -> Any:
    """NumPy or its twin in JAX, by what x is an array of."""
    return np if isinstance(x, np.ndarray) else jnp


def _fold_in(words: Any, number: Any) -> Any:
    """``jax.random.fold_in`` of the two words of a key, also in NumPy."""
    numpy = _module_of(words)
    low = numpy.asarray(number).astype(np.uint32).reshape(1)
    return numpy.concatenate(threefry.encrypt(words, numpy.zeros_like(low), low))


def buffer_failure(length: int, q: float, rows: int, steps: int) -> float:
    """An upper bound of the probability that batches of so many rows change what a run does.

    ``steps P[Bin(length, q) >= rows]``, by the exact tail of the binomial distribution. A full batch already counts as
    a failure, for the one record that two datasets differ in may come on top (``privacy.accounting``). It holds for the
    dataset with a record less or more as well.

    Args:
      length: records in the dataset, of which one may be missing.
      q: probability of each in each step.
      rows: of a batch.
      steps: in the whole run.
    """
    from scipy.special import bdtrc

    return min(1.0, steps * float(bdtrc(rows - 1, length, q)))


def capacity(length: int, q: float, steps: int, failure: float = FAILURE) -> int:
    """The fewest rows of a batch with ``buffer_failure(length, q, rows, steps) <= failure``.

    >>> capacity(60_000, 128 / 60_000, 450_000)
    221
    """
    low, high = 1, length + 1
    while low < high:
        middle = (low + high) // 2
        if buffer_failure(length, q, middle, steps) <= failure:
            high = middle
        else:
            low = middle + 1
    return low


class Sampling(NamedTuple):
    """How batches are drawn.

    Attributes:
      q: probability of each record in each step.
      rows: of a batch.
    """

    q: float
    rows: int


def source(
    dataset: Dataset,
    sampling: Sampling,
    *,
    secret: Any = SECRET,
    dtype: Any = jnp.float32,
    feed: str | Feed = "auto",
) -> Source:
    """The batches of a dataset: ``{"x", "y", "mask", "index", "overflow", "secret"}``.

    There are no ``examples``: what a log compares with them would be computed on the records and not be accounted for.

    Each has ``rows`` rows, the records that are in it first, in their order. ``mask`` is true where there is one; x and
    y are 0 where there is none. ``index`` is the number of the record. ``overflow`` is true, in every row, if there
    were more records than rows. ``secret``, uint32 ``[rows, 2]``, has the run's key in every row: so it reaches the
    step as an argument of the program, and not as a constant that a cache of compiled programs would keep.

    Args:
      dataset: one split.
      sampling: probability and rows.
      secret: the two words of the run's secret key, or ``SECRET`` where the source is only to be traced.
      dtype: of the images in a batch, which are in [-1, 1].
      feed: as for ``data.source``; the batches are the same.

    Raises:
      UserError: as ``data.source``.
    """
    kind, workers = parse_feed(feed) if isinstance(feed, str) else feed
    if dataset.is_absent or resolve_feed(dataset, kind) == "memory":
        made = _in_memory(dataset, sampling, secret, dtype)
    else:
        made = _streamed(dataset, sampling, secret, dtype, workers)
    return made._replace(facts=dataset.facts, average=sampling.q * dataset.length)


def _in_memory(dataset: Dataset, sampling: Sampling, secret: Any, dtype: Any) -> Source:
    length, shape, size = dataset.length, dataset.shape, int(np.prod(dataset.shape))
    if dataset.is_absent:
        x: Any = jax.ShapeDtypeStruct((length, size), jnp.uint8)
        y: Any = jax.ShapeDtypeStruct((length,), jnp.int32)
    else:
        images, y = dataset.arrays()
        x = images.reshape(length, size)

    def batch_at(data: Any, step: Any) -> dict[str, jax.Array]:
        inside = included(data["secret"], step, length, sampling.q)
        index, mask, overflow = _rows_of(inside, sampling.rows)
        rows = {name: jnp.take(data[name], index, axis=0, mode="clip") for name in ("x", "y")}
        rows |= {"index": index, "mask": mask, "overflow": overflow}
        return _batch(rows, data["secret"], shape, dtype)

    data = {"x": x, "y": y, "secret": secret}
    return Source(data, batch_at, length, sampling.rows, dataset.sha256)


def _rows_of(inside: jax.Array, rows: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The numbers of the first ``rows`` records that are in, a mask of how many there are, and if there are more."""
    before = jnp.cumsum(inside, dtype=jnp.int32)
    place = jnp.arange(rows, dtype=jnp.int32)
    index = jnp.searchsorted(before, place + 1).astype(jnp.int32)
    mask = place < before[-1]
    return jnp.where(mask, index, 0), mask, jnp.full(rows, before[-1] > rows)


def _batch(
    rows: dict[str, jax.Array], secret: jax.Array, shape: tuple[int, ...], dtype: Any
) -> dict[str, jax.Array]:
    """The rows with images in their shape, nothing in those without a record, and the secret in each."""
    n, mask = len(rows["mask"]), rows["mask"]
    x = scaled(rows["x"].reshape(n, *shape), dtype)
    return rows | {
        "x": jnp.where(mask.reshape(n, *[1] * len(shape)), x, 0),
        "y": jnp.where(mask, rows["y"], 0),
        "secret": jnp.broadcast_to(secret, (n, 2)),
    }


def _streamed(
    dataset: Dataset, sampling: Sampling, secret: Any, dtype: Any, workers: int
) -> Source:
    length, shape, rows = dataset.length, dataset.shape, sampling.rows
    size = int(np.prod(shape))
    steps = window_steps(rows, size)
    kinds = {
        "x": ((size,), jnp.uint8),
        "y": ((), jnp.int32),
        "index": ((), jnp.int32),
        "mask": ((), jnp.bool_),
        "overflow": ((), jnp.bool_),
        "secret": ((2,), jnp.uint32),
    }
    spec = {n: jax.ShapeDtypeStruct((steps, rows, *s), kind) for n, (s, kind) in kinds.items()}

    def batch_at(data: Any, step: Any) -> dict[str, jax.Array]:
        take = functools.partial(jax.lax.dynamic_index_in_dim, index=step % steps, keepdims=False)
        found = {name: take(x) for name, x in data.items()}
        return _batch(found, found.pop("secret"), shape, dtype)

    def windows(first: int, part: slice) -> Iterator[dict[str, np.ndarray]]:
        if secret is SECRET:
            raise ValueError("batches cannot be drawn without a secret key")
        made = _Windows(dataset.read, np.asarray(secret), length, size, sampling, steps, part)
        return read_ahead(made, first, workers)

    return Source(spec, batch_at, length, rows, dataset.sha256, steps, windows)


class _Windows:
    """Element ``i`` is window ``i``, as rows ``part`` of each of its batches; a random-access sequence for grain."""

    def __init__(
        self,
        read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
        secret: np.ndarray,
        length: int,
        size: int,
        sampling: Sampling,
        steps: int,
        part: slice,
    ):
        self._read, self._secret, self._length, self._size = read, secret, length, size
        self._sampling, self._steps, self._part = sampling, steps, part

    def __len__(self) -> int:
        return 2**31 // self._steps + 1  # the step is an int32

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        first = index * self._steps
        found = [self._rows(step) for step in range(first, first + self._steps)]
        return {name: np.stack([rows[name] for rows in found]) for name in found[0]}

    def _rows(self, step: int) -> dict[str, np.ndarray]:
        q, rows = self._sampling
        drawn = np.flatnonzero(included(self._secret, step, self._length, q)).astype(np.int32)
        all_index = np.zeros(rows, np.int32)
        all_index[: len(drawn)] = drawn[:rows]
        index, mask = all_index[self._part], (np.arange(rows) < len(drawn))[self._part]
        n = len(index)
        x, y = np.zeros((n, self._size), np.uint8), np.zeros(n, np.int32)
        if mask.any():
            images, labels = self._read(index[mask])
            x[mask], y[mask] = images.reshape(-1, self._size), labels
        overflow = np.full(n, len(drawn) > rows)
        secret = np.broadcast_to(self._secret, (n, 2))
        return {"x": x, "y": y, "index": index, "mask": mask, "overflow": overflow, "secret": secret}  # fmt: skip

    def __repr__(self) -> str:
        return f"windows of {counted(self._steps, 'Poisson batch', 'Poisson batches')}"


def check_rate(expected: float, length: int, argument: str = "batch_size") -> float:
    """The probability with which ``expected`` of ``length`` records are in a batch on average.

    Raises:
      UserError: if it is not in (0, 1].
    """
    if not 0 < expected <= length:
        reason = f"must be at least 1 and at most {counted(length, 'record')} of the data"
        raise UserError(reason, argument=argument, value=expected)
    return expected / length
