"""What an attack on a trained model finds: who was in its training set, and how large epsilon must be.

*Membership inference* gives a score to records of the training set (members) and to others of the same distribution.
LOGAN (Hayes et al. 2019, arXiv:1705.07663) takes D's logit; the full black-box attack of GAN-Leaks (Chen et al. 2020,
arXiv:1909.03935) takes how near the nearest of many samples of G is. The area under the ROC is 1/2 where nothing leaks.
What counts is whether *some* members are found with few false alarms, the true positive rate at 1 % false ones (Carlini
et al. 2022, arXiv:2112.03570). A number near chance is no proof of privacy: a stronger attack may exist.

*An audit* (Steinke, Nasr & Jagielski 2023, arXiv:2305.08846) looks for canaries, each of which was in the training with
probability 1/2 (``bpgan.privacy.canaries``). Of an (epsilon, delta)-private training too many right guesses are
improbable, so guesses give a lower bound of epsilon, with a confidence. It is no estimate: it says nothing of how much
greater epsilon is.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bpgan.metrics.neighbors import nearest

Scores = Float[np.ndarray, " n"]


# A lower bound of epsilon --------------------------------------------------------------------------------------------


def p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """The probability, at most, of v right guesses or more if the training is (epsilon, delta)-private.

    With ``s = 1 / (1 + exp(-epsilon))`` and ``tail(k) = P[Bin(r, s) >= k]``,

        p = tail(v) + 2 m delta max_{i = 1..v} (tail(v - i) - tail(v)) / i.

    Theorem 5.2 of Steinke, Nasr & Jagielski 2023, arXiv:2305.08846, as its appendix D computes it.

    Args:
      m: canaries, each of which was in with probability 1/2, independently.
      r: those of which it was guessed whether they were in; the others are left out.
      v: right guesses.
      epsilon, delta: the claim.
    """
    s = 1 / (1 + math.exp(-epsilon))
    tail = float(_tail(v, r, s))
    if delta == 0 or v == 0:
        return tail
    i = np.arange(1, v + 1)
    steepest = float(np.max((_tail(v - i, r, s) - tail) / i))
    return min(tail + 2 * m * delta * max(steepest, 0.0), 1.0)


def _tail(k: int | np.ndarray, r: int, s: float) -> np.ndarray:
    """``P[Bin(r, s) >= k]``, as a regularized incomplete beta function."""
    from scipy.special import betainc

    some = np.maximum(k, 1)
    return np.where(np.less(k, 1), 1.0, betainc(some, r - some + 1.0, s))


def one_run_epsilon(m: int, r: int, v: int, delta: float, confidence: float = 0.95) -> float:
    """The least epsilon that v right guesses of r do not refute: 0 if they refute none.

    Of an (epsilon, delta)-private training this is at most epsilon with this confidence. Even if all r guesses are
    right it is at most ``ceiling(r, confidence)``.

    Args:
      m, r, v, delta: see ``p_value``.
      confidence: of the bound.

    Raises:
      ValueError: if not ``0 <= v <= r <= m``, or for a delta or a confidence out of range.

    >>> round(one_run_epsilon(1000, 100, 90, 1e-5), 2)
    1.63
    """
    if not 0 <= v <= r <= m:
        raise ValueError(f"must be 0 <= v <= r <= m, not v={v}, r={r}, m={m}")
    if not (0 <= delta < 1 and 0 < confidence < 1):
        raise ValueError(f"{delta=} must be in [0, 1) and {confidence=} in (0, 1)")

    def is_refuted(epsilon: float) -> bool:
        return p_value(m, r, v, epsilon, delta) <= 1 - confidence

    if not is_refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while is_refuted(high):
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low


def ceiling(r: int, confidence: float = 0.95) -> float:
    """The bound if all of r guesses are right and delta is 0, ``logit((1 - confidence)^(1/r))``: the greatest one."""
    s = (1 - confidence) ** (1 / r)
    return max(math.log(s / (1 - s)), 0.0)


def count_right(scores: Scores, included: Bool[np.ndarray, " n"], r: int) -> int:
    """Right guesses of those r canaries whose scores say most: the highest are said to be in, the lowest not.

    As many of each, for as many are in as not, but for chance. Which of equal scores is guessed does not depend on what
    is right.
    """
    order = np.argsort(scores, kind="stable")
    high = r - r // 2
    return int(included[order[len(order) - high :]].sum() + (~included[order[: r // 2]]).sum())


class Bound(NamedTuple):
    """A lower bound of epsilon.

    Attributes:
      epsilon: the bound, at this ``delta`` and with this ``confidence``.
      canaries: how many there are.
      included: how many of them were in.
      guesses, correct: those that give the bound.
      ceiling: what the bound would be if all of these guesses were right, with delta 0.
    """

    epsilon: float
    delta: float
    confidence: float
    canaries: int
    included: int
    guesses: int
    correct: int
    ceiling: float


def lower_bound(
    scores: Scores,
    included: Bool[np.ndarray, " n"],
    delta: float,
    confidence: float = 0.95,
    guesses: Sequence[int] = (),
) -> Bound:
    """The best of the lower bounds that several numbers of guesses give.

    Few guesses are surer, many can prove more. As the best of k bounds is taken, each has the confidence
    ``1 - (1 - confidence) / k``.

    Args:
      scores: float ``[m]``, of each canary: greater if it rather was in the training.
      included: bool ``[m]``: whether it was.
      delta: at which epsilon is meant.
      confidence: of the result.
      guesses: how many to try; empty: all, a half and a quarter of the canaries.

    Raises:
      ValueError: if there are no canaries, as many scores as flags or fewer than guesses; for scores that are not
        finite.
    """
    m = len(scores)
    if m == 0 or len(included) != m or not np.isfinite(scores).all():
        raise ValueError(f"need a finite score of each canary: {m} of {len(included)}")
    tried = sorted({max(r, 1) for r in (guesses or (m, m // 2, m // 4))})
    each = 1 - (1 - confidence) / len(tried)
    found = []
    for r in tried:
        v = count_right(scores, included, r)
        epsilon = one_run_epsilon(m, r, v, delta, each)
        found.append(
            Bound(epsilon, delta, confidence, m, int(included.sum()), r, v, ceiling(r, each))
        )
    return max(found, key=lambda bound: (bound.epsilon, bound.correct))


# Membership inference ------------------------------------------------------------------------------------------------


class Attack(NamedTuple):
    """How well scores tell members from others.

    Attributes:
      auc: the chance that a member has the greater score than another record, ties by half.
      auc_low, auc_high: its confidence interval (DeLong et al. 1988).
      tpr: share of the members above a threshold that at most ``at`` of the others exceed.
      tpr_low, tpr_high: its Clopper-Pearson interval.
      fpr, fpr_high: share of the others above it, and a Clopper-Pearson upper bound of that.
      at: the false positive rate that was asked for.
      members, others: how many there are.
      confidence: of the intervals.
    """

    auc: float
    auc_low: float
    auc_high: float
    tpr: float
    tpr_low: float
    tpr_high: float
    fpr: float
    fpr_high: float
    at: float
    members: int
    others: int
    confidence: float

    @property
    def says_something(self) -> bool:
        """Whether chance is outside an interval on the side of a leak."""
        return self.auc_low > 0.5 or self.tpr_low > self.fpr_high


def attack(members: Scores, others: Scores, at: float = 0.01, confidence: float = 0.95) -> Attack:
    """What scores tell, greater ones meaning a member.

    Raises:
      ValueError: if there are fewer than two of either, or one is not finite.
    """
    n, m = len(members), len(others)
    if min(n, m) < 2 or not (np.isfinite(members).all() and np.isfinite(others).all()):
        raise ValueError(f"need two finite scores or more of each, not {n} and {m}")
    auc, auc_low, auc_high = _auc(members, others, confidence)
    threshold = np.sort(others)[m - 1 - int(at * m + 1e-9)]
    hits, alarms = int((members > threshold).sum()), int((others > threshold).sum())
    tpr_low, tpr_high = clopper_pearson(hits, n, confidence)
    return Attack(
        auc, auc_low, auc_high, hits / n, tpr_low, tpr_high, alarms / m,
        clopper_pearson(alarms, m, confidence)[1], at, n, m, confidence,
    )  # fmt: skip


def _auc(members: Scores, others: Scores, confidence: float) -> tuple[float, float, float]:
    """The area and its interval, from the variances of both sides' placements (DeLong et al. 1988)."""
    import scipy.stats

    n, m = len(members), len(others)
    ranks = scipy.stats.rankdata(np.concatenate([members, others]))
    above = (ranks[:n] - scipy.stats.rankdata(members)) / m  # of each member, the others below it
    below = 1 - (ranks[n:] - scipy.stats.rankdata(others)) / n
    auc = float(above.mean())
    error = math.sqrt(above.var(ddof=1) / n + below.var(ddof=1) / m)
    reach = float(scipy.stats.norm.ppf((1 + confidence) / 2)) * error
    return auc, max(auc - reach, 0.0), min(auc + reach, 1.0)


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a probability of which k in n were seen (Clopper & Pearson 1934)."""
    from scipy.special import betaincinv

    beyond = (1 - confidence) / 2
    low = float(betaincinv(k, n - k + 1, beyond)) if k else 0.0
    return low, float(betaincinv(k + 1, n - k, 1 - beyond)) if k < n else 1.0


def roc(members: Scores, others: Scores, points: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates, increasing, from (0, 0) or more to (1, 1).

    Args:
      members, others: scores, greater ones meaning a member.
      points: how many to keep at most, at false positive rates that are apart on a logarithmic axis; of each the
        greatest true positive rate that has no more false ones. 0: one for each threshold.
    """
    scores = np.concatenate([members, others])
    is_member = np.arange(len(scores)) < len(members)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of equal scores
    true, false = (np.append(0, np.cumsum(which[order])[last]) for which in (is_member, ~is_member))
    if points:
        kept = np.unique(np.append(0, np.rint(np.geomspace(1, len(others), points - 1))))
        true, false = true[np.searchsorted(false, kept, "right") - 1], kept
    return false / len(others), true / len(members)


def nearness(x: np.ndarray, samples: np.ndarray) -> Scores:
    """GAN-Leaks' score of each image: minus the Euclidean distance of its pixels to the nearest of the samples.

    Exact, in blocks. Calibrated it is this, less the same to the samples of a generator that was trained on other
    records: what is easy to draw is near to the samples of both.

    Args:
      x, samples: uint8 ``[n, h, w, c]``.
    """
    a, b = (part.reshape(len(part), -1).astype(np.float64) / 255 for part in (x, samples))
    return -nearest(a, b, 1)[0][:, 0]
