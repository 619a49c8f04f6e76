"""A server for tests of downloads."""

import contextlib
import http.server
import threading

HALF, STALL, MUTE = "closes half-way", "stalls half-way", "says nothing"


class Server:
    """An HTTP server on this machine whose files and faults are what a test says.

    Attributes:
      files: contents by name, which is the last part of an address.
      faults: by name: one of the above, or a status; or a list of them, one for each request.
      parts: whether it sends the part of a file that is asked for; else it sends all of it.
      asked: the names that were asked for, and ``ranges`` what part of each; empty for all.
      urls: the addresses as they were asked for; those of other machines, if it is used as a proxy.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, str | int | list] = {}
        self.parts = True
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.urls: list[str] = []
        self.hold = threading.Event()
        self.reached = threading.Event()  # a stall
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                server._answer(self)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        name, part = request.path.rpartition("/")[2], request.headers.get("Range", "")
        self.asked.append(name)
        self.ranges.append(part)
        self.urls.append(request.path)
        fault, data = self.faults.get(name), self.files.get(name)
        if isinstance(fault, list):
            fault = fault.pop(0) if fault else None
        start = int(part.removeprefix("bytes=").removesuffix("-")) if part and self.parts else 0
        if data is not None and start >= len(data) > 0:
            fault = 416
        if isinstance(fault, int) or data is None:
            request.send_response(fault if isinstance(fault, int) else 404)
            request.send_header("Retry-After", "3600")
            request.end_headers()
            return
        if fault == MUTE:
            self.hold.wait(60)
            return
        data = data[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        with contextlib.suppress(OSError):  # the client has given up
            if fault not in (HALF, STALL):
                request.wfile.write(data)
                return
            request.wfile.write(data[: len(data) // 2])
            request.wfile.flush()
            if fault == STALL:
                self.reached.set()
                self.hold.wait(60)

    def close(self):
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
