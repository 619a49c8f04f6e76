"""Images of a domain a made into images of a domain b: from pairs (pix2pix), or without any (CycleGAN, CUT).

Translators are called by their way, ``ab`` makes b of a and ``ba`` a of b. All of them are the player ``g``, and a
discriminator for each domain that is made, called by it, is the player ``d``. With the losses of
``bpgan.losses``, D minimizes the first line and G the second,

    weights.d            sum over domains mean loss_D(D(x), D(fake)),
    weights.adversarial  sum over domains mean loss_G(D(x), D(fake))  +  weights.content  C,

and what binds a fake to the image it is made of, C, tells the systems apart:

============  ============================================================================  ========================
system        C                                                                             source
============  ============================================================================  ========================
``pix2pix``   ``distance(G(a), b)`` of pairs; D sees a beside b and beside G(a)             Isola et al. 2017,
                                                                                            arXiv:1611.07004
``cyclegan``  ``|ba(ab(a)) - a| + |ab(ba(b)) - b| + identity (|ab(b) - b| + |ba(a) - a|)``  Zhu et al. 2017,
                                                                                            arXiv:1703.10593
``cut``       ``NCE(a, G(a)) + identity NCE(b, G(b))``, of patches at the same places       Park et al. 2020,
                                                                                            arXiv:2007.15651
============  ============================================================================  ========================

Another system is a function of what G minimizes, ``(setting, now) -> (value, Aux)``, handed to ``play``.

Logits may be a map ``[b, h', w']`` of scores of patches: the losses take each for itself, as ``[b h' w']``, and compare
a real and a fake at the same place. Penalties see the mean logit of each image.

Noise comes in as an input, uint32 ``z[b, 2]``: a seed for each row, of which a network makes what it needs
(``bpgan.nets.layers.dropout``). So a row's noise does not depend on how the batch is shared out.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, UInt32

from bpgan.algorithms import turns
from bpgan.algorithms.turns import Aux, Now, Scalar, State, Term, Turn
from bpgan.optim import at
from bpgan.penalties import Scene, Weighted
from bpgan.types import (
    PRNG,
    AdversarialLoss,
    Algorithm,
    Images,
    Labels,
    Logits,
    Net,
    Network,
    Params,
    stream,
)

Seeds = UInt32[Array, "b 2"]
Distance = Callable[[Images, Images], Float[Array, " b"]]
"""``(x, y) -> distance[b]``."""


class Domains(NamedTuple):
    """What the images are.

    Attributes:
      a, b: shape ``[h, w, c]`` of an image.
      inputs: ``(key, n, labels[n] or None) -> a[n, h, w, c]``, the images that samples are made of.
      classes: of the labels of a; 0: ``inputs`` takes None.
      dtype: of the images.
    """

    a: Sequence[int]
    b: Sequence[int]
    inputs: Callable[[PRNG, int, Labels | None], Images]
    classes: int = 0
    dtype: Any = jnp.float32


class Optimizers(NamedTuple):
    """Of each player; that of d does nothing where there is no adversarial loss."""

    g: optax.GradientTransformation
    d: optax.GradientTransformation


class Weights(NamedTuple):
    """Of the terms, as in the module's equation.

    ``bpgan.losses`` halves least squares, the code of CycleGAN and CUT does not: theirs is ``adversarial=2, d=1``.

    Attributes:
      content: of what binds a fake to its input.
      identity: share of the content's weight that images of the target domain get, which should stay as they are. The
        number 0 leaves the term out.
      adversarial: of G's adversarial loss.
      d: of D's. All three papers halve D's objective against G's; Adam does not see it, but for its epsilon.
    """

    content: Scalar
    identity: Scalar = 0.0
    adversarial: Scalar = 1.0
    d: Scalar = 0.5


PIX2PIX, CYCLEGAN, CUT = Weights(100.0), Weights(10.0, 0.5), Weights(1.0, 1.0)
"""Those of the papers' equations."""


class Pair(NamedTuple):
    """Networks of ``pix2pix``.

    Attributes:
      g: ``(a, z) -> b``.
      d: of a and b in one image, ``x[b, h, w, a's channels + b's] -> logits[b, ...]``.
    """

    g: Net
    d: Net


class Cycle(NamedTuple):
    """Networks of ``cyclegan``: translators ``(a, z) -> b`` and ``(b, z) -> a``, discriminators ``x -> logits``."""

    ab: Net
    ba: Net
    d_a: Net
    d_b: Net


class Contrast(NamedTuple):
    """Networks of ``cut``.

    Attributes:
      g: ``(a, z) -> b``, whose method ``features`` makes a tuple of activations ``[b, h, w, c]``.
      d: ``b -> logits[b, ...]``.
      heads: of vectors at some places of each of these, ``[b, p, c]``, unit vectors ``[b, p, f]``; tuples of them.
      patches: places of an image at most; temperature: of the contrast.
    """

    g: Net
    d: Net
    heads: Net
    patches: int = 256
    temperature: float = 0.07


def l1(x: Images, y: Images) -> Float[Array, " b"]:
    """``mean |x - y|`` of each image."""
    return jnp.mean(jnp.abs(x - y), axis=tuple(range(1, x.ndim)))


def l2(x: Images, y: Images) -> Float[Array, " b"]:
    """``mean (x - y)^2`` of each image."""
    return jnp.mean(jnp.square(x - y), axis=tuple(range(1, x.ndim)))


DISTANCES: dict[str, Distance] = {"l1": l1, "l2": l2}
"""Distances of pairs by name."""


def of_features(features: Callable[[Images], Any], distance: Distance = l1) -> Distance:
    """A distance of features in the place of pixels.

    Args:
      features: ``x[b, h, w, c] -> f[b, ...]``, or a pytree of such arrays, whose distances are added.
    """

    def between(x: Images, y: Images) -> Float[Array, " b"]:
        found = jax.tree.map(distance, features(x), features(y))
        return sum(jax.tree.leaves(found))  # type: ignore[return-value]

    return between


def pix2pix(
    networks: Pair,
    loss: AdversarialLoss | None,
    optimizers: Optimizers,
    *,
    domains: Domains,
    weights: Weights = PIX2PIX,
    distance: Distance = l1,
    penalties: Sequence[Weighted] = (),
    accumulate: int = 1,
    ema_decay: Scalar | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    """Translation learned from pairs: batches ``{"a": [b, h, w, c], "b": [b, h', w', c'], ...}``, row by row.

    Args:
      networks: G and D.
      loss: the adversarial pair; None: there is no D, and G minimizes the distance alone.
      optimizers: of both players.
      domains: the images.
      weights: of the terms; there is no identity.
      distance: of G(a) from b.
      penalties: of D, differentiated with respect to the image of b, not to a.
      accumulate, ema_decay, axis_name: as in ``gan.make``.

    Returns:
      The algorithm, with metrics ``d/loss, d/real, d/fake, d/grad_norm`` (and ``d/penalty``, weighted), ``g/loss``, the
      adversarial loss, ``g/pair``, the distance, both without weights, and ``g/grad_norm``; without D there is one
      player, and they are ``pair`` and ``grad_norm``. ``sample(state, key, n[, labels])`` translates
      ``domains.inputs(stream(key, "inputs"), n, labels)``; ``networks`` has ``translator``,
      ``(variables, a, z) -> b``.

    Raises:
      ValueError: penalties of G, or a weight of the identity.
    """
    raise NotImplementedError


def cyclegan(
    networks: Cycle,
    loss: AdversarialLoss,
    optimizers: Optimizers,
    *,
    domains: Domains,
    weights: Weights = CYCLEGAN,
    history: int = 50,
    penalties: Sequence[Weighted] = (),
    accumulate: int = 1,
    ema_decay: Scalar | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    """Translation both ways without pairs: batches ``{"a": ..., "b": ...}``, whose rows are no pairs.

    Args:
      networks: both translators and both discriminators.
      loss: the adversarial pair; the paper's is least squares.
      weights: of the terms; the identity is left out where a and b differ in channels.
      history: fakes of each domain that are kept for D (``swap``), as a part of the state; 0: D sees the newest ones.
      optimizers, domains, penalties, accumulate, ema_decay, axis_name: as in ``pix2pix``; penalties are of both
        discriminators.

    Returns:
      The algorithm, with metrics as of ``pix2pix``, ``g/cycle`` and ``g/identity`` (sums over both domains) in the
      place of ``g/pair``. ``d/loss``, ``g/loss`` and ``d/penalty`` are sums over both domains, ``d/real`` and
      ``d/fake`` means. ``networks`` has ``translator`` and ``back``, ``(variables, b, z) -> a``.

    Raises:
      ValueError: penalties of G, or a negative history.
    """
    raise NotImplementedError


def cut(
    networks: Contrast,
    loss: AdversarialLoss,
    optimizers: Optimizers,
    *,
    domains: Domains,
    weights: Weights = CUT,
    penalties: Sequence[Weighted] = (),
    accumulate: int = 1,
    ema_decay: Scalar | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    """Translation one way without pairs, at half the cost of both: batches as of ``cyclegan``.

    Args:
      networks: G, D and the heads, which are a part of the player g: the authors move them by an optimizer of their own
        with the same settings, which is the same for an optimizer that takes each parameter by itself.
      weights: of the terms; without identity, and with a content of 10, it is the paper's FastCUT.
      loss, optimizers, domains, penalties, accumulate, ema_decay, axis_name: as in ``pix2pix``.

    Returns:
      The algorithm, with metrics as of ``pix2pix``, ``g/nce`` and ``g/identity``, the same of images of b, in the place
      of ``g/pair``.

    Raises:
      ValueError: penalties of G, or a and b of different channels, for one encoder must see both.
    """
    raise NotImplementedError
