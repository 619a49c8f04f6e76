"""Two-player training: one update of D, one of G, composed into a pure step.

    min_G max_D  E log s(D(x)) + E log(1 - s(D(G(z))))        (Goodfellow et al. 2014, arXiv:1406.2661)

and every other adversarial pair: networks, loss, penalties, latent distribution and optimisers are arguments. Both
players are updated by the same private function and differ only in their objective. Nothing stops a gradient where a
closure already separates the players, so the step itself can be differentiated, vmapped and scanned.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bpgan.types import PRNG, AdversarialLoss, Algorithm, Latents, Metrics, Net, stream


class Player(NamedTuple):
    """One network in training: parameters, its other collections (batch statistics, ...), optimiser state."""

    params: Any
    stats: Any
    opt: Any


class GANState(NamedTuple):
    """Everything a run needs to go on: ``step`` counts G updates, ``ema`` the averaged variables of G or None."""

    step: jax.Array
    g: Player
    d: Player
    ema: Any


def uniform_latents(dim: int, dtype: Any = jnp.float32) -> Callable[[PRNG, int], Latents]:
    """``z ~ U(-1, 1)^dim``."""
    return lambda key, n: jax.random.uniform(key, (n, dim), dtype, -1.0, 1.0)


def normal_latents(dim: int, dtype: Any = jnp.float32) -> Callable[[PRNG, int], Latents]:
    """``z ~ N(0, I)`` in ``dim`` dimensions."""
    return lambda key, n: jax.random.normal(key, (n, dim), dtype)


def _global_norm(tree) -> jax.Array:
    """Euclidean norm over all leaves, as dot products.

    XLA on CPU does not vectorise a reduction fused into the gradient's computation (7 % of the step of a small MLP
    GAN); a dot product of the finished gradient costs a quarter of that.
    """
    squares = [jnp.vdot(x, x) for x in lax.optimization_barrier(jax.tree.leaves(tree))]
    return jnp.sqrt(sum(squares))


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
    penalties: Sequence[tuple[Any, Callable]] = (),
    penalty_every: int = 1,
    d_steps: int = 1,
    ema_decay: Any = None,
    simultaneous: bool = False,
    axis_name: str | None = None,
) -> Algorithm:
    """Binds networks, loss and optimisers into the pure functions of a GAN.

    One step is ``d_steps`` updates of D, each on its own ``b`` real examples and its own latents, then one update of
    G with fresh latents against the new D (or, if ``simultaneous``, against the D before its updates).

    Args:
      g_net, d_net: ``z[b, z] -> x[b, *data_shape]`` and ``x -> logits[b]``.
      loss: the adversarial pair; its mean over the batch is minimised.
      g_tx, d_tx: optimisers.
      latents: ``(key, n) -> z[n, z]``.
      data_shape, dtype: of one example.
      penalties: pairs ``(weight, penalty)`` added to D's objective as ``weight * mean(penalty)``.
      penalty_every: lazy regularisation (Karras et al. 2020, arXiv:1912.04958, App. B): penalties enter every k-th
        update of D, multiplied by k, so that their mean effect is unchanged.
      d_steps: updates of D per update of G. ``batch["x"]`` must have ``b * d_steps`` rows; update ``i`` takes rows
        ``i, i + d_steps, ...``.
      ema_decay: decay of the average of G's variables that ``sample`` uses; the effective decay at step t is
        ``min(ema_decay, (1 + t) / (10 + t))`` so that early averages forget the initialisation. None keeps no
        average, and ``sample`` uses G as it is.
      simultaneous: update both players from the same point (SimGD) instead of alternately (AltGD).
      axis_name: mapped axis when the step runs per device; gradients, statistics and metrics are averaged over it,
        and each device takes its rows of the latents of the global batch, so every mode sees the same ones. Noise
        inside a penalty (the points of ``wgan_gp``) is drawn by each device for itself.

    Returns:
      The algorithm, with state ``GANState`` and metrics ``d/loss, d/real, d/fake, d/grad_norm, g/loss, g/grad_norm``
      (and ``d/penalty``, weighted, if there are penalties; ``d/loss`` is without it) before the respective update.

    Raises:
      ValueError: from ``step``, at trace time, if the rows of the batch are not a multiple of ``d_steps``.
    """
    if d_steps < 1 or penalty_every < 1:
        raise ValueError(f"d_steps={d_steps} and penalty_every={penalty_every} must be at least 1")

    def pmean(tree):
        return tree if axis_name is None else lax.pmean(tree, axis_name)

    def local_latents(key: PRNG, n: int):
        if axis_name is None:
            return latents(key, n)
        z = latents(key, n * lax.axis_size(axis_name))
        return lax.dynamic_slice_in_dim(z, lax.axis_index(axis_name) * n, n)

    def local_key(key: PRNG) -> PRNG:
        return key if axis_name is None else jax.random.fold_in(key, lax.axis_index(axis_name))

    def variables(player: Player) -> dict:
        return {"params": player.params, **player.stats}

    def generate(player: Player, params, z):
        return g_net.apply(variables(player._replace(params=params)), z, train=True)

    def score(player: Player, params, x):
        return d_net.apply(variables(player._replace(params=params)), x, train=True)

    def update(player: Player, tx, objective) -> tuple[Player, Metrics]:
        """One optimiser step on ``objective(params) -> (loss, (stats, metrics))``."""
        (value, (stats, metrics)), grads = jax.value_and_grad(objective, has_aux=True)(
            player.params
        )
        grads = pmean(grads)
        updates, opt = tx.update(grads, player.opt, player.params)
        params = optax.apply_updates(player.params, updates)
        metrics = pmean({"loss": value} | metrics) | {"grad_norm": _global_norm(grads)}
        return Player(params, pmean(stats), opt), metrics

    def d_update(state: GANState, real, index, key: PRNG):
        """Update number ``index`` of D, counted from the start of training."""
        z = local_latents(stream(key, "z"), real.shape[0])
        fake, _ = generate(state.g, state.g.params, z)

        def objective(params):
            real_logits, stats = score(state.d, params, real)
            fake_logits, stats = score(state.d._replace(stats=stats), params, fake)
            value = jnp.mean(loss.d(real_logits, fake_logits))
            metrics: Metrics = {"real": jnp.mean(real_logits), "fake": jnp.mean(fake_logits)}
            metrics["loss"] = value  # without the penalty, so that it compares across weights
            if penalties:

                def penalty():
                    return penalty_every * sum(
                        weight
                        * jnp.mean(
                            function(
                                lambda x: score(state.d, params, x)[0],
                                real,
                                fake,
                                local_key(stream(key, f"penalty{i}")),
                            )
                        )
                        for i, (weight, function) in enumerate(penalties)
                    )

                if penalty_every == 1:
                    metrics["penalty"] = penalty()
                else:
                    metrics["penalty"] = lax.cond(
                        index % penalty_every == 0, penalty, lambda: jnp.zeros_like(value)
                    )
                value += metrics["penalty"]
            return value, (stats, metrics)

        return update(state.d, d_tx, objective)

    def g_update(state: GANState, real, key: PRNG):
        z = local_latents(stream(key, "z"), real.shape[0])

        def objective(params):
            fake, stats = generate(state.g, params, z)
            fake_logits, _ = score(state.d, state.d.params, fake)
            # Only relativistic losses look at the real logits; for the others XLA removes this forward pass.
            real_logits, _ = score(state.d, state.d.params, real)
            return jnp.mean(loss.g(real_logits, fake_logits)), (stats, {})

        return update(state.g, g_tx, objective)

    def init(key: PRNG) -> GANState:
        def player(net: Net, tx, key, example) -> Player:
            variables = dict(net.init(key, example))
            params = variables.pop("params")
            return Player(params, variables, tx.init(params))

        g = player(g_net, g_tx, stream(key, "g"), latents(stream(key, "z"), 2))
        d = player(d_net, d_tx, stream(key, "d"), jnp.zeros((2, *data_shape), dtype))
        # A copy, because a donated state must not hold one buffer twice.
        ema = None if ema_decay is None else jax.tree.map(jnp.copy, variables(g))
        return GANState(jnp.zeros((), jnp.int32), g, d, ema)

    def step(state: GANState, batch, key: PRNG) -> tuple[GANState, Metrics]:
        x = batch["x"]
        if x.shape[0] % d_steps:
            raise ValueError(f"{x.shape[0]} rows of the batch are not a multiple of {d_steps=}")
        x = jnp.moveaxis(x.reshape(-1, d_steps, *x.shape[1:]), 1, 0)
        key = jax.random.fold_in(key, state.step)
        d_key, g_key = stream(key, "d"), stream(key, "g")

        def d_iteration(d: Player, inputs):
            i, real = inputs
            index = state.step * d_steps + i
            return d_update(state._replace(d=d), real, index, jax.random.fold_in(d_key, i))

        d, d_metrics = lax.scan(d_iteration, state.d, (jnp.arange(d_steps), x), unroll=d_steps == 1)
        g, g_metrics = g_update(state if simultaneous else state._replace(d=d), x[-1], g_key)
        ema = state.ema
        if ema_decay is not None:
            t = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1 + t) / (10 + t))
            ema = optax.incremental_update(variables(g), ema, 1 - decay)
        metrics = {f"d/{k}": jnp.mean(v) for k, v in d_metrics.items()}
        metrics |= {f"g/{k}": v for k, v in g_metrics.items()}
        return GANState(state.step + 1, g, d, ema), metrics

    def sample(state: GANState, key: PRNG, n: int):
        averaged = variables(state.g) if ema_decay is None else state.ema
        return g_net.apply(averaged, latents(key, n), train=False)[0]

    return Algorithm(init, step, sample)
