"""Encoders of variational autoencoders; their decoders are generators with ``linear=True``."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from bpgan.nets.layers import Conv, Dense, storage_dtype

_he = nn.initializers.he_normal()


class Encoder(nn.Module):
    """``x[b, ...] -> (mean[b, z], log_variance[b, z])``: strided convolutions, dense layers, leaky ReLU (slope 0.2).

    Attributes:
      latents: dimension of z.
      widths: channels of convolutions of kernel 4 and stride 2, which need images ``[b, h, w, c]``.
      hidden: units of dense layers after them.
      dtype: of the computation; the result is float32 or wider.

    Raises:
      ValueError: the image is too small for so many convolutions.
    """

    latents: int
    widths: tuple[int, ...] = ()
    hidden: tuple[int, ...] = (200, 200)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b ..."], *, train: bool = False
    ) -> tuple[Float[Array, "b z"], Float[Array, "b z"]]:
        del train  # no state
        for i, width in enumerate(self.widths):
            layer = Conv(width, 4, 2, 1, kernel_init=_he, dtype=self.dtype, name=f"conv{i}")
            x = jax.nn.leaky_relu(layer(x), 0.2)
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden):
            x = Dense(width, name=f"dense{i}", kernel_init=_he, dtype=self.dtype)(x)
            x = jax.nn.leaky_relu(x, 0.2)
        # Small at first, so that q begins near the prior.
        small = nn.initializers.variance_scaling(0.01, "fan_in", "normal")
        stored = storage_dtype(self.dtype)
        x = Dense(2 * self.latents, name="moments", kernel_init=small, dtype=stored)(x)
        mean, log_variance = jnp.split(x, 2, axis=-1)
        return mean, log_variance
