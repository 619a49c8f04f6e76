"""Sweeps: the runs of one command, which of them train together, searches among them, and the table at the end."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
import shlex
import time
import types
import urllib.parse
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from bpgan import cli
from bpgan.cli import ended
from bpgan.files import Damaged, write_csv, write_json
from bpgan.launcher import processes, search, slurm
from bpgan.launcher.processes import Job
from bpgan.runtime import records
from bpgan.types import UserError

_SEVERITY = [cli.DONE, cli.INTERRUPTED, cli.BAD_INPUT, cli.ANOMALY]  # anything else is worse
_FINAL = {"done": cli.DONE, "paused": cli.DONE, "non-finite": cli.ANOMALY, "anomaly": cli.ANOMALY}
_FACTOR = 3  # of successive halving
# In a row, after which the setting is at fault: it needs more memory than there is, say.
_MOST_KILLS = 3
_MOST_MEMBERS = 1000  # of a group, whose flags are one command line
_MOST_BYTES = 100_000  # of a command; Linux takes 131,072 in one argument
_PATIENCE = 60.0  # seconds in which a process that lost its launcher has saved


class Run(NamedTuple):
    """One combination of a sweep: the swept values by flag, what else decides its numbers, and how it runs alone.

    Attributes:
      values: by flag.
      workdir: its run directory.
      command: the process that runs it.
      config: the values of all flags.
      code: the values of all flags that no group can vary.
      common, own: flags of the command that others share, and those that are this run's.
      set_by_sweep: the names of the flags that have their values from the sweep, those of a swept preset, too.
    """

    values: dict[str, Any]
    workdir: pathlib.Path
    command: list[str]
    config: Mapping[str, Any] = types.MappingProxyType({})
    code: str = ""
    common: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    set_by_sweep: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        return " ".join(f"{name}={cli.show(value)}" for name, value in self.values.items())


def axes_of(module: ModuleType, argv: Sequence[str], sweeps: Sequence[str]) -> list[search.Axis]:
    """The axes of a sweep, checked against each other and the flags beside them.

    Raises:
      UserError: for a sweep that makes no sense.
    """
    specs = cli.flags_of(module.Config)
    axes: dict[str, search.Axis] = {}
    for text in sweeps:
        axis = search.parse(text, specs)
        if axis.name in axes:
            raise UserError(
                f"{axis.name} is swept twice; list its values in one --sweep",
                argument="sweep",
                value=text,
            )
        if any(re.match(rf"--?(no)?{axis.name}(=|$)", arg) for arg in argv):
            raise UserError(
                f"--{axis.name} is also given as a flag; drop one of them",
                argument="sweep",
                value=text,
            )
        axes[axis.name] = axis
    if any(re.match(r"--?workdir(=|$)", arg) for arg in argv):
        raise UserError("cannot be combined with --sweep; use --root", argument="workdir")
    return list(axes.values())


def plan(
    name: str,
    module: ModuleType,
    argv: Sequence[str],
    combinations: Sequence[Mapping[str, str]],
    root: str,
) -> list[Run]:
    """The runs of all combinations of swept values, checked.

    A run's directory is named after its swept values and a hash of the other settings that decide
    its numbers; so the same command finds it again, also with more epochs or another interval.

    Raises:
      UserError: for a combination that the experiment refuses, or two that are the same.
    """
    specs = cli.flags_of(module.Config)
    fixed = cli.restart_safe(module.Config)
    runs: dict[pathlib.Path, Run] = {}
    for texts in combinations:
        own = [f"--{k}={v}" for k, v in texts.items()]
        arguments = [*argv, *own]
        cfg = cli.resolve(module.Config, module.PRESETS, arguments, other_flags=cli.LAUNCHER_FLAGS)
        # Canonical: 1e-4 and 0.0001 are one run. A preset is no field; it counts as written.
        swept = {k: getattr(cfg, k, v) for k, v in texts.items()}
        rest = {k: getattr(cfg, k) for k in sorted(specs) if k not in fixed and k not in swept}
        digest = hashlib.sha256(json.dumps(rest).encode()).hexdigest()[:6]
        label = "_".join(
            f"{k}={urllib.parse.quote(cli.show(v), safe='+')}" for k, v in swept.items()
        )
        workdir = pathlib.Path(root, name, f"{cli.shortened(label, 200)}_{digest}")
        command = [*processes.python(), f"experiments.{name}", *arguments, f"--workdir={workdir}"]
        if (size := sum(map(len, map(os.fsencode, command)))) > _MOST_BYTES:
            reason = f"the command of a run has {size:,} bytes; must have at most {_MOST_BYTES:,}"
            raise UserError(reason, argument="sweep")
        code = {k: getattr(cfg, k) for k, f in specs.items() if not f.sweepable and k != "workdir"}
        run = Run(
            swept,
            workdir,
            command,
            dataclasses.asdict(cfg) | {"workdir": str(workdir)},
            json.dumps(code),
            tuple(argv),
            (*own, f"--workdir={workdir}"),
            frozenset(swept) | frozenset(module.PRESETS.get(texts.get("preset", ""), ())),
        )
        if workdir in runs:
            raise UserError(f"{run.title} occurs twice", argument="sweep")
        runs[workdir] = run
    return list(runs.values())


def idle_in_all(module: ModuleType, runs: Sequence[Run]) -> dict[str, str]:
    """The flags that are given and change nothing in any of the runs, and why; see ``cli.without_effect``."""
    found: dict[str, str] = {}
    for index, run in enumerate(runs):
        idle = cli.without_effect(module.Config, module.PRESETS, [*run.common, *run.own])
        found = {name: why for name, why in idle.items() if not index or name in found}
        if not found:
            break
    return found


def jobs_of(
    name: str,
    runs: Sequence[Run],
    vectorize: str,
    slots: int,
    queued: Mapping[pathlib.Path, str] = types.MappingProxyType({}),
) -> list[Job]:
    """The processes that train these runs.

    Runs whose flags differ only in what ``sweepable`` fields say become groups, each one program; in ``auto``, groups
    are cut so that no slot is idle; with 0 slots, to single runs. Those that have trained before, or wait in a queue,
    stay with those they were with. One that was refused for its own values is by itself: no other waits for it.
    """
    units: dict[Any, list[int]] = {}
    fresh: dict[Any, list[int]] = {}
    ids = {run.workdir: _record(run).get("run") for run in runs}
    trained = {run.workdir for run in runs if any(run.workdir.glob("checkpoints/[0-9]*"))}
    for index, run in enumerate(runs):
        members = {*(_record(run).get("group") or {}).get("members", ())}
        group = {workdir for workdir, identity in ids.items() if identity in members}
        pmap = vectorize == "auto" and run.config.get("parallel") == "pmap"  # no program of a group
        if run.workdir in queued:
            units.setdefault(queued[run.workdir], []).append(index)
        elif vectorize == "off" or pmap or (run.workdir in trained and not group):
            units[index] = [index]
        elif _is_at_fault(run):
            units[index] = [index]
        elif len(group) == len(members) and group & trained:
            units.setdefault(frozenset(group), []).append(index)
        else:
            fresh.setdefault(run.code, []).append(index)
    slots = slots or len(runs) * len(fresh)
    parts = -(-slots // max(len(fresh), 1)) if vectorize == "auto" else 1
    cut = list(units.values())
    for members in fresh.values():
        size = min(-(-len(members) // min(parts, len(members))), _MOST_MEMBERS)
        cut += [members[start : start + size] for start in range(0, len(members), size)]
    options = ["--or_alone"] if vectorize == "auto" else []
    return [_job(name, runs, members, options) for members in sorted(cut)]


def _job(name: str, runs: Sequence[Run], members: list[int], options: Sequence[str]) -> Job:
    first, last = runs[members[0]], runs[members[-1]]
    workdirs = [runs[i].workdir for i in members]
    if len(members) == 1:
        return Job(first.title, first.command, _log(first), members, workdirs)
    flags_of_members = [f"--member={shlex.join(runs[i].own)}" for i in members]
    digest = hashlib.sha256("".join(flags_of_members).encode()).hexdigest()[:6]
    log = first.workdir.with_name(f"group_{'_'.join(first.values)}_{digest}.log")
    flags = [*options, *first.common, *flags_of_members]
    command = [*processes.python(), "bpgan.launcher.group", name, *flags]
    title = f"{len(members)} runs, {first.title} ... {last.title}"
    return Job(title, command, log, members, workdirs)


def _log(run: Run) -> pathlib.Path:
    """Where a run that is alone in its process prints."""
    return run.workdir.with_name(run.workdir.name + ".log")


def budget_of(text: str) -> tuple[float, str]:
    """Amount and unit, ``s`` or ``img``, of ``90s``, ``30m``, ``2h`` or ``5e6img``. Raises ValueError."""
    match = re.fullmatch(r"((?:\d+\.?\d*|\.\d+)(?:e\d+)?)(s|m|h|img)", text) if text else None
    if text and not match:
        raise ValueError("must be like 90s, 30m, 2h or 5e6img")
    if match is None:
        return math.inf, "s"
    factor = {"s": 1.0, "m": 60.0, "h": 3600.0, "img": 1.0}[match[2]]
    return float(match[1]) * factor, "img" if match[2] == "img" else "s"


class Sweep:
    """The runs of one command, trained as their processes' slots allow, within a budget that is kept on disk.

    Args:
      name: of the experiment.
      folder: of the runs; what the sweep remembers is there, too.
      label: of the sweep, a function of its flags.
      vectorize, slots: see ``jobs_of``; under a budget, ``auto`` groups none, so that runs end one after the other.
      budget: amount and unit; see ``budget_of``.
      cluster: where to train; None: here.
    """

    def __init__(
        self,
        name: str,
        folder: pathlib.Path,
        label: str,
        vectorize: str,
        slots: int,
        budget: tuple[float, str],
        cluster: slurm.Options | None,
    ):
        self.cluster, self.submitted = cluster, False
        self.name, self.folder, self.label = name, folder, label
        self.vectorize, self.slots, self.budget = vectorize, slots, budget
        self.runs: dict[pathlib.Path, Run] = {}
        self.codes: dict[pathlib.Path, int] = {}
        self.logs: dict[pathlib.Path, pathlib.Path] = {}
        self.interrupted = self.cut = False
        self._path, self._start = folder / f"sweep_{label}.json", time.monotonic()
        self._counted, self._images, self._before = -math.inf, 0, 0.0
        self.ledger: dict[str, Any] = {}

    @contextlib.contextmanager
    def alone(self, *others: pathlib.Path) -> Iterator[None]:
        """Trains only in here, where no other launcher trains the same sweep, or is at work on ``others``.

        Raises:
          UserError: if one is, or what the sweep remembers cannot be written.
        """
        with processes.alone(self._path, *others):
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

    def affordable(self) -> bool:
        """Whether the budget is not spent; it is looked up once a second, and written down if it is of time."""
        amount, unit = self.budget
        now = time.monotonic()
        if now - self._counted >= 1:
            self._counted = now
            if unit == "img":
                self._images = sum(map(_images, self.runs.values()))
            elif amount < math.inf:
                self.note(seconds=self._seconds)
        return (self._images if unit == "img" else self._seconds) < amount

    @property
    def _seconds(self) -> float:
        """Trained by this and earlier commands."""
        return round(self._before + time.monotonic() - self._start, 1)

    def jobs(self, runs: Sequence[Run]) -> list[Job]:
        """The processes that train runs."""
        queued = slurm.queued([run.workdir for run in runs]) if self.cluster else {}
        slots = self.slots if math.isinf(self.budget[0]) else 0
        return jobs_of(self.name, runs, self.vectorize, slots, queued)

    def train(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """Trains runs, and returns the results they left."""
        self.runs |= {run.workdir: run for run in runs}
        jobs = []
        for job in self.jobs(runs):
            members = [runs[i] for i in job.runs]
            if all(map(_is_finished, members)):
                self.codes |= {run.workdir: _code(run, cli.DONE) for run in members}
            else:  # all of them: alone, the others would not be bitwise what they were
                jobs.append(job)
                for run in members:  # what an earlier rung made of them is no more
                    self.codes.pop(run.workdir, None)
        if len(self.codes) and not jobs:
            stopped = sum(self.codes.get(run.workdir) == cli.ANOMALY for run in runs)
            print(f"all {len(runs)} runs are done" + f", {stopped} by an anomaly" * bool(stopped))
        attempt = uuid.uuid4().hex
        if not self.cluster or self.cluster.local:
            _wait_for_orphans([runs[i] for job in jobs for i in job.runs])
        if self.cluster:
            environment = processes.environment_of_children() | {ended.ATTEMPT: attempt}
            told = slurm.submit(jobs, self.cluster, self.slots, environment, self.affordable)
        else:
            told = processes.execute(jobs, self.slots, self.affordable, attempt)
        self._counted = -math.inf
        if told is None:
            self.submitted = True
            return []
        codes, interrupted = told
        self.interrupted |= interrupted
        for at, code in codes.items():
            for index in jobs[at].runs:
                path = runs[index].workdir
                self.codes[path] = _concluded(runs[index], code, attempt, len(jobs[at].runs) == 1)
                self.logs[path] = jobs[at].log
        self.note(seconds=self._seconds)
        return [_result_of(run) for run in runs]

    def recall(self, runs: Sequence[Run]) -> None:
        """Counts runs of before as this sweep's, as they are now."""
        self.runs |= {run.workdir: run for run in runs}
        self._counted = -math.inf
        for run in runs:  # one that came to nothing will not be trained again
            gone_on = _record(run).get("config", run.config) != run.config
            said = ended.read(run.workdir)
            code = _code(run, said.code if said else cli.UNEXPECTED)
            self.codes[run.workdir] = cli.DONE if gone_on else code

    def note(self, **values: Any) -> None:
        """Writes values into what the sweep remembers."""
        self.ledger |= values
        with _told_of_root(self._path):
            write_json(self._path, self.ledger)

    def damaged(self, reason: str) -> Damaged:
        """The error that what the sweep remembers cannot be."""
        return Damaged(self._path, f"is damaged ({reason})")

    def over(self, runs: Sequence[Run] = ()) -> bool:
        """Whether nothing more is to be trained, for now.

        After training ``runs`` also if one of them was interrupted or killed, or refused (for want of room, say): the
        same command trains it, and until then its setting has no score. Whatever crashes, diverges, is killed again
        and again or is refused for a value that the search gave it has one, the worst.
        """
        refused = [
            run
            for run in runs
            if self.codes.get(run.workdir) == cli.BAD_INPUT and not _is_at_fault(run)
        ]
        if len(refused) == len(runs) > 1:
            print(f"the search ends: every run was refused{_reason(refused[0])}")
        else:
            for run in refused:
                print(f"the search waits for {run.title}, which was refused{_reason(run)}")
        passing = [self.codes.get(run.workdir) == cli.INTERRUPTED for run in runs]
        if self.interrupted or refused or any(passing):
            return True
        left = not runs or not all(map(_is_finished, runs))
        self.cut |= left and not self.affordable()
        return self.cut

    def end(self) -> int:
        """Reports on all runs; returns the exit code: 0, 75, or the worst of the runs'."""
        if self.submitted:
            return cli.DONE
        runs = list(self.runs.values())
        codes = {i: self.codes[r.workdir] for i, r in enumerate(runs) if r.workdir in self.codes}
        if runs:
            summarize(runs, codes, self.folder / f"sweep_{self.label}.csv")
        for path, code in self.codes.items():
            run = self.runs[path]
            how = _kills(run) or (processes.status_of(code) + _reason(run, code))
            if code not in (cli.DONE, cli.INTERRUPTED) or _kills(run):
                print(f"{run.title}: {how}")
                print(f"  {self.logs.get(path, _log(run))}")
        if self.interrupted:
            print("interrupted; the same command continues")
            return cli.INTERRUPTED
        done = [code for code in codes.values() if code != cli.INTERRUPTED]
        if not self.affordable() and (self.cut or not all(map(_is_finished, runs))):
            print("the budget is spent; the same command with a greater --budget goes on")
        else:
            done = list(codes.values())
        worst = max(done, key=lambda c: _SEVERITY.index(c) if c in _SEVERITY else 99, default=0)
        return worst if worst in _SEVERITY else cli.UNEXPECTED


@contextlib.contextmanager
def _told_of_root(path: pathlib.Path) -> Iterator[None]:
    """Around what writes a file of the sweep, whose folder is made if need be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = f"{path}: cannot be written ({error.strerror})"
        raise UserError(reason, argument="root") from None


def _record(run: Run) -> dict[str, Any]:
    """What is known of the run; nothing, with a warning, if that is damaged: its process will refuse it."""
    return records.fields(records.sound(records.read_run, run.workdir / "config.json"))


def _result_of(run: Run) -> dict[str, Any]:
    """The result of a run with exactly these flags; none if it has none yet, or went on with others."""
    record = _record(run)
    if record.get("config") == run.config:
        result = _result_in(run.workdir / "result.json")
        return result if result.get("run") == record.get("run") else {}  # else it is another run's
    earlier = map(_result_in, run.workdir.glob("result_at_*.json"))  # of a run past its pause
    return next((result for result in earlier if result.get("config") == run.config), {})


def _result_in(path: pathlib.Path) -> dict[str, Any]:
    """A result; none, with a warning, if it is damaged: the run comes to its end again, and writes it anew."""
    return records.fields(records.sound(records.read_result, path))


def _is_finished(run: Run) -> bool:
    """Whether a run with exactly these flags has come to its end."""
    return _result_of(run).get("status") in _FINAL


def _images(run: Run) -> int:
    """Real images that a run has seen, by its log."""
    step = _result_in(run.workdir / "result.json").get("step", 0)
    with contextlib.suppress(OSError, ValueError, LookupError):
        with (run.workdir / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16)))
            step = max(step, records.read_log_line(file.read().split(b"\n")[-2])["step"])
    return step * (_record(run).get("images_per_step") or 0)


def _concluded(run: Run, code: int, attempt: str, alone: bool) -> int:
    """How a run ended, as its process says or, if it was killed or crashed, as it was found; that is then written down.

    A run that was killed counts as interrupted, unless that happens again and again: it is not known who is at fault.

    Args:
      run: which one.
      code: the exit code of its process.
      attempt: which attempt at it has ended.
      alone: whether it had the process for itself.
    """
    said = ended.read(run.workdir)
    if said is None or said.attempt != attempt:
        found, before = code if alone else _code(run, code), said
        said = ended.Ended(attempt=attempt, code=found)
        if found < 0:
            step = max((int(path.name) for path in _checkpoints(run)), default=-1)
            again = before is not None and before.step == step
            kills = 1 + (before.kills if before is not None and again else 0)
            said = ended.Ended(attempt=attempt, code=found, kills=kills, step=step)
        ended.write(run.workdir, said)
    found = code if alone else said.code
    passing = 0 < said.kills < _MOST_KILLS or found == cli.CANCELLED
    return cli.INTERRUPTED if passing else found


def _checkpoints(run: Run) -> Iterator[pathlib.Path]:
    return (path for path in run.workdir.glob("checkpoints/[0-9]*") if path.name.isdecimal())


def _kills(run: Run) -> str:
    """What is to be said of a run that was killed; empty if it was not."""
    said = ended.read(run.workdir)
    if said is None or not said.kills:
        return ""
    signal = processes.signal_name(-said.code)
    often = f"{said.kills} of at most {_MOST_KILLS} times without a checkpoint in between"
    on = "; the same command goes on" * (said.kills < _MOST_KILLS)
    return f"killed by {signal}, {often}{on}"


def _is_at_fault(run: Run) -> bool:
    """Whether a run was refused for something that the sweep chose for it, alone or together with other flags."""
    said = ended.read(run.workdir)
    if said is None or said.code != cli.BAD_INPUT:
        return False
    return not run.set_by_sweep.isdisjoint([said.argument, *said.beside])


def _reason(run: Run, code: int = cli.BAD_INPUT) -> str:
    """Why a run failed with this code, as it says."""
    anomalies = _result_of(run).get("anomalies") if code == cli.ANOMALY else None
    if anomalies:
        return f": {anomalies[-1]}"
    said = ended.read(run.workdir)
    return f": {cli.message_of(said.error)}" if said and said.reason else ""


def _wait_for_orphans(runs: Sequence[Run]) -> None:
    """Gives those that a launcher that is gone has left behind the time to save; they were told to."""
    deadline = time.monotonic() + _PATIENCE
    for run in runs:
        if not processes.is_trained(run.workdir):
            continue
        print(f"{run.title}: another process still trains it; waiting for it to save", flush=True)
        while processes.is_trained(run.workdir) and time.monotonic() < deadline:
            time.sleep(0.2)


def _code(run: Run, code: int) -> int:
    """How a run ended of which its process, whose code this is, did not say so itself."""
    status = _result_of(run).get("status")
    if status in _FINAL:
        return _FINAL[status]
    return cli.INTERRUPTED if code in (cli.DONE, cli.ANOMALY, cli.INTERRUPTED) else code


def halve(sweep: Sweep, runs: Sequence[Run], aim: search.Aim) -> None:
    """Successive halving of the settings of these runs; see ``search.rungs``."""
    left = list(search.settings([run.values for run in runs]).values())
    steps = search.rungs(len(left), _FACTOR)
    facts = [aim, *((str(r.workdir), r.config["epochs"], r.config["steps"]) for r in runs)]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    name = f"rungs {digest[:8]}"
    past = sweep.ledger.get(name, [])  # what was decided, though the runs have gone on since
    for rung, (share, _) in enumerate(steps):
        indices = [i for setting in left for i in setting]
        part = [_paused(runs[i], share) for i in indices]
        if rung < len(past):
            scores = past[rung]
            if len(scores) != len(left):
                raise sweep.damaged(f"{name}: {len(scores)} scores of {len(left)} settings")
            sweep.recall(part)
        else:
            results = dict(zip(indices, sweep.train(part), strict=True))
            if sweep.over(part):
                return
            scores = [aim.score([results[i] for i in setting]) for setting in left]
            past = [*past, scores]
            sweep.note(**{name: past})
        order = sorted(range(len(left)), key=lambda i: scores[i])
        best = left[order[0]]
        print(
            f"rung {rung + 1} of {len(steps)}: {len(left)} settings at {share:.3g} of a run;"
            f" best: {_setting(runs[best[0]], {'seed'})}, {aim.metric} {aim.sign * scores[order[0]]:.4g}",
            flush=True,
        )
        if rung + 1 < len(steps):
            keep = steps[rung + 1][1]
            left = [left[i] for i in order[:keep] if math.isfinite(scores[i])]
            if not left:
                raise UserError(
                    f"no setting reached rung {rung + 2}", argument="search", value="halving"
                )


def first_rung(runs: Sequence[Run]) -> list[Run]:
    """What successive halving trains first."""
    count = len(search.settings([run.values for run in runs]))
    share, _ = search.rungs(count, _FACTOR)[0]
    return [_paused(run, share) for run in runs]


def _paused(run: Run, share: float) -> Run:
    if share >= 1:
        return run
    flag = f"--pause_at={share:.6g}"
    return run._replace(
        command=[*run.command, flag],
        config={**run.config, "pause_at": float(f"{share:.6g}")},
        common=(*run.common, flag),
    )


def _setting(run: Run, without: Collection[str]) -> str:
    return run._replace(values={k: v for k, v in run.values.items() if k not in without}).title


def ask(
    sweep: Sweep,
    study: search.Study,
    axes: Sequence[search.Axis],
    samples: int,
    aim: search.Aim,
    planned: Callable[[Sequence[Mapping[str, str]]], list[Run]],
) -> None:
    """Trains what the study asks for, generation by generation."""

    def runs_of(texts: Mapping[str, str]) -> list[Run]:
        return planned(search.crossed(axes, [texts]))

    best, crossed = math.inf, {axis.name for axis in axes if axis.kind == "grid"}

    def compare(group: Sequence[Run], score: float) -> None:
        nonlocal best
        if score < best:
            best = score
            print(
                f"best so far: {_setting(group[0], crossed)}, {aim.metric} {aim.sign * score:.4g}"
            )

    told = [(runs_of(texts), score) for texts, score in study.told()[:samples]]
    for group, _ in told:
        sweep.recall(group)
    if told:
        compare(*min(told, key=lambda each: each[1]))
    while (left := samples - len(study.told())) > 0 and not sweep.over():
        trials = study.generation(min(left, search.GENERATION))
        groups = [runs_of(texts) for _, texts in trials]
        runs = {run.workdir: run for group in groups for run in group}
        results = dict(zip(runs, sweep.train(list(runs.values())), strict=True))
        if sweep.over(list(runs.values())):
            return
        for (number, _), group in zip(trials, groups, strict=True):
            score = aim.score([results[run.workdir] for run in group])
            study.tell(number, score)
            compare(group, score)


def summarize(runs: Sequence[Run], codes: Mapping[int, int], csv_path: pathlib.Path) -> None:
    """Prints the final metrics of every run, their mean over seeds, and writes them all as CSV."""
    rows, numbers = [], []
    for index, run in enumerate(runs):
        result: dict[str, Any] = {}
        if codes.get(index) in (cli.DONE, cli.INTERRUPTED):
            result = _result_of(run)
        elif index not in codes:  # not trained this time; it may have been before
            result = _result_in(run.workdir / "result.json")
            result = result if result.get("status") in ("paused", "interrupted") else {}
        values = {name: cli.show(value) for name, value in run.values.items()}
        status = result.get("status") or processes.status_of(codes.get(index))  # paused is no code
        rows.append(values | {"status": status, "step": result.get("step", "")})
        numbers.append(result.get("metrics", {}))
    keys = list(dict.fromkeys(key for metrics in numbers for key in metrics))
    names = list(dict.fromkeys(k for row in rows for k in row))
    table = [
        [*(row.get(k, "") for k in names), run.workdir, *(metrics.get(k, "") for k in keys)]
        for run, row, metrics in zip(runs, rows, numbers, strict=True)
    ]
    with _told_of_root(csv_path):
        write_csv(csv_path, [*names, "workdir", *keys], table)
    shown = [key for key in keys if not key.startswith("time/") and not key.endswith("_norm")]
    print()
    print_table(
        [
            row | {key: f"{metrics[key]:.4g}" if key in metrics else "" for key in shown}
            for row, metrics in zip(rows, numbers, strict=True)
        ]
    )
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        if codes.get(index) == cli.DONE and numbers[index]:
            groups.setdefault(_setting(run, {"seed"}), []).append(index)
    if "seed" in runs[0].values and any(len(members) > 1 for members in groups.values()):
        print("\nmean ± standard deviation over seeds")
        print_table(
            [
                {k: v for k, v in rows[members[0]].items() if k in runs[0].values and k != "seed"}
                | {"seeds": str(len(members))}
                | {
                    key: cli.mean_of([numbers[i][key] for i in members if key in numbers[i]])
                    for key in shown
                }
                for members in groups.values()
            ]
        )
    print(f"\nall metrics: {csv_path}")


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows of equal keys, right-aligned under their names."""
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())
