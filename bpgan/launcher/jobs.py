"""Which runs of a sweep train together: a job is a process that trains one run, or a group of them as one program."""

import shlex
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bpgan.cli import experiments
from bpgan.launcher import outcomes, processes, runs
from bpgan.launcher.processes import Job
from bpgan.launcher.runs import PlannedRun
from bpgan.runtime import records
from bpgan.types import counted

_MOST_MEMBERS = 1000  # of a group, whose flags are one command line


def make_jobs(
    experiment: experiments.Script,
    planned: Sequence[PlannedRun],
    vectorize: str,
    slots: int,
    queued: Mapping[Path, str] = types.MappingProxyType({}),
) -> list[Job]:
    """The processes that train these runs.

    Runs whose flags differ only in what ``sweepable`` fields say become groups, each one program; in ``auto``, groups
    are cut so that no slot is idle; with 0 slots, to single runs. Those that have trained before, or wait in a queue,
    stay with those they were with. One that was refused for its own values is by itself: no other waits for it.
    """
    settled, fresh = _settle(planned, vectorize, queued)
    slots = slots or len(planned) * len(fresh)
    parts = -(-slots // max(len(fresh), 1)) if vectorize == "auto" else 1
    units = list(settled)
    for members in fresh:
        size = min(-(-len(members) // min(parts, len(members))), _MOST_MEMBERS)
        units += [members[start : start + size] for start in range(0, len(members), size)]
    options = ["--or_alone"] if vectorize == "auto" else []
    return [_make_job(experiment, planned, members, options) for members in sorted(units)]


def _settle(
    planned: Sequence[PlannedRun], vectorize: str, queued: Mapping[Path, str]
) -> tuple[list[list[int]], list[list[int]]]:
    """Indices of the runs that must be together or alone, and of new ones that could be one program."""
    settled: dict[Any, list[int]] = {}
    fresh: dict[str, list[int]] = {}
    found = [outcomes.read_record(run) for run in planned]
    paths = {its.get("run"): run.workdir for run, its in zip(planned, found, strict=True)}
    trained = {run.workdir for run in planned if records.has_checkpoint(run.workdir)}
    for index, (run, record) in enumerate(zip(planned, found, strict=True)):
        members = {*(record.get("group") or {}).get("members", ())}
        group = {paths[member] for member in members if member in paths}
        pmap = vectorize == "auto" and run.config.get("parallel") == "pmap"  # no program of a group
        if run.workdir in queued:
            settled.setdefault(queued[run.workdir], []).append(index)
        elif vectorize == "off" or pmap or (run.workdir in trained and not group):
            settled[index] = [index]
        elif outcomes.is_at_fault(run):
            settled[index] = [index]
        elif len(group) == len(members) and group & trained:
            settled.setdefault(frozenset(group), []).append(index)
        else:
            fresh.setdefault(run.code, []).append(index)
    return list(settled.values()), list(fresh.values())


def _make_job(
    experiment: experiments.Script,
    planned: Sequence[PlannedRun],
    members: list[int],
    options: Sequence[str],
) -> Job:
    own = [planned[i] for i in members]
    first, workdirs = own[0], [run.workdir for run in own]
    if len(own) == 1:
        return Job(first.title, first.command, first.log, members, workdirs)
    flags_of_members = [f"--member={shlex.join(run.own)}" for run in own]
    digest = runs.hash_of(flags_of_members)[:6]
    log = first.workdir.with_name(f"group_{'_'.join(first.values)}_{digest}.log")
    command = [*processes.python(), "bpgan.launcher.group", experiment.name, *options]
    title = f"{counted(len(own), 'run')}, {first.title} ... {own[-1].title}"
    return Job(title, [*command, *first.common, *flags_of_members], log, members, workdirs)
