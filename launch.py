"""Runs one experiment, or a grid of them.

    python launch.py --list
    python launch.py --experiment=mnist_gan --epochs=50
    python launch.py --experiment=mnist_gan --help
    python launch.py --experiment=mnist_gan --sweep=g_lr=1e-4,2e-4 --sweep=seed=0:8 --jobs=2
    python launch.py --experiment=mnist_gan --processes=2
    python launch.py --experiment=mnist_gan --sweep=seed=0:8 --slurm --slurm_gpus=1

Flags that are not the launcher's go to the experiment. A sweep checks the flags of all first, runs
each as its own process, and ends with a table; the same command resumes what was interrupted.
With --processes, one run is trained by several processes of this machine. With --slurm, a sweep
becomes jobs of a cluster; the same command then says how far they are.
"""

import ast
import collections
import contextlib
import csv
import hashlib
import importlib
import itertools
import json
import math
import os
import pathlib
import re
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import IO, Any, NamedTuple

from absl import flags

import experiments
from bpgan.types import UserError
from experiments import _cli as cli
from experiments import _search as search
from experiments import _slurm as slurm

_FOLDER = pathlib.Path(experiments.__path__[0]).resolve()
_SEVERITY = [cli.DONE, cli.INTERRUPTED, cli.BAD_INPUT, cli.ANOMALY]  # anything else is worse
_CANCELLED = (-signal.SIGINT, -signal.SIGTERM, cli.CANCELLED)
_GRACE_SECONDS = 40.0
_FACTOR = 3  # of successive halving
_MEMORY = 3 << 29  # bytes that a process is reckoned to need


def _aim(text: str) -> search.Aim | None:
    return search.Aim.parse(text) if text else None


def _budget(text: str) -> tuple[float, str]:
    """Amount, and ``s`` or ``img``."""
    match = re.fullmatch(r"([\d.]+(?:e\d+)?)(s|m|h|img)", text) if text else None
    if text and not match:
        raise ValueError("must be like 90s, 30m, 2h or 5e6img")
    if match is None:
        return math.inf, "s"
    factor = {"s": 1.0, "m": 60.0, "h": 3600.0, "img": 1.0}[match[2]]
    return float(match[1]) * factor, "img" if match[2] == "img" else "s"


_FLAGS = (
    cli.Flag("experiment", str, "", "which experiment to run"),
    cli.Flag("list", bool, False, "describe the experiments and stop"),
    cli.Flag(
        "sweep",
        str,
        "",
        "values of a flag: NAME=V1,V2,... or, for whole numbers, NAME=LOW:HIGH (HIGH excluded), or drawn:"
        " NAME=log:LOW:HIGH, NAME=uniform:LOW:HIGH, NAME=choice:V1,V2,...; may be repeated, then every combination is"
        " run",
    ),
    cli.Flag("samples", int, 0, "how often the drawn axes of a sweep are drawn", low=0),
    cli.Flag(
        "search",
        str,
        "all",
        "all; halving (one in three of the settings trains three times as long, and so on); tpe (by Optuna)",
        choices=("all", "halving", "tpe"),
    ),
    cli.Flag("search_seed", int, 0, "of what is drawn", low=0),
    cli.Flag("aim", str, "", "what a search looks for: min:METRIC or max:METRIC", check=_aim),
    cli.Flag(
        "budget",
        str,
        "",
        "at which no more of a sweep is trained: 90s, 30m, 2h or, in images, 5e6img",
        check=_budget,
    ),
    cli.Flag(
        "vectorize",
        str,
        "auto",
        "runs that differ in numbers only as one program: auto, on (of all there are), off (a process for each run)",
        choices=("auto", "on", "off"),
    ),
    cli.Flag(
        "jobs",
        int,
        0,
        "processes of a sweep at a time; each gets its share of the cores; 0: one for each core, or one if there are"
        " accelerators",
        low=0,
    ),
    cli.Flag(
        "processes",
        int,
        1,
        "processes that train one run together, each on its share of a batch",
        low=1,
        high=1024,
    ),
    cli.Flag("root", str, "runs", "runs go to ROOT/EXPERIMENT/NAME"),
    cli.Flag("dry_run", bool, False, "print the commands and stop"),
    *slurm.FLAGS,
)
_REPEATED = ("sweep", "slurm_option")


class Run(NamedTuple):
    """One combination of a sweep: the swept values by flag, what else decides its numbers, and how it runs alone.

    Attributes:
      values: by flag.
      workdir: its run directory.
      command: the process that runs it.
      code: the values of all flags that no group can vary.
      common, own: flags of the command that others share, and those that are this run's.
    """

    values: dict[str, Any]
    workdir: pathlib.Path
    command: list[str]
    code: str = ""
    common: tuple[str, ...] = ()
    own: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return " ".join(f"{name}={cli.show(value)}" for name, value in self.values.items())


class Job(NamedTuple):
    """A process of a sweep, and the indices of the runs that it trains."""

    title: str
    command: list[str]
    log: pathlib.Path
    runs: list[int]
    workdir: pathlib.Path  # of the first of them


def names() -> list[str]:
    """The experiments there are: files of ``experiments/`` that do not begin with ``_``."""
    return sorted(p.stem for p in _FOLDER.glob("*.py") if not p.name.startswith("_"))


def describe(name: str) -> tuple[str, list[str]]:
    """First docstring line and preset names of an experiment, read without importing it."""
    tree = ast.parse((_FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        if [t.id for t in targets if isinstance(t, ast.Name)] == ["PRESETS"]:
            keys = node.value.keys if isinstance(node.value, ast.Dict) else []
            return summary, [str(k.value) for k in keys if isinstance(k, ast.Constant)]
    return summary, []


def axes_of(module: ModuleType, argv: Sequence[str], sweeps: Sequence[str]) -> list[search.Axis]:
    """The axes of a sweep, checked against each other and the flags beside them.

    Raises:
      UserError: for a sweep that makes no sense.
    """
    specs = cli.flags_of(module.Config)
    axes: dict[str, search.Axis] = {}
    for text in sweeps:
        axis = search.parse(text, specs)
        if axis.name in axes:
            raise UserError(
                f"--sweep={text}: {axis.name} is swept twice; list its values in one --sweep"
            )
        if any(re.match(rf"--?(no)?{axis.name}(=|$)", arg) for arg in argv):
            raise UserError(
                f"--sweep={text}: --{axis.name} is also given as a flag; drop one of them"
            )
        axes[axis.name] = axis
    if any(re.match(r"--?workdir(=|$)", arg) for arg in argv):
        raise UserError("--workdir: cannot be combined with --sweep; use --root")
    return list(axes.values())


def plan(
    name: str,
    module: ModuleType,
    argv: Sequence[str],
    combinations: Sequence[Mapping[str, str]],
    root: str,
) -> list[Run]:
    """The runs of all combinations of swept values, checked.

    A run's directory is named after its swept values and a hash of the other settings that decide
    its numbers; so the same command finds it again, also with more epochs or another interval.

    Raises:
      UserError: for a combination that the experiment refuses, or two that are the same.
    """
    specs = cli.flags_of(module.Config)
    fixed = cli.restart_safe(module.Config)
    runs: dict[pathlib.Path, Run] = {}
    for texts in combinations:
        own = [f"--{k}={v}" for k, v in texts.items()]
        arguments = [*argv, *own]
        cfg = cli.resolve(module.Config, module.PRESETS, arguments, other_flags=cli.LAUNCHER_FLAGS)
        # Canonical: 1e-4 and 0.0001 are one run. A preset is no field; it counts as written.
        swept = {k: getattr(cfg, k, v) for k, v in texts.items()}
        rest = {k: getattr(cfg, k) for k in sorted(specs) if k not in fixed and k not in swept}
        digest = hashlib.sha256(json.dumps(rest).encode()).hexdigest()[:6]
        label = "_".join(
            f"{k}={urllib.parse.quote(cli.show(v), safe='+')}" for k, v in swept.items()
        )
        workdir = pathlib.Path(root, name, f"{label}_{digest}")
        command = [*_python(), f"experiments.{name}", *arguments, f"--workdir={workdir}"]
        code = {k: getattr(cfg, k) for k, f in specs.items() if not f.sweepable and k != "workdir"}
        run = Run(
            swept, workdir, command, json.dumps(code), tuple(argv), (*own, f"--workdir={workdir}")
        )
        if workdir in runs:
            raise UserError(f"--sweep: {run.title} occurs twice")
        runs[workdir] = run
    return list(runs.values())


def jobs_of(name: str, runs: Sequence[Run], vectorize: str, slots: int) -> list[Job]:
    """The processes that train these runs.

    Runs whose flags differ only in what ``sweepable`` fields say become groups, each one program; in ``auto``, groups
    are cut so that no slot is idle.
    """
    groups: dict[Any, list[int]] = {}
    for index, run in enumerate(runs):
        groups.setdefault(index if vectorize == "off" else run.code, []).append(index)
    parts = -(-slots // len(groups)) if vectorize == "auto" else 1
    jobs = []
    for members in groups.values():
        size = -(-len(members) // min(parts, len(members)))
        for start in range(0, len(members), size):
            jobs.append(_job(name, runs, members[start : start + size]))
    return jobs


def _job(name: str, runs: Sequence[Run], members: list[int]) -> Job:
    first, last = runs[members[0]], runs[members[-1]]
    if len(members) == 1:
        log = first.workdir.with_name(first.workdir.name + ".log")
        return Job(first.title, first.command, log, members, first.workdir)
    flags_of_members = [f"--member={shlex.join(runs[i].own)}" for i in members]
    digest = hashlib.sha256("".join(flags_of_members).encode()).hexdigest()[:6]
    log = first.workdir.with_name(f"group_{'_'.join(first.values)}_{digest}.log")
    command = [*_python(), "experiments._group", name, *first.common, *flags_of_members]
    return Job(
        f"{len(members)} runs, {first.title} ... {last.title}", command, log, members, first.workdir
    )


def _slots(jobs: int) -> int:
    """How many processes at a time, for ``--jobs``: by default one for each core that there is memory for.

    On a CPU that is the fastest way to train several small networks; several processes on an accelerator get into each
    other's way.
    """
    if jobs or _accelerated():
        return jobs or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(cores or 1, memory // _MEMORY))


def _accelerated() -> bool:
    """Whether JAX would use a GPU or TPU, without starting it."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.partition(",")[0] != "cpu"
    return _gpus() > 0 or any(pathlib.Path("/dev").glob("accel[0-9]*"))


def _python() -> list[str]:
    # Another directory may have an `experiments` of its own: -P keeps it from shadowing ours.
    here = pathlib.Path.cwd() == _FOLDER.parent
    return [sys.executable, "-m"] if here else [sys.executable, "-P", "-m"]


def _environment() -> dict[str, str]:
    """What a child needs on top of our environment to find the experiments from any directory."""
    home = _FOLDER.parent
    if home in (pathlib.Path.cwd(), pathlib.Path(sysconfig.get_path("purelib"))):
        return {}
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": str(home) + (os.pathsep + inherited if inherited else "")}


def dry_run(commands: Sequence[Sequence[str]]) -> None:
    """Prints commands that a shell in this directory can run."""
    prefix = "".join(f"{k}={shlex.quote(v)} " for k, v in _environment().items())
    for command in commands:
        print(prefix + shlex.join(command))


def _open(path: pathlib.Path, mode: str) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open(mode, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--root: {path}: cannot be written ({error.strerror})") from None


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
        with _pinned(cores):
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                env={**os.environ, **environment},
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
def _pinned(cores: Sequence[int]) -> Iterator[None]:
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


def _shares(jobs: int) -> list[list[int]]:
    """The cores of each slot: all of them shared out evenly, or nothing to pin."""
    if jobs == 1 or not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(jobs)]
    cores = sorted(os.sched_getaffinity(0))
    if jobs >= len(cores):
        return [[cores[slot % len(cores)]] for slot in range(jobs)]
    edges = [slot * len(cores) // jobs for slot in range(jobs + 1)]
    return [cores[a:b] for a, b in itertools.pairwise(edges)]


def execute(
    jobs: Sequence[Job], slots: int, affordable: Callable[[], bool] = lambda: True
) -> tuple[dict[int, int], bool]:
    """Runs everything, ``slots`` processes at a time, with a line as each starts and ends.

    No job is started when ``affordable`` says no, and those that run are told to save and stop.

    Returns:
      The exit code of each job that was started, by index, and whether a signal stopped the sweep.
      SIGINT, SIGTERM and SIGHUP are passed on to the children, which save and stop.
    """
    environment = _environment()
    if slots > 1:  # otherwise the first process takes most of a GPU's memory
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = os.environ.get(
            "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
        )
    shares = _shares(min(slots, len(jobs)))
    waiting = collections.deque(range(len(jobs)))
    active: dict[int, tuple[int, _Child]] = {}  # slot -> index of the job, process
    codes: dict[int, int] = {}

    def say(index: int, text: str) -> None:
        width = len(str(len(jobs)))
        print(f"[{index + 1:{width}d}/{len(jobs)}] {jobs[index].title}: {text}", flush=True)

    with _received() as received:
        try:
            while active or (waiting and not received):
                if not affordable():
                    waiting.clear()
                    for _, child in active.values():
                        child.forward([signal.SIGTERM])
                for slot, cores in enumerate(shares):
                    if slot not in active and waiting and not received:
                        index = waiting.popleft()
                        with _open(jobs[index].log, "a") as log:
                            print("$", shlex.join(jobs[index].command), file=log, flush=True)
                            child = _Child(jobs[index].command, cores, environment, log)
                        active[slot] = index, child
                        say(index, f"started, output in {jobs[index].log}")
                time.sleep(0.05)
                for slot, (index, child) in list(active.items()):
                    child.forward(received)
                    code = child.process.poll()
                    if code is None:
                        continue
                    del active[slot]
                    if received and code in _CANCELLED:
                        code = cli.INTERRUPTED  # before training began: nothing to save
                    codes[index] = code
                    last = _last_line(jobs[index].log, code)
                    say(index, f"{_status(code)} in {child.took}{last}")
        finally:
            for _, child in active.values():  # only if something unexpected was raised
                child.process.terminate()
    return codes, bool(received)


def together(command: Sequence[str], processes: int) -> int:
    """Trains one run by several processes of this machine; returns the exit code.

    The first one has our terminal. Signals are passed on to all. When one ends before its time the others cannot go
    on: they find out by themselves, and are ended if they do not within ``_GRACE_SECONDS``; the code is then 75, for
    what was saved is kept and the same command goes on.

    Raises:
      UserError: if the machine's GPUs cannot be shared out evenly.
    """
    gpus = _gpus()
    if gpus % processes:
        raise UserError(
            f"--processes={processes}: {gpus} GPUs cannot be shared out evenly; must be a divisor of {gpus}"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    children: list[_Child] = []
    with tempfile.TemporaryDirectory() as folder, _received() as received:
        logs = [pathlib.Path(folder, str(i)) for i in range(processes)]
        try:
            for i, cores in enumerate(_shares(processes)):
                environment = _environment() | {
                    "JAX_COORDINATOR_ADDRESS": address,
                    "JAX_NUM_PROCESSES": str(processes),
                    "JAX_PROCESS_ID": str(i),
                }
                share = gpus // processes
                if share:
                    ids = range(i * share, (i + 1) * share)
                    environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, ids))
                with logs[i].open("w") as log:
                    children.append(_Child(command, cores, environment, log if i else None))
            codes: list[int | None] = [None] * processes
            deadline = None
            while None in codes:
                time.sleep(0.05)
                for child in children:
                    child.forward(received)
                codes = [child.process.poll() for child in children]
                ended = [i for i, code in enumerate(codes) if code not in (None, cli.DONE)]
                if ended and deadline is None and not received:
                    # One that was killed ended the others, whichever of them is seen first.
                    i = min(ended, key=lambda i: codes[i] or 0)
                    code = codes[i] or 0
                    deadline = time.monotonic() + _GRACE_SECONDS
                    said = _last_line(logs[i], code) if code > 0 else ""
                    if code < 0:
                        said = "; the checkpoints are kept, and the same command continues"
                    print(
                        f"process {i} of {processes}: {_status(code)}{said}; ending the others",
                        file=sys.stderr,
                        flush=True,
                    )
                if deadline and time.monotonic() > deadline:
                    for child in children:
                        child.process.kill()
        finally:
            for child in children:  # only if something unexpected was raised
                if child.process.poll() is None:
                    child.process.kill()
    # A process that was killed, or lost another one, can go on; what a process says of itself counts for more.
    told = [code for code in codes if code in (cli.BAD_INPUT, cli.ANOMALY, cli.UNEXPECTED)]
    if received and not told and any(code in _CANCELLED for code in codes):
        return cli.CANCELLED
    return told[0] if told else max(cli.INTERRUPTED * bool(code) for code in codes)


def _gpus() -> int:
    """How many NVIDIA GPUs the processes may use, without starting JAX."""
    if os.environ.get("JAX_PLATFORMS", "cuda").partition(",")[0] not in ("cuda", "gpu", ""):
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name and name != "-1"])
    return len(list(pathlib.Path("/dev").glob("nvidia[0-9]*")))


@contextlib.contextmanager
def _received() -> Iterator[list[int]]:
    """The signals received so far, in place of what they would do."""
    received: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _status(code: int | None) -> str:
    if code is None:
        return "not started"
    if code < 0:
        return f"failed ({signal.Signals(-code).name})"
    return {cli.DONE: "done", cli.INTERRUPTED: "interrupted"}.get(code, f"failed (exit {code})")


def _last_line(log: pathlib.Path, code: int) -> str:
    if code in (cli.DONE, cli.INTERRUPTED):
        return ""
    with contextlib.suppress(OSError):
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
        return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
    return ""


def summarise(runs: Sequence[Run], codes: Mapping[int, int], csv_path: pathlib.Path) -> None:
    """Prints the final metrics of every run, their mean over seeds, and writes them all as CSV."""
    rows, numbers = [], []
    for index, run in enumerate(runs):
        result: dict[str, Any] = {}
        if codes.get(index) in (cli.DONE, cli.INTERRUPTED):
            with contextlib.suppress(OSError, ValueError):
                result = json.loads((run.workdir / "result.json").read_text())
        values = {name: cli.show(value) for name, value in run.values.items()}
        status = {"status": _status(codes.get(index)), "step": result.get("step", "")}
        rows.append(values | status)
        numbers.append(result.get("metrics", {}))
    keys = list(dict.fromkeys(key for metrics in numbers for key in metrics))
    with _open(csv_path, "w") as file:
        names = [*rows[0], "workdir", *keys]
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        for run, row, metrics in zip(runs, rows, numbers, strict=True):
            writer.writerow(row | {"workdir": run.workdir} | metrics)
    shown = [key for key in keys if not key.startswith("time/") and not key.endswith("_norm")]
    print()
    print_table(
        [
            row | {key: f"{metrics[key]:.4g}" if key in metrics else "" for key in shown}
            for row, metrics in zip(rows, numbers, strict=True)
        ]
    )
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        if codes.get(index) == cli.DONE and numbers[index]:
            setting = Run({k: v for k, v in run.values.items() if k != "seed"}, run.workdir, [])
            groups.setdefault(setting.title, []).append(index)
    if "seed" in runs[0].values and any(len(members) > 1 for members in groups.values()):
        print("\nmean ± standard deviation over seeds")
        print_table(
            [
                {k: v for k, v in rows[members[0]].items() if k in runs[0].values and k != "seed"}
                | {"seeds": str(len(members))}
                | {
                    key: _mean([numbers[i][key] for i in members if key in numbers[i]])
                    for key in shown
                }
                for members in groups.values()
            ]
        )
    print(f"\nall metrics: {csv_path}")


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.4g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows of equal keys, right-aligned under their names."""
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())


class Sweep:
    """The runs of one command, trained as their processes' slots allow, within a budget that is kept on disk.

    Args:
      name: of the experiment.
      folder: of the runs; what the sweep remembers is there, too.
      label: of the sweep, a function of its flags.
      vectorize, slots: see ``jobs_of``.
      budget: amount and unit; see ``_budget``.
      cluster: where to train; None: here.
    """

    def __init__(
        self,
        name: str,
        folder: pathlib.Path,
        label: str,
        vectorize: str,
        slots: int,
        budget: tuple[float, str],
        cluster: slurm.Options | None,
    ):
        self.cluster, self.submitted = cluster, False
        self.name, self.folder, self.label = name, folder, label
        self.vectorize, self.slots, self.budget = vectorize, slots, budget
        self.runs: dict[pathlib.Path, Run] = {}
        self.codes: dict[pathlib.Path, int] = {}
        self.logs: dict[pathlib.Path, pathlib.Path] = {}
        self.interrupted = False
        self._ledger = folder / f"sweep_{label}.json"
        self._start = time.monotonic()
        self._before = float(_result(self._ledger).get("seconds", 0.0))

    def affordable(self) -> bool:
        """Whether the budget is not spent."""
        amount, unit = self.budget
        if unit == "s":
            return self._before + time.monotonic() - self._start < amount
        return sum(map(_images, self.runs)) < amount

    def train(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """Trains runs, and returns the results they left."""
        self.runs |= {run.workdir: run for run in runs}
        jobs = jobs_of(self.name, runs, self.vectorize, self.slots)
        if self.cluster:
            told = slurm.submit(jobs, self.cluster, self.slots, _environment())
        else:
            told = execute(jobs, self.slots, self.affordable)
        if told is None:
            self.submitted = True
            return []
        ended, interrupted = told
        self.interrupted |= interrupted
        for at, code in ended.items():
            for index in jobs[at].runs:
                path = runs[index].workdir
                self.codes[path] = code if len(jobs[at].runs) == 1 else _code(runs[index], code)
                self.logs[path] = jobs[at].log
        spent = self._before + time.monotonic() - self._start
        with _open(self._ledger, "w") as file:
            json.dump({"seconds": round(spent, 1)}, file)
        return [_result(run.workdir / "result.json") for run in runs]

    @property
    def over(self) -> bool:
        """Whether nothing more is to be trained."""
        return self.interrupted or not self.affordable()

    def end(self) -> int:
        """Reports on all runs; returns the exit code: 0, 75, or the worst of the runs'."""
        if self.submitted:
            return cli.DONE
        runs = list(self.runs.values())
        codes = {i: self.codes[r.workdir] for i, r in enumerate(runs) if r.workdir in self.codes}
        summarise(runs, codes, self.folder / f"sweep_{self.label}.csv")
        for path, code in self.codes.items():
            if code not in (cli.DONE, cli.INTERRUPTED):
                print(
                    f"{self.runs[path].title}: {_status(code)}{_last_line(self.logs[path], code)}"
                )
                print(f"  {self.logs[path]}")
        if self.interrupted:
            print("interrupted; the same command continues")
            return cli.INTERRUPTED
        done = [code for code in codes.values() if code != cli.INTERRUPTED]
        if not self.affordable():
            print("the budget is spent; the same command with a greater --budget goes on")
        else:
            done = list(codes.values())
        worst = max(done, key=lambda c: _SEVERITY.index(c) if c in _SEVERITY else 99, default=0)
        return worst if worst in _SEVERITY else cli.UNEXPECTED


def _result(path: pathlib.Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_text())
        return value if isinstance(value, dict) else {}
    return {}


def _images(workdir: pathlib.Path) -> int:
    """Real images that a run has seen."""
    config = _result(workdir / "config.json").get("config", {})
    step = _result(workdir / "result.json").get("step", 0)
    return int(step) * int(config.get("batch_size", 0)) * int(config.get("d_steps", 1))


def _code(run: Run, code: int) -> int:
    """How a run of a group ended, whose process ended with ``code``."""
    told = {
        "done": cli.DONE, "paused": cli.DONE, "non-finite": cli.ANOMALY, "anomaly": cli.ANOMALY,
    }  # fmt: skip
    status = _result(run.workdir / "result.json").get("status", "")
    return told.get(status, cli.INTERRUPTED if code in _SEVERITY else code)


def halve(sweep: Sweep, runs: Sequence[Run], aim: search.Aim) -> None:
    """Successive halving of the settings of these runs; see ``search.rungs``."""
    left = list(search.settings([run.values for run in runs]).values())
    steps = search.rungs(len(left), _FACTOR)
    for rung, (share, _) in enumerate(steps):
        indices = [i for setting in left for i in setting]
        part = [_paused(runs[i], share) for i in indices]
        results = dict(zip(indices, sweep.train(part), strict=True))
        if sweep.over:
            return
        scores = [aim.score([results[i] for i in setting]) for setting in left]
        order = sorted(range(len(left)), key=lambda i: scores[i])
        best = left[order[0]]
        print(
            f"rung {rung + 1} of {len(steps)}: {len(left)} settings at {share:.3g} of a run;"
            f" best: {_setting(runs[best[0]])}, {aim.metric} {aim.sign * scores[order[0]]:.4g}",
            flush=True,
        )
        if rung + 1 < len(steps):
            keep = steps[rung + 1][1]
            left = [left[i] for i in order[:keep] if math.isfinite(scores[i])]
            if not left:
                raise UserError(f"--search=halving: no setting reached rung {rung + 2}")


def _paused(run: Run, share: float) -> Run:
    if share >= 1:
        return run
    flag = f"--pause_at={share:.6g}"
    return run._replace(command=[*run.command, flag], common=(*run.common, flag))


def _setting(run: Run) -> str:
    return run._replace(values={k: v for k, v in run.values.items() if k != "seed"}).title


def ask(
    sweep: Sweep,
    study: search.Study,
    axes: Sequence[search.Axis],
    samples: int,
    aim: search.Aim,
    planned: Callable[[Sequence[Mapping[str, str]]], list[Run]],
) -> None:
    """Trains what the study asks for, generation by generation."""
    best = math.inf
    while (left := samples - study.done()) > 0 and not sweep.over:
        trials = study.generation(min(left, search.GENERATION))
        groups = [planned(search.crossed(axes, [texts])) for _, texts in trials]
        runs = {run.workdir: run for group in groups for run in group}
        results = dict(zip(runs, sweep.train(list(runs.values())), strict=True))
        if sweep.over:
            return
        for (number, _), group in zip(trials, groups, strict=True):
            score = aim.score([results[run.workdir] for run in group])
            study.tell(number, score)
            if score < best:
                best = score
                print(f"best so far: {_setting(group[0])}, {aim.metric} {aim.sign * score:.4g}")


def run(argv: Sequence[str]) -> int:
    """The launcher as a function of its arguments; returns the exit code."""
    values = flags.FlagValues()
    for spec in _FLAGS:
        if spec.name in _REPEATED:
            flags.DEFINE_multi_string(spec.name, [], spec.help, flag_values=values)
        else:
            cli.define(values, spec)
    values["slurm"].boolean = True  # it needs no value
    rest = [arg for arg in cli.parse(values, argv, known_only=True) if arg != "--"]
    chosen = {spec.name: values[spec.name].value or spec.default for spec in _FLAGS}
    name, sweeps = chosen["experiment"], values["sweep"].value
    if chosen["list"]:
        print("\n".join(_list()))
        return cli.DONE
    if not name:
        if cli.is_help(rest):
            rows = [(_usage(spec), spec.help) for spec in _FLAGS]
            print("\n".join([str(__doc__), *cli.columns(rows), "", "Experiments:", *_list()]))
            return cli.DONE
        raise UserError(_what_instead(rest))
    if name not in names():
        hint = cli.did_you_mean(name, names())
        raise UserError(f"--experiment={name}: must be one of {', '.join(names())}{hint}")
    module = importlib.import_module(f"experiments.{name}")
    if cli.is_help(rest):
        return cli.run(module.Config, _action(module), module.PRESETS, ["--help"])
    if (sweeps or chosen["processes"] > 1) and not issubclass(module.Config, cli.RunConfig):
        raise UserError(
            f"--experiment={name}: does not train; --sweep and --processes need one that does"
        )
    cluster = slurm.options(chosen, [spec.name for spec in _FLAGS if values[spec.name].present])
    if cluster and not sweeps:
        raise UserError("--slurm: submits a sweep; a single run is --sweep=seed=0")
    if sweeps and chosen["processes"] > 1 and not cluster:
        raise UserError(f"--processes={chosen['processes']}: cannot be combined with --sweep")
    if sweeps:
        return _sweep(name, module, rest, sweeps, chosen, cluster)
    cfg = cli.resolve(module.Config, module.PRESETS, rest, other_flags=cli.LAUNCHER_FLAGS)
    if chosen["root"] != "runs" and not cfg.workdir:
        folder = pathlib.Path(chosen["root"], name, cli.run_name(cfg, module.PRESETS))
        rest = [f"--workdir={folder}", *rest]
    command = [*_python(), f"experiments.{name}", *rest]
    if chosen["dry_run"]:
        dry_run([command])
        return cli.DONE
    if chosen["processes"] > 1:
        return together(command, chosen["processes"])
    return cli.run(module.Config, _action(module), module.PRESETS, rest)


def _sweep(
    name: str,
    module: ModuleType,
    argv: Sequence[str],
    sweeps: Sequence[str],
    chosen: dict[str, Any],
    cluster: slurm.Options | None,
) -> int:
    """Runs a sweep; returns the exit code."""
    kind, samples, seed = chosen["search"], chosen["samples"], chosen["search_seed"]
    aim, slots = _aim(chosen["aim"]), _slots(chosen["jobs"])
    if cluster and not cluster.local:  # elsewhere: a group is one job
        slots = max(chosen["jobs"], 1)
        if kind != "all" or chosen["budget"]:
            raise UserError(
                "--slurm: submits all runs at once; --search and --budget need --slurm=local"
            )
    vectorize = "off" if chosen["processes"] > 1 else chosen["vectorize"]
    if (kind != "all") != (aim is not None):
        raise UserError(
            f"--search={kind}: --aim=min:METRIC {'must' if kind != 'all' else 'cannot'} be given"
        )
    axes = axes_of(module, argv, sweeps)
    combinations = search.combinations(axes, samples, seed)

    def planned(combinations: Sequence[Mapping[str, str]]) -> list[Run]:
        return plan(name, module, argv, combinations, chosen["root"])

    runs = planned(combinations)
    if chosen["dry_run"]:
        dry_run([job.command for job in jobs_of(name, runs, vectorize, slots)])
        return cli.DONE
    first = runs[0].workdir
    label = f"{'_'.join(runs[0].values)}_{first.name.rpartition('_')[2]}"
    sweep = Sweep(name, first.parent, label, vectorize, slots, _budget(chosen["budget"]), cluster)
    if kind == "halving" and aim:
        halve(sweep, runs, aim)
    elif kind == "tpe" and aim:
        if not samples:
            raise UserError("--search=tpe: needs axes to draw and --samples=N")
        study = search.Study(first.parent / f"tpe_{label}_{seed}.log", axes, seed)
        ask(sweep, study, axes, samples, aim, planned)
    else:
        sweep.train(runs)
    return sweep.end()


def _action(module: ModuleType) -> Any:
    """What an experiment does: ``build`` a run to train, or ``run``."""
    return getattr(module, "build", None) or module.run


def _usage(spec: cli.Flag) -> str:
    if spec.type is bool:
        return f"--{spec.name}"
    return f"--{spec.name}={cli.show(spec.default) or spec.name.upper()}"


def _list() -> list[str]:
    rows = []
    for name in names():
        summary, presets = describe(name)
        rows += [(name, summary), ("", f"presets: {', '.join(presets)}")]
    return cli.columns(rows)


def _what_instead(rest: Sequence[str]) -> str:
    if not rest:
        return "--experiment=NAME is needed; --list describes them"
    if rest[0] in names():
        return f"unexpected argument {rest[0]!r}; did you mean --experiment={rest[0]}?"
    flag = re.match(r"--?(\w+)", rest[0])
    hint = cli.did_you_mean(flag[1], cli.LAUNCHER_FLAGS, "--") if flag else ""
    return f"--experiment=NAME is needed before {rest[0]!r}{hint or '; --list describes them'}"


def main() -> None:
    """Runs the launcher with the process's arguments, then exits."""
    try:
        sys.exit(run(sys.argv[1:]))
    except UserError as error:
        sys.exit(cli.fail(error))
    except KeyboardInterrupt:
        sys.exit(cli.CANCELLED)


if __name__ == "__main__":
    main()
