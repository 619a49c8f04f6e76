"""Flows against what is known of them: objectives by hand, velocities of Gaussians, and the GAN that one step is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks.networks import compiled

from bpgan import cli
from bpgan.algorithms import flow, gan
from bpgan.losses import LOSSES, normalized
from bpgan.nets import linen_net, mlp, timed
from bpgan.penalties import PENALTIES, centering, transport, weighted
from bpgan.types import stream
from experiments import flow_gan

ADAM = optax.adam(1e-2, 0.5, 0.99)
BATCH = {
    "x": jnp.asarray(np.random.default_rng(0).normal(size=(16, 2)), jnp.float32),
    "y": jnp.arange(16, dtype=jnp.int32) % 3,
}


def test_the_velocity_of_a_gaussian_is_the_mean_of_those_of_its_paths():
    """By regression on a million paths, in bins of a point; and its flow is ``mu + std z``."""
    rng = np.random.default_rng(0)
    x, z = flow_gan.MU + flow_gan.STD * rng.normal(size=10**6), rng.normal(size=10**6)
    for t in (0.1, 0.5, 0.9):
        point = (1 - t) * x + t * z
        for center in np.quantile(point, (0.2, 0.5, 0.8)):
            near = np.abs(point - center) < 0.02
            mean = np.mean((z - x)[near])
            error = 5 * np.std((z - x)[near]) / np.sqrt(near.sum()) + 0.05
            assert abs(flow_gan.known_velocity(center, t) - mean) < error
    noise = jnp.linspace(-2, 2, 5)[:, None]
    exact = lambda x, t: flow_gan.known_velocity(x, t[:, None])  # noqa: E731
    found = flow.follow(exact, noise, flow.Sampler("heun", 400))
    np.testing.assert_allclose(found, flow_gan.MU + flow_gan.STD * noise, atol=1e-3)


@pytest.mark.medium
def test_the_derivative_along_a_flow_is_linear_in_its_velocity():
    d = linen_net(timed.PerceptronCritic((8,), times=1, time_scale=1.0))
    score = compiled(lambda x, t: d.apply(variables, x, t, train=True)[0])
    x, t = jax.random.normal(jax.random.key(0), (1, 3)), jnp.array([0.3])
    variables = compiled(d.init)(jax.random.key(1), x, t)
    v = 5 * jax.random.normal(jax.random.key(2), (10_000, 3))

    def j(u):
        potential = lambda x, t: d.apply(variables, x, t, train=True)[0]  # noqa: E731
        return flow.along(potential, x, t)[1](u[None])[0]

    values, of_mean = compiled(lambda v: (jax.vmap(j)(v), j(jnp.mean(v, 0))))(v)
    assert np.std(values) > 0.1
    mean = np.mean(np.asarray(values, np.float64))
    np.testing.assert_allclose(mean, of_mean, atol=1e-5 * np.std(values))
    size = 1e-3
    moved = [score(x + s * v[:1], t + s)[0] for s in (size, -size)]
    np.testing.assert_allclose(values[0], (moved[0] - moved[1]) / (2 * size), rtol=1e-2)


def one_step(**options):
    """The flow of one step with networks that take no times, and the GAN of the same networks."""
    g, d = linen_net(mlp.Generator((2,), (8,), linear=True)), linen_net(mlp.Discriminator((8,)))
    jumping = flow.Jumping(g, d, (2,), flow.Jumps(1, direct=True), g_times=0, d_times=0)
    networks = gan.Networks(g, d, gan.normal_latents(2), (2,))
    loss, txs = normalized(LOSSES["relativistic"]), gan.Optimizers(ADAM, ADAM)
    penalties = [
        weighted(0.3, PENALTIES["r1"]),
        weighted(0.3, PENALTIES["r2"], 2),
        weighted(0.01, centering()),
        weighted(0.2, transport(), player="g"),
    ]
    options |= {"penalties": penalties, "ema_decay": 0.9}
    return flow.adversarial(jumping, loss, txs, **options), gan.make(networks, loss, txs, **options)


@pytest.mark.medium
@pytest.mark.parametrize("options", [{}, {"d_steps": 2, "accumulate": 2}], ids=str)
def test_one_step_is_a_gan_bit_for_bit(trees_equal, options):
    """Of any kind: with penalties of all sorts, lazy ones too, and a normalized gradient."""
    ends = []
    for algorithm in one_step(**options):
        state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
        for _ in range(5):
            state, metrics = step(state, BATCH, jax.random.key(1))
        ends.append((state, metrics, algorithm.sample(state, jax.random.key(2), 5)))
    trees_equal(*ends)


def small(method, classes=0, **options):
    """A game of perceptrons."""
    count = 2 if method == "adversarial" else 1
    g = linen_net(timed.Perceptron((2,), (4,), count, 1.0, classes))
    d = linen_net(timed.PerceptronCritic((4,), 1, 1.0, classes))
    txs = gan.Optimizers(ADAM, ADAM)
    if method == "adversarial":
        penalties = [weighted(0.3, PENALTIES["r1"]), weighted(0.1, centering())]
        penalties += [weighted(0.2, transport(), player="g")]
        jumping = flow.Jumping(g, d, (2,), classes=classes)
        loss = LOSSES["relativistic"]
        return flow.adversarial(jumping, loss, txs, penalties=penalties, **options)
    velocity = flow.Velocity(g, (2,), d, classes)
    if method == "match":
        return flow.match(velocity, ADAM, **options)
    return flow.continuous(velocity, txs, **options)


def differ(a, b):
    """Whether any number of two trees does."""
    return any(np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def trained(algorithm, steps=3, batch=BATCH):
    state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
    for _ in range(steps):
        state, metrics = step(state, batch, jax.random.key(1))
    return state, metrics


@pytest.mark.medium
@pytest.mark.parametrize(
    "method",
    [
        "adversarial",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in flow.METHODS
            if name != "adversarial"
        ),
    ],
)
def test_devices_and_micro_batches_change_nothing(trees_close, short_fusions, method):
    """Eight devices that share a batch, by name or not, and a batch in two parts; all to rounding."""
    whole, metrics = trained(small(method), 2)
    cut, _ = trained(small(method, accumulate=2), 2)
    close = dict(rtol=2e-4, atol=2e-5)
    trees_close(whole.players, cut.players, **close)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    split, _ = trained(small(method), 2, jax.device_put(BATCH, rows))
    trees_close(whole, split, **close)
    algorithm = small(method, axis_name="batch")
    state = algorithm.init(jax.random.key(0))
    step = jax.pmap(algorithm.step, "batch", in_axes=(None, 0, None))
    shares = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), BATCH)
    for _ in range(2):
        states, each = step(state, shares, jax.random.key(1))
        state = jax.tree.map(lambda x: x[0], states)
    trees_close(whole, state, **close)
    trees_close(metrics, jax.tree.map(lambda x: x[0], each), **close)


@pytest.mark.medium
@pytest.mark.parametrize("method", flow.METHODS)
def test_labels_reach_the_players_and_samples(short_fusions, method):
    algorithm = small(method, classes=3, sampler=flow.Sampler("euler", 2))
    state, _ = trained(algorithm, 2)
    moved = trained(algorithm, 2, {**BATCH, "y": (BATCH["y"] + 1) % 3})[0]
    for name, player in state.players.items():
        assert differ(player.params, moved.players[name].params)
    z = jnp.ones((2, 2))
    drawn = algorithm.sample(state, jax.random.key(0), 2, jnp.array([0, 1]), z=z)
    assert np.any(drawn[0] != drawn[1])
    in_turn = algorithm.sample(state, jax.random.key(0), 2, z=z)
    np.testing.assert_array_equal(drawn, in_turn)


@pytest.mark.medium
def test_d_moves_alone_in_the_warm_up(trees_equal, short_fusions):
    algorithm = small("continuous", warmup=2, d_steps=2, ema_decay=0.5)
    start = algorithm.init(jax.random.key(0))
    state, metrics = trained(algorithm, 2)
    trees_equal(state.players["g"], start.players["g"])
    assert differ(state.players["d"].params, start.players["d"].params)
    assert metrics["g/loss"] == 0 and metrics["d/loss"] > 0
    state, metrics = trained(algorithm, 3)
    assert metrics["g/loss"] > 0
    assert differ(state.players["g"].params, start.players["g"].params)


def test_times_have_their_distributions():
    t = np.asarray(flow.logistic_normal_times(0.8, 0.5)(jax.random.key(0), 20_000), np.float64)
    logits = np.log(t / (1 - t))
    np.testing.assert_allclose([logits.mean(), logits.std()], [0.8, 0.5], atol=0.02)
    t = flow.uniform_times(jax.random.key(1), 20_000)
    np.testing.assert_allclose([np.mean(t), np.var(t)], [1 / 2, 1 / 12], atol=0.01)


@pytest.mark.parametrize(
    "text, reads",
    [("any", (0, False, False)), ("4,direct", (4, False, True)), ("any,paired", (0, True, False))],
)
def test_steps_are_read(text, reads):
    assert flow.Jumps.parse(text) == reads


@pytest.mark.parametrize("text", ["0", "x", "4,far", "-1", ""])
def test_other_steps_are_refused(text):
    with pytest.raises(ValueError, match="must be any, or a number of steps"):
        flow.Jumps.parse(text)


@pytest.mark.parametrize("text", ["heun:3", "rk4:8", "euler", "euler:0", "euler:-1"])
def test_other_samplers_are_refused(text):
    with pytest.raises(ValueError, match="must be euler:N, or heun:N with an even N"):
        flow.Sampler.parse(text)


def test_what_does_not_go_together_is_refused():
    g = linen_net(timed.Perceptron((2,), (4,), 1))
    d = linen_net(timed.PerceptronCritic((4,), 1))
    make = functools.partial(flow.adversarial, loss=LOSSES["hinge"], optimizers=gan.Optimizers(ADAM, ADAM))  # fmt: skip
    with pytest.raises(ValueError, match="must be 2 for steps of any length"):
        make(flow.Jumping(g, d, (2,), g_times=1))
    with pytest.raises(ValueError, match="must be at least 1"):
        make(flow.Jumping(g, d, (2,), flow.Jumps(4), g_times=0))
    with pytest.raises(ValueError, match="sampler=euler:3: must be euler:4"):
        make(flow.Jumping(g, d, (2,), flow.Jumps(4), g_times=1), sampler=flow.Sampler("euler", 3))
    with pytest.raises(ValueError, match="needs a D"):
        flow.continuous(flow.Velocity(g, (2,)), gan.Optimizers(ADAM, ADAM))
    of_kernels = [weighted(1.0, PENALTIES["orthogonal"])]
    made = make(flow.Jumping(g, d, (2,), flow.Jumps(4), g_times=1), penalties=of_kernels)
    with pytest.raises(ValueError, match="has no value for each example"):
        jax.eval_shape(
            lambda k: made.step(made.init(k), BATCH, jax.random.key(0)), jax.random.key(0)
        )


def gauss1d(*flags):
    """What ``gauss1d`` measures at its end, trained in one program."""
    argv = ["--preset=gauss1d", *flags]
    cfg = cli.resolve(flow_gan.Config, flow_gan.PRESETS, argv)
    built = flow_gan.build(cfg)
    root = jax.random.key(cfg.seed)
    start = built.algorithm.init(stream(root, "init"))

    def step(state, _):
        batch = built.source.batch_at(built.source.data, state.step)
        return built.algorithm.step(state, batch, stream(root, "train"))

    state, logged = jax.jit(lambda s: jax.lax.scan(step, s, None, length=cfg.steps))(start)
    return built.evaluate(state), jax.tree.map(lambda x: float(np.mean(x[-200:])), logged)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_flow_matching_finds_the_velocity_of_a_gaussian(optimized, seed):
    found, _ = gauss1d("--method=match", f"--seed={seed}")
    assert found["velocity_error"] < 0.1 and 0.48 < found["std"] < 0.52
    assert found["map_error"] < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_continuous_adversarial_flow_finds_the_map_of_a_gaussian(optimized, seed):
    """And its players end at the losses of an equilibrium, 2 and 1."""
    found, logged = gauss1d(f"--seed={seed}")
    assert found["map_error"] < 0.03 and 0.48 < found["std"] < 0.52
    assert 1.99 < logged["d/loss"] < 2.01 and 0.99 < logged["g/loss"] < 1.01
    assert 1.99 < found["d_loss"] < 2.01 and 0.99 < found["g_loss"] < 1.01


@pytest.mark.medium
def test_flow_matching_moves_towards_the_velocity_of_a_gaussian(optimized):
    """In a fifth of the steps: the cheap form of what the slow tests ask."""
    found, _ = gauss1d("--method=match", "--steps=300", "--batch_size=128", "--sampler=heun:20")
    assert found["velocity_error"] < 0.2 and abs(found["std"] - 0.5) < 0.05
