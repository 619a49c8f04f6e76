"""What adversarial flow models are made of, against closed forms: checks that mutants must fail."""

import jax
import jax.numpy as jnp
import numpy as np

from bpgan.losses import LOSSES, normalized
from bpgan.penalties import Scene, parse
from bpgan.types import Net
from checks.gans import recorder

RNG = np.random.default_rng(3)
N = 4
A = RNG.normal(size=(N, N))
A = (A + A.T) / 2
B, X = RNG.normal(size=N), RNG.normal(size=N)


def scene(**changes) -> Scene:
    """Of nothing in particular."""
    ones = jnp.ones((6, N))
    start = Scene(
        {}, lambda x: x.sum(-1), lambda z: z, ones, ones, ones, (ones[:, 0],) * 2, jax.random.key(0)
    )
    return start._replace(**changes)


def check_differences(name: str, penalty) -> None:
    """The mean of ``r1_fd`` or ``r2_fd`` of a quadratic critic, where the formula of its bias is exact.

    ``E = (|g|^2 + sigma^2 (|H|_F^2 / 2 + tr(H)^2 / 4)) / 2`` at one point, by 2^16 directions.
    """
    n = 2**16
    critic = lambda x: 0.5 * jnp.sum(x * (x @ A), -1) + x @ B  # noqa: E731
    with jax.enable_x64(True):
        here, away = jnp.broadcast_to(jnp.asarray(X), (n, N)), jnp.full((n, N), 9.0)
        pair = (here, away) if name == "r1_fd" else (away, here)
        for sigma in (1.0, 0.1):
            values = np.asarray(penalty(critic, *pair, jax.random.key(1), sigma=sigma))
            g, trace, norm = A @ X + B, np.trace(A), np.sum(A**2)
            expected = (g @ g + sigma**2 * (norm / 2 + trace**2 / 4)) / 2
            error = values.std() / np.sqrt(n)
            assert abs(values.mean() - expected) < 4 * error, (sigma, values.mean(), expected)
            assert error < 0.02 * expected


def check_centering(penalty) -> None:
    """``(r + f)^2`` of each pair, with the slopes ``2 (r + f)``."""
    real, fake = RNG.normal(size=(2, 6))

    def total(logits):
        return jnp.sum(penalty.apply(scene(logits=logits), None)[0])

    with jax.enable_x64(True):
        logits = (jnp.asarray(real), jnp.asarray(fake))
        value, _ = penalty.apply(scene(logits=logits), None)
        slopes = jax.grad(total)(logits)
    np.testing.assert_allclose(value, (real + fake) ** 2, rtol=1e-6)
    for slope in slopes:
        np.testing.assert_allclose(slope, 2 * (real + fake), rtol=1e-6)


def check_transport(penalty) -> None:
    """0 of the identity, ``|a|^2 / n`` of a shift by a; latents ``[b, n]`` stand for samples of any shape."""
    z, shift = RNG.normal(size=(6, 12)).astype(np.float32), RNG.normal(size=(1, 2, 3, 2))
    for moved in (np.zeros_like(shift), shift):
        fake = jnp.asarray(z.reshape(6, 2, 3, 2) + moved, jnp.float32)
        value, _ = penalty.apply(scene(fake=fake, z=jnp.asarray(z)), None)
        np.testing.assert_allclose(value, np.full(6, np.sum(moved**2) / 12), rtol=1e-5, atol=1e-12)


ROWS = 8
TABLE = Net(  # a generator whose parameters are its samples
    lambda key, z: {"params": jax.random.normal(key, (ROWS, N), z.dtype)},
    lambda v, z, train: (v["params"], {}),
)
CRITIC = Net(
    lambda key, x: {"params": 3.0 * jax.random.normal(key, (N,), x.dtype)},
    lambda v, x, train: (jnp.sin(x @ v["params"]), {}),
)


def table_gan(module, penalty="none", *, loss=None, **options):
    """A GAN whose gradient of G is that at its samples; its optimizers record gradients and move nothing."""
    latents = module.normal_latents(N, jnp.float64)
    networks = module.Networks(TABLE, CRITIC, latents, (N,), jnp.float64)
    tx = recorder()
    loss = normalized(LOSSES["relativistic"], **options) if loss is None else loss
    terms = parse(penalty).over(1)
    return module.make(networks, loss, module.Optimizers(tx, tx), penalties=terms)


def after(algorithm, steps=1):
    """Recorded gradients of G after each step, and the last state."""
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, N)))}
    state, found = algorithm.init(jax.random.key(0)), [0.0]
    for _ in range(steps):
        state, _ = jax.jit(algorithm.step)(state, batch, jax.random.key(1))
        found.append(np.asarray(state.players["g"].opt))
    return np.diff(np.array([found[0] + 0 * found[1], *found[1:]]), axis=0), state


def check_normalized(module) -> None:
    """With the gradients g of the plain loss: ``g / sqrt(s)``, s remembered; the penalty of transport as it is."""
    with jax.enable_x64(True):
        plain, _ = after(table_gan(module, loss=LOSSES["relativistic"]), 3)
        found, state = after(table_gan(module), 3)
        s = 0.0
        for g, mine in zip(plain, found, strict=True):
            s = 0.9 * s + 0.1 * g.size * np.sum(g**2)
            np.testing.assert_allclose(mine, g / (np.sqrt(s) + 1e-8), rtol=1e-6)
        np.testing.assert_allclose(state.memory["gradient"], s, rtol=1e-6)
        with_penalty, _ = after(table_gan(module, "g.transport=0.3"), 3)
        alone = after(table_gan(module, "g.transport=0.3", loss=LOSSES["relativistic"]), 3)[0]
    np.testing.assert_allclose(with_penalty - found, alone - plain, rtol=1e-6, atol=1e-12)
    assert np.abs(alone - plain).max() > 1e-3
