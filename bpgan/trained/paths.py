"""Paths through the latents: from one to the next on a great circle, whose samples make an animation."""

from collections.abc import Sequence

import numpy as np

from bpgan.insight.geometry import slerp


def path(stops: Sequence[np.ndarray], frames: int) -> np.ndarray:
    """``[(k - 1) * frames + 1, ...]``: through k latents on arcs, ``frames`` steps from each to the next."""
    parts = np.arange(frames) / frames
    arcs = [
        slerp(*(np.repeat(end[None], frames, 0) for end in ends), parts)
        for ends in zip(stops[:-1], stops[1:], strict=True)
    ]
    return np.concatenate([*arcs, stops[-1][None]]).astype(stops[0].dtype)
