"""The order of the data, and batches of arrays in memory."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bpgan import data
from bpgan.data import order


def rows_of(source, steps):
    """The examples (by their value) that each batch shows."""
    batch_at = jax.jit(source.batch_at)
    return np.stack([np.asarray(batch_at(source.data, jnp.int32(t))["x"]) for t in steps])


def counting_source(length, batch_size, seed=0):
    values = np.arange(length, dtype=np.float32)
    labels = np.arange(length, dtype=np.int32)
    return data.in_memory(values, labels, seed=seed, batch_size=batch_size)


@pytest.mark.parametrize(
    "length,batch_size",
    [(1, 3), (2, 5), (3, 2), (5, 5), (10, 3), (97, 32), (1000, 128), (1009, 64), (64, 64)],
)
def test_each_epoch_shows_every_example_once(length, batch_size):
    epochs = 3
    steps = -(-epochs * length // batch_size)
    rows = rows_of(counting_source(length, batch_size), range(steps)).ravel()
    for e in range(epochs):
        assert sorted(rows[e * length : (e + 1) * length]) == list(range(length))


def test_epochs_and_seeds_differ():
    first = rows_of(counting_source(1000, 1000), [0, 1])
    other = rows_of(counting_source(1000, 1000, seed=1), [0, 1])
    orders = [*first, *other]
    for i in range(4):
        for j in range(i):
            assert np.mean(orders[i] == orders[j]) < 0.02
            assert abs(np.corrcoef(orders[i], orders[j])[0, 1]) < 0.12


@pytest.mark.parametrize("length", [20, 23, 25])
def test_order_is_uniform(length):
    """Where an example lands is uniform over places, and neighbors are independent (chi-squared, 400 epochs).

    Of 4 x 5 and 5 x 5 places, and of 23, of which three are outside the rectangle.
    """
    rows = rows_of(counting_source(length, length), range(400)).astype(int)
    places = np.zeros((length, length))
    pairs = np.zeros((length, length))
    for epoch in rows:
        places[np.arange(length), epoch] += 1
        pairs[epoch[:-1], epoch[1:]] += 1
    assert scipy.stats.chisquare(places.ravel(), ddof=2 * length - 2).pvalue > 1e-4
    off_diagonal = pairs[~np.eye(length, dtype=bool)]
    assert scipy.stats.chisquare(off_diagonal).pvalue > 1e-4


@pytest.mark.parametrize("length", [3, 4, 5])
def test_all_orders_are_equally_likely(length):
    orders = list(itertools.permutations(range(length)))
    epochs = 40 * len(orders)
    places = np.arange(epochs * length, dtype=np.int64)
    rows = order.rows_on_host(np.asarray(order.round_keys(0)), places, length)
    counts = collections.Counter(map(tuple, rows.reshape(epochs, length).tolist()))
    assert scipy.stats.chisquare([counts[each] for each in orders]).pvalue > 1e-4


@pytest.mark.parametrize("length", [9973, 10007, 60000, 100003])
def test_consecutive_places_show_unrelated_examples(length):
    """Also of a prime number of examples: in 50 epochs, neighbors of a place are neighbors of an example by chance.

    Of ``50 length`` pairs about 100 follow each other in either direction.
    """
    places = np.arange(50 * length, dtype=np.int64)
    rows = order.rows_on_host(np.asarray(order.round_keys(0)), places, length).astype(int)
    close = int(np.sum(np.abs(np.diff(rows)) == 1))
    assert scipy.stats.poisson.sf(close, 100) > 1e-4 and scipy.stats.poisson.cdf(close, 100) > 1e-4
    assert abs(np.corrcoef(rows[1:], rows[:-1])[0, 1]) < 4 / np.sqrt(len(rows))


def test_the_order_of_a_square_of_examples_is_that_of_a_balanced_network():
    """By the textbook: halves that change places in each of eight rounds, on Python's integers."""
    mask, keys = 2**32 - 1, np.asarray(order.round_keys(3)).tolist()

    def mix(x):
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) & mask
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) & mask
        return x ^ (x >> 16)

    def permute(i, epoch, side):
        left, right = divmod(i, side)
        for key in keys:
            f = mix(mix((right + key) & mask) ^ mix((epoch + 0x9E3779B9) & mask))
            left, right = right, (left + f % side) % side
        return left * side + right

    epoch, places = 7, np.arange(7 * 100**2, 8 * 100**2)
    rows = order.rows_on_host(np.asarray(order.round_keys(3)), places, 100**2)
    assert rows.tolist() == [permute(i, epoch, 100) for i in range(100**2)]


@pytest.mark.parametrize("length", [100**2, 60000, 10007])
def test_the_order_takes_no_loop(length):
    """On a GPU, a loop whose length depends on numbers makes the host wait for the device in every step."""
    text = str(
        jax.make_jaxpr(lambda step: order.rows_at(jnp.zeros(8, jnp.uint32), step, length, 64))(0)
    )
    assert "while" not in text and "cond" not in text


def test_far_steps_do_not_overflow():
    source = counting_source(9000, 128)
    step = 2**31 - 1
    rows = rows_of(source, [step])[0].astype(int)
    positions = [(step * 128 + j) for j in range(128)]  # exact, in Python integers
    near = data.epoch_order(
        source.data["order"],
        jnp.asarray([(p // 9000) % 2**32 for p in positions], jnp.uint32),
        jnp.asarray([p % 9000 for p in positions], jnp.uint32),
        9000,
    )
    np.testing.assert_array_equal(rows, near)


def test_images_are_stored_as_bytes_and_scaled_in_the_batch():
    x = np.array([[0], [127], [255]], np.uint8)
    source = data.in_memory(x, np.arange(3), seed=0, batch_size=3)
    assert source.data["x"].dtype == np.uint8
    batch = jax.jit(source.batch_at)(source.data, jnp.int32(0))
    expected = x[np.asarray(batch["y"])].astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(batch["x"], expected, atol=1e-7)
    assert source.steps_per_epoch == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(), (2,), (4, 3, 2)])
def test_examples_are_rows_on_the_device_and_have_their_shape_in_a_batch(shape, dtype):
    """And the fingerprint is that of the arrays as they were given: runs of before go on."""
    x = np.random.default_rng(0).integers(0, 256, (7, *shape)).astype(dtype)
    y = np.arange(7, dtype=np.int32)
    source = data.in_memory(x, y, seed=0, batch_size=5)
    assert source.data["x"].shape == (7, x[0].size) and source.data["x"].dtype == dtype
    assert source.fingerprint == data.sources.fingerprint_of(x, y)
    batch = source.batch_at(source.data, jnp.int32(1))
    expected = x[np.asarray(batch["y"])].astype(np.float32)
    expected = expected / np.float32(127.5) - 1 if dtype == np.uint8 else expected
    np.testing.assert_allclose(batch["x"], expected, atol=1e-6)
    np.testing.assert_array_equal(source.examples, x)
