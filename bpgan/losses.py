"""Losses as pure, unreduced functions: one value per example. The mean is taken once, by the algorithm.

Conventions of this file: ``real = D(x)`` and ``fake = D(G(z))`` are raw logits, always in that order, high means
"real", and everything is minimized. With ``sp(t) = log(1 + e^t)`` (softplus, finite for every float):

=========================  =============================  ====================  ==================  ================
name                       D minimizes                    G minimizes           at D = 0: (D, G)    source
=========================  =============================  ====================  ==================  ================
``minimax``                sp(-real) + sp(fake)           -sp(fake)             (log 4, -log 2)     Goodfellow 2014
``nonsaturating``          sp(-real) + sp(fake)           sp(-fake)             (log 4, log 2)      Goodfellow 2014
``least_squares``          ((real-1)^2 + fake^2) / 2      (fake-1)^2 / 2        (1/2, 1/2)          Mao 2017
``least_squares_pearson``  ((real-1)^2 + (fake+1)^2) / 2  fake^2 / 2            (1, 0)              Mao 2017
``hinge``                  [1-real]+ + [1+fake]+          -fake                 (2, 0)              Lim & Ye 2017
``wasserstein``            fake - real                    -fake                 (0, 0)              Arjovsky 2017
``relativistic``           sp(fake - real)                sp(real - fake)       (log 2, log 2)      Jolicoeur 2018
``began``                  k fake - real, k a memory      -fake                 (0, 0)              Berthelot 2017
=========================  =============================  ====================  ==================  ================

The relativistic *average* losses compare each logit with the mean of the other kind, ``u = real - mean(fake)`` and
``v = fake - mean(real)``; D minimizes ``f(u) + f(-v)`` and G ``f(v) + f(-u)`` (Jolicoeur-Martineau 2018):

======================================  =====================  ==================
name                                    f(t)                   at D = 0: (D, G)
======================================  =====================  ==================
``relativistic_average``                sp(-t)                 (log 4, log 4)
``relativistic_average_hinge``          [1-t]+                 (2, 2)
``relativistic_average_least_squares``  (t-1)^2                (2, 2)
======================================  =====================  ==================

To add a loss, write its two functions and one entry of ``LOSSES``; the experiments offer it and the tests find it. A
loss of your own code needs no entry: ``--loss=my_module:my_loss`` names an ``AdversarialLoss``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bpgan import lookup
from bpgan.types import AdversarialLoss, Auxiliary, Logits, Normalization


def mean_squared_error(
    prediction: Float[Array, "b ..."], target: Float[Array, "b ..."]
) -> Float[Array, " b"]:
    """Squared error averaged over all axes but the first: ``mean_f (prediction - target)^2``."""
    return jnp.mean(jnp.square(prediction - target), axis=tuple(range(1, prediction.ndim)))


def softmax_cross_entropy(
    logits: Float[Array, "b k"], labels: Int[Array, " b"]
) -> Float[Array, " b"]:
    """``-log softmax(logits)[label]`` in nats, by the log-sum-exp form; finite for finite logits.

    A label that is not in ``[0, k)`` gives NaN. The logit of the label is picked by comparison, because the gradient of
    an indexed one is a scatter, which accelerators are slow at.
    """
    chosen = labels[:, None] == jnp.arange(logits.shape[-1])[None]
    picked = jnp.sum(jnp.where(chosen, logits, 0), axis=-1)
    picked = jnp.where(jnp.any(chosen, axis=-1), picked, jnp.nan)
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


def pearson_d(real: Logits, fake: Logits) -> Logits:
    """``((real - 1)^2 + (fake + 1)^2) / 2``. Mao et al. 2017, arXiv:1611.04076, with (a, b, c) = (-1, 1, 0).

    With the G of these targets the game minimizes the Pearson divergence between p_data + p_model and 2 p_model.
    """
    return 0.5 * (jnp.square(real - 1.0) + jnp.square(fake + 1.0))


def pearson_g(real: Logits, fake: Logits) -> Logits:
    """``fake^2 / 2``: G's side of ``pearson_d``."""
    del real
    return 0.5 * jnp.square(fake)


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


def relativistic_average(f: Callable[[Logits], Logits]) -> AdversarialLoss:
    """``f(u) + f(-v)`` for D and ``f(v) + f(-u)`` for G, with ``u = real - mean(fake)``, ``v = fake - mean(real)``.

    Jolicoeur-Martineau 2018, arXiv:1807.00734. The means are over the batch, and gradients flow through them. The
    sum of the two expectations, as in the paper; the author's code halves it, and some public code treats the mean of
    the reals as a constant in G's loss.

    Args:
      f: elementwise; small where its argument is far on the right side.
    """

    def margins(real: Logits, fake: Logits) -> tuple[Logits, Logits]:
        return real - jnp.mean(fake, keepdims=True), fake - jnp.mean(real, keepdims=True)

    def d(real: Logits, fake: Logits) -> Logits:
        u, v = margins(real, fake)
        return f(u) + f(-v)

    def g(real: Logits, fake: Logits) -> Logits:
        u, v = margins(real, fake)
        return f(v) + f(-u)

    return AdversarialLoss(d, g)


def began(gamma: float = 0.5, rate: float = 1e-3) -> AdversarialLoss:
    """Boundary equilibrium: D is an autoencoder with logits ``-L(x)``, minus its reconstruction error.

    Berthelot et al. 2017, arXiv:1703.10717, Sec. 3.3 and 3.4: D minimizes ``L(x) - k L(G(z))``, G ``L(G(z))``, and
    ``k <- clip(k + rate (gamma L(x) - L(G(z))), 0, 1)`` from k = 0 holds the ratio ``L(G(z)) / L(x)`` at gamma.
    k is the loss's memory, and moves with D's update, by the fakes of that update; the paper takes those of G's, which
    are as many draws of the same distribution. ``nets.energy`` makes such a D of an autoencoder; with another D the
    loss has no bound.

    Args:
      gamma: diversity ratio in (0, 1]; rate: step of k.
    """

    def d(real: Logits, fake: Logits, k: Array) -> tuple[Logits, Array]:
        error = jnp.mean(jax.lax.stop_gradient(fake - gamma * real)).astype(k.dtype)
        return k.astype(fake.dtype).reshape(1) * fake - real, jnp.clip(k + rate * error, 0.0, 1.0)

    return AdversarialLoss(d, score_g, memory=np.zeros((), np.float32), energy=True)


def normalized(loss: AdversarialLoss, decay: float = 0.9, debias: bool = False) -> AdversarialLoss:
    """The same loss, whose gradient at G's samples is divided by the root of an average of its squares.

    With ``g = d mean_b loss_G / d G(z)``, B samples of n numbers, and s = 0 at the start,

        s <- decay s + (1 - decay) B n sum g^2,    g <- g / (sqrt(s) + 1e-8),

    so that its norm is about 1 / sqrt(B n), whatever D's slope is: the scale of the gradient of the penalty
    ``transport``. A weight of that then means the same with every D. Adversarial flow models
    (github.com/ByteDance-Seed/Adversarial-Flow-Models), whose first gradient comes out 1 / sqrt(1 - decay) times too
    large. What D minimizes, the values of the losses, and penalties and auxiliary losses of G stay as they are.

    Args:
      decay: of the average, in [0, 1).
      debias: divides s by ``1 - decay^t`` after t updates, so that the first gradient is no larger than others.

    Raises:
      ValueError: another decay, or a loss that remembers: k of ``began`` balances the players by the size of errors.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"normalized={decay}: must be a decay in [0, 1)")
    if loss.memory is not None:
        raise ValueError("normalized: of a loss that remembers nothing, not so began")
    return loss._replace(normalization=Normalization(decay, debias))


LOSSES = {
    "minimax": AdversarialLoss(logistic_d, minimax_g, balances_at_zero=True, log_ratio=True),
    "nonsaturating": AdversarialLoss(
        logistic_d, nonsaturating_g, balances_at_zero=True, log_ratio=True
    ),
    "least_squares": AdversarialLoss(least_squares_d, least_squares_g),
    "least_squares_pearson": AdversarialLoss(pearson_d, pearson_g, balances_at_zero=True),
    "hinge": AdversarialLoss(hinge_d, score_g, balances_at_zero=True),
    "wasserstein": AdversarialLoss(wasserstein_d, score_g),
    "relativistic": AdversarialLoss(relativistic_d, relativistic_g, log_ratio=True),
    "relativistic_average": relativistic_average(lambda t: jax.nn.softplus(-t)),
    "relativistic_average_hinge": relativistic_average(lambda t: jax.nn.relu(1.0 - t)),
    "relativistic_average_least_squares": relativistic_average(lambda t: jnp.square(t - 1.0)),
    "began": began(),
}
"""Every adversarial loss by name.

The balance of D lies at 0 where its loss is symmetric about it. A loss of differences (relativistic, Wasserstein)
leaves the zero open, least squares with targets 1 and 0 has its balance at 1/2, and BEGAN's logits are all negative.
"""


def parse(text: str) -> AdversarialLoss:
    """An entry of ``LOSSES`` by its name, or ``module:name`` of the user's own code, perhaps ``normalized``.

    ``NAME,normalized`` has G's gradient normalized, ``NAME,normalized=0.99`` with another decay, and
    ``NAME,normalized,debiased`` with an average that is corrected for its start.

    Raises:
      ValueError: if it is neither, saying what is allowed.
    """
    name, *options = text.split(",")
    found = lookup.find(LOSSES, name, "a loss")
    if not isinstance(found, AdversarialLoss):
        raise ValueError("must be an AdversarialLoss")
    found = _guarded(found, name) if ":" in name else found
    return _normalized(found, options) if options else found


def _normalized(loss: AdversarialLoss, options: list[str]) -> AdversarialLoss:
    """As the options of a text have it."""
    (option, equals, decay), *others = (each.partition("=") for each in options)
    try:
        if option != "normalized" or others not in ([], [("debiased", "", "")]):
            raise ValueError
        number = float(decay) if equals else 0.9
    except ValueError:
        reason = "after a loss, must be normalized or normalized=DECAY, and perhaps debiased"
        raise ValueError(reason) from None
    return normalized(loss, number, bool(others))


def _guarded(loss: AdversarialLoss, name: str) -> AdversarialLoss:
    def check(returned: Any, real: Any, fake: Any, *memory: Any) -> None:
        del real, fake
        (lookup.check_remembered if memory else lookup.check_each)(returned, *memory)

    d, g = (lookup.guard(function, name, check) for function in (loss.d, loss.g))
    return loss._replace(d=d, g=g)


_LOGITS = np.linspace(-4, 4, 8).astype(np.float32)


def sees_reals(loss: AdversarialLoss) -> bool:
    """Whether what G minimizes depends on D's logits of reals, as a relativistic loss does. It is tried out.

    >>> sees_reals(LOSSES["relativistic"]), sees_reals(LOSSES["hinge"])
    (True, False)
    """
    real, fake = jnp.asarray(_LOGITS), jnp.asarray(_LOGITS[[3, 7, 1, 5, 0, 6, 2, 4]])
    return not np.array_equal(loss.g(real, fake), loss.g(1 - 2 * real, fake))


def mixes_examples(loss: AdversarialLoss) -> bool:
    """Whether what D minimizes of one example depends on the others of its batch, or on a memory. It is tried out.

    >>> mixes_examples(LOSSES["relativistic_average"]), mixes_examples(LOSSES["relativistic"])
    (True, False)
    """
    if loss.memory is not None:
        return True
    real, fake = jnp.asarray(_LOGITS), jnp.asarray(_LOGITS[[3, 7, 1, 5, 0, 6, 2, 4]])
    alone = [loss.d(real[i : i + 1], fake[i : i + 1])[0] for i in range(len(_LOGITS))]
    return not np.allclose(np.stack(alone), loss.d(real, fake), rtol=1e-5, atol=1e-6)


def of_logits() -> dict[str, AdversarialLoss]:
    """Those of ``LOSSES`` that take the logits of any D; the others want energies."""
    return {name: loss for name, loss in LOSSES.items() if not loss.energy}


def parse_of_logits(text: str) -> AdversarialLoss:
    """As ``parse``, of the losses that take the logits of any D.

    Raises:
      ValueError: for another one, or for none.
    """
    loss = parse(text)
    if loss.energy:
        raise ValueError(f"needs an autoencoder as D; must be one of {', '.join(of_logits())}")
    return loss


def data_to_data_cross_entropy(
    features: tuple[Float[Array, "b f"], Float[Array, "b f"]],
    labels: Int[Array, " b"],
    *,
    margin: float = 0.98,
    temperature: float = 0.5,
) -> Float[Array, " b"]:
    """D2D-CE: each embedding towards the proxy of its class and away from the batch's other classes.

    With unit rows ``f_i`` and proxies ``v_i`` of the examples' own classes, ``p_i = [f_i v_i - m]_- / t`` and
    ``n_ij = [f_i f_j - (1 - m)]_+ / t``, it is ``-p_i + log(e^{p_i} + sum_{j: y_j != y_i} e^{n_ij})``
    (Kang et al. 2021, arXiv:2111.01118, Eq. 7). StudioGAN subtracts a maximum from some exponents only, which is
    another value; this is the equation. Zero if all of the batch is of one class and the proxy is met.

    Args:
      features: embeddings and proxies, rows of unit norm.
      labels: classes of the rows.
      margin: m; temperature: t.
    """
    embedding, proxy = features
    positive = jnp.minimum(jnp.sum(embedding * proxy, -1) - margin, 0.0) / temperature
    similarity = jnp.matmul(embedding, embedding.T, precision=jax.lax.Precision.HIGHEST)
    negative = jax.nn.relu(similarity - (1.0 - margin)) / temperature
    others = labels[:, None] != labels[None, :]
    terms = jnp.concatenate([positive[:, None], jnp.where(others, negative, -jnp.inf)], 1)
    return jax.nn.logsumexp(terms, -1) - positive


AUXILIARY = {
    "acgan": Auxiliary(softmax_cross_entropy, on_fakes=True),
    "d2d": Auxiliary(data_to_data_cross_entropy, on_fakes=False, mixes_examples=True),
    "ucd": Auxiliary(softmax_cross_entropy, on_fakes=True, for_g=False),
}
"""What conditional players minimize beside the adversarial loss, by the head of D that it needs.

``acgan``: Odena et al. 2017, arXiv:1610.09585, whose D classifies fakes too; StudioGAN's only reals. ``d2d``: Kang et
al. 2021, arXiv:2111.01118. ``ucd``: Xia et al. 2025, arXiv:2510.00624, whose D has a logit for each class, of which
that of the label is the adversarial one; D alone classifies.
"""
