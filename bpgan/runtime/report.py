"""What a run left on disk, for people: sample grids, curves, one self-contained HTML page.

Everything here is a function of the run directory (its layout is in ``train.open_run``), so a report can be made again
at any time, of a finished, running or killed run.
"""

import base64
import html
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from bpgan.types import UserError

_MAX_POINTS = 1000
_MAX_GRIDS = 60


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as uint8: ``round(127.5 (x + 1))``, clipped; uint8 is returned as it is."""
    if images.dtype == np.uint8:
        return images
    return np.clip(np.rint(127.5 * (images.astype(np.float64) + 1)), 0, 255).astype(np.uint8)


def image_grid(images: np.ndarray, *, columns: int = 10, gap: int = 2) -> np.ndarray:
    """Images ``[n, h, w, c]`` side by side, row by row, as uint8 ``[H, W, c]``.

    Args:
      images: uint8, or floats in [-1, 1].
      columns: images per row; the last row is filled up with black.
      gap: black pixels between images.
    """
    n, h, w, c = images.shape
    rows = -(-n // columns)
    grid = np.zeros((rows * (h + gap) - gap, columns * (w + gap) - gap, c), np.uint8)
    for i, image in enumerate(to_bytes(images)):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        grid[top : top + h, left : left + w] = image
    return grid


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8 ``[h, w, 1|3|4]`` as PNG; a reader never sees half a file. Makes the folder if need be."""
    from PIL import Image

    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(temporary, format="png")
    os.replace(temporary, path)


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; none if there is no file. A torn last line is left out.

    Raises:
      UserError: if any other line is not a JSON object with a step.
    """
    return [line for line, _ in _lines(pathlib.Path(path))]


def truncate_metrics(path: str | os.PathLike, step: int) -> None:
    """Drops the lines after ``step`` and a torn last line; what is kept is kept byte for byte."""
    path = pathlib.Path(path)
    if path.exists():
        end = max([end for line, end in _lines(path) if line["step"] <= step], default=0)
        with path.open("rb+") as file:
            file.truncate(end)


def _lines(path: pathlib.Path) -> list[tuple[dict[str, Any], int]]:
    """Each line of the log with the position of its end."""
    raw = path.read_bytes() if path.exists() else b""
    lines, start = [], 0
    while (end := raw.find(b"\n", start) + 1) > 0:
        try:
            line = json.loads(raw[start:end])
            float(line["step"])
        except (ValueError, TypeError, KeyError):
            number = len(lines) + 1
            raise UserError(
                f"{path}: line {number} is not a log line: {raw[start:end]!r}"
            ) from None
        lines.append((line, end))
        start = end
    return lines


def curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[list[float]]]]:
    """Panels of curves: ``{title: {metric: [[step, value], ...]}}``.

    Metrics whose names end alike share a panel (``d/loss`` and ``g/loss`` are in ``loss``). Values that are not finite
    are left out; at most about 1000 points are kept of each curve.
    """
    panels: dict[str, dict[str, list[list[float]]]] = {}
    thinned = lines[:: max(1, math.ceil(len(lines) / _MAX_POINTS))]
    if lines and thinned[-1] is not lines[-1]:
        thinned = [*thinned, lines[-1]]
    for line in thinned:
        for name, value in line.items():
            if name in ("step", "epoch", "time/elapsed", "time/images_per_s"):
                continue
            if isinstance(value, int | float) and math.isfinite(value):
                panel = panels.setdefault(name.rsplit("/", 1)[-1].replace("_", " "), {})
                panel.setdefault(name, []).append([line["step"], float(f"{value:.6g}")])
    return panels


def save_curves(path: pathlib.Path, panels: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws the panels of ``curves`` as a PNG of small multiples."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (title, panel) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1, title=title, xlabel="step")
        for name, points in panel.items():
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
        axes.grid(alpha=0.25)
        if len(panel) > 1:
            axes.legend(fontsize="small")
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=110)
    os.replace(temporary, path)


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes ``curves.png`` and ``report.html`` into a run directory and returns the page's path.

    The page needs nothing but itself: images are embedded, curves are drawn by a few lines of script inside it.

    Raises:
      UserError: if the directory holds no run.
    """
    path = pathlib.Path(workdir)
    record = _read_json(path / "config.json")
    if "experiment" not in record:
        raise UserError(f"{path}: holds no run (no config.json of bpgan)")
    lines = read_metrics(path / "metrics.jsonl")
    panels = curves(lines)
    save_curves(path / "curves.png", panels)
    page = _page(path, record, _read_json(path / "result.json"), lines, panels)
    temporary = path / "report.html.tmp"
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path / "report.html")
    return path / "report.html"


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _page(path, record, result, lines, panels) -> str:
    """Fills the template; every text that comes from the run is escaped."""
    last = lines[-1] if lines else {}
    elapsed = last.get("time/elapsed", 0.0)
    facts = {
        "status": result.get("status", "running or killed"),
        "step": f"{result.get('step', last.get('step', 0)):,}",
        "epochs": _number(last.get("epoch", "")),
        "training time": f"{elapsed / 60:.1f} min" if elapsed >= 60 else f"{elapsed:.1f} s",
        "images/s": _number(last.get("time/images_per_s", "")),
    }
    final = {
        k: v
        for k, v in (result.get("metrics") or last).items()
        if not k.startswith("time/") and k not in ("step", "epoch")
    }
    resume = f"{record.get('command', '')}"
    fill = {
        "TITLE": _text(f"{record['experiment']} · {path.resolve().name}"),
        "EXPERIMENT": _text(record["experiment"]),
        "PATH": _text(path),
        "FACTS": "".join(
            f"<div><b>{_text(v)}</b><span>{k}</span></div>" for k, v in facts.items() if v
        ),
        "SAMPLES": _samples(path),
        "CURVES": base64.b64encode((path / "curves.png").read_bytes()).decode(),
        "FINAL": _table(final),
        "CONFIG": _table(record.get("config", {})),
        "TIMINGS": _table(result.get("timings", {})),
        "VERSIONS": _table(
            record.get("versions", {}) | {"git": record.get("git") or "not a git checkout"}
        ),
        "DEVICES": _text(", ".join(map(str, record.get("devices", [])))),
        "RESUME": _text(resume),
        # "</" would end the script element that holds it.
        "DATA": json.dumps(panels).replace("</", "<\\/"),
    }
    page = resources.files("bpgan.runtime").joinpath("report.html").read_text(encoding="utf-8")
    for name, value in fill.items():
        page = page.replace(f"<!--{name}-->", value)
    return page


def _samples(path: pathlib.Path) -> str:
    """The last grid, large, with a slider over all of them; nothing for runs that draw nothing."""
    files = sorted((path / "samples").glob("step_*.png"))
    if not files:
        return ""
    if len(files) > _MAX_GRIDS:
        picked = np.linspace(0, len(files) - 1, _MAX_GRIDS).round().astype(int)
        files = [files[i] for i in picked]
    images = []
    for i, file in enumerate(files):
        step = int(file.stem.removeprefix("step_"))
        source = base64.b64encode(file.read_bytes()).decode()
        hidden = " hidden" if i < len(files) - 1 else ""
        images.append(
            f'<img{hidden} data-step="{step}" alt="samples at step {step}"'
            f' src="data:image/png;base64,{source}">'
        )
    n = len(files)
    return (
        '<section id="samples"><h2>Samples <small>the same latents at every step</small></h2>'
        f'<figure>{"".join(images)}</figure><div class="player"><button type="button" id="play"'
        f' aria-label="play">▶</button><input type="range" id="when" min="0" max="{n - 1}"'
        f' value="{n - 1}" aria-label="step"><output id="step"></output></div></section>'
    )


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{_text(k)}</th><td>{_text(_number(v))}</td></tr>" for k, v in values.items()
    )
    return f"<table>{rows}</table>" if rows else "<p>none</p>"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}"


def _text(value: Any) -> str:
    return html.escape(str(value))
