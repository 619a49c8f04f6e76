"""A GAN that draws what a caption says: captions rendered over labeled images, or your own.

Run:     python -m experiments.text_gan --preset=smoke
             a few steps, to see that it works
         python -m experiments.text_gan --preset=digits
             colored digits of two sizes in five places, with captions such as "a small red seven, top left"
         python -m experiments.text_gan --preset=digits --dataset=fashion_mnist
         python -m experiments.text_gan --captions=pictures/dataset.json --canvas=64
             your own: {"captions": [["cat.png", "a black cat on a chair"], ...]}, or a CSV with the columns file and
             caption, beside the images
         python -m experiments.sample --run=runs/text_gan/digits --prompt="a small red seven, top left"
         python -m experiments.evaluate_text --run=runs/text_gan/digits
G and D each have a transformer of their own that reads the caption. G takes its output with z, D by a projection. D is
matching-aware: a real image with the caption of another one is as wrong as a fake. A tenth of the combinations of
class, color, place and size is never shown in training; the evaluation asks for them separately.
Papers:  Reed et al. 2016, arXiv:1605.05396 (matching-aware D); Miyato & Koyama 2018, arXiv:1802.05637 (projection);
         Vaswani et al. 2017, arXiv:1706.03762 (transformer); Xu et al. 2018, arXiv:1711.10485 (R-precision).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from bpgan import cli, data, losses, optim, penalties
from bpgan.algorithms import gan, text
from bpgan.algorithms.latents import Latents
from bpgan.augment import Planned
from bpgan.augment import parse as parse_augment
from bpgan.data import captions
from bpgan.data.captions import Captioned, Rendering
from bpgan.losses import LOSSES
from bpgan.nets import architecture, linen_net, storage_dtype
from bpgan.nets import text as text_nets
from bpgan.types import AdversarialLoss, Net, UserError

_SCALAR = "a number or a schedule such as cosine:2e-4:5e-5"
_HEAD = "acgan"  # a dense layer of D's features, beside its logit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    dataset: cli.Parsed[data.Name] = cli.field(
        "mnist10k", data.forms, parse=data.parse, locates_data=True
    )
    captions: str = cli.field(
        "",
        "a dataset.json or CSV of your own captions, its images beside it; empty: rendered over --dataset",
        locates_data=True,
    )
    canvas: int = cli.field(32, "height and width of the images", low=8)
    copies: int = cli.field(1, "rendered images of each image of the dataset", low=1)
    caption_length: int = cli.field(16, "words of the longest caption", low=1, high=256)
    net: cli.Parsed[architecture.Choices] = cli.field(
        "lite:24,modulated/lite:24",
        "G, or G/D, each with a width :N and options after commas",
        choices=architecture.forms,
        parse=architecture.parse,
    )
    latents: cli.Parsed[Latents] = cli.field(
        "normal:64",
        "distribution of z and its dimension: normal:DIM or uniform:DIM",
        parse=Latents.parse,
    )
    embedding: int = cli.field(64, "dimension of words and of captions, a multiple of 4", low=4)
    depth: int = cli.field(2, "blocks of the transformer", low=0)
    loss: cli.Parsed[AdversarialLoss] = cli.field(
        "nonsaturating", "adversarial loss", choices=LOSSES, parse=losses.parse
    )
    penalty: cli.Parsed[penalties.Terms] = cli.field(
        "r1=0.3/8",
        "none, or a sum of NAME=WEIGHT/EVERY; for G g.NAME; clip=BOUND clips D's weights",
        choices=penalties.forms,
        parse=penalties.parse,
    )
    lr: cli.Parsed[optim.Pair] = cli.field(
        "cosine:1e-3:5e-5",
        f"Adam's step size, or G's/D's: {_SCALAR}",
        parse=functools.partial(optim.parse_pair, low=0.0),
    )
    betas: cli.Parsed[optim.Betas] = cli.field(
        "0.5,0.99", f"Adam's two decays: {_SCALAR}; and its epsilon", parse=optim.parse_betas
    )
    d_steps: int = cli.field(1, "updates of D per update of G", low=1)
    accumulate: int = cli.field(1, "micro-batches of an update, for memory", low=1)
    augment: cli.Parsed[Planned | None] = cli.field(
        "none",
        "of what D sees: none or POLICY@P; P a number, a schedule or ada:TARGET",
        parse=parse_augment,
    )
    ema: cli.Parsed[optim.OverRun] = cli.field(
        "2e4",
        "half-life in images of the average of G that draws, a number at most 5 % of the images seen so far,"
        " a schedule as it is; 0: none",
        parse=functools.partial(optim.parse, low=0.0),
    )
    epochs: float = cli.field(40.0)
    batch_size: int = cli.field(64, "examples per update of D, over all devices")
    precision: str = cli.NETWORK_PRECISION
    log_every: str = cli.field("1ep")
    sample_every: str = cli.field("2ep")
    checkpoint_every: str = cli.field("5ep")

    def idle(self) -> dict[str, str]:
        return dict.fromkeys(("dataset", "copies"), "captions") if self.captions else {}


PRESETS = {
    "digits": dict(
        net="lite:16,modulated/lite:16",
        batch_size=32,
        copies=4,
        steps=8000,
        log_every="200",
        sample_every="1000",
        checkpoint_every="1000",
    ),
    "smoke": dict(
        net="lite:4",
        latents="normal:8",
        embedding=8,
        depth=1,
        batch_size=16,
        steps=8,
        log_every="2",
        sample_every="4",
        checkpoint_every="4",
    ),
}


def load(cfg: Config, split: str = "train", *, which: str = "", seed: int = 0) -> Captioned:
    """The captioned images of a run; of the user's own a part, which has no ``held_out``.

    Args:
      cfg: of the run.
      split, which: as of ``captions.load``.
      seed: of what rendered images show; runs have 0.
    """
    if not cfg.captions:
        how = Rendering(cfg.canvas, cfg.copies, cfg.caption_length, seed)
        return captions.load(cfg.dataset.value, split, how, which=which)
    return captions.load_own(cfg.captions, cfg.canvas, cfg.caption_length, split)


def _check(cfg: Config) -> None:
    """Raises a UserError for flags that do not go with each other."""
    choices, loss = cfg.net.value, cfg.loss.value
    if cfg.batch_size % cfg.accumulate:
        reason = f"must divide `batch_size={cfg.batch_size}`"
        raise UserError(reason, argument="accumulate", value=cfg.accumulate, beside=["batch_size"])
    if cfg.embedding % 4:
        raise UserError("must be a multiple of 4", argument="embedding", value=cfg.embedding)
    if cfg.feed.value.kind == "stream":
        reason = "images with captions are kept in memory; must be auto or memory"
        raise UserError(reason, argument="feed", value=cfg.feed)
    if loss.memory is not None:
        allowed = ", ".join(name for name, each in LOSSES.items() if each.memory is None)
        raise UserError(f"must be one of {allowed}", argument="loss", value=cfg.loss)
    if _HEAD not in choices.d.network.conditions:
        reason = f"{choices.d.name} as D has no head for a projection of captions"
        raise UserError(reason, argument="net", value=cfg.net)
    if cfg.augment.value and cfg.augment.value.target is not None and not loss.balances_at_zero:
        reason = f"ada goes by the sign of D's logits, which means nothing with `loss={cfg.loss}`"
        raise UserError(reason, argument="augment", value=cfg.augment, beside=["loss"])
    cfg.penalty.value.check_precision(cfg.precision)
    for term in cfg.penalty.value.terms:
        net = choices.g if term.player == "g" else choices.d
        if term.penalty.mapping or (term.penalty.each_example and net.mixes_examples):
            reason = f"does not go with `net={net.name}` as {term.player.upper()}"
            raise UserError(reason, argument="penalty", value=str(term), beside=["net"])


def _networks(cfg: Config, images: data.Dataset, axis_name: str | None) -> gan.Networks:
    """Both players. Raises a UserError if they do not take such images."""
    dtype, stored = jnp.dtype(cfg.precision), storage_dtype(cfg.precision)
    size = cfg.embedding
    module = text_nets.Encoder(len(images.words), size, size, cfg.depth, dtype=dtype)
    encoder, shape = linen_net(module), images.shape
    g = cfg.net.value.g.make(shape, dtype=dtype, axis_name=axis_name)
    options: dict[str, Any] = {"classes": size, "condition": _HEAD, "axis_name": axis_name}
    d = cfg.net.value.d.make(shape, dtype=dtype, **options)
    g, d = text_nets.generator(g, encoder), text_nets.discriminator(d, encoder)
    latents = cfg.latents.value
    _try(cfg, images, g, (1, latents.dim))
    _try(cfg, images, d, (1, *shape))
    return gan.Networks(g, d, latents.draw(stored), shape, stored)


def _try(cfg: Config, images: data.Dataset, net: Net, example: tuple[int, ...]) -> None:
    tokens = jnp.zeros((1, cfg.caption_length), jnp.int32)
    try:
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(example), tokens)
    except ValueError as error:
        where = f"images are {images.shape[0]}x{images.shape[1]}"
        reason = f"{error} ({where})"
        raise UserError(reason, argument="net", value=cfg.net, beside=["canvas"]) from None


def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment:
    """The GAN of captions that ``cfg`` describes, and its data."""
    _check(cfg)
    captioned = load(cfg)
    images = captioned.images
    networks = _networks(cfg, images, axis_name)
    source = captions.source(
        captioned, seed=cfg.seed, batch_size=cfg.batch_size * cfg.d_steps, dtype=networks.dtype
    )
    steps = cli.steps_of(cfg, source.steps_per_epoch)
    half_life = cfg.ema.value(steps)
    ramp = None if callable(half_life) else 0.05  # a schedule is its own
    planned = cfg.augment.value
    algorithm = text.make(
        networks,
        cfg.loss.value,
        gan.Optimizers(
            cfg.betas.value.adam(cfg.lr.value.g, steps),
            cfg.penalty.value.bounded(cfg.betas.value.adam(cfg.lr.value.d, steps * cfg.d_steps)),
        ),
        jnp.asarray(captions.tokenize(images.prompts, images.words, cfg.caption_length)),
        penalties=cfg.penalty.value.over(steps),
        augment=planned.over(steps) if planned else None,
        d_steps=cfg.d_steps,
        accumulate=cfg.accumulate,
        ema_decay=None if half_life == 0 else optim.half_life(half_life, cfg.batch_size, ramp),
        axis_name=axis_name,
    )
    frame = cli.Frame(columns=list(images.prompts))
    return cli.Experiment(algorithm, source, title=images.summary(), frame=frame)


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
