"""Networks: convolutions and their derivatives against lax, shapes, counts, batch statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks.networks import (
    TINY,
    close,
    compiled,
    convolutions,
    derivatives,
    modules,
    normal,
    size,
    stirred,
    tiny,
)
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from bpgan.nets import architecture, cnn, conv, dcgan, layers, linen_net, mlp, r3gan, resample, vit
from bpgan.sharding import by_rows

NHWC = ("NHWC", "HWIO", "NHWC")

# (h, w), (kh, kw), stride, padding, channels in, channels out
CONVS = [
    ((8, 8), (3, 3), 1, 1, 3, 5),
    ((8, 6), (4, 4), 2, 1, 3, 5),
    ((8, 6), (4, 4), 2, 1, 9, 5),  # enough channels for the sub-pixel form
    ((7, 9), (4, 4), 2, 1, 9, 2),  # the last row is not used
    ((9, 8), (3, 3), 2, 1, 8, 3),  # a kernel that the stride does not divide
    ((7, 9), (3, 2), (2, 3), ((0, 1), (2, 0)), 8, 4),
    ((9, 8), (5, 1), (1, 2), ((2, 2), (0, 0)), 8, 4),
    ((5, 5), (2, 2), 3, 0, 8, 4),  # gaps between the kernels
    ((6, 6), (3, 3), 2, ((5, 4), (0, 6)), 8, 4),  # more padding than kernel
    ((6, 6), (6, 6), 1, 0, 8, 4),  # a dense layer
    ((7, 8), (4, 3), 2, "SAME", 8, 4),
    ((5, 6), (1, 2), 3, "SAME", 1, 1),
]
IDS = [f"{hw}-{k}-s{s}-p{p}-{c}to{o}".replace(" ", "") for hw, k, s, p, c, o in CONVS]
CASES = [
    pytest.param(case, id=name, marks=() if i < 4 else pytest.mark.medium)
    for i, (case, name) in enumerate(zip(CONVS, IDS, strict=True))
]


def pair(value):
    return (value, value) if isinstance(value, int) else value


def lax_padding(padding):
    return [(padding, padding)] * 2 if isinstance(padding, int) else padding


def lax_conv(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x, kernel, pair(stride), lax_padding(padding), dimension_numbers=NHWC
    )


def lax_conv_transpose(x, kernel, stride, padding):
    """What the docstring promises: lax's own, with the kernel flipped and paddings dilated."""
    if padding != "SAME":
        padding = [
            (k - 1 - lo, k - 1 - hi)
            for k, (lo, hi) in zip(kernel.shape[:2], lax_padding(padding), strict=True)
        ]
    else:  # stride * size rows: the adjoint of the "SAME" convolution
        cut = [max(k - s, 0) for k, s in zip(kernel.shape[:2], pair(stride), strict=True)]
        padding = [
            (k - 1 - c // 2, s - 1 - (k - 1 - c // 2) + k - 1)
            for k, s, c in zip(kernel.shape[:2], pair(stride), cut, strict=True)
        ]
    return lax.conv_transpose(x, kernel[::-1, ::-1], pair(stride), padding, dimension_numbers=NHWC)


# Convolution


@pytest.mark.medium
@pytest.mark.parametrize("case", CASES)
def test_conv_and_its_derivatives_are_those_of_lax(x64, case):
    (h, w), k, stride, padding, c, o = case
    x, kernel = normal(0, 2, h, w, c), normal(1, *k, c, o)
    ours = derivatives(lambda x, w: conv.conv(x, w, stride=stride, padding=padding), x, kernel)
    close(ours, derivatives(lambda x, w: lax_conv(x, w, stride, padding), x, kernel), 1e-12)


@pytest.mark.medium
@pytest.mark.parametrize("case", CASES)
def test_conv_transpose_and_its_derivatives_are_those_of_lax(x64, case):
    (h, w), k, stride, padding, c, o = case
    x, kernel = normal(0, 2, h, w, o), normal(1, *k, o, c)
    if padding == ((5, 4), (0, 6)):
        padding = ((5, 1), (0, 6))
    ours = derivatives(
        lambda x, w: conv.conv_transpose(x, w, stride=stride, padding=padding), x, kernel
    )
    theirs = derivatives(lambda x, w: lax_conv_transpose(x, w, stride, padding), x, kernel)
    close(ours, theirs, 1e-12)


@pytest.mark.medium
@pytest.mark.parametrize("case", CONVS[:5], ids=IDS[:5])
def test_float32_agrees_with_float64(case):
    (h, w), k, stride, padding, c, o = case
    results = []
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            x, kernel = normal(0, 2, h, w, c, dtype=dtype), normal(1, *k, c, o, dtype=dtype)
            (value, gradient, _), _ = derivatives(
                lambda x, w: conv.conv(x, w, stride=stride, padding=padding), x, kernel
            )
        results.append(jax.tree.map(lambda a: np.asarray(a, np.float64), (value, gradient)))
        assert value.dtype == dtype
    close(*results, 1e-5)


@pytest.mark.parametrize("stride, padding", [(1, 1), (2, 1), (2, "SAME"), ((2, 1), 0)])
def test_conv_transpose_is_the_adjoint_of_conv(x64, stride, padding):
    k = normal(0, 4, 4, 3, 8)
    x = normal(1, 2, 5, 6, 3)
    up = conv.conv_transpose(x, k, stride=stride, padding=padding)
    y = normal(2, *up.shape)
    down = conv.conv(y, k.transpose(0, 1, 3, 2), stride=stride, padding=padding)
    assert down.shape == x.shape
    np.testing.assert_allclose(jnp.vdot(up, y), jnp.vdot(x, down), rtol=1e-12)


def test_conv_transpose_4_2_1_doubles_and_adds_scaled_kernels(x64):
    kernel = normal(0, 4, 4, 1, 1)
    x = jnp.zeros((1, 3, 3, 1)).at[0, 1, 1, 0].set(2.0)
    y = conv.conv_transpose(x, kernel, stride=2, padding=1)
    expected = np.zeros((1, 6, 6, 1))
    expected[0, 1:5, 1:5] = 2 * np.asarray(kernel[..., 0])
    np.testing.assert_array_equal(y, expected)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (3, None), (None, 4), (0, 0), (2, 1)])
@pytest.mark.parametrize("operation", ["conv", "conv_transpose"])
def test_vmap_is_a_loop(x64, operation, axes):
    f = getattr(conv, operation)
    x, kernel = normal(0, 2, 6, 6, 3), normal(1, 4, 4, 3, 2)

    def g(x, w):
        def value(x, w):
            return jnp.sum(jnp.sin(f(x, w, stride=2, padding=1)))

        return f(x, w, stride=2, padding=1), jax.grad(value, argnums=(0, 1))(x, w)

    stacked = [
        a if axis is None else jnp.stack([a, -a, 2 * a], axis=axis)
        for a, axis in zip((x, kernel), axes, strict=True)
    ]

    def one(i):
        return g(
            *(
                a if k is None else jnp.take(a, i, axis=k)
                for a, k in zip(stacked, axes, strict=True)
            )
        )

    def loop():
        return jax.tree.map(lambda *rows: jnp.stack(rows), one(0), one(1), one(2))

    batched, looped = compiled(lambda: (jax.vmap(g, in_axes=axes)(*stacked), loop()))()
    close(batched, looped, 1e-12)


def test_per_example_kernel_gradients_sum_to_the_gradient(x64):
    x, kernel = normal(0, 5, 6, 6, 3), normal(1, 4, 4, 3, 8)

    def value(w, x):
        return jnp.sum(jnp.sin(conv.conv(x, w, stride=2, padding=1)))

    single = compiled(jax.vmap(jax.grad(value), in_axes=(None, 0)))(kernel, x[:, None])
    close(single.sum(0), compiled(jax.grad(value))(kernel, x), 1e-12)


def test_derivatives_in_a_scan_stay_plain_convolutions_on_cpu():
    """No convolution of the compiled loop has another layout than NHWC/HWIO, at any order."""
    x, kernel = jnp.ones((2, 8, 8, 8)), jnp.ones((4, 4, 8, 8))

    def value(w, x):
        return jnp.sum(jnp.sin(conv.conv(x, w, stride=2, padding=1)))

    def penalized(w, x):
        return value(w, x) + jnp.sum(jnp.square(jax.grad(value, argnums=1)(w, x)))

    def loop(gradient):
        body = lambda w, _: (w - gradient(w, x), None)  # noqa: E731
        text = jax.jit(lambda w: lax.scan(body, w, None, length=3)[0]).lower(kernel).as_text()
        lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
        return len(lines), sum("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line for line in lines)

    total, plain = loop(jax.grad(penalized))
    assert total == plain >= 5
    # The control: what lax's own transposes emit is recognized as something else.
    naive = jax.grad(lambda w, x: jnp.sum(jnp.sin(lax_conv(x, w, 2, 1))))
    total, plain = loop(naive)
    assert total > plain


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_what_autodiff_of_lax_emits(platform):
    x, kernel = jnp.ones((2, 8, 8, 8)), jnp.ones((4, 4, 8, 5))

    def gradients(f):
        return jax.grad(lambda x, w: jnp.sum(jnp.sin(f(x, w))), argnums=(0, 1))

    ours = gradients(lambda x, w: conv.conv(x, w, stride=2, padding=1))
    theirs = gradients(lambda x, w: lax_conv(x, w, 2, 1))
    found = convolutions(ours, platform, x, kernel)
    assert len(found) == 3
    assert found == convolutions(theirs, platform, x, kernel)
    assert found != convolutions(ours, "cpu", x, kernel)


def test_batch_sharded_over_devices_gathers_nothing():
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    x, kernel = normal(0, 16, 8, 8, 3, dtype=np.float32), normal(1, 4, 4, 3, 8, dtype=np.float32)

    def gradient(w, x):
        def value(w, x):
            return jnp.sum(jnp.sin(conv.conv(x, w, stride=2, padding=1)))

        def total(w, x):
            return value(w, x) + jnp.sum(jnp.square(jax.grad(value, argnums=1)(w, x)))

        return jax.grad(total)(w, x)

    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    whole = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
    program = compiled(gradient).lower(whole, split).compile()
    close(program(whole, split), compiled(gradient)(kernel, x), 1e-5)
    text = program.as_text()
    assert "all-reduce" in text and "all-gather" not in text and "all-to-all" not in text


def test_rows_of_a_grouped_convolution_stay_on_their_devices():
    """XLA gathers the rows of all devices before a grouped convolution, so on an accelerator each gets its own one."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["batch"], []))
    x, kernel = normal(0, 16, 8, 8, 6, dtype=np.float32), normal(1, 3, 3, 3, 4, dtype=np.float32)

    def grouped(x, w):
        return conv.grouped_conv(lax.with_sharding_constraint(x, rows), w, groups=2)

    def lowered(f, platform):
        shapes = (
            jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
            for a, s in ((x, rows), (kernel, whole))
        )
        return jax.jit(f, out_shardings=rows).trace(*shapes).lower(lowering_platforms=(platform,))

    assert "stablehlo.convolution" in (text := lowered(grouped, "cuda").as_text())
    line = next(line for line in text.splitlines() if "stablehlo.convolution" in line)
    assert "tensor<2x8x8x6xf32>" in line  # two of the sixteen rows

    def lax_grouped(x, w):
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=2
        )

    def split(x, w):
        return by_rows(lax_grouped, lax.with_sharding_constraint(x, rows), whole=(w,))

    program = lowered(split, "cpu").compile()
    assert "all-gather" not in program.as_text()
    y = program(jax.device_put(x, rows), jax.device_put(kernel, whole))
    close(y, compiled(lax_grouped)(x, kernel), 1e-6)


def test_shard_map_sums_kernel_gradients_over_devices():
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    x, kernel = normal(0, 16, 8, 8, 3, dtype=np.float32), normal(1, 4, 4, 3, 8, dtype=np.float32)

    def value(w, x):
        return jnp.sum(jnp.sin(conv.conv(x, w, stride=2, padding=1)))

    whole, split = PartitionSpec(), PartitionSpec("batch")
    total = jax.shard_map(
        lambda w, x: lax.psum(value(w, x), "batch"),
        mesh=mesh, in_specs=(whole, split), out_specs=whole,
    )  # fmt: skip
    close(compiled(jax.grad(total))(kernel, x), compiled(jax.grad(value))(kernel, x), 1e-5)


@pytest.mark.parametrize(
    "x, kernel, options, message",
    [
        ((1, 4, 4, 3), (3, 3, 2, 1), {}, r"kernel \[kh,kw,c,o\], got .*\(3, 3, 2, 1\)"),
        ((4, 4, 3), (3, 3, 3, 1), {}, r"needs x \[b,h,w,c\].* got \(4, 4, 3\)"),
        ((1, 4, 4, 3), (3, 3, 3, 1), {"stride": 0}, "stride=0: must be a positive integer"),
        ((1, 4, 4, 3), (3, 3, 3, 1), {"stride": (1, 1, 1)}, r"stride=\(1, 1, 1\): must be"),
        ((1, 4, 4, 3), (3, 3, 3, 1), {"padding": -1}, "padding=.*: must not be negative"),
        ((1, 4, 4, 3), (3, 3, 3, 1), {"padding": "VALID"}, "padding='VALID': must be .*SAME"),
        ((1, 4, 4, 3), (3, 3, 3, 1), {"padding": (1, 1)}, r"padding=\(1, 1\): must be"),
    ],
)
@pytest.mark.parametrize("operation", [conv.conv, conv.conv_transpose])
def test_what_does_not_fit_is_one_line(operation, x, kernel, options, message):
    with pytest.raises(ValueError, match=message) as error:
        operation(jnp.ones(x), jnp.ones(kernel), **options)
    assert "\n" not in str(error.value)


def test_empty_outputs_and_integers_are_refused():
    with pytest.raises(ValueError, match=r"conv: kernel \(5, 5\) exceeds the image \(4, 4\)"):
        conv.conv(jnp.ones((1, 4, 4, 1)), jnp.ones((5, 5, 1, 1)), padding=0)
    with pytest.raises(ValueError, match="leaves nothing"):
        conv.conv_transpose(jnp.ones((1, 1, 1, 1)), jnp.ones((2, 2, 1, 1)), padding=1)
    with pytest.raises(ValueError, match="floating-point .* uint8"):
        conv.conv(jnp.ones((1, 4, 4, 1), jnp.uint8), jnp.ones((3, 3, 1, 1), jnp.uint8))


@pytest.mark.medium
@pytest.mark.parametrize("shape", [(2, 1, 1, 3), (1, 4, 7, 2), (3, 7, 14, 1)])
def test_upsample2_is_bilinear_resizing(x64, shape):
    x = normal(0, *shape)
    b, h, w, c = shape
    resized = jax.image.resize(x, (b, 2 * h, 2 * w, c), "bilinear")
    np.testing.assert_allclose(resample.upsample2(x), resized, rtol=0, atol=1e-14)


def test_linen_layers_add_a_bias_to_the_functions():
    x = normal(0, 2, 6, 6, 3, dtype=np.float32)
    for layer, operation in (
        (layers.Conv, conv.conv),
        (layers.ConvTranspose, conv.conv_transpose),
    ):
        module = layer(5, (4, 2), 2, ((1, 1), (0, 0)))
        params = module.init(jax.random.key(0), x)["params"]
        assert jax.tree.map(jnp.shape, params) == {"kernel": (4, 2, 3, 5), "bias": (5,)}
        params["bias"] = jnp.arange(5.0)
        expected = operation(x, params["kernel"], stride=2, padding=((1, 1), (0, 0)))
        np.testing.assert_array_equal(
            module.apply({"params": params}, x), expected + jnp.arange(5.0).reshape(1, 1, 1, 5)
        )
        assert set(layer(5, use_bias=False).init(jax.random.key(0), x)["params"]) == {"kernel"}


# Networks


def instances():
    """Every network that is found, at the sizes of MNIST and of CIFAR."""
    for name, module in modules().items():
        for shape in ((28, 28, 1), (32, 32, 3)):
            large = pytest.mark.medium if name in ("biggan", "resnet", "stylegan2") else ()
            marks = large if shape[0] == 28 else pytest.mark.slow
            nets = {"Generator": (tiny(name, "Generator", shape), (16,), shape)}
            nets["Discriminator"] = tiny(name, "Discriminator"), shape, ()
            if hasattr(module, "Classifier"):
                nets["Classifier"] = module.Classifier(10), shape, (10,)
            for kind, values in nets.items():
                yield pytest.param(*values, id=f"{name}-{shape[0]}-{kind}", marks=marks)


def test_the_architectures_are_found():
    assert {"mlp", "dcgan", *TINY} <= set(modules())


def shapes(module, example, batch=2):
    """Shapes of variables and output; nothing is computed."""
    net = linen_net(module)
    key, x = jax.random.key(0), jax.ShapeDtypeStruct((batch, *example), jnp.float32)
    variables = jax.eval_shape(net.init, key, x)
    return variables, *jax.eval_shape(lambda v, x: net.apply(v, x, train=True), variables, x)


@pytest.mark.medium
@pytest.mark.parametrize("module, example, output", list(instances()))
def test_every_network_keeps_the_contract(module, example, output):
    net, rng = linen_net(module), np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(-1, 1, size=(6, *example)), jnp.float32)
    still = isinstance(
        module, vit.Generator | vit.Discriminator
    )  # whose output is constant at the start

    def everything(key, x):
        variables = net.init(key, x)
        if still:
            variables = stirred(variables)
        trained, evaluated = (net.apply(variables, x, train=train) for train in (True, False))
        alone, _ = net.apply(variables, x[2:3], train=False)
        return variables, trained, evaluated, alone

    variables, trained, evaluated, alone = compiled(everything)(jax.random.key(0), x)
    for y, mutable in (trained, evaluated):
        assert y.shape == (6, *output) and y.dtype == jnp.float32
        assert {"params", *mutable} == set(variables)
        for name, collection in mutable.items():
            assert jax.tree.map(jnp.shape, collection) == jax.tree.map(jnp.shape, variables[name])
        # The initial scale is neither dead nor wild; running averages have not seen any yet.
        assert (mutable is evaluated[1] and "batch_stats" in variables) or 0.01 < y.std() < 10
        if len(output) == 3 and not still:  # it is linear
            assert float(abs(y).max()) <= 1
    # By default an example's output in evaluation does not depend on the others.
    np.testing.assert_allclose(alone[0], evaluated[0][2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("module, example, output", list(instances()))
def test_half_precision_keeps_wide_parameters_and_scores(module, example, output):
    variables, y, _ = shapes(module.clone(dtype=jnp.bfloat16), example)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert y.dtype == (jnp.bfloat16 if len(output) == 3 else jnp.float32)


@pytest.mark.parametrize("module, example, output", list(instances()))
def test_double_precision_is_double_throughout(x64, module, example, output):
    variables, y, mutable = shapes(module.clone(dtype=jnp.float64), example)
    assert {a.dtype for a in jax.tree.leaves((variables, y, mutable))} == {jnp.dtype("float64")}


@pytest.mark.medium
@pytest.mark.parametrize("name", sorted(modules()))
def test_discriminators_score_each_example_by_itself(name):
    net = linen_net(tiny(name, "Discriminator"))
    x = normal(0, 3, 8, 8, 1, dtype=np.float32)
    variables = stirred(compiled(net.init)(jax.random.key(0), x))
    gradient = compiled(jax.grad(lambda x: net.apply(variables, x, train=True)[0][1]))(x)
    assert float(abs(gradient[1]).max()) > 0
    np.testing.assert_array_equal(gradient[jnp.array([0, 2])], 0)


# Parameters: dense in * out + out, convolution kh * kw * in * out + out, norm 2 * out.
COUNTS = [
    (mlp.Generator((28, 28, 1)), 100, 100 * 128 + 128 + 128 * 784 + 784),  # the article's: 114064
    (mlp.Discriminator(), (28, 28, 1), 784 * 128 + 128 + 128 * 64 + 64 + 64 + 1),  # 108801
    (mlp.Classifier(10), (28, 28, 1), 784 * 128 + 128 + 128 * 10 + 10),
    (
        dcgan.Generator((28, 28, 1)),
        64,
        (64 + 1) * 6272 + 2 * 128 + (16 * 128 + 1) * 64 + 2 * 64 + 16 * 64 + 1,
    ),
    (
        dcgan.Generator((28, 28, 1), (96, 48, 24), "resize"),
        64,
        (64 + 1) * 4704 + (9 * 96 + 1) * 48 + (9 * 48 + 1) * 24 + 9 * 24 + 1 + 2 * (96 + 48 + 24),
    ),
    (dcgan.Discriminator(), (28, 28, 1), 17 * 64 + (16 * 64 + 1) * 128 + 49 * 128 + 1),
    (
        dcgan.Discriminator((48, 96), full_resolution=24, hidden=128),
        (28, 28, 1),
        10 * 24 + (16 * 24 + 1) * 48 + (16 * 48 + 1) * 96 + (49 * 96 + 1) * 128 + 129,
    ),
    (
        dcgan.Classifier(10),
        (28, 28, 1),
        17 * 32 + (16 * 32 + 1) * 64 + (49 * 64 + 1) * 128 + 129 * 10,
    ),
    # Miyato et al. 2018, table 3.
    (
        cnn.Generator((32, 32, 3)),
        128,
        129 * 8192 + sum((16 * 2 * b + 1) * b + 2 * b for b in (256, 128, 64)) + (9 * 64 + 1) * 3,
    ),
    (
        cnn.Discriminator(spectral=True),
        (32, 32, 3),
        sum((9 * a + 1) * b + (16 * b + 1) * b for a, b in ((3, 64), (64, 128), (128, 256)))
        + (9 * 256 + 1) * 512
        + 513,
    ),
    # Radford et al. 2016, figure 1 (with the biases that batch norm makes redundant).
    (
        dcgan.Generator((64, 64, 3), (1024, 512, 256, 128)),
        100,
        101 * 16384
        + sum((16 * a + 1) * b for a, b in ((1024, 512), (512, 256), (256, 128), (128, 3)))
        + 2 * (1024 + 512 + 256 + 128),
    ),
]


@pytest.mark.parametrize("module, example, count", COUNTS)
def test_parameter_counts(module, example, count):
    variables, *_ = shapes(module, (example,) if isinstance(example, int) else example)
    assert size(variables["params"]) == count


@pytest.mark.slow
def test_plain_networks_start_orthogonal():
    """As PyTorch flattens the kernels: out x patch, of a transposed convolution in x patch."""
    widths = (32, 24, 16, 8)
    for module, example in (
        (cnn.Generator((32, 32, 3), widths), (1, 16)),
        (cnn.Discriminator(widths), (1, 32, 32, 3)),
    ):
        params = linen_net(module).init(jax.random.key(0), jnp.zeros(example))["params"]
        for name, kernel in ((n, p["kernel"]) for n, p in params.items() if "kernel" in p):
            back = isinstance(module, cnn.Generator) and name in ("conv0", "conv1", "conv2")
            flat = np.moveaxis(np.asarray(kernel), -2 if back else -1, 0)
            flat = flat.reshape(len(flat), -1)
            gram = flat @ flat.T if len(flat) <= flat.shape[1] else flat.T @ flat
            np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5, err_msg=name)


@pytest.mark.medium
@pytest.mark.parametrize(
    "layer,shape",
    [
        (layers.Conv(8, dtype=jnp.bfloat16), (16, 32, 32, 4)),
        (layers.ConvTranspose(8, 4, 2, 1, dtype=jnp.bfloat16), (16, 16, 16, 4)),
        (layers.Dense(8, dtype=jnp.bfloat16), (8192, 4)),
        (
            r3gan.GroupedConv(jax.nn.initializers.lecun_normal(), dtype=jnp.bfloat16),
            (16, 32, 32, 16),
        ),
    ],
    ids=["conv", "conv_transpose", "dense", "grouped"],
)
def test_gradients_of_biases_are_not_summed_in_bfloat16(layer, shape):
    """On CPU a sum of 16,384 numbers in bfloat16 loses 97 % of itself."""
    x = normal(0, *shape, dtype=np.float32).astype(jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)
    y = jax.eval_shape(layer.apply, variables, x)
    weights = np.random.default_rng(0).uniform(size=y.shape).astype(np.float32)

    def value(variables, x, weights):
        return jnp.sum(layer.apply(variables, x).astype(jnp.float32) * weights)

    found = jax.jit(jax.grad(value))(variables, x, weights)["params"]["bias"]
    expected = np.asarray(weights.astype(jnp.bfloat16), np.float64).sum(tuple(range(y.ndim - 1)))
    assert y.dtype == jnp.bfloat16 and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_batch_norm_or_spectral_norm_in_a_plain_discriminator():
    for spectral, present in ((False, {"batch_stats"}), (True, {"spectral"})):
        variables, *_ = shapes(cnn.Discriminator(spectral=spectral), (32, 32, 3))
        assert set(variables) - {"params"} == present


def test_submodules_are_named_in_order():
    variables, *_ = shapes(dcgan.Generator((28, 28, 1), (96, 48, 24), "resize"), (64,))
    assert set(variables["params"]) == {
        "dense0",
        *(f"{k}{i}" for k in ("conv", "norm") for i in range(3)),
    }
    assert set(variables["batch_stats"]) == {"norm0", "norm1", "norm2"}
    variables, *_ = shapes(mlp.Generator((28, 28, 1), (8, 8)), (64,))
    assert set(variables["params"]) == {"dense0", "dense1", "dense2"}


def test_an_mlp_is_what_its_docstring_says():
    z = normal(0, 4, 7, dtype=np.float32)
    net = linen_net(mlp.Generator((2, 3, 1), (5,)))
    variables = net.init(jax.random.key(0), z)
    p = jax.tree.map(np.asarray, variables["params"])
    hidden = z @ p["dense0"]["kernel"] + p["dense0"]["bias"].reshape(1, -1)
    hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    x = np.tanh(hidden @ p["dense1"]["kernel"] + p["dense1"]["bias"].reshape(1, -1))
    np.testing.assert_allclose(
        net.apply(variables, z, train=True)[0], x.reshape(4, 2, 3, 1), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("upsample", ["transpose", "resize"])
@pytest.mark.parametrize("side", [28, 32, 64])
def test_image_sizes(side, upsample):
    module = dcgan.Generator((side, side, 3), (8, 6, 4)[upsample == "transpose" :], upsample)
    assert shapes(module, (16,))[1].shape == (2, side, side, 3)


@pytest.mark.parametrize(
    "module, message",
    [
        (dcgan.Generator((30, 28, 1)), "magnify 4 times, which must divide the image size 30x28"),
        (dcgan.Generator((28, 28, 1), (8, 8, 8, 8), "resize"), "magnify 8 times.* 28x28"),
        (dcgan.Generator((28, 28, 1), ()), r"widths=\(\)"),
        (dcgan.Generator((28, 28, 1), upsample="nearest"), "'nearest': must be .*transpose"),
        (dcgan.Generator((28, 28, 1), norm=False, modulation=8), "modulation=8: needs norm=True"),
    ],
)
def test_impossible_generators_are_refused(module, message):
    with pytest.raises(ValueError, match=message):
        shapes(module, (16,))


def test_modulation_scales_and_moves_each_channel_by_functions_of_z(x64):
    x, z = normal(0, 5, 2, 3, 4), normal(1, 5, 7)
    module = dcgan.Modulation(6, jnp.float64)
    variables = module.init(jax.random.key(0), x, z)
    p = jax.tree.map(np.asarray, variables["params"])
    hidden = z @ p["dense0"]["kernel"] + p["dense0"]["bias"].reshape(1, -1)
    hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    both = hidden @ p["dense1"]["kernel"] + p["dense1"]["bias"].reshape(1, -1)
    scale, offset = both[:, :4].reshape(5, 1, 1, 4), both[:, 4:].reshape(5, 1, 1, 4)
    np.testing.assert_allclose(
        module.apply(variables, x, z), x * (1 + scale) + offset, rtol=0, atol=1e-12
    )


@pytest.mark.medium
def test_a_modulated_generator_hears_z_and_the_class_at_every_norm():
    """With the first layer at zero nothing else could tell two latents, or two classes, apart."""
    module = dcgan.Generator((8, 8, 1), (6, 4), "resize", classes=3, modulation=5)
    z, labels = normal(2, 2, 4, dtype=np.float32), np.array([0, 2])
    variables = module.init(jax.random.key(0), z, labels)
    variables["params"]["dense0"] = jax.tree.map(jnp.zeros_like, variables["params"]["dense0"])
    same = jnp.stack([z[0], z[0]])

    def drawn(*inputs):
        return module.apply(variables, *inputs)

    assert np.ptp(drawn(z, jnp.zeros(2, int)), axis=0).max() > 1e-3
    assert np.ptp(drawn(same, labels), axis=0).max() > 1e-3
    assert np.ptp(drawn(same, jnp.zeros(2, int)), axis=0).max() == 0


@pytest.mark.parametrize("side,strides", [(28, 2), (32, 2), (64, 3), (128, 4)])
def test_the_lite_discriminator_halves_down_to_7_or_8_pixels(side, strides):
    d = architecture.parse("lite:4").d.make((side, side, 3), dtype=jnp.float32)
    params = jax.eval_shape(d.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]
    assert len([name for name in params if name.startswith("conv")]) == 1 + strides
    assert params["dense0"]["kernel"].shape[0] == (side >> strides) ** 2 * (8 << (strides - 1))


def test_output_gain_scales_the_last_layer_only():
    def params(gain):
        module = dcgan.Generator((8, 8, 1), (4, 4), output_gain=gain)
        return module.init(jax.random.key(0), jnp.ones((1, 4)))["params"]

    one, half = compiled(lambda: (params(1.0), params(0.5)))()
    np.testing.assert_allclose(half["conv1"]["kernel"], 0.5 * one["conv1"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(half["conv0"]["kernel"], one["conv0"]["kernel"])


# Batch norm


def test_batch_norm_trains_on_the_batch_and_evaluates_on_running_averages(x64):
    x = 3 + 2 * normal(0, 6, 2, 3, 4)
    module = layers.BatchNorm(dtype=jnp.float64)
    variables = module.init(jax.random.key(0), x, train=False)
    scale, bias = normal(1, 4), normal(2, 4)
    params = {"scale": scale, "bias": bias}
    assert jax.tree.structure(variables["params"]) == jax.tree.structure(params)
    stats = variables["batch_stats"]

    mean, var = np.mean(x, (0, 1, 2)), np.var(x, (0, 1, 2))
    whole = (1, 1, 1, 4)

    def expected(mean, var):
        return np.asarray(
            (x - mean.reshape(whole)) / np.sqrt(var.reshape(whole) + 1e-5) * scale.reshape(whole)
            + bias.reshape(whole)
        )

    for step in range(1, 4):
        variables = {"params": params, "batch_stats": stats}
        y, mutable = module.apply(variables, x, train=True, mutable=["batch_stats"])
        np.testing.assert_allclose(y, expected(mean, var), rtol=0, atol=1e-12)
        stats = mutable["batch_stats"]
        kept = 0.9**step  # of the starting values 0 and 1
        np.testing.assert_allclose(stats["mean"], (1 - kept) * mean, rtol=1e-12)
        np.testing.assert_allclose(stats["var"], kept + (1 - kept) * var, rtol=1e-12)
    y = module.apply({"params": params, "batch_stats": stats}, x, train=False)
    np.testing.assert_allclose(
        y, expected((1 - kept) * mean, kept + (1 - kept) * var), rtol=0, atol=1e-12
    )


def test_evaluation_changes_no_statistics():
    net, z = linen_net(dcgan.Generator((8, 8, 1), (6, 4))), jnp.ones((2, 5))
    variables = compiled(net.init)(jax.random.key(0), z)
    _, mutable = compiled(lambda v: net.apply(v, z, train=False))(variables)
    jax.tree.map(np.testing.assert_array_equal, mutable["batch_stats"], variables["batch_stats"])


def test_batch_norm_is_global_over_a_mapped_axis():
    z = normal(0, 16, 5, dtype=np.float32)
    whole = linen_net(dcgan.Generator((8, 8, 1), (6, 4)))
    split = linen_net(dcgan.Generator((8, 8, 1), (6, 4), axis_name="devices"))
    variables = compiled(whole.init)(jax.random.key(0), z)
    x, mutable = compiled(lambda z: whole.apply(variables, z, train=True))(z)
    parts, stats = compiled(
        jax.vmap(lambda z: split.apply(variables, z, train=True), axis_name="devices")
    )(z.reshape(4, 4, 5))
    np.testing.assert_allclose(parts.reshape(x.shape), x, rtol=0, atol=1e-5)
    close(jax.tree.map(lambda a: a[0], stats), mutable, 1e-6)
    local, _ = compiled(lambda z: whole.apply(variables, z, train=True))(z[:4])
    assert float(abs(local - x[:4]).max()) > 1e-2  # so the mapped axis did matter


def test_the_discriminator_norm_skips_the_first_convolution():
    variables, *_ = shapes(dcgan.Discriminator((8, 8, 8), norm=True), (32, 32, 3))
    assert set(variables["batch_stats"]) == {"norm1", "norm2"}
