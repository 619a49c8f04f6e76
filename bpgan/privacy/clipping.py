"""The sum of the gradients of single records, each of bounded norm.

    sum_i g_i min(1, C / |g_i|),     g_i the gradient of the objective of record i by itself

(Abadi et al. 2016, arXiv:1607.00133). Whatever a record is, it moves the sum by at most C.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bpgan.algorithms.turns import Now, Objective, autodiff
from bpgan.types import Params


def parse_form(text: str) -> str:
    """Reads a form of ``clipped_sum``. Raises ValueError for anything else."""
    if text not in ("auto", "vmap"):
        raise ValueError("must be auto or vmap")
    return text


def clipped_sum(
    objective: Objective,
    now: Now,
    player: str,
    mask: jax.Array,
    clip: float,
    form: str = "auto",
    views: int = 1,
) -> tuple[Params, jax.Array, jax.Array]:
    """The sum over records of their gradients, each scaled down to the norm ``clip`` if it is longer.

    Args:
      objective: the mean over the rows of a batch; here it sees the rows of one record at a time.
      now: its batch has ``b * views`` rows, those of a record one after the other.
      player: whose parameters it is differentiated by. The norm is over all of them.
      mask: bool ``[b]``; what is not true adds exactly zero, whatever its rows are.
      clip: C.
      form: how it is computed.
      views: rows of a record, whose gradients are averaged before they are clipped.

    Returns:
      The sum, the values ``[b]`` of the objective, and the norms ``[b]`` before clipping. A record whose gradient is
      not finite adds nothing.
    """
    del form

    def one(rows: Any, i: jax.Array) -> tuple[jax.Array, Params]:
        alone = now._replace(batch=rows, key=jax.random.fold_in(now.key, i))
        (value, _), gradient = autodiff(objective, alone, player)
        return value, gradient

    b = len(mask)
    rows = jax.tree.map(lambda x: x.reshape(b, views, *x.shape[1:]), dict(now.batch))
    values, each = jax.vmap(one)(rows, jnp.arange(b))
    squares = [jnp.sum(jnp.square(g.reshape(b, -1)), 1) for g in jax.tree.leaves(each)]
    norms = jnp.sqrt(sum(squares[1:], squares[0]))
    counts = mask & jnp.isfinite(norms)
    scale = jnp.where(counts, jnp.minimum(1.0, clip / norms), 0.0)

    def add(g: jax.Array) -> jax.Array:
        g = jnp.where(counts.reshape(b, *[1] * (g.ndim - 1)), g, 0)
        return jnp.tensordot(scale.astype(g.dtype), g, 1, precision=lax.Precision.HIGHEST)

    return jax.tree.map(add, each), values, norms
