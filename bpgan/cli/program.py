"""Runs an experiment with a process's arguments: messages, exit codes, training."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shlex
import sys
import tempfile
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, NoReturn

from bpgan.cli import ended, experiments
from bpgan.cli.beginning import beginning_of
from bpgan.cli.config import (
    AnyConfig,
    Config,
    Presets,
    RunConfig,
    flags_of,
    preset_of,
    read,
    run_name,
)
from bpgan.cli.flags import columns, show
from bpgan.cli.help import help_text, is_help, value_rows
from bpgan.cli.plan import Experiment, plan_of
from bpgan.runtime import directory, environment, limits, peers, remote
from bpgan.types import UserError

DONE, UNEXPECTED, BAD_INPUT, ANOMALY, INTERRUPTED, CANCELLED = 0, 1, 2, 3, 75, 130
"""Exit codes. ``INTERRUPTED`` (EX_TEMPFAIL) promises that the same command continues the run: requeue it."""

_LONG = 201  # characters of a value, beyond which a message shows no more of it
_SIGPIPE = 141  # as a shell says it of programs that the signal ends


class Interrupted(Exception):
    """A part of an experiment was interrupted and can be resumed; the same command goes on with it."""


class Anomaly(Exception):
    """A run was stopped by an anomaly, which the message names."""


def run(
    config_class: type[AnyConfig],
    build: Callable[..., Experiment | None],
    presets: Presets,
    argv: Sequence[str],
    record: ended.Record = ended.ignore,
) -> int:
    """Runs the experiment that ``argv`` asks for; returns the exit code.

    0 done, 2 a mistake of the user, 3 stopped by an anomaly, 75 interrupted and resumable, 130 canceled
    by Ctrl-C without saving. Anything unexpected is raised.

    Args:
      config_class: of the flags. A subclass of ``RunConfig`` is trained; any other is handed to ``build``, and that is
        all.
      build: ``build(cfg, axis_name) -> Experiment``, or for an experiment that does not train ``run(cfg) -> None``,
        with ``cfg.workdir`` filled in.
      presets, argv: see ``resolve``.
      record: what is told how the run ended.
    """
    try:
        if is_help(argv):
            print(help_text(config_class, presets, sys.modules[config_class.__module__]))
            return DONE
        request = request_of(config_class, presets, argv)
    except UserError as error:
        return fail(error)
    workdir = request.workdir
    if remote.is_url(workdir):  # beside which nothing can be written
        record = ended.ignore
    code, cause = DONE, None
    try:
        code = perform(request, build)
    except UserError as error:
        code, cause = fail(error), error
    except Anomaly as error:
        code, cause = fail(error, ANOMALY), error
    except remote.Away as error:
        code, cause = fail(error, INTERRUPTED), error
    except Interrupted:
        code = INTERRUPTED
    except KeyboardInterrupt:
        code = CANCELLED
    except Exception as error:
        cause = _fault_of_devices()
        if cause is None:
            record(workdir, UNEXPECTED, unexpected(error))
            raise
        code = fail(cause)
    record(workdir, code, cause)
    return code


class Request(NamedTuple):
    """What a command line asks for.

    Attributes:
      name: of the experiment.
      config: its flags.
      workdir: where it writes, also gs://... or s3://...
      idle: the flags on the command line that change nothing, with the reason.
    """

    name: str
    config: Config
    workdir: str
    idle: Mapping[str, str]


def request_of(config_class: type[Config], presets: Presets, argv: Sequence[str]) -> Request:
    """What ``argv`` asks for; see ``run``. Raises what ``resolve`` does."""
    cfg, idle = read(config_class, presets, argv)
    # ``build`` may be another experiment's
    name = experiments.name_of(sys.modules[config_class.__module__])
    folder = f"runs/{experiments.label_of(name)}/{run_name(cfg, presets, preset_of(config_class, presets, argv))}"
    return Request(name, cfg, os.path.expanduser(cfg.workdir or folder), idle)


def perform(request: Request, build: Callable[..., Experiment | None]) -> int:
    """Does what is asked for; ``DONE``, or ``INTERRUPTED`` where the same request goes on with it.

    Raises:
      UserError: for a mistake of the user.
      Anomaly: if a run was stopped by one.
      Interrupted: if a part of it was interrupted.
      remote.Away: if the object store of the run is out of reach.
    """
    cfg, workdir = request.config, request.workdir
    with _tidied(workdir), limits.disk_errors(), limits.memory_errors():
        if isinstance(cfg, RunConfig):
            make = typing.cast(Callable[..., Experiment], build)
            return _train(request.name, cfg, make, workdir, request.idle)
        with remote.staged(workdir, of_run=False) as path:
            build(dataclasses.replace(cfg, workdir=str(path)))
    return DONE


def _tidied(workdir: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if remote.is_url(workdir) else directory.tidied(workdir)


def unexpected(error: Exception) -> Exception:
    """An error that is a bug, as it is recorded: with its kind."""
    return Exception(f"{type(error).__name__}: {error}")


def main(
    config_class: type[AnyConfig],
    build: Callable[..., Experiment | None],
    presets: Presets = MappingProxyType({}),
) -> NoReturn:
    """The whole ``__main__`` of an experiment: ``run`` with the process's arguments, then exits."""

    def program() -> int:
        started = sys.modules["__main__"]
        if getattr(started, "Config", None) is config_class:
            if fault := experiments.find_fault(started):
                raise UserError(f"{started.__file__}: {fault}")
        return run(config_class, build, presets, sys.argv[1:], ended.recorder())

    leave(program)


def leave(program: Callable[[], int]) -> NoReturn:
    """Exits with the code that ``program`` returns, or that of what it raises; no traceback for what is no bug.

    If it is one of several processes that train a run, the others then end with the same code.
    """
    environment.open_streams()
    environment.collect_seldom()
    try:
        ended.follow_parent()
        with limits.disk_errors(), limits.memory_errors():
            code = program()
        sys.stdout.flush()
    except UserError as error:
        code = fail(error)
    except remote.Away as error:
        code = fail(error, INTERRUPTED)
    except Interrupted:
        code = INTERRUPTED
    except KeyboardInterrupt:
        code = CANCELLED
    except BrokenPipeError:  # nobody reads on, as after `| head`
        environment.silence(sys.stdout)
        code = _SIGPIPE
    except Exception as error:
        fault = _fault_of_devices()
        code = fail(fault) if fault else _trace(error)
    if code == CANCELLED:  # the threads of a compilation would crash the interpreter's own exit
        peers.end(INTERRUPTED, "was interrupted")
        peers.leave_at_once(code)
    if decided := peers.end(code, "has ended"):
        peers.leave_at_once(decided)
    sys.exit(code)


def _fault_of_devices() -> UserError | None:
    """What is wrong with the devices, if that may be why something failed; None if it is a bug."""
    from bpgan.runtime import distributed

    try:
        distributed.find_devices()  # what does not train asks for them when it needs them
    except UserError as fault:
        return fault
    return None


def _trace(error: Exception) -> int:
    """Prints the traceback of a bug, or of the NaN that JAX_DEBUG_NANS finds; returns the exit code."""
    traceback.print_exception(error)
    code = ANOMALY if isinstance(error, FloatingPointError) else UNEXPECTED
    peers.end(code, f"{type(error).__name__}: {error}")
    return code


def fail(error: Exception, code: int = BAD_INPUT) -> int:
    """Prints ``error: ...`` as one line on stderr, and tells the other processes of the run; returns ``code``."""
    reason = " ".join(message_of(error).splitlines())
    environment.complain(f"error: {reason}")
    peers.end(code, reason)
    return code


def message_of(error: Exception) -> str:
    """What an error says on a command line, where an argument is a flag: ``--argument=value: reason``."""
    if not (isinstance(error, UserError) and error.argument):
        return _with_flags(str(error))
    value = "" if error.value is None else f"={show(error.value)}"
    if len(value) > _LONG:
        value = value[:_LONG] + "..."
    return f"--{error.argument}{value}: {_with_flags(error.reason)}"


def _with_flags(text: str) -> str:
    """A text in which the arguments, which are in backquotes, are written as flags."""
    return re.sub(r"`(\w+(?:=[^`]*)?)`", r"--\1", text)


def _train(
    name: str,
    cfg: RunConfig,
    build: Callable[..., Experiment],
    workdir: str,
    idle: Mapping[str, str],
) -> int:
    # Heavy, and of no use to --help or a mistaken flag.
    from bpgan.report.page import update_report
    from bpgan.runtime import distributed, train
    from bpgan.runtime.log import fitted
    from bpgan.runtime.program import axis_name

    cfg.set_up()

    def say(text: str) -> None:
        if distributed.is_lead():
            print(fitted(text), flush=True)

    say(" ".join([experiments.label_of(name), *_changed(cfg)]))
    for flag, why in idle.items():
        say(f"warning: --{flag}={show(getattr(cfg, flag))} {why}")
    experiment = build(cfg, axis_name=axis_name(cfg.parallel))
    if not isinstance(experiment, Experiment):
        kind = type(experiment).__name__
        raise UserError(f"{name}: build returned a {kind}, must return a cli.Experiment")
    if experiment.title:
        say(experiment.title)
    try:
        result = train.fit(
            experiment.algorithm,
            experiment.source,
            train.RunSpec(
                config=dataclasses.asdict(cfg),
                workdir=workdir if remote.is_url(workdir) else pathlib.Path(workdir),
                seed=cfg.seed,
                validate=experiment.validate,
                evaluate=experiment.evaluate,
                measure=experiment.measure,
                title=experiment.title,
                frame=experiment.frame,
                pictures=experiment.pictures,
                settle=experiment.settle,
                faults=experiment.algorithm.faults,
                account=experiment.account,
                spent=experiment.spent,
                command=command_of(cfg, workdir),
                begin=beginning_of(cfg, workdir, experiment.algorithm),
                report=update_report,
            ),
            train.Plan(**plan_of(name, cfg, experiment)),
            mode=cfg.parallel,
        )
    except train.Anomaly as error:
        raise Anomaly(str(error)) from None
    except train.Lost as error:
        return fail(error, INTERRUPTED)
    if result.evaluated:
        say("\n".join(columns(value_rows(result.evaluated))))
    return INTERRUPTED if result.status == "interrupted" else DONE


def _changed(cfg: Config) -> list[str]:
    """The flags that make a config of the defaults."""
    return [
        f"--{flag.name}={show(getattr(cfg, flag.name))}"
        for flag in flags_of(type(cfg)).values()
        if getattr(cfg, flag.name) != flag.default
    ]


def command_of(cfg: RunConfig, workdir: str) -> str:
    """What a shell repeats a run with, however it was begun: by its flags, a preset, a launcher or a notebook.

    Empty if the experiment is in no file.
    """
    import jax

    module = sys.modules[type(cfg).__module__]
    name, processes = experiments.name_of(module), jax.process_count()
    if not name:
        return ""
    if processes > 1:
        program = ["-m", "bpgan.launcher", f"--experiment={name}", f"--processes={processes}"]
    elif module.__spec__ is None:  # python my_gan.py
        program = [name]
    elif module.__name__ == "__main__":
        program = ["-m", module.__spec__.name]
    else:
        program = ["-m", *experiments.program_of(name)]
    flags = _changed(dataclasses.replace(cfg, workdir=workdir))
    return shlex.join(["python", *program, *flags])


def make_folder(folder: str | os.PathLike, argument: str, value: str) -> pathlib.Path:
    """The folder, made if need be. For before anything is computed that is to be written there.

    Raises:
      UserError: of the argument that names it, if no file can be made in it.
    """
    path = pathlib.Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()  # on some disks only a try tells
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise UserError(reason, argument=argument, value=value) from None
    return path
