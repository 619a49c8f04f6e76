"""What surrounds a process and is not its flags: its streams, and the variables that other libraries read."""

import errno
import gc
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import TextIO

from bpgan.types import UserError

_PARSE = "from jaxlib import xla_client; xla_client.CompileOptions()"


def open_streams() -> None:
    """Gives the process the three streams that it may count on, whatever it was started with.

    What is written to a closed one is lost: left closed, its number would be that of the next file that is opened, and
    messages of C++ libraries would be written into a checkpoint. Characters that a terminal does not have are written
    as ``\\\\u00e9``.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):  # not that of a notebook or a test
            stream.reconfigure(errors="backslashreplace")


def collect_seldom() -> None:
    """Has Python look for unreachable cycles less often, and never among what has been imported.

    The trace of a step makes hundreds of thousands of objects that stay; looking through all of them again and again
    takes a tenth of the time until the first step.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def silence(stream: TextIO) -> None:
    """Discards what is written from now on: nobody reads it, as after ``| head`` or when a terminal is closed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(line: str, write: Callable[..., object] = print) -> None:
    """Prints a line on stdout at once. If nobody reads on, that is a SIGHUP, where one is listened to.

    Args:
      line: what to print.
      write: prints ``write(line, file=...)``, if not ``print`` does.

    Raises:
      UserError: if the output goes to a file that cannot be written.
    """
    try:
        write(line, file=sys.stdout)
        sys.stdout.flush()
    except OSError as error:
        silence(sys.stdout)
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise UserError(f"the output cannot be written ({error.strerror})") from None
        if signal.getsignal(signal.SIGHUP) != signal.SIG_DFL:
            signal.raise_signal(signal.SIGHUP)


def complain(line: str) -> None:
    """Prints a line on stderr, if anybody reads it."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def check_path(text: str, others: str = "; buckets can be mounted as one") -> None:
    """Refuses what is no path of this machine, for which ``pathlib`` would make a folder of that name here.

    Args:
      text: a path.
      others: what is said to be allowed beside it.

    Raises:
      ValueError: for a URL, or bytes that are no text in this locale: libraries that take text would not find the file.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise ValueError(f"must be a folder of this machine{others}")
    try:
        text.encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        raise ValueError(f"must be text in {encoding}; PYTHONUTF8=1 reads it as UTF-8") from None


def check_compiler_flags() -> None:
    """Finds out in another process what would abort this one.

    Raises:
      UserError: for ``XLA_FLAGS`` that XLA does not know.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if not given:
        return
    command = [sys.executable, "-c", _PARSE]
    parsed = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if parsed.returncode:
        said = (parsed.stderr.strip().splitlines() or ["is not understood"])[-1]
        raise UserError(f"XLA_FLAGS={given}: {said.rpartition('] ')[2]}")
