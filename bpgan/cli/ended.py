"""How a process of a sweep ended, as it says itself, and that none outlives its launcher.

The launcher names each attempt in the environment of the processes that it starts. A process that knows its attempt
writes beside the directory of every run that it trains, as ``RUN.ended``, how the run ended: the exit code, the reason,
and which argument is at fault. The launcher acts on that. What a process cannot say because it was killed, the launcher
writes in its place.
"""

import ctypes
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable

import msgspec

from bpgan.cli.flags import show
from bpgan.files import Damaged, read_json, write_json
from bpgan.types import UserError

ATTEMPT = "BPGAN_ATTEMPT"
"""In the environment: by which name the launcher knows this process."""

PARENT = "BPGAN_PARENT"
"""In the environment: the process that started this one, and that it must not outlive."""

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h

Record = Callable[[str | os.PathLike, int, Exception | None], None]
"""``record(workdir, code, error)`` says how a run ended, and by what."""


class Ended(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a run ended.

    Attributes:
      attempt: of which process.
      code: its exit code, for this run; below 0, minus the signal that killed it.
      reason: in words, for people only.
      argument, value, beside: of a refusal; see ``UserError``.
      kills: how often in a row it was killed, without having been saved in between.
      step: of the newest checkpoint when it was killed; -1 if there was none.
    """

    attempt: str
    code: int
    reason: str = ""
    argument: str = ""
    value: str | None = None
    beside: list[str] = []
    kills: int = 0
    step: int = -1

    @property
    def error(self) -> UserError:
        """What the process would have raised, for its message."""
        return UserError(self.reason, argument=self.argument, value=self.value)


def path_of(workdir: str | os.PathLike) -> pathlib.Path:
    """Where it stands how the run in a directory ended: beside it, for a refused run has none."""
    path = pathlib.Path(workdir)
    return path.with_name(path.name + ".ended")


def read(workdir: str | os.PathLike) -> Ended | None:
    """How a run ended; None if nobody said so, or what was said is damaged."""
    try:
        return read_json(path_of(workdir), Ended)
    except Damaged:
        return None


def write(workdir: str | os.PathLike, ended: Ended) -> None:
    """Writes down how a run ended. Where that cannot be written the launcher has the exit code."""
    path = path_of(workdir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, msgspec.to_builtins(ended))
    except OSError:
        return


def recorder() -> Record:
    """What the main program of an experiment records its runs with: nothing without a launcher.

    The attempt is taken out of the environment: it is not that of the processes that this one starts.
    """
    attempt = os.environ.pop(ATTEMPT, "")
    if not attempt:
        return ignore

    def record(workdir: str | os.PathLike, code: int, error: Exception | None = None) -> None:
        write(workdir, _by(error, attempt, code))

    return record


def ignore(workdir: str | os.PathLike, code: int, error: Exception | None = None) -> None:
    """Records nothing."""


def _by(error: Exception | None, attempt: str, code: int) -> Ended:
    if isinstance(error, UserError) and error.argument:
        value = None if error.value is None else show(error.value)
        reason = " ".join(error.reason.splitlines())
        return Ended(
            attempt=attempt, code=code, reason=reason,
            argument=error.argument, value=value, beside=list(error.beside),
        )  # fmt: skip
    return Ended(attempt=attempt, code=code, reason=" ".join(str(error or "").splitlines()))


def follow_parent() -> None:
    """From now on this process is told to save and stop, by SIGTERM, when the one that started it has ended.

    Only if that one asked for it. Raises SystemExit if it has ended already: nothing has begun, and nobody waits.
    """
    given = os.environ.pop(PARENT, "")
    if not given.isdecimal():
        return
    parent = int(given)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # before the kernel was asked
        sys.exit(75)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
