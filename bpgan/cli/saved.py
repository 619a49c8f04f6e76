"""A run as it was saved, training without a directory, and samples."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bpgan import data, lookup
from bpgan.cli import averages, experiments
from bpgan.cli.config import Config, RunConfig, flags_of, locates_data
from bpgan.cli.flags import Flag, field, show
from bpgan.cli.plan import Experiment, keep_of
from bpgan.cli.program import message_of
from bpgan.measures import Goal
from bpgan.runtime import remote
from bpgan.types import PRNG, Algorithm, UserError, stream

if TYPE_CHECKING:
    from bpgan.runtime.checkpoint import Keep
    from bpgan.runtime.records import RunRecord


def parse_checkpoint(text: str) -> None:
    """Checks ``newest``, ``best`` or a step. Raises ValueError for anything else."""
    if text not in ("newest", "best") and not text.isdecimal():
        raise ValueError("must be newest, best or a step")


RUN: Any = field("", "run directory, also gs://... or s3://...", check=remote.check_place)
CHECKPOINT: Any = field(
    "newest", "newest, best (by the run's --keep) or a step", check=parse_checkpoint
)
MOVED: Any = field(
    "", "where the data of the run are now; empty: where they were", parse=data.parse_or_none
)
"""Flags of commands that open a run, its checkpoint and its data: ``run: str = RUN``, ``checkpoint: str = CHECKPOINT``
and ``dataset: Parsed[data.Name | None] = MOVED``."""

TRUST: Any = field(
    False,
    "import code outside bpgan that the run names: its experiment, or a network, a loss or a dataset",
    restart_safe=True,
)
"""The flag of every command that opens a run: ``trust: bool = TRUST``, for ``restore`` or ``bpgan.load``."""


AVERAGE: Any = field(
    "",
    "relative width of the average of G that draws, such as 0.1, had from the power averages of the run's checkpoints;"
    " empty: the run's own",
    parse=averages.parse,
)
"""The flag of commands that draw from a run: ``ema: Parsed[float | None] = AVERAGE``, for ``restore``."""


class Restored(NamedTuple):
    """A run as it was saved.

    Attributes:
      name: of its experiment.
      config: its flags.
      experiment: what ``build`` makes of them.
      state, step: of the checkpoint.
      record: its ``config.json``.
      script: the module of its experiment.
      private: whether it learned from records that must not show (``runtime.records.is_private``).
      average: how the average that draws was had, if it is not the run's own.
    """

    name: str
    config: RunConfig
    experiment: Experiment
    state: Any
    step: int
    record: "RunRecord"
    script: experiments.Script
    private: bool
    average: averages.Reconstruction | None = None


def restore(
    workdir: str | os.PathLike,
    which: str = "newest",
    changes: Sequence[str] = (),
    *,
    images: bool = True,
    trust: bool = False,
    ema: float | None = None,
) -> Restored:
    """A checkpoint of a run; nothing in the directory is changed, and it may be training.

    Args:
      workdir: the run directory, of this machine or on an object store.
      which: ``newest`` (of those that are sound), ``best`` by the metric of the run's ``--keep``, or a step.
      changes: ``NAME=VALUE``, flags that are other than the run's, of those that may differ when it is resumed, or
        ``dataset``, where the run's data are now, or ``experiment``, where the file of its experiment is now.
      images: whether the images that it was trained on are opened. Without them the experiment draws and does not
        train; a run that remembers nothing of them, as runs of older versions do not, opens them all the same.
      trust: whether modules and files outside bpgan that the run names, or a change, are imported.
      ema: relative width of the average that draws (``averages.reconstruct``); None: the run's own.

    Raises:
      UserError: if there is no run or no sound checkpoint, the run's flags are not those of this version or have values
        that are not allowed, where a change says that the data are there are others, or the run names a module that is
        not trusted.
    """
    from bpgan.runtime import records, remote

    if ema is not None:
        averages.check(ema)
    if remote.is_url(workdir):
        checkpoints = which if which.isdecimal() and ema is None else True
        with remote.visited(workdir, remote.in_run(checkpoints=checkpoints)) as copy:
            return restore(copy, which, changes, images=images, trust=trust, ema=ema)
    path = pathlib.Path(workdir).expanduser()
    record = _record_of(path)
    moved = [text for text in changes if text.startswith("experiment=")]
    changes = [text for text in changes if text not in moved]
    with contextlib.nullcontext() if trust else lookup.only_own():
        script = _script_of(path, moved[-1].partition("=")[2] if moved else record.experiment)
        cfg = _config_of(path, record, script.config, changes)
        cfg.set_up()
        experiment = build(script, cfg, record, path, images=images)
    located = [text for text in changes if text.partition("=")[0] in locates_data(type(cfg))]
    if located and images and experiment.source.fingerprint != record.data:
        reason = f"other data than those of the run {path}"
        raise UserError(reason, argument="flags", value=located[0])
    step, state = _read(path, which, record, cfg, experiment)
    private, average = records.is_private(path), None
    if ema is not None:
        lengths = getattr(vars(cfg).get("ema"), "value", None)
        state, average = averages.reconstruct(
            path / "checkpoints", record.run, step, state, lengths, ema
        )
    return Restored(script.name, cfg, experiment, state, step, record, script, private, average)


def _record_of(path: pathlib.Path) -> "RunRecord":
    from bpgan.runtime import records

    record = records.read_run(path / "config.json")
    if record is None:
        raise UserError(f"{path}: holds no run of an experiment (config.json)")
    if foreign := records.foreign_format(record):
        raise UserError(f"{path}: {foreign}")
    return record


def _script_of(path: pathlib.Path, name: str) -> experiments.Script:
    """The experiment of a run."""
    if not name:
        raise UserError(f"{path}: is a run of a notebook, which only the notebook can build again")
    try:
        script = experiments.find(name)
    except UserError as error:
        gone = os.path.isabs(name) and not os.path.exists(name)
        hint = "; if it has moved, `flags=experiment=...` says where to" * gone
        reason = f"is a run of {name!r}, an experiment that cannot be used: {error.reason}{hint}"
        raise UserError(f"{path}: {reason}") from None
    if not script.trains:
        raise UserError(f"{path}: holds no run of an experiment (config.json)")
    return script


def _config_of(
    path: pathlib.Path, record: "RunRecord", config: type[Config], changes: Sequence[str]
) -> Any:
    """The config of a run, changed."""
    specs, values = flags_of(config), dict[str, Any](record.config)
    if unknown := sorted(set(values) - set(specs)):
        raise UserError(f"{path}: was made by another version, with `{unknown[0]}`")
    for flag, value in values.items():
        try:
            values[flag] = specs[flag].validate(value)
        except UserError as error:
            given = f"`{flag}={show(value)}` (config.json)"
            raise UserError(f"{path}: {given}: {error.reason}") from None
    return config(**values | _changed_values(record.experiment, specs, changes))


def build(
    script: experiments.Script,
    cfg: RunConfig,
    record: "RunRecord",
    path: str | os.PathLike,
    *,
    images: bool,
) -> Experiment:
    """What the ``build`` of a run's experiment makes of a config; see ``restore``. A UserError begins with the path."""
    facts = None if images or record.dataset is None else _fields(record.dataset)
    try:
        with contextlib.nullcontext() if facts is None else data.without_images(facts):
            return script.action(cfg)
    except UserError as error:
        hint = ""
        if error.argument in locates_data(type(cfg)):
            hint = f"; if the data have moved, `flags={error.argument}=...` says where to"
        raise UserError(f"{path}: {message_of(error)}{hint}") from None


def _fields(record: Any) -> dict[str, Any]:
    from bpgan.runtime import records

    return records.fields(record)


def _keep_of(
    path: pathlib.Path, record: "RunRecord", cfg: RunConfig, experiment: Experiment
) -> "Keep":
    """Which checkpoints the run keeps; without its data no experiment prefers one, and the record says which it did."""
    keep = keep_of(cfg, experiment)
    if keep.metric or not record.goal:
        return keep
    try:
        return keep._replace(best=1, goal=Goal.parse(record.goal))
    except ValueError as error:
        raise UserError(f"{path / 'config.json'}: is damaged (goal: {error})") from None


def _read(
    path: pathlib.Path, which: str, record: "RunRecord", cfg: RunConfig, experiment: Experiment
) -> tuple[int, Any]:
    """Step and state of a checkpoint."""
    from bpgan.runtime import checkpoint
    from bpgan.runtime.program import abstract_carry

    if not (path / "checkpoints").is_dir():
        raise UserError(f"{path}: has no checkpoint")
    keep = _keep_of(path, record, cfg, experiment)
    if which == "best" and not keep.metric:
        raise UserError(f"{path}: keeps no best checkpoint (`eval_every` and `keep` do)")
    abstract = abstract_carry(experiment.algorithm, experiment.source)
    folder = path / "checkpoints"
    checkpoints = checkpoint.Checkpoints(folder, run=record.run, keep=keep, read_only=True)
    step = int(which) if which.isdecimal() else None
    found = checkpoints.restore(abstract, best=which == "best", step=step)
    checkpoints.close()
    if found is None:
        kinds = {"newest": "checkpoint", "best": "checkpoint that was evaluated"}
        raise UserError(f"{path}: has no sound {kinds.get(which, f'checkpoint of step {which}')}")
    return found[0], found[1].state


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
            values[flag] = specs[flag].read(value)
        except UserError as error:
            raise UserError(error.reason, argument="flags", value=text) from None
    return values


def train(
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
    from bpgan.runtime.program import compile_program

    program = compile_program(experiment.algorithm, experiment.source, seed=seed)
    carry, step = program.init(), 0
    while step < steps:
        k = min(steps - step, program.window - step % program.window if program.window else 500)
        carry, finite = program.run(carry, k)
        step += k
        if not finite:
            raise UserError(f"training diverged before step {step}")
        progress(step)
    return carry.state


def draw(
    algorithm: Algorithm,
    state: Any,
    *,
    seed: int,
    n: int,
    labels: np.ndarray | None = None,
    z: np.ndarray | None = None,
    batch: int = 500,
    floats: bool = False,
) -> np.ndarray:
    """``n`` samples as uint8 ``[n, h, w, c]``, of latents that training never sees.

    Args:
      algorithm, state: what draws them.
      seed: of the latents.
      n: how many.
      labels: int32 ``[n]`` for a conditional algorithm.
      z: ``[n, ...]``, latents in the place of those of the seed.
      batch: samples at a time.
      floats: the samples as they are drawn, images in about [-1, 1], and not as bytes.

    Raises:
      UserError: if the algorithm draws no samples.
    """
    from bpgan.runtime import images
    from bpgan.runtime.program import draw_batches

    if algorithm.sample is None:
        raise UserError("the experiment draws no samples")
    options = {"labels": labels, "z": z, "batch": batch}
    batches = draw_batches(algorithm.sample, state, key_of_samples(seed), n, **options)
    return np.concatenate([batch if floats else images.to_bytes(batch) for batch in batches])


def key_of_samples(seed: int) -> PRNG:
    """Of the latents of samples, batch ``i`` of which is drawn with ``fold_in(key, i)``."""
    import jax

    return stream(jax.random.key(seed), "evaluate")
