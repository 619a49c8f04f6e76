"""Flows whose objectives are known in closed form; checks that mutants of ``bpgan.algorithms.flow`` must fail."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bpgan.algorithms import gan
from bpgan.algorithms.turns import TOGETHER, Now, Player
from bpgan.losses import LOSSES
from bpgan.penalties import Regularizer, weighted
from bpgan.types import Net
from checks.networks import compiled

B = 6
RNG = np.random.default_rng(0)
X, Z, U = (RNG.normal(size=(B, 2)) for _ in range(3))
T = RNG.uniform(0.1, 0.9, B)


def now(batch, **params):
    """What an objective sees of players with these parameters."""
    players = {name: Player(jnp.asarray(p, jnp.float32), {}, None) for name, p in params.items()}
    rows = {name: jnp.asarray(x, jnp.float32) for name, x in batch.items()}
    zero = jnp.zeros((), jnp.int32)
    return Now(players, rows, jax.random.key(0), zero, zero, {}, TOGETHER)


def _velocity(v, x, t, train):
    return v["params"][0] * x + v["params"][1] * t[:, None], {}


def _curved(v, x, t, train):
    p = v["params"]
    return p[0] * jnp.sum(x**3, 1) + p[1] * x[:, 0] * t + p[2] * t**2, {}


G, D = Net(lambda *_: None, _velocity), Net(lambda *_: None, _curved)


def check_objectives(module) -> None:
    """All three objectives against NumPy, at networks whose derivatives are known by hand."""
    flow = module.Velocity(G, (2,), D)
    g, d = np.array([0.7, -0.4]), np.array([0.3, -1.1, 0.8])
    batch = {"x": X, "z": Z, "t": T, "u": U}
    point, v = X + T[:, None] * (Z - X), Z - X
    velocity = g[0] * point + g[1] * T[:, None]

    def along(u):
        space = 3 * d[0] * point**2 + d[1] * np.stack([T, np.zeros(B)], 1)
        return np.sum(space * u, 1) + d[1] * point[:, 0] + 2 * d[2] * T

    level = d[0] * np.sum(point**3, 1) + d[1] * point[:, 0] * T + d[2] * T**2
    known = {
        "match": np.mean((velocity - v) ** 2),
        "d": np.mean((along(v) - 1) ** 2 + (along(U) + 1) ** 2) + 0.5 * np.mean(level**2),
        "g": np.mean((along(velocity) - 1) ** 2) + 0.25 * np.mean(velocity**2),
    }

    def objectives():
        here = now(batch, g=g, d=d)
        return {
            "match": module.match_objective(flow, here)[0],
            "d": module.d_objective(flow, 0.5, here)[0],
            "g": module.g_objective(flow, 0.25, here)[0],
        }

    found = compiled(objectives)()
    for name, value in known.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def check_fitted_potential(module) -> None:
    """The least of D's loss and the force on G, where velocities have a variance V and G is off by e.

    Of potentials ``a x + c t`` the best has ``a = -2 e / (e^2 + 2 V)``, its loss is ``2 (1 + a e / 2)^2 + a^2 V`` and
    the force on G ``4 e (2 e^2 + 2 V) / (e^2 + 2 V)^2``. Without the derivative by the time it would have
    ``a = -e / (u^2 + v^2 + V)``, and another loss.
    """
    affine = Net(None, lambda w, x, t, train: (w["params"][0] * x[:, 0] + w["params"][1] * t, {}))
    constant = Net(None, lambda w, x, t, train: (jnp.broadcast_to(w["params"], x.shape), {}))
    flow = module.Velocity(constant, (1,), affine)
    v = np.array([-0.3, 1.1, 0.5, 0.7])[:, None]  # with mean 0.5
    mean, variance, off = v.mean(), v.var(), 0.6
    u = np.full_like(v, mean + off)
    batch = {"x": np.zeros_like(v), "z": v, "t": np.full(4, 0.5), "u": u}

    def loss(d):
        return module.d_objective(flow, 0.0, now(batch, g=u[0], d=d))[0]

    zero = jnp.zeros(2)
    hessian, slope = compiled(lambda d: (jax.hessian(loss)(d), jax.grad(loss)(d)))(zero)
    best = jnp.asarray(np.linalg.lstsq(hessian, -slope, rcond=1e-6)[0])
    a = -2 * off / (off**2 + 2 * variance)
    np.testing.assert_allclose(best[0], a, rtol=1e-4)
    np.testing.assert_allclose(
        compiled(loss)(best), 2 * (1 + a * off / 2) ** 2 + a**2 * variance, rtol=1e-4
    )

    def g_loss(w):
        return module.g_objective(flow, 0.0, now(batch, g=w, d=best))[0]

    force = compiled(jax.grad(g_loss))(jnp.asarray(u[0], jnp.float32))[0]
    known = 4 * off * (2 * off**2 + 2 * variance) / (off**2 + 2 * variance) ** 2
    np.testing.assert_allclose(force, known, rtol=1e-4)


def check_sampling(module) -> None:
    """``dx/dt = x + t``: its steps by hand, from z at t = 1 to t = 0."""
    z = jnp.array([[1.0], [-2.0]])

    def velocity(x, t):
        return x + t[:, None]

    for method, n in (("euler", 1), ("euler", 5), ("heun", 2), ("heun", 8)):
        steps = n // 2 if method == "heun" else n
        x, h = np.asarray(z, np.float64), 1 / steps
        for i in range(steps):
            t = 1 - i * h
            first = x + t
            ahead = x - h * first
            x = x - h * (first + ahead + t - h) / 2 if method == "heun" else ahead
        found = module.follow(velocity, z, module.Sampler(method, n))
        np.testing.assert_allclose(found, x, rtol=1e-5)


def jumping(module, count=0, **options):
    """G is the zero velocity plus ``p (s - 2 t)``, D(x, t) is ``p t x_0`` plus the sum of x."""
    g = Net(
        lambda key, x, s, t: {"params": jnp.ones(())},
        lambda v, x, s, t, train: (v["params"] * (s - 2 * t)[:, None] + jnp.zeros_like(x), {}),
    )
    d = Net(
        lambda key, x, t: {"params": jnp.ones(())},
        lambda v, x, t, train: (v["params"] * t * x[:, 0] + jnp.sum(x, 1), {}),
    )
    return module.Jumping(g, d, (2,), module.Jumps(count, **options))


def check_steps(module) -> None:
    """Where steps begin and end, whose noise and whose examples they have, and where G arrives."""
    x = 1e3 * np.arange(1, 1001.0)[:, None] * np.ones((1, 2))
    here = now({"x": x})
    for options in ({}, {"paired": True}):
        flow = jumping(module, **options)
        drawn = compiled(functools.partial(module.jump_ends, flow))(here)
        ends = {name: np.asarray(each, np.float64) for name, each in drawn.items()}
        s, t = ends["s"][:, None], ends["t"][:, None]
        assert (0 <= t).all() and (t < s).all() and (s <= 1).all()
        np.testing.assert_allclose([s.mean(), t.mean()], [0.5, 0.25], atol=0.04)
        other = x if options else np.roll(x, 1, 0)
        small = 6 + 1e-6 * np.abs(x)  # noise, and the rounding of large numbers
        assert (np.abs(ends["x"] - (1 - t) * x) < small).all()
        assert (np.abs(ends["z"] - (1 - s) * other) < small).all()
    near = now({"x": np.zeros((1000, 2))})
    for options, known in (({}, 0.0), ({"paired": True}, 1.0)):
        ends = compiled(functools.partial(module.jump_ends, jumping(module, **options)))(near)
        noise = [
            np.asarray(ends[a] / ends[b][:, None]).ravel() for a, b in (("x", "t"), ("z", "s"))
        ]
        np.testing.assert_allclose(np.corrcoef(*noise)[0, 1], known, atol=0.1)
    ends = compiled(functools.partial(module.jump_ends, jumping(module, 4)))(here)
    steps = np.unique(np.stack([ends["s"], ends["t"]], 1), axis=0)
    np.testing.assert_array_equal(steps, [[0.25, 0], [0.5, 0.25], [0.75, 0.5], [1, 0.75]])
    s, t = jnp.array([0.9, 0.5]), jnp.array([0.1, 0.4])
    arrived, _ = jumping(module).jump({"params": 2.0}, jnp.ones((2, 2)), s, t, train=True)
    np.testing.assert_allclose(arrived[:, 0], [1 - 0.8 * 2 * 0.7, 1 - 0.1 * 2 * -0.3], rtol=1e-6)


def _pay(scene, memory):
    return jnp.mean(jnp.square(scene.fake - scene.z), 1), memory


def check_weights(module) -> None:
    """Penalties of D times the length of a step, those of G over it, and no step shorter than 0.001."""
    flow = jumping(module)
    pay = Regularizer(lambda scene, memory: (jnp.ones(len(scene.real)), memory))
    penalties = gan.named([weighted(2.0, pay), weighted(3.0, Regularizer(_pay), player="g")])
    latents = functools.partial(gan.normal_latents(2))
    setting = gan.Setting(
        gan.Networks(flow.g, flow.d, latents, (2,)), LOSSES["relativistic"], penalties=penalties
    )
    s, t = np.array([0.9, 0.5, 0.3, 0.3]), np.array([0.1, 0.4, 0.2999, 0.0])
    batch = {"x": X[:4], "z": Z[:4], "fake": U[:4], "s": s, "t": t}
    here = now(batch, g=1.5, d=-0.5)
    seen = module.at_times(flow, setting, here)
    w = np.maximum(s - t, 1e-3)
    value, aux = gan.d_objective(seen, here)
    np.testing.assert_allclose(aux.metrics["penalty"], 2 * w.mean(), rtol=1e-4)
    logits = [-0.5 * t * x[:, 0] + x.sum(1) for x in (X[:4], U[:4])]
    loss = np.mean(np.log1p(np.exp(logits[1] - logits[0])))
    np.testing.assert_allclose(value, loss + 2 * w.mean(), rtol=1e-4)
    moved = (s - t) * 1.5 * (s - 2 * t)
    value, aux = gan.g_objective(seen, here)
    np.testing.assert_allclose(aux.metrics["penalty"], 3 * np.mean(moved**2 / w), rtol=1e-3)


CHECKS = {
    "objectives": check_objectives,
    "fitted potential": check_fitted_potential,
    "sampling": check_sampling,
    "steps": check_steps,
    "weights": check_weights,
}
