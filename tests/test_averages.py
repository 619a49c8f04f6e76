"""Averages by powers: the recursion, several at once, any length after training, and G that goes on from one."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks.averages import EXPONENTS, density

import bpgan
from bpgan import augment, cli, optim
from bpgan.algorithms import gan
from bpgan.algorithms.turns import TOGETHER, Aux, Now, Term, Turn, play
from bpgan.types import UserError
from experiments import evaluate, image_gan, sample

pytestmark = pytest.mark.usefixtures("no_curves")


def telescoped(gamma, n):
    """``w_i = (i^(g + 1) - (i - 1)^(g + 1)) / n^(g + 1)``, i = 1 ... n."""
    share = np.arange(n + 1) / n
    return np.diff(share ** (gamma + 1))


def recursion(decay, n, start, dtype):
    """The weights of w_1 ... w_n in an average that begins at ``start`` times something else, which comes first."""
    a = np.zeros(n + 1, dtype)
    a[0] = start
    for step in range(n):
        d = np.asarray(decay(jnp.asarray(step, dtype)))
        a = d * a
        a[step + 1] += 1 - d
    return a


@pytest.mark.parametrize("sigma,gamma", EXPONENTS.items())
def test_exponents_of_widths(sigma, gamma):
    found = optim.exponent_of(sigma)
    assert found == pytest.approx(gamma, abs=1e-4)
    assert np.sqrt((found + 1) / ((found + 2) ** 2 * (found + 3))) == pytest.approx(
        sigma, rel=1e-12
    )
    tau = (np.arange(200_000) + 0.5) / 200_000  # the standard deviation of the profile itself
    density = (found + 1) * tau**found / len(tau)
    mean = np.sum(density * tau)
    assert mean == pytest.approx(1 - 1 / (found + 2), abs=1e-6)
    assert np.sqrt(np.sum(density * (tau - mean) ** 2)) == pytest.approx(sigma, rel=1e-5)


def test_the_recursion_is_the_profile(x64):
    for sigma, gamma in ((s, optim.exponent_of(s)) for s in (0.05, 0.2, 0.2886)):
        a = recursion(optim.power(sigma), 40, 1e6, np.float64)
        assert a[0] == 0 and abs(a.sum() - 1) < 1e-12
        np.testing.assert_allclose(a[1:], telescoped(gamma, 40), rtol=1e-11, atol=1e-13)


def test_the_recursion_in_single_precision():
    a = recursion(optim.power(0.1), 200, 1e6, np.float32)
    expected = telescoped(optim.exponent_of(0.1), 200)
    assert a[0] == 0 and abs(a.sum() - 1) < 1e-5
    np.testing.assert_allclose(a[1:], expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("sigma", [0.2887, 0.3, 0.0, -0.1, 1e-160, float("nan")])
def test_widths_that_favor_the_oldest_are_refused(sigma):
    with pytest.raises(ValueError, match=r"is not in \[1e-4, 0.2886\]"):
        optim.exponent_of(sigma)


@pytest.mark.parametrize(
    "text,reason",
    [
        ("power:0.3", "power:0.3.*oldest weights would count most"),
        ("power:x", "must be power:SIGMA"),
        ("power:0.1+0", "0 keeps no average"),
        ("0,reload=5", "0 keeps no average"),
        ("power:0.1,reload=0", "must be reload=STEPS"),
        ("power:0.1,reset=1ep", "must be reload=STEPS"),
        ("power:0.1,reload=99999999999", "must be reload=STEPS"),
        ("power:0.1+power:0.1", "keeps one average twice"),
        ("power:0.1+", "must be a number A"),
        ("-1", "A and B >= 0"),
    ],
)
def test_lengths_that_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        optim.parse_averages(text)


def test_lengths_are_read():
    several = optim.parse_averages("2e+4+power:0.1+cosine:0:1e5,reload=1.5ep")
    assert several.sigmas == (None, 0.1, None)
    made = several.over(100, 32, 40.0)
    assert isinstance(made, optim.Averages) and len(made.decays) == 3 and made.reload == 60
    assert float(made.decays[0](50.0)) == pytest.approx(0.5 ** (32 / (0.05 * 50 * 32)))
    assert float(made.decays[1](9.0)) == pytest.approx(
        0.9 ** (optim.exponent_of(0.1) + 1), rel=1e-5
    )
    assert float(made.decays[2](100.0)) == pytest.approx(0.5 ** (32 / 1e5))
    assert optim.parse_averages("0").over(100, 32, 40.0) is None
    one = optim.parse_averages("100").over(100, 32, 40.0)
    assert float(one(1e6)) == pytest.approx(0.5 ** (32 / 100))
    assert optim.parse_averages("100,reload=7").over(100, 32, 40.0).reload == 7


def test_inner_products_are_integrals():
    tau = (np.arange(400_000) + 0.5) / 40_000
    for a, b in [((2.0, 10.0), (3.5, 4.0)), ((3.5, 4.0), (2.0, 10.0)), ((1.0, 7.0), (5.0, 7.0))]:
        a, b = optim.Profile(*a), optim.Profile(*b)
        integral = np.mean(density(a, tau) * density(b, tau)) * 10
        assert optim.inner(a, b) == pytest.approx(integral, rel=1e-4)


def stored(sigmas, steps):
    return [optim.Profile(optim.exponent_of(s), t) for t in steps for s in sigmas]


def test_a_stored_profile_is_had_exactly():
    profiles = stored((0.05, 0.1), (250, 500, 750, 1000))
    for i, profile in enumerate(profiles):
        found = optim.combine(profiles, profile)
        np.testing.assert_allclose(found.coefficients, np.eye(8)[i], atol=1e-9)
        assert found.residual < 1e-6


def test_another_profile_is_the_nearest_sum():
    """Its residual is the distance found by quadrature, and no other sum of weight 1 near it is much nearer."""
    profiles, wanted = (
        stored((0.05, 0.1), np.arange(1, 9) * 125),
        optim.Profile(optim.exponent_of(0.15), 1000),
    )
    found = optim.combine(profiles, wanted)
    assert found.coefficients.sum() == pytest.approx(1, abs=1e-12) and found.condition > 10
    tau = np.arange(100_000) / 100 + 0.005
    basis, target = np.array([density(p, tau) for p in profiles]), density(wanted, tau)

    def off(c):
        return np.linalg.norm(c @ basis - target) / np.linalg.norm(target)

    assert (
        off(found.coefficients) == pytest.approx(found.residual, rel=1e-2) and found.residual < 0.05
    )
    free, *_ = np.linalg.lstsq(basis.T, target, rcond=None)
    assert found.residual < 1.05 * off(free)
    with pytest.raises(ValueError, match="no profiles"):
        optim.combine([], wanted)


def pulled(now):
    value = jnp.sum(jnp.square(now.players["w"].params - now.batch["x"][0])) / 2
    return value, Aux(metrics={"loss": value})


def pushed(now):
    value = jnp.sum(now.players["v"].params * now.players["w"].params)
    return value, Aux(metrics={"loss": value})


def two_players(averages):
    """w goes to the data with momentum, v away from w."""
    return play(
        lambda key: {
            "w": {"params": jnp.ones(2), "seen": jnp.zeros(())},
            "v": {"params": jnp.ones(2)},
        },
        [Turn("w", [Term(pulled)], optax.sgd(0.1, 0.9)), Turn("v", [Term(pushed)], optax.sgd(0.1))],
        ema={"w": averages},
        dtype=jnp.result_type(float),
    )


def steps(algorithm, state, n):
    step, found = jax.jit(algorithm.step), []
    for t in range(int(state.step), int(state.step) + n):
        batch = {"x": jnp.array([[np.cos(t), 2.0 + np.sin(t)]])}
        state, metrics = step(state, batch, jax.random.key(0))
        found.append(metrics)
    return state, found


def test_the_player_goes_on_from_its_first_average(x64):
    """With its momentum, after steps 3 and 6; the other player, and the other average, stand apart."""
    decays = (optim.power(0.1), lambda t: 0.5 + 0 * t)
    algorithm = two_players(optim.Averages(decays, 3))
    state, metrics = steps(algorithm, algorithm.init(jax.random.key(0)), 7)
    order = optim.exponent_of(0.1) + 1
    w = first = second = np.ones(2)
    m, v = np.zeros(2), np.ones(2)
    for t in range(7):
        m = 0.9 * m + (w - [np.cos(t), 2.0 + np.sin(t)])
        w = w - 0.1 * m
        v = v - 0.1 * w
        d = (t / (t + 1)) ** order
        first, second = d * first + (1 - d) * w, (second + w) / 2
        w = first if t in (2, 5) else w
    np.testing.assert_allclose(state.players["w"].params, w, rtol=1e-10)
    np.testing.assert_allclose(state.players["v"].params, v, rtol=1e-10)
    np.testing.assert_allclose(state.ema["w"]["params"], first, rtol=1e-10)
    np.testing.assert_allclose(state.ema["w_2"]["params"], second, rtol=1e-10)
    np.testing.assert_allclose(jax.tree.leaves(state.players["w"].opt)[0], m, rtol=1e-10)
    assert [int(each["w/reloads"]) for each in metrics] == [0, 0, 1, 1, 1, 2, 2]


def test_a_single_average_is_kept_as_ever():
    decay = optim.half_life(100.0, 8)
    one, several = (two_players(a) for a in (decay, optim.Averages((decay, optim.power(0.1)))))
    a, _ = steps(one, one.init(jax.random.key(0)), 3)
    b, metrics = steps(several, several.init(jax.random.key(0)), 3)
    assert set(a.ema) == {"w"} and set(b.ema) == {"w", "w_2"} and "w/reloads" not in metrics[0]
    for x, y in zip(
        jax.tree.leaves((a.players, a.ema["w"])),
        jax.tree.leaves((b.players, b.ema["w"])),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("text,same", [("cutout@0.9,paired", True), ("cutout@0.9", False)])
def test_a_pair_has_one_draw(text, same):
    planned = augment.parse(text)
    assert planned and planned.paired == same
    setting = types.SimpleNamespace(augment=planned.over(10), adaptive=False)
    step = jnp.zeros((), jnp.int32)
    now = Now({}, {}, jax.random.key(3), step, step, {}, TOGETHER)
    x = jnp.ones((16, 8, 8, 1))
    see_real, see_fake = gan.views(setting, now)
    real, fake = see_real(x), see_fake(-x)
    assert (np.asarray(real) == 0).any() and bool(jnp.all(real == -fake)) == same


def test_paired_policies_are_read():
    adaptive = augment.parse("bgc@ada:0.5,paired")
    assert adaptive and adaptive.paired and adaptive.target == 0.5
    every = augment.parse("color,cutout,paired")
    assert every and every.paired and every.over(1).p == 1
    with pytest.raises(ValueError, match="'paired' is not an augmentation"):
        augment.parse("paired,color@0.5")


def test_step_sizes_by_width():
    sizes = optim.parse_step_sizes("width:768:linear:2e-4:0/1e-3")
    g, d = sizes.at_widths(96, 0)
    assert float(g(10)(5)) == pytest.approx(8e-4) and d(10) == 1e-3
    both = optim.parse_step_sizes("width:768:3e-4").at_widths(768, 1536)
    assert both.g(10) == pytest.approx(3e-4) and both.d(10) == pytest.approx(1.5e-4)
    with pytest.raises(ValueError, match="network of D has no width"):
        optim.parse_step_sizes("width:768:3e-4").at_widths(96, 0)
    for text in ("width:0:1e-3", "width:1e-3", "width:x:1e-3", "width:8:fast", "-1"):
        with pytest.raises(ValueError, match="must be"):
            optim.parse_step_sizes(text)


@pytest.mark.parametrize("net,player", [("cnn/lite:8", "G"), ("lite:8/r3gan:2", "D")])
def test_nets_without_a_width_are_refused(net, player):
    cfg = image_gan.Config(lr="width:768:2e-4", net=net)
    with pytest.raises(UserError, match=f"lr=width:768:2e-4: the network of {player} has no width"):
        image_gan.step_sizes(cfg)
    pair = image_gan.step_sizes(image_gan.Config(lr="width:768:2e-4", net="lite:24/lite:12"))
    assert pair.g(1) == pytest.approx(2e-4 * 32) and pair.d(1) == pytest.approx(2e-4 * 64)


FLAGS = (
    "--preset=smoke", "--net=mlp", "--notensorboard", "--sample_every=0", "--log_every=20", "--steps=40",
    "--checkpoint_every=4", "--keep=20",
)  # fmt: skip


def train(folder, *flags):
    argv = [*FLAGS, *flags, f"--workdir={folder}"]
    assert cli.run(image_gan.Config, image_gan.build, image_gan.PRESETS, argv) == 0
    return folder


@pytest.fixture(scope="module")
def powers(tmp_path_factory):
    return train(tmp_path_factory.mktemp("powers") / "run", "--ema=power:0.05+power:0.1")


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64)


@pytest.mark.medium
def test_checkpoints_give_the_average_that_another_run_kept(powers, tmp_path):
    """An average has no part in training, so that a run with another one goes the same way."""
    other = bpgan.load(train(tmp_path / "other", "--ema=power:0.08"))
    run = bpgan.load(powers, ema=0.08)
    kept, found = flat(other.generator.variables), flat(run.generator.variables)
    short = flat(bpgan.load(powers).generator.variables)
    assert run.average and run.average.combination.residual < 0.02
    assert np.linalg.norm(found - kept) < 0.03 * np.linalg.norm(short - kept)
    same = flat(bpgan.load(powers, ema=0.1).generator.variables)
    np.testing.assert_allclose(same, flat(bpgan.load(powers).state.ema["g_2"]), atol=1e-6)


@pytest.mark.medium
def test_lengths_that_checkpoints_do_not_give_are_refused(powers, tmp_path):
    def refused(text, *given, **options):
        with pytest.raises(UserError, match=text):
            bpgan.load(*given, **options)

    refused(r"ema=0.3: a relative width of 0.3 is not in", powers, ema=0.3)
    refused(r"ema=0.25: the 2 averages of 1 checkpoints miss it by", powers, 4, ema=0.25)
    plain = train(tmp_path / "plain", "--ema=100", "--steps=4")
    refused("ema=0.1: the run keeps no power averages", plain, ema=0.1)
    for experiment in (evaluate, sample):
        with pytest.raises(UserError, match="ema=0.3: a relative width"):
            experiment.Config(run=str(powers), ema="0.3")
    drawn = tmp_path / "drawn"
    flags = [f"--run={powers}", "--ema=0.08", "--seeds=0:2", "--nofiles", f"--workdir={drawn}"]
    assert cli.run(sample.Config, sample.run, sample.PRESETS, flags) == 0
    assert [p.name for p in drawn.glob("*.png")] == ["step00000040_grid0-2_ema0.08.png"]
