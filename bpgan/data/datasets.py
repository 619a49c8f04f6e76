"""Datasets by name. Each but the embedded digits is converted once, to files that are read at random (``cache.py``).

``mnist10k``
    10,000 real MNIST digits, shipped with bpgan; needs no network. Origin and licence: ``bpgan/data/MNIST10K.md``.
    It is a part of the MNIST training set with a split of its own, so results on it are not results on MNIST.
``npz:FILE``
    Arrays ``x`` (uint8, [n, h, w] or [n, h, w, c]) and, optionally, integer labels ``y`` [n]; or ``x_train``,
    ``y_train``, ``x_test``, ``y_test``.
``idx:PATH``
    The files of MNIST, gzipped or not: a directory of them, or one file of images with its labels beside it.
``folder:PATH``, ``zip:FILE``
    PNG, JPEG, WebP, BMP, GIF and TIFF files in one folder per class, whose numbers are the order of the folders' names;
    or flat, without classes; or with a ``dataset.json`` as StyleGAN has it, ``{"labels": [[path, class], ...]}``. Of
    top folders ``train/`` and ``test/`` (or ``val/``, ``valid/``, ``validation/``), each is a split.
``tfds:NAME``
    A dataset of TensorFlow Datasets (TensorFlow itself is not needed).

Without splits, every tenth example of each class is for the test. Options follow, as in ``folder:cats,size=64``:
``size=H`` or ``size=HxW`` resizes, needed if sizes differ; ``fit=crop`` (the default: the greatest centred part of that
shape), ``pad`` or ``stretch``; ``channels=1``, ``3`` or ``4``: otherwise files are grey if all of them are, else RGB,
and arrays are as stored; ``skip=unreadable`` leaves out files that cannot be read, which else are an error.
"""

import functools
import hashlib
import importlib.resources
import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bpgan.data import cache, convert, images, readers
from bpgan.types import UserError

FORMS = "mnist10k, npz:FILE, idx:PATH, folder:PATH, zip:FILE or tfds:NAME"


class Dataset(NamedTuple):
    """A split of a dataset. Images are uint8 ``[h, w, c]``, labels int32 in ``range(classes)``.

    Attributes:
      name: as the user wrote it.
      split: ``train`` or ``test``; ``hold_out`` has names of its own.
      read: ``read(indices int[k]) -> (x uint8 [k, h, w, c], y int32 [k])``, in any order and with repetitions; threads
        and, pickled, processes may share it. Raises IndexError, and UserError for a damaged cache.
      shape: ``(h, w, c)``.
      counts: examples of each class; a dataset without labels has one class.
      class_names: in the order of the labels, () if unknown.
      sha256: of the content, in order: ``shape`` as int32, pixels, labels as int32.
      low, high: the smallest and the greatest pixel value.
      mean, std: of each channel of ``x / 255``.
      warnings: what the user should know, a line each.
    """

    name: str
    split: str
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    shape: tuple[int, int, int]
    counts: tuple[int, ...]
    class_names: tuple[str, ...]
    sha256: str
    low: int
    high: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    warnings: tuple[str, ...]

    @property
    def length(self) -> int:
        """Number of examples."""
        return sum(self.counts)

    @property
    def classes(self) -> int:
        """Number of classes, the same for both splits."""
        return len(self.counts)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The whole split, ``x`` uint8 ``[n, h, w, c]`` and ``y`` int32 ``[n]``, in memory.

        A damaged cache is made again.

        Raises:
          UserError: if the cache is damaged and the source is gone or has changed.
        """
        if not isinstance(self.read, cache.Records):
            return self.read(np.arange(self.length))
        try:
            return self.read.arrays(self.sha256)
        except cache.Damaged:
            fresh = _load(self.name, self.split, deep=True)
        if fresh.sha256 != self.sha256:
            reason = "the cache is damaged and the source changed"
            raise UserError(reason, argument="dataset", value=self.name)
        self.read.close()
        return self.read.arrays(self.sha256)

    def summary(self) -> str:
        """A line of facts, and one for each warning."""
        named = [
            f"{self.class_names[i]} {n:,}" if self.class_names else f"{i}: {n:,}"
            for i, n in enumerate(self.counts)
        ]
        if len(self.counts) == 1:
            classes = "1 class" + (f": {named[0]}" if self.class_names else "")
        elif len(self.counts) <= 20:
            classes = f"{self.classes} classes: {', '.join(named)}"
        else:
            low, mid, high = min(self.counts), np.median(self.counts), max(self.counts)
            classes = f"{self.classes} classes of {low:,} to {high:,} examples, median {mid:,g}"
        facts = (
            f"{self.name} {self.split}: {self.length:,} images {'x'.join(map(str, self.shape))}"
            f" uint8 in [{self.low}, {self.high}], {classes}"
        )
        return "\n".join([facts, *(f"warning: {w}" for w in self.warnings)])


def load(name: str, split: str = "train", *, mirror: str = "") -> Dataset:
    """A split of a dataset, which is converted when it is first asked for, or has changed since.

    Args:
      name: ``mnist10k`` or ``KIND:ARGUMENT[,OPTION=VALUE...]``; see above.
      split: ``train`` or ``test``.
      mirror: where ``tfds`` looks for files to download; see ``builders.py``.

    Raises:
      UserError: if the dataset is unknown, missing, unreadable or of the wrong form, or cannot be converted.
    """
    if split not in cache.SPLITS:
        raise ValueError(f"split={split!r}: must be one of {', '.join(cache.SPLITS)}")
    return _load(name, split, mirror=mirror)


def _load(name: str, split: str, *, mirror: str = "", deep: bool = False) -> Dataset:
    kind, colon, argument = name.partition(":")
    try:
        if kind.startswith("mnist10k,"):
            raise UserError("mnist10k takes no options")
        if kind not in DATASETS or (kind == "mnist10k") == bool(colon):
            raise UserError(f"must be {FORMS}")
        return DATASETS[kind](name, split, mirror=mirror, deep=deep)
    except UserError as error:
        argument, value = (error.argument, error.value) if error.argument else ("dataset", name)
        text = error.reason if error.argument else str(error)  # of a file: with its path
        reason = " ".join(text.split("\n"))
        raise UserError(reason, argument=argument, value=value, beside=error.beside) from None
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
        raise UserError(reason, argument="dataset", value=name) from None


def of_arrays(name: str, split: str, x: np.ndarray, y: np.ndarray, classes: int) -> Dataset:
    """Arrays in memory as a split: ``x`` uint8 ``[n, h, w, c]``, labels ``y`` int ``[n]`` in ``range(classes)``."""
    tally = cache.Tally(x.shape[1:], classes)
    tally.add(x, y.astype(np.int32))
    return _dataset(name, split, tally.result(), (), (), functools.partial(_rows, x, y))


def hold_out(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """``(rest, validation)``: a tenth of a split, at most 10,000 examples, set apart.

    The same ones whatever the seed of a run, chosen at random. ``low``, ``high``, ``mean``, ``std`` and the warnings of
    both are those of the whole.

    Raises:
      UserError: if there are fewer than 20 examples.
    """
    n = dataset.length
    if n < 20:
        reason = f"{n} examples are too few to hold some out"
        raise UserError(reason, argument="dataset", value=dataset.name)
    chosen = np.zeros(n, bool)
    chosen[np.random.RandomState(0).permutation(n)[: min(n // 10, 10_000)]] = True
    held, rest = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    tally = np.bincount(dataset.read(held)[1], minlength=dataset.classes)
    others = np.asarray(dataset.counts) - tally

    def part(split: str, rows: np.ndarray, counts: np.ndarray) -> Dataset:
        digest = hashlib.sha256(bytes.fromhex(dataset.sha256) + rows.astype("<i8").tobytes())
        return dataset._replace(
            split=split,
            read=functools.partial(_part, dataset.read, rows),
            counts=tuple(counts.tolist()),
            sha256=digest.hexdigest(),
        )

    return part(f"{dataset.split} without a tenth", rest, others), part("validation", held, tally)


def _part(read: Callable, rows: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return read(rows[indices])


def _rows(x: np.ndarray, y: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    indices = np.asarray(indices, np.int64)
    if (indices < 0).any():
        raise IndexError(f"index {indices.min()} is negative")
    return x[indices], y[indices].astype(np.int32)


def _mnist10k(name: str, split: str, **_: Any) -> Dataset:
    dataset = of_arrays(name, split, *_digits(split), 10)
    return dataset._replace(read=functools.partial(_read_digits, split))  # small when pickled


@functools.lru_cache(maxsize=2)
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    with importlib.resources.files("bpgan.data").joinpath("mnist10k.npz").open("rb") as file:
        arrays = np.load(file)
        x, y = arrays["x"], arrays["y"]
    keep = convert.every_tenth(y) == (split == "test")
    x = x[keep]
    return x if x.ndim == 4 else x[..., None], y[keep].astype(np.int32)


def _read_digits(split: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _rows(*_digits(split), indices)


class Options(NamedTuple):
    """What follows the argument in a dataset's name."""

    form: images.Form = images.Form()
    skip: bool = False


def _parse(text: str) -> tuple[str, Options]:
    """``(argument, options)``. Only options that exist are split off, so that a path may have commas in it."""
    found: dict[str, Any] = {}
    while True:
        rest, _, last = text.rpartition(",")
        key, equals, value = last.partition("=")
        if key not in ("size", "fit", "channels", "skip") or not rest or not equals:
            break
        if key in found:
            raise UserError(f"{key}= is given twice")
        found[key] = value
        text = rest
    like = re.search(r",\s*\w+\s*=[^,/]*$", text)
    if like and not os.path.exists(os.path.expanduser(text)):
        raise UserError(
            f"no option {like[0]!r}; there are size=H or size=HxW, fit=crop|pad|stretch,"
            " channels=1|3|4 and skip=unreadable"
        )
    size = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", found.get("size", "1"))
    height_width = (int(size[1]), int(size[2] or size[1])) if size else (0, 0)
    if not all(1 <= side <= 16384 for side in height_width):
        raise UserError(f"size={found['size']}: must be H or HxW, height and width in 1 to 16384")
    for key, allowed in {"fit": images.FITS, "channels": "134", "skip": ["unreadable"]}.items():
        if found.get(key, allowed[0]) not in tuple(allowed):
            raise UserError(f"{key}={found[key]}: must be {' or '.join(allowed)}")
    if "fit" in found and "size" not in found:
        raise UserError(f"fit={found['fit']}: needs size=")
    form = images.Form(
        height_width if "size" in found else None,
        found.get("fit", "crop"),
        int(found["channels"]) if "channels" in found else None,
    )
    return text, Options(form, "skip" in found)


def _converted(
    reader: Callable[..., readers.Raw], name: str, split: str, *, mirror: str, deep: bool
) -> Dataset:
    """A dataset of a reader, from its cache."""
    kind, _, argument = name.partition(":")
    argument, options = _parse(argument)
    if options.skip and kind not in ("folder", "zip"):
        raise UserError("skip=unreadable: only for folder and zip")
    raw = reader(argument, mirror=mirror) if kind == "tfds" else reader(argument)
    digest = hashlib.sha256()
    for file in raw.files:
        digest.update("\0".join(map(str, file)).encode("utf-8", "surrogateescape") + b"\n")
    identity = {
        "version": cache.VERSION,
        "kind": kind,
        "source": str(raw.path),
        "options": {**options.form._asdict(), "skip": options.skip},
        "fingerprint": {
            "files": len(raw.files),
            "bytes": sum(size for _, size, _ in raw.files),
            "sha256": digest.hexdigest(),
        },
    }
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    stem = re.sub(r"[^\w.-]+", "-", argument if kind == "tfds" else raw.path.stem, flags=re.ASCII)
    folder = cache.directory() / f"{kind}-{stem[:40]}-{key}"

    def make(directory: pathlib.Path) -> dict[str, Any]:
        return {**identity, **convert.convert(raw.examples(), *options, directory, name)}

    manifest = cache.entry(folder, make, deep=deep)
    found = manifest["splits"][split]
    if not found["count"]:
        raise UserError(f"the {split} split has no examples")
    read = cache.Records(folder / f"{split}.array_record", found["count"], tuple(found["shape"]))
    return _dataset(name, split, found, manifest["class_names"], found["warnings"], read)


def _dataset(name: str, split: str, found: dict[str, Any], class_names, warnings, read) -> Dataset:
    return Dataset(
        name,
        split,
        read,
        tuple(found["shape"]),
        tuple(found["counts"]),
        tuple(class_names),
        found["sha256"],
        found["low"],
        found["high"],
        tuple(found["mean"]),
        tuple(found["std"]),
        tuple(warnings),
    )


DATASETS: dict[str, Callable[..., Dataset]] = {
    "mnist10k": _mnist10k,
    "npz": functools.partial(_converted, readers.npz),
    "idx": functools.partial(_converted, readers.idx),
    "folder": functools.partial(_converted, readers.folder),
    "zip": functools.partial(_converted, readers.archive),
    "tfds": functools.partial(_converted, readers.tfds),
}
"""By the part of the name before the colon: ``(name, split, mirror=, deep=) -> Dataset``; see ``_converted``."""
