"""Jobs of little Python programs, for tests of who runs them."""

import pathlib
import sys
from typing import NamedTuple

from bpgan.launcher import flags, slurm


class Job(NamedTuple):
    """All that a cluster needs to know of a run."""

    command: list[str]
    workdirs: list[pathlib.Path]
    log: pathlib.Path
    title: str


def make_jobs(folder: pathlib.Path, *scripts: str) -> list[Job]:
    """One for each script; their working directories exist."""
    found = []
    for i, script in enumerate(scripts):
        (folder / f"run{i}").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", script]
        found.append(Job(command, [folder / f"run{i}"], folder / f"run{i}.log", f"x={i}"))
    return found


def options(**chosen) -> slurm.Options:
    """What the launcher's flags ask for, of which these are given."""
    given = {"slurm": "true"} | chosen
    single = [
        flag for flag in flags.TABLE if flag.name in given and flag.name not in flags.REPEATED
    ]
    values = flags.parse([]).values | given | {f.name: f.validate(given[f.name]) for f in single}
    found = slurm.parse_options(values, chosen, "fake")
    assert found is not None
    return found


LOCAL = options(slurm="local")
