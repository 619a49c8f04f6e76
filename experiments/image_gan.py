"""GANs of every kind on any dataset of images, with the recipes of the literature as presets.

Run:     python -m experiments.image_gan
             lite28's recipe on MNIST digits, on a CPU
         python -m experiments.image_gan --dataset=idx:/usr/share/datasets/fashion-mnist --preset=lite28
         python -m experiments.image_gan --dataset=tfds:cifar10 --preset=sngan-32
         python -m experiments.image_gan --dataset=tfds:cifar10 --preset=biggan-32
         python -m experiments.image_gan --net=lite:24/my_module:MyD --loss=my_module:my_loss \\
                --penalty=r1=0.3/4+my_module:my_penalty=0.1
             a discriminator, a loss and a penalty of your own: a class of Linen modules (or an Architecture), an
             AdversarialLoss, and a function (or a Regularizer) in a module that Python finds
Presets: each with its --dataset, FASHION being idx:/usr/share/datasets/fashion-mnist; measured is what says so, in
         features of a classifier, 10,000 samples against the test split, on 2 cores of an AMD EPYC.
         lite28     FASHION. The recipe for a CPU: bilinear G, full-resolution D, relativistic loss, R1 + R2 every
                    fourth update, cosine. Measured: FD 18.4 +- 1.0, three seeds; 11.5 minutes.
         plain28    FASHION. The control of lite28: same networks and images, loss of Goodfellow et al. 2014, no
                    penalty, constant step size. Measured: FD 341 +- 12, three seeds.
         cgan28     FASHION. lite28 on the labels: a projection in D, embeddings concatenated to z in G. Measured: FD
                    11.4, and a classifier agrees with 91.5 % of the labels, one seed; with --steps=2200 FD 19.1 +- 1.2
                    and 88.7 +- 0.4 %, three seeds; and --condition=d2d=1 15.7 and 97.9 %, concat 21.6 and 87.2 %,
                    acgan=1 38.7 and 92.6 %, one seed each.
         lite32     folder:PATH,size=32. For a few thousand color images on a CPU: lite28 with larger steps, batches of
                    16 and a G that the latents modulate (Chen et al. 2019, arXiv:1810.01365). Measured: FD 21.5 +- 0.4
                    in EffNet features on 5,202 sprites of a game, three seeds; of real ones 10.5; 9 minutes.
         lite64     folder:PATH,size=64. The same for 64 pixels. Measured: FD 47.4 on the same sprites, one seed; of
                    real ones 13.6; 28 minutes.
         afm14      mnist14. One-step adversarial flow by perceptrons: noise of the images' shape to images, by the
                    cheapest map (docs/flows.md). Measured: G moves its latents by 1.5858 a pixel, squared, and no map
                    with these samples by less than 1.5857; without transport 1.848 and 1.669; one seed, a minute.
         afm28      FASHION. lite28's networks and penalties, as a one-step adversarial flow. Measured: after four
                    epochs FD 65.6 +- 6.0, without transport 34.2 +- 2.7, lite28 23.7 +- 1.1; three seeds.
         r3-28      FASHION. R3GAN for 28 gray pixels, schedules over a tenth of the run. For a GPU; not measured.
         r3-32      tfds:cifar10. R3GAN: gamma 0.05 to 0.005, Adam (0, 0.9 to 0.99), 2e-4 to 5e-5, over 20 of 200
                    million images. The paper's stages have 768 channels each, these 256, 256, 192 and 128, and its
                    augmentation is stronger; its FID is 1.96. For a GPU; not measured.
         r3-64      folder:PATH,size=64, such as FFHQ. R3GAN: gamma 2 to 0.2, average over 0.5 million images. The
                    paper's networks are wider; its FID is 1.95. For a GPU; not measured.
         vit28-tiny  FASHION. lite28 with a transformer as G, on patches of 7 pixels; the latents modulate its blocks.
                    Measured: on mnist10k after 1,000 steps, when it still got better, FD 353 of 1,000 samples, one
                    seed; of real ones 12, of an untrained G 2474.
         vit28      FASHION. One-step adversarial flow by transformers, conditional: noise of the images' shape to
                    images. For a GPU; not measured.
         vit32      tfds:cifar10. The same for 32 pixels, mirrored. For a GPU; not measured.
         vit64      folder:PATH,size=64. The same for 64 pixels, without labels. For a GPU; not measured.
         sngan-32   tfds:cifar10. mimicry's SNGAN: hinge, Adam (0, 0.9) at 2e-4 to 0 linearly, five updates of D to one
                    of G, 100,000 of G. Its FID is 16.77 +- 0.04, 50,000 samples against the training set; D's shortcuts
                    there see relu(x), here x. For a GPU; not measured.
         dcgan-32   tfds:cifar10. StudioGAN's DCGAN: its plain networks with batch norm in both, non-saturating, Adam
                    (0.5, 0.999) at 2e-4, two updates of D to one of G, 200,000 of G. Its FID is 48.3, 50,000 samples.
                    For a GPU; not measured.
         biggan-32  tfds:cifar10. StudioGAN's BigGAN: 384 channels in G, 192 in D, self-attention at 16 pixels, hinge,
                    Adam (0.5, 0.999) at 2e-4, five updates of D to one of G, 100,000 of G, average with decay 0.9999
                    from the 1,000th on; batch norm's epsilon is BigGAN's 1e-5, not StudioGAN's 1e-4, and D's shortcuts
                    see x, not relu(x). Its FID is 4.16. For a GPU; not measured.
         stylegan2-32  tfds:cifar10. StyleGAN2 in small: non-saturating, R1 every 16th update with gamma = 0.0002 res^2
                    / batch, path length every fourth, adaptive augmentation (arXiv:2006.06676); without style mixing,
                    minibatch standard deviation and the correction of Adam for lazy penalties. For a GPU; not
                    measured.
Papers:  Huang et al. 2025, arXiv:2501.05441 (R3GAN); Miyato et al. 2018, arXiv:1802.05957 (SNGAN); Brock et al. 2019,
         arXiv:1809.11096 (BigGAN); Karras et al. 2020, arXiv:1912.04958 (StyleGAN2); Lee & Town 2020,
         arXiv:2005.02494 (mimicry); Kang et al. 2023, arXiv:2206.09479 (StudioGAN); Lin et al. 2025, arXiv:2511.22475
         (adversarial flow by transformers).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bpgan import cli, data, losses, metrics, optim, penalties
from bpgan.algorithms import game, gan
from bpgan.algorithms.latents import Latents
from bpgan.augment import Planned
from bpgan.augment import parse as parse_augment
from bpgan.data import attributes
from bpgan.evaluation.monitor import monitor
from bpgan.losses import AUXILIARY, LOSSES
from bpgan.nets import architecture, storage_dtype, truncated
from bpgan.privacy.canaries import Canaries
from bpgan.types import AdversarialLoss, Algorithm, Net, UserError


class Condition(NamedTuple):
    """How D sees the labels.

    Attributes:
      how: one of ``nets.architecture.CONDITIONS``; empty: there are none.
      weight: of the loss of D's head, over the run.
    """

    how: str
    weight: optim.OverRun

    def over(self, steps: int, classes: int, images: data.Dataset) -> gan.Condition:
        """The condition of a run of so many steps, on labels of so many classes, or on vectors of that size."""
        found = gan.Condition(classes, AUXILIARY.get(self.how), self.weight(steps))
        has = images.attributes
        if not classes or has is None or has.shown is None:
            return found
        labels, values = attributes.in_turn(has, len(has.shown))
        table = has.vectors(labels, values, images.classes)

        def in_turn(n: int) -> jax.Array:
            return jnp.take(jnp.asarray(table), jnp.arange(n) % len(table), axis=0)

        return found._replace(in_turn=in_turn)


_positive = functools.partial(optim.parse, low=0.0)


def _condition(text: str) -> Condition:
    how, equals, weight = text.partition("=")
    ways = architecture.ALL_CONDITIONS
    if how not in ("none", *ways) or (equals and how not in AUXILIARY):
        plain = [how for how in ways if how not in AUXILIARY]
        raise ValueError(
            f"must be none, {', '.join(plain)}, or one of {', '.join(AUXILIARY)} with =WEIGHT"
        )
    return Condition("" if how == "none" else how, _positive(weight if equals else "1"))


_SCALAR = "a number or a schedule such as cosine:2e-4:5e-5"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    dataset: cli.Parsed[data.Name] = cli.field(
        "mnist10k", data.forms, parse=data.parse, locates_data=True
    )
    flip: bool = cli.field(False, "mirror images left to right with probability 1/2")
    net: cli.Parsed[architecture.Choices] = cli.field(
        "lite:24",
        "G, or G/D, each with a width :N and options after commas",
        choices=architecture.forms,
        parse=architecture.parse,
    )
    latents: cli.Parsed[Latents] = cli.field(
        "normal:64",
        "distribution of z and its dimension: normal:DIM or uniform:DIM",
        parse=Latents.parse,
    )
    condition: cli.Parsed[Condition] = cli.field(
        "none",
        "on labels, and on attributes where the dataset has some: none, or how D does it: concat, projection,"
        " modulation, or on labels alone acgan=WEIGHT, d2d=WEIGHT, ucd=WEIGHT",
        parse=_condition,
    )
    loss: cli.Parsed[AdversarialLoss] = cli.field(
        "relativistic",
        "adversarial loss; G's gradient normalized with ,normalized or ,normalized=DECAY",
        choices=LOSSES,
        parse=losses.parse,
    )
    penalty: cli.Parsed[penalties.Terms] = cli.field(
        "r1=0.3/4+r2=0.3/4",
        "none, or a sum of NAME=WEIGHT/EVERY, with options as in r1_fd=0.5,share=4; for G g.NAME; clip=BOUND clips D's"
        " weights",
        choices=penalties.forms,
        parse=penalties.parse,
    )
    lr: cli.Parsed[optim.StepSizes] = cli.field(
        "cosine:1e-3:5e-5",
        f"Adam's step size, or G's/D's: {_SCALAR}; width:W:... times W over the width N of the network",
        parse=optim.parse_step_sizes,
    )
    betas: cli.Parsed[optim.Betas] = cli.field(
        "0.5,0.99", f"Adam's two decays: {_SCALAR}; and its epsilon", parse=optim.parse_betas
    )
    d_steps: int = cli.field(1, "updates of D per update of G", low=1)
    one_pass: bool = cli.field(
        False,
        "D's updates see reals and fakes in one pass, in fewer kernels; a spectral norm then iterates once an update,"
        " not twice",
    )
    accumulate: int = cli.field(1, "micro-batches of an update, for memory", low=1)
    rule: cli.Parsed[game.Rule | None] = cli.field(
        "none",
        f"update rule of the game: {game.RULE_FORMS}; none: alternating",
        parse=game.rule_of,
    )
    augment: cli.Parsed[Planned | None] = cli.field(
        "none",
        "of what D sees: none or POLICY@P; P a number, a schedule or ada:TARGET; ,paired: one draw for each real and"
        " the fake beside it",
        parse=parse_augment,
    )
    ema: cli.Parsed[optim.Lengths] = cli.field(
        "2e4",
        "half-life in images of the average of G that draws, a number at most 5 % of the images seen so far, a schedule"
        " as it is; or power:SIGMA, a share of the run so far; several with +, the first draws; ,reload=1ep: G goes on"
        " from it; 0: none",
        parse=optim.parse_averages,
    )
    truncation: float = cli.field(
        0.0, "of samples: psi of stylegan2, else the bound on |z| of normal latents; 0: none", low=0,
        restart_safe=True,
    )  # fmt: skip
    canaries: cli.Parsed[Canaries] = cli.field("", Canaries.forms, parse=Canaries.parse)
    epochs: float = cli.field(40.0)
    batch_size: int = cli.field(64, "examples per update of D, over all devices")
    precision: str = cli.NETWORK_PRECISION
    log_every: str = cli.field("1ep")
    sample_every: str = cli.field("2ep")
    checkpoint_every: str = cli.field("5ep")


_CIFAR = dict(
    loss="hinge", penalty="none", batch_size=64, log_every="1ep", sample_every="20ep", checkpoint_every="20ep",
)  # fmt: skip

_SEVEN_EPOCHS = dict(epochs=7.0, log_every="0.25ep", sample_every="1ep", checkpoint_every="1ep")

# A few thousand pictures are seen many times: the length is a number of steps, whatever their number.
_COLOR = dict(
    net="lite:24,modulated/lite:24",
    penalty="r1=0.3/8+r2=0.3/8",
    batch_size=16,
    log_every="250",
    sample_every="2000",
    checkpoint_every="2000",
)

# One-step adversarial flow by transformers. Half of images in the average: 256 log(1/2) / log(0.9999).
_VIT = dict(
    condition="modulation",
    loss="relativistic,normalized",
    penalty="r1_fd=0.5,share=4+r2_fd=0.5,share=4+centering=0.01+g.transport=cosine:0.2:0.005",
    lr="1e-4",
    betas="0,0.9",
    ema="warmup:0.01:1.8e6",
    flip=True,
    batch_size=256,
    log_every="1ep",
    sample_every="10ep",
    checkpoint_every="20ep",
)

PRESETS = {
    "lite28": dict(_SEVEN_EPOCHS),
    "plain28": dict(
        _SEVEN_EPOCHS,
        lr="3e-4",
        penalty="none",
        loss="nonsaturating",
    ),
    "cgan28": dict(
        _SEVEN_EPOCHS,
        condition="projection",
    ),
    "lite32": dict(_COLOR, lr="cosine:4e-3:1e-4", steps=20_000),
    "lite64": dict(_COLOR, lr="cosine:2e-3:5e-5", steps=12_000),
    "afm14": dict(
        dataset="mnist14",
        net="mlp:256,layers=2,linear/mlp:256,layers=2",
        latents="normal:196",
        loss="relativistic,normalized",
        penalty="r1_fd=0.5+r2_fd=0.5+centering=0.01+g.transport=cosine:0.2:0.005",
        lr="5e-4",
        betas="0,0.9",
        steps=3000,
    ),
    "afm28": dict(
        _SEVEN_EPOCHS,
        latents="normal:784",
        loss="relativistic,normalized",
        penalty="r1=0.3/4+r2=0.3/4+centering=0.01+g.transport=cosine:0.2:0.005",
    ),
    "r3-28": dict(
        net="r3gan:2",
        precision="bfloat16",
        lr="cosine:2e-4:5e-5:0.1",
        betas="0,cosine:0.9:0.99:0.1",
        penalty="r1=cosine:0.2:0.02:0.1+r2=cosine:0.2:0.02:0.1",
        ema="cosine:0:5e5:0.1",
        batch_size=256,
        epochs=200.0,
        log_every="1ep",
        sample_every="10ep",
        checkpoint_every="20ep",
    ),
    "r3-32": dict(
        net="r3gan:2",
        precision="bfloat16",
        lr="cosine:2e-4:5e-5:0.1",
        betas="0,cosine:0.9:0.99:0.1",
        penalty="r1=cosine:0.05:0.005:0.1+r2=cosine:0.05:0.005:0.1",
        augment="bgc@cosine:0:0.55:0.1",
        flip=True,
        condition="projection",
        ema="cosine:0:5e6:0.1",
        batch_size=512,
        epochs=4000.0,
        log_every="5ep",
        sample_every="50ep",
        checkpoint_every="50ep",
    ),
    "r3-64": dict(
        net="r3gan:2",
        precision="bfloat16",
        lr="cosine:2e-4:5e-5:0.1",
        betas="0,cosine:0.9:0.99:0.1",
        penalty="r1=cosine:2:0.2:0.1+r2=cosine:2:0.2:0.1",
        augment="bgc@cosine:0:0.3:0.1",
        flip=True,
        ema="cosine:0:5e5:0.1",
        batch_size=256,
        epochs=2000.0,
        log_every="5ep",
        sample_every="50ep",
        checkpoint_every="50ep",
    ),
    "vit28-tiny": dict(
        _SEVEN_EPOCHS,
        net="vit:96,depth=4,heads=4,patch=7,qknorm/lite:24",
    ),
    "vit28": dict(
        _VIT,
        net="vit:192,depth=6,heads=6,patch=4,qknorm",
        latents="normal:784",
        flip=False,
        epochs=200.0,
    ),
    "vit32": dict(
        _VIT,
        net="vit:256,depth=8,heads=8,patch=4,qknorm",
        latents="normal:3072",
        epochs=500.0,
    ),
    "vit64": dict(
        _VIT,
        net="vit:384,depth=12,heads=6,patch=8,qknorm",
        latents="normal:12288",
        condition="none",
        epochs=500.0,
    ),
    "sngan-32": dict(
        _CIFAR,
        net="sngan",
        lr="linear:2e-4:0",
        betas="0,0.9",
        latents="normal:128",
        d_steps=5,
        ema="0",
        steps=100_000,
    ),
    "dcgan-32": dict(
        _CIFAR,
        flip=True,
        net="cnn",
        lr="2e-4",
        betas="0.5,0.999,1e-6",
        loss="nonsaturating",
        latents="normal:128",
        d_steps=2,
        ema="0",
        steps=200_000,
    ),
    "biggan-32": dict(
        _CIFAR,
        flip=True,
        net="biggan:96,attention=16/biggan:48,attention=16",
        lr="2e-4",
        betas="0.5,0.999,1e-6",
        latents="normal:80",
        condition="projection",
        d_steps=5,
        ema="warmup:0.01:4.4e5",
        steps=100_000,
    ),
    "stylegan2-32": dict(
        net="stylegan2",
        lr="2.5e-3",
        betas="0,0.99",
        penalty="r1=0.0064/16+g.path_length_w=2/4",
        augment="bgc@ada",
        latents="normal:512",
        loss="nonsaturating",
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


def check(cfg: Config, axis_name: str | None) -> None:
    """Raises UserError for flags that do not go with each other."""
    choices, loss, planned = cfg.net.value, cfg.loss.value, cfg.augment.value
    idle = [
        name
        for name, value in choices.g.options.items()
        if value and choices.g.network.options[name].of_labels
    ]
    if idle and not cfg.condition.value.how:
        reason = f"{idle[0]} has no part in `condition=none`; must be one of "
        reason += ", ".join(choices.d.network.conditions)
        raise UserError(reason, argument="net", value=cfg.net, beside=["condition"])
    _check_batches(cfg, axis_name)
    if cfg.one_pass and choices.d.mixes_examples:
        reason = (
            f"needs a D that takes each example by itself; `net={choices.d.name}` has batch norm,"
        )
        reason += f" not so {' or '.join(architecture.unmixed('d'))}"
        raise UserError(reason, argument="one_pass", value=cfg.one_pass, beside=["net"])
    if planned and planned.target is not None and not loss.balances_at_zero:
        allowed = ", ".join(name for name, loss in LOSSES.items() if loss.balances_at_zero)
        reason = "ada goes by the sign of D's logits, which means nothing with"
        reason += f" `loss={cfg.loss}`; must be one of {allowed}"
        raise UserError(reason, argument="augment", value=cfg.augment, beside=["loss"])
    if loss.energy != choices.d.architecture.energy:
        energies = architecture.names(lambda a: a.energy)
        reason = ", ".join(name for name, loss in LOSSES.items() if loss.energy)
        reason += f" and an {' or '.join(energies)} as D need each other, as in"
        reason += f" `net=dcgan/{energies[0]}`"
        raise UserError(reason, argument="loss", value=cfg.loss, beside=["net"])
    if loss.normalization and cfg.rule.value:
        reason = f"`rule={cfg.rule}` differentiates the gradient; must not be normalized"
        raise UserError(reason, argument="loss", value=cfg.loss, beside=["rule"])
    cfg.penalty.value.check_precision(cfg.precision)
    if cfg.penalty.value.clip and cfg.rule.value and cfg.rule.value.remembers:
        reason = f"the steps of `rule={cfg.rule}` go beyond the bound; another rule keeps it"
        raise UserError(reason, argument="penalty", value=penalties.CLIP, beside=["rule"])
    step_sizes(cfg)
    for term in cfg.penalty.value.terms:
        if term.penalty.of_latents and cfg.truncation:
            reason = f"{term} makes G a map of all latents to all data; must be 0"
            raise UserError(reason, argument="truncation", value=cfg.truncation, beside=["penalty"])
        if reason := _misfit(term, choices.g if term.player == "g" else choices.d):
            raise UserError(reason, argument="penalty", value=str(term), beside=["net"])


def _misfit(term: penalties.Term, net: architecture.Choice) -> str:
    """Why a player's network cannot have a penalty; empty if it can."""
    penalty, called = term.penalty, f"`net={net.name}`"
    if penalty.mapping and not net.mapping:
        return f"{called} has no mapping, {', '.join(architecture.names(lambda a: a.mapping))} has"
    if penalty.each_example and net.mixes_examples:
        reason = f"needs a {term.player.upper()} that takes each example by itself; {called} has"
        return f"{reason} batch norm, not so {' or '.join(architecture.unmixed(term.player))}"
    if penalty.matrices and net.kernels:
        return f"needs kernels that are matrices; those of {called} are {net.kernels}"
    return ""


def _check_batches(cfg: Config, axis_name: str | None) -> None:
    """Raises a UserError for a batch that cannot be split, or is split where the rule or the devices allow none."""

    def refuse(name: str, reason: str, *beside: str) -> None:
        value = "pmap" if name == "parallel" else getattr(cfg, name)
        raise UserError(reason, argument=name, value=value, beside=beside)

    if cfg.batch_size % cfg.accumulate:
        refuse("accumulate", f"must divide `batch_size={cfg.batch_size}`", "batch_size")
    devices = jax.device_count() if axis_name else 1
    # A step of fewer rows than devices runs on one of them.
    if cfg.batch_size * cfg.d_steps >= devices and cfg.batch_size % (cfg.accumulate * devices):
        reason = f"must be a multiple of `accumulate={cfg.accumulate}` times the"
        reason += f" {devices} devices of `parallel=pmap`"
        refuse("batch_size", reason, "accumulate", "parallel")
    if cfg.rule.value:
        for name in ("d_steps", "accumulate"):
            if getattr(cfg, name) > 1:
                refuse(name, f"must be 1 with `rule={cfg.rule}`", "rule")
        if axis_name:
            refuse("parallel", f"must be jit with `rule={cfg.rule}`", "rule")


def _check_latents(cfg: Config, shape: tuple[int, ...]) -> None:
    """Raises a UserError where a penalty compares images with latents of another size."""
    dim, size = cfg.latents.value.dim, math.prod(shape)
    for term in cfg.penalty.value.terms:
        if term.penalty.of_latents and dim != size:
            reason = f"{term} compares them with images of {size} numbers; must be"
            reason += f" {cfg.latents.value.kind}:{size}"
            raise UserError(reason, argument="latents", value=cfg.latents, beside=["penalty"])


def make_networks(cfg: Config, images: data.Dataset, axis_name: str | None) -> tuple[Net, Net, int]:
    """Both players, of which it is known that they take such images, and the classes of their labels.

    Raises:
      UserError: if they do not take them, or not the labels.
    """
    how, shape = cfg.condition.value.how, images.shape
    classes = images.classes if how else 0
    if how and images.attributes:
        classes = attributes.size_of(images.attributes, images.classes)
    elif classes == 1:
        reason = f"`dataset={cfg.dataset}` has no labels; must be none"
        raise UserError(reason, argument="condition", value=cfg.condition, beside=["dataset"])
    _check_latents(cfg, shape)
    nets = []
    for net, example in zip(cfg.net.value, ((1, cfg.latents.value.dim), (1, *shape)), strict=True):
        if classes and how not in net.conditions:
            allowed = ", ".join(("none", *net.conditions))
            reason = f"{net.name} as {net.player.upper()} does not take labels so; must be"
            reason += f" {allowed}" if allowed == "none" else f" one of {allowed}"
            raise UserError(reason, argument="condition", value=cfg.condition, beside=["net"])
        dtype = jnp.dtype(cfg.precision)
        made = net.make(shape, dtype=dtype, classes=classes, condition=how, axis_name=axis_name)
        y = jnp.zeros((1, classes)) if images.attributes else jnp.zeros(1, jnp.int32)
        labels = (y,) if classes else ()
        try:
            jax.eval_shape(made.init, jax.random.key(0), jnp.zeros(example), *labels)
        except ValueError as error:
            where = f"images of `dataset={cfg.dataset}` are {shape[0]}x{shape[1]}"
            raise UserError(f"{error} ({where})", argument="net", value=cfg.net) from None
        nets.append(made)
    return nets[0], nets[1], classes


def _check_attributes(cfg: Config) -> None:
    """Raises a UserError for what attributes do not go with."""
    if (how := cfg.condition.value.how) in AUXILIARY:
        reason = f"`dataset={cfg.dataset}` has attributes, which {how} does not know;"
        reason += " must be none, concat, projection or modulation"
        raise UserError(reason, argument="condition", value=cfg.condition, beside=["dataset"])
    if cfg.truncation and cfg.net.value.g.mapping:
        reason = (
            f"the styles of attributes have no mean; `dataset={cfg.dataset}` has such, must be 0"
        )
        raise UserError(reason, argument="truncation", value=cfg.truncation, beside=["dataset"])
    if cfg.canaries.value.count:
        reason = f"have no attributes; `dataset={cfg.dataset}` has, must be empty"
        raise UserError(reason, argument="canaries", value=cfg.canaries, beside=["dataset"])


def choose_sampling(
    cfg: Config, g_net: Net, classes: int, dtype: Any
) -> tuple[Net | None, Callable[..., Any] | None]:
    """What draws samples in the place of G and of its latents: of a mapping the styles are truncated, else z."""
    drawn = cfg.latents.value
    if not cfg.truncation:
        return None, None
    if cfg.net.value.g.mapping:
        return truncated(g_net, cfg.truncation, drawn.draw(dtype), classes=classes), None
    return None, drawn.truncated(dtype, cfg.truncation)


def step_sizes(cfg: Config) -> optim.Pair:
    """Of both players, whose networks may have a part in them. Raises a UserError if these have no width."""
    choices = cfg.net.value
    try:
        return cfg.lr.value.at_widths(choices.g.width, choices.d.width)
    except ValueError as error:
        reason = (
            f"{error} (`net={cfg.net}`); must be without width:, or a net with a number of channels"
        )
        raise UserError(reason, argument="lr", value=cfg.lr, beside=["net"]) from None


def _optimizers(cfg: Config, steps: int) -> dict[Literal["g", "d"], optax.GradientTransformation]:
    """Adam of both players; D's then keeps its weights within the bound, if there is one."""
    rule = cfg.rule.value
    steps *= rule.counts if rule else 1
    lr = step_sizes(cfg)
    g = cfg.betas.value.adam(lr.g, steps)
    d = cfg.betas.value.adam(lr.d, steps * cfg.d_steps)
    return {"g": g, "d": cfg.penalty.value.bounded(d)}


PAIRS = 1000
"""Latents of which it is measured how far G moves them: their best assignment takes a second."""


def transport_of(algorithm: Algorithm, state: Any) -> dict[str, float]:
    """``mean |G(z) - z|^2 / n`` over ``PAIRS`` latents of n numbers, and the least of any map with these samples."""
    assert algorithm.latents is not None
    z = algorithm.latents(jax.random.key(0), PAIRS)
    generator, classes = algorithm.networks["generator"], algorithm.classes
    labels = (jnp.arange(PAIRS) % classes,) if classes else ()
    x = generator.apply(generator.variables(state), z, *labels)
    x, z = (np.asarray(each, np.float32).reshape(PAIRS, -1) for each in (x, z))
    n = z.shape[1]
    return {
        "transport": metrics.squared_distance(x, z) / n,
        "transport/known": metrics.assigned_distance(x, z) / n,
    }


def measuring_transport(experiment: cli.Experiment) -> cli.Experiment:
    """The experiment, at whose end it is measured, too, how far G moves its latents."""
    inner, evaluate = experiment.algorithm, experiment.evaluate

    def both(state: Any) -> dict[str, float]:
        return {**(evaluate(state) if evaluate else {}), **transport_of(inner, state)}

    return experiment._replace(evaluate=both)


def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment:
    """The GAN that ``cfg`` describes, and its data."""
    check(cfg, axis_name)
    dtype = storage_dtype(cfg.precision)
    images, held = data.load_for_training(cfg.dataset.value, bool(cfg.eval_every.value))
    if cfg.condition.value.how and images.attributes:
        _check_attributes(cfg)
    images = cfg.canaries.value.plant(images)
    if cfg.condition.value.how:
        images = data.for_conditions(images)
    g_net, d_net, classes = make_networks(cfg, images, axis_name)
    source = data.source(
        images,
        seed=cfg.seed,
        batch_size=cfg.batch_size * cfg.d_steps,
        dtype=dtype,
        feed=cfg.feed.value,
        flip=cfg.flip,
    )
    steps = cli.steps_of(cfg, source.steps_per_epoch)
    txs, planned = _optimizers(cfg, steps), cfg.augment.value
    latents = cfg.latents.value.draw(dtype)
    algorithm = gan.make(
        gan.Networks(
            g_net,
            d_net,
            latents,
            images.shape,
            dtype,
            *choose_sampling(cfg, g_net, classes, dtype),
            styles=cfg.net.value.g.mapping,
        ),  # fmt: skip
        cfg.loss.value,
        gan.Optimizers(**txs),
        penalties=cfg.penalty.value.over(steps),
        one_pass=cfg.one_pass,
        d_steps=cfg.d_steps,
        accumulate=cfg.accumulate,
        condition=cfg.condition.value.over(steps, classes, images),
        augment=planned.over(steps) if planned else None,
        ema_decay=cfg.ema.value.over(steps, cfg.batch_size, source.steps_per_epoch),
        rule=cfg.rule.value,
        axis_name=axis_name,
    )
    if images.attributes and classes:
        algorithm, classes = algorithm._replace(classes=0), 0  # a vector is no number of a class
    frame = cli.columns_of(classes, images.class_names)
    experiment = cli.Experiment(algorithm, source, title=images.summary(), frame=frame)
    experiment = monitor(experiment, cfg.dataset, held, seed=cfg.seed)
    of_their_shape = cfg.latents.value.dim == math.prod(images.shape)
    return measuring_transport(experiment) if of_their_shape else experiment


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
