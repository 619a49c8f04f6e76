"""Names of things that may be the project's or a user's own."""

import contextlib
import contextvars
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from bpgan.types import UserError


def find(table: Mapping[str, Any], text: str, kind: str) -> Any:
    """What a text names: an entry of a table, or ``module:attribute`` of the user's own code.

    The table is read when this is called, so an entry that was added since is found. A module is looked for where
    Python does, and last in the current directory, where a console command would not look.

    Args:
      table: what the project knows, by name.
      text: a name of the table, or ``module:attribute``; an attribute of an attribute is written with dots.
      kind: what is looked for, in words, such as "a loss".

    Raises:
      ValueError: if there is no such thing, saying what is allowed.
    """
    if text in table:
        return table[text]
    module, colon, attribute = text.partition(":")
    if not (colon and module and attribute):
        raise ValueError(
            f"must be one of {', '.join(table)}, or module:name for {kind} of your own"
        )
    try:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
        raise ValueError(f"{kind} cannot be imported ({type(error).__name__}: {error})") from error
    return found


def guard(
    function: Callable[..., Any], name: str, check: Callable[..., None]
) -> Callable[..., Any]:
    """A function of the user's own code, whose mistakes are told in one line, by its name and their place.

    Args:
      name: as the user wrote it.
      check: ``check(returned, *args)``; it raises a ValueError if the function may not return this.

    Returns:
      The function. It raises a UserError for whatever ``mistakes`` tells, and for what the check refuses.
    """

    @functools.wraps(function)
    def guarded(*args: Any, **options: Any) -> Any:
        with mistakes(f"{name}: "):
            returned = function(*args, **options)
        try:
            check(returned, *args)
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: {error}") from error
        return returned

    return guarded


@contextlib.contextmanager
def mistakes(start: str = "") -> Iterator[None]:
    """Raises a UserError for whatever the user's code raises within, but NaN and spent memory, which others tell.

    Args:
      start: of the line.
    """
    try:
        yield
    except (UserError, FloatingPointError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        raise UserError(f"{start}failed ({describe(error)})") from error


def describe(error: Exception) -> str:
    """An error in one line, with the place in the user's code that raised it, if one did."""
    library = (f"{os.sep}site-packages{os.sep}", "<frozen", os.path.dirname(__file__) + os.sep)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(part in frame.filename for part in library)]
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{reason}, {own[-1].filename}:{own[-1].lineno}" if own else reason


def check_each(value: Any) -> None:
    """That it is one number, or one for each example. Raises a ValueError if it is not."""
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1 or leaves[0] is not value or isinstance(value, str):
        raise ValueError(
            f"returned a {type(value).__name__}, must return a number for each example"
        )
    if jnp.ndim(value) > 1:
        raise ValueError(
            f"returned {list(value.shape)}, must return a number for each example, [b]"
        )


def check_remembered(returned: Any, memory: Any) -> None:
    """That it is ``(numbers, memory)``, the memory in the form of before. Raises a ValueError if it is not."""
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ValueError(f"returned a {type(returned).__name__}, must return (numbers, memory)")
    check_each(returned[0])
    old, new = ([*map(jnp.shape, jax.tree.leaves(m))] for m in (memory, returned[1]))
    if jax.tree.structure(memory) != jax.tree.structure(returned[1]) or old != new:
        raise ValueError("returned a memory of another form than it was given")


_ONLY_OWN: contextvars.ContextVar[bool] = contextvars.ContextVar("only_own", default=False)


@contextlib.contextmanager
def only_own() -> Iterator[None]:
    """Within, nothing that a name or a flag says is imported, for it may come from somebody else."""
    token = _ONLY_OWN.set(True)
    try:
        yield
    finally:
        _ONLY_OWN.reset(token)


def check_trusted(name: str) -> None:
    """Raises a UserError within ``only_own``; called before code outside bpgan, of this name, is imported."""
    if _ONLY_OWN.get():
        reason = f"would import {name}, which the run names, and run its code;"
        raise UserError(f"{reason} `trust=True` allows it")


def import_module(name: str) -> ModuleType:
    """Imports a module of the user's: from where Python looks, and last from the current directory.

    Raises:
      UserError: within ``only_own``.
    """
    check_trusted(name)
    with contextlib.suppress(FileNotFoundError):  # of a directory that has been removed
        if not {"", os.getcwd()} & set(sys.path):  # a console command does not look there
            sys.path.append(os.getcwd())
    return importlib.import_module(name)
