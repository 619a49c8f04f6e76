"""Backpropagation written out by hand, and the one-player training step that runs on it.

A layer is a pair of pure functions. ``forward`` computes ``y = f(x; w)`` and keeps what its
gradient needs; ``backward`` multiplies a cotangent by the transposed Jacobians,

    dx = (df/dx)^T dy,    dw = (df/dw)^T dy,

and a network applies the backward functions of its layers in reverse order (Rumelhart, Hinton &
Williams 1986, doi:10.1038/323533a0). Nothing from ``Layer`` to ``value_and_grad`` calls automatic
differentiation. Three ways to use it:

* ``value_and_grad(network, loss)`` is the whole chain by hand: forward, loss, backward.
* ``by_hand(network)`` and ``losses_by_hand(name)`` have the types of ``Net.apply`` and
  ``AdversarialLoss``, so every algorithm trains on these gradients unchanged; JAX only chains them.
* ``check_gradients`` compares any gradient with central differences: use it on your own losses.

Parameters are nested dicts of the same tree as those of the Linen networks in ``bpgan.nets``, so
either side can take the other's. Axes: ``i o`` channels or features in and out, ``u v`` kernel rows
and columns; the others as in ``bpgan.types``.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from bpgan import losses
from bpgan.types import PRNG, AdversarialLoss, Algorithm, Metrics, Net, UserError

# --- Layers ---------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """A differentiable function with parameters ``w`` and state ``s``, dicts that may be empty.

    Attributes:
      forward: ``forward(w, s, x, train) -> (y, s, cache)``. The returned ``s`` is unchanged unless
        ``train``; the cache is a pytree of arrays and nothing else.
      backward: ``backward(w, cache, dy) -> (dx, dw)`` with ``dw`` of the same tree as ``w``. The
        new state is taken as a constant: nothing is propagated through it.
    """

    forward: Callable[[Any, Any, Array, bool], tuple[Array, Any, Any]]
    backward: Callable[[Any, Any, Array], tuple[Array, Any]]


def sequential(*layers: tuple[str, Layer]) -> Layer:
    """The composition of named layers, first one first; again a layer, so compositions nest.

    ``w`` and ``s`` are dicts by layer name; layers without parameters have no entry.

    Raises:
      ValueError: if two layers have the same name.
    """
    names = [name for name, _ in layers]
    if len(set(names)) < len(names):
        raise ValueError(f"layer names must differ: {names}")

    def forward(w, s, x, train):
        states, caches = {}, []
        for name, layer in layers:
            x, state, cache = layer.forward(w.get(name, {}), s.get(name, {}), x, train)
            caches.append(cache)
            if state:
                states[name] = state
        return x, states, caches

    def backward(w, caches, dy):
        dw = {}
        for (name, layer), cache in zip(reversed(layers), reversed(caches), strict=True):
            dy, gradient = layer.backward(w.get(name, {}), cache, dy)
            if gradient:
                dw[name] = gradient
        return dy, dw

    return Layer(forward, backward)


def _row(vector: Float[Array, " o"], ndim: int) -> Array:
    """The vector with as many leading axes as it needs to meet an array of ``ndim`` axes."""
    return vector.reshape((1,) * (ndim - 1) + vector.shape)


def _sum_to_last(x: Float[Array, "*n o"]) -> Float[Array, " o"]:
    return jnp.sum(x, axis=tuple(range(x.ndim - 1)))


def _affine(linear: Callable, adjoint: Callable, outer: Callable) -> Layer:
    """``y = linear(x, kernel) + bias``; ``bias`` [o] is optional.

    A map linear in ``x`` and in ``kernel`` has two adjoints: ``adjoint(dy, kernel, x) -> dx`` and
    ``outer(x, dy, kernel) -> dkernel`` (the last argument of either gives shapes only).
    """

    def forward(w, s, x, train):
        y = linear(x, w["kernel"])
        return (y + _row(w["bias"], y.ndim) if "bias" in w else y), s, x

    def backward(w, x, dy):
        dw = {"kernel": outer(x, dy, w["kernel"])}
        if "bias" in w:
            dw["bias"] = _sum_to_last(dy)
        return adjoint(dy, w["kernel"], x), dw

    return Layer(forward, backward)


def dense() -> Layer:
    """``y = x W + b``: ``dx = dy W^T``, ``dW = x^T dy``, ``db = sum_b dy``.

    ``x[b, i]``, ``kernel[i, o]``, ``bias[o]``.
    """
    return _affine(
        lambda x, kernel: x @ kernel,
        lambda dy, kernel, x: dy @ kernel.T,
        lambda x, dy, kernel: x.T @ dy,
    )


# A convolution and its transpose are one sum with another leg left free. Of the padded image
# X[b, h, w, i], the kernel K[u, v, i, o] and the smaller image Y[b, p, q, o] it is the sum of
#
#     X[b, stride * p + u, stride * q + v, i] * K[u, v, i, o] * Y[b, p, q, o],
#
# and _gather leaves Y free (convolution), _scatter X (its adjoint), _outer K (kernel gradient).


def _window(x: Array, u: int, v: int, rows: int, columns: int, stride: int) -> Array:
    """What kernel tap ``(u, v)`` meets of the padded image: ``[b, rows, columns, i]``."""
    return x[
        :, u : u + stride * (rows - 1) + 1 : stride, v : v + stride * (columns - 1) + 1 : stride
    ]


def _pad(x: Array, padding: int) -> Array:
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def _gather(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    x = _pad(x, padding)
    (kh, kw), (h, w) = kernel.shape[:2], x.shape[1:3]
    rows, columns = (h - kh) // stride + 1, (w - kw) // stride + 1
    return functools.reduce(
        operator.add,
        (
            jnp.tensordot(_window(x, u, v, rows, columns, stride), kernel[u, v], 1)
            for u in range(kh)
            for v in range(kw)
        ),
    )


def _scatter(y: Array, kernel: Array, stride: int, padding: int, size: Sequence[int]) -> Array:
    """The adjoint of ``_gather`` on images of ``size``; ``kernel[u, v, o, i]``, from Y to X."""

    def place(z, u, v):
        """Puts pixel ``(p, q)`` of z at ``(stride p + u, stride q + v)`` of the padded image."""
        span = [stride * (n - 1) + 1 for n in z.shape[1:3]]
        after = [n + 2 * padding - k - m for n, k, m in zip(size, (u, v), span, strict=True)]
        edges = [(0, 0, 0), (u, after[0], stride - 1), (v, after[1], stride - 1), (0, 0, 0)]
        return lax.pad(z, jnp.zeros((), z.dtype), edges)

    kh, kw = kernel.shape[:2]
    x = functools.reduce(
        operator.add,
        (place(jnp.tensordot(y, kernel[u, v], 1), u, v) for u in range(kh) for v in range(kw)),
    )
    return x[:, padding : padding + size[0], padding : padding + size[1]]


def _outer(x: Array, y: Array, kernel_size: Sequence[int], stride: int, padding: int) -> Array:
    x = _pad(x, padding)
    (kh, kw), (rows, columns) = kernel_size, y.shape[1:3]
    taps = [
        jnp.tensordot(_window(x, u, v, rows, columns, stride), y, ((0, 1, 2), (0, 1, 2)))
        for u in range(kh)
        for v in range(kw)
    ]
    return jnp.stack(taps).reshape(kh, kw, x.shape[3], y.shape[3])


def _swap(kernel: Float[Array, "u v i o"]) -> Float[Array, "u v o i"]:
    return jnp.swapaxes(kernel, 2, 3)


def conv(stride: int = 1, padding: int = 0) -> Layer:
    """Convolution (unflipped) of the image with ``padding`` zeros added on every side.

    ``y[b, p, q, o] = bias[o] + sum_uvi X[b, stride p + u, stride q + v, i] kernel[u, v, i, o]`` for
    the padded image X; ``x[b, h, w, i]`` gives ``(h + 2 padding - kh) // stride + 1`` rows. Its
    adjoint is ``conv_transpose`` with the kernel's channel axes swapped.
    """
    return _affine(
        lambda x, kernel: _gather(x, kernel, stride, padding),
        lambda dy, kernel, x: _scatter(dy, _swap(kernel), stride, padding, x.shape[1:3]),
        lambda x, dy, kernel: _outer(x, dy, kernel.shape[:2], stride, padding),
    )


def conv_transpose(stride: int = 1, padding: int = 0) -> Layer:
    """Transposed convolution: the adjoint of ``conv`` with the kernel's channel axes swapped.

    Pixel ``(p, q)`` of ``x[b, h, w, i]`` adds ``x[b, p, q, i] kernel[u, v, i, o]`` to pixel
    ``(stride p + u - padding, stride q + v - padding)`` of the output, which has
    ``stride (h - 1) + kh - 2 padding`` rows: kernel 4, stride 2, padding 1 double the size.
    Dumoulin & Visin 2016, arXiv:1603.07285, section 4.
    """

    def linear(x, kernel):
        sizes = zip(x.shape[1:3], kernel.shape[:2], strict=True)
        return _scatter(
            x, kernel, stride, padding, [stride * (n - 1) + k - 2 * padding for n, k in sizes]
        )

    return _affine(
        linear,
        lambda dy, kernel, x: _gather(dy, _swap(kernel), stride, padding),
        lambda x, dy, kernel: _swap(_outer(dy, x, kernel.shape[:2], stride, padding)),
    )


def batch_norm(momentum: float = 0.9, epsilon: float = 1e-5) -> Layer:
    """``y = scale n + bias``, ``n = (x - mean) / sqrt(var + epsilon)``, per channel (last axis).

    Ioffe & Szegedy 2015, arXiv:1502.03167. In training, mean and (biased) variance are those of the
    batch over all axes but the last, and the running ones become
    ``momentum * old + (1 - momentum) * batch``; otherwise the running ones are used. With
    ``dn = scale dy``, in training

        dx = (dn - mean(dn) - n mean(dn n)) / sqrt(var + epsilon):

    normalizing removes the directions 1 and n, so no gradient may come back along them (along n up
    to epsilon). Parameters ``scale[o], bias[o]``, state ``mean[o], var[o]``.
    """

    def forward(w, s, x, train):
        ndim, axes = x.ndim, tuple(range(x.ndim - 1))
        mean, var = s["mean"], s["var"]
        if train:
            mean = jnp.mean(x, axis=axes)
            var = jnp.mean(jnp.square(x - _row(mean, ndim)), axis=axes)
            s = {
                "mean": momentum * s["mean"] + (1 - momentum) * mean,
                "var": momentum * s["var"] + (1 - momentum) * var,
            }
        inverse = _row(1 / jnp.sqrt(var + epsilon), ndim)
        n = (x - _row(mean, ndim)) * inverse
        # The mode is kept as a number because a cache holds arrays only.
        cache = n, inverse, jnp.asarray(train, x.dtype)
        return _row(w["scale"], ndim) * n + _row(w["bias"], ndim), s, cache

    def backward(w, cache, dy):
        n, inverse, batch_statistics = cache
        axes = tuple(range(dy.ndim - 1))
        dn = _row(w["scale"], dy.ndim) * dy
        along_1 = jnp.mean(dn, axis=axes, keepdims=True)
        along_n = jnp.mean(dn * n, axis=axes, keepdims=True)
        dx = (dn - batch_statistics * (along_1 + n * along_n)) * inverse
        return dx, {"scale": _sum_to_last(dy * n), "bias": _sum_to_last(dy)}

    return Layer(forward, backward)


def _elementwise(
    function: Callable[[Array], Array], factor: Callable[[Array, Array], Array]
) -> Layer:
    """``y = function(x)`` with ``dx = factor(x, y) * dy``."""

    def forward(w, s, x, train):
        y = function(x)
        return y, s, (x, y)

    return Layer(forward, lambda w, cache, dy: (factor(*cache) * dy, {}))


def leaky_relu(slope: float = 0.2) -> Layer:
    """``y = x`` where ``x >= 0``, else ``slope * x``. The derivative at 0 is 1, as in JAX."""
    return _elementwise(
        lambda x: jnp.where(x >= 0, x, slope * x),
        lambda x, y: jnp.where(x >= 0, jnp.ones_like(x), slope * jnp.ones_like(x)),
    )


def relu() -> Layer:
    """``y = max(x, 0)``. The derivative at 0 is 0, as in JAX."""
    return _elementwise(
        lambda x: jnp.where(x > 0, x, jnp.zeros_like(x)), lambda x, y: (x > 0).astype(x.dtype)
    )


def tanh() -> Layer:
    """``y = tanh(x)``, ``dx = (1 - y^2) dy``."""
    return _elementwise(jnp.tanh, lambda x, y: 1 - y * y)


def sigmoid() -> Layer:
    """``y = 1 / (1 + e^-x)``, ``dx = y (1 - y) dy``."""
    return _elementwise(jax.nn.sigmoid, lambda x, y: y * (1 - y))


def gelu() -> Layer:
    """``y = x Phi(x)``, ``dx = (Phi(x) + x phi(x)) dy``: the normal distribution function and its density."""

    def cdf(x):
        return 0.5 * jax.scipy.special.erfc(-math.sqrt(0.5) * x)

    def density(x):
        return jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)

    return _elementwise(lambda x: x * cdf(x), lambda x, y: cdf(x) + x * density(x))


def reshape(*shape: int) -> Layer:
    """``x[b, ...] -> y[b, *shape]``: ``reshape(-1)`` flattens, ``reshape()`` gives ``y[b]``."""
    return Layer(
        lambda w, s, x, train: (x.reshape(x.shape[0], *shape), s, x),
        lambda w, x, dy: (dy.reshape(x.shape), {}),
    )


# --- Networks of bpgan.nets, described layer by layer ---------------------------------------------


def _repeat(n: int, name: str, layer: Layer, activation: Layer) -> list[tuple[str, Layer]]:
    """``n`` times the layer and the activation, the layers named ``{name}0``, ``{name}1``, ..."""
    return [
        pair for i in range(n) for pair in ((f"{name}{i}", layer), (f"{name}{i}_y", activation))
    ]


def _mlp(hidden: int, *output: tuple[str, Layer]) -> Layer:
    """Flatten, ``hidden`` times (dense, leaky ReLU), dense, then the layers ``output``."""
    inner = _repeat(hidden, "dense", dense(), leaky_relu())
    return sequential(("flatten", reshape(-1)), *inner, (f"dense{hidden}", dense()), *output)


def mlp_generator(shape: Sequence[int], hidden: int = 1) -> Layer:
    """``nets.mlp.Generator`` with so many hidden layers: ``z[b, z] -> x[b, *shape]``."""
    return _mlp(hidden, ("tanh", tanh()), ("image", reshape(*shape)))


def mlp_discriminator(hidden: int = 2) -> Layer:
    """``nets.mlp.Discriminator`` with so many hidden layers: ``x[b, ...] -> logits[b]``."""
    return _mlp(hidden, ("logits", reshape()))


def mlp_classifier(hidden: int = 1) -> Layer:
    """``nets.mlp.Classifier`` with so many hidden layers: ``x[b, ...] -> logits[b, k]``."""
    return _mlp(hidden)


def cnn_classifier(convolutions: int = 2) -> Layer:
    """``nets.dcgan.Classifier`` with so many ``widths``: ``x[b, h, w, c] -> logits[b, k]``."""
    inner = _repeat(convolutions, "conv", conv(2, 1), gelu())
    hidden = _repeat(1, "dense", dense(), gelu())
    return sequential(*inner, ("flatten", reshape(-1)), *hidden, ("dense1", dense()))


# --- Losses ---------------------------------------------------------------------------------------


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


# --- The chain, by hand and joined to JAX ---------------------------------------------------------

Gradient = Callable[[Mapping[str, Any], Any, Any], tuple[tuple[Array, tuple[Any, Any]], Any]]
"""``(variables, x, y) -> ((mean loss, (prediction, mutable)), dparams)``: the form of
``jax.value_and_grad(..., has_aux=True)``."""


def _run(network: Layer, variables, x, train: bool):
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
        dprediction = loss.gradient(prediction, y) / prediction.shape[0]
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
        raise UserError(
            f"loss {name!r} has no hand-written gradient; those that have: "
            + ", ".join(ADVERSARIAL_GRADIENTS)
        )

    def join(value, gradient):
        loss = jax.custom_vjp(value)

        def backward(residuals, cotangent):
            return tuple(cotangent * slope for slope in gradient(*residuals))

        loss.defvjp(lambda real, fake: (value(real, fake), (real, fake)), backward)
        return loss

    d_gradient, g_gradient = ADVERSARIAL_GRADIENTS[name]
    return AdversarialLoss(
        join(losses.LOSSES[name].d, d_gradient), join(losses.LOSSES[name].g, g_gradient)
    )


# --- Gradient checking ----------------------------------------------------------------------------


class GradientCheck(NamedTuple):
    """What ``check_gradients`` found.

    Attributes:
      max_relative_error: the largest ``|analytic - numeric| / max(|analytic|, |numeric|)`` of all
        directions. Derivatives below a hundredth of the largest are measured against that
        hundredth, because the rounding of a difference has the size of the large ones.
      analytic, numeric: float64 ``[m]``, the derivatives along each of the directions.
    """

    max_relative_error: float
    analytic: np.ndarray
    numeric: np.ndarray


def check_gradients(
    fn: Callable[..., Float[Array, ""]],
    *args: Any,
    gradient: Callable[..., Any] | None = None,
    directions: int | None = None,
    step: float | None = None,
    seed: int = 0,
) -> GradientCheck:
    """Compares a gradient with central differences ``(fn(x + h e) - fn(x - h e)) / 2h``.

    Args:
      fn: scalar function of ``args``, traceable by JAX and deterministic.
      *args: pytrees of floating-point arrays (close over others), away from kinks such as relu's.
      gradient: ``gradient(*args)`` -> one gradient per argument, a tuple. Default: ``jax.grad`` of
        ``fn``, which runs hand-written rules where ``fn`` has them.
      directions: number of random unit directions ``e``. Default: every coordinate if there are at
        most 512, otherwise 16 random directions.
      step: ``h = step * max(1, |<x, e>|)``. Default: the cube root of the machine epsilon, where
        truncation ``h^2`` balances rounding ``eps / h``; a right gradient then has an error of
        about 1e-9 in float64 and 1e-3 in float32.
      seed: of the directions.

    Raises:
      ValueError: ``fn`` is not scalar, or the gradient differs from ``args`` in tree or shapes.

    A right and a wrong gradient of ``sum tanh(w)``:

    >>> def loss(w):
    ...     return jnp.sum(jnp.tanh(w))
    >>> def wrong(w):
    ...     return (1 - jnp.tanh(w),)
    >>> w = jnp.array([-0.5, 0.2, 1.0])
    >>> check_gradients(loss, w).max_relative_error < 1e-3
    True
    >>> check_gradients(loss, w, gradient=wrong).max_relative_error > 0.1
    True
    """
    gradients = (gradient or jax.grad(fn, argnums=tuple(range(len(args)))))(*args)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (tuple(gradients), args)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"gradient has shapes {shapes[0]}, the arguments have {shapes[1]}")
    x, unravel = ravel_pytree(args)
    if directions is None and x.size <= 512:
        e = np.eye(x.size)
    else:
        e = np.random.default_rng(seed).normal(size=(directions or 16, x.size))
        e /= np.linalg.norm(e, axis=1, keepdims=True)
    e = e.astype(x.dtype)
    relative_step = float(jnp.finfo(x.dtype).eps) ** (1 / 3) if step is None else step

    def difference(e):
        h = relative_step * jnp.maximum(1.0, jnp.abs(jnp.dot(x, e)))
        ahead, behind = fn(*unravel(x + h * e)), fn(*unravel(x - h * e))
        if ahead.shape:
            raise ValueError(f"fn must return a scalar, not an array of shape {ahead.shape}")
        return (ahead - behind) / (2 * h)

    numeric = np.asarray(lax.map(difference, e), np.float64)
    analytic = e @ np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradients)], dtype=float)
    size = np.maximum(np.abs(analytic), np.abs(numeric))
    size = np.maximum(size, 0.01 * np.max(size))
    # 0 / 0 is agreement. A NaN stays one, and so fails every comparison with a tolerance.
    error = np.abs(analytic - numeric) / np.where(size == 0, 1.0, size)
    return GradientCheck(float(np.max(error)), analytic, numeric)


# --- The one-player algorithm ---------------------------------------------------------------------


class State(NamedTuple):
    """One network in training: ``stats`` holds its other collections, such as batch statistics."""

    step: Int[Array, ""]
    params: Any
    stats: Any
    opt: Any


def accuracy(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, ""]:
    """The fraction of examples whose largest logit is the label's."""
    return jnp.mean((jnp.argmax(logits, axis=1) == labels).astype(logits.dtype))


def make(
    init: Callable[..., Any],
    gradient: Gradient,
    tx: optax.GradientTransformation,
    *,
    data_shape: Sequence[int],
    dtype: Any = jnp.float32,
    metrics: Mapping[str, Callable[[Any, Any], Float[Array, ""]]] | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    """Gradient descent on one network: ``w <- w + tx(grad mean_b loss(f(x; w), y))``.

    Args:
      init: ``Net.init``.
      gradient: ``value_and_grad(network, loss)`` or ``autodiff(net, loss)``.
      tx: the descent: ``optax.sgd(lr)``, ``optax.sgd(lr, momentum)``, ``optax.adam(lr)``, ...
      data_shape, dtype: of one example.
      metrics: more scalars ``(prediction, target) -> f[]`` by name: ``{"accuracy": accuracy}``.
      axis_name: mapped axis when the step runs per device; gradients, statistics and metrics are
        averaged over it.

    Returns:
      The algorithm, with state ``State`` and batches ``{"x": ..., "y": ...}``. Metrics ``loss``,
      ``grad_norm`` and those asked for are of the batch before the update. Steps draw no numbers.
    """

    def pmean(tree):
        return tree if axis_name is None else lax.pmean(tree, axis_name)

    def start(key: PRNG) -> State:
        variables = dict(init(key, jnp.zeros((2, *data_shape), dtype)))
        params = variables.pop("params")
        return State(jnp.zeros((), jnp.int32), params, variables, tx.init(params))

    def step(state: State, batch, key: PRNG) -> tuple[State, Metrics]:
        del key
        variables = {**state.stats, "params": state.params}
        (loss, (prediction, stats)), grads = gradient(variables, batch["x"], batch["y"])
        grads = pmean(grads)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        extra = {name: metric(prediction, batch["y"]) for name, metric in (metrics or {}).items()}
        values = pmean({"loss": loss, **extra}) | {"grad_norm": optax.tree.norm(grads)}
        return State(state.step + 1, params, pmean(stats), opt), values

    return Algorithm(start, step)
