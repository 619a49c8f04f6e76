"""The latent of a given image: what a generator can make, and how far it is from what it cannot.

    z* = argmin_z  |G(z) - x|^2 / (d v)  +  weight |f(G(z)) - f(x)|^2 / (d_f v_f)  +  pull |z - center|^2 / d_z

with the variance v of the pixels (v_f of the features) and the numbers d, d_f, d_z of each, by Adam from several starts
(Zhu et al. 2016, arXiv:1609.03552; Lipton & Tripathy 2017, arXiv:1702.04782; Karras et al. 2020, arXiv:1912.04958, App.
D, in the space of styles). It is not convex: a poor result may be a poor search. So the same search for samples of the
generator, which it can make, is the control: a held-out image that is found less well than these is one that the
generator does not make, as far as this search can tell.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from bpgan import optim
from bpgan.insight import rows
from bpgan.types import UserError, counted

FOUND = 1e-3
"""The share of the variance of pixels up to which an image counts as found."""

_DECAYS = 0.9, 0.9
"""Of Adam. A slope that is small at last must not be divided by what it was at first: with (0.9, 0.999) the same steps
end with 3 to 15 times the error, for the generators of ``mnist_gan``."""

_ROUNDING = 0.02  # of pixels in [-1, 1], in narrow types too: labels given out by row change an image by far more


class Inversion(NamedTuple):
    """What was found for each target by the best of its starts.

    Attributes:
      z: ``[n, ...]``.
      images: ``G(z)``, ``[n, ...]``.
      error: ``mean (G(z) - x)^2 / variance``, the mean over the pixels of the image.
      losses: of every start at the end, ``[r, n]``, with features and pull; NaN of one that diverged.
      start: which start was best, by that loss.
      variance: of the pixels, by which errors are divided.
    """

    z: Float[np.ndarray, "n ..."]
    images: Float[np.ndarray, "n ..."]
    error: Float[np.ndarray, " n"]
    losses: Float[np.ndarray, "r n"]
    start: Int[np.ndarray, " n"]
    variance: float

    @property
    def found(self) -> np.ndarray:
        """Whether each target was found, to ``FOUND`` of the variance of pixels."""
        return self.error <= FOUND

    @property
    def says(self) -> str:
        """How many were found, in a sentence."""
        n, found = len(self.error), int(self.found.sum())
        bound = f"{FOUND:g} of the variance of pixels"
        if found == n:
            return f"All {counted(n, 'image')} were found to {bound}."
        worst = f"the worst has {self.error.max():.2g}"
        return f"{found} of {counted(n, 'image')} were found to {bound}; {worst}."


class Features(NamedTuple):
    """What is compared beside the pixels: ``function: x[b, ...] -> f[b, ...]``, with its weight."""

    function: Callable[..., Array]
    weight: float = 1.0


class Pull(NamedTuple):
    """The weight of the mean square of ``z - center``: for normal latents, a pull toward their prior.

    ``center`` is a number, or an array of the shape of a latent.
    """

    weight: float = 0.0
    center: Any = 0.0


def invert(
    G: Callable[..., Array],
    targets: Float[np.ndarray, "n ..."],
    starts: Float[np.ndarray, "r n ..."],
    *,
    steps: int = 800,
    lr: float | str = "cosine:0.1:0",
    labels: Any = None,
    features: Features | None = None,
    pull: Pull = Pull(),  # noqa: B008 (it cannot be changed)
    bounds: tuple[Any, Any] | None = None,
    variance: float | None = None,
) -> Inversion:
    """Searches for the latent of each target from r starts, all in one program, and keeps the best start of each.

    Args:
      G: ``z[b, ...] -> x[b, ...]``; with labels ``(z[b, ...], labels[b]) -> x[b, ...]``. Of a trained run
        ``run.generator``; for the space of styles its synthesis, with styles as starts. Rows must not mix.
      targets: floats in [-1, 1], of the shape that G makes.
      starts: latents, such as draws of the latents that G was trained on.
      steps: of Adam.
      lr: the step size, a number or a schedule in the form of ``bpgan.optim``, such as ``linear:0.1:0``.
      labels: ``[n]``, one for each target, if G takes them.
      features: compared beside the pixels.
      pull: toward a latent.
      bounds: ``(low, high)``, numbers or arrays of the shape of a latent, between which every z is kept by a projection
        after each step: ``(-1, 1)`` for uniform latents, ``(-a, a)`` for truncated ones. None: the search may leave the
        support of the latents.
      variance: of the pixels, of which errors are shares; None: that of all pixels of the targets about their mean.

    Raises:
      UserError: for arrays that do not fit or are not finite, starts out of bounds, targets without variance, numbers
        out of range, a search of which no start stays finite, or a G that makes other images of the same latents in
        other rows.
    """
    targets, starts = rows.floats(targets, "targets"), rows.floats(starts, "starts", least=3)
    labels = rows.labels_of(labels, len(targets))
    _check_shapes(G, targets, starts, labels)
    low, high = _box(bounds, starts)
    problem = _Problem(
        rows.bound(G),
        None if features is None else rows.bound(features.function),
        targets.astype(starts.dtype),
        labels,
        _variance(targets, variance),
        _number(features.weight if features else 0.0, "weight"),
        _number(pull.weight, "pull"),
        _of_latent(pull.center, starts, "center"),
        low,
        high,
    )
    steps = rows.count(steps, "steps")
    return _best(problem, _descend(problem, starts, steps, _schedule(lr)))


class _Problem(NamedTuple):
    """What is minimized, and where."""

    G: Partial
    features: Partial | None
    targets: Any
    labels: Any
    variance: Any
    weight: Any
    pull: Any
    center: Any
    low: Any
    high: Any


class _Ended(NamedTuple):
    """All starts at the end, ``[r, n, ...]``, and by how much an image depends on the row that it is in."""

    z: Array
    images: Array
    losses: Array
    errors: Array
    mixed: Array


@functools.partial(jax.jit, static_argnums=(2, 3))
def _descend(problem: _Problem, starts: Array, steps: int, lr: float | str) -> _Ended:
    r, n = starts.shape[:2]

    def repeated(each: Array) -> Array:
        return jnp.tile(each, (r, *[1] * (each.ndim - 1)))

    labels = None if problem.labels is None else repeated(problem.labels)
    target, of_target, of_features = repeated(problem.targets), None, None
    if problem.features is not None:
        found = problem.features(problem.targets)
        of_target, of_features = repeated(found), jnp.maximum(jnp.var(found), 1e-12)

    def losses(z: Array) -> tuple[Array, tuple[Array, Array]]:
        made = rows.call(problem.G, z, labels)
        errors = _mean_square(made - target) / problem.variance
        total = errors + problem.pull * _mean_square(z - problem.center[None])
        if problem.features is not None:
            away = _mean_square(problem.features(made) - of_target)
            total += problem.weight * away / of_features
        return total, (errors, made)

    tx = optim.adam(optim.schedule(lr, steps), *_DECAYS)

    def step(_: Any, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        z, state = carry
        slope = jax.grad(lambda z: jnp.sum(losses(z)[0]))(z)
        change, state = tx.update(slope, state)
        moved = optax.apply_updates(z, change)
        return jnp.clip(moved, problem.low[None], problem.high[None]), state  # type: ignore[arg-type]

    z = starts.reshape(r * n, *starts.shape[2:])
    z, _ = lax.fori_loop(0, steps, step, (z, tx.init(z)))
    total, (errors, made) = losses(z)
    again = rows.call(
        problem.G, jnp.roll(z, 1, 0), None if labels is None else jnp.roll(labels, 1, 0)
    )
    mixed = jnp.nanmax(jnp.abs(jnp.roll(again, -1, 0) - made))

    def apart(each: Array) -> Array:
        return each.reshape(r, n, *each.shape[1:])

    return _Ended(apart(z), apart(made), apart(total), apart(errors), mixed)


def _mean_square(each: Array) -> Array:
    """Of each row, over everything else."""
    return jnp.mean(jnp.square(each), axis=range(1, each.ndim))


def _best(problem: _Problem, ended: _Ended) -> Inversion:
    z, images, losses, errors, mixed = (np.asarray(each) for each in ended)
    if not np.isfinite(losses).any(0).all():
        lost = np.flatnonzero(~np.isfinite(losses).any(0))
        reason = f"no start of target {lost[0]} stays finite; a smaller `lr` may help"
        raise UserError(reason, argument="starts")
    if mixed > _ROUNDING:
        reason = (
            "G makes other images of the same latents in other rows;"
            " hand over `labels` if it takes them, else it mixes the rows of a batch"
        )
        raise UserError(reason, argument="G")
    start = np.nanargmin(np.where(np.isfinite(losses), losses, np.nan), axis=0)
    at = start, np.arange(len(start))
    return Inversion(z[at], images[at], errors[at], losses, start, float(problem.variance))


# Checks -------------------------------------------------------------------------------------------------------------


def _check_shapes(G: Any, targets: np.ndarray, starts: np.ndarray, labels: Any) -> None:
    if starts.shape[1] != len(targets):
        reason = f"must be [r, {len(targets)}, ...], one of each start for each target, not {list(starts.shape)}"
        raise UserError(reason, argument="starts")
    made = rows.output(G, "starts", starts[0, 0], None if labels is None else labels[0])
    if made != targets.shape[1:]:
        reason = f"images are {list(targets.shape[1:])}, those that G makes {list(made)}"
        raise UserError(reason, argument="targets")


def _schedule(lr: Any) -> float | str:
    try:
        if isinstance(lr, str):
            optim.parse(lr, low=0.0)
            return lr
        if 0 < lr < np.inf:
            return float(lr)
        raise ValueError("must be above 0")
    except (TypeError, ValueError) as error:
        raise UserError(str(error), argument="lr", value=lr) from None


def _number(value: Any, name: str) -> float:
    if not 0 <= value < np.inf:
        raise UserError("must be a number, 0 or more", argument=name, value=value)
    return float(value)


def _variance(targets: np.ndarray, variance: float | None) -> float:
    if variance is None:
        variance = float(np.var(targets.astype(np.float64)))
        if not variance:
            reason = "all pixels are equal; errors are shares of their variance, so give `variance`"
            raise UserError(reason, argument="targets")
    if not 0 < variance < np.inf:
        raise UserError("must be a number above 0", argument="variance", value=variance)
    return float(variance)


def _of_latent(value: Any, starts: np.ndarray, name: str) -> np.ndarray:
    """A number, or an array of the shape of a latent, as such an array."""
    found, shape = np.asarray(value, starts.dtype), starts.shape[2:]
    if found.shape not in ((), shape) or np.isnan(found).any():
        reason = f"must be a number or {list(shape)}, without NaN, not {list(found.shape)}"
        raise UserError(reason, argument=name)
    return np.broadcast_to(found, shape)


def _box(bounds: Any, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    low, high = (_of_latent(each, starts, "bounds") for each in (low, high))
    if not (low <= high).all():
        raise UserError("must be (low, high), low at most high", argument="bounds")
    if not ((low <= starts) & (starts <= high)).all():
        raise UserError("must lie between `bounds`", argument="starts")
    return low, high
