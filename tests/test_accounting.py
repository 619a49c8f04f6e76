"""Accounting of privacy: against dp-accounting as others call it, closed forms and published settings."""

import importlib.util
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_ndtr
from scipy.stats import binom

from bpgan.data import poisson
from bpgan.files import write_json
from bpgan.launcher import summary
from bpgan.launcher.runs import PlannedRun
from bpgan.privacy import accounting
from bpgan.privacy.accounting import Mechanism, compose, epsilon, epsilon_rdp
from bpgan.runtime import records
from bpgan.types import UserError

GAUSSIAN = Mechanism("full", 1.0, 2.0, 1.0, 1e-5)
POISSON = Mechanism("poisson", 0.01, 4.0, 1.0, 1e-5)


# q, noise multiplier, updates: epsilon by RDP and by PLD on a grid of 1e-4, from dp-accounting 0.6.0 itself. The first
# three are the settings of Bie, Kamath & Zhang 2023 for epsilon 10, 10 and 1.
ANCHORS = {
    (1 / 469, 1.0, 450_000): (9.9632, 9.2725),
    (1 / 118, 2.0, 174_000): (9.9947, 9.3068),
    (1 / 469, 5.0, 325_000): (0.9935, 0.9134),
    (0.01, 1.0, 1000): (2.1014, 1.8282),
    (0.01, 4.0, 10_000): (1.0355, 0.9470),
    (256 / 60_000, 0.8, 5000): (3.1041, 2.6786),
    (1.0, 1.0, 1): (4.7285, 4.37718),
    (1.0, 2.0, 1): (2.1657, 1.99309),
    (1.0, 4.0, 1): (1.0126, 0.92634),
}
QUICK = [(1 / 469, 5.0, 325_000), (0.01, 4.0, 10_000), (1.0, 4.0, 1)]


@pytest.mark.parametrize(
    "which", [pytest.param(w, marks=[pytest.mark.medium] * (w not in QUICK)) for w in ANCHORS]
)
def test_epsilon_is_that_of_published_settings(which):
    q, noise, updates = which
    rdp, pld = ANCHORS[which]
    spent = epsilon(Mechanism("poisson", q, noise, 1.0, 1e-5), updates)
    assert spent.rdp == pytest.approx(rdp, abs=1e-4)
    assert spent.pld == pytest.approx(pld, abs=1e-4)
    assert spent.epsilon == min(spent.rdp, spent.pld)
    assert epsilon_rdp(Mechanism("poisson", q, noise, 1.0, 1e-5), updates) == spent.rdp


@pytest.mark.parametrize("noise, updates", [(2.0, 1), (20.0, 250)])
def test_without_sampling_it_is_the_analytic_gaussian_mechanism(noise, updates):
    """Balle & Wang 2018, theorem 8: delta(e) = Phi(1/2s - e s) - exp(e) Phi(-1/2s - e s) with s = noise / sqrt(T)."""
    e = epsilon(GAUSSIAN._replace(noise_multiplier=noise), updates).epsilon
    s = noise / math.sqrt(updates)
    first, second = log_ndtr(0.5 / s - e * s), e + log_ndtr(-0.5 / s - e * s)
    assert math.exp(first) - math.exp(second) == pytest.approx(1e-5, rel=1e-4)


def test_it_is_what_dp_accounting_gives_when_it_is_called_by_itself():
    """Two kinds of runs composed, over several blocks of updates and a rest."""
    import dp_accounting as dp
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    second = Mechanism("poisson", 0.02, 6.0, 3.0, 1e-6)
    event = dp.ComposedDpEvent(
        [
            dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(m.q, dp.GaussianDpEvent(noise)), n)
            for m, noise, n in ((POISSON, 4.0, 3500), (second, 6.0, 999))
        ]
    )
    spent = compose([(POISSON, 3000), (second, 999), (POISSON, 500)], delta=1e-6)
    for accountant, value in ((PLDAccountant(), spent.pld), (RdpAccountant(), spent.rdp)):
        accountant.compose(event)
        assert value == pytest.approx(accountant.get_epsilon(1e-6), rel=1e-5)


def test_nothing_done_costs_nothing():
    assert epsilon(POISSON, 0)[:3] == (0.0, 0.0, 0.0)
    assert epsilon_rdp(POISSON, 0) == 0.0
    assert compose([])[:3] == (0.0, 0.0, 0.0)


def test_without_noise_nothing_is_protected():
    assert epsilon(POISSON._replace(noise_multiplier=0.0), 1).epsilon == math.inf
    assert epsilon_rdp(POISSON._replace(noise_multiplier=0.0), 1) == math.inf
    assert compose([(POISSON, 5), (POISSON._replace(noise_multiplier=0.0), 1)]).epsilon == math.inf


def test_more_updates_cost_more():
    """So an accountant that forgets one is seen."""
    costs = [epsilon(POISSON, n).epsilon for n in (1, 2, 999, 1000, 1001, 2000, 9000)]
    assert all(a < b for a, b in itertools.pairwise(costs))
    cheap = [epsilon_rdp(POISSON, n) for n in range(1, 400)]
    assert all(a < b for a, b in itertools.pairwise(cheap))


def test_an_extended_run_costs_what_the_whole_run_costs():
    assert compose([(POISSON, 600), (POISSON, 400)]) == epsilon(POISSON, 1000)
    # three seeds on the same data cost more than one, and less than the sum
    one, three = epsilon(POISSON, 1000).epsilon, compose([(POISSON, 1000)] * 3).epsilon
    assert one < three < 3 * one


def test_the_failures_of_the_buffers_are_added_to_delta():
    failing = POISSON._replace(failure=1e-6)
    spent = epsilon(failing, 10)
    assert spent.epsilon == epsilon(POISSON, 10).epsilon
    assert spent.delta_total == pytest.approx(1.1e-5)
    assert compose([(failing, 10)] * 3).delta_total == pytest.approx(1.3e-5)


@pytest.mark.parametrize("length, q, rows", [(50, 0.1, 9), (60_000, 1 / 469, 210)])
def test_a_buffer_fails_where_the_other_records_fill_it(length, q, rows):
    found = poisson.buffer_failure(length, q, rows, 1)
    tail = sum(binom.pmf(k, length, q) for k in range(rows, min(length, rows + 400) + 1))
    assert found == pytest.approx(tail, rel=1e-9)
    assert found > binom.sf(rows, length, q)  # an overflow of the dataset itself is not all
    assert poisson.buffer_failure(length, q, rows, 7) == pytest.approx(7 * tail, rel=1e-9)


def test_no_buffer_of_all_records_and_one_more_fails():
    assert poisson.buffer_failure(100, 0.5, 101, 10**6) == 0.0
    assert poisson.buffer_failure(100, 1.0, 100, 3) == 1.0


@pytest.mark.slow  # six seconds of PLDs
@pytest.mark.parametrize("target, updates", [(1.0, 325_000), (10.0, 4500)])
def test_the_calibrated_noise_costs_just_less_than_asked(target, updates):
    q = 1 / 469
    noise = accounting.calibrate(target, 1e-5, q, updates)
    mechanism = Mechanism("poisson", q, noise, 1.0, 1e-5)
    assert 0.995 * target < epsilon(mechanism, updates).epsilon <= target
    less = mechanism._replace(noise_multiplier=noise * 0.999)
    assert epsilon(less, updates).epsilon > target


def test_the_calibrated_noise_of_one_release_is_that_of_the_closed_form():
    noise = accounting.calibrate(1.99309, 1e-5, 1.0, 1)
    assert noise == pytest.approx(2.0, abs=2e-3)


def test_an_epsilon_that_no_noise_reaches_is_refused():
    with pytest.raises(
        UserError, match=r"epsilon=0.001: no noise .* up to 1,000 .* 100,000 updates"
    ):
        accounting.calibrate(1e-3, 1e-5, 1.0, 100_000)


def test_a_run_stops_before_its_epsilon():
    """With what an earlier run took from it, too."""
    most = accounting.most_updates(POISSON, 0.5)
    assert epsilon(POISSON, most).epsilon <= 0.5 < epsilon(POISSON, most + most // 1000 + 1).epsilon
    left = accounting.most_updates(POISSON, 0.5, [(POISSON, 100)])
    assert abs(left - (most - 100)) <= 1 + most // 1000
    assert accounting.most_updates(POISSON._replace(noise_multiplier=0.0), 0.5) == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"q": 1.5}, "q=1.5"),
        ({"q": 0.0}, "q=0.0"),
        ({"q": math.nan}, "q=nan"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"clip": -1.0}, "clip=-1.0"),
        ({"clip": math.inf}, "clip=inf"),
        ({"noise_multiplier": -0.1}, "noise_multiplier=-0.1"),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan"),
        ({"delta": 0.0}, "delta=0.0"),
        ({"delta": 1.0}, "delta=1.0"),
        ({"delta": 1e-3}, r"delta=0.001: must be less than 1/1000"),
        ({"delta": 0.00095, "failure": 1e-4}, r"with the 1.0e-04 of the buffers"),
        ({"sampling": "shuffled"}, "sampling=shuffled: must be poisson or full"),
        ({"sampling": "full"}, "q=0.01: must be 1"),
        ({"failure": -1e-9}, "failure"),
    ],
)
def test_what_protects_nobody_is_refused(change, message):
    accounting.check(POISSON, 1000)
    with pytest.raises(UserError, match=message):
        accounting.check(POISSON._replace(**change), 1000)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0.0, 1e-5, 0.1, 10), "epsilon=0.0"),
        ((math.nan, 1e-5, 0.1, 10), "epsilon=nan"),
        ((1.0, 0.0, 0.1, 10), "delta=0.0"),
        ((1.0, 1e-5, 1.1, 10), "q=1.1"),
        ((1.0, 1e-5, 0.1, 0), "updates=0"),
    ],
)
def test_a_calibration_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        accounting.calibrate(*arguments)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (lambda: epsilon(POISSON, 1), lambda: accounting.calibrate(1.0, 1e-5, 0.1, 10)):
        with pytest.raises(UserError, match=r"pip install 'bpgan\[privacy\]'"):
            call()


@settings(max_examples=15, deadline=None)
@given(
    st.builds(
        Mechanism,
        sampling=st.just("poisson"),
        q=st.floats(1e-6, 1.0),
        noise_multiplier=st.floats(0.3, 50.0),
        clip=st.floats(1e-3, 1e3),
        delta=st.floats(1e-9, 1e-2),
        failure=st.floats(0.0, 1e-9),
    ),
    st.integers(0, 10**6),
)
def test_rdp_is_finite_and_more_noise_costs_less(mechanism, updates):
    cost = epsilon_rdp(mechanism, updates)
    assert 0 <= cost < math.inf
    more = mechanism._replace(noise_multiplier=2 * mechanism.noise_multiplier)
    assert epsilon_rdp(more, updates) <= cost


def test_a_record_says_all_that_is_needed_to_account_again():
    failing = POISSON._replace(failure=1e-10)
    found = accounting.record(failing, 500, expected_batch=10.0, rows=40)
    assert accounting.from_record(found) == (failing, 500)
    assert found["epsilon"] == min(found["epsilon_rdp"], found["epsilon_pld"])
    assert found["delta_total"] == 1e-5 + 1e-10
    assert found["guarantee"] is True
    assert found["adjacency"] == "add or remove one record"


def test_a_record_of_a_run_without_noise_or_secret_gives_no_guarantee():
    silent = POISSON._replace(noise_multiplier=0.0)
    found = accounting.record(silent, 5, expected_batch=10.0, rows=40)
    assert found["epsilon"] is None and found["guarantee"] is False
    open_ = accounting.record(POISSON, 5, expected_batch=10.0, rows=40, guarantee=False)
    assert open_["epsilon"] is not None and open_["guarantee"] is False


@pytest.mark.parametrize("damaged", [{}, {"q": "x"}, {"updates": None}])
def test_what_is_no_record_is_refused(damaged):
    found = accounting.record(POISSON, 5, expected_batch=10.0, rows=40) | damaged if damaged else {}
    with pytest.raises(UserError, match="not a record"):
        accounting.from_record(found)


# Runs of one command ---------------------------------------------------------------------------------------------


def finished(workdir, data="d" * 64, guarantee=True, updates=500, result=True):
    """What a private run leaves that the launcher reads."""
    terms = records.Terms(
        sampling="poisson", q=POISSON.q, rows=40, noise_multiplier=4.0, clip=1.0, delta=1e-5,
        epsilon=None, length=1000, data=data, guarantee=guarantee,
    )  # fmt: skip
    workdir.mkdir()
    write_json(workdir / "privacy.json", records.fields(terms))
    told = accounting.record(POISSON, updates, expected_batch=10.0, rows=40, guarantee=guarantee)
    if result:
        write_json(workdir / "result.json", {"status": "done", "step": updates, "privacy": told})
    return PlannedRun({"lr": 1.0}, workdir, [])


def test_runs_on_the_same_data_are_added_up(tmp_path):
    """Seeds and settings alike: by composition, which is less than the sum and more than the largest."""
    runs = [finished(tmp_path / str(i)) for i in range(3)]
    runs += [finished(tmp_path / "other", data="e" * 64)]
    first, second = summary.spent_together(runs)
    together = compose([(POISSON, 500)] * 3)
    assert first.startswith("privacy: 3 runs on the same data spent")
    assert f"epsilon={together.epsilon:.4g} together (RDP {together.rdp:.4g}" in first
    assert "delta=1e-05" in first
    assert (
        f"privacy: 1 run on the same data spent epsilon={epsilon(POISSON, 500).epsilon:.4g}"
        in second
    )


def test_a_total_says_what_it_does_not_know(tmp_path, monkeypatch):
    runs = [finished(tmp_path / "a"), finished(tmp_path / "b", result=False)]
    (line,) = summary.spent_together(runs)
    assert line.startswith("privacy: 1 run ") and line.endswith("; 1 private run has no result yet")
    runs.append(finished(tmp_path / "c", guarantee=False))
    (line,) = summary.spent_together(runs)
    assert line.startswith("privacy: 2 runs on the same data guarantee nothing together, as 1 of")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (line,) = summary.spent_together(runs[:1])
    assert "is not known (privacy is accounted for by dp-accounting: pip install" in line


def test_a_total_of_runs_that_are_not_private_is_not_said(tmp_path):
    assert summary.spent_together([PlannedRun({"lr": 1.0}, tmp_path, [])]) == []
