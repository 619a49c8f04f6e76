"""A variational autoencoder of images, with likelihoods that are likelihoods.

Run:     python -m experiments.vae
             digits, a density on [0, 1] for every pixel
         python -m experiments.vae --preset=burda
             digits binarized, and perceptrons of the sizes, as Burda et al. 2016 have them; not trained as theirs
         python -m experiments.evaluate --run=runs/vae/default
             by the metrics of the GANs, of what the run's --samples_of says: mean images, or draws of their pixels
Papers:  Kingma & Welling 2014, arXiv:1312.6114; Burda et al. 2016, arXiv:1509.00519; Loaiza-Ganem & Cunningham 2019,
         arXiv:1907.06845.

At its end a run says, in nats of an image, the ELBO of the test split, the ELBO and the tighter IWAE bound of its first
1000 images, and how many latents are in use. Bounds of different likelihoods, or of differently binarized pixels,
cannot be compared.

With burda, hidden units are leaky ReLUs (slope 0.2), kernels start as He's and LeCun's, and all 100 epochs, in
batches of 64, have one step size. Burda et al. have tanh units, Glorot's start, an output bias that starts at the
logits of the mean training image, Adam's epsilon at 1e-4 (here 1e-8), batches of 20, and eight stages of 3^(i-1)
epochs with step sizes from 1e-3 to 1e-4.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bpgan import cli, data
from bpgan.algorithms import turns, vae
from bpgan.evaluation.monitor import monitor
from bpgan.nets import dcgan, linen_net, mlp, storage_dtype
from bpgan.nets.vae import Encoder
from bpgan.runtime.images import image_grid, to_bytes
from bpgan.types import UserError, stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    dataset: cli.Parsed[data.Name] = cli.field(
        "mnist10k", data.forms, parse=data.parse, locates_data=True
    )
    likelihood: str = cli.field("continuous-bernoulli", "of a pixel", choices=vae.LIKELIHOODS)
    net: str = cli.field("conv", "encoder and decoder", choices=("conv", "mlp"))
    latents: int = cli.field(50, "dimension of z", low=1)
    hidden: int = cli.field(200, "units of the dense layers", low=1)
    lr: float = cli.field(1e-3, "Adam step size", low=0, exclusive_low=True, sweepable=True)
    beta: float = cli.field(1.0, "weight of the KL; 1 is the ELBO", low=0, sweepable=True)
    samples_of: str = cli.field(
        "mean",
        "what is drawn: the mean image of the decoder, or a draw of its pixels",
        choices=("mean", "draw"),
        restart_safe=True,
    )
    truncation: float = cli.field(
        0.0, "of samples: bound on each number of z; 0: none", low=0, restart_safe=True
    )
    bound: int = cli.field(
        50, "samples of the IWAE bound at the end; 0: none", low=0, restart_safe=True
    )
    precision: str = cli.NETWORK_PRECISION
    epochs: float = cli.field(20.0)
    batch_size: int = cli.field(64, "examples per step, over all devices")
    log_every: str = cli.field("1ep")
    sample_every: str = cli.field("2ep")
    checkpoint_every: str = cli.field("5ep")


PRESETS = {
    "burda": dict(net="mlp", likelihood="bernoulli", epochs=100.0, sample_every="10ep"),
    "smoke": dict(
        net="mlp", hidden=8, latents=4, batch_size=16, steps=8, bound=2,
        log_every="2", sample_every="4", checkpoint_every="4",
    ),
}  # fmt: skip

_CHUNK = 500
_IMAGES = 1000
_SHOWN = 40  # images beside their reconstructions


def networks(
    net: str, shape: tuple[int, int, int], latents: int, hidden: int, dtype: Any
) -> tuple[Any, Any]:
    """Encoder and decoder."""
    if net == "mlp":
        decoder: Any = mlp.Generator(shape, (hidden, hidden), linear=True, dtype=dtype)
        encoder = Encoder(latents, (), (hidden, hidden), dtype=dtype)
    else:
        decoder = dcgan.Generator(shape, (64, 32), hidden=hidden, norm=False, linear=True, dtype=dtype)  # fmt: skip
        encoder = Encoder(latents, (32, 64), (hidden,), dtype=dtype)
    return linen_net(encoder), linen_net(decoder)


def bounds(
    model: vae.Model, state: turns.State, images: data.Dataset, k: int, dtype: Any
) -> dict[str, float]:
    """ELBO of a split, ELBO and IWAE bound with k samples of its first 1000 images, and latents in use; in nats.

    The ELBO is the IWAE bound with one sample. All are of the same pixels, where the likelihood draws them.
    """
    count, size = images.length, min(_CHUNK, images.length)
    chunks = -(-count // size)
    x, _ = images.read(np.arange(chunks * size) % count)  # whole chunks; what is twice is dropped
    x = jnp.asarray(x).reshape(chunks, size, *images.shape)
    keys = jax.random.split(stream(jax.random.key(0), "bounds"), chunks)

    def of_each(function: Callable, n: int) -> jax.Array:
        """``function(x[b, ...], key) -> [b, ...]`` of the first n images, compiled once."""

        def chunk(at: Any) -> Any:
            return function(at[0].astype(dtype) / 127.5 - 1, at[1])

        some = -(-n // size)
        found = jax.lax.map(chunk, (x[:some], keys[:some]))
        return found.reshape(some * size, *found.shape[2:])[:n]

    def bound(samples: int) -> Callable:
        return lambda x, key: vae.iwae_bound(model, state, x, key, samples)

    def means(x: Any, key: Any) -> Any:
        u = model.likelihood.observe(x, stream(key, "observe"))
        return model.encoder.apply(vae.variables(state, "encoder"), u, train=False)[0][0]

    first = min(_IMAGES, count)
    elbo = np.asarray(of_each(bound(1), count), np.float64)
    found = {"test/elbo": float(elbo.mean())}
    if k:
        found[f"test/elbo-first-{first}"] = float(elbo[:first].mean())
        tight = np.asarray(of_each(bound(k), first), np.float64)
        found[f"test/iwae-{k}-first-{first}"] = float(tight.mean())
    return found | {"test/active_units": float(vae.active_units(of_each(means, count)))}


def reconstructions(
    model: vae.Model, state: turns.State, images: data.Dataset, dtype: Any
) -> np.ndarray:
    """Images of a split, and in the row under each ten the mean images that the decoder makes of their mean codes."""
    chosen = np.linspace(0, images.length - 1, min(_SHOWN, images.length)).astype(int)
    x = images.read(chosen)[0]
    u = model.likelihood.observe(jnp.asarray(x, dtype) / 127.5 - 1, jax.random.key(0))
    codes = model.encoder.apply(vae.variables(state, "encoder"), u, train=False)[0][0]
    logits = model.decoder.apply(vae.variables(state, "decoder"), codes, train=False)[0]
    again = to_bytes(np.asarray(model.likelihood.mean(logits)))
    rows = [part[i : i + 10] for i in range(0, len(x), 10) for part in (x, again)]
    return image_grid(np.concatenate(rows), columns=min(10, len(x)))


def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment:
    """The autoencoder that ``cfg`` describes, and its data."""
    images, held = data.load_for_training(cfg.dataset.value, bool(cfg.eval_every.value))
    shape, dtype = images.shape, storage_dtype(cfg.precision)
    if cfg.net == "conv" and (shape[0] % 4 or shape[1] % 4):
        raise UserError(
            f"images of `dataset={cfg.dataset}` are {shape[0]}x{shape[1]};"
            " height and width must be multiples of 4 (`net=mlp` takes any size)",
            argument="net",
            value="conv",
            beside=["dataset"],
        )
    nets = networks(cfg.net, shape, cfg.latents, cfg.hidden, jnp.dtype(cfg.precision))
    model = vae.Model(*nets, vae.LIKELIHOODS[cfg.likelihood])
    algorithm = vae.make(
        model,
        optax.adam(cfg.lr),
        latents=cfg.latents,
        data_shape=shape,
        dtype=dtype,
        beta=cfg.beta,
        samples=cfg.samples_of,
        truncation=cfg.truncation or None,
        axis_name=axis_name,
    )
    source = data.source(
        images, seed=cfg.seed, batch_size=cfg.batch_size, dtype=dtype, feed=cfg.feed.value
    )
    experiment = monitor(
        cli.Experiment(algorithm, source, title=images.summary()),
        cfg.dataset,
        held,
        seed=cfg.seed,
    )
    metrics = experiment.evaluate

    def evaluate(state: turns.State) -> dict[str, float]:
        test = data.load(cfg.dataset.value, "test")
        return bounds(model, state, test, cfg.bound, dtype) | (metrics(state) if metrics else {})

    def pictures(state: turns.State) -> dict[str, np.ndarray]:
        test = data.load(cfg.dataset.value, "test")
        name = "test images, and under each row its reconstructions"
        return {name: reconstructions(model, state, test, dtype)}

    return experiment._replace(evaluate=evaluate, pictures=pictures)


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
