"""Does the generator copy its training set? Nearest-neighbor tests of fakes against train and held-out data.

The Fréchet distance, precision and coverage all reward a generator that returns training images. These do not, because
they compare the fakes with *fresh data*: whatever a fake's distance to the training set is, held-out reals have one
too, and a generator that has learned the distribution has the same. So every function here takes the test set, or says
what it measures where both sets are equal. Distances are those of ``bpgan.metrics.neighbors``, of pixels or features.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from bpgan.metrics.arrays import check_sets
from bpgan.metrics.neighbors import Features, nearest

_COMPONENTS = 64  # principal components that the cells are made of
_MIN_FAKES = 20  # a cell counts if it holds more fakes than this
_RESTARTS = 10
_TOLERANCE = 1e-5  # relative decrease of k-means' loss below which it stops


class NeighborRatio(NamedTuple):
    """How near fakes are to the training set, compared with held-out reals.

    Attributes:
      ratio: median distance of the fakes over that of the test set; 1 is ideal, below 1 is copying. Where the test
        median is 0, inf, or nan if that of the fakes is 0 too.
      nearer: chance that a fake is nearer than a test example, ties by half; 0.5 is ideal, near 1 is copying.
      ks, ks_p: the Kolmogorov-Smirnov statistic and its two-sided p-value.
      mann_whitney_p: two-sided p-value of the Mann-Whitney test, which ``nearer`` is the statistic of.
      copies, test_copies: share at distance exactly 0.
      fake, test: the distances to the nearest training example, f64[m] and f64[t].
    """

    ratio: float
    nearer: float
    ks: float
    ks_p: float
    mann_whitney_p: float
    copies: float
    test_copies: float
    fake: Float[np.ndarray, " m"]
    test: Float[np.ndarray, " t"]


def neighbor_ratio(fake: Features, train: Features, test: Features) -> NeighborRatio:
    """Compares ``d(fake, nearest train)`` with ``d(test, nearest train)``.

    Args:
      fake, train, test: features ``[m, f]``, ``[n, f]``, ``[t, f]``; ``test`` was not trained on.

    Raises:
      ValueError: if a set is not a finite matrix with at least one row, or the numbers of features differ.
    """
    fake, train, test = check_sets(fake, train, test)
    of_fake, of_test = nearest(fake, train, 1)[0][:, 0], nearest(test, train, 1)[0][:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.median(of_fake) / np.median(of_test)
    ks: Any = scipy.stats.ks_2samp(of_fake, of_test)
    u = _mann_whitney(of_test, of_fake)
    # Without a spread SciPy divides by zero; then nothing can be told apart.
    constant = of_fake.min() == of_test.max() and of_fake.max() == of_test.min()
    p = 1.0 if constant else scipy.stats.mannwhitneyu(of_fake, of_test, method="asymptotic").pvalue
    return NeighborRatio(
        ratio=float(ratio),
        nearer=u / (len(of_fake) * len(of_test)),
        ks=float(ks.statistic),
        ks_p=float(ks.pvalue),
        mann_whitney_p=float(p),
        copies=float(np.mean(of_fake == 0)),
        test_copies=float(np.mean(of_test == 0)),
        fake=of_fake,
        test=of_test,
    )


class DataCopying(NamedTuple):
    """The statistic C_T and what it averages.

    Attributes:
      score: C_T; about 0 for a good generator, far below -3 for copying, far above 0 for underfitting.
      z: the z-score of each cell, f64[cells]; nan in cells that do not count.
      weight: the share of the test set in each cell, f64[cells].
    """

    score: float
    z: Float[np.ndarray, " c"]
    weight: Float[np.ndarray, " c"]


def data_copying(
    fake: Features, train: Features, test: Features, *, cells: int = 3, seed: int
) -> DataCopying:
    """The data-copying statistic C_T: are fakes nearer to the training set than test examples, cell by cell?

    The training set is divided by k-means. In each cell, with ``m`` fakes and ``t`` test examples,
    ``z = (U - (m t / 2 - 1/2)) / sqrt(m t (m + t + 1) / 12)`` where U counts the pairs in which the fake is farther
    from the cell's training examples (Mann-Whitney; ties by half). ``C_T`` is the mean of z weighted by the test
    examples in a cell, over the cells that hold more than 20 fakes. Meehan et al. 2020, arXiv:2004.05675, with the
    choices of dgm-eval (Stein et al. 2023): 3 cells, tau = 20 / m, the first 64 principal components of the training
    set where there are more features.

    Under the null its variance is below 1, since it averages independent z-scores; it grows with the square root of
    the sample sizes when there is an effect, so compare values at equal sizes only.

    Args:
      fake, train, test: features ``[m, f]``, ``[n, f]``, ``[t, f]``; ``test`` was not trained on.
      cells: clusters of the training set.
      seed: of k-means (the best of 10 k-means++ starts).

    Raises:
      ValueError: if a set is not a finite matrix, the numbers of features differ, there are fewer training examples
        than cells, a cell holds no test example, or no cell holds more than 20 fakes.
    """
    fake, train, test = _principal(*check_sets(fake, train, test))
    if not 1 <= cells <= len(train):
        raise ValueError(f"cells must be from 1 to {len(train)} for {len(train)} rows, not {cells}")
    centers = _k_means(train, cells, np.random.default_rng(seed))
    of_fake, of_train, of_test = (_assign(x, centers)[0] for x in (fake, train, test))
    weight = np.bincount(of_test, minlength=cells) / len(test)
    if not weight.all():
        raise ValueError(f"a cell holds no test example: fewer cells than {cells} are needed")
    z = np.full(cells, np.nan)
    for c in range(cells):
        q, t, p = fake[of_fake == c], train[of_train == c], test[of_test == c]
        if len(q) > _MIN_FAKES:
            m, n = len(q), len(p)
            u = _mann_whitney(nearest(q, t, 1)[0][:, 0], nearest(p, t, 1)[0][:, 0])
            z[c] = (u - (m * n / 2 - 0.5)) / np.sqrt(m * n * (m + n + 1) / 12)
    counts = ~np.isnan(z)
    if not counts.any():
        raise ValueError(f"one cell at least must hold more than {_MIN_FAKES} fakes of {len(fake)}")
    return DataCopying(float(np.average(z[counts], weights=weight[counts])), z, weight)


class Authenticity(NamedTuple):
    """Percentages: of the fakes, and of the test set, which is what the fakes' is to be compared with."""

    fake: float
    held_out: float


def authenticity(fake: Features, train: Features, test: Features) -> Authenticity:
    """AuthPct: the percentage of examples that no training example would mistake for its own neighbor.

    With ``t`` the training example nearest to ``g``, g is authentic if ``d(g, t) > d(t, t')``, where ``t'`` is the
    training example nearest to t. Alaa et al. 2022, arXiv:2102.08921, as in dgm-eval.

    Its value says nothing without ``held_out``: for fresh data of the training distribution it is one minus the chance
    that nearest neighbors are mutual, 33.3, 37.8, 40.7 % in 1, 2, 3 dimensions (1 - 2/3, 1 - 6 pi / (8 pi + 3 sqrt 3),
    1 - 16/27) and towards 100 % in many; noise reaches 100. Copies give 0; so does a fake below ``held_out`` copy.

    Args:
      fake, train, test: features ``[m, f]``, ``[n, f]``, ``[t, f]``, ``n >= 2``; ``test`` was not trained on.

    Raises:
      ValueError: if a set is not a finite matrix, the numbers of features differ, or there is one training example.
    """
    fake, train, test = check_sets(fake, train, test)
    own = nearest(train, train, 1, exclude_self=True)[0][:, 0]

    def percentage(x):
        distances, index = nearest(x, train, 1)
        return 100 * float(np.mean(distances[:, 0] > own[index[:, 0]]))

    return Authenticity(percentage(fake), percentage(test))


class TwoSampleAccuracy(NamedTuple):
    """Shares of examples that their nearest neighbor classifies rightly: of all, of the reals, of the fakes."""

    overall: float
    real: float
    fake: float


def two_sample_accuracy(real: Features, fake: Features) -> TwoSampleAccuracy:
    """Leave-one-out accuracy of the 1-nearest-neighbor classifier that tells fakes from reals.

    Lopez-Paz & Oquab 2017, arXiv:1610.06545; the per-class rates are due to Xu et al. 2018, arXiv:1806.07755. For equal
    distributions and sizes it is 0.5 (to ``1 / (4 n)``: an example's own class has one example fewer). Near 1: the sets
    differ. Fakes well below 0.5: they sit on reals, copies or nearly so; fakes high and reals low: modes are missing.
    Below 0.5 overall: the fakes are nearer to the reals than fresh data would be.
    Where the nearest real and the nearest fake are at the same distance, the example counts by half.

    Args:
      real, fake: features ``[n, f]`` and ``[m, f]``, at least two rows each; of unequal sizes the larger class is
        favored (its rate is ``(n - 1) / (n + m - 1)`` for equal distributions).

    Raises:
      ValueError: if a set is not a finite matrix with at least two rows, or the numbers of features differ.
    """
    real, fake = check_sets(real, fake)

    def correct(x, other):
        own = nearest(x, x, 1, exclude_self=True)[0]
        return np.mean((own < (d := nearest(x, other, 1)[0])) + 0.5 * (own == d))

    of_real, of_fake = correct(real, fake), correct(fake, real)
    n, m = len(real), len(fake)
    return TwoSampleAccuracy(
        float((n * of_real + m * of_fake) / (n + m)), float(of_real), float(of_fake)
    )


class ClosestPairs(NamedTuple):
    """Pairs by increasing distance: f64[p], and int64[p, 2] indices with the lower one first."""

    distances: Float[np.ndarray, " p"]
    pairs: Int[np.ndarray, "p 2"]


def closest_pairs(samples: Features, pairs: int = 20) -> ClosestPairs:
    """The samples that are most alike: what to look at in the birthday test of Arora et al. 2018, arXiv:1706.08224.

    If a batch of ``s`` samples has duplicates with probability one half, the support is of size about ``s^2``. Which of
    the pairs are duplicates is for a person to say. Only pairs of a sample and its nearest other sample are listed: of
    ``c`` equal samples ``c / 2`` to ``c - 1`` pairs, not all of them.

    Args:
      samples: ``[n, f]``, two rows at least.
      pairs: how many pairs to return; fewer if there are fewer.

    Raises:
      ValueError: as ``nearest``, or if ``pairs`` is below 1.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, not {pairs}")
    distances, index = nearest(samples, samples, 1, exclude_self=True)
    both = np.sort(np.column_stack([np.arange(len(index)), index[:, 0]]), axis=1)
    both, first = np.unique(both, axis=0, return_index=True)
    distances = distances[first, 0]
    order = np.argsort(distances, kind="stable")[:pairs]
    return ClosestPairs(distances[order], both[order])


def _mann_whitney(x, y) -> float:
    """The number of pairs with ``x_i > y_j``, ties by half."""
    ranks = scipy.stats.rankdata(np.concatenate([x, y]))[: len(x)]
    return float(ranks.sum() - len(x) * (len(x) + 1) / 2)


def _principal(fake, train, test) -> list[np.ndarray]:
    """The sets on the first principal components of ``train``, if they have more features than that; float64."""
    mean = train.mean(axis=0, dtype=np.float64)
    sets = [x - mean for x in (fake, train, test)]
    if train.shape[1] <= _COMPONENTS:
        return sets
    centered = sets[1]
    _, vectors = np.linalg.eigh(centered.T @ centered)
    return [x @ vectors[:, -_COMPONENTS:] for x in sets]


def _assign(x, centers):
    """The nearest center of each row, and its squared distance."""
    squares = np.einsum("cf,cf->c", centers, centers)[None, :] - 2 * x @ centers.T
    nearest_center = squares.argmin(axis=1)
    squares = squares.min(axis=1) + np.einsum("nf,nf->n", x, x)
    return nearest_center, np.maximum(squares, 0)


def _k_means(x, cells: int, rng: np.random.Generator):
    """Centers of the best of several runs of Lloyd's algorithm from k-means++ (Arthur & Vassilvitskii 2007)."""
    best, best_loss = None, np.inf
    for _ in range(_RESTARTS):
        centers = x[rng.integers(len(x))][None]
        while len(centers) < cells:
            odds = _assign(x, centers)[1]
            total = odds.sum()
            row = rng.choice(len(x), p=odds / total if total > 0 else None)
            centers = np.concatenate([centers, x[row][None]])
        label, squares = _assign(x, centers)
        loss, before = squares.sum(), np.inf
        while loss < (1 - _TOLERANCE) * before:
            # A center that lost its last row stays where it is.
            for c in np.unique(label):
                centers[c] = x[label == c].mean(axis=0)
            label, squares = _assign(x, centers)
            loss, before = squares.sum(), loss
        if loss < best_loss:
            best, best_loss = centers, loss
    return best
