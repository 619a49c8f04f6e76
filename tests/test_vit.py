"""Transformers as players: published counts, blocks against NumPy and finite differences, places, times, the start."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from checks.networks import close, compiled, normal, size, stirred

from bpgan.algorithms import game, gan
from bpgan.losses import LOSSES
from bpgan.nets import attention, linen_net, vit
from bpgan.nets.architecture import parse
from bpgan.penalties import PENALTIES, weighted

LABELS = jnp.array([0, 2, 1])

# Parameter counts

SIZES = {  # width, depth, heads, patch, channels, side, classes
    "B/2": (768, 12, 12, 2, 4, 32, 1000),
    "M/2": (1024, 16, 16, 2, 4, 32, 1000),
    "L/2": (1024, 24, 16, 2, 4, 32, 1000),
    "XL/2": (1152, 28, 16, 2, 4, 32, 1000),
    "vit28-tiny": (96, 4, 4, 4, 1, 28, 10),
    "vit28": (192, 6, 6, 4, 1, 28, 10),
    "vit32": (256, 8, 8, 4, 3, 32, 10),
    "vit64": (384, 12, 6, 8, 3, 64, 0),
}
# Of G and of D, by the number of times. Those of latents of ImageNet round to table 10 of arXiv:2511.22475 once the
# 256 fixed positions, which are no parameters here, are added.
COUNTS = {
    "B/2": ((129514768, 130302736, 131090704), (128322816, 129110784)),
    "M/2": ((305392656, 306705424, 308018192), (303279104, 304591872)),
    "L/2": ((456510480, 457823248, 459136016), (454396928, 455709696)),
    "XL/2": ((673190800, 674815120, 676439440), (670518144, 672142464)),
    "vit28-tiny": ((692080,), (672096,)),
    "vit28": ((4080976,), (4004160,)),
    "vit32": ((9626928,), (9483520,)),
    "vit64": ((32363328,), (31994496,)),
}


def count(module, *example):
    """Parameters for inputs of such a shape, times and labels; nothing is computed."""
    given = [jax.ShapeDtypeStruct((2, *example), jnp.float32)]
    given += [jax.ShapeDtypeStruct((2,), jnp.float32)] * module.times
    given += [jax.ShapeDtypeStruct((2,), jnp.int32)]
    return size(jax.eval_shape(linen_net(module).init, jax.random.key(0), *given)["params"])


@pytest.mark.medium
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.medium if n.endswith("L/2") else ()) for n in SIZES],
)
def test_parameter_counts(name):
    width, depth, heads, patch, channels, side, classes = SIZES[name]
    options = dict(width=width, depth=depth, heads=heads, patch=patch, classes=classes)
    shape = (side, side, channels)
    of_g, of_d = COUNTS[name]
    for times, expected in enumerate(of_g):
        assert count(vit.Generator(shape, times=times, **options), side**2 * channels) == expected
    for times, expected in enumerate(of_d):
        assert count(vit.Discriminator(times=times, **options), *shape) == expected


# Patches and places


@pytest.mark.medium
@pytest.mark.parametrize("side, patch", [(28, 4), (32, 2), (28, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_images_again(side, patch, channels):
    shape = (side, side + patch, channels)
    x = normal(0, 2, *shape, dtype=np.float32)
    tokens = vit.patchify(x, patch)
    assert tokens.shape == (2, (side // patch) * (side // patch + 1), patch**2 * channels)
    np.testing.assert_array_equal(vit.unpatchify(tokens, shape, patch), x)
    # The token of the second row and third column of patches, its pixels row by row, channels last.
    place = 1 * (side // patch + 1) + 2
    rows, columns = slice(patch, 2 * patch), slice(2 * patch, 3 * patch)
    np.testing.assert_array_equal(tokens[:, place], x[:, rows, columns].reshape(2, -1))


def test_what_does_not_fit_is_refused():
    x, z = jnp.zeros((2, 28, 28, 1)), jnp.zeros((2, 64))
    for module, example, message in (
        (vit.Discriminator(patch=5), x, "patch=5: must divide the image size 28x28"),
        (vit.Generator((28, 30, 1), patch=4), z, "patch=4: must divide the image size 28x30"),
        (vit.Discriminator(width=18), x, "width=18: must be a multiple of 4 and of 1 heads"),
        (vit.Discriminator(width=20, heads=3), x, "width=20: must be a multiple of 4 and of 3"),
        (vit.Discriminator(width=12, heads=2, rope=True), x, "multiple of 4, got 6"),
        (vit.Generator((28, 28, 1), residual=True), z, "needs latents of the 784 numbers of x"),
        (vit.Discriminator(times=1), x, "times=1: needs as many arrays"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            jax.eval_shape(linen_net(module).init, jax.random.key(0), example)
        assert "\n" not in str(error.value)


def test_positions_are_the_sines_of_rows_and_columns():
    found = np.asarray(attention.grid_positions(3, 5, 16)).reshape(3, 5, 16)
    for row, column in ((0, 0), (2, 1), (1, 4)):
        angle = np.outer([row, column], 1e4 ** (-np.arange(4) / 4))
        expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=1).ravel()
        np.testing.assert_allclose(found[row, column], expected, atol=1e-6)


def test_turned_products_depend_on_differences_of_places(x64):
    """On a grid of 4 x 5, for each pair of places that differ by (2, -1); other differences have other products."""
    angles = attention.grid_angles(4, 5, 8)
    q, k = normal(0, 8), normal(1, 8)

    def turned(x):
        rows = jnp.broadcast_to(x.reshape(1, 1, 1, 8), (1, 1, 20, 8))
        return np.asarray(attention.rotate(rows, angles)).reshape(4, 5, 8)

    queries, keys = turned(q), turned(k)
    products = [
        queries[row, column] @ keys[row + 2, column - 1] for row in (0, 1) for column in range(1, 5)
    ]
    np.testing.assert_allclose(products, products[0], rtol=1e-12)
    for row, column in ((2, 1), (1, 2), (3, 1)):
        assert abs(queries[0, 2] @ keys[row, column] - products[0]) > 1e-3 or (row, column) == (
            2,
            1,
        )
    np.testing.assert_allclose(np.linalg.norm(queries, axis=-1), np.linalg.norm(q), rtol=1e-12)
    np.testing.assert_array_equal(queries[0, 0], q)


# Blocks


def norm(x, rms):
    x = x if rms else x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def turned(x, angles):
    """By complex numbers: the pair of i and i + f/2 is one."""
    half = x.shape[-1] // 2
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], axis=-1)


def block(p, x, c, heads, angles=None, qk_norm=False, rms=False):
    """In NumPy, one example ``x[t, f]``, written out."""
    p = jax.tree.map(np.asarray, p)
    dense = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    s1, k1, g1, s2, k2, g2 = np.split(dense("modulation", c * scipy.special.expit(c)), 6)
    h = dense("inputs", norm(x, rms) * (1 + k1) + s1)
    q, k, v = (part.reshape(len(x), heads, -1) for part in np.split(h, 3, axis=1))
    if qk_norm:
        q, k = norm(q, True), norm(k, True)
    if angles is not None:
        q, k = turned(q, angles[:, None]), turned(k, angles[:, None])
    scores = np.einsum("qhf,khf->hqk", q, k) / np.sqrt(q.shape[-1])
    found = np.einsum("hqk,khf->qhf", scipy.special.softmax(scores, -1), v)
    x = x + g1 * dense("outputs", found.reshape(x.shape))
    h = gelu(dense("hidden", norm(x, rms) * (1 + k2) + s2))
    return x + g2 * dense("back", h)


KINDS = [
    {},
    {"qk_norm": True},
    pytest.param({"qk_norm": True, "rms": True, "rope": True}, marks=pytest.mark.medium),
]


def a_block(rope=False, **kind):
    """A block with other parameters than at the start, its inputs, and its equation."""
    module = vit.Block(2, **kind, dtype="float64")
    angles = attention.grid_angles(2, 3, 4) if rope else None
    x, c = normal(0, 3, 6, 8), normal(1, 3, 8)
    variables = stirred(compiled(module.init)(jax.random.key(0), x, c, angles))
    return module, variables, x, c, angles


@pytest.mark.medium
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_its_equation(x64, kind):
    module, variables, x, c, angles = a_block(**kind)
    kind = {name: value for name, value in kind.items() if name != "rope"}
    expected = [
        block(variables["params"], np.asarray(x[i]), np.asarray(c[i]), 2, angles, **kind)
        for i in range(3)
    ]
    found = compiled(module.apply)(variables, x, c, angles)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert np.abs(found - x).max() > 0.1


def test_tokens_change_places_with_their_positions(x64):
    module, variables, x, c, angles = a_block(rope=True, qk_norm=True)
    order = jnp.array([3, 0, 5, 1, 2, 4])
    call = compiled(lambda x, angles: module.apply(variables, x, c, angles))
    y = call(x, angles)
    np.testing.assert_allclose(call(x[:, order], angles[order]), y[:, order], rtol=1e-10)
    assert np.abs(call(x[:, order], angles) - y[:, order]).max() > 1e-3  # the control


@pytest.mark.medium
@pytest.mark.parametrize("kind", [{"qk_norm": True, "rope": True}, {"rms": True}])
def test_derivatives_of_a_block_are_central_differences(x64, kind):
    """Its jvp, and the gradient of what a jvp comes to, as losses of continuous flows take it."""
    module, variables, x, c, angles = a_block(**kind)
    tangent, other, weights = normal(2, *x.shape), normal(3, *x.shape), normal(4, *x.shape)
    call = lambda x: module.apply(variables, x, c, angles)  # noqa: E731

    def along(x):
        return jnp.sum(jnp.sin(weights * jax.jvp(call, (x,), (tangent,))[1]))

    def numbers(x):
        y, dy = jax.jvp(call, (x,), (tangent,))
        slope = jnp.sum(jax.grad(along)(x) * other)
        return y, dy, along(x), slope

    numbers, step = compiled(numbers), 1e-5
    _, dy, _, slope = numbers(x)
    up, down = numbers(x + step * tangent)[0], numbers(x - step * tangent)[0]
    close(dy, (up - down) / (2 * step), 1e-6)
    up, down = numbers(x + step * other)[2], numbers(x - step * other)[2]
    np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-6)


# Networks


def tiny_d(**options):
    return vit.Discriminator(width=8, depth=1, heads=2, patch=2, dtype="float64", **options)


@pytest.mark.medium
def test_a_discriminator_is_its_equation(x64):
    """The class's token stands before the others and has no place: it is not turned."""
    net = linen_net(tiny_d(classes=3, rope=True, qk_norm=True))
    x = normal(0, 3, 4, 6, 1)
    variables = stirred(compiled(net.init)(jax.random.key(0), x, LABELS))
    found = compiled(lambda v: net.apply(v, x, LABELS, train=True)[0])(variables)
    p = jax.tree.map(np.asarray, variables["params"])
    tokens = np.asarray(vit.patchify(x, 2)) @ p["patches"]["kernel"] + p["patches"]["bias"]
    tokens = tokens + np.asarray(attention.grid_positions(2, 3, 8))
    angles = np.concatenate([np.zeros((1, 2)), attention.grid_angles(2, 3, 4)])
    for i, label in enumerate(LABELS):
        h = np.concatenate([p["token"][None], tokens[i]])
        c = p["labels"]["embedding"][label]
        h = block(p["block0"], h, c, 2, angles, qk_norm=True)
        logit = norm(h[0], False) @ p["dense0"]["kernel"][:, 0]
        np.testing.assert_allclose(found[i], logit, rtol=1e-9)


@pytest.mark.medium
@pytest.mark.parametrize("latents", [24, 5])
def test_a_generator_is_its_equation(x64, latents):
    """Of noise as large as an image, and of other latents, which modulate."""
    module = vit.Generator(
        (4, 6, 1), width=8, depth=1, heads=2, patch=2, classes=3, dtype="float64"
    )
    z = normal(0, 3, latents)
    net = linen_net(module)
    variables = stirred(compiled(net.init)(jax.random.key(0), z, LABELS))
    p = jax.tree.map(np.asarray, variables["params"])
    dense = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    silu = lambda x: x * scipy.special.expit(x)  # noqa: E731
    call = compiled(lambda z: net.apply(variables, z, LABELS, train=True)[0])
    found = call(z)
    for i, label in enumerate(LABELS):
        c, h = p["labels"]["embedding"][label], np.asarray(attention.grid_positions(2, 3, 8))
        if latents == 24:
            noise = np.asarray(vit.patchify(z[i].reshape(1, 4, 6, 1), 2))[0]
            h = h + dense("patches", noise)
        else:
            c = c + dense("latents_out", silu(dense("latents_in", np.asarray(z[i]))))
        h = block(p["block0"], h, c, 2)
        shift, scale = np.split(dense("modulation", silu(c)), 2)
        h = dense("pixels", norm(h, False) * (1 + scale) + shift)
        expected = vit.unpatchify(jnp.asarray(h)[None], (4, 6, 1), 2)[0]
        np.testing.assert_allclose(found[i], expected, rtol=1e-8, atol=1e-12)
    if latents == 24:  # in either shape, and subtracted if asked
        shaped = z.reshape(3, 4, 6, 1)
        np.testing.assert_allclose(call(shaped), found, rtol=1e-12)
        net = linen_net(module.clone(residual=True))
        subtracted = compiled(lambda z: net.apply(variables, z, LABELS, train=True)[0])(z)
        np.testing.assert_allclose(subtracted, shaped - found, rtol=1e-12)


@pytest.mark.medium
def test_times_modulate(x64):
    """Each by itself, before the labels; a time is what its 256 sines and cosines of 1000 t make of a label's row."""
    net = linen_net(tiny_d(times=2, classes=3))
    x, s, t = normal(0, 3, 4, 4, 1), jnp.array([0.2, 0.5, 0.9]), jnp.array([0.1, 0.4, 0.5])
    variables = stirred(compiled(net.init)(jax.random.key(0), x, s, t, LABELS))
    call = compiled(lambda v, *given: net.apply(v, x, *given, train=True)[0])
    y = call(variables, s, t, LABELS)
    for given in ((s + 0.05, t, LABELS), (s, t + 0.05, LABELS), (t, s, LABELS)):
        assert np.abs(call(variables, *given) - y).min() > 1e-6
    p = jax.tree.map(np.asarray, variables["params"])
    dense = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    rows = np.zeros((3, 8))
    for name, times in (("time0", s), ("time1", t)):
        angle = 1000 * np.outer(times, 1e4 ** (-np.arange(128) / 128))
        h = dense(f"{name}_in", np.concatenate([np.sin(angle), np.cos(angle)], axis=1))
        rows += dense(f"{name}_out", h * scipy.special.expit(h))
    others = {name: value for name, value in variables["params"].items() if "time" not in name}
    table = {"embedding": rows[jnp.argsort(LABELS)] + p["labels"]["embedding"]}
    plain = linen_net(tiny_d(classes=3))
    without = compiled(lambda v: plain.apply(v, x, LABELS, train=True)[0])
    np.testing.assert_allclose(without({"params": {**others, "labels": table}}), y, rtol=1e-9)


@pytest.mark.medium
def test_r1_is_that_of_each_example(x64):
    net = linen_net(tiny_d(qk_norm=True))
    x = normal(0, 3, 4, 4, 1)
    variables = stirred(compiled(net.init)(jax.random.key(0), x))

    def logit(x):
        return net.apply(variables, x[None], train=True)[0][0]

    def gradients(x):
        whole = jax.grad(lambda x: jnp.sum(net.apply(variables, x, train=True)[0]))(x)
        return whole, jax.vmap(jax.grad(logit))(x)

    whole, each = compiled(gradients)(x)
    np.testing.assert_allclose(whole, each, rtol=1e-10, atol=1e-14)
    assert float(jnp.abs(each).max()) > 1e-3


# The start, and narrow types


def players(dtype, residual=False, **options):
    text = "vit:16,depth=1,heads=2,patch=4,qknorm" + ",residual" * residual
    choice = parse(text)
    made = [
        c.make((8, 8, 1), dtype=jnp.dtype(dtype), classes=3, condition="modulation") for c in choice
    ]
    networks = gan.Networks(*made, gan.normal_latents(64), (8, 8, 1))
    optimizers = gan.Optimizers(optax.adam(1e-3, 0.0, 0.9), optax.adam(1e-3, 0.0, 0.9))
    return gan.make(
        networks, LOSSES["relativistic"], optimizers, condition=gan.Condition(3), **options
    )


@pytest.mark.medium
@pytest.mark.parametrize("residual", [pytest.param(False, marks=pytest.mark.slow), True])
def test_at_the_start_nothing_is_told_apart(residual):
    """G is 0 or the identity, D does not see x: no slope, and both losses are log 2."""
    penalty = weighted(1.0, PENALTIES["r1"])
    algorithm = players("float32", residual, penalties=[penalty], rule=game.RULES["simultaneous"])
    batch = {"x": normal(0, 4, 8, 8, 1, dtype=np.float32), "y": jnp.array([0, 1, 2, 1])}

    z = normal(1, 3, 64, dtype=np.float32)

    def numbers(keys):
        state = algorithm.init(keys[0])
        return algorithm.sample(state, keys[1], 3, z=z), algorithm.step(state, batch, keys[2])[1]

    x, metrics = compiled(numbers)(jax.random.split(jax.random.key(0), 3))
    np.testing.assert_array_equal(x, z.reshape(3, 8, 8, 1) if residual else jnp.zeros_like(x))
    assert metrics["d/penalty"] == 0
    for name in ("d/loss", "g/loss"):
        np.testing.assert_allclose(metrics[name], np.log(2), rtol=1e-6)


@pytest.mark.medium
def test_bfloat16_stays_finite():
    algorithm = players("bfloat16")
    batch = {"x": normal(0, 4, 8, 8, 1, dtype=np.float32), "y": jnp.array([0, 1, 2, 1])}

    def steps(key):
        state = algorithm.init(key)
        step = lambda _, state: algorithm.step(state, batch, jax.random.key(2))[0]  # noqa: E731
        return jax.lax.fori_loop(0, 200, step, state)

    state = compiled(steps)(jax.random.key(0))
    leaves = jax.tree.leaves({name: player.params for name, player in state.players.items()})
    assert all(np.isfinite(leaf).all() and leaf.dtype == jnp.float32 for leaf in leaves)


def test_norms_of_queries_and_keys_bound_the_scores():
    """However large the tokens: else bfloat16 would lose the differences of scores."""
    x, width = 1e4 * normal(0, 1, 5, 8, dtype=np.float32), 4

    def largest(qk_norm):
        """Of the scores of a block, through what it attends with."""
        found = []

        def attend(query, key, value, seen=None):
            scores = jnp.einsum("bhqf,bhkf->bhqk", query, key) / np.sqrt(width)
            found.append(jnp.abs(scores).max())
            return value

        def run(key):
            module = vit.Block(2, qk_norm=qk_norm)
            module.apply(stirred(module.init(key, x, x[:, 0])), x, x[:, 0])
            return found[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "attend", attend)
            return compiled(run)(jax.random.key(0))

    assert largest(False) > 1e3
    assert largest(True) <= np.sqrt(width) * 1.001
