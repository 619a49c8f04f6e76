"""Players who take turns: the step of every trainable system.

A *player* is what one optimizer moves. A *turn* lowers the sum of its *terms* over the parameters of one player while
the others stand still,

    w_p <- w_p + tx(grad_{w_p} sum_i every_i [update is a multiple of every_i] objective_i(w)),

and an *algorithm* is players, their turns in order, averages, and a way to draw samples. A classifier has one turn, a
GAN two, a CycleGAN three; a private GAN has a turn with another ``gradient`` (``bpgan.privacy``). Two players may also
be moved at once, by a ``Rule`` (``bpgan.algorithms.game``).

What is done here is done for all of them: turns that are repeated, gradients accumulated over micro-batches, lazy
regularization, averages of parameters, memories, and the devices that share a batch, of which only ``Axis`` knows. An
algorithm adds objectives ``now -> (value, Aux)``, plain functions of what there is ``now``.

A system with one player, which descends ``(w - mean x)^2 / 2``:

>>> def objective(now):
...     value = jnp.square(now.players["w"].params - jnp.mean(now.batch["x"])) / 2
...     return value, Aux(metrics={"loss": value})
>>> system = play(lambda key: {"w": {"params": jnp.zeros(())}}, [Turn("w", [Term(objective)], optax.sgd(0.5))])
>>> state, metrics = system.step(system.init(None), {"x": jnp.ones(4)}, jax.random.key(0))
>>> float(state.players["w"].params), float(metrics["loss"])
(0.5, 0.5)
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bpgan.optim import Averages, names_of_averages
from bpgan.sharding import split_as
from bpgan.types import PRNG, Algorithm, Batch, Metrics, Params, stream

Scalar = float | jax.Array | Callable[[jax.Array], Any]
"""A number, or a function of the step (``bpgan.optim.schedule``)."""


class Player(NamedTuple):
    """What one optimizer moves: parameters, other collections (batch statistics, ...), optimizer state."""

    params: Params
    stats: Any
    opt: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What ``Net.apply`` takes."""
        return {"params": self.params, **self.stats}


class State(NamedTuple):
    """Everything a run needs to go on.

    Attributes:
      step: steps so far, int32.
      players: by name.
      ema: averaged variables of some players, by name, and of further averages by ``optim.names_of_averages``.
      memory: what losses, penalties and augmentations remember, by name.
    """

    step: jax.Array
    players: dict[str, Player]
    ema: dict[str, Any]
    memory: dict[str, Any]


class Axis(NamedTuple):
    """The devices that share a batch: all in one program (``name=None``), or one of several along a mapped axis."""

    name: str | None = None

    def mean(self, tree: Any) -> Any:
        """The mean over devices."""
        return tree if self.name is None else lax.pmean(tree, self.name)

    def gather(self, tree: Any) -> Any:
        """Rows of all devices."""
        if self.name is None:
            return tree
        return jax.tree.map(lambda x: lax.all_gather(x, self.name, tiled=True), tree)

    def total(self, n: int) -> int:
        """Rows of all devices, n being those of one."""
        return n if self.name is None else n * lax.axis_size(self.name)

    def key(self, key: PRNG) -> PRNG:
        """A key of this device's own, for noise."""
        return key if self.name is None else jax.random.fold_in(key, lax.axis_index(self.name))

    def rows(self, draw: Callable[[int], jax.Array], like: jax.Array) -> jax.Array:
        """As many rows of ``draw(n)`` as ``like`` has, and on the devices where those are.

        They are drawn for the global batch and each device takes its own, so that every mode sees the same ones.
        """
        n = len(like)
        drawn = draw(self.total(n))
        if self.name is None:
            # A loss that looks at the fakes alone does not tell XLA to split them: every device would compute all.
            return split_as(like, drawn)
        return lax.dynamic_slice_in_dim(drawn, lax.axis_index(self.name) * n, n)


TOGETHER = Axis()


class Now(NamedTuple):
    """What an objective may look at.

    Attributes:
      players: all of them, the one that moves with the parameters to be differentiated.
      batch: arrays ``[b, ...]`` of this device: those of the data, and those that the turn drew and prepared.
      key: of this update.
      step: steps before this one.
      index: updates of the player that moves before this one.
      memory: before this update.
      axis: the devices.
    """

    players: Mapping[str, Player]
    batch: Batch
    key: PRNG
    step: jax.Array
    index: jax.Array
    memory: Mapping[str, Any]
    axis: Axis

    def noise_key(self, name: str) -> PRNG:
        """A key of this device's own, for noise of that name."""
        return self.axis.key(stream(self.key, name))

    def of(self, params: Mapping[str, Params]) -> "Now":
        """The same with other parameters of some players."""
        moved = {name: self.players[name]._replace(params=p) for name, p in params.items()}
        return self._replace(players={**self.players, **moved})

    def beside(self, rows: Batch) -> "Now":
        """The same with more arrays in the batch."""
        if not rows:
            return self
        return self._replace(batch={**self.batch, **rows})


class Aux(NamedTuple):
    """What an objective returns beside its value.

    Attributes:
      stats: collections of the moving player other than its parameters, as they are now; None if it did not change any.
        A term that is lazy may not change them.
      memory: the entries that this term changed.
      metrics: scalars; those of the same name are added up over the terms.
    """

    stats: Any = None
    memory: Mapping[str, Any] = {}
    metrics: Metrics = {}


Objective = Callable[[Now], tuple[jax.Array, Aux]]


class Term(NamedTuple):
    """A part of what a player minimizes: every ``every``-th update, ``every`` times as much.

    That is lazy regularization (Karras et al. 2020, arXiv:1912.04958, App. B): the mean effect is the same. Metrics are
    multiplied as well. The gradient of a lazy term is taken inside the branch, so that nothing of its forward pass has
    to leave it, and each term shares what the turn has prepared.
    """

    objective: Objective
    every: int = 1


Gradient = Callable[[Objective, Now, str], tuple[tuple[jax.Array, Aux], Params]]
"""``(objective, now, player) -> ((value, aux), gradient)``, of the mean over the rows of ``now.batch``."""


def autodiff(objective: Objective, now: Now, player: str) -> tuple[tuple[jax.Array, Aux], Params]:
    """The gradient by JAX. Another one is by hand (``bpgan.backprop``), or of each example by itself, clipped."""

    def of(params: Params) -> tuple[jax.Array, Aux]:
        return objective(now.of({player: params}))

    return jax.value_and_grad(of, has_aux=True)(now.players[player].params)


def own_key(key: PRNG, player: str, repetition: Any) -> PRNG:
    """A random stream for each player and repetition."""
    return jax.random.fold_in(stream(key, player), repetition)


def _no_rows(now: Now) -> Batch:
    del now
    return {}


def _nothing(now: Now, metrics: Metrics) -> Mapping[str, Any]:
    del now, metrics
    return {}


class Turn(NamedTuple):
    """Updates of one player.

    Attributes:
      player: its name.
      terms: what it minimizes the sum of; the first one in every update.
      tx: its optimizer.
      repeats: updates in a step, each on rows of its own: update ``i`` of ``n`` has the rows ``i, i + n, ...`` of the
        batch. A player that is moved once, where another is moved n times, has the last of their parts.
      draw: ``now -> rows`` that an update adds to the batch, before that is cut into micro-batches: latents.
      prepare: ``now -> rows`` that the terms share, of each micro-batch: fakes. The gradient does not go through them.
      gradient: computes it.
      due: ``now -> bool``, whether it is this player's turn in this step at all; None: it is in every step. In the
        others it stands still, and its metrics are those of its last update, which the memory keeps under its name:
        ``play(memory={player: {metric: 0.0}})`` names them all. ``index`` then counts steps.
      after: ``(now, metrics) -> memory``, the entries that change by the metrics of the whole update.
      key: ``(key of the step, player, repetition) -> key`` of the update.
    """

    player: str
    terms: Sequence[Term]
    tx: optax.GradientTransformation
    repeats: int = 1
    draw: Callable[[Now], Batch] = _no_rows
    prepare: Callable[[Now], Batch] = _no_rows
    gradient: Gradient = autodiff
    due: Callable[[Now], jax.Array] | None = None
    after: Callable[[Now, Metrics], Mapping[str, Any]] = _nothing
    key: Callable[[PRNG, str, Any], PRNG] = own_key


def as_it_is(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer."""
    return tx


class Rule(NamedTuple):
    """How two players are moved at once, by the gradients of both objectives (``bpgan.algorithms.game.RULES``).

    Attributes:
      update: ``(losses, txs, params, opts) -> (params, opts, gradients, aux)``, each but the first a pair.
      optimizer: wraps each player's optax transformation; ``txs`` and ``opts`` of ``update`` are those of the wrapped.
      counts: by how much an update advances the optimizers' states, and so the count of their schedules.
      remembers: whether a step depends on the ones before it. It may then go beyond what an optimizer allows, such as a
        bound of the parameters.
    """

    update: Callable[..., tuple[Any, Any, Any, Any]]
    optimizer: Callable[[optax.GradientTransformation], optax.GradientTransformation] = as_it_is
    counts: int = 1
    remembers: bool = False


def global_norm(tree: Any) -> jax.Array:
    """Euclidean norm over all leaves; 0 if there are none."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return jnp.zeros(())
    return jnp.sqrt(lax.platform_dependent(*leaves, cpu=_dots, default=_dot_of_one_vector))


_LANES = 32


def _dots(*leaves: jax.Array) -> jax.Array:
    """The sum of squares of each leaf in a pass of its own.

    XLA on CPU does not vectorize a reduction fused into the gradient's computation (7 % of the step of a small MLP
    GAN), and a dot product of a vector with itself a little. Of a large leaf, the squares of 32 parts are added up
    first, place by place, which it vectorizes in full.
    """
    return functools.reduce(operator.add, map(_folded, lax.optimization_barrier(leaves)))


def _folded(x: jax.Array) -> jax.Array:
    if x.size % _LANES or x.size < 2**14:
        return _square(x)
    parts = x.reshape(_LANES, -1)
    return jnp.sum(functools.reduce(operator.add, (parts[i] * parts[i] for i in range(_LANES))))


def _dot_of_one_vector(*leaves: jax.Array) -> jax.Array:
    """The same in one reduction of all leaves: on an accelerator, each by itself would be a kernel or two."""
    vector = jnp.concatenate([jnp.ravel(x) for x in leaves])
    return _square(vector)


def _square(x: jax.Array) -> jax.Array:
    return jnp.vdot(x, x, precision=lax.Precision.HIGHEST)


def deal(tree: Any, parts: int) -> Any:
    """Rows dealt out to ``parts`` parts, ``[b, ...]`` to ``[parts, b / parts, ...]``: each has rows of every device."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), tree)


def _joined(a: Aux, b: Aux) -> Aux:
    metrics = dict(a.metrics)
    for name, value in b.metrics.items():
        metrics[name] = metrics[name] + value if name in metrics else value
    return Aux(a.stats if b.stats is None else b.stats, {**a.memory, **b.memory}, metrics)


def _everytime(turn: Turn) -> Objective:
    """The sum of the terms of every update, with what changed averaged over the devices."""

    def objective(now: Now) -> tuple[jax.Array, Aux]:
        first, *others = (term.objective(now) for term in turn.terms if term.every == 1)
        value, aux = first
        for more, found in others:
            value, aux = value + more, _joined(aux, found)
        return value, aux._replace(stats=now.axis.mean(aux.stats), memory=now.axis.mean(aux.memory))

    return objective


def _multiplied(term: Term) -> Objective:
    """A lazy term as it enters the update in which it is due."""

    def objective(now: Now) -> tuple[jax.Array, Aux]:
        value, aux = term.objective(now)
        metrics = {name: term.every * x for name, x in aux.metrics.items()}
        return term.every * value, Aux(None, now.axis.mean(dict(aux.memory)), metrics)

    return objective


def _if_due(term: Term, now: Now, compute: Callable[[], tuple[Aux, Any]]) -> tuple[Aux, Any]:
    """``compute()`` in every ``every``-th update; else zeros, and the memory as it is."""

    def idle() -> tuple[Aux, Any]:
        shapes = jax.eval_shape(compute)
        aux, numbers = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return aux._replace(memory={name: now.memory[name] for name in aux.memory}), numbers

    return lax.cond(now.index % term.every == 0, compute, idle)


def _sum(
    turn: Turn, now: Now, evaluate: Callable[[Objective, Now], tuple[Aux, Any]]
) -> tuple[Aux, Any]:
    """The sum over the terms that are due of what ``evaluate`` makes of an objective: its value, or its gradient."""
    now = now.beside(turn.prepare(now))
    aux, total = evaluate(_everytime(turn), now)
    for term in turn.terms:
        if term.every > 1:
            compute = functools.partial(evaluate, _multiplied(term), now)
            found, more = _if_due(term, now, compute)
            aux, total = _joined(aux, found), jax.tree.map(jnp.add, total, more)
    return aux, total


def _value(turn: Turn, now: Now) -> tuple[Aux, jax.Array]:
    """What a rule differentiates."""

    def evaluate(objective: Objective, now: Now) -> tuple[Aux, jax.Array]:
        value, aux = objective(now)
        return aux, value

    return _sum(turn, now, evaluate)


def _gradient(turn: Turn, now: Now) -> tuple[Aux, Params]:
    """What an optimizer moves the player by."""

    def evaluate(objective: Objective, now: Now) -> tuple[Aux, Params]:
        (_, aux), gradient = turn.gradient(objective, now, turn.player)
        return aux, gradient

    return _sum(turn, now, evaluate)


def _accumulated(turn: Turn, now: Now, parts: int) -> tuple[Aux, Params]:
    """The mean over micro-batches of the gradient, and of all that changes, one after the other.

    Each goes from the same start, as on devices: else averages would move as often as there are micro-batches.
    """
    if parts == 1:
        return _gradient(turn, now)
    micro = deal(now.batch, parts), jax.random.split(now.key, parts)

    def one(part: Any) -> tuple[Aux, Params]:
        batch, key = part
        return _gradient(turn, now._replace(batch=batch, key=key))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(part)), None

    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], micro))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = lax.scan(add, zeros, micro)
    return jax.tree.map(lambda x: x / parts, total)


def _settled(
    turn: Turn, now: Now, memory: Mapping[str, Any], aux: Aux, metrics: Metrics
) -> dict[str, Any]:
    """The memory after an update whose entries in ``aux`` changed."""
    memory = {**memory, **aux.memory}
    return {**memory, **turn.after(now._replace(memory=memory), metrics)}


def update(turn: Turn, now: Now, accumulate: int = 1) -> tuple[Player, dict[str, Any], Metrics]:
    """One update of one player: the player, the memory and the metrics."""
    player = now.players[turn.player]
    with jax.named_scope("draw"):  # for profiles, as those below
        now = now.beside(turn.draw(now))
    aux, gradient = _accumulated(turn, now, accumulate)
    gradient = now.axis.mean(gradient)
    with jax.named_scope("optimizer"):
        updates, opt = turn.tx.update(gradient, player.opt, player.params)
        params = optax.apply_updates(player.params, updates)
    stats = player.stats if aux.stats is None else aux.stats
    with jax.named_scope("grad_norm"):
        norm = global_norm(gradient)
    metrics = now.axis.mean(dict(aux.metrics)) | {"grad_norm": norm}
    return Player(params, stats, opt), _settled(turn, now, now.memory, aux, metrics), metrics


def _repeated(
    turn: Turn, now: Now, rows: Any, key: PRNG, accumulate: int
) -> tuple[Player, dict, Metrics]:
    """The updates of a turn, on the parts that ``rows`` are dealt out to; metrics are means over them."""

    def once(player: Player, memory: Mapping[str, Any], i: Any, batch: Batch) -> Any:
        players = {**now.players, turn.player: player}
        own, index = turn.key(key, turn.player, i), now.step * turn.repeats + i
        here = now._replace(players=players, memory=memory, batch=batch, key=own, index=index)
        return update(turn, here, accumulate)

    player = now.players[turn.player]
    if turn.repeats == 1:
        last = jax.tree.map(lambda x: x[-1], rows)
        if turn.due is not None:
            return _in_its_turn(turn, now, lambda: once(player, now.memory, 0, last))
        return once(player, now.memory, 0, last)

    def body(carry: Any, inputs: Any) -> Any:
        player, memory, metrics = once(*carry, *inputs)
        return (player, memory), metrics

    start = (player, dict(now.memory))
    (player, memory), metrics = lax.scan(body, start, (jnp.arange(turn.repeats), rows))
    return player, memory, jax.tree.map(jnp.mean, metrics)


def _in_its_turn(
    turn: Turn, now: Now, move: Callable[[], tuple[Player, dict[str, Any], Metrics]]
) -> tuple[Player, dict, Metrics]:
    """``move()`` where the turn is due; else the player and the memory as they are, and the metrics kept there."""
    assert turn.due is not None
    kept = now.memory[turn.player]

    def moved() -> tuple[Player, dict[str, Any]]:
        player, memory, metrics = move()
        if set(metrics) != set(kept):
            raise ValueError(f"memory of {turn.player}: must have its metrics, {sorted(metrics)}")
        as_kept = {name: metrics[name].astype(x.dtype) for name, x in kept.items()}
        return player, {**memory, turn.player: as_kept}

    def idle() -> tuple[Player, dict[str, Any]]:
        return now.players[turn.player], dict(now.memory)

    player, memory = lax.cond(turn.due(now), moved, idle)
    return player, memory, dict(memory[turn.player])


def _by_rule(
    rule: Rule, turns: Sequence[Turn], state: State, batch: Batch, key: PRNG
) -> tuple[dict[str, Player], dict[str, Any], dict[str, Metrics]]:
    """Both players moved at once. A rule's first player is the one whose turn would come last."""
    pair = turns[::-1]
    names = [turn.player for turn in pair]
    both, nows = objectives(turns, state, batch, key)

    def losses(params: Any) -> Any:
        values, found = both(dict(zip(names, params, strict=True)))
        return tuple(values[name] for name in names), found

    old = [state.players[name] for name in names]
    params, opts, gradients, found = rule.update(
        losses, tuple(turn.tx for turn in pair), tuple(p.params for p in old), tuple(p.opt for p in old)
    )  # fmt: skip
    players, memory, metrics = {}, dict(state.memory), {}
    for turn, p, opt, gradient, before in zip(pair, params, opts, gradients, old, strict=True):
        name = turn.player
        aux = found[name]
        players[name] = Player(p, before.stats if aux.stats is None else aux.stats, opt)
        metrics[name] = aux.metrics | {"grad_norm": global_norm(gradient)}
        memory = _settled(turn, nows[name], memory, aux, metrics[name])
    return players, memory, metrics


def objectives(
    turns: Sequence[Turn], state: State, batch: Batch, key: PRNG
) -> tuple[Callable[[Mapping[str, Params]], tuple[dict, dict]], dict[str, Now]]:
    """What each player minimizes at a state, as a function of the parameters of all.

    Args:
      turns: of the players.
      state: where they are.
      batch: of one step.
      key: the root key of the steps.

    Returns:
      ``{name: params} -> ({name: value}, {name: Aux})``, and what there is ``now`` for each player.
    """
    key = jax.random.fold_in(key, state.step)
    nows = {}
    for turn in turns:
        index = state.step * turn.repeats
        own = turn.key(key, turn.player, 0)
        now = Now(state.players, batch, own, state.step, index, state.memory, TOGETHER)
        nows[turn.player] = now.beside(turn.draw(now))

    def values(params: Mapping[str, Params]) -> tuple[dict, dict]:
        found = {turn.player: _value(turn, nows[turn.player].of(params)) for turn in turns}
        return {n: value for n, (_, value) in found.items()}, {
            n: aux for n, (aux, _) in found.items()
        }

    return values, nows


def _averaged(decay: Scalar, t: jax.Array, new: Any, old: Any) -> Any:
    """``a <- d a + (1 - d) w``; of a number d, early averages are shorter, ``min(d, (1 + t) / (10 + t))``."""
    d = decay(t) if callable(decay) else jnp.minimum(decay, (1 + t) / (10 + t))
    return optax.incremental_update(new, old, 1 - d)


def _as_averages(kept: Scalar | Averages) -> Averages:
    return kept if isinstance(kept, Averages) else Averages((kept,))


def _reloaded(player: Player, average: Any, done: jax.Array, every: int) -> Player:
    """The player as its average in every ``every``-th step, else as it is. Its optimizer goes on as it was."""
    variables = lax.cond(done % every == 0, lambda: average, lambda: player.variables)
    stats = dict(variables)
    return player._replace(params=stats.pop("params"), stats=stats)


def play(
    init: Callable[[PRNG], Mapping[str, Any]],
    turns: Sequence[Turn],
    *,
    accumulate: int = 1,
    ema: Mapping[str, Scalar | Averages] | None = None,
    memory: Mapping[str, Any] | None = None,
    rule: Rule | None = None,
    dtype: Any = jnp.float32,
    axis: Axis = TOGETHER,
    sample: Callable[..., Any] | None = None,
    classes: int = 0,
) -> Algorithm:
    """The algorithm whose players take these turns, one after the other, in every step.

    Args:
      init: ``key -> {name: variables}``, where variables are ``{"params": ..., **other collections}``.
      turns: one for each player. Their ``repeats`` are 1 or the same number n, and a batch has the rows of n updates.
      accumulate: micro-batches into which the examples of an update are cut, one after the other, for the mean of their
        gradients and of what they remember: the same update in less memory, unless something mixes examples.
      ema: decay of the average of a player's variables. A number d stands for ``min(d, (1 + t) / (10 + t))`` at step t,
        so that early averages forget the initialization; a function of the step is taken as it is. ``optim.Averages``
        are several at once, and perhaps steps after which the player goes on from the first of them, with the moments
        of its optimizer; the metric ``reloads`` says how often it has.
      memory: at the start, pytrees of float arrays by name.
      rule: moves both players of two turns at once, in the place of alternate updates.
      dtype: of the players; averages of the step and memories are of it or of float32, if that is wider.
      axis: the devices that share a batch. Gradients, statistics, memories and metrics are averaged over them.
      sample, classes: of ``Algorithm``.

    Returns:
      The algorithm, with state ``State``. Its metrics are those of the terms and ``grad_norm``, before the respective
      update; with several players, under ``player/name``.

    Raises:
      ValueError: numbers below 1, a rule together with what it replaces; from ``step``, at trace time, if the rows of
        the batch are not a multiple of the repeats times ``accumulate``.
    """
    repeats = _checked(turns, accumulate, rule, axis)
    if rule is not None:
        turns = [turn._replace(tx=rule.optimizer(turn.tx)) for turn in turns]
    stored = jnp.promote_types(dtype, jnp.float32)
    averaged = {name: _as_averages(kept) for name, kept in (ema or {}).items()}
    named = {name: names_of_averages(name, len(kept.decays)) for name, kept in averaged.items()}

    def start(key: PRNG) -> State:
        txs = {turn.player: turn.tx for turn in turns}
        players = {}
        for name, variables in init(key).items():
            stats = dict(variables)
            params = stats.pop("params")
            players[name] = Player(params, stats, txs[name].init(params))
        # Copies, because a donated state must not hold one buffer twice.
        averages = {
            key: jax.tree.map(jnp.copy, players[name].variables)
            for name, keys in named.items()
            for key in keys
        }
        kept = jax.tree.map(lambda x: jnp.array(x, stored), dict(memory or {}))
        return State(jnp.zeros((), jnp.int32), players, averages, kept)

    def step(state: State, batch: Batch, key: PRNG) -> tuple[State, Metrics]:
        players, kept, metrics = dict(state.players), dict(state.memory), {}
        if rule is not None:
            players, kept, metrics = _by_rule(rule, turns, state, batch, key)
        else:
            rows, own = _parts(batch, repeats, accumulate), jax.random.fold_in(key, state.step)
            for turn in turns:
                now = Now(players, batch, own, state.step, state.step, kept, axis)
                moved = _repeated(turn, now, rows, own, accumulate)
                players[turn.player], kept, metrics[turn.player] = moved
        t = state.step.astype(stored)
        averages = {}
        for name, kept_of in averaged.items():
            for place, decay in zip(named[name], kept_of.decays, strict=True):
                averages[place] = _averaged(decay, t, players[name].variables, state.ema[place])
            if every := kept_of.reload:
                done = state.step + 1
                players[name] = _reloaded(players[name], averages[name], done, every)
                metrics[name] = metrics[name] | {"reloads": (done // every).astype(stored)}
        return State(state.step + 1, players, averages, kept), _named(metrics)

    def each(state: State, batch: Batch, key: PRNG) -> Callable[[Mapping[str, Params]], Any]:
        return objectives(turns, state, batch, key)[0]

    return Algorithm(start, step, sample, classes, each)


def _checked(turns: Sequence[Turn], accumulate: int, rule: Rule | None, axis: Axis) -> int:
    """The greatest number of repeats."""
    repeats = max(turn.repeats for turn in turns)
    for turn in turns:
        if turn.repeats not in (1, repeats) or repeats < 1:
            raise ValueError(
                f"repeats={turn.repeats}: must be at least 1, and one number for all players"
            )
        if any(term.every < 1 for term in turn.terms):
            raise ValueError(f"every of {turn.player}: must be at least 1")
        if all(term.every > 1 for term in turn.terms):
            raise ValueError(f"terms of {turn.player}: one of them must enter every update")
        if turn.due is not None and (turn.repeats > 1 or any(t.every > 1 for t in turn.terms)):
            raise ValueError(
                f"due of {turn.player}: not together with repeats or lazy terms, which count updates"
            )
    if accumulate < 1:
        raise ValueError(f"{accumulate=}: must be at least 1")
    due = any(turn.due is not None for turn in turns)
    if rule is not None and (len(turns) != 2 or repeats > 1 or accumulate > 1 or axis.name or due):
        raise ValueError(
            "rule: of two players, and not together with repeated or due turns, accumulate or a mapped axis,"
            " whose updates it replaces"
        )
    return repeats


def _parts(batch: Batch, repeats: int, accumulate: int) -> Any:
    """The rows of each repetition, ``[repeats, b, ...]``."""
    for x in jax.tree.leaves(batch):
        if len(x) % (repeats * accumulate):
            raise ValueError(
                f"{len(x)} rows of the batch are not a multiple of {repeats=} times {accumulate=}"
            )
    return deal(dict(batch), repeats)


def _named(metrics: Mapping[str, Metrics]) -> Metrics:
    if len(metrics) == 1:
        return dict(*metrics.values())
    return {f"{player}/{name}": x for player, found in metrics.items() for name, x in found.items()}
