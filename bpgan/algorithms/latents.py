"""Distributions of latents by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

from bpgan.algorithms import gan
from bpgan.types import PRNG, UserError
from bpgan.types import Latents as Array

DISTRIBUTIONS: dict[str, Callable[..., Callable[[PRNG, int], Array]]] = {
    "normal": gan.normal_latents,
    "uniform": gan.uniform_latents,
}
"""``distribution(dim, dtype) -> draw``, by name."""


class Latents(NamedTuple):
    """A distribution and its dimension.

    Attributes:
      kind: of ``DISTRIBUTIONS``.
      dim: numbers in a z.
    """

    kind: str
    dim: int

    def draw(self, dtype: Any, *options: Any) -> Callable[[PRNG, int], Array]:
        """``(key, n) -> z[n, dim]``; the options are those of the distribution, such as a truncation."""
        return DISTRIBUTIONS[self.kind](self.dim, dtype, *options)

    def truncated(self, dtype: Any, bound: float) -> Callable[[PRNG, int], Array] | None:
        """The same with each number of z between ``-bound`` and ``bound``; None, for none, of a bound of 0.

        Raises:
          UserError: of the argument ``truncation``, if the distribution is not normal.
        """
        if not bound:
            return None
        if self.kind != "normal":
            reason = f"`latents={self.kind}:{self.dim}`, must be normal:DIM"
            raise UserError(reason, argument="truncation", value=bound, beside=["latents"])
        return self.draw(dtype, bound)

    @classmethod
    def parse(cls, text: str) -> "Latents":
        """Reads ``normal:DIM`` or ``uniform:DIM``. Raises ValueError for anything else."""
        kind, _, dim = text.partition(":")
        if kind not in DISTRIBUTIONS or not dim.isdecimal() or not 1 <= int(dim) <= 10_000_000:
            forms = " or ".join(f"{name}:DIM" for name in DISTRIBUTIONS)
            raise ValueError(f"must be {forms}, DIM from 1 to 10,000,000")
        return cls(kind, int(dim))
