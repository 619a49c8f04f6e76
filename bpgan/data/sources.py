"""Batches as a function of the step: from arrays on the device, or read from disk in windows of steps.

Both show the same examples in the same order: row ``j`` of batch ``t`` is place ``t * batch_size + j`` of the endless
sequence of shuffled epochs (``order.py``). Neither has a state, so there is nothing to checkpoint and nothing to lose.

On the device an example is one row of numbers, and a batch takes its shape after it was gathered. A TPU keeps arrays in
tiles of at least 8 x 128 places: compiled for a v5e, CIFAR-10 as ``[n, h, w, c]`` takes 769 MB, as rows 154 MB.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpgan import memory
from bpgan.data import attributes, order
from bpgan.data.datasets import Dataset
from bpgan.types import Source, UserError, counted, stream

_MEMORY = 2 << 30
"""``feed="auto"``: greatest size in bytes of a split that is kept on the device."""

_WINDOW = 32 << 20
"""Aim for windows of this many bytes: long enough to hide a call's overhead, short enough to hold several."""

_EXAMPLES = 100


def source(
    dataset: Dataset,
    *,
    seed: int,
    batch_size: int,
    dtype: Any = jnp.float32,
    feed: "str | Feed" = "auto",
    flip: bool = False,
    window: int = 0,
) -> Source:
    """The batches of a dataset: ``x`` images, ``y`` int32 labels ``[b]``.

    Of a dataset that was prepared for conditions on its attributes (``datasets.for_conditions``), ``y`` are vectors
    float32 ``[b, d]`` of classes and attributes (``Attributes.vectors``).

    Args:
      dataset: one split.
      seed: of the order.
      batch_size: rows of the global batch.
      dtype: of the images in a batch, which are in [-1, 1].
      feed: ``memory``, the split is kept on the device; ``stream``, it is read from disk by threads ahead of its use,
        or ``stream:N``, by N worker processes; ``auto``, memory for at most 2 GiB. The batches are the same. Or what
        ``parse_feed`` made of the text.
      flip: see ``mirrored``.
      window: steps of a window of a stream; 0: as many as are useful.

    Raises:
      UserError: if the split is too large for an exact order or, kept on the device, for the memory.
    """
    result = _fed(dataset, seed, batch_size, dtype, feed, window)._replace(facts=dataset.facts)
    return mirrored(result, seed=seed) if flip else result


def _fed(
    dataset: Dataset, seed: int, batch_size: int, dtype: Any, feed: "str | Feed", window: int
) -> Source:
    """As ``feed`` says."""
    kind, workers = parse_feed(feed) if isinstance(feed, str) else feed
    vectors = _conditions_of(dataset)
    if dataset.is_absent:
        return _abstract(dataset, seed, batch_size, dtype, _size_of(dataset, vectors))
    if resolve_feed(dataset, kind) == "memory":
        x, y = dataset.arrays()
        if vectors:
            y = vectors.vectors(y, vectors.values, dataset.classes)
        return in_memory(
            x,
            y,
            seed=seed,
            batch_size=batch_size,
            dtype=dtype,
            fingerprint=dataset.sha256,
        )
    read = dataset.read
    if vectors:
        read = attributes.reads_vectors(read, vectors, dataset.classes)
    return streamed(
        read,
        length=dataset.length,
        shape=dataset.shape,
        seed=seed,
        batch_size=batch_size,
        fingerprint=dataset.sha256,
        dtype=dtype,
        workers=workers,
        window=window,
        vector=_size_of(dataset, vectors),
    )


def _conditions_of(dataset: Dataset) -> attributes.Attributes | None:
    """The attributes that a model sees; None if it sees none."""
    has = dataset.attributes
    return has if has is not None and has.shown is not None else None


def _size_of(dataset: Dataset, vectors: attributes.Attributes | None) -> int:
    return attributes.size_of(vectors, dataset.classes) if vectors else 0


def resolve_feed(dataset: Dataset, kind: str) -> str:
    """``memory`` or ``stream``: where the images of a dataset are read from, of a ``Feed.kind``. Raises UserError."""
    size = dataset.length * int(np.prod(dataset.shape))
    if kind == "memory" and size > (free := memory.available()):
        reason = f"{memory.shortfall(size, free)} for this dataset; stream reads it from disk"
        raise UserError(reason, argument="feed", value=kind)
    return "memory" if kind == "memory" or (kind == "auto" and size <= _MEMORY) else "stream"


def _targets(shape: tuple[int, ...], vector: int) -> jax.ShapeDtypeStruct:
    """Labels of so many rows, or vectors of this size if it is not 0."""
    if vector:
        return jax.ShapeDtypeStruct((*shape, vector), jnp.float32)
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _abstract(dataset: Dataset, seed: int, batch_size: int, dtype: Any, vector: int) -> Source:
    """Batches of a dataset whose images are absent: they have shapes and types, so that a step can be traced."""
    length, shape = dataset.length, dataset.shape
    data = {
        "x": jax.ShapeDtypeStruct((length, int(np.prod(shape))), jnp.uint8),
        "y": _targets((length,), vector),
        "order": order.round_keys(seed),
    }
    batch_at = _resident(shape, length, batch_size, dtype)
    return Source(data, batch_at, length, batch_size, dataset.sha256)


def mirrored(source: Source, *, seed: int, names: Sequence[str] = ("x",)) -> Source:
    """The source with every image ``[h, w, c]`` mirrored left to right with probability 1/2.

    By a bit of the seed, the step and the row, so that a resumed run and any number of devices see the same images.

    Args:
      source: of the batches.
      seed: of the bits.
      names: of the images in a batch; those of a row are mirrored together.
    """
    root = stream(jax.random.key(seed), "flip")

    def batch_at(data, step):
        batch = source.batch_at(data, step)
        shape = (batch[names[0]].shape[0], 1, 1, 1)
        bits = jax.random.bernoulli(jax.random.fold_in(root, step), 0.5, shape)
        turned = {name: jnp.where(bits, batch[name][:, :, ::-1], batch[name]) for name in names}
        return {**batch, **turned}

    return source._replace(batch_at=batch_at)


class Feed(NamedTuple):
    """Where the data lie: ``auto``, ``memory`` or ``stream``, and how many processes read a stream."""

    kind: str
    workers: int


def parse_feed(text: str) -> Feed:
    """Reads ``auto``, ``memory``, ``stream`` or ``stream:WORKERS``. Raises ValueError."""
    kind, colon, workers = text.partition(":")
    if kind not in ("auto", "memory", "stream") or (
        colon and (kind != "stream" or not workers.isdecimal() or int(workers) > 64)
    ):
        raise ValueError("must be auto, memory, stream or stream:WORKERS (0 to 64)")
    return Feed(kind, int(workers or 0))


def fingerprint_of(*parts: np.ndarray | str) -> str:
    """The SHA-256 of arrays (types, shapes and bytes) and texts, in this order."""
    digest = hashlib.sha256()
    for part in parts:
        array = np.frombuffer(part.encode(), np.uint8) if isinstance(part, str) else part
        digest.update(f"{array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def in_memory(
    x: np.ndarray,
    y: np.ndarray,
    *,
    seed: int,
    batch_size: int,
    dtype: Any = jnp.float32,
    fingerprint: str = "",
) -> Source:
    """A source over arrays that stay on the device.

    Each epoch shows every example exactly once; a batch may straddle two epochs.

    Args:
      x: examples ``[n, ...]``, kept as rows ``[n, h*w*c]``; uint8 images stay bytes and become ``x / 127.5 - 1`` in
        the batch.
      y: labels ``[n]`` or vectors ``[n, d]``.
      seed: of the order.
      batch_size: rows of the global batch.
      dtype: of the examples in a batch.
      fingerprint: of the content; empty: that of x and y.

    Raises:
      ValueError: if there are no examples.
      UserError: if ``n * batch_size`` exceeds 2^32.
    """
    length = len(x)
    if length == 0 or len(y) != length:
        raise ValueError(f"need as many labels as examples and at least one: {len(x)}, {len(y)}")
    _check_size(length, batch_size)
    data = {"x": x.reshape(length, -1), "y": y, "order": order.round_keys(seed)}
    batch_at = _resident(x.shape[1:], length, batch_size, dtype)
    fingerprint = fingerprint or fingerprint_of(x, y)
    return Source(data, batch_at, length, batch_size, fingerprint, examples=x[_spread(length)])


def _resident(
    shape: tuple[int, ...], length: int, batch_size: int, dtype: Any
) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """``batch_at`` of data that are on the device."""

    def batch_at(data, step):
        rows = order.rows_at(data["order"], step, length, batch_size)
        flat = jnp.take(data["x"], rows, axis=0, mode="clip")
        return {
            "x": scaled(flat.reshape(batch_size, *shape), dtype),
            "y": jnp.take(data["y"], rows, axis=0, mode="clip"),
        }

    return batch_at


def streamed(
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    *,
    length: int,
    shape: tuple[int, ...],
    seed: int,
    batch_size: int,
    fingerprint: str,
    dtype: Any = jnp.float32,
    workers: int = 0,
    window: int = 0,
    vector: int = 0,
) -> Source:
    """A source over examples that are read when they are needed: the batches of ``in_memory``, in bounded memory.

    Args:
      read: ``read(indices[k]) -> (x uint8 [k, *shape], y int32 [k])``, called from several threads at once; with
        ``workers``, from processes it is pickled to.
      length: examples per epoch.
      shape: of one example.
      seed, batch_size, dtype: as for ``in_memory``.
      fingerprint: of the content, which is not read for it here.
      workers: processes that read; 0 for threads, which suffice unless ``read`` holds the interpreter's lock.
      window: see ``source``.
      vector: size of the vectors that ``read`` gives in the place of labels, float32 ``[k, vector]``; 0: labels.
    """
    _check_size(length, batch_size)
    size = int(np.prod(shape))
    steps = window or window_steps(batch_size, size)
    keys = np.asarray(order.round_keys(seed))
    spec = {
        "x": jax.ShapeDtypeStruct((steps, batch_size, size), jnp.uint8),
        "y": _targets((steps, batch_size), vector),
    }

    def batch_at(data, step):
        x, y = (jax.lax.dynamic_index_in_dim(data[k], step % steps, keepdims=False) for k in "xy")
        return {"x": scaled(x.reshape(batch_size, *shape), dtype), "y": y}

    def windows(first: int, rows: slice) -> Iterator[dict[str, np.ndarray]]:
        return read_ahead(_Windows(read, keys, length, batch_size, steps, rows), first, workers)

    examples = read(_spread(length))[0]
    return Source(spec, batch_at, length, batch_size, fingerprint, steps, windows, examples)


def window_steps(batch_size: int, size: int) -> int:
    """Steps of a window of batches of ``batch_size`` examples of ``size`` bytes.

    Raises:
      UserError: without Grain, or if some windows do not fit into memory.
    """
    if importlib.util.find_spec("grain") is None:
        reason = "reading from disk needs Grain: pip install grain; memory does without"
        raise UserError(reason, argument="feed", value="stream")
    if (need := 4 * batch_size * size) > (free := memory.available()):  # two are ahead, one is used
        raise UserError(memory.shortfall(need, free), argument="batch_size", value=batch_size)
    return int(np.clip(_WINDOW // (batch_size * size), 1, 256))


class _Windows:
    """Element ``i`` is window ``i``, as rows ``rows`` of each of its batches; a random-access sequence for grain."""

    def __init__(self, read, keys: np.ndarray, length: int, batch_size: int, steps: int, rows):
        self._read, self._keys, self._length = read, keys, length
        self._batch_size, self._steps = batch_size, steps
        self._rows = np.arange(batch_size)[rows]

    def __len__(self) -> int:
        return 2**31 // self._steps + 1  # the step is an int32

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        steps = np.arange(self._steps, dtype=np.int64) + index * self._steps
        places = steps[:, None] * self._batch_size + self._rows
        x, y = self._read(order.rows_on_host(self._keys, places.ravel(), self._length))
        return {"x": x.reshape(*places.shape, -1), "y": y.reshape(*places.shape, *y.shape[1:])}

    def __repr__(self) -> str:
        return f"windows of {counted(self._steps, 'batch', 'batches')} of {self._batch_size}"


def read_ahead(windows: Any, first: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
    """The windows from ``first`` on, read by threads or processes while the last ones are used."""
    import grain

    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    ready = grain.MapDataset.source(windows)[first:].to_iter_dataset(ahead)
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain reads flags of its own; bpgan has not defined any
            flags.FLAGS.mark_as_parsed()
        ready = ready.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(ready)


def scaled(x: jax.Array, dtype: Any) -> jax.Array:
    """uint8 images in [-1, 1]; anything else only converted."""
    return x.astype(dtype) / 127.5 - 1 if x.dtype == jnp.uint8 else x.astype(dtype)


def _spread(length: int) -> np.ndarray:
    """Indices of up to ``_EXAMPLES`` examples evenly spread over the data, which may be sorted by class."""
    return np.linspace(0, length - 1, min(length, _EXAMPLES)).round().astype(np.int64)


def _check_size(length: int, batch_size: int) -> None:
    if length * batch_size >= 2**32:
        most = (2**32 - 1) // length
        reason = f"must be at most {most} for {counted(length, 'example')}"
        raise UserError(reason, argument="batch_size", value=batch_size)
