"""Scores of one set of samples: Inception score, Vendi score, and MS-SSIM as a measure of diversity.

None compares with data: a memorizer scores as well as the data do, and a generator of one perfect image per class has
the highest Inception score there is. Always print them beside the value of real data of the same size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from bpgan.metrics.arrays import check_matrix

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""The exponents of MS-SSIM's scales, finest first (Wang, Simoncelli & Bovik 2003)."""


def inception_score(
    logits: Float[np.ndarray, "n k"], *, splits: int = 10, seed: int = 2020
) -> tuple[float, float]:
    """Mean and standard deviation (ddof 0) over ``splits`` of ``exp(mean_x KL(p(y|x) | p(y)))``.

    Salimans et al. 2016 (arXiv:1606.03498). Each split has its own marginal ``p(y) = mean_x p(y|x)``. Between 1 (all
    predictions equal) and the number of classes, and biased downwards in small splits. The rows are shuffled with
    ``RandomState(seed)`` and cut at ``i n // splits``: with the default seed the same as torch-fidelity 0.4.0, given
    the same logits (its are those of Inception's last layer without its bias). Probabilities that underflow are
    exact zeros of ``p log p``.

    Args:
      logits: ``[n, k]``, any real type; converted to float64.
      splits: at least 1 and at most ``n``.
      seed: of the shuffle.

    Raises:
      ValueError: on anything else, and on logits that are not finite.
    """
    logits = check_matrix(logits, "logits")
    n = len(logits)
    if not 1 <= splits <= n:
        raise ValueError(f"splits must be between 1 and the {n} rows, not {splits}")
    logits = logits[np.random.RandomState(seed).permutation(n)].astype(np.float64)
    log_p = logits - _log_sum_exp(logits, axis=1)
    scores = []
    for i in range(splits):
        chunk = log_p[i * n // splits : (i + 1) * n // splits]
        log_marginal = _log_sum_exp(chunk, axis=0) - np.log(len(chunk))
        scores.append(np.exp((np.exp(chunk) * (chunk - log_marginal)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def vendi_score(features: Float[np.ndarray, "n f"]) -> float:
    """The effective number of different rows: ``exp(-sum_i l_i log l_i)`` with the eigenvalues ``l`` of ``K / n``.

    ``K`` is the matrix of cosine similarities (Friedman & Dieng 2023, arXiv:2210.02410). From 1 (all rows parallel)
    to ``min(n, f)``; ``n`` for orthogonal rows. The eigenvalues are those of the smaller of the n x n and the f x f
    Gram matrix. Not centered: features of one sign, after a ReLU say, look alike and score low.

    Raises:
      ValueError: unless ``features`` is a finite matrix without zero rows.
    """
    features = check_matrix(features, "features").astype(np.float64)
    largest = np.abs(features).max(axis=1, keepdims=True)
    if not largest.all():
        raise ValueError("a row of zeros has no cosine similarity; every row must have a norm")
    rows = features / largest  # squares of very small and of very large numbers are no floats
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    eigenvalues = np.linalg.eigvalsh(gram / len(rows))
    eigenvalues = eigenvalues[eigenvalues > 0]
    return float(np.exp(-np.sum(eigenvalues * np.log(eigenvalues))))


def ms_ssim(
    x: np.ndarray, y: np.ndarray, *, scales: int | None = None, window: int = 11
) -> Float[np.ndarray, " n"]:
    """The multi-scale structural similarity of ``x[i]`` and ``y[i]``: 1 for equal images, about 0 for unrelated ones.

    ``prod_{s < S} cs_s^(w_s) * ssim_S^(w_S)`` where ``cs``, the contrast and structure term, and ``ssim`` are means
    over the places where the Gaussian window (sigma 1.5) fits, and images are halved by 2 x 2 means between scales;
    K1 = .01, K2 = .03 (Wang, Simoncelli & Bovik 2003). Per channel, then averaged over the channels. Negative terms
    have no fractional power and count as 0. Odd sides repeat their last row or column before they are halved.

    Five scales with the window of 11 need images of 161 pixels. Smaller ones use as many scales as fit, with the
    weights of the finest renormalized to sum to 1, which makes another metric of it: give it ``ms_ssim_name``.

    Args:
      x, y: ``[n, h, w, c]``, uint8 or float, in [0, 255].
      scales: 1 to 5; None: as many as fit.
      window: side of the Gaussian window, odd.

    Returns:
      f64[n].

    Raises:
      ValueError: if shapes differ, pixels lie outside [0, 255], or the scales do not fit.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 4 or x.shape != y.shape:
        raise ValueError(f"x and y must both be [n, h, w, c], not {x.shape} and {y.shape}")
    for images in (x, y):
        if images.size and not (images.min() >= 0 and images.max() <= 255):
            raise ValueError(
                f"pixels must be in [0, 255], not [{images.min():g}, {images.max():g}]"
            )
    scales = _scales(x.shape, scales, window)
    with jax.enable_x64(True):
        return np.asarray(_ms_ssim(x, y, scales, window))


def ms_ssim_name(shape: tuple[int, ...], *, scales: int | None = None, window: int = 11) -> str:
    """The name under which to report ``ms_ssim`` of images ``[..., h, w, c]``, such as ``"MS-SSIM-2s11w"``."""
    return f"MS-SSIM-{_scales(shape, scales, window)}s{window}w"


def ms_ssim_diversity(
    images: np.ndarray,
    labels: Int[np.ndarray, " n"],
    *,
    seed: int,
    pairs: int = 500,
    scales: int | None = None,
    window: int = 11,
) -> float:
    """Mean ``ms_ssim`` of random pairs of different images of one class; the lower, the more diverse.

    Odena et al. 2017 (arXiv:1610.09585). The first image of a pair is any image whose class has another, the second
    any other image of that class. For one number without classes give equal labels.

    Args:
      images: ``[n, h, w, c]``, uint8 or float, in [0, 255].
      labels: ``[n]``.
      seed: of the pairs.
      pairs: how many.
      scales, window: as in ``ms_ssim``.

    Raises:
      ValueError: as ``ms_ssim``, if there are not as many labels as images, or if no class has two images.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if labels.shape != images.shape[:1] or pairs < 1:
        raise ValueError(
            f"needs one label per image and pairs >= 1, not {labels.shape} labels, "
            f"{len(images)} images and {pairs} pairs"
        )
    order = np.argsort(labels, kind="stable")
    _, start, count = np.unique(labels[order], return_index=True, return_counts=True)
    start, count = np.repeat(start, count), np.repeat(count, count)
    eligible = np.flatnonzero(count > 1)
    if not eligible.size:
        raise ValueError("no class has two images")
    rng = np.random.default_rng(seed)
    first = rng.choice(eligible, pairs)
    step = rng.integers(1, count[first])  # around the class, never back to the first image
    second = start[first] + (first - start[first] + step) % count[first]
    x, y = images[order[first]], images[order[second]]
    return float(ms_ssim(x, y, scales=scales, window=window).mean())


def _scales(shape: tuple[int, ...], scales: int | None, window: int) -> int:
    """``scales``, or as many as fit: the window must fit into the image halved ``scales - 1`` times."""
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive, not {window}")
    side = min(shape[-3:-1])
    fit = sum(side > (window - 1) * 2**s for s in range(len(SCALE_WEIGHTS)))
    if not 1 <= (fit if scales is None else scales) <= fit:
        raise ValueError(
            f"images of {shape[-3]}x{shape[-2]} hold {fit} scales with a window of {window}, "
            f"not {scales or 1}"
        )
    return scales or fit


@functools.partial(jax.jit, static_argnums=(2, 3))
def _ms_ssim(x, y, scales: int, window: int):
    """One pair after the other: their temporaries stay in the cache, and memory does not grow with the pairs."""
    weights = np.array(SCALE_WEIGHTS[:scales])
    weights /= weights.sum()

    def of_pair(pair):
        x, y = (jnp.moveaxis(image, -1, 0).astype(jnp.float64) for image in pair)
        product = 1.0
        for s, weight in enumerate(weights):
            luminance, contrast = _ssim_terms(x, y, window)
            last = s == scales - 1
            term = jnp.mean(luminance * contrast if last else contrast, axis=(1, 2))
            product *= jnp.maximum(term, 0) ** weight
            x, y = _halve(x), _halve(y)
        return jnp.mean(product)

    return lax.map(of_pair, (x, y))


def _ssim_terms(x, y, window: int):
    """The maps of luminance and of contrast and structure of images ``[c, h, w]`` in [0, 255]."""
    distance = np.arange(window) - window // 2
    weights = np.exp(-(distance**2) / (2 * 1.5**2))
    weights /= weights.sum()

    conv = functools.partial(
        lax.conv, window_strides=(1, 1), padding="VALID", precision=lax.Precision.HIGHEST
    )

    def blur(image):
        columns = conv(image[:, None], weights.reshape(1, 1, -1, 1))
        return conv(columns, weights.reshape(1, 1, 1, -1))[:, 0]

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = blur(x), blur(y)
    squares = mean_x**2 + mean_y**2
    variances = blur(x**2 + y**2) - squares
    covariance = blur(x * y) - mean_x * mean_y
    return (2 * mean_x * mean_y + c1) / (squares + c1), (2 * covariance + c2) / (variances + c2)


def _halve(image):
    """``[c, h, w]`` by 2 x 2 means, after an odd side has repeated its last row or column."""
    _, h, w = image.shape
    image = jnp.pad(image, ((0, 0), (0, h % 2), (0, w % 2)), mode="edge")
    return lax.reduce_window(image, 0.0, lax.add, (1, 2, 2), (1, 2, 2), "VALID") / 4


def _log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
    top = x.max(axis=axis, keepdims=True)
    return top + np.log(np.exp(x - top).sum(axis=axis, keepdims=True))
