"""Flows between noise and data: flow matching, adversarial flow in several steps and continuous.

Run:     python -m experiments.flow_gan --preset=gauss1d
             continuous adversarial flow to a Gaussian, whose velocity and map are known
         python -m experiments.flow_gan --preset=gauss1d --method=match --d_steps=1
         python -m experiments.flow_gan --preset=match28 --dataset=idx:/usr/share/datasets/fashion-mnist --name=match28
             in runs/flow_gan/match28, which the last two commands read
         python -m experiments.flow_gan --preset=adversarial28 --dataset=idx:/usr/share/datasets/fashion-mnist
         python -m experiments.flow_gan --preset=continuous28 --dataset=idx:/usr/share/datasets/fashion-mnist \\
                --init_from=runs/flow_gan/match28 --name=continuous28
             goes on from a trained velocity, for which the method was made
         python -m experiments.evaluate --run=runs/flow_gan/match28 --flags=sampler=euler:4
             with four evaluations of the network for a sample; --flags of sample does the same
Presets: gauss1d        known: the velocity, the map 1 + z / 2, and losses of 2 and 1. Measured, one seed: the map is
                        off by 0.007, the losses are 2.000 and 1.000; 50 seconds of one core.
         match28        FASHION. Flow matching by a small U-Net, 32 evaluations for a sample; for a CPU. Measured: FD
                        132 after two epochs, one seed; with 4 evaluations 216, with one 564 (docs/many_steps.md).
         adversarial28  FASHION. Adversarial flow in any number of steps, 4 for a sample; for a CPU. Measured: FD
                        168 after two epochs, one seed; with one evaluation 607.
         continuous28   FASHION. Continuous adversarial flow, eight updates of D for one of G; for a CPU; not measured.
Papers:  Lipman et al. 2023, arXiv:2210.02747 (flow matching); Lin et al. 2025, arXiv:2511.22475 (adversarial flow), and
         their code, github.com/ByteDance-Seed/Adversarial-Flow-Models (continuous adversarial flow).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpgan import cli, data, losses, optim, penalties
from bpgan.algorithms import flow, gan
from bpgan.data import toys
from bpgan.evaluation.monitor import monitor
from bpgan.losses import LOSSES
from bpgan.nets import architecture, storage_dtype
from bpgan.report import canvas
from bpgan.types import PRNG, AdversarialLoss, Algorithm, Net, Source, UserError
from experiments import image_gan

MU, STD = 1.0, 0.5
"""The Gaussian of ``gauss1d``."""
SAMPLES = 20_000
"""For its measures."""
_BOX = canvas.Box(x=(-3.0, 3.0), y=(MU - 3.5 * STD, MU + 3.5 * STD))
_ANY, _VELOCITY_STEPS = 4, 32
_TIME_SCALE = 1000.0

PENALTIES = {
    "match": "none",
    "adversarial": "r1=0.3/4+r2=0.3/4+centering=0.01+g.transport=cosine:0.2:0.005",
    "continuous": "centering=0.001",
}
"""Of each method, where none are given."""
_OF_GAME = ("penalty", "d_steps")
_IDLE = {
    "match": ("loss", "jumps", "warmup", *_OF_GAME),
    "adversarial": ("times", "warmup"),
    "continuous": ("loss", "jumps"),
}


def _times(text: str) -> flow.Draw:
    kind, *numbers = text.split(":")
    try:
        mean, std = map(float, numbers) if kind == "normal" else (0.0, 1.0)
    except ValueError:
        kind = ""
    if kind == "uniform" and not numbers:
        return flow.uniform_times
    if kind != "normal" or not (abs(mean) < 100 and 0 < std < 100):
        raise ValueError(
            "must be uniform, or normal:MEAN:STD of the logit of t, both below 100, such as normal:0:1"
        )
    return flow.logistic_normal_times(mean, std)


def _sampler(text: str) -> flow.Sampler | None:
    return flow.Sampler.parse(text) if text else None


def _penalties(text: str) -> penalties.Terms | None:
    return penalties.parse(text) if text else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    problem: str = cli.field(
        "images", "what is learned: images, or gauss1d, N(1, 0.5^2)", choices=("images", "gauss1d")
    )
    dataset: cli.Parsed[data.Name] = cli.field(
        "mnist10k", data.forms, parse=data.parse, locates_data=True
    )
    method: str = cli.field("match", "what is trained", choices=flow.METHODS)
    net: cli.Parsed[architecture.Choices] = cli.field(
        "unet:48,patch=2/unet:24",
        "G, or G/D, as in image_gan, of those that take times: unet:CHANNELS, silu:UNITS, vit:WIDTH",
        parse=architecture.parse,
    )
    labels: bool = cli.field(False, "condition on labels: G, and D by a projection")
    loss: cli.Parsed[AdversarialLoss] = cli.field(
        "relativistic", "adversarial loss of `adversarial`", choices=LOSSES, parse=losses.parse
    )
    penalty: cli.Parsed[penalties.Terms | None] = cli.field(
        "",
        "none, or a sum as in image_gan; those of D are multiplied by the length of a step, those of G divided; of"
        " continuous: centering=WEIGHT and g.transport=WEIGHT; empty: those of the method",
        parse=_penalties,
    )
    jumps: cli.Parsed[flow.Jumps] = cli.field(
        "any",
        "steps of adversarial: any, or N of one length; ,paired: D compares points of one path; ,direct: the network"
        " returns where it arrives, not a velocity",
        parse=flow.Jumps.parse,
    )
    times: cli.Parsed[flow.Draw] = cli.field(
        "uniform",
        "distribution of times in training, of match and continuous: uniform, or normal:MEAN:STD of their logits",
        parse=_times,
    )
    lr: cli.Parsed[optim.Pair] = cli.field(
        "cosine:1e-3:5e-5",
        "Adam's step size, or G's/D's: a number or a schedule",
        parse=functools.partial(optim.parse_pair, low=0.0),
    )
    lr_scale: float = cli.field(1.0, "factor of both step sizes", low=0, sweepable=True)
    betas: cli.Parsed[optim.Betas] = cli.field(
        "0.5,0.99", "Adam's two decays: numbers or schedules", parse=optim.parse_betas
    )
    d_steps: int = cli.field(1, "updates of D per update of G", low=1)
    warmup: float = cli.field(
        0.0, "share of the run in which D moves alone, of continuous", low=0, high=0.9
    )
    accumulate: int = cli.field(1, "micro-batches of an update, for memory", low=1)
    ema: cli.Parsed[optim.Lengths] = cli.field(
        "2e4",
        "averages of G, as in image_gan: a half-life in images or power:SIGMA; several with +; ,reload=1ep; 0: none",
        parse=optim.parse_averages,
    )
    sampler: cli.Parsed[flow.Sampler | None] = cli.field(
        "",
        "of samples: euler:N or heun:N, N evaluations of G; empty: euler:32, of adversarial its N steps, or 4 of any",
        parse=_sampler,
        restart_safe=True,
    )
    epochs: float = cli.field(7.0)
    batch_size: int = cli.field(64, "examples per update of D, over all devices")
    precision: str = cli.NETWORK_PRECISION
    log_every: str = cli.field("1ep")
    sample_every: str = cli.field("1ep")
    checkpoint_every: str = cli.field("1ep")

    def idle(self) -> dict[str, str]:
        found = dict.fromkeys(_IDLE[self.method], "method")
        if self.problem != "images":
            found |= dict.fromkeys(("dataset", "labels"), "problem")
        return found

    @property
    def terms(self) -> penalties.Terms:
        """The penalties, those of the method where none are given."""
        given = self.penalty.value
        return penalties.parse(PENALTIES[self.method]) if given is None else given

    @property
    def rows(self) -> int:
        """Of a batch of a step."""
        return self.batch_size * (1 if self.method == "match" else self.d_steps)

    @property
    def drawing(self) -> flow.Sampler:
        """How samples are drawn."""
        if self.sampler.value:
            return self.sampler.value
        steps = self.jumps.value.count or _ANY
        return flow.Sampler("euler", steps if self.method == "adversarial" else _VELOCITY_STEPS)


_SMALL = dict(log_every="0.25ep", sample_every="1ep", checkpoint_every="1ep")
PRESETS = {
    "gauss1d": dict(
        problem="gauss1d", method="continuous", net="silu:32", lr="cosine:2e-3:0", betas="0,0.95", d_steps=8,
        ema="1.8e4", sampler="heun:100", batch_size=256, steps=1500, log_every="100", sample_every="500",
        checkpoint_every="500",
    ),
    "match28": dict(_SMALL, method="match", betas="0.9,0.99"),
    "adversarial28": dict(_SMALL, method="adversarial", loss="relativistic,normalized"),
    "continuous28": dict(
        _SMALL, method="continuous", d_steps=8, warmup=0.1, betas="0,0.95", lr="cosine:2e-4:1e-5", steps=1200
    ),
    "smoke": dict(
        net="silu:16", batch_size=16, steps=4, log_every="2", sample_every="4", checkpoint_every="4",
        sampler="euler:2",
    ),
}  # fmt: skip


def check(cfg: Config, axis_name: str | None) -> None:
    """Raises UserError for flags that do not go with each other."""

    def refuse(name: str, reason: str, *beside: str) -> None:
        value = "pmap" if name == "parallel" else getattr(cfg, name)
        raise UserError(reason, argument=name, value=value, beside=beside)

    jumps, sampler = cfg.jumps.value, cfg.drawing
    for player in "gd" if cfg.method != "match" else "g":
        choice = getattr(cfg.net.value, player)
        if not choice.network.times:
            reason = f"{choice.name} takes no times; {player.upper()} must be one of "
            refuse("net", reason + ", ".join(_with_times(player)))
    if cfg.method == "adversarial":
        if sampler.method != "euler":
            refuse(
                "sampler",
                "goes by velocities, and G of `method=adversarial` goes in steps; must be euler:N",
                "method",
            )
        if jumps.count and sampler.steps != jumps.count:
            refuse(
                "sampler", f"must be euler:{jumps.count}, as many as `jumps={cfg.jumps}`", "jumps"
            )
    if cfg.method == "continuous":
        if jumps.paired:
            reason = "`method=continuous` needs noise and data that are independent: of pairs that decide each other's"
            refuse(
                "jumps",
                f"{reason} velocity the force on G does not vanish at the target; must be without paired",
                "method",
            )
        if not cfg.net.value.d.smooth:
            reason = "`method=continuous` looks at derivatives of D along the flow, which must be smooth;"
            refuse("net", f"{reason} D must be one of {', '.join(_smooth())}", "method")
        for term in cfg.terms.terms:
            if str(term) not in ("centering", "g.transport") or term.every:
                refuse(
                    "penalty",
                    f"{term}: `method=continuous` has centering and g.transport, in every update",
                    "method",
                )
    cfg.terms.check_precision(cfg.precision)
    if cfg.method != "match" and cfg.terms.clip:
        refuse("penalty", f"{penalties.CLIP}: has no part in a flow")
    for term in cfg.terms.terms if cfg.method == "adversarial" else ():
        if term.penalty.mapping or term.penalty.matrices:
            refuse(
                "penalty",
                f"{term}: must have a value for each example, which the length of a step weighs",
            )
    devices = jax.device_count() if axis_name else 1
    if cfg.batch_size % (cfg.accumulate * devices):
        refuse(
            "batch_size",
            f"must be a multiple of `accumulate={cfg.accumulate}` times {devices} devices",
            "accumulate",
        )


def _with_times(player: str) -> list[str]:
    """The architectures whose network of a player takes times."""
    names = architecture.names
    if player == "g":
        return names(lambda a: a.generator and a.generator.times)
    return names(lambda a: a.discriminator and a.discriminator.times)


def _smooth() -> list[str]:
    """The discriminators whose derivatives are smooth, as they may be written."""
    found = []
    for name, each in architecture.ARCHITECTURES.items():
        if each.discriminator and each.discriminator.smooth:
            option = each.discriminator.smooth_if
            found.append(f"{name},{option}" if option else name)
    return found


def make_networks(
    cfg: Config, shape: Any, classes: int, axis_name: str | None
) -> tuple[Net, Net | None, tuple[int, int]]:
    """G, D if the method has one, and how many times they take.

    Raises:
      UserError: if they do not take such samples.
    """
    count = cfg.jumps.value.count
    times = (1, 1)
    if cfg.method == "adversarial":
        times = {0: (2, 1), 1: (0, 0)}.get(count, (1, 1))
    scale = _TIME_SCALE if cfg.problem == "images" else 1.0
    scales = (scale, 1.0 if cfg.method == "continuous" else scale)
    nets = []
    for choice, own, unit in zip(cfg.net.value, times, scales, strict=True):
        made = choice.make(
            shape, dtype=jnp.dtype(cfg.precision), classes=classes, axis_name=axis_name,
            times=own, time_scale=unit,
        )  # fmt: skip
        inputs = [jnp.zeros((1, *shape)), *(jnp.zeros(1) for _ in range(own))]
        labels = [jnp.zeros(1, jnp.int32)] if classes else []
        if len(shape) == 1 and choice.name != "silu":
            reason = f"`problem={cfg.problem}` has points, which {choice.name} does not take; must be silu:UNITS"
            raise UserError(reason, argument="net", value=cfg.net, beside=["problem"])
        try:
            jax.eval_shape(made.init, jax.random.key(0), *inputs, *labels)
        except ValueError as error:
            size = "x".join(map(str, shape))
            raise UserError(
                f"{error} (samples are {size})", argument="net", value=cfg.net
            ) from None
        nets.append(made)
        if cfg.method == "match":
            return made, None, times
    return nets[0], nets[1], times


def algorithm_of(
    cfg: Config, shape: tuple[int, ...], classes: int, source: Source, axis_name: str | None
) -> Algorithm:
    """The game that ``cfg`` describes, over a run on these batches."""
    per_epoch = source.steps_per_epoch
    steps = cli.steps_of(cfg, per_epoch)
    g, d, (g_times, d_times) = make_networks(cfg, shape, classes, axis_name)
    dtype, terms = storage_dtype(cfg.precision), cfg.terms
    alone = round(cfg.warmup * steps) if cfg.method == "continuous" else 0

    def adam(lr: optim.OverRun, updates: int) -> Any:
        return cfg.betas.value.adam(optim.scaled(lr, cfg.lr_scale), updates)

    txs = gan.Optimizers(
        adam(cfg.lr.value.g, max(1, steps - alone)), adam(cfg.lr.value.d, steps * cfg.d_steps)
    )
    common: dict[str, Any] = dict(
        sampler=cfg.drawing,
        accumulate=cfg.accumulate,
        ema_decay=cfg.ema.value.over(steps, cfg.batch_size, per_epoch),
        axis_name=axis_name,
    )
    if cfg.method == "adversarial":
        assert d is not None
        jumping = flow.Jumping(g, d, shape, cfg.jumps.value, g_times, d_times, classes, dtype)
        return flow.adversarial(
            jumping, cfg.loss.value, txs, penalties=terms.over(steps), d_steps=cfg.d_steps, **common
        )
    velocity = flow.Velocity(g, shape, d, classes, cfg.times.value, dtype)
    if cfg.method == "match":
        return flow.match(velocity, txs.g, **common)
    weights = {str(term): term.weight(steps) if term.weight else 1.0 for term in terms.terms}
    return flow.continuous(
        velocity,
        txs,
        centering=weights.get("centering", 0.0),
        transport=weights.get("g.transport", 0.0),
        d_steps=cfg.d_steps,
        warmup=alone,
        **common,
    )


# The Gaussian


def known_velocity(x: Any, t: Any) -> Any:
    """``E[z - x | x_t]`` of x ~ N(MU, STD^2) and z ~ N(0, 1), independent."""
    variance = (1 - t) ** 2 * STD**2 + t**2
    return -MU + (t - (1 - t) * STD**2) / variance * (x - (1 - t) * MU)


def _measure(cfg: Config, algorithm: Algorithm, source: Source, state: Any) -> dict[str, float]:
    """What was learned beside what is known. The losses are those of the last step's players on a new batch."""
    key = jax.random.key(1)
    assert algorithm.latents is not None and algorithm.sample is not None
    z = algorithm.latents(key, SAMPLES)
    x = np.asarray(algorithm.sample(state, key, SAMPLES, z=z))
    found = {"mean": x.mean(), "mean/known": MU, "std": x.std(), "std/known": STD}
    off = x - (MU + STD * np.asarray(z))
    found |= {"map_error": np.sqrt(np.mean(np.square(off))), "map_error/known": 0.0}
    if velocity := algorithm.networks.get("velocity"):
        key_x, key_t = jax.random.split(jax.random.key(2))
        t = jax.random.uniform(key_t, (SAMPLES,), z.dtype)
        points = flow.on_path(MU + STD * jax.random.normal(key_x, z.shape, z.dtype), z, t)
        u = velocity.apply(velocity.variables(state), points, t)
        error = u - known_velocity(points, t[:, None])
        found |= {"velocity_error": np.sqrt(np.mean(np.square(error))), "velocity_error/known": 0}
    if cfg.method == "continuous":

        def losses_on(i: Any) -> tuple[Any, Any]:
            batch = source.batch_at(source.data, state.step + i)
            logged = algorithm.step(state, batch, jax.random.fold_in(jax.random.key(3), i))[1]
            return logged["d/loss"], logged["g/loss"]

        d_loss, g_loss = jax.lax.map(losses_on, jnp.arange(50))
        found |= {"d_loss": np.mean(d_loss), "d_loss/known": 2.0}
        found |= {"g_loss": np.mean(g_loss), "g_loss/known": 1.0}
    return {name: float(value) for name, value in found.items()}


def _draw_map(algorithm: Algorithm, state: Any, key: PRNG, n: int) -> jax.Array:
    """Where G takes noise (green) beside where the flow does (black): z to the right, samples upwards."""
    del key, n
    assert algorithm.sample is not None
    z = jnp.linspace(*_BOX.x, 4 * canvas.SIDE)
    x = algorithm.sample(state, jax.random.key(0), len(z), z=z[:, None])[:, 0]
    return canvas.maps(z, MU + STD * z, x, _BOX)


def _gaussian(cfg: Config, axis_name: str | None) -> cli.Experiment:
    dtype = storage_dtype(cfg.precision)
    source = toys.fresh(
        lambda key, n: MU + STD * jax.random.normal(key, (n, 1), dtype),
        definition=f"N({MU}, {STD}^2)",
        seed=cfg.seed,
        batch_size=cfg.rows,
    )
    algorithm = algorithm_of(cfg, (1,), 0, source, axis_name)
    axes = ("noise", *_BOX.x), ("sample", *_BOX.y)
    frame = canvas.framed(*axes, known_map=canvas.BLACK, map_of_G=canvas.GREEN)
    return cli.Experiment(
        algorithm._replace(picture=functools.partial(_draw_map, algorithm)),
        source,
        functools.partial(_measure, cfg, algorithm, source),
        f"gauss1d: samples of N({MU}, {STD}^2)",
        frame=frame,
    )


def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment:
    """The flow that ``cfg`` describes, and its data."""
    check(cfg, axis_name)
    if cfg.problem != "images":
        return _gaussian(cfg, axis_name)
    images, held = data.load_for_training(cfg.dataset.value, bool(cfg.eval_every.value))
    classes = images.classes if cfg.labels else 0
    if classes == 1:
        reason = f"`dataset={cfg.dataset}` has no labels; must be false"
        raise UserError(reason, argument="labels", value=cfg.labels, beside=["dataset"])
    source = data.source(
        images,
        seed=cfg.seed,
        batch_size=cfg.rows,
        dtype=storage_dtype(cfg.precision),
        feed=cfg.feed.value,
    )
    algorithm = algorithm_of(cfg, images.shape, classes, source, axis_name)
    if cfg.method == "adversarial" and not axis_name:
        _try_step(cfg, algorithm, source)
    frame = cli.columns_of(classes, images.class_names)
    experiment = cli.Experiment(algorithm, source, title=images.summary(), frame=frame)
    experiment = monitor(experiment, cfg.dataset, held, seed=cfg.seed)
    return image_gan.measuring_transport(experiment)


def _try_step(cfg: Config, algorithm: Algorithm, source: Source) -> None:
    """Raises a UserError for a penalty that looks at what there is not."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = jax.eval_shape(source.batch_at, source.data, 0)
    try:
        jax.eval_shape(algorithm.step, jax.eval_shape(algorithm.init, key), batch, key)
    except (ValueError, TypeError) as error:
        raise UserError(str(error), argument="penalty", value=cfg.penalty) from None


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
