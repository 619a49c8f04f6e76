"""The training loop: runs a program, logs, draws, saves, resumes and stops cleanly. It knows no GANs.

A run is a directory (see ``run.open_run``); the same command line continues it. Everything that decides the numbers is
in the compiled program and its carry; this file only chooses how many steps the next call takes and what happens then.
"""

import contextlib
import errno
import math
import os
import pathlib
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bpgan.runtime import anomaly, parallel, report, run
from bpgan.runtime.checkpoint import NEWEST, Checkpoints, Keep
from bpgan.types import Algorithm, Source, UserError

GRID = 100
"""Images in a sample grid."""

_EVAL = "eval/"
"""Before the names of what ``validate`` finds."""

_CALL_SECONDS = 0.5
"""Aim for one call of the program: long enough to hide the host, short enough for signals and progress."""


class Anomaly(Exception):
    """The run was stopped, for a number that is not finite or by ``on_anomaly``; the message says what and when."""


class Lost(Exception):
    """Another process that trains the same run has ended; what was saved is kept, and the same command goes on."""


class Result(NamedTuple):
    """How a run ended.

    Attributes:
      status: ``done`` or ``interrupted`` (saved, and resumed by the same command).
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
    if jax.process_count() > 1:
        # JAX's preemption service hears it, and tells the other processes.
        handled.remove(signal.SIGTERM)
    previous = {s: signal.signal(s, handler) for s in handled}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


class _Timings(dict):
    """Seconds by activity."""

    @contextlib.contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self[activity] = self.get(activity, 0.0) + time.perf_counter() - start


def fit(
    algorithm: Algorithm,
    source: Source,
    *,
    name: str,
    config: Mapping[str, Any],
    restart_safe: frozenset[str],
    workdir: str | os.PathLike,
    seed: int,
    steps: int,
    log_every: int,
    sample_every: int = 0,
    checkpoint_every: int = 0,
    eval_every: int = 0,
    keep: Keep = NEWEST,
    mode: str = "jit",
    on_anomaly: str = "flag",
    tensorboard: bool = True,
    validate: Callable[[Any], Mapping[str, float]] | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
) -> Result:
    """Trains until ``steps``, from the newest sound checkpoint in ``workdir`` if there is one.

    Intervals are in steps, 0 means never; the last step is always logged, drawn and saved. On the same machine and
    devices, the result is bitwise the same however often the run was interrupted. Several processes that train one run
    (``parallel.join``) call this together; the first of them writes and speaks.

    Args:
      algorithm: built with ``parallel.axis_name(mode)``.
      source: the batches.
      name, config, restart_safe, workdir: see ``run.open_run``.
      seed: root seed.
      steps: the step to stop at.
      log_every: metrics are averaged over this many steps and written.
      sample_every: a grid of ``GRID`` samples, always of the same latents, and how diverse they are.
      checkpoint_every: besides the checkpoint at the end and on SIGTERM or SIGINT.
      eval_every: how often ``validate`` is called; a checkpoint is saved each time, so that the best can be kept.
      keep: which checkpoints stay.
      mode: ``jit`` or ``pmap``.
      on_anomaly: ``flag`` names loss spikes and collapsed samples in log and report, ``stop`` also ends the run.
      tensorboard: also write event files.
      validate: ``state -> {name: value}`` on the host, logged as ``eval/name``; ``keep`` may rank by one of them.
      evaluate: ``state -> {name: value}`` on the host, after the last step; of the best checkpoint, too, if ``keep``
        ranks them.

    Raises:
      UserError: for a workdir that cannot be used, a full disk, or a batch that cannot be split.
      Anomaly: if a metric or the state is no longer finite, or by ``on_anomaly``; nothing is saved after the last sound
        checkpoint.
      Lost: if another process of the run has ended.
    """
    start = time.perf_counter()
    seconds = _Timings()
    lead = parallel.is_lead()
    path = run.open_run(
        workdir,
        name=name,
        config=config,
        restart_safe=restart_safe,
        fingerprint=source.fingerprint,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_disk_errors(path))
        stack.enter_context(_lost_processes(path))
        if lead:
            stack.enter_context(run.locked(path))
        with seconds("compile"):
            program = parallel.compile(algorithm, source, seed=seed, mode=mode)
        checkpoints = Checkpoints(path / "checkpoints", keep=keep)
        restored = checkpoints.restore(program.abstract)
        step, carry = restored if restored else (0, program.init())
        if step > steps:
            raise UserError(f"--workdir={workdir}: the run is at step {step} already, past {steps}")
        if lead:
            run.write_record(path, name, config, source.fingerprint)
        stack.push(lambda kind, *_: None if _is_lost(kind) else checkpoints.close())
        log = run.Log(path, step, steps, source, tensorboard=tensorboard, lead=lead)
        stack.callback(log.close)
        stopped = stack.enter_context(_signals())
        log.say(
            f"{name}: {'resuming at step ' + str(step) if restored else 'starting'}, {steps} steps"
            f" ({steps / source.steps_per_epoch:.4g} epochs) on {program.devices}"
            f" {jax.devices()[0].platform} device(s), {mode}; {path}"
        )
        saved = step if restored else -1

        def draw(step: int) -> dict[str, float]:
            """Saves a grid; returns how diverse its samples are, if that can be compared with the data."""
            if program.sample is None or not sample_every:
                return {}
            samples = report.to_bytes(program.sample(carry, GRID))  # by all processes together
            grid = report.image_grid(samples)
            if lead:
                report.save_png(path / "samples" / f"step_{step:08d}.png", grid)
            log.image(step, grid)
            if np.shape(source.examples)[1:] != samples.shape[1:]:
                return {}
            return anomaly.diversity(samples, report.to_bytes(source.examples))

        def save(step: int, evaluated: Mapping[str, float] = types.MappingProxyType({})) -> None:
            """Saves; the checkpoint ranks by what was logged last, but never by the evaluation of another step."""
            log.flush()
            ranks = {k: v for k, v in log.values.items() if not k.startswith(_EVAL)} | dict(
                evaluated
            )
            due = evaluated if keep.metric.startswith(_EVAL) else ranks
            if keep.metric and due and keep.metric not in due:
                raise UserError(
                    f"--keep: {keep.metric} is not logged by this run; known: {', '.join(due)}"
                )
            checkpoints.save(step, carry, ranks)

        def decide(k: int) -> tuple[int, bool]:
            """Steps of the next call, which is the lead's word, and whether to stop, which is anyone's."""
            wishes = parallel.agree([k, bool(stopped()) or checkpoints.preempted()])
            return int(wishes[0, 0]), bool(wishes[:, 1].any())

        if step == 0:
            with seconds("sample"):
                draw(0)
        k, ending = decide(1)
        while step < steps and not ending:
            boundary = min(
                [steps]
                + [
                    step - step % n + n
                    for n in (log_every, sample_every, checkpoint_every, eval_every, program.window)
                    if n
                ]
            )
            k = min(k, boundary - step)
            called = time.perf_counter()
            with seconds("train" if "first_call" in seconds else "first_call"):
                carry, finite = program.run(carry, k)
                finite = bool(finite)
            step += k
            if not finite:
                error = _non_finite(carry, step, saved, path)
                _finish(path, "non-finite", step, {}, seconds, [str(error)])
                raise error
            log.progress(step)
            # Calls of about the same time whatever the speed; their length does not change any number.
            took = time.perf_counter() - called
            k = max(1, min(2 * k, int(k * _CALL_SECONDS / max(took, 1e-6))))
            last, window, drawn, evaluated = step == steps, {}, {}, {}
            if last or (log_every and step % log_every == 0):
                with seconds("log"):
                    window = carry.window.means()
                    carry = program.clear(carry)
            if last or (sample_every and step % sample_every == 0):
                with seconds("sample"):
                    drawn = draw(step)
            if validate is not None and eval_every and (last or step % eval_every == 0):
                with seconds("evaluate"):
                    evaluated = {_EVAL + k: float(v) for k, v in validate(carry.state).items()}
            with seconds("log"):
                found = window or drawn or evaluated
                anomalies = log.write(step, window, drawn, evaluated) if found else []
            if anomalies and on_anomaly == "stop":
                _finish(path, "anomaly", step, log.values, seconds, log.anomalies)
                raise _stop_at(step, anomalies, saved, path)
            if last or evaluated or (checkpoint_every and step % checkpoint_every == 0):
                with seconds("checkpoint"):
                    save(step, evaluated)
                    saved = step
            k, ending = decide(k)
        if step < steps and saved != step:
            save(step)
        checkpoints.close()
        if step < steps:
            log.say(f"{stopped() or 'preempted'}: saved at step {step}; the same command continues")
        found = {}
        if step == steps and evaluate is not None:
            with seconds("evaluate"):
                found = {k: float(v) for k, v in evaluate(carry.state).items()}
                best = _best(path, keep, program) if keep.metric and found else None
                if best is not None:
                    again = found if best[0] == steps else evaluate(best[1].state)
                    found |= {f"best/{k}": float(v) for k, v in again.items()}
                    found["best/step"] = float(best[0])
        values = log.values | found
        status = "done" if step == steps else "interrupted"
        if status == "done" and not (restored and restored[0] == steps):
            log.hyperparameters(config, values)
        seconds["total"] = time.perf_counter() - start
        if lead:
            _finish(path, status, step, values, seconds, log.anomalies)
    parallel.leave()
    return Result(status, step, values, found)


def _best(path: pathlib.Path, keep: Keep, program: parallel.Program) -> tuple[int, Any] | None:
    """The best checkpoint, read back from the disk; None if none was ranked."""
    checkpoints = Checkpoints(path / "checkpoints", keep=keep, read_only=True)
    try:
        return checkpoints.restore(program.abstract, best=True)
    finally:
        checkpoints.close()


@contextlib.contextmanager
def _disk_errors(path: pathlib.Path) -> Iterator[None]:
    """A disk that is full or fails is the user's to mend; what was saved before stays, and the run goes on from it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES):
            raise
        raise UserError(
            f"--workdir={path}: cannot be written ({error.strerror}: {error.filename or 'the log'});"
            " the checkpoints there are kept. Make room or mend the disk, and repeat the command"
        ) from None


@contextlib.contextmanager
def _lost_processes(path: pathlib.Path) -> Iterator[None]:
    """Of several processes, turns what the others see when one has ended into one error."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not _is_lost(type(error)):
            raise
        raise Lost(
            f"another process of this run has ended or cannot be reached ({str(error).splitlines()[0][:200]});"
            f" the checkpoints in {path} are kept, and the same command continues"
        ) from None


def _is_lost(kind: type[BaseException] | None) -> bool:
    return (
        kind is not None
        and issubclass(kind, jax.errors.JaxRuntimeError)
        and jax.process_count() > 1
    )


def _finish(path: pathlib.Path, status: str, step: int, values, seconds, anomalies) -> None:
    if not parallel.is_lead():
        return
    timings = {f"{k}_s": round(v, 3) for k, v in seconds.items()}
    result = {
        "status": status,
        "step": step,
        "metrics": values,
        "anomalies": anomalies,
        "timings": timings,
    }
    run.write_json(path / "result.json", result)
    report.write_report(path)
    print(f"{status} at step {step}; report: {path / 'report.html'}")


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
