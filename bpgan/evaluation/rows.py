"""Evaluations of a run side by side: the rows of its ``metrics.json``.

The file is a JSON list of flat objects, one for each number. Every row has every key:

``metric, value, real, untrained, better``
    The name of the number with that of its feature net, the number, and what stands beside it: the same of real images
    and of an untrained generator, null where it cannot be had. Which is better, ``higher`` or ``lower``; "" if neither.
``classes, of_classes``
    Of how many classes of how many it is a number; null where classes do not matter. ``matched_by`` says how the
    classes of the samples were found in the data: ``name``, ``number`` or "".
``of, experiment, training_seed``
    The run directory or the samples; the run's experiment and seed, "" and null of samples.
``checkpoint, step, flags``
    Which checkpoint was asked for (``newest``, ``best`` or a step as text), the step of the one that was found, and the
    flags that were other than the run's, ``NAME=VALUE`` sorted and separated by spaces. "", null and "" of samples.
``features, features_sha256, preprocessing``
    The feature net, the hash of its weights and what it does to an image; all "" of numbers that need none, the hash
    "" of functions, whose content is not known.
``n, seed``
    How many samples, and the seed of latents and subsets.
``reference, reference_images, reference_sha256, train_images, train_sha256``
    What was compared with, such as ``mnist10k test``: its images and the hash of their content; the same of the
    training split. The hashes are "" of a private run.
``real_of, real_images, real_reference_images``
    Whose images stand in the place of samples in ``real``, how many, and with how many they are compared: with the
    reference, or a half of it.
``samples_sha256, quantization, versions``
    The hash of samples that came from files, "" of a run's; ``uint8``; the versions of packages, in words.
"""

import itertools
import os
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from bpgan.files import decode, write_json
from bpgan.measures import mean_of
from bpgan.metrics.features import kept
from bpgan.runtime import records
from bpgan.types import UserError

KEY = {
    "metric": str,
    "features": str,
    "features_sha256": str,
    "checkpoint": str,
    "step": int,
    "flags": str,
    "n": int,
    "seed": int,
    "reference_sha256": str,
    "train_sha256": str,
}
"""What tells one number of a run from another, and its types. The same evaluation again replaces its numbers."""

Row = dict[str, Any]


def is_row(value: Any) -> bool:
    """Whether a value is a row of a run's evaluation, as far as it must be known to keep it beside others."""
    return (
        isinstance(value, dict)
        and all(type(value.get(name)) is kind for name, kind in KEY.items())
        and type(value.get("value")) in (int, float)
    )


def merge(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The rows of both, the new ones last; an old one goes where a new one has the same ``KEY``."""
    replaced = {_key(row) for row in new}
    return [*(row for row in old if _key(row) not in replaced), *new]


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def add(path: pathlib.Path, rows: Sequence[Row]) -> int:
    """Adds an evaluation to those of a run, ``metrics.json``; returns how many numbers there are now.

    What is no such file, or has rows that are none, is set aside; the rows that are sound are kept.

    Raises:
      OSError: if the disk does not take them.
      UserError: if something else lies where the file should be.
    """
    with kept.turn(path.parent):  # of several that evaluate the run at the same time
        old, damaged = _read(path)
        if damaged:
            names = (f"{path.name}.damaged{n or ''}" for n in itertools.count())
            aside = next(p for p in map(path.with_name, names) if not os.path.lexists(p))
            os.rename(path, aside)
            print(f"warning: {path} {damaged}; it is now {aside}", file=sys.stderr, flush=True)
        rows = merge(old, rows)
        write_json(path, rows)
    return len(rows)


def _read(path: pathlib.Path) -> tuple[list[Row], str]:
    """The sound rows of a ``metrics.json``, and what is wrong with the rest; empty if nothing is.

    One row that the report cannot read would keep it from showing any.
    """
    if not path.exists():
        return [], ""
    if not path.is_file():
        raise UserError(f"{path} is no file")
    try:
        rows = decode(path.read_bytes(), list[Any])
    except ValueError as error:
        return [], f"is damaged ({error})"
    sound = [row for row in rows if records.is_evaluation(row) and is_row(row)]
    return sound, "" if len(sound) == len(rows) else "has rows that this version did not write"


def table(rows: Sequence[Row]) -> list[str]:
    """A line for each metric: value (mean and standard deviation over candidates), real and untrained beside it.

    And, of a metric of classes, how many it is of.
    """
    lines = [f"{'metric':34s} {'value':>22s} {'real':>12s} {'untrained':>12s}"]
    for metric in dict.fromkeys(row["metric"] for row in rows):
        found = [row for row in rows if row["metric"] == metric]
        text = mean_of([row["value"] for row in found])
        bounds = []
        for column in ("real", "untrained"):
            known = [row[column] for row in found if row[column] is not None]
            bounds.append(f"{statistics.fmean(known):12.4g}" if known else f"{'-':>12s}")
        counts = sorted({row["classes"] for row in found if row.get("classes") is not None})
        ends = " to ".join(dict.fromkeys(str(count) for count in (*counts[:1], *counts[-1:])))
        of = f"  of {ends} of {found[0]['of_classes']} classes" if counts else ""
        lines.append(f"{metric:34s} {text:>22s} {' '.join(bounds)}{of}")
    return lines
