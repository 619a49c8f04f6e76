"""Multilayer perceptrons, the networks of the introductory GAN.

Hidden layers are ``leaky_relu(x @ kernel + bias)`` with slope 0.2. The layers are named ``dense0``,
``dense1``, ... from the input on; at the start kernels ``[in, out]`` are LeCun-normal and biases
``[out]`` zero.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from bpgan.nets.architecture import ARCHITECTURES, Architecture, Network, Option
from bpgan.nets.heads import Kind, Scores, score
from bpgan.nets.layers import Dense, Embed, Init, check_labels, storage_dtype
from bpgan.types import Labels, Latents

_lecun = nn.initializers.lecun_normal()


def _perceptron(
    x: Array,
    widths: tuple[int, ...],
    dtype: Any,
    slope: float = 0.2,
    init: Init = _lecun,
    last: Any = None,
) -> Array:
    """Dense layers of the given widths, ``[b, f] -> [b, widths[-1]]``, leaky ReLU between them.

    The last one computes in the type ``last``, if that is given.
    """
    for i, width in enumerate(widths):
        x = x if i == 0 else jax.nn.leaky_relu(x, slope)
        kind = last if last and i == len(widths) - 1 else dtype
        x = Dense(width, name=f"dense{i}", dtype=kind, kernel_init=init)(x)
    return x


class Generator(nn.Module):
    """``z[b, z] -> x[b, *shape]``: a perceptron, and ``tanh`` of it unless ``linear``.

    Attributes:
      shape: shape of one sample, ``(h, w, c)`` for images; any rank.
      widths: hidden layers from the latents on; ``()`` gives an affine map.
      linear: leave out the tanh that keeps samples in [-1, 1].
      slope: of the leaky ReLU; 0 is ReLU.
      kernel_init: of all kernels.
      classes: of the labels, an embedding of which, of the size of z, is concatenated to z (Mirza & Osindero 2014,
        arXiv:1411.1784); 0: unconditional.
      dtype: of the computation.

    Raises:
      ValueError: missing labels.
    """

    shape: tuple[int, ...]
    widths: tuple[int, ...] = (128,)
    linear: bool = False
    slope: float = 0.2
    kernel_init: Init = _lecun
    classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, z: Latents, labels: Labels | None = None, *, train: bool = False
    ) -> Float[Array, "b ..."]:
        del train  # no state
        labels = check_labels(labels, self.classes)
        if self.classes:
            embed = Embed(self.classes, z.shape[1], dtype=self.dtype, name="embed0")
            z = jnp.concatenate([z.astype(self.dtype), embed(labels)], 1)
        widths = (*self.widths, math.prod(self.shape))
        last = storage_dtype(self.dtype) if self.linear else None
        x = _perceptron(z, widths, self.dtype, self.slope, self.kernel_init, last)
        x = x if self.linear else jnp.tanh(x)
        return x.reshape(z.shape[0], *self.shape)


class Discriminator(nn.Module):
    """``x[b, ...] -> logits[b]``: a perceptron over the flattened sample, with one output or a head.

    Attributes:
      widths: hidden layers from the sample on; ``()`` gives a linear discriminator.
      kernel_init: of all kernels.
      classes, head, embedding: as in ``heads.score``; with 0 classes its dense layer alone.
      dtype: of the computation; the logits are float32 or wider.

    Raises:
      ValueError: as in ``heads.score``.
    """

    widths: tuple[int, ...] = (128, 64)
    kernel_init: Init = _lecun
    classes: int = 0
    head: Kind = "projection"
    embedding: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b ..."], labels: Labels | None = None, *, train: bool = False
    ) -> Scores:
        x = _perceptron(x.reshape(x.shape[0], -1), self.widths, self.dtype, init=self.kernel_init)
        if self.widths:
            x = jax.nn.leaky_relu(x, 0.2)
        return score(
            x, labels, name=f"dense{len(self.widths)}", classes=self.classes, head=self.head,
            embedding=self.embedding, kernel_init=self.kernel_init, train=train, dtype=self.dtype,
        )  # fmt: skip


class Classifier(nn.Module):
    """``x[b, ...] -> logits[b, classes]``: a perceptron over the flattened sample.

    Attributes:
      classes: number of outputs, before the softmax.
      widths: hidden layers from the sample on; ``()`` gives multinomial logistic regression.
      dtype: of the computation; the logits are float32 or wider.
    """

    classes: int
    widths: tuple[int, ...] = (128,)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], *, train: bool = False) -> Float[Array, "b k"]:
        del train  # no state
        x = x.reshape(x.shape[0], -1)
        stored = storage_dtype(self.dtype)
        return _perceptron(x, (*self.widths, self.classes), self.dtype, last=stored)


def _widths(size: int, layers: int, default: tuple[int, ...]) -> tuple[int, ...]:
    """So many hidden layers of one width, or those that a perceptron has where nothing is said."""
    return (size,) * layers if layers else default


_LAYERS = {"layers": Option("LAYERS", meaning="hidden layers, all of N units")}

ARCHITECTURES["mlp"] = Architecture(
    Network(
        lambda shape, size, layers, linear, **given: Generator(
            shape, _widths(size, layers, (size,)), linear=linear, **given
        ),
        options={**_LAYERS, "linear": Option(meaning="G's samples are not kept in [-1, 1]")},
    ),
    Network(
        lambda shape, size, layers, **given: Discriminator(
            _widths(size, layers, (size, size // 2)), **given
        ),
        options=_LAYERS,
        flat=True,
    ),
    size=128,
    size_of="units",
)
