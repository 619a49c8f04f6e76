"""Functions of rows, such as a score of images: bound to their variables, and checked before any long work.

Every row goes through a function with the label that belongs to it. So labels are handed over beside the rows, where
rows are repeated, cut into blocks or put side by side, and are not closed over.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from bpgan.types import UserError


def bound(function: Callable[..., Any]) -> Partial:
    """The function as a pytree, whose leaves are its variables: what is compiled for it serves other variables too.

    Args:
      function: a ``Partial``; a record of ``apply`` and ``variables``, such as ``run.discriminator`` of a trained run,
        which means ``Partial(apply, variables)``; or any function. What that closes over is a constant of what is
        compiled for it, and it must be the same object to be compiled once.
    """
    if isinstance(function, Partial):
        return function
    if getattr(function, "_fields", ()) == ("apply", "variables"):
        return Partial(function.apply, function.variables)  # type: ignore[attr-defined]
    return Partial(function)


def call(function: Callable[..., Any], rows: Array, labels: Array | None) -> Any:
    """``function(rows, labels)``, without labels where there are none."""
    return function(rows) if labels is None else function(rows, labels)


def output(function: Callable[..., Any], name: str, row: Any, label: Any) -> tuple[int, ...]:
    """The shape that a function makes of one row, found without computing it.

    Args:
      function: ``rows[1, ...] -> [1, ...]``, or with ``labels[1]``.
      name: of the argument that holds the rows, for the error.
      row, label: arrays or shapes of one row each, ``label`` None where there is none.

    Raises:
      UserError: if the function does not take the row, or makes of it anything but an array of one row.
    """
    one, given = _stacked(row), None if label is None else _stacked(label)
    takes = f"one row of shape {list(one.shape[1:])}" + (" and its label" if given else "")
    try:
        made = jax.eval_shape(call, bound(function), one, given)
    except Exception as error:  # of any layer: each library has errors of its own
        said = str(error).partition("\n")[0]
        reason = f"the function does not take {takes} ({said})"
        raise UserError(reason, argument=name) from error
    if not hasattr(made, "shape") or made.shape[:1] != (1,):
        found = list(made.shape) if hasattr(made, "shape") else type(made).__name__
        reason = (
            f"the function must make one row of {takes}, not {found};"
            " if it closes over labels, hand them over by `labels` instead"
        )
        raise UserError(reason, argument=name)
    return tuple(made.shape[1:])


def floats(array: Any, name: str, *, least: int = 2) -> np.ndarray:
    """Finite floats with at least one row and ``least`` axes. Raises a UserError for anything else."""
    found = np.asarray(array)
    if found.dtype.kind != "f" and not _is_bfloat16(found):
        reason = f"must be floats, not {found.dtype}; images are in [-1, 1]"
        raise UserError(reason, argument=name)
    if found.ndim < least or 0 in found.shape:
        axes = ", ".join(["r", "n"][3 - least :] + ["..."])
        raise UserError(f"must be [{axes}] and not empty, not {list(found.shape)}", argument=name)
    if not np.isfinite(found.astype(np.float64)).all():
        raise UserError("must be finite, without NaN", argument=name)
    return found


def labels_of(labels: Any, n: int) -> np.ndarray | None:
    """One label for each of n rows, or None. Raises a UserError for another number of them."""
    if labels is None:
        return None
    found = np.asarray(labels)
    if not found.ndim or len(found) != n:
        reason = f"must be {n}, one for each row, not {list(found.shape)}"
        raise UserError(reason, argument="labels")
    return found


def count(value: Any, name: str, least: int = 1) -> int:
    """A whole number. Raises a UserError for anything else, or below the least."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UserError(f"must be a whole number, at least {least}", argument=name, value=value)
    return int(value)


def _stacked(row: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *np.shape(row)), row.dtype)


def _is_bfloat16(array: np.ndarray) -> bool:
    return array.dtype.name == "bfloat16"
