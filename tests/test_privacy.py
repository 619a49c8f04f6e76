"""The private turn: what a record can do to it, its noise, its count of updates; and mutants of each, which die."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from bpgan import data
from bpgan.algorithms import gan
from bpgan.algorithms.turns import Aux, Axis, Now, Player, Term, Turn, autodiff
from bpgan.data import poisson
from bpgan.losses import LOSSES, mixes_examples, sees_reals
from bpgan.nets import linen_net, mlp
from bpgan.penalties import PENALTIES, weighted
from bpgan.privacy import dpgan, mechanism
from bpgan.privacy.clipping import clipped_sum
from bpgan.runtime.program import compile_program
from bpgan.types import stream

SHAPE, ROWS, KEY = (3,), 6, jax.random.key(5)
X = np.random.default_rng(0).normal(size=(ROWS, *SHAPE))


def batch_of(x, mask=None, step=0, **more):
    """A batch as ``data.poisson`` has it."""
    n = len(x)
    words = jax.random.key_data(KEY)
    return {
        "x": jnp.asarray(x),
        "y": jnp.zeros(n, jnp.int32),
        "mask": jnp.ones(n, bool) if mask is None else jnp.asarray(mask),
        "index": jnp.arange(n) + step,
        "overflow": jnp.zeros(n, bool),
        "secret": jnp.broadcast_to(words, (n, 2)),
    } | more


def setting(penalties=(), loss="nonsaturating", dtype=jnp.float64):
    g, d = mlp.Generator(SHAPE, (4,), dtype=dtype), mlp.Discriminator((4,), dtype=dtype)
    networks = gan.Networks(linen_net(g), linen_net(d), gan.normal_latents(2, dtype), SHAPE, dtype)
    return gan.Setting(networks, LOSSES[loss], penalties=gan.named(penalties))


def now_of(params, batch, index=0):
    player = Player(params, {}, None)
    step = jnp.int32(index)
    return Now({"d": player}, batch, jax.random.key(1), step, step, {}, Axis())


def logistic(now):
    """``mean_b log(1 + e^(w x_b))``."""
    return jnp.mean(jax.nn.softplus(now.batch["x"] @ now.players["d"].params["w"])), Aux()


def of_d(objective, now, player):
    """The ordinary gradient of the batch, with nothing to log."""
    (value, aux), gradient = autodiff(objective, now, player)
    return (value, Aux()), gradient


# T5.1 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.medium
@pytest.mark.parametrize("penalties", [(), [weighted(0.3, PENALTIES["r1"])]])
def test_without_noise_and_clipping_it_is_the_ordinary_step(x64, penalties):
    """T5.1: sigma = 0, C infinite, q = 1: D after three steps is that of the gradient of the batch, by Adam."""
    made = setting(penalties)
    txs = gan.Optimizers(optax.sgd(0.1), optax.adam(1e-2))
    gradient = mechanism.gaussian(np.inf, 0.0, ROWS)
    options = dict(batch_size=4, d_steps=dpgan.DSteps(2))
    algorithms = [dpgan.make(made, txs, each, **options) for each in (gradient, of_d)]
    a, b = (each.init(jax.random.key(0)) for each in algorithms)
    steps = [jax.jit(each.step) for each in algorithms]
    for _ in range(3):
        a, metrics = steps[0](a, batch_of(X), jax.random.key(2))
        b, _ = steps[1](b, batch_of(X), jax.random.key(2))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9),
        a.players["d"].params,
        b.players["d"].params,
    )
    assert set(metrics) == {"d/grad_norm", "g/loss", "g/fake", "g/accuracy", "g/grad_norm"}
    assert mechanism.updates_of(a) == 3


# T5.2 ---------------------------------------------------------------------------------------------------------------

CLIP = 0.7


def adversarial():
    """1,000 records: random, huge, tiny, and in the direction of the weights."""
    rng = np.random.default_rng(1)
    scales = 10.0 ** rng.integers(-6, 7, (1000, 1))
    return jnp.asarray(rng.normal(size=(1000, 3)) * scales)


def check_sensitivity(total):
    """T5.2: whatever a record is, it moves the sum by at most C."""
    params = {"w": jnp.array([0.5, -1.0, 2.0])}

    def summed(x, mask):
        rows = jnp.concatenate([jnp.asarray(X), x[None]])
        return total(logistic, now_of(params, {"x": rows}), "d", jnp.arange(ROWS + 1) < mask)

    sums = jax.jit(jax.vmap(summed, (0, None)), static_argnums=())
    with_x, without = (sums(adversarial(), jnp.int32(n))["w"] for n in (ROWS + 1, ROWS))
    moved = np.linalg.norm(with_x - without, axis=1)
    assert moved.max() <= CLIP * (1 + 1e-6)
    assert moved.max() > 0.99 * CLIP  # some are clipped, so that it is tested
    exact = jax.vmap(lambda x: autodiff(logistic, now_of(params, {"x": x[None]}), "d")[1]["w"])(
        jnp.asarray(X)
    )
    norms = np.linalg.norm(exact, axis=1)
    expected = np.sum(exact * np.minimum(1, CLIP / norms)[:, None], 0)
    np.testing.assert_allclose(without[0], expected, rtol=1e-9)


def clipped(objective, now, player, mask):
    return clipped_sum(objective, now, player, mask, CLIP)[0]


def test_a_record_moves_the_sum_by_at_most_the_clip(x64):
    check_sensitivity(clipped)


def unclipped(objective, now, player, mask):
    return clipped_sum(objective, now, player, mask, np.inf)[0]


def clipped_after_the_mean(objective, now, player, mask):
    total = unclipped(objective, now, player, mask)
    mean = jax.tree.map(lambda g: g / jnp.sum(mask), total)
    scale = jnp.minimum(1.0, CLIP / optax.tree.norm(mean)) * jnp.sum(mask)
    return jax.tree.map(lambda g: g * scale, mean)


def of_batch_mean(objective, now, player, mask):
    """A loss that compares each record with the mean of all, as batch norm and relativistic averages do."""

    def centered(now):
        x = now.batch["x"] - jnp.mean(now.batch["x"], 0, keepdims=True)
        return objective(now._replace(batch={"x": x}))

    def one(i):
        def of(params):
            moved = now.of({player: params})
            x = moved.batch["x"] - jnp.mean(moved.batch["x"], 0, keepdims=True)
            return objective(moved._replace(batch={"x": x[i][None]}))[0]

        return jax.grad(of)(now.players[player].params)

    del centered
    each = jax.vmap(one)(jnp.arange(len(mask)))
    scale = jnp.minimum(1.0, CLIP / jax.vmap(optax.tree.norm)(each)) * mask
    return jax.tree.map(lambda g: jnp.tensordot(scale, g, 1), each)


@pytest.mark.parametrize("mutant", [unclipped, clipped_after_the_mean, of_batch_mean])
def test_mutants_of_clipping_die(x64, mutant):
    """T5.8."""
    with pytest.raises(AssertionError):
        check_sensitivity(mutant)


@pytest.mark.medium
def test_rows_without_a_record_add_nothing(x64):
    """Not even where they are NaN; nor does a record whose gradient is not finite."""
    params = {"w": jnp.array([0.5, -1.0, 2.0])}
    rows = np.concatenate([X, np.full((2, 3), np.nan)])
    for mask in (np.arange(8) < ROWS, np.arange(8) < ROWS + 1):
        found = clipped_sum(logistic, now_of(params, {"x": jnp.asarray(rows)}), "d", mask, CLIP)[0]
        expected = clipped(logistic, now_of(params, {"x": jnp.asarray(X)}), "d", np.ones(ROWS, bool))  # fmt: skip
        np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-12)


@pytest.mark.medium
def test_views_are_averaged_before_they_are_clipped(x64):
    """Two views of each record: the norm is that of their mean, by hand."""
    params = {"w": jnp.array([0.5, -1.0, 2.0])}
    x = np.random.default_rng(3).normal(size=(4, 2, 3)) * 2
    rows = jnp.asarray(x.reshape(8, 3))
    mask = jnp.ones(4, bool)
    found, _, norms = clipped_sum(logistic, now_of(params, {"x": rows}), "d", mask, CLIP, views=2)
    g = (1 / (1 + np.exp(-x @ np.array([0.5, -1.0, 2.0]))))[..., None] * x
    g = g.mean(1)
    np.testing.assert_allclose(norms, np.linalg.norm(g, axis=1), rtol=1e-9)
    expected = np.sum(g * np.minimum(1, CLIP / np.linalg.norm(g, axis=1))[:, None], 0)
    np.testing.assert_allclose(found["w"], expected, rtol=1e-9)


# T5.3 ---------------------------------------------------------------------------------------------------------------

SIGMA, EXPECTED, STEPS = 1.5, 4.0, 10_000


def nothing(now):
    del now
    return jnp.zeros(()), Aux()


def released(gradient, rows=ROWS, steps=STEPS):
    """What 10,000 updates release of an objective without a gradient, [steps, 5]: leaves of 3 and 2 numbers."""
    params = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
    x = jnp.zeros((rows, 1))

    def one(index):
        return gradient(nothing, now_of(params, batch_of(x), index), "d")[1]

    found = jax.jit(jax.vmap(one))(jnp.arange(steps))
    return np.concatenate([found["a"], found["b"]], 1)


def check_noise(gradient):
    """T5.3: standard deviation, normal law, no correlation of steps or of leaves."""
    x = released(gradient)
    scale = SIGMA * CLIP / EXPECTED
    np.testing.assert_allclose(x.std(), scale, rtol=0.01)
    assert abs(x.mean()) < 5 * scale / np.sqrt(x.size)
    assert scipy.stats.kstest(x.ravel() / scale, "norm").pvalue > 1e-3
    lagged = [np.corrcoef(x[:-1, i], x[1:, i])[0, 1] for i in range(5)]
    assert np.abs(lagged).max() < 0.04
    assert np.abs(np.corrcoef(x.T)[np.triu_indices(5, 1)]).max() < 0.04


def test_the_noise_is_what_is_accounted_for():
    check_noise(mechanism.gaussian(CLIP, SIGMA, EXPECTED))


def over_the_actual_batch(objective, now, player):
    found, g = mechanism.gaussian(CLIP, SIGMA, EXPECTED)(objective, now, player)
    return found, jax.tree.map(lambda x: x * EXPECTED / jnp.sum(now.batch["mask"]), g)


def one_key_for_all_steps(objective, now, player):
    still = now._replace(index=jnp.zeros_like(now.index))
    return mechanism.gaussian(CLIP, SIGMA, EXPECTED)(objective, still, player)


def one_key_for_all_leaves(objective, now, player):
    key = jax.random.fold_in(stream(mechanism.secret_of(now), "noise"), now.index)
    e = jax.random.normal(key, (3,)) * SIGMA * CLIP / EXPECTED
    return (jnp.zeros(()), Aux()), {"a": e, "b": e[:2]}


@pytest.mark.parametrize(
    "mutant", [over_the_actual_batch, one_key_for_all_steps, one_key_for_all_leaves]
)
def test_mutants_of_the_noise_die(mutant):
    """T5.8."""
    with pytest.raises(AssertionError):
        check_noise(mutant)


def test_the_noise_is_that_of_the_secret():
    """The key is given, or comes with the batch; another one makes other noise."""
    gradient = functools.partial(mechanism.gaussian, CLIP, SIGMA, EXPECTED)
    found = released(gradient(), steps=3)
    np.testing.assert_array_equal(found, released(gradient(KEY), steps=3))
    assert not np.isclose(found, released(gradient(jax.random.key(6)), steps=3)).any()


# Turns --------------------------------------------------------------------------------------------------------------


def small(d_steps=1, tx=None, **options):
    made = setting(dtype=jnp.float32)
    txs = gan.Optimizers(optax.sgd(0.1), tx or optax.sgd(0.1))
    gradient = mechanism.gaussian(CLIP, SIGMA, EXPECTED)
    algorithm = dpgan.make(
        made, txs, gradient, batch_size=4, d_steps=dpgan.DSteps(d_steps), **options
    )
    return algorithm, jax.jit(algorithm.step)


@pytest.mark.medium
def test_an_empty_batch_adds_noise_and_counts():
    """T5.4, T5.5: and updates are counted in the state of D's optimizer, whatever the flags say."""
    algorithm, step = small(d_steps=3)
    state = algorithm.init(jax.random.key(0))
    x = X.astype(np.float32)
    for t in range(4):
        before = state
        state, metrics = step(state, batch_of(x, np.zeros(ROWS, bool)), jax.random.key(2))
        assert mechanism.updates_of(state) == t + 1 and metrics["d/grad_norm"] > 0
        moved = [
            any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
            for pair in (
                (before.players["d"].params, state.players["d"].params),
                (before.players["g"].params, state.players["g"].params),
            )
        ]
        assert moved == [True, t == 2]  # G after three updates of D
    assert float(metrics["g/loss"]) == float(state.memory["g"]["loss"]) > 0


@pytest.mark.medium
def test_g_sees_nothing_private(trees_equal):
    """With a D that stands still, G is the same bits whatever the records, labels and their number are."""
    algorithm, step = small(tx=optax.sgd(0.0))
    x, rng = X.astype(np.float32), np.random.default_rng(4)
    other = batch_of(rng.normal(size=X.shape).astype(np.float32) * 9, np.arange(ROWS) < 2, step=7)
    other["y"] = jnp.arange(ROWS)
    states = []
    for batch in (batch_of(x), other):
        state = algorithm.init(jax.random.key(0))
        for _ in range(3):
            state, metrics = step(state, batch, jax.random.key(2))
        states.append((state.players["g"], {k: v for k, v in metrics.items() if k[0] == "g"}))
    trees_equal(*states)


def test_what_is_drawn_for_a_row_is_secret(trees_equal):
    """D's update does not depend on any public key, for a record moves those behind it to other rows."""
    made, gradient = setting(dtype=jnp.float32), mechanism.gaussian(CLIP, 0.0, EXPECTED)
    txs = gan.Optimizers(optax.sgd(0.1), optax.sgd(0.1))
    algorithm = dpgan.make(made, txs, gradient, batch_size=4, d_steps=dpgan.DSteps(1))
    step, state = jax.jit(algorithm.step), algorithm.init(jax.random.key(0))
    x = X.astype(np.float32)
    other = jnp.broadcast_to(jax.random.key_data(jax.random.key(6)), (ROWS, 2))
    a = step(state, batch_of(x), jax.random.key(2))[0].players["d"].params
    b = step(state, batch_of(x), jax.random.key(3))[0].players["d"].params
    c = step(state, batch_of(x, secret=other), jax.random.key(2))[0].players["d"].params
    trees_equal(a, b)
    assert not np.allclose(jax.tree.leaves(a)[0], jax.tree.leaves(c)[0])


def test_too_few_rows_make_the_state_infinite():
    algorithm, step = small()
    state = algorithm.init(jax.random.key(0))
    x = X.astype(np.float32)
    state, _ = step(state, batch_of(x), jax.random.key(2))
    assert state.memory[mechanism.OVERFLOW] == 0
    full = batch_of(x, overflow=jnp.ones(ROWS, bool))
    for batch in (full, batch_of(x)):
        state, _ = step(state, batch, jax.random.key(2))
        assert np.isinf(state.memory[mechanism.OVERFLOW])
    assert f"memory/{mechanism.OVERFLOW}" in algorithm.faults


def test_lazy_terms_are_not_private():
    """They would be clipped by themselves, with the noise of the same key."""
    lazy = Turn("d", [Term(nothing), Term(nothing, 4)], optax.sgd(0.1))
    with pytest.raises(ValueError, match="no lazy terms"):
        mechanism.privatize(lazy, autodiff)


@pytest.mark.medium
def test_several_devices_share_one_noise(trees_close):
    """Eight devices follow one, but for rounding, from memory and from disk: noise is added once."""
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1), dtype=np.uint8)
    dataset = data.of_arrays("tiny", "train", images, np.zeros(50, np.int32), 1)
    nets = mlp.Generator((4, 4, 1), (4,)), mlp.Discriminator((4,))
    networks = gan.Networks(*map(linen_net, nets), gan.normal_latents(2), (4, 4, 1))
    algorithm = dpgan.make(
        gan.Setting(networks, LOSSES["nonsaturating"]),
        gan.Optimizers(optax.sgd(0.1), optax.sgd(0.1)),
        mechanism.gaussian(CLIP, SIGMA, EXPECTED),
        batch_size=8,
        d_steps=dpgan.DSteps(2),
    )
    states = []
    for devices, feed in ((1, "memory"), (8, "memory"), (8, "stream")):
        secret, sampling = np.array([1, 2], np.uint32), poisson.Sampling(0.2, 24)
        source = poisson.source(dataset, sampling, secret=secret, feed=feed)
        program = compile_program(algorithm, source, seed=0, devices=devices)
        assert program.devices == devices
        carry, finite = program.run(program.init(), 3)
        assert finite and mechanism.updates_of(carry.state) == 3
        states.append(jax.device_get(carry.state.players))
    trees_close(states[0], states[1], rtol=1e-5, atol=1e-6)
    trees_close(states[1], states[2], rtol=1e-6, atol=1e-7)


class Scheduler:
    """Bie et al.'s, by their text: levels, an average with decay 0.99, 200 updates of G of grace."""

    def __init__(self, floor):
        self.level, self.floor, self.mean, self.g_steps, self.d_steps = 0, floor, None, 0, 0

    def d_step(self):
        self.d_steps += 1
        return self.d_steps == dpgan.LEVELS[self.level]

    def g_step(self, accuracy):
        self.mean = accuracy if self.mean is None else 0.99 * self.mean + 0.01 * accuracy
        self.g_steps, self.d_steps = self.g_steps + 1, 0
        if self.g_steps >= 200 and self.mean <= self.floor:
            self.level, self.g_steps = min(self.level + 1, len(dpgan.LEVELS) - 1), 0


def test_the_adaptive_number_is_that_of_the_paper(x64):
    steps, floor = dpgan.DSteps(1, 0.6), 0.6
    # Low for a while, then high: up two or three levels, then no more.
    accuracy = np.concatenate([np.full(450, 0.5), np.linspace(0.5, 0.9, 300)])
    reference, memory = Scheduler(floor), jax.tree.map(np.float64, steps.memory)
    given, levels = iter(accuracy), []
    after_d, after_g, due = map(jax.jit, (
        lambda m: m | dict(steps.after_d(now_of({}, {})._replace(memory=m), {})),
        lambda m, a: m | dict(steps.after_g(now_of({}, {})._replace(memory=m), {"accuracy": a})),
        lambda m: steps.due(now_of({}, {})._replace(memory=m)),
    ))  # fmt: skip
    for _ in range(1500):
        memory = after_d(memory)
        moves = reference.d_step()
        assert bool(due(memory)) == moves
        if moves:
            value = next(given, 0.9)
            reference.g_step(value)
            memory = after_g(memory, jnp.float64(value))
            levels.append(int(memory["schedule"]["level"]))
            assert levels[-1] == reference.level
    assert max(levels) >= 2


# Facts --------------------------------------------------------------------------------------------------------------


def test_losses_are_known_by_what_they_do():
    see = {name for name, loss in LOSSES.items() if sees_reals(loss)}
    averages = {name for name in LOSSES if name.startswith("relativistic_average")}
    assert see == averages | {"relativistic"}
    assert {n for n, x in LOSSES.items() if mixes_examples(x)} == averages | {"began"}
