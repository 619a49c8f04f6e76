"""Which processes and devices there are, and how several processes that train one run decide together."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state  # only to ask where the coordinator is

from bpgan.runtime import compile_cache, compiler, environment, peers
from bpgan.types import UserError


def setup(
    precision: str = "float32", matmul_precision: str = "default", deterministic: bool = True
) -> None:
    """Process-wide JAX settings: several processes, how numbers are stored and multiplied, the compilation cache.

    The cache lives in ``$JAX_COMPILATION_CACHE_DIR``, else ``$XDG_CACHE_HOME/bpgan/jax``, else ``~/.cache/bpgan/jax``.
    Where there can be no such directory there is no cache; one that is read-only is read. Raises what ``join`` and
    ``find_devices`` raise.
    """
    environment.check_compiler_flags()
    join()
    compile_cache.check_entries()
    find_devices()
    compiler.choose(deterministic)
    # Also where they are not asked for: JAX_ENABLE_X64 or JAX_DEFAULT_MATMUL_PRECISION of the environment would make
    # other numbers of the same config.
    jax.config.update("jax_enable_x64", precision == "float64")
    jax.config.update("jax_default_matmul_precision", matmul_precision)
    if not jax.config.values["jax_compilation_cache_dir"]:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        path = pathlib.Path(base, "bpgan", "jax")
        try:
            path.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(path))
        except OSError:
            pass
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@contextlib.contextmanager
def kept_settings() -> Iterator[None]:
    """What ``setup`` says of numbers holds within, and not after it: other code of the process has its own settings."""
    names = ("jax_enable_x64", "jax_default_matmul_precision")
    before = {name: jax.config.values[name] for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def find_devices() -> None:
    """Starts JAX on the devices that there are.

    Raises:
      UserError: if the environment asks for a platform that is not there.
    """
    asked = jax.config.values["jax_platforms"]
    try:
        jax.devices()
        return
    except (RuntimeError, AssertionError):
        if not asked:
            raise
    jax.config.update("jax_platforms", "")
    there = sorted({device.platform for device in jax.devices()} | {"cpu"})
    raise UserError(
        f"JAX_PLATFORMS={asked}: is not there; must be empty (the fastest) or of {', '.join(there)}"
    )


def join() -> None:
    """Makes this process one of several that train one run together, if its environment says so; called once, early.

    ``JAX_COORDINATOR_ADDRESS`` (host:port), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` say it in words (``launch.py
    --processes=N`` sets them); in a Slurm step of several tasks, Slurm's own variables do. ``JAX_NUM_PROCESSES=auto``
    asks JAX to find out, on TPU pods for example.

    From then on, a process that ends before its time ends the others, with its exit code and a line that says why.

    Raises:
      UserError: for variables that make no sense, or if the other processes do not appear within two minutes.
    """
    where = _place()
    if where is None:
        return
    # Signals are heard by each process and agreed on; JAX's service would keep them from ending one that compiles.
    jax.config.update("jax_enable_preemption_service", False)
    # Processes of one run speak with each other directly: by a proxy for the world outside they would wait for ever.
    jax.config.update("jax_check_proxy_envs", False)
    os.environ.setdefault("grpc_proxy", "")
    try:
        jax.distributed.initialize(**where, initialization_timeout=120)
        find_devices()
        address = global_state.coordinator_address
        if jax.process_count() > 1 and address is not None:
            peers.join(address.rpartition(":")[0])
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the processes of this run cannot find each other: {reason}") from None


def _place() -> dict[str, Any] | None:
    """What the environment says of this process among several, for ``jax.distributed``; None if it is alone."""
    environ = os.environ
    count, tasks = environ.get("JAX_NUM_PROCESSES", ""), environ.get("SLURM_STEP_NUM_TASKS", "")
    if not count and tasks and not tasks.isdecimal():
        raise UserError(f"SLURM_STEP_NUM_TASKS={tasks}: must be a whole number")
    if not count and int(tasks or 1) > 1:
        count = "auto"
    if not count:
        return None
    if count == "auto":
        return {}
    index, address = environ.get("JAX_PROCESS_ID", ""), environ.get("JAX_COORDINATOR_ADDRESS", "")
    host, _, port = address.rpartition(":")
    numbers = count.isdecimal() and index.isdecimal() and int(index) < int(count)
    if not (numbers and host and port.isdecimal()):
        raise UserError(
            f"JAX_NUM_PROCESSES={count}: needs JAX_PROCESS_ID (is {index!r}) from 0 to below it"
            f" and JAX_COORDINATOR_ADDRESS=HOST:PORT (is {address or None!r})"
        )
    where: dict[str, Any] = {"num_processes": int(count), "process_id": int(index)}
    at = peers.interface_of(host)
    if at and "JAX_COORDINATOR_BIND_ADDRESS" not in environ:
        where["coordinator_bind_address"] = f"[{at}]:{port}" if ":" in at else f"{at}:{port}"
    return where


def leave() -> None:
    """Waits until all processes are done; from then on, one that ends is no reason for the others to.

    Until then a process that comes to grief at the very end, writing the report, is heard by those that were quicker.
    """
    if peers.is_joined():
        agree(True)
        peers.end(0)


def is_lead() -> bool:
    """Whether this is the process that writes files and talks: the first of those that train a run together."""
    return index() == 0


def index() -> int:
    """Which process this is of those that train a run together."""
    return jax.process_index()


def agree(value: Any) -> np.ndarray:
    """The ``value`` of every process, ``[processes, ...]``; each waits for all. Free of cost for a single one."""
    if jax.process_count() == 1:
        return np.asarray(value)[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.asarray(value)))
