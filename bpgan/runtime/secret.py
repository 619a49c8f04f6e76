"""The secret of a private run: a key that nobody may know, and what its guarantee was fixed to at its first start.

Whoever knows the key can subtract the noise. It is 32 bytes of the operating system, drawn at the first start and kept
in the run directory in a file that only its owner may read. It is in no flag, log, checkpoint or export.
"""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bpgan.files import write_json
from bpgan.runtime import distributed, records
from bpgan.types import UserError

FILE, TERMS = records.SECRET, records.TERMS
_BYTES = 32


def words(secret: bytes) -> np.ndarray:
    """The two words, uint32, of the key of JAX that a secret stands for: of its SHA-256 the first 8 bytes."""
    return np.frombuffer(hashlib.sha256(secret).digest()[:8], np.uint32).copy()


def words_of_seed(seed: int) -> np.ndarray:
    """The words of a key that everybody knows, for tests: it protects nothing."""
    return words(f"no secret {seed}".encode())


def words_of(path: pathlib.Path, seed: int) -> np.ndarray:
    """The words of the key of the run in a directory: of its secret, or, of a seed that is not negative, of that."""
    return words(read_or_make(path)) if seed < 0 else words_of_seed(seed)


def read_or_make(path: pathlib.Path) -> bytes:
    """The secret of the run in a directory, which is locked; drawn if the run is new.

    Several processes that train one run ask together and get the same.

    Raises:
      UserError: if it is damaged, or gone, though the run has been saved.
    """
    raw = _own(path / FILE, records.has_checkpoint(path)) if distributed.is_lead() else b""
    known = np.frombuffer(raw or bytes(_BYTES), np.uint8)
    return distributed.agree(known)[0].tobytes()


def _own(file: pathlib.Path, saved: bool) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        raw = file.read_bytes()
        if len(raw) == _BYTES:
            return raw
        raise UserError(f"{file}: is damaged; the run cannot go on without its secret key")
    if saved:
        raise UserError(f"{file}: is gone; the run cannot go on without its secret key")
    raw, new = os.urandom(_BYTES), file.with_name(f"{FILE}.tmp")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as opened:
        opened.write(raw)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(new, file)
    return raw


def fix_terms(path: pathlib.Path, terms: records.Terms, wanted: Mapping[str, Any]) -> records.Terms:
    """The terms that the run in a directory has been fixed to: at its first start, these.

    Args:
      path: of the run directory, which is locked.
      terms: of a run that is new.
      wanted: those of them that must be as they were, by name.

    Raises:
      UserError: if they were others, or are gone though the run has been saved.
    """
    old = records.read_terms(path / TERMS)
    if old is None:
        if records.has_checkpoint(path):
            raise UserError(f"{path / TERMS}: is gone; nothing can be said of the run's privacy")
        if distributed.is_lead():
            write_json(path / TERMS, records.fields(terms))
        return terms
    for name, value in wanted.items():
        if getattr(old, name) != value:
            reason = (
                f"this private run was begun with {name.replace('_', ' ')} {getattr(old, name)}, not {value}:"
                " its guarantee is for that; use another workdir"
            )
            raise UserError(reason, argument="workdir", value=path)
    return old
