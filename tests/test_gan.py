"""The two-player step against games whose trajectories are known exactly (SCIENCE T1.4, T2.1, T2.3)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks.gans import (
    DIRAC_G,
    DIRAC_NORMS,
    at,
    check_dirac,
    check_lazy_penalty,
    dirac,
    mlp_gan,
    params_of,
    run,
    trajectory,
)
from checks.networks import close, compiled
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bpgan.algorithms import game, gan
from bpgan.augment import Augment
from bpgan.losses import AUXILIARY, LOSSES
from bpgan.nets import linen_net, mlp
from bpgan.nets.layers import Dense
from bpgan.optim import half_life, schedule
from bpgan.penalties import PENALTIES, lecam, path_length, weighted
from bpgan.types import Net


class SpectralCritic(nn.Module):
    """A perceptron with spectral norm."""

    @nn.compact
    def __call__(self, x, *, train=False):
        h = jax.nn.relu(Dense(5, spectral=True, name="dense0")(x, train=train))
        return Dense(3, spectral=True, name="dense1")(h, train=train).sum(1)


@pytest.mark.parametrize("gamma_index", range(4))
@pytest.mark.parametrize("loss,simultaneous", DIRAC_NORMS)
def test_dirac_gan(loss, simultaneous, gamma_index):
    check_dirac(gan, loss, LOSSES[loss], PENALTIES["r1"], simultaneous, gamma_index)


def test_penalized_dirac_gan_contracts_as_its_jacobian_says(x64):
    """WGAN + R1, alternating: D' = (1 - h gamma) psi - h theta, G' = theta + h psi', so det = 1 - h gamma."""
    h, gamma = 0.1, 1.0
    algorithm = dirac(gan, LOSSES["wasserstein"], optax.sgd(h), gamma=gamma)
    state = algorithm.init(jax.random.key(0))

    def flow(v):
        moved = at(state, g=v[0], d=v[1])
        moved, _ = algorithm.step(moved, {"x": jnp.zeros((4, 1))}, jax.random.key(1))
        return jnp.stack(params_of(moved))

    jacobian = jax.jacobian(flow)(jnp.array([0.3, -0.2]))
    expected = np.array([[1 - h * h, h * (1 - h * gamma)], [-h, 1 - h * gamma]])
    np.testing.assert_allclose(jacobian, expected, atol=1e-12)
    radius = max(abs(np.linalg.eigvals(np.asarray(jacobian))))
    np.testing.assert_allclose(radius, np.sqrt(1 - h * gamma), atol=1e-12)


# The bilinear game min_x max_y x y is the Dirac-GAN with the Wasserstein loss; SCIENCE section 2.2.
def test_bilinear_simultaneous_descent_spirals_out(x64):
    eta = 0.1
    points = trajectory(
        dirac(gan, LOSSES["wasserstein"], optax.sgd(eta), rule=game.RULES["simultaneous"]), 200
    )
    norms = np.linalg.norm(points, axis=1)
    np.testing.assert_allclose(norms[1:] / norms[:-1], np.sqrt(1 + eta**2), rtol=1e-9)


def test_bilinear_alternating_descent_stays_on_its_ellipse(x64):
    """psi' = psi - h theta, theta' = theta + h psi' conserves theta^2 + psi^2 - h theta psi."""
    h = 0.1
    theta, psi = trajectory(dirac(gan, LOSSES["wasserstein"], optax.sgd(h)), 2000).T
    invariant = theta**2 + psi**2 - h * theta * psi
    np.testing.assert_allclose(invariant, 2 + h, rtol=1e-9)
    norms = np.hypot(theta, psi)
    extremes = np.sqrt([(2 + h) / (1 + h / 2), (2 + h) / (1 - h / 2)])
    np.testing.assert_allclose([norms.min(), norms.max()], extremes, rtol=1e-3)


def test_bilinear_optimistic_descent_converges_at_the_known_rate(x64):
    eta = 0.1
    tx = optax.optimistic_gradient_descent(eta)
    points = trajectory(
        dirac(gan, LOSSES["wasserstein"], tx, rule=game.RULES["simultaneous"]), 2000
    )
    norms = np.linalg.norm(points, axis=1)
    rate = (norms[2000] / norms[1000]) ** (1 / 1000)
    np.testing.assert_allclose(rate, np.sqrt((1 + np.sqrt(1 - 4 * eta**2)) / 2), rtol=1e-9)


@pytest.mark.medium
def test_lazy_penalty_has_the_same_mean_effect():
    check_lazy_penalty(gan)


def test_d_steps_use_their_own_rows_and_noise():
    """Two D updates in one step see rows 0, 2, 4, ... and rows 1, 3, 5, ... in that order."""
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)
    algorithm = mlp_gan(d_steps=2, loss="wasserstein")
    state = algorithm.init(jax.random.key(0))
    after, _ = jax.jit(algorithm.step)(state, {"x": rows}, jax.random.key(1))
    swapped, _ = jax.jit(algorithm.step)(
        state, {"x": rows.reshape(4, 2, 2)[:, ::-1].reshape(8, 2)}, jax.random.key(1)
    )
    permuted, _ = jax.jit(algorithm.step)(
        state, {"x": rows.reshape(4, 2, 2)[::-1].reshape(8, 2)}, jax.random.key(1)
    )
    kernel = lambda s: np.asarray(s.players["d"].params["dense0"]["kernel"])  # noqa: E731
    np.testing.assert_allclose(kernel(permuted), kernel(after), atol=1e-6)
    assert np.abs(kernel(swapped) - kernel(after)).max() > 1e-5
    with pytest.raises(ValueError, match="not a multiple"):
        algorithm.step(state, {"x": rows[:7]}, jax.random.key(1))


def test_average_of_g():
    """ema_t = d ema + (1 - d) g with d = min(decay, (1 + t) / (10 + t)), recomputed in NumPy; sample() uses it."""
    decay = 0.3
    batch = {"x": jnp.ones((8, 2))}
    algorithm = mlp_gan(ema_decay=decay)
    state = algorithm.init(jax.random.key(0))
    expected = np.asarray(state.players["g"].params["dense1"]["kernel"])
    for t in range(6):
        state, _ = run(algorithm, 1, batch, state)
        d = min(decay, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * np.asarray(
            state.players["g"].params["dense1"]["kernel"]
        )
    np.testing.assert_allclose(state.ema["g"]["params"]["dense1"]["kernel"], expected, rtol=1e-5)
    frozen = at(state, g=jax.tree.map(jnp.zeros_like, state.players["g"].params))
    drawn = algorithm.sample(frozen, jax.random.key(5), 4)
    assert float(jnp.abs(drawn).max()) > 1e-3
    assert mlp_gan().init(jax.random.key(0)).ema == {}


@pytest.mark.medium
def test_averages_and_memories_are_as_precise_as_the_players(x64):
    """An average in float64 whose decay is 0.999 in float32 is off by 1e-5; nor may LeCam's or k be float32."""
    decay = 0.999
    batch = {"x": jnp.ones((8, 2), jnp.float64)}
    g, d = (
        net.clone(dtype="float64") for net in (mlp.Generator((2,), (4,)), mlp.Discriminator((4,)))
    )
    algorithm = gan.make(
        gan.Networks(linen_net(g), linen_net(d), gan.normal_latents(3, "float64"), (2,), "float64"),
        LOSSES["began"],
        gan.Optimizers(optax.sgd(0.1), optax.sgd(0.1)),
        penalties=[weighted(1.0, PENALTIES["lecam"]), weighted(1.0, path_length(), player="g")],
        ema_decay=decay,
    )
    state = algorithm.init(jax.random.key(0))
    late = state._replace(step=jnp.int32(20_000))
    moved, _ = jax.jit(algorithm.step)(late, batch, jax.random.key(1))
    for each in (state, moved):
        assert {x.dtype.name for x in jax.tree.leaves((each.memory, each.ema))} == {"float64"}
    kernel = lambda tree: np.asarray(jax.tree.leaves(tree)[-1])  # noqa: E731
    expected = decay * kernel(late.ema["g"]) + (1 - decay) * kernel(moved.players["g"].params)
    np.testing.assert_allclose(kernel(moved.ema["g"]) - expected, 0, atol=1e-15)


def test_step_is_a_function_of_state_batch_and_key(trees_equal):
    batch = {"x": jnp.ones((8, 2))}
    a, b = (run(mlp_gan(), 3, batch)[0] for _ in range(2))
    trees_equal(a, b)
    other = mlp_gan()
    state = other.init(jax.random.key(0))
    c, _ = jax.jit(other.step)(state, batch, jax.random.key(2))
    d, _ = jax.jit(other.step)(state, batch, jax.random.key(3))
    assert not np.array_equal(
        c.players["g"].params["dense0"]["kernel"], d.players["g"].params["dense0"]["kernel"]
    )


@pytest.mark.medium
def test_unused_real_logits_cost_nothing():
    """G's step always scores the reals; the compiler removes that for losses which ignore them."""
    flops = {}
    for loss in ("nonsaturating", "relativistic"):
        algorithm = gan.make(
            gan.Networks(
                linen_net(mlp.Generator(shape=(2,), widths=(8,))),
                linen_net(mlp.Discriminator(widths=(256, 256))),
                gan.normal_latents(2),
                (2,),
            ),
            LOSSES[loss],
            gan.Optimizers(optax.sgd(0.1), optax.sgd(0.1)),
        )
        state = jax.eval_shape(algorithm.init, jax.random.key(0))
        lowered = jax.jit(algorithm.step).lower(state, {"x": jnp.zeros((64, 2))}, jax.random.key(0))
        flops[loss] = lowered.compile().cost_analysis()["flops"]
    assert flops["relativistic"] > 1.05 * flops["nonsaturating"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_one_pass_changes_nothing_in_a_network_without_statistics(mode, x64):
    """Of reals and fakes, with labels, a head and views of D's own: the same step to rounding, on one device or two."""
    axis = "batch" if mode == "pmap" else None
    shift = Augment(lambda x, key, p: x + 0.1 * jax.random.normal(key, x.shape, x.dtype), 0.5)
    rng = np.random.default_rng(0)
    batch = {"x": jnp.asarray(rng.normal(size=(8, 2))), "y": jnp.arange(8) % 3}
    g, d = (
        mlp.Generator((2,), (4,), classes=3, dtype="float64"),
        mlp.Discriminator((4,), classes=3, head="acgan", dtype="float64"),
    )
    states = []
    for one_pass in (False, True):
        algorithm = gan.make(
            gan.Networks(
                linen_net(g), linen_net(d), gan.normal_latents(3, "float64"), (2,), "float64"
            ),
            LOSSES["relativistic"],
            gan.Optimizers(optax.sgd(0.1), optax.sgd(0.1)),
            penalties=[weighted(0.1, PENALTIES["r1"])],
            condition=gan.Condition(3, AUXILIARY["acgan"], 0.5),
            augment=shift,
            one_pass=one_pass,
            axis_name=axis,
        )
        state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
        rows = batch
        if axis:
            step = jax.pmap(
                algorithm.step, axis, in_axes=(None, 0, None), devices=jax.devices()[:2]
            )
            rows = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), batch)
        states.append(step(state, rows, jax.random.key(1)))
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(states[0][1])) > 1e-3
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.medium
def test_in_one_pass_u_moves_once():
    net = linen_net(SpectralCritic())
    u = {}
    for one_pass in (False, True):
        algorithm = gan.make(
            gan.Networks(linen_net(mlp.Generator((2,), (4,))), net, gan.normal_latents(3), (2,)),
            LOSSES["hinge"],
            gan.Optimizers(optax.sgd(0.0), optax.sgd(0.0)),
            one_pass=one_pass,
        )
        start = algorithm.init(jax.random.key(0))
        state, _ = jax.jit(algorithm.step)(start, {"x": jnp.ones((4, 2))}, jax.random.key(1))
        u[one_pass] = state.players["d"].stats
    once = start.players["d"].variables
    for one_pass in (True, False):
        _, moved = net.apply(once, jnp.ones((4, 2)), train=True)
        once = {**once, **moved}
        for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(u[one_pass]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_with_every_penalty_trains(loss):
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)}
    algorithm = mlp_gan(loss=loss, penalties=[weighted(0.1, p) for p in PENALTIES.values()])
    state, metrics = run(algorithm, 2, batch)
    assert set(metrics) == {
        "d/loss", "d/real", "d/fake", "d/penalty", "d/grad_norm", "g/loss", "g/grad_norm",
    }  # fmt: skip
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, metrics)))
    assert int(state.step) == 2


@pytest.mark.medium
def test_seeds_can_be_vmapped(trees_close):
    """The step is pure: two seeds in one program equal two programs."""
    algorithm = mlp_gan()
    batch = {"x": jnp.ones((8, 2))}

    def train(key):
        state = algorithm.init(jax.random.fold_in(key, 0))
        return algorithm.step(state, batch, jax.random.fold_in(key, 1))[0].players["g"].params

    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.jit(jax.vmap(train))(keys)
    for i in range(2):
        alone = jax.jit(train)(jax.random.split(jax.random.key(0), 2)[i])
        trees_close(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=1e-5, atol=1e-6)


def trained(steps, batch=None, **options):
    batch = (
        {"x": jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)}
        if batch is None
        else batch
    )
    return run(mlp_gan(**options), steps, batch)


@pytest.mark.medium
def test_memory_is_part_of_the_state(trees_equal):
    """What LeCam and path length remember moves, and three steps from a saved state are steps three to five."""
    penalties = [weighted(0.1, lecam(start=1)), weighted(0.1, path_length(), 2, "g")]
    options = dict(penalties=penalties)
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)}
    algorithm = mlp_gan(**options)
    two, _ = run(algorithm, 2, batch)
    five, metrics = run(algorithm, 3, batch, jax.tree.map(np.asarray, two))
    trees_equal(five, run(algorithm, 5, batch)[0])
    assert two.memory["penalty0"]["count"] == 2 and five.memory["penalty0"]["count"] == 5
    assert two.memory["g_penalty0"] != 0 and five.memory["g_penalty0"] != two.memory["g_penalty0"]
    assert {"d/penalty", "g/penalty"} <= set(metrics)
    assert trained(1)[0].memory == {}


def test_each_penalty_has_its_own_interval():
    """With weights 1 and every 1, 2 and 3, what D pays at updates 0 to 5 is known."""
    ones = [
        weighted(1.0, lambda critic, real, fake, key: jnp.ones(real.shape[0]), every)
        for every in (1, 2, 3)
    ]
    batch, paid = {"x": jnp.ones((8, 2))}, []
    algorithm, state = mlp_gan(penalties=ones), None
    for _ in range(6):
        state, metrics = run(algorithm, 1, batch, state)
        paid.append(float(metrics["d/penalty"]))
    assert paid == [1 + 2 * (t % 2 == 0) + 3 * (t % 3 == 0) for t in range(6)]


def test_weights_may_be_schedules():
    pays = lambda critic, real, fake, key: jnp.ones(real.shape[0])  # noqa: E731
    batch, paid = {"x": jnp.ones((8, 2))}, []
    algorithm, state = mlp_gan(penalties=[weighted(schedule("linear:4:0", 4), pays)]), None
    for _ in range(5):
        state, metrics = run(algorithm, 1, batch, state)
        paid.append(float(metrics["d/penalty"]))
    assert paid == [4, 3, 2, 1, 0]


@pytest.mark.medium
@pytest.mark.parametrize("d_steps", [1, 2])
def test_accumulated_gradients_are_those_of_the_whole_batch(trees_close, d_steps):
    options = dict(loss="relativistic", penalties=[weighted(0.1, PENALTIES["r1"])], d_steps=d_steps)
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(24, 2)), jnp.float32)}
    whole, metrics = trained(3, batch, **options)
    cut, same = trained(3, batch, accumulate=4, **options)
    trees_close(whole, cut, rtol=1e-5, atol=1e-6)
    trees_close(metrics, same, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="not a multiple"):
        trained(1, batch, accumulate=5)


@pytest.mark.medium
@pytest.mark.parametrize("loss", ["began", "hinge"])
def test_memory_moves_as_with_the_whole_batch(trees_close, loss):
    """Of players that stand still, in eight micro-batches: BEGAN's k, LeCam's averages, the adaptive probability."""
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(16, 2)), jnp.float32)}
    # A target that the signs of all reals are at a distance from, and those of two at a time on both sides of.
    augment = Augment(lambda x, key, p: x, p=0.4, target=0.1, images=800)
    memories = []
    for accumulate in (1, 8):
        algorithm = mlp_gan(
            loss=loss, tx=optax.sgd(0.0), penalties=[weighted(0.1, lecam())], augment=augment, accumulate=accumulate
        )  # fmt: skip
        state = algorithm.init(jax.random.key(0))
        if loss == "began":  # away from 0, where it is cut off
            state.memory["loss"] = jnp.float32(0.5)
        memories.append(run(algorithm, 3, batch, state)[0].memory)
    assert memories[0]["penalty0"]["count"] == 3
    np.testing.assert_allclose(abs(memories[0]["augment"] - 0.4), 3 * 16 / 800, rtol=1e-5)
    trees_close(*memories, rtol=1e-5, atol=1e-7)


def test_statistics_move_as_with_the_whole_batch():
    """An average of the batch's mean, by 1/2: once in an update, in however many micro-batches."""

    def apply(v, x, train):
        mean = (v["params"] + v["stats"]["mean"] + jnp.mean(x)) / 2
        return v["params"] * jnp.sum(x, 1), {"stats": {"mean": mean}}

    d = Net(lambda key, x: {"params": jnp.zeros(()), "stats": {"mean": jnp.zeros(())}}, apply)
    found = []
    for accumulate in (1, 4):
        algorithm = gan.make(
            gan.Networks(DIRAC_G, d, gan.normal_latents(1), (1,)), LOSSES["hinge"],
            gan.Optimizers(optax.sgd(0.0), optax.sgd(0.0)), accumulate=accumulate,
        )  # fmt: skip
        state, _ = run(algorithm, 3, {"x": jnp.arange(8.0).reshape(8, 1)})
        found.append(float(state.players["d"].stats["stats"]["mean"]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


def test_average_by_half_life(trees_equal):
    """A schedule in the place of the decay is taken as it is; at its start the average is G itself."""
    state, _ = trained(1, ema_decay=half_life(100.0, 8))
    trees_equal(state.ema["g"]["params"], state.players["g"].params)
    held = trained(3, ema_decay=lambda t: jnp.ones_like(t))[0]
    trees_equal(
        held.ema["g"]["params"],
        trained(1, ema_decay=lambda t: jnp.ones_like(t))[0].ema["g"]["params"],
    )


def labeled(head, weight=0.5, **options):
    g = mlp.Generator(shape=(2,), widths=(8,), classes=3)
    d = mlp.Discriminator(widths=(8,), classes=3, head=head, embedding=4)
    return gan.make(
        gan.Networks(linen_net(g), linen_net(d), gan.normal_latents(3), (2,)),
        LOSSES["hinge"],
        gan.Optimizers(optax.sgd(0.1), optax.sgd(0.1)),
        condition=gan.Condition(3, AUXILIARY.get(head), weight),
        **options,
    )


@pytest.mark.medium
@pytest.mark.parametrize("head", ["projection", "acgan", "d2d", "ucd"])
def test_conditional_players_heed_labels(head):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)
    y = jnp.asarray(np.arange(8) % 3, jnp.uint8)
    algorithm = labeled(head, penalties=[weighted(0.1, PENALTIES["r1"])])
    state, metrics = run(algorithm, 2, {"x": x, "y": y})
    other, _ = run(algorithm, 2, {"x": x, "y": (y + 1) % 3})
    last = "classes0" if head == "ucd" else "dense0"
    assert not np.allclose(
        state.players["d"].params[last]["kernel"], other.players["d"].params[last]["kernel"]
    )
    assert ("d/auxiliary" in metrics) == (head != "projection")
    assert ("g/auxiliary" in metrics) == (head in ("acgan", "d2d"))
    z = algorithm.sample(state, jax.random.key(4), 6)
    np.testing.assert_array_equal(
        z, algorithm.sample(state, jax.random.key(4), 6, jnp.arange(6) % 3)
    )
    turned = algorithm.sample(state, jax.random.key(4), 6, jnp.arange(1, 7) % 3)
    assert not np.isclose(z, turned).all(1).any()


def test_auxiliary_loss_is_that_of_the_heads():
    """With D = 0, in closed form: AC-GAN's D classifies reals and fakes, G its fakes."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(9, 2)), jnp.float32)
    y = jnp.asarray(np.arange(9) % 3, jnp.int32)
    algorithm = labeled("acgan", rule=game.RULES["simultaneous"])
    state = algorithm.init(jax.random.key(0))
    state = at(state, d=jax.tree.map(jnp.zeros_like, state.players["d"].params))
    _, metrics = jax.jit(algorithm.step)(state, {"x": x, "y": y}, jax.random.key(1))
    np.testing.assert_allclose(metrics["d/auxiliary"], 0.5 * 2 * np.log(3), rtol=1e-6)
    np.testing.assert_allclose(metrics["g/auxiliary"], 0.5 * np.log(3), rtol=1e-6)
    np.testing.assert_allclose(metrics["d/loss"], 2.0, rtol=1e-6)


@pytest.mark.medium
def test_only_the_discriminator_of_ucd_classifies():
    """With D = 0, in closed form; and G's update is the same at any weight, D's is not."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(9, 2)), jnp.float32)
    y = jnp.asarray(np.arange(9) % 3, jnp.int32)

    def step(weight, key):
        algorithm = labeled("ucd", weight, rule=game.RULES["simultaneous"])
        state = algorithm.init(key)
        still = at(state, d=jax.tree.map(jnp.zeros_like, state.players["d"].params))
        batch = {"x": x, "y": y}
        moved, _ = algorithm.step(state, batch, jax.random.key(1))
        _, metrics = algorithm.step(still, batch, jax.random.key(1))
        return {name: player.params for name, player in moved.players.items()}, metrics

    (light, metrics), (heavy, _) = compiled(
        lambda key: [step(weight, key) for weight in (0.5, 2.0)]
    )(jax.random.key(0))
    np.testing.assert_allclose(metrics["d/auxiliary"], 0.5 * 2 * np.log(3), rtol=1e-6)
    np.testing.assert_allclose(metrics["d/loss"], 2.0, rtol=1e-6)
    assert "g/auxiliary" not in metrics
    close(light["g"], heavy["g"], 1e-6)
    kernels = [each["d"]["classes0"]["kernel"] for each in (light, heavy)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


@pytest.mark.medium
def test_wrong_heads_are_named():
    g = linen_net(mlp.Generator(shape=(2,), classes=3))
    batch = {"x": jnp.ones((4, 2)), "y": jnp.zeros(4, jnp.int32)}
    for head, auxiliary in (("acgan", None), ("projection", AUXILIARY["acgan"])):
        d = linen_net(mlp.Discriminator(classes=3, head=head))
        tx = optax.sgd(0.1)
        networks = gan.Networks(g, d, gan.normal_latents(3), (2,))
        condition = gan.Condition(3, auxiliary)
        algorithm = gan.make(networks, LOSSES["hinge"], gan.Optimizers(tx, tx), condition=condition)
        state = algorithm.init(jax.random.key(0))
        with pytest.raises(ValueError, match="D must return"):
            algorithm.step(state, batch, jax.random.key(1))


def shifts(x, key, p):
    """An augmentation that can be told apart: reals and fakes move by a number of their own."""
    return x + p * jax.random.normal(key, (x.shape[0], 1))


@pytest.mark.medium
def test_augmentation_is_what_d_sees(trees_equal):
    """p = 0 changes nothing, p = 1 does; and the gradient of R1 is with respect to the sample before it."""
    plain, _ = trained(2)
    off, _ = trained(2, augment=Augment(shifts, p=0.0))
    on, _ = trained(2, augment=Augment(shifts, p=1.0))
    trees_equal(plain.players["d"].params, off.players["d"].params)
    trees_equal(plain.players["g"].params, off.players["g"].params)
    assert not np.allclose(
        plain.players["d"].params["dense0"]["kernel"], on.players["d"].params["dense0"]["kernel"]
    )
    assert not np.allclose(
        plain.players["g"].params["dense0"]["kernel"], on.players["g"].params["dense0"]["kernel"]
    )
    doubled = Augment(lambda x, key, p: 2 * x, p=1.0)
    batch = {"x": jnp.zeros((8, 2))}
    slope = [
        trained(1, batch, penalties=[weighted(1.0, PENALTIES["r1"])], augment=augment)[1][
            "d/penalty"
        ]
        for augment in (None, doubled)
    ]
    np.testing.assert_allclose(slope[1], 4 * slope[0], rtol=1e-5)


@pytest.mark.medium
def test_adaptive_augmentation_moves_with_the_sign_of_the_reals(trees_equal):
    """p rises by batch / images where D likes the reals too well, falls where not, is in the state, and resumes."""
    wants = dict(loss="wasserstein", d_steps=2)
    x = np.random.default_rng(0).normal(size=(16, 2))
    p = {}
    for target in (-2.0, 2.0):  # the sign is above the one and below the other
        augment = Augment(shifts, p=0.5, target=target, images=800)
        state, metrics = trained(3, {"x": jnp.asarray(x, jnp.float32)}, augment=augment, **wants)
        p[target] = float(state.memory["augment"])
        assert {"d/sign", "d/augment"} <= set(metrics)
    np.testing.assert_allclose(p[-2.0], 0.5 + 3 * 16 / 800, rtol=1e-6)
    np.testing.assert_allclose(p[2.0], 0.5 - 3 * 16 / 800, rtol=1e-6)


def test_began_keeps_its_k_in_the_state():
    state, metrics = trained(3, loss="began")
    assert 0 <= float(state.memory["loss"]) <= 1 and np.isfinite(metrics["d/loss"])


def test_truncated_latents():
    z = np.asarray(gan.normal_latents(50, truncation=0.7)(jax.random.key(0), 400))
    assert np.abs(z).max() <= 0.7
    import scipy.stats

    assert abs(z.std() / scipy.stats.truncnorm(-0.7, 0.7).std() - 1) < 0.02
    algorithm = mlp_gan(sampling=dict(sample_latents=lambda key, n: jnp.zeros((n, 3))))
    drawn = algorithm.sample(algorithm.init(jax.random.key(0)), jax.random.key(1), 5)
    np.testing.assert_array_equal(drawn, np.repeat(drawn[:1], 5, 0))


def test_sampler_stands_in_for_g():
    doubled = Net(lambda key, z: None, lambda v, z, train: (2 * z, {}))
    algorithm = mlp_gan(sampling=dict(sampler=doubled))
    state = algorithm.init(jax.random.key(0))
    z = gan.normal_latents(3)(jax.random.key(1), 4)
    np.testing.assert_array_equal(algorithm.sample(state, jax.random.key(1), 4), 2 * z)


@pytest.mark.parametrize(
    "options",
    [
        dict(d_steps=0),
        dict(accumulate=0),
        dict(penalties=[weighted(1.0, PENALTIES["r1"], 0)]),
        dict(rule=game.RULES["simultaneous"], d_steps=2),
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="must be at least 1|not together"):
        mlp_gan(**options)


@pytest.mark.medium
@pytest.mark.parametrize(
    "loss, options",
    [
        ("hinge", dict(d_steps=2)),
        ("relativistic", dict(accumulate=4)),
        pytest.param("hinge", dict(), marks=pytest.mark.slow),
        pytest.param("hinge", dict(accumulate=4), marks=pytest.mark.slow),
        pytest.param("relativistic", dict(), marks=pytest.mark.slow),
        pytest.param("relativistic", dict(d_steps=2), marks=pytest.mark.slow),
    ],
)
def test_devices_share_out_the_work(loss, options):
    """Four devices do a quarter of the step each, also where the loss does not tie a fake to a real."""
    adam = optax.adam(1e-3)
    algorithm = gan.make(
        gan.Networks(
            linen_net(mlp.Generator((8, 8, 1), (64, 64))),
            linen_net(mlp.Discriminator((64, 64))),
            gan.normal_latents(64),
            (8, 8, 1),
        ),
        LOSSES[loss],
        gan.Optimizers(adam, adam),
        **options,
    )

    def flops(devices):
        mesh = Mesh(np.array(jax.devices()[:devices]), ("batch",))
        shared, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))
        step = jax.jit(algorithm.step, out_shardings=shared)
        x, y = np.zeros((2048, 8, 8, 1), np.float32), np.zeros(2048, np.int32)
        batch = jax.device_put({"x": x, "y": y}, split)
        key = jax.device_put(jax.random.key(0), shared)
        state = jax.device_put(algorithm.init(key), shared)
        return step.lower(state, batch, key).compile().cost_analysis()["flops"]

    assert flops(4) < 0.3 * flops(1)
