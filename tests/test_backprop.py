"""Hand-written reverse mode against JAX's own, central differences and closed forms, in float64.

Two right derivations agree to 1e-12, a right one and a central difference to 1e-6.
"""

import doctest
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from bpgan import backprop as bp
from bpgan import losses, penalties
from bpgan.algorithms import gan, supervised
from bpgan.nets import conv as net_conv
from bpgan.nets import dcgan as dcgan_nets
from bpgan.nets import linen_net
from bpgan.nets import mlp as mlp_nets
from bpgan.types import UserError

NHWC = ("NHWC", "HWIO", "NHWC")


pytestmark = pytest.mark.usefixtures("x64")


def normal(seed, *shape):
    """Standard normal numbers, none closer than 0.01 to the kinks of the layers at 0."""
    x = np.random.default_rng(seed).normal(size=shape)
    return np.where(np.abs(x) < 0.01, 0.5, x)


def distance(a, b):
    """Largest difference between two trees, leaf by leaf relative to the leaf's largest entry."""
    a, b = jax.device_get((a, b))
    jax.tree.map(lambda x, y: np.testing.assert_equal(np.shape(x), np.shape(y)), a, b)
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(np.max(np.abs(x - y)) / max(np.max(np.abs(x)), 1e-30) for x, y in pairs)


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(jax.device_get(tree))))


def difference(a, b):
    return jax.tree.map(np.subtract, *jax.device_get((a, b)))


# --- Layers ---------------------------------------------------------------------------------------


class Case(NamedTuple):
    layer: bp.Layer
    w: dict
    s: dict
    x: np.ndarray
    reference: object  # (w, s, x, train) -> (y, s), written by others


def stateless(function):
    return lambda w, s, x, train: (function(w, x), s)


def lax_conv(w, x, stride, padding):
    y = lax.conv_general_dilated(
        x, w["kernel"], (stride, stride), [(padding, padding)] * 2, dimension_numbers=NHWC
    )
    return y + w["bias"].reshape(1, 1, 1, -1)


def lax_conv_transpose(w, x, stride, padding):
    """lax correlates the dilated input, so the kernel is flipped and paddings are complements."""
    kernel = w["kernel"][::-1, ::-1]
    pads = [(kernel.shape[0] - 1 - padding, kernel.shape[0] - 1 - padding)] * 2
    y = lax.conv_transpose(x, kernel, (stride, stride), pads, dimension_numbers=NHWC)
    return y + w["bias"].reshape(1, 1, 1, -1)


def flax_batch_norm(momentum, epsilon):
    def apply(w, s, x, train):
        module = nn.BatchNorm(not train, momentum=momentum, epsilon=epsilon, dtype=jnp.float64)
        y, mutable = module.apply({"params": w, "batch_stats": s}, x, mutable=["batch_stats"])
        return y, mutable["batch_stats"]

    return apply


CONVS = [  # kernel, stride, padding, size of the input
    (3, 1, 1, (4, 3)),
    (4, 2, 1, (6, 4)),
    (4, 2, 1, (7, 5)),  # the stride does not divide the size: conv overlooks a row and a column
    (5, 2, 2, (3, 4)),
    (2, 3, 0, (4, 5)),
]


def cases():
    bias = normal(1, 3)
    w = {"kernel": normal(2, 5, 3), "bias": bias}
    affine = stateless(lambda w, x: x @ w["kernel"] + w.get("bias", np.zeros(3))[None])
    yield "dense", Case(bp.dense(), w, {}, normal(3, 4, 5), affine)
    yield "dense-no-bias", Case(bp.dense(), {"kernel": w["kernel"]}, {}, normal(3, 4, 5), affine)
    for k, stride, padding, size in CONVS:
        w = {"kernel": normal(4, k, k, 2, 3), "bias": bias}
        x = normal(5, 2, *size, 2)
        by_lax = functools.partial(lax_conv, stride=stride, padding=padding)
        name = f"k{k}s{stride}p{padding}-{size[0]}x{size[1]}"
        yield f"conv-{name}", Case(bp.conv(stride, padding), w, {}, x, stateless(by_lax))
        by_lax = functools.partial(lax_conv_transpose, stride=stride, padding=padding)
        layer = bp.conv_transpose(stride, padding)
        yield f"conv_transpose-{name}", Case(layer, w, {}, x, stateless(by_lax))
    w, s = {"scale": normal(7, 3), "bias": bias}, {"mean": normal(8, 3), "var": normal(9, 3) ** 2}
    for x, settings in ((normal(10, 6, 3), (0.9, 1e-5)), (normal(11, 3, 4, 2, 3), (0.7, 1e-3))):
        layer, reference = bp.batch_norm(*settings), flax_batch_norm(*settings)
        yield f"batch_norm-{x.ndim}d", Case(layer, w, s, x, reference)
    x = normal(12, 4, 3)
    for name, layer, function in (
        ("leaky_relu", bp.leaky_relu(0.3), lambda x: jax.nn.leaky_relu(x, 0.3)),
        ("relu", bp.relu(), jax.nn.relu),
        ("gelu", bp.gelu(), lambda x: jax.nn.gelu(x, approximate=False)),
        ("tanh", bp.tanh(), jnp.tanh),
        ("sigmoid", bp.sigmoid(), jax.nn.sigmoid),
        ("reshape", bp.reshape(3, 1), lambda x: x[:, :, None]),
    ):
        reference = stateless(lambda w, x, function=function: function(x))
        yield name, Case(layer, {}, {}, x, reference)


CASES = dict(cases())


@pytest.mark.medium
@pytest.mark.parametrize("name", CASES)
def test_layer_matches_the_reference_and_finite_differences(name):
    layer, w, s, x, reference = CASES[name]
    w, s, x = jax.tree.map(jnp.asarray, (w, s, x))
    for train in [True, False] if s else [True]:
        compare_with_reference(layer, w, s, x, reference, train)


def compare_with_reference(layer, w, s, x, reference, train):
    @jax.jit
    def by_hand(w, x):
        y, state, cache = layer.forward(w, s, x, train)
        dy = jnp.cos(jnp.arange(y.size)).reshape(y.shape)  # any cotangent without symmetry
        return (y, state), layer.backward(w, cache, dy)[::-1]

    def objective(w, x):
        y, state = reference(w, s, x, train)
        dy = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
        return jnp.sum(dy * y)

    output, gradients = by_hand(w, x)
    expected_output = jax.jit(lambda w, x: reference(w, s, x, train))(w, x)
    expected_gradients = jax.jit(jax.grad(objective, argnums=(0, 1)))(w, x)
    assert distance(output, expected_output) < 1e-12
    assert distance(gradients, expected_gradients) < 1e-12
    check = bp.check_gradients(objective, w, x, gradient=lambda w, x: gradients)
    assert len(check.numeric) == sum(a.size for a in jax.tree.leaves((w, x)))
    assert check.max_relative_error < 1e-6


@pytest.mark.medium
@pytest.mark.parametrize("k, stride, padding, size", CONVS)
def test_conv_transpose_is_the_adjoint_of_conv(k, stride, padding, size):
    """<conv_transpose(x), y> = <x, conv(y)>; and both are the operations of ``bpgan.nets``."""
    kernel = jnp.asarray(normal(1, k, k, 2, 3))
    x = jnp.asarray(normal(2, 2, *size, 2))

    @jax.jit
    def both(kernel, x):
        up, down = bp.conv_transpose(stride, padding), bp.conv(stride, padding)
        up_x = up.forward({"kernel": kernel}, {}, x, True)[0]
        y = jnp.cos(jnp.arange(up_x.size)).reshape(up_x.shape)
        swapped = jnp.swapaxes(kernel, 2, 3)
        down_y = down.forward({"kernel": swapped}, {}, y, True)[0]
        settings = {"stride": stride, "padding": padding}
        theirs = (
            net_conv.conv_transpose(x, kernel, **settings),
            net_conv.conv(y, swapped, **settings),
        )
        return (up_x, down_y), theirs, y

    (up_x, down_y), theirs, y = both(kernel, x)
    assert up_x.shape[1:3] == tuple(stride * (n - 1) + k - 2 * padding for n in size)
    assert down_y.shape == x.shape
    terms = up_x * y
    assert abs(jnp.sum(terms) - jnp.sum(x * down_y)) < 1e-12 * jnp.sum(jnp.abs(terms))
    assert distance((up_x, down_y), theirs) < 1e-12


def test_batch_norm_keeps_running_statistics():
    """In training ``0.9 old + 0.1 batch``, biased variance; in evaluation used and kept."""
    x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    w, s = {"scale": jnp.ones(2), "bias": jnp.zeros(2)}, {"mean": jnp.zeros(2), "var": jnp.ones(2)}
    layer = bp.batch_norm(0.9, 0.0)
    y, s, _ = layer.forward(w, s, x, True)
    np.testing.assert_allclose(y, [[-1, -1], [1, 1]], rtol=1e-12)
    np.testing.assert_allclose(s["mean"], [0.2, 2.0], rtol=1e-12)
    np.testing.assert_allclose(s["var"], [0.9 + 0.1 * 1, 0.9 + 0.1 * 100], rtol=1e-12)
    y, kept, _ = layer.forward(w, s, x, False)
    np.testing.assert_allclose(y, (x - s["mean"][None]) / np.sqrt(s["var"])[None], rtol=1e-12)
    assert distance(kept, s) == 0


def test_sequential_refuses_two_layers_of_one_name():
    with pytest.raises(ValueError, match="must differ"):
        bp.sequential(("a", bp.relu()), ("a", bp.relu()))


# --- Networks -------------------------------------------------------------------------------------


def dcgan_generator(start):
    """``nets.dcgan.Generator`` with two transposed convolutions."""
    return bp.sequential(
        *(("dense0", bp.dense()), ("image", bp.reshape(*start))),
        *(
            ("norm0", bp.batch_norm()),
            ("leaky0", bp.leaky_relu()),
            ("conv0", bp.conv_transpose(2, 1)),
        ),
        *(
            ("norm1", bp.batch_norm()),
            ("leaky1", bp.leaky_relu()),
            ("conv1", bp.conv_transpose(2, 1)),
        ),
        ("tanh", bp.tanh()),
    )


def dcgan_discriminator():
    """``nets.dcgan.Discriminator`` with two convolutions, the second one normalized."""
    return bp.sequential(
        *(("conv0", bp.conv(2, 1)), ("leaky0", bp.leaky_relu())),
        *(("conv1", bp.conv(2, 1)), ("norm1", bp.batch_norm()), ("leaky1", bp.leaky_relu())),
        *(("flatten", bp.reshape(-1)), ("dense0", bp.dense()), ("logits", bp.reshape())),
    )


F64 = {"dtype": jnp.float64}
NETWORKS = {  # name: (Linen, by hand, shape of the input)
    "mlp generator": (
        mlp_nets.Generator((3, 4, 1), (9,), **F64),
        bp.mlp_generator((3, 4, 1), 1),
        (7, 5),
    ),
    "mlp discriminator": (
        mlp_nets.Discriminator((9, 8), **F64),
        bp.mlp_discriminator(2),
        (7, 3, 4, 1),
    ),
    "mlp classifier": (
        mlp_nets.Classifier(3, (30, 20), **F64),
        bp.mlp_classifier(2),
        (7, 3, 4, 1),
    ),
    "cnn classifier": (
        dcgan_nets.Classifier(3, (4, 5), 6, **F64),
        bp.cnn_classifier(2),
        (4, 9, 7, 2),
    ),
    "dcgan generator": (
        dcgan_nets.Generator((8, 12, 2), (4, 3), **F64),
        dcgan_generator((2, 3, 4)),
        (5, 6),
    ),
    "dcgan discriminator": (
        dcgan_nets.Discriminator((4, 5), norm=True, **F64),
        dcgan_discriminator(),
        (4, 8, 8, 2),
    ),
}


TIERS = {
    "cnn classifier": pytest.mark.medium,
    "dcgan generator": pytest.mark.medium,
    "dcgan discriminator": pytest.mark.slow,
}


@functools.cache
def create(name):
    module, layers, shape = NETWORKS[name]
    net = linen_net(module)
    x = jnp.asarray(normal(1, *shape))
    variables = jax.jit(net.init)(jax.random.key(0), x)
    # Linen creates running statistics in float32 whatever the network's type.
    return net, layers, jax.tree.map(lambda a: a.astype(jnp.float64), variables), x


@pytest.fixture(params=[pytest.param(name, marks=TIERS.get(name, ())) for name in NETWORKS])
def network(request):
    """(net, layers, variables, x): the same network by Linen and by hand."""
    return create(request.param)


@pytest.mark.medium
def test_network_and_gradient_match_jax_and_finite_differences(network):
    net, layers, variables, x = network
    stats = {name: value for name, value in variables.items() if name != "params"}

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def run(apply, params, x, train):
        def objective(params, x):
            y, mutable = apply({"params": params, **stats}, x, train=train)
            return jnp.sum(jnp.cos(jnp.arange(y.size)).reshape(y.shape) * y), (y, mutable)

        return jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(params, x)

    apply, params = bp.by_hand(layers), variables["params"]
    for train in (True, False) if stats else (True,):
        (_, outputs), gradients = run(apply, params, x, train)
        (_, expected_outputs), expected_gradients = run(net.apply, params, x, train)
        assert distance(outputs, expected_outputs) < 1e-12
        # The bias before a batch norm has gradient 0, so the tree is compared as a whole.
        assert norm(difference(gradients, expected_gradients)) < 1e-12 * norm(expected_gradients)
        check = bp.check_gradients(
            lambda params, x, train=train: run(apply, params, x, train)[0][0],
            *(params, x),
            gradient=lambda *_, gradients=gradients: gradients,
            directions=8,
        )
        assert check.max_relative_error < 1e-6


def test_value_and_grad_matches_autodiff(network):
    net, layers, variables, x = network
    y = jnp.asarray(
        normal(3, *jax.eval_shape(lambda: net.apply(variables, x, train=True)[0]).shape)
    )
    by_hand = jax.jit(bp.value_and_grad(layers, bp.squared_error))(variables, x, y)
    by_jax = jax.jit(bp.autodiff(net, losses.mean_squared_error))(variables, x, y)
    assert distance(by_hand[0], by_jax[0]) < 1e-12
    assert norm(difference(by_hand[1], by_jax[1])) < 1e-12 * norm(by_jax[1])
    assert jax.tree.structure(by_hand[1]) == jax.tree.structure(variables["params"])


@pytest.mark.medium
@pytest.mark.parametrize(
    "kind, name",
    [("mlp discriminator", name) for name in ("r1", "r2", "wgan_gp")]
    + [("dcgan discriminator", "r1")],
)
def test_second_order_gradient_of_a_penalty_matches_jax(kind, name):
    """The gradient in the parameters of a gradient in x: reverse mode over our backward pass."""
    net, layers, variables, real = create(kind)
    fake = jnp.asarray(normal(2, *real.shape))
    stats = {name: value for name, value in variables.items() if name != "params"}

    def objective(apply, params):
        def critic(x):
            return apply({"params": params, **stats}, x, train=True)[0]

        return jnp.mean(penalties.PENALTIES[name](critic, real, fake, jax.random.key(1)))

    by_hand, by_jax = (
        jax.jit(jax.grad(functools.partial(objective, apply)))(variables["params"])
        for apply in (bp.by_hand(layers), net.apply)
    )
    assert norm(by_jax) > 1e-3
    assert norm(difference(by_hand, by_jax)) < 1e-10 * norm(by_jax)


def test_hessian_by_hand_is_symmetric():
    """<u, H v> = <v, H u>, with H the derivative of the hand-written gradient."""
    layers = bp.sequential(("a", bp.dense()), ("tanh", bp.tanh()), ("b", bp.dense()))
    params = {"a": {"kernel": normal(1, 3, 4)}, "b": {"kernel": normal(2, 4, 2)}}
    x, y = jnp.asarray(normal(3, 5, 3)), jnp.asarray(normal(4, 5, 2))
    params = jax.tree.map(jnp.asarray, params)
    u, v = (jax.tree.map(lambda p, i=i: jnp.asarray(normal(i, *p.shape)), params) for i in (5, 6))

    def gradient(params):
        return bp.value_and_grad(layers, bp.squared_error)({"params": params}, x, y)[1]

    def form(u, v):
        return optax.tree.vdot(u, jax.jvp(gradient, (params,), (v,))[1])

    assert abs(form(u, v)) > 1e-2
    np.testing.assert_allclose(form(u, v), form(v, u), rtol=1e-10)


def test_by_hand_runs_the_handwritten_backward():
    """Doubling a layer's backward doubles the gradient: JAX does not derive its own behind it."""
    honest = bp.dense()
    doubled = bp.Layer(
        honest.forward,
        lambda w, cache, dy: jax.tree.map(lambda g: 2 * g, honest.backward(w, cache, dy)),
    )
    params = {"a": {"kernel": jnp.asarray(normal(1, 3, 2))}}
    x = jnp.asarray(normal(2, 4, 3))

    def gradient(layer):
        apply = bp.by_hand(bp.sequential(("a", layer)))
        f = lambda params, x: jnp.sum(apply({"params": params}, x, train=True)[0] ** 2)  # noqa: E731
        return jax.grad(f, argnums=(0, 1))(params, x)

    assert distance(gradient(doubled), jax.tree.map(lambda g: 2 * g, gradient(honest))) < 1e-12


# --- Losses ---------------------------------------------------------------------------------------


def loss_cases():
    logits = normal(1, 6, 4) * 5
    yield "squared_error", bp.squared_error, normal(2, 6, 2, 3), normal(3, 6, 2, 3)
    yield "cross_entropy", bp.cross_entropy, logits, np.array([0, 3, 1, 1, 2, 0])
    yield "cross_entropy-extreme", bp.cross_entropy, logits * 200, np.array([0, 3, 1, 1, 2, 0])


@pytest.mark.medium
@pytest.mark.parametrize(
    "loss, prediction, target", [c[1:] for c in loss_cases()], ids=[c[0] for c in loss_cases()]
)
def test_supervised_loss_gradient(loss, prediction, target):
    prediction, target = jnp.asarray(prediction), jnp.asarray(target)

    def total(prediction):
        return jnp.sum(loss.value(prediction, target))

    ours = loss.gradient(prediction, target)
    assert distance(ours, jax.grad(total)(prediction)) < 1e-12
    check = bp.check_gradients(total, prediction, gradient=lambda p: (ours,))
    assert check.max_relative_error < 1e-6


def test_the_six_losses_of_the_library_have_handwritten_gradients():
    six = {"minimax", "nonsaturating", "least_squares", "hinge", "wasserstein", "relativistic"}
    assert six <= set(bp.ADVERSARIAL_GRADIENTS) <= set(losses.LOSSES)
    with pytest.raises(
        UserError, match="loss=none: has no hand-written gradient; must be one of minimax"
    ):
        bp.losses_by_hand("none")


@pytest.mark.medium
@pytest.mark.parametrize("player", ["d", "g"])
@pytest.mark.parametrize("name", bp.ADVERSARIAL_GRADIENTS)
def test_adversarial_loss_gradient(name, player):
    real, fake = (a.ravel() for a in jnp.meshgrid(*2 * [jnp.array([-40, -3, -0.5, 0, 0.5, 3, 40])]))
    weight = jnp.asarray(normal(1, real.size))

    def objective(pair, real, fake):
        return jnp.sum(weight * getattr(pair, player)(real, fake))

    ours, theirs = bp.losses_by_hand(name), losses.LOSSES[name]
    assert distance(objective(ours, real, fake), objective(theirs, real, fake)) == 0
    by_hand, by_jax = (
        jax.grad(objective, argnums=(1, 2))(pair, real, fake) for pair in (ours, theirs)
    )
    np.testing.assert_allclose(by_hand, by_jax, rtol=1e-12, atol=1e-300)
    direct = bp.ADVERSARIAL_GRADIENTS[name]["dg".index(player)](real, fake)
    np.testing.assert_allclose(jnp.stack(direct) * weight[None], by_jax, rtol=1e-12, atol=1e-300)

    moderate = jnp.asarray(normal(2, 20)), jnp.asarray(normal(3, 20))
    weight = jnp.asarray(normal(4, 20))
    check = bp.check_gradients(functools.partial(objective, ours), *moderate)
    assert check.max_relative_error < 1e-6


# --- Gradient checking ----------------------------------------------------------------------------


def test_check_gradients_finds_one_wrong_coordinate_among_many():
    x = jnp.asarray(normal(1, 200))

    def gradient(x):
        return (jnp.cos(x).at[17].multiply(1.001),)

    def f(x):
        return jnp.sum(jnp.sin(x))

    assert bp.check_gradients(f, x).max_relative_error < 1e-8
    wrong = bp.check_gradients(f, x, gradient=gradient)
    assert len(wrong.numeric) == 200
    np.testing.assert_allclose(wrong.max_relative_error, 1e-3, rtol=0.01)
    assert abs(wrong.analytic - wrong.numeric).argmax() == 17


def test_check_gradients_takes_random_directions_in_large_spaces():
    tree = {"a": jnp.asarray(normal(1, 40, 20)), "b": jnp.asarray(normal(2, 7))}

    def f(tree):
        return jnp.sum(jnp.sin(tree["a"])) + jnp.prod(jnp.cos(tree["b"]))

    check = bp.check_gradients(f, tree)
    assert check.numeric.shape == (16,)
    assert check.max_relative_error < 1e-6
    again, other = bp.check_gradients(f, tree), bp.check_gradients(f, tree, seed=1, directions=3)
    assert (again.numeric == check.numeric).all() and other.numeric.shape == (3,)
    wrong = bp.check_gradients(
        f, tree, gradient=lambda t: jax.tree.map(lambda g: -g, (jax.grad(f)(t),))
    )
    assert 1.9 < wrong.max_relative_error < 2.1


def test_check_gradients_is_not_fooled_by_nan_and_accepts_a_constant():
    x = jnp.ones(3)
    nan = bp.check_gradients(jnp.sum, x, gradient=lambda x: (x * jnp.nan,))
    assert not nan.max_relative_error < 1e300
    assert bp.check_gradients(lambda x: jnp.sum(0 * x), x).max_relative_error == 0
    wrong = bp.check_gradients(lambda x: jnp.sum(0 * x), x, gradient=lambda x: (x,))
    np.testing.assert_allclose(wrong.max_relative_error, 1)


def test_check_gradients_refuses_what_it_cannot_compare():
    x = jnp.ones(3)
    with pytest.raises(ValueError, match="scalar"):
        bp.check_gradients(lambda x: x, x, gradient=lambda x: (x,))
    with pytest.raises(ValueError, match="shapes"):
        bp.check_gradients(jnp.sum, x, gradient=lambda x: (x[:2],))


def test_examples_in_docstrings():
    found = [doctest.testmod(m) for m in (bp.layers, bp.networks, bp.losses, bp.chain, bp.check)]
    assert sum(each.failed for each in found) == 0
    assert sum(each.attempted for each in found) > 3


# --- The one-player algorithm ---------------------------------------------------------------------


def line_fit(axis_name=None, tx=None):
    layers = bp.sequential(("dense0", bp.dense()))
    zeros = {"dense0": {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}}
    return supervised.make(
        lambda key, x: {"params": zeros},
        bp.value_and_grad(layers, bp.squared_error),
        optax.sgd(0.05) if tx is None else tx,
        data_shape=(2,),
        dtype=jnp.float64,
        axis_name=axis_name,
    )


def run(algorithm, batch, steps):
    def body(state, _):
        return algorithm.step(state, batch, jax.random.key(0))

    return jax.jit(lambda: lax.scan(body, algorithm.init(jax.random.key(1)), length=steps))()


@pytest.mark.parametrize("momentum", [None, 0.8])
def test_gradient_descent_follows_the_linear_recursion(momentum):
    """On a quadratic, ``e <- e - lr m``, ``m <- beta m + H e`` with ``H = 2 X^T X / n`` exactly."""
    x, y = normal(1, 9, 2), normal(2, 9, 1)
    design = np.concatenate([x, np.ones((9, 1))], axis=1)
    optimum = np.linalg.lstsq(design, y, rcond=None)[0]
    hessian = 2 / 9 * design.T @ design
    error, velocity = -optimum, np.zeros((3, 1))
    for _ in range(60):
        velocity = (momentum or 0) * velocity + hessian @ error
        error = error - 0.05 * velocity
    algorithm = line_fit(tx=optax.sgd(0.05, momentum))
    state, metrics = run(algorithm, {"x": jnp.asarray(x), "y": jnp.asarray(y)}, 60)
    layer = state.players[supervised.NET].params["dense0"]
    found = np.concatenate([layer["kernel"], layer["bias"][None]])
    np.testing.assert_allclose(found - optimum, error, rtol=1e-10)
    assert state.step == 60 and set(metrics) == {"loss", "grad_norm"}
    np.testing.assert_allclose(metrics["loss"][0], np.mean(y**2), rtol=1e-12)
    np.testing.assert_allclose(
        metrics["grad_norm"][0], np.linalg.norm(hessian @ optimum), rtol=1e-12
    )


@pytest.mark.medium
def test_mapped_step_equals_the_step_of_the_whole_batch():
    x, y = jnp.asarray(normal(1, 8, 2)), jnp.asarray(normal(2, 8, 1))
    algorithm, mapped = line_fit(), line_fit("devices")
    key = jax.random.key(0)
    state = algorithm.init(key)
    whole = algorithm.step(state, {"x": x, "y": y}, key)
    split = {"x": x.reshape(4, 2, 2), "y": y.reshape(4, 2, 1)}
    parts = jax.vmap(mapped.step, in_axes=(None, 0, None), axis_name="devices")(state, split, key)
    for device in range(4):
        assert distance(jax.tree.map(lambda a, i=device: a[i], parts), whole) < 1e-12


@pytest.mark.medium
def test_mapped_step_averages_running_statistics():
    layers = bp.sequential(("dense0", bp.dense()), ("norm0", bp.batch_norm(0.9)))
    w = {"dense0": {"kernel": jnp.eye(2)}, "norm0": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}
    s = {"norm0": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}
    algorithm = supervised.make(
        lambda key, x: {"params": w, "batch_stats": s},
        bp.value_and_grad(layers, bp.squared_error),
        optax.sgd(0.1),
        data_shape=(2,),
        axis_name="devices",
    )
    x, key = jnp.asarray(normal(1, 4, 3, 2)), jax.random.key(0)
    step = jax.vmap(algorithm.step, in_axes=(None, 0, None), axis_name="devices")
    state, _ = step(algorithm.init(key), {"x": x, "y": x}, key)
    mean = 0.1 * np.mean(x, axis=(0, 1))
    var = 0.9 + 0.1 * np.mean(np.var(x, axis=1), axis=0)
    for device in range(4):
        stats = state.players[supervised.NET].stats["batch_stats"]["norm0"]
        found = jax.tree.map(lambda a, i=device: a[i], stats)
        assert distance(found, {"mean": mean, "var": var}) < 1e-12


def test_accuracy():
    logits = jnp.array([[2.0, 1, 0], [0, 3, 1], [5, 0, 9], [1, 0, 0]])
    assert supervised.accuracy(logits, jnp.array([0, 1, 0, 2])) == 0.5


# --- The two halves joined ------------------------------------------------------------------------


@pytest.mark.medium
@pytest.mark.parametrize(
    "name, dtype, tolerance",
    [
        pytest.param("nonsaturating", "float32", 1e-5, marks=pytest.mark.slow),
        pytest.param("nonsaturating", "float64", 1e-10, marks=pytest.mark.slow),
        ("relativistic", "float64", 1e-10),
    ],
)
def test_gan_on_handwritten_gradients_follows_the_autodiff_run(name, dtype, tolerance):
    """100 steps of the article's GAN (100-128-784, 784-128-64-1) end at the same parameters."""
    shape, dtype = (28, 28, 1), jnp.dtype(dtype)
    g = linen_net(mlp_nets.Generator(shape, (128,), dtype=dtype))
    d = linen_net(mlp_nets.Discriminator((128, 64), dtype=dtype))
    x = jnp.asarray(np.tanh(normal(1, 16, *shape)), dtype)

    def train(g, d, loss):
        algorithm = gan.make(
            gan.Networks(g, d, gan.uniform_latents(100, dtype), shape, dtype),
            loss,
            gan.Optimizers(optax.adam(2e-4, b1=0.5), optax.adam(2e-4, b1=0.5)),
        )
        return run(algorithm, {"x": x}, 100)[0]

    g_by_hand = g._replace(apply=bp.by_hand(bp.mlp_generator(shape)))
    d_by_hand = d._replace(apply=bp.by_hand(bp.mlp_discriminator()))
    by_hand = train(g_by_hand, d_by_hand, bp.losses_by_hand(name))
    by_jax = train(g, d, losses.LOSSES[name])
    start = g.init(jax.random.key(2), jnp.zeros((2, 100), dtype))["params"]
    for player in ("g", "d"):
        ours, theirs = (state.players[player].params for state in (by_hand, by_jax))
        assert norm(difference(ours, theirs)) < tolerance * norm(theirs)
    assert norm(difference(by_jax.players["g"].params, start)) > 0.1
