"""Paths, path lengths and Jacobians of functions whose geometry is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpgan.insight import geometry
from bpgan.types import UserError

RNG = np.random.default_rng(0)


def check_arc(path, tolerance):
    """Ends, and between ends of one length the same length and equal steps."""
    a, b = np.random.default_rng(1).normal(size=(2, 5, 64))
    b *= np.linalg.norm(a, axis=1, keepdims=True) / np.linalg.norm(b, axis=1, keepdims=True)
    t = np.linspace(0, 1, 5).repeat(5)
    points = np.asarray(path(np.tile(a, (5, 1)), np.tile(b, (5, 1)), t)).reshape(5, 5, 64)
    np.testing.assert_allclose(points[0], a, atol=tolerance)
    np.testing.assert_allclose(points[-1], b, atol=tolerance)
    lengths = np.linalg.norm(points, axis=2)
    np.testing.assert_allclose(lengths, lengths[:1].repeat(5, 0), rtol=tolerance)
    steps = np.linalg.norm(np.diff(points, axis=0), axis=2)
    np.testing.assert_allclose(steps, steps[:1].repeat(4, 0), rtol=tolerance)


def test_an_arc_keeps_to_the_sphere_and_a_line_does_not():
    rng = np.random.default_rng(0)
    check_arc(geometry.slerp, 1e-12)
    check_arc(jax.jit(geometry.slerp), 2e-5)
    with pytest.raises(AssertionError):
        check_arc(geometry.lerp, 0.05)
    z = rng.normal(size=(2, 50, 512))
    middle = geometry.lerp(z[0], z[1], 0.5)
    assert abs(np.linalg.norm(middle) / np.linalg.norm(z[0]) - np.sqrt(0.5)) < 0.01
    t = rng.uniform(size=50)
    rows = [geometry.slerp(a[None], b[None], s)[0] for a, b, s in zip(*z, t, strict=True)]
    np.testing.assert_allclose(geometry.slerp(z[0], z[1], t), rows)


def test_where_there_is_no_arc_or_many_the_path_is_straight():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 16))
    x, y = np.stack([a, a, 0 * a, a]), np.stack([a, -a, a, 0 * a])
    np.testing.assert_allclose(geometry.slerp(x, y, 0.25), 0.75 * x + 0.25 * y)
    # Arcs of small angles, in float32.
    side = b - (b @ a) / (a @ a) * a
    near = np.stack([np.cos(angle) * a + np.sin(angle) * side for angle in (1e-3, 0.1)])
    x, y = np.concatenate([x, [a, a]]), np.concatenate([y, near])
    along = jax.jit(lambda t: jax.jvp(lambda t: geometry.slerp(x, y, t), (t,), (1.0,)))
    point, speed = along(0.3)
    np.testing.assert_allclose(point, geometry.slerp(x, y, 0.3), atol=1e-5)
    np.testing.assert_allclose(speed[:4], (y - x)[:4], atol=1e-5)


# Images of pixels around 1 that change slowly, where a difference of two is rounding.
W = 1e-3 * RNG.normal(size=(8, 12)).astype(np.float32)
OFFSET = RNG.uniform(0.5, 1, (1, 12)).astype(np.float32)


def linear(z):
    return OFFSET + jnp.matmul(z, W, precision="highest")


def by_differences(G, features, z0, z1, t, path):
    eps = np.float32(1e-4)
    change = jax.jit(lambda t: G(path(z0, z1, t + eps)) - G(path(z0, z1, t)))(t)
    return geometry.PathLength.of(np.sum(np.square(change), axis=1) / eps**2)


def check_length(measure):
    """``2 |W|_F^2``: within a hundredth, and within what the measure says of its own error."""
    rng = np.random.default_rng(2)
    z0, z1 = (rng.normal(size=(40_000, 8)).astype(np.float32) for _ in range(2))
    t = rng.uniform(size=40_000).astype(np.float32)
    found = measure(linear, None, z0, z1, t, geometry.lerp)
    expected = 2 * np.sum(np.square(W, dtype=np.float64))
    assert abs(found.mean / expected - 1) < 0.01
    assert abs(found.mean - expected) < 3 * found.standard_error < 0.03 * expected
    exact = np.sum(np.square((np.asarray(z1, np.float64) - z0) @ W), axis=1)
    np.testing.assert_allclose(found.each, exact, rtol=1e-3)
    np.testing.assert_allclose(found.standard_error, exact.std(ddof=1) / 200, rtol=1e-3)


def test_the_path_length_of_a_linear_generator_and_why_it_is_no_difference():
    check_length(geometry.path_length)
    with pytest.raises(AssertionError):
        check_length(by_differences)


def test_the_path_length_of_an_arc_in_features():
    """Twice the identity: the speed on an arc is its angle times the radius."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 6, 32))
    z /= np.linalg.norm(z, axis=2, keepdims=True)
    angle = np.arccos(np.sum(z[0] * z[1], axis=1))
    t = np.linspace(0, 1, 6)
    ends = lambda z: 3 * z, lambda x: 2 * x, z[0], z[1], t
    found = geometry.path_length(*ends)
    np.testing.assert_allclose(found.each, np.square(6 * angle), rtol=1e-4)
    straight = geometry.path_length(*ends, geometry.lerp)
    assert (straight.each < 0.95 * found.each).all()


FIRST, SECOND = RNG.normal(size=(6, 9)) / 2, RNG.normal(size=(9, 10))


def curved(z):
    """Two layers, a sample in two axes."""
    h = jnp.tanh(jnp.matmul(z.reshape(-1, 6), FIRST, precision="highest"))
    return jnp.matmul(h, SECOND, precision="highest").reshape(-1, 2, 5)


def curved_jacobians(z):
    slopes = 1 - np.square(np.tanh(z.reshape(-1, 6) @ FIRST))
    return np.einsum("ih,nh,ho->noi", FIRST, slopes, SECOND)


def test_the_spectrum_of_a_small_network():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, 2, 3))
    values = np.linalg.svd(curved_jacobians(z), compute_uv=False)
    dimension = (values**2).sum(1) ** 2 / (values**4).sum(1)
    found = geometry.jacobian_spectrum(curved, z, threshold=0.3)
    np.testing.assert_allclose(found.values, values, rtol=1e-4)
    np.testing.assert_allclose(found.condition, values[:, 0] / values[:, -1], rtol=1e-4)
    np.testing.assert_array_equal(found.count, (values > 0.3 * values[:, :1]).sum(1))
    top = geometry.jacobian_spectrum(curved, z, 2, jax.random.key(0))
    np.testing.assert_allclose(top.values, values[:, :2], rtol=1e-4)
    assert np.isnan(top.condition).all() and top.threshold == 0.01
    for each in (found, top):
        np.testing.assert_allclose(each.dimension, dimension, rtol=1e-4)


def test_equal_values_and_a_network_that_forgets():
    """Lanczos goes on where a Krylov space ends: after one step for a multiple of a rotation."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    half = 3 * rotation * (np.arange(5) < 3)  # two dimensions have no effect

    def G(z):
        return jnp.matmul(z, half.T, precision="highest")

    z = np.zeros((2, 5))
    found = geometry.jacobian_spectrum(G, z)
    np.testing.assert_allclose(found.values, [[3, 3, 3, 0, 0]] * 2, atol=1e-5)
    np.testing.assert_allclose(found.dimension, 3, rtol=1e-5)
    np.testing.assert_array_equal(found.count, [3, 3])
    assert (found.condition > 1e5).all()
    top = geometry.jacobian_spectrum(G, z, 5, jax.random.key(2))
    np.testing.assert_allclose(top.values, found.values, atol=2e-3)
    np.testing.assert_allclose(top.dimension, 3, rtol=1e-5)
    values, vectors = geometry.krylov(lambda v: 0 * v, (1, 4), 4, jax.random.key(3)).ritz()
    np.testing.assert_array_equal(values, np.zeros((1, 4)))
    np.testing.assert_allclose(vectors[0] @ vectors[0].T, np.eye(4), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda z: geometry.slerp(z, z[:1], 0.5), "must be [n, ...] with one shape"),
        (lambda z: geometry.lerp(z, z, np.zeros(3)), "t: is [3], must be [2] or a number"),
        (lambda z: geometry.path_length(linear, None, z[:1], z[:1], np.zeros(1)), "at least 2"),
        (lambda z: geometry.jacobian_spectrum(linear, z, 9), "k=9: must be from 1 to 8"),
        (
            lambda z: geometry.jacobian_spectrum(linear, z, 2, iterations=1),
            "iterations=1: must be at least `k=2`",
        ),
        (
            lambda z: geometry.jacobian_spectrum(lambda z: jnp.zeros((2, 1 << 25)), z),
            "k: is needed: the Jacobians have",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(call, said):
    with pytest.raises(UserError) as error:
        call(np.zeros((2, 8)))
    assert said in str(error.value) and "\n" not in str(error.value)
