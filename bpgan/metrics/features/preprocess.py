"""Images as networks for photographs want them: three channels, a fixed size. Public codes differ here most of all.

Every resize is linear and separable, so it is a matrix for each axis.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from bpgan.types import UserError

Resize = Literal["tf1", "torch", "clean"]
"""How an image is brought to another size.

``tf1``
    Bilinear as TensorFlow 1 does it and torch-fidelity after it: pixels are points at integers, so that the image is
    moved by a fraction of a pixel. The published FID weights were used with it.
``torch``
    Bilinear with ``align_corners=False`` and no antialiasing, as pytorch-fid.
``clean``
    Bicubic with antialiasing in float32, clipped, as PIL and clean-fid (Parmar et al. 2022, arXiv:2104.11222).
"""


@functools.cache
def resize_matrix(size: int, target: int, how: Resize) -> np.ndarray:
    """``[target, size]``: the weights of each pixel of an axis in each new one."""
    matrix = np.zeros((target, size))
    if how == "clean":
        scale = size / target
        stretch = max(scale, 1.0)
        for i in range(target):
            center = (i + 0.5) * scale
            low = max(int(center - 2 * stretch + 0.5), 0)
            high = min(int(center + 2 * stretch + 0.5), size)
            weights = _bicubic((np.arange(low, high) + 0.5 - center) / stretch)
            matrix[i, low:high] = weights / weights.sum()
        return matrix.astype(np.float32)
    at = np.arange(target, dtype=np.float32) * np.float32(size / target)
    if how == "torch":
        at = (np.arange(target, dtype=np.float32) + 0.5) * np.float32(size / target) - 0.5
        at = np.maximum(at, 0)
    low = np.minimum(at.astype(np.int64), size - 1)
    high, rows = np.minimum(low + 1, size - 1), np.arange(target)
    np.add.at(matrix, (rows, low), 1 - (at - low))
    np.add.at(matrix, (rows, high), at - low)
    return matrix.astype(np.float32)


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys 1981 with a = -1/2, as PIL."""
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resize(images: jax.Array, target: int, how: Resize) -> jax.Array:
    """``[b, h, w, c]`` of any type as float32 ``[b, target, target, c]``, in the same units."""
    _, h, w, _ = images.shape
    x = images.astype(jnp.float32)
    rows, columns = resize_matrix(h, target, how), resize_matrix(w, target, how)
    # Float32 products: the default of accelerators would round to bfloat16.
    exact = jax.lax.Precision.HIGHEST
    x = jnp.einsum("Ww,bhwc->bhWc", columns, x, precision=exact)
    x = jnp.einsum("Hh,bhWc->bHWc", rows, x, precision=exact)
    return jnp.clip(x, 0, 255) if how == "clean" else x


def rgb(images: np.ndarray, net: str) -> np.ndarray:
    """Three channels: gray ones are repeated.

    Raises:
      UserError: for images of other than one or three channels.
    """
    channels = images.shape[-1]
    if channels not in (1, 3):
        raise UserError(f"{net}: images have {channels} channels; must be 1 or 3 (channels=3)")
    return np.repeat(images, 3, axis=-1) if channels == 1 else images
