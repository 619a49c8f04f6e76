"""Runs that are given to Slurm."""

import pathlib
import sys
from typing import NamedTuple

from bpgan.launcher import flags, slurm

DEFAULTS = flags.parse([]).values


class Run(NamedTuple):
    """All that a job needs to know of a run."""

    command: list[str]
    workdirs: list[pathlib.Path]
    log: pathlib.Path
    title: str


def runs(folder, *scripts):
    """Runs of little Python programs, whose working directories exist."""
    found = []
    for i, script in enumerate(scripts):
        (folder / f"run{i}").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", script]
        found.append(Run(command, [folder / f"run{i}"], folder / f"run{i}.log", f"x={i}"))
    return found


def options(**chosen):
    return slurm.parse_options(DEFAULTS | {"slurm": "true"} | chosen, chosen, "fake")


LOCAL = options(slurm="local")
