"""Runs one experiment, or a grid of them.

    python launch.py --list
    python launch.py --experiment=mnist_gan --epochs=50
    python launch.py --experiment=mnist_gan --help
    python launch.py --experiment=my_gan.py --sweep=g_lr=1e-4,2e-4 --sweep=seed=0:8 --jobs=2
    python launch.py --experiment=mnist_gan --processes=2
    python launch.py --report=runs/mnist_gan
    python launch.py --experiment=mnist_gan --sweep=seed=0:8 --slurm --slurm_gpus=1

Flags that are not the launcher's go to the experiment. A sweep checks the flags of all first, runs
each as its own process, and ends with a table; the same command resumes what was interrupted.
With --processes, one run is trained by several processes of this machine. With --slurm, a sweep
becomes jobs of a cluster; the same command then says how far they are.
"""

import contextlib
import functools
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bpgan import cli
from bpgan.cli import experiments
from bpgan.launcher import flags, processes, runs, search, slurm, strategies, summary
from bpgan.launcher.sweep import Sweep
from bpgan.measures import direction
from bpgan.runtime import directory, remote
from bpgan.types import UserError, counted

_ROWS = 40  # of a table on the terminal


def main() -> None:
    """Runs the launcher with the process's arguments, then exits."""
    cli.leave(lambda: run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """The launcher as a function of its arguments; returns the exit code."""
    chosen, given, rest = flags.parse(argv)
    alone = next((flag for flag in ("list", "report") if chosen[flag]), "")
    if cli.is_help(rest) and (alone or not chosen["experiment"]):
        print(_help())
        return cli.DONE
    if alone and rest:
        hint = flags.suggest(rest[0]) or "; `help` lists the flags"
        raise UserError(f"{rest[0]}: has no part in `{alone}`{hint}")
    if chosen["list"]:
        print("\n".join(_list()))
        return cli.DONE
    if chosen["report"]:
        return _report(chosen)
    if not chosen["experiment"]:
        raise UserError(_what_instead(rest))
    experiment = experiments.find(chosen["experiment"])
    if cli.is_help(rest):
        return _act(experiment, ["--help"])
    flags.check_names(experiment)
    cluster = slurm.parse_options(chosen, given, experiments.label_of(experiment.name))
    _check_combination(experiment, chosen, cluster)
    if chosen["sweep"]:
        return _sweep(experiment, rest, chosen, cluster)
    return _run_one(experiment, rest, chosen)


def _help() -> str:
    docstring = cli.docstring_of(sys.modules[__name__])
    return "\n".join([docstring, *flags.describe(), "", "Experiments:", *_list()])


def _list() -> list[str]:
    rows = []
    for name in experiments.names():
        summary, presets = experiments.describe(name)
        rows += [(name, summary), ("", f"presets: {', '.join(presets)}")]
    return cli.columns(rows)


def _what_instead(rest: Sequence[str]) -> str:
    if not rest:
        return "`experiment=NAME` is needed; `list` describes them"
    if rest[0] in experiments.names():
        return f"unexpected argument {rest[0]!r}; did you mean `experiment={rest[0]}`?"
    hint = flags.suggest(rest[0]) or "; `list` describes them"
    return f"`experiment=NAME` is needed before {rest[0]!r}{hint}"


def _check_combination(
    experiment: experiments.Script, chosen: Mapping[str, Any], cluster: slurm.Options | None
) -> None:
    """Raises UserError for flags of the launcher that do not go together, or not with this experiment."""
    sweeps, several = bool(chosen["sweep"]), chosen["processes"] > 1
    if (sweeps or several) and not experiment.trains:
        reason = "does not train; `sweep` and `processes` need one that does"
        raise UserError(reason, argument="experiment", value=chosen["experiment"])
    if cluster and not sweeps:
        raise UserError("submits a sweep; a single run is `sweep=seed=0`", argument="slurm")
    if sweeps and several and not cluster:
        reason = "cannot be combined with `sweep`"
        raise UserError(reason, argument="processes", value=chosen["processes"])


def _run_one(experiment: experiments.Script, argv: Sequence[str], chosen: Mapping[str, Any]) -> int:
    """Runs one experiment; returns the exit code."""
    own, of_sweeps = cli.flags_of(experiment.config), {f.name for f in flags.OF_SWEEPS}
    for given in (re.match(r"--?(\w+)", arg) for arg in argv):
        if given and given[1] in of_sweeps and given[1] not in own:
            raise UserError("has no effect without `sweep`", argument=given[1])
    presets = experiment.presets
    cfg = cli.resolve(experiment.config, presets, argv, other_flags=flags.NAMES)
    if chosen["root"] != "runs" and not cfg.workdir:
        preset = cli.preset_of(experiment.config, presets, argv, other_flags=flags.NAMES)
        label, name = experiments.label_of(experiment.name), cli.run_name(cfg, presets, preset)
        folder = remote.join(chosen["root"], label, name)
        argv = [f"--workdir={folder}", *argv]
    command = [*processes.python(), *experiments.program_of(experiment.name), *argv]
    count = chosen["processes"]
    if chosen["dry_run"]:
        places = processes.place_processes(count) if count > 1 else [{}]
        processes.print_commands([command] * count, places)
        return cli.DONE
    if count > 1:
        return processes.train_one(command, count)
    return _act(experiment, argv)


def _act(experiment: experiments.Script, argv: Sequence[str]) -> int:
    return cli.run(experiment.config, experiment.action, experiment.presets, argv)


def _sweep(
    experiment: experiments.Script,
    argv: Sequence[str],
    chosen: Mapping[str, Any],
    cluster: slurm.Options | None,
) -> int:
    """Runs a sweep; returns the exit code."""
    if remote.is_url(chosen["root"]):
        reason = (
            "a sweep is kept on this machine; must be a folder of it, or be given without `sweep`"
        )
        raise UserError(reason, argument="root", value=chosen["root"])
    _check_search(chosen, cluster)
    kind, samples, seed = chosen["search"], chosen["samples"], chosen["search_seed"]
    aim, budget = chosen["aim"].value, chosen["budget"].value
    axes = runs.parse_axes(experiment, argv, chosen["sweep"])
    plan = functools.partial(runs.plan, experiment, argv, root=chosen["root"])
    planned = plan(_combine(kind, axes, samples, seed))
    _check_runs(experiment, planned, chosen)

    # What the sweep remembers has names of all that it depends on: another sweep begins anew.
    first, swept = planned[0], "_".join(axis.name for axis in axes)
    settings = first.workdir.name.rpartition("_")[2]  # a hash of what is not swept
    label = f"{swept}_{runs.hash_of([settings, axes, samples, seed, kind, aim])[:8]}"
    folder = first.workdir.parent
    vectorize = "off" if chosen["processes"] > 1 else chosen["vectorize"]
    slots = _count_slots(chosen["jobs"], cluster)
    sweep = Sweep(experiment, folder, label, vectorize, slots, budget, cluster)
    if chosen["dry_run"]:
        return _print_jobs(sweep, planned, kind)
    if kind != "tpe":
        _mention_repeats(samples, len(search.draw_settings(axes, samples, seed)))
    length = first.config["epochs"], first.config["steps"]
    journal = folder / f"tpe_{swept}_{runs.hash_of([settings, axes, seed, aim, length])[:8]}.log"
    with directory.tidied(folder), sweep.locked(*([journal] if kind == "tpe" else [])):
        if kind == "halving":
            strategies.halve(sweep, planned, aim)
        elif kind == "tpe":
            study = search.Study(journal, axes, seed)
            strategies.ask_study(sweep, study, axes, samples, aim, plan)
        else:
            sweep.train(planned)
        return sweep.report()


def _check_search(chosen: Mapping[str, Any], cluster: slurm.Options | None) -> None:
    """Raises a UserError for a search that makes no sense; warns of one that looks for the worst."""
    kind, aim = chosen["search"], chosen["aim"].value
    if cluster and not cluster.local and (kind != "all" or chosen["budget"]):
        reason = "submits all runs at once; `search` and `budget` need `slurm=local`"
        raise UserError(reason, argument="slurm")
    if (kind != "all") != (aim is not None):
        reason = f"`aim=min:METRIC` {'must' if kind != 'all' else 'cannot'} be given"
        raise UserError(reason, argument="search", value=kind)
    if aim and aim.sign * direction(aim.metric) > 0:
        less = "more" if aim.mode == "min" else "less"
        print(f"warning: --aim={aim}: {less} of {aim.metric} is better")


def _combine(
    kind: str, axes: Sequence[search.Axis], samples: int, seed: int
) -> list[dict[str, str]]:
    """What the sweep runs; of TPE, which is not known beforehand, one draw shows whether the flags are right."""
    if kind != "tpe":
        return search.combine(axes, samples, seed)
    if not samples or not any(axis.is_drawn for axis in axes):
        raise UserError("needs axes to draw and `samples=N`", argument="search", value="tpe")
    return search.combine(axes, 1, seed)


def _check_runs(
    experiment: experiments.Script, planned: Sequence[runs.PlannedRun], chosen: Mapping[str, Any]
) -> None:
    """Warns of flags without effect; raises UserError if what a search looks for is never measured."""
    if chosen["search"] != "tpe":  # of which one run is planned so far
        for flag, why in runs.find_idle_flags(experiment, planned).items():
            print(f"warning: --{flag} {why}")
    aim = chosen["aim"]
    if aim and aim.value.metric.startswith("eval/"):
        if not all(cli.Duration.parse(run.config["eval_every"]) for run in planned):
            reason = "nothing is evaluated with `eval_every=0`"
            raise UserError(reason, argument="aim", value=aim)


def _mention_repeats(samples: int, different: int) -> None:
    if different < samples:
        print(
            f"--samples={samples}: {counted(different, 'different setting')}, the others were drawn twice"
        )


def _count_slots(jobs: int, cluster: slurm.Options | None) -> int:
    """How many processes at a time; of a cluster, into how many jobs runs that could be one are cut."""
    if cluster and not cluster.local:
        return max(jobs, 1)
    return processes.count_slots(jobs)


def _print_jobs(sweep: Sweep, planned: Sequence[runs.PlannedRun], kind: str) -> int:
    if kind == "tpe":
        raise UserError("what `search=tpe` runs is not known beforehand", argument="dry_run")
    if kind == "halving":  # later rungs are not known beforehand
        planned = strategies.plan_first_rung(planned)
    jobs = sweep.jobs(planned)
    here = not sweep.cluster or sweep.cluster.local
    shares = processes.share_devices(sweep.slots, len(jobs)) if here else [{}]
    processes.print_commands([job.command for job in jobs], shares)
    return cli.DONE


def _report(chosen: Mapping[str, Any]) -> int:
    """Compares runs; returns the exit code."""
    with contextlib.ExitStack() as stack:
        folders = [
            stack.enter_context(remote.visited(place, remote.in_run()))
            for place in chosen["report"]
        ]
        return _compare(folders, chosen)


def _compare(folders: Sequence[pathlib.Path], chosen: Mapping[str, Any]) -> int:
    """``_report``, of folders of this machine."""
    from bpgan.report import compare
    from bpgan.runtime import records

    found = compare.read(folders)
    compare.check_metric(found, chosen["report_metric"])
    for name, part in compare.by_experiment(found).items():
        metric = compare.chosen_metric(part, chosen["report_metric"])
        groups = compare.ranked(compare.settings(part), metric)
        table = compare.rows(groups, compare.shown_metrics(part, metric)[:3])
        print(f"\n{records.printable(name)}: {compare.extent(groups)}")
        for line in compare.about(groups, metric)[1:]:
            print(records.printable(line))
        summary.print_table(table[:_ROWS])
        if len(table) > _ROWS:
            print(f"... and {counted(len(table) - _ROWS, 'more setting')}")
    to, first = chosen["report_to"], chosen["report"][0]
    page = compare.write(found, chosen["report_metric"], pathlib.Path(to) if to else folders[0])
    shown = page if to or not remote.is_url(first) else remote.join(first, page.name)
    print(f"\n{shown}\n{str(shown).removesuffix('.html')}.csv")
    return cli.DONE
