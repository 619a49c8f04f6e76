"""Evaluations of a run side by side: the rows of its ``metrics.json``.

The file is a JSON list of flat objects, one for each number. Every row has every key:

``metric, value, real, untrained``
    The name of the number with that of its feature net, the number, and what stands beside it: the same of real images
    and of an untrained generator, null where it cannot be had.
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
``reference, reference_images, reference_sha256, train_images, train_sha256, real_images``
    What was compared with: the test split, its images and the hash of their content; the same of the training split;
    how many training images stand in the place of samples in ``real``.
``samples_sha256, quantization, versions``
    The hash of samples that came from files, "" of a run's; ``uint8``; the versions of packages, in words.
"""

from collections.abc import Sequence
from typing import Any

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


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The rows of both, the new ones last; an old one goes where a new one has the same ``KEY``."""
    replaced = {_key(row) for row in new}
    return [*(row for row in old if _key(row) not in replaced), *new]


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)
