"""Several processes that train one run, and what each does when another one ends.

A collective operation waits for a process that is no more, for minutes or for ever. So every process keeps a
connection with the first one: the kernel closes it however a process ends, and a heartbeat tells of lost machines.
"""

import os
import secrets
import socket
import sys
import threading
import time
from typing import NoReturn

import jax
import numpy as np

from bpgan.types import UserError

_BEAT, _PATIENCE = 5.0, 25.0
_GRACE = 3.0
"""A process that finds the same mistake as the one that ended first gets these seconds to say so itself."""


class Peers:
    """Watches over the processes of a run until ``leave``; when one is lost, ends this one with exit code 75.

    Every process makes one, at the same time, after ``jax.distributed.initialize``.

    Args:
      host: where the first process can be reached.

    Raises:
      UserError: if the first process cannot be reached.
    """

    def __init__(self, host: str):
        from jax.experimental import multihost_utils

        self._left = False
        self._connections: list[socket.socket] = []
        self._index, self._count = jax.process_index(), jax.process_count()
        # The secret keeps strangers from being taken for a process of the run.
        ticket = np.array([0, secrets.randbits(31)], np.int32)
        server = None
        if self._index == 0:
            server = socket.create_server(("", 0))  # its name may be that of loopback only
            ticket[0] = server.getsockname()[1]
        port, secret = map(int, multihost_utils.broadcast_one_to_all(ticket))
        if server:
            self._start(self._accept, server, secret)
        else:
            try:
                connection = socket.create_connection((host, port), timeout=_PATIENCE)
                connection.sendall(f"{secret} {self._index}\n".encode())
            except OSError as error:
                raise UserError(
                    f"the first process of this run cannot be reached at {host}:{port} ({error.strerror})"
                ) from None
            self._watch(connection, 0)
        self._start(self._beat)

    def leave(self) -> None:
        """Says that this process ends because it is done, which is no reason for the others to end."""
        self._left = True
        for connection in self._connections:
            try:
                connection.sendall(b"!")
            except OSError:
                pass  # it has left before us

    def _start(self, function, *arguments) -> None:
        threading.Thread(target=function, args=arguments, daemon=True).start()

    def _accept(self, server: socket.socket, secret: int) -> None:
        missing = set(range(1, self._count))
        while missing:
            connection, _ = server.accept()
            connection.settimeout(_PATIENCE)
            try:
                said, _, index = connection.makefile("r").readline().partition(" ")
                if said != str(secret) or int(index) not in missing:
                    raise ValueError
            except (OSError, ValueError):
                connection.close()
                continue
            missing.remove(int(index))
            self._watch(connection, int(index))
        server.close()

    def _watch(self, connection: socket.socket, index: int) -> None:
        connection.settimeout(_PATIENCE)
        self._connections.append(connection)
        self._start(self._listen, connection, index)

    def _listen(self, connection: socket.socket, index: int) -> None:
        try:
            while data := connection.recv(64):
                if b"!" in data:
                    return
        except OSError:
            pass
        self._lost(index)

    def _beat(self) -> None:
        while not self._left:
            for connection in list(self._connections):
                try:
                    connection.sendall(b".")
                except OSError:
                    pass  # the listener sees it too
            time.sleep(_BEAT)

    def _lost(self, index: int) -> None:
        time.sleep(_GRACE)
        if not self._left:
            end(f"process {index} of {self._count} has ended or cannot be reached")


def end(reason: str) -> NoReturn:
    """Ends this process at once, with one line and exit code 75: what was saved is kept, and can be gone on from.

    At an ordinary exit JAX would wait for the other processes, and then abort with pages of its own.
    """
    print(
        f"error: {reason}; the checkpoints are kept, and the same command continues",
        file=sys.stderr,
    )
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(os.EX_TEMPFAIL)
