"""Trains runs of one experiment that differ only in sweepable flags together, as ``launch.py --sweep`` asks for.

    python -m bpgan.launcher.group mnist_gan --epochs=2 --member="--seed=0 --workdir=a" --member="--seed=1 --workdir=b"

The experiment is a name of ``--list``, a module or a file. ``--member`` holds the flags of one run, the others are
common to all. With ``--or_alone`` they train one after the other where they cannot be one program.
"""

import dataclasses
import shlex
import sys
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from absl import flags

from bpgan import cli
from bpgan.cli import ended, experiments
from bpgan.runtime import directory
from bpgan.types import UserError

_End = tuple[int, Exception | None]  # exit code of a member, and its cause


def run(argv: Sequence[str], record: ended.Record = ended.ignore) -> int:
    """Trains the group; returns the exit code: 0, or 75 if interrupted, 2 if one was refused, 3 if one was stopped.

    A member that is refused for its own values does not keep the others from training.

    Args:
      argv: the command line.
      record: what is told how each member ended.

    Raises:
      UserError: for members that differ in more than sweepable flags, and as ``train.fit_group``.
    """
    name, *rest = argv
    experiment = experiments.find(name)
    given = flags.FlagValues()
    flags.DEFINE_multi_string("member", [], "flags of one run", flag_values=given)
    flags.DEFINE_bool("or_alone", False, "one by one if need be", flag_values=given)
    common = cli.parse(given, rest, known_only=True)
    cfgs: list[Any] = [
        cli.resolve(experiment.config, experiment.presets, [*common, *shlex.split(member)])
        for member in given["member"].value or ()
    ]
    workdirs = [cfg.workdir for cfg in cfgs]
    try:
        with directory.tidied(*workdirs):
            ends = _train(experiment, cfgs, bool(given["or_alone"].value))
    except (Exception, KeyboardInterrupt) as error:
        for workdir in workdirs:
            record(workdir, *_classify(error))
        raise
    for workdir, (code, error) in zip(workdirs, ends, strict=True):
        record(workdir, code, error)
    codes = [code for code, _ in ends]
    order = (cli.INTERRUPTED, cli.BAD_INPUT, cli.ANOMALY)
    return next((code for code in order if code in codes), cli.DONE)


def _classify(error: BaseException) -> _End:
    """How a member of a group ended that an error has ended as a whole."""
    if isinstance(error, UserError):
        return cli.BAD_INPUT, error
    if isinstance(error, cli.Interrupted):
        return cli.INTERRUPTED, None
    if isinstance(error, Exception):
        return cli.UNEXPECTED, cli.unexpected(error)
    return cli.CANCELLED, None


class _Built(NamedTuple):
    """What ``build`` makes of the members of a group.

    Attributes:
      experiment: of the first one that is not refused.
      measures: ``validate``, ``evaluate``, ``measure`` and ``pictures`` of each one that is not refused, by its index.
      refusals: of the others.
    """

    experiment: cli.Experiment
    measures: dict[int, tuple[Any, Any, Any, Any]]
    refusals: dict[int, UserError]


def _build(
    experiment: experiments.Script, cfgs: Sequence[cli.RunConfig], differing: Collection[str]
) -> _Built:
    """Builds every member that may differ from the first one, whose experiment is kept; each has a copy of the data.

    Raises:
      UserError: for what is common to all, or if all are refused.
    """
    first: cli.Experiment | None = None
    measures, refusals = {}, {}
    for i, cfg in enumerate(cfgs):
        try:
            own = first
            if own is None or own.validate or own.evaluate or {*differing} - {"seed", "workdir"}:
                own = experiment.action(cfg)
        except UserError as error:
            if {error.argument, *error.beside}.isdisjoint(differing):
                raise
            refusals[i] = error
            continue
        first = first or own
        measures[i] = own.validate, own.evaluate, own.measure, own.pictures
        del own
    if first is None:
        raise refusals[0]
    return _Built(first, measures, refusals)


def _find_differing(experiment: experiments.Script, cfgs: Sequence[cli.RunConfig]) -> list[str]:
    """The flags in which members differ.

    Raises:
      UserError: if they cannot be one program.
    """
    specs = cli.flags_of(experiment.config)
    differing = [f for f in specs if len({getattr(cfg, f) for cfg in cfgs}) > 1]
    for field in differing:
        if not specs[field].sweepable and field != "workdir":
            raise UserError("must be the same for all members of a group", argument=field)
    if cfgs[0].parallel != "jit":
        reason = f"must be off with `parallel={cfgs[0].parallel}`"
        raise UserError(reason, argument="vectorize")
    return differing


def _train(
    experiment: experiments.Script, cfgs: Sequence[cli.RunConfig], or_alone: bool
) -> list[_End]:
    """Trains the members; how each ended."""
    from bpgan.report.page import update_report
    from bpgan.runtime import train

    differing = _find_differing(experiment, cfgs)
    cfgs[0].set_up()
    built, measures, refusals = _build(experiment, cfgs, differing)
    for error in refusals.values():
        cli.fail(error)
    if built.settle is not None:
        reason = "must be off: each of these runs has a secret key of its own"
        raise UserError(reason, argument="vectorize")
    if built.title:
        print(built.title, flush=True)
    first = cfgs[min(measures)]

    def make(**values: Any) -> tuple[Any, Any]:
        found = experiment.action(dataclasses.replace(first, **values))
        return found.algorithm, found.source

    numbers = [field for field in differing if field not in ("seed", "workdir")]
    members = [
        train.RunSpec(
            dataclasses.asdict(cfgs[i]),
            cfgs[i].workdir,
            cfgs[i].seed,
            {field: getattr(cfgs[i], field) for field in numbers},
            *each[:3],
            title=built.title,
            frame=built.frame,
            pictures=each[3],
            command=cli.command_of(cfgs[i], cfgs[i].workdir),
            begin=cli.beginning_of(cfgs[i], cfgs[i].workdir, built.algorithm),
            report=update_report,
        )
        for i, each in measures.items()
    ]
    plan = train.Plan(**cli.plan_of(experiment.name, first, built))
    try:
        results = train.fit_group(make, built.source, members, plan, or_alone=or_alone)
    except train.TRACED as error:
        reason = (
            f"{experiment.name} decides by the value of one of {', '.join(differing)} what to compile;"
            f" must be off ({str(error).splitlines()[0]})"
        )
        raise UserError(reason, argument="vectorize") from None
    return _conclude(len(cfgs), dict(zip(measures, results, strict=True)), refusals)


def _conclude(count: int, results: dict[int, Any], refusals: dict[int, UserError]) -> list[_End]:
    """How each of ``count`` members ended, of which each has a result or was refused."""
    from bpgan.runtime import train

    ends: list[_End] = []
    for i in range(count):
        if i in refusals:
            ends.append((cli.BAD_INPUT, refusals[i]))
        elif isinstance(results[i], train.Anomaly):
            ends.append((cli.ANOMALY, results[i]))
        else:
            interrupted = results[i].status == "interrupted"
            ends.append((cli.INTERRUPTED if interrupted else cli.DONE, None))
    stopped = sum(code == cli.ANOMALY for code, _ in ends)
    print(f"{len(results) - stopped} of {len(results)} runs without an anomaly")
    return ends


if __name__ == "__main__":
    cli.leave(lambda: run(sys.argv[1:], ended.recorder()))
