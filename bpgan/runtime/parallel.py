"""How a pure step meets devices: the one module that compiles.

A program runs ``k`` steps per call, as one loop on the device over a traced ``k``: a single compilation serves every
length, the host is consulted once per call, and how the steps are grouped into calls cannot change the result.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src import distributed  # only to ask where the coordinator is
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bpgan.runtime import environment, peers, programs
from bpgan.types import PRNG, Algorithm, Metrics, Source, UserError, stream

_AXIS = "batch"


class Window(NamedTuple):
    """Running sums of the metrics since the last log point."""

    count: jax.Array
    sums: Metrics

    def means(self) -> dict[str, float]:
        """Mean of each metric over the window, as Python floats (waits for the device)."""
        count, sums = jax.device_get((self.count, self.sums))
        return {name: float(value) / int(count) for name, value in sums.items()}


class Carry(NamedTuple):
    """What goes from call to call, and what a checkpoint holds: with it a run goes on as if never interrupted."""

    state: Any
    window: Window


class Program(NamedTuple):
    """A compiled run.

    Attributes:
      init: ``init() -> carry``, created in its final place on the devices.
      run: ``run(carry, k) -> (carry, finite)``: ``k`` steps. Do not use the carry passed in again, ``jit`` donates
        it. ``finite`` is a bool array: no metric of the window and no number of the state is NaN or infinite.
      clear: ``clear(carry) -> carry`` with an empty window.
      sample: ``sample(carry, n) -> uint8 or float array on the host``, always from the same latents; None where the
        algorithm cannot sample.
      abstract: the carry's shapes, types and shardings, to restore a checkpoint into.
      devices: how many devices share a batch.
      window: if not 0, a call must not pass a step that is a multiple of it.
    """

    init: Callable[[], Carry]
    run: Callable[[Carry, int], tuple[Carry, jax.Array]]
    clear: Callable[[Carry], Carry]
    sample: Callable[[Carry, int], np.ndarray] | None
    abstract: Carry
    devices: int
    window: int


class _Feed:
    """The data that the next steps need, on the device: all there is, or one window while the next is on its way."""

    def __init__(self, source: Source, sharding: Any, rows: slice):
        self._source, self._sharding, self._rows = source, sharding, rows
        self._next = -1  # the window that comes out of the iterator next
        self._ready: dict[int, Any] = {}
        if not source.windows:
            self._data = jax.tree.map(
                lambda x: jax.device_put(np.asarray(x), sharding), source.data
            )

    def at(self, carry: Carry) -> Any:
        """The data for the step the carry is at."""
        if not self._source.windows:
            return self._data
        index = int(carry.state.step) // self._source.window
        if index not in self._ready:
            self._ready = {}
            if index != self._next:
                self._iterator, self._next = self._source.windows(index, self._rows), index
            self._fetch()
        self._ready = {i: window for i, window in self._ready.items() if i >= index}
        return self._ready[index]

    def ahead(self) -> None:
        """Called while the device computes: puts the next window there."""
        if self._source.windows and len(self._ready) == 1:
            self._fetch()

    def _fetch(self) -> None:
        window = next(self._iterator)
        self._ready[self._next] = jax.tree.map(
            lambda local, whole: jax.make_array_from_process_local_data(
                self._sharding, local, whole.shape
            ),
            window,
            self._source.data,
        )
        self._next += 1


def setup(precision: str = "float32") -> None:
    """Process-wide JAX settings: several processes, the width of numbers, the persistent compilation cache.

    The cache lives in ``$JAX_COMPILATION_CACHE_DIR``, else ``$XDG_CACHE_HOME/bpgan/jax``, else ``~/.cache/bpgan/jax``.
    Where there can be no such directory there is no cache; one that is read-only is read. Raises what ``join`` and
    ``find_devices`` raise.
    """
    environment.check_compiler_flags()
    join()
    programs.check_entries()
    find_devices()
    # Also where it is not asked for: JAX_ENABLE_X64 of the environment would make other numbers of the same config.
    jax.config.update("jax_enable_x64", precision == "float64")
    if not jax.config.values["jax_compilation_cache_dir"]:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        path = pathlib.Path(base, "bpgan", "jax")
        try:
            path.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(path))
        except OSError:
            pass
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


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
        address = distributed.global_state.coordinator_address
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
    return jax.process_index() == 0


def agree(value: Any) -> np.ndarray:
    """The ``value`` of every process, ``[processes, ...]``; each waits for all. Free of cost for a single one."""
    if jax.process_count() == 1:
        return np.asarray(value)[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.asarray(value)))


@jax.jit
def copy(tree: Any) -> Any:
    """The same arrays in buffers of their own, in one call of the device."""
    return jax.tree.map(jnp.copy, tree)


def draw(
    sample: Callable,
    state: Any,
    key: PRNG,
    n: int,
    *,
    labels: np.ndarray | None = None,
    batch: int = 500,
) -> Iterator[np.ndarray]:
    """Samples in batches on the host, ``n`` in all; the first ones are the same whatever ``n``.

    Args:
      sample: of an ``Algorithm``.
      state: of the same.
      key: batch ``i`` is drawn with ``fold_in(key, i)``.
      n: how many.
      labels: int32 ``[n]``, the classes of the samples of a conditional algorithm.
      batch: samples per call of the device.
    """
    for i in range(-(-n // batch)):
        part = () if labels is None else (np.resize(labels[i * batch : (i + 1) * batch], batch),)
        yield np.asarray(_drawn(sample, batch, state, key, i, *part))[: n - i * batch]


@functools.partial(jax.jit, static_argnums=(0, 1))  # compiled once for all calls
def _drawn(
    sample: Callable, batch: int, state: Any, key: PRNG, i: int, *labels: jax.Array
) -> jax.Array:
    return sample(state, jax.random.fold_in(key, i), batch, *labels)


def start(state: Any, metrics: Metrics) -> Carry:
    """The carry of a run at its beginning; ``metrics``: their shapes and types."""
    sums = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics)
    return Carry(state, Window(jnp.zeros((), jnp.int32), sums))


def advance(
    algorithm: Algorithm, batch_at: Callable, carry: Carry, key: PRNG, k: Any
) -> tuple[Carry, jax.Array]:
    """The carry after ``k`` more steps on the batches ``batch_at(step)``, and whether all its numbers are finite."""

    def one(_: Any, carry: Carry) -> Carry:
        state, metrics = algorithm.step(carry.state, batch_at(carry.state.step), key)
        count, sums = carry.window
        return Carry(state, Window(count + 1, jax.tree.map(jnp.add, sums, metrics)))

    carry = lax.fori_loop(0, k, one, carry)
    floats = [x for x in jax.tree.leaves(carry) if jnp.issubdtype(x.dtype, jnp.floating)]
    return carry, jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))


def recorded(
    algorithm: Algorithm, source_of: Callable[[int], Source], *, seeds: Sequence[int], steps: int
) -> dict[str, np.ndarray]:
    """The metrics of every step of short runs, ``[seeds, steps]``; nothing is logged or saved.

    Args:
      algorithm: what is trained.
      source_of: the batches of a seed, which differ in ``data`` only; the data of two at most are in memory.
      seeds: root seeds.
      steps: from the beginning.
    """
    sources = map(source_of, seeds)
    source = next(sources)
    batch_at = source.batch_at

    @jax.jit
    def run(data: Any, root: PRNG) -> Metrics:
        def one(state: Any, _: Any) -> tuple[Any, Metrics]:
            return algorithm.step(state, batch_at(data, state.step), stream(root, "train"))

        return lax.scan(one, algorithm.init(stream(root, "init")), length=steps)[1]

    found = []
    for seed in seeds:
        found.append(jax.device_get(run(source.data, jax.random.key(seed))))
        source = next(sources, source)  # the one before is given back
    return {name: np.stack([metrics[name] for metrics in found]) for name in found[0]}


def axis_name(mode: str) -> str | None:
    """The axis an algorithm must be built with for ``compile(..., mode=mode)``: None under ``jit``."""
    return _AXIS if mode == "pmap" else None


def compile(
    algorithm: Algorithm,
    source: Source,
    *,
    seed: int,
    mode: str = "jit",
    devices: int | None = None,
) -> Program:
    """Compiles a run for the machine. A batch of fewer rows than devices runs on one of them.

    Args:
      algorithm: for ``mode="pmap"``, built with ``axis_name("pmap")``.
      source: its batches are split over the devices along axis 0; its data is copied to each.
      seed: the run's root seed.
      mode: ``jit`` partitions one program for the global batch; ``pmap`` runs the step once per device and averages.
      devices: how many devices to use (default: all).

    Raises:
      UserError: if the batch cannot be split evenly, or for ``pmap`` with several processes.
    """
    used = jax.devices()[:devices]
    several = jax.process_count() > 1
    if several and mode == "pmap":
        raise UserError(
            "works in one process only; must be jit with several", argument="parallel", value="pmap"
        )
    if source.batch_size < len(used) and not several:
        used = used[:1]
    if source.batch_size % len(used):
        raise UserError(
            f"{source.batch_size} rows cannot be split over {len(used)} devices;"
            f" must be a multiple of {len(used)}",
            argument="batch_size",
        )
    mesh = Mesh(np.array(used), (_AXIS,))
    replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(_AXIS))
    rows = source.batch_size // len(used)
    mine = [i for i, device in enumerate(used) if device.process_index == jax.process_index()]
    root = jax.random.key(seed)
    # Traced once, though both the metrics' shapes and the loop ask for it.
    algorithm = algorithm._replace(step=jax.jit(algorithm.step, inline=True))
    if source.windows and mode == "jit":  # of each [steps, b, ...], this process reads its rows
        data_sharding = NamedSharding(mesh, P(None, _AXIS))
        feed_rows = slice(rows * mine[0], rows * (mine[-1] + 1))
    else:
        data_sharding, feed_rows = replicated, slice(None)

    def local(batch):
        if mode == "pmap":
            start = lax.axis_index(_AXIS) * rows
            return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, rows), batch)
        return lax.with_sharding_constraint(batch, split) if len(used) > 1 else batch

    def chunk(carry: Carry, data, root, k):
        return advance(
            algorithm,
            lambda step: local(source.batch_at(data, step)),
            carry,
            stream(root, "train"),
            k,
        )

    def pmap(function, arguments: int):
        """``function`` once per device, all arguments and results being equal on all of them."""
        mapped = jax.pmap(
            lambda _, *args: function(*args),
            axis_name=_AXIS,
            in_axes=(0, *[None] * arguments),
            out_axes=None,
            devices=used,
        )
        unused = np.arange(len(used))  # pmap insists on a mapped argument
        return lambda *args: mapped(unused, *args)

    def one_step(state, data, key):
        return algorithm.step(state, local(source.batch_at(data, state.step)), key)[1]

    def shapes(tree, sharding):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    metrics = jax.eval_shape(
        pmap(one_step, 3) if mode == "pmap" else one_step,
        shapes(jax.eval_shape(algorithm.init, root), replicated),
        shapes(source.data, data_sharding),
        shapes(root, replicated),
    )
    # Run once: on CPU, optimizing the random number generation of every layer would take seconds.
    quick = {"xla_backend_optimization_level": 0} if used[0].platform == "cpu" else None
    init = jax.jit(
        lambda root: start(algorithm.init(stream(root, "init")), metrics),
        out_shardings=replicated,
        compiler_options=quick,
    )
    abstract = shapes(jax.eval_shape(init, root), replicated)
    if mode == "pmap":
        compiled = pmap(chunk, 4)
    else:
        compiled = jax.jit(
            chunk,
            in_shardings=(replicated, data_sharding, replicated, None),
            out_shardings=replicated,
            donate_argnums=0,
        )
    root = jax.jit(lambda: jax.random.key(seed), out_shardings=replicated)()
    feed = _Feed(source, data_sharding, feed_rows)

    def run(carry: Carry, k: int) -> tuple[Carry, jax.Array]:
        result = compiled(carry, feed.at(carry), root, np.int32(k))
        feed.ahead()
        return result

    def draw(sample: Callable) -> Callable[[Carry, int], np.ndarray]:
        compiled = jax.jit(
            lambda state, root, n: sample(state, stream(root, "eval"), n),
            static_argnums=2,
            out_shardings=replicated,
        )
        return lambda carry, n: np.asarray(compiled(carry.state, root, n))

    return Program(
        init=lambda: init(root),
        run=run,
        clear=lambda carry: carry._replace(window=jax.tree.map(jnp.zeros_like, carry.window)),
        sample=draw(algorithm.sample) if algorithm.sample else None,
        abstract=abstract,
        devices=len(used),
        window=source.window,
    )
