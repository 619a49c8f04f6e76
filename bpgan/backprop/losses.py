"""Losses and their gradients, which start the way back."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bpgan import losses


class Loss(NamedTuple):
    """A supervised loss and its gradient.

    Attributes:
      value: ``(prediction, target) -> f[b]``.
      gradient: ``(prediction, target) -> dprediction``, the derivative of the *sum* of ``value``.
    """

    value: Callable[[Any, Any], Float[Array, " b"]]
    gradient: Callable[[Any, Any], Array]


def _squared_error_gradient(prediction, target):
    """``2 (prediction - target) / f`` with ``f`` outputs per example."""
    return 2 / math.prod(prediction.shape[1:]) * (prediction - target)


def _cross_entropy_gradient(logits: Float[Array, "b k"], labels: Int[Array, " b"]):
    """``softmax(logits) - onehot(label)``; the largest logit is subtracted, nothing overflows."""
    e = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
    onehot = labels[:, None] == jnp.arange(logits.shape[1])[None, :]
    return e / jnp.sum(e, axis=1, keepdims=True) - onehot.astype(logits.dtype)


squared_error = Loss(losses.mean_squared_error, _squared_error_gradient)
cross_entropy = Loss(losses.softmax_cross_entropy, _cross_entropy_gradient)


def _logistic_d(real, fake):
    return -jax.nn.sigmoid(-real), jax.nn.sigmoid(fake)


def _score_g(real, fake):
    return jnp.zeros_like(real), -jnp.ones_like(fake)


def _relativistic_d(real, fake):
    slope = jax.nn.sigmoid(fake - real)
    return -slope, slope


def _relativistic_g(real, fake):
    slope = jax.nn.sigmoid(real - fake)
    return slope, -slope


ADVERSARIAL_GRADIENTS: dict[str, tuple[Callable, Callable]] = {
    "minimax": (_logistic_d, lambda real, fake: (jnp.zeros_like(real), -jax.nn.sigmoid(fake))),
    "nonsaturating": (
        _logistic_d,
        lambda real, fake: (jnp.zeros_like(real), -jax.nn.sigmoid(-fake)),
    ),
    "least_squares": (
        lambda real, fake: (real - 1, fake),
        lambda real, fake: (jnp.zeros_like(real), fake - 1),
    ),
    "hinge": (
        lambda real, fake: (-(real < 1).astype(real.dtype), (fake > -1).astype(fake.dtype)),
        _score_g,
    ),
    "wasserstein": (lambda real, fake: (-jnp.ones_like(real), jnp.ones_like(fake)), _score_g),
    "relativistic": (_relativistic_d, _relativistic_g),
}
"""Gradients of D's and of G's loss by name: ``(real[b], fake[b]) -> (dreal[b], dfake[b])``."""
