"""Problems with known answers, through the project's own trainer (SCIENCE T2.5 to T2.11); measures of mixtures."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpgan import metrics
from bpgan.algorithms import gan
from bpgan.data import toys
from bpgan.losses import LOSSES
from bpgan.nets import linen_net, mlp
from bpgan.penalties import PENALTIES
from bpgan.runtime import parallel
from bpgan.types import AdversarialLoss, Net, UserError
from experiments import _cli as cli
from experiments import toy_gan

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
MIXTURES = {"ring8": toys.ring(), "grid25": toys.grid()}


def config(*flags, **changes):
    cfg = cli.resolve(toy_gan.Config, toy_gan.PRESETS, list(flags))
    return dataclasses.replace(cfg, **changes)


def trained(experiment, steps, seed=0):
    """The state after so many steps, in one program."""
    program = parallel.compile(experiment.algorithm, experiment.source, seed=seed)
    carry, finite = program.run(program.init(), steps)
    assert bool(finite)
    return carry.state


def measured(cfg):
    experiment = toy_gan.build(cfg)
    assert experiment.evaluate is not None
    return experiment.evaluate(trained(experiment, cfg.steps))


# The measures


@pytest.mark.parametrize("name", MIXTURES)
def test_real_samples_reach_the_known_values(name):
    """The oracle control: all modes, 98.89 %, (k - 1) / 2 n and a ratio of 1."""
    mixture, n = MIXTURES[name], 2500
    k = len(mixture.centres)
    runs = [
        metrics.modes(np.asarray(mixture.draw(jax.random.key(s), n)), mixture.centres, mixture.std)
        for s in range(20)
    ]
    assert all(run.captured == k for run in runs)
    share = 1 - np.exp(-4.5)
    error = np.sqrt(share * (1 - share) / n / 20)
    assert abs(np.mean([r.high_quality for r in runs]) - share) < 4 * error
    known = (k - 1) / (2 * n)
    assert abs(np.mean([r.reverse_kl for r in runs]) - known) < 4 * known * np.sqrt(
        2 / (k - 1) / 20
    )
    assert abs(np.mean([r.std_ratio for r in runs]) - 1) < 0.01


def test_collapsed_samples_are_told_apart():
    ring = MIXTURES["ring8"]
    points = np.repeat(ring.centres, 100, 0)  # every mode, without width
    flat = metrics.modes(points, ring.centres, ring.std)
    assert flat.captured == 8 and flat.high_quality == 1 and flat.std_ratio < 1e-9
    half = np.asarray(ring.draw(jax.random.key(0), 2000))
    half = half[half[:, 1] > 0.3]  # three modes
    some = metrics.modes(half, ring.centres, ring.std)
    assert some.captured == 3 and abs(some.reverse_kl - np.log(8 / 3)) < 0.02
    nowhere = metrics.modes(np.full((50, 2), 0.1), ring.centres, ring.std)
    assert nowhere.captured == 0 and nowhere.high_quality == 0 and nowhere.std_ratio == 0


def test_fresh_batches_are_functions_of_the_step():
    source = toys.fresh(MIXTURES["ring8"].draw, seed=3, batch_size=16)
    at = lambda step: np.asarray(source.batch_at(source.data, step)["x"])  # noqa: E731
    np.testing.assert_array_equal(at(5), at(5))
    assert not np.array_equal(at(5), at(6))
    other = toys.fresh(MIXTURES["ring8"].draw, seed=4, batch_size=16)
    assert not np.array_equal(at(5), other.batch_at(other.data, 5)["x"])


# Two parameters


@pytest.mark.parametrize("gamma,norm", [("0.3", 4.3757e-4), ("2", 1.08016e-3)])
def test_dirac_goes_where_it_is_known_to_go(gamma, norm):
    """T2.1 as a user would run it, and the spectral radius of the step at the equilibrium."""
    found = measured(config("--preset=dirac", f"--gamma={gamma}", "--precision=float32"))
    np.testing.assert_allclose(found["distance"], norm, rtol=2e-3)
    np.testing.assert_allclose(found["factor"], found["factor/known"], rtol=2e-3)


@pytest.mark.parametrize("rule", ["simultaneous", "extragradient", "consensus", "symplectic"])
def test_bilinear_factors(rule):
    found = measured(config("--preset=bilinear", f"--rule={rule}", "--steps=200"))
    np.testing.assert_allclose(found["factor"], found["factor/known"], rtol=1e-4)
    known = {"simultaneous": np.sqrt(1.01), "extragradient": np.sqrt(1 - 0.01 + 1e-4)}
    np.testing.assert_allclose(found["factor"], known.get(rule, np.sqrt(0.81 + 0.01)), rtol=1e-4)


def test_bilinear_is_the_wasserstein_game():
    with pytest.raises(UserError, match="--loss=hinge: --problem=bilinear"):
        toy_gan.build(config("--preset=bilinear", "--loss=hinge"))


# Linear-quadratic Gaussian


def test_linear_quadratic_gaussian_is_pca(x64):
    """T2.5: W2^2 is the sum of the eigenvalues left out, and G's are the largest."""
    found = measured(config("--preset=lqg", "--precision=float64"))
    np.testing.assert_allclose(found["w2"], 1.85, rtol=1e-3)
    np.testing.assert_allclose([found["eigenvalue0"], found["eigenvalue1"]], [4, 2], rtol=1e-3)


def test_the_game_is_the_distance(x64):
    """Anywhere, half the Frechet distance; with G of full rank and GG' = K it is 0 and still."""
    losses, init = toy_gan.wasserstein_game(toy_gan.SPECTRUM, 3, jnp.float64)
    g, _ = init(jax.random.key(0))
    k, zero = np.diag(toy_gan.SPECTRUM), np.zeros(6)
    whole = metrics.frechet_distance_gaussians(
        metrics.Gaussian(zero, k, 2), metrics.Gaussian(zero, np.asarray(g @ g.T), 2)
    )
    np.testing.assert_allclose(losses((g, ()))[0][0], whole / 2, rtol=1e-6)
    losses, _ = toy_gan.wasserstein_game(toy_gan.SPECTRUM, 6, jnp.float64)
    at = jnp.diag(jnp.sqrt(jnp.asarray(toy_gan.SPECTRUM)))
    assert abs(float(losses((at, ()))[0][0])) < 1e-12
    assert np.abs(jax.grad(lambda g: losses((g, ()))[0][0])(at)).max() < 1e-9


# One dimension


def alone(d, loss, real, fake, tx, steps, penalties=(), batch=4096):
    """D trained against a G that stands still, ``fake(key, n)``; its state."""
    g = Net(lambda key, z: {"params": ()}, lambda v, z, train: (z, {}))
    algorithm = gan.make(
        g, d, loss, optax.set_to_zero(), tx, latents=fake, data_shape=(1,), penalties=penalties
    )
    experiment = cli.Experiment(algorithm, toys.fresh(real, seed=1, batch_size=batch))
    return trained(experiment, steps)


def gaussian(mean, std=1.0):
    return lambda key, n: mean + std * jax.random.normal(key, (n, 1))


def value_of(d, loss, state, real, fake, n=1_000_000):
    x, y = real(jax.random.key(7), n), fake(jax.random.key(8), n)
    logits = [d.apply({"params": state.d.params}, v, train=False)[0] for v in (x, y)]
    return float(jnp.mean(loss.d(*logits))), logits


@pytest.mark.parametrize(
    "mean,std,loss,best,params",
    [
        slow(1.0, 1.0, "nonsaturating", 1.16345140, (0.5, -1.0, 0.0)),
        (2.0, 1.0, "nonsaturating", 0.71263272, (2.0, -2.0, 0.0)),
        slow(0.0, 2.0, "nonsaturating", 1.20082760, (np.log(2), 0.0, -0.375)),
        (1.0, 1.0, "relativistic", 0.49180171, (None, -1.0, 0.0)),
        slow(2.0, 1.0, "relativistic", 0.19307504, (None, -2.0, 0.0)),
    ],
)
def test_the_optimal_discriminator(optimised, mean, std, loss, best, params):
    """T2.6: log p - log q of N(0, 1) and N(mean, std^2), and the loss log 4 - 2 JSD; on fresh samples."""
    d, pair = toy_gan.quadratic_discriminator(), LOSSES[loss]
    real, fake = gaussian(0.0), gaussian(mean, std)
    state = alone(d, pair, real, fake, optax.adam(optax.cosine_decay_schedule(0.02, 4000)), 4000)
    found, _ = value_of(d, pair, state, real, fake)
    assert abs(found - best) < 3e-3
    for value, expected in zip(state.d.params, params, strict=True):
        if expected is not None:
            assert abs(value - expected) < 2e-2


@pytest.mark.slow
def test_a_network_comes_near_the_optimum_and_not_below(optimised):
    """T2.6 of an MLP: within 1e-2 of the Bayes loss on fresh samples, never more than 3 standard errors below."""
    d, pair = linen_net(mlp.Discriminator((64, 64))), LOSSES["nonsaturating"]
    real, fake = gaussian(0.0), gaussian(1.0)
    state = alone(d, pair, real, fake, optax.adam(optax.cosine_decay_schedule(2e-3, 3000)), 3000)
    found, logits = value_of(d, pair, state, real, fake)
    error = float(jnp.std(pair.d(*logits))) / 1000
    assert -3 * error < found - 1.16345140 < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    "mean,weight,loss,gap",
    [(3.0, 10.0, 3.2315, 3.4630), (1.0, 10.0, 1.02723, 1.05445), (3.0, 1.0, 5.3148, 7.6295)],
)
def test_the_wgan_gp_critic_in_closed_form(optimised, mean, weight, loss, gap):
    """T2.8: the penalised optimum overestimates W1, by as much as theory says."""
    d, pair = linen_net(mlp.Discriminator((64, 64, 64))), LOSSES["wasserstein"]
    real, fake = gaussian(mean), gaussian(0.0)
    penalty = PENALTIES["wgan_gp"]
    tx = optax.adam(optax.cosine_decay_schedule(1e-3, 6000), b1=0.0, b2=0.9)
    state = alone(d, pair, real, fake, tx, 6000, [(weight, penalty)], 1024)
    value, (r, f) = value_of(d, pair, state, real, fake, 200_000)
    critic = lambda x: d.apply({"params": state.d.params}, x, train=False)[0]  # noqa: E731
    x, y = real(jax.random.key(9), 200_000), fake(jax.random.key(10), 200_000)
    total = -value - weight * float(jnp.mean(penalty(critic, x, y, jax.random.key(11))))  # type: ignore[operator]
    np.testing.assert_allclose(total, loss, rtol=0.02)
    np.testing.assert_allclose(float(jnp.mean(r) - jnp.mean(f)), gap, rtol=0.02)


CONVERGENT = {
    "nonsaturating": "r1", "minimax": "r1", "hinge": "r1+r2", "least_squares": "r1",
    "relativistic": "r1+r2", "wasserstein": "r1+r2", "relativistic_average": "r1+r2",
}  # fmt: skip


@pytest.mark.parametrize(
    "loss", [slow(n) if n not in ("nonsaturating", "relativistic") else n for n in CONVERGENT]
)
def test_two_numbers_of_g_find_the_gaussian(optimised, loss):
    """T2.7: mean and standard deviation to 0.05, D's loss to that of equal distributions."""
    found = measured(
        config("--preset=gaussian1d", f"--loss={loss}", f"--penalty={CONVERGENT[loss]}")
    )
    assert abs(found["mean"] - 2) < 0.05 and abs(found["std"] - 0.5) < 0.05
    assert abs(found["d_loss"] - found["d_loss/known"]) < 0.01


def test_unregularised_simultaneous_descent_does_not(optimised):
    """The negative control: without a penalty the players go on circling."""
    flags = ["--preset=gaussian1d", "--penalty=none", "--rule=simultaneous", "--optimizer=sgd"]
    found = measured(config(*flags, "--lr=0.1", "--ema=0", "--loss=wasserstein", "--steps=1500"))
    assert not (abs(found["mean"] - 2) < 0.05 and abs(found["std"] - 0.5) < 0.05)


# Mixtures


def seeds_at_once(cfg, seeds, change=lambda algorithm: algorithm):
    """Modes of several seeds, trained as one program."""
    experiments = [toy_gan.build(dataclasses.replace(cfg, seed=seed)) for seed in range(seeds)]
    algorithm, source = change(experiments[0].algorithm), experiments[0].source
    data = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(e.source.data for e in experiments))
    keys = jax.random.split(jax.random.key(5), seeds)

    @jax.jit
    @jax.vmap
    def train(key, data):
        def body(i, state):
            return algorithm.step(state, source.batch_at(data, i), key)[0]

        return jax.lax.fori_loop(0, cfg.steps, body, algorithm.init(key))

    states = train(keys, data)
    return [
        experiments[0].evaluate(jax.tree.map(lambda x, i=i: x[i], states)) for i in range(seeds)
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ring(optimised):
    """T2.10, five seeds."""
    for found in seeds_at_once(config(), 5):
        assert found["modes"] == 8 and found["high_quality"] >= 0.93
        assert found["reverse_kl"] <= 0.02 and 0.5 <= found["std_ratio"] <= 1.5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_grid(optimised):
    """T2.11, five seeds."""
    runs = seeds_at_once(config("--preset=grid25"), 5)
    assert sum(found["modes"] == 25 for found in runs) >= 4
    assert np.median([found["reverse_kl"] for found in runs]) <= 0.03
    assert min(found["high_quality"] for found in runs) >= 0.78


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["flipped G", "constant reals", "average that never moves"])
def test_broken_training_fails(optimised, monkeypatch, bug):
    """What the acceptance of the ring must not accept."""

    def change(algorithm):
        if bug != "average that never moves":
            return algorithm

        def step(state, batch, key):
            moved, values = algorithm.step(state, batch, key)
            return moved._replace(ema=state.ema), values

        return algorithm._replace(step=step)

    if bug == "flipped G":
        rp = LOSSES["relativistic"]
        flipped = AdversarialLoss(rp.d, lambda real, fake: -rp.g(real, fake))
        monkeypatch.setitem(LOSSES, "relativistic", flipped)
    elif bug == "constant reals":
        one = MIXTURES["ring8"].centres[0]

        def draw(self, key, n, dtype=jnp.float32):
            return jnp.broadcast_to(jnp.asarray(one, dtype), (n, 2))

        monkeypatch.setattr(toys.Mixture, "draw", draw)
    (found,) = seeds_at_once(config("--steps=2000"), 1, change)
    assert found["modes"] < 8 or found["high_quality"] < 0.5


# The experiment


@pytest.mark.parametrize("preset", toy_gan.PRESETS)
def test_runs_draw_pictures_and_resume(tmp_path, preset):
    """Every problem runs, draws a coloured picture, and goes on from its checkpoint."""
    flags = [f"--preset={preset}", "--width=8", "--batch_size=16", f"--workdir={tmp_path}", "--notensorboard",
             "--log_every=2", "--sample_every=2", "--checkpoint_every=2", "--lr=0.01"]  # fmt: skip
    args = toy_gan.Config, toy_gan.build, toy_gan.PRESETS
    assert cli.run(*args, [*flags, "--steps=4"]) == 0
    assert cli.run(*args, [*flags, "--steps=6"]) == 0
    from PIL import Image

    pictures = [np.asarray(Image.open(p)) for p in sorted((tmp_path / "samples").glob("*.png"))]
    assert len(pictures) == 4 and {p.shape for p in pictures} == {(240, 240, 3)}
    assert all(len(np.unique(p.reshape(-1, 3), axis=0)) > 2 for p in pictures)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "done" and result["step"] == 6


def test_one_way_to_run():
    with pytest.raises(UserError, match="--parallel=pmap"):
        toy_gan.build(config(), axis_name="batch")
