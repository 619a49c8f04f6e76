"""The chain: forward, loss, backward, by hand; and joined to JAX, for algorithms to train on."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpgan.backprop.layers import Layer
from bpgan.backprop.losses import ADVERSARIAL_GRADIENTS, Loss
from bpgan.losses import LOSSES
from bpgan.types import AdversarialLoss, Net, UserError

Gradient = Callable[[Mapping[str, Any], Any, Any], tuple[tuple[Array, tuple[Any, Any]], Any]]
"""``(variables, x, y) -> ((mean loss, (prediction, mutable)), dparams)``: the form of
``jax.value_and_grad(..., has_aux=True)``."""


def _run(network: Layer, variables, x, train: bool):
    """The forward pass of ``Net.apply``, and the cache that the backward pass needs."""
    y, stats, cache = network.forward(
        variables["params"], variables.get("batch_stats", {}), x, train
    )
    return y, ({"batch_stats": stats} if "batch_stats" in variables else {}), cache


def value_and_grad(network: Layer, loss: Loss) -> Gradient:
    """The mean loss of a batch in training mode and its gradient, entirely by hand.

    Args:
      network: its layers.
      loss: ``squared_error``, ``cross_entropy`` or your own pair of functions.

    Returns:
      ``(variables, x[b, ...], y[b, ...]) -> ((mean loss, (prediction, mutable)), dparams)``.
    """

    def gradient(variables, x, y):
        prediction, mutable, cache = _run(network, variables, x, True)
        dprediction = loss.gradient(prediction, y) / prediction.shape[0]  # of the mean
        _, dparams = network.backward(variables["params"], cache, dprediction)
        return (jnp.mean(loss.value(prediction, y)), (prediction, mutable)), dparams

    return gradient


def autodiff(net: Net, loss: Callable[[Any, Any], Float[Array, " b"]]) -> Gradient:
    """What ``value_and_grad`` returns, for any ``Net`` and loss ``(prediction, target) -> f[b]``,
    derived by JAX."""

    def gradient(variables, x, y):
        def objective(params):
            prediction, mutable = net.apply({**variables, "params": params}, x, train=True)
            return jnp.mean(loss(prediction, y)), (prediction, mutable)

        return jax.value_and_grad(objective, has_aux=True)(variables["params"])

    return gradient


def by_hand(network: Layer) -> Callable[..., tuple[Array, Any]]:
    """A ``Net.apply`` whose gradient is ``network.backward``.

    ``Net(linen.init, by_hand(network))`` is a ``Net`` like any other: JAX calls the hand-written
    backward pass instead of deriving its own. That pass can itself be differentiated, so gradient
    penalties work. Running statistics are constants to it: no gradient enters or leaves by them.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def run(train, variables, x):
        return _run(network, variables, x, train)[:2]

    def forward(train, variables, x):
        y, mutable, cache = _run(network, variables, x, train)
        return (y, mutable), (variables, cache)

    def backward(train, residuals, cotangents):
        variables, cache = residuals
        dx, dparams = network.backward(variables["params"], cache, cotangents[0])
        return {**jax.tree.map(jnp.zeros_like, variables), "params": dparams}, dx

    run.defvjp(forward, backward)
    return lambda variables, x, *, train: run(train, dict(variables), x)


def losses_by_hand(name: str) -> AdversarialLoss:
    """``LOSSES[name]`` whose gradients are those of ``ADVERSARIAL_GRADIENTS``.

    Raises:
      UserError: if that loss has no hand-written gradient.
    """
    if name not in ADVERSARIAL_GRADIENTS:
        allowed = ", ".join(ADVERSARIAL_GRADIENTS)
        reason = f"has no hand-written gradient; must be one of {allowed}"
        raise UserError(reason, argument="loss", value=name)

    def join(value, gradient):
        """The value, which JAX then differentiates by the given gradient."""
        loss = jax.custom_vjp(value)

        def backward(residuals, cotangent):
            return tuple(cotangent * slope for slope in gradient(*residuals))

        loss.defvjp(lambda real, fake: (value(real, fake), (real, fake)), backward)
        return loss

    d_gradient, g_gradient = ADVERSARIAL_GRADIENTS[name]
    return AdversarialLoss(join(LOSSES[name].d, d_gradient), join(LOSSES[name].g, g_gradient))
