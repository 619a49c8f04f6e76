"""DP-MERF: one private release, and a generator that is fitted to it.

Harder, Adamczewski & Park 2021, arXiv:2002.11603. The records are seen once. With random frequencies W, whose rows are
drawn from N(0, I / bandwidth^2), a record has the features (Rahimi & Recht 2007)

    phi(x) = sqrt(2 / D) (cos(W x), sin(W x)),   |phi(x)| = 1,   phi(x) . phi(x') ~ exp(-|x - x'|^2 / 2 bandwidth^2),

and what is released of N records with labels y is the noisy mean

    m = (sum_i e_{y_i} phi(x_i)^T + N(0, sigma^2)) / N,       [k, D].

A record more or less changes the sum by a matrix of norm 1, so this is the Gaussian mechanism with sensitivity 1, once,
without sampling (``MECHANISM``). G then lowers |m - mean_j e_{y_j} phi(G(z_j, y_j))^T|^2 over labels in equal shares:
the maximum mean discrepancy to the released embedding. Everything after the release is post-processing, so it may
train as long as it wants. The labels of the records are taken to be in equal shares, too.

It is the cheap competitor of a private GAN: at small epsilon, where D's updates drown in noise, it is hard to beat.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from bpgan.algorithms import gan, turns
from bpgan.privacy.accounting import Mechanism
from bpgan.privacy.noise import normal
from bpgan.types import Algorithm, Batch, Images, Source, stream

MECHANISM = Mechanism("full", 1.0, 0.0, 1.0, 1e-5)
"""Of the release, before its noise multiplier and delta are set: every record once, with sensitivity 1."""

_BLOCK = 1000  # records at a time


class Released(NamedTuple):
    """What G is fitted to; anyone may know it.

    Attributes:
      frequencies: ``[D / 2, h w c]``, drawn without the records.
      embedding: ``[k, D]``, the noisy mean.
    """

    frequencies: Float[Array, "d p"]
    embedding: Float[Array, "k f"]


def draw_frequencies(seed: int, features: int, pixels: int, bandwidth: float) -> np.ndarray:
    """Frequencies of ``features`` features of a Gaussian kernel, ``[features / 2, pixels]``; the seed is public."""
    key = stream(jax.random.key(seed), "frequencies")
    drawn = jax.random.normal(key, (features // 2, pixels), jnp.float32)
    return np.asarray(drawn) / np.float32(bandwidth)


def features_of(x: Any, frequencies: Any, numpy: Any = jnp) -> Any:
    """``phi(x)``, ``[b, D]`` of images ``[b, h, w, c]`` in [-1, 1]; each row has norm 1."""
    angles = x.reshape(len(x), -1) @ frequencies.T
    joined = numpy.concatenate([numpy.cos(angles), numpy.sin(angles)], axis=1)
    return joined / numpy.sqrt(numpy.asarray(len(frequencies), joined.dtype))


def total(blocks: Any, frequencies: np.ndarray, classes: int) -> np.ndarray:
    """``sum_i e_{y_i} phi(x_i)^T``, float64 ``[k, D]``. It is not private.

    Args:
      blocks: iterates over images, uint8 ``[n, h, w, c]``, and their labels ``[n]``.
      frequencies: of the features.
      classes: k; 1 without labels.
    """
    found = np.zeros((classes, 2 * len(frequencies)))
    for x, y in blocks:
        phi = features_of(x.astype(np.float32) / 127.5 - 1, frequencies, np)
        chosen = np.eye(classes)[y if classes > 1 else np.zeros(len(x), int)]
        found += chosen.T @ phi
    return found


def blocks_of(images: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images of a ``data.Dataset`` with their labels, some at a time."""
    for start in range(0, images.length, _BLOCK):
        yield images.read(np.arange(start, min(start + _BLOCK, images.length)))


def release(
    summed: np.ndarray, length: int, noise_multiplier: float, secret: np.ndarray
) -> np.ndarray:
    """The noisy mean, float32 ``[k, D]``: the only thing about the records that is made known.

    Args:
      summed: see ``total``.
      length: how many records there are, which is public.
      noise_multiplier: standard deviation of the noise on the sum, whose sensitivity is 1.
      secret: the two words of the secret key.
    """
    key = stream(jax.random.wrap_key_data(jnp.asarray(secret), impl="threefry2x32"), "noise")
    noise = np.asarray(normal(key, summed.size)).reshape(summed.shape)
    return ((summed + noise_multiplier * noise) / length).astype(np.float32)


def source(images: Any, batch_size: int) -> Source:
    """Steps without records: a batch is the numbers of its rows. An epoch is as many rows as there are records."""

    def batch_at(data: Any, step: Any) -> Batch:
        del step
        return {"row": data["row"]}

    rows = {"row": np.arange(batch_size, dtype=np.int32)}
    return Source(rows, batch_at, images.length, batch_size, images.sha256, facts=images.facts)


def make(
    networks: gan.Networks,
    tx: optax.GradientTransformation,
    released: Released,
    *,
    classes: int = 0,
    ema_decay: turns.Scalar | None = None,
) -> Algorithm:
    """G alone, fitted to a released embedding: one player with one turn.

    Args:
      networks: of which D is not used.
      tx: G's optimizer.
      released: is kept in the state's memory, so that a checkpoint draws without it.
      classes: of the labels; 0: unconditional, with an embedding of one row.
      ema_decay: as of ``gan.make``.

    Returns:
      The algorithm, of batches of ``source``; it sees no records. Its metrics are ``loss`` and ``grad_norm``.
    """

    def start(key: Any) -> dict[str, Any]:
        y = (jnp.zeros((2,), jnp.int32),) if classes else ()
        return {"g": networks.g.init(stream(key, "g"), networks.latents(stream(key, "z"), 2), *y)}

    def draw(now: turns.Now) -> Batch:
        row = now.batch["row"]
        drawn = {"z": now.axis.rows(lambda n: networks.latents(stream(now.key, "z"), n), row)}
        return drawn | ({"y": row % classes} if classes else {})

    condition = gan.Condition(classes)
    turn = turns.Turn("g", [turns.Term(functools.partial(_distance, networks, classes))], tx)
    algorithm = turns.play(
        start,
        [turn._replace(draw=draw)],
        ema={} if ema_decay is None else {"g": ema_decay},
        memory={"released": released._asdict()},
        dtype=networks.dtype,
        sample=functools.partial(gan.sample, networks, condition),
        classes=classes,
    )
    named = {n: of for n, of in gan.trained(networks, condition).items() if n != "discriminator"}
    latents = networks.sample_latents or networks.latents
    return algorithm._replace(latents=latents, networks=named)


def _distance(networks: gan.Networks, classes: int, now: turns.Now) -> tuple[jax.Array, turns.Aux]:
    """What G minimizes: the squared distance of its own embedding to the released one."""
    known, batch = now.memory["released"], now.batch
    condition = (batch["y"],) if classes else ()
    x, stats = networks.g.apply(now.players["g"].variables, batch["z"], *condition, train=True)
    found = embed(x, batch.get("y"), known["frequencies"], classes)
    value = jnp.sum(jnp.square(found - known["embedding"]))
    return value, turns.Aux(stats, metrics={"loss": value})


def embed(x: Images, y: Any, frequencies: Any, classes: int) -> Float[Array, "k f"]:
    """``mean_j e_{y_j} phi(x_j)^T``."""
    phi = features_of(x.astype(frequencies.dtype), frequencies)
    chosen = jax.nn.one_hot(y, classes, dtype=phi.dtype) if classes else jnp.ones((len(x), 1))
    return chosen.T @ phi / len(x)
