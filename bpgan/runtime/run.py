"""One run on the host: its directory, checkpoints and log while it is trained, and how it ends."""

import contextlib
import functools
import math
import os
import pathlib
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bpgan.files import write_json
from bpgan.runtime import (
    anomaly,
    compiler,
    directory,
    distributed,
    images,
    log,
    loggers,
    records,
)
from bpgan.runtime.checkpoint import NEWEST, Checkpoints, Keep
from bpgan.runtime.program import Carry
from bpgan.types import Algorithm, Source, UserError

EVAL = "eval/"
"""Before the names of what ``validate`` finds."""


class Anomaly(Exception):
    """The run was stopped, for a number that is not finite or by ``on_anomaly``; the message says what and when."""


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


class Timings(dict):
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


class RunSpec(NamedTuple):
    """What one run is, alone or among those that are trained together.

    Attributes:
      config, workdir: see ``directory.open_run``.
      seed: root seed.
      values: the other arguments of ``group.Make``, by name.
      validate: ``state -> {name: value}`` on the host, logged as ``eval/name``; ``Plan.keep`` may rank by one of them.
      evaluate: ``state -> {name: value}`` on the host, after the last step; of the best checkpoint, too, if
        ``Plan.keep`` ranks them.
      measure: see ``directory.open_run``.
      command: what a shell repeats the run with, for config.json and report; empty if it was not begun by one.
      title: what is trained on, in words, for the pages.
      frame: of the sample grids; see ``records.Frame``.
      pictures: ``state -> {name: text of an SVG file or uint8 [h, w, c]}`` on the host, drawn with every sample grid in
        the place of those before.
      url: where the directory is kept, if that is not ``workdir`` but an object store. Each of several processes then
        has a directory of its own.
      begin: ``state -> (state, records.Origin)``, from which a run that is new begins; None: as it is.
      settle: ``run directory -> (algorithm, source)``, called once it is locked, for what is trained there in the place
        of what was given; None: that is trained. For what is decided at the first start in it, such as a secret key.
      faults: of ``Algorithm``.
      account: ``state -> {name: value}`` on the host, beside the metrics of every log line; see ``spent``.
      spent: ``state -> {name: value}``, what ``result.json`` says of a private run's privacy.
      report: called with the run directory once the result is there; returns the path of the page that it has made of
        it, or None.
    """

    config: Mapping[str, Any]
    workdir: str | os.PathLike
    seed: int
    values: Mapping[str, float] = types.MappingProxyType({})
    validate: Callable[[Any], Mapping[str, float]] | None = None
    evaluate: Callable[[Any], Mapping[str, float]] | None = None
    measure: Mapping[str, str] = types.MappingProxyType({})
    command: str = ""
    begin: Callable[[Any], tuple[Any, records.Origin]] | None = None
    settle: Callable[[pathlib.Path], tuple[Algorithm, Source]] | None = None
    faults: Mapping[str, str] = types.MappingProxyType({})
    account: Callable[[Any], Mapping[str, float]] | None = None
    spent: Callable[[Any], Mapping[str, Any]] | None = None
    report: Callable[[pathlib.Path], pathlib.Path | None] | None = None
    url: str = ""
    title: str = ""
    frame: records.Frame = records.Frame()
    pictures: Callable[[Any], Mapping[str, Any]] | None = None


class Plan(NamedTuple):
    """What happens when in a run, or in all runs of a group.

    Attributes:
      name, restart_safe, locates_data: see ``directory.open_run``.
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
      log_to: names of ``loggers.LOGGERS``, which are told what is logged.
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
    log_to: tuple[str, ...] = ()
    locates_data: frozenset[str] = frozenset()


class Run:
    """A run on the host: its directory, checkpoints and log, while it is trained.

    Args:
      spec, plan, source: what it is, when what happens, and its batches.
      quiet: do not speak; one of many.
    """

    def __init__(self, spec: RunSpec, plan: Plan, source: Source, quiet: bool):
        self.spec, self.plan, self.source, self.quiet = spec, plan, source, quiet
        self.result: Result | Anomaly | None = None
        self.marked = False
        self.path = directory.open_run(
            spec.workdir,
            name=plan.name,
            config=spec.config,
            restart_safe=plan.restart_safe,
            locates_data=plan.locates_data,
            fingerprint=source.fingerprint,
            measure=spec.measure,
        )
        self.where = spec.url or str(self.path)
        self._parameters: dict[str, int] = {}
        self._privacy: Mapping[str, Any] = {}
        self.logged = (0, 0)
        self.origin: records.Origin | None = None

    @functools.cached_property
    def id(self) -> str:
        """See ``directory.identity``; asked for once the directory is locked: nobody else makes one meanwhile."""
        return directory.identity(self.path)

    def open(self, abstract: Carry) -> tuple[int, Carry] | None:
        """Finds the newest sound checkpoint.

        Raises:
          UserError: if there is none, though there has been one: the run would begin anew, over its log.
        """
        self.checkpoints = self._checkpoints()
        self._parameters = _count_parameters(abstract.state)
        found = self.checkpoints.restore(abstract)
        result = self._result()
        ended = result if result and result.status in ("done", "paused", "interrupted") else None
        if found is None and (ended or (self.path / directory.SAVED).exists()):
            came = f"the run came to step {ended.step}" if ended else "the run has been saved"
            raise UserError(
                f"{came}, and its checkpoints are gone; remove the directory to begin it anew, or name another",
                argument="workdir",
                value=self.path,
            )
        return found

    def _checkpoints(self, read_only: bool = False) -> Checkpoints:
        return Checkpoints(
            self.path / "checkpoints",
            run=self.id,
            keep=self.plan.keep,
            read_only=read_only,
            shared=not self.spec.url,
        )

    def ended_before(self) -> bool:
        """Whether the run was stopped by an anomaly that stops it still; then that is its result."""
        old = self._result()
        stopping = ("non-finite", "anomaly") if self.plan.on_anomaly == "stop" else ("non-finite",)
        if old is None or old.status not in stopping:
            return False
        self.result = Anomaly((old.anomalies or ["stopped before"])[-1])
        self._record(directory.group_of(self.path))
        return True

    def _result(self) -> records.ResultRecord | None:
        """How the run ended before; that of another run is none."""
        result = records.sound(records.read_result, self.path / "result.json")
        return result if result and result.run == self.id else None

    def _warn_of_changes(self) -> None:
        """Says it if the run goes on under other circumstances than before, by which its bits may change."""
        before = records.read_run(self.path / "config.json")
        changed = compiler.differences(before) if before else []
        if changed:
            records.warn(
                f"{'; '.join(changed)}: the run goes on, but perhaps not in the bits of one that was never interrupted"
            )

    def _record(self, group: Mapping[str, Any] | None) -> None:
        if not distributed.is_lead():
            return
        record = {
            "experiment": self.plan.name,
            "run": self.id,
            "config": dict(self.spec.config),
            "restart_safe": sorted(self.plan.restart_safe),
            "data": self.source.fingerprint,
            "images_per_step": round(self.source.examples_per_step),
            "command": self.spec.command,
        }
        if self.source.facts:
            record["dataset"] = dict(self.source.facts)
        if self.plan.keep.goal:
            record["goal"] = str(self.plan.keep.goal)
        if group is not None:
            record["group"] = dict(group)
        if self.origin is not None:
            record["origin"] = records.fields(self.origin)
        if self.spec.measure:
            record["measure"] = dict(self.spec.measure)
        if self.spec.title:
            record["title"] = self.spec.title
        if self._parameters:
            record["parameters"] = self._parameters
        if frame := records.stated(self.spec.frame):
            record["frame"] = frame
        directory.write_record(self.path, record)

    def find_log(self, step: int) -> None:
        """Makes sure, before anything is changed, that the log is the one that the checkpoint of this step was told of.

        Raises:
          UserError: if it is another one, or a part of it was changed. If there is none, that is a warning.
        """
        size, crc = self.checkpoints.log(step)
        file = self.path / "metrics.jsonl"
        if size and not file.exists():
            if distributed.is_lead():
                print(
                    f"warning: {file} is gone; the run goes on without what was logged by step {step}"
                )
        elif log.log_prefix(file, size) != (size, crc):
            raise UserError(
                f"metrics.jsonl does not begin with what this run had logged by step {step} ({size} bytes with CRC-32"
                f" {crc:08x}); put that log back, or move this one away to go on without it",
                argument="workdir",
                value=self.path,
            )
        else:
            self.logged = (size, crc)

    def start_from(self, carry: Carry) -> Carry:
        """The carry of a new run, from where ``RunSpec.begin`` says."""
        if self.spec.begin is None:
            return carry
        state, self.origin = self.spec.begin(carry.state)
        return carry._replace(state=state)

    def begin(self, step: int, resumed: bool, group: Mapping[str, Any] | None) -> None:
        """Begins, or goes on, at a step."""
        if resumed:
            before = records.read_run(self.path / "config.json")
            self.origin = before.origin if before else None
        if step > self.plan.steps:
            reason = f"the run is at step {step} already, past {self.plan.steps}"
            raise UserError(reason, argument="workdir", value=self.path)
        self.saved = step if resumed else -1
        self.past = 0 < self.plan.pause < step
        if resumed and distributed.is_lead():
            self._warn_of_changes()
        if not self.past:
            if distributed.is_lead():  # before the record: the result beside it is of these flags
                (self.path / "result.json").unlink(missing_ok=True)
            self._record(group)
        file = self.path / "metrics.jsonl"
        if distributed.is_lead() and file.exists():
            os.truncate(file, self.logged[0])  # what was logged since will be logged again
        self.log = log.Log(
            self.path,
            step,
            self.plan.steps,
            self.source,
            every=self.plan.log_every,
            tensorboard=self.plan.tensorboard,
            others=self._loggers if self.plan.log_to else None,
            lead=distributed.is_lead(),
            speak=not self.quiet,
        )

    def _loggers(self, lines: Sequence[Mapping[str, Any]]) -> loggers.Loggers:
        opened = loggers.Opened(self.path, self.id, self.plan.name, self.spec.config, lines)
        return loggers.Loggers(self.plan.log_to, opened)

    def draw(self, step: int, samples: np.ndarray) -> dict[str, float]:
        """Saves a grid; returns how diverse its samples are, if that can be compared with the data."""
        samples = images.to_bytes(samples)
        columns = len(self.spec.frame.columns) or 10
        grid = images.image_grid(
            samples[: len(samples) // columns * columns or None], columns=columns
        )
        if distributed.is_lead():
            file = self.path / "samples" / f"step_{step:08d}.png"
            images.save_png(file, grid)
            self.log.image(step, file)
        if np.shape(self.source.examples)[1:] != samples.shape[1:]:
            return {}
        return anomaly.diversity(samples, images.to_bytes(self.source.examples))

    def picture(self, state: Any) -> None:
        """Draws what the experiment shows beside its samples."""
        if self.spec.pictures is None:
            return
        for name, picture in self.spec.pictures(state).items():
            if distributed.is_lead():
                images.save_picture(self.path / "pictures" / name, picture)

    def save(
        self,
        step: int,
        carry: Carry,
        evaluated: Mapping[str, float] = types.MappingProxyType({}),
    ) -> None:
        """Saves; the checkpoint ranks by what was logged last, but never by the evaluation of another step."""
        self.log.flush()
        keep, known = self.plan.keep, self.log.values.items()
        ranks = {k: v for k, v in known if not k.startswith(EVAL)} | dict(evaluated)
        if keep.metric.startswith(EVAL) and evaluated and keep.metric not in evaluated:
            raise not_logged(keep, evaluated)
        file = self.path / "metrics.jsonl"
        self.logged = log.log_prefix(file, None, self.logged)
        self.checkpoints.save(step, carry, ranks, log=self.logged)
        self.saved = step

    def mark(self) -> None:
        """Notes that the run has a checkpoint, once it is complete: should it be gone one day, that is no new run."""
        if distributed.is_lead() and not self.marked and self.checkpoints.complete():
            (self.path / directory.SAVED).touch()
            self.marked = True

    def stop(self, error: Anomaly, status: str, step: int, seconds: Timings, carry: Carry) -> None:
        """Ends the run for an anomaly; nothing is saved."""
        self.result = error
        self._note_spent(carry)
        values, anomalies = self.log.values, self.log.anomalies
        if status == "non-finite":
            values, anomalies = {}, [str(error)]
        self.log.end_progress()
        self._finish(status, step, values, seconds, anomalies)
        if self.quiet:
            print(error, flush=True)

    def end(self, step: int, carry: Carry, seconds: Timings, abstract: Any) -> None:
        """Evaluates a run that is done, and writes its result; one that is past its pause counts as it was there.

        Its own result stays as it is, then; ``result_at_STEP.json`` says how it was there, and by which flags.
        """
        self.log.end_progress()
        found: dict[str, float] = {}
        steps, keep, evaluate = self.plan.steps, self.plan.keep, self.spec.evaluate
        at = min(step, self.plan.pause or steps)
        at_pause = self.plan.pause > 0 and at == self.plan.pause
        status = "done" if at == steps else "paused" if at_pause else "interrupted"
        if status == "done" and evaluate is not None:
            with seconds("evaluate"):
                found = {k: float(v) for k, v in evaluate(carry.state).items()}
                best = self._best(abstract) if keep.metric and found else None
                if best is not None:
                    again = found if best[0] == steps else evaluate(best[1].state)
                    found |= {f"best/{k}": float(v) for k, v in again.items()}
                    found["best/step"] = float(best[0])
        if not self.past:
            self._note_spent(carry)
        logged = log.values_by(self.path, at) if self.past else self.log.values
        values = logged | found
        if status == "done":
            self.log.hyperparameters(self.spec.config, values)
        if not self.past:
            self._finish(status, at, values, seconds, self.log.anomalies)
        elif distributed.is_lead():
            view = {"config": dict(self.spec.config), "status": status, "step": at}
            write_json(self.path / f"result_at_{at}.json", view | {"metrics": values})
        self.result = Result(status, at, values, found)

    def _note_spent(self, carry: Carry) -> None:
        """Of a private run, for its result."""
        if self.spec.spent is not None:
            self._privacy = self.spec.spent(carry.state)

    def _best(self, abstract: Any) -> tuple[int, Any] | None:
        """The best checkpoint, read back from the disk; None if none was ranked."""
        checkpoints = self._checkpoints(read_only=True)
        try:
            return checkpoints.restore(abstract, best=True)
        finally:
            checkpoints.close()

    def _finish(
        self,
        status: str,
        step: int,
        values: Mapping[str, float],
        seconds: Timings,
        anomalies: Sequence[str],
    ) -> None:
        """Writes the result, and has it reported."""
        if not distributed.is_lead():
            return
        result = {
            "run": self.id,
            "status": status,
            "step": step,
            "metrics": values,
            "anomalies": anomalies,
            "timings": {f"{k}_s": round(v, 3) for k, v in seconds.until_now().items()},
        }
        if self._privacy:
            result["privacy"] = dict(self._privacy)
        write_json(self.path / "result.json", result)
        page = self.spec.report(self.path) if self.spec.report else None
        if not self.quiet:
            kept = page and (f"{self.where}/{page.name}" if self.spec.url else page)
            print(f"{status} at step {step}" + (f"; report: {kept}" if page else ""))


def _count_parameters(state: Any) -> dict[str, int]:
    """How many numbers each player of a state learns, by its name; none of a state without players."""
    players = getattr(state, "players", None)
    if not isinstance(players, Mapping):
        return {}
    return {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(player.params))
        for name, player in players.items()
    }


def not_logged(keep: Keep, known: Iterable[str]) -> UserError:
    """The error for a metric that ``keep`` ranks checkpoints by and the run does not log."""
    reason = f"{keep.metric} is not logged by this run; known: {', '.join(known)}"
    return UserError(reason, argument="keep")
