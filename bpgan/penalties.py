"""Regularizers of the players, unweighted.

Most are functions ``(critic, real, fake, key) -> penalty[b]``, one value per example. ``critic`` maps samples to logits
with its parameters already bound, so a penalty differentiates it with respect to its *input*, and the training step
then differentiates the penalty with respect to the parameters; nothing here may stop that second derivative. The input
gradient is taken of the *sum* of the logits, which equals the per-example gradient whenever a logit depends on its own
example alone (not with batch norm or minibatch statistics in D).

A ``Regularizer`` sees the whole ``Scene`` of an update, and may remember. What it remembers is part of the run's state,
so a resumed run goes on with it.

To add a penalty, write one function and one entry of ``PENALTIES`` (for D) or ``G_PENALTIES`` (for G); the experiments
offer it and the tests find it. A penalty of your own code needs no entry: ``--penalty=my_module:my_penalty=0.3/4``
names such a function or a ``Regularizer``. ``parse`` has the grammar of these texts.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from bpgan import lookup, optim
from bpgan.types import PRNG, Critic, Latents, Logits, Params, UserError

Samples = Float[Array, "b ..."]
Penalty = Callable[[Critic, Samples, Samples, PRNG], Logits]


class Scene(NamedTuple):
    """What a regularizer may look at, at one update of one player.

    Attributes:
      params: of the player in training.
      critic: ``x -> logits``. In D's update its parameters are those in training, in G's they are constants. With
        labels, k examples have those of every ``b / k``-th row.
      generator: ``z -> x``, the other way round. ``generator(inputs, method=name)`` calls a method of its module.
      real, fake, z: the examples of this update, ``fake = generator(z)``.
      logits: ``(real, fake)``, of the whole batch where ``real`` and ``fake`` are one device's share.
      key: for noise.
    """

    params: Params
    critic: Critic
    generator: Callable[..., Samples]
    real: Samples
    fake: Samples
    z: Latents
    logits: tuple[Logits, Logits]
    key: PRNG


class Regularizer(NamedTuple):
    """A penalty on a scene, with memory.

    Attributes:
      apply: ``apply(scene, memory) -> (penalty, memory)``; the penalty is ``[b]`` or a scalar.
      memory: at the start, a pytree of NumPy float arrays, or None. (An array of JAX would open the devices on import.)
      players: for whom it is, ``"d"``, ``"g"`` or ``"gd"``.
      each_example: whether it differentiates the player's network at each example as if there were no others, so that
        the network must not mix the examples of a batch.
      mapping: whether it needs a generator with methods ``mapping`` and ``synthesis``.
      matrices: whether it takes the arrays called ``kernel`` for the matrices of the network's layers.
      mixes_examples: whether its value at one example depends on the others of the batch, or on those before it.
      difference: length of the steps over which it takes differences of the logits, 0 if it takes none: what the
        network computes in must tell such points apart (``too_fine``).
      of_latents: whether it compares a sample with its latents, so that these must be as many numbers.
    """

    apply: Callable[[Scene, Any], tuple[Array, Any]]
    memory: Any = None
    players: str = "gd"
    each_example: bool = False
    mapping: bool = False
    matrices: bool = False
    mixes_examples: bool = False
    difference: float = 0.0
    of_latents: bool = False


def each_example(penalty: Penalty) -> Penalty:
    """Marks a penalty as one that differentiates D at each example as if there were no others (``Regularizer``)."""
    vars(penalty)["each_example"] = True
    return penalty


def mixes_examples(penalty: Penalty) -> Penalty:
    """Marks a penalty whose value at one example depends on the others of the batch (``Regularizer``)."""
    vars(penalty)["mixes_examples"] = True
    return penalty


def finite_difference(penalty: Penalty) -> Penalty:
    """Marks a penalty that takes differences over steps of length ``sigma``, an argument (``Regularizer``)."""
    vars(penalty).update(finite_difference=True, most={"sigma": 10.0, "probes": 100})
    return penalty


def options_of(penalty: Any) -> dict[str, Any]:
    """The arguments that a penalty has beside those of all, with their defaults: those by keyword only."""
    return dict(getattr(penalty, "__kwdefaults__", None) or {})


def regularizer(penalty: Penalty | Regularizer, **options: Any) -> Regularizer:
    """The same, as a ``Regularizer``; of a function with other values of some of its ``options_of``."""
    if isinstance(penalty, Regularizer):
        return penalty
    fine = getattr(penalty, "finite_difference", False)
    return Regularizer(
        lambda s, memory: (penalty(s.critic, s.real, s.fake, s.key, **options), memory),
        each_example=getattr(penalty, "each_example", False),
        mixes_examples=getattr(penalty, "mixes_examples", False),
        difference={**options_of(penalty), **options}["sigma"] if fine else 0.0,
    )


COARSEST = {"bfloat16": 0.05, "float32": 1e-5}
"""The shortest steps that ``too_fine`` lets a network of a narrow type be asked for."""


def too_fine(penalty: Regularizer, precision: str) -> bool:
    """Whether a network that computes in this type rounds away a good part of the steps of a finite difference.

    The mean of ``r1_fd`` of a network in bfloat16 over that in float64 was 1.00 at sigma = 0.1, 1.02 at 0.03, 1.10 at
    0.01 and 1.8 at 0.003: near 1 a step of bfloat16 is 0.0039. In float32 it was 0.999 at 1e-5 and 1.03 at 1e-6.
    """
    return 0 < penalty.difference < COARSEST.get(precision, 0.0)


class Weighted(NamedTuple):
    """A penalty as part of a player's objective: ``weight * mean(penalty)``, in every k-th update times k.

    Attributes:
      weight: a number, or a function of the step (``bpgan.optim.schedule``).
      penalty: what is weighted; ``weighted`` makes one of a function.
      every: k, counted in updates of the player.
      player: whose it is, ``"d"`` or ``"g"``.
    """

    weight: Any
    penalty: Regularizer
    every: int = 1
    player: Literal["d", "g"] = "d"


def weighted(
    weight: Any, penalty: Penalty | Regularizer, every: int = 1, player: Literal["d", "g"] = "d"
) -> Weighted:
    """A penalty or a ``Regularizer`` with its weight."""
    return Weighted(weight, regularizer(penalty), every, player)


def weighted_sum(
    penalties: Mapping[str, Weighted],
    scene: Scene,
    step: Any,
    memory: Mapping[str, Any],
    key_of: Callable[[str], PRNG],
) -> tuple[Any, dict[str, Any]]:
    """``sum_i weight_i mean_b penalty_i`` and the memories after it.

    Args:
      penalties: by the names of their memories.
      scene: what they look at; each has a key of its own in the place of the scene's.
      step: at which weights are taken.
      memory: of the run, which has those of penalties that remember.
      key_of: ``name -> key``.
    """
    total: Any = 0.0
    kept = {}
    for name, each in penalties.items():
        value, after = each.penalty.apply(scene._replace(key=key_of(name)), memory.get(name))
        total += optim.at(each.weight, step) * jnp.mean(value)
        if name in memory:
            kept[name] = after
    return total, kept


def _squared_gradient_norm(critic: Critic, x: Samples) -> Logits:
    """``|grad_x D(x)|^2``, summed over all axes but the first."""
    gradient = jax.grad(lambda x: jnp.sum(critic(x)))(x)
    return jnp.sum(jnp.square(gradient), axis=tuple(range(1, x.ndim)))


def _norm(squared: Logits) -> Logits:
    """Square root with a finite derivative at 0."""
    return jnp.sqrt(squared + 1e-12)


def _per_example(key: PRNG, x: Samples) -> Array:
    """A uniform number for each example, broadcastable to x."""
    return jax.random.uniform(key, (x.shape[0],) + (1,) * (x.ndim - 1), x.dtype)


def _between(real: Samples, fake: Samples, key: PRNG) -> Samples:
    """One random point of each segment between a real and a fake sample."""
    t = _per_example(key, real)
    return t * real + (1 - t) * fake


@each_example
def r1(critic: Critic, real: Samples, fake: Samples, key: PRNG) -> Logits:
    """``|grad D(x)|^2 / 2`` at real samples.

    Mescheder et al. 2018, arXiv:1801.04406 (weight gamma). The half is inside, as in the paper; the authors'
    repository leaves it out, so its weight 10 is gamma = 20 here.
    """
    del fake, key
    return 0.5 * _squared_gradient_norm(critic, real)


@each_example
def r2(critic: Critic, real: Samples, fake: Samples, key: PRNG) -> Logits:
    """``|grad D(G(z))|^2 / 2`` at generated samples. Mescheder et al. 2018, arXiv:1801.04406.

    R3GAN (Huang et al. 2025, arXiv:2501.05441) is ``r1`` and ``r2`` of one weight with the relativistic loss.
    """
    del real, key
    return 0.5 * _squared_gradient_norm(critic, fake)


def _differences(
    critic: Critic, x: Samples, key: PRNG, sigma: float, probes: int, share: int, central: bool
) -> Logits:
    """``mean over u of ((D(x + sigma u) - D(x)) / sigma)^2 / 2`` of every ``share``-th example."""
    if len(x) % share:
        reason = f"share={share}: must divide the {len(x)} examples of an update (on one device)"
        raise UserError(reason, argument="penalty")
    # By reshaping, for each device has its part of these rows already.
    x = x.reshape(-1, share, *x.shape[1:])[:, 0]
    # The difference of two numbers of bfloat16 next to each other has no digit left.
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def slope(key: PRNG) -> Logits:
        step = sigma * jax.random.normal(key, x.shape, x.dtype)
        # Not in one batch: what D is shown of an example (an augmentation, its label) goes by its row.
        ahead, behind = critic(x + step), critic(x - step if central else x)
        wide = jnp.promote_types(ahead.dtype, jnp.float32)
        return (ahead.astype(wide) - behind.astype(wide)) / (2 * sigma if central else sigma)

    squares = [jnp.square(slope(k)) for k in jax.random.split(key, probes)]
    return 0.5 * sum(squares[1:], squares[0]) / probes


@finite_difference
@each_example
def r1_fd(
    critic: Critic,
    real: Samples,
    fake: Samples,
    key: PRNG,
    *,
    sigma: float = 0.01,
    probes: int = 1,
    share: int = 1,
    central: bool = False,
) -> Logits:
    """``((D(x + sigma u) - D(x)) / sigma)^2 / 2`` at real samples, u ~ N(0, I): ``r1`` without a second derivative.

    Lin et al. 2025, arXiv:2501.08316, and adversarial flow models (github.com/ByteDance-Seed/Adversarial-Flow-Models),
    whose weight 0.25 without the half is 0.5 here. With g the gradient and H the Hessian of D, its mean is

        |g|^2 / 2 + sigma^2 (tr(H)^2 / 8 + |H|^2 / 4 + g . grad tr(H) / 2) + O(sigma^4),

    without the first two in the bracket if ``central``. It is for networks whose layers have no second derivative, and
    for memory: of one direction, a sample's value has a standard deviation of sqrt(2) times its mean, and the gradient
    of a batch of 64 points another way than that of ``r1`` for the most part.

    Args:
      sigma: length of the steps; not below 0.05 in a network that computes in bfloat16 (``too_fine``).
      probes: directions u of a sample, for their mean.
      share: 1 / share of the batch that is used, every ``share``-th example, so that each device has as many.
      central: whether the difference is ``(D(x + sigma u) - D(x - sigma u)) / 2``.
    """
    del fake
    return _differences(critic, real, key, sigma, probes, share, central)


@finite_difference
@each_example
def r2_fd(
    critic: Critic,
    real: Samples,
    fake: Samples,
    key: PRNG,
    *,
    sigma: float = 0.01,
    probes: int = 1,
    share: int = 1,
    central: bool = False,
) -> Logits:
    """``((D(x + sigma u) - D(x)) / sigma)^2 / 2`` at generated samples: ``r1_fd`` there."""
    del real
    return _differences(critic, fake, key, sigma, probes, share, central)


@each_example
def wgan_gp(critic: Critic, real: Samples, fake: Samples, key: PRNG) -> Logits:
    """``(|grad D(x)| - 1)^2`` at one random point of each segment between a real and a fake sample.

    Gulrajani et al. 2017, arXiv:1704.00028, Eq. 3 (weight 10). One uniform number per *example*, not per pixel.
    The norm is ``sqrt(sum g^2 + 1e-12)``, so a vanishing gradient gives 1 and a finite derivative.
    """
    return jnp.square(_norm(_squared_gradient_norm(critic, _between(real, fake, key))) - 1.0)


@each_example
def wgan_lp(critic: Critic, real: Samples, fake: Samples, key: PRNG) -> Logits:
    """``max(0, |grad D(x)| - 1)^2`` at the points of ``wgan_gp``. Petzka et al. 2018, arXiv:1709.08894 (weight 10)."""
    norm = _norm(_squared_gradient_norm(critic, _between(real, fake, key)))
    return jnp.square(jax.nn.relu(norm - 1.0))


@each_example
def zero_gp(critic: Critic, real: Samples, fake: Samples, key: PRNG) -> Logits:
    """``|grad D(x)|^2`` at the points of ``wgan_gp``. Thanh-Tung et al. 2019, arXiv:1902.03984 (weight 10)."""
    return _squared_gradient_norm(critic, _between(real, fake, key))


def dragan(noise: Literal["positive", "symmetric", "normal"] = "positive") -> Penalty:
    """``(|grad D(x + e)| - 1)^2`` around real samples. Kodali et al. 2017, arXiv:1705.07215 (weight 10).

    Args:
      noise: e, in units of the standard deviation s of all numbers of the batch. ``"positive"``: ``a u s / 2``, u
        uniform for each number and a for each example, as the authors' code has it; ``"symmetric"``: ``s (u - 1/2)``,
        as in compare_gan; ``"normal"``: ``N(0, s^2 / 4)``, the distribution that the paper names.

    Raises:
      ValueError: another noise.
    """
    if noise not in ("positive", "symmetric", "normal"):
        raise ValueError(f"noise={noise!r}: must be positive, symmetric or normal")

    @mixes_examples  # by their standard deviation
    @each_example
    def penalty(critic: Critic, real: Samples, fake: Samples, key: PRNG) -> Logits:
        del fake
        k1, k2 = jax.random.split(key)
        if noise == "normal":
            e = 0.5 * jax.random.normal(k1, real.shape, real.dtype)
        else:
            e = jax.random.uniform(k1, real.shape, real.dtype)
            e = e - 0.5 if noise == "symmetric" else 0.5 * _per_example(k2, real) * e
        norm = _norm(_squared_gradient_norm(critic, real + jnp.std(real, keepdims=True) * e))
        return jnp.square(norm - 1.0)

    return penalty


def flip_and_shift(x: Samples, key: PRNG, pixels: int = 4) -> Samples:
    """Images mirrored with probability 1/2 and moved by up to ``pixels`` each way, the border reflected.

    The transformation of Zhang et al. 2020, arXiv:1910.12027. Samples that are no images ``[b, h, w, c]`` get a tenth
    of their standard deviation of normal noise instead.
    """
    if x.ndim != 4:
        # A constant, for of equal samples it has no derivative.
        scale = jax.lax.stop_gradient(jnp.std(x, keepdims=True))
        return x + 0.1 * scale * jax.random.normal(key, x.shape, x.dtype)
    k1, k2, k3 = jax.random.split(key, 3)
    x = jnp.where(jax.random.bernoulli(k1, 0.5, (x.shape[0], 1, 1, 1)), x[:, :, ::-1], x)
    for axis, name, key in ((1, "bij,bjwc->biwc", k2), (2, "bij,bhjc->bhic", k3)):
        n = x.shape[axis]
        # Products with 0-1 matrices, whose derivatives are again products; those of indexing are scatters.
        shift = jax.random.randint(key, (x.shape[0], 1), -pixels, pixels + 1)
        source = jnp.arange(n).reshape(1, n) + shift
        source = jnp.abs(source)
        source = n - 1 - jnp.abs(n - 1 - source)
        chosen = jax.nn.one_hot(source, n, dtype=x.dtype)
        x = jnp.einsum(name, chosen, x, precision=jax.lax.Precision.HIGHEST)
    return x


def consistency(
    transform: Callable[[Samples, PRNG], Samples] = flip_and_shift, fakes: bool = False
) -> Penalty:
    """``(D(x) - D(T(x)))^2`` at reals, and the same at ``fakes``, added. Gradients go through both terms.

    CR: Zhang et al. 2020, arXiv:1910.12027; bCR: Zhao et al. 2020, arXiv:2002.04724 (weight 10 each).
    """

    def penalty(critic: Critic, real: Samples, fake: Samples, key: PRNG) -> Logits:
        keys = jax.random.split(key)
        values = [
            jnp.square(critic(x) - critic(transform(x, k)))
            for x, k in zip((real, fake) if fakes else (real,), keys, strict=False)
        ]
        return sum(values[1:], values[0])

    return penalty


def _nearby(scene: Scene, sigma: float) -> Samples:
    return scene.generator(
        scene.z + sigma * jax.random.normal(scene.key, scene.z.shape, scene.z.dtype)
    )


def latent_consistency_d(sigma: float = 0.05) -> Regularizer:
    """zCR for D: ``(D(G(z)) - D(G(z + e)))^2``, ``e ~ N(0, sigma^2)``.

    Zhao et al. 2020, arXiv:2002.04724 (weight 5, or 20 for BigGAN); for G there is ``latent_consistency_g``.
    """

    def apply(scene: Scene, memory: Any) -> tuple[Array, Any]:
        return jnp.square(scene.critic(scene.fake) - scene.critic(_nearby(scene, sigma))), memory

    return Regularizer(apply, players="d")


def latent_consistency_g(sigma: float = 0.05) -> Regularizer:
    """zCR for G: ``-(G(z) - G(z + e))^2``, the mean over pixels: G is to tell latents apart that D is not.

    Zhao et al. 2020, arXiv:2002.04724 (weight 0.5).
    """

    def apply(scene: Scene, memory: Any) -> tuple[Array, Any]:
        change = scene.generator(scene.z) - _nearby(scene, sigma)
        return -jnp.mean(jnp.square(change), axis=tuple(range(1, change.ndim))), memory

    return Regularizer(apply, players="g")


def lecam(decay: float = 0.99, start: int = 1000) -> Regularizer:
    """``[real - A_fake]+^2 + [A_real - fake]+^2`` with moving averages A of the mean logits.

    Tseng et al. 2021, arXiv:2104.03310 (weight 0.3 for BigGAN on CIFAR-10). The one-sided form of the authors' code;
    the paper's squares are two-sided. The averages are zero-debiased as Adam's, include the present batch, are
    constants to differentiation, and are kept for every loss.

    Args:
      decay: of the averages; start: evaluations of the penalty before it counts. These are updates of D, unless the
        penalty is lazy.
    """

    def apply(scene: Scene, memory: Any) -> tuple[Array, Any]:
        real, fake = scene.logits
        count = memory["count"] + 1
        new = {"count": count}
        for name, logits in (("real", real), ("fake", fake)):
            mean = jnp.mean(jax.lax.stop_gradient(logits)).astype(count.dtype)
            new[name] = decay * memory[name] + (1 - decay) * mean
        anchors = {
            name: (new[name] / (1 - decay**count)).astype(real.dtype).reshape(1)
            for name in ("real", "fake")
        }
        value = jnp.square(jax.nn.relu(real - anchors["fake"])) + jnp.square(
            jax.nn.relu(anchors["real"] - fake)
        )
        return jnp.where(count > start, value, 0.0), new

    memory = {name: np.zeros((), np.float32) for name in ("count", "real", "fake")}
    return Regularizer(apply, memory, players="d", mixes_examples=True)


def centering() -> Regularizer:
    """``(D(x) + D(G(z)))^2`` of each pair of a real and a fake: for D.

    Adversarial flow models (weight 0.01). A relativistic loss does not change if a number is added to all logits, so
    nothing else keeps them near 0. Of pairs, and not of their means.
    """

    def apply(scene: Scene, memory: Any) -> tuple[Array, Any]:
        real, fake = scene.logits
        return jnp.square(real + fake), memory

    return Regularizer(apply, players="d")


def transport() -> Regularizer:
    """``|G(z) - z|^2 / n``, n the numbers of a sample: for G, whose latents have as many.

    Adversarial flow models (weight from 0.2 to 0.005 along a cosine): of all maps of the latents to the data, the
    cheapest, which is unique (Brenier 1991). It pulls G towards the identity for as long as it has a weight: with
    data N(m, 1) and G(z) = z + a, a = m / (1 + 4 weight) for small m. ``z[b, n]`` is taken in the shape of the samples.

    Raises:
      UserError: from ``apply``, if a latent and a sample differ in size.
    """

    def apply(scene: Scene, memory: Any) -> tuple[Array, Any]:
        fake, z = scene.fake, scene.z
        if fake[0].size != z[0].size:
            reason = f"transport: a sample has {fake[0].size} numbers and its latents {z[0].size};"
            raise UserError(f"{reason} must be as many", argument="penalty")
        moved = fake - z.reshape(fake.shape).astype(fake.dtype)
        return jnp.mean(jnp.square(moved), axis=tuple(range(1, fake.ndim))), memory

    return Regularizer(apply, players="g", of_latents=True)


def path_length(
    space: Literal["z", "w"] = "z", decay: float = 0.99, shrink: int = 2
) -> Regularizer:
    """``(|J^T y| - a)^2``, ``J = dG/dw`` and ``y ~ N(0, I)`` scaled by ``(h w)^(-1/2)``: for G.

    Karras et al. 2020, arXiv:1912.04958, Eq. 4 (weight 2, every 4 updates). ``a`` is the moving average of the norms
    and a constant to differentiation, as the paper writes; in the authors' code the last term of the average is not.
    All layers share one w, as in the paper; the authors' code has a w for each of its L layers and takes the root mean
    square of their slopes, which is smaller by sqrt(L) (independent slopes) to L: a weight counts more here.

    Args:
      space: ``"w"``, the output of the module's method ``mapping``, or ``"z"`` for generators without one. Not for a
        generator with batch norm: ``J^T y`` would add up what a latent does to the images of the others.
      decay: of a. shrink: 1 / share of the batch that is used.
    """

    def apply(scene: Scene, memory: Array) -> tuple[Array, Array]:
        z = scene.z[: max(scene.z.shape[0] // shrink, 1)]
        if space == "w":
            w = scene.generator(z, method="mapping")
            x, pullback = jax.vjp(lambda w: scene.generator(w, method="synthesis"), w)
        else:
            x, pullback = jax.vjp(scene.generator, z)
        y = jax.random.normal(scene.key, x.shape, x.dtype) / jnp.sqrt(
            jnp.asarray(x[0, ..., 0].size, x.dtype)
        )
        (slope,) = pullback(y)
        lengths = _norm(jnp.sum(jnp.square(slope), -1))
        mean = jnp.mean(jax.lax.stop_gradient(lengths)).astype(memory.dtype)
        new = decay * memory + (1 - decay) * mean
        return jnp.square(lengths - new.astype(lengths.dtype).reshape(1)), new

    return Regularizer(
        apply, np.zeros((), np.float32), players="g", each_example=True, mapping=space == "w"
    )


def orthogonal(off_diagonal: bool = True) -> Regularizer:
    """``sum over kernels |W^T W (1 - I)|_F^2``, W reshaped to ``[inputs, outputs]``; a scalar.

    Brock et al. 2019, arXiv:1809.11096, Eq. 3 (weight 1e-4); with ``off_diagonal=False`` ``|W^T W - I|_F^2`` of Brock
    et al. 2017, arXiv:1609.07093. BigGAN-PyTorch adds half this gradient: its weight 1e-4 is 5e-5 here. Of the arrays
    called ``kernel``, as they are stored: not for grouped ones (``nets.r3gan``), whose groups never meet, nor for
    equalized ones (``nets.stylegan2``), which are scaled where they are used.
    """

    def apply(scene: Scene, memory: Any) -> tuple[Array, Any]:
        def value(path: Any, leaf: Array) -> Array:
            if getattr(path[-1] if path else None, "key", None) != "kernel":
                return jnp.zeros((), leaf.dtype)
            matrix = leaf.reshape(-1, leaf.shape[-1])
            gram = jnp.matmul(matrix.T, matrix, precision=jax.lax.Precision.HIGHEST)
            identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
            return jnp.sum(jnp.square(gram * (1 - identity) if off_diagonal else gram - identity))

        values = jax.tree_util.tree_map_with_path(value, scene.params)
        return sum(jax.tree.leaves(values), jnp.zeros(())), memory

    return Regularizer(apply, matrices=True)


PENALTIES: dict[str, Penalty | Regularizer] = {
    "r1": r1,
    "r2": r2,
    "wgan_gp": wgan_gp,
    "wgan_lp": wgan_lp,
    "zero_gp": zero_gp,
    "r1_fd": r1_fd,
    "r2_fd": r2_fd,
    "dragan": dragan(),
    "cr": consistency(),
    "bcr": consistency(fakes=True),
    "zcr": latent_consistency_d(),
    "lecam": lecam(),
    "centering": centering(),
    "orthogonal": orthogonal(),
}
"""Every penalty of D by name."""

G_PENALTIES: dict[str, Regularizer] = {
    "zcr": latent_consistency_g(),
    "path_length": path_length(),
    "path_length_w": path_length("w"),
    "transport": transport(),
    "orthogonal": orthogonal(),
}
"""Every penalty of G by name."""

CLIP = "clip"
"""In the place of a penalty of D: its optimizer keeps every parameter within a bound (``optim.clip_weights``)."""


class Term(NamedTuple):
    """One term of a sum of penalties.

    Attributes:
      player: ``"d"`` or ``"g"``.
      name: as it is written, without the player.
      penalty: what it names.
      weight: over the run; None where none is written.
      every: in how many updates of the player it enters once, times as much; None where it is not written.
    """

    player: Literal["d", "g"]
    name: str
    penalty: Regularizer
    weight: optim.OverRun | None = None
    every: int | None = None

    def __str__(self) -> str:
        return "g." * (self.player == "g") + self.name


class Terms(NamedTuple):
    """What ``parse`` reads.

    Attributes:
      terms: the penalties of both players, in the order in which they are written.
      clip: bound of D's parameters, which is no penalty but the last link of D's optimizer; None: there is none.
    """

    terms: tuple[Term, ...] = ()
    clip: float | None = None

    def bounded(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """An optimizer of D, which keeps the bound if there is one."""
        return optax.chain(tx, optim.clip_weights(self.clip)) if self.clip else tx

    def check_precision(self, precision: str) -> None:
        """Raises a UserError where a network that computes in this type cannot have one of them (``too_fine``)."""
        for term in self.terms:
            if too_fine(term.penalty, precision):
                reason = f"steps of {term.penalty.difference:g} are rounded away by"
                reason += f" `precision={precision}`; must be sigma={COARSEST[precision]} or more,"
                reason += f" as in {term}=WEIGHT,sigma=0.1"
                raise UserError(reason, argument="penalty", value=str(term), beside=["precision"])

    def over(self, steps: int, *, weight: Any = 1.0, every: int = 1) -> list[Weighted]:
        """The penalties of both players, in a run of so many steps.

        Args:
          weight, every: of the terms that have none of their own.
        """
        return [
            Weighted(
                term.weight(steps) if term.weight else weight,
                term.penalty,
                term.every or every,
                term.player,
            )
            for term in self.terms
        ]


def forms(players: str = "dg") -> list[str]:
    """The names that ``parse`` knows, of the penalties of some players."""
    for_d = [*PENALTIES, CLIP] if "d" in players else []
    return for_d + ([f"g.{name}" for name in G_PENALTIES] if "g" in players else [])


def parse(text: str, players: str = "dg") -> Terms:
    """Reads ``none`` or a sum ``[g.]NAME[=WEIGHT][/EVERY][,OPTION=VALUE]+...``: ``r1=0.3/4+g.path_length=2``.

    ``g.`` makes it G's penalty. NAME is an entry of ``PENALTIES`` (of ``G_PENALTIES`` for G), or ``module:name`` of the
    user's own code, a penalty or a ``Regularizer``; that of a module ``g.m`` is G's as ``g.g.m:name``. WEIGHT is a
    number or a schedule, EVERY a whole number, OPTION an argument that only this penalty has: ``r1_fd=0.5,share=4``, or
    ``r1_fd=0.5,central`` of one that is true or false. ``clip=BOUND`` is no penalty, see ``Terms``.

    Args:
      players: whose penalties are allowed.

    Raises:
      ValueError: for anything else, saying what is allowed.
    """
    terms, bounds = [], []
    for part in text.split("+") if text != "none" else []:
        if part.partition("=")[0] == CLIP and "d" in players:
            bounds.append(_bound(part))
        else:
            terms.append(_term(part, players))
    return Terms(tuple(terms), min(bounds, default=None))


def _check(returned: Any, scene: Scene, memory: Any) -> None:
    del scene
    lookup.check_remembered(returned, memory)


def _bound(part: str) -> float:
    given = part.partition("=")[2] if "=" in part else "0.01"
    bound = optim.parse(given, low=0.0) if "/" not in part else None
    value = bound(1) if bound else 0.0
    if callable(value) or value == 0:
        raise ValueError(f"{part!r}: must be clip=BOUND, a number > 0; every update is clipped")
    return value


def _options(part: str, penalty: Any, given: list[str]) -> dict[str, Any]:
    """The arguments of a penalty that a text names, each of the type of its default."""
    defaults, found = options_of(penalty), {}
    for name, equals, value in (each.partition("=") for each in given):
        if name not in defaults:
            allowed = f"one of {', '.join(defaults)}" if defaults else "without options"
            raise ValueError(f"{part!r}: {name!r} is none of its options; must be {allowed}")
        if name in found:
            raise ValueError(f"{part!r}: {name} occurs twice")
        kind = type(defaults[name])
        most = getattr(penalty, "most", {}).get(name, 2**31 - 1)
        try:
            found[name] = kind(value) if equals else defaults[name] is False
            if (kind is bool) == bool(equals) or not 0 < found[name] <= most:
                raise ValueError
        except ValueError:
            number = "a whole number" if kind is int else "a number"
            form = (
                name if kind is bool else f"{name}=NUMBER, {number} above 0 and at most {most:.10g}"
            )
            after = "; /EVERY stands before the options" if "/" in value else ""
            raise ValueError(f"{part!r}: must have it as {form}{after}") from None
    return found


def _term(part: str, players: str) -> Term:
    body, *options = part.split(",")
    body, slash, every = body.partition("/")
    name, equals, weight = body.partition("=")
    player: Literal["d", "g"] = "g" if name.startswith("g.") else "d"
    name = name.removeprefix("g.")
    table = G_PENALTIES if player == "g" else PENALTIES
    if player not in players or (name not in table and ":" not in name):
        raise ValueError(
            f"{part!r} is not a penalty; must be none or a sum of {', '.join(forms(players))},"
            " or module:name of your own"
        )
    found: Any = lookup.find(table, name, "a penalty")
    if not isinstance(found, Regularizer) and not callable(found):
        raise ValueError(f"{part!r}: must be a function or a Regularizer")
    penalty = regularizer(cast(Penalty | Regularizer, found), **_options(part, found, options))
    if ":" in name:
        penalty = penalty._replace(apply=lookup.guard(penalty.apply, name, _check))
    if player not in penalty.players:
        raise ValueError(f"{part!r} is for {penalty.players.upper()}, not for {player.upper()}")
    if slash and not (every.isdecimal() and 0 < int(every) < 2**31):
        raise ValueError(
            f"{part!r}: the interval after / must be a whole number from 1 to 2147483647"
        )
    scalar = optim.parse(weight, low=0.0) if equals else None
    return Term(player, name, penalty, scalar, int(every) if slash else None)
