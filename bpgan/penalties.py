"""Regularisers of the critic: ``(critic, real, fake, key) -> penalty[b]``, one value per example, unweighted.

``critic`` maps samples to logits with its parameters already bound, so a penalty differentiates it with respect to
its *input*, and the training step then differentiates the penalty with respect to the parameters; nothing here may
stop that second derivative. The input gradient is taken of the *sum* of the logits, which equals the per-example
gradient whenever a logit depends on its own example alone (not with batch norm or minibatch statistics in D).

To add a penalty, write one function and one entry of ``PENALTIES``; the experiments offer it and the tests find it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpgan.types import PRNG, Critic, Logits

Samples = Float[Array, "b ..."]
Penalty = Callable[[Critic, Samples, Samples, PRNG], Logits]


def _squared_gradient_norm(critic: Critic, x: Samples) -> Logits:
    """``|grad_x D(x)|^2``, summed over all axes but the first."""
    gradient = jax.grad(lambda x: jnp.sum(critic(x)))(x)
    return jnp.sum(jnp.square(gradient), axis=tuple(range(1, x.ndim)))


def r1(critic: Critic, real: Samples, fake: Samples, key: PRNG) -> Logits:
    """``|grad D(x)|^2 / 2`` at real samples.

    Mescheder et al. 2018, arXiv:1801.04406 (weight gamma). The half is inside, as in the paper; the authors'
    repository leaves it out, so its weight 10 is gamma = 20 here.
    """
    del fake, key
    return 0.5 * _squared_gradient_norm(critic, real)


def r2(critic: Critic, real: Samples, fake: Samples, key: PRNG) -> Logits:
    """``|grad D(G(z))|^2 / 2`` at generated samples. Mescheder et al. 2018, arXiv:1801.04406."""
    del real, key
    return 0.5 * _squared_gradient_norm(critic, fake)


def wgan_gp(critic: Critic, real: Samples, fake: Samples, key: PRNG) -> Logits:
    """``(|grad D(x)| - 1)^2`` at one random point of each segment between a real and a fake sample.

    Gulrajani et al. 2017, arXiv:1704.00028, Eq. 3 (weight 10). One uniform number per *example*, not per pixel.
    The norm is ``sqrt(sum g^2 + 1e-12)``, so a vanishing gradient gives 1 and a finite derivative.
    """
    t = jax.random.uniform(key, (real.shape[0],) + (1,) * (real.ndim - 1), real.dtype)
    squared = _squared_gradient_norm(critic, t * real + (1 - t) * fake)
    return jnp.square(jnp.sqrt(squared + 1e-12) - 1.0)


PENALTIES: dict[str, Penalty] = {"r1": r1, "r2": r2, "wgan_gp": wgan_gp}
"""Every penalty by name."""
