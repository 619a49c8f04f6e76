"""How the runs of a sweep stand: what they and their processes have left on the disk, and what follows from it."""

import contextlib
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from bpgan import cli
from bpgan.cli import ended
from bpgan.launcher import processes
from bpgan.launcher.runs import PlannedRun
from bpgan.runtime import records

_FINAL = {"done": cli.DONE, "paused": cli.DONE, "non-finite": cli.ANOMALY, "anomaly": cli.ANOMALY}
# In a row, after which the setting is at fault: it needs more memory than there is, say.
_MOST_KILLS = 3
_PATIENCE = 60.0  # seconds in which a process that lost its launcher has saved


def read_record(run: PlannedRun) -> dict[str, Any]:
    """What is known of the run; nothing if its process will refuse it.

    That is so if the record is damaged, which is a warning, or of another experiment, whose file has the same name.
    """
    record = records.sound(records.read_run, run.workdir / "config.json")
    if record is None or not records.is_same_experiment(record.experiment, run.experiment):
        return {}
    return records.fields(record)


def read_result(run: PlannedRun) -> dict[str, Any]:
    """The result of a run with exactly these flags; none if it has none yet, or went on with others."""
    record = read_record(run)
    if not record:
        return {}
    if record["config"] == run.config:
        result = read_newest_result(run)
        return result if result.get("run") == record.get("run") else {}  # else it is another run's
    earlier = map(_read, run.workdir.glob("result_at_*.json"))  # of a run past its pause
    return next((result for result in earlier if result.get("config") == run.config), {})


def read_newest_result(run: PlannedRun) -> dict[str, Any]:
    """The result in the run's directory, of whatever flags."""
    return _read(run.workdir / "result.json")


def _read(path: pathlib.Path) -> dict[str, Any]:
    """A result; none, with a warning, if it is damaged: the run comes to its end again, and writes it anew."""
    return records.fields(records.sound(records.read_result, path))


def is_finished(run: PlannedRun) -> bool:
    """Whether a run with exactly these flags has come to its end."""
    return read_result(run).get("status") in _FINAL


def has_trained(run: PlannedRun) -> bool:
    """Whether there is a checkpoint of the run."""
    return any(run.workdir.glob("checkpoints/[0-9]*"))


def has_gone_on(run: PlannedRun) -> bool:
    """Whether the run has been continued with other flags."""
    return read_record(run).get("config", run.config) != run.config


def count_images(run: PlannedRun) -> int:
    """Real images that a run has seen, by its log."""
    step = read_newest_result(run).get("step", 0)
    with contextlib.suppress(OSError, ValueError, LookupError):
        with (run.workdir / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16)))
            step = max(step, records.read_log_line(file.read().split(b"\n")[-2])["step"])
    return step * (read_record(run).get("images_per_step") or 0)


def conclude(run: PlannedRun, code: int, attempt: str, alone: bool) -> int:
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
        found = code if alone else infer_code(run, code)
        said = _count_kills(run, ended.Ended(attempt=attempt, code=found), said)
        ended.write(run.workdir, said)
    found = code if alone else said.code
    passing = 0 < said.kills < _MOST_KILLS or found == cli.CANCELLED
    return cli.INTERRUPTED if passing else found


def _count_kills(run: PlannedRun, now: ended.Ended, before: ended.Ended | None) -> ended.Ended:
    """With the number of times that the run was killed without having been saved in between."""
    if now.code >= 0:
        return now
    names = (path.name for path in run.workdir.glob("checkpoints/[0-9]*"))
    step = max((int(name) for name in names if name.isdecimal()), default=-1)
    earlier = before.kills if before is not None and before.step == step else 0
    return ended.Ended(attempt=now.attempt, code=now.code, kills=1 + earlier, step=step)


def infer_code(run: PlannedRun, code: int) -> int:
    """How a run ended of which its process, whose code this is, did not say so itself."""
    status = read_result(run).get("status")
    if status in _FINAL:
        return _FINAL[status]
    return cli.INTERRUPTED if code in (cli.DONE, cli.ANOMALY, cli.INTERRUPTED) else code


def recall_code(run: PlannedRun) -> int:
    """How a run ended that is not trained again."""
    if has_gone_on(run):
        return cli.DONE
    said = ended.read(run.workdir)
    return infer_code(run, said.code if said else cli.UNEXPECTED)


def is_at_fault(run: PlannedRun) -> bool:
    """Whether a run was refused for something that the sweep chose for it, alone or together with other flags."""
    said = ended.read(run.workdir)
    if said is None or said.code != cli.BAD_INPUT:
        return False
    return not run.set_by_sweep.isdisjoint([said.argument, *said.beside])


def describe_kills(run: PlannedRun) -> str:
    """What is to be said of a run that was killed; empty if it was not."""
    said = ended.read(run.workdir)
    if said is None or not said.kills:
        return ""
    signal = processes.signal_name(-said.code)
    often = f"{said.kills} of at most {_MOST_KILLS} times without a checkpoint in between"
    again = "; the same command goes on" if said.kills < _MOST_KILLS else ""
    return f"killed by {signal}, {often}{again}"


def describe_reason(run: PlannedRun, code: int = cli.BAD_INPUT) -> str:
    """Why a run failed with this code, as it says: ``: reason``, or empty."""
    anomalies = read_result(run).get("anomalies") if code == cli.ANOMALY else None
    if anomalies:
        return f": {anomalies[-1]}"
    said = ended.read(run.workdir)
    return f": {cli.message_of(said.error)}" if said and said.reason else ""


def wait_for_orphans(runs: Sequence[PlannedRun]) -> None:
    """Gives those that a launcher that is gone has left behind the time to save; they were told to."""
    deadline = time.monotonic() + _PATIENCE
    for run in runs:
        if not processes.is_trained(run.workdir):
            continue
        print(f"{run.title}: another process still trains it; waiting for it to save", flush=True)
        while processes.is_trained(run.workdir) and time.monotonic() < deadline:
            time.sleep(0.2)
