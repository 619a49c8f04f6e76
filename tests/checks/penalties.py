"""Penalties in tests: the checks against algebra on critics whose gradient is known."""

import jax
import jax.numpy as jnp
import numpy as np

RNG = np.random.default_rng(0)
A = RNG.normal(size=(5, 5))
A = (A + A.T) / 2
B = RNG.normal(size=5)
REAL, FAKE = RNG.normal(size=(7, 5)), RNG.normal(size=(7, 5))


def quadratic(parameters):
    """D(x) = x'Ax/2 + b'x, with gradient Ax + b."""
    a, b = parameters
    return lambda x: 0.5 * jnp.sum(x * (x @ a), axis=-1) + x @ b


def check_on_quadratic_critic(name: str, penalty) -> None:
    """T1.3: value and parameter gradients of R1 and R2 in closed form; catches a lost 1/2 and a detached penalty."""
    x = {"r1": REAL, "r2": FAKE}[name]
    g = x @ A + B

    def mean_penalty(parameters):
        return jnp.mean(penalty(quadratic(parameters), REAL, FAKE, jax.random.key(0)))

    with jax.enable_x64(True):
        value, (da, db) = jax.value_and_grad(mean_penalty)((jnp.asarray(A), jnp.asarray(B)))
        per_example = penalty(quadratic((A, B)), REAL, FAKE, jax.random.key(0))
    np.testing.assert_allclose(per_example, 0.5 * (g**2).sum(1), rtol=1e-12)
    np.testing.assert_allclose(value, 0.5 * (g**2).sum(1).mean(), rtol=1e-12)
    np.testing.assert_allclose(db, g.mean(0), rtol=1e-12)
    # D sees A only through x'Ax, so JAX's dA is symmetric already; compare with the symmetrized closed form.
    outer = np.einsum("ni,nj->nij", g, x).mean(0)
    da = np.asarray(da)
    np.testing.assert_allclose((da + da.T) / 2, (outer + outer.T) / 2, rtol=1e-12)


def check_gradient_penalty(penalty) -> None:
    """WGAN-GP on the critic |x|^2/2, whose gradient norm is |x|: which points are used can be read off the value."""
    b, n = 64, 200
    keys = jax.random.split(jax.random.key(1), n)
    real, fake = np.zeros((b, 2, 3)), np.full((b, 2, 3), 0.6)
    critic = lambda x: 0.5 * jnp.sum(jnp.square(x), axis=(1, 2))  # noqa: E731
    values = jax.vmap(lambda k: penalty(critic, jnp.asarray(real), jnp.asarray(fake), k))(keys)
    # x = t * fake with one t per example: norm = (1 - t) * 0.6 * sqrt(6), so each value gives back one t;
    # norms fall on both sides of 1.
    norm = 0.6 * np.sqrt(6)
    expected_mean = (norm**2) / 3 - norm + 1  # E (u n - 1)^2, u uniform
    expected_std = np.sqrt(norm**4 / 5 - norm**3 + 2 * norm**2 - 2 * norm + 1 - expected_mean**2)
    standard_error = expected_std / np.sqrt(b * n)
    assert abs(float(jnp.mean(values)) - expected_mean) < 5 * standard_error
    assert abs(float(jnp.std(values)) / expected_std - 1) < 0.05
    assert (
        len(np.unique(np.asarray(values[0]).round(6))) > b // 2
    )  # a t of its own for every example
