"""Layers: what each computes, and how it passes a gradient back."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


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
