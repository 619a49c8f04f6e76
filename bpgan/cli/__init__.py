"""From a frozen dataclass to a command line, and from a command line to a run.

An experiment is a module with a docstring (its first line describes it) and this, wherever its file lies::

    @dataclass(frozen=True, kw_only=True)
    class Config(cli.RunConfig):
        lr: float = cli.field(1e-3, "learning rate", low=0, exclusive_low=True, sweepable=True)
        epochs: float = 20.0  # another default; help and bounds are inherited
        penalty: cli.Parsed[Terms] = cli.field("r1=0.3", "of D", parse=penalties.parse)  # cfg.penalty.value

    PRESETS = {"smoke": dict(steps=8)}

    def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment: ...

    if __name__ == "__main__":
        cli.main(Config, build, PRESETS)

One that does not train derives its flags from ``cli.Config`` and has, in place of ``build``, ``run(cfg) -> None``.
It is started by ``python my_gan.py``, or by its name (see ``bpgan.cli.experiments``) as one of the project's own is.
Every field is a flag. An explicit flag wins over ``--preset=NAME``, which wins over the default.
Whatever is wrong with a command line is said in one line, before any device is touched.
"""

import sys

try:  # it reads its variables when it is imported, which everything below does at once
    import jax as _  # noqa: F401
except ValueError as error:
    print(f"error: the environment has a value that JAX refuses: {error}", file=sys.stderr)
    sys.exit(2)

from bpgan.cli import ended, experiments
from bpgan.cli.beginning import beginning_of
from bpgan.cli.config import (
    DELTA,
    NETWORK_PRECISION,
    SECRET_SEED,
    Config,
    Duration,
    RunConfig,
    assignments,
    flags_of,
    locates_data,
    preset_of,
    resolve,
    restart_safe,
    run_name,
    shorten,
    without_effect,
)
from bpgan.cli.flags import Flag, Parsed, columns, define, did_you_mean, field, parse, show
from bpgan.cli.help import docstring_of, help_text, is_help
from bpgan.cli.plan import Experiment, Frame, columns_of, plan_of, steps_of
from bpgan.cli.program import (
    ANOMALY,
    BAD_INPUT,
    CANCELLED,
    DONE,
    INTERRUPTED,
    UNEXPECTED,
    Anomaly,
    Interrupted,
    command_of,
    fail,
    leave,
    main,
    make_folder,
    message_of,
    run,
    unexpected,
)
from bpgan.cli.saved import (
    AVERAGE,
    CHECKPOINT,
    MOVED,
    RUN,
    TRUST,
    Restored,
    draw,
    parse_checkpoint,
    restore,
    train,
)

__all__ = [
    "ANOMALY",
    "AVERAGE",
    "BAD_INPUT",
    "CANCELLED",
    "CHECKPOINT",
    "DELTA",
    "DONE",
    "INTERRUPTED",
    "MOVED",
    "NETWORK_PRECISION",
    "RUN",
    "SECRET_SEED",
    "TRUST",
    "UNEXPECTED",
    "Anomaly",
    "Config",
    "Duration",
    "Experiment",
    "Flag",
    "Frame",
    "Interrupted",
    "Parsed",
    "Restored",
    "RunConfig",
    "assignments",
    "beginning_of",
    "columns",
    "columns_of",
    "command_of",
    "define",
    "did_you_mean",
    "docstring_of",
    "draw",
    "ended",
    "experiments",
    "fail",
    "field",
    "flags_of",
    "help_text",
    "is_help",
    "leave",
    "locates_data",
    "main",
    "make_folder",
    "message_of",
    "parse",
    "parse_checkpoint",
    "plan_of",
    "preset_of",
    "resolve",
    "restart_safe",
    "restore",
    "run",
    "run_name",
    "shorten",
    "show",
    "steps_of",
    "train",
    "unexpected",
    "without_effect",
]
