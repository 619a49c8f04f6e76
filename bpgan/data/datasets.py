"""Datasets by name. Each but the embedded digits is converted once, to files that are read at random (``cache.py``).

``mnist10k``
    10,000 real MNIST digits, shipped with bpgan; needs no network. Origin and license: ``bpgan/data/MNIST10K.md``.
    It is a part of the MNIST training set with a split of its own, so results on it are not results on MNIST.
``digits``
    1,797 digits of 8 x 8 pixels, which come with scikit-learn (Alpaydin and Kaynak 1998); it must be installed.
``mnist``, ``fashion_mnist``, ``kmnist``, ``cifar10``, ``cifar100``
    Downloaded when they are first used, and verified; see ``known.py``. What was converted once needs no network.
``npz:FILE``
    Arrays ``x`` (uint8, [n, h, w] or [n, h, w, c]) and, optionally, integer labels ``y`` [n]; or ``x_train``,
    ``y_train``, ``x_test``, ``y_test``.
``idx:PATH``
    The files of MNIST, gzipped or not: a directory of them, or one file of images with its labels beside it.
``folder:PATH``, ``zip:FILE``
    PNG, JPEG, WebP, AVIF, BMP, GIF and TIFF files in one folder per class, whose numbers are the order of the folders'
    names; or flat, without classes; or with a ``dataset.json`` like StyleGAN's, ``{"labels": [[path, class], ...]}``.
    Two top folders ``train`` and ``test`` are the splits, also as ``Training`` and ``Testing``, ``seg_train`` and
    ``seg_test``, ``train2017`` and ``val2017``. A folder around all of them does not count. ``folder:DIR/A``, where
    there is none, is one domain of a dataset of CycleGAN, ``DIR/trainA`` and ``DIR/testA``.
``tfds:NAME``
    What TensorFlow Datasets prepared as array_record (TensorFlow itself is not needed). Where nothing is prepared it
    is the entry of that name, if there is one, with the same examples in the same order.
``module:name``
    An object of your own code: a ``known.Row``; or a function ``load(split)`` that gives a ``Dataset`` or arrays ``x``
    (uint8, [n, h, w] or [n, h, w, c]) and ``y`` (integers [n]). Entries of ``DATASETS`` are the same.

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
import contextvars
import errno
import functools
import hashlib
import json
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from bpgan import download, files, lookup
from bpgan.data import attributes, cache, convert, known, names, readers
from bpgan.data.attributes import Attributes
from bpgan.types import UserError, counted

_MENDING = threading.RLock()
_FEW = 4 << 20  # bytes of the images that are read at once for their labels
_SOME = 32 << 20  # bytes of the images that stand for all of a split
_MOMENT = 2_000_000_000  # ns: the coarsest times of change that disks have


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
      words: of captions, in the order of their numbers (``captions``); () if there are none.
      prompts: some captions, to draw samples for.
      attributes: of the images, beside their labels (``attributes``); None if there are none.
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
    words: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    attributes: Attributes | None = None

    @property
    def length(self) -> int:
        """Number of examples."""
        return sum(self.counts)

    @property
    def classes(self) -> int:
        """Number of classes, the same for both splits."""
        return len(self.counts)

    @property
    def facts(self) -> dict[str, Any]:
        """What a model that was trained on it needs to be built again: all but the images, for JSON."""
        found: dict[str, Any] = {
            "name": self.name,
            "split": self.split,
            "shape": list(self.shape),
            "counts": list(self.counts),
            "class_names": list(self.class_names),
            "sha256": self.sha256,
        }
        if self.words:
            found |= {"words": list(self.words), "prompts": list(self.prompts)}
        if self.attributes and self.attributes.shown is not None:
            found |= {"attributes": self.attributes.facts}
        return found

    @property
    def is_absent(self) -> bool:
        """Whether its images are not there: it is made of ``facts``."""
        return self.read is _absent

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The whole split, ``x`` uint8 ``[n, h, w, c]`` and ``y`` int32 ``[n]``, in memory.

        Raises:
          UserError: if there is no memory for it; if the cache is damaged and the source is gone or has changed.
        """
        if isinstance(self.read, _Cached):
            return self.read.arrays()
        return cache.read_all(self.read, np.arange(self.length), self.shape)

    def outline(self) -> str:
        """A line of what is public where the images are not: nothing of how many there are of each class."""
        size = "x".join(map(str, self.shape))
        classes = counted(self.classes, "class", "classes")
        return f"{self.name} {self.split}: {counted(self.length, 'record')} {size}, {classes}"

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
            f"{self.name} {self.split}: {counted(self.length, 'image')} {'x'.join(map(str, self.shape))}"
            f" uint8 in [{self.low}, {self.high}], {classes}"
        )
        if self.attributes:
            facts += f"; attributes {', '.join(self.attributes.names[:20])}"
            facts += ", ..." * (len(self.attributes.names) > 20)
        return "\n".join([facts, *(f"warning: {w}" for w in self.warnings)])


_FACTS: contextvars.ContextVar[Mapping[str, Any] | None] = contextvars.ContextVar(
    "facts", default=None
)


@contextlib.contextmanager
def without_images(facts: Mapping[str, Any]) -> Iterator[None]:
    """Within, ``load`` gives a dataset of these ``Dataset.facts``, whatever its name: its images cannot be read.

    For a model that was trained, which is built again where its data are not. Nothing is held out of such a dataset:
    the facts are those of what was trained on.
    """
    token = _FACTS.set(facts)
    try:
        yield
    finally:
        _FACTS.reset(token)


def are_absent() -> bool:
    """Whether this is within ``without_images``."""
    return _FACTS.get() is not None


def _absent(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``Dataset.read`` of one that is absent."""
    raise UserError(
        "the images that the run was trained on are not looked for where it is loaded without them"
    )


def facts_given() -> Mapping[str, Any] | None:
    """The facts of ``without_images``; None outside of it."""
    return _FACTS.get()


def of_facts(facts: Mapping[str, Any]) -> Dataset:
    """A dataset whose images are absent, of its ``Dataset.facts``."""
    height, width, channels = facts["shape"]
    name, split, sha256 = facts["name"], facts["split"], facts["sha256"]
    counts, class_names = tuple(facts["counts"]), tuple(facts["class_names"])
    zeros = (0.0,) * channels
    shape = (height, width, channels)
    made = Dataset(
        name, split, _absent, shape, counts, class_names, sha256, 0, 255, zeros, zeros, ()
    )
    said = tuple(facts.get("words", ())), tuple(facts.get("prompts", ()))
    kept = attributes.of_facts(facts.get("attributes"))
    return made._replace(words=said[0], prompts=said[1], attributes=kept)


def load(name: str | names.Name, split: str = "train", *, mirror: str = "") -> Dataset:
    """A split of a dataset, which is converted when it is first asked for, or has changed since.

    Args:
      name: one of ``names.forms()``; see above. Or what ``names.parse`` made of it.
      split: ``train`` or ``test``.
      mirror: an http or https URL of a folder, where files are downloaded from in place of those of the ``known.Row``.

    Raises:
      UserError: if the dataset is unknown, missing, unreadable or of the wrong form, or cannot be downloaded or
        converted.
    """
    if split not in cache.SPLITS:
        raise ValueError(f"split={split!r}: must be one of {', '.join(cache.SPLITS)}")
    if (facts := facts_given()) is not None:
        return of_facts(facts)
    if mirror:
        try:
            download.check_url(mirror)
        except ValueError as error:
            given = " ".join(mirror.split())
            raise UserError(str(error), argument="mirror", value=given) from None
    return _load(_named(name) if isinstance(name, str) else name, split, mirror=mirror)


def _named(text: str) -> names.Name:
    try:
        return names.parse(text)
    except ValueError as error:
        raise UserError(str(error), argument="dataset", value=text) from None


def _load(name: names.Name, split: str, *, mirror: str = "", deep: bool = False) -> Dataset:
    try:
        if name.kind or isinstance(name.source, known.Row):
            return _converted(name, split, mirror=mirror, deep=deep)
        return _own(name.text, name.source, split)
    except UserError as error:
        if error.argument:
            raise
        reason = " ".join(error.reason.splitlines())
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
    except MemoryError:
        reason = "not enough memory to read it"
    raise UserError(reason, argument="dataset", value=name.text)


def of_arrays(name: str, split: str, x: np.ndarray, y: np.ndarray, classes: int) -> Dataset:
    """Arrays in memory as a split: ``x`` uint8 ``[n, h, w, c]``, labels ``y`` int ``[n]`` in ``range(classes)``."""
    tally = cache.Tally(x.shape[1:], classes)
    tally.add(x, y.astype(np.int32))
    found = files.convert({**tally.result(), "bytes": 0, "warnings": ()}, cache.Split)
    return _dataset(name, split, found, (), (), functools.partial(_rows, x, y))


def load_for_training(
    name: str | names.Name, held_out: bool = False
) -> tuple[Dataset, Dataset | None]:
    """The training split, and if ``held_out`` a part of it that is set apart (``hold_out``), else None.

    Raises:
      UserError: as ``load`` and ``hold_out``.
    """
    images = load(name)
    return hold_out(images) if held_out and not images.is_absent else (images, None)


def hold_out(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """``(rest, validation)``: a tenth of a split, at most 10,000 examples, set apart.

    The same ones whatever the seed of a run, chosen at random. ``low``, ``high``, ``mean``, ``std`` and the warnings of
    both are those of the whole.

    Raises:
      UserError: if there are fewer than 20 examples.
    """
    n = dataset.length
    if dataset.is_absent:
        return dataset, dataset
    if n < 20:
        reason = f"{counted(n, 'example is', 'examples are')} too few to hold some out"
        raise UserError(reason, argument="dataset", value=dataset.name)
    chosen = np.zeros(n, bool)
    chosen[np.random.RandomState(0).permutation(n)[: min(n // 10, 10_000)]] = True
    held, rest = divide(dataset, chosen, ("validation", f"{dataset.split} without a tenth"))
    return rest, held


def divide(dataset: Dataset, chosen: np.ndarray, names: tuple[str, str]) -> tuple[Dataset, Dataset]:
    """The examples where ``chosen``, bool ``[n]``, is true, and the others, each in order, as splits of these names."""
    first, second = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    tally = np.array([len(first)])
    if dataset.classes > 1:
        step = max(1, _FEW // int(np.prod(dataset.shape)))  # images may be large
        labels = [dataset.read(first[i : i + step])[1] for i in range(0, len(first), step)]
        tally = np.bincount(np.concatenate(labels), minlength=dataset.classes)

    def part(split: str, rows: np.ndarray, counts: np.ndarray) -> Dataset:
        digest = hashlib.sha256(bytes.fromhex(dataset.sha256) + rows.astype("<i8").tobytes())
        return dataset._replace(
            split=split,
            read=functools.partial(_part, dataset.read, rows),
            counts=tuple(counts.tolist()),
            sha256=digest.hexdigest(),
            attributes=dataset.attributes.rows(rows) if dataset.attributes else None,
        )

    others = np.asarray(dataset.counts) - tally
    return part(names[0], first, tally), part(names[1], second, others)


def derived(
    dataset: Dataset,
    shape: tuple[int, int, int],
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    *origins: str,
) -> Dataset:
    """Other images made of those of a dataset, one of each, with the same labels.

    Args:
      dataset: whose name, split, labels and warnings they have.
      shape: of the new images.
      read: as ``Dataset.read``.
      origins: all that the images depend on, such as the SHA-256 of what they are made of. The ``sha256`` is of these
        and of examples, as ``read`` makes them, for what is made may change with the version. Of the same examples, at
        most 1,000 that are spread over the split, are ``low``, ``high``, ``mean`` and ``std``.
    """
    most = int(np.clip(_SOME // np.prod(shape), 1, 1000))
    rows = np.linspace(0, dataset.length - 1, min(dataset.length, most)).round().astype(np.int64)
    x, y = read(rows)
    flat = (1, shape[2], 1) if shape[:2] == (1, 1) else shape  # a row of bytes has no channels
    tally = cache.Tally(flat, dataset.classes)
    tally.add(x.reshape(-1, *flat), y)
    seen = files.convert({**tally.result(), "bytes": 0, "warnings": ()}, cache.Split)
    digest = hashlib.sha256("\0".join([*origins, seen.sha256]).encode()).hexdigest()
    return dataset._replace(
        read=read,
        shape=shape,
        sha256=digest,
        low=seen.low,
        high=seen.high,
        mean=seen.mean,
        std=seen.std,
    )


def _part(read: Callable, rows: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return read(rows[indices])


def _rows(x: np.ndarray, y: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    indices = np.asarray(indices, np.int64)
    if (indices < 0).any():
        raise IndexError(f"index {indices.min()} is negative")
    return x[indices], y[indices].astype(np.int32)


def _own(text: str, load: Callable[[str], Any], split: str) -> Dataset:
    """What a function gives, as a split."""
    found = _given(load, split)
    if isinstance(found, Dataset):
        return found._replace(name=text)
    most = max(int(_arrays_of(load, part)[1].max(initial=0)) for part in cache.SPLITS)
    # Small when pickled: the arrays are loaded again.
    return of_arrays(text, split, *found, most + 1)._replace(
        read=functools.partial(_read_own, load, split)
    )


@functools.lru_cache(maxsize=4)
def _given(load: Callable[[str], Any], split: str) -> Dataset | tuple[np.ndarray, np.ndarray]:
    """A dataset as a function gives it, or images uint8 ``[n, h, w, c]`` and labels int32 ``[n]``; else a UserError."""
    with lookup.mistakes():
        found = load(split)
    if isinstance(found, Dataset):
        return found
    if not isinstance(found, tuple) or len(found) != 2:
        raise UserError(f"gave a {type(found).__name__}, must give a Dataset or arrays (x, y)")
    with lookup.mistakes():
        x, y = map(np.asarray, found)
    readers.check_arrays(x, y, f"x of {split}", f"y of {split}")
    y = y.reshape(-1)
    if y.min() < 0 or y.max() >= 1 << 31:
        raise UserError(f"labels go from {y.min()} to {y.max()}, must be class numbers from 0")
    return x if x.ndim == 4 else x[..., None], y.astype(np.int32)


def _arrays_of(load: Callable[[str], Any], split: str) -> tuple[np.ndarray, np.ndarray]:
    """The arrays that a function gives, whose other split is arrays."""
    found = _given(load, split)
    if isinstance(found, Dataset):
        raise UserError(
            f"gave a Dataset for {split}, must give arrays (x, y) as for the other split"
        )
    return found


def _read_own(load: Callable[[str], Any], split: str, indices: np.ndarray):
    return _rows(*_arrays_of(load, split), indices)


def _converted(name: names.Name, split: str, *, mirror: str, deep: bool) -> Dataset:
    """What a reader reads, from its cache."""
    raw = _raw(name, mirror)
    origin = _origin(name, raw)
    key = hashlib.sha256(json.dumps(origin.identity).encode()).hexdigest()[:16]
    kind = origin.identity["kind"]
    published = not raw.digest and names.kind_of(name).published
    stem = known.plain(name.argument if published else raw.path.stem)
    folder = cache.directory() / f"{kind}-{stem}-{key}"

    def make(directory: pathlib.Path) -> dict[str, Any]:
        content = origin.content()
        made = convert.convert(raw.examples(), name.form, name.skip, directory, name.text)
        now = _raw(name, mirror)
        if now.files != raw.files and _content(now.path, tuple(now.files), name.text) != content:
            raise UserError("its files were changed while they were read; repeat the command")
        return {"content": content or "", **made}

    manifest = cache.entry(folder, origin, make, deep=deep)
    found = manifest.splits[split]
    if not found.count:
        raise UserError(f"the {split} split has no examples")
    path = folder / f"{split}.array_record"
    records = cache.Records(path, found.count, found.shape, found.sha256)
    has = _attributes(manifest, folder, split)
    sha256 = _with_attributes(found.sha256, has)
    read = _Cached(records, name, split, sha256)
    made = _dataset(name.text, split, found, manifest.class_names, found.warnings, read)
    return made._replace(attributes=has, sha256=sha256)


def _attributes(manifest: cache.Manifest, folder: pathlib.Path, split: str) -> Attributes | None:
    """Those that a cache has of a split."""
    if manifest.attributes is None:
        return None
    here, train = (
        attributes.decoded(manifest.read_attributes(folder, which)) for which in (split, "train")
    )
    return attributes.described(manifest.attributes.names, here, train)


def _with_attributes(sha256: str, has: Attributes | None) -> str:
    """The digest of images and labels and, where there are such, of attributes."""
    return hashlib.sha256(f"{sha256} {has.digest}".encode()).hexdigest() if has else sha256


def with_attributes(
    dataset: Dataset, names: tuple[str, ...], values: np.ndarray, train: np.ndarray
) -> Dataset:
    """A split with attributes beside its labels.

    Args:
      dataset: the split.
      names: of the attributes.
      values: of its images ``[n, a]``.
      train: of those of the training split ``[m, a]``.

    Raises:
      UserError: as ``attributes.checked`` and ``attributes.described``.
    """
    called, numbers = attributes.checked(values, dataset.length, names, "attributes")
    has = attributes.described(called, numbers, train)
    return dataset._replace(attributes=has, sha256=_with_attributes(dataset.sha256, has))


def for_conditions(dataset: Dataset) -> Dataset:
    """A split of a model that is conditioned on its attributes, too: its ``facts`` have some of them."""
    has = dataset.attributes
    if has is None or dataset.is_absent:
        return dataset
    return dataset._replace(attributes=attributes.choose_shown(dataset.read, has, dataset.length))


def _raw(name: names.Name, mirror: str) -> readers.Raw:
    if not name.kind:
        return known.of_row(name.source, name.argument, mirror)
    kind = names.kind_of(name)
    return kind.reader(name.source, **({"mirror": mirror} if kind.published else {}))


def _origin(name: names.Name, raw: readers.Raw) -> cache.Origin:
    """The source of a cache: its names, sizes and times of modification are its identity; or its digest."""
    identity = {
        "version": cache.VERSION,
        "kind": "download" if raw.digest else name.kind,
        "source": readers.shown(str(raw.path)) if not raw.digest else "",
        "options": {**name.form._asdict(), "skip": name.skip, **raw.options},
        "fingerprint": {
            "files": len(raw.files),
            "bytes": sum(size for _, size, *_ in raw.files),
            "sha256": raw.digest or _digest(file[:3] for file in raw.files),
        },
    }
    if raw.digest:
        return cache.Origin(identity, raw.digest, lambda: "")
    stamps = _digest(raw.files)
    # What was changed a moment ago may be changed again without another time: some disks count in seconds.
    settled = max((changed for *_, changed in raw.files), default=0) < time.time_ns() - _MOMENT
    read = _content_once if settled else _content
    content = functools.partial(read, raw.path, tuple(raw.files), f"{name.kind}:{raw.path}")
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

    def __init__(self, records: cache.Records, name: names.Name, split: str, sha256: str):
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
                raise UserError(reason, argument="dataset", value=self._name.text)
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
