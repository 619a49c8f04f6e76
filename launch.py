"""Runs one experiment, or a grid of them.

    python launch.py --list
    python launch.py --experiment=mnist_gan --epochs=50
    python launch.py --experiment=mnist_gan --help
    python launch.py --experiment=mnist_gan --sweep=g_lr=1e-4,2e-4 --sweep=seed=0:8 --jobs=2
    python launch.py --experiment=mnist_gan --processes=2
    python launch.py --experiment=mnist_gan --sweep=seed=0:8 --slurm --slurm_gpus=1

Flags that are not the launcher's go to the experiment. A sweep checks the flags of all first, runs
each as its own process, and ends with a table; the same command resumes what was interrupted.
With --processes, one run is trained by several processes of this machine. With --slurm, the runs of a
sweep become jobs of a cluster; the same command then says how far they are.
"""

import ast
import collections
import contextlib
import csv
import hashlib
import importlib
import itertools
import json
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
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import IO, Any, NamedTuple

from absl import flags

import experiments
from bpgan.types import UserError
from experiments import _cli as cli
from experiments import _slurm

_FOLDER = pathlib.Path(experiments.__path__[0]).resolve()
_SEVERITY = [cli.DONE, cli.INTERRUPTED, cli.BAD_INPUT, cli.ANOMALY]  # anything else is worse
_CANCELLED = (-signal.SIGINT, -signal.SIGTERM, cli.CANCELLED)
_GRACE_SECONDS = 40.0
_FLAGS = (
    cli.Flag("experiment", str, "", "which experiment to run"),
    cli.Flag("list", bool, False, "describe the experiments and stop"),
    cli.Flag(
        "sweep",
        str,
        "",
        "values of a flag: NAME=V1,V2,... or, for whole numbers, NAME=LOW:HIGH (HIGH excluded);"
        " may be repeated, then every combination is run",
    ),
    cli.Flag("jobs", int, 1, "runs of a sweep at a time; each gets its share of the cores", low=1),
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
    *_slurm.FLAGS,
)
_REPEATED = ("sweep", "slurm_option")


class Run(NamedTuple):
    """One combination of a sweep: the swept values by flag, and the process that runs it."""

    values: dict[str, Any]
    workdir: pathlib.Path
    command: list[str]

    @property
    def title(self) -> str:
        return " ".join(f"{name}={cli.show(value)}" for name, value in self.values.items())

    @property
    def log(self) -> pathlib.Path:
        """Everything the process printed; beside the workdir, which belongs to the run."""
        return self.workdir.with_name(self.workdir.name + ".log")


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


def plan(
    name: str, module: ModuleType, argv: Sequence[str], sweeps: Sequence[str], root: str
) -> list[Run]:
    """Every combination of the swept values, checked.

    A run's directory is named after its swept values and a hash of the other settings that decide
    its numbers; so the same command finds it again, also with more epochs or another interval.

    Raises:
      UserError: for a sweep that makes no sense or any combination that the experiment refuses.
    """
    specs = cli.flags_of(module.Config)
    fixed = cli.restart_safe(module.Config)
    axes: dict[str, list[str]] = {}
    for text in sweeps:
        axis, values = _axis(text, specs)
        if axis in axes:
            raise UserError(
                f"--sweep={text}: {axis} is swept twice; list its values in one --sweep"
            )
        if any(re.match(rf"--?(no)?{axis}(=|$)", arg) for arg in argv):
            raise UserError(f"--sweep={text}: --{axis} is also given as a flag; drop one of them")
        axes[axis] = values
    if any(re.match(r"--?workdir(=|$)", arg) for arg in argv):
        raise UserError("--workdir: cannot be combined with --sweep; use --root")
    runs: dict[pathlib.Path, Run] = {}
    for texts in itertools.product(*axes.values()):
        arguments = [*argv, *(f"--{k}={v}" for k, v in zip(axes, texts, strict=True))]
        cfg = cli.resolve(module.Config, module.PRESETS, arguments, other_flags=cli.LAUNCHER_FLAGS)
        # Canonical: 1e-4 and 0.0001 are one run. A preset is no field; it counts as written.
        swept = {k: getattr(cfg, k, v) for k, v in zip(axes, texts, strict=True)}
        rest = {k: getattr(cfg, k) for k in sorted(specs) if k not in fixed and k not in swept}
        digest = hashlib.sha256(json.dumps(rest).encode()).hexdigest()[:6]
        label = "_".join(
            f"{k}={urllib.parse.quote(cli.show(v), safe='+')}" for k, v in swept.items()
        )
        workdir = pathlib.Path(root, name, f"{label}_{digest}")
        command = [*_python(), f"experiments.{name}", *arguments, f"--workdir={workdir}"]
        run = Run(swept, workdir, command)
        if workdir in runs:
            raise UserError(f"--sweep: {run.title} occurs twice")
        runs[workdir] = run
    return list(runs.values())


def _axis(text: str, specs: Mapping[str, cli.Flag]) -> tuple[str, list[str]]:
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise UserError(f"--sweep={text}: must be NAME=V1,V2,... or NAME=LOW:HIGH")
    if name == "workdir":
        raise UserError(f"--sweep={text}: the launcher names the run directories; use --root")
    if name not in specs and name != "preset":
        hint = cli.did_you_mean(name, [*specs, "preset"])
        raise UserError(f"--sweep={text}: the experiment has no flag --{name}{hint}")
    bounds = re.fullmatch(r"(-?\d+):(-?\d+)", values)
    if bounds and name in specs and specs[name].type is int:
        low, high = map(int, bounds.groups())
        if low >= high:
            raise UserError(f"--sweep={text}: is an empty range; LOW:HIGH excludes HIGH")
        return name, [str(i) for i in range(low, high)]
    return name, values.split(",")


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


def execute(runs: Sequence[Run], jobs: int) -> tuple[dict[int, int], bool]:
    """Runs everything, ``jobs`` at a time, with a line as each starts and ends.

    Returns:
      The exit code of each run that was started, by index, and whether a signal stopped the sweep.
      SIGINT, SIGTERM and SIGHUP are passed on to the children, which save and stop.
    """
    environment = _environment()
    if jobs > 1:  # otherwise the first process takes most of a GPU's memory
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = os.environ.get(
            "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
        )
    shares = _shares(min(jobs, len(runs)))
    waiting = collections.deque(range(len(runs)))
    active: dict[int, tuple[int, _Child]] = {}  # slot -> index of the run, process
    codes: dict[int, int] = {}

    def say(index: int, text: str) -> None:
        width = len(str(len(runs)))
        print(f"[{index + 1:{width}d}/{len(runs)}] {runs[index].title}: {text}", flush=True)

    with _received() as received:
        try:
            while active or (waiting and not received):
                for slot, cores in enumerate(shares):
                    if slot not in active and waiting and not received:
                        index = waiting.popleft()
                        with _open(runs[index].log, "a") as log:
                            print("$", shlex.join(runs[index].command), file=log, flush=True)
                            child = _Child(runs[index].command, cores, environment, log)
                        active[slot] = index, child
                        say(index, f"started, output in {runs[index].log}")
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
                    last = _last_line(runs[index].log, code)
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
                for i, child in enumerate(children):
                    child.forward(received)
                    if codes[i] is None and (code := child.process.poll()) is not None:
                        codes[i] = code
                        if code != cli.DONE and deadline is None and not received:
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


def sweep(name: str, runs: Sequence[Run], jobs: int, slurm: _slurm.Options | None = None) -> int:
    """Runs a plan and reports on it; returns the exit code: 0, 75, or the worst of the runs'.

    With ``slurm`` it submits what is not done, and reports when all is.
    """
    ended = _slurm.submit(runs, slurm, jobs, _environment()) if slurm else execute(runs, jobs)
    if ended is None:
        return cli.DONE
    codes, interrupted = ended
    digest = runs[0].workdir.name.rpartition("_")[2]
    label = "_".join(runs[0].values)
    summarise(runs, codes, runs[0].workdir.with_name(f"sweep_{label}_{digest}.csv"))
    for index, code in sorted(codes.items()):
        if code not in (cli.DONE, cli.INTERRUPTED):
            print(f"{runs[index].title}: {_status(code)}{_last_line(runs[index].log, code)}")
            print(f"  {runs[index].log}")
    if interrupted:
        print("interrupted; the same command continues")
        return cli.INTERRUPTED
    worst = max(codes.values(), key=lambda c: _SEVERITY.index(c) if c in _SEVERITY else 99)
    return worst if worst in _SEVERITY else cli.UNEXPECTED


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
    slurm = _slurm.options(chosen, [spec.name for spec in _FLAGS if values[spec.name].present])
    if slurm and not sweeps:
        raise UserError("--slurm: submits a sweep; a single run is --sweep=seed=0")
    if sweeps and chosen["processes"] > 1 and not slurm:
        raise UserError(f"--processes={chosen['processes']}: cannot be combined with --sweep")
    if sweeps:
        runs = plan(name, module, rest, sweeps, chosen["root"])
        if chosen["dry_run"]:
            dry_run([r.command for r in runs])
            return cli.DONE
        return sweep(name, runs, chosen["jobs"], slurm)
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
