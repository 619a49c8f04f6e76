"""Update rules on the project's own trainer: ``gan.make(rule=...)`` and ``game.make``."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_gan import dirac, mlp_gan, run, trajectory

from bpgan.algorithms import game, gan
from bpgan.losses import LOSSES
from bpgan.penalties import PENALTIES

ETA = 0.1


def dirac_game(loss="nonsaturating", gamma=0.0):
    """The game that the trainer plays on the Dirac-GAN, at the equilibrium."""
    make = lambda rule: dirac(gan, LOSSES[loss], optax.sgd(0.1), gamma=gamma, rule=rule)  # noqa: E731
    state = make(game.simultaneous).init(jax.random.key(0))
    at_rest = jax.tree.map(jnp.zeros_like, state)
    return game.of(make, at_rest, {"x": jnp.zeros((4, 1))}, jax.random.key(1))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("loss", ["minimax", "nonsaturating"])
def test_the_spectrum_of_the_trainer_s_game(x64, loss, gamma):
    """T2.2: SCIENCE section 2.1's eigenvalues, ``gamma / 2 +- sqrt(gamma^2 / 4 - 1 / 4)`` in the sign of descent."""
    losses, params = dirac_game(loss, gamma)
    found = np.sort_complex(game.spectrum(jax.jit(losses), params))
    root = np.sqrt(complex(gamma**2 / 4 - 1 / 4))
    np.testing.assert_allclose(
        found, np.sort_complex(gamma / 2 + root * np.array([1, -1])), atol=1e-9
    )


@pytest.mark.medium
def test_the_game_of_networks_has_the_gradients_of_the_step():
    """``game.of`` a GAN with penalties and memory: xi is what a step of SGD moves along."""
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)}
    options = dict(penalties=[(0.1, PENALTIES["r1"]), (0.3, PENALTIES["lecam"])], ema_decay=0.9)
    make = lambda rule: mlp_gan(rule=rule, tx=optax.sgd(1.0), **options)  # noqa: E731
    state = make(game.simultaneous).init(jax.random.key(0))
    losses, params = game.of(make, state, batch, jax.random.key(1))
    xi, _ = game.field(losses)(params)
    moved, _ = make(game.simultaneous).step(state, batch, jax.random.key(1))
    for player, gradient in zip((0, 1), xi, strict=True):
        before, after = ((s.g, s.d)[player].params for s in (state, moved))
        jax.tree.map(
            lambda b, a, g: np.testing.assert_allclose(b - a, g, rtol=1e-4, atol=1e-6),
            before, after, gradient,
        )  # fmt: skip
    ritz = game.arnoldi(jax.jit(losses), params, jax.random.key(2), 6)
    assert len(ritz) == 6 and np.isfinite(ritz).all()


@pytest.mark.medium
@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_the_predicted_step_is_the_largest_stable_one(x64, gamma):
    """One per cent below it the project's trainer converges, one above it does not."""
    values = game.spectrum(*dirac_game("nonsaturating", gamma))
    h = game.largest_stable_step(values).step
    far = {}
    for scale in (0.99, 1.01):
        algorithm = dirac(
            gan, LOSSES["nonsaturating"], optax.sgd(scale * h), gamma=gamma, simultaneous=True
        )
        state = algorithm.init(jax.random.key(0))
        near = state._replace(
            g=state.g._replace(params=jnp.float64(1e-3)),
            d=state.d._replace(params=jnp.float64(1e-3)),
        )
        step = jax.jit(lambda s, a=algorithm: jax.lax.fori_loop(
            0, 1500, lambda i, s: a.step(s, {"x": jnp.zeros((4, 1))}, jax.random.key(1))[0], s))  # fmt: skip
        end = step(near)
        far[scale] = float(jnp.hypot(end.g.params, end.d.params))
    assert far[0.99] < 2e-4 < 1e-3 < 1e-2 < far[1.01]


@pytest.mark.parametrize("rule", ["simultaneous", "alternating"])
def test_rules_are_the_trainer_s_own_updates(x64, rule):
    """On the Dirac-GAN, whose latents do not matter, the same path as without a rule."""
    options = dict(gamma=0.3)
    plain = dirac(
        gan,
        LOSSES["nonsaturating"],
        optax.adam(0.1),
        simultaneous=rule == "simultaneous",
        **options,
    )
    ruled = dirac(gan, LOSSES["nonsaturating"], optax.adam(0.1), rule=game.RULES[rule], **options)
    np.testing.assert_allclose(
        trajectory(ruled, 100), trajectory(plain, 100), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    "rule,radius",
    [
        ("extragradient", np.sqrt((1 - ETA**2) + ETA**4)),
        ("consensus", np.sqrt((1 - ETA) ** 2 + ETA**2)),
    ],
)
def test_rules_on_the_trainer(x64, rule, radius):
    """T2.3 through ``gan.make``: the Wasserstein Dirac-GAN is the bilinear game."""
    points = trajectory(
        dirac(gan, LOSSES["wasserstein"], optax.sgd(ETA), rule=game.RULES[rule]), 200
    )
    norms = np.linalg.norm(points, axis=1)
    np.testing.assert_allclose(norms[1:] / norms[:-1], radius, rtol=1e-9)


@pytest.mark.medium
@pytest.mark.parametrize("rule", game.RULES)
def test_every_rule_trains_networks(rule):
    """With Adam, penalties and memory, on the same metrics as without."""
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)}
    options = dict(
        tx=optax.adam(1e-3),
        penalties=[(0.1, PENALTIES["r1"]), (0.3, PENALTIES["lecam"])],
        ema_decay=0.9,
    )
    state, metrics = run(mlp_gan(rule=game.RULES[rule], **options), 3, batch)
    _, plain = run(mlp_gan(**options), 1, batch)
    assert metrics.keys() == plain.keys()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, metrics)))
    assert state.memory["penalty1"]["count"] == 3 and state.step == 3
