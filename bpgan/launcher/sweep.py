"""A sweep: the runs of one command, trained as slots, signals and a budget allow, and reported on at the end."""

import contextlib
import math
import pathlib
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from bpgan import cli
from bpgan.cli import ended, experiments
from bpgan.files import Damaged, write_json
from bpgan.launcher import outcomes, processes, slurm, summary
from bpgan.launcher.budget import UNLIMITED, Budget
from bpgan.launcher.jobs import make_jobs
from bpgan.launcher.processes import Job
from bpgan.launcher.runs import PlannedRun
from bpgan.runtime import records
from bpgan.types import UserError, counted

_SEVERITY = [cli.DONE, cli.INTERRUPTED, cli.BAD_INPUT, cli.ANOMALY]  # anything else is worse


class Sweep:
    """The runs of one command, trained as their processes' slots allow, within a budget that is kept on disk.

    Args:
      experiment: what is trained.
      folder: of the runs; what the sweep remembers is there, too.
      label: of the sweep, a function of its flags.
      vectorize, slots: see ``make_jobs``; under a budget, ``auto`` groups none, so that runs end one after the other.
      budget: what it may cost.
      cluster: where to train; None: here.
    """

    def __init__(
        self,
        experiment: experiments.Script,
        folder: pathlib.Path,
        label: str,
        vectorize: str = "auto",
        slots: int = 1,
        budget: Budget = UNLIMITED,
        cluster: slurm.Options | None = None,
    ):
        self.cluster, self.submitted = cluster, False
        self.experiment, self.folder, self.label = experiment, folder, label
        self.vectorize, self.slots, self.budget = vectorize, slots, budget
        self.runs: dict[pathlib.Path, PlannedRun] = {}
        self.codes: dict[pathlib.Path, int] = {}
        self.logs: dict[pathlib.Path, pathlib.Path] = {}
        self.interrupted = self.cut = False
        self._path, self._start = folder / f"sweep_{label}.json", time.monotonic()
        self._counted, self._images, self._before = -math.inf, 0, 0.0
        self.ledger: dict[str, Any] = {}

    @contextlib.contextmanager
    def locked(self, *others: pathlib.Path) -> Iterator[None]:
        """Trains only in here, where no other launcher trains the same sweep, or is at work on ``others``.

        Raises:
          UserError: if one is, or what the sweep remembers cannot be written.
        """
        with processes.locked(self._path, *others):
            self.ledger = records.read_ledger(self._path) or {}
            self._before, self._start = float(self.ledger.get("seconds", 0.0)), time.monotonic()
            try:
                yield
            except BrokenPipeError:  # nobody reads the table
                raise
            except OSError as error:
                where = error.filename or self.folder
                reason = f"{where}: {error.strerror}; the same command goes on"
                raise UserError(reason, argument="root") from None

    def is_affordable(self) -> bool:
        """Whether the budget is not spent; it is looked up once a second, and written down if it is of time."""
        now = time.monotonic()
        if now - self._counted >= 1:
            self._counted = now
            if self.budget.unit == "img":
                self._images = sum(map(outcomes.count_images, self.runs.values()))
            elif self.budget.is_limited:
                self.remember(seconds=self._seconds)
        spent = self._images if self.budget.unit == "img" else self._seconds
        return spent < self.budget.amount

    @property
    def _seconds(self) -> float:
        """Trained by this and earlier commands."""
        return round(self._before + time.monotonic() - self._start, 1)

    def jobs(self, runs: Sequence[PlannedRun]) -> list[Job]:
        """The processes that train runs."""
        queued = slurm.find_queued([run.workdir for run in runs]) if self.cluster else {}
        slots = 0 if self.budget.is_limited else self.slots
        return make_jobs(self.experiment, runs, self.vectorize, slots, queued)

    def train(self, runs: Sequence[PlannedRun]) -> list[dict[str, Any]]:
        """Trains runs, and returns the results they left; none if they were submitted to a cluster."""
        self.runs |= {run.workdir: run for run in runs}
        jobs = self._select_due(runs)
        attempt = uuid.uuid4().hex
        told = self._execute(jobs, [runs[i] for job in jobs for i in job.runs], attempt)
        self._counted = -math.inf
        if told is None:
            self.submitted = True
            return []
        codes, interrupted = told
        self.interrupted |= interrupted
        for at, code in codes.items():
            alone = len(jobs[at].runs) == 1
            for run in (runs[index] for index in jobs[at].runs):
                self.codes[run.workdir] = outcomes.conclude(run, code, attempt, alone)
                self.logs[run.workdir] = jobs[at].log
        self.remember(seconds=self._seconds)
        return [outcomes.read_result(run) for run in runs]

    def _select_due(self, runs: Sequence[PlannedRun]) -> list[Job]:
        """The jobs that are not done. Of a job of which one run is not, all of them train.

        Alone, that one would not be bitwise what it was.
        """
        due = []
        for job in self.jobs(runs):
            members = [runs[i] for i in job.runs]
            if all(map(outcomes.is_finished, members)):
                codes = {run.workdir: outcomes.infer_code(run, cli.DONE) for run in members}
                self.codes |= codes
            else:
                due.append(job)
                for run in members:  # what an earlier rung made of them is no more
                    self.codes.pop(run.workdir, None)
        if self.codes and not due:
            stopped = sum(self.codes.get(run.workdir) == cli.ANOMALY for run in runs)
            by_anomaly = f", {stopped} by an anomaly" if stopped else ""
            print(
                f"{'all ' * (len(runs) > 1)}{counted(len(runs), 'run is', 'runs are')} done{by_anomaly}"
            )
        return due

    def _execute(
        self, jobs: Sequence[Job], runs: Sequence[PlannedRun], attempt: str
    ) -> tuple[dict[int, int], bool] | None:
        """Trains jobs, of these runs, here or on the cluster; see ``processes.execute`` and ``slurm.submit``."""
        if not self.cluster or self.cluster.local:
            outcomes.wait_for_orphans(runs)
        if not self.cluster:
            return processes.execute(jobs, self.slots, self.is_affordable, attempt)
        environment = processes.child_environment() | {ended.ATTEMPT: attempt}
        return slurm.submit(jobs, self.cluster, self.slots, environment, self.is_affordable)

    def recall(self, runs: Sequence[PlannedRun]) -> None:
        """Counts runs of before as this sweep's, as they are now. They are not trained again."""
        self.runs |= {run.workdir: run for run in runs}
        self.codes |= {run.workdir: outcomes.recall_code(run) for run in runs}
        self._counted = -math.inf

    def remember(self, **values: Any) -> None:
        """Writes values into what the sweep remembers."""
        self.ledger |= values
        with processes.blame_root(self._path):
            write_json(self._path, self.ledger)

    def damaged(self, reason: str) -> Damaged:
        """The error that what the sweep remembers cannot be."""
        return Damaged(self._path, f"is damaged ({reason})")

    def is_over(self, runs: Sequence[PlannedRun] = ()) -> bool:
        """Whether nothing more is to be trained, for now.

        After training ``runs`` also if one of them was interrupted or killed, or refused (for want of room, say): the
        same command trains it, and until then its setting has no score. Whatever crashes, diverges, is killed again
        and again or is refused for a value that the search gave it has one, the worst.
        """
        refused = [run for run in runs if self._is_refused(run)]
        if len(refused) == len(runs) > 1:
            print(f"the search ends: every run was refused{outcomes.describe_reason(refused[0])}")
        else:
            for run in refused:
                reason = outcomes.describe_reason(run)
                print(f"the search waits for {run.title}, which was refused{reason}")
        passing = [self.codes.get(run.workdir) == cli.INTERRUPTED for run in runs]
        if self.interrupted or refused or any(passing):
            return True
        left = not runs or not all(map(outcomes.is_finished, runs))
        self.cut |= left and not self.is_affordable()
        return self.cut

    def _is_refused(self, run: PlannedRun) -> bool:
        """Whether a run was refused for what is not its own values."""
        return self.codes.get(run.workdir) == cli.BAD_INPUT and not outcomes.is_at_fault(run)

    def report(self) -> int:
        """Prints the table of all runs and what became of those that failed; returns the exit code.

        That is 0, 75, or the worst of the runs'.
        """
        if self.submitted:
            return cli.DONE
        runs = list(self.runs.values())
        codes = [self.codes.get(run.workdir) for run in runs]
        if runs:
            summary.summarize(runs, codes, self.folder / f"sweep_{self.label}.csv")
        for path, code in self.codes.items():
            self._report_failure(self.runs[path], code)
        if self.interrupted:
            print("interrupted; the same command continues")
            return cli.INTERRUPTED
        ends = [code for code in codes if code is not None]
        unfinished = self.cut or not all(map(outcomes.is_finished, runs))
        if unfinished and not self.is_affordable():
            print("the budget is spent; the same command with a greater --budget goes on")
            ends = [code for code in ends if code != cli.INTERRUPTED]
        unexpected = [code for code in ends if code not in _SEVERITY]
        return cli.UNEXPECTED if unexpected else max(ends, key=_SEVERITY.index, default=cli.DONE)

    def _report_failure(self, run: PlannedRun, code: int) -> None:
        killed = outcomes.describe_kills(run)
        if killed or code not in (cli.DONE, cli.INTERRUPTED):
            how = processes.status_of(code) + outcomes.describe_reason(run, code)
            print(f"{run.title}: {killed or how}")
            print(f"  {self.logs.get(run.workdir, run.log)}")


def train_all(
    experiment: experiments.Script,
    folder: pathlib.Path,
    label: str,
    runs: Sequence[PlannedRun],
    slots: int,
) -> list[dict[str, Any]]:
    """The results of runs that a study cannot do without, trained together.

    Args:
      experiment: of all of them.
      folder: of the study; that of the runs is a folder of the experiment's name in it.
      label: of the sweep that they are.
      slots: how many train at a time.

    Raises:
      UserError: if a run ended otherwise than well or by an anomaly, which is a result, too.
      cli.Interrupted: by a signal.
    """
    sweep = Sweep(experiment, folder / experiments.label_of(experiment.name), label, slots=slots)
    with sweep.locked():
        results = sweep.train(runs)
    codes = {run.workdir: sweep.codes.get(run.workdir, cli.INTERRUPTED) for run in runs}
    if sweep.interrupted or cli.INTERRUPTED in codes.values():
        raise cli.Interrupted
    for workdir, code in codes.items():
        if code not in (cli.DONE, cli.ANOMALY):
            reason = f"{workdir.name} {processes.status_of(code)}; see {sweep.logs[workdir]}."
            reason += " The same command goes on"
            raise UserError(reason, argument="workdir", value=str(folder))
    return results
