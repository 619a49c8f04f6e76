"""A server for tests of downloads."""

import contextlib
import http.server
import threading

HALF, STALL, MUTE = "closes half-way", "stalls half-way", "says nothing"


class Server:
    """An HTTP server on this machine whose files and faults are what a test says."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, str | int] = {}  # by name: one of the above, or a status
        self.asked: list[str] = []
        self.hold = threading.Event()
        self.reached = threading.Event()  # a stall
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                name = self.path.rpartition("/")[2]
                server.asked.append(name)
                fault, data = server.faults.get(name), server.files.get(name)
                if isinstance(fault, int) or data is None:
                    self.send_response(fault if isinstance(fault, int) else 404)
                    self.send_header("Retry-After", "3600")
                    self.end_headers()
                    return
                if fault == MUTE:
                    server.hold.wait(60)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(OSError):  # the client has given up
                    if fault not in (HALF, STALL):
                        self.wfile.write(data)
                        return
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    if fault == STALL:
                        server.reached.set()
                        server.hold.wait(60)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self):
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
