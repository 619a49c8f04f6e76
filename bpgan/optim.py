"""Scalars that change while training, optimizers that follow them, and averages by half-life.

A schedule is written as text, so that it fits in a flag:

=============================  ========================================================================
``2e-4``                       constant
``linear:A:B``                 from A to B along a line over the whole run
``cosine:A:B``                 from A to B along half a cosine
``linear:A:B:0.5``             the same over the first half of the run, then B (also with ``cosine``)
``warmup:0.05:...``            any of these, times a line from 0 to 1 over the first 5 % of the run
``hold:0.5:linear:A:B``        A over the first half of the run, then any of these over the rest
=============================  ========================================================================
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

Schedule = Callable[[Any], jax.Array]
"""``step -> value``, a scalar."""

OverRun = Callable[[int], Any]
"""``steps -> scalar``: a number or a ``Schedule``, once it is known how many steps the run has."""

_FORMS = "a number A, linear:A:B, cosine:A:B, either with a fraction of the run as :F, warmup:F:... or hold:F:..."


class Pair(NamedTuple):
    """A scalar for each player."""

    g: OverRun
    d: OverRun


def _number(text: str, low: float = -math.inf, high: float = math.inf) -> float:
    value = float(text)
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError
    return value


def at(scalar: Any, step: Any) -> Any:
    """The value at a step of a number, which is itself, or of a ``Schedule``."""
    return scalar(step) if callable(scalar) else scalar


def parse(text: str, *, low: float = -math.inf, high: float = math.inf) -> OverRun:
    """Reads a text as in this module's table.

    Args:
      low, high: bounds of the values, allowed themselves.

    Returns:
      ``scalar(steps)``, what the text describes over a run of so many steps: a float if it is a number, else a
      ``Schedule``, traceable; from ``steps`` on it stays at its last value.

    Raises:
      ValueError: a text of another form, a value that is out of bounds, or a fraction that is not in (0, 1].
    """
    kind, *rest = text.split(":")
    try:
        if not rest:
            number = _number(kind, low, high)
            return lambda steps: number
        if kind == "warmup":
            share = _number(rest[0], 1e-12, 1.0)
            inner = parse(":".join(rest[1:]), low=low, high=high)
            return lambda steps: _warmed_up(inner(steps), max(share * steps, 1.0))
        if kind == "hold":
            share = _number(rest[0], 1e-12, 1.0)
            inner = parse(":".join(rest[1:]), low=low, high=high)
            return lambda steps: _held(inner(steps - round(share * steps)), round(share * steps))
        if kind not in ("linear", "cosine") or len(rest) not in (2, 3):
            raise ValueError
        start, end = _number(rest[0], low, high), _number(rest[1], low, high)
        share = _number(rest[2], 1e-12, 1.0) if len(rest) == 3 else 1.0
    except ValueError:
        bounds = f"; A and B in [{low}, {high}]" if high < math.inf else f"; A and B >= {low}"
        raise ValueError(f"{text!r}: must be {_FORMS}{bounds if low > -math.inf else ''}") from None
    return lambda steps: _curve(kind, start, end, max(share * steps, 1.0))


def _warmed_up(scalar: Any, length: float) -> Schedule:
    return lambda step: jnp.minimum((step + 1) / length, 1.0) * at(scalar, step)


def _held(scalar: Any, length: int) -> Schedule:
    return lambda step: at(scalar, jnp.maximum(step - length, 0))


def _curve(kind: str, start: float, end: float, length: float) -> Schedule:
    def value_at(step: Any) -> jax.Array:
        t = jnp.clip(step / length, 0.0, 1.0)
        share = t if kind == "linear" else 0.5 - 0.5 * jnp.cos(jnp.pi * t)
        return start + (end - start) * share

    return value_at


def schedule(value: Any, steps: int = 1, *, low: float = -math.inf, high: float = math.inf) -> Any:
    """``parse(value)(steps)`` of a text; anything else, such as a number or a traced array, as it is.

    Raises:
      ValueError: as ``parse``.
    """
    return parse(value, low=low, high=high)(steps) if isinstance(value, str) else value


def parse_pair(text: str, *, low: float = -math.inf, high: float = math.inf) -> Pair:
    """Reads ``FOR_G/FOR_D``, or one scalar for both players. Raises ValueError as ``parse``."""
    g, slash, d = text.partition("/")
    for_g = parse(g, low=low, high=high)
    return Pair(for_g, parse(d, low=low, high=high) if slash else for_g)


class Betas(NamedTuple):
    """Adam's decays and its epsilon, before the length of the run is known."""

    b1: OverRun
    b2: OverRun
    eps: float = 1e-8

    def adam(self, lr: OverRun, steps: int) -> optax.GradientTransformation:
        """Adam in a run in which it is updated so many times."""
        return adam(lr(steps), self.b1(steps), self.b2(steps), eps=self.eps)


def parse_betas(text: str) -> Betas:
    """Reads ``B1,B2`` or ``B1,B2,EPSILON``: two decays, numbers or schedules, and a number.

    Raises:
      ValueError: for anything else.
    """
    b1, b2, *eps = text.split(",") if "," in text else ("", "")
    try:
        first, second = (parse(decay, low=0.0, high=0.99999) for decay in (b1, b2))
        (epsilon,) = map(float, eps or ["1e-8"])
        if not 0 < epsilon < 1:
            raise ValueError
    except ValueError:
        raise ValueError(
            "must be two decays in [0, 0.99999], numbers or schedules, and perhaps an epsilon: 0.5,0.99,1e-8"
        ) from None
    return Betas(first, second, epsilon)


def adam(
    lr: Any, b1: Any = 0.5, b2: Any = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980) whose step size and decays may each be a number or a ``Schedule``.

    Schedules count this optimizer's own updates. The corrections of the means' bias use the present decays, as
    PyTorch's Adam does when its betas are changed. The state is that of ``optax.adam``, and so are the updates, but for
    rounding (``scale_by_adam``).
    """
    if callable(b1) or callable(b2):
        return optax.inject_hyperparams(_adam, static_args=("eps",))(lr, b1=b1, b2=b2, eps=eps)
    return _adam(lr, b1, b2, eps)


def _adam(learning_rate: Any, b1: Any, b2: Any, eps: float) -> optax.GradientTransformation:
    return optax.chain(scale_by_adam(b1, b2, eps), optax.scale_by_learning_rate(learning_rate))


def scale_by_adam(b1: Any, b2: Any, eps: float) -> optax.GradientTransformation:
    """``optax.scale_by_adam``, arranged so that each parameter costs one division and one root.

    With ``r_t = sqrt(1 - b2^t)``,

        m_t = g + b1 (m - g),    v_t = b2 v + (1 - b2) g^2,
        u_t = r_t / (1 - b1^t)  m_t / (sqrt(v_t) + r_t eps)

    as in Sec. 2 of the paper, with its epsilon as in Algorithm 1.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)
        # A sum of two arrays is computed once. Of `b1 m + (1 - b1) g` with b1 = 1/2 XLA makes half of one array,
        # computes it again where the parameters are updated, and must copy m there before it is overwritten.
        mu = jax.tree.map(lambda m, g: g + b1 * (m - g), state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates)
        root = jnp.sqrt(1 - b2**count)
        factor = root / (1 - b1**count)

        def scaled(m: jax.Array, v: jax.Array) -> jax.Array:
            a, r = factor.astype(m.dtype), root.astype(m.dtype)
            return a * m / (jnp.sqrt(v) + r * eps)

        return jax.tree.map(scaled, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = optax.tree.zeros_like
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros(params), zeros(params))

    return optax.GradientTransformation(init, cast(Any, update))


def clip_weights(bound: float) -> optax.GradientTransformation:
    """Keeps every parameter in ``[-bound, bound]``: the last link of a chain.

    Arjovsky et al. 2017, arXiv:1701.07875, Alg. 1 (bound 0.01, RMSProp with 5e-5, five updates of D to one of G).
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("clip_weights: needs the parameters")
        clipped = jax.tree.map(lambda p, u: jnp.clip(p + u, -bound, bound) - p, params, updates)
        return clipped, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), cast(Any, update))


def half_life(images: Any, batch: int, ramp: float | None = 0.05) -> Schedule:
    """The decay ``0.5^(batch / h)`` of an average whose weights halve in h images.

    Karras et al. 2020, arXiv:2006.06676: ``h = min(images, ramp * seen)``, so that the average is never longer than a
    share of the run so far; at the first step it is the newest value alone.

    Args:
      images: h at last, a number or a ``Schedule``.
      batch: images per step.
      ramp: share of the images seen; None: none, for an ``images`` that grows by itself.
    """

    def decay(step: Any) -> jax.Array:
        h = at(images, step)
        if ramp is not None:
            h = jnp.minimum(h, ramp * step * batch)
        return 0.5 ** (batch / jnp.maximum(h, 1e-8))

    return decay


class Range(NamedTuple):
    """What a range test found.

    Attributes:
      smooth: the smoothed loss, NaN from where the test stopped.
      steepest: the step size at which the smoothed loss falls fastest with the logarithm of the step size.
      tenth: a tenth of the step size at which it is least.
      stopped: index of the step at which the loss had grown too large or was not finite; the length if it never was.
    """

    smooth: np.ndarray
    steepest: float
    tenth: float
    stopped: int


def geometric(low: float, high: float, steps: int) -> Schedule:
    """The step sizes of a range test: ``low (high / low)^(step / (steps - 1))``."""
    return lambda step: low * (high / low) ** (step / (steps - 1))


def range_test(lrs: np.ndarray, losses: np.ndarray, *, decay: float = 0.98) -> Range:
    """Reads a learning-rate range test: Smith 2017, arXiv:1506.01186, with the smoothing and stopping of its users.

    The loss is averaged with the given decay, corrected for its start. The test stops where the average exceeds four
    times its least value so far (of a loss that can be negative: where it is above the least by three times the fall).

    Args:
      lrs: the step size of each step, growing.
      losses: before each step, with the batch of that step.
      decay: of the average, in [0, 1).

    Raises:
      ValueError: if fewer than ten steps came before the stop.
    """
    mean, least, smooth = 0.0, math.inf, np.full(len(losses), math.nan)
    stopped = len(losses)
    for i, loss in enumerate(losses):
        mean = decay * mean + (1 - decay) * float(loss)
        value = mean / (1 - decay ** (i + 1))
        first = smooth[0] if i else value
        bound = 4 * least if least > 0 else least + 3 * (first - least)
        if not math.isfinite(value) or (i >= 10 and value > bound):
            stopped = i
            break
        smooth[i], least = value, min(least, value)
    if stopped < 10:
        raise ValueError(f"stopped at step {stopped}: the range begins too high")
    at = int(np.nanargmin(smooth))
    # Over a twentieth of the range: from one step to the next the batches decide.
    width = min(max(len(losses) // 20, 1), max(at, 1))
    fall = smooth[width : at + 1] - smooth[: at + 1 - width]
    middle = (int(np.argmin(fall)) if len(fall) else 0) + width // 2
    return Range(smooth, float(lrs[middle]), float(lrs[at]) / 10, stopped)
