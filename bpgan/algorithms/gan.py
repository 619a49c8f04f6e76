"""Two-player training: one update of D, one of G, composed into a pure step.

    min_G max_D  E log s(D(x)) + E log(1 - s(D(G(z))))        (Goodfellow et al. 2014, arXiv:1406.2661)

and every other adversarial pair: networks, loss, penalties, conditions, augmentation, latent distribution, optimizers
and the rule that moves the players are arguments. Both players are updated by the same private function and differ only
in their objective. Nothing stops a gradient where a closure already separates the players, so the step itself can be
differentiated, vmapped and scanned.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bpgan.algorithms import game
from bpgan.augment import Augment, adapt
from bpgan.optim import at
from bpgan.penalties import Regularizer, Scene, regularizer
from bpgan.types import (
    PRNG,
    AdversarialLoss,
    Algorithm,
    Auxiliary,
    Images,
    Labels,
    Latents,
    Metrics,
    Net,
    stream,
)

Scalar = float | jax.Array | Callable[[jax.Array], Any]
"""A number, or a function of the step (``bpgan.optim.schedule``)."""


class Player(NamedTuple):
    """One network in training: parameters, its other collections (batch statistics, ...), optimizer state."""

    params: Any
    stats: Any
    opt: Any


class GANState(NamedTuple):
    """Everything a run needs to go on.

    Attributes:
      step: G updates so far, int32.
      g, d: the players.
      ema: the averaged variables of G, or None.
      memory: what losses, penalties and adaptive augmentation remember, by name; None if nothing does.
    """

    step: jax.Array
    g: Player
    d: Player
    ema: Any
    memory: Any = None


class Reg(NamedTuple):
    """A penalty as part of an objective: ``weight * mean(penalty)``, in every k-th update times k."""

    weight: Scalar
    penalty: Regularizer
    every: int


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


def _global_norm(tree) -> jax.Array:
    """Euclidean norm over all leaves, as dot products.

    XLA on CPU does not vectorize a reduction fused into the gradient's computation (7 % of the step of a small MLP
    GAN); a dot product of the finished gradient costs a quarter of that.
    """
    squares = [jnp.vdot(x, x) for x in lax.optimization_barrier(jax.tree.leaves(tree))]
    return jnp.sqrt(sum(squares))


def _in_turn(tree, parts: int):
    """Rows dealt out to ``parts`` parts, ``[b, ...]`` to ``[parts, b / parts, ...]``: each has rows of every device."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), tree)


def _split_as(real, z):
    """``z`` over the devices that share out the rows of ``real``.

    A loss that looks at the fakes alone does not tell XLA to do so: every device would compute all of them.
    """
    mesh = jax.typeof(real).sharding.mesh
    automatic = mesh.axis_names and all(kind == AxisType.Auto for kind in mesh.axis_types)
    if not automatic or len(z) % mesh.size:
        return z
    return lax.with_sharding_constraint(z, NamedSharding(mesh, P(mesh.axis_names)))


def make(
    g_net: Net,
    d_net: Net,
    loss: AdversarialLoss,
    g_tx: optax.GradientTransformation,
    d_tx: optax.GradientTransformation,
    *,
    latents: Callable[[PRNG, int], Latents],
    data_shape: Sequence[int],
    dtype: Any = jnp.float32,
    penalties: Sequence[tuple[Any, ...]] = (),
    g_penalties: Sequence[tuple[Any, ...]] = (),
    penalty_every: int = 1,
    d_steps: int = 1,
    accumulate: int = 1,
    classes: int = 0,
    auxiliary: tuple[Scalar, Auxiliary] | None = None,
    augment: Augment | None = None,
    ema_decay: Scalar | None = None,
    simultaneous: bool = False,
    rule: game.Rule | None = None,
    sampler: Net | None = None,
    sample_latents: Callable[[PRNG, int], Latents] | None = None,
    axis_name: str | None = None,
) -> Algorithm:
    """Binds networks, loss and optimizers into the pure functions of a GAN.

    One step is ``d_steps`` updates of D, each on its own ``b`` real examples and its own latents, then one update of
    G with fresh latents against the new D (or, if ``simultaneous``, against the D before its updates).

    Numbers called ``Scalar`` may be functions of the step; it counts updates of G.

    Args:
      g_net, d_net: ``z[b, z] -> x[b, *data_shape]`` and ``x -> logits[b]``; with classes both take int32 ``labels[b]``
        as well, and with an auxiliary loss D returns ``(logits, head)``, a pytree of arrays ``[b, ...]``.
      loss: the adversarial pair; its mean over the batch is minimized.
      g_tx, d_tx: optimizers.
      latents: ``(key, n) -> z[n, z]``.
      data_shape, dtype: of one example.
      penalties: tuples ``(weight, penalty)`` or ``(weight, penalty, every)`` added to D's objective as
        ``weight * mean(penalty)``.
      g_penalties: the same for G; ``every`` counts updates of G and is 1 where it is not given.
      penalty_every: lazy regularization (Karras et al. 2020, arXiv:1912.04958, App. B): penalties without an ``every``
        of their own enter every k-th update of D, multiplied by k, so that their mean effect is unchanged.
      d_steps: updates of D per update of G. ``batch["x"]`` must have ``b * d_steps`` rows; update ``i`` takes rows
        ``i, i + d_steps, ...``.
      accumulate: micro-batches into which the b examples of an update are cut, one after the other, for the mean of
        their gradients, and of what networks, losses and penalties remember, each from what that was before the update:
        the same update in less memory, unless a network, a loss or a penalty mixes examples.
      classes: of ``batch["y"]``. Fakes take the labels of the reals they are compared with. 0: unconditional.
      auxiliary: weight and loss of the head.
      augment: what D sees of reals and of fakes, in the updates of both players. Penalties differentiate through it,
        with respect to the sample before it.
      ema_decay: decay of the average of G's variables that ``sample`` uses. A number stands for
        ``min(ema_decay, (1 + t) / (10 + t))`` at step t, so that early averages forget the initialization; a function
        of the step is taken as it is. None keeps no average, and ``sample`` uses G as it is.
      simultaneous: update both players from the same point (SimGD) instead of alternately (AltGD).
      rule: moves both players at once from the game of their two objectives (``algorithms.game``), in the place of
        the alternating or simultaneous updates here.
      sampler: in G's place where samples are drawn, on G's variables; for truncation in the space of styles.
      sample_latents: in the place of ``latents`` where samples are drawn; for truncation.
      axis_name: mapped axis when the step runs per device; gradients, statistics and metrics are averaged over it,
        losses see the logits of all devices, and each device takes its rows of the latents of the global batch, so
        every mode sees the same ones. Noise inside a penalty (the points of ``wgan_gp``) and the draws of an
        augmentation are each device's own.

    Returns:
      The algorithm, with state ``GANState`` and metrics ``d/loss, d/real, d/fake, d/grad_norm, g/loss, g/grad_norm``
      (and, where there are such, weighted, ``d/penalty, g/penalty, d/auxiliary, g/auxiliary``, which the losses leave
      out, and with an adaptive augmentation ``d/sign, d/augment``) before the respective update. Its ``sample`` takes
      ``labels[n]`` as a fourth argument; without them it draws the classes in turn, 0, 1, ..., 0, 1, ...

    Raises:
      ValueError: numbers below 1; a rule together with what it replaces; from ``step``, at trace time, if the rows of
        the batch are not a multiple of ``d_steps * accumulate``, or D's output is not of the form asked for.
    """
    for name, value in dict(
        d_steps=d_steps, penalty_every=penalty_every, accumulate=accumulate
    ).items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if rule is not None and (simultaneous or d_steps > 1 or accumulate > 1 or axis_name):
        raise ValueError(
            "rule: not together with simultaneous, d_steps, accumulate or axis_name, whose updates it replaces"
        )
    if rule is not None:
        g_tx, d_tx = rule.optimizer(g_tx), rule.optimizer(d_tx)
    sampler, sample_latents = sampler or g_net, sample_latents or latents
    stored = jnp.promote_types(dtype, jnp.float32)  # of averages and of what is remembered

    def regs(entries: Any, prefix: str, every: int) -> dict[str, Reg]:
        return {
            f"{prefix}{i}": Reg(weight, regularizer(penalty), *own or [every])
            for i, (weight, penalty, *own) in enumerate(entries)
        }

    d_regs = regs(penalties, "penalty", penalty_every)
    g_regs = regs(g_penalties, "g_penalty", 1)
    adaptive = (augment.images, augment.target) if augment and augment.target is not None else ()

    def pmean(tree):
        return tree if axis_name is None else lax.pmean(tree, axis_name)

    def gather(tree) -> Any:
        """Rows of all devices."""
        if axis_name is None:
            return tree
        return jax.tree.map(lambda x: lax.all_gather(x, axis_name, tiled=True), tree)

    def everywhere(n: int) -> int:
        """Rows of all devices, n being those of one."""
        return n if axis_name is None else n * lax.axis_size(axis_name)

    def local_latents(key: PRNG, real):
        """As many as reals, and on the devices where those are."""
        n = len(real)
        z = latents(key, everywhere(n))
        if axis_name is None:
            return _split_as(real, z)
        return lax.dynamic_slice_in_dim(z, lax.axis_index(axis_name) * n, n)

    def local_key(key: PRNG) -> PRNG:
        return key if axis_name is None else jax.random.fold_in(key, lax.axis_index(axis_name))

    def variables(player: Player) -> dict:
        return {"params": player.params, **player.stats}

    def first(y, z):
        """Labels of as many latents."""
        return None if y is None else y[: z.shape[0]]

    def generate(player: Player, z, y, **method):
        condition = () if y is None or method.get("method") == "synthesis" else (y,)
        return g_net.apply(variables(player), z, *condition, train=True, **method)

    def score(player: Player, x, y, view):
        """``(logits, head), stats`` of what D is shown of x."""
        out, stats = d_net.apply(
            variables(player), view(x), *(() if y is None else (y,)), train=True
        )
        if isinstance(out, tuple) != (auxiliary is not None):
            raise ValueError(
                "D must return (logits, head) with an auxiliary loss, else logits alone"
            )
        return (out if auxiliary else (out, None)), stats

    def views(memory, step, key: PRNG):
        """Augmentations for the reals and for the fakes of one update."""
        if augment is None:
            return (lambda x: x,) * 2
        apply, p = augment.apply, memory["augment"] if adaptive else at(augment.p, step)
        return tuple(
            lambda x, name=name: apply(x, local_key(stream(key, name)), p)
            for name in ("augment_real", "augment_fake")
        )

    def regularize(regs, params, critic: Callable, seen: Any, memory, now: Any, key: PRNG):
        """Sum of the weighted penalties, and the memory after it; both as before where it is not their turn.

        Of the type of the reals, also where G computes in a narrower one.
        """
        (g, real, fake, y, z, logits), (index, step) = seen, now
        scene = functools.partial(
            Scene,
            params,
            critic,
            lambda z, **method: generate(g, z, first(y, z), **method)[0].astype(real.dtype),
            real,
            fake.astype(real.dtype),
            z,
            logits,
        )
        total: Any = 0.0
        for every in sorted({reg.every for reg in regs.values()}):
            due = {name: reg for name, reg in regs.items() if reg.every == every}

            def penalty(memory, due=due, every=every):
                terms = []
                for name, reg in due.items():
                    value, new = reg.penalty.apply(
                        scene(key=local_key(stream(key, name))), memory.get(name)
                    )
                    terms.append(at(reg.weight, step) * jnp.mean(value))
                    if name in memory:
                        memory = memory | {name: pmean(new)}
                return every * sum(terms), memory

            if every == 1:
                value, memory = penalty(memory)
            else:
                zero = jnp.zeros((), jax.eval_shape(penalty, memory)[0].dtype)
                value, memory = lax.cond(
                    index % every == 0, penalty, lambda memory, zero=zero: (zero, memory), memory
                )
            total = total + value
        return total, memory

    def d_objective(g: Player, d: Player, memory, inputs: Any, index, step):
        """``value, (stats, memory, metrics)`` of D at update number ``index``, counted from the start of training."""
        real, y, z, key = inputs
        fake, _ = generate(g, z, y)
        see_real, see_fake = views(memory, step, key)
        (real_logits, real_head), stats = score(d, real, y, see_real)
        (fake_logits, fake_head), stats = score(d._replace(stats=stats), fake, y, see_fake)
        logits = real_logits, fake_logits = gather((real_logits, fake_logits))
        if loss.memory is None:
            value = jnp.mean(loss.d(real_logits, fake_logits))
        else:
            values, kept = loss.d(real_logits, fake_logits, memory["loss"])
            value, memory = jnp.mean(values), memory | {"loss": kept}
        metrics: Metrics = {"real": jnp.mean(real_logits), "fake": jnp.mean(fake_logits)}
        metrics["loss"] = value  # without the penalty, so that it compares across weights
        if auxiliary:
            weight, term = auxiliary
            heads = [real_head, fake_head] if term.on_fakes else [real_head]
            metrics["auxiliary"] = at(weight, step) * sum(
                jnp.mean(term.loss(*gather((head, y)))) for head in heads
            )
            value += metrics["auxiliary"]
        if d_regs:
            metrics["penalty"], memory = regularize(
                d_regs,
                d.params,
                lambda x: score(d, x, y, see_real)[0][0],
                (g, real, fake, y, z, logits),
                memory,
                (index, step),
                key,
            )
            value += metrics["penalty"]
        if adaptive:
            metrics["sign"] = jnp.mean(jnp.sign(real_logits))
            metrics["augment"] = memory["augment"]
        return value, (stats, memory, metrics)

    def g_objective(g: Player, d: Player, memory, inputs: Any, index, step):
        """``value, (stats, memory, metrics)`` of G."""
        real, y, z, key = inputs
        fake, stats = generate(g, z, y)
        see_real, see_fake = views(memory, step, key)
        (fake_logits, fake_head), _ = score(d, fake, y, see_fake)
        # Only relativistic losses look at the real logits; for the others XLA removes this forward pass.
        (real_logits, _), _ = score(d, real, y, see_real)
        logits = real_logits, fake_logits = gather((real_logits, fake_logits))
        value = jnp.mean(loss.g(real_logits, fake_logits))
        metrics: Metrics = {"loss": value}
        if auxiliary:
            weight, term = auxiliary
            metrics["auxiliary"] = at(weight, step) * jnp.mean(term.loss(*gather((fake_head, y))))
            value += metrics["auxiliary"]
        if g_regs:
            metrics["penalty"], memory = regularize(
                g_regs,
                g.params,
                lambda x: score(d, x, y, see_fake)[0][0],
                (g, real, fake, y, z, logits),
                memory,
                (index, step),
                key,
            )
            value += metrics["penalty"]
        return value, (stats, memory, metrics)

    def update(player: Player, tx, objective, memory, inputs):
        """One optimizer step on ``objective(player, memory, inputs) -> (value, (stats, memory, metrics))``."""

        def gradient(inputs):
            def of(params):
                return objective(player._replace(params=params), memory, inputs)

            (_, (stats, new, metrics)), grads = jax.value_and_grad(of, has_aux=True)(player.params)
            return pmean(stats), new, (grads, metrics)

        if accumulate == 1:
            stats, memory, (grads, metrics) = gradient(inputs)
        else:
            *rows, key = inputs
            parts = (*_in_turn(rows, accumulate), jax.random.split(key, accumulate))

            def micro(total, inputs):
                return jax.tree.map(jnp.add, total, gradient(inputs)), None

            # Each from the same start, as on devices: one after the other, averages would move as often as there are
            # micro-batches.
            shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            total, _ = lax.scan(micro, zeros, parts)
            stats, memory, (grads, metrics) = jax.tree.map(lambda x: x / accumulate, total)
        grads = pmean(grads)
        updates, opt = tx.update(grads, player.opt, player.params)
        params = optax.apply_updates(player.params, updates)
        metrics = pmean(metrics) | {"grad_norm": _global_norm(grads)}
        return Player(params, stats, opt), memory, metrics

    def draw(real, y, key: PRNG):
        """What an update of either player is computed from."""
        return real, y, local_latents(stream(key, "z"), real), key

    def adapted(memory, metrics: Metrics, n: int):
        """The memory after an update of D with n reals on each device.

        Of all of them, for the sign of a mean is not the mean of the signs of micro-batches.
        """
        if not adaptive:
            return memory
        p = adapt(memory["augment"], metrics["sign"], everywhere(n), *adaptive)
        return memory | {"augment": p}

    def d_update(state: GANState, real, y, index, key: PRNG):
        def objective(d, memory, inputs):
            return d_objective(state.g, d, memory, inputs, index, state.step)

        d, memory, metrics = update(state.d, d_tx, objective, state.memory, draw(real, y, key))
        return d, adapted(memory, metrics, len(real)), metrics

    def g_update(state: GANState, real, y, key: PRNG):
        def objective(g, memory, inputs):
            return g_objective(g, state.d, memory, inputs, state.step, state.step)

        return update(state.g, g_tx, objective, state.memory, draw(real, y, key))

    def play(rule: game.Rule, state: GANState, real, y, d_key: PRNG, g_key: PRNG):
        """An update of both players by the rule."""
        d_inputs, g_inputs = draw(real, y, d_key), draw(real, y, g_key)

        def losses(params):
            g, d = (p._replace(params=x) for p, x in zip((state.g, state.d), params, strict=True))
            now = state.step, state.step
            d_value, d_aux = d_objective(g, d, state.memory, d_inputs, *now)
            g_value, g_aux = g_objective(g, d, state.memory, g_inputs, *now)
            return (g_value, d_value), (g_aux, d_aux)

        params, opts, grads, aux = rule.update(
            losses, (g_tx, d_tx), (state.g.params, state.d.params), (state.g.opt, state.d.opt)
        )
        # Each objective changes its own part of the memory.
        g, d = (Player(p, a[0], o) for p, a, o in zip(params, aux, opts, strict=True))
        memory = aux[1][1] and aux[1][1] | {
            name: aux[0][1][name] for name in g_regs if name in aux[0][1]
        }
        metrics = tuple(
            a[2] | {"grad_norm": _global_norm(x)} for a, x in zip(aux, grads, strict=True)
        )
        return g, d, adapted(memory, metrics[1], len(real)), metrics

    def init(key: PRNG) -> GANState:
        labels = () if not classes else (jnp.zeros((2,), jnp.int32),)

        def player(net: Net, tx, key, example) -> Player:
            variables = dict(net.init(key, example, *labels))
            params = variables.pop("params")
            return Player(params, variables, tx.init(params))

        g = player(g_net, g_tx, stream(key, "g"), latents(stream(key, "z"), 2))
        d = player(d_net, d_tx, stream(key, "d"), jnp.zeros((2, *data_shape), dtype))
        # A copy, because a donated state must not hold one buffer twice.
        ema = None if ema_decay is None else jax.tree.map(jnp.copy, variables(g))
        memory = {name: reg.penalty.memory for name, reg in (d_regs | g_regs).items()}
        memory["loss"] = loss.memory
        memory["augment"] = augment.p if augment and adaptive else None
        memory = {
            name: jax.tree.map(lambda x: jnp.array(x, stored), kept)
            for name, kept in memory.items()
            if kept is not None
        }
        return GANState(jnp.zeros((), jnp.int32), g, d, ema, memory or None)

    def step(state: GANState, batch, key: PRNG) -> tuple[GANState, Metrics]:
        x, y = batch["x"], batch["y"].astype(jnp.int32) if classes else None
        if x.shape[0] % (d_steps * accumulate):
            raise ValueError(
                f"{x.shape[0]} rows of the batch are not a multiple of {d_steps=} times {accumulate=}"
            )
        x, y = _in_turn((x, y), d_steps)
        key = jax.random.fold_in(key, state.step)
        d_key, g_key = stream(key, "d"), stream(key, "g")
        before, state = state, state._replace(memory=state.memory or {})

        def d_iteration(carry, inputs):
            d, memory = carry
            i, real, y = inputs
            now = state._replace(d=d, memory=memory)
            index = state.step * d_steps + i
            d, memory, metrics = d_update(now, real, y, index, jax.random.fold_in(d_key, i))
            return (d, memory), metrics

        if rule is None:
            (d, memory), d_metrics = lax.scan(
                d_iteration,
                (state.d, state.memory),
                (jnp.arange(d_steps), x, y),
                unroll=d_steps == 1,
            )
            d_metrics = jax.tree.map(jnp.mean, d_metrics)
            against = state if simultaneous else state._replace(d=d)
            real, labels = jax.tree.map(lambda a: a[-1], (x, y))
            g, memory, g_metrics = g_update(against._replace(memory=memory), real, labels, g_key)
        else:
            real, labels = jax.tree.map(lambda a: a[0], (x, y))
            g, d, memory, (g_metrics, d_metrics) = play(
                rule, state, real, labels, jax.random.fold_in(d_key, 0), g_key
            )
        ema = state.ema
        if ema_decay is not None:
            t = state.step.astype(stored)
            decay = (
                ema_decay(t) if callable(ema_decay) else jnp.minimum(ema_decay, (1 + t) / (10 + t))
            )
            ema = optax.incremental_update(variables(g), ema, 1 - decay)
        metrics = {f"d/{k}": v for k, v in d_metrics.items()}
        metrics |= {f"g/{k}": v for k, v in g_metrics.items()}
        memory = before.memory and memory
        return GANState(before.step + 1, g, d, ema, memory), metrics

    def sample(state: GANState, key: PRNG, n: int, labels: Labels | None = None) -> Images:
        averaged = variables(state.g) if ema_decay is None else state.ema
        if classes:
            labels = jnp.arange(n, dtype=jnp.int32) % classes if labels is None else labels
        condition = (labels,) if classes else ()
        return sampler.apply(averaged, sample_latents(key, n), *condition, train=False)[0]

    return Algorithm(init, step, sample, classes)
