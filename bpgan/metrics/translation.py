"""How well images of one domain are translated into another: errors against known answers, and what is too easy.

Images are uint8 ``[n, h, w, c]``; errors are on the scale [0, 1].
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from bpgan.metrics import neighbors, regression

Translate = Callable[[np.ndarray], np.ndarray]
"""``uint8 [n, h, w, c] -> uint8 [n, h', w', c']``."""

_CHUNK = 1000


def of_network(
    apply: Callable[[Any, Any, Any], Any], variables: Any, batch: int = 250
) -> Translate:
    """A network as a function of bytes, compiled once.

    Args:
      apply: ``(variables, x[batch, ...] in [-1, 1], index of the first row) -> y[batch, ...]`` in [-1, 1]. Rows of the
        last call may be there twice.
      variables: of the network.
      batch: rows of a call.
    """
    compiled = jax.jit(apply)

    def translate(x: np.ndarray) -> np.ndarray:
        found = []
        for i in range(0, len(x), batch):
            rows = np.resize(np.arange(i, min(i + batch, len(x))), batch)
            y = compiled(variables, x[rows].astype(np.float32) / 127.5 - 1, i)
            y = np.nan_to_num(np.asarray(y, np.float64), nan=-1.0)[: len(x) - i]
            found.append(np.rint(127.5 * (np.clip(y, -1, 1) + 1)).astype(np.uint8))
        return np.concatenate(found)

    return translate


def absolute_error(x: np.ndarray, y: np.ndarray) -> float:
    """The mean of ``|x - y|`` over images, pixels and channels.

    Raises:
      ValueError: if the shapes differ.
    """
    return _mean(x, y, np.abs)


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    """The mean over images of ``10 log10(1 / MSE_i)``, the peak signal-to-noise ratio in decibels.

    Of an image that is right in every pixel it would be infinite. The mean error counts as at least that of rounding,
    ``(1 / 255)^2 / 12``, so the greatest value is 58.9.

    Raises:
      ValueError: if the shapes differ.
    """
    _check(x, y)
    errors = np.concatenate(
        [
            np.square(_unit(x[i : i + _CHUNK]) - _unit(y[i : i + _CHUNK])).mean((1, 2, 3))
            for i in range(0, len(x), _CHUNK)
        ]
    )
    return float(np.mean(-10 * np.log10(np.maximum(errors, 1 / (12 * 255**2)))))


def resized(x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Images in another shape ``(h, w, c)``: by repetition of pixels, or means of blocks; gray ones in all channels.

    Raises:
      ValueError: if a side is no multiple of the other, or the channels are neither equal nor 1.
    """
    (_, h, w, c), (height, width, channels) = x.shape, shape
    if channels != c and 1 not in (channels, c):
        raise ValueError(f"{c} channels cannot become {channels}")
    if channels < c:
        x = np.rint(x.mean(-1, keepdims=True)).astype(np.uint8)
    x = np.broadcast_to(x, (*x.shape[:3], channels))
    for axis, (before, after) in enumerate(((h, height), (w, width)), 1):
        if after % before == 0:
            x = np.repeat(x, after // before, axis)
        elif before % after == 0:
            blocks = (*x.shape[:axis], after, before // after, *x.shape[axis + 1 :])
            x = np.rint(x.reshape(blocks).mean(axis + 1)).astype(np.uint8)
        else:
            raise ValueError(f"{before} pixels cannot become {after}")
    return np.ascontiguousarray(x)


def trivial(
    train: tuple[np.ndarray, np.ndarray], inputs: np.ndarray, shape: Sequence[int]
) -> dict[str, np.ndarray]:
    """What anybody can answer: translations that know nothing of images, by name.

    Args:
      train: inputs and their targets, to learn from.
      inputs: to be translated, ``[n, ...]``.
      shape: of a target.

    Returns:
      uint8 ``[n, *shape]`` each: ``mean``, the mean target; ``identity``, the input itself, where its shape allows it;
      ``nearest``, the target of the training input that is nearest in pixels; ``ridge``, linear regression.
    """
    a, b = train
    mean = np.rint(b.mean(0, dtype=np.float64)).astype(np.uint8)
    found = {"mean": np.broadcast_to(mean, (len(inputs), *shape))}
    try:
        found["identity"] = resized(inputs, shape)
    except ValueError:
        pass
    rows, points = (x.reshape(len(x), -1).astype(np.float32) for x in (inputs, a))
    found["nearest"] = b[neighbors.nearest(rows, points, 1)[1][:, 0]]
    found["ridge"] = ridge(a, b, inputs)
    return found


def ridge(a: np.ndarray, b: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Ridge regression from pixels to pixels (``regression.ridge``), answers rounded to bytes."""
    x, y, queries = (_unit(v).reshape(len(v), -1) for v in (a, b, inputs))
    found = regression.ridge(x, y, queries)
    return np.rint(255 * np.clip(found, 0, 1)).astype(np.uint8).reshape(len(inputs), *b.shape[1:])


def coarse(x: np.ndarray, *, seed: int, levels: int = 16, deviation: float = 4 / 255) -> np.ndarray:
    """Images in few levels, and with noise: what is hidden in their last bits is lost.

    A translation that can go back only by what it hid, invisibly, in its output goes back much worse from this
    (Chu, Zhmoginov & Sandler 2017, arXiv:1712.02950).

    Args:
      x: uint8 images.
      seed: of the noise.
      levels: of each pixel, evenly spaced.
      deviation: of normal noise, on the scale [0, 1].
    """
    rounded = np.rint(_unit(x) * (levels - 1)) / (levels - 1)
    noise = np.random.default_rng(seed).normal(0, deviation, x.shape)
    return np.rint(255 * np.clip(rounded + noise, 0, 1)).astype(np.uint8)


def _check(x: np.ndarray, y: np.ndarray) -> None:
    if x.shape != y.shape or x.ndim != 4 or not len(x):
        raise ValueError(f"x and y must both be [n, h, w, c], not {x.shape} and {y.shape}")


def _mean(x: np.ndarray, y: np.ndarray, of) -> float:
    """The mean of a function of the difference, in bounded memory."""
    _check(x, y)
    total = sum(
        of(_unit(x[i : i + _CHUNK]) - _unit(y[i : i + _CHUNK])).sum()
        for i in range(0, len(x), _CHUNK)
    )
    return float(total / x.size)


def _unit(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) / 255
