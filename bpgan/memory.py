"""How much memory there is: asked before anything is built whose size a file, a flag or a program decides."""

import contextlib
import os
import pathlib
import sys

from bpgan.types import UserError


def available(root: str | os.PathLike = "/") -> int:
    """Bytes of memory that this process may still take: of the machine, its control groups (v2) and its own limits.

    What caches files counts as free, for it is given up when it is asked for. Does not start JAX.

    Args:
      root: of the file system, for tests.
    """
    proc, groups = pathlib.Path(root, "proc"), pathlib.Path(root, "sys/fs/cgroup")
    try:
        found = [1024 * _numbers(proc / "meminfo")["MemAvailable:"]]
    except (OSError, KeyError):  # no Linux
        return min(_of_limits(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError):
        for line in (proc / "self/cgroup").read_text(encoding="utf-8").splitlines():
            if line.startswith("0::/"):
                path = groups / line[4:]
                found += [
                    _left(each) for each in (path, *path.parents) if each.is_relative_to(groups)
                ]
    return max(0, min(_of_limits(), *found))


def _left(group: pathlib.Path) -> int:
    """Bytes that a control group lets its processes take, its caches of files given up."""
    try:
        limit, used = (
            (group / f"memory.{name}").read_text(encoding="utf-8") for name in ("max", "current")
        )
        cached = _numbers(group / "memory.stat")
        return int(limit) - int(used) + cached["active_file"] + cached["inactive_file"]
    except (OSError, ValueError, KeyError):  # "max": no limit
        return sys.maxsize


def _numbers(path: pathlib.Path) -> dict[str, int]:
    """Of lines ``name number ...``."""
    words = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {name: int(number) for name, number, *_ in words}


def require(need: int, what: str) -> None:
    """Raises a UserError unless there are ``need`` bytes for ``what``, the beginning of a sentence."""
    if need > (there := available()):
        raise UserError(f"{what}: {shortfall(need, there)}")


def shortfall(need: int, there: int) -> str:
    """Both numbers of bytes, in words."""
    return f"{need / 2**30:,.1f} GiB are needed, {there / 2**30:,.1f} GiB are free"


def _of_limits() -> int:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        return limit - pages * resource.getpagesize()
    return limit
