"""Measures of mixtures against closed forms: hand-made samples, and real ones (SCIENCE T2.10, oracle control)."""

import jax
import numpy as np
import pytest
from scipy import integrate

from bpgan import metrics
from bpgan.data import toys

MIXTURES = {"ring8": toys.ring(), "grid25": toys.grid()}
PAIR, STD = np.array([[-1.0, 0.0], [1.0, 0.0]]), 0.1


def cross(n: int, radius: float, center=PAIR[0]) -> np.ndarray:
    """``n`` points at each of ``center + radius (+-1, 0)`` and ``center + radius (0, +-1)``."""
    arms = radius * np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    return np.repeat(center + arms, n, axis=0)


def test_high_quality_ends_at_three_standard_deviations():
    x = np.concatenate([cross(3, 2.99 * STD), cross(1, 3.01 * STD)])
    found = metrics.modes(x, PAIR, STD)
    assert found.captured == 1 and found.high_quality == 0.75
    assert metrics.modes(cross(1, 3.01 * STD), PAIR, STD).captured == 0


def test_reverse_kl_is_that_of_the_nearest_modes():
    """Shares 3/4 and 1/4, however far from the modes; with an empty mode it is finite: log k."""
    x = np.concatenate([cross(3, 0.5, PAIR[0]), cross(1, 0.5, PAIR[1])])
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    np.testing.assert_allclose(metrics.modes(x, PAIR, STD).reverse_kl, expected, rtol=1e-12)
    np.testing.assert_allclose(metrics.modes(x[:12], PAIR, STD).reverse_kl, np.log(2), rtol=1e-12)


def test_std_ratio_is_that_of_a_gaussian_cut_at_three():
    """Of real samples within 3 standard deviations a coordinate has variance ``E[r^2 / 2 | r < 3]``, by quadrature."""
    density = lambda r: r * np.exp(-(r**2) / 2)  # noqa: E731
    mass, _ = integrate.quad(density, 0, 3)
    moment, _ = integrate.quad(lambda r: r**2 / 2 * density(r), 0, 3)
    radius, n = 0.7 * STD, 25
    variance = radius**2 / 2 * 4 * n / (4 * n - 1)  # of a coordinate of a cross, unbiased
    expected = np.sqrt(variance / (moment / mass)) / STD
    outliers = cross(5, 4 * STD)  # not of high quality, so they do not count
    for x in (cross(n, radius), np.concatenate([cross(n, radius), outliers])):
        np.testing.assert_allclose(metrics.modes(x, PAIR, STD).std_ratio, expected, rtol=1e-9)


def test_width_is_about_the_mean_of_the_samples():
    """Points beside a mode are points, not a wide mode."""
    beside = np.tile(PAIR[0] + [STD, 0.0], (50, 1))
    found = metrics.modes(np.concatenate([beside, -beside]), PAIR, STD)
    assert found.captured == 2 and found.high_quality == 1 and found.std_ratio < 1e-9


def test_one_sample_captures_a_mode():
    found = metrics.modes(np.concatenate([cross(5, STD), PAIR[1:]]), PAIR, STD)
    assert found.captured == 2 and found.std_ratio > 0.5


def test_nothing_near_a_mode():
    found = metrics.modes(np.zeros((50, 2)), PAIR, STD)
    assert found.captured == 0 and found.high_quality == 0 and found.std_ratio == 0


@pytest.mark.parametrize("name", MIXTURES)
def test_real_samples_reach_the_known_values(name):
    """The oracle control: all modes, 98.89 %, (k - 1) / 2 n and a ratio of 1."""
    mixture, n = MIXTURES[name], 2500
    k = len(mixture.centers)
    draw = jax.vmap(lambda key: mixture.draw(key, n))
    samples = np.asarray(draw(jax.random.split(jax.random.key(0), 20)))
    runs = [metrics.modes(x, mixture.centers, mixture.std) for x in samples]
    assert all(run.captured == k for run in runs)
    share = 1 - np.exp(-4.5)
    error = np.sqrt(share * (1 - share) / n / 20)
    assert abs(np.mean([r.high_quality for r in runs]) - share) < 4 * error
    known = (k - 1) / (2 * n)  # 2 n KL is chi-squared with k - 1 degrees of freedom
    spread = known * np.sqrt(2 / (k - 1) / 20)
    assert abs(np.mean([r.reverse_kl for r in runs]) - known) < 4 * spread
    assert abs(np.mean([r.std_ratio for r in runs]) - 1) < 0.01


def test_the_mixtures_of_the_literature():
    """Ring: radius 1, std 0.01. Lattice: {-4, ..., 4}^2, std 0.05, all divided by 2 sqrt 2."""
    ring, grid = MIXTURES["ring8"], MIXTURES["grid25"]
    np.testing.assert_allclose(np.linalg.norm(ring.centers, axis=1), 1)
    neighbors = np.linalg.norm(ring.centers - np.roll(ring.centers, 1, axis=0), axis=1)
    np.testing.assert_allclose(neighbors, 2 * np.sin(np.pi / 8))
    ticks = np.array([-4.0, -2, 0, 2, 4]) / np.sqrt(8)
    lattice = sorted(map(tuple, grid.centers))
    np.testing.assert_allclose(lattice, [(x, y) for x in ticks for y in ticks], atol=1e-15)
    np.testing.assert_allclose([ring.std, grid.std], [0.01, 0.05 / np.sqrt(8)])
