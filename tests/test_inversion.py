"""Inversion: least squares of linear generators, the control on a generator's own samples, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.tree_util import Partial

from bpgan.insight import inversion
from bpgan.insight.inversion import Features, Pull, invert
from bpgan.nets import linen_net, mlp
from bpgan.types import UserError

SHAPE = (4, 6, 1)
N, Z = 3, 5


def linear(a, z):
    return (z @ a.T).reshape(-1, *SHAPE)


@pytest.fixture(scope="module")
def case():
    """A generator of full column rank, targets that it does not make, and two starts of each."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((24, Z)).astype(np.float32)
    targets = rng.uniform(-1, 1, (N, *SHAPE)).astype(np.float32)
    return a, targets, rng.standard_normal((2, N, Z)).astype(np.float32)


def least_squares(a, targets):
    return np.linalg.lstsq(a.astype(np.float64), targets.reshape(N, -1).T, rcond=None)[0].T


def test_a_linear_generator_is_inverted_by_least_squares(case):
    a, targets, starts = case
    found = invert(Partial(linear, a), targets, starts, steps=600)
    wanted = least_squares(a, targets)
    np.testing.assert_allclose(found.z, wanted, atol=1e-4)
    made = (wanted @ a.T).reshape(targets.shape)
    np.testing.assert_allclose(found.images, made, atol=1e-3)
    errors = ((made - targets) ** 2).mean((1, 2, 3)) / targets.var()
    np.testing.assert_allclose(found.error, errors, rtol=1e-4)
    assert found.variance == pytest.approx(targets.var())
    assert found.losses.shape == (2, N)
    np.testing.assert_array_equal(found.start, found.losses.argmin(0))
    assert not found.found.any() and found.says.startswith("0 of 3 images were found to 0.001")


def test_features_and_the_pull_have_their_weights(case):
    """The closed form of all three terms, as one least-squares problem; a schedule and a variance of one's own."""
    a, targets, starts = case
    b = np.random.default_rng(1).standard_normal((24, 7)).astype(np.float32)
    center = np.linspace(-1, 1, Z)
    found = invert(
        Partial(linear, a), targets, starts, steps=600, lr="linear:0.1:0", variance=2.0,
        features=Features(lambda x: x.reshape(len(x), -1) @ b, 3.0), pull=Pull(0.5, center),
    )  # fmt: skip
    flat = targets.reshape(N, -1).astype(np.float64)
    of_pixels, of_features, of_z = (
        1 / np.sqrt(24 * 2.0),
        np.sqrt(3.0 / (7 * (flat @ b).var())),
        np.sqrt(0.5 / Z),
    )
    matrix = np.concatenate([of_pixels * a, of_features * b.T @ a, of_z * np.eye(Z)])
    for i in range(N):
        right = np.concatenate([of_pixels * flat[i], of_features * flat[i] @ b, of_z * center])
        wanted, rest = np.linalg.lstsq(matrix, right, rcond=None)[:2]
        np.testing.assert_allclose(found.z[i], wanted, atol=1e-3)
        np.testing.assert_allclose(found.losses[:, i], rest[0], rtol=1e-3)
    assert found.variance == 2.0


def test_latents_stay_in_their_support(case):
    a, targets, starts = case
    low, high = -0.05, np.linspace(0.02, 0.1, Z)
    inside = np.clip(starts, low, high.astype(np.float32))
    found = invert(Partial(linear, a), targets, inside, steps=600, bounds=(low, high))
    edge = np.float32(low), high.astype(np.float32)
    assert ((edge[0] <= found.z) & (found.z <= edge[1])).all()
    assert ((found.z == edge[0]) | (found.z == edge[1])).any()
    for z, target in zip(found.z, targets, strict=True):
        wanted = scipy.optimize.lsq_linear(
            a.astype(float), target.ravel().astype(float), bounds=edge
        ).x
        np.testing.assert_allclose(z, wanted, atol=1e-3)
    with pytest.raises(UserError, match="starts: must lie between `bounds`"):
        invert(Partial(linear, a), targets, starts, bounds=(low, high))


def test_the_best_start_of_each_target_is_kept():
    """From below 0 there is a minimum at -1 that is not the best one, and from below -5 there is no number at all."""

    def generator(z):
        hill = jnp.where(z > 0, z, -0.5 * jnp.abs(z + 1) - 0.2)
        return jnp.where(z < -5, jnp.nan, hill)

    starts = np.array([[-2.0, 0.7, -9.0], [0.4, -2.0, 0.7]], np.float32)[..., None]
    targets = np.array([[0.5], [0.9], [0.6]], np.float32)
    found = invert(generator, targets, starts, steps=300)
    np.testing.assert_array_equal(found.start, [1, 0, 1])
    np.testing.assert_allclose(found.z, targets, atol=1e-3)
    assert np.isnan(found.losses[0, 2]) and np.isfinite(found.losses).sum() == 5
    assert (
        found.losses[0, 0] > 1
        and found.says == "All 3 images were found to 0.001 of the variance of pixels."
    )
    alone = invert(generator, targets, starts[1:], steps=300)
    np.testing.assert_allclose(alone.losses[0], found.losses[1], atol=1e-6)
    with pytest.raises(UserError, match="no start of target 2 stays finite"):
        invert(generator, targets, starts[:1], steps=300)


def test_labels_go_with_their_targets():
    """They are as many as targets, whatever the starts; a G that numbers its rows is found out."""
    tables = np.random.default_rng(3).standard_normal((4, 24, Z)).astype(np.float32)

    def generator(tables, z, labels=None):
        labels = jnp.arange(len(z)) % 4 if labels is None else labels
        return jnp.einsum("nij,nj->ni", tables[labels], z).reshape(-1, *SHAPE)

    labels, z = np.array([3, 0, 2]), np.random.default_rng(4).standard_normal((N, Z))
    targets = np.asarray(generator(tables, z.astype(np.float32), labels))
    starts = np.zeros((2, N, Z), np.float32)
    found = invert(Partial(generator, tables), targets, starts, labels=labels)
    assert found.found.all()
    np.testing.assert_allclose(found.z, z, atol=1e-3)
    with pytest.raises(UserError, match="G: G makes other images .* `labels`"):
        invert(Partial(generator, tables), targets, starts, steps=3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"targets": np.zeros((N, 5, 5, 1), np.float32)}, r"targets: images are \[5, 5, 1\], those that G makes"),
        ({"targets": np.zeros((N, *SHAPE[:2], 3), np.float32)}, "targets: images are"),
        ({"targets": np.full((N, *SHAPE), np.nan, np.float32)}, "targets: must be finite"),
        ({"targets": np.zeros((N, *SHAPE), np.uint8)}, "targets: must be floats"),
        ({"targets": np.zeros((N, *SHAPE), np.float32)}, "targets: all pixels are equal"),
        ({"starts": np.zeros((2, N, 4), np.float32)}, "starts: the function does not take one row"),
        ({"starts": np.zeros((2, 7, Z), np.float32)}, r"starts: must be \[r, 3, ...\]"),
        ({"starts": np.zeros((N, Z), np.float32)}, r"starts: must be \[r, n, ...\]"),
        ({"starts": np.full((1, N, Z), np.inf, np.float32)}, "starts: must be finite"),
        ({"labels": np.zeros(2, int)}, "labels: must be 3"),
        ({"steps": 0}, "steps=0: must be"),
        ({"lr": 0.0}, "lr=0.0: must be above 0"),
        ({"lr": "fast"}, "lr=fast: "),
        ({"features": Features(lambda x: x, -1)}, "weight=-1: must be"),
        ({"pull": Pull(np.nan)}, "pull=nan: must be"),
        ({"pull": Pull(0.5, np.zeros(3))}, r"center: must be a number or \[5\]"),
        ({"bounds": (1, -1)}, "bounds: must be"),
        ({"variance": 0.0}, "variance=0.0: must be"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_line(case, change, says):
    a, targets, starts = case
    given = {"targets": targets, "starts": starts} | change
    with pytest.raises(UserError, match=says) as raised:
        invert(Partial(linear, a), **given)
    assert "\n" not in str(raised.value)


@pytest.mark.medium
def test_the_control_on_the_article_s_generator(optimized):
    """Its own samples are found; images of noise are not, and the record says so."""
    net = linen_net(mlp.Generator((28, 28, 1)))
    variables = net.init(jax.random.key(0), jnp.zeros((1, 100)))
    generator = Partial(lambda v, z: net.apply(v, z, train=False)[0], variables)
    rng = np.random.default_rng(0)
    z, starts = (rng.uniform(-1, 1, s).astype(np.float32) for s in ((4, 100), (4, 4, 100)))
    samples = np.asarray(generator(z))
    control = invert(generator, samples, starts, bounds=(-1, 1))
    assert control.found.all() and (control.error <= inversion.FOUND).all()
    assert np.abs(control.z).max() <= 1
    noise = rng.uniform(-1, 1, samples.shape).astype(np.float32)
    other = invert(generator, noise, starts, bounds=(-1, 1))
    assert not other.found.any() and "0 of 4 images" in other.says
