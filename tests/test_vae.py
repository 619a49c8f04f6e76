"""The autoencoder against what is known in closed form, by quadrature, and of its bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats

from bpgan import cli, data
from bpgan.algorithms import vae
from bpgan.nets import linen_net, mlp
from bpgan.nets.vae import Encoder
from bpgan.runtime.program import axis_name, compile_program
from bpgan.types import Net, Source, stream
from experiments import vae as experiment

GRAY = np.linspace(-1, 1, 7)


def affine(features):
    """``x -> x W + b``, and for an encoder a log variance that does not depend on x."""

    def init(key, x):
        w = 0.1 * jax.random.normal(key, (x.shape[1], features), x.dtype)
        zeros = jnp.zeros(features, x.dtype)
        return {"params": {"w": w, "b": zeros, "c": zeros}}

    def encode(variables, x, *, train):
        p = variables["params"]
        mean = x @ p["w"] + p["b"][None]
        return (mean, jnp.broadcast_to(p["c"][None], mean.shape)), {}

    def decode(variables, z, *, train):
        return encode(variables, z, train=train)[0][0], {}

    return Net(init, encode), Net(init, decode)


@pytest.mark.medium
def test_a_linear_autoencoder_finds_the_likelihood_of_probabilistic_pca(x64, optimized):
    """Tipping & Bishop 1999, Eq. 4 and 7, at a given noise; Lucas et al. 2019: the ELBO has no gap there."""
    generator, std, q = np.random.default_rng(0), 0.5, 2
    mixing = generator.normal(size=(3, 6)) * np.array([[2.0], [1.2], [0.3]])
    x = generator.normal(size=(300, 3)) @ mixing + 0.5 * generator.normal(size=(300, 6)) + 1.0
    covariance = np.cov(x.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    w = vectors[:, -q:] * np.sqrt(values[-q:] - std**2)
    c = w @ w.T + std**2 * np.eye(6)
    known = -0.5 * (
        6 * np.log(2 * np.pi) + np.linalg.slogdet(c)[1] + np.trace(np.linalg.solve(c, covariance))
    )
    model = vae.Model(affine(q)[0], affine(6)[1], vae.gaussian(std))
    algorithm = vae.make(
        model,
        optax.adam(optax.cosine_decay_schedule(2e-2, 4000)),
        latents=q,
        data_shape=(6,),
        dtype="float64",
    )
    data = jnp.asarray(x)
    source = Source({"x": data}, lambda d, step: {"x": d["x"]}, 300, 300, "test")
    program = compile_program(algorithm, source, seed=0, devices=1)
    carry, _ = program.run(program.init(), 4000)
    bound = jax.jit(lambda key: jnp.mean(vae.iwae_bound(model, carry.state, data, key, 1)))
    bounds = [float(bound(jax.random.key(i))) for i in range(60)]
    assert np.std(bounds) / np.sqrt(60) < 4e-3
    assert np.mean(bounds) == pytest.approx(known, abs=1e-2)
    # Any number of samples gives the same bound: q is the posterior.
    tight = jnp.mean(vae.iwae_bound(model, carry.state, data, jax.random.key(9), 200))
    assert float(tight) == pytest.approx(known, abs=1e-2)


@pytest.mark.medium
def test_kl_is_its_monte_carlo_estimate(x64):
    mean = jnp.array([[0.3, -1.2, 0.0], [0.0, 0.0, 0.0]])
    log_variance = jnp.array([[-1.0, 0.4, 0.0], [0.0, 0.0, 0.0]])
    noise = jax.random.normal(jax.random.key(0), (400_000, 2, 3))
    z = vae.reparametrize(mean[None], log_variance[None], noise)
    log_q = jax.scipy.stats.norm.logpdf(z, mean[None], jnp.exp(log_variance / 2)[None])
    estimate = jnp.mean(jnp.sum(log_q - jax.scipy.stats.norm.logpdf(z), -1), 0)
    np.testing.assert_allclose(vae.kl(mean, log_variance), estimate, atol=1e-2)
    assert float(vae.kl(mean, log_variance)[1]) == 0.0
    # Of a latent that is hardly used l^2 / 4 is left, below the rounding of its terms.
    little = jnp.array([[1e-4], [-1e-4]], jnp.float32)
    np.testing.assert_allclose(vae.kl(jnp.zeros_like(little), little), 2.5e-9, rtol=1e-2)


def small(likelihood="bernoulli-threshold", pixels=6, latents=2):
    decoder = mlp.Generator((pixels,), (16,), linear=True, dtype="float64")
    encoder = Encoder(latents, (), (16,), dtype="float64")
    model = vae.Model(linen_net(encoder), linen_net(decoder), vae.LIKELIHOODS[likelihood])
    algorithm = vae.make(
        model, optax.adam(1e-2), latents=latents, data_shape=(pixels,), dtype="float64"
    )
    return model, algorithm


def trained(algorithm, steps=150, seed=0):
    rng = np.random.default_rng(1)
    codes = rng.normal(size=(128, 2)) @ rng.normal(size=(2, 6))
    source = Source({"x": np.tanh(2 * codes)}, lambda d, step: {"x": d["x"]}, 128, 128, "test")
    program = compile_program(algorithm, source, seed=seed, devices=1)
    carry, finite = program.run(program.init(), steps)
    assert finite
    return carry, jnp.asarray(source.data["x"])


@pytest.mark.medium
@pytest.mark.parametrize(
    "likelihood",
    [pytest.param("bernoulli-threshold", marks=pytest.mark.slow), "continuous-bernoulli"],
)
def test_bounds_rise_with_the_samples_to_the_true_marginal(x64, likelihood):
    """``p(x) = int p(x|z) N(z; 0, I) dz`` on a grid over the two latents."""
    model, algorithm = small(likelihood)
    carry, x = trained(algorithm, 60)
    state, x = carry.state, x[:8]
    grid = np.linspace(-8, 8, 401)
    z = jnp.stack(jnp.meshgrid(grid, grid), -1).reshape(-1, 2)
    logits, _ = model.decoder.apply(vae.variables(state, "decoder"), z, train=False)
    u = model.likelihood.observe(x, jax.random.key(0))
    log_joint = jnp.sum(model.likelihood.log_prob(logits[None], u[:, None]), -1)
    log_joint += jnp.sum(jax.scipy.stats.norm.logpdf(z), -1)[None]
    known = jax.nn.logsumexp(log_joint, axis=1) + 2 * np.log(grid[1] - grid[0])

    def bound(k, repeats):
        one = jax.jit(lambda key: vae.iwae_bound(model, state, x, key, k))
        return np.mean([one(key) for key in jax.random.split(jax.random.key(k), repeats)], 0)

    found = {k: bound(k, repeats) for k, repeats in ((1, 400), (5, 100), (50, 20), (20_000, 1))}
    np.testing.assert_allclose(found[20_000], known, atol=0.1)
    means = [float(np.mean(found[k])) for k in (1, 5, 50, 20_000)]
    assert all(a < b + 5e-3 for a, b in zip(means, means[1:], strict=False))
    assert means[0] < means[1] < means[2] and means[-1] <= float(np.mean(known)) + 0.02
    # One sample: the ELBO, whose KL is known.
    (mean, log_variance), _ = model.encoder.apply(vae.variables(state, "encoder"), u, train=False)
    noise = jax.random.normal(jax.random.key(3), (4000, *mean.shape), mean.dtype)
    z = vae.reparametrize(mean[None], log_variance[None], noise).reshape(-1, 2)
    logits, _ = model.decoder.apply(vae.variables(state, "decoder"), z, train=False)
    log_p = jnp.sum(model.likelihood.log_prob(logits.reshape(4000, 8, 6), u[None]), -1)
    elbo = jnp.mean(log_p, 0) - vae.kl(mean, log_variance)
    assert float(jnp.mean(elbo)) == pytest.approx(means[0], abs=0.1)


@pytest.mark.medium
def test_training_maximizes_the_bound_it_reports(x64):
    model, algorithm = small()
    carry, x = trained(algorithm, 1)
    first = carry.window.means()
    assert first["loss"] == pytest.approx(first["reconstruction"] + first["kl"])
    assert first["elbo"] == pytest.approx(-first["loss"])
    later, _ = trained(algorithm, 150)
    bound = [
        float(jnp.mean(vae.iwae_bound(model, c.state, x, jax.random.key(0), 20)))
        for c in (carry, later)
    ]
    assert bound[1] > bound[0] + 1


@pytest.mark.medium
def test_beta_weights_the_divergence(x64):
    model, _ = small()
    plain, weighted = (
        vae.make(model, optax.sgd(0.0), latents=2, data_shape=(6,), dtype="float64", beta=beta)
        for beta in (1.0, 4.0)
    )
    a, b = (trained(algorithm, 1)[0].window.means() for algorithm in (plain, weighted))
    assert a["kl"] == b["kl"] > 0 and a["elbo"] == b["elbo"]
    assert b["loss"] - a["loss"] == pytest.approx(3 * a["kl"])


@pytest.mark.medium
@pytest.mark.parametrize(
    "eta", [-90.0, -5.0, -1.01, -0.11, -0.09, -1e-4, 0.0, 1e-9, 0.09, 0.11, 0.99, 1.01, 3.0, 90.0]
)
def test_the_continuous_bernoulli_is_a_density_with_its_mean(x64, eta):
    cb = vae.LIKELIHOODS["continuous-bernoulli"]

    def density(u):
        return float(jnp.exp(cb.log_prob(jnp.float64(eta), jnp.float64(u))))

    kinks = [1 - 1 / abs(eta), 1 / abs(eta)] if abs(eta) > 2 else None
    total, _ = integrate.quad(density, 0, 1, points=kinks)
    assert total == pytest.approx(1, abs=1e-9)
    mean, _ = integrate.quad(lambda u: u * density(u), 0, 1, points=kinks)
    assert float(_unit(cb.mean(jnp.float64(eta)))) == pytest.approx(mean, abs=1e-9)
    # The mean is the derivative of the log normalizer; both branches, and their seam.
    slope = jax.grad(vae.log_normalizer)(jnp.float64(eta))
    assert float(slope) == pytest.approx(mean, abs=1e-9)
    curvature = jax.grad(jax.grad(vae.log_normalizer))(jnp.float64(eta))
    assert np.isfinite(curvature) and (abs(eta) > 50 or curvature > 0)


def _unit(x):
    return (x + 1) / 2


def test_single_precision_is_exact_enough_everywhere():
    """Also of large negative numbers, where the logarithm is all that is left: it was that of 8 digits' difference."""
    eta = np.concatenate([-np.logspace(-8, 4, 300), np.logspace(-8, 4, 300), [0.0]])
    with jax.enable_x64(True):
        exact = np.asarray(vae.log_normalizer(jnp.asarray(eta)))
    found = np.asarray(vae.log_normalizer(jnp.asarray(eta, jnp.float32)))
    np.testing.assert_allclose(found, exact, rtol=5e-7, atol=3e-7)


@pytest.mark.medium
@pytest.mark.parametrize("expm1", [jnp.expm1, lambda x: jnp.exp(x) - 1], ids=["jax", "onnx"])
def test_means_keep_their_digits_in_single_precision(expm1, monkeypatch):
    """Where both fractions are about 10, their difference had lost one digit, and two with ONNX's ``expm1``."""
    monkeypatch.setattr(jnp, "expm1", expm1)
    eta = np.concatenate([-np.logspace(-8, 4, 3000), np.logspace(-8, 4, 3000), [0.0]]).astype("f4")
    wide = eta.astype(np.float64)
    away = np.where(np.abs(wide) < 0.05, 1, wide)
    with np.errstate(over="ignore"):
        exact = -1 / np.expm1(-away) - 1 / away
    exact = np.where(np.abs(wide) < 0.05, 0.5 + wide / 12 - wide**3 / 720 + wide**5 / 30240, exact)
    found = _unit(np.asarray(vae.LIKELIHOODS["continuous-bernoulli"].mean(jnp.asarray(eta)), "f8"))
    np.testing.assert_allclose(found, exact, rtol=0, atol=3e-7)
    slopes = jax.grad(lambda eta: vae.LIKELIHOODS["continuous-bernoulli"].mean(eta).sum())
    assert np.isfinite(slopes(jnp.asarray(eta))).all()


@pytest.mark.parametrize("eta", [-4.0, 0.0, 0.05, 2.5])
def test_draws_of_the_continuous_bernoulli(eta):
    cb = vae.LIKELIHOODS["continuous-bernoulli"]
    drawn = np.asarray(_unit(cb.draw(jnp.full(4000, eta, jnp.float32), jax.random.key(0))))
    assert drawn.min() >= 0 and drawn.max() <= 1

    def cdf(u):
        return np.expm1(eta * u) / np.expm1(eta) if eta else u

    assert stats.kstest(drawn, cdf).pvalue > 1e-3


def test_what_is_observed_and_drawn():
    x = jnp.asarray(np.broadcast_to(GRAY[None], (4000, 7)), jnp.float32)
    dynamic, threshold = (vae.LIKELIHOODS[n] for n in ("bernoulli", "bernoulli-threshold"))
    u = np.asarray(dynamic.observe(x, jax.random.key(0)))
    assert set(np.unique(u)) == {0.0, 1.0}
    np.testing.assert_allclose(u.mean(0), (GRAY + 1) / 2, atol=0.04)
    assert np.any(u != dynamic.observe(x, jax.random.key(1)))
    np.testing.assert_array_equal(threshold.observe(x, jax.random.key(0))[0], GRAY > 0)
    logits = jnp.full((4000,), 1.0)
    drawn = np.asarray(dynamic.draw(logits, jax.random.key(2)))
    assert set(np.unique(drawn)) == {-1.0, 1.0}
    assert drawn.mean() == pytest.approx(float(dynamic.mean(logits)[0]), abs=0.05)
    np.testing.assert_allclose(
        np.exp([dynamic.log_prob(1.0, u) for u in (0.0, 1.0)]).sum(), 1, rtol=1e-6
    )


def test_active_units_are_those_that_vary():
    means = jnp.asarray(np.random.default_rng(0).normal(size=(500, 5)) * [1, 0.5, 0.09, 0.01, 0])
    assert vae.active_units(means) == 2
    assert vae.active_units(means, 1e-3) == 3


@pytest.mark.medium
def test_devices_agree(x64):
    model, _ = small()
    options = dict(latents=2, data_shape=(6,), dtype="float64")
    x = np.tanh(np.random.default_rng(0).normal(size=(16, 6)))
    source = Source({"x": x}, lambda d, step: {"x": d["x"]}, 16, 16, "test")
    states = []
    for mode in ("jit", "pmap"):
        algorithm = vae.make(model, optax.sgd(1e-2), axis_name=axis_name(mode), **options)
        program = compile_program(algorithm, source, seed=0, mode=mode)
        carry, _ = program.run(program.init(), 5)
        states.append(jax.device_get(carry.state.players[vae.VAE].params))
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.medium
def test_samples_are_means_or_draws():
    model, _ = small()
    with pytest.raises(ValueError, match="samples='mode': must be mean or draw"):
        vae.make(model, optax.sgd(0.1), latents=2, data_shape=(6,), samples="mode")
    for text, binary in (("mean", False), ("draw", True)):
        cfg = cli.resolve(
            experiment.Config, experiment.PRESETS,
            ["--preset=smoke", f"--samples_of={text}", "--likelihood=bernoulli"],
        )  # fmt: skip
        algorithm = experiment.build(cfg).algorithm
        drawn = algorithm.sample(algorithm.init(jax.random.key(0)), jax.random.key(1), 3)
        assert drawn.shape == (3, 28, 28, 1)
        assert (set(np.unique(drawn)) <= {-1.0, 1.0}) == binary


class Counted:
    """A likelihood that counts how often it is traced."""

    def __init__(self, likelihood):
        self.traced, self.wrapped = 0, likelihood

    def observe(self, x, key):
        self.traced += 1
        return self.wrapped.observe(x, key)

    def __getattr__(self, name):
        return getattr(self.wrapped, name)


@pytest.mark.medium
@pytest.mark.parametrize(
    "likelihood,count",
    [pytest.param("bernoulli", 103, marks=pytest.mark.slow), ("continuous-bernoulli", 40)],
)
def test_bounds_that_a_run_reports_are_of_the_same_images(monkeypatch, likelihood, count):
    """103 images are six chunks of 20, the last one filled up, and bounds of the first 50 are of three."""
    monkeypatch.setattr(experiment, "_CHUNK", 20)
    monkeypatch.setattr(experiment, "_IMAGES", 50)
    images = data.load("mnist10k", "test")
    images = data.of_arrays("digits", "test", *images.read(np.arange(count)), 10)
    counted = Counted(vae.LIKELIHOODS[likelihood])
    model = vae.Model(*experiment.networks("mlp", images.shape, 4, 16, "float32"), counted)
    algorithm = vae.make(model, optax.adam(1e-3), latents=4, data_shape=images.shape)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    first = min(50, count)

    def reported(k):
        return experiment.bounds(model, state, images, k, "float32")

    one = reported(1)
    counted.traced = 0
    many = reported(20)
    assert counted.traced == 3  # two bounds, latents in use; however many chunks there are
    assert set(many) == {
        "test/elbo", f"test/elbo-first-{first}", f"test/iwae-20-first-{first}", "test/active_units",
    }  # fmt: skip
    elbo_of_them = many[f"test/elbo-first-{first}"]
    assert one[f"test/elbo-first-{first}"] == elbo_of_them
    assert one[f"test/iwae-1-first-{first}"] == pytest.approx(elbo_of_them, rel=1e-6)
    assert many[f"test/iwae-20-first-{first}"] > elbo_of_them + 0.05
    assert (many["test/elbo"] == elbo_of_them) == (count <= 50)
    # By the KL in closed form, over latents drawn often.
    x = jnp.asarray(images.read(np.arange(count))[0], jnp.float32) / 127.5 - 1

    def elbo(key):
        u = model.likelihood.observe(x, stream(key, "observe"))
        (mean, log_variance), _ = model.encoder.apply(
            vae.variables(state, "encoder"), u, train=False
        )
        z = vae.reparametrize(mean, log_variance, jax.random.normal(stream(key, "z"), mean.shape))
        logits, _ = model.decoder.apply(vae.variables(state, "decoder"), z, train=False)
        log_p = jnp.sum(model.likelihood.log_prob(logits, u).reshape(count, -1), -1)
        return log_p - vae.kl(mean, log_variance)

    drawn = np.asarray(jax.lax.map(elbo, jax.random.split(jax.random.key(1), 100)), np.float64)
    for name, n in (("test/elbo", count), (f"test/elbo-first-{first}", first)):
        means = drawn[:, :n].mean(1)
        assert abs(many[name] - means.mean()) < 5 * means.std()
