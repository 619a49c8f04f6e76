"""bpgan/privacy/canaries.py: what is planted in a training, and that an audit of tiny private runs finds it (T5.7)."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from bpgan import data
from bpgan.algorithms import turns
from bpgan.algorithms.turns import Aux, Term, Turn
from bpgan.data import poisson
from bpgan.privacy import accounting, audit, canaries, mechanism
from bpgan.types import UserError, stream


@pytest.mark.parametrize("text, found", [("0", (0, 0)), ("200", (200, 0)), ("200:7", (200, 7))])
def test_the_flag(text, found):
    assert canaries.Canaries.parse(text) == found
    assert str(canaries.Canaries.parse(text)) == text


def test_no_canaries_are_an_empty_flag():
    """As of runs of before there were any, which go on."""
    assert canaries.Canaries.parse("") == canaries.Canaries(0)


@pytest.mark.parametrize("text", ["-1", "ten", "10:", ":3", "1.5", "9" * 12])
def test_a_mistaken_flag(text):
    with pytest.raises(ValueError, match="must be N, or N:SEED"):
        canaries.Canaries.parse(text)


def test_coins_are_fair_and_independent_of_what_is_drawn():
    coins = np.stack([canaries.included(seed, 400) for seed in range(100)])
    assert scipy.stats.binomtest(int(coins.sum()), coins.size).pvalue > 1e-3
    assert scipy.stats.binomtest(int((coins[:, 1:] == coins[:, :-1]).sum()), 39_900).pvalue > 1e-3
    assert (canaries.included(3, 50) == canaries.included(3, 400)[:50]).all()
    x, _ = canaries.images(0, 400, (28, 28, 1))
    own = x[:, ::4, ::4].reshape(400, -1).mean(1) / 255
    assert abs(np.corrcoef(own, coins[0])[0, 1]) < 0.2


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 40, 3), (5, 5, 1)])
def test_boards_are_all_different(shape):
    x, y = canaries.images(1, 300, shape, classes=10)
    assert x.shape == (300, *shape) and x.dtype == np.uint8 and set(np.unique(x)) == {0, 255}
    assert len(np.unique(x.reshape(300, -1), axis=0)) == 300
    assert y.dtype == np.int32 and set(y) == set(range(10))


def base(n=60, classes=3):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (n, 14, 14, 1), np.uint8), np.arange(n) % classes
    return data.of_arrays("own", "train", x, y, classes), x, y


def test_a_dataset_with_canaries():
    plain, x, y = base()
    found = canaries.Canaries(20, 5).plant(plain)
    inside = canaries.included(5, 20)
    boards, labels = canaries.images(5, 20, (14, 14, 1), 3)
    assert found.length == 60 + inside.sum() == len(found.arrays()[0])
    for read in (found.read, pickle.loads(pickle.dumps(found.read))):
        at = np.array([61, 3, 60, 59, 61])
        images, classes = read(at)
        assert (images == np.concatenate([x, boards[inside]])[at]).all()
        assert (classes == np.concatenate([y, labels[inside]])[at]).all()
    assert found.counts == tuple(np.bincount(np.concatenate([y, labels[inside]])).tolist())
    others = [canaries.Canaries(20, 6).plant(plain).sha256, plain.sha256]
    assert found.sha256 not in others and len(found.sha256) == 64
    with pytest.raises(IndexError):
        found.read(np.array([found.length]))


def test_no_canaries_change_nothing():
    plain, _, _ = base()
    assert canaries.Canaries(0).plant(plain) is plain
    with data.without_images(plain.facts):
        absent = data.load("own")
    assert canaries.Canaries(20).plant(absent) is absent


def test_more_canaries_than_examples():
    with pytest.raises(UserError, match="canaries=61:2: must be at most 60 examples"):
        canaries.Canaries(61, 2).plant(base()[0])


# Gradients ----------------------------------------------------------------------------------------------------------

N, DIM, WIDTH, RATE, STEPS, M = 64, 24, 48, 0.25, 60, 300
"""Records, their size, hidden units; the rate and the number of updates; canaries."""


def objective(now):
    """Cross-entropy of a perceptron, of the mean over rows."""
    w = now.players["net"].params
    hidden = jnp.tanh(now.batch["x"] @ w["in"])
    value = jnp.mean(optax.sigmoid_binary_cross_entropy(hidden @ w["out"], now.batch["y"]))
    return value, Aux(metrics={"loss": value})


def released(sigma, included, seed):
    """What the state of a private run of a few steps remembers of its canaries."""
    key = jax.random.key(seed)
    x = jax.random.normal(stream(key, "x"), (N, DIM))
    batch = {"x": x, "y": (x[:, 0] > 0).astype(jnp.float32)}
    secret = stream(key, "secret")
    gradient = canaries.planted(
        mechanism.gaussian(1.0, sigma, RATE * N, secret, form="vmap"),
        included,
        stream(key, "canaries"),
        clip=1,
        rate=RATE,
        batch=RATE * N,
    )

    def init(key):
        a, b = jax.random.split(key)
        w = {"in": jax.random.normal(a, (DIM, WIDTH)) / 5, "out": jax.random.normal(b, (WIDTH,))}
        return {"net": {"params": w}}

    turn = Turn("net", [Term(objective)], optax.sgd(0.1), gradient=gradient)
    system = turns.play(init, [turn], memory=canaries.memory(M))
    state = system.init(stream(key, "init"))

    def step(state, _):
        mask = poisson.included(secret, state.step, N, RATE)
        return system.step(state, {**batch, "mask": mask}, key)[0], None

    return jax.lax.scan(step, state, None, STEPS)[0].memory[canaries.MEMORY]


@pytest.fixture(scope="module")
def coins():
    return np.stack([canaries.included(seed, M) for seed in range(20)])


@pytest.fixture(scope="module")
def scores(coins):
    """Of 20 runs with noise and 20 without, float ``[2, 20, m]``."""
    runs = [jax.jit(jax.vmap(functools.partial(released, sigma))) for sigma in (1.0, 0.0)]
    return np.stack([run(coins, jnp.arange(20)) for run in runs])


@pytest.mark.medium
def test_a_canary_that_is_in_is_found_as_often_as_it_is_in_a_batch(scores, coins):
    """What is remembered has q T more of it, and noise of std sqrt(T) (sigma and the rest of the gradient) apart."""
    inside, outside = (scores[0][which].mean() for which in (coins, ~coins))
    assert abs(outside) < 0.5 and abs(inside - RATE * STEPS) < 0.5
    assert abs(scores[0][~coins].std() / STEPS**0.5 - 1) < 0.1


@pytest.mark.medium
def test_audit_sandwich(scores, coins):
    """T5.7: a lower bound of 20 private runs is at most epsilon in 18 or more."""
    pytest.importorskip("dp_accounting")
    delta = 1e-5
    done = accounting.Mechanism("poisson", RATE, 1.0, 1.0, delta)
    claimed = accounting.epsilon(done, STEPS).epsilon
    found = [audit.lower_bound(s, c, delta).epsilon for s, c in zip(scores[0], coins, strict=True)]
    assert sum(bound <= claimed for bound in found) >= 18, (found, claimed)
    assert np.median(found) > 0.3  # it is no empty bound, either


@pytest.mark.medium
def test_without_noise_the_same_canaries_refute_it(scores, coins):
    """T5.7: the audit sees that sigma is 0."""
    found = [audit.lower_bound(s, c, 1e-5).epsilon for s, c in zip(scores[1], coins, strict=True)]
    assert min(found) > 2.5


def test_what_is_added_is_orthonormal_and_new_in_every_update():
    """Of a gradient of zeros: the update of each is that of its canaries, and is remembered as they are."""

    def nothing(objective, now, player):
        params = now.players[player].params
        return (jnp.zeros(()), Aux()), jax.tree.map(jnp.zeros_like, params)

    params = {"a": jnp.zeros((3, 7)), "b": jnp.zeros(20)}
    player = turns.Player(params, {}, ())
    included = np.array([True, False, True, True])
    wrapped = canaries.planted(nothing, included, jax.random.key(0), clip=2.0, rate=1.0, batch=8.0)

    def at(index, included=included):
        now = turns.Now({"d": player}, {}, jax.random.key(1), 0, index, canaries.memory(4), turns.TOGETHER)  # fmt: skip
        (_, aux), g = wrapped(lambda now: None, now, "d")
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(g)]), aux

    first, aux = at(0)
    second, _ = at(1)
    np.testing.assert_allclose(np.linalg.norm(first), 3**0.5 * 2 / 8, rtol=1e-6)
    np.testing.assert_allclose(aux.memory[canaries.MEMORY], included, atol=1e-6)
    assert (first != second).any() and (at(0)[0] == first).all()
    assert first[40] == 0  # 41 parameters are dealt out to 4


def test_more_canaries_than_parameters():
    wrapped = canaries.planted(
        turns.autodiff, np.ones(9, bool), jax.random.key(0), clip=1, rate=1, batch=1
    )
    term = Term(lambda now: (jnp.sum(now.players["w"].params), Aux()))
    turn = Turn("w", [term], optax.sgd(1.0), gradient=wrapped)
    system = turns.play(lambda key: {"w": {"params": jnp.zeros(3)}}, [turn], memory=canaries.memory(9))  # fmt: skip
    with pytest.raises(UserError, match="canaries=9: must be at most 3 parameters of w"):
        system.step(system.init(None), {"x": jnp.ones(4)}, jax.random.key(0))
