"""Trains runs of one experiment that differ only in sweepable flags together, as ``launch.py --sweep`` asks for.

    python -m experiments._group mnist_gan --epochs=2 --member="--seed=0 --workdir=a" --member="--seed=1 --workdir=b"

``--member`` holds the flags of one run, the others are common to all. With ``--or_alone`` they train one after the
other where they cannot be one program.
"""

import dataclasses
import importlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from bpgan.types import UserError
from experiments import _cli as cli


def run(argv: Sequence[str]) -> int:
    """Trains the group; returns the exit code: 0, or 3 if one was stopped by an anomaly, or 75 if interrupted.

    Raises:
      UserError: for members that differ in more than sweepable flags, and as ``train.fit_group``.
    """
    from bpgan.runtime import parallel, train

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
    specs = cli.flags_of(module.Config)
    differing = [f for f in specs if len({getattr(cfg, f) for cfg in cfgs}) > 1]
    for field in differing:
        if not specs[field].sweepable and field != "workdir":
            raise UserError(f"--{field}: must be the same for all members of a group")
    numbers = [field for field in differing if field not in ("seed", "workdir")]
    first = cfgs[0]
    if first.parallel != "jit":
        raise UserError(f"--vectorize: must be off with --parallel={first.parallel}")
    parallel.setup(precision=first.precision)
    experiment = module.build(first)
    if experiment.title:
        print(experiment.title, flush=True)

    def measures(cfg: cli.RunConfig) -> tuple[Any, Any, Any]:
        """Of one member; its experiment, which has a copy of the data, is not kept."""
        own = module.build(cfg) if experiment.validate or experiment.evaluate else experiment
        return own.validate, own.evaluate, own.measure

    def make(**values: Any) -> tuple[Any, Any]:
        built = module.build(dataclasses.replace(first, **values))
        return built.algorithm, built.source

    members = [
        train.Member(
            dataclasses.asdict(cfg),
            cfg.workdir,
            cfg.seed,
            {field: getattr(cfg, field) for field in numbers},
            *measures(cfg),
            cli.command_of(cfg, cfg.workdir),
        )
        for cfg in cfgs
    ]
    try:
        results = train.fit_group(
            make,
            experiment.source,
            members,
            or_alone=bool(given["or_alone"].value),
            **cli.plan_of(name, first, experiment),
        )
    except train.TRACED as error:
        raise UserError(
            f"--vectorize: {name} decides by the value of one of {', '.join(differing)} what to compile;"
            f" must be off ({str(error).splitlines()[0]})"
        ) from None
    anomalies = [result for result in results if isinstance(result, train.Anomaly)]
    print(f"{len(results) - len(anomalies)} of {len(results)} runs without an anomaly")
    if any(isinstance(r, train.Result) and r.status == "interrupted" for r in results):
        return cli.INTERRUPTED
    return cli.ANOMALY if anomalies else cli.DONE


if __name__ == "__main__":
    cli.leave(lambda: run(sys.argv[1:]))
