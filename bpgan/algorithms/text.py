"""Images from captions: a GAN whose D judges whether an image is real and whether the caption fits it.

D sees three kinds of pairs (Reed et al. 2016, arXiv:1605.05396, Alg. 1): a real image with its caption, which is real,
a fake with the caption it was made for and a real image with the caption of another one, which both are fake, one half
each:

    L_D = mean_b (loss_D(D(x, t), D(G(z, t), t)) + loss_D(D(x, t), D(x, t'))) / 2

which is ``log s(D(x, t)) + (log(1 - s(D(G(z, t), t))) + log(1 - s(D(x, t')))) / 2`` of the loss of Goodfellow et al.
2014. Without the last part nothing tells D to look at the caption. Half of the captions t' are foils, where the data
have some: they are wrong in one detail. Captions of other images are wrong in most details, and once D knows the easy
ones, they hardly ever ask for the others. To the functions of ``gan.py``, a caption is the
label of its image. The other half of this file is the judge of such GANs: an embedding of images and captions, trained
on real pairs alone.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from bpgan.algorithms import gan, turns
from bpgan.algorithms.turns import Aux, Now, Term, Turn
from bpgan.types import PRNG, Algorithm, Batch, Logits, Metrics, Net, Network, stream

Text = Int[Array, "b t"]


def mismatched(
    numbers: Float[Array, "b n"], meaning: Int[Array, " b"], meanings: Int[Array, " n"], text: Text
) -> tuple[Text, Bool[Array, " b"]]:
    """A caption of another meaning for each of b rows, and whether there is one.

    Args:
      numbers: random, in [0, 1); the greatest one of a row decides.
      meaning: of the rows' own captions.
      meanings, text: of the n captions of the global batch, that are chosen among.
    """
    differs = meaning[:, None] != meanings[None, :]
    chosen = jnp.argmax(jnp.where(differs, numbers, -1.0), axis=1)
    return text[chosen], jnp.any(differs, axis=1)


def drawn(setting: gan.Setting, now: Now) -> dict[str, Any]:
    """Latents, the captions as labels, and a caption of another meaning for each image.

    That is the caption of another row of the global batch, so that any number of devices chooses the same ones, or, in
    half of the rows, the image's foil, where the batch has foils.
    """
    batch = now.batch
    meanings, text = now.axis.gather((batch["meaning"], batch["text"]))
    numbers = now.axis.rows(
        lambda n: jax.random.uniform(stream(now.key, "mismatched"), (n, len(meanings))), batch["x"]
    )
    wrong, differs = mismatched(numbers, batch["meaning"], meanings, text)
    if "foil" in batch:
        key = stream(now.key, "foil")
        half = now.axis.rows(lambda n: jax.random.bernoulli(key, shape=(n,)), batch["x"])
        wrong, differs = jnp.where(half[:, None], batch["foil"], wrong), half | differs
    return {**gan.latents(setting, now), "y": batch["text"], "wrong": wrong, "differs": differs}


def matching_loss(
    setting: gan.Setting, real: Logits, fake: Logits, wrong: Logits, differs: Bool[Array, " b"]
) -> Logits:
    """``(loss_D(real, fake) + loss_D(real, wrong)) / 2``; where no caption differs, ``loss_D(real, fake)``."""
    wrong = jnp.where(differs, wrong, fake)
    return (setting.loss.d(real, fake) + setting.loss.d(real, wrong)) / 2


def d_objective(setting: gan.Setting, now: Now) -> tuple[jax.Array, Aux]:
    """The loss of a matching-aware D, plus the penalties of every update.

    Args:
      setting: networks, loss and whatever else is in the game. D takes several captions of an image at once
        (``nets.text.discriminator``).
      now: with a batch of ``x``, ``z``, ``fake``, the captions ``y``, and ``wrong`` and ``differs`` of ``drawn``.

    Returns:
      The value and what beside it changed, with metrics ``real``, ``fake`` and ``wrong``, the mean logits, ``loss``
      and ``penalty``.
    """
    batch = now.batch
    see_real, see_fake = gan.views(setting, now)
    captions = jnp.stack([batch["y"], batch["wrong"]], axis=1)
    (of_real, _), stats = gan.score(setting, now, see_real(batch["x"]), captions)
    (of_fake, _), stats = gan.score(setting, now, see_fake(batch["fake"]), batch["y"], stats)
    real, wrong, fake, differs = now.axis.gather(
        (of_real[:, 0], of_real[:, 1], of_fake, batch["differs"])
    )
    value = jnp.mean(matching_loss(setting, real, fake, wrong, differs))
    metrics: Metrics = {"real": jnp.mean(real), "fake": jnp.mean(fake), "wrong": jnp.mean(wrong)}
    metrics["loss"] = value
    if setting.adaptive:
        metrics["sign"] = jnp.mean(jnp.sign(real))
        metrics["augment"] = now.memory["augment"]
    memory: dict[str, Any] = {}
    if due := setting.due("d", 1):
        seen = gan.d_passes(setting, now)
        metrics["penalty"], memory = gan.penalty(setting, "d", due, now, seen)
        value += metrics["penalty"]
    return value, Aux(stats, memory, metrics)


def make(
    networks: gan.Networks,
    loss: Any,
    optimizers: gan.Optimizers,
    prompts: Text,
    *,
    penalties: Sequence[Any] = (),
    augment: Any = None,
    d_steps: int = 1,
    accumulate: int = 1,
    ema_decay: Any = None,
    axis_name: str | None = None,
) -> Algorithm:
    """Binds networks, loss and optimizers into the pure functions of a GAN of captions.

    Batches have ``x``, ``text`` int32 ``[b, t]`` and ``meaning`` int32 ``[b]``: captions of the same number are never
    taken for mismatched. They may have ``foil`` int32 ``[b, t]``, captions that are wrong in one detail.

    Args:
      networks: of ``nets.text.generator`` and ``nets.text.discriminator``.
      loss: the adversarial pair, without a memory.
      optimizers: of both.
      prompts: captions int32 ``[k, t]`` that samples are drawn for in turn, where no others are given.
      penalties, augment, d_steps, accumulate, ema_decay, axis_name: as of ``gan.make``.

    Returns:
      The algorithm of the players ``g`` and ``d``, with the metrics of ``gan.make`` and ``d/wrong``, the mean logit of
      mismatched pairs. Its ``sample`` and its network ``generator`` take captions, int32 ``[n, t]``, where those of
      other GANs take labels.
    """

    def in_turn(n: int) -> Text:
        return jnp.take(jnp.asarray(prompts), jnp.arange(n) % len(prompts), axis=0)

    # To the functions of ``gan`` a caption is a label; that there are some is all that the number says.
    condition = gan.Condition(classes=1, in_turn=in_turn)
    setting = gan.Setting(networks, loss, condition, augment, gan.named(penalties))
    draw = functools.partial(drawn, setting)
    d, g = gan.alternate(setting, optimizers, d_steps)
    d = d._replace(terms=[Term(functools.partial(d_objective, setting)), *d.terms[1:]], draw=draw)
    algorithm = gan.play(
        setting,
        [d, g._replace(draw=draw)],
        accumulate=accumulate,
        ema_decay=ema_decay,
        axis_name=axis_name,
    )
    return algorithm._replace(classes=0)  # captions are no numbers of classes


# The judge ----------------------------------------------------------------------------------------------------------

JUDGE = "judge"
"""The name of its player."""

TEMPERATURE = 0.1
"""By which cosines are divided."""


class Judges(NamedTuple):
    """Networks that are trained on real pairs, to judge others; they share no parameter.

    Attributes:
      image: ``x[b, h, w, c] -> e[b, f]``.
      text: ``tokens[b, t] -> e[b, f]``.
      attributes: ``x -> logits[b, sum of counts]``; None if there are none.
      counts: values of each attribute.
    """

    image: Net
    text: Net
    attributes: Net | None = None
    counts: tuple[int, ...] = ()


def unit(x: Float[Array, "b f"]) -> Float[Array, "b f"]:
    """Rows of norm 1."""
    return x / jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def contrastive(
    images: Float[Array, "b f"], texts: Float[Array, "b f"], meaning: Int[Array, " b"]
) -> Float[Array, " b"]:
    """Symmetric InfoNCE over the rows of a batch (van den Oord et al. 2018, arXiv:1807.03748; Radford et al. 2021,
    arXiv:2103.00020), the mean of both directions. Captions that mean the same are not told apart.
    """
    cosines = unit(images) @ unit(texts).T / TEMPERATURE
    same = (meaning[:, None] == meaning[None, :]) & ~jnp.eye(len(meaning), dtype=bool)
    scores = jnp.where(same, -1e9, cosines)
    rows, columns = (jnp.diagonal(jax.nn.log_softmax(scores, axis)) for axis in (1, 0))
    return -(rows + columns) / 2


def split_heads(logits: Float[Array, "b k"], counts: Sequence[int]) -> list[Array]:
    """The logits of each attribute."""
    edges = [sum(counts[: i + 1]) for i in range(len(counts) - 1)]
    return jnp.split(logits, edges, axis=1)


def judge_objective(judges: Judges, now: Now) -> tuple[jax.Array, Aux]:
    """Symmetric InfoNCE of the two embeddings, plus the cross-entropies of the attributes."""
    params, batch = now.players[JUDGE].params, now.batch
    images = judges.image.apply({"params": params["image"]}, batch["x"], train=True)[0]
    texts = judges.text.apply({"params": params["text"]}, batch["text"], train=True)[0]
    value = jnp.mean(contrastive(*now.axis.gather((images, texts, batch["meaning"]))))
    metrics: Metrics = {"contrastive": value}
    if judges.attributes:
        logits = judges.attributes.apply({"params": params["attributes"]}, batch["x"], train=True)[
            0
        ]
        losses = (
            jnp.mean(
                optax.softmax_cross_entropy_with_integer_labels(head, batch["attributes"][:, i])
            )
            for i, head in enumerate(split_heads(logits, judges.counts))
        )
        metrics["attributes"] = jnp.asarray(sum(losses))
        value += metrics["attributes"]
    return value, Aux(None, {}, metrics)


def judge(judges: Judges, tx: optax.GradientTransformation, like: Batch) -> Algorithm:
    """The training of judges.

    Args:
      judges: networks.
      tx: their optimizer.
      like: a batch, of shapes as those that they will see.

    Returns:
      The algorithm, with networks ``image``, ``text`` and, if there is one, ``attributes``.
    """
    nets = {"image": judges.image, "text": judges.text}
    nets |= {"attributes": judges.attributes} if judges.attributes else {}
    seen = {name: like["text" if name == "text" else "x"] for name in nets}

    def init(key: PRNG) -> dict[str, Any]:
        made = {
            name: net.init(stream(key, name), jnp.zeros(seen[name].shape, seen[name].dtype))[
                "params"
            ]
            for name, net in nets.items()
        }
        return {JUDGE: {"params": made}}

    def network(name: str, net: Net) -> Network:
        return Network(
            lambda state: {"params": state.players[JUDGE].params[name]},
            lambda variables, x: net.apply(variables, x, train=False)[0],
        )

    turn = Turn(JUDGE, [Term(functools.partial(judge_objective, judges))], tx)
    made = turns.play(init, [turn])
    return made._replace(networks={name: network(name, net) for name, net in nets.items()})
