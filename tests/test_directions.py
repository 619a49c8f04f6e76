"""Directions of functions whose right directions are known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend.core import ClosedJaxpr, Jaxpr

from bpgan.algorithms import gan
from bpgan.insight import directions
from bpgan.nets import dcgan, linen_net, stylegan2
from bpgan.nets.layers import BatchNorm, Dense
from bpgan.types import UserError

RNG = np.random.default_rng(0)
PLANTED = RNG.normal(size=(6, 9))


def cosines(found, expected):
    """Absolute, of the rows of both."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return np.abs(np.sum(found * expected, axis=1)) / lengths


def angle(found, expected):
    """The largest between the spaces that rows span, in degrees."""
    a, b = (np.linalg.qr(rows.T)[0] for rows in (found, expected))
    smallest = np.linalg.svd(a.T @ b, compute_uv=False).min()
    return np.degrees(np.arccos(min(smallest, 1)))


# SeFa ---------------------------------------------------------------------------------------------------------------


def check_axes(sefa):
    """A is diagonal, with three more outputs: its directions are the axes, by size."""
    kernel = np.zeros((6, 9))  # [in, out]
    kernel[range(6), range(6)] = sizes = np.array([1, 5, 2, -7, 3, 0.5])
    order = np.argsort(-np.abs(sizes))
    for factor in (1, 1e-3):
        found = sefa([factor * kernel], 4)
        assert (cosines(found.vectors, np.eye(6)[order[:4]]) > 0.9999).all()
        np.testing.assert_allclose(found.values, factor**2 * sizes[order[:4]] ** 2)
        np.testing.assert_allclose(found.shares, found.values / (factor**2 * (sizes**2).sum()))


def test_sefa_finds_planted_axes_and_the_wrong_axis_of_the_kernel_does_not():
    check_axes(directions.sefa)
    with pytest.raises((AssertionError, ValueError)):
        check_axes(lambda kernels, k: directions.sefa([each.T for each in kernels], k))


def test_sefa_of_a_linear_generator_and_of_several_layers():
    whole = directions.sefa([PLANTED], 3)
    _, values, right = np.linalg.svd(PLANTED.T)
    assert (cosines(whole.vectors, right[:3]) > 0.9999).all()
    np.testing.assert_allclose(whole.values, values[:3] ** 2)
    assert (np.take_along_axis(whole.vectors, abs(whole.vectors).argmax(1)[:, None], 1) > 0).all()
    parts = directions.sefa([PLANTED[:, :2], PLANTED[:, 2:]], 3)
    np.testing.assert_allclose(parts.vectors, whole.vectors)


# The first maps of networks -----------------------------------------------------------------------------------------


@jax.jit
def folded(x, scale=2.0):
    return scale * x + 1


def test_the_first_map_is_found_whatever_it_is_made_of():
    rng = np.random.default_rng(0)

    def G(z):
        x = jnp.concatenate([z.reshape(-1, 6), jnp.ones((len(z), 2))], 1)
        x = x @ np.concatenate([PLANTED, np.ones((2, 9))]).astype(np.float32)
        x = jax.nn.leaky_relu(folded(x), 0.2)
        return jnp.tanh(x @ np.ones((9, 4), np.float32))

    z = rng.normal(size=(3, 2, 3)).astype(np.float32)
    (kernel,) = directions.first_maps(G, z).values()
    np.testing.assert_allclose(kernel, 2 * PLANTED, rtol=1e-5)
    (alone,) = directions.first_maps(G, z, first_product=True).values()
    np.testing.assert_allclose(alone, PLANTED, rtol=1e-5)

    def skipping(z):  # what a second layer takes ends the map before what else becomes of it
        h = z.reshape(-1, 6) @ PLANTED.astype(np.float32)
        return jnp.tanh(2 * h) @ np.ones((9, 4), np.float32) + h @ np.ones((9, 4), np.float32)

    (kernel,) = directions.first_maps(skipping, z).values()
    np.testing.assert_allclose(kernel, PLANTED, rtol=1e-5)


class Normed(nn.Module):
    """A layer, its norm, and another layer."""

    @nn.compact
    def __call__(self, z, *, train):
        x = BatchNorm(name="norm0")(Dense(9, name="dense0")(z), train=train)
        return Dense(4, name="dense1")(jax.nn.relu(x))


def test_batch_norm_belongs_to_the_first_map():
    """A unit's factor before its norm is seen in no sample, but it turns the directions of the kernel alone."""
    rng = np.random.default_rng(0)
    sizes, deviations = rng.uniform(0.2, 5, size=(2, 9))
    factors = np.array([1, 1, 30, 1, 1, 1, 1, 1, 1])

    def network(factors):
        variables = {
            "params": {
                "dense0": {"kernel": PLANTED * factors, "bias": np.ones(9) * factors},
                "norm0": {"scale": sizes, "bias": np.ones(9)},
                "dense1": {"kernel": np.ones((9, 4)), "bias": np.zeros(4)},
            },
            "batch_stats": {"norm0": {"mean": np.zeros(9), "var": (deviations * factors) ** 2}},
        }
        variables = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), variables)
        return lambda z: linen_net(Normed()).apply(variables, z, train=False)[0]

    G, rescaled = network(np.ones(9)), network(factors)
    z = rng.normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_allclose(*jax.jit(lambda z: (G(z), rescaled(z)))(z), rtol=1e-3)
    maps = [directions.first_maps(each, z) for each in (G, rescaled)]
    assert list(maps[0]) == ["dense0"]
    np.testing.assert_allclose(maps[0]["dense0"], PLANTED * sizes / deviations, rtol=1e-3)
    np.testing.assert_allclose(maps[1]["dense0"], maps[0]["dense0"], rtol=1e-3)
    before = [
        directions.first_maps(each, z, first_product=True)["dense0"] for each in (G, rescaled)
    ]
    np.testing.assert_allclose(before[1], PLANTED * factors, rtol=1e-5)
    tops = [directions.sefa([kernel], 1).vectors for kernel in before]
    assert cosines(*tops) < 0.9  # the same function, another direction


@pytest.fixture(scope="module")
def styled():
    """The parts of a GAN with styles, and variables of G."""
    rng = np.random.default_rng(0)
    g = linen_net(stylegan2.Generator((8, 8, 1), (4, 3), styles=6, depth=2, classes=3))
    networks = gan.Networks(g, g, gan.normal_latents(5), (8, 8, 1), styles=True)
    z, y = jnp.ones((2, 5)), jnp.zeros(2, jnp.int32)
    like = jax.eval_shape(g.init, jax.random.key(0), z, y)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), like)
    return gan.trained(networks, gan.Condition(3)), variables


def test_styles_enter_every_layer_by_a_first_map(styled):
    rng = np.random.default_rng(0)
    networks, variables = styled
    z, y = rng.normal(size=(2, 5)).astype(np.float32), np.array([2, 0])

    @jax.jit
    def parts(z, y):
        w = networks["mapping"].apply(variables, z, y)
        whole = networks["generator"].apply(variables, z, y)
        return w, networks["synthesis"].apply(variables, w), whole

    w, x, whole = parts(z, y)
    assert w.shape == (2, 6) and np.ptp(whole) > 0.1
    np.testing.assert_allclose(x, whole, atol=1e-6)
    maps = directions.first_maps(lambda w: networks["synthesis"].apply(variables, w), w)
    layers = ("conv0", "image0", "conv1", "conv2", "image1")
    assert set(maps) == {f"{layer}/style" for layer in layers}
    for layer in layers:
        kernel = variables["params"]["synthesizer"][layer]["style"]["kernel"]
        np.testing.assert_allclose(maps[f"{layer}/style"], kernel / np.sqrt(6), rtol=1e-5)
    with pytest.raises(UserError, match="has its first maps in its synthesis"):
        directions.first_maps(lambda z: networks["generator"].apply(variables, z), z)


@pytest.mark.medium
def test_a_part_of_the_latents_for_every_block():
    rng = np.random.default_rng(0)
    net = linen_net(dcgan.Generator((8, 8, 1), (4, 3), "resize", modulation=7, classes=3))
    z, y = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32), jnp.zeros(2, jnp.int32)
    like = jax.eval_shape(net.init, jax.random.key(0), z, y)
    variables = jax.tree.map(lambda x: rng.uniform(1, 2, x.shape).astype(np.float32), like)
    maps = directions.first_maps(lambda z: net.apply(variables, z, y[: len(z)], train=False)[0], z)
    shapes = {name: kernel.shape for name, kernel in maps.items()}
    assert shapes == {
        "dense0": (5, 64),
        "modulation0/dense0": (5, 7),
        "modulation1/dense0": (5, 7),
    }
    kernel = variables["params"]["modulation1"]["dense0"]["kernel"]
    np.testing.assert_allclose(maps["modulation1/dense0"], kernel[:5], rtol=1e-5)


# GANSpace -----------------------------------------------------------------------------------------------------------


def test_ganspace_of_a_linear_generator():
    """Its components are the left singular vectors, its directions the right ones, the variances the squares."""
    rng = np.random.default_rng(0)
    _, values, right = np.linalg.svd(PLANTED.T)
    left = np.linalg.svd(PLANTED)[2]
    z = rng.normal(size=(400_000, 6)).astype(np.float32)
    kernel = PLANTED.astype(np.float32)

    def activation(z):
        return 5 + jnp.matmul(z, kernel, precision="highest")

    found = directions.ganspace(activation, lambda i: z[40_000 * i :][:40_000], 400_000, 3)
    assert angle(found.vectors, right[:3]) < 1
    assert (cosines(found.vectors, right[:3]) > 0.999).all()
    np.testing.assert_allclose(found.shares, values[:3] ** 2 / (values**2).sum(), atol=0.01)
    a = z.astype(np.float64) @ kernel
    exact = np.linalg.eigvalsh(np.cov(a.T))[::-1]
    np.testing.assert_allclose(found.values, exact[:3], rtol=1e-5)
    # Streamed or at once, of blocks with other means, the last one cut.
    z = z[np.argsort(z[:4000, 0])]
    for space in (True, False):
        whole = directions.ganspace(activation, lambda i: z, 3900, 3, in_latents=space)
        parts = directions.ganspace(
            activation, lambda i: z[1000 * i :][:1000], 3900, 3, in_latents=space
        )
        np.testing.assert_allclose(parts.vectors, whole.vectors, rtol=1e-9)
        np.testing.assert_allclose(parts.values, whole.values, rtol=1e-9)
    exact = np.linalg.eigvalsh(np.cov((z[:3900].astype(np.float64) @ kernel).T))[::-1]
    np.testing.assert_allclose(whole.values, exact[:3], rtol=1e-5)
    assert whole.vectors.shape == (3, 9) and angle(whole.vectors, left[:3]) < 3


# Supervised ---------------------------------------------------------------------------------------------------------


def test_a_supervised_direction_is_found_and_its_probabilities_are_right():
    rng = np.random.default_rng(0)
    w = rng.normal(size=32)
    w /= np.linalg.norm(w)
    z = rng.normal(size=(12_000, 32))
    p = 1 / (1 + np.exp(-(4 * z @ w + 1)))
    y = rng.uniform(size=len(p)) < p
    found = directions.supervised(z.reshape(-1, 4, 8), y)
    assert found.vector.shape == (4, 8) and found.vector.ravel() @ w > 0.99
    bayes = np.maximum(p, 1 - p).mean()
    assert abs(found.accuracy - bayes) < 4 * found.standard_error < 0.025
    assert abs(found.slope - 4) < 0.4 and abs(found.bias - 1) < 0.2
    assert found.calibration < 0.02
    assert abs(np.median(found.controls) - found.chance) < 0.02 < found.accuracy - found.chance
    assert found.accuracy - found.controls.max() > 0.1
    # Without noise there is no largest likelihood; the prior still gives a fit.
    clear = directions.supervised(z[:500], z[:500, 3] > 0, controls=0)
    assert clear.vector[3] > 0.95 and clear.accuracy > 0.9 and np.isfinite(clear.slope)
    # Of nothing there is no direction.
    chance = directions.supervised(z, rng.uniform(size=len(z)) < 0.5, controls=2)
    assert abs(chance.accuracy - 0.5) < 4 * chance.standard_error and chance.calibration < 0.05


# Derivatives --------------------------------------------------------------------------------------------------------


class Pixels(nn.Module):
    """``z[b, 32] -> x[b, 64, 64, 3]``."""

    @nn.compact
    def __call__(self, z):
        h = nn.Dense(256, precision="highest")(jnp.tanh(nn.Dense(24, precision="highest")(z)))
        h = jnp.tanh(h.reshape(-1, 8, 8, 4))
        h = nn.Dense(3, precision="highest")(h)
        return jnp.tanh(h.repeat(8, 1).repeat(8, 2))


def largest(jaxpr):
    """Numbers in the largest array that a program makes."""
    inner = [
        x
        for eqn in jaxpr.eqns
        for x in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr)
    ]
    sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
    below = [largest(getattr(x, "jaxpr", x)) for x in inner if is_jaxpr(x)]
    return max([*sizes, *below], default=0)


def is_jaxpr(x):
    return isinstance(x, ClosedJaxpr | Jaxpr)


@pytest.mark.medium
def test_what_moves_samples_most_is_found_without_the_jacobian():
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(2, 32)), jnp.float32)
    module = Pixels()
    like = jax.eval_shape(module.init, jax.random.key(0), z)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) / 3, like)

    def G(z) -> Any:
        return module.apply(variables, z)

    found = directions.jacobian_directions(G, z, 3, jax.random.key(1), iterations=32)
    rows = jax.jit(lambda z: jax.jacfwd(lambda e: G(z + e[None]).reshape(-1))(jnp.zeros(32)))(z)
    _, values, right = np.linalg.svd(np.asarray(rows, np.float64), full_matrices=False)
    np.testing.assert_allclose(found.values, values[:3] / np.sqrt(2), rtol=1e-4)
    assert (cosines(found.vectors, right[:3]) > 1 - 1e-4).all()
    np.testing.assert_allclose(found.shares, values[:3] ** 2 / (values**2).sum(), rtol=1e-4)
    one = jax.make_jaxpr(lambda z, key: directions.top(G, z, key, 32))(z[:1], jax.random.key(1))
    assert 64 * 64 * 3 < largest(one.jaxpr) < 64 * 64 * 3 * 32


def test_what_a_direction_does_to_classes():
    """G is the identity: probabilities are the softmax of a known line."""
    rng = np.random.default_rng(0)
    kernel, z = rng.normal(size=(4, 3)), rng.normal(size=(50, 4))
    found = directions.effects(
        lambda z: z, lambda x: x @ jnp.asarray(kernel), z, np.eye(4)[1], [-1, 0, 2]
    )
    for i, step in enumerate((-1, 0, 2)):
        logits = (z + step * np.eye(4)[1]) @ kernel
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        before = np.exp(z @ kernel) / np.exp(z @ kernel).sum(1, keepdims=True)
        np.testing.assert_allclose(found.probabilities[i], p.mean(0), rtol=1e-4)
        np.testing.assert_allclose(found.change[i], (p - before).mean(0), atol=1e-5)
        error = (p - before).std(0, ddof=1) / np.sqrt(50)
        np.testing.assert_allclose(found.standard_error[i], error, atol=1e-5)
        assert found.kept[i] == (logits.argmax(1) == (z @ kernel).argmax(1)).mean()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda z: directions.sefa([np.eye(4)], 5), "k=5: must be from 1 to 4, the dimensions"),
        (lambda z: directions.sefa([np.ones((4, 2)), np.ones((3, 2))], 1), "one d"),
        (lambda z: directions.sefa([np.zeros((4, 2))], 1), "kernels: are all zero"),
        (
            lambda z: directions.first_maps(lambda z: jnp.zeros((len(z), 2)), z),
            "do not depend on the latents",
        ),
        (
            lambda z: directions.ganspace(lambda z: z, lambda i: z, 20, 7),
            "k=7: must be from 1 to 6",
        ),
        (
            lambda z: directions.ganspace(lambda z: z[:, :1] * np.ones((1, 3)), lambda i: z, 20, 2),
            "k=2: must be at most 1, the directions",
        ),
        (
            lambda z: directions.ganspace(lambda z: jnp.zeros((len(z), 5000)), lambda i: z, 9, 1),
            "makes 5,000 numbers of an example, must be at most 4,096",
        ),
        (lambda z: directions.supervised(z, np.arange(20)), "attribute: must be true or false"),
        (lambda z: directions.supervised(z, np.ones(20)), "and false of others"),
        (
            lambda z: directions.jacobian_directions(jnp.tanh, z, 9, jax.random.key(0)),
            "k=9: must be",
        ),
        (
            lambda z: directions.effects(lambda z: z, lambda x: x, z, np.ones(5), [1]),
            "direction: is [5], must be [6]",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(call, said):
    with pytest.raises(UserError) as error:
        call(np.random.default_rng(0).normal(size=(20, 6)))
    assert said in str(error.value) and "\n" not in str(error.value)
