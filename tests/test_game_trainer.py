"""Update rules on the project's own trainer: ``gan.make(rule=...)`` and ``game.make``."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_gan import DIRAC_D, DIRAC_G, dirac, mlp_gan, run, trajectory

from bpgan.algorithms import game, gan
from bpgan.losses import LOSSES
from bpgan.penalties import PENALTIES

ETA = 0.1


def dirac_game(loss="nonsaturating", gamma=0.0):
    """The Dirac-GAN's losses, from the project's own loss and penalty."""
    r1 = PENALTIES["r1"]

    def losses(params):
        theta, psi = params
        real, z = jnp.zeros((2, 1)), jnp.zeros((2, 1))
        fake, _ = DIRAC_G.apply({"params": theta}, z, train=True)
        critic = lambda x: DIRAC_D.apply({"params": psi}, x, train=True)[0]  # noqa: E731
        pair = critic(real), critic(fake)
        penalty = gamma * jnp.mean(r1(critic, real, fake, jax.random.key(0)))  # type: ignore
        d = jnp.mean(LOSSES[loss].d(*pair)) + penalty
        return (jnp.mean(LOSSES[loss].g(*pair)), d), ()

    return losses


@pytest.mark.medium
@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_the_predicted_step_is_the_largest_stable_one(x64, gamma):
    """One per cent below it the project's trainer converges, one above it does not."""
    values = game.spectrum(dirac_game("nonsaturating", gamma), (jnp.zeros(()), jnp.zeros(())))
    h = game.largest_stable_step(values)
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
