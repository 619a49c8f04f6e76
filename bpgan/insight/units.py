"""What single units of a generator do: each is set to zero, and the samples before and after are compared.

Bau et al. 2019, arXiv:1811.10597 (GAN Dissection), with a classifier in the place of segmentation: a unit that a class
depends on is one without which samples of that class become others. A unit is a channel of the output of a Linen
module inside G, in all pixels, or a number of a dense layer. Networks need not be changed, nor know of it: Linen's
``intercept_methods`` finds their layers while G is called.

Two controls are always measured. Without any ablation nothing may change, and the ablation of all units of a layer
leaves a G whose samples vary only by what enters behind it: where nothing does, all are alike.

An ablation shows what a unit is needed for while all others work. Units that stand in for each other each seem to do
nothing, and a network with other numbers than it was trained on may draw what it never draws.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from bpgan.types import UserError

Generator = Callable[[Any], Array]
"""``z[n, ...] -> x[n, ...]``, labels and variables bound."""


class Layer(NamedTuple):
    """The output of a Linen module inside G.

    Attributes:
      name: the path of the module, such as ``norm1`` or ``synthesis/conv0``; with ``#2`` of its second call.
      shape: of one example; the last axis has the units.
      path: of the module, without the number of its call.
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...] = ()

    @property
    def units(self) -> int:
        """How many there are."""
        return self.shape[-1]


class Control(NamedTuple):
    """What one ablation does.

    Attributes:
      pixels: mean absolute change of the samples.
      histogram: total variation distance between the class histograms before and after; NaN without a classifier.
      spread: standard deviation over the samples after it, as a share of the one before, both over all pixels.
    """

    pixels: float
    histogram: float
    spread: float


class Dissection(NamedTuple):
    """What the ablation of each unit does to the same samples.

    Attributes:
      layer: that the units are of.
      units: their numbers, ``[u]``.
      pixels: mean absolute change of the samples, ``[u]``; samples are in [-1, 1].
      base: share of the samples in each class before, ``[k]``.
      histograms: the same after each ablation, ``[u, k]``.
      histogram: total variation distance ``1/2 sum_k |after - before|``, ``[u]``.
      changed: share of the samples whose class is another, ``[u]``: it sees what a histogram does not, classes that
        change places.
      probabilities: change of the mean probability of each class, ``[u, k]``.
      none, all: the controls.
      samples: how many samples these are means over.

    Without a classifier all that is of classes is None.
    """

    layer: Layer
    units: Int[np.ndarray, " u"]
    pixels: Float[np.ndarray, " u"]
    base: Float[np.ndarray, " k"] | None
    histograms: Float[np.ndarray, "u k"] | None
    histogram: Float[np.ndarray, " u"] | None
    changed: Float[np.ndarray, " u"] | None
    probabilities: Float[np.ndarray, "u k"] | None
    none: Control
    all: Control
    samples: int


class _Call(NamedTuple):
    """A call of a module: the layer, what came in and what went out."""

    layer: Layer
    inputs: tuple[Any, ...]
    output: Any


def _is_batch(x: Any, n: int) -> bool:
    """Whether x is an array of floats with a row for each of n latents, and units."""
    return (
        isinstance(x, jax.Array)
        and jnp.issubdtype(x.dtype, jnp.floating)
        and x.ndim >= 2
        and len(x) == n
    )


def _intercepted(
    g: Generator, z: Any, change: Callable[[Layer, Any], Any]
) -> tuple[Array, list[_Call]]:
    """``g(z)`` with the outputs of its modules changed, and their calls in the order in which they ended."""
    calls: list[_Call] = []
    counts: dict[str, int] = {}

    def interceptor(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        method = context.method_name
        if not _is_batch(output, len(z)) or (method[0] == "_" and method != "__call__"):
            return output
        name = "/".join(context.module.path) + f".{method}" * (method != "__call__")
        counts[name] = counts.get(name, 0) + 1
        name += f"#{counts[name]}" * (counts[name] > 1)
        layer = Layer(name, tuple(output.shape[1:]), context.module.path)
        output = change(layer, output)
        calls.append(_Call(layer, (*args, *kwargs.values()), output))
        return output

    with nn.intercept_methods(interceptor):
        x = g(z)
    return x, calls


def layers(g: Generator, z: Any) -> tuple[Layer, ...]:
    """The layers of a generator whose units can be ablated, in the order in which they are computed.

    These are outputs of Linen modules that are not handed to another module as they are: of a convolution that is
    followed by batch norm only the norm counts, which stands before the nonlinearity. Where a unit is 0 there, it is 0
    behind a ReLU, leaky or not. The samples themselves are no layer.

    Args:
      g: ``z[n, ...] -> x[n, ...]``, which calls Linen modules.
      z: latents of the right shape, one row at least; nothing is computed with them.

    Raises:
      UserError: if G does not take such latents, or calls no Linen module that has units.
    """
    calls: list[_Call] = []

    def traced(z: Any) -> Array:
        x, found = _intercepted(g, z, lambda layer, output: output)
        calls[:] = found
        return x

    shape = _shape_of(traced, z).shape[1:]
    found = _hidden(calls, int(np.prod(shape)))
    if not found:
        raise UserError("G has no hidden layer of a Linen module, and so no units")
    return tuple(found)


def _hidden(calls: list[_Call], size: int) -> list[Layer]:
    """The layers among all calls; ``size`` is that of a sample."""
    handed_on = {id(each) for call in calls for each in call.inputs}
    found: dict[int, Layer] = {}  # of an output that several modules hand out, the innermost
    last = next((call.layer for call in reversed(calls) if not _is_around(call, calls)), None)
    for call in calls:
        layer = call.layer
        of_last = last is not None and f"{last.name}/".startswith(f"{layer.name}/")
        is_sample = int(np.prod(layer.shape)) == size and (of_last or not layer.path)
        if layer.path and not is_sample and id(call.output) not in handed_on:
            found.setdefault(id(call.output), layer)
    return list(found.values())


def _is_around(call: _Call, calls: list[_Call]) -> bool:
    """Whether other modules were called within this one."""
    depth = len(call.layer.path)
    inner = (other.layer.path for other in calls)
    return any(len(path) > depth and path[:depth] == call.layer.path for path in inner)


def _shape_of(g: Generator, z: Any) -> jax.ShapeDtypeStruct:
    """Of the samples. Raises a UserError, in one line, if G does not take such latents."""
    if np.ndim(z) < 1 or not np.shape(z)[0]:
        reason = f"is {list(np.shape(z))}, must be [n, ...] with a row at least"
        raise UserError(reason, argument="z")
    try:
        return jax.eval_shape(g, z)
    except Exception as error:  # of Flax or JAX, of many types
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        reason = lines[0][:200] if lines else type(error).__name__
        reason = f"is {list(np.shape(z))}, which G does not take ({reason})"
        raise UserError(reason, argument="z") from error


def capture(g: Generator, z: Any, layer: str) -> tuple[Array, Array]:
    """``(x, a)``: the samples ``G(z)``, and the output ``[n, ..., c]`` of a layer on the way.

    Raises:
      UserError: if there is no such layer.
    """
    x, calls = _intercepted(g, z, lambda layer, output: output)
    return x, _find(calls, layer).output


def _find(calls: list[_Call], name: str) -> _Call:
    for call in calls:
        if call.layer.name == name:
            return call
    names = ", ".join(call.layer.name or "(G itself)" for call in calls)
    raise UserError(f"must be one of {names}", argument="layer", value=name)


def ablate(g: Generator, z: Any, layer: str, off: Bool[Any, " c"]) -> Array:
    """``G(z)`` where the units ``off`` of a layer are 0; with none of them exactly ``G(z)``.

    Raises:
      UserError: if there is no such layer, or it has another number of units.
    """

    def change(found: Layer, output: Any) -> Any:
        if found.name != layer:
            return output
        if np.shape(off) != (found.units,):
            reason = f"is {list(np.shape(off))}, must be [{found.units}]"
            raise UserError(reason, argument="off")
        return jnp.where(off, jnp.zeros((), output.dtype), output)

    x, calls = _intercepted(g, z, change)
    _find(calls, layer)
    return x


def dissect(
    g: Generator,
    z: Any,
    layer: str,
    logits: Callable[[Any], Any] | None = None,
    *,
    units: Any = None,
    block: int = 2048,
    tell: Callable[[int], None] = lambda done: None,
) -> Dissection:
    """Ablates each unit of a layer, and measures what becomes of the samples of the same latents.

    What of G comes before the layer is computed once for a block of ablations, not once for each.

    Args:
      g: ``z[n, ...] -> x[n, ...]`` in [-1, 1].
      z: latents ``[n, ...]``, the same for every unit.
      layer: one of ``layers(g, z)``.
      logits: ``x[m, ...] -> [m, k]``, of a classifier; called outside of any transformation.
      units: which of them, their numbers; None: all.
      block: samples in memory at a time.
      tell: told how many units are done.

    Raises:
      UserError: as ``layers``, if there is no such layer, or a unit is none of its.
    """
    _shape_of(g, z)
    names = {each.name: each for each in layers(g, z)}
    if layer not in names:
        raise UserError(f"must be one of {', '.join(names)}", argument="layer", value=layer)
    count, n = names[layer].units, len(z)
    chosen = np.arange(count) if units is None else np.asarray(units, int).reshape(-1)
    if not len(chosen) or chosen.min() < 0 or chosen.max() >= count:
        raise UserError(f"of {layer} must be from 0 to {count - 1}", argument="units")
    parts = -(-len(chosen) // max(1, block // n))
    size = -(-len(chosen) // parts)
    run = jax.jit(lambda z, off: jax.vmap(lambda one: ablate(g, z, layer, one))(off))

    def drawn(off: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        """Samples ``[m, n, ...]`` of m ablations, and their logits; always of ``size``, so that one program serves."""
        filled = np.concatenate([off, np.zeros((size - len(off), count), bool)])
        x = np.asarray(run(z, filled))[: len(off)]
        if logits is None:
            return x, [None] * len(off)
        found = np.asarray(logits(x.reshape(-1, *x.shape[2:])), np.float64)
        return x, list(found.reshape(len(off), n, -1))

    (base,), (before,) = drawn(np.zeros((1, count), bool))
    (whole,), (of_whole,) = drawn(np.ones((1, count), bool))
    rows: list[Any] = []
    for start in range(0, len(chosen), size):
        part = chosen[start : start + size]
        found = drawn(np.arange(count) == part[:, None])
        rows += [_measure(base, before, *each) for each in zip(*found, strict=True)]
        tell(len(rows))
    plain = np.asarray(jax.jit(g)(z))
    of_plain = None if logits is None else np.asarray(logits(plain), np.float64)
    pixels, histograms, histogram, changed, probabilities = map(_joined, zip(*rows, strict=True))
    return Dissection(
        names[layer],
        chosen,
        pixels,
        None if before is None else _shares(before),
        histograms,
        histogram,
        changed,
        probabilities,
        none=_control(base, before, plain, of_plain),
        all=_control(base, before, whole, of_whole),
        samples=n,
    )


def _joined(values: Sequence[Any]) -> Any:
    return None if values[0] is None else np.asarray(values)


def _shares(logits: np.ndarray) -> np.ndarray:
    """Of the samples in each class."""
    return np.bincount(logits.argmax(1), minlength=logits.shape[1]) / len(logits)


def _softmax(logits: np.ndarray) -> np.ndarray:
    found = np.exp(logits - logits.max(1, keepdims=True))
    return found / found.sum(1, keepdims=True)


def _measure(
    base: np.ndarray, before: np.ndarray | None, x: np.ndarray, after: np.ndarray | None
) -> tuple[Any, ...]:
    """What one ablation changes: pixels, and of classes the histogram, its distance, the share and the probabilities.

    ``before`` and ``after`` are logits of ``base`` and of ``x``.
    """
    pixels = float(np.mean(np.abs(x.astype(np.float64) - base)))
    if before is None or after is None:
        return pixels, None, None, None, None
    shares = _shares(after)
    distance = float(np.abs(shares - _shares(before)).sum() / 2)
    changed = float(np.mean(after.argmax(1) != before.argmax(1)))
    moved = (_softmax(after) - _softmax(before)).mean(0)
    return pixels, shares, distance, changed, moved


def _control(
    base: np.ndarray, before: np.ndarray | None, x: np.ndarray, after: np.ndarray | None
) -> Control:
    pixels, _, distance, *_ = _measure(base, before, x, after)
    spreads = [float(np.sqrt(each.var(0, dtype=np.float64).mean())) for each in (x, base)]
    share = spreads[0] / spreads[1] if spreads[1] else np.nan
    return Control(pixels, np.nan if distance is None else distance, share)
