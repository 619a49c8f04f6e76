"""Residual networks of SNGAN, with self-attention and class conditions as options.

Miyato et al. 2018, arXiv:1802.05957, App. B.4 (spectral norm, the 32-pixel networks); Miyato & Koyama 2018,
arXiv:1802.05637 (conditional batch norm, projection); Zhang et al. 2019, arXiv:1805.08318 (self-attention). Widths for
48 to 128 pixels and the bilinear interpolation are those of Lee & Town 2020, arXiv:2005.02494 (mimicry); those for 28
are ours.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from bpgan.nets.heads import Kind, Scores, score
from bpgan.nets.layers import (
    BatchNorm,
    Conv,
    Dense,
    check_labels,
    downsample2,
    lookup_size,
    storage_dtype,
    upsample2,
)
from bpgan.types import Images, Labels, Latents

# Channels by image height, from low to high resolution.
_G_WIDTHS = {
    28: (256, 256, 256),
    32: (256, 256, 256, 256),
    48: (512, 256, 128, 64),
    64: (1024, 512, 256, 128, 64),
    128: (1024, 1024, 512, 256, 128, 64),
}
# Channels of the blocks, and how many of them halve the resolution.
_D_BLOCKS = {
    28: ((128, 128, 128, 128), 2),
    32: ((128, 128, 128, 128), 2),
    48: ((64, 128, 256, 512, 1024), 4),
    64: ((64, 128, 256, 512, 1024), 5),
    128: ((64, 128, 256, 512, 1024, 1024), 5),
}


def xavier(gain: float = 1.0) -> Any:
    """Uniform with variance ``2 gain^2 / (fan_in + fan_out)`` (Glorot & Bengio 2010)."""
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


def nearest2(x: Images) -> Images:
    """``[b, h, w, c] -> [b, 2h, 2w, c]``: every pixel becomes a 2x2 square."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x.reshape(b, h, 1, w, 1, c), (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


class SelfAttention(nn.Module):
    """``x + gamma * conv(softmax(q k^T) v)`` over all pixels; gamma is 0 at the start.

    1x1 convolutions without biases make queries and keys of ``c / 8`` channels and values of ``c / 2``; keys and
    values are max-pooled 2x2 (Brock et al. 2019, arXiv:1809.11096; Zhang et al. 2019, Eqs. 1 to 3).

    Attributes:
      spectral, kernel_init, dtype: of the convolutions.

    Raises:
      ValueError: fewer than 8 channels, or an odd size.
    """

    spectral: bool = True
    kernel_init: Any = xavier()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Images:
        b, h, w, c = x.shape
        if c < 8 or h % 2 or w % 2:
            raise ValueError(
                f"self-attention: needs 8 channels or more and even sizes, got {h}x{w}x{c}"
            )

        def project(index: int, features: int, x: Images) -> Images:
            return Conv(features, 1, use_bias=False, kernel_init=self.kernel_init, dtype=self.dtype,
                        spectral=self.spectral, name=f"conv{index}")(x, train=train)  # fmt: skip

        def pooled(x: Images) -> Array:
            x = x.reshape(b, h // 2, 2, w // 2, 2, -1).max((2, 4))
            return x.reshape(b, h * w // 4, -1)

        queries = project(0, c // 8, x).reshape(b, h * w, -1)
        keys, values = pooled(project(1, c // 8, x)), pooled(project(2, c // 2, x))
        stored = storage_dtype(self.dtype)
        weights = jnp.einsum("bqc,bkc->bqk", queries, keys, preferred_element_type=stored)
        weights = jax.nn.softmax(weights, -1).astype(self.dtype)
        y = jnp.einsum("bqk,bkc->bqc", weights, values).reshape(b, h, w, -1)
        gamma = self.param("gamma", nn.initializers.zeros_init(), (), stored)
        return x + gamma.astype(self.dtype) * project(3, c, y)


class UpBlock(nn.Module):
    """``[b, h, w, i] -> [b, 2h, 2w, features]``: norm, ReLU, twice the size, 3x3; norm, ReLU, 3x3; plus a 1x1 shortcut.

    Attributes:
      features: output channels, and those between the convolutions.
      upsample: "bilinear" or "nearest".
      classes, axis_name: as in ``BatchNorm``; what it is conditioned on is the second argument.
      spectral: of convolutions and of dense layers in the norms.
      kernel_init: of the 3x3 convolutions; ``shortcut_init`` of the 1x1.
    """

    features: int
    upsample: str = "bilinear"
    classes: int = 0
    axis_name: str | None = None
    spectral: bool = False
    kernel_init: Any = xavier(math.sqrt(2))
    shortcut_init: Any = xavier()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, y: Any = None, *, train: bool = False) -> Images:
        up = {"bilinear": upsample2, "nearest": nearest2}[self.upsample]

        def norm(index: int, x: Images) -> Images:
            layer = BatchNorm(self.axis_name, dtype=self.dtype, classes=self.classes,
                              spectral=self.spectral, name=f"norm{index}")  # fmt: skip
            return jax.nn.relu(layer(x, y, train=train))

        def conv(index: int, size: int, x: Images) -> Images:
            init = self.kernel_init if size == 3 else self.shortcut_init
            return Conv(self.features, size, kernel_init=init, dtype=self.dtype,
                        spectral=self.spectral, name=f"conv{index}")(x, train=train)  # fmt: skip

        h = conv(0, 3, up(norm(0, x)))
        h = conv(1, 3, norm(1, h))
        # Interpolation commutes with a 1x1 convolution, whose bias it keeps: a quarter of the work.
        return h + up(conv(2, 1, x))


class DownBlock(nn.Module):
    """``[b, h, w, i] -> [b, h', w', features]``: ReLU, 3x3, ReLU, 3x3, mean of 2x2; plus a shortcut.

    The shortcut is a 1x1 convolution where channels or resolution change, else the identity. It sees x, as in the
    Chainer code of the paper; in mimicry and StudioGAN, whose ReLU works in place, relu(x) but in the first block.

    Attributes:
      features: output channels.
      hidden: channels between the convolutions.
      down: whether to halve the resolution.
      first: x is an image: no ReLU before the first convolution.
      spectral, kernel_init, shortcut_init, dtype: as in ``UpBlock``.
    """

    features: int
    hidden: int
    down: bool
    first: bool = False
    spectral: bool = True
    kernel_init: Any = xavier(math.sqrt(2))
    shortcut_init: Any = xavier()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Images:
        def conv(index: int, features: int, size: int, x: Images) -> Images:
            init = self.kernel_init if size == 3 else self.shortcut_init
            return Conv(features, size, kernel_init=init, dtype=self.dtype,
                        spectral=self.spectral, name=f"conv{index}")(x, train=train)  # fmt: skip

        h = conv(0, self.hidden, 3, x if self.first else jax.nn.relu(x))
        h = conv(1, self.features, 3, jax.nn.relu(h))
        shortcut = x
        if self.down:
            h, shortcut = downsample2(h), downsample2(x)  # before the 1x1, with which it commutes
        if self.down or x.shape[-1] != self.features:
            shortcut = conv(2, self.features, 1, shortcut)
        return h + shortcut


class Generator(nn.Module):
    """``z[b, z] -> x[b, h, w, c]`` in [-1, 1]: dense, residual blocks that double the size, norm, ReLU, 3x3, tanh.

    Attributes:
      shape: ``(h, w, c)`` of an image.
      widths: channels, from the dense layer on; each further one doubles the size. None: by the image height, from 28
        on.
      classes: of the labels that condition the batch norms in the blocks; 0: unconditional.
      attention: resolution (height) after whose block there is self-attention; 0: none.
      spectral: whether to use spectral norm here too, as Zhang et al. do.
      axis_name: as in ``BatchNorm``.
      dtype: of the computation; parameters and running averages are float32 or wider.

    Raises:
      ValueError: a size that the doublings do not divide, an unknown one without widths, an attention resolution that
        does not occur, or missing labels.
    """

    shape: tuple[int, int, int]
    widths: tuple[int, ...] | None = None
    classes: int = 0
    attention: int = 0
    spectral: bool = False
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Latents, labels: Labels | None = None, *, train: bool = False) -> Images:
        labels = check_labels(labels, self.classes)
        height, width, channels = self.shape
        widths = self.widths or lookup_size("widths", _G_WIDTHS, height)
        bottom = low_resolution(self.shape, len(widths) - 1)
        check_attention(self.attention, [bottom[0] << i for i in range(1, len(widths))])
        kind: Any = dict(dtype=self.dtype, spectral=self.spectral)
        dense = Dense(math.prod(bottom) * widths[0], kernel_init=xavier(), name="dense0", **kind)
        x = dense(z, train=train).reshape(-1, *bottom, widths[0])
        y = labels if self.classes else None
        for i, features in enumerate(widths[1:]):
            block = UpBlock(features, classes=self.classes, axis_name=self.axis_name,
                            name=f"block{i}", **kind)  # fmt: skip
            x = block(x, y, train=train)
            if x.shape[1] == self.attention:
                x = SelfAttention(name="attention0", **kind)(x, train=train)
        x = BatchNorm(self.axis_name, dtype=self.dtype, name="norm0")(x, train=train)
        last = Conv(channels, 3, kernel_init=xavier(), name="conv0", **kind)
        return jnp.tanh(last(jax.nn.relu(x), train=train))


class Discriminator(nn.Module):
    """``x[b, h, w, c] -> logits[b]``: residual blocks, ReLU, the sum over pixels, a head (``bpgan.nets.heads``).

    Attributes:
      widths: channels of the blocks. None: by the image height, with ``downs``.
      downs: how many blocks, from the first on, halve the resolution.
      classes, head, embedding: as in ``heads.score``.
      attention: resolution (height) after whose first block there is self-attention; 0: none.
      spectral: whether every kernel is divided by its spectral norm.
      dtype: of the computation; the logits are float32 or wider.

    Raises:
      ValueError: as in ``Generator`` and ``heads.score``.
    """

    widths: tuple[int, ...] | None = None
    downs: int = 2
    classes: int = 0
    head: Kind = "projection"
    embedding: int = 512
    attention: int = 0
    spectral: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, labels: Labels | None = None, *, train: bool = False) -> Scores:
        widths, downs = self.widths, self.downs
        if widths is None:
            widths, downs = lookup_size("widths", _D_BLOCKS, x.shape[1])
        low_resolution(x.shape[1:], downs)
        check_attention(self.attention, [x.shape[1] >> i for i in range(1, downs + 1)])
        kind: Any = dict(dtype=self.dtype, spectral=self.spectral)
        attended = False
        for i, features in enumerate(widths):
            hidden = x.shape[-1] if i else features
            x = DownBlock(features, hidden, i < downs, not i, name=f"block{i}", **kind)(
                x, train=train
            )
            if x.shape[1] == self.attention and not attended:
                x, attended = SelfAttention(name="attention0", **kind)(x, train=train), True
        # Sums of many pixels of a narrow type lose the last of them.
        features = jnp.sum(jax.nn.relu(x).astype(storage_dtype(self.dtype)), (1, 2))
        return score(
            features, labels, name="dense0", classes=self.classes, head=self.head,
            embedding=self.embedding, kernel_init=xavier(), train=train, **kind,
        )  # fmt: skip


def low_resolution(shape: tuple[int, ...], doublings: int) -> tuple[int, int]:
    """Height and width of ``shape[h, w, c]`` before so many doublings.

    Raises:
      ValueError: they do not divide the size.
    """
    height, width = shape[:2]
    scale = 2**doublings
    if height % scale or width % scale:
        raise ValueError(
            f"{doublings} blocks scale {scale} times, which must divide the image size "
            f"{height}x{width}"
        )
    return height // scale, width // scale


def check_attention(resolution: int, present: list[int]) -> None:
    """Raises ValueError unless the resolution is 0 or that of some block's output."""
    if resolution and resolution not in present:
        raise ValueError(f"attention={resolution}: must be 0 or a block's resolution, {present}")
