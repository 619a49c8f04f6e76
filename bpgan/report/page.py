"""What a run left on disk, for people: sample grids, curves, one self-contained HTML page.

Everything here is a function of the run directory (its layout is in ``directory.open_run``), so a report can be made
again at any time, of a finished, running or killed run. Page and script are in ``page.html`` next to this file. What
is damaged in the directory, and what cannot be drawn or written, is named and left out of the page.
"""

import base64
import contextlib
import html
import io
import json
import math
import os
import pathlib
import re
import statistics
import string
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bpgan.files import Damaged, read_bytes, replaced
from bpgan.measures import CONTROLS, direction
from bpgan.report import plot
from bpgan.runtime import images, records
from bpgan.runtime.records import EvaluationRow, ResultRecord, RunRecord
from bpgan.types import UserError, counted

_Log = list[dict[str, Any]]

_MAX_POINTS = 1000
_MAX_GRIDS, _MAX_GRID_BYTES = 60, 3_400_000  # a report stays below 5 MB and can be mailed
_GRID_WIDTH, _GRID_HEIGHT = 640, 1100  # pixels; smaller grids are enlarged by a whole factor

_PHONE_WIDTH = 340  # pixels of a grid, about

# Metrics share a panel if their names end alike (``d/grad_norm``, ``g/grad_norm``) or have one unit.
_UNITS = {"real": "logits", "fake": "logits"}
_TITLES = {
    "loss": "Loss",
    "kl": "KL",
    "elbo": "ELBO",
    "logits": "Mean logit",
    "grad_norm": "Gradient norm",
    "images_per_s": "Images per second",
}
_ORDER = {"loss": 0, "logits": 1, "grad_norm": 2, "images_per_s": 9}  # others in between
_UNPLOTTED = {"step", "epoch", "time/elapsed", "time/steps_per_s"}
_PLAYERS = {"d": 0, "g": 1}  # the same colors in every report


_EXPLORED = ("explore.html", "interpret/explore.html")  # where experiments.interpret writes
_EXPLORE = "Explore what it has learned: directions, attribution, neighbors, inversion"


class _Curve(NamedTuple):
    name: str
    color: int
    steps: np.ndarray  # int [n]
    values: np.ndarray  # float64 [n], NaN where not finite
    bad_since: int | None  # first step with a value that is not finite
    beside: bool = False  # a control of another curve


class _Panel(NamedTuple):
    title: str
    curves: list[_Curve]
    axis: plot.Axis
    compared: str  # how many samples with how many images; empty of what is no evaluation


class _Frame(NamedTuple):
    """A sample grid: its step, its file as it is, and the picture in it."""

    step: int
    png: bytes
    image: Any


class _Found(NamedTuple):
    """What a run directory holds; ``problems`` says what of it is damaged, ``private`` whether no image may show.

    ``explored`` are the pages of ``experiments.interpret`` that are there.
    """

    run: RunRecord
    result: ResultRecord | None
    log: _Log
    evaluations: Sequence[EvaluationRow]
    frames: Sequence[_Frame]
    pictures: Sequence[pathlib.Path]
    problems: Sequence[str]
    private: bool
    explored: Sequence[str]


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes ``curves.svg``, ``samples.gif`` and ``report.html`` into a run directory; returns the path of the last.

    Reads ``config.json``, ``metrics.jsonl``, ``samples/step_*.png``, ``result.json``, and ``metrics.json`` of its
    evaluations; all but the first may be missing or damaged. The page is one file that loads nothing.

    Raises:
      UserError: if the directory holds no run, its record is damaged, or the page cannot be written.
    """
    path = pathlib.Path(workdir)
    found = _read(path)
    panels, constants = _without_constants(_panels(found.log, found.run))
    right = max([1] + [int(curve.steps[-1]) for panel in panels for curve in panel.curves])
    plots = [_plot(panel, right) for panel in panels]
    if plots:
        with _spared(path / "curves.svg"):
            plot.write_svg(path / "curves.svg", plots, title=found.run.experiment)
    if len(found.frames) > 1:
        with _spared(path / "samples.gif"):
            _write_gif(path / "samples.gif", [frame.image for frame in found.frames])
    where = "/".join(path.resolve().parts[-2:])
    page = _page(found, where, panels, plots, right, constants)
    try:
        with replaced(path / "report.html") as temporary:
            temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"{path / 'report.html'}: cannot be written ({error.strerror})") from None
    return path / "report.html"


def _read(path: pathlib.Path) -> _Found:
    """What there is to report on. Raises a UserError if the record is missing or damaged."""
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
    private = records.is_private(path)
    # Those of an experiment may show images that it learned from, or their neighbors.
    pictures = [] if private else sorted(path.glob("pictures/*.*"))
    explored = [at for at in _EXPLORED if (path / at).is_file()]
    return _Found(
        run, result, log, evaluations, _frames(path), pictures, problems, private, explored
    )


def update_report(workdir: str | os.PathLike) -> pathlib.Path | None:
    """``write_report`` for a run that ends: its result stands, and a report that cannot be made is a warning."""
    path = pathlib.Path(workdir)
    with _spared(path / "report.html"):
        return write_report(path)
    return None


@contextlib.contextmanager
def _spared(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever goes wrong with one of the files of a report into a warning.

    Numbers are not at stake, and what Pillow raises has no common type.
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


def _panels(log: _Log, run: RunRecord) -> list[_Panel]:
    """The metrics of a log, those of one unit together, losses first and speed last."""
    points: dict[str, list[tuple[int, float]]] = {}
    for record in log:
        for name, value in record.items():
            if name not in _UNPLOTTED and (value is None or isinstance(value, int | float)):
                value = math.nan if value is None else float(value)
                points.setdefault(name, []).append((record["step"], value))
    groups: dict[str, list[_Curve]] = {}
    for name, pairs in points.items():
        measured = _without_control(name)
        player, _, metric = measured.rpartition("/")
        group = groups.setdefault(_UNITS.get(metric, metric), [])
        free = [
            i for i in range(len(plot.COLORS)) if i not in {curve.color for curve in group}
        ] or [0]
        color = _PLAYERS.get(player, 0)
        curve = _curve(name, color if color in free else free[0], *zip(*pairs, strict=True))
        group.append(curve._replace(beside=measured != name))
    titles = _TITLES if run.dataset else _TITLES | {"images_per_s": "Examples per second"}
    return [
        _Panel(
            titles.get(group, _title(group)),
            curves,
            # Of what is the better the larger it is, a logarithm would crowd the good end.
            plot.Axis.of(
                np.concatenate([curve.values for curve in curves]),
                log=False if direction(curves[0].name) > 0 else None,
            ),
            _compared(run.measure, curves[0].name),
        )
        for group, curves in sorted(groups.items(), key=lambda each: _ORDER.get(each[0], 5))
    ]


def _compared(measure: Mapping[str, str], name: str) -> str:
    """How many samples a number compares with how many images, by what the run measures with; empty if it does not."""
    of = {"eval": ("held_images", "held out"), "test": ("test_images", "of the test split")}
    kept, which = of.get(name.removeprefix("best/").partition("/")[0], ("", ""))
    counts = [measure.get("samples", ""), measure.get(kept, "")]
    if not all(map(str.isdecimal, counts)):
        return ""
    samples, images = map(int, counts)
    return f"{counted(samples, 'sample')} against {counted(images, 'image')} {which}"


def _without_constants(panels: Sequence[_Panel]) -> tuple[list[_Panel], dict[str, float]]:
    """The panels that have something to show, and the values of those whose curves are single points or constant."""
    kept, constants = [], {}
    for panel in panels:
        own = [curve for curve in panel.curves if not curve.beside] or panel.curves
        if any(len(set(curve.values.tolist())) > 1 for curve in own):
            kept.append(panel)
        else:
            constants |= {curve.name: curve.values[-1].item() for curve in panel.curves}
    return kept, constants


def _without_control(name: str) -> str:
    """The number that one stands beside: ``eval/FD`` of ``eval/FD/real``, but ``d/real`` is a number itself."""
    base, _, of = name.rpartition("/")
    return base if "/" in base and f"/{of}" in CONTROLS else name


def _title(group: str) -> str:
    text = group.replace("_", " ")
    named = text[1:2].isupper()  # nFD is a name
    return text if named else text[:1].upper() + text[1:]


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


def _plot(panel: _Panel, right: int) -> plot.Plot:
    """A panel as it is drawn, from step 0 to ``right``."""
    across = plot.Axis(0, right)
    shapes, legend = [], []
    for curve in panel.curves:
        kind = "dots" if len(curve.steps) == 1 else "dashed" if curve.beside else "line"
        places = across.at(curve.steps), panel.axis.at(curve.values)
        shapes.append(plot.Shape(*places, color=curve.color, kind=kind))
        legend.append((curve.color, curve.name, plot.number(curve.values[-1].item())))
    small = ", ".join(filter(None, ("log scale" * panel.axis.log, panel.compared)))
    return plot.Plot(
        panel.title,
        shapes,
        across.ticks(whole=True),
        panel.axis.ticks(),
        legend,
        small,
        x_name="step",
    )


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
        if read_bytes(path, first=8) == images.SIGNATURE:
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
    found: _Found,
    where: str,
    panels: Sequence[_Panel],
    plots: Sequence[plot.Plot],
    right: int,
    constants: Mapping[str, float],
) -> str:
    run, log = found.run, found.log
    last = log[-1] if log else {}
    step = max(last.get("step", 0), found.result.step if found.result else 0)
    # Left by an earlier part of a run that goes on, a result does not describe it.
    result = found.result if found.result and found.result.step == step else None
    status = result.status if result else "unfinished"
    metrics = {k: v for k, v in last.items() if k not in ("step", "epoch", "anomaly")}
    metrics |= result.metrics if result else {}
    timings = result.timings if result else {}
    epochs = (
        last["epoch"] / last["step"] if last.get("step") and _is_finite(last.get("epoch")) else None
    )
    facts = _facts(step, epochs, log, metrics, timings, "images" if run.dataset else "examples")
    notes = _notes(found, result, panels)
    template = pathlib.Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return string.Template(template).substitute(
        style=plot.PAGE_STYLE + plot.STYLE,
        experiment=_text(run.experiment),
        where=_text(str(run.config.get("name") or where)),
        status=_text(status),
        status_class="done" if status == "done" else "",
        note=f'<p class="note">{_text(" ".join(notes))}</p>' if notes else "",
        samples=_samples(found.frames, epochs, run.frame),
        facts=_rows(facts) + _counts(run, facts),
        timings=_section("Seconds of this process", "bars", _bars(timings)),
        about="".join(f'<p class="about">{_text(line)}</p>' for line in about(run, found.private))
        + "".join(f'<p class="about"><a href="{at}">{_EXPLORE}</a></p>' for at in found.explored),
        curves=_section("Curves", "curves", "".join(map(plot.figure, plots))),
        privacy=_section("Privacy", "wide", _rows(found.result.privacy if found.result else {})),
        constants=_section("Constant, or logged once", "wide", _rows(constants)),
        pictures=_pictures(found.pictures),
        evaluation=_evaluations(found.evaluations, _monitored(run, metrics)),
        config=_section("Configuration", "wide", _rows(run.config)),
        metrics=_section("Final metrics", "", _rows(_without_controls(metrics))),
        origin=_section("Versions", "", _rows(_origin(run))),
        command=_command(run.command),
        data=_data(panels, right, epochs),
    )


def about(run: RunRecord, private: bool) -> list[str]:
    """What a run is trained on, if that may be told, and how many numbers it learns, in words."""
    lines = [line for line in run.title.splitlines() if line and not private]
    if run.parameters:
        counts = ", ".join(f"{count:,} of {name}" for name, count in run.parameters.items())
        lines.append(f"Parameters: {counts}.")
    return lines


def _has_controls(name: str, metrics: Mapping[str, Any]) -> bool:
    """Whether a number, or what it stands beside, has the same of real images or of an untrained model beside it."""
    return any(_without_control(name) + of in metrics for of in CONTROLS)


def _without_controls(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The final numbers but those of evaluations, which are a table of their own with their controls."""
    return {name: value for name, value in metrics.items() if not _has_controls(name, metrics)}


def _counts(run: RunRecord, names: Iterable[str]) -> str:
    """Under the first few numbers: how many samples those of evaluations compare with how many images."""
    said = {name.rpartition("/")[0]: _compared(run.measure, name) for name in names}
    texts = [f"{of}: {text}" for of, text in said.items() if text]
    return f'<div class="counts"><dt>{_text("; ".join(texts))}</dt></div>' * bool(texts)


def _monitored(run: RunRecord, metrics: Mapping[str, Any]) -> str:
    """Tables of the last numbers that were measured while the run trained, and at its end."""
    groups: dict[str, list[str]] = {}
    for name in metrics:
        if _has_controls(name, metrics) and _without_control(name) == name:
            groups.setdefault(name.rpartition("/")[0], []).append(name)
    titles = {"eval": "While it trained, last", "test": "At its end"}
    if "best/step" in metrics:
        titles["best/test"] = f"Best checkpoint, step {plot.number(metrics['best/step'])}"
    tables = ""
    for of, names in groups.items():
        rows = [
            (name, "", [metrics.get(name + which) for which in ("", *CONTROLS)]) for name in names
        ]
        notes = [f"{text}." for text in [_compared(run.measure, names[0])] if text]
        if (real := run.measure.get("real_images", "")).isdecimal():
            notes.append(f"Real: {counted(int(real), 'training image')} as the samples.")
        tables += _table(titles.get(of, of), rows, notes)
    return tables


def _origin(run: RunRecord) -> dict[str, Any]:
    """With what a run was made."""
    devices = run.devices[:4] + [f"… ({len(run.devices)} in all)"] * (len(run.devices) > 4)
    return {**run.versions, "git": run.git, "devices": ", ".join(devices)}


def _data(panels: Sequence[_Panel], right: int, epochs_per_step: float | None) -> str:
    """What the script of the page reads values from: numbers only, so nothing ends the element that holds it."""
    shown = [
        [*panel.axis, [[c.steps.tolist(), _rounded(c.values)] for c in panel.curves]]
        for panel in panels
    ]
    data = {"last": right, "epochsPerStep": epochs_per_step, "panels": shown}
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def _facts(
    step: int,
    epochs: float | None,
    log: _Log,
    metrics: Mapping[str, Any],
    timings: Mapping[str, float],
    what: str,
) -> dict[str, Any]:
    """What stands beside the samples: how far the run is, how fast, and its first few numbers."""
    last = log[-1] if log else {}
    facts: dict[str, Any] = {"steps": f"{step:,}"}
    if epochs:
        facts["epochs"] = plot.number(step * epochs)
    if _is_finite(seconds := last.get("time/elapsed", timings.get("total_s"))):
        facts["duration"] = _duration(seconds)
    speeds = [r["time/images_per_s"] for r in log if _is_finite(r.get("time/images_per_s"))]
    if speeds:
        facts[f"{what}/s (median)"] = f"{statistics.median(speeds):,.0f}"
    # What was measured at the end, what it is compared with (``b/lstsq``) behind it, then the losses.
    shown = sorted((k for k in metrics if k not in last), key=lambda name: name.count("/"))
    shown += [k for k in last if k.split("/")[-1] == "loss"]
    shown = [k for k in shown if _without_control(k) == k]
    return facts | {k: plot.number(metrics[k]) for k in shown[:6]}


def _notes(found: _Found, result: ResultRecord | None, panels: Sequence[_Panel]) -> list[str]:
    """What a reader must know before the numbers."""
    notes = list(found.problems)
    if found.private:
        notes += records.guaranteed(found.result)
        measured = found.result.metrics if found.result else {}
        if found.evaluations or any(_has_controls(name, measured) for name in measured):
            notes.append(f"Its evaluations {records.UNACCOUNTED}.")
    if found.run.origin:
        said = records.said_of(found.run.origin)
        notes.append(f"{said[:1].upper()}{said[1:]}.")
    if not result and not any(problem.startswith("result.json") for problem in notes):
        notes.append("No result yet: the run is going on, or was killed.")
    for curve in (c for panel in panels for c in panel.curves if c.bad_since is not None):
        notes.append(f"{curve.name} is not finite at step {curve.bad_since:,}.")
    said = [f"Step {r['step']:,}: {r['anomaly']}." for r in found.log if r.get("anomaly")]
    more = f"{counted(len(said) - 5, 'more anomaly', 'more anomalies')}."
    return notes + said[:5] + [more] * (len(said) > 5)


def _samples(frames: Sequence[_Frame], epochs_per_step: float | None, around: records.Frame) -> str:
    """The last grid, large, and the others hidden behind a slider; nothing for runs that draw nothing."""
    images, label, shown = "", "", _GRID_WIDTH
    for i, (step, png, image) in enumerate(frames, 1):
        label = f"step {step:,}"
        if epochs_per_step:
            label += f" · epoch {plot.number(step * epochs_per_step)}"
        width, height = image.size
        scale = max(1, min(_GRID_WIDTH // width, _GRID_HEIGHT // height))
        shown = width * scale
        kind = ' class="pixels"' if width <= _GRID_WIDTH else ""
        images += (
            f'<img{kind} width="{width * scale}" height="{height * scale}" data-step="{step}" alt="Samples at {label}"'
            f' src="data:image/png;base64,{base64.b64encode(png).decode()}"{" hidden" * (i < len(frames))}>'
        )
    before, after, kind = _framed(around, shown)
    # Of a plane or a curve, the axes say what it is.
    what = "" if after else "Samples of the same latents, "
    return f"""<figure class="samples">{before}<div class="grid{kind}">{images}{after}</div>
<div class="player" hidden><button type="button" aria-label="Play"><svg viewBox="0 0 16 16">
<path class="play" d="M4 2.5v11l9.5-5.5z"/><path class="pause" d="M3.5 2.5h3v11h-3zm6 0h3v11h-3z"/></svg></button>
<input type="range" max="{len(frames) - 1}" value="{len(frames) - 1}" aria-label="Sample grid by step"></div>
<figcaption>{what}<output>{label}</output>
<noscript>(earlier ones are behind a slider that needs JavaScript)</noscript></figcaption></figure>""" * bool(
        frames
    )


def _framed(frame: records.Frame, width: int) -> tuple[str, str, str]:
    """What stands before the pictures of a grid, which are so wide, and over them, and the class of their element."""
    if frame.columns:
        names = "".join(f"<span>{_text(name)}</span>" for name in frame.columns)
        # About 7 pixels a letter; what has no room in a line stands upright.
        longest = max(len(word) for name in frame.columns for word in name.split() or [name])
        needed = 7 * len(frame.columns) * longest
        kind = " upright" if needed > width else " narrow" if needed > _PHONE_WIDTH else ""
        style = f'style="--n:{len(frame.columns)};width:{width}px"'
        return f'<div class="columns{kind}" {style}>{names}</div>', "", ""
    legend = "".join(
        f'<span><i style="background:{color}"></i>{_text(name)}</span>'
        for color, name in frame.legend
        if re.fullmatch("#[0-9a-f]{6}", color)
    )
    before, after = f'<div class="legend">{legend}</div>' * bool(legend), ""
    for kind, side, axis in (("x", "left", frame.x), ("y", "bottom", frame.y)):
        if axis is not None and axis[1] < axis[2]:
            ticks = "".join(
                f'<span style="{side}:{100 * at:.2f}%">{_text(text)}</span>'
                for at, text in plot.Axis(*axis[1:]).ticks()
            )
            after += (
                f'<div class="{kind}s">{ticks}</div><div class="{kind}-name">{_text(axis[0])}</div>'
            )
    return before, after, " framed" * bool(after)


def _pictures(files: Sequence[pathlib.Path]) -> str:
    """What the experiment shows beside its samples."""
    kinds, figures = {".png": "png", ".svg": "svg+xml"}, ""
    for file in files:
        try:
            content = read_bytes(file)
        except Damaged as error:
            records.warn(f"{error}; it is left out of the report")
            continue
        if content and file.suffix in kinds:
            title = _text(_title(file.stem))
            figures += (
                f'<figure><h3>{title}</h3><img class="{"pixels" * (file.suffix == ".png")}" alt="{title}"'
                f' src="data:image/{kinds[file.suffix]};base64,{base64.b64encode(content).decode()}"></figure>'
            )
    return f'<section class="pictures">{figures}</section>' * bool(figures)


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
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e6 <= abs(value) < 1e15 else f"{value:.6g}"
    return "–" if value in ("", None) else html.escape(str(value))


def _rows(rows: Mapping[str, Any]) -> str:
    return "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in rows.items())


def _bars(timings: dict[str, Any]) -> str:
    """Seconds by activity, each with a bar that is its share of the total."""
    rows = {k.removesuffix("_s").replace("_", " "): v for k, v in timings.items() if _is_finite(v)}
    total = max(rows.values(), default=0) or 1
    return "".join(
        f'<div><dt>{_text(k)}</dt><dd><i style="--share:{100 * v / total:.1f}%"></i>{v:,.1f}</dd></div>'
        for k, v in rows.items()
    )


def _evaluations(rows: Sequence[EvaluationRow], monitored: str) -> str:
    """The tables of ``experiments.evaluate``, one for each checkpoint, flags, data and seed, which stand over it.

    Before them stand those of what was measured while the run trained.
    """
    groups: dict[str, list[EvaluationRow]] = {}
    for row in rows:
        groups.setdefault(records.circumstances(row), []).append(row)
    tables = monitored + "".join(map(_evaluation, groups.values()))
    title = "Evaluation" if len(groups) == 1 and not monitored else "Evaluations"
    return f'<section class="evaluation"><h2>{title}</h2>{tables}</section>' * bool(tables)


def _evaluation(rows: Sequence[EvaluationRow]) -> str:
    """The numbers of one evaluation, and what they depend on."""
    shown = [
        (
            row.metric,
            f"{row.classes} of {row.of_classes} classes" * (row.classes is not None),
            (row.value, row.real, row.untrained),
        )
        for row in rows
    ]
    first, nets = rows[0], {(row.features, row.features_sha256): row for row in rows}
    notes = [
        *(f"{each[:1].upper()}{each[1:]}." for each in records.compared(rows)),
        *[f"Seed {first.seed}."] * (first.seed is not None),
        *(
            f"{net.features}: {net.preprocessing or '–'}; sha256 {net.features_sha256 or '–'}."
            for net in nets.values()
            if net.features
        ),
    ]
    title = records.sampled_from(first)
    return _table(title[:1].upper() + title[1:], shown, notes)


def _table(
    title: str, rows: Iterable[tuple[str, str, Sequence[float | None]]], notes: Sequence[str]
) -> str:
    """A table of numbers, each with what it covers and with its controls, and what they depend on."""
    head = "".join(f"<th>{column}</th>" for column in ("value", *(of[1:] for of in CONTROLS)))
    body = ""
    for name, covers, values in rows:
        cells = "".join(f"<td>{plot.number(v)}</td>" for v in values)
        small = f" <small>{_text(covers)}</small>" * bool(covers)
        body += f"<tr><th>{_text(name)}{small}</th>{cells}</tr>"
    return (
        f"<h3>{_text(title)}</h3>"
        f'<div class="scroll"><table class="table"><tr><th></th>{head}</tr>{body}</table></div>'
        f"<p>{'<br>'.join(map(_text, notes))}</p>"
    )


def _command(command: str) -> str:
    """What a shell repeats the run with, if it was begun by one; a line breaks between its flags."""
    words = " ".join(f"<span>{_text(part)}</span>" for part in re.split(" (?=--)", command))
    return (
        f'<section class="command"><h2>Command</h2><pre>{words}</pre>'
        "<p>The same command resumes the run.</p></section>"
    ) * bool(command)


def _section(title: str, kind: str, content: str) -> str:
    tag = "div" if kind == "curves" else "dl"
    return (
        f'<section class="{kind}"><h2>{title}</h2><{tag}>{content}</{tag}></section>'
        if content
        else ""
    )
