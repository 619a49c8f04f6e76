"""A run directory and its log: who may use it, what is written when, and what survives a kill.

Everything in it is either replaced as a whole or, the log, cut back to the checkpoint that a run goes on from.
"""

import collections
import contextlib
import errno
import json
import os
import pathlib
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np

from bpgan.runtime import anomaly, environment, report
from bpgan.types import Source, UserError
from bpgan.version import __version__

_LOCK, _RECORD = ".lock", "config.json"
CLOCK = ("time/elapsed", "time/steps_per_s", "time/images_per_s")
"""The names of what every log line says of time."""


def open_run(
    workdir: str | os.PathLike,
    *,
    name: str,
    config: Mapping[str, Any],
    restart_safe: frozenset[str],
    fingerprint: str = "",
) -> pathlib.Path:
    """Makes a run directory, or accepts the one that is there; ``write_record`` then makes it this run's.

    Layout: ``config.json``, ``metrics.jsonl``, ``events.*``, ``samples/``, ``checkpoints/``, ``curves.png``,
    ``report.html``, ``result.json``, and ``result_at_STEP.json`` for a pause that it had passed when it was asked for.

    Raises:
      UserError: if the directory cannot be written, holds something else than a run of experiment ``name``, or a run
        whose config differs in a field that is not ``restart_safe`` or whose data had another ``fingerprint``. Nothing
        in it is changed then. Another ``dataset`` is no difference if the fingerprint is the same: the data have moved.
    """
    path = pathlib.Path(workdir)
    try:
        environment.check_path(str(workdir))
    except ValueError as error:
        raise UserError(str(error), argument="workdir", value=workdir) from None
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
            old = json.loads(record.read_text(encoding="utf-8"))
            old_name, old_config = old["experiment"], dict(old["config"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"--workdir={workdir}: its config.json is not a bpgan record") from None
        if old_name != name:
            raise UserError(f"--workdir={workdir}: holds a run of {old_name}, not of {name}")
        before = old.get("data", "")
        free = restart_safe | {"dataset"} if fingerprint and fingerprint == before else restart_safe
        changed = [
            f"--{field} was {old_config.get(field)!r}, now {config.get(field)!r}"
            for field in sorted(set(config) | set(old_config))
            if field not in free and config.get(field) != old_config.get(field)
        ]
        trained = report.read_metrics(path / "metrics.jsonl") or any(path.glob("checkpoints/*"))
        if changed and trained:
            raise UserError(
                f"--workdir={workdir}: holds a run with another configuration ({'; '.join(changed)});"
                " use the same flags to resume it or another workdir"
            )
        if trained and fingerprint and before and before != fingerprint:
            raise UserError(
                f"--workdir={workdir}: the data have changed since this run began (sha256 was {before[:12]}, now"
                f" {fingerprint[:12]}); use another workdir for the new data"
            )
    return path


def write_record(
    path: pathlib.Path,
    name: str,
    config: Mapping[str, Any],
    source: Source,
    group: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``config.json``: the experiment, every field, the data, versions, devices, revision and command.

    ``group``: of a run that is trained together with others, who they are and how.
    """
    versions = {"bpgan": __version__, "python": platform.python_version()}
    versions |= {p: metadata.version(p) for p in ("jax", "jaxlib", "flax", "optax", "numpy")}
    description = {
        "experiment": name,
        "config": dict(config),
        "data": source.fingerprint,
        "images_per_step": source.batch_size,
        "versions": versions,
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()],
        "git": _git_revision(),
        "command": shlex.join(sys.argv),
    }
    if group is not None:
        description["group"] = dict(group)
    write_json(path / _RECORD, description)


def group_of(path: pathlib.Path) -> dict[str, Any] | None:
    """The group that a run was trained in, as ``write_record`` noted it; None for a run that was alone."""
    group = report.read_json(path / _RECORD).get("group")
    return group if isinstance(group, dict) and "lowering" in group else None


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """One process per run directory, where its disk has locks. The kernel gives it back however the process ends."""
    import fcntl

    with (path / _LOCK).open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"--workdir={path}: another process is training here") from None
        except OSError as error:  # Lustre without -o flock, some NFS
            print(
                f"warning: --workdir={path}: cannot be locked ({error.strerror});"
                " see to it that no second process trains here"
            )
        yield


def _git_revision() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = pathlib.Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=5)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes ``value`` as JSON so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


class Log:
    """Log lines to the terminal, ``metrics.jsonl`` and TensorBoard; keeps what later lines are compared with.

    Args:
      path: the run directory. What was logged after ``step`` is dropped.
      step, total: where the run goes on, and where it ends.
      source: for epochs and images per second.
      tensorboard: also write event files.
      lead: of several processes that train one run, only the lead writes and speaks; all keep the history.
      speak: also print; not if this is one of many runs.
    """

    def __init__(
        self,
        path: pathlib.Path,
        step: int,
        total: int,
        source: Source,
        *,
        tensorboard: bool = True,
        lead: bool = True,
        speak: bool = True,
    ):
        from tqdm import tqdm

        self._total, self._source = total, source
        metrics = path / "metrics.jsonl"
        if lead:
            report.truncate_metrics(metrics, step)
        lines = [line for line in report.read_metrics(metrics) if line["step"] <= step]
        self.values: dict[str, float] = {}
        for line in lines:
            self.values |= {k: v for k, v in line.items() if k not in _NO_VALUES}
        self.anomalies = [f"step {at['step']}: {at['anomaly']}" for at in lines if "anomaly" in at]
        self.history = collections.deque(lines, 2 * anomaly.HISTORY)
        self._before = self.values.get("time/elapsed", 0.0)
        self._start = self._window_start = time.perf_counter()
        self._window_step = step
        self._file = metrics.open("a", encoding="utf-8") if lead else None
        self._speak = lead and speak
        self._events = None
        if tensorboard and lead:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(path), purge_step=step + bool(step))
        self._bar = tqdm(
            total=total,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=not (self._speak and sys.stderr.isatty()),
        )

    def progress(self, step: int) -> None:
        """Moves the progress bar."""
        self._bar.update(step - self._bar.n)
        rate = self._bar.format_dict["rate"]
        if rate:
            self._bar.set_postfix_str(f"{rate * self._source.batch_size:,.0f} images/s", False)

    def write(
        self,
        step: int,
        window: Mapping[str, float],
        samples: Mapping[str, float],
        evaluated: Mapping[str, float],
    ) -> list[str]:
        """Writes a line. Returns the anomalies in it, which are also logged.

        Args:
          step: the line's; at most one line a step.
          window: means of the metrics since the line before, to which the speed is added; empty if none are due.
          samples: the diversity of the samples drawn at this step; empty if none were.
          evaluated: what an evaluation at this step found; empty if there was none.
        """
        line: dict[str, Any] = {
            "step": step,
            "epoch": round(step / self._source.steps_per_epoch, 4),
        }
        found = anomaly.loss_spikes(self.history, window)
        # A generator that has only begun to learn draws the same image everywhere.
        if samples and step >= self._source.steps_per_epoch:
            found += anomaly.collapse(samples)
        values = {**window, **samples, **evaluated}
        if window:
            now = time.perf_counter()
            rate = (step - self._window_step) / max(now - self._window_start, 1e-9)
            self._window_start, self._window_step = now, step
            speed = rate * self._source.batch_size
            shown = "  ".join(f"{k} {v:.4g}" for k, v in window.items() if "norm" not in k)
            self.say(
                f"step {step}/{self._total}  epoch {line['epoch']:.4g}  {shown}  {rate:.4g} steps/s"
                f"  {speed:,.0f} images/s  {clock((self._total - step) / rate)} left"
            )
            elapsed = self._before + now - self._start
            values |= zip(CLOCK, (round(elapsed, 3), round(rate, 3), round(speed, 1)), strict=True)
        if evaluated:
            shown = "  ".join(f"{k} {v:.4g}" for k, v in evaluated.items())
            self.say(f"step {step}/{self._total}  {shown}")
        line |= values
        if found:
            line["anomaly"] = "; ".join(found)
            self.anomalies.append(f"step {step}: {line['anomaly']}")
            self.say(f"anomaly at step {step}: {line['anomaly']}")
        self.history.append(line)
        self.values |= values
        if self._file:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._events:
            for key, value in {"epoch": line["epoch"], **values}.items():
                self._events.add_scalar(key, value, step)
        return found

    def image(self, step: int, grid: np.ndarray) -> None:
        """Hands a sample grid to TensorBoard."""
        if self._events:
            self._events.add_image("samples", grid, step, dataformats="HWC")

    def hyperparameters(self, config: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """Makes the run a row of TensorBoard's table of hyper-parameters."""
        if self._events:
            self._events.add_hparams(
                dict(config), {f"final/{k}": v for k, v in values.items()}, name="hparams"
            )

    def say(self, line: str) -> None:
        """Prints a line without disturbing the progress bar. If nobody reads on, the terminal has hung up.

        Raises:
          UserError: if the output goes to a file that cannot be written.
        """
        if not self._speak:
            return
        try:
            self._bar.write(line, file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            environment.silence(sys.stdout)
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise UserError(f"the output cannot be written ({error.strerror})") from None
            signal.raise_signal(signal.SIGHUP)

    def flush(self) -> None:
        """Returns when what was logged is on the disk; a checkpoint must not be ahead of its log."""
        if self._file:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the files."""
        self._bar.close()
        if self._file:
            self._file.close()
        if self._events:
            self._events.close()


_NO_VALUES = ("step", "epoch", "anomaly")


def values_by(path: pathlib.Path, step: int) -> dict[str, float]:
    """The metrics of a run as last logged by a step."""
    lines = [x for x in report.read_metrics(path / "metrics.jsonl") if x["step"] <= step]
    return {k: v for line in lines for k, v in line.items() if k not in _NO_VALUES}


def clock(seconds: float) -> str:
    """``h:mm:ss``, or ``m:ss``."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
