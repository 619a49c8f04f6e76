"""Readers of one side of pairs: the inputs alone, or the targets alone, in one order and with one split for both.

Each side is read, checked and cached as a dataset of its own; what belongs together has the same number. So everything
that decides the order, the labels and the split is looked at for both sides at once, and by names alone, before the
first image is decoded.
"""

import functools
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bpgan.data import images, readers
from bpgan.types import UserError, counted


class Side(NamedTuple):
    """One side of pairs.

    Attributes:
      places: two directories, or one directory or file that has both sides.
      part: 0, the inputs; 1, the targets.
    """

    places: tuple[str, ...]
    part: int

    @property
    def options(self) -> dict[str, str]:
        """See ``readers.Raw``."""
        return {"side": "ab"[self.part]}


def by_name(side: Side) -> readers.Raw:
    """Of two directories, images with the same path but for its last suffix: labels and split are those of the first.

    Raises:
      UserError: if one is no directory.
    """
    roots = [_directory(place) for place in side.places]
    trees = [images.folder(root) for root in roots]
    files = [
        (f"{root}/{name}", *stamps)
        for root, tree in zip(roots, trees, strict=True)
        for name, *stamps in tree.files
    ]
    return readers.Raw(
        roots[side.part], files, lambda: _by_name(side, roots, trees), options=side.options
    )


def _directory(place: str) -> pathlib.Path:
    try:
        path = readers.existing(place)
    except UserError as error:
        raise UserError(
            f"{readers.shown(place) or 'the name of a directory is empty'}: {error.reason}"
        ) from None
    if not path.is_dir():
        raise UserError(f"{readers.shown(place)}: not a directory")
    return path


def _by_name(side: Side, roots: list[pathlib.Path], trees: list[images.Tree]) -> readers.Examples:
    found = [_by_stem(root, tree) for root, tree in zip(roots, trees, strict=True)]
    for here, there, root in ((found[0], found[1], roots[1]), (found[1], found[0], roots[0])):
        if alone := [path for stem, path in here.items() if stem not in there]:
            count = counted(len(alone), "image has", "images have")
            raise UserError(
                f"{count} no partner in {readers.shown(str(root))}: {readers.few(alone)}"
            )
    first = readers.pictures_in(trees[0])
    if side.part == 0:
        return first

    def items() -> Iterator[str]:
        return (found[1][_stem(path)] for path in first.items())

    return first._replace(
        items=items, decode=trees[1].decode, probe=functools.partial(images.header, trees[1])
    )


def _by_stem(root: pathlib.Path, tree: images.Tree) -> dict[str, str]:
    """The images of a tree by their paths without the last suffix."""
    _check_images(root, tree)
    found: dict[str, str] = {}
    for path in tree.paths:
        other = found.setdefault(_stem(path), path)
        if other != path:
            where = readers.shown(str(root))
            raise UserError(f"{where}: {readers.few([other, path])} differ only in their suffix")
    return found


def _check_images(root: pathlib.Path, tree: images.Tree) -> None:
    if not tree.paths:
        raise UserError(f"{readers.shown(str(root))}: no images in it")


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def side_by_side(side: Side) -> readers.Raw:
    """Of one directory, the left or the right halves of its images, as in the datasets of pix2pix.

    Raises:
      UserError: if it is no directory.
    """
    root = _directory(side.places[0])
    tree = images.folder(root)
    return readers.Raw(
        root, tree.files, lambda: _halves(side.part, root, tree), options=side.options
    )


def _halves(part: int, root: pathlib.Path, tree: images.Tree) -> readers.Examples:
    _check_images(root, tree)

    def cut(path: str, width: int) -> int:
        if width % 2:
            reason = f"is {width} pixels wide; two images side by side have an even width"
            raise UserError(f"{readers.shown(path)} {reason}")
        return width // 2

    def probe(path: str) -> tuple[int, int, int]:
        height, width, channels = images.header(tree, path)
        return height, cut(path, width), channels

    def decode(path: str, form: images.Form) -> images.Decoded:
        whole = tree.decode(path, form._replace(size=None))
        middle = cut(path, whole.pixels.shape[1])
        pixels = whole.pixels[:, part * middle : (part + 1) * middle]
        return whole._replace(pixels=images.shaped(np.ascontiguousarray(pixels), form))

    return readers.pictures_in(tree)._replace(decode=decode, probe=probe)


_ARRAYS = tuple(
    ((side, "labels"), (f"{side}_train", "labels_train", f"{side}_test", "labels_test"))
    for side in "xy"
)
"""Of each side, what its arrays and the labels may be called; see ``readers.arrays_in``."""


def arrays(side: Side) -> readers.Raw:
    """Of an .npz file the images ``x`` or ``y``, or ``x_train``, ``y_train``, ``x_test``, ``y_test``.

    Class labels may be ``labels``, or ``labels_train`` and ``labels_test``.
    """
    path = readers.existing(side.places[0])
    stamp = images.stamp(str(path), path.stat())
    return readers.Raw(path, [stamp], lambda: _arrays(path)[side.part], options=side.options)


def _arrays(path: pathlib.Path) -> list[readers.Examples]:
    """Both sides. Of the arrays of images only the beginnings are read."""
    inputs = readers.arrays_in(path, _ARRAYS[0])
    try:
        targets = readers.arrays_in(path, _ARRAYS[1])
    except UserError as error:
        raise UserError(f"{error.reason}; a `task` makes pairs of images and labels") from None
    numbers = [_numbers(inputs), _numbers(targets)]
    if numbers[0] != numbers[1]:
        reason = f"{numbers[0]} images in its x, {numbers[1]} in its y; each must have a partner"
        raise UserError(reason)
    return [inputs, targets]


def _numbers(examples: readers.Examples) -> str:
    """How many there are in each split, in words."""
    if examples.test is None:
        return f"{len(examples.labels):,}"
    return f"{(~examples.test).sum():,} and {examples.test.sum():,}"
