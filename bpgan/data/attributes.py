"""Attributes of images beside their classes: numbers with names, and the vectors that a model is conditioned on.

Binary attributes are numbers 0 and 1. A network sees a vector for each image: the indicators of its class, where there
are classes, and each attribute minus its mean over its standard deviation, both of the training split.
"""

import functools
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bpgan.types import UserError, counted

_SHOWN = 256
"""Conditions of training images that a run keeps, to draw samples for."""


class Attributes(NamedTuple):
    """Of the images of a split.

    Attributes:
      names: in order.
      values: float32 ``[n, a]``, as they were given; ``[0, a]`` where the images are absent.
      mean, std, low, high: of each attribute in the training split.
      shown: labels and values of training images that samples are drawn for, float32 ``[m, 1 + a]``; None as long as
        no model is trained on them, and so nothing of them may leave the dataset.
    """

    names: tuple[str, ...]
    values: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    shown: np.ndarray | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What a model needs to be built again, for JSON."""
        shown = np.zeros((0, 1 + len(self.names))) if self.shown is None else self.shown
        return {
            "names": list(self.names),
            "mean": list(self.mean),
            "std": list(self.std),
            "low": list(self.low),
            "high": list(self.high),
            "shown": shown.tolist(),
        }

    @property
    def digest(self) -> str:
        """The SHA-256 of names and values."""
        head = "\0".join(self.names).encode() + b"\0"
        return hashlib.sha256(head + self.values.astype("<f4").tobytes()).hexdigest()

    def rows(self, chosen: np.ndarray) -> "Attributes":
        """Of some of the images, in this order; the statistics stay those of the training split."""
        return self._replace(values=self.values[chosen])

    def range_of(self, name: str) -> str:
        """The least and the largest number of an attribute in training, to all digits: ``0 to 1``."""
        i = self.names.index(name)
        return " to ".join(
            str(np.float32(each[i])).removesuffix(".0") for each in (self.low, self.high)
        )

    def column(self, name: str, numbers: Any, n: int) -> np.ndarray:
        """Numbers of one attribute, float32 ``[n]``, of one number for all or n of them.

        Raises:
          UserError: for an unknown name, another count, and numbers beyond those of the training images.
        """
        if name not in self.names:
            reason = f"must be one of {', '.join(self.names[:20])}"
            raise UserError(reason, argument="attributes", value=name)
        i, found = self.names.index(name), np.asarray(numbers, np.float32)
        if found.shape not in ((), (n,)):
            reason = f"{list(found.shape)} numbers, must be one or {n}, as many as samples"
            raise UserError(reason, argument="attributes", value=name)
        within = (np.float32(self.low[i]) <= found) & (found <= np.float32(self.high[i]))
        if not within.all():
            bad = np.ravel(found)[np.ravel(~within)][0]
            reason = f"{bad:g} is not among those of training; must be numbers from {self.range_of(name)}"
            raise UserError(reason, argument="attributes", value=name)
        return np.broadcast_to(found, (n,))

    def vectors(self, labels: np.ndarray, values: np.ndarray, classes: int) -> np.ndarray:
        """The conditions float32 ``[k, d]`` of images with labels int ``[k]`` and attributes ``[k, a]``.

        Where there are two classes or more, ``d = classes + a``, else ``d = a``.
        """
        mean, std = np.asarray((self.mean, self.std), np.float32)
        scaled = (np.asarray(values, np.float32) - mean) / std
        if classes < 2:
            return scaled
        one_hot = np.asarray(labels)[:, None] == np.arange(classes)
        return np.concatenate([one_hot.astype(np.float32), scaled], axis=1)


def size_of(attributes: Attributes, classes: int) -> int:
    """The size d of ``Attributes.vectors``."""
    return len(attributes.names) + (classes if classes > 1 else 0)


def described(names: Sequence[str], values: np.ndarray, train: np.ndarray) -> Attributes:
    """Attributes of a split with the statistics of the training split.

    Args:
      names: of the attributes.
      values: of the split ``[n, a]``.
      train: of the training split ``[m, a]``.

    Raises:
      UserError: for an attribute that is the same in all training images, from which nothing can be learned.
    """
    train = np.asarray(train, np.float64)
    low, high = train.min(0), train.max(0)
    same = np.flatnonzero(low == high)
    if len(same):
        name, value = names[same[0]], low[same[0]]
        raise UserError(f"the attribute {name!r} is {value:g} in all training images, as float32")
    numbers = (tuple(map(float, each)) for each in (train.mean(0), train.std(0), low, high))
    mean, std, lows, highs = numbers
    return Attributes(tuple(names), np.asarray(values, np.float32), mean, std, lows, highs)


def of_facts(facts: Mapping[str, Any] | None) -> Attributes | None:
    """Of ``Attributes.facts``, without values."""
    if not facts:
        return None
    names = tuple(facts["names"])
    numbers = (tuple(facts[key]) for key in ("mean", "std", "low", "high"))
    shown = np.asarray(facts["shown"], np.float32).reshape(-1, 1 + len(names))
    return Attributes(names, np.zeros((0, len(names)), np.float32), *numbers, shown=shown)


def checked(
    values: Any,
    count: int,
    names: Sequence[str] | None,
    what: str,
    row_name: Callable[[int], str] = "image {}".format,
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and float32 ``[count, a]``, of what a file has.

    Args:
      values: numbers or booleans.
      count: of the images.
      names: None: ``attribute0``, ``attribute1``, ...
      what: the values are, for messages.
      row_name: of an image, for messages.

    Raises:
      UserError: for values of another shape or kind, numbers that are not finite, and names that do not fit.
    """
    found = np.asarray(values)
    if (
        found.dtype.kind not in "biuf"
        or found.ndim != 2
        or found.shape[0] != count
        or not found.size
    ):
        shape = f"{found.dtype}{list(found.shape)}"
        raise UserError(f"{what} are {shape}, must be numbers [{count}, a], a row for each image")
    with np.errstate(over="ignore"):
        numbers = found.astype(np.float32)
    a = numbers.shape[1]
    called = tuple(f"attribute{i}" for i in range(a)) if names is None else tuple(names)
    if len(called) != a:
        raise UserError(f"{counted(len(called), 'attribute name')} for {a} numbers of each image")
    if twice := next((name for i, name in enumerate(called) if name in called[:i]), None):
        raise UserError(f"the attribute name {twice!r} occurs twice")
    for name in called:
        if not name.isprintable() or not name.strip() or set("=,:") & set(name):
            raise UserError(f"the attribute name {name!r} must be letters without = , and :")
    bad = np.argwhere(~np.isfinite(numbers))
    if len(bad):
        row, column = bad[0]
        value = found[row, column]
        reason = f"{called[column]!r} of {row_name(row)} is {value}, must be finite as float32"
        raise UserError(f"{what}: {reason}")
    return called, numbers


def encoded(values: np.ndarray) -> bytes:
    """An ``.npy`` file of float32 ``[n, a]``."""
    file = io.BytesIO()
    np.save(file, values.astype("<f4"), allow_pickle=False)
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray:
    """What ``encoded`` has made. Raises ValueError for anything else."""
    return np.load(io.BytesIO(data), allow_pickle=False)


Read = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def _with_vectors(read: Read, attributes: Attributes, classes: int, indices: np.ndarray):
    x, y = read(indices)
    return x, attributes.vectors(y, attributes.values[indices], classes)


def reads_vectors(read: Read, attributes: Attributes, classes: int) -> Read:
    """``read`` of images with their vectors in the place of labels."""
    plain = attributes._replace(shown=None)
    return functools.partial(_with_vectors, read, plain, classes)


def choose_shown(read: Read, attributes: Attributes, count: int) -> Attributes:
    """With ``shown``: at most 256 of the images, the same ones whatever the seed of a run, in random order."""
    if attributes.shown is not None:
        return attributes
    rows = np.random.RandomState(0).permutation(count)[:_SHOWN]
    labels = np.concatenate([read(rows[i : i + 16])[1] for i in range(0, len(rows), 16)])
    shown = np.concatenate([labels[:, None], attributes.values[rows]], axis=1)
    return attributes._replace(shown=shown.astype(np.float32))


def in_turn(attributes: Attributes, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels int32 ``[n]`` and values ``[n, a]`` of the first n images that are ``shown``, again from the first."""
    assert attributes.shown is not None
    rows = attributes.shown[np.arange(n) % len(attributes.shown)]
    return rows[:, 0].astype(np.int32), rows[:, 1:]


def parse(text: str, attributes: Attributes) -> dict[str, float]:
    """Reads ``smile=1,age=0.3``; ``Attributes.column`` tells whether the numbers are among those of training.

    Raises:
      ValueError: for names that are unknown or occur twice, and what is no number.
    """
    found: dict[str, float] = {}
    known = [f"{name} ({attributes.range_of(name)})" for name in attributes.names[:20]]
    few = ", ".join(known) + ", ..." * (len(attributes.names) > 20)
    for part in text.split(",") if text else []:
        name, equals, number = part.partition("=")
        name = name.strip()
        if not equals or name not in attributes.names:
            raise ValueError(f"{part!r}: must be NAME=NUMBER, separated by commas, of {few}")
        if name in found:
            raise ValueError(f"{name} occurs twice")
        try:
            found[name] = float(number)
        except ValueError:
            needed = f"a number, {attributes.range_of(name)}"
            raise ValueError(f"{part!r}: must be {needed}") from None
    return found
