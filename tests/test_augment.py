"""Augmentations against NumPy: what moves where, with which probability, and that nothing changes at p = 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from bpgan import augment

SHAPES = [(12, 12, 1), (12, 12, 3), (10, 12, 4)]


def images(n=64, shape=(12, 12, 3), seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (n, *shape)), dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_probability(name, shape):
    """p = 0 changes no bit; p = 1/2 leaves some images bit for bit and changes others; shape and type stay."""
    x, operation = images(shape=shape), jax.jit(augment.OPERATIONS[name])
    np.testing.assert_array_equal(operation(x, jax.random.key(0), 0.0), x)
    half = operation(x, jax.random.key(1), 0.5)
    assert half.shape == x.shape and half.dtype == x.dtype and bool(jnp.isfinite(half).all())
    same = np.asarray((half == x).all((1, 2, 3)))
    assert 0 < same.sum() < len(x)
    changed = np.asarray((operation(x, jax.random.key(2), 1.0) != x).any((1, 2, 3)))
    assert changed.mean() > 0.8


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_examples_are_augmented_alone(name):
    """Other images in the batch change nothing; equal images get draws of their own."""
    operation = jax.jit(augment.OPERATIONS[name])
    x = images(8)
    other = x.at[1:].set(0.3)
    np.testing.assert_allclose(
        operation(x, jax.random.key(0), 1.0)[0],
        operation(other, jax.random.key(0), 1.0)[0],
        atol=1e-6,
    )
    copies = operation(jnp.repeat(x[:1], 8, 0), jax.random.key(1), 1.0)
    assert len({np.asarray(image).tobytes() for image in copies}) >= 4


@pytest.mark.parametrize("name", ["translation", "cutout", "blit", "geom"])
def test_movements_are_linear_and_their_derivative_is_the_adjoint(x64, name):
    """<A x, y> = <x, A' y>, with A' from reverse mode."""
    operation = augment.OPERATIONS[name]
    x, y = images(4, dtype=np.float64), images(4, seed=1, dtype=np.float64)
    moved, pullback = jax.vjp(lambda x: operation(x, jax.random.key(3), 1.0), x)
    np.testing.assert_allclose(jnp.vdot(moved, y), jnp.vdot(x, pullback(y)[0]), rtol=1e-9)
    np.testing.assert_allclose(operation(2 * x, jax.random.key(3), 1.0), 2 * moved, atol=1e-12)


@pytest.mark.parametrize("name", ["color", "affine_color"])
def test_gradients_of_colours(x64, name):
    x = images(2, (3, 3, 3), dtype=np.float64)
    f = lambda x: jnp.sum(jnp.sin(augment.OPERATIONS[name](x, jax.random.key(5), 1.0)))  # noqa: E731
    direction = images(2, (3, 3, 3), 1, np.float64)
    numerical = (f(x + 1e-6 * direction) - f(x - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(jnp.vdot(jax.grad(f)(x), direction), numerical, rtol=1e-6)


def test_translation_is_a_shift_with_zeros():
    x = images(256, (16, 8, 1))
    moved, seen = augment.translation(x, jax.random.key(0), 1.0), set()
    for image, result in zip(np.asarray(x), np.asarray(moved), strict=True):
        padded = np.pad(image, ((2, 2), (1, 1), (0, 0)))
        found = [
            (i - 2, j - 1)
            for i in range(5)
            for j in range(3)
            if np.array_equal(padded[i : i + 16, j : j + 8], result)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert seen == {(i, j) for i in range(-2, 3) for j in range(-1, 2)}


def test_cutout_is_half_of_each_side():
    x = jnp.ones((512, 8, 12, 2))
    hole = np.asarray(augment.cutout(x, jax.random.key(0), 1.0) == 0)
    assert (hole[..., 0] == hole[..., 1]).all()
    rows, columns = hole[..., 0].any(2), hole[..., 0].any(1)
    np.testing.assert_array_equal(hole[..., 0], rows[:, :, None] & columns[:, None, :])
    for sides, size in ((rows, 4), (columns, 6)):
        length = sides.sum(1)
        assert length.max() == size and length.min() == size // 2
        assert (np.diff(np.pad(sides, ((0, 0), (1, 1))).astype(int), axis=1) == 1).sum(1).max() == 1
    middle = hole[:, 4, 6, 0].mean()
    assert abs(middle - 4 / 9 * 6 / 13) < 0.09


def test_color_against_its_definition(x64):
    """Differences within a pixel and to the mean give back the factors; the mean gives back the brightness."""
    x = images(2000, (3, 3, 3), dtype=np.float64)
    y = np.asarray(augment.color(x, jax.random.key(0), 1.0))
    x = np.asarray(x)
    u = (y.mean((1, 2, 3)) - x.mean((1, 2, 3))) / 2
    assert u.min() >= -0.5 and u.max() <= 0.5 and abs(u.std() - 1 / np.sqrt(12)) < 0.02

    def chroma(v):
        return v - v.mean(3, keepdims=True)

    def light(v):
        return v.mean(3, keepdims=True) - v.mean((1, 2, 3), keepdims=True)

    contrast = (light(y) * light(x)).sum((1, 2, 3)) / (light(x) ** 2).sum((1, 2, 3))
    both = (chroma(y) * chroma(x)).sum((1, 2, 3)) / (chroma(x) ** 2).sum((1, 2, 3))
    saturation = both / contrast
    np.testing.assert_allclose(light(y), contrast.reshape(-1, 1, 1, 1) * light(x), atol=1e-9)
    np.testing.assert_allclose(chroma(y), both.reshape(-1, 1, 1, 1) * chroma(x), atol=1e-9)
    assert contrast.min() >= 0.5 and contrast.max() <= 1.5 and abs(contrast.mean() - 1) < 0.03
    assert saturation.min() >= 0 and saturation.max() <= 2 and abs(saturation.mean() - 1) < 0.05


def test_affine_color_keeps_the_wheel(x64):
    """Hue turns the colour plane around grey: lengths of colour differences change by one factor for an image."""
    x = images(3000, (2, 2, 3), dtype=np.float64)
    y, x = np.asarray(augment.affine_color(x, jax.random.key(0), 1.0)), np.asarray(x)
    chroma = [v - v.mean(3, keepdims=True) for v in (x, y)]
    length = [np.linalg.norm(v, axis=3) for v in chroma]
    ratio = length[1] / length[0]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-9)
    # log2 of contrast times saturation: N(0, 0.5^2 + 1).
    drawn = np.log2(ratio[:, 0, 0])
    assert abs(drawn.mean()) < 0.07 and abs(drawn.std() - np.sqrt(1.25)) < 0.05
    cosine = (chroma[0] * chroma[1]).sum(3) / length[0] / length[1]
    angle = np.arccos(np.clip(cosine[:, 0, 0], -1, 1))
    assert abs(angle.mean() - np.pi / 2) < 0.07 and angle.max() > 3
    grey = [v.mean(3)[:, 0, 0] - v.mean(3)[:, 0, 1] for v in (x, y)]
    scale = grey[1] / grey[0]
    assert abs((scale < 0).mean() - 0.5) < 0.04  # luma flips
    assert abs(np.log2(abs(scale)).std() - 0.5) < 0.03


def test_blit_moves_whole_pixels():
    """Every result is a flip, a number of quarter turns and a reflected shift; all of them occur."""
    x = images(1500, (8, 8, 1))
    moved, seen = augment.blit(x, jax.random.key(0), 1.0), set()
    for image, result in zip(np.asarray(x), np.asarray(moved), strict=True):
        found = set()
        for flip in (False, True):
            for turns in range(4):
                y = np.rot90(image[:, ::-1] if flip else image, turns)
                padded = np.pad(y, ((1, 1), (1, 1), (0, 0)), "reflect")
                found |= {
                    (flip, turns, i, j)
                    for i in range(3)
                    for j in range(3)
                    if np.array_equal(padded[i : i + 8, j : j + 8], result)
                }
        assert len(found) == 1
        seen |= found
    assert len(seen) == 2 * 4 * 9


def test_rotations_do_not_leak():
    """The orientations of augmented images are those of the images mixed by a matrix that p < 1 leaves invertible.

    With turns by 0, 90, 180 and 270 degrees at p, an image keeps its orientation with 1 - 3 p / 4: Karras et al. 2020,
    Sec. 2.2. So orientations can be told from their histogram, and G cannot gain by turning its images.
    """
    n, p = 20_000, 0.5
    marked = np.zeros((4, 8, 8, 1), np.float32)
    for k in range(4):
        marked[k] = np.rot90(np.pad(np.ones((2, 2, 1)), ((0, 6), (2, 4), (0, 0))), k)
    share = np.array([0.6, 0.3, 0.1, 0.0])
    labels = np.random.default_rng(0).choice(4, n, p=share)
    moved = np.asarray(jax.jit(augment.blit)(jnp.asarray(marked[labels]), jax.random.key(0), p))
    # The corner towards which the mark lies, whatever the flip and the shift by a pixel.
    top, left = moved.sum((2, 3)), moved.sum((1, 3))
    halves = np.stack(
        [top[:, :2].sum(1), left[:, :2].sum(1), top[:, 6:].sum(1), left[:, 6:].sum(1)], 1
    )
    got = np.bincount(halves.argmax(1), minlength=4) / n
    mixing = (1 - p) * np.eye(4) + p / 4
    flip = np.array([[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]])
    expected = mixing @ ((1 - p / 2) * share + p / 2 * flip @ share)
    np.testing.assert_allclose(got, expected, atol=4 * np.sqrt(0.25 / n))
    assert np.linalg.det(mixing) > 0.05


def maps(*rows, n=2):
    return jnp.broadcast_to(jnp.asarray(rows, jnp.float32), (n, 2, 3))


def test_warp_of_lattice_maps_is_exact():
    x = images(2, (9, 9, 2))
    np.testing.assert_array_equal(augment.warp(x, maps([1, 0, 0], [0, 1, 0])), x)
    turned = augment.warp(x, maps([0, 1, 0], [-1, 0, 0]))
    np.testing.assert_allclose(turned, np.rot90(np.asarray(x), 1, (1, 2)), atol=1e-6)
    shifted = augment.warp(x, maps([1, 0, 2], [0, 1, -1]))
    padded = np.pad(np.asarray(x), ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect")
    np.testing.assert_allclose(shifted, padded[:, 4:13, 1:10], atol=1e-6)


def test_warp_is_bilinear_with_reflection():
    """Against scipy.ndimage (order 1, mode "mirror": the border pixel is not repeated)."""
    x = images(5, (11, 8, 2))
    rng = np.random.default_rng(0)
    matrix = np.concatenate(
        [np.eye(2) + 0.5 * rng.normal(size=(5, 2, 2)), 3 * rng.normal(size=(5, 2, 1))], 2
    )
    ours = augment.warp(x, jnp.asarray(matrix, jnp.float32))
    centre = np.array([5.0, 3.5])
    for image, m, result in zip(np.asarray(x), matrix, ours, strict=True):
        offset = m[:, :2] @ -centre + m[:, 2] + centre
        for c in range(2):
            theirs = scipy.ndimage.affine_transform(
                image[..., c], m[:, :2], offset, order=1, mode="mirror"
            )
            np.testing.assert_allclose(result[..., c], theirs, atol=2e-5)


def test_geometry_draws_what_the_paper_says(monkeypatch):
    """Of the matrices: area log-normal, shifts of an eighth of the side, and a rotation with probability p."""
    drawn = []
    monkeypatch.setattr(augment, "warp", lambda x, matrix: drawn.append(matrix) or x)
    x = jnp.zeros((6000, 8, 16, 1))
    augment.geom(x, jax.random.key(0), 1.0)
    matrix = np.asarray(drawn[0])
    area = np.log2(abs(np.linalg.det(matrix[:, :, :2]))) / 2
    assert abs(area.mean()) < 0.01 and abs(area.std() - 0.2) < 0.01
    np.testing.assert_allclose(matrix[:, :, 2].std(0), [1, 2], rtol=0.05)
    augment.geom(x, jax.random.key(1), 0.36)
    matrix = np.asarray(drawn[1])[:, :, :2]
    straight = (abs(matrix[:, 0, 1]) < 1e-7) & (abs(matrix[:, 1, 0]) < 1e-7)
    assert abs(straight.mean() - (1 - 0.36)) < 0.03


def test_policies():
    x = images(8)
    for text in ("bgc", "color,translation,cutout", "cutout"):
        assert augment.policy(text)(x, jax.random.key(0), 1.0).shape == x.shape
    with pytest.raises(
        ValueError, match="'blur' is not an augmentation; must be among b, bg, bgc, color"
    ):
        augment.policy("color,blur")


def test_augmentations_compile_map_and_scan():
    """As in a training step: a gradient in a scan; and over seeds."""
    apply, x = augment.policy("bgc"), images(4)

    def descend(x, key):
        slope = jax.grad(lambda x, k: jnp.sum(apply(x, k, 0.5) ** 2))
        keys = jax.random.split(key, 2)
        return jax.lax.scan(lambda x, k: (x - 0.1 * slope(x, k), None), x, keys)[0]

    moved = jax.jit(descend)(x, jax.random.key(0))
    assert moved.shape == x.shape and bool(jnp.isfinite(moved).all())
    seeds = jax.random.split(jax.random.key(1), 3)
    together = jax.jit(jax.vmap(lambda key: apply(x, key, 0.5)))(seeds)
    for i in range(3):
        alone = apply(x, jax.random.split(jax.random.key(1), 3)[i], 0.5)
        np.testing.assert_allclose(together[i], alone, atol=1e-5)


def test_p_adapts_by_images():
    ada = augment.Augment(augment.blit, 0.0, target=0.6, images=1000)
    p = jnp.float32(0.5)
    np.testing.assert_allclose(augment.adapt(p, jnp.float32(0.7), 64, ada), 0.564, rtol=1e-6)
    np.testing.assert_allclose(augment.adapt(p, jnp.float32(0.5), 64, ada), 0.436, rtol=1e-6)
    assert augment.adapt(jnp.float32(0.79), jnp.float32(1.0), 64, ada) == jnp.float32(0.8)
    assert augment.adapt(jnp.float32(0.01), jnp.float32(-1.0), 64, ada) == 0
