"""The two-player step against games whose trajectories are known exactly (SCIENCE T1.4, T2.1, T2.3)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpgan.algorithms import gan
from bpgan.losses import LOSSES
from bpgan.nets import linen_net, mlp
from bpgan.penalties import PENALTIES
from bpgan.types import Net

# The Dirac-GAN (Mescheder et al. 2018, arXiv:1801.04406): real mass at 0, G emits theta, D(x) = psi x.
DIRAC_G = Net(
    init=lambda key, z: {"params": jnp.ones(())},
    apply=lambda v, z, train: (jnp.broadcast_to(v["params"], (z.shape[0], 1)), {}),
)
DIRAC_D = Net(
    init=lambda key, x: {"params": -jnp.ones(())},
    apply=lambda v, x, train: (v["params"] * x[:, 0], {}),
)

# |(theta, psi)| after 500 steps of size 0.1 from (1, -1) for gamma = 0, 0.3, 1, 2; SCIENCE T2.1.
DIRAC_NORMS = {
    ("minimax", True): (2.25358, 9.1957e-4, 2.283e-10, 1.22470e-3),
    ("nonsaturating", True): (0.521108, 8.6412e-4, 8.300e-12, 8.9782e-4),
    ("minimax", False): (1.41427, 5.0234e-4, 4.1223e-9, 1.38170e-3),
    ("nonsaturating", False): (0.381375, 4.3757e-4, 1.13851e-9, 1.08016e-3),
}


def dirac(module, loss, tx, *, gamma=0.0, penalty=PENALTIES["r1"], **options):
    return module.make(
        DIRAC_G,
        DIRAC_D,
        loss,
        tx,
        tx,
        latents=module.uniform_latents(1, jnp.float64),
        data_shape=(1,),
        dtype=jnp.float64,
        penalties=[(gamma, penalty)],
        **options,
    )


def trajectory(algorithm, steps: int, rows: int = 4) -> np.ndarray:
    """(theta, psi) after each step, float64 [steps + 1, 2]."""
    batch = {"x": jnp.zeros((rows, 1))}

    def body(state, _):
        state, _ = algorithm.step(state, batch, jax.random.key(0))
        return state, jnp.stack([state.g.params, state.d.params])

    state = algorithm.init(jax.random.key(1))
    start = np.array([[state.g.params, state.d.params]])
    _, points = jax.jit(lambda s: jax.lax.scan(body, s, None, length=steps))(state)
    return np.concatenate([start, np.asarray(points)])


def check_dirac(
    module, loss_name: str, loss, penalty, simultaneous: bool, gamma_index: int
) -> None:
    """T2.1: update order, signs, step size, the half in R1 and absence of momentum, in one number."""
    gamma = (0.0, 0.3, 1.0, 2.0)[gamma_index]
    expected = DIRAC_NORMS[loss_name, simultaneous][gamma_index]
    with jax.enable_x64(True):
        algorithm = dirac(
            module, loss, optax.sgd(0.1), gamma=gamma, penalty=penalty, simultaneous=simultaneous
        )
        norm = np.hypot(*trajectory(algorithm, 500)[-1])
    np.testing.assert_allclose(norm, expected, rtol=1e-2 if expected < 1e-8 else 1e-4)


@pytest.mark.parametrize("gamma_index", range(4))
@pytest.mark.parametrize("loss,simultaneous", DIRAC_NORMS)
def test_dirac_gan(loss, simultaneous, gamma_index):
    check_dirac(gan, loss, LOSSES[loss], PENALTIES["r1"], simultaneous, gamma_index)


def test_penalised_dirac_gan_contracts_as_its_jacobian_says(x64):
    """WGAN + R1, alternating: D' = (1 - h gamma) psi - h theta, G' = theta + h psi', so det = 1 - h gamma."""
    h, gamma = 0.1, 1.0
    algorithm = dirac(gan, LOSSES["wasserstein"], optax.sgd(h), gamma=gamma)
    state = algorithm.init(jax.random.key(0))

    def flow(v):
        moved = state._replace(g=state.g._replace(params=v[0]), d=state.d._replace(params=v[1]))
        moved, _ = algorithm.step(moved, {"x": jnp.zeros((4, 1))}, jax.random.key(1))
        return jnp.stack([moved.g.params, moved.d.params])

    jacobian = jax.jacobian(flow)(jnp.array([0.3, -0.2]))
    expected = np.array([[1 - h * h, h * (1 - h * gamma)], [-h, 1 - h * gamma]])
    np.testing.assert_allclose(jacobian, expected, atol=1e-12)
    radius = max(abs(np.linalg.eigvals(np.asarray(jacobian))))
    np.testing.assert_allclose(radius, np.sqrt(1 - h * gamma), atol=1e-12)


# The bilinear game min_x max_y x y is the Dirac-GAN with the Wasserstein loss; SCIENCE section 2.2.
def test_bilinear_simultaneous_descent_spirals_out(x64):
    eta = 0.1
    points = trajectory(dirac(gan, LOSSES["wasserstein"], optax.sgd(eta), simultaneous=True), 200)
    norms = np.linalg.norm(points, axis=1)
    np.testing.assert_allclose(norms[1:] / norms[:-1], np.sqrt(1 + eta**2), rtol=1e-9)


def test_bilinear_alternating_descent_stays_on_its_ellipse(x64):
    """psi' = psi - h theta, theta' = theta + h psi' conserves theta^2 + psi^2 - h theta psi."""
    h = 0.1
    theta, psi = trajectory(dirac(gan, LOSSES["wasserstein"], optax.sgd(h)), 2000).T
    invariant = theta**2 + psi**2 - h * theta * psi
    np.testing.assert_allclose(invariant, 2 + h, rtol=1e-9)
    norms = np.hypot(theta, psi)
    extremes = np.sqrt([(2 + h) / (1 + h / 2), (2 + h) / (1 - h / 2)])
    np.testing.assert_allclose([norms.min(), norms.max()], extremes, rtol=1e-3)


def test_bilinear_optimistic_descent_converges_at_the_known_rate(x64):
    eta = 0.1
    tx = optax.optimistic_gradient_descent(eta)
    points = trajectory(dirac(gan, LOSSES["wasserstein"], tx, simultaneous=True), 2000)
    norms = np.linalg.norm(points, axis=1)
    rate = (norms[2000] / norms[1000]) ** (1 / 1000)
    np.testing.assert_allclose(rate, np.sqrt((1 + np.sqrt(1 - 4 * eta**2)) / 2), rtol=1e-9)


def recorder() -> optax.GradientTransformation:
    """An optimiser that sums the gradients it is given and never moves."""

    def update(grads, total, params=None):
        del params
        return jax.tree.map(jnp.zeros_like, grads), jax.tree.map(jnp.add, total, grads)

    return optax.GradientTransformation(lambda p: jax.tree.map(jnp.zeros_like, p), update)


def mlp_gan(module=gan, loss="nonsaturating", tx=None, *, shape=(2,), **options):
    tx = tx or optax.sgd(0.1)
    g, d = mlp.Generator(shape=shape, widths=(8,)), mlp.Discriminator(widths=(8,))
    return module.make(
        linen_net(g),
        linen_net(d),
        LOSSES[loss],
        tx,
        tx,
        latents=module.normal_latents(3),
        data_shape=shape,
        **options,
    )


def run(algorithm, steps, batch, state=None):
    state = algorithm.init(jax.random.key(0)) if state is None else state
    step = jax.jit(algorithm.step)
    for _ in range(steps):
        state, metrics = step(state, batch, jax.random.key(1))
    return state, metrics


def check_lazy_penalty(module) -> None:
    """T1.4: with frozen players, six D updates with the penalty every third sum to the same gradient."""
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)}
    totals = []
    for every in (1, 3):
        algorithm = mlp_gan(
            module, tx=recorder(), penalties=[(5.0, PENALTIES["r1"])], penalty_every=every
        )
        totals.append(run(algorithm, 6, batch)[0].d.opt)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *totals)


def test_lazy_penalty_has_the_same_mean_effect():
    check_lazy_penalty(gan)


def test_d_steps_use_their_own_rows_and_noise():
    """Two D updates in one step see rows 0, 2, 4, ... and rows 1, 3, 5, ... in that order."""
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)
    algorithm = mlp_gan(d_steps=2, loss="wasserstein")
    state = algorithm.init(jax.random.key(0))
    after, _ = jax.jit(algorithm.step)(state, {"x": rows}, jax.random.key(1))
    swapped, _ = jax.jit(algorithm.step)(
        state, {"x": rows.reshape(4, 2, 2)[:, ::-1].reshape(8, 2)}, jax.random.key(1)
    )
    permuted, _ = jax.jit(algorithm.step)(
        state, {"x": rows.reshape(4, 2, 2)[::-1].reshape(8, 2)}, jax.random.key(1)
    )
    kernel = lambda s: np.asarray(s.d.params["dense0"]["kernel"])  # noqa: E731
    np.testing.assert_allclose(kernel(permuted), kernel(after), atol=1e-6)
    assert np.abs(kernel(swapped) - kernel(after)).max() > 1e-5
    with pytest.raises(ValueError, match="not a multiple"):
        algorithm.step(state, {"x": rows[:7]}, jax.random.key(1))


def test_average_of_g():
    """ema_t = d ema + (1 - d) g with d = min(decay, (1 + t) / (10 + t)), recomputed in NumPy; sample() uses it."""
    decay = 0.3
    batch = {"x": jnp.ones((8, 2))}
    algorithm = mlp_gan(ema_decay=decay)
    state = algorithm.init(jax.random.key(0))
    expected = np.asarray(state.g.params["dense1"]["kernel"])
    for t in range(6):
        state, _ = run(algorithm, 1, batch, state)
        d = min(decay, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * np.asarray(state.g.params["dense1"]["kernel"])
    np.testing.assert_allclose(state.ema["params"]["dense1"]["kernel"], expected, rtol=1e-5)
    frozen = state._replace(g=state.g._replace(params=jax.tree.map(jnp.zeros_like, state.g.params)))
    drawn = algorithm.sample(frozen, jax.random.key(5), 4)
    assert float(jnp.abs(drawn).max()) > 1e-3
    assert mlp_gan().init(jax.random.key(0)).ema is None


def test_step_is_a_function_of_state_batch_and_key(trees_equal):
    batch = {"x": jnp.ones((8, 2))}
    a, b = (run(mlp_gan(), 3, batch)[0] for _ in range(2))
    trees_equal(a, b)
    other = mlp_gan()
    state = other.init(jax.random.key(0))
    c, _ = jax.jit(other.step)(state, batch, jax.random.key(2))
    d, _ = jax.jit(other.step)(state, batch, jax.random.key(3))
    assert not np.array_equal(c.g.params["dense0"]["kernel"], d.g.params["dense0"]["kernel"])


def test_unused_real_logits_cost_nothing():
    """G's step always scores the reals; the compiler removes that for losses which ignore them."""
    flops = {}
    for loss in ("nonsaturating", "relativistic"):
        algorithm = gan.make(
            linen_net(mlp.Generator(shape=(2,), widths=(8,))),
            linen_net(mlp.Discriminator(widths=(256, 256))),
            LOSSES[loss],
            optax.sgd(0.1),
            optax.sgd(0.1),
            latents=gan.normal_latents(2),
            data_shape=(2,),
        )
        state = jax.eval_shape(algorithm.init, jax.random.key(0))
        lowered = jax.jit(algorithm.step).lower(state, {"x": jnp.zeros((64, 2))}, jax.random.key(0))
        flops[loss] = lowered.compile().cost_analysis()["flops"]
    assert flops["relativistic"] > 1.05 * flops["nonsaturating"]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_with_every_penalty_trains(loss):
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)}
    algorithm = mlp_gan(loss=loss, penalties=[(0.1, p) for p in PENALTIES.values()])
    state, metrics = run(algorithm, 2, batch)
    assert set(metrics) == {
        "d/loss", "d/real", "d/fake", "d/penalty", "d/grad_norm", "g/loss", "g/grad_norm",
    }  # fmt: skip
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, metrics)))
    assert int(state.step) == 2


def test_seeds_can_be_vmapped(trees_close):
    """The step is pure: two seeds in one program equal two programs."""
    algorithm = mlp_gan()
    batch = {"x": jnp.ones((8, 2))}

    def train(key):
        state = algorithm.init(jax.random.fold_in(key, 0))
        return algorithm.step(state, batch, jax.random.fold_in(key, 1))[0].g.params

    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.jit(jax.vmap(train))(keys)
    for i in range(2):
        alone = jax.jit(train)(jax.random.split(jax.random.key(0), 2)[i])
        trees_close(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=1e-5, atol=1e-6)
