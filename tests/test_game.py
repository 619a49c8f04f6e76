"""Rules and spectra against games whose motion is known exactly (SCIENCE T2.1 to T2.4)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_gan import DIRAC_D, DIRAC_G, dirac, mlp_gan, run, trajectory

from bpgan.algorithms import game, gan
from bpgan.losses import LOSSES
from bpgan.penalties import PENALTIES


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


def bilinear(a):
    """min_x max_y x'Ay."""

    def losses(params):
        x, y = params
        value = jnp.vdot(x, a @ y)
        return (value, -value), ()

    return losses


def play(losses, rule, start, steps, lr, tx=optax.sgd):
    """All points ``[steps + 1, n]``."""
    txs = tuple(rule.optimiser(tx(lr)) for _ in range(2))
    opts = tuple(t.init(p) for t, p in zip(txs, start, strict=True))

    def body(carry, _):
        params, opts = carry
        params, opts, _, _ = rule.update(losses, txs, params, opts)
        return (params, opts), jnp.concatenate([jnp.ravel(p) for p in params])

    _, points = jax.jit(lambda c: jax.lax.scan(body, c, None, length=steps))((start, opts))
    first = jnp.concatenate([jnp.ravel(p) for p in start])
    return np.concatenate([np.asarray(first)[None], np.asarray(points)])


ETA = 0.1
UNALIGNED = game.symplectic(align=False)
FACTORS = {  # |w_{t+1}| / |w_t| of the bilinear game min_x max_y xy
    "simultaneous": (game.RULES["simultaneous"], np.sqrt(1 + ETA**2)),
    "extragradient": (game.RULES["extragradient"], np.sqrt(1 - ETA**2 + ETA**4)),
    "consensus": (game.RULES["consensus"], np.sqrt((1 - ETA) ** 2 + ETA**2)),
    "symplectic": (UNALIGNED, np.sqrt((1 - ETA) ** 2 + ETA**2)),
    "symplectic, aligned": (game.RULES["symplectic"], np.sqrt((1 - ETA) ** 2 + ETA**2)),
}


def one(dtype):
    return jnp.ones((1,), dtype), jnp.ones((1,), dtype)


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("dtype,tolerance", [("float64", 1e-9), ("float32", 1e-5)])
def test_bilinear_factors(name, dtype, tolerance):
    rule, factor = FACTORS[name]
    with jax.enable_x64(dtype == "float64"):
        points = play(bilinear(jnp.ones((1, 1), dtype)), rule, one(dtype), 200, ETA)
    norms = np.linalg.norm(points[norms_are_normal(points)], axis=1)
    np.testing.assert_allclose(norms[1:] / norms[:-1], factor, rtol=tolerance)


def norms_are_normal(points):
    """Whole points, while float32 can square them."""
    return np.linalg.norm(points, axis=1) > 1e-6


def test_bilinear_optimistic_rate(x64):
    points = play(bilinear(jnp.ones((1, 1))), game.RULES["optimistic"], one("float64"), 2000, ETA)
    norms = np.linalg.norm(points, axis=1)
    rate = (norms[2000] / norms[1000]) ** (1 / 1000)
    np.testing.assert_allclose(rate, np.sqrt((1 + np.sqrt(1 - 4 * ETA**2)) / 2), rtol=1e-9)


def test_bilinear_alternating_stays_between_its_bounds(x64):
    """D moves first: x^2 + y^2 + eta x y does not change, and the norm oscillates on that ellipse."""
    points = play(bilinear(jnp.ones((1, 1))), game.RULES["alternating"], one("float64"), 2000, ETA)
    x, y = points.T
    np.testing.assert_allclose(x**2 + y**2 + ETA * x * y, 2 + ETA, rtol=1e-9)
    norms = np.linalg.norm(points, axis=1)
    extremes = np.sqrt([(2 + ETA) / (1 + ETA / 2), (2 + ETA) / (1 - ETA / 2)])
    np.testing.assert_allclose([norms.min(), norms.max()], extremes, rtol=1e-3)


@pytest.mark.parametrize("name", ["extragradient", "optimistic", "consensus", "symplectic"])
def test_rectangular_bilinear_games_converge_at_the_smallest_singular_value(x64, name):
    """In the singular directions the players meet in scalar games; the slowest is left over."""
    rng = np.random.default_rng(0)
    u, _, v = np.linalg.svd(rng.normal(size=(3, 3)))
    sigma, eta = np.array([1.0, 0.7, 0.4]), 0.2
    rule = UNALIGNED if name == "symplectic" else game.RULES[name]
    points = play(
        bilinear(jnp.asarray(u @ np.diag(sigma) @ v)),
        rule,
        (jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=3))),
        1500,
        eta,
    )
    s = (eta * sigma) ** 2
    factor = {
        "extragradient": np.sqrt(1 - s + s**2),
        "optimistic": np.sqrt((1 + np.sqrt(1 - 4 * s)) / 2),
        "consensus": np.sqrt((1 - eta * sigma**2) ** 2 + s),
        "symplectic": np.sqrt((1 - eta * sigma**2) ** 2 + s),
    }[name].max()
    norms = np.linalg.norm(points, axis=1)
    np.testing.assert_allclose((norms[1500] / norms[700]) ** (1 / 800), factor, rtol=1e-5)


def test_optimistic_updates_are_those_of_optax(trees_close):
    """Of gradient descent; and of Adam, by the last update kept."""
    gradients = np.random.default_rng(0).normal(size=(20, 3))
    ours, theirs = game.optimistic_updates(optax.sgd(0.1)), optax.optimistic_gradient_descent(0.1)
    adam = game.optimistic_updates(optax.adam(0.1))
    plain, kept = optax.adam(0.1), []
    w = jnp.zeros(3)
    states = [tx.init(w) for tx in (ours, theirs, adam, plain)]
    for t, g in enumerate(gradients):
        updates = []
        for i, tx in enumerate((ours, theirs, adam, plain)):
            u, states[i] = tx.update(jnp.asarray(g, jnp.float32), states[i], w)
            updates.append(u)
        kept.append(updates[3])
        trees_close(updates[0], updates[1], rtol=1e-5, atol=1e-7)
        trees_close(updates[2], 2 * kept[t] - kept[max(t - 1, 0)], rtol=1e-5, atol=1e-7)


def test_extra_adam_uses_both_gradients(x64):
    """Gidel et al. 2019, Alg. 4, in NumPy on the bilinear game."""
    lr, b1, b2 = 0.1, 0.5, 0.9
    points = play(
        bilinear(jnp.ones((1, 1))),
        game.RULES["extragradient"],
        one("float64"),
        5,
        lr,
        lambda lr: optax.adam(lr, b1, b2),
    )
    w, m, v, t = np.ones(2), np.zeros(2), np.zeros(2), 0
    for step in range(5):
        at = w
        for _ in range(2):
            g, t = np.array([at[1], -at[0]]), t + 1
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            at = w - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
        w = at
        np.testing.assert_allclose(points[step + 1], w, rtol=1e-9)


def quadratic(seed=0):
    """A general-sum game of 3 and 2 dimensions with constant J, and its parts."""
    rng = np.random.default_rng(seed)
    p, q = rng.normal(size=(3, 3)), rng.normal(size=(2, 2))
    p, q = p @ p.T, q @ q.T
    a, b = rng.normal(size=(3, 2)), rng.normal(size=(3, 2))

    def losses(params):
        x, y = params
        g = 0.5 * x @ p @ x + x @ a @ y
        return (g, 0.5 * y @ q @ y + x @ b @ y), ()

    return losses, np.block([[p, a], [b.T, q]]), (rng.normal(size=3), rng.normal(size=2))


def test_field_and_jacobian_of_a_quadratic_game(x64):
    losses, j, start = quadratic()
    params = tuple(jnp.asarray(v) for v in start)
    xi, _ = game.field(losses)(params)
    np.testing.assert_allclose(np.concatenate(xi), j @ np.concatenate(start), rtol=1e-12)
    np.testing.assert_allclose(game.jacobian(losses, params), j, atol=1e-12)
    np.testing.assert_allclose(
        np.sort_complex(game.spectrum(losses, params)),
        np.sort_complex(np.linalg.eigvals(j)),
        rtol=1e-9,
    )


@pytest.mark.parametrize("name,factor", [("consensus", 0.3), ("symplectic", 0.3)])
def test_adjusted_directions_of_a_quadratic_game(x64, name, factor):
    losses, j, start = quadratic()
    w = np.concatenate(start)
    rule = game.consensus(factor) if name == "consensus" else game.symplectic(factor, align=False)
    points = play(losses, rule, tuple(jnp.asarray(v) for v in start), 1, 0.01)
    xi = j @ w
    extra = j.T @ xi if name == "consensus" else 0.5 * (j.T - j) @ xi
    np.testing.assert_allclose(points[1], w - 0.01 * (xi + factor * extra), rtol=1e-10)


def test_symplectic_alignment(x64):
    """The sign of the adjustment is that of the paper's inner products, at stable and unstable points alike."""
    signs = set()
    for seed in range(8):
        losses, j, start = quadratic(seed)
        if seed % 2:
            plain, j = losses, -j

            def losses(params, plain=plain):
                (g, d), aux = plain(params)
                return (-g, -d), aux

        w = np.concatenate(start)
        xi = j @ w
        h, turn = j.T @ xi, 0.5 * (j.T - j) @ xi
        sign = np.sign((xi @ h) * (turn @ h) / 5 + 0.1)
        signs.add(sign)
        points = play(losses, game.symplectic(0.3), tuple(jnp.asarray(v) for v in start), 1, 0.01)
        np.testing.assert_allclose(points[1], w - 0.01 * (xi + 0.3 * sign * turn), rtol=1e-9)
    assert signs == {-1.0, 1.0}


def test_symplectic_adjustment_vanishes_on_potential_games(x64):
    """T2.4: with one loss for both, J is symmetric; and on a Hamiltonian game the rule is consensus."""
    s = np.random.default_rng(0).normal(size=(4, 4))
    s = jnp.asarray(s + s.T)

    def potential(params):
        w = jnp.concatenate(params)
        value = 0.5 * w @ s @ w
        return (value, value), ()

    start = jnp.ones(2), jnp.array([0.5, -1.0])
    plain = play(potential, game.RULES["simultaneous"], start, 10, 0.01)
    np.testing.assert_allclose(play(potential, UNALIGNED, start, 10, 0.01), plain, atol=1e-13)
    hamiltonian = bilinear(jnp.asarray(np.random.default_rng(1).normal(size=(2, 2))))
    np.testing.assert_allclose(
        play(hamiltonian, UNALIGNED, start, 10, 0.01),
        play(hamiltonian, game.RULES["consensus"], start, 10, 0.01),
        rtol=1e-12,
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_unrolled_gradient(x64, steps):
    """On a quadratic game the unrolled D is an affine function of theta: the gradient of the surrogate in matrices."""
    losses, j, start = quadratic()
    lr, (x, y) = 0.05, start
    p, a, b, q = j[:3, :3], j[:3, 3:], j[3:, :3].T, j[3:, 3:]
    slope, at = np.zeros((2, 3)), y
    for _ in range(steps):
        slope = slope - lr * (q @ slope + b.T)
        at = at - lr * (q @ at + b.T @ x)
    expected = p @ x + a @ at + slope.T @ (a.T @ x)
    points = play(losses, game.unrolled(steps, lr), (jnp.asarray(x), jnp.asarray(y)), 1, 0.01)
    np.testing.assert_allclose(points[1][:3], x - 0.01 * expected, rtol=1e-10)
    np.testing.assert_allclose(points[1][3:], y - 0.01 * (q @ y + b.T @ x), rtol=1e-10)


def test_unrolled_by_nothing_is_simultaneous(x64):
    losses, _, start = quadratic()
    start = tuple(jnp.asarray(v) for v in start)
    np.testing.assert_array_equal(
        play(losses, game.unrolled(0), start, 5, 0.01),
        play(losses, game.RULES["simultaneous"], start, 5, 0.01),
    )


# The Dirac-GAN, on the project's trainer


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("loss", ["minimax", "nonsaturating"])
def test_dirac_spectrum(x64, loss, gamma):
    """T2.2: gamma / 2 +- sqrt(gamma^2 / 4 - 1 / 4), of the field that is descended."""
    values = game.spectrum(dirac_game(loss, gamma), (jnp.zeros(()), jnp.zeros(())))
    root = np.sqrt(complex(gamma**2 / 4 - 0.25))
    expected = np.array([gamma / 2 - root, gamma / 2 + root])
    close = 1e-6 if gamma != 1 else 1e-7  # a double eigenvalue moves with the root of rounding
    np.testing.assert_allclose(np.sort_complex(values), np.sort_complex(expected), atol=close)


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


def test_unstable_games_have_no_stable_step():
    assert game.largest_stable_step([1 + 1j, -0.1]) == 0
    assert game.largest_stable_step([1j, -1j]) == 0
    assert game.largest_stable_step([2.0, 1.0]) == 1
    assert game.largest_stable_step([]) == np.inf


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


def mlp_losses():
    """A small network's game in float64, as losses of its parameters."""
    algorithm = mlp_gan(loss="nonsaturating")
    state = algorithm.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x.astype(jnp.float64), (state.g.params, state.d.params))
    rng = np.random.default_rng(0)
    real, z = jnp.asarray(rng.normal(size=(16, 2))), jnp.asarray(rng.normal(size=(16, 3)))
    from bpgan.nets import linen_net, mlp

    g = linen_net(mlp.Generator(shape=(2,), widths=(8,), dtype=jnp.float64))
    d = linen_net(mlp.Discriminator(widths=(8,), dtype=jnp.float64))

    def losses(params):
        fake, _ = g.apply({"params": params[0]}, z, train=True)
        a, b = (d.apply({"params": params[1]}, x, train=True)[0] for x in (real, fake))
        return (jnp.mean(LOSSES["minimax"].g(a, b)), jnp.mean(LOSSES["minimax"].d(a, b))), ()

    return losses, params


def test_arnoldi_finds_the_spectrum(x64):
    """With as many products as parameters all of it; with fewer, its outermost values."""
    losses, params = mlp_losses()
    exact = game.spectrum(losses, params)
    full = game.arnoldi(losses, params, jax.random.key(0), 10**6)
    assert len(full) <= len(exact)
    for value in exact[np.argsort(-abs(exact))[:8]]:
        assert abs(full - value).min() < 1e-6
    part = game.arnoldi(losses, params, jax.random.key(1), 30)
    assert len(part) <= 30
    largest = exact[np.argmax(abs(exact))]
    assert abs(part - largest).min() < 1e-6


def test_arnoldi_stops_in_an_invariant_space(x64):
    """J = diag(1, 1, 1, 2, 2): two products suffice."""

    def losses(params):
        return (0.5 * jnp.vdot(params[0], params[0]), jnp.vdot(params[1], params[1])), ()

    values = game.arnoldi(losses, (jnp.ones(3), jnp.ones(2)), jax.random.key(0), 5)
    np.testing.assert_allclose(np.sort(values.real), [1, 2], rtol=1e-9)


def test_zero_sum_blocks(x64):
    """J12 = -J21' where the losses add up to zero but for a part of D's own, as those of minimax do."""
    losses, params = mlp_losses()
    n = sum(x.size for x in jax.tree.leaves(params[0]))
    j = np.asarray(game.jacobian(losses, params))
    assert np.abs(j[:n, n:]).max() > 1e-3
    np.testing.assert_allclose(j[:n, n:], -j[n:, :n].T, atol=1e-12)
