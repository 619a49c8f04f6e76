"""Datasets converted once to array_record: one file per split, and a manifest of what is in it.

A record is the pixels of one example, ``h * w * c`` bytes, and its label, a little-endian int32. A conversion works in
a directory that is locked as long as its process lives and renamed at the end: a killed one leaves nothing that looks
finished, and two processes that want the same convert it once. Where the disk has no locks, each converts it and the
first to end is used. What is sound is only read, so that a cache may lie on a read-only disk; what is damaged stays
until a new one is there to take its place.
"""

import contextlib
import errno
import hashlib
import importlib
import json
import os
import pathlib
import re
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from bpgan import files, memory
from bpgan.data import flat
from bpgan.types import UserError

VERSION = 3
"""Of the format and of what is made of images; part of every cache's name."""

SPLITS = ("train", "test")

_BLOCK = 32 << 20  # bytes of pixels that are read at once
_LARGEST = 1 << 28  # bytes of a manifest
_ENTRIES = 1000  # tries to enter a directory that other processes keep renaming and removing

Pixel = Annotated[int, msgspec.Meta(ge=0, le=255)]
Side = Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]


class Damaged(UserError):
    """A cache that is not what its manifest says."""


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """What a manifest says of a split; see ``Tally.result``. ``bytes``: of the record file."""

    count: files.Count
    shape: tuple[Side, Side, Side]
    counts: tuple[files.Count, ...]
    low: Pixel
    high: Pixel
    mean: tuple[float, ...]
    std: tuple[float, ...]
    constant: files.Count
    identical: bool
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    bytes: files.Count
    warnings: tuple[str, ...]


class AttributeFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes of the images: their names, and the SHA-256 of ``SPLIT.attributes.npy`` by split."""

    names: tuple[str, ...]
    sha256: dict[str, str]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of a ``manifest.json``; beside it, that has the identity of its source and a checksum of itself.

    Attributes:
      stamps, content: of the source when it was read last; see ``Origin``.
      class_names: by label.
      splits: ``train`` and ``test``.
      attributes: None if there are none.
    """

    stamps: str
    content: str
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    attributes: AttributeFiles | None = None

    def read_attributes(self, folder: pathlib.Path, split: str) -> bytes:
        """The file of the attributes of a split. Raises Damaged if it is not what it was."""
        assert self.attributes is not None
        path = folder / f"{split}.attributes.npy"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Damaged(f"{path}: damaged ({error.strerror})") from None
        if hashlib.sha256(data).hexdigest() != self.attributes.sha256.get(split):
            raise Damaged(f"{path}: damaged (checksum differs)")
        return data


class Origin(NamedTuple):
    """The source of a cache as it is now.

    Attributes:
      identity: of the source and the options, as JSON; another one has a cache of its own.
      stamps: a digest of what a change of the source would change, with or without its content; empty: unknown.
      content: gives the digest of the content, which takes as long as reading all of it; None if that is forbidden.
    """

    identity: Mapping[str, Any]
    stamps: str
    content: Callable[[], str | None]


def directory() -> pathlib.Path:
    """Where caches lie: $BPGAN_DATA_DIR, or bpgan/data in $XDG_CACHE_HOME or ~/.cache.

    Raises:
      UserError: for a user without a home directory, as in a container, if neither is set.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    default = os.path.join(base if os.path.isabs(base) else "~/.cache", "bpgan", "data")
    given = os.environ.get("BPGAN_DATA_DIR") or default
    path = os.path.expanduser(given)
    if path.startswith("~"):
        raise UserError(f"{given}: there is no such home directory; BPGAN_DATA_DIR names another")
    return pathlib.Path(path).absolute()


def entry(
    folder: pathlib.Path,
    origin: Origin,
    make: Callable[[pathlib.Path], Mapping[str, Any]],
    *,
    deep: bool = False,
) -> Manifest:
    """The manifest of a cache, which is made if it is missing or damaged, or if the content of its source is another.

    Args:
      folder: of the cache.
      origin: of the cache.
      make: ``make(directory)`` writes the record files and returns ``content``, ``class_names`` and ``splits`` of the
        manifest. Called at most once, in one process at a time.
      deep: read all of an existing cache and compare checksums, not only the sizes of files.

    Raises:
      UserError: if it cannot be read or written; whatever ``make`` raises.
    """
    with contextlib.suppress(FileNotFoundError, Damaged):
        return _intact(folder, origin, deep)
    try:
        with _locked(folder) as temporary:
            try:
                return _intact(folder, origin, deep)  # another process made it meanwhile
            except FileNotFoundError:
                pass
            except Damaged as error:
                print(f"{error}: making it again", file=sys.stderr, flush=True)
            _sweep(folder.parent)
            manifest = {**origin.identity, "stamps": origin.stamps, **make(temporary)}
            _write(temporary, manifest)
            with contextlib.suppress(FileNotFoundError, Damaged):  # without locks others are at it
                return _intact(folder, origin, deep)
            _replace(temporary, folder)
        return _checked(json.loads(json.dumps(_with_seal(manifest))), origin.identity)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"{folder.parent}: cannot write converted data there ({reason});"
            " the environment variable BPGAN_DATA_DIR names another directory"
        ) from None


def _intact(folder: pathlib.Path, origin: Origin, deep: bool) -> Manifest:
    """The manifest of a cache.

    Where the source has other stamps its content is compared; if that is the same, the new stamps are kept.

    Raises:
      FileNotFoundError: if there is none.
      Damaged: if it is not right, or of another content.
      UserError: if it cannot be read, which says nothing of whether it is right.
    """
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise Damaged(f"{folder}: damaged (no directory)")
        path = folder / "manifest.json"
        if not 0 < _size(path) < _LARGEST:
            raise Damaged(f"{path}: damaged ({_size(path)} bytes)")
        found = files.decode(path.read_bytes(), dict[str, Any])
        manifest = _checked(found, origin.identity)
        for name, split in manifest.splits.items():
            path = folder / f"{name}.array_record"
            if _size(path) != split.bytes:
                raise Damaged(f"{path}: {_size(path)} bytes, must be {split.bytes}")
            if manifest.attributes:
                manifest.read_attributes(folder, name)
            if deep:
                Records(path, split.count, split.shape, split.sha256).arrays()
        if not origin.stamps or origin.stamps != manifest.stamps:
            if origin.content() not in (None, manifest.content):
                raise Damaged(f"{folder}: its source was changed")
            if origin.stamps:
                with contextlib.suppress(OSError):
                    _write(folder, {**found, "stamps": origin.stamps})
    except ValueError as error:
        raise Damaged(f"{folder}: damaged (manifest.json: {error})") from None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None
        if not os.path.lexists(folder):
            raise FileNotFoundError(folder) from None
        raise Damaged(f"{folder}: damaged ({error.filename}: {error.strerror})") from None
    return manifest


def _size(path: pathlib.Path) -> int:
    """Bytes of a file. Raises Damaged for what is none, such as a directory or a pipe."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise Damaged(f"{path}: damaged (no regular file)")
    return about.st_size


def _checked(found: dict[str, Any], identity: Mapping[str, Any]) -> Manifest:
    """A manifest whose checksum is right, which is of that source, and fits together. Raises ValueError."""
    if found.get("sha256") != _sealed(found):
        raise ValueError("not what was written")
    if {key: found.get(key) for key in identity} != json.loads(json.dumps(identity)):
        raise ValueError("of another source")
    manifest = files.convert(found, Manifest)
    if set(manifest.splits) != set(SPLITS):
        raise ValueError(f"splits {', '.join(manifest.splits)[:60]}")
    for split in manifest.splits.values():
        if sum(split.counts) != split.count or len(split.mean) != split.shape[2]:
            raise ValueError("numbers that contradict each other")
    return manifest


def _write(folder: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    files.write_json(folder / "manifest.json", _with_seal(manifest))


def _with_seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {**manifest, "sha256": _sealed(manifest)}


def _sealed(manifest: Mapping[str, Any]) -> str:
    """The checksum of all else in a manifest."""
    rest = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary directory beside ``folder`` that belongs to this process until it is renamed or removed."""
    shared = folder.with_name(folder.name + ".tmp")
    file = _entered(shared, f"{folder}: another process is writing it; waiting")
    own = file is not None
    temporary = shared if own else _beside(folder, ".tmp")
    try:
        yield temporary
    finally:
        if not own or files.is_at(file.fileno(), temporary / "lock"):
            shutil.rmtree(temporary, ignore_errors=True)
        if own:
            file.close()


def _beside(folder: pathlib.Path, suffix: str) -> pathlib.Path:
    """A new directory that only this process knows, whose name says which process that is."""
    prefix = f"{folder.name}.{os.uname().nodename}-{os.getpid()}-"
    return pathlib.Path(tempfile.mkdtemp(suffix=suffix, prefix=prefix, dir=folder.parent))


def _entered(shared: pathlib.Path, waiting: str) -> Any:
    """The open lock of a directory, which is made; None if the disk has no locks."""
    for _ in range(_ENTRIES):
        if shared.is_symlink() or shared.exists() and not shared.is_dir():
            _remove(shared)
        shared.mkdir(parents=True, exist_ok=True)
        try:
            if (shared / "lock").exists() and not (shared / "lock").is_file():
                _remove(shared)
                continue
            file = (shared / "lock").open("w", encoding="utf-8")
        except FileNotFoundError:  # renamed or removed this moment
            continue
        if files.lock(file, waiting):  # the disk has no locks
            file.close()
            shutil.rmtree(shared, ignore_errors=True)
            return None
        if files.is_at(file.fileno(), shared / "lock"):
            return file
        file.close()
    raise OSError(errno.EBUSY, "others keep removing it", str(shared))


def _replace(temporary: pathlib.Path, folder: pathlib.Path) -> None:
    """Puts a finished cache where it belongs, and only then removes the damaged one that is there."""
    old = _beside(folder, ".old")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old / "damaged")
    try:
        temporary.rename(folder)
    except OSError as error:  # without locks another may have been faster
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    (folder / "lock").unlink(missing_ok=True)
    _remove(old)


def _remove(path: pathlib.Path) -> None:
    """Removes whatever has that name, if anything has."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sweep(parent: pathlib.Path) -> None:
    """Removes what dead processes left behind: temporary directories that nobody has locked, or whose maker is gone."""
    for place in parent.glob("*.tmp/lock"):
        with contextlib.suppress(OSError), place.open("r+", encoding="utf-8") as file:
            if not files.lock(file) and files.is_at(file.fileno(), place):
                shutil.rmtree(place.parent)
    for place in parent.iterdir():
        maker = re.fullmatch(r".+-[0-9a-f]{16}\.(.+)-(\d+)-\w+\.(tmp|old)", place.name)
        if maker and maker[1] == os.uname().nodename and not _lives(int(maker[2])):
            with contextlib.suppress(OSError):
                _remove(place)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def read_all(
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    indices: np.ndarray,
    shape: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """``read(indices)``, block by block, which takes the memory of the result only once.

    Raises:
      UserError: if there is not that much; whatever ``read`` raises.
    """
    n, size = len(indices), int(np.prod(shape))
    need = n * (size + 8) + 2 * max(size, _BLOCK)
    memory.require(need, f"{n:,} images of {'x'.join(map(str, shape))} in memory")
    x, y = np.empty((n, *shape), np.uint8), np.empty(n, np.int32)
    step = max(1, min(4096, _BLOCK // size))
    for start in range(0, n, step):
        x[start : start + step], y[start : start + step] = read(indices[start : start + step])
    return x, y


def _library() -> Any:
    """What reads and writes record files: array_record, or ``flat`` where that is not installed."""
    try:
        return importlib.import_module("array_record.python.array_record_module")
    except ModuleNotFoundError:
        return flat


class Records:
    """The examples of one record file, by their numbers. Threads may share it; a pickled copy opens the file anew.

    Args:
      path: of the file, which is opened when it is first read.
      count: of the records.
      shape: ``(h, w, c)`` of an example.
      sha256: of the content; see ``Tally.result``.
    """

    def __init__(self, path: pathlib.Path, count: int, shape: tuple[int, ...], sha256: str):
        self._path, self._count, self._shape, self._sha256 = path, count, shape, sha256
        self._size = int(np.prod(shape))
        self._lock = threading.Lock()
        self._reader: Any = None

    def __reduce__(self):
        return Records, (self._path, self._count, self._shape, self._sha256)

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 ``[k, h, w, c]`` and labels int32 ``[k]`` at ``indices`` int ``[k]``.

        Raises:
          IndexError: if an index is not in ``range(count)``.
          Damaged: if the file is missing or not what it should be.
          UserError: if it cannot be read.
        """
        indices = np.asarray(indices, np.int64).reshape(-1)
        if len(indices) and (indices.min() < 0 or indices.max() >= self._count):
            raise IndexError(f"indices {indices.min()} to {indices.max()} of {self._count} records")
        try:
            found = self._open().read(indices.tolist())
        except RuntimeError as error:  # array_record's checksums
            raise self._damaged(str(error).splitlines()[0][:120]) from None
        if any(len(record) != self._size + 4 for record in found):
            raise self._damaged("records of a wrong length")
        rows = np.frombuffer(b"".join(found), np.uint8).reshape(len(indices), self._size + 4)
        y = np.ascontiguousarray(rows[:, self._size :]).view("<i4")[:, 0].astype(np.int32)
        return rows[:, : self._size].reshape(len(indices), *self._shape), y

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All examples, in order.

        Raises:
          Damaged: if they are not those of the checksum.
          UserError: if there is no memory for them.
        """
        x, y = read_all(self, np.arange(self._count), self._shape)
        digest = hashlib.sha256(np.array(self._shape, "<i4").tobytes())
        digest.update(x.data)
        digest.update(y.astype("<i4").tobytes())
        if digest.hexdigest() != self._sha256:
            raise self._damaged("checksum differs")
        return x, y

    def close(self) -> None:
        """Forgets the open file; the next read opens it again."""
        self._reader = None

    def _open(self) -> Any:
        with self._lock:
            if self._reader is None:
                self._check()
                # A read-ahead would read megabytes for each record.
                options = "readahead_buffer_size:0"
                reader = _library().ArrayRecordReader(str(self._path), options=options)
                if reader.num_records() != self._count:
                    raise self._damaged(f"{reader.num_records()} records for {self._count}")
                self._reader = reader
            return self._reader

    def _check(self) -> None:
        """Raises the error for a file that is missing, cannot be read, or was made again of another content.

        array_record has one error for all.
        """
        try:
            os.close(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK))
            raw = self._path.with_name("manifest.json").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise self._damaged("missing") from None
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read ({error.strerror})") from None
        try:
            splits = files.decode(raw, Manifest).splits
        except ValueError as error:
            raise self._damaged(f"manifest.json: {error}") from None
        split = splits.get(self._path.stem)
        if split is None or split.sha256 != self._sha256:
            raise self._damaged("of another content")

    def _damaged(self, why: str) -> Damaged:
        return Damaged(f"{self._path}: damaged ({why})")


class Tally:
    """Counts what is in a split while it goes by."""

    def __init__(self, shape: tuple[int, ...], classes: int):
        self._shape, self._classes = tuple(shape), classes
        self._labels = [np.zeros(0, "<i4")]
        self._digest = hashlib.sha256(np.array(shape, "<i4").tobytes())
        self._low, self._high, self._constant = 255, 0, 0
        self._first: np.ndarray | None = None
        self._identical = True
        self._sums, self._squares = [0] * shape[2], [0] * shape[2]

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Images uint8 ``[k, h, w, c]``, ``k`` at least 1, and their labels, the next of the split."""
        self._digest.update(np.ascontiguousarray(x).data)
        self._labels.append(y.astype("<i4"))
        self._first = x[0].copy() if self._first is None else self._first
        self._identical = self._identical and bool((x == self._first).all())
        pixels = x.reshape(len(x), -1, self._shape[2])
        self._constant += int((pixels == pixels[:, :1]).all((1, 2)).sum())
        self._low, self._high = min(self._low, int(x.min())), max(self._high, int(x.max()))
        # A strided pass per channel is several times faster than sums over axes.
        for c in range(self._shape[2]):
            channel = pixels[..., c].astype(np.uint16)
            self._sums[c] += int(channel.sum(dtype=np.int64))
            self._squares[c] += int(np.square(channel).sum(dtype=np.int64))  # 255^2 < 2^16

    def result(self) -> dict[str, Any]:
        """What a manifest says of a split.

        ``sha256`` is of ``(h, w, c)`` as int32, then all pixels, then all labels as int32. ``mean`` and ``std`` are of
        the channels of ``x / 255``; ``constant`` is the number of images of a single color.
        """
        y = np.concatenate(self._labels)
        digest = self._digest.copy()
        digest.update(y.tobytes())
        n = max(1, len(y) * self._shape[0] * self._shape[1])
        sums = list(zip(self._sums, self._squares, strict=True))
        return {
            "count": len(y),
            "shape": list(self._shape),
            "counts": np.bincount(y, minlength=self._classes).tolist(),
            "low": self._low,
            "high": self._high,
            "mean": [total / n / 255 for total, _ in sums],
            "std": [(square * n - total**2) ** 0.5 / n / 255 for total, square in sums],
            "constant": self._constant,
            "identical": self._identical,
            "sha256": digest.hexdigest(),
        }


class Writer:
    """Writes the record file of a split. All methods raise OSError if that fails.

    Args:
      path: of the file.
      shape: ``(h, w, c)`` of an example.
      classes: number of classes.
    """

    def __init__(self, path: pathlib.Path, shape: tuple[int, ...], classes: int):
        self._path, self._tally = path, Tally(shape, classes)
        with self._errors():
            # A record per group is what makes random access cheap.
            self._file = _library().ArrayRecordWriter(str(path), "group_size:1,uncompressed")

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Appends images uint8 ``[k, h, w, c]``, ``k`` at least 1, and their labels."""
        with self._errors():
            for image, label in zip(x, y.astype("<i4"), strict=True):
                self._file.write(image.tobytes() + label.tobytes())
        self._tally.add(x, y)

    def close(self) -> dict[str, Any]:
        """Ends the file. Returns what the manifest says of the split."""
        with self._errors():
            self._file.close()
        return {**self._tally.result(), "bytes": self._path.stat().st_size}

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # array_record has no other
            raise OSError(str(error).partition(";")[0]) from None
