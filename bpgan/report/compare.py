"""Runs beside each other: a page that loads nothing, two CSV files and a LaTeX file.

Evaluations of all experiments stand in one table where they compare: where reference, counts, seed and feature net
agree.

Runs of an experiment that differ only in ``seed`` are one setting, of which mean and standard deviation are given, with
the number of seeds; a seed that was trained in several directories counts once. A run that is not done, or not finite,
or paused where another seed went on, is counted and named, and no part of a mean: its curve is drawn by itself.
Everything is read from run directories as they are, of finished, killed and training runs alike.
"""

import base64
import contextlib
import html
import json
import math
import os
import pathlib
import re
import string
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from bpgan import files
from bpgan.files import Damaged, replaced
from bpgan.measures import CONTROLS, Goal, direction, mean_and_deviation, mean_of
from bpgan.report import page as report
from bpgan.report import plot
from bpgan.report.tables import Cell, Link, Table
from bpgan.runtime import images, records
from bpgan.runtime.records import EvaluationRow, printable
from bpgan.types import UserError, counted

_POINTS = 200  # of a curve
_CURVES, _GRIDS = 10, 12  # settings in a plot, grids side by side
_GRAY = 8  # the color of what is of no setting
_LENGTH = {"epochs", "steps"}
"""How long a run is to be is a setting, though a run may go on towards another end."""

_RESTART_SAFE = frozenset({
    "workdir", "pause_at", "keep", "feed", "tensorboard", "log_to", "on_anomaly", "parallel",
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
      evaluations: the rows behind ``evaluated``, those of newest and best checkpoints without their steps.
      about: what it is trained on, in words, and how many numbers it learns.
      columns: what the columns of its grid are.
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
    evaluations: tuple[EvaluationRow, ...] = ()
    about: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

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
        tuple(_general(row, step) for row in rows), tuple(report.about(record, records.is_private(path))),
        tuple(record.frame.columns),
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


def _general(row: EvaluationRow, step: int) -> EvaluationRow:
    """A row of a run that has come to ``step``, as seeds share it: steps of newest and best checkpoints differ."""
    if row.checkpoint == "newest" and row.step != step:
        return replace(row, checkpoint="")  # the run has gone on since
    return row if row.checkpoint == str(row.step) else replace(row, step=None)


def _column(row: EvaluationRow, step: int) -> str:
    """The name of an evaluated metric with all that its number depends on; of a run that has come to ``step``."""
    row = _general(row, step)
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
    shown = sum(len(setting.runs) for setting in groups)
    text = f"{counted(shown, 'run')}, {counted(len(groups), 'setting')}"
    left = counted(repeats, "repeat of their seeds is", "repeats of their seeds are")
    return text + f"; {left} left out" * bool(repeats)


def about(groups: Sequence[Setting], metric: str) -> list[str]:
    """How many runs of how many settings there are, in which order, and what they were trained and measured on."""
    runs = [run for setting in groups for run in setting.runs]
    name, _, circumstances = metric.partition(" (")
    if len(groups) > 1:
        order = f" The {'best' if _direction(runs, metric) else 'least'} {metric} first."
    else:
        order = f" {name} is of {circumstances.removesuffix(')')}." if circumstances else ""
    said = list(dict.fromkeys(line for run in runs for line in run.about))
    more = f"And {counted(len(said) - 4, 'more line', 'more lines')} of this kind."
    return [f"{extent(groups)}.{order}", *said[:4], *[more] * (len(said) > 4)]


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
    names = dict.fromkeys(name for run in runs for name in run.final)
    return [name for name in names if not name.endswith(CONTROLS) or name.count("/") < 2]


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
    names = [*first, *flags, *metrics, *(f"best of {name}" for name in directed), "about"]
    table = []
    for run in runs:
        facts = [run.path, run.experiment, run.status, run.step, run.images, run.seconds]
        values: list[Any] = [run.config.get(name, "") for name in flags]
        values += [run.final.get(name, "") for name in metrics]
        values += [run.best.get(name, "") for name in directed]
        table.append([*facts, *values, " ".join(run.about)])
    files.write_csv(path, names, table)


def by_experiment(runs: Sequence[RunRow]) -> dict[str, list[RunRow]]:
    """The runs of each experiment."""
    return {
        name: [run for run in runs if run.experiment == name]
        for name in dict.fromkeys(run.experiment for run in runs)
    }


def write(runs: Sequence[RunRow], metric: str, folder: pathlib.Path) -> pathlib.Path:
    """Writes ``comparison.html``, its tables as ``comparison.tex``, and two CSV files.

    ``comparison.csv`` has a row for each run, ``comparison_means.csv`` one for each setting.

    Returns:
      the path of the page.

    Raises:
      UserError: if the folder cannot be written.
    """
    found = {}
    for name, part in by_experiment(runs).items():
        by = chosen_metric(part, metric)
        found[name] = (ranked(settings(part), by), by)
    evaluated = judged({name: groups for name, (groups, _) in found.items()})
    page = folder / "comparison.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "comparison.csv", runs)
        _write_means(folder / "comparison_means.csv", found)
        tables = [*evaluated]
        for name, (groups, by) in found.items():
            table = _table(name, groups, by, folder).without_links()
            tables.append(table._replace(notes=about(groups, by)))
        _write_text(folder / "comparison.tex", "\n".join(table.latex() for table in tables))
        _write_text(page, _page(found, evaluated, folder))
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise UserError(reason, argument="report_to", value=folder) from None
    return page


def _write_text(path: pathlib.Path, text: str) -> None:
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


_Sections = Mapping[str, tuple[Sequence[Setting], str]]
"""Of each experiment its settings, ranked, and the metric that they are ranked by."""


def _write_means(path: pathlib.Path, found: _Sections) -> None:
    """One row to a setting: of each metric mean, standard deviation and number of the seeds, in full."""
    every = [setting for groups, _ in found.values() for setting in groups]
    flags = list(dict.fromkeys(name for setting in every for name in setting.values))
    metrics = list(dict.fromkeys(name for s in every for run in s.ended for name in run.final))
    names = ["experiment", *flags, "seeds", "step"]
    names += [f"{kind} of {name}" for name in metrics for kind in ("mean", "deviation", "number")]
    table = []
    for experiment, (groups, _) in found.items():
        for setting in groups:
            step = max((run.step for run in setting.ended), default="")
            row: list[Any] = [experiment, *(setting.values.get(name, "") for name in flags)]
            row += [len(setting.ended), step]
            for name in metrics:
                mean, deviation, number = setting.mean(name)
                row += [mean if number else "", deviation if number > 1 else "", number]
            table.append(row)
    files.write_csv(path, names, table)


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


_ABOUT = (
    "Numbers are mean ± standard deviation over the seeds that are done, or paused where none went further. Bands are"
    " one standard deviation wide on either side."
)


def _page(found: _Sections, evaluated: Sequence[Table], folder: pathlib.Path) -> str:
    charts: list[Any] = []
    parts, contents = [f'<p class="about">{_ABOUT}</p>'], []
    if evaluated:
        contents.append('<a href="#evaluations">Evaluations</a>')
        tables = "".join(table.html() for table in evaluated)
        parts.append(f'<section id="evaluations"><h2>Evaluations</h2>{tables}</section>')
    for i, (name, (groups, by)) in enumerate(found.items()):
        contents.append(f'<a href="#e{i}">{html.escape(name)}</a>')
        parts.append(f'<section id="e{i}">{_section(name, groups, by, folder, charts)}</section>')
    template = pathlib.Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return string.Template(template).substitute(
        style=plot.PAGE_STYLE + plot.STYLE,
        where=html.escape("/".join(folder.resolve().parts[-2:])),
        contents="".join(contents) if len(contents) > 1 else "",
        body="".join(parts),
        data=json.dumps(charts, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )


def judged(found: Mapping[str, Sequence[Setting]]) -> list[Table]:
    """The evaluations of all experiments: numbers stand in one table where all that they depend on agrees.

    Args:
      found: the settings of each experiment.
    """
    rows_of: dict[str, dict[tuple[str, str, str], list[EvaluationRow]]] = {}
    for experiment, groups in found.items():
        for setting in groups:
            for row in (row for run in setting.ended for row in run.evaluations):
                title = setting.title if setting.values else ""
                label = experiment, title, records.sampled_from(row)
                table = rows_of.setdefault(records.compared_with(row), {})
                table.setdefault(label, []).append(row)
    return [_judged(title, labeled) for title, labeled in rows_of.items()]


def _judged(title: str, labeled: Mapping[tuple[str, str, str], Sequence[EvaluationRow]]) -> Table:
    every = [row for rows in labeled.values() for row in rows]
    columns = list(dict.fromkeys((row.metric, row.features_sha256) for row in every))
    nets_of = {row.metric: row.features for row in every}

    def of(rows: Sequence[EvaluationRow], column: tuple[str, str], what: str) -> list[float]:
        chosen = [row for row in rows if (row.metric, row.features_sha256) == column]
        return [v for row in chosen if _is_number(v := getattr(row, what))]

    signs = [_better([row for row in every if row.metric == metric]) for metric, _ in columns]
    arrows = [{1: " ↑", -1: " ↓", 0: ""}[sign] for sign in signs]
    head = [  # the net in a line of its own
        "\n".join(
            filter(None, (metric.removesuffix(f"-{nets_of[metric]}") + arrow, nets_of[metric]))
        )
        for (metric, _), arrow in zip(columns, arrows, strict=True)
    ]
    names = ["experiment", "setting", "samples of"]
    shown = [j for j in range(3) if j != 1 or any(label[1] for label in labeled)]
    first_number = len(shown) + 1
    values = [[of(rows, column, "value") for column in columns] for rows in labeled.values()]
    best = set()
    for j, sign in enumerate(signs):
        means = {i: sign * mean_and_deviation(row[j])[0] for i, row in enumerate(values) if row[j]}
        leads = [i for i, mean in means.items() if mean == max(means.values())]
        if sign and len(leads) == 1 < len(means):
            best.add((leads[0], first_number + j))
    body: list[list[Cell]] = [
        [*(label[j] for j in shown), str(max(map(len, row))), *map(mean_of, row)]
        for label, row in zip(labeled, values, strict=True)
    ]
    foot: list[list[Cell]] = []
    for name, what in (("real images", "real"), ("untrained", "untrained")):
        cells = [of(every, column, what) for column in columns]
        if any(cells):
            means = [f"{mean_and_deviation(cell)[0]:.4g}" if cell else "" for cell in cells]
            foot.append([name, *[""] * (first_number - 1), *means])
    notes = [f"{text[:1].upper()}{text[1:]}." for text in records.compared(every)]
    nets = dict.fromkeys(
        f"{row.features} (sha256 {row.features_sha256[:8]})"
        if row.features_sha256
        else row.features
        for row in every
        if row.features
    )
    notes += [f"Features: {', '.join(nets)}."] * bool(nets)
    return Table(
        title or "Evaluated",
        [*(names[j] for j in shown), "seeds", *head],
        body,
        best,
        foot,
        notes,
    )


def _better(rows: Sequence[EvaluationRow]) -> int:
    """1 if more of a metric is better, -1 if less is: as its rows say, or its name."""
    said = [row.better for row in rows if row.better is not None]
    return {"higher": 1, "lower": -1}.get(said[0], 0) if said else direction(rows[0].metric)


def _section(
    name: str, groups: Sequence[Setting], metric: str, folder: pathlib.Path, charts: list[Any]
) -> str:
    """An experiment: its table, its curves under one legend, its samples. What the script reads goes to ``charts``."""
    parts = [f"<h2>{html.escape(name)}</h2>"]
    parts += [f'<p class="about">{html.escape(line)}</p>' for line in about(groups, metric)]
    if odd := [run for setting in groups for run in setting.others]:
        names = ", ".join(f"{run.path.name} ({run.status})" for run in odd[:20])
        more = f" and {len(odd) - 20} more" if len(odd) > 20 else ""
        parts.append(
            f'<p class="note">Not in any mean, curves dashed: {html.escape(names)}{more}.</p>'
        )
    parts.append(_table(name, groups, metric, folder)._replace(title="").html())
    parts.append(_plots(groups, metric, charts))
    grids = [run for setting in groups for run in setting.runs[:1] if run.grid is not None]
    if figures := "".join(_grid(run, _page_of(run, folder)) for run in grids[:_GRIDS]):
        parts.append(f'<h3>Samples</h3><div class="grids">{figures}</div>')
    return "".join(parts)


def _plots(groups: Sequence[Setting], metric: str, charts: list[Any]) -> str:
    """Curves under one legend, and the metric against the flags that vary."""
    shown = groups[:_CURVES]
    plots: list[plot.Plot] = []
    constant: list[str] = []
    for each in shown_metrics([run for setting in groups for run in setting.runs], metric):
        curves = _curves(shown, each)
        if curves is None:
            continue
        if _is_constant(shown, each):
            constant.append(each)
            continue
        plots.append(curves._replace(legend=()))
        charts.append(_chart(shown, each))
    varied = [n for n in groups[0].values if len({repr(s.values[n]) for s in groups}) > 1]
    others = [_sensitivity(groups, each, metric) for each in varied]
    if len(varied) > 1:
        others.append(_parallel(groups, varied, metric))
    plots += [each for each in others if each is not None]
    charts += [None for each in others if each is not None]
    if not plots:
        return ""
    legend = "".join(
        f'<span class="c{i % len(plot.COLORS)}"><i></i>{html.escape(setting.title)}</span>'
        for i, setting in enumerate(shown)
    )
    rest = f"<span>and {len(groups) - len(shown)} more in the table</span>"
    key = f'<div class="legend key">{legend}{rest * (len(groups) > len(shown))}</div>'
    note = f'<p class="about">Constant: {html.escape(", ".join(constant))}.</p>' * bool(constant)
    figures = "".join(map(plot.figure, plots))
    return f'<div class="curves">{key * (len(groups) > 1)}<div>{figures}</div></div>{note}'


def _is_constant(groups: Sequence[Setting], metric: str) -> bool:
    runs = [run for setting in groups for run in setting.runs if metric in run.curves]
    return len({value for run in runs for value in run.curves[metric][1].tolist()}) < 2


def _chart(groups: Sequence[Setting], metric: str) -> dict[str, Any]:
    """What the script of the page shows of the means of a plot."""
    lines = [_mean_curve(setting, metric) for setting in groups]
    x, y = _axes(groups, metric)
    curves = [
        {
            "color": i % len(plot.COLORS),
            "name": setting.title,
            "steps": steps,
            "means": [float(f"{v:.6g}") for v in means.tolist()],
            "spreads": [float(f"{v:.3g}") for v in spreads.tolist()],
        }
        for i, (setting, (steps, means, spreads)) in enumerate(zip(groups, lines, strict=True))
        if len(steps)
    ]
    curves = curves if all(map(math.isfinite, [y.low, y.high])) else []
    return {"last": x.high, "low": y.low, "high": y.high, "log": y.log, "curves": curves}


def _table(name: str, groups: Sequence[Setting], metric: str, folder: pathlib.Path) -> Table:
    """A row to a setting, with links to the pages of its runs."""
    runs = [run for setting in groups for run in setting.runs]
    texts = rows(groups, shown_metrics(runs, metric))
    table: list[list[Cell]] = []
    for setting, row in zip(groups, texts, strict=True):
        links = [
            Link(_show(run.config.get("seed", run.path.name)), _page_of(run, folder))
            for run in setting.runs[:8]
        ]
        more = [Link(f"and {len(setting.runs) - 8} more")] * (len(setting.runs) > 8)
        table.append([*row.values(), (*links, *more)])
    shown = [name.partition(" (")[0] for name in texts[0]]
    head = [a if shown.count(a) == 1 else b for a, b in zip(shown, texts[0], strict=True)]
    return Table(name, [*head, "page of seed"], table)


def _page_of(run: RunRow, folder: pathlib.Path) -> str:
    """The way from a folder to the page of a run; empty if there is none."""
    page = run.path / "report.html"
    return urllib.parse.quote(os.path.relpath(page, folder)) if page.is_file() else ""


def _curves(groups: Sequence[Setting], metric: str) -> plot.Plot | None:
    """Mean over seeds of each setting against the step, with a band of one standard deviation.

    Runs that are in no mean are dashed lines, within the scale of the means where there are any.
    """
    lines = [_mean_curve(setting, metric) for setting in groups]
    apart = _apart(groups, metric)
    if not apart and not any(len(steps) > 1 for steps, _, _ in lines):
        return None
    x, y = _axes(groups, metric)

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
    return plot.Plot(metric, shapes, x.ticks(whole=True), y.ticks(), legend, small, x_name="step")


def _apart(groups: Sequence[Setting], metric: str) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """The curves of runs that are in no mean, each with the number of its setting."""
    return [
        (i, *run.curves[metric])
        for i, setting in enumerate(groups)
        for run in setting.others
        if metric in run.curves and len(run.curves[metric][0]) > 1
    ][:_CURVES]


def _axes(groups: Sequence[Setting], metric: str) -> tuple[plot.Axis, plot.Axis]:
    """Of steps, and of the means with their deviations or, if there are none, of the curves of single runs."""
    lines = [_mean_curve(setting, metric) for setting in groups]
    apart = _apart(groups, metric)
    means = np.concatenate([values for _, values, _ in lines])
    ends = [steps[-1] for steps, *_ in lines if steps] + [steps[-1] for _, steps, _ in apart]
    seen = means if len(means) else np.concatenate([values for *_, values in apart])
    y = plot.Axis.of(seen)
    if len(means):
        spreads = np.concatenate([spreads for *_, spreads in lines])
        bands = np.concatenate([means - spreads, means + spreads])
        y = plot.Axis.of(bands[bands > 0] if y.log else bands, log=y.log)
    return plot.Axis(0, int(max(ends))), y


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
        self._ends = (min(values), max(values)) if self._axis else ()

    def ends(self) -> str:
        """From where to where, from the bottom to the top."""
        if self._ends:
            return " to ".join(map(plot.number, self._ends))
        return ", ".join(name or "(empty)" for name in self._names)

    def at(self, value: Any) -> float:
        if self._axis:
            return float(self._axis.at(float(value)))
        return (self._names.index(_show(value)) + 0.5) / len(self._names)

    def ticks(self) -> list[tuple[float, str]]:
        if self._axis:
            return self._axis.ticks()
        return [(self.at(name), name or "(empty)") for name in self._names[:6]]


def _sensitivity(groups: Sequence[Setting], flag: str, metric: str) -> plot.Plot | None:
    """The metric of every run that is in a mean against one flag, with the median of each value; None of one value."""
    x = _Scale([setting.values[flag] for setting in groups])
    runs = [
        (x.at(setting.values[flag]), run.final[metric])
        for setting in groups
        for run in setting.ended
        if _is_number(run.final.get(metric))
    ]
    if len({at for at, _ in runs}) < 2:
        return None
    y = plot.Axis.of([value for _, value in runs])
    found: dict[float, list[float]] = {}
    for at, value in sorted(runs):
        found.setdefault(at, []).append(value)
    medians = [float(np.median(values)) for values in found.values()]
    shapes = [
        plot.Shape([at for at, _ in runs], y.at([value for _, value in runs]), _GRAY, "dots", 0.6),
        plot.Shape(list(found), y.at(medians), _GRAY),
    ]
    legend = [(_GRAY, "runs, and the median of each value", "")]
    small = "log scale" if y.log else ""
    title = f"{metric.partition(' (')[0]} against {flag}"
    return plot.Plot(title, shapes, x.ticks(), y.ticks(), legend, small, x_name=flag)


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
    fine_values = [values[i] for i in fine]
    ends = [f"{flag} {scale.ends()}" for flag, scale in scales.items()]
    ends.append(f"{metric.partition(' (')[0]} {_Scale(fine_values).ends() if fine else ''}")
    ticks = list(zip(xs, ends, strict=True))
    return plot.Plot(
        f"{' → '.join(flags)} → {metric.partition(' (')[0]}", shapes, ticks, (), vertical=True
    )


def _grid(run: RunRow, page: str) -> str:
    assert run.grid is not None
    found = report.read_grid(run.grid)
    if found is None or len(found[0]) > 600_000:
        return ""
    picture = base64.b64encode(found[0]).decode()
    name = html.escape(run.path.name)
    link = f'<a href="{html.escape(page)}">{name}</a>' if page else name
    columns = f"<br>Columns: {html.escape(', '.join(run.columns))}" if run.columns else ""
    return (
        f'<figure><img src="data:image/png;base64,{picture}" alt="Samples of {name}">'
        f"<figcaption>{link}, step {run.step:,}{columns}</figcaption></figure>"
    )


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
