"""GANs of every kind on any dataset of images: the flagship, with the recipes of the literature as presets.

Run:     python -m experiments.image_gan
             lite28 on MNIST digits, on a CPU
         python -m experiments.image_gan --dataset=idx:/usr/share/datasets/fashion-mnist --preset=lite28
         python -m experiments.image_gan --dataset=tfds:cifar10 --preset=sngan-32
         python -m experiments.image_gan --dataset=tfds:cifar10 --preset=biggan-32
Presets: each one's source and what is known of it stand beside it in this file.
Papers:  Huang et al. 2025, arXiv:2501.05441 (R3GAN); Miyato et al. 2018, arXiv:1802.05957 (SNGAN); Brock et al. 2019,
         arXiv:1809.11096 (BigGAN); Karras et al. 2020, arXiv:1912.04958 (StyleGAN2); Lee & Town 2020,
         arXiv:2005.02494 (mimicry); Kang et al. 2023, arXiv:2206.09479 (StudioGAN).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bpgan import data, optim
from bpgan.algorithms import game, gan
from bpgan.augment import Augment, policy
from bpgan.losses import AUXILIARY, LOSSES
from bpgan.nets import biggan, dcgan, energy, linen_net, mlp, r3gan, resnet, stylegan2, truncated
from bpgan.penalties import G_PENALTIES, PENALTIES
from bpgan.types import Net, UserError
from experiments import _cli as cli

NETS = {
    "mlp": 0,
    "dcgan": 64,
    "lite": 24,
    "sngan": 0,
    "biggan": 64,
    "r3gan": 2,
    "stylegan2": 0,
    "autoencoder": 64,
}
"""Architectures, and the number that may follow each as in ``biggan:96``: channels (of ``r3gan``: blocks in a stage);
0 where there is none."""


def _net(text: str) -> tuple[str, int]:
    kind, colon, size = text.partition(":")
    if kind not in NETS or (colon and not (NETS[kind] and size.isdecimal() and int(size) > 0)):
        names = ", ".join(f"{name}:N" if default else name for name, default in NETS.items())
        raise ValueError(f"must be one of {names}")
    return kind, int(size or NETS[kind])


def _latents(text: str):
    kind, _, dim = text.partition(":")
    distributions = {"normal": gan.normal_latents, "uniform": gan.uniform_latents}
    if kind not in distributions or not dim.isdecimal() or int(dim) < 1:
        raise ValueError("must be normal:DIM or uniform:DIM")
    return distributions[kind], int(dim)


def _terms(table: dict):
    """A parser of ``r1+lecam=0.3/1``: names, each with a weight and an interval of its own if it has one."""

    def parse(text: str) -> list[tuple[str, str, str]]:
        terms = []
        for term in text.split("+") if text != "none" else []:
            body, _, every = term.partition("/")
            name, _, weight = body.partition("=")
            if name not in table:
                raise ValueError(
                    f"{name!r} is not a penalty; must be none or a sum of {', '.join(table)}"
                )
            if weight:
                optim.schedule(weight, 1)
            if every and not (every.isdecimal() and int(every)):
                raise ValueError(f"{term!r}: the interval after / must be a positive whole number")
            terms.append((name, weight, every))
        return terms

    return parse


_d_terms, _g_terms = _terms(PENALTIES), _terms(G_PENALTIES)


def _schedule(text: str) -> Any:
    return optim.schedule(text, 1)


def _augment(text: str):
    return policy(text) if text != "none" else None


def _augment_p(text: str) -> Any:
    kind, _, target = text.partition(":")
    if kind != "ada":
        return optim.schedule(text, 1)
    try:
        return float(target or 0.6)
    except ValueError:
        raise ValueError("must be a number, a schedule, ada or ada:TARGET") from None


_SCALAR = "a number or a schedule such as cosine:2e-4:5e-5"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    dataset: str = cli.field("mnist10k", data.FORMS)
    flip: bool = cli.field(False, "mirror images left to right with probability 1/2")
    net: str = cli.field("lite:24", f"both players: {', '.join(NETS)}, with :N a width", check=_net)
    d_net: str = cli.field(
        "", "another architecture for D; empty: the same", check=lambda t: t and _net(t)
    )
    latents: str = cli.field(
        "normal:64",
        "distribution of z and its dimension: normal:DIM or uniform:DIM",
        check=_latents,
    )
    condition: str = cli.field(
        "none",
        "on the labels: none, or how D does it (projection, acgan, d2d)",
        choices=("none", "projection", *AUXILIARY),
    )
    auxiliary_weight: str = cli.field("1", f"of the acgan or d2d loss: {_SCALAR}", check=_schedule)
    attention: int = cli.field(
        0, "resolution of self-attention in sngan and biggan; 0: none", low=0
    )
    spectral_g: bool = cli.field(False, "spectral norm in sngan's generator too")
    loss: str = cli.field("relativistic", "adversarial loss", choices=LOSSES)
    penalty: str = cli.field(
        "r1+r2", "penalties on D: none, or a sum of NAME[=WEIGHT][/EVERY]", check=_d_terms
    )
    g_penalty: str = cli.field("none", "penalties on G, written in the same way", check=_g_terms)
    gamma: str = cli.field(
        "0.1", f"weight of penalties without their own: {_SCALAR}", check=_schedule
    )
    penalty_every: int = cli.field(4, "apply these every k-th update of D, times k", low=1)
    clip: float = cli.field(
        0.0, "keep D's parameters in [-clip, clip], as WGAN does; 0: not", low=0
    )
    g_lr: str = cli.field("3e-4", f"Adam step size of G: {_SCALAR}", check=_schedule)
    d_lr: str = cli.field("3e-4", f"Adam step size of D: {_SCALAR}", check=_schedule)
    b1: str = cli.field("0.5", f"Adam's decay of the mean gradient: {_SCALAR}", check=_schedule)
    b2: str = cli.field("0.99", f"Adam's decay of the squared gradient: {_SCALAR}", check=_schedule)
    d_steps: int = cli.field(1, "updates of D per update of G", low=1)
    accumulate: int = cli.field(1, "micro-batches of an update, for memory", low=1)
    rule: str = cli.field(
        "none", "update rule of the game; none: alternating", choices=("none", *game.RULES)
    )
    augment: str = cli.field("none", "what D sees of images: none, or a policy", check=_augment)
    augment_p: str = cli.field(
        "1", "its probability: a number, a schedule, ada or ada:TARGET (adaptive)", check=_augment_p
    )
    ema: str = cli.field(
        "2e4", "half-life in images of the average of G that draws; 0: none", check=_schedule
    )
    truncation: float = cli.field(
        0.0, "of samples: psi of stylegan2, else the bound on |z| of normal latents; 0: none", low=0,
        restart_safe=True,
    )  # fmt: skip
    epochs: float = cli.field(40.0)
    batch_size: int = cli.field(64, "examples per update of D, over all devices")
    precision: str = cli.field(
        "float32",
        "arithmetic; with bfloat16 parameters, logits and penalties stay float32",
        choices=("float32", "bfloat16", "float64"),
    )
    log_every: str = cli.field("1ep")
    sample_every: str = cli.field("2ep")
    checkpoint_every: str = cli.field("5ep")


_CIFAR = dict(
    loss="hinge", penalty="none", batch_size=64, log_every="1ep", sample_every="20ep", checkpoint_every="20ep",
)  # fmt: skip

PRESETS = {
    # The recipe for a CPU: bilinear generator, full-resolution discriminator, relativistic loss, R1 + R2 every fourth
    # update, cosine. Measured numbers stand in the README.
    "lite28": dict(
        net="lite:24",
        gamma="0.3",
        g_lr="cosine:1e-3:5e-5",
        d_lr="cosine:1e-3:5e-5",
        epochs=7.0,
        log_every="0.25ep",
        sample_every="1ep",
        checkpoint_every="1ep",
    ),
    # The control of lite28: the same networks and images with the loss of 2014, no penalty and a constant step size.
    "plain28": dict(
        net="lite:24",
        loss="nonsaturating",
        penalty="none",
        g_lr="3e-4",
        d_lr="3e-4",
        epochs=7.0,
        log_every="0.25ep",
        sample_every="1ep",
        checkpoint_every="1ep",
    ),
    # lite28 on the labels: a projection in D, label embeddings concatenated to z in G.
    "cgan28": dict(
        net="lite:24",
        condition="projection",
        gamma="0.3",
        g_lr="cosine:1e-3:5e-5",
        d_lr="cosine:1e-3:5e-5",
        epochs=7.0,
        log_every="0.25ep",
        sample_every="1ep",
        checkpoint_every="1ep",
    ),
    # Huang et al. 2025 for 28-pixel grey images, schedules over the first tenth of the run. For a GPU. Not measured.
    "r3-28": dict(
        net="r3gan:2",
        gamma="cosine:0.2:0.02:0.1",
        penalty_every=1,
        g_lr="cosine:2e-4:5e-5:0.1",
        d_lr="cosine:2e-4:5e-5:0.1",
        b1="0",
        b2="cosine:0.9:0.99:0.1",
        ema="cosine:0:5e5:0.1",
        batch_size=256,
        epochs=200.0,
        log_every="1ep",
        sample_every="10ep",
        checkpoint_every="20ep",
    ),
    # Huang et al. 2025, CIFAR-10: gamma 0.05 to 0.005, Adam (0, 0.9 to 0.99), 2e-4 to 5e-5, over 20 of 200 million
    # images; their widths are four times these. FID 1.96 (conditional, published). Not measured here.
    "r3-32": dict(
        net="r3gan:2",
        flip=True,
        condition="projection",
        gamma="cosine:0.05:0.005:0.1",
        penalty_every=1,
        g_lr="cosine:2e-4:5e-5:0.1",
        d_lr="cosine:2e-4:5e-5:0.1",
        b1="0",
        b2="cosine:0.9:0.99:0.1",
        ema="cosine:0:5e6:0.1",
        augment="bgc",
        augment_p="cosine:0:0.55:0.1",
        batch_size=512,
        epochs=4000.0,
        log_every="5ep",
        sample_every="50ep",
        checkpoint_every="50ep",
    ),
    # Huang et al. 2025, FFHQ at 64 pixels: gamma 2 to 0.2 and an average of 0.5 million images. FID 1.95 (published,
    # wider networks). Not measured here.
    "r3-64": dict(
        net="r3gan:2",
        flip=True,
        gamma="cosine:2:0.2:0.1",
        penalty_every=1,
        g_lr="cosine:2e-4:5e-5:0.1",
        d_lr="cosine:2e-4:5e-5:0.1",
        b1="0",
        b2="cosine:0.9:0.99:0.1",
        ema="cosine:0:5e5:0.1",
        augment="bgc",
        augment_p="cosine:0:0.3:0.1",
        batch_size=256,
        epochs=2000.0,
        log_every="5ep",
        sample_every="50ep",
        checkpoint_every="50ep",
    ),
    # mimicry's SNGAN on CIFAR-10 (Lee & Town 2020): hinge, Adam (0, 0.9) at 2e-4 to 0 linearly, five updates of D to
    # one of G, 100,000 of G. FID 16.77 +- 0.04, 50,000 samples against the training set (published). Not measured here.
    "sngan-32": dict(
        _CIFAR,
        net="sngan",
        latents="normal:128",
        g_lr="linear:2e-4:0",
        d_lr="linear:2e-4:0",
        b1="0",
        b2="0.9",
        d_steps=5,
        ema="0",
        steps=100_000,
    ),
    # The hyper-parameters of StudioGAN's DCGAN on CIFAR-10 (Kang et al. 2023): non-saturating, Adam (0.5, 0.999) at
    # 2e-4, two updates of D to one of G, 200,000 of G. The networks are Radford et al. 2016's, without the 3x3
    # convolutions that StudioGAN adds at every resolution. Not measured here.
    "dcgan-32": dict(
        _CIFAR,
        flip=True,
        net="dcgan:64",
        loss="nonsaturating",
        latents="normal:128",
        g_lr="2e-4",
        d_lr="2e-4",
        b2="0.999",
        d_steps=2,
        ema="0",
        steps=200_000,
    ),
    # StudioGAN's BigGAN-Mod on CIFAR-10 (Kang et al. 2023): 96 channels, self-attention at 16 pixels, hinge, Adam (0.5,
    # 0.999) at 2e-4, five updates of D to one of G, 100,000 of G, average with decay 0.9999. Not measured here.
    "biggan-32": dict(
        _CIFAR,
        flip=True,
        net="biggan:96",
        latents="normal:80",
        condition="projection",
        attention=16,
        g_lr="2e-4",
        d_lr="2e-4",
        b2="0.999",
        d_steps=5,
        ema="4.4e5",
        steps=100_000,
    ),
    # Karras et al. 2020 in small: non-saturating, R1 every 16th update with gamma = 0.0002 res^2 / batch, path length
    # every fourth, adaptive augmentation (arXiv:2006.06676). Not measured here.
    "stylegan2-32": dict(
        net="stylegan2",
        latents="normal:512",
        loss="nonsaturating",
        penalty="r1=0.0064/16",
        g_penalty="path_length_w=2/4",
        g_lr="2.5e-3",
        d_lr="2.5e-3",
        b1="0",
        b2="0.99",
        augment="bgc",
        augment_p="ada",
        ema="5e5",
        batch_size=32,
        epochs=400.0,
        log_every="5ep",
        sample_every="20ep",
        checkpoint_every="20ep",
    ),
    "smoke": dict(
        net="lite:4",
        latents="normal:8",
        batch_size=16,
        steps=8,
        log_every="2",
        sample_every="4",
        checkpoint_every="4",
    ),
}


def _multiple(cfg: Config, flag: str, shape: tuple[int, int, int], of: int) -> None:
    if shape[0] % of or shape[1] % of:
        raise UserError(
            f"--{flag}={getattr(cfg, flag)}: images of --dataset={cfg.dataset} are {shape[0]}x{shape[1]};"
            f" height and width must be multiples of {of}"
        )


def _generator(
    cfg: Config, shape: tuple[int, int, int], classes: int, axis_name: str | None
) -> Net:
    kind, size = _net(cfg.net)
    common: dict[str, Any] = dict(classes=classes, dtype=jnp.dtype(cfg.precision))
    if kind == "mlp":
        return linen_net(mlp.Generator(shape, **common))
    if kind in ("lite", "dcgan", "autoencoder"):
        transpose = kind != "lite"
        # Widths double towards the lowest resolution, which is 3 to 7 pixels high.
        levels = max((shape[0] // 4).bit_length() - 1, 1) + (not transpose)
        _multiple(cfg, "net", shape, 2 ** (levels - (not transpose)))
        return linen_net(
            dcgan.Generator(
                shape,
                widths=tuple(size << i for i in reversed(range(levels))),
                upsample="transpose" if transpose else "resize",
                output_gain=1.0 if transpose else 0.5,
                axis_name=axis_name,
                **common,
            )
        )
    if kind == "sngan":
        return linen_net(
            resnet.Generator(
                shape,
                attention=cfg.attention,
                spectral=cfg.spectral_g,
                axis_name=axis_name,
                **common,
            )
        )
    if kind == "biggan":
        return linen_net(
            biggan.Generator(
                shape,
                size,
                attention=cfg.attention,
                hierarchical=classes > 0,
                axis_name=axis_name,
                **common,
            )
        )
    if kind == "r3gan":
        return linen_net(r3gan.Generator(shape, blocks=size, **common))
    return linen_net(stylegan2.Generator(shape, **common))


def _discriminator(cfg: Config, shape: tuple[int, int, int], classes: int) -> Net:
    kind, size = _net(cfg.d_net or cfg.net)
    head = cfg.condition if classes else "projection"
    common: dict[str, Any] = dict(classes=classes, head=head, dtype=jnp.dtype(cfg.precision))
    if kind == "autoencoder":
        if classes:
            raise UserError("--condition: an autoencoder as D takes no labels; must be none")
        return energy(
            linen_net(dcgan.Autoencoder((size, 2 * size), dtype=jnp.dtype(cfg.precision)))
        )
    if kind == "mlp":
        return linen_net(mlp.Discriminator(**common))
    if kind == "lite":
        return linen_net(
            dcgan.Discriminator((2 * size, 4 * size), full_resolution=size, hidden=128, **common)
        )
    if kind == "dcgan":
        levels = max((shape[0] // 4).bit_length() - 1, 1)
        return linen_net(dcgan.Discriminator(tuple(size << i for i in range(levels)), **common))
    if kind == "sngan":
        return linen_net(resnet.Discriminator(attention=cfg.attention, **common))
    if kind == "biggan":
        return linen_net(biggan.Discriminator(size, attention=cfg.attention, **common))
    if kind == "r3gan":
        return linen_net(r3gan.Discriminator(blocks=size, **common))
    return linen_net(stylegan2.Discriminator(**common))


def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment:
    """The GAN that ``cfg`` describes, and its data."""
    dtype = jnp.dtype("float64" if cfg.precision == "float64" else "float32")
    images, held = data.load(cfg.dataset), None
    if cli.duration(cfg.eval_every, 1.0):
        images, held = data.hold_out(images)
    shape, classes = images.shape, images.classes if cfg.condition != "none" else 0
    if classes == 1:
        raise UserError(
            f"--condition={cfg.condition}: --dataset={cfg.dataset} has no labels; must be none"
        )
    if (cfg.loss == "began") != (_net(cfg.d_net or cfg.net)[0] == "autoencoder"):
        raise UserError(
            f"--loss={cfg.loss}: began and an autoencoder as D (--d_net) need each other"
        )
    source = data.source(
        images,
        seed=cfg.seed,
        batch_size=cfg.batch_size * cfg.d_steps,
        dtype=dtype,
        feed=cfg.feed,
        flip=cfg.flip,
    )
    steps = cfg.steps or round(cfg.epochs * source.steps_per_epoch)

    def scalar(text: str, updates: int = 1) -> Any:
        return optim.schedule(text, steps * updates)

    def penalties(terms, table) -> list[tuple]:
        return [
            (
                scalar(weight or cfg.gamma),
                table[name],
                int(every) if every else 1 if weight else cfg.penalty_every,
            )
            for name, weight, every in terms
        ]

    def adam(lr: str, updates: int) -> optax.GradientTransformation:
        return optim.adam(*(scalar(text, updates) for text in (lr, cfg.b1, cfg.b2)))

    g_net, d_net = _generator(cfg, shape, classes, axis_name), _discriminator(cfg, shape, classes)
    d_tx = adam(cfg.d_lr, cfg.d_steps)
    distribution, dim = _latents(cfg.latents)
    latents = distribution(dim, dtype)
    labels = (jnp.zeros(1, jnp.int32),) if classes else ()
    for flag, net, example in (("net", g_net, (1, dim)), ("d_net", d_net, (1, *shape))):
        try:
            jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(example, dtype), *labels)
        except ValueError as error:
            name = getattr(cfg, flag) or cfg.net
            raise UserError(f"--{flag}={name}: {error} (--dataset={cfg.dataset})") from None
    sampler, sample_latents = None, None
    if cfg.truncation and _net(cfg.net)[0] == "stylegan2":
        sampler = truncated(g_net, cfg.truncation, latents)
    elif cfg.truncation:
        if distribution is not gan.normal_latents:
            raise UserError(
                f"--truncation={cfg.truncation}: --latents={cfg.latents}, must be normal:DIM"
            )
        sample_latents = gan.normal_latents(dim, dtype, cfg.truncation)
    augment = None
    if apply := _augment(cfg.augment):
        adaptive = cfg.augment_p.startswith("ada")
        augment = (
            Augment(apply, 0.0, target=_augment_p(cfg.augment_p))
            if adaptive
            else Augment(apply, scalar(cfg.augment_p))
        )
    half_life = scalar(cfg.ema)
    algorithm = gan.make(
        g_net,
        d_net,
        LOSSES[cfg.loss],
        adam(cfg.g_lr, 1),
        optax.chain(d_tx, optim.clip_weights(cfg.clip)) if cfg.clip else d_tx,
        latents=latents,
        data_shape=shape,
        dtype=dtype,
        penalties=penalties(_d_terms(cfg.penalty), PENALTIES),
        g_penalties=penalties(_g_terms(cfg.g_penalty), G_PENALTIES),
        d_steps=cfg.d_steps,
        accumulate=cfg.accumulate,
        classes=classes,
        auxiliary=(scalar(cfg.auxiliary_weight), AUXILIARY[cfg.condition])
        if cfg.condition in AUXILIARY
        else None,
        augment=augment,
        ema_decay=None if half_life == 0 else optim.half_life(half_life, cfg.batch_size),
        rule=None if cfg.rule == "none" else game.RULES[cfg.rule],
        sampler=sampler,
        sample_latents=sample_latents,
        axis_name=axis_name,
    )
    experiment = cli.Experiment(algorithm, source, title=images.summary(), prefers="min:eval/FD")
    if held is None:
        return experiment
    from experiments import evaluate

    validate, test = evaluate.monitors(algorithm, cfg.dataset, held)
    return experiment._replace(validate=validate, evaluate=test)


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
