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

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bpgan.insight import affine
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

    vectors: Float[np.ndarray, "k ..."]
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
    G: Function, z: Float[Any, "n ..."], *, first_product: bool = False
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
    maps = affine.first_maps(G, jnp.asarray(z)[:1], first_product=first_product)
    if not maps:
        raise UserError("the samples do not depend on the latents: there is no first map")
    if len(maps) == 1 and maps[0].layer is None and _is_alike(maps[0].matrix):
        raise UserError(
            "the generator begins with an operation that is not affine and treats all directions alike; a network with"
            " styles has its first maps in its synthesis"
        )
    names = _short([each.layer or "" for each in maps])
    return {name: each.matrix.T for name, each in zip(names, maps, strict=True)}


def _is_alike(matrix: np.ndarray) -> bool:
    """Whether it is a factor times a part of a rotation: it stretches all directions by as much."""
    square = matrix.T @ matrix
    return bool(np.allclose(square, np.trace(square) / len(square) * np.eye(len(square))))


def _short(scopes: Sequence[str]) -> list[str]:
    """The scopes of layers without what all have in common and without methods; those that are alike are numbered."""
    parts = [[part for part in scope.split("/") if "." not in part] or ["map"] for scope in scopes]
    while all(len(each) > 1 for each in parts) and len({each[0] for each in parts}) == 1:
        parts = [each[1:] for each in parts]
    names = ["/".join(each) for each in parts]
    return [
        name if names.count(name) == 1 else f"{name}:{names[:i].count(name)}"
        for i, name in enumerate(names)
    ]


# From samples -------------------------------------------------------------------------------------------------------


def ganspace(
    activation: Function,
    latents: Callable[[int], Float[Any, "b ..."]],
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
    if n < 2:
        raise UserError("must be at least 2", argument="n", value=n)
    moments, shapes = None, ((), ())
    for z, a in _blocks(jax.jit(activation), latents, n):
        shapes = z.shape[1:], a.shape[1:]
        block = _Moments.of(*(each.reshape(len(each), -1).astype(np.float64) for each in (z, a)))
        moments = moments.merged(block) if moments else block
    assert moments
    if not 1 <= k <= (most := min(moments.across.shape)):
        reason = f"must be from 1 to {most}, the dimensions of latents and activations"
        raise UserError(reason, argument="k", value=k)
    values, components = np.linalg.eigh(moments.within / (n - 1))
    values, components = np.maximum(values[::-1], 0), components[:, ::-1][:, :k]
    # The coordinates of components are uncorrelated: least squares divides each direction by a variance, and the
    # length is of no account.
    rank = int((values > values[0] * len(values) * np.finfo(np.float32).eps).sum())
    if k > rank:
        reason = f"must be at most {rank}, the directions that the activations vary in"
        raise UserError(reason, argument="k", value=k)
    vectors = (moments.across @ components if in_latents else components).T
    shape = shapes[0] if in_latents else shapes[1]
    shares = values[:k] / values.sum()
    return Directions(_oriented(vectors).reshape(k, *shape), values[:k], shares)


def _blocks(
    activation: Function, latents: Callable[[int], Any], n: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The latents and activations of n samples, block by block."""
    seen = 0
    for i in itertools.count():
        z = np.asarray(latents(i))
        a = np.asarray(activation(z))[: n - seen]
        if (size := math.prod(a.shape[1:])) > _COVARIANCE:
            reason = f"makes {size:,} numbers of an example, must be at most {_COVARIANCE:,}"
            raise UserError(reason, argument="activation")
        seen += len(a)
        yield z[: len(a)], a
        if seen >= n:
            return


class _Moments(NamedTuple):
    """Sums over samples: their number, means, ``sum (z - m)(a - m)'`` and ``sum (a - m)(a - m)'``.

    They are merged without a difference of large sums (Chan, Golub & LeVeque 1983, doi:10.1080/00031305.1983.10483115).
    """

    n: int
    z: np.ndarray
    a: np.ndarray
    across: np.ndarray
    within: np.ndarray

    @classmethod
    def of(cls, z: np.ndarray, a: np.ndarray) -> "_Moments":
        means = z.mean(0), a.mean(0)
        z, a = z - means[0], a - means[1]
        return cls(len(z), *means, z.T @ a, a.T @ a)

    def merged(self, other: "_Moments") -> "_Moments":
        n, z, a = self.n + other.n, other.z - self.z, other.a - self.a
        weight = self.n * other.n / n
        return _Moments(
            n,
            self.z + other.n / n * z,
            self.a + other.n / n * a,
            self.across + other.across + weight * np.outer(z, a),
            self.within + other.within + weight * np.outer(a, a),
        )


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
    z: Float[Any, "n ..."],
    attribute: Any,
    *,
    ridge: float = 1.0,
    controls: int = 20,
    seed: int = 0,
) -> Supervised:
    """Logistic regression of an attribute of samples on their latents.

    It is fitted to one half of the samples, drawn at random, and judged on the other. That an attribute can be read
    from the latents better than along random directions says that the generator uses them for it, not that the
    direction changes nothing else: see ``effects``.

    Args:
      z: the latents.
      attribute: ``[n]``, true or false, such as whether a classifier sees a class.
      ridge: weight of ``|w|^2 / 2`` beside the sum of the log losses, of latents in units of their standard deviation:
        a normal prior, without which separable samples have no fit.
      controls: how many random directions.
      seed: of the halves and of the random directions.

    Raises:
      UserError: for shapes that do not fit, or an attribute of which either half has only one answer.
    """
    z, y = np.asarray(z), np.asarray(attribute)
    if z.ndim < 2 or y.shape != z.shape[:1] or not np.isin(y, (0, 1)).all():
        reason = f"must be true or false for each of the {len(z)} rows of `z`"
        raise UserError(reason, argument="attribute")
    rng, shape = np.random.default_rng(seed), z.shape[1:]
    x, y = z.reshape(len(z), -1).astype(np.float64), y.astype(np.float64)
    order = rng.permutation(len(x))
    fitted, held = order[: len(x) // 2], order[len(x) // 2 :]
    if min(y[half].std() if len(half) else 0 for half in (fitted, held)) == 0:
        reason = "must be true of some samples and false of others, in both halves"
        raise UserError(reason, argument="attribute")
    spread = x.std()
    weights, bias = _logistic(x[fitted] / spread, y[fitted], ridge)
    weights /= spread
    logits = x[held] @ weights + bias
    accuracy = float(((logits > 0) == y[held]).mean())
    slope = float(np.linalg.norm(weights))
    random = _oriented(rng.normal(size=(controls, x.shape[1])))
    return Supervised(
        (weights / slope).reshape(shape),
        slope,
        bias,
        accuracy,
        math.sqrt(accuracy * (1 - accuracy) / len(held)),
        float(max(y[held].mean(), 1 - y[held].mean())),
        _miscalibration(logits, y[held]),
        np.array([_control(x @ u / spread, y, fitted, held, ridge) for u in random]),
    )


def _probability(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(logits / 2))  # of the logistic function, without overflow


def _logistic(x: np.ndarray, y: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """Weights and bias that minimize ``sum log(1 + exp(-+ logit)) + ridge |w|^2 / 2``, by Newton's method.

    A step that raises the convex objective is halved until it does not.
    """
    x = np.column_stack([x, np.ones(len(x))])
    penalty = ridge * np.append(np.ones(x.shape[1] - 1), 0)

    def objective(w: np.ndarray) -> float:
        logits = x @ w
        return float(np.sum(np.logaddexp(0, logits) - y * logits) + np.sum(penalty * w * w) / 2)

    w = np.zeros(x.shape[1])
    value = objective(w)
    for _ in range(100):
        p = _probability(x @ w)
        gradient = x.T @ (p - y) + penalty * w
        curvature = x.T @ (x * (p * (1 - p))[:, None]) + np.diag(penalty)
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        while step.any() and objective(w - step) > value + 1e-12 * abs(value):
            step = step / 2
        w, before, value = w - step, value, objective(w - step)
        if before - value <= 1e-10 * abs(before):
            break
    return w[:-1], float(w[-1])


def _control(
    along: np.ndarray, y: np.ndarray, fitted: np.ndarray, held: np.ndarray, ridge: float
) -> float:
    """The accuracy on the held-out half of what latents say along one direction."""
    weights, bias = _logistic(along[fitted, None], y[fitted], ridge)
    return float(((along[held] * weights[0] + bias > 0) == y[held]).mean())


def _miscalibration(logits: np.ndarray, y: np.ndarray, bins: int = 10) -> float:
    """The mean distance of probability and frequency over bins of equal numbers of samples."""
    gaps = (_probability(logits) - y)[np.argsort(logits)]
    return float(sum(abs(each.sum()) for each in np.array_split(gaps, bins)) / len(y))


# From derivatives ---------------------------------------------------------------------------------------------------


def jacobian_directions(
    G: Function, z: Float[Any, "n ..."], k: int, key: PRNG, *, iterations: int | None = None
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


def top(G: Function, z: Float[Any, "n ..."], key: PRNG, iterations: int) -> tuple[Krylov, Array]:
    """What ``jacobian_directions`` computes on the device: Lanczos's basis of ``sum J' J``, and ``sum |J|_F^2``."""
    zero = jnp.zeros(math.prod(z.shape[1:]), z.dtype)
    products = Products.of(lambda v: G(z + v.reshape(1, *z.shape[1:])), zero)
    size = (1, zero.size)
    found = krylov(lambda v: products.square(v[0])[None], size, iterations, key, z.dtype)
    squares = each_dimension(lambda e: jnp.sum(jnp.square(products.push(e))), zero)
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
    z: Float[Any, "n ..."],
    direction: Float[Any, "..."],
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

    def probabilities(step: float) -> np.ndarray:
        moved = z + jnp.asarray(step, z.dtype) * direction[None]
        return np.asarray(_probabilities(G, logits, moved), np.float64)

    before, found = probabilities(0.0), np.stack([probabilities(step) for step in steps])
    change = found - before
    return Effects(
        np.asarray(steps, np.float64),
        found.mean(1),
        change.mean(1),
        change.std(1, ddof=1) / math.sqrt(len(z)),
        (found.argmax(-1) == before.argmax(-1)).mean(1),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))  # compiled once for all directions
def _probabilities(G: Function, logits: Function, z: Array) -> Array:
    return jax.nn.softmax(logits(G(z)).astype(jnp.float32), axis=-1)
