"""The log of a run: lines for the terminal, for ``metrics.jsonl`` and for TensorBoard.

What TensorBoard reads is made of the log (``events``). A run that goes on cuts its log back to its checkpoint.
"""

import collections
import contextlib
import heapq
import json
import os
import pathlib
import shutil
import sys
import textwrap
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bpgan.measures import CONTROLS
from bpgan.runtime import anomaly, environment, events, images, loggers, records
from bpgan.runtime.program import Window
from bpgan.types import Source

CLOCK = ("time/elapsed", "time/steps_per_s", "time/images_per_s")
"""The names of what every log line says of time."""


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


class Log:
    """Log lines to the terminal, ``metrics.jsonl`` and TensorBoard; keeps what later lines are compared with.

    Args:
      path: the run directory. What was logged or drawn after ``step`` is dropped.
      step, total: where the run goes on, and where it ends.
      source: for epochs and images per second.
      every: steps of a whole window; 0 if there is only one.
      tensorboard: also write event files.
      others: ``others(lines)`` opens what is told as well, after these lines of the log; None: nothing is.
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
        every: int = 0,
        tensorboard: bool = True,
        others: Callable[[Sequence[Mapping[str, Any]]], loggers.Loggers] | None = None,
        lead: bool = True,
        speak: bool = True,
    ):
        self._total, self._source, self._every = total, source, every
        metrics = path / "metrics.jsonl"
        if lead:
            records.truncate_log(metrics, step)
            for drawn, grid in images.grids(path):
                if drawn > step and grid.is_file():
                    grid.unlink()
        lines = [line for line in records.read_log(metrics) if line["step"] <= step]
        self.values: dict[str, float] = {}
        self._whole: Mapping[str, Any] = {}
        for line in lines:
            self.values |= {k: v for k, v in line.items() if k not in _NO_VALUES}
            if CLOCK[0] in line and self._ends_window(line["step"]):
                self._whole = line
        self.anomalies = [f"step {at['step']}: {at['anomaly']}" for at in lines if "anomaly" in at]
        self.history = collections.deque(lines, 2 * anomaly.HISTORY)
        self._before = _elapsed_by(step, lines)
        self._start = time.perf_counter()
        self._marks = [(step, self._start)]
        self._path, self._speak = path, lead and speak
        self._bar: Any = None
        # Points that are made of elapsed time: the curves have no gap where the run was interrupted, and a clock that
        # goes back does not tangle them.
        self._begun = time.time() - self._before
        self._events = None
        if tensorboard and lead and (reason := events.missing()):
            records.warn(reason)
        elif tensorboard and lead:
            self._events = events.Writer(path, _events_of(path, lines, self._begun))
        self._file = metrics.open("a", encoding="utf-8") if lead else None
        self._loggers = others(lines) if others and lead else None

    def _ends_window(self, step: int) -> bool:
        """Whether windows end at this step; the end and a pause of a run may come amid one."""
        return self._every > 0 and step % self._every == 0

    def _elapsed(self) -> float:
        return self._before + time.perf_counter() - self._start

    def means(self, window: Window) -> dict[str, float]:
        """Means over a window; what is less than a whole one is averaged together with the whole one before it."""
        count, means = int(window.count), window.means()
        if count >= self._every or not self._whole:
            return means
        total = self._every + count
        return {
            k: (self._every * self._whole[k] + count * v) / total if k in self._whole else v
            for k, v in means.items()
        }

    def compiled(self, step: int) -> None:
        """Starts the clock of the speed, and the progress bar: the first call, which compiles, is over."""
        from tqdm import tqdm

        self._marks = [(step, time.perf_counter())]
        self._bar = tqdm(
            total=self._total,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=not (self._speak and sys.stderr.isatty()),
        )

    def progress(self, step: int) -> None:
        """Moves the progress bar, if it has begun."""
        if self._bar is None:
            return
        self._bar.update(step - self._bar.n)
        rate = self._bar.format_dict["rate"]
        if rate:
            self._bar.set_postfix_str(
                f"{rate * self._source.examples_per_step:,.0f} images/s", False
            )

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
        at = pairs({"step": f"{step}/{self._total}"})
        found = anomaly.loss_spikes(self.history, window)
        # A generator that has only begun to learn draws the same image everywhere.
        if samples and step >= self._source.steps_per_epoch:
            found += anomaly.collapse(samples)
        values = {**window, **samples, **evaluated}
        if window:
            timed = self._timed(step)
            values |= timed
            shown = {k: v for k, v in window.items() if "norm" not in k}
            shown = pairs({"epoch": line["epoch"], **shown})
            self.say(f"{at}  {shown}  {left(self._total - step, timed)}")
        if evaluated:
            self.say(f"{at}  {pairs(_with_controls(evaluated))}")
        line |= values
        if found:
            line["anomaly"] = "; ".join(found)
            self.anomalies.append(f"step {step}: {line['anomaly']}")
            self.say(f"anomaly at step {step}: {line['anomaly']}")
        self.history.append(line)
        self.values |= values
        if window and self._ends_window(step):
            self._whole = line
        if self._file:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._events:
            self._events.write(_scalars_of(line, self._begun + self._elapsed()))
        if self._loggers:
            self._loggers.write(line)
        return found

    def _timed(self, step: int) -> dict[str, float]:
        """The time and the speed over a window, without the first call, which compiles; no speed if it was all."""
        now = time.perf_counter()
        timed = {CLOCK[0]: round(self._elapsed(), 3)}
        if self._ends_window(step):
            begin, start = self._marks[-1]
            self._marks = [self._marks[-1], (step, now)]
        else:  # less than a window, and the one before it
            begin, start = self._marks[0]
        if step > begin:
            rate = (step - begin) / max(now - start, 1e-9)
            speed = rate * self._source.examples_per_step
            timed |= zip(CLOCK[1:], (round(rate, 3), round(speed, 1)), strict=True)
        return timed

    def image(self, step: int, png: pathlib.Path) -> None:
        """Hands a sample grid to TensorBoard and the other loggers."""
        if self._loggers:
            self._loggers.image(step, png)
        if self._events:
            at = self._begun + self._elapsed()
            self._events.write(events.image(step, "samples", png.read_bytes(), at))

    def hyperparameters(self, config: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """Makes the run a row of TensorBoard's table of hyper-parameters, in the place of what it was there before.

        The other loggers, which know the config, are told the values.
        """
        if self._loggers:
            self._loggers.finish(values)
        if self._events:
            final = {f"final/{k}": v for k, v in values.items()}
            row = events.hyperparameters(config, final, self._begun + self._elapsed())
            events.Writer(self._path / "hparams", row).close()

    def say(self, line: str) -> None:
        """Prints a line without disturbing the progress bar; see ``environment.say``."""
        if self._speak:
            environment.say(fitted(line), print if self._bar is None else self._bar.write)

    def flush(self) -> None:
        """Returns when what was logged is on the disk; a checkpoint must not be ahead of its log."""
        if self._file:
            os.fsync(self._file.fileno())
        if self._events:
            self._events.sync()

    def end_progress(self) -> None:
        """Ends the progress bar: whatever is printed from now on has lines of its own."""
        if self._bar is not None:
            self._bar.close()

    def close(self) -> None:
        """Closes the files."""
        with contextlib.ExitStack() as stack:  # all of them, though a full disk may fail each
            for file in (self._file, self._events, self._loggers):
                if file:
                    stack.callback(file.close)
            self.end_progress()


_NO_VALUES = ("step", "epoch", "anomaly")


def values_by(path: pathlib.Path, step: int) -> dict[str, float]:
    """The metrics of a run as last logged by a step."""
    lines = [x for x in records.read_log(path / "metrics.jsonl") if x["step"] <= step]
    return {k: v for line in lines for k, v in line.items() if k not in _NO_VALUES}


def _elapsed_by(step: int, lines: Sequence[Mapping[str, Any]]) -> float:
    """Seconds that a run had taken by a step: as last logged, and from there on at the speed logged there."""
    line = next((line for line in reversed(lines) if CLOCK[0] in line), {})
    speed = line.get(CLOCK[1])
    return line.get(CLOCK[0], 0.0) + ((step - line["step"]) / speed if speed else 0.0)


def _events_of(
    path: pathlib.Path, lines: Sequence[Mapping[str, Any]], begun: float
) -> Iterator[events.Event]:
    """What was logged and drawn, in the order in which it was."""
    seconds = 0.0
    logged = [(line["step"], line) for line in lines]
    for at, thing in heapq.merge(images.grids(path), logged, key=lambda pair: pair[0]):
        if not isinstance(thing, pathlib.Path):
            seconds = thing.get(CLOCK[0], seconds)
            yield _scalars_of(thing, begun + seconds)
        elif png := _png(thing):
            yield events.image(at, "samples", png, begun + seconds)


def _png(file: pathlib.Path) -> bytes:
    """The content of a picture; empty if it is none or cannot be read."""
    try:
        content = file.read_bytes()
    except OSError:
        return b""
    return content if content.startswith(images.SIGNATURE) and len(content) > 32 else b""


def _scalars_of(line: Mapping[str, Any], time: float) -> events.Event:
    """All numbers of a log line; TensorBoard has the step itself."""
    return events.scalars(line["step"], {k: v for k, v in line.items() if k != "step"}, time)


def pairs(values: Mapping[str, Any]) -> str:
    """Names with their values, four digits of each; ``fitted`` breaks no pair."""
    shown = ((k, f"{v:.4g}" if isinstance(v, float) else v) for k, v in values.items())
    return "  ".join(f"{k}{_TIED}{v}" for k, v in shown)


def left(steps: int, timed: Mapping[str, float], *, runs: int = 1) -> str:
    """The speed of ``runs`` together, and the time that ``steps`` more take; nothing while the speed is not known."""
    if not timed.get(CLOCK[1]):
        return ""
    rate, speed = (timed[k] for k in CLOCK[1:])
    shown = [f"{rate * runs:.4g} steps/s" + " in all" * (runs > 1)]
    shown += [f"{speed:,.0f} images/s"] * (runs == 1)
    shown += [f"{clock(steps / rate)} left"]
    return "  ".join(word.replace(" ", _TIED) for word in shown)


def _with_controls(values: Mapping[str, float]) -> dict[str, Any]:
    """The numbers of an evaluation, behind each in parentheses its controls, those of which there are any."""
    shown: dict[str, Any] = {}
    for name, value in values.items():
        base, _, of = name.rpartition("/")
        if base in values and f"/{of}" in CONTROLS:
            continue
        found = {of[1:]: values[name + of] for of in CONTROLS if name + of in values}
        beside = ", ".join(f"{of} {number:.4g}" for of, number in found.items())
        shown[name] = f"{value:.4g} ({beside})".replace(" ", _TIED) if beside else value
    return shown


_TIED = "\N{NO-BREAK SPACE}"


def fitted(text: str) -> str:
    """Text for stdout: on a terminal, lines are broken to its width between words, and never within a pair."""
    if sys.stdout.isatty():
        wrapper = textwrap.TextWrapper(
            width=max(20, shutil.get_terminal_size().columns),
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        text = "\n".join(map(wrapper.fill, text.split("\n")))
    return text.replace(_TIED, " ").rstrip(" ")


def clock(seconds: float) -> str:
    """``h:mm:ss``, or ``m:ss``."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
