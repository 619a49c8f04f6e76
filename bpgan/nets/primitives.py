"""Operations with a form of their own on a CPU, as primitives of JAX: one form for a CPU, one for other devices."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Array

_PLAIN: dict[Primitive, Callable[..., Array]] = {}
"""Every primitive of this module, and the function of other operations that computes the same."""


def define(
    name: str,
    form: Callable[..., Array],
    cpu_form: Callable[..., Array],
    *,
    plain: Callable[..., Array] | None = None,
) -> Primitive:
    """A primitive ``form(*arrays, **params) -> array``, to which derivatives are still to be added.

    Its shape and type are those of ``form``, and its ``vmap`` is that of ``form``.

    Args:
      name: of the primitive.
      form: what it is lowered to, and what computes it outside of programs: one operation has no loop around it.
      cpu_form: what it is lowered to on a CPU.
      plain: what stands for it in ``as_plain_lax``; by default ``form``.
    """
    prim = Primitive(name)
    prim.def_impl(form)

    def abstract(*operands: Any, **params: Any) -> Any:
        shape = jax.eval_shape(partial(form, **params), *operands).shape
        return operands[0].update(shape=shape, weak_type=False)

    def batch(operands: Any, dims: Any, **params: Any) -> Any:
        return jax.vmap(partial(form, **params), in_axes=tuple(dims))(*operands), 0

    prim.def_abstract_eval(abstract)
    batching.primitive_batchers[prim] = batch
    mlir.register_lowering(prim, mlir.lower_fun(form, multiple_results=False))
    mlir.register_lowering(prim, mlir.lower_fun(cpu_form, multiple_results=False), platform="cpu")
    _PLAIN[prim] = plain or form
    return prim


@contextlib.contextmanager
def as_plain_lax() -> Iterator[None]:
    """Within, the operations are traced as those of JAX: exporters know no primitives but JAX's own."""
    for primitive, form in _PLAIN.items():
        primitive.bind = form
    try:
        yield
    finally:
        for primitive in _PLAIN:
            del primitive.bind
