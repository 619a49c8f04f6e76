"""A run directory: who may use it, and which run it is of.

Everything in it is either replaced as a whole or, the log and its grids, cut back to the checkpoint that a run goes on
from.
"""

import contextlib
import os
import pathlib
import platform
import re
import secrets
import subprocess
import types
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from bpgan import files
from bpgan.runtime import compiler, distributed, environment, peers, records
from bpgan.types import UserError
from bpgan.version import __version__

_LOCK, _RECORD, _CHECKPOINTS = ".lock", "config.json", "checkpoints"
_FOLDERS = {_CHECKPOINTS, "samples", "hparams", "pictures"}
SAVED = ".saved"
"""In a run directory that has held a checkpoint."""

_PRIVATE = {records.SECRET, records.TERMS}
"""See ``secret``."""

_FILES = {_LOCK, SAVED, _RECORD, "metrics.jsonl", "result.json", *_PRIVATE}


def open_run(
    workdir: str | os.PathLike,
    *,
    name: str,
    config: Mapping[str, Any],
    restart_safe: frozenset[str],
    locates_data: frozenset[str] = frozenset(),
    fingerprint: str,
    measure: Mapping[str, str] = types.MappingProxyType({}),
) -> pathlib.Path:
    """Makes a run directory, or accepts the one that is there; ``write_record`` then makes it this run's.

    Layout: ``config.json``, ``metrics.jsonl``, ``events.*``, ``samples/``, ``checkpoints/``, ``curves.svg``,
    ``report.html``, ``result.json``, and ``result_at_STEP.json`` for a pause that it had passed when it was asked for.
    It may be moved or copied as a whole.

    Raises:
      UserError: if the directory cannot be written, or holds something else than a run of experiment ``name``, or one
        that has another format, whose config differs in a field that is not ``restart_safe``, whose data had another
        ``fingerprint`` or whose evaluations another ``measure``; or if its record or log is damaged. Nothing in it is
        changed then. A field that only ``locates_data`` may differ if the fingerprint is the same: the data have moved.
      ValueError: if the fingerprint is empty, with which no change would be seen.
    """
    if not fingerprint:
        raise ValueError("fingerprint must not be empty")
    path = pathlib.Path(workdir)
    try:
        environment.check_path(str(workdir))
    except ValueError as error:
        raise UserError(str(error), argument="workdir", value=workdir) from None
    try:
        if distributed.is_lead():
            path.mkdir(parents=True, exist_ok=True)
        entries = os.listdir(path) if path.exists() else []
    except OSError as error:
        reason = error.strerror
        if os.path.islink(path) and isinstance(error, FileExistsError):
            reason = f"a link to {os.readlink(path)}, which is not there"
        raise UserError(f"cannot be used ({reason})", argument="workdir", value=workdir) from None
    _check_layout(path, entries)
    reason = ""
    if path.exists() and not os.access(path, os.W_OK):
        reason = "is not writable"
    elif (old := records.read_run(path / _RECORD)) is not None:
        free = restart_safe | locates_data if fingerprint == old.data else restart_safe
        reason = _difference(path, old, name, config, free, fingerprint, measure)
    # What a process killed before its first step may leave behind does not count.
    elif set(entries) - {_LOCK, f"{_RECORD}.tmp", _CHECKPOINTS, *_PRIVATE, f"{records.SECRET}.tmp"}:
        reason = "is not empty and holds no bpgan run; name a new or empty directory"
    if reason:
        raise UserError(reason, argument="workdir", value=workdir)
    return path


def _difference(
    path: pathlib.Path,
    old: records.RunRecord,
    name: str,
    config: Mapping[str, Any],
    free: frozenset[str],
    fingerprint: str,
    measure: Mapping[str, str],
) -> str:
    """Why the run in a directory does not go on as what ``open_run`` is asked for; empty if it does.

    ``free`` are the fields that may differ; before anything was trained all may, but the experiment.
    """
    if not records.is_same_experiment(old.experiment, name):
        return f"holds a run of {old.experiment}, not of {name}"
    if not any(path.glob("checkpoints/*")) and not records.read_log(path / "metrics.jsonl"):
        return ""
    if foreign := records.foreign_format(old):
        return foreign
    changed = [
        f"`{field}` was {old.config.get(field)!r}, now {config.get(field)!r}"
        for field in sorted(set(config) | set(old.config))
        if field not in free
        and config.get(field) != old.config.get(field)
        # A flag that is newer than the run changes nothing while it is empty.
        and not (field not in old.config and config[field] == "")
    ]
    if changed:
        return (
            f"holds a run with another configuration ({'; '.join(changed)});"
            " use the same flags to resume it or another workdir"
        )
    if old.data and old.data != fingerprint:  # older records may have none
        return (
            f"the data have changed since this run began (sha256 was {old.data[:12]}, now {fingerprint[:12]});"
            " use another workdir for the new data"
        )
    if any(measure.get(name) != value for name, value in old.measure.items()):
        return (
            f"was evaluated with {_said(old.measure)} so far, and would be with {_said(measure)} from here on, whose"
            " numbers do not compare; bring that back or use another workdir"
        )
    return ""


def _check_layout(path: pathlib.Path, entries: Sequence[str]) -> None:
    """Refuses a directory, pipe or device where bpgan is to write a file, and anything else where it needs a folder.

    Seen before anything is trained or changed, it costs nothing. A hidden or temporary file that is a link would lead
    bpgan to write elsewhere.
    """
    for entry in sorted(entries):
        base = entry.removesuffix(".tmp")
        file = path / entry
        if entry in _FOLDERS and not file.is_dir():
            raise UserError(f"{entry} must be a folder", argument="workdir", value=path)
        if base in _FILES and file.is_symlink() and (entry != base or entry.startswith(".")):
            raise UserError(f"{entry} must not be a link", argument="workdir", value=path)
        if base in _FILES and not file.is_file():
            raise UserError(f"{entry} must be a file", argument="workdir", value=path)


def identity(path: pathlib.Path) -> str:
    """What tells a run from every other, and its checkpoints from theirs: as its record says, or new, 16 hex digits.

    It is random, as two runs of the same flags need not be the same: one may have trained alone, on another machine or
    towards another end. No number of the run depends on it. Several processes that train one run ask together.
    """
    old = records.read_run(path / _RECORD)
    known = old and re.fullmatch("[0-9a-f]{16}", old.run)
    raw = bytes.fromhex(old.run) if old and known else secrets.token_bytes(8)
    return distributed.agree(np.frombuffer(raw, np.uint8))[0].tobytes().hex()


def write_record(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes ``config.json``: what run this is, and the format, versions, devices and revision it is made with.

    Args:
      path: the run directory.
      record: the fields of ``records.RunRecord`` that the run knows.
    """
    versions = {"bpgan": __version__, "python": platform.python_version()}
    versions |= {p: metadata.version(p) for p in ("flax", "optax", "numpy")}
    made = compiler.circumstances()
    made |= {"versions": versions | made["versions"], "git": _git_revision()}
    files.write_json(path / _RECORD, {"format": records.FORMAT, **record, **made})


def _said(measure: Any) -> str:
    """``{"features": "classifier0-1a2b3c4d"}`` in words."""
    return ", ".join(f"{k}={v}" for k, v in dict(measure).items()) or "nothing"


def group_of(path: pathlib.Path) -> dict[str, Any] | None:
    """The group that a run was trained in, as ``write_record`` noted it; None for a run that was alone."""
    record = records.read_run(path / _RECORD)
    return None if record is None or record.group is None else records.fields(record.group)


@contextlib.contextmanager
def tidied(*paths: str | os.PathLike) -> Iterator[None]:
    """Of folders that are made in vain, nothing stays: on an error, those that are new and empty are removed.

    Of several processes of one run only the lead makes the run directory, and only the lead removes it.
    """
    new = {
        folder
        for path in paths
        for folder in (pathlib.Path(path), *pathlib.Path(path).parents)
        if not os.path.lexists(folder)
    }
    try:
        yield
    except BaseException:
        # A process that is alone may not even have devices yet, and is not asked which of several it is.
        if not peers.is_joined() or distributed.is_lead():
            for folder in sorted(new, key=lambda folder: len(folder.parts), reverse=True):
                with contextlib.suppress(OSError, ValueError):
                    folder.rmdir()
        raise


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """One process per run directory, where its disk has locks. The kernel gives it back however the process ends.

    If the run does not come to its record, the lock and an empty folder of checkpoints are removed again.
    """
    lock = path / _LOCK
    with contextlib.ExitStack() as stack:
        try:
            unlocked = stack.enter_context(files.locked(lock))
        except BlockingIOError:
            reason = "another process is training here"
            raise UserError(reason, argument="workdir", value=path) from None
        if unlocked:
            print(
                f"warning: {path}: cannot be locked ({unlocked});"
                " see to it that no second process trains here"
            )
        try:
            yield
        except BaseException:
            if not (path / _RECORD).exists():
                with contextlib.suppress(OSError):  # another process may have begun to fill it
                    lock.unlink()
                    (path / _CHECKPOINTS).rmdir()
            raise


def _git_revision() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = pathlib.Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=5)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
