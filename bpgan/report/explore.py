"""The page to explore a run: sliders over directions, what D looks at, neighbors and inversions, in one file.

A function of what ``experiments.interpret`` found. Everything that a slider shows was drawn ahead and is in the page as
sheets of small images, so that it needs no server and opens from a disk.
"""

import base64
import html
import io
import json
import math
import os
import pathlib
import string
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from bpgan.files import replaced
from bpgan.report import plot
from bpgan.report.tables import Table

LIMIT = 12_000_000
"""Bytes of a page. If it would be larger, the images behind its sliders are made smaller."""

SHEET_PIXELS = 4_000_000
"""Of one PNG file, which a phone can decode."""


class Bases(NamedTuple):
    """The samples that the sliders start from: one for each seed and label, seeds in the outer loop.

    Attributes:
      seeds: of their latents.
      labels: names of classes; ``[""]`` of a run without labels.
    """

    seeds: Sequence[int]
    labels: Sequence[str]


class Walk(NamedTuple):
    """Samples along the directions of one method, singly and in pairs.

    Attributes:
      method: such as ``SeFa``; ``space``: of what, such as ``z`` or ``w``.
      names: of the k directions, such as ``1`` or ``1 (31 % of the variance)``; brackets stand at sliders only.
      steps: how far, in standard deviations of the latents, in ascending order; 0 is among them.
      strips: ``[bases, k, steps, h, w, c]``.
      scores: D's logits of these; None without a D.
      pairs: of directions that have a grid, such as ``(0, 1)``.
      pair_steps: as ``steps``, fewer.
      grids: ``[pairs, bases, pair_steps, pair_steps, h, w, c]``: the first direction of a pair goes down the grid, the
        second one across.
      grid_scores: D's logits of these, or None.
      says: a sentence on what these directions are.
    """

    method: str
    space: str
    names: Sequence[str]
    steps: Sequence[float]
    strips: UInt8[np.ndarray, "b k s h w c"]
    scores: Float[np.ndarray, "b k s"] | None = None
    pairs: Sequence[tuple[int, int]] = ()
    pair_steps: Sequence[float] = ()
    grids: UInt8[np.ndarray, "p b t t h w c"] | None = None
    grid_scores: Float[np.ndarray, "p b t t"] | None = None
    says: str = ""


class Strip(NamedTuple):
    """Samples of every base at the values of one number, such as truncation: ``tiles[bases, values, h, w, c]``."""

    name: str
    values: Sequence[float]
    tiles: UInt8[np.ndarray, "b v h w c"]
    scores: Float[np.ndarray, "b v"] | None = None


class Attributed(NamedTuple):
    """What D, or a classifier, looks at.

    Attributes:
      images: ``[n, h, w, c]``; ``captions``: of each, such as ``real, 7``; ``scores``: what is explained, ``[n]``.
      methods: such as ``integrated gradients``.
      maps: ``[methods, n, h, w]``, signed: what raises the score is positive. The page scales each map by itself.
      residuals: ``[methods, n]``: how much of the score's difference to the baseline is not accounted for, as a share
        of it.
      of: what is explained, such as ``D`` or ``a classifier: 7``.
    """

    images: UInt8[np.ndarray, "n h w c"]
    captions: Sequence[str]
    scores: Float[np.ndarray, " n"]
    methods: Sequence[str]
    maps: Float[np.ndarray, "m n h w"]
    residuals: Float[np.ndarray, "m n"]
    of: str = "D"


class Neighbors(NamedTuple):
    """Samples ``[n, h, w, c]``, the training images nearest to each ``[n, k, h, w, c]``, the distances ``[n, k]``.

    ``space`` says of what the distances are, such as ``pixels``.
    """

    samples: UInt8[np.ndarray, "n h w c"]
    nearest: UInt8[np.ndarray, "n k h w c"]
    distances: Float[np.ndarray, "n k"]
    space: str


class Paths(NamedTuple):
    """Interpolations: ``tiles[m, frames, h, w, c]``, each with its name."""

    names: Sequence[str]
    tiles: UInt8[np.ndarray, "m f h w c"]


class Inverted(NamedTuple):
    """Images and what the inversion found for them, with the mean squared error of each over the variance of pixels.

    ``captions`` say what an image is, such as ``held out, 7`` or ``sample, 3`` (the control).
    """

    targets: UInt8[np.ndarray, "n h w c"]
    found: UInt8[np.ndarray, "n h w c"]
    captions: Sequence[str]
    errors: Float[np.ndarray, " n"]


class Picture(NamedTuple):
    """Another figure: a title, an SVG or a row of images ``[n, h, w, c]`` with captions, and a sentence on it."""

    title: str
    images: UInt8[np.ndarray, "n h w c"] | None = None
    captions: Sequence[str] = ()
    svg: str = ""
    says: str = ""


class Explored(NamedTuple):
    """All that the page shows; what is None or empty was not asked for or could not be had.

    Attributes:
      where: the run directory; ``about``: lines on run, checkpoint, dataset, seed.
      notes: warnings, such as of a private run.
      neighbors: one record for each space in which the nearest were found.
      tables: numbers, each with its title and notes.
      left_out: sentences on what is missing and why.
    """

    where: str
    about: Sequence[str]
    bases: Bases | None = None
    walks: Sequence[Walk] = ()
    strips: Sequence[Strip] = ()
    attributed: Sequence[Attributed] = ()
    neighbors: Sequence[Neighbors] = ()
    paths: Paths | None = None
    inverted: Inverted | None = None
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    left_out: Sequence[str] = ()


def write_page(path: str | os.PathLike, explored: Explored) -> pathlib.Path:
    """Writes the page; one file that loads nothing.

    Raises:
      ValueError: if the shapes of the records do not agree.
      OSError: if the file cannot be written.
    """
    content = page(explored)
    with replaced(path) as temporary:
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")
    return pathlib.Path(path)


def page(explored: Explored, *, limit: int = LIMIT) -> str:
    """The text of the page.

    Args:
      explored: what it shows. A section without data is absent.
      limit: bytes that the page should not exceed. The images behind sliders are averaged to a smaller size until it
        does not, or until they are 16 pixels on their longer side, and the page says so.

    Raises:
      ValueError: if the shapes of the records do not agree.
    """
    _check(explored)
    text, (height, width) = _page(explored), _size(explored)
    share, least = 1.0, _LEAST / max(height, width, _LEAST)
    while len(text) > limit and share > least:
        share = max(share * min(0.97 * math.sqrt(limit / len(text)), 0.97), least)
        size = max(round(share * height), 1), max(round(share * width), 1)
        said = _MADE_SMALLER.format(*size, height, width, limit / 1e6)
        text = _page(_shrunk(explored, size), said)
    return text


_LEAST = 16
_MADE_SMALLER = (
    "The images behind the sliders are averaged from {2} × {3} to {0} × {1} pixels, so that the page stays below"
    " {4:.3g} MB."
)


# Sheets -------------------------------------------------------------------------------------------------------------


class Sheets(NamedTuple):
    """Images of one size, side by side in PNG files, row by row.

    Attributes:
      urls: of the files, as data.
      columns, rows: of images in a file; the last file may have fewer rows.
      height, width: of an image.
    """

    urls: Sequence[str]
    columns: int
    rows: int
    height: int
    width: int


def encode(tiles: UInt8[np.ndarray, "*n h w c"], *, pixels: int = SHEET_PIXELS) -> Sheets:
    """Images, in C order over their leading axes, as sheets.

    Args:
      tiles: with 1, 3 or 4 channels.
      pixels: at most of one file, unless one image has more.
    """
    height, width, channels = tiles.shape[-3:]
    flat = tiles.reshape(-1, height, width, channels)
    columns = max(1, min(len(flat), 1024 // width, pixels // (height * width)))
    rows = max(1, min(math.ceil(len(flat) / columns), pixels // (columns * height * width)))
    urls = []
    for start in range(0, len(flat), columns * rows):
        part = flat[start : start + columns * rows]
        filled = np.zeros(
            (math.ceil(len(part) / columns) * columns, height, width, channels), np.uint8
        )
        filled[: len(part)] = part
        grid = filled.reshape(-1, columns, height, width, channels).swapaxes(1, 2)
        urls.append(png_url(grid.reshape(-1, columns * width, channels)))
    return Sheets(urls, columns, rows, height, width)


def place(sheets: Sheets, index: int) -> tuple[int, int, int]:
    """Where the image of an index is: the number of its file, and its left and top pixel in it."""
    file, inside = divmod(index, sheets.columns * sheets.rows)
    row, column = divmod(inside, sheets.columns)
    return file, column * sheets.width, row * sheets.height


def png_url(image: UInt8[np.ndarray, "h w c"]) -> str:
    """An image of 1, 3 or 4 channels as a PNG in a data URL, with the same pixels."""
    from PIL import Image

    return _url(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image))


def map_url(signed: Float[np.ndarray, "h w"]) -> str:
    """An attribution as an overlay, scaled by its largest value: orange raises, blue lowers, 0 is transparent.

    The two colors differ in hue for every kind of color blindness, and are readable on black, white and both pages.
    """
    from PIL import Image

    finite = np.where(np.isfinite(signed), signed, 0.0)
    scale = float(np.abs(finite).max(initial=0.0)) or 1.0
    image = Image.fromarray((np.rint(127 * (finite / scale)) + 128).astype(np.uint8))
    image.putpalette([channel for i in range(256) for channel in (_UP if i >= 128 else _DOWN)])
    # The root lets small values be seen.
    opacity = bytes(round(255 * math.sqrt(min(abs(i - 128), 127) / 127)) for i in range(256))
    return _url(image, transparency=opacity)


_UP, _DOWN = (240, 96, 32), (40, 116, 250)


def _url(image: Any, **options: Any) -> str:
    content = io.BytesIO()
    # Of sheets of digits, `optimize` would make files 3 % smaller in eight times the time.
    image.save(content, "png", **options)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _size(explored: Explored) -> tuple[int, int]:
    """Height and width of the largest images behind sliders."""
    sizes = [tiles.shape[-3:-1] for tiles in _behind_sliders(explored)]
    return max(sizes, default=(0, 0))


def _behind_sliders(explored: Explored) -> list[np.ndarray]:
    found = [tiles for walk in explored.walks for tiles in (walk.strips, walk.grids)]
    found += [strip.tiles for strip in explored.strips]
    found += [explored.paths.tiles] if explored.paths else []
    return [tiles for tiles in found if tiles is not None]


def _shrunk(explored: Explored, size: tuple[int, int]) -> Explored:
    """With the images behind sliders averaged to a size."""

    def small(tiles: np.ndarray) -> np.ndarray:
        return resize(tiles, size) if min(size) < min(tiles.shape[-3:-1]) else tiles

    walks = [
        walk._replace(
            strips=small(walk.strips), grids=None if walk.grids is None else small(walk.grids)
        )
        for walk in explored.walks
    ]
    strips = [strip._replace(tiles=small(strip.tiles)) for strip in explored.strips]
    paths = explored.paths and explored.paths._replace(tiles=small(explored.paths.tiles))
    return explored._replace(walks=walks, strips=strips, paths=paths)


def resize(
    tiles: UInt8[np.ndarray, "*n h w c"], size: tuple[int, int]
) -> UInt8[np.ndarray, "*n H W c"]:
    """Images averaged to a height and width that are no larger."""
    from PIL import Image

    *before, _, _, channels = tiles.shape
    height, width = size
    resized = np.empty((math.prod(before), height, width, channels), np.uint8)
    for image, to in zip(tiles.reshape(-1, *tiles.shape[-3:]), resized, strict=True):
        for channel in range(channels):
            small = Image.fromarray(image[..., channel]).resize(
                (width, height), Image.Resampling.BOX
            )
            to[..., channel] = np.asarray(small)
    return resized.reshape(*before, height, width, channels)


# Checks -------------------------------------------------------------------------------------------------------------


def _check(explored: Explored) -> None:
    """Raises a ValueError for records whose shapes do not agree: the page would show one image for another."""
    if (explored.walks or explored.strips) and explored.bases is None:
        raise ValueError("walks and strips need `bases`")
    bases = explored.bases
    count = len(bases.seeds) * len(bases.labels) if bases else 0
    for walk in explored.walks:
        single, pair = (count, len(walk.names), len(walk.steps)), (len(walk.pair_steps),) * 2
        _has(f"{walk.method}: strips", walk.strips, (*single, None, None, None))
        _has(f"{walk.method}: scores", walk.scores, single)
        grids = (len(walk.pairs), count, *pair)
        _has(f"{walk.method}: grids", walk.grids, (*grids, None, None, None))
        _has(f"{walk.method}: grid_scores", walk.grid_scores, grids)
        if walk.pairs and walk.grids is None:
            raise ValueError(f"{walk.method}: pairs need `grids`")
    for strip in explored.strips:
        _has(f"{strip.name}: tiles", strip.tiles, (count, len(strip.values), None, None, None))
        _has(f"{strip.name}: scores", strip.scores, (count, len(strip.values)))
    for one in explored.attributed:
        n, m = len(one.captions), len(one.methods)
        _has("attributed: images", one.images, (n, None, None, None))
        _has("attributed: scores", one.scores, (n,))
        _has("attributed: maps", one.maps, (m, n, *one.images.shape[1:3]))
        _has("attributed: residuals", one.residuals, (m, n))
    for near in explored.neighbors:
        n, k = np.shape(near.distances)
        _has("neighbors: samples", near.samples, (n, None, None, None))
        _has("neighbors: nearest", near.nearest, (n, k, None, None, None))
    if found := explored.inverted:
        n = len(found.captions)
        for name, array in (("targets", found.targets), ("found", found.found)):
            _has(f"inverted: {name}", array, (n, None, None, None))
        _has("inverted: errors", found.errors, (n,))
    if explored.paths:
        _has("paths: tiles", explored.paths.tiles, (len(explored.paths.names), *[None] * 4))


def _has(name: str, array: np.ndarray | None, shape: Sequence[int | None]) -> None:
    """Checks the shape of an array; None stands for any length, but not 0."""
    if array is None:
        return
    there = np.shape(array)
    if len(there) != len(shape) or any(
        size != wanted if wanted is not None else not size
        for size, wanted in zip(there, shape, strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: is {list(there)}, must be [{wanted}]")


# The page -----------------------------------------------------------------------------------------------------------


def _page(explored: Explored, said: str = "") -> str:
    sections = [
        (name, title, content)
        for name, title, content in (
            ("directions", "Directions", _directions(explored)),
            ("paths", "Interpolations", _PATHS * bool(explored.paths)),
            *(
                (f"attribution{i}", f"What {each.of} looks at", _attribution(each, i))
                for i, each in enumerate(explored.attributed)
            ),
            ("neighbors", "Nearest training images", "".join(map(_neighbors, explored.neighbors))),
            ("inversion", "Inversion", _inversion(explored.inverted)),
            ("pictures", "Pictures", "".join(map(_picture, explored.pictures))),
            ("tables", "Numbers", "".join(table.html() for table in explored.tables)),
            ("left-out", "Not on this page", _list(explored.left_out)),
        )
        if content
    ]
    template = pathlib.Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    about = [*explored.about, *[said] * bool(said)]
    return string.Template(template).substitute(
        style=plot.PAGE_STYLE + plot.STYLE,
        where=_text(explored.where),
        contents="".join(f'<a href="#{name}">{_text(title)}</a>' for name, title, _ in sections),
        about="".join(f'<p class="about">{_text(line)}</p>' for line in about),
        note="".join(f'<p class="note">{_text(note)}</p>' for note in explored.notes),
        body="".join(
            f'<section id="{name}" tabindex="-1"><h2>{_text(title)}</h2>{content}</section>'
            for name, title, content in sections
        ),
        data=_data(explored),
    )


def _data(explored: Explored) -> str:
    """What the script reads, without a letter that could end the element that holds it."""
    data: dict[str, Any] = {"walks": [], "strips": [], "paths": None}
    if explored.bases:
        data["bases"] = {name: list(map(str, of)) for name, of in explored.bases._asdict().items()}
    for walk in explored.walks:
        data["walks"].append(
            {
                "method": walk.method,
                "space": walk.space,
                "says": walk.says,
                "names": list(walk.names),
                "steps": _numbers(walk.steps),
                "strips": encode(walk.strips)._asdict(),
                "scores": _numbers(walk.scores),
                "pairs": [[int(i) for i in pair] for pair in walk.pairs],
                "pairSteps": _numbers(walk.pair_steps),
                "grids": encode(walk.grids)._asdict()
                if walk.pairs and walk.grids is not None
                else None,
                "gridScores": _numbers(walk.grid_scores),
            }
        )
    for strip in explored.strips:
        data["strips"].append(
            {
                "name": strip.name,
                "values": _numbers(strip.values),
                "tiles": encode(strip.tiles)._asdict(),
                "scores": _numbers(strip.scores),
            }
        )
    if explored.paths:
        names, tiles = explored.paths
        data["paths"] = {
            "names": list(names),
            "frames": tiles.shape[1],
            "tiles": encode(tiles)._asdict(),
        }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _numbers(values: Any) -> list[float | None] | None:
    """Flat, in C order, with five digits; what is not finite is None."""
    if values is None:
        return None
    flat = np.asarray(values, np.float64).reshape(-1).tolist()
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in flat]


def _text(value: Any) -> str:
    return html.escape(str(value))


def _list(items: Iterable[str]) -> str:
    listed = "".join(f"<li>{_text(item)}</li>" for item in items)
    return f"<ul>{listed}</ul>" * bool(listed)


def _img(image: np.ndarray, alt: str) -> str:
    height, width = image.shape[:2]
    return f'<img class="pixels" width="{width}" height="{height}" alt="{_text(alt)}" src="{png_url(image)}">'


def _directions(explored: Explored) -> str:
    return _EXPLORER if explored.walks or explored.strips else ""


_NO_SCRIPT = "<noscript><p>The sliders need JavaScript.</p></noscript>"
_EXPLORER = f'<div id="explorer"></div>{_NO_SCRIPT}'
_PATHS = f'<div id="films"></div>{_NO_SCRIPT}'


def _attribution(each: Attributed, number: int) -> str:
    """Images with the maps of all methods over them, of which one is shown, and switches."""
    cards = ""
    for i, (image, caption, score) in enumerate(
        zip(each.images, each.captions, each.scores, strict=True)
    ):
        maps = residuals = ""
        for m, method in enumerate(each.methods):
            hidden = f' data-method="{m}"{" hidden" * (m > 0)}'
            maps += f'<img class="pixels map" alt="{_text(method)}"{hidden} src="{map_url(each.maps[m, i])}">'
            residuals += f"<span{hidden}>residual {_percent(each.residuals[m, i])}</span>"
        cards += (
            f'<figure><div class="stack">{_img(image, caption)}{maps}</div>'
            f"<figcaption><b>{_text(caption)}</b><span>score {_number(score)}</span>{residuals}"
            "</figcaption></figure>"
        )
    name = f"method{number}"
    radios = "".join(
        f'<label><input type="radio" name="{name}"{" checked" * (m == 0)}><span>{_text(method)}</span></label>'
        for m, method in enumerate(each.methods)
    )
    return f"""<p class="about">{_ATTRIBUTION.format(of=_text(each.of))}</p>
<div class="attribution" data-number="{number}"><div class="controls">
<fieldset class="chips"><legend>Method</legend><div>{radios}</div></fieldset>
<label class="blend">Image
<input type="range" max="100" step="5" value="60" aria-label="From image to attribution"> Attribution</label>
<p class="key"><i class="down"></i> lowers the score <i class="up"></i> raises it</p>
</div><div class="cards">{cards}</div></div>"""


_ATTRIBUTION = (
    "Each map says which pixels the score of {of} is attributed to, scaled by its own largest value. The residual is"
    " the part of the difference between the score and that of the baseline for which the sum of the map does not"
    " account: near 0 % the map is complete; near 100 % or above it does not say how much a pixel counts."
)


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return "not finite"
    return f"{_number(100 * share, 2)} %" if share >= 1e-5 else "< 0.001 %"


def _number(value: float, digits: int = 3) -> str:
    """To be read under a picture."""
    text = plot.number(float(f"{value:.{digits}g}")) if math.isfinite(value) else "not finite"
    return text.replace("-", "\N{MINUS SIGN}")


def _neighbors(near: Neighbors) -> str:
    """A row for each sample: itself, and the nearest, each above its distance."""
    rows = ""
    for i, (sample, nearest, distances) in enumerate(
        zip(near.samples, near.nearest, near.distances, strict=True), 1
    ):
        found = "".join(
            f"<figure>{_img(image, f'Training image near sample {i}')}"
            f"<figcaption>{_number(distance)}</figcaption></figure>"
            for image, distance in zip(nearest, distances, strict=True)
        )
        own = f'<figure class="own">{_img(sample, f"Sample {i}")}<figcaption>sample</figcaption></figure>'
        rows += f'<div class="row" style="--n:{len(nearest) + 1}">{own}{found}</div>'
    return f'<h3>By distance in {_text(near.space)}</h3><div class="rows">{rows}</div>'


def _inversion(found: Inverted | None) -> str:
    """Pairs of an image and what the generator makes of the latent that was found for it."""
    if not found:
        return ""
    cards = "".join(
        f'<figure><div class="pair">{_img(target, caption)}{_img(made, f"Inversion of {caption}")}</div>'
        f"<figcaption><b>{_text(caption)}</b><span>error {_number(error)}</span></figcaption></figure>"
        for target, made, caption, error in zip(*found, strict=True)
    )
    return f'<p class="about">{_INVERSION}</p><div class="cards pairs">{cards}</div>'


_INVERSION = (
    "Left an image, right the sample of the latent that was found for it. The error is the mean squared difference of"
    " their pixels, divided by the variance of the pixels."
)


def _picture(picture: Picture) -> str:
    """A figure: an SVG as an image, in which no script runs, or a row of images."""
    content = ""
    if picture.svg:
        code = base64.b64encode(picture.svg.encode()).decode()
        content = f'<img class="drawing" alt="{_text(picture.title)}" src="data:image/svg+xml;base64,{code}">'
    if picture.images is not None:
        captions = [*picture.captions, *[""] * (len(picture.images) - len(picture.captions))]
        content += (
            '<div class="cards">'
            + "".join(
                f"<figure>{_img(image, caption or picture.title)}<figcaption>{_text(caption)}</figcaption></figure>"
                for image, caption in zip(picture.images, captions, strict=True)
            )
            + "</div>"
        )
    says = f'<p class="about">{_text(picture.says)}</p>' * bool(picture.says)
    return f"<h3>{_text(picture.title)}</h3>{says}{content}"
