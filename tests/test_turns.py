"""The step that all algorithms share, on systems whose updates are known by hand."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import cyclegan

from bpgan.algorithms import gan
from bpgan.algorithms.turns import Aux, Axis, Now, Term, Turn, autodiff, play
from bpgan.losses import LOSSES
from bpgan.nets import linen_net, mlp
from bpgan.penalties import PENALTIES, weighted
from bpgan.types import Net

X = np.random.default_rng(0).normal(size=(8, 3))


def quadratic(now):
    """``mean_b |w - x_b|^2 / 2``."""
    value = jnp.mean(jnp.sum(jnp.square(now.players["w"].params[None] - now.batch["x"]), 1)) / 2
    return value, Aux(metrics={"loss": value})


def system(*terms, **options):
    terms = terms or (Term(quadratic),)
    turn = Turn("w", terms, optax.sgd(0.1), **options.pop("turn", {}))
    return play(lambda key: {"w": {"params": jnp.zeros(3)}}, [turn], **options)


def trained(algorithm, steps, batch):
    state, found = algorithm.init(jax.random.key(0)), []
    for _ in range(steps):
        state, metrics = algorithm.step(state, batch, jax.random.key(1))
        found.append(metrics)
    return state, found


def test_one_player_descends(x64):
    state, found = trained(system(), 5, {"x": jnp.asarray(X)})
    mean = X.mean(0)
    np.testing.assert_allclose(state.players["w"].params, (1 - 0.9**5) * mean, rtol=1e-6)
    assert set(found[0]) == {"loss", "grad_norm"} and state.step == 5
    np.testing.assert_allclose(found[0]["grad_norm"], np.linalg.norm(mean), rtol=1e-6)


def test_a_lazy_term_enters_as_much_more(x64):
    """The gradient of ``c w_0``, c = 0.5, every third update: three times as much, at updates 0 and 3."""

    def push(now):
        value = 0.5 * now.players["w"].params[0]
        return value, Aux(None, {"asked": now.memory["asked"] + 1}, {"push": 0.5})

    algorithm = system(Term(quadratic), Term(push, 3), memory={"asked": np.zeros(())})
    state, found = trained(algorithm, 5, {"x": jnp.zeros((4, 3))})
    w = 0.0
    for t in range(5):
        w -= 0.1 * (w + (1.5 if t % 3 == 0 else 0))
    np.testing.assert_allclose(state.players["w"].params, [w, 0, 0], rtol=1e-6)
    assert [float(each["push"]) for each in found] == [1.5, 0, 0, 1.5, 0]
    assert float(state.memory["asked"]) == 2


def test_terms_of_every_update_are_one_sum(x64):
    """Two halves of an objective are the objective, and metrics of one name add up."""

    def half(now):
        value, aux = quadratic(now)
        return value / 2, aux

    one, _ = trained(system(), 4, {"x": jnp.asarray(X)})
    two, found = trained(system(Term(half), Term(half)), 4, {"x": jnp.asarray(X)})
    np.testing.assert_allclose(two.players["w"].params, one.players["w"].params, rtol=1e-6)
    np.testing.assert_allclose(found[0]["loss"], 2 * np.sum(X**2) / 16, rtol=1e-6)


def test_a_player_moves_when_it_is_due(x64):
    """In every third step; in between it stands still, and so do its metrics."""
    turn = dict(due=lambda now: (now.step + 1) % 3 == 0)
    kept = {"w": {"loss": 0.0, "grad_norm": 0.0}}
    state, found = trained(system(turn=turn, memory=kept), 7, {"x": jnp.asarray(X)})
    mean = X.mean(0)
    np.testing.assert_allclose(state.players["w"].params, (1 - 0.9**2) * mean, rtol=1e-6)
    first, second = np.linalg.norm(mean), 0.9 * np.linalg.norm(mean)
    norms = [float(each["grad_norm"]) for each in found]
    np.testing.assert_allclose(norms, [0, 0, first, first, first, second, second], rtol=1e-6)
    with pytest.raises(ValueError, match="memory of w: must have its metrics"):
        trained(system(turn=turn, memory={"w": {}}), 1, {"x": jnp.asarray(X)})


def test_what_a_turn_prepares_is_made_once_for_all_terms():
    """The gradient does not go through it, and a lazy term has it as well."""
    calls = []

    def prepare(now):
        calls.append(None)
        return {"twice": jnp.broadcast_to(2 * now.players["w"].params, now.batch["x"].shape)}

    def towards(now):
        value = jnp.sum(now.players["w"].params * now.batch["twice"][0])
        return value, Aux()

    turn = dict(prepare=prepare)
    algorithm = system(Term(towards), Term(towards, 2), turn=turn)
    state = algorithm.init(jax.random.key(0))
    ones = state.players["w"]._replace(params=jnp.ones(3))
    state, _ = algorithm.step(
        state._replace(players={"w": ones}), {"x": jnp.zeros((4, 3))}, jax.random.key(0)
    )
    assert len(calls) == 1
    np.testing.assert_allclose(state.players["w"].params, 1 - 0.1 * (2 + 2 * 2), rtol=1e-6)


@pytest.mark.parametrize("repeats,accumulate", [(2, 1), (1, 4), (2, 2)])
def test_repeats_and_micro_batches_see_their_own_rows(x64, repeats, accumulate):
    """Update i of n has the rows i, i + n, ...; micro-batches change nothing, and the average of w is d w' + ..."""
    algorithm = system(accumulate=accumulate, ema={"w": lambda t: 0.5}, turn=dict(repeats=repeats))
    state, _ = trained(algorithm, 3, {"x": jnp.asarray(X)})
    w, average = np.zeros(3), np.zeros(3)
    for _ in range(3):
        for i in range(repeats):
            w = w - 0.1 * (w - X[i::repeats].mean(0))
        average = 0.5 * average + 0.5 * w
    np.testing.assert_allclose(state.players["w"].params, w, rtol=1e-6)
    np.testing.assert_allclose(state.ema["w"]["params"], average, rtol=1e-6)
    with pytest.raises(ValueError, match="not a multiple"):
        algorithm.step(state, {"x": jnp.asarray(X[:7])}, jax.random.key(0))


@pytest.mark.medium
def test_devices_take_their_rows_of_one_draw():
    """Mapped over four devices, the step is that of the whole batch, noise included."""

    def draw(now):
        return {"e": now.axis.rows(lambda n: jax.random.normal(now.key, (n, 3)), now.batch["x"])}

    def noisy(now):
        value = jnp.mean(
            jnp.sum((now.players["w"].params[None] - now.batch["x"]) * now.batch["e"], 1)
        )
        return value, Aux(metrics={"loss": value})

    x, key = jnp.asarray(X, jnp.float32), jax.random.key(2)
    one = system(Term(noisy), turn=dict(draw=draw))
    four = system(Term(noisy), turn=dict(draw=draw), axis=Axis("devices"))
    whole, metrics = one.step(one.init(key), {"x": x}, key)
    mapped = jax.vmap(four.step, in_axes=(None, 0, None), axis_name="devices")
    parts, same = mapped(four.init(key), {"x": x.reshape(4, 2, 3)}, key)
    for i in range(4):
        np.testing.assert_allclose(
            parts.players["w"].params[i], whole.players["w"].params, rtol=1e-5
        )
    np.testing.assert_allclose(same["loss"], np.full(4, metrics["loss"]), rtol=1e-5)


@pytest.mark.parametrize(
    "terms,turn,options,reason",
    [
        ((), dict(repeats=0), {}, "repeats=0: must be at least 1"),
        ((), {}, dict(accumulate=0), "accumulate=0: must be at least 1"),
        ((Term(quadratic), Term(quadratic, 0)), {}, {}, "every of w: must be at least 1"),
        ((Term(quadratic, 2),), {}, {}, "one of them must enter every update"),
        ((), {}, dict(rule=True), "of two players"),
        ((), dict(repeats=2, due=lambda now: True), {}, "due of w: not together with repeats"),
        ((Term(quadratic), Term(quadratic, 2)), dict(due=lambda now: True), {}, "or lazy terms"),
    ],
)
def test_impossible_turns_are_refused(terms, turn, options, reason):
    with pytest.raises(ValueError, match=reason):
        system(*terms, turn=turn, **options)


def linear_gan(gradient=autodiff):
    """``D(x) = v x``, ``G(z) = z + 1`` from there on, D by another gradient; in float64."""
    g = Net(lambda key, z: {"params": jnp.ones(3)}, lambda v, z, train: (z + v["params"][None], {}))
    d = Net(
        lambda key, x: {"params": jnp.array([0.3, -0.2, 0.5])},
        lambda v, x, train: (x @ v["params"], {}),
    )
    networks = gan.Networks(g, d, gan.normal_latents(3, jnp.float64), (3,), jnp.float64)
    setting = gan.Setting(networks, LOSSES["nonsaturating"])
    d_turn, g_turn = gan.alternate(setting, gan.Optimizers(optax.sgd(0.0), optax.sgd(1.0)))
    return setting, gan.play(setting, [d_turn._replace(gradient=gradient), g_turn])


def clipped(bound):
    """The mean of the gradients of single examples, each no longer than ``bound`` (Abadi et al. 2016)."""

    def gradient(objective, now, player):
        def one(row):
            alone = now._replace(batch=jax.tree.map(lambda x: x[None], row))
            return autodiff(objective, alone, player)

        found, each = jax.vmap(one)(now.batch)
        scale = jnp.minimum(1.0, bound / jax.vmap(optax.tree.norm)(each))
        mean = jax.tree.map(lambda g: jnp.tensordot(scale, g, 1) / len(scale), each)
        return jax.tree.map(lambda x: jnp.mean(x, 0), found), mean

    return gradient


def test_a_private_gan_is_another_gradient(x64):
    """By hand, in NumPy: -s(-D(x)) x + s(D(f)) f for each real x and fake f, clipped, then the mean."""
    bound = 0.8
    _, algorithm = linear_gan(clipped(bound))
    seen = []
    setting, _ = linear_gan()
    d_turn = gan.alternate(setting, gan.Optimizers(optax.sgd(0.0), optax.sgd(1.0)))[0]
    state = algorithm.init(jax.random.key(0))
    key = d_turn.key(jax.random.fold_in(jax.random.key(1), 0), "d", 0)
    now = Now(state.players, {"x": jnp.asarray(X)}, key, state.step, state.step, {}, Axis())
    now = now.beside(d_turn.draw(now))
    fake = np.asarray(d_turn.prepare(now)["fake"])
    v, s = np.array([0.3, -0.2, 0.5]), lambda t: 1 / (1 + np.exp(-t))
    for x, f in zip(X, fake, strict=True):
        g = -s(-(x @ v)) * x + s(f @ v) * f
        seen.append(g * min(1, bound / np.linalg.norm(g)))
    assert 0 < sum(np.linalg.norm(g) > bound - 1e-9 for g in seen) < 8  # some are clipped
    moved, metrics = jax.jit(algorithm.step)(state, {"x": jnp.asarray(X)}, jax.random.key(1))
    np.testing.assert_allclose(moved.players["d"].params, v - np.mean(seen, 0), rtol=1e-9)
    # What is reported is that of the batch.
    expected = np.mean(np.log1p(np.exp(-X @ v)) + np.log1p(np.exp(fake @ v)))
    np.testing.assert_allclose(metrics["d/loss"], expected, rtol=1e-9)


def test_objectives_are_asked_without_training(x64):
    """``d_objective`` and ``g_objective`` of a linear D, by the equation."""
    setting, algorithm = linear_gan()
    penalties = [weighted(2.0, PENALTIES["r1"])]
    setting = setting._replace(penalties=gan.named(penalties))
    players = algorithm.init(jax.random.key(0)).players
    z, v = np.random.default_rng(1).normal(size=(8, 3)), np.array([0.3, -0.2, 0.5])
    batch = {"x": jnp.asarray(X), "z": jnp.asarray(z), "fake": jnp.asarray(z + 1)}
    now = Now(players, batch, jax.random.key(0), jnp.int32(0), jnp.int32(0), {}, Axis())
    value, aux = gan.d_objective(setting, now)
    logistic = np.mean(np.log1p(np.exp(-X @ v)) + np.log1p(np.exp((z + 1) @ v)))
    np.testing.assert_allclose(value, logistic + 2.0 * v @ v / 2, rtol=1e-9)
    np.testing.assert_allclose(aux.metrics["loss"], logistic, rtol=1e-9)
    value, _ = gan.g_objective(setting, now)
    np.testing.assert_allclose(value, np.mean(np.log1p(np.exp(-(z + 1) @ v))), rtol=1e-9)


@pytest.mark.medium
def test_three_players_are_one_file():
    """A CycleGAN in a file of its own: it trains, everyone moves, and a cycle comes back to where it began."""
    shape = (4,)
    nets = [linen_net(mlp.Generator(shape, (16,), linear=True)) for _ in range(2)]
    critics = [linen_net(mlp.Discriminator((16,))) for _ in range(2)]
    tx = optax.adam(3e-3), optax.adam(1e-3)
    algorithm = cyclegan.make(tuple(nets), tuple(critics), tx, data_shape=shape)
    rng = np.random.default_rng(0)
    batch = {name: jnp.asarray(rng.normal(size=(16, 4)), jnp.float32) for name in ("a", "b")}
    state = start = jax.jit(algorithm.init)(jax.random.key(0))
    step, cycles = jax.jit(algorithm.step), []
    for _ in range(150):
        state, metrics = step(state, batch, jax.random.key(1))
        cycles.append(float(metrics["g/cycle"]))
    assert set(metrics) == {
        "g/loss", "g/cycle", "g/grad_norm", "d_a/loss", "d_a/grad_norm", "d_b/loss", "d_b/grad_norm",
    }  # fmt: skip
    assert cycles[-1] < cycles[0] / 2
    for name, player in start.players.items():
        for old, new in zip(
            *map(jax.tree.leaves, (player.params, state.players[name].params)), strict=True
        ):
            assert np.abs(new - old).max() > 0
    assert len(pathlib.Path(cyclegan.__file__).read_text().splitlines()) <= 150
