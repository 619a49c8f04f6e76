"""bpgan/insight/dynamics.py: spectra against the table of the Dirac-GAN and against dense Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks.gans import DIRAC_D, DIRAC_G, dirac, mlp_gan

from bpgan.algorithms import gan
from bpgan.insight import dynamics
from bpgan.losses import LOSSES
from bpgan.penalties import PENALTIES, weighted
from bpgan.types import UserError


@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_the_dirac_gan(x64, gamma):
    """Eigenvalues ``gamma/2 +- sqrt(gamma^2/4 - 1/4)`` at the equilibrium, and what they predict, by hand."""
    algorithm = dirac(gan, LOSSES["nonsaturating"], optax.sgd(0.1), gamma=gamma)
    state = jax.tree.map(jnp.zeros_like, algorithm.init(jax.random.key(0)))
    play = dynamics.of_run(algorithm, {"x": jnp.zeros((4, 1))}, jax.random.key(1))
    (at_rest,) = dynamics.trajectory(play, [(7, state)], jax.random.key(2))
    step, found = at_rest
    root = np.sqrt(complex(gamma**2 / 4 - 1 / 4))
    expected = np.array([gamma / 2 + root, gamma / 2 - root])
    assert step == 7 and found.exact and found.stable
    np.testing.assert_allclose(
        np.sort_complex(found.eigenvalues), np.sort_complex(expected), atol=1e-9
    )
    assert found.max_real == pytest.approx(expected.real.max())
    assert found.min_real == pytest.approx(expected.real.min())
    # Complex for gamma < 1: |l|^2 = 1/4 and Re = gamma / 2. Real beyond: 2 / l of the larger one.
    by_hand = 4 * gamma if gamma < 1 else 2 / expected.real.max()
    assert found.step == pytest.approx(by_hand)
    ratio = np.sqrt(1 - gamma**2) / gamma if gamma < 1 else 0.0
    assert found.rotation == pytest.approx(ratio, abs=1e-9)


def test_numbers_by_hand():
    found = dynamics.describe(np.array([1 + 3j, 1 - 3j, 0, -4, 0.5]))
    assert np.abs(found.eigenvalues).tolist() == pytest.approx([4, 10**0.5, 10**0.5, 0.5, 0])
    assert (found.max_real, found.min_real, found.stable) == (1, -4, False)
    assert found.rotation == pytest.approx(3) and found.step == pytest.approx(0.2)
    assert dynamics.describe(found.eigenvalues, keep=1).step == pytest.approx(0.5)
    still = dynamics.describe(np.zeros(3))
    assert (still.step, still.rotation, still.stable) == (np.inf, 0, False)
    assert dynamics.describe(np.array([2j, -2j])).rotation == np.inf
    with pytest.raises(ValueError, match="finite"):
        dynamics.describe(np.array([1.0, np.nan]))
    with pytest.raises(UserError, match="iterations=0: must be"):
        dynamics.solver(lambda state: state, jax.random.key(0), iterations=0)


def test_a_period_of_lazy_penalties():
    assert dynamics.phases([]) == dynamics.phases([1]) == [(0, 1)]
    for every in ([4], [4, 16], [2, 3]):
        shares = dynamics.phases(every)
        total = sum(count for _, count in shares)
        for n in every:  # each is due in one update of n
            assert sum(count for offset, count in shares if offset % n == 0) * n == total


def test_a_lazy_penalty_counts_as_it_does_on_average(x64):
    """R1 in every second update, twice as much: eigenvalues of R1 in every one, at steps that are due and not."""
    networks = gan.Networks(
        DIRAC_G, DIRAC_D, gan.uniform_latents(1, jnp.float64), (1,), jnp.float64
    )
    tx = optax.sgd(0.1)
    penalties = [weighted(0.3, PENALTIES["r1"], 2)]
    loss = LOSSES["nonsaturating"]
    algorithm = gan.make(networks, loss, gan.Optimizers(tx, tx), penalties=penalties)
    state = jax.tree.map(jnp.zeros_like, algorithm.init(jax.random.key(0)))
    play = dynamics.of_run(algorithm, {"x": jnp.zeros((4, 1))}, jax.random.key(1), [2])
    solve = dynamics.solver(play, jax.random.key(2))
    for step in (4, 5):
        found = solve(state._replace(step=jnp.asarray(step, jnp.int32)))
        np.testing.assert_allclose(found.eigenvalues.real, 0.15, atol=1e-9)
        np.testing.assert_allclose(np.abs(found.eigenvalues), 0.5, atol=1e-9)


@pytest.mark.medium
def test_the_outermost_eigenvalues_of_a_gan(monkeypatch):
    """Arnoldi's are those of the dense Jacobian of the same game; compiled once, with the same start."""
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)}
    algorithm = mlp_gan()
    play = dynamics.of_run(algorithm, batch, jax.random.key(1))
    state = jax.jit(algorithm.init)(jax.random.key(0))
    dense = dynamics.solver(play, jax.random.key(2))(state)
    assert dense.exact
    monkeypatch.setattr(dynamics, "DENSE", 0)
    solve = dynamics.solver(play, jax.random.key(2), iterations=25, keep=3)
    found, again = solve(state), solve(state)
    assert not found.exact and len(found.eigenvalues) == 3
    top = np.abs(dense.eigenvalues)[:3]
    np.testing.assert_allclose(np.abs(found.eigenvalues), top, rtol=1e-2)
    np.testing.assert_array_equal(again.eigenvalues, found.eigenvalues)
