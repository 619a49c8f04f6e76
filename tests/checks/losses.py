"""Losses in tests: closed forms from the papers in NumPy, and the checks against them."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from bpgan.losses import LOSSES
from bpgan.types import AdversarialLoss

GRID = np.array([-40, -3, -0.5, 0, 0.5, 3, 40], np.float64)


def sp(t):
    return np.logaddexp(t, 0.0)


s = scipy.special.expit


def relativistic_average(f, df):
    """``REFERENCE`` of a relativistic average loss; of sums over the batch, so that means of others enter."""
    u, v = (lambda r, f_: r - f_.mean()), (lambda r, f_: f_ - r.mean())
    return (
        lambda r, f_: f(u(r, f_)) + f(-v(r, f_)),
        lambda r, f_: f(v(r, f_)) + f(-u(r, f_)),
        lambda r, f_: df(u(r, f_)) + np.mean(df(-v(r, f_))),
        lambda r, f_: -df(-v(r, f_)) - np.mean(df(u(r, f_))),
        lambda r, f_: -df(-u(r, f_)) - np.mean(df(v(r, f_))),
        lambda r, f_: df(v(r, f_)) + np.mean(df(-u(r, f_))),
    )


# name: (D, G, dD/dreal, dD/dfake, dG/dreal, dG/dfake), written from the papers in NumPy.
REFERENCE = {
    "minimax": (
        lambda r, f: sp(-r) + sp(f),
        lambda r, f: -sp(f),
        lambda r, f: -s(-r),
        lambda r, f: s(f),
        lambda r, f: 0 * r,
        lambda r, f: -s(f),
    ),
    "nonsaturating": (
        lambda r, f: sp(-r) + sp(f),
        lambda r, f: sp(-f),
        lambda r, f: -s(-r),
        lambda r, f: s(f),
        lambda r, f: 0 * r,
        lambda r, f: -s(-f),
    ),
    "least_squares": (
        lambda r, f: 0.5 * (r - 1) ** 2 + 0.5 * f**2,
        lambda r, f: 0.5 * (f - 1) ** 2,
        lambda r, f: r - 1,
        lambda r, f: f,
        lambda r, f: 0 * r,
        lambda r, f: f - 1,
    ),
    "hinge": (
        lambda r, f: np.maximum(0, 1 - r) + np.maximum(0, 1 + f),
        lambda r, f: -f,
        lambda r, f: -1.0 * (r < 1),
        lambda r, f: 1.0 * (f > -1),
        lambda r, f: 0 * r,
        lambda r, f: -1 + 0 * f,
    ),
    "wasserstein": (
        lambda r, f: f - r,
        lambda r, f: -f,
        lambda r, f: -1 + 0 * r,
        lambda r, f: 1 + 0 * f,
        lambda r, f: 0 * r,
        lambda r, f: -1 + 0 * f,
    ),
    "relativistic": (
        lambda r, f: sp(f - r),
        lambda r, f: sp(r - f),
        lambda r, f: -s(f - r),
        lambda r, f: s(f - r),
        lambda r, f: s(r - f),
        lambda r, f: -s(r - f),
    ),
    "least_squares_pearson": (
        lambda r, f: 0.5 * (r - 1) ** 2 + 0.5 * (f + 1) ** 2,
        lambda r, f: 0.5 * f**2,
        lambda r, f: r - 1,
        lambda r, f: f + 1,
        lambda r, f: 0 * r,
        lambda r, f: f,
    ),
    "relativistic_average": relativistic_average(lambda t: sp(-t), lambda t: -s(-t)),
    "relativistic_average_hinge": relativistic_average(
        lambda t: np.maximum(0, 1 - t), lambda t: -1.0 * (t < 1)
    ),
    "relativistic_average_least_squares": relativistic_average(
        lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1)
    ),
}


ANCHORS = {  # value at D = 0, as the literature states it: (D, G)
    "minimax": (np.log(4), -np.log(2)),
    "nonsaturating": (np.log(4), np.log(2)),
    "least_squares": (0.5, 0.5),
    "hinge": (2.0, 0.0),
    "wasserstein": (0.0, 0.0),
    "relativistic": (np.log(2), np.log(2)),
    "least_squares_pearson": (1.0, 0.0),
    "relativistic_average": (np.log(4), np.log(4)),
    "relativistic_average_hinge": (2.0, 2.0),
    "relativistic_average_least_squares": (2.0, 2.0),
}


def players(name: str):
    """D's and G's function of the logits; what D remembers is that of the start."""
    loss = LOSSES[name]
    if loss.memory is None:
        return loss.d, loss.g
    return lambda r, f: loss.d(r, f, loss.memory)[0], loss.g


def check_values_and_gradients(name: str, loss: AdversarialLoss) -> None:
    """T1.1: values and both partial derivatives on the whole grid of logit pairs, 1e-6 relative in float32."""
    r, f = (a.ravel() for a in np.meshgrid(GRID, GRID))
    d, g, *partials = REFERENCE[name]
    r32, f32 = jnp.asarray(r, jnp.float32), jnp.asarray(f, jnp.float32)
    tiny = 2e-6 if "average" in name else 1e-12  # differences of means cancel
    np.testing.assert_allclose(loss.d(r32, f32), d(r, f), rtol=1e-6, atol=tiny)
    np.testing.assert_allclose(loss.g(r32, f32), g(r, f), rtol=1e-6, atol=tiny)
    ours = [
        jax.grad(lambda r, f, fn=fn: jnp.sum(fn(r, f)), argnums=argnum)(r32, f32)
        for fn in (loss.d, loss.g)
        for argnum in (0, 1)
    ]
    for got, expected in zip(ours, partials, strict=True):
        np.testing.assert_allclose(got, expected(r, f), rtol=2e-6, atol=tiny)


def check_anchor(name: str, loss: AdversarialLoss) -> None:
    """T1.2: the published values at D = 0."""
    zero = jnp.zeros(4)
    for fn, expected in zip((loss.d, loss.g), ANCHORS[name], strict=True):
        np.testing.assert_allclose(fn(zero, zero), np.full(4, expected), rtol=1e-6, atol=1e-7)


def is_invariant(d) -> bool:
    """Whether D's loss does not feel a constant that is added to all logits."""
    real, fake = np.array([0.3, -1.0], np.float32), np.array([-0.2, 0.4], np.float32)
    return bool(np.allclose(d(real, fake), d(real + 2, fake + 2), atol=1e-6))


def balances_at_zero(loss: AdversarialLoss) -> bool:
    """Whether a D that cannot tell reals from fakes is best off with logits around 0, by trying it out."""
    kept = () if loss.memory is None else (loss.memory,)

    def undecided(logit: float) -> float:
        both = jnp.full(1, logit, jnp.float32)
        return float(jnp.mean(jax.tree.leaves(loss.d(both, both, *kept))[0]))

    # Hinge is flat between -1 and 1, so it is asked beyond.
    low, zero, high = undecided(-3.0), undecided(0.0), undecided(3.0)
    rise, rounding = min(low, high) - zero, 1e-5 * max(abs(low), abs(zero), abs(high))
    return abs(high - low) <= rounding < rise


def check_generally(loss: AdversarialLoss) -> None:
    """What must hold of any pair: one value per example, and slopes that central differences confirm."""
    kept = () if loss.memory is None else (loss.memory,)
    real, fake = (np.random.default_rng(seed).normal(size=8) for seed in (0, 1))
    direction = np.random.default_rng(2).normal(size=(2, 8))
    with jax.enable_x64(True):
        d = lambda r, f: jax.tree.leaves(loss.d(r, f, *kept))[0]  # noqa: E731
        for player in (d, loss.g):
            mean = lambda at, player=player: jnp.mean(player(*at))  # noqa: E731
            at = jnp.stack([jnp.asarray(real), jnp.asarray(fake)])
            assert player(*at).shape == (8,)
            slope = float(jnp.sum(jax.grad(mean)(at) * direction))
            difference = float(mean(at + 1e-5 * direction) - mean(at - 1e-5 * direction)) / 2e-5
            np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-8)
