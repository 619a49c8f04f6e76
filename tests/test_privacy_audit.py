"""bpgan/privacy/audit.py: bounds of epsilon against anchors and jax-privacy, and attacks against closed forms."""

import numpy as np
import pytest
import scipy.stats

from bpgan.privacy import audit

ANCHORS = [
    ((100, 100, 100, 0.0), 3.4930),
    ((1000, 100, 100, 1e-5), 3.4654),
    ((1000, 100, 90, 1e-5), 1.6261),
    ((500, 50, 50, 1e-5), 2.7705),
    ((1000, 1000, 600, 1e-5), 0.2972),
    ((1000, 1000, 510, 1e-5), 0.0),
]


@pytest.mark.parametrize("counts, epsilon", ANCHORS)
def test_anchors(counts, epsilon):
    assert audit.one_run_epsilon(*counts) == pytest.approx(epsilon, abs=1e-3)


# jax_privacy 2.0.0, auditing.py: for each (m, n_guess, n_correct, delta) its
#     _epsilon_one_run(0.0, m, n_guess, n_correct, significance, delta) at 0.05 and at 0.01, and
#     _one_run_p_value(m, n_guess, n_correct, 1.0, delta).
# The file was imported by itself, beside dp-accounting 0.6.0; SciPy 1.17.1.
JAX_PRIVACY = [
    ((100, 100, 100, 0.0), 3.492965, 3.054876, 2.4843785557240162e-14),
    ((1000, 100, 100, 1e-05), 3.465376, 2.989193, 0.0005633089840961712),
    ((1000, 100, 90, 1e-05), 1.626144, 1.427312, 0.0008412885614385309),
    ((500, 50, 50, 1e-05), 2.770507, 2.305074, 0.0005293689640301188),
    ((1000, 1000, 600, 1e-05), 0.297227, 0.253051, 1.0),
    ((40, 10, 10, 0.0), 1.051873, 0.536326, 0.04360354279412869),
    ((200, 200, 140, 0.001), 0.556178, 0.248401, 0.8702916835039686),
    ((5000, 800, 720, 1e-06), 1.999813, 1.923704, 6.124701671243793e-05),
    ((10000, 300, 299, 0.0001), 2.167884, 0.0, 0.020696206075840648),
    ((64, 64, 50, 0.01), 0.0, 0.0, 0.36061458209903313),
]


@pytest.mark.parametrize("counts, at95, at99, p", JAX_PRIVACY)
def test_agrees_with_jax_privacy(counts, at95, at99, p):
    m, r, v, delta = counts
    assert audit.one_run_epsilon(*counts) == pytest.approx(at95, abs=1e-5)
    assert audit.one_run_epsilon(*counts, confidence=0.99) == pytest.approx(at99, abs=1e-5)
    assert audit.p_value(m, r, v, 1.0, delta) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize("r, bound", [(10, 1.0519), (100, 3.4930), (1000, 5.8091)])
def test_the_bound_of_right_guesses_only(r, bound):
    assert audit.ceiling(r) == pytest.approx(bound, abs=1e-3)
    assert audit.one_run_epsilon(r, r, r, 0.0) == pytest.approx(audit.ceiling(r), abs=1e-5)


@pytest.mark.parametrize("counts", [(10, 11, 5), (10, 5, 6), (10, 5, -1)])
def test_counts_that_cannot_be(counts):
    with pytest.raises(ValueError, match="0 <= v <= r <= m"):
        audit.one_run_epsilon(*counts, 0.0)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0])
def test_randomized_response_is_covered(epsilon):
    """Each coin is told right with probability e^eps / (1 + e^eps): the bound is above eps in 5 % of trials at most."""
    rng, m, trials = np.random.default_rng(0), 200, 400
    right = rng.binomial(m, 1 / (1 + np.exp(-epsilon)), trials)
    bound = {v: audit.one_run_epsilon(m, m, v, 0.0) for v in set(right.tolist())}
    above = sum(bound[v] > epsilon for v in right.tolist())
    assert above <= scipy.stats.binom(trials, 0.05).ppf(0.999)


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_the_best_of_several_numbers_of_guesses_is_covered_too(epsilon):
    """Scores of which the coin is flipped with probability 1 / (1 + e^eps), and how far they are says nothing."""
    rng, m, trials, above = np.random.default_rng(1), 120, 300, 0
    for _ in range(trials):
        included = rng.random(m) < 0.5
        told = included ^ (rng.random(m) < 1 / (1 + np.exp(epsilon)))
        scores = np.where(told, 1, -1) * rng.random(m)
        above += audit.lower_bound(scores, included, 0.0).epsilon > epsilon
    assert above <= scipy.stats.binom(trials, 0.05).ppf(0.999)


def test_guesses_are_of_the_highest_and_the_lowest_scores():
    included = np.array([True, False, True, True, False, False])
    scores = np.array([5.0, -5.0, -4.0, 0.1, 0.0, 4.0])
    assert [audit.count_right(scores, included, r) for r in (1, 2, 3, 4, 6)] == [1, 2, 2, 2, 4]
    flat = np.zeros(6)  # the first are said to be out, whatever is true
    assert audit.count_right(flat, included, 6) + audit.count_right(flat, ~included, 6) == 6


def test_few_sure_guesses_prove_more_than_all():
    """Of 400 canaries 100 are told for sure, of the others nothing is known."""
    rng = np.random.default_rng(2)
    included = rng.random(400) < 0.5
    scores = rng.normal(size=400)
    scores[:100] = np.where(included[:100], 9, -9)
    found = audit.lower_bound(scores, included, 1e-5)
    assert found.guesses == 100 and found.correct > 90
    assert found.epsilon > audit.lower_bound(scores, included, 1e-5, guesses=[400]).epsilon
    assert found.epsilon < found.ceiling and found.included == included.sum()


@pytest.mark.parametrize("scores", [np.zeros(0), np.zeros(3), np.array([1.0, np.nan])])
def test_scores_that_say_nothing(scores):
    with pytest.raises(ValueError, match="finite score"):
        audit.lower_bound(scores, np.zeros(2, bool), 0.0)


# Membership ---------------------------------------------------------------------------------------------------------


def test_an_attack_on_normal_scores():
    """Members one standard deviation up: AUC Phi(1 / sqrt 2), TPR Phi(1 - z_.99) at 1 %."""
    rng, phi = np.random.default_rng(0), scipy.stats.norm
    found = audit.attack(rng.normal(1, 1, 20_000), rng.normal(0, 1, 20_000))
    assert found.auc == pytest.approx(phi.cdf(2**-0.5), abs=0.006)
    assert found.auc_low < phi.cdf(2**-0.5) < found.auc_high
    assert found.tpr == pytest.approx(phi.cdf(1 - phi.ppf(0.99)), abs=0.01)
    assert found.tpr_low < found.tpr < found.tpr_high and found.fpr <= 0.01 < found.fpr_high
    assert found.says_something


def test_intervals_cover():
    """95 % intervals of the AUC and of the TPR hold the truth in about 95 % of 300 small attacks."""
    rng, phi = np.random.default_rng(3), scipy.stats.norm
    truth, covered = phi.cdf(0.7 / 2**0.5), 0
    for _ in range(300):
        found = audit.attack(rng.normal(0.7, 1, 100), rng.normal(0, 1, 80))
        covered += found.auc_low <= truth <= found.auc_high
    assert scipy.stats.binomtest(covered, 300, 0.95).pvalue > 1e-3


def test_the_auc_is_scipys():
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 9, 70) / 2, rng.integers(0, 8, 50) / 2  # with ties
    u = scipy.stats.mannwhitneyu(a, b).statistic
    assert audit.attack(a, b).auc == pytest.approx(u / (70 * 50), rel=1e-12)
    fpr, tpr = audit.roc(a, b)
    assert np.trapezoid(tpr, fpr) == pytest.approx(u / (70 * 50), rel=1e-12)
    assert fpr[0] == tpr[0] == 0 and fpr[-1] == tpr[-1] == 1


def test_scores_without_a_spread():
    found = audit.attack(np.zeros(50), np.zeros(60))
    assert (found.auc, found.auc_low, found.auc_high, found.tpr, found.fpr) == (0.5, 0.5, 0.5, 0, 0)
    assert not found.says_something


@pytest.mark.parametrize(
    "k, n, low, high", [(0, 10, 0.0, 0.30850), (5, 10, 0.18709, 0.81291), (10, 10, 0.69150, 1.0)]
)
def test_clopper_pearson(k, n, low, high):
    """Values of any table."""
    assert audit.clopper_pearson(k, n) == pytest.approx((low, high), abs=1e-5)


def test_a_memorizer_is_found_and_a_fresh_split_is_not():
    """Controls of GAN-Leaks: samples that are training images under noise, and samples of the distribution."""
    rng = np.random.default_rng(5)
    centers = rng.integers(60, 196, (10, 8, 8, 1))
    drawn = np.clip(centers[rng.integers(0, 10, 9000)] + rng.normal(0, 40, (9000, 8, 8, 1)), 0, 255)
    images = drawn.astype(np.uint8)
    members, others, fresh = images[:1500], images[1500:3000], images[3000:]
    copies = np.clip(members[rng.integers(0, 1500, 6000)] + rng.normal(0, 5, (6000, 8, 8, 1)), 0, 255)  # fmt: skip
    caught = audit.attack(*(audit.nearness(x, copies.astype(np.uint8)) for x in (members, others)))
    clean = audit.attack(*(audit.nearness(x, fresh) for x in (members, others)))
    assert caught.auc > 0.95 and caught.tpr_low > 0.5
    assert abs(clean.auc - 0.5) < 0.03 and clean.tpr < 0.05


def test_nearness_is_exact():
    rng = np.random.default_rng(6)
    x, samples = (rng.integers(0, 256, (n, 6, 6, 2), np.uint8) for n in (40, 90))
    far = np.sqrt(((x[:, None] / 255 - samples[None] / 255) ** 2).sum((2, 3, 4))).min(1)
    np.testing.assert_allclose(audit.nearness(x, samples), -far, rtol=1e-12)
    assert (audit.nearness(x, np.concatenate([samples, x])) == 0).all()


def test_calibration_takes_away_what_is_easy():
    """Records are plain or full of noise, which is far from all samples: that hides the members, but not calibrated."""
    rng = np.random.default_rng(7)

    def drawn(n):
        amount = rng.choice([5, 60], (n, 1, 1, 1))
        return np.clip(128 + amount * rng.normal(size=(n, 8, 8, 1)), 0, 255).astype(np.uint8)

    members, others, elsewhere = drawn(600), drawn(600), drawn(600)
    blur = np.clip(members + rng.normal(0, 45, members.shape), 0, 255).astype(np.uint8)
    own = [audit.nearness(x, blur) for x in (members, others)]
    reference = [audit.nearness(x, elsewhere) for x in (members, others)]
    calibrated = audit.attack(*(a - b for a, b in zip(own, reference, strict=True)))
    assert calibrated.tpr_low > 10 * audit.attack(*own).tpr > 0
