"""The U-Net of pix2pix, an encoder and a decoder with connections between their levels (Isola et al. 2017).

arXiv:1611.07004, App. 6.1.1, and where it differs the released PyTorch code; Ronneberger et al. 2015, arXiv:1505.04597.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bpgan.nets.layers import Conv, ConvTranspose, Init, Norm, dropout, normalized
from bpgan.nets.resample import resize
from bpgan.nets.sizes import low_resolution
from bpgan.types import Images


class UNet(nn.Module):
    """``(a[b, h, w, c], z) -> b[b, *shape]`` in [-1, 1], with noise of the seeds ``z[b, 2]`` also at sampling.

    The encoder halves the resolution ``levels`` times by 4x4 convolutions, the decoder doubles it as often by
    transposed ones, and what each level of the encoder makes enters that of the decoder as further channels. Leaky ReLU
    (0.2) in the encoder, ReLU in the decoder, tanh at the end. There is no norm at the image, nor at the lowest
    resolution, where an instance may be a single pixel.

    Attributes:
      shape: ``(h, w, c)`` of the output; an input of another size is first resized to it, bilinear.
      size: channels of the first level, doubled from level to level, at most eight times as many.
      levels: 8 take 256 pixels to one, 2 take 28 to 7.
      norm: "batch", "instance" or "none".
      dropout: rate in the first three levels of the decoder, the only noise there is; at 0 z is ignored.
      axis_name: of batch norm (``BatchNorm``).
      kernel_init: of all kernels; ``N(0, 0.02^2)`` as in the paper.
      dtype: of the computation.

    Raises:
      ValueError: the levels do not divide the size, or there are fewer than 2.
    """

    shape: tuple[int, int, int]
    size: int = 64
    levels: int = 8
    norm: Norm = "instance"
    dropout: float = 0.5
    axis_name: str | None = None
    kernel_init: Init = nn.initializers.normal(0.02)
    dtype: Any = jnp.float32

    def __call__(self, a: Images, z: Any = None, *, train: bool = False) -> Images:
        return self._run(a, z, train)[-1]

    def features(self, a: Images, z: Any = None, *, train: bool = False) -> tuple[Images, ...]:
        """The input and what the levels of the encoder make, from the highest resolution on."""
        return self._run(a, z, train)[:-1]

    @nn.compact
    def _run(self, a: Images, z: Any, train: bool) -> tuple[Images, ...]:
        """The features, and last the output."""
        low_resolution(self.shape, self.levels)
        if self.levels < 2:
            raise ValueError(f"levels={self.levels}: must be at least 2")
        bias = self.norm == "none"  # a norm would subtract it
        layer: Any = dict(
            kernel_size=4, stride=2, padding=1, kernel_init=self.kernel_init, dtype=self.dtype
        )

        def norm(name: str, x: Images) -> Images:
            return normalized(self.norm, x, name=name, axis_name=self.axis_name, train=train)

        x = resize(a.astype(self.dtype), self.shape[:2])
        widths = [self.size * min(2**i, 8) for i in range(self.levels)]
        seen = [x]
        for i, width in enumerate(widths):
            inner, last = i > 0, i == self.levels - 1
            x = jax.nn.leaky_relu(x, 0.2) if inner else x
            x = Conv(width, use_bias=bias or not inner or last, name=f"down{i}", **layer)(x)
            x = norm(f"down_norm{i}", x) if inner and not last else x
            seen.append(x)
        for i in reversed(range(1, self.levels)):
            x = ConvTranspose(widths[i - 1], use_bias=bias, name=f"up{i}", **layer)(jax.nn.relu(x))
            x = norm(f"up_norm{i}", x)
            if self.dropout and self.levels - 1 - i < 3:
                x = dropout(x, z, f"dropout{i}", self.dropout)
            x = jnp.concatenate([seen[i], x], -1)
        x = ConvTranspose(self.shape[2], name="up0", **layer)(jax.nn.relu(x))
        return *seen, jnp.tanh(x)
