"""DP-MERF: a generator fitted to one private release, the cheap competitor of a private GAN.

Run:     python -m experiments.dp_merf --preset=smoke
             eight steps, to see that it works
         python -m experiments.dp_merf --epsilon=1
             the embedded 10,000 digits at epsilon = 1
         python -m experiments.dp_merf --preset=fashion --epsilon=10
             FASHION, being idx:/usr/share/datasets/fashion-mnist
         python -m experiments.evaluate --run=runs/dp_merf/default --metrics=fd,cas
             how good its samples are; numbers that compare with records are not accounted for
Presets: fashion    five minutes on one core. Measured, three seeds: FD 96.5 +- 26 in features of a classifier, and a
                    classifier trained on samples is right on 73.0 +- 0.8 % of the test images at epsilon = 10; 117 +-
                    51 and 72.2 +- 2.4 % at epsilon = 1.
Papers:  Harder, Adamczewski & Park 2021, arXiv:2002.11603.

The records are seen once: the mean of random features of them, by label, is released with noise (the Gaussian
mechanism). G is fitted to that alone, so more steps spend nothing. --bandwidth is the paper's for digits in [0, 1],
square root of 105, doubled for pixels in [-1, 1]; it and the other flags are taken to be chosen without the records.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from bpgan import cli, data, optim
from bpgan.algorithms import gan
from bpgan.algorithms.latents import Latents
from bpgan.nets import architecture, storage_dtype
from bpgan.privacy import accounting, merf
from bpgan.runtime import distributed, records, secret
from bpgan.types import Algorithm, Source, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    dataset: cli.Parsed[data.Name] = cli.field(
        "mnist10k", data.forms, parse=data.parse, locates_data=True
    )
    epsilon: float = cli.field(1.0, "what the release may cost at most", low=0, exclusive_low=True)
    delta: float = cli.DELTA
    features: int = cli.field(2000, "random features of a record, an even number", low=2)
    bandwidth: float = cli.field(
        20.5, "of the kernel, for pixels in [-1, 1]", low=0, exclusive_low=True
    )
    labels: bool = cli.field(True, "whether G draws by label")
    seed: int = cli.field(0, sweepable=False)  # each run has a key of its own
    net: cli.Parsed[architecture.Choices] = cli.field(
        "dcgan:32,plain", "G, with a width :N and options", choices=architecture.forms,
        parse=architecture.parse,
    )  # fmt: skip
    latents: cli.Parsed[Latents] = cli.field(
        "normal:64", "distribution of z and its dimension", parse=Latents.parse
    )
    lr: float = cli.field(1e-2, "Adam step size", low=0, exclusive_low=True)
    precision: str = cli.NETWORK_PRECISION
    secret_seed: int = cli.SECRET_SEED
    batch_size: int = cli.field(250, "samples in an update of G")
    epochs: float = cli.field(50.0)
    sample_every: str = cli.field("5ep")
    checkpoint_every: str = cli.field("5ep")


PRESETS = {
    "fashion": dict(dataset="idx:/usr/share/datasets/fashion-mnist", epochs=25.0, bandwidth=22.5),
    "smoke": dict(
        net="mlp", latents="normal:8", features=20, batch_size=40, steps=8,
        log_every="2", sample_every="4", checkpoint_every="4",
    ),
}  # fmt: skip


class _Release:
    """The release of a run: its noise is fixed at the first start, and what is released is the same ever after."""

    def __init__(self, cfg: Config, images: data.Dataset, classes: int, networks: gan.Networks):
        self._cfg, self._images, self._classes, self._networks = cfg, images, classes, networks
        self._terms: records.Terms | None = None

    @functools.cached_property
    def _frequencies(self) -> np.ndarray:
        cfg, pixels = self._cfg, int(np.prod(self._images.shape))
        return merf.draw_frequencies(cfg.seed, cfg.features, pixels, cfg.bandwidth)

    def algorithm(self, embedding: np.ndarray | None = None) -> Algorithm:
        """G, fitted to an embedding; without one it draws and does not train."""
        cfg = self._cfg
        if embedding is None:
            embedding = np.zeros((self._classes or 1, cfg.features), np.float32)
        return merf.make(
            self._networks,
            optim.adam(cfg.lr),
            merf.Released(jnp.asarray(self._frequencies), jnp.asarray(embedding)),
            classes=self._classes,
            ema_decay=0.99,
        )

    def settle(self, path: pathlib.Path) -> tuple[Algorithm, Source]:
        """What is trained in a run directory: the records are seen here, and nowhere else."""
        cfg, images = self._cfg, self._images
        self._terms = terms = self._fix(path)
        accounting.check(self._mechanism(terms), terms.length)
        words = secret.words_of(path, cfg.secret_seed)
        summed = merf.total(merf.blocks_of(images), self._frequencies, self._classes or 1)
        embedding = merf.release(summed, terms.length, terms.noise_multiplier, words)
        if distributed.is_lead():
            kept = (
                "" if terms.guarantee else "; warning: its key is known, so it guarantees nothing"
            )
            print(
                f"one release with noise_multiplier={terms.noise_multiplier:g}: epsilon is at most {cfg.epsilon:g}"
                f" ({accounting.ADJACENCY}) at delta={terms.delta:g}{kept}",
                flush=True,
            )
        return self.algorithm(embedding), merf.source(images, cfg.batch_size)

    def _fix(self, path: pathlib.Path) -> records.Terms:
        cfg, images = self._cfg, self._images
        known = records.read_terms(path / secret.TERMS)
        noise = known.noise_multiplier if known else self._least()
        terms = records.Terms(
            sampling=merf.MECHANISM.sampling,
            q=merf.MECHANISM.q,
            rows=images.length,
            noise_multiplier=noise,
            clip=merf.MECHANISM.clip,
            delta=cfg.delta,
            epsilon=cfg.epsilon,
            length=images.length,
            data=images.sha256,
            guarantee=cfg.secret_seed < 0,
        )
        return secret.fix_terms(path, terms, records.fields(terms))

    def _least(self) -> float:
        noise = accounting.calibrate(self._cfg.epsilon, self._cfg.delta, merf.MECHANISM.q, 1)
        return float(distributed.agree(np.array([noise], np.float64))[0, 0])

    def _mechanism(self, terms: records.Terms) -> accounting.Mechanism:
        return merf.MECHANISM._replace(noise_multiplier=terms.noise_multiplier, delta=terms.delta)

    def spent(self, state: Any) -> dict[str, Any]:
        """What was spent, for ``result.json``: one release, however long G has trained."""
        del state
        assert self._terms
        return accounting.record(
            self._mechanism(self._terms),
            1,
            expected_batch=float(self._terms.length),
            rows=self._terms.rows,
            guarantee=self._terms.guarantee,
        )


def _check(cfg: Config, axis_name: str | None) -> None:
    """Raises a UserError for flags that do not go together."""
    if cfg.features % 2:
        raise UserError(
            "must be even: a cosine and a sine", argument="features", value=cfg.features
        )
    if axis_name:
        raise UserError("must be jit", argument="parallel", value=cfg.parallel)
    if cfg.init_from:
        reason = "what the other run has learned from records is not accounted for; must be empty"
        raise UserError(reason, argument="init_from", value=cfg.init_from)


def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment:
    """DP-MERF as ``cfg`` describes it, and its data; the noise and the key are those of the run directory."""
    accounting.need()
    _check(cfg, axis_name)
    images, dtype = data.load(cfg.dataset.value), storage_dtype(cfg.precision)
    classes = images.classes if cfg.labels and images.classes > 1 else 0
    if cfg.batch_size % max(classes, 1):
        reason = f"must be a multiple of the {classes} classes, which have equal shares"
        raise UserError(reason, argument="batch_size", value=cfg.batch_size, beside=["labels"])
    how = "concat" if classes else ""
    made = cfg.net.value.g.make(
        images.shape, dtype=jnp.dtype(cfg.precision), classes=classes, condition=how, axis_name=None
    )
    latents = cfg.latents.value.draw(dtype)
    styles = cfg.net.value.g.mapping
    networks = gan.Networks(made, made, latents, images.shape, dtype, styles=styles)
    whole = _Release(cfg, images, classes, networks)
    return cli.Experiment(
        whole.algorithm(),
        merf.source(images, cfg.batch_size),
        title=images.outline(),
        frame=cli.columns_of(classes, images.class_names),
        settle=whole.settle,
        spent=whole.spent,
    )


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
