"""Paths through the latents: from one to the next on a great circle, whose samples make an animation."""

from collections.abc import Sequence

import numpy as np

from bpgan.insight.geometry import slerp


def path(stops: Sequence[np.ndarray], frames: int) -> np.ndarray:
    """``[(k - 1) * frames + 1, ...]``: through k latents on arcs, ``frames`` steps from each to the next."""
    parts = np.arange(frames) / frames
    ends = [np.repeat(stop[None], frames, 0) for stop in stops]
    arcs = [slerp(a, b, parts) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    return np.concatenate([*arcs, stops[-1][None]]).astype(stops[0].dtype)
