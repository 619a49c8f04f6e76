"""Memorization tests against dgm-eval, scikit-learn, closed forms, and generators that copy (T3.6).

References: ``tests/references/neighbors.json``, made by ``make_neighbors.py`` there.
"""

import json
import math
import pathlib

import numpy as np
import pytest
from references import make_neighbors

from bpgan.metrics.memorization import (
    authenticity,
    closest_pairs,
    data_copying,
    neighbor_ratio,
    two_sample_accuracy,
)

REFERENCES = json.loads(
    (pathlib.Path(__file__).parent / "references" / "neighbors.json").read_text()
)["copying"]


def inputs(case):
    return make_neighbors.blobs(case["kind"], case["f"], case["seed"])


@pytest.fixture(params=REFERENCES, ids=lambda case: f"{case['kind']}-{case['f']}")
def reference(request):
    return request.param


@pytest.mark.medium
def test_data_copying_equals_dgm_eval(reference):
    """Through principal components where there are 90 features, and with a cell of too few fakes left out."""
    result = data_copying(*inputs(reference), seed=0)
    assert result.score == pytest.approx(reference["ct"], rel=1e-9)
    assert np.isnan(result.z).sum() == (reference["kind"] == "missing")
    np.testing.assert_allclose(sorted(result.weight), [0.2, 0.3, 0.5], atol=0.06)


def test_authenticity_equals_dgm_eval(reference):
    """Whose distances are float32, and whose percentages are."""
    result = authenticity(*inputs(reference))
    assert result.fake == pytest.approx(reference["authpct"], rel=1e-6)
    assert result.held_out == pytest.approx(reference["authpct_test"], rel=1e-6)


def test_two_sample_accuracy_equals_scikit_learn(reference):
    fake, train, _ = inputs(reference)
    assert two_sample_accuracy(train, fake) == pytest.approx(reference["two_sample"], rel=1e-12)


@pytest.mark.medium
@pytest.mark.parametrize("f", [1, 2, 3])
def test_authenticity_of_fresh_data_is_one_minus_the_chance_of_reciprocal_neighbors(f):
    """T3.6: 33.3, 37.8, 40.7 % in 1, 2, 3 dimensions: volume of a ball over that of its union with a copy moved by
    its radius."""
    reciprocal = {1: 2 / 3, 2: 6 * math.pi / (8 * math.pi + 3 * math.sqrt(3)), 3: 16 / 27}[f]
    rng = np.random.RandomState(f)
    fresh, train, test = (rng.rand(5000, f) for _ in range(3))
    result = authenticity(fresh, train, test)
    for value in result:
        assert abs(value - 100 * (1 - reciprocal)) < 2
    # The two values are of two different sets.
    assert result.fake == authenticity(fresh, train, fresh).held_out != result.held_out


RNG = np.random.RandomState(0)
TRAIN, TEST, FRESH = (RNG.randn(900, 6) for _ in range(3))
COPIES = TRAIN[RNG.permutation(900)]
HALF = np.concatenate([COPIES[:450], FRESH[450:]])
NOISE = 2 * RNG.randn(900, 6)


def test_copies_are_found():
    assert authenticity(COPIES, TRAIN, TEST).fake == 0
    assert data_copying(COPIES, TRAIN, TEST, seed=0).score < -10
    assert two_sample_accuracy(TRAIN, COPIES) == (0, 0, 0)
    ratio = neighbor_ratio(COPIES, TRAIN, TEST)
    assert ratio.ratio == 0 and ratio.copies == 1 and ratio.test_copies == 0
    assert ratio.nearer == 1 and ratio.ks == 1
    assert ratio.ks_p < 1e-100 and ratio.mann_whitney_p < 1e-100


def test_half_copies_are_found():
    result = authenticity(HALF, TRAIN, TEST)
    assert abs(result.fake - result.held_out / 2) < 4
    assert data_copying(HALF, TRAIN, TEST, seed=0).score < -6
    assert abs(two_sample_accuracy(TRAIN, HALF).fake - 0.25) < 0.04
    ratio = neighbor_ratio(HALF, TRAIN, TEST)
    assert ratio.copies == 0.5 and abs(ratio.nearer - 0.75) < 0.03 and ratio.ratio < 0.6


def test_fresh_data_pass():
    result = authenticity(FRESH, TRAIN, TEST)
    assert abs(result.fake - result.held_out) < 7  # three standard errors
    assert abs(data_copying(FRESH, TRAIN, TEST, seed=0).score) < 3
    accuracy = two_sample_accuracy(TEST, FRESH)
    assert abs(accuracy.overall - 0.5) < 0.05
    ratio = neighbor_ratio(FRESH, TRAIN, TEST)
    assert abs(ratio.ratio - 1) < 0.05 and abs(ratio.nearer - 0.5) < 0.05
    assert ratio.ks_p > 0.001 and ratio.mann_whitney_p > 0.001 and ratio.copies == 0


def test_the_test_set_itself_is_the_null():
    assert abs(data_copying(TEST, TRAIN, TEST, seed=0).score) < 0.01
    ratio = neighbor_ratio(TEST, TRAIN, TEST)
    assert ratio.ratio == 1 and ratio.nearer == 0.5 and ratio.ks == 0
    assert ratio.ks_p == 1 and ratio.mann_whitney_p > 0.99
    result = authenticity(TEST, TRAIN, TEST)
    assert result.fake == result.held_out


def test_noise_is_no_copy():
    result = authenticity(NOISE, TRAIN, TEST)
    assert result.fake > result.held_out + 15
    assert data_copying(NOISE, TRAIN, TEST, seed=0).score > 10
    ratio = neighbor_ratio(NOISE, TRAIN, TEST)
    assert ratio.ratio > 1.5 and ratio.nearer < 0.2


def test_copying_in_one_cell_shows_in_that_cell():
    """C_T looks cell by cell: copies in one, underfitting in another."""
    fake, train, test = make_neighbors.blobs("fresh", 5, 0)
    cell = fake[:, 0] > 6
    twin = np.concatenate([fake[~cell], train[train[:, 0] > 6]])
    result = data_copying(twin, train, test, seed=0)
    largest = result.weight.argmax()
    assert result.z[largest] < -10 and (np.abs(np.delete(result.z, largest)) < 3).all()
    assert result.score == pytest.approx(result.weight @ result.z, rel=1e-12)


@pytest.mark.medium
def test_the_cells_depend_on_the_seed_alone():
    a, b = (data_copying(FRESH, TRAIN, TEST, cells=7, seed=3) for _ in range(2))
    np.testing.assert_array_equal(a.z, b.z)
    assert len(a.z) == 7 and a.weight.sum() == pytest.approx(1)


def test_missing_modes_and_copies_differ_in_the_rates():
    """Xu et al. 2018: fakes of one mode are hard to tell, the reals they miss are easy."""
    real = RNG.randn(600, 4) + 50 * (np.arange(600) % 4)[:, None]
    one_mode = RNG.randn(600, 4)
    accuracy = two_sample_accuracy(real, one_mode)
    assert accuracy.real > 0.75 and accuracy.fake > 0.7
    assert accuracy.overall == pytest.approx((accuracy.real + accuracy.fake) / 2)
    assert two_sample_accuracy(real, one_mode + 1000) == (1, 1, 1)
    # By half where it is a tie: every row is there twice in either set.
    twice = np.repeat(RNG.randn(50, 4), 2, axis=0)
    assert two_sample_accuracy(twice, twice) == (0.5, 0.5, 0.5)


def test_overall_is_weighted_by_the_sizes():
    real, fake = RNG.randn(300, 2), RNG.randn(100, 2)
    accuracy = two_sample_accuracy(real, fake)
    assert accuracy.overall == pytest.approx(0.75 * accuracy.real + 0.25 * accuracy.fake)
    assert abs(accuracy.real - 299 / 399) < 0.1 and abs(accuracy.fake - 99 / 399) < 0.15


def test_ratio_where_the_median_is_zero():
    x = np.arange(4.0)[:, None]
    same = neighbor_ratio(x, x, x)
    assert math.isnan(same.ratio) and same.nearer == 0.5 and same.mann_whitney_p == 1
    assert neighbor_ratio(x + 0.5, x, x).ratio == math.inf


def test_closest_pairs():
    samples = np.array([[0.0], [10.0], [10.5], [20.0], [0.0], [24.0]])
    distances, pairs = closest_pairs(samples, 3)
    np.testing.assert_array_equal(distances, [0, 0.5, 4])
    np.testing.assert_array_equal(pairs, [[0, 4], [1, 2], [3, 5]])
    assert len(closest_pairs(samples).pairs) == 3


def test_wrong_input():
    good = np.random.RandomState(0).randn(30, 2)
    for function in (authenticity, neighbor_ratio, lambda *s: data_copying(*s, seed=0)):
        for place in range(3):
            sets = [good] * 3
            sets[place] = good[:, :1]
            with pytest.raises(ValueError, match="as many features"):
                function(*sets)
            sets[place] = np.full((5, 2), np.nan)
            with pytest.raises(ValueError, match="finite"):
                function(*sets)
    with pytest.raises(ValueError, match="from 1 to 30"):
        data_copying(good, good, good, cells=31, seed=0)
    with pytest.raises(ValueError, match="no test example"):
        data_copying(good, good, good[:2], cells=3, seed=0)
    with pytest.raises(ValueError, match="more than 20 fakes"):
        data_copying(good[:20], good, good, cells=1, seed=0)
    with pytest.raises(ValueError, match="from 1 to 0"):
        two_sample_accuracy(good[:1], good)
    with pytest.raises(ValueError, match="pairs"):
        closest_pairs(good, 0)
