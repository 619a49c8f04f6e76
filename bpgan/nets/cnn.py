"""The plain convolutional networks of the spectral norm's paper, which are also StudioGAN's DCGAN.

Miyato et al. 2018, arXiv:1802.05957, Table 3: for 32 pixels and 48; those of 28 and 64 have a stage less and one more.
Where the two differ this file has StudioGAN's form (Kang et al. 2023, arXiv:2206.09479, "deep_conv"): D sums the
features over the pixels before its dense layer, where Miyato et al. flatten them, and has ReLU where they have leaky
ReLU of slope 0.1.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bpgan.nets.architecture import ARCHITECTURES, Architecture, Network, Option
from bpgan.nets.heads import Kind, Scores, score
from bpgan.nets.layers import BatchNorm, Conv, ConvTranspose, Dense, check_labels, storage_dtype
from bpgan.nets.sizes import lookup_size, low_resolution
from bpgan.types import Images, Labels, Latents

# Channels by image height, from low to high resolution.
_WIDTHS = {
    28: (256, 128, 64),
    32: (512, 256, 128, 64),
    64: (1024, 512, 256, 128, 64),
    128: (1024, 1024, 512, 256, 128, 64),
}
_EPSILON = 1e-4  # of the batch norms


class Generator(nn.Module):
    """``z[b, z] -> x[b, h, w, c]`` in [-1, 1]: dense, 4x4 transposed convolutions of stride 2, 3x3, tanh.

    Batch norm and ReLU follow the transposed convolutions; nothing follows the dense layer.

    Attributes:
      shape: ``(h, w, c)`` of an image.
      widths: channels, from the dense layer on; each further one doubles the size. None: by the image height, from 28
        on.
      classes: of the labels that condition the batch norms; 0: unconditional.
      axis_name: as in ``BatchNorm``.
      dtype: of the computation; parameters and running averages are float32 or wider.

    Raises:
      ValueError: a size that the doublings do not divide, an unknown one without widths, or missing labels.
    """

    shape: tuple[int, int, int]
    widths: tuple[int, ...] | None = None
    classes: int = 0
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Latents, labels: Labels | None = None, *, train: bool = False) -> Images:
        labels = check_labels(labels, self.classes)
        widths = self.widths or lookup_size("widths", _WIDTHS, self.shape[0])
        bottom = low_resolution(self.shape, len(widths) - 1)
        orthogonal = nn.initializers.orthogonal()
        # Of the map back, from the output's patch to the input's channels.
        backwards = nn.initializers.orthogonal(column_axis=-2)
        features = math.prod(bottom) * widths[0]
        x = Dense(features, kernel_init=orthogonal, dtype=self.dtype, name="dense0")(z)
        x = x.reshape(-1, *bottom, widths[0])
        for i, width in enumerate(widths[1:]):
            up = ConvTranspose(
                width, 4, 2, 1, kernel_init=backwards, dtype=self.dtype, name=f"conv{i}"
            )
            norm = BatchNorm(self.axis_name, epsilon=_EPSILON, dtype=self.dtype,
                             classes=self.classes, name=f"norm{i}")  # fmt: skip
            x = jax.nn.relu(norm(up(x), labels if self.classes else None, train=train))
        last = Conv(
            self.shape[2],
            3,
            kernel_init=orthogonal,
            dtype=self.dtype,
            name=f"conv{len(widths) - 1}",
        )
        return jnp.tanh(last(x))


class Discriminator(nn.Module):
    """``x[b, h, w, c] -> logits[b]``: pairs of a 3x3 and a 4x4 convolution of stride 2, 3x3, a sum, a head.

    ReLU follows every convolution, after a batch norm unless ``spectral``.

    Attributes:
      widths: channels of the stages, from low to high resolution as in ``Generator``: the last comes first, the first
        is that of the last 3x3 convolution. None: by the image height.
      spectral: whether every kernel is divided by its spectral norm, in place of batch norms.
      classes, head, embedding: as in ``heads.score``.
      axis_name: as in ``BatchNorm``.
      dtype: of the computation; the logits are float32 or wider.

    Raises:
      ValueError: as in ``Generator`` and ``heads.score``.
    """

    widths: tuple[int, ...] | None = None
    spectral: bool = True
    classes: int = 0
    head: Kind = "projection"
    embedding: int = 512
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, labels: Labels | None = None, *, train: bool = False) -> Scores:
        widths = self.widths or lookup_size("widths", _WIDTHS, x.shape[1])
        low_resolution(x.shape[1:], len(widths) - 1)
        init = nn.initializers.orthogonal()
        kind: Any = dict(kernel_init=init, spectral=self.spectral, dtype=self.dtype)
        down = [layer for width in widths[:0:-1] for layer in ((width, 3, 1, 1), (width, 4, 2, 1))]
        for i, layer in enumerate([*down, (widths[0], 3, 1, 1)]):
            x = Conv(*layer, name=f"conv{i}", **kind)(x, train=train)
            if not self.spectral:
                norm = BatchNorm(
                    self.axis_name, epsilon=_EPSILON, dtype=self.dtype, name=f"norm{i}"
                )
                x = norm(x, train=train)
            x = jax.nn.relu(x)
        # Sums of many pixels of a narrow type lose the last of them.
        features = jnp.sum(x.astype(storage_dtype(self.dtype)), (1, 2))
        return score(
            features, labels, name="dense0", classes=self.classes, head=self.head,
            embedding=self.embedding, train=train, **kind,
        )  # fmt: skip


ARCHITECTURES["cnn"] = Architecture(
    Network(lambda shape, size, **given: Generator(shape, **given), mixes_examples=True),
    Network(
        lambda shape, size, **given: Discriminator(**given),
        options={"spectral": Option()},
        mixes_examples=True,
        mixes_unless="spectral",
    ),
)
