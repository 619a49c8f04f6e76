"""Poisson subsampling: the law of the batches, on host and device, from memory and from disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bpgan import data
from bpgan.data import poisson
from bpgan.types import UserError, stream

LENGTH, Q, ROWS = 50, 0.2, 24
SHAPE = (4, 4, 1)
IMAGES = np.random.default_rng(0).integers(1, 256, (LENGTH, *SHAPE), dtype=np.uint8)
LABELS = (np.arange(LENGTH) % 10).astype(np.int32)
DATASET = data.of_arrays("tiny", "train", IMAGES, LABELS, 10)
SECRET = np.array([123456789, 987654321], np.uint32)


def source(feed="memory", rows=ROWS, q=Q, secret=SECRET):
    return poisson.source(DATASET, poisson.Sampling(q, rows), secret=secret, feed=feed)


def batches(source, steps):
    """The batches of the first steps, as the source serves them."""
    batch_at, windows = jax.jit(source.batch_at), None
    for step in range(steps):
        if source.windows and step % source.window == 0:
            windows = windows or source.windows(0, slice(None))
            window = next(windows)
        yield batch_at(window if source.windows else source.data, jnp.int32(step))


def drawn(steps, length=LENGTH, q=Q):
    """bool [steps, length], by NumPy."""
    return np.stack([poisson.included(SECRET, t, length, q) for t in range(steps)])


@pytest.mark.parametrize("length,q", [(1, 0.5), (50, 0.2), (1001, 0.003), (8, 1.0), (8, 1e-12)])
def test_host_and_device_draw_what_jax_draws(length, q):
    key = jax.random.wrap_key_data(jnp.asarray(SECRET))
    on_device = jax.jit(poisson.included, static_argnums=(2, 3))
    for step in (0, 1, 2**31 - 1):
        own = jax.random.fold_in(stream(key, "inclusion"), step)
        bits = np.asarray(jax.random.bits(own, (length,), jnp.uint32)).astype(np.uint64)
        expected = bits < np.floor(q * 2**32)
        found = poisson.included(SECRET, step, length, q)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == bool
        np.testing.assert_array_equal(on_device(key, jnp.int32(step), length, q), expected)
        np.testing.assert_array_equal(
            poisson.included(SECRET, step, length + 3, q)[:length], expected
        )


def test_batch_sizes_are_binomial():
    """T5.4: chi-square of ``|S|`` against Bin(N, q), over 4,000 steps."""
    sizes = drawn(4000).sum(1)
    edges = np.arange(4, 18)
    observed = np.histogram(np.clip(sizes, 4, 16), edges)[0]
    law = scipy.stats.binom(LENGTH, Q)
    expected = law.pmf(np.arange(4, 17))
    expected[0], expected[-1] = law.cdf(4), law.sf(15)
    assert scipy.stats.chisquare(observed, 4000 * expected).pvalue > 1e-3


def test_inclusions_are_independent():
    """T5.4: of two records in one step, and of one record in two steps; and each has probability q."""
    x = drawn(4000)
    margin = 5 * np.sqrt(Q * (1 - Q) / 4000)
    assert np.abs(x.mean(0) - Q).max() < margin
    correlation = np.corrcoef(x.T)[np.triu_indices(LENGTH, 1)]
    assert np.abs(correlation).max() < 5.5 / np.sqrt(4000)
    lagged = [np.corrcoef(x[:-1, i], x[1:, i])[0, 1] for i in range(LENGTH)]
    assert np.abs(lagged).max() < 5 / np.sqrt(4000)


def test_shuffling_is_not_taken_for_it():
    """T5.8: of shuffled batches of fixed size the test of sizes dies."""
    sizes = np.full(4000, int(LENGTH * Q))
    observed = np.histogram(np.clip(sizes, 4, 16), np.arange(4, 18))[0]
    law = scipy.stats.binom(LENGTH, Q)
    expected = law.pmf(np.arange(4, 17))
    expected[0], expected[-1] = law.cdf(4), law.sf(15)
    assert scipy.stats.chisquare(observed, 4000 * expected).pvalue < 1e-6


@pytest.mark.medium
@pytest.mark.parametrize("feed", ["memory", "stream"])
def test_a_batch_has_the_records_that_are_in(feed):
    for step, batch in enumerate(batches(source(feed), 5)):
        inside = np.flatnonzero(poisson.included(SECRET, step, LENGTH, Q))
        n = len(inside)
        assert n <= ROWS and not batch["overflow"].any()
        np.testing.assert_array_equal(batch["mask"], np.arange(ROWS) < n)
        np.testing.assert_array_equal(batch["index"][:n], inside)
        np.testing.assert_array_equal(batch["y"][:n], LABELS[inside])
        np.testing.assert_allclose(batch["x"][:n], IMAGES[inside] / 127.5 - 1, atol=1e-6)
        assert not batch["x"][n:].any() and not batch["y"][n:].any()
        np.testing.assert_array_equal(batch["secret"], np.tile(SECRET, (ROWS, 1)))


def test_from_disk_the_batches_are_the_same_bits(trees_equal):
    memory, disk = source("memory"), source("stream")
    assert disk.window and disk.data["x"].shape[:2] == (disk.window, ROWS)
    for a, b in zip(batches(memory, 6), batches(disk, 6), strict=True):
        trees_equal(a, b)


@pytest.mark.parametrize("feed", ["memory", "stream"])
def test_too_few_rows_are_said(feed):
    for step, batch in enumerate(batches(source(feed, rows=8), 12)):
        n = poisson.included(SECRET, step, LENGTH, Q).sum()
        assert (np.asarray(batch["overflow"]) == (n > 8)).all()
        assert batch["mask"].sum() == min(n, 8)


def test_a_batch_may_be_empty():
    (batch,) = batches(source(q=1e-9), 1)
    assert not batch["mask"].any() and not batch["overflow"].any()


def test_the_capacity_is_the_smallest():
    for length, q, steps in ((50, 0.2, 10), (60_000, 128 / 60_000, 450_000), (10_000, 0.5, 1)):
        rows = poisson.capacity(length, q, steps)
        tail = scipy.stats.binom(length, q).sf
        assert steps * tail(rows - 1) <= poisson.FAILURE * (1 + 1e-9)
        assert steps * tail(rows - 2) > poisson.FAILURE
    assert poisson.capacity(5, 1.0, 100) == 6 and poisson.capacity(50, 1e-15, 1) == 1


def test_epochs_are_of_records():
    assert source().examples_per_step == LENGTH * Q and source().steps_per_epoch == 1 / Q
    assert source().batch_size == ROWS and len(source().examples) == 0


@pytest.mark.parametrize("expected", [0, -1, 51])
def test_impossible_rates_are_refused(expected):
    with pytest.raises(UserError, match="at most 50 records"):
        poisson.check_rate(expected, LENGTH)
    assert poisson.check_rate(10, LENGTH) == 0.2


def test_without_the_key_nothing_is_drawn():
    """Shapes are there, for a step that is only traced; a stream refuses."""
    abstract = source(secret=poisson.SECRET)
    assert jax.eval_shape(abstract.batch_at, abstract.data, jnp.int32(0))["x"].shape == (ROWS, *SHAPE)  # fmt: skip
    with pytest.raises(ValueError, match="without a secret key"):
        source("stream", secret=poisson.SECRET).windows(0, slice(None))
