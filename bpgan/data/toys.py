"""Distributions that are known exactly, drawn afresh at every step."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpgan.data.sources import fingerprint_of
from bpgan.types import PRNG, Source, stream

LENGTH = 100_000
"""What to call an epoch of data that never come again."""


class Mixture(NamedTuple):
    """Equally likely Gaussians ``N(center, std^2 I)``.

    Attributes:
      centers: float64 ``[k, d]``.
      std: of every mode in every direction.
    """

    centers: np.ndarray
    std: float

    @property
    def definition(self) -> str:
        """All of it as text; to nine digits, for the last ones of a cosine differ between machines."""
        centers = (np.round(self.centers, 9) + 0.0).tolist()
        return f"Gaussians of standard deviation {self.std:.9g} at {centers}"

    def draw(self, key: PRNG, n: int, dtype: Any = jnp.float32) -> jax.Array:
        """``n`` samples ``[n, d]``."""
        k1, k2 = jax.random.split(key)
        k, d = self.centers.shape
        which = jax.random.randint(k1, (n,), 0, k)
        centers = jnp.asarray(self.centers, dtype)[which]
        return centers + self.std * jax.random.normal(k2, (n, d), dtype)


def ring(modes: int = 8, radius: float = 1.0, std: float = 0.01) -> Mixture:
    """Modes on a circle. Lin et al. 2018, arXiv:1712.04086, Sec. 4.1."""
    angle = 2 * math.pi * np.arange(modes) / modes
    return Mixture(radius * np.stack([np.cos(angle), np.sin(angle)], 1), std)


def row(modes: int = 4, spacing: float = 1.0, std: float = 0.1) -> Mixture:
    """Modes on a line around 0: the one-dimensional example of adversarial flow models, its modes a little wider."""
    return Mixture(spacing * (np.arange(modes) - (modes - 1) / 2)[:, None], std)


def grid(
    side: int = 5, spacing: float = 2.0, std: float = 0.05, scale: float = 2 * math.sqrt(2)
) -> Mixture:
    """``side^2`` modes on a square lattice around 0, all divided by ``scale``.

    Lin et al. 2018; the division is that of Gulrajani et al. 2017, arXiv:1704.00028.
    """
    ticks = spacing * (np.arange(side) - (side - 1) / 2)
    centers = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2)
    return Mixture(centers / scale, std / scale)


def fresh(
    draw: Callable[[PRNG, int], jax.Array],
    *,
    definition: str,
    seed: int,
    batch_size: int,
    length: int = LENGTH,
) -> Source:
    """Batches that never come again: ``draw(key, batch_size)`` with a key of the seed and the step.

    Args:
      draw: ``(key, n) -> x[n, ...]``, traceable.
      definition: a text that says all of what ``draw`` draws from; the fingerprint is its hash.
      seed: of all batches; may be traced.
      batch_size: rows of one.
      length: what to call an epoch.
    """
    root = jax.random.key_data(stream(jax.random.key(seed), "data"))

    def batch_at(data: Any, step: Any) -> dict[str, Any]:
        key = jax.random.fold_in(jax.random.wrap_key_data(data["key"]), step)
        return {"x": draw(key, batch_size), "y": jnp.zeros(batch_size, jnp.int32)}

    return Source({"key": root}, batch_at, length, batch_size, fingerprint_of(definition))
