"""Matrix products as XLA computes them on a CPU: by which library, and in what form.

XLA 0.10 for a CPU gives products to YNNPACK where it can, and the others to Eigen. At the sizes of small perceptrons
Eigen is the faster by a tenth to a fifth, and has no start of its own in every sum over a batch. In the networks of
images YNNPACK's products and sums are as fast or faster. So the programs whose only products are those of matrices
leave them to Eigen (``compiler.options(matrices=True)``).

There is one form at which Eigen is slow, ``x @ w.T`` as in the gradient of a layer's inputs: it gathers the rows of w
while it multiplies. ``arranged`` writes out the transposed matrix first, which XLA would do neither by itself nor by a
transpose in the code, for it takes that into the product again. On an AMD EPYC, one core: 120 in place of 173
microseconds for ``[128, 128] @ [784, 128].T``, 265 in place of 488 for ``[64, 128] @ [3136, 128].T``.

Both follow from the program alone, never from a clock.
"""

from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    Primitive,
    jaxpr_as_fun,
    jaxprs_in_params,
)
from jax.interpreters import mlir

_ROW = 64
"""Numbers. Rows whose lengths are multiples of it share few sets of the cache, out of which they push each other."""


def arranged(traced: jax.stages.Traced) -> Callable[..., Any] | None:
    """A traced function, for a CPU, if its products are those of matrices alone; else None.

    Of a function with convolutions, or products of stacks of matrices, nothing is known here, and of the libraries of
    later versions of XLA neither.

    Returns:
      The same function of the shapes with which it was traced, to be compiled for one device with
      ``compiler.options("cpu", matrices=True)``. It can no longer be differentiated.
    """
    if jax.__version_info__ >= (0, 11) or not _are_of_matrices(traced.jaxpr):
        return None
    flat = jaxpr_as_fun(_arranged(traced.jaxpr))
    structure = jax.tree.structure(traced.out_info)
    return lambda *arguments: jax.tree.unflatten(structure, flat(*jax.tree.leaves(arguments)))


def _are_of_matrices(jaxpr: Any) -> bool:
    kinds = {_kind(eqn) for eqn in _equations(jaxpr)}
    return "matrices" in kinds and "others" not in kinds


def _equations(jaxpr: Any) -> Iterator[JaxprEqn]:
    """All, those of loops and branches as well."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from _equations(inner)


def _kind(eqn: JaxprEqn) -> str:
    name = eqn.primitive.name
    if name == "dot_general":
        (of_x, _), (batch, _) = eqn.params["dimension_numbers"]
        if not batch:  # of more axes, too, XLA makes a matrix
            return "matrices"
        types: list[Any] = [x.aval for x in eqn.invars]
        of_vectors = all(x.ndim == len(of_x) + len(batch) for x in types)
        return "" if of_vectors else "others"
    return "others" if name == "conv_general_dilated" or name.startswith("bpgan_") else ""


def _arranged(value: Any) -> Any:
    """A traced function with the second matrix of each product ``x @ w.T`` transposed in memory before it is used.

    Any part in which nothing changes is the same object: functions that are called twice are then lowered once.
    """
    if isinstance(value, ClosedJaxpr):
        inner = _arranged(value.jaxpr)
        return value if inner is value.jaxpr else value.replace(jaxpr=inner)
    if type(value) is tuple:
        parts = tuple(map(_arranged, value))
        return parts if _differ(parts, value) else value
    if not isinstance(value, Jaxpr):
        return value
    transposed = {eqn.outvars[0] for eqn in value.eqns if eqn.primitive.name == "transpose"}

    def equation(eqn: JaxprEqn) -> JaxprEqn:
        if _is_turned(eqn, transposed):
            return eqn.replace(primitive=_turned_p)
        params = {name: _arranged(x) for name, x in eqn.params.items()}
        return eqn.replace(params=params) if _differ(params.values(), eqn.params.values()) else eqn

    eqns = [equation(eqn) for eqn in value.eqns]
    return value.replace(eqns=eqns) if _differ(eqns, value.eqns) else value


def _differ(new: Iterable[Any], old: Iterable[Any]) -> bool:
    return any(a is not b for a, b in zip(new, old, strict=True))


def _is_turned(eqn: JaxprEqn, transposed: Container[Any]) -> bool:
    """Whether it is a product ``x @ w.T``, or one of x and what is such a transpose."""
    if eqn.primitive.name != "dot_general":
        return False
    types: list[Any] = [operand.aval for operand in eqn.invars]
    x, matrix = types
    (of_x, of_w), (batch, _) = eqn.params["dimension_numbers"]
    if matrix.ndim != 2 or batch or of_x != (x.ndim - 1,) or x.ndim < 2:
        return False
    if not x.dtype == matrix.dtype == jnp.float32:
        return False
    w, (rows, columns) = eqn.invars[1], matrix.shape
    if of_w == (0,) and not isinstance(w, Literal) and w in transposed:
        return rows % _ROW == 0
    return of_w == (1,) and columns % _ROW == 0


def _turned(x: jax.Array, w: jax.Array, *, dimension_numbers: Any, **params: Any) -> jax.Array:
    (of_x, of_w), none = dimension_numbers
    w = w.T if of_w == (1,) else w
    return lax.dot_general(x, lax.optimization_barrier(w), ((of_x, (0,)), none), **params)


def _abstract(x: Any, w: Any, *, dimension_numbers: Any, **params: Any) -> Any:
    ((_, (summed,)), _) = dimension_numbers
    return x.update(shape=(*x.shape[:-1], w.shape[1 - summed]))


_turned_p = Primitive("bpgan_turned_product")
_turned_p.def_impl(_turned)
_turned_p.def_abstract_eval(_abstract)
mlir.register_lowering(_turned_p, mlir.lower_fun(_turned, multiple_results=False))
