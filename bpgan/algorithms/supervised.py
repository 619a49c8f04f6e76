"""Supervised training: gradient descent on one network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from bpgan.types import PRNG, Algorithm, Metrics

Gradient = Callable[[Mapping[str, Any], Any, Any], tuple[tuple[Array, tuple[Any, Any]], Any]]
"""``(variables, x, y) -> ((mean loss, (prediction, mutable)), dparams)``: the form of
``jax.value_and_grad(..., has_aux=True)``."""


class State(NamedTuple):
    """One network in training: ``stats`` holds its other collections, such as batch statistics."""

    step: Int[Array, ""]
    params: Any
    stats: Any
    opt: Any


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
    """Gradient descent on one network: ``w <- w + tx(grad mean_b loss(f(x; w), y))``.

    Args:
      init: ``Net.init``.
      gradient: ``value_and_grad(network, loss)`` or ``autodiff(net, loss)``.
      tx: the descent: ``optax.sgd(lr)``, ``optax.sgd(lr, momentum)``, ``optax.adam(lr)``, ...
      data_shape, dtype: of one example.
      metrics: more scalars ``(prediction, target) -> f[]`` by name: ``{"accuracy": accuracy}``.
      axis_name: mapped axis when the step runs per device; gradients, statistics and metrics are
        averaged over it.

    Returns:
      The algorithm, with state ``State`` and batches ``{"x": ..., "y": ...}``. Metrics ``loss``,
      ``grad_norm`` and those asked for are of the batch before the update. Steps draw no numbers.
    """

    def pmean(tree):
        return tree if axis_name is None else lax.pmean(tree, axis_name)

    def start(key: PRNG) -> State:
        variables = dict(init(key, jnp.zeros((2, *data_shape), dtype)))
        params = variables.pop("params")
        return State(jnp.zeros((), jnp.int32), params, variables, tx.init(params))

    def step(state: State, batch, key: PRNG) -> tuple[State, Metrics]:
        del key
        variables = {**state.stats, "params": state.params}
        (loss, (prediction, stats)), grads = gradient(variables, batch["x"], batch["y"])
        grads = pmean(grads)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        extra = {name: metric(prediction, batch["y"]) for name, metric in (metrics or {}).items()}
        values = pmean({"loss": loss, **extra}) | {"grad_norm": optax.tree.norm(grads)}
        return State(state.step + 1, params, pmean(stats), opt), values

    return Algorithm(start, step)
