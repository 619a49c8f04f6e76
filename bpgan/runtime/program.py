"""How a pure step meets devices: a run as a compiled program.

A program runs ``k`` steps per call, as one loop on the device over a traced ``k``: a single compilation serves every
length, the host is consulted once per call, and how the steps are grouped into calls cannot change the result.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bpgan import threefry
from bpgan.runtime import compiler, products
from bpgan.types import PRNG, Algorithm, Metrics, Source, UserError, counted, stream

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
        leaves = jax.tree.leaves(source.data)
        self._is_abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)
        if not source.windows and not self._is_abstract:
            self._data = jax.tree.map(lambda x: _place(np.asarray(x), sharding), source.data)

    def at(self, carry: Carry) -> Any:
        """The data for the step the carry is at."""
        if not self._source.windows:
            if self._is_abstract:
                raise ValueError("the source has shapes and no data: its steps can only be traced")
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


def _place(x: np.ndarray, sharding: Any) -> jax.Array:
    """An array that each process has, as a whole on each device.

    To compare them, ``device_put`` would gather those of all processes on every device: of 32 hosts 32 datasets.
    """
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


@jax.jit
def copy(tree: Any) -> Any:
    """The same arrays in buffers of their own, in one call of the device."""
    return jax.tree.map(jnp.copy, tree)


def draw_batches(
    sample: Callable,
    state: Any,
    key: PRNG,
    n: int,
    *,
    labels: np.ndarray | None = None,
    z: np.ndarray | None = None,
    batch: int = 500,
) -> Iterator[np.ndarray]:
    """Samples in batches on the host, ``n`` in all; the first ones are the same whatever ``n``.

    Args:
      sample: of an ``Algorithm``.
      state: of the same.
      key: batch ``i`` is drawn with ``fold_in(key, i)``.
      n: how many.
      labels: int32 ``[n]``, the classes of the samples of a conditional algorithm.
      z: ``[n, ...]``, latents in the place of those that would be drawn.
      batch: samples per call of the device.
    """
    for i in range(-(-n // batch)):
        rows = np.resize(np.arange(i * batch, min((i + 1) * batch, n)), batch)
        part = () if labels is None else (labels[rows],)
        given = {} if z is None else {"z": z[rows]}
        yield np.asarray(_draw_batch(sample, batch, state, key, i, *part, **given))[: n - i * batch]


def _draw_batch(
    sample: Callable, batch: int, state: Any, key: PRNG, i: int, *labels: Any, **given: Any
) -> jax.Array:
    options = tuple(compiler.options(jax.default_backend()).items())
    return _compile_draw(options)(sample, batch, state, key, i, *labels, **given)


@functools.cache  # compiled once for all calls
def _compile_draw(options: tuple[tuple[str, Any], ...]) -> Callable:
    def draw(
        sample: Callable, batch: int, state: Any, key: PRNG, i: int, *labels: Any, **given: Any
    ):
        return sample(state, jax.random.fold_in(key, i), batch, *labels, **given)

    return jax.jit(draw, static_argnums=(0, 1), compiler_options=dict(options))


def start(state: Any, metrics: Metrics) -> Carry:
    """The carry of a run at its beginning; ``metrics``: their shapes and types."""
    sums = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics)
    return Carry(state, Window(jnp.zeros((), jnp.int32), sums))


def advance(
    algorithm: Algorithm, batch_at: Callable, carry: Carry, key: PRNG, k: Any
) -> tuple[Carry, jax.Array]:
    """The carry after ``k`` more steps on the batches ``batch_at(step)``, and whether all its numbers are finite."""

    # The sums of one type as one vector, which a GPU adds to in one kernel.
    kinds: dict[str, list[str]] = {}
    for name, total in carry.window.sums.items():
        kinds.setdefault(str(total.dtype), []).append(name)

    def vectors(metrics: Metrics) -> dict[Any, jax.Array]:
        return {
            dtype: jnp.stack([metrics[name] for name in names], dtype=dtype)
            for dtype, names in kinds.items()
        }

    def one(_: Any, now: Any) -> Any:
        state, count, sums = now
        with jax.named_scope("batch"):  # for profiles
            batch = batch_at(state.step)
        state, metrics = algorithm.step(state, batch, key)
        return state, count + 1, jax.tree.map(jnp.add, sums, vectors(metrics))

    before = carry.state, carry.window.count, vectors(carry.window.sums)
    state, count, sums = lax.fori_loop(0, k, one, before)
    found = {name: sums[dtype][i] for dtype, names in kinds.items() for i, name in enumerate(names)}
    carry = Carry(state, Window(count, {name: found[name] for name in carry.window.sums}))
    return carry, _finite(carry)


def _finite(tree: Any) -> jax.Array:
    """Whether no number is NaN or infinite; arrays of one shape are looked at together, in one reduction."""
    alike: dict[Any, list[jax.Array]] = {}
    for x in jax.tree.leaves(tree):
        if jnp.issubdtype(x.dtype, jnp.floating):
            alike.setdefault(x.shape, []).append(jnp.isfinite(x))
    found = [jnp.all(functools.reduce(jnp.logical_and, each)) for each in alike.values()]
    return jnp.all(jnp.stack(found))


def record_metrics(
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

    @functools.partial(jax.jit, compiler_options=compiler.options(jax.default_backend()))
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
    """The axis an algorithm must be built with for ``compile_program(..., mode=mode)``: None under ``jit``."""
    return _AXIS if mode == "pmap" else None


class _Layout(NamedTuple):
    """Where the arrays of a run lie.

    Attributes:
      mode: ``jit`` or ``pmap``.
      devices: those that share a batch.
      rows: of a batch, on each of them.
      replicated, split: of arrays that each has as a whole, and of those that are split along axis 0.
      data: of the source's data.
      read: the rows of a batch that this process reads of data that come in windows.
    """

    mode: str
    devices: Sequence[Any]
    rows: int
    replicated: NamedSharding
    split: NamedSharding
    data: NamedSharding
    read: slice

    def part(self, batch: Any) -> Any:
        """A global batch as the step is to see it: split over the devices, or the rows of the one that it runs on."""
        if self.mode == "pmap":
            start = lax.axis_index(_AXIS) * self.rows
            return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, self.rows), batch)
        return lax.with_sharding_constraint(batch, self.split) if len(self.devices) > 1 else batch

    def pmap(
        self, function: Callable, arguments: int, options: dict[str, Any] | None = None
    ) -> Callable:
        """``function`` once per device, all arguments and results being equal on all of them.

        With compiler options it is compiled at the first call, for arguments of that call's shapes alone.
        """
        mapped = jax.pmap(
            lambda _, *args: function(*args),
            axis_name=_AXIS,
            in_axes=(0, *[None] * arguments),
            out_axes=None,
            devices=self.devices,
        )
        unused = np.arange(len(self.devices))  # pmap insists on a mapped argument
        if not options:
            return lambda *args: mapped(unused, *args)

        compiled: list[Callable] = []

        def call(*args: Any) -> Any:
            if not compiled:
                compiled.append(mapped.lower(unused, *args).compile(compiler_options=options))
            return compiled[0](unused, *args)

        return call


def _lay_out(source: Source, mode: str, devices: Sequence[Any]) -> _Layout:
    """Chooses among the devices. Raises what ``compile_program`` does."""
    used = devices
    several = jax.process_count() > 1
    if several and mode == "pmap":
        raise UserError(
            "works in one process only; must be jit with several", argument="parallel", value="pmap"
        )
    if source.batch_size < len(used) and not several:
        used = used[:1]
    if source.batch_size % len(used):
        raise UserError(
            f"{counted(source.batch_size, 'row')} cannot be split over {len(used)} devices;"
            f" must be a multiple of {len(used)}",
            argument="batch_size",
        )
    mesh = Mesh(np.array(used), (_AXIS,))
    replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(_AXIS))
    rows = source.batch_size // len(used)
    if not source.windows or mode == "pmap":
        return _Layout(mode, used, rows, replicated, split, replicated, slice(None))
    # Of each window [steps, b, ...], this process reads its rows.
    mine = [i for i, device in enumerate(used) if device.process_index == jax.process_index()]
    read = slice(rows * mine[0], rows * (mine[-1] + 1))
    return _Layout(mode, used, rows, replicated, split, NamedSharding(mesh, P(None, _AXIS)), read)


def abstract_of(tree: Any, sharding: Any) -> Any:
    """The shapes and types of a tree, with where its arrays are to lie."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def quick_options(device: Any) -> dict[str, Any] | None:
    """For a program that runs once: on CPU, optimizing the drawing of every layer's weights would take seconds."""
    if device.platform == "cpu":
        return {"xla_backend_optimization_level": 0}
    return compiler.options(device.platform)


def compile_program(
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
    layout = _lay_out(source, mode, jax.devices()[:devices])
    functions = _functions(algorithm, source, layout)
    root = jax.jit(lambda: jax.random.key(seed), out_shardings=layout.replicated)()
    feed = _Feed(source, layout.data, layout.read)

    def run(carry: Carry, k: int) -> tuple[Carry, jax.Array]:
        result = functions.run(carry, feed.at(carry), root, np.int32(k))
        feed.ahead()
        return result

    sample = functions.sample
    return Program(
        init=lambda: functions.init(root),
        run=run,
        clear=lambda carry: carry._replace(window=jax.tree.map(jnp.zeros_like, carry.window)),
        sample=sample and (lambda carry, n: np.asarray(sample(carry.state, root, n))),
        abstract=functions.abstract,
        devices=len(layout.devices),
        window=source.window,
    )


def abstract_carry(algorithm: Algorithm, source: Source) -> Carry:
    """The shapes and types of a run's carry, to lie on the first device: what a checkpoint is read into.

    The step is traced and neither compiled nor run, and no data are needed (``data.without_images``).
    """
    return _functions(algorithm, source, _lay_out(source, "jit", jax.devices()[:1])).abstract


class _Functions(NamedTuple):
    """The functions of a program, to be compiled for the devices of a layout.

    Attributes:
      init: ``init(root) -> carry``.
      run: ``run(carry, data, root, k) -> (carry, finite)``.
      sample: ``sample(state, root, n)``, or None.
      abstract: the carry's shapes, types and shardings.
    """

    init: Any
    run: Any
    sample: Any
    abstract: Carry


def _functions(algorithm: Algorithm, source: Source, layout: _Layout) -> _Functions:
    platform, replicated = layout.devices[0].platform, layout.replicated
    options = compiler.options(platform)

    def step(state: Any, batch: Any, key: PRNG) -> Any:
        key = threefry.unroll(key) if platform == "cpu" else key  # the same numbers, sooner
        return algorithm.step(state, batch, key)

    # Traced once, though both the metrics' shapes and the loop ask for it.
    stepped = algorithm._replace(step=jax.jit(step, inline=True))

    def batch_at(data: Any, step: Any) -> Any:
        return layout.part(source.batch_at(data, step))

    def chunk(carry: Carry, data: Any, root: Any, k: Any) -> tuple[Carry, jax.Array]:
        return advance(stepped, functools.partial(batch_at, data), carry, stream(root, "train"), k)

    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = _trace_step(stepped, batch_at, source, layout, key)
    metrics = traced.out_info[1]
    on_one_cpu = platform == "cpu" and layout.mode == "jit" and len(layout.devices) == 1
    if on_one_cpu and (found := products.arranged(traced)):
        stepped = algorithm._replace(step=found)
        options = compiler.options(platform, matrices=True)
    init = jax.jit(
        lambda root: start(algorithm.init(stream(root, "init")), metrics),
        out_shardings=replicated,
        compiler_options=quick_options(layout.devices[0]),
    )
    if layout.mode == "pmap":
        run = layout.pmap(chunk, 4, options)
    else:
        run = jax.jit(
            chunk,
            in_shardings=(replicated, layout.data, replicated, None),
            out_shardings=replicated,
            donate_argnums=0,
            compiler_options=options,
        )
    draw = algorithm.shown
    sample = draw and jax.jit(
        lambda state, root, n: draw(state, stream(root, "eval"), n),
        static_argnums=2,
        out_shardings=replicated,
        compiler_options=options,
    )
    return _Functions(init, run, sample, abstract_of(jax.eval_shape(init, key), replicated))


def _trace_step(
    algorithm: Algorithm, batch_at: Callable, source: Source, layout: _Layout, key: PRNG
) -> jax.stages.Traced:
    """A step as the run will call it, traced and neither compiled nor run."""
    found: list[jax.stages.Traced] = []

    def one_step(state: Any, data: Any, key: Any) -> None:
        found.append(algorithm.step.trace(state, batch_at(data, state.step), key))

    jax.eval_shape(
        layout.pmap(one_step, 3) if layout.mode == "pmap" else one_step,
        abstract_of(jax.eval_shape(algorithm.init, key), layout.replicated),
        abstract_of(source.data, layout.data),
        abstract_of(key, layout.replicated),
    )
    return found[-1]


def serialize(
    function: Callable[..., Any],
    arguments: Sequence[jax.ShapeDtypeStruct],
    platforms: Sequence[str],
) -> bytes:
    """A function with what it holds as ``jax.export`` writes it, for these platforms; needs flatbuffers.

    Args:
      function: of arrays.
      arguments: their shapes, which may have symbols (``jax.export.symbolic_shape``), and types.
      platforms: of ``cpu``, ``cuda``, ``tpu``.
    """
    return bytes(jax.export.export(jax.jit(function), platforms=platforms)(*arguments).serialize())


class Traces(NamedTuple):
    """The functions of a ``Program`` as JAX has traced them: ``.lower().compile()`` needs no device, nor does tracing.

    Attributes:
      init: of the root key.
      run: the loop of k steps.
      sample: of so many samples, or None.
    """

    init: jax.stages.Traced
    run: jax.stages.Traced
    sample: Callable[[int], jax.stages.Traced] | None


def trace(algorithm: Algorithm, source: Source, devices: Sequence[Any]) -> Traces:
    """The program that ``compile_program(algorithm, source, mode="jit")`` compiles, for devices that need not be here.

    Args:
      algorithm, source: as for ``compile_program``.
      devices: those of this machine, or of a ``jax.experimental.topologies.TopologyDescription``.

    Raises:
      UserError: if the batch cannot be split evenly over them.
    """
    layout = _lay_out(source, "jit", devices)
    functions = _functions(algorithm, source, layout)
    root = abstract_of(jax.eval_shape(lambda: jax.random.key(0)), layout.replicated)
    data = abstract_of(source.data, layout.data)
    k = jax.ShapeDtypeStruct((), np.int32, sharding=layout.replicated)
    return Traces(
        functions.init.trace(root),
        functions.run.trace(functions.abstract, data, root, k),
        functions.sample and (lambda n: functions.sample.trace(functions.abstract.state, root, n)),
    )
