"""The architectures of the literature: published parameter counts, conditions, and each one's own mathematics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks.networks import (
    TINY,
    Normed,
    check_spectral_norm,
    close,
    compiled,
    converge,
    convolutions,
    derivatives,
    largest,
    modules,
    normal,
    size,
    stirred,
    tiny,
)
from flax import linen as nn
from jax import lax

from bpgan.algorithms.gan import normal_latents
from bpgan.losses import AUXILIARY
from bpgan.nets import (
    ARCHITECTURES,
    biggan,
    blocks,
    cnn,
    conv,
    dcgan,
    energy,
    heads,
    labeled,
    layers,
    linen_net,
    mlp,
    r3gan,
    resample,
    resnet,
    spectral,
    stylegan2,
    truncated,
)
from bpgan.nets.architecture import parse
from bpgan.types import Net

NAMES = sorted(modules())
LABELS = jnp.array([0, 1, 2])


def shapes(module, example, labels=True, batch=2):
    """Shapes of variables and output; nothing is computed."""
    net, key = linen_net(module), jax.random.key(0)
    x = jax.ShapeDtypeStruct((batch, *example), jnp.float32)
    inputs = (x, jax.ShapeDtypeStruct((batch,), jnp.int32)) if labels else (x,)
    variables = jax.eval_shape(net.init, key, *inputs)
    return variables, *jax.eval_shape(
        lambda v, *i: net.apply(v, *i, train=True), variables, *inputs
    )


# Parameter counts

R3GAN_256 = (768, 768, 768, 768, 384, 192, 96)
WIDE = (512, 512, 512, 512, 512, 256, 128, 64, 32)
COUNTS = {
    # Miyato et al. 2018, table 4a with biases, which are 256 + 256 + 256 a block: as in mimicry.
    "sngan-32-G": (resnet.Generator((32, 32, 3)), (128,), 4276739),
    # Table 4b: 3x3 and 1x1 of 3 to 128, 128 to 128, twice two 3x3, and 129.
    "sngan-32-D": (
        resnet.Discriminator(),
        (32, 32, 3),
        (28 * 128 + 1153 * 128 + 4 * 128) + (2 * 1153 * 128 + 129 * 128) + 4 * 1153 * 128 + 129,
    ),
    # Brock et al. 2019, table 1: 158.3 M together; by network in compare_gan's test of resnet_biggan.
    "biggan-128-G": (
        biggan.Generator((128, 128, 3), 96, classes=1000, attention=64), (120,), 70433988,
    ),
    "biggan-128-D": (biggan.Discriminator(96, classes=1000, attention=64), (128, 128, 3), 87982370),
    # "About 4.3 M" (the issue 78 of BigGAN-PyTorch): SNGAN's G with ten rows in place of one in each norm.
    "biggan-32-G": (
        biggan.Generator((32, 32, 3), classes=10, shared=0, hierarchical=False),
        (128,),
        4276739 + 9 * 6 * 512,
    ),
    "biggan-32-D": (
        biggan.Discriminator(classes=10),
        (32, 32, 3),
        (28 * 256 + 2305 * 256 + 4 * 256) + (2 * 2305 * 256 + 257 * 256) + 4 * 2305 * 256
        + 257 + 10 * 256,
    ),
    # As printed by stylegan2-ada-pytorch for 1024 pixels; G less the 17 strengths of its noise inputs.
    "stylegan2-1024-G": (
        stylegan2.Generator((1024, 1024, 3), WIDE, depth=2), (512,), 28794124 - 17,
    ),
    "stylegan2-1024-D": (
        stylegan2.Discriminator(WIDE, minibatch_stddev=4), (1024, 1024, 3), 29012513,
    ),
    # 23.058 and 23.010 M in the paper's table of configurations (E, FFHQ at 256 pixels).
    "r3gan-256-G": (r3gan.Generator((256, 256, 3), R3GAN_256), (64,), 23057952),
    "r3gan-256-D": (r3gan.Discriminator(R3GAN_256), (256, 256, 3), 23009569),
    # Of PyTorch's examples 3576704 and 2765568, without biases before norms and with 100 to 4x4x512 as a convolution.
    "dcgan-64-G": (
        dcgan.Generator((64, 64, 3), (512, 256, 128, 64)),
        (100,),
        3576704 + 16 * 512 + 256 + 128 + 64 + 3,
    ),
    "dcgan-64-D": (
        dcgan.Discriminator((64, 128, 256, 512), norm=True),
        (64, 64, 3),
        2765568 + 64 + 128 + 256 + 512 + 1,
    ),
    # Miyato et al. 2018, table 3, with batch norm after every layer but the last of G, and as StudioGAN's D has it.
    "cnn-32-G": (
        cnn.Generator((32, 32, 3)),
        (128,),
        129 * 8192 + sum(16 * a * b + 3 * b for a, b in ((512, 256), (256, 128), (128, 64)))
        + 9 * 64 * 3 + 3,
    ),
    "cnn-32-D": (
        cnn.Discriminator(spectral=True),
        (32, 32, 3),
        sum(k * k * a * b + b for k, a, b in (
            (3, 3, 64), (4, 64, 64), (3, 64, 128), (4, 128, 128), (3, 128, 256), (4, 256, 256),
            (3, 256, 512)))
        + 513,
    ),
    # SCIENCE's r3-28: blocks of c * 2c + 2c, 9 * 16 * 2c + 2c, 2c * c; 1x1 between stages.
    "r3gan-28-G": (
        r3gan.Generator((28, 28, 1)),
        (64,),
        49 * 256 + 64 * 256 + sum(2 * (4 * c * c + 292 * c) for c in (256, 192, 128))
        + 256 * 192 + 192 * 128 + 128,
    ),
    "r3gan-28-D": (
        r3gan.Discriminator(),
        (28, 28, 1),
        128 + sum(2 * (4 * c * c + 292 * c) for c in (256, 192, 128))
        + 256 * 192 + 192 * 128 + 49 * 256 + 257,
    ),
}  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    module, example, count = COUNTS[name]
    variables, *_ = shapes(module, example)
    assert size(variables["params"]) == count


# Shapes


@pytest.mark.slow
@pytest.mark.parametrize("side, channels", [(28, 1), (32, 3), (64, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_default_sizes(name, side, channels):
    shape = (side, side, channels)
    for classes in {28: (0, 5), 32: (5,), 64: (0,)}[side]:
        options = {"widths": (8, 8)} if name == "dcgan" else {}
        generator = modules()[name].Generator(shape, classes=classes, **options)
        discriminator = modules()[name].Discriminator(classes=classes)
        assert shapes(generator, (20,), classes > 0)[1].shape == (2, *shape)
        assert shapes(discriminator, shape, classes > 0)[1].shape == (2,)


@pytest.mark.slow
@pytest.mark.parametrize("side", [48, 96, 128])
@pytest.mark.parametrize("name", ["cnn", "resnet", "r3gan", "stylegan2", "biggan"])
def test_defaults_from_28_to_128_pixels(name, side):
    """Also between the sizes of the papers: 96 is STL-10's."""
    shape = (side, side, 3)
    assert shapes(modules()[name].Generator(shape), (20,), False)[1].shape == (2, *shape)
    assert shapes(modules()[name].Discriminator(), shape, False)[1].shape == (2,)


@pytest.mark.parametrize("name", ["resnet", "r3gan", "stylegan2", "biggan"])
def test_unknown_sizes_are_refused(name):
    with pytest.raises(
        ValueError, match="widths: has a default from image height 28 on, not for 20"
    ):
        shapes(modules()[name].Generator((20, 20, 1)), (20,))
    with pytest.raises(
        ValueError, match="widths: has a default from image height 28 on, not for 20"
    ):
        shapes(modules()[name].Discriminator(), (20, 20, 1))
    with pytest.raises(ValueError, match="must divide the image size 30x30"):
        shapes(modules()[name].Generator((30, 30, 1)), (20,))
    with pytest.raises(ValueError, match="must divide the image size 30x30"):
        shapes(tiny(name, "Generator", (30, 30, 1)), (20,))
    with pytest.raises(ValueError, match="must divide the image size 30x30"):
        shapes(tiny(name, "Discriminator"), (30, 30, 1))


@pytest.mark.medium
@pytest.mark.parametrize(
    "module, example, message",
    [
        (dcgan.Generator((28, 28, 1), classes=3, conditioning="norm", norm=False), 4, "norm=True"),
        (dcgan.Generator((28, 28, 1), conditioning="add"), 4, "'add': must be \"concat\""),
        (biggan.Generator((28, 28, 1), classes=3, shared=0), 4, "hierarchical: needs shared"),
        (biggan.Generator((28, 28, 1)), 2, "needs 3 latents or more, got 2"),
        (resnet.Generator((28, 28, 1), attention=7), 4, r"attention=7: .* \[14, 28\]"),
        (resnet.Discriminator((8,), downs=1, attention=14), (28, 28, 1), None),
        (biggan.Generator((28, 28, 1), 8, classes=3, hierarchical=False, attention=28), 4, None),
        (resnet.Discriminator((4,), downs=1, attention=14), (28, 28, 1), "needs 8 channels"),
        (resnet.Discriminator((8,) * 2, attention=7), (28, 28, 1), "even sizes, got 7x7x8"),
        (resnet.Discriminator(attention=28), (28, 28, 1), r"attention=28: .* \[14, 7\]"),
        (r3gan.Generator((28, 28, 1), (12,)), 4, "widths: must be multiples of 8, got 12"),
        (mlp.Discriminator(head="project"), (2,), "head='project': must be one of projection"),
        (
            stylegan2.Discriminator((8,), minibatch_stddev=2),
            (4, 4, 1),
            "must divide the batch of 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused(module, example, message):
    example = (example,) if isinstance(example, int) else example
    if message is None:
        shapes(module, example, batch=3)
        return
    with pytest.raises(ValueError, match=message) as error:
        shapes(module, example, batch=3)
    assert "\n" not in str(error.value)


# The table

WAYS = [
    *((name, "g") for name, a in ARCHITECTURES.items() if a.generator),
    *((name, "d") for name, a in ARCHITECTURES.items() if a.discriminator),
]


@pytest.mark.medium
@pytest.mark.parametrize("name, player", WAYS)
def test_what_the_table_says_of_a_network_is_true(name, player):
    """Of every entry, with each of its options; nothing is computed."""
    architecture, shape = ARCHITECTURES[name], (32, 32, 3)
    options = (architecture.generator if player == "g" else architecture.discriminator).options
    for option in ("", *(key for key, found in options.items() if not found.unit)):
        text = ",".join(filter(None, (name, option)))
        choice = parse(f"{text}/mlp").g if player == "g" else parse(f"mlp/{text}").d
        assert choice.size == architecture.size
        net = choice.make(shape, dtype=jnp.float32)
        of_noise = option == "residual" or choice.network.of_noise
        latents = 32 * 32 * 3 if of_noise else 64
        x = jnp.zeros((2, latents) if player == "g" else (2, *shape))
        variables = jax.eval_shape(net.init, jax.random.key(0), x)
        y, _ = jax.eval_shape(lambda v, net=net, x=x: net.apply(v, x, train=True), variables)
        assert y.shape == ((2, *shape) if player == "g" else (2,))
        assert choice.mixes_examples == ("batch_stats" in variables)
        if choice.mapping:
            styles = lambda v, net=net, x=x: net.apply(v, x, train=True, method="mapping")  # noqa: E731
            assert jax.eval_shape(styles, variables)[0].ndim == 2


@pytest.mark.medium
@pytest.mark.parametrize("name, player", WAYS)
def test_what_the_table_says_of_labels_is_true(name, player):
    text = f"{name}/mlp" if player == "g" else f"mlp/{name}"
    choice = parse(text).g if player == "g" else parse(text).d
    latent = player == "g" and not choice.network.of_noise
    x = jnp.zeros((2, 64) if latent else (2, 32, 32, 3))
    for condition in choice.network.conditions if player == "d" else choice.network.conditions[:1]:
        net = choice.make((32, 32, 3), dtype=jnp.float32, classes=3, condition=condition)
        variables = jax.eval_shape(net.init, jax.random.key(0), x, LABELS[:2])
        y, _ = jax.eval_shape(lambda v, net=net: net.apply(v, x, LABELS[:2], train=True), variables)
        assert isinstance(y, tuple) == (condition in AUXILIARY and player == "d")


# Conditions

CONDITIONED = [
    *((name, {}) for name in NAMES),
    ("dcgan", {"conditioning": "norm"}),
    ("biggan", {"shared": 0, "hierarchical": False}),
]


@pytest.mark.medium
@pytest.mark.parametrize(
    "name, options", CONDITIONED, ids=lambda v: v if isinstance(v, str) else "-".join(v)
)
def test_generators_heed_labels(name, options):
    small = {**TINY.get(name, ({}, {}))[0], **options, "classes": 3}
    module = modules()[name].Generator((8, 8, 1), **small)
    if name == "dcgan":
        module = module.clone(widths=(8, 4))
    net = linen_net(module)
    z = jnp.tile(normal(0, 1, 9, dtype=np.float32), (3, 1))

    def images(key):
        variables = net.init(key, z, LABELS)
        # Tables of the norms are the same for all classes at the start.
        variables = stirred(variables)
        return [
            net.apply(variables, z, labels, train=False)[0] for labels in (LABELS, LABELS[::-1])
        ]

    x, y = compiled(images)(jax.random.key(0))
    np.testing.assert_allclose(x, y[::-1], rtol=0, atol=1e-5)
    assert min(float(abs(x[i] - x[j]).max()) for i, j in ((0, 1), (1, 2), (0, 2))) > 1e-3
    for labels, got in ((None, "none"), (z[:, 0], "float32")):
        with pytest.raises(ValueError, match=f"classes=3: needs integer labels .*{got}"):
            jax.eval_shape(net.init, jax.random.key(0), z, labels)


@pytest.mark.medium
@pytest.mark.parametrize("name", NAMES)
def test_every_discriminator_has_every_head(name):
    def scores(head):
        module = tiny(name, "Discriminator", classes=3, head=head, embedding=5)
        return jax.tree.map(jnp.shape, shapes(module, (8, 8, 1))[1])

    assert scores("projection") == (2,)
    assert scores("acgan") == ((2,), (2, 3))
    assert scores("d2d") == ((2,), ((2, 5), (2, 5)))
    assert scores("ucd") == ((2,), (2, 3))
    with pytest.raises(ValueError, match="classes=3: needs integer labels"):
        shapes(tiny(name, "Discriminator", classes=3), (8, 8, 1), labels=False)


def test_half_precision_heads_are_wide():
    for head in ("projection", "acgan", "d2d", "ucd"):
        module = resnet.Discriminator((8,), 1, classes=3, head=head, dtype=jnp.bfloat16)
        variables, scores, _ = shapes(module, (8, 8, 1))
        assert {a.dtype for a in jax.tree.leaves((variables, scores))} == {jnp.dtype("float32")}


class Linear(nn.Module):
    """The inputs themselves are the features."""

    head: str

    @nn.compact
    def __call__(self, x, labels, *, train):
        return heads.score(
            x,
            labels,
            name="dense0",
            classes=3,
            head=self.head,
            embedding=5,
            projection_scale=0.5,
            train=train,
        )


def test_the_projection_is_the_product_with_the_features():
    net, x = linen_net(Linear("projection")), normal(0, 3, 4, dtype=np.float32)
    params = net.init(jax.random.key(0), x, LABELS)["params"]
    dense, rows = params["dense0"], np.asarray(params["embed0"]["embedding"])
    expected = (x @ dense["kernel"])[:, 0] + dense["bias"][0] + 0.5 * (rows * x).sum(1)
    np.testing.assert_allclose(
        net.apply({"params": params}, x, LABELS, train=True)[0], expected, rtol=1e-5
    )


def test_the_logit_of_ucd_is_the_label_s_and_permutes_with_the_classes():
    net, x = linen_net(Linear("ucd")), normal(0, 3, 4, dtype=np.float32)
    params = net.init(jax.random.key(0), x, LABELS)["params"]
    assert set(params) == {"classes0"}
    params["classes0"]["bias"] = jnp.arange(3.0)
    expected = x @ params["classes0"]["kernel"] + np.arange(3.0).reshape(1, 3)
    logits, of_classes = net.apply({"params": params}, x, LABELS[::-1], train=True)[0]
    np.testing.assert_allclose(of_classes, expected, rtol=1e-5)
    np.testing.assert_array_equal(logits, of_classes[jnp.arange(3), LABELS[::-1]])
    order = jnp.array([1, 2, 0])  # class i is called order[i] from now on
    renamed = jax.tree.map(lambda p: p[..., jnp.argsort(order)], params)
    again, _ = net.apply({"params": renamed}, x, order[LABELS[::-1]], train=True)[0]
    np.testing.assert_allclose(again, logits, rtol=1e-6)


def test_the_d2d_embedding_and_proxies_have_unit_norm():
    net, x = linen_net(Linear("d2d")), normal(0, 4, 4, dtype=np.float32)
    labels = jnp.array([0, 1, 2, 2])
    params = net.init(jax.random.key(0), x, labels)["params"]
    _, (embedding, proxies) = net.apply({"params": params}, x, labels, train=True)[0]
    for rows, expected in (
        (embedding, x @ params["embedding0"]["kernel"]),
        (proxies, params["proxies0"]["embedding"][labels]),
    ):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
        scale = np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(rows, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_conditional_discriminators_meet_gradient_penalties(name):
    """Each example is scored by itself and with its label, and R1 has finite gradients."""
    net = linen_net(tiny(name, "Discriminator", classes=3))
    x = normal(0, 3, 8, 8, 1, dtype=np.float32)

    def gradients(key):
        variables = stirred(net.init(key, x, LABELS))

        def r1(params):
            def weighed(x):
                scores = net.apply({**variables, "params": params}, x, LABELS, train=True)[0]
                return jnp.sum(scores * jnp.array([0.0, 1.0, 0.0]))

            gradient = jax.grad(weighed)(x)
            return jnp.sum(jnp.square(gradient)), gradient

        scores = [net.apply(variables, x, y, train=False)[0] for y in (LABELS, LABELS[::-1])]
        return *jax.value_and_grad(r1, has_aux=True)(variables["params"]), scores

    (value, single), gradient, (scores, exchanged) = compiled(gradients)(jax.random.key(0))
    assert float(abs(scores - exchanged)[0]) > 1e-4
    np.testing.assert_allclose(scores[1], exchanged[1], rtol=1e-5)
    np.testing.assert_array_equal(single[jnp.array([0, 2])], 0)
    assert np.isfinite(value) and value > 0
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert sum(abs(leaf).max() > 0 for leaf in leaves) > len(leaves) / 3


# Spectral norm


@pytest.mark.medium
def test_power_iteration_finds_the_largest_singular_value():
    check_spectral_norm(spectral.spectral_norm)


def test_a_normalized_kernel_knows_no_scale():
    """From an epsilon under the root, 1.5e-6 gave 1.5 times the norm, and 0 gave NaN."""
    kernel, weights = normal(0, 6, 5, dtype=np.float32), normal(1, 6, 5, dtype=np.float32)
    net = linen_net(Normed())

    @jax.jit
    def normed(kernel):
        variables = net.init(jax.random.key(0), kernel)
        for _ in range(3):
            variables |= net.apply(variables, kernel, train=True)[1]
        value = lambda k: jnp.sum(weights * net.apply(variables, k, train=False)[0])  # noqa: E731
        return *jax.value_and_grad(value)(kernel), variables["spectral"]["u"]

    value, gradient, _ = normed(kernel)
    for scale in np.float32([1e-30, 1.5e-8, 1.5e-6, 1e25]):
        found, slope, _ = normed(scale * kernel)
        np.testing.assert_allclose(found, value, rtol=1e-5)
        np.testing.assert_allclose(scale * slope, gradient, rtol=1e-4, atol=1e-5)
    found, slope, u = normed(0 * kernel)
    assert found == 0 and np.isfinite(slope).all()
    np.testing.assert_allclose(np.linalg.norm(u), 1, rtol=1e-6)  # or it would be 0 for ever


def test_a_direction_knows_no_scale():
    x = normal(0, 4, 7, dtype=np.float32)
    weights = normal(1, 4, 7, dtype=np.float32)
    rows = x / np.linalg.norm(x, axis=1, keepdims=True)
    scale = np.float32([[1e-30], [1e-7], [1e4], [1e30]])
    value = lambda x: jnp.sum(weights * spectral.unit(x, -1))  # noqa: E731
    np.testing.assert_allclose(spectral.unit(scale * x, -1), rows, rtol=1e-6)
    np.testing.assert_allclose(
        scale * jax.grad(value)(scale * x), jax.grad(value)(x), rtol=1e-4, atol=1e-5
    )
    assert np.isfinite(jax.grad(value)(jnp.zeros((4, 7)))).all()
    assert (spectral.unit(jnp.zeros((4, 7)), -1) == 0).all()


@pytest.mark.medium
def test_the_gradient_is_that_of_the_largest_singular_value(x64):
    kernel = normal(0, 2, 2, 3, 5)
    weights = kernel + normal(1, 2, 2, 3, 5)
    net = linen_net(Normed())
    variables = converge(net, kernel, 2000)
    gradient = jax.grad(lambda k: jnp.sum(weights * net.apply(variables, k, train=False)[0]))(
        kernel
    )

    def value(k):
        return np.sum(weights * k / largest(np.asarray(k).reshape(-1, 5)))

    for seed in range(3):
        direction = normal(2 + seed, *kernel.shape)
        numeric = (value(kernel + 1e-6 * direction) - value(kernel - 1e-6 * direction)) / 2e-6
        np.testing.assert_allclose(jnp.vdot(gradient, direction), numeric, rtol=1e-6)
    # A constant sigma would give another gradient.
    assert float(abs(gradient - weights / largest(kernel.reshape(-1, 5))).max()) > 1e-2


@pytest.mark.medium
def test_u_moves_in_training_only():
    net = linen_net(resnet.Discriminator((8, 8)))
    x = normal(0, 2, 8, 8, 3, dtype=np.float32)
    variables = compiled(net.init)(jax.random.key(0), x)
    before = variables["spectral"]
    still, moved = compiled(
        lambda v: [net.apply(v, x, train=t)[1]["spectral"] for t in (False, True)]
    )(variables)
    jax.tree.map(np.testing.assert_array_equal, still, before)
    assert jax.tree.structure(moved) == jax.tree.structure(before)
    assert len(jax.tree.leaves(before)) == 7 and {a.ndim for a in jax.tree.leaves(before)} == {1}
    # The logit is one output, which leaves u no direction.
    changed = jax.tree.map(lambda a, b: float(abs(a - b).max()), moved, before)
    assert changed["dense0"]["u"] < 1e-6 < 1e-3 < min(jax.tree.leaves(changed["block0"]))


@pytest.mark.medium
@pytest.mark.parametrize(
    "layer, x, key",
    [
        (layers.Conv(4, spectral=True), (2, 5, 5, 3), "kernel"),
        (layers.ConvTranspose(4, 4, 2, 1, spectral=True), (2, 5, 5, 3), "kernel"),
        (layers.Dense(4, spectral=True), (2, 3), "kernel"),
        (layers.Embed(3, 4, spectral=True), None, "embedding"),
    ],
    ids=["conv", "conv_transpose", "dense", "embed"],
)
def test_spectral_layers_divide_their_kernels(layer, x, key):
    x = LABELS if x is None else normal(0, *x, dtype=np.float32)
    variables = layer.init(jax.random.key(0), x)
    kernel = variables["params"][key]
    u = variables["spectral"]["u"]
    sigma = jnp.linalg.norm(kernel.reshape(-1, kernel.shape[-1]) @ u)
    plain = layer.clone(spectral=False)
    expected = plain.apply({"params": {**variables["params"], key: kernel / sigma}}, x)
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-4, atol=1e-6)


KERNELS = [(3, 3, 4, 6), (3, 3, 4, 6), (1, 1, 5, 2), (7, 3), (4, 1)]


def conditioned(shape, seed):
    """A kernel whose largest singular value stands out, and that."""
    k = np.random.default_rng(seed)
    matrix = k.normal(size=(int(np.prod(shape[:-1])), shape[-1]))
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values[0] = 3 * values[0]
    return jnp.asarray(((left * values) @ right).reshape(shape)), values[0]


@pytest.mark.medium
@pytest.mark.parametrize("measure", [spectral.measure_each, spectral.measure_stacked])
def test_all_kernels_at_once_find_their_singular_values(measure, x64):
    kernels, sigmas = zip(*(conditioned(s, i) for i, s in enumerate(KERNELS)), strict=True)
    us = [jnp.asarray(np.random.default_rng(9).normal(size=k.shape[-1])) for k in kernels]
    matrices = [k.reshape(-1, k.shape[-1]) for k in kernels]
    for _ in range(60):
        found = measure(matrices, us, train=True)
        us = [u for _, _, u in found]
    np.testing.assert_allclose([sigma for sigma, _, _ in found], sigmas, rtol=1e-12)
    still = measure(matrices, us, train=False)
    np.testing.assert_allclose([sigma for sigma, _, _ in still], sigmas, rtol=1e-12)


@pytest.mark.medium
def test_a_stack_computes_what_each_kernel_does(x64):
    """Also of zeros, and after one iteration, when sigma is not yet a singular value."""
    kernels = [normal(i, *s) for i, s in enumerate(KERNELS)] + [jnp.zeros((3, 2))]
    matrices = [k.reshape(-1, k.shape[-1]) for k in kernels]
    us = [normal(10 + i, m.shape[1]) for i, m in enumerate(matrices)]
    for train in (False, True):
        each, stacked = (
            f(matrices, us, train=train) for f in (spectral.measure_each, spectral.measure_stacked)
        )
        close(stacked, each, 1e-12)


@pytest.mark.medium
def test_the_gradient_holds_u_and_v_fixed(x64):
    """Against central differences of ``W / (v^T W u)``."""
    kernels = [normal(i, *s) for i, s in enumerate(KERNELS)]
    us = [normal(10 + i, k.shape[-1]) for i, k in enumerate(kernels)]
    weights = [normal(20 + i, *k.shape) for i, k in enumerate(kernels)]
    matrices = [k.reshape(-1, k.shape[-1]) for k in kernels]
    fixed = [(v, u) for _, v, u in spectral.measure_each(matrices, us, train=True)]

    def value(kernels):
        divided, _ = spectral.divide(kernels, us, train=True)
        return sum(jnp.sum(w * k) for w, k in zip(weights, divided, strict=True))

    def known(kernels):
        total = 0.0
        for w, k, (v, u) in zip(weights, kernels, fixed, strict=True):
            total += np.sum(w * k) / (v @ np.reshape(k, (-1, k.shape[-1])) @ u)
        return total

    np.testing.assert_allclose(value(kernels), known(kernels), rtol=1e-12)
    directions = [normal(30 + i, *k.shape) for i, k in enumerate(kernels)]
    moved = [[k + h * d for k, d in zip(kernels, directions, strict=True)] for h in (1e-6, -1e-6)]
    numeric = (known(moved[0]) - known(moved[1])) / 2e-6
    found = sum(map(jnp.vdot, jax.grad(value)(kernels), directions))
    np.testing.assert_allclose(found, numeric, rtol=1e-7)


def test_a_stack_is_not_mostly_zeros():
    sngan = [(1152, 128)] * 7 + [(27, 128), (3, 128), (128, 128), (128, 1)]
    assert spectral.stacks(sngan, ["float32"] * 11) == [[0, 1, 2, 3, 4, 5, 6, 9, 7, 8, 10]]
    wide = [(3456, 384), (20, 6144), (3456, 384)]
    assert spectral.stacks(wide, ["float32"] * 3) == [[0, 2], [1]]
    assert spectral.stacks([(2, 2), (2, 2)], ["float32", "float64"]) == [[0], [1]]


@pytest.mark.medium
def test_a_network_is_normalized_as_its_layers_are(x64):
    """By ``linen_net``, all at once, and by the module, layer by layer: the same logits, gradients and u."""
    module = resnet.Discriminator((8, 8), dtype=jnp.float64)
    net, x = linen_net(module), normal(0, 2, 8, 8, 3)
    variables = compiled(net.init)(jax.random.key(0), x)

    def at_once(params):
        out, kept = net.apply({**variables, "params": params}, x, train=True)
        return jnp.sum(jnp.sin(out)), kept

    def layerwise(params):
        given = {**variables, "params": params}
        out, kept = module.apply(given, x, train=True, mutable=["spectral"])
        return jnp.sum(jnp.sin(out)), dict(kept)

    def each(params):
        found = (jax.value_and_grad(f, has_aux=True)(params) for f in (at_once, layerwise))
        members = jax.vmap(at_once)(jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params))
        return *found, members

    one, other, (values, kept) = compiled(each)(variables["params"])
    assert jax.tree.structure(one) == jax.tree.structure(other)
    close(one, other, 1e-12)
    assert {*one[0][1]} == {"spectral"}
    # A member of a vmapped group is what it is by itself.
    np.testing.assert_allclose(values[0], one[0][0], rtol=1e-12)
    close(jax.tree.map(lambda u: u[0], kept), one[0][1], 1e-12)


def test_spectral_norms_of_narrow_networks_are_not_narrow():
    net = linen_net(resnet.Discriminator((8, 8), dtype=jnp.bfloat16))
    x = jnp.zeros((2, 8, 8, 3))
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    _, kept = jax.eval_shape(lambda v: net.apply(v, x, train=True), variables)
    assert {u.dtype for u in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    shapes = lambda tree: jax.tree.map(lambda u: u.shape, tree)  # noqa: E731
    assert shapes(kept["spectral"]) == shapes(variables["spectral"])


# Grouped convolutions


def lax_grouped(x, w, groups):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


GROUPED = [
    (3, 2, 4, (3, 3)),
    (4, 16, 16, (3, 3)),
    (3, 16, 8, (3, 1)),
    (1, 3, 5, (5, 3)),
    (2, 40, 3, (1, 1)),
]


@pytest.mark.medium
@pytest.mark.parametrize("groups, i, o, k", GROUPED)
def test_grouped_conv_and_its_derivatives_are_those_of_lax(x64, groups, i, o, k):
    x, kernel = normal(0, 2, 5, 4, groups * i), normal(1, *k, i, groups * o)
    ours = derivatives(lambda x, w: conv.grouped_conv(x, w, groups=groups), x, kernel)
    close(ours, derivatives(lambda x, w: lax_grouped(x, w, groups), x, kernel), 1e-12)


def test_grouped_conv_is_mapped_like_a_loop(x64):
    x, kernel = normal(0, 2, 3, 5, 4, 6), normal(1, 2, 3, 3, 2, 3)

    def f(x, w):
        return conv.grouped_conv(x, w, groups=3)

    both = jax.vmap(f)(x, kernel)
    close(both, jnp.stack([f(x[i], kernel[i]) for i in range(2)]), 1e-12)
    close(jax.vmap(f, (0, None))(x, kernel[0]), jnp.stack([f(a, kernel[0]) for a in x]), 1e-12)


def test_grouped_conv_is_native_but_on_cpu():
    x, kernel = jnp.ones((2, 4, 4, 64)), jnp.ones((3, 3, 16, 64))

    def gradients(f):
        return jax.grad(lambda x, w: jnp.sum(jnp.sin(f(x, w))), argnums=(0, 1))

    ours = gradients(lambda x, w: conv.grouped_conv(x, w, groups=4))
    count = "feature_group_count = 4"
    for platform in ("cuda", "tpu"):
        assert sum(count in line for line in convolutions(ours, platform, x, kernel)) >= 2
    assert not any(count in line for line in convolutions(ours, "cpu", x, kernel))


@pytest.mark.parametrize(
    "x, kernel, groups",
    [
        ((1, 4, 4, 6), (3, 3, 3, 6), 3),
        ((1, 4, 4, 6), (2, 3, 2, 6), 3),
        ((1, 4, 4, 6), (3, 3, 2, 5), 3),
    ],
)
def test_impossible_groups_are_refused(x, kernel, groups):
    with pytest.raises(ValueError, match="grouped_conv: "):
        conv.grouped_conv(jnp.ones(x), jnp.ones(kernel), groups=groups)


# Conditional batch norm


def test_conditional_batch_norm_has_a_row_for_each_class():
    x, module = normal(0, 3, 2, 2, 4, dtype=np.float32), layers.BatchNorm(classes=3)
    variables = module.init(jax.random.key(0), x, LABELS, train=False)
    assert jax.tree.map(jnp.shape, variables["params"]) == {"scale": (3, 4), "bias": (3, 4)}
    params = {"scale": normal(1, 3, 4, dtype=np.float32), "bias": normal(2, 3, 4, dtype=np.float32)}
    y, _ = module.apply(
        {**variables, "params": params}, x, LABELS[::-1], train=True, mutable=["batch_stats"]
    )
    unit = (x - x.mean((0, 1, 2), keepdims=True)) / np.sqrt(x.var((0, 1, 2), keepdims=True) + 1e-5)
    rows = {name: np.asarray(p)[::-1].reshape(3, 1, 1, 4) for name, p in params.items()}
    np.testing.assert_allclose(y, unit * rows["scale"] + rows["bias"], rtol=0, atol=1e-5)


def test_lookup_is_indexing_and_zero_outside():
    table = normal(0, 3, 4, dtype=np.float32)
    rows = layers.lookup(table, jnp.array([2, 0, 3, -1]))
    np.testing.assert_array_equal(rows, [table[2], table[0], np.zeros(4), np.zeros(4)])


# Self-attention


def test_self_attention_starts_as_the_identity_and_is_its_equation():
    x = normal(0, 2, 4, 4, 16, dtype=np.float32)
    net = linen_net(blocks.SelfAttention(spectral=False))
    variables = net.init(jax.random.key(0), x)
    np.testing.assert_array_equal(net.apply(variables, x, train=True)[0], x)
    variables["params"]["gamma"] = jnp.float32(0.5)
    k = [np.asarray(variables["params"][f"conv{i}"]["kernel"])[0, 0] for i in range(4)]

    def pooled(y):
        return y.reshape(2, 2, 2, 2, 2, -1).max((2, 4)).reshape(2, 4, -1)

    a = np.asarray(x)
    logits = np.einsum("bqc,bkc->bqk", (a @ k[0]).reshape(2, 16, -1), pooled(a @ k[1]))
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    y = np.einsum("bqk,bkc->bqc", weights, pooled(a @ k[2])).reshape(2, 4, 4, -1)
    np.testing.assert_allclose(
        net.apply(variables, x, train=True)[0], a + 0.5 * y @ k[3], rtol=1e-4, atol=1e-5
    )


# R3GAN


def test_r3gan_blocks_start_as_the_identity_with_fixup_scales():
    x = normal(0, 2, 4, 4, 64, dtype=np.float32)
    variables = compiled(r3gan.Block(16).init)(jax.random.key(0), x)
    np.testing.assert_array_equal(r3gan.Block(16).apply(variables, x), x)
    p = variables["params"]
    for name, fan_in in (("conv0", 64), ("conv1", 9 * 16)):
        expected = np.sqrt(2 / 1.04) * 16**-0.25 / np.sqrt(fan_in)
        np.testing.assert_allclose(p[name]["kernel"].std(), expected, rtol=0.03)


def test_r3gan_resamples_by_121(x64):
    x = normal(0, 2, 3, 5, 4)
    kernel = np.einsum("i,j,cd->ijcd", [0.5, 1, 0.5], [0.5, 1, 0.5], np.eye(4))
    up = lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        ((2, 1), (2, 1)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(resample.upsample121(x), up, atol=1e-14)
    down = conv.conv(up, jnp.asarray(kernel / 4), stride=2, padding=((1, 0), (1, 0)))
    np.testing.assert_allclose(resample.downsample121(up), down, atol=1e-14)


# StyleGAN2


@pytest.mark.medium
def test_modulation_is_a_kernel_for_each_example():
    x, w = normal(0, 3, 5, 5, 4, dtype=np.float32), normal(1, 3, 6, dtype=np.float32)
    module = stylegan2.ModulatedConv(7)
    params = module.init(jax.random.key(0), x, w)["params"]
    s = 1 + w @ params["style"]["kernel"] / np.sqrt(6)
    y = module.apply({"params": params}, x, w)
    for i in range(3):
        kernel = params["kernel"] / np.sqrt(36) * s[i].reshape(1, 1, 4, 1)
        kernel = kernel / np.sqrt(np.square(kernel).sum((0, 1, 2), keepdims=True) + 1e-8)
        np.testing.assert_allclose(y[i], conv.conv(x[i][None], kernel)[0], rtol=0, atol=1e-5)


@pytest.mark.medium
def test_demodulated_outputs_have_unit_variance():
    """White noise of unit variance stays so for any style; without demodulation it does not."""
    x, w = normal(0, 2, 48, 48, 8, dtype=np.float32), 3 * normal(1, 2, 6, dtype=np.float32)
    module = stylegan2.ModulatedConv(5)
    params = module.init(jax.random.key(0), x, w)

    def variance(module):
        return np.asarray(module.apply(params, x, w))[:, 1:-1, 1:-1].var((1, 2))

    np.testing.assert_allclose(variance(module), 1, rtol=0.1)
    assert abs(variance(module.clone(demodulate=False)) - 1).max() > 0.5


@pytest.mark.medium
def test_mapping_and_synthesis_are_the_generator():
    module = stylegan2.Generator((8, 8, 1), (8, 8), styles=16, depth=2, classes=3)
    z = normal(0, 3, 5, dtype=np.float32)
    variables = compiled(module.init)(jax.random.key(0), z, LABELS)

    def halves(variables):
        w, longer = (module.apply(variables, f * z, LABELS, method="mapping") for f in (1, 3))
        x = module.apply(variables, w, method="synthesis")
        return w, longer, x, module.apply(variables, z, LABELS, train=True)

    w, longer, x, whole = compiled(halves)(variables)
    assert w.shape == (3, 16)
    np.testing.assert_allclose(x, whole, rtol=0, atol=1e-6)
    np.testing.assert_allclose(longer, w, atol=1e-4)  # the mapping sees directions only
    assert set(variables["params"]) == {"mapper", "synthesizer"}


def test_size_of_stylegan2_scales_its_channels():
    """The default size is the network without one; another one scales all channels and the styles."""

    def widths(text):
        network = parse(text).g.make((32, 32, 3), dtype=jnp.float32)
        shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 7)))["params"]
        convs = [v["kernel"].shape[3] for k, v in shapes["synthesizer"].items() if "conv" in k]
        return convs, shapes["mapper"]["dense7"]["kernel"].shape

    assert widths("stylegan2") == widths("stylegan2:256")
    assert widths("stylegan2") == ([256, 256, 256, 256, 256, 128, 128], (512, 512))
    assert widths("stylegan2:12") == ([12, 12, 12, 12, 12, 6, 6], (24, 24))


@pytest.mark.medium
def test_mapping_parameters_have_their_own_learning_rate():
    module = stylegan2.Generator((8, 8, 1), (8, 8), styles=64, depth=2)
    p = compiled(module.init)(jax.random.key(0), jnp.ones((1, 64)))["params"]
    np.testing.assert_allclose(p["mapper"]["dense1"]["kernel"].std(), 100, rtol=0.05)
    np.testing.assert_allclose(p["synthesizer"]["conv1"]["kernel"].std(), 1, rtol=0.1)


@pytest.mark.medium
def test_downsample1331_is_the_adjoint_of_upsample2(x64):
    y = normal(0, 2, 6, 4, 3)
    x = jax.ShapeDtypeStruct((2, 3, 2, 3), y.dtype)
    adjoint = jax.linear_transpose(resample.upsample2, x)(y)[0]
    np.testing.assert_allclose(resample.downsample1331(y), adjoint / 4, atol=1e-14)


def test_minibatch_deviation_is_that_of_the_groups():
    x = normal(0, 4, 2, 2, 3, dtype=np.float32)
    y = np.asarray(stylegan2.minibatch_deviation(x, 2))
    np.testing.assert_array_equal(y[..., :3], x)
    for i, j in ((0, 2), (1, 3)):
        expected = np.stack([x[i], x[j]]).std(0).mean()
        np.testing.assert_allclose(y[jnp.array([i, j]), ..., 3], expected, rtol=1e-4)


@pytest.mark.medium
@pytest.mark.parametrize("classes", [0, 3])
def test_truncated_styles(classes):
    """psi = 1 is G itself; psi = 0 is one image, of each class."""
    net = linen_net(tiny("stylegan2", "Generator", (8, 8, 1), classes=classes))
    latents = normal_latents(4)
    z, labels = latents(jax.random.key(1), 6), (jnp.arange(6) % 3,) if classes else ()
    variables = compiled(net.init)(jax.random.key(0), z, *labels)

    def images(sampler):
        return np.asarray(
            compiled(lambda *a: sampler.apply(*a, train=False)[0])(variables, z, *labels)
        )

    options = dict(classes=classes, draws=16)
    np.testing.assert_allclose(
        images(truncated(net, 1.0, latents, **options)), images(net), atol=1e-5
    )
    still = images(truncated(net, 0.0, latents, **options))
    same = [np.allclose(still[0], other, atol=1e-6) for other in still]
    assert same == ([True, False, False, True, False, False] if classes else [True] * 6)


def test_the_mean_style_is_that_of_each_row_s_class():
    """``w' = m_y + (w - m_y) / 4``, the mean of every class taken once, whatever the number of rows."""

    def apply(v, x, *labels, train, method):
        if method == "synthesis":
            return x, {}
        return x + 10.0 * labels[0].reshape(-1, 1) ** 2, {}

    latents = normal_latents(4)
    sampler = truncated(Net(lambda key, z: {}, apply), 0.25, latents, classes=3, draws=16)
    z, y = latents(jax.random.key(1), 6), jnp.array([2, 0, 0, 2, 1, 2])
    found, _ = sampler.apply({}, z, y, train=False)
    place = 10.0 * np.square(y).reshape(-1, 1)
    mean = np.mean(latents(jax.random.key(0), 16), 0, keepdims=True) + place
    np.testing.assert_allclose(found, mean + 0.25 * (z + place - mean), rtol=1e-5)
    mapped = jax.make_jaxpr(lambda y: sampler.apply({}, z, y, train=False)[0])(y).eqns
    lengths = [eqn.params["length"] for eqn in mapped if eqn.primitive.name == "scan"]
    assert lengths == [3]


def test_labels_as_channels():
    """A linear D sees one constant map per class; gradients at x are those of the unconditional D."""
    inner = Net(
        lambda key, x: {"params": jnp.arange(1.0, x.shape[-1] + 1)},
        lambda v, x, train: (jnp.sum(x * v["params"].reshape(1, 1, 1, -1), (1, 2, 3)), {}),
    )
    net, x, y = labeled(inner, 3), jnp.ones((2, 4, 5, 1)), jnp.array([2, 0])
    variables = net.init(jax.random.key(0), x, y)
    assert variables["params"].shape == (4,)
    logits, _ = net.apply(variables, x, y, train=True)
    np.testing.assert_allclose(logits, [20 * (1 + 4), 20 * (1 + 2)])
    slope = jax.grad(lambda x: jnp.sum(net.apply(variables, x, y, train=True)[0]))(x)
    np.testing.assert_array_equal(slope, jnp.ones_like(x))


@pytest.mark.medium
def test_labels_of_a_discriminator_that_flattens():
    """The first layer of a perceptron sees what it would see of maps whose kernels are alike at every pixel."""
    perceptron = linen_net(mlp.Discriminator(widths=(5,)))
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
    y = jnp.array([2, 0, 1])
    flat, maps = labeled(perceptron, 3, flat=True), labeled(perceptron, 3)
    variables = flat.init(jax.random.key(1), x, y)
    kernel = variables["params"]["dense0"]["kernel"]
    assert kernel.shape == (4 * 4 * 2 + 3, 5)
    image, classes = kernel[:-3].reshape(4, 4, 2, 5), kernel[-3:] / 4  # the root of 16 pixels
    spread = jnp.broadcast_to(classes, (4, 4, 3, 5))
    whole = jnp.concatenate([image, spread], axis=2).reshape(-1, 5)
    first = {**variables["params"]["dense0"], "kernel": whole}
    same = {"params": {**variables["params"], "dense0": first}}
    found = [
        net.apply(each, x, y, train=True)[0] for net, each in ((flat, variables), (maps, same))
    ]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


def test_energy_is_the_reconstruction_error():
    shifted = Net(
        lambda key, x: {"params": jnp.zeros(())}, lambda v, x, train: (x + v["params"], {})
    )
    logits, _ = energy(shifted).apply({"params": -0.5}, jnp.ones((3, 4, 4, 1)), train=True)
    np.testing.assert_allclose(logits, [-0.5] * 3)
