"""Schedules, Adam that follows them, clipped weights and half-lives, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpgan import optim


@pytest.mark.parametrize(
    "text,values",  # at steps 0, 25, 50, 75, 100 and 150 of 100
    [
        ("linear:2:1", (2, 1.75, 1.5, 1.25, 1, 1)),
        ("linear:2:1:0.5", (2, 1.5, 1, 1, 1, 1)),
        ("cosine:2:0", (2, 1 + np.sqrt(0.5), 1, 1 - np.sqrt(0.5), 0, 0)),
        ("cosine:0.9:0.99:0.5", (0.9, 0.945, 0.99, 0.99, 0.99, 0.99)),
        ("warmup:0.5:4", (0.08, 2.08, 4, 4, 4, 4)),
        ("warmup:0.5:linear:4:0", (0.08, 1.56, 2, 1, 0, 0)),
        ("hold:0.5:linear:4:0", (4, 4, 4, 2, 0, 0)),
        ("hold:0.25:cosine:2:0:0.5", (2, 2, 0.5, 0, 0, 0)),
    ],
)
def test_schedules(text, values):
    at = jax.jit(optim.schedule(text, 100))
    got = [at(jnp.int32(t)) for t in (0, 25, 50, 75, 100, 150)]
    np.testing.assert_allclose(got, values, rtol=1e-6, atol=1e-7)


def test_numbers_are_numbers():
    assert optim.schedule("2e-4", 10) == 2e-4
    assert optim.schedule(0.5, 10) == 0.5


@pytest.mark.parametrize(
    "text",
    ["", "fast", "nan", "cosine", "cosine:1", "cosine:1:b", "cosine:1:0:0", "cosine:1:0:2",
     "linear:1:0:1:1", "warmup:0.1", "hold:0.5", "hold:0:1", "warmup:2:1", "warmup:0.1:steep:1:0", "sine:1:0"],
)  # fmt: skip
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="must be a number A, linear:A:B"):
        optim.schedule(text, 100)


@pytest.mark.parametrize("text", ["2", "-1", "cosine:0:1.1", "warmup:0.5:linear:-0.1:0"])
def test_values_out_of_bounds_are_refused(text):
    with pytest.raises(ValueError, match=r"A and B in \[0.0, 1.0\]"):
        optim.schedule(text, low=0.0, high=1.0)


def by_hand(gradients, lr, b1, b2):
    """Adam in NumPy, float64, with values of the present update for everything."""
    w = m = v = 0.0
    for t, g in enumerate(gradients):
        m, v = b1(t) * m + (1 - b1(t)) * g, b2(t) * v + (1 - b2(t)) * g * g
        w -= lr(t) * m / (1 - b1(t) ** (t + 1)) / (np.sqrt(v / (1 - b2(t) ** (t + 1))) + 1e-8)
    return w


@pytest.mark.medium
@pytest.mark.parametrize(
    "lr,b1,b2",
    [("0.1", "0.5", "0.9"), ("linear:0.1:0", "0.5", "0.9"), ("0.1", "0", "cosine:0.9:0.99:0.5"),
     ("warmup:0.3:cosine:0.2:0.1", "linear:0.5:0.1", "0.9")],
)  # fmt: skip
def test_adam_follows_its_schedules(x64, lr, b1, b2):
    gradients = np.random.default_rng(0).normal(size=20)
    values = [optim.schedule(text, 20) for text in (lr, b1, b2)]
    tx = optim.adam(*values)

    def update(carry, g):
        w, state = carry
        updates, state = tx.update(g, state, w)
        return (optax.apply_updates(w, updates), state), None

    start = jnp.zeros(())
    (w, _), _ = jax.lax.scan(update, (start, tx.init(start)), jnp.asarray(gradients))
    functions = [(v if callable(v) else lambda t, v=v: v) for v in values]
    np.testing.assert_allclose(w, by_hand(gradients, *functions), rtol=1e-6)


@pytest.mark.medium
@pytest.mark.parametrize("b1,b2,eps", [(0.5, 0.999, 1e-8), (0.0, 0.99, 1e-8), (0.9, 0.99, 1e-3)])
def test_adam_is_that_of_optax(x64, b1, b2, eps):
    """State and updates, from the first update on, also where a gradient is zero."""
    rng = np.random.default_rng(0)
    w = {"kernel": jnp.asarray(rng.normal(size=(3, 4))), "bias": jnp.zeros(4)}
    ours, theirs = optim.adam(0.1, b1, b2, eps), optax.adam(0.1, b1, b2, eps)
    state, expected = ours.init(w), theirs.init(w)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for scale in (1e-3, 1.0, 1e3, 1.0):
        gradient = {"kernel": jnp.asarray(scale * rng.normal(size=(3, 4))), "bias": jnp.zeros(4)}
        updates, state = ours.update(gradient, state, w)
        same, expected = theirs.update(gradient, expected, w)
        for a, b in zip(
            jax.tree.leaves((updates, state)), jax.tree.leaves((same, expected)), strict=True
        ):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_weights_are_clipped_after_the_update():
    tx = optax.chain(optax.sgd(1.0), optim.clip_weights(0.01))
    w = {"a": jnp.array([0.0, 0.009, 0.05]), "b": jnp.array(-0.002)}
    gradient = {"a": jnp.array([0.5, 0.001, 0.0]), "b": jnp.array(0.001)}
    updates, _ = tx.update(gradient, tx.init(w), w)
    w = optax.apply_updates(w, updates)
    np.testing.assert_allclose(w["a"], [-0.01, 0.008, 0.01], rtol=1e-6)
    np.testing.assert_allclose(w["b"], -0.003, rtol=1e-6)


def test_half_life():
    """What an image weighs halves in so many images; early, in a share of those seen."""
    decay = optim.half_life(1000.0, 50, ramp=None)
    np.testing.assert_allclose(decay(7.0) ** 20, 0.5, rtol=1e-6)
    ramped = optim.half_life(1000.0, 50)
    assert ramped(0.0) == 0
    np.testing.assert_allclose(ramped(100.0) ** 5, 0.5, rtol=1e-5)  # 5 % of 5000 images
    np.testing.assert_allclose(ramped(1e5), decay(0.0), rtol=1e-6)
    growing = optim.half_life(optim.schedule("linear:0:1000", 100), 50, ramp=None)
    np.testing.assert_allclose(growing(50.0) ** 10, 0.5, rtol=1e-5)
