"""Losses and their gradients, which start the way back.

A supervised loss compares a prediction with a target. An adversarial one compares the logits of reals and fakes, and
each player has its own; with the sigmoid ``s(t) = 1 / (1 + e^-t)``, the derivative of ``log(1 + e^t)``, the gradients
of the values in ``bpgan.losses`` are

=================  =================  ===============  =================  ==================
name               dD / dreal         dD / dfake       dG / dreal         dG / dfake
=================  =================  ===============  =================  ==================
``minimax``        -s(-real)          s(fake)          0                  -s(fake)
``nonsaturating``  -s(-real)          s(fake)          0                  -s(-fake)
``least_squares``  real - 1           fake             0                  fake - 1
``hinge``          -[real < 1]        [fake > -1]      0                  -1
``wasserstein``    -1                 1                0                  -1
``relativistic``   -s(fake - real)    s(fake - real)   s(real - fake)     -s(real - fake)
=================  =================  ===============  =================  ==================

where ``[a < b]`` is 1 if it is so, and else 0.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bpgan import losses
from bpgan.types import Logits


class Loss(NamedTuple):
    """A supervised loss and its gradient.

    Attributes:
      value: ``(prediction, target) -> f[b]``.
      gradient: ``(prediction, target) -> dprediction``, the derivative of the *sum* of ``value``.
    """

    value: Callable[[Any, Any], Float[Array, " b"]]
    gradient: Callable[[Any, Any], Array]


def _squared_error_gradient(prediction: Float[Array, "b ..."], target: Array) -> Array:
    """``2 (prediction - target) / f`` with ``f`` outputs per example."""
    return 2 / math.prod(prediction.shape[1:]) * (prediction - target)


def _cross_entropy_gradient(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Array:
    """``softmax(logits) - onehot(label)``; the largest logit is subtracted, nothing overflows."""
    e = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
    onehot = labels[:, None] == jnp.arange(logits.shape[1])[None, :]
    return e / jnp.sum(e, axis=1, keepdims=True) - onehot.astype(logits.dtype)


squared_error = Loss(losses.mean_squared_error, _squared_error_gradient)
cross_entropy = Loss(losses.softmax_cross_entropy, _cross_entropy_gradient)


Slopes = tuple[Logits, Logits]
"""Derivatives by the logits of the reals and of the fakes, one of each per example."""


def _of_fake(slope: Callable[[Logits], Logits]) -> Callable[[Logits, Logits], Slopes]:
    """The gradient of a loss of G that looks at the fakes alone."""
    return lambda real, fake: (jnp.zeros_like(real), slope(fake))


def _logistic_d(real: Logits, fake: Logits) -> Slopes:
    return -jax.nn.sigmoid(-real), jax.nn.sigmoid(fake)


def _least_squares_d(real: Logits, fake: Logits) -> Slopes:
    return real - 1, fake


def _hinge_d(real: Logits, fake: Logits) -> Slopes:
    return -(real < 1).astype(real.dtype), (fake > -1).astype(fake.dtype)


def _wasserstein_d(real: Logits, fake: Logits) -> Slopes:
    return -jnp.ones_like(real), jnp.ones_like(fake)


def _relativistic_d(real: Logits, fake: Logits) -> Slopes:
    slope = jax.nn.sigmoid(fake - real)
    return -slope, slope


def _relativistic_g(real: Logits, fake: Logits) -> Slopes:
    slope = jax.nn.sigmoid(real - fake)
    return slope, -slope


_score_g = _of_fake(lambda fake: -jnp.ones_like(fake))

ADVERSARIAL_GRADIENTS: dict[str, tuple[Callable, Callable]] = {
    "minimax": (_logistic_d, _of_fake(lambda fake: -jax.nn.sigmoid(fake))),
    "nonsaturating": (_logistic_d, _of_fake(lambda fake: -jax.nn.sigmoid(-fake))),
    "least_squares": (_least_squares_d, _of_fake(lambda fake: fake - 1)),
    "hinge": (_hinge_d, _score_g),
    "wasserstein": (_wasserstein_d, _score_g),
    "relativistic": (_relativistic_d, _relativistic_g),
}
"""Gradients of D's and of G's loss by name: ``(real[b], fake[b]) -> (dreal[b], dfake[b])``."""
