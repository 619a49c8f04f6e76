"""Errors of translations and trivial answers, against closed forms and linear algebra."""

import numpy as np
import pytest
import scipy.stats
from scipy import linalg

from bpgan.metrics import regression, translation


def images(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_errors_are_those_of_the_formulas():
    x = np.zeros((3, 2, 2, 1), np.uint8)
    y = x.copy()
    y[0], y[1, 0, 0] = 51, 255  # 0.2 everywhere; 1 in a fourth of the pixels; equal
    assert translation.absolute_error(x, y) == pytest.approx((0.2 + 0.25 + 0) / 3, abs=1e-12)
    rounding = 10 * np.log10(12 * 255**2)
    exact = (-10 * np.log10(0.04) - 10 * np.log10(0.25) + rounding) / 3
    assert translation.psnr(x, y) == pytest.approx(exact, abs=1e-10)
    # in chunks it is the same mean
    a, b = images(0, 2500, 2, 2, 1), images(1, 2500, 2, 2, 1)
    assert translation.absolute_error(a, b) == pytest.approx(
        np.abs(a / 255 - b / 255).mean(), rel=1e-12
    )
    for function in (translation.absolute_error, translation.psnr):
        with pytest.raises(ValueError, match="must both be"):
            function(x, y[:2])


def test_a_network_translates_in_whole_batches():
    """Of one shape, so that it is compiled once; rows that are there twice are left out."""
    shapes = []

    def apply(variables, x, first):
        shapes.append(x.shape)
        return variables * x + 0 * first

    x = images(0, 7, 2, 2, 1)
    found = translation.of_network(apply, np.float32(-1), batch=3)(x)
    np.testing.assert_array_equal(found, 255 - x)
    assert shapes == [(3, 2, 2, 1)]
    broken = translation.of_network(apply, np.float32(np.nan), batch=3)(x)
    np.testing.assert_array_equal(broken, 0)


def test_images_take_another_shape():
    x = images(0, 2, 4, 6, 3)
    doubled = translation.resized(x, (8, 6, 3))
    np.testing.assert_array_equal(doubled[:, ::2], x)
    np.testing.assert_array_equal(doubled[:, 1::2], x)
    np.testing.assert_array_equal(translation.resized(doubled, (4, 6, 3)), x)
    gray = translation.resized(x, (4, 6, 1))
    np.testing.assert_array_equal(gray[..., 0], np.rint(x.mean(-1)))
    np.testing.assert_array_equal(translation.resized(gray, (4, 6, 3)), np.repeat(gray, 3, -1))
    halves = np.array([[[[0], [10]], [[20], [30]]]], np.uint8)
    np.testing.assert_array_equal(translation.resized(halves, (1, 1, 1)).ravel(), [15])
    for shape, reason in (((6, 6, 3), "4 pixels"), ((4, 6, 2), "3 channels")):
        with pytest.raises(ValueError, match=reason):
            translation.resized(x, shape)


def test_ridge_finds_a_linear_map_and_shrinks_to_the_mean():
    rng = np.random.default_rng(0)
    a, queries = images(1, 400, 2, 3, 1), images(2, 20, 2, 3, 1)
    weights = rng.dirichlet(np.ones(6), 4).T  # means of pixels, which stay in range

    def linear(x):
        return np.rint(x.reshape(len(x), -1) @ weights).astype(np.uint8).reshape(-1, 2, 2, 1)

    found = translation.ridge(a, linear(a), queries)
    assert np.abs(found.astype(int) - linear(queries)).max() <= 2
    # of targets that have nothing to do with the inputs, by the normal equations
    b = images(3, 40, 2, 2, 1)
    x, y = (v.reshape(40, -1) / 255 for v in (a[:40], b))

    def solved(rows, r, at):
        center, middle = x[rows].mean(0), y[rows].mean(0)
        gram = (x[rows] - center).T @ (x[rows] - center)
        ridge = r * np.trace(gram) / 6 * np.eye(6)
        weights = linalg.solve(gram + ridge, (x[rows] - center).T @ (y[rows] - middle))
        return (at - center) @ weights + middle

    held = np.arange(0, 40, 10)
    rest = np.setdiff1d(np.arange(40), held)
    errors = [np.square(solved(rest, r, x[held]) - y[held]).mean() for r in regression.RIDGES]
    r = regression.RIDGES[np.argmin(errors)]
    assert r > min(regression.RIDGES)
    exact = 255 * solved(np.arange(40), r, queries.reshape(20, -1) / 255)
    found = translation.ridge(a[:40], b, queries).reshape(20, -1)
    assert np.abs(found - exact).max() <= 0.5 + 1e-6


def test_trivial_answers():
    a, b = images(0, 30, 4, 4, 1), images(1, 30, 4, 4, 3)
    found = translation.trivial((a, b), a[7:9], (4, 4, 3))
    assert set(found) == {"mean", "identity", "nearest", "ridge"}
    np.testing.assert_array_equal(found["nearest"], b[7:9])  # of inputs that were seen
    np.testing.assert_array_equal(found["identity"], np.repeat(a[7:9], 3, -1))
    np.testing.assert_array_equal(found["mean"][1], np.rint(b.mean(0)))
    assert all(x.dtype == np.uint8 and x.shape == (2, 4, 4, 3) for x in found.values())
    odd = translation.trivial((a[:, :3], b), a[:2, :3], (4, 4, 3))
    assert "identity" not in odd


def test_coarse_images_have_few_levels_and_noise():
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    plain = translation.coarse(x, seed=0, deviation=0.0)
    np.testing.assert_array_equal(np.unique(plain), np.arange(16) * 17)
    assert np.abs(plain.astype(int) - x).max() <= 9
    many = np.full((1, 200, 200, 1), 119, np.uint8)  # a level: 7 * 17
    noisy = translation.coarse(many, seed=0).astype(float)
    assert noisy.mean() == pytest.approx(119, abs=0.1)
    assert noisy.std() == pytest.approx(np.hypot(4, 1 / np.sqrt(12)), rel=0.02)
    np.testing.assert_array_equal(noisy, translation.coarse(many, seed=0))
    assert (noisy != translation.coarse(many, seed=1)).any()


def test_attributes_are_read_from_images():
    """A brightness is linear in the greatest pixel; an angle is not linear in pixels, but in random features."""
    rng = np.random.default_rng(0)
    brightness, angle = rng.uniform(0.3, 1, 900), rng.uniform(-1, 1, 900)
    line = np.linspace(-1, 1, 12)
    distance = line[:, None] * np.cos(angle)[:, None, None] - line * np.sin(angle)[:, None, None]
    images = np.exp(-8 * np.square(distance)) * brightness[:, None, None]
    images = np.rint(255 * images)[..., None].astype(np.uint8)
    values = np.stack([brightness, angle], 1)
    read = regression.read_attributes(images[:700], values[:700], images[700:])
    assert np.all(regression.correlations(values[700:], read) > 0.98)
    assert np.all(np.abs(regression.correlations(values[699:-1], read)) < 0.25)  # of the row before
    expected = [scipy.stats.pearsonr(values[700:, i], read[:, i])[0] for i in range(2)]
    np.testing.assert_allclose(regression.correlations(values[700:], read), expected, rtol=1e-9)
