"""The page of an audit: a function of ``audit.json``, as ``experiments.audit`` writes it."""

import html
import math
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bpgan.files import replaced
from bpgan.report import plot
from bpgan.report.tables import Table
from bpgan.runtime.records import UNACCOUNTED
from bpgan.types import counted

_MEMBERSHIP = (
    "AUC is the chance that a member of the training set has the greater score than a held-out image: 0.5 if nothing"
    " leaks. TPR is the share of the members that are found at a threshold which at most 1 % of the held-out images"
    " pass. An attack says something if a whole interval is on the side of a leak; the intervals are so wide that of"
    " attacks that know nothing all say nothing with {sure:g} % confidence. That proves no privacy: another attack may"
    " say more."
)
_BOUNDS = (
    "Each canary was in the training with probability 1/2. If the training were private with a smaller epsilon than the"
    " bound, so many right guesses would be less likely than {beyond:.3g} %. The bound is no estimate of epsilon. The"
    " ceiling is the bound of as many guesses if all are right: no audit with these guesses shows more."
)


def write_page(path: pathlib.Path, found: Mapping[str, Any]) -> pathlib.Path:
    """Writes the page of an audit; one file that loads nothing. Raises OSError if it cannot be written."""
    with replaced(path) as temporary:
        temporary.write_text(page(found), encoding="utf-8", errors="backslashreplace")
    return path


def page(found: Mapping[str, Any]) -> str:
    """The text of the page, of what is in ``audit.json``."""
    body, figures = [], ""
    if found["attacks"]:
        figures += plot.figure(_roc(found["attacks"]))
    if found["bounds"]:
        figures += plot.figure(_bounds(found)).replace('"panel"', '"panel bounds"', 1)
    if figures:
        body.append(f'<section class="curves"><div>{figures}</div></section>')
    if found["attacks"]:
        body.append(f"<section><h2>Membership inference</h2>{membership(found).html()}</section>")
    if found["bounds"]:
        body.append(
            f"<section><h2>Lower bounds of epsilon</h2>{lower_bounds(found).html()}</section>"
        )
    if found["left_out"]:
        items = "".join(f"<li>{html.escape(text)}</li>" for text in found["left_out"])
        body.append(f"<section><h2>Not computed</h2><ul>{items}</ul></section>")
    template = pathlib.Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    leaks, verdict = _verdict(found)
    return string.Template(template).substitute(
        style=plot.PAGE_STYLE + plot.STYLE,
        where=html.escape(found["run"]),
        status=f'<span class="status{"" if leaks else " done"}">{html.escape(verdict)}</span>',
        about=_notes(found)
        + "".join(f'<p class="about">{html.escape(line)}</p>' for line in _about(found)),
        body="".join(body),
    )


def lines(found: Mapping[str, Any]) -> list[str]:
    """The numbers for a terminal."""
    said = [f"{found['run']}: checkpoint of step {found['step']}", *_about(found)[1:]]
    for row in found["attacks"]:
        tpr = f"TPR at {100 * row['at']:g} % FPR {_interval(row, 'tpr')}"
        said.append(f"{row['attack']:24s} AUC {_interval(row, 'auc')}   {tpr}")
    for row in found["bounds"]:
        right = f"{row['correct']} of {row['guesses']} guesses right"
        said.append(
            f"{row['canaries_are']:24s} epsilon >= {row['epsilon']:.3f} at delta {row['delta']:g}; {right}"
        )
    return [*said, *(f"not computed: {text}" for text in found["left_out"])]


def _interval(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def _verdict(found: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether something is wrong, and that in a few words."""
    claimed = found["claimed"]
    if claimed and any(_refutes(row, claimed) for row in found["bounds"]):
        return True, "the claimed epsilon is refuted"
    if any(row["leaks"] for row in found["attacks"]):
        return True, "members are told from others"
    if any(row["epsilon"] > 0 for row in found["bounds"]) and not claimed:
        return True, "canaries are found"
    return False, "these attacks find nothing"


def _refutes(row: Mapping[str, Any], claimed: Mapping[str, float]) -> bool:
    """Whether a bound is above the epsilon that the run claims, at a delta that is no smaller."""
    return row["delta"] >= claimed["delta"] and row["epsilon"] > claimed["epsilon"]


def _notes(found: Mapping[str, Any]) -> str:
    """What whoever shows the page of a private run must know."""
    return f'<p class="note">These numbers {UNACCOUNTED}.</p>' * bool(found["private"])


def _about(found: Mapping[str, Any]) -> list[str]:
    said = [f"{found['experiment']} of {found['dataset']}, checkpoint of step {found['step']:,}."]
    if found["attacks"]:
        row = found["attacks"][0]
        said.append(
            f"{counted(row['members'], 'training image')} against {counted(row['others'], 'image')}"
            f" held out of training ({found['held_out']}); {counted(found['samples'], 'sample')} of G."
        )
    if claimed := found["claimed"]:
        said.append(
            f"The run claims epsilon {claimed['epsilon']:.3f} at delta {claimed['delta']:g}."
        )
    else:
        said.append("The run claims no epsilon.")
    return said


# Plots --------------------------------------------------------------------------------------------------------------


def _roc(attacks: Sequence[Mapping[str, Any]]) -> plot.Plot:
    """True against false positive rates, both logarithmic, with chance as a dashed line."""
    low = 1 / max(max(row["members"], row["others"]) for row in attacks)
    axis = plot.Axis(math.log10(low), 0.0, True)
    ends = np.array([low, 1.0])
    shapes = [plot.Shape(axis.at(ends), axis.at(ends), 8, "dashed")]
    legend = [(8, "chance", "")]
    for i, row in enumerate(attacks):
        x, y = (axis.at(np.maximum(rates[1:], low)) for rates in row["roc"])  # 0 has no place
        shapes.append(plot.Shape(x, y, i))
        legend.append((i, row["attack"], f"{row['auc']:.3f}"))
    small = "log scales; behind each name its AUC"
    return plot.Plot(
        "True positive rate",
        shapes,
        axis.ticks(),
        axis.ticks(),
        legend,
        small,
        x_name="false positive rate",
    )


def _bounds(found: Mapping[str, Any]) -> plot.Plot:
    """The lower bounds as dots, their ceilings as the ends of lines, and what is claimed as a dashed line."""
    rows, claimed = found["bounds"], found["claimed"]
    values = [row[name] for row in rows for name in ("epsilon", "ceiling")]
    values += [claimed["epsilon"]] if claimed else []
    x = plot.Axis(0.0, 1.06 * max(*values, 0.1))
    shapes, ys = [], []
    for i, row in enumerate(rows):
        at = 1 - (i + 0.5) / len(rows)
        ys.append((at, row["canaries_are"].removesuffix(" canaries")))
        shapes.append(plot.Shape(x.at([0.0, row["ceiling"]]), [at, at], 8, opacity=0.45))
        shapes.append(plot.Shape(x.at([row["epsilon"]]), [at], 0, "dots"))
    legend = [(0, "at least", ""), (8, "up to the ceiling", "")]
    if claimed:
        at = float(x.at(claimed["epsilon"]))
        shapes.append(plot.Shape([at, at], [0, 1], 1, "dashed"))
        legend.append((1, "claimed", plot.number(claimed["epsilon"])))
    delta, confidence = rows[0]["delta"], rows[0]["confidence"]
    small = f"at delta {delta:g}, {100 * confidence:g} % confidence"
    return plot.Plot("Epsilon by canaries", shapes, x.ticks(), ys, legend, small, x_name="epsilon")


# Tables -------------------------------------------------------------------------------------------------------------


def membership(found: Mapping[str, Any]) -> Table:
    """A row for each attack."""
    rows, best = [], []
    for i, row in enumerate(found["attacks"]):
        rows.append(
            [row["attack"], _interval(row, "auc"), _interval(row, "tpr"), f"{row['fpr']:.3f}"]
        )
        best += [(i, 1)] * (row["auc_low"] > 0.5) + [(i, 2)] * (row["tpr_low"] > row["fpr_high"])
    first = found["attacks"][0]
    sure = f"{100 * first['confidence']:.3g} %"
    at = f"TPR at {100 * first['at']:g} % FPR"
    head = ["attack", f"AUC\nDeLong, {sure}", f"{at}\nClopper-Pearson, {sure}", "FPR"]
    return Table("", head, rows, best, notes=[_MEMBERSHIP.format(sure=100 * found["confidence"])])


def lower_bounds(found: Mapping[str, Any]) -> Table:
    """A row for each kind of canary."""
    rows = [
        [
            row["canaries_are"],
            f"{row['epsilon']:.3f}",
            f"{row['ceiling']:.3f}",
            f"{row['correct']} of {row['guesses']}",
            f"{row['included']} of {row['canaries']}",
        ]
        for row in found["bounds"]
    ]
    first = found["bounds"][0]
    sure = f"delta {first['delta']:g}, {100 * first['confidence']:g} %"
    head = ["canaries", f"epsilon at least\n{sure}", "ceiling", "guesses right", "in the training"]
    return Table("", head, rows, notes=[_BOUNDS.format(beyond=100 * (1 - first["confidence"]))])
