"""The runs of a sweep as jobs of a Slurm cluster, through submitit.

Each run, or each group of them, is one task of a job array: a small process that starts its command and passes on what
Slurm says. On notice of the time limit (SIGUSR2) or of a preemption (SIGTERM) the run saves, and the job goes back into
the queue, where the same command continues it. ``scancel`` makes it save, too, and that is all. ``--slurm=local`` runs
the same tasks as processes of this machine.

Beside a run's directory, ``RUN.job`` says as which job it was last submitted, alone or with others, so that no run is
submitted twice.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from bpgan.types import UserError
from experiments import _cli as cli
from experiments import _processes
from experiments._processes import noted  # by name: a task takes it along, but no module

_INTERRUPTED = cli.INTERRUPTED  # as a number: what a task refers to travels with it
_NOTICE_SECONDS = 90  # before the time limit; Slurm may give it a minute earlier
# What submitit sets, or a flag of ours.
_TAKEN = {
    "array", "error", "open-mode", "output", "requeue", "no-requeue", "signal", "wrap", "job-name",
    "partition", "time", "gpus-per-node", "cpus-per-task", "mem", "nodes", "ntasks", "ntasks-per-node",
}  # fmt: skip


def minutes(text: str) -> int:
    """A time limit, ``90`` (minutes), ``H:MM:SS`` or ``D-HH:MM:SS``, in minutes, rounded up.

    Raises:
      ValueError: for anything else, and for less than five minutes, in which a run may not get to its first save.
    """
    match = re.fullmatch(r"(\d+)|(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text, re.ASCII)
    if not match:
        raise ValueError("must be minutes (90), H:MM:SS or D-HH:MM:SS")
    whole, *parts = (int(part or 0) for part in match.groups())
    days, hours, mins, seconds = parts
    total = whole + 1440 * days + 60 * hours + mins + math.ceil(seconds / 60)
    if total < 5:
        raise ValueError("must be at least 5 minutes")
    return total


def _memory(text: str) -> None:
    if text and not re.fullmatch(r"[1-9]\d*[KMGT]", text, re.ASCII):
        raise ValueError("must be a size with its unit: 16G")


FLAGS = (
    cli.Flag(
        "slurm",
        str,
        "",
        "submit the runs of a sweep to Slurm as one job array, --jobs at a time (all, if not given), and return;"
        " --slurm=local: run the same jobs on this machine, and wait",
        choices=("true", "local"),
    ),
    cli.Flag("slurm_partition", str, "", "partition; empty: the cluster's default"),
    cli.Flag(
        "slurm_time",
        str,
        "1:00:00",
        "time limit of a job: minutes, H:MM:SS or D-HH:MM:SS; a longer run saves, is requeued and goes on",
        check=minutes,
    ),
    cli.Flag("slurm_gpus", int, 0, "GPUs of a run on each of its nodes", low=0),
    cli.Flag("slurm_cpus", int, 0, "cores of each process of a run; 0: the cluster's default", low=0),
    cli.Flag("slurm_memory", str, "", "memory of a run on each of its nodes: 16G", check=_memory),
    cli.Flag("slurm_nodes", int, 1, "nodes of a run, which share out its --processes", low=1),
    cli.Flag(
        "slurm_option",
        str,
        "",
        "any other option of sbatch, NAME or NAME=VALUE: account=vision; may be repeated",
    ),
)  # fmt: skip


class Submittable(_processes.Titled, Protocol):
    """What is submitted: a command with a name, the directories of its runs and a file for its output."""

    @property
    def command(self) -> list[str]: ...
    @property
    def workdirs(self) -> Sequence[pathlib.Path]: ...
    @property
    def log(self) -> pathlib.Path: ...


class Options(NamedTuple):
    """Where jobs go: to processes of this machine or to Slurm, and with which parameters of ``SlurmExecutor``."""

    local: bool
    parameters: dict[str, Any]


def options(chosen: Mapping[str, Any], given: Collection[str]) -> Options | None:
    """What the flags ask for; None without ``--slurm``.

    Args:
      chosen: values of the launcher's flags, ``slurm_option`` a list.
      given: the names of those that were on the command line.

    Raises:
      UserError: for flags that do not go together.
    """
    if not chosen["slurm"]:
        if stray := [name for name in given if name.startswith("slurm")]:
            raise UserError(f"--{stray[0]}: has no effect without --slurm")
        return None
    processes, nodes, gpus = chosen["processes"], chosen["slurm_nodes"], chosen["slurm_gpus"]
    local = chosen["slurm"] == "local"
    if local and (processes > 1 or nodes > 1):
        flag = f"processes={processes}" if processes > 1 else f"slurm_nodes={nodes}"
        raise UserError(f"--{flag}: cannot be combined with --slurm=local")
    if processes % nodes:
        raise UserError(f"--processes={processes}: must be a multiple of --slurm_nodes={nodes}")
    each = processes // nodes
    if (
        gpus and each > 1 and gpus != each
    ):  # under Slurm, JAX gives each of several processes one GPU
        raise UserError(
            f"--slurm_gpus={gpus}: must be {each}, one for each process of a node, or --processes={nodes}"
        )
    others: dict[str, Any] = {}
    for text in chosen["slurm_option"]:
        name, equals, value = text.lstrip("-").partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", name) or (equals and not value):
            raise UserError(f"--slurm_option={text}: must be NAME or NAME=VALUE, as sbatch has it")
        if name in _TAKEN:
            raise UserError(f"--slurm_option={text}: the launcher itself sets --{name}")
        others[name] = value if equals else True
    parameters = dict(
        time=minutes(chosen["slurm_time"]),
        partition=chosen["slurm_partition"] or None,
        nodes=nodes,
        ntasks_per_node=each,
        gpus_per_node=gpus or None,
        cpus_per_task=chosen["slurm_cpus"] or None,
        mem=chosen["slurm_memory"] or None,
        job_name=chosen["experiment"],
        signal_delay_s=_NOTICE_SECONDS,
        wckey=None,
        stderr_to_stdout=True,
        # Since Slurm 22.05 a step does not inherit it from its job.
        srun_args=[f"--cpus-per-task={chosen['slurm_cpus']}"] if chosen["slurm_cpus"] else None,
        additional_parameters={"requeue": True, **others},
    )
    if "jobs" in given:
        parameters["array_parallelism"] = chosen["jobs"]
    return Options(local, parameters)


def queued(workdirs: Iterable[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Those runs that wait or run, by the job that they were last submitted as."""
    found = {path: job["id"] for path in workdirs if (job := _recorded(path)) and _on_slurm(job)}
    queue = _queue() if found else {}
    return {path: job for path, job in found.items() if job in queue}


def submit(
    runs: Sequence[Submittable],
    options: Options,
    jobs: int,
    environment: Mapping[str, str],
    affordable: Callable[[], bool] = lambda: True,
) -> tuple[dict[int, int], bool] | None:
    """Submits the runs that are neither done, by the same command, nor in the queue.

    Args:
      runs: of one sweep; their logs lie in one directory.
      options: where to.
      jobs: how many at a time, for ``local``.
      environment: what the runs need on top of ours.
      affordable: for ``local``: as of ``_processes.execute``.

    Returns:
      None if jobs are in the queue; otherwise the runs' exit codes by index, and whether a signal stopped us, which
      ``local`` waits for.

    Raises:
      UserError: if submitit or Slurm is missing, or Slurm refuses the jobs.
    """
    try:
        import cloudpickle
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError:
        raise UserError("--slurm: needs the package submitit: pip install submitit") from None
    if not options.local and not shutil.which("sbatch"):
        raise UserError("--slurm: sbatch is not found; --slurm=local runs the same jobs here")
    if options.local:
        environment = {**environment, **_processes.beside_others(jobs)}
    say = functools.partial(_processes.announce, runs)
    codes: dict[int, int] = {}
    due, waiting = [], 0
    before = [[_recorded(path) for path in run.workdirs] for run in runs]
    queue = _queue() if any(job and _on_slurm(job) for each in before for job in each) else {}
    for i, (run, each) in enumerate(zip(runs, before, strict=True)):
        ids = [job["id"] for job in each if job and _on_slurm(job) and job["id"] in queue]
        if ids:
            say(i, f"job {ids[0]} is {queue[ids[0]]}, output in {run.log}")
            waiting += 1
        elif all(
            path.exists() and job and job["command"] == run.command and _code(job) == 0
            for path, job in zip(run.workdirs, each, strict=True)
        ):
            say(i, "done")
            codes[i] = 0
        else:
            due.append(i)
    if not due:
        return None if waiting else (codes, False)

    home = runs[0].log.parent / "slurm"
    try:
        home.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=home.absolute())
    except OSError as error:
        raise UserError(f"--root: {home}: cannot be written ({error.strerror})") from None
    # A task needs nothing of ours on the other machine: the class is sent along, and the functions it calls.
    for module in (sys.modules[__name__], _processes):
        cloudpickle.register_pickle_by_value(module)
    tasks = {
        i: Task(runs[i].command, runs[i].log.absolute(), dict(environment), os.getcwd())
        for i in due
    }
    python = f"{shlex.quote(sys.executable)} -P"
    if options.local:
        executor = submitit.LocalExecutor(folder, python=python)
        gpus = options.parameters["gpus_per_node"] or 0
        executor.update_parameters(timeout_min=60 * 24 * 365, gpus_per_node=gpus)

        def start(i: int) -> Any:
            with _blocked(signal.SIGINT, signal.SIGHUP):  # Ctrl-C reaches the jobs through us
                job = executor.submit(tasks[i])
            _record(runs[i], "local", folder, job.job_id)
            say(i, f"started, output in {runs[i].log}")
            return job

        def ended(i: int, code: int) -> None:
            say(i, _processes.status_of(code) + _processes.last_line(runs[i].log, code))

        found, stopped = _wait(due, jobs, start, ended, affordable)
        return codes | found, stopped
    try:
        executor = submitit.SlurmExecutor(folder, python=python)
        executor.update_parameters(**{"array_parallelism": len(due), **options.parameters})
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():
            submitted = [executor.submit(tasks[i]) for i in due]
    except FailedJobError as error:
        shutil.rmtree(folder)
        raise UserError(f"--slurm: {' '.join(str(error).split())}") from None
    for i, job in zip(due, submitted, strict=True):
        _record(runs[i], "slurm", folder, job.job_id)
        say(i, f"job {job.job_id}, output in {runs[i].log}")
    array = submitted[0].job_id.partition("_")[0]
    print(
        f"\nsubmitted as job {array}: `squeue --job={array}` shows what waits and runs, `scancel {array}` stops"
        "\nthe same command says how far they are, submits again what failed, and ends with the table when all are done"
    )
    return None


def _wait(
    due: Sequence[int], jobs: int, start: Any, ended: Any, affordable: Callable[[], bool]
) -> tuple[dict[int, int], bool]:
    """Runs jobs on this machine to their end.

    SIGINT, SIGTERM and SIGHUP are passed on, and so is that the budget is spent: the runs save.
    """
    waiting = collections.deque(due)
    active: dict[int, Any] = {}
    codes: dict[int, int] = {}
    with noted() as received:
        told = 0
        while active or (waiting and not received):
            spent = not affordable()
            if spent:
                waiting.clear()
            while waiting and not received and len(active) < jobs:
                i = waiting.popleft()
                active[i] = start(i)
            time.sleep(0.05)
            if (signals := len(received) + spent) > told:
                told = signals
                for job in active.values():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(job.job_id), signal.SIGTERM)
            for i, job in list(active.items()):
                if job.done():
                    del active[i]
                    code = _result(job)
                    if code is None:
                        code = _INTERRUPTED if told else cli.UNEXPECTED
                    codes[i] = code
                    ended(i, code)
    return codes, bool(received)


def _job_file(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.with_name(f"{workdir.name}.job")


def _recorded(workdir: pathlib.Path) -> dict[str, Any] | None:
    """As which job a run was last submitted."""
    try:
        return json.loads(_job_file(workdir).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _record(run: Submittable, cluster: str, folder: str, job: str) -> None:
    record = {"cluster": cluster, "folder": folder, "id": job, "command": run.command}
    for path in run.workdirs:
        _job_file(path).write_text(json.dumps(record) + "\n", encoding="utf-8")


def _on_slurm(record: Mapping[str, Any]) -> bool:
    return record["cluster"] == "slurm"


def _code(record: Mapping[str, Any]) -> int | None:
    import submitit

    kind = submitit.SlurmJob if _on_slurm(record) else submitit.LocalJob
    return _result(kind(record["folder"], record["id"]))


def _result(job: Any) -> int | None:
    """The exit code of a run's first process; None if nobody was left to say it."""
    from submitit.core.utils import UncompletedJobError

    if not job.paths.result_pickle.exists():
        return None
    try:
        return job.result()
    except UncompletedJobError:
        return cli.UNEXPECTED


def _queue() -> dict[str, str]:
    """The state of each of our jobs that Slurm has not ended; ``12_3`` is task 3 of array 12."""
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i %T"]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True
        )
    except FileNotFoundError:
        raise UserError("--slurm: squeue is not found, and a run was submitted to Slurm") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"--slurm: {' '.join(error.stderr.split())}") from None
    rows = (line.split() for line in done.stdout.splitlines())
    return {job: state.lower() for job, state in rows}


@contextlib.contextmanager
def _blocked(*numbers: int) -> Iterator[None]:
    """A process started inside never receives these signals; for us they wait."""
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


@dataclasses.dataclass(frozen=True)
class Task:
    """One run as a job: called on a compute node, once by each of its processes.

    Attributes:
      command: the run's.
      log: what the first process prints goes there; what others print, to submitit's file.
      environment: for the command, on top of the job's.
      cwd: where the command was given.
    """

    command: list[str]
    log: pathlib.Path
    environment: dict[str, str]
    cwd: str

    def __call__(self) -> int:
        """Runs the command; returns its exit code, or does not return if the job was put back into the queue."""
        lead = os.environ.get("SLURM_PROCID", "0") == "0"
        with contextlib.ExitStack() as stack:
            received = stack.enter_context(noted((signal.SIGTERM, signal.SIGUSR2)))
            output = stack.enter_context(self.log.open("a", encoding="utf-8")) if lead else None
            print("$", shlex.join(self.command), file=output, flush=True)
            # Slurm may send its notice to every process of the job; a run would die of SIGUSR2.
            with _blocked(signal.SIGUSR2):
                child = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT if lead else None,
                    env={**os.environ, **self.environment},
                    cwd=self.cwd,
                )
            told = 0
            while (code := child.poll()) is None:
                if len(received) > told:
                    told = len(received)
                    child.terminate()
                time.sleep(0.05)
        if not received or code not in (_INTERRUPTED, -signal.SIGTERM):
            return code
        if lead:
            _requeue(received[0])
        return _INTERRUPTED


def _requeue(number: int) -> None:
    """Puts the job back into the queue and ends this process, if that is what the signal was for.

    SIGTERM may also say that Slurm has requeued the job, or that it was cancelled; then it no longer counts as running.
    """
    import submitit

    env = submitit.JobEnvironment()
    if env.name() == "local":
        from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

        if number == signal.SIGUSR2:
            sys.exit(LOCAL_REQUEUE_RETURN_CODE)
        return
    if number == signal.SIGTERM:
        command = ["squeue", "--noheader", f"--jobs={env.job_id}", "--format=%T"]
        state = subprocess.run(
            command, stdout=subprocess.PIPE, encoding="utf-8", errors="replace"
        ).stdout.strip()
        if state != "RUNNING":
            return
    if not subprocess.run(["scontrol", "requeue", env.job_id]).returncode:
        sys.exit(_INTERRUPTED)
