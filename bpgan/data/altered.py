"""Digits with attributes that are known: turned, faded and bold ones, made of ``mnist10k`` without a download.

What each digit becomes is a hash of its number and its split: the same in every run. The three attributes and the
class are independent of each other.
"""

import functools

import numpy as np

from bpgan.data import datasets, tasks

NAMES = ("rotation", "brightness", "bold")
"""Degrees counterclockwise, -40 to 40; the factor of all pixels, 0.3 to 1; 1 for strokes two pixels wider, else 0."""

_SEEDS = {"train": 1, "test": 2}


def drawn(split: str, n: int) -> np.ndarray:
    """The attributes of the digits of a split, float32 ``[n, 3]``, uniform and independent."""
    u = np.random.RandomState(_SEEDS[split]).uniform(size=(n, 3))
    columns = [80 * u[:, 0] - 40, 0.3 + 0.7 * u[:, 1], u[:, 2] < 0.5]
    return np.stack(columns, axis=1).astype(np.float32)


def altered(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Images uint8 ``[n, h, w, 1]`` with the attributes ``[n, 3]``: made bold, then turned, then faded."""
    from scipy import ndimage

    bold = np.where(values[:, 2, None, None, None] > 0.5, tasks.dilate(x), x)
    turned = [
        ndimage.rotate(image, angle, reshape=False, order=1)
        for image, angle in zip(bold[..., 0].astype(np.float32), values[:, 0], strict=True)
    ]
    faded = np.stack(turned)[..., None] * values[:, 1, None, None, None]
    return np.rint(np.clip(faded, 0, 255)).astype(np.uint8)


@functools.lru_cache(maxsize=2)
def load(split: str) -> datasets.Dataset:
    """A split of the digits with their attributes, in memory."""
    plain = datasets.load("mnist10k", split)
    x, y = plain.arrays()
    values, train = drawn(split, len(x)), drawn("train", datasets.load("mnist10k").length)
    made = datasets.of_arrays("altered", split, altered(x, values), y, plain.classes)
    made = made._replace(class_names=plain.class_names)
    return datasets.with_attributes(made, NAMES, values, train)
