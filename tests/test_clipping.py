"""Clipped sums of the gradients of single records: every form against a loop over records, and the bound."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from bpgan.algorithms import gan, turns
from bpgan.losses import AUXILIARY, LOSSES
from bpgan.nets import dcgan, layers, linen_net, mlp, r3gan, vit
from bpgan.penalties import PENALTIES, weighted
from bpgan.privacy import clipping
from bpgan.types import Net, UserError

SHAPE, CLASSES = (8, 8, 1), 3
FORMS = ("vmap", "auto", "ghost", "microbatch=2", "microbatch=7")


class Spectral(nn.Module):
    """A dense layer and a convolution with spectral norm."""

    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x, labels=None, *, train=False):
        kind = dict(dtype=self.dtype, spectral=True)
        x = jax.nn.relu(layers.Conv(4, 3, name="conv0", **kind)(x, train=train))
        return layers.Dense(1, name="dense0", **kind)(x.reshape(len(x), -1), train=train)[:, 0]


def tied(dtype):
    """A kernel that is used twice, once the other way round, and divided; a leaf that is a plain factor."""

    def init(key, x):
        w = jax.random.normal(key, (x[0].size, 5), dtype)
        return {
            "params": {"w": w, "scale": jnp.ones((8, 8, 1), dtype), "unused": jnp.ones(3, dtype)}
        }

    def apply(variables, x, train):
        p = variables["params"]
        h = (x * p["scale"][None]).reshape(len(x), -1)
        back = jnp.tanh(h @ p["w"] / 8) @ p["w"].T
        return -jnp.mean(jnp.square(back - h), 1), {}

    return Net(init, apply)


def discriminators(dtype):
    """By name: the network, penalties, the head, and whether there is a ``ghost`` form."""
    r1, gp = (weighted(0.3, PENALTIES[name]) for name in ("r1", "wgan_gp"))
    kind = dict(dtype=dtype)
    return {
        "mlp": (mlp.Discriminator((7, 5), **kind), (), None, True),
        "mlp of labels": (mlp.Discriminator((7, 5), classes=CLASSES, **kind), (r1,), None, True),
        "dcgan": (dcgan.Discriminator((4, 6), **kind), (), None, True),
        "dcgan, penalties": (dcgan.Discriminator((4, 6), **kind), (r1, gp), None, True),
        "lite of labels": (
            dcgan.Discriminator((4,), 3, 5, classes=CLASSES, head="acgan", **kind), (), "acgan", True,
        ),
        "grouped": (r3gan.Discriminator((32, 16), 1, **kind), (r1,), None, False),
        "transformer": (
            vit.Discriminator(width=8, depth=1, heads=2, patch=4, classes=CLASSES, **kind), (), None, True,
        ),
        "spectral": (Spectral(**kind), (), None, False),
        "tied": (tied(dtype), (), None, False),
    }  # fmt: skip


NAMES = tuple(discriminators(jnp.float32))


def make(name, b, dtype=jnp.float64, loss="nonsaturating", **kind):
    """The objective of D, what there is now, and whether there is a ghost form."""
    module, penalties, head, has_ghost = discriminators(dtype)[name]
    d = module if isinstance(module, Net) else linen_net(module)
    labeled = getattr(module, "classes", 0)
    g = linen_net(mlp.Generator(SHAPE, (3,), dtype=dtype, classes=labeled))
    networks = gan.Networks(g, d, gan.normal_latents(2, dtype), SHAPE, dtype)
    condition = gan.Condition(labeled, AUXILIARY[head] if head else None)
    setting = gan.Setting(networks, LOSSES[loss], condition, penalties=gan.named(penalties), **kind)
    keys = list(jax.random.split(jax.random.key(5), 5))
    y = (jnp.arange(b, dtype=jnp.int32) % CLASSES,) if labeled else ()
    x, fake = (jax.random.normal(k, (b, *SHAPE), dtype) for k in keys[:2])
    players = {}
    for player, net, shown in (("g", g, jnp.zeros((b, 2), dtype)), ("d", d, x)):
        variables = dict(net.init(keys[2], shown, *y))
        players[player] = turns.Player(variables.pop("params"), variables, None)
    # Kernels and biases of all sizes, so that no leaf is forgotten without notice.
    leaves, tree = jax.tree.flatten(players["d"].params)
    noise = jax.random.split(keys[3], len(leaves))
    leaves = [
        w + 0.1 * jax.random.normal(k, w.shape, w.dtype) for w, k in zip(leaves, noise, strict=True)
    ]
    players["d"] = players["d"]._replace(params=jax.tree.unflatten(tree, leaves))
    batch = {"x": x, "fake": fake, "z": jnp.zeros((b, 2), dtype), **({"y": y[0]} if y else {})}
    zero = jnp.zeros((), jnp.int32)
    now = turns.Now(players, batch, keys[4], zero, zero, {}, turns.TOGETHER)
    return functools.partial(gan.d_objective, setting), now, has_ghost


def compiled(objective, form, **options):
    """``(now, mask, clip) -> Clipped``, one program for all of them."""
    return jax.jit(
        lambda now, mask, clip: clipping.clipped_sum(
            objective, now, "d", mask, clip, form, **options
        )
    )


def run(objective, now, mask, clip, form, **options):
    return compiled(objective, form, **options)(now, mask, clip)


def one_by_one(objective, now, b, views=1):
    """Of each record in a batch of its own: the value, and the gradient's leaves in NumPy."""
    autodiff = jax.jit(lambda now: turns.autodiff(objective, now, "d"))
    for i in range(b):
        rows = {name: x[i * views : (i + 1) * views] for name, x in now.batch.items()}
        (value, _), gradient = autodiff(
            now._replace(batch=rows, key=jax.random.fold_in(now.key, i))
        )
        yield float(value), [np.asarray(g, np.float64) for g in jax.tree.leaves(gradient)]


def loop(objective, now, mask, clip, views=1):
    """One record after the other: the gradient of its own batch, its norm, the sum, in NumPy."""
    return clipped(one_by_one(objective, now, len(mask), views), mask, clip)


def clipped(each, mask, clip):
    """Their sum, values and norms, of what ``one_by_one`` found."""
    total, values, norms = None, [], []
    for (value, leaves), counts in zip(each, mask, strict=True):
        norm = np.sqrt(sum(np.sum(g**2) for g in leaves))
        values.append(value if counts else 0.0)
        norms.append(norm if counts else 0.0)
        scaled = [g * min(1, clip / norm) * bool(counts) for g in leaves]
        total = scaled if total is None else [a + b for a, b in zip(total, scaled, strict=True)]
    return total, np.array(values), np.array(norms)


def largest(leaves):
    return max(float(np.max(np.abs(x))) for x in leaves)


def close(found, expected, tolerance):
    """Within a share of the largest number of all leaves."""
    total, values, norms = expected
    assert all(g.shape == w.shape for g, w in zip(jax.tree.leaves(found.sum), total, strict=True))
    for g, w in zip(jax.tree.leaves(found.sum), total, strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * largest(total))
    np.testing.assert_allclose(found.values, values, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found.norms, norms, rtol=tolerance)


def length(tree):
    return np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in jax.tree.leaves(tree)))


def others_are_medium(quick, *others):
    return [quick, *(pytest.param(name, marks=pytest.mark.medium) for name in others)]


# With penalties, all that is asked of "dcgan" is asked of more.
SLOW = [pytest.param("dcgan", marks=pytest.mark.slow)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*others_are_medium(*(n for n in NAMES if n != "dcgan")), *SLOW])
def test_every_form_is_a_loop_over_records(x64, name):
    objective, now, has_ghost = make(name, 5)
    mask = np.array([True, True, False, True, True])
    each = list(one_by_one(objective, now, len(mask)))
    between = float(np.median(clipped(each, mask, 1e9)[2]))
    for form in FORMS:
        if form == "ghost" and not has_ghost:
            continue
        of = compiled(objective, form)
        for clip in (between, 1e9):
            close(of(now, mask, clip), clipped(each, mask, clip), 1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_float32_is_exact_to_a_millionth(name):
    objective, now, has_ghost = make(name, 5, jnp.float32)
    mask = np.ones(5, bool)
    expected = loop(objective, now, mask, 0.5)
    for form in ("vmap", "auto") + ("ghost",) * has_ghost:
        found = run(objective, now, mask, 0.5, form)
        np.testing.assert_allclose(found.norms, expected[2], rtol=2e-6)
        for g, w in zip(jax.tree.leaves(found.sum), expected[0], strict=True):
            np.testing.assert_allclose(g, w, rtol=0, atol=2e-6 * largest(expected[0]))


@pytest.mark.medium
@pytest.mark.parametrize("form", ["auto", "vmap", "ghost", "microbatch=2"])
def test_without_a_clip_it_is_the_ordinary_gradient(x64, form):
    objective, now, _ = make("dcgan", 6)
    _, gradient = jax.jit(lambda now: turns.autodiff(objective, now, "d"))(now)
    of = compiled(objective, form)
    for clip in (np.inf, 1e30):
        total, *_ = of(now, np.ones(6, bool), clip)
        for g, w in zip(jax.tree.leaves(total), jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(g / 6, w, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["auto", "vmap", "ghost", "microbatch=2"])
def test_what_is_masked_leaves_no_trace(form):
    """The same bits, whatever stands in the rows that do not count; of an empty batch, zeros."""
    objective, now, _ = make("dcgan", 5, jnp.float32)
    program = compiled(objective, form)

    def of(mask, fill):
        def filled(x):
            counts = np.asarray(mask).reshape(-1, *(1,) * (x.ndim - 1))
            return jnp.where(counts, x, jnp.asarray(fill, x.dtype))

        batch = {name: filled(x) for name, x in now.batch.items()}
        return program(now._replace(batch=batch), np.asarray(mask), 0.5)

    mask = [True, False, True, False, True]
    ordinary, *others = (of(mask, fill) for fill in (0.3, np.nan, np.inf, 1e30))
    assert np.all(np.isfinite(ordinary.norms)) and ordinary.norms[1] == ordinary.values[1] == 0
    for other in others:
        for a, b in zip(jax.tree.leaves(ordinary), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)
    assert all(np.all(x == 0) for x in jax.tree.leaves(of([False] * 5, np.nan)))


@pytest.mark.medium
@pytest.mark.parametrize("name", others_are_medium("mlp", "dcgan, penalties"))
def test_no_record_moves_the_sum_by_more_than_the_clip(name):
    """Whatever it is: large, far too large, or one whose two terms nearly cancel."""
    clip, b = 0.5, 4
    objective, now, _ = make(name, b, jnp.float32, "wasserstein")
    without = np.array([True, True, True, False])
    for form in ("vmap", "auto", "ghost"):
        program = compiled(objective, form)
        for case in (1.0, 1e3, 1e6, 1e30, "near"):
            x, fake = now.batch["x"], now.batch["fake"]
            x = (
                x.at[3].set(fake[3] * 1000 * (1 + 1e-4))
                if case == "near"
                else x.at[3].multiply(case)
            )
            fake = fake.at[3].multiply(1000) if case == "near" else fake
            batch = {**now.batch, "x": x, "fake": fake}
            there, gone = (
                program(now._replace(batch=batch), mask, clip).sum
                for mask in (np.ones(b, bool), without)
            )
            moved = length(jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), there, gone))
            assert moved <= clip * (1 + 1e-5), (form, case)


@pytest.mark.slow
def test_bfloat16():
    objective, now, _ = make("dcgan", 5, jnp.bfloat16)
    now = now._replace(batch={k: x.astype(jnp.bfloat16) for k, x in now.batch.items()})
    mask = np.ones(5, bool)
    vmap, *others = (run(objective, now, mask, 0.5, form) for form in ("vmap", "auto", "ghost"))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(vmap.sum))
    for found in others:
        np.testing.assert_allclose(found.norms, vmap.norms, rtol=0.02)
        difference = jax.tree.map(lambda a, b: a - b, found.sum, vmap.sum)
        assert length(difference) < 0.02 * length(vmap.sum)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["vmap", "auto", "ghost"])
def test_views_are_averaged_before_they_are_clipped(x64, form):
    objective, now, _ = make("mlp of labels", 6)
    mask = np.array([True, False, True])
    close(run(objective, now, mask, 0.5, form, views=2), loop(objective, now, mask, 0.5, 2), 1e-11)


@pytest.mark.medium
@pytest.mark.parametrize("block", [1, 400, 2**26])
def test_blocks_of_an_accelerator(monkeypatch, x64, block):
    objective, now, _ = make("dcgan", 5)
    mask = np.array([True, True, False, True, True])
    expected = loop(objective, now, mask, 0.5)
    monkeypatch.setattr(clipping, "BLOCK", block)
    monkeypatch.setattr(lax, "platform_dependent", lambda *x, cpu, default: default(*x))
    close(run(objective, now, mask, 0.5, "auto"), expected, 1e-11)


@pytest.mark.medium
@pytest.mark.parametrize("form", ["auto", "ghost"])
def test_no_gradient_of_a_record_is_written(form):
    """Of dense layers, only factors: no array of the program has the numbers of a kernel for each row."""
    objective, now, _ = make("mlp", 50, jnp.float32)
    mask = np.ones(50, bool)

    def largest(form):
        program = jax.make_jaxpr(
            lambda now: clipping.clipped_sum(objective, now, "d", mask, 0.5, form)
        )(now)
        shapes = {
            x.aval.shape
            for eqn in equations(program.jaxpr)
            for x in eqn.outvars
            if hasattr(x.aval, "shape")
        }
        return max(int(np.prod(shape)) for shape in shapes)

    written = 50 * 64 * 7
    assert largest(form) < written <= largest("vmap")


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(
            eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.medium
def test_an_accelerator_compiles_it_too():
    objective, now, _ = make("dcgan", 5, jnp.float32)
    traced = jax.jit(
        lambda now: clipping.clipped_sum(objective, now, "d", np.ones(5, bool), 0.5)
    ).trace(now)
    for platform in ("cuda", "tpu"):
        traced.lower(lowering_platforms=(platform,))


@pytest.mark.medium
@pytest.mark.parametrize(("name", "leaf"), [("tied", "scale"), ("spectral", "conv0/kernel")])
def test_ghost_is_refused_where_it_is_not_exact(name, leaf):
    objective, now, _ = make(name, 2, jnp.float32)
    with pytest.raises(
        UserError, match=f"^private_gradients=ghost: the gradient of {leaf} is no sum"
    ) as error:
        clipping.clipped_sum(objective, now, "d", np.ones(2, bool), 1.0, "ghost")
    assert "\n" not in str(error.value)


def test_forms_are_read():
    assert clipping.parse_form("auto") == clipping.Form("auto", 0)
    assert clipping.parse_form("ghost") == clipping.Form("ghost", 0)
    assert clipping.parse_form("microbatch=16") == clipping.Form("auto", 16)
    for text in (
        "",
        "fast",
        "vmap=3",
        "microbatch",
        "microbatch=0",
        "microbatch=-1",
        "microbatch=x",
    ):
        with pytest.raises(ValueError, match="^must be auto, vmap, ghost or microbatch=N"):
            clipping.parse_form(text)
