"""Two-player training: one update of D, one of G.

    min_G max_D  E log s(D(x)) + E log(1 - s(D(G(z))))        (Goodfellow et al. 2014, arXiv:1406.2661)

and every other adversarial pair: networks, loss, penalties, conditions, augmentation, latent distribution, optimizers
and the rule that moves the players are arguments. What each player minimizes is a function of this module, which can be
called without training; ``bpgan.algorithms.turns`` owns the step. Nothing stops a gradient where the parameters of the
players already separate them, so the step itself can be differentiated, vmapped and scanned.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from bpgan.algorithms import turns
from bpgan.algorithms.turns import Aux, Now, Scalar, State, Term, Turn
from bpgan.augment import Augment, adapt
from bpgan.optim import Averages, at
from bpgan.penalties import Scene, Weighted, weighted_sum
from bpgan.types import (
    PRNG,
    AdversarialLoss,
    Algorithm,
    Auxiliary,
    Images,
    Labels,
    Latents,
    Logits,
    Metrics,
    Net,
    Network,
    stream,
)


class Networks(NamedTuple):
    """Both networks, what they take and what they make.

    Attributes:
      g, d: ``z[b, z] -> x[b, *data_shape]`` and ``x -> logits[b]``; with classes both take int32 ``labels[b]`` as well,
        and with an auxiliary loss D returns ``(logits, head)``, a pytree of arrays ``[b, ...]``.
      latents: ``(key, n) -> z[n, z]``.
      data_shape, dtype: of one example.
      sampler: in G's place where samples are drawn, on G's variables; for truncation in the space of styles.
      sample_latents: in the place of ``latents`` where samples are drawn; for truncation.
      styles: whether G has methods ``mapping`` and ``synthesis``.
    """

    g: Net
    d: Net
    latents: Callable[[PRNG, int], Latents]
    data_shape: Sequence[int]
    dtype: Any = jnp.float32
    sampler: Net | None = None
    sample_latents: Callable[[PRNG, int], Latents] | None = None
    styles: bool = False


class Optimizers(NamedTuple):
    """Of each player."""

    g: optax.GradientTransformation
    d: optax.GradientTransformation


class Condition(NamedTuple):
    """Labels, or vectors of classes and attributes.

    Attributes:
      classes: of ``batch["y"]``, or the size of its vectors ``[b, classes]`` of floats. Fakes take the labels of the
        reals they are compared with. 0: unconditional.
      auxiliary: loss of D's head, if it has one.
      weight: of the auxiliary loss.
      in_turn: ``n -> labels[n]`` of samples where none are given; None: the classes in turn.
    """

    classes: int = 0
    auxiliary: Auxiliary | None = None
    weight: Scalar = 1.0
    in_turn: Callable[[int], Labels] | None = None

    def given(self, z: Latents, y: Labels | None = None) -> tuple[Labels, ...]:
        """The labels of samples as arguments of a network: y, or those in turn; nothing without classes.

        ``len(z)`` is a number only where y is not given: an export has any number of samples.
        """
        if not self.classes:
            return ()
        if y is not None:
            return (y,)
        if self.in_turn:
            return (self.in_turn(len(z)),)
        return (jnp.arange(len(z), dtype=jnp.int32) % self.classes,)


UNCONDITIONAL = Condition()

NORMALIZATION = "gradient"
"""Name of what the normalization of G's gradient remembers."""


class Setting(NamedTuple):
    """What both objectives are made of, as ``make`` has it. Penalties are by the name of their memory."""

    networks: Networks
    loss: AdversarialLoss
    condition: Condition = UNCONDITIONAL
    augment: Augment | None = None
    penalties: Mapping[str, Weighted] = {}
    one_pass: bool = False

    @property
    def adaptive(self) -> bool:
        """Whether the probability of the augmentation is part of the state."""
        return self.augment is not None and self.augment.target is not None

    def due(self, player: str, every: int) -> dict[str, Weighted]:
        """The penalties of a player that have this interval."""
        found = self.penalties.items()
        return {name: p for name, p in found if (p.player, p.every) == (player, every)}


class Passes(NamedTuple):
    """One pass of the reals and of the fakes of an update through the networks.

    Attributes:
      real, fake, z, y: of this device; y is None without classes.
      logits: D's for real and for fake, of all devices.
      heads: what D returns beside them, of this device; None without an auxiliary loss.
      critic: ``x -> logits``, as penalties see D.
      stats: those of the player that moves, after both passes.
    """

    real: Images
    fake: Images
    z: Latents
    y: Labels | None
    logits: tuple[Logits, Logits]
    heads: tuple[Any, Any]
    critic: Callable[[Images], Logits]
    stats: Any


def uniform_latents(dim: int, dtype: Any = jnp.float32) -> Callable[[PRNG, int], Latents]:
    """``z ~ U(-1, 1)^dim``."""
    return lambda key, n: jax.random.uniform(key, (n, dim), dtype, -1.0, 1.0)


def normal_latents(
    dim: int, dtype: Any = jnp.float32, truncation: float | None = None
) -> Callable[[PRNG, int], Latents]:
    """``z ~ N(0, I)`` in ``dim`` dimensions, each number conditioned on ``|z_i| <= truncation`` if that is given.

    The truncation trick of Brock et al. 2019, arXiv:1809.11096, Sec. 3.1: at sampling only.
    """
    if truncation is None:
        return lambda key, n: jax.random.normal(key, (n, dim), dtype)
    return lambda key, n: jax.random.truncated_normal(key, -truncation, truncation, (n, dim), dtype)


def generate(
    setting: Setting, now: Now, z: Any, y: Labels | None, **method: str
) -> tuple[Any, Any]:
    """``G(z)`` with its statistics after it; or another method of G's module."""
    condition = () if y is None or method.get("method") == "synthesis" else (y,)
    return setting.networks.g.apply(now.players["g"].variables, z, *condition, train=True, **method)


def score(
    setting: Setting, now: Now, x: Images, y: Labels | None, stats: Any = None
) -> tuple[tuple[Logits, Any], Any]:
    """``((logits, head), stats)`` of ``D(x)``, from other statistics if these are given.

    Raises:
      ValueError: if D has a head without an auxiliary loss, or the other way round.
    """
    d, auxiliary = now.players["d"], setting.condition.auxiliary
    variables = {"params": d.params, **(d.stats if stats is None else stats)}
    out, stats = setting.networks.d.apply(variables, x, *(() if y is None else (y,)), train=True)
    if isinstance(out, tuple) != (auxiliary is not None):
        raise ValueError("D must return (logits, head) with an auxiliary loss, else logits alone")
    return (out if auxiliary else (out, None)), stats


def score_both(
    setting: Setting, now: Now, real: Images, fake: Images, y: Labels | None
) -> tuple[tuple[Logits, Any], tuple[Logits, Any], Any]:
    """``(logits, head)`` of D for reals, the same for fakes, and the statistics after both.

    One pass after the other, or one over all, in which each fake stands beside its real, so that devices that share out
    the reals need not exchange any.
    """
    if not setting.one_pass:
        of_real, stats = score(setting, now, real, y)
        of_fake, stats = score(setting, now, fake, y, stats)
        return of_real, of_fake, stats

    def beside(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.stack([a, b.astype(a.dtype)], 1).reshape(-1, *a.shape[1:])

    out, stats = score(setting, now, beside(real, fake), None if y is None else beside(y, y))
    pairs = jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]), out)
    of_real, of_fake = (jax.tree.map(lambda x, i=i: x[:, i], pairs) for i in (0, 1))
    return of_real, of_fake, stats


def views(setting: Setting, now: Now) -> tuple[Callable[[Images], Images], ...]:
    """What D is shown of the reals and of the fakes of an update."""
    if setting.augment is None:
        return (lambda x: x,) * 2
    p = now.memory["augment"] if setting.adaptive else at(setting.augment.p, now.step)
    apply = setting.augment.apply
    return tuple(
        lambda x, name=name: apply(x, now.noise_key(name), p) for name in setting.augment.streams
    )


def labels(setting: Setting, now: Now) -> Labels | None:
    """Of the batch, int32 labels or vectors of floats; None without classes."""
    if not setting.condition.classes:
        return None
    y = now.batch["y"]
    return y if jnp.issubdtype(y.dtype, jnp.floating) else y.astype(jnp.int32)


def latents(setting: Setting, now: Now) -> dict[str, Latents]:
    """As many as there are reals."""
    draw = functools.partial(setting.networks.latents, stream(now.key, "z"))
    return {"z": now.axis.rows(draw, now.batch["x"])}


def fakes(setting: Setting, now: Now) -> dict[str, Images]:
    """``G(z)``, which does not depend on D."""
    return {"fake": generate(setting, now, now.batch["z"], labels(setting, now))[0]}


def _of_rows(y: Labels | None, x: Images) -> Labels | None:
    """The labels of every k-th row, where there are that many fewer examples."""
    return None if y is None else y[:: len(y) // len(x)]


def d_passes(setting: Setting, now: Now) -> Passes:
    """``D(x)`` and ``D(G(z))``; ``now.batch`` has ``x``, ``z``, ``fake`` and ``y`` if there are classes."""
    real, fake, z, y = now.batch["x"], now.batch["fake"], now.batch["z"], labels(setting, now)
    see_real, see_fake = views(setting, now)
    of_real, of_fake, stats = score_both(setting, now, see_real(real), see_fake(fake), y)
    (real_logits, real_head), (fake_logits, fake_head) = of_real, of_fake
    logits = now.axis.gather((real_logits, fake_logits))

    def critic(x: Images) -> Logits:
        return score(setting, now, see_real(x), _of_rows(y, x))[0][0]

    return Passes(real, fake, z, y, logits, (real_head, fake_head), critic, stats)


def g_passes(setting: Setting, now: Now) -> Passes:
    """``D(G(z))`` and ``D(x)``; ``now.batch`` has ``x``, ``z`` and ``y`` if there are classes.

    Only relativistic losses look at the real logits; for the others XLA removes that forward pass.
    """
    real, z, y = now.batch["x"], now.batch["z"], labels(setting, now)
    fake, stats = generate(setting, now, z, y)
    see_real, see_fake = views(setting, now)
    (fake_logits, fake_head), _ = score(setting, now, see_fake(fake), y)
    (real_logits, real_head), _ = score(setting, now, see_real(real), y)
    logits = now.axis.gather((real_logits, fake_logits))

    def critic(x: Images) -> Logits:
        return score(setting, now, see_fake(x), _of_rows(y, x))[0][0]

    return Passes(real, fake, z, y, logits, (real_head, fake_head), critic, stats)


def auxiliary_loss(setting: Setting, now: Now, seen: Passes, heads: Sequence[Any]) -> jax.Array:
    """``weight sum over heads of mean_b loss(head, y)``."""
    term, weight = setting.condition.auxiliary, setting.condition.weight
    assert term is not None
    losses = (jnp.mean(term.loss(*now.axis.gather((head, seen.y)))) for head in heads)
    return at(weight, now.step) * sum(losses)


def penalty(
    setting: Setting, player: str, penalties: Mapping[str, Weighted], now: Now, seen: Passes
) -> tuple[jax.Array, dict[str, Any]]:
    """``sum_i weight_i mean_b penalty_i`` and the memories after it.

    Of the type of the reals, also where G computes in a narrower one.
    """
    real = seen.real

    def generator(z: Any, **method: str) -> Images:
        # A penalty may look at some of the latents only.
        y = None if seen.y is None else seen.y[: z.shape[0]]
        return generate(setting, now, z, y, **method)[0].astype(real.dtype)

    scene = Scene(
        params=now.players[player].params,
        critic=seen.critic,
        generator=generator,
        real=real,
        fake=seen.fake.astype(real.dtype),
        z=seen.z,
        logits=seen.logits,
        key=now.key,
    )
    return weighted_sum(penalties, scene, now.step, now.memory, now.noise_key)


def _penalized(
    setting: Setting, player: str, now: Now, seen: Passes, value: Any, metrics: Metrics, memory: Any
) -> tuple[jax.Array, Aux]:
    """With the penalties of every update."""
    due = setting.due(player, 1)
    if due:
        metrics["penalty"], kept = penalty(setting, player, due, now, seen)
        value, memory = value + metrics["penalty"], {**memory, **kept}
    return value, Aux(seen.stats, memory, metrics)


def d_objective(setting: Setting, now: Now) -> tuple[jax.Array, Aux]:
    """``mean_b loss_D(D(x), D(G(z)))``, plus what an auxiliary loss and the penalties of every update add.

    Args:
      setting: networks, loss and whatever else is in the game.
      now: with a batch of ``x[b, ...]``, ``z[b, z]``, ``fake = G(z)``, and ``y[b]`` if there are classes.

    Returns:
      The value and what beside it changed, with metrics ``real`` and ``fake``, the mean logits, ``loss`` without, for
      it to compare across weights, ``penalty`` and ``auxiliary``.
    """
    seen = d_passes(setting, now)
    memory = {}
    if setting.loss.memory is None:
        value = jnp.mean(setting.loss.d(*seen.logits))
    else:
        values, memory["loss"] = setting.loss.d(*seen.logits, now.memory["loss"])
        value = jnp.mean(values)
    real_logits, fake_logits = seen.logits
    metrics: Metrics = {"real": jnp.mean(real_logits), "fake": jnp.mean(fake_logits)}
    metrics["loss"] = value
    auxiliary = setting.condition.auxiliary
    if auxiliary:
        heads = seen.heads if auxiliary.on_fakes else seen.heads[:1]
        metrics["auxiliary"] = auxiliary_loss(setting, now, seen, heads)
        value += metrics["auxiliary"]
    if setting.adaptive:
        metrics["sign"] = jnp.mean(jnp.sign(real_logits))
        metrics["augment"] = now.memory["augment"]
    return _penalized(setting, "d", now, seen, value, metrics, memory)


def g_objective(setting: Setting, now: Now) -> tuple[jax.Array, Aux]:
    """``mean_b loss_G(D(x), D(G(z)))``, plus what an auxiliary loss and the penalties of every update add.

    Args:
      setting: networks, loss and whatever else is in the game.
      now: with a batch of ``x[b, ...]``, ``z[b, z]``, and ``y[b]`` if there are classes.
    """
    seen = g_passes(setting, now)
    memory: dict[str, Any] = {}
    metrics: Metrics = {}
    if setting.loss.normalization:
        value, memory[NORMALIZATION], metrics["gradient"] = normalized_value(setting, now, seen)
    else:
        value = jnp.mean(setting.loss.g(*seen.logits))
    metrics["loss"] = value
    if setting.condition.auxiliary and setting.condition.auxiliary.for_g:
        metrics["auxiliary"] = auxiliary_loss(setting, now, seen, seen.heads[1:])
        value += metrics["auxiliary"]
    return _penalized(setting, "g", now, seen, value, metrics, memory)


def normalized_value(setting: Setting, now: Now, seen: Passes) -> tuple[jax.Array, Any, jax.Array]:
    """``mean_b loss_G``, whose derivative by the fakes is divided by its own size (``losses.normalized``).

    Returns:
      The value; the average of squares, to be remembered; and its root, by which the derivative is divided.
    """
    normalization = setting.loss.normalization
    assert normalization is not None

    def value_at(fake: Images) -> jax.Array:
        return jnp.mean(setting.loss.g(seen.logits[0], now.axis.gather(seen.critic(fake))))

    fixed = lax.stop_gradient(seen.fake)
    value, pull = jax.vjp(value_at, fixed)
    (slope,) = pull(jnp.ones_like(value))
    kept = now.memory[NORMALIZATION]
    # One of several devices has the derivative of the sum of what all have, which are the same: as if its own rows
    # were the batch. The mean over devices is then that of the global batch.
    square = now.axis.mean(slope.size * jnp.sum(jnp.square(slope.astype(kept.dtype))))
    decay = normalization.decay
    kept = lax.stop_gradient(decay * kept + (1 - decay) * square)
    root = jnp.sqrt(kept / (1 - decay ** (now.step + 1)) if normalization.debias else kept)
    slope = lax.stop_gradient(slope / (root + 1e-8).astype(slope.dtype))
    # The value as it is, with another slope.
    return lax.stop_gradient(value) + jnp.sum(slope * (seen.fake - fixed)), kept, root


def penalty_objective(setting: Setting, player: str, every: int, now: Now) -> tuple[jax.Array, Aux]:
    """The penalties of a player that have this interval; what they do not look at of the passes costs nothing."""
    seen = (d_passes if player == "d" else g_passes)(setting, now)
    value, memory = penalty(setting, player, setting.due(player, every), now, seen)
    return value, Aux(None, memory, {"penalty": value})


def adapted(setting: Setting, now: Now, metrics: Metrics) -> dict[str, jax.Array]:
    """The probability of an adaptive augmentation after an update of D.

    By the sign of the logits of all reals, for the sign of a mean is not the mean of the signs of micro-batches.
    """
    if not setting.adaptive:
        return {}
    augment, seen = setting.augment, now.axis.total(len(now.batch["x"]))
    assert augment is not None
    p = adapt(now.memory["augment"], metrics["sign"], seen, augment.images, augment.target)
    return {"augment": p}


def _terms(setting: Setting, player: str, objective: Callable[[Setting, Now], Any]) -> list[Term]:
    """The objective of every update, and a term for each interval of penalties."""
    intervals = sorted({p.every for p in setting.penalties.values() if p.player == player} - {1})
    return [
        Term(functools.partial(objective, setting)),
        *(
            Term(functools.partial(penalty_objective, setting, player, every), every)
            for every in intervals
        ),
    ]


def _remembered(setting: Setting) -> dict[str, Any]:
    """Memories at the start."""
    memory = {name: each.penalty.memory for name, each in setting.penalties.items()}
    memory["loss"] = setting.loss.memory
    memory[NORMALIZATION] = np.zeros((), np.float32) if setting.loss.normalization else None
    memory["augment"] = setting.augment.p if setting.augment and setting.adaptive else None
    return {name: kept for name, kept in memory.items() if kept is not None}


def named(penalties: Sequence[Weighted]) -> dict[str, Weighted]:
    """By the names of their memories, which count the penalties of each player."""
    named = {}
    for player, prefix in (("d", "penalty"), ("g", "g_penalty")):
        of_player = (each for each in penalties if each.player == player)
        named |= {f"{prefix}{i}": each for i, each in enumerate(of_player)}
    return named


def make(
    networks: Networks,
    loss: AdversarialLoss,
    optimizers: Optimizers,
    *,
    penalties: Sequence[Weighted] = (),
    condition: Condition = UNCONDITIONAL,
    augment: Augment | None = None,
    one_pass: bool = False,
    d_steps: int = 1,
    accumulate: int = 1,
    ema_decay: Scalar | Averages | None = None,
    rule: turns.Rule | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    """Binds networks, loss and optimizers into the pure functions of a GAN.

    One step is ``d_steps`` updates of D, each on its own ``b`` real examples and its own latents, then one update of
    G with fresh latents against the new D. Numbers called ``Scalar`` may be functions of the step; it counts updates
    of G.

    Args:
      networks: G, D and the latents.
      loss: the adversarial pair; its mean over the batch is minimized.
      optimizers: of both.
      penalties: of both players, added to their objectives. The memories of those of D are called ``penalty0``,
        ``penalty1``, ..., those of G ``g_penalty0``, ...
      condition: on labels.
      augment: what D sees of reals and of fakes, in the updates of both players. Penalties differentiate through it,
        with respect to the sample before it.
      one_pass: whether D's own updates see reals and fakes in one pass, in about half as many kernels. D must take each
        example by itself. Its gradient is the same but for rounding, unless it has statistics: those that move with
        every pass, such as the u of a spectral norm, then move once an update and not twice, and serve all examples.
      d_steps: updates of D per update of G. ``batch["x"]`` must have ``b * d_steps`` rows; update ``i`` takes rows
        ``i, i + d_steps, ...``.
      accumulate: micro-batches of an update (``turns.play``).
      ema_decay: decay of the average of G's variables that ``sample`` uses, as in ``turns.play``. None keeps no
        average, and ``sample`` uses G as it is.
      rule: moves both players at once from the game of their two objectives (``algorithms.game``), in the place of
        alternate updates.
      axis_name: mapped axis when the step runs per device; gradients, statistics and metrics are averaged over it,
        losses see the logits of all devices, and each device takes its rows of the latents of the global batch, so
        every mode sees the same ones. Noise inside a penalty (the points of ``wgan_gp``) and the draws of an
        augmentation are each device's own.

    Returns:
      The algorithm of the players ``g`` and ``d``, with metrics ``d/loss, d/real, d/fake, d/grad_norm, g/loss,
      g/grad_norm`` (and, where there are such, weighted, ``d/penalty, g/penalty, d/auxiliary, g/auxiliary``, which the
      losses leave out, with an adaptive augmentation ``d/sign, d/augment``, and of a normalized loss ``g/gradient``, by
      which G's gradient is divided) before the respective update. Its ``sample`` takes ``labels[n]`` as a fourth
      argument; without them it draws the classes in turn.

    Raises:
      ValueError: numbers below 1; a rule together with what it replaces or with a normalized loss; from ``step``, at
        trace time, if the rows of the batch are not a multiple of ``d_steps * accumulate``, or D's output is not of the
        form asked for.
    """
    setting = Setting(networks, loss, condition, augment, named(penalties), one_pass)
    return play(
        setting,
        alternate(setting, optimizers, d_steps),
        accumulate=accumulate,
        ema_decay=ema_decay,
        rule=rule,
        axis_name=axis_name,
    )


def alternate(setting: Setting, optimizers: Optimizers, d_steps: int = 1) -> list[Turn]:
    """The turns of D, then of G, for ``play``. With another ``gradient`` D's is private, for example."""
    draw = functools.partial(latents, setting)
    d = Turn(
        "d",
        _terms(setting, "d", d_objective),
        optimizers.d,
        d_steps,
        draw=draw,
        prepare=functools.partial(fakes, setting),
        after=functools.partial(adapted, setting),
    )
    g = Turn(
        "g",
        _terms(setting, "g", g_objective),
        optimizers.g,
        draw=draw,
        key=lambda key, player, i: stream(key, player),
    )
    return [d, g]


def play(
    setting: Setting,
    players: Sequence[Turn],
    *,
    accumulate: int = 1,
    ema_decay: Scalar | Averages | None = None,
    memory: Mapping[str, Any] | None = None,
    rule: turns.Rule | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    """What ``make`` returns, of turns that may be other than those of ``alternate`` and remember more."""
    networks, condition, normalized = (
        setting.networks,
        setting.condition,
        setting.loss.normalization,
    )
    if normalized and rule is not None:
        raise ValueError("normalized: not together with a rule, which differentiates the gradient")
    algorithm = turns.play(
        functools.partial(_variables, setting),
        players,
        accumulate=accumulate,
        ema={} if ema_decay is None else {"g": ema_decay},
        memory=_remembered(setting) | dict(memory or {}),
        rule=rule,
        dtype=networks.dtype,
        axis=turns.Axis(axis_name),
        sample=functools.partial(sample, networks, condition),
        classes=condition.classes,
    )
    return algorithm._replace(
        latents=networks.sample_latents or networks.latents,
        networks=trained(networks, condition),
        # A gradient that is divided by its size is that of no function.
        objectives=None if normalized else algorithm.objectives,
    )


def _variables(setting: Setting, key: PRNG) -> dict[str, Any]:
    """Both networks at the start."""
    nets = setting.networks
    z = nets.latents(stream(key, "z"), 2)
    y = setting.condition.given(z)
    return {
        "g": nets.g.init(stream(key, "g"), z, *y),
        "d": nets.d.init(stream(key, "d"), jnp.zeros((2, *nets.data_shape), nets.dtype), *y),
    }


def averaged(state: State) -> Any:
    """The variables of G that draw: their average, or as they are where none is kept."""
    return state.ema["g"] if "g" in state.ema else state.players["g"].variables


def trained(networks: Networks, condition: Condition) -> dict[str, Network]:
    """G as it draws samples and D, to be used after training; without labels G draws those in turn.

    Of a G with styles its two parts are there as well; there is no truncation between them.
    """

    def generator(variables: Any, z: Latents, y: Labels | None = None) -> Images:
        g = networks.sampler or networks.g
        return g.apply(variables, z, *condition.given(z, y), train=False)[0]

    def discriminator(variables: Any, x: Images, y: Labels | None = None) -> Logits:
        out, _ = networks.d.apply(variables, x, *((y,) if condition.classes else ()), train=False)
        return out[0] if isinstance(out, tuple) else out

    def mapping(variables: Any, z: Latents, y: Labels | None = None) -> Any:
        given = condition.given(z, y)
        found = networks.g.apply(variables, z, *given, train=False, method="mapping")
        return found[0]

    def synthesis(variables: Any, w: Any) -> Images:
        return networks.g.apply(variables, w, train=False, method="synthesis")[0]

    found = {
        "generator": Network(averaged, generator),
        "discriminator": Network(lambda state: state.players["d"].variables, discriminator),
    }
    if networks.styles:
        found |= {"mapping": Network(averaged, mapping), "synthesis": Network(averaged, synthesis)}
    return found


def sample(
    networks: Networks,
    condition: Condition,
    state: State,
    key: PRNG,
    n: int,
    y: Labels | None = None,
    *,
    z: Latents | None = None,
) -> Images:
    """``n`` samples of the averaged G, or of G as it is where no average is kept."""
    if z is None:
        z = (networks.sample_latents or networks.latents)(key, n)
    return trained(networks, condition)["generator"].apply(averaged(state), z, y)
