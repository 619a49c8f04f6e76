"""Runs one experiment, or a grid of them.

    python launch.py --list
    python launch.py --experiment=mnist_gan --epochs=50
    python launch.py --experiment=mnist_gan --help
    python launch.py --experiment=mnist_gan --sweep=g_lr=1e-4,2e-4 --sweep=seed=0:8 --jobs=2
    python launch.py --experiment=mnist_gan --processes=2
    python launch.py --report=runs/mnist_gan
    python launch.py --experiment=mnist_gan --sweep=seed=0:8 --slurm --slurm_gpus=1

Flags that are not the launcher's go to the experiment. A sweep checks the flags of all first, runs
each as its own process, and ends with a table; the same command resumes what was interrupted.
With --processes, one run is trained by several processes of this machine. With --slurm, a sweep
becomes jobs of a cluster; the same command then says how far they are.
"""

import ast
import hashlib
import importlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from absl import flags

from bpgan import cli
from bpgan.launcher import processes, search, slurm
from bpgan.launcher import sweep as sweeping
from bpgan.measures import direction
from bpgan.runtime import environment, limits
from bpgan.types import UserError


def _folder() -> pathlib.Path:
    return pathlib.Path(importlib.import_module("experiments").__path__[0]).resolve()


def _aim(text: str) -> search.Aim | None:
    return search.Aim.parse(text) if text else None


_FLAGS = (
    cli.Flag("experiment", str, "", "which experiment to run"),
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
        " NAME=log:LOW:HIGH, NAME=uniform:LOW:HIGH, NAME=choice:V1,V2,...; may be repeated, then every combination is"
        " run",
    ),
    cli.Flag(
        "samples",
        int,
        0,
        "number of random draws of a sweep",
        low=0,
        high=search.MOST_RUNS,
    ),
    cli.Flag(
        "search",
        str,
        "all",
        "all; halving (one in three of the settings trains three times as long, and so on); tpe (by Optuna)",
        choices=("all", "halving", "tpe"),
    ),
    cli.Flag("search_seed", int, 0, "seed of the random draws", low=0),
    cli.Flag("aim", str, "", "what a search looks for: min:METRIC or max:METRIC", check=_aim),
    cli.Flag(
        "budget",
        str,
        "",
        "when to stop training the sweep: 90s, 30m, 2h, or 5e6img (real images seen, as logged); each run is then its"
        " own process, so that runs end one after the other, unless --vectorize=on",
        check=sweeping.budget_of,
    ),
    cli.Flag(
        "vectorize",
        str,
        "auto",
        "train runs that differ only in numbers as one program: auto, on (all together), off (a process for each run)",
        choices=("auto", "on", "off"),
    ),
    cli.Flag(
        "jobs",
        int,
        0,
        "processes of a sweep at a time; each gets its share of the cores; 0: one for each core, or one if there are"
        " accelerators",
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
    cli.Flag("root", str, "runs", "runs go to ROOT/EXPERIMENT/NAME", check=environment.check_path),
    cli.Flag("dry_run", bool, False, "print the commands and stop"),
    *slurm.FLAGS,
)
_ROWS = 40  # of a table on the terminal
_REPEATED = ("sweep", "slurm_option", "report")


def names() -> list[str]:
    """The experiments there are: files of ``experiments/`` that do not begin with ``_``."""
    return sorted(p.stem for p in _folder().glob("*.py") if not p.name.startswith("_"))


def describe(name: str) -> tuple[str, list[str]]:
    """First docstring line and preset names of an experiment, read without importing it."""
    tree = ast.parse((_folder() / f"{name}.py").read_text(encoding="utf-8"))
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        if [t.id for t in targets if isinstance(t, ast.Name)] == ["PRESETS"]:
            keys = node.value.keys if isinstance(node.value, ast.Dict) else []
            return summary, [str(k.value) for k in keys if isinstance(k, ast.Constant)]
    return summary, []


def run(argv: Sequence[str]) -> int:
    """The launcher as a function of its arguments; returns the exit code."""
    chosen, given, rest = _parse(argv)
    name, sweeps = chosen["experiment"], chosen["sweep"]
    alone = next((flag for flag in ("list", "report") if chosen[flag]), "")
    if cli.is_help(rest) and (alone or not name):
        print(_help())
        return cli.DONE
    if alone and rest:
        hint = _meant(rest[0]) or "; --help lists the flags"
        raise UserError(f"{rest[0]}: has no part in --{alone}{hint}")
    if chosen["list"]:
        print("\n".join(_list()))
        return cli.DONE
    if chosen["report"]:
        return _report(chosen)
    if not name:
        raise UserError(_what_instead(rest))
    if name not in names():
        reason = f"must be one of {', '.join(names())}{cli.did_you_mean(name, names())}"
        raise UserError(reason, argument="experiment", value=name)
    module = importlib.import_module(f"experiments.{name}")
    if cli.is_help(rest):
        return cli.run(module.Config, _action(module), module.PRESETS, ["--help"])
    if (sweeps or chosen["processes"] > 1) and not issubclass(module.Config, cli.RunConfig):
        reason = "does not train; --sweep and --processes need one that does"
        raise UserError(reason, argument="experiment", value=name)
    cluster = slurm.options(chosen, given)
    if cluster and not sweeps:
        raise UserError("submits a sweep; a single run is --sweep=seed=0", argument="slurm")
    if sweeps and chosen["processes"] > 1 and not cluster:
        reason = "cannot be combined with --sweep"
        raise UserError(reason, argument="processes", value=chosen["processes"])
    if sweeps:
        return _sweep(name, module, rest, sweeps, chosen, cluster)
    return _single(name, module, rest, chosen)


def _parse(argv: Sequence[str]) -> tuple[dict[str, Any], list[str], list[str]]:
    """The values of the launcher's flags, the names of those that are given, and the arguments of the experiment."""
    values = flags.FlagValues()
    sweeps_asked = any(re.match(r"--?sweep(=|$)", arg) for arg in argv)
    for spec in _FLAGS:
        if spec.name in cli.SWEEP_FLAGS and not sweeps_asked:
            continue  # may be the experiment's
        if spec.name in _REPEATED:
            flags.DEFINE_multi_string(spec.name, [], spec.help, flag_values=values)
        else:
            cli.define(values, spec)
    values["slurm"].boolean = True  # it needs no value
    rest = [arg for arg in cli.parse(values, argv, known_only=True) if arg != "--"]
    given = [spec.name for spec in _FLAGS if spec.name in values and values[spec.name].present]
    chosen = {spec.name: spec.default for spec in _FLAGS}
    chosen |= {name: values[name].value or chosen[name] for name in given}
    expand = os.path.expanduser  # here, for all: no shell does it for the ~ of --root=~/runs
    chosen |= {name: expand(chosen[name]) for name in ("root", "report_to")}
    chosen["report"] = [expand(folder) for folder in chosen["report"]]
    return chosen, given, rest


def _help() -> str:
    rows = [(_usage(spec), spec.help) for spec in _FLAGS]
    docstring = cli.docstring_of(sys.modules[__name__])
    return "\n".join([docstring, *cli.columns(rows), "", "Experiments:", *_list()])


def _single(name: str, module: ModuleType, rest: Sequence[str], chosen: Mapping[str, Any]) -> int:
    """Runs one experiment; returns the exit code."""
    its = cli.flags_of(module.Config)
    for flag in (re.match(r"--?(\w+)", arg) for arg in rest):
        if flag and flag[1] in cli.SWEEP_FLAGS and flag[1] not in its:
            raise UserError("has no effect without --sweep", argument=flag[1])
    cfg = cli.resolve(module.Config, module.PRESETS, rest, other_flags=cli.LAUNCHER_FLAGS)
    if chosen["root"] != "runs" and not cfg.workdir:
        folder = pathlib.Path(chosen["root"], name, cli.run_name(cfg, module.PRESETS))
        rest = [f"--workdir={folder}", *rest]
    command = [*processes.python(), f"experiments.{name}", *rest]
    if chosen["dry_run"]:
        processes.dry_run([command])
        return cli.DONE
    if chosen["processes"] > 1:
        return processes.together(command, chosen["processes"])
    return cli.run(module.Config, _action(module), module.PRESETS, rest)


def _sweep(
    name: str,
    module: ModuleType,
    argv: Sequence[str],
    sweeps: Sequence[str],
    chosen: dict[str, Any],
    cluster: slurm.Options | None,
) -> int:
    """Runs a sweep; returns the exit code."""
    kind, samples, seed = chosen["search"], chosen["samples"], chosen["search_seed"]
    aim, slots = _aim(chosen["aim"]), processes.slots_of(chosen["jobs"])
    _check_search(chosen, aim, cluster)
    if cluster and not cluster.local:  # elsewhere: a group is one job
        slots = max(chosen["jobs"], 1)
    vectorize = "off" if chosen["processes"] > 1 else chosen["vectorize"]
    axes = sweeping.axes_of(module, argv, sweeps)
    if kind == "tpe" and not (samples and any(axis.kind != "grid" for axis in axes)):
        raise UserError("needs axes to draw and --samples=N", argument="search", value="tpe")
    # What TPE asks for is not known beforehand: one draw shows whether the flags are right.
    combinations = search.combinations(axes, 1 if kind == "tpe" else samples, seed)

    def planned(combinations: Sequence[Mapping[str, str]]) -> list[sweeping.Run]:
        return sweeping.plan(name, module, argv, combinations, chosen["root"])

    runs = planned(combinations)
    first = runs[0]
    if kind != "tpe":  # of which one run is planned so far
        for flag, why in sweeping.idle_in_all(module, runs).items():
            print(f"warning: --{flag} {why}")
    if aim and aim.metric.startswith("eval/"):
        for run in runs:
            if not cli.duration(run.config["eval_every"], 1.0):
                raise UserError(
                    "nothing is evaluated with --eval_every=0", argument="aim", value=chosen["aim"]
                )
    swept, settings = "_".join(first.values), first.workdir.name.rpartition("_")[2]
    label = f"{swept}_{_digest(settings, axes, samples, seed, kind, aim)}"
    budget, folder = sweeping.budget_of(chosen["budget"]), first.workdir.parent
    sweep = sweeping.Sweep(name, folder, label, vectorize, slots, budget, cluster)
    if chosen["dry_run"]:
        if kind == "tpe":
            raise UserError("what --search=tpe runs is not known beforehand", argument="dry_run")
        if kind == "halving":  # later rungs are not known beforehand
            runs = sweeping.first_rung(runs)
        processes.dry_run([job.command for job in sweep.jobs(runs)])
        return cli.DONE
    different = len(search.draws(axes, samples, seed))
    if kind != "tpe" and different < samples:
        print(f"--samples={samples}: {different} different settings, the others were drawn twice")
    length = first.config["epochs"], first.config["steps"]
    journal = folder / f"tpe_{swept}_{_digest(settings, axes, seed, aim, length)}.log"
    with limits.tidied(folder), sweep.alone(*[journal] * (kind == "tpe")):
        if kind == "halving" and aim:
            sweeping.halve(sweep, runs, aim)
        elif kind == "tpe" and aim:
            study = search.Study(journal, axes, seed)
            sweeping.ask(sweep, study, axes, samples, aim, planned)
        else:
            sweep.train(runs)
        return sweep.end()


def _check_search(
    chosen: Mapping[str, Any], aim: search.Aim | None, cluster: slurm.Options | None
) -> None:
    """Raises a UserError for a search that makes no sense; warns of one that looks for the worst."""
    kind = chosen["search"]
    if cluster and not cluster.local and (kind != "all" or chosen["budget"]):
        reason = "submits all runs at once; --search and --budget need --slurm=local"
        raise UserError(reason, argument="slurm")
    if (kind != "all") != (aim is not None):
        reason = f"--aim=min:METRIC {'must' if kind != 'all' else 'cannot'} be given"
        raise UserError(reason, argument="search", value=kind)
    if aim and aim.sign * direction(aim.metric) > 0:
        less = "more" if aim.sign > 0 else "less"
        print(f"warning: --aim={chosen['aim']}: {less} of {aim.metric} is better")


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]


def _report(chosen: Mapping[str, Any]) -> int:
    """Compares runs; returns the exit code."""
    from bpgan.report import compare
    from bpgan.runtime import records

    runs = compare.read(chosen["report"])
    compare.check_metric(runs, chosen["report_metric"])
    for name, part in compare.by_experiment(runs).items():
        metric = compare.chosen_metric(part, chosen["report_metric"])
        groups = compare.ranked(compare.settings(part), metric)
        table = compare.rows(groups, compare.shown_metrics(part, metric)[:3])
        print(f"\n{records.printable(name)}: {compare.extent(groups)}")
        sweeping.print_table(table[:_ROWS])
        if len(table) > _ROWS:
            print(f"... and {len(table) - _ROWS} more settings")
    page = compare.write(
        runs, chosen["report_metric"], pathlib.Path(chosen["report_to"] or chosen["report"][0])
    )
    print(f"\n{page}\n{page.with_suffix('.csv')}")
    return cli.DONE


def _action(module: ModuleType) -> Any:
    """What an experiment does: ``build`` a run to train, or ``run``."""
    return getattr(module, "build", None) or module.run


def _usage(spec: cli.Flag) -> str:
    if spec.type is bool:
        return f"--{spec.name}"
    return f"--{spec.name}={cli.show(spec.default) or spec.name.upper()}"


def _list() -> list[str]:
    rows = []
    for name in names():
        summary, presets = describe(name)
        rows += [(name, summary), ("", f"presets: {', '.join(presets)}")]
    return cli.columns(rows)


def _what_instead(rest: Sequence[str]) -> str:
    if not rest:
        return "--experiment=NAME is needed; --list describes them"
    if rest[0] in names():
        return f"unexpected argument {rest[0]!r}; did you mean --experiment={rest[0]}?"
    hint = _meant(rest[0]) or "; --list describes them"
    return f"--experiment=NAME is needed before {rest[0]!r}{hint}"


def _meant(argument: str) -> str:
    """The flag of the launcher that a mistyped one is near to, as ``cli.did_you_mean`` says it."""
    flag = re.match(r"--?([\w-]+)", argument)
    if not flag or flag[1] in cli.LAUNCHER_FLAGS:  # known, and of no use here
        return ""
    return cli.did_you_mean(flag[1], cli.LAUNCHER_FLAGS, "--")


def main() -> None:
    """Runs the launcher with the process's arguments, then exits."""
    cli.leave(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
