"""StyleGAN2: a mapping network, and a synthesis network whose kernels the mapped latents modulate.

Karras et al. 2020, arXiv:1912.04958: weight modulation and demodulation, skip connections in G, residual blocks in D,
equalized learning rates. Where this file departs from the paper:

- there are no noise inputs: an image is a function of z, and a step of its key;
- resizing is ``upsample2`` before, and its counterpart ``downsample1331`` before, a 3x3 convolution of stride 1: the
  same filter [1, 3, 3, 1] as the paper's, edges repeated, and less work for D;
- images end in tanh, so that they are bounded;
- D has no minibatch standard deviation unless it is asked for;
- training is without style mixing, and without the correction of Adam for penalties in every k-th update: its step
  size times c, its decays to the power c, c = k / (k + 1).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from bpgan.nets.architecture import ARCHITECTURES, Architecture, Network
from bpgan.nets.conv import conv
from bpgan.nets.heads import Kind, Scores, score
from bpgan.nets.layers import Conv, Dense, Embed, biased, check_labels, equalized, storage_dtype
from bpgan.nets.resample import downsample1331, upsample2
from bpgan.nets.sizes import lookup_size, low_resolution
from bpgan.types import Images, Labels, Latents

Styles = Float[Array, "b f"]

# Channels by image height, from low to high resolution; the lowest is 7, 4, 6, 4 and 4.
_WIDTHS = {
    28: (256, 256, 128),
    32: (256, 256, 256, 128),
    64: (256, 256, 256, 128, 64),
    128: (256, 256, 256, 256, 128, 64),
}


def _activation(x: Array) -> Array:
    """Leaky ReLU that keeps the mean square of normal inputs, to 4 %."""
    return math.sqrt(2) * jax.nn.leaky_relu(x, 0.2)


def _normalize(x: Float[Array, "b f"]) -> Float[Array, "b f"]:
    """Every row divided by its root mean square."""
    return x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-8)


def _equal(rate: float = 1.0) -> dict[str, Any]:
    return {"kernel_init": nn.initializers.normal(1 / rate), "rate": rate}


def minibatch_deviation(x: Images, group: int) -> Images:
    """x with one more channel: the mean over pixels and channels of the standard deviation within a group.

    Karras et al. 2018, arXiv:1710.10196, Sec. 3. Groups are of ``min(group, b)`` examples, each b / group apart; all
    of a group get the same number, so D no longer scores each example by itself.

    Raises:
      ValueError: a batch that groups do not divide.
    """
    b, h, w, c = x.shape
    group = min(group, b)
    if b % group:
        raise ValueError(f"minibatch_stddev={group}: must divide the batch of {b}")
    y = x.astype(storage_dtype(x.dtype)).reshape(group, b // group, h, w, c)
    y = jnp.sqrt(jnp.mean(jnp.square(y - y.mean(0, keepdims=True)), 0) + 1e-8).mean((1, 2, 3))
    y = jnp.broadcast_to(y.reshape(1, -1, 1, 1, 1), (group, b // group, h, w, 1))
    return jnp.concatenate([x, y.reshape(b, h, w, 1).astype(x.dtype)], -1)


class ModulatedConv(nn.Module):
    """``y = d * conv(s * x, kernel) + bias``, with a style ``s[b, i] = 1 + dense(w)`` per input channel.

    It is the convolution by the example's own kernel ``d[b, o] s[b, i] kernel[p, q, i, o]`` (Karras et al. 2020, Eqs. 1
    and 3), without making that kernel. Demodulation, ``d = rsqrt(sum_{p,q,i} (s kernel)^2 + 1e-8)``, gives outputs unit
    variance if the inputs have it and are uncorrelated; it is computed in float32.

    Attributes:
      features: output channels.
      size: of the kernel.
      demodulate: otherwise ``d = 1``.
      dtype: of the convolution.
    """

    features: int
    size: int = 3
    demodulate: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, w: Styles) -> Images:
        stored, inputs = storage_dtype(self.dtype), x.shape[-1]
        s = 1 + Dense(inputs, dtype=stored, name="style", **_equal())(w)
        shape = (self.size, self.size, inputs, self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape, stored)
        kernel = equalized(kernel, 1.0, self.size**2 * inputs)
        y = conv(x * s.astype(self.dtype)[:, None, None, :], kernel.astype(self.dtype))
        if self.demodulate:
            square = jnp.matmul(jnp.square(s), jnp.sum(jnp.square(kernel), (0, 1)))
            y = y * lax.rsqrt(square + 1e-8).astype(self.dtype)[:, None, None, :]
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), stored)
        return biased(y, bias)


class Mapping(nn.Module):
    """``z[b, z] -> w[b, styles]``: the normalized z, beside a normalized embedding of the label, through dense layers.

    Attributes:
      styles, depth, rate, classes, dtype: as in ``Generator``.
    """

    styles: int
    depth: int
    rate: float
    classes: int
    dtype: Any

    @nn.compact
    def __call__(self, z: Latents, labels: Labels | None = None) -> Styles:
        labels = check_labels(labels, self.classes)
        stored = storage_dtype(self.dtype)
        x = _normalize(z.astype(stored))
        if self.classes:
            embedded = Embed(self.classes, self.styles, dtype=stored, name="embed0")(labels)
            x = jnp.concatenate([x, _normalize(embedded)], 1)
        for i in range(self.depth):
            layer = Dense(self.styles, dtype=stored, name=f"dense{i}", **_equal(self.rate))
            x = _activation(layer(x))
        return x


class Synthesis(nn.Module):
    """``w[b, styles] -> x[b, h, w, c]``: modulated convolutions of a constant; every resolution adds to the image.

    Attributes:
      shape, widths, dtype: as in ``Generator``.
    """

    shape: tuple[int, int, int]
    widths: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, w: Styles) -> Images:
        bottom = low_resolution(self.shape, len(self.widths) - 1)
        stored = storage_dtype(self.dtype)
        init = nn.initializers.normal(1.0)
        constant = self.param("constant", init, (*bottom, self.widths[0]), stored)
        x = jnp.broadcast_to(constant.astype(self.dtype)[None], (w.shape[0], *constant.shape))
        image: Any = 0.0
        index = 0
        for i, features in enumerate(self.widths):
            for step in range(2 if i else 1):
                layer = ModulatedConv(features, dtype=self.dtype, name=f"conv{index}")
                x = _activation(layer(upsample2(x) if i and not step else x, w))
                index += 1
            to_image = ModulatedConv(self.shape[2], 1, False, self.dtype, name=f"image{i}")(x, w)
            image = to_image if not i else upsample2(image) + to_image
        return jnp.tanh(image)


class Generator(nn.Module):
    """``z[b, z] -> x[b, h, w, c]`` in [-1, 1]: ``synthesis(mapping(z, labels))``.

    Both halves are methods: ``module.apply(variables, w, method="synthesis")``, for path length regularization and
    truncation.

    Attributes:
      shape: ``(h, w, c)`` of an image.
      widths: channels, from low to high resolution; each after the first doubles the size. None: by the image height,
        from 28 on.
      styles: size of the mapped latents w.
      depth: dense layers of the mapping.
      rate: learning rate of the mapping relative to all else.
      classes: of the labels; 0: unconditional.
      dtype: of the convolutions; the mapping, styles and parameters are float32 or wider.

    Raises:
      ValueError: a size that the doublings do not divide, an unknown one without widths, or missing labels.
    """

    shape: tuple[int, int, int]
    widths: tuple[int, ...] | None = None
    styles: int = 512
    depth: int = 8
    rate: float = 0.01
    classes: int = 0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        widths = self.widths or lookup_size("widths", _WIDTHS, self.shape[0])
        self.mapper = Mapping(self.styles, self.depth, self.rate, self.classes, self.dtype)
        self.synthesizer = Synthesis(self.shape, widths, self.dtype)

    def mapping(self, z: Latents, labels: Labels | None = None, *, train: bool = False) -> Styles:
        """``z[b, z] -> w[b, styles]``."""
        del train  # no state
        return self.mapper(z, labels)

    def synthesis(self, w: Styles, *, train: bool = False) -> Images:
        """``w[b, styles] -> x[b, h, w, c]``."""
        del train  # no state
        return self.synthesizer(w)

    def __call__(self, z: Latents, labels: Labels | None = None, *, train: bool = False) -> Images:
        del train  # no state
        return self.synthesis(self.mapping(z, labels))


class Block(nn.Module):
    """``[b, 2h, 2w, i] -> [b, h, w, features]``: ``(f(x) + 1x1 of the smaller x) / sqrt(2)``; f is 3x3, smaller, 3x3.

    Attributes:
      features: output channels.
      dtype: of the computation.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> Images:
        conv0 = Conv(x.shape[-1], 3, dtype=self.dtype, name="conv0", **_equal())
        conv1 = Conv(self.features, 3, dtype=self.dtype, name="conv1", **_equal())
        conv2 = Conv(self.features, 1, use_bias=False, dtype=self.dtype, name="conv2", **_equal())
        h = _activation(conv1(downsample1331(_activation(conv0(x)))))
        return math.sqrt(0.5) * (h + conv2(downsample1331(x)))


class Discriminator(nn.Module):
    """``x[b, h, w, c] -> logits[b]``: 1x1, residual blocks that halve the size, 3x3, dense, a head (``nets.heads``).

    Attributes:
      widths: channels, from low to high resolution as in ``Generator``: the last comes first. None: by the height.
      hidden: units of the dense layer; 0: as many as ``widths[0]``.
      minibatch_stddev: size of the groups of ``minibatch_deviation``, 4 in the paper; 0: none, and every example is
        scored by itself.
      classes, head, embedding: as in ``heads.score``.
      dtype: of the computation; the logits are float32 or wider.

    Raises:
      ValueError: as in ``Generator``, ``minibatch_deviation`` and ``heads.score``.
    """

    widths: tuple[int, ...] | None = None
    hidden: int = 0
    minibatch_stddev: int = 0
    classes: int = 0
    head: Kind = "projection"
    embedding: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, labels: Labels | None = None, *, train: bool = False) -> Scores:
        widths = (self.widths or lookup_size("widths", _WIDTHS, x.shape[1]))[::-1]
        low_resolution(x.shape[1:], len(widths) - 1)
        x = _activation(Conv(widths[0], 1, dtype=self.dtype, name="conv0", **_equal())(x))
        for i, features in enumerate(widths[1:]):
            x = Block(features, self.dtype, name=f"block{i}")(x)
        if self.minibatch_stddev:
            x = minibatch_deviation(x, self.minibatch_stddev)
        x = _activation(Conv(widths[-1], 3, dtype=self.dtype, name="conv1", **_equal())(x))
        hidden = self.hidden or widths[-1]
        dense = Dense(hidden, dtype=self.dtype, name="dense0", **_equal())
        x = _activation(dense(x.reshape(x.shape[0], -1)))
        return score(
            x, labels, name="dense1", classes=self.classes, head=self.head, embedding=self.embedding,
            projection_scale=1 / math.sqrt(hidden), train=train, dtype=self.dtype, **_equal(),
        )  # fmt: skip


def widths_of(shape: tuple[int, int, int], size: int) -> tuple[int, ...]:
    """Channels from low to high resolution: ``size`` at the lowest, the others in the proportions of the default."""
    widths = lookup_size("widths", _WIDTHS, shape[0])
    return tuple(max(1, size * width // widths[0]) for width in widths)


ARCHITECTURES["stylegan2"] = Architecture(
    Network(
        lambda shape, size, **given: Generator(
            shape, widths_of(shape, size), styles=2 * size, **given
        )
    ),
    Network(lambda shape, size, **given: Discriminator(widths_of(shape, size), **given)),
    size=256,
    size_of="channels at the lowest resolution",
    kernels="scaled where they are used",
    mapping=True,
)
