"""The launcher's flags: one table, and what a command line says of them."""

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

from bpgan import cli
from bpgan.cli import experiments
from bpgan.launcher import search, slurm
from bpgan.launcher.budget import Budget
from bpgan.measures import Goal
from bpgan.runtime import environment, remote
from bpgan.types import UserError


def _parse_aim(text: str) -> Goal | None:
    return Goal.parse(text) if text else None


OF_SWEEPS = (
    cli.Flag("samples", int, 0, "number of random draws of a sweep", low=0, high=search.MOST_RUNS),
    cli.Flag(
        "search",
        str,
        "all",
        "all; halving (one in three of the settings trains three times as long, and so on); tpe (by Optuna)",
        choices=("all", "halving", "tpe"),
    ),
    cli.Flag("search_seed", int, 0, "seed of the random draws", low=0),
    cli.Flag("aim", str, "", "what a search looks for: min:METRIC or max:METRIC", parse=_parse_aim),
    cli.Flag(
        "budget",
        str,
        "",
        "when to stop training the sweep: 90s, 30m, 2h, or 5e6img (real images seen, as logged); each run is then its"
        " own process, so that runs end one after the other, unless --vectorize=on",
        parse=Budget.parse,
    ),
    cli.Flag(
        "vectorize",
        str,
        "auto",
        "train runs that differ only in numbers as one program: auto, on (all together), off (a process for each run)",
        choices=("auto", "on", "off"),
    ),
)
"""Flags that are the launcher's only beside ``--sweep``; an experiment that does not train may have such names, too."""

TABLE = (
    cli.Flag("experiment", str, "", "which experiment to run: a name of --list, module or file.py"),
    cli.Flag("list", bool, False, "describe the experiments and stop"),
    cli.Flag(
        "report", str, "", "compare the runs in a folder, at any depth, and stop; may be repeated"
    ),
    cli.Flag("report_metric", str, "", "what to rank runs by; empty: a distance, else a loss"),
    cli.Flag(
        "report_to",
        str,
        "",
        "where comparison.html and .csv go; empty: the first --report",
        check=environment.check_path,
    ),
    cli.Flag(
        "sweep",
        str,
        "",
        "values of a flag: NAME=V1,V2,... or, for whole numbers, NAME=LOW:HIGH (HIGH excluded), or drawn:"
        " NAME=log:LOW:HIGH, NAME=uniform:LOW:HIGH, NAME=choice:V1,V2,...; a value with commas stands in quotes:"
        " \"NAME='a,b','c,d'\"; may be repeated, then every combination is run",
    ),
    *OF_SWEEPS,
    cli.Flag(
        "jobs",
        int,
        0,
        "processes of a sweep at a time; each gets its share of the cores and of the GPUs, or one TPU chip; 0: one for"
        " each GPU or TPU chip, or where there is none for each core; several on one GPU share its memory, unless"
        " XLA_PYTHON_CLIENT_MEM_FRACTION says how much each takes",
        low=0,
    ),
    cli.Flag(
        "processes",
        int,
        1,
        "processes that train one run together, each on its share of a batch",
        low=1,
        high=1024,
    ),
    cli.Flag(
        "root",
        str,
        "runs",
        "runs go to ROOT/EXPERIMENT/NAME; gs://... and s3://... for a single run only",
        check=remote.check_place,
    ),
    cli.Flag("dry_run", bool, False, "print the commands and stop"),
    *slurm.FLAGS,
)
"""All flags of the launcher, in the order of ``--help``."""

NAMES = tuple(flag.name for flag in TABLE)
REPEATED = ("sweep", "slurm_option", "report")
"""Those that may be given several times; their value is a list."""

_PATHS = ("root", "report_to")


class Launch(NamedTuple):
    """A command line of the launcher.

    Attributes:
      values: of every flag.
      given: the names of those that are on the command line.
      rest: the arguments of the experiment.
    """

    values: dict[str, Any]
    given: list[str]
    rest: list[str]


def parse(argv: Sequence[str]) -> Launch:
    """What a command line asks for.

    Raises:
      UserError: for a value that a flag does not allow.
    """
    known = flags.FlagValues()
    sweeps = any(re.match(r"--?sweep(=|$)", arg) for arg in argv)
    for flag in TABLE if sweeps else [flag for flag in TABLE if flag not in OF_SWEEPS]:
        if flag.name in REPEATED:
            flags.DEFINE_multi_string(flag.name, [], flag.help, flag_values=known)
        else:
            cli.define(known, flag)
    known["slurm"].boolean = True  # it needs no value
    rest = [arg for arg in cli.parse(known, argv, known_only=True) if arg != "--"]
    given = [name for name in NAMES if name in known and known[name].present]
    values: dict[str, Any] = {
        flag.name: [] if flag.name in REPEATED else flag.validate(flag.default)
        for flag in TABLE
        if flag.name != "slurm"
    }
    values |= {"slurm": ""} | {name: known[name].value for name in given}
    # Here, for all: no shell does it for the ~ of --root=~/runs
    values |= {name: os.path.expanduser(values[name]) for name in _PATHS}
    values["report"] = list(map(os.path.expanduser, values["report"]))
    return Launch(values, given, rest)


def check_names(experiment: experiments.Script) -> None:
    """Raises UserError if an experiment has a flag of the launcher's name: it would never see its value."""
    taken = {flag.name for flag in TABLE if experiment.trains or flag not in OF_SWEEPS}
    for name in cli.flags_of(experiment.config):
        if name in taken:
            reason = (
                f"`{name}` is a flag of the launcher; the experiment must call its own otherwise"
            )
            raise UserError(reason, argument="experiment", value=experiment.name)


def suggest(argument: str) -> str:
    """The flag of the launcher that a mistyped one is near to, as ``cli.did_you_mean`` says it."""
    flag = re.match(r"--?([\w-]+)", argument)
    if not flag or flag[1] in NAMES:  # known, and of no use here
        return ""
    return cli.did_you_mean(flag[1], NAMES, "--")


def describe() -> list[str]:
    """Lines for ``--help``."""
    return cli.columns([(_usage(flag), flag.help) for flag in TABLE])


def _usage(flag: cli.Flag) -> str:
    if flag.type is bool:
        return f"--{flag.name}"
    return f"--{flag.name}={cli.show(flag.default) or flag.name.upper()}"
