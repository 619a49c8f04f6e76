"""BigGAN: class-conditional residual networks with a shared class embedding and hierarchical latents.

Brock, Donahue, Simonyan 2019, arXiv:1809.11096, App. B (figure 15, tables 4 to 6); orthogonal kernels (Saxe et al.
2014, arXiv:1312.6120) and spectral norm in both networks. The residual blocks are SNGAN's, with nearest-neighbor
interpolation and, in D, wide middles. Widths for 28 pixels are ours.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bpgan.nets.architecture import ARCHITECTURES, Architecture, Network, Option
from bpgan.nets.blocks import DownBlock, SelfAttention, UpBlock
from bpgan.nets.heads import Kind, Scores, score
from bpgan.nets.layers import BatchNorm, Conv, Dense, Embed, check_labels, storage_dtype
from bpgan.nets.sizes import check_attention, lookup_size, low_resolution
from bpgan.types import Images, Labels, Latents

# Multiples of the channel width by image height: of G from low to high resolution; of D's blocks, and how many of
# them halve the resolution.
_G_WIDTHS = {
    28: (4, 4, 4),
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
}
_D_BLOCKS = {
    28: ((4, 4, 4, 4), 2),
    32: ((4, 4, 4, 4), 2),
    64: ((1, 2, 4, 8, 16), 4),
    128: ((1, 2, 4, 8, 16, 16), 5),
}

_orthogonal = nn.initializers.orthogonal()
_KERNELS: dict[str, Any] = {"kernel_init": _orthogonal, "shortcut_init": _orthogonal}


class Generator(nn.Module):
    """``z[b, z] -> x[b, h, w, c]`` in [-1, 1]: dense, conditional residual blocks, norm, ReLU, 3x3, tanh.

    Attributes:
      shape: ``(h, w, c)`` of an image.
      channels: unit of the widths, ``ch`` of the paper.
      widths: multiples of it, from the dense layer on; each further one doubles the size. None: by the image height,
        from 28 on.
      classes: of the labels; 0: unconditional, blocks see latents alone.
      shared: size of the class embedding that all norms are conditioned on; 0: a table of each norm's own, which
        leaves no place for hierarchical latents.
      hierarchical: whether z is cut into one piece for the dense layer and one for the norms of each block, of equal
        size but for the first, which takes the remainder; otherwise all of z enters the dense layer.
      attention: resolution (height) after whose block there is self-attention; 0: none.
      spectral: whether every kernel but the class embedding is divided by its spectral norm.
      axis_name: as in ``BatchNorm``.
      dtype: of the computation; parameters and running averages are float32 or wider.

    Raises:
      ValueError: as in ``resnet.Generator``; too few latents for the pieces, or hierarchical without ``shared``.
    """

    shape: tuple[int, int, int]
    channels: int = 64
    widths: tuple[int, ...] | None = None
    classes: int = 0
    shared: int = 128
    hierarchical: bool = True
    attention: int = 0
    spectral: bool = True
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Latents, labels: Labels | None = None, *, train: bool = False) -> Images:
        labels = check_labels(labels, self.classes)
        widths = self.widths or lookup_size("widths", _G_WIDTHS, self.shape[0])
        widths = [self.channels * width for width in widths]
        blocks = len(widths) - 1
        bottom = low_resolution(self.shape, blocks)
        check_attention(self.attention, [bottom[0] << i for i in range(1, blocks + 1)])
        tables = self.classes > 0 and not self.shared
        if tables and self.hierarchical:
            raise ValueError("hierarchical: needs shared > 0 where classes > 0")
        kind: Any = dict(dtype=self.dtype, spectral=self.spectral)

        pieces: list[Any] = [z] + [None] * blocks
        if self.hierarchical:
            size = z.shape[1] // (blocks + 1)
            if not size:
                raise ValueError(
                    f"hierarchical: needs {blocks + 1} latents or more, got {z.shape[1]}"
                )
            first = z.shape[1] - blocks * size
            pieces = jnp.split(z, [first + i * size for i in range(blocks)], axis=1)
        conditions: list[Any] = pieces[1:]
        if self.classes and self.shared:
            embedded = Embed(self.classes, self.shared, embedding_init=_orthogonal,
                             dtype=self.dtype, name="embed0")(labels)  # fmt: skip
            conditions = [
                embedded
                if piece is None
                else jnp.concatenate([embedded, piece.astype(self.dtype)], 1)
                for piece in conditions
            ]
        elif tables:
            conditions = [labels] * blocks

        dense = Dense(math.prod(bottom) * widths[0], kernel_init=_orthogonal, name="dense0", **kind)
        x = dense(pieces[0], train=train).reshape(-1, *bottom, widths[0])
        for i, (features, condition) in enumerate(zip(widths[1:], conditions, strict=True)):
            block = UpBlock(features, "nearest", self.classes if tables else 0, self.axis_name,
                            name=f"block{i}", **_KERNELS, **kind)  # fmt: skip
            x = block(x, condition, train=train)
            if x.shape[1] == self.attention:
                attention = SelfAttention(kernel_init=_orthogonal, name="attention0", **kind)
                x = attention(x, train=train)
        x = BatchNorm(self.axis_name, dtype=self.dtype, name="norm0")(x, train=train)
        last = Conv(self.shape[2], 3, kernel_init=_orthogonal, name="conv0", **kind)
        return jnp.tanh(last(jax.nn.relu(x), train=train))


class Discriminator(nn.Module):
    """``x[b, h, w, c] -> logits[b]``: residual blocks, ReLU, the sum over pixels, a head (``bpgan.nets.heads``).

    Attributes:
      channels: unit of the widths.
      widths: multiples of it, of the blocks. None: by the image height, with ``downs``.
      downs: how many blocks, from the first on, halve the resolution.
      classes, head, embedding: as in ``heads.score``.
      attention: resolution (height) after whose first block there is self-attention; 0: none.
      spectral: whether every kernel is divided by its spectral norm.
      dtype: of the computation; the logits are float32 or wider.

    Raises:
      ValueError: as in ``resnet.Generator`` and ``heads.score``.
    """

    channels: int = 64
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
        for i, width in enumerate(widths):
            features = self.channels * width
            block = DownBlock(
                features, features, i < downs, not i, name=f"block{i}", **_KERNELS, **kind
            )
            x = block(x, train=train)
            if x.shape[1] == self.attention and not attended:
                attention = SelfAttention(kernel_init=_orthogonal, name="attention0", **kind)
                x, attended = attention(x, train=train), True
        # Sums of many pixels of a narrow type lose the last of them.
        features = jnp.sum(jax.nn.relu(x).astype(storage_dtype(self.dtype)), (1, 2))
        return score(
            features, labels, name="dense0", classes=self.classes, head=self.head,
            embedding=self.embedding, kernel_init=_orthogonal, train=train, **kind,
        )  # fmt: skip


ARCHITECTURES["biggan"] = Architecture(
    Network(
        lambda shape, size, *, classes, **given: Generator(
            shape, size, classes=classes, hierarchical=classes > 0, **given
        ),
        options={"attention": Option("SIZE")},
        mixes_examples=True,
    ),
    Network(
        lambda shape, size, **given: Discriminator(size, **given),
        options={"attention": Option("SIZE")},
    ),
    size=64,
)
