"""GANs on problems whose answers are known, to see what a loss, a penalty or a rule does.

Run:     python -m experiments.toy_gan                          eight Gaussians on a circle
         python -m experiments.toy_gan --preset=grid25          twenty-five on a lattice
         python -m experiments.toy_gan --preset=dirac           two parameters; also bilinear, gaussian1d, lqg
         python -m experiments.toy_gan --preset=bilinear --rule=extragradient
         python -m experiments.toy_gan --preset=afm1d           adversarial flow: the cheapest map; also afm2d, afm3d
Shows:   samples/, report.html and samples.gif: real and generated points over what D thinks; or the players' path.
Prints:  what was measured beside what is known.

dirac       D(x) = psi x, G = theta, real mass at 0 (Mescheder et al. 2018, arXiv:1801.04406)
bilinear    the same with the Wasserstein loss: min over theta, max over psi of -theta psi
gaussian1d  G(z) = a + b z against N(2, 0.5^2), D a polynomial of degree 2, which holds the optimum
lqg         W2 to N(0, K), K = diag(4, 2, 1, .5, .25, .1), by G of rank 2: PCA (Feizi et al. 2017, arXiv:1710.10793)
ring8, grid25   mixtures of Gaussians (Lin et al. 2018, arXiv:1712.04086)
row4, ring2     N(0, I) to four modes on a line, to eight on a circle of radius 2: which map is found? (docs/flows.md)
gaussian3d      N(0, S) to N(m, T) by G(z) = A z + b, D a polynomial of degree 2
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bpgan import cli, losses, metrics, optim, penalties
from bpgan.algorithms import game, gan
from bpgan.data import toys
from bpgan.nets import linen_net, mlp
from bpgan.report import canvas
from bpgan.types import PRNG, AdversarialLoss, Algorithm, Net, Network, Source, UserError

MU, SIGMA = 2.0, 0.5
"""The Gaussian of ``gaussian1d``."""
SPECTRUM = np.array([4.0, 2.0, 1.0, 0.5, 0.25, 0.1])
RANK = 2
"""The covariance of ``lqg``, and G's rank."""
SAMPLES = 2500
"""For the measures of mixtures, as in the literature."""
he_normal = jax.nn.initializers.he_normal()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    problem: str = cli.field("ring8", "what is learned", choices=lambda: PROBLEMS)
    loss: cli.Parsed[AdversarialLoss] = cli.field(
        "relativistic", "adversarial loss", choices=losses.of_logits, parse=losses.parse_of_logits
    )
    penalty: cli.Parsed[penalties.Terms] = cli.field(
        "r1+r2",
        "none, or a sum such as r1+r2 or r1=0.3/4; for G g.NAME",
        choices=penalties.forms,
        parse=penalties.parse,
    )
    gamma: float = cli.field(0.1, "weight of penalties without one", low=0, sweepable=True)
    rule: cli.Parsed[game.Rule | None] = cli.field(
        "none",
        f"update rule of the game: {game.RULE_FORMS}; none: D, then G",
        parse=game.rule_of,
    )
    optimizer: str = cli.field("adam", "of both players", choices=("adam", "sgd"))
    lr: cli.Parsed[optim.OverRun] = cli.field(
        "cosine:1e-3:2e-5",
        "step size: a number or a schedule",
        parse=functools.partial(optim.parse, low=0.0),
    )
    b1: float = cli.field(0.0, "Adam's decay of the mean gradient", low=0, high=0.99999)
    b2: float = cli.field(0.99, "Adam's decay of the squared gradient", low=0, high=0.99999)
    width: int = cli.field(128, "units in each of the three hidden layers of both players", low=1)
    d_steps: int = cli.field(1, "updates of D per update of G", low=1)
    ema: float = cli.field(
        0.999, "EMA decay of the generator that draws the samples", low=0, high=1
    )
    steps: int = cli.field(10_000)
    batch_size: int = cli.field(256)
    matmul_precision: str = cli.field("highest")
    log_every: str = cli.field("1000")
    sample_every: str = cli.field("500")
    checkpoint_every: str = cli.field("5000")

    def idle(self) -> dict[str, str]:
        terms = self.penalty.value.terms
        found = {} if any(term.weight is None for term in terms) else {"gamma": "penalty"}
        if self.optimizer == "sgd":
            found |= {"b1": "optimizer", "b2": "optimizer"}
        return found | dict.fromkeys(PROBLEMS[self.problem].idle, "problem")


_EXACT = dict(penalty="none", optimizer="sgd", lr="0.1", ema=0.0, batch_size=4, steps=500, log_every="100",
              sample_every="25", checkpoint_every="250")  # fmt: skip
# One-step adversarial flow: without its last term it is the control, a GAN.
_FLOW = dict(
    penalty="r1=0.02+r2=0.02+centering=0.01+g.transport=cosine:0.2:0.01",
    lr="1e-3",
    b2=0.9,
    width=64,
    ema=0.99,
    steps=4000,
)
PRESETS = {
    "ring8": dict(problem="ring8"),
    "grid25": dict(problem="grid25"),
    "gaussian1d": dict(
        problem="gaussian1d", gamma=1.0, lr="cosine:5e-3:0", steps=4000, sample_every="100"
    ),
    "dirac": dict(_EXACT, problem="dirac", loss="nonsaturating", penalty="r1", gamma=1.0),
    "bilinear": dict(_EXACT, problem="bilinear", loss="wasserstein"),
    "lqg": dict(_EXACT, problem="lqg", lr="0.05", steps=2000, sample_every="100"),
    "afm1d": dict(_FLOW, problem="row4"),
    "afm2d": dict(_FLOW, problem="ring2"),
    "afm3d": dict(
        _FLOW,
        problem="gaussian3d",
        penalty="centering=0.01+g.transport=cosine:0.5:0.005",
        lr="cosine:2e-2:1e-5",
        b2=0.99,
        batch_size=512,
        steps=6000,
    ),
    "smoke": dict(
        width=8, batch_size=16, steps=20, log_every="10", sample_every="10", checkpoint_every="10"
    ),
}


class Problem(NamedTuple):
    """A problem whose answer is known.

    Attributes:
      make: ``(cfg, steps) -> cli.Experiment``, with the measures at the end.
      idle: flags that it makes no use of.
      kernels: whether D has kernels, without which ``orthogonal`` is 0.
      solved: whether D is, exactly, and so takes no steps.
    """

    make: Callable[[Config, int], cli.Experiment]
    idle: tuple[str, ...] = ()
    kernels: bool = True
    solved: bool = False


class Trail(NamedTuple):
    """A game in the plane with the points ``(theta, psi)`` of its last 512 steps, the newest last."""

    step: jax.Array
    state: Any
    points: jax.Array


# Problems: each an algorithm, a source and the measures at the end.


def _tx(cfg: Config, steps: int, updates: int = 1) -> optax.GradientTransformation:
    """The optimizer of a player that is updated so many times in a step."""
    rule = cfg.rule.value
    lr = cfg.lr.value(steps * updates * (rule.counts if rule else 1))
    return optax.sgd(lr) if cfg.optimizer == "sgd" else optim.adam(lr, cfg.b1, cfg.b2)


def _gan(
    cfg: Config, g: Net, d: Net, steps: int, shape: tuple[int, ...], latents: Any = None
) -> Algorithm:
    dtype = jnp.dtype(cfg.precision)
    terms = cfg.penalty.value
    latents = latents or gan.normal_latents(shape[0], dtype)
    return gan.make(
        gan.Networks(g, d, latents, shape, dtype),
        cfg.loss.value,
        gan.Optimizers(_tx(cfg, steps), terms.bounded(_tx(cfg, steps, cfg.d_steps))),
        penalties=terms.over(steps, weight=cfg.gamma),
        d_steps=cfg.d_steps,
        ema_decay=cfg.ema or None,
        rule=cfg.rule.value,
    )


def _fresh(cfg: Config, draw: Callable[[PRNG, int], jax.Array], definition: str) -> Source:
    """Batches of what ``draw`` draws."""
    rows = cfg.batch_size * cfg.d_steps
    return toys.fresh(draw, definition=definition, seed=cfg.seed, batch_size=rows)


def _drawn(algorithm: Algorithm, state: Any, n: int, seed: int = 0) -> np.ndarray:
    assert algorithm.sample is not None
    return np.asarray(algorithm.sample(state, jax.random.key(seed), n))


def mixture(target: toys.Mixture, cfg: Config, steps: int) -> cli.Experiment:
    """ring8 and grid25."""
    dtype, widths = jnp.dtype(cfg.precision), (cfg.width,) * 3
    d = linen_net(mlp.Discriminator(widths, he_normal, dtype=dtype))
    g = linen_net(
        mlp.Generator((2,), widths, linear=True, slope=0.0, kernel_init=he_normal, dtype=dtype)
    )
    inner = _gan(cfg, g, d, steps, (2,))
    assert inner.sample is not None
    plain, reach = inner.sample, 1.3 * float(np.abs(target.centers).max())

    def picture(state: Any, key: PRNG, n: int) -> jax.Array:
        del n
        k1, k2 = jax.random.split(key)
        logits = lambda x: d.apply(state.players["d"].variables, x.astype(dtype), train=False)[0]  # noqa: E731
        return canvas.scatter(target.draw(k1, 1000), plain(state, k2, 1000), logits, reach)

    def evaluate(state: Any) -> dict[str, float]:
        found = metrics.modes(_drawn(inner, state, SAMPLES), target.centers, target.std)
        k = len(target.centers)
        return {
            "modes": found.captured,
            "modes/known": k,
            "high_quality": found.high_quality,
            "high_quality/known": 1 - math.exp(-4.5),
            "reverse_kl": found.reverse_kl,
            "reverse_kl/known": (k - 1) / (2 * SAMPLES),
            "std_ratio": found.std_ratio,
            "std_ratio/known": 1.0,
        }

    draw = lambda key, n: target.draw(key, n, dtype)  # noqa: E731
    source = _fresh(cfg, draw, target.definition)
    frame = canvas.framed(
        ("x", -reach, reach),
        ("y", -reach, reach),
        data=canvas.BLACK,
        generated=canvas.GREEN,
        **canvas.OPINION,
    )
    title = (
        f"{cfg.problem}: samples of {len(target.centers)} Gaussians in the plane, each of standard"
    )
    title += f" deviation {target.std:g}"
    return cli.Experiment(inner._replace(picture=picture), source, evaluate, title, frame=frame)


def waves(x: jax.Array) -> jax.Array:
    """Sines and cosines ``[b, 32 d]`` of ``x[b, d]`` at 16 frequencies from 0.05 to 20: modes are narrow."""
    frequencies = jnp.asarray(np.geomspace(0.05, 20, 16), x.dtype)
    angles = (x[:, :, None] * frequencies.reshape(1, 1, -1)).reshape(len(x), -1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], 1)


def on_waves(net: Net) -> Net:
    """The network, which sees ``waves`` of its input."""
    return Net(
        lambda key, x: net.init(key, waves(x)),
        lambda variables, x, train: net.apply(variables, waves(x), train=train),
    )


def _mapped(algorithm: Algorithm, state: Any, z: np.ndarray) -> np.ndarray:
    """``G(z)`` of the average that draws."""
    network = algorithm.networks["generator"]
    return np.asarray(network.apply(network.variables(state), jnp.asarray(z)), np.float64)


def row(cfg: Config, steps: int) -> cli.Experiment:
    """The map of a number to a number, which for an adversarial flow is the increasing one."""
    dtype, widths, target = jnp.dtype(cfg.precision), (cfg.width,) * 3, toys.row()
    d = on_waves(linen_net(mlp.Discriminator(widths, he_normal, dtype=dtype)))
    g = mlp.Generator((1,), widths, linear=True, slope=0.0, kernel_init=he_normal, dtype=dtype)
    inner = _gan(cfg, on_waves(linen_net(g)), d, steps, (1,))
    centers, reach = target.centers[:, 0], 3.0
    z = metrics.normal_quantiles(4096)
    best = metrics.monotone_map(z, centers, target.std)
    ticks = np.linspace(-reach, reach, 4 * canvas.SIDE)
    known = metrics.monotone_map(ticks, centers, target.std)

    def picture(state: Any, key: PRNG, n: int) -> jax.Array:
        """G (green) and the increasing map (black), z to the right, over what D thinks of each height."""
        del key, n
        network, seen = inner.networks["generator"], jnp.asarray(ticks, dtype)
        found = network.apply(network.variables(state), seen[:, None])
        heights = jnp.linspace(reach, -reach, canvas.SIDE, dtype=dtype)
        logits, _ = d.apply(state.players["d"].variables, heights[:, None], train=False)
        box = canvas.square(reach)
        return canvas.maps(
            seen, jnp.asarray(known, dtype), found[:, 0], box, canvas.centered(logits)
        )

    def evaluate(state: Any) -> dict[str, float]:
        found = _mapped(inner, state, z[:, None].astype(dtype))[:, 0]
        nearest = lambda x: np.abs(x[:, None] - centers).argmin(1)  # noqa: E731
        return {
            "same_mode": float(np.mean(nearest(found) == nearest(best))),
            "same_mode/known": 1.0,
            "map_error": float(np.sqrt(np.mean(np.square(found - best)))),
            "map_error/known": 0.0,
            "w1": float(np.mean(np.abs(np.sort(found) - best))),
            "w1/known": 0.0,
            "cost": metrics.squared_distance(found, z),
            "cost/known": metrics.squared_distance(best, z),
        }

    source = _fresh(cfg, lambda key, n: target.draw(key, n, dtype), target.definition)
    frame = canvas.framed(
        ("z", -reach, reach),
        ("G(z)", -reach, reach),
        increasing_map=canvas.BLACK,
        generator=canvas.GREEN,
        **canvas.OPINION,
    )
    title = f"{cfg.problem}: N(0, 1) to {len(centers)} Gaussians on a line, of standard deviation"
    title += f" {target.std:g}"
    return cli.Experiment(inner._replace(picture=picture), source, evaluate, title, frame=frame)


def ring2(cfg: Config, steps: int) -> cli.Experiment:
    """A mixture whose modes lie as far from 0 as latents do: where does each latent go?"""
    target = toys.ring(radius=2.0, std=0.1)
    experiment = mixture(target, cfg, steps)
    assert experiment.evaluate is not None
    plain, inner = experiment.evaluate, experiment.algorithm
    assert inner.latents is not None
    latents = inner.latents

    def evaluate(state: Any) -> dict[str, float]:
        z = np.asarray(latents(jax.random.key(2), 2000), np.float64)
        # Of so narrow modes on so symmetric a circle, each latent goes to the mode that is next in direction.
        best = target.centers[(z @ target.centers.T).argmax(1)]
        real = np.asarray(target.draw(jax.random.key(3), len(z)))
        found = _mapped(inner, state, z.astype(cfg.precision))
        nearest = target.centers[(found @ target.centers.T).argmax(1)]
        return plain(state) | {
            "same_mode": float(np.mean(np.all(nearest == best, 1))),
            "same_mode/known": 1.0,
            "cost": metrics.squared_distance(found, z),
            "cost/known": metrics.assigned_distance(real, z),
            "cost/least_of_its_samples": metrics.assigned_distance(found, z),
        }

    return experiment._replace(evaluate=evaluate)


_SOURCE = np.diag([1.0, 2.0, 0.5])
_TARGET_MEAN = np.array([1.0, -0.5, 0.5])
_TARGET = np.array([[1.1, -0.2, 0.2], [-0.2, 0.5, 0.2], [0.2, 0.2, 3.0]])
"""Of ``gaussian3d``: the covariance of the latents; the mean and covariance of the data."""


def quadratic_critic(dtype: Any = jnp.float32) -> Net:
    """``x'Mx / 2 + w'x + c`` from 0."""

    def init(key: PRNG, x: jax.Array) -> Any:
        d = x.shape[1]
        shapes = {"m": (d, d), "w": (d,), "c": ()}
        return {"params": {name: jnp.zeros(shape, dtype) for name, shape in shapes.items()}}

    def apply(v: Any, x: jax.Array, train: bool) -> tuple[jax.Array, dict]:
        p = v["params"]
        return jnp.sum((x @ p["m"]) * x, 1) / 2 + x @ p["w"] + p["c"], {}

    return Net(init, apply)


def linear_generator(dtype: Any = jnp.float32) -> Net:
    """``A z + b`` from a random rotation and b = 0."""

    def init(key: PRNG, z: jax.Array) -> Any:
        d = z.shape[1]
        q, _ = jnp.linalg.qr(jax.random.normal(key, (d, d), dtype))
        return {"params": {"a": q, "b": jnp.zeros(d, dtype)}}

    def apply(v: Any, z: jax.Array, train: bool) -> tuple[jax.Array, dict]:
        return z @ v["params"]["a"].T + v["params"]["b"].reshape(1, -1), {}

    return Net(init, apply)


def gaussian3d(cfg: Config, steps: int) -> cli.Experiment:
    """A linear map between two Gaussians: there are many, of which one is the cheapest, and symmetric."""
    dtype = jnp.dtype(cfg.precision)
    d = quadratic_critic(dtype)
    scale = jnp.asarray(np.sqrt(np.diag(_SOURCE)), dtype).reshape(1, -1)
    root = jnp.asarray(np.linalg.cholesky(_TARGET).T, dtype)
    mean = jnp.asarray(_TARGET_MEAN, dtype).reshape(1, -1)

    def latents(key: PRNG, n: int) -> jax.Array:
        return scale * jax.random.normal(key, (n, 3), dtype)

    def draw(key: PRNG, n: int) -> jax.Array:
        return mean + jax.random.normal(key, (n, 3), dtype) @ root

    inner = _gan(cfg, linear_generator(dtype), d, steps, (3,), latents)
    assert inner.sample is not None
    plain, reach = inner.sample, 6.0

    def picture(state: Any, key: PRNG, n: int) -> jax.Array:
        """The first two coordinates, over what D thinks where the third is at its mean."""
        del n
        k1, k2 = jax.random.split(key)

        def logits(x: jax.Array) -> jax.Array:
            third = jnp.full((len(x), 1), _TARGET_MEAN[2], dtype)
            x = jnp.concatenate([x.astype(dtype), third], 1)
            return d.apply(state.players["d"].variables, x, train=False)[0]

        real, fake = draw(k1, 1000), plain(state, k2, 1000)
        return canvas.scatter(real[:, :2], fake[:, :2], logits, reach)

    def evaluate(state: Any) -> dict[str, float]:
        found = gan.averaged(state)
        a, b = (np.asarray(found["params"][name], np.float64) for name in ("a", "b"))
        best, norm, eye = metrics.gaussian_map(_SOURCE, _TARGET), np.linalg.norm, np.eye(3)

        def cost(a: np.ndarray, b: np.ndarray) -> float:
            return float(np.trace((a - eye) @ _SOURCE @ (a - eye).T) + b @ b)

        return {
            "map_error": float(norm(a - best) / norm(best)),
            "map_error/known": 0.0,
            "covariance_error": float(norm(a @ _SOURCE @ a.T - _TARGET) / norm(_TARGET)),
            "covariance_error/known": 0.0,
            "mean_error": float(norm(b - _TARGET_MEAN)),
            "mean_error/known": 0.0,
            "cost": cost(a, b),
            "cost/known": cost(best, _TARGET_MEAN),
        }

    definition = f"N({_TARGET_MEAN.tolist()}, {_TARGET.tolist()})"
    source = _fresh(cfg, draw, definition)
    axes = [(f"x{i + 1}", -reach, reach) for i in range(2)]
    frame = canvas.framed(*axes, data=canvas.BLACK, generated=canvas.GREEN, **canvas.OPINION)
    title = f"{cfg.problem}: N(0, diag{np.diag(_SOURCE).tolist()}) to {definition}"
    return cli.Experiment(inner._replace(picture=picture), source, evaluate, title, frame=frame)


def affine_generator(dtype: Any = jnp.float32) -> Net:
    """``a + b z`` from a = 0, b = 1."""
    return Net(
        lambda key, z: {"params": {"a": jnp.zeros((), dtype), "b": jnp.ones((), dtype)}},
        lambda v, z, train: (v["params"]["a"] + v["params"]["b"] * z, {}),
    )


def quadratic_discriminator(dtype: Any = jnp.float32) -> Net:
    """``c0 + c1 x + c2 x^2`` from 0."""

    def apply(v: Any, x: jax.Array, train: bool) -> tuple[jax.Array, dict]:
        c = v["params"]
        return c[0] + c[1] * x[:, 0] + c[2] * jnp.square(x[:, 0]), {}

    return Net(lambda key, x: {"params": jnp.zeros(3, dtype)}, apply)


def log_ratio(x: jax.Array, a: Any, b: Any) -> jax.Array:
    """``log p(x) / q(x)`` for p = N(MU, SIGMA^2) and q = N(a, b^2): the best D against ``a + b z``."""
    return (jnp.square((x - a) / b) - jnp.square((x - MU) / SIGMA)) / 2 + jnp.log(abs(b) / SIGMA)


def gaussian1d(cfg: Config, steps: int) -> cli.Experiment:
    """Two numbers of G against N(2, 0.5^2)."""
    dtype = jnp.dtype(cfg.precision)
    d = quadratic_discriminator(dtype)
    inner = _gan(cfg, affine_generator(dtype), d, steps, (1,))
    assert inner.sample is not None
    plain = inner.sample

    def draw(key: PRNG, n: int) -> jax.Array:
        return MU + SIGMA * jax.random.normal(key, (n, 1), dtype)

    def picture(state: Any, key: PRNG, n: int) -> jax.Array:
        del n
        k1, k2 = jax.random.split(key)
        logits = lambda x: d.apply(state.players["d"].variables, x, train=False)[0]  # noqa: E731
        ends, top = (MU - 6 * SIGMA, MU + 4 * SIGMA), 1 / (2 * SIGMA)
        return canvas.histograms(draw(k1, 4000), plain(state, k2, 4000), logits, ends, top)

    def evaluate(state: Any) -> dict[str, float]:
        g = state.players["g"].params
        averaged = state.ema["g"]["params"] if state.ema else g
        real = draw(jax.random.key(1), 100_000)
        fake = jnp.asarray(_drawn(inner, state, 100_000))
        logits = [d.apply(state.players["d"].variables, x, train=False)[0] for x in (real, fake)]
        loss = cfg.loss.value
        value = float(jnp.mean(loss.d(*logits)))
        constant = jnp.linspace(-2.0, 2.0, 401)  # what is left to D against equal distributions
        found = {
            "mean": float(averaged["a"]),
            "mean/known": MU,
            "std": abs(float(averaged["b"])),
            "std/known": SIGMA,
            "d_loss": value,
            "d_loss/known": float(
                jnp.min(jax.vmap(lambda c: loss.d(c[None], c[None])[0])(constant))
            ),
        }
        if loss.log_ratio:
            # Spread over the reals, for a constant says nothing; of the G that D plays against.
            ratio = log_ratio(real[:, 0], g["a"], g["b"])
            found |= {"logit_error": float(jnp.std(logits[0] - ratio)), "logit_error/known": 0.0}
        return found

    source = _fresh(cfg, draw, f"N({MU}, {SIGMA}^2)")
    frame = canvas.framed(
        ("x", MU - 6 * SIGMA, MU + 4 * SIGMA),
        ("density", 0, 1 / (2 * SIGMA)),
        data=canvas.BLACK,
        generated=canvas.GREEN,
        **canvas.OPINION,
    )
    title = f"{cfg.problem}: samples of N({MU}, {SIGMA}^2)"
    return cli.Experiment(inner._replace(picture=picture), source, evaluate, title, frame=frame)


def _two_numbers(cfg: Config, steps: int) -> tuple[Algorithm, Callable]:
    """The algorithm of dirac and bilinear, and ``moved(state, where[2]) -> where[2]``, a step from another point."""
    dtype = jnp.dtype(cfg.precision)
    g = Net(
        lambda key, z: {"params": jnp.ones((), dtype)},
        lambda v, z, train: (jnp.broadcast_to(v["params"], (z.shape[0], 1)), {}),
    )
    d = Net(
        lambda key, x: {"params": -jnp.ones((), dtype)},
        lambda v, x, train: (v["params"] * x[:, 0], {}),
    )
    algorithm = _gan(cfg, g, d, steps, (1,))
    batch = {"x": jnp.zeros((cfg.batch_size * cfg.d_steps, 1), dtype)}

    def moved(state: Any, where: jax.Array) -> jax.Array:
        players = {
            name: state.players[name]._replace(params=x)
            for name, x in zip(game.PLAYERS, where.astype(dtype), strict=True)
        }
        there = state._replace(players=players)
        return point_of(algorithm.step(there, batch, jax.random.key(0))[0])

    return algorithm, moved


def point_of(state: Any) -> jax.Array:
    """``(theta, psi)`` of a game in the plane."""
    return jnp.stack([state.players[name].params for name in game.PLAYERS])


def dirac(cfg: Config, steps: int) -> cli.Experiment:
    """dirac and bilinear: two numbers, from (1, -1), with the path that they take."""
    if cfg.problem == "bilinear" and cfg.loss != "wasserstein":
        reason = "`problem=bilinear` is that of wasserstein"
        raise UserError(reason, argument="loss", value=cfg.loss)
    dtype = jnp.dtype(cfg.precision)
    inner, moved = _two_numbers(cfg, steps)

    def init(key: PRNG) -> Trail:
        state = inner.init(key)
        points = jnp.zeros((canvas.TRAIL, 2), dtype).at[-1].set(point_of(state))
        return Trail(jnp.zeros((), jnp.int32), state, points)

    def step(trail: Trail, batch: Any, key: PRNG) -> tuple[Trail, Any]:
        state, values = inner.step(trail.state, batch, key)
        points = jnp.concatenate([trail.points[1:], point_of(state)[None]])
        return Trail(trail.step + 1, state, points), values

    def picture(trail: Trail, key: PRNG, n: int) -> jax.Array:
        del key, n
        plain = lambda where: moved(trail.state, where) - where.astype(dtype)  # noqa: E731
        return canvas.path(trail.points, trail.step, plain, 2.0)

    def evaluate(trail: Trail) -> dict[str, float]:
        """Distance to the equilibrium and its factor of each step; known, the spectral radius of the step there.

        Known is only what the points at the end are near enough to the equilibrium to have.
        """
        points = np.asarray(trail.points, np.float64)
        norms = np.linalg.norm(points, axis=1)
        found = {"distance": norms[-1]}
        # Not from points before the first one, nor from where the floats end.
        there = norms > 1e3 * np.finfo(dtype).tiny
        points, norms = points[there], norms[there][-101:]
        if len(norms) > 1:
            found["factor"] = game.growth(norms)
        rule, changes = cfg.rule.value, callable(cfg.lr.value(1)) or trail.state.memory
        remembers = cfg.optimizer != "sgd" or (rule and rule.remembers)
        # Else the step is no function of the point alone.
        if len(points) and not changes and not remembers:
            # Of a double eigenvalue float32 finds only the first three digits.
            with jax.enable_x64(True):
                _, exactly = _two_numbers(dataclasses.replace(cfg, precision="float64"), steps)
                step = functools.partial(exactly, trail.state)
                after = np.asarray(jax.vmap(step)(jnp.asarray(points)))
                jacobian = np.asarray(jax.jacobian(step)(jnp.zeros(2)))
                factors = game.linear_factor(points, after, jacobian)
                if factors:
                    found |= dict(zip(("factor", "factor/known"), factors, strict=True))
        return {name: float(value) for name, value in found.items()}

    draw = lambda key, n: jnp.zeros((n, 1), dtype)  # noqa: E731
    source = _fresh(cfg, draw, "the number 0")
    frame = canvas.framed(
        ("θ of the generator", -2.0, 2.0),
        ("ψ of the discriminator", -2.0, 2.0),
        now=canvas.BLACK,
        the_way_here=canvas.GREEN,
        where_a_step_is_long=canvas.BLUE,
        direction_of_a_step=0.4 * canvas.BLACK,
    )
    algorithm = Algorithm(init, step, picture=picture, **_drawing(inner))
    title = (
        f"{cfg.problem}: all data are the number 0; G = theta and D(x) = psi x, a parameter each"
    )
    return cli.Experiment(algorithm, source, evaluate, title, frame=frame)


def _drawing(inner: Algorithm) -> dict[str, Any]:
    """What draws of a game is drawn by its trail."""

    def sample(trail: Trail, key: PRNG, n: int, *, z: Any = None) -> jax.Array:
        assert inner.sample is not None
        return inner.sample(trail.state, key, n, z=z)

    def inside(network: Network) -> Network:
        return network._replace(variables=lambda trail: network.variables(trail.state))

    networks = {name: inside(network) for name, network in inner.networks.items()}
    return {"sample": sample, "latents": inner.latents, "networks": networks}


def wasserstein_game(
    spectrum: np.ndarray, rank: int, dtype: Any = jnp.float32
) -> tuple[game.Losses, Callable]:
    """``(losses, init)`` of half the squared W2 distance of N(0, G G') to N(0, K), D having its best answer.

    The quadratic discriminator's game is ``min_G max_A (tr K + tr GG' - tr AK - tr A^-1 GG') / 2``, its inner maximum
    ``(tr K + tr GG') / 2 - |K^(1/2) G|_*``, the sum of singular values. Where G has less than full rank D's best A is
    singular and the outer minimum is no equilibrium of the two, so D does not descend beside G; its parameters are ().
    """
    root = jnp.asarray(np.sqrt(spectrum), dtype).reshape(-1, 1)

    def losses(params: Any) -> tuple[tuple[jax.Array, jax.Array], tuple]:
        g, _ = params
        nuclear = jnp.sum(jnp.linalg.svd(root * g, compute_uv=False))
        value = 0.5 * (float(spectrum.sum()) + jnp.vdot(g, g)) - nuclear
        return (value, jax.lax.stop_gradient(-value)), ()

    def init(key: PRNG) -> tuple[jax.Array, tuple]:
        return 0.5 * jax.random.normal(key, (len(spectrum), rank), dtype), ()

    return losses, init


def lqg(cfg: Config, steps: int) -> cli.Experiment:
    """A linear generator of rank 2 for a Gaussian of six dimensions; the expectations are exact, and so is D."""
    dtype = jnp.dtype(cfg.precision)
    losses, init = wasserstein_game(SPECTRUM, RANK, dtype)
    inner = game.make(losses, init, (_tx(cfg, steps), _tx(cfg, steps)), game.RULES["simultaneous"])
    root = jnp.asarray(np.sqrt(SPECTRUM), dtype).reshape(1, -1)

    def latents(key: PRNG, n: int) -> jax.Array:
        return jax.random.normal(key, (n, RANK), dtype)

    generator = Network(lambda state: state.players["g"].params, lambda g, z: z @ g.T)

    def sample(state: Any, key: PRNG, n: int, *, z: Any = None) -> jax.Array:
        return generator.apply(generator.variables(state), latents(key, n) if z is None else z)

    def picture(state: Any, key: PRNG, n: int) -> jax.Array:
        """The two directions of greatest variance."""
        del n
        k1, k2 = jax.random.split(key)
        real = root * jax.random.normal(k1, (1000, len(SPECTRUM)), dtype)
        fake = sample(state, k2, 1000)
        flat = lambda x: jnp.zeros(len(x))  # noqa: E731
        return canvas.scatter(real[:, :2], fake[:, :2], flat, 6.0)

    def evaluate(state: Any) -> dict[str, float]:
        g = state.players["g"].params
        model = np.asarray(g @ g.T, np.float64)
        zero = np.zeros(len(SPECTRUM))
        distance = metrics.frechet_distance_gaussians(
            metrics.Gaussian(zero, np.diag(SPECTRUM), 2), metrics.Gaussian(zero, model, 2)
        )
        values = np.sort(np.linalg.eigvalsh(model))[::-1]
        found = {"w2": distance, "w2/known": SPECTRUM[RANK:].sum()}
        for i in range(RANK):
            found |= {f"eigenvalue{i}": values[i], f"eigenvalue{i}/known": SPECTRUM[i]}
        return {name: float(value) for name, value in found.items()}

    definition = f"N(0, diag{SPECTRUM.tolist()}), of which no samples are drawn"
    source = _fresh(cfg, lambda key, n: jnp.zeros((n, 1), dtype), definition)
    axes = [(f"direction {i + 1}", -6.0, 6.0) for i in range(2)]
    frame = canvas.framed(*axes, data=canvas.BLACK, generated=canvas.GREEN)
    drawing = {"sample": sample, "latents": latents, "networks": {"generator": generator}}
    algorithm = inner._replace(picture=picture, **drawing)
    title = f"{cfg.problem}: {definition}"
    return cli.Experiment(algorithm, source, evaluate, title, frame=frame)


# Of two numbers, what is shown and measured are the players themselves.
_PLANE = Problem(dirac, ("width", "ema"), kernels=False)

PROBLEMS = {
    "ring8": Problem(functools.partial(mixture, toys.ring())),
    "grid25": Problem(functools.partial(mixture, toys.grid())),
    "row4": Problem(row),
    "ring2": Problem(ring2),
    "gaussian3d": Problem(gaussian3d, ("width",), kernels=False),
    "gaussian1d": Problem(gaussian1d, ("width",), kernels=False),
    "dirac": _PLANE,
    "bilinear": _PLANE,
    "lqg": Problem(lqg, ("rule", "loss", "penalty", "gamma", "ema", "width"), solved=True),
}
"""By name."""


def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment:
    """The problem that ``cfg`` names."""
    if axis_name:
        raise UserError("must be jit for toy_gan", argument="parallel", value="pmap")
    problem = PROBLEMS[cfg.problem]
    if cfg.loss.value.normalization and cfg.rule.value:
        reason = f"`rule={cfg.rule}` differentiates the gradient; must not be normalized"
        raise UserError(reason, argument="loss", value=cfg.loss, beside=["rule"])
    for term in cfg.penalty.value.terms:
        if term.penalty.mapping:
            reason = f"{term}: no generator of this experiment has a mapping; must be without"
            raise UserError(reason, argument="penalty", value=cfg.penalty)
        if term.penalty.matrices and not problem.kernels:
            raise UserError(
                f"{term} has no part in `problem={cfg.problem}`, whose {term.player.upper()} has no kernels;"
                " must be without",
                argument="penalty",
                value=cfg.penalty,
                beside=["problem"],
            )
    if cfg.d_steps > 1 and (cfg.rule.value or problem.solved):
        why = "problem" if problem.solved else "rule"
        raise UserError(
            f"must be 1 with `{why}={getattr(cfg, why)}`",
            argument="d_steps",
            value=cfg.d_steps,
            beside=[why],
        )
    steps = cli.steps_of(cfg, toys.LENGTH / (cfg.batch_size * cfg.d_steps))
    return problem.make(cfg, steps)


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
