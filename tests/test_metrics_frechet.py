"""Fréchet and kernel distance against other people's code, optimal transport and closed forms (SCIENCE T3.1, T3.2)."""

import functools
import json
import math
import pathlib

import numpy as np
import pytest
import scipy.stats
from references import make_metrics

from bpgan.metrics import frechet, kernel
from bpgan.metrics.frechet import (
    Gaussian,
    frechet_bias,
    frechet_distance,
    frechet_distance_gaussians,
    frechet_infinity,
    gaussian,
    merge,
)
from bpgan.metrics.kernel import kernel_distance, kernel_distance_subsets

REFERENCE = json.loads(
    (pathlib.Path(__file__).parent / "references" / "metrics.json").read_text(encoding="utf-8")
)
PAIRS = make_metrics.feature_pairs()


def random_features(seed: int, n: int, f: int) -> np.ndarray:
    """Correlated Gaussian features with a spectrum over one decade."""
    rng = np.random.RandomState(seed)
    return rng.randn(n, f) @ (rng.randn(f, f) / np.sqrt(f) * np.logspace(0, -1, f)) + rng.randn(f)


def whitened(seed: int, n: int, f: int) -> np.ndarray:
    """Rows whose sample mean is 0 and whose sample covariance is the identity."""
    x = np.random.RandomState(seed).randn(n, f)
    x -= x.mean(axis=0)
    return np.linalg.solve(np.linalg.cholesky(np.cov(x, rowvar=False)), x.T).T


# Fréchet distance


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("package", ["torch-fidelity", "pytorch-fid"])
def test_agrees_with_public_implementations(name, package):
    x, y = PAIRS[name]
    expected = REFERENCE["frechet"][name][package]
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-6)
    moments = gaussian(x), gaussian(y)
    assert frechet_distance_gaussians(*moments) == pytest.approx(expected, rel=1e-6)


@pytest.mark.medium
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("n, f", [(200, 12), (300, 300), (301, 300), (20, 50), (2, 3)])
def test_cost_of_the_optimal_map(n, f, scale):
    """y = T x + s with T symmetric and positive definite *is* the optimal transport, so FD = mean |y - x|^2 (ddof 1).

    No square root of a matrix is involved, and it holds for covariances of any rank.
    """
    rng = np.random.RandomState(n)
    x = scale * random_features(n, n, f)
    q = np.linalg.qr(rng.randn(f, f))[0]
    t = q @ np.diag(rng.uniform(0.3, 2, f)) @ q.T
    y = x @ t + scale
    moved = y - x
    expected = np.sum(moved.mean(axis=0) ** 2) + np.sum(moved.var(axis=0, ddof=1))
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    from_moments = frechet_distance_gaussians(gaussian(x), gaussian(y))
    assert from_moments == pytest.approx(expected, rel=1e-6 if n <= f else 1e-9)


def test_isotropic_gaussians():
    """N(0, I) and N(s 1, c^2 I): f (s^2 + (c - 1)^2), from moments that hold exactly."""
    f = 10
    x, y = whitened(0, 500, f), 1.5 * whitened(1, 300, f) + 0.25
    assert frechet_distance(x, y) == pytest.approx(f * (0.25**2 + 0.5**2), rel=1e-10)


@pytest.mark.parametrize("name", PAIRS)
def test_of_a_set_to_itself_is_zero(name):
    """To 1e-12 of the trace, where roots of a singular product leave 1e-7; never below zero."""
    for x in PAIRS[name]:
        trace = x.var(axis=0, ddof=1).sum()
        shuffled = x[np.random.RandomState(0).permutation(len(x))]
        assert 0 <= frechet_distance(x, x) <= 1e-12 * trace
        assert 0 <= frechet_distance(x, shuffled) <= 1e-12 * trace
        assert 0 <= frechet_distance_gaussians(gaussian(x), gaussian(shuffled)) <= 1e-11 * trace


def test_constant_features():
    x = np.ones((5, 3))
    assert frechet_distance(x, x + 2) == pytest.approx(12)
    assert frechet_distance_gaussians(gaussian(x), gaussian(x + 2)) == pytest.approx(12)


def test_is_quadratic_in_the_features_and_blind_to_rotation():
    x, y = PAIRS["unequal"]
    q = np.linalg.qr(np.random.RandomState(0).randn(x.shape[1], x.shape[1]))[0]
    distance = frechet_distance(x, y)
    assert frechet_distance(3 * x @ q + 5, 3 * y @ q + 5) == pytest.approx(9 * distance, rel=1e-10)


def test_float32_features_lose_nothing():
    """The accumulation is in float64: features far from zero in float32 are as good as their exact copies."""
    x, y = (f.astype(np.float32) + np.float32(1000) for f in PAIRS["unequal"])
    exact = frechet_distance(x.astype(np.float64), y.astype(np.float64))
    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-9)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(*PAIRS["unequal"]), rel=1e-3)


def test_gaussian_of_many_blocks():
    x = random_features(0, 2 * 4096 + 77, 5) + 1e6
    moments = gaussian(x)
    np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.cov, np.cov(x - 1e6, rowvar=False), rtol=1e-8)
    assert moments.n == len(x)


def test_merging_batches():
    """Of any sizes, one row too, and of batches whose means differ."""
    x = random_features(0, 500, 6) + np.arange(500)[:, None] / 100
    batches = np.split(x, [1, 2, 40, 41, 300])
    merged, whole = functools.reduce(merge, map(gaussian, batches)), gaussian(x)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.cov, whole.cov, rtol=1e-11)
    assert merged.n == 500


# Its bias and its limit


def test_bias_formula():
    """By hand: for eigenvalues 1 and 3, 4 + (1*1*2/2 + 3*3*2/6 + 2 * 1*3/4) / 2 = 6.75; zeros add nothing."""
    q = np.linalg.qr(np.random.RandomState(0).randn(3, 3))[0]
    cov = q @ np.diag([1.0, 3.0, 0.0]) @ q.T
    assert frechet_bias(cov, 100, 50) == pytest.approx(6.75 * (1 / 100 + 1 / 50), rel=1e-7)
    assert frechet_bias(cov, 100, math.inf) == pytest.approx(0.0675, rel=1e-7)
    assert frechet_bias(np.eye(64), 10_000, 10_000) == pytest.approx(0.2208, rel=1e-12)


def test_bias_is_what_two_halves_of_one_gaussian_show():
    """T3.1: .2208 within 5 % for 64 independent features and 10,000 rows each."""
    rng = np.random.default_rng(0)
    distance = frechet_distance(rng.normal(size=(10_000, 64)), rng.normal(size=(10_000, 64)))
    assert distance == pytest.approx(0.2208, rel=0.05)


def test_bias_of_unequal_spectra_and_sizes():
    rng = np.random.default_rng(0)
    scales = np.logspace(0, -0.7, 16)
    values = [
        frechet_distance(rng.normal(size=(1500, 16)) * scales, rng.normal(size=(700, 16)) * scales)
        for _ in range(200)
    ]
    standard_error = np.std(values) / math.sqrt(len(values))
    expected = frechet_bias(np.diag(scales**2), 1500, 700)
    assert standard_error < 0.02 * expected
    assert abs(np.mean(values) - expected) < 4 * standard_error


def test_infinity_removes_the_bias_of_the_generated_samples():
    """Against exact moments, samples of the same Gaussian have FD about the bias and FD_inf about 0."""
    f, m = 32, 4000
    x = whitened(0, 200, f)
    values, errors = [], []
    for seed in range(4):
        y = np.random.default_rng(seed).normal(size=(m, f))
        value, error = frechet_infinity(x, y, seed=seed)
        values.append(value)
        errors.append(error)
    bias = frechet_bias(np.eye(f), math.inf, m)
    assert frechet_distance(x, y) == pytest.approx(bias, rel=0.2)
    assert abs(np.mean(values)) < 0.1 * bias
    assert 0 < max(errors) < 0.2 * bias


def test_infinity_is_a_line_through_subsets_of_the_documented_sizes(monkeypatch):
    """Sizes 5,000 ... 50,000 for 50,000 rows; intercept and its standard error as scipy's linregress gives them."""
    sizes, seen = [], []
    values = list(np.random.RandomState(0).rand(15))
    monkeypatch.setattr(frechet, "_root_of_rows", lambda rows: sizes.append(len(rows)))
    monkeypatch.setattr(frechet, "_distance", lambda *_: values[len(seen)])
    result = frechet_infinity(
        np.zeros((3, 1)),
        np.zeros((50_000, 1)),
        seed=0,
        progress=lambda done, points: seen.append((done, points)),
    )
    assert sizes.pop(0) == 3  # the reference, once and whole
    np.testing.assert_allclose(sizes, np.linspace(5000, 50_000, 15), atol=1)
    assert seen == [(i + 1, 15) for i in range(15)]
    line = scipy.stats.linregress(1 / np.array(sizes), values)
    assert result.value == pytest.approx(line.intercept, rel=1e-9)
    assert result.standard_error == pytest.approx(line.intercept_stderr, rel=1e-9)


@pytest.mark.parametrize(
    "m, f, smallest", [(10_000, 64, 1000), (10_000, 2048, 4096), (3000, 2048, 1500)]
)
def test_infinity_starts_above_the_number_of_features(monkeypatch, m, f, smallest):
    sizes = []
    monkeypatch.setattr(frechet, "_root_of_rows", lambda rows: sizes.append(len(rows)))
    monkeypatch.setattr(frechet, "_distance", lambda *_: 1.0 / len(sizes))
    x = np.zeros((2, f), np.float32)
    frechet_infinity(x, np.zeros((m, f), np.float32), seed=0, points=3)
    assert sizes[1] == smallest and sizes[-1] == m


def test_infinity_depends_on_the_seed_alone():
    x, y = PAIRS["unequal"]
    assert frechet_infinity(x, y, seed=1) == frechet_infinity(x, y, seed=1)
    assert frechet_infinity(x, y, seed=1) != frechet_infinity(x, y, seed=2)


# Kernel distance


@pytest.mark.parametrize("name", REFERENCE["kernel_subsets"])
def test_subsets_agree_with_torch_fidelity(name):
    x, y = PAIRS[name]
    subsets, size = make_metrics.KID_SUBSETS, make_metrics.KID_SIZE
    result = kernel_distance_subsets(x, y, seed=2020, subsets=subsets, size=size)
    assert result == pytest.approx(REFERENCE["kernel_subsets"][name], rel=1e-9)
    as_float32 = (x.astype(np.float32), y.astype(np.float32))
    result = kernel_distance_subsets(*as_float32, seed=2020, subsets=subsets, size=size)
    assert result == pytest.approx(REFERENCE["kernel_subsets"][name], rel=1e-5)


def test_all_pairs_agree_with_torch_fidelity():
    assert kernel_distance(*PAIRS["full_rank"]) == pytest.approx(
        REFERENCE["kernel_all"]["full_rank"], rel=1e-9
    )


def definition(x: np.ndarray, y: np.ndarray, *, biased: bool = False) -> float:
    """MMD^2 with whole kernel matrices."""
    k = lambda a, b: (np.einsum("if,jf->ij", a, b) / a.shape[1] + 1) ** 3  # noqa: E731
    if biased:
        return k(x, x).mean() + k(y, y).mean() - 2 * k(x, y).mean()
    off_diagonal = lambda m: m[~np.eye(len(m), dtype=bool)].mean()  # noqa: E731
    return off_diagonal(k(x, x)) + off_diagonal(k(y, y)) - 2 * k(x, y).mean()


@pytest.mark.parametrize("n, m", [(150, 97), (64, 64), (128, 3), (2, 65)])
def test_blocks_and_unequal_sizes(monkeypatch, n, m):
    x, y = random_features(0, n, 7), random_features(1, m, 7)
    monkeypatch.setattr(kernel, "_BLOCK", 64)
    assert kernel_distance(x, y) == pytest.approx(definition(x, y), rel=1e-10)
    assert kernel_distance(y, x) == pytest.approx(definition(x, y), rel=1e-10)


@pytest.mark.medium
def test_closed_form_for_shifted_gaussians():
    """T3.2: .2340474 for f = 32 and a shift of squared length 2.25; with the diagonal it is off by a third."""
    f, shift = 32, 1.5
    m = shift**2
    exact = (
        (1 + 3 / f)
        + (1 + 3 * m / f + 3 * (f + 2 * m + m**2) / f**2)
        + (m**3 + 6 * m**2 + 3 * m * f + 6 * m) / f**3
        - 2 * (1 + 3 * (f + m) / f**2)
    )
    assert exact == pytest.approx(0.2340474, abs=5e-8)
    rng = np.random.default_rng(0)
    unbiased, biased = [], []
    for _ in range(200):
        x, y = rng.normal(size=(200, f)), rng.normal(size=(160, f))
        y[:, 3] += shift
        unbiased.append(kernel_distance(x, y))
        biased.append(definition(x, y, biased=True))
    standard_error = np.std(unbiased) / math.sqrt(200)
    assert standard_error < 0.003
    assert abs(np.mean(unbiased) - exact) < 4 * standard_error
    assert np.mean(biased) - exact > 20 * standard_error


def test_is_not_clipped():
    """Sets of one distribution give values on both sides of zero, with mean zero."""
    rng = np.random.default_rng(0)
    values = [
        kernel_distance(rng.normal(size=(100, 8)), rng.normal(size=(60, 8))) for _ in range(100)
    ]
    assert 20 < np.sum(np.array(values) < 0) < 80
    assert abs(np.mean(values)) < 4 * np.std(values) / 10
    x = rng.normal(size=(30, 8))
    assert kernel_distance(x, x) < 0


# Mistakes

OK = np.arange(12.0).reshape(4, 3) ** 2
BAD_PAIRS = {
    "columns": (OK, OK[:, :2]),
    "vector": (OK[0], OK),
    "images": (OK, OK[None]),
    "no rows": (OK, OK[:0]),
    "one row": (OK[:1], OK),
    "no columns": (OK[:, :0], OK[:, :0]),
    "nan": (OK, np.where(OK == 4, np.nan, OK)),
    "inf": (np.where(OK == 4, np.inf, OK), OK),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_wrong_features_are_refused(name):
    for function in (
        frechet_distance,
        kernel_distance,
        functools.partial(kernel_distance_subsets, seed=0, size=2),
        functools.partial(frechet_infinity, seed=0),
    ):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            function(*BAD_PAIRS[name])


@pytest.mark.parametrize(
    "call",
    [
        lambda: gaussian(OK[:0]),
        lambda: gaussian(OK[0]),
        lambda: frechet_distance_gaussians(gaussian(OK), gaussian(OK[:1])),
        lambda: frechet_distance_gaussians(gaussian(OK), gaussian(OK[:, :2])),
        lambda: frechet_distance_gaussians(
            gaussian(OK), Gaussian(np.zeros(3), np.full((3, 3), np.nan), 4)
        ),
        lambda: frechet_distance_gaussians(
            gaussian(OK), Gaussian(np.zeros(3), np.zeros((2, 2)), 4)
        ),
        lambda: frechet_bias(np.ones((2, 3)), 10, 10),
        lambda: frechet_bias(np.eye(2), 0, 10),
        lambda: frechet_bias(np.eye(2), 10, -1),
        lambda: frechet_infinity(OK, np.ones((39, 3)), seed=0),
        lambda: frechet_infinity(OK, np.ones((50, 3)), seed=0, points=2),
        lambda: kernel_distance_subsets(OK, OK, seed=0, size=5),
        lambda: kernel_distance_subsets(OK, OK, seed=0, size=1),
        lambda: kernel_distance_subsets(OK, OK, seed=0, size=2, subsets=0),
    ],
)
def test_mistakes_are_refused(call):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        call()
