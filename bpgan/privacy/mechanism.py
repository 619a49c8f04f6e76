"""The private turn: a turn whose gradient is that of no single record.

    g = (sum_i g_i min(1, C / |g_i|) + N(0, (sigma C)^2)) / B                    (Abadi et al. 2016, arXiv:1607.00133)

over the records i of a Poisson batch (``data.poisson``), B being the *expected* number of them: the number that there
are is as secret as they are. Everything that is made of g is post-processing: any optimizer, and every other player.

Rows are in the order of the records, so a record more moves all that follow it to other rows. What is drawn for a row,
its latents above all, must not tell: it is drawn by the secret key. Then whoever does not know that sees rows of one
law in any order, and a record moves the sum by its own gradient only.

``gaussian`` is a ``turns.Gradient``, ``privatize`` makes a turn private by one. What an objective finds out beside its
gradient, losses and logits of records, is not accounted for, so it is neither returned nor logged.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bpgan.algorithms.turns import Aux, Gradient, Now, Objective, Turn
from bpgan.privacy.clipping import clipped_sum
from bpgan.privacy.noise import normal
from bpgan.types import PRNG, Batch, Params, stream

OVERFLOW = "overflow"
"""The memory that is infinite once a batch had more records than rows: a run ends where it is not finite."""

_OF_SAMPLING = ("mask", "index", "overflow", "secret")


def gaussian(
    clip: float,
    noise_multiplier: float,
    expected_batch: float,
    secret: PRNG | None = None,
    form: Any = "auto",
    views: int = 1,
) -> Gradient:
    """The clipped sum with Gaussian noise, over the expected batch.

    The noise of update t has the key ``fold_in(stream(secret, "noise"), t)``, and each number of the gradient, whatever
    its leaf, a counter of its own; what objectives draw has ``fold_in(stream(secret, "rows"), t)``. The state has to
    remember ``OVERFLOW``, if batches can overflow.

    Args:
      clip: C, the greatest norm of the gradient of one record.
      noise_multiplier: sigma.
      expected_batch: B.
      secret: the key that nobody may know; None: the one that comes with the batch.
      form, views: of ``clipping.clipped_sum``.

    Returns:
      The gradient, of batches as ``data.poisson`` has them. Its value is 0, and there are no metrics.
    """

    def gradient(
        objective: Objective, now: Now, player: str
    ) -> tuple[tuple[jax.Array, Aux], Params]:
        rows = {name: x for name, x in now.batch.items() if name not in _OF_SAMPLING}
        seen = now._replace(batch=rows, key=_own_key(now, secret, "rows"))
        total, *_ = clipped_sum(objective, seen, player, now.batch["mask"], clip, form, views)
        # Averaged over devices afterwards, each of which has a part of the records and the same noise.
        shares = now.axis.total(1)
        if noise_multiplier:
            noise = _normal(_own_key(now, secret, "noise"), total, noise_multiplier * clip)
            total = jax.tree.map(lambda g, e: shares * g + e, total, noise)
        elif shares > 1:
            total = jax.tree.map(lambda g: shares * g, total)
        mean = jax.tree.map(lambda g: g / expected_batch, total)
        return (jnp.zeros(()), Aux(memory=_overflow(now))), mean

    return gradient


def secret_of(now: Now) -> PRNG:
    """The run's secret key, which every row of its batches has; computed as fast as the key of the step is."""
    words = now.batch["secret"][0]
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(now.key))


def _own_key(now: Now, secret: PRNG | None, name: str) -> PRNG:
    """The secret key of a purpose in this update."""
    key = secret_of(now) if secret is None else secret
    return jax.random.fold_in(stream(key, name), now.index)


def _normal(key: PRNG, like: Params, scale: float) -> Params:
    """Noise of standard deviation ``scale``: of all leaves one after another, so that each number has its counter."""
    leaves, tree = jax.tree.flatten(like)
    ends = np.cumsum([x.size for x in leaves])
    drawn = jnp.split(scale * normal(key, int(ends[-1])), ends[:-1])
    shaped = [e.reshape(x.shape).astype(x.dtype) for e, x in zip(drawn, leaves, strict=True)]
    return jax.tree.unflatten(tree, shaped)


def _overflow(now: Now) -> dict[str, jax.Array]:
    if OVERFLOW not in now.memory:
        return {}
    before = now.memory[OVERFLOW]
    return {OVERFLOW: jnp.where(jnp.any(now.batch["overflow"]), jnp.inf, before)}


class Counted(NamedTuple):
    """State of an optimizer that counts its updates, which are what is accounted for.

    Attributes:
      updates: so far, int32.
      inner: the optimizer's own state.
    """

    updates: jax.Array
    inner: Any


def count(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer, which counts its updates."""

    def init(params: Params) -> Counted:
        return Counted(jnp.zeros((), jnp.int32), tx.init(params))

    def update(updates: Params, state: Any, params: Any = None) -> tuple[Params, Counted]:
        updates, inner = tx.update(updates, state.inner, params)
        return updates, Counted(state.updates + 1, inner)

    return optax.GradientTransformation(init, update)


def updates_of(state: Any, player: str = "d") -> int:
    """How many private updates a player has had, as the state of its optimizer says."""
    return int(state.players[player].opt.updates)


def privatize(turn: Turn, gradient: Gradient, views: int = 1, secret: PRNG | None = None) -> Turn:
    """The turn with a private gradient, whose rows are drawn by the secret key, and an optimizer that counts.

    Args:
      turn: of a player that keeps nothing beside its parameters. Its terms must all enter every update: they are
        clipped together, and one noise is added.
      gradient: such as ``gaussian`` of the same ``views``.
      views: copies of each record in a batch, each to be augmented and paired by itself (De et al. 2022,
        arXiv:2204.13650).
      secret: as of ``gaussian``.

    Raises:
      ValueError: for lazy terms, or several updates in a step.
    """
    if turn.repeats > 1 or any(term.every > 1 for term in turn.terms):
        raise ValueError(f"{turn.player}: one update in a step, and no lazy terms, can be private")

    def draw(now: Now) -> Batch:
        copies = {}
        if views > 1:
            copies = {name: jnp.repeat(now.batch[name], views, axis=0) for name in ("x", "y")}
        own = now.beside(copies)._replace(key=_own_key(now, secret, "draw"))
        return {**copies, **turn.draw(own)}

    return turn._replace(tx=count(turn.tx), gradient=gradient, draw=draw)
