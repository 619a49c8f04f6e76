"""Where a machine ends: a disk that is full or fails, memory that is spent. Each is one line and the user's to mend."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from bpgan.types import UserError

_OF_A_DISK = {
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ESTALE", "ENOTCONN", "ENXIO", "ENODEV", "EREMOTEIO",
        "EHOSTDOWN", "ETIMEDOUT", "ENOLCK", "EMFILE", "ENFILE", "EACCES", "EPERM",
    )
    if hasattr(errno, name)
}  # fmt: skip
"""What goes wrong with a file however right the program is: no room, a limit, no permission, a server that is away."""


def is_of_a_disk(error: BaseException) -> bool:
    """Whether an error says that a disk is full, fails, or reached a limit of the system's."""
    return isinstance(error, OSError) and error.errno in _OF_A_DISK


@contextlib.contextmanager
def disk_errors(*folders: str | os.PathLike, kept: str = "") -> Iterator[None]:
    """Raises what goes wrong with files as a ``UserError``.

    In ``folders``, which bpgan alone writes, that is every ``OSError``: a file in the place of a folder, a folder that
    was removed or is not permitted, are no different from a disk that is full. Of other files it is what
    ``is_of_a_disk``; the rest, as that a file of the user's code is not there, is raised as it is.

    Args:
      folders: the run directories.
      kept: what is safe nevertheless; for the message.
    """
    try:
        yield
    except OSError as error:
        files = [_path(name) for name in (error.filename2, error.filename) if _is_a_name(name)]
        homes = [(os.fspath(f), _path(f)) for f in folders]
        inside = [given for given, home in homes for f in files if home in (f, *f.parents)]
        if not inside and not is_of_a_disk(error):
            raise
        reason = f"{error.strerror or error}: {files[0]}" if files else str(error.strerror or error)
        again = f"{kept and f'; {kept}'}. Make room or mend that, and repeat the command"
        # A file that is open has no name any more in an error; bpgan writes into its own only.
        where = inside[0] if inside else homes[0][0] if homes and not files else ""
        if not where:
            raise UserError(f"a file cannot be used ({reason}){again}") from None
        raise UserError(
            f"cannot be written ({reason}){again}", argument="workdir", value=where
        ) from None


def _is_a_name(name: Any) -> bool:
    return isinstance(name, str | bytes | os.PathLike)


def _path(name: Any) -> pathlib.Path:
    return pathlib.Path(os.path.abspath(os.fsdecode(name)))


def is_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device is spent."""
    return getattr(error, "error_code_string", "") == "RESOURCE_EXHAUSTED"


def device_memory() -> tuple[int, int] | None:
    """Free bytes and all bytes of the first device; None for one that does not say."""
    try:
        stats = jax.local_devices()[0].memory_stats() or {}
    except jax.errors.JaxRuntimeError:  # of a device that is beyond answering
        return None
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0), stats["bytes_limit"]


@contextlib.contextmanager
def memory_errors(batch_size: int | None = None, accumulate: int | None = None) -> Iterator[None]:
    """Raises as a ``UserError`` that the memory of a device, or of the machine, is spent.

    XLA says with the same status that a program does not fit, when it is compiled, and that an array does not, when it
    runs. Its first line has the bytes that were asked for; what the device has is added where JAX knows it.

    Args:
      batch_size: of the run, if it is one.
      accumulate: in how many parts it computes an update, if it can.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        device = is_of_memory(error)
        if not device and not isinstance(error, MemoryError):
            raise
        whose = "the device's" if device else "the machine's"
        other = "the networks smaller" if device else "the data read from disk (`feed=stream`)"
        said = (str(error).strip().splitlines() or ["out of memory"])[0][:200].rstrip(".")
        if device:
            if room := device_memory():
                said += f"; {room[0] / 1e9:.3g} of {room[1] / 1e9:.3g} GB are free"
            if accumulate is not None:
                other = f"`accumulate={accumulate}` higher, or {other}"
        if batch_size is None:
            raise UserError(f"{whose} memory is spent ({said})") from None
        raise UserError(
            f"{whose} memory is spent ({said}); must be lower, or {other}",
            argument="batch_size",
            value=batch_size,
        ) from None
