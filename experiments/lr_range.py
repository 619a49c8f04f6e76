"""Which step size? A range test of a classifier, an autoencoder, or a D against a G that stands still.

Run:     python -m experiments.lr_range
             the classifier on MNIST digits: a plot and a recommendation
         python -m experiments.lr_range --system=d
             D of mnist_gan, while G stays as it was born
         python -m experiments.lr_range --system=vae --flags="net=mlp likelihood=bernoulli"
Papers:  Smith 2017, arXiv:1506.01186.

The step size grows geometrically from step to step, on the experiment's own code, data and optimizer. A recommendation
is the median over seeds. The losses of a GAN's pair are no measure of quality: choose for the pair by a metric, here by
successive halving over the step size of both players (times ``--g_lr`` and ``--d_lr``), Adam's decay and the penalty::

    python launch.py --experiment=mnist_gan --eval_every=1ep --sweep=lr_scale=log:0.1:10 --sweep=b1=uniform:0:0.9 \\
        --sweep=gamma=log:0.01:10 --samples=27 --search=halving --aim=min:eval/FD
"""

import dataclasses
import json
import math
from typing import Any, NamedTuple

import numpy as np

from bpgan import cli, data, optim
from bpgan.report import plot
from bpgan.types import Algorithm, Source, UserError, counted


class System(NamedTuple):
    """An experiment, the flag that is its step size, the metric that is its loss, and what is set besides."""

    experiment: str
    flag: str = "lr"
    loss: str = "loss"
    fixed: tuple[str, ...] = ()


SYSTEMS = {
    # Its own decay of the step size, out of reach.
    "classifier": System("classifier", fixed=("--lr_half_life=1e9",)),
    "vae": System("vae"),
    "d": System("mnist_gan", "d_lr", "d/loss", ("--g_lr=0",)),
}

_OURS = {
    "seed": "; use `seeds`",
    "steps": "; use `steps`",
    "epochs": "; use `steps`",
    "dataset": "; use `dataset`",
    "flagfile": "; name the flags",
}
"""Flags of the experiment that the range test sets, and those of its own that say to what."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.Config):
    system: str = cli.field("classifier", "what is trained", choices=SYSTEMS)
    dataset: cli.Parsed[data.Name] = cli.field("mnist10k", data.forms, parse=data.parse)
    flags: cli.Parsed[list[str]] = cli.field(
        "", "more flags of the experiment: net=mlp latents=10", parse=cli.assignments
    )
    low: float = cli.field(1e-6, "first step size", low=0, exclusive_low=True)
    high: float = cli.field(1.0, "last step size", low=0, exclusive_low=True)
    steps: int = cli.field(300, "from the first to the last", low=20, high=100_000)
    seeds: int = cli.field(3, "how many tests; 0 is the first seed", low=1, high=100)
    decay: float = cli.field(0.9, "of the average that smooths the loss", low=0, high=0.999)


PRESETS = {"smoke": dict(steps=20, seeds=1)}


def ramped(module: Any, cfg: cli.RunConfig, flag: str, lr: optim.Schedule) -> Algorithm:
    """The experiment's algorithm with a step size that is a function of the step.

    The flag is one that ``build`` takes as a traced number, so at every step the system is that of the present value.
    """
    base = module.build(cfg).algorithm

    def step(state: Any, batch: Any, key: Any) -> Any:
        values: Any = {flag: lr(state.step)}
        return module.build(dataclasses.replace(cfg, **values)).algorithm.step(state, batch, key)

    return base._replace(step=step)


def chosen(cfg: Config) -> tuple[Any, cli.RunConfig]:
    """The module of the experiment, and its flags.

    Raises:
      UserError: for a flag that is wrong, or that the range test sets itself.
    """
    system = SYSTEMS[cfg.system]
    module = cli.experiments.find(system.experiment).module
    flags = cfg.flags.value
    ours = _OURS | {system.flag: "; use `low` and `high`"}
    ours |= {text[2:].partition("=")[0]: "" for text in system.fixed}
    for flag in flags:
        instead = ours.get(flag.partition("=")[0])
        if instead is not None:
            raise UserError(f"the range test sets it{instead}", argument="flags", value=flag)
    argv = [f"--dataset={cfg.dataset}", *system.fixed, *(f"--{flag}" for flag in flags)]
    return module, cli.resolve(module.Config, module.PRESETS, argv)


def run(cfg: Config) -> None:
    """Tests, writes ``lr_range.json`` and ``lr_range.svg``, and says what it recommends.

    Raises:
      UserError: for an empty range, one that begins too high, or a workdir that cannot be written.
    """
    from bpgan.runtime.program import record_metrics

    if cfg.low >= cfg.high:
        raise UserError(
            f"must be < `high={cfg.high}`", argument="low", value=cfg.low, beside=["high"]
        )
    system, (module, flags) = SYSTEMS[cfg.system], chosen(cfg)
    folder = cli.make_folder(cfg.workdir, "workdir", cfg.workdir)
    flags.set_up()
    lrs = np.geomspace(cfg.low, cfg.high, cfg.steps)
    algorithm = ramped(module, flags, system.flag, optim.geometric(cfg.low, cfg.high, cfg.steps))

    def source_of(seed: int) -> Source:
        source = module.build(dataclasses.replace(flags, seed=seed)).source
        if source.windows:
            raise UserError(
                "is too large for memory; a smaller one will do",
                argument="dataset",
                value=cfg.dataset,
            )
        return source

    seeds = range(cfg.seeds)
    losses = record_metrics(algorithm, source_of, seeds=seeds, steps=cfg.steps)[system.loss]
    try:
        found = [optim.range_test(lrs, one, decay=cfg.decay) for one in losses]
    except ValueError as error:
        raise UserError(str(error), argument="low", value=cfg.low) from None
    steepest, tenth = ([getattr(each, name) for each in found] for name in ("steepest", "tenth"))
    marks = {
        "steepest descent": float(np.median(steepest)),
        "a tenth of the minimum": float(np.median(tenth)),
    }
    smooth = np.stack([each.smooth for each in found])
    record = {
        "config": dataclasses.asdict(cfg),
        "lr": lrs.tolist(),
        "loss": _listed(losses),
        "smooth": _listed(smooth),
        "stopped": [each.stopped for each in found],
        "steepest": steepest,
        "tenth": tenth,
    }
    try:
        (folder / "lr_range.json").write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
        title = f"{cfg.system}, {cfg.dataset}: {system.loss}, {counted(cfg.seeds, 'seed')}"
        plot.save_range(folder / "lr_range.svg", title, lrs, losses, smooth, marks)
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})", argument="workdir", value=folder
        ) from None
    for (name, value), each in zip(marks.items(), (steepest, tenth), strict=True):
        print(
            f"{name}: {value:.2g} (from {min(each):.2g} to {max(each):.2g} over {counted(cfg.seeds, 'seed')})"
        )
    ends = [f"{lrs[each.stopped]:.2g}" for each in found if each.stopped < cfg.steps]
    print(
        f"the loss diverged at step size {', '.join(ends)}"
        if ends
        else "the loss never diverged: try a greater --high"
    )
    print(f"try --{system.flag}={marks['a tenth of the minimum']:.1g}; {folder / 'lr_range.svg'}")


def _listed(values: np.ndarray) -> list[list[float | None]]:
    """For JSON, which has no NaN: null where the loss was lost."""
    return [[v if math.isfinite(v) else None for v in row] for row in values.tolist()]


if __name__ == "__main__":
    cli.main(Config, run, PRESETS)
