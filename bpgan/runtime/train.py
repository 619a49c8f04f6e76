"""The training loop: runs a program, logs, draws, saves, resumes and stops cleanly. It knows no GANs.

A run is a directory (see ``open_run``); the same command line continues it. Everything that decides the numbers is
in the compiled program and its carry; this file only chooses how many steps the next call takes and what happens then.
"""

import contextlib
import json
import math
import os
import pathlib
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np

from bpgan.runtime import parallel, report
from bpgan.runtime.checkpoint import Checkpoints
from bpgan.types import Algorithm, Source, UserError
from bpgan.version import __version__

GRID = 100
"""Images in a sample grid."""

_CALL_SECONDS = 0.5
"""Aim for one call of the program: long enough to hide the host, short enough for signals and progress."""


class NonFinite(Exception):
    """A metric or a number of the state became NaN or infinite; the message says which and by when."""


class Result(NamedTuple):
    """How a run ended: ``done`` or ``interrupted`` (saved, and resumed by the same command)."""

    status: str
    step: int
    metrics: dict[str, float]


_LOCK, _RECORD = ".lock", "config.json"


def open_run(
    workdir: str | os.PathLike,
    *,
    name: str,
    config: Mapping[str, Any],
    restart_safe: frozenset[str],
) -> pathlib.Path:
    """Makes a run directory, or accepts the one that is there; ``write_record`` then makes it this run's.

    Layout: ``config.json``, ``metrics.jsonl``, ``events.*``, ``samples/``, ``checkpoints/``, ``curves.png``,
    ``report.html``, ``result.json``.

    Raises:
      UserError: if the directory cannot be written, holds something else than a run of experiment ``name``, or a run
        whose config differs in a field that is not ``restart_safe``. Nothing in it is changed then.
    """
    path = pathlib.Path(workdir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        entries = os.listdir(path)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be used ({error.strerror})") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"--workdir={workdir}: is not writable")
    record = path / _RECORD
    if not record.exists():
        # What a process killed before its first step may leave behind.
        if set(entries) - {_LOCK, f"{_RECORD}.tmp", "checkpoints"}:
            raise UserError(
                f"--workdir={workdir}: is not empty and holds no bpgan run; name a new or empty directory"
            )
    else:
        try:
            old = json.loads(record.read_text())
            old_name, old_config = old["experiment"], dict(old["config"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"--workdir={workdir}: its config.json is not a bpgan record") from None
        if old_name != name:
            raise UserError(f"--workdir={workdir}: holds a run of {old_name}, not of {name}")
        changed = [
            f"--{field} was {old_config.get(field)!r}, now {config.get(field)!r}"
            for field in sorted(set(config) | set(old_config))
            if field not in restart_safe and config.get(field) != old_config.get(field)
        ]
        trained = report.read_metrics(path / "metrics.jsonl") or any(path.glob("checkpoints/*"))
        if changed and trained:
            raise UserError(
                f"--workdir={workdir}: holds a run with another configuration ({'; '.join(changed)});"
                " use the same flags to resume it or another workdir"
            )
    return path


def write_record(path: pathlib.Path, name: str, config: Mapping[str, Any]) -> None:
    """Writes ``config.json``: the experiment, every field, versions, devices, revision and command."""
    versions = {"bpgan": __version__, "python": platform.python_version()}
    versions |= {p: metadata.version(p) for p in ("jax", "jaxlib", "flax", "optax", "numpy")}
    description = {
        "experiment": name,
        "config": dict(config),
        "versions": versions,
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()],
        "git": _git_revision(),
        "command": shlex.join(sys.argv),
    }
    write_json(path / _RECORD, description)


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """One process per run directory. The kernel gives the lock back however the process ends."""
    import fcntl

    with (path / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"--workdir={path}: another process is training here") from None
        yield


def _git_revision() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = pathlib.Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes ``value`` as JSON so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


class _Log:
    """Log lines to the terminal, ``metrics.jsonl`` and TensorBoard."""

    def __init__(
        self, path: pathlib.Path, step: int, total: int, source: Source, tensorboard: bool
    ):
        from tqdm import tqdm

        self._path, self._total, self._source = path, total, source
        report.truncate_metrics(path / "metrics.jsonl", step)
        lines = report.read_metrics(path / "metrics.jsonl")
        self.last = lines[-1] if lines else {}
        self._file = (path / "metrics.jsonl").open("a")
        self._before = self.last.get("time/elapsed", 0.0)
        self._start = self._window_start = time.perf_counter()
        self._window_step = step
        self._events = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(path), purge_step=step + bool(step))
        self._bar = tqdm(
            total=total,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def progress(self, step: int) -> None:
        self._bar.update(step - self._bar.n)
        rate = self._bar.format_dict["rate"]
        if rate:
            self._bar.set_postfix_str(f"{rate * self._source.batch_size:,.0f} images/s", False)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        now = time.perf_counter()
        rate = (step - self._window_step) / max(now - self._window_start, 1e-9)
        self._window_start, self._window_step = now, step
        left = (self._total - step) / rate
        self.last = {
            "step": step,
            "epoch": round(step / self._source.steps_per_epoch, 4),
            **values,
            "time/elapsed": round(self._before + now - self._start, 3),
            "time/steps_per_s": round(rate, 3),
            "time/images_per_s": round(rate * self._source.batch_size, 1),
        }
        self._file.write(json.dumps(self.last) + "\n")
        self._file.flush()
        if self._events:
            for key, value in self.last.items():
                if key != "step":
                    self._events.add_scalar(key, value, step)
        shown = "  ".join(f"{k} {v:.4g}" for k, v in values.items() if "norm" not in k)
        self.say(
            f"step {step}/{self._total}  epoch {self.last['epoch']:.4g}  {shown}  "
            f"{rate:.4g} steps/s  {rate * self._source.batch_size:,.0f} images/s  {_clock(left)} left"
        )

    def image(self, step: int, grid: np.ndarray) -> None:
        if self._events:
            self._events.add_image("samples", grid, step, dataformats="HWC")

    def hyperparameters(self, config: Mapping[str, Any], values: Mapping[str, float]) -> None:
        if self._events:
            self._events.add_hparams(
                dict(config), {f"final/{k}": v for k, v in values.items()}, name="hparams"
            )

    def say(self, line: str) -> None:
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        self._bar.close()
        self._file.close()
        if self._events:
            self._events.close()


def _clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


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

    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
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
    keep: int = 3,
    mode: str = "jit",
    tensorboard: bool = True,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
) -> Result:
    """Trains until ``steps``, from the newest checkpoint in ``workdir`` if there is one.

    Intervals are in steps, 0 means never; the last step is always logged, drawn and saved. On the same machine and
    devices, the result is bitwise the same however often the run was interrupted.

    Args:
      algorithm: built with ``parallel.axis_name(mode)``.
      source: the batches.
      name, config, restart_safe, workdir: see ``open_run``.
      seed: root seed.
      steps: the step to stop at.
      log_every: metrics are averaged over this many steps and written.
      sample_every: a grid of ``GRID`` samples, always of the same latents.
      checkpoint_every: besides the checkpoint at the end and on SIGTERM or SIGINT.
      keep: newest checkpoints to keep.
      mode: ``jit`` or ``pmap``.
      tensorboard: also write event files.
      evaluate: ``state -> {name: value}`` on the host, after the last step.

    Raises:
      UserError: for a workdir that cannot be used, or a batch that cannot be split.
      NonFinite: if a metric or the state is no longer finite; nothing is saved after the last sound checkpoint.
    """
    start = time.perf_counter()
    seconds = _Timings()
    path = open_run(workdir, name=name, config=config, restart_safe=restart_safe)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_locked(path))
        with seconds("compile"):
            program = parallel.compile(algorithm, source, seed=seed, mode=mode)
        checkpoints = Checkpoints(path / "checkpoints", keep=keep)
        restored = checkpoints.restore(program.abstract)
        step, carry = restored if restored else (0, program.init())
        if step > steps:
            raise UserError(f"--workdir={workdir}: the run is at step {step} already, past {steps}")
        write_record(path, name, config)
        log = _Log(path, step, steps, source, tensorboard)
        stack.callback(log.close)
        stack.callback(checkpoints.close)
        stopped = stack.enter_context(_signals())
        log.say(
            f"{name}: {'resuming at step ' + str(step) if restored else 'starting'}, {steps} steps"
            f" ({steps / source.steps_per_epoch:.4g} epochs) on {program.devices}"
            f" {jax.devices()[0].platform} device(s), {mode}; {path}"
        )
        saved = step if restored else -1

        def draw(step: int) -> None:
            if program.sample is not None and sample_every:
                grid = report.image_grid(program.sample(carry, GRID))
                report.save_png(path / "samples" / f"step_{step:08d}.png", grid)
                log.image(step, grid)

        if step == 0:
            with seconds("sample"):
                draw(0)
        k = 1
        while step < steps and not stopped():
            boundary = min(
                [steps]
                + [step - step % n + n for n in (log_every, sample_every, checkpoint_every) if n]
            )
            k = min(k, boundary - step)
            called = time.perf_counter()
            with seconds("train" if "first_call" in seconds else "first_call"):
                carry, finite = program.run(carry, k)
                finite = bool(finite)
            step += k
            if not finite:
                error = _non_finite(carry, step, saved, path)
                _finish(path, "non-finite", step, {}, seconds)
                raise error
            log.progress(step)
            # Calls of about the same time whatever the speed; their length does not change any number.
            took = time.perf_counter() - called
            k = max(1, min(2 * k, int(k * _CALL_SECONDS / max(took, 1e-6))))
            last = step == steps
            if last or (log_every and step % log_every == 0):
                with seconds("log"):
                    log.metrics(step, carry.window.means())
                    carry = program.clear(carry)
            if last or (sample_every and step % sample_every == 0):
                with seconds("sample"):
                    draw(step)
            if last or (checkpoint_every and step % checkpoint_every == 0):
                with seconds("checkpoint"):
                    checkpoints.save(step, carry)
                    saved = step
        if step < steps:
            if saved != step:
                checkpoints.save(step, carry)
            log.say(f"{stopped()}: saved at step {step}; the same command continues")
        values = {k: v for k, v in log.last.items() if k not in ("step", "epoch")}
        if step == steps and evaluate is not None:
            with seconds("evaluate"):
                values |= {k: float(v) for k, v in evaluate(carry.state).items()}
        status = "done" if step == steps else "interrupted"
        if status == "done" and not (restored and restored[0] == steps):
            log.hyperparameters(config, values)
    seconds["total"] = time.perf_counter() - start
    _finish(path, status, step, values, seconds)
    return Result(status, step, values)


def _finish(path: pathlib.Path, status: str, step: int, values, seconds) -> None:
    timings = {f"{k}_s": round(v, 3) for k, v in seconds.items()}
    write_json(
        path / "result.json",
        {"status": status, "step": step, "metrics": values, "timings": timings},
    )
    report.write_report(path)
    print(f"{status} at step {step}; report: {path / 'report.html'}")


def _non_finite(carry: parallel.Carry, step: int, saved: int, path: pathlib.Path) -> NonFinite:
    """The error that says what is no longer finite, by which step, and what can be done."""
    means = carry.window.means()
    names = [name for name, value in means.items() if not math.isfinite(value)]
    for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(carry.state):
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(np.asarray(leaf)).all():
            names.append(jax.tree_util.keystr(leaf_path, simple=True, separator="/"))
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    kept = f"the checkpoint of step {saved} is kept" if saved >= 0 else "no checkpoint was made yet"
    return NonFinite(
        f"not finite by step {step}: {shown}; {kept} in {path}."
        " Try a lower learning rate or penalty weight in a new --workdir"
    )
