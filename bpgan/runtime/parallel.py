"""How a pure step meets devices: the one module that compiles.

A program runs ``k`` steps per call, as one loop on the device over a traced ``k``: a single compilation serves every
length, the host is consulted once per call, and how the steps are grouped into calls cannot change the result.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bpgan.types import Algorithm, Metrics, Source, UserError, stream

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
    """

    init: Callable[[], Carry]
    run: Callable[[Carry, int], tuple[Carry, jax.Array]]
    clear: Callable[[Carry], Carry]
    sample: Callable[[Carry, int], np.ndarray] | None
    abstract: Carry
    devices: int


def setup(precision: str = "float32") -> None:
    """Process-wide JAX settings: 64-bit types if asked for, and the persistent compilation cache.

    The cache lives in ``$JAX_COMPILATION_CACHE_DIR``, else ``$XDG_CACHE_HOME/bpgan/jax``, else ``~/.cache/bpgan/jax``.
    An unwritable directory turns it off.
    """
    if precision == "float64":
        jax.config.update("jax_enable_x64", True)
    if not jax.config.values["jax_compilation_cache_dir"]:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        path = pathlib.Path(base, "bpgan", "jax")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        if os.access(path, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


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
      UserError: if the batch cannot be split evenly.
    """
    used = jax.devices()[:devices]
    if source.batch_size < len(used):
        used = used[:1]
    if source.batch_size % len(used):
        raise UserError(
            f"--batch_size: {source.batch_size} rows cannot be split over {len(used)} devices;"
            f" must be a multiple of {len(used)}"
        )
    mesh = Mesh(np.array(used), (_AXIS,))
    replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(_AXIS))
    rows = source.batch_size // len(used)
    root = jax.random.key(seed)

    def local(batch):
        if mode == "pmap":
            start = lax.axis_index(_AXIS) * rows
            return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, rows), batch)
        return lax.with_sharding_constraint(batch, split) if len(used) > 1 else batch

    def advance(carry: Carry, data, key):
        batch = local(source.batch_at(data, carry.state.step))
        state, metrics = algorithm.step(carry.state, batch, key)
        count, sums = carry.window
        return Carry(state, Window(count + 1, jax.tree.map(jnp.add, sums, metrics)))

    def chunk(carry: Carry, data, root, k):
        key = stream(root, "train")
        carry = lax.fori_loop(0, k, lambda _, carry: advance(carry, data, key), carry)
        floats = [x for x in jax.tree.leaves(carry) if jnp.issubdtype(x.dtype, jnp.floating)]
        return carry, jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))

    def empty_window(state, metrics) -> Carry:
        sums = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics)
        return Carry(state, Window(jnp.zeros((), jnp.int32), sums))

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

    state_shapes = jax.eval_shape(algorithm.init, root)
    data_shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), source.data)
    metrics = jax.eval_shape(
        pmap(one_step, 3) if mode == "pmap" else one_step, state_shapes, data_shapes, root
    )
    # Run once: on CPU, optimising the random number generation of every layer would take seconds.
    quick = {"xla_backend_optimization_level": 0} if used[0].platform == "cpu" else None
    init = jax.jit(
        lambda root: empty_window(algorithm.init(stream(root, "init")), metrics),
        out_shardings=replicated,
        compiler_options=quick,
    )
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
        jax.eval_shape(init, root),
    )
    if mode == "pmap":
        compiled = pmap(chunk, 4)
    else:
        compiled = jax.jit(
            chunk,
            in_shardings=(replicated, replicated, replicated, None),
            out_shardings=replicated,
            donate_argnums=0,
        )
    data, root = jax.device_put((source.data, root), replicated)

    def run(carry: Carry, k: int) -> tuple[Carry, jax.Array]:
        return compiled(carry, data, root, np.int32(k))

    def draw(sample: Callable) -> Callable[[Carry, int], np.ndarray]:
        compiled = jax.jit(
            lambda state, root, n: sample(state, stream(root, "eval"), n), static_argnums=2
        )
        return lambda carry, n: np.asarray(compiled(carry.state, root, n))

    return Program(
        init=lambda: init(root),
        run=run,
        clear=lambda carry: carry._replace(window=jax.tree.map(jnp.zeros_like, carry.window)),
        sample=draw(algorithm.sample) if algorithm.sample else None,
        abstract=abstract,
        devices=len(used),
    )
