"""The residual translator of CycleGAN, and what CUT makes of its inner layers.

Zhu et al. 2017, arXiv:1703.10593, App. 7.2 (after Johnson et al. 2016, arXiv:1603.08155); Park et al. 2020,
arXiv:2007.15651.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from bpgan.nets.layers import Conv, ConvTranspose, Dense, Init, Norm, normalized, storage_dtype
from bpgan.nets.resample import resize
from bpgan.nets.sizes import low_resolution
from bpgan.nets.spectral import unit
from bpgan.types import Images


def reflected(x: Images, margin: int) -> Images:
    """With a margin on all sides that mirrors the image at its outermost pixels, which are not repeated.

    Raises:
      ValueError: the image is no larger than the margin.
    """
    if min(x.shape[1:3]) <= margin:
        raise ValueError(f"{x.shape[1]}x{x.shape[2]} pixels: too few for a margin of {margin}")
    for axis in (1, 2):
        n = x.shape[axis]
        # Not jnp.pad, whose derivative is slow on CPU.
        before = lax.rev(lax.slice_in_dim(x, 1, margin + 1, axis=axis), (axis,))
        after = lax.rev(lax.slice_in_dim(x, n - margin - 1, n - 1, axis=axis), (axis,))
        x = lax.concatenate([before, x, after], axis)
    return x


class ResNetTranslator(nn.Module):
    """``(a[b, h, w, c], z) -> b[b, *shape]`` in [-1, 1]; it has no noise and ignores z.

    In the paper's terms c7s1-64, d128, d256, R256 ..., u128, u64, c7s1-3: a 7x7 convolution, strided 3x3 convolutions,
    residual blocks of two 3x3 convolutions, transposed 3x3 convolutions and a 7x7 one. A norm and ReLU follow every
    convolution but the last one and the second of each block, which has the norm alone. Margins are reflected but for
    the strided layers, as in the released code. That has biases before its norms, too, which subtract them.

    Attributes:
      shape: ``(h, w, c)`` of the output; an input of another size is first resized to it, bilinear.
      size: channels at full resolution, doubled by each strided layer.
      blocks: 9 for 256 pixels, 6 for 128.
      downs: strided layers.
      norm: "batch", "instance" or "none".
      taps: the layers whose activations are ``features``: "input", "down0", ... (before the norm), "block0", ... The
        default are those of CUT.
      axis_name: of batch norm (``BatchNorm``).
      kernel_init: of all kernels; ``N(0, 0.02^2)`` as in the paper.
      dtype: of the computation.

    Raises:
      ValueError: the strided layers do not divide the size, or leave too few pixels for a margin, or there is no such
        layer.
    """

    shape: tuple[int, int, int]
    size: int = 64
    blocks: int = 9
    downs: int = 2
    norm: Norm = "instance"
    taps: tuple[str, ...] = ("input", "down0", "down1", "block0", "block4")
    axis_name: str | None = None
    kernel_init: Init = nn.initializers.normal(0.02)
    dtype: Any = jnp.float32

    def __call__(self, a: Images, z: Any = None, *, train: bool = False) -> Images:
        return self._run(a, train)[0]

    def features(self, a: Images, z: Any = None, *, train: bool = False) -> tuple[Images, ...]:
        """The activations of ``taps``."""
        seen = self._run(a, train)[1]
        missing = set(self.taps) - seen.keys()
        if missing:
            raise ValueError(f"taps={self.taps}: there are {', '.join(seen)}")
        return tuple(seen[name] for name in self.taps)

    @nn.compact
    def _run(self, a: Images, train: bool) -> tuple[Images, dict[str, Images]]:
        """The output, and the activations by layer."""
        low_resolution(self.shape, self.downs)
        layer: Any = dict(kernel_init=self.kernel_init, dtype=self.dtype)
        inner: Any = dict(use_bias=self.norm == "none", **layer)

        def norm(name: str, x: Images) -> Images:
            return normalized(self.norm, x, name=name, axis_name=self.axis_name, train=train)

        def residual(index: int, x: Images) -> Images:
            y = x
            for i in (0, 1):
                name = f"block{index}_conv{i}"
                y = Conv(x.shape[-1], 3, padding=0, name=name, **inner)(reflected(y, 1))
                y = norm(f"block{index}_norm{i}", y)
                y = y if i else jax.nn.relu(y)
            return x + y

        x = resize(a.astype(self.dtype), self.shape[:2])
        seen = {"input": x}
        x = Conv(self.size, 7, padding=0, name="conv0", **inner)(reflected(x, 3))
        x = jax.nn.relu(norm("norm0", x))
        for i in range(self.downs):
            x = Conv(self.size << (i + 1), 3, 2, 1, name=f"down{i}", **inner)(x)
            seen[f"down{i}"] = x
            x = jax.nn.relu(norm(f"down_norm{i}", x))
        for i in range(self.blocks):
            x = seen[f"block{i}"] = residual(i, x)
        for i in reversed(range(self.downs)):
            up = ConvTranspose(self.size << i, 3, 2, ((1, 0), (1, 0)), name=f"up{i}", **inner)
            x = jax.nn.relu(norm(f"up_norm{i}", up(x)))
        x = Conv(self.shape[2], 7, padding=0, name="conv1", **layer)(reflected(x, 3))
        return jnp.tanh(x), seen


class PatchHeads(nn.Module):
    """Vectors at some places of several layers, ``[b, p, c_i]``, made unit vectors ``[b, p, features]``.

    A perceptron with one hidden layer and ReLU for each, then division by the norm: the heads of CUT.

    Attributes:
      features: of both layers.
      kernel_init: of all kernels; ``N(0, 0.02^2)`` as in the released code.
      dtype: of the computation; the vectors are float32 or wider.
    """

    features: int = 256
    kernel_init: Init = nn.initializers.normal(0.02)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, layers: tuple[Float[Array, "b p c"], ...], *, train: bool = False
    ) -> tuple[Float[Array, "b p f"], ...]:
        del train  # no state

        def head(index: int, x: Array) -> Array:
            def dense(i: int, x: Array) -> Array:
                return Dense(self.features, kernel_init=self.kernel_init, dtype=self.dtype,
                             name=f"dense{index}_{i}")(x)  # fmt: skip

            y = dense(1, jax.nn.relu(dense(0, x.reshape(-1, x.shape[-1]))))
            y = unit(y.astype(storage_dtype(self.dtype)), -1)
            return y.reshape(*x.shape[:-1], -1)

        return tuple(head(i, x) for i, x in enumerate(layers))
