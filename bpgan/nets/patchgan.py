"""The discriminator of patches of pix2pix, CycleGAN and CUT (Isola et al. 2017, arXiv:1611.07004, App. 6.1.2)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from bpgan.nets.layers import Conv, Init, Norm, normalized, storage_dtype
from bpgan.types import Images

_KERNEL = 4


def receptive_field(strided: int) -> int:
    """Height and width in pixels of what one logit of a ``PatchGAN`` sees: ``r <- s r + 4 - s`` from the last layer on.

    >>> [receptive_field(n) for n in (1, 2, 3)]
    [16, 34, 70]
    """
    field = 1
    for stride in (1, 1, *[2] * strided):
        field = stride * field + _KERNEL - stride
    return field


class PatchGAN(nn.Module):
    """``x[b, h, w, c] -> logits[b, h', w']``: each scores a patch, whose size is ``receptive_field(strided)``.

    4x4 convolutions with a margin of one pixel, first ``strided`` of stride 2, then two of stride 1, and leaky ReLU
    (0.2) between. The first and the last one have no norm. A batch or instance norm lets a logit depend on the whole
    image through mean and variance.

    Attributes:
      size: channels of the first layer, doubled from layer to layer, at most eight times as many.
      strided: 3 see 70 pixels, 1 sees 16, as it suits 28 to 32 pixels.
      norm: "batch", "instance" or "none".
      axis_name: of batch norm (``BatchNorm``).
      kernel_init: of all kernels; ``N(0, 0.02^2)`` as in the paper.
      dtype: of the computation; the logits are float32 or wider.

    Raises:
      ValueError: the image is too small for so many layers, or there is no strided one.
    """

    size: int = 64
    strided: int = 3
    norm: Norm = "instance"
    axis_name: str | None = None
    kernel_init: Init = nn.initializers.normal(0.02)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Float[Array, "b h w"]:
        if self.strided < 1:
            raise ValueError(f"strided={self.strided}: must be at least 1")

        def conv(index: int, features: int, x: Images, **other: Any) -> Images:
            given = {"dtype": self.dtype, "kernel_init": self.kernel_init, **other}
            stride = 2 if index < self.strided else 1
            return Conv(features, _KERNEL, stride, 1, name=f"conv{index}", **given)(x)

        x = jax.nn.leaky_relu(conv(0, self.size, x), 0.2)
        for i in range(1, self.strided + 1):
            # A norm would subtract the bias.
            x = conv(i, self.size * min(2**i, 8), x, use_bias=self.norm == "none")
            x = normalized(self.norm, x, name=f"norm{i}", axis_name=self.axis_name, train=train)
            x = jax.nn.leaky_relu(x, 0.2)
        return conv(self.strided + 1, 1, x, dtype=storage_dtype(self.dtype))[..., 0]
