"""Pictures of problems on a line and in the plane: images float32 ``[1, 240, 240, 3]`` in [-1, 1].

They are drawn on the device, by functions that can be compiled, so that they are samples like others.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpgan.runtime.records import Frame

SIDE = 240
"""Pixels."""
TRAIL = 512
"""The points that ``path`` shows."""
WHITE, RED, BLUE, BLACK, GREEN = np.array(
    [[1.0, 1, 1], [0.9, 0.55, 0.5], [0.55, 0.65, 0.95], [-0.7, -0.7, -0.7], [-0.8, 0.2, -0.7]],
    np.float32,
)
OPINION = {"D_says_real": RED, "D_says_generated": BLUE}
"""For ``framed``: what ``shaded`` means."""


class Box(NamedTuple):
    """What a picture shows: where its axes begin and end. The second coordinate goes upwards."""

    x: tuple[float, float]
    y: tuple[float, float]


def square(reach: float) -> Box:
    """Around 0."""
    return Box((-reach, reach), (-reach, reach))


def shaded(share: jax.Array) -> jax.Array:
    """``[h, w]`` in [0, 1] as colors: blue where D says fake, white between, red where it says real."""
    t = 2 * share[..., None] - 1
    red, blue, white = (c.reshape(1, 1, 3) for c in (RED, BLUE, WHITE))
    return white + jnp.abs(t) * (jnp.where(t > 0, red, blue) - white)


def dots(
    canvas: jax.Array, points: jax.Array, box: Box, color: np.ndarray, size: int = 2
) -> jax.Array:
    """Points ``[n, 2]`` as small squares; those outside the box are not drawn."""
    n = canvas.shape[0]
    low, high = (jnp.asarray(ends, points.dtype).reshape(1, 2) for ends in zip(*box, strict=True))
    place = jnp.round((points - low) / (high - low) * (n - 1)).astype(jnp.int32)
    for i in range(size):
        for j in range(size):
            row, column = n - 1 - place[:, 1] + i, place[:, 0] + j
            row = jnp.where(row < 0, n, row)  # out of the picture, and not counted from its end
            column = jnp.where(column < 0, n, column)
            canvas = canvas.at[row, column].set(color, mode="drop")
    return canvas


def plane(reach: float, n: int = SIDE) -> jax.Array:
    """Coordinates ``[n * n, 2]`` of the pixels of a square, row by row from the top."""
    ticks = jnp.linspace(-reach, reach, n)
    y, x = jnp.meshgrid(ticks[::-1], ticks, indexing="ij")
    return jnp.stack([x.ravel(), y.ravel()], 1)


def centered(logits: jax.Array) -> jax.Array:
    """D's share of "real", its logits centered, for losses of differences leave their mean open, and over their spread:

    the colors of a D that is nearly flat are as strong as any; not those of one that is flat to rounding.
    """
    spread = jnp.maximum(jnp.std(logits), 1e-6 * jnp.max(jnp.abs(logits)))
    return jax.nn.sigmoid(4 * _share(logits - jnp.median(logits), spread))


def _share(part: jax.Array, whole: jax.Array) -> jax.Array:
    """``part / whole``; all of what is 0 has no share of it."""
    return part / jnp.where(whole > 0, whole, 1)


def scatter(real: jax.Array, fake: jax.Array, logits: Callable, reach: float) -> jax.Array:
    """Real (black) and generated (green) points ``[n, 2]`` over D's logits."""
    box = square(reach)
    canvas = shaded(centered(logits(plane(reach))).reshape(SIDE, SIDE))
    return dots(dots(canvas, real, box, BLACK), fake, box, GREEN)[None]


def histograms(
    real: jax.Array, fake: jax.Array, logits: Callable, ends: tuple[float, float], top: float
) -> jax.Array:
    """Densities up to ``top`` of real (black outline) and generated (green) numbers over D's logits."""
    low, high = ends
    x = jnp.linspace(low, high, SIDE)
    share = centered(logits(x.reshape(-1, 1))).reshape(1, SIDE)
    canvas = jnp.broadcast_to(shaded(share), (SIDE, SIDE, 3))
    height = jnp.arange(SIDE, 0, -1).reshape(-1, 1) / SIDE

    def density(values: jax.Array) -> jax.Array:
        edges = jnp.linspace(low, high, SIDE // 4 + 1)
        counts = jnp.histogram(values.ravel(), edges)[0] / values.size / (edges[1] - edges[0])
        return jnp.repeat(counts, 4).reshape(1, -1) / top

    canvas = jnp.where((height < density(fake))[..., None], GREEN.reshape(1, 1, 3), canvas)
    outline = jnp.abs(height - density(real)) < 1.5 / SIDE
    return jnp.where(outline[..., None], BLACK.reshape(1, 1, 3), canvas)[None]


def maps(
    z: jax.Array, known: jax.Array, found: jax.Array, box: Box, share: jax.Array | None = None
) -> jax.Array:
    """The map that G has found (green) over the known one (black), all numbers ``[n]``; z to the right.

    ``share [240]`` is how real D thinks each height is, from above.
    """
    opinion = jnp.full(SIDE, 0.5) if share is None else share
    canvas = shaded(jnp.broadcast_to(opinion[:, None], (SIDE, SIDE)))
    canvas = dots(canvas, jnp.stack([z, known], 1), box, BLACK, size=3)
    return dots(canvas, jnp.stack([z, found], 1), box, GREEN)[None]


def path(points: jax.Array, count: jax.Array, field: Callable, reach: float) -> jax.Array:
    """The last points ``[512, 2]`` of a game in the plane, the newest large, over the speed of the game.

    Args:
      points: the newest last.
      count: how many steps were made; the points before the first are not drawn.
      field: from a point ``[2]`` to its speed ``[2]``.
      reach: of the square.
    """
    box = square(reach)
    speed = jax.vmap(field)(plane(reach))
    fast = jnp.sqrt(jnp.sum(jnp.square(speed), 1)).reshape(SIDE, SIDE)
    canvas = shaded(0.5 - 0.5 * _share(fast, jnp.max(fast)))
    starts = plane(reach, 15)
    flow = jax.vmap(field)(starts)
    length = jnp.linalg.norm(flow, axis=1, keepdims=True)
    ahead = _share(flow, length) * reach * 0.009
    # Arrows: a shaft and two barbs, which end at the head.
    for turned, count_of in ((0.0, 10), (0.6, 5), (-0.6, 5)):
        cos, sin = math.cos(turned), math.sin(turned)
        behind = ahead @ jnp.array([[cos, sin], [-sin, cos]], ahead.dtype)
        for t in range(count_of):
            canvas = dots(canvas, starts - t * behind, box, 0.4 * BLACK, size=1)
    # Points that are not there yet lie out of the picture.
    seen = jnp.arange(TRAIL).reshape(-1, 1) >= TRAIL - jnp.minimum(count + 1, TRAIL)
    canvas = dots(canvas, jnp.where(seen, points, 10 * reach), box, GREEN)
    return dots(canvas, points[-1:], box, BLACK, size=6)[None]


def framed(x: tuple[str, float, float], y: tuple[str, float, float], **colors: Any) -> Frame:
    """Axes, and the meaning of colors by what they show."""
    legend = [(_hex(color), name.replace("_", " ")) for name, color in colors.items()]
    return Frame(x=x, y=y, legend=legend)


def _hex(color: np.ndarray) -> str:
    return "#" + "".join(f"{round(127.5 * (float(c) + 1)):02x}" for c in color)
