"""Linear answers to questions about images: a trivial translation, and attributes read from pixels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Multiples of the mean variance of an input among which ``ridge`` chooses."""


def ridge(
    x: Float[np.ndarray, "n p"], y: Float[np.ndarray, "n q"], queries: Float[np.ndarray, "m p"]
) -> Float[np.ndarray, "m q"]:
    """``(X'X + r I)^-1 X'Y`` of centered numbers, at the queries.

    ``r`` is that of ``RIDGES``, times the mean variance of an input and the number of examples, with the least squared
    error on every tenth example; then all examples are used.
    """
    held = np.arange(len(x)) % 10 == 0
    if held.all():
        held[:] = False

    def answers(chosen: np.ndarray, at: np.ndarray, ridges: Sequence[float]) -> list[np.ndarray]:
        center, middle = x[chosen].mean(0), y[chosen].mean(0)
        inner, outer = x[chosen] - center, y[chosen] - middle
        gram = inner.T @ inner
        values, vectors = np.linalg.eigh(gram)
        values, projected = np.maximum(values, 0), vectors.T @ (inner.T @ outer)
        scale = max(values.mean(), np.finfo(float).tiny)
        left = (at - center) @ vectors
        return [left @ (projected / (values + r * scale)[:, None]) + middle for r in ridges]

    best = RIDGES[0]
    if held.any():
        errors = [np.square(p - y[held]).mean() for p in answers(~held, x[held], RIDGES)]
        best = RIDGES[int(np.argmin(errors))]
    (found,) = answers(np.ones(len(x), bool), queries, [best])
    return found


def random_features(
    images: np.ndarray, *, count: int = 1200, seed: int = 0
) -> Float[np.ndarray, "n f"]:
    """``max(0, W x + c)`` of pixels in [0, 1], and the greatest pixel: features in which many attributes are linear.

    Rahimi & Recht 2008, "Weighted Sums of Random Kitchen Sinks". W is normal, of variance 8 / p for p pixels, c is
    uniform in [-1, 1]; both depend on the seed and the size of the images alone.

    Args:
      images: uint8 ``[n, h, w, c]``.
      count: random features; there is one more.
      seed: of W and c.
    """
    x = images.reshape(len(images), -1) / 255.0
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(x.shape[1], count)) * np.sqrt(8 / x.shape[1])
    hidden = np.maximum(0, x @ weights + rng.uniform(-1, 1, count))
    return np.concatenate([hidden, x.max(axis=1, keepdims=True)], axis=1)


def read_attributes(
    train: np.ndarray, values: Float[np.ndarray, "n a"], images: np.ndarray
) -> Float[np.ndarray, "m a"]:
    """The attributes of images, by ``ridge`` on ``random_features`` of training images.

    Args:
      train: uint8 ``[n, h, w, c]``.
      values: their attributes.
      images: uint8 ``[m, h, w, c]``.
    """
    return ridge(random_features(train), np.asarray(values, np.float64), random_features(images))


def correlations(
    a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, " k"]:
    """Pearson's correlation of each column of a with the same column of b; NaN of a column that is constant."""
    a, b = (np.asarray(x, np.float64) - np.mean(x, axis=0) for x in (a, b))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(0) / np.sqrt(np.square(a).sum(0) * np.square(b).sum(0))
