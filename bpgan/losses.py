"""Losses as pure, unreduced functions: one value per example. The mean is taken once, by the algorithm.

Conventions of this file: ``real = D(x)`` and ``fake = D(G(z))`` are raw logits, always in that order, high means
"real", and everything is minimised. With ``sp(t) = log(1 + e^t)`` (softplus, finite for every float):

=================  =========================  ====================  ==============================  ================
name               D minimises                G minimises           at D = 0: (D, G)                source
=================  =========================  ====================  ==============================  ================
``minimax``        sp(-real) + sp(fake)       -sp(fake)             (log 4, -log 2)                 Goodfellow 2014
``nonsaturating``  sp(-real) + sp(fake)       sp(-fake)             (log 4, log 2)                  Goodfellow 2014
``least_squares``  ((real-1)^2 + fake^2) / 2  (fake-1)^2 / 2        (1/2, 1/2)                      Mao 2017
``hinge``          [1-real]+ + [1+fake]+      -fake                 (2, 0)                          Lim & Ye 2017
``wasserstein``    fake - real                -fake                 (0, 0)                          Arjovsky 2017
``relativistic``   sp(fake - real)            sp(real - fake)       (log 2, log 2)                  Jolicoeur 2018
=================  =========================  ====================  ==============================  ================

To add a loss, write its two functions and one entry of ``LOSSES``; the experiments offer it and the tests find it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bpgan.types import AdversarialLoss, Logits


def mean_squared_error(
    prediction: Float[Array, "b ..."], target: Float[Array, "b ..."]
) -> Float[Array, " b"]:
    """Squared error averaged over all axes but the first: ``mean_f (prediction - target)^2``."""
    return jnp.mean(jnp.square(prediction - target), axis=tuple(range(1, prediction.ndim)))


def softmax_cross_entropy(
    logits: Float[Array, "b k"], labels: Int[Array, " b"]
) -> Float[Array, " b"]:
    """``-log softmax(logits)[label]`` in nats, by the log-sum-exp form; finite for finite logits."""
    picked = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def logistic_d(real: Logits, fake: Logits) -> Logits:
    """Cross-entropy of "real or fake": ``-log s(real) - log(1 - s(fake))`` with the sigmoid s.

    Goodfellow et al. 2014, arXiv:1406.2661, Eq. 1. The optimum is ``log p_data/p_model``, with loss
    ``log 4 - 2 JSD``.
    """
    return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def minimax_g(real: Logits, fake: Logits) -> Logits:
    """``log(1 - s(fake))``, the generator's side of the minimax game.

    Goodfellow et al. 2014, arXiv:1406.2661, Eq. 1. Its gradient ``-s(fake)`` vanishes while D rejects the fakes.
    Written as ``-softplus(fake)``: linear, not clipped, for large logits.
    """
    del real
    return -jax.nn.softplus(fake)


def nonsaturating_g(real: Logits, fake: Logits) -> Logits:
    """``-log s(fake)``: the heuristic of Goodfellow et al. 2014 (arXiv:1406.2661, section 3)."""
    del real
    return jax.nn.softplus(-fake)


def least_squares_d(real: Logits, fake: Logits) -> Logits:
    """Squared distance to the targets 1 (real) and 0 (fake), on raw logits, halved.

    Mao et al. 2017, arXiv:1611.04076, Eq. 2 with a = 0, b = 1. Some public code squares the distance of
    *probabilities* instead; that is another loss.
    """
    return 0.5 * (jnp.square(real - 1.0) + jnp.square(fake))


def least_squares_g(real: Logits, fake: Logits) -> Logits:
    """``(fake - 1)^2 / 2``. Mao et al. 2017, arXiv:1611.04076, Eq. 2 with c = 1."""
    del real
    return 0.5 * jnp.square(fake - 1.0)


def hinge_d(real: Logits, fake: Logits) -> Logits:
    """``max(0, 1 - real) + max(0, 1 + fake)``. Lim & Ye 2017, arXiv:1705.02894; Miyato 2018, arXiv:1802.05957."""
    return jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake)


def wasserstein_d(real: Logits, fake: Logits) -> Logits:
    """``fake - real``: minus the critic's estimate of W1, if D is 1-Lipschitz. Arjovsky 2017, arXiv:1701.07875."""
    return fake - real


def score_g(real: Logits, fake: Logits) -> Logits:
    """``-fake``: raise the critic's score. Arjovsky et al. 2017, arXiv:1701.07875; also the hinge loss's G."""
    del real
    return -fake


def relativistic_d(real: Logits, fake: Logits) -> Logits:
    """``-log s(real - fake)``, each real paired with one fake.

    Jolicoeur-Martineau 2018, arXiv:1807.00734 (RSGAN); Huang et al. 2025, arXiv:2501.05441. Invariant to a common
    shift of the logits; the optimal critic is ``log p_data/p_model + const``.
    """
    return jax.nn.softplus(fake - real)


def relativistic_g(real: Logits, fake: Logits) -> Logits:
    """``-log s(fake - real)``, the mirror image of ``relativistic_d``."""
    return jax.nn.softplus(real - fake)


LOSSES = {
    "minimax": AdversarialLoss(logistic_d, minimax_g),
    "nonsaturating": AdversarialLoss(logistic_d, nonsaturating_g),
    "least_squares": AdversarialLoss(least_squares_d, least_squares_g),
    "hinge": AdversarialLoss(hinge_d, score_g),
    "wasserstein": AdversarialLoss(wasserstein_d, score_g),
    "relativistic": AdversarialLoss(relativistic_d, relativistic_g),
}
"""Every adversarial loss by name."""
