"""Images of a domain a made into images of a domain b: from pairs (pix2pix), or without any (CycleGAN, CUT).

Translators are called by their way, ``ab`` makes b of a and ``ba`` a of b. All of them are the player ``g``, and a
discriminator for each domain that is made, called by it, is the player ``d``. With the losses of
``bpgan.losses``, D minimizes the first line and G the second,

    weights.d            sum over domains mean loss_D(D(x), D(fake)),
    weights.adversarial  sum over domains mean loss_G(D(x), D(fake))  +  weights.content  C,

and what binds a fake to the image it is made of, C, tells the systems apart:

============  ============================================================================  ========================
system        C                                                                             source
============  ============================================================================  ========================
``pix2pix``   ``distance(G(a), b)`` of pairs; D sees a beside b and beside G(a)             Isola et al. 2017,
                                                                                            arXiv:1611.07004
``cyclegan``  ``|ba(ab(a)) - a| + |ab(ba(b)) - b| + identity (|ab(b) - b| + |ba(a) - a|)``  Zhu et al. 2017,
                                                                                            arXiv:1703.10593
``cut``       ``NCE(a, G(a)) + identity NCE(b, G(b))``, of patches at the same places       Park et al. 2020,
                                                                                            arXiv:2007.15651
============  ============================================================================  ========================

Another system is a function of what G minimizes, ``(setting, now) -> (value, Aux)``, handed to ``play``.

Logits may be a map ``[b, h', w']`` of scores of patches: the losses take each for itself, as ``[b h' w']``, and compare
a real and a fake at the same place. Penalties see the mean logit of each image.

Noise comes in as an input, uint32 ``z[b, 2]``: a seed for each row, of which a network makes what it needs
(``bpgan.nets.layers.dropout``). So a row's noise does not depend on how the batch is shared out.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, UInt32

from bpgan.algorithms import turns
from bpgan.algorithms.turns import Aux, Now, Scalar, State, Term, Turn
from bpgan.optim import at
from bpgan.penalties import Scene, Weighted, weighted_sum
from bpgan.types import (
    PRNG,
    AdversarialLoss,
    Algorithm,
    Images,
    Labels,
    Logits,
    Metrics,
    Net,
    Network,
    stream,
)

Seeds = UInt32[Array, "b 2"]
Distance = Callable[[Images, Images], Float[Array, " b"]]
"""``(x, y) -> distance[b]``."""


class Domains(NamedTuple):
    """What the images are.

    Attributes:
      a, b: shape ``[h, w, c]`` of an image.
      inputs: ``(key, n, labels[n] or None) -> a[n, h, w, c]``, the images that samples are made of.
      classes: of the labels of a; 0: ``inputs`` takes None.
      dtype: of the images.
    """

    a: Sequence[int]
    b: Sequence[int]
    inputs: Callable[[PRNG, int, Labels | None], Images]
    classes: int = 0
    dtype: Any = jnp.float32


class Optimizers(NamedTuple):
    """Of each player; that of d does nothing where there is no adversarial loss."""

    g: optax.GradientTransformation
    d: optax.GradientTransformation


class Weights(NamedTuple):
    """Of the terms, as in the module's equation.

    ``bpgan.losses`` halves least squares, the code of CycleGAN and CUT does not: theirs is ``adversarial=2, d=1``.

    Attributes:
      content: of what binds a fake to its input.
      identity: share of the content's weight that images of the target domain get, which should stay as they are. The
        number 0 leaves the term out.
      adversarial: of G's adversarial loss.
      d: of D's. All three papers halve D's objective against G's; Adam does not see it, but for its epsilon.
    """

    content: Scalar
    identity: Scalar = 0.0
    adversarial: Scalar = 1.0
    d: Scalar = 0.5


PIX2PIX, CYCLEGAN, CUT = Weights(100.0), Weights(10.0, 0.5), Weights(1.0, 1.0)
"""Those of the papers' equations."""


class Pair(NamedTuple):
    """Networks of ``pix2pix``.

    Attributes:
      g: ``(a, z) -> b``.
      d: of a and b in one image, ``x[b, h, w, a's channels + b's] -> logits[b, ...]``.
    """

    g: Net
    d: Net


class Cycle(NamedTuple):
    """Networks of ``cyclegan``: translators ``(a, z) -> b`` and ``(b, z) -> a``, discriminators ``x -> logits``."""

    ab: Net
    ba: Net
    d_a: Net
    d_b: Net


class Contrast(NamedTuple):
    """Networks of ``cut``.

    Attributes:
      g: ``(a, z) -> b``, whose method ``features`` makes a tuple of activations ``[b, h, w, c]``.
      d: ``b -> logits[b, ...]``.
      heads: of vectors at some places of each of these, ``[b, p, c]``, unit vectors ``[b, p, f]``; tuples of them.
      patches: places of an image at most; temperature: of the contrast.
    """

    g: Net
    d: Net
    heads: Net
    patches: int = 256
    temperature: float = 0.07


def l1(x: Images, y: Images) -> Float[Array, " b"]:
    """``mean |x - y|`` of each image."""
    return jnp.mean(jnp.abs(x - y), axis=tuple(range(1, x.ndim)))


def l2(x: Images, y: Images) -> Float[Array, " b"]:
    """``mean (x - y)^2`` of each image."""
    return jnp.mean(jnp.square(x - y), axis=tuple(range(1, x.ndim)))


DISTANCES: dict[str, Distance] = {"l1": l1, "l2": l2}
"""Distances of pairs by name."""


def of_features(features: Callable[[Images], Any], distance: Distance = l1) -> Distance:
    """A distance of features in the place of pixels.

    Args:
      features: ``x[b, h, w, c] -> f[b, ...]``, or a pytree of such arrays, whose distances are added.
    """

    def between(x: Images, y: Images) -> Float[Array, " b"]:
        found = jax.tree.map(distance, features(x), features(y))
        return sum(jax.tree.leaves(found))  # type: ignore[return-value]

    return between


class Setting(NamedTuple):
    """What the objectives are made of. Penalties are by the name of their memory.

    Attributes:
      g: translators by their way.
      d: discriminators by their domain, which is made by some translator; empty without an adversarial loss.
      paired: whether D sees the image beside that from which it was, or could have been, made.
      history: fakes of each domain that are kept for D.
    """

    g: Mapping[str, Net]
    d: Mapping[str, Net]
    loss: AdversarialLoss | None
    domains: Domains
    weights: Weights
    penalties: Mapping[str, Weighted] = {}
    paired: bool = False
    history: int = 0

    def due(self, every: int) -> dict[str, Weighted]:
        """The penalties that have this interval."""
        return {name: each for name, each in self.penalties.items() if each.every == every}


class Passes(NamedTuple):
    """One pass of the images of a domain through its discriminator.

    Attributes:
      real, fake: images of this device.
      logits: of real and of fake, flat, of all devices.
      critic: ``x -> logits[b]``, as penalties see D: the mean over patches.
      stats: of this D, after both.
    """

    real: Images
    fake: Images
    logits: tuple[Logits, Logits]
    critic: Callable[[Images], Logits]
    stats: Any


def noise(key: PRNG, n: int) -> Seeds:
    """Seeds of n rows."""
    return jax.random.bits(key, (n, 2), jnp.uint32)


def part(variables: Any, name: str) -> dict[str, Any]:
    """The variables of one network of a player."""
    return {"params": variables["params"][name], **variables[name]}


def source_of(domain: str) -> str:
    """The domain of whose images those of a domain are made."""
    return {"a": "b", "b": "a"}[domain]


def swap(pool: Mapping[str, Array], fresh: Images, key: PRNG) -> tuple[Images, dict[str, Array]]:
    """What D is shown of the fakes of an update, and the history after it.

    Shrivastava et al. 2017, arXiv:1612.07828, Sec. 2.3, as in CycleGAN: one row after the other. While the pool is not
    full, a fake is kept there and shown; then, with probability 1/2, it takes the place of a random old one, which is
    shown instead, else it is shown and not kept.

    Args:
      pool: ``{"images": [k, h, w, c], "count": how many of these there are}``.
      fresh: fakes of all devices, ``[n, h, w, c]``.
    """
    size, n = len(pool["images"]), len(fresh)
    for_coins, for_places = jax.random.split(key)
    coins = jax.random.bernoulli(for_coins, 0.5, (n,))
    places = jax.random.randint(for_places, (n,), 0, size)
    # Which images lie where is followed by their index; then each is moved once.
    every = jnp.concatenate([pool["images"], fresh.astype(pool["images"].dtype)])

    def one(carry: Any, row: Any) -> Any:
        held, count = carry
        index, coin, place = row
        is_full = count == size
        place = jnp.where(is_full, place, count)
        shown = jnp.where(is_full & coin, held[place], index)
        is_kept = (jnp.arange(size) == place) & (coin | ~is_full)
        return (jnp.where(is_kept, index, held), jnp.minimum(count + 1, size)), shown

    start = jnp.arange(size), pool["count"].astype(jnp.int32)
    (held, count), shown = lax.scan(one, start, (size + jnp.arange(n), coins, places))
    count = count.astype(pool["count"].dtype)
    return every[shown].astype(fresh.dtype), {"images": every[held], "count": count}


def seeds(setting: Setting, now: Now) -> dict[str, Seeds]:
    """One for each row. An update of G has those of D's before it, so that both see the same fakes."""
    del setting
    draw = functools.partial(noise, stream(now.key, "z"))
    return {"z": now.axis.rows(draw, now.batch["a"])}


def translate(
    setting: Setting, now: Now, way: str, x: Images, stats: Any = None, *, use: str = ""
) -> tuple[Images, dict[str, Any]]:
    """Images of one domain made into those of the other, and the statistics of all translators after it.

    Args:
      way: of the translator.
      stats: before it, if they are not those of the player.
      use: what it is for; each use of a translator has noise of its own.
    """
    g = now.players["g"]
    stats = g.stats if stats is None else stats
    z = _seeds_for(now.batch["z"], use + way)
    y, after = setting.g[way].apply({"params": g.params[way], **stats[way]}, x, z, train=True)
    return y, {**stats, way: after}


def _seeds_for(z: Seeds, use: str) -> Seeds:
    return jax.vmap(lambda seed: jax.random.key_data(stream(_key_of(seed), use)))(z)


def _key_of(seed: Array) -> PRNG:
    return jax.random.wrap_key_data(seed, impl="threefry2x32")


def fakes(setting: Setting, now: Now) -> dict[str, Images]:
    """``fake_b = ab(a)`` and ``fake_a = ba(b)`` of the domains that are judged."""
    made = {}
    for domain in setting.d:
        source = source_of(domain)
        made[f"fake_{domain}"], _ = translate(setting, now, source + domain, now.batch[source])
    return made


def shown(setting: Setting, now: Now) -> dict[str, Any]:
    """The seeds and fakes of D's update; with a history ``fake_b`` is what comes out of it, and ``fresh_b`` went in."""
    rows: dict[str, Any] = seeds(setting, now)
    rows |= fakes(setting, now.beside(rows))
    for domain in setting.d if setting.history else ():
        rows[f"fresh_{domain}"] = rows[f"fake_{domain}"]
        old = _swapped(now.beside(rows), domain)[0]
        rows[f"fake_{domain}"] = now.axis.rows(lambda n, old=old: old, now.batch[domain])
    return rows


def remembered(setting: Setting, now: Now, metrics: Metrics) -> dict[str, Any]:
    """The histories after an update of D."""
    del metrics
    kept = setting.d if setting.history else ()
    return {f"history_{domain}": _swapped(now, domain)[1] for domain in kept}


def _swapped(now: Now, domain: str) -> tuple[Images, dict[str, Array]]:
    """On every device the same."""
    name = f"history_{domain}"
    fresh = now.axis.gather(now.batch[f"fresh_{domain}"])
    return swap(now.memory[name], fresh, stream(now.key, name))


def score(
    setting: Setting, now: Now, domain: str, x: Images, stats: Any = None
) -> tuple[Array, Any]:
    """The logits of a domain's D, as many as there are, and its statistics, from others if these are given."""
    d = now.players["d"]
    if setting.paired:
        source = now.batch[source_of(domain)].astype(x.dtype)
        source = jax.image.resize(source, (*x.shape[:3], source.shape[3]), "bilinear")
        x = jnp.concatenate([source, x], -1)
    variables = {"params": d.params[domain], **(d.stats[domain] if stats is None else stats)}
    return setting.d[domain].apply(variables, x, train=True)


def d_passes(setting: Setting, now: Now, domain: str) -> Passes:
    """``D(x)`` and ``D(fake)``; ``now.batch`` has ``fake_a`` or ``fake_b``, and a too if D sees pairs."""
    real, fake = now.batch[domain], now.batch[f"fake_{domain}"]
    of_real, stats = score(setting, now, domain, real)
    of_fake, stats = score(setting, now, domain, fake, stats)
    logits = now.axis.gather((of_real.reshape(-1), of_fake.reshape(-1)))

    def critic(x: Images) -> Logits:
        logits, _ = score(setting, now, domain, x)
        return jnp.mean(logits.reshape(len(x), -1), axis=1)

    return Passes(real, fake, logits, critic, stats)


def penalty(
    setting: Setting, every: int, now: Now, seen: Mapping[str, Passes]
) -> tuple[jax.Array, dict[str, Any]]:
    """``sum over domains sum_i weight_i mean_b penalty_i`` of those of an interval, and the memories after it."""

    def generator(*inputs: Any, **method: Any) -> Images:
        raise ValueError("a penalty of G or of latents: a translator has images in their place")

    total: Any = 0.0
    memory = {}
    for domain, passes in seen.items():
        due = {f"{name}_{domain}": each for name, each in setting.due(every).items()}
        scene = Scene(
            params=now.players["d"].params[domain],
            critic=passes.critic,
            generator=generator,
            real=passes.real,
            fake=passes.fake.astype(passes.real.dtype),
            z=jnp.zeros((len(passes.real), 0), passes.real.dtype),
            logits=passes.logits,
            key=now.key,
        )
        value, kept = weighted_sum(due, scene, now.step, now.memory, now.noise_key)
        total, memory = total + value, {**memory, **kept}
    return total, memory


def d_objective(setting: Setting, now: Now) -> tuple[jax.Array, Aux]:
    """``weights.d sum over domains mean loss_D(D(x), D(fake))``, plus the penalties of every update.

    Args:
      setting: networks, loss and whatever else is in the game.
      now: with a batch of ``a``, ``b``, and ``fake_b``, ``fake_a`` of the domains that are judged.
    """
    assert setting.loss is not None
    seen = {domain: d_passes(setting, now, domain) for domain in setting.d}
    loss: Any = 0.0
    memory = {}
    for domain, passes in seen.items():
        kept = f"loss_{domain}"
        if kept in now.memory:
            values, memory[kept] = setting.loss.d(*passes.logits, now.memory[kept])
        else:
            values = setting.loss.d(*passes.logits)
        loss += jnp.mean(values)
    metrics: Metrics = {"loss": loss}
    for i, name in enumerate(("real", "fake")):
        means = [jnp.mean(passes.logits[i]) for passes in seen.values()]
        metrics[name] = sum(means) / len(means)
    value = at(setting.weights.d, now.step) * loss
    if setting.due(1):
        metrics["penalty"], more = penalty(setting, 1, now, seen)
        value, memory = value + metrics["penalty"], {**memory, **more}
    return value, Aux({domain: passes.stats for domain, passes in seen.items()}, memory, metrics)


def penalty_objective(setting: Setting, every: int, now: Now) -> tuple[jax.Array, Aux]:
    """The penalties of an interval; what they do not look at of the passes costs nothing."""
    seen = {domain: d_passes(setting, now, domain) for domain in setting.d}
    value, memory = penalty(setting, every, now, seen)
    return value, Aux(None, memory, {"penalty": value})


def fooled(setting: Setting, now: Now, made: Mapping[str, Images]) -> jax.Array:
    """``sum over domains mean loss_G(D(x), D(fake))`` of fakes by their domain."""
    assert setting.loss is not None
    total: Any = 0.0
    for domain, fake in made.items():
        of_fake, _ = score(setting, now, domain, fake)
        of_real, _ = score(setting, now, domain, now.batch[domain])
        logits = now.axis.gather((of_real.reshape(-1), of_fake.reshape(-1)))
        total += jnp.mean(setting.loss.g(*logits))
    return total


def g_value(
    setting: Setting,
    now: Now,
    made: Mapping[str, Images],
    stats: Any,
    content: Mapping[str, jax.Array],
) -> tuple[jax.Array, Aux]:
    """What G minimizes: the adversarial loss of its fakes and what binds them to their inputs, with their weights.

    Args:
      made: fakes by their domain.
      stats: of G after its passes.
      content: terms, by the names of their metrics; that called ``identity`` has its share of the weight.
    """
    weights, value = setting.weights, 0.0
    metrics: Metrics = dict(content)
    for name, term in content.items():
        share = at(weights.identity, now.step) if name == "identity" else 1.0
        value += at(weights.content, now.step) * share * term
    if setting.d:
        metrics["loss"] = fooled(setting, now, made)
        value += at(weights.adversarial, now.step) * metrics["loss"]
    return value, Aux(stats, {}, metrics)  # type: ignore[return-value]


def has_identity(weights: Weights) -> bool:
    """Whether the term is there: its weight is not the number 0, which a sweep or a schedule may still reach."""
    return not (isinstance(weights.identity, int | float) and weights.identity == 0)


def pix2pix_objective(setting: Setting, distance: Distance, now: Now) -> tuple[jax.Array, Aux]:
    """``adversarial + content mean distance(ab(a), b)``. Isola et al. 2017, arXiv:1611.07004, Eq. 4."""
    fake, stats = translate(setting, now, "ab", now.batch["a"])
    pair = jnp.mean(distance(fake, now.batch["b"].astype(fake.dtype)))
    return g_value(setting, now, {"b": fake}, stats, {"pair": pair})


def cyclegan_objective(setting: Setting, now: Now) -> tuple[jax.Array, Aux]:
    """``adversarial + content (|ba(ab(a)) - a| + |ab(ba(b)) - b|)`` and the identity.

    Zhu et al. 2017, arXiv:1703.10593, Eq. 3; the identity is that of Sec. 5.2, where channels allow it.
    """
    a, b = now.batch["a"], now.batch["b"]
    fake_b, stats = translate(setting, now, "ab", a)
    fake_a, stats = translate(setting, now, "ba", b, stats)
    back_a, stats = translate(setting, now, "ba", fake_b, stats, use="cycle")
    back_b, stats = translate(setting, now, "ab", fake_a, stats, use="cycle")
    content = {"cycle": jnp.mean(l1(back_a, a)) + jnp.mean(l1(back_b, b))}
    if has_identity(setting.weights) and a.shape[-1] == b.shape[-1]:
        same_b, stats = translate(setting, now, "ab", b, stats, use="identity")
        same_a, stats = translate(setting, now, "ba", a, stats, use="identity")
        content["identity"] = jnp.mean(l1(same_b, b)) + jnp.mean(l1(same_a, a))
    return g_value(setting, now, {"b": fake_b, "a": fake_a}, stats, content)


def patch_nce(
    queries: Float[Array, "b p f"], keys: Float[Array, "b p f"], temperature: float = 0.07
) -> Float[Array, " b"]:
    """``mean_i -log(e^(q_i k_i / t) / sum_j e^(q_i k_j / t))``, the places of one image; keys are constants.

    Park et al. 2020, arXiv:2007.15651, Eqs. 2 and 3, with negatives of the same image alone.

    Args:
      queries: unit vectors of patches of the fake; keys: of its input, at the same places.
    """
    keys = lax.stop_gradient(keys)
    s = jnp.einsum("bif,bjf->bij", queries, keys, precision=lax.Precision.HIGHEST) / temperature
    return jnp.mean(jax.nn.logsumexp(s, axis=2) - jnp.diagonal(s, axis1=1, axis2=2), axis=1)


def at_places(
    layers: Sequence[Float[Array, "b h w c"]], z: Seeds, patches: int
) -> tuple[Float[Array, "b p c"], ...]:
    """The vectors of each layer at ``min(patches, h w)`` random places, other ones in each row, each at most once."""

    def pick(index: int, x: Array) -> Array:
        x = x.reshape(len(x), -1, x.shape[-1])

        def one(row: Array, seed: Array) -> Array:
            order = jnp.argsort(jax.random.bits(_key_of(seed), (len(row),), jnp.uint32))
            # Unique places: a scatter, as is the derivative, adds nothing up in an order that GPUs do not fix.
            return row.at[order[:patches]].get(unique_indices=True, mode="promise_in_bounds")

        return jax.vmap(one)(x, _seeds_for(z, f"places{index}"))

    return tuple(pick(i, x) for i, x in enumerate(layers))


def contrast(
    setting: Setting, networks: Contrast, now: Now, fake: Images, source: Images
) -> jax.Array:
    """The mean over layers and rows of ``patch_nce`` between a fake and what it was made of."""
    g, z = now.players["g"], now.batch["z"]

    def vectors(x: Images) -> tuple[Array, ...]:
        encoder = {"params": g.params["ab"], **g.stats["ab"]}
        own = _seeds_for(z, "ab")  # as of the fake, whose encoder XLA need not run again
        layers, _ = setting.g["ab"].apply(encoder, x, own, train=True, method="features")
        picked = at_places(layers, z, networks.patches)
        heads = {"params": g.params["heads"], **g.stats["heads"]}
        return networks.heads.apply(heads, picked, train=True)[0]

    values = [
        jnp.mean(patch_nce(queries, keys, networks.temperature))
        for queries, keys in zip(vectors(fake), vectors(source), strict=True)
    ]
    return sum(values[1:], values[0]) / len(values)


def cut_objective(setting: Setting, networks: Contrast, now: Now) -> tuple[jax.Array, Aux]:
    """``adversarial + content (NCE(a, G(a)) + identity NCE(b, G(b)))``. Park et al. 2020, arXiv:2007.15651, Eq. 5."""
    a, b = now.batch["a"], now.batch["b"]
    fake, stats = translate(setting, now, "ab", a)
    content = {"nce": contrast(setting, networks, now, fake, a)}
    if has_identity(setting.weights):
        same, stats = translate(setting, now, "ab", b, stats, use="identity")
        content["identity"] = contrast(setting, networks, now, same, b)
    return g_value(setting, now, {"b": fake}, stats, content)


def pix2pix(
    networks: Pair,
    loss: AdversarialLoss | None,
    optimizers: Optimizers,
    *,
    domains: Domains,
    weights: Weights = PIX2PIX,
    distance: Distance = l1,
    penalties: Sequence[Weighted] = (),
    accumulate: int = 1,
    ema_decay: Scalar | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    """Translation learned from pairs: batches ``{"a": [b, h, w, c], "b": [b, h', w', c'], ...}``, row by row.

    Args:
      networks: G and D.
      loss: the adversarial pair; None: there is no D, and G minimizes the distance alone.
      optimizers: of both players.
      domains: the images.
      weights: of the terms; there is no identity.
      distance: of G(a) from b.
      penalties: of D, differentiated with respect to the image of b, not to a.
      accumulate, ema_decay, axis_name: as in ``gan.make``.

    Returns:
      The algorithm, with metrics ``d/loss, d/real, d/fake, d/grad_norm`` (and ``d/penalty``, weighted), ``g/loss``, the
      adversarial loss, ``g/pair``, the distance, both without weights, and ``g/grad_norm``; without D there is one
      player, and they are ``pair`` and ``grad_norm``. ``sample(state, key, n[, labels])`` translates
      ``domains.inputs(stream(key, "inputs"), n, labels)``; ``networks`` has ``translator``,
      ``(variables, a, z) -> b``.

    Raises:
      ValueError: penalties of G, or a weight of the identity.
    """
    if has_identity(weights):
        raise ValueError("weights: pix2pix has no identity, whose weight must be 0")
    d = {"b": networks.d} if loss else {}
    setting = Setting({"ab": networks.g}, d, loss, domains, weights, _named(penalties), paired=True)
    return play(
        setting,
        functools.partial(pix2pix_objective, setting, distance),
        optimizers,
        accumulate=accumulate,
        ema_decay=ema_decay,
        axis_name=axis_name,
    )


def cyclegan(
    networks: Cycle,
    loss: AdversarialLoss,
    optimizers: Optimizers,
    *,
    domains: Domains,
    weights: Weights = CYCLEGAN,
    history: int = 50,
    penalties: Sequence[Weighted] = (),
    accumulate: int = 1,
    ema_decay: Scalar | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    """Translation both ways without pairs: batches ``{"a": ..., "b": ...}``, whose rows are no pairs.

    Args:
      networks: both translators and both discriminators.
      loss: the adversarial pair; the paper's is least squares.
      weights: of the terms; the identity is left out where a and b differ in channels.
      history: fakes of each domain that are kept for D (``swap``), as a part of the state; 0: D sees the newest ones.
      optimizers, domains, penalties, accumulate, ema_decay, axis_name: as in ``pix2pix``; penalties are of both
        discriminators.

    Returns:
      The algorithm, with metrics as of ``pix2pix``, ``g/cycle`` and ``g/identity`` (sums over both domains) in the
      place of ``g/pair``. ``d/loss``, ``g/loss`` and ``d/penalty`` are sums over both domains, ``d/real`` and
      ``d/fake`` means. ``networks`` has ``translator`` and ``back``, ``(variables, b, z) -> a``.

    Raises:
      ValueError: penalties of G, or a negative history.
    """
    if history < 0:
        raise ValueError(f"{history=}: must not be negative")
    g, d = {"ab": networks.ab, "ba": networks.ba}, {"a": networks.d_a, "b": networks.d_b}
    setting = Setting(g, d, loss, domains, weights, _named(penalties), history=history)
    return play(
        setting,
        functools.partial(cyclegan_objective, setting),
        optimizers,
        accumulate=accumulate,
        ema_decay=ema_decay,
        axis_name=axis_name,
    )


def cut(
    networks: Contrast,
    loss: AdversarialLoss,
    optimizers: Optimizers,
    *,
    domains: Domains,
    weights: Weights = CUT,
    penalties: Sequence[Weighted] = (),
    accumulate: int = 1,
    ema_decay: Scalar | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    """Translation one way without pairs, at half the cost of both: batches as of ``cyclegan``.

    Args:
      networks: G, D and the heads, which are a part of the player g: the authors move them by an optimizer of their own
        with the same settings, which is the same for an optimizer that takes each parameter by itself.
      weights: of the terms; without identity, and with a content of 10, it is the paper's FastCUT.
      loss, optimizers, domains, penalties, accumulate, ema_decay, axis_name: as in ``pix2pix``.

    Returns:
      The algorithm, with metrics as of ``pix2pix``, ``g/nce`` and ``g/identity``, the same of images of b, in the place
      of ``g/pair``.

    Raises:
      ValueError: penalties of G, or a and b of different channels, for one encoder must see both.
    """
    if domains.a[-1] != domains.b[-1]:
        raise ValueError(f"domains: {domains.a[-1]} and {domains.b[-1]} channels must be the same")
    g, d = {"ab": networks.g}, {"b": networks.d}
    setting = Setting(g, d, loss, domains, weights, _named(penalties))

    def heads(key: PRNG, variables: Mapping[str, Any], a: Images, z: Seeds) -> dict[str, Any]:
        layers, _ = networks.g.apply(variables["ab"], a, z, train=False, method="features")
        return networks.heads.init(key, at_places(layers, z, networks.patches))

    return play(
        setting,
        functools.partial(cut_objective, setting, networks),
        optimizers,
        others={"heads": heads},
        accumulate=accumulate,
        ema_decay=ema_decay,
        axis_name=axis_name,
    )


def play(
    setting: Setting,
    objective: turns.Objective,
    optimizers: Optimizers,
    *,
    others: Mapping[str, Callable[..., dict[str, Any]]] | None = None,
    accumulate: int = 1,
    ema_decay: Scalar | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    """The algorithm of D, if there is one, and of G with an objective; each moves once a step, D first.

    Args:
      setting: what both are made of.
      objective: G's, such as ``cyclegan_objective`` of the setting.
      optimizers: of both.
      others: networks of the player g beside the translators, by the functions that make their variables:
        ``(key, variables of the translators by name, a[2, ...], z[2, 2]) -> variables``.
      accumulate, ema_decay, axis_name: as in ``gan.make``.

    Raises:
      ValueError: penalties of G, or a normalized loss.
    """
    if any(each.player != "d" for each in setting.penalties.values()):
        raise ValueError("penalties: must be those of D")
    if setting.loss and setting.loss.normalization:
        raise ValueError("loss: must not be normalized")
    intervals = sorted({each.every for each in setting.penalties.values()} - {1})
    d_terms = [
        Term(functools.partial(d_objective, setting)),
        *(Term(functools.partial(penalty_objective, setting, every), every) for every in intervals),
    ]
    # Both turns draw the same seeds, so that XLA makes the fakes of both in one pass, as the authors' code does.
    same: Any = dict(key=lambda key, player, i: jax.random.clone(key))
    after = functools.partial(remembered, setting)
    draw_d, draw_g = (functools.partial(draw, setting) for draw in (shown, seeds))
    players = [Turn("g", [Term(objective)], optimizers.g, draw=draw_g, **same)]
    if setting.d:
        players.insert(0, Turn("d", d_terms, optimizers.d, draw=draw_d, after=after, **same))
    algorithm = turns.play(
        functools.partial(_variables, setting, dict(others or {})),
        players,
        accumulate=accumulate,
        ema={} if ema_decay is None else {"g": ema_decay},
        memory=_memory(setting),
        dtype=setting.domains.dtype,
        axis=turns.Axis(axis_name),
        sample=functools.partial(sample, setting),
        classes=setting.domains.classes,
    )
    return algorithm._replace(networks=trained(setting))


def _named(penalties: Sequence[Weighted]) -> dict[str, Weighted]:
    return {f"penalty{i}": each for i, each in enumerate(penalties)}


def _memory(setting: Setting) -> dict[str, Any]:
    """At the start, of each domain that is judged."""
    memory: dict[str, Any] = {}
    for domain in setting.d:
        kept = {name: each.penalty.memory for name, each in setting.penalties.items()}
        kept["loss"] = setting.loss.memory if setting.loss else None
        if setting.history:
            shape = (setting.history, *getattr(setting.domains, domain))
            kept["history"] = {"images": np.zeros(shape, np.float32), "count": np.float32(0)}
        memory |= {f"{name}_{domain}": x for name, x in kept.items() if x is not None}
    return memory


def _variables(setting: Setting, others: Mapping[str, Any], key: PRNG) -> dict[str, Any]:
    """Both players at the start."""
    domains, z = setting.domains, jnp.zeros((2, 2), jnp.uint32)
    x = {name: jnp.zeros((2, *getattr(domains, name)), domains.dtype) for name in ("a", "b")}
    g = {way: net.init(stream(key, way), x[way[0]], z) for way, net in setting.g.items()}
    g |= {name: init(stream(key, name), dict(g), x["a"], z) for name, init in others.items()}
    d = {}
    for domain, net in setting.d.items():
        judged = x[domain]
        if setting.paired:
            beside = jnp.zeros((*judged.shape[:3], x[source_of(domain)].shape[3]), judged.dtype)
            judged = jnp.concatenate([beside, judged], -1)
        d[domain] = net.init(stream(key, f"d_{domain}"), judged)
    return {name: _joined(nets) for name, nets in (("g", g), ("d", d)) if nets}


def _joined(nets: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a player of several networks, from which ``part`` takes one of them."""
    rest = {name: {k: v for k, v in nets[name].items() if k != "params"} for name in nets}
    return {"params": {name: variables["params"] for name, variables in nets.items()}, **rest}


def trained(setting: Setting) -> dict[str, Network]:
    """The translators, to be used after training: ``translator`` and, where there is one, ``back``."""

    def network(way: str) -> Network:
        def variables(state: State) -> Any:
            return part(state.ema["g"] if "g" in state.ema else state.players["g"].variables, way)

        def apply(variables: Any, x: Images, z: Seeds) -> Images:
            return setting.g[way].apply(variables, x, z, train=False)[0]

        return Network(variables, apply)

    names = {"ab": "translator", "ba": "back"}
    return {names[way]: network(way) for way in setting.g}


def sample(setting: Setting, state: State, key: PRNG, n: int, y: Labels | None = None) -> Images:
    """Translations of ``n`` images, ``domains.inputs(stream(key, "inputs"), n, y)``; without labels of all in turn."""
    domains = setting.domains
    if domains.classes and y is None:
        y = jnp.arange(n, dtype=jnp.int32) % domains.classes
    a = domains.inputs(stream(key, "inputs"), n, y if domains.classes else None)
    translator = trained(setting)["translator"]
    return translator.apply(translator.variables(state), a, noise(stream(key, "z"), n))
