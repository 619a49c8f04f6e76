"""Datasets converted once to array_record: one file per split, and a manifest of what is in it.

A record is the pixels of one example, ``h * w * c`` bytes, and its label, a little-endian int32. A conversion works in
a directory that is locked as long as its process lives and renamed at the end: a killed one leaves nothing that looks
finished, and two processes that want the same convert it once.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bpgan.types import UserError

VERSION = 1
"""Of the format; part of every cache's name."""

SPLITS = ("train", "test")

_BLOCK = 32 << 20  # bytes of pixels that are read at once


class Damaged(UserError):
    """A cache that is not what its manifest says."""


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


def entry(folder: pathlib.Path, make: Callable[[pathlib.Path], Any], *, deep: bool = False) -> Any:
    """The manifest of a cache, which is made if it is missing or damaged.

    Args:
      folder: of the cache.
      make: ``make(directory)`` writes the record files and returns the manifest, with ``splits[name]["bytes"]`` and
        all else that ``Records`` needs. Called at most once, in one process at a time.
      deep: read all of an existing cache and compare checksums, not only the sizes of files.

    Raises:
      UserError: if it cannot be written; whatever ``make`` raises.
    """
    if not deep:
        with contextlib.suppress(FileNotFoundError, Damaged):
            return _intact(folder, deep=False)
    try:
        with _locked(folder) as temporary:
            try:
                return _intact(folder, deep)
            except FileNotFoundError:
                pass
            except Damaged as error:
                print(f"{error}: making it again", file=sys.stderr, flush=True)
                shutil.rmtree(folder)
            _sweep(folder.parent)
            manifest = {"version": VERSION, **make(temporary)}
            manifest["sha256"] = _sealed(manifest)
            (temporary / "manifest.json").write_text(
                json.dumps(manifest, indent=1) + "\n", encoding="utf-8"
            )
            temporary.rename(folder)
            (folder / "lock").unlink()
            return json.loads(json.dumps(manifest))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"{folder.parent}: cannot write converted data there ({reason});"
            " the environment variable BPGAN_DATA_DIR names another directory"
        ) from None


def _intact(folder: pathlib.Path, deep: bool) -> Any:
    """The manifest of a cache. Raises FileNotFoundError if there is none, Damaged if it is not right."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["sha256"] != _sealed(manifest):
            raise ValueError("manifest.json is not what was written")
        for name, split in manifest["splits"].items():
            path = folder / f"{name}.array_record"
            if path.stat().st_size != split["bytes"]:
                raise Damaged(f"{path}: {path.stat().st_size} bytes, must be {split['bytes']}")
            if deep:
                Records(path, split["count"], tuple(split["shape"])).arrays(split["sha256"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Damaged(f"{folder}: damaged ({' '.join(str(error).split())})") from None
    return manifest


def _sealed(manifest: dict[str, Any]) -> str:
    """The checksum of all else in a manifest."""
    rest = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary directory beside ``folder`` that belongs to this process until it is renamed or removed."""
    import fcntl

    temporary = folder.with_name(folder.name + ".tmp")
    while True:
        temporary.mkdir(parents=True, exist_ok=True)
        try:
            file = (temporary / "lock").open("w", encoding="utf-8")
        except FileNotFoundError:  # renamed or removed this moment
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process is writing it; waiting", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        if _is(temporary / "lock", file):
            break
        file.close()
    try:
        yield temporary
    finally:
        if _is(temporary / "lock", file):
            shutil.rmtree(temporary, ignore_errors=True)
        file.close()


def _is(path: pathlib.Path, file: Any) -> bool:
    """Whether the open file still has that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _sweep(parent: pathlib.Path) -> None:
    """Removes what dead processes left behind: temporary directories that nobody has locked."""
    import fcntl

    for lock in parent.glob("*.tmp/lock"):
        with contextlib.suppress(OSError), lock.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(lock, file):
                shutil.rmtree(lock.parent)


class Records:
    """The examples of one record file, by their numbers. Threads may share it; a pickled copy opens the file anew.

    Args:
      path: of the file, which is opened when it is first read.
      count: of the records.
      shape: ``(h, w, c)`` of an example.
    """

    def __init__(self, path: pathlib.Path, count: int, shape: tuple[int, ...]):
        self._path, self._count, self._shape = path, count, shape
        self._size = int(np.prod(shape))
        self._lock = threading.Lock()
        self._reader: Any = None

    def __reduce__(self):
        return Records, (self._path, self._count, self._shape)

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 ``[k, h, w, c]`` and labels int32 ``[k]`` at ``indices`` int ``[k]``.

        Raises:
          IndexError: if an index is not in ``range(count)``.
          UserError: if the file is missing or damaged.
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

    def arrays(self, sha256: str) -> tuple[np.ndarray, np.ndarray]:
        """All examples, in order. Raises Damaged if they are not those of the checksum."""
        x = np.empty((self._count, *self._shape), np.uint8)
        y = np.empty(self._count, np.int32)
        step = max(1, min(4096, _BLOCK // self._size))
        for start in range(0, self._count, step):
            part = slice(start, min(start + step, self._count))
            x[part], y[part] = self(np.arange(part.start, part.stop))
        digest = hashlib.sha256(np.array(self._shape, "<i4").tobytes())
        digest.update(x.data)
        digest.update(y.astype("<i4").tobytes())
        if digest.hexdigest() != sha256:
            raise self._damaged("checksum differs")
        return x, y

    def close(self) -> None:
        """Forgets the open file; the next read opens it again."""
        self._reader = None

    def _open(self) -> Any:
        with self._lock:
            if self._reader is None:
                from array_record.python.array_record_module import ArrayRecordReader

                # A read-ahead would read megabytes for each record.
                reader = ArrayRecordReader(str(self._path), options="readahead_buffer_size:0")
                if reader.num_records() != self._count:
                    raise self._damaged(f"{reader.num_records()} records for {self._count}")
                self._reader = reader
            return self._reader

    def _damaged(self, why: str) -> Damaged:
        return Damaged(
            f"{self._path}: damaged ({why}); delete {self._path.parent} to have it made again"
        )


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
        for c in range(
            self._shape[2]
        ):  # a strided pass per channel is several times faster than sums over axes
            channel = pixels[..., c].astype(np.uint16)
            self._sums[c] += int(channel.sum(dtype=np.int64))
            self._squares[c] += int(np.square(channel).sum(dtype=np.int64))  # 255^2 < 2^16

    def result(self) -> dict[str, Any]:
        """What a manifest says of a split.

        ``sha256`` is of ``(h, w, c)`` as int32, then all pixels, then all labels as int32. ``mean`` and ``std`` are of
        the channels of ``x / 255``; ``constant`` is the number of images of a single colour.
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
            from array_record.python.array_record_module import ArrayRecordWriter

            # A record per group is what makes random access cheap.
            self._file = ArrayRecordWriter(str(path), "group_size:1,uncompressed")

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
