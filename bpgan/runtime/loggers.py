"""Where a run is logged beside its own log: one small class to a service, imported when it is asked for.

``metrics.jsonl`` is the truth; every logger is told what is written there. A logger that fails while a run trains is
given up with a warning, for training does not need it. To add one, enter a class like ``Csv`` into ``LOGGERS``.
"""

import importlib.util
import math
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from bpgan import files
from bpgan.runtime import records
from bpgan.types import UserError


class Opened(NamedTuple):
    """The run that is logged.

    Attributes:
      path: of its directory.
      run: what tells it from every other run; a run that goes on is the same.
      experiment: its name.
      config: its flags.
      lines: what its log says so far; a run that goes on has been cut back to its checkpoint.
    """

    path: pathlib.Path
    run: str
    experiment: str
    config: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]


class Logger(Protocol):
    """What is told of a run while it trains. Steps never fall but where a run goes on, whose steps come again."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A line of the log: the numbers of a step."""

    def image(self, step: int, png: pathlib.Path) -> None:
        """A sample grid."""

    def finish(self, values: Mapping[str, float]) -> None:
        """The final numbers of a run that is done."""

    def close(self) -> None:
        """The end of this process's part of the run."""


class Csv:
    """``metrics.csv`` in the run directory: a row to a line of the log, a column to a name."""

    def __init__(self, opened: Opened):
        self._path = opened.path / "metrics.csv"
        self._rows = [dict(line) for line in opened.lines]
        self._save()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, **values}
        self._rows.append(row)
        if row.keys() <= self._names.keys():
            files.append_csv(self._path, [row.get(name, "") for name in self._names])
        else:
            self._save()

    def _save(self) -> None:
        self._names = dict.fromkeys(name for row in self._rows for name in row)
        rows = [[row.get(name, "") for name in self._names] for row in self._rows]
        files.write_csv(self._path, list(self._names), rows)

    def image(self, step: int, png: pathlib.Path) -> None:
        pass

    def finish(self, values: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class Wandb:
    """Weights & Biases, as ``WANDB_MODE``, ``WANDB_PROJECT`` and its other variables say; its files are in the run."""

    def __init__(self, opened: Opened):
        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb = wandb
        self._run = wandb.init(
            id=opened.run,
            name=opened.path.name,
            group=opened.experiment,
            config=dict(opened.config),
            dir=opened.path,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(console="off", x_disable_stats=True),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def image(self, step: int, png: pathlib.Path) -> None:
        self._run.log({"samples": self._wandb.Image(str(png))}, step=step)

    def finish(self, values: Mapping[str, float]) -> None:
        self._run.summary.update({f"final/{name}": value for name, value in values.items()})

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """MLflow, at ``MLFLOW_TRACKING_URI``, as a run of an experiment of the name of bpgan's."""

    def __init__(self, opened: Opened):
        from mlflow import tracking  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

        self._client, self._metric = tracking.MlflowClient(), Metric
        name = pathlib.PurePath(opened.experiment).name
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        before = self._client.search_runs([experiment], f"tags.`bpgan.run` = '{opened.run}'")
        if before:  # it goes on: what it will log again it has logged before
            self._id = before[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {"bpgan.run": opened.run}
            run = self._client.create_run(experiment, tags=tags, run_name=opened.path.name)
            self._id = run.info.run_id
            params = [Param(key, str(value)[:500]) for key, value in opened.config.items()]
            for i in range(0, len(params), 100):  # at most so many at a time
                self._client.log_batch(self._id, params=params[i : i + 100])
        self._known = float(self._client.get_run(self._id).data.metrics.get("bpgan.step", -1))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if step > self._known:
            self._log(step, {"bpgan.step": step, **values})

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        metrics = [
            self._metric(re.sub(r"[^\w\-. :/]", "_", name), value, int(1000 * time.time()), step)
            for name, value in finite.items()
        ]
        for i in range(0, len(metrics), 1000):
            self._client.log_batch(self._id, metrics=metrics[i : i + 1000])

    def image(self, step: int, png: pathlib.Path) -> None:
        self._client.log_artifact(self._id, str(png), "samples")

    def finish(self, values: Mapping[str, float]) -> None:
        self._log(0, {f"final/{name}": value for name, value in values.items()})

    def close(self) -> None:
        self._client.set_terminated(self._id)


LOGGERS: dict[str, Callable[[Opened], Logger]] = {"csv": Csv, "wandb": Wandb, "mlflow": Mlflow}
"""By the names of ``--log_to``. What is entered while a program runs is found as well."""

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}
"""What a logger needs to be installed, by its name; one that is not here needs nothing."""


def parse(text: str) -> tuple[str, ...]:
    """The names of loggers, separated by commas; none of an empty text.

    Raises:
      ValueError: for a name that is not in ``LOGGERS``, saying what is allowed.
    """
    names = tuple(dict.fromkeys(text.split(","))) if text else ()
    if unknown := [name for name in names if name not in LOGGERS]:
        raise ValueError(f"{unknown[0]!r} is not a logger; must be some of {', '.join(LOGGERS)}")
    return names


def check(names: Sequence[str]) -> None:
    """Raises a UserError if the package of a logger is not installed."""
    for name in names:
        package = PACKAGES.get(name)
        if package and importlib.util.find_spec(package) is None:
            reason = f"needs the package {package}: pip install {package}"
            raise UserError(reason, argument="log_to", value=",".join(names))


class Loggers:
    """All loggers of a run. One that fails is given up, with a warning that says why.

    Args:
      names: as ``parse`` gives them.
      opened: the run.
    """

    def __init__(self, names: Sequence[str], opened: Opened):
        self._loggers: dict[str, Logger] = {}
        for name in names:
            self._try(name, lambda name=name: self._loggers.update({name: LOGGERS[name](opened)}))

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # of a service: whatever it raises
            self._loggers.pop(name, None)
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            records.warn(f"the logger {name} is given up ({said}); the run goes on without it")

    def _each(self, action: Callable[[Logger], None]) -> None:
        for name, logger in tuple(self._loggers.items()):
            self._try(name, lambda logger=logger: action(logger))

    def write(self, line: Mapping[str, Any]) -> None:
        """A line of the log; only numbers are passed on."""
        step = line["step"]
        values = {k: v for k, v in line.items() if k != "step" and isinstance(v, int | float)}
        self._each(lambda logger: logger.write(step, values))

    def image(self, step: int, png: pathlib.Path) -> None:
        self._each(lambda logger: logger.image(step, png))

    def finish(self, values: Mapping[str, float]) -> None:
        self._each(lambda logger: logger.finish(values))

    def close(self) -> None:
        self._each(lambda logger: logger.close())
