"""Images with captions: rendered over any labeled gray images, or the user's own; words as numbers.

A rendered image shows one object of the dataset, in a color, a size and a place, on a black canvas. Its caption says
all four in one of many ways: "a small red seven, top left", "in the upper left corner a tiny crimson 7". What image i
shows and how it is said is a function of the seed and of i alone.

Some combinations of the four are held out: no training image shows them, a split of its own shows nothing else. A
generator that draws them has understood the parts of a caption and does not only remember whole ones.
"""

import csv
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bpgan.data import datasets, names, sources
from bpgan.data.images import Form, Unreadable, decode
from bpgan.types import Source, UserError, counted

PAD, UNKNOWN = "<pad>", "<unk>"
"""The words of number 0, behind the end of a caption, and 1, for every word that no training caption has."""

COLORS: Mapping[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {
    "red": ((255, 50, 50), ("red", "crimson", "scarlet")),
    "green": ((40, 210, 70), ("green", "emerald")),
    "blue": ((70, 110, 255), ("blue", "azure")),
    "yellow": ((255, 225, 40), ("yellow", "golden")),
    "magenta": ((235, 60, 235), ("magenta", "purple", "violet")),
    "white": ((255, 255, 255), ("white", "colorless")),
}
"""Of objects: RGB where the gray image is white, and the words for it."""

POSITIONS: Mapping[str, tuple[tuple[float, float], tuple[str, ...]]] = {
    "center": ((0.5, 0.5), ("center", "in the center", "in the middle")),
    "top left": ((0.0, 0.0), ("top left", "at the top left", "in the upper left corner")),
    "top right": ((0.0, 1.0), ("top right", "at the top right", "in the upper right corner")),
    "bottom left": ((1.0, 0.0), ("bottom left", "at the bottom left", "in the lower left corner")),
    "bottom right": (
        (1.0, 1.0), ("bottom right", "at the bottom right", "in the lower right corner"),
    ),
}  # fmt: skip
"""Of objects: the share of the free rows above and of the free columns to the left, and the words for it."""

SIZES: Mapping[str, tuple[float, tuple[str, ...]]] = {
    "small": (7 / 16, ("small", "tiny", "little")),
    "large": (11 / 16, ("large", "big", "huge")),
}
"""Of objects: the share of the canvas, and the words for it."""

TEMPLATES = (
    "a {size} {color} {kind}, {position}",
    "{color} {size} {kind} {position}",
    "{position}, a {size} {kind} in {color}",
    "the {kind} {position} is {color} and {size}",
    "{size} {kind}, {color}, {position}",
    "{position}: {color} {kind}, {size}",
)
"""Of captions."""

ATTRIBUTES = ("class", "color", "position", "size")
"""What a rendered image shows, the columns of ``Captioned.attributes``."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

HELD_OUT = 0.1
"""The share of the combinations of each class that no training image shows."""

SPLITS = ("train", "test", "held_out")
"""``test`` shows combinations of training on test images, ``held_out`` the other ones on test images."""

_FEWEST = 20

PROMPTS = 10
"""Captions that a run draws samples for while it trains."""

_COLUMNS = {"class": 0, "color": 1, "position": 2, "size": 3, "template": 4, "foil": 5}


class Captioned(NamedTuple):
    """Images with captions.

    Attributes:
      images: uint8 ``[n, h, w, c]`` in memory; its ``words`` are the vocabulary, in the order of their numbers.
      texts: a caption for each image.
      tokens: int32 ``[n, t]``, the numbers of its words.
      meaning: int32 ``[n]``; captions of one number describe the same.
      attributes: int32 ``[n, 4]``, as ``ATTRIBUTES`` counts them; None of captions that are not rendered.
      foils: int32 ``[n, t]``, for each image a caption that is wrong in one attribute; None beside ``attributes``.
    """

    images: datasets.Dataset
    texts: tuple[str, ...]
    tokens: np.ndarray
    meaning: np.ndarray
    attributes: np.ndarray | None = None
    foils: np.ndarray | None = None

    def rows(self, chosen: np.ndarray) -> "Captioned":
        """Some of them, in this order."""
        images, texts = self.images, tuple(self.texts[i] for i in chosen)
        x, y = images.read(chosen)
        some = _dataset(
            images.name, images.split, x, y, images.classes, images.class_names, texts, images.words
        )
        return Captioned(
            some._replace(prompts=images.prompts),
            texts,
            self.tokens[chosen],
            self.meaning[chosen],
            None if self.attributes is None else self.attributes[chosen],
            None if self.foils is None else self.foils[chosen],
        )


# Words as numbers ---------------------------------------------------------------------------------------------------


def split_words(text: str) -> list[str]:
    """Lower-case words and numbers, without punctuation.

    >>> split_words("A small red seven, top-left!")
    ['a', 'small', 'red', 'seven', 'top', 'left']
    """
    return re.findall(r"[^\W_]+", text.lower())


def vocabulary(texts: Iterable[str]) -> tuple[str, ...]:
    """``PAD``, ``UNKNOWN`` and the words of these captions in the order of the alphabet."""
    return (PAD, UNKNOWN, *sorted({word for text in texts for word in split_words(text)}))


def tokenize(texts: Sequence[str], words: Sequence[str], length: int) -> np.ndarray:
    """The numbers of the words of each caption, int32 ``[n, length]``; 0 behind its end.

    Args:
      texts: captions.
      words: the vocabulary.
      length: words of the longest caption that is allowed.

    Raises:
      UserError: for a caption without words, or with too many.
    """
    numbers = {word: i for i, word in enumerate(words)}
    tokens = np.zeros((len(texts), length), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        found = split_words(text)
        if not found:
            raise UserError(f"the caption {text!r} has no words")
        if len(found) > length:
            shown = text if len(text) <= 60 else text[:57] + "..."
            raise UserError(
                f"the caption {shown!r} has {len(found)} words, must have at most {length}"
            )
        row[: len(found)] = [numbers.get(word, numbers[UNKNOWN]) for word in found]
    return tokens


def unknown_words(text: str, words: Sequence[str]) -> list[str]:
    """The words of a caption that the vocabulary does not have, each once."""
    known = set(words)
    return [word for word in dict.fromkeys(split_words(text)) if word not in known]


# Rendered captions --------------------------------------------------------------------------------------------------


def hashed(seed: int, rows: np.ndarray, column: str) -> np.ndarray:
    """Numbers in [0, 1), one for each of ``rows``: a function of the seed, the row and the column alone.

    The finalizer of SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195), twice.
    """
    x = np.asarray(rows, np.uint64) * np.uint64(8) + np.uint64(_COLUMNS[column])
    for salt in (0, seed):
        x = x + np.uint64(0x9E3779B97F4A7C15 * (salt + 1) % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) / 2**53


@functools.cache
def combinations(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """All colors, positions and sizes, int ``[m, 3]``, and of which classes they are held out, bool ``[k, m]``.

    The held-out ones are the same whatever the seed of a run, as many of each class, and every color, position and size
    of a class is left in others.
    """
    counts = (len(COLORS), len(POSITIONS), len(SIZES))
    places = np.stack(np.unravel_index(np.arange(np.prod(counts)), counts), 1)
    rows = np.arange(classes * len(places))
    order = np.argsort(hashed(0, rows, "template").reshape(classes, -1), axis=1, kind="stable")
    held = np.zeros((classes, len(places)), bool)
    np.put_along_axis(held, order[:, : round(HELD_OUT * len(places))], True, axis=1)
    return places, held


def draw_attributes(labels: np.ndarray, classes: int, seed: int, which: str) -> np.ndarray:
    """What images of these classes show, int32 ``[n, 4]``.

    Args:
      labels: int ``[n]``.
      classes: how many there are.
      seed: of the choice.
      which: ``train`` and ``test``: combinations that are not held out; ``held_out``: those that are; ``all``.
    """
    places, held = combinations(classes)
    allowed = {"held_out": held, "all": np.ones_like(held)}.get(which, ~held)
    # The allowed ones of each class first, in order; each class has as many.
    first = np.argsort(~allowed, axis=1, kind="stable")
    drawn = hashed(seed, np.arange(len(labels)), "color") * allowed[0].sum()
    return np.column_stack([labels, places[first[labels, drawn.astype(np.int64)]]]).astype(np.int32)


def change_one(attributes: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Attributes that differ from those given in one of the four, int32 ``[n, 4]``.

    Each of the four is changed as often as the others, and to each other value as often, but never to a combination
    that is held out: D would learn that it is always wrong.

    Args:
      attributes: int ``[n, 4]``.
      classes: how many there are.
      seed: of the choice.
    """
    places, held = combinations(classes)
    sizes = (classes, *(places.max(axis=0) + 1))
    others, weights = [], []
    for column, size in enumerate(sizes):
        changed = np.repeat(attributes[:, None], size, axis=1)
        changed[:, :, column] = np.arange(size)
        place = np.ravel_multi_index(tuple(np.moveaxis(changed[:, :, 1:], 2, 0)), sizes[1:])
        allowed = ~held[changed[:, :, 0], place]
        allowed &= changed[:, :, column] != attributes[:, column, None]
        others.append(changed)
        weights.append(allowed / np.maximum(allowed.sum(axis=1, keepdims=True), 1))
    edges = np.cumsum(np.concatenate(weights, axis=1), axis=1)
    drawn = hashed(seed, np.arange(len(attributes)), "foil") * edges[:, -1]
    chosen = (edges > drawn[:, None]).argmax(axis=1)
    return np.concatenate(others, axis=1)[np.arange(len(attributes)), chosen].astype(np.int32)


def _area(size: int, out: int) -> np.ndarray:
    """``[out, size]``: each row is the share that an output pixel has of every input pixel."""
    edges = np.linspace(0, size, out + 1)
    low, high = edges[:-1, None], edges[1:, None]
    left = np.arange(size)[None]
    overlap = np.clip(np.minimum(high, left + 1) - np.maximum(low, left), 0, None)
    return overlap / overlap.sum(axis=1, keepdims=True)


def render(gray: np.ndarray, attributes: np.ndarray, canvas: int = 32) -> np.ndarray:
    """Objects on black canvases: each is averaged over areas to its size, colored, and put in its place.

    Args:
      gray: uint8 ``[n, h, w]``.
      attributes: int ``[n, 4]``.
      canvas: height and width of the images.

    Returns:
      uint8 ``[n, canvas, canvas, 3]``.
    """
    colors = np.array([rgb for rgb, _ in COLORS.values()], np.float64)
    places = np.array([place for place, _ in POSITIONS.values()])
    made = np.zeros((len(gray), canvas, canvas, 3), np.uint8)
    for s, (share, _) in enumerate(SIZES.values()):
        side = round(share * canvas)
        rows = np.flatnonzero(attributes[:, 3] == s)
        vertical, horizontal = _area(gray.shape[1], side), _area(gray.shape[2], side)
        for block in np.array_split(rows, max(1, len(rows) // 1000)):
            small = vertical @ gray[block].astype(np.float64) @ horizontal.T
            tinted = np.rint(small[..., None] / 255 * colors[attributes[block, 1]][:, None, None])
            corner = np.rint(places[attributes[block, 2]] * (canvas - side)).astype(int)
            for i, image, (top, left) in zip(block, tinted, corner, strict=True):
                made[i, top : top + side, left : left + side] = image
    return made


def kinds_of(class_names: Sequence[str], classes: int) -> tuple[tuple[str, ...], ...]:
    """The words for each class: its name, or of ten classes without names a digit in letters and in figures."""
    if len(class_names) == classes and not all(name.isdecimal() for name in class_names):
        return tuple(
            (" ".join(split_words(name)) or f"class {i}",) for i, name in enumerate(class_names)
        )
    if classes == len(DIGITS):
        return tuple((word, str(i)) for i, word in enumerate(DIGITS))
    return tuple((f"class {i}",) for i in range(classes))


def describe(
    attributes: np.ndarray, kinds: Sequence[Sequence[str]], seed: int, first: int = 0
) -> list[str]:
    """A caption for each row of attributes, in one of the ways to say it.

    Args:
      attributes: int ``[n, 4]``.
      kinds: of ``kinds_of``.
      seed: of the choice among templates and synonyms.
      first: the number of the first row.
    """
    rows = np.arange(first, first + len(attributes))
    drawn = {name: hashed(seed + 1, rows, name) for name in (*ATTRIBUTES, "template")}
    tables = [words for _, words in COLORS.values()], [words for _, words in POSITIONS.values()]
    sizes = [words for _, words in SIZES.values()]
    ways = dict(zip(ATTRIBUTES, (kinds, *tables, sizes), strict=True))
    texts = []
    for i, row in enumerate(attributes):
        said = {}
        for name, value in zip(ATTRIBUTES, row, strict=True):
            words = ways[name][value]
            said["kind" if name == "class" else name] = words[int(drawn[name][i] * len(words))]
        texts.append(TEMPLATES[int(drawn["template"][i] * len(TEMPLATES))].format(**said))
    return texts


class Rendering(NamedTuple):
    """How images are rendered and captions are read.

    Attributes:
      canvas: height and width of the images.
      copies: images that are made of each image of the dataset, with attributes of their own.
      length: words of the longest caption.
      seed: of attributes and captions.
    """

    canvas: int = 32
    copies: int = 1
    length: int = 16
    seed: int = 0


PLAIN = Rendering()


def load(
    name: str | names.Name, split: str = "train", how: Rendering = PLAIN, *, which: str = ""
) -> Captioned:
    """Captioned images, rendered over a labeled gray dataset.

    Args:
      name: of the dataset, as of ``datasets.load``.
      split: one of ``SPLITS``.
      how: they are rendered.
      which: the combinations, as of ``draw_attributes``; empty: those of the split.

    Raises:
      UserError: as ``datasets.load``; if the images have colors, or no labels.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: must be one of {', '.join(SPLITS)}")
    images = datasets.load(name, "train" if split == "train" else "test")
    if images.is_absent:
        return absent(images, how.length)
    if images.shape[2] != 1 or images.classes < 2:
        has = "no labels" if images.classes < 2 else f"{images.shape[2]} channels"
        reason = f"captions are rendered over gray images with labels, these have {has}"
        raise UserError(reason, argument="dataset", value=name)
    x, y = images.arrays()
    x, y = np.tile(x[..., 0], (how.copies, 1, 1)), np.tile(y, how.copies)
    # No split shows its objects in the way another one does.
    seed = 2 * (how.seed * len(SPLITS) + SPLITS.index(split))
    attributes = draw_attributes(y, images.classes, seed, which or split)
    kinds = kinds_of(images.class_names, images.classes)
    texts = describe(attributes, kinds, seed)
    counts = (images.classes, len(COLORS), len(POSITIONS), len(SIZES))
    meaning = np.asarray(np.ravel_multi_index(tuple(attributes.T), counts), np.int32)
    words = vocabulary(_every_word(kinds))
    tokens = _tokens(texts, words, how.length)
    made = render(x, attributes, how.canvas)
    title = f"{images.name} with captions"
    # The foil of a caption is said in the same way.
    foils = describe(change_one(attributes, images.classes, seed), kinds, seed)
    dataset = _dataset(
        title, split, made, y, images.classes, images.class_names, [*texts, *foils], words
    )
    shown = draw_attributes(np.arange(PROMPTS) % images.classes, images.classes, seed, split)
    dataset = dataset._replace(prompts=tuple(describe(shown, kinds, seed)))
    foiled = _tokens(foils, words, how.length)
    return Captioned(dataset, tuple(texts), tokens, meaning, attributes, foiled)


def _every_word(kinds: Sequence[Sequence[str]]) -> list[str]:
    """Texts with all words of rendered captions: a small training split has the vocabulary of a large one."""
    tables = [words for table in (COLORS, POSITIONS, SIZES) for _, words in table.values()]
    said = (re.sub("{.*?}", " ", template) for template in TEMPLATES)
    return [*said, *(text for words in (*tables, *kinds) for text in words)]


def _tokens(texts: Sequence[str], words: Sequence[str], length: int) -> np.ndarray:
    try:
        return tokenize(texts, words, length)
    except UserError as error:
        raise UserError(error.reason, argument="caption_length", value=length) from None


def _dataset(
    name: str, split: str, x, y, classes: int, class_names, texts, words
) -> datasets.Dataset:
    made = datasets.of_arrays(name, split, x, y, classes)
    return made._replace(class_names=class_names, words=tuple(words), sha256=_digest(made, texts))


def _digest(images: datasets.Dataset, texts: Sequence[str]) -> str:
    """Of images with their captions."""
    return sources.fingerprint_of(images.sha256, "\n".join(texts))


def absent(images: datasets.Dataset, length: int) -> Captioned:
    """Captioned images that are not there, for a model that was trained on them: all is zero but shapes and words."""
    n = images.length
    tokens, meaning = np.zeros((n, length), np.int32), np.zeros(n, np.int32)
    return Captioned(images, ("",) * n, tokens, meaning)


# The user's own captions --------------------------------------------------------------------------------------------


def load_own(file: str, size: int, length: int, split: str = "train") -> Captioned:
    """Images with the captions of a file beside them; every tenth line is of the split ``test``.

    Args:
      file: ``dataset.json`` with ``{"captions": [[path, text], ...]}``, or a CSV with the columns ``file`` and
        ``caption``; paths are relative to it. An image may have several captions, one a line.
      size: height and width that the images are brought to.
      length: words of the longest caption.
      split: ``train`` or ``test``. The vocabulary is that of the training captions.

    Raises:
      UserError: for a file that cannot be read or is of another form, fewer than 20 captions, an image that is missing
        or unreadable, and a caption that is empty or too long.
    """
    if datasets.are_absent():
        return absent(datasets.load(file), length)
    path = pathlib.Path(file).expanduser()
    try:
        pairs = _pairs(path)
        if len(pairs) < _FEWEST:
            raise UserError(f"has {counted(len(pairs), 'caption')}, must have at least {_FEWEST}")
        texts = [text for _, text in pairs]
        tokens = tokenize(
            texts, words := vocabulary(texts[i] for i in _rows_of(len(texts), "train")), length
        )
        chosen = _rows_of(len(pairs), split)
        x = np.stack([_image(path.parent / pairs[i][0], size) for i in chosen])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise UserError(reason, argument="captions", value=file) from None
    except (ValueError, UserError) as error:
        raise UserError(str(error), argument="captions", value=file) from None
    texts = tuple(texts[i] for i in chosen)
    numbers = np.unique(tokens, axis=0, return_inverse=True)[1].reshape(-1)
    dataset = _dataset(path.name, split, x, np.zeros(len(x), np.int32), 1, (), texts, words)
    dataset = dataset._replace(prompts=tuple(dict.fromkeys(texts))[:PROMPTS])
    return Captioned(dataset, texts, tokens[chosen], np.asarray(numbers[chosen], np.int32))


def _rows_of(n: int, split: str) -> np.ndarray:
    return np.flatnonzero((np.arange(n) % 10 == 9) == (split == "test"))


def _pairs(path: pathlib.Path) -> list[tuple[str, str]]:
    """Files and captions. Raises ValueError for another form."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        table = csv.DictReader(text.splitlines())
        if not {"file", "caption"} <= set(table.fieldnames or ()):
            raise ValueError("must have the columns file and caption")
        return [(str(row["file"]), str(row["caption"] or "")) for row in table]
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON (line {error.lineno}: {error.msg})") from None
    pairs = found.get("captions") if isinstance(found, dict) else None
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
        for pair in pairs
    ):
        raise ValueError('must be {"captions": [[path, text], ...]}')
    return [(name, caption) for name, caption in pairs]


def _image(path: pathlib.Path, size: int) -> np.ndarray:
    try:
        return decode(path.read_bytes(), Form((size, size), channels=3)).pixels
    except (OSError, Unreadable) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"the image {path.name} cannot be read ({why})") from None


# Batches ------------------------------------------------------------------------------------------------------------


def source(captioned: Captioned, *, seed: int, batch_size: int, dtype: Any = jnp.float32) -> Source:
    """The batches: ``x[b, h, w, c]``, int32 ``meaning[b]``, ``text[b, t]``, ``attributes[b, 4]`` and ``foil[b, t]``.

    Args:
      captioned: one split; without ``attributes`` and ``foils`` the batches have none.
      seed, batch_size, dtype: as of ``sources.source``.
    """
    images = captioned.images
    columns = {
        "meaning": captioned.meaning[:, None],
        "text": captioned.tokens,
        "attributes": captioned.attributes,
        "foil": captioned.foils,
    }
    columns = {name: column for name, column in columns.items() if column is not None}
    y = np.concatenate(list(columns.values()), axis=1)
    ends = np.cumsum([column.shape[1] for column in columns.values()])
    if images.is_absent:  # memory that is not touched is not taken
        x = np.zeros((images.length, *images.shape), np.uint8)
    else:
        x, _ = images.arrays()
    made = sources.in_memory(
        x, y, seed=seed, batch_size=batch_size, dtype=dtype, fingerprint=images.sha256
    )

    def batch_at(data: Any, step: Any) -> dict[str, Any]:
        batch = made.batch_at(data, step)
        parts = dict(zip(columns, jnp.split(batch["y"], ends[:-1], axis=1), strict=True))
        return {"x": batch["x"], **parts, "meaning": parts["meaning"][:, 0]}

    return made._replace(batch_at=batch_at, facts=images.facts)
