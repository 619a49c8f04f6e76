"""The first layers of a function: what of it is affine in its argument, up to the second product with a kernel.

The function is traced, and no list of operations says which are affine: one is, in those of its operands that depend on
the argument, if its derivative by them does not depend on them. That derivative is traced as well, and it is seen in
the trace what it is computed from.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint")
_PRODUCTS = ("dot_general", "conv_general_dilated", "bpgan_conv", "bpgan_conv_input_grad")
"""Operations that a layer's kernel takes part in: a map has at most one, which names it."""


class Map(NamedTuple):
    """An affine map of the argument that an operation which is not affine takes.

    Attributes:
      layer: the scope of its product, such as ``Generator/dense0``; None if it has none.
      matrix: ``[out, in]``, of all numbers of both.
    """

    layer: str | None
    matrix: np.ndarray


def first_maps(f: Callable[[Any], Any], x: Any, *, first_product: bool = False) -> list[Map]:
    """The affine maps ``x -> A x + b`` that ``f`` is a function of, each with what follows its product.

    None is computed from another. Where a product takes what another one made, the map ends before it.

    Args:
      f: of one array, to one or several.
      x: any point.
      first_product: whether a map ends behind its first product with a matrix or a kernel, also where what follows is
        affine.
    """
    traced = _trace(f, x)
    cuts, layers = _cut(traced.jaxpr, first_product)

    @jax.jit
    def matrices(x: Any) -> Any:
        return jax.jacfwd(lambda x: _evaluate(traced.jaxpr, traced.consts, [x], cuts))(x)

    found = [np.asarray(each) for each in matrices(x)]
    return [Map(layers[v], each.reshape(-1, x.size)) for v, each in zip(cuts, found, strict=True)]


def _trace(f: Callable[..., Any], *args: Any) -> ClosedJaxpr:
    """The operations of a function, those of the functions that it calls among them."""
    traced = jax.make_jaxpr(f)(*args)
    return jax.make_jaxpr(
        lambda *args: _evaluate(traced.jaxpr, traced.consts, jax.tree.leaves(args))
    )(*args)


def _evaluate(
    jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], wanted: Sequence[Var] | None = None
) -> list[Any]:
    """The outputs, or other variables that are wanted, computed from what they need alone."""
    outputs = jaxpr.outvars if wanted is None else wanted
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else values[v]

    for eqn in _needed(jaxpr.eqns, outputs):
        with jax.named_scope(str(eqn.source_info.name_stack) or "."):
            values.update(zip(eqn.outvars, _apply(eqn, map(read, eqn.invars)), strict=True))
    return [read(v) for v in outputs]


def _apply(eqn: JaxprEqn, operands: Iterable[Any]) -> Sequence[Any]:
    if eqn.primitive.name in _CALLS:
        inner = eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]
        closed = (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())
        return _evaluate(*closed, list(operands))
    found = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return found if eqn.primitive.multiple_results else [found]


def _needed(eqns: Sequence[JaxprEqn], outputs: Iterable[Any]) -> list[JaxprEqn]:
    """The operations that these variables are computed by, in their order."""
    wanted, found = {v for v in outputs if isinstance(v, Var)}, []
    for eqn in reversed(eqns):
        if wanted.intersection(eqn.outvars):
            wanted |= {v for v in eqn.invars if isinstance(v, Var)}
            found.append(eqn)
    return found[::-1]


def _cut(jaxpr: Jaxpr, first_product: bool) -> tuple[list[Var], dict[Var, str | None]]:
    """The affine variables where what is affine ends, and the layer of every affine variable."""
    (x,) = jaxpr.invars
    layers: dict[Var, str | None] = {x: None}  # of affine variables
    sources: dict[Var, list[Var]] = {x: []}
    moved = {x}  # what depends on x
    ends: set[Var] = set()  # affine variables that something else than affine takes
    for eqn in _needed(jaxpr.eqns, jaxpr.outvars):
        moving = [isinstance(v, Var) and v in moved for v in eqn.invars]
        if not any(moving):
            continue
        moved.update(eqn.outvars)
        affine = [v for v, moves in zip(eqn.invars, moving, strict=True) if moves and v in layers]
        product = eqn.primitive.name in _PRODUCTS
        layer = next((layers[v] for v in affine if layers[v] is not None), None)
        second = product and layer is not None
        if len(affine) < sum(moving) or second or not _is_affine(eqn, moving):
            ends.update(affine)
            continue
        for v in eqn.outvars:
            layers[v] = str(eqn.source_info.name_stack) if product else layer
            sources[v] = affine
        ends.update(eqn.outvars if product and first_product else ())
    ends.update(v for v in jaxpr.outvars if isinstance(v, Var) and v in layers)
    behind: set[Var] = set()  # what is computed from ends alone
    for v in layers:  # in the order of computation
        if sources[v] and all(s in ends or s in behind for s in sources[v]):
            behind.add(v)
    return [v for v in layers if v in ends and v not in behind], layers


def _is_affine(eqn: JaxprEqn, moving: Sequence[bool]) -> bool:
    """Whether an operation is affine in the operands that move, of which at least one does."""
    along = [v for v, moves in zip(eqn.invars, moving, strict=True) if moves]
    if not all(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in [*along, *eqn.outvars]):
        return False
    avals: list[Any] = [v.aval for v in eqn.invars]
    like = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    at = [each for each, moves in zip(like, moving, strict=True) if moves]
    fixed = [each for each, moves in zip(like, moving, strict=True) if not moves]

    def derivative(fixed: Any, at: Any, along: Any) -> Any:
        def applied(*at: Any) -> Any:
            some, others = iter(at), iter(fixed)
            return list(_apply(eqn, [next(some if moves else others) for moves in moving]))

        return jax.jvp(applied, tuple(at), tuple(along))[1]

    traced = _trace(derivative, fixed, at, at).jaxpr
    used = {
        v
        for each in _needed(traced.eqns, traced.outvars)
        for v in each.invars
        if isinstance(v, Var)
    }
    used |= {v for v in traced.outvars if isinstance(v, Var)}
    points = traced.invars[len(fixed) : len(fixed) + len(at)]
    tangents = traced.invars[len(fixed) + len(at) :]
    return not used.intersection(points) and bool(used.intersection(tangents))
