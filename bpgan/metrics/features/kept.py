"""Arrays kept on disk to save time: used if they are sound; whatever else lies in their place only costs that time.

A cache may lie on a disk that is full, read-only or without locks, and be damaged in any way.
"""

import contextlib
import math
import os
import pathlib
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np

from bpgan import files

_OF = "of"  # the array that says what the others are of: the file's own name


def load(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """The arrays that ``save`` kept under this name; None unless they are whole.

    Their sizes are compared with that of the file before any is made.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for its other end
            return None
        with zipfile.ZipFile(path) as archive:
            if not all(_fits(archive, member) for member in archive.infolist()):
                return None
        with np.load(path) as file:
            arrays = {name: file[name] for name in file}
        return arrays if str(arrays.pop(_OF)) == path.stem else None  # else of another name
    except Exception:  # NumPy and zipfile raise a dozen types for as many kinds of damage
        return None


def _fits(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    """Whether a member is as long as the header of its array says, and takes as much of the file."""
    with archive.open(member) as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        size = file.tell() + math.prod(shape) * dtype.itemsize
    return member.compress_type == zipfile.ZIP_STORED and member.file_size == size


def save(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Keeps arrays for ``load``, whole or not at all. Returns why the disk did not take them, empty if it did."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replaced(path, shared=True) as temporary, temporary.open("xb") as file:
            np.savez(file, **{_OF: np.array(path.stem), **arrays})  # type: ignore[arg-type]
    except OSError as error:
        return error.strerror or str(error)
    return ""


@contextlib.contextmanager
def turn(path: pathlib.Path) -> Iterator[None]:
    """One process at a time, by a lock on the file ``path``, which is made, or on a directory, which is left as it is.

    Where the disk has no locks, or takes no file, all at once.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            if path.is_dir():
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            stack.callback(os.close, file)
            files.lock(file, waiting="")
        yield
