"""The training loop: runs a program, logs, draws, saves, resumes and stops cleanly. It knows no GANs.

A run is a directory (see ``run.open_run``); the same command line continues it. Everything that decides the numbers is
in the compiled program and its carry; this file only chooses how many steps the next call takes and what happens then.
"""

import contextlib
import functools
import json
import math
import os
import pathlib
import signal
import statistics
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bpgan.files import write_json
from bpgan.report import page as report
from bpgan.runtime import anomaly, limits, parallel, peers, records, run, sweep
from bpgan.runtime.checkpoint import NEWEST, Checkpoints, Keep
from bpgan.types import Algorithm, Source, UserError

GRID = 100
"""Images in a sample grid."""

_EVAL = "eval/"
"""Before the names of what ``validate`` finds."""

_SAVED = ".saved"
"""In a run directory that has held a checkpoint."""

_CALL_SECONDS = 0.5
"""Aim for one call of the program: long enough to hide the host, short enough for signals and progress."""


TRACED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
"""What JAX raises when Python code needs the value of a member's argument."""


class Anomaly(Exception):
    """The run was stopped, for a number that is not finite or by ``on_anomaly``; the message says what and when."""


class Lost(Exception):
    """Another process that trains the same run has ended; what was saved is kept, and the same command goes on."""


class Result(NamedTuple):
    """How a run ended.

    Attributes:
      status: ``done``, ``paused`` (``Plan.pause``) or ``interrupted`` (saved, and resumed by the same command).
      step: where.
      metrics: as last logged, and what was evaluated.
      evaluated: what ``evaluate`` found; of the best checkpoint, if one is kept, under ``best/...``.
    """

    status: str
    step: int
    metrics: dict[str, float]
    evaluated: dict[str, float]


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], str | None]]:
    """Turns the first SIGTERM, SIGHUP or SIGINT into a request; a second SIGINT interrupts at once.

    Only the main thread may do that; in another one signals are left to the program around.
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


class _Timings(dict):
    """Seconds by activity, from now on."""

    def __init__(self):
        super().__init__()
        self._start = time.perf_counter()

    def until_now(self) -> dict[str, float]:
        """The seconds of each activity, of all ``other`` ones and their ``total``."""
        total = time.perf_counter() - self._start
        return {**self, "other": total - sum(self.values()), "total": total}

    @contextlib.contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self[activity] = self.get(activity, 0.0) + time.perf_counter() - start


class Member(NamedTuple):
    """What is one run's own among those that are trained together.

    Attributes:
      config, workdir: see ``run.open_run``.
      seed: root seed.
      values: the other arguments of ``sweep.Make``, by name.
      validate, evaluate, measure, command: see ``fit``.
    """

    config: Mapping[str, Any]
    workdir: str | os.PathLike
    seed: int
    values: Mapping[str, float] = types.MappingProxyType({})
    validate: Callable[[Any], Mapping[str, float]] | None = None
    evaluate: Callable[[Any], Mapping[str, float]] | None = None
    measure: Mapping[str, str] = types.MappingProxyType({})
    command: str = ""


def fit(
    algorithm: Algorithm,
    source: Source,
    *,
    config: Mapping[str, Any],
    workdir: str | os.PathLike,
    seed: int,
    mode: str = "jit",
    validate: Callable[[Any], Mapping[str, float]] | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    measure: Mapping[str, str] = types.MappingProxyType({}),
    command: str = "",
    **plan: Any,
) -> Result:
    """Trains until ``steps``, from the newest sound checkpoint in ``workdir`` if there is one.

    Intervals are in steps, 0 means never; the last step is always logged, drawn and saved. On the same machine and
    devices, the result is bitwise the same however often the run was interrupted. Several processes that train one run
    (``parallel.join``) call this together; the first of them writes and speaks.

    Args:
      algorithm: built with ``parallel.axis_name(mode)``.
      source: the batches.
      config, workdir: see ``run.open_run``.
      seed: root seed.
      mode: ``jit`` or ``pmap``.
      validate: ``state -> {name: value}`` on the host, logged as ``eval/name``; ``keep`` may rank by one of them.
      evaluate: ``state -> {name: value}`` on the host, after the last step; of the best checkpoint, too, if ``keep``
        ranks them.
      measure: see ``run.open_run``.
      command: what a shell repeats the run with, for config.json and report; empty if it was not begun by one.
      **plan: the fields of ``Plan``.

    Raises:
      UserError: for a workdir that cannot be used, a full disk, or a batch that cannot be split.
      Anomaly: if a metric or the state is no longer finite, or by ``on_anomaly``; nothing is saved after the last sound
        checkpoint.
      Lost: if another process of the run has ended.
    """

    def compiled() -> sweep.Group:
        return sweep.alone(parallel.compile(algorithm, source, seed=seed, mode=mode), mode)

    member = Member(
        config,
        workdir,
        seed,
        validate=validate,
        evaluate=evaluate,
        measure=measure,
        command=command,
    )
    (result,) = _fit([member], source, compiled, Plan(**plan))
    if isinstance(result, Anomaly):
        raise result
    return result


def fit_group(
    make: sweep.Make,
    source: Source,
    members: Sequence[Member],
    *,
    lowering: str = "",
    or_alone: bool = False,
    **plan: Any,
) -> list[Result | Anomaly]:
    """Trains runs that differ only in numbers together; each has its directory, as if it had run alone.

    A run that is no longer finite, or stopped by ``on_anomaly``, is frozen and its ``Anomaly`` returned in its place;
    the others go on. Resumed with the same members, the results are bitwise those of an undisturbed group; alone or in
    another group they are equal but for rounding, which training may amplify.

    Args:
      make: the member of given numbers.
      source: of any member; for its lengths and examples.
      members: at least one.
      lowering: see ``sweep.compile``.
      or_alone: train one after the other those of which no common program can be made.
      **plan: the fields of ``Plan``.

    Raises:
      UserError: as ``fit``; if one member's directory cannot be used, none is trained.
      jax.errors.JAXTypeError: one of ``TRACED``, without ``or_alone``, if ``make`` branches on its arguments.
    """
    if jax.process_count() > 1:
        raise UserError("works in one process; must be off with several", argument="vectorize")
    results: dict[int, Result | Anomaly] = {}
    waiting = _groups(members, lowering)
    while waiting:
        indices, how = waiting.pop(0)
        if source.windows and len(indices) > 1:
            print("the data are read from disk: one run at a time", flush=True)
            waiting = [([i], how) for i in range(len(members))]
            continue
        part = [members[i] for i in indices]
        try:
            program = _compiled(make, part, how)
        except TRACED as error:
            if not or_alone or len(part) == 1:
                raise
            print(f"one run at a time: {str(error).splitlines()[0]}", flush=True)
            waiting[:0] = [([i], how) for i in indices]
            continue
        free = sweep.free_memory()
        # Cut, a group that has trained before would not be bitwise what it was.
        new = not any(map(_has_trained, part))
        if new and program.needed > free and len(part) > program.devices:
            half = (len(part) + 1) // 2
            print(
                f"{len(part)} runs need {program.needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free:"
                f" {half} at a time",
                flush=True,
            )
            waiting[:0] = [(indices[:half], how), (indices[half:], how)]
            continue
        ended = _fit(part, source, lambda program=program: program, Plan(**plan))
        results |= dict(zip(indices, ended, strict=True))
        if any(isinstance(result, Result) and result.status == "interrupted" for result in ended):
            break
    return [results.get(i, Result("interrupted", 0, {}, {})) for i in range(len(members))]


def _compiled(make: sweep.Make, members: Sequence[Member], lowering: str) -> sweep.Group:
    numbers = [{"seed": member.seed, **member.values} for member in members]
    if len(members) > 1:
        return sweep.compile(make, numbers, lowering)
    algorithm, source = make(**numbers[0])
    return sweep.alone(parallel.compile(algorithm, source, seed=members[0].seed), "jit")


def _has_trained(member: Member) -> bool:
    return any(pathlib.Path(member.workdir).glob("checkpoints/[0-9]*"))


def _groups(members: Sequence[Member], lowering: str) -> list[tuple[list[int], str]]:
    """Members that go on together, as they did before: with others their numbers would not be bitwise the same.

    Those of a group of which one has trained are together again, those that have trained alone are alone, the rest is
    new. A group that was killed before it had trained is none: not all of its members may have been told of it.
    """
    records = [run.group_of(pathlib.Path(member.workdir)) for member in members]
    keys = [json.dumps(group) for group in records]
    begun = {key for key, member in zip(keys, members, strict=True) if _has_trained(member)}
    groups: dict[Any, tuple[list[int], str]] = {}
    for i, (key, group) in enumerate(zip(keys, records, strict=True)):
        if group is not None and key in begun:
            groups.setdefault(key, ([], group["lowering"]))[0].append(i)
        else:
            alone = i if _has_trained(members[i]) else "new"
            groups.setdefault(alone, ([], lowering))[0].append(i)
    return list(groups.values())


class Plan(NamedTuple):
    """What happens when in a run, or in all runs of a group.

    Attributes:
      name, restart_safe, locates_data: see ``run.open_run``.
      steps: the step at which a run is done.
      pause: if not 0, the step to stop at for now: there, too, a run is logged, validated and saved.
      log_every: metrics are averaged over this many steps and written; at the end and at a pause, what is less is
        averaged together with the whole window before it. If there is none before it, over all steps so far.
      sample_every: a grid of ``GRID`` samples, always of the same latents, and how diverse they are.
      checkpoint_every: besides the checkpoint at the end and on SIGTERM or SIGINT.
      eval_every: how often ``validate`` is called; a checkpoint is saved each time, so that the best can be kept.
      keep: which checkpoints stay.
      on_anomaly: ``flag`` names loss spikes and collapsed samples in log and report, ``stop`` also ends the run.
      tensorboard: also write event files.
    """

    name: str
    restart_safe: frozenset[str]
    steps: int
    log_every: int
    sample_every: int = 0
    checkpoint_every: int = 0
    eval_every: int = 0
    pause: int = 0
    keep: Keep = NEWEST
    on_anomaly: str = "flag"
    tensorboard: bool = True
    locates_data: frozenset[str] = frozenset()


class _Run:
    """A run on the host: its directory, checkpoints and log, while it is trained.

    Args:
      member, plan, source: what it is.
      quiet: do not speak; one of many.
    """

    def __init__(self, member: Member, plan: Plan, source: Source, quiet: bool):
        self.member, self.plan, self.source, self.quiet = member, plan, source, quiet
        self.result: Result | Anomaly | None = None
        self.marked = False
        self.path = run.open_run(
            member.workdir,
            name=plan.name,
            config=member.config,
            restart_safe=plan.restart_safe,
            locates_data=plan.locates_data,
            fingerprint=source.fingerprint,
            measure=member.measure,
        )
        self.logged = (0, 0)

    @functools.cached_property
    def id(self) -> str:
        """See ``run.identity``; asked for once the directory is locked, so that nobody else makes one meanwhile."""
        return run.identity(self.path)

    def open(self, abstract: parallel.Carry) -> tuple[int, parallel.Carry] | None:
        """Finds the newest sound checkpoint.

        Raises:
          UserError: if there is none, though there has been one: the run would begin anew, over its log.
        """
        self.checkpoints = Checkpoints(self.path / "checkpoints", run=self.id, keep=self.plan.keep)
        found = self.checkpoints.restore(abstract)
        result = self._result()
        ended = result if result and result.status in ("done", "paused", "interrupted") else None
        if found is None and (ended or (self.path / _SAVED).exists()):
            came = f"the run came to step {ended.step}" if ended else "the run has been saved"
            raise UserError(
                f"{came}, and its checkpoints are gone; remove the directory to begin it anew, or name another",
                argument="workdir",
                value=self.path,
            )
        return found

    def ended_before(self) -> bool:
        """Whether the run was stopped by an anomaly that stops it still; then that is its result."""
        old = self._result()
        stopping = ("non-finite", "anomaly") if self.plan.on_anomaly == "stop" else ("non-finite",)
        if old is None or old.status not in stopping:
            return False
        self.result = Anomaly((old.anomalies or ["stopped before"])[-1])
        self._record(run.group_of(self.path))
        return True

    def _result(self) -> records.ResultRecord | None:
        """How the run ended before; that of another run is none."""
        result = records.sound(records.read_result, self.path / "result.json")
        return result if result and result.run == self.id else None

    def _record(self, group: Mapping[str, Any] | None) -> None:
        if parallel.is_lead():
            member = self.member
            run.write_record(
                self.path,
                self.plan.name,
                member.config,
                self.source,
                group,
                measure=member.measure,
                run=self.id,
                command=member.command,
            )

    def find_log(self, step: int) -> None:
        """Makes sure, before anything is changed, that the log is the one that the checkpoint of this step was told of.

        Raises:
          UserError: if it is another one, or a part of it was changed. If there is none, that is a warning.
        """
        size, crc = self.checkpoints.log(step)
        file = self.path / "metrics.jsonl"
        if size and not file.exists():
            if parallel.is_lead():
                print(
                    f"warning: {file} is gone; the run goes on without what was logged by step {step}"
                )
        elif run.log_prefix(file, size) != (size, crc):
            raise UserError(
                f"metrics.jsonl does not begin with what this run had logged by step {step} ({size} bytes with CRC-32"
                f" {crc:08x}); put that log back, or move this one away to go on without it",
                argument="workdir",
                value=self.path,
            )
        else:
            self.logged = (size, crc)

    def begin(self, step: int, resumed: bool, group: Mapping[str, Any] | None) -> None:
        """Begins, or goes on, at a step."""
        if step > self.plan.steps:
            reason = f"the run is at step {step} already, past {self.plan.steps}"
            raise UserError(reason, argument="workdir", value=self.path)
        self.saved = step if resumed else -1
        self.past = 0 < self.plan.pause < step
        if not self.past:
            if parallel.is_lead():  # before the record: the result beside it is of these flags
                (self.path / "result.json").unlink(missing_ok=True)
            self._record(group)
        file = self.path / "metrics.jsonl"
        if parallel.is_lead() and file.exists():
            os.truncate(file, self.logged[0])  # what was logged since will be logged again
        self.log = run.Log(
            self.path,
            step,
            self.plan.steps,
            self.source,
            every=self.plan.log_every,
            tensorboard=self.plan.tensorboard,
            lead=parallel.is_lead(),
            speak=not self.quiet,
        )

    def draw(self, step: int, samples: np.ndarray) -> dict[str, float]:
        """Saves a grid; returns how diverse its samples are, if that can be compared with the data."""
        samples = report.to_bytes(samples)
        grid = report.image_grid(samples)
        if parallel.is_lead():
            file = self.path / "samples" / f"step_{step:08d}.png"
            report.save_png(file, grid)
            self.log.image(step, file)
        if np.shape(self.source.examples)[1:] != samples.shape[1:]:
            return {}
        return anomaly.diversity(samples, report.to_bytes(self.source.examples))

    def save(
        self,
        step: int,
        carry: parallel.Carry,
        evaluated: Mapping[str, float] = types.MappingProxyType({}),
    ) -> None:
        """Saves; the checkpoint ranks by what was logged last, but never by the evaluation of another step."""
        self.log.flush()
        keep, known = self.plan.keep, self.log.values.items()
        ranks = {k: v for k, v in known if not k.startswith(_EVAL)} | dict(evaluated)
        if keep.metric.startswith(_EVAL) and evaluated and keep.metric not in evaluated:
            raise _not_logged(keep, evaluated)
        file = self.path / "metrics.jsonl"
        self.logged = run.log_prefix(file, None, self.logged)
        self.checkpoints.save(step, carry, ranks, log=self.logged)
        self.saved = step

    def mark(self) -> None:
        """Notes that the run has a checkpoint, once it is complete: should it be gone one day, that is no new run."""
        if parallel.is_lead() and not self.marked and self.checkpoints.complete():
            (self.path / _SAVED).touch()
            self.marked = True

    def stop(self, error: Anomaly, status: str, step: int, seconds: _Timings) -> None:
        """Ends the run for an anomaly; nothing is saved."""
        self.result = error
        values, anomalies = self.log.values, self.log.anomalies
        if status == "non-finite":
            values, anomalies = {}, [str(error)]
        self.log.end_progress()
        self._finish(status, step, values, seconds, anomalies)
        if self.quiet:
            print(error, flush=True)

    def end(self, step: int, carry: parallel.Carry, seconds: _Timings, abstract: Any) -> None:
        """Evaluates a run that is done, and writes its result; one that is past its pause counts as it was there.

        Its own result stays as it is, then; ``result_at_STEP.json`` says how it was there, and by which flags.
        """
        self.log.end_progress()
        found: dict[str, float] = {}
        steps, keep, evaluate = self.plan.steps, self.plan.keep, self.member.evaluate
        at = min(step, self.plan.pause or steps)
        status = "done" if at == steps else "paused" if at == self.plan.pause else "interrupted"
        if status == "done" and evaluate is not None:
            with seconds("evaluate"):
                found = {k: float(v) for k, v in evaluate(carry.state).items()}
                best = self._best(abstract) if keep.metric and found else None
                if best is not None:
                    again = found if best[0] == steps else evaluate(best[1].state)
                    found |= {f"best/{k}": float(v) for k, v in again.items()}
                    found["best/step"] = float(best[0])
        logged = run.values_by(self.path, at) if self.past else self.log.values
        values = logged | found
        if status == "done":
            self.log.hyperparameters(self.member.config, values)
        if not self.past:
            self._finish(status, at, values, seconds, self.log.anomalies)
        elif parallel.is_lead():
            view = {"config": dict(self.member.config), "status": status, "step": at}
            write_json(self.path / f"result_at_{at}.json", view | {"metrics": values})
        self.result = Result(status, at, values, found)

    def _best(self, abstract: Any) -> tuple[int, Any] | None:
        """The best checkpoint, read back from the disk; None if none was ranked."""
        checkpoints = Checkpoints(
            self.path / "checkpoints", run=self.id, keep=self.plan.keep, read_only=True
        )
        try:
            return checkpoints.restore(abstract, best=True)
        finally:
            checkpoints.close()

    def _finish(
        self,
        status: str,
        step: int,
        values: Mapping[str, float],
        seconds: _Timings,
        anomalies: Sequence[str],
    ) -> None:
        """Writes result and report."""
        if not parallel.is_lead():
            return
        result = {
            "run": self.id,
            "status": status,
            "step": step,
            "metrics": values,
            "anomalies": anomalies,
            "timings": {f"{k}_s": round(v, 3) for k, v in seconds.until_now().items()},
        }
        write_json(self.path / "result.json", result)
        page = report.update_report(self.path)
        if not self.quiet:
            print(f"{status} at step {step}" + (f"; report: {page}" if page else ""))


def _fit(
    members: Sequence[Member], source: Source, compiled: Callable[[], sweep.Group], plan: Plan
) -> list[Result | Anomaly]:
    """The loop, of one run or of a group."""
    seconds = _Timings()
    lead, several, steps = parallel.is_lead(), len(members) > 1, plan.steps
    if several:  # one that was saved when the others were not can then go back to where they are
        plan = plan._replace(keep=plan.keep._replace(newest=max(plan.keep.newest, 2)))
    workdirs = [member.workdir for member in members]
    with contextlib.ExitStack() as stack:
        stack.enter_context(limits.tidied(*workdirs))
        stack.enter_context(limits.disk_errors(*workdirs, kept="the checkpoints there are kept"))
        runs = [_Run(member, plan, source, quiet=several) for member in members]
        first = runs[0]
        stack.enter_context(_lost_processes(first.path))
        stack.enter_context(limits.memory_errors(source.batch_size))
        for each in runs if lead else ():
            stack.enter_context(run.locked(each.path))
        if several and all([each.ended_before() for each in runs]):
            return [each.result for each in runs if each.result is not None]
        with seconds("compile"):
            program = compiled()
        _check_rank(plan, program, source)
        step, carry = _begin(runs, program, stack)
        resumed, step = step is not None, step or 0
        stopped = stack.enter_context(_signals())
        where = first.path.parent if several else first.path
        say = (lambda line: print(run.fitted(line), flush=True)) if several else first.log.say
        say(
            f"{plan.name}: {'resuming at step ' + str(step) if resumed else 'starting'}, {steps} steps"
            f" ({steps / source.steps_per_epoch:.4g} epochs) on {program.devices}"
            f" {jax.devices()[0].platform} device(s), {program.how}; {where}"
        )

        def alive() -> list[tuple[int, _Run]]:
            return [(i, each) for i, each in enumerate(runs) if each.result is None]

        def draw(step: int) -> dict[int, dict[str, float]]:
            if program.sample is None or not plan.sample_every:
                return {}
            samples = program.sample(carry, GRID)  # by all processes together
            return {i: each.draw(step, samples[i]) for i, each in alive()}

        def decide(k: int) -> tuple[int, bool]:
            """Steps of the next call, which is the lead's word, and whether to stop, which is anyone's."""
            wishes = parallel.agree([k, bool(stopped())])
            return int(wishes[0, 0]), bool(wishes[:, 1].any())

        if step == 0:
            with seconds("sample"):
                draw(0)
        k, ending = decide(1)
        until = min(plan.pause or steps, steps)
        while step < until and not ending and alive():
            intervals = (plan.log_every, plan.sample_every, plan.checkpoint_every, plan.eval_every)
            boundary = min(
                [until] + [step - step % n + n for n in (*intervals, program.window) if n]
            )
            k = min(k, boundary - step)
            called = time.perf_counter()
            active = np.array([each.result is None for each in runs])
            with seconds("train" if "first_call" in seconds else "first_call"):
                carry, finite = program.run(carry, k, active)
            if "train" not in seconds:
                for _, each in alive():
                    each.log.compiled(step + k)
            step += k
            for i, each in alive():
                if not finite[i]:
                    error = _non_finite(program.member(carry, i), step, each.saved, each.path)
                    each.stop(error, "non-finite", step, seconds)
            if not several:
                first.log.progress(step)
            # Calls of about the same time whatever the speed; their length does not change any number.
            took = time.perf_counter() - called
            k = max(1, min(2 * k, int(k * _CALL_SECONDS / max(took, 1e-6))))
            last, windows, drawn, evaluated = step == until, [], {}, {}
            if last or (plan.log_every and step % plan.log_every == 0):
                with seconds("log"):
                    windows = program.windows(carry)
                    # Not for the end or a pause, which the run will not remember when it goes on.
                    if plan.log_every and step % plan.log_every == 0:
                        carry = program.clear(carry)
            if step == steps or (plan.sample_every and step % plan.sample_every == 0):
                with seconds("sample"):
                    drawn = draw(step)
            if plan.eval_every and (last or step % plan.eval_every == 0):
                with seconds("evaluate"):
                    for i, each in alive():
                        if each.member.validate is not None:
                            values = each.member.validate(program.member(carry, i).state)
                            evaluated[i] = {_EVAL + k: float(v) for k, v in values.items()}
            lines = []
            for i, each in alive():
                line = (
                    each.log.means(windows[i]) if windows else {},
                    drawn.get(i, {}),
                    evaluated.get(i, {}),
                )
                with seconds("log"):
                    anomalies = each.log.write(step, *line) if any(line) else []
                lines.append(each.log.values)
                each.mark()
                if anomalies and plan.on_anomaly == "stop":
                    error = _stop_at(step, anomalies, each.saved, each.path)
                    each.stop(error, "anomaly", step, seconds)
            if several and windows:
                say(_summary(step, steps, lines))
            if last or evaluated or (plan.checkpoint_every and step % plan.checkpoint_every == 0):
                with seconds("checkpoint"):
                    for i, each in alive():
                        each.save(step, program.member(carry, i), evaluated.get(i, {}))
            k, ending = decide(k)
        for i, each in alive():
            if step < steps and each.saved != step:
                each.save(step, program.member(carry, i))
        for each in runs:
            each.checkpoints.close()
        if step < until and alive():
            who = stopped() or "another process was told to stop"
            say(f"{who}: saved at step {step}; the same command continues")
        for i, each in alive():
            each.end(step, program.member(carry, i), seconds, program.abstract)
    parallel.leave()
    return [each.result for each in runs if each.result is not None]


def _begin(
    runs: Sequence[_Run], program: sweep.Group, stack: contextlib.ExitStack
) -> tuple[int | None, Any]:
    """Opens all runs, which ``stack`` closes, and begins at the step and with the carry of ``_start``."""
    found = []
    for each in runs:
        found.append(each.open(program.abstract))
        close = each.checkpoints.close
        stack.push(lambda kind, *_, close=close: None if _is_alone(kind) else close())
    step, carry = _start(runs, found, program)
    group = None
    if len(runs) > 1:
        group = {"lowering": program.lowering, "members": [each.id for each in runs]}
    alive = [each for each in runs if each.result is None]
    if step is not None:
        for each in alive:  # all of them, before anything is changed
            each.find_log(step)
    for each in alive:
        each.begin(step or 0, step is not None, group)
        stack.callback(each.log.close)
    return step, carry


def _start(
    runs: Sequence[_Run], found: Sequence[tuple[int, parallel.Carry] | None], program: sweep.Group
) -> tuple[int | None, Any]:
    """The step that all runs can go on from and the carry there; of a new start, None and the initial one.

    Those that have ended before stay as they are; there is another one.
    """
    steps = [at[0] if at else None for at in found]
    alive = [step for step, each in zip(steps, runs, strict=True) if each.result is None]
    if None in alive:
        step, carries = None, []
        if any(len(each.checkpoints.steps()) > 1 for each in runs):
            missing = next(r for r, at in zip(runs, steps, strict=True) if at is None)
            raise UserError(
                "has no checkpoint, and the runs it trains with have; remove the directory to begin this one anew",
                argument="workdir",
                value=missing.path,
            )
    else:
        step, carries = min(step for step in alive if step is not None), []
    for each, at in zip(runs, found, strict=True):
        if each.result is not None:
            carries.append(None)
            continue
        if step is not None and at is not None and at[0] != step:
            at = each.checkpoints.restore(program.abstract, step=step)
            if at is None:
                raise UserError(
                    f"has no checkpoint of step {step}, where the runs it trains with are;"
                    " --vectorize=off continues each by itself",
                    argument="workdir",
                    value=each.path,
                )
        if step is None and parallel.is_lead():
            (each.path / _SAVED).unlink(missing_ok=True)
        each.checkpoints.rewind(-1 if step is None else step)
        carries.append(at[1] if at else None)
    if step is None:
        return None, program.init()
    one = next(carry for carry in carries if carry is not None)
    return step, program.join([one if carry is None else carry for carry in carries])


def _summary(step: int, steps: int, lines: Sequence[Mapping[str, float]]) -> str:
    """A log line of a group: median and range of each metric over its runs."""
    if not lines:
        return f"step {step}/{steps}  no run is left"
    names = [k for k in lines[0] if "norm" not in k and not k.startswith("time/")]
    shown = {}
    for name in names:
        values = [line[name] for line in lines if name in line]
        low, mid, high = min(values), statistics.median(values), max(values)
        shown[name] = f"{mid:.4g} ({low:.3g} to {high:.3g})"
    speed = run.left(steps - step, lines[0], runs=len(lines))
    return f"{run.pairs({'step': f'{step}/{steps}', 'runs': len(lines), **shown})}  {speed}"


def _check_rank(plan: Plan, program: sweep.Group, source: Source) -> None:
    """Refuses, before anything is trained, to rank checkpoints by what is never logged.

    Evaluations have names that are known only after the first one.
    """
    known = [*program.abstract.window.sums, *run.CLOCK]
    if program.sample is not None and plan.sample_every and np.ndim(source.examples) == 4:
        known += anomaly.DIVERSITY
    metric = plan.keep.metric
    if metric and not metric.startswith(_EVAL) and metric not in known:
        raise _not_logged(plan.keep, known)


def _not_logged(keep: Keep, known: Iterable[str]) -> UserError:
    reason = f"{keep.metric} is not logged by this run; known: {', '.join(known)}"
    return UserError(reason, argument="keep")


@contextlib.contextmanager
def _lost_processes(path: pathlib.Path) -> Iterator[None]:
    """Of several processes, turns what the others see when one has ended into one error."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or limits.is_of_memory(error):
            raise
        peers.await_reason()
        raise Lost(
            f"another process of this run has ended or cannot be reached ({str(error).splitlines()[0][:200]});"
            f" the checkpoints in {path} are kept, and the same command continues"
        ) from None


def _is_alone(kind: type[BaseException] | None) -> bool:
    """Whether an error ends one of several processes: then it does not wait for them to complete a save together."""
    return kind is not None and jax.process_count() > 1


def _stop_at(step: int, anomalies: list[str], saved: int, path: pathlib.Path) -> Anomaly:
    return Anomaly(
        f"--on_anomaly=stop, at step {step}: {'; '.join(anomalies)}; {_kept(saved)} in {path}."
        " The same command with --on_anomaly=flag goes on"
    )


def _non_finite(carry: parallel.Carry, step: int, saved: int, path: pathlib.Path) -> Anomaly:
    """The error that says what is no longer finite, by which step, and what can be done."""
    means = carry.window.means()
    names = [name for name, value in means.items() if not math.isfinite(value)]
    for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(carry.state):
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(np.asarray(leaf)).all():
            names.append(jax.tree_util.keystr(leaf_path, simple=True, separator="/"))
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return Anomaly(
        f"not finite by step {step}: {shown}; {_kept(saved)} in {path}."
        " Try a lower learning rate or penalty weight in a new --workdir"
    )


def _kept(saved: int) -> str:
    return f"the checkpoint of step {saved} is kept" if saved >= 0 else "no checkpoint was made yet"
