"""Augmentations against NumPy and SciPy, given what was drawn; what is drawn against the papers' distributions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.stats
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from bpgan import augment
from bpgan.algorithms import gan
from bpgan.losses import LOSSES
from bpgan.nets import linen_net, mlp
from bpgan.penalties import PENALTIES, weighted
from bpgan.types import stream

RNG = np.random.default_rng(0)
ALL = "bgc,diffaugment"
SHAPES = [(6, 8, 8, 1), (6, 8, 11, 3), (6, 9, 9, 4)]


def images(*shape, dtype=np.float64):
    return RNG.uniform(-1, 1, shape).astype(dtype)


def record(kind, **fields):
    """A record of one value per example, as draws give them."""
    b = len(next(iter(fields.values())))
    full = {name: np.full(b, value) for name, value in kind._field_defaults.items()}
    if "shift" in full:
        full["shift"] = np.zeros((b, 2))
    return kind(**{k: jnp.asarray(v) for k, v in (full | fields).items()})


@functools.cache
def compiled(name):
    return jax.jit(augment.policy(name))


@pytest.mark.medium
@pytest.mark.parametrize(
    "shape,dtype",
    [
        (SHAPES[0], jnp.float32),
        pytest.param(SHAPES[1], jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param(SHAPES[2], jnp.float64, marks=pytest.mark.slow),
    ],
)
def test_p_0_returns_the_same_bits(x64, shape, dtype):
    x = jnp.asarray(images(*shape), dtype).at[:, 0].set(-0.0)
    y = compiled(ALL)(x, jax.random.key(0), 0.0)
    assert y.dtype == x.dtype and y.shape == x.shape
    assert np.asarray(y).tobytes() == np.asarray(x).tobytes()
    y = compiled(ALL)(x, jax.random.key(0), 1.0)
    assert y.dtype == x.dtype and y.shape == x.shape and np.isfinite(y.astype(float)).all()
    assert all((a != b).any() for a, b in zip(np.asarray(x), np.asarray(y), strict=True))


@pytest.mark.medium
@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_each_example_is_left_alone_or_not_by_its_own_coin(name):
    x = jnp.asarray(images(4000, 4, 4, 3, dtype=np.float32))
    y = np.asarray(compiled(name)(x, jax.random.key(1), 0.3))
    same = (y == x).all(axis=(1, 2, 3)).mean()
    # Those that can draw what changes nothing: no shift in 3 * 3; blit: both halves, turns, 5 of 8 shifts stay.
    none = {
        "color": 0.7**3,
        "translation": 0.7 + 0.3 / 9,
        "cutout": 0.7,
        "geom": 0.7**4,  # both rotations together have probability p
        "ada_color": 0.7**3 * 0.85 * 0.7,
        "blit": 0.85 * (0.7 + 0.3 / 4),  # 4 / 8 pixels round to none
    }[name]
    assert abs(same - none) < 5 * math.sqrt(none * (1 - none) / 4000)


@pytest.mark.medium
def test_a_policy_is_its_operations_with_streams_of_their_own(trees_equal):
    x, key = jnp.asarray(images(6, 8, 8, 1, dtype=np.float32)), jax.random.key(2)
    expected = x
    for name in ("cutout", "color"):
        draw, transform = augment.OPERATIONS[name]
        expected = transform(expected, draw(stream(key, name), 0.5, x))
    got = augment.policy("cutout,color")(x, key, 0.5)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    for short, names in augment.POLICIES.items():
        a, b = (augment.policy(text)(x[:2], key, 0.5) for text in (short, ",".join(names)))
        trees_equal(a, b)


# What is done, given what was drawn.


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_color(x64, channels):
    x = images(7, 5, 6, channels)
    brightness, saturation, contrast = RNG.uniform(
        [[-0.5], [0], [0.5]], [[0.5], [2], [1.5]], (3, 7)
    )
    got = augment.color(x, augment.Color(*map(jnp.asarray, (brightness, saturation, contrast))))
    colors = 3 if channels > 2 else 1
    expected = x.copy()
    for i in range(7):
        y = x[i, ..., :colors] + brightness[i]
        if colors == 3:
            gray = y.sum(axis=2, keepdims=True) / 3
            y = saturation[i] * y + (1 - saturation[i]) * gray
        expected[i, ..., :colors] = contrast[i] * y + (1 - contrast[i]) * y.mean()
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_translation(x64):
    x = images(9, 8, 11, 2)
    shift = RNG.integers(-3, 4, (9, 2))
    got = np.asarray(augment.translation(x, record(augment.Translation, shift=shift * 1.0)))
    for i, (down, right) in enumerate(shift):
        padded = np.pad(x[i], ((3, 3), (3, 3), (0, 0)))
        np.testing.assert_array_equal(got[i], padded[3 - down :, 3 - right :][:8, :11])


@pytest.mark.medium
@pytest.mark.parametrize("shape", [(8, 8), (7, 10), (1, 5)])
def test_cutout(x64, shape):
    h, w = shape
    x = images((h + 1) * (w + 1), h, w, 2)
    center = np.stack(np.meshgrid(range(h + 1), range(w + 1)), -1).reshape(-1, 2)
    got = np.asarray(augment.cutout(x, record(augment.Cutout, center=center * 1.0)))
    tall, wide = (h + 1) // 2, (w + 1) // 2
    for i, (row, column) in enumerate(center):
        expected = x[i].copy()
        top, left = row - tall // 2, column - wide // 2
        expected[max(top, 0) : max(top + tall, 0), max(left, 0) : max(left + wide, 0)] = 0
        np.testing.assert_array_equal(got[i], expected)


@pytest.mark.medium
@pytest.mark.parametrize("shape", [(8, 8), (7, 7), (6, 9)])
def test_blit_moves_pixels_and_changes_none(shape):
    """Mirroring, then quarter turns, then a translation of the image that reflection continues; bit for bit."""
    h, w = shape
    drawn = [
        (m, k, s)
        for m in (0, 1)
        for k in (range(4) if h == w else (0, 2))
        for s in ((0, 0), (1, 0), (0, -2), (2, 1))
    ]
    mirror, turns, shift = (np.array(v, np.float32) for v in zip(*drawn, strict=True))
    x = images(len(drawn), h, w, 3, dtype=np.float32)
    got = augment.blit(x, record(augment.Blit, mirror=mirror, turns=turns, shift=shift))
    for i, (m, k, (down, right)) in enumerate(drawn):
        y = np.rot90(x[i, :, ::-1] if m else x[i], k)
        y = np.pad(y, ((3, 3), (3, 3), (0, 0)), mode="reflect")
        np.testing.assert_array_equal(got[i], y[3 - down :, 3 - right :][:h, :w])


def forward_matrix(scale, before, aspect, after):
    """Of (row, column), as the paper multiplies them: scale first."""

    def turn(angle):  # counter-clockwise on the screen: what lies to the right goes up
        c, s = math.cos(angle), math.sin(angle)
        return np.array([[c, -s], [s, c]])

    return turn(after) @ np.diag([1 / aspect, aspect]) @ turn(before) @ (scale * np.eye(2))


@pytest.mark.medium
@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 10, 3)])
def test_geom_is_scipys_affine_map(x64, shape):
    b = 12
    x = images(b, *shape)
    drawn = record(
        augment.Geom,
        scale=RNG.lognormal(0, 0.3, b),
        before=RNG.uniform(-np.pi, np.pi, b),
        aspect=RNG.lognormal(0, 0.3, b),
        after=RNG.uniform(-np.pi, np.pi, b),
        shift=RNG.normal(0, 2, (b, 2)),
    )
    got = augment.geom(x, drawn)
    center = (np.array(shape[:2]) - 1) / 2
    for i in range(b):
        *numbers, shift = (np.asarray(v)[i] for v in drawn)
        inverse = np.linalg.inv(forward_matrix(*numbers))
        for c in range(shape[2]):
            expected = scipy.ndimage.affine_transform(
                x[i, ..., c], inverse, center - inverse @ (center + shift), order=1, mode="mirror"
            )
            np.testing.assert_allclose(got[i, ..., c], expected, atol=1e-10)


@pytest.mark.medium
def test_geom_of_a_quarter_turn_is_rot90(x64):
    """Either rotation turns the way ``blit`` does, about the center; two that cancel are none."""
    x = images(4, 7, 7, 2)
    quarter = np.pi / 2
    drawn = record(
        augment.Geom,
        before=np.array([quarter, 0, quarter, 0.7]),
        after=np.array([0, quarter, quarter, -0.7]),
    )
    got = augment.geom(x, drawn)
    for i, k in enumerate((1, 1, 2, 0)):
        np.testing.assert_allclose(got[i], np.rot90(x[i], k), atol=1e-12)


def test_geom_directions(x64):
    """Shifts go down and to the right; aspect widens; scale magnifies about the center."""
    x = np.zeros((4, 9, 9, 1))
    x[:, 4, 4] = 1  # the center
    x[:, 4, 6] = 0.5  # two to its right
    drawn = record(
        augment.Geom,
        scale=np.array([1.0, 2, 1, 1]),
        aspect=np.array([1.0, 1, 2, 0.5]),
        shift=np.array([[1.0, -2], [0, 0], [0, 0], [0, 0]]),
    )
    y = np.asarray(augment.geom(x, drawn))[..., 0]
    assert y[0, 5, 2] == 1 and y[0, 5, 4] == 0.5
    assert y[1, 4, 4] == 1 and y[1, 4, 8] == 0.5 and y[1, 3, 4] == 0.5  # neighbors, interpolated
    assert y[2, 4, 8] == 0.5 and y[2, 3, 4] == 0
    assert y[3, 4, 5] == 0.5 and y[3, 3, 4] == 0.5


@pytest.mark.parametrize("numbers", [2**26, 1])
def test_both_ways_to_interpolate_agree(x64, monkeypatch, numbers):
    """Four looked-up pixels, or products with weights, of several images at a time or of one; gradients, too."""
    monkeypatch.setattr(augment, "_NUMBERS", numbers)
    x = images(3, 5, 7, 2)
    rows, columns = RNG.uniform(0, 4, (3, 35)), RNG.uniform(0, 6, (3, 35))
    rows[:, :2], columns[:, :2] = (0, 4), (6, 0)  # the very corners
    arguments = (x, *map(jnp.asarray, (rows, columns)))

    def value_and_gradient(f):
        f = lambda x, r, c, f=f: (f(x, r, c), jax.grad(lambda x: jnp.sum(jnp.sin(f(x, r, c))))(x))  # noqa: E731
        return jax.jit(f)(*arguments)

    for a, b in zip(
        *map(value_and_gradient, (augment._looked_up, augment._contracted)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_products_of_split_images_stay_on_their_devices(monkeypatch):
    """Also where only a few images are moved at a time: each device takes few of its own."""
    monkeypatch.setattr(augment, "_NUMBERS", 2 * 5 * 7 * 7 * 2)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("batch"))
    x = jnp.asarray(RNG.normal(size=(32, 5, 7, 2)), jnp.float32)
    places = [jnp.asarray(RNG.uniform(0, n - 1, (32, 35)), jnp.float32) for n in (5, 7)]

    def gradient(x, *places):
        x = lax.with_sharding_constraint(x, rows)
        return jax.grad(lambda x: jnp.sum(jnp.sin(augment._contracted(x, *places))))(x)

    program = jax.jit(gradient, in_shardings=(rows,) * 3, out_shardings=rows)
    text = program.lower(x, *places).compile().as_text()
    assert not [name for name in ("all-gather", "all-to-all", "all-reduce") if name in text]
    np.testing.assert_allclose(program(x, *places), jax.jit(gradient)(x, *places), atol=1e-5)


@pytest.mark.medium
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_ada_color(x64, channels):
    """The paper's 4x4 matrices, one after the other; of one channel, what they do to gray."""
    b, x = 8, images(8, 4, 5, channels)
    drawn = augment.draw_ada_color(jax.random.key(0), 1.0, jax.ShapeDtypeStruct(x.shape, x.dtype))
    got = augment.ada_color(x, drawn)
    v = np.append(np.ones(3) / math.sqrt(3), 0)
    cross = np.zeros((4, 4))
    cross[:3, :3] = np.cross(np.eye(3), v[:3])  # rows e_i x v: the matrix of v x
    for i in range(b):
        brightness, contrast, flip, hue, saturation = (float(field[i]) for field in drawn)
        map4 = np.eye(4)
        map4[:3, 3] = brightness
        map4 = np.diag([contrast] * 3 + [1]) @ map4
        map4 = (np.eye(4) - 2 * flip * np.outer(v, v)) @ map4
        map4 = scipy.linalg.expm(hue * cross) @ map4
        along = np.outer(v, v) + np.diag([0, 0, 0, 1])
        map4 = (along + saturation * (np.eye(4) - along)) @ map4
        colors = x[i, ..., :3] if channels > 1 else np.repeat(x[i], 3, axis=2)
        expected = x[i].copy()
        expected[..., :3] = (colors @ map4[:3, :3].T + map4[:3, 3])[..., : min(channels, 3)]
        np.testing.assert_allclose(got[i], expected, atol=1e-12)
    assert set(np.asarray(drawn.flip)) == {0, 1}


# Gradients.


@pytest.mark.medium
@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_gradients(x64, name):
    """Affine in x: the gradient is the adjoint of ``f(x) - f(0)``, which no autodiff computes."""
    shape = SHAPES[1]
    x, y, direction = (images(*shape) for _ in range(3))
    f = jax.jit(lambda x: augment.policy(name)(x, jax.random.key(3), 0.8))
    gradient = jax.jit(lambda x, y: jax.vjp(f, x)[1](y)[0])(x, y)
    linear = f(x) - f(np.zeros(shape))
    np.testing.assert_allclose(np.vdot(linear, y), np.vdot(x, gradient), rtol=1e-10)
    tangent = (f(x + 1e-4 * direction) - f(x - 1e-4 * direction)) / 2e-4
    assert np.abs(tangent).max() > 0.1
    np.testing.assert_allclose(np.vdot(tangent, y), np.vdot(direction, gradient), rtol=1e-8)


def test_accelerators_neither_gather_nor_scatter():
    """Their scatter adds in any order, and runs would not repeat bit for bit."""

    def gradient(x, p):
        return jax.grad(lambda x: jnp.sum(augment.policy(ALL)(x, jax.random.key(0), p) ** 2))(x)

    def text(platform):
        traced = jax.jit(gradient).trace(jnp.ones((2, 8, 8, 3)), 0.5)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    for platform in ("cuda", "tpu"):
        assert "scatter" not in text(platform) and "stablehlo.gather" not in text(platform)
    assert "scatter" in text("cpu")


@pytest.mark.medium
def test_scan_and_vmap_are_loops():
    x, keys = (
        jnp.asarray(images(4, 8, 8, 3, dtype=np.float32)),
        jax.random.split(jax.random.key(5), 3),
    )
    apply = augment.policy("blit,geom,color")
    gradient = jax.grad(lambda x, key, p: jnp.sum(jnp.sin(apply(x, key, p))))
    p = jnp.linspace(0, 1, 3)
    single = jax.jit(gradient)
    loop = jnp.stack([single(x, key, q) for key, q in zip(keys, p, strict=True)])
    keys = jax.random.clone(keys)
    mapped = jax.jit(jax.vmap(gradient, (None, 0, 0)))(x, keys, p)
    scanned = jax.jit(lambda: jax.lax.scan(lambda c, a: (c, gradient(x, *a)), 0, (keys, p))[1])()
    np.testing.assert_allclose(mapped, loop, atol=2e-5)
    np.testing.assert_allclose(scanned, loop, atol=2e-5)


# What is drawn.


@functools.cache
def draws(name, p, shape=(20000, 16, 16, 3)):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)

    class Shaped:  # drawing needs no images
        shape, dtype = x.shape, x.dtype
        __len__ = lambda self: self.shape[0]  # noqa: E731

    drawn = jax.jit(
        lambda: augment.OPERATIONS[name].draw(stream(jax.random.key(6), name), p, Shaped())
    )()
    return jax.tree.map(lambda v: np.asarray(v, np.float64), drawn)


def uniform(low, high):
    return scipy.stats.uniform(low, high - low).cdf


def lognormal(log2_std):
    return scipy.stats.lognorm(log2_std * math.log(2)).cdf


CONTINUOUS = {
    ("color", "brightness"): uniform(-0.5, 0.5),
    ("color", "saturation"): uniform(0, 2),
    ("color", "contrast"): uniform(0.5, 1.5),
    ("geom", "scale"): lognormal(0.2),
    ("geom", "before"): uniform(-np.pi, np.pi),
    ("geom", "aspect"): lognormal(0.2),
    ("geom", "after"): uniform(-np.pi, np.pi),
    ("geom", "shift"): scipy.stats.norm(0, 0.125 * 16).cdf,
    ("ada_color", "brightness"): scipy.stats.norm(0, 0.2).cdf,
    ("ada_color", "contrast"): lognormal(0.5),
    ("ada_color", "hue"): uniform(-np.pi, np.pi),
    ("ada_color", "saturation"): lognormal(1.0),
}
DISCRETE = {  # values and their probabilities at p = 1, for 16 x 16
    ("translation", "shift"): dict.fromkeys(range(-2, 3), 1 / 5),
    ("cutout", "center"): dict.fromkeys(range(17), 1 / 17),
    ("blit", "mirror"): {0: 1 / 2, 1: 1 / 2},
    ("blit", "turns"): dict.fromkeys(range(4), 1 / 4),
    ("blit", "shift"): {-2: 1 / 8, -1: 1 / 4, 0: 1 / 4, 1: 1 / 4, 2: 1 / 8},
    ("ada_color", "flip"): {0: 1 / 2, 1: 1 / 2},
}


@pytest.mark.medium
@pytest.mark.parametrize("name,field", CONTINUOUS)
def test_continuous_draws(name, field):
    values = getattr(draws(name, 1.0), field)
    assert scipy.stats.kstest(values.ravel(), CONTINUOUS[name, field]).pvalue > 1e-4
    some = getattr(draws(name, 0.3), field)
    neutral = augment.OPERATIONS[name].draw.__annotations__["return"]._field_defaults[field]
    on = (some != np.float32(neutral)).reshape(len(some), -1)
    assert (on.all(axis=1) == on.any(axis=1)).all()  # one coin for rows and columns
    p = 1 - math.sqrt(0.7) if field in ("before", "after") else 0.3
    assert abs(on[:, 0].mean() - p) < 5 * math.sqrt(p * (1 - p) / len(on))
    chosen = some[on[:, 0]]
    assert scipy.stats.kstest(chosen.ravel(), CONTINUOUS[name, field]).pvalue > 1e-4


@pytest.mark.parametrize("name,field", DISCRETE)
def test_discrete_draws(name, field):
    expected = DISCRETE[name, field]
    for values in getattr(draws(name, 1.0), field).reshape(20000, -1).T:
        counts = [np.sum(values == v) for v in expected]
        assert sum(counts) == 20000
        assert scipy.stats.chisquare(counts, 20000 * np.array([*expected.values()])).pvalue > 1e-4


def test_a_rotation_has_probability_p_before_or_after():
    drawn = draws("geom", 0.3)
    either = ((drawn.before != 0) | (drawn.after != 0)).mean()
    assert abs(either - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 20000)


@pytest.mark.medium
@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_fields_and_examples_are_independent(name):
    """Ranks of what is drawn, and coins, are uncorrelated between fields and between neighboring examples."""
    half = draws(name, 0.5)
    columns = [c for field in draws(name, 1.0) for c in field.reshape(20000, -1).T]
    coins = [
        (field.reshape(20000, -1)[:, 0] != half._field_defaults[key]) * 1.0
        for key, field in half._asdict().items()
    ]
    for several in (columns, coins):
        shifted = [np.roll(c, 1) for c in several]
        ranks = scipy.stats.rankdata(np.stack(several + shifted), axis=1)
        correlations = np.corrcoef(ranks)[np.triu_indices(len(ranks), 1)]
        assert np.abs(correlations).max() < 5 / math.sqrt(20000)


def test_other_sizes():
    """Odd squares have their center on a pixel; images that are not square make half turns only."""
    wide = (4000, 9, 22, 1)
    center = draws("cutout", 1.0, wide).center
    assert (center.min(0) == 0).all() and center.max(0).tolist() == [8, 21]  # sides 5 and 11
    assert abs(draws("translation", 1.0, wide).shift).max(0).tolist() == [1, 3]
    assert set(draws("blit", 1.0, wide).turns) == {0, 2}
    shift = draws("geom", 1.0, wide).shift
    np.testing.assert_allclose(shift.std(0), [9 / 8, 22 / 8], rtol=0.06)


@pytest.mark.medium
@pytest.mark.parametrize("p", [0.5, 0.8])
def test_turned_images_tell_how_the_unturned_were_distributed(p):
    """The leak test of one operation: skipped with 1 - p, quarter turns mix orientations by an invertible matrix."""
    n = 20000
    truth = np.array([0.6, 0.25, 0.1, 0.05])
    # One bright pixel in a corner: its place is the orientation.
    base = np.zeros((2, 2, 1), np.float32)
    base[0, 0] = 1
    turned = np.stack([np.rot90(base, k) for k in range(4)])
    x = turned[RNG.choice(4, n, p=truth)]
    drawn = draws("blit", p, (n, 2, 2, 1))
    y = np.asarray(augment.blit(x, record(augment.Blit, turns=np.float32(drawn.turns))))
    seen = np.array([(y == t).all(axis=(1, 2, 3)).mean() for t in turned])
    assert seen.sum() == pytest.approx(1)
    mixing = (1 - p) * np.eye(4) + p / 4
    assert np.linalg.det(mixing) == pytest.approx((1 - p) ** 3)
    error = np.sqrt(0.25 / n)
    np.testing.assert_allclose(seen, mixing @ truth, atol=5 * error)
    np.testing.assert_allclose(np.linalg.solve(mixing, seen), truth, atol=5 * error / (1 - p))


def test_always_turned_images_do_not():
    """The control: at p = 1 the matrix is singular, whatever the data were."""
    turns = draws("blit", 1.0, (20000, 2, 2, 1)).turns
    counts = [np.sum(turns == k) for k in range(4)]
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
    assert np.linalg.matrix_rank(np.full((4, 4), 1 / 4)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_a_generator_learns_the_upright_images_unless_all_are_turned(p):
    """Training does not leak: G draws upright images though D sees them turned, too; at p = 1 it cannot know them."""
    upright = -np.ones((4, 4, 1), np.float32)
    upright[:2, :2] = 1
    turned = np.stack([np.rot90(upright, k) for k in range(4)])
    algorithm = gan.make(
        gan.Networks(
            linen_net(mlp.Generator((4, 4, 1), (32,))),
            linen_net(mlp.Discriminator((32,))),
            gan.normal_latents(8),
            (4, 4, 1),
        ),
        LOSSES["relativistic"],
        gan.Optimizers(*(optax.adam(1e-3, b1=0.0, b2=0.99) for _ in range(2))),
        penalties=[weighted(1.0, PENALTIES["r1"]), weighted(1.0, PENALTIES["r2"])],
        augment=augment.Augment(augment.policy("blit"), p=p),
    )
    batch = {"x": jnp.broadcast_to(upright, (64, 4, 4, 1))}

    def drawn(key):
        steps = jax.random.split(jax.random.fold_in(key, 0), 2500)
        state = algorithm.init(jax.random.fold_in(key, 1))
        state, _ = jax.lax.scan(lambda s, k: (algorithm.step(s, batch, k)[0], None), state, steps)
        return algorithm.sample(state, jax.random.fold_in(key, 2), 256)

    samples = jax.jit(jax.vmap(drawn))(jax.random.split(jax.random.key(0), 4))
    distances = np.abs(np.asarray(samples)[:, :, None] - turned).mean(axis=(-3, -2, -1))
    assert distances.min(-1).mean() < 0.05  # all are some turn of the image
    shares = (distances.argmin(-1) == 0).mean(1)
    if p < 1:
        assert shares.min() > 0.98, shares
    else:
        assert shares.mean() < 0.7, shares


# The adaptive probability, and names.


def test_adapt_moves_p_by_the_batch_and_stays_in_bounds():
    adapt = functools.partial(augment.adapt, batch=64, images=500_000, target=0.6)
    for p, r_t, expected in [
        (0.3, 0.61, 0.3 + 64 / 500_000),
        (0.3, 0.59, 0.3 - 64 / 500_000),
        (0.3, 0.6, 0.3),
        (0.0, 0.1, 0.0),
        (0.8, 0.9, 0.8),
        (0.79999, 1.0, 0.8),
    ]:
        got = adapt(jnp.float32(p), jnp.float32(r_t))
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, atol=1e-7)
    assert augment.adapt(0.9, 1.0, 64, 640, 0.6, maximum=1.0) == 1.0


def test_adapt_crosses_the_unit_interval_in_the_images_given():
    p, _ = jax.lax.scan(
        lambda p, _: (augment.adapt(p, 0.9, 50, 5000, 0.6, 1.0), None), jnp.float32(0), length=99
    )
    np.testing.assert_allclose(p, 0.99, atol=1e-5)


def test_augment_is_a_record():
    a = augment.Augment(augment.policy("bgc"), 0.0, target=0.6)
    assert a.images == 500_000 and augment.Augment(a.apply, 0.5).target is None


@pytest.mark.parametrize("text", ["", "colors", "color,", "color, cutout", "bgcf"])
def test_unknown_names(text):
    with pytest.raises(ValueError, match="is not an augmentation; must be .*cutout.*bgc") as caught:
        augment.policy(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["color,color", "bgc,geom", "bg,bgc"])
def test_names_given_twice(text):
    with pytest.raises(ValueError, match="is given twice"):
        augment.policy(text)
