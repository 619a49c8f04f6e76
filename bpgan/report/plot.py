"""The one place that knows axes, ticks, colors and scales: a plot is a figure of a page, or a part of an SVG file.

Pages and files follow the reader's light or dark colors. In a page a plot is as wide as there is room, and its texts
are HTML, which keeps its size; in a file it is drawn to scale.
"""

import html
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bpgan.files import replaced


def _read(name: str) -> str:
    return pathlib.Path(__file__).with_name(name).read_text(encoding="utf-8")


STYLE = _read("plot.css")
"""Of figures."""

PAGE_STYLE = _read("style.css")
"""Of every page: what is of no figure."""


def _colors() -> list[tuple[str, str]]:
    light, dark = (dict(re.findall(r"-(c\d): (#\w+);", part)) for part in STYLE.split("@media"))
    return [(light[name], dark[name]) for name in sorted(light)]


COLORS = _colors()
"""Of curves, each on a light and on a dark page."""


def number(value: Any) -> str:
    """Four digits, or a whole number with separators: for reading, not for computing."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "not finite" if isinstance(value, float) else "–"
    return f"{value:,.0f}" if value == 0 or 1e3 <= abs(value) < 1e9 else f"{value:.4g}"


def drawable(values: Any) -> np.ndarray:
    """The values that a picture shows for these: on the way to 1e308, and below 1e-308, axes cannot be computed."""
    values = np.clip(np.asarray(values, np.float64), -1e300, 1e300)
    return np.where(np.abs(values) < 1e-300, 0.0, values)


class Axis(NamedTuple):
    """A scale from values to [0, 1].

    Attributes:
      low, high: its ends; exponents of ten if ``log``.
      log: whether it is logarithmic.
    """

    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, values: Any, log: bool | None = None) -> "Axis":
        """An axis for these values and a margin; those that are not finite do not count.

        Args:
          values: one at least, or the axis is from 0 to 1.
          log: whether it is logarithmic; None: if all are positive and span more than two decades.
        """
        values = np.asarray(values, np.float64)
        values = drawable(values[np.isfinite(values)])
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        log = (low > 0 and high > 100 * low) if log is None else log and low > 0
        if log:
            low, high = math.log10(low), math.log10(high)
        # Never so narrow that the labels, of four digits, are all the same.
        margin = max(0.05 * (high - low), 0.005 * abs(high)) or 1.0
        return cls(low - margin, high + margin, log)

    def at(self, values: Any) -> np.ndarray:
        """Where values lie; what is too small for a logarithm lies far below."""
        values = drawable(values)
        if self.log:
            values = np.log10(np.where(values <= 0, 1e-300, values))
        return (values - self.low) / (self.high - self.low)

    def ticks(self, *, whole: bool = False) -> list[tuple[float, str]]:
        """Two to six round numbers (1, 2 or 5 times a power of ten): where they lie, and how they are written."""
        if self.log and self.high - self.low >= 2:
            step = math.ceil((self.high - self.low) / 4)  # exponents of ten may be 3 apart
            values = [10.0**exponent for exponent in _multiples(step, self.low, self.high)]
        elif self.log:  # within a decade
            values = _round_numbers(10.0**self.low, 10.0**self.high, False)
        else:
            values = _round_numbers(self.low, self.high, whole)
        ends = ((math.log10(v) if self.log else v) - self.low for v in values)
        return [
            (at / (self.high - self.low), number(v)) for at, v in zip(ends, values, strict=True)
        ]


def _round_numbers(low: float, high: float, whole: bool) -> list[float]:
    raw = (high - low) / (4 if whole else 5)  # of steps, whose texts are wide, fewer
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    step = max(step, 1.0) if whole else step
    return _multiples(step, low, high)


def _multiples(step: float, low: float, high: float) -> list[float]:
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


class Shape(NamedTuple):
    """Points in the unit square, and how they are drawn.

    Attributes:
      x, y: their places; a line is broken where one is NaN.
      color: index into ``COLORS``.
      kind: ``line``, ``dashed``, ``dots``, or ``band``: a closed area.
      opacity: 1 if it hides what is behind it.
    """

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    color: int = 0
    kind: str = "line"
    opacity: float = 1.0

    def path(self, width: float, height: float) -> str:
        """As SVG path data in a box of this size."""
        xs, ys = width * np.asarray(self.x), height * (1 - np.asarray(self.y))
        parts, draws = [], False
        for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
            if not math.isnan(y):  # "h0" makes a lone point a dot
                parts.append(f"L{x:.1f} {y:.1f}" if draws else f"M{x:.1f} {y:.1f}h0")
            draws = not math.isnan(y) and self.kind != "dots"
        return "".join(parts) + "z" * (self.kind == "band")

    def svg(self, width: float, height: float) -> str:
        """As an element, whose style is that of its classes."""
        kind = "" if self.kind == "line" else f" {self.kind}"
        faint = f' style="opacity:{self.opacity:.2f}"' if self.opacity < 1 else ""
        return f'<path class="c{self.color % len(COLORS)}{kind}"{faint} d="{self.path(width, height)}"/>'


class Plot(NamedTuple):
    """What is drawn, independent of where.

    Attributes:
      title: its text, and beside it ``small``.
      shapes: the first one behind.
      xs, ys: the places of ticks and their texts.
      legend: color, name and value of each.
      vertical: whether the ticks of x have lines, too.
      notes: texts at the right end, by their height.
      x_name: what the horizontal axis is; the title says what the vertical one is.
    """

    title: str
    shapes: Sequence[Shape]
    xs: Sequence[tuple[float, str]]
    ys: Sequence[tuple[float, str]]
    legend: Sequence[tuple[int, str, str]] = ()
    small: str = ""
    vertical: bool = False
    notes: Sequence[tuple[float, str]] = ()
    x_name: str = ""

    def lines(self, width: float, height: float) -> str:
        """Its grid in a box."""
        across = "".join(f'<path d="M0 {height * (1 - at):.1f}h{width:g}"/>' for at, _ in self.ys)
        up = "".join(f'<path d="M{width * at:.1f} 0v{height:g}"/>' for at, _ in self.xs)
        return f"<g>{across}{up * self.vertical}</g>"

    def drawn(self, width: float, height: float) -> str:
        """All of it that is no text, in a box."""
        return self.lines(width, height) + "".join(s.svg(width, height) for s in self.shapes)


def figure(plot: Plot) -> str:
    """A plot as HTML: an SVG that is stretched to fit, in a page that has ``STYLE``."""
    legend = "".join(
        f'<span class="c{color % len(COLORS)}"><i></i>{html.escape(name)}'
        + (f" <b>{html.escape(value)}</b></span>" if value else "</span>")
        for color, name, value in plot.legend
    )
    ys = "".join(
        f'<span style="bottom:{100 * at:.2f}%">{html.escape(t)}</span>' for at, t in plot.ys
    )
    xs = "".join(f'<span style="left:{100 * at:.2f}%">{html.escape(t)}</span>' for at, t in plot.xs)
    small = f" <small>{html.escape(plot.small)}</small>" if plot.small else ""
    x_name = f'<div class="x-name">{html.escape(plot.x_name)}</div>' if plot.x_name else ""
    title, letters = html.escape(plot.title), max((len(text) for _, text in plot.ys), default=0)
    return f"""<figure class="panel"><figcaption><h3>{title}{small}</h3><div class="legend">{legend}</div></figcaption>
<div class="plot{" vertical" * plot.vertical}" style="--letters:{letters}">
<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{title}">
{plot.drawn(1000, 1000)}</svg><div class="ys">{ys}</div>
<div class="xs" style="--columns:{len(plot.xs)}">{xs}</div>{x_name}</div></figure>"""


# --- files ----------------------------------------------------------------------------------------

_RIGHT, _TOP, _BOTTOM = 34, 46, 44  # around the box of a plot, in pixels


def _file_style() -> str:
    """Without variables, which programs other than browsers do not know."""

    def scheme(dark: int, paper: str, ink: str, soft: str, line: str) -> str:
        curves = "".join(
            f".c{i}{{stroke:{c[dark]}}}.f{i}{{fill:{c[dark]}}}" for i, c in enumerate(COLORS)
        )
        bands = "".join(f".c{i}.band{{fill:{c[dark]};stroke:none}}" for i, c in enumerate(COLORS))
        return f".paper{{fill:{paper}}}text{{fill:{soft}}}.ink{{fill:{ink}}}g path{{stroke:{line}}}{curves}{bands}"

    return (
        "text{font:12px system-ui,'Segoe UI','Liberation Sans',sans-serif}.ink{font-weight:600}"
        "path{fill:none;stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}g path{stroke-width:1}"
        ".dots{stroke-width:7}.dashed{stroke-dasharray:4 4}.band{opacity:.15}"
        ".end{text-anchor:end}.mid{text-anchor:middle}"
        + scheme(0, "#ffffff", "#1d1c1a", "#6f6b64", "#e7e3dc")
        + "@media(prefers-color-scheme:dark){"
        + scheme(1, "#141416", "#ecebe8", "#98958e", "#2b2b2f")
        + "}"
    )


def write_svg(
    path: str | os.PathLike,
    plots: Sequence[Plot],
    *,
    title: str = "",
    width: int = 1000,
    height: int = 220,
) -> None:
    """Writes the text of ``svg`` as a file, whole or not at all. Raises OSError if it cannot be written."""
    content = svg(plots, title=title, width=width, height=height)
    with replaced(path) as temporary:
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")


def svg(plots: Sequence[Plot], *, title: str = "", width: int = 1000, height: int = 220) -> str:
    """Plots as the text of one SVG file: the first over both columns, and so the last if it is alone.

    Args:
      plots: one at least.
      title: over all.
      width: of the picture in pixels.
      height: of the box of a plot.
    """
    # Of a font that is not known here, a letter is about 7 pixels wide.
    margin = max([70, *(24 + 7 * len(text) for plot in plots for _, text in plot.ys)])
    parts, top = [], 34.0 if title else 0.0
    for i, plot in enumerate(plots):
        alone = i == 0 or (i == len(plots) - 1 and i % 2 == 1)
        across = width if alone else width / 2
        left = width / 2 if i and i % 2 == 0 else 0.0
        parts.append(_placed(plot, left + margin, top, across - margin - _RIGHT, height))
        if alone or i % 2 == 0:
            top += height + _TOP + _BOTTOM
    heading = f'<text class="ink" x="{margin}" y="24">{_text(title)}</text>' if title else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top:g}" viewBox="0 0 {width} {top:g}">'
        f'<style>{_file_style()}</style><rect class="paper" width="100%" height="100%"/>'
        f"{heading}{''.join(parts)}</svg>\n"
    )


def _placed(plot: Plot, left: float, top: float, width: float, height: float) -> str:
    """A plot in a picture, its texts around a box of this size."""
    small = f'<tspan font-weight="400" dx="8">{_text(plot.small)}</tspan>' if plot.small else ""
    keys = "".join(
        f'<tspan class="f{c % len(COLORS)}" dx="{14 * (i > 0)}">●</tspan> '
        + _text(" ".join(filter(None, (name, value))))
        for i, (c, name, value) in enumerate(plot.legend)
    )
    texts = [
        f'<text class="ink" y="-24">{_text(plot.title)}{small}</text>',
        f'<text class="end" x="{width:g}" y="-8">{keys}</text>' * bool(keys),
        f'<text class="end" x="{width:g}" y="{height + 34:g}">{_text(plot.x_name)}</text>'
        * bool(plot.x_name),
        *(
            f'<text class="end" x="-8" y="{height * (1 - at) + 4:.1f}">{_text(t)}</text>'
            for at, t in plot.ys
        ),
        *(
            f'<text class="mid" x="{width * at:.1f}" y="{height + 18:g}">{_text(t)}</text>'
            for at, t in plot.xs
        ),
        *(
            f'<text class="end" x="{width:g}" y="{height * (1 - at) + 4:.1f}">{_text(t)}</text>'
            for at, t in plot.notes
        ),
    ]
    at = f"translate({left:g} {top + _TOP:g})"
    return f'<svg overflow="visible" transform="{at}">{plot.drawn(width, height)}{"".join(texts)}</svg>'


def _text(text: str) -> str:
    """Escaped, and without what XML cannot hold."""
    return html.escape(re.sub("[\x00-\x08\x0b-\x1f\ufffe\uffff]", "\ufffd", text))


def save_range(
    path: str | os.PathLike,
    title: str,
    lrs: np.ndarray,
    raw: np.ndarray,
    smooth: np.ndarray,
    marks: Mapping[str, float],
) -> None:
    """A range test as SVG: loss against the step size, raw ``[seeds, n]`` and smoothed, with step sizes marked."""
    seen = np.where(np.isfinite(smooth), raw, np.nan)  # what came after the divergence says nothing
    x, y = Axis.of(lrs, log=True), Axis.of(np.concatenate([seen, smooth], axis=None))
    shapes = [Shape(x.at(lrs), y.at(each), opacity=0.25) for each in seen]
    shapes += [Shape(x.at(lrs), y.at(each)) for each in smooth]
    legend = [(0, "smoothed", "")]
    for i, (name, lr) in enumerate(marks.items(), 1):
        at = float(x.at(lr))
        shapes.append(Shape((at, at), (0, 1), i, "dashed"))
        legend.append((i, name, f"{lr:.2g}"))
    small = "log scale, against the step size" if y.log else "against the step size"
    plot = Plot(title, shapes, x.ticks(), y.ticks(), legend, small)
    write_svg(path, [plot], width=880, height=380)


def save_distributions(
    path: str | os.PathLike, title: str, groups: Mapping[str, Mapping[str, Sequence[float]]]
) -> None:
    """All values of every group as SVG: a row to a group, a color to each of its series, one point to a value.

    Args:
      path: of the picture.
      title: of the picture, and of its logarithmic axis.
      groups: positive values by group and series; values that are not finite are counted in the margin.
    """
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    x = Axis.of(
        [v for group in groups.values() for values in group.values() for v in values], log=True
    )
    shapes, rows, notes, size = [], [], [], len(groups)
    for i, (name, group) in enumerate(groups.items()):
        middle = 1 - (i + 0.5) / size
        rows.append((middle, name))
        for j, one in enumerate(series):
            fine = [value for value in group.get(one, ()) if math.isfinite(value)]
            height = middle - 0.24 * (j - (len(series) - 1) / 2) / size
            shapes.append(Shape(x.at(fine), [height] * len(fine), j, "dots", 0.75))
        if broken := sum(not math.isfinite(v) for values in group.values() for v in values):
            notes.append((middle, f"{broken} broken"))
    legend = [(j, one, "") for j, one in enumerate(series)]
    plot = Plot(title, shapes, x.ticks(), rows, legend, "log scale", notes=notes)
    write_svg(path, [plot], width=880, height=60 * size)
