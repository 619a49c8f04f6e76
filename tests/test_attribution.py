"""Attribution: linear scores in closed form, completeness of smooth and of leaky ones, and what is not complete."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.tree_util import Partial

from bpgan.insight import attribution
from bpgan.insight.attribution import (
    class_logit,
    expected_gradients,
    gradient,
    gradient_times_input,
    integrated_gradients,
    randomized_weights,
    smoothgrad,
)
from bpgan.nets import dcgan, linen_net, mlp, stylegan2
from bpgan.types import UserError

SHAPE = (4, 4, 3)
KEY = jax.random.key(0)


def images(n, seed=0, shape=SHAPE):
    return np.random.default_rng(seed).uniform(-1, 1, (n, *shape)).astype(np.float32)


def perceptron(activation, variables, x):
    """Of two hidden layers, by plain products."""
    w0, w1, w2 = variables
    h = activation(x.reshape(len(x), -1) @ w0)
    return activation(h @ w1) @ w2


def kernels(seed, sizes=(48, 64, 64), gain=2.0):
    rng = np.random.default_rng(seed)
    pairs = zip((*sizes[:-1], sizes[-1]), (*sizes[1:], 0), strict=True)
    return tuple(
        (gain * rng.standard_normal((i, o) if o else i) / np.sqrt(i)).astype(np.float32)
        for i, o in pairs
    )


def leaky(x):
    return jnp.where(x > 0, x, 0.2 * x)


def linear(w, x):
    return x.reshape(len(x), -1) @ w


def by_label(w, x, labels):
    """A linear score with weights for each label."""
    return jnp.sum(x.reshape(len(x), -1) * w[labels], 1)


@pytest.fixture(scope="module")
def smooth():
    return Partial(Partial(perceptron, jnp.tanh), kernels(0))


def check_linear(method):
    """Exact with one node, whatever the baseline."""
    w = np.random.default_rng(1).standard_normal(48).astype(np.float32)
    for x, baseline in [(images(3), -1.0), (images(3), images(3, 7)), (images(3), images(1, 5)[0])]:
        found = method(Partial(linear, w), x, baseline, nodes=1)
        np.testing.assert_allclose(found.map, w.reshape(SHAPE) * (x - baseline), atol=1e-5)
        assert (found.residual < 1e-4).all()


def check_complete(method, score):
    x = images(16)
    found = method(score, x, images(16, 9), nodes=64)
    gap = np.abs(found.map.reshape(16, -1).sum(1) - found.difference)
    np.testing.assert_allclose(gap / np.abs(found.difference), found.residual, rtol=1e-6)
    assert (found.residual <= 1e-3).all()


def without_baseline(score, x, baseline, nodes):
    """Mutant: the way begins at 0."""
    found, real = integrated_gradients(score, x, 0.0, nodes=nodes), gradient(score, x, baseline)
    residual = np.abs(found.map.reshape(len(x), -1).sum(1) / real.difference - 1)
    return real._replace(map=found.map, residual=residual)


def left_sum(score, x, baseline, nodes):
    """Mutant: the gradients at 0, 1/n, ..., (n - 1)/n have equal weights."""
    places = [gradient(score, baseline + i / nodes * (x - baseline), 0.0) for i in range(nodes)]
    found = (x - baseline) * np.mean([each.map for each in places], 0)
    real = gradient(score, x, baseline)
    residual = np.abs(found.reshape(len(x), -1).sum(1) / real.difference - 1)
    return real._replace(map=found, residual=residual)


def product(score, x, baseline, nodes):
    """Mutant: gradient x input for everything."""
    del nodes
    return gradient_times_input(score, x, baseline)


def slope(score, x, baseline, nodes):
    """Mutant: the gradient for everything."""
    del nodes
    return gradient(score, x, baseline)


def test_integrated_gradients_are_exact_where_they_must_be(smooth):
    check_linear(integrated_gradients)
    check_complete(integrated_gradients, smooth)
    soft = Partial(Partial(perceptron, jax.nn.softplus), kernels(3))
    check_complete(integrated_gradients, soft)


@pytest.mark.parametrize("mutant", [without_baseline, left_sum, product, slope])
def test_mutants_die(smooth, mutant):
    with pytest.raises(AssertionError):
        check_linear(mutant)
        check_complete(mutant, smooth)


def test_what_is_not_complete(smooth):
    """The gradient, its product with the input and SmoothGrad do not account for the score of a net that bends."""
    x, baseline = images(16), images(16, 9)
    for found in (
        gradient(smooth, x, baseline),
        gradient_times_input(smooth, x, baseline),
        smoothgrad(smooth, x, baseline, KEY),
    ):
        assert np.median(found.residual) > 0.1
        assert np.isfinite(found.residual).all()
    wanted = jax.grad(lambda x: jnp.sum(smooth(x)))(x)
    np.testing.assert_allclose(gradient(smooth, x, -1.0).map, wanted, atol=1e-5)
    np.testing.assert_allclose(gradient_times_input(smooth, x).map, wanted * x, atol=1e-5)
    quiet = smoothgrad(smooth, x, -1.0, KEY, noise=0.0, samples=2)
    np.testing.assert_allclose(quiet.map, wanted, atol=1e-5)


def test_other_methods_of_a_linear_score():
    w = np.random.default_rng(1).standard_normal(48).astype(np.float32)
    x, score = images(3), Partial(linear, w)
    np.testing.assert_allclose(
        smoothgrad(score, x, -1.0, KEY, noise=2.0).map, np.stack([w.reshape(SHAPE)] * 3), atol=1e-5
    )
    found = gradient_times_input(score, x, 0.25)
    np.testing.assert_allclose(found.map, w.reshape(SHAPE) * (x - 0.25), atol=1e-5)
    assert (found.residual < 1e-4).all()
    # of one reference, which is a baseline then
    found = expected_gradients(score, x, images(1, 8), KEY, samples=2)
    np.testing.assert_allclose(found.map, w.reshape(SHAPE) * (x - images(1, 8)), atol=1e-5)
    assert (found.residual < 1e-4).all() and (found.standard_error < 1e-4).all()


def test_kinks_halve_the_gap_on_average():
    """Along a line the gradient of leaky ReLUs is constant between jumps: of first order, for any rule.

    The average is over 64 images, and over their differences in the score: that of a single image may grow.
    """
    score = Partial(Partial(perceptron, leaky), kernels(0, sizes=(48, 16, 16)))
    x, gaps = images(64), []
    for nodes in (8, 16, 32, 64, 128):
        found = integrated_gradients(score, x, images(64, 9), nodes=nodes)
        gaps.append(np.abs(found.map.reshape(64, -1).sum(1) - found.difference))
    shares = np.mean(gaps, 1) / np.mean(np.abs(found.difference))
    assert shares[3] <= 1e-2
    assert 1.6 < (shares[0] / shares[-1]) ** 0.25 < 2.5
    assert (gaps[-1] > gaps[-2]).any()


def test_two_networks_of_one_function_have_one_attribution():
    """Units in another order, twice as steep before and half as much behind, and one of them split in two."""
    w0, w1, w2 = kernels(4)
    order = np.random.default_rng(0).permutation(64)
    wide = np.concatenate([w1[order] / 2, w1[order][:1] / 2])
    wide[0] -= wide[-1] * 0.5
    wide[-1] *= 0.5
    v0 = 2 * w0[:, order]
    other = (np.concatenate([v0, v0[:, :1]], 1), wide, w2)
    x, net = images(4), Partial(perceptron, leaky)
    a, b = (integrated_gradients(Partial(net, v), x, -1.0, nodes=16) for v in (kernels(4), other))
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
    np.testing.assert_allclose(a.map, b.map, atol=1e-4)


def test_expected_gradients_are_complete_up_to_their_standard_error(smooth):
    x, references = images(48), images(20, 6)
    found = expected_gradients(smooth, x, references, KEY, samples=64)
    scores = np.asarray(smooth(references))
    np.testing.assert_allclose(found.difference, found.scores - scores.mean(), atol=1e-5)
    ratio = found.residual / found.standard_error
    assert 0.7 < np.sqrt(np.mean(ratio**2)) < 1.4
    again = expected_gradients(smooth, x[:5], references, KEY, samples=64)
    np.testing.assert_allclose(again.map, found.map[:5], rtol=1e-4, atol=1e-6)
    more = expected_gradients(smooth, x, references, jax.random.key(1), samples=256)
    assert 1.6 < np.median(found.standard_error / more.standard_error) < 2.5


def test_labels_go_with_their_images(smooth):
    """Through nodes, samples and references."""
    w = np.random.default_rng(2).standard_normal((5, 48)).astype(np.float32)
    x, labels, score = images(6), np.array([4, 0, 3, 3, 1, 2]), Partial(by_label, w)
    each = w[labels].reshape(6, *SHAPE)
    found = integrated_gradients(score, x, -1.0, nodes=50, labels=labels)
    np.testing.assert_allclose(found.map, each * (x + 1), atol=1e-5)
    assert (found.residual < 1e-4).all()
    found = smoothgrad(score, x, -1.0, KEY, samples=50, labels=labels)
    np.testing.assert_allclose(found.map, each, atol=1e-5)
    references = images(9, 5)
    found = expected_gradients(score, x, references, KEY, samples=64, labels=labels)
    means = np.sum(each * (x - references.mean(0)), (1, 2, 3))
    np.testing.assert_allclose(found.difference, means, atol=1e-4)
    assert (found.residual < 5 * found.standard_error).all()
    # of a classifier, the logit of each image's label
    logit = class_logit(lambda x: x.reshape(len(x), -1) @ w.T)
    np.testing.assert_allclose(gradient(logit, x, -1.0, labels=labels).map, each, atol=1e-5)


def test_each_image_is_scored_alone():
    def among_others(x):
        return jnp.sum(x - jnp.mean(x, 0, keepdims=True), (1, 2, 3)) + 3.0

    found = gradient(among_others, images(4), -1.0)
    np.testing.assert_allclose(found.scores, 3.0, atol=1e-5)
    assert not found.map.any() and not found.residual.any()


def test_large_images_are_taken_in_blocks():
    """One at a time, if they are as large as that; and none comes into the other's map."""
    w = np.random.default_rng(0).standard_normal(720 * 720).astype(np.float32)
    x = images(2, shape=(720, 720, 1))
    found = integrated_gradients(Partial(linear, w), x, -1.0, nodes=3)
    np.testing.assert_allclose(found.map, w.reshape(720, 720, 1) * (x + 1), atol=1e-5)


def test_other_weights_need_no_other_program():
    traced = []

    def score(w, x):
        traced.append(x.shape)
        return linear(w, x)

    rng, x = np.random.default_rng(0), images(3)
    for _ in range(3):
        score_of = Partial(score, rng.standard_normal(48).astype(np.float32))
        integrated_gradients(score_of, x, -1.0, nodes=70)
        smoothgrad(score_of, x, -1.0, KEY)
    assert len(traced) <= 2  # its shape, and its gradient


def test_baselines():
    x = images(2, shape=(28, 28, 1))
    np.testing.assert_array_equal(attribution.black(x), np.full_like(x, -1))
    np.testing.assert_allclose(attribution.mean(x), x.mean(0), atol=1e-6)
    found = attribution.blurred(x, 2.0)
    assert found.shape == x.shape and 0 < found.std() < 0.25 * x.std()
    flat = np.full((1, 8, 8, 3), 0.25, np.float32)
    flat[..., 1] = -0.5  # colors are not mixed
    np.testing.assert_allclose(attribution.blurred(flat), flat, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s, x: gradient(s, (x * 255).astype(np.uint8), -1.0), "x: must be floats, not uint8"),
        (lambda s, x: gradient(s, np.where(x > 0.99, np.nan, x), -1.0), "x: must be finite"),
        (lambda s, x: gradient(s, x[0, 0, 0], -1.0), "x: must be"),
        (lambda s, x: gradient(s, x[:0], -1.0), "x: must be .* not empty"),
        (lambda s, x: gradient(s, images(2, shape=(5, 5, 3)), -1.0), "x: the function does not take"),
        (lambda s, x: gradient(s, x, x[:2]), "baseline: is"),
        (lambda s, x: gradient(s, x, np.nan), "baseline: must be finite"),
        (lambda s, x: gradient(s, x, -1.0, labels=np.arange(2)), "labels: must be 3, one for each"),
        (lambda s, x: gradient(lambda x: jnp.sum(x, (2, 3)), x, -1.0), "must make one number of a"),
        (lambda s, x: gradient(lambda x: jnp.sum(x), x, -1.0), "must make one row"),
        (lambda s, x: gradient(lambda x: jnp.sum(x, (1, 2, 3)) * np.arange(3.0), x, -1.0), "`labels`"),
        (lambda s, x: gradient(lambda x: jnp.log(jnp.sum(x - 2, (1, 2, 3))), x, -1.0), "not finite"),
        (lambda s, x: integrated_gradients(s, x, -1.0, nodes=0), "nodes=0: must be"),
        (lambda s, x: smoothgrad(s, x, -1.0, KEY, noise=-1), "noise=-1: must be"),
        (lambda s, x: expected_gradients(s, x, x, KEY, samples=1), "samples=1: must be"),
        (lambda s, x: expected_gradients(s, x, x[..., :1], KEY), "references: images are"),
        (lambda s, x: attribution.blurred(x[0]), "x: must be images"),
        (lambda s, x: attribution.blurred(x, 0), "sigma=0: must be"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_line(smooth, call, says):
    with pytest.raises(UserError, match=says) as raised:
        call(smooth, images(3))
    assert "\n" not in str(raised.value)


# Randomized weights


def net(module, *inputs):
    """``apply`` and two initializations."""
    made = linen_net(module)
    trained, fresh = (made.init(jax.random.key(seed), *inputs) for seed in (0, 1))
    return (lambda v, *inputs: made.apply(v, *inputs, train=False)[0]), trained, fresh


def test_layers_in_the_order_of_their_use():
    """Names need not say it, and what becomes of a parameter before it meets the image is no use of it."""

    def apply(variables, x, labels):
        p = variables["params"]
        scaled = jax.tree.map(lambda w: w / 2, p)
        h = jax.jit(lambda x, w: jnp.tanh(x @ w))(x.reshape(len(x), -1), scaled["zeta"]["w"])
        h = jax.lax.cond(jnp.sum(h) > 0, lambda h: h * p["mid"], lambda h: h, h)
        return jnp.sum(h * scaled["alpha"][labels], 1) + 0 * variables["other"]

    params = {"alpha": np.ones((3, 5)), "mid": np.ones((1, 5)), "zeta": {"w": np.ones((48, 5))}}
    variables = {"params": params, "other": np.zeros(1)}
    found = attribution.layers_of(apply, variables, images(2), np.arange(2))
    assert found == ("zeta", "mid", "alpha")
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    for module, wanted in [
        (dcgan.Discriminator((4, 8), full_resolution=4, hidden=8), "conv0 conv1 conv2 dense0 dense1"),
        (stylegan2.Discriminator((8, 4)), "conv0 block0 conv1 dense0 dense1"),
    ]:  # fmt: skip
        made = linen_net(module)
        variables = jax.eval_shape(made.init, KEY, x)
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
        used = attribution.layers_of(
            lambda v, x, made=made: made.apply(v, x, train=False)[0], zeros, images(1, 0, (8, 8, 3))
        )
        assert " ".join(used) == wanted


@pytest.mark.medium
def test_a_map_that_ignores_the_weights_is_found_out():
    shape = (12, 12, 1)
    x = images(4, shape=shape)
    apply, trained, fresh = net(mlp.Discriminator((32, 32)), x)
    layers = attribution.layers_of(apply, trained, x)

    def edges(variables):
        del variables
        return np.abs(np.diff(x, axis=1))

    found = randomized_weights(edges, trained, fresh, layers)
    np.testing.assert_allclose(found.correlations, 1.0)
    assert found.left == pytest.approx(1) and not found.depends

    def explain(variables):
        return integrated_gradients(Partial(apply, variables), x, -1.0, nodes=8).map

    found = randomized_weights(explain, trained, fresh, layers)
    assert found.layers == ("dense2", "dense1", "all") and found.correlations.shape == (3, 4)
    assert found.depends and found.left == np.abs(found.correlations[-1]).mean()
    wanted = [
        float(np.asarray(scipy.stats.spearmanr(a.ravel(), b.ravel()))[0])
        for a, b in zip(explain(trained), explain(fresh), strict=True)
    ]
    np.testing.assert_allclose(found.correlations[-1], wanted, atol=1e-12)
    np.testing.assert_allclose(randomized_weights(explain, trained, fresh).correlations[-1], wanted)
    # The first row has the top layer anew, and nothing else.
    top = {"params": trained["params"] | {"dense2": fresh["params"]["dense2"]}}
    only = randomized_weights(explain, trained, top).correlations
    np.testing.assert_array_equal(found.correlations[0], only[0])
    same = randomized_weights(lambda v: np.zeros((2, 3)), trained, fresh)
    np.testing.assert_array_equal(same.correlations, 1.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v, f: (v["params"], f, ()), "variables: must be"),
        (lambda v, f: (v, {"params": {}}, ()), "fresh: must be variables of the same network"),
        (lambda v, f: (v, f, ("dense7",)), "layers=dense7: must be different ones of dense0"),
    ],
)
def test_other_networks_are_refused(change, says):
    _, trained, fresh = net(mlp.Discriminator(()), images(1))
    with pytest.raises(UserError, match=says):
        randomized_weights(lambda v: np.ones((1, 3)), *change(trained, fresh))


@pytest.mark.medium
def test_networks_of_runs():
    """A conditional D of color images, with norms, and a classifier of gray ones: no kink costs a hundredth."""
    x, labels = images(4, shape=(12, 12, 3)), np.array([2, 0, 1, 1])
    apply, trained, _ = net(dcgan.Discriminator((4, 8), norm=True, classes=3), x, labels)
    conditional = integrated_gradients(Partial(apply, trained), x, -1.0, nodes=128, labels=labels)
    gray = images(4, shape=(12, 12, 1))
    apply, trained, _ = net(dcgan.Classifier(3, widths=(4, 8), hidden=8), gray)
    logit = class_logit(Partial(apply, trained))
    classified = integrated_gradients(logit, gray, attribution.blurred(gray), labels=labels)
    assert (classified.residual < 1e-3).all()  # GELU is smooth
    gap = np.abs(conditional.map.reshape(4, -1).sum(1) - conditional.difference)
    assert gap.mean() < 1e-2 * np.abs(conditional.difference).mean()
