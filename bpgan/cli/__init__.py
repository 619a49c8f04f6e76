"""From a frozen dataclass to a command line, and from a command line to a run.

An experiment is a module with a docstring (its first line describes it) and this::

    @dataclass(frozen=True, kw_only=True)
    class Config(cli.RunConfig):
        lr: float = cli.field(1e-3, "learning rate", low=0, exclusive_low=True, sweepable=True)
        epochs: float = 20.0  # another default; help and bounds are inherited

    PRESETS = {"smoke": dict(steps=8)}

    def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment: ...

    if __name__ == "__main__":
        cli.main(Config, build, PRESETS)

One that does not train derives its flags from ``cli.Config`` and has, in place of ``build``, ``run(cfg) -> None``.
Every field is a flag. An explicit flag wins over ``--preset=NAME``, which wins over the default.
Whatever is wrong with a command line is said in one line, before any device is touched.
"""

import ast
import dataclasses
import difflib
import importlib
import inspect
import math
import os
import pathlib
import re
import shlex
import sys
import tempfile
import textwrap
import traceback
import typing
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
from absl import flags

from bpgan.cli import ended
from bpgan.measures import mean_and_deviation
from bpgan.runtime import environment, limits, peers
from bpgan.types import Algorithm, Source, UserError, stream

DONE, UNEXPECTED, BAD_INPUT, ANOMALY, INTERRUPTED, CANCELLED = 0, 1, 2, 3, 75, 130
"""Exit codes. ``INTERRUPTED`` (EX_TEMPFAIL) promises that the same command continues the run: requeue it."""

SWEEP_FLAGS = ("samples", "search", "search_seed", "aim", "budget", "vectorize")
"""Flags of the launcher beside ``--sweep``; an experiment that does not train may have others of these names."""

LAUNCHER_FLAGS = (
    "experiment", "list", "report", "report_metric", "report_to", "sweep", *SWEEP_FLAGS,
    "jobs", "processes", "root", "dry_run",
    "slurm", "slurm_partition", "slurm_time", "slurm_gpus", "slurm_cpus", "slurm_memory", "slurm_nodes",
    "slurm_option",
)  # fmt: skip
_RESERVED = {"help", "preset", "flagfile", "undefok", *LAUNCHER_FLAGS}
_LONG = 201  # characters of a value, beyond which a message shows no more of it
_SIGPIPE = 141  # as a shell says it of programs that the signal ends
_MAX_STEP = 2**31 - 1  # the step is an int32 on the device
_HELP = re.compile(r"-h|--?help(short|full)?")


show = ended.shown


def mean_of(values: Sequence[float]) -> str:
    """For a table: the mean, and of several finite values their standard deviation; empty if there is none."""
    if not values:
        return ""
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.4g}" if math.isnan(deviation) else f"{mean:.4g} ± {deviation:.2g}"


class Interrupted(Exception):
    """A part of an experiment was interrupted and can be resumed; the same command goes on with it."""


class Anomaly(Exception):
    """A run was stopped by an anomaly, which the message names."""


class Experiment(NamedTuple):
    """What ``build(cfg, axis_name)`` returns.

    Attributes:
      algorithm: what is trained.
      source: what it is trained on.
      evaluate: ``evaluate(state) -> {name: value}`` on the host after the last step; its values
        are stored in ``result.json``.
      title: one line for people.
      validate: ``validate(state) -> {name: value}`` on the host every ``--eval_every``, logged as ``eval/name``; on
        data that are neither trained on nor tested on.
      prefers: ``min:eval/name`` or ``max:eval/name``, by which ``--eval_every`` keeps the best checkpoint where
        ``--keep`` names no metric.
      measure: what ``validate`` and ``evaluate`` measure with, such as the hash of a feature net, by name. It is kept
        in ``config.json``, and a run does not go on with another one.
    """

    algorithm: Algorithm
    source: Source
    evaluate: Callable[[Any], dict[str, float]] | None = None
    title: str = ""
    validate: Callable[[Any], dict[str, float]] | None = None
    prefers: str = ""
    measure: Mapping[str, str] = MappingProxyType({})


def field(
    default: Any,
    help: str = "",
    *,
    choices: Iterable[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    exclusive_low: bool = False,
    restart_safe: bool = False,
    sweepable: bool = False,
    locates_data: bool = False,
    check: Callable[[Any], object] | None = None,
) -> Any:
    """A dataclass field that becomes a flag, annotated ``bool``, ``int``, ``float`` or ``str``.

    What is left out is inherited from the field of the same name in a base class.

    Args:
      default: the value without flag and preset.
      help: one sentence for ``--help``.
      choices: the allowed values.
      low, high: bounds, both allowed values themselves unless ``exclusive_low``.
      restart_safe: an interrupted run may be resumed with another value.
      sweepable: ``build`` never branches on it in Python, so it may be a tracer.
      locates_data: it only says where the data are: an interrupted run may be resumed with another value if they are
        the same there.
      check: called with the value; raises ValueError("must be ...") to refuse it.
    """
    given = dict(
        help=help,
        choices=tuple(choices) if choices is not None else None,
        low=low,
        high=high,
        exclusive_low=exclusive_low,
        restart_safe=restart_safe,
        sweepable=sweepable,
        locates_data=locates_data,
        check=check,
    )
    metadata = {k: v for k, v in given.items() if v is not None and v is not False and v != ""}
    return dataclasses.field(default=default, metadata=metadata)


def duration(text: str, steps_per_epoch: float) -> int:
    """How many steps a text asks for; 0 means never.

    ``"500"`` is 500 steps, ``"2.5ep"`` is 2.5 epochs rounded to whole steps, at least one.

    Raises:
      ValueError: for anything else.
    """
    match = re.fullmatch(r"(\d+)|(\d+\.?\d*|\.\d+)ep", text, re.ASCII)
    if not match:
        raise ValueError("must be steps (500), epochs (2.5ep) or 0 for never")
    number, of_epochs = float(match[1] or match[2]), match[1] is None
    if number > _MAX_STEP:
        raise ValueError(f"must be at most {_MAX_STEP}, or 0 for never")
    if number == 0 or not of_epochs:
        return int(number)
    return max(1, round(min(number * steps_per_epoch, _MAX_STEP)))


def assignments(text: str) -> list[str]:
    """The parts of ``net=mlp latents=10``, flags of another command in one of ours.

    Raises:
      ValueError: for anything else.
    """
    try:
        parts = shlex.split(text)
    except ValueError:  # of a quotation that does not end
        parts = None
    if parts is None or not all(re.fullmatch(r"[A-Za-z]\w*=.*", p, re.DOTALL) for p in parts):
        raise ValueError("must be NAME=VALUE, several separated by spaces, quoted as in a shell")
    return parts


def _keep(text: str) -> object:
    from bpgan.runtime.checkpoint import Keep

    return Keep.parse(text)


def _feed(text: str) -> object:
    from bpgan.data import parse_feed

    return parse_feed(text)


def _duration_field(default: str, help: str) -> Any:
    return field(default, help, restart_safe=True, check=lambda text: duration(text, 1.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What flags are made of, and the one that every experiment has."""

    workdir: str = field(
        "",
        "run directory; empty: runs/<experiment>/<preset and changed flags>",
        restart_safe=True,
        check=environment.check_path,
    )

    def idle(self) -> dict[str, str]:
        """Flags that change nothing here, which is worth a warning, and of each the flag whose value is why."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """The fields of every experiment that trains; a subclass may redeclare one to change its default."""

    seed: int = field(0, "root of all randomness", low=0, high=2**32 - 1, sweepable=True)
    epochs: float = field(1.0, "passes over the data", low=0, exclusive_low=True, restart_safe=True)
    steps: int = field(
        0, "steps to train, instead of --epochs if > 0", low=0, high=_MAX_STEP, restart_safe=True
    )
    pause_at: float = field(
        1.0,
        "share of the run after which to stop for now; the same command with a greater one goes on",
        low=0,
        high=1,
        exclusive_low=True,
        restart_safe=True,
    )
    batch_size: int = field(128, "examples per step, over all devices", low=1)
    log_every: str = _duration_field("1ep", "interval of log lines: 1ep, 500 (steps), 0 (never)")
    sample_every: str = _duration_field("5ep", "interval of sample grids")
    checkpoint_every: str = _duration_field("10ep", "interval of checkpoints; the end is saved too")
    eval_every: str = field(
        "0",
        "interval of evaluations on a tenth of the training data, then held out of training",
        check=lambda text: duration(text, 1.0),
    )
    keep: str = field(
        "3",
        "checkpoints to keep: 3 (the newest) or 3,best=1,min:METRIC as last logged (or max:)",
        restart_safe=True,
        check=_keep,
    )
    feed: str = field(
        "auto",
        "where the data lie: memory, stream or stream:WORKERS (read from disk ahead of use), auto: by size",
        restart_safe=True,
        check=_feed,
    )
    on_anomaly: str = field(
        "flag",
        "on a loss spike or collapsed samples: flag it and go on, or stop; NaN always stops",
        choices=("flag", "stop"),
        restart_safe=True,
    )
    parallel: str = field(
        "jit", "how a batch is split over devices", choices=("jit", "pmap"), restart_safe=True
    )
    precision: str = field("float32", "arithmetic", choices=("float32", "float64"))
    tensorboard: bool = field(True, "write TensorBoard event files", restart_safe=True)


AnyConfig = TypeVar("AnyConfig", bound=Config)
Presets = Mapping[str, Mapping[str, Any]]


class Flag(NamedTuple):
    """One field of a config: its flag, and what it allows."""

    name: str
    type: type
    default: Any
    help: str = ""
    choices: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None
    exclusive_low: bool = False
    restart_safe: bool = False
    sweepable: bool = False
    locates_data: bool = False
    check: Callable[[Any], object] | None = None

    def parse(self, text: str) -> Any:
        """The value written as ``text``. Raises UserError, saying what is allowed."""
        value: Any = text
        if self.type is bool:
            value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
        elif self.type in (int, float):
            try:
                value = self.type(text)
            except ValueError:
                value = None
        elif text.startswith("--"):  # `--workdir --epochs=5`: the value was forgotten
            self._check(text)  # can say which
            raise UserError("needs a value", argument=self.name, value=text)
        return self.validate(value, text)

    def validate(self, value: Any, text: str | None = None) -> Any:
        """``value``, or what is made of ``text``, in the field's type. Raises UserError, saying what is allowed."""
        if self.type is float and type(value) is int:
            value = float(value)
        good = type(value) is self.type
        if good and self.type is float:
            good = math.isfinite(value)
        if good and self.low is not None:
            good = value > self.low if self.exclusive_low else value >= self.low
        if good and self.high is not None:
            good = value <= self.high
        if good and self.choices is not None:
            good = value in self.choices
        if not good:
            given = value if text is None else text
            hint = did_you_mean(show(given), map(show, self.choices)) if self.choices else ""
            raise UserError(f"must be {self.allowed}{hint}", argument=self.name, value=given)
        self._check(value)
        return value

    def _check(self, value: Any) -> None:
        if self.check is None:
            return
        try:
            self.check(value)
        except ValueError as error:
            raise UserError(str(error), argument=self.name, value=value) from None

    @property
    def bounds(self) -> str:
        """``> 0``, ``in [1, 10]``, ``one of a, b``; empty where everything is allowed."""
        if self.choices is not None:
            return "one of " + ", ".join(map(show, self.choices))
        if self.low is not None and self.high is not None:
            return f"in {'(' if self.exclusive_low else '['}{self.low}, {self.high}]"
        if self.low is not None:
            return f"{'>' if self.exclusive_low else '>='} {self.low}"
        return f"<= {self.high}" if self.high is not None else ""

    @property
    def allowed(self) -> str:
        """What a value must be, in words."""
        if self.choices is not None:
            return self.bounds
        kind = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        bounds = self.bounds or ("that is finite" if self.type is float else "")
        return f"{kind[self.type]} {bounds}".strip()


def flags_of(config_class: type[Config]) -> dict[str, Flag]:
    """The flags of a config class by name, those it declares itself first.

    Raises:
      TypeError: for a field no flag can be made of.
    """
    types = typing.get_type_hints(config_class)
    fields = dataclasses.fields(config_class)
    result = {}
    reserved = _RESERVED if issubclass(config_class, RunConfig) else _RESERVED - set(SWEEP_FLAGS)
    for f in sorted(fields, key=lambda f: f.name in RunConfig.__dataclass_fields__):
        if f.name in reserved or hasattr(flags.FlagValues, f.name):
            raise TypeError(f"{config_class.__name__}.{f.name}: the name is taken by another flag")
        if types[f.name] not in (bool, int, float, str):
            raise TypeError(f"{config_class.__name__}.{f.name}: must be a bool, int, float or str")
        if f.default is dataclasses.MISSING:
            raise TypeError(f"{config_class.__name__}.{f.name}: needs a default")
        inherited: dict[str, Any] = {}
        for base in reversed(config_class.__mro__):
            declared = base.__dict__.get("__dataclass_fields__", {}).get(f.name)
            inherited |= declared.metadata if declared else {}
        result[f.name] = Flag(f.name, types[f.name], f.default, **inherited)
    return result


def run_name(config: Config, presets: Presets) -> str:
    """A directory name for a run: the preset it is nearest to, and each flag that differs from that.

    Only flags that may not change on resume count, so the same command, or a longer one, finds its own run.
    """
    specs = [f for f in flags_of(type(config)).values() if not f.restart_safe]
    names = {}
    for name, preset in {"default": {}, **presets}.items():
        base = {spec.name: preset.get(spec.name, spec.default) for spec in specs}
        changed = {k: getattr(config, k) for k, v in base.items() if getattr(config, k) != v}
        names[name] = "_".join([name, *(f"{k}={show(v)}" for k, v in changed.items())])
    name = re.sub(r"[^\w.,:=+-]", "-", min(names.values(), key=lambda n: n.count("=")))
    return shortened(name, 100)


def shortened(name: str, limit: int) -> str:
    """A file name of at most ``limit`` bytes; a checksum stands for what is cut."""
    raw = name.encode()
    if len(raw) <= limit:
        return name
    return f"{raw[: limit - 9].decode(errors='ignore')}_{zlib.crc32(raw):08x}"


def restart_safe(config_class: type[Config]) -> frozenset[str]:
    """Names of the fields that may change when a run is resumed."""
    return frozenset(f.name for f in flags_of(config_class).values() if f.restart_safe)


def locates_data(config_class: type[Config]) -> frozenset[str]:
    """Names of the fields that may change when a run is resumed on the same data in another place."""
    return frozenset(f.name for f in flags_of(config_class).values() if f.locates_data)


def resolve(
    config_class: type[AnyConfig],
    presets: Presets,
    argv: Sequence[str],
    *,
    other_flags: Iterable[str] = (),
) -> AnyConfig:
    """The config that a command line asks for. Touches no global state.

    Args:
      config_class: a frozen dataclass of flags.
      presets: ``{name: {field: value}}``, chosen by ``--preset=name``.
      argv: as in ``sys.argv[1:]``. The last of equal flags counts; ``--flagfile=F`` reads flags
        from a file, in its place.
      other_flags: more names that may be suggested in place of an unknown flag.

    Raises:
      UserError: for an unknown flag or preset, a value that is not allowed, a positional argument.
    """
    chosen, explicit = _read(config_class, presets, argv, other_flags)
    return config_class(**(chosen | explicit))


def without_effect(
    config_class: type[Config], presets: Presets, argv: Sequence[str]
) -> dict[str, str]:
    """Of the flags on a command line, those that change nothing, and why; neither defaults nor presets are blamed."""
    chosen, explicit = _read(config_class, presets, argv)
    cfg = config_class(**(chosen | explicit))
    return {
        name: f"has no part in --{why}={show(getattr(cfg, why))}"
        for name, why in cfg.idle().items()
        if name in explicit and explicit[name] != chosen[name]
    }


def _read(
    config_class: type[Config],
    presets: Presets,
    argv: Sequence[str],
    other_flags: Iterable[str] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every field's value by preset or default, and the values of the flags that are given."""
    specs = flags_of(config_class)
    values = flags.FlagValues()
    for spec in specs.values():
        define(values, spec)
    values["preset"] = flags.Flag(flags.ArgumentParser(), None, "preset", None, "preset")
    rest = parse(values, argv, known_only=False, other_flags=other_flags)
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    preset: Mapping[str, Any] = {}
    if values["preset"].present:
        name = typing.cast(str, values["preset"].value)
        if name not in presets:
            hint = did_you_mean(name, presets)
            allowed = ", ".join(presets)
            raise UserError(f"must be one of {allowed}{hint}", argument="preset", value=name)
        preset = presets[name]
    chosen = {name: spec.default for name, spec in specs.items()}
    for name, value in preset.items():
        if name not in specs:
            raise TypeError(f"{config_class.__name__} has no field {name!r}, which a preset sets")
        chosen[name] = value
    explicit: dict[str, Any] = {n: values[n].value for n in specs if values[n].present}
    if "epochs" in explicit and "steps" in preset and issubclass(config_class, RunConfig):
        chosen["steps"] = 0  # else the preset's would win over what was asked for
    for name, spec in specs.items():
        if name not in explicit:
            try:
                chosen[name] = spec.validate(chosen[name])
            except UserError as error:
                reason = f"{error.reason} (the value is that of the preset or default)"
                raise UserError(reason, argument=name, value=chosen[name]) from None
    return chosen, explicit


def define(values: flags.FlagValues, spec: Flag) -> None:
    """Adds a flag whose value is None, and whose ``present`` is 0, until it is given."""
    values[spec.name] = flags.Flag(
        _Parser(spec), None, spec.name, None, spec.help, boolean=spec.type is bool
    )


class _Parser(flags.ArgumentParser):
    """Reads a flag's text; absl lets the UserError pass."""

    def __init__(self, spec: Flag):
        self._spec = spec

    def parse(self, argument: str) -> Any:
        return self._spec.parse(argument)


def parse(
    values: flags.FlagValues,
    argv: Sequence[str],
    *,
    known_only: bool,
    other_flags: Iterable[str] = (),
) -> list[str]:
    """Sets ``values`` from ``argv`` and returns the arguments left; errors become ``UserError``."""
    try:
        return values(["", *argv], known_only=known_only)[1:]
    except flags.UnrecognizedFlagError as error:
        hint = did_you_mean(error.flagname, [*values, *other_flags], "--")
        hint = hint or "; --help lists the flags"
        raise UserError(f"unknown flag{hint}", argument=error.flagname) from None
    except flags.CantOpenFlagFileError as error:
        reason = str(error).replace("ERROR:: Unable", "unable")
        raise UserError(reason, argument="flagfile") from None
    except (flags.Error, ValueError, UnicodeDecodeError) as error:
        message = str(error).removeprefix("flag ")
        if missing := re.fullmatch(r"Missing value for flag -*(.*)", message):
            raise UserError("needs a value", argument=missing[1]) from None
        raise UserError(message) from None


def did_you_mean(word: str, names: Iterable[str], prefix: str = "") -> str:
    """``; did you mean NAME?`` for the nearest of ``names``, or nothing if none is near.

    Names that contain the word come first. Others are near if they are nearly the same, or begin alike and are similar.
    """
    word, names = word.replace("-", "_"), list(names)
    near = sorted((name for name in names if len(word) > 2 and word in name), key=len)
    near += difflib.get_close_matches(word, names, n=1, cutoff=0.75)
    near += difflib.get_close_matches(word, [n for n in names if n[:2] == word[:2]], n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def help_text(config_class: type[Config], presets: Presets, module: ModuleType) -> str:
    """What ``--help`` prints: the docstring, the experiment's flags and presets, general flags."""
    own, general = [], []
    trains = issubclass(config_class, RunConfig)
    shared = (RunConfig if trains else Config).__dataclass_fields__
    for spec in flags_of(config_class).values():
        bounds = f" ({spec.bounds})" if spec.bounds else ""
        mark = " *" if trains and spec.restart_safe else ""
        row = (f"--{spec.name}={show(spec.default)}", spec.help + bounds + mark)
        (general if spec.name in shared else own).append(row)
    own.append(("--preset=NAME", "start from other defaults (explicit flags still win):"))
    for name, preset in presets.items():
        own.append(("", f"{name}: " + " ".join(f"--{k}={show(v)}" for k, v in preset.items())))
    general.append(("--flagfile=FILE", "read flags from a file, one a line"))
    lines = [docstring_of(module), "", "Flags of this experiment:", *columns(own)]
    lines += ["", "Flags of every experiment:", *columns(general), ""]
    lines += ["Values shown are defaults."]
    lines[-1] += " * may differ when an interrupted run is resumed." * trains
    return "\n".join(lines)


def docstring_of(module: ModuleType) -> str:
    """The docstring of a module, which under ``python -OO`` is in its source only; empty if there is none."""
    try:
        return ast.get_docstring(ast.parse(inspect.getsource(module))) or ""
    except OSError:  # no source: python -c
        return inspect.cleandoc(module.__doc__ or "")


def is_help(argv: Sequence[str]) -> bool:
    """Whether a command line asks for help, wherever in it."""
    return any(_HELP.fullmatch(arg) for arg in argv)


def columns(rows: Sequence[tuple[str, str]], width: int = 100) -> list[str]:
    """Lines with the first texts on the left and the second ones aligned and wrapped."""
    left = 4 + max((len(first) for first, _ in rows if len(first) <= 36), default=0)
    lines = []
    for first, second in rows:
        start = f"  {first}"
        if len(start) > left - 2:
            lines.append(start)
            start = ""
        indent = " " * left
        lines += textwrap.wrap(
            second or "-", width, initial_indent=start.ljust(left), subsequent_indent=indent
        )
    return lines


def run(
    config_class: type[AnyConfig],
    build: Callable[..., Experiment | None],
    presets: Presets,
    argv: Sequence[str],
    record: ended.Record = ended.ignore,
) -> int:
    """Runs the experiment that ``argv`` asks for; returns the exit code.

    0 done, 2 a mistake of the user, 3 stopped by an anomaly, 75 interrupted and resumable, 130 cancelled
    by Ctrl-C without saving. Anything unexpected is raised.

    Args:
      config_class: of the flags. A subclass of ``RunConfig`` is trained; any other is handed to ``build``, and that is
        all.
      build: ``build(cfg, axis_name) -> Experiment``, or for an experiment that does not train ``run(cfg) -> None``,
        with ``cfg.workdir`` filled in.
      presets, argv: see ``resolve``.
      record: what is told how the run ended.
    """
    module = sys.modules[config_class.__module__]  # ``build`` may be another experiment's
    name = _experiment_name(module)
    try:
        if is_help(argv):
            print(help_text(config_class, presets, module))
            return DONE
        cfg = resolve(config_class, presets, argv)
        idle = without_effect(config_class, presets, argv)
    except UserError as error:
        return fail(error)
    workdir = _workdir(name, cfg, presets)
    code, cause = DONE, None
    try:
        with limits.tidied(workdir), limits.disk_errors(), limits.memory_errors():
            if isinstance(cfg, RunConfig):
                make = typing.cast(Callable[..., Experiment], build)
                code = _train(name, cfg, make, presets, idle)
            else:
                build(dataclasses.replace(cfg, workdir=workdir))
    except UserError as error:
        code, cause = fail(error), error
    except Anomaly as error:
        code, cause = fail(error, ANOMALY), error
    except Interrupted:
        code = INTERRUPTED
    except KeyboardInterrupt:
        code = CANCELLED
    except Exception as error:
        cause = _fault_of_devices()
        if cause is None:
            record(workdir, UNEXPECTED, unexpected(error))
            raise
        code = fail(cause)
    record(workdir, code, cause)
    return code


def unexpected(error: Exception) -> Exception:
    """An error that is a bug, as it is recorded: with its kind."""
    return Exception(f"{type(error).__name__}: {error}")


def main(
    config_class: type[AnyConfig], build: Callable[..., Experiment | None], presets: Presets
) -> NoReturn:
    """The whole ``__main__`` of an experiment: ``run`` with the process's arguments, then exits."""
    leave(lambda: run(config_class, build, presets, sys.argv[1:], ended.recorder()))


def leave(program: Callable[[], int]) -> NoReturn:
    """Exits with the code that ``program`` returns, or that of what it raises; no traceback for what is no bug.

    If it is one of several processes that train a run, the others then end with the same code.
    """
    environment.open_streams()
    try:
        ended.follow_parent()
        with limits.disk_errors(), limits.memory_errors():
            code = program()
        sys.stdout.flush()
    except UserError as error:
        code = fail(error)
    except Interrupted:
        code = INTERRUPTED
    except KeyboardInterrupt:
        code = CANCELLED
    except BrokenPipeError:  # nobody reads on, as after `| head`
        environment.silence(sys.stdout)
        code = _SIGPIPE
    except Exception as error:
        fault = _fault_of_devices()
        code = fail(fault) if fault else _trace(error)
    if code == CANCELLED:  # the threads of a compilation would crash the interpreter's own exit
        peers.end(INTERRUPTED, "was interrupted")
        peers.leave_at_once(code)
    if decided := peers.end(code, "has ended"):
        peers.leave_at_once(decided)
    sys.exit(code)


def _fault_of_devices() -> UserError | None:
    """What is wrong with the devices, if that may be why something failed; None if it is a bug."""
    from bpgan.runtime import parallel

    try:
        parallel.find_devices()  # what does not train asks for them when it needs them
    except UserError as fault:
        return fault
    return None


def _trace(error: Exception) -> int:
    """Prints the traceback of a bug, or of the NaN that JAX_DEBUG_NANS finds; returns the exit code."""
    traceback.print_exception(error)
    code = ANOMALY if isinstance(error, FloatingPointError) else UNEXPECTED
    peers.end(code, f"{type(error).__name__}: {error}")
    return code


def fail(error: Exception, code: int = BAD_INPUT) -> int:
    """Prints ``error: ...`` as one line on stderr, and tells the other processes of the run; returns ``code``."""
    reason = " ".join(message_of(error).splitlines())
    environment.complain(f"error: {reason}")
    peers.end(code, reason)
    return code


def message_of(error: Exception) -> str:
    """What an error says on a command line, where an argument is a flag: ``--argument=value: reason``."""
    if isinstance(error, UserError) and error.argument:
        value = "" if error.value is None else f"={show(error.value)}"
        if len(value) > _LONG:
            value = value[:_LONG] + "..."
        return f"--{error.argument}{value}: {error.reason}"
    return str(error)


def _experiment_name(module: ModuleType) -> str:
    if module.__spec__ is not None:  # `python -m experiments.x` calls the module __main__
        return module.__spec__.name.rpartition(".")[2]
    file = getattr(module, "__file__", None)  # none: python -c
    return pathlib.Path(file or "experiment").stem


def _workdir(name: str, cfg: Config, presets: Presets) -> str:
    return os.path.expanduser(cfg.workdir or f"runs/{name}/{run_name(cfg, presets)}")


def _train(
    name: str,
    cfg: RunConfig,
    build: Callable[..., Experiment],
    presets: Presets,
    idle: Mapping[str, str],
) -> int:
    # Heavy, and of no use to --help or a mistaken flag.
    from bpgan.runtime import parallel, train
    from bpgan.runtime.run import fitted

    changed = _changed(cfg)
    parallel.setup(precision=cfg.precision)

    def say(text: str) -> None:
        if parallel.is_lead():
            print(fitted(text), flush=True)

    say(" ".join([name, *changed]))
    for flag, why in idle.items():
        say(f"warning: --{flag}={show(getattr(cfg, flag))} {why}")
    experiment = build(cfg, axis_name=parallel.axis_name(cfg.parallel))
    if experiment.title:
        say(experiment.title)
    try:
        result = train.fit(
            experiment.algorithm,
            experiment.source,
            config=dataclasses.asdict(cfg),
            workdir=pathlib.Path(_workdir(name, cfg, presets)),
            seed=cfg.seed,
            mode=cfg.parallel,
            validate=experiment.validate,
            evaluate=experiment.evaluate,
            measure=experiment.measure,
            command=command_of(cfg, _workdir(name, cfg, presets)),
            **plan_of(name, cfg, experiment),
        )
    except train.Anomaly as error:
        raise Anomaly(str(error)) from None
    except train.Lost as error:
        return fail(error, INTERRUPTED)
    if result.evaluated:
        say("\n".join(columns(_rows(result.evaluated))))
    return INTERRUPTED if result.status == "interrupted" else DONE


def _changed(cfg: Config) -> list[str]:
    """The flags that make a config of the defaults."""
    return [
        f"--{flag.name}={show(getattr(cfg, flag.name))}"
        for flag in flags_of(type(cfg)).values()
        if getattr(cfg, flag.name) != flag.default
    ]


def command_of(cfg: RunConfig, workdir: str) -> str:
    """What a shell repeats a run with, however it was begun: by its flags, a preset, a launcher or a notebook.

    Empty if the experiment is in no file.
    """
    import jax

    module = sys.modules[type(cfg).__module__]
    file, processes = getattr(module, "__file__", None), jax.process_count()
    if module.__spec__ is None:
        program = ["python", file] if file else []
    elif processes > 1 and module.__spec__.parent == "experiments":
        program = ["python", "-m", "launch", f"--experiment={_experiment_name(module)}"]
        program += [f"--processes={processes}"]
    else:
        program = ["python", "-m", module.__spec__.name]
    flags = _changed(dataclasses.replace(cfg, workdir=workdir))
    return shlex.join([*program, *flags]) if program else ""


def steps_of(cfg: RunConfig, per_epoch: float) -> int:
    """The steps of a whole run, at least one.

    Raises:
      UserError: for more than a step counter holds.
    """
    steps = cfg.steps or cfg.epochs * per_epoch
    if steps > _MAX_STEP:
        reason = f"asks for {steps:.6g} steps; must be at most {_MAX_STEP}"
        raise UserError(reason, argument="epochs", value=cfg.epochs, beside=["batch_size"])
    return max(1, round(steps))


def plan_of(name: str, cfg: RunConfig, experiment: Experiment) -> dict[str, Any]:
    """The fields of ``train.Plan`` that the flags ask for."""
    per_epoch = experiment.source.steps_per_epoch
    steps = steps_of(cfg, per_epoch)
    eval_every = duration(cfg.eval_every, per_epoch)
    if eval_every and experiment.validate is None:
        reason = f"{name} has nothing to evaluate; must be 0"
        raise UserError(reason, argument="eval_every", value=cfg.eval_every)
    keep = _kept(cfg, experiment)
    if keep.metric.startswith("eval/") and not eval_every:
        reason = f"{keep.metric} is found by --eval_every, which is {cfg.eval_every}; must be > 0"
        raise UserError(reason, argument="keep", value=cfg.keep, beside=["eval_every"])
    return dict(
        name=name,
        restart_safe=restart_safe(type(cfg)),
        locates_data=locates_data(type(cfg)),
        steps=steps,
        log_every=duration(cfg.log_every, per_epoch),
        sample_every=duration(cfg.sample_every, per_epoch),
        checkpoint_every=duration(cfg.checkpoint_every, per_epoch),
        eval_every=eval_every,
        pause=max(1, round(cfg.pause_at * steps)) if cfg.pause_at < 1 else 0,
        keep=keep,
        on_anomaly=cfg.on_anomaly,
        tensorboard=cfg.tensorboard,
    )


def _rows(found: Mapping[str, float]) -> list[tuple[str, str]]:
    """Names and values; ``name/known``, what theory says of ``name``, stands beside it."""
    rows = []
    for name, value in found.items():
        base = name.removesuffix("/known")
        if base != name and base in found:
            continue
        known = found.get(f"{name}/known")
        text = f"{value:.6g}"
        rows.append((name, text if known is None else f"{text:<12} known {known:.6g}"))
    return rows


def _kept(cfg: RunConfig, experiment: Experiment) -> Any:
    """Which checkpoints a run keeps: the best, too, if it is evaluated while it trains."""
    from bpgan.runtime import checkpoint

    keep = checkpoint.Keep.parse(cfg.keep)
    if keep.metric or not experiment.prefers or not duration(cfg.eval_every, 1.0):
        return keep
    return checkpoint.Keep.parse(f"{cfg.keep},best=1,{experiment.prefers}")


def writable(folder: str | os.PathLike, argument: str, value: str) -> pathlib.Path:
    """The folder, made if need be. For before anything is computed that is to be written there.

    Raises:
      UserError: of the argument that names it, if no file can be made in it.
    """
    path = pathlib.Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()  # on some disks only a try tells
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise UserError(reason, argument=argument, value=value) from None
    return path


class Restored(NamedTuple):
    """A run as it was saved: its experiment's name and config, what ``build`` makes of them, the state and its step."""

    name: str
    config: RunConfig
    experiment: Experiment
    state: Any
    step: int


def restored(
    workdir: str | os.PathLike, which: str = "newest", changes: Sequence[str] = ()
) -> Restored:
    """A checkpoint of a run; nothing in the directory is changed, and it may be training.

    Args:
      workdir: the run directory.
      which: ``newest`` (of those that are sound), ``best`` by the metric of the run's ``--keep``, or a step.
      changes: ``NAME=VALUE``, flags that are other than the run's, of those that may differ when it is resumed, or
        ``dataset``, where the run's data are now.

    Raises:
      UserError: if there is no run or no sound checkpoint, the run's flags are not those of this version or have values
        that are not allowed, or where a change says that the data are there are others.
    """
    from bpgan.runtime import checkpoint, parallel, records

    path = pathlib.Path(workdir).expanduser()
    record = records.read_run(path / "config.json")
    if record is None:
        raise UserError(f"{path}: holds no run of an experiment (config.json)")
    name, values = record.experiment, dict(record.config)
    try:
        module = importlib.import_module(f"experiments.{name}")
        build, specs = module.build, flags_of(module.Config)
    except (ValueError, TypeError, ImportError, AttributeError):
        raise UserError(f"{path}: holds no run of an experiment (config.json)") from None
    if unknown := sorted(set(values) - set(specs)):
        raise UserError(f"{path}: was made by another version, with --{unknown[0]}")
    for flag, value in values.items():
        try:
            values[flag] = specs[flag].validate(value)
        except UserError as error:
            given = f"--{flag}={show(value)} (config.json)"
            raise UserError(f"{path}: {given}: {error.reason}") from None
    cfg = module.Config(**values | _changed_values(name, specs, changes))
    located = locates_data(module.Config)
    parallel.setup(precision=cfg.precision)
    try:
        experiment = build(cfg)
    except UserError as error:
        hint = f"; if the data have moved, --flags={error.argument}=... says where to"
        moved = hint * (error.argument in located)
        raise UserError(f"{path}: {message_of(error)}{moved}") from None
    before, now = record.data, experiment.source.fingerprint
    for text in changes:
        if text.partition("=")[0] in located and now != before:
            reason = f"other data than those of the run {path}"
            raise UserError(reason, argument="flags", value=text)
    program = parallel.compile(experiment.algorithm, experiment.source, seed=cfg.seed)
    if not (path / "checkpoints").is_dir():
        raise UserError(f"{path}: has no checkpoint")
    keep = _kept(cfg, experiment)
    if which == "best" and not keep.metric:
        raise UserError(f"{path}: keeps no best checkpoint (--eval_every and --keep do)")
    checkpoints = checkpoint.Checkpoints(
        path / "checkpoints", run=record.run, keep=keep, read_only=True
    )
    step = int(which) if which.isdecimal() else None
    found = checkpoints.restore(program.abstract, best=which == "best", step=step)
    checkpoints.close()
    if found is None:
        kind = {"newest": "checkpoint", "best": "checkpoint that was evaluated"}.get(
            which, f"checkpoint of step {which}"
        )
        raise UserError(f"{path}: has no sound {kind}")
    return Restored(name, cfg, experiment, found[1].state, found[0])


def _changed_values(name: str, specs: Mapping[str, Flag], changes: Sequence[str]) -> dict[str, Any]:
    """The values of ``NAME=VALUE``, flags of a run of the experiment ``name`` that may be changed; else UserError."""
    may_change = sorted(f.name for f in specs.values() if f.restart_safe or f.locates_data)
    values = {}
    for text in changes:
        flag, _, value = text.partition("=")
        if flag not in may_change:
            reason = f"cannot be changed in a run of {name}; only {', '.join(may_change)}"
            raise UserError(reason, argument="flags", value=text)
        try:
            values[flag] = specs[flag].parse(value)
        except UserError as error:
            raise UserError(error.reason, argument="flags", value=text) from None
    return values


def trained(
    experiment: Experiment,
    *,
    seed: int,
    steps: int,
    progress: Callable[[int], None] = lambda step: None,
) -> Any:
    """The state after so many steps; nothing is logged or saved. ``progress`` is told the steps that are done.

    Raises:
      UserError: if it is no longer finite.
    """
    from bpgan.runtime import parallel

    program = parallel.compile(experiment.algorithm, experiment.source, seed=seed)
    carry, step = program.init(), 0
    while step < steps:
        k = min(steps - step, program.window - step % program.window if program.window else 500)
        carry, finite = program.run(carry, k)
        step += k
        if not finite:
            raise UserError(f"training diverged before step {step}")
        progress(step)
    return carry.state


def drawn(
    algorithm: Algorithm,
    state: Any,
    *,
    seed: int,
    n: int,
    labels: np.ndarray | None = None,
    batch: int = 500,
) -> np.ndarray:
    """``n`` samples as uint8 ``[n, h, w, c]``, of latents that training never sees.

    Args:
      algorithm, state: what draws them.
      seed: of the latents.
      n: how many.
      labels: int32 ``[n]`` for a conditional algorithm.
      batch: samples at a time.

    Raises:
      UserError: if the algorithm draws no samples.
    """
    import jax

    from bpgan.report import page as report
    from bpgan.runtime import parallel

    if algorithm.sample is None:
        raise UserError("the experiment draws no samples")
    key = stream(jax.random.key(seed), "evaluate")
    batches = parallel.draw(algorithm.sample, state, key, n, labels=labels, batch=batch)
    return np.concatenate([report.to_bytes(batch) for batch in batches])
