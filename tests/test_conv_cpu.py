"""What XLA:CPU computes in place of plain convolutions: every form beside lax, with derivatives up to the second."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bpgan.nets import conv, resample

CASES = {  # batch, (height, width), kernel, stride, padding, channels in and out
    "product": (2, (5, 4), (1, 1), 1, ((0, 0), (0, 0)), 6, 7),
    "1x1, padded": (2, (5, 4), (1, 1), 1, ((1, 0), (0, 0)), 20, 60),
    "1x1, strided": (2, (5, 4), (1, 1), 2, ((0, 0), (0, 0)), 60, 50),
    "out of one": (3, (7, 8), (3, 3), 1, ((1, 1), (1, 1)), 1, 16),
    "out of three": (2, (9, 8), (3, 3), 2, ((2, 0), (1, 1)), 3, 20),
    "into one": (3, (7, 8), (3, 3), 1, ((1, 1), (0, 2)), 18, 1),
    "into three": (2, (6, 5), (4, 4), 1, ((1, 2), (2, 1)), 16, 3),
    "cropped": (2, (8, 9), (1, 3), 1, ((0, 0), (0, 0)), 2, 3),
    "one, strided": (2, (8, 8), (4, 4), 2, ((1, 1), (1, 1)), 1, 50),
    "blocks": (5, (21, 20), (3, 3), 1, ((1, 1), (1, 1)), 12, 34),
    "blocks, traded": (6, (16, 18), (3, 3), 1, ((1, 1), (1, 1)), 34, 12),
    "blocks, strided": (8, (29, 28), (4, 4), 2, ((1, 1), (1, 1)), 6, 8),
    "winograd": (5, (15, 14), (3, 3), 1, ((1, 1), (1, 1)), 128, 128),
    "winograd, uneven": (2, (17, 16), (3, 3), 1, ((0, 1), (2, 1)), 129, 128),
}
SLOW = {"blocks", "blocks, traded", "blocks, strided", "winograd", "winograd, uneven"}


EACH = [
    pytest.param(name, id=name, marks=[pytest.mark.medium] if name in SLOW else [])
    for name in CASES
]


def made(name):
    """``conv`` and lax's of the case, as functions of images and kernel, and random operands and responses."""
    b, size, kernel, stride, padding, c, o = CASES[name]

    def ours(x, w):
        return conv.conv(x, w, stride=stride, padding=padding)

    def plain(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (stride,) * 2, padding, dimension_numbers=numbers)

    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(b, *size, c)), rng.normal(size=(*kernel, c, o))
    return ours, plain, x, w, rng.normal(size=jax.eval_shape(plain, x, w).shape)


def derivatives(f):
    """The value of a convolution and both its gradients."""

    @jax.jit
    def found(x, w, g):
        y, pullback = jax.vjp(f, x, w)
        return (y, *pullback(g))

    return found


def largest_error(found, wanted):
    return max(
        float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.medium
@pytest.mark.parametrize("name", EACH)
def test_float32_is_within_1e5_of_float64(x64, name):
    ours, plain, *operands = made(name)
    narrow = [t.astype(np.float32) for t in operands]
    wanted = derivatives(plain)(*(t.astype(np.float64) for t in narrow))
    found = derivatives(ours)(*narrow)
    assert all(t.dtype == np.float32 for t in found)
    assert largest_error(found, wanted) < 1e-5
    assert largest_error(derivatives(ours)(*operands), derivatives(plain)(*operands)) < 1e-13


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_second_derivatives_are_those_of_lax(x64, name):
    ours, plain, x, w, g = made(name)

    def second(f):
        def penalty(x, w, g):
            dx, dw = jax.vjp(f, x, w)[1](g)
            return jnp.sum(jnp.sin(dx)) + jnp.sum(jnp.sin(dw))

        return jax.jit(jax.grad(penalty, (0, 1, 2)))(x, w, g)

    assert largest_error(second(ours), second(plain)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_vmap_is_a_loop(x64, name):
    ours, plain, x, w, g = made(name)
    both = [] if name in SLOW else [(0, 0, 0)]  # lax's own grouped convolution
    for axes in ((0, None, 0), (None, 0, 0), *both):
        operands = [
            np.stack([t, 2 * t]) if axis == 0 else t
            for t, axis in zip((x, w, g), axes, strict=True)
        ]
        mapped = jax.jit(jax.vmap(derivatives(ours), axes))(*operands)
        for i in range(2):
            one = [t if axis is None else t[i] for t, axis in zip(operands, axes, strict=True)]
            assert largest_error([t[i] for t in mapped], derivatives(plain)(*one)) < 1e-12


def products_of_tiles(f, *operands):
    """Whether a compiled program multiplies 16 matrices at a time."""
    return "tensor<16x" in jax.jit(f).lower(*operands).as_text()


def test_winograd_is_left_out_at_the_highest_precision():
    ours, _, x, w, _ = made("winograd")
    x, w = x.astype(np.float32), w.astype(np.float32)
    gradients = jax.grad(lambda x, w: jnp.sum(ours(x, w) ** 2), (0, 1))
    assert products_of_tiles(ours, x, w) and products_of_tiles(gradients, x, w)
    with jax.default_matmul_precision("highest"):
        assert not products_of_tiles(ours, x, w) and not products_of_tiles(gradients, x, w)


@pytest.mark.parametrize("name", ["product", "out of one", "into one", "blocks"])
def test_half_precision_takes_the_plain_convolution(name):
    ours, plain, *operands = made(name)
    x, w, _ = (jnp.asarray(t, jnp.bfloat16) for t in operands)
    assert ours(x, w).dtype == jnp.bfloat16
    np.testing.assert_array_equal(jax.jit(ours)(x, w), jax.jit(plain)(x, w))


def resized(x):
    b, h, w, c = x.shape
    return jax.image.resize(x, (b, 2 * h, 2 * w, c), "bilinear")


@pytest.mark.medium
def test_derivatives_of_upsample2_are_those_of_bilinear_resizing(x64):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4))

    def all_of(f):
        def value(x):
            return jnp.sum(f(x) ** 3)

        def penalty(x):
            return jnp.sum(jax.grad(value)(x) ** 2)

        many = np.stack([x, -x], 2)
        return (
            jax.jit(jax.grad(value))(x),
            jax.jit(jax.grad(penalty))(x),
            jax.jvp(jax.grad(value), (x,), (x,))[1],
            jax.jit(jax.vmap(jax.grad(value), 2, 1))(many),
        )

    assert largest_error(all_of(resample.upsample2), all_of(resized)) < 1e-12


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_the_adjoint_that_autodiff_finds(platform):
    """No form of a CPU's: the same operations as of the function written out."""
    x = jax.ShapeDtypeStruct((2, 4, 6, 3), np.float32)

    def operations(f):
        def penalty(x):
            return jnp.sum(jax.grad(lambda x: jnp.sum(f(x) ** 2))(x) ** 2)

        gradient = jax.jit(jax.grad(penalty))
        text = gradient.trace(x).lower(lowering_platforms=(platform,)).as_text()
        return sorted(
            word for word in text.replace("(", " ").split() if word.startswith("stablehlo.")
        )

    assert operations(resample.upsample2) == operations(resample._upsample2)
