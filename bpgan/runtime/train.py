"""The training loop: runs a program, logs, draws, saves, resumes and stops cleanly. It knows no GANs.

A run is a directory (see ``directory.open_run``); the same command line continues it. Everything that decides the
numbers is in the compiled program and its carry; this file only chooses how many steps the next call takes and what
happens then.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bpgan.runtime import (
    anomaly,
    directory,
    distributed,
    limits,
    log,
    peers,
    program,
    records,
    remote,
    signals,
)
from bpgan.runtime import group as groups
from bpgan.runtime.program import Carry
from bpgan.runtime.run import EVAL, Anomaly, Plan, Result, Run, RunSpec, Timings, not_logged
from bpgan.types import Algorithm, Source, UserError, counted

__all__ = ["Anomaly", "Lost", "Plan", "Result", "RunSpec", "fit", "fit_group"]

GRID = 100
"""Images in a sample grid."""

_CALL_SECONDS = 0.5
"""Aim for one call of the program: long enough to hide the host, short enough for signals and progress."""

TRACED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
"""What JAX raises when Python code needs the value of a member's argument."""


class Lost(Exception):
    """Another process that trains the same run has ended; what was saved is kept, and the same command goes on."""


def fit(
    algorithm: Algorithm, source: Source, spec: RunSpec, plan: Plan, *, mode: str = "jit"
) -> Result:
    """Trains until ``plan.steps``, from the newest sound checkpoint in the run directory if there is one.

    Intervals are in steps, 0 means never; the last step is always logged, drawn and saved. On the same machine and
    devices, the result is bitwise the same however often the run was interrupted. Several processes that train one run
    (``distributed.join``) call this together; the first of them writes and speaks.

    Args:
      algorithm: built with ``program.axis_name(mode)``.
      source: the batches.
      spec: what run this is; its ``workdir`` may be on an object store (``remote``).
      plan: how long it is, and what happens when.
      mode: ``jit`` or ``pmap``.

    Raises:
      UserError: for a workdir that cannot be used, a full disk, or a batch that cannot be split.
      Anomaly: if a metric or the state is no longer finite, or by ``on_anomaly``; nothing is saved after the last sound
        checkpoint.
      Lost: if another process of the run has ended.
      remote.Away: if the object store of the run is out of reach.
    """

    with _placed(spec) as placed:

        def compiled() -> groups.Group:
            settle = placed.settle or (lambda path: (algorithm, source))
            settled = settle(pathlib.Path(placed.workdir))
            one = program.compile_program(*settled, seed=spec.seed, mode=mode)
            return groups.Alone(one, mode)

        (result,) = _fit([placed], source, compiled, plan)
    if isinstance(result, Anomaly):
        raise result
    return result


def fit_group(
    make: groups.Make,
    source: Source,
    members: Sequence[RunSpec],
    plan: Plan,
    *,
    lowering: str = "",
    or_alone: bool = False,
) -> list[Result | Anomaly]:
    """Trains runs that differ only in numbers together; each has its directory, as if it had run alone.

    A run that is no longer finite, or stopped by ``on_anomaly``, is frozen and its ``Anomaly`` returned in its place;
    the others go on. Resumed with the same members, the results are bitwise those of an undisturbed group; alone or in
    another group they are equal but for rounding, which training may amplify.

    Args:
      make: the member of given numbers.
      source: of any member; for its lengths and examples.
      members: at least one.
      plan: how long they are, and what happens when.
      lowering: see ``group.compile_group``.
      or_alone: train one after the other those of which no common program can be made.

    Raises:
      UserError: as ``fit``; if one member's directory cannot be used, none is trained.
      jax.errors.JAXTypeError: one of ``TRACED``, without ``or_alone``, if ``make`` branches on its arguments.
    """
    if jax.process_count() > 1:
        raise UserError("works in one process; must be off with several", argument="vectorize")
    with contextlib.ExitStack() as stack:
        placed = [stack.enter_context(_placed(member)) for member in members]
        return _fit_groups(make, source, placed, plan, lowering, or_alone)


@contextlib.contextmanager
def _placed(spec: RunSpec) -> Iterator[RunSpec]:
    """A run with its directory on this machine, if it is kept on an object store; what is trained then goes there."""
    with remote.staged(spec.workdir) as path:
        on_store = remote.is_url(spec.workdir)
        yield spec._replace(workdir=path, url=str(spec.workdir)) if on_store else spec


def _fit_groups(
    make: groups.Make,
    source: Source,
    members: Sequence[RunSpec],
    plan: Plan,
    lowering: str,
    or_alone: bool,
) -> list[Result | Anomaly]:
    """``fit_group``, of runs whose directories are on this machine."""
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
            group = _compiled(make, part, how)
        except TRACED as error:
            if not or_alone or len(part) == 1:
                raise
            print(f"one run at a time: {str(error).splitlines()[0]}", flush=True)
            waiting[:0] = [([i], how) for i in indices]
            continue
        free = groups.free_memory()
        # Cut, a group that has trained before would not be bitwise what it was.
        new = not any(map(_has_trained, part))
        if new and group.needed > free and len(part) > group.devices:
            half = (len(part) + 1) // 2
            print(
                f"{len(part)} runs need {group.needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free:"
                f" {half} at a time",
                flush=True,
            )
            waiting[:0] = [(indices[:half], how), (indices[half:], how)]
            continue
        ended = _fit(part, source, lambda group=group: group, plan)
        results |= dict(zip(indices, ended, strict=True))
        if any(isinstance(result, Result) and result.status == "interrupted" for result in ended):
            break
    return [results.get(i, Result("interrupted", 0, {}, {})) for i in range(len(members))]


def _compiled(make: groups.Make, members: Sequence[RunSpec], lowering: str) -> groups.Group:
    numbers = [{"seed": member.seed, **member.values} for member in members]
    if len(members) > 1:
        return groups.compile_group(make, numbers, lowering)
    algorithm, source = make(**numbers[0])
    one = program.compile_program(algorithm, source, seed=members[0].seed)
    return groups.Alone(one, "jit")


def _has_trained(member: RunSpec) -> bool:
    return records.has_checkpoint(pathlib.Path(member.workdir))


def _groups(members: Sequence[RunSpec], lowering: str) -> list[tuple[list[int], str]]:
    """RunSpecs that go on together, as they did before: with others their numbers would not be bitwise the same.

    Those of a group of which one has trained are together again, those that have trained alone are alone, the rest is
    new. A group that was killed before it had trained is none: not all of its members may have been told of it.
    """
    before = [directory.group_of(pathlib.Path(member.workdir)) for member in members]
    keys = [json.dumps(group) for group in before]
    begun = {key for key, member in zip(keys, members, strict=True) if _has_trained(member)}
    groups: dict[Any, tuple[list[int], str]] = {}
    for i, (key, group) in enumerate(zip(keys, before, strict=True)):
        if group is not None and key in begun:
            groups.setdefault(key, ([], group["lowering"]))[0].append(i)
        else:
            alone = i if _has_trained(members[i]) else "new"
            groups.setdefault(alone, ([], lowering))[0].append(i)
    return list(groups.values())


def _fit(
    members: Sequence[RunSpec], source: Source, compiled: Callable[[], groups.Group], plan: Plan
) -> list[Result | Anomaly]:
    """Trains one run or a group."""
    seconds, several = Timings(), len(members) > 1
    accumulate = members[0].config.get("accumulate")
    if several:  # one that was saved when the others were not can then go back to where they are
        plan = plan._replace(keep=plan.keep._replace(newest=max(plan.keep.newest, 2)))
    workdirs = [member.workdir for member in members]
    with contextlib.ExitStack() as stack:
        stack.enter_context(directory.tidied(*workdirs))
        stack.enter_context(limits.disk_errors(*workdirs, kept="the checkpoints there are kept"))
        runs = [Run(member, plan, source, quiet=several) for member in members]
        stack.enter_context(_lost_processes(runs[0].where))
        stack.enter_context(limits.memory_errors(source.batch_size, accumulate))
        _check_data(source)
        for run in runs if distributed.is_lead() else ():
            stack.enter_context(directory.locked(run.path))
        if several and all([run.ended_before() for run in runs]):
            return [run.result for run in runs if run.result is not None]
        with seconds("compile"):
            group = compiled()
        _check_rank(plan, group, source)
        step, carry = _begin(runs, group, stack)
        stopped = stack.enter_context(signals.listen())
        _Loop(runs, group, plan, source, seconds, stopped).train(step, carry)
    distributed.leave()
    return [run.result for run in runs if run.result is not None]


class _Loop:
    """The loop over the calls of a program: what happens between two of them.

    Args:
      runs: those that train together.
      group: their program.
      plan: what happens when.
      source: the batches of any of them.
      seconds: the clock.
      stopped: what signal asks to stop, if one does.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        group: groups.Group,
        plan: Plan,
        source: Source,
        seconds: Timings,
        stopped: Callable[[], str | None],
    ):
        self._runs, self._group, self._plan, self._source = runs, group, plan, source
        self._seconds, self._stopped = seconds, stopped
        self._several = len(runs) > 1
        self._until = min(plan.pause or plan.steps, plan.steps)

    def train(self, step: int | None, carry: Any) -> None:
        """Trains all runs to their end, or until one of the processes is told to stop.

        Args:
          step: at which they go on; None if they begin.
          carry: of all of them.
        """
        self._step, self._carry = step or 0, carry
        self._announce(resumed=step is not None)
        if self._step == 0:
            with self._seconds("sample"):
                self._draw()
        k, ending = self._agree(1)
        while self._step < self._until and not ending and self._alive():
            k = self._call(k)
            self._record()
            k, ending = self._agree(k)
        self._end()

    def _alive(self) -> list[tuple[int, Run]]:
        return [(i, run) for i, run in enumerate(self._runs) if run.result is None]

    def _say(self, line: str) -> None:
        if self._several:
            print(log.fitted(line), flush=True)
        else:
            self._runs[0].log.say(line)

    def _announce(self, resumed: bool) -> None:
        where, group, steps = self._runs[0].where, self._group, self._plan.steps
        begins = f"resuming at step {self._step}" if resumed else "starting"
        epochs = f"{steps / self._source.steps_per_epoch:.4g}"
        length = f"{counted(steps, 'step')} ({epochs} epoch{'s' * (epochs != '1')})"
        devices = counted(group.devices, f"{jax.devices()[0].platform} device")
        self._say(
            f"{self._plan.name}: {begins}, {length} on {devices}, {group.how};"
            f" {(os.path.dirname(where) or '.') if self._several else where}"
        )

    def _agree(self, k: int) -> tuple[int, bool]:
        """Steps of the next call, which is the lead's word, and whether to stop, which is anyone's."""
        wishes = distributed.agree([k, bool(self._stopped())])
        return int(wishes[0, 0]), bool(wishes[:, 1].any())

    def _call(self, k: int) -> int:
        """Calls the program for at most ``k`` steps; returns how many the next call should take."""
        plan, seconds, step = self._plan, self._seconds, self._step
        intervals = (plan.log_every, plan.sample_every, plan.checkpoint_every, plan.eval_every)
        ends = [step - step % n + n for n in (*intervals, self._group.window) if n]
        k = min(k, min([self._until, *ends]) - step)
        called = time.perf_counter()
        active = np.array([run.result is None for run in self._runs])
        with seconds("train" if "first_call" in seconds else "first_call"):
            self._carry, finite = self._group.run(self._carry, k, active)
        self._step += k
        if "train" not in seconds:
            for _, run in self._alive():
                run.log.compiled(self._step)
        for i, run in self._alive():
            if not finite[i]:
                carry = self._group.member(self._carry, i)
                error = _non_finite(carry, self._step, run.saved, run.where, run.spec.faults)
                run.stop(error, "non-finite", self._step, seconds, carry)
        if not self._several:
            self._runs[0].log.progress(self._step)
        # Calls of about the same time whatever the speed; their length does not change any number.
        took = time.perf_counter() - called
        return max(1, min(2 * k, int(k * _CALL_SECONDS / max(took, 1e-6))))

    def _is_due(self, every: int) -> bool:
        return every > 0 and self._step % every == 0

    def _record(self) -> None:
        """Logs, draws, evaluates and saves what is due at this step."""
        plan, step, last = self._plan, self._step, self._step == self._until
        windows: Sequence[Any] = []
        if last or self._is_due(plan.log_every):
            with self._seconds("log"):
                windows = self._group.windows(self._carry)
                # Not for the end or a pause, which the run will not remember when it goes on.
                if self._is_due(plan.log_every):
                    self._carry = self._group.clear(self._carry)
        drawn: dict[int, dict[str, float]] = {}
        if step == plan.steps or self._is_due(plan.sample_every):
            with self._seconds("sample"):
                drawn = self._draw()
        evaluated = (
            self._evaluate() if plan.eval_every and (last or self._is_due(plan.eval_every)) else {}
        )
        lines = []
        for i, run in self._alive():
            means = run.log.means(windows[i]) if windows else {}
            if means and run.spec.account is not None:
                means |= run.spec.account(self._group.member(self._carry, i).state)
            self._log(run, means, drawn.get(i, {}), evaluated.get(i, {}))
            lines.append(run.log.values)
        if self._several and windows:
            self._say(_summary(step, plan.steps, lines))
        if last or evaluated or self._is_due(plan.checkpoint_every):
            with self._seconds("checkpoint"):
                for i, run in self._alive():
                    run.save(step, self._group.member(self._carry, i), evaluated.get(i, {}))

    def _draw(self) -> dict[int, dict[str, float]]:
        """Draws a grid of each run, by all processes together; how diverse each is."""
        for i, run in self._alive():
            if run.spec.pictures is not None:
                run.picture(self._group.member(self._carry, i).state)
        if not self._group.samples or not self._plan.sample_every:
            return {}
        samples = self._group.sample(self._carry, GRID)
        return {i: run.draw(self._step, samples[i]) for i, run in self._alive()}

    def _evaluate(self) -> dict[int, dict[str, float]]:
        found = {}
        with self._seconds("evaluate"):
            for i, run in self._alive():
                if run.spec.validate is not None:
                    values = run.spec.validate(self._group.member(self._carry, i).state)
                    found[i] = {EVAL + name: float(value) for name, value in values.items()}
        return found

    def _log(self, run: Run, *parts: Mapping[str, float]) -> None:
        """Writes a line, if there is anything to log, and stops the run for an anomaly that is to stop it."""
        with self._seconds("log"):
            anomalies = run.log.write(self._step, *parts) if any(parts) else []
        run.mark()
        if anomalies and self._plan.on_anomaly == "stop":
            error = _stop_at(self._step, anomalies, run.saved, run.where)
            carry = self._group.member(self._carry, self._runs.index(run))
            run.stop(error, "anomaly", self._step, self._seconds, carry)

    def _end(self) -> None:
        step = self._step
        for i, run in self._alive():
            if step < self._plan.steps and run.saved != step:
                run.save(step, self._group.member(self._carry, i))
        for run in self._runs:
            run.checkpoints.close()
        if step < self._until and self._alive():
            who = self._stopped() or "another process was told to stop"
            self._say(f"{who}: saved at step {step}; the same command continues")
        for i, run in self._alive():
            run.end(step, self._group.member(self._carry, i), self._seconds, self._group.abstract)


def _begin(
    runs: Sequence[Run], group: groups.Group, stack: contextlib.ExitStack
) -> tuple[int | None, Any]:
    """Opens all runs, which ``stack`` closes, and begins at the step and with the carry of ``_start``."""
    found = []
    for each in runs:
        found.append(each.open(group.abstract))
        close = each.checkpoints.close
        stack.push(lambda kind, *_, close=close: None if _is_alone(kind) else close())
    step, carry = _start(runs, found, group)
    together = None
    if len(runs) > 1:
        together = {"lowering": group.lowering, "members": [each.id for each in runs]}
    alive = [each for each in runs if each.result is None]
    if step is not None:
        for each in alive:  # all of them, before anything is changed
            each.find_log(step)
    for each in alive:
        each.begin(step or 0, step is not None, together)
        stack.callback(each.log.close)
    return step, carry


def _start(
    runs: Sequence[Run], found: Sequence[tuple[int, Carry] | None], group: groups.Group
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
            at = each.checkpoints.restore(group.abstract, step=step)
            if at is None:
                raise UserError(
                    f"has no checkpoint of step {step}, where the runs it trains with are;"
                    " `vectorize=off` continues each by itself",
                    argument="workdir",
                    value=each.path,
                )
        if step is None and distributed.is_lead():
            (each.path / directory.SAVED).unlink(missing_ok=True)
        each.checkpoints.rewind(-1 if step is None else step)
        carries.append(at[1] if at else None)
    if step is None:
        return None, _new(runs, group)
    one = next(carry for carry in carries if carry is not None)
    return step, group.join([one if carry is None else carry for carry in carries])


def _new(runs: Sequence[Run], group: groups.Group) -> Any:
    """The carry of runs that begin, some of them from another run."""
    carry = group.init()
    if not any(run.spec.begin for run in runs):
        return carry
    return group.join([run.start_from(group.member(carry, i)) for i, run in enumerate(runs)])


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
    speed = log.left(steps - step, lines[0], runs=len(lines))
    return f"{log.pairs({'step': f'{step}/{steps}', 'runs': len(lines), **shown})}  {speed}"


def _check_data(source: Source) -> None:
    """Refuses to train one run on the different data that its processes have; only digests are compared."""
    digest = np.frombuffer(hashlib.sha256(source.fingerprint.encode()).digest(), np.uint8)
    digests = distributed.agree(digest)
    if (digests != digests[0]).any():
        raise UserError("the processes of this run have different data")


def _check_rank(plan: Plan, group: groups.Group, source: Source) -> None:
    """Refuses, before anything is trained, to rank checkpoints by what is never logged.

    Evaluations have names that are known only after the first one.
    """
    known = [*group.abstract.window.sums, *log.CLOCK]
    if group.samples and plan.sample_every and np.ndim(source.examples) == 4:
        known += anomaly.DIVERSITY
    metric = plan.keep.metric
    if metric and not metric.startswith(EVAL) and metric not in known:
        raise not_logged(plan.keep, known)


@contextlib.contextmanager
def _lost_processes(where: str) -> Iterator[None]:
    """Of several processes, turns what the others see when one has ended into one error."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or limits.is_of_memory(error):
            raise
        peers.await_reason()
        raise Lost(
            f"another process of this run has ended or cannot be reached ({str(error).splitlines()[0][:200]});"
            f" the checkpoints in {where} are kept, and the same command continues"
        ) from None


def _is_alone(kind: type[BaseException] | None) -> bool:
    """Whether an error ends one of several processes: then it does not wait for them to complete a save together."""
    return kind is not None and jax.process_count() > 1


def _stop_at(step: int, anomalies: list[str], saved: int, where: str) -> Anomaly:
    return Anomaly(
        f"`on_anomaly=stop`, at step {step}: {'; '.join(anomalies)}; {_kept(saved)} in {where}."
        " The same command with `on_anomaly=flag` goes on"
    )


def _non_finite(
    carry: Carry, step: int, saved: int, where: str, faults: Mapping[str, str]
) -> Anomaly:
    """The error that says what is no longer finite, by which step, and what can be done."""
    means = carry.window.means()
    names = [name for name, value in means.items() if not math.isfinite(value)]
    for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(carry.state):
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(np.asarray(leaf)).all():
            names.append(jax.tree_util.keystr(leaf_path, simple=True, separator="/"))
    for name in names:
        if name in faults:
            return Anomaly(f"ended by step {step}: {faults[name]}; {_kept(saved)} in {where}")
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return Anomaly(
        f"not finite by step {step}: {shown}; {_kept(saved)} in {where}."
        " Try a lower learning rate or penalty weight in a new `workdir`"
    )


def _kept(saved: int) -> str:
    return f"the checkpoint of step {saved} is kept" if saved >= 0 else "no checkpoint was made yet"
