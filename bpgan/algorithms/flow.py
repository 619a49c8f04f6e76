"""Flows between noise and data: flow matching, adversarial flow in several steps, continuous adversarial flow.

An example x and noise z ~ N(0, I) of its shape are the ends of a straight path, ``x_t = (1 - t) x + t z``: data at
t = 0, noise at t = 1. Three games find maps from noise to data along such paths:

==================  =================================================================================================
``match``           G is a velocity and follows ``z - x`` by least squares. One player (Lipman et al. 2023,
                    arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003).
``adversarial``     ``G(x_s, s, t)`` goes from one time to an earlier one, and D compares where it arrives with
                    ``x_t`` (Lin et al. 2025, arXiv:2511.22475, Sec. 3.3). One step from 1 to 0 is a GAN.
``continuous``      the limit of short steps: G is a velocity again, and D, a potential of x and t, is judged by its
                    derivative along the flow (github.com/ByteDance-Seed/Adversarial-Flow-Models, "CAFM").
==================  =================================================================================================

Networks take times as arrays ``f32[b]`` behind their first input and before labels. What the players minimize are
functions of this module; ``bpgan.algorithms.turns`` owns the step.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from bpgan.algorithms import gan, turns
from bpgan.algorithms.turns import Aux, Now, Scalar, State, Term, Turn
from bpgan.optim import at
from bpgan.penalties import Regularizer, Scene, Weighted
from bpgan.types import PRNG, AdversarialLoss, Algorithm, Labels, Net, Network, stream

Samples = Float[Array, "b ..."]
Times = Float[Array, " b"]
Draw = Callable[[PRNG, int], Any]
"""``(key, n) -> [n, ...]``."""

SHORTEST = 1e-3
"""The least length of a step by which a penalty is weighed."""


def _broad(t: Times, x: Samples) -> Array:
    """A number for each example, broadcastable to x and of its type."""
    return t.astype(x.dtype).reshape(t.shape + (1,) * (x.ndim - 1))


def on_path(x: Samples, z: Samples, t: Times) -> Samples:
    """``x_t = (1 - t) x + t z``."""
    t = _broad(t, x)
    return (1 - t) * x + t * z


def uniform_times(key: PRNG, n: int) -> Times:
    """``t ~ U(0, 1)``."""
    return jax.random.uniform(key, (n,))


def logistic_normal_times(mean: float = 0.0, std: float = 1.0) -> Draw:
    """``t = 1 / (1 + exp(-(mean + std e)))``, ``e ~ N(0, 1)``: more of the times that matter.

    Esser et al. 2024, arXiv:2403.03206, Sec. 3.1, with (0, 1).
    """
    return lambda key, n: jax.nn.sigmoid(mean + std * jax.random.normal(key, (n,)))


class Sampler(NamedTuple):
    """How a flow is followed from noise to data, in steps of one length.

    Attributes:
      method: "euler", which goes along the velocity where it is, or "heun", along the mean of that and of the velocity
        where it would arrive: two evaluations for a step, and an error of second order.
      evaluations: of the network; an even number for Heun's.
    """

    method: Literal["euler", "heun"] = "euler"
    evaluations: int = 32

    @property
    def steps(self) -> int:
        """From noise to data."""
        return self.evaluations // (2 if self.method == "heun" else 1)

    @classmethod
    def parse(cls, text: str) -> "Sampler":
        """Reads ``euler:N`` or ``heun:N``, N evaluations. Raises ValueError for anything else."""
        method, _, number = text.partition(":")
        n = int(number) if number.isdecimal() else 0
        if method not in ("euler", "heun") or not 1 <= n <= 10_000 or (method == "heun" and n % 2):
            raise ValueError(
                "must be euler:N, or heun:N with an even N, where N is the number of evaluations, at most 10,000"
            )
        return cls("heun" if method == "heun" else "euler", n)


EULER = Sampler()


def follow(velocity: Callable[[Samples, Times], Samples], z: Samples, sampler: Sampler) -> Samples:
    """Where a flow takes noise: the end at t = 0 of ``dx/dt = velocity(x, t)``, from z at t = 1."""
    n = sampler.steps

    def step(x: Samples, i: Any) -> tuple[Samples, None]:
        t, earlier = (jnp.full(len(x), 1 - k / n, x.dtype) for k in (i, i + 1))
        u = velocity(x, t)
        ahead = x - u / n
        if sampler.method == "heun":
            ahead = x - (u + velocity(ahead, earlier)) / (2 * n)
        return ahead.astype(x.dtype), None

    return lax.scan(step, z, jnp.arange(n))[0]


# Velocities: flow matching and continuous adversarial flow.


class Velocity(NamedTuple):
    """What a game of velocities is made of.

    Attributes:
      g: ``(x[b, ...], t[b], labels[b]) -> u[b, ...]``, a velocity; without labels if there are no ``classes``.
      data_shape: of one example.
      d: ``(x, t, labels) -> D[b]``, a potential; None of flow matching.
      classes: of ``batch["y"]``; 0: unconditional.
      times: ``(key, n) -> t[n]``, of training.
      dtype: of an example.
    """

    g: Net
    data_shape: Sequence[int]
    d: Net | None = None
    classes: int = 0
    times: Draw = uniform_times
    dtype: Any = jnp.float32

    @property
    def latents(self) -> Draw:
        """``(key, n) -> z[n, numbers]``, in one row as those of a GAN."""
        numbers = 1
        for size in self.data_shape:
            numbers *= size
        return gan.normal_latents(numbers, self.dtype)

    def labels(self, now: Now) -> tuple[Labels, ...]:
        """Those of the batch, as arguments of a network."""
        return (now.batch["y"].astype(jnp.int32),) if self.classes else ()


def drawn(flow: Velocity, now: Now) -> dict[str, Array]:
    """Noise of the shape of the examples, and times."""
    x = now.batch["x"]
    z = now.axis.rows(functools.partial(flow.latents, stream(now.key, "z")), x)
    t = now.axis.rows(functools.partial(flow.times, stream(now.key, "t")), x)
    return {"z": z.reshape(x.shape), "t": t}


def _velocity_at(flow: Velocity, now: Now) -> tuple[Samples, Samples, Samples, Any]:
    """Points on the paths, ``z - x``, G's velocity there in the type of x, and G's statistics after that."""
    x, z, t = now.batch["x"], now.batch["z"], now.batch["t"]
    point = on_path(x, z, t)
    g = now.players["g"]
    u, stats = flow.g.apply(g.variables, point, t, *flow.labels(now), train=True)
    return point, z - x, u.astype(x.dtype), stats


def match_objective(flow: Velocity, now: Now) -> tuple[Array, Aux]:
    """``mean_b |G(x_t, t) - (z - x)|^2 / n``, n the numbers of an example.

    Its least is the mean velocity ``E[z - x | x_t]``, whose flow takes the noise to the data.

    Args:
      flow: networks and times.
      now: with a batch of ``x``, ``z`` and ``t``, and ``y`` if there are classes.
    """
    _, v, u, stats = _velocity_at(flow, now)
    value = jnp.mean(jnp.square(u - v))
    return value, Aux(stats, metrics={"loss": value})


def along(
    potential: Callable[[Samples, Times], Array], x: Samples, t: Times
) -> tuple[Array, Callable[[Samples], Array]]:
    """``D(x, t)`` and ``u -> j(u) = dD/dx u + dD/dt``, its derivative along a flow of velocity u.

    The derivative is linear in u but for the constant: of velocities that are drawn, the mean of j is j of the mean.
    Both share one pass through D.
    """
    value, push = jax.linearize(potential, x, t)
    return value, lambda u: push(u, jnp.ones_like(t))


def _potential(flow: Velocity, now: Now) -> Callable[[Samples, Times], Array]:
    """``(x, t) -> D``."""
    assert flow.d is not None
    d, labels = flow.d, flow.labels(now)
    variables = now.players["d"].variables
    return lambda x, t: d.apply(variables, x, t, *labels, train=True)[0]


def velocities(flow: Velocity, now: Now) -> dict[str, Samples]:
    """G's, which do not depend on D."""
    return {"u": _velocity_at(flow, now)[2]}


def d_objective(flow: Velocity, centering: Scalar, now: Now) -> tuple[Array, Aux]:
    """``mean_b (j(z - x) - 1)^2 + (j(u) + 1)^2 + centering D(x_t, t)^2``, u = G's velocity at ``x_t``.

    If u is the mean velocity the best D is constant and the first two terms are 2. Else, where ``z - x`` has variance V
    in one dimension and u is off by e, D's best slope is ``-2 e / (e^2 + 2 V)`` and the force on u is ``2 e / V`` for
    small e: that of flow matching, divided by V.

    Args:
      flow: networks and times.
      centering: weight of the last term, without which D may grow by a constant.
      now: with a batch of ``x``, ``z``, ``t`` and ``u``, and ``y`` if there are classes.
    """
    x, z, t, u = (now.batch[name] for name in ("x", "z", "t", "u"))
    level, j = along(_potential(flow, now), on_path(x, z, t), t)
    real, fake = j(z - x), j(u)
    value = jnp.mean(jnp.square(real - 1) + jnp.square(fake + 1))
    metrics = {"loss": value, "real": jnp.mean(real), "fake": jnp.mean(fake)}
    metrics["penalty"] = at(centering, now.step) * jnp.mean(jnp.square(level))
    return value + metrics["penalty"], Aux(metrics=metrics)


def g_objective(flow: Velocity, transport: Scalar, now: Now) -> tuple[Array, Aux]:
    """``mean_b (j(u) - 1)^2 + transport |u|^2 / n``, u = G's velocity at ``x_t``. At the equilibrium the first is 1.

    Args:
      flow: networks and times.
      transport: weight of the last term.
      now: with a batch of ``x``, ``z`` and ``t``, and ``y`` if there are classes.
    """
    point, _, u, stats = _velocity_at(flow, now)
    _, j = along(_potential(flow, now), point, now.batch["t"])
    value = jnp.mean(jnp.square(j(u) - 1))
    metrics = {"loss": value, "penalty": at(transport, now.step) * jnp.mean(jnp.square(u))}
    return value + metrics["penalty"], Aux(stats, metrics=metrics)


def _start(flow: Velocity, key: PRNG) -> dict[str, Any]:
    """The networks at the start."""
    x, t = jnp.zeros((2, *flow.data_shape), flow.dtype), jnp.zeros(2)
    y = (jnp.zeros(2, jnp.int32),) if flow.classes else ()
    nets = {"g": flow.g} | ({} if flow.d is None else {"d": flow.d})
    return {name: net.init(stream(key, name), x, t, *y) for name, net in nets.items()}


def _end_of(flow: Velocity, sampler: Sampler) -> Net:
    """``(z[b, numbers], labels) -> x``, following G."""

    def apply(variables: Any, z: Any, *y: Any, train: bool) -> tuple[Samples, dict]:
        velocity = lambda x, t: flow.g.apply(variables, x, t, *y, train=train)[0]  # noqa: E731
        return follow(velocity, z.reshape(-1, *flow.data_shape), sampler), {}

    return Net(flow.g.init, apply)


def _drawing(flow: Velocity, algorithm: Algorithm, sampler: Sampler) -> Algorithm:
    """The algorithm, which draws samples by following G's averaged velocity."""
    condition, end = gan.Condition(flow.classes), _end_of(flow, sampler)

    def generator(variables: Any, z: Any, y: Labels | None = None) -> Samples:
        return end.apply(variables, z, *condition.given(z, y), train=False)[0]

    def velocity(variables: Any, x: Samples, t: Times, *y: Any) -> Samples:
        return flow.g.apply(variables, x, t, *y, train=False)[0]

    def sample(state: State, key: PRNG, n: int, y: Any = None, *, z: Any = None) -> Samples:
        z = flow.latents(key, n) if z is None else z
        return generator(gan.averaged(state), z, y)

    networks = {
        "generator": Network(gan.averaged, generator),
        "velocity": Network(gan.averaged, velocity),
    }
    return algorithm._replace(
        sample=sample, classes=flow.classes, latents=flow.latents, networks=networks
    )


def match(
    flow: Velocity,
    tx: optax.GradientTransformation,
    *,
    sampler: Sampler = EULER,
    accumulate: int = 1,
    ema_decay: Scalar | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    """Flow matching on straight paths between independent noise and data.

    Args:
      flow: G, and the times that it is trained at.
      tx: optimizer of G.
      sampler: how samples are drawn.
      accumulate, ema_decay, axis_name: as in ``gan.make``.

    Returns:
      The algorithm of the player ``g`` with metrics ``loss`` and ``grad_norm``.
    """
    draw = functools.partial(drawn, flow)
    turn = Turn("g", [Term(functools.partial(match_objective, flow))], tx, draw=draw)
    algorithm = turns.play(
        functools.partial(_start, flow._replace(d=None)),
        [turn],
        accumulate=accumulate,
        ema={} if ema_decay is None else {"g": ema_decay},
        dtype=flow.dtype,
        axis=turns.Axis(axis_name),
    )
    return _drawing(flow, algorithm, sampler)


def continuous(
    flow: Velocity,
    optimizers: gan.Optimizers,
    *,
    centering: Scalar = 1e-3,
    transport: Scalar = 0.0,
    d_steps: int = 1,
    warmup: int = 0,
    sampler: Sampler = EULER,
    accumulate: int = 1,
    ema_decay: Scalar | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    """Continuous adversarial flow: D tells the velocities of paths from those of G by its derivative along them.

    Noise and data are independent. Of pairs that decide each other's velocity (a flow that is straightened) the force
    on G would not vanish at the target, so there are none to choose. D needs smooth derivatives, and may have no
    statistics, because nobody keeps them.

    Args:
      flow: G, D, and the times that both are trained at.
      optimizers: of both.
      centering, transport: weights, see ``d_objective`` and ``g_objective``.
      d_steps: updates of D per update of G, each on ``b`` of the ``b d_steps`` rows of a batch.
      warmup: steps at the start in which D moves alone. The step counts them, G's optimizer does not.
      sampler: how samples are drawn.
      accumulate, ema_decay, axis_name: as in ``gan.make``.

    Returns:
      The algorithm of the players ``g`` and ``d``, with metrics ``loss`` (2 and 1 at the equilibrium of D and of G),
      ``penalty`` and ``grad_norm`` of each, and ``d/real`` and ``d/fake``, D's mean derivatives along both velocities.

    Raises:
      ValueError: without a D, numbers below their least, and as ``turns.play``.
    """
    if flow.d is None:
        raise ValueError("continuous: needs a D")
    if warmup < 0:
        raise ValueError(f"{warmup=}: must be at least 0")
    draw = functools.partial(drawn, flow)
    d = Turn(
        "d",
        [Term(functools.partial(d_objective, flow, centering))],
        optimizers.d,
        d_steps,
        draw=draw,
        prepare=functools.partial(velocities, flow),
    )
    g = Turn(
        "g",
        [Term(functools.partial(g_objective, flow, transport))],
        optimizers.g,
        draw=draw,
        due=(lambda now: now.step >= warmup) if warmup else None,
    )
    kept = {"g": dict.fromkeys(("loss", "penalty", "grad_norm"), 0.0)}
    algorithm = turns.play(
        functools.partial(_start, flow),
        [d, g],
        accumulate=accumulate,
        ema={} if ema_decay is None else {"g": ema_decay},
        memory=kept if warmup else {},
        dtype=flow.dtype,
        axis=turns.Axis(axis_name),
    )
    return _drawing(flow, algorithm, sampler)


# Steps from one time to another: adversarial flow.


class Jumps(NamedTuple):
    """The steps of a G that goes from time s to an earlier time t.

    Attributes:
      count: N steps of length 1 / N, from s = k / N to t = (k - 1) / N; 0: any steps, s ~ U(0, 1) and t ~ U(0, s).
      paired: whether ``x_s`` and the ``x_t`` that D compares are points of one path. Else they have noise of their own
        and, without labels, which a pair shares, examples of their own.
      direct: whether G's network returns where it arrives; else the mean velocity g there, ``G = x_s - (s - t) g``.
    """

    count: int = 0
    paired: bool = False
    direct: bool = False

    @classmethod
    def parse(cls, text: str) -> "Jumps":
        """Reads ``any`` or a number, and ``paired`` and ``direct`` after commas. Raises ValueError for others."""
        count, *options = text.split(",")
        allowed = {"paired", "direct"}
        n = int(count) if count.isdecimal() else 0
        if (count != "any" and not 1 <= n <= 10_000) or not set(options) <= allowed:
            raise ValueError(
                "must be any, or a number of steps up to 10,000, perhaps with ,paired or ,direct"
            )
        return cls(n, "paired" in options, "direct" in options)

    def draw(self, key: PRNG, n: int) -> Float[Array, "n 2"]:
        """``(s, t)`` of each row."""
        key_s, key_t = jax.random.split(key)
        if self.count:
            k = jax.random.randint(key_s, (n,), 0, self.count)
            return jnp.stack([(k + 1) / self.count, k / self.count], 1)
        s = jax.random.uniform(key_s, (n,))
        return jnp.stack([s, s * jax.random.uniform(key_t, (n,))], 1)


class Jumping(NamedTuple):
    """What a game of steps is made of.

    Attributes:
      g: ``(x_s[b, ...], s[b], t[b], labels[b]) -> [b, ...]``, without what it does not take.
      d: ``(x_t[b, ...], t[b], labels[b]) -> logits[b]``, without what it does not take.
      data_shape: of one example.
      jumps: from where to where.
      g_times, d_times: how many times the networks take: s, or s and t; and none or t.
      classes: of ``batch["y"]``; 0: unconditional.
      dtype: of an example.
    """

    g: Net
    d: Net
    data_shape: Sequence[int]
    jumps: Jumps = Jumps()
    g_times: int = 2
    d_times: int = 1
    classes: int = 0
    dtype: Any = jnp.float32

    @property
    def latents(self) -> Draw:
        """``(key, n) -> z[n, numbers]``."""
        return Velocity(self.g, self.data_shape, dtype=self.dtype).latents

    def jump(
        self, variables: Any, x: Samples, s: Times, t: Times, *y: Any, train: bool
    ) -> tuple[Samples, Any]:
        """``G(x_s, s, t)`` and G's statistics after it."""
        out, stats = self.g.apply(variables, x, *(s, t)[: self.g_times], *y, train=train)
        if self.jumps.direct:
            return out, stats
        return x - _broad(s - t, x) * out.astype(x.dtype), stats


def jump_ends(flow: Jumping, now: Now) -> dict[str, Array]:
    """What an update compares: ``x_t`` in the place of x, ``x_s`` in that of z, and their times."""
    x = now.batch["x"]

    def rows(name: str, draw: Draw) -> Array:
        return now.axis.rows(functools.partial(draw, stream(now.key, name)), x)

    z, times = rows("z", flow.latents).reshape(x.shape), rows("times", flow.jumps.draw)
    s, t = times[:, 0], times[:, 1]
    other, z_of_real = x, z
    if not flow.jumps.paired:
        z_of_real = rows("z_of_real", flow.latents).reshape(x.shape)
        if not flow.classes:
            every = now.axis.gather(x)
            other = now.axis.rows(lambda n: jnp.roll(every, 1, axis=0), x)
    return {"x": on_path(x, z_of_real, t), "z": on_path(other, z, s), "s": s, "t": t}


def weighed(penalty: Regularizer, weights: Times, axis: turns.Axis) -> Regularizer:
    """A penalty times a number for each example.

    Of every k-th example if its values are that many fewer, and of all devices if it looks at all their logits.

    Raises:
      ValueError: from ``apply``, if the penalty has no value for each example.
    """

    def apply(scene: Scene, memory: Any) -> tuple[Array, Any]:
        value, memory = penalty.apply(scene, memory)
        if jnp.ndim(value) != 1:
            raise ValueError("has no value for each example, which the length of a step weighs")
        known = axis.gather(weights) if len(value) > len(weights) else weights
        return _strided(known, len(value)) * value, memory

    return penalty._replace(apply=apply)


def _strided(x: Array, n: int) -> Array:
    """``n`` of the rows of x, every k-th."""
    return x.reshape(n, -1)[:, 0]


def at_times(flow: Jumping, setting: gan.Setting, now: Now) -> gan.Setting:
    """The GAN that an update is: networks at the times of its rows, and penalties weighed by the length of a step.

    With ``w = max(s - t, 0.001)``, the penalties of D are multiplied by w and those of G, the transport above all, by
    1 / w: over many short steps, the way of a sample costs the same as over few long ones.
    """
    s, t = now.batch["s"], now.batch["t"]
    length = jnp.maximum(s - t, SHORTEST)
    weight = {"d": length, "g": 1 / length}

    def g(variables: Any, x: Samples, *y: Any, train: bool) -> tuple[Samples, Any]:
        starts, ends = _strided(s, len(x)), _strided(t, len(x))
        return flow.jump(variables, x.reshape(-1, *flow.data_shape), starts, ends, *y, train=train)

    def d(variables: Any, x: Samples, *y: Any, train: bool) -> tuple[Any, Any]:
        times = (_strided(t, len(x)),)[: flow.d_times]
        return flow.d.apply(variables, x, *times, *y, train=train)

    nets = setting.networks
    penalties = {
        name: each._replace(penalty=weighed(each.penalty, weight[each.player], now.axis))
        for name, each in setting.penalties.items()
    }
    nets = nets._replace(g=nets.g._replace(apply=g), d=nets.d._replace(apply=d))
    return setting._replace(networks=nets, penalties=penalties)


def _terms(flow: Jumping, setting: gan.Setting, player: str) -> list[Term]:
    """The objective of every update, and a term for each interval of penalties."""
    objective = {"d": gan.d_objective, "g": gan.g_objective}[player]

    def each(now: Now) -> tuple[Array, Aux]:
        return objective(at_times(flow, setting, now), now)

    def lazy(every: int, now: Now) -> tuple[Array, Aux]:
        return gan.penalty_objective(at_times(flow, setting, now), player, every, now)

    intervals = sorted({p.every for p in setting.penalties.values() if p.player == player} - {1})
    return [Term(each), *(Term(functools.partial(lazy, every), every) for every in intervals)]


def _as_gan(flow: Jumping, steps: int) -> gan.Networks:
    """The networks as those of a GAN: G from noise, D of examples; samples are drawn in so many steps."""

    def times(x: Samples, *at: float) -> list[Times]:
        return [jnp.full(len(x), each, x.dtype) for each in at]

    def init_g(key: PRNG, z: Any, *y: Any) -> Any:
        x = z.reshape(-1, *flow.data_shape)
        return flow.g.init(key, x, *times(x, 1, 0)[: flow.g_times], *y)

    def init_d(key: PRNG, x: Samples, *y: Any) -> Any:
        return flow.d.init(key, x, *times(x, 0)[: flow.d_times], *y)

    def end(variables: Any, z: Any, *y: Any, train: bool) -> tuple[Samples, dict]:
        x = z.reshape(-1, *flow.data_shape)

        def step(x: Samples, i: Any) -> tuple[Samples, None]:
            s, t = (jnp.full(len(x), 1 - k / steps, x.dtype) for k in (i, i + 1))
            return flow.jump(variables, x, s, t, *y, train=train)[0].astype(x.dtype), None

        return lax.scan(step, x, jnp.arange(steps))[0], {}

    def judge(variables: Any, x: Samples, *y: Any, train: bool) -> tuple[Any, Any]:
        return flow.d.apply(variables, x, *times(x, 0)[: flow.d_times], *y, train=train)

    return gan.Networks(
        Net(init_g, end), Net(init_d, judge), flow.latents, flow.data_shape, flow.dtype
    )


def adversarial(
    flow: Jumping,
    loss: AdversarialLoss,
    optimizers: gan.Optimizers,
    *,
    penalties: Sequence[Weighted] = (),
    d_steps: int = 1,
    sampler: Sampler | None = None,
    accumulate: int = 1,
    ema_decay: Scalar | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    """Adversarial flow: a GAN at each time, whose G starts from the data of a later time.

    In every update rows have times s > t of their own, and are a GAN of D at t and G from s to t (``at_times``). With
    ``Jumps(1, direct=True)`` and networks without times it is ``gan.make`` with noise of the shape of the data.

    Args:
      flow: networks and steps.
      loss: the adversarial pair, normalized or not.
      optimizers: of both.
      penalties: of both players, each with a value for an example: ``r1``, ``r2``, ``centering``, ``transport``, ...
      d_steps: as in ``gan.make``.
      sampler: how samples are drawn, by Euler's method; None: in as many steps as are trained, 1 of any.
      accumulate, ema_decay, axis_name: as in ``gan.make``.

    Returns:
      The algorithm, with metrics and networks of ``gan.make``; its discriminator judges examples, t = 0.

    Raises:
      ValueError: a sampler that does not take the steps that are trained, or steps of any length by a G that does not
        take both times; and as ``gan.make``.
    """
    if flow.jumps.count != 1 and not flow.g_times:
        raise ValueError(f"g_times={flow.g_times}: must be at least 1, as there are several steps")
    if not flow.jumps.count and flow.g_times != 2:
        raise ValueError(f"g_times={flow.g_times}: must be 2 for steps of any length")
    sampler = sampler or Sampler("euler", flow.jumps.count or 1)
    if sampler.method != "euler" or (flow.jumps.count and sampler.steps != flow.jumps.count):
        allowed = f"euler:{flow.jumps.count or 'N'}"
        raise ValueError(
            f"sampler={sampler.method}:{sampler.evaluations}: must be {allowed}, the steps of G"
        )
    networks, condition = _as_gan(flow, sampler.steps), gan.Condition(flow.classes)
    setting = gan.Setting(networks, loss, condition, penalties=gan.named(penalties))

    def fakes(now: Now) -> dict[str, Samples]:
        return gan.fakes(at_times(flow, setting, now), now)

    draw = functools.partial(jump_ends, flow)
    d = Turn("d", _terms(flow, setting, "d"), optimizers.d, d_steps, draw=draw, prepare=fakes)
    g = Turn(
        "g",
        _terms(flow, setting, "g"),
        optimizers.g,
        draw=draw,
        key=lambda key, player, i: stream(key, player),
    )
    return gan.play(
        setting, [d, g], accumulate=accumulate, ema_decay=ema_decay, axis_name=axis_name
    )


METHODS: Mapping[str, Callable[..., Algorithm]] = {
    "match": match,
    "adversarial": adversarial,
    "continuous": continuous,
}
"""By name."""
