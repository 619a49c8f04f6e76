"""Paths through the latents: from one to the next on a great circle, whose samples make an animation."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def slerp(a: Float[np.ndarray, "*z"], b: Float[np.ndarray, "*z"], t: float) -> np.ndarray:
    """The point at t of the arc from a to b: ``sin((1-t) w) / sin w  a + sin(t w) / sin w  b``, w the angle between.

    Normal latents in many dimensions lie near a sphere, and so does this path, which a straight line does not (White
    2016, arXiv:1609.04468; Shoemake 1985, doi:10.1145/325334.325242). Where the angle is 0 or half a turn, or one of
    them is 0, the straight line is taken.

    >>> slerp(np.array([1.0, 0.0]), np.array([0.0, 2.0]), 0.5).round(4)
    array([0.7071, 1.4142])
    """
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = float(np.sum(a * b) / lengths) if lengths else 1.0
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(angle) < 1e-6:
        return (1 - t) * a + t * b
    first, second = (math.sin(part * angle) / math.sin(angle) for part in (1 - t, t))
    return first * a + second * b


def path(stops: Sequence[np.ndarray], frames: int) -> np.ndarray:
    """``[(k - 1) * frames + 1, ...]``: through k latents on arcs, ``frames`` steps from each to the next."""
    points = [
        slerp(a, b, i / frames)
        for a, b in zip(stops[:-1], stops[1:], strict=True)
        for i in range(frames)
    ]
    return np.stack([*points, stops[-1]]).astype(stops[0].dtype)
