"""JAX's cache of compiled programs on disk: an entry is used only if it is whole and the one that was asked for.

JAX reads whatever lies under the name of a program: of two files that changed places it runs either in the place of the
other, without a word, and one that is damaged it reports each time, and never replaces. Here each entry begins with a
SHA-256 of its name and content. One that does not fit is removed, and the program compiled again.
"""

import contextlib
import functools
import glob
import hashlib
import pathlib

from jax._src import compilation_cache  # the only way to look at an entry before it is used
from jax._src.compilation_cache_interface import CacheInterface

_PREFIX = "bpgan-"
"""Of the entries' names: another program may keep its own, without a checksum, in the same folder."""


class _Checked(CacheInterface):
    """A cache in another; what cannot be read is not there, and what cannot be written is not kept."""

    def __init__(self, cache: CacheInterface, path: str):
        self._cache, self._path, self._warned = cache, pathlib.Path(path), False

    def get(self, key: str) -> bytes | None:
        """The entry, or None if there is none, or none that is sound."""
        name = _PREFIX + key
        try:
            stored = self._cache.get(name)
        except OSError:
            return None
        if stored is None:
            return None
        digest, value = stored[:32], stored[32:]
        if digest == _digest(name, value):
            return value
        for file in self._path.glob(f"{glob.escape(name)}-*"):  # else it would not be written again
            with contextlib.suppress(OSError):
                file.unlink()
        return None

    def put(self, key: str, value: bytes) -> None:
        """Keeps an entry, if there is room."""
        name = _PREFIX + key
        try:
            self._cache.put(name, _digest(name, value) + value)
        except OSError as error:
            if not self._warned:
                print(
                    f"warning: compiled programs are not kept in {self._path} ({error.strerror});"
                    " the next command compiles them again"
                )
            self._warned = True


def _digest(name: str, value: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + value).digest()


@functools.cache
def check_entries() -> None:
    """From now on, and until this process ends, no entry of the cache is used unchecked."""
    plain = compilation_cache.get_file_cache

    def checked(path: str) -> tuple[CacheInterface, str] | None:
        try:
            found = plain(path)
        except OSError:  # no folder: then there is no cache
            return None
        return found and (_Checked(found[0], path), path)

    compilation_cache.get_file_cache = checked
    compilation_cache.reset_cache()  # if something was compiled before
