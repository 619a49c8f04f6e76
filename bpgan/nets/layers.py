"""Linen layers: what networks are made of.

Parameters are float32 or wider, whatever a layer computes in. Every layer's ``dtype`` is that of its computation, and
each that can be divided by its spectral norm takes ``train``.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, UInt32

from bpgan.nets.conv import Padding, Pair, conv, conv_transpose, pair_of
from bpgan.nets.spectral import spectral_norm
from bpgan.types import Images, Labels, stream

Init = Callable[..., Array]
"""``(key, shape, dtype) -> array``, the initial value of a parameter."""


def storage_dtype(dtype: Any) -> Any:
    """Parameters and logits are never narrower than float32, whatever the network computes in."""
    return jnp.promote_types(dtype, jnp.float32)


def equalized(parameter: Array, rate: float | None, fan_in: int = 1) -> Array:
    """``rate / sqrt(fan_in) * parameter``, or the parameter itself if the rate is None.

    Equalized learning rate (Karras et al. 2018, arXiv:1710.10196, Sec. 4.1): parameters start as ``N(0, 1 / rate^2)``,
    and one step of Adam changes every kernel by the same share of its scale, times ``rate``.
    """
    return parameter if rate is None else rate / math.sqrt(fan_in) * parameter


def biased(y: Array, bias: Array) -> Array:
    """``y + bias`` along the last axis, of y's type.

    Added in the type of the bias, float32 or wider: its gradient sums over batch and pixels, which in bfloat16 would
    lose nearly all of them.
    """
    return (y.astype(bias.dtype) + bias.reshape((1,) * (y.ndim - 1) + (-1,))).astype(y.dtype)


class _Layer(nn.Module):
    """Parameters ``kernel[kh, kw, in, features]`` and ``bias[features]``, zero at the start.

    Attributes:
      features: output channels.
      kernel_size: one for both axes, or ``(height, width)``.
      stride, padding: as in ``conv`` and ``conv_transpose``.
      use_bias: whether a bias is added.
      kernel_init: called as ``(key, shape, dtype)``.
      dtype: of the computation; the parameters are float32 or wider.
      spectral: whether the kernel is divided by its ``spectral_norm``.
      rate: of ``equalized`` kernels and biases; None: they are used as they are.
    """

    features: int
    kernel_size: int | Pair = 3
    stride: int | Pair = 1
    padding: Padding = "SAME"
    use_bias: bool = True
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    spectral: bool = False
    rate: float | None = None

    def _apply(self, operation: Callable[..., Array], x: Images, train: bool) -> Images:
        shape = (*pair_of("kernel_size", self.kernel_size), x.shape[-1], self.features)
        stored = storage_dtype(self.dtype)
        kernel = self.param("kernel", self.kernel_init, shape, stored)
        kernel = equalized(kernel, self.rate, math.prod(shape[:3]))
        if self.spectral:
            kernel = spectral_norm(self, kernel, train=train)
        kernel = kernel.astype(self.dtype)
        y = operation(x.astype(self.dtype), kernel, stride=self.stride, padding=self.padding)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), stored)
        return biased(y, equalized(bias, self.rate))


class Conv(_Layer):
    """``conv(x, kernel) + bias``."""

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Images:
        return self._apply(conv, x, train)


class ConvTranspose(_Layer):
    """``conv_transpose(x, kernel) + bias``.

    An output pixel sums only ``kh * kw * in / stride**2`` terms: an initializer that divides by the
    fan-in ``kh * kw * in`` keeps the scale of the input if its variance is ``stride**2``.
    """

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Images:
        return self._apply(conv_transpose, x, train)


class Dense(nn.Module):
    """``x[b, i] @ kernel[i, features] + bias[features]``; parameters as of ``nn.Dense``.

    Attributes:
      features, use_bias, kernel_init, dtype, spectral, rate: as in ``Conv``.
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    spectral: bool = False
    rate: float | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b i"], *, train: bool = False) -> Float[Array, "b o"]:
        stored = storage_dtype(self.dtype)
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), stored)
        kernel = equalized(kernel, self.rate, x.shape[-1])
        if self.spectral:
            kernel = spectral_norm(self, kernel, train=train)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), stored)
        return biased(y, equalized(bias, self.rate))


def indicators_of(labels: Labels | Float[Array, "b k"], classes: int, dtype: Any) -> Array:
    """``[b, classes]``: a 1 at the label of each row; vectors are what they are.

    So a vector with a 1 at one place and 0 elsewhere is the label of that place, wherever labels are taken.
    """
    if jnp.issubdtype(jnp.result_type(labels), jnp.floating):
        return labels.astype(dtype)
    return jax.nn.one_hot(labels, classes, dtype=dtype)


def lookup(table: Float[Array, "k f"], labels: Labels | Float[Array, "b k"]) -> Float[Array, "b f"]:
    """``table[labels]``; zeros where a label is no row. Of vectors ``y[b, k]`` the products ``y @ table``.

    A product with indicators, whose derivative is the same sum in the same order in every run; that of indexing
    adds rows in an order that GPUs do not fix.
    """
    indicators = indicators_of(labels, table.shape[0], table.dtype)
    return jnp.matmul(indicators, table, precision=lax.Precision.HIGHEST)


class Embed(nn.Module):
    """``labels[b] -> embedding[labels]``, vectors ``[b, features]``; of ``labels[b, classes]`` a linear map.

    Attributes:
      classes: number of rows of ``embedding[classes, features]``.
      embedding_init: of the rows; standard normal, the distribution of latents.
      dtype, spectral: as in ``Conv``.
    """

    classes: int
    features: int
    embedding_init: Callable[..., Array] = nn.initializers.normal(1.0)
    dtype: Any = jnp.float32
    spectral: bool = False

    @nn.compact
    def __call__(self, labels: Labels, *, train: bool = False) -> Float[Array, "b f"]:
        shape = (self.classes, self.features)
        table = self.param("embedding", self.embedding_init, shape, storage_dtype(self.dtype))
        if self.spectral:
            table = spectral_norm(self, table, train=train)
        return lookup(table, labels).astype(self.dtype)


def check_labels(labels: Any, classes: int) -> Labels:
    """The labels of a network with so many classes, or vectors of that size (``lookup``); anything goes, and nothing
    comes of it, if there are none.

    Raises:
      ValueError: there are classes, but neither integer labels nor vectors of floats.
    """
    if not classes:
        return labels
    wanted = f"classes={classes}: needs integer labels [b] or floats [b, {classes}]"
    if labels is None:
        raise ValueError(f"{wanted}, got none")
    kind, shape = jnp.result_type(labels), jnp.shape(labels)
    vectors = jnp.issubdtype(kind, jnp.floating) and shape[1:] == (classes,)
    if not (vectors or jnp.issubdtype(kind, jnp.integer)):
        raise ValueError(f"{wanted}, got {kind}{list(shape)}")
    return labels


def split_given(
    given: Sequence[Any], times: int, classes: int
) -> tuple[Sequence[Float[Array, " b"]], Any]:
    """The times and the labels of what a network is given behind its first input.

    Raises:
      ValueError: too few times, or labels as of ``check_labels``.
    """
    if len(given) < times:
        raise ValueError(f"times={times}: needs as many arrays [b], got {len(given)}")
    rest = given[times:]
    return given[:times], check_labels(rest[0] if rest else None, classes)


class BatchNorm(nn.Module):
    """``(x - mean) / sqrt(var + epsilon) * scale + bias``, per channel (the last axis).

    Ioffe & Szegedy 2015, arXiv:1502.03167. In training, mean and (biased) variance are those of the
    batch, and the running averages, collection ``"batch_stats"``, move towards them:
    ``average = momentum * average + (1 - momentum) * batch``. Otherwise the averages stand in.

    Attributes:
      axis_name: mapped axis over which the batch is split; None where the batch is whole (which
        includes an array sharded over devices).
      momentum: of the running averages.
      epsilon: added to the variance.
      dtype: of the result; statistics are computed and kept in float32 or wider.
      classes: with labels, scale and bias are rows of tables ``[classes, c]`` (conditional batch norm, Dumoulin et
        al. 2017, arXiv:1610.07629); with vectors of that size, scale is 1 and what the table makes of them. 0: not.
      spectral: whether the kernels of the next case are divided by their spectral norm.

    With vectors ``y[b, d]`` for labels, scale and bias are ``1 + dense(y)`` and ``dense(y)`` without biases (Brock
    et al. 2019, arXiv:1809.11096, App. C).
    """

    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    classes: int = 0
    spectral: bool = False
    kernel_init: Callable[..., Array] = nn.initializers.orthogonal()

    def _affine(self, x: Array, y: Any, stored: Any, train: bool) -> tuple[Array, Array]:
        """Scale and bias, broadcastable to x."""
        features = x.shape[-1:]
        per_example = (x.shape[0],) + (1,) * (x.ndim - 2) + features
        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        if self.classes:
            shape = (self.classes, *features)
            vectors = jnp.issubdtype(jnp.result_type(y), jnp.floating)
            tables = (
                self.param("scale", zeros if vectors else ones, shape, stored),
                self.param("bias", zeros, shape, stored),
            )
            scale, bias = (lookup(table, y).reshape(per_example) for table in tables)
            scale = 1 + scale if vectors else scale
        elif y is not None:
            scale, bias = (
                Dense(*features, use_bias=False, kernel_init=self.kernel_init, dtype=stored,
                      spectral=self.spectral, name=name)(y, train=train).reshape(per_example)
                for name in ("scale", "bias")
            )  # fmt: skip
            scale = 1 + scale
        else:
            whole = (1,) * (x.ndim - 1) + features
            scale = self.param("scale", ones, features, stored).reshape(whole)
            bias = self.param("bias", zeros, features, stored).reshape(whole)
        return scale, bias

    @nn.compact
    def __call__(
        self, x: Float[Array, "b ... c"], y: Any = None, *, train: bool
    ) -> Float[Array, "b ... c"]:
        stored, features = storage_dtype(self.dtype), x.shape[-1:]
        scale, bias = self._affine(x, y, stored, train)
        averages = (
            self.variable("batch_stats", "mean", jnp.zeros, features, stored),
            self.variable("batch_stats", "var", jnp.ones, features, stored),
        )
        x = x.astype(stored)
        axes, wide = tuple(range(x.ndim - 1)), (1,) * (x.ndim - 1) + features

        def average(t: Array) -> Array:
            t = jnp.mean(t, axes)
            return t if self.axis_name is None else lax.pmean(t, self.axis_name)

        if train:
            mean = average(x)
            var = average(jnp.square(x - mean.reshape(wide)))  # two passes: no cancellation
            for kept, new in zip(averages, (mean, var), strict=True):
                kept.value = self.momentum * kept.value + (1 - self.momentum) * new
        else:
            mean, var = (kept.value for kept in averages)
        factor = scale * lax.rsqrt(var + self.epsilon).reshape(wide)
        return ((x - mean.reshape(wide)) * factor + bias).astype(self.dtype)


def instance_norm(x: Images, epsilon: float = 1e-5) -> Images:
    """``(x - mean) / sqrt(var + epsilon)`` of each channel of each example, of x's type.

    Ulyanov et al. 2016, arXiv:1607.08022, without parameters; computed in float32 or wider.
    """
    wide = x.astype(storage_dtype(x.dtype))
    centered = wide - jnp.mean(wide, (1, 2), keepdims=True)
    var = jnp.mean(jnp.square(centered), (1, 2), keepdims=True)
    return (centered * lax.rsqrt(var + epsilon)).astype(x.dtype)


def layer_norm(x: Float[Array, "... f"], epsilon: float = 1e-6) -> Float[Array, "... f"]:
    """``(x - mean) / sqrt(var + epsilon)`` over the last axis, of x's type.

    Ba et al. 2016, arXiv:1607.06450, without parameters; computed in float32 or wider.
    """
    wide = x.astype(storage_dtype(x.dtype))
    return rms_norm(wide - jnp.mean(wide, -1, keepdims=True), epsilon).astype(x.dtype)


def rms_norm(x: Float[Array, "... f"], epsilon: float = 1e-6) -> Float[Array, "... f"]:
    """``x / sqrt(mean x^2 + epsilon)`` over the last axis, of x's type.

    Zhang & Sennrich 2019, arXiv:1910.07467, without parameters; computed in float32 or wider.
    """
    wide = x.astype(storage_dtype(x.dtype))
    return (wide * lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + epsilon)).astype(
        x.dtype
    )


Norm = Literal["batch", "instance", "none"]


def normalized(
    norm: Norm, x: Images, *, name: str, axis_name: str | None = None, train: bool = False
) -> Images:
    """``x`` after a norm, of x's type; called inside the ``@nn.compact`` method of a network, where a layer belongs.

    Args:
      norm: "batch" (``BatchNorm``), "instance" (``instance_norm``) or "none".
      name, axis_name: of the batch norm.

    Raises:
      ValueError: another norm.
    """
    if norm == "batch":
        return BatchNorm(axis_name, dtype=x.dtype, name=name)(x, train=train)
    if norm not in ("instance", "none"):
        raise ValueError(f'norm={norm!r}: must be "batch", "instance" or "none"')
    return instance_norm(x) if norm == "instance" else x


def dropout(
    x: Float[Array, "b ..."], seeds: UInt32[Array, "b 2"], name: str, rate: float = 0.5
) -> Float[Array, "b ..."]:
    """``x / (1 - rate)`` where a coin says so, else 0 (Srivastava et al. 2014); at sampling too, if it is to be noise.

    Args:
      x: rows.
      seeds: of the rows, so that one is the same on whatever device and in whatever batch it is.
      name: of the layer; the coins of layers with different names are independent.
      rate: share of zeros, in [0, 1).

    Raises:
      ValueError: seeds of another type or shape.
    """
    if getattr(seeds, "dtype", None) != jnp.uint32 or seeds.shape != (len(x), 2):
        raise ValueError(f"dropout: needs seeds uint32[{len(x)}, 2]")

    def coins(seed: Array) -> Array:
        key = stream(jax.random.wrap_key_data(seed, impl="threefry2x32"), name)
        return jax.random.bernoulli(key, 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(coins)(seeds), x / (1 - rate), jnp.zeros((), x.dtype))
