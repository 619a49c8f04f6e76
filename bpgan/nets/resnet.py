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

from bpgan.nets.architecture import ARCHITECTURES, Architecture, Network, Option
from bpgan.nets.blocks import DownBlock, SelfAttention, UpBlock, xavier
from bpgan.nets.heads import Kind, Scores, score
from bpgan.nets.layers import BatchNorm, Conv, Dense, check_labels, storage_dtype
from bpgan.nets.sizes import check_attention, lookup_size, low_resolution
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


ARCHITECTURES["sngan"] = Architecture(
    Network(
        lambda shape, size, **given: Generator(shape, **given),
        options={"attention": Option("SIZE"), "spectral": Option()},
        mixes_examples=True,
    ),
    Network(
        lambda shape, size, **given: Discriminator(**given), options={"attention": Option("SIZE")}
    ),
)
