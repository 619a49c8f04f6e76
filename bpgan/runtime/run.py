"""A run directory and its log: who may use it, what is written when, and what survives a kill.

Everything in it is either replaced as a whole or, the log, cut back to the checkpoint that a run goes on from.
"""

import collections
import contextlib
import json
import os
import pathlib
import platform
import re
import secrets
import shlex
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from bpgan.runtime import anomaly, parallel, report
from bpgan.types import Source, UserError
from bpgan.version import __version__

_LOCK, _RECORD, _CHECKPOINTS = ".lock", "config.json", "checkpoints"
_FOLDERS = {_CHECKPOINTS, "samples", "hparams"}
_FILES = {
    _LOCK,
    ".saved",
    _RECORD,
    "metrics.jsonl",
    "result.json",
    "report.html",
    "curves.png",
    "samples.gif",
}
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
    It may be moved or copied as a whole.

    Raises:
      UserError: if the directory cannot be written, holds something else than a run of experiment ``name``, or a run
        whose config differs in a field that is not ``restart_safe`` or whose data had another ``fingerprint``. Nothing
        in it is changed then. Another ``dataset`` is no difference if the fingerprint is the same: the data have moved.
    """
    path = pathlib.Path(workdir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        entries = os.listdir(path)
    except OSError as error:
        reason = error.strerror
        if os.path.islink(path) and isinstance(error, FileExistsError):
            reason = f"a link to {os.readlink(path)}, which is not there"
        raise UserError(f"cannot be used ({reason})", argument="workdir", value=workdir) from None
    _check_layout(path, entries)
    if not os.access(path, os.W_OK):
        raise UserError(f"--workdir={workdir}: is not writable")
    record = path / _RECORD
    if not record.exists():
        # What a process killed before its first step may leave behind.
        if set(entries) - {_LOCK, f"{_RECORD}.tmp", _CHECKPOINTS}:
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


def _check_layout(path: pathlib.Path, entries: Sequence[str]) -> None:
    """Refuses a directory, pipe or device where bpgan is to write a file, and anything else where it needs a folder.

    Seen before anything is trained or changed, it costs nothing. A hidden or temporary file that is a link would lead
    bpgan to write elsewhere.
    """
    for entry in sorted(entries):
        base = entry.removesuffix(".tmp")
        file = path / entry
        if entry in _FOLDERS and not file.is_dir():
            raise UserError(f"{entry} must be a folder", argument="workdir", value=path)
        if base in _FILES and file.is_symlink() and (entry != base or entry.startswith(".")):
            raise UserError(f"{entry} must not be a link", argument="workdir", value=path)
        if base in _FILES and not file.is_file():
            raise UserError(f"{entry} must be a file", argument="workdir", value=path)


def identity(path: pathlib.Path) -> str:
    """What tells a run from every other, and its checkpoints from theirs: as its record says, or new, 16 hex digits.

    It is random, as two runs of the same flags need not be the same: one may have trained alone, on another machine or
    towards another end. No number of the run depends on it. Several processes that train one run ask together.
    """
    old = report.read_json(path / _RECORD).get("run")
    known = isinstance(old, str) and re.fullmatch("[0-9a-f]{16}", old)
    raw = bytes.fromhex(str(old)) if known else secrets.token_bytes(8)
    return parallel.agree(np.frombuffer(raw, np.uint8))[0].tobytes().hex()


def write_record(
    path: pathlib.Path,
    name: str,
    config: Mapping[str, Any],
    source: Source,
    group: Mapping[str, Any] | None = None,
    run: str = "",
) -> None:
    """Writes ``config.json``: the experiment, every field, the data, versions, devices, revision and command.

    Args:
      path: the run directory.
      name, config: see ``open_run``.
      source: the batches.
      group: of a run that is trained together with others, who they are and how.
      run: its ``identity``.
    """
    versions = {"bpgan": __version__, "python": platform.python_version()}
    versions |= {p: metadata.version(p) for p in ("jax", "jaxlib", "flax", "optax", "numpy")}
    description = {
        "experiment": name,
        "run": run,
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
    """One process per run directory, where its disk has locks. The kernel gives it back however the process ends.

    If the run does not come to its record, the lock and an empty folder of checkpoints are removed again.
    """
    import fcntl

    lock = path / _LOCK
    # What the lock holds, if it is somebody's file after all, stays; a pipe does not block.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with open(os.open(lock, flags, 0o666), "rb+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                raise BlockingIOError  # one that was removed by who had it
        except (BlockingIOError, PermissionError, FileNotFoundError):
            raise UserError(
                "another process is training here", argument="workdir", value=path
            ) from None
        except OSError as error:  # Lustre without -o flock, some NFS
            print(
                f"warning: --workdir={path}: cannot be locked ({error.strerror});"
                " see to it that no second process trains here"
            )
        try:
            yield
        except BaseException:
            if not (path / _RECORD).exists():
                with contextlib.suppress(OSError):  # another process may have begun to fill it
                    lock.unlink()
                    (path / _CHECKPOINTS).rmdir()
            raise


def log_prefix(
    path: pathlib.Path, size: int | None, known: tuple[int, int] = (0, 0)
) -> tuple[int, int]:
    """Length and CRC-32 of the beginning of a log.

    Args:
      path: of the log; there may be none.
      size: how many bytes, or as many as there are; None: all.
      known: what this found before, of a beginning that is as it was.
    """
    length, crc = known
    if path.exists():
        with path.open("rb") as file:
            file.seek(length)
            raw = file.read(-1 if size is None else max(0, size - length))
        length, crc = length + len(raw), zlib.crc32(raw, crc)
    return length, crc


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
        self._file = metrics.open("a") if lead else None
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
        """Prints a line without disturbing the progress bar. If nobody reads on, the terminal has hung up."""
        if not self._speak:
            return
        try:
            self._bar.write(line, file=sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
