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

import abc
import functools
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
from bpgan.runtime import compiler, limits, program
from bpgan.runtime.program import Carry, Program, Window
from bpgan.types import Algorithm, Source, stream

LOWERINGS = ("map", "vmap")
Make = Callable[..., tuple[Algorithm, Source]]
"""``make(seed=..., g_lr=..., ...)``: system and data of a member, called with tracers while the program is traced."""

_AXIS = "member"


class Group(abc.ABC):
    """S runs that are trained together, S at least 1.

    Attributes:
      abstract: shapes, types and shardings of the carry of one run, to restore a checkpoint into.
      devices: how many devices share the work.
      window: see ``Program``.
      how: in words.
      needed: bytes that the program takes of each device, as XLA estimates it; 0 if that is not known.
      lowering: one of ``LOWERINGS``; empty for a run alone.
      samples: whether ``sample`` can draw.
    """

    abstract: Carry
    devices: int
    window: int
    how: str
    needed: int = 0
    lowering: str = ""
    samples: bool

    @abc.abstractmethod
    def init(self) -> Any:
        """The carry of all runs at their beginning."""

    @abc.abstractmethod
    def run(self, carry: Any, k: int, alive: np.ndarray) -> tuple[Any, np.ndarray]:
        """``k`` steps of the runs that are ``alive[S]``; the others stay as they are.

        Returns:
          The carry (do not use the one passed in again), and of each run whether all its numbers are finite.
        """

    @abc.abstractmethod
    def clear(self, carry: Any) -> Any:
        """The carry with empty windows."""

    @abc.abstractmethod
    def windows(self, carry: Any) -> list[Window]:
        """The window of each run, on the host."""

    @abc.abstractmethod
    def member(self, carry: Any, i: int) -> Carry:
        """The carry of one run, as if it had run alone."""

    @abc.abstractmethod
    def join(self, carries: Sequence[Carry]) -> Any:
        """The carry of all runs, of those of each."""

    @abc.abstractmethod
    def sample(self, carry: Any, n: int) -> list[np.ndarray]:
        """``n`` samples of each run, on the host."""


class Alone(Group):
    """A single run as a group of one: the same program."""

    def __init__(self, program: Program, how: str):
        self._program, self.how = program, how
        self.abstract, self.devices = program.abstract, program.devices
        self.window, self.samples = program.window, program.sample is not None

    def init(self) -> Carry:
        return self._program.init()

    def run(self, carry: Carry, k: int, alive: np.ndarray) -> tuple[Carry, np.ndarray]:
        del alive
        carry, finite = self._program.run(carry, k)
        return carry, np.asarray(finite)[None]

    def clear(self, carry: Carry) -> Carry:
        return self._program.clear(carry)

    def windows(self, carry: Carry) -> list[Window]:
        return [carry.window]

    def member(self, carry: Carry, i: int) -> Carry:
        del i
        return carry

    def join(self, carries: Sequence[Carry]) -> Carry:
        return carries[0]

    def sample(self, carry: Carry, n: int) -> list[np.ndarray]:
        assert self._program.sample is not None
        return [self._program.sample(carry, n)]


def free_memory() -> int:
    """Bytes that a program may still take on the first device; of a CPU, of the machine."""
    room = limits.device_memory()
    return room[0] if room else memory.available()


def compile_group(
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
      lowering: one of ``LOWERINGS``; empty: see ``choose_lowering``.
      devices: how many to use (default: all of this process, or one for each member).

    Raises:
      ValueError: for data that are read from disk in windows.
    """
    used = jax.local_devices()[:devices]
    lowering = lowering or choose_lowering(jax.default_backend())
    return _Together(make, members, lowering, used).place()


def trace(
    make: Make, members: Sequence[Mapping[str, float]], lowering: str, devices: Sequence[Any]
) -> jax.stages.Traced:
    """The program that ``compile_group`` compiles, for devices that need not be here (see ``program.trace``)."""
    return _Together(make, members, lowering, devices).trace()


def choose_lowering(platform: str) -> str:
    """The lowering of a new group, by rule: two fresh sweeps on machines of one kind then have the same bits.

    On a CPU ``map`` was measured to be faster (``benchmarks/RESULTS.md``). When the rule was chosen, both were compiled
    for one H100 and one TPU v5e. ``vmap`` launches far fewer kernels in a step of all members, for about the same
    arithmetic and memory traffic, also where every convolution becomes a grouped one. ``map`` counts are those of one
    member times S:

    ==========================  ====  ==============  ===============  =============  =============
    program, batch              S     H100, kernels   v5e, kernels     v5e, GFLOP     v5e, GB
    ==========================  ====  ==============  ===============  =============  =============
    article's GAN               32    70, not 2,656                    9.5, not 9.5   2.4, not 10
    ``--net=dcgan:8``, 64       8     260, not 1,752  947, not 3,120   10.2, not 8.3  5.1, not 5.1
    ==========================  ====  ==============  ===============  =============  =============

    It needs the temporary memory of all members at once (126 MiB in place of 43 for the convolutions on the H100). A
    group that does not fit is cut into smaller ones (``train.fit_group``).
    """
    return "map" if platform == "cpu" else "vmap"


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


class _Member:
    """What is traced of one member, a function of its own numbers and of the data that all have in common.

    In each method, ``own`` is what differs between members, and ``common`` what does not.

    Args:
      make: see ``compile_group``.
      branch: whether a member that is not alive takes no step (``map``), or one that is thrown away (``vmap``).
    """

    def __init__(self, make: Make, branch: bool):
        self._make, self._branch = make, branch

    def _at(self, values: Mapping[str, Any], data: Any) -> tuple[Algorithm, Callable, Any]:
        """A member's system, its batches as a function of the step, its root key."""
        algorithm, source = self._make(**values)
        # What depends on the member's own numbers, as the order of its data does, is traced; the rest is common to all.
        own = jax.tree.map(
            lambda mine, common: mine if isinstance(mine, jax.core.Tracer) else common,
            source.data,
            data,
        )
        return algorithm, functools.partial(source.batch_at, own), jax.random.key(values["seed"])

    def init(self, own: Any, common: Any) -> Carry:
        """The carry of a member at its beginning."""
        algorithm, batch_at, root = self._at(own, common)
        state = algorithm.init(stream(root, "init"))
        metrics = jax.eval_shape(lambda s: algorithm.step(s, batch_at(s.step), root)[1], state)
        return program.start(state, metrics)

    def advance(self, own: Any, common: Any) -> tuple[Any, jax.Array]:
        """The rest of a carry after k steps, and whether all its numbers are finite."""
        values, rest, alive = own
        now, data, k = common

        def train(rest: Carry) -> tuple[Any, jax.Array]:
            algorithm, batch_at, root = self._at(values, data)
            carry, key = _whole(now, rest), stream(root, "train")
            carry, finite = program.advance(algorithm, batch_at, carry, key, k)
            return _parts(carry).rest, finite

        if self._branch:
            return lax.cond(alive, train, lambda rest: (rest, jnp.zeros((), bool)), rest)
        # A branch that some take is taken by all, and then every branch inside it, too.
        new, finite = train(rest)
        return jax.tree.map(functools.partial(jnp.where, alive), new, rest), finite

    def draw(self, own: Any, common: Any, n: int) -> jax.Array:
        """``n`` samples."""
        values, rest = own
        now, data = common
        algorithm, _, root = self._at(values, data)
        assert algorithm.shown is not None
        return algorithm.shown(_whole(now, rest).state, stream(root, "eval"), n)


class _Together(Group):
    """A group, see ``compile_group``: it can be traced at once, and run when it is placed on devices that are here."""

    def __init__(
        self,
        make: Make,
        members: Sequence[Mapping[str, float]],
        lowering: str,
        devices: Sequence[Any],
    ):
        self._size, self.lowering, self.window = len(members), lowering, 0
        used = devices[: self._size]
        self._mesh = Mesh(np.array(used), (_AXIS,))
        self._shared = NamedSharding(self._mesh, P())
        self._split = NamedSharding(self._mesh, P(_AXIS))
        self.devices, here = len(used), SingleDeviceSharding(used[0])
        # Members beyond the last fill up the devices; what they compute is dropped.
        self._padded = -(-self._size // self.devices) * self.devices
        self.how = f"{self._size} runs in one program ({lowering})"
        algorithm, source = make(**members[0])
        if source.windows:
            raise ValueError("data that are read from disk cannot be shared by a group")
        self.samples = algorithm.shown is not None
        self._data, self._values = source.data, self._arrays(members)
        self._one = _Member(make, branch=lowering == "map")
        self._init_all = jax.jit(self._init, compiler_options=program.quick_options(used[0]))
        self._options = compiler.options(used[0].platform)
        self._draw_all = jax.jit(self._draw, static_argnums=3, compiler_options=self._options)
        whole = jax.eval_shape(self._init_all, self._values, self._data)
        self._whole = Stack(
            program.abstract_of(whole.now, self._shared),
            program.abstract_of(whole.rest, self._split),
        )
        one = jax.eval_shape(_take, self._whole, np.int32(0))
        self.abstract = program.abstract_of(one, here)

    def place(self) -> "_Together":
        """Compiles the program, and puts data and hyper-parameters on the devices."""
        self._program = self.trace().lower().compile()
        self.needed = _bytes(self._program)
        put = functools.partial(jax.device_put, device=self._shared)
        self._data = jax.tree.map(lambda x: put(np.asarray(x)), self._data)
        self._values = jax.device_put(self._values, self._split)
        return self

    def _arrays(self, members: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
        """The numbers of all members by name."""

        def column(name: str) -> np.ndarray:
            return np.array([m[name] for m in members], np.uint32 if name == "seed" else float)

        return {name: np.resize(column(name), self._padded) for name in members[0]}

    def _spread(self, function: Callable) -> Callable:
        """``function(own, common)`` of all members, shared out over the devices."""

        def local(own: Any, common: Any) -> Any:
            def one(own: Any) -> Any:
                return function(own, common)

            return jax.vmap(one)(own) if self.lowering == "vmap" else lax.map(one, own)

        if self.devices == 1:
            return local
        return jax.shard_map(
            local, mesh=self._mesh, in_specs=(P(_AXIS), P()), out_specs=P(_AXIS), check_vma=False
        )

    def _init(self, values: Any, data: Any) -> Stack:
        now, rest = _parts(self._spread(self._one.init)(values, data))
        return Stack(jax.tree.map(lambda count: count[0], now), rest)

    def _advance(self, stack: Stack, values: Any, alive: Any, data: Any, k: Any) -> Any:
        now, rest = stack
        rest, finite = self._spread(self._one.advance)((values, rest, alive), (now, data, k))
        return Stack(jax.tree.map(lambda count: count + k, now), rest), finite

    def _draw(self, stack: Stack, values: Any, data: Any, n: int) -> jax.Array:
        draw = functools.partial(self._one.draw, n=n)
        return self._spread(draw)((values, stack.rest), (stack.now, data))

    def trace(self) -> jax.stages.Traced:
        """``_advance``, traced."""
        values, data = jax.eval_shape(lambda *trees: trees, self._values, self._data)
        alive = jax.ShapeDtypeStruct((self._padded,), np.bool_, sharding=self._split)
        k = jax.ShapeDtypeStruct((), np.int32, sharding=self._shared)
        advance = jax.jit(self._advance, donate_argnums=0, compiler_options=self._options)
        return advance.trace(
            self._whole,
            program.abstract_of(values, self._split),
            alive,
            program.abstract_of(data, self._shared),
            k,
        )

    def _placed(self, stack: Stack) -> Stack:
        return jax.tree.map(lambda x, to: jax.device_put(x, to.sharding), stack, self._whole)

    def init(self) -> Stack:
        return self._placed(self._init_all(self._values, self._data))

    def run(self, carry: Stack, k: int, alive: np.ndarray) -> tuple[Stack, np.ndarray]:
        flags = jax.device_put(np.resize(alive, self._padded), self._split)
        steps = jax.device_put(np.int32(k), self._shared)
        carry, finite = self._program(carry, self._values, flags, self._data, steps)
        return carry, np.asarray(finite)[: self._size]

    def clear(self, carry: Stack) -> Stack:
        window = jax.tree.map(jnp.zeros_like, carry.rest.window)
        now = carry.now._replace(count=jnp.zeros_like(carry.now.count))
        return Stack(now, carry.rest._replace(window=window))

    def windows(self, carry: Stack) -> list[Window]:
        now, sums = jax.device_get((carry.now, carry.rest.window.sums))
        return [Window(now.count, {k: v[i] for k, v in sums.items()}) for i in range(self._size)]

    def member(self, carry: Stack, i: int) -> Carry:
        return _take(carry, np.int32(i))

    def join(self, carries: Sequence[Carry]) -> Stack:
        parts = [_parts(jax.device_get(carries[i % self._size])) for i in range(self._padded)]
        rest = jax.tree.map(lambda *leaves: np.stack(leaves), *(part.rest for part in parts))
        return self._placed(Stack(parts[0].now, rest))

    def sample(self, carry: Stack, n: int) -> list[np.ndarray]:
        drawn = np.asarray(self._draw_all(carry, self._values, self._data, n))
        return list(drawn[: self._size])


@jax.jit
def _take(stack: Stack, i: Any) -> Carry:
    """The carry of one member."""
    return _whole(stack.now, jax.tree.map(lambda x: x[i], stack.rest))


def _bytes(compiled: Any) -> int:
    """What XLA says a compiled program takes of each device."""
    m = compiled.memory_analysis()
    if m is None:
        return 0
    total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return total - m.alias_size_in_bytes
