"""Signals that ask a run to stop, turned into a request that the loop reads between two calls of its program."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def listen() -> Iterator[Callable[[], str | None]]:
    """Turns the first SIGTERM, SIGHUP or SIGINT into a request; a second SIGINT interrupts at once.

    Only the main thread may do that; in another one signals are left to the program around.

    Yields:
      A function that returns the name of the signal that was received, or None.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    received: list[str] = []

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
        yield lambda: received[0] if received else None
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
