"""What residual networks with spectral norm are made of: blocks that double or halve the size, and self-attention.

Miyato et al. 2018, arXiv:1802.05957, App. B.4; Zhang et al. 2019, arXiv:1805.08318 (self-attention).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from bpgan.nets.layers import BatchNorm, Conv, storage_dtype
from bpgan.nets.resample import downsample2, nearest2, upsample2
from bpgan.types import Images


def xavier(gain: float = 1.0) -> Any:
    """Uniform with variance ``2 gain^2 / (fan_in + fan_out)`` (Glorot & Bengio 2010)."""
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


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
