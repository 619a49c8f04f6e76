"""A headless Chromium, driven through its debugging pipe: no package and no open port is needed."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --mute-audio"
    " --disable-background-networking --disable-component-update --disable-extensions"
    " --hide-scrollbars --remote-debugging-pipe"
).split()
# Chromium reads from file 3 and writes to file 4. They are moved there by a process that is no fork of this one.
MOVE = """
import fcntl, os, sys
fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
os.dup2(fds[0], 3), os.dup2(fds[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def program():
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page. ``problems`` collects what the console and uncaught exceptions said."""

    def __init__(self, source, sink):
        self.source, self.sink, self.last, self.rest = source, sink, 0, b""
        self.session, self.problems, self.events = None, [], []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def receive(self):
        """The next message."""
        while b"\0" not in self.rest:
            more = os.read(self.source, 1 << 20)
            if not more:
                raise RuntimeError("the browser has ended")
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(message)
        said = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(said["exceptionDetails"]))
        elif message.get("method") == "Runtime.consoleAPICalled":
            self.problems.append(json.dumps(said["args"]))
        elif message.get("method") == "Log.entryAdded":
            self.problems.append(said["entry"]["text"])
        self.events.append(message.get("method"))
        return message

    def send(self, method, **params):
        """Sends a command and returns what the browser answers."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.sink, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.last:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, url, *, width=1280, height=900, dark=False):
        """Loads a page in a window of this size."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        for each in ("about:blank", url):  # blank between, or another hash alone would load nothing
            self.events.clear()
            self.send("Page.navigate", url=each)
            while "Page.loadEventFired" not in self.events:
                self.receive()

    def run(self, script):
        """The value of a JavaScript expression, awaited."""
        done = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in done:
            raise RuntimeError(json.dumps(done["exceptionDetails"]))
        return done["result"].get("value")

    def press(self, key):
        """Presses a key, such as ``ArrowLeft``."""
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        for kind in ("keyDown", "keyUp"):
            code = codes.get(key, 0)
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def point(self, kind, x, y):
        """A pointer event: ``mousePressed``, ``mouseMoved`` or ``mouseReleased``."""
        self.send(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button="left",
            buttons=int(kind != "mouseReleased"),
            clickCount=1,
        )

    def touch(self, kind, *points):
        """A touch event: ``touchStart``, ``touchMove`` or ``touchEnd``."""
        self.send(
            "Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in points]
        )

    def shoot(self, path, whole=True):
        """Writes a picture of the page."""
        png = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        pathlib.Path(path).write_bytes(base64.b64decode(png))


@contextlib.contextmanager
def started():
    """Starts a Chromium and ends it."""
    ours, theirs = os.pipe(), os.pipe()  # it reads from the first and writes to the second
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-c", MOVE, str(ours[0]), str(theirs[1]), program()]
        process = subprocess.Popen(
            [*command, *FLAGS, f"--user-data-dir={folder}"],
            pass_fds=(ours[0], theirs[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(ours[0]), os.close(theirs[1])
        try:
            yield Browser(theirs[0], ours[1])
        finally:
            process.terminate()
            process.wait(20)
            os.close(ours[1]), os.close(theirs[0])
