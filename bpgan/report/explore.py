"""The page to explore a run: sliders over directions, what D looks at, neighbors and inversions, in one file.

A function of what ``experiments.interpret`` found. Everything that a slider shows was drawn ahead and is in the page as
sheets of small images, so that it needs no server and opens from a disk.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from bpgan.report.tables import Table


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
      names: of the k directions, such as ``1`` or ``1 (31 % of the variance)``.
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
