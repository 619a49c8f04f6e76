"""Trains runs of one experiment that differ only in sweepable flags together, as ``launch.py --sweep`` asks for.

    python -m bpgan.launcher.group mnist_gan --epochs=2 --member="--seed=0 --workdir=a" --member="--seed=1 --workdir=b"

``--member`` holds the flags of one run, the others are common to all. With ``--or_alone`` they train one after the
other where they cannot be one program.
"""

import dataclasses
import importlib
import shlex
import sys
from collections.abc import Collection, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from absl import flags

from bpgan import cli
from bpgan.cli import ended
from bpgan.runtime import limits
from bpgan.types import UserError


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
    module = importlib.import_module(f"experiments.{name}")
    given = flags.FlagValues()
    flags.DEFINE_multi_string("member", [], "flags of one run", flag_values=given)
    flags.DEFINE_bool("or_alone", False, "one by one if need be", flag_values=given)
    common = cli.parse(given, rest, known_only=True)
    cfgs = [
        cli.resolve(module.Config, module.PRESETS, [*common, *shlex.split(member)])
        for member in given["member"].value or ()
    ]
    workdirs = [cfg.workdir for cfg in cfgs]
    try:
        with limits.tidied(*workdirs):
            ends = _train(name, module, cfgs, bool(given["or_alone"].value))
    except (Exception, KeyboardInterrupt) as error:
        for workdir in workdirs:
            record(workdir, *_end_by(error))
        raise
    for workdir, (code, error) in zip(workdirs, ends, strict=True):
        record(workdir, code, error)
    codes = [code for code, _ in ends]
    order = (cli.INTERRUPTED, cli.BAD_INPUT, cli.ANOMALY)
    return next((code for code in order if code in codes), cli.DONE)


def _end_by(error: BaseException) -> tuple[int, Exception | None]:
    """Exit code and cause of a member of a group that an error has ended as a whole."""
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
      measures: ``validate``, ``evaluate`` and ``measure`` of each one that is not refused, by its index.
      refusals: of the others.
    """

    experiment: cli.Experiment
    measures: dict[int, tuple[Any, Any, Any]]
    refusals: dict[int, UserError]


def _build(module: ModuleType, cfgs: Sequence[cli.RunConfig], differing: Collection[str]) -> _Built:
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
                own = module.build(cfg)
        except UserError as error:
            if {error.argument, *error.beside}.isdisjoint(differing):
                raise
            refusals[i] = error
            continue
        first = first or own
        measures[i] = own.validate, own.evaluate, own.measure
        del own
    if first is None:
        raise refusals[0]
    return _Built(first, measures, refusals)


def _train(
    name: str, module: ModuleType, cfgs: Sequence[cli.RunConfig], or_alone: bool
) -> list[tuple[int, Exception | None]]:
    """Trains the members; exit code and cause of each."""
    from bpgan.runtime import parallel, train

    specs = cli.flags_of(module.Config)
    differing = [f for f in specs if len({getattr(cfg, f) for cfg in cfgs}) > 1]
    for field in differing:
        if not specs[field].sweepable and field != "workdir":
            raise UserError("must be the same for all members of a group", argument=field)
    numbers = [field for field in differing if field not in ("seed", "workdir")]
    if cfgs[0].parallel != "jit":
        reason = f"must be off with --parallel={cfgs[0].parallel}"
        raise UserError(reason, argument="vectorize")
    parallel.setup(precision=cfgs[0].precision)
    experiment, measures, refusals = _build(module, cfgs, differing)
    for error in refusals.values():
        cli.fail(error)
    if experiment.title:
        print(experiment.title, flush=True)
    first = cfgs[min(measures)]

    def make(**values: Any) -> tuple[Any, Any]:
        built = module.build(dataclasses.replace(first, **values))
        return built.algorithm, built.source

    def member(cfg: cli.RunConfig, measures: tuple[Any, Any, Any]) -> train.Member:
        values = {field: getattr(cfg, field) for field in numbers}
        command = cli.command_of(cfg, cfg.workdir)
        return train.Member(
            dataclasses.asdict(cfg), cfg.workdir, cfg.seed, values, *measures, command
        )

    members = [member(cfgs[i], each) for i, each in measures.items()]
    plan = cli.plan_of(name, first, experiment)
    try:
        results = train.fit_group(make, experiment.source, members, or_alone=or_alone, **plan)
    except train.TRACED as error:
        raise UserError(
            f"{name} decides by the value of one of {', '.join(differing)} what to compile;"
            f" must be off ({str(error).splitlines()[0]})",
            argument="vectorize",
        ) from None
    anomalies = [result for result in results if isinstance(result, train.Anomaly)]
    print(f"{len(results) - len(anomalies)} of {len(results)} runs without an anomaly")

    def end(result: train.Result | train.Anomaly) -> tuple[int, Exception | None]:
        if isinstance(result, train.Anomaly):
            return cli.ANOMALY, result
        return (cli.INTERRUPTED if result.status == "interrupted" else cli.DONE), None

    ends = dict(zip(measures, map(end, results), strict=True))
    ends |= {i: (cli.BAD_INPUT, error) for i, error in refusals.items()}
    return [ends[i] for i in range(len(cfgs))]


if __name__ == "__main__":
    cli.leave(lambda: run(sys.argv[1:], ended.recorder()))
