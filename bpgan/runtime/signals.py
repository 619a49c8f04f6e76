"""Signals that ask a run to stop, turned into a request that the loop reads between two calls of its program."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_listeners: list[list[str]] = []


def ask_to_stop(who: str) -> None:
    """Asks whoever listens now to stop, as a signal would; ``who`` is what they are told."""
    for received in _listeners:
        received.append(who)


@contextlib.contextmanager
def listen() -> Iterator[Callable[[], str | None]]:
    """Turns the first SIGTERM, SIGHUP or SIGINT into a request; a second SIGINT interrupts at once.

    Only the main thread may do that; in another one signals are left to the program around.

    Yields:
      A function that returns the name of the signal that was received, or who else asked to stop, or None.
    """
    received: list[str] = []
    _listeners.append(received)
    try:
        with _handled(received):
            yield lambda: received[0] if received else None
    finally:
        _listeners.remove(received)


@contextlib.contextmanager
def _handled(received: list[str]) -> Iterator[None]:
    """Signals are noted in ``received``, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number, frame):
        del frame
        received.append(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    handled = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    # What the process was told to ignore, as nohup does of SIGHUP, is none.
    heard = [s for s in handled if signal.getsignal(s) != signal.SIG_IGN]
    previous = {s: signal.signal(s, handler) for s in heard}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
