"""Nearest neighbors, precision/recall and density/coverage against prdc, torch-fidelity and closed forms (T3.4).

References: ``tests/references/neighbors.json``, made by ``make_neighbors.py`` there.
"""

import json
import pathlib

import numpy as np
import pytest
from references import make_neighbors

from bpgan.metrics import neighbors
from bpgan.metrics.neighbors import (
    ball_counts,
    density_coverage,
    expected_coverage,
    nearest,
    precision_recall,
)

REFERENCES = json.loads(
    (pathlib.Path(__file__).parent / "references" / "neighbors.json").read_text()
)


def inputs(case):
    return getattr(make_neighbors, case["make"])(case["n"], case["m"], case["f"], case["seed"])


def distance_matrix(x, y):
    """All distances from float64 differences, one query at a time: independent of the blocked engine."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return np.stack([np.sqrt(((row - y) ** 2).sum(1)) for row in x])


def identify(case):
    return "-".join(str(case[key]) for key in ("make", "f", "k"))


# --- The engine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", REFERENCES["nearest"], ids=identify)
def test_distances_are_those_of_scikit_learns_tree(case):
    real, fake = inputs(case)
    distances, _ = nearest(fake, real, case["k"])
    np.testing.assert_allclose(distances.sum(axis=0), case["sum"], rtol=1e-12, atol=1e-9)


SETS = {
    "gaussian": lambda rng: rng.randn(150, 20),
    "float32": lambda rng: rng.randn(150, 20).astype(np.float32),
    "far from 0": lambda rng: rng.randn(150, 20) + 1e6,
    "huge": lambda rng: rng.randn(150, 20) * 1e60,
    "tiny": lambda rng: rng.randn(150, 20) * 1e-60,
    "outlier": lambda rng: np.concatenate([rng.randn(149, 20) * 1e-3, np.full((1, 20), 1e3)]),
    "clusters below float32": lambda rng: (
        rng.randint(0, 2, (150, 1)) * 100.0 + 1e-3 * rng.randn(150, 20)
    ),
    "few distinct": lambda rng: rng.randn(4, 20)[rng.randint(0, 4, 150)],
    "one distinct": lambda rng: np.repeat(rng.randn(1, 20), 150, axis=0),
    "one feature": lambda rng: rng.randn(150, 1),
    "uint8": lambda rng: rng.randint(0, 256, (150, 20)).astype(np.uint8),
    "ties": lambda rng: rng.randint(0, 2, (150, 3)),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("exclude_self", [False, True])
def test_nearest_equals_sorting_all_distances(name, exclude_self, monkeypatch):
    """On data on which float32 fails, too; in several blocks, the last one not full, of several groups of points."""
    monkeypatch.setattr(neighbors, "_TILE", 150 * 40)
    x = SETS[name](np.random.RandomState(0))
    queries = x if exclude_self else SETS[name](np.random.RandomState(1))[:97]
    expected = distance_matrix(queries, x)
    if exclude_self:
        np.fill_diagonal(expected, np.inf)
    for k in (1, 5):
        distances, index = nearest(queries, x, k, exclude_self=exclude_self)
        np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :k], rtol=1e-13)
        # The indices belong to the distances, and none is named twice.
        np.testing.assert_allclose(np.take_along_axis(expected, index, 1), distances, rtol=1e-13)
        assert all(len(set(row)) == k for row in index)


def test_the_documented_limit_of_float64():
    """Clusters 1e8 times smaller than their distance: the squares are right to 1e-15 f of the squared norms."""
    rng = np.random.RandomState(0)
    x = rng.randint(0, 2, (150, 1)) * 100.0 + 1e-6 * rng.randn(150, 20)
    expected = np.sort(distance_matrix(x, x), axis=1)[:, 1:4]
    distances, _ = nearest(x, x, 3, exclude_self=True)
    limit = 1e-15 * 20 * ((x - x.mean(0)) ** 2).sum(1).max()
    np.testing.assert_allclose(distances**2, expected**2, atol=limit)
    assert (distances > 0).all()


def test_float64_is_a_rare_exception(monkeypatch):
    """The float32 search proves itself on ordinary data; else the engine would be right, and slow."""
    seen = []
    again = neighbors._candidates_on_host

    def counting(queries, points, which, *rest):
        seen.append(len(which))
        return again(queries, points, which, *rest)

    monkeypatch.setattr(neighbors, "_candidates_on_host", counting)
    rng = np.random.RandomState(0)
    for f in (2, 64, 1024):
        nearest(rng.randn(400, f), rng.randn(900, f), 5)
    assert len(seen) == 3 and max(seen) <= 2
    # And where float32 cannot tell, it does not pretend to.
    x = rng.randint(0, 2, (300, 1)) * 100.0 + 1e-3 * rng.randn(300, 20)
    nearest(x, x, 5, exclude_self=True)
    assert seen[-1] == 300


def test_the_rounding_bound_holds():
    """The proof of ``nearest`` rests on it: no float32 product is further off than gamma allows."""
    rng = np.random.RandomState(0)
    for f in (1, 30, 3000):
        x, y = rng.rand(50, f).astype(np.float32), -rng.rand(60, f).astype(np.float32)
        exact = x.astype(np.float64) @ y.T.astype(np.float64)
        error = np.abs(np.asarray(neighbors._products(x, y), np.float64) - exact)
        norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)[None, :]
        assert (error <= neighbors._gamma(f) * norms).all()


def test_equal_rows_are_at_distance_zero_and_equal_pairs_tie_exactly():
    rng = np.random.RandomState(3)
    x = rng.randn(60, 33) + 50
    distances, index = nearest(x, x, 1)
    assert (distances == 0).all() and (index[:, 0] == np.arange(60)).all()
    own, index = nearest(x, x, 1, exclude_self=True)
    # A copy of the neighbor lies exactly on the sphere.
    for strict, expected in ((False, 1), (True, 0)):
        for i in range(60):
            held, _ = ball_counts(x[index[i]], x[i : i + 1], own[i], strict=strict)
            assert held == [expected]


def test_lower_index_first_among_ties():
    x = np.array([[1.0], [0.0], [-1.0], [0.0]])
    _, index = nearest(np.array([[0.0]]), x, 4)
    np.testing.assert_array_equal(index, [[1, 3, 0, 2]])


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("strict", [False, True])
def test_ball_counts_equal_comparing_all_distances(name, strict, monkeypatch):
    monkeypatch.setattr(neighbors, "_TILE", 150 * 40)
    points, queries = SETS[name](np.random.RandomState(0)), SETS[name](np.random.RandomState(1))
    queries = np.concatenate([queries[:60], points[:37]])
    radii, _ = nearest(points, points, 3, exclude_self=True)
    radii = radii[:, -1]
    radii[:2] = 0, 1e200
    # The reference's distances must tie as ours do.
    rows = np.arange(150)
    matrix = np.stack(
        [neighbors._distances(queries, np.full(150, i), points, rows) for i in range(97)]
    )
    np.testing.assert_allclose(matrix, distance_matrix(queries, points), rtol=1e-13)
    inside = matrix < radii if strict else matrix <= radii
    per_query, per_ball = ball_counts(queries, points, radii, strict=strict)
    np.testing.assert_array_equal(per_query, inside.sum(1))
    np.testing.assert_array_equal(per_ball, inside.sum(0))


# --- The metrics --------------------------------------------------------------------------------------------------


@pytest.mark.medium
@pytest.mark.parametrize("case", REFERENCES["prdc"], ids=identify)
def test_equals_prdc(case):
    """All four, exactly, with duplicates and ties within and across the sets too."""
    real, fake = inputs(case)
    ours = precision_recall(real, fake, k=case["k"], strict=True)._asdict()
    ours |= density_coverage(real, fake, k=case["k"])._asdict()
    assert ours == pytest.approx(case["prdc"], rel=1e-15, abs=0)


@pytest.mark.medium
@pytest.mark.parametrize("case", REFERENCES["prdc"], ids=identify)
def test_equals_torch_fidelity(case):
    """Whose comparison is <=, and whose results are float32."""
    real, fake = inputs(case)
    ours = precision_recall(real, fake, k=case["k"])._asdict()
    assert ours == pytest.approx(case["torch_fidelity"], rel=1e-7)


def test_duplicates_tell_the_conventions_apart():
    x = np.repeat(np.arange(5.0)[:, None], 5, axis=0)  # radius 0 everywhere
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x, strict=True) == (0, 0)
    assert density_coverage(x, x, k=4) == (0, 0)
    # Each fake is in the balls of its five equals: 5 / 4.
    assert density_coverage(x, x, k=4, strict=False) == (1.25, 1)


def test_expectations_for_equal_distributions():
    """T3.4: coverage .969 in the limit, and the finite formula, and E[density] = 1, and precision = recall."""
    assert expected_coverage(10**7, 10**7) == pytest.approx(1 - 2**-5, abs=1e-6)
    assert expected_coverage(2, 1, 1) == pytest.approx(0.5)
    assert expected_coverage(1000, 1000) == pytest.approx(0.969, abs=1e-3)
    n, m, k, runs = 150, 60, 3, 60
    rng = np.random.RandomState(0)
    values = np.array(
        [
            (*density_coverage(x, y, k=k), *precision_recall(x, y, k=k))
            for x, y in ((rng.rand(n, 2), rng.rand(m, 2)) for _ in range(runs))
        ]
    )
    error = values.std(axis=0, ddof=1) / np.sqrt(runs)
    mean = values.mean(axis=0)
    # The chance that a fake is nearer than the k-th of the n - 1 other reals is k / n.
    assert abs(mean[0] - 1) < 4 * error[0] and error[0] < 0.01
    assert abs(mean[1] - expected_coverage(n, m, k)) < 4 * error[1] and error[1] < 0.01


def test_extremes():
    rng = np.random.RandomState(0)
    x = rng.randn(200, 5)
    assert precision_recall(x, x + 100) == (0, 0)
    assert density_coverage(x, x + 100) == (0, 0)
    assert precision_recall(x, x) == (1, 1)
    # Half the modes: the fakes are fine, half the reals are not reached.
    modes = x + 100 * (np.arange(200) % 2)[:, None]
    half = rng.randn(200, 5)
    precision, recall = precision_recall(modes, half)
    assert precision > 0.7 and recall <= 0.5
    density, coverage = density_coverage(modes, half)
    assert density > 0.7 and 0.4 < coverage <= 0.5


# --- Wrong input --------------------------------------------------------------------------------------------------

GOOD = np.ones((6, 2))


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.ones(6), "real numbers"),
        (np.ones((0, 2)), "real numbers"),
        (np.ones((6, 2), complex), "real numbers"),
        (np.full((6, 2), np.nan), "finite"),
        (np.full((6, 2), np.inf, np.float32), "finite"),
        (np.full((6, 2), 1e200), "below 1e150"),
        (np.ones((6, 3)), "as many features"),
    ],
)
def test_refuses_what_is_no_set_of_features(bad, message):
    for function in (
        lambda: nearest(bad, GOOD, 1),
        lambda: nearest(GOOD, bad, 1),
        lambda: precision_recall(GOOD, bad),
        lambda: density_coverage(bad, GOOD),
        lambda: ball_counts(bad, GOOD, np.ones(6), strict=True),
    ):
        with pytest.raises(ValueError, match=message):
            function()


def test_refuses_numbers_out_of_range():
    for k in (0, 7):
        with pytest.raises(ValueError, match="from 1 to 6"):
            nearest(GOOD, GOOD, k)
    with pytest.raises(ValueError, match="from 1 to 5"):
        precision_recall(GOOD, GOOD, k=6)
    with pytest.raises(ValueError, match="queries that are the points"):
        nearest(GOOD[:3], GOOD, 1, exclude_self=True)
    for radii in (np.ones(5), -np.ones(6), np.full(6, np.nan)):
        with pytest.raises(ValueError, match="radii"):
            ball_counts(GOOD, GOOD, radii, strict=True)
    with pytest.raises(ValueError, match="1 <= k < n"):
        expected_coverage(5, 5, 5)
