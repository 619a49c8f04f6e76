"""Losses against float64 closed forms (SCIENCE T1.1, T1.2, T1.6) and the properties every pair must have."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from checks.losses import (
    ANCHORS,
    REFERENCE,
    balances_at_zero,
    check_anchor,
    check_generally,
    check_values_and_gradients,
    is_invariant,
    players,
)
from references import make_losses

from bpgan.losses import (
    LOSSES,
    began,
    data_to_data_cross_entropy,
    mean_squared_error,
    of_logits,
    parse,
    parse_of_logits,
    softmax_cross_entropy,
)
from bpgan.penalties import PENALTIES
from bpgan.types import AdversarialLoss, UserError


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients(name):
    check_generally(LOSSES[name])
    if name not in REFERENCE and name != "began":  # which has a test of its own
        pytest.skip(f"{name} has no closed form: add it to REFERENCE in tests/checks/losses.py")
    if name in REFERENCE:
        check_values_and_gradients(name, LOSSES[name])


@pytest.mark.parametrize("name", ANCHORS)
def test_anchor(name):
    check_anchor(name, LOSSES[name])


@pytest.mark.medium
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_finite_and_dtype_kept(name, dtype):
    """Extreme logits give finite values and gradients, in the type that came in, without implicit promotion."""
    r, f = jnp.asarray([-1e4, 0, 1e4, 30], dtype), jnp.asarray([1e4, 0, -1e4, -30], dtype)
    if "least_squares" in name or name not in REFERENCE:  # the square of 1e4 is beyond float16
        r, f = r / 100, f / 100
    with jax.numpy_dtype_promotion("strict"):
        for fn in players(name):
            value, vjp = jax.vjp(fn, r, f)
            for x in (value, *vjp(jnp.ones_like(value))):
                assert x.dtype == dtype
                assert bool(jnp.all(jnp.isfinite(x)))


@pytest.mark.parametrize("name", LOSSES)
def test_generator_wants_higher_logits(name):
    """Where D rejects fakes, every G loss falls as the fake logit rises."""
    fake = jnp.linspace(-4, 0.9, 9)
    if name == "least_squares_pearson" or name not in REFERENCE:  # its target for G is 0
        fake -= 1
    gradient = jax.grad(lambda f: jnp.sum(LOSSES[name].g(jnp.zeros(9), f)))(fake)
    assert bool(jnp.all(gradient < 0))


@pytest.mark.parametrize("name", [*REFERENCE, "began"])
def test_only_relativistic_losses_ignore_a_common_shift(name):
    assert is_invariant(players(name)[0]) == ("relativistic" in name or name == "wasserstein")


@pytest.mark.medium
@pytest.mark.parametrize("name", LOSSES)
def test_critic_learns_that_high_means_real(name):
    """T1.6: after 200 updates of D on N(2, 1) against N(0, 1), real logits are higher than fake ones."""
    kr, kf = jax.random.split(jax.random.key(0))
    real, fake = 2 + jax.random.normal(kr, (256,)), jax.random.normal(kf, (256,))
    tx = optax.sgd(0.02)

    def update(carry, _):
        w, opt = carry
        gradient = jax.grad(
            lambda w: jnp.mean(players(name)[0](w[0] * real + w[1], w[0] * fake + w[1]))
        )(w)
        updates, opt = tx.update(gradient, opt)
        return (w + updates, opt), None

    w = jnp.array([-0.1, 0.0])
    (w, _), _ = jax.lax.scan(update, (w, tx.init(w)), None, length=200)
    assert jnp.mean(w[0] * real) > jnp.mean(w[0] * fake) + 0.1


def test_mean_squared_error_averages_features_not_examples():
    a, b = np.arange(6.0).reshape(2, 3), np.ones((2, 3))
    np.testing.assert_allclose(mean_squared_error(a, b), ((a - b) ** 2).mean(1), rtol=1e-6)
    np.testing.assert_allclose(mean_squared_error(a[:, 0], b[:, 0]), [1, 4], rtol=1e-6)


@pytest.mark.medium
def test_softmax_cross_entropy_against_scipy():
    logits = np.random.default_rng(0).normal(size=(64, 10)) * 5
    labels = np.random.default_rng(1).integers(0, 10, 64)
    expected = -scipy.special.log_softmax(logits, -1)[np.arange(64), labels]
    got = softmax_cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)
    huge = softmax_cross_entropy(jnp.asarray([[1e4, -1e4]]), jnp.asarray([1]))
    np.testing.assert_allclose(huge, [2e4], rtol=1e-6)
    assert jnp.isnan(softmax_cross_entropy(jnp.zeros((2, 3)), jnp.asarray([3, -1]))).all()
    gradient = jax.grad(lambda x: jnp.sum(softmax_cross_entropy(x, jnp.asarray(labels))))
    np.testing.assert_allclose(
        gradient(jnp.asarray(logits, jnp.float32)),
        scipy.special.softmax(logits, -1) - np.eye(10)[labels],
        atol=1e-6,
    )
    assert "scatter" not in str(jax.make_jaxpr(gradient)(jnp.zeros((64, 10))))


def test_began_holds_its_ratio():
    """k moves by rate (gamma L(x) - L(G)), stays in [0, 1], and weighs the fakes' error in D's loss."""
    loss = began(gamma=0.5, rate=0.1)
    real, fake = -jnp.array([2.0, 4.0]), -jnp.array([1.0, 0.0])  # errors 3 and 0.5 on average
    value, k = loss.d(real, fake, jnp.float32(0.2))
    np.testing.assert_allclose(value, [2 - 0.2, 4.0], rtol=1e-6)
    np.testing.assert_allclose(k, 0.2 + 0.1 * (0.5 * 3 - 0.5), rtol=1e-6)
    np.testing.assert_allclose(loss.g(real, fake), [1.0, 0.0], rtol=1e-6)
    assert loss.d(real, fake, jnp.float32(0.99))[1] == 1
    assert loss.d(real * 0, fake, jnp.float32(0.01))[1] == 0
    assert loss.memory == 0


@pytest.mark.medium
def test_d2d_against_its_equation(x64):
    """Kang et al. 2021, Eq. 7, as a double loop."""
    rng = np.random.default_rng(0)
    f, proxies = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (rng.normal(size=(12, 5)), rng.normal(size=(3, 5)))
    )
    labels = rng.integers(0, 3, 12)
    v, m, t = proxies[labels], 0.98, 0.5
    expected = []
    for i in range(12):
        positive = min(f[i] @ v[i] - m, 0) / t
        others = [max(f[i] @ f[j] - (1 - m), 0) / t for j in range(12) if labels[j] != labels[i]]
        expected.append(-np.log(np.exp(positive) / (np.exp(positive) + np.exp(others).sum())))
    got = data_to_data_cross_entropy((jnp.asarray(f), jnp.asarray(v)), jnp.asarray(labels))
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    alone = data_to_data_cross_entropy((jnp.asarray(v), jnp.asarray(v)), jnp.zeros(12, jnp.int32))
    np.testing.assert_allclose(alone, np.zeros(12), atol=1e-12)
    gradient = jax.grad(
        lambda f: data_to_data_cross_entropy((f, jnp.asarray(v)), jnp.asarray(labels)).sum()
    )
    assert bool(jnp.isfinite(gradient(jnp.asarray(f))).all())


# T1.7: what PyTorch and its autograd make of the same logits; tests/references/make_losses.py.

PYTORCH = json.loads((pathlib.Path(make_losses.__file__).parent / "losses.json").read_text())


@pytest.mark.parametrize("name", PYTORCH["losses"])
def test_pytorch_has_the_same_losses_and_gradients(x64, name):
    loss, player = name.split("/")
    value, *slopes = PYTORCH["losses"][name]
    logits = tuple(map(jnp.asarray, make_losses.logits()))

    def mean(pair):
        return jnp.mean(getattr(LOSSES[loss], player)(*pair))

    found, gradients = jax.value_and_grad(mean)(logits)
    np.testing.assert_allclose(found, value, rtol=1e-12)
    for gradient, slope in zip(gradients, slopes, strict=True):
        expected = 0 if slope is None else slope
        np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-15)


def test_pytorch_knows_every_loss_but_began():
    known = {name.split("/")[0] for name in PYTORCH["losses"]}
    assert known == set(REFERENCE)
    if missing := set(LOSSES) - known - {"began"}:
        pytest.skip(f"of {missing} nothing is recorded: add it to tests/references/make_losses.py")


@pytest.mark.parametrize("name", PYTORCH["penalties"])
def test_pytorch_has_the_same_penalties_and_second_derivatives(x64, name):
    value, change = PYTORCH["penalties"][name]
    real, fake, weights = map(jnp.asarray, make_losses.critic_inputs())

    def mean(w):
        critic = lambda x: jnp.sum(jnp.tanh(x @ w), 1)  # noqa: E731
        return jnp.mean(PENALTIES[name](critic, real, fake, jax.random.key(0)))

    found, gradient = jax.value_and_grad(mean)(weights)
    np.testing.assert_allclose(found, value, rtol=1e-12)
    np.testing.assert_allclose(gradient, change, rtol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_says_of_itself_where_it_balances(name):
    """The sign of a logit means something to a loss whose D is symmetric about 0."""
    assert LOSSES[name].balances_at_zero == balances_at_zero(LOSSES[name])


def test_losses_that_balance_at_zero():
    expected = {"minimax", "nonsaturating", "least_squares_pearson", "hinge"}
    assert {name for name in [*REFERENCE, "began"] if LOSSES[name].balances_at_zero} == expected


def test_losses_are_found_by_name_or_in_one_s_own_code(monkeypatch):
    assert parse("hinge") is LOSSES["hinge"]
    monkeypatch.setitem(LOSSES, "added", LOSSES["hinge"])
    assert parse("added") is LOSSES["hinge"] and "added" in of_logits()
    with pytest.raises(ValueError, match="must be one of minimax, .*added, or module:name"):
        parse("wgan")
    with pytest.raises(ValueError, match="must be an AdversarialLoss"):
        parse("bpgan.losses:hinge_d")
    with pytest.raises(ValueError, match="needs an autoencoder as D; must be one of minimax"):
        parse_of_logits("began")


one_sided = AdversarialLoss(d=lambda real, fake: real[:, None] - fake[None], g=lambda fake: -fake)


def test_mistakes_of_one_s_own_loss_are_told_by_its_name(tmp_path, monkeypatch):
    loss, logits = parse(f"{__name__}:one_sided"), (jnp.ones(4), jnp.ones(4))
    with pytest.raises(
        UserError, match=rf"^{__name__}:one_sided: returned \[4, 4\], must return a"
    ):
        loss.d(*logits)
    with pytest.raises(UserError, match=rf"^{__name__}:one_sided: failed \(TypeError: .* 2 were"):
        loss.g(*logits)
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="a loss cannot be imported .SystemExit: 3."):
        parse("leaves:loss")
