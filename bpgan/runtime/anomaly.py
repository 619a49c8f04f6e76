"""What goes wrong in training without being an error: spikes of a loss, and samples that have become alike.

Functions of numbers that are logged or reproduced on resume, so an interrupted run reports the same anomalies at the
same steps as an undisturbed one.
"""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

HISTORY = 20
"""Log lines that a new one is compared with."""

_ENOUGH = 8
_SPREADS = 10.0


def loss_spikes(history: Sequence[Mapping[str, float]], values: Mapping[str, float]) -> list[str]:
    """Names the losses that have jumped up, with their value and their range.

    A metric called ``loss`` or ``.../loss`` has if it exceeds the median m of its last values by ten times their
    spread; the spread is 1.4826 times the median absolute deviation (the standard deviation of a normal sample), and
    at least ``(1 + |m|) / 20``, for no loss is as calm as its calmest moments.

    Args:
      history: the log lines before, oldest first; the last ``HISTORY`` with the metric count, and fewer than 8 are no
        base to judge on.
      values: the new means by name.
    """
    found = []
    for name, value in values.items():
        if name.rpartition("/")[2] != "loss":
            continue
        past = [line[name] for line in history if name in line][-HISTORY:]
        if len(past) < _ENOUGH:
            continue
        middle = statistics.median(past)
        deviation = statistics.median(abs(x - middle) for x in past)
        limit = middle + _SPREADS * max(1.4826 * deviation, 0.05 * (1 + abs(middle)))
        if value > limit:
            found.append(f"{name} jumped to {value:.4g} (median of late {middle:.4g})")
    return found


DIVERSITY = ("samples/variance", "samples/duplicates")
"""The names of what ``diversity`` measures."""


def diversity(samples: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """How much samples differ among themselves, by the measure of real examples; features are pixels.

    ``samples/variance``: variance within the batch, summed over pixels, over that of the real batch; 1 if as varied.
    ``samples/duplicates``: fraction of samples whose nearest other sample is nearer than a tenth of the median such
    distance among the real ones. Both are crude, and enough to see a generator collapse onto a few images.

    Args:
      samples, real: uint8 ``[n, h, w, c]`` and ``[m, h, w, c]``, at least two of each; comparable for n near m.
    """
    # Whole numbers: their sums and squares are exact, so that equal images differ by nothing at all.
    x, y = (a.reshape(len(a), -1).astype(np.float64) for a in (samples, real))
    variance = y.var(axis=0).sum()
    varied = float(x.var(axis=0).sum() / variance) if variance else 1.0
    duplicates = float(np.mean(_nearest(x) < 0.1 * np.median(_nearest(y))))
    return dict(zip(DIVERSITY, (varied, duplicates), strict=True))


def collapse(values: Mapping[str, float]) -> list[str]:
    """Names a collapse that ``diversity`` shows: under 5 % of the variance, or more than half duplicates."""
    found = []
    if values["samples/variance"] < 0.05:
        found.append(
            f"samples vary {values['samples/variance']:.2g} times as much as data: collapse"
        )
    if values["samples/duplicates"] > 0.5:
        found.append(f"{values['samples/duplicates']:.0%} of the samples are duplicates: collapse")
    return found


def _nearest(x: np.ndarray) -> np.ndarray:
    """Distance of each row to the nearest other one."""
    squares = (x * x).sum(axis=1)
    distances = squares[:, None] + squares - 2 * x @ x.T
    np.fill_diagonal(distances, np.inf)
    return np.sqrt(np.maximum(distances.min(axis=1), 0))
