"""Inception score, Vendi score and MS-SSIM against other people's code and closed forms (SCIENCE T3.5)."""

import json
import math
import pathlib

import numpy as np
import pytest
from references import make_metrics

from bpgan.metrics import scores
from bpgan.metrics.scores import (
    inception_score,
    ms_ssim,
    ms_ssim_diversity,
    ms_ssim_name,
    vendi_score,
)

REFERENCE = json.loads(
    (pathlib.Path(__file__).parent / "references" / "metrics.json").read_text(encoding="utf-8")
)

# Inception score


def test_inception_score_agrees_with_torch_fidelity():
    logits = make_metrics.logits()
    assert inception_score(logits) == pytest.approx(REFERENCE["inception"], rel=1e-9)
    assert inception_score(logits + 700) == pytest.approx(REFERENCE["inception"], rel=1e-9)


def test_inception_score_bounds():
    """1 where all predictions are equal, the number of classes where they are certain and balanced."""
    k = 10
    certain = 1000 * np.eye(k)[np.arange(500) % k]
    assert inception_score(np.zeros((500, k))) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(certain, splits=1) == pytest.approx((k, 0), rel=1e-12)
    assert inception_score(certain[:1].repeat(500, 0)) == pytest.approx((1, 0), abs=1e-12)
    # Half of the classes.
    assert inception_score(certain[certain[:, :5].any(axis=1)], splits=1)[0] == pytest.approx(5)


def test_inception_score_lies_between_its_bounds():
    for scale in (0.1, 1, 10, 1e4):
        mean, std = inception_score(scale * np.random.RandomState(0).randn(203, 7), splits=5)
        assert 1 <= mean <= 7 and 0 <= std < 7


def test_inception_score_shuffles():
    """Sorted by class, every unshuffled split would hold one class and score 1."""
    certain = 1000 * np.eye(5)[np.repeat(np.arange(5), 200)]
    assert inception_score(certain, splits=5)[0] > 4.5
    assert inception_score(certain, splits=7, seed=1) != inception_score(certain, splits=7, seed=2)


# Vendi score


@pytest.mark.parametrize("name", REFERENCE["vendi"])
def test_vendi_agrees_with_its_authors(name):
    score = vendi_score(make_metrics.diverse_features()[name])
    for expected in REFERENCE["vendi"][name]:
        assert score == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n, f", [(6, 9), (6, 6)])
def test_vendi_of_orthogonal_rows_counts_them(n, f):
    rows = np.linalg.qr(np.random.RandomState(0).randn(f, f))[0][:n]
    lengths = np.linspace(0.1, 10, n)[:, None]  # cosines do not see them
    assert vendi_score(lengths * rows) == pytest.approx(n, rel=1e-9)
    assert vendi_score(np.tile(rows, (5, 1))) == pytest.approx(n, rel=1e-9)


def test_vendi_of_parallel_rows_is_one():
    row = np.random.RandomState(0).randn(4)
    for lengths in (
        np.linspace(1, 2, 50),
        np.logspace(-200, 200, 50),
    ):  # their squares are no floats
        assert vendi_score(np.outer(lengths, row)) == pytest.approx(1, rel=1e-9)
    assert vendi_score(np.outer(np.linspace(1, 2, 3), row)) == pytest.approx(1, rel=1e-9)


def test_vendi_of_unequal_groups():
    """Shares p of orthogonal groups give exp(entropy(p)), not the number of groups."""
    p = np.array([0.7, 0.2, 0.1])
    expected = math.exp(-(p * np.log(p)).sum())
    assert vendi_score(np.eye(3).repeat([7, 2, 1], axis=0)) == pytest.approx(expected, rel=1e-9)


# MS-SSIM


@pytest.mark.medium
@pytest.mark.parametrize("name", REFERENCE["ms_ssim"])
def test_ms_ssim_agrees_with_pytorch_msssim(name):
    x, y, scales, window = make_metrics.image_pairs()[name]
    expected = REFERENCE["ms_ssim"][name]
    for a, b in ((x, y), (y, x), (x.astype(np.float32), y.astype(np.float64))):
        values = ms_ssim(a, b, scales=scales, window=window)
        assert values.dtype == np.float64
        # The reference's window is rounded to float32.
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_one_scale_is_the_ssim_of_scikit_image():
    x, y, scales, window = make_metrics.image_pairs()["one_scale"]
    values = ms_ssim(x, y, scales=scales, window=window)
    np.testing.assert_allclose(values, REFERENCE["ssim"]["scikit-image"], rtol=1e-9)


@pytest.mark.parametrize("shape", [(28, 28, 1), (33, 45, 3), (11, 11, 1)])
def test_identical_images(shape):
    x = np.random.RandomState(0).randint(0, 256, (3, *shape)).astype(np.uint8)
    np.testing.assert_allclose(ms_ssim(x, x), 1, rtol=1e-12)
    np.testing.assert_allclose(ms_ssim(0 * x, 0 * x), 1, rtol=1e-12)


def test_independent_noise():
    x, y = np.random.RandomState(0).randint(0, 256, (2, 20, 96, 96, 1)).astype(np.uint8)
    assert ms_ssim(x, y).mean() < 0.05


def luminance(a: float, b: float) -> float:
    """SSIM of two flat images of brightness a and b."""
    c = (0.01 * 255) ** 2
    return (2 * a * b + c) / (a * a + b * b + c)


@pytest.mark.medium
@pytest.mark.parametrize(
    "h, w, window, exponent",
    [
        (28, 28, 11, 0.2856 / (0.0448 + 0.2856)),
        (28, 28, 7, 0.3001 / (0.0448 + 0.2856 + 0.3001)),
        (29, 31, 11, 0.2856 / (0.0448 + 0.2856)),
        (161, 161, 11, 0.1333 / 1.0001),
        (20, 300, 11, 1),
    ],
)
def test_flat_images(h, w, window, exponent):
    """Contrast is 1 at every scale, so only the luminance of the coarsest remains, to its share of the weights.

    Sides that are odd at some scale must not darken at the border.
    """
    x, y = np.full((1, h, w, 1), 40.0), np.full((1, h, w, 1), 200.0)
    np.testing.assert_allclose(
        ms_ssim(x, y, window=window), [luminance(40, 200) ** exponent], rtol=1e-9
    )


def test_channels_are_averaged():
    x, y = (np.random.RandomState(0).rand(2, 3, 28, 28, 2) * 255).astype(np.uint8)
    y = (y // 2 + x // 2).astype(np.uint8)
    both = ms_ssim(x, y)
    each = [ms_ssim(x[..., [c]], y[..., [c]]) for c in (0, 1)]
    np.testing.assert_allclose(both, np.mean(each, axis=0), rtol=1e-12)


@pytest.mark.parametrize(
    "shape, window, name",
    [
        ((28, 28, 1), 11, "MS-SSIM-2s11w"),
        ((28, 28, 1), 7, "MS-SSIM-3s7w"),
        ((10, 32, 32, 3), 11, "MS-SSIM-2s11w"),
        ((64, 512, 3), 11, "MS-SSIM-3s11w"),
        ((512, 64, 3), 11, "MS-SSIM-3s11w"),
        ((160, 160, 3), 11, "MS-SSIM-4s11w"),
        ((161, 161, 3), 11, "MS-SSIM-5s11w"),
        ((1024, 1024, 3), 11, "MS-SSIM-5s11w"),
    ],
)
def test_name_tells_scales_and_window(shape, window, name):
    assert ms_ssim_name(shape, window=window) == name
    assert ms_ssim_name(shape, window=window, scales=1) == f"MS-SSIM-1s{window}w"


# Diversity


def flat(*brightness: float) -> np.ndarray:
    return np.array(brightness, float)[:, None, None, None] * np.ones((1, 12, 12, 1))


def test_pairs_are_of_one_class_and_never_of_one_image():
    """Two images in class 5, one in each other class: every pair is that one pair."""
    images, labels = flat(10, 80, 250, 160), np.array([5, 3, 5, 9])
    value = ms_ssim_diversity(images, labels, pairs=40, seed=0)
    assert value == pytest.approx(luminance(10, 250), rel=1e-9)


def test_all_pairs_of_a_class_are_equally_likely():
    images, labels = flat(10, 0, 90, 250, 250), np.array([1, 2, 1, 1, 2])
    value = ms_ssim_diversity(images, labels, pairs=4000, seed=0)
    ones = (luminance(10, 90) + luminance(10, 250) + luminance(90, 250)) / 3
    assert value == pytest.approx(0.6 * ones + 0.4 * luminance(0, 250), abs=0.015)


def test_identical_images_of_a_class_have_no_diversity():
    labels = np.arange(60) % 4
    rng = np.random.RandomState(0)
    prototypes = rng.randint(0, 256, (4, 28, 28, 1)).astype(np.uint8)
    assert ms_ssim_diversity(prototypes[labels], labels, pairs=30, seed=0) == pytest.approx(1)
    noise = rng.randint(0, 256, (60, 28, 28, 1)).astype(np.uint8)
    assert ms_ssim_diversity(noise, labels, pairs=30, seed=0) < 0.1


def test_pairs_depend_on_the_seed():
    images, labels = np.random.RandomState(0).rand(20, 12, 12, 1) * 255, np.arange(20) % 2
    values = [ms_ssim_diversity(images, labels, pairs=10, seed=seed) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


# Mistakes

IMAGES = np.zeros((3, 28, 28, 1))


@pytest.mark.parametrize(
    "call",
    [
        lambda: inception_score(np.zeros(5)),
        lambda: inception_score(np.zeros((5, 3))),
        lambda: inception_score(np.zeros((5, 3)), splits=0),
        lambda: inception_score(np.full((20, 3), np.nan)),
        lambda: vendi_score(np.zeros((4, 0))),
        lambda: vendi_score(np.diag([1.0, 0.0])),
        lambda: vendi_score(np.full((2, 2), np.inf)),
        lambda: ms_ssim(IMAGES, IMAGES[:2]),
        lambda: ms_ssim(IMAGES[0], IMAGES[0]),
        lambda: ms_ssim(IMAGES, IMAGES - 1),
        lambda: ms_ssim(IMAGES + 256, IMAGES),
        lambda: ms_ssim(IMAGES, IMAGES * np.nan),
        lambda: ms_ssim(IMAGES, IMAGES, scales=3),
        lambda: ms_ssim(IMAGES, IMAGES, scales=0),
        lambda: ms_ssim(IMAGES, IMAGES, window=10),
        lambda: ms_ssim(IMAGES, IMAGES, window=29),
        lambda: ms_ssim_name((10, 10, 3)),
        lambda: ms_ssim_diversity(IMAGES, np.zeros(2), seed=0),
        lambda: ms_ssim_diversity(IMAGES, np.arange(3), seed=0),
        lambda: ms_ssim_diversity(IMAGES, np.zeros(3), seed=0, pairs=0),
    ],
)
def test_mistakes_are_refused(call):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        call()


def test_weights_are_those_of_the_paper():
    assert scores.SCALE_WEIGHTS == (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
