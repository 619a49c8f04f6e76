"""Records and gradients that are planted in a training, each with probability 1/2, for an audit to look for.

An audit that asks for a lower bound of epsilon from one run needs what it chose itself: m *canaries*, of which each is
in the training or not by a fair coin (Steinke, Nasr & Jagielski 2023, arXiv:2305.08846). Whoever can tell from the
trained model which are in has measured a leak. The coins are tossed by a seed that is a part of ``--canaries``, so the
record of a run says which were in.

Two kinds. *Image canaries* are boards of random black and white squares with random labels, among the training images:
any training takes them, and D's logit tells. *Gradient canaries* are random unit vectors times the clipping norm, added
to the sum of clipped gradients: only a private turn has such a sum, and the gradients that it releases tell. These are
the strongest records that its guarantee covers.
"""

import hashlib
import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from bpgan.algorithms.turns import Aux, Gradient, Now, Objective
from bpgan.data import Dataset
from bpgan.types import PRNG, Params, UserError, counted, stream

MEMORY = "canaries"
"""The name under which a state remembers what the released gradients say of each gradient canary, float ``[m]``."""

_CELLS = 7  # squares of a board along its shorter side: 2^49 boards


class Canaries(NamedTuple):
    """How many there are, and the seed that draws them and says which are in."""

    count: int
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> "Canaries":
        """Reads ``N``, ``N:SEED``, or an empty text for none. Raises ValueError for anything else.

        >>> Canaries.parse("200:7")
        Canaries(count=200, seed=7)
        """
        count, colon, seed = (text or "0").partition(":")
        parts = (count, seed) if colon else (count,)
        if not all(part.isdecimal() and len(part) < 10 for part in parts):
            raise ValueError("must be N, or N:SEED, whole numbers below 1,000,000,000")
        return cls(int(count), int(seed or 0))

    @staticmethod
    def forms() -> str:
        """What ``parse`` reads, for the help of a flag."""
        return (
            "N, or N:SEED for other ones: boards of random squares, each among the training images with probability"
            " 1/2, for experiments.audit to look for; empty: none"
        )

    @property
    def key(self) -> PRNG:
        """Of the gradient canaries' directions and steps."""
        return stream(jax.random.key(self.seed), "canaries")

    @property
    def included(self) -> np.ndarray:
        """bool ``[m]``: which are in the training."""
        return included(self.seed, self.count)

    def plant(self, dataset: Dataset) -> Dataset:
        """The dataset with those canaries that are in, behind its own examples.

        ``mean`` and ``std`` stay those of the dataset itself. A dataset of which only the facts are there is returned
        as it is: its facts are those of what was trained on.

        Raises:
          UserError: for more canaries than examples.
        """
        if not self.count or dataset.is_absent:
            return dataset
        if self.count > dataset.length:
            reason = f"must be at most {counted(dataset.length, 'example')} of"
            reason += f" `dataset={dataset.name}`"
            raise UserError(reason, argument="canaries", value=self, beside=["dataset"])
        inside = self.included
        found = images(self.seed, self.count, dataset.shape, dataset.classes)
        x, y = (part[inside] for part in found)
        digest = hashlib.sha256(bytes.fromhex(dataset.sha256) + x.tobytes() + y.tobytes())
        counts = np.asarray(dataset.counts) + np.bincount(y, minlength=dataset.classes)
        return dataset._replace(
            split=f"{dataset.split} with canaries",
            read=_Planted(dataset.read, dataset.length, x, y),
            counts=tuple(counts.tolist()),
            sha256=digest.hexdigest(),
            low=0,
            high=255,
        )

    def join(
        self, gradient: Gradient, *, clip: float, rate: float, batch: float
    ) -> tuple[Gradient, dict[str, np.ndarray]]:
        """A private gradient with these canaries in it (``planted``), and what it remembers at the start.

        As it is, and nothing, if there are none.
        """
        if not self.count:
            return gradient, {}
        found = planted(gradient, self.included, self.key, clip=clip, rate=rate, batch=batch)
        return found, memory(self.count)

    def __str__(self) -> str:
        return f"{self.count}:{self.seed}" if self.seed else f"{self.count}"


def _random(seed: int, what: str) -> np.random.RandomState:
    """A generator whose numbers no version of NumPy changes."""
    return np.random.RandomState([zlib.crc32(what.encode()), seed])


def included(seed: int, m: int) -> np.ndarray:
    """bool ``[m]``: of each canary whether it is in the training, by a fair coin. The first ones do not depend on m."""
    return _random(seed, "canaries included").random_sample(m) < 0.5


def images(
    seed: int, m: int, shape: tuple[int, int, int], classes: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """All canaries, whether they are in or not: boards of random squares, and labels at random.

    Args:
      seed: of the squares and the labels.
      m: how many.
      shape: ``(h, w, c)`` of an image. A square has a seventh of the shorter side; channels have squares of their own.
      classes: of the labels.

    Returns:
      ``x`` uint8 ``[m, h, w, c]``, 0 or 255, and ``y`` int32 ``[m]``.
    """
    height, width, channels = shape
    side = max(min(height, width) // _CELLS, 1)
    rows, columns = -(-height // side), -(-width // side)
    cells = _random(seed, "canary images").randint(0, 2, (m, rows, columns, channels))
    x = cells.astype(np.uint8).repeat(side, axis=1).repeat(side, axis=2)[:, :height, :width]
    y = _random(seed, "canary labels").randint(0, classes, m).astype(np.int32)
    return 255 * x, y


class _Planted:
    """``Dataset.read`` of a dataset and of images behind it, of which the first has the number ``length``."""

    def __init__(self, read: Callable[..., Any], length: int, x: np.ndarray, y: np.ndarray):
        self._read, self._length, self._x, self._y = read, length, x, y

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        indices = np.asarray(indices, np.int64)
        behind = indices >= self._length
        x = np.empty((len(indices), *self._x.shape[1:]), np.uint8)
        y = np.empty(len(indices), np.int32)
        own = indices[behind] - self._length
        x[behind], y[behind] = self._x[own], self._y[own]
        if not behind.all():
            x[~behind], y[~behind] = self._read(indices[~behind])
        return x, y


# Gradients ----------------------------------------------------------------------------------------------------------


def memory(m: int) -> dict[str, np.ndarray]:
    """What ``turns.play(memory=...)`` takes for a turn that ``planted`` has wrapped."""
    return {MEMORY: np.zeros(m, np.float32)}


def planted(
    gradient: Gradient,
    included: np.ndarray,
    key: PRNG,
    *,
    clip: float,
    rate: float,
    batch: float,
) -> Gradient:
    """A private gradient with gradient canaries in it, which remembers what it releases of each.

    In update t, canary i is the vector ``C u_it``, where the ``u_it`` are orthonormal and drawn anew in every update:
    the parameters are dealt out to the canaries in turn, and each has random signs on its own. A canary that is in is
    in the batch of an update with probability q, as a record is. So the turn goes by

        g + C / B sum_i [i is in, and in batch t] u_it,

    and the state adds up ``B / C <u_it, g'>`` of what is released, g': a canary that is in has q more of it in every
    update than one that is not. Drawn anew, the directions make noise of everything else in the gradient.

    Args:
      gradient: ``(sum of clipped gradients + noise) / B`` of one term, which enters every update.
      included: bool ``[m]``; ``Canaries.included``.
      key: ``Canaries.key``.
      clip: C, the greatest norm that a record has in the sum.
      rate: q, with which a record is in a batch.
      batch: B, what the sum is divided by: the expected batch.

    Returns:
      The gradient. ``now.memory`` must have ``memory(m)``.

    Raises:
      UserError: at trace time, for more canaries than parameters.
    """
    m = len(included)

    def with_canaries(
        objective: Objective, now: Now, player: str
    ) -> tuple[tuple[jax.Array, Aux], Params]:
        (value, aux), found = gradient(objective, now, player)
        flat, unflatten = ravel_pytree(found)
        each = flat.size // m
        if not each:
            reason = f"must be at most {counted(flat.size, 'parameter')} of {player}"
            raise UserError(reason, argument="canaries", value=m)
        own, unit = jax.random.fold_in(key, now.index), 1 / math.sqrt(each)
        signs = jax.random.rademacher(stream(own, "signs"), (each, m), flat.dtype)
        due = jax.random.bernoulli(stream(own, "batch"), rate, (m,))
        size = jnp.where(jnp.asarray(included) & due, unit * clip / batch, 0).astype(flat.dtype)
        flat = flat.at[: each * m].add((signs * size[None]).ravel())
        seen = unit * jnp.sum(signs * flat[: each * m].reshape(each, m), 0)
        kept = now.memory[MEMORY]
        remembered = {MEMORY: kept + (seen * (batch / clip)).astype(kept.dtype)}
        return (value, aux._replace(memory={**aux.memory, **remembered})), unflatten(flat)

    return with_canaries
