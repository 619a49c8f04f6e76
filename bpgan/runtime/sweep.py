"""Runs that differ only in numbers, trained together as one compiled program.

A member of a group is a run of its own in all but the compilation: its state, its latents and the order of its data
depend on its own seed and hyper-parameters, which are arrays of the program in place of constants. Two lowerings
compute the same:

- ``vmap``: every operation works on all members at once. On a GPU, where small operations leave the machine idle, the
  others are nearly free.
- ``map``: a loop over the members, each of which takes all steps of a call in turn. On a CPU this is the faster one:
  the members' arrays take turns in the cache, and convolutions do not become grouped ones (``benchmarks/sweep.py``).

Several devices share the members out, whichever the lowering, and never talk.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from bpgan import memory
from bpgan.runtime import parallel
from bpgan.runtime.parallel import Carry, Program, Window
from bpgan.types import Algorithm, Source, stream

LOWERINGS = ("map", "vmap")
Make = Callable[..., tuple[Algorithm, Source]]
"""``make(seed=..., g_lr=..., ...)``: system and data of a member, called with tracers while the program is traced."""

_AXIS = "member"


class Group(NamedTuple):
    """A compiled group of S runs.

    Attributes:
      init: ``init() -> carry`` of all members.
      run: ``run(carry, k, alive[S]) -> (carry, finite[S])``: ``k`` steps of the members that are alive; the others stay
        as they are. Do not use the carry passed in again.
      clear: ``clear(carry) -> carry`` with empty windows.
      windows: ``windows(carry) -> [window of each member]``, on the host.
      member: ``member(carry, i)``: the carry of one, as if it had run alone.
      join: ``join([carry of each member]) -> carry``.
      sample: ``sample(carry, n) -> [samples of each member]`` on the host, or None.
      abstract: shapes, types and shardings of the carry of one member, to restore a checkpoint into.
      devices: how many devices share the work.
      window: see ``parallel.Program``.
      how: in words.
      needed: bytes that the program takes of each device, as XLA estimates it.
      lowering: one of ``LOWERINGS``; empty for a run alone.
    """

    init: Callable[[], Any]
    run: Callable[[Any, int, np.ndarray], tuple[Any, np.ndarray]]
    clear: Callable[[Any], Any]
    windows: Callable[[Any], list[Window]]
    member: Callable[[Any, int], Carry]
    join: Callable[[Sequence[Carry]], Any]
    sample: Callable[[Any, int], list[np.ndarray]] | None
    abstract: Carry
    devices: int
    window: int
    how: str
    needed: int = 0
    lowering: str = ""


def alone(program: Program, how: str) -> Group:
    """A single run as a group of one: the same program."""
    sample = program.sample

    def run(carry: Carry, k: int, alive: np.ndarray) -> tuple[Carry, np.ndarray]:
        del alive
        carry, finite = program.run(carry, k)
        return carry, np.asarray(finite)[None]

    return Group(
        init=program.init,
        run=run,
        clear=program.clear,
        windows=lambda carry: [carry.window],
        member=lambda carry, _: carry,
        join=lambda carries: carries[0],
        sample=None if sample is None else lambda carry, n: [sample(carry, n)],
        abstract=program.abstract,
        devices=program.devices,
        window=program.window,
        how=how,
    )


def free_memory() -> int:
    """Bytes that a program may still take on the first device; of a CPU, of the machine."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return memory.available()


def compile(
    make: Make,
    members: Sequence[Mapping[str, float]],
    lowering: str = "",
    *,
    devices: int | None = None,
) -> Group:
    """Compiles a group of runs.

    Args:
      make: the member of given hyper-parameters. Only their values may depend on them, not shapes and not code.
      members: the arguments of ``make`` for each, by name, ``seed`` among them.
      lowering: one of ``LOWERINGS``; empty: ``map`` on a CPU, elsewhere the one that is faster on this group, measured.
      devices: how many to use (default: all of this process, or one for each member).

    Raises:
      ValueError: for data that are read from disk in windows.
    """
    if not lowering and jax.default_backend() == "cpu":
        lowering = "map"
    if lowering:
        return _compile(make, members, lowering, devices)
    groups = [_compile(make, members, each, devices) for each in LOWERINGS]
    if max(group.needed for group in groups) > free_memory():
        return min(groups, key=lambda group: group.needed)
    seconds = [_seconds_per_step(group, len(members)) for group in groups]
    best = int(np.argmin(seconds))
    ratio = max(seconds) / min(seconds)
    return groups[best]._replace(how=f"{groups[best].how}, measured {ratio:.2g} times as fast")


def _seconds_per_step(group: Group, size: int, budget: float = 1.0) -> float:
    carry, k, alive = group.init(), 1, np.ones(size, bool)
    carry, _ = group.run(carry, k, alive)
    while True:
        start = time.perf_counter()
        carry, _ = group.run(carry, k, alive)
        took = time.perf_counter() - start
        if took > budget / 4:
            return took / k
        k *= 2


def _compile(
    make: Make, members: Sequence[Mapping[str, float]], lowering: str, most: int | None
) -> Group:
    size = len(members)
    devices = jax.local_devices()[:most][:size]
    mesh = Mesh(np.array(devices), (_AXIS,))
    shared, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(_AXIS))
    # Members beyond the last fill up the devices; what they compute is dropped.
    padded = -(-size // len(devices)) * len(devices)
    values = {
        name: np.resize(
            np.array([m[name] for m in members], np.uint32 if name == "seed" else float), padded
        )
        for name in members[0]
    }
    algorithm, source = make(**members[0])
    if source.windows:
        raise ValueError("data that are read from disk cannot be shared by a group")
    data = jax.tree.map(lambda x: jax.device_put(np.asarray(x), shared), source.data)

    def of(values: Mapping[str, Any], data: Any) -> tuple[Algorithm, Callable, Any]:
        """A member: its system, its batches as a function of the step, its root key."""
        algorithm, source = make(**values)
        # What depends on the member's own numbers, as the order of its data does, is traced; the rest is common to all.
        own = jax.tree.map(
            lambda mine, common: mine if isinstance(mine, jax.core.Tracer) else common,
            source.data,
            data,
        )
        return algorithm, functools.partial(source.batch_at, own), jax.random.key(values["seed"])

    def init(values: Any, data: Any) -> Carry:
        algorithm, batch_at, root = of(values, data)
        state = algorithm.init(stream(root, "init"))
        metrics = jax.eval_shape(lambda s: algorithm.step(s, batch_at(s.step), root)[1], state)
        return parallel.start(state, metrics)

    def chunk(own: Any, common: Any) -> tuple[Any, jax.Array]:
        values, rest, alive = own
        now, data, k = common

        def train(rest: Carry) -> tuple[Any, jax.Array]:
            algorithm, batch_at, root = of(values, data)
            carry = _whole(now, rest)
            carry, finite = parallel.advance(algorithm, batch_at, carry, stream(root, "train"), k)
            return _parts(carry)[1], finite

        if lowering == "map":
            return lax.cond(alive, train, lambda rest: (rest, jnp.zeros((), bool)), rest)
        # A branch that some take is taken by all, and then every branch inside it, too.
        new, finite = train(rest)
        return jax.tree.map(functools.partial(jnp.where, alive), new, rest), finite

    def draw(own: Any, common: Any, n: int) -> jax.Array:
        values, rest = own
        now, data = common
        algorithm, _, root = of(values, data)
        assert algorithm.sample is not None
        return algorithm.sample(_whole(now, rest).state, stream(root, "eval"), n)

    def spread(function: Callable) -> Callable:
        """``function(own, common)`` of all members, shared out over the devices."""

        def local(own: Any, common: Any) -> Any:
            def one(own: Any) -> Any:
                return function(own, common)

            return jax.vmap(one)(own) if lowering == "vmap" else lax.map(one, own)

        if len(devices) == 1:
            return local
        return jax.shard_map(
            local, mesh=mesh, in_specs=(P(_AXIS), P()), out_specs=P(_AXIS), check_vma=False
        )

    @functools.partial(jax.jit, donate_argnums=0)
    def run_all(stack: Stack, values: Any, alive: Any, data: Any, k: Any) -> tuple[Stack, Any]:
        now, rest = stack
        rest, finite = spread(chunk)((values, rest, alive), (now, data, k))
        return Stack(jax.tree.map(lambda count: count + k, now), rest), finite

    # Run once: on CPU, optimizing the random number generation of every layer would take seconds.
    quick = {"xla_backend_optimization_level": 0} if devices[0].platform == "cpu" else None

    @functools.partial(jax.jit, compiler_options=quick)
    def init_all(values: Any, data: Any) -> Stack:
        now, rest = _parts(spread(init)(values, data))
        return Stack(jax.tree.map(lambda count: count[0], now), rest)

    @functools.partial(jax.jit, static_argnums=3)
    def draw_all(stack: Stack, values: Any, data: Any, n: int) -> jax.Array:
        return spread(functools.partial(draw, n=n))((values, stack.rest), (stack.now, data))

    @jax.jit
    def member(stack: Stack, i: Any) -> Carry:
        return _whole(stack.now, jax.tree.map(lambda x: x[i], stack.rest))

    values = jax.device_put(values, split)
    whole = _with_sharding(jax.eval_shape(init_all, values, data), shared, split)
    program = run_all.lower(
        whole,
        values,
        jax.ShapeDtypeStruct((padded,), np.bool_, sharding=split),
        data,
        jax.ShapeDtypeStruct((), np.int32, sharding=shared),
    ).compile()

    def run(stack: Stack, k: int, alive: np.ndarray) -> tuple[Stack, np.ndarray]:
        flags = jax.device_put(np.resize(alive, padded), split)
        stack, finite = program(stack, values, flags, data, jax.device_put(np.int32(k), shared))
        return stack, np.asarray(finite)[:size]

    def windows(stack: Stack) -> list[Window]:
        now, sums = jax.device_get((stack.now, stack.rest.window.sums))
        return [Window(now.count, {k: v[i] for k, v in sums.items()}) for i in range(size)]

    def clear(stack: Stack) -> Stack:
        window = jax.tree.map(jnp.zeros_like, stack.rest.window)
        now = stack.now._replace(count=jnp.zeros_like(stack.now.count))
        return Stack(now, stack.rest._replace(window=window))

    def join(carries: Sequence[Carry]) -> Stack:
        parts = [_parts(jax.device_get(carries[i % size])) for i in range(padded)]
        rest = jax.tree.map(lambda *leaves: np.stack(leaves), *(part.rest for part in parts))
        stack = Stack(parts[0].now, rest)
        return jax.tree.map(lambda x, to: jax.device_put(x, to.sharding), stack, whole)

    def sample(stack: Stack, n: int) -> list[np.ndarray]:
        return list(np.asarray(draw_all(stack, values, data, n))[:size])

    here = SingleDeviceSharding(devices[0])
    return Group(
        init=lambda: jax.tree.map(
            lambda x, to: jax.device_put(x, to.sharding), init_all(values, data), whole
        ),
        run=run,
        clear=clear,
        windows=windows,
        member=lambda stack, i: member(stack, np.int32(i)),
        join=join,
        sample=sample if algorithm.sample else None,
        abstract=jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
            jax.eval_shape(member, whole, np.int32(0)),
        ),
        devices=len(devices),
        window=0,
        needed=_bytes(program),
        lowering=lowering,
        how=f"{size} runs in one program ({lowering})",
    )


class _Now(NamedTuple):
    """What is the same for all members: were the step one of each, every branch on it would be taken by all."""

    step: jax.Array
    count: jax.Array


class Stack(NamedTuple):
    """The carries of a group: what they have in common, and the rest with a leading axis of members."""

    now: _Now
    rest: Carry


def _parts(carry: Carry) -> Stack:
    now = _Now(carry.state.step, carry.window.count)
    rest = Carry(carry.state._replace(step=None), carry.window._replace(count=None))
    return Stack(now, rest)


def _whole(now: _Now, rest: Carry) -> Carry:
    return Carry(rest.state._replace(step=now.step), rest.window._replace(count=now.count))


def _with_sharding(stack: Stack, shared: Any, split: Any) -> Stack:
    def place(sharding: Any, tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    return Stack(place(shared, stack.now), place(split, stack.rest))


def _bytes(program: Any) -> int:
    """What XLA says a compiled program takes of each device."""
    m = program.memory_analysis()
    if m is None:
        return 0
    total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return total - m.alias_size_in_bytes
