"""Networks that take times: perceptrons and a U-Net that move points between noise and data, and what judges these.

Behind their first input they take ``times`` arrays ``f32[b]``, then labels: ``module(x, t, labels, train=...)``. Their
derivatives are smooth everywhere, SiLU in the place of ReLU and means in that of maxima, for losses that look at the
derivative of a discriminator along a flow. The only norm is ``rms_norm``: the derivative of a layer norm is as
great as the deviation of a pixel's channels is small, and that of a root mean square is not, as long as these are not
all near 0.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from bpgan.nets.architecture import ARCHITECTURES, Architecture, Network, Option
from bpgan.nets.attention import Rows, embedded, modulation, time_waves
from bpgan.nets.heads import Kind, Scores, score
from bpgan.nets.layers import Conv, Dense, Embed, rms_norm, split_given, storage_dtype
from bpgan.nets.resample import downsample2, patches_of, patchify, unpatchify, upsample2
from bpgan.nets.sizes import levels, low_resolution
from bpgan.types import Images

_lecun = nn.initializers.lecun_normal()
_zero = nn.initializers.zeros_init()
_norm = functools.partial(rms_norm, epsilon=1e-4)  # of a pixel's channels


class Condition(nn.Module):
    """``(times, labels) -> [b, features]``, a sum over all that there is; None if there is nothing.

    A time t enters as ``dense(SiLU(dense(waves(scale t))))``, a label as a row of a table.

    Attributes:
      features: of the result.
      scale: of the times. The derivative of a network by the time grows with it.
      classes: of the labels; 0: there are none.
      dtype: of the computation.
    """

    features: int
    scale: float
    classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, times: Sequence[Float[Array, " b"]], labels: Any) -> Rows | None:
        parts = []
        for i, t in enumerate(times):
            sines = time_waves(t, self.scale)
            parts.append(embedded(f"time{i}", self.features, sines, dtype=self.dtype))
        if self.classes:
            parts.append(
                Embed(self.classes, self.features, dtype=self.dtype, name="labels")(labels)
            )
        return sum(parts[1:], parts[0]) if parts else None


def _modulated(x: Array, condition: Rows | None, name: str, dtype: Any) -> Array:
    """``x (1 + scale) + shift`` by a dense layer of the condition, zero at the start; x itself without a condition.

    Called inside the ``@nn.compact`` method of a network, where the layer belongs.
    """
    if condition is None:
        return x
    scale, shift = modulation(x, condition, 2, name=name, dtype=dtype)
    return x * (1 + scale) + shift


def _noise(z: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """``z[b, ...]`` in the shape of the samples. Raises ValueError if it has other numbers."""
    if math.prod(z.shape[1:]) != math.prod(shape):
        numbers = f"the {math.prod(shape)} numbers of a sample"
        raise ValueError(f"maps noise of {numbers}, and got latents of {math.prod(z.shape[1:])}")
    return z.reshape(-1, *shape).astype(dtype)


def _perceptron(
    x: Array, condition: Rows | None, widths: Sequence[int], dtype: Any
) -> Float[Array, "b f"]:
    """Dense layers and SiLU; the condition, of the first width, is added to the first layer."""
    for i, width in enumerate(widths):
        x = Dense(width, kernel_init=_lecun, dtype=dtype, name=f"dense{i}")(x)
        x = jax.nn.silu(x + condition if i == 0 and condition is not None else x)
    return x


class Perceptron(nn.Module):
    """``z[b, ...], times -> [b, *shape]``, a linear output: a velocity, or where it takes a point to.

    Attributes:
      shape: of a sample, any rank; z has as many numbers.
      widths: hidden layers, one at least.
      times: how many it takes behind z.
      time_scale: as in ``Condition``.
      classes: of the labels; 0: unconditional.
      dtype: of the computation; the output is float32 or wider.

    Raises:
      ValueError: z of another size, too few times, missing labels.
    """

    shape: tuple[int, ...]
    widths: tuple[int, ...] = (32, 32)
    times: int = 0
    time_scale: float = 1000.0
    classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Any, *given: Any, train: bool = False) -> Float[Array, "b ..."]:
        del train  # no state
        times, labels = split_given(given, self.times, self.classes)
        embed = Condition(
            self.widths[0], self.time_scale, self.classes, self.dtype, name="condition"
        )
        x = _noise(z, self.shape, self.dtype).reshape(len(z), -1)
        x = _perceptron(x, embed(times, labels), self.widths, self.dtype)
        stored = storage_dtype(self.dtype)
        x = Dense(math.prod(self.shape), dtype=stored, name=f"dense{len(self.widths)}")(x)
        return x.reshape(-1, *self.shape)


class PerceptronCritic(nn.Module):
    """``x[b, ...], times -> logits[b]``: dense layers and SiLU, a head.

    Attributes:
      widths, times, time_scale, classes: as in ``Perceptron``.
      head, embedding: as in ``heads.score``.
      dtype: of the computation; the logits are float32 or wider.

    Raises:
      ValueError: as in ``Perceptron`` and ``heads.score``.
    """

    widths: tuple[int, ...] = (32, 32)
    times: int = 0
    time_scale: float = 1000.0
    classes: int = 0
    head: Kind = "projection"
    embedding: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Any, *given: Any, train: bool = False) -> Scores:
        times, labels = split_given(given, self.times, self.classes)
        embed = Condition(self.widths[0], self.time_scale, dtype=self.dtype, name="condition")
        x = x.reshape(len(x), -1).astype(self.dtype)
        x = _perceptron(x, embed(times, None), self.widths, self.dtype)
        return score(
            x, labels, name=f"dense{len(self.widths)}", classes=self.classes, head=self.head,
            embedding=self.embedding, train=train, dtype=self.dtype,
        )  # fmt: skip


class Block(nn.Module):
    """``x + f(x)``, where f is twice a norm, a SiLU and a 3x3 convolution, and the condition modulates in between.

    The last kernel is zero at the start, and so is f.

    Attributes:
      dtype: of the computation.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, condition: Rows | None) -> Images:
        features = x.shape[-1]
        h = Conv(features, 3, dtype=self.dtype, name="conv0")(jax.nn.silu(_norm(x)))
        h = jax.nn.silu(_modulated(_norm(h), condition, "modulation", self.dtype))
        return x + Conv(features, 3, kernel_init=_zero, dtype=self.dtype, name="conv1")(h)


class UNet(nn.Module):
    """``z[b, h, w, c], times -> [b, h, w, c]``, a linear output: a velocity, or where it takes an image to.

    A block at every resolution on the way down, one at the lowest, and one at every resolution on the way up, whose
    input is the sum of what comes from below and of what left this resolution on the way down. Means of 2x2 halve the
    resolution, bilinear interpolation doubles it, and 1x1 convolutions change channels at the lower one. After
    Ronneberger et al. 2015, arXiv:1505.04597, and Ho et al. 2020, arXiv:2006.11239.

    Attributes:
      shape: ``(h, w, c)`` of an image; z has as many numbers.
      size: channels at full resolution, twice as many at each lower one.
      patch: side of the squares of pixels that become one pixel of as many more channels first.
      depth: how often the resolution is halved then; 0: down to 4 to 7 pixels.
      times, time_scale, classes: as in ``Perceptron``.
      dtype: of the computation; the output is float32 or wider.

    Raises:
      ValueError: a size that the patch and the halvings do not divide, or as in ``Perceptron``.
    """

    shape: tuple[int, int, int]
    size: int = 24
    patch: int = 1
    depth: int = 0
    times: int = 0
    time_scale: float = 1000.0
    classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Any, *given: Any, train: bool = False) -> Images:
        del train  # no state
        times, labels = split_given(given, self.times, self.classes)
        h, w = patches_of(self.shape[:2], self.patch)
        numbers = self.patch**2 * self.shape[2]
        depth = self.depth or levels(h)
        low_resolution((h, w), depth)
        embed = Condition(
            4 * self.size, self.time_scale, self.classes, self.dtype, name="condition"
        )
        condition = embed(times, labels)

        def change(name: str, features: int, x: Images) -> Images:
            return Conv(features, 1, dtype=self.dtype, name=name)(x)

        x = patchify(_noise(z, self.shape, self.dtype), self.patch).reshape(-1, h, w, numbers)
        x = Conv(self.size, 3, dtype=self.dtype, name="first")(x)
        seen = []
        for i in range(depth):
            x = Block(self.dtype, name=f"down{i}")(x, condition)
            seen.append(x)
            x = change(f"wider{i}", self.size << (i + 1), downsample2(x))
        x = Block(self.dtype, name="lowest")(x, condition)
        for i in reversed(range(depth)):
            x = seen[i] + upsample2(change(f"narrower{i}", self.size << i, x))
            x = Block(self.dtype, name=f"up{i}")(x, condition)
        stored = storage_dtype(self.dtype)
        last = Conv(numbers, 3, kernel_init=_zero, dtype=stored, name="last")
        return unpatchify(last(jax.nn.silu(_norm(x))), self.shape, self.patch)


class ConvCritic(nn.Module):
    """``x[b, h, w, c], times -> logits[b]``: a 3x3 convolution, 4x4 ones of stride 2, a dense layer, a head.

    The network of ``lite`` with SiLU, and with norms that the times modulate after the strided convolutions.

    Attributes:
      size: channels of the first convolution, twice as many after each further one.
      depth: strided convolutions; 0: as many as make 4 to 7 pixels, one less from 32 pixels on.
      hidden: units of the dense layer.
      times, time_scale, classes: as in ``Perceptron``.
      head, embedding: as in ``heads.score``.
      dtype: of the computation; the logits are float32 or wider.

    Raises:
      ValueError: the image is too small for so many convolutions, or as in ``PerceptronCritic``.
    """

    size: int = 24
    depth: int = 0
    hidden: int = 128
    times: int = 0
    time_scale: float = 1000.0
    classes: int = 0
    head: Kind = "projection"
    embedding: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, *given: Any, train: bool = False) -> Scores:
        times, labels = split_given(given, self.times, self.classes)
        embed = Condition(4 * self.size, self.time_scale, dtype=self.dtype, name="condition")
        condition = embed(times, None)
        x = Conv(self.size, 3, dtype=self.dtype, name="conv0")(x.astype(self.dtype))
        x = jax.nn.silu(_modulated(x, condition, "modulation0", self.dtype))
        for i in range(1, (self.depth or max(2, levels(x.shape[1]) - 1)) + 1):
            x = Conv(self.size << i, 4, 2, 1, dtype=self.dtype, name=f"conv{i}")(x)
            x = jax.nn.silu(_modulated(_norm(x), condition, f"modulation{i}", self.dtype))
        x = Dense(self.hidden, dtype=self.dtype, name="dense0")(x.reshape(len(x), -1))
        x = jax.nn.silu(x)
        return score(
            x, labels, name="dense1", classes=self.classes, head=self.head,
            embedding=self.embedding, train=train, dtype=self.dtype,
        )  # fmt: skip


ARCHITECTURES["silu"] = Architecture(
    Network(
        lambda shape, size, **given: Perceptron(shape, (size, size), **given),
        of_noise=True,
        times=True,
    ),
    Network(
        lambda shape, size, **given: PerceptronCritic((size, size), **given),
        times=True,
        smooth=True,
    ),
    size=32,
    size_of="units",
)
ARCHITECTURES["unet"] = Architecture(
    Network(
        lambda shape, size, patch, **given: UNet(shape, size, patch or 1, **given),
        options={"patch": Option("SIDE", meaning="pixels that are one at first")},
        of_noise=True,
        times=True,
    ),
    Network(lambda shape, size, **given: ConvCritic(size, **given), times=True, smooth=True),
    size=24,
)
