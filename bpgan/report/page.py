"""What a run left on disk, for people: sample grids, curves, one self-contained HTML page.

Everything here is a function of the run directory (its layout is in ``run.open_run``), so a report can be made again
at any time, of a finished, running or killed run. Page and script are in ``report.html`` next to this file. What is
damaged in the directory, and what cannot be drawn or written, is named and left out of the page.
"""

import base64
import contextlib
import html
import io
import json
import math
import os
import pathlib
import statistics
import string
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bpgan.files import Damaged, read_bytes, replaced
from bpgan.runtime import images, records
from bpgan.runtime.images import image_grid, save_png, to_bytes  # noqa: F401
from bpgan.runtime.records import EvaluationRow, ResultRecord, RunRecord
from bpgan.types import UserError

_Log = list[dict[str, Any]]

_MAX_POINTS = 1000
_MAX_GRIDS, _MAX_GRID_BYTES = 60, 3_400_000  # a report stays below 5 MB and can be mailed
_GRID_WIDTH = 640  # pixels of the page; smaller grids are enlarged by a whole factor

# Metrics share a panel if their names end alike (``d/grad_norm``, ``g/grad_norm``) or have one unit.
_UNITS = {"real": "logits", "fake": "logits"}
_TITLES = {
    "loss": "Loss",
    "logits": "Mean logit",
    "grad_norm": "Gradient norm",
    "images_per_s": "Images per second",
}
_ORDER = {"loss": 0, "logits": 1, "grad_norm": 2, "images_per_s": 9}  # others in between
_UNPLOTTED = {"step", "epoch", "time/elapsed", "time/steps_per_s"}
_PLAYERS = {"d": 0, "g": 1}  # the same colors in every report
_COLORS = ("#2f6fde", "#e2622b", "#2a9d6f", "#8a5fd0", "#c9417c", "#947b1f")


class _Curve(NamedTuple):
    name: str
    color: int
    steps: np.ndarray  # int [n]
    values: np.ndarray  # float64 [n], NaN where not finite
    bad_since: int | None  # first step with a value that is not finite


class _Panel(NamedTuple):
    title: str
    curves: list[_Curve]
    log: bool
    low: float  # ends of the axis; exponents of ten if log
    high: float

    def heights(self, values: np.ndarray) -> np.ndarray:
        """Fractions of the axis, from below."""
        values = drawable(values)
        return ((np.log10(values) if self.log else values) - self.low) / (self.high - self.low)


class _Frame(NamedTuple):
    """A sample grid: its step, its file as it is, and the picture in it."""

    step: int
    png: bytes
    image: Any


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes ``curves.png``, ``samples.gif`` and ``report.html`` into a run directory; returns the path of the last.

    Reads ``config.json``, ``metrics.jsonl``, ``samples/step_*.png``, ``result.json``, and ``metrics.json`` of its
    evaluations; all but the first may be missing or damaged. The page is one file that loads nothing.

    Raises:
      UserError: if the directory holds no run, its record is damaged, or the page cannot be written.
    """
    path = pathlib.Path(workdir)
    run = records.read_run(path / "config.json")
    if run is None:
        raise UserError(f"{path}: holds no run to report on (config.json is missing)")
    problems: list[str] = []

    def sound(read: Callable[[pathlib.Path], Any], name: str) -> Any:
        try:
            return read(path / name)
        except Damaged as error:
            records.warn(f"{error}; it is left out of the report")
            problems.append(f"{name}: {error.reason}; it is left out.")
            return None

    log = sound(records.read_log, "metrics.jsonl") or []
    result = sound(records.read_result, "result.json")
    evaluations = sound(records.read_evaluations, "metrics.json") or []
    panels, frames = _panels(log), _frames(path)
    if panels:
        with _spared(path / "curves.png"):
            _write_curves(path / "curves.png", run.experiment, panels)
    if len(frames) > 1:
        with _spared(path / "samples.gif"):
            _write_gif(path / "samples.gif", [frame.image for frame in frames])
    where = "/".join(path.resolve().parts[-2:])
    page = _page(where, run, result, log, panels, frames, evaluations, problems)
    try:
        with replaced(path / "report.html") as temporary:
            temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"{path / 'report.html'}: cannot be written ({error.strerror})") from None
    return path / "report.html"


def update_report(workdir: str | os.PathLike) -> pathlib.Path | None:
    """``write_report`` for a run that ends: its result stands, and a report that cannot be made is a warning."""
    path = pathlib.Path(workdir)
    with _spared(path / "report.html"):
        return write_report(path)
    return None


@contextlib.contextmanager
def _spared(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever goes wrong with one of the files of a report into a warning.

    Numbers are not at stake, and what matplotlib and Pillow raise has no common type.
    """
    try:
        yield
    except UserError as error:
        records.warn(str(error))
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        records.warn(f"{path}: cannot be made ({' '.join(reason.split())[:200]})")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


# --- curves ---------------------------------------------------------------------------------------


def _panels(log: _Log) -> list[_Panel]:
    """The metrics of a log, those of one unit together, losses first and speed last."""
    points: dict[str, list[tuple[int, float]]] = {}
    for record in log:
        for name, value in record.items():
            if name not in _UNPLOTTED and (value is None or isinstance(value, int | float)):
                value = math.nan if value is None else float(value)
                points.setdefault(name, []).append((record["step"], value))
    groups: dict[str, list[_Curve]] = {}
    for name, pairs in points.items():
        player, _, metric = name.rpartition("/")
        group = groups.setdefault(_UNITS.get(metric, metric), [])
        free = [i for i in range(len(_COLORS)) if i not in {curve.color for curve in group}] or [0]
        color = _PLAYERS.get(player, 0)
        group.append(_curve(name, color if color in free else free[0], *zip(*pairs, strict=True)))
    return [
        _panel(_TITLES.get(group, _title(group)), groups[group])
        for group in sorted(groups, key=lambda group: _ORDER.get(group, 5))
    ]


def _title(group: str) -> str:
    text = group.replace("_", " ")
    return text[:1].upper() + text[1:]


def drawable(values: np.ndarray) -> np.ndarray:
    """The values that a picture shows for these: on the way to 1e308, and below 1e-308, axes cannot be computed."""
    values = np.clip(values, -1e300, 1e300)
    return np.where(np.abs(values) < 1e-300, 0.0, values)


def _curve(name: str, color: int, steps: Sequence[int], values: Sequence[float]) -> _Curve:
    """Thins to ``_MAX_POINTS`` points. The extremes and a gap of each bucket stay, so no spike goes unseen."""
    x, y = np.asarray(steps), np.asarray(values)
    finite = np.isfinite(y)
    bad_since = None if finite.all() else int(x[~finite][0])
    y = np.where(finite, y, np.nan)
    if len(y) > _MAX_POINTS:
        keep = {0, len(y) - 1}
        for bucket in np.array_split(np.arange(len(y)), (_MAX_POINTS - 2) // 3):
            ranked = bucket[np.argsort(y[bucket])].tolist()  # NaN last
            keep |= {ranked[0], ranked[max(finite[bucket].sum() - 1, 0)], ranked[-1]}
        x, y = x[sorted(keep)], y[sorted(keep)]
    return _Curve(name, color, x, y, bad_since)


def _panel(title: str, curves: list[_Curve]) -> _Panel:
    """Chooses the axis: logarithmic for positive values over more than two decades."""
    values = np.concatenate([curve.values for curve in curves])
    values = drawable(values[np.isfinite(values)])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    log = low > 0 and high > 100 * low
    if log:
        low, high = math.log10(low), math.log10(high)
    # Never so narrow that the labels, of four digits, are all the same.
    margin = max(0.05 * (high - low), 0.005 * abs(high)) or 1.0
    return _Panel(title, curves, log, low - margin, high + margin)


def _ticks(low: float, high: float, *, whole: bool) -> list[float]:
    """About four round numbers (1, 2 or 5 times a power of ten) in ``[low, high]``; integers if ``whole``."""
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    step = max(step, 1.0) if whole else step
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _write_curves(path: pathlib.Path, title: str, panels: Sequence[_Panel]) -> None:
    """``curves.png``: the panels of the report, for slides, papers and terminals that show pictures."""
    rows = 1 + len(panels) // 2
    height = 2.7 * rows + 0.4
    # Margins in inches that four digits fit into: finding the least ones takes longer than drawing, for every run.
    top, bottom, gap = 0.65, 0.45, 0.6
    axes_height = (height - top - bottom - (rows - 1) * gap) / rows
    with _drawing(path, figsize=(10, height), dpi=110) as figure:
        figure.suptitle(title, y=1 - 0.1 / height, parse_math=False)
        cells = figure.add_gridspec(
            rows,
            2,
            left=0.075,
            right=0.985,
            top=1 - top / height,
            bottom=bottom / height,
            hspace=gap / axes_height,
            wspace=0.16,
        )
        for i, panel in enumerate(panels, 1):
            # The first over both columns, and so the last if it is alone.
            alone = i == 1 or (i == len(panels) and i % 2 == 0)
            _draw_panel(figure.add_subplot(cells[i // 2, slice(None) if alone else i % 2]), panel)


def _draw_panel(axes: Any, panel: _Panel) -> None:
    for curve in panel.curves:
        marker = "o" if len(curve.steps) == 1 else None
        style = {"color": _COLORS[curve.color], "linewidth": 1.2, "marker": marker}
        axes.plot(curve.steps, drawable(curve.values), label=curve.name, **style)
    if panel.log:
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", scilimits=(-4, 5))
    axes.set_title(panel.title, fontsize=10, loc="left", parse_math=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    for text in axes.legend(fontsize=8, frameon=False).get_texts():
        text.set_parse_math(False)


def save_range(
    path: pathlib.Path,
    title: str,
    lrs: np.ndarray,
    raw: np.ndarray,
    smooth: np.ndarray,
    marks: dict[str, float],
) -> None:
    """A range test as PNG: loss against the step size, raw ``[seeds, n]`` and smoothed, with step sizes marked."""
    with _drawing_of_one(path, title) as (_, axes):
        for i, (one, mean) in enumerate(zip(drawable(raw), drawable(smooth), strict=True)):
            shown = np.isfinite(mean)
            axes.plot(lrs[shown], one[shown], color=_COLORS[0], alpha=0.15, linewidth=0.8)
            label = "smoothed" if i == 0 else None
            axes.plot(lrs, mean, color=_COLORS[0], linewidth=1.4, label=label)
        for i, (name, lr) in enumerate(marks.items()):
            axes.axvline(lr, color=_COLORS[1 + i], linestyle="--", label=f"{name}: {lr:.2g}")
        axes.set_xscale("log")
        axes.set_xlabel("step size")
        axes.legend(frameon=False, fontsize=8)


def save_distributions(
    path: str | os.PathLike,
    title: str,
    groups: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:
    """All values of every group as PNG: a row to a group, a color to each of its series, one point to a value.

    Args:
      path: of the picture.
      title: of the picture, and of its logarithmic axis.
      groups: positive values by group and series; values that are not finite are counted in the margin.
    """
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    with _drawing_of_one(path, title) as (figure, axes):
        from matplotlib.ticker import LogLocator

        for row, group in enumerate(groups.values()):
            axes.axhline(row, color="0.9", linewidth=26, zorder=0)
            for i, name in enumerate(series):
                fine = [value for value in group.get(name, ()) if math.isfinite(value)]
                height = row + 0.24 * (i - (len(series) - 1) / 2)
                axes.scatter(drawable(np.array(fine)), [height] * len(fine), 22, _COLORS[i], alpha=0.75, linewidths=0,
                             label=name if row == 0 else None)  # fmt: skip
            if broken := sum(not math.isfinite(v) for values in group.values() for v in values):
                at, frame = (1.01, row), ("axes fraction", "data")
                axes.annotate(f"{broken} broken", at, xycoords=frame, fontsize=8, va="center")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(LogLocator(subs=range(1, 10)))
        axes.xaxis.set_minor_formatter("")
        axes.set_yticks(range(len(groups)), list(groups))
        axes.set_ylim(len(groups) - 0.5, -0.5)
        figure.legend(loc="outside lower center", ncols=len(series), frameon=False, fontsize=8)


@contextlib.contextmanager
def _drawing_of_one(path: str | os.PathLike, title: str) -> Iterator[tuple[Any, Any]]:
    """As ``_drawing``: a figure and its only axes."""
    with _drawing(path, figsize=(8, 4.5), dpi=110, layout="constrained") as figure:
        axes = figure.add_subplot()
        axes.set_title(title, fontsize=10, loc="left", parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
        yield figure, axes


@contextlib.contextmanager
def _drawing(path: str | os.PathLike, **figure: Any) -> Iterator[Any]:
    """A matplotlib figure; once the block has drawn it, it is written as PNG, whole or not at all.

    It does not depend on what the user has set for matplotlib. MPLBACKEND of a notebook names a module that our
    processes may not have; a matplotlibrc may ask for LaTeX, or be damaged. So the package is imported without either,
    and drawn with as it is delivered; it may have been imported before.

    Raises:
      UserError: if matplotlib cannot be imported.
      OSError: if the picture cannot be written.
    """
    ours = {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
    theirs = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        # Not pyplot: it is slow to import and keeps every figure.
        from matplotlib.figure import Figure
    except Exception as error:
        # A matplotlibrc in this directory, which comes before ours, may hold anything.
        raise UserError(
            f"{path}: cannot be drawn, for matplotlib cannot be imported ({error})"
        ) from None
    finally:
        for name, value in theirs.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font does not have
        delivered: Any = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
        with matplotlib.rc_context(delivered):
            drawn = Figure(**figure)
            yield drawn
            with replaced(path) as temporary:
                FigureCanvasAgg(drawn).print_png(os.fspath(temporary))


# --- the page -------------------------------------------------------------------------------------


def read_grid(path: pathlib.Path) -> tuple[bytes, Any] | None:
    """A PNG as it is and as a decoded picture; None, and a warning, if it is damaged or no file."""
    from PIL import Image

    try:
        png = read_bytes(path) or b""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large ones
            Image.open(io.BytesIO(png), formats=["PNG"]).verify()  # decoding checks no sums
            return png, Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB")
    except Damaged as error:
        records.warn(f"{error}; it is left out of the report")
    except Exception:  # Pillow raises what it comes across: struct.error, SyntaxError, ...
        records.warn(f"{path}: is damaged; it is left out of the report")
    return None


def _frames(path: pathlib.Path) -> list[_Frame]:
    """The sample grids to show: evenly spaced, the first and the last of those that are sound among them."""
    found = [(step, file) for step, file in images.grids(path) if _begins_as_png(file)]
    read: dict[pathlib.Path, _Frame | None] = {}
    # Until all that are chosen are sound; a long run may have too many to read them all.
    while True:
        chosen = _thinned([each for each in found if read.get(each[1], True)])
        if all(file in read for _, file in chosen):
            return [frame for _, file in chosen if (frame := read[file])]
        for step, file in chosen:
            if file not in read:
                picture = read_grid(file)
                read[file] = picture and _Frame(step, *picture)


def _thinned(files: Sequence[tuple[int, pathlib.Path]]) -> Sequence[tuple[int, pathlib.Path]]:
    """As many of the grids, evenly spaced, as fit into a report."""
    chosen, sizes = files, [file.stat().st_size for _, file in files]
    for count in range(min(len(files), _MAX_GRIDS), 1, -1):
        at = [round(i * (len(files) - 1) / (count - 1)) for i in range(count)]
        chosen = [files[i] for i in at]
        if sum(sizes[i] for i in at) <= _MAX_GRID_BYTES:
            break
    return chosen


def _begins_as_png(path: pathlib.Path) -> bool:
    """Whether it is worth reading; if not, with a warning."""
    try:
        if read_bytes(path, first=8) == b"\x89PNG\r\n\x1a\n":
            return True
        records.warn(f"{path}: is no PNG; it is left out of the report")
    except Damaged as error:
        records.warn(f"{error}; it is left out of the report")
    return False


def _write_gif(path: pathlib.Path, images: Sequence[Any]) -> None:
    """The pictures of one size, six a second; the last one stays for two seconds."""
    images = [image for image in images if image.size == images[-1].size]
    times = [167] * (len(images) - 1) + [2000]
    with replaced(path) as temporary:
        images[0].save(
            temporary, format="gif", save_all=True, append_images=images[1:], duration=times, loop=0
        )


def _page(
    where: str,
    run: RunRecord,
    result: ResultRecord | None,
    log: _Log,
    panels: list[_Panel],
    frames: Sequence[_Frame],
    evaluations: Sequence[EvaluationRow],
    problems: Sequence[str],
) -> str:
    last = log[-1] if log else {}
    step = max(last.get("step", 0), result.step if result else 0)
    if result and result.step != step:  # left by an earlier part of a run that goes on
        result = None
    status = result.status if result else "unfinished"
    metrics = {k: v for k, v in last.items() if k not in ("step", "epoch", "anomaly")}
    metrics |= result.metrics if result else {}
    timings = result.timings if result else {}
    epochs = (
        last["epoch"] / last["step"] if last.get("step") and _is_finite(last.get("epoch")) else None
    )

    devices = run.devices[:4] + [f"… ({len(run.devices)} in all)"] * (len(run.devices) > 4)
    origin = {**run.versions, "git": run.git, "devices": ", ".join(devices)}
    notes = _notes(result, log, panels, problems)
    right = max([1] + [int(curve.steps[-1]) for panel in panels for curve in panel.curves])
    data = {
        "last": right,
        "epochsPerStep": epochs,
        "panels": [
            [p.low, p.high, p.log, [[c.steps.tolist(), _rounded(c.values)] for c in p.curves]]
            for p in panels
        ],
    }
    template = pathlib.Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return string.Template(template).substitute(
        experiment=_text(run.experiment),
        where=_text(where),
        status=_text(status),
        status_class="done" if status == "done" else "",
        note=f'<p class="note">{_text(" ".join(notes))}</p>' if notes else "",
        samples=_samples(frames, epochs),
        facts=_rows(_facts(step, epochs, log, metrics, timings)),
        timings=_section("Seconds of this process", "bars", _bars(timings)),
        curves=_section("Curves", "curves", "".join(_figure(panel, right) for panel in panels)),
        evaluation=_evaluations(evaluations),
        config=_section("Configuration", "wide", _rows(run.config)),
        metrics=_section("Final metrics", "", _rows(metrics)),
        origin=_section("Versions", "", _rows(origin)),
        command=_command(run.command),
        # Numbers only: nothing in it can end the element that holds it.
        data=json.dumps(data, separators=(",", ":"), allow_nan=False),
    )


def _facts(
    step: int,
    epochs: float | None,
    log: _Log,
    metrics: Mapping[str, Any],
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """What stands beside the samples: how far the run is, how fast, and its first few numbers."""
    last = log[-1] if log else {}
    facts: dict[str, Any] = {"steps": f"{step:,}"}
    if epochs:
        facts["epochs"] = _number(round(step * epochs, 2))
    if _is_finite(seconds := last.get("time/elapsed", timings.get("total_s"))):
        facts["duration"] = _duration(seconds)
    speeds = [r["time/images_per_s"] for r in log if _is_finite(r.get("time/images_per_s"))]
    if speeds:
        facts["images/s (median)"] = f"{statistics.median(speeds):,.0f}"
    # What was measured at the end, then the losses.
    shown = [k for k in metrics if k not in last] + [k for k in last if k.split("/")[-1] == "loss"]
    return facts | {k: _number(metrics[k]) for k in shown[:6]}


def _notes(
    result: ResultRecord | None, log: _Log, panels: Sequence[_Panel], problems: Sequence[str]
) -> list[str]:
    """What a reader must know before the numbers."""
    notes = list(problems)
    if not result and not any(problem.startswith("result.json") for problem in problems):
        notes.append("No result yet: the run is going on, or was killed.")
    for curve in (c for panel in panels for c in panel.curves if c.bad_since is not None):
        notes.append(f"{curve.name} is not finite at step {curve.bad_since:,}.")
    found = [f"Step {r['step']:,}: {r['anomaly']}." for r in log if r.get("anomaly")]
    return notes + found[:5] + [f"{len(found) - 5} more anomalies."] * (len(found) > 5)


def _samples(frames: Sequence[_Frame], epochs_per_step: float | None) -> str:
    """The last grid, large, and the others hidden behind a slider; nothing for runs that draw nothing."""
    images, label = "", ""
    for i, (step, png, image) in enumerate(frames, 1):
        label = f"step {step:,}"
        if epochs_per_step:
            label += f" · epoch {_number(round(step * epochs_per_step, 2))}"
        width, height = image.size
        scale = max(1, _GRID_WIDTH // width)
        kind = ' class="pixels"' if width <= _GRID_WIDTH else ""
        images += (
            f'<img{kind} width="{width * scale}" height="{height * scale}" data-step="{step}" alt="Samples at {label}"'
            f' src="data:image/png;base64,{base64.b64encode(png).decode()}"{" hidden" * (i < len(frames))}>'
        )
    return f"""<figure class="samples"><div class="grid">{images}</div>
<div class="player" hidden><button type="button" aria-label="Play"><svg viewBox="0 0 16 16">
<path class="play" d="M4 2.5v11l9.5-5.5z"/><path class="pause" d="M3.5 2.5h3v11h-3zm6 0h3v11h-3z"/></svg></button>
<input type="range" max="{len(frames) - 1}" value="{len(frames) - 1}" aria-label="Sample grid by step"></div>
<figcaption>Samples of the same latents, <output>{label}</output>
<noscript>(earlier ones are behind a slider that needs JavaScript)</noscript></figcaption></figure>""" * bool(
        frames
    )


def _figure(panel: _Panel, right: int) -> str:
    """A panel as static SVG, 1000 x 1000 and stretched to fit; texts are HTML around it and keep their size."""
    ticks = _ticks(panel.low, panel.high, whole=panel.log)
    ys = [
        (100 * (t - panel.low) / (panel.high - panel.low), 10.0**t if panel.log else t)
        for t in ticks
    ]
    xs = [(100 * t / right, t) for t in _ticks(0, right, whole=True)]
    lines = "".join(f'<path d="M0 {1000 - 10 * at:.1f}h1000"/>' for at, _ in ys)
    curves = "".join(
        f'<path class="c{c.color}{" lone" * (len(c.steps) == 1)}" d="{_path(panel, c, right)}"/>'
        for c in panel.curves
    )
    legend = "".join(
        f'<span class="c{c.color}"><i></i>{_text(c.name)} <b>{_number(c.values[-1])}</b></span>'
        for c in panel.curves
    )
    y_labels = "".join(f'<span style="bottom:{at:.2f}%">{_number(t)}</span>' for at, t in ys)
    x_labels = "".join(f'<span style="left:{at:.2f}%">{_number(t)}</span>' for at, t in xs)
    title = _text(panel.title) + (" <small>log scale</small>" if panel.log else "")
    return f"""<figure class="panel"><figcaption><h3>{title}</h3><div class="legend">{legend}</div></figcaption>
<div class="plot"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{_text(panel.title)}">
<g>{lines}</g>{curves}</svg><div class="ys">{y_labels}</div><div class="xs">{x_labels}</div></div></figure>"""


def _path(panel: _Panel, curve: _Curve, right: int) -> str:
    """A curve as SVG path data; it breaks where values are not finite."""
    xs, ys = 1000 * curve.steps / right, 1000 * (1 - panel.heights(curve.values))
    parts, draws = [], False
    for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
        if not math.isnan(y):  # "h0" makes a lone point a dot
            parts.append(f"L{x:.1f} {y:.1f}" if draws else f"M{x:.1f} {y:.1f}h0")
        draws = not math.isnan(y)
    return "".join(parts)


def _number(value: Any) -> str:
    """Four digits, or a whole number with separators: for reading, not for computing."""
    if not _is_finite(value):
        return "not finite" if isinstance(value, float) else "–"
    return f"{value:,.0f}" if value == 0 or 1e3 <= abs(value) < 1e9 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m:02d} min" if hours else f"{m} min {s:02d} s"


def _rounded(values: np.ndarray) -> list[float | None]:
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values.tolist()]


def _text(value: Any) -> str:
    """Anything as escaped HTML."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value in ("", None) else html.escape(str(value))


def _rows(rows: dict[str, Any]) -> str:
    return "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in rows.items())


def _bars(timings: dict[str, Any]) -> str:
    """Seconds by activity, each with a bar that is its share of the total."""
    rows = {k.removesuffix("_s").replace("_", " "): v for k, v in timings.items() if _is_finite(v)}
    total = max(rows.values(), default=0) or 1
    return "".join(
        f'<div><dt>{_text(k)}</dt><dd><i style="--share:{100 * v / total:.1f}%"></i>{v:,.1f}</dd></div>'
        for k, v in rows.items()
    )


def _evaluations(rows: Sequence[EvaluationRow]) -> str:
    """The tables of ``experiments.evaluate``, one for each checkpoint, flags, data and seed, which stand over it."""
    groups: dict[str, list[EvaluationRow]] = {}
    for row in rows:
        groups.setdefault(records.circumstances(row), []).append(row)
    tables = "".join(map(_evaluation, groups.values()))
    title = "Evaluation" if len(groups) == 1 else "Evaluations"
    return f'<section class="evaluation"><h2>{title}</h2>{tables}</section>' * bool(groups)


def _evaluation(rows: Sequence[EvaluationRow]) -> str:
    """The numbers of one evaluation, and what they depend on."""
    head = "".join(f"<th>{column}</th>" for column in ("value", "real", "untrained"))
    body = ""
    for row in rows:
        cells = "".join(f"<td>{_number(v)}</td>" for v in (row.value, row.real, row.untrained))
        covers = f" <small>{row.classes} of {row.of_classes} classes</small>"
        body += f"<tr><th>{_text(row.metric)}{covers * (row.classes is not None)}</th>{cells}</tr>"
    first, nets = rows[0], {(row.features, row.features_sha256): row for row in rows}
    notes = [
        f"{_text(first.n)} samples against {_text(first.reference_images)} images of {_text(first.reference)};"
        f" real: training images in the place of the samples; seed {_text(first.seed)}.",
        *(
            f"{_text(net.features)}: {_text(net.preprocessing)}; sha256 {_text(net.features_sha256)}."
            for net in nets.values()
            if net.features
        ),
    ]
    title = records.sampled_from(first)
    return (
        f"<h3>{_text(title[:1].upper() + title[1:])}</h3>"
        f'<div class="scroll"><table><tr><th></th>{head}</tr>{body}</table></div><p>{"<br>".join(notes)}</p>'
    )


def _command(command: str) -> str:
    """What a shell repeats the run with, if it was begun by one."""
    return (
        f'<section class="command"><h2>Command</h2><pre>{_text(command)}</pre>'
        "<p>The same command resumes the run.</p></section>"
    ) * bool(command)


def _section(title: str, kind: str, content: str) -> str:
    tag = "div" if kind == "curves" else "dl"
    return (
        f'<section class="{kind}"><h2>{title}</h2><{tag}>{content}</{tag}></section>'
        if content
        else ""
    )
