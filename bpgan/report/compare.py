"""Runs beside each other: one table, one page that loads nothing, one CSV.

Runs of an experiment that differ only in ``seed`` are one setting, of which mean and standard deviation are given, with
the number of seeds; a seed that was trained in several directories counts once. A run that is not done, or not finite,
or paused where another seed went on, is counted and named, and no part of a mean: its curve is drawn by itself.
Everything is read from run directories as they are, of finished, killed and training runs alike.
"""

import base64
import contextlib
import html
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from bpgan import files
from bpgan.files import Damaged, replaced
from bpgan.measures import Goal, direction, mean_and_deviation, mean_of
from bpgan.report import page as report
from bpgan.report import plot
from bpgan.runtime import images, records
from bpgan.runtime.records import EvaluationRow, printable
from bpgan.types import UserError

_POINTS = 200  # of a curve
_CURVES, _GRIDS = 10, 12  # settings in a plot, grids side by side
_LENGTH = {"epochs", "steps"}
"""How long a run is to be is a setting, though a run may go on towards another end."""

_RESTART_SAFE = frozenset({
    "workdir", "pause_at", "keep", "feed", "tensorboard", "on_anomaly", "parallel",
    "log_every", "sample_every", "checkpoint_every",
})  # fmt: skip
"""Of a run that does not say which of its flags may change while it trains."""


class RunRow(NamedTuple):
    """What a run directory says.

    Attributes:
      path: of the directory.
      experiment: its name.
      config: flags.
      status: ``done``, ``paused``, ``interrupted``, ``non-finite``, ``anomaly``, ``unfinished``: going on or killed, or
        ``damaged`` where its result or, without a result, its log cannot be read.
      step, images, seconds: how far it is; images are None where the record does not say how many a step takes.
      final: of each metric the last value, and those of evaluations, each with what it depends on in its name.
      best: of each metric that is logged and has a known direction, the best value.
      curves: ``(steps, values)`` of each metric, thinned.
      grid: the newest sample grid, if there is one.
      evaluated: which of the metrics are of evaluations.
      restart_safe: the flags that may differ when the run is resumed.
      directions: of the metrics of which the run says so: 1 if more is better, -1 if less is.
    """

    path: pathlib.Path
    experiment: str
    config: Mapping[str, Any]
    status: str
    step: int
    images: int | None
    seconds: float
    final: Mapping[str, float]
    best: Mapping[str, float]
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    grid: pathlib.Path | None
    evaluated: tuple[str, ...] = ()
    restart_safe: frozenset[str] = _RESTART_SAFE
    directions: Mapping[str, int] = MappingProxyType({})

    @property
    def finished(self) -> bool:
        """Whether it came to its end, or to the pause that it was to come to."""
        return self.status in ("done", "paused")


class Setting(NamedTuple):
    """Runs that differ only in the seed.

    Attributes:
      values: of the flags that differ between settings.
      runs: one of each seed.
      repeats: how many more there are of these seeds.
    """

    values: Mapping[str, Any]
    runs: list[RunRow]
    repeats: int = 0

    @property
    def title(self) -> str:
        return " ".join(f"{k}={_show(v)}" for k, v in self.values.items()) or "all"

    @property
    def ended(self) -> list[RunRow]:
        """What means are over: the runs that finished at the greatest step at which one did."""
        last = max((run.step for run in self.runs if run.finished), default=0)
        return [run for run in self.runs if run.finished and run.step == last]

    @property
    def others(self) -> list[RunRow]:
        """The runs that are in no mean."""
        ended = {run.path for run in self.ended}
        return [run for run in self.runs if run.path not in ended]

    def numbers(self, metric: str, which: str = "final") -> list[float]:
        """Of the runs that have ended, those that are finite."""
        found = [getattr(run, which).get(metric) for run in self.ended]
        return [v for v in found if _is_number(v)]

    def mean(self, metric: str, which: str = "final") -> tuple[float, float, int]:
        """Mean, standard deviation (NaN for one) and number of the runs that have ended."""
        values = self.numbers(metric, which)
        return *mean_and_deviation(values), len(values)


def read(folders: Iterable[str | os.PathLike]) -> list[RunRow]:
    """The runs in folders, at any depth.

    Raises:
      UserError: for a folder that is missing, or if there is no run.
    """
    found: dict[pathlib.Path, RunRow] = {}
    folders = [pathlib.Path(folder) for folder in folders]
    for folder in folders:
        if not folder.is_dir():
            raise UserError("there is no such folder", argument="report", value=folder)
        for record in sorted(folder.rglob("config.json")):
            if record.parent in found:
                continue
            run = _read(record.parent)
            if run is not None:
                found[record.parent] = run
    if not found:
        names = ", ".join(map(str, folders))
        raise UserError("holds no run", argument="report", value=names)
    return list(found.values())


def _record(path: pathlib.Path) -> records.RunRecord | None:
    """A run's record; None, with a warning, if it is damaged, and without one if it is another program's."""
    try:
        return records.read_run(path)
    except Damaged as error:
        with contextlib.suppress(Damaged):
            if "experiment" not in (files.read_json(path, dict) or {}):
                return None
        records.warn(f"{error}; its run is left out")
        return None


def _read(path: pathlib.Path) -> RunRow | None:
    record = _record(path / "config.json")
    if record is None:
        return None
    damaged, result, log = False, None, []
    try:
        result = records.read_result(path / "result.json")
    except Damaged as error:
        records.warn(str(error))
        damaged = True
    points: dict[str, list[tuple[int, float]]] = {}
    final: dict[str, float] = {}
    try:
        log = records.read_log(path / "metrics.jsonl")
    except Damaged as error:
        records.warn(str(error))
        damaged = True
    for line in log:
        step = line["step"]
        for key, value in line.items():
            if key not in ("step", "epoch") and isinstance(value, int | float):
                final[key] = float(value)
                if math.isfinite(value):
                    points.setdefault(key, []).append((step, float(value)))
    step = max(log[-1]["step"] if log else 0, result.step if result else 0)
    status = "damaged" if damaged else "unfinished"
    if result is not None:
        final |= result.metrics
        status = result.status if result.step == step else status
    rows = records.sound(records.read_evaluations, path / "metrics.json") or ()
    evaluated = {_column(row, step): row.value for row in rows}
    final |= evaluated
    signs = {"higher": 1, "lower": -1, "": 0}
    directions = {_column(row, step): signs[row.better] for row in rows if row.better in signs}
    directions |= _directions(record)
    best, curves = {}, {}
    for key, pairs in points.items():
        steps, values = (np.array(each) for each in zip(*pairs, strict=True))
        if better := directions.get(key, direction(key)):
            best[key] = better * float((better * values).max())
        curves[key] = _thinned(steps, values)
    grids = images.grids(path)
    each = record.images_per_step
    seen = None if each is None else step * each
    seconds = final.get("time/elapsed", math.nan)
    return RunRow(
        path, record.experiment, record.config, status, step, seen, seconds, final, best, curves,
        grids[-1][1] if grids else None, tuple(evaluated),
        _RESTART_SAFE if record.restart_safe is None else frozenset(record.restart_safe), directions,
    )  # fmt: skip


def _directions(record: records.RunRecord) -> dict[str, int]:
    """What a run itself says of which way its metrics are better."""
    try:
        goal = Goal.parse(record.goal)
    except ValueError:  # there is none
        return {}
    return {goal.metric: -goal.sign}


def _direction(runs: Iterable[RunRow], metric: str) -> int:
    """1 if more of a metric is better, -1 if less is: as the runs say, or as its name does; 0 if neither is known."""
    said = (run.directions[metric] for run in runs if metric in run.directions)
    return next(said, direction(metric))


def _column(row: EvaluationRow, step: int) -> str:
    """The name of an evaluated metric with all that its number depends on; of a run that has come to ``step``.

    The steps of newest and best checkpoints differ from run to run, and are no part of the name.
    """
    if row.checkpoint == "newest" and row.step != step:
        row = replace(row, checkpoint="")  # the run has gone on since
    elif row.checkpoint != str(row.step):
        row = replace(row, step=None)
    net = row.features_sha256 and f"net {row.features_sha256[:8]}"
    return f"{row.metric} ({', '.join(filter(None, (records.circumstances(row), net)))})"


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``_POINTS`` points: means of as many buckets, each at its last step."""
    if len(steps) <= _POINTS:
        return steps, values
    edges = np.linspace(0, len(steps), _POINTS + 1).astype(int)
    means = np.add.reduceat(values, edges[:-1]) / np.diff(edges)
    return steps[edges[1:] - 1], means


def settings(runs: Sequence[RunRow]) -> list[Setting]:
    """The settings of one experiment's runs.

    Of several runs of one seed (by itself, and in sweeps over other flags) the one that finished furthest stands for
    all: their numbers are the same, and would make the spread over seeds too small.
    """
    names = dict.fromkeys(name for run in runs for name in run.config)
    # What may change while a run trains makes no other run of it, and seeds are what means are over.
    free = {"seed"}.union(*(run.restart_safe for run in runs)) - _LENGTH
    varied = [
        name
        for name in names
        if name not in free and len({repr(run.config.get(name)) for run in runs}) > 1
    ]
    groups: dict[str, tuple[dict[str, Any], list[RunRow]]] = {}
    for run in runs:
        values = {name: run.config.get(name) for name in varied}
        groups.setdefault(repr(values), (values, []))[1].append(run)
    found = []
    for values, members in groups.values():
        seeds: dict[str, list[RunRow]] = {}
        for run in members:
            seeds.setdefault(repr(run.config.get("seed")), []).append(run)
        kept = [max(same, key=lambda run: (run.finished, run.step)) for same in seeds.values()]
        found.append(Setting(values, kept, len(members) - len(kept)))
    return found


def extent(groups: Sequence[Setting]) -> str:
    """How many runs and settings there are, and how many runs are not shown."""
    repeats = sum(setting.repeats for setting in groups)
    text = f"{sum(len(setting.runs) for setting in groups)} runs, {len(groups)} settings"
    return text + f"; {repeats} repeats of their seeds are left out" * bool(repeats)


def check_metric(runs: Sequence[RunRow], wanted: str) -> None:
    """Raises a UserError if no run logs the metric."""
    known = _metrics(runs)
    if wanted and not _named(wanted, known):
        raise UserError(
            f"is not logged by these runs; known: {printable(', '.join(known))}",
            argument="report_metric",
            value=wanted,
        )


def chosen_metric(runs: Sequence[RunRow], wanted: str) -> str:
    """The metric to rank by: the one that is wanted, where it is logged, or the first distance, or the first loss."""
    known = _metrics(runs)
    if found := _named(wanted, known):
        return found[0]
    for pattern in (r"^(best/)?test/FD", r"^eval/FD", "FD|distance", "accuracy", "loss"):
        if found := [name for name in known if re.search(pattern, name)]:
            return found[0]
    return known[0] if known else ""


def _metrics(runs: Sequence[RunRow]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.final))


def _named(wanted: str, known: Sequence[str]) -> list[str]:
    """The metric of that name, or those of evaluations that have it before what they depend on."""
    return [name for name in known if wanted and wanted in (name, name.partition(" (")[0])]


def ranked(groups: Sequence[Setting], metric: str) -> list[Setting]:
    """Settings, the best first, or those with the least of a metric of no known direction; those without it last."""
    sign = -1 if _direction((run for s in groups for run in s.runs), metric) > 0 else 1

    def key(setting: Setting) -> float:
        value = setting.mean(metric)[0]
        return sign * value if math.isfinite(value) else math.inf

    return sorted(groups, key=key)


def rows(groups: Sequence[Setting], metrics: Sequence[str]) -> list[dict[str, str]]:
    """A table, its cells as text that may be printed."""
    table = []
    for setting in groups:
        runs = setting.runs
        states = {
            s: sum(r.status == s for r in runs) for s in dict.fromkeys(r.status for r in runs)
        }
        steps = sorted({run.step for run in runs})
        seconds = [run.seconds for run in setting.ended if math.isfinite(run.seconds)]
        images = [run.images for run in runs if run.images is not None]
        row = {name: _show(value) for name, value in setting.values.items()}
        row["runs"] = ", ".join(f"{n} {s}" for s, n in states.items())
        row["step"] = f"{steps[0]:,}" + (f" to {steps[-1]:,}" if len(steps) > 1 else "")
        row["images"] = f"{max(images):,}" if images else ""
        row["seconds"] = f"{mean_and_deviation(seconds)[0]:.0f}" if seconds else ""
        for metric in metrics:
            row[metric] = mean_of(setting.numbers(metric))
            best = mean_of(setting.numbers(metric, "best"))
            if best and best != row[metric]:
                row[metric] += f" (best {best})"
            if lost := sum(not math.isfinite(run.final.get(metric, 0)) for run in setting.ended):
                row[metric] += f" ({lost} not finite)"
        table.append({printable(name): printable(cell) for name, cell in row.items()})
    return table


def write_csv(path: pathlib.Path, runs: Sequence[RunRow]) -> None:
    """One row to a run, numbers in full. Raises OSError."""
    flags = list(dict.fromkeys(name for run in runs for name in run.config if name != "workdir"))
    metrics = list(dict.fromkeys(name for run in runs for name in run.final))
    directed = [name for name in metrics if any(name in run.best for run in runs)]
    first = ["run", "experiment", "status", "step", "images", "seconds"]
    names = [*first, *flags, *metrics, *(f"best of {name}" for name in directed)]
    table = []
    for run in runs:
        facts = [run.path, run.experiment, run.status, run.step, run.images, run.seconds]
        values: list[Any] = [run.config.get(name, "") for name in flags]
        values += [run.final.get(name, "") for name in metrics]
        values += [run.best.get(name, "") for name in directed]
        table.append([*facts, *values])
    files.write_csv(path, names, table)


def by_experiment(runs: Sequence[RunRow]) -> dict[str, list[RunRow]]:
    """The runs of each experiment."""
    return {
        name: [run for run in runs if run.experiment == name]
        for name in dict.fromkeys(run.experiment for run in runs)
    }


def write(runs: Sequence[RunRow], metric: str, folder: pathlib.Path) -> pathlib.Path:
    """Writes ``comparison.html`` and ``comparison.csv`` into a folder; returns the path of the page.

    Raises:
      UserError: if the folder cannot be written.
    """
    body = []
    for name, part in by_experiment(runs).items():
        by = chosen_metric(part, metric)
        body.append(_section(name, ranked(settings(part), by), by))
    page = folder / "comparison.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "comparison.csv", runs)
        template = pathlib.Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
        with replaced(page) as temporary:
            whole = template.replace("$STYLE", plot.STYLE).replace("$BODY", "".join(body))
            temporary.write_text(whole, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise UserError(reason, argument="report_to", value=folder) from None
    return page


def shown_metrics(runs: Sequence[RunRow], first: str) -> list[str]:
    """Metrics for a table: the one ranked by, then others that are no clock, norm or evaluation, seven in all."""
    known = dict.fromkeys([first, *_metrics(runs)])
    others = known.keys() - {"", *evaluated_metrics(runs)} | {first}
    return [
        name
        for name in known
        if name in others and not name.startswith(("time/", "best/")) and "norm" not in name
    ][:7]


def evaluated_metrics(runs: Sequence[RunRow]) -> list[str]:
    """The metrics that ``experiments.evaluate`` found, each with what it depends on in its name."""
    return list(dict.fromkeys(name for run in runs for name in run.evaluated))


# --- the page -------------------------------------------------------------------------------------


def _section(name: str, groups: Sequence[Setting], metric: str) -> str:
    runs = [run for setting in groups for run in setting.runs]
    odd = [run for setting in groups for run in setting.others]
    which = "best" if _direction(runs, metric) else "least"
    parts = [f"<h2>{html.escape(name)}</h2><p>{extent(groups)}. The {which} {html.escape(metric)} first, mean ±"
             " standard deviation over the seeds that are done, or paused where none went further.</p>"]  # fmt: skip
    if odd:
        names = ", ".join(f"{run.path.name} ({run.status})" for run in odd[:20])
        more = f" and {len(odd) - 20} more" if len(odd) > 20 else ""
        parts.append(
            f"<p class=note>Not in any mean, curves dashed: {html.escape(names)}{more}.</p>"
        )
    metrics = shown_metrics(runs, metric)
    parts.append(_table(rows(groups, metrics)))
    parts.append(_evaluations(groups, [n for n in evaluated_metrics(runs) if n not in metrics]))
    plots: list[plot.Plot | None] = [_curves(groups[:_CURVES], each) for each in metrics]
    varied = [n for n in groups[0].values if len({repr(s.values[n]) for s in groups}) > 1]
    plots += [_sensitivity(groups, each, metric) for each in varied]
    if len(varied) > 1:
        plots.append(_parallel(groups, varied, metric))
    figures = "".join(plot.figure(each) for each in plots if each is not None)
    parts.append(f"<div class=plots>{figures}</div>")
    grids = [run for setting in groups for run in setting.runs[:1] if run.grid is not None]
    parts.append("<div class=grids>" + "".join(map(_grid, grids[:_GRIDS])) + "</div>")
    return "".join(parts)


def _evaluations(groups: Sequence[Setting], names: Sequence[str]) -> str:
    """Tables of evaluated metrics: those that depend on the same stand beside each other, under what that is."""
    tables: dict[str, dict[str, str]] = {}
    for name in names:
        metric, _, found = name.partition(" (")
        tables.setdefault(found.removesuffix(")"), {})[name] = metric
    parts = []
    for found, columns in tables.items():
        table = rows(groups, list(columns))
        short = {printable(name): metric for name, metric in columns.items()}
        renamed = [{short.get(k, k): cell for k, cell in row.items()} for row in table]
        parts.append(f"<h3>Evaluated: {html.escape(found)}</h3>{_table(renamed)}")
    return "".join(parts)


def _table(table: Sequence[Mapping[str, str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.values()) + "</tr>"
        for row in table
    )
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def _curves(groups: Sequence[Setting], metric: str) -> plot.Plot | None:
    """Mean over seeds of each setting against the step, with a band of one standard deviation.

    Runs that are in no mean are dashed lines, within the scale of the means where there are any.
    """
    lines = [_mean_curve(setting, metric) for setting in groups]
    apart = [
        (i, *run.curves[metric])
        for i, setting in enumerate(groups)
        for run in setting.others
        if metric in run.curves and len(run.curves[metric][0]) > 1
    ][:_CURVES]
    if not apart and not any(len(steps) > 1 for steps, _, _ in lines):
        return None
    means = np.concatenate([values for _, values, _ in lines])
    ends = [steps[-1] for steps, *_ in lines if steps] + [steps[-1] for _, steps, _ in apart]
    x = plot.Axis(0, int(max(ends)))
    y = plot.Axis.of(means if len(means) else np.concatenate([values for *_, values in apart]))

    def shape(i: int, steps: Any, values: Any, kind: str) -> plot.Shape:
        return plot.Shape(x.at(steps), np.clip(y.at(values), 0, 1), i, kind)

    shapes = [shape(*curve, kind="dashed") for curve in apart]
    for i, (steps, middle, spreads) in enumerate(lines):
        if np.any(spreads):
            around = np.concatenate([middle + spreads, (middle - spreads)[::-1]])
            shapes.append(shape(i, [*steps, *steps[::-1]], around, "band"))
        shapes.append(shape(i, steps, middle, "line"))
    legend = [(i, setting.title, "") for i, setting in enumerate(groups)]
    small = "log scale" if y.log else ""
    return plot.Plot(metric, shapes, x.ticks(whole=True), y.ticks(), legend, small)


def _mean_curve(setting: Setting, metric: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Steps, means and standard deviations of the runs that have ended, where all of them have a value."""
    per_step: dict[int, list[float]] = {}
    for run in setting.ended:
        for step, value in zip(*run.curves.get(metric, ((), ())), strict=True):
            per_step.setdefault(int(step), []).append(float(value))
    most = max(map(len, per_step.values()), default=0)
    steps = sorted(step for step, values in per_step.items() if len(values) == most)
    found = [mean_and_deviation(per_step[s]) for s in steps]
    spreads = [spread if most > 1 else 0.0 for _, spread in found]
    return steps, np.array([mean for mean, _ in found]), np.array(spreads)


class _Scale:
    """Where values of a flag lie in [0, 1]: numbers on an axis, others evenly in order."""

    def __init__(self, values: Sequence[Any]):
        self._axis = (
            plot.Axis.of(list(map(float, values))) if all(map(_is_number, values)) else None
        )
        self._names = [] if self._axis else sorted({_show(v) for v in values})

    def at(self, value: Any) -> float:
        if self._axis:
            return float(self._axis.at(float(value)))
        return (self._names.index(_show(value)) + 0.5) / len(self._names)

    def ticks(self) -> list[tuple[float, str]]:
        return self._axis.ticks() if self._axis else [(self.at(n), n) for n in self._names[:6]]


def _sensitivity(groups: Sequence[Setting], flag: str, metric: str) -> plot.Plot | None:
    """The metric of every run that is in a mean against one flag, with the median of each value."""
    x = _Scale([setting.values[flag] for setting in groups])
    runs = [
        (x.at(setting.values[flag]), run.final[metric])
        for setting in groups
        for run in setting.ended
        if _is_number(run.final.get(metric))
    ]
    if not runs:
        return None
    y = plot.Axis.of([value for _, value in runs])
    found: dict[float, list[float]] = {}
    for at, value in sorted(runs):
        found.setdefault(at, []).append(value)
    medians = [float(np.median(values)) for values in found.values()]
    shapes = [
        plot.Shape([at for at, _ in runs], y.at([value for _, value in runs]), 0, "dots", 0.6),
        plot.Shape(list(found), y.at(medians), 1),
    ]
    small = "log scale" if y.log else ""
    return plot.Plot(f"{metric} against {flag}", shapes, x.ticks(), y.ticks(), small=small)


def _parallel(groups: Sequence[Setting], flags: Sequence[str], metric: str) -> plot.Plot:
    """Each setting a line through its flags to its metric; dark is good."""
    values = [setting.mean(metric)[0] for setting in groups]
    scales = {flag: _Scale([setting.values[flag] for setting in groups]) for flag in flags}
    y = plot.Axis.of(values)
    xs = [i / len(flags) for i in range(len(flags) + 1)]
    fine = [i for i, value in enumerate(values) if math.isfinite(value)]
    shapes = []
    for rank, i in enumerate(reversed(fine)):  # the best on top
        through = [scale.at(groups[i].values[flag]) for flag, scale in scales.items()]
        opacity = 0.15 + 0.85 * (rank + 1) / len(fine)
        shapes.append(plot.Shape(xs, [*through, float(y.at(values[i]))], opacity=opacity))
    ticks = list(zip(xs, [*flags, metric], strict=True))
    return plot.Plot(f"{' → '.join(flags)} → {metric}", shapes, ticks, (), vertical=True)


def _grid(run: RunRow) -> str:
    assert run.grid is not None
    found = report.read_grid(run.grid)
    if found is None or len(found[0]) > 600_000:
        return ""
    picture = base64.b64encode(found[0]).decode()
    return (
        f"<figure><img src='data:image/png;base64,{picture}' alt=''>"
        f"<figcaption>{html.escape(run.path.name)}, step {run.step:,}</figcaption></figure>"
    )


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
