"""Pairs of images made of one image: what a net that translates can be trained and judged on without a download.

A task makes of an image and its label an input and a target. Where the target is a function of the input, that is kept
as the exact answer: a map that was learned can be compared with it, pixel by pixel.

Everything here is a function of uint8 images ``[k, h, w, c]`` and int32 labels ``[k]``, on the host, without a state or
a random number, so that a pair is the same in every epoch, in every process and in every run.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bpgan import lookup
from bpgan.types import UserError

Bytes = np.ndarray
Map = Callable[[Bytes], Bytes]


class Task(NamedTuple):
    """What makes pairs of images.

    Attributes:
      pair: ``pair(x uint8 [k, h, w, c], y int32 [k]) -> (a, b)``, inputs and targets, uint8 ``[k, ...]``, which may
        differ in size and channels. Each depends on its own image only. Raises ValueError for images of a shape that
        it cannot take.
      answer: ``a -> b`` of inputs ``[k, ...]``, where the target is a function of the input; else None.
    """

    pair: Callable[[Bytes, np.ndarray], tuple[Bytes, Bytes]]
    answer: Map | None = None


class Recipe(NamedTuple):
    """A row of ``TASKS``.

    Attributes:
      make: ``make(argument) -> Task`` of what follows the colon, "" for nothing. Raises ValueError.
      argument: what may follow the name, in words, such as ``:K``.
      help: a line: the input -> the target.
    """

    make: Callable[[str], Task]
    argument: str
    help: str


def luma(x: Bytes) -> Bytes:
    """Gray ``[k, h, w, 1]`` of colors by ITU-R BT.601: ``.299 R + .587 G + .114 B``, rounded as Pillow does it."""
    if x.shape[-1] < 3:
        return x[..., :1]
    red, green, blue = (x[..., i : i + 1].astype(np.uint32) for i in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8)


def edges(x: Bytes, threshold: int = 0) -> Bytes:
    """The magnitude of Sobel's gradient of the gray image, light edges ``[k, h, w, 1]`` on black.

    ``min(255, round(sqrt(gx^2 + gy^2) / 4))``, so that a straight edge from black to white is 255. What lies beyond the
    border is as the border.

    Args:
      x: images.
      threshold: magnitudes from here on are 255, lower ones 0; 0: they stay as they are.
    """
    rows = np.pad(luma(x)[..., 0].astype(np.int16), ((0, 0), (1, 1), (1, 1)), "edge")
    smooth_h = rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]
    smooth_v = rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]
    gy = (smooth_h[:, 2:] - smooth_h[:, :-2]).astype(np.float32)
    gx = (smooth_v[:, :, 2:] - smooth_v[:, :, :-2]).astype(np.float32)
    # Sums of squares below 2^24 are exact, and no root but an exact one is so near to a half that float32 rounds it.
    strength = np.minimum(255, np.rint(np.sqrt(gx * gx + gy * gy) / 4)).astype(np.uint8)
    if threshold:
        strength = np.where(strength >= threshold, np.uint8(255), np.uint8(0))
    return strength[..., None]


def palette(y: np.ndarray) -> Bytes:
    """A color of each class ``[k, 3]``, bright and saturated; the same whatever the number of classes.

    The hues are ``y`` times the golden section of the circle, which are far apart for any number of classes.
    """
    hue = np.asarray(y, np.float64) * ((5**0.5 - 1) / 2) % 1.0
    shift = np.abs(
        (6 * hue[..., None] + np.array([0, 4, 2])) % 6 - 3
    )  # HSV of saturation 0.8 and value 1
    return np.rint(255 * (1 - 0.8 * (1 - np.clip(shift - 1, 0, 1)))).astype(np.uint8)


def painted(x: Bytes, y: np.ndarray) -> Bytes:
    """Gray images ``[k, h, w, 1]`` times the color of their classes: ``[k, h, w, 3]``."""
    product = x[..., :1] * palette(y)[:, None, None].astype(np.uint16) + np.uint16(128)
    return ((product + (product >> 8)) >> 8).astype(np.uint8)  # divided by 255 and rounded, exactly


def half(x: Bytes) -> Bytes:
    """The left half, and mid-gray (128) in the place of the right one. A column in the middle is kept."""
    width = x.shape[2]
    if width < 2:
        raise ValueError(f"images of {x.shape[1]}x{width} have no right half")
    kept = x.copy()
    kept[:, :, (width + 1) // 2 :] = 128
    return kept


def downscale(x: Bytes, by: int) -> Bytes:
    """The mean of each box of ``by`` x ``by`` pixels, rounded half up: ``[k, h/by, w/by, c]``."""
    h, w = x.shape[1:3]
    if h % by or w % by:
        raise ValueError(f"{by} does not divide the height and the width of images of {h}x{w}")
    columns = np.add.reduce([x[:, i::by] for i in range(by)], axis=0, dtype=np.uint32)
    boxes = np.add.reduce([columns[:, :, i::by] for i in range(by)], axis=0, dtype=np.uint32)
    return ((2 * boxes + by * by) // (2 * by * by)).astype(np.uint8)


def invert(x: Bytes) -> Bytes:
    """``255 - x``."""
    return 255 - x


def rotate(x: Bytes) -> Bytes:
    """By 90 degrees, counterclockwise."""
    if x.shape[1] != x.shape[2]:
        raise ValueError(f"images of {x.shape[1]}x{x.shape[2]} are not square")
    return np.rot90(x, axes=(1, 2)).copy()


def dilate(x: Bytes) -> Bytes:
    """The maximum of each pixel and its eight neighbors: light strokes become two pixels wider."""
    rows = x.copy()
    np.maximum(rows[:, 1:], x[:, :-1], out=rows[:, 1:])
    np.maximum(rows[:, :-1], x[:, 1:], out=rows[:, :-1])
    both = rows.copy()
    np.maximum(both[:, :, 1:], rows[:, :, :-1], out=both[:, :, 1:])
    np.maximum(both[:, :, :-1], rows[:, :, 1:], out=both[:, :, :-1])
    return both


def _from_image(make: Map, x: Bytes, y: np.ndarray) -> tuple[Bytes, Bytes]:
    return make(x), x


def _to_image(make: Map, x: Bytes, y: np.ndarray) -> tuple[Bytes, Bytes]:
    return x, make(x)


def _colors(x: Bytes, y: np.ndarray) -> tuple[Bytes, Bytes]:
    return (x, painted(x, y)) if x.shape[-1] < 3 else (luma(x), x)


def _number(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdecimal() and low <= int(text[:9]) <= high):
        raise ValueError(f"must have an integer in {low} to {high} after a colon")
    return int(text)


def _plain(task: Task, text: str) -> Task:
    """A task that takes no argument."""
    if text:
        raise ValueError(f"takes no argument after a colon, here {text!r}")
    return task


def _edges(text: str) -> Task:
    threshold = _number(text, 1, 255) if text else 0
    return Task(functools.partial(_from_image, functools.partial(edges, threshold=threshold)))


def _downscale(text: str) -> Task:
    by = _number(text, 2, 1024)
    return Task(functools.partial(_from_image, functools.partial(downscale, by=by)))


def _made_from(make: Map) -> Callable[[str], Task]:
    return functools.partial(_plain, Task(functools.partial(_from_image, make)))


def _known(make: Map) -> Callable[[str], Task]:
    return functools.partial(_plain, Task(functools.partial(_to_image, make), make))


TASKS: dict[str, Recipe] = {
    "edges": Recipe(_edges, "[:T]", "Sobel edges, as white lines from strength T on (1 to 255) -> image"),
    "gray": Recipe(
        functools.partial(_plain, Task(_colors)), "", "gray -> color; gray data are painted, a color for each class"
    ),
    "half": Recipe(_made_from(half), "", "the left half -> image"),
    "downscale": Recipe(_downscale, ":K", "means of K x K pixels -> image"),
    "invert": Recipe(_known(invert), "", "image -> its negative"),
    "rotate": Recipe(_known(rotate), "", "image -> turned by 90 degrees, counterclockwise; square images"),
    "dilate": Recipe(_known(dilate), "", "image -> light strokes two pixels wider (maximum of 3 x 3)"),
}  # fmt: skip
"""Tasks by name. An entry of one's own is a ``Recipe``; on a command line ``module:name`` is a ``Task``."""


class Named(NamedTuple):
    """A task, and what it is called.

    Attributes:
      text: as the user wrote it.
      task: what it names.
    """

    text: str
    task: Task

    def pair(self, x: Bytes, y: np.ndarray) -> tuple[Bytes, Bytes]:
        """``Task.pair``, checked.

        Raises:
          UserError: if the images have a shape that the task cannot take, or it fails or returns no pairs of images.
        """
        with lookup.mistakes(f"{self.text}: "):
            try:
                a, b = map(np.asarray, self.task.pair(x, y))
            except ValueError as error:
                given = {"argument": "task", "value": self.text, "beside": ["dataset"]}
                raise UserError(" ".join(str(error).split()), **given) from None
        for side in (a, b):
            if (
                side.dtype != np.uint8
                or side.ndim != 4
                or len(side) != len(x)
                or not min(side.shape[1:])
            ):
                reason = f"made {side.dtype}{list(side.shape)}, must be uint8 [{len(x)}, h, w, c]"
                raise UserError(reason, argument="task", value=self.text)
        return a, b


def forms() -> str:
    """All ways to name a task, each with what it does."""
    lines = [f"{name}{recipe.argument} ({recipe.help})" for name, recipe in TASKS.items()]
    return f"{', '.join(lines)} or module:name of your own"


def parse(text: str) -> Named:
    """Reads the name of a task: ``half``, ``downscale:4``, or ``module:name`` of the user's own code, a ``Task``.

    Raises:
      ValueError: if it is none, saying what is allowed.
    """
    word, _, argument = text.partition(":")
    if word in TASKS:
        return Named(text, TASKS[word].make(argument))
    found = lookup.find(TASKS, text, "a task")
    if not isinstance(found, Task):
        raise ValueError(f"is a {type(found).__name__}, must be a data.Task")
    return Named(text, found)


def named(task: str | Named) -> Named:
    """What ``parse`` makes of a text, or what it has made of one. Raises UserError."""
    try:
        return parse(task) if isinstance(task, str) else task
    except ValueError as error:
        raise UserError(str(error), argument="task", value=task) from None


def parse_or_none(text: str) -> Named | None:
    """As ``parse``; None of an empty text."""
    return parse(text) if text else None
