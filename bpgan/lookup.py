"""Names of things that may be the project's or a user's own."""

import contextlib
import importlib
import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

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
    except Exception as error:  # whatever a user's module raises while it is imported
        raise ValueError(f"{kind} cannot be imported ({type(error).__name__}: {error})") from error
    return found


def import_module(name: str) -> ModuleType:
    """Imports a module of the user's: from where Python looks, and last from the current directory."""
    with contextlib.suppress(FileNotFoundError):  # of a directory that has been removed
        if not {"", os.getcwd()} & set(sys.path):  # a console command does not look there
            sys.path.append(os.getcwd())
    return importlib.import_module(name)
