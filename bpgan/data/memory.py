"""How much memory there is: asked before anything is built whose size a file or a user decides."""

import contextlib
import pathlib
import sys

from bpgan.types import UserError


def free() -> int:
    """Bytes that this process may still take: of the machine, its control group and its own limits.

    Where a system tells nothing, that is no limit.
    """
    return max(0, min(_of_machine(), _of_group(), _of_limits()))


def require(need: int, what: str) -> None:
    """Raises a UserError unless there are ``need`` bytes for ``what``, the beginning of a sentence."""
    if need > (there := free()):
        raise UserError(f"{what}: {shortfall(need, there)}")


def shortfall(need: int, there: int) -> str:
    """Both numbers of bytes, in words."""
    return f"{need / 2**30:,.1f} GiB are needed, {there / 2**30:,.1f} GiB are free"


def _of_machine() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in pathlib.Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return sys.maxsize


def _of_group() -> int:
    group = pathlib.Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # version 2; "max" is no number
        limit = int((group / "memory.max").read_text(encoding="utf-8"))
        used = int((group / "memory.current").read_text(encoding="utf-8"))
        lines = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
        cached = [int(line.split()[1]) for line in lines if line.startswith("inactive_file ")]
        return limit - used + sum(cached)  # what is kept of files gives way
    return sys.maxsize


def _of_limits() -> int:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        return limit - pages * resource.getpagesize()
    return limit
