"""The runs of a sweep as they are planned: values, names, directories, commands."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import types
import urllib.parse
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from bpgan import cli
from bpgan.cli import experiments
from bpgan.launcher import flags, processes, search
from bpgan.types import UserError

_MOST_BYTES = 100_000  # of a command; Linux takes 131,072 in one argument


class PlannedRun(NamedTuple):
    """One combination of a sweep: the swept values by flag, what else decides its numbers, and how it runs alone.

    Attributes:
      values: by flag.
      workdir: its run directory.
      command: the process that runs it.
      config: the values of all flags.
      code: the values of all flags that no group can vary.
      common, own: flags of the command that others share, and those that are this run's.
      set_by_sweep: the names of the flags that have their values from the sweep, those of a swept preset, too.
      experiment: its canonical name.
    """

    values: dict[str, Any]
    workdir: pathlib.Path
    command: list[str]
    config: Mapping[str, Any] = types.MappingProxyType({})
    code: str = ""
    common: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    set_by_sweep: frozenset[str] = frozenset()
    experiment: str = ""

    @property
    def title(self) -> str:
        return self.name_setting()

    @property
    def log(self) -> pathlib.Path:
        """Where it prints if it is alone in its process."""
        return self.workdir.with_name(self.workdir.name + ".log")

    def name_setting(self, without: Collection[str] = ()) -> str:
        """Its swept values, for people."""
        shown = {k: cli.show(v) for k, v in self.values.items() if k not in without}
        return " ".join(f"{name}={value}" for name, value in shown.items())

    def pause_at(self, share: float) -> "PlannedRun":
        """The same run, paused at a share of its length."""
        if share >= 1:
            return self
        flag = f"--pause_at={share:.6g}"
        return self._replace(
            command=[*self.command, flag],
            config={**self.config, "pause_at": float(f"{share:.6g}")},
            common=(*self.common, flag),
        )


def parse_axes(
    experiment: experiments.Script, argv: Sequence[str], sweeps: Sequence[str]
) -> list[search.Axis]:
    """The axes of a sweep, checked against each other and the flags beside them.

    Raises:
      UserError: for a sweep that makes no sense.
    """
    specs = cli.flags_of(experiment.config)
    axes: dict[str, search.Axis] = {}
    for text in sweeps:
        axis = search.parse_axis(text, specs)
        if axis.name in axes:
            reason = f"{axis.name} is swept twice; list its values in one `sweep`"
            raise UserError(reason, argument="sweep", value=text)
        if _is_given(rf"(no)?{axis.name}", argv):
            reason = f"`{axis.name}` is also given as a flag; drop one of them"
            raise UserError(reason, argument="sweep", value=text)
        axes[axis.name] = axis
    if _is_given("workdir", argv):
        raise UserError("cannot be combined with `sweep`; use `root`", argument="workdir")
    return list(axes.values())


def _is_given(flag: str, argv: Sequence[str]) -> bool:
    return any(re.match(rf"--?{flag}(=|$)", arg) for arg in argv)


def plan(
    experiment: experiments.Script,
    argv: Sequence[str],
    combinations: Sequence[Mapping[str, str]],
    root: str | os.PathLike,
) -> list[PlannedRun]:
    """The runs of all combinations of swept values, checked.

    A run's directory is named after its swept values and a hash of the other settings that decide
    its numbers; so the same command finds it again, also with more epochs or another interval.

    Raises:
      UserError: for a combination that the experiment refuses, or two that are the same.
    """
    runs: dict[pathlib.Path, PlannedRun] = {}
    for texts in combinations:
        run = _plan_one(experiment, argv, texts, root)
        if run.workdir in runs:
            raise UserError(f"{run.title} occurs twice", argument="sweep")
        runs[run.workdir] = run
    return list(runs.values())


def _plan_one(
    experiment: experiments.Script,
    argv: Sequence[str],
    texts: Mapping[str, str],
    root: str | os.PathLike,
) -> PlannedRun:
    specs, presets = cli.flags_of(experiment.config), experiment.presets
    own = [f"--{k}={v}" for k, v in texts.items()]
    arguments = [*argv, *own]
    cfg = cli.resolve(experiment.config, presets, arguments, other_flags=flags.NAMES)
    # Canonical: 1e-4 and 0.0001 are one run. A preset is no field; it counts as written.
    swept = {k: getattr(cfg, k, v) for k, v in texts.items()}
    decisive = {k: getattr(cfg, k) for k in sorted(specs) if not specs[k].restart_safe}
    # Empty they decide nothing: a sweep of before there were such flags finds its runs again.
    decisive = {k: v for k, v in decisive.items() if v or k not in ("init_from", "init")}
    rest = {k: v for k, v in decisive.items() if k not in swept}
    label = "_".join(f"{k}={urllib.parse.quote(cli.show(v), safe='+')}" for k, v in swept.items())
    said = [_own_name(cfg, swept), label, _data_of(cfg, specs, swept)]
    name = f"{cli.shorten('_'.join(filter(None, said)), 200)}_{hash_of(rest)[:6]}"
    workdir = pathlib.Path(root, experiments.label_of(experiment.name), name)
    command = [
        *processes.python(),
        *experiments.program_of(experiment.name),
        *arguments,
        f"--workdir={workdir}",
    ]
    if (size := sum(map(len, map(os.fsencode, command)))) > _MOST_BYTES:
        reason = f"the command of a run has {size:,} bytes; must have at most {_MOST_BYTES:,}"
        raise UserError(reason, argument="sweep")
    code = {k: getattr(cfg, k) for k, f in specs.items() if not f.sweepable and k != "workdir"}
    return PlannedRun(
        values=swept,
        workdir=workdir,
        command=command,
        config=dataclasses.asdict(cfg) | {"workdir": str(workdir)},
        code=json.dumps(code),
        common=tuple(argv),
        own=(*own, f"--workdir={workdir}"),
        set_by_sweep=frozenset(swept) | frozenset(presets.get(texts.get("preset", ""), ())),
        experiment=experiment.name,
    )


def _own_name(cfg: cli.Config, swept: Mapping[str, Any]) -> str:
    """``--name`` of all runs of a sweep, before what tells them apart."""
    return cfg.name if isinstance(cfg, cli.RunConfig) and "name" not in swept else ""


def _data_of(cfg: cli.Config, specs: Mapping[str, cli.Flag], swept: Mapping[str, Any]) -> str:
    """Which data the runs are of, where they are not those of the default."""
    found = [
        re.sub(r"[^\w.+-]", "-", os.path.basename(str(getattr(cfg, name)).rstrip("/")))
        for name, spec in specs.items()
        if spec.locates_data and name not in swept and getattr(cfg, name) != spec.default
    ]
    return cli.shorten("_".join(found), 60)


def hash_of(value: Any) -> str:
    """A hash in hexadecimal of what JSON can say."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def find_idle_flags(experiment: experiments.Script, runs: Sequence[PlannedRun]) -> dict[str, str]:
    """The flags that are given and change nothing in any of the runs, and why; see ``cli.without_effect``."""
    found: dict[str, str] = {}
    for index, run in enumerate(runs):
        idle = cli.without_effect(experiment.config, experiment.presets, [*run.common, *run.own])
        found = {name: why for name, why in idle.items() if not index or name in found}
        if not found:
            break
    return found
