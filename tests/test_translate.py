"""Translation between domains, of linear networks against NumPy: what the players minimize, and how they move."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpgan import cli
from bpgan.algorithms import translate as t
from bpgan.algorithms.turns import Axis, Now
from bpgan.losses import LOSSES
from bpgan.nets import linen_net
from bpgan.nets.patchgan import PatchGAN
from bpgan.nets.translator import PatchHeads, ResNetTranslator
from bpgan.nets.unet import UNet
from bpgan.penalties import G_PENALTIES, PENALTIES, weighted
from bpgan.runtime.program import compile_program
from bpgan.types import Net, Source, stream

SHAPE = (2, 3, 2)
RNG = np.random.default_rng(0)
A, B = (RNG.uniform(-1, 1, (8, *SHAPE)) for _ in range(2))
W = {"ab": [[0.9, -0.4], [0.3, 0.7]], "ba": [[0.5, 0.6], [-0.2, 0.8]]}
V = {"a": [0.7, -1.1], "b": [-0.6, 0.9], "pair": [0.4, -0.3, -0.6, 0.9]}
HEADS = [[[0.3, 0.8, -0.5], [1.2, -0.1, 0.4]], [[-0.7, 0.2, 0.6], [0.5, 0.9, -1.0]]]
KEY = jax.random.key(1)


def mixer(w, noise=0.0):
    """``x W`` at each pixel, plus ``noise`` times a number between 0 and 1 that the seed of the row says."""

    def apply(variables, x, z, *, train, method=None):
        y = jnp.einsum("bhwi,io->bhwo", x, variables["params"]["w"])
        if method == "features":
            return (x, y), {}
        e = noise * z[:, 0].astype(y.dtype) / 2**32
        return y + e.reshape(-1, 1, 1, 1), {}

    return Net(lambda key, x, z: {"params": {"w": jnp.array(w)}}, apply)


def critic(v):
    """``x v`` at each pixel, a map of logits."""

    def apply(variables, x, *, train):
        return jnp.einsum("bhwi,i->bhw", x, variables["params"]["v"]), {}

    return Net(lambda key, x: {"params": {"v": jnp.array(v)}}, apply)


def directions():
    """Heads: ``x U``, of unit norm."""

    def apply(variables, layers, *, train):
        found = []
        for x, u in zip(layers, variables["params"]["u"], strict=True):
            y = jnp.einsum("bpi,io->bpo", x, u)
            found.append(y / jnp.linalg.norm(y, axis=-1, keepdims=True))
        return tuple(found), {}

    return Net(lambda key, layers: {"params": {"u": [jnp.array(u) for u in HEADS]}}, apply)


def domains(a=SHAPE, b=SHAPE, classes=0, dtype=jnp.float64):
    def inputs(key, n, labels):
        x = jax.random.uniform(key, (n, *a), dtype)
        return x if labels is None else x + labels.astype(dtype).reshape(-1, 1, 1, 1)

    return t.Domains(a, b, inputs, classes, dtype)


def sgd(g=0.1, d=0.1):
    return t.Optimizers(optax.sgd(g), optax.sgd(d))


def system(name, loss="least_squares", optimizers=None, noise=0.0, **options):
    """One of the three, of the networks above."""
    loss, optimizers = LOSSES[loss] if loss else None, optimizers or sgd()
    options = {"domains": domains(), **options}
    if name == "pix2pix":
        return t.pix2pix(
            t.Pair(mixer(W["ab"], noise), critic(V["pair"])), loss, optimizers, **options
        )
    if name == "cut":
        networks = t.Contrast(mixer(W["ab"], noise), critic(V["b"]), directions(), 6, 0.3)
        return t.cut(networks, loss, optimizers, **options)
    both = mixer(W["ab"], noise), mixer(W["ba"], noise)
    networks = t.Cycle(*both, critic(V["a"]), critic(V["b"]))
    return t.cyclegan(networks, loss, optimizers, **options)


def batch(rows=8):
    return {"a": jnp.asarray(A[:rows]), "b": jnp.asarray(B[:rows]), "y": jnp.zeros(rows, int)}


def moved(algorithm, steps=1, state=None, rows=None):
    step = jax.jit(algorithm.step)
    state, found = jax.jit(algorithm.init)(jax.random.key(0)) if state is None else state, []
    for _ in range(steps):
        state, metrics = step(state, batch() if rows is None else rows, KEY)
        found.append({name: float(x) for name, x in metrics.items()})
    return state, found


def slopes(f, p, h=1e-6):
    """The gradient of ``f(p)``, p a dict of arrays, by central differences."""
    found = {}
    for name, x in p.items():
        found[name] = np.zeros_like(x)
        for i in np.ndindex(x.shape):
            e = np.zeros_like(x)
            e[i] = h
            found[name][i] = (f({**p, name: x + e}) - f({**p, name: x - e})) / (2 * h)
    return found


def arrays(table, *names):
    return {name: np.array(table[name]) for name in names}


def softplus(x):
    return np.log1p(np.exp(x))


# What the players minimize ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["nonsaturating", "relativistic"])
def test_pix2pix_by_hand(x64, loss):
    """D sees a beside b and beside G(a), half of its loss counts; then G moves against the new D."""
    relativistic = loss == "relativistic"

    def logits(p, v, image):
        return np.concatenate([A, image], -1) @ v

    def of_d(p):
        real, fake = logits(p, p["v"], B), logits(p, p["v"], A @ np.array(W["ab"]))
        each = softplus(fake - real) if relativistic else softplus(-real) + softplus(fake)
        return each.mean()

    def of_g(p, v):
        image = A @ p["ab"]
        real, fake = logits(p, v, B), logits(p, v, image)
        adversarial = softplus(real - fake if relativistic else -fake).mean()
        return adversarial, np.abs(image - B).mean()

    def total(p, v):
        adversarial, pair = of_g(p, v)
        return 2.0 * adversarial + 3.0 * pair

    v = {"v": np.array(V["pair"])}
    new_v = v["v"] - 0.1 * 0.5 * slopes(of_d, v)["v"]
    p = arrays(W, "ab")
    new_p = p["ab"] - 0.1 * slopes(lambda p: total(p, new_v), p)["ab"]
    weights = t.Weights(3.0, adversarial=2.0)
    state, (metrics,) = moved(system("pix2pix", loss, weights=weights))
    np.testing.assert_allclose(state.players["d"].params["b"]["v"], new_v, atol=1e-8)
    np.testing.assert_allclose(state.players["g"].params["ab"]["w"], new_p, atol=1e-8)
    adversarial, pair = of_g(p, new_v)
    expected = {
        "d/loss": of_d(v),
        "d/real": logits(p, v["v"], B).mean(),
        "d/fake": logits(p, v["v"], A @ p["ab"]).mean(),
        "g/loss": adversarial,
        "g/pair": pair,
    }
    assert set(metrics) == {*expected, "d/grad_norm", "g/grad_norm"}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-9, err_msg=name)


def test_cyclegan_by_hand(x64):
    """Both ways, both discriminators, the cycle and the identity on their sides, with weights all different."""

    def of_d(p, g):
        real = {"a": A @ p["a"], "b": B @ p["b"]}
        fake = {"a": B @ g["ba"] @ p["a"], "b": A @ g["ab"] @ p["b"]}
        loss = sum((((real[k] - 1) ** 2 + fake[k] ** 2) / 2).mean() for k in "ab")
        return loss, real, fake

    def of_g(p, v):
        fake_b, fake_a = A @ p["ab"], B @ p["ba"]
        adversarial = (((fake_a @ v["a"]) - 1) ** 2 / 2).mean()
        adversarial += (((fake_b @ v["b"]) - 1) ** 2 / 2).mean()
        cycle = np.abs(fake_b @ p["ba"] - A).mean() + np.abs(fake_a @ p["ab"] - B).mean()
        identity = np.abs(B @ p["ab"] - B).mean() + np.abs(A @ p["ba"] - A).mean()
        return adversarial, cycle, identity

    g, d = arrays(W, "ab", "ba"), arrays(V, "a", "b")
    loss, real, fake = of_d(d, g)
    slope = slopes(lambda d: 0.7 * of_d(d, g)[0], d)
    new_d = {k: d[k] - 0.1 * slope[k] for k in d}

    def total(p):
        return np.dot([1.5, 2.0, 2.0 * 0.3], of_g(p, new_d))

    slope = slopes(total, g)
    state, (metrics,) = moved(system("cyclegan", weights=t.Weights(2.0, 0.3, 1.5, 0.7), history=0))
    for name in d:
        np.testing.assert_allclose(state.players["d"].params[name]["v"], new_d[name], atol=1e-8)
    for name in g:
        np.testing.assert_allclose(
            state.players["g"].params[name]["w"], g[name] - 0.1 * slope[name], atol=1e-8
        )
    names = ("g/loss", "g/cycle", "g/identity")
    expected = dict(zip(names, of_g(g, new_d), strict=True)) | {"d/loss": loss}
    expected |= {"d/real": (real["a"].mean() + real["b"].mean()) / 2}
    expected |= {"d/fake": (fake["a"].mean() + fake["b"].mean()) / 2}
    assert set(metrics) == {*expected, "d/grad_norm", "g/grad_norm"}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-9, err_msg=name)
    assert state.memory == {}


def contrast_by_loops(queries, keys, temperature):
    """Place by place and image by image; the classes are the places of the same image."""
    values = []
    for q, k in zip(queries, keys, strict=True):
        for i in range(len(q)):
            s = np.array([q[i] @ k[j] for j in range(len(k))]) / temperature
            values.append(-np.log(np.exp(s[i]) / np.exp(s).sum()))
    return np.mean(values)


def test_the_contrast_of_patches_is_that_of_loops(x64):
    q, k = RNG.normal(size=(2, 3, 5, 4)) / 2
    found = t.patch_nce(jnp.asarray(q), jnp.asarray(k), 0.2)
    assert found.shape == (3,)
    np.testing.assert_allclose(np.mean(found), contrast_by_loops(q, k, 0.2), rtol=1e-9)
    slope = jax.grad(lambda k: jnp.sum(t.patch_nce(jnp.asarray(q), k)))(jnp.asarray(k))
    np.testing.assert_array_equal(slope, 0)  # the input of G is no moving target


def test_cut_by_hand(x64):
    """The adversarial loss and the contrast of two layers, G's features of a fake against those of its input."""
    g, d = {"ab": np.array(W["ab"])}, {"b": np.array(V["b"])}
    heads = {f"u{i}": np.array(u) for i, u in enumerate(HEADS)}

    def vectors(x, p):
        layers = [x.reshape(8, 6, 2), (x @ p["ab"]).reshape(8, 6, 2)]
        found = [layer @ p[f"u{i}"] for i, layer in enumerate(layers)]
        return [y / np.linalg.norm(y, axis=-1, keepdims=True) for y in found]

    def contrast(x, p, fixed):
        both = zip(vectors(x @ p["ab"], p), vectors(x, fixed), strict=True)
        return np.mean([contrast_by_loops(q, k, 0.3) for q, k in both])

    def of_d(p):
        return (((B @ p["b"]) - 1) ** 2 / 2 + (A @ g["ab"] @ p["b"]) ** 2 / 2).mean()

    new_d = {"b": d["b"] - 0.1 * 0.5 * slopes(of_d, d)["b"]}
    start = {**g, **heads}

    def of_g(p):
        adversarial = ((A @ p["ab"] @ new_d["b"] - 1) ** 2 / 2).mean()
        return adversarial, contrast(A, p, start), contrast(B, p, start)

    slope = slopes(lambda p: np.dot([1.5, 2.0, 2.0 * 0.3], of_g(p)), start)
    state, (metrics,) = moved(system("cut", weights=t.Weights(2.0, 0.3, 1.5)))
    np.testing.assert_allclose(state.players["d"].params["b"]["v"], new_d["b"], atol=1e-8)
    params = state.players["g"].params
    np.testing.assert_allclose(params["ab"]["w"], g["ab"] - 0.1 * slope["ab"], atol=1e-7)
    for i, u in enumerate(params["heads"]["u"]):
        np.testing.assert_allclose(u, heads[f"u{i}"] - 0.1 * slope[f"u{i}"], atol=1e-7)
    for name, value in zip(("g/loss", "g/nce", "g/identity"), of_g(start), strict=True):
        np.testing.assert_allclose(metrics[name], value, rtol=1e-9, err_msg=name)


def now_of(algorithm, step=0, **more):
    players = algorithm.init(jax.random.key(0)).players
    rows = {**batch(), **t.seeds(None, Now({}, batch(), KEY, 0, 0, {}, Axis())), **more}
    return Now(players, rows, KEY, jnp.int32(step), jnp.int32(step), {}, Axis())


def test_objectives_are_asked_without_training_and_weights_follow_the_step(x64):
    """``content = 3 + step``: by the difference of two steps the term alone."""
    weights = t.Weights(lambda step: 3.0 + step, 0.0, lambda step: 2.0 * step)
    networks = {"ab": mixer(W["ab"])}
    loss = LOSSES["least_squares"]
    setting = t.Setting(networks, {"b": critic(V["pair"])}, loss, domains(), weights, paired=True)
    algorithm = system("pix2pix", weights=weights)
    values = [t.pix2pix_objective(setting, t.l1, now_of(algorithm, step)) for step in (0, 1)]
    pair = np.abs(A @ np.array(W["ab"]) - B).mean()
    np.testing.assert_allclose(values[0][0], 3 * pair, rtol=1e-9)
    adversarial = float(values[1][1].metrics["loss"])
    np.testing.assert_allclose(values[1][0], 4 * pair + 2 * adversarial, rtol=1e-9)


def test_without_a_loss_there_is_no_discriminator(x64):
    """The control: G alone, by the distance alone; here that of squares."""
    state, (metrics,) = moved(system("pix2pix", None, distance=t.l2, weights=t.Weights(4.0)))
    w = np.array(W["ab"])
    slope = 4.0 * 2 * np.einsum("bhwi,bhwo->io", A, A @ w - B) / A.size
    np.testing.assert_allclose(state.players["g"].params["ab"]["w"], w - 0.1 * slope, rtol=1e-9)
    assert set(state.players) == {"g"} and set(metrics) == {"pair", "grad_norm"}
    np.testing.assert_allclose(metrics["pair"], np.mean((A @ w - B) ** 2), rtol=1e-9)


def test_distances():
    x, y = jnp.asarray(A), jnp.asarray(B)
    np.testing.assert_allclose(t.l1(x, y), np.abs(A - B).mean((1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(t.l2(x, y), ((A - B) ** 2).mean((1, 2, 3)), rtol=1e-6)
    between = t.of_features(lambda x: {"one": 2 * x, "mean": x.mean((1, 2))}, t.l2)
    expected = 4 * ((A - B) ** 2).mean((1, 2, 3)) + ((A - B).mean((1, 2)) ** 2).mean(1)
    np.testing.assert_allclose(between(x, y), expected, rtol=1e-5)


@pytest.mark.medium
def test_the_identity_needs_as_many_channels(x64):
    """Where a has one and b two, the term is left out, and the sizes may differ."""
    a, b = (2, 3, 1), (4, 6, 2)
    rows = {"a": jnp.asarray(A[..., :1]), "b": jnp.asarray(RNG.normal(size=(8, *b)))}

    def sized(shape, w):
        net = mixer(w)

        def apply(variables, x, z, **given):
            return net.apply(
                variables, jax.image.resize(x, (*x.shape[:1], *shape[:2], x.shape[3]), "nearest"), z, **given
            )  # fmt: skip

        return Net(net.init, apply)

    nets = sized(b, [[0.5, 0.2]]), sized(a, [[0.4], [0.1]]), critic([0.3]), critic([0.2, 0.5])
    loss = LOSSES["least_squares"]
    algorithm = t.cyclegan(t.Cycle(*nets), loss, sgd(), domains=domains(a, b), history=3)
    state, (metrics,) = moved(algorithm, rows=rows)
    assert "g/cycle" in metrics and "g/identity" not in metrics
    assert state.memory["history_a"]["images"].shape == (3, *a)
    # D of a pair sees the small image enlarged.
    networks = t.Pair(nets[0], critic([0.4, -0.3, 0.2]))
    algorithm = t.pix2pix(networks, loss, sgd(), domains=domains(a, b))
    _, (metrics,) = moved(algorithm, rows=rows)
    large = np.asarray(jax.image.resize(rows["a"], (8, 4, 6, 1), "bilinear"))
    expected = np.concatenate([large, rows["b"]], -1) @ np.array([0.4, -0.3, 0.2])
    np.testing.assert_allclose(metrics["d/real"], expected.mean(), rtol=1e-9)


# Penalties and memories ---------------------------------------------------------------------------------------------


@pytest.mark.medium
def test_penalties_are_of_the_image_alone(x64):
    """R1 of a mean of linear logits is |v|^2 / (h w) / 2, of the numbers v that b meets; lazily every second update."""
    penalties = [weighted(5.0, PENALTIES["r1"]), weighted(3.0, PENALTIES["r1"], 2)]
    algorithm = system("pix2pix", optimizers=sgd(0, 0), penalties=penalties)
    _, found = moved(algorithm, 2)
    r1 = np.sum(np.square(V["pair"][2:])) / 6 / 2
    np.testing.assert_allclose([m["d/penalty"] for m in found], [(5 + 6) * r1, 5 * r1], rtol=1e-9)
    algorithm = system("cyclegan", optimizers=sgd(0, 0), penalties=penalties[:1])
    _, found = moved(algorithm)
    both = np.sum(np.square(V["a"])) + np.sum(np.square(V["b"]))
    np.testing.assert_allclose(found[0]["d/penalty"], 5 * both / 6 / 2, rtol=1e-9)


def test_losses_and_penalties_remember_each_domain(x64):
    """BEGAN's k of each, by hand, and LeCam's averages of the logits."""
    penalties = [weighted(1, PENALTIES["lecam"])]
    algorithm = system("cyclegan", "began", sgd(0, 0), penalties=penalties, history=0)
    state, _ = moved(algorithm)
    assert set(state.memory) == {"loss_a", "loss_b", "penalty0_a", "penalty0_b"}
    fakes = {"a": B @ np.array(W["ba"]), "b": A @ np.array(W["ab"])}
    for name, real in (("a", A), ("b", B)):
        v = np.array(V[name])
        real, fake = (real @ v).mean(), (fakes[name] @ v).mean()
        k = np.clip(1e-3 * (fake - 0.5 * real), 0, 1)
        np.testing.assert_allclose(state.memory[f"loss_{name}"], k, rtol=1e-9, atol=1e-15)
        averages = state.memory[f"penalty0_{name}"]
        np.testing.assert_allclose(averages["real"], 0.01 * real, rtol=1e-9)
        np.testing.assert_allclose(averages["fake"], 0.01 * fake, rtol=1e-9)


@pytest.mark.parametrize(
    "name,options,reason",
    [
        ("pix2pix", dict(weights=t.Weights(1.0, 0.5)), "pix2pix has no identity"),
        ("cyclegan", dict(history=-1), "history=-1: must not be negative"),
        ("cut", dict(domains=domains((2, 3, 1))), "1 and 2 channels must be the same"),
        ("cut", dict(penalties=[weighted(1, G_PENALTIES["path_length"], player="g")]), "of D"),
        ("pix2pix", dict(accumulate=0), "accumulate=0"),
    ],
)
def test_impossible_systems_are_refused(name, options, reason):
    with pytest.raises(ValueError, match=reason):
        system(name, **options)


def test_a_penalty_of_latents_is_refused_when_it_is_traced(x64):
    algorithm = system("pix2pix", penalties=[weighted(1, PENALTIES["zcr"])])
    state = algorithm.init(jax.random.key(0))
    with pytest.raises(ValueError, match="has images in their place"):
        jax.eval_shape(algorithm.step, state, batch(), KEY)


# The history --------------------------------------------------------------------------------------------------------


class Pool:
    """The history as a Python program, with the draws of ``swap``."""

    def __init__(self, size):
        self.size, self.images = size, []

    def query(self, images, key):
        coins, places = jax.random.split(jax.random.clone(key))
        coins = np.asarray(jax.random.bernoulli(coins, 0.5, (len(images),)))
        places = np.asarray(jax.random.randint(places, (len(images),), 0, self.size))
        shown = []
        for image, coin, place in zip(images, coins, places, strict=True):
            if len(self.images) < self.size:
                self.images.append(image)
                shown.append(image)
            elif coin:
                shown.append(self.images[place])
                self.images[place] = image
            else:
                shown.append(image)
        return np.array(shown)


def test_the_history_is_that_of_a_plain_program():
    """Through its filling in the middle of a batch, and on; half of the fakes are swapped from then on."""
    pool, plain, swapped = {"images": jnp.zeros((10, 1, 1, 1)), "count": jnp.zeros(())}, Pool(10), 0
    for i in range(8):
        fresh = jnp.arange(7.0).reshape(7, 1, 1, 1) + 7 * i + 1
        key = jax.random.fold_in(KEY, i)
        shown, pool = jax.jit(t.swap)(pool, fresh, key)
        np.testing.assert_array_equal(shown, plain.query(np.asarray(fresh), key))
        count = int(pool["count"])
        assert count == min(10, 7 * (i + 1))
        np.testing.assert_array_equal(pool["images"][:count], np.array(plain.images))
        swapped += int((shown != fresh).sum()) if i > 1 else 0
    assert 12 <= swapped <= 30  # of 42


def test_the_history_is_a_part_of_the_state_and_what_d_sees(x64):
    """Step by step: the fakes of the present G go in, what comes out is in D's loss, of both domains."""
    algorithm = system("cyclegan", history=10, noise=0.5)
    state, plain, differs = algorithm.init(jax.random.key(0)), {k: Pool(10) for k in "ab"}, 0
    step = jax.jit(algorithm.step)
    for i in range(5):
        own = jax.random.fold_in(KEY, i)
        z = jax.random.bits(stream(own, "z"), (8, 2), jnp.uint32)
        g, d, means = state.players["g"].params, state.players["d"].params, []
        state, metrics = step(state, batch(), KEY)
        for way, x in (("ab", A), ("ba", B)):
            seeds = [jax.random.key_data(stream(jax.random.wrap_key_data(row), way)) for row in z]
            noise = np.array([int(seed[0]) for seed in seeds]) / 2**32 * 0.5
            fresh = x @ np.asarray(g[way]["w"]) + noise.reshape(-1, 1, 1, 1)
            name = f"history_{way[1]}"
            shown = plain[way[1]].query(fresh, stream(own, name))
            differs += np.any(shown != fresh)
            means.append((shown @ np.asarray(d[way[1]]["v"])).mean())
            kept = state.memory[name]
            np.testing.assert_allclose(
                kept["images"][: int(kept["count"])], np.array(plain[way[1]].images), rtol=1e-12
            )
        np.testing.assert_allclose(metrics["d/fake"], np.mean(means), rtol=1e-12)
    assert differs == 8  # from the second step on


# Streams, devices, resume -------------------------------------------------------------------------------------------


@pytest.mark.medium
@pytest.mark.parametrize(
    "name", [pytest.param("pix2pix", marks=pytest.mark.slow), "cyclegan", "cut"]
)
def test_devices_and_micro_batches_change_nothing(x64, name):
    """Mapped over four devices, and in two micro-batches, the steps are those of the whole batch, noise included."""
    options: dict = {"history": 5} if name == "cyclegan" else {}
    options |= dict(noise=0.5, loss="relativistic_average_least_squares", ema_decay=0.9)
    one, parts = system(name, **options), system(name, **options, axis_name="devices")
    mapped = jax.jit(jax.vmap(parts.step, (None, 0, None), axis_name="devices"))
    rows = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch())
    whole = other = one.init(jax.random.key(0))
    for _ in range(3):
        whole, (metrics,) = moved(one, 1, whole)
        found = mapped(other, rows, KEY)
        for x in jax.tree.leaves(found):
            np.testing.assert_allclose(x, np.broadcast_to(x[:1], x.shape), rtol=0, atol=1e-13)
        other, same = jax.tree.map(lambda x: x[0], found)
        for x, y in zip(*map(jax.tree.leaves, (whole, other)), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-12)
        for key, value in metrics.items():
            np.testing.assert_allclose(same[key], value, rtol=0, atol=1e-10, err_msg=key)
    options |= dict(loss="nonsaturating")
    whole, micro = (moved(system(name, **options, accumulate=k), 3)[0] for k in (1, 2))
    for x, y in zip(*map(jax.tree.leaves, (whole, micro)), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12)


@pytest.mark.medium
def test_places_are_distinct_and_those_of_the_row(x64):
    x = jnp.arange(2.0 * 30).reshape(2, 5, 6, 1) % 30
    z = t.noise(KEY, 2)
    places = jax.jit(t.at_places, static_argnums=2)
    (some,), (all_,) = places([x], z, 12), places([x], z, 99)
    assert some.shape == (2, 12, 1) and all_.shape == (2, 30, 1)
    for row in np.asarray(some)[..., 0]:
        assert len(set(row)) == 12
    np.testing.assert_array_equal(
        np.sort(np.asarray(all_)[..., 0], 1), np.tile(np.arange(30), (2, 1))
    )
    assert np.any(some[0] != some[1])
    (alone,) = places([x[1:]], z[1:], 12)
    np.testing.assert_array_equal(alone[0], some[1])
    slope = jax.grad(lambda x: jnp.sum(places([x], z, 12)[0] ** 2 / 2))(x)
    kept = np.isin(np.asarray(x)[..., 0], some[0]), np.isin(np.asarray(x)[..., 0], some[1])
    np.testing.assert_array_equal(slope[0, ..., 0], np.where(kept[0], x[..., 0], 0)[0])
    np.testing.assert_array_equal(slope[1, ..., 0], np.where(kept[1], x[..., 0], 0)[1])


def test_each_use_of_a_translator_has_noise_of_its_own(x64):
    algorithm = system("cyclegan")
    setting = t.Setting({"ab": mixer(W["ab"], 1.0)}, {}, None, domains(), t.CYCLEGAN)
    now = now_of(algorithm)
    made = [
        t.translate(setting, now, "ab", now.batch["a"], use=use)[0] for use in ("", "cycle", "")
    ]
    np.testing.assert_array_equal(made[0], made[2])
    assert np.abs(made[0] - made[1]).min(axis=0).max() > 1e-3


@pytest.mark.medium
def test_samples_are_translations_of_the_inputs_of_the_key(x64):
    """Labels in turn where none are given; by the average of G, with noise of the key."""
    algorithm = system("pix2pix", ema_decay=lambda step: 0.5, noise=0.1, domains=domains(classes=3))
    state, _ = moved(algorithm, 2)
    key = jax.random.key(9)
    w = np.asarray(state.ema["g"]["params"]["ab"]["w"])
    assert np.abs(w - state.players["g"].params["ab"]["w"]).max() > 1e-3
    x = np.asarray(jax.random.uniform(stream(key, "inputs"), (5, *SHAPE), jnp.float64))
    noise = np.asarray(t.noise(stream(key, "z"), 5))[:, 0] / 2**32 * 0.1
    for labels in (None, jnp.array([2, 2, 1, 0, 1])):
        shift = np.arange(5) % 3 if labels is None else np.asarray(labels)
        expected = (x + shift.reshape(-1, 1, 1, 1)) @ w + noise.reshape(-1, 1, 1, 1)
        given = () if labels is None else (labels,)
        np.testing.assert_allclose(algorithm.sample(state, key, 5, *given), expected, rtol=1e-12)
    network = algorithm.networks["translator"]
    found = network.apply(network.variables(state), jnp.asarray(x), t.noise(stream(key, "z"), 5))
    np.testing.assert_allclose(found, x @ w + noise.reshape(-1, 1, 1, 1), rtol=1e-12)
    assert algorithm.classes == 3 and set(algorithm.networks) == {"translator"}
    both = system("cyclegan")
    back = both.networks["back"]
    found = back.apply(back.variables(both.init(key)), jnp.asarray(B), t.noise(key, 8))
    np.testing.assert_allclose(found, B @ np.array(W["ba"]), rtol=1e-12)


# The networks of the papers ------------------------------------------------------------------------------------------


def real_system(name, norm="instance", dtype=jnp.float32, **options):
    """As users have it, on tiny images."""
    shape = (8, 8, 2)
    loss, optimizers = LOSSES["least_squares"], t.Optimizers(optax.sgd(1e-2), optax.sgd(1e-2))
    options = {"domains": domains(shape, shape, dtype=dtype), **options}
    common = dict(norm=norm, axis_name=options.get("axis_name"), dtype=dtype)
    d = linen_net(PatchGAN(4, 1, **common))
    unet = linen_net(UNet(shape, 4, 2, **common))
    taps = ("input", "down0", "block0")
    resnet = linen_net(ResNetTranslator(shape, 4, 1, 1, taps=taps, **common))
    if name == "pix2pix":
        return t.pix2pix(t.Pair(unet, d), loss, optimizers, **options)
    if name == "cut":
        heads = linen_net(PatchHeads(8, dtype=dtype))
        return t.cut(t.Contrast(resnet, d, heads, 16), loss, optimizers, **options)
    return t.cyclegan(t.Cycle(unet, resnet, d, d), loss, optimizers, history=6, **options)


def source(dtype=np.float32):
    rng = np.random.default_rng(5)
    data = {k: rng.uniform(-1, 1, (32, 8, 8, 2)).astype(dtype) for k in ("a", "b")}

    def batch_at(data, step):
        rows = (jnp.arange(16) + 16 * step) % 32
        return {name: x[rows] for name, x in data.items()}

    return Source(data, batch_at, 32, 16, "test")


@pytest.mark.medium
@pytest.mark.parametrize(
    "name,mode",
    [
        ("pix2pix", "jit"),
        pytest.param("cyclegan", "jit", marks=pytest.mark.slow),
        pytest.param("cyclegan", "pmap", marks=pytest.mark.slow),
        pytest.param("cut", "jit", marks=pytest.mark.slow),
    ],
)
def test_a_run_is_the_same_on_one_device_and_on_eight(one_device_is_eight, name, mode):
    """With statistics of the batch, and in float64, where only the order of sums differs."""

    def make(axis):
        algorithm = real_system(name, "batch", jnp.float64, axis_name=axis, ema_decay=0.9)
        return cli.Experiment(algorithm, source(np.float64))

    one_device_is_eight(make, 3, [mode])


@pytest.mark.medium
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("pix2pix", marks=pytest.mark.slow),
        "cyclegan",
        pytest.param("cut", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(name, optimized, trees_equal):
    """The history, its count and the streams of dropout and places included, in a program of its own."""
    program = compile_program(real_system(name), source(), seed=0, devices=1)
    carry, _ = program.run(program.init(), 5)
    whole = jax.device_get(carry)
    carry, _ = program.run(program.init(), 2)
    kept = jax.tree.map(np.copy, jax.device_get(carry))
    again = compile_program(real_system(name), source(), seed=0, devices=1)
    place = lambda x, like: jax.device_put(x, like.sharding)  # noqa: E731
    carry, _ = again.run(jax.tree.map(place, kept, again.abstract), 3)
    trees_equal(whole, jax.device_get(carry))


@pytest.mark.slow
def test_a_known_map_is_learned():
    """From pairs the inversion of images, by the U-Net; both players move, and the distance falls."""
    rng = np.random.default_rng(6)
    a = jnp.asarray(rng.uniform(-0.9, 0.9, (16, 8, 8, 2)), jnp.float32)
    tx = t.Optimizers(optax.adam(5e-3, b1=0.5), optax.adam(1e-3, b1=0.5))
    shape = (8, 8, 2)
    nets = t.Pair(linen_net(UNet(shape, 16, 2, dropout=0.0)), linen_net(PatchGAN(4, 1)))
    algorithm = t.pix2pix(
        nets, LOSSES["nonsaturating"], tx, domains=domains(shape, shape, dtype=jnp.float32)
    )
    state = start = jax.jit(algorithm.init)(jax.random.key(0))
    step, pairs = jax.jit(algorithm.step), []
    for _ in range(300):
        state, metrics = step(state, {"a": a, "b": -a}, KEY)
        pairs.append(float(metrics["g/pair"]))
    assert pairs[-1] < 0.1 < 0.3 < pairs[0]
    for name, net in itertools.product(("g", "d"), ("ab", "b")):
        if net in start.players[name].params:
            before, after = (s.players[name].params[net] for s in (start, state))
            for x, y in zip(*map(jax.tree.leaves, (before, after)), strict=True):
                assert np.abs(x - y).max() > 0
