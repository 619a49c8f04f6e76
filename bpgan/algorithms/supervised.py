"""Supervised training: gradient descent on one network, ``w <- w + tx(grad mean_b loss(f(x; w), y))``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from bpgan.algorithms import turns
from bpgan.types import PRNG, Algorithm, Params

Gradient = Callable[[Mapping[str, Any], Any, Any], tuple[tuple[Array, tuple[Any, Any]], Any]]
"""``(variables, x, y) -> ((mean loss, (prediction, mutable)), dparams)``: the form of
``jax.value_and_grad(..., has_aux=True)``."""

NET = "net"
"""The name of the player."""


def accuracy(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, ""]:
    """The fraction of examples whose largest logit is the label's."""
    return jnp.mean((jnp.argmax(logits, axis=1) == labels).astype(logits.dtype))


def make(
    init: Callable[..., Any],
    gradient: Gradient,
    tx: optax.GradientTransformation,
    *,
    data_shape: Sequence[int],
    dtype: Any = jnp.float32,
    metrics: Mapping[str, Callable[[Any, Any], Float[Array, ""]]] | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    """Gradient descent on one network.

    Args:
      init: ``Net.init``.
      gradient: ``backprop.value_and_grad(network, loss)`` or ``backprop.autodiff(net, loss)``.
      tx: the descent: ``optax.sgd(lr)``, ``optax.sgd(lr, momentum)``, ``optax.adam(lr)``, ...
      data_shape, dtype: of one example.
      metrics: more scalars ``(prediction, target) -> f[]`` by name: ``{"accuracy": accuracy}``.
      axis_name: mapped axis when the step runs per device; gradients, statistics and metrics are
        averaged over it.

    Returns:
      The algorithm of the player ``NET``, with batches ``{"x": ..., "y": ...}``. Metrics ``loss``,
      ``grad_norm`` and those asked for are of the batch before the update. Steps draw no numbers.
    """

    def given(
        objective: turns.Objective, now: turns.Now, player: str
    ) -> tuple[tuple[Array, turns.Aux], Params]:
        """The gradient comes with the value, so the objective is not asked."""
        del objective
        x, y = now.batch["x"], now.batch["y"]
        (loss, (prediction, stats)), found = gradient(now.players[player].variables, x, y)
        values = {name: metric(prediction, y) for name, metric in (metrics or {}).items()}
        return (loss, turns.Aux(now.axis.mean(stats), {}, {"loss": loss, **values})), found

    def objective(now: turns.Now) -> tuple[Array, turns.Aux]:
        return given(objective, now, NET)[0]

    def start(key: PRNG) -> dict[str, Any]:
        return {NET: init(key, jnp.zeros((2, *data_shape), dtype))}

    turn = turns.Turn(NET, [turns.Term(objective)], tx, gradient=given)
    return turns.play(start, [turn], dtype=dtype, axis=turns.Axis(axis_name))
