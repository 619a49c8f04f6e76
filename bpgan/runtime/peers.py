"""Several processes that train one run, and what each does when another one ends.

A collective operation waits for a process that is no more, for minutes or for ever. So every process keeps a
connection with the first one. A process that ends for a reason sends it over, with its exit code: the first one says it
and passes it on, and all end alike. One that vanishes without a word is noticed, too: the kernel closes its connection,
and a heartbeat tells of lost machines. Each message is a line of JSON; an empty line is a heartbeat.
"""

import contextlib
import hmac
import ipaddress
import json
import os
import secrets
import socket
import sys
import threading
import time
from typing import Any, BinaryIO, NoReturn

import jax
import numpy as np

from bpgan.runtime import environment
from bpgan.types import UserError

_BEAT, _PATIENCE = 5.0, 25.0
GRACE = 3.0
"""Seconds for which a process that has lost another one waits for a word of why; those who said it wait longer."""
_SECRET = 16
_LONGEST = 1000
"""Characters of a reason, and bytes of a stranger's first line."""


class Peers:
    """Watches over the processes of a run until this one ends; when another one does first, ends this one as well.

    Every process makes one, at the same time, after ``jax.distributed.initialize``.

    Args:
      host: where the first process can be reached.

    Raises:
      UserError: if the first process cannot be reached, or another one does not reach it.
    """

    def __init__(self, host: str):
        from jax.experimental import multihost_utils

        self._code: int | None = None  # with which this process ends, once that is decided
        self._deciding = threading.Lock()
        self._connections: dict[int, socket.socket] = {}
        self._listeners: list[threading.Thread] = []
        self._done: set[int] = set()
        self._index, self._count = jax.process_index(), jax.process_count()
        # The secret keeps strangers from being taken for a process of the run.
        ticket = np.zeros(2 + _SECRET, np.uint8)
        server = None
        if self._index == 0:
            server = _listen_at(interface_of(host))
            port = server.getsockname()[1]
            ticket[:] = np.frombuffer(port.to_bytes(2) + secrets.token_bytes(_SECRET), np.uint8)
        told = np.asarray(multihost_utils.broadcast_one_to_all(ticket)).tobytes()
        port, secret = int.from_bytes(told[:2]), told[2:].hex()
        if server:
            self._gather(server, secret)
        else:
            try:
                connection = socket.create_connection((_bare(host), port), timeout=_PATIENCE)
                _send(connection, {"secret": secret, "index": self._index})
            except OSError as error:
                raise UserError(
                    f"the first process of this run cannot be reached at {host}:{port} ({error.strerror})"
                ) from None
            connection.settimeout(_PATIENCE)
            self._watch(connection, connection.makefile("rb"), 0)
        _start(self._beat)

    def end(self, code: int, reason: str) -> int:
        """Tells the others that this process ends, and why; returns once they have ended, or after a while.

        Only the first call counts. With code 0 this process is done, which is no reason for the others to end.

        Returns:
          The code with which to ``leave_at_once``; 0 if an ordinary exit, for which JAX waits for the others, will do.
        """
        with self._deciding:
            first = self._code is None
            if first:
                self._code = code
        for connection in list(self._connections.values()) if first else ():
            with contextlib.suppress(OSError):  # it has ended before us
                _send(connection, {"code": code, "reason": reason[:_LONGEST]})
        deadline = time.monotonic() + 2 * GRACE
        for listener in self._listeners if self._code else ():
            listener.join(max(0.0, deadline - time.monotonic()))
        return self._code or 0

    def _gather(self, server: socket.socket, secret: str) -> None:
        """Waits for the other processes; strangers are sent away."""
        deadline = time.monotonic() + _PATIENCE
        server.settimeout(0.1)
        while missing := self._count - 1 - len(self._connections):
            if time.monotonic() > deadline:
                raise UserError(f"{missing} of {self._count} processes do not reach the first one")
            with contextlib.suppress(TimeoutError):
                _start(self._greet, server.accept()[0], secret)
        server.close()

    def _greet(self, connection: socket.socket, secret: str) -> None:
        """Takes a connection for that of a process if it knows the secret."""
        connection.settimeout(_PATIENCE)
        lines = connection.makefile("rb")  # may have read more than the first line already
        try:
            said = json.loads(lines.readline(_LONGEST))
            index = said["index"]
            known = hmac.compare_digest(said["secret"].encode(), secret.encode())
            if not known or index in self._connections:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            lines.close()
            connection.close()
            return
        self._watch(connection, lines, index)

    def _watch(self, connection: socket.socket, lines: BinaryIO, index: int) -> None:
        self._connections[index] = connection
        self._listeners.append(_start(self._listen, lines, index))

    def _listen(self, lines: BinaryIO, index: int) -> None:
        """Hears another process until it hangs up. The first one is not waited for: it waits for this one."""
        with contextlib.suppress(OSError, ValueError), lines:
            for line in filter(bytes.strip, lines):
                message = json.loads(line)
                self._done.add(index)
                if message["code"]:
                    _start(self._follow, index, message["code"], message["reason"])
                if self._index:
                    return
        if index not in self._done:
            _start(self._lost, index)

    def _beat(self) -> None:
        while self._code is None:
            for connection in list(self._connections.values()):
                with contextlib.suppress(OSError):  # the listener sees it too
                    connection.sendall(b"\n")
            time.sleep(_BEAT)

    def _follow(self, index: int, code: int, reason: str) -> None:
        """Ends as another process did. Only the first process says why: it speaks for the run."""
        if self._code is None:
            reason = f"process {index} of {self._count}: {reason}" if self._index == 0 else reason
            self._end_at_once(code, reason, says=self._index == 0)

    def _lost(self, index: int) -> None:
        await_reason()
        if self._code is None:
            reason = (
                f"process {index} of {self._count} has ended or cannot be reached;"
                " the checkpoints are kept, and the same command continues"
            )
            self._end_at_once(os.EX_TEMPFAIL, reason, says=True)

    def _end_at_once(self, code: int, reason: str, *, says: bool) -> NoReturn:
        if says:
            environment.complain(f"error: {reason}")
        leave_at_once(self.end(code, reason))


_peers: Peers | None = None


def join(host: str) -> None:
    """Makes this process one of several; see ``Peers``."""
    global _peers
    _peers = Peers(host)


def is_joined() -> bool:
    """Whether this process is one of several that train a run."""
    return _peers is not None


def end(code: int, reason: str = "") -> int:
    """See ``Peers.end``; of a single process, 0."""
    return _peers.end(code, reason) if _peers else 0


def await_reason() -> None:
    """Gives another process that has ended, as it seems, the time to be heard; then this one ends as it did."""
    time.sleep(GRACE)


def leave_at_once(code: int) -> NoReturn:
    """Ends this process without the exits of others: JAX's would wait for other processes, and abort with pages."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # it may be closed
            stream.flush()
    os._exit(code)


def interface_of(host: str) -> str:
    """The address to listen at for those who know this machine as ``host``, and for nobody else if that is possible.

    Empty means all interfaces. It is needed where ``host`` is no address of this machine (a relay stands before it),
    and where it is a name that only this machine takes for its own loopback (as Debian's ``/etc/hosts`` does).
    """
    bare = _bare(host)
    try:
        family, _, _, _, where = socket.getaddrinfo(bare, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(where)
    except OSError:
        return ""
    address = str(where[0])
    by_name = bare != "localhost" and bare != address
    return "" if by_name and ipaddress.ip_address(address).is_loopback else address


def _listen_at(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family)


def _bare(host: str) -> str:
    """A host without the brackets of an IPv6 address."""
    return host.strip("[]")


def _start(function: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")
