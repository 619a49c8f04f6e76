"""The variational autoencoder, the likelihood-based peer of a GAN (Kingma & Welling 2014, arXiv:1312.6114).

    log p(x) >= E_q(z|x) log p(x|z) - KL(q(z|x) | N(0, I))            the ELBO, in nats, summed over pixels

A likelihood is a record of functions of the decoder's output, one real number ("logit") to a pixel, and of what is
observed. Gray pixels under Bernoulli cross-entropy are not a likelihood of anything, so they are not offered: pixels
are binarized, or have a density on [0, 1].

=========================  =====================================================================================
``bernoulli``              pixels are drawn anew at every step, 1 with their gray value as probability
``bernoulli-threshold``    pixels are 1 where they are lighter than a half
``continuous-bernoulli``   ``log p(u) = eta u - log((e^eta - 1) / eta)`` on [0, 1]; Loaiza-Ganem & Cunningham 2019,
                           arXiv:1907.06845
``gaussian(std)``          ``N(logit, std^2)`` of pixels in [-1, 1]
=========================  =====================================================================================
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from bpgan.algorithms import turns
from bpgan.types import PRNG, Algorithm, Images, Latents, Net, Network, stream


class Likelihood(NamedTuple):
    """What a decoder's output says of an image.

    Attributes:
      observe: ``(x[b, ...] in [-1, 1], key) -> u``, what is modeled.
      log_prob: ``(logits, u) -> f``, elementwise, in nats.
      mean: ``logits -> images in [-1, 1]``, the expectation.
      draw: ``(logits, key) -> images in [-1, 1]``.
    """

    observe: Callable[[Any, PRNG], Array]
    log_prob: Callable[[Array, Array], Array]
    mean: Callable[[Array], Array]
    draw: Callable[[Array, PRNG], Array]


_NEAR = 0.1  # below, series to the sixth power are exact in float32 and good to 1e-11 in float64


def _away(eta: Array) -> Array:
    """``eta``, or 1 where it is near 0 and a series is used: no branch may divide by 0, not even an unused one."""
    return jnp.where(jnp.abs(eta) < _NEAR, 1.0, eta)


def log_normalizer(eta: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log int_0^1 e^(eta u) du = log((e^eta - 1) / eta)``; near 0 ``eta/2 + eta^2/24 - eta^4/2880 + ...``."""
    far = jnp.abs(_away(eta))
    # Not far + ... + min(eta, 0): of a large negative eta the logarithm alone is left, and would lose its digits.
    exact = jnp.log(-jnp.expm1(-far) / far) + jnp.maximum(_away(eta), 0.0)
    series = eta / 2 + eta**2 / 24 - eta**4 / 2880 + eta**6 / 181440
    return jnp.where(jnp.abs(eta) < _NEAR, series, exact)


_BERNOULLI = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000)
"""``B_2k / (2k)!`` of the Bernoulli numbers, from k = 1."""


def _continuous_mean(eta: Array) -> Array:
    """``1 / (1 - e^-eta) - 1 / eta``, the derivative of ``log_normalizer``.

    Below 1 by its series ``1/2 + sum_k B_2k / (2k)! eta^(2k - 1)``: the two fractions are nearly equal there, and
    their difference would have lost digits, more of them where ``expm1`` is ``exp - 1``, as in ONNX.
    """
    is_near = jnp.abs(eta) < 1
    far, near = jnp.where(is_near, 1.0, jnp.abs(eta)), jnp.where(is_near, eta, 0.0)
    exact = -1 / jnp.expm1(-far) - 1 / far
    exact = jnp.where(eta < 0, 1 - exact, exact)
    series = jnp.zeros_like(near)
    for coefficient in reversed(_BERNOULLI):
        series = series * jnp.square(near) + coefficient
    return jnp.where(is_near, 0.5 + near * series, exact)


def _continuous_draw(eta: Array, key: PRNG) -> Array:
    """By the inverse of the distribution function, ``log(1 + v (e^eta - 1)) / eta``, where it cannot overflow."""
    v = jax.random.uniform(key, eta.shape, eta.dtype)
    far = -jnp.maximum(jnp.abs(eta), 1e-6)
    u = jnp.log1p(v * jnp.expm1(far)) / far
    return jnp.where(eta > 0, 1 - u, u)


def _unit(x: Array) -> Array:
    return (x + 1) / 2


def _symmetric(u: Array) -> Array:
    return 2 * u - 1


def _bernoulli(observe: Callable[[Any, PRNG], Array]) -> Likelihood:
    return Likelihood(
        observe,
        lambda logits, u: u * logits - jax.nn.softplus(logits),
        lambda logits: _symmetric(jax.nn.sigmoid(logits)),
        lambda logits, key: _symmetric(
            jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(logits.dtype)
        ),
    )


def gaussian(std: float) -> Likelihood:
    """``N(logit, std^2)`` of the numbers as they are; also of data that are no images."""
    constant = math.log(std) + 0.5 * math.log(2 * math.pi)
    return Likelihood(
        lambda x, key: x,
        lambda logits, x: -0.5 * jnp.square((x - logits) / std) - constant,
        lambda logits: logits,
        lambda logits, key: logits + std * jax.random.normal(key, logits.shape, logits.dtype),
    )


LIKELIHOODS = {
    "bernoulli": _bernoulli(
        lambda x, key: jax.random.bernoulli(key, _unit(x), x.shape).astype(x.dtype)
    ),
    "bernoulli-threshold": _bernoulli(lambda x, key: (x > 0).astype(x.dtype)),
    "continuous-bernoulli": Likelihood(
        lambda x, key: _unit(x),
        lambda eta, u: eta * u - log_normalizer(eta),
        lambda eta: _symmetric(_continuous_mean(eta)),
        lambda eta, key: _symmetric(_continuous_draw(eta, key)),
    ),
}
"""Likelihoods of images by name."""


class Model(NamedTuple):
    """Networks and likelihood.

    Attributes:
      encoder: ``u[b, ...] -> (mean[b, z], log_variance[b, z])``, q's, of what is observed.
      decoder: ``z[b, z] -> logits[b, ...]``.
      likelihood: of the logits.
    """

    encoder: Net
    decoder: Net
    likelihood: Likelihood


VAE = "vae"
"""The name of the player: encoder and decoder, which one optimizer moves."""


def variables(state: turns.State | turns.Now, net: str) -> dict[str, Any]:
    """Of the ``encoder`` or of the ``decoder``."""
    player = state.players[VAE]
    return {"params": player.params[net], **player.stats[net]}


def kl(mean: Float[Array, "b z"], log_variance: Float[Array, "b z"]) -> Float[Array, " b"]:
    """``KL(N(m, s^2) | N(0, 1)) = (m^2 + s^2 - 1 - log s^2) / 2``, summed over z, in nats."""
    return 0.5 * jnp.sum(jnp.square(mean) + (jnp.expm1(log_variance) - log_variance), axis=-1)


def reparametrize(mean: Latents, log_variance: Latents, noise: Latents) -> Latents:
    """``z = m + s e``, differentiable in m and s."""
    return mean + jnp.exp(0.5 * log_variance) * noise


def _sum(x: Array) -> Array:
    """Over all axes but the first."""
    return jnp.sum(x.reshape(x.shape[0], -1), -1)


def iwae_bound(
    model: Model, state: turns.State, x: Images, key: PRNG, k: int
) -> Float[Array, " b"]:
    """``log (1/k) sum_i p(x, z_i) / q(z_i | x)``, ``z_i ~ q``: a lower bound of ``log p(x)`` that rises with k.

    Burda et al. 2016, arXiv:1509.00519, Eq. 8; with k = 1 an unbiased estimate of the ELBO. One decoder pass for each
    of the k samples, so that memory does not grow with k.

    Args:
      x: images in [-1, 1]; binarized with ``key`` where the likelihood does so.
    """
    u = model.likelihood.observe(x, stream(key, "observe"))
    (mean, log_variance), _ = model.encoder.apply(variables(state, "encoder"), u, train=False)

    def weight(i: Any) -> Array:
        noise = jax.random.normal(jax.random.fold_in(key, i), mean.shape, mean.dtype)
        z = reparametrize(mean, log_variance, noise)
        logits, _ = model.decoder.apply(variables(state, "decoder"), z, train=False)
        prior_over_q = 0.5 * jnp.sum(jnp.square(noise) - jnp.square(z) + log_variance, -1)
        return _sum(model.likelihood.log_prob(logits, u)) + prior_over_q

    weights = lax.map(weight, jnp.arange(k))
    return jax.nn.logsumexp(weights, axis=0) - math.log(k)


def active_units(means: Float[Array, "n z"], threshold: float = 1e-2) -> int:
    """Latents that say something of x: those with ``Var_x E_q[z] > threshold`` (Burda et al. 2016, Sec. 4.2)."""
    return int(jnp.sum(jnp.var(means, axis=0) > threshold))


def observed(model: Model, now: turns.Now, latents: int, dtype: Any) -> dict[str, Array]:
    """What an update is computed from: pixels ``u``, by each device for itself, and the noise of its latents."""
    x = now.batch["x"]
    noise = now.axis.rows(lambda n: jax.random.normal(stream(now.key, "z"), (n, latents), dtype), x)
    u = model.likelihood.observe(x, now.noise_key("observe"))
    return {"u": u, "noise": noise}


def objective(model: Model, now: turns.Now, beta: Any = 1.0) -> tuple[Array, turns.Aux]:
    """``-E_q(z|u) log p(u|z) + beta KL(q(z|u) | N(0, I))``, with one z for each u, in nats of an image.

    Kingma & Welling 2014, arXiv:1312.6114, Eq. 10; beta: Higgins et al. 2017. ``now.batch`` has ``u`` and ``noise``.
    """
    u = now.batch["u"]
    (mean, log_variance), encoder = model.encoder.apply(variables(now, "encoder"), u, train=True)
    z = reparametrize(mean, log_variance, now.batch["noise"])
    logits, decoder = model.decoder.apply(variables(now, "decoder"), z, train=True)
    reconstruction = -jnp.mean(_sum(model.likelihood.log_prob(logits, u)))
    divergence = jnp.mean(kl(mean, log_variance))
    loss = reconstruction + beta * divergence
    metrics = {
        "loss": loss,
        "elbo": -reconstruction - divergence,
        "reconstruction": reconstruction,
        "kl": divergence,
    }
    return loss, turns.Aux({"encoder": encoder, "decoder": decoder}, {}, metrics)


def make(
    model: Model,
    tx: optax.GradientTransformation,
    *,
    latents: int,
    data_shape: Sequence[int],
    dtype: Any = jnp.float32,
    beta: Any = 1.0,
    samples: str = "mean",
    truncation: float | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    """Stochastic ascent of the ELBO.

    Args:
      model: networks and likelihood.
      tx: optimizer of both networks.
      latents: dimension of z.
      data_shape, dtype: of one example.
      beta: weight of the KL (Higgins et al. 2017); 1 is the ELBO.
      samples: ``mean``: ``sample`` gives the decoder's mean image, ``draw``: a draw of its pixels.
      truncation: bound on each number of the latents of samples; None: they are those of the prior.
      axis_name: mapped axis when the step runs per device; latents are those of the global batch, gradients and metrics
        are averaged, pixels are binarized by each device for itself.

    Returns:
      The algorithm of the player ``VAE`` with metrics ``loss`` (``beta KL - log p``), ``elbo``, ``reconstruction``
      (``-log p(x|z)``), ``kl`` and ``grad_norm``, in nats of an image, before the update.

    Raises:
      ValueError: for other ``samples``.
    """
    if samples not in ("mean", "draw"):
        raise ValueError(f"samples={samples!r}: must be mean or draw")

    def init(key: PRNG) -> dict[str, Any]:
        x, z = jnp.zeros((2, *data_shape), dtype), jnp.zeros((2, latents), dtype)
        nets = {
            "encoder": dict(model.encoder.init(stream(key, "encoder"), x)),
            "decoder": dict(model.decoder.init(stream(key, "decoder"), z)),
        }
        params = {name: found.pop("params") for name, found in nets.items()}
        return {VAE: {"params": params, **nets}}

    def draw(key: PRNG, n: int) -> Latents:
        key, shape = stream(key, "z"), (n, latents)
        if truncation is None:
            return jax.random.normal(key, shape, dtype)
        return jax.random.truncated_normal(key, -truncation, truncation, shape, dtype)

    def sample(state: turns.State, key: PRNG, n: int, *, z: Latents | None = None) -> Images:
        z = draw(key, n) if z is None else z
        logits, _ = model.decoder.apply(variables(state, "decoder"), z, train=False)
        if samples == "mean":
            return model.likelihood.mean(logits)
        return model.likelihood.draw(logits, stream(key, "pixels"))

    turn = turns.Turn(
        VAE,
        [turns.Term(lambda now: objective(model, now, beta))],
        tx,
        draw=lambda now: observed(model, now, latents, dtype),
        key=lambda key, player, i: key,
    )
    algorithm = turns.play(init, [turn], dtype=dtype, axis=turns.Axis(axis_name), sample=sample)
    return algorithm._replace(latents=draw, networks=trained(model))


def trained(model: Model) -> dict[str, Network]:
    """The decoder as ``generator`` of mean images, and the ``encoder`` of what is observed: mean and log variance."""

    def of(net: str) -> Callable[[turns.State], Any]:
        return lambda state: variables(state, net)

    def generator(found: Any, z: Latents) -> Images:
        return model.likelihood.mean(model.decoder.apply(found, z, train=False)[0])

    def encoder(found: Any, u: Any) -> tuple[Array, Array]:
        return model.encoder.apply(found, u, train=False)[0]

    return {
        "generator": Network(of("decoder"), generator),
        "encoder": Network(of("encoder"), encoder),
    }
