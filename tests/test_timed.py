"""Networks that take times: what they compute at the start, where times enter, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks.networks import compiled, size

from bpgan.nets import linen_net, timed
from bpgan.nets.architecture import parse

SHAPE = (8, 8, 2)
MOVERS = {
    "perceptron": lambda **o: timed.Perceptron(SHAPE, (6, 6), **o),
    "unet": lambda **o: timed.UNet(SHAPE, 4, **o),
    "unet of patches": lambda **o: timed.UNet(SHAPE, 4, 2, **o),
}
CRITICS = {
    "perceptron": lambda **o: timed.PerceptronCritic((6, 6), **o),
    "convolutions": lambda **o: timed.ConvCritic(4, 2, 6, **o),
}


def changed(variables):
    """Other parameters than those of the start, of which some are zero."""

    def moved(p):
        return p + 0.1 * jnp.sin(1.0 + jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape)

    return jax.tree.map(moved, variables)


def made(module, x, *given):
    net = linen_net(module)
    variables = changed(compiled(net.init)(jax.random.key(0), x, *given))
    return variables, compiled(lambda v, *given: net.apply(v, *given, train=True)[0])


def noise(seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), (3, *SHAPE), dtype)


def test_parameters_are_as_many_as_are_counted():
    """Of perceptrons of two layers of w units, with one time, by hand; and of a U-Net of two resolutions."""
    w, n = 6, 8 * 8 * 2
    time = 257 * w + (w + 1) * w
    for module, known in (
        (timed.Perceptron(SHAPE, (w, w), 1), time + (n + 1) * w + (w + 1) * w + (w + 1) * n),
        (timed.PerceptronCritic((w, w), 1), time + (n + 1) * w + (w + 1) * w + (w + 1)),
    ):
        x, t = jnp.zeros((1, *SHAPE)), jnp.zeros(1)
        variables = jax.eval_shape(linen_net(module).init, jax.random.key(0), x, t)
        assert size(variables) == known
    c, wide = 4, 16
    block = lambda c: 2 * (9 * c * c + c) + (wide + 1) * 2 * c  # noqa: E731
    known = 257 * wide + (wide + 1) * wide  # of the time
    known += (9 * 2 + 1) * c + 2 * block(c) + block(2 * c) + (9 * c + 1) * 2
    known += (c + 1) * 2 * c + (2 * c + 1) * c  # 1x1
    variables = jax.eval_shape(
        linen_net(timed.UNet(SHAPE, c, depth=1, times=1)).init,
        jax.random.key(0), jnp.zeros((1, *SHAPE)), jnp.zeros(1),
    )  # fmt: skip
    assert size(variables) == known


@pytest.mark.medium
@pytest.mark.parametrize("name", MOVERS)
def test_noise_is_taken_in_a_row_or_in_its_shape(name):
    z, s, t, y = noise(), jnp.array([0.2, 0.5, 0.9]), jnp.zeros(3), jnp.array([0, 1, 2])
    variables, apply = made(MOVERS[name](times=2, classes=3), z, s, t, y)
    out = apply(variables, z, s, t, y)
    assert out.shape == z.shape
    np.testing.assert_allclose(apply(variables, z.reshape(3, -1), s, t, y), out, rtol=1e-5, atol=1e-6)  # fmt: skip
    for other in ((s + 0.1, t, y), (s, t + 0.1, y), (s, t, (y + 1) % 3)):
        assert np.abs(apply(variables, z, *other) - out).max() > 1e-4
    alone = apply(variables, z[1:2], s[1:2], t[1:2], y[1:2])
    np.testing.assert_allclose(alone, out[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MOVERS)
def test_what_they_cannot_take_is_refused(name):
    net, key = linen_net(MOVERS[name](times=1)), jax.random.key(0)
    with pytest.raises(
        ValueError, match="maps noise of the 128 numbers of a sample, and got latents of 64"
    ):
        jax.eval_shape(net.init, key, jnp.zeros((1, 64)), jnp.zeros(1))
    with pytest.raises(ValueError, match="times=1: needs as many arrays"):
        jax.eval_shape(net.init, key, jnp.zeros((1, *SHAPE)))


def test_patches_are_squares_of_the_image_that_keep_their_places():
    """A U-Net whose first and last kernels hand channels on, and which does nothing else, is a norm and a SiLU of them.

    That it is zero at the start, as all other kernels are here, is seen beside it.
    """
    image = jax.random.normal(jax.random.key(0), (1, *SHAPE))
    net = linen_net(timed.UNet(SHAPE, 8, 2, depth=1))
    start = compiled(net.init)(jax.random.key(1), image)
    params = jax.tree.map(jnp.zeros_like, start["params"])
    for name in ("first", "last"):
        params[name]["kernel"] = params[name]["kernel"].at[1, 1].set(jnp.eye(8))
    apply = compiled(lambda v: net.apply(v, image, train=True)[0])
    assert not np.any(apply(start))
    out, x = np.asarray(apply({"params": params}))[0], np.asarray(image, np.float64)[0]
    for row, column in ((0, 0), (2, 4), (6, 2)):
        square = x[row : row + 2, column : column + 2]
        normed = square / np.sqrt(np.mean(square**2) + 1e-4)
        known = normed / (1 + np.exp(-normed))
        np.testing.assert_allclose(
            out[row : row + 2, column : column + 2], known, rtol=1e-4, atol=1e-5
        )


@pytest.mark.medium
@pytest.mark.parametrize("name", CRITICS)
def test_derivatives_along_a_flow_and_their_gradients(name, x64):
    """In float64 against central differences: in x and t, and then in the parameters."""
    x, t = noise(dtype=jnp.float64), jnp.array([0.2, 0.5, 0.9])
    u = noise(1, jnp.float64)
    module = CRITICS[name](times=1, time_scale=1.0, dtype=jnp.float64)
    variables, apply = made(module, x, t)
    net = linen_net(module)

    def along(v):
        potential = lambda x, t: net.apply(v, x, t, train=True)[0]  # noqa: E731
        return jax.jvp(potential, (x, t), (u, jnp.ones_like(t)))[1]

    h = 1e-5
    known = (apply(variables, x + h * u, t + h) - apply(variables, x - h * u, t - h)) / (2 * h)
    np.testing.assert_allclose(compiled(along)(variables), known, rtol=1e-6, atol=1e-9)
    way = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size) * 1.0).reshape(p.shape), variables)
    value = compiled(lambda v: jnp.sum(jnp.square(along(v))))
    slope = compiled(jax.grad(lambda v: jnp.sum(jnp.square(along(v)))))(variables)
    slope = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (slope, way)), strict=True))
    ahead, behind = (value(jax.tree.map(lambda p, w, s=s: p + s * w, variables, way)) for s in (h, -h))  # fmt: skip
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=1e-5)


@pytest.mark.medium
@pytest.mark.parametrize("name", CRITICS)
def test_the_scale_of_times_is_that_of_the_derivative_by_them(name, x64):
    """Of a D at one place of its waves: the derivative by t at t / 1000 with scale 1000 is 1000 times as large."""
    x, t = noise(dtype=jnp.float64), jnp.array([0.2, 0.5, 0.9])
    slopes = []
    for scale in (1.0, 1000.0):
        net, at = linen_net(CRITICS[name](times=1, time_scale=scale, dtype=jnp.float64)), t / scale

        def slope(at, net=net):
            variables = changed(net.init(jax.random.key(0), x, at))
            potential = lambda t: net.apply(variables, x, t, train=True)[0]  # noqa: E731
            return jax.jvp(potential, (at,), (jnp.ones(3),))[1]

        slopes.append(compiled(slope)(at))
    np.testing.assert_allclose(slopes[1], 1000 * slopes[0], rtol=1e-6)


@pytest.mark.medium
@pytest.mark.parametrize("name", CRITICS)
def test_critics_heed_times_and_labels(name):
    x, t, y = noise(), jnp.array([0.2, 0.5, 0.9]), jnp.array([0, 1, 2])
    variables, apply = made(CRITICS[name](times=1, classes=3, dtype=jnp.bfloat16), x, t, y)
    out = apply(variables, x, t, y)
    assert out.shape == (3,) and out.dtype == jnp.float32 and np.isfinite(out).all()
    for other in ((t + 0.1, y), (t, (y + 1) % 3)):
        assert np.all(apply(variables, x, *other) != out)


def test_a_text_names_them_with_their_times():
    choices = parse("unet:4,patch=2/silu:4")
    assert choices.g.network.times and choices.g.network.of_noise and choices.d.smooth
    assert (
        not parse("vit:8").d.smooth and parse("vit:8,rms").d.smooth and not parse("lite").d.smooth
    )
    net = choices.g.make((8, 8, 1), dtype=jnp.float32, times=2, time_scale=1.0)
    given = jnp.zeros((2, 64)), jnp.zeros(2), jnp.zeros(2)
    variables = jax.eval_shape(net.init, jax.random.key(0), *given)
    out = jax.eval_shape(lambda v: net.apply(v, *given, train=True)[0], variables)
    assert out.shape == (2, 8, 8, 1)
