"""Processes: of one run, or of the jobs of a sweep, each on its share of the machine; signals reach them all."""

import collections
import contextlib
import fcntl
import itertools
import math
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple, Protocol

from bpgan import cli, files, memory
from bpgan.cli import ended as _ended
from bpgan.launcher import devices
from bpgan.runtime import environment
from bpgan.types import UserError

# The folder that holds bpgan: of a checkout, or where packages are installed.
_HOME = pathlib.Path(__file__).resolve().parents[2]
_GRACE_SECONDS = 15.0
_MEMORY = 3 << 29  # bytes that a process is reckoned to need
_CANCELLED = (-signal.SIGINT, -signal.SIGTERM, cli.CANCELLED)


class Job(NamedTuple):
    """A process of a sweep, and the indices of the runs that it trains."""

    title: str
    command: list[str]
    log: pathlib.Path
    runs: list[int]
    workdirs: list[pathlib.Path]


def count_slots(jobs: int) -> int:
    """How many processes at a time, for ``--jobs``: by default one for each GPU or TPU chip.

    Without one, as many as there are cores, and memory for: on a CPU that is the fastest way to train several small
    networks.
    """
    if jobs:
        return jobs
    found = devices.find()
    if found.accelerated:
        return max(1, len(found.names))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, memory.available() // _MEMORY))


def python() -> list[str]:
    """How to start a module of ours: another directory may have modules of these names, and -P keeps them away."""
    return [sys.executable, "-m"] if _here() == _HOME else [sys.executable, "-P", "-m"]


def _here() -> pathlib.Path | None:
    """The current directory; None if it has been removed."""
    try:
        return pathlib.Path.cwd()
    except FileNotFoundError:
        return None


def child_environment() -> dict[str, str]:
    """What a child needs on top of our environment to find bpgan from any directory."""
    if _HOME in (_here(), pathlib.Path(sysconfig.get_path("purelib"))):
        return {}
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": str(_HOME) + (os.pathsep + inherited if inherited else "")}


def print_commands(
    commands: Sequence[Sequence[str]], shares: Sequence[Mapping[str, str]] = ({},)
) -> None:
    """Prints commands that a shell in this directory can run; ``shares``: variables, in turn."""
    for command, share in zip(commands, itertools.cycle(shares), strict=False):
        print(_line_of(command, {**child_environment(), **share}))


def _line_of(command: Sequence[str], environment: Mapping[str, str]) -> str:
    prefix = "".join(f"{name}={shlex.quote(value)} " for name, value in environment.items())
    return prefix + shlex.join(command)


@contextlib.contextmanager
def blame_root(path: pathlib.Path) -> Iterator[None]:
    """Around what writes a file of the sweep, whose folder is made if need be. Raises UserError if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})", argument="root") from None


def open_file(path: pathlib.Path, mode: str) -> IO[str]:
    """Opens a file of the sweep. Raises UserError if that fails."""
    with blame_root(path):
        return path.open(mode, encoding="utf-8")


class _Child:
    """A running process; knows which signals it was sent."""

    def __init__(
        self,
        command: Sequence[str],
        cores: Sequence[int],
        environment: Mapping[str, str],
        output: IO[str] | None,
    ):
        self.start = time.monotonic()
        self.signals_sent = 0
        # A session of its own: Ctrl-C reaches the children once, through us.
        with _pin(cores):
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                env={**os.environ, **environment, _ended.PARENT: str(os.getpid())},
                start_new_session=True,
            )

    def forward(self, received: Sequence[int]) -> None:
        for number in received[self.signals_sent :]:
            self.process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)
        self.signals_sent = len(received)

    @property
    def took(self) -> str:
        minutes, seconds = divmod(round(time.monotonic() - self.start), 60)
        return f"{minutes}:{seconds:02d}"


@contextlib.contextmanager
def _pin(cores: Sequence[int]) -> Iterator[None]:
    """A process started inside inherits the affinity."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def share_cores(jobs: int) -> list[list[int]]:
    """The cores of each slot: all of them shared out evenly, or nothing to pin."""
    if jobs == 1 or not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(jobs)]
    cores = sorted(os.sched_getaffinity(0))
    if jobs >= len(cores):
        return [[cores[slot % len(cores)]] for slot in range(jobs)]
    edges = [slot * len(cores) // jobs for slot in range(jobs + 1)]
    return [cores[a:b] for a, b in itertools.pairwise(edges)]


def share_devices(slots: int, jobs: int) -> list[dict[str, str]]:
    """The variables of each slot's processes, by which they see their own devices only; see ``devices.share``."""
    return devices.share(devices.find(), slots, jobs)


class Titled(Protocol):
    """What has a title to be announced by."""

    @property
    def title(self) -> str: ...


def announce(jobs: Sequence[Titled], index: int, text: str) -> None:
    """A line about one of the jobs."""
    width = len(str(len(jobs)))
    environment.say(f"[{index + 1:{width}d}/{len(jobs)}] {jobs[index].title}: {text}")


def find_reason(workdirs: Iterable[pathlib.Path], attempt: str) -> str:
    """Why an attempt at these runs failed, as its process says: that of the first one that has failed."""
    said = (_ended.read(workdir) for workdir in workdirs)
    failed = (each for each in said if each and each.attempt == attempt)
    reasons = (each.error for each in failed if each.code not in (cli.DONE, cli.INTERRUPTED))
    return next((f": {cli.message_of(error)}" for error in reasons if error.reason), "")


class _Pool:
    """The processes of a sweep: ``slots`` at a time, each on its share of the cores and of the GPUs or TPU chips.

    Args:
      jobs: all of them, in the order in which they start.
      slots: how many at a time.
      attempt: by which name the processes record how they ended.
    """

    def __init__(self, jobs: Sequence[Job], slots: int, attempt: str):
        self.waiting = collections.deque(range(len(jobs)))
        self.active: dict[int, tuple[int, _Child]] = {}  # slot -> index of the job, process
        self.codes: dict[int, int] = {}
        self._jobs, self._attempt = jobs, attempt
        self._shares = share_cores(max(1, min(slots, len(jobs))))
        self._devices = share_devices(slots, len(jobs))
        self._environment = child_environment() | {_ended.ATTEMPT: attempt}

    def start(self, received: Sequence[int]) -> None:
        """Starts a job in each slot that is free, unless a signal was received."""
        for slot, cores in enumerate(self._shares):
            if slot in self.active or not self.waiting or received:
                continue
            index = self.waiting.popleft()
            job = self._jobs[index]
            with open_file(job.log, "a") as log:
                seen = self._devices[slot]
                print("$", _line_of(job.command, seen), file=log, flush=True)
                child = _Child(job.command, cores, self._environment | seen, log)
            self.active[slot] = index, child
            announce(self._jobs, index, f"started, output in {job.log}")

    def poll(self, told: Sequence[int]) -> None:
        """Passes on the signals that there has been cause for so far, and notes which processes have ended."""
        for slot, (index, child) in list(self.active.items()):
            child.forward(told)
            code = child.process.poll()
            if code is None:
                continue
            del self.active[slot]
            if told and code in _CANCELLED:
                code = cli.INTERRUPTED  # before training began: nothing to save
            self.codes[index] = code
            reason = find_reason(self._jobs[index].workdirs, self._attempt)
            announce(self._jobs, index, f"{status_of(code)} in {child.took}{reason}")

    def terminate(self) -> None:
        for _, child in self.active.values():
            child.process.terminate()


def execute(
    jobs: Sequence[Job],
    slots: int,
    affordable: Callable[[], bool] = lambda: True,
    attempt: str = "",
) -> tuple[dict[int, int], bool]:
    """Runs everything, ``slots`` processes at a time, with a line as each starts and ends.

    No job is started when ``affordable`` says no, and those that run are told to save and stop. The processes know the
    ``attempt`` that they are, and record by it how they ended.

    Returns:
      The exit code of each job that was started, by index, and whether a signal stopped the sweep.
      SIGINT, SIGTERM and SIGHUP are passed on to the children, which save and stop.
    """
    pool = _Pool(jobs, slots, attempt)
    told: list[int] = []  # the signals for the children, in the order in which there was cause
    heard, spent = 0, False
    with collect_signals() as received:
        try:
            while pool.active or (pool.waiting and not received):
                told += received[heard:]
                heard = len(received)
                if not spent and not affordable():
                    spent = True
                    told.append(signal.SIGTERM)
                    pool.waiting.clear()
                pool.start(received)
                time.sleep(0.05)
                pool.poll(told)
        finally:
            pool.terminate()  # only if something unexpected was raised is there any
    return pool.codes, bool(received)


def train_one(command: Sequence[str], processes: int) -> int:
    """Trains one run by several processes of this machine; returns the exit code.

    The first one has our terminal. When one ends before its time it tells the others, and the first one says why; those
    that have not ended ``_GRACE_SECONDS`` later are killed. A signal tells all to save and stop, with code 75; a
    second Ctrl-C kills them.

    Raises:
      UserError: if the machine's devices cannot be shared out; see ``devices.places``.
    """
    places = place_processes(processes)
    children: list[_Child] = []
    with tempfile.TemporaryDirectory() as folder, collect_signals() as received:
        logs = [pathlib.Path(folder, str(i)) for i in range(processes)]
        try:
            for i, (cores, place) in enumerate(zip(share_cores(processes), places, strict=True)):
                environment = child_environment() | place
                with logs[i].open("w", encoding="utf-8") as log:
                    children.append(_Child(command, cores, environment, log if i else None))
            codes = _wait_for_all(children, received)
            _say_what_lead_did_not(codes, logs)
        finally:
            for child in children:  # only if something unexpected was raised
                if child.process.poll() is None:
                    child.process.kill()
    return _code_of_all(codes, received)


def place_processes(processes: int) -> list[dict[str, str]]:
    """The variables that tell each process its place among all, and which devices are its own.

    Raises:
      UserError: see ``devices.places``.
    """
    own = devices.places(devices.find(), processes)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    together = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    return [together | {"JAX_PROCESS_ID": str(i)} | own[i] for i in range(processes)]


def _wait_for_all(children: Sequence[_Child], received: list[int]) -> list[int]:
    """The exit codes of processes that train one run; one of them that dies is named at once."""
    deadline = math.inf
    while None in (codes := [child.process.poll() for child in children]):
        ended = [i for i, code in enumerate(codes) if code not in (None, cli.DONE)]
        if ended and deadline == math.inf:
            deadline = time.monotonic() + _GRACE_SECONDS
            # One that was killed ended the others, whichever of them is seen first.
            i = min(ended, key=lambda i: codes[i] or 0)
            if (codes[i] or 0) < 0 and not received:
                kept = "the checkpoints are kept, and the same command continues"
                _say_of(i, codes, f"; {kept}; ending the others")
        for child in children:
            if _is_impatient(received) or time.monotonic() > deadline:
                child.process.kill()
            elif received and not child.signals_sent:
                child.forward([signal.SIGTERM])
        time.sleep(0.05)
    return [code for code in codes if code is not None]


def _say_what_lead_did_not(codes: Sequence[int], logs: Sequence[pathlib.Path]) -> None:
    """The last words of a process that failed by itself, before the first one could hear of it."""
    for i, code in enumerate(codes):
        if code > 0 and code not in (cli.INTERRUPTED, cli.CANCELLED, codes[0]):
            _say_of(i, codes, _last_line(logs[i]))
            return


def _say_of(i: int, codes: Sequence[int | None], text: str) -> None:
    line = f"process {i} of {len(codes)}: {status_of(codes[i])}{text}"
    print(line, file=sys.stderr, flush=True)


def _is_impatient(received: Sequence[int]) -> bool:
    """Whether Ctrl-C was pressed twice. Other signals come more than once by themselves, as those of ``timeout`` do."""
    return received.count(signal.SIGINT) > 1


def _code_of_all(codes: Sequence[int], received: Sequence[int]) -> int:
    """A process that was killed, or lost another one, can go on; what a process says of itself counts for more."""
    for code in codes:
        if code in (cli.BAD_INPUT, cli.ANOMALY, cli.UNEXPECTED):
            return code
    if _is_impatient(received):
        return cli.CANCELLED
    return cli.INTERRUPTED if any(codes) else cli.DONE


@contextlib.contextmanager
def collect_signals(
    numbers: Sequence[int] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
) -> Iterator[list[int]]:
    """The signals received so far, in place of what they would do; one that was ignored still is (nohup)."""
    received: list[int] = []
    heard = [n for n in numbers if signal.getsignal(n) != signal.SIG_IGN]
    previous = {n: signal.signal(n, lambda n, frame: received.append(n)) for n in heard}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def status_of(code: int | None) -> str:
    """An exit code in words; None is that of a process that was not started."""
    if code is None:
        return "not started"
    if code < 0:
        return f"failed ({signal_name(-code)})"
    return {cli.DONE: "done", cli.INTERRUPTED: "interrupted"}.get(code, f"failed (exit {code})")


def signal_name(number: int) -> str:
    """``SIGTERM`` for 15, and so on."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return f"signal {number}"


@contextlib.contextmanager
def locked(*paths: pathlib.Path) -> Iterator[None]:
    """One launcher for what is kept in these files, where their disk has locks. The kernel gives them back.

    Raises:
      UserError: if there is another one.
    """
    with contextlib.ExitStack() as stack:
        for path in paths:
            lock = path.with_suffix(".lock")
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                unlocked = stack.enter_context(files.locked(lock))
            except BlockingIOError:
                reason = f"another launcher is at work on it, and holds {lock}"
                raise UserError(reason, argument="sweep") from None
            except OSError as error:
                reason = f"{lock}: cannot be written ({error.strerror})"
                raise UserError(reason, argument="root") from None
            if unlocked:
                print(
                    f"warning: {lock}: cannot be locked ({unlocked});"
                    " see to it that no second launcher is at work on the same sweep"
                )
            stack.callback(lock.unlink, missing_ok=True)
        yield


def is_trained(workdir: pathlib.Path) -> bool:
    """Whether a process, of whatever launcher, trains the run in a directory at this moment."""
    try:
        with (workdir / ".lock").open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # none has, or the disk has no locks
        pass
    return False


def _last_line(log: pathlib.Path) -> str:
    """The last words of a process, for people only."""
    with contextlib.suppress(OSError):
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
        return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
    return ""
