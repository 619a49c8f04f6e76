"""Which GPUs and TPU chips there are, and which of them each process sees; asked without starting JAX."""

import importlib.util
import os
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from bpgan.types import UserError

_CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")  # without one, JAX leaves GPUs alone
_ROCM_PLUGINS = ("jax_rocm60_plugin", "jax_rocm7_plugin")
GOOGLE = "0x1ae0"  # the PCI vendor; its network cards have the same
TPUS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}
"""PCI devices that JAX takes for TPU chips (``jax._src.hardware_utils``), from v2 to 7x."""

VISIBLE = {
    "cuda": ("CUDA_VISIBLE_DEVICES",),
    "rocm": ("HIP_VISIBLE_DEVICES",),
    "tpu": ("TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES"),
}
MEMORY = ("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION",
           "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_ALLOCATOR")  # fmt: skip
_PREALLOCATED = 0.75  # of a GPU's memory, by JAX's default


class Devices(NamedTuple):
    """The accelerators that the processes may use.

    Attributes:
      kind: ``cuda``, ``rocm`` or ``tpu``; empty if there is none, or another platform is asked for.
      names: as the variable that shows them names them: numbers, or the UUIDs of GPUs and of their MIG instances.
      accelerated: whether JAX would use one; true without a name for a platform of which nothing is known here.
    """

    kind: str
    names: tuple[str, ...]
    accelerated: bool


def find(root: str | os.PathLike = "/", environ: Mapping[str, str] | None = None) -> Devices:
    """What JAX would use.

    Args:
      root: of the file system, for tests.
      environ: variables; by default those of this process.
    """
    environ = os.environ if environ is None else environ
    asked = environ.get("JAX_PLATFORMS", "").partition(",")[0]
    if asked == "cpu":
        return Devices("", (), False)
    counts = {"tpu": _count_tpus, "cuda": _count_nvidia, "rocm": _count_amd}
    for kind, count in counts.items():
        if asked not in ("", kind) and not (asked == "gpu" and kind != "tpu"):
            continue
        names = (
            _visible(kind, count(pathlib.Path(root)), environ) if _has_plugin(kind, environ) else ()
        )
        if names:
            return Devices(kind, names, True)
    return Devices("", (), bool(asked))


def _has_plugin(kind: str, environ: Mapping[str, str]) -> bool:
    if kind == "tpu":
        return bool(environ.get("TPU_LIBRARY_PATH") or importlib.util.find_spec("libtpu"))
    return any(map(importlib.util.find_spec, _CUDA_PLUGINS if kind == "cuda" else _ROCM_PLUGINS))


def _variable(kind: str, environ: Mapping[str, str]) -> str:
    """The variable that shows devices: the one that is set already, or the usual one."""
    return next((name for name in VISIBLE[kind] if name in environ), VISIBLE[kind][0])


def _visible(kind: str, count: int, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Those of ``count`` devices that a variable shows. CUDA stops at the first name that it does not know."""
    if kind == "rocm" and environ.get("ROCR_VISIBLE_DEVICES"):  # HIP numbers those that are left
        count = min(count, len(environ["ROCR_VISIBLE_DEVICES"].split(",")))
    given = environ.get(_variable(kind, environ))
    if given is None or (kind == "tpu" and not given):
        return tuple(map(str, range(count)))
    names = []
    for name in map(str.strip, given.split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", name) or (
            count and name.isdecimal() and int(name) >= count
        ):
            break
        names.append(name)
    return tuple(names)


def _count_tpus(root: pathlib.Path) -> int:
    """TPU chips on the PCI bus. VMs of v5e and later show them as /dev/vfio, earlier ones as /dev/accel*."""
    count = 0
    for vendor in (root / "sys/bus/pci/devices").glob("*/vendor"):
        device = vendor.with_name("device")
        count += _read(vendor) == GOOGLE and _read(device) in TPUS
    return count


def _count_nvidia(root: pathlib.Path) -> int:
    """NVIDIA GPUs; under WSL, which does not number them, one."""
    return len(list((root / "dev").glob("nvidia[0-9]*"))) or int((root / "dev/dxg").exists())


def _count_amd(root: pathlib.Path) -> int:
    """Nodes of AMD's driver that have vector units: the others are CPUs."""
    nodes = (root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties")
    return sum(bool(re.search(r"\bsimd_count\s+[1-9]", _read(node))) for node in nodes)


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def share(found: Devices, slots: int, running: int) -> list[dict[str, str]]:
    """The variables of the processes in each of ``slots`` slots, by which they see their own devices only.

    A slot has an even share of the GPUs, or one TPU chip; a single slot has all of them, as a plain run. Where there
    are more slots than GPUs, those that share one divide up what JAX would take of its memory in advance, unless a
    variable of the environment already says how much that is.

    Args:
      found: see ``find``.
      slots: as many processes at a time as there may be.
      running: as many as there will be.

    Raises:
      UserError: for more slots than TPU chips, of which each serves one process.
    """
    names, kind = found.names, found.kind
    if slots <= 1 or not names:
        memory = {MEMORY[0]: "false"} if slots > 1 and found.accelerated else {}
        return [{} if MEMORY[0] in os.environ else dict(memory) for _ in range(slots)]
    if kind == "tpu" and slots > len(names):
        reason = f"must be at most {len(names)}: each TPU chip serves one process"
        raise UserError(reason, argument="jobs", value=slots)
    size = 1 if kind == "tpu" else max(1, len(names) // slots)
    memory = {}
    each = -(-min(slots, running) // len(names))
    if each > 1 and not any(name in os.environ for name in MEMORY):
        memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{_PREALLOCATED / each:.3f}"}
    starts = (slot * size % len(names) for slot in range(slots))
    return [show(kind, names[start : start + size]) | memory for start in starts]


def show(kind: str, names: tuple[str, ...]) -> dict[str, str]:
    """The variables of a process that is to see only these devices of a kind."""
    shown = {_variable(kind, os.environ): ",".join(names)}
    # With a topology of its own, libtpu lets other processes have the other chips.
    if kind == "tpu":
        return shown | {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
    return shown


def places(found: Devices, processes: int) -> list[dict[str, str]]:
    """The devices of each of several processes that train one run together.

    Raises:
      UserError: if GPUs cannot be shared out evenly, or for TPU chips: one process drives all of a machine.
    """
    count = len(found.names)
    if found.kind == "tpu" and processes > 1:
        reason = f"must be 1: one process uses all {count} TPU chips of this machine"
        raise UserError(reason, argument="processes", value=processes)
    if count % processes:
        reason = f"{count} GPUs cannot be shared out evenly; must be a divisor of {count}"
        raise UserError(reason, argument="processes", value=processes)
    size = count // processes
    if not size:
        return [{} for _ in range(processes)]
    parts = [found.names[i * size : (i + 1) * size] for i in range(processes)]
    # Said twice: inside an allocation of Slurm, JAX would take one of them by the number of its task there.
    local = {"JAX_LOCAL_DEVICE_IDS": ",".join(map(str, range(size)))}
    return [show(found.kind, names) | local for names in parts]
