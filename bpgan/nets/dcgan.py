"""Convolutional generator and discriminator in the manner of DCGAN, and a classifier.

Radford, Metz, Chintala 2016, arXiv:1511.06434: no pooling and no hidden dense layers by default,
strided and transposed convolutions of kernel 4, batch norm in the generator. Where this file
departs from the paper: leaky ReLU (slope 0.2) in G as in D, He-scaled initial kernels in place of
N(0, 0.02) (which ``kernel_init`` brings back), no norm in D by default, because gradient penalties
need D to score each example by itself.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from bpgan.nets.architecture import ARCHITECTURES, Architecture, Network, Option
from bpgan.nets.heads import Kind, Scores, score
from bpgan.nets.layers import (
    BatchNorm,
    Conv,
    ConvTranspose,
    Dense,
    Embed,
    Init,
    check_labels,
    storage_dtype,
)
from bpgan.nets.resample import upsample2
from bpgan.nets.sizes import levels
from bpgan.nets.wrappers import energy, linen_net
from bpgan.types import Images, Labels, Latents

_SLOPE = 0.2
_MODULATION_GAIN = 0.3  # so that a modulated norm begins near the norm itself


def he_init(gain: float = 1.0) -> Init:
    """``N(0, gain^2 * 2 / ((1 + slope^2) fan_in))``: keeps the scale of leaky ReLU networks.

    He et al. 2015, arXiv:1502.01852, Eq. 15, with slope 0.2.
    """
    return nn.initializers.variance_scaling(gain**2 * 2 / (1 + _SLOPE**2), "fan_in", "normal")


def _activation(x: Array) -> Array:
    return jax.nn.leaky_relu(x, _SLOPE)


def _dense(index: int | str, features: int, dtype: Any, kernel_init: Init) -> nn.Module:
    return Dense(features, dtype=dtype, kernel_init=kernel_init, name=f"dense{index}")


class Modulation(nn.Module):
    """``x[b, ..., c] (1 + s(z)) + t(z)``, where s and t are two dense layers of ``z[b, z]``.

    Self-modulation (Chen et al. 2019, arXiv:1810.01365), who have no 1, because their norm has no scale of its own.

    Attributes:
      hidden: units of the first layer.
      dtype: of the computation.
    """

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, z: Latents) -> Array:
        h = _activation(_dense(0, self.hidden, self.dtype, he_init())(z))
        both = _dense(1, 2 * x.shape[-1], self.dtype, he_init(_MODULATION_GAIN))(h)
        both = jnp.expand_dims(both, range(1, x.ndim - 1))
        scale, offset = jnp.split(both, 2, axis=-1)
        return x * (1 + scale) + offset


class Generator(nn.Module):
    """``z[b, z] -> x[b, h, w, c]`` in [-1, 1], unless ``linear``.

    A dense layer makes ``widths[0]`` channels at low resolution; each further width doubles it:

    - ``"transpose"``: by a 4x4 transposed convolution, stride 2, and so does the one that makes the
      image: the dense layer starts at ``h / 2**len(widths)``.
    - ``"resize"``: by a 3x3 convolution and bilinear interpolation; a last 3x3 convolution makes
      the image at full resolution: the dense layer starts at ``h / 2**(len(widths) - 1)``. Free of
      checkerboards (Odena et al. 2016, doi:10.23915/distill.00003).

    Batch norm (if ``norm``) and leaky ReLU follow every layer but the last, tanh the last.

    Attributes:
      shape: ``(h, w, c)`` of an image.
      widths: channels, from the dense layer on.
      upsample: "transpose" or "resize".
      hidden: width of another dense layer, before the one that makes channels; 0 for none.
      norm: whether to normalize by batch statistics. With ``train`` they are those of the batch,
        and the running averages (decay 0.9) are updated; without, the running averages are used.
      axis_name: mapped axis over which batch statistics are averaged; None where the batch is
        global.
      output_gain: factor of the initial kernel of the last layer.
      linear: leave out the tanh, for logits of a likelihood.
      modulation: if not 0, a ``Modulation`` with so many hidden units follows every norm: z, and the embedding of the
        label that is concatenated to it, act on every resolution.
      kernel_init: of all kernels; None is He scaling, which alone heeds ``output_gain``.
      classes: of the labels; 0: unconditional.
      conditioning: "concat": an embedding of the label, of the size of z, is concatenated to z (Mirza & Osindero 2014,
        arXiv:1411.1784); "norm": scale and bias of the batch norms are rows of tables, one row to a class.
      dtype: of the computation; parameters and running averages are float32 or wider.

    Raises:
      ValueError: h or w is not a multiple of the total magnification, upsample or conditioning is none of its values,
        there are no norms to condition or to modulate, or labels are missing.
    """

    shape: tuple[int, int, int]
    widths: tuple[int, ...] = (128, 64)
    upsample: Literal["transpose", "resize"] = "transpose"
    hidden: int = 0
    norm: bool = True
    axis_name: str | None = None
    output_gain: float = 1.0
    linear: bool = False
    modulation: int = 0
    kernel_init: Init | None = None
    classes: int = 0
    conditioning: Literal["concat", "norm"] = "concat"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Latents, labels: Labels | None = None, *, train: bool = False) -> Images:
        labels = check_labels(labels, self.classes)
        if self.conditioning not in ("concat", "norm"):
            raise ValueError(f'conditioning={self.conditioning!r}: must be "concat" or "norm"')
        by_norm = self.classes > 0 and self.conditioning == "norm"
        if by_norm and not self.norm:
            raise ValueError(
                'conditioning="norm": needs norm=True; the option norm does not go with plain'
            )
        if self.modulation and not self.norm:
            raise ValueError(
                f"modulation={self.modulation}: needs norm=True; the option modulated does not go with plain"
            )
        if self.upsample not in ("transpose", "resize"):
            raise ValueError(f'upsample={self.upsample!r}: must be "transpose" or "resize"')
        transpose = self.upsample == "transpose"
        height, width, channels = self.shape
        scale = 2 ** (len(self.widths) - (not transpose))
        if not self.widths or height % scale or width % scale:
            raise ValueError(
                f"widths={self.widths}: {self.upsample} layers magnify {scale} times, "
                f"which must divide the image size {height}x{width}"
            )

        def up(index: int, features: int, gain: float = 1.0, dtype: Any = self.dtype) -> nn.Module:
            # Only a quarter of the taps of a stride-2 transposed convolution meet: gain sqrt(4).
            init = self.kernel_init or he_init(2 * gain)
            return ConvTranspose(
                features, 4, 2, 1, kernel_init=init, dtype=dtype, name=f"conv{index}"
            )

        def same(
            index: int, features: int, gain: float = 1.0, dtype: Any = self.dtype
        ) -> nn.Module:
            init = self.kernel_init or he_init(gain)
            return Conv(features, 3, kernel_init=init, dtype=dtype, name=f"conv{index}")

        def finish(index: int | str, x: Array) -> Array:
            if self.norm:
                norm = BatchNorm(self.axis_name, dtype=self.dtype, name=f"norm{index}",
                                 classes=self.classes if by_norm else 0)  # fmt: skip
                x = norm(x, labels if by_norm else None, train=train)
            if self.modulation:
                x = Modulation(self.modulation, self.dtype, name=f"modulation{index}")(x, z)
            return _activation(x)

        if self.classes and not by_norm:
            embed = Embed(self.classes, z.shape[1], dtype=self.dtype, name="embed0")
            z = jnp.concatenate([z.astype(self.dtype), embed(labels)], 1)
        if self.hidden:
            first = _dense("_hidden", self.hidden, self.dtype, self.kernel_init or he_init())
            z = finish("_hidden", first(z))
        start = (height // scale, width // scale, self.widths[0])
        x = _dense(0, math.prod(start), self.dtype, self.kernel_init or he_init())(z)
        x = finish(0, x.reshape(-1, *start))
        for i, features in enumerate(self.widths[1:]):
            x = up(i, features)(x) if transpose else upsample2(same(i, features)(x))
            x = finish(i + 1, x)
        last, dtype = up if transpose else same, self.dtype
        if self.linear:  # logits
            dtype = storage_dtype(dtype)
        x = last(len(self.widths) - 1, channels, self.output_gain, dtype)(x)
        return x if self.linear else jnp.tanh(x)


class Discriminator(nn.Module):
    """``x[b, h, w, c] -> logits[b]``: convolutions of kernel 4, stride 2 and leaky ReLU; a head.

    Without ``norm`` the score of an example does not depend on the rest of the batch.

    Attributes:
      widths: channels of the strided convolutions; each halves the resolution, rounding down.
      full_resolution: channels of a 3x3 convolution of stride 1 before them; 0 for none.
      hidden: width of a hidden dense layer before the logit; 0 for none.
      norm: whether all convolutions but the first are followed by batch norm, as in the paper.
      axis_name: as in ``Generator``.
      kernel_init: of all kernels; None is He scaling.
      classes, head, embedding: as in ``heads.score``; with 0 classes its dense layer alone.
      dtype: of the computation; the logits are float32 or wider.

    Raises:
      ValueError: the image is too small for so many convolutions, or as in ``heads.score``.
    """

    widths: tuple[int, ...] = (64, 128)
    full_resolution: int = 0
    hidden: int = 0
    norm: bool = False
    axis_name: str | None = None
    kernel_init: Init | None = None
    classes: int = 0
    head: Kind = "projection"
    embedding: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, labels: Labels | None = None, *, train: bool = False) -> Scores:
        init = self.kernel_init or he_init()
        layers = [(features, 4, 2, 1) for features in self.widths]
        if self.full_resolution:
            layers.insert(0, (self.full_resolution, 3, 1, 1))
        for i, layer in enumerate(layers):
            x = Conv(*layer, kernel_init=init, dtype=self.dtype, name=f"conv{i}")(x)
            if self.norm and i > 0:
                x = BatchNorm(self.axis_name, dtype=self.dtype, name=f"norm{i}")(x, train=train)
            x = _activation(x)
        x = x.reshape(x.shape[0], -1)
        if self.hidden:
            x = _activation(_dense(0, self.hidden, self.dtype, init)(x))
        return score(
            x, labels, name="dense1" if self.hidden else "dense0", classes=self.classes,
            head=self.head, embedding=self.embedding, kernel_init=init, train=train, dtype=self.dtype,
        )  # fmt: skip


class Autoencoder(nn.Module):
    """``x[b, h, w, c] -> x[b, h, w, c]``: strided convolutions to a code, transposed ones back; for ``nets.energy``.

    Attributes:
      widths: channels of the convolutions, each of which halves the resolution.
      code: numbers in the middle.
      dtype: of the computation.

    Raises:
      ValueError: h or w is not a multiple of ``2**len(widths)``.
    """

    widths: tuple[int, ...] = (64, 128)
    code: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Images:
        _, h, w, c = x.shape
        for i, width in enumerate(self.widths):
            layer = Conv(width, 4, 2, 1, kernel_init=he_init(), dtype=self.dtype, name=f"conv{i}")
            x = _activation(layer(x))
        x = _dense(0, self.code, self.dtype, he_init())(x.reshape(x.shape[0], -1))
        decoder = Generator(
            (h, w, c), self.widths[::-1], norm=False, dtype=self.dtype, name="decoder"
        )
        return decoder(x, train=train).astype(storage_dtype(self.dtype))


class Classifier(nn.Module):
    """``x[b, h, w, c] -> logits[b, classes]``: strided convolutions, two dense layers, GELU between.

    GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415) because the hidden layer serves as features: with ReLU half of
    its units may be zero on all images, and their covariance singular.

    Attributes:
      classes: number of outputs, before the softmax.
      widths: channels of the strided convolutions; each halves the resolution, rounding down.
      hidden: units of the hidden dense layer.
      features: return the hidden layer ``[b, hidden]`` instead of the logits, from the same parameters.
      dtype: of the computation; the output is float32 or wider.

    Raises:
      ValueError: the image is too small for so many convolutions.
    """

    classes: int
    widths: tuple[int, ...] = (32, 64)
    hidden: int = 128
    features: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Float[Array, "b k"]:
        del train  # no state
        he = nn.initializers.he_normal()
        for i, width in enumerate(self.widths):
            layer = Conv(width, 4, 2, 1, kernel_init=he, dtype=self.dtype, name=f"conv{i}")
            x = jax.nn.gelu(layer(x), approximate=False)
        x = _dense(0, self.hidden, self.dtype, he)(x.reshape(x.shape[0], -1))
        x = jax.nn.gelu(x, approximate=False)
        stored = storage_dtype(self.dtype)
        if self.features:
            return x.astype(stored)
        return _dense(1, self.classes, stored, nn.initializers.lecun_normal())(x)


def _widths(size: int, count: int) -> tuple[int, ...]:
    """``count`` widths, each twice the one before."""
    return tuple(size << i for i in range(count))


def _generator(
    shape: tuple[int, int, int],
    size: int,
    *,
    norm: bool,
    plain: bool,
    modulated: bool,
    count: int | None = None,
    **given: Any,
) -> Generator:
    return Generator(
        shape,
        _widths(size, count or levels(shape[0]))[::-1],
        conditioning="norm" if norm else "concat",
        norm=not plain,
        modulation=_MODULATION if modulated else 0,
        **given,
    )


def _lite_generator(shape: tuple[int, int, int], size: int, **given: Any) -> Generator:
    count = levels(shape[0]) + 1
    return _generator(shape, size, count=count, upsample="resize", output_gain=0.5, **given)


_MODULATION = 64
_NORM = {
    "norm": Option(of_labels=True, meaning="labels enter G's batch norms"),
    "plain": Option(meaning="G has no batch norm"),
    "modulated": Option(meaning="z enters after each of G's batch norms"),
}

ARCHITECTURES["dcgan"] = Architecture(
    Network(_generator, options=_NORM, mixes_examples=True, mixes_unless="plain"),
    Network(lambda shape, size, **given: Discriminator(_widths(size, levels(shape[0])), **given)),
    size=64,
)
# The recipe for a CPU: bilinear interpolation in G, a first convolution at full resolution in D.
ARCHITECTURES["lite"] = Architecture(
    Network(_lite_generator, options=_NORM, mixes_examples=True, mixes_unless="plain"),
    Network(
        lambda shape, size, **given: Discriminator(
            _widths(2 * size, max(2, levels(shape[0]) - 1)),
            full_resolution=size,
            hidden=128,
            **given,
        )
    ),
    size=24,
)
ARCHITECTURES["autoencoder"] = Architecture(
    discriminator=Network(
        lambda shape, size, dtype: energy(linen_net(Autoencoder((size, 2 * size), dtype=dtype))),
        conditions=(),
    ),
    size=64,
    energy=True,
)
