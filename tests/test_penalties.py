"""Penalties against algebra on linear and quadratic critics (SCIENCE T1.3)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks.penalties import (
    RNG,
    B,
    check_gradient_penalty,
    check_on_quadratic_critic,
)

from bpgan.penalties import (
    G_PENALTIES,
    PENALTIES,
    Regularizer,
    Scene,
    Terms,
    consistency,
    dragan,
    flip_and_shift,
    forms,
    lecam,
    orthogonal,
    parse,
    path_length,
    regularizer,
)
from bpgan.types import UserError

# Penalties that are functions of the norm n of D's gradient at one point.
OF_THE_NORM = {
    "r1": lambda n: n**2 / 2,
    "r2": lambda n: n**2 / 2,
    "wgan_gp": lambda n: (n - 1) ** 2,
    "wgan_lp": lambda n: np.maximum(n - 1, 0) ** 2,
    "zero_gp": lambda n: n**2,
    "dragan": lambda n: (n - 1) ** 2,
}
FUNCTIONS = [name for name, penalty in PENALTIES.items() if callable(penalty)]


@pytest.mark.parametrize("name", ["r1", "r2"])
def test_on_quadratic_critic(name):
    check_on_quadratic_critic(name, PENALTIES[name])


def test_gradient_penalty_points():
    check_gradient_penalty(PENALTIES["wgan_gp"])


@pytest.mark.parametrize("name", OF_THE_NORM)
def test_on_linear_critic(name):
    """D(x) = 3 x1 + 4 x2 has |grad| = 5 everywhere: R1 = R2 = 25/2, WGAN-GP = 16."""
    critic = lambda x: x @ jnp.array([3.0, 4.0])  # noqa: E731
    value = PENALTIES[name](critic, jnp.ones((5, 2)), jnp.zeros((5, 2)), jax.random.key(0))
    np.testing.assert_allclose(value, np.full(5, OF_THE_NORM[name](5.0)), rtol=1e-6)


def test_lipschitz_penalty_leaves_gentle_critics_alone():
    critic = lambda x: x @ jnp.array([0.3, 0.4])  # noqa: E731
    for name, expected in (("wgan_lp", 0.0), ("wgan_gp", 0.25)):
        value = PENALTIES[name](critic, jnp.ones((5, 2)), jnp.zeros((5, 2)), jax.random.key(0))
        np.testing.assert_allclose(value, np.full(5, expected), rtol=1e-6)


@pytest.mark.parametrize("name", OF_THE_NORM)
def test_flat_critic_gives_finite_second_derivatives(name):
    def mean_penalty(w):
        critic = lambda x: w * jnp.sum(x, axis=-1)  # noqa: E731
        return jnp.mean(
            PENALTIES[name](critic, jnp.ones((5, 2)), jnp.zeros((5, 2)), jax.random.key(0))
        )

    value, gradient = jax.value_and_grad(mean_penalty)(0.0)
    np.testing.assert_allclose(value, OF_THE_NORM[name](0.0), atol=1e-5)
    assert np.isfinite(gradient)


@pytest.mark.parametrize("name", [n for n in OF_THE_NORM if n != "dragan"])
def test_sums_over_pixels_and_keeps_examples_apart(name):
    """The penalty of one image does not change when the others do, and grows with the number of pixels."""
    critic = lambda x: jnp.sum(jnp.square(x), axis=(1, 2, 3))  # noqa: E731
    x = jnp.asarray(RNG.normal(size=(4, 6, 6, 1)), jnp.float32)
    other = x.at[0].set(9.0)
    both = PENALTIES[name](critic, x, x, jax.random.key(0))
    changed = PENALTIES[name](
        critic, other, other, jax.random.key(1)
    )  # real = fake: the key is moot
    np.testing.assert_allclose(changed[1:], both[1:], rtol=1e-6)
    squared = np.sum(4 * np.square(x), axis=(1, 2, 3))
    np.testing.assert_allclose(both, OF_THE_NORM[name](np.sqrt(squared)), rtol=1e-5)


@pytest.mark.medium
@pytest.mark.parametrize("noise", ["positive", "symmetric", "normal"])
def test_dragan_looks_around_the_reals(noise):
    """On |x|^2 / 2 the norm is |x + e|: in one dimension every value gives back one point."""
    n, spread = 4000, 3.0
    real = jnp.asarray(np.where(np.arange(n) % 2, 20 + spread, 20 - spread), jnp.float32)[:, None]
    critic = lambda x: 0.5 * jnp.sum(jnp.square(x), axis=-1)  # noqa: E731
    values = dragan(noise)(critic, real, real * 0, jax.random.key(0))
    e = (np.sqrt(values) + 1 - real[:, 0]) / spread
    mean, variance = {
        "positive": (1 / 8, 1 / 36 - 1 / 64),  # half the product of two uniform numbers
        "symmetric": (0, 1 / 12),
        "normal": (0, 1 / 4),
    }[noise]
    assert abs(np.mean(e) - mean) < 5 * np.sqrt(variance / n)
    assert abs(np.var(e) / variance - 1) < 0.12
    if noise == "positive":
        assert -1e-4 < e.min() and e.max() < 0.5
    with pytest.raises(ValueError, match="must be positive, symmetric or normal"):
        dragan("loud")


def test_flip_and_shift_moves_pixels_only():
    """Against NumPy: every image is one of the 2 x 9 x 9 shifts of its reflected, perhaps mirrored, self."""
    x = RNG.normal(size=(64, 12, 11, 2)).astype(np.float32)
    moved = np.asarray(flip_and_shift(jnp.asarray(x), jax.random.key(3)))
    seen = set()
    for image, result in zip(x, moved, strict=True):
        found = [
            (flip, i, j)
            for flip in (False, True)
            for i in range(9)
            for j in range(9)
            if np.array_equal(
                np.pad(image[:, ::-1] if flip else image, ((4, 4), (4, 4), (0, 0)), "reflect")[
                    i : i + 12, j : j + 11
                ],
                result,
            )
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert {flip for flip, _, _ in seen} == {False, True}
    assert {i for _, i, _ in seen} == {j for _, _, j in seen} == set(range(9))


def test_consistency_is_the_squared_change_of_the_logit():
    """With T(x) = x + 1 and D(x) = w sum(x) in d dimensions: w^2 d^2, with the gradient 2 w d^2 of both terms."""
    for fakes in (False, True):
        penalty = consistency(lambda x, key: x + 1.0, fakes)

        def value(w, penalty=penalty):
            critic = lambda x: w * jnp.sum(x, axis=-1)  # noqa: E731
            return penalty(critic, jnp.ones((4, 3)), jnp.zeros((4, 3)), jax.random.key(0)).mean()

        got = jax.value_and_grad(value)(2.0)
        np.testing.assert_allclose(got, np.array([36.0, 36.0]) * (1 + fakes), rtol=1e-6)


def scene(**changes) -> Scene:
    critic = lambda x: jnp.sum(x, axis=-1)  # noqa: E731
    z = jnp.asarray(RNG.normal(size=(6, 3)))
    start = Scene(
        {},
        critic,
        lambda z: z,
        jnp.ones((6, 3)),
        z,
        z,
        (jnp.ones(6), jnp.ones(6)),
        jax.random.key(0),
    )
    return start._replace(**changes)


EVERY = [("d", name) for name in PENALTIES] + [("g", name) for name in G_PENALTIES]


@pytest.mark.parametrize("player,name", EVERY)
def test_every_penalty_is_a_regularizer(player, name):
    """Values are finite, [b] or a scalar, and what is remembered keeps its form."""
    r = regularizer({"d": PENALTIES, "g": G_PENALTIES}[player][name])
    assert player in r.players
    changes = {"generator": lambda z, **method: z @ jnp.ones((z.shape[1], 3))} if r.mapping else {}
    params = {"dense": {"kernel": jnp.ones((2, 2))}}
    value, memory = r.apply(scene(params=params, **changes), r.memory)
    assert value.shape in ((6,), (3,), ()) and bool(jnp.isfinite(value).all())
    assert jax.tree.map(jnp.shape, memory) == jax.tree.map(jnp.shape, r.memory)
    assert jax.tree.map(jnp.result_type, memory) == jax.tree.map(jnp.result_type, r.memory)


@pytest.mark.medium
@pytest.mark.parametrize("name", PENALTIES)
def test_the_slope_of_every_penalty_is_that_of_central_differences(x64, name):
    """In the parameters of a smooth critic, in a random direction, nothing else being known of a penalty."""
    r, direction = regularizer(PENALTIES[name]), RNG.normal(size=5)
    real, fake = (jnp.asarray(RNG.normal(size=(7, 5))) for _ in range(2))

    def mean(t):
        w = jnp.asarray(B) + t * direction
        critic = lambda x: jnp.sin(0.3 * x @ w)  # noqa: E731
        logits = critic(real), critic(fake)
        now = scene(critic=critic, real=real, fake=fake, logits=logits,
                    params={"kernel": w.reshape(1, -1)}, z=fake, generator=lambda z: z)  # fmt: skip
        return jnp.mean(r.apply(now, r.memory)[0])

    slope, h = float(jax.grad(mean)(0.0)), 1e-5
    difference = float(mean(h) - mean(-h)) / (2 * h)
    np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-8)


def test_penalties_say_of_themselves_what_they_need():
    """As experiments refuse what a network cannot do by these attributes alone."""
    every = [((p, n), regularizer({"d": PENALTIES, "g": G_PENALTIES}[p][n])) for p, n in EVERY]
    each = {key for key, r in every if r.each_example}
    lengths = {("g", "path_length"), ("g", "path_length_w")}
    assert {("d", name) for name in OF_THE_NORM} | lengths <= each
    assert not each & {("d", "cr"), ("d", "bcr"), ("d", "zcr"), ("d", "lecam"), ("d", "orthogonal")}
    assert {key for key, r in every if r.mapping} >= {("g", "path_length_w")}
    assert {key for key, r in every if r.matrices} >= {("d", "orthogonal"), ("g", "orthogonal")}


def mine(critic, real, fake, key):
    """A penalty of one's own."""
    return jnp.square(critic(real))


kept = lecam(decay=0.5)


def test_the_grammar_of_penalties(monkeypatch):
    found = parse("r1=0.3/4+r2+g.path_length=linear:0:2/8+clip=0.1")
    assert found.clip == 0.1 and [str(t) for t in found.terms] == ["r1", "r2", "g.path_length"]
    r1, r2, length = found.over(100, weight=7.0, every=3)
    assert (r1.weight, r1.every, r2.weight, r2.every) == (0.3, 4, 7.0, 3)
    assert r1.penalty.each_example and (r1.player, length.player) == ("d", "g")
    assert float(length.weight(50)) == 1 and length.every == 8
    assert length.penalty is G_PENALTIES["path_length"]
    assert parse("none") == Terms() and parse("clip").clip == 0.01
    assert [t.penalty.players for t in parse("lecam+g.orthogonal").terms] == ["d", "gd"]
    monkeypatch.setitem(PENALTIES, "added", mine)
    assert str(parse("added=2").terms[0]) == "added" and "added" in forms()


def test_penalties_of_one_s_own_code():
    name = f"{__name__}:mine"
    for text, player in ((f"{name}=0.3/4", "d"), (f"g.{name}=0.3/4", "g")):
        (term,) = parse(text).terms
        assert (term.player, term.name, term.every) == (player, name, 4)
        assert term.weight is not None and term.weight(1) == 0.3
    found = parse(f"{__name__}:kept").terms[0].penalty
    assert found._replace(apply=kept.apply) == kept
    assert (
        vars(found.apply)["__wrapped__"] is kept.apply
    )  # so that its mistakes are told by its name


@pytest.mark.parametrize(
    "returned,said",
    [
        (lambda scene, memory: scene.real, "a tuple|ArrayImpl, must return .numbers, memory."),
        (
            lambda scene, memory: (scene.real, memory),
            r"returned \[5, 3\], must return a number for",
        ),
        (lambda scene, memory: ("x", memory), "returned a str, must return a number for each"),
        (lambda scene, memory: (1.0, {"m": 2.0}), "a memory of another form than it was given"),
        (lambda scene: 1.0, r"failed \(TypeError: .* 1 positional argument but 2 were given\)$"),
        (lambda scene, memory: 1 / 0, rf"failed \(ZeroDivisionError: .*, {__file__}:\d+\)$"),
    ],
)
def test_mistakes_of_one_s_own_penalty_are_told_by_its_name(monkeypatch, returned, said):
    monkeypatch.setitem(globals(), "wrong", Regularizer(returned, np.float32(0)))
    (term,) = parse(f"{__name__}:wrong").terms
    with pytest.raises(UserError, match=f"^{__name__}:wrong: .*{said}"):
        term.penalty.apply(scene(real=jnp.ones((5, 3))), term.penalty.memory)


@pytest.mark.parametrize(
    "text,players,said",
    [
        (
            "r3",
            "dg",
            "'r3' is not a penalty; must be none or a sum of r1, .*clip, g.zcr, .*module:name",
        ),
        ("g.zcr", "d", "'g.zcr' is not a penalty; must be none or a sum of r1, "),
        ("clip", "g", "'clip' is not a penalty"),
        ("g.lecam", "dg", "'g.lecam' is not a penalty"),
        (f"g.{__name__}:kept", "dg", "is for D, not for G"),
        (f"{__name__}:EVERY", "dg", "must be a function or a Regularizer"),
        (f"{__name__}:nothing", "dg", "a penalty cannot be imported"),
        ("r1/0", "dg", "the interval after / must be a whole number from 1 to 2147483647"),
        ("r1/2147483648", "dg", "the interval after / must be a whole number from 1 to 2147483647"),
        ("r1=-1", "dg", "A and B >= 0"),
        ("r1=", "dg", "'': must be a number A"),
        ("clip=", "dg", "'': must be a number A"),
        ("clip=0", "dg", "a number > 0; every update is clipped"),
        ("clip=1/2", "dg", "every update is clipped"),
    ],
)
def test_sums_that_cannot_be_read(text, players, said):
    with pytest.raises(ValueError, match=said):
        parse(text, players)


def test_lecam_follows_its_averages(x64):
    """Against a loop in NumPy: debiased averages, one-sided squares, nothing before the start."""
    r, memory = lecam(decay=0.9, start=2), lecam().memory
    sums = {"real": 0.0, "fake": 0.0}
    for t in range(1, 6):
        real, fake = RNG.normal(size=(2, 6)) + np.array([[1.0], [-1.0]])
        value, memory = r.apply(scene(logits=(jnp.asarray(real), jnp.asarray(fake))), memory)
        sums = {k: 0.9 * sums[k] + 0.1 * x.mean() for k, x in (("real", real), ("fake", fake))}
        a = {k: v / (1 - 0.9**t) for k, v in sums.items()}
        expected = np.maximum(real - a["fake"], 0) ** 2 + np.maximum(a["real"] - fake, 0) ** 2
        np.testing.assert_allclose(value, expected if t > 2 else np.zeros(6), rtol=1e-5)
    real = jnp.asarray(RNG.normal(size=6))
    gradient = jax.grad(lambda x: r.apply(scene(logits=(x, real)), memory)[0].sum())(real)
    a = 0.9 * memory["fake"] + 0.1 * real.mean()
    a = a / (1 - 0.9 ** (memory["count"] + 1))
    np.testing.assert_allclose(gradient, 2 * np.maximum(real - a, 0), rtol=1e-5)


@pytest.mark.medium
def test_path_length_of_a_linear_generator(x64):
    """G(z) = z A as images of 4 x 2 pixels: E |A y|^2 = |A|_F^2 / 8; a follows the mean length."""
    a = RNG.normal(size=(3, 8))
    image = lambda m: lambda z: (z @ m).reshape(-1, 4, 2, 1)  # noqa: E731
    r = path_length(decay=0.5, shrink=1)
    z = jnp.asarray(RNG.normal(size=(4000, 3)))

    def penalty(m, memory, key=7):
        return r.apply(scene(generator=image(m), z=z, key=jax.random.key(key)), memory)

    values, memory = penalty(jnp.asarray(a), jnp.zeros(()))
    # The average from 0 is half the mean length l, so l - a = l / 2 on average.
    y = jax.random.normal(jax.random.key(7), (4000, 4, 2, 1)) / np.sqrt(8)
    lengths = np.linalg.norm(np.asarray(y).reshape(-1, 8) @ a.T, axis=1)
    np.testing.assert_allclose(memory, lengths.mean() / 2, rtol=1e-6)
    np.testing.assert_allclose(values, (lengths - lengths.mean() / 2) ** 2, rtol=1e-6)
    assert abs((lengths**2).mean() / (np.sum(a**2) / 8) - 1) < 0.06
    # The derivative with the average held still.
    direction, h = jnp.asarray(RNG.normal(size=a.shape)), 1e-6

    def fixed(m):
        slopes = np.asarray(y).reshape(-1, 8) @ np.asarray(m).T
        return np.square(np.linalg.norm(slopes, axis=1) - lengths.mean() / 2).mean()

    numerical = (fixed(a + h * direction) - fixed(a - h * direction)) / (2 * h)
    gradient = jax.grad(lambda m: penalty(m, jnp.zeros(()))[0].mean())(jnp.asarray(a))
    np.testing.assert_allclose(jnp.vdot(gradient, direction), numerical, rtol=1e-6)
    half, _ = path_length().apply(scene(generator=image(jnp.asarray(a)), z=z), jnp.zeros(()))
    assert half.shape == (2000,)


@pytest.mark.parametrize("off_diagonal", [True, False])
def test_orthogonal_against_its_equation(x64, off_diagonal):
    w, c = RNG.normal(size=(4, 3)), RNG.normal(size=(2, 2, 3, 5))
    params = {
        "dense": {"kernel": w, "bias": np.ones(3)},
        "conv": {"kernel": c},
        "embed": {"embedding": w},
    }
    expected = 0.0
    for m in (w, c.reshape(-1, 5)):
        gram = m.T @ m
        wrong = gram - (np.diag(np.diag(gram)) if off_diagonal else np.eye(len(gram)))
        expected += (wrong**2).sum()
    r = orthogonal(off_diagonal)
    value = lambda p: r.apply(scene(params=p), None)[0]  # noqa: E731
    np.testing.assert_allclose(value(params), expected, rtol=1e-12)
    gradient = jax.grad(value)(jax.tree.map(jnp.asarray, params))
    gram = w.T @ w
    wrong = gram - (np.diag(np.diag(gram)) if off_diagonal else np.eye(3))
    np.testing.assert_allclose(gradient["dense"]["kernel"], 4 * w @ wrong, rtol=1e-10, atol=1e-12)
    assert not np.asarray(gradient["dense"]["bias"]).any()
    assert not np.asarray(gradient["embed"]["embedding"]).any()


def test_orthogonal_of_parameters_without_names_is_0():
    """Such as a single array, which has no path."""
    for params in (jnp.ones(3), [jnp.ones((2, 2))]):
        assert orthogonal().apply(scene(params=params), None)[0] == 0


def test_latent_consistency_wants_a_deaf_critic_and_a_lively_generator():
    """With G(z) = s z: D pays (s sum e)^2 for its response, and G gains the mean of (s e)^2."""
    s, near = 3.0, 0.05
    e = near * np.asarray(jax.random.normal(jax.random.key(0), (6, 3), jnp.result_type(float)))
    made = scene(generator=lambda z: s * z)

    def again(**changes):
        return made._replace(fake=s * made.z, key=jax.random.key(0), **changes)

    for table, expected in (
        (PENALTIES, (s * e).sum(1) ** 2),
        (G_PENALTIES, -((s * e) ** 2).mean(1)),
    ):
        value, _ = table["zcr"].apply(again(), None)
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-6)
    # Both samples move with G: what differentiates the game once more sees the field as it is.
    to_g = jax.grad(
        lambda s: (
            PENALTIES["zcr"]
            .apply(again(generator=lambda z: s * z)._replace(fake=s * made.z), None)[0]
            .sum()
        )
    )(s)
    np.testing.assert_allclose(to_g, 2 * s * (e.sum(1) ** 2).sum(), rtol=1e-3)
