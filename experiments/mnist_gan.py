"""A GAN that draws handwritten digits, from the introductory article's perceptrons to convolutions.

Run:     python -m experiments.mnist_gan
             a convolutional GAN: digits after about two minutes on 2 CPU cores
         python -m experiments.mnist_gan --preset=article
             the article's networks and settings, for 1000 epochs
         python -m experiments.mnist_gan --preset=article --gradients=manual
             the same on hand-written backpropagation
Papers:  Goodfellow et al. 2014, arXiv:1406.2661; Radford et al. 2016, arXiv:1511.06434;
         Mescheder et al. 2018, arXiv:1801.04406; Huang et al. 2025, arXiv:2501.05441.
"""

import dataclasses
import functools

import jax.numpy as jnp

from bpgan import backprop, cli, data, losses, optim, penalties
from bpgan.algorithms import gan
from bpgan.algorithms.latents import Latents
from bpgan.evaluation.monitor import monitor
from bpgan.nets import dcgan, linen_net, mlp, storage_dtype
from bpgan.privacy.canaries import Canaries
from bpgan.types import AdversarialLoss, Net, UserError


def _width(text: str) -> int | None:
    """Channels of ``dcgan:WIDTH``; None for ``mlp``."""
    if text == "mlp":
        return None
    kind, _, width = text.partition(":")
    if kind != "dcgan" or not width.isdecimal() or int(width) < 2:
        raise ValueError("must be mlp or dcgan:WIDTH (2 or more)")
    return int(width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    dataset: cli.Parsed[data.Name] = cli.field(
        "mnist10k", data.forms, parse=data.parse, locates_data=True
    )
    net: cli.Parsed[int | None] = cli.field(
        "dcgan:32", "both players: mlp, or dcgan:WIDTH (channels)", parse=_width
    )
    latents: cli.Parsed[Latents] = cli.field(
        "normal:64",
        "distribution of z and its dimension: normal:DIM or uniform:DIM",
        parse=Latents.parse,
    )
    loss: cli.Parsed[AdversarialLoss] = cli.field(
        "relativistic",
        "adversarial loss",
        choices=losses.of_logits,
        parse=losses.parse_of_logits,
    )
    penalty: cli.Parsed[penalties.Terms] = cli.field(
        "r1+r2",
        "penalties on D: none, or a sum such as r1+r2 or r1=0.3/4",
        choices=functools.partial(penalties.forms, "d"),
        parse=functools.partial(penalties.parse, players="d"),
    )
    gamma: float = cli.field(0.1, "weight of penalties without one", low=0, sweepable=True)
    penalty_every: int = cli.field(
        4, "apply penalties without an interval every k-th update of D, times k", low=1
    )
    g_lr: float = cli.field(1e-3, "Adam step size of G", low=0, sweepable=True)
    d_lr: float = cli.field(1e-3, "Adam step size of D", low=0, sweepable=True)
    lr_scale: float = cli.field(1.0, "factor of both step sizes", low=0, sweepable=True)
    b1: float = cli.field(
        0.5, "Adam's decay of the mean gradient", low=0, high=0.99999, sweepable=True
    )
    b2: float = cli.field(
        0.99, "Adam's decay of the squared gradient", low=0, high=0.99999, sweepable=True
    )
    d_steps: int = cli.field(1, "updates of D per update of G", low=1)
    ema: float = cli.field(
        0.995,
        "EMA decay of the generator that draws the samples; 0 turns averaging off",
        low=0,
        high=1,
        sweepable=True,
    )
    truncation: float = cli.field(
        0.0,
        "of samples: bound on each number of normal latents; 0: none",
        low=0,
        restart_safe=True,
    )
    gradients: str = cli.field(
        "autodiff",
        "autodiff, or hand-written backpropagation (manual; for --net=mlp only)",
        choices=("autodiff", "manual"),
    )
    canaries: cli.Parsed[Canaries] = cli.field("", Canaries.forms, parse=Canaries.parse)
    precision: str = cli.NETWORK_PRECISION
    epochs: float = cli.field(12.0)
    batch_size: int = cli.field(32, "examples per update of D, over all devices")
    log_every: str = cli.field("0.5ep")
    sample_every: str = cli.field("1ep")
    checkpoint_every: str = cli.field("2ep")

    def idle(self) -> dict[str, str]:
        terms = self.penalty.value.terms
        found = {} if any(term.weight is None for term in terms) else {"gamma": "penalty"}
        return found | (
            {} if any(term.every is None for term in terms) else {"penalty_every": "penalty"}
        )


PRESETS = {
    "article": dict(
        net="mlp",
        latents="uniform:100",
        loss="nonsaturating",
        penalty="none",
        g_lr=2e-4,
        d_lr=2e-4,
        b1=0.5,
        b2=0.999,
        ema=0.0,
        batch_size=128,
        epochs=1000.0,
        log_every="10ep",
        sample_every="50ep",
        checkpoint_every="100ep",
    ),
    "smoke": dict(
        net="dcgan:4",
        latents="normal:8",
        batch_size=16,
        steps=8,
        log_every="2",
        sample_every="4",
        checkpoint_every="4",
    ),
}


def _nets(cfg: Config, shape: tuple[int, int, int], axis_name: str | None) -> tuple[Net, Net]:
    dtype = jnp.dtype(cfg.precision)
    width = cfg.net.value
    if width is not None:
        if cfg.gradients == "manual":
            raise UserError(
                f"`net` is {cfg.net}, must be mlp",
                argument="gradients",
                value="manual",
                beside=["net"],
            )
        if shape[0] % 4 or shape[1] % 4:
            raise UserError(
                f"images of `dataset={cfg.dataset}` are {shape[0]}x{shape[1]};"
                " height and width must be multiples of 4 (`net=mlp` takes any size)",
                argument="net",
                value=cfg.net,
                beside=["dataset"],
            )
        return (
            linen_net(
                dcgan.Generator(
                    shape=shape,
                    widths=(4 * width, 2 * width, width),
                    upsample="resize",
                    axis_name=axis_name,
                    dtype=dtype,
                )
            ),
            linen_net(
                dcgan.Discriminator(
                    widths=(width, 2 * width), full_resolution=width // 2, hidden=128, dtype=dtype
                )
            ),
        )
    g = linen_net(mlp.Generator(shape=shape, dtype=dtype))
    d = linen_net(mlp.Discriminator(dtype=dtype))
    if cfg.gradients == "manual":
        g = Net(g.init, backprop.by_hand(backprop.mlp_generator(shape)))
        d = Net(d.init, backprop.by_hand(backprop.mlp_discriminator()))
    return g, d


def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment:
    """The GAN that ``cfg`` describes, and its data."""
    if cfg.gradients == "manual" and cfg.precision == "bfloat16":
        reason = "must be float32 or float64 with `gradients=manual`"
        raise UserError(reason, argument="precision", value=cfg.precision, beside=["gradients"])
    dtype = storage_dtype(cfg.precision)
    images, held = data.load_for_training(cfg.dataset.value, bool(cfg.eval_every.value))
    images = cfg.canaries.value.plant(images)
    g_net, d_net = _nets(cfg, images.shape, axis_name)
    source = data.source(
        images,
        seed=cfg.seed,
        batch_size=cfg.batch_size * cfg.d_steps,
        dtype=dtype,
        feed=cfg.feed.value,
    )
    steps = cli.steps_of(cfg, source.steps_per_epoch)
    terms, by_hand = cfg.penalty.value, cfg.gradients == "manual"
    latents, truncated = (
        cfg.latents.value.draw(dtype),
        cfg.latents.value.truncated(dtype, cfg.truncation),
    )
    g_tx, d_tx = (optim.adam(cfg.lr_scale * lr, cfg.b1, cfg.b2) for lr in (cfg.g_lr, cfg.d_lr))
    algorithm = gan.make(
        gan.Networks(g_net, d_net, latents, images.shape, dtype, sample_latents=truncated),
        backprop.losses_by_hand(cfg.loss) if by_hand else cfg.loss.value,
        gan.Optimizers(g_tx, terms.bounded(d_tx)),
        penalties=terms.over(steps, weight=cfg.gamma, every=cfg.penalty_every),
        d_steps=cfg.d_steps,
        ema_decay=cfg.ema,
        axis_name=axis_name,
    )
    experiment = cli.Experiment(algorithm, source, title=images.summary())
    return monitor(experiment, cfg.dataset, held, seed=cfg.seed)


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
