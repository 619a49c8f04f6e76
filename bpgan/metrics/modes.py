"""What a generator makes of a mixture of Gaussians whose modes are known.

The measures of Srivastava et al. 2017, arXiv:1705.07761 (VEEGAN), as Lin et al. 2018, arXiv:1712.04086 (PacGAN), state
them, and one that they lack: a generator of points without width passes all of theirs.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Modes(NamedTuple):
    """How samples lie about the modes.

    Attributes:
      captured: modes with at least one sample of high quality.
      high_quality: share of the samples within 3 standard deviations of a mode; ``1 - e^(-9/2)`` = 0.9889 of real ones
        in two dimensions.
      reverse_kl: ``KL(h | uniform)`` in nats of the shares h of samples nearest to each mode; of n real samples
        ``(k - 1) / (2 n)`` on average.
      std_ratio: standard deviation of the samples of high quality about their mode's mean, over that of real ones; 1 if
        the modes are as wide as they should be, near 0 if each is a point, 0 if no mode has two such samples.
    """

    captured: int
    high_quality: float
    reverse_kl: float
    std_ratio: float


def modes(x: Float[np.ndarray, "n 2"], centers: Float[np.ndarray, "k 2"], std: float) -> Modes:
    """Compares samples with the equally likely modes ``N(center, std^2 I)`` in the plane."""
    squared = np.square(np.asarray(x, np.float64)[:, None] - centers[None]).sum(-1)
    nearest = squared.argmin(1)
    good = squared[np.arange(len(x)), nearest] < (3 * std) ** 2
    share = np.bincount(nearest, minlength=len(centers)) / len(x)
    positive = share[share > 0]
    inside = [x[good & (nearest == k)] for k in range(len(centers))]
    variances = [part.var(0, ddof=1).mean() for part in inside if len(part) > 1]
    # Of real samples within three standard deviations: r^2 / std^2 is exponential with mean 2, cut at 9.
    kept = 1 - 4.5 * math.exp(-4.5) / (1 - math.exp(-4.5))
    return Modes(
        captured=sum(len(part) > 0 for part in inside),
        high_quality=float(good.mean()),
        reverse_kl=float(np.sum(positive * np.log(positive * len(centers)))),
        std_ratio=math.sqrt(np.mean(variances) / kept) / std if variances else 0.0,
    )
