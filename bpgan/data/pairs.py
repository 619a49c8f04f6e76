"""Pairs of images, an input and its target: from users' files, or made by a task of the images of any dataset.

A pair is one row of bytes, the pixels of the input and then those of the target. So pairs are an ordinary ``Dataset``,
and have its order, its fingerprint, its streams from disk and its parts that are held out.

``pairs:A_DIR,B_DIR``
    Inputs and targets in two folders, as ``folder:`` reads them, by their paths without the last suffix:
    ``A_DIR/train/7.png`` and ``B_DIR/train/7.jpg``. Each needs its partner. Classes and split are those of A_DIR.
``pairs:DIR``
    Both in one image, the input on the left and the target on the right, as in the datasets of pix2pix (Isola et al.
    2017, arXiv:1611.07004).
``npz:FILE``
    Images ``x`` and ``y``; or ``x_train``, ``y_train``, ``x_test``, ``y_test``; labels of classes may be ``labels``, or
    ``labels_train`` and ``labels_test``.
Any other dataset, with a task
    See ``tasks.TASKS``.

The options of datasets follow, and hold for both sides; ``direction=b_to_a`` exchanges input and target. The sides may
differ in size and channels, the images of one side may not.
"""

import functools
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bpgan.data import datasets, names, sides, sources, tasks
from bpgan.data.datasets import Dataset
from bpgan.types import Source, UserError, counted

Shape = tuple[int, int, int]
Read = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

DIRECTIONS = ("a_to_b", "b_to_a")


class Pairs(NamedTuple):
    """A split of pairs.

    Attributes:
      rows: the pairs, ``x`` uint8 ``[k, 1, 1, size_a + size_b]``; parts of them are made by ``data.hold_out(rows)``.
      a: ``(h, w, c)`` of the inputs.
      b: of the targets.
    """

    rows: Dataset
    a: Shape
    b: Shape

    @property
    def length(self) -> int:
        """Number of pairs."""
        return self.rows.length

    @property
    def facts(self) -> dict[str, Any]:
        """As ``Dataset.facts``: those of the targets, and both sides as parts."""
        facts = self.rows.facts
        parts = [{**facts, "shape": list(shape)} for shape in (self.a, self.b)]
        return {**parts[1], "parts": parts}

    def split(self, x: Any) -> tuple[Any, Any]:
        """Inputs ``[k, *a]`` and targets ``[k, *b]`` of rows ``[k, ...]``, of NumPy or JAX and of any type."""
        k, size = len(x), int(np.prod(self.a))
        flat = x.reshape(k, size + int(np.prod(self.b)))
        return flat[:, :size].reshape(k, *self.a), flat[:, size:].reshape(k, *self.b)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The whole split in memory: inputs and targets uint8, labels int32 ``[n]``. Raises as ``Dataset.arrays``."""
        x, y = self.rows.arrays()
        return *self.split(x), y

    def summary(self) -> str:
        """A line of facts, and one for each warning."""
        a, b = ("x".join(map(str, shape)) for shape in (self.a, self.b))
        facts = f"{self.rows.name} {self.rows.split}: {counted(self.length, 'pair')} {a} -> {b}"
        classes = counted(self.rows.classes, "class", "classes")
        return "\n".join([f"{facts}, {classes}", *(f"warning: {w}" for w in self.rows.warnings)])


class PairName(NamedTuple):
    """The name of pairs, read.

    Attributes:
      text: as the user wrote it.
      name: of the dataset; of pairs in folders its kind is one of ``names.SIDES``.
      direction: one of ``DIRECTIONS``.
    """

    text: str
    name: names.Name
    direction: str


def forms() -> str:
    """All ways to name a dataset of pairs."""
    return f"pairs:A_DIR,B_DIR, pairs:DIR of images side by side, npz:FILE; or, with a task, {names.forms()}"


def parse(text: str) -> PairName:
    """Reads the name of a dataset of pairs, or of one that a task makes pairs of.

    Raises:
      ValueError: if it is none, saying what is allowed.
    """
    given = re.findall(r",direction=([^,]*)", text)
    if len(given) > 1:
        raise ValueError("direction= is given twice")
    if given and given[0] not in DIRECTIONS:
        raise ValueError(f"direction={given[0]}: must be {' or '.join(DIRECTIONS)}")
    rest = text.replace(f",direction={given[0]}", "") if given else text
    word, _, places = rest.partition(":")
    name = _of_folders(places) if word == "pairs" else names.parse(rest)
    return PairName(text, names.Name(text, *name[1:]), given[0] if given else DIRECTIONS[0])


def _of_folders(text: str) -> names.Name:
    argument, form, skip = names.options(text)
    if skip:
        raise ValueError("skip=unreadable: not for pairs, whose images would lose their partners")
    places = _directories(argument)
    if len(places) == 2 and len({*map(os.path.realpath, map(os.path.expanduser, places))}) == 1:
        raise ValueError(
            f"{places[0]!r} is named twice, so every pair would be an image and itself"
        )
    kind = "pairs" if len(places) == 2 else "halves"
    return names.Name(text, kind, argument, places, form)


def _directories(text: str) -> tuple[str, ...]:
    """The one or two directories of a text; a path may have commas in it, which those that exist tell apart."""

    def exist(places: tuple[str, ...]) -> bool:
        return all(os.path.exists(os.path.expanduser(place)) for place in places)

    ways = [(text[:i], text[i + 1 :]) for i, letter in enumerate(text) if letter == ","]
    if exist((text,)) or not ways:
        return (text,)
    return next(filter(exist, ways), ways[0])


def load_pairs(
    name: str | PairName,
    split: str = "train",
    task: str | tasks.Named | None = None,
    *,
    mirror: str = "",
) -> Pairs:
    """A split of pairs.

    Args:
      name: one of ``pairs.forms()``; see above. Or what ``pairs.parse`` made of it.
      split: ``train`` or ``test``.
      task: one of ``tasks.forms()``, which makes the pairs of a dataset of images, or what ``tasks.parse`` made of it;
        None or empty: the dataset has them.
      mirror: as for ``data.load``.

    Raises:
      UserError: as ``data.load``; if an image has no partner; if there are no pairs without a task, or a task cannot
        make them.
    """
    if (facts := datasets.facts_given()) is not None:
        return _absent(facts)
    found, wanted = _named(name), tasks.named(task) if task else None
    stored = found.name.kind in names.SIDES
    if wanted is not None and not stored:
        return made(datasets.load(found.name, split, mirror=mirror), wanted, found.direction)
    if wanted is not None:
        reason = f"has no effect on pairs, which `dataset={found.text}` has already"
        raise UserError(reason, argument="task", value=wanted.text, beside=["dataset"])
    if not stored and found.name.kind != "npz":
        reason = f"has no pairs; with a `task` they are made of it: {', '.join(tasks.TASKS)}"
        raise UserError(reason, argument="dataset", value=found.text)
    return _stored(found, split)


def _named(name: str | PairName) -> PairName:
    try:
        return parse(name) if isinstance(name, str) else name
    except ValueError as error:
        raise UserError(str(error), argument="dataset", value=name) from None


def _stored(found: PairName, split: str) -> Pairs:
    """Pairs of users' files, of which each side is a dataset of its own."""
    name = found.name
    if name.kind == "npz":
        name = name._replace(kind="arrays", source=(name.source,))
    a, b = (
        datasets.load(name._replace(source=sides.Side(name.source, part)), split) for part in (0, 1)
    )
    if a.counts != b.counts:
        reason = "its files were changed while they were read; repeat the command"
        raise UserError(reason, argument="dataset", value=found.text)
    return _zipped(a, b) if found.direction == DIRECTIONS[0] else _zipped(b, a)


def made(dataset: Dataset, task: str | tasks.Named, direction: str = DIRECTIONS[0]) -> Pairs:
    """The pairs that a task makes of the images of a split.

    Args:
      dataset: the split.
      task: as for ``load_pairs``.
      direction: ``a_to_b``, from the task's inputs to its targets, or ``b_to_a``.

    Raises:
      UserError: if it is no task, or cannot take images of this shape.
    """
    named = tasks.named(task)
    back = direction == DIRECTIONS[1]
    a, b = (side.shape[1:] for side in _ordered(named, back, *blank(dataset)))
    read = functools.partial(_read_made, dataset.read, named, back)
    return _of_rows(dataset, read, a, b, dataset.sha256, named.text)


def blank(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """An image in the shape of the others, and a label."""
    return np.zeros((1, *dataset.shape), np.uint8), np.zeros(1, np.int32)


def _ordered(
    task: tasks.Named, back: bool, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    a, b = task.pair(x, y)
    return (b, a) if back else (a, b)


def _read_made(
    read: Read, task: tasks.Named, back: bool, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``Dataset.read`` of pairs that a task makes."""
    x, y = read(indices)
    return _joined(*_ordered(task, back, x, y)), y


def _zipped(a: Dataset, b: Dataset) -> Pairs:
    """Inputs and targets that are stored apart."""
    warnings = (*a.warnings, *(w for w in b.warnings if w not in a.warnings))
    read = functools.partial(_read_zipped, a.read, b.read)
    return _of_rows(a._replace(warnings=warnings), read, a.shape, b.shape, a.sha256, b.sha256)


def _read_zipped(read_a: Read, read_b: Read, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``Dataset.read`` of pairs whose sides are stored apart."""
    a, y = read_a(indices)
    return _joined(a, read_b(indices)[0]), y


def _joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rows ``[k, 1, 1, size_a + size_b]`` of inputs and targets."""
    flat = [x.reshape(len(x), 1, 1, int(np.prod(x.shape[1:]))) for x in (a, b)]
    return np.concatenate(flat, axis=-1)


def _of_rows(dataset: Dataset, read: Read, a: Shape, b: Shape, *origins: str) -> Pairs:
    shape = (1, 1, int(np.prod(a) + np.prod(b)))
    return Pairs(datasets.derived(dataset, shape, read, *origins, str([*a, *b])), a, b)


def _absent(facts: Any) -> Pairs:
    """Pairs whose images are absent: they have the shapes of ``Pairs.facts``."""
    if len(facts.get("parts", ())) != 2:
        raise UserError("the run was not trained on pairs of images")
    a, b = (tuple(part["shape"]) for part in facts["parts"])
    rows = datasets.of_facts({**facts, "shape": [1, 1, int(np.prod(a) + np.prod(b))]})
    return Pairs(rows, a, b)


def pair_source(
    pairs: Pairs,
    *,
    seed: int,
    batch_size: int,
    dtype: Any = jnp.float32,
    feed: "str | sources.Feed" = "auto",
    flip: bool = False,
) -> Source:
    """The batches of pairs: ``{"a": inputs, "b": targets, "y": labels}``, images in [-1, 1].

    Args:
      pairs: one split.
      seed, batch_size, dtype, feed: as for ``data.source``.
      flip: mirror both images of a pair left to right with probability 1/2.

    Raises:
      UserError: as ``data.source``.
    """
    rows = sources.source(pairs.rows, seed=seed, batch_size=batch_size, dtype=dtype, feed=feed)

    def batch_at(data: Any, step: Any) -> dict[str, Any]:
        batch = rows.batch_at(data, step)
        a, b = pairs.split(batch["x"])
        return {"a": a, "b": b, "y": batch["y"]}

    shown = pairs.split(rows.examples)[1] if len(rows.examples) else ()
    result = rows._replace(batch_at=batch_at, examples=shown, facts=pairs.facts)
    return sources.mirrored(result, seed=seed, names=("a", "b")) if flip else result
