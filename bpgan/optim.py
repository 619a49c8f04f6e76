"""Scalars that change while training, optimizers that follow them, and averages of what these move.

A schedule is written as text, so that it fits in a flag:

=============================  ========================================================================
``2e-4``                       constant
``linear:A:B``                 from A to B along a line over the whole run
``cosine:A:B``                 from A to B along half a cosine
``linear:A:B:0.5``             the same over the first half of the run, then B (also with ``cosine``)
``warmup:0.05:...``            any of these, times a line from 0 to 1 over the first 5 % of the run
``hold:0.5:linear:A:B``        A over the first half of the run, then any of these over the rest
``rsqrt:A:0.1``                A over the first tenth of the run, then A times ``sqrt(0.1 / share of the run)``
=============================  ========================================================================

The last one, warmed up, is the step size of Karras et al. 2024, arXiv:2312.02696:
``warmup:0.05:rsqrt:1e-2:0.1`` is ``1e-2 min(t / 0.05, 1) / sqrt(max(t / 0.1, 1))`` at the share t of the run. As in all
these forms, times are shares of the run.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

Schedule = Callable[[Any], jax.Array]
"""``step -> value``, a scalar."""

OverRun = Callable[[int], Any]
"""``steps -> scalar``: a number or a ``Schedule``, once it is known how many steps the run has."""

_FORMS = (
    "a number A, linear:A:B, cosine:A:B, either with a fraction of the run as :F, rsqrt:A:F,"
    " warmup:F:... or hold:F:..."
)


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
        if kind == "rsqrt" and len(rest) == 2:
            start, share = _number(rest[0], low, high), _number(rest[1], 1e-12, 1.0)
            return lambda steps: _slowed(start, max(share * steps, 1.0))
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


def _slowed(start: float, length: float) -> Schedule:
    return lambda step: start / jnp.sqrt(jnp.maximum(step / length, 1.0))


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


class StepSizes(NamedTuple):
    """A step size for each player, perhaps relative to the width of its network.

    Attributes:
      pair: the scalars as they are written.
      reference: the width at which each is what is written, for G and for D; 0: at any width.
    """

    pair: Pair
    reference: tuple[float, float] = (0.0, 0.0)

    def at_widths(self, g: float, d: float) -> Pair:
        """The step sizes of networks so wide: ``scalar * reference / width`` where there is a reference.

        A wider layer sums more inputs, so that the same step of each weight moves its output further; GAT (Hyun et al.
        2025, arXiv:2509.24935) has ``2e-4 * 768 / width`` for both players.

        Args:
          g, d: the width of each network, 0 if it has none.

        Raises:
          ValueError: for a reference and a network without a width.
        """
        scalars = []
        for name, scalar, of, width in zip("GD", self.pair, self.reference, (g, d), strict=True):
            if of and not width:
                raise ValueError(f"the network of {name} has no width to divide {of:g} by")
            scalars.append(scaled(scalar, of / width) if of else scalar)
        return Pair(*scalars)


def scaled(scalar: OverRun, factor: Any) -> OverRun:
    """A scalar times a factor, a number or a traced one."""

    def over(steps: int) -> Any:
        value: Any = scalar(steps)
        return (lambda step: factor * at(value, step)) if callable(value) else factor * value

    return over


def parse_step_sizes(text: str) -> StepSizes:
    """Reads ``FOR_G/FOR_D``, or one for both, each a scalar >= 0, or ``width:W:`` before one.

    Raises:
      ValueError: as ``parse``, and for a W that is not above 0.
    """
    parts = text.split("/", 1)
    found = [_step_size(part) for part in (parts[0], parts[-1])]
    return StepSizes(Pair(*(scalar for scalar, _ in found)), (found[0][1], found[1][1]))


def _step_size(text: str) -> tuple[OverRun, float]:
    if not text.startswith("width:"):
        return parse(text, low=0.0), 0.0
    width, _, rest = text.removeprefix("width:").partition(":")
    try:
        reference = _number(width, 1, 1e6)
    except ValueError:
        raise ValueError(
            f"{text!r}: must be width:W:SCALAR, W a width from 1 to 1e6 such as 768, at which the step size is SCALAR"
        ) from None
    return parse(rest, low=0.0), reference


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


NARROWEST, WIDEST = 1e-4, 1 / math.sqrt(12)
"""Relative widths: of one step in 10,000, and of the average of all weights alike; beyond it the oldest would weigh
most."""


def exponent_of(sigma: float) -> float:
    """The exponent g >= 0 of the profile ``(g + 1) tau^g / t^(g + 1)`` whose standard deviation is ``sigma t``.

    The largest real root of ``g^3 + 7 g^2 + (16 - sigma^-2) g + (12 - sigma^-2)``, as ``sigma^2 = (g + 1) / ((g + 2)^2
    (g + 3))``. The mean age of what is averaged is ``t / (g + 2)``.

    Raises:
      ValueError: for a sigma that is not in [1e-4, 0.2886].
    """
    if not NARROWEST <= sigma <= WIDEST:
        raise ValueError(
            f"a relative width of {sigma:g} is not in [1e-4, 0.2886]: beyond 0.2886 the oldest weights would count most"
        )
    inverse = sigma**-2.0
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    # The others are negative, or a pair with a negative real part.
    return max(float(np.max(roots.real)), 0.0)


def power(sigma: float) -> Schedule:
    """The decays of an average that is as long as a share of the run so far, whatever its length.

    Karras et al. 2024, arXiv:2312.02696: ``a_t = (g + 1) / t^(g + 1) integral_0^t tau^g w(tau) d tau``, as

        a_t = d_t a_{t-1} + (1 - d_t) w_t,    d_t = (1 - 1/t)^(g + 1)

    where w_t are the weights after step t = 1, 2, ... After n steps w_i counts ``(i^(g + 1) - (i - 1)^(g + 1)) /
    n^(g + 1)`` exactly. As d_1 = 0, what the average begins at does not count.

    Args:
      sigma: the standard deviation of the profile over t; ``exponent_of`` gives g.

    Returns:
      ``step -> d`` with steps from 0.
    """
    order = exponent_of(sigma) + 1

    def decay(step: Any) -> jax.Array:
        return jnp.exp(order * jnp.log1p(-1 / (step + 1)))

    return decay


class Averages(NamedTuple):
    """Averages of the variables of one player.

    Attributes:
      decays: of each, numbers or functions of the step, as ``turns.play`` takes them. The first one draws samples.
      reload: the player goes on from its first average after every so many steps; 0: never.
    """

    decays: tuple[Any, ...]
    reload: int = 0


def names_of_averages(player: str, count: int) -> list[str]:
    """Of so many averages of a player in a state: ``g``, ``g_2``, ``g_3``, ..."""
    return [player, *(f"{player}_{i}" for i in range(2, count + 1))]


class Lengths(NamedTuple):
    """Averages as a text names them, before the length of the run is known.

    Attributes:
      half_lives: of each, in images; None where it is a power average.
      sigmas: relative width of each power average, else None.
      reload: steps or epochs, and whether they are epochs; 0: never.
    """

    half_lives: tuple[OverRun | None, ...]
    sigmas: tuple[float | None, ...]
    reload: tuple[float, bool] = (0.0, False)

    def over(self, steps: int, batch: int, per_epoch: float) -> Schedule | Averages | None:
        """What ``turns.play`` takes in a run of so many steps: a decay, ``Averages``, or None for no average.

        Args:
          steps: of the run.
          batch: images per step.
          per_epoch: steps per epoch.
        """
        number, in_epochs = self.reload
        reload = max(1, round(number * per_epoch)) if in_epochs else int(number)
        decays = []
        for scalar, sigma in zip(self.half_lives, self.sigmas, strict=True):
            if sigma is not None:
                decays.append(power(sigma))
                continue
            assert scalar is not None
            images = scalar(steps)
            ramp = None if callable(images) else 0.05  # a schedule is its own
            decays.append(None if images == 0 else half_life(images, batch, ramp))
        if len(decays) == 1 and not reload:
            return decays[0]
        return Averages(tuple(decays), reload)


def parse_averages(text: str) -> Lengths:
    """Reads ``2e4``, ``power:0.1``, ``power:0.05+power:0.1,reload=1ep`` and the like; ``0``: no average.

    Raises:
      ValueError: for anything else, saying what is allowed.
    """
    averages, comma, option = text.partition(",")
    reload = _reload(option) if comma else (0.0, False)
    terms = re.split(r"(?<![0-9.][eE])\+", averages)  # 2e+4 is a number
    found = [_length(term) for term in terms]
    if len(set(terms)) < len(terms):
        raise ValueError(f"{text!r}: keeps one average twice")
    none = [scalar is not None and scalar(1) == 0 for scalar, _ in found]
    if any(none) and (len(terms) > 1 or comma):
        raise ValueError(f"{text!r}: 0 keeps no average, and stands alone")
    return Lengths(tuple(scalar for scalar, _ in found), tuple(s for _, s in found), reload)


def _length(text: str) -> tuple[OverRun | None, float | None]:
    if not text.startswith("power:"):
        return parse(text, low=0.0), None
    try:
        sigma = float(text.removeprefix("power:"))
    except ValueError:
        raise ValueError(
            f"{text!r}: must be power:SIGMA, SIGMA a relative width such as 0.1"
        ) from None
    try:
        exponent_of(sigma)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    return None, sigma


def _reload(text: str) -> tuple[float, bool]:
    match = re.fullmatch(r"reload=(?:(\d{1,10})|(\d+\.?\d*|\.\d+)ep)", text, re.ASCII)
    number = float(match[1] or match[2]) if match else 0.0
    if not match or not 0 < number < 1e10:
        allowed = "must be reload=STEPS or reload=EPOCHSep, such as reload=1ep, of less than 1e10"
        raise ValueError(f"{text!r}: {allowed}")
    return number, match[1] is None


class Profile(NamedTuple):
    """How much a power average after ``steps`` steps has of the weights at each time: ``p(tau) = (g + 1) tau^g /
    steps^(g + 1)`` for tau from 0 to ``steps``."""

    exponent: float
    steps: float


def inner(a: Profile, b: Profile) -> float:
    """``integral p_a p_b``, which is ``(g_a + 1) (g_b + 1) / (g_a + g_b + 1) (s / l)^e / l`` for s <= l steps, with the
    exponent e of the longer one."""
    short, long = sorted((a, b), key=lambda each: each.steps)
    factor = (a.exponent + 1) * (b.exponent + 1) / (a.exponent + b.exponent + 1)
    return factor * (short.steps / long.steps) ** long.exponent / long.steps


class Combination(NamedTuple):
    """A profile as a sum of others.

    Attributes:
      coefficients: of each; their sum is 1.
      residual: the distance of the sum from the profile over the norm of the profile, both in L2.
      condition: number of the Gram matrix of the profiles, each over its norm.
    """

    coefficients: np.ndarray
    residual: float
    condition: float


def combine(stored: Sequence[Profile], wanted: Profile) -> Combination:
    """The sum of stored profiles that is nearest to another one: least squares with coefficients that sum to 1.

    Karras et al. 2024, arXiv:2312.02696, Sec. 3.2, where averages of any length are had from a few that were stored.
    Profiles are alike, so that the system is badly conditioned: directions below 1e-12 of the greatest eigenvalue,
    which would add rounding errors and nothing else, are left out.

    Raises:
      ValueError: if nothing is stored, or all of it is so far from what is wanted that the coefficients sum to 0.
    """
    if not stored:
        raise ValueError("no profiles are stored")
    norms = np.sqrt([inner(p, p) for p in stored])
    gram = np.array([[inner(a, b) for b in stored] for a in stored]) / np.outer(norms, norms)
    norm = math.sqrt(inner(wanted, wanted))
    target = np.array([inner(p, wanted) for p in stored]) / (norms * norm)
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-12 * values[-1]
    along = vectors[:, kept] * (1 / np.sqrt(values[kept]))  # orthonormal sums of profiles
    scaled = along @ (along.T @ target)
    coefficients = scaled / norms * norm
    total = coefficients.sum()
    if not abs(total) > 1e-6:
        raise ValueError("the stored profiles have nothing in common with the one that is wanted")
    coefficients = coefficients / total
    scaled = coefficients * norms / norm
    squared = float(scaled @ gram @ scaled - 2 * scaled @ target + 1)
    condition = float(values[-1] / max(values[0], np.finfo(float).tiny))
    return Combination(coefficients, math.sqrt(max(squared, 0.0)), condition)


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
