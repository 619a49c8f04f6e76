"""Update rules and spectra against games solved by hand (SCIENCE T2.1 to T2.4)."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks.gans import DIRAC_NORMS
from jax.flatten_util import ravel_pytree

from bpgan.algorithms import game
from bpgan.losses import LOSSES
from bpgan.nets import linen_net, mlp
from bpgan.penalties import PENALTIES


def trajectory(rule, losses, tx, params, steps):
    """The parameters after 0, 1, ..., steps updates, flattened: [steps + 1, p]."""
    tx = rule.optimizer(tx)
    opts = tuple(map(tx.init, params))

    def body(carry, _):
        params, opts, _, _ = rule.update(losses, (tx, tx), *carry)
        return (params, opts), ravel_pytree(params)[0]

    _, points = jax.lax.scan(body, (params, opts), None, length=steps)
    return jnp.concatenate([ravel_pytree(params)[0][None], points])


def play(rule, losses, tx, params, steps):
    """``trajectory``, compiled, on the host."""
    return np.asarray(jax.jit(lambda p: trajectory(rule, losses, tx, p, steps))(params))


def direction(rule, losses, params):
    """What one update of step size 1 subtracts, flattened."""
    start, after = play(rule, losses, optax.sgd(1.0), params, 1)
    return start - after


# The Dirac-GAN (Mescheder et al. 2018, arXiv:1801.04406): real mass at 0, G emits theta, D(x) = psi x.
def dirac(loss: str, gamma=0.0):
    def losses(params):
        theta, psi = params
        real, fake = jnp.zeros((4, 1)), jnp.broadcast_to(theta, (4, 1))
        critic = lambda x: psi * x[:, 0]  # noqa: E731
        logits = critic(real), critic(fake)
        penalty = jnp.mean(PENALTIES["r1"](critic, real, fake, jax.random.key(0)))
        d = jnp.mean(LOSSES[loss].d(*logits)) + gamma * penalty
        return (jnp.mean(LOSSES[loss].g(*logits)), d), None

    return losses


ORIGIN = (jnp.zeros(()), jnp.zeros(()))
GAMMAS = (0.0, 0.3, 1.0, 2.0)


@pytest.mark.parametrize("loss,simultaneous", DIRAC_NORMS)
def test_dirac_trajectories(x64, loss, simultaneous):
    """T2.1: the table of norms after 500 steps."""
    rule = game.RULES["simultaneous" if simultaneous else "alternating"]
    params = jnp.ones(()), -jnp.ones(())

    def end(gamma):
        return trajectory(rule, dirac(loss, gamma), optax.sgd(0.1), params, 500)[-1]

    norms = np.hypot(*jax.jit(jax.vmap(end))(jnp.array(GAMMAS)).T)
    for norm, expected in zip(norms, DIRAC_NORMS[loss, simultaneous], strict=True):
        np.testing.assert_allclose(norm, expected, rtol=1e-2 if expected < 1e-8 else 1e-4)


def sort(eigenvalues):
    """By real part, equal ones (to rounding) by imaginary part."""
    v = np.asarray(eigenvalues, complex)
    return v[np.lexsort((v.imag, v.real.round(6)))]


@pytest.mark.medium
@pytest.mark.parametrize("loss", ["minimax", "nonsaturating"])
def test_dirac_spectrum_and_radii(x64, loss):
    """T2.2: eigenvalues gamma/2 +- sqrt(gamma^2/4 - 1/4), and what they say of one step of size h."""
    h = 0.1

    def multipliers(rule, gamma):
        step = lambda v: trajectory(rule, dirac(loss, gamma), optax.sgd(h), (v[0], v[1]), 1)[1]  # noqa: E731
        return jax.jacobian(step)(jnp.zeros(2))

    def analyze(gamma):
        rules = game.simultaneous, game.alternating
        jacobian = game.jacobian(dirac(loss, gamma), ORIGIN)
        return jacobian, *(multipliers(rule, gamma) for rule in rules)

    matrices = jax.device_get(jax.jit(jax.vmap(analyze))(jnp.array(GAMMAS)))
    for gamma, j, simultaneous, alternating in zip(GAMMAS, *matrices, strict=True):
        root = np.sqrt(gamma**2 / 4 - 1 / 4 + 0j)
        expected = np.array([gamma / 2 - root, gamma / 2 + root])
        np.testing.assert_allclose(sort(np.linalg.eigvals(j)), sort(expected), atol=1e-6)
        radius = max(abs(1 - h * expected))
        np.testing.assert_allclose(max(abs(np.linalg.eigvals(simultaneous))), radius, atol=1e-7)
        table = {0.0: 1.0012492, 0.3: 0.98615, 1.0: 0.95, 2.0: 0.986603}
        np.testing.assert_allclose(radius, table[gamma], atol=1e-5)
        formula = [[1 - h**2 / 4, -h / 2 * (1 - h * gamma)], [h / 2, 1 - h * gamma]]
        formula, found = np.linalg.eigvals(formula), np.linalg.eigvals(alternating)
        np.testing.assert_allclose(sort(found), sort(formula), atol=1e-7)
        if gamma < 1:  # the complex case
            np.testing.assert_allclose(abs(found), np.sqrt(1 - h * gamma), rtol=1e-9)
    eigenvalues = game.spectrum(jax.jit(dirac(loss, GAMMAS[1])), ORIGIN)
    np.testing.assert_allclose(
        sort(eigenvalues), sort(np.linalg.eigvals(matrices[0][1])), atol=1e-9
    )


def bilinear(a):
    """min_x max_y x'Ay."""

    def losses(params):
        value = params[0]["x"] @ jnp.asarray(a, params[0]["x"].dtype) @ params[1]["y"]
        return (value, -value), None

    return losses


H = 0.1
FACTORS = {
    "simultaneous": lambda s: np.sqrt(1 + (H * s) ** 2),
    "extragradient": lambda s: np.sqrt(1 - (H * s) ** 2 + (H * s) ** 4),
    "consensus": lambda s: np.sqrt((1 - H * s**2) ** 2 + (H * s) ** 2),
    "symplectic": lambda s: np.sqrt((1 - H * s**2) ** 2 + (H * s) ** 2),
}
TOLERANCES = [(jnp.float64, 1e-9), (jnp.float32, 1e-5)]


@pytest.mark.parametrize("constructor", [game.consensus, game.symplectic])
def test_weight(x64, constructor):
    params = {"x": jnp.ones(1)}, {"y": jnp.ones(1)}
    weights = np.array([0.0, 0.3, 2.0])

    def norm(weight):
        points = trajectory(constructor(weight), bilinear([[1.0]]), optax.sgd(H), params, 1)
        return jnp.linalg.norm(points[1]) / jnp.linalg.norm(points[0])

    found = jax.jit(jax.vmap(norm))(jnp.asarray(weights))
    np.testing.assert_allclose(found, np.hypot(1 - H * weights, H), rtol=1e-12)


RNG = np.random.default_rng(0)
U, V = (np.linalg.qr(RNG.normal(size=(n, n)))[0] for n in (3, 4))
SIGMA = np.array([1.5, 1.0, 0.5])
A = U * SIGMA @ V[:, :3].T  # 3 x 4, so y has one direction that nothing moves
START = {"x": RNG.normal(size=3)}, {"y": RNG.normal(size=4)}


def modes(points):
    """The coordinates along A's singular vectors: x [steps, 3] and y [steps, 4]."""
    return points[:, :3] @ U, points[:, 3:] @ V


def start(dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), START)


@pytest.mark.parametrize("dtype,tolerance", TOLERANCES)
@pytest.mark.parametrize("name", FACTORS)
def test_bilinear_factor(x64, name, dtype, tolerance):
    """T2.3: every step multiplies the distance to the equilibrium by the same number."""
    params = {"x": jnp.ones(1, dtype)}, {"y": jnp.ones(1, dtype)}
    points = play(game.RULES[name], bilinear([[1.0]]), optax.sgd(H), params, 200)
    norms = np.linalg.norm(points, axis=1)
    assert points.dtype == dtype
    np.testing.assert_allclose(norms[1:] / norms[:-1], FACTORS[name](1.0), rtol=tolerance)
    table = {"simultaneous": 1.0049876, "extragradient": 0.9950376877}
    np.testing.assert_allclose(FACTORS[name](1.0), table.get(name, 0.9055385), rtol=1e-7)


@pytest.mark.parametrize(
    "text,factor",
    [
        ("consensus=0.25", np.hypot(1 - H / 4, H)),
        ("symplectic=3", np.hypot(1 - 3 * H, H)),
        ("unrolled=0:0.1", np.hypot(1, H)),
        ("consensus", FACTORS["consensus"](1.0)),
    ],
)
def test_rules_by_their_texts(x64, text, factor):
    params = {"x": jnp.ones(1)}, {"y": jnp.ones(1)}
    points = play(game.rule_of(text), bilinear([[1.0]]), optax.sgd(H), params, 20)
    norms = np.linalg.norm(points, axis=1)
    np.testing.assert_allclose(norms[1:] / norms[:-1], factor, rtol=1e-9)


def test_steps_and_step_size_of_unrolling():
    """In xy, D's K steps of ``lr`` against x are ``y + K lr x``: G sees the gradient ``y + 2 K lr x``."""
    params = {"x": jnp.ones(1)}, {"y": jnp.ones(1)}
    moved = direction(game.rule_of("unrolled=3:0.5"), bilinear([[1.0]]), params)
    np.testing.assert_allclose(moved, [1 + 2 * 3 * 0.5, -1], rtol=1e-6)


@pytest.mark.parametrize(
    "text",
    ["", "none=1", "concensus", "consensus=", "consensus=-1", "consensus=inf", "symplectic=a",
     "simultaneous=1", "unrolled=5", "unrolled=-1:0.1", "unrolled=5:0", "unrolled=2.5:0.1"],
)  # fmt: skip
def test_other_texts_name_no_rule(text):
    assert game.rule_of("none") is None
    with pytest.raises(ValueError, match="must be one of none, simultaneous, .*unrolled.=STEPS:LR"):
        game.rule_of(text)


@pytest.mark.parametrize("name", FACTORS)
def test_bilinear_factors_in_more_dimensions(x64, name):
    """Each pair of singular vectors of A is a game of its own."""
    x, y = modes(play(game.RULES[name], bilinear(A), optax.sgd(H), start(jnp.float64), 20))
    distances = np.hypot(x, y[:, :3])
    expected = np.tile(FACTORS[name](SIGMA), (20, 1))
    np.testing.assert_allclose(distances[1:] / distances[:-1], expected, rtol=1e-9)
    np.testing.assert_allclose(y[:, 3], np.full(21, y[0, 3]), rtol=1e-9)


@pytest.mark.parametrize("dtype,tolerance", TOLERANCES)
def test_bilinear_alternating_descent_is_bounded(x64, dtype, tolerance):
    """x^2 + y^2 + h sigma x y is conserved in every mode (y moves first): an ellipse up to h sigma = 2."""
    limit = 2 / SIGMA[0]
    steps = jnp.array([H, 0.99 * limit, 1.01 * limit], dtype)
    game_, params = bilinear(A), start(dtype)
    run = lambda h: trajectory(game.alternating, game_, optax.sgd(h), params, 100)  # noqa: E731
    trajectories = np.asarray(jax.jit(jax.vmap(run))(steps))
    for h, points in zip(np.asarray(steps), trajectories[:2], strict=False):
        x, y = modes(points)
        invariant = x**2 + y[:, :3] ** 2 + h * SIGMA * x * y[:, :3]
        np.testing.assert_allclose(invariant, np.tile(invariant[0], (101, 1)), rtol=100 * tolerance)
    assert np.linalg.norm(trajectories[2, -1]) > 1e3


def test_bilinear_optimistic_rate(x64):
    """The dominant root of z^2 - (1 - 2 i h s) z - i h s, in modulus sqrt((1 + sqrt(1 - 4 h^2 s^2)) / 2)."""
    x, y = modes(play(game.optimistic, bilinear(A), optax.sgd(H), start(jnp.float64), 1000))
    amplitudes = np.hypot(x, y[:, :3])
    rates = (amplitudes[1000] / amplitudes[500]) ** (1 / 500)
    expected = np.sqrt((1 + np.sqrt(1 - 4 * H**2 * SIGMA**2)) / 2)
    np.testing.assert_allclose(rates, expected, rtol=1e-9)
    np.testing.assert_allclose(expected[1], 0.9949361530, rtol=1e-9)


def test_bilinear_optimistic_rate_in_single_precision():
    x, y = modes(play(game.optimistic, bilinear(A), optax.sgd(H), start(jnp.float32), 300))
    amplitudes = np.hypot(x, y[:, :3])
    expected = np.sqrt((1 + np.sqrt(1 - 4 * H**2 * SIGMA**2)) / 2)
    np.testing.assert_allclose(
        (amplitudes[300] / amplitudes[100]) ** (1 / 200), expected, rtol=1e-5
    )


class Quadratic:
    """L_G = x'Px/2 + x'Qy + p'x + y'Ry/2 + r'y and L_D = y'Sy/2 + x'Ty + s'y, so xi = J w + c."""

    def __init__(self, seed: int, n: int = 3, m: int = 2, convexity: float = 0.0):
        rng = np.random.default_rng(seed)
        symmetric = lambda k: (a := rng.normal(size=(k, k))) + a.T  # noqa: E731
        self.P, self.S = (symmetric(k) + convexity * np.eye(k) for k in (n, m))
        self.R = symmetric(m)
        self.Q, self.T = rng.normal(size=(2, n, m))
        self.p, self.r, self.s = rng.normal(size=n), rng.normal(size=m), rng.normal(size=m)
        self.J = np.block([[self.P, self.Q], [self.T.T, self.S]])
        self.c = np.concatenate([self.p, self.s])
        self.params = (jnp.asarray(rng.normal(size=n)), jnp.asarray(rng.normal(size=m)))
        self.w = np.concatenate(self.params)

    def losses(self, params):
        x, y = params
        g = x @ self.P @ x / 2 + x @ self.Q @ y + self.p @ x + y @ self.R @ y / 2 + self.r @ y
        return (g, y @ self.S @ y / 2 + x @ self.T @ y + self.s @ y), jnp.sum(x)


def test_field_and_jacobian(x64):
    q = Quadratic(0)
    losses = jax.jit(q.losses)
    xi, aux = game.field(losses)(q.params)
    np.testing.assert_allclose(np.concatenate(xi), q.J @ q.w + q.c, rtol=1e-12)
    np.testing.assert_allclose(aux, q.w[:3].sum(), rtol=1e-12)
    np.testing.assert_allclose(game.jacobian(losses, q.params), q.J, rtol=1e-12)
    found = game.spectrum(losses, q.params)
    np.testing.assert_allclose(sort(found), sort(np.linalg.eigvals(q.J)), rtol=1e-9)


ALIGNED = (1, 2)  # seeds whose signs differ


@pytest.mark.medium
def test_adjustments_against_dense_algebra(x64):
    """xi + w J'xi, and xi + s w A'xi with either sign s, on general-sum quadratic games."""
    signs = set()
    for seed in ALIGNED:
        q = Quadratic(seed)
        xi = q.J @ q.w + q.c
        gradient = q.J.T @ xi  # of |xi|^2 / 2
        adjustment = (q.J - q.J.T).T @ xi / 2
        sign = np.sign((xi @ gradient) * (adjustment @ gradient) / 5 + 0.1)
        signs.add(sign)
        for rule, expected in (
            (game.simultaneous, xi),
            (game.consensus(0.7), xi + 0.7 * gradient),
            (game.symplectic(0.7), xi + sign * 0.7 * adjustment),
            (game.symplectic(0.7, align=False), xi + 0.7 * adjustment),
        ):
            found = direction(rule, q.losses, q.params)
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert signs == {-1.0, 1.0}


@pytest.mark.parametrize("product,sign", [(-0.6, -1), (-0.4, 1)])
def test_alignment_tolerates_a_little_disagreement(x64, product, sign):
    """The sign turns where <xi, J'xi> <A'xi, J'xi> / d crosses -1/10; here d = 5."""
    q = next(
        q
        for q in map(Quadratic, range(20))
        if (xi := q.J @ q.w + q.c) @ q.J.T @ xi * (((q.J - q.J.T).T @ xi) @ q.J.T @ xi) < 0
    )
    xi = q.J @ q.w + q.c
    adjustment = (q.J - q.J.T).T @ xi / 2
    scale = (product / ((xi @ q.J.T @ xi) * (adjustment @ q.J.T @ xi))) ** 0.25  # of degree 4 in xi
    w = np.linalg.solve(q.J, scale * xi - q.c)
    found = direction(game.symplectic(), q.losses, (jnp.asarray(w[:3]), jnp.asarray(w[3:])))
    np.testing.assert_allclose(found, scale * (xi + sign * adjustment), rtol=1e-9, atol=1e-9)


@pytest.mark.medium
def test_symplectic_adjustment_of_potential_and_hamiltonian_games():
    """T2.4, in whole numbers, so exactly: none if L_G = L_D, and consensus if J is antisymmetric."""
    s = np.array([[2.0, 1, -3], [1, -4, 5], [-3, 5, 6]], np.float32)
    params = (jnp.array([1.0, -2.0]), jnp.array([3.0]))

    def potential(params):
        w = jnp.concatenate(params)
        value = w @ s @ w / 2
        return (value, value), None

    plain = direction(game.simultaneous, potential, params)
    np.testing.assert_array_equal(plain, s @ np.array([1, -2, 3]))
    for align in (False, True):
        rule = game.symplectic(4.0, align)
        np.testing.assert_array_equal(direction(rule, potential, params), plain)
    a = np.array([[1.0, -2], [3, 4], [0, 5]])
    params = {"x": jnp.array([1.0, -2.0, 3.0])}, {"y": jnp.array([2.0, 5.0])}
    for align in (False, True):
        np.testing.assert_array_equal(
            direction(game.symplectic(4.0, align), bilinear(a), params),
            direction(game.consensus(4.0), bilinear(a), params),
        )
    changed = direction(game.consensus(4.0), bilinear(a), params)
    assert np.abs(changed - direction(game.simultaneous, bilinear(a), params)).min() > 1


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_unrolled_on_a_quadratic_game(x64, steps):
    """y_K = M^K y + ..., dy_K/dx = -lr sum_k M^k T' with M = I - lr S; D moves from y, not from y_K."""
    lr, q = 0.2, Quadratic(3)
    x, y = map(np.asarray, q.params)
    m = np.eye(2) - lr * q.S
    ahead, sensitivity = y, np.zeros((2, 3))
    for _ in range(steps):
        ahead = m @ ahead - lr * (q.T.T @ x + q.s)
        sensitivity = m @ sensitivity - lr * q.T.T
    g = q.P @ x + q.Q @ ahead + q.p + sensitivity.T @ (q.Q.T @ x + q.R @ ahead + q.r)
    d = q.S @ y + q.T.T @ x + q.s
    found = direction(game.unrolled(steps, lr), q.losses, q.params)
    np.testing.assert_allclose(found, np.concatenate([g, d]), rtol=1e-9)


@functools.cache
def mlp_game(loss: str = "nonsaturating", dtype=jnp.float64, gamma: float = 0.1):
    """A small GAN on 8 fixed samples, R1 included: its losses, and parameters."""
    g = linen_net(mlp.Generator(shape=(2,), widths=(4,), dtype=dtype))
    d = linen_net(mlp.Discriminator(widths=(4,), dtype=dtype))
    rng = np.random.default_rng(1)
    z, real = (jnp.asarray(rng.normal(size=(8, 2)), dtype) for _ in range(2))

    def losses(params):
        theta, psi = params
        critic = lambda x: d.apply({"params": psi}, x, train=True)[0]  # noqa: E731
        fake = g.apply({"params": theta}, z, train=True)[0]
        logits = critic(real), critic(fake)
        penalty = jnp.mean(PENALTIES["r1"](critic, real, fake, jax.random.key(0)))
        value = jnp.mean(LOSSES[loss].d(*logits)) + gamma * penalty
        return (jnp.mean(LOSSES[loss].g(*logits)), value), {"real": jnp.mean(logits[0])}

    g_key, d_key = jax.random.split(jax.random.key(0))
    return jax.jit(losses), (g.init(g_key, z)["params"], d.init(d_key, real)["params"])


@pytest.mark.medium
def test_unrolling_against_finite_differences_of_its_surrogate(x64):
    lr = 0.5
    losses, (theta, psi) = mlp_game()
    flat, unravel = ravel_pytree(theta)

    @jax.jit
    def surrogate(flat):
        theta = unravel(flat)
        gradient = jax.grad(lambda psi: losses((theta, psi))[0][1])(psi)
        return losses((theta, jax.tree.map(lambda p, g: p - lr * g, psi, gradient)))[0][0]

    eps = 1e-5
    differences = [
        (surrogate(flat + eps * e) - surrogate(flat - eps * e)) / (2 * eps)
        for e in np.eye(flat.size)
    ]
    found = direction(game.unrolled(1, lr), losses, (theta, psi))[: flat.size]
    np.testing.assert_allclose(found, differences, rtol=1e-4, atol=1e-9)
    plain = direction(game.simultaneous, losses, (theta, psi))[: flat.size]
    assert np.abs(found - plain).max() > 0.05 * np.abs(plain).max()  # the new terms are not small


@pytest.mark.medium
def test_no_unrolling_is_simultaneous(optimized):
    losses, params = mlp_game(dtype=jnp.float32)
    points = [
        play(rule, losses, optax.adam(1e-2), params, 5)
        for rule in (game.unrolled(0), game.simultaneous)
    ]
    np.testing.assert_array_equal(*points)
    with pytest.raises(ValueError, match="steps=-1"):
        game.unrolled(-1)


class Adam:
    """Adam in NumPy: ``adam(g)`` is the next update."""

    lr, b1, b2, eps = 0.05, 0.5, 0.9, 1e-8

    def __init__(self):
        self.m = self.v = 0.0
        self.t = 0

    def __call__(self, g):
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g**2
        corrected = self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)
        return -self.lr * corrected[0] / (np.sqrt(corrected[1]) + self.eps)


ADAM = optax.adam(Adam.lr, b1=Adam.b1, b2=Adam.b2, eps=Adam.eps)


def test_extragradient_with_adam(x64):
    """ExtraAdam: one set of moments, updated at the start and at the extrapolated point; both moves from the start."""
    q, adam = Quadratic(0), Adam()
    w, points = q.w, [q.w]
    for _ in range(10):
        ahead = w + adam(q.J @ w + q.c)
        w = w + adam(q.J @ ahead + q.c)
        points.append(w)
    found = play(game.extragradient, q.losses, ADAM, q.params, 10)
    np.testing.assert_allclose(found, points, rtol=1e-9)


def test_alternating_with_adam(x64):
    q, g_adam, d_adam = Quadratic(0), Adam(), Adam()
    w, points = q.w, [q.w]
    for _ in range(10):
        w = np.concatenate([w[:3], w[3:] + d_adam((q.J @ w + q.c)[3:])])
        w = np.concatenate([w[:3] + g_adam((q.J @ w + q.c)[:3]), w[3:]])
        points.append(w)
    found = play(game.alternating, q.losses, ADAM, q.params, 10)
    np.testing.assert_allclose(found, points, rtol=1e-9)


def test_optimistic_is_optax_optimistic(x64):
    """With SGD and with Adam equal to optax's; and 2 u_t - u_{t-1} of the plain updates, in NumPy."""
    q = Quadratic(0)
    for tx, peer in (
        (optax.sgd(0.01), optax.optimistic_gradient_descent(0.01)),
        (
            ADAM,
            optax.optimistic_adam_v2(Adam.lr, b1=Adam.b1, b2=Adam.b2, eps=Adam.eps, nesterov=False),
        ),
    ):
        found = play(game.optimistic, q.losses, tx, q.params, 20)
        expected = play(game.simultaneous, q.losses, peer, q.params, 20)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    adam, w, previous = Adam(), q.w, None
    for _ in range(20):
        u = adam(q.J @ w + q.c)
        w, previous = w + 2 * u - (u if previous is None else previous), u
    np.testing.assert_allclose(found[-1], w, rtol=1e-9)


@pytest.mark.parametrize("name", game.RULES)
def test_every_rule_finds_the_equilibrium_of_a_convex_concave_game(x64, name):
    """Zero-sum, xi = J w + c with J + J' positive: the only equilibrium is -J^-1 c."""
    q = Quadratic(1, convexity=4.0)
    q.S, q.R, q.T, q.s = q.S, -q.S, -q.Q, -q.r
    q.J = np.block([[q.P, q.Q], [-q.Q.T, q.S]])
    assert np.linalg.eigvalsh(q.J + q.J.T).min() > 0
    end = play(game.RULES[name], q.losses, optax.sgd(0.02), q.params, 3000)[-1]
    np.testing.assert_allclose(end, np.linalg.solve(q.J, -np.concatenate([q.p, q.s])), atol=1e-6)


def small_game(dtype):
    """G(z) = tanh(z a) + b and D(x) = c x + d x^2, non-saturating: its losses, and parameters by key."""
    z, real = (jnp.asarray(x, dtype) for x in RNG.normal(size=(2, 8)))

    def losses(params):
        (a, b), psi = params
        critic = lambda x: psi["c"] * x + psi["d"] * x**2  # noqa: E731
        logits = critic(real), critic(jnp.tanh(z * a) + b)
        pair = LOSSES["nonsaturating"]
        return (jnp.mean(pair.g(*logits)), jnp.mean(pair.d(*logits))), {"real": logits[0][:2]}

    def init(key):
        a, b, c, d = jax.random.normal(key, (4,), dtype)
        return (a, b), {"c": c, "d": d}

    return losses, init


@pytest.mark.medium
@pytest.mark.parametrize("name", game.RULES)
def test_contract_of_every_rule(x64, trees_close, name):
    """jit, scan and vmap agree; float32 stays, even where float64 is allowed; gradients and aux are of the start."""
    rule, (losses, init) = game.RULES[name], small_game(jnp.float32)
    txs = rule.optimizer(optax.adam(1e-2)), rule.optimizer(optax.sgd(1e-2))

    def train(key):
        params = init(key)
        opts = txs[0].init(params[0]), txs[1].init(params[1])

        def body(carry, _):
            *after, gradients, aux = rule.update(losses, txs, *carry)
            return tuple(after), (carry[0], gradients, aux)

        return jax.lax.scan(body, (params, opts), None, length=3)

    def both(key):
        together = jax.vmap(train)(jax.random.split(key, 2))
        starts = together[1][0]
        return together, jax.vmap(jax.vmap(game.field(losses)))(starts)

    together, at_start = jax.jit(both)(jax.random.key(0))
    alone = jax.jit(train)(jax.random.split(jax.random.key(0), 2)[1])
    (params, _), (_, *returned) = together
    trees_close(jax.tree.map(lambda x: x[1], together), alone, rtol=1e-4, atol=1e-4)
    trees_close(tuple(returned), at_start, rtol=1e-4, atol=1e-6)
    assert {x.dtype for x in jax.tree.leaves((params, returned))} == {np.dtype("float32")}
    assert jax.tree.structure(params) == jax.tree.structure(returned[0])


@pytest.mark.medium
def test_zero_sum_games_have_an_antisymmetric_coupling(x64):
    """J12 = -J21' for the minimax loss (R1 enters D's own block alone), and not for the non-saturating one."""
    for loss, zero_sum in (("minimax", True), ("nonsaturating", False)):
        losses, params = mlp_game(loss)
        n = ravel_pytree(params[0])[0].size
        j = np.asarray(game.jacobian(losses, params))
        assert np.abs(j[:n, n:]).max() > 1e-2
        assert np.allclose(j[:n, n:], -j[n:, :n].T, rtol=0, atol=1e-12) == zero_sum
        for block in (j[:n, :n], j[n:, n:]):  # Hessians
            np.testing.assert_allclose(block, block.T, atol=1e-12)


def extremes(eigenvalues):
    return np.array(
        [
            eigenvalues.real.min(), eigenvalues.real.max(), eigenvalues.imag.max(),
            abs(eigenvalues).max(), eigenvalues.imag.min(),
        ]
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["nonsaturating", "wasserstein"])
def test_arnoldi_on_a_gan(x64, loss):
    losses, params = mlp_game(loss, gamma=1.0)
    dense = game.spectrum(losses, params)
    assert dense.size == 39 and np.abs(dense.imag).max() > 1e-2
    scale = abs(dense).max()
    full = game.arnoldi(losses, params, jax.random.key(1), 39)
    np.testing.assert_allclose(extremes(full), extremes(dense), atol=1e-6 * scale)
    some = game.arnoldi(losses, params, jax.random.key(1), 20)
    assert some.size == 20
    np.testing.assert_allclose(abs(some).max(), scale, rtol=1e-3)


def game_of(j, n):
    """The game whose field is J w, for J with symmetric diagonal blocks of n and p - n rows."""
    j = np.asarray(j, float)

    def losses(params):
        x, y = params
        g = x @ j[:n, :n] @ x / 2 + x @ j[:n, n:] @ y
        return (g, y @ j[n:, n:] @ y / 2 + y @ j[n:, :n] @ x), None

    return jax.jit(losses), (jnp.ones(n), jnp.ones(len(j) - n))


@pytest.mark.medium
@pytest.mark.parametrize(
    "j,n,expected",
    [
        (3 * np.eye(4), 2, [3]),  # every vector spans an invariant space
        (np.diag([1, 2, 2, 5.0]), 2, [1, 2, 5]),
        (np.kron([[0, 1], [-1, 0]], np.eye(3)), 3, [-1j, 1j]),
        (np.zeros((3, 3)), 1, [0]),
        ([[0, 1], [0, 0.0]], 1, [0, 0]),  # defective, not exhausted early
        ([[2, 1e-9], [-1e-9, 2]], 1, [2 - 1e-9j, 2 + 1e-9j]),
    ],
)
def test_arnoldi_stops_when_the_space_is_exhausted(x64, j, n, expected):
    """The eigenvalues that are there, each once, whatever number was asked for; no NaN."""
    found = game.arnoldi(*game_of(j, n), jax.random.key(0), 50)
    assert found.size == len(expected)
    np.testing.assert_allclose(sort(found), sort(expected), atol=1e-7)


def test_arnoldi_stays_orthogonal(x64):
    """59 eigenvalues in [1, 2] beside one of 1e6: orthogonalized once, complex values of 150 appear among them."""
    expected = np.append(np.linspace(1, 2, 59), 1e6)
    losses, params = game_of(np.diag(expected), 30)
    found = game.arnoldi(losses, params, jax.random.key(0), 60)
    np.testing.assert_allclose(sort(found), expected, atol=1e-6)
    with pytest.raises(ValueError, match="iterations=0"):
        game.arnoldi(losses, params, jax.random.key(0), 0)


def test_arnoldi_in_single_precision():
    q = Quadratic(0, n=12, m=8)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), q.params)
    found = game.arnoldi(jax.jit(q.losses), params, jax.random.key(0), 20)
    np.testing.assert_allclose(extremes(found), extremes(np.linalg.eigvals(q.J)), atol=1e-4)


def test_largest_stable_step():
    """By hand: 2/l for real l; 2 a / (a^2 + b^2) for a +- bi; the smallest counts; none without damping."""
    step_of = lambda *values: game.largest_stable_step(np.array(values)).step  # noqa: E731
    assert step_of(4.0) == 0.5
    assert step_of(4.0, 1 + 3j, 1 - 3j) == pytest.approx(0.2)
    for unstable in (1j, 1e-17 + 1j, -1e-17 + 1j, -1.0, -0.5 + 1j, -1e-9):
        assert step_of(4.0, unstable) == 0.0
    for tiny in (1e-200, 1e200):  # whose squares are no floats
        assert step_of(tiny, (1 + 3j) * tiny) == pytest.approx(0.2 / tiny)
    assert step_of(4.0, 1e-9) == 0.5  # slow, and not neutral
    for bad in ([], [np.nan], [1.0, np.inf]):
        with pytest.raises(ValueError, match="eigenvalues must be finite numbers, at least one"):
            step_of(*bad)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_neutral_directions_are_named_and_do_not_decide(x64, precision):
    """A rotated zero is an eigenvalue of the size of rounding, of either sign: the answer was 0 or that of the rest."""
    found = []
    for seed in range(8):
        random = np.random.default_rng(seed)
        q, _ = np.linalg.qr(random.normal(size=(25, 25)))
        skew = random.normal(size=(25, 25))
        core = np.diag(np.linspace(0.1, 0.5, 25)) + 0.02 * (skew - skew.T)
        core[0], core[:, 0] = 0, 0
        expected = np.linalg.eigvals(core[1:, 1:])
        j = jnp.asarray(q @ core @ q.T, precision)
        values = np.linalg.eigvals(np.asarray(j))
        step, neutral = game.largest_stable_step(values)
        assert neutral.tolist() == [np.abs(values).argmin()]
        np.testing.assert_allclose(step, (2 * expected.real / abs(expected) ** 2).min(), rtol=1e-3)
        found.append(values[neutral[0]].real > 0)
    assert 0 < sum(found) < 8  # both signs
    assert game.largest_stable_step(np.zeros(3)).step == np.inf
    assert game.largest_stable_step(np.array([1.0, 1e-6])).neutral.size == 0
    assert game.largest_stable_step(np.array([1.0, 1e-6]), tolerance=1e-5).neutral.tolist() == [1]


@pytest.mark.medium
def test_a_loss_of_differences_leaves_the_bias_of_d_neutral():
    """Relativistic: D's bias shifts real and fake alike. The others are those of the game without it."""

    def losses(params):
        theta, (psi, bias) = params
        real, fake = bias, psi * theta + bias
        pair = LOSSES["relativistic"]
        return (pair.g(real, fake), pair.d(real, fake) + psi**2 / 2), {}

    params = jnp.full((), 1e-3), (jnp.full((), 1e-3), jnp.full((), 0.3))
    values = game.spectrum(losses, params)
    assert values.dtype == np.complex64
    step, neutral = game.largest_stable_step(values)
    assert neutral.size == 1 and abs(values[neutral[0]]) < 1e-6
    np.testing.assert_allclose(step, 4.0, rtol=1e-2)  # 2 / l, the eigenvalue 1/2 being double


SHARP = {
    "rotation decides": lambda: game_of([[1, 3], [-3, 1.4]], 1),
    "curvature decides": lambda: game_of([[0.5, 0.3], [-0.3, 9]], 1),
    "quadratic": lambda: (lambda q: (q.losses, q.params))(Quadratic(2, convexity=8.0)),
    "dirac": lambda: (jax.jit(dirac("minimax", 0.3)), (jnp.full((), 1e-4), jnp.full((), -1e-4))),
}


@pytest.mark.medium
@pytest.mark.parametrize("name", SHARP)
def test_largest_stable_step_is_sharp(x64, name):
    """One percent below the prediction simultaneous descent converges, one percent above it does not."""
    losses, params = SHARP[name]()
    eigenvalues = game.spectrum(losses, params)
    h, neutral = game.largest_stable_step(eigenvalues)
    assert h > 0 and not neutral.size

    def last_move(factor):
        points = trajectory(game.simultaneous, losses, optax.sgd(factor * h), params, 4000)
        moves = jnp.linalg.norm(jnp.diff(points, axis=0), axis=1)
        return moves[-1] / moves[:3].max()

    below, above = jax.jit(jax.vmap(last_move))(jnp.array([0.99, 1.01]))
    assert below < 1e-2 and above > 1e2


def test_documented_example():
    page = (pathlib.Path(__file__).parent.parent / "docs" / "games.md").read_text()
    names: dict = {}
    block, _ = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(compile(block, "games.md", "exec"), names)
    np.testing.assert_allclose(sort(names["eigenvalues"])[1], 0.05 + 0.99875j, atol=1e-4)
    assert names["game"].largest_stable_step(names["eigenvalues"]).step == pytest.approx(0.1)
