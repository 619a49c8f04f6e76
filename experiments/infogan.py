"""Any model of the study of Lucic et al. 2018 on its one fixed architecture: seven GANs and a VAE.

Run:     python -m experiments.infogan --model=wgan_gp --weight=10 --d_steps=5
         python launch.py --experiment=infogan --model=ns --sweep=lr=log:1e-5:1e-2 --samples=8
Papers:  Lucic et al. 2018, arXiv:1711.10337; the networks are those of Chen et al. 2016 (InfoGAN), arXiv:1606.03657.

G: dense ``hidden``, dense to 128 channels at a quarter of the resolution, two transposed convolutions, batch norm. D:
convolutions of 64 and 128 channels, dense ``hidden``, logit. The VAE's decoder is G, its encoder D. The study's
protocol over these runs is ``experiments.lucic``.

Differences from the study's code (google/compare_gan): images are in [-1, 1], by tanh, there in [0, 1], by a sigmoid;
kernels start as He et al. 2015 has them, there with a standard deviation of 0.02; batch norm has decay 0.9 and epsilon
1e-5, there 0.999 and 1e-3, and D's is after its second convolution only, there after the dense layer, too; LSGAN is on
logits, as its paper writes, without a sigmoid before it; BEGAN's k stays in [0, 1]; the VAE has a continuous Bernoulli
likelihood and draws its mean images, where the study's code puts gray pixels under Bernoulli cross-entropy.
"""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import optax

from bpgan import cli, data, optim
from bpgan.algorithms import gan, vae
from bpgan.evaluation import monitor
from bpgan.losses import LOSSES, began
from bpgan.nets import dcgan, energy, linen_net, storage_dtype
from bpgan.nets.vae import Encoder
from bpgan.penalties import PENALTIES, Regularizer, regularizer, weighted
from bpgan.privacy.canaries import Canaries
from bpgan.types import AdversarialLoss, Algorithm, Net, UserError

if TYPE_CHECKING:
    from bpgan.evaluation.table import Metric


class Model(NamedTuple):
    """One row of the study.

    Attributes:
      loss: None of the VAE, which has no D.
      penalty: on D.
      flags: those that only this model, and others that have them, make use of.
    """

    loss: AdversarialLoss | None = None
    penalty: Regularizer | None = None
    flags: tuple[str, ...] = ()

    @property
    def takes_norm(self) -> bool:
        """Whether D may have batch norm: one that is no autoencoder, and whose examples pass by themselves nowhere."""
        if not self.loss or self.loss.energy:
            return False
        return not (self.penalty and self.penalty.each_example)


MODELS = {
    "mm": Model(LOSSES["minimax"]),
    "ns": Model(LOSSES["nonsaturating"]),
    "lsgan": Model(LOSSES["least_squares"]),
    "wgan": Model(LOSSES["wasserstein"], flags=("clip",)),
    "wgan_gp": Model(LOSSES["wasserstein"], regularizer(PENALTIES["wgan_gp"]), ("weight",)),
    "dragan": Model(LOSSES["nonsaturating"], regularizer(PENALTIES["dragan"]), ("weight",)),
    "began": Model(LOSSES["began"], flags=("k_step", "balance")),
    "vae": Model(),
}
"""The models by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    dataset: cli.Parsed[data.Name] = cli.field(
        "mnist10k", data.forms, parse=data.parse, locates_data=True
    )
    model: str = cli.field("ns", "what is trained", choices=MODELS)
    lr: float = cli.field(2e-4, "Adam step size", low=0, exclusive_low=True, sweepable=True)
    b1: float = cli.field(
        0.5, "Adam's decay of the mean gradient", low=0, high=0.99999, sweepable=True
    )
    weight: float = cli.field(10.0, "of the penalty of wgan_gp and dragan", low=0, sweepable=True)
    clip: float = cli.field(
        0.01, "bound of D's parameters in wgan", low=0, exclusive_low=True, sweepable=True
    )
    k_step: float = cli.field(1e-3, "step of k in began", low=0, sweepable=True)
    balance: float = cli.field(0.75, "gamma of began", low=0, high=1, sweepable=True)
    d_steps: int = cli.field(1, "updates of D per update of G", low=1)
    d_norm: bool = cli.field(False, "batch norm in D")
    channels: int = cli.field(
        64, "of the convolutions next to the image; the others have twice as many", low=1
    )
    hidden: int = cli.field(1024, "units of the dense layers of G and D", low=1)
    metrics: cli.Parsed["dict[str, Metric]"] = cli.field(
        "fd,kd,prdc",
        "of the evaluations while it trains, separated by commas",
        parse=monitor.parse,
        restart_safe=True,
    )
    latents: int = cli.field(64, "dimension of z, uniform in [-1, 1]", low=1)
    canaries: cli.Parsed[Canaries] = cli.field("", Canaries.forms, parse=Canaries.parse)
    precision: str = cli.NETWORK_PRECISION
    epochs: float = cli.field(20.0)
    batch_size: int = cli.field(64, "examples per update of D, over all devices")
    log_every: str = cli.field("1ep")
    sample_every: str = cli.field("5ep")
    checkpoint_every: str = cli.field("5ep")

    def idle(self) -> dict[str, str]:
        special = {name for model in MODELS.values() for name in model.flags}
        return dict.fromkeys(sorted(special - set(MODELS[self.model].flags)), "model")


PRESETS = {
    "smoke": dict(
        hidden=8, latents=4, batch_size=8, steps=4, log_every="2", sample_every="4", checkpoint_every="4",
    ),
}  # fmt: skip


def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment:
    """The model that ``cfg`` describes, and its data."""
    images, held = data.load_for_training(cfg.dataset.value, bool(cfg.eval_every.value))
    images = cfg.canaries.value.plant(images)
    _check(cfg, images)
    source = data.source(
        images,
        seed=cfg.seed,
        batch_size=cfg.batch_size * cfg.d_steps,
        dtype=storage_dtype(cfg.precision),
        feed=cfg.feed.value,
    )
    make = _gan if MODELS[cfg.model].loss else _vae
    algorithm = make(cfg, images.shape, axis_name)
    frame = cli.columns_of(algorithm.classes, images.class_names)
    experiment = cli.Experiment(algorithm, source, title=images.summary(), frame=frame)
    return monitor.monitor(experiment, cfg.dataset, held, cfg.metrics.value, seed=cfg.seed)


def _check(cfg: Config, images: data.Dataset) -> None:
    """Raises UserError for images that do not fit, and for flags that do not go with the model."""
    height, width, _ = images.shape
    if height % 4 or width % 4:
        raise UserError(
            f"images are {height}x{width}; height and width must be multiples of 4",
            argument="dataset",
            value=cfg.dataset,
        )
    model = MODELS[cfg.model]
    if not model.loss and (cfg.d_steps > 1 or cfg.d_norm):
        raise UserError(
            "has no D; `d_steps` must be 1 and `d_norm` false",
            argument="model",
            value=cfg.model,
            beside=["d_steps", "d_norm"],
        )
    if cfg.d_norm and model.penalty and not model.takes_norm:
        raise UserError(
            f"`model={cfg.model}` penalizes the gradient of each example by itself; must be false",
            argument="d_norm",
            beside=["model"],
        )


def _decoder(cfg: Config, shape: tuple[int, int, int], axis_name: str | None) -> Net:
    """G, or the VAE's decoder, whose outputs are logits of a likelihood."""
    module = dcgan.Generator(
        shape,
        (2 * cfg.channels, cfg.channels),
        hidden=cfg.hidden,
        linear=not MODELS[cfg.model].loss,
        axis_name=axis_name,
        dtype=jnp.dtype(cfg.precision),
    )
    return linen_net(module)


def _vae(cfg: Config, shape: tuple[int, int, int], axis_name: str | None) -> Algorithm:
    dtype, widths = jnp.dtype(cfg.precision), (cfg.channels, 2 * cfg.channels)
    encoder = linen_net(Encoder(cfg.latents, widths, (cfg.hidden,), dtype=dtype))
    decoder = _decoder(cfg, shape, axis_name)
    return vae.make(
        vae.Model(encoder, decoder, vae.LIKELIHOODS["continuous-bernoulli"]),
        optax.adam(cfg.lr, b1=cfg.b1, b2=0.999),
        latents=cfg.latents,
        data_shape=shape,
        dtype=storage_dtype(dtype),
        axis_name=axis_name,
    )


def _gan(cfg: Config, shape: tuple[int, int, int], axis_name: str | None) -> Algorithm:
    model, widths = MODELS[cfg.model], (cfg.channels, 2 * cfg.channels)
    dtype = jnp.dtype(cfg.precision)
    loss = model.loss
    assert loss is not None  # else it is the VAE
    if loss.energy:
        loss = began(cfg.balance, cfg.k_step)
        d = energy(linen_net(dcgan.Autoencoder(widths, code=cfg.latents, dtype=dtype)))
    else:
        module = dcgan.Discriminator(
            widths, hidden=cfg.hidden, norm=cfg.d_norm, axis_name=axis_name, dtype=dtype
        )
        d = linen_net(module)
    g_tx, d_tx = (optax.adam(cfg.lr, b1=cfg.b1, b2=0.999) for _ in range(2))
    if "clip" in model.flags:
        d_tx = optax.chain(d_tx, optim.clip_weights(cfg.clip))
    latents = gan.uniform_latents(cfg.latents, storage_dtype(dtype))
    networks = gan.Networks(
        _decoder(cfg, shape, axis_name), d, latents, shape, storage_dtype(dtype)
    )
    return gan.make(
        networks,
        loss,
        gan.Optimizers(g_tx, d_tx),
        penalties=[weighted(cfg.weight, model.penalty)] if model.penalty else [],
        d_steps=cfg.d_steps,
        axis_name=axis_name,
    )


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
