"""Pictures that a run leaves: grids of samples, as PNG files."""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bpgan.files import replaced
from bpgan.types import UserError

if TYPE_CHECKING:
    from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
"""With which a PNG begins."""


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as uint8: ``round(127.5 (x + 1))``, clipped, NaN black; uint8 is returned as it is."""
    if images.dtype == np.uint8:
        return images
    x = np.nan_to_num(np.asarray(images, np.float64), nan=-1, posinf=1, neginf=-1)
    return np.rint(127.5 * (np.clip(x, -1, 1) + 1)).astype(np.uint8)


def image_grid(images: np.ndarray, *, columns: int = 10, gap: int = 2) -> np.ndarray:
    """Images ``[n, h, w, c]`` side by side, row by row, as uint8 ``[H, W, c]``.

    Args:
      images: uint8, or floats in [-1, 1].
      columns: images per row, or all if there are fewer; the last row is filled up with black.
      gap: black pixels between images.
    """
    n, h, w, c = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    grid = np.zeros((rows * (h + gap) - gap, columns * (w + gap) - gap, c), np.uint8)
    for i, image in enumerate(to_bytes(images)):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        grid[top : top + h, left : left + w] = image
    return grid


def picture(
    images: np.ndarray, *, columns: int = 10, scale: int = 0, names: Sequence[str] = ()
) -> "Image.Image":
    """Images side by side as one picture of Pillow: a notebook shows it, and ``.save("grid.png")`` writes it.

    Args:
      images: ``[n, h, w, c]`` or ``[n, h, w]``, with 1, 3 or 4 channels; uint8, or floats in [-1, 1].
      columns: images per row, or all if there are fewer.
      scale: pixels of the picture for each pixel; 0: as many as make small images about 64 pixels wide.
      names: of the columns, to stand below them.

    Raises:
      UserError: if these are no images.
    """
    from PIL import Image

    x = to_bytes(np.asarray(images))
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[-1] not in (1, 3, 4) or not x.size:
        reason = (
            f"are {list(np.shape(images))}, must be [n, h, w] or [n, h, w, c] of 1, 3 or 4 channels"
        )
        raise UserError(reason, argument="images")
    for argument, value, low in (("columns", columns, 1), ("scale", scale, 0)):
        if value < low:
            raise UserError(f"must be at least {low}", argument=argument, value=value)
    scale = scale or max(1, round(64 / x.shape[2]))
    x = x.repeat(scale, axis=1).repeat(scale, axis=2)
    grid = image_grid(x, columns=columns)
    grid = caption(grid, names[:columns], width=x.shape[2]) if len(names) else grid
    return Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8 ``[h, w, 1|3|4]`` as PNG; a reader never sees half a file. Makes the folder if need be."""
    from PIL import Image

    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as temporary:
        plane = image[..., 0] if image.shape[-1] == 1 else image
        Image.fromarray(plane).save(temporary, format="png")


def caption(grid: np.ndarray, names: Sequence[str], *, width: int, gap: int = 2) -> np.ndarray:
    """A grid with a line of names under it, one in the middle of each column; what is too long for it is cut.

    Args:
      grid: uint8 ``[H, W, c]`` of columns.
      names: of the columns, the first ones.
      width: of a column, in pixels.
      gap: between columns.
    """
    from PIL import Image, ImageDraw, ImageFont

    size = max(10, min(width // 4, 24))
    font = ImageFont.load_default(size)
    strip = Image.new("L", (grid.shape[1], size + 6), 255)
    draw = ImageDraw.Draw(strip)
    for column, name in enumerate(names):
        while len(name) > 1 and draw.textlength(name, font=font) > width:
            name = name[:-2] + "\u2026" if len(name) > 2 else name[:1]
        draw.text((column * (width + gap) + width / 2, 2), name, 0, font=font, anchor="ma")
    plane = np.asarray(strip)[..., None]
    color = np.repeat(plane, min(grid.shape[-1], 3), axis=-1)
    if grid.shape[-1] == 4:
        color = np.concatenate([color, np.full_like(plane, 255)], axis=-1)
    return np.concatenate([grid, color])


def save_gif(path: str | os.PathLike, frames: Sequence[np.ndarray], *, rate: int) -> None:
    """Writes uint8 frames ``[h, w, 1|3|4]`` of one size as an endless GIF of ``rate`` frames a second."""
    from PIL import Image

    planes = [frame[..., 0] if frame.shape[-1] == 1 else frame for frame in frames]
    first, *others = [Image.fromarray(plane) for plane in planes]
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The format counts in hundredths of a second.
    times = [10 * round(100 / rate)] * len(frames)
    with replaced(path) as temporary:
        options = {"save_all": True, "append_images": others, "duration": times, "loop": 0}
        first.save(temporary, format="gif", **options)


def save_picture(stem: pathlib.Path, picture: np.ndarray | str) -> None:
    """Writes a picture beside ``stem``: uint8 ``[h, w, c]`` as PNG, the text of an SVG file as it is."""
    if isinstance(picture, str):
        stem.parent.mkdir(parents=True, exist_ok=True)
        with replaced(stem.with_suffix(".svg")) as temporary:
            temporary.write_text(picture, encoding="utf-8")
    else:
        save_png(stem.with_suffix(".png"), picture)


def grids(workdir: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    """The sample grids of a run, the newest last: step and file."""
    found = [
        (re.fullmatch(r"step_(\d+)\.png", p.name), p) for p in workdir.glob("samples/step_*.png")
    ]
    return sorted((int(match[1]), path) for match, path in found if match)
