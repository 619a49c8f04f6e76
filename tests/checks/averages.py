"""Averages by powers, against their profiles and by hand."""

import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

EXPONENTS = {0.05: 16.9722, 0.10: 6.9372, 0.20: 1.8262}
"""As printed by Karras et al. 2024 for their widths."""


def check_power(power: Callable[[float], Callable[[Any], Any]]) -> None:
    """Thirty steps of the recursion give w_i the weight ``(i^(g + 1) - (i - 1)^(g + 1)) / 30^(g + 1)``."""
    for sigma, gamma in EXPONENTS.items():
        decay, n = power(sigma), 30
        a = np.zeros(n + 1)
        a[0] = 1e3
        for step in range(n):
            d = float(decay(jnp.float32(step)))
            a *= d
            a[step + 1] += 1 - d
        expected = np.diff((np.arange(n + 1) / n) ** (gamma + 1))
        np.testing.assert_allclose(a[1:], expected, atol=2e-5)
        assert a[0] == 0


def density(profile: Any, tau: np.ndarray) -> np.ndarray:
    """By its definition, 0 after the last step."""
    g, t = profile
    return np.where(tau < t, (g + 1) * tau**g / t ** (g + 1), 0.0)


def check_combine(module: types.ModuleType) -> None:
    """Inner products by quadrature, and the coefficients' sum."""
    tau = (np.arange(100_000) + 0.5) / 10_000
    for a, b in [((2.0, 10.0), (3.5, 4.0)), ((3.5, 4.0), (2.0, 10.0)), ((1.0, 7.0), (5.0, 7.0))]:
        a, b = module.Profile(*a), module.Profile(*b)
        integral = np.mean(density(a, tau) * density(b, tau)) * 10
        np.testing.assert_allclose(module.inner(a, b), integral, rtol=1e-3)
    profiles = [module.Profile(g, t) for t in (500, 1000) for g in EXPONENTS.values()]
    found = module.combine(profiles, module.Profile(4.0, 1000))
    np.testing.assert_allclose(found.coefficients.sum(), 1, atol=1e-12)


def check_reload(module: types.ModuleType) -> None:
    """G follows D, which stands still at 1; after the second of three steps G goes on from its average."""

    def to_d(now: Any) -> Any:
        return jnp.square(now.players["g"].params - now.players["d"].params) / 2, module.Aux()

    def nothing(now: Any) -> Any:
        return 0.0 * now.players["d"].params, module.Aux()

    algorithm = module.play(
        lambda key: {"g": {"params": jnp.zeros(())}, "d": {"params": jnp.ones(())}},
        [
            module.Turn("d", [module.Term(nothing)], optax.sgd(0.5)),
            module.Turn("g", [module.Term(to_d)], optax.sgd(0.5)),
        ],
        ema={"g": module.Averages((lambda step: 0.5 + 0 * step,), 2)},
    )
    state, g, average = algorithm.init(jax.random.key(0)), 0.0, 0.0
    for t in range(3):
        state, _ = algorithm.step(state, {"x": jnp.zeros((2, 1))}, jax.random.key(0))
        g = g + 0.5 * (1 - g)
        average = (average + g) / 2
        g = average if t == 1 else g
    np.testing.assert_allclose(state.players["g"].params, g, rtol=1e-6)
    np.testing.assert_allclose(state.players["d"].params, 1, rtol=1e-6)
