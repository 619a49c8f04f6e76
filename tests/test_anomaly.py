"""Spikes and collapse: what is flagged, what is not, and what then happens to the run."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from checks.training import SHAPE, fit, logged, small_gan

from bpgan.runtime import anomaly, train

pytestmark = pytest.mark.usefixtures("no_curves")


def lines(values, name="d/loss"):
    return [{"step": i, name: v} for i, v in enumerate(values)]


def noise(n, scale=0.1, seed=0):
    return (1 + scale * np.random.default_rng(seed).standard_normal(n)).tolist()


def test_a_spike_is_named_with_its_value():
    (found,) = anomaly.loss_spikes(lines(noise(20)), {"d/loss": 7.5, "d/real": 99.0})
    assert found.startswith("d/loss jumped to 7.5 (median of late ")


@pytest.mark.parametrize("name", ["loss", "d/loss", "g/loss"])
def test_any_loss_is_watched_and_nothing_else(name):
    history = lines(noise(20), name)
    assert anomaly.loss_spikes(history, {name: 50.0})
    assert not anomaly.loss_spikes(lines(noise(20), "d/grad_norm"), {"d/grad_norm": 50.0})


def test_ordinary_noise_trend_and_drops_are_no_spikes():
    """Of 2,000 Gaussian losses none, though each is judged by twenty others; nor a slow rise, nor any fall."""
    for values in (
        noise(2000),
        noise(2000, 2.0, 1),
        np.linspace(1, 20, 500).tolist(),
        [5.0] * 20 + [0.0],
    ):
        history = lines(values)
        for i in range(8, len(values)):
            assert not anomaly.loss_spikes(history[:i], {"d/loss": values[i]}), (i, values[i])


def test_threshold_is_ten_robust_standard_deviations():
    """For normal losses 1.4826 MAD estimates the deviation: compare with SciPy's."""
    values = noise(anomaly.HISTORY, scale=5.0)
    spread = 10 * scipy.stats.median_abs_deviation(values, scale="normal")
    limit = np.median(values) + spread
    assert not anomaly.loss_spikes(lines(values), {"d/loss": limit - 0.01})
    assert anomaly.loss_spikes(lines(values), {"d/loss": limit + 0.01})


def test_too_little_history_is_no_base():
    assert not anomaly.loss_spikes(lines([1.0] * 7), {"d/loss": 1e9})
    assert anomaly.loss_spikes(lines([1.0] * 8), {"d/loss": 1e9})
    # Lines of sample grids in between have no loss and do not count.
    mixed = [
        line for pair in zip(lines([1.0] * 7), [{"step": 0}] * 7, strict=True) for line in pair
    ]
    assert not anomaly.loss_spikes(mixed, {"d/loss": 1e9})


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), dtype=np.uint8)


def test_diversity_of_like_samples_is_one():
    found = anomaly.diversity(images(100), images(100, 1))
    assert abs(found["samples/variance"] - 1) < 0.05 and found["samples/duplicates"] == 0
    assert anomaly.collapse(found) == []


def test_diversity_by_hand():
    """Samples half as far from their mean have a quarter of the variance; 30 copies of 10 images are duplicates."""
    real = images(40)
    half = np.round(real.mean(axis=0) + (real - real.mean(axis=0)) / 2).astype(np.uint8)
    assert abs(anomaly.diversity(half, real)["samples/variance"] - 0.25) < 0.01
    copies = np.concatenate([images(10, 2)] * 3 + [images(10, 3)])
    assert anomaly.diversity(copies, real)["samples/duplicates"] == 0.75


def test_collapse_is_named():
    real, one = images(50), images(1)
    found = anomaly.collapse(anomaly.diversity(np.repeat(one, 50, axis=0), real))
    assert len(found) == 2 and all("collapse" in text for text in found)
    near = one + np.random.default_rng(0).integers(0, 3, (50, *SHAPE))  # almost the same image
    assert anomaly.collapse(anomaly.diversity(np.clip(near, 0, 255).astype(np.uint8), real))


def test_constant_data_do_not_divide_by_zero():
    """Whatever the constant: seventeen times 26 / 255 has another mean, and so had a variance."""
    for value in (0, 26, 199, 255):
        flat = np.full((17, *SHAPE), value, np.uint8)
        varied = np.arange(17, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones(SHAPE, np.uint8)
        for samples in (flat, varied):
            found = anomaly.diversity(samples, flat)
            assert found == {"samples/variance": 1.0, "samples/duplicates": 0.0}
        assert anomaly.diversity(flat, varied) == {"samples/variance": 0, "samples/duplicates": 1}


def collapsed_gan():
    """Draws one image whatever the latents."""
    algorithm = small_gan()

    def sample(state, key, n):
        x = algorithm.sample(state, key, n)
        return jnp.broadcast_to(x[:1], x.shape)

    return algorithm._replace(sample=sample)


@pytest.mark.medium
def test_a_collapsed_run_is_flagged_in_log_and_report(tmp_path, capsys):
    """Not before an epoch (3.1 steps) has passed; and the run goes on."""
    result = fit(tmp_path / "run", 8, algorithm=collapsed_gan(), sample_every=2)
    assert result.status == "done"
    flagged = [line["step"] for line in logged(tmp_path / "run") if "anomaly" in line]
    assert flagged == [4, 6, 8]
    assert "anomaly at step 4: samples vary " in capsys.readouterr().out
    assert "Step 4: samples vary" in (tmp_path / "run/report.html").read_text()
    stored = json.loads((tmp_path / "run/result.json").read_text())
    assert len(stored["anomalies"]) == 3 and stored["metrics"]["samples/variance"] < 1e-9


@pytest.mark.slow
def test_a_collapsed_run_is_stopped_if_asked(tmp_path):
    for _ in range(2):  # and again when it is repeated
        with pytest.raises(train.Anomaly, match="on_anomaly=stop`, at step 4: .*step 3 is kept"):
            fit(tmp_path / "run", 8, algorithm=collapsed_gan(), sample_every=2, on_anomaly="stop")
    stored = json.loads((tmp_path / "run/result.json").read_text())
    assert stored["status"] == "anomaly" and stored["step"] == 4
    assert fit(tmp_path / "run", 8, algorithm=collapsed_gan(), sample_every=2).status == "done"


def spiky_gan(at):
    """Reports a loss of a thousand at one step."""
    algorithm = small_gan()

    def step(state, batch, key):
        new, metrics = algorithm.step(state, batch, key)
        metrics["d/loss"] = jnp.where(state.step == at, 1000.0, metrics["d/loss"])
        return new, metrics

    return algorithm._replace(step=step)


@pytest.mark.medium
def test_a_spike_is_flagged_once_and_again_after_a_resume(tmp_path):
    for name, stops in (("straight", [16]), ("resumed", [9, 16])):
        for steps in stops:
            fit(tmp_path / name, steps, algorithm=spiky_gan(12), log_every=1)
    assert logged(tmp_path / "straight") == logged(tmp_path / "resumed")
    flagged = [line["step"] for line in logged(tmp_path / "straight") if "anomaly" in line]
    assert flagged == [13]
    with pytest.raises(train.Anomaly, match="d/loss jumped to 1000"):
        fit(tmp_path / "stopped", 16, algorithm=spiky_gan(12), log_every=1, on_anomaly="stop")


@pytest.mark.medium
@pytest.mark.parametrize("step", [5])
def test_not_finite_always_stops(tmp_path, step):
    algorithm = spiky_gan(step)

    def broken(state, batch, key):
        new, metrics = algorithm.step(state, batch, key)
        return new, metrics | {"d/loss": jnp.log(metrics["d/loss"] - 1000.0)}

    with pytest.raises(train.Anomaly, match="not finite by step 1: d/loss"):
        fit(tmp_path / "run", 8, algorithm=algorithm._replace(step=broken), on_anomaly="flag")
