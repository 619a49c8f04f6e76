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
from bpgan.metrics.transport import (
    assigned_distance,
    gaussian_map,
    monotone_map,
    normal_quantiles,
    squared_distance,
)

__all__ = [
    "FrechetInfinity",
    "Gaussian",
    "Modes",
    "assigned_distance",
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
    "gaussian_map",
    "inception_score",
    "kernel_distance",
    "kernel_distance_subsets",
    "merge",
    "modes",
    "monotone_map",
    "ms_ssim",
    "ms_ssim_diversity",
    "ms_ssim_name",
    "nearest",
    "neighbor_ratio",
    "normal_quantiles",
    "precision_recall",
    "squared_distance",
    "two_sample_accuracy",
    "vendi_score",
]
