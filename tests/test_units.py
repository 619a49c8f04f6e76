"""bpgan/insight/units.py: planted units are found, the controls hold, and every network of bpgan has units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bpgan.insight import units
from bpgan.nets import linen_net
from bpgan.nets.dcgan import Generator
from bpgan.types import UserError


class Painter(nn.Module):
    """Channel c of ``first`` writes class ``WRITES[c]``; the last two write nothing."""

    @nn.compact
    def __call__(self, z, labels=None):
        a = nn.relu(nn.Dense(6, name="first")(z))
        x = nn.Dense(4, use_bias=False, name="paint")(a)
        return x if labels is None else x + 0.1 * jax.nn.one_hot(labels, 4)


WRITES = [2, 0, 1, 3]


def variables():
    first, paint = np.zeros((4, 6), np.float32), np.zeros((6, 4), np.float32)
    first[range(4), range(4)] = 1
    paint[range(4), WRITES] = 1
    return {"params": {"first": {"kernel": first, "bias": np.zeros(6)}, "paint": {"kernel": paint}}}


def painter(z, *labels):
    return Painter().apply(variables(), z, *labels)


Z = jax.nn.one_hot(jnp.arange(40) % 4, 4)


def logits(x):
    return 5 * np.asarray(x)


@pytest.fixture(scope="module")
def dissection():
    return units.dissect(painter, Z, "first", logits, block=100)


def test_planted_units_are_found(dissection):
    """Unit c writes class WRITES[c]: without it these samples are all zero, and become the first class."""
    found = dissection
    assert [layer.name for layer in units.layers(painter, Z)] == ["first"]
    assert found.probabilities.argmin(1)[:4].tolist() == WRITES
    for c, k in enumerate(WRITES):
        expected = np.full(4, 0.25)
        expected[k] -= 0.25
        expected[0] += 0.25
        np.testing.assert_allclose(found.histograms[c], expected)
        assert found.histogram[c] == found.changed[c] == (0.25 if k else 0)
        # From the right class with p to one of four: the mean over samples is a quarter of the change.
        p = np.exp(5) / (np.exp(5) + 3)
        assert found.probabilities[c, k] == pytest.approx((0.25 - p) / 4, abs=1e-6)
    np.testing.assert_allclose(found.pixels, [1 / 16] * 4 + [0] * 2)
    for what in (found.histogram, found.changed, found.probabilities):
        assert not np.any(what[4:])


def test_controls(dissection):
    """Nothing ablated is nothing changed, bit for bit; everything ablated leaves one sample."""
    assert dissection.none == (0.0, 0.0, 1.0)
    assert dissection.all.spread == 0 and dissection.all.histogram == 0.75
    assert dissection.all.pixels == pytest.approx(0.25)
    none, every = np.zeros(6, bool), np.ones(6, bool)
    np.testing.assert_array_equal(units.ablate(painter, Z, "first", none), painter(Z))
    assert not np.any(units.ablate(painter, Z, "first", every))
    labels = jnp.arange(40) % 2  # enters behind the layer, and so is still there
    left = units.ablate(lambda z: painter(z, labels), Z, "first", every)
    np.testing.assert_allclose(left, 0.1 * jax.nn.one_hot(labels, 4))


def test_blocks_and_choices_are_the_same_numbers(dissection):
    told = []
    some = units.dissect(painter, Z, "first", units=[3, 0], block=40, tell=told.append)
    np.testing.assert_array_equal(some.pixels, dissection.pixels[[3, 0]])
    assert some.units.tolist() == [3, 0] and told == [1, 2]
    assert some.histogram is None and some.base is None and np.isnan(some.none.histogram)


def test_an_activation_is_captured():
    x, a = units.capture(painter, Z, "first")
    np.testing.assert_array_equal(x, painter(Z))
    np.testing.assert_array_equal(a[:, :4], Z)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: units.layers(painter, jnp.zeros((2, 5))),
            r"z: is \[2, 5\], which G does not take",
        ),
        (lambda: units.layers(painter, jnp.zeros((0, 4))), r"z: is \[0, 4\], must be \[n, ...\]"),
        (lambda: units.layers(lambda z: z, Z), "no hidden layer"),
        (lambda: units.dissect(painter, Z, "second"), "layer=second: must be one of first$"),
        (
            lambda: units.dissect(painter, Z, "first", units=[6]),
            "units: of first must be from 0 to 5",
        ),
        (lambda: units.ablate(painter, Z, "first", np.zeros(5, bool)), r"off: is \[5\], must be"),
        (lambda: units.capture(painter, Z, "second"), "layer=second: must be one of first"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(UserError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


@pytest.mark.medium
def test_a_network_with_batch_norm_and_classes():
    """Only norms are layers, not the convolutions before them; through them, a dead unit does nothing."""
    net = linen_net(Generator((8, 8, 1), (3, 2), classes=2, upsample="resize"))
    z, y = jax.random.normal(jax.random.key(0), (6, 4)), jnp.arange(6) % 2
    found = jax.jit(net.init)(jax.random.key(1), z, y)

    def g(z):
        return net.apply(found, z, y, train=False)[0]

    names = [layer.name for layer in units.layers(g, z)]
    assert "norm0" in names and "norm1" in names and "conv1" not in names
    norm = found["params"]["norm0"]
    norm["scale"] = norm["scale"].at[1].set(0.0)
    norm["bias"] = norm["bias"].at[1].set(0.0)
    seen = units.dissect(g, z, "norm0")
    assert seen.pixels[1] == 0 and (seen.pixels[[0, 2]] > 0).all()
    assert seen.none.pixels < 1e-6 and seen.all.spread < 1e-6
