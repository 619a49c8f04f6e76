"""Differentiable augmentation of what D sees: the same random transformation of real and of generated images.

``apply = policy("color,translation,cutout")`` maps ``(x[b, h, w, c] in [-1, 1], key, p)`` to images of the same shape
and type; each operation meets each example with probability p, independently. Applied to real and fake, in both
players' updates, it leaves the optimum of the game where it is if it is invertible *as a map of distributions*
(Karras et al. 2020, arXiv:2006.06676, section 2). Operations that are skipped with a good probability 1 - p are; one
that always draws its quarter turns anew (p = 1) is not, and G learns turned images.

===============  ============================================================  ================================
operation        what it draws for an example                                  source
===============  ============================================================  ================================
``color``        brightness U(-1/2, 1/2), saturation U(0, 2),                  DiffAugment: Zhao et al. 2020,
                 contrast U(1/2, 3/2)                                          arXiv:2006.10738
``translation``  whole pixels, up to 1/8 of the size, zeros enter
``cutout``       where a square of zeros, half the size, has its center
``blit``         mirroring, quarter turns, whole pixels up to 1/8              ADA: Karras et al. 2020,
``geom``         scale, rotation, aspect, rotation, translation                arXiv:2006.06676, appendix B
``ada_color``    brightness, contrast, luma flip, hue, saturation
===============  ============================================================  ================================

Zero is mid-gray. Colors are the first three channels, or the first of fewer; others, such as
alpha, keep their values but move with the image. What is drawn is a record of numbers whose defaults are neutral, so
that an operation is ``draw(key, p, x) -> record``, all of the randomness, and ``transform(x, record) -> x``, which is
linear in x up to a constant and gives back the bits of x where the record is neutral.

Nothing here scatters on an accelerator, where the order of additions would change from run to run: images are moved
by products with matrices of weights, whose transposes are such products again.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from bpgan import optim
from bpgan.sharding import by_rows
from bpgan.types import PRNG, Images, stream

_NUMBERS = 2**26
"""Greatest size of an intermediate array of ``geom`` on an accelerator."""

Apply = Callable[[Images, PRNG, Any], Images]
PerExample = Any  # Float[Array, " b"], or the neutral number
Vectors = Any  # Float[Array, "b 2"], rows and columns, or the neutral number


class Augment(NamedTuple):
    """What a training step needs to augment.

    Attributes:
      apply: ``apply(x, key, p) -> x``, of ``policy``.
      p: probability of each operation, a number or a function of the step, or where an adaptive one begins.
      target: of ``r_t``, the mean of ``sign D(x)`` over real x, for ``adapt``; None keeps p fixed.
      images: real images that D sees while an adaptive p moves by 1.
      paired: whether the fake beside each real has the same draw, so that a loss of pairs compares the images alone.
    """

    apply: Apply
    p: Any
    target: float | None = None
    images: int = 500_000
    paired: bool = False

    @property
    def streams(self) -> tuple[str, str]:
        """The names of the random streams of reals and of fakes; of pairs one and the same."""
        return "augment_real", "augment_real" if self.paired else "augment_fake"


def adapt(p: Any, r_t: Any, batch: int, images: int, target: Any, maximum: float = 0.8) -> Array:
    """``p + sign(r_t - target) batch / images``, kept in ``[0, maximum]``.

    Karras et al. 2020, arXiv:2006.06676, section 3: ``r_t = E sign D(x)`` over real x says how much D overfits, 0 not
    at all and 1 entirely; target 0.6, and p goes from 0 to 1 in 500,000 images. The paper moves p after every fourth
    batch and bounds it by 0 only; but beyond about 0.8 it sees augmentations leak into the samples (section 2).

    The sign says what D thinks only with a loss that puts the balance of real and fake at D = 0
    (``AdversarialLoss.balances_at_zero``): a relativistic or Wasserstein D may add any constant to its logits, and
    then p follows that constant.

    Args:
      p: scalar; float32 or wider, for a step is about 1e-4.
      r_t: scalar, of the batch of real images that D has just seen.
      batch, images: the images in that batch, and those in which p moves by 1.
      target: the ``r_t`` at which p rests.
      maximum: the greatest p.
    """
    return jnp.clip(p + jnp.sign(r_t - target) * (batch / images), 0.0, maximum)


# What is drawn. The defaults are neutral.


class Color(NamedTuple):
    """``x + brightness``, then ``saturation`` and ``contrast`` times the distance to the mean, of pixel and image."""

    brightness: PerExample = 0.0
    saturation: PerExample = 1.0
    contrast: PerExample = 1.0


class Translation(NamedTuple):
    """Whole pixels down and to the right."""

    shift: Vectors = 0.0


class Cutout(NamedTuple):
    """Row and column of the center; by default so far outside that no square reaches the image."""

    center: Vectors = -1e6


class Blit(NamedTuple):
    """Mirroring of left and right if ``mirror`` is 1, then quarter turns counter-clockwise, then whole pixels."""

    mirror: PerExample = 0.0
    turns: PerExample = 0.0
    shift: Vectors = 0.0


class Geom(NamedTuple):
    """Magnification, rotation counter-clockwise, ``aspect`` times wider and narrower in height, rotation, pixels."""

    scale: PerExample = 1.0
    before: PerExample = 0.0
    aspect: PerExample = 1.0
    after: PerExample = 0.0
    shift: Vectors = 0.0


class AdaColor(NamedTuple):
    """``x + brightness``, times ``contrast``, gray axis mirrored if ``flip`` is 1, ``hue`` turned, ``saturation``."""

    brightness: PerExample = 0.0
    contrast: PerExample = 1.0
    flip: PerExample = 0.0
    hue: PerExample = 0.0
    saturation: PerExample = 1.0


def _drawn(record, key: PRNG, **fields):
    """A ``record`` of fields ``name=(p, sample)``: ``sample(key)[b, ...]``, where a coin of p says so, or neutral."""

    def field(name: str, p, sample):
        value = sample(stream(stream(key, name), "value"))
        coin = (len(value),) + (1,) * (value.ndim - 1)
        on = jax.random.bernoulli(stream(stream(key, name), "coin"), p, coin)
        return jnp.where(on, value, record._field_defaults[name])

    return record(**{name: field(name, *how) for name, how in fields.items()})


def _uniform(x, low: float, high: float, *shape: int):
    return lambda key: jax.random.uniform(key, (len(x), *shape), x.dtype, low, high)


def _normal(x, std: float, *shape: int):
    return lambda key: std * jax.random.normal(key, (len(x), *shape), x.dtype)


def _lognormal(x, std: float):
    return lambda key: jnp.exp(_normal(x, std)(key))


def _integers(x, low, high, *shape: int):
    """Uniform in ``low`` to ``high``, both included."""
    return lambda key: jax.random.randint(key, (len(x), *shape), low, np.add(high, 1)).astype(
        x.dtype
    )


def _size(x) -> np.ndarray:
    """Height and width, [1, 2]."""
    return np.array([x.shape[1:3]])


def draw_color(key: PRNG, p, x: Images) -> Color:
    """Of x only shape and type count, here and in all that draw."""
    return _drawn(
        Color,
        key,
        brightness=(p, _uniform(x, -0.5, 0.5)),
        saturation=(p, _uniform(x, 0.0, 2.0)),
        contrast=(p, _uniform(x, 0.5, 1.5)),
    )


def draw_translation(key: PRNG, p, x: Images) -> Translation:
    """``(rows, columns)`` in whole numbers, uniform to an eighth of the size, rounded, both ways."""
    most = (_size(x) / 8 + 0.5).astype(int)
    return _drawn(Translation, key, shift=(p, _integers(x, -most, most, 2)))


def draw_cutout(key: PRNG, p, x: Images) -> Cutout:
    """A center in the image; a square of even side has it between pixels, so there is one place more."""
    last = _size(x) - _cutout_size(x) % 2
    return _drawn(Cutout, key, center=(p, _integers(x, 0, last, 2)))


def draw_blit(key: PRNG, p, x: Images) -> Blit:
    """Half of the mirrorings drawn, and a quarter of the turns, are none. Only half turns unless height is width."""
    if x.shape[1] == x.shape[2]:
        turns = _integers(x, 0, 3)
    else:
        turns = lambda key: 2 * _integers(x, 0, 1)(key)  # noqa: E731
    return _drawn(
        Blit,
        key,
        mirror=(p, _integers(x, 0, 1)),
        turns=(p, turns),
        shift=(p, lambda key: jnp.round(_uniform(x, -0.125, 0.125, 2)(key) * _size(x))),
    )


def draw_geom(key: PRNG, p, x: Images) -> Geom:
    """Scale and aspect are log-normal; a rotation before or after the change of aspect has probability p together."""
    once = 1 - jnp.sqrt(1 - jnp.asarray(p, x.dtype))
    angle = _uniform(x, -math.pi, math.pi)
    return _drawn(
        Geom,
        key,
        scale=(p, _lognormal(x, 0.2 * math.log(2))),
        before=(once, angle),
        aspect=(p, _lognormal(x, 0.2 * math.log(2))),
        after=(once, angle),
        shift=(p, lambda key: _normal(x, 0.125, 2)(key) * _size(x)),
    )


def draw_ada_color(key: PRNG, p, x: Images) -> AdaColor:
    """Contrast and saturation are log-normal. Of one channel hue and saturation mean nothing."""
    return _drawn(
        AdaColor,
        key,
        brightness=(p, _normal(x, 0.2)),
        contrast=(p, _lognormal(x, 0.5 * math.log(2))),
        flip=(p, _integers(x, 0, 1)),
        hue=(p, _uniform(x, -math.pi, math.pi)),
        saturation=(p, _lognormal(x, math.log(2))),
    )


# What is done with it.


def _unless_neutral(x: Images, record, changed: Images) -> Images:
    """``changed``, but the very bits of x where all that was drawn is neutral."""
    same: Bool[Array, "b 1 1 1"] = jnp.ones((len(x), 1, 1, 1), bool)
    for name, value in record._asdict().items():
        value = jnp.reshape(value, (len(x), -1, 1, 1))
        same &= jnp.all(value == record._field_defaults[name], axis=1, keepdims=True)
    return jnp.where(same, x, changed)


def _recolored(x: Images, gray, chroma, turned, offset) -> Images:
    """``y = gray P x + chroma (I - P) x + turned K x + offset`` of the colors, with all four numbers ``[b]``.

    ``P`` projects on the gray axis ``v = (1, 1, 1) / sqrt 3`` and K is the cross product with v. Of one channel it is
    ``gray x + offset``.
    """
    b, *_, channels = x.shape
    if channels not in (1, 3):
        n = 3 if channels > 3 else 1
        changed = _recolored(x[..., :n], gray, chroma, turned, offset)
        return jnp.concatenate([changed, x[..., n:]], axis=3)
    p = np.full((channels, channels), 1 / channels)
    k = np.roll(np.eye(3), 1, axis=0) - np.roll(np.eye(3), -1, axis=0)
    k = k / math.sqrt(3) if channels == 3 else np.zeros((1, 1))
    parts = jnp.asarray(np.stack([p, np.eye(channels) - p, k]), x.dtype)
    amounts = jnp.stack([gray, chroma, turned], axis=1)
    matrix = jnp.tensordot(amounts, parts, 1, precision=lax.Precision.HIGHEST)
    # Long rows of pixels: many times as fast on CPU as a product over a last axis of three.
    pixels = x.reshape(b, -1, channels).swapaxes(1, 2)
    y = jnp.matmul(matrix, pixels, precision=lax.Precision.HIGHEST) + offset[:, None, None]
    return y.swapaxes(1, 2).reshape(x.shape)


def color(x: Images, drawn: Color) -> Images:
    """DiffAugment's three changes of color in one affine map. Of one channel, saturation changes nothing."""
    brightness, saturation, contrast = drawn
    mean = jnp.mean(x[..., : 3 if x.shape[3] >= 3 else 1], axis=(1, 2, 3))
    offset = brightness + (1 - contrast) * mean
    y = _recolored(x, contrast, contrast * saturation, jnp.zeros_like(offset), offset)
    return _unless_neutral(x, drawn, y)


def translation(x: Images, drawn: Translation) -> Images:
    """``y[i, j] = x[i - rows, j - columns]``, 0 where there is no such pixel."""
    rows, columns = (
        place + (n - 1) / 2
        for place, n in zip(_centered(x, drawn.shift), x.shape[1:3], strict=True)
    )
    return _unless_neutral(x, drawn, _resampled(x, rows, columns))


def _cutout_size(x: Images) -> np.ndarray:
    return (_size(x) / 2 + 0.5).astype(int)


def cutout(x: Images, drawn: Cutout) -> Images:
    """Zeros in a square of half the height and width, as far as it lies in the image."""

    def inside(axis: int):
        size = _cutout_size(x)[0, axis]
        first = drawn.center[:, axis, None] - size // 2
        place = jnp.arange(x.shape[1 + axis], dtype=x.dtype)[None]
        return (place >= first) & (place < first + size)

    square = inside(0)[:, :, None, None] & inside(1)[:, None, :, None]
    return jnp.where(square, 0, x)


def blit(x: Images, drawn: Blit) -> Images:
    """Mirroring, quarter turns and whole pixels: every pixel keeps its value. What enters is a reflection."""
    if x.shape[1] == x.shape[2]:
        odd = drawn.turns[:, None, None, None] % 2 == 1
        source = jnp.where(odd, jnp.swapaxes(x, 1, 2), x)
    else:
        source = x
    # The inverse of mirroring and turn is [[c, s], [-m s, m c]]. One entry of each row and column is not zero; the
    # swapped axes put it on the diagonal.
    c, s = (jnp.round(f(drawn.turns * (math.pi / 2))) for f in (jnp.cos, jnp.sin))
    m = 1 - 2 * drawn.mirror
    rows, columns = (
        _reflected(sign[:, None] * place + (n - 1) / 2, n)
        for sign, place, n in zip(
            (c - m * s, s + m * c), _centered(x, drawn.shift), x.shape[1:3], strict=True
        )
    )
    return _unless_neutral(x, drawn, _resampled(source, rows, columns))


def geom(x: Images, drawn: Geom) -> Images:
    """One affine map about the center: output pixels look up where they come from, bilinearly, reflected at borders.

    The paper low-pass filters before and after its resampling, with wavelets; this does not, so turned or shrunk images
    are a little less smooth.
    """

    def inverse(angle):  # of a rotation of (row, column), counter-clockwise on the screen
        c, s = jnp.cos(angle), jnp.sin(angle)
        return jnp.stack([jnp.stack([c, s], -1), jnp.stack([-s, c], -1)], -2)

    stretch = jnp.stack([drawn.aspect, 1 / drawn.aspect], -1) / drawn.scale[:, None]
    linear = jnp.sum(  # not a matrix product, which accelerators round to fewer digits
        (inverse(drawn.before) * stretch[:, None])[..., None] * inverse(drawn.after)[:, None], 2
    )
    rows, columns = _centered(x, drawn.shift)
    place = linear[:, :, 0, None, None] * rows[:, None, :, None]
    place += linear[:, :, 1, None, None] * columns[:, None, None, :]
    rows, columns = (
        _reflected(place[:, axis] + (n - 1) / 2, n).reshape(len(x), -1)
        for axis, n in enumerate(x.shape[1:3])
    )
    return _unless_neutral(x, drawn, _interpolated(x, rows, columns))


def ada_color(x: Images, drawn: AdaColor) -> Images:
    """The five in one affine map; all of them commute but for the brightness, which comes first."""
    gray = drawn.contrast * (1 - 2 * drawn.flip)
    chroma = drawn.contrast * drawn.saturation
    turned = chroma * jnp.sin(drawn.hue)
    y = _recolored(x, gray, chroma * jnp.cos(drawn.hue), turned, gray * drawn.brightness)
    return _unless_neutral(x, drawn, y)


def _centered(x: Images, shift: Vectors) -> tuple[Float[Array, "b h"], Float[Array, "b w"]]:
    """Rows and columns of the output as distances from the image's center, which ``shift`` has moved."""
    h, w = (jnp.arange(n, dtype=x.dtype)[None] - (n - 1) / 2 for n in x.shape[1:3])
    return h - shift[:, 0, None], w - shift[:, 1, None]


def _reflected(place: Array, n: int) -> Array:
    """The place in [0, n - 1] that a mirror at either end shows; the pixels at the ends are not doubled."""
    return jnp.maximum(n - 1 - jnp.abs(n - 1 - place % max(2 * (n - 1), 1)), 0)


def _hat(place: Float[Array, "*k"], n: int) -> Float[Array, "*k n"]:
    """Weights of linear interpolation between n pixels; one 1 for a whole place, and zeros outside."""
    pixels = jnp.arange(n, dtype=place.dtype).reshape((1,) * place.ndim + (n,))
    return jnp.maximum(1 - jnp.abs(place[..., None] - pixels), 0)


def _resampled(x: Images, rows: Float[Array, "b h"], columns: Float[Array, "b w"]) -> Images:
    """``y[i, j] = x[rows[i], columns[j]]``, linear between pixels. Exact at whole places: full precision asked for."""
    rows, columns = _hat(rows, x.shape[1]), _hat(columns, x.shape[2])
    return jnp.einsum("bpi,bqj,bijc->bpqc", rows, columns, x, precision=lax.Precision.HIGHEST)


def _interpolated(x: Images, rows: Float[Array, "b hw"], columns: Float[Array, "b hw"]) -> Images:
    """``y[k] = x[rows[k], columns[k]]`` for places within the image, bilinear.

    On CPU four pixels are looked up: h times less work than products with all rows' weights, and the scatter of the
    gradient has one order. Elsewhere it has not, so products it is.
    """
    return lax.platform_dependent(x, rows, columns, cpu=_looked_up, default=_contracted)


def _looked_up(x: Images, rows: Float[Array, "b hw"], columns: Float[Array, "b hw"]) -> Images:
    b, h, w, c = x.shape
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    pixels = x.reshape(b, h * w, c)

    def at(row, column):
        row, column = jnp.minimum(row, h - 1), jnp.minimum(column, w - 1)
        index = row.astype(jnp.int32) * w + column.astype(jnp.int32)
        return jnp.take_along_axis(pixels, index[..., None], axis=1, mode="clip")

    above = (1 - right) * at(top, left) + right * at(top, left + 1)
    below = (1 - right) * at(top + 1, left) + right * at(top + 1, left + 1)
    return ((1 - down) * above + down * below).reshape(x.shape)


def _contracted(x: Images, rows: Float[Array, "b hw"], columns: Float[Array, "b hw"]) -> Images:
    def one(arguments):
        x, rows, columns = arguments
        h, w, _ = x.shape
        lines = jnp.einsum("ki,ijc->kjc", _hat(rows, h), x, precision=lax.Precision.HIGHEST)
        return jnp.einsum(
            "kj,kjc->kc", _hat(columns, w), lines, precision=lax.Precision.HIGHEST
        ).reshape(x.shape)

    def few(*arguments):
        # h w w c numbers per example: of large images, few at a time.
        several = max(1, _NUMBERS // (x[0].size * x.shape[2]))
        if several >= len(arguments[0]):
            return jax.vmap(one)(arguments)
        return lax.map(jax.checkpoint(one), arguments, batch_size=several)

    return by_rows(few, x, rows, columns)


class Operation(NamedTuple):
    """``draw(key, p, x) -> record`` and ``transform(x, record) -> x``."""

    draw: Callable[..., Any]
    transform: Callable[..., Images]


OPERATIONS = {
    "color": Operation(draw_color, color),
    "translation": Operation(draw_translation, translation),
    "cutout": Operation(draw_cutout, cutout),
    "blit": Operation(draw_blit, blit),
    "geom": Operation(draw_geom, geom),
    "ada_color": Operation(draw_ada_color, ada_color),
}
"""Every operation by name."""

POLICIES = {
    "diffaugment": ("color", "translation", "cutout"),
    "bg": ("blit", "geom"),
    "bgc": ("blit", "geom", "ada_color"),
}
"""Names for several operations: that of Zhao et al. 2020, and two of Karras et al. 2020."""


def policy(text: str) -> Apply:
    """``apply(x, key, p) -> x`` of the operations and policies named in ``text``, separated by commas, in that order.

    ``x`` are floating-point images ``[b, h, w, c]``, half precision computed in single; ``p`` is a scalar, which may be
    traced. With p = 0 the result is x, bit for bit. What one operation draws does not depend on the others.

    Raises:
      ValueError: if a name is unknown, missing or given twice.
    """
    names: list[str] = []
    for name in text.split(","):
        if name not in OPERATIONS and name not in POLICIES:
            allowed = ", ".join([*OPERATIONS, *POLICIES])
            raise ValueError(
                f"{name!r} is not an augmentation; must be names, with commas, of {allowed}"
            )
        names.extend(POLICIES.get(name, (name,)))
    if twice := [name for name in OPERATIONS if names.count(name) > 1]:
        raise ValueError(f"{twice[0]!r} is given twice in {text!r}")

    def apply(x: Images, key: PRNG, p: Any) -> Images:
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        for name in names:
            operation = OPERATIONS[name]
            y = operation.transform(y, operation.draw(stream(key, name), p, y))
        return y.astype(x.dtype)

    return apply


class Planned(NamedTuple):
    """An augmentation as a text names it, before the length of the run is known.

    Attributes:
      apply: of ``policy``.
      p: ``p(steps)``, the probability in a run of so many steps.
      target: of an adaptive one, else None.
      paired: of ``Augment``.
    """

    apply: Apply
    p: Callable[[int], Any]
    target: float | None = None
    paired: bool = False

    def over(self, steps: int) -> Augment:
        """What a training step needs in a run of so many steps."""
        return Augment(self.apply, self.p(steps), self.target, paired=self.paired)


def parse(text: str) -> Planned | None:
    """Reads ``none`` or ``POLICY@P``, P being a probability, a schedule (``optim.parse``) or ``ada:TARGET``.

    Without P the probability is 1; the target is 0.6 where it is not given. ``,paired`` behind it: the fake beside each
    real has the same draw.

    Raises:
      ValueError: for anything else, saying what is allowed.
    """
    if text == "none":
        return None
    single = text.removesuffix(",paired")
    paired = single != text
    names, at, p = single.partition("@")
    kind, _, target = p.partition(":")
    if kind != "ada":
        return Planned(
            policy(names), optim.parse(p if at else "1", low=0.0, high=1.0), paired=paired
        )
    try:
        wanted = float(target or 0.6)
    except ValueError:
        wanted = math.nan
    if not -1 <= wanted <= 1:
        raise ValueError(f"{p!r}: the TARGET of ada:TARGET must be a number in [-1, 1]")
    return Planned(policy(names), lambda steps: 0.0, wanted, paired)
