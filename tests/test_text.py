"""Networks for captions: the encoder against NumPy, what it must not depend on, and both players' conditions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from bpgan.nets import attention, dcgan, linen_net, mlp, text

TOKENS = np.array([[5, 3, 4, 2, 0, 0], [6, 6, 2, 0, 0, 0], [2, 3, 4, 5, 6, 7]], np.int32)


@pytest.fixture
def encoder(x64):
    """In float64, with parameters that are nowhere zero or one."""
    plain = linen_net(text.Encoder(8, 3, 4, 1, heads=2, dtype="float64"))
    compiled = jax.jit(plain.apply, static_argnames="train")
    net = plain._replace(init=jax.jit(plain.init), apply=compiled)
    shapes = jax.eval_shape(plain.init, jax.random.key(0), jnp.asarray(TOKENS))
    rng = np.random.default_rng(0)
    return net, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / 2), shapes)


def encode(encoder, tokens):
    net, variables = encoder
    return np.asarray(net.apply(variables, jnp.asarray(tokens), train=False)[0])


def normed(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def reference(params, tokens, heads=2):
    """The encoder of one block, a caption and a head at a time."""
    found = []
    for row in tokens:
        row = row[row > 0]
        width = params["embed"]["embedding"].shape[1]
        rates = 10_000.0 ** (-np.arange(0, width, 2) / width)
        angle = np.arange(len(row))[:, None] * rates
        x = params["embed"]["embedding"][row] + np.concatenate([np.sin(angle), np.cos(angle)], 1)
        block, size = params["block0"], width // heads
        q, k, v = np.split(dense(normed(x, block["norm0"]), block["inputs"]), 3, axis=1)
        parts = []
        for h in range(heads):
            at = slice(h * size, (h + 1) * size)
            weights = np.exp(q[:, at] @ k[:, at].T / math.sqrt(size))
            parts.append(weights / weights.sum(1, keepdims=True) @ v[:, at])
        x = x + dense(np.concatenate(parts, 1), block["outputs"])
        h = dense(normed(x, block["norm1"]), block["hidden"])
        x = x + dense(h * scipy.special.ndtr(h), block["back"])
        found.append(dense(normed(x, params["norm"]).mean(0), params["sentence"]))
    return np.stack(found)


def test_the_encoder_is_that_of_numpy(encoder):
    params = jax.tree.map(np.asarray, encoder[1]["params"])
    np.testing.assert_allclose(encode(encoder, TOKENS), reference(params, TOKENS), rtol=1e-9)


def test_attention_by_hand():
    """Two words of which the second is not seen: the value of the first alone; seen, a softmax of both."""
    q, k = jnp.ones((1, 1, 1, 4)), jnp.asarray([[[[1.0, 0, 0, 0], [0, 0, 0, 0]]]])
    v = jnp.asarray([[[[1.0, 2, 3, 4], [5, 6, 7, 8]]]])
    first = attention.attend(q, k, v, jnp.asarray([[True, False]]))
    np.testing.assert_allclose(first[0, 0, 0], [1, 2, 3, 4], rtol=1e-6)
    share = 1 / (1 + math.exp(-0.5))  # q k / sqrt(4) is a half, and zero
    both = attention.attend(q, k, v, jnp.asarray([[True, True]]))
    np.testing.assert_allclose(both[0, 0, 0], 4 * (1 - share) + np.arange(1, 5), rtol=1e-6)


@pytest.mark.medium
@pytest.mark.parametrize("more", [1, 10])
def test_padding_changes_nothing(encoder, more):
    longer = np.pad(TOKENS, ((0, 0), (0, more)))
    np.testing.assert_allclose(encode(encoder, longer), encode(encoder, TOKENS), rtol=1e-10)


def test_captions_of_a_batch_do_not_mix(encoder):
    order = [2, 0, 1]
    np.testing.assert_allclose(
        encode(encoder, TOKENS[order]), encode(encoder, TOKENS)[order], rtol=1e-10
    )
    np.testing.assert_allclose(
        encode(encoder, TOKENS[1:2]), encode(encoder, TOKENS)[1:2], rtol=1e-10
    )


def test_the_order_of_words_matters(encoder):
    turned = encode(encoder, TOKENS[:1, [1, 0, 2, 3, 4, 5]])
    assert np.abs(turned - encode(encoder, TOKENS[:1])).max() > 1e-3


def test_an_empty_caption_is_finite(encoder):
    net, variables = encoder
    zeros = jnp.zeros((1, 6), jnp.int32)
    gradient = jax.grad(lambda v: jnp.sum(net.apply(v, zeros, train=True)[0]))(variables)
    assert np.isfinite(encode(encoder, zeros)).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width=6: must be even and a multiple of 4"):
        linen_net(text.Encoder(8, width=6)).init(jax.random.key(0), jnp.asarray(TOKENS))


def test_g_sees_the_caption_beside_z(encoder):
    plain = linen_net(mlp.Generator((2,), (4,), dtype="float64"))
    net = text.generator(plain, encoder[0])
    z, tokens = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5))), jnp.asarray(TOKENS)
    variables = jax.jit(net.init)(jax.random.key(1), z, tokens)
    drawn, _ = net.apply(variables, z, tokens, train=False)
    e, _ = encoder[0].apply({"params": variables["params"]["text"]}, tokens, train=False)
    inner = {**variables, "params": variables["params"]["net"]}
    both = jnp.concatenate([z, e], axis=1)
    np.testing.assert_allclose(drawn, plain.apply(inner, both, train=False)[0], rtol=1e-12)


@pytest.mark.medium
def test_d_projects_the_caption(encoder):
    """``psi(phi(x)) + <e, V phi(x)> / sqrt(f)``, of one caption of each image and of several."""
    plain = linen_net(
        dcgan.Discriminator((2, 4), hidden=6, classes=3, head="acgan", dtype="float64")
    )
    net = text.discriminator(plain, encoder[0])
    x, tokens = jnp.asarray(np.random.default_rng(1).normal(size=(3, 8, 8, 1))), jnp.asarray(TOKENS)
    variables = jax.jit(net.init)(jax.random.key(1), x, tokens)
    e, _ = encoder[0].apply({"params": variables["params"]["text"]}, tokens, train=False)
    inner = {"params": variables["params"]["net"]}
    score, projected = plain.apply(inner, x, jnp.zeros(3, jnp.int32), train=False)[0]
    expected = np.asarray(score)[:, None] + np.asarray(projected) @ np.asarray(e).T / np.sqrt(3)
    alone, _ = net.apply(variables, x, tokens, train=False)
    np.testing.assert_allclose(alone, np.diagonal(expected), rtol=1e-10)
    every = jnp.broadcast_to(tokens[None], (3, *tokens.shape))
    several, _ = net.apply(variables, x, every, train=False)
    np.testing.assert_allclose(several, expected, rtol=1e-10)


@pytest.mark.medium
def test_statistics_of_the_networks_are_kept(encoder):
    """Batch norm's averages move in training and stand in without it; a spectral norm's u moves in D."""
    g = text.generator(linen_net(dcgan.Generator((8, 8, 1), (4,), dtype="float64")), encoder[0])
    z, tokens = jnp.ones((3, 5)), jnp.asarray(TOKENS)
    variables = jax.jit(g.init)(jax.random.key(1), z, tokens)
    _, moved = g.apply(variables, z, tokens, train=True)
    assert set(moved) == {"batch_stats"}
    old, new = (jax.tree.leaves(each["batch_stats"]) for each in (variables, moved))
    assert any(np.abs(a - b).max() > 0 for a, b in zip(old, new, strict=True))
    _, kept = g.apply(variables, z, tokens, train=False)
    for a, b in zip(old, jax.tree.leaves(kept["batch_stats"]), strict=True):
        np.testing.assert_array_equal(a, b)
