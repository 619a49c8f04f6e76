"""From what ``build`` returns and what the flags ask for to a plan of training."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from bpgan.cli.config import MAX_STEP, RunConfig, locates_data, restart_safe
from bpgan.measures import Goal
from bpgan.runtime import loggers
from bpgan.runtime.records import Frame
from bpgan.types import Algorithm, Source, UserError

if TYPE_CHECKING:
    from bpgan.runtime.checkpoint import Keep


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
      prefers: a goal of ``eval/name``, by which ``--eval_every`` keeps the best checkpoint where
        ``--keep`` names no metric.
      measure: what ``validate`` and ``evaluate`` measure with, such as the hash of a feature net, by name. It is kept
        in ``config.json``, and a run does not go on with another one.
      frame: what stands around the sample grids on the run's page: the names of columns, or axes and a legend.
      pictures: ``state -> {name: picture}`` on the host, drawn with every sample grid, and after the last step, in the
        place of those before: uint8 ``[h, w, c]``, or the text of an SVG file. The page shows what is in ``pictures/``.
      settle: ``run directory -> (algorithm, source)``, once for each start, for what is trained there in the place of
        ``algorithm`` and ``source``, which are of the same shapes; ``bpgan.runtime.run.RunSpec``.
      account: ``state -> {name: value}`` on the host, in every log line.
      spent: ``state -> {name: value}``, the ``privacy`` of ``result.json``.
    """

    algorithm: Algorithm
    source: Source
    evaluate: Callable[[Any], dict[str, float]] | None = None
    title: str = ""
    validate: Callable[[Any], dict[str, float]] | None = None
    prefers: Goal | None = None
    measure: Mapping[str, str] = MappingProxyType({})
    frame: Frame = Frame()
    pictures: Callable[[Any], Mapping[str, Any]] | None = None
    settle: Callable[[pathlib.Path], tuple[Algorithm, Source]] | None = None
    account: Callable[[Any], Mapping[str, float]] | None = None
    spent: Callable[[Any], Mapping[str, Any]] | None = None


_COLUMNS = 20  # beyond which a class has too few images in a grid to see anything


def columns_of(classes: int, names: Sequence[str] = ()) -> Frame:
    """What stands around the grids of a conditional model, which draws its classes in turn: a column a class.

    Args:
      classes: how many; 0: unconditional.
      names: of the classes, if there are as many; else their numbers are shown.
    """
    if not 0 < classes <= _COLUMNS:
        return Frame()
    known = len(names) == classes
    return Frame(columns=list(names) if known else [str(i) for i in range(classes)])


def steps_of(cfg: RunConfig, per_epoch: float) -> int:
    """The steps of a whole run, at least one.

    Raises:
      UserError: for more than a step counter holds.
    """
    steps = cfg.steps or cfg.epochs * per_epoch
    if steps > MAX_STEP:
        reason = f"asks for {steps:.6g} steps; must be at most {MAX_STEP}"
        raise UserError(reason, argument="epochs", value=cfg.epochs, beside=["batch_size"])
    return max(1, round(steps))


def plan_of(name: str, cfg: RunConfig, experiment: Experiment) -> dict[str, Any]:
    """The fields of ``train.Plan`` that the flags ask for."""
    loggers.check(cfg.log_to.value)
    per_epoch = experiment.source.steps_per_epoch
    steps = steps_of(cfg, per_epoch)
    eval_every = cfg.eval_every.value.steps(per_epoch)
    if eval_every and experiment.validate is None:
        reason = f"{name} has nothing to evaluate; must be 0"
        raise UserError(reason, argument="eval_every", value=cfg.eval_every)
    keep = keep_of(cfg, experiment)
    if keep.metric.startswith("eval/") and not eval_every:
        reason = f"{keep.metric} is found by `eval_every`, which is {cfg.eval_every}; must be > 0"
        raise UserError(reason, argument="keep", value=cfg.keep, beside=["eval_every"])
    return dict(
        name=name,
        restart_safe=restart_safe(type(cfg)),
        locates_data=locates_data(type(cfg)),
        steps=steps,
        log_every=cfg.log_every.value.steps(per_epoch),
        sample_every=cfg.sample_every.value.steps(per_epoch),
        checkpoint_every=cfg.checkpoint_every.value.steps(per_epoch),
        eval_every=eval_every,
        pause=max(1, round(cfg.pause_at * steps)) if cfg.pause_at < 1 else 0,
        keep=keep,
        on_anomaly=cfg.on_anomaly,
        tensorboard=cfg.tensorboard,
        log_to=cfg.log_to.value,
    )


def keep_of(cfg: RunConfig, experiment: Experiment) -> "Keep":
    """Which checkpoints a run keeps: the best, too, if it is evaluated while it trains."""
    keep = cfg.keep.value
    if keep.metric or not experiment.prefers or not cfg.eval_every.value:
        return keep
    return keep._replace(best=1, goal=experiment.prefers)
