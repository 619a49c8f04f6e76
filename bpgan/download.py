"""Files from the network: downloaded once, resumed where they broke off, and used only if they are the right ones.

Proxies are those of the environment (``http_proxy``, ``https_proxy``, ``no_proxy``). What is there is not asked for
again, so that whatever was downloaded once needs no network.
"""

import contextlib
import http.client
import os
import pathlib
import re
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence

from bpgan import files
from bpgan.types import UserError

_STALL = 30.0
"""Seconds without a connection, or without a byte from the server, after which it is given up."""

_TRIES = 3  # of a server that breaks off, is busy or cannot be reached
_PAUSE = 0.2  # seconds before the second try, and twice as many before each further one
_BUSY = (500, 502, 503, 504)
_BLOCK = 1 << 18
_SOON = 2.0  # seconds after which a download is worth a word
_OFTEN = 10.0  # seconds between two lines about it, where there is no terminal


class _Failed(Exception):
    """A try that failed. ``again``: whether another may go better."""

    def __init__(self, reason: str, again: bool):
        super().__init__(reason)
        self.again = again


def fetch(
    urls: Sequence[str],
    path: str | os.PathLike,
    problem: Callable[[pathlib.Path], str],
    *,
    size: int = 0,
    advice: str = "",
) -> pathlib.Path:
    """A file, which is downloaded unless it is there. It gets its name only whole and verified.

    Of processes that want the same file one downloads it, and the others wait. One that was killed, or a connection
    that broke off, leaves a part that the next call goes on with.

    Args:
      urls: where the file is published; each is tried until one gives it.
      path: where it is kept.
      problem: ``problem(path)`` says what is wrong with a file, such as its SHA-256; empty if it is the right one.
      size: in bytes, to say how long it takes where the server does not tell; 0 if unknown.
      advice: what else can be done, for the message of an error.

    Raises:
      UserError: if no server gives the right file, or the file cannot be written.
    """
    path = pathlib.Path(path)
    if path.is_file() and not problem(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if not path.is_file() or problem(path):  # else another process has downloaded it
                _from_any(urls, path, problem, size, advice)
    except OSError as error:
        where = error.filename or path
        raise UserError(f"cannot write {where}: {error.strerror or error}") from None
    return path


def check_url(text: str) -> None:
    """Raises a ValueError for what is no http or https URL of a folder."""
    try:
        url = urllib.parse.urlsplit(text)
        good = url.scheme in ("http", "https") and url.hostname and (url.port or 1)
    except ValueError:
        good = False
    if not good or re.search(r"[\s?#\x00-\x1f]", text):
        raise ValueError("must be an http or https URL")


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Waits until no other process is in here, where the disk has locks."""
    with path.with_name(f".{path.name}.lock").open("a", encoding="utf-8") as file:
        files.lock(file, f"{path}: another process is downloading it; waiting")
        yield


def _from_any(
    urls: Sequence[str],
    path: pathlib.Path,
    problem: Callable[[pathlib.Path], str],
    size: int,
    advice: str,
) -> None:
    """Downloads from the first server that gives the right file. Raises a UserError if there is none."""
    faults = []
    for url in urls:
        try:
            _download(url, path, problem, size)
            return
        except _Failed as error:
            faults.append(str(error))
    raise UserError("; ".join(filter(None, [*faults, advice])))


def _download(
    url: str, path: pathlib.Path, problem: Callable[[pathlib.Path], str], size: int
) -> None:
    partial = path.with_name(f".{path.name}.partial")
    while True:
        resumed = _size(partial) > 0
        _receive_in_tries(url, partial, size)
        wrong = problem(partial)
        if not wrong:
            os.replace(partial, path)
            return
        partial.unlink()
        if not resumed:  # else the first part may be that of another file
            reason = f"{url} is not the file it should be: {wrong}"
            raise _Failed(
                f"{reason}; it was removed, the same command downloads it again", again=False
            )


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _receive_in_tries(url: str, partial: pathlib.Path, size: int) -> None:
    for attempt in range(_TRIES):
        try:
            _receive(url, partial, size)
            return
        except _Failed as error:
            if not _size(partial):
                partial.unlink(missing_ok=True)
            if not error.again or attempt == _TRIES - 1:
                raise _Failed(f"cannot download {url} ({error})", again=False) from None
        time.sleep(_PAUSE * 2**attempt)


def _receive(url: str, partial: pathlib.Path, size: int) -> None:
    """Appends what is missing of a file; a server that has no parts sends all of it."""
    begun = _size(partial)
    headers = {"User-Agent": "bpgan", **({"Range": f"bytes={begun}-"} if begun else {})}
    opener = urllib.request.build_opener()  # knows the proxies of this moment
    with _failures():
        try:
            answer = opener.open(urllib.request.Request(url, headers=headers), timeout=_STALL)
        except urllib.error.HTTPError as error:
            if begun and error.code == 416:  # there is no more of it
                return
            raise
    mode = "ab" if answer.status == 206 else "wb"
    with answer, partial.open(mode) as file:
        done = file.tell()
        length = answer.headers.get("Content-Length") or ""
        total = done + int(length) if length.isdecimal() else 0
        with _progress(partial.name[1:].removesuffix(".partial"), done, total or size) as say:
            while True:
                with _failures():
                    block = answer.read1(_BLOCK)
                if not block:
                    break
                file.write(block)
                file.flush()  # nothing is lost if this process is killed
                done += len(block)
                say(done)
    if total and done < total:
        raise _Failed("the connection was closed before the end of the file", again=True)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Whatever goes wrong with a connection becomes _Failed, with a few words for people."""
    try:
        yield
    except urllib.error.HTTPError as error:
        raise _Failed(f"HTTP status {error.code}", error.code in _BUSY) from None
    except TimeoutError:
        raise _Failed(f"the server sent nothing for {_STALL:g} s", again=False) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", error)
        reasons: dict[type, tuple[str, bool]] = {
            socket.gaierror: ("there is no server of that name, or no network", True),
            TimeoutError: (f"no connection within {_STALL:g} s", True),
            ConnectionRefusedError: ("connection refused", True),
            ConnectionResetError: ("connection reset by the server", True),
            ssl.SSLError: ("no secure connection", False),
            http.client.IncompleteRead: (
                "the connection was closed before the end of the file", True,
            ),
        }  # fmt: skip
        for kind, (reason, again) in reasons.items():
            if isinstance(cause, kind):
                raise _Failed(reason, again) from None
        lines = str(cause).strip().splitlines()
        raise _Failed(lines[0] if lines else type(error).__name__, again=False) from None


@contextlib.contextmanager
def _progress(name: str, begun: int, total: int) -> Iterator[Callable[[int], object]]:
    """``say(bytes)`` shows on stderr how far a download is, its rate and the time left, if it takes a while."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(
            total=total or None, initial=begun, desc=name, unit="B", unit_scale=True,
            delay=_SOON, file=sys.stderr,
        ) as bar:  # fmt: skip
            yield lambda done: bar.update(done - bar.n)
        return
    start = time.monotonic()
    due = start + _SOON

    def say(done: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now < due:
            return
        due = now + _OFTEN
        rate = (done - begun) / (now - start)
        whole = f" of {total / 1e6:.0f} MB" if total else " MB"
        left = f", {(total - done) / rate:.0f} s left" if total and rate else ""
        text = f"{name}: {done / 1e6:.0f}{whole}, {rate / 1e6:.1f} MB/s{left}"
        print(text, file=sys.stderr, flush=True)

    yield say
