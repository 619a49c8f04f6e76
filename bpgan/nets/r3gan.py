"""R3GAN: residual networks without normalization, for relativistic losses with R1 and R2.

Huang et al. 2025, arXiv:2501.05441, Sec. 4: stages of inverted bottlenecks with grouped convolutions, Fixup-like
initialization (Zhang et al. 2019, arXiv:1901.09321), resampling by the filter [1, 2, 1], learned bases at the lowest
resolution. Where this file departs from the paper: G ends in tanh, so that images are bounded; a class enters D by
a projection of the features themselves.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from bpgan.nets.architecture import ARCHITECTURES, Architecture, Network
from bpgan.nets.conv import grouped_conv
from bpgan.nets.heads import Kind, Scores, score
from bpgan.nets.layers import Conv, Dense, Embed, biased, check_labels, storage_dtype
from bpgan.nets.resample import downsample121, upsample121
from bpgan.nets.sizes import lookup_size, low_resolution
from bpgan.types import Images, Labels, Latents

_SLOPE = 0.2
_GROUP = 16  # channels of a group

# Channels of the stages by image height, from low to high resolution; the lowest is 7, 4, 6, 4 and 4.
_WIDTHS = {
    28: (256, 192, 128),
    32: (256, 256, 192, 128),
    64: (256, 256, 192, 128, 64),
    128: (256, 256, 256, 192, 128, 64),
}


def _msr(gain: float = 1.0) -> Any:
    """``N(0, gain^2 / fan_in)``."""
    return nn.initializers.variance_scaling(gain**2, "fan_in", "normal")


@jax.custom_jvp
def _leaky_relu(x: Images) -> Images:
    """``x`` where it is not negative, else ``slope * x``.

    Its derivative is told by the sign of the result, which the next layer keeps anyhow: of ``jax.nn.leaky_relu`` a
    penalty on gradients keeps the argument as well, which is 29 % of the memory of an update of D.
    """
    return jnp.where(x >= 0, x, _SLOPE * x)


@_leaky_relu.defjvp
def _leaky_relu_jvp(primals: Any, tangents: Any) -> tuple[Images, Images]:
    y, (t,) = _leaky_relu(*primals), tangents
    return y, jnp.where(y >= 0, t, _SLOPE * t)


class GroupedConv(nn.Module):
    """``grouped_conv(x, kernel) + bias`` that keeps the channels, 16 to a group.

    Attributes:
      kernel_init: its fan-in is that of one group.
      dtype: of the computation.
    """

    kernel_init: Any
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> Images:
        features, stored = x.shape[-1], storage_dtype(self.dtype)
        kernel = self.param("kernel", self.kernel_init, (3, 3, _GROUP, features), stored)
        bias = self.param("bias", nn.initializers.zeros_init(), (features,), stored)
        y = grouped_conv(x, kernel.astype(self.dtype), groups=features // _GROUP)
        return biased(y, bias)


class Block(nn.Module):
    """``x + f(x)``: 1x1 to twice the channels, leaky ReLU, 3x3 in groups of 16, leaky ReLU, 1x1 back.

    The last kernel is zero at the start. With L blocks in the network the others have gain
    ``sqrt(2 / (1 + slope^2)) L^(-1/4)``, so that a step changes the network's function by an amount that does not
    depend on its depth (Fixup, with 3 layers to a block).

    Attributes:
      depth: L.
      dtype: of the computation.

    Raises:
      ValueError: channels that are no multiple of 8.
    """

    depth: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> Images:
        features = x.shape[-1]
        if 2 * features % _GROUP:
            raise ValueError(f"widths: must be multiples of {_GROUP // 2}, got {features}")
        init = _msr(math.sqrt(2 / (1 + _SLOPE**2)) * self.depth**-0.25)
        conv0 = Conv(2 * features, 1, kernel_init=init, dtype=self.dtype, name="conv0")
        conv1 = GroupedConv(init, self.dtype, name="conv1")
        zero = nn.initializers.zeros_init()
        conv2 = Conv(features, 1, use_bias=False, kernel_init=zero, dtype=self.dtype, name="conv2")
        h = _leaky_relu(conv0(x))
        h = _leaky_relu(conv1(h))
        return x + conv2(h)


def _change(x: Images, features: int, index: int, dtype: Any) -> Images:
    """A 1x1 convolution ``change{index}`` if the channels are not ``features`` already."""
    if x.shape[-1] == features:
        return x
    layer = Conv(
        features, 1, use_bias=False, kernel_init=_msr(), dtype=dtype, name=f"change{index}"
    )
    return layer(x)


class Generator(nn.Module):
    """``z[b, z] -> x[b, h, w, c]`` in [-1, 1]: a basis scaled by ``dense(z)``, stages of blocks, 1x1, tanh.

    Attributes:
      shape: ``(h, w, c)`` of an image.
      widths: channels of the stages; each after the first doubles the size. None: by the image height, from 28 on.
      blocks: per stage.
      classes: of the labels, an embedding of which, of the size of z, is concatenated to z; 0: unconditional.
      dtype: of the computation; parameters are float32 or wider.

    Raises:
      ValueError: a size that the doublings do not divide, an unknown one without widths, widths that are no multiples
        of 8, or missing labels.
    """

    shape: tuple[int, int, int]
    widths: tuple[int, ...] | None = None
    blocks: int = 2
    classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Latents, labels: Labels | None = None, *, train: bool = False) -> Images:
        del train  # no state
        labels = check_labels(labels, self.classes)
        widths = self.widths or lookup_size("widths", _WIDTHS, self.shape[0])
        bottom = low_resolution(self.shape, len(widths) - 1)
        z = z.astype(self.dtype)
        if self.classes:
            embedded = Embed(self.classes, z.shape[1], dtype=self.dtype, name="embed0")(labels)
            z = jnp.concatenate([z, embedded], 1)
        # Constant in each pixel as the noise of a stage's input is: the basis has unit variance.
        stored = storage_dtype(self.dtype)
        basis = self.param("basis", nn.initializers.normal(1.0), (*bottom, widths[0]), stored)
        scale = Dense(
            widths[0], use_bias=False, kernel_init=_msr(), dtype=self.dtype, name="dense0"
        )(z)
        x = basis.astype(self.dtype)[None] * scale[:, None, None, :]
        depth = self.blocks * len(widths)
        for i, features in enumerate(widths):
            if i:
                x = upsample121(_change(x, features, i - 1, self.dtype))
            for j in range(self.blocks):
                x = Block(depth, self.dtype, name=f"block{self.blocks * i + j}")(x)
        last = Conv(
            self.shape[2], 1, use_bias=False, kernel_init=_msr(), dtype=self.dtype, name="conv0"
        )
        return jnp.tanh(last(x))


class Discriminator(nn.Module):
    """``x[b, h, w, c] -> logits[b]``: 1x1, stages of blocks, a basis that weighs the pixels, a head.

    Attributes:
      widths: channels of the stages, from low to high resolution as in ``Generator``, whose mirror image this is: the
        last comes first. None: by the image height.
      blocks: per stage.
      classes, head, embedding: as in ``heads.score``.
      dtype: of the computation; the logits are float32 or wider.

    Raises:
      ValueError: as in ``Generator`` and ``heads.score``.
    """

    widths: tuple[int, ...] | None = None
    blocks: int = 2
    classes: int = 0
    head: Kind = "projection"
    embedding: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, labels: Labels | None = None, *, train: bool = False) -> Scores:
        widths = (self.widths or lookup_size("widths", _WIDTHS, x.shape[1]))[::-1]
        low_resolution(x.shape[1:], len(widths) - 1)
        first = Conv(
            widths[0], 1, use_bias=False, kernel_init=_msr(), dtype=self.dtype, name="conv0"
        )
        x = first(x)
        depth = self.blocks * len(widths)
        for i, features in enumerate(widths):
            if i:
                x = _change(downsample121(x), features, i - 1, self.dtype)
            for j in range(self.blocks):
                x = Block(depth, self.dtype, name=f"block{self.blocks * i + j}")(x)
        stored, (_, h, w, c) = storage_dtype(self.dtype), x.shape
        scaled = nn.initializers.normal(1 / math.sqrt(h * w))
        basis: Float[Array, "h w c"] = self.param("basis", scaled, (h, w, c), stored)
        features = jnp.einsum("bhwc,hwc->bc", x.astype(stored), basis)
        return score(
            features, labels, name="dense0", classes=self.classes, head=self.head,
            embedding=self.embedding, projection_scale=1 / math.sqrt(c), kernel_init=_msr(),
            train=train, dtype=self.dtype,
        )  # fmt: skip


ARCHITECTURES["r3gan"] = Architecture(
    Network(lambda shape, size, **given: Generator(shape, blocks=size, **given)),
    Network(lambda shape, size, **given: Discriminator(blocks=size, **given)),
    size=2,
    size_of="blocks in a stage",
    size_is_width=False,
    kernels="grouped",
)
