"""Update rules on the project's own trainer: ``gan.make(rule=...)`` and ``game.make``."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks.gans import at, dirac, mlp_gan, params_of, run, trajectory

from bpgan.algorithms import game, gan
from bpgan.losses import LOSSES
from bpgan.penalties import PENALTIES, weighted

ETA = 0.1


def dirac_game(loss="nonsaturating", gamma=0.0):
    """The game that the trainer plays on the Dirac-GAN, at the equilibrium."""
    algorithm = dirac(gan, LOSSES[loss], optax.sgd(0.1), gamma=gamma)
    at_rest = jax.tree.map(jnp.zeros_like, algorithm.init(jax.random.key(0)))
    return game.of(algorithm, at_rest, {"x": jnp.zeros((4, 1))}, jax.random.key(1))


@pytest.mark.medium
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


@pytest.mark.slow
def test_the_game_of_networks_has_the_gradients_of_the_step():
    """``game.of`` a GAN with penalties and memory: xi is what a step of SGD moves along."""
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)}
    options = dict(
        penalties=[weighted(0.1, PENALTIES["r1"]), weighted(0.3, PENALTIES["lecam"])], ema_decay=0.9
    )
    algorithm = mlp_gan(rule=game.simultaneous, tx=optax.sgd(1.0), **options)
    state = algorithm.init(jax.random.key(0))
    losses, params = game.of(algorithm, state, batch, jax.random.key(1))
    xi, _ = game.field(losses)(params)
    moved, _ = algorithm.step(state, batch, jax.random.key(1))
    for before, after, gradient in zip(params_of(state), params_of(moved), xi, strict=True):
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
            gan, LOSSES["nonsaturating"], optax.sgd(scale * h), gamma=gamma, rule=game.simultaneous
        )
        state = algorithm.init(jax.random.key(0))
        near = at(state, g=jnp.float64(1e-3), d=jnp.float64(1e-3))
        step = jax.jit(lambda s, a=algorithm: jax.lax.fori_loop(
            0, 1500, lambda i, s: a.step(s, {"x": jnp.zeros((4, 1))}, jax.random.key(1))[0], s))  # fmt: skip
        end = step(near)
        far[scale] = float(jnp.hypot(*params_of(end)))
    assert far[0.99] < 2e-4 < 1e-3 < 1e-2 < far[1.01]


def test_alternation_is_the_trainer_s_own_update(x64):
    """On the Dirac-GAN, whose latents do not matter, the same path with the rule as without one."""
    plain, ruled = (
        dirac(gan, LOSSES["nonsaturating"], optax.adam(0.1), gamma=0.3, rule=rule)
        for rule in (None, game.alternating)
    )
    np.testing.assert_allclose(
        trajectory(ruled, 100), trajectory(plain, 100), rtol=1e-9, atol=1e-12
    )


def test_simultaneous_descent_moves_both_from_the_same_point(x64):
    """WGAN + R1: ``theta <- theta + h psi``, ``psi <- psi - h (theta + gamma psi)``, in NumPy."""
    h, gamma = 0.1, 0.3
    algorithm = dirac(gan, LOSSES["wasserstein"], optax.sgd(h), gamma=gamma, rule=game.simultaneous)
    points = [np.array([1.0, -1.0])]
    for _ in range(100):
        theta, psi = points[-1]
        points.append(np.array([theta + h * psi, psi - h * (theta + gamma * psi)]))
    np.testing.assert_allclose(trajectory(algorithm, 100), points, rtol=1e-9, atol=1e-12)


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


@pytest.mark.slow
@pytest.mark.parametrize("rule", game.RULES)
def test_every_rule_trains_networks(rule):
    """With Adam, penalties and memory, on the same metrics as without."""
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)}
    options = dict(
        tx=optax.adam(1e-3),
        penalties=[weighted(0.1, PENALTIES["r1"]), weighted(0.3, PENALTIES["lecam"])],
        ema_decay=0.9,
    )
    state, metrics = run(mlp_gan(rule=game.RULES[rule], **options), 3, batch)
    _, plain = run(mlp_gan(**options), 1, batch)
    assert metrics.keys() == plain.keys()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, metrics)))
    assert state.memory["penalty1"]["count"] == 3 and state.step == 3
