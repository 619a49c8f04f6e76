"""The normal numbers of a private release: their law, their tails, and that they are the same bits everywhere."""

from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats

from bpgan import threefry
from bpgan.privacy import noise

N = 1_000_002
KEY = jax.random.key(24)
draw = jax.jit(noise.normal, static_argnums=1)


@pytest.fixture(scope="module")
def z():
    return np.asarray(draw(KEY, N), float)


def box_muller(x, y):
    """Of words, in float64, by the textbook: the radius of one, the angle of the other."""
    radius = np.sqrt(-2 * np.log((x.astype(float) + 0.5) / 2**32))
    lower = (y & 0x3FFFFFFF).astype(np.int64)
    signed = np.where(lower >= 2**29, lower - 2**30, lower)
    angle = np.pi / 4 + 2 * np.pi * signed / 2**32
    first, second = (1 - 2.0 * (y >> shift & 1) for shift in (31, 30))
    return radius * np.cos(angle) * first, radius * np.sin(angle) * second


def test_pairs_are_those_of_box_and_muller():
    """Whatever the words are, the extreme ones included: so the law of a pair is exact but for rounding."""
    rng = np.random.default_rng(0)
    ends = np.array([0, 1, 2, 2**29 - 1, 2**29, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 3 * 2**30])
    ends = np.concatenate([ends, 2**32 - 1 - ends]).astype(np.uint32)
    x, y = (grid.ravel() for grid in np.meshgrid(ends, ends))
    random = rng.integers(0, 2**32, (2, 100_000), np.uint32)
    small = rng.integers(0, 2**12, 10_000, np.uint32)  # the long tail
    x = np.concatenate([x, random[0], small])
    y = np.concatenate([y, random[1], random[1, :10_000]])
    found = jax.jit(noise.pair)(x, y)
    for a, b in zip(found, box_muller(x, y), strict=True):
        assert np.all(np.isfinite(a))
        apart = (
            x < 2**32 - 2**20
        )  # else u is so near to 1 that float32 has few numbers there, and the radius is small
        np.testing.assert_allclose(a[apart], b[apart], rtol=0, atol=4e-6)
        np.testing.assert_allclose(a[~apart], b[~apart], rtol=0, atol=3e-4)
    assert 6.7 < np.abs(found).max() < 6.77


def test_numbers_are_pairs_of_the_counters():
    """Of Threefry's blocks in their order: first numbers of all pairs, then the second ones."""
    for n in (1, 1003):
        low = np.arange(2 * -(-n // 4), dtype=np.uint32)
        key: Any = np.asarray(jax.random.key_data(KEY))
        counters: Any = (np.zeros_like(low), low)
        words = threefry.encrypt(key, *counters)
        expected = np.concatenate(box_muller(*words))[:n]
        found = draw(KEY, n)
        assert found.shape == (n,) and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_law_is_normal(z):
    assert scipy.stats.kstest(z, "norm").pvalue > 1e-3
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(z**power) - moment) < 4 * np.sqrt(variance / N), power
    for bound in (1, 2, 3, 4, 5):
        for tail in (z > bound, z < -bound):
            p = scipy.stats.norm.sf(bound)
            low, high = scipy.stats.binom.interval(1 - 1e-4, N, p)
            assert low <= tail.sum() <= high, bound


def test_numbers_do_not_depend_on_each_other(z):
    """Neither in a pair nor from pair to pair, nor do their sizes."""
    a, b = z[: N // 2], z[N // 2 :]
    for f in (lambda x: x, np.square, np.abs, lambda x: np.abs(x) > 3):
        for first, second in ((a, b), (a[1:], a[:-1]), (a[1:], b[:-1]), (b[1:], a[:-1])):
            found = np.corrcoef(f(first), f(second))[0, 1]
            assert abs(found) < 4.5 / np.sqrt(len(first))
    assert abs(np.corrcoef(a, np.square(b))[0, 1]) < 4.5 / np.sqrt(len(a))
    assert len(np.unique(np.abs(z))) > 0.9 * N  # no block is taken twice


def test_the_bits_are_the_same_everywhere():
    """For many keys at once, with JAX's own key or bpgan's, on one device or eight."""
    n, keys = 1003, jax.random.split(KEY, 8)
    each = np.stack([draw(key, n) for key in keys])

    def numbers(key):
        return noise.normal(threefry.unroll(key), n)

    np.testing.assert_array_equal(jax.jit(jax.vmap(numbers))(keys), each)
    np.testing.assert_array_equal(jax.pmap(numbers)(keys), each)
    assert not np.isclose(each[0], each[1]).any()
