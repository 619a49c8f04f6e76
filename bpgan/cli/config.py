"""Configs: frozen dataclasses whose fields are flags, and what is asked for by flags, presets and defaults."""

import dataclasses
import functools
import re
import shlex
import typing
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags

from bpgan.cli.flags import Flag, Parsed, define, did_you_mean, field, parse, show
from bpgan.runtime import loggers, remote
from bpgan.types import UserError

if TYPE_CHECKING:
    from bpgan.data import Feed
    from bpgan.runtime.checkpoint import Keep

MAX_STEP = 2**31 - 1  # the step is an int32 on the device
_RESERVED = {"help", "preset", "flagfile", "undefok"}


@dataclasses.dataclass(frozen=True)
class Duration:
    """A number of steps, or of epochs; 0 is never, and false.

    Attributes:
      number: how many.
      in_epochs: whether epochs are counted, and not steps.
    """

    number: float
    in_epochs: bool = False

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Reads ``500`` (steps), ``2.5ep`` (epochs) or ``0`` (never). Raises ValueError for anything else."""
        match = re.fullmatch(r"(\d+)|(\d+\.?\d*|\.\d+)ep", text, re.ASCII)
        if not match:
            raise ValueError("must be steps (500), epochs (2.5ep) or 0 for never")
        number = float(match[1] or match[2])
        if number > MAX_STEP:
            raise ValueError(f"must be at most {MAX_STEP}, or 0 for never")
        return cls(number, match[1] is None)

    def __bool__(self) -> bool:
        return self.number > 0

    def steps(self, per_epoch: float) -> int:
        """In steps: epochs are rounded to whole ones, at least one; 0 means never."""
        if self.number == 0 or not self.in_epochs:
            return int(self.number)
        return max(1, round(min(self.number * per_epoch, MAX_STEP)))


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


def _keep(text: str) -> Any:
    from bpgan.runtime.checkpoint import Keep

    return Keep.parse(text)


def _feed(text: str) -> Any:
    from bpgan.data import parse_feed

    return parse_feed(text)


def _origin(text: str) -> Any:
    from bpgan.runtime import origin

    return origin.parse(text)


def _parts(text: str) -> None:
    names = text.split(",")
    if text and (not all(names) or len(set(names)) < len(names)):
        raise ValueError("must be names such as g,d,ema,optimizer, each once")


def _name(text: str) -> None:
    if text and not re.fullmatch(r"[\w+=-][\w.,:=+-]{0,99}", text):
        raise ValueError(
            "must be at most 100 letters, digits and ._,:=+-, not beginning with . or ,"
        )


def _duration_field(default: str, help: str) -> Any:
    return field(default, help, restart_safe=True, parse=Duration.parse)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What flags are made of, and the one that every experiment has.

    A subclass that defines ``__post_init__`` calls this one's, which reads the texts that have a grammar.
    """

    workdir: str = field(
        "",
        "run directory, of this machine or gs://... or s3://...; empty: runs/<experiment>/<preset and changed flags>",
        restart_safe=True,
        check=remote.check_place,
    )

    def __post_init__(self) -> None:
        """Reads what has a grammar. Raises UserError, naming the argument and its value."""
        for spec in _grammars(type(self)):
            object.__setattr__(self, spec.name, spec.validate(getattr(self, spec.name)))

    def __reduce__(self) -> tuple[Any, ...]:
        """A parser's values need no pickle: they are made again."""
        return functools.partial(type(self), **vars(self)), ()

    def idle(self) -> dict[str, str]:
        """Flags that change nothing here, which is worth a warning, and of each the flag whose value is why."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """The fields of every experiment that trains; a subclass may redeclare one to change its default."""

    seed: int = field(0, "root of all randomness", low=0, high=2**32 - 1, sweepable=True)
    name: str = field(
        "", "of the run: its directory is runs/<experiment>/<name>", restart_safe=True, check=_name
    )
    epochs: float = field(1.0, "passes over the data", low=0, exclusive_low=True, restart_safe=True)
    steps: int = field(
        0, "steps to train, instead of --epochs if > 0", low=0, high=MAX_STEP, restart_safe=True
    )
    pause_at: float = field(
        1.0,
        "share of the run after which to stop for now; the same command with a greater one goes on",
        low=0,
        high=1,
        exclusive_low=True,
        restart_safe=True,
    )
    init_from: Parsed[tuple[str, int | None]] = field(
        "", "another run to begin from, its newest checkpoint: RUN, or RUN:STEP", parse=_origin
    )
    init: str = field(
        "",
        "what is taken of it where shapes match: players (g,d), ema, optimizer; empty: all players and ema",
        check=_parts,
    )
    batch_size: int = field(128, "examples per step, over all devices", low=1)
    log_every: Parsed[Duration] = _duration_field(
        "1ep", "interval of log lines: 1ep, 500 (steps), 0 (never)"
    )
    sample_every: Parsed[Duration] = _duration_field("5ep", "interval of sample grids")
    checkpoint_every: Parsed[Duration] = _duration_field(
        "10ep", "interval of checkpoints; the end is saved too"
    )
    eval_every: Parsed[Duration] = field(
        "0",
        "interval of evaluations on a tenth of the training data, then held out of training",
        parse=Duration.parse,
    )
    keep: Parsed["Keep"] = field(
        "3",
        "checkpoints to keep: 3 (the newest) or 3,best=1,min:METRIC as last logged (or max:)",
        restart_safe=True,
        parse=_keep,
    )
    feed: Parsed["Feed"] = field(
        "auto",
        "where the data lie: memory, stream or stream:WORKERS (read from disk ahead of use), auto: by size",
        restart_safe=True,
        parse=_feed,
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
    matmul_precision: str = field(
        "default",
        "of float32 products on GPUs and TPUs: default (TF32; one pass of bfloat16), high (TF32; three passes) or"
        " highest (float32; on a CPU: without Winograd's convolutions)",
        choices=("default", "high", "highest"),
    )
    deterministic: bool = field(
        True, "on a GPU: the same bits in every process, by slower kernels where need be"
    )
    tensorboard: bool = field(True, "write TensorBoard event files", restart_safe=True)
    log_to: Parsed[tuple[str, ...]] = field(
        "",
        "where else to log, separated by commas: csv, wandb, mlflow (which need their packages)",
        restart_safe=True,
        parse=loggers.parse,
    )

    def set_up(self) -> None:
        """Makes JAX's settings those of the flags; called once, early. Raises what ``distributed.setup`` does."""
        from bpgan.runtime import distributed

        distributed.setup(
            precision=self.precision,
            matmul_precision=self.matmul_precision,
            deterministic=self.deterministic,
        )


NETWORK_PRECISION: Any = field(
    "float32",
    "arithmetic of the networks; with bfloat16 parameters, statistics, logits, losses, penalties and optimizers are"
    " float32",
    choices=("float32", "bfloat16", "float64"),
)
"""The flag of experiments whose networks may be narrower than all else: ``precision: str = cli.NETWORK_PRECISION``."""

DELTA: Any = field(
    1e-5,
    "probability with which epsilon need not hold, far below one over the records",
    low=0,
    high=1,
    exclusive_low=True,
)
SECRET_SEED: Any = field(
    -1,
    "for tests: a key that everybody knows, so that there is no guarantee; -1: a secret one",
    low=-1,
)
"""Flags of private experiments: ``delta: float = cli.DELTA``, ``secret_seed: int = cli.SECRET_SEED``."""

AnyConfig = TypeVar("AnyConfig", bound=Config)


Presets = Mapping[str, Mapping[str, Any]]


def flags_of(config_class: type[Config]) -> dict[str, Flag]:
    """The flags of a config class by name, those it declares itself first.

    Raises:
      TypeError: for a field no flag can be made of.
    """
    result = {}
    for f in sorted(
        dataclasses.fields(config_class), key=lambda f: f.name in RunConfig.__dataclass_fields__
    ):
        if f.name in _RESERVED or hasattr(flags.FlagValues, f.name):
            raise TypeError(f"{config_class.__name__}.{f.name}: the name is taken by another flag")
        kind = _type_of(f.type)
        is_parsed = kind is Parsed
        if not is_parsed and kind not in (bool, int, float, str):
            raise TypeError(
                f"{config_class.__name__}.{f.name}: must be a bool, int, float, str or Parsed[...]"
            )
        if f.default is dataclasses.MISSING:
            raise TypeError(f"{config_class.__name__}.{f.name}: needs a default")
        inherited: dict[str, Any] = {}
        for base in reversed(config_class.__mro__):
            declared = base.__dict__.get("__dataclass_fields__", {}).get(f.name)
            inherited |= declared.metadata if declared else {}
        for key in ("choices", "help"):  # a table may have grown since the class was made
            if callable(inherited.get(key)):
                inherited[key] = inherited[key]()
        if inherited.get("choices"):
            inherited["choices"] = tuple(inherited["choices"])
        if is_parsed and "parse" not in inherited:
            raise TypeError(f"{config_class.__name__}.{f.name}: needs a parse=function")
        result[f.name] = Flag(f.name, str if is_parsed else kind, f.default, **inherited)
    return result


def _type_of(annotation: Any) -> Any:
    """What a field is annotated with. As text, after ``from __future__ import annotations``, it is only looked at.

    What stands in the brackets of ``Parsed[...]`` may be known to a type checker alone.
    """
    if isinstance(annotation, str):
        if re.match(r"(\w+\.)*Parsed\b", annotation):
            return Parsed
        return {kind.__name__: kind for kind in (bool, int, float, str)}.get(annotation, annotation)
    return typing.get_origin(annotation) or annotation


@functools.cache
def _grammars(config_class: type[Config]) -> list[Flag]:
    return [spec for spec in flags_of(config_class).values() if spec.parse]


def run_name(config: Config, presets: Presets, preset: str = "") -> str:
    """A directory name for a run: its own, or the preset that was asked for and each flag that differs from that.

    Only flags that may not change on resume count, so the same command, or a longer one, finds its own run.

    Args:
      config: of the run.
      presets: of its experiment.
      preset: the one that was asked for; empty: none, which is called ``default``.
    """
    if isinstance(config, RunConfig) and config.name:
        return config.name
    specs = [f for f in flags_of(type(config)).values() if not f.restart_safe]
    base = {spec.name: presets.get(preset, {}).get(spec.name, spec.default) for spec in specs}
    changed = {k: getattr(config, k) for k, v in base.items() if getattr(config, k) != v}
    name = "_".join([preset or "default", *(f"{k}={show(v)}" for k, v in changed.items())])
    return shorten(re.sub(r"[^\w.,:=+-]", "-", name), 100)


def shorten(name: str, limit: int) -> str:
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
    return read(config_class, presets, argv, other_flags=other_flags)[0]


def read(
    config_class: type[AnyConfig],
    presets: Presets,
    argv: Sequence[str],
    *,
    other_flags: Iterable[str] = (),
) -> tuple[AnyConfig, dict[str, str]]:
    """The config that a command line asks for, and the flags on it that change nothing, with the reason.

    Neither defaults nor presets are blamed for having no effect. Arguments and errors are those of ``resolve``.
    """
    chosen, explicit, _ = _read(config_class, presets, argv, other_flags)
    cfg = config_class(**(chosen | explicit))
    return cfg, {
        name: f"has no effect with --{why}={show(getattr(cfg, why))}"
        for name, why in cfg.idle().items()
        if name in explicit and explicit[name] != chosen[name]
    }


def preset_of(
    config_class: type[Config],
    presets: Presets,
    argv: Sequence[str],
    *,
    other_flags: Iterable[str] = (),
) -> str:
    """The preset that a command line asks for; empty if none. Raises what ``resolve`` does."""
    return _read(config_class, presets, argv, other_flags)[2]


def without_effect(
    config_class: type[Config], presets: Presets, argv: Sequence[str]
) -> dict[str, str]:
    """Of the flags on a command line, those that change nothing, and why."""
    return read(config_class, presets, argv)[1]


def _read(
    config_class: type[Config],
    presets: Presets,
    argv: Sequence[str],
    other_flags: Iterable[str] = (),
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Every field's value by preset or default, the values of the flags that are given, and the preset that is."""
    specs = flags_of(config_class)
    values = flags.FlagValues()
    for spec in specs.values():
        define(values, spec)
    values["preset"] = flags.Flag(flags.ArgumentParser(), None, "preset", None, "preset")
    rest = parse(values, argv, known_only=False, other_flags=other_flags)
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    preset, name = dict[str, Any](), ""
    if values["preset"].present:
        name = typing.cast(str, values["preset"].value)
        if name not in presets:
            hint = did_you_mean(name, presets)
            allowed = ", ".join(presets)
            raise UserError(f"must be one of {allowed}{hint}", argument="preset", value=name)
        preset = dict(presets[name])
    chosen = {name: spec.default for name, spec in specs.items()}
    for field_name, value in preset.items():
        if field_name not in specs:
            raise TypeError(
                f"{config_class.__name__} has no field {field_name!r}, which a preset sets"
            )
        chosen[field_name] = value
    explicit: dict[str, Any] = {n: values[n].value for n in specs if values[n].present}
    if "epochs" in explicit and "steps" in preset and issubclass(config_class, RunConfig):
        chosen["steps"] = 0  # else the preset's would win over what was asked for
    for flag, spec in specs.items():
        if flag not in explicit:
            try:
                chosen[flag] = spec.validate(chosen[flag])
            except UserError as error:
                reason = f"{error.reason} (the value is that of the preset or default)"
                raise UserError(reason, argument=flag, value=chosen[flag]) from None
    return chosen, explicit, name
