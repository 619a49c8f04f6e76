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

from bpgan import cli
from bpgan.cli import ended as _ended
from bpgan.files import Damaged, read_json, write_json
from bpgan.launcher import processes as _processes
from bpgan.launcher.processes import collect_signals  # by name: a task takes no module along
from bpgan.runtime import records
from bpgan.types import UserError

# By name, as `collect_signals` is: what a task refers to travels with it, and a module would not.
_INTERRUPTED = cli.INTERRUPTED
_ATTEMPT, _PARENT = _ended.ATTEMPT, _ended.PARENT
_PYTHON = f"{shlex.quote(sys.executable)} -P"  # of a job
_NOTICE_SECONDS = 90  # before the time limit; Slurm may give it a minute earlier
# What submitit sets, or a flag of ours.
_TAKEN = {
    "array", "error", "open-mode", "output", "requeue", "no-requeue", "signal", "wrap", "job-name",
    "partition", "time", "gpus-per-node", "cpus-per-task", "mem", "nodes", "ntasks", "ntasks-per-node",
}  # fmt: skip


def parse_minutes(text: str) -> int:
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


def _check_memory(text: str) -> None:
    if text and not re.fullmatch(r"[1-9]\d*[KMGT]", text, re.ASCII):
        raise ValueError("must be a size with its unit: 16G")


def _check_line(text: str) -> None:
    """What becomes part of a line of a script must not begin another one there."""
    if not text.isprintable():
        raise ValueError("must be one line, without control characters")


FLAGS = (
    cli.Flag(
        "slurm",
        str,
        "",
        "submit the runs of a sweep to Slurm as one job array, --jobs at a time (all, if not given), and return;"
        " --slurm=local: run the same jobs on this machine, and wait",
        choices=("true", "local"),
    ),
    cli.Flag("slurm_partition", str, "", "partition; empty: the cluster's default", check=_check_line),
    cli.Flag(
        "slurm_time",
        str,
        "1:00:00",
        "time limit of a job: minutes, H:MM:SS or D-HH:MM:SS; a longer run saves, is requeued and goes on",
        parse=parse_minutes,
    ),
    cli.Flag("slurm_gpus", int, 0, "GPUs of a run on each of its nodes", low=0),
    cli.Flag("slurm_cpus", int, 0, "cores of each process of a run; 0: the cluster's default", low=0),
    cli.Flag("slurm_memory", str, "", "memory of a run on each of its nodes: 16G", check=_check_memory),
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


def parse_options(chosen: Mapping[str, Any], given: Collection[str], name: str) -> Options | None:
    """What the flags ask for; None without ``--slurm``.

    Args:
      chosen: values of the launcher's flags, ``slurm_option`` a list.
      given: the names of those that were on the command line.
      name: of the jobs.

    Raises:
      UserError: for flags that do not go together, or a name that would end a line of a script.
    """
    if not chosen["slurm"]:
        if stray := [name for name in given if name.startswith("slurm")]:
            raise UserError("has no effect without `slurm`", argument=stray[0])
        return None
    if not name.isprintable():
        reason = f"{name!r} has control characters, which `slurm` cannot have"
        raise UserError(reason, argument="experiment")
    local = chosen["slurm"] == "local"
    parameters = dict(
        time=chosen["slurm_time"].value,
        partition=chosen["slurm_partition"] or None,
        nodes=chosen["slurm_nodes"],
        ntasks_per_node=_share_processes(chosen, local),
        gpus_per_node=chosen["slurm_gpus"] or None,
        cpus_per_task=chosen["slurm_cpus"] or None,
        mem=chosen["slurm_memory"] or None,
        job_name=name,
        signal_delay_s=_NOTICE_SECONDS,
        wckey=None,
        stderr_to_stdout=True,
        # Since Slurm 22.05 a step does not inherit it from its job.
        srun_args=[f"--cpus-per-task={chosen['slurm_cpus']}"] if chosen["slurm_cpus"] else None,
        additional_parameters={"requeue": True, **_parse_others(chosen["slurm_option"])},
    )
    if "jobs" in given:
        parameters["array_parallelism"] = chosen["jobs"]
    return Options(local, parameters)


def _share_processes(chosen: Mapping[str, Any], local: bool) -> int:
    """How many processes of a run each of its nodes has. Raises UserError if they cannot be shared out."""
    processes, nodes, gpus = chosen["processes"], chosen["slurm_nodes"], chosen["slurm_gpus"]
    if local and (processes > 1 or nodes > 1):
        flag = "processes" if processes > 1 else "slurm_nodes"
        raise UserError("cannot be combined with `slurm=local`", argument=flag, value=chosen[flag])
    if processes % nodes:
        reason = f"must be a multiple of `slurm_nodes={nodes}`"
        raise UserError(reason, argument="processes", value=processes)
    each = processes // nodes
    # Under Slurm, JAX gives each of several processes one GPU, also where each is alone on its node.
    if gpus and processes > 1 and gpus != each:
        reason = f"must be {each}, one for each process of a node, or `processes={nodes * gpus}`"
        raise UserError(reason, argument="slurm_gpus", value=gpus)
    return each


def _parse_others(texts: Sequence[str]) -> dict[str, Any]:
    """Options of sbatch, each ``NAME`` or ``NAME=VALUE``. Raises UserError for what is none, or the launcher's own."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.lstrip("-").partition("=")
        try:
            if not re.fullmatch(r"[a-z][a-z0-9-]+", name) or (equals and not value):
                raise ValueError("must be NAME or NAME=VALUE, as sbatch has it")
            _check_line(text)
            if name in _TAKEN:
                raise ValueError(f"the launcher itself sets --{name}")
        except ValueError as error:
            raise UserError(str(error), argument="slurm_option", value=text) from None
        options[name] = value if equals else True
    return options


def find_queued(workdirs: Iterable[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Those runs that wait or run, by the job that they were last submitted as."""
    found = {path: job["id"] for path in workdirs if (job := _read_job(path)) and _is_on_slurm(job)}
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
        import submitit  # noqa: F401
    except ImportError:
        raise UserError(
            "needs the package submitit: pip install submitit", argument="slurm"
        ) from None
    if not options.local and not shutil.which("sbatch"):
        raise UserError(
            "sbatch is not found; `slurm=local` runs the same jobs here", argument="slurm"
        )
    due, codes = _select_due(runs, options.local)
    if not due:
        return (codes, False) if len(codes) == len(runs) else None
    folder = _new_folder(runs[0].log.parent / "slurm")
    # A task needs nothing of ours on the other machine: the class is sent along, and the functions it calls.
    for module in (sys.modules[__name__], _processes):
        cloudpickle.register_pickle_by_value(module)
    launcher = os.getpid() if options.local else 0
    here, env = os.getcwd(), dict(environment)
    tasks = {
        i: Task(runs[i].command, runs[i].log.absolute(), env, here, folder, launcher) for i in due
    }
    if not options.local:
        _submit_to_slurm(runs, options, folder, tasks)
        return None
    found, stopped = _train_here(runs, options, folder, tasks, jobs, affordable)
    return codes | found, stopped


def _select_due(runs: Sequence[Submittable], local: bool) -> tuple[list[int], dict[int, int]]:
    """Which runs are neither done nor in the queue, and the codes of those that are done; says so of the others.

    Raises:
      UserError: if one that is to be trained here is in the queue.
    """
    say = functools.partial(_processes.announce, runs)
    due: list[int] = []
    codes: dict[int, int] = {}
    before = [[_read_job(path) for path in run.workdirs] for run in runs]
    queue = _queue() if any(job and _is_on_slurm(job) for each in before for job in each) else {}
    for i, (run, each) in enumerate(zip(runs, before, strict=True)):
        ids = [job["id"] for job in each if job and _is_on_slurm(job) and job["id"] in queue]
        if ids and local:
            reason = f"job {ids[0]} of {run.title} is in the queue of the cluster; use `slurm`"
            raise UserError(reason, argument="slurm", value="local")
        if ids:
            say(i, f"job {ids[0]} is {queue[ids[0]]}, output in {run.log}")
        elif all(
            path.exists() and job and job["command"] == run.command and _code_of(job) == 0
            for path, job in zip(run.workdirs, each, strict=True)
        ):
            say(i, "done")
            codes[i] = 0
        else:
            due.append(i)
    return due, codes


def _new_folder(home: pathlib.Path) -> pathlib.Path:
    """A folder for what submitit keeps of jobs.

    Raises:
      UserError: if it cannot be made, or be named in a script.
    """
    home = home.absolute()
    if not str(home).isprintable():
        reason = f"{str(home)!r} has control characters, which `slurm` cannot have"
        raise UserError(reason, argument="root")
    try:
        home.mkdir(parents=True, exist_ok=True)
        prefix = time.strftime("%Y%m%d-%H%M%S-")
        return pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=home))
    except OSError as error:
        raise UserError(f"{home}: cannot be written ({error.strerror})", argument="root") from None


def _train_here(
    runs: Sequence[Submittable],
    options: Options,
    folder: pathlib.Path,
    tasks: Mapping[int, "Task"],
    jobs: int,
    affordable: Callable[[], bool],
) -> tuple[dict[int, int], bool]:
    """Runs the tasks as processes of this machine; their codes, and whether a signal stopped us."""
    import submitit

    say = functools.partial(_processes.announce, runs)
    executor = submitit.LocalExecutor(folder, python=_PYTHON)
    executor.update_parameters(timeout_min=60 * 24 * 365)
    # submitit would show every job the same GPUs, or none: what the task is given here counts for its command.
    hidden = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}
    shares = _processes.share_devices(jobs, len(tasks))

    def start(i: int, slot: int) -> Any:
        environment = {**tasks[i].environment, **hidden, **shares[slot]}
        task = dataclasses.replace(tasks[i], environment=environment)
        with _block(signal.SIGINT, signal.SIGHUP):  # Ctrl-C reaches the jobs through us
            job = executor.submit(task)
        _record(runs[i], "local", str(folder), job.job_id)
        say(i, f"started, output in {runs[i].log}")
        return job

    def ended(i: int, code: int) -> None:
        attempt = tasks[i].environment.get(_ATTEMPT) or ""
        reason = _processes.find_reason(runs[i].workdirs, attempt)
        say(i, _processes.status_of(code) + reason)

    return _wait(list(tasks), jobs, start, ended, affordable)


def _submit_to_slurm(
    runs: Sequence[Submittable],
    options: Options,
    folder: pathlib.Path,
    tasks: Mapping[int, "Task"],
) -> None:
    """Makes the tasks one job array.

    Raises:
      UserError: if Slurm refuses it.
    """
    import submitit
    from submitit.core.utils import FailedJobError

    try:
        executor = submitit.SlurmExecutor(folder, python=_PYTHON)
        executor.update_parameters(**{"array_parallelism": len(tasks), **options.parameters})
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():
            submitted = [executor.submit(task) for task in tasks.values()]
    except FailedJobError as error:
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # others are there
            folder.parent.rmdir()
        raise UserError(" ".join(str(error).split()), argument="slurm") from None
    for i, job in zip(tasks, submitted, strict=True):
        _record(runs[i], "slurm", str(folder), job.job_id)
    for i, job in zip(tasks, submitted, strict=True):  # of all that are on record
        _processes.announce(runs, i, f"job {job.job_id}, output in {runs[i].log}")
    array = submitted[0].job_id.partition("_")[0]
    print(
        f"\nsubmitted as job {array}: `squeue --job={array}` shows what waits and runs, `scancel {array}` stops"
        "\nthe same command says how far they are, submits again what failed, and ends with the table when all are done"
    )


def _wait(
    due: Sequence[int], jobs: int, start: Any, ended: Any, affordable: Callable[[], bool]
) -> tuple[dict[int, int], bool]:
    """Runs jobs on this machine to their end.

    SIGINT, SIGTERM and SIGHUP are passed on, and so is that the budget is spent: the runs save.
    """
    waiting, free = collections.deque(due), collections.deque(range(jobs))
    active: dict[int, Any] = {}
    slots: dict[int, int] = {}
    codes: dict[int, int] = {}
    told, spent = 0, False
    with collect_signals() as received:
        while active or (waiting and not received):
            spent = not affordable()
            if spent:
                waiting.clear()
            while waiting and not received and free:
                i = waiting.popleft()
                slots[i] = free.popleft()
                active[i] = start(i, slots[i])
            time.sleep(0.05)
            causes = len(received) + (1 if spent else 0)
            if causes > told:
                told = causes
                _terminate(active.values())
            for i in [i for i, job in active.items() if job.done()]:
                codes[i] = _read_end(active.pop(i), told > 0)
                free.append(slots.pop(i))
                ended(i, codes[i])
    return codes, bool(received)


def _terminate(jobs: Iterable[Any]) -> None:
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(job.job_id), signal.SIGTERM)


def _read_end(job: Any, told: bool) -> int:
    """The exit code of a job of this machine, which may have been told to stop."""
    code = _read_code(job.paths.folder, job.job_id)
    if code is not None:
        return code
    return _INTERRUPTED if told else -signal.SIGKILL  # nobody was left to say it: no memory, say


def _job_file(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.with_name(f"{workdir.name}.job")


def _read_job(workdir: pathlib.Path) -> dict[str, Any] | None:
    """As which job a run was last submitted. Raises ``Damaged``: submitted again it might be trained twice."""
    job = records.read_job(_job_file(workdir))
    return None if job is None else records.fields(job)


def _record(run: Submittable, cluster: str, folder: str, job: str) -> None:
    record = {"cluster": cluster, "folder": folder, "id": job, "command": run.command}
    for path in run.workdirs:
        write_json(_job_file(path), record)


def _is_on_slurm(record: Mapping[str, Any]) -> bool:
    return record["cluster"] == "slurm"


def _code_of(record: Mapping[str, Any]) -> int | None:
    return _read_code(pathlib.Path(record["folder"]), record["id"])


def _read_code(folder: pathlib.Path, job: str) -> int | None:
    """The exit code of a run's first process; None if nobody was left to say it.

    As the task wrote it, not as submitit did: that is a pickle, which runs whatever who wrote it wants.
    """
    try:
        return read_json(folder / f"{job}_code.json", int)
    except Damaged:
        return None


def _queue() -> dict[str, str]:
    """The state of each of our jobs that Slurm has not ended; ``12_3`` is task 3 of array 12."""
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i %T"]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True
        )
    except FileNotFoundError:
        raise UserError(
            "squeue is not found, and a run was submitted to Slurm", argument="slurm"
        ) from None
    except subprocess.CalledProcessError as error:
        raise UserError(" ".join(error.stderr.split()), argument="slurm") from None
    rows = (line.split() for line in done.stdout.splitlines())
    return {job: state.lower() for job, state in rows}


@contextlib.contextmanager
def _block(*numbers: int) -> Iterator[None]:
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
      environment: for the command, on top of the job's; None: not set.
      cwd: where the command was given.
      folder: of the job; the first process writes its exit code there.
      launcher: the process that waits for the job and that it must not outlive; 0: none.
    """

    command: list[str]
    log: pathlib.Path
    environment: Mapping[str, str | None]
    cwd: str
    folder: pathlib.Path | None = None
    launcher: int = 0

    def __call__(self) -> int:
        """Runs the command; returns its exit code, or does not return if the job was put back into the queue."""
        code = self._run()
        if self.folder is not None and os.environ.get("SLURM_PROCID", "0") == "0":
            import submitit

            file = self.folder / f"{submitit.JobEnvironment().job_id}_code.json"
            temporary = file.with_suffix(".tmp")
            temporary.write_text(f"{code}\n", encoding="utf-8")
            os.replace(temporary, file)
        return code

    def _run(self) -> int:
        lead = os.environ.get("SLURM_PROCID", "0") == "0"
        with contextlib.ExitStack() as stack:
            received = stack.enter_context(collect_signals((signal.SIGTERM, signal.SIGUSR2)))
            output = stack.enter_context(self.log.open("a", encoding="utf-8")) if lead else None
            print("$", shlex.join(self.command), file=output, flush=True)
            # Slurm may send its notice to every process of the job; a run would die of SIGUSR2.
            with _block(signal.SIGUSR2):
                child = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT if lead else None,
                    env={k: v for k, v in self._variables(lead).items() if v is not None},
                    cwd=self.cwd,
                )
            told = 0
            while (code := child.poll()) is None:
                causes = len(received) + (1 if self._has_lost_launcher() else 0)
                if causes > told:
                    told = causes
                    child.terminate()
                time.sleep(0.05)
        if not received or code not in (_INTERRUPTED, -signal.SIGTERM):
            return code
        if lead:
            _requeue(received[0])
        return _INTERRUPTED

    def _variables(self, lead: bool) -> dict[str, str | None]:
        return {**os.environ, **self.environment, **self._place(lead)}

    def _place(self, lead: bool) -> dict[str, str]:
        """Variables of one process: it must not outlive us, and only the first one says how the run ended."""
        return {_PARENT: str(os.getpid())} | ({} if lead else {_ATTEMPT: ""})

    def _has_lost_launcher(self) -> bool:
        """Whether the launcher that waited for this job has ended."""
        if not self.launcher:
            return False
        try:
            os.kill(self.launcher, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another process has its number now
            return True
        return False


def _requeue(number: int) -> None:
    """Puts the job back into the queue and ends this process, if that is what the signal was for.

    SIGTERM may also say that Slurm has requeued the job, or that it was canceled; then it no longer counts as running.
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
