"""Datasets by name. Each but the embedded digits is converted once, to files that are read at random (``cache.py``).

``mnist10k``
    10,000 real MNIST digits, shipped with bpgan; needs no network. Origin and license: ``bpgan/data/MNIST10K.md``.
    It is a part of the MNIST training set with a split of its own, so results on it are not results on MNIST.
``npz:FILE``
    Arrays ``x`` (uint8, [n, h, w] or [n, h, w, c]) and, optionally, integer labels ``y`` [n]; or ``x_train``,
    ``y_train``, ``x_test``, ``y_test``.
``idx:PATH``
    The files of MNIST, gzipped or not: a directory of them, or one file of images with its labels beside it.
``folder:PATH``, ``zip:FILE``
    PNG, JPEG, WebP, AVIF, BMP, GIF and TIFF files in one folder per class, whose numbers are the order of the folders'
    names; or flat, without classes; or with a ``dataset.json`` like StyleGAN's, ``{"labels": [[path, class], ...]}``.
    Two top folders ``train`` and ``test`` are the splits, also as ``Training`` and ``Testing``, ``seg_train`` and
    ``seg_test``, ``train2017`` and ``val2017``. A folder around all of them does not count.
``tfds:NAME``
    A dataset of TensorFlow Datasets (TensorFlow itself is not needed).

Without splits, every tenth example of each class is for the test. Options follow, as in ``folder:cats,size=64``:
``size=H`` or ``size=HxW`` resizes, needed if sizes differ; ``fit=crop`` (default: the greatest centered part of that
shape), ``pad`` or ``stretch``; ``channels=1``, ``3`` or ``4``: otherwise files are gray if all of them are, else RGB,
and arrays are as stored; ``background=white`` (the default), ``black``, a gray from 0 to 255 or a color such as
``ff8800``: of transparent parts and of padding; ``bits=9`` to ``16``: of gray files of 16 bits that hold fewer;
``skip=unreadable`` leaves out files that cannot be read, which else are an error.

A cache belongs to the names, sizes, times and bytes of the files it was made of, and to the options. Files that were
changed in any way since, but neither in size nor in time of modification, are read again and compared: what was only
copied or given other permissions is not converted again; what was changed under an old time stamp is.
"""

import contextlib
import errno
import functools
import hashlib
import importlib.resources
import json
import os
import pathlib
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from bpgan import files
from bpgan.data import cache, convert, images, readers
from bpgan.types import UserError

_MENDING = threading.RLock()
_MOMENT = 2_000_000_000  # ns: the coarsest times of change that disks have

FORMS = "mnist10k, npz:FILE, idx:PATH, folder:PATH, zip:FILE or tfds:NAME"


class Dataset(NamedTuple):
    """A split of a dataset. Images are uint8 ``[h, w, c]``, labels int32 in ``range(classes)``.

    Attributes:
      name: as the user wrote it.
      split: ``train`` or ``test``; ``hold_out`` has names of its own.
      read: ``read(indices int[k]) -> (x uint8 [k, h, w, c], y int32 [k])``, in any order and with repetitions; threads
        and, pickled, processes may share it. Makes a damaged cache again. Raises IndexError, and UserError if the cache
        is damaged and its source is gone or has changed.
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

        Raises:
          UserError: if there is no memory for it; if the cache is damaged and the source is gone or has changed.
        """
        if isinstance(self.read, _Cached):
            return self.read.arrays()
        return cache.read_all(self.read, np.arange(self.length), self.shape)

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
        if error.argument:
            raise
        reason = " ".join(error.reason.splitlines())
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
    except MemoryError:
        reason = "not enough memory to read it"
    raise UserError(reason, argument="dataset", value=name)


def of_arrays(name: str, split: str, x: np.ndarray, y: np.ndarray, classes: int) -> Dataset:
    """Arrays in memory as a split: ``x`` uint8 ``[n, h, w, c]``, labels ``y`` int ``[n]`` in ``range(classes)``."""
    tally = cache.Tally(x.shape[1:], classes)
    tally.add(x, y.astype(np.int32))
    found = files.convert({**tally.result(), "bytes": 0, "warnings": ()}, cache.Split)
    return _dataset(name, split, found, (), (), functools.partial(_rows, x, y))


def load_for_training(name: str, held_out: bool = False) -> tuple[Dataset, Dataset | None]:
    """The training split, and if ``held_out`` a part of it that is set apart (``hold_out``), else None.

    Raises:
      UserError: as ``load`` and ``hold_out``.
    """
    images = load(name)
    return hold_out(images) if held_out else (images, None)


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
    labels = [dataset.read(held[i : i + 1])[1] for i in range(len(held))]  # images may be large
    tally = np.bincount(np.concatenate(labels), minlength=dataset.classes)
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


_OPTIONS = {
    "size": "size=H or size=HxW",
    "fit": "fit=crop|pad|stretch",
    "channels": "channels=1|3|4",
    "background": "background=white",
    "bits": "bits=12",
    "skip": "skip=unreadable",
}


def _parse(text: str) -> tuple[str, Options]:
    """``(argument, options)``. Only options that exist are split off, so that a path may have commas in it."""
    found: dict[str, str] = {}
    while True:
        rest, _, last = text.rpartition(",")
        key, equals, value = last.partition("=")
        if key not in _OPTIONS or not rest or not equals:
            break
        if key in found:
            raise UserError(f"{key}= is given twice")
        found[key] = value
        text = rest
    like = re.search(r",\s*\w+\s*=[^,/]*$", text)
    if like and not os.path.exists(os.path.expanduser(text)):
        *others, last = _OPTIONS.values()
        raise UserError(f"no option {like[0]!r}; there are {', '.join(others)} and {last}")
    for key, allowed in {"fit": images.FITS, "channels": "134", "skip": ["unreadable"]}.items():
        if found.get(key, allowed[0]) not in tuple(allowed):
            raise UserError(f"{key}={found[key]}: must be {' or '.join(allowed)}")
    if "fit" in found and "size" not in found:
        raise UserError(f"fit={found['fit']}: needs size=")
    form = images.Form(
        _parse_size(found["size"]) if "size" in found else None,
        found.get("fit", "crop"),
        int(found["channels"]) if "channels" in found else None,
        _parse_color(found["background"]) if "background" in found else None,
        _parse_bits(found["bits"]) if "bits" in found else None,
    )
    return text, Options(form, "skip" in found)


def _parse_size(text: str) -> tuple[int, int]:
    size = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text, re.ASCII)
    height, width = (int(size[1]), int(size[2] or size[1])) if size else (0, 0)
    if not (1 <= height <= 16384 and 1 <= width <= 16384):
        raise UserError(f"size={text}: must be H or HxW, height and width in 1 to 16384")
    return height, width


def _parse_color(text: str) -> tuple[int, int, int]:
    """Red, green and blue."""
    gray = {"white": 255, "black": 0}.get(
        text, int(text) if re.fullmatch("[0-9]{1,3}", text) else 256
    )
    if gray <= 255:
        return gray, gray, gray
    if not re.fullmatch("#?[0-9a-fA-F]{6}", text):
        raise UserError(
            f"background={text}: must be white, black, a gray from 0 to 255 or a color such as ff8800"
        )
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue


def _parse_bits(text: str) -> int:
    if text not in map(str, range(9, 17)):
        raise UserError(f"bits={text}: must be in 9 to 16")
    return int(text)


def _converted(
    reader: Callable[..., readers.Raw], name: str, split: str, *, mirror: str, deep: bool
) -> Dataset:
    """A dataset of a reader, from its cache."""
    kind, _, argument = name.partition(":")
    argument, options = _parse(argument)
    for option, given in {"skip=unreadable": options.skip, "bits": options.form.bits}.items():
        if given and kind not in ("folder", "zip"):
            raise UserError(f"{option}: only for folder and zip")
    more = {"mirror": mirror} if kind == "tfds" else {}
    raw = reader(argument, **more)
    origin = _origin(kind, raw, options)
    key = hashlib.sha256(json.dumps(origin.identity).encode()).hexdigest()[:16]
    stem = re.sub(r"[^\w.-]+", "-", argument if kind == "tfds" else raw.path.stem, flags=re.ASCII)
    folder = cache.directory() / f"{kind}-{stem[:40]}-{key}"

    def make(directory: pathlib.Path) -> dict[str, Any]:
        content = origin.content()
        made = convert.convert(raw.examples(), *options, directory, name)
        now = reader(argument, **more)
        if now.files != raw.files and _content(now.path, tuple(now.files), name) != content:
            raise UserError("its files were changed while they were read; repeat the command")
        return {"content": content or "", **made}

    manifest = cache.entry(folder, origin, make, deep=deep)
    found = manifest.splits[split]
    if not found.count:
        raise UserError(f"the {split} split has no examples")
    path = folder / f"{split}.array_record"
    records = cache.Records(path, found.count, found.shape, found.sha256)
    read = _Cached(records, name, split, found.sha256)
    return _dataset(name, split, found, manifest.class_names, found.warnings, read)


def _origin(kind: str, raw: readers.Raw, options: Options) -> cache.Origin:
    """The source of a cache: its names, sizes and times of modification are its identity."""
    identity = {
        "version": cache.VERSION,
        "kind": kind,
        "source": readers.shown(str(raw.path)),
        "options": {**options.form._asdict(), "skip": options.skip},
        "fingerprint": {
            "files": len(raw.files),
            "bytes": sum(size for _, size, *_ in raw.files),
            "sha256": _digest(file[:3] for file in raw.files),
        },
    }
    stamps = _digest(raw.files)
    # What was changed a moment ago may be changed again without another time: some disks count in seconds.
    settled = max((changed for *_, changed in raw.files), default=0) < time.time_ns() - _MOMENT
    read = _content_once if settled else _content
    content = functools.partial(read, raw.path, tuple(raw.files), f"{kind}:{raw.path}")
    return cache.Origin(identity, stamps if settled else "", content)


def _digest(rows: Iterable[tuple[Any, ...]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update("\0".join(map(str, row)).encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def _content(root: pathlib.Path, found: tuple[tuple[Any, ...], ...], name: str) -> str | None:
    """The digest of all bytes of the files of a dataset; None if one of them may not be read."""
    paths = [root / path for path, *_ in found if not path.endswith("/")]
    digests = ([part] for part in convert.ordered(_bytes_of, paths, convert.threads()))
    digest = hashlib.sha256()
    try:
        for (part,) in convert.progress(digests, len(paths), f"{name}: checking", "files"):
            digest.update(part)
    except PermissionError:
        return None
    return digest.hexdigest()


_content_once = functools.lru_cache(maxsize=16)(_content)


def _bytes_of(path: pathlib.Path) -> bytes:
    """The digest of a file; empty for what is none, which its reader will name.

    Raises:
      PermissionError: if it may not be read.
      UserError: if the disk fails.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except PermissionError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
            return b""
        raise UserError(f"{readers.shown(str(path))}: {error.strerror}") from None


class _Cached:
    """``Dataset.read`` of a cache, which is made again if it is found to be damaged."""

    def __init__(self, records: cache.Records, name: str, split: str, sha256: str):
        self._records, self._name, self._split, self._sha256 = records, name, split, sha256

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._sound(lambda: self._records(indices))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """See ``Dataset.arrays``."""
        return self._sound(lambda: self._records.arrays())

    def _sound(self, read: Callable[[], tuple[np.ndarray, np.ndarray]]):
        with contextlib.suppress(cache.Damaged):
            return read()
        with _MENDING:
            self._records.close()
            with contextlib.suppress(cache.Damaged):  # another thread has made it again
                return read()
            if _load(self._name, self._split, deep=True).sha256 != self._sha256:
                reason = "the cache is damaged and the source changed"
                raise UserError(reason, argument="dataset", value=self._name)
            self._records.close()
            return read()


def _dataset(name: str, split: str, found: cache.Split, class_names, warnings, read) -> Dataset:
    return Dataset(
        name,
        split,
        read,
        found.shape,
        found.counts,
        class_names,
        found.sha256,
        found.low,
        found.high,
        found.mean,
        found.std,
        warnings,
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
