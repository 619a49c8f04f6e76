"""Directions in the space of latents along which samples change: in closed form, from samples, labels or derivatives.

==========================  ===========================================================================================
``sefa``                    what the first affine map of G stretches most; ``first_maps`` finds that map in any network
``ganspace``                principal components of what G computes, taken back to the latents
``supervised``              what tells samples with an attribute from those without
``jacobian_directions``     what moves samples most at a point
==========================  ===========================================================================================

``effects`` says what a direction does to the classes of samples. The signs of directions have no meaning; here the
largest number of each is positive.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array, Float

from bpgan.insight.geometry import Function, Krylov, Products, each_dimension, enough, krylov
from bpgan.types import PRNG, UserError

_COVARIANCE = 4096  # numbers of the activations whose covariance is held: 128 MiB


class Directions(NamedTuple):
    """The top k directions of a method, by how much samples change.

    Attributes:
      vectors: ``[k, *z]``, each of length 1.
      values: ``[k]``, of each, the largest first; each method says what they are.
      shares: ``[k]``, the part of the total that each has, in squares: in all at most 1.
    """

    vectors: Float[np.ndarray, "k *z"]
    values: Float[np.ndarray, " k"]
    shares: Float[np.ndarray, " k"]


def _oriented(vectors: np.ndarray) -> np.ndarray:
    """Unit rows ``[k, d]`` whose largest number is positive."""
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], 1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * np.sign(largest)


# From the weights ---------------------------------------------------------------------------------------------------


def sefa(kernels: Sequence[Float[Any, "d out"]], k: int) -> Directions:
    """Closed-form factorization: the unit vectors that the kernels stretch most, eigenvectors of ``sum K K'``.

    Shen & Zhou 2021, arXiv:2007.06600: of ``h = A z + b`` those of ``A' A``; a kernel ``[in, out]`` is ``A'``. Several
    kernels, as of the layers of a network with styles, count as one with all their outputs. A factor of all kernels
    changes no direction.

    Args:
      kernels: ``[d, out]`` of one space of latents, such as the values of ``first_maps``.
      k: how many directions.

    Returns:
      The directions ``[k, d]``; ``values`` are the eigenvalues, the squared singular values of the kernels.

    Raises:
      UserError: for kernels that do not fit together, or more directions than dimensions.
    """
    matrices = [np.asarray(kernel, np.float64) for kernel in kernels]
    shapes = [list(each.shape) for each in matrices]
    if not matrices or any(len(s) != 2 for s in shapes) or len({s[0] for s in shapes}) > 1:
        raise UserError(
            f"have the shapes {shapes}, must be [d, out] with one d", argument="kernels"
        )
    enough(k, len(matrices[0]))
    values, vectors = np.linalg.eigh(sum(each @ each.T for each in matrices))
    values = np.maximum(values[::-1], 0)
    if not values[0] > 0:
        raise UserError("are all zero", argument="kernels")
    return Directions(_oriented(vectors.T[::-1][:k]), values[:k], values[:k] / values.sum())


def first_maps(
    G: Function, z: Float[Any, "n *z"], *, first_product: bool = False
) -> dict[str, Float[np.ndarray, "d out"]]:
    """The first affine maps of a network, by the names of their layers: kernels ``[d, out]``, where z has d numbers.

    G is traced, and what is affine in z is followed, whatever operations it is made of, to the first operations that
    are not. A perceptron has one such map, its first layer. The synthesis of a network with styles has one for each
    layer, and so has a network that gives a part of z to every block.

    Batch norm is affine when samples are drawn: it multiplies what the layer before it makes by constants, and belongs
    to the map. Its kernel is then the same for all networks that compute the same. The kernel of the layer alone, which
    the paper takes, is not: norm undoes a factor of any unit, and so this kernel may weigh units by factors that no
    sample shows. ``first_product`` returns it, for comparison.

    Args:
      G: ``z[n, ...] -> x[n, ...]``.
      z: any latents; the first row is looked at, in the place of which G may not depend on others.
      first_product: whether to stop at the first product with a matrix or a kernel.

    Raises:
      UserError: if G begins with an operation that is not affine, such as the norm of z before a mapping: of such a
        network, pass the synthesis and its styles.
    """
    raise NotImplementedError


# From samples -------------------------------------------------------------------------------------------------------


def ganspace(
    activation: Function,
    latents: Callable[[int], Float[Any, "b *z"]],
    n: int,
    k: int,
    *,
    in_latents: bool = True,
) -> Directions:
    """Principal components of what a network computes, and the directions of latents that move along them.

    Haerkoenen et al. 2020, arXiv:2004.02546. Mean and covariance are streamed over blocks, in float64, so that any
    number of samples fits, and are those of all samples at once. The way back to latents is by least squares, the u
    that minimizes ``E |u x - (z - E z)|^2`` for the coordinate x of a component.

    Args:
      activation: ``z[b, ...] -> a[b, ...]``, such as the styles, or the first layer; at most 4096 numbers an example.
      latents: ``i -> z[b, ...]``, the i-th block.
      n: how many samples are used; the last block may be cut.
      k: how many directions.
      in_latents: whether to return directions of the latents; else the components, ``[k, *a]``, for styles.

    Returns:
      The directions; ``values`` are the variances that the components explain, ``shares`` their parts of the whole.

    Raises:
      UserError: for too many activations, too few samples, or more directions than activations vary in.
    """
    raise NotImplementedError


class Supervised(NamedTuple):
    """A direction that tells samples with an attribute from those without, and how well.

    Attributes:
      vector: ``[*z]``, of length 1; along it the attribute becomes more likely.
      slope, bias: ``sigmoid(slope <z, vector> + bias)`` is its probability.
      accuracy: on the half of the samples that the direction was not fitted to.
      standard_error: of the accuracy.
      chance: the accuracy of the more frequent answer.
      calibration: how far the probabilities are from the frequencies, on that half: the mean distance over ten bins of
        equal numbers of samples. For probabilities that are right it is about the standard error of a bin.
      controls: ``[r]``, accuracies of random directions, each with a slope and a bias of its own.
    """

    vector: np.ndarray
    slope: float
    bias: float
    accuracy: float
    standard_error: float
    chance: float
    calibration: float
    controls: np.ndarray


def supervised(
    z: Float[Any, "n *z"],
    attribute: Any,
    *,
    ridge: float = 1.0,
    controls: int = 20,
    seed: int = 0,
) -> Supervised:
    """Logistic regression of an attribute of samples on their latents.

    It is fitted to one half of the samples, drawn at random, and judged on the other. That an attribute can be read from
    the latents better than along random directions says that the generator uses them for it, not that the direction
    changes nothing else: see ``effects``.

    Args:
      z: the latents.
      attribute: ``[n]``, true or false, such as whether a classifier sees a class.
      ridge: weight of ``|w|^2 / 2`` beside the sum of the log losses: a normal prior, without which separable samples
        have no fit.
      controls: how many random directions.
      seed: of the halves and of the random directions.

    Raises:
      UserError: for shapes that do not fit, or an attribute of which either half has only one answer.
    """
    raise NotImplementedError


# From derivatives ---------------------------------------------------------------------------------------------------


def jacobian_directions(
    G: Function, z: Float[Any, "n *z"], k: int, key: PRNG, *, iterations: int | None = None
) -> Directions:
    """The directions that move samples most at a point: the top right singular vectors of ``dG/dz``.

    By Lanczos on ``J' J``, of which each product is one ``jvp`` and one ``vjp`` of G: no Jacobian is held. At several
    points they are those of the mean of ``J' J``.

    Args:
      G: ``z[n, ...] -> x[n, ...]``.
      z: the points, one or several.
      k: how many directions.
      key: of Lanczos's random start.
      iterations: of Lanczos; by default ``4 k + 32``, at most the dimensions. With all of them it is exact.

    Returns:
      The directions; ``values`` are the singular values, ``shares`` their squares over ``|J|_F^2``, which is exact.

    Raises:
      UserError: for more directions than dimensions.
    """
    z = jnp.asarray(z)
    dimensions = math.prod(z.shape[1:])
    steps = enough(k, dimensions, iterations)
    found, total = jax.jit(top, static_argnums=(0, 3))(G, z, key, steps)
    values, vectors = found.ritz()
    squares = np.maximum(values[0, :k], 0) / len(z)
    vectors = _oriented(vectors[0, :k]).reshape(k, *z.shape[1:])
    return Directions(vectors, np.sqrt(squares), squares / (float(total) / len(z)))


def top(G: Function, z: Float[Array, "n *z"], key: PRNG, iterations: int) -> tuple[Krylov, Array]:
    """What ``jacobian_directions`` computes on the device: Lanczos's basis of ``sum J' J``, and ``sum |J|_F^2``."""
    shape = z.shape[1:]
    products = Products.of(lambda v: G(z + v.reshape(1, *shape)), jnp.zeros(math.prod(shape)))
    found = krylov(
        lambda v: products.square(v[0])[None], (1, math.prod(shape)), iterations, key
    )
    squares = each_dimension(lambda e: jnp.sum(jnp.square(products.push(e))), math.prod(shape))
    return found, jnp.sum(squares)


# What they do -------------------------------------------------------------------------------------------------------


class Effects(NamedTuple):
    """What a direction does to the classes of samples.

    Attributes:
      steps: ``[s]``, how far along the direction.
      probabilities: ``[s, k]``, of each class, the mean over the samples.
      change: ``[s, k]``, how much they differ from those of the samples as they are.
      standard_error: ``[s, k]``, of ``change``, which is paired: each sample is compared with itself.
      kept: ``[s]``, the share of samples whose most likely class is as before.
    """

    steps: np.ndarray
    probabilities: Float[np.ndarray, "s k"]
    change: Float[np.ndarray, "s k"]
    standard_error: Float[np.ndarray, "s k"]
    kept: Float[np.ndarray, " s"]


def effects(
    G: Function,
    logits: Function,
    z: Float[Any, "n *z"],
    direction: Float[Any, "*z"],
    steps: Sequence[float],
) -> Effects:
    """The change of class probabilities along a direction: whether it changes the style of a sample, or its class.

    Args:
      G: ``z[n, ...] -> x[n, ...]``.
      logits: ``x[n, ...] -> [n, k]``, of a classifier.
      z: latents of at least two samples.
      direction: ``[*z]``.
      steps: how far to go, such as -3 to 3.

    Raises:
      UserError: if the shapes do not fit.
    """
    z, direction = jnp.asarray(z), jnp.asarray(direction, jnp.asarray(z).dtype)
    if direction.shape != z.shape[1:] or len(z) < 2:
        reason = f"is {list(direction.shape)}, must be {list(z.shape[1:])}, as of at least two `z`"
        raise UserError(reason, argument="direction")

    @jax.jit
    def probabilities(step: Array) -> Array:
        return jax.nn.softmax(logits(G(z + step * direction[None])).astype(jnp.float32), axis=-1)

    before = np.asarray(probabilities(jnp.zeros((), z.dtype)), np.float64)
    found = np.stack(
        [np.asarray(probabilities(jnp.asarray(s, z.dtype)), np.float64) for s in steps]
    )
    change = found - before
    return Effects(
        np.asarray(steps, np.float64),
        found.mean(1),
        change.mean(1),
        change.std(1, ddof=1) / math.sqrt(len(z)),
        (found.argmax(-1) == before.argmax(-1)).mean(1),
    )
