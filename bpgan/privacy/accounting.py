"""How much privacy the updates of a run cost: epsilon and delta, computed by dp-accounting.

A mechanism is ``(epsilon, delta)`` private if for any two datasets that differ in one record, which one of them has and
the other has not, and for every set S of outcomes::

    P[outcome in S] <= e^epsilon P'[outcome in S] + delta.

One update adds Gaussian noise of standard deviation ``noise_multiplier * clip`` to a sum of gradients, each no longer
than ``clip``, over a batch that every record joins with probability q, by itself (Poisson sampling). How many updates
there were is read from the state of the run, never from its flags.

Two accountants bound the same epsilon, and the smaller of the bounds holds: Renyi divergences (RDP; Mironov, Talwar &
Zhang 2019, arXiv:1908.10530), which are cheap, and privacy loss distributions (PLD; Doroshenko et al. 2022,
arXiv:2207.04380), which are tighter where their grid is fine enough.

**Buffers.** A batch has a fixed number of rows, and a run in which more records want to join one ends. Fix which of
the other records join which batch. If in no batch they fill the buffer, the record in question fits, too, and the run
is the ideal one, which is ``(epsilon, delta)`` private for every such choice. So the probability that they fill one
adds to delta, once and without a factor (``data.poisson.buffer_failure``).

**Order of the batches.** None of this holds for batches of a shuffled dataset (Chua et al. 2024, arXiv:2403.17673), so
a mechanism names its sampling, and only that which is accounted for is taken.
"""

import functools
import importlib.util
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bpgan.types import UserError, counted

ADJACENCY = "add or remove one record"
SAMPLINGS = {
    "poisson": "every record joins every batch with probability q, independently",
    "full": "every record is in every batch",
}
ACCOUNTANT = "dp-accounting: min(RDP, PLD)"
INTERVAL = 1e-4
"""The grid of the privacy losses. A grid of 1e-3 is valid, but looser than RDP after some 100,000 updates."""

MOST_NOISE, LEAST_NOISE = 1e3, 1e-2
"""Between which ``calibrate`` looks for a noise multiplier. Nothing is learned with more."""

_CELLS = 5e5  # of the grid for one update: more take minutes and change no digit that is shown
_BLOCK = 1000  # updates; PLDs of more are composed of blocks (see _distribution)


class Mechanism(NamedTuple):
    """What one update does with the records, and what is to be claimed of it.

    Attributes:
      sampling: one of ``SAMPLINGS``.
      q: the probability with which a record joins a batch.
      noise_multiplier: standard deviation of the noise over ``clip``, on the sum (not the mean) of the gradients.
      clip: the largest norm of the gradient of one record.
      delta: the target, without the failure of the buffers.
      failure: probability that a buffer is too small at any time in the whole run; it is added to delta.
    """

    sampling: str
    q: float
    noise_multiplier: float
    clip: float
    delta: float
    failure: float = 0.0


class Spent(NamedTuple):
    """What some updates cost.

    Attributes:
      rdp: epsilon by Renyi divergences.
      pld: epsilon by privacy loss distributions.
      epsilon: the smaller of the two, which holds.
      delta_total: delta, with the failure of the buffers.
    """

    rdp: float
    pld: float
    epsilon: float
    delta_total: float


# What is asked for -----------------------------------------------------------------------------------------------


def need() -> None:
    """Raises a UserError if dp-accounting is not installed."""
    if importlib.util.find_spec("dp_accounting") is None:
        raise UserError("privacy is accounted for by dp-accounting: pip install 'bpgan[privacy]'")


def check(mechanism: Mechanism, length: int) -> None:
    """Refuses what cannot be accounted for, or protects nobody.

    Args:
      length: records in the dataset.

    Raises:
      UserError: names what is at fault: ``sampling``, ``q``, ``noise_multiplier``, ``clip`` or ``delta``.
    """
    _check(mechanism)
    if mechanism.delta + mechanism.failure >= 1 / length:
        beside = f", with the {mechanism.failure:.1e} of the buffers" if mechanism.failure else ""
        reason = (
            f"must be{beside} less than 1/{length} = {1 / length:.1e}, one over the number of records:"
            " a mechanism that publishes one record as it is would pass otherwise"
        )
        raise UserError(reason, argument="delta", value=mechanism.delta)


def _check(mechanism: Mechanism) -> None:
    """The part of ``check`` that knows no dataset."""
    sampling, q, noise, clip, delta, failure = mechanism
    if sampling not in SAMPLINGS:
        reason = (
            f"must be {' or '.join(SAMPLINGS)}: nothing else is accounted for, shuffling above all"
        )
        raise UserError(reason, argument="sampling", value=sampling)
    if not 0 < q <= 1:
        raise UserError("a probability, must be in (0, 1]", argument="q", value=q)
    if sampling == "full" and q != 1:
        raise UserError("must be 1 with `sampling=full`", argument="q", value=q)
    if not 0 <= noise < math.inf:
        raise UserError("must be 0 or more", argument="noise_multiplier", value=noise)
    if not clip > 0:
        raise UserError("must be more than 0", argument="clip", value=clip)
    if noise and clip == math.inf:
        reason = "must be finite, as the noise is a multiple of it"
        raise UserError(reason, argument="clip", value=clip)
    if not 0 < delta < 1:
        raise UserError("a probability, must be in (0, 1)", argument="delta", value=delta)
    if not 0 <= failure < 1:
        raise UserError("a probability, must be in [0, 1)", argument="failure", value=failure)


# What was spent --------------------------------------------------------------------------------------------------


def epsilon(mechanism: Mechanism, updates: int) -> Spent:
    """What a number of updates cost.

    Takes 0.44 s for 450,000 updates at q = 1/469 and a noise multiplier of 1, on one core.

    >>> round(epsilon(Mechanism("poisson", 0.01, 4.0, 1.0, 1e-5), 10_000).epsilon, 3)
    0.947
    """
    return compose([(mechanism, updates)])


def compose(runs: Sequence[tuple[Mechanism, int]], delta: float | None = None) -> Spent:
    """What several runs on the same data cost together; a later one may have been chosen by what an earlier one gave.

    Args:
      runs: the mechanism of each with its number of updates.
      delta: at which epsilon is stated; by default the largest of the mechanisms'. The failures of all buffers are
        added to it.
    """
    delta = max((m.delta for m, _ in runs), default=0.0) if delta is None else delta
    total = delta + sum(m.failure for m, _ in runs)
    parts = _parts(runs)
    if not parts:
        return Spent(0.0, 0.0, 0.0, total)
    rdp = _by_rdp(parts, delta)
    pld = _by_pld(parts, delta, _interval(parts, rdp)) if rdp < math.inf else math.inf
    return Spent(rdp, pld, min(rdp, pld), total)


def _parts(runs: Sequence[tuple[Mechanism, int]]) -> dict[tuple[float, float], int]:
    """The updates of each pair of q and noise multiplier."""
    need()
    parts: dict[tuple[float, float], int] = {}
    for mechanism, updates in runs:
        _check(mechanism)
        if updates < 0:
            raise UserError("must be 0 or more", argument="updates", value=updates)
        if updates:
            which = (mechanism.q, mechanism.noise_multiplier)
            parts[which] = parts.get(which, 0) + updates
    return parts


def epsilon_rdp(mechanism: Mechanism, updates: int) -> float:
    """Epsilon by Renyi divergences alone: an upper bound for log lines, in microseconds after the first call."""
    return _by_rdp(_parts([(mechanism, updates)]), mechanism.delta)


def _by_rdp(parts: dict[tuple[float, float], int], delta: float) -> float:
    if not parts:
        return 0.0
    if any(noise == 0 for _, noise in parts):
        return math.inf
    from dp_accounting.rdp import compute_epsilon

    orders = _renyi(1.0, 1.0)[0]
    divergence = np.zeros(len(orders))
    for which, updates in parts.items():
        divergence += updates * _renyi(*which)[1]
    return float(compute_epsilon(orders.tolist(), divergence.tolist(), delta)[0])


@functools.lru_cache(64)
def _renyi(q: float, noise_multiplier: float) -> tuple[np.ndarray, np.ndarray]:
    """The orders, and the divergence of one update at each.

    A divergence so small that rounding has made it zero or negative is replaced by what rounding may have taken. Where
    the series of an order does not converge, dp-accounting leaves the order out, with a warning that helps nobody.
    """
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        accountant.compose(PoissonSampledDpEvent(q, GaussianDpEvent(noise_multiplier)))
    finally:
        logger.setLevel(level)
    return accountant.orders, np.maximum(accountant.rdp, 1e-12)


def _interval(parts: dict[tuple[float, float], int], rdp: float) -> float:
    """The grid: ``INTERVAL``, and coarser where epsilon is beyond 10 or one update may lose very much."""
    widest = max((0.5 / noise + 10) / noise for _, noise in parts)
    return max(INTERVAL, INTERVAL * rdp / 10, widest / _CELLS)


def _by_pld(parts: dict[tuple[float, float], int], delta: float, interval: float) -> float:
    each = [_distribution(q, noise, n, interval) for (q, noise), n in parts.items()]
    return float(functools.reduce(lambda a, b: a.compose(b), each).get_epsilon_for_delta(delta))


def _distribution(q: float, noise_multiplier: float, updates: int, interval: float) -> Any:
    """The privacy loss distribution of some updates, composed of blocks.

    ``PLDAccountant`` would compose them at once, for which dp-accounting 0.6.0 raises the size of the grid to the
    power of the number of updates, in whole numbers: two minutes for ten million updates. What blocks cut off at the
    tails, 1e-15 each, is added to delta by dp-accounting.
    """
    from dp_accounting.pld import privacy_loss_distribution

    def of(noise: float):
        return privacy_loss_distribution.from_gaussian_mechanism(
            standard_deviation=noise, value_discretization_interval=interval, sampling_prob=q
        )

    if q == 1:  # the sum of Gaussian mechanisms is one of less noise
        return of(noise_multiplier / math.sqrt(updates))
    one = of(noise_multiplier)
    blocks, rest = divmod(updates, _BLOCK)
    parts = [one.self_compose(_BLOCK).self_compose(blocks)] if blocks else []
    parts += [one.self_compose(rest)] if rest else []
    return functools.reduce(lambda a, b: a.compose(b), parts)


# What may be spent -----------------------------------------------------------------------------------------------


def calibrate(epsilon: float, delta: float, q: float, updates: int) -> float:
    """The least noise multiplier with which so many updates cost at most epsilon, to four digits, rounded up.

    Args:
      epsilon: the target. What the noise multiplier costs is just below it.
      delta: the target, without the failure of the buffers.
      q: the probability with which a record joins a batch.
      updates: in the whole run.

    Raises:
      UserError: if no noise reaches epsilon in so many updates, or an argument is not allowed.
    """
    need()
    if not 0 < epsilon < math.inf:
        raise UserError("must be more than 0", argument="epsilon", value=epsilon)
    if updates < 1:
        raise UserError("must be 1 or more", argument="updates", value=updates)
    _check(Mechanism("poisson", q, 1.0, 1.0, delta))

    def cost(noise: float) -> float:
        return compose([(Mechanism("poisson", q, noise, 1.0, delta), updates)]).epsilon

    def bound(noise: float) -> float:
        return epsilon_rdp(Mechanism("poisson", q, noise, 1.0, delta), updates)

    high = _smallest(lambda noise: bound(noise) <= epsilon, LEAST_NOISE, MOST_NOISE)
    if high is None and (least := cost(MOST_NOISE)) > epsilon:
        reason = (
            f"no noise multiplier up to {MOST_NOISE:,.0f} reaches it in {counted(updates, 'update')}"
            f" at `delta={delta:g}`, where epsilon is {least:.3g} or more; make fewer updates"
        )
        raise UserError(reason, argument="epsilon", value=epsilon)
    return _rounded_up(_lower(cost, epsilon, high or MOST_NOISE))


def _smallest(allowed: Callable[[float], bool], low: float, high: float) -> float | None:
    """The least number of an interval that is allowed, if all above it are, to one in 4,000; None if none is."""
    if not allowed(high):
        return None
    if allowed(low):
        return low
    while high / low > 1.00025:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if allowed(middle) else (middle, high)
    return high


def _lower(cost: Callable[[float], float], epsilon: float, high: float) -> float:
    """Less noise than ``high``, which is enough, where PLD allows it; by few calls of ``cost``, which are slow."""
    from scipy.optimize import brentq

    enough = [high]

    def excess(log_noise: float) -> float:
        noise = math.exp(log_noise)
        over = math.log(max(cost(noise), 1e-300) / epsilon)
        enough.extend([noise] * (over <= 0))
        return over

    low = 0.9 * high
    while low > LEAST_NOISE and excess(math.log(low)) <= 0:
        low *= 0.9
    high = min(enough)
    if low > LEAST_NOISE and excess(math.log(high)) < 0:
        brentq(excess, math.log(low), math.log(high), xtol=1e-4)
    return min(enough)


def _rounded_up(x: float) -> float:
    """To four digits, upwards, so that what is written in a page is what was used."""
    unit = 10.0 ** (math.floor(math.log10(x)) - 3)
    return float(f"{math.ceil(x / unit - 1e-9) * unit:.4g}")


def most_updates(
    mechanism: Mechanism, epsilon: float, before: Sequence[tuple[Mechanism, int]] = ()
) -> int:
    """How many updates may be made in all before epsilon would be passed; a run stops there, extended or not.

    Args:
      epsilon: which must not be passed.
      before: what else was spent on the same data.

    Returns:
      A number that is allowed, and less than one in a thousand below the largest; at most 10^9, and 0 if not one update
      is left.
    """

    def by_rdp(updates: int) -> bool:
        parts = _parts([*before, (mechanism, updates)])
        return _by_rdp(parts, mechanism.delta) <= epsilon

    def by_both(updates: int) -> bool:
        return compose([*before, (mechanism, updates)], mechanism.delta).epsilon <= epsilon

    return _largest(by_both, _largest(by_rdp, 0, 4.0), 1.1)


def _largest(allowed: Callable[[int], bool], low: int, stride: float) -> int:
    """The largest number that is allowed, if all below it are, to one in a thousand; ``low`` is known to be."""
    high = max(low + 1, int(low * stride))
    while high < 10**9 and allowed(high):
        low, high = high, max(high + 1, int(high * stride))
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low


# What is written down --------------------------------------------------------------------------------------------


def record(
    mechanism: Mechanism, updates: int, *, expected_batch: float, rows: int, guarantee: bool = True
) -> dict[str, Any]:
    """What a run says of its privacy in ``result.json``: all that ``from_record`` and a reader need.

    Args:
      updates: those that were made, from the state.
      expected_batch: q times the number of records.
      rows: of the buffers.
      guarantee: whether the noise is secret. A run with a known seed protects nothing, whatever its epsilon says.

    Returns:
      A flat dict; an epsilon that is not finite is None.
    """
    spent = epsilon(mechanism, updates)
    finite = {
        f"epsilon{suffix}": value if math.isfinite(value) else None
        for suffix, value in (("_rdp", spent.rdp), ("_pld", spent.pld), ("", spent.epsilon))
    }
    return {
        "sampling": mechanism.sampling,
        "adjacency": ADJACENCY,
        "accountant": ACCOUNTANT,
        "q": mechanism.q,
        "noise_multiplier": mechanism.noise_multiplier,
        "clip": mechanism.clip,
        "updates": updates,
        "delta": mechanism.delta,
        **finite,
        "expected_batch": expected_batch,
        "rows": rows,
        "failure": mechanism.failure,
        "delta_total": spent.delta_total,
        "guarantee": guarantee and spent.epsilon < math.inf,
    }


def from_record(privacy: Mapping[str, Any]) -> tuple[Mechanism, int]:
    """The mechanism and the updates that ``record`` has written.

    Raises:
      UserError: if it is not such a record.
    """
    try:
        fields = {name: privacy[name] for name in Mechanism._fields}
        updates = int(privacy["updates"])
        numbers = {n: float(v) for n, v in fields.items() if n != "sampling"}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"not a record of privacy: {error!r}") from None
    return Mechanism(str(fields["sampling"]), **numbers), updates
