"""A GAN whose discriminator is trained with differential privacy; the generator is then private for free.

Xie et al. 2018, arXiv:1802.06739, in the form of Bie, Kamath & Zhang 2023, arXiv:2302.02936. A step is one update of D,
on a Poisson batch. Each record is paired with one fake, made with the label of the record, and their loss, with the
penalties on the pair, has one gradient, which is clipped. G moves in every n-th step only, for noise makes D's updates
poor and G needs a D that can tell: n is fixed, or is raised where D's accuracy on fakes is low.

G sees D and nothing else. Its latents and labels are drawn anew, and in the place of reals there is NaN: a loss or a
penalty of G that looked at them would end the run.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpgan.algorithms import gan
from bpgan.algorithms.turns import Aux, Gradient, Now, Scalar, Term, Turn
from bpgan.privacy.mechanism import OVERFLOW, privatize
from bpgan.sharding import split_as
from bpgan.types import Algorithm, Batch, Metrics, stream

LEVELS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Updates of D per update of G, of which an adaptive number takes one after the other."""

DECAY, GRACE = 0.99, 200
"""Of the average of D's accuracy on fakes; and updates of G at a level before the next one may be taken."""

FAULTS = {
    f"memory/{OVERFLOW}": "more records than a batch has rows for were drawn at once. By its guarantee a private run"
    " then ends for good; what it released before keeps that guarantee"
}
_SCHEDULE = "schedule"


class DSteps(NamedTuple):
    """Updates of D per update of G.

    Attributes:
      number: how many, at the start if it is adaptive.
      floor: None, or the accuracy of D on fakes: where its average is no more than this, the next of ``LEVELS`` is
        taken, ``GRACE`` updates of G after the last change at the earliest.
    """

    number: int
    floor: float | None = None

    @property
    def memory(self) -> dict[str, Any]:
        """At the start."""
        if self.floor is None:
            return {}
        names = ("level", "accuracy", "updates", "moved", "since")
        return {_SCHEDULE: {name: 0.0 for name in names} | {"level": float(self.level)}}

    @property
    def level(self) -> int:
        """The first of ``LEVELS`` that is not below the number."""
        return next((i for i, n in enumerate(LEVELS) if n >= self.number), len(LEVELS) - 1)

    def due(self, now: Now) -> jax.Array:
        """Whether G moves in this step."""
        if self.floor is None:
            return (now.step + 1) % self.number == 0
        return now.memory[_SCHEDULE]["since"] >= self.current(now)

    def current(self, now: Now) -> jax.Array:
        """Updates of D per update of G now, of an adaptive number."""
        level = now.memory[_SCHEDULE]["level"].astype(jnp.int32)
        return jnp.asarray(LEVELS, now.memory[_SCHEDULE]["since"].dtype)[level]

    def after_d(self, now: Now, metrics: Metrics) -> Mapping[str, Any]:
        """The memory after an update of D."""
        del metrics
        if self.floor is None:
            return {}
        kept = now.memory[_SCHEDULE]
        return {_SCHEDULE: {**kept, "since": kept["since"] + 1}}

    def after_g(self, now: Now, metrics: Metrics) -> Mapping[str, Any]:
        """The memory after an update of G, from D's accuracy on the fakes of it."""
        if self.floor is None:
            return {}
        kept = now.memory[_SCHEDULE]
        new = metrics["accuracy"].astype(kept["accuracy"].dtype)
        mean = DECAY * kept["accuracy"] + (1 - DECAY) * new
        accuracy = jnp.where(kept["updates"] == 0, new, mean)
        moved = kept["moved"] + 1
        up = (moved >= GRACE) & (accuracy <= self.floor)
        return {
            _SCHEDULE: {
                "level": jnp.where(up, jnp.minimum(kept["level"] + 1, len(LEVELS) - 1), kept["level"]),
                "accuracy": accuracy,
                "updates": kept["updates"] + 1,
                "moved": jnp.where(up, 0, moved),
                "since": jnp.zeros_like(kept["since"]),
            }
        }  # fmt: skip


def public_rows(setting: gan.Setting, batch_size: int, now: Now) -> Batch:
    """What G's turn is made of: latents and labels of their own laws, and no reals.

    Labels are uniform. ``x`` is NaN.
    """
    networks, classes, like = setting.networks, setting.condition.classes, now.batch["x"]
    z = networks.latents(stream(now.key, "z"), batch_size)
    shape = (batch_size, *networks.data_shape)
    rows = {"z": split_as(like, z), "x": jnp.full(shape, jnp.nan, networks.dtype)}
    if classes:
        y = jax.random.randint(stream(now.key, "y"), (batch_size,), 0, classes)
        rows["y"] = split_as(like, y)
    return rows


def tell_fakes(setting: gan.Setting, d_steps: DSteps, now: Now) -> tuple[jax.Array, Aux]:
    """D on the fakes of G's turn: its mean logit and its accuracy, and an adaptive number of D's updates.

    They depend on both players only, so they are as public as these are.
    """
    y = gan.labels(setting, now)
    fake, _ = gan.generate(setting, now, now.batch["z"], y)
    (logits, _), _ = gan.score(setting, now, gan.views(setting, now)[1](fake), y)
    metrics: Metrics = {"fake": jnp.mean(logits), "accuracy": jnp.mean(logits < 0, dtype=logits.dtype)}  # fmt: skip
    if d_steps.floor is not None:
        metrics["d_steps"] = d_steps.current(now)
    return jnp.zeros((), logits.dtype), Aux(metrics=jax.lax.stop_gradient(metrics))


def _of_public_rows(
    names: Sequence[str], objective: Callable[[Now], tuple[jax.Array, Aux]], now: Now
) -> tuple[jax.Array, Aux]:
    """The objective where the batch has nothing but ``public_rows``, which have these names."""
    return objective(now._replace(batch={name: now.batch[name] for name in names}))


def alternate(
    setting: gan.Setting,
    optimizers: gan.Optimizers,
    gradient: Gradient,
    *,
    batch_size: int,
    d_steps: DSteps,
    views: int = 1,
) -> list[Turn]:
    """The turns of ``gan.alternate``, D's private and G's without anything that is.

    Args:
      setting: of a loss and of networks whose examples pass by themselves; penalties enter every update.
      optimizers: of both.
      gradient, views: of ``mechanism.privatize``.
      batch_size: rows of an update of G.
      d_steps: updates of D per update of G.
    """
    d, g = gan.alternate(setting, optimizers)
    d = privatize(d, gradient, views)._replace(after=d_steps.after_d)
    objectives = [term.objective for term in g.terms]
    objectives.append(functools.partial(tell_fakes, setting, d_steps))
    names = ("x", "y", "z") if setting.condition.classes else ("x", "z")
    g = g._replace(
        terms=[Term(functools.partial(_of_public_rows, names, each)) for each in objectives],
        draw=functools.partial(public_rows, setting, batch_size),
        due=d_steps.due,
        after=d_steps.after_g,
    )
    return [d, g]


def make(
    setting: gan.Setting,
    optimizers: gan.Optimizers,
    gradient: Gradient,
    *,
    batch_size: int,
    d_steps: DSteps,
    views: int = 1,
    ema_decay: Scalar | None = None,
    memory: Mapping[str, Any] | None = None,
) -> Algorithm:
    """Binds everything into the pure functions of a private GAN; a step is one update of D.

    Args:
      setting, optimizers, gradient, batch_size, d_steps, views: see ``alternate``.
      ema_decay: as of ``gan.make``, counted in steps.
      memory: what the gradient remembers, at the start.

    Returns:
      The algorithm, of batches of ``data.poisson``. Its metrics are ``d/grad_norm``, that of the noisy gradient, and of
      G, as they were in its last update, ``g/loss, g/fake, g/accuracy, g/grad_norm``, with penalties ``g/penalty``,
      with an auxiliary loss ``g/auxiliary``, and of an adaptive number ``g/d_steps``. There are none of D on reals.
    """
    names = ["loss", "fake", "accuracy", "grad_norm"]
    names += ["penalty"] * any(p.player == "g" for p in setting.penalties.values())
    auxiliary = setting.condition.auxiliary
    names += ["auxiliary"] * (auxiliary is not None and auxiliary.for_g)
    names += ["d_steps"] * (d_steps.floor is not None)
    turns = alternate(
        setting, optimizers, gradient, batch_size=batch_size, d_steps=d_steps, views=views
    )
    kept = {"g": dict.fromkeys(names, 0.0), OVERFLOW: 0.0, **d_steps.memory, **(memory or {})}
    return gan.play(setting, turns, ema_decay=ema_decay, memory=kept)._replace(faults=FAULTS)
