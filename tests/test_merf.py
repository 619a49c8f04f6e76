"""DP-MERF: what one record does to the release, the noise, and that G learns from the release alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpgan import cli, data, optim
from bpgan.algorithms import gan
from bpgan.nets import linen_net, mlp
from bpgan.privacy import accounting, merf
from experiments import dp_merf

SHAPE = (4, 4, 1)


def frequencies(features=50, bandwidth=2.0):
    return merf.draw_frequencies(0, features, 16, bandwidth)


def images(n, seed=0, low=0, high=256):
    rng = np.random.default_rng(seed)
    return rng.integers(low, high, (n, *SHAPE), np.uint8), rng.integers(0, 3, n).astype(np.int32)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from([(0, 1), (255, 256), (0, 256)]),
    st.floats(1e-3, 1e3),
)
def test_one_record_changes_the_sum_by_its_sensitivity(seed, pixels, bandwidth):
    """Whatever the record is: that is what the accountant is told."""
    w = frequencies(bandwidth=bandwidth)
    others, record = images(5, seed), images(1, seed, *pixels)
    without = merf.total([others], w, 3)
    change = merf.total([others, record], w, 3) - without
    assert np.linalg.norm(change) == pytest.approx(merf.MECHANISM.clip, rel=1e-5)
    assert (np.linalg.norm(change, axis=1) > 0).sum() == 1  # in the row of its label


def test_features_are_those_of_a_gaussian_kernel():
    w = merf.draw_frequencies(0, 100_000, 16, 3.0)
    x = np.random.default_rng(0).uniform(-1, 1, (4, *SHAPE)).astype(np.float32)
    phi = merf.features_of(x, w, np)
    squares = ((x[:, None] - x[None]) ** 2).sum((2, 3, 4))
    np.testing.assert_allclose(phi @ phi.T, np.exp(-squares / (2 * 3.0**2)), atol=0.02)


def test_the_release_is_the_noisy_mean():
    """Of a secret of its own, always the same for one secret: a run that is resumed releases nothing new."""
    summed, secret = np.zeros((10, 4000)), np.array([1, 2], np.uint32)
    found = merf.release(summed, 50, 3.0, secret)
    assert found.std() == pytest.approx(3.0 / 50, rel=0.02)
    assert abs(found.mean()) < 4 * 3.0 / 50 / 200
    np.testing.assert_array_equal(found, merf.release(summed, 50, 3.0, secret))
    other = merf.release(summed, 50, 3.0, np.array([1, 3], np.uint32))
    assert abs(np.corrcoef(found.ravel(), other.ravel())[0, 1]) < 0.03
    np.testing.assert_allclose(merf.release(summed + 50, 50, 0.0, secret), 1.0)


@pytest.mark.parametrize("classes", [0, 3])
def test_the_embedding_of_samples_is_that_of_records(classes):
    w, (x, y) = frequencies(), images(40)
    scaled = x.astype(np.float32) / 127.5 - 1
    found = merf.embed(jnp.asarray(scaled), jnp.asarray(y), w, classes)
    wanted = merf.total([(x[:25], y[:25]), (x[25:], y[25:])], w, classes or 1) / 40
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def make(embedding, w, classes, shape=SHAPE, hidden=(32,), lr=1e-2):
    g = linen_net(mlp.Generator(shape, hidden, classes=classes))
    networks = gan.Networks(g, g, gan.normal_latents(8), shape)
    released = merf.Released(jnp.asarray(w), jnp.asarray(embedding, jnp.float32))
    return merf.make(networks, optim.adam(lr), released, classes=classes)


@pytest.mark.medium
def test_g_descends_the_distance_to_the_release():
    """Its gradient is that of the squared distance, and the batch tells it nothing of any record."""
    w, (x, y) = frequencies(), images(30)
    algorithm = make(merf.total([(x, y)], w, 3) / 30, w, 3)
    source = merf.source(_Few(), 60)
    batch = source.batch_at(source.data, 0)
    assert set(batch) == {"row"}
    state = algorithm.init(jax.random.key(0))
    step = jax.jit(algorithm.step)
    losses = []
    for _ in range(40):
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:3])
    assert algorithm.sample(state, jax.random.key(2), 6).shape == (6, *SHAPE)
    assert set(algorithm.networks) == {"generator"}


class _Few:
    length, sha256, facts = 30, "0" * 64, {}


@pytest.mark.medium
def test_a_classifier_of_samples_knows_digits():
    """At epsilon = 10, after 200 steps of a small perceptron: far above chance, which is 10 %."""
    digits, test = data.load("mnist10k"), data.load("mnist10k", "test")
    w = merf.draw_frequencies(0, 1000, 784, 20.5)
    noise = accounting.calibrate(10.0, 1e-5, 1.0, 1)
    summed = merf.total(merf.blocks_of(digits), w, 10)
    released = merf.release(summed, digits.length, noise, np.array([3, 4], np.uint32))
    algorithm = make(released, w, 10, digits.shape, (128,))
    source = merf.source(digits, 100)
    step = jax.jit(algorithm.step)
    state = algorithm.init(jax.random.key(0))
    for _ in range(200):
        state, _ = step(state, source.batch_at(source.data, 0), jax.random.key(1))
    y = np.arange(2000, dtype=np.int32) % 10
    x = np.asarray(algorithm.sample(state, jax.random.key(2), 2000, jnp.asarray(y)))
    real, labels = test.arrays()
    assert accuracy(x, y, real.astype(np.float32) / 127.5 - 1, labels) > 0.5


def accuracy(x, y, real, labels):
    """Of a linear classifier by ridge regression."""
    flat, k = x.reshape(len(x), -1), np.eye(10)[y]
    weights = np.linalg.solve(flat.T @ flat + 10.0 * np.eye(flat.shape[1]), flat.T @ k)
    return ((real.reshape(len(real), -1) @ weights).argmax(1) == labels).mean()


FLAGS = ["--preset=smoke", "--tensorboard=false", "--secret_seed=1"]


def run(argv):
    return cli.run(dp_merf.Config, dp_merf.build, dp_merf.PRESETS, argv)


@pytest.mark.medium
def test_a_run_releases_once_and_can_be_drawn_from(tmp_path):
    workdir = tmp_path / "run"
    assert run([*FLAGS, "--pause_at=0.5", f"--workdir={workdir}"]) == cli.DONE
    first = cli.restore(workdir).state.memory["released"]["embedding"]
    assert run([*FLAGS, f"--workdir={workdir}"]) == cli.DONE
    found = cli.restore(workdir)
    again = found.state.memory["released"]["embedding"]
    np.testing.assert_array_equal(first, again)
    assert np.abs(again).max() > 0
    privacy = json.loads((workdir / "result.json").read_text())["privacy"]
    assert privacy["updates"] == 1 and privacy["sampling"] == "full"
    assert 0.99 < privacy["epsilon"] <= 1.0
    assert privacy["guarantee"] is False  # its key is known
    mechanism, updates = accounting.from_record(privacy)
    assert accounting.epsilon(mechanism, updates).epsilon == privacy["epsilon"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--features=21"], "features=21: must be even"),
        (["--batch_size=21"], "batch_size=21: must be a multiple of the 10 classes"),
        (["--epsilon=0"], "epsilon"),
        (["--delta=0.001"], "delta=0.001: must be less than 1/9000 "),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, flags, message, capsys):
    assert run([*FLAGS, *flags, f"--workdir={tmp_path / 'run'}"]) == cli.BAD_INPUT
    assert message in capsys.readouterr().err
