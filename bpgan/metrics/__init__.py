"""What is said of generated images: distances, manifolds, diversity, as functions of feature arrays ``[n, f]``.

What turns images into features is in ``features``; docs/metrics.md says what each number means, and when it lies.
"""

from bpgan.metrics.frechet import (
    FrechetInfinity,
    Gaussian,
    frechet_bias,
    frechet_distance,
    frechet_distance_gaussians,
    frechet_infinity,
    gaussian,
    merge,
)
from bpgan.metrics.kernel import kernel_distance, kernel_distance_subsets
from bpgan.metrics.memorization import (
    authenticity,
    closest_pairs,
    data_copying,
    neighbor_ratio,
    two_sample_accuracy,
)
from bpgan.metrics.modes import Modes, modes
from bpgan.metrics.neighbors import (
    density_coverage,
    expected_coverage,
    nearest,
    precision_recall,
)
from bpgan.metrics.scores import (
    inception_score,
    ms_ssim,
    ms_ssim_diversity,
    ms_ssim_name,
    vendi_score,
)

__all__ = [
    "FrechetInfinity",
    "Gaussian",
    "Modes",
    "authenticity",
    "closest_pairs",
    "data_copying",
    "density_coverage",
    "expected_coverage",
    "frechet_bias",
    "frechet_distance",
    "frechet_distance_gaussians",
    "frechet_infinity",
    "gaussian",
    "inception_score",
    "kernel_distance",
    "kernel_distance_subsets",
    "merge",
    "modes",
    "ms_ssim",
    "ms_ssim_diversity",
    "ms_ssim_name",
    "nearest",
    "neighbor_ratio",
    "precision_recall",
    "two_sample_accuracy",
    "vendi_score",
]
