"""Networks that make images of images, and discriminators of patches, against references of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bpgan.nets import linen_net
from bpgan.nets.layers import dropout, instance_norm, normalized
from bpgan.nets.patchgan import PatchGAN, receptive_field
from bpgan.nets.resample import resize
from bpgan.nets.translator import PatchHeads, ResNetTranslator, reflected
from bpgan.nets.unet import UNet


def images(*shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, shape), dtype)


def seeds(n, key=0):
    return jax.random.bits(jax.random.key(key), (n, 2), jnp.uint32)


def parameters(module, *shapes):
    """How many a module has, without making any."""
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    if not isinstance(module, PatchGAN):
        inputs.append(jax.ShapeDtypeStruct((1, 2), jnp.uint32))
    found = jax.eval_shape(linen_net(module).init, jax.random.key(0), *inputs)
    return sum(x.size for x in jax.tree.leaves(found["params"]))


def filled(module, *inputs):
    """Variables with kernels large enough that every layer matters, and biases that are not 0."""
    shapes = jax.eval_shape(linen_net(module).init, jax.random.key(3), *inputs)
    rng = np.random.default_rng(4)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, x.dtype), shapes)


# How many parameters ------------------------------------------------------------------------------------------------


def test_the_unet_has_as_many_parameters_as_the_released_one():
    """54.414 M for 256 pixels with batch norm; there, no layer but the last has a bias, here those without norm do."""
    widths = [64, 128, 256, 512, 512, 512, 512, 512]
    down = sum(16 * i * o for i, o in zip([3, *widths], widths, strict=False))
    up = 16 * 512 * 512 + sum(16 * 2 * widths[i] * widths[i - 1] for i in range(6, 0, -1))
    last = 16 * 2 * 64 * 3 + 3
    norms = 2 * sum(widths[1:7]) + 2 * sum(widths[:7])
    published = down + up + last + norms
    assert published == 54_413_955
    ours = parameters(UNet((256, 256, 3), norm="batch"), (1, 256, 256, 3))
    assert ours == published + 64 + 512


def test_the_translator_has_as_many_parameters_as_the_released_one():
    """11.378 M with 9 blocks; there, the convolutions before a norm have a bias, which the norm subtracts."""
    inner = [(49 * 3, 64), (9 * 64, 128), (9 * 128, 256), *[(9 * 256, 256)] * 18, (9 * 256, 128),
             (9 * 128, 64)]  # fmt: skip
    published = sum((i + 1) * o for i, o in inner) + 49 * 64 * 3 + 3
    assert published == 11_378_179
    ours = parameters(ResNetTranslator((256, 256, 3)), (1, 256, 256, 3))
    assert ours == published - sum(o for _, o in inner)


def test_the_discriminator_has_as_many_parameters_as_the_released_one():
    """2.769 M for a pair of color images, with batch norm."""
    layers = [(16 * 6 + 1) * 64, *[16 * i * 2 * i + 4 * i for i in (64, 128, 256)], 16 * 512 + 1]
    assert sum(layers) == 2_768_705
    assert parameters(PatchGAN(norm="batch"), (1, 256, 256, 6)) == sum(layers)


# Shapes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module,shape",
    [
        (UNet((28, 28, 3), 4, 2), (2, 28, 28, 1)),
        (UNet((32, 32, 1), 4, 5), (2, 32, 32, 3)),
        (UNet((28, 28, 1), 4, 2), (2, 7, 7, 1)),
        (ResNetTranslator((28, 28, 3), 4, 1), (2, 28, 28, 1)),
        (ResNetTranslator((32, 32, 1), 4, 1, downs=1), (2, 8, 8, 2)),
        (UNet((256, 256, 3)), (1, 256, 256, 3)),
        (ResNetTranslator((128, 256, 3)), (1, 128, 256, 3)),
    ],
)
def test_the_output_has_the_shape_asked_for(module, shape):
    net, z = linen_net(module), jax.ShapeDtypeStruct((shape[0], 2), jnp.uint32)
    a = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), a, z)
    found, _ = jax.eval_shape(lambda v, a, z: net.apply(v, a, z, train=False), variables, a, z)
    assert found.shape == (shape[0], *module.shape) and found.dtype == jnp.float32


@pytest.mark.parametrize("strided,size,map_size", [(1, 28, 12), (2, 28, 5), (3, 256, 30)])
def test_logits_are_a_map(strided, size, map_size):
    net, x = linen_net(PatchGAN(4, strided)), jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    found, _ = jax.eval_shape(lambda v, x: net.apply(v, x, train=False), variables, x)
    assert found.shape == (2, map_size, map_size)


@pytest.mark.parametrize(
    "module,reason",
    [
        (UNet((28, 28, 1), 4, 3), "must divide the image size"),
        (UNet((28, 28, 1), 4, 1), "levels=1: must be at least 2"),
        (UNet((8, 8, 1), 2, 2, norm="layer"), "norm='layer': must be"),
        (ResNetTranslator((28, 28, 1), 4, 1, downs=3), "must divide the image size"),
        (ResNetTranslator((4, 4, 1), 2, 1, downs=2), "too few for a margin"),
    ],
)
def test_impossible_networks_are_refused(module, reason):
    height, width, channels = module.shape
    with pytest.raises(ValueError, match=reason):
        parameters(module, (1, height, width, channels))
    with pytest.raises(ValueError, match="strided=0"):
        parameters(PatchGAN(2, 0), (1, 8, 8, 1))


# Against references -------------------------------------------------------------------------------------------------


def convolve(x, p, stride=1, padding=1):
    y = lax.conv_general_dilated(
        x, p["kernel"], (stride, stride), [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return y + p["bias"].reshape(1, 1, 1, -1) if "bias" in p else y


def enlarge(x, p, kernel, cut):
    """Zeros between the pixels, then a correlation with the turned kernel: a transposed convolution of stride 2."""
    margins = [(kernel - 1 - lo, kernel - 1 - hi) for lo, hi in (cut, cut)]
    y = lax.conv_general_dilated(
        x, p["kernel"][::-1, ::-1], (1, 1), margins, lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return y + p["bias"].reshape(1, 1, 1, -1) if "bias" in p else y


def standardized(x):
    """Each channel of each example."""
    mean = jnp.mean(x, (1, 2), keepdims=True)
    return (x - mean) / jnp.sqrt(jnp.var(x, (1, 2), keepdims=True) + 1e-5)


def leaky(x):
    return jnp.where(x > 0, x, 0.2 * x)


def check_against(by_hand, module, variables, a, z):
    """Output and features; each side is one program."""

    def both(variables, a):
        apply = linen_net(module).apply
        features, _ = apply(variables, a, z, train=False, method="features")
        return apply(variables, a, z, train=True)[0], features

    found, expected = jax.jit(both)(variables, a), jax.jit(by_hand)(a, variables["params"])
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for seen, known in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(seen, known, rtol=1e-9, atol=1e-12)


def test_the_unet_is_that_of_the_paper(x64):
    """Three levels by hand: no norm at the first level nor at the last, skips joined behind ReLU, no dropout here."""
    module = UNet((8, 8, 3), 2, 3, dropout=0.0, dtype=jnp.float64)
    a, z = images(2, 8, 8, 1, dtype=jnp.float64), seeds(2)
    variables = filled(module, a, z)
    p = variables["params"]
    assert {k for k in p if "bias" in p[k]} == {"down0", "down2", "up0"}

    def by_hand(a, p):
        one = convolve(a, p["down0"], 2)
        two = standardized(convolve(leaky(one), p["down1"], 2))
        three = convolve(leaky(two), p["down2"], 2)
        assert three.shape == (2, 1, 1, 8)
        x = standardized(enlarge(jax.nn.relu(three), p["up2"], 4, (1, 1)))
        x = jax.nn.relu(jnp.concatenate([two, x], -1))
        x = standardized(enlarge(x, p["up1"], 4, (1, 1)))
        x = jax.nn.relu(jnp.concatenate([one, x], -1))
        return jnp.tanh(enlarge(x, p["up0"], 4, (1, 1))), (a, one, two, three)

    check_against(by_hand, module, variables, a, z)


@pytest.mark.medium
def test_the_translator_is_that_of_the_paper(x64):
    """c7s1, d, R, u, c7s1 by hand, with margins by ``jnp.pad``."""
    taps = ("block0", "input", "down0")
    module = ResNetTranslator((8, 8, 3), 2, 1, downs=1, taps=taps, dtype=jnp.float64)
    a = images(2, 8, 8, 1, dtype=jnp.float64)
    variables = filled(module, a, seeds(2))
    p = variables["params"]
    assert {k for k in p if "bias" in p[k]} == {"conv1"}

    def mirrored(x, n):
        return jnp.pad(x, ((0, 0), (n, n), (n, n), (0, 0)), "reflect")

    def by_hand(a, p):
        x = jax.nn.relu(standardized(convolve(mirrored(a, 3), p["conv0"], padding=0)))
        down = convolve(x, p["down0"], 2)
        x = jax.nn.relu(standardized(down))
        y = jax.nn.relu(standardized(convolve(mirrored(x, 1), p["block0_conv0"], padding=0)))
        x = block = x + standardized(convolve(mirrored(y, 1), p["block0_conv1"], padding=0))
        x = jax.nn.relu(standardized(enlarge(x, p["up0"], 3, (1, 0))))
        return jnp.tanh(convolve(mirrored(x, 3), p["conv1"], padding=0)), (block, a, down)

    check_against(by_hand, module, variables, a, None)
    wrong = linen_net(module.clone(taps=("block1",)))
    with pytest.raises(ValueError, match="there are input, down0, block0"):
        wrong.apply(variables, a, None, train=False, method="features")


def test_the_discriminator_is_that_of_the_paper(x64):
    module = PatchGAN(2, 2, dtype=jnp.float64)
    x = images(2, 16, 16, 2, dtype=jnp.float64)
    variables = filled(module, x)

    @jax.jit
    def by_hand(x, p):
        y = leaky(convolve(x, p["conv0"], 2))
        y = leaky(standardized(convolve(y, p["conv1"], 2)))
        y = leaky(standardized(convolve(y, p["conv2"])))
        return convolve(y, p["conv3"])[..., 0]

    found = jax.jit(lambda v, x: linen_net(module).apply(v, x, train=True)[0])(variables, x)
    np.testing.assert_allclose(found, by_hand(x, variables["params"]), rtol=1e-9, atol=1e-12)


@pytest.mark.medium
def test_batch_norm_and_no_norm(x64):
    """By the statistics of the batch, over all rows; without a norm nothing happens, but layers have biases."""
    x = images(3, 8, 8, 2, dtype=jnp.float64)

    def with_norm(norm):
        module = PatchGAN(2, 1, norm=norm, dtype=jnp.float64)
        variables = filled(module, x)
        return variables, linen_net(module).apply(variables, x, train=True)

    variables, (logits, _) = with_norm("none")
    assert set(variables) == {"params"} and "bias" in variables["params"]["conv1"]
    alone, _ = linen_net(PatchGAN(2, 1, norm="none", dtype=jnp.float64)).apply(
        variables, x[:1], train=True
    )
    np.testing.assert_allclose(alone[0], logits[0], rtol=1e-12)
    variables, (_, stats) = with_norm("batch")
    p, before = variables["params"], variables["batch_stats"]["norm1"]["mean"]
    inner = convolve(leaky(convolve(x, p["conv0"], 2)), p["conv1"])
    mean = stats["batch_stats"]["norm1"]["mean"]
    expected = 0.9 * before + 0.1 * jnp.mean(inner, (0, 1, 2))
    np.testing.assert_allclose(mean, expected, rtol=1e-9)


# Parts --------------------------------------------------------------------------------------------------------------


@pytest.mark.medium
@pytest.mark.parametrize("strided,field,size", [(1, 16, 32), (2, 34, 48), (3, 70, 96)])
def test_the_gradient_of_a_logit_is_nonzero_in_exactly_its_window(strided, field, size):
    """With kernels that are positive nothing cancels."""
    assert receptive_field(strided) == field
    net = linen_net(
        PatchGAN(2, strided, norm="none", kernel_init=jax.nn.initializers.constant(0.1))
    )
    x = images(1, size, size, 1)
    variables = net.init(jax.random.key(0), x)

    def logit(x):
        logits, _ = net.apply(variables, x, train=False)
        middle = logits.shape[1] // 2
        return logits[0, middle, middle]

    seen = np.asarray(jax.jit(jax.grad(logit))(x))[0, :, :, 0] != 0
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    assert seen.sum() == field**2
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (field, field)
    assert rows[0] > 0 and rows[-1] < size - 1  # not cut off by the border


def test_margins_mirror_the_image():
    x = images(2, 5, 4, 3)
    expected = np.pad(np.asarray(x), ((0, 0), (3, 3), (3, 3), (0, 0)), "reflect")
    np.testing.assert_array_equal(reflected(x, 3), expected)
    with pytest.raises(ValueError, match="4x3 pixels: too few for a margin of 3"):
        reflected(x[:, :4, :3], 3)


def test_instance_norm_has_the_statistics_of_each_image():
    x = 3 + 2 * images(2, 6, 5, 3)
    np.testing.assert_allclose(instance_norm(x), standardized(x), rtol=1e-4, atol=1e-5)
    narrow = instance_norm(x.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(jnp.float32), standardized(x), atol=0.03)
    np.testing.assert_array_equal(instance_norm(jnp.ones((1, 1, 1, 2))), 0)
    np.testing.assert_array_equal(normalized("none", x, name="norm"), x)


def test_an_input_of_another_size_is_resized():
    """Bilinear: a ramp stays a ramp inside, and twice the size has the quarters in between."""
    ramp = jnp.broadcast_to(jnp.arange(4.0).reshape(1, 1, 4, 1), (1, 4, 4, 1))
    found = resize(ramp, (8, 8))[0, 3, :, 0]
    np.testing.assert_allclose(found, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], rtol=1e-6)
    assert resize(ramp, (4, 4)) is ramp


def test_dropout_is_a_coin_for_each_number_by_the_seed_of_its_row():
    x, z = jnp.ones((64, 10, 10)), seeds(64)
    y = np.asarray(dropout(x, z, "layer", 0.25))
    assert set(np.unique(y)) == {0, np.float32(4 / 3)}
    assert abs((y == 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / y.size)
    assert abs((y == 0).mean((1, 2)).std() - np.sqrt(0.25 * 0.75 / 100)) < 0.02  # rows are apart
    order = np.random.default_rng(0).permutation(64)[:5]
    np.testing.assert_array_equal(dropout(x[:5], z[order], "layer", 0.25), y[order])
    assert np.any(np.asarray(dropout(x, z, "other", 0.25)) != y)
    for wrong in (None, z[:5], z.astype(jnp.int32), jnp.zeros((64, 3), jnp.uint32)):
        with pytest.raises(ValueError, match=r"needs seeds uint32\[64, 2\]"):
            dropout(x, wrong, "layer")


def test_a_unet_has_noise_at_sampling_too():
    """Equal seeds make equal images, other seeds others, with ``train`` or without; without dropout there is none."""
    module = UNet((8, 8, 1), 4, 3)
    a = jnp.repeat(images(1, 8, 8, 1), 3, 0)
    z = seeds(3).at[2].set(seeds(3)[0])
    variables = filled(module, a, z)

    def translated(module, train):
        return jax.jit(lambda v: linen_net(module).apply(v, a, z, train=train)[0])(variables)

    for train in (False, True):
        one, other, same = np.asarray(translated(module, train))
        np.testing.assert_array_equal(one, same)
        assert np.abs(one - other).max() > 0.01
    still = translated(module.clone(dropout=0.0), False)
    np.testing.assert_array_equal(still[0], still[1])


def test_the_first_three_levels_of_the_decoder_have_dropout():
    """Five levels have four inner ones in the decoder; the noise of the others stands still."""
    a, z = jnp.ones((1, 32, 32, 1)), seeds(1)
    module = UNet((32, 32, 1), 1, 5)
    jaxpr = str(jax.make_jaxpr(lambda z: linen_net(module).init(jax.random.key(0), a, z))(z))
    alone = str(
        jax.make_jaxpr(
            lambda z: linen_net(module.clone(dropout=0.0)).init(jax.random.key(0), a, z)
        )(z)
    )
    assert (jaxpr.count("random_wrap"), alone.count("random_wrap")) == (3, 0)


@pytest.mark.medium
def test_heads_make_unit_vectors(x64):
    layers = (images(2, 5, 3, dtype=jnp.float64), images(2, 7, 4, dtype=jnp.float64))
    module = PatchHeads(6, dtype=jnp.float64)
    variables = filled(module, layers)
    found, _ = linen_net(module).apply(variables, layers, train=True)
    for i, (x, y) in enumerate(zip(layers, found, strict=True)):
        first, second = (variables["params"][f"dense{i}_{k}"] for k in (0, 1))
        hidden = np.maximum(np.asarray(x) @ first["kernel"] + first["bias"][None, None], 0)
        expected = hidden @ np.asarray(second["kernel"]) + second["bias"][None, None]
        expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
        assert y.shape == (2, x.shape[1], 6)
        np.testing.assert_allclose(y, expected, rtol=1e-9)
