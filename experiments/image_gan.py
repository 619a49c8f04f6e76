"""GANs of every kind on any dataset of images, with the recipes of the literature as presets.

Run:     python -m experiments.image_gan
             lite28's recipe on MNIST digits, on a CPU
         python -m experiments.image_gan --dataset=idx:/usr/share/datasets/fashion-mnist --preset=lite28
         python -m experiments.image_gan --dataset=tfds:cifar10 --preset=sngan-32
         python -m experiments.image_gan --dataset=tfds:cifar10 --preset=biggan-32
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
         r3-28      FASHION. R3GAN for 28 gray pixels, schedules over a tenth of the run. For a GPU; not measured.
         r3-32      tfds:cifar10. R3GAN: gamma 0.05 to 0.005, Adam (0, 0.9 to 0.99), 2e-4 to 5e-5, over 20 of 200
                    million images. The paper's stages have 768 channels each, these 256, 256, 192 and 128, and its
                    augmentation is stronger; its FID is 1.96. For a GPU; not measured.
         r3-64      folder:PATH,size=64, such as FFHQ. R3GAN: gamma 2 to 0.2, average over 0.5 million images. The
                    paper's networks are wider; its FID is 1.95. For a GPU; not measured.
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
         arXiv:2005.02494 (mimicry); Kang et al. 2023, arXiv:2206.09479 (StudioGAN).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bpgan import cli, data, optim
from bpgan.algorithms import game, gan
from bpgan.augment import Augment, policy
from bpgan.evaluation.monitor import monitor
from bpgan.losses import AUXILIARY, LOSSES, balances_at_zero
from bpgan.nets import (
    biggan,
    cnn,
    dcgan,
    energy,
    labeled,
    linen_net,
    mlp,
    r3gan,
    resnet,
    stylegan2,
    truncated,
)
from bpgan.penalties import G_PENALTIES, PENALTIES
from bpgan.types import Net, UserError

from .mnist_gan import images_of, latents_of

NETS = {
    "mlp": 0,
    "dcgan": 64,
    "lite": 24,
    "cnn": 0,
    "sngan": 0,
    "biggan": 64,
    "r3gan": 2,
    "stylegan2": 0,
    "autoencoder": 64,
}
"""Architectures, and the number that may follow each as in ``biggan:96``: channels (of ``r3gan``: blocks in a stage);
0 where there is none."""
_OPTIONS = {
    "attention": {"sngan": "gd", "biggan": "gd"},
    "spectral": {"cnn": "d", "sngan": "g"},
    "norm": {"dcgan": "g", "lite": "g"},
}
"""What may follow after commas: of which architectures, and for which player it changes anything."""


class Architecture(NamedTuple):
    """A network as ``--net`` names it: ``biggan:96,attention=16``."""

    kind: str
    size: int
    attention: int = 0
    spectral: bool = False
    norm: bool = False


def _architecture(text: str) -> Architecture:
    name, *options = text.split(",")
    kind, colon, size = name.partition(":")
    if kind not in NETS or (colon and not (NETS[kind] and size.isdecimal() and int(size) > 0)):
        names = ", ".join(f"{name}:N" if default else name for name, default in NETS.items())
        raise ValueError(f"must be one of {names}; for D another one after a slash")
    found = Architecture(kind, int(size or NETS[kind]))
    for option in options:
        key, equals, value = option.partition("=")
        sized = key == "attention"
        if kind not in _OPTIONS.get(key, ()) or not (value.isdecimal() if sized else not equals):
            raise ValueError(
                f"{option!r}: the options are attention=SIZE (sngan, biggan), spectral (cnn, sngan) and norm"
                " (dcgan, lite: labels enter G's batch norms)"
            )
        found = found._replace(**{key: int(value) if sized else True})
    return found


def _pair(text: str, parse: Callable) -> tuple[Any, Any]:
    """``FOR_G/FOR_D``, or one for both."""
    g, slash, d = text.partition("/")
    return parse(g), parse(d) if slash else parse(g)


def _nets(text: str) -> tuple[Architecture, Architecture]:
    return _pair(text, _architecture)


_positive = functools.partial(optim.schedule, low=0.0)
_decay = functools.partial(optim.schedule, low=0.0, high=0.99999)
_probability = functools.partial(optim.schedule, low=0.0, high=1.0)


def _condition(text: str) -> tuple[str, str]:
    """Head of D and weight of its loss."""
    head, equals, weight = text.partition("=")
    if head not in ("none", "concat", "projection", *AUXILIARY) or (
        equals and head not in AUXILIARY
    ):
        raise ValueError(
            f"must be none, concat, projection, or one of {', '.join(AUXILIARY)} with =WEIGHT"
        )
    _positive(weight or "1")
    return head, weight or "1"


class Term(NamedTuple):
    """``[g.]NAME[=WEIGHT][/EVERY]``."""

    player: str
    name: str
    weight: str
    every: int


_CLIP = "clip"
_OF_ONE_EXAMPLE = {
    "d": ("r1", "r2", "wgan_gp", "wgan_lp", "zero_gp", "dragan"),
    "g": ("path_length",),
}
"""By player: penalties that differentiate the network at each example as if there were no others."""
_BATCH_NORM = {"d": ("cnn",), "g": ("dcgan", "lite", "cnn", "sngan", "biggan")}
"""By player: networks whose batch norm mixes examples."""
_KERNELS = {"r3gan": "grouped", "stylegan2": "scaled where they are used"}
"""Networks whose kernels are not the matrices that ``orthogonal`` takes them for, and what they are."""


def _penalties(text: str) -> list[Term]:
    terms = []
    for term in text.split("+") if text != "none" else []:
        body, slash, every = term.partition("/")
        name, _, weight = body.partition("=")
        player, name = ("g", name[2:]) if name.startswith("g.") else ("d", name)
        if name not in (G_PENALTIES if player == "g" else (*PENALTIES, _CLIP)):
            allowed = [*PENALTIES, _CLIP, *(f"g.{name}" for name in G_PENALTIES)]
            raise ValueError(
                f"{term!r} is not a penalty; must be none or a sum of {', '.join(allowed)}"
            )
        weight = weight or ("0.01" if name == _CLIP else "1")
        value = _positive(weight)
        if name == _CLIP and (callable(value) or value == 0 or slash):
            raise ValueError(f"{term!r}: must be clip=BOUND, a number > 0; every update is clipped")
        if slash and not (every.isdecimal() and int(every)):
            raise ValueError(f"{term!r}: the interval after / must be a positive whole number")
        terms.append(Term(player, name, weight, int(every or 1)))
    return terms


def _betas(text: str) -> tuple[str, str, float]:
    """Adam's decays and its epsilon."""
    b1, b2, *eps = text.split(",") if "," in text else ("", "")
    try:
        for decay in (b1, b2):
            _decay(decay)
        (number,) = map(float, eps or ["1e-8"])
        if not 0 < number < 1:
            raise ValueError
    except ValueError:
        raise ValueError(
            "must be two decays in [0, 0.99999], numbers or schedules, and perhaps an epsilon: 0.5,0.99,1e-8"
        ) from None
    return b1, b2, number


def _augment(text: str) -> tuple[Any, str, float | None]:
    """``POLICY[@P]``: the augmentation or None, its probability, and the target of an adaptive one."""
    if text == "none":
        return None, "0", None
    names, _, p = text.partition("@")
    kind, _, target = p.partition(":")
    if kind != "ada":
        _probability(p or "1")
        return policy(names), p or "1", None
    try:
        wanted = float(target or 0.6)
    except ValueError:
        wanted = math.nan
    if not -1 <= wanted <= 1:
        raise ValueError(f"{p!r}: the TARGET of ada:TARGET must be a number in [-1, 1]")
    return policy(names), "0", wanted


_SCALAR = "a number or a schedule such as cosine:2e-4:5e-5"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    dataset: str = cli.field("mnist10k", data.FORMS, locates_data=True)
    flip: bool = cli.field(False, "mirror images left to right with probability 1/2")
    net: str = cli.field("lite:24", f"G, or G/D: {', '.join(NETS)}, with :N a width", check=_nets)
    latents: str = cli.field(
        "normal:64",
        "distribution of z and its dimension: normal:DIM or uniform:DIM",
        check=latents_of,
    )
    condition: str = cli.field(
        "none",
        "on labels: none, or how D does it: concat, projection, acgan=WEIGHT, d2d=WEIGHT",
        check=_condition,
    )
    loss: str = cli.field("relativistic", "adversarial loss", choices=LOSSES)
    penalty: str = cli.field(
        "r1=0.3/4+r2=0.3/4",
        "none, or a sum of NAME=WEIGHT/EVERY; for G g.NAME; clip=BOUND clips D's weights",
        check=_penalties,
    )
    lr: str = cli.field(
        "cosine:1e-3:5e-5",
        f"Adam's step size, or G's/D's: {_SCALAR}",
        check=lambda text: _pair(text, _positive),
    )
    betas: str = cli.field(
        "0.5,0.99", f"Adam's two decays: {_SCALAR}; and its epsilon", check=_betas
    )
    d_steps: int = cli.field(1, "updates of D per update of G", low=1)
    accumulate: int = cli.field(1, "micro-batches of an update, for memory", low=1)
    rule: str = cli.field(
        "none",
        f"update rule of the game: {game.RULE_FORMS}; none: alternating",
        check=game.rule_of,
    )
    augment: str = cli.field(
        "none",
        "of what D sees: none or POLICY@P; P a number, a schedule or ada:TARGET",
        check=_augment,
    )
    ema: str = cli.field(
        "2e4",
        "half-life in images of the average of G that draws, a number at most 5 % of the images seen so far,"
        " a schedule as it is; 0: none",
        check=_positive,
    )
    truncation: float = cli.field(
        0.0, "of samples: psi of stylegan2, else the bound on |z| of normal latents; 0: none", low=0,
        restart_safe=True,
    )  # fmt: skip
    epochs: float = cli.field(40.0)
    batch_size: int = cli.field(64, "examples per update of D, over all devices")
    precision: str = cli.field(
        "float32",
        "arithmetic of the networks; with bfloat16 parameters are float32, and so are means of losses and penalties",
        choices=("float32", "bfloat16", "float64"),
    )
    log_every: str = cli.field("1ep")
    sample_every: str = cli.field("2ep")
    checkpoint_every: str = cli.field("5ep")


_CIFAR = dict(
    loss="hinge", penalty="none", batch_size=64, log_every="1ep", sample_every="20ep", checkpoint_every="20ep",
)  # fmt: skip

PRESETS = {
    "lite28": dict(
        epochs=7.0,
        log_every="0.25ep",
        sample_every="1ep",
        checkpoint_every="1ep",
    ),
    "plain28": dict(
        lr="3e-4",
        penalty="none",
        loss="nonsaturating",
        epochs=7.0,
        log_every="0.25ep",
        sample_every="1ep",
        checkpoint_every="1ep",
    ),
    "cgan28": dict(
        condition="projection",
        epochs=7.0,
        log_every="0.25ep",
        sample_every="1ep",
        checkpoint_every="1ep",
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


def _levels(shape: tuple[int, int, int]) -> int:
    """How often the height is halved down to 4 to 7 pixels; once at least."""
    return max((shape[0] // 4).bit_length() - 1, 1)


def _generator(
    net: Architecture, shape: tuple[int, int, int], axis_name: str | None, **common: Any
) -> Net:
    kind, size, attention, spectral, norm = net
    if kind == "mlp":
        return linen_net(mlp.Generator(shape, **common))
    if kind in ("r3gan", "stylegan2"):
        module = r3gan.Generator(shape, blocks=size, **common)
        return linen_net(module if kind == "r3gan" else stylegan2.Generator(shape, **common))
    common["axis_name"] = axis_name
    if kind == "cnn":
        return linen_net(cnn.Generator(shape, **common))
    if kind == "sngan":
        return linen_net(resnet.Generator(shape, attention=attention, spectral=spectral, **common))
    if kind == "biggan":
        hierarchical = common["classes"] > 0
        module = biggan.Generator(
            shape, size, hierarchical=hierarchical, attention=attention, **common
        )
        return linen_net(module)
    widths = tuple(size << i for i in range(_levels(shape) + (kind == "lite")))[::-1]
    options: Any = dict(upsample="resize", output_gain=0.5) if kind == "lite" else {}
    options["conditioning"] = "norm" if norm else "concat"
    return linen_net(dcgan.Generator(shape, widths, **options, **common))


def _discriminator(
    net: Architecture, shape: tuple[int, int, int], axis_name: str | None, **common: Any
) -> Net:
    kind, size, attention, spectral, _ = net
    if common["head"] == "concat":
        unconditional = common | {"classes": 0, "head": "projection"}
        inner = _discriminator(net, shape, axis_name, **unconditional)
        return labeled(inner, common["classes"])
    if kind == "autoencoder":
        widths = (size, 2 * size)
        return energy(linen_net(dcgan.Autoencoder(widths, dtype=common["dtype"])))
    if kind == "lite":
        widths = (2 * size, 4 * size)
        module: Any = dcgan.Discriminator(widths, full_resolution=size, hidden=128, **common)
    elif kind == "dcgan":
        module = dcgan.Discriminator(tuple(size << i for i in range(_levels(shape))), **common)
    elif kind == "cnn":
        module = cnn.Discriminator(spectral=spectral, axis_name=axis_name, **common)
    elif kind == "sngan":
        module = resnet.Discriminator(attention=attention, **common)
    elif kind == "biggan":
        module = biggan.Discriminator(size, attention=attention, **common)
    elif kind == "r3gan":
        module = r3gan.Discriminator(blocks=size, **common)
    else:
        module = {"mlp": mlp, "stylegan2": stylegan2}[kind].Discriminator(**common)
    return linen_net(module)


def _networks(
    cfg: Config, shape: tuple[int, int, int], classes: int, axis_name: str | None
) -> tuple[Net, Net]:
    """Both players, of which it is known that they take such images.

    Raises:
      UserError: if they do not, or do not go with the loss or the condition.
    """
    for_g, for_d = _nets(cfg.net)
    head, _ = _condition(cfg.condition)
    if (cfg.loss == "began") != (for_d.kind == "autoencoder"):
        raise UserError(
            "began and an autoencoder as D (--net=dcgan/autoencoder) need each other",
            argument="loss",
            value=cfg.loss,
            beside=["net"],
        )
    if for_g.kind == "autoencoder":
        raise UserError(
            "an autoencoder can be D only, as in dcgan/autoencoder", argument="net", value=cfg.net
        )
    if classes and for_d.kind == "autoencoder":
        raise UserError(
            "an autoencoder takes no labels; must be none",
            argument="condition",
            value=cfg.condition,
        )
    common: Any = dict(classes=classes, dtype=jnp.dtype(cfg.precision))
    g = _generator(for_g, shape, axis_name, **common)
    d = _discriminator(for_d, shape, axis_name, head=head if classes else "projection", **common)
    labels = (jnp.zeros(1, jnp.int32),) if classes else ()
    for net, example in ((g, (1, latents_of(cfg.latents)[1])), (d, (1, *shape))):
        try:
            jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(example), *labels)
        except ValueError as error:
            where = f"images of --dataset={cfg.dataset} are {shape[0]}x{shape[1]}"
            raise UserError(f"{error} ({where})", argument="net", value=cfg.net) from None
    return g, d


def _check(cfg: Config, axis_name: str | None) -> None:
    """Raises UserError for flags that do not go with each other."""
    for_g, for_d = _nets(cfg.net)
    terms = _penalties(cfg.penalty)
    players = {"g": for_g, "d": for_d}
    # Without a slash an option is for the player that has a use for it.
    for player, net in players.items() if "/" in cfg.net else ():
        for option, users in _OPTIONS.items():
            if getattr(net, option) and player not in users[net.kind]:
                raise UserError(
                    f"{option} has no part in {net.kind} as {player.upper()}; must be without",
                    argument="net",
                    value=cfg.net,
                )
    if for_g.norm and cfg.condition == "none":
        heads = ", ".join(("concat", "projection", *AUXILIARY))
        raise UserError(
            f"norm has no part in --condition=none; must be one of {heads}",
            argument="net",
            value=cfg.net,
            beside=["condition"],
        )
    _check_batches(cfg, axis_name)
    if _augment(cfg.augment)[2] is not None and not balances_at_zero(LOSSES[cfg.loss]):
        allowed = ", ".join(name for name, loss in LOSSES.items() if balances_at_zero(loss))
        raise UserError(
            "ada goes by the sign of D's logits, which means nothing with"
            f" --loss={cfg.loss}; must be one of {allowed}",
            argument="augment",
            value=cfg.augment,
            beside=["loss"],
        )
    _check_penalties(cfg, players, terms)


def _check_batches(cfg: Config, axis_name: str | None) -> None:
    """Raises a UserError for a batch that cannot be split, or is split where the rule or the devices allow none."""
    if cfg.batch_size % cfg.accumulate:
        raise UserError(
            f"must divide --batch_size={cfg.batch_size}",
            argument="accumulate",
            value=cfg.accumulate,
            beside=["batch_size"],
        )
    devices = jax.device_count() if axis_name else 1
    # A step of fewer rows than devices runs on one of them.
    if cfg.batch_size * cfg.d_steps >= devices and cfg.batch_size % (cfg.accumulate * devices):
        raise UserError(
            f"must be a multiple of --accumulate={cfg.accumulate} times the"
            f" {devices} devices of --parallel=pmap",
            argument="batch_size",
            value=cfg.batch_size,
            beside=["accumulate", "parallel"],
        )
    if cfg.rule != "none":
        for name in ("d_steps", "accumulate"):
            if getattr(cfg, name) > 1:
                reason, value = f"must be 1 with --rule={cfg.rule}", getattr(cfg, name)
                raise UserError(reason, argument=name, value=value, beside=["rule"])
        if axis_name:
            raise UserError(
                f"must be jit with --rule={cfg.rule}",
                argument="parallel",
                value="pmap",
                beside=["rule"],
            )


def _check_penalties(
    cfg: Config, players: Mapping[str, Architecture], terms: Sequence[Any]
) -> None:
    """Raises a UserError for a penalty that the networks or the rule do not allow."""
    for player, name, _, _ in terms:
        net, blamed = players[player], dict(argument="penalty", value="g." * (player == "g") + name)
        if name == _CLIP and cfg.rule == "optimistic":
            raise UserError(
                "the steps of --rule=optimistic go beyond the bound; another rule keeps it",
                **blamed,
                beside=["rule"],
            )
        if name == "path_length_w" and players["g"].kind != "stylegan2":
            reason = f"--net={players['g'].kind} has no mapping, stylegan2 has"
            raise UserError(reason, **blamed, beside=["net"])
        if name in _OF_ONE_EXAMPLE[player] and net.kind in _BATCH_NORM[player]:
            if player == "g" or not net.spectral:
                others = {"d": "cnn,spectral has none", "g": "mlp, r3gan and stylegan2 have none"}
                reason = (
                    f"needs a {player.upper()} that takes each example by itself; --net={net.kind} has"
                    f" batch norm, {others[player]}"
                )
                raise UserError(reason, **blamed, beside=["net"])
        if name == "orthogonal" and net.kind in _KERNELS:
            kernels = f"those of --net={net.kind} are {_KERNELS[net.kind]}"
            reason = f"needs kernels that are matrices; {kernels}"
            raise UserError(reason, **blamed, beside=["net"])


def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment:
    """The GAN that ``cfg`` describes, and its data."""
    _check(cfg, axis_name)
    dtype = jnp.dtype("float64" if cfg.precision == "float64" else "float32")
    images, held = images_of(cfg.dataset, cfg.eval_every)
    head, auxiliary_weight = _condition(cfg.condition)
    shape, classes = images.shape, images.classes if head != "none" else 0
    if classes == 1:
        raise UserError(
            f"--dataset={cfg.dataset} has no labels; must be none",
            argument="condition",
            value=cfg.condition,
            beside=["dataset"],
        )
    g_net, d_net = _networks(cfg, shape, classes, axis_name)
    source = data.source(
        images,
        seed=cfg.seed,
        batch_size=cfg.batch_size * cfg.d_steps,
        dtype=dtype,
        feed=cfg.feed,
        flip=cfg.flip,
    )
    steps = cli.steps_of(cfg, source.steps_per_epoch)
    rule = game.rule_of(cfg.rule)
    counts = rule.counts if rule else 1

    def scalar(text: str, updates: int = 1) -> Any:
        return optim.schedule(text, steps * updates)

    distribution, dim = latents_of(cfg.latents)
    latents = distribution(dim, dtype)
    sampler, sample_latents = None, None
    if cfg.truncation and _nets(cfg.net)[0].kind == "stylegan2":
        sampler = truncated(g_net, cfg.truncation, latents, classes=classes)
    elif cfg.truncation:
        if distribution is not gan.normal_latents:
            raise UserError(
                f"--latents={cfg.latents}, must be normal:DIM",
                argument="truncation",
                value=cfg.truncation,
                beside=["latents"],
            )
        sample_latents = gan.normal_latents(dim, dtype, cfg.truncation)

    terms = _penalties(cfg.penalty)
    tables = {"d": PENALTIES, "g": G_PENALTIES}
    penalties: dict[str, list] = {"d": [], "g": []}
    for player, name, weight, every in terms:
        if name != _CLIP:
            penalties[player].append((scalar(weight), tables[player][name], every))
    g_lr, d_lr = _pair(cfg.lr, str)
    b1, b2, eps = _betas(cfg.betas)

    def adam(lr: str, updates: int) -> optax.GradientTransformation:
        return optim.adam(*(scalar(text, updates) for text in (lr, b1, b2)), eps=eps)

    d_tx = adam(d_lr, cfg.d_steps * counts)
    for term in terms:
        if term.name == _CLIP:
            d_tx = optax.chain(d_tx, optim.clip_weights(float(term.weight)))
    apply, p, target = _augment(cfg.augment)
    half_life = scalar(cfg.ema)
    ramp = None if callable(half_life) else 0.05  # a schedule is its own
    algorithm = gan.make(
        g_net,
        d_net,
        LOSSES[cfg.loss],
        adam(g_lr, counts),
        d_tx,
        latents=latents,
        data_shape=shape,
        dtype=dtype,
        penalties=penalties["d"],
        g_penalties=penalties["g"],
        d_steps=cfg.d_steps,
        accumulate=cfg.accumulate,
        classes=classes,
        auxiliary=(scalar(auxiliary_weight), AUXILIARY[head]) if head in AUXILIARY else None,
        augment=Augment(apply, scalar(p), target) if apply else None,
        ema_decay=None if half_life == 0 else optim.half_life(half_life, cfg.batch_size, ramp),
        rule=rule,
        sampler=sampler,
        sample_latents=sample_latents,
        axis_name=axis_name,
    )
    experiment = cli.Experiment(algorithm, source, title=images.summary())
    return monitor(experiment, cfg.dataset, held)


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
